"""The rules behind findings: each sees one fault in the numbers of a model's layers.

A comparison with NaN is false, and every rule asks whether something *is* beyond its threshold: a
number that is missing (the gradient of a frozen weight, say) is never a fault.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lca_widgets._format import number, percent
from lca_widgets.records import LayerReport, Report

__all__ = ["SEVERITIES", "Finding", "Severity", "factor_per_layer", "findings"]

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")  # in ascending order

# Over 20 layers a factor of 1.2 adds up to 40, which a reader sees as a slope on a log axis.
FLAT_FACTOR = 1.2
# Batch normalisation makes λ_max(Σ_g) grow by 1.2 to 1.7 a layer at the start, which harms no
# training; Xavier's scale under ReLU divides by 2, PyTorch's default by 6.
STEEP_FACTOR = 1.8
# λ_max is a square: signals or gradients thirty times larger at one end than at the other.
STEEP_TOTAL = 1e3
# The square of float32's precision: added to the large end, the small end would be rounded away.
LOST_TOTAL = 1e14
# Fewer values have no beginning, middle and end, and layers of different kinds differ by as much.
PROFILE_VALUES = 5
# Growth over the depth adds up; one step that makes half of it is one layer's own (a layer scale
# of 1e-6, a pooling over many positions).
ONE_STEP_SHARE = 0.5

# At a rate of 0.1, ten thousand updates would change the weight by a hundredth of its size.
# Networks that learn have 1e-3 to 1, converged ones 1e-4.
DOMINATED = 1e-5
# Sound starts and plateaus have 0.1 to 10 (cross entropy, in nats), converged networks 1e-3.
SENSITIVE = 0.1

# float32 carries seven digits of the loss's gradient: what is left of it beyond them is rounding.
DEAD_SIGNAL = 1e-6
# Deep plain networks have up to a third of a layer's units dying, and train.
MANY_DYING = 0.5
# A unit that is active for one sample in eight is silent for 32 in a row once in 70 cases.
UNIT_SAMPLES = 32

# The Hessian of softmax cross entropy in the logits has λ_max ≤ 1/2, so the last layer's block has
# at most λ_max(Σ_x)/2 and is stable up to a rate of 4/λ_max(Σ_x): at 40, up to the usual 0.1.
LARGE_INPUT = 40.0
SAFE_RATE_NUMERATOR = 4.0
# Descent at a rate above 2/λ_max climbs out of the valley, and above 4/λ_max is seldom caught by a
# flatter one: at 40, the usual 0.1 is there.
LARGE_BLOCK = 40.0
# Of softmax cross entropy, ‖p − y‖² ≤ 2; where Σ_g is larger the loss is another one, of which
# Σ_g says nothing about the curvature.
LARGEST_SOFTMAX_GRADIENT = 2.0
# At uniform predictions over C classes λ_max(Σ_g) is 1/C or more. Where it has fallen below, the
# network learns at the rate that it was given, and may be as steep as that rate allows.
UNTRAINED_SHARE = 0.9
# Residual networks have hundreds at their last layer, with a final normalisation 8 to 30.
LARGE_KAPPA = 100.0
# Alone, without a large λ_max, it slows training down but lets it go on: the flatter half of the
# directions takes a thousand times as many steps as the steepest one.
EXTREME_KAPPA = 1000.0

# Independent rows, twice as many as inputs, have a λ_max/λ_min near 30: far from any cut.
RANK_ROWS = 2
# From 8 rows an input on, κ_80 is within a fifth; with one row an input it is 8 times too large.
RELIABLE_ROWS = 8
KAPPA_SHARE = 0.5  # κ_50 reads the eigenvalue at this share of the spectrum

LISTED = 3  # layers that one sentence names


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model, or worth knowing about it.

    Attributes:
        layer: Name of the layer that it is about; ``None`` where it is about several, which the
            evidence names, or about the whole model.
        kind: What it is: ``"diverged"``, ``"dead network"``, ``"magnitude"``,
            ``"weight domination"``, ``"ill-conditioned last layer"``, ``"rank-deficient input"``,
            ``"dying units"``, ``"full units"`` or ``"too few samples"``.
        severity: ``"critical"``: it does not train like this; ``"warning"``: it is likely to train
            badly; ``"info"``: good to know.
        evidence: The numbers that show it.
        suggestion: What to try.

    Example:
        >>> str(Finding("fc", "dying units", "info", "3 % of 64 units are zero.", "Watch them."))
        'info: dying units in fc: 3 % of 64 units are zero. Watch them.'
    """

    layer: str | None
    kind: str
    severity: Severity
    evidence: str
    suggestion: str

    def __str__(self) -> str:
        """Return everything in one line."""
        where = "" if self.layer is None else f" in {self.layer}"
        return f"{self.severity}: {self.kind}{where}: {self.evidence} {self.suggestion}"


