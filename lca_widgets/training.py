"""A training run as a generator of steps, with checkpoints, exact resumption and forks."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lca_widgets._checks import require_in_range, require_integer
from lca_widgets.data import Split

__all__ = [
    "Checkpoint",
    "StepRecord",
    "TrainingRun",
    "TrainingSettings",
    "accuracy",
    "present_devices",
]

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingSettings:
    """What determines a run of (stochastic) gradient descent, apart from the model and the data.

    Attributes:
        steps: Number of updates; the run yields ``steps + 1`` records, the first at the start.
        learning_rate: Step size η, > 0.
        momentum: Heavy-ball momentum in [0, 1).
        weight_decay: λ ≥ 0; a step follows ∇L(θ) + λθ.
        batch_size: Samples a step; ``None`` takes every sample in every step.
        seed: Fixes the order of the mini-batches.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    steps: int = 200
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_integer("steps", self.steps, low=0)
        require_in_range("learning_rate", self.learning_rate, low=0, open_low=True)
        require_in_range("momentum", self.momentum, low=0, high=1, open_high=True)
        require_in_range("weight_decay", self.weight_decay, low=0)
        if self.batch_size is not None:
            require_integer("batch_size", self.batch_size, low=1)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)
        # NumPy's numbers are numbers too, but a checkpoint holds plain ones only.
        for name in ("learning_rate", "momentum", "weight_decay"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class StepRecord:
    """The state of a run before its update number ``step + 1``.

    Attributes:
        step: Updates made so far; 0 is the initialisation.
        loss: Loss of this step's batch, in the loss function's unit.
        accuracy: Fraction of this step's batch classified correctly.
        diverged: The loss is NaN or infinite; no update was made and the run is over.
    """

    step: int
    loss: float
    accuracy: float
    diverged: bool = False


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        step: Updates made so far.
        settings: The run's settings.
        model: The model's ``state_dict``, copied; buffers as they were before this step's forward
            pass, which the resumed run makes again.
        optimizer: The optimiser's ``state_dict``, copied.
    """

    step: int
    settings: TrainingSettings
    model: dict[str, Any]
    optimizer: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the checkpoint with ``torch.save``: tensors and plain values only."""
        torch.save(_shallow_dict(self) | {"settings": _shallow_dict(self.settings)}, path)

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint back on the CPU, without unpickling any code (``weights_only``).

        Raises:
            ValueError: the file holds something else.
        """
        content = torch.load(path, weights_only=True, map_location="cpu")
        try:
            return cls(**(content | {"settings": TrainingSettings(**content["settings"])}))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no checkpoint of a training run") from error


class TrainingRun:
    """A run of gradient descent that is advanced one step at a time, by iterating over it.

    Each step computes the batch's loss and its gradient, yields a `StepRecord`, and only then, when
    the next one is asked for, updates the parameters that are not frozen::

        v ← momentum · v + ∇L(θ) + weight_decay · θ,    θ ← θ − η v

    So between two records the model still has the parameters, and ``.grad`` the gradient, that the
    record describes, and hooks that were on the model have seen exactly one forward and one
    backward pass. The last record (step ``settings.steps``) makes no update. A loss that is NaN or
    infinite ends the run with a record that says ``diverged``.

    The batch of step t depends on the seed and on t alone (the samples are shuffled anew for every
    epoch, and those left over at its end are not used), and nothing here draws from the global
    random state; so the same model, data and settings give the same records, and a resumed run is
    the uninterrupted one, batch normalisation's running statistics included. A model that itself
    draws random numbers (dropout) is the exception.

    Args:
        model: Trained in place; put in train mode before every step.
        data: The training samples, on the model's device.
        settings: What determines the run.
        loss_fn: Maps (outputs, labels) to a scalar, *averaged* over the batch.
        checkpoint: Where to go on from; ``None`` starts with the model as it is.

    Raises:
        ValueError: the batch size exceeds the number of samples, or the checkpoint does not fit.

    Example:
        >>> from lca_widgets.data import digits
        >>> from lca_widgets.models import mlp
        >>> run = TrainingRun(
        ...     mlp(64, 10, depth=2, width=16), digits().train, TrainingSettings(steps=3)
        ... )
        >>> [record.step for record in run]
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        model: nn.Module,
        data: Split,
        settings: TrainingSettings,
        *,
        loss_fn: LossFn = nn.functional.cross_entropy,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        if settings.batch_size is not None and settings.batch_size > len(data):
            raise ValueError(
                f"batch_size must be at most the number of samples, {len(data)}, "
                f"got {settings.batch_size}"
            )
        self.model = model
        self.settings = settings
        self._data = data
        self._loss_fn = loss_fn
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            foreach=True,  # the same numbers; on a CPU the default is a loop in Python
        )
        # Once: in a deep model of small layers, walking through it took a tenth of a step. A
        # shared module is listed under all its names, as in a state_dict.
        modules = list(model.named_modules(remove_duplicate=False))
        self._modules = [module for _, module in modules]
        self._with_buffers = [(name, module) for name, module in modules if module._buffers]
        self._step = 0
        self._order: tuple[int, Tensor] | None = None  # (epoch, its permutation)
        # The model's buffers before this step's forward pass; None if it was not yet made.
        self._buffers: dict[str, Tensor] | None = None
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def step(self) -> int:
        """Number of updates made so far."""
        return self._step

    def __iter__(self) -> Iterator[StepRecord]:
        """Yield the record of the current step, update, and so on to the last step.

        Abandoning the iterator between two records leaves the run before its update: iterating
        again goes on from there, with the same record first. The passes of that step are made
        again, from the buffers that it started with, so that batch normalisation's running
        statistics do not count its batch twice.
        """
        while True:
            record = self._forward_backward()
            yield record
            if record.diverged or record.step >= self.settings.steps:
                return
            self._optimizer.step()
            self._step += 1
            self._buffers = None

    def checkpoint(self) -> Checkpoint:
        """Copy the state before the current step's update; the run itself goes on untouched."""
        model = copy.deepcopy(self.model.state_dict())
        for name, buffer in (self._buffers or {}).items():
            if name in model:  # not all buffers are part of the state
                model[name] = buffer.clone()
        return Checkpoint(
            self._step, self.settings, model, copy.deepcopy(self._optimizer.state_dict())
        )

    def fork(self, **changes: Any) -> TrainingRun:
        """Return an independent copy of this run that goes on from here with changed settings.

        Args:
            **changes: Fields of `TrainingSettings`, such as ``learning_rate=1.0``.

        Example:
            >>> from lca_widgets.data import digits
            >>> from lca_widgets.models import mlp
            >>> run = TrainingRun(
            ...     mlp(64, 10, depth=2, width=16), digits().train, TrainingSettings(steps=3)
            ... )
            >>> branch = run.fork(learning_rate=1.0)
            >>> branch.settings.learning_rate, run.settings.learning_rate
            (1.0, 0.1)
        """
        return TrainingRun(
            copy.deepcopy(self.model),
            self._data,
            dataclasses.replace(self.settings, **changes),
            loss_fn=self._loss_fn,
            checkpoint=self.checkpoint(),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self.model.load_state_dict(checkpoint.model)
            # A copy: the optimiser would go on in the checkpoint's own tensors.
            self._optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"checkpoint does not fit this model: {error}") from error
        # The optimiser's state brings the old rates back; a fork's settings overrule them.
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate
            group["momentum"] = self.settings.momentum
            group["weight_decay"] = self.settings.weight_decay
        self._step = checkpoint.step

    def _forward_backward(self) -> StepRecord:
        # At every step: an evaluation between two records leaves eval mode.
        if not all(module.training for module in self._modules):
            self.model.train()
        if self._buffers is None:
            self._buffers = {name: buffer.clone() for name, buffer in self._named_buffers()}
        else:
            with torch.no_grad():
                for name, buffer in self._named_buffers():
                    buffer.copy_(self._buffers[name])
        batch = self._batch()
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self.model(batch.x)
        loss = self._loss_fn(outputs, batch.y)
        loss.backward()
        value = loss.item()
        return StepRecord(
            self._step, value, accuracy(outputs, batch.y), diverged=not math.isfinite(value)
        )

    def _named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self._with_buffers:
            yield from module.named_buffers(name, recurse=False)

    def _batch(self) -> Split:
        size = self.settings.batch_size
        if size is None:
            return self._data
        epoch, position = divmod(self._step, len(self._data) // size)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._permutation(epoch))
        chosen = self._order[1][position * size : (position + 1) * size]
        return Split(self._data.x[chosen], self._data.y[chosen])

    def _permutation(self, epoch: int) -> Tensor:
        # One generator per epoch, so that step t's batch needs no history.
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return torch.randperm(len(self._data), generator=generator).to(self._data.x.device)


def present_devices() -> tuple[str, ...]:
    """Return the names of the devices that PyTorch finds here; ``"cuda"`` is the first GPU.

    Example:
        >>> "cpu" in present_devices()
        True
    """
    count = torch.cuda.device_count()
    cuda = ("cuda", *(f"cuda:{k}" for k in range(1, count))) if count else ()
    return ("cpu", *cuda, *(("mps",) if torch.backends.mps.is_available() else ()))


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the fraction of ``outputs`` [n, C] whose largest entry is at ``labels`` [n].

    Example:
        >>> accuracy(torch.eye(3), torch.tensor([0, 1, 1]))  # doctest: +ELLIPSIS
        0.66...
    """
    return (outputs.argmax(dim=-1) == labels).double().mean().item()


def _shallow_dict(record: Any) -> dict[str, Any]:
    """As ``dataclasses.asdict``, without copying the tensors inside."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
