r"""Linear models in closed form: what an input's second moment says about gradient descent.

The Hessian of least squares, ``½ ‖W x - y‖²``, is I ⊗ Σ_x over the weights W [C, d], flattened row
by row: it does not depend on W, and everything about gradient descent is known in advance.
`linear_problem` has the models themselves, and the losses whose Hessian varies. All tensors are
float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of

__all__ = [
    "PREPARATIONS",
    "InputBasis",
    "Prepared",
    "Tuning",
    "best_momentum",
    "best_step",
    "error_factors",
    "excess_loss",
    "input_basis",
    "input_moment",
    "kappa_above",
    "line_search_bound",
    "line_search_step",
    "long_run_factor",
    "predicted_iterations",
    "prepare",
    "solve_in_range",
    "step_size_limit",
    "with_constant",
]

PREPARATIONS = ("raw", "centred", "standardised", "whitened")

CUTOFF = 1e-12  # relative to λ_max: below it a float64 eigenvalue may be rounding noise
LARGEST_COUNT = 2**62  # of steps


# What is done to the inputs


@dataclass(frozen=True, eq=False)
class Prepared:
    """Inputs after a preparation, and what was done to them: ``(raw - mean) @ transform``.

    Attributes:
        x: Prepared inputs, shape ``[n, d']``; d' < d only where whitening left directions out.
        mean: What was subtracted, shape ``[d]``, in the features' units.
        transform: What was multiplied, shape ``[d, d']``, in one over the features' units.
    """

    x: Tensor
    mean: Tensor
    transform: Tensor


def prepare(x: Tensor, preparation: str, *, cutoff: float = CUTOFF) -> Prepared:
    """Subtract and rescale the inputs, so that a linear model sees a rounder Σ_x.

    ``"raw"`` changes nothing; ``"centred"`` subtracts each feature's mean; ``"standardised"`` also
    divides by its standard deviation, where it has one; ``"whitened"`` then turns the features into
    their principal components V, each scaled to variance 1, so that Σ_x = I::

        x ↦ (x - m) D^-1 V_r Λ_r^-½,   D = diag(σ),   D^-1 Cov(x) D^-1 = V Λ Vᵀ

    over the r eigenvalues above the cut. All four are invertible up to the directions left out:
    with a constant input beside them (`with_constant`) a linear model can express the same
    functions after each.

    Args:
        x: Inputs, shape ``[n, d]``, float64.
        preparation: One of `PREPARATIONS`.
        cutoff: Whitening leaves out eigenvalues up to ``cutoff · λ_max``.

    Raises:
        TypeError, ValueError: there is no such preparation, or the inputs are no matrix of finite
            float64 numbers.

    Source:
        LeCun, Kanter, Solla (1991) on centring and decorrelating inputs.

    Example:
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]], dtype=torch.float64)
        >>> white = prepare(x, "whitened").x
        >>> torch.allclose(white.T @ white / 3, torch.eye(2, dtype=torch.float64))
        True
    """
    require_one_of("preparation", preparation, PREPARATIONS)
    require_cutoff(cutoff)
    require_matrix("x", x)
    d = x.shape[1]
    mean, transform = x.new_zeros(d), torch.eye(d, dtype=x.dtype)
    if preparation != "raw":
        mean = x.mean(dim=0)
    if preparation in ("standardised", "whitened"):
        deviation = x.std(dim=0, correction=0)
        # The mean of equal numbers is off by rounding, and so not quite all of them.
        constant = deviation <= CUTOFF * x.abs().amax(dim=0)
        transform = torch.diag(1 / deviation.masked_fill(constant, 1.0))
    if preparation == "whitened":
        basis = input_basis((x - mean) @ transform, cutoff=cutoff)
        kept = slice(basis.rank)
        transform = transform @ basis.vectors[:, kept] / basis.eigenvalues[kept].sqrt()
    return Prepared((x - mean) @ transform, mean, transform)


def with_constant(x: Tensor) -> Tensor:
    """Append the constant input 1 to ``x`` [n, d], whose weight is the model's bias.

    Example:
        >>> with_constant(torch.zeros(1, 2, dtype=torch.float64)).tolist()
        [[0.0, 0.0, 1.0]]
    """
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


# Σ_x and its eigenvalues


def input_moment(x: Tensor) -> Tensor:
    """Return Σ_x = 1/n Σ x xᵀ, not centred, shape ``[d, d]``, of inputs ``x`` [n, d].

    Example:
        >>> input_moment(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return x.T @ x / len(x)


@dataclass(frozen=True, eq=False)
class InputBasis:
    """Eigenvalues and eigenvectors of Σ_x.

    Attributes:
        eigenvalues: Shape ``[d]``, descending, squared input units; not cut.
        vectors: Shape ``[d, d]``, column i belongs to eigenvalue i.
        rank: Number of eigenvalues above the cut.
    """

    eigenvalues: Tensor
    vectors: Tensor
    rank: int

    @property
    def lambda_max(self) -> float:
        """λ_max(Σ_x)."""
        return self.eigenvalues[0].item()

    @property
    def lambda_min(self) -> float:
        """The smallest eigenvalue above the cut; 0 where none is."""
        return self.eigenvalues[self.rank - 1].item() if self.rank else 0.0

    @property
    def kappa(self) -> float:
        """κ on the directions above the cut: λ_max over the smallest kept eigenvalue."""
        return self.lambda_max / self.lambda_min if self.rank else math.inf


def input_basis(x: Tensor, *, cutoff: float = CUTOFF) -> InputBasis:
    """Decompose Σ_x by way of the inputs' singular values, λ_i = σ_i²/n.

    Not by way of Σ_x itself: forming it squares the rounding. Its eigenvalues below some
    1e-16·λ_max would be noise, those from singular values hold down to some 1e-30·λ_max.

    Args:
        x: Inputs, shape ``[n, d]``, float64.
        cutoff: Eigenvalues up to ``cutoff · λ_max`` do not count to the rank; from 0 to 1.

    Example:
        >>> basis = input_basis(torch.tensor([[2.0, 0.0], [0.0, 1e-9]], dtype=torch.float64))
        >>> basis.eigenvalues.tolist(), basis.rank
        ([2.0, 5e-19], 1)
    """
    require_matrix("x", x)
    require_cutoff(cutoff)
    n, d = x.shape
    rows = x if n >= d else torch.cat([x, x.new_zeros(d - n, d)])  # all d vectors come out
    singular, vectors = torch.linalg.svd(rows, full_matrices=False)[1:]
    eigenvalues = singular.square() / n
    rank = int((eigenvalues > cutoff * eigenvalues[0]).sum())
    return InputBasis(eigenvalues, vectors.T, rank)


def kappa_above(eigenvalues: Tensor, cutoff: float) -> tuple[float, int]:
    """Return κ and the rank if every eigenvalue up to ``cutoff · λ_max`` counts as a zero.

    Where a spectrum has a gap, both are the same for every cut-off inside the gap; where it has
    none, κ is about one over the cut-off and says nothing else.

    Args:
        eigenvalues: Shape ``[d]``, descending, ≥ 0, not all 0.
        cutoff: From 0 to 1.

    Example:
        >>> kappa_above(torch.tensor([1.0, 1e-3, 1e-15], dtype=torch.float64), 1e-12)
        (1000.0, 2)
    """
    require_cutoff(cutoff)
    if eigenvalues.dim() != 1 or not (eigenvalues[:1] > 0).any():
        raise ValueError("eigenvalues must be a vector whose first entry is above 0")
    kept = eigenvalues[eigenvalues > cutoff * eigenvalues[0]]
    return (kept[0] / kept[-1]).item(), len(kept)


# Gradient descent on a quadratic, direction by direction


def step_size_limit(lambda_max: float, momentum: float = 0.0) -> float:
    """Return the step size below which descent on a quadratic converges, and above which not.

    ::

        η < 2 (1 + β) / λ_max

    Args:
        lambda_max: Largest eigenvalue of the Hessian, above 0.
        momentum: Heavy ball's β in [0, 1); 0 is gradient descent, with the limit 2/λ_max.

    Source:
        Polyak (1964) for the heavy ball.

    Example:
        >>> step_size_limit(4.0), step_size_limit(4.0, momentum=0.9)
        (0.5, 0.95)
    """
    require_in_range("lambda_max", lambda_max, low=0, open_low=True)
    require_in_range("momentum", momentum, low=0, high=1, open_high=True)
    return 2 * (1 + momentum) / lambda_max


@dataclass(frozen=True)
class Tuning:
    """The best fixed settings of a method on a quadratic.

    Attributes:
        rate: Step size η, one over the Hessian's unit.
        momentum: β.
        factor: What an error is multiplied by in a step, in the long run and in the worst
            direction.
    """

    rate: float
    momentum: float
    factor: float


def best_step(lambda_max: float, lambda_min: float) -> Tuning:
    """Return the fixed step size whose slowest eigendirection is the least slow.

    The steepest and the flattest direction then fall at one rate, with opposite signs::

        η = 2 / (λ_max + λ_min),   |1 - ηλ| ≤ (κ - 1)/(κ + 1)

    Args:
        lambda_max: Largest eigenvalue of the Hessian.
        lambda_min: Smallest one, above 0.

    Source:
        Polyak (1987), section 1.4.

    Example:
        >>> best_step(3.0, 1.0)
        Tuning(rate=0.5, momentum=0.0, factor=0.5)
    """
    _require_range_of_eigenvalues(lambda_max, lambda_min)
    total = lambda_max + lambda_min
    return Tuning(2 / total, 0.0, (lambda_max - lambda_min) / total)


def best_momentum(lambda_max: float, lambda_min: float) -> Tuning:
    """Return heavy ball's best fixed step size and momentum.

    ::

        η = 4 / (√λ_max + √λ_min)²,   β = ((√κ - 1)/(√κ + 1))²,   factor √β = (√κ - 1)/(√κ + 1)

    So √κ stands where gradient descent has κ. (Errors also grow with t: t·(√β)^t at the ends.)

    Args:
        lambda_max: Largest eigenvalue of the Hessian.
        lambda_min: Smallest one, above 0.

    Source:
        Polyak (1964).

    Example:
        >>> best_momentum(9.0, 1.0)
        Tuning(rate=0.25, momentum=0.25, factor=0.5)
    """
    _require_range_of_eigenvalues(lambda_max, lambda_min)
    high, low = math.sqrt(lambda_max), math.sqrt(lambda_min)
    factor = (high - low) / (high + low)
    return Tuning(4 / (high + low) ** 2, factor**2, factor)


def error_factors(eigenvalues: Tensor, rate: float, steps: int, momentum: float = 0.0) -> Tensor:
    """Return what is left, after some steps, of an error along each eigendirection: e_t / e_0.

    Without momentum ``(1 - ηλ)^t``. With it the recursion, from rest::

        e_(t+1) = (1 + β - ηλ) e_t - β e_(t-1),   e_(-1) = e_0

    by the t-th power of its 2×2 matrix, so that it costs log t products.

    Args:
        eigenvalues: λ of the Hessian, shape ``[d]``, ≥ 0.
        rate: Step size η.
        steps: t.
        momentum: β in [0, 1).

    Returns:
        Shape ``[d]``; signed, ±∞ where it overflows.

    Source:
        Polyak (1964); for a reader, Goh (2017), "Why Momentum Really Works".

    Example:
        >>> error_factors(torch.tensor([1.0, 0.5], dtype=torch.float64), rate=1.0, steps=3)
        tensor([0.0000, 0.1250], dtype=torch.float64)
    """
    require_integer("steps", steps, low=0, high=LARGEST_COUNT)
    require_in_range("momentum", momentum, low=0, high=1, open_high=True)
    if momentum:
        matrix = eigenvalues.new_zeros(len(eigenvalues), 2, 2)
        matrix[:, 0, 0] = 1 + momentum - rate * eigenvalues
        matrix[:, 0, 1], matrix[:, 1, 0] = -momentum, 1
        # A growing power is taken apart into a bounded one and a number: it may overflow.
        half = matrix[:, 0, 0].abs() / 2
        growth = (half + (half.square() - momentum).clamp(min=0).sqrt()).clamp(min=1)
        bounded = torch.linalg.matrix_power(matrix / growth[:, None, None], steps)
        return bounded[:, 0].sum(dim=1) * growth**steps
    if not steps:
        return torch.ones_like(eigenvalues)
    # By logarithms: 1 - ηλ itself has lost the digits of an ηλ near zero, and t may be 1e12.
    passed = rate * eigenvalues
    size = torch.where(passed < 1, torch.log1p(-passed.clamp(max=1)), (passed - 1).abs().log())
    sign = torch.where(passed > 1, -1.0, 1.0) ** (steps % 2)
    return sign * torch.exp(steps * size)


def long_run_factor(eigenvalue: float, rate: float, momentum: float = 0.0) -> float:
    """Return what a step multiplies an error by in the long run; above 1 it grows.

    The larger root, in size, of the recursion of `error_factors`::

        z² - (1 + β - ηλ) z + β = 0

    Without momentum that is |1 - ηλ|. Where the roots are complex it is √β, whatever λ.

    Args:
        eigenvalue: λ of the Hessian, ≥ 0.
        rate: Step size η.
        momentum: β in [0, 1).

    Source:
        Polyak (1964).

    Example:
        >>> long_run_factor(1.0, rate=1.5), long_run_factor(1.0, rate=1.5, momentum=0.25)
        (0.5, 0.5)
    """
    require_in_range("momentum", momentum, low=0, high=1, open_high=True)
    half = (1 + momentum - rate * eigenvalue) / 2
    discriminant = half**2 - momentum
    return abs(half) + math.sqrt(discriminant) if discriminant > 0 else math.sqrt(momentum)


def excess_loss(eigenvalues: Tensor, errors: Tensor) -> float:
    """Return ½ Σ λ e², how far a quadratic loss is above its minimum.

    Args:
        eigenvalues: λ of the Hessian, shape ``[d]``.
        errors: Distance e from the minimiser along each eigendirection, shape ``[d]``.

    Example:
        >>> excess_loss(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0]))
        3.0
    """
    return 0.5 * (eigenvalues * errors.square()).sum().item()


def predicted_iterations(
    eigenvalues: Tensor, errors: Tensor, rate: float, target: float = 1e-3
) -> float:
    """Return how many steps of gradient descent bring the excess loss to ``target`` of its start.

    That is the smallest t with ::

        Σ λ e² (1 - ηλ)^(2t) ≤ target · Σ λ e²

    found by bisection, so 1e12 steps are no more work than ten.

    Args:
        eigenvalues: λ of the Hessian, shape ``[d]``, ≥ 0.
        errors: Errors at the start, shape ``[d]``.
        rate: Step size η.
        target: Between 0 and 1.

    Returns:
        A whole number, as a float; ``inf`` at the limit of the step size and beyond, for more than
        2^62 steps, and for errors that are not finite.

    Source:
        Derived.

    Example:
        >>> two = torch.tensor([1.0, 0.01], dtype=torch.float64)
        >>> predicted_iterations(two, torch.tensor([1.0, 10.0]).double(), rate=1.0)
        310.0
    """
    require_in_range("target", target, low=0, high=1, open_low=True, open_high=True)
    goal = target * excess_loss(eigenvalues, errors)

    def reached(steps: int) -> bool:
        left = errors * error_factors(eigenvalues, rate, steps)
        return excess_loss(eigenvalues, left) <= goal

    if not goal:
        return 0.0
    if not math.isfinite(goal) or rate <= 0 or rate * eigenvalues[errors != 0].max() >= 2:
        return math.inf
    high = 1
    while not reached(high):
        if high == LARGEST_COUNT:
            return math.inf
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(high)


def line_search_step(gradient: Tensor, hessian: Tensor) -> float:
    """Return the step size that minimises a quadratic along its gradient, gᵀg / gᵀHg.

    Args:
        gradient: g, shape ``[d]``, not in the null space of the Hessian.
        hessian: H, shape ``[d, d]``.

    Source:
        Cauchy (1847).

    Example:
        >>> line_search_step(torch.tensor([1.0, 1.0]), torch.diag(torch.tensor([3.0, 1.0])))
        0.5
    """
    unit = gradient / gradient.abs().max()  # the squares of a tiny gradient would vanish
    return (unit @ unit / (unit @ hessian @ unit)).item()


def line_search_bound(kappa: float) -> float:
    """Return the worst factor of a step with exact line search on the excess loss.

    ::

        ((κ - 1)/(κ + 1))²

    It is the best fixed step's factor, squared because a loss is a square; line search reaches it
    from the start whose gradient is equally large in the steepest and the flattest direction.

    Source:
        Kantorovich (1948).

    Example:
        >>> line_search_bound(3.0)
        0.25
    """
    require_in_range("kappa", kappa, low=1)
    return ((kappa - 1) / (kappa + 1)) ** 2


def solve_in_range(matrix: Tensor, vector: Tensor, *, cutoff: float = CUTOFF) -> Tensor:
    """Return A⁺ v: the preconditioned step, for A = H (Newton's) or A = Σ_x.

    Directions whose eigenvalue is at most ``cutoff · λ_max`` are left alone: a step along them
    would be noise over noise.

    Args:
        matrix: A, symmetric, ≥ 0, shape ``[m, m]``.
        vector: v, shape ``[m]`` or ``[m, k]``.
        cutoff: Relative cut of the eigenvalues.

    Example:
        >>> solve_in_range(torch.diag(torch.tensor([2.0, 0.0])), torch.tensor([1.0, 1.0])).tolist()
        [0.5, 0.0]
    """
    require_cutoff(cutoff)
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > cutoff * values[-1]
    basis = vectors[:, kept]
    return (basis / values[kept]) @ (basis.T @ vector)


def require_cutoff(cutoff: float) -> None:
    """Refuse a relative cut-off outside [0, 1)."""
    require_in_range("cutoff", cutoff, low=0, high=1, open_high=True)


def require_matrix(name: str, matrix: Tensor) -> None:
    """Refuse what is no finite, non-empty float64 matrix."""
    if matrix.dim() != 2 or not matrix.numel():
        raise ValueError(f"{name} must be a non-empty matrix, got shape {tuple(matrix.shape)}")
    if matrix.dtype != torch.float64:
        raise TypeError(f"{name} must be float64, got {matrix.dtype}")
    if not matrix.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite numbers")


def _require_range_of_eigenvalues(lambda_max: float, lambda_min: float) -> None:
    require_in_range("lambda_min", lambda_min, low=0, open_low=True)
    require_in_range("lambda_max", lambda_max, low=lambda_min)
