"""The lab of the false local minimum: a run on its plateau, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lca_widgets._format import number, percent
from lca_widgets.experiments.false_minimum import (
    BRANCHES,
    FalseMinimumMeasurement,
    FalseMinimumSettings,
    false_minimum,
)
from lca_widgets.labs.controls import changed_settings, norm_names, normalisation
from lca_widgets.rules import DOMINATED, MANY_DYING, SENSITIVE
from lca_widgets.widgets.control_panel import Slider, Switch
from lca_widgets.widgets.lab import Lab, Table
from lca_widgets.widgets.live_chart import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FalseMinimum", "describe_plateau", "kind_of_plateau"]

DEAD = 1e-6  # of the product: far below what a minimum that training has reached has
LOW_LOSS = 0.1  # a cross-entropy at which a network of ten classes has learned its samples

PLATEAU = "plateau"
_SERIES = (PLATEAU, *BRANCHES)
_NAMES = ("plateau", "go on", "lower η", "rescale hidden", "rescale all", "restart")
_WORDS = {
    "wait": "going on as before",
    "lower": "at a lower rate, from the same weights",
    "rescale": "with hidden weights rescaled to their initial norms",
    "rescale-all": "with all weights rescaled to their initial norms",
    "restart": "from the initial weights",
}
_QUANTITIES = ("domination", "sensitivity", "weight_sigma", "grad_sigma")

_FALSE = {"norm": "batch-fixed", "learning_rate": 1e6, "gain": 1.0, "train_last": False}
_NEW = {"plateau_steps": 100, "branches": "", "new_rate": 1.0, "branch_steps": 100}


def kind_of_plateau(measurement: FalseMinimumMeasurement) -> str:
    """Name what a state is by its numbers alone.

    Returns:
        ``"diverged"``; ``"dead"``: the product is nothing; ``"false minimum"``: the ratio is tiny,
        and the product is not; ``"minimum"``: the loss is low; ``"lost"``: it is not, and both
        are small; else ``"training"``.
    """
    m = measurement
    ratio, product = m.hidden("domination"), m.hidden("sensitivity")
    if m.training.diverged:
        return "diverged"
    if product < DEAD:
        return "dead"
    if ratio < DOMINATED and product > SENSITIVE:
        return "false minimum"
    if m.training.loss < LOW_LOSS:
        return "minimum"
    return "lost" if ratio < DOMINATED else "training"


def describe_plateau(measurement: FalseMinimumMeasurement) -> str:
    """Say where the run or branch is, and what its numbers make it."""
    m = measurement
    kind = kind_of_plateau(m)
    where = f"At step {m.step}"
    if m.branch != PLATEAU:
        where += f", {_WORDS[m.branch]},"
    if kind == "diverged":
        goes_on = m.branch in (PLATEAU, "wait")
        advice = "Only a restart goes on." if goes_on else "Lower the rate after the fork."
        return f"{where} the loss is not finite: the run diverged. {advice}"
    numbers = (
        f"{where} the loss is {number(m.training.loss)}; in the hidden layers "
        f"σ_max(∂L/∂W) : σ_max(W) is {number(m.hidden('domination'))} and the product "
        f"{number(m.hidden('sensitivity'))} (geometric means)."
    )
    dying = f"{percent(m.most_dying)} of the units of a layer are zero for every sample"
    verdict = {
        "false minimum": "No minimum: the weights are too large for the gradient to move.",
        "dead": f"Dead: for {percent(m.most_silent)} of the samples a layer has no open unit, and "
        "no gradient comes back.",
        "minimum": "It has learned its samples: the loss is low, and the product small with it.",
        "lost": "Not the weights' size alone is in the way: the product is small as well, and the "
        "loss is not.",
        "training": "It trains.",
    }[kind]
    if kind in ("false minimum", "lost") and m.most_dying > MANY_DYING:
        verdict += f" Besides, {dying}."
    return f"{numbers} {verdict}"


def _fork(branch: str) -> Callable[[FalseMinimumSettings, FalseMinimumMeasurement], dict[str, Any]]:
    """What a button does: one branch more, from where the run stands now if it is on its way."""

    def change(settings: FalseMinimumSettings, latest: FalseMinimumMeasurement) -> dict[str, Any]:
        before = [name for name in settings.branch_names if name != branch]
        changed: dict[str, Any] = {"branches": ",".join([*before, branch])}
        # With a branch there already, the plateau on screen is only drawn again.
        if latest.branch == PLATEAU and not before and not latest.training.diverged:
            changed["plateau_steps"] = latest.step
        return changed

    return change


def _series_rows(*columns: str) -> Callable[[FalseMinimumMeasurement], Iterator[Sequence[float]]]:
    def rows(m: FalseMinimumMeasurement) -> Iterator[Sequence[float]]:
        values = {name: m.hidden(name) for name in _QUANTITIES if name in columns}
        values |= {"loss": m.training.loss, "silent": m.most_silent}
        yield m.step, _SERIES.index(m.branch), *(values[name] for name in columns)

    return rows


def plateau_table(measurements: Iterable[FalseMinimumMeasurement]) -> pd.DataFrame:
    """Return a tidy table, one row a branch and step."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "branch": m.branch,
                "step": m.step,
                "loss": m.training.loss,
                "accuracy": m.training.accuracy,
            }
            | {name: m.hidden(name) for name in _QUANTITIES}
            | {"dying": m.most_dying, "silent": m.most_silent}
            for m in measurements
        ]
    )


