"""Eigenvalues of second moments, and what conditioning analysis reads off them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lca_widgets._checks import require_integer
from lca_widgets.curvature.factors import LayerFactors
from lca_widgets.curvature.moments import relative_cut, rows_multiplied_wide, second_moment_sum

__all__ = [
    "KroneckerSpectrum",
    "LayerSpectra",
    "SampleWarning",
    "Spectrum",
    "gram_spectrum",
    "largest_eigenvalues",
    "layer_spectra",
    "moment_spectra",
    "row_spectrum",
]

SAMPLES_PER_DIMENSION = 8  # below it κ_80 is off by more than 20 % (measured on Gaussian inputs)

SMALLEST = torch.finfo(torch.float64).tiny  # smallest number of full precision
# For one κ_p, of products of two spectra: sorted once for all, up to here; then selected among all,
# up to the second; then found by bisection, in 2 to 5 ms.
SORTED_PRODUCTS = 2**10
SELECTED_PRODUCTS = 2**18

STACKED_SIZE = 128  # below it one call for many matrices saves time; above, cutting zero rows does

KRYLOV_SIZE = 256  # below it eigvalsh is as fast as Lanczos
KRYLOV_STEPS = 32
KRYLOV_TOLERANCE = 1e-10


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

    Args:
        eigenvalues: Any order; the other ``dimension - len(eigenvalues)`` are exact zeros.
        n: Number of samples behind the matrix; ``None`` if it is not an estimate.
        dimension: Size d of the matrix; ``None``: every eigenvalue is given.

    Attributes:
        n: As given.
        dimension: Size d of the matrix.

    Raises:
        TypeError: the dimension is not a whole number.
        ValueError: the eigenvalues are not a non-empty vector, some are negative, or there are
            more of them than dimensions.

    Source:
        Huang et al. (2020) for κ and κ_p.

    Example:
        >>> spectrum = Spectrum([1.0, 100.0, 4.0, 0.0])
        >>> spectrum.lambda_max, spectrum.kappa(0.5), spectrum.kappa(), spectrum.rank
        (100.0, 25.0, inf, 3)
        >>> Spectrum([9.0, 3.0], dimension=1000).kappa(0.002)
        3.0
    """

    n: int | None
    dimension: int
    _stored: Tensor

    def __init__(
        self,
        eigenvalues: Tensor | Sequence[float],
        n: int | None = None,
        dimension: int | None = None,
    ) -> None:
        values = torch.as_tensor(eigenvalues, dtype=torch.float64).detach().cpu()
        if values.dim() != 1 or not len(values):
            raise ValueError(f"eigenvalues must be a non-empty vector, got {tuple(values.shape)}")
        if (values < 0).any():
            raise ValueError(
                f"eigenvalues must be at least 0, got {values.min().item():g}; build the spectrum "
                "of a matrix with moment_spectra, which cuts rounding noise off"
            )
        if dimension is not None:
            require_integer("dimension", dimension, len(values))
        if not values.isfinite().all():
            values = torch.full_like(values, math.nan)
        self._set(values.sort(descending=True).values, n, dimension)

    @classmethod
    def _of_sorted(
        cls, eigenvalues: Tensor, n: int | None, dimension: int | None = None
    ) -> Spectrum:
        """Wrap values that need no check: thousands a second are made while a network trains."""
        spectrum = object.__new__(cls)
        spectrum._set(eigenvalues, n, dimension)
        return spectrum

    def _set(self, eigenvalues: Tensor, n: int | None, dimension: int | None) -> None:
        object.__setattr__(self, "_stored", eigenvalues)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "dimension", dimension or len(eigenvalues))

    def __repr__(self) -> str:
        """Summarise in one line."""
        size = f"d={self.dimension}, n={self.n}, rank={self.rank}"
        return f"{type(self).__name__}({size}, lambda_max={self.lambda_max:.4g})"

    @property
    def eigenvalues(self) -> Tensor:
        """The stored eigenvalues, shape ``[m]`` with m ≤ d, float64 on the CPU, descending, ≥ 0.

        The d − m others are zeros: 128 samples of a layer of 2 million parameters store 128. Those
        that were below the relative cut are exact zeros too. All NaN for a diverged layer, that is,
        if one was NaN or infinite. The unit is that of the matrix's entries (squared activations
        for Σ_x).
        """
        return self._stored

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
        index = quantile_index(p, self.dimension)
        if self.diverged:
            return math.nan
        low = self._largest(index)
        return math.inf if low == 0 else self.lambda_max / low

    def kron(self, other: Spectrum) -> KroneckerSpectrum:
        """Return the spectrum of the Kronecker product: every product of two eigenvalues.

        λ_max, κ, the trace and the rank multiply; κ_p for p < 1 does not. The sample counts stay
        with the two factors: the product's ``n`` is ``None``.

        Source:
            Huang et al. (2020), proposition 1.

        Example:
            >>> Spectrum([3.0, 1.0]).kron(Spectrum([2.0, 1.0])).eigenvalues.tolist()
            [6.0, 3.0, 2.0, 1.0]
        """
        return KroneckerSpectrum(
            self.eigenvalues[None], other.eigenvalues[None], self.dimension * other.dimension
        )

    def _largest(self, index: int) -> float:
        """The eigenvalue number ``index``, counted from 1, of a matrix that did not diverge."""
        return self._numbers[index - 1] if index <= len(self._numbers) else 0.0

    @cached_property
    def _numbers(self) -> list[float]:
        return self.eigenvalues.tolist()


