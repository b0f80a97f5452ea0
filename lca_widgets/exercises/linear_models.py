"""Questions of notebook 01: step sizes, κ, preparations, and curvature that changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lca_widgets.exercises.exercise import Function, Number, exercise

Array = npt.NDArray[np.float64]

_RANDOM = np.random.default_rng(0)
# Small regressions whose features differ up to a hundredfold in scale: inputs, target, weights.
_REGRESSIONS = tuple(
    (
        _RANDOM.standard_normal((samples, len(scales))) * scales,
        _RANDOM.standard_normal(samples),
        _RANDOM.standard_normal(len(scales)),
    )
    for samples, scales in ((12, [1.0, 100.0]), (9, [10.0, 1.0, 0.1]))
)


@exercise(
    "01.1",
    "The largest rate",
    level=1,
    question=r"""
    A quadratic loss has the Hessian eigenvalues 40, 8 and 0.5. Below which learning rate does
    gradient descent converge from every start?
    """,
    hints=(
        r"In the first lab, drag $\eta\lambda_{\max}$ slowly across 2.",
        r"Each direction needs $|1-\eta\lambda| < 1$. Which direction is the first to refuse?",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That is $1/\lambda_{\max}$: stable, but half of the limit.": lambda: 1 / 40,
        r"That is $2/\lambda_{\min}$: the steep direction has blown up long before.": lambda: 4,
        r"That is the *best* fixed rate, $2/(\lambda_{\max}+\lambda_{\min})$; the limit is above "
        "it.": lambda: 2 / 40.5,
    },
)
def largest_rate() -> float:
    r"""The steepest direction decides: $|1-40\,\eta| < 1$ means $\eta < 2/40$."""
    return 2 / 40


@exercise(
    "01.2",
    "Directions that no data reach",
    level=1,
    question=r"""
    In the second lab choose *digits* and *raw*. The images have 64 pixels, and the model a constant
    input beside them. What is the rank of the uncentred $\Sigma_x$ of all 65 inputs at the cut-off
    $10^{-12}$: in how many directions can a gradient step move the weights at all?
    """,
    hints=(
        "The sentence *What you see* counts the directions.",
        "Three pixels are 0 in every image. What do they add to the rank?",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "That is the number of inputs. Some pixels are 0 in every image.": lambda: 65,
        "That is the rank of the 64 pixels alone. The constant input adds a direction of its "
        "own.": lambda: 61,
    },
)
def directions_with_data() -> float:
    """Of 65 inputs three pixels are always 0: 61 directions of pixels, and the constant."""
    from lca_widgets.data import table
    from lca_widgets.linear_models import input_basis, with_constant

    return input_basis(with_constant(table("digits").x), cutoff=1e-12).rank


@exercise(
    "01.3",
    "What a mean costs",
    level=2,
    question=r"""
    One feature has mean 5 and variance 1; beside it stands the constant input 1. What is
    $\kappa(\Sigma_x)$ of these two inputs, raw? (Centred it would be 1.)
    """,
    hints=(
        r"$\Sigma_x$ is the *uncentred* second moment: which four numbers does it hold?",
        (
            r"$\mathbb E[x^2] = 5^2 + 1$, so "
            r"$\Sigma_x = \begin{pmatrix}26 & 5\\ 5 & 1\end{pmatrix}$. "
            "Its trace is the sum of the eigenvalues, its determinant their product."
        ),
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That is $26/1$, the ratio of the diagonal: eigenvalues are needed.": lambda: 26,
        r"That is $\lambda_{\max}$; divide it by $\lambda_{\min}$.": (
            lambda: (27 + math.sqrt(725)) / 2
        ),
    },
)
def cost_of_a_mean() -> float:
    r"""Trace 27, determinant 1: $\lambda = (27 \pm \sqrt{27^2-4})/2$, and κ is their ratio.

    A mean of five standard deviations costs a factor of 727.
    """
    moment = np.array([[26.0, 5.0], [5.0, 1.0]])
    low, high = np.linalg.eigvalsh(moment)
    return float(high / low)


@exercise(
    "01.4",
    "Counting steps",
    level=2,
    question=r"""
    $\kappa = 1000$. With the best fixed step size, how many steps of gradient descent divide the
    *error* along the slowest direction by 1000?
    """,
    hints=(
        r"A step multiplies it by $(\kappa-1)/(\kappa+1) \approx 1 - 2/\kappa$.",
        r"Solve $\big(\tfrac{\kappa-1}{\kappa+1}\big)^t = 10^{-3}$ for $t$ with logarithms.",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        "That divides the *loss* by 1000. The loss is a square: the error takes twice as "
        "long.": lambda: math.log(1e3) * 1000 / 4,
        r"That is the heavy ball's count, with $\sqrt\kappa$.": (
            lambda: math.log(1e3) / math.log((math.sqrt(1e3) + 1) / (math.sqrt(1e3) - 1))
        ),
        r"That would be $\eta = 1/\lambda_{\max}$, half of the best step size.": (
            lambda: math.log(1e3) * 1000
        ),
    },
)
def count_steps() -> float:
    r"""$t = \ln 1000 / \ln\tfrac{1001}{999} \approx \tfrac{\kappa}{2}\ln 1000$."""
    return math.log(1000) / math.log(1001 / 999)


@exercise(
    "01.5",
    "Softmax at its start",
    level=2,
    question=r"""
    Softmax regression with $C = 10$ classes starts at $W = 0$. Up to which multiple of
    $1/\lambda_{\max}(\Sigma_x)$ is a step size stable *there*?
    """,
    hints=(
        (
            r"$H = \mathbb E[S \otimes x x^\top]$ with $S = \mathrm{diag}(p) - p p^\top$. "
            r"What is $p$ at $W = 0$?"
        ),
        (
            r"$S = \tfrac1C(I - \tfrac1C \mathbf 1\mathbf 1^\top)$ for every sample: its largest "
            r"eigenvalue is $1/C$."
        ),
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That is least squares, $S = I$.": lambda: 2,
        r"That is logistic regression, $S = \tfrac14$.": lambda: 8,
        r"That is safe *everywhere*, because $S \preceq \tfrac12 I$; at the start much more "
        "is.": lambda: 4,
        r"That is $1/\lambda_{\max}$ of the Hessian; the limit is twice that.": lambda: 10,
    },
)
def softmax_start() -> float:
    r"""$\lambda_{\max}(H) = \lambda_{\max}(\Sigma_x)/C$, so the limit is $2C$ in these units."""
    classes = 10
    curvature = np.eye(classes) / classes - np.ones((classes, classes)) / classes**2
    return float(2 / np.linalg.eigvalsh(curvature)[-1])


@exercise(
    "01.6",
    "The heavy ball's limit",
    level=3,
    question=r"""
    Write a function `limit(lambda_max, beta)` that returns the step size below which gradient
    descent with momentum $\beta$ is stable.
    """,
    hints=(
        (
            r"Along one direction $e_{t+1} = (1+\beta-\eta\lambda)\,e_t - \beta\,e_{t-1}$. Put "
            r"$e_t = z^t$."
        ),
        (
            r"$z^2 - (1+\beta-\eta\lambda)\,z + \beta = 0$. Beyond the limit one root passes $-1$: "
            "insert it."
        ),
    ),
    answer=Function((1.0, 0.0), (40.0, 0.5), (3.0, 0.9), rtol=1e-6),
    mistakes={
        "That is the limit without momentum; momentum widens it.": lambda: _plain_limit,
        r"$1-\beta$ stands in the *effective* step size $\eta/(1-\beta)$ of slow directions; here "
        "the steepest one decides.": lambda: _narrowed_limit,
    },
)
def heavy_ball_limit() -> Callable[[float, float], float]:
    r"""At $z = -1$: $1 + (1+\beta-\eta\lambda) + \beta = 0$, so $\eta = 2(1+\beta)/\lambda$."""

    def limit(lambda_max: float, beta: float) -> float:
        return 2 * (1 + beta) / lambda_max

    return limit


def _plain_limit(lambda_max: float, beta: float) -> float:
    return 2 / lambda_max


def _narrowed_limit(lambda_max: float, beta: float) -> float:
    return 2 * (1 - beta) / lambda_max


@exercise(
    "01.7",
    "One step",
    level=3,
    question=r"""
    Write a function `one_step(x, y, w)` that returns the least-squares weights *after one* step of
    size 1, preconditioned with $\Sigma_x^{-1}$, from the weights `w`. `x` has shape `[n, d]` and
    full rank, `y` shape `[n]`, `w` shape `[d]`; the loss is $\tfrac1{2n}\lVert Xw-y\rVert^2$. Where
    does it end?
    """,
    hints=(
        r"The gradient is $\tfrac1n X^\top(Xw-y)$, and $\Sigma_x = \tfrac1n X^\top X$.",
        (
            r"The step $s$ solves $\Sigma_x s = \nabla L$, a system of $d$ linear equations, for "
            "which NumPy has a function. Nothing needs to be inverted."
        ),
    ),
    answer=Function(*_REGRESSIONS, rtol=1e-6),
    mistakes={
        "That is a plain gradient step. Multiply the gradient with the inverse of "
        r"$\Sigma_x$.": lambda: _plain_step,
        r"The sign: descend.": lambda: _climbing_step,
    },
)
def one_preconditioned_step() -> Callable[[Array, Array, Array], Array]:
    r"""It ends at the minimiser, from every `w`.

    With $c = \tfrac1n X^\top y$ it is $w - \Sigma_x^{-1}(\Sigma_x w - c) = \Sigma_x^{-1} c$:
    neither the start nor κ plays a part.
    """

    def one_step(x: Array, y: Array, w: Array) -> Array:
        gradient = x.T @ (x @ w - y) / len(x)
        moment = x.T @ x / len(x)
        after: Array = w - np.linalg.solve(moment, gradient)
        return after

    return one_step


def _plain_step(x: Array, y: Array, w: Array) -> Any:
    return w - x.T @ (x @ w - y) / len(x)


def _climbing_step(x: Array, y: Array, w: Array) -> Any:
    gradient = x.T @ (x @ w - y) / len(x)
    return w + np.linalg.solve(x.T @ x / len(x), gradient)
