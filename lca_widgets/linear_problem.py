r"""A linear model on data: its loss, its gradient, its Hessian, and where the loss is least.

A linear model has the outputs ``W x`` and, whatever its loss, the Hessian::

    H = 1/N Σ_n S_n ⊗ x_n x_nᵀ

over the weights W [C, d], flattened row by row, where S_n is the curvature of the loss in the C
outputs. For least squares S = I; for logistic and softmax regression S depends on W, and so does H.
All tensors are float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lca_widgets._checks import require_one_of
from lca_widgets.curvature import NotConverged, top_eigenvalues
from lca_widgets.linear_models import (
    CUTOFF,
    InputBasis,
    input_basis,
    input_moment,
    require_cutoff,
    require_matrix,
    solve_in_range,
)

__all__ = ["LOSSES", "LinearProblem", "Minimum", "minimiser", "minimum"]

LOSSES = ("least-squares", "logistic", "softmax")

DENSE_SIZE = 200  # above it λ_max of a Hessian is found from products, which is then faster
DECREMENT = 1e-13  # of Newton's method, in units of the loss: there is no more to gain
NEWTON_STEPS = 100


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
        require_matrix("x", self.x)
        require_matrix("targets", self.targets)
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
            require_cutoff(cutoff)
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