def quantile_index(p: float, dimension: int) -> int:
    """Return ⌈p·d⌉, the number of κ_p's eigenvalue, counted from 1.

    Raises:
        ValueError: ``p`` is outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p!r}")
    # The small term undoes the rounding of p·d itself: 0.07 * 100 is 7.000000000000001.
    return max(1, math.ceil(p * dimension - 1e-9))


@dataclass(frozen=True, eq=False, init=False, repr=False)
class KroneckerSpectrum(Spectrum):
    """Spectrum of a Kronecker product, or of several on the diagonal of one matrix.

    It keeps the factors' eigenvalues. Everything but ``eigenvalues`` is read off those, in memory
    proportional to their number and not to the number of their products; ``eigenvalues`` forms
    them all when it is asked for. For G blocks with eigenvalues a and b::

        {a_gi · b_gj : g = 1…G, i = 1…d_in, j = 1…d_out}

    A product is what float64 makes of it: below 2e-308 a zero, and with one that overflows the
    spectrum has diverged.

    Args:
        left: Eigenvalues of the left factors, shape ``[G, d_in]``, float64 on the CPU, rows sorted
            descending, ≥ 0; the missing ones are zeros.
        right: Those of the right factors, shape ``[G, d_out]``.
        dimension: Size of the whole matrix.

    Example:
        >>> left, right = torch.tensor([[3.0, 1.0], [9.0, 1.0]]), torch.tensor([[2.0], [1.0]])
        >>> KroneckerSpectrum(left.double(), right.double(), 4).eigenvalues.tolist()
        [9.0, 6.0, 2.0, 1.0]
    """

    def __init__(self, left: Tensor, right: Tensor, dimension: int) -> None:
        object.__setattr__(self, "n", None)
        object.__setattr__(self, "dimension", dimension)
        object.__setattr__(self, "_left", left)
        object.__setattr__(self, "_right", right)

    _left: Tensor
    _right: Tensor

    @cached_property
    def eigenvalues(self) -> Tensor:
        """All products, sorted descending: d_in·d_out numbers a block."""
        values = self._products().sort(descending=True).values
        return torch.full_like(values, math.nan) if self.diverged else values

    @cached_property
    def lambda_max(self) -> float:
        """λ_max, the largest eigenvalue; NaN if diverged."""
        largest = (self._left[:, 0] * self._right[:, 0]).max().item()
        if not math.isfinite(largest):
            return math.nan
        return largest if largest >= SMALLEST else 0.0

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues; NaN if diverged."""
        return self.stable_rank * self.lambda_max if self.lambda_max else 0.0

    @property
    def rank(self) -> int:
        """Number of eigenvalues above zero; 0 if diverged."""
        if self._size <= SORTED_PRODUCTS:
            return super().rank
        return 0 if self.diverged else self._count(SMALLEST)

    @property
    def stable_rank(self) -> float:
        """Trace / λ_max: between 1 and the rank; NaN for the zero matrix and if diverged."""
        if not self.lambda_max:
            return math.nan
        first_left, first_right = self._left[:, 0], self._right[:, 0]
        sums = (self._left.T / first_left).sum(0) * (self._right.T / first_right).sum(0)
        share = first_left * first_right / self.lambda_max
        return sums.where(share > 0, share).mul(share).sum().item()

    def _products(self) -> Tensor:
        products = (self._left[:, :, None] * self._right[:, None, :]).flatten()
        return products.where(products >= SMALLEST, 0)

    def _largest(self, index: int) -> float:
        if self._size <= SORTED_PRODUCTS:
            return super()._largest(index)
        if index > self._size:
            return 0.0
        if self._size <= SELECTED_PRODUCTS:
            return self._products().kthvalue(self._size - index + 1).values.item()
        return self._bisected(index)

    def _bisected(self, index: int) -> float:
        # The answer is the largest number that ``index`` products reach. Positive float64 numbers
        # are in the order of their bit patterns: halving the patterns ends at the very number.
        low, high = _pattern(SMALLEST), _pattern(self.lambda_max) + 1
        if self._count(SMALLEST) < index:
            return 0.0
        while high - low > 1:
            middle = (low + high) // 2
            if self._count(_number(middle)) >= index:
                low = middle
            else:
                high = middle
        return _number(low)

    def _count(self, threshold: float) -> int:
        """How many products, as float64 rounds them, are at least ``threshold`` ≥ SMALLEST."""
        # For each left value, the smallest right value that is enough: the quotient, or a number
        # next to it (rounding), found by trying upwards from two below.
        infinity = self._left.new_tensor(math.inf)
        enough = threshold / self._left
        enough = enough.nextafter(-infinity).nextafter(-infinity)
        for _ in range(3):
            enough = torch.where(
                self._left * enough < threshold, enough.nextafter(infinity), enough
            )
        below = torch.searchsorted(self._ascending, enough)
        return below.numel() * self._right.shape[1] - int(below.sum())

    @property
    def _size(self) -> int:
        """Number of the stored factors' products."""
        return self._left.numel() * self._right.shape[1]

    @cached_property
    def _ascending(self) -> Tensor:
        return self._right.flip(-1).contiguous()


