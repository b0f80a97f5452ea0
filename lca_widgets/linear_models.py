r"""Linear models in closed form: what an input's second moment says about gradient descent.

A linear model has the outputs ``W x`` and, whatever its loss, the Hessian::

    H = 1/N Σ_n S_n ⊗ x_n x_nᵀ

over the weights W [C, d], flattened row by row, where S_n is the curvature of the loss in the C
outputs. Least squares have S = I, so H = I ⊗ Σ_x does not depend on W, and everything about
gradient descent is known in advance. For logistic and softmax regression S depends on W, and so
does H. All tensors are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import NotConverged, top_eigenvalues

__all__ = [
    "LOSSES",
    "PREPARATIONS",
    "InputBasis",
    "LinearProblem",
    "Minimum",
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
    "minimiser",
    "minimum",
    "predicted_iterations",
    "prepare",
    "solve_in_range",
    "step_size_limit",
    "with_constant",
]

PREPARATIONS = ("raw", "centred", "standardised", "whitened")
LOSSES = ("least-squares", "logistic", "softmax")

CUTOFF = 1e-12  # relative to λ_max: below it a float64 eigenvalue may be rounding noise
LARGEST_COUNT = 2**62  # of steps
DENSE_SIZE = 200  # above it λ_max of a Hessian is found from products, which is then faster
DECREMENT = 1e-13  # of Newton's method, in units of the loss: there is no more to gain
NEWTON_STEPS = 100


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
    _require_cutoff(cutoff)
    _require_matrix("x", x)
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
    _require_matrix("x", x)
    _require_cutoff(cutoff)
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
    _require_cutoff(cutoff)
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
    _require_cutoff(cutoff)
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > cutoff * values[-1]
    basis = vectors[:, kept]
    return (basis / values[kept]) @ (basis.T @ vector)


# A model, its loss and its curvature


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """Data and a loss for a linear model with weights W, shape ``[C, d]``.

    Losses, averaged over the samples (natural logarithms)::

        least-squares   ½ ‖W x - y‖²                              S = I
        logistic        log(1 + e^z) - y z,  z = w·x, y ∈ {0, 1}  S = p (1 - p)
        softmax         -log p_y,  p = softmax(W x)               S = diag(p) - p pᵀ

    Args:
        x: Inputs, shape ``[n, d]``, float64.
        targets: Shape ``[n, C]``, float64: numbers to regress on, or one-hot labels (softmax), or
            one column of zeros and ones (logistic).
        kind: One of `LOSSES`.

    Raises:
        ValueError: the kind is unknown, or the targets do not fit it.
        TypeError: ``x`` or ``targets`` are not float64.

    Source:
        Bishop (2006), sections 3.1, 4.3.3 and 4.3.4.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> problem = LinearProblem(x, torch.ones(2, 1).double(), "logistic")
        >>> problem.hessian(problem.start()).tolist()  # ¼ Σ_x at W = 0
        [[0.125, 0.0], [0.0, 0.5]]
    """

    x: Tensor
    targets: Tensor
    kind: str

    def __post_init__(self) -> None:
        """Check what can be checked."""
        require_one_of("kind", self.kind, LOSSES)
        _require_matrix("x", self.x)
        _require_matrix("targets", self.targets)
        if len(self.targets) != len(self.x):
            raise ValueError(
                f"targets must be a matrix [{len(self.x)}, C], got {tuple(self.targets.shape)}"
            )
        if self.kind != "least-squares":
            self._require_labels()

    def _require_labels(self) -> None:
        outputs = self.targets.shape[1]
        if (self.kind == "logistic") != (outputs == 1):
            wanted = "one column" if self.kind == "logistic" else "at least two columns"
            raise ValueError(f"targets must have {wanted} for {self.kind!r}, got {outputs}")
        binary = bool(((self.targets == 0) | (self.targets == 1)).all())
        if not binary or (outputs > 1 and not bool((self.targets.sum(dim=1) == 1).all())):
            wanted = "0 and 1" if outputs == 1 else "one-hot rows"
            raise ValueError(f"targets must be {wanted} for {self.kind!r}")

    def start(self) -> Tensor:
        """Return W = 0, shape ``[C, d]``: it predicts the same after every preparation."""
        return self.x.new_zeros(self.targets.shape[1], self.x.shape[1])

    @cached_property
    def input_moment(self) -> Tensor:
        """Σ_x, shape ``[d, d]``."""
        return input_moment(self.x)

    @cached_property
    def _cross_moment(self) -> Tensor:
        """1/n Σ y xᵀ, shape ``[C, d]``."""
        return self.targets.T @ self.x / len(self.x)

    def probabilities(self, weights: Tensor) -> Tensor:
        """Return what the model makes of each sample, shape ``[n, C]``: numbers, or p."""
        outputs = self.x @ weights.T
        if self.kind == "least-squares":
            return outputs
        return outputs.sigmoid() if self.kind == "logistic" else outputs.softmax(dim=1)

    def loss(self, weights: Tensor) -> float:
        """Return the loss, the mean over the samples."""
        outputs = self.x @ weights.T
        if self.kind == "least-squares":
            return 0.5 * (outputs - self.targets).square().sum(dim=1).mean().item()
        if self.kind == "logistic":
            losses = -torch.nn.functional.logsigmoid((2 * self.targets - 1) * outputs)
        else:
            losses = -(self.targets * outputs.log_softmax(dim=1))
        return losses.sum(dim=1).mean().item()

    def gradient(self, weights: Tensor) -> Tensor:
        """Return ∂L/∂W = 1/n Σ (p - y) xᵀ, shape ``[C, d]``.

        That of least squares is W Σ_x - 1/n Σ y xᵀ: the data enter by two moments only.
        """
        if self.kind == "least-squares":
            return weights @ self.input_moment - self._cross_moment
        return (self.probabilities(weights) - self.targets).T @ self.x / len(self.x)

    def hessian(self, weights: Tensor) -> Tensor:
        """Return H = 1/n Σ S ⊗ x xᵀ, shape ``[C·d, C·d]``, over W row by row."""
        c, d = weights.shape
        if self.kind == "least-squares":
            return torch.kron(torch.eye(c, dtype=self.x.dtype), self.input_moment)
        curvature = self._output_curvature(weights)
        hessian = self.x.new_empty(c, d, c, d)
        for a in range(c):  # a row of blocks [d, d], as far as symmetry does not give it
            weighted = curvature[:, a, a:, None] * self.x[:, None]
            blocks = (weighted.flatten(1).T @ self.x / len(self.x)).view(c - a, d, d)
            hessian[a, :, a:], hessian[a:, :, a] = blocks.movedim(0, 1), blocks
        return hessian.view(c * d, c * d)

    def _output_curvature(self, weights: Tensor) -> Tensor:
        """S of every sample, shape ``[n, C, C]``, to the last digits where a p is nearly 1."""
        if self.kind == "logistic":
            outputs = self.x @ weights.T
            return (outputs.sigmoid() * (-outputs).sigmoid())[:, :, None]
        p = self.probabilities(weights)
        curvature = -p[:, :, None] * p[:, None]
        diagonal = curvature.diagonal(dim1=1, dim2=2)
        diagonal.zero_().copy_(-curvature.sum(dim=2))  # 1 - p_a is the sum of the others
        return curvature

    def hessian_product(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map v ↦ H v of vectors ``[C·d]``, without forming H."""
        shape = weights.shape
        if self.kind == "logistic":
            curvature = self._output_curvature(weights)[:, 0]
        p = self.probabilities(weights)
        likeliest = p.argmax(dim=1, keepdim=True)

        def product(vector: Tensor) -> Tensor:
            outputs = self.x @ vector.view(shape).T
            if self.kind == "logistic":
                outputs = curvature * outputs
            elif self.kind == "softmax":
                # S 1 = 0, so the shift is free; without it a p near 1 would leave rounding alone.
                outputs = outputs - outputs.gather(1, likeliest)
                outputs = p * (outputs - (p * outputs).sum(dim=1, keepdim=True))
            return (outputs.T @ self.x / len(self.x)).flatten()

        return product

    def lambda_max(self, weights: Tensor) -> float:
        """Return λ_max(H), of large Hessians to a relative error of about 1e-3; NaN if H is."""
        if not weights.isfinite().all():
            return math.nan
        if self.kind == "least-squares":
            return self._basis.lambda_max
        if weights.numel() <= DENSE_SIZE:
            return torch.linalg.eigvalsh(self.hessian(weights))[-1].item()
        products = _Products(self.hessian_product(weights), like=weights)
        try:
            return top_eigenvalues(products).values.item()
        except NotConverged as error:
            return error.reached.values[0].item()

    @cached_property
    def _basis(self) -> InputBasis:
        return input_basis(self.x)

    def newton_step(self, weights: Tensor, *, cutoff: float = CUTOFF) -> Tensor:
        """Return H⁺ ∇L, shape ``[C, d]``: one step of it solves least squares.

        For those it is ∇L Σ_x⁺, gradient descent on whitened inputs.
        """
        gradient = self.gradient(weights)
        if self.kind == "least-squares":
            _require_cutoff(cutoff)
            basis = self._basis
            kept = basis.vectors[:, basis.eigenvalues > cutoff * basis.lambda_max]
            return gradient @ (kept / basis.eigenvalues[: kept.shape[1]]) @ kept.T
        step = solve_in_range(self.hessian(weights), gradient.flatten(), cutoff=cutoff)
        return step.view_as(weights)

    def accuracy(self, weights: Tensor) -> float:
        """Return the fraction of samples classified correctly; NaN for a continuous target."""
        if self.kind == "logistic":
            return ((self.x @ weights.T > 0) == (self.targets > 0.5)).double().mean().item()
        if self.targets.shape[1] == 1:
            return math.nan
        outputs = self.x @ weights.T
        return (outputs.argmax(dim=1) == self.targets.argmax(dim=1)).double().mean().item()

    def separates(self, weights: Tensor) -> bool:
        """Return whether every sample is strictly on the right side.

        Then a·W, a → ∞, brings a logistic or softmax loss as near to 0 as one likes: 0 is the
        infimum, and no weights attain it.
        """
        outputs = self.x @ weights.T
        if self.kind == "logistic":
            margins = outputs * (2 * self.targets - 1)
        else:
            right = (outputs * self.targets).sum(dim=1)
            margins = right - outputs.masked_fill(self.targets > 0.5, -math.inf).amax(dim=1)
        return bool((margins > 0).all())


