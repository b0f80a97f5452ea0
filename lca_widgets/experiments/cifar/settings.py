"""What determines a CIFAR run; the defaults are the authors' settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.models import FINAL_NORMS
from lca_widgets.training import present_devices

__all__ = ["AMP", "MATCHED", "CifarSettings"]

AMP = ("none", "bf16", "fp16")
SHORTCUTS = ("A", "B")
MATCHED = "matched"
# They decide how far and where a run goes, and no value of its logs.
FREE = ("device", "iterations", "checkpoint_every")


@dataclass(frozen=True)
class CifarSettings:
    """A training of a CIFAR ResNet by SGD with Nesterov's momentum, as the authors ran them.

    Attributes:
        depth: Layers with weights, 6n+2.
        final_norm: What stands before the classifier: one of `lca_widgets.models.FINAL_NORMS`.
        divisor: Of ``final_norm="scale"``: the constant, or ``"matched"``, which measures it on the
            first batch as `lca_widgets.add_final_norm` does.
        preactivation: Whether BN and ReLU come before the convolutions.
        own_final_norm: Whether a pre-activation network has its own BN after the last block.
        shortcut: ``"A"``, without parameters, or ``"B"``, a 1×1 convolution.
        width_factor: Multiplies the stages' 16, 32 and 64 channels, > 0.
        block_norm: Whether stem and blocks have their BN. Without it and with
            ``final_norm="batch"`` there is a single BN in the whole network.
        dropout: Probability of dropping a feature before the classifier, in [0, 1).
        batch_size: Images a step, over all processes.
        epochs: Times that the training set is gone through; what is left over when it is cut into
            batches, other images each time, is not used.
        learning_rate: Step size η, > 0.
        milestones: Epochs (the first is 0) from which on η is divided by ten once more.
        momentum: Nesterov's, in [0, 1).
        weight_decay: λ ≥ 0, of every parameter.
        seed: Fixes the weights, the order of the images, their crops and flips, and the dropout.
        checkpointing: Whether the blocks' inner values are computed again in the backward pass.
        amp: ``"bf16"`` or ``"fp16"`` computes the features in this type (the latter with a scaled
            loss); the classifier and the loss stay in float32.
        compile: Whether the network goes through ``torch.compile``.
        device: Where to train; ``"auto"`` takes a GPU where there is one.
        iterations: Stop after so many, before the epochs are over; ``None``: all.
        measure_every: Iterations between two measurements of the last layer.
        checkpoint_every: Iterations between two checkpoints, beside those at an epoch's end;
            ``None``: no others.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.

    Example:
        >>> settings = CifarSettings(depth=110, final_norm="batch", dropout=0.3)
        >>> settings.name
        'resnet110-batch-seed0-dropout0.3'
        >>> [settings.learning_rate_at(epoch) for epoch in (0, 79, 80, 120)]
        [0.1, 0.1, 0.01, 0.001]
    """

    depth: int = 56
    final_norm: str = "none"
    divisor: float | str = MATCHED
    preactivation: bool = False
    own_final_norm: bool = True
    shortcut: str = "A"
    width_factor: float = 1.0
    block_norm: bool = True
    dropout: float = 0.0
    batch_size: int = 128
    epochs: int = 160
    learning_rate: float = 0.1
    milestones: tuple[int, ...] = (80, 120)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    checkpointing: bool = False
    amp: str = "none"
    compile: bool = False
    device: str = "auto"
    iterations: int | None = None
    measure_every: int = 1
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_network()
        require_integer("batch_size", self.batch_size, low=2)  # BN of one row has no variance
        require_integer("epochs", self.epochs, low=1)
        require_in_range("learning_rate", self.learning_rate, low=0, open_low=True)
        for milestone in self.milestones:
            require_integer("milestones", milestone, low=1)
        object.__setattr__(self, "milestones", tuple(sorted(self.milestones)))
        require_in_range("momentum", self.momentum, low=0, high=1, open_high=True)
        require_in_range("weight_decay", self.weight_decay, low=0)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)
        require_one_of("amp", self.amp, AMP)
        require_one_of("device", self.device, ("auto", *present_devices()))
        require_integer("measure_every", self.measure_every, low=1)
        for name in ("iterations", "checkpoint_every"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), low=1)
        for name in ("preactivation", "own_final_norm", "block_norm", "checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _check_network(self) -> None:
        require_integer("depth", self.depth, low=8)
        if self.depth % 6 != 2:
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, 26, …), got {self.depth}")
        require_one_of("final_norm", self.final_norm, FINAL_NORMS)
        if self.divisor != MATCHED:
            if isinstance(self.divisor, str):
                raise ValueError(f"divisor must be {MATCHED!r} or a number, got {self.divisor!r}")
            require_in_range("divisor", self.divisor, low=0, open_low=True)
            if self.final_norm != "scale":
                raise ValueError(
                    f"divisor belongs to final_norm='scale', got {self.divisor!r} with "
                    f"{self.final_norm!r}"
                )
        if not self.own_final_norm and not self.preactivation:
            raise ValueError("own_final_norm can be left out with preactivation only")
        require_one_of("shortcut", self.shortcut, SHORTCUTS)
        require_in_range("width_factor", self.width_factor, low=0, open_low=True)
        require_in_range("dropout", self.dropout, low=0, high=1, open_high=True)

    @property
    def name(self) -> str:
        """Name of a run's folder: the network and the seed, then what is not the default."""
        words = [f"resnet{self.depth}", self.final_norm, f"seed{self.seed}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in (*FREE, "depth", "final_norm", "seed") or value == field.default:
                continue
            if isinstance(value, bool):
                words.append(field.name if value else f"no_{field.name}")
            else:
                shown = "+".join(map(str, value)) if isinstance(value, tuple) else value
                words.append(f"{field.name}{shown}")
        return "-".join(words)

    def learning_rate_at(self, epoch: int) -> float:
        """Return η in an epoch; the first is 0."""
        passed = sum(epoch >= milestone for milestone in self.milestones)
        return self.learning_rate / 10**passed

    def binding(self) -> dict[str, Any]:
        """Return the fields that a run cannot change on its way, as plain values."""
        plain = asdict(self) | {"milestones": list(self.milestones)}
        return {name: value for name, value in plain.items() if name not in FREE}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which of two runs' facts differ, as ``name: before there, now here``."""
    return [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} here"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