def _pattern(number: float) -> int:
    return int(torch.tensor(number, dtype=torch.float64).view(torch.int64))


def _number(pattern: int) -> float:
    return torch.tensor(pattern, dtype=torch.int64).view(torch.float64).item()


@dataclass(frozen=True, eq=False)
class LayerSpectra:
    """The spectra of one layer's two factors.

    Attributes:
        name: The layer's qualified name.
        input: Spectrum of Σ_x, d_in eigenvalues; of a grouped convolution those of all groups,
            G·d_in.
        grad: Spectrum of Σ_g, d_out eigenvalues, or G·d_out.
        groups: Eigenvalues of a grouped convolution's Σ_x and Σ_g, group by group: shapes
            ``[G, d_in]`` and ``[G, d_out]``; ``None`` for other layers.
        input_centred: Spectrum of the centred moment Σ_x − m_x m_xᵀ, where means were asked for.
            What is below the cut of Σ_x itself is rounding noise here too.
        grad_centred: Spectrum of Σ_g − m_g m_gᵀ, likewise.
    """

    name: str
    input: Spectrum
    grad: Spectrum
    groups: tuple[Tensor, Tensor] | None = None
    input_centred: Spectrum | None = None
    grad_centred: Spectrum | None = None

    @cached_property
    def kronecker(self) -> KroneckerSpectrum:
        """Spectrum of Σ_x ⊗ Σ_g, the approximation of the layer's block of the Fisher.

        The groups of a convolution do not mix: theirs is the union of the groups' products.
        """
        if self.groups is None:
            return self.input.kron(self.grad)
        left, right = self.groups
        return KroneckerSpectrum(left, right, left.numel() * right.shape[1])


def layer_spectra(factors: Sequence[LayerFactors]) -> list[LayerSpectra]:
    """Return the spectra of all layers' factors; small ones of one size are computed together.

    Args:
        factors: As `FactorCapture.take` returns them. The moments of grouped convolutions have
            shapes ``[G, d_in, d_in]`` and ``[G, d_out, d_out]``; the relative cut then refers to
            the largest eigenvalue of each group.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> [layer] = layer_spectra([LayerFactors("fc", 3 * eye, 2 * eye, n=16, cut=1e-7)])
        >>> layer.kronecker.lambda_max
        6.0
    """
    moments = [m for layer in factors for m in (layer.input_moment, layer.grad_moment)]
    means = [m for layer in factors for m in (layer.input_mean, layer.grad_mean)]
    cuts = [layer.cut for layer in factors for _ in range(2)]
    shifted = {k: _centred(moments[k], mean) for k, mean in enumerate(means) if mean is not None}
    values = _eigenvalues([*moments, *shifted.values()], [*cuts, *(0.0 for _ in shifted)])
    centred = {
        k: _union(_floored(rest, cuts[k] * values[k][..., :1]))
        for k, rest in zip(shifted, values[len(moments) :], strict=True)
    }
    return [
        _layer_spectra(layer, values[k], values[k + 1], centred.get(k), centred.get(k + 1))
        for layer, k in zip(factors, range(0, len(moments), 2), strict=True)
    ]


