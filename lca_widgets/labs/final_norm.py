"""The lab of the last layer's remedies: the same training with each of them, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number, percent
from lca_widgets.experiments.final_norm import (
    FinalNormMeasurement,
    FinalNormSettings,
    final_norm,
)
from lca_widgets.experiments.final_norm_rates import LOST
from lca_widgets.experiments.last_layer import ARMS
from lca_widgets.labs.controls import (
    ARRANGEMENT,
    NETWORK,
    REMEDIES,
    changed_settings,
    residual_name,
)
from lca_widgets.widgets.control_panel import Choice, Option, Slider
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FinalNorm", "describe_arms"]

_NAMES = tuple(REMEDIES[arm] for arm in ARMS)
_POST = {
    "arms": "none,batch,scale",
    "network": "mlp",
    "blocks": 20,
    "preactivation": False,
    "learning_rate": 1.0,
    "momentum": 0.0,
    "dropout": 0.0,
}
_COMPARISONS = {
    "none,batch,scale": "LastBN, constant",
    "none,batch": "LastBN",
    "none,own,batch": "own final BN",
    "none,batch,single": "a single BN",
    "none,batch,scale,before-pooling": "all, for ResNets",
}


def describe_arms(measurement: FinalNormMeasurement) -> str:
    """Say in a few sentences how far the arms are, and what their classifiers get."""
    arms = measurement.arms
    if measurement.training.diverged:
        return "All runs diverged: none of the losses is finite. Lower the learning rate."
    parts = [
        f"{_name(arm)} diverged"
        if m.training.diverged
        else f"{_name(arm)} {number(m.training.loss)}"
        for arm, m in arms.items()
    ]
    sizes = [f"{number(m.last.lambda_max_x)} ({_name(arm)})" for arm, m in arms.items()]
    shapes = [f"{number(m.last.kappa50_x)} ({_name(arm)})" for arm, m in arms.items()]
    words = (
        f"At step {measurement.training.step} the losses are: {', '.join(parts)}"
        f"{_ratio(measurement)}. The classifier's input has λ_max {', '.join(sizes)} and κ_50 "
        f"{', '.join(shapes)}."
    )
    ended = {arm: m.unseen for arm, m in arms.items() if m.unseen == m.unseen}
    if len(ended) == len(arms):
        right = [f"{percent(share)} ({_name(arm)})" for arm, share in ended.items()]
        words += f" Unseen images right: {', '.join(right)}."
    return words


def arm_table(measurements: Iterable[FinalNormMeasurement]) -> pd.DataFrame:
    """Return a tidy table, one row an arm and step."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "step": m.training.step,
                "arm": arm,
                "loss": m.training.loss,
                "accuracy": m.training.accuracy,
            }
            | asdict(m.last)
            | {"unseen": m.unseen}
            for measurement in measurements
            for arm, m in measurement.fresh().items()
        ]
    )


def _name(arm: str) -> str:
    return REMEDIES[arm]


def _ratio(measurement: FinalNormMeasurement) -> str:
    """What LastBN has made of the loss, unless one of the two runs is lost."""
    losses = {arm: m.training.loss for arm, m in measurement.arms.items()}
    without, fixed = losses.get("none", math.nan), losses.get("batch", math.nan)
    if not (without < LOST and 0 < fixed < LOST):  # NaN is not below either
        return ""
    return f"; without a remedy it is {number(without / fixed)} times LastBN's"


def _results(measurement: FinalNormMeasurement) -> dict[str, str]:
    # A column for every arm: kept runs are rows of one table, whichever arms they have.
    losses = {arm: number(m.training.loss) for arm, m in measurement.arms.items()}
    return {f"loss, {_name(arm)}": losses.get(arm, "") for arm in ARMS}


def _name_run(settings: FinalNormSettings) -> str:
    parts = [residual_name(settings), f"η {number(settings.learning_rate)}"]
    if changed_settings(settings, "arms"):
        parts.append(" : ".join(map(_name, settings.arm_names)))
    parts += changed_settings(settings, "dropout", "momentum", "width", "batch_size", "seed")
    return ", ".join(parts)


def _arm_rows(measurement: FinalNormMeasurement) -> Iterator[Sequence[float]]:
    for arm, m in measurement.fresh().items():
        last = m.last
        yield (
            m.training.step, ARMS.index(arm), m.training.loss, m.training.accuracy,
            last.lambda_max_x, last.kappa50_x, last.lambda_max_weight_grad, last.weight_norm,
        )  # fmt: skip


def _limits(
    settings: FinalNormSettings, first: FinalNormMeasurement
) -> dict[str, tuple[float, float]]:
    return {"step": (0, settings.steps), "accuracy": (0, 1)}


def _panel(title: str, column: str, *, log: bool = True) -> Panel:
    return Panel("line", title, "arms", "step", column, log=log, by="series", names=_NAMES)


class FinalNorm(Lab):
    """Train the same network with each remedy of its last layer, and compare.

    All have the same initial weights and batches. Settings: `FinalNormSettings`.

    Example:
        >>> *_, end = FinalNorm.run(arms="none,batch", blocks=2, width=8, steps=2)
        >>> sorted(end.arms)
        ['batch', 'none']
    """

    title = "What helps the last layer?"
    settings_type = FinalNormSettings
    experiment = staticmethod(final_norm)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_arms)
    results = staticmethod(_results)
    header = (Slider("seed", "seed", 0, 20, help="Draws weights and batches."),)
    controls = (
        Choice(
            "arms",
            "compare with",
            tuple(Option(arms, name) for arms, name in _COMPARISONS.items()),
            help="What the network without a remedy is compared with.",
        ),
        Slider("blocks", "blocks", 3, 50, help="Residual blocks, of two layers each."),
        Slider("learning_rate", "learning rate", 0.01, 10.0, log=True),
        ARRANGEMENT,
        Slider("dropout", "dropout", 0.0, 0.9, step=0.1, help="Right before the classifier."),
        Slider("momentum", "momentum", 0.0, 0.95, step=0.05),
        Slider("steps", "steps", 0, 300, step=10),
        Slider("batch_size", "batch size", 16, 512, help="Images a step."),
        NETWORK,
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "20 blocks, η 1": _POST,
        "50 blocks, η 1": _POST | {"blocks": 50},
        "10 blocks, η 0.1": _POST | {"blocks": 10, "learning_rate": 0.1},
        "pre-activation": _POST | {"arms": "none,own,batch", "preactivation": True},
        "a single BN": _POST | {"arms": "none,batch,single"},
        "dropout 0.3": _POST | {"arms": "none,batch", "dropout": 0.3},
        "ResNet-20, η 1": _POST
        | {"arms": "none,batch,scale,before-pooling", "network": "resnet", "blocks": 9},
    }
    chart_columns = 3
    tables: ClassVar[Mapping[str, Table]] = {
        "arms": Table(
            (
                "step", "series", "loss", "accuracy", "lambda_max_x", "kappa50_x",
                "lambda_max_weight_grad", "weight_norm",
            ),
            _arm_rows,
        )
    }  # fmt: skip
    limits = staticmethod(_limits)
    tabulate = staticmethod(arm_table)
    panels = (
        _panel("loss", "loss"),
        _panel("λ_max(Σ_x), last layer", "lambda_max_x"),
        _panel("κ_50(Σ_x), last layer", "kappa50_x"),
        _panel("accuracy on the batch", "accuracy", log=False),
        _panel("λ_max of its weight's gradients", "lambda_max_weight_grad"),
        _panel("‖W‖, last layer", "weight_norm"),
    )
