"""How many samples are enough: κ_p and λ_max of a layer's Σ_x against the number of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import (
    Interval,
    Spectrum,
    group_moments,
    moment_spectra,
    sampling_intervals,
)
from lca_widgets.curvature.moments import relative_cut
from lca_widgets.data import digits
from lca_widgets.models import ACTIVATIONS, NORMS, mlp
from lca_widgets.proximal import layer_passes
from lca_widgets.training import StepRecord, accuracy

__all__ = ["SampleSizeMeasurement", "SampleSizeSettings", "sample_size", "sample_sizes"]

SMALLEST = 16  # samples
CUT = relative_cut(torch.float64, wide=True)


@dataclass(frozen=True)
class SampleSizeSettings:
    """Settings of an untrained float64 network on digits, and of what is read off one layer.

    Attributes:
        layer: Whose Σ_x: 1, the images themselves (d = 64), to ``depth``.
        p: Which κ_p, 0.01 to 1.
        samples: The largest sample, 16 to 1437.
        steps: Sample sizes after the first, in equal ratios, 0 to 200; with 0 there is only the
            largest.
        depth: Linear layers, the output layer included, 1 to 20.
        width: Units of a hidden layer, 2 to 256.
        activation: ``"relu"``, ``"tanh"`` or ``"linear"``.
        norm: A name among `lca_widgets.models.NORMS`.
        seed: Draws the weights and the samples.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    layer: int = 1
    p: float = 0.8
    samples: int = 1437
    steps: int = 20
    depth: int = 4
    width: int = 64
    activation: str = "relu"
    norm: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        require_integer("depth", self.depth, low=1, high=20)
        require_integer("layer", self.layer, low=1, high=self.depth)
        require_in_range("p", self.p, low=0.01, high=1)
        require_integer("samples", self.samples, low=SMALLEST, high=len(digits().train))
        require_integer("steps", self.steps, low=0, high=200)
        require_integer("width", self.width, low=2, high=256)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_one_of("norm", self.norm, NORMS)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class SampleSizeMeasurement:
    """What n samples say of a layer's Σ_x, beside what all of them say.

    Attributes:
        training: Number of this sample size, counted from 0, and the loss of its samples.
        n: Samples.
        dimension: Size d of Σ_x.
        rank: Rank of Σ_x of the n samples.
        kappa: κ_p with its confidence interval (90 %); infinite past the rank.
        lambda_max: λ_max(Σ_x) likewise.
        eigenvalues: Of Σ_x of the n samples, descending.
        n_all: All samples there are.
        kappa_all: κ_p of all samples.
        lambda_max_all: λ_max(Σ_x) of all samples.
        eigenvalues_all: Of Σ_x of all samples.
    """

    training: StepRecord
    n: int
    dimension: int
    rank: int
    kappa: Interval
    lambda_max: Interval
    eigenvalues: tuple[float, ...]
    n_all: int
    kappa_all: float
    lambda_max_all: float
    eigenvalues_all: tuple[float, ...]

    @property
    def overstatement(self) -> float:
        """κ_p of the n samples over that of all; NaN where that is infinite."""
        return self.kappa.estimate / self.kappa_all if math.isfinite(self.kappa_all) else math.nan


def sample_sizes(smallest: int, largest: int, steps: int) -> list[int]:
    """Return ``steps + 1`` whole numbers from ``smallest`` to ``largest`` in equal ratios.

    Example:
        >>> sample_sizes(16, 1024, 3), sample_sizes(16, 1024, 0)
        ([16, 64, 256, 1024], [1024])
    """
    if steps == 0:
        return [largest]
    return [round(smallest * (largest / smallest) ** (k / steps)) for k in range(steps + 1)]


def sample_size(settings: SampleSizeSettings) -> Iterator[SampleSizeMeasurement]:
    """Measure Σ_x of one layer of an untrained network with more and more samples.

    The network sees all samples at once, so that batch normalisation's statistics are the same for
    every sample size; each smaller sample is part of the next.

    Args:
        settings: The network, the layer and the sample sizes.

    Yields:
        A measurement for each sample size, from 16 to ``settings.samples``.

    Source:
        Efron and Tibshirani (1993) for the resampling behind the intervals, see
        `lca_widgets.curvature.sampling_intervals`.

    Example:
        >>> few, all_there_are = sample_size(SampleSizeSettings(steps=1))
        >>> few.n, few.kappa.estimate, round(all_there_are.overstatement, 6)
        (16, inf, 1.0)
    """
    train = digits().train
    model = mlp(
        train.x.shape[1],
        10,
        depth=settings.depth,
        width=settings.width,
        activation=settings.activation,
        norm=settings.norm,
        seed=settings.seed,
    ).double()
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(train), generator=generator)
    labels = train.y[order]
    passes = layer_passes(model, nn.functional.cross_entropy, (train.x[order].double(), labels))
    rows = passes[f"linear{settings.layer}"].inputs
    outputs = passes[f"linear{settings.depth}"].outputs
    every = _spectrum(rows)
    sizes = sample_sizes(SMALLEST, settings.samples, settings.steps)
    for number, n in enumerate(sizes):
        spectrum = _spectrum(rows[:n])
        intervals = sampling_intervals(
            *group_moments(rows[:n], seed=settings.seed),
            cut=CUT,
            p=(settings.p,),
            seed=settings.seed,
        )
        loss = nn.functional.cross_entropy(outputs[:n], labels[:n]).item()
        yield SampleSizeMeasurement(
            StepRecord(number, loss, accuracy(outputs[:n], labels[:n])),
            n,
            dimension=spectrum.dimension,
            rank=spectrum.rank,
            kappa=intervals.kappa[settings.p],
            lambda_max=intervals.lambda_max,
            eigenvalues=tuple(spectrum.eigenvalues.tolist()),
            n_all=len(rows),
            kappa_all=every.kappa(settings.p),
            lambda_max_all=every.lambda_max,
            eigenvalues_all=tuple(every.eigenvalues.tolist()),
        )


def _spectrum(rows: Tensor) -> Spectrum:
    [spectrum] = moment_spectra([rows.T @ rows / len(rows)], [len(rows)], [CUT])
    return spectrum