def findings(reports: Sequence[Report]) -> list[Finding]:
    """Return what is wrong with a model, the worst first, with evidence and a suggestion.

    The rules look at the last report; earlier ones tell since when. Layers whose numbers are not
    finite are named once, and take part in no other rule.

    Args:
        reports: Reports of one model, in the order of their steps; one is enough.

    Returns:
        Findings in order of severity, those of one severity in the order of the layers; empty for
        no reports.

    Source:
        Huang et al. (2020) for weight domination, dying and full units and the last layer; the
        thresholds are derived, or measured on networks that train well.

    Example:
        >>> findings([])
        []
    """
    if not reports or not reports[-1].layers:
        return []
    report = reports[-1]
    profiles = list(_steep_profiles(report))
    steep_inputs = [p for p in profiles if p.quantity == "Σ_x" and p.severity != "info"]
    # Signals that fade by themselves until nothing is left are no one layer's fault.
    lost = any(p.severity == "critical" and p.factor < 1 for p in steep_inputs)
    dead = [] if lost else list(_dead(reports))
    found = [*_diverged(reports), *dead]
    if not dead:  # else these only mirror what ends in the dead layer
        found += [*_magnitude(profiles), *_weight_domination(reports)]
        if not steep_inputs:  # which explain what the last layer is given
            found += _last_layer(report)
    found += [*_rank_deficient(report), *_units(report), *_too_few_samples(report)]
    position = {layer.name: layer.layer for layer in report.layers}
    return sorted(
        found, key=lambda f: (-SEVERITIES.index(f.severity), position.get(f.layer or "", 0))
    )


def _diverged(reports: Sequence[Report]) -> Iterator[Finding]:
    """Numbers that are not finite: now, or in an earlier report."""

    def is_lost(report: Report) -> bool:
        return any(layer.diverged for layer in report.layers)

    now = _trailing(reports, is_lost)
    lost_reports = now or [report for report in reports if is_lost(report)]
    if not lost_reports:
        return
    first = lost_reports[0]
    layer, what = _first_not_finite(first)
    lost = sum(layer.diverged for layer in first.layers)
    evidence = (
        f"At step {first.step}, {what}; Σ_x or Σ_g is not finite in "
        f"{lost} of {len(first.layers)} layers."
    )
    if not now:
        yield Finding(
            layer.name, "diverged", "info", f"{evidence} They are finite again since.",
            "With mixed precision, a gradient scaler's first steps do this and are left out; "
            "otherwise lower the learning rate, or clip the gradients.",
        )  # fmt: skip
        return
    before = "" if first is reports[0] else " (look at the step before it)"
    yield Finding(
        layer.name, "diverged", "critical", evidence,
        f"Go back to weights that are finite{before}, and lower the learning rate, the scale of "
        "the initial weights, or both; if it is so from the start, look for NaN in the data.",
    )  # fmt: skip


def _first_not_finite(report: Report) -> tuple[LayerReport, str]:
    """Where it began: a weight, else the first input, else the last gradient on its way back."""
    for layer in report.layers:
        if layer.diverged and not math.isfinite(layer.weight_sigma):
            return layer, f"the weight of {layer.name} is not finite"
    for layer in report.layers:
        if layer.diverged and not math.isfinite(layer.lambda_max_x):
            return layer, f"the input of {layer.name} is the first that is not finite"
    layer = [layer for layer in report.layers if layer.diverged][-1]
    return layer, f"the gradient that comes back to {layer.name} is not finite"


