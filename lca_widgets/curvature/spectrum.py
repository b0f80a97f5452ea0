"""Eigenvalues of second moments, and what conditioning analysis reads off them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lca_widgets.curvature.factors import LayerFactors

__all__ = ["LayerSpectra", "SampleWarning", "Spectrum", "layer_spectra", "moment_spectra"]

SAMPLES_PER_DIMENSION = 8  # below it κ_80 is off by more than 20 % (measured on Gaussian inputs)


@dataclass(frozen=True)
class SampleWarning:
    """Too few samples stand behind a spectrum for its small eigenvalues, and so its κ_p, to hold.

    Attributes:
        n: Samples there were.
        dimension: Size d of the moment.
    """

    n: int
    dimension: int

    def __str__(self) -> str:
        """Say what is missing."""
        return (
            f"{self.n} samples for {self.dimension} dimensions: κ_p needs about "
            f"{SAMPLES_PER_DIMENSION * self.dimension}"
        )


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Spectrum:
    """Eigenvalues of a positive semi-definite matrix, in descending order.

    Attributes:
        eigenvalues: Shape ``[d]``, float64 on the CPU, sorted descending, ≥ 0; those that were
            below the relative cut are exact zeros. All NaN for a diverged layer, that is, if one
            was NaN or infinite. The unit is that of the matrix's entries (squared activations for
            Σ_x).
        n: Number of samples behind the matrix; ``None`` if it is not an estimate.

    Raises:
        ValueError: the eigenvalues are not a non-empty vector, or some are negative.

    Source:
        Huang et al. (2020) for κ and κ_p.

    Example:
        >>> spectrum = Spectrum([1.0, 100.0, 4.0, 0.0])
        >>> spectrum.lambda_max, spectrum.kappa(0.5), spectrum.kappa(), spectrum.rank
        (100.0, 25.0, inf, 3)
    """

    eigenvalues: Tensor
    n: int | None

    def __init__(self, eigenvalues: Tensor | Sequence[float], n: int | None = None) -> None:
        values = torch.as_tensor(eigenvalues, dtype=torch.float64).detach().cpu()
        if values.dim() != 1 or not len(values):
            raise ValueError(f"eigenvalues must be a non-empty vector, got {tuple(values.shape)}")
        if (values < 0).any():
            raise ValueError(
                f"eigenvalues must be at least 0, got {values.min().item():g}; build the spectrum "
                "of a matrix with moment_spectra, which cuts rounding noise off"
            )
        if not values.isfinite().all():
            values = torch.full_like(values, math.nan)
        self._set(values.sort(descending=True).values, n)

    @classmethod
    def _of_sorted(cls, eigenvalues: Tensor, n: int | None) -> Spectrum:
        """Wrap values that need no check: thousands a second are made while a network trains."""
        spectrum = object.__new__(cls)
        spectrum._set(eigenvalues, n)
        return spectrum

    def _set(self, eigenvalues: Tensor, n: int | None) -> None:
        object.__setattr__(self, "eigenvalues", eigenvalues)
        object.__setattr__(self, "n", n)

    def __repr__(self) -> str:
        """Summarise in one line."""
        size = f"d={self.dimension}, n={self.n}, rank={self.rank}"
        return f"Spectrum({size}, lambda_max={self.lambda_max:.4g})"

    @property
    def dimension(self) -> int:
        """Size d of the matrix."""
        return len(self.eigenvalues)

    @property
    def diverged(self) -> bool:
        """Whether the matrix had a NaN or infinite entry, or eigenvalue."""
        return math.isnan(self.lambda_max)

    @property
    def lambda_max(self) -> float:
        """λ_max, the largest eigenvalue; NaN if diverged."""
        return self._numbers[0]

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues; NaN if diverged."""
        return self.eigenvalues.sum().item()

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the relative cut; 0 if diverged."""
        return sum(value > 0 for value in self._numbers)

    @property
    def stable_rank(self) -> float:
        """Trace / λ_max: between 1 and the rank; NaN for the zero matrix and if diverged."""
        # Divided before they are added up: huge eigenvalues would overflow.
        return (self.eigenvalues / self.lambda_max).sum().item() if self.lambda_max else math.nan

    @property
    def warning(self) -> SampleWarning | None:
        """A `SampleWarning` where n < 8·d, else ``None``."""
        if self.n is None or self.n >= SAMPLES_PER_DIMENSION * self.dimension:
            return None
        return SampleWarning(self.n, self.dimension)

    def kappa(self, p: float = 1.0) -> float:
        """Return κ_p = λ_max / λ_⌈p·d⌉; ``kappa()`` is the condition number κ.

        Args:
            p: Fraction of the eigenvalues to reach down to, in (0, 1].

        Returns:
            A number ≥ 1; ``inf`` past the rank (always, for the zero matrix); NaN if diverged.

        Raises:
            ValueError: ``p`` is outside (0, 1].
        """
        if not 0 < p <= 1:
            raise ValueError(f"p must be in (0, 1], got {p!r}")
        # The small term undoes the rounding of p·d itself: 0.07 * 100 is 7.000000000000001.
        index = max(1, math.ceil(p * self.dimension - 1e-9))
        low = self._numbers[index - 1]
        return math.inf if low == 0 else self.lambda_max / low

    def kron(self, other: Spectrum) -> Spectrum:
        """Return the spectrum of the Kronecker product: every product of two eigenvalues.

        λ_max, κ, the trace and the rank multiply; κ_p for p < 1 does not. The sample counts stay
        with the two factors: the product's ``n`` is ``None``.

        Source:
            Huang et al. (2020), proposition 1.

        Example:
            >>> Spectrum([3.0, 1.0]).kron(Spectrum([2.0, 1.0])).eigenvalues.tolist()
            [6.0, 3.0, 2.0, 1.0]
        """
        return Spectrum(torch.outer(self.eigenvalues, other.eigenvalues).flatten())

    @cached_property
    def _numbers(self) -> list[float]:
        return self.eigenvalues.tolist()


@dataclass(frozen=True, eq=False)
class LayerSpectra:
    """The spectra of one layer's two factors.

    Attributes:
        name: The layer's qualified name.
        input: Spectrum of Σ_x, d_in eigenvalues.
        grad: Spectrum of Σ_g, d_out eigenvalues.
    """

    name: str
    input: Spectrum
    grad: Spectrum

    @cached_property
    def kronecker(self) -> Spectrum:
        """Spectrum of Σ_x ⊗ Σ_g, the approximation of the layer's block of the Fisher."""
        return self.input.kron(self.grad)


