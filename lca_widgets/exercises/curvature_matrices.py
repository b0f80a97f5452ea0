"""The exercises of notebook 02, curvature matrices and the Kronecker approximation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lca_widgets.curvature import Spectrum
from lca_widgets.exercises.exercise import Choice, Function, Number, Vector, exercise

Matrix = npt.NDArray[np.float64]


def _rows(seed: int, samples: int, width: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=(samples, width))


def _eigenvalues_at_start() -> tuple[float, ...]:
    from lca_widgets.experiments import CurvatureSettings, curvature_matrices

    [start] = curvature_matrices(CurvatureSettings(steps=0))
    return start.hessian.eigenvalues


@exercise(
    "02.1",
    "Hills in the landscape",
    level=1,
    question=r"""
    In the lab *Curvature matrices* press *Reset* first, then choose the preset **at the start**
    (seed 0). How many of the 44 eigenvalues of the Hessian $H$ are negative?
    """,
    hints=(
        "Read *What you see* below the charts.",
        "In the panel *Spectra* they are the line *H, λ < 0* at the right.",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "That is how many are positive; the remaining ones are zero.": lambda: sum(
            value > 0 for value in _eigenvalues_at_start()
        ),
    },
)
def negative_eigenvalues() -> int:
    """The loss of a network is not convex: in these directions it curves downwards.

    The GGN, F and M are sums of squares, and have no negative eigenvalue at any step.
    """
    return sum(value < 0 for value in _eigenvalues_at_start())


@exercise(
    "02.2",
    "Twins",
    level=1,
    question=r"""
    Move any control of the lab. Two of the four matrices are equal at *every* step, with every
    normalisation and activation. Which?
    """,
    hints=(
        "Compare the panels cell by cell, or read the two relative distances.",
        "The loss is softmax cross entropy. Section 3 says what follows from that.",
    ),
    answer=Choice("H and GGN", "GGN and F", "F and M", "H and F"),
    mistakes={
        "Near a minimum they come close, but look at step 0.": lambda: "H and GGN",
        "Only their labels differ, but that is a difference: look at step 0.": lambda: "F and M",
    },
)
def twins() -> str:
    """For softmax cross entropy ∇²l does not depend on the label, and equals E_y[δ δᵀ].

    So the GGN *is* the Fisher matrix.
    """
    return "GGN and F"


@exercise(
    "02.3",
    "Between the blocks",
    level=1,
    question=r"""
    A network's $F$ has three diagonal blocks, of $\lambda_{\max}$ 0.20, 0.35 and 0.25. Between
    which two numbers does $\lambda_{\max}(F)$ lie, whatever stands off the blocks?
    """,
    hints=(
        "The panel *λ_max between the bounds* draws both.",
        "$F$ is positive semi-definite: the largest block below, the sum above.",
    ),
    answer=Vector(2, rtol=0.001),
    mistakes={
        "The upper end is too low: blocks that point the same way add up.": lambda: [0.20, 0.35],
        "The lower end is too low: a vector inside one block is a vector.": lambda: [0.20, 0.80],
    },
)
def between() -> list[float]:
    """The largest block is reached by a vector that is zero elsewhere.

    With F = RᵀR the part of R of each layer contributes at most its own λ_max to ‖R v‖².
    """
    blocks = [0.20, 0.35, 0.25]
    return [max(blocks), sum(blocks)]


@exercise(
    "02.4",
    "Half of eight",
    level=2,
    question=r"""
    $\Sigma_x$ has the eigenvalues 10, 5, 1, 1 and $\Sigma_g$ has 4 and 1. What is $\kappa_{50}$
    of $\Sigma_x \otimes \Sigma_g$?
    """,
    hints=(
        "It has eight eigenvalues. Write them all down.",
        "40, 20, 10, 5, 4, 4, 1, 1: which is number $\\lceil 0.5 \\cdot 8 \\rceil$?",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "That is the product of the two κ_50, and κ_50 does not multiply.": lambda: (
            Spectrum([10.0, 5.0, 1.0, 1.0]).kappa(0.5) * Spectrum([4.0, 1.0]).kappa(0.5)
        ),
        "That is κ, which does multiply. κ_50 reaches down to number 4 of 8 only.": lambda: 40.0,
    },
)
def half_of_eight() -> float:
    """The fourth of 40, 20, 10, 5, 4, 4, 1, 1 is 5, and 40 : 5 = 8. The factors' are 2 and 1."""
    x, g = Spectrum([10.0, 5.0, 1.0, 1.0]), Spectrum([4.0, 1.0])
    return x.kron(g).kappa(0.5)


