"""Eigenvalues, trace and spectral density of a symmetric matrix, from its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature.moments import sum_dtype

__all__ = [
    "Eigenvalues",
    "NotConverged",
    "SpectralDensity",
    "SymmetricOperator",
    "TraceEstimate",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]

Which = Literal["largest", "smallest", "magnitude"]

_RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda values: values,
    "smallest": torch.neg,
    "magnitude": torch.abs,
}
# Weight of an operator's hint in the start vector, noise having 1: enough to save a product, too
# little to hide an eigenvector that the hint is orthogonal to.
_HINT = 0.1
_FEWEST_STEPS = 3  # before a small residual is believed
_LOOSE = 10  # times the tolerance: what an unseen neighbour may make of a value's error
_BLURRED = 0.1  # relative residual up to which a pair may be found to lie further in than others
_BLOCK = 2**18  # numbers that are added up in the operator's own precision
_ASYMMETRY = 1e-2  # of the matrix's size: far above rounding, far below another batch's matrix


class SymmetricOperator(Protocol):
    """What the functions here need: a symmetric matrix, or something that multiplies like one.

    A `torch.Tensor` is one. If it has a method ``hint()``, the vector that this returns helps to
    find its large eigenvalues; if it is a context manager, it is open during the computation.
    """

    @property
    def shape(self) -> torch.Size:
        """``(d, d)``."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors it multiplies."""

    @property
    def device(self) -> torch.device:
        """Of the vectors it multiplies."""

    def __matmul__(self, vector: Tensor, /) -> Tensor:
        """Multiply with ``[d]``."""


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The outermost eigenvalues of a symmetric matrix A, multiple ones as often as they occur.

    Attributes:
        values: θ, shape ``[k]``, float64 on the CPU, from the outermost inwards; all NaN if a
            product was NaN or infinite.
        residuals: ‖A u − θ u‖ of the unit vectors u behind the values, shape ``[k]``. An eigenvalue
            lies within this distance of θ.
        errors: Error bounds of the values, shape ``[k]``: the residual r, or r²/gap where that is
            less, with the gap to the nearest other eigenvalue as far as it was seen.
        products: Number of products with A that were spent.
        vectors: u, shape ``[d, k]``, in the operator's precision; ``None`` if not asked for.
    """

    values: Tensor
    residuals: Tensor
    errors: Tensor
    products: int
    vectors: Tensor | None


class NotConverged(RuntimeError):
    """The eigenvalues were not found to the tolerance within the products allowed.

    Attributes:
        reached: What there was, its ``errors`` too large; fewer than k where nothing is known.
    """

    def __init__(self, message: str, reached: Eigenvalues) -> None:
        super().__init__(message)
        self.reached = reached


def top_eigenvalues(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    which: Which = "largest",
    tolerance: float = 1e-3,
    max_products: int = 100,
    vectors: bool = False,
    seed: int = 0,
) -> Eigenvalues:
    """Return the k outermost eigenvalues, by Lanczos' method with full re-orthogonalisation.

    A value θ is accepted when its error bound, min(r, r²/gap), is at most ``tolerance · |θ|`` and
    its residual r at most ten times that (or both at the level of rounding, relative to the
    largest eigenvalue seen). So an eigenvalue lies within ``10 · tolerance · |θ|`` for certain,
    and within ``tolerance · |θ|`` unless there are two in that distance, not told apart yet. That
    none lies further out cannot be certified by products; one is missed only if the random start
    vector is nearly orthogonal to its eigenvector, and the more it stands out, the nearer that
    has to be.

    For k > 1 the search is repeated orthogonally to what was found, until that can add nothing:
    from one start vector, Lanczos' method sees each multiple eigenvalue once.

    Args:
        operator: A symmetric matrix, d × d, or its products.
        k: How many eigenvalues, from 1 to d.
        which: ``"largest"`` or ``"smallest"`` by value, or the largest in ``"magnitude"``.
        tolerance: Largest relative error of a value, above 0. The error of a vector is about the
            root of it.
        max_products: Products with the operator allowed. Each also keeps d numbers in memory
            until the end.
        vectors: Whether to return the eigenvectors.
        seed: Seeds the start vectors.

    Returns:
        The eigenvalues; all NaN if a product was not finite.

    Raises:
        NotConverged: ``max_products`` were not enough; it says, and carries, what was reached.
        ValueError: an argument is out of range, or the products are not those of a symmetric
            matrix, such as those of a model whose data changes from product to product.

    Source:
        Parlett (1980), chapters 11 and 13; r²/gap is the bound of Kato and Temple.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, 7.0, 3.0, 7.0]))
        >>> top_eigenvalues(A, k=3).values.round(decimals=3)
        tensor([7., 7., 3.], dtype=torch.float64)
    """
    d = operator.shape[0]
    require_integer("k", k, low=1, high=d)
    require_one_of("which", which, get_args(Which))
    require_in_range("tolerance", tolerance, low=0, high=1, open_low=True)
    require_integer("max_products", max_products, low=1)
    require_integer("seed", seed, low=0, high=2**63 - 1)
    with _open(operator):
        search = _Search(operator, k, which, tolerance, max_products, vectors, seed)
        return search.run()


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace.

    Attributes:
        value: The estimate; NaN if a product was NaN or infinite.
        standard_error: Of the value; 0 where it is exact up to rounding.
        products: Number of products that were spent.
    """

    value: float
    standard_error: float
    products: int