def layer_spectra(factors: Sequence[LayerFactors]) -> list[LayerSpectra]:
    """Return the spectra of all layers' factors; those of one size are computed together.

    Args:
        factors: As `FactorCapture.take` returns them.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> [layer] = layer_spectra([LayerFactors("fc", 3 * eye, 2 * eye, n=16, cut=1e-7)])
        >>> layer.kronecker.lambda_max
        6.0
    """
    moments = [moment for layer in factors for moment in (layer.input_moment, layer.grad_moment)]
    counts = [layer.n for layer in factors for _ in range(2)]
    cuts = [layer.cut for layer in factors for _ in range(2)]
    spectra = iter(moment_spectra(moments, counts, cuts))
    return [LayerSpectra(layer.name, next(spectra), next(spectra)) for layer in factors]


def moment_spectra(
    moments: Sequence[Tensor], counts: Sequence[int | None], cuts: Sequence[float]
) -> list[Spectrum]:
    """Return the spectra of symmetric positive semi-definite matrices, batched by size.

    Args:
        moments: Matrices of shape ``[d, d]``; d may differ. A matrix with a NaN or infinite entry
            gives a diverged spectrum, not an error.
        counts: Number of samples behind each.
        cuts: Eigenvalues below ``cut * λ_max`` become exact zeros.

    Example:
        >>> moment_spectra([torch.diag(torch.tensor([1.0, 2.0]))], [None], [1e-7])[0].lambda_max
        2.0
    """
    alike: dict[tuple[int, torch.device], list[int]] = defaultdict(list)
    for position, moment in enumerate(moments):
        alike[len(moment), moment.device].append(position)
    spectra: dict[int, Spectrum] = {}
    for positions in alike.values():
        values = _eigenvalues(torch.stack([moments[position] for position in positions]))
        relative = torch.tensor([cuts[position] for position in positions], dtype=torch.float64)
        noise = values < relative[:, None] * values[:, :1]  # all False for a row of NaN
        values = values.masked_fill(noise, 0).clamp(min=0)
        for position, row in zip(positions, values, strict=True):
            spectra[position] = Spectrum._of_sorted(row, counts[position])
    return [spectra[position] for position in range(len(moments))]


def _eigenvalues(stacked: Tensor) -> Tensor:
    """Descending eigenvalues [b, d] of [b, d, d]; a row of NaN where a matrix is not finite."""
    if stacked.device.type == "mps":  # it has neither float64 nor eigvalsh
        stacked = stacked.cpu()
    stacked = stacked.double()  # float32 eigenvalues are off by more than the cut
    finite = stacked.isfinite().all(dim=-1).all(dim=-1)
    safe = stacked.where(finite[:, None, None], 0)  # LAPACK raises on NaN
    with one_thread():
        values = torch.linalg.eigvalsh(safe)
    return values.where(finite[:, None], math.nan).flip(-1).cpu()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread in the calling thread, and restore its number afterwards.

    Threads that have used torch before keep theirs; one that first does so meanwhile is given one.
    Two threads make small eigenproblems on a CPU slower, by much when another process is busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
