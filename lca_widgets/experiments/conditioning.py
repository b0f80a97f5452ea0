"""BN and layer-wise conditioning: κ_50 of every layer while a deep network trains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import Spectrum, moment_spectra, one_thread
from lca_widgets.curvature.moments import relative_cut
from lca_widgets.data import Split, digits
from lca_widgets.experiments.small_networks import float64_digits, float64_mlp, in_one_thread
from lca_widgets.experiments.sweep import sweep
from lca_widgets.models import ACTIVATIONS, INITIALISERS, NORMS
from lca_widgets.monitor import analyze
from lca_widgets.proximal import LayerPass, layer_passes
from lca_widgets.records import LayerReport
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ConditioningMeasurement",
    "ConditioningSettings",
    "ConditioningSummary",
    "MatchedRecord",
    "UnitRanks",
    "conditioning",
    "effective_samples",
    "matched",
    "matched_table",
    "summarise",
    "unit_ranks",
]

CUT = relative_cut(torch.float64, wide=True)
DRAWS = 5  # random choices of units behind each value of a control


@dataclass(frozen=True)
class ConditioningSettings:
    """Settings of a float64 network on digits, and its full-batch training.

    Attributes:
        depth: Linear layers, the output layer included, 3 to 50.
        width: Units of a hidden layer, 2 to 256.
        init: A name among `lca_widgets.models.INITIALISERS`.
        norm: A name among `lca_widgets.models.NORMS`.
        activation: ``"relu"``, ``"tanh"`` or ``"linear"``.
        learning_rate: Step size η of gradient descent, 1e-6 to 1e6.
        steps: Updates, 0 to 100000.
        every: Steps from one measured step to the next; the last one is measured, too.
        samples: Training digits, all in every step, 8 to 1437.
        seed: Draws the weights.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    depth: int = 20
    width: int = 64
    init: str = "he"
    norm: str = "none"
    activation: str = "relu"
    learning_rate: float = 0.1
    steps: int = 100
    every: int = 5
    samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_integer("depth", self.depth, low=3, high=50)
        require_integer("width", self.width, low=2, high=256)
        require_one_of("init", self.init, INITIALISERS)
        require_one_of("norm", self.norm, NORMS)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_in_range("learning_rate", self.learning_rate, low=1e-6, high=1e6)
        require_integer("steps", self.steps, low=0, high=100_000)
        require_integer("every", self.every, low=1)
        require_integer("samples", self.samples, low=8, high=len(digits().train))
        require_integer("seed", self.seed, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class ConditioningMeasurement:
    """Every layer at one measured step of a training.

    Attributes:
        training: Step, loss and accuracy.
        passed: The records of all steps since the measured one before, this one included.
        layers: One entry a layer, from the input to the output.
        effective_samples: How many samples carry each layer's Σ_g; see `effective_samples`.
    """

    training: StepRecord
    passed: tuple[StepRecord, ...]
    layers: tuple[LayerReport, ...]
    effective_samples: tuple[float, ...]


@dataclass(frozen=True)
class ConditioningSummary:
    """One measurement in a few numbers: medians over the layers, means of the units' shares.

    Σ_x is that of the hidden activations, the inputs of layers 2 … K; Σ_g that of the hidden
    layers' outputs, 1 … K−1.

    Attributes:
        kappa50_x: Median κ_50(Σ_x).
        kappa50_x_centred: The same of the centred Σ_x.
        kappa50_g: Median κ_50(Σ_g).
        kappa50_g_centred: The same of the centred Σ_g.
        effective_samples: Median number of samples that carry Σ_g.
        dying: Share of the hidden units that are zero for every sample; NaN without rectifiers.
        full: Share of the hidden units that are positive for every sample; NaN likewise.
        growth_g: λ_max(Σ_g) of layer 1 over that of layer K−1.
    """

    kappa50_x: float
    kappa50_x_centred: float
    kappa50_g: float
    kappa50_g_centred: float
    effective_samples: float
    dying: float
    full: float
    growth_g: float


@in_one_thread
def conditioning(settings: ConditioningSettings) -> Iterator[ConditioningMeasurement]:
    """Train a network by full-batch gradient descent and measure every layer's conditioning.

    All in float64: the κ_50 of deep networks without normalisation come near to what float32
    resolves. Measuring takes passes of its own and changes nothing.

    Args:
        settings: The network, its training, and how often it is measured.

    Yields:
        A measurement at initialisation, one each ``settings.every`` steps, and one at the end; if
        the run diverges the last one says so.

    Source:
        Huang et al. (2020), their experiments on conditioning, dying and full neurons; on other
        data.

    Example:
        >>> settings = ConditioningSettings(depth=4, width=16, samples=64, steps=5, every=2)
        >>> [m.training.step for m in conditioning(settings)]
        [0, 2, 4, 5]
    """
    model, batch = _network(settings)
    passed: list[StepRecord] = []
    for record in _run(settings, model, batch):
        passed.append(record)
        is_last = record.step == settings.steps or record.diverged
        if record.step % settings.every == 0 or is_last:
            yield _measured(model, batch, record, tuple(passed))
            passed.clear()


def summarise(measurement: ConditioningMeasurement) -> ConditioningSummary:
    """Reduce a measurement to medians over its hidden layers.

    Example:
        >>> start = next(conditioning(ConditioningSettings(depth=5, samples=64, norm="batch")))
        >>> summarise(start).dying, summarise(start).full
        (0.0, 0.0)
    """
    behind, before = measurement.layers[1:], measurement.layers[:-1]
    last = before[-1].lambda_max_g
    return ConditioningSummary(
        kappa50_x=_median(layer.kappa50_x for layer in behind),
        kappa50_x_centred=_median(layer.kappa50_x_centred for layer in behind),
        kappa50_g=_median(layer.kappa50_g for layer in before),
        kappa50_g_centred=_median(layer.kappa50_g_centred for layer in before),
        effective_samples=_median(measurement.effective_samples[:-1]),
        dying=statistics.fmean(layer.dying for layer in before),
        full=statistics.fmean(layer.full for layer in before),
        growth_g=before[0].lambda_max_g / last if last else math.nan,
    )


def effective_samples(gradients: Tensor) -> float:
    """Return how many samples carry tr Σ_g, as a number between 1 and N.

    It is N where all gradients are equally long, 1 where a single one is all there is::

        (Σ_n ‖g_n‖²)² / Σ_n ‖g_n‖⁴

    Args:
        gradients: g_n, shape ``[N, d]``.

    Returns:
        The number; NaN where all gradients are zero, or one is not finite.

    Source:
        Kish (1965), the effective size of a weighted sample.

    Example:
        >>> effective_samples(torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 0.0]]))
        2.0
    """
    squares = gradients.double().square().sum(dim=1)
    squares = squares / squares.max()  # their own squares might be too small for a float
    return (squares.sum().square() / squares.square().sum()).item()


@dataclass(frozen=True)
class MatchedRecord:
    """One training at one moment: at a loss, or at a step.

    Attributes:
        norm: Its normalisation.
        seed: What drew its weights.
        by: ``"loss"``: the first step whose loss is at or below ``value``; ``"step"``: the step.
        value: That loss, or that step.
        step: The step; NaN, as all that follows, where the training did not come so far.
        loss: The loss at it.
        summary: Medians over the hidden layers.
    """

    norm: str
    seed: int
    by: str
    value: float
    step: float
    loss: float
    summary: ConditioningSummary


@dataclass(frozen=True)
class _MomentSettings:
    network: ConditioningSettings
    losses: tuple[float, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class _Moments:
    """The moments of one training, first those of the losses, then those of the steps."""

    steps: tuple[float, ...]
    losses: tuple[float, ...]
    numbers: tuple[float, ...]  # the fields of the first moment's summary, of the second's, …


def matched(
    settings: ConditioningSettings | None = None,
    *,
    norms: Sequence[str] = ("none", "batch", "layer"),
    losses: Sequence[float] = (1.0, 0.3, 0.1),
    steps: Sequence[int] = (0, 10, 50),
    seeds: Sequence[int] = (0, 1, 2),
) -> Iterator[MatchedRecord]:
    """Compare the conditioning of differently normalised networks at equal loss and at equal steps.

    At equal steps the networks are at different losses, and Σ_g changes with the loss whatever the
    network: only at equal loss is the difference the network's own.

    Args:
        settings: All else about the networks; its ``steps`` are the most that a training may take
            to reach a loss. ``None``: the defaults at depth 10.
        norms: Names among `lca_widgets.models.NORMS`.
        losses: Each is matched at the first step at or below it.
        steps: Steps to measure.
        seeds: One training for each, with each norm.

    Yields:
        For each norm and seed one record a loss, then one a step. The trainings are a
        `lca_widgets.experiments.sweep`: kept on disk.

    Source:
        Huang et al. (2020) at equal steps; the comparison at equal loss is derived.

    Example:
        >>> tiny = ConditioningSettings(depth=3, width=16, samples=64, steps=30)
        >>> [one, start] = matched(tiny, norms=["batch"], losses=[1.5], steps=[0], seeds=[0])
        >>> one.loss <= 1.5 < start.loss
        True
    """
    settings = settings or ConditioningSettings(depth=10)
    runs = [replace(settings, norm=norm, seed=seed) for norm in norms for seed in seeds]
    asked = [_MomentSettings(run, tuple(losses), tuple(steps)) for run in runs]
    values = [*(("loss", value) for value in losses), *(("step", value) for value in steps)]
    size = len(fields(ConditioningSummary))
    for run, found in zip(runs, sweep(_moments, asked, _Moments), strict=True):
        for k, (by, value) in enumerate(values):
            summary = ConditioningSummary(*found.numbers[k * size : (k + 1) * size])
            at = (found.steps[k], found.losses[k])
            yield MatchedRecord(run.norm, run.seed, by, float(value), *at, summary)


def matched_table(records: Iterable[MatchedRecord]) -> pd.DataFrame:
    """Return a tidy table: the records' fields, then those of their summaries.

    Example:
        >>> tiny = ConditioningSettings(depth=3, width=16, samples=64, steps=5)
        >>> table = matched_table(matched(tiny, norms=["batch"], losses=[], seeds=[0]))
        >>> table[["by", "value", "loss"]].shape
        (3, 3)
    """
    import pandas as pd

    rows = [asdict(record) for record in records]
    return pd.DataFrame([row | row.pop("summary") for row in rows])


@dataclass(frozen=True)
class UnitRanks:
    """Dying and full units of one hidden layer, and what follows for two ranks.

    A unit is *partial* if it is neither. "Behind" the layer k is the input of layer k+1.

    Attributes:
        layer: k, from 1 to K−1.
        width: Units d.
        dying: Units that are zero for every sample, m.
        full: Units that are positive for every sample, f.
        rank_x: Rank of Σ_x behind the layer.
        bound_x: (d − m − f) + min(f, rank of Σ_x before the layer), which it cannot exceed.
        rank_g: Rank of Σ_g of the layer's outputs.
        bound_g: (d − m − f) + min(f, rank of Σ_g of layer k+1), which it cannot exceed.
        kappa50_x: κ_50 of Σ_x behind the layer.
        kappa50_x_living: The same of the units that are not dying.
        kappa50_x_partial: The same of the partial units; NaN if there are none.
        kappa50_x_drawn: The same of as many living units, drawn at random: the median of five
            draws. What a smaller matrix has by itself.
        kappa50_g: κ_50 of Σ_g.
        kappa50_g_living: The same of the units that are not dying.
    """

    layer: int
    width: int
    dying: int
    full: int
    rank_x: int
    bound_x: int
    rank_g: int
    bound_g: int
    kappa50_x: float
    kappa50_x_living: float
    kappa50_x_partial: float
    kappa50_x_drawn: float
    kappa50_g: float
    kappa50_g_living: float


@one_thread()
def unit_ranks(settings: ConditioningSettings) -> tuple[UnitRanks, ...]:
    r"""Measure how far dying and full units explain the small eigenvalues of a plain ReLU network.

    A dying unit is a row of zeros in Σ_x behind the layer, and in the layer's Σ_g: no gradient
    passes it. A full unit is linear: over the samples, the f full units are f combinations of the
    layer's inputs, and their gradients f combinations of the next layer's output gradients. So::

        rank Σ_x(k+1) ≤ (d − m − f) + min(f, rank Σ_x(k))
        rank Σ_g(k)   ≤ (d − m − f) + min(f, rank Σ_g(k+1))

    Args:
        settings: A network with ReLU and without normalisation, measured after ``settings.steps``
            updates.

    Returns:
        One entry a hidden layer, from the input to the output.

    Raises:
        ValueError: another activation, or a normalisation: behind it a full unit is not linear; or
            the run diverges before its last step.

    Source:
        Huang et al. (2020) for dying and full neurons; the bounds are derived.

    Example:
        >>> deep = unit_ranks(ConditioningSettings(samples=256, steps=0))
        >>> all(unit.rank_x <= unit.bound_x for unit in deep), sum(unit.dying for unit in deep) > 9
        (True, True)
    """
    require_one_of("norm", settings.norm, ["none"])
    require_one_of("activation", settings.activation, ["relu"])
    model, batch = _network(settings)
    for record in _run(settings, model, batch):
        if record.diverged:
            raise ValueError(
                f"learning_rate must be small enough for {settings.steps} steps, got "
                f"{settings.learning_rate!r}: the run diverged, its loss is not finite at step "
                f"{record.step}. Lower the learning rate, or take fewer steps"
            )
    passes = list(layer_passes(model, functional.cross_entropy, (batch.x, batch.y)).values())
    ranks_x = [_spectrum(layer.inputs).rank for layer in passes]
    ranks_g = [_spectrum(layer.gradients).rank for layer in passes]
    generator = torch.Generator().manual_seed(settings.seed)
    return tuple(
        _unit_ranks(k + 1, passes[k], ranks_x[k : k + 2], ranks_g[k : k + 2], generator)
        for k in range(len(passes) - 1)
    )


def _unit_ranks(
    position: int,
    layer: LayerPass,
    ranks_x: Sequence[int],
    ranks_g: Sequence[int],
    generator: torch.Generator,
) -> UnitRanks:
    """Of one layer, from the ranks of Σ_x before and behind it, of its Σ_g and the next one's."""
    behind, gradients = layer.outputs.relu(), layer.gradients
    passes = behind > 0
    living, full = passes.any(dim=0), passes.all(dim=0)
    partial = int((living & ~full).sum())
    f = int(full.sum())
    drawn = [
        living.nonzero()[torch.randperm(int(living.sum()), generator=generator)[:partial], 0]
        for _ in range(DRAWS)
    ]
    return UnitRanks(
        layer=position,
        width=len(living),
        dying=int((~living).sum()),
        full=f,
        rank_x=ranks_x[1],
        bound_x=partial + min(f, ranks_x[0]),
        rank_g=ranks_g[0],
        bound_g=partial + min(f, ranks_g[1]),
        kappa50_x=_kappa50(behind),
        kappa50_x_living=_kappa50(behind[:, living]),
        kappa50_x_partial=_kappa50(behind[:, living & ~full]),
        kappa50_x_drawn=_median(_kappa50(behind[:, units]) for units in drawn),
        kappa50_g=_kappa50(gradients),
        kappa50_g_living=_kappa50(gradients[:, living]),
    )


def _network(settings: ConditioningSettings) -> tuple[nn.Sequential, Split]:
    model = float64_mlp(
        settings.init,
        settings.seed,
        depth=settings.depth,
        width=settings.width,
        activation=settings.activation,
        norm=settings.norm,
    )
    return model, float64_digits(settings.samples)


def _run(settings: ConditioningSettings, model: nn.Sequential, batch: Split) -> TrainingRun:
    return TrainingRun(model, batch, TrainingSettings(settings.steps, settings.learning_rate))


def _measured(
    model: nn.Sequential, batch: Split, record: StepRecord, passed: tuple[StepRecord, ...]
) -> ConditioningMeasurement:
    samples = (batch.x, batch.y)
    analysis = analyze(model, functional.cross_entropy, samples, reduction="mean")
    passes = layer_passes(model, functional.cross_entropy, samples).values()
    return ConditioningMeasurement(
        record,
        passed,
        layers=tuple(layer.report for layer in analysis.layers),
        effective_samples=tuple(effective_samples(layer.gradients) for layer in passes),
    )


@one_thread()
def _moments(settings: _MomentSettings) -> _Moments:
    """Train until every loss and every step is passed, and measure at these alone."""
    model, batch = _network(settings.network)
    # The step and the summary of each moment.
    losses: dict[float, tuple[StepRecord, ConditioningSummary]] = {}
    steps: dict[int, tuple[StepRecord, ConditioningSummary]] = {}
    for record in _run(settings.network, model, batch):
        reached = [v for v in settings.losses if v not in losses and record.loss <= v]
        due = [step for step in settings.steps if step == record.step]
        if reached or due:
            found = record, summarise(_measured(model, batch, record, ()))
            losses |= dict.fromkeys(reached, found)
            steps |= dict.fromkeys(due, found)
        if len(losses) == len(settings.losses) and record.step >= max(settings.steps, default=0):
            break
    found_all = [*map(losses.get, settings.losses), *map(steps.get, settings.steps)]
    unknown = [math.nan] * len(fields(ConditioningSummary))
    numbers = [list(asdict(found[1]).values()) if found else unknown for found in found_all]
    return _Moments(
        steps=tuple(float(found[0].step) if found else math.nan for found in found_all),
        losses=tuple(found[0].loss if found else math.nan for found in found_all),
        numbers=tuple(number for one in numbers for number in one),
    )


def _spectrum(rows: Tensor) -> Spectrum:
    [spectrum] = moment_spectra([rows.T @ rows / len(rows)], [len(rows)], [CUT])
    return spectrum


def _kappa50(rows: Tensor) -> float:
    return _spectrum(rows).kappa(0.5) if rows.shape[1] else math.nan


def _median(values: Iterable[float]) -> float:
    """The median; of a NaN among them it is NaN, and not whatever the order makes of it."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else statistics.median(found)
