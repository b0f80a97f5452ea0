"""The training itself: one iteration after the other, with what is measured in its own pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lca_widgets.data import CifarData
from lca_widgets.experiments.cifar.augmentation import crops_of, normalised, sample_indices
from lca_widgets.experiments.cifar.processes import Processes
from lca_widgets.experiments.cifar.settings import MATCHED, CifarSettings, differences
from lca_widgets.experiments.last_layer import LastLayer, last_layer
from lca_widgets.models import Divide, ResidualNetwork, resnet
from lca_widgets.surgery import add_final_norm

__all__ = ["CifarTrainer", "IterationRecord"]

LOW_PRECISION = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TEST_BATCH = 500


@dataclass(frozen=True)
class IterationRecord:
    """An iteration: its mini-batch, before its update.

    Attributes:
        iteration: Updates made before; the first is 0.
        epoch: Epochs that were over before.
        learning_rate: Of the update.
        loss: Mean cross entropy over the batch, over all processes.
        accuracy: Share of the batch that is classified correctly.
        last_layer: Conditioning of the classifier; ``None`` where it was not measured.
    """

    iteration: int
    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    last_layer: LastLayer | None

    @property
    def diverged(self) -> bool:
        """Whether the loss is no number any more; then no update was made."""
        return not math.isfinite(self.loss)


class CifarTrainer:
    """A training that is advanced by `step`; it writes nothing.

    The batch of an iteration depends on the seed and the iteration alone, the dropout on the state
    of the network, and nothing on the global random state: a training that is restored from its
    `state` goes on as if it had never stopped.

    Of several processes, each has its part of every batch, and its own batch statistics, as
    ``DistributedDataParallel`` leaves them: BN normalises by fewer images than ``batch_size``, and
    the running statistics are the first process's. The last layer's measurements are of all images,
    and made in the first process only.

    Args:
        settings: What determines the training.
        data: The images.
        processes: Those that train together.

    Raises:
        ValueError: the batch is larger than the training set, or cannot be divided among the
            processes.
    """

    def __init__(self, settings: CifarSettings, data: CifarData, processes: Processes) -> None:
        _require_batch(settings, len(data.train), processes.world)
        self.settings, self.data, self.processes = settings, data, processes
        self.device = processes.device
        self.per_epoch = len(data.train) // settings.batch_size
        self.iterations = settings.epochs * self.per_epoch
        if settings.iterations is not None:
            self.iterations = min(self.iterations, settings.iterations)
        self.iteration = 0
        self.diverged = False
        self._images = (data.train.x.to(self.device), data.train.y.to(self.device))
        self.divisor = self._divisor()
        self.network = self._network(settings.final_norm, self.divisor, settings.dropout)
        self._with_features = _WithFeatures(self.network, LOW_PRECISION[settings.amp], self.device)
        self._model = self._wrapped(self._with_features)
        self._optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "fp16")

    @property
    def facts(self) -> dict[str, Any]:
        """What a run cannot change on its way: settings, data, number of processes."""
        return self.settings.binding() | {
            "data": self.data.name,
            "published": self.data.published,
            "images": [len(self.data.train), len(self.data.test)],
            "processes": self.processes.world,
        }

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.diverged or self.iteration >= self.iterations

    @property
    def epoch_over(self) -> bool:
        """Whether the iteration before was the last of its epoch."""
        return self.iteration > 0 and self.iteration % self.per_epoch == 0

    def step(self) -> IterationRecord:
        """Make an iteration, and say what it was like before its update."""
        epoch = self.iteration // self.per_epoch
        rate = self.settings.learning_rate_at(epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        x, y = self.batch(self.iteration, self.processes.part(self.settings.batch_size))
        measured = self.iteration % self.settings.measure_every == 0
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        logits, features = self._model(x)
        if measured:
            logits.retain_grad()
        loss = cross_entropy(logits, y)
        self._scaler.scale(loss).backward()
        share = (logits.argmax(dim=1) == y).float().mean()
        # Both come from the device at once: each time that it is asked, it has to finish first.
        whole_loss, whole_share = self.processes.mean(torch.stack([loss.detach(), share])).tolist()
        self.diverged = not math.isfinite(whole_loss)
        last = self._last_layer(logits, features) if measured and not self.diverged else None
        record = IterationRecord(self.iteration, epoch, rate, whole_loss, whole_share, last)
        if not self.diverged:
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self.iteration += 1
        return record

    def batch(self, iteration: int, part: slice) -> tuple[Tensor, Tensor]:
        """Return a part of an iteration's images, augmented and normalised, and their labels."""
        size, seed = self.settings.batch_size, self.settings.seed
        images, labels = self._images
        chosen = sample_indices(len(labels), size, seed, iteration)[part].to(self.device)
        crops = crops_of(size, seed, iteration)[part]
        return normalised(crops.of(images[chosen])), labels[chosen]

    @torch.no_grad()
    def test_error(self) -> float:
        """Return the share of wrongly classified test images, in per cent."""
        self.network.eval()
        wrong = 0
        test = self.data.test
        for x, y in zip(test.x.split(TEST_BATCH), test.y.split(TEST_BATCH), strict=True):
            logits, _ = self._with_features(normalised(x.to(self.device)))
            wrong += int((logits.argmax(dim=1).cpu() != y).sum())
        return 100 * wrong / len(test)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs, as tensors and plain values."""
        return {
            "facts": self.facts,
            "iteration": self.iteration,
            "diverged": self.diverged,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another training's `state`.

        Raises:
            ValueError: it is the state of a training with other settings, data or processes, or
                none at all; the message names what differs.
        """
        try:
            other = differences(state["facts"], self.facts)
            if other:
                raise ValueError(f"its checkpoint is of another training ({'; '.join(other)})")
            self.network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self._scaler.is_enabled():
                self._scaler.load_state_dict(state["scaler"])
            self.iteration, self.diverged = state["iteration"], state["diverged"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"its checkpoint holds no CIFAR training: {error}") from error

    def _last_layer(self, logits: Tensor, features: Tensor) -> LastLayer | None:
        """Measure the classifier on the images of all processes, in the first of them."""
        # The gradient of a mean over this process's images, of a loss that fp16 scales.
        assert logits.grad is not None
        per_sample = logits.grad * (len(logits) / self._scaler.get_scale())
        x, g = self.processes.gathered(features.detach()), self.processes.gathered(per_sample)
        if not self.processes.first:
            return None
        return last_layer(x, g, self.network.classifier.weight.detach())

    def _divisor(self) -> float:
        """The constant of "scale", measured if it is asked for: for all processes the same."""
        if self.settings.final_norm != "scale":
            return 1.0
        if self.settings.divisor != MATCHED:
            return float(self.settings.divisor)
        plain = self._network("none", divisor=1.0, dropout=0.0)
        x, _ = self.batch(0, slice(None))
        scaled = add_final_norm(plain, "scale", inputs=x, classifier="classifier")
        division = scaled.get_submodule("classifier.input_norm")
        assert isinstance(division, Divide)
        return division.divisor.item()

    def _network(self, final_norm: str, divisor: float, dropout: float) -> ResidualNetwork:
        settings = self.settings
        return resnet(
            settings.depth,
            classes=self.data.classes,
            width_factor=settings.width_factor,
            preactivation=settings.preactivation,
            own_final_norm=settings.own_final_norm,
            shortcut=settings.shortcut,
            block_norm=settings.block_norm,
            final_norm=final_norm,
            divisor=divisor,
            dropout=dropout,
            checkpointing=settings.checkpointing,
            seed=settings.seed,
        ).to(self.device)

    def _wrapped(self, model: nn.Module) -> Any:
        if self.processes.world > 1:
            places = [self.device] if self.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=places)
        return torch.compile(model) if self.settings.compile else model


class _WithFeatures(nn.Module):
    """A network that also returns what its classifier got: nothing has to be hooked to it.

    The features are computed in low precision if so asked, the logits in float32.
    """

    def __init__(
        self, network: ResidualNetwork, low: torch.dtype | None, device: torch.device
    ) -> None:
        super().__init__()
        self.network, self._low, self._kind = network, low, device.type

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._low is None:
            features = self.network.features(x)
        else:
            with torch.autocast(self._kind, dtype=self._low):
                features = self.network.features(x)
        features = features.float()
        return self.network.classifier(features), features


def _require_batch(settings: CifarSettings, samples: int, world: int) -> None:
    size = settings.batch_size
    if size > samples:
        raise ValueError(f"batch_size must be at most the {samples} training images, got {size}")
    if size % world:
        raise ValueError(f"batch_size must be a multiple of the {world} processes, got {size}")