@dataclass(frozen=True, eq=False)
class _Products:
    """A matrix known by its products, as `top_eigenvalues` takes it."""

    product: Callable[[Tensor], Tensor]
    like: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.like.numel(), self.like.numel()))

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device

    def __matmul__(self, vector: Tensor, /) -> Tensor:
        return self.product(vector)


@dataclass(frozen=True, eq=False)
class Minimum:
    """The infimum of a loss over all weights.

    Attributes:
        loss: The infimum.
        weights: Where the search ended, shape ``[C, d]``.
        separable: These weights classify every sample correctly, so the infimum of a logistic or
            softmax loss is 0 and nothing attains it.
        decrements: ∇Lᵀ H⁺ ∇L at every step of the search, about twice what was left to gain. Near
            a minimiser they fall quadratically; by a steady factor of 1/e where the loss goes on
            falling along a direction to infinity. Empty for least squares.
    """

    loss: float
    weights: Tensor
    separable: bool
    decrements: tuple[float, ...]


def minimiser(x: Tensor, targets: Tensor) -> Tensor:
    """Return the least-squares weights W* = Yᵀ X⁺ᵀ of smallest norm, shape ``[C, d]``.

    Only directions that rounding cannot tell from zero get the weight 0: a cut-off above it would
    give the minimiser of another problem.

    Args:
        x: Inputs X, shape ``[n, d]``, float64.
        targets: Y, shape ``[n, C]``, float64.

    Example:
        >>> minimiser(torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double(), torch.ones(2, 1).double())
        tensor([[1., 0.]], dtype=torch.float64)
    """
    left, singular, right = _nonzero_svd(x)
    return ((targets.T @ left) / singular) @ right


