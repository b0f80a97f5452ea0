"""What is done about the last layer: the same network trained side by side with each remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lca_widgets._checks import require_integer, require_one_of
from lca_widgets.experiments.last_layer import (
    ARMS,
    LastLayerMeasurement,
    LastLayerSettings,
    last_layer_training,
)
from lca_widgets.training import StepRecord

__all__ = ["FinalNormMeasurement", "FinalNormSettings", "final_norm"]


@dataclass(frozen=True)
class FinalNormSettings:
    """Settings of several trainings that differ in what is before the classifier, and in that only.

    All have the same seed, so the same initial weights and the same batches.

    Attributes:
        arms: Names among `last_layer.ARMS`, separated by commas.
        network: As in `last_layer.LastLayerSettings`; so are all that follow.
        blocks: As there.
        width: As there.
        preactivation: As there.
        dropout: As there.
        learning_rate: As there.
        momentum: As there.
        steps: As there.
        batch_size: As there.
        seed: As there.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    arms: str = "none,batch,scale"
    network: str = "mlp"
    blocks: int = 20
    width: int = 32
    preactivation: bool = False
    dropout: float = 0.0
    learning_rate: float = 1.0
    momentum: float = 0.0
    steps: int = 60
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field; those of the trainings are checked by these."""
        if not isinstance(self.arms, str):
            raise TypeError(f"arms must be a text such as 'none,batch', got {self.arms!r}")
        if len(set(self.arm_names)) < len(self.arm_names):
            raise ValueError(f"arms must each be named once, got {self.arms!r}")
        for arm in self.arm_names:
            require_one_of("arms", arm, ARMS)
        if "own" in self.arm_names and not self.preactivation:
            raise ValueError(
                f"arms must not have 'own' without preactivation, got {self.arms!r}: a "
                "post-activation network has no BN after its last block"
            )
        if "before-pooling" in self.arm_names and self.network != "resnet":
            raise ValueError(
                f"arms must not have 'before-pooling' in a perceptron, got {self.arms!r}: it pools "
                "nothing"
            )
        require_integer("steps", self.steps, low=0)
        self.trainings()

    @property
    def arm_names(self) -> list[str]:
        """The arms, one by one."""
        return self.arms.split(",")

    def trainings(self) -> dict[str, LastLayerSettings]:
        """Return the training of every arm; all layers are measured at its ends only."""
        shared = {name: value for name, value in vars(self).items() if name != "arms"}
        common = LastLayerSettings(**shared, every=max(1, self.steps))
        return {arm: replace(common, final_norm=arm) for arm in self.arm_names}


@dataclass(frozen=True)
class FinalNormMeasurement:
    """One step of all trainings.

    Attributes:
        training: The step, with the first arm's loss and accuracy; ``diverged`` once all have.
        arms: The latest measurement of each training; one that diverged stays where it did.
    """

    training: StepRecord
    arms: dict[str, LastLayerMeasurement]

    def fresh(self) -> dict[str, LastLayerMeasurement]:
        """Return those that were measured at this very step."""
        return {arm: m for arm, m in self.arms.items() if m.training.step == self.training.step}


def final_norm(settings: FinalNormSettings) -> Iterator[FinalNormMeasurement]:
    """Train the same network with each remedy, step by step beside one another.

    Args:
        settings: The network, its training and the remedies.

    Yields:
        ``settings.steps + 1`` measurements, fewer if all trainings diverge.

    Source:
        Huang et al. (2020), ResNet_LastBN and its alternatives; on other data.

    Example:
        >>> tiny = FinalNormSettings("none,batch", blocks=2, width=8, batch_size=64, steps=1)
        >>> [sorted(m.arms) for m in final_norm(tiny)]
        [['batch', 'none'], ['batch', 'none']]
    """
    runs = {arm: last_layer_training(one) for arm, one in settings.trainings().items()}
    latest: dict[str, LastLayerMeasurement] = {}
    for step in range(settings.steps + 1):
        latest |= {arm: m for arm, run in runs.items() if (m := next(run, None)) is not None}
        first = latest[settings.arm_names[0]].training
        diverged = all(m.training.diverged for m in latest.values())
        record = StepRecord(step, first.loss, first.accuracy, diverged=diverged)
        yield FinalNormMeasurement(record, dict(latest))
        if diverged:
            return