def _dead(reports: Sequence[Report]) -> Iterator[Finding]:
    """A layer that passes nothing on, so that no gradient arrives before it."""
    culprit = _dead_layer(reports[-1])
    if culprit is None:
        return
    layers, layer = reports[-1].layers, reports[-1].layers[culprit]
    signal = max(_signal(before) for before in layers[: culprit + 1])
    what = (
        "all that comes after it is zero or nearly constant"
        if _is_blocked(layers[culprit + 1])
        else f"{percent(layer.dying)} of its units are zero for every sample"
    )
    steps = [report.step for report in _trailing(reports, lambda r: _dead_layer(r) is not None)]
    since = f", since step {steps[0]} or earlier" if len(reports) > 1 else ""
    yield Finding(
        layer.name, "dead network", "critical",
        f"{layer.name} passes (almost) nothing on: {what}{since}. No gradient comes back through "
        f"it: σ_max(W)·√λ_max(Σ_g) is at most {number(signal)} up to there, though the loss still "
        f"asks for a change (√λ_max(Σ_g) = {number(math.sqrt(layers[-1].lambda_max_g))} at "
        f"{layers[-1].name}).",
        "Neither patience nor rescaling the weights revives it. Start again with a lower learning "
        "rate or a warm-up, or with an activation that is never flat (LeakyReLU, GELU).",
    )  # fmt: skip


def _dead_layer(report: Report) -> int | None:
    """Index of the layer that passes nothing on, if there is one and the network is dead."""
    layers = report.layers
    # A weight of zeros (a zero-initialised last layer) holds gradients up for one step only.
    if len(layers) < 2 or any(layer.diverged or layer.weight_sigma == 0 for layer in layers):
        return None
    asked = math.sqrt(max(layers[-1].lambda_max_g, 0))
    culprit = None
    for k, layer in enumerate(layers[:-1]):
        # On a path beside others (a residual branch) it stops nothing: gradients arrive before it.
        if not (_signal(layer) <= DEAD_SIGNAL * asked and _is_positive(asked)):
            break
        if _is_blocked(layers[k + 1]):
            return k
        silent = layer.dying >= MANY_DYING and _has_samples(layer)
        if silent and (culprit is None or layer.dying > layers[culprit].dying):
            culprit = k
    return culprit


def _signal(layer: LayerReport) -> float:
    """σ_max(W)·√λ_max(Σ_g): what reaches a weight, whatever that weight's own scale."""
    return layer.weight_sigma * math.sqrt(max(layer.lambda_max_g, 0))


def _is_blocked(layer: LayerReport) -> bool:
    """Whether the layer's input is nearly the same for all samples."""
    constant = layer.zero_inputs + layer.constant_inputs >= layer.d_in
    return constant and _has_samples(layer)


def _has_samples(layer: LayerReport) -> bool:
    """Whether "for every sample" says something about the layer and not about a small batch."""
    return (layer.rows if layer.n is None else layer.n) >= UNIT_SAMPLES


@dataclass(frozen=True)
class _Profile:
    """A λ_max over the layers, in the direction in which it builds up."""

    quantity: Literal["Σ_x", "Σ_g"]
    layers: Sequence[LayerReport]
    values: Sequence[float]
    severity: Severity
    factor: float


def _steep_profiles(report: Report) -> Iterator[_Profile]:
    """The directions in which λ_max vanishes or explodes over the depth.

    The first layer's input is the data and the last layer's output gradient is the loss's own.
    """
    forward, backward = report.layers[1:], report.layers[-2::-1]
    inputs = [layer.lambda_max_x for layer in forward]
    if severity := _steepness(inputs):
        yield _Profile("Σ_x", forward, inputs, severity, factor_per_layer(inputs))
    gradients = [layer.lambda_max_g for layer in backward]
    # Early layers have more positions, which Σ_g sums over, in one convention with more weight.
    positions = [layer.grad_rows / layer.n if layer.n else 1.0 for layer in backward]
    each = [g / t if t > 0 else math.nan for g, t in zip(gradients, positions, strict=True)]
    severities = [severity for p in (gradients, each) if (severity := _steepness(p))]
    if len(severities) == 2:
        mildest = min(severities, key=SEVERITIES.index)
        yield _Profile("Σ_g", backward, gradients, mildest, factor_per_layer(gradients))