@exercise(
    "02.5",
    "How far down?",
    level=2,
    question=r"""
    The last layer of a network has 16 inputs and 10 softmax outputs, and $\Sigma_x$ has full rank.
    What is the largest $p$ for which $\kappa_p(\Sigma_x \otimes \Sigma_g)$ is finite?
    """,
    hints=(
        "Which rank has Σ_g, and why?",
        "Of 160 eigenvalues, 16 · 9 are positive.",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "Softmax gradients sum to zero over the classes: Σ_g is singular.": lambda: 1.0,
        "Those are the zeros; we ask for the others.": lambda: 0.1,
    },
)
def how_far_down() -> float:
    """rank(Σ_x ⊗ Σ_g) = 16 · 9 = 144 of 160: κ_p reaches eigenvalue ⌈160·p⌉, so p ≤ 0.9."""
    inputs, classes = 16, 10
    return inputs * (classes - 1) / (inputs * classes)


@exercise(
    "02.6",
    "Rank of a sum",
    level=2,
    question=r"""
    A network of 672 weights tells 10 classes apart. From 64 samples, what is the largest rank that
    (first) $M$ and (second) the exact $F$, an expectation over all labels, can have?
    """,
    hints=(
        "$M$ is a sum of as many outer products as there are samples.",
        "The 10 label gradients of a sample span only 9 dimensions: their weighted sum is zero.",
    ),
    answer=Vector(2, rtol=0.001),
    mistakes={
        "F sums over labels, too: a sample contributes more than one direction.": lambda: [64, 64],
        "Ten gradients per sample, but they are linearly dependent.": lambda: [64, 640],
        "Neither can exceed what its terms span. Count the terms.": lambda: [672, 672],
    },
)
def rank_of_a_sum() -> list[int]:
    """M adds up 64 matrices of rank one. F adds 64 · 9 = 576 of them, still below 672."""
    samples, classes, weights = 64, 10, 672
    return [min(samples, weights), min(samples * (classes - 1), weights)]


@exercise(
    "02.7",
    "When independence fails",
    level=2,
    question=r"""
    Four samples, equally likely: $x_n = e_n$ and $g_n = e_n$, the unit vectors of $\mathbb R^4$.
    Once you know $x$ you know $g$. By which factor is $\lambda_{\max}(\Sigma_x \otimes \Sigma_g)$
    off, that is, what is its ratio to $\lambda_{\max}$ of the exact block?
    """,
    hints=(
        "The exact block is ¼ Σ of four projections onto orthogonal vectors.",
        "Σ_x = Σ_g = I/4.",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "The other way round: Kronecker over exact.": lambda: 4.0,
        "That is λ_max of the Kronecker product; divide by the exact block's, 1/4.": lambda: 1 / 16,
    },
)
def dependence() -> float:
    """The exact block is ¼ times a projection of rank 4; Σ_x ⊗ Σ_g is I/16, of rank 16.

    It says λ_max = 1/16 where 1/4 is true, and κ_50 = 1 where κ_50 is infinite: it makes the block
    look smaller and better conditioned than it is.
    """
    rows = np.stack([np.kron(e, e) for e in np.eye(4)])
    exact = np.linalg.eigvalsh(rows.T @ rows / 4).max()
    moment = np.eye(4) / 4
    return float(np.linalg.eigvalsh(np.kron(moment, moment)).max() / exact)


def _kronecker_lambda_max(x: Matrix, g: Matrix) -> float:
    largest = (np.linalg.eigvalsh(rows @ rows.T / len(rows)).max() for rows in (x, g))
    return float(np.prod(list(largest)))


def _undivided_lambda_max(x: Matrix, g: Matrix) -> float:
    return float(np.linalg.eigvalsh((x @ x.T) * (g @ g.T)).max())