def _results(m: FalseMinimumMeasurement) -> dict[str, str]:
    return {
        "ended as": kind_of_plateau(m),
        "ratio": number(m.hidden("domination")),
        "product": number(m.hidden("sensitivity")),
    }


def _name_run(settings: FalseMinimumSettings) -> str:
    parts = [*norm_names(settings.norm), f"η {number(settings.learning_rate)}"]
    if settings.norm == "none":
        parts.insert(0, "plain")
    parts += [_NAMES[_SERIES.index(name)] for name in settings.branch_names]
    parts += changed_settings(
        settings, "gain", "train_last", "depth", "width", "samples", "seed", "new_rate"
    )
    return ", ".join(parts)


def _status(settings: FalseMinimumSettings, m: FalseMinimumMeasurement) -> str:
    return f"{_NAMES[_SERIES.index(m.branch)]}, step {m.step} · loss {m.training.loss:.4g}"


def _limits(
    settings: FalseMinimumSettings, first: FalseMinimumMeasurement
) -> dict[str, tuple[float, float]]:
    branch = settings.branch_steps if settings.branch_names else 0
    return {"step": (0, settings.plateau_steps + branch), "silent": (0, 1)}


def _panel(title: str, column: str, **options: Any) -> Panel:
    return Panel("line", title, "steps", "step", column, by="series", names=_NAMES, **options)


class FalseMinimum(Lab):
    """Bring a run onto its plateau, then try what gets it off.

    The buttons fork the run: each branch is drawn from where the run stood. Settings:
    `FalseMinimumSettings`.

    Example:
        >>> *_, end = FalseMinimum.run(
        ...     depth=4, samples=64, plateau_steps=10, branch_steps=0, branches="rescale"
        ... )
        >>> end.branch, end.step
        ('rescale', 10)
    """

    title = "A minimum, or not?"
    settings_type = FalseMinimumSettings
    experiment = staticmethod(false_minimum)
    name_run = staticmethod(_name_run)
    describe = staticmethod(describe_plateau)
    results = staticmethod(_results)
    status = staticmethod(_status)
    actions_label = "From here"
    actions: ClassVar[Mapping[str, Callable[[Any, Any], Mapping[str, Any]]]] = {
        "Go on": _fork("wait"),
        "Lower the rate": _fork("lower"),
        "Rescale hidden weights": _fork("rescale"),
        "Rescale all weights": _fork("rescale-all"),
        "Restart": _fork("restart"),
    }
    header = (Slider("seed", "seed", 0, 20, help="Draws the initial weights."),)
    controls = (
        normalisation("batch-fixed", "batch", "none", "layer-fixed", "group-fixed", "weight"),
        Slider(
            "learning_rate", "rate η to the plateau", 0.01, 1e6, log=True, step=0.25,
            format="{:.1e}",
        ),
        Slider(
            "gain", "gain", 0.01, 1000.0, log=True, step=0.25,
            help="Multiplies the hidden layers' initial weights.",
        ),
        Switch("train_last", "train the last layer", help="No normalisation follows it."),
        Slider("plateau_steps", "steps to the fork", 0, 500, step=10),
        Slider(
            "new_rate", "rate after the fork", 0.01, 1000.0, log=True, step=0.25, format="{:.1e}"
        ),
        Slider("branch_steps", "steps after it", 0, 500, step=10),
        Slider("depth", "depth", 2, 20, help="Linear layers, the output layer included."),
        Slider("samples", "samples", 64, 1437, help="Training digits, all in every step."),
    )  # fmt: skip
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "the false minimum": _FALSE | _NEW,
        "the same, with γ and β": _FALSE | _NEW | {"norm": "batch"},
        "as in the paper: last layer too": _FALSE
        | _NEW
        | {"learning_rate": 1000.0, "train_last": True},
        "large from the start": _FALSE
        | _NEW
        | {"learning_rate": 0.3, "gain": 1000.0, "new_rate": 0.3},
        "without BN": _FALSE | _NEW | {"norm": "none", "learning_rate": 10.0, "train_last": True},
        "LayerNorm": _FALSE | _NEW | {"norm": "layer-fixed"},
        "a real minimum": _FALSE | _NEW | {"learning_rate": 1.0, "plateau_steps": 200},
    }
    tables: ClassVar[Mapping[str, Table]] = {
        "steps": Table(
            ("step", "series", "loss", *_QUANTITIES, "silent"),
            _series_rows("loss", *_QUANTITIES, "silent"),
        ),
    }
    limits = staticmethod(_limits)
    tabulate = staticmethod(plateau_table)
    panels = (
        _panel("loss", "loss", log=True),
        _panel("product σ(W)·σ(∂L/∂W)", "sensitivity", log=True),
        _panel("ratio σ(∂L/∂W) : σ(W)", "domination", log=True),
        _panel("silent samples of a layer", "silent"),
        _panel("σ_max(W)", "weight_sigma", log=True),
        _panel("σ_max(∂L/∂W)", "grad_sigma", log=True),
    )