def trace(
    operator: SymmetricOperator,
    products: int = 30,
    *,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    seed: int = 0,
) -> TraceEstimate:
    """Return an unbiased estimate of the trace of A, with its standard error.

    - ``"hutchinson"``: the mean of zᵀ A z over random signs z. Its variance is twice the sum of
      the squared entries off the diagonal, divided by ``products``.
    - ``"hutch++"``: the exact trace on the span of A times a third of the products, which holds
      most of the large eigenvalues, and Hutchinson's estimate orthogonally to it.

    Args:
        operator: A symmetric matrix, d × d, or its products.
        products: Number of products to spend, from 6 (Hutchinson: 2). With d or more, d of them
            give the exact trace by either method.
        method: Which estimate.
        seed: Seeds the random signs.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Hutchinson (1989); Meyer, Musco, Musco and Woodruff (2021).

    Example:
        >>> trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])), products=6)
        TraceEstimate(value=6.0, standard_error=0.0, products=3)
    """
    require_one_of("method", method, ("hutch++", "hutchinson"))
    require_integer("products", products, low=6 if method == "hutch++" else 2)
    require_integer("seed", seed, low=0, high=2**63 - 1)
    d = operator.shape[0]
    generator = torch.Generator(operator.device).manual_seed(seed)
    with _open(operator):
        if products >= d:
            units = torch.eye(d, dtype=operator.dtype, device=operator.device)
            return TraceEstimate(float(_quadratic_forms(operator, units).sum()), 0.0, d)
        exact, basis = 0.0, None
        probes = products
        if method == "hutch++":
            sketch = _times(operator, _signs(operator, products // 3, generator))
            basis = torch.linalg.qr(sketch.T).Q.T  # orthonormal rows
            exact = float(_quadratic_forms(operator, basis).sum())
            probes -= 2 * len(basis)
        rows = _signs(operator, probes, generator)
        if basis is not None:
            rows = rows - (rows @ basis.T) @ basis
        samples = _quadratic_forms(operator, rows)
    error = float(samples.std()) / math.sqrt(probes)
    return TraceEstimate(exact + float(samples.mean()), error, products)


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """An estimate of how the eigenvalues of a symmetric matrix are distributed.

    Attributes:
        nodes: Where the estimate has mass, shape ``[m]``, float64 on the CPU, ascending; NaN if a
            product was NaN or infinite.
        weights: The fraction of the eigenvalues that each node stands for, shape ``[m]``; they add
            up to 1.
        dimension: Number d of eigenvalues.
        products: Number of products that were spent.
    """

    nodes: Tensor
    weights: Tensor
    dimension: int
    products: int

    def on(self, grid: Tensor, width: float) -> Tensor:
        """Return the density at each point of ``grid``, every node a Gaussian of this width.

        Args:
            grid: Eigenvalues, any shape.
            width: Standard deviation of the Gaussian, above 0.

        Returns:
            The shape of ``grid``, float64; it integrates to 1.
        """
        require_in_range("width", width, low=0, open_low=True)
        distance = (grid.detach().cpu().double().unsqueeze(-1) - self.nodes) / width
        bell = torch.exp(-(distance**2) / 2) / (width * math.sqrt(2 * math.pi))
        return bell @ self.weights


def spectral_density(
    operator: SymmetricOperator, *, probes: int = 4, steps: int = 30, seed: int = 0
) -> SpectralDensity:
    """Return an estimate of the spectral density, by stochastic Lanczos quadrature.

    From a random unit vector v, ``steps`` Lanczos steps give the Gauss quadrature of v's own
    spectral measure, exact for polynomials of a degree below 2·``steps``. Its mean over random
    signs v is the density; with p probes a moment tr f(A)/d has a relative error of about
    √(2/(p·d)). Eigenvalues that stand out are nodes themselves.

    Args:
        operator: A symmetric matrix, d × d, or its products.
        probes: Number of random vectors.
        steps: Lanczos steps for each, a product and d numbers of memory each.
        seed: Seeds the vectors.

    Raises:
        ValueError: an argument is out of range, or the products are not symmetric.

    Source:
        Golub and Welsch (1969); Ubaru, Chen and Saad (2017).

    Example:
        >>> density = spectral_density(torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0])), probes=1)
        >>> density.nodes, density.weights
        (tensor([1., 4.], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    require_integer("probes", probes, low=1)
    require_integer("steps", steps, low=1)
    require_integer("seed", seed, low=0, high=2**63 - 1)
    generator = torch.Generator(operator.device).manual_seed(seed)
    nodes, weights, products = [], [], 0
    with _open(operator):
        for start in _signs(operator, probes, generator):
            krylov = _Krylov(operator, start.to(_working(operator)))
            krylov.step()
            while krylov.steps < steps and not krylov.exhausted:
                krylov.step()
            theta, coordinates = krylov.eigenpairs()
            nodes.append(theta)
            weights.append(coordinates[0] ** 2 / probes)
            products += krylov.steps
    ascending = torch.cat(nodes).sort()
    return SpectralDensity(
        ascending.values, torch.cat(weights)[ascending.indices], operator.shape[0], products
    )


class _Pairs(NamedTuple):
    """Approximate eigenpairs: numbers ``[m]`` on the CPU, and a row for each vector."""

    values: Tensor
    residuals: Tensor
    errors: Tensor
    rows: Tensor  # the vectors [m, d]; or their coordinates; or [m, 0] where nobody needs them

    def at(self, index: Tensor | slice) -> _Pairs:
        return _Pairs(*(part[index] for part in self))


class _Search:
    """The pairs found so far, and Lanczos runs orthogonal to them until k are certain."""

    def __init__(
        self,
        operator: SymmetricOperator,
        k: int,
        which: Which,
        tolerance: float,
        max_products: int,
        vectors: bool,
        seed: int,
    ) -> None:
        self.operator = operator
        self.k = k
        self.rank = _RANKS[which]
        self.tolerance = tolerance
        self.max_products = max_products
        self.vectors = vectors
        self.generator = torch.Generator(operator.device).manual_seed(seed)
        self.scale = 0.0  # the matrix's size, as far as seen
        self.products = 0
        nothing = torch.empty(0, dtype=torch.float64)
        width = operator.shape[0] if vectors or k > 1 else 0
        rows = torch.empty(0, width, dtype=_working(operator), device=operator.device)
        self.found = _Pairs(nothing, nothing, nothing, rows)

    def run(self) -> Eigenvalues:
        """Find k pairs and, if k > 1, search on until that adds nothing."""
        d = self.operator.shape[0]
        hint = getattr(self.operator, "hint", lambda: None)()
        while True:
            before = len(self.found.values)
            locked = self.found.rows if len(self.found.values) else None
            krylov = _Krylov(self.operator, self._start(hint), locked, self.scale)
            new = self._converge(krylov)
            if not krylov.finite:
                return self._diverged()
            # What is missing from the pairs of this run lies where A leads out of its space.
            hint = None if krylov.exhausted else krylov.newest
            self.found = self._merged(new)
            after = len(self.found.values)
            if (before >= self.k and before == after) or self.k == 1 or after == d:
                return self._result(self.found)

    def _start(self, hint: Tensor | None) -> Tensor:
        """Noise, and a little of the hint."""
        d = self.operator.shape[0]
        noise = torch.randn(d, generator=self.generator, device=self.operator.device)
        start = noise.to(_working(self.operator))
        length = 0.0 if hint is None else float(_norm(hint))
        if hint is None or not 0 < length < math.inf:
            return start
        return start.add_(hint.to(start), alpha=_HINT * math.sqrt(d) / length)

    def _converge(self, krylov: _Krylov) -> _Pairs:
        """Pairs orthogonal to those found: as many as are missing, or else one further out."""
        missing = max(self.k - len(self.found.values), 0)
        while True:
            if self.products == self.max_products:
                raise self._not_converged(krylov)
            krylov.step()
            self.products += 1
            if not krylov.finite:
                return self.found
            self.scale = krylov.scale
            if not krylov.exhausted and krylov.steps < max(missing, _FEWEST_STEPS):
                continue
            pairs = self._ritz(krylov)
            if not krylov.exhausted:  # else every pair is exact, and the next run leads elsewhere
                pairs = pairs.at(slice(max(missing, 1)))
            lead = torch.full_like(pairs.values, math.inf) if missing else self._lead(pairs.values)
            allowed = self._allowed(pairs.values)
            close = (pairs.errors <= allowed) & (pairs.residuals <= _LOOSE * allowed)
            behind = (lead <= -pairs.residuals) & (pairs.residuals <= _BLURRED * pairs.values.abs())
            if krylov.exhausted or (close | behind).all():
                return self._with_vectors(krylov, pairs.at(lead > 0))

    def _ritz(self, krylov: _Krylov) -> _Pairs:
        """All pairs of a run, the outermost first, with their coordinates in the run's basis."""
        values, coordinates = krylov.eigenpairs()
        residuals = krylov.betas[-1] * coordinates[-1].abs()
        errors = _error_bounds(values, residuals)
        outermost_first = self.rank(values).argsort(descending=True)
        return _Pairs(values, residuals, errors, coordinates.T).at(outermost_first)

    def _lead(self, values: Tensor) -> Tensor:
        """By how much values lie further out than the k-th one found, beyond what may be error."""
        last = self.found.values[self.k - 1]
        return self.rank(values) - self.rank(last) - self._allowed(last)

    def _allowed(self, values: Tensor) -> Tensor:
        return (self.tolerance * values.abs()).clamp(min=_rounding(self.operator) * self.scale)

    def _with_vectors(self, krylov: _Krylov, pairs: _Pairs) -> _Pairs:
        if not self.found.rows.shape[1]:
            return pairs._replace(rows=self.found.rows.new_empty(len(pairs.values), 0))
        return pairs._replace(rows=krylov.combine(pairs.rows))

    def _merged(self, new: _Pairs) -> _Pairs:
        merged = _Pairs(*(torch.cat(parts) for parts in zip(self.found, new, strict=True)))
        return merged.at(self.rank(merged.values).argsort(descending=True))

    def _result(self, pairs: _Pairs) -> Eigenvalues:
        best = pairs.at(slice(self.k))
        vectors = best.rows.to(self.operator.dtype).T if self.vectors else None
        return Eigenvalues(best.values, best.residuals, best.errors, self.products, vectors)

    def _diverged(self) -> Eigenvalues:
        nan = torch.full((self.k,), math.nan, dtype=torch.float64)
        rows = self.found.rows.new_full((self.k, self.found.rows.shape[1]), math.nan)
        return self._result(_Pairs(nan, nan, nan, rows))

    def _not_converged(self, krylov: _Krylov) -> NotConverged:
        pairs = self._merged(self._with_vectors(krylov, self._ritz(krylov)))
        reached = self._result(pairs)
        numbers = zip(reached.values.tolist(), reached.errors.tolist(), strict=True)
        state = ", ".join(f"{value:.6g} (error at most {error:.2g})" for value, error in numbers)
        return NotConverged(
            f"max_products={self.max_products} products were not enough for k={self.k} "
            f"eigenvalues to tolerance={self.tolerance:g}; reached {state or 'nothing'}: raise "
            "max_products or tolerance",
            reached,
        )


def _error_bounds(values: Tensor, residuals: Tensor) -> Tensor:
    """The residual r, or r²/gap where that is less."""
    distances = (values[:, None] - values).abs() - residuals
    distances.fill_diagonal_(math.inf)
    gaps = distances.amin(dim=1)
    # One value alone has seen no other: its gap is unknown, not infinite.
    known = (gaps > residuals) & gaps.isfinite()
    return residuals.where(~known, residuals**2 / gaps.where(known, 1))


class _Krylov:
    """An orthonormal basis of a Krylov space, and the tridiagonal matrix that A is in it.

    The basis holds the products of A, from the start vector on, orthogonal to the locked rows.

    Attributes:
        alphas: The diagonal, as long as there were steps.
        betas: What lies beside it; the last belongs to the vector that the next step multiplies.
        finite: Whether all products were.
        scale: The size of the matrix, as far as seen: the largest number in it.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        locked: Tensor | None = None,
        scale: float = 0.0,
    ) -> None:
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.finite = True
        self.scale = scale
        self._operator = operator
        self._locked = 0 if locked is None else len(locked)
        self._rows = start.new_empty(self._locked + 8, len(start))
        if locked is not None:
            self._rows[: self._locked] = locked
            for _ in range(2):
                start = start - (locked @ start) @ locked
        self._rows[self._locked] = start / _norm(start)

    @property
    def steps(self) -> int:
        """Number of products so far."""
        return len(self.alphas)

    @property
    def exhausted(self) -> bool:
        """Whether no direction is left, or A leads out of the space by no more than rounding."""
        full = self._locked + self.steps == self._rows.shape[1]
        invariant = self.betas[-1] <= _rounding(self._operator) * self.scale
        return full or invariant or not self.finite

    def step(self) -> None:
        """Multiply the newest vector, and make the result orthogonal to all before it."""
        j = self._locked + self.steps
        basis = self._rows[: j + 1]
        z = (self._operator @ basis[j].to(self._operator.dtype)).to(basis.dtype, copy=True)
        # The last two hold nearly all of it; without their part one pass over all is accurate.
        near = basis[max(j - 1, self._locked) :]
        main = _dots(near, z)
        z.addmv_(near.T, main.to(z.dtype), alpha=-1)
        rest = _dots(basis, z)
        z.addmv_(basis.T, rest.to(z.dtype), alpha=-1)
        numbers = torch.cat([_norm(z)[None], main, rest[self._locked :]])
        beta, *inner = numbers.tolist()  # the step's only wait for the device
        self.finite = math.isfinite(beta) and all(map(math.isfinite, inner))
        if self.finite:
            self._require_symmetry(inner[: len(near)], inner[len(near) :])
        self.alphas.append(inner[len(near) - 1] + inner[-1])
        self.betas.append(beta)
        self.scale = max(self.scale, abs(self.alphas[-1]), beta)
        if not self.exhausted:
            self._append(z.div_(beta))

    @property
    def newest(self) -> Tensor:
        """The unit vector that the next step multiplies."""
        return self._rows[self._locked + self.steps]

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """The tridiagonal matrix's eigenvalues ``[m]`` and its eigenvectors, as columns."""
        matrix = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
        if not self.finite:
            return torch.full_like(matrix[0], math.nan), torch.full_like(matrix, math.nan)
        beside = torch.tensor(self.betas[:-1], dtype=torch.float64)
        matrix += torch.diag(beside, 1) + torch.diag(beside, -1)
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors

    def combine(self, coordinates: Tensor) -> Tensor:
        """Unit vectors as rows ``[m, d]``, from their coordinates ``[m, steps]``."""
        basis = self._rows[self._locked : self._locked + self.steps]
        return coordinates.to(basis) @ basis

    def _append(self, row: Tensor) -> None:
        used = self._locked + self.steps
        if used == len(self._rows):
            longer = self._rows.new_empty(min(2 * used, self._rows.shape[1]), self._rows.shape[1])
            longer[:used] = self._rows
            self._rows = longer
        self._rows[used] = row

    def _require_symmetry(self, main: list[float], rest: list[float]) -> None:
        """Of a symmetric matrix, the product has known parts along all but the newest vector."""
        known = [
            *zip(main[:-1], self.betas[-1:], strict=True),
            *((part, 0.0) for part in rest[:-1]),
        ]
        leak = max((abs(part - expected) for part, expected in known), default=0.0)
        scale = max(self.scale, abs(main[-1]))
        if leak > _ASYMMETRY * scale:
            raise ValueError(
                "operator must be a symmetric matrix, the same one in every product: its products "
                f"disagree by {leak / scale:.1g} of its size; does its data change, or its dropout?"
            )


def _open(operator: SymmetricOperator) -> AbstractContextManager[object]:
    return operator if isinstance(operator, AbstractContextManager) else nullcontext()


def _working(operator: SymmetricOperator) -> torch.dtype:
    """The precision of the basis: the products', but not half."""
    return torch.promote_types(operator.dtype, torch.float32)


def _rounding(operator: SymmetricOperator) -> float:
    """Relative error of a product, with room to spare."""
    return 10 * torch.finfo(operator.dtype).eps


def _dots(rows: Tensor, vector: Tensor) -> Tensor:
    """Products of rows ``[m, d]`` with a vector, block by block, the blocks' summed in float64."""
    wide = sum_dtype(rows.device)
    blocks = zip(rows.split(_BLOCK, dim=1), vector.split(_BLOCK), strict=True)
    return torch.stack([(part @ piece).to(wide) for part, piece in blocks]).sum(dim=0)


def _norm(vector: Tensor) -> Tensor:
    # In float64, where the squares of a collapsed network's gradients do not vanish.
    blocks = (piece.to(sum_dtype(vector.device)) for piece in vector.split(_BLOCK))
    return torch.stack([block @ block for block in blocks]).sum().sqrt()


def _signs(operator: SymmetricOperator, m: int, generator: torch.Generator) -> Tensor:
    """Random signs, rows of ``[m, d]`` in the operator's precision."""
    shape = (m, operator.shape[0])
    signs = torch.randint(2, shape, generator=generator, device=operator.device)
    return (2 * signs - 1).to(operator.dtype)


def _times(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    """The products with rows ``[m, d]``, as rows."""
    return torch.stack([operator @ row for row in rows])


def _quadratic_forms(operator: SymmetricOperator, rows: Tensor) -> Tensor:
    """Σ rᵀ A r for each row ``[m, d]``, summed in the widest type."""
    wide = sum_dtype(operator.device)
    return torch.stack([(operator @ row).to(wide) @ row.to(wide) for row in rows])