def _centred(moment: Tensor, mean: Tensor) -> Tensor:
    return moment - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def _floored(values: Tensor, floor: Tensor) -> Tensor:
    """Replace eigenvalues [..., d] below the absolute ``floor`` [..., 1] by zeros."""
    return values.masked_fill(values < floor, 0)


def _layer_spectra(
    layer: LayerFactors,
    left: Tensor,
    right: Tensor,
    left_centred: Tensor | None,
    right_centred: Tensor | None,
) -> LayerSpectra:
    n = layer.n
    return LayerSpectra(
        layer.name,
        Spectrum._of_sorted(_union(left), n),
        Spectrum._of_sorted(_union(right), n),
        (left, right) if left.dim() == 2 else None,
        None if left_centred is None else Spectrum._of_sorted(left_centred, n),
        None if right_centred is None else Spectrum._of_sorted(right_centred, n),
    )


def _union(groups: Tensor) -> Tensor:
    """Sorted eigenvalues of a block-diagonal matrix from those of its blocks."""
    if groups.dim() == 1:
        return groups
    values = groups.flatten().sort(descending=True).values  # NaN comes first
    return values if not values[0].isnan() else torch.full_like(values, math.nan)


def moment_spectra(
    moments: Sequence[Tensor], counts: Sequence[int | None], cuts: Sequence[float]
) -> list[Spectrum]:
    """Return the spectra of symmetric positive semi-definite matrices.

    They are decomposed in float64, which float32 cannot replace: its eigenvalues are off by more
    than the cut. Matrices on a device without float64 (MPS) are moved to the CPU first; those on
    CUDA are decomposed there, and all their eigenvalues come to the CPU in one transfer.

    Args:
        moments: Matrices of shape ``[d, d]``; d may differ. A matrix with a NaN or infinite entry
            gives a diverged spectrum, not an error.
        counts: Number of samples behind each.
        cuts: Eigenvalues below ``cut * λ_max`` become exact zeros.

    Example:
        >>> moment_spectra([torch.diag(torch.tensor([1.0, 2.0]))], [None], [1e-7])[0].lambda_max
        2.0
    """
    return [
        Spectrum._of_sorted(values, n)
        for values, n in zip(_eigenvalues(moments, cuts), counts, strict=True)
    ]


def row_spectrum(rows: Tensor) -> Spectrum:
    """Return the spectrum of the second moment of rows, by way of the smaller of two matrices.

    The d×d moment and the n×n Gram matrix have the same eigenvalues except for zeros::

        1/n Σ r rᵀ        K_ij = r_i·r_j / n

    Args:
        rows: One row a sample, shape ``[n, d]``, not empty. With n < d, n eigenvalues are stored.

    Returns:
        Its ``n`` and ``dimension`` are the shape; the relative cut is that of the rows' type.

    Raises:
        ValueError: the rows are not a non-empty matrix.

    Example:
        >>> spectrum = row_spectrum(torch.tensor([[2.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
        >>> spectrum.eigenvalues.tolist(), spectrum.dimension
        ([8.0, 2.0], 3)
    """
    if rows.dim() != 2 or not rows.numel():
        raise ValueError(f"rows must be a non-empty matrix [n, d], got {tuple(rows.shape)}")
    n, d = rows.shape
    smaller = second_moment_sum(rows.T if n < d else rows) / n
    cut = relative_cut(rows.dtype, wide=rows_multiplied_wide(len(smaller)))
    return gram_spectrum(smaller, dimension=d, n=n, cut=cut)