def minimum(problem: LinearProblem) -> Minimum:
    """Return the infimum of a linear model's loss.

    Least squares: at the `minimiser`. Logistic and softmax losses are convex: Newton's method with
    halved steps from W = 0, on whitened inputs, until it has separated the classes (then the
    infimum is 0), or until there is less than 1e-13 to gain.

    Raises:
        RuntimeError: neither came true within 100 steps.

    Source:
        Boyd, Vandenberghe (2004), section 9.5; Albert, Anderson (1984) for separable data.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> minimum(LinearProblem(x, (x > 0).double(), "logistic")).separable
        True
    """
    if problem.kind == "least-squares":
        weights = minimiser(problem.x, problem.targets)
        return Minimum(problem.loss(weights), weights, False, ())
    # X = U S Vᵀ and z = √n U: any W gives the outputs of √n W S^-1 Vᵀ on x, and Σ_z = I.
    left, singular, right = _nonzero_svd(problem.x)
    root = math.sqrt(len(left))
    whitened = LinearProblem(root * left, problem.targets, problem.kind)
    loss, weights, separable, decrements = _newton(whitened)
    return Minimum(loss, root * (weights / singular) @ right, separable, decrements)


def _nonzero_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [n, r], S [r] and Vᵀ [r, d] of the singular values above rounding."""
    left, singular, right = torch.linalg.svd(x, full_matrices=False)
    rounding = max(x.shape) * torch.finfo(x.dtype).eps
    kept = singular > rounding * singular[0]
    return left[:, kept], singular[kept], right[kept]


def _newton(problem: LinearProblem) -> tuple[float, Tensor, bool, tuple[float, ...]]:
    """The fields of a `Minimum`, for inputs of κ = 1."""
    weights, decrements = problem.start(), []
    for _ in range(NEWTON_STEPS):
        step = problem.newton_step(weights)
        decrements.append((problem.gradient(weights) * step).sum().item())
        if decrements[-1] <= DECREMENT:
            return problem.loss(weights), weights, False, tuple(decrements)
        weights = _halved_until_lower(problem, weights, step, decrements[-1])
        if problem.separates(weights):
            return 0.0, weights, True, tuple(decrements)
    raise RuntimeError(f"no minimum within {NEWTON_STEPS} Newton steps; still {decrements[-1]:.1e}")


def _halved_until_lower(
    problem: LinearProblem, weights: Tensor, step: Tensor, decrement: float
) -> Tensor:
    """Take a Newton step, halved until the loss falls by a tenth of what its slope promises."""
    loss, part = problem.loss(weights), 1.0
    while problem.loss(weights - part * step) > loss - 0.1 * part * decrement:
        part /= 2
        if part < 1e-6:  # rounding is all that is left
            break
    return weights - part * step


def _require_cutoff(cutoff: float) -> None:
    require_in_range("cutoff", cutoff, low=0, high=1, open_high=True)


def _require_matrix(name: str, matrix: Tensor) -> None:
    if matrix.dim() != 2 or not matrix.numel():
        raise ValueError(f"{name} must be a non-empty matrix, got shape {tuple(matrix.shape)}")
    if matrix.dtype != torch.float64:
        raise TypeError(f"{name} must be float64, got {matrix.dtype}")
    if not matrix.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite numbers")


def _require_range_of_eigenvalues(lambda_max: float, lambda_min: float) -> None:
    require_in_range("lambda_min", lambda_min, low=0, open_low=True)
    require_in_range("lambda_max", lambda_max, low=lambda_min)