def _magnitude(profiles: Sequence[_Profile]) -> Iterator[Finding]:
    """λ_max that vanishes or explodes over the depth, once for each direction."""
    for profile in profiles:
        followed = [
            (layer.name, value)
            for layer, value in zip(profile.layers, profile.values, strict=True)
            if _is_positive(value)
        ]
        (first, start), (last, end) = followed[0], followed[-1]
        towards = "output" if profile.quantity == "Σ_x" else "input"
        yield Finding(
            None, "magnitude", profile.severity,
            f"λ_max({profile.quantity}) {'grows' if profile.factor > 1 else 'shrinks'} towards the "
            f"{towards}, by a factor of about {number(profile.factor)} a layer: {number(start)} "
            f"at {first}, {number(end)} at {last}.",
            _magnitude_advice(profile),
        )  # fmt: skip


def _steepness(values: Sequence[float]) -> Severity | None:
    """How bad a profile's growth or decay is, in the slope and in the total over the depth."""
    logs = [math.log(value) for value in values if _is_positive(value)]
    factor = factor_per_layer(values)
    if len(logs) < PROFILE_VALUES:
        return None
    slope, third = math.log(factor) if factor > 0 else -math.inf, len(logs) // 3
    total = statistics.median(logs[-third:]) - statistics.median(logs[:third])
    total *= math.copysign(1, slope)
    largest = max(abs(b - a) for a, b in pairwise(logs))
    if total < math.log(STEEP_TOTAL) or largest > ONE_STEP_SHARE * abs(slope) * (len(logs) - 1):
        return None
    if abs(slope) >= math.log(STEEP_FACTOR):
        return "critical" if total >= math.log(LOST_TOTAL) else "warning"
    return "info" if abs(slope) >= math.log(FLAT_FACTOR) else None


def _magnitude_advice(profile: _Profile) -> str:
    grows = profile.factor > 1
    if profile.severity == "info":
        return (
            "Batch normalisation does this at the start of training; it fades as the weights of "
            "the first layers grow. A warm-up of the learning rate bridges it."
            if grows and profile.quantity == "Σ_g"
            else "Still mild at each layer: compare after some training before changing anything."
        )
    cause = {
        ("Σ_x", False): "Signals fade before they reach the output.",
        ("Σ_x", True): "Signals grow until they leave the range of the numbers.",
        ("Σ_g", False): "The first layers get almost no gradient and hardly learn.",
        ("Σ_g", True): "The first layers get far larger gradients than the last: no learning rate "
        "suits both.",
    }[profile.quantity, grows]
    return (
        f"{cause} Draw the initial weights on a {'smaller' if grows else 'larger'} scale (He's, "
        "variance 2/fan_in, keeps magnitudes under ReLU), or add normalisation layers or shortcuts."
    )