def gram_spectrum(gram: Tensor, *, dimension: int, n: int | None, cut: float) -> Spectrum:
    """Return the spectrum of R Rᵀ, of size ``dimension``, from the Gram matrix Rᵀ R.

    Args:
        gram: Rᵀ R, shape ``[m, m]``. For a second moment 1/n Σ r rᵀ it is r_i·r_j / n, the
            division included; a NaN or infinite entry gives a diverged spectrum.
        dimension: Size d of the matrix whose spectrum it is. Where m > d, the m − d smallest
            eigenvalues are rounding noise and left out.
        n: Number of samples behind the matrix.
        cut: Eigenvalues below ``cut * λ_max`` become exact zeros.

    Example:
        >>> gram_spectrum(torch.eye(2), dimension=4, n=2, cut=1e-7).kappa(0.5)
        1.0
    """
    require_integer("dimension", dimension, 1)
    [values] = _eigenvalues([gram], [cut])
    return Spectrum._of_sorted(values[:dimension], n, dimension)


def _eigenvalues(moments: Sequence[Tensor], cuts: Sequence[float]) -> list[Tensor]:
    """Descending eigenvalues [d] or [G, d] of [d, d] or [G, d, d], on the CPU, noise cut off."""
    alike: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
    for position, moment in enumerate(moments):
        alike[moment.shape, moment.device].append(position)
    found: dict[int, Tensor] = {}
    workers = torch.get_num_threads()
    with one_thread():
        for positions in alike.values():
            values = _decompose([moments[position] for position in positions], workers)
            relative = values.new_tensor([cuts[position] for position in positions])
            values = cut_off(values, relative.reshape(-1, *[1] * (values.dim() - 1)))
            found.update(zip(positions, values, strict=True))
    return to_cpu([found[position] for position in range(len(moments))])


def _decompose(moments: Sequence[Tensor], workers: int) -> Tensor:
    """Eigenvalues [b, …, d] of b moments […, d, d] of one shape, NaN where one is not finite."""
    shape, device = moments[0].shape, moments[0].device
    if shape[-1] >= STACKED_SIZE and device.type == "cpu":
        matrices = [matrix for moment in moments for matrix in moment.reshape(-1, *shape[-2:])]
        return torch.stack(_decompose_each(matrices, workers)).reshape(-1, *shape[:-1])
    stacked = to_float64(torch.stack(list(moments)))
    finite = stacked.isfinite().all(dim=-1).all(dim=-1)
    safe = stacked.where(finite[..., None, None], 0)  # LAPACK raises on NaN
    return torch.linalg.eigvalsh(safe).where(finite[..., None], math.nan).flip(-1)


def _decompose_each(matrices: Sequence[Tensor], workers: int) -> list[Tensor]:
    """Eigenvalues of each matrix; several at a time, where torch is given several threads."""
    workers = min(workers, len(matrices))
    if workers == 1:
        return [_decompose_one(matrix) for matrix in matrices]
    # One thread a matrix: LAPACK gains nothing from more for one, but the matrices are independent.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(_decompose_one, matrices))


def _decompose_one(matrix: Tensor) -> Tensor:
    """Eigenvalues [d] of one matrix on the CPU, without the rows that are zero (dead units)."""
    matrix = to_float64(matrix)
    low, high = matrix.aminmax()  # NaN if any entry is
    if not (low.isfinite() and high.isfinite()):
        return matrix.new_full((len(matrix),), math.nan)
    values = matrix.new_zeros(len(matrix))
    used = matrix.diagonal() != 0
    if not used.all():
        used = matrix.any(dim=1)  # beside an entry that underflowed there may be others
        rows = used.nonzero()[:, 0]
        matrix = matrix.index_select(0, rows).index_select(1, rows)
    if len(matrix):
        values[: len(matrix)] = torch.linalg.eigvalsh(matrix).flip(0)
    return values


def to_float64(matrices: Tensor) -> Tensor:
    """Return matrices in the type that eigenvalues need, on the CPU if their device has it not."""
    return (matrices.cpu() if matrices.device.type == "mps" else matrices).double()


def cut_off(values: Tensor, cut: Tensor | float) -> Tensor:
    """Replace what is below ``cut`` times the first of descending eigenvalues [..., d] by zeros."""
    noise = values < cut * values[..., :1]  # all False for a row of NaN
    return values.masked_fill(noise, 0).clamp(min=0)