@exercise(
    "02.8",
    "A block without building it",
    level=3,
    question=r"""
    Write a function `block_lambda_max(x, g)`: inputs $x_n$, shape $[N, d_{in}]$, and output
    gradients $g_n$, shape $[N, d_{out}]$, as numpy arrays; it returns $\lambda_{\max}$ of the exact
    block $\frac1N\sum_n (x_n \otimes g_n)(x_n \otimes g_n)^\top$ *without* building a matrix of
    size $d_{in} d_{out}$. One test calls it with $d_{in} = d_{out} = 2500$ and $N = 6$.
    """,
    hints=(
        "$R^\\top R$ and $R R^\\top$ have the same non-zero eigenvalues.",
        "$(x_m \\otimes g_m)\\cdot(x_n \\otimes g_n) = (x_m \\cdot x_n)(g_m \\cdot g_n)$.",
        "So take `(x @ x.T) * (g @ g.T) / N`, entry by entry.",
    ),
    answer=Function(
        (_rows(0, 20, 4), _rows(1, 20, 3)),
        # A block of this size exceeds the address space: building it is refused, never tried.
        (_rows(2, 6, 2500), _rows(3, 6, 2500)),
        rtol=1e-6,
    ),
    mistakes={
        "That is the Kronecker approximation λ_max(Σ_x)·λ_max(Σ_g).": lambda: _kronecker_lambda_max,
        "Divide by the number of samples.": lambda: _undivided_lambda_max,
    },
)
def block_lambda_max() -> Callable[[Matrix, Matrix], float]:
    """The Gram matrix of the rows x_n ⊗ g_n is the product of two Gram matrices, entry by entry.

    It is of size N × N, whatever the layer's size.
    """

    def solution(x: Matrix, g: Matrix) -> float:
        gram = (x @ x.T) * (g @ g.T) / len(x)
        return float(np.linalg.eigvalsh(gram).max())

    return solution


def _step_not_averaged(weight: Matrix, x: Matrix, g: Matrix, s: float) -> Matrix:
    return weight - s * g.T @ x


def _step_upwards(weight: Matrix, x: Matrix, g: Matrix, s: float) -> Matrix:
    return weight + s * g.T @ x / len(x)


@exercise(
    "02.9",
    "Solve the layer's problem",
    level=3,
    question=r"""
    A layer $h = W x$ is given targets $\hat h_n = h_n - s\,g_n$. Write a function
    `solve_layer(weight, x, g, s)` that returns the minimiser of
    $\tfrac12\,\mathbb E\lVert\hat h - W x\rVert^2$, *not* one gradient step; $\Sigma_x$ is
    invertible. Shapes: `weight` $[d_{out}, d_{in}]$, `x` $[N, d_{in}]$, `g` $[N, d_{out}]$.
    """,
    hints=(
        "Set the gradient E[(W x − ĥ) xᵀ] to zero and put h_n = W_old x_n in.",
        "$W = W_{old} - s\\,\\mathbb E[g x^\\top]\\,\\Sigma_x^{-1}$.",
    ),
    answer=Function(
        (_rows(4, 3, 4), _rows(5, 30, 4), _rows(6, 30, 3), 0.5),
        (_rows(7, 2, 5), _rows(8, 40, 5), _rows(9, 40, 2), 0.1),
        rtol=1e-6,
    ),
    mistakes={
        "That is one gradient step, the back-propagation step itself.": lambda: (
            lambda weight, x, g, s: weight - s * g.T @ x / len(x)
        ),
        "Average over the samples.": lambda: _step_not_averaged,
        "The targets lie downhill: mind the sign.": lambda: _step_upwards,
    },
)
def solve_layer() -> Callable[[Matrix, Matrix, Matrix, float], Matrix]:
    """The solution is the back-propagation step, preconditioned by Σ_x⁻¹.

    That is half of K-FAC, whose other half is Σ_g⁻¹.
    """

    def solution(weight: Matrix, x: Matrix, g: Matrix, s: float) -> Matrix:
        step = np.linalg.solve(x.T @ x / len(x), x.T @ g / len(x))
        return weight - s * step.T

    return solution