def factor_per_layer(values: Sequence[float]) -> float:
    """Return the factor by which a positive quantity changes from one layer to the next.

    The slope b of the least-squares line ln v_k = a + b·k, as e^b: 1/6 means that every layer
    divides by six.

    Args:
        values: One value a layer, v_1 … v_K. Entries that are zero, negative or not finite (a
            vanished or diverged layer) take no part.

    Returns:
        A factor ≥ 0, 0 or infinite beyond the range of a float; NaN where fewer than two entries
        are left.

    Source:
        derived.

    Example:
        >>> round(factor_per_layer([8.0, 4.0, 2.0, 1.0]), 3)
        0.5
    """
    points = [(k, math.log(v)) for k, v in enumerate(values) if _is_positive(v)]
    if len(points) < 2:
        return math.nan
    mean_k = sum(k for k, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    covariance = sum((k - mean_k) * (y - mean_y) for k, y in points)
    try:
        return math.exp(covariance / sum((k - mean_k) ** 2 for k, _ in points))
    except OverflowError:
        return math.inf


def _weight_domination(reports: Sequence[Report]) -> Iterator[Finding]:
    """Weights that stand still, though turning them would change the loss."""
    stuck = _dominated(reports[-1])
    if not stuck:
        return
    worst = min(stuck, key=lambda layer: layer.domination)
    beginning = [layer for layer in reports[0].layers if layer.name == worst.name]
    at_first = (
        f" ({number(beginning[0].domination)} at step {reports[0].step})"
        if len(reports) > 1 and beginning
        else ""
    )
    steps = [report.step for report in _trailing(reports, _dominated)]
    since = f" since step {steps[0]} or earlier" if len(reports) > 1 else ""
    sensitivities = [layer.sensitivity for layer in stuck]
    yield Finding(
        _only(stuck), "weight domination", "warning",
        f"σ_max(∂L/∂W)/σ_max(W) is down to {number(worst.domination)}{at_first}: "
        f"{_names(stuck)} all but stand still{since}. It is no minimum: σ_max(W)·σ_max(∂L/∂W) is "
        f"{_range(sensitivities)}, and would be near 0. σ_max(W) is {number(worst.weight_sigma)} "
        f"in {worst.name}.",
        "Where a normalisation follows, scale the weights back to σ_max(W) near 1 with "
        "lca.surgery.rescale_(layer, a), here a = "
        f"{number(1 / worst.weight_sigma)}: the function stays, the gradient comes back. Do so "
        "with all these layers, and go on at a lower learning rate; it is the one to start with.",
    )  # fmt: skip


def _dominated(report: Report) -> list[LayerReport]:
    return [
        layer
        for layer in report.layers
        if not layer.diverged
        and 0 <= layer.domination <= DOMINATED
        and SENSITIVE <= layer.sensitivity < math.inf
        and layer.weight_sigma > 0
        and not layer.dying >= MANY_DYING  # it stands still for that, and rescaling is no help
    ]


def _last_layer(report: Report) -> Iterator[Finding]:
    """A last layer whose input makes its block steep, ill-conditioned or both."""
    last = report.layers[-1]
    if last.diverged or len(report.layers) < 2 or not _is_positive(last.lambda_max_x):
        return
    steep = last.lambda_max_x >= LARGE_INPUT
    trusted = _rows_enough(last)
    limit = LARGE_KAPPA if steep else EXTREME_KAPPA
    flat = trusted and last.kappa50_x >= limit
    if not (steep or flat):
        return
    over = last.lambda_max >= LARGE_BLOCK and _is_untrained_softmax(last)
    numbers = (
        f"λ_max(Σ_x) = {number(last.lambda_max_x)} (centred "
        f"{number(last.lambda_max_x_centred)}), κ_50(Σ_x) = {number(last.kappa50_x)}"
        f"{'' if trusted else ' (from too few samples)'}."
    )
    sentences = [numbers, *_last_layer_meaning(last, steep, flat, over)]
    yield Finding(
        last.name, "ill-conditioned last layer", "warning" if steep and over else "info",
        " ".join(sentences), _last_layer_advice(steep, flat),
    )  # fmt: skip


def _is_untrained_softmax(last: LayerReport) -> bool:
    """Whether Σ_g is that of softmax cross entropy (two classes may share a logit) at the start."""
    uniform = 1 / last.d_out if last.d_out > 1 else 1 / 4
    positions = last.rows / last.n if last.n else 1.0
    return UNTRAINED_SHARE * uniform <= last.lambda_max_g * positions <= LARGEST_SOFTMAX_GRADIENT


def _last_layer_meaning(last: LayerReport, steep: bool, flat: bool, over: bool) -> Iterator[str]:
    if steep:
        now = (
            f"; now its block has λ_max = {number(last.lambda_max)}, a limit of 2/λ_max = "
            f"{number(2 / last.lambda_max)}"
            if over
            else ""
        )
        yield (
            "With softmax cross entropy, only rates up to 4/λ_max(Σ_x) = "
            f"{number(SAFE_RATE_NUMERATOR / last.lambda_max_x)} are safe in any case{now}."
        )
        if last.lambda_max_x_centred <= last.lambda_max_x / 2:
            yield "Most of it is the inputs' mean."
    if not _rows_enough(last):
        return
    yield {
        (True, True): "Both λ_max and κ matter: the largest rate is small, and slow at it.",
        (True, False): "Only λ_max matters: κ is no worse than after a normalisation.",
        (False, True): "Only κ matters: no rate suits the steep and the flat directions.",
    }[steep, flat]


def _last_layer_advice(steep: bool, flat: bool) -> str:
    if not flat:
        return (
            'Divide its input by a constant, lca.add_final_norm(model, "scale"), or lower the '
            "learning rate, at least at the start."
        )
    norm = 'Put a normalisation before it: lca.add_final_norm(model, "batch").'
    if not steep:
        return norm
    return f"{norm} A lower learning rate alone takes care of λ_max, not of κ."


def _rank_deficient(report: Report) -> Iterator[Finding]:
    """Directions of a layer's input that never occur, and why."""
    groups: defaultdict[tuple[Severity, str], list[LayerReport]] = defaultdict(list)
    for layer in report.layers:
        if not layer.diverged and _rows_enough(layer) and layer.rank_x < layer.d_in:
            # The data are what they are, and dependent inputs are common in sound networks: a
            # wide layer behind a narrow one, GELU that is all but linear at the start.
            silent = layer.zero_inputs + layer.constant_inputs
            wasted = layer.layer > 1 and silent >= MANY_DYING * layer.d_in
            groups["warning" if wasted else "info", _rank_reason(layer)].append(layer)
    for (severity, suggestion), layers in groups.items():
        worst = sorted(layers, key=lambda layer: layer.rank_x / layer.d_in)
        yield Finding(
            _only(layers), "rank-deficient input", severity,
            f"{_listed(worst, _rank_evidence)}. κ is infinite past the rank, and weights along "
            "the missing directions get no gradient.",
            suggestion,
        )  # fmt: skip


def _rank_evidence(layer: LayerReport) -> str:
    known = [
        text
        for count, text in (
            (layer.zero_inputs, f"{layer.zero_inputs} always zero"),
            (layer.constant_inputs, f"{layer.constant_inputs} nearly constant"),
        )
        if count
    ]
    why = f" ({', '.join(known)})" if known else ""
    return f"Σ_x of {layer.name} has rank {layer.rank_x} of {layer.d_in}{why}"


def _rank_reason(layer: LayerReport) -> str:
    """The suggestion for what explains the missing directions."""
    missing, data = layer.d_in - layer.rank_x, layer.layer == 1
    if layer.rank_x == 0:
        return "All of it is zero: look at " + ("the data." if data else "the layer before.")
    if layer.zero_inputs >= missing:
        return (
            "These inputs are zero in all of the data (empty pixels, unseen words): leave them "
            "out, or live with it."
            if data
            else "They are units before it that are never active: see dying units; or narrow it."
        )
    if layer.zero_inputs + max(layer.constant_inputs - 1, 0) >= missing:
        return (
            "An input that hardly varies does little that a bias does not: subtract its mean, or "
            "leave it out of the data."
            if data
            else "Units before it give nearly the same for every sample: normalise before it, or "
            "start again with a lower learning rate."
        )
    if missing == 1:
        return (
            "One direction is missing, as behind a layer normalisation, whose outputs sum to zero: "
            "harmless."
        )
    return "The rest depend linearly on each other: " + (
        "drop or combine such features (PCA), or live with it."
        if data
        else "a narrower layer or fewer features before it without an activation between, or "
        "units that have come to do the same. Narrow it, or normalise before it."
    )


def _units(report: Report) -> Iterator[Finding]:
    """Units that a rectifier always, or never, sets to zero."""
    usable = [layer for layer in report.layers if not layer.diverged and _has_samples(layer)]
    dying = [layer for layer in usable if 0 < layer.dying < MANY_DYING]
    dead = [layer for layer in usable if layer.dying >= MANY_DYING]
    full = [layer for layer in usable if layer.full > 0]

    def found(layers: list[LayerReport], kind: str, severity: Severity, advice: str) -> Finding:
        field, state = ("dying", "zero") if kind == "dying units" else ("full", "active")
        worst = sorted(layers, key=lambda layer: -getattr(layer, field))
        shares = _listed(worst, lambda x: f"{percent(getattr(x, field))} of {x.name}")
        evidence = f"Units that are {state} for every sample: {shares}."
        return Finding(_only(layers), kind, severity, evidence, advice)

    few = "They learn nothing and pass nothing on; a few do no harm. "
    cure = "Batch normalisation, He's initial scale or a lower learning rate prevent it."
    if dead:
        advice = "Most of the layer is lost, and what it learned. " + cure
        yield found(dead, "dying units", "warning", advice)
    if dying:
        yield found(dying, "dying units", "info", few + cure)
    if full:
        advice = (
            "They act as linear units: a layer full of them adds nothing that the next could not "
            "do. Batch normalisation makes units switch."
        )
        yield found(full, "full units", "info", advice)


def _too_few_samples(report: Report) -> Iterator[Finding]:
    """Layers of which κ_50 is infinite, or too large, for want of vectors."""
    finite = [layer for layer in report.layers if not layer.diverged]
    infinite = [layer for layer in finite if _is_infinite_by_rows(layer)]
    unsure = [layer for layer in finite if layer not in infinite and _shortage(layer) > 1]
    cases: tuple[tuple[list[LayerReport], Severity, str], ...] = (
        (infinite, "warning", "κ_50 is infinite, whatever the network: see it as missing."),
        (unsure, "info", "κ_50 comes out too large; λ_max is less affected."),
    )
    for layers, severity, meaning in cases:
        if not layers:
            continue
        worst = sorted(layers, key=_shortage, reverse=True)
        times = math.ceil(10 * _shortage(worst[0])) / 10
        yield Finding(
            _only(layers), "too few samples", severity,
            f"Vectors behind Σ_x and Σ_g: {_listed(worst, _rows_evidence)}. {meaning}",
            f"Measure on more samples, or over several batches: {number(times)} times as many for "
            "a reliable κ.",
        )  # fmt: skip


def _rows_evidence(layer: LayerReport) -> str:
    behind_g = "" if layer.grad_rows == layer.rows else f"{layer.grad_rows} for "
    groups = f" in {layer.groups} groups" if layer.groups > 1 else ""
    return (
        f"{layer.name} has {layer.rows} for {layer.d_in} inputs and {behind_g}{layer.d_out} "
        f"outputs{groups}"
    )


def _is_infinite_by_rows(layer: LayerReport) -> bool:
    return any(
        math.isinf(kappa) and rows < math.ceil(KAPPA_SHARE * d)
        for kappa, (rows, d) in zip((layer.kappa50_x, layer.kappa50_g), _rows(layer), strict=True)
    )


def _shortage(layer: LayerReport) -> float:
    """How many times as many vectors a reliable κ asks for, of the moment that lacks more."""
    return max(RELIABLE_ROWS * d / max(rows, 1) for rows, d in _rows(layer))


def _rows(layer: LayerReport) -> tuple[tuple[int, int], tuple[int, int]]:
    """Vectors and size of Σ_x and of Σ_g; each vector gives one to every group."""
    each = layer.groups
    return (layer.rows * each, layer.d_in), (layer.grad_rows * each, layer.d_out)


def _rows_enough(layer: LayerReport) -> bool:
    return layer.rows * layer.groups >= RANK_ROWS * layer.d_in


def _trailing(reports: Sequence[Report], holds: Callable[[Report], object]) -> list[Report]:
    """The reports at the end, without a gap, for which something holds."""
    trailing: list[Report] = []
    for report in reversed(reports):
        if not holds(report):
            break
        trailing.insert(0, report)
    return trailing


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _only(layers: Sequence[LayerReport]) -> str | None:
    return layers[0].name if len(layers) == 1 else None


def _names(layers: Sequence[LayerReport]) -> str:
    return _listed(layers, lambda layer: layer.name, separator=", ")


def _listed(
    layers: Sequence[LayerReport], describe: Callable[[LayerReport], str], separator: str = "; "
) -> str:
    """Describe the first few, and count the rest."""
    described = separator.join(describe(layer) for layer in layers[:LISTED])
    rest = len(layers) - LISTED
    return f"{described} and {rest} more" if rest > 0 else described


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