def largest_eigenvalues(moments: Sequence[Tensor]) -> list[float]:
    """Return λ_max of symmetric positive semi-definite matrices, without their other eigenvalues.

    Large matrices take a few Lanczos steps in float64, from a start that is always the same. The
    residual bounds the error, and stops them: for the Ritz pair (θ, v)::

        |θ − λ| ≤ ‖M v − θ v‖ ≤ 1e-10·θ        for an eigenvalue λ of M

    Where it does not get there in time, as with many nearly equal largest eigenvalues, the matrix
    is decomposed in full; so are small ones.

    Args:
        moments: Matrices of shape ``[d, d]``, or ``[G, d, d]`` for the largest of G; d may differ.

    Returns:
        One number a moment, NaN for one with a NaN or infinite entry.

    Source:
        Parlett (1998), The symmetric eigenvalue problem, for the bound.

    Example:
        >>> largest_eigenvalues([torch.diag(torch.arange(500.0))])
        [499.0]
    """
    large = [position for position, m in enumerate(moments) if m.shape[-1] >= KRYLOV_SIZE]
    with one_thread():
        pairs = to_cpu([_ritz(moments[position]) for position in large])
    found = {
        position: values.max().item()
        for position, (values, residuals) in zip(large, pairs, strict=True)
        if (residuals <= KRYLOV_TOLERANCE * values).all()  # not with NaN
    }
    rest = [position for position in range(len(moments)) if position not in found]
    values = _eigenvalues([moments[position] for position in rest], [0.0] * len(rest))
    found |= {position: v[..., 0].max().item() for position, v in zip(rest, values, strict=True)}
    return [found[position] for position in range(len(moments))]


def _ritz(moment: Tensor) -> Tensor:
    """Largest Ritz values of [d, d] or [G, d, d], and their residuals: shape [2, G]."""
    size = moment.shape[-1]
    matrices = to_float64(moment).reshape(-1, size, size)
    # Near λ_max in size. Divided by it, no square of the steps over- or underflows.
    scale = matrices.diagonal(dim1=1, dim2=2).amax(dim=1).clamp(min=SMALLEST)
    basis = matrices.new_zeros(len(matrices), KRYLOV_STEPS + 1, size)
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis[:, 0] = start.div(start.norm())
    projected = matrices.new_zeros(len(matrices), KRYLOV_STEPS + 1, KRYLOV_STEPS + 1)
    for step in range(KRYLOV_STEPS):
        image = matrices @ basis[:, step, :, None] / scale[:, None, None]
        length = _extend(basis, projected, image, step)
        # To ask another device than the CPU whether it is done, one would have to wait for it.
        if step == KRYLOV_STEPS - 1 or (step % 4 == 3 and matrices.device.type == "cpu"):
            values, residuals = _top_pair(projected[:, : step + 1, : step + 1], length)
            if step < KRYLOV_STEPS - 1 and (residuals <= KRYLOV_TOLERANCE * values).all():
                break
    return torch.stack([values, residuals]) * scale


def _extend(basis: Tensor, projected: Tensor, image: Tensor, step: int) -> Tensor:
    """Append what is new in ``image`` to the orthonormal basis; return its length [G]."""
    known = basis[:, : step + 1]
    for _ in range(2):  # once leaves them orthogonal to half the digits
        parts = known @ image
        image = image - known.mT @ parts
        projected[:, step, step] += parts[:, step, 0]
    length = image[..., 0].norm(dim=1)
    length = length.where(~(length < 1e-14), 0)  # only rounding is left: the space is exhausted
    projected[:, step + 1, step] = length
    basis[:, step + 1] = (image[..., 0] / length[:, None]).where(length[:, None] != 0, 0)
    return length


def _top_pair(projected: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue of each tridiagonal matrix, and the residual of its Ritz pair."""
    finite = projected.isfinite().all(dim=-1).all(dim=-1) & length.isfinite()
    values, vectors = torch.linalg.eigh(projected.where(finite[:, None, None], 0))
    return values[:, -1], (length * vectors[:, -1, -1].abs()).where(finite, math.nan)


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Move tensors of one type to the CPU, in one transfer a device."""
    moved = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        there = [position for position, tensor in enumerate(tensors) if tensor.device == device]
        together = torch.cat([tensors[position].flatten() for position in there]).cpu()
        parts = together.split([tensors[position].numel() for position in there])
        for position, part in zip(there, parts, strict=True):
            moved[position] = part.reshape(tensors[position].shape)
    return moved


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
