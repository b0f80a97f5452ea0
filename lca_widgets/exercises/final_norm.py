"""Questions of notebook 08: what a normalisation before the classifier does, and what not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lca_widgets.exercises.exercise import Choice, Function, Number, Vector, exercise

Matrix = npt.NDArray[np.float64]

# Test errors of five seeds, in per cent.
_ERRORS = (6.5, 6.9, 6.4, 7.0, 6.7)


@exercise(
    "08.1",
    "A bound",
    level=1,
    question=r"""
    LastBN, as it starts (γ = 1, β = 0), stands before a classifier of 64 features. Above which
    number can $\lambda_{\max}(\Sigma_x)$ not be, however deep the network is?
    """,
    hints=(
        "What is the mean square of each feature behind BN?",
        "The eigenvalues are not negative, and their sum is the trace.",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "That is the mean of the eigenvalues: the *smallest* that the largest can be.": lambda: 1,
    },
)
def a_bound() -> float:
    r"""The trace is $d$, so that no eigenvalue is larger.

    It would be $d$ if all features were the same up to their sign.
    """
    return 64


@exercise(
    "08.2",
    "The matched constant",
    level=1,
    question=r"""
    $\lambda_{\max}(\Sigma_x)$ is 800 without a remedy, and 8 with LastBN. By which constant must
    the features be divided to have the same $\lambda_{\max}$?
    """,
    hints=(
        r"By what is $\Sigma_x$ divided when $x$ is divided by $c$?",
        r"$c = \sqrt{800/8}$.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That is what $\Sigma_x$ is divided by; the features are divided by its root.": (
            lambda: 100
        ),
    },
)
def the_matched_constant() -> float:
    """A second moment is divided by the square of the constant."""
    return math.sqrt(800 / 8)


@exercise(
    "08.3",
    "κ behind the constant",
    level=1,
    question=r"""
    $\kappa_{50}(\Sigma_x)$ is 90. The features are divided by 10. What is it then?
    """,
    hints=(
        r"$\kappa_{50}$ is a ratio of two eigenvalues of one matrix.",
        "Both are divided by 100.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That is what happens to an eigenvalue.": lambda: 0.9,
        "A ratio knows no scale.": lambda: 9,
    },
)
def kappa_behind_the_constant() -> float:
    """The ratio stays: what the constant gains, it gains by the size alone."""
    largest, median = 90.0 / 10**2, 1.0 / 10**2
    return largest / median


@exercise(
    "08.4",
    "What the constant is",
    level=2,
    question=r"""
    The features are divided by 5, and everything is trained with rate 1 by plain gradient descent.
    Section 2: which rate does the classifier's *weight* have, started at $W/5$, in the network
    without the division that trains in exactly the same way?
    """,
    hints=(
        r"With $W' = W/c$ the two compute the same function.",
        r"The gradient of $W$ has a factor $1/c$, and $W'$ is $W$ divided by $c$ once more.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That is one of two factors: the gradient's. $W'$ is $W/c$, too.": lambda: 0.2,
        "The division makes the classifier slower, not faster.": lambda: 25,
    },
)
def what_the_constant_is() -> float:
    r"""$\eta/c^2$.

    With the matched constant that is $\lambda_{\max}(\Sigma_{\hat x})/\lambda_{\max}(\Sigma_x)$
    times the rate: the classifier is trained as gently as its curvature asks for.
    """
    return 1 / 5**2


@exercise(
    "08.5",
    "A constant for every depth",
    level=2,
    question=r"""
    At 3 blocks the matched constant is 3. Roughly, which one is it at 48 blocks?
    """,
    hints=(
        r"$\lambda_{\max}(\Sigma_x)$ grows in proportion to the number of blocks.",
        "The constant grows with its square root, and LastBN's own λ_max hardly changes.",
    ),
    answer=Number(rtol=0.15),
    mistakes={
        r"So does $\lambda_{\max}$ grow; the constant is a root of it.": lambda: 48,
        "A constant that does not change is what section 4 tried: it costs.": lambda: 3,
    },
)
def a_constant_for_every_depth() -> float:
    r"""$3\cdot\sqrt{48/3} = 12$; measured: 11.2."""
    return 3 * math.sqrt(48 / 3)


@exercise(
    "08.6",
    "What it buys",
    level=2,
    question=r"""
    What is, by sections 6 and 7, the main thing that LastBN buys at this scale?
    """,
    hints=(
        "Compare the shaded ranges, then the table of section 7.",
        "What is left of the difference when each network has its own best rate?",
    ),
    answer=Choice(
        "about ten times larger rates are usable",
        "a better accuracy at the best rate",
        "faster training at small rates",
        "weights of smaller norm, and so less overfitting",
    ),
    mistakes={
        "At most a few points, by section 7, and the constant has them too.": (
            lambda: "a better accuracy at the best rate"
        ),
        "At small rates it is slower; section 6 prints it.": (
            lambda: "faster training at small rates"
        ),
        "The norm is smaller, but no cell shows less overfitting.": (
            lambda: "weights of smaller norm, and so less overfitting"
        ),
    },
)
def what_it_buys() -> str:
    """Freedom in the choice of the rate, and the speed of large ones."""
    return "about ten times larger rates are usable"


@exercise(
    "08.7",
    "Five seeds",
    level=2,
    question=r"""
    The authors train with five seeds. Suppose that the test errors are 6.5, 6.9, 6.4, 7.0 and
    6.7 %. Give mean and standard deviation (of a sample: divide by four) as a list.
    """,
    hints=(
        "`statistics.stdev` divides by n − 1, `numpy.std` by n unless told otherwise.",
        "The squared deviations from the mean, 6.7, add up to 0.26.",
    ),
    answer=Vector(2, rtol=0.02),
    mistakes={
        "That divides by five: the mean, too, was estimated from these five numbers.": lambda: [
            6.7,
            statistics.pstdev(_ERRORS),
        ],
        "That is the variance; take its root.": lambda: [6.7, statistics.variance(_ERRORS)],
    },
)
def five_seeds() -> list[float]:
    """The command's `report` prints the same two numbers."""
    return [statistics.fmean(_ERRORS), statistics.stdev(_ERRORS)]


@exercise(
    "08.8",
    "LastBN by hand",
    level=3,
    question=r"""
    Write `last_bn(X)` that takes the features of a batch as the rows of an array and returns what
    LastBN makes of them in training (ε = 0, γ = 1, β = 0). Give the function as your answer.
    """,
    hints=(
        "Which axis is the batch: over what is the mean taken?",
        "`X.mean(axis=0)` and `X.std(axis=0)`; BN divides by the std that divides by N.",
    ),
    answer=Function(
        (np.array([[1.0, 10.0], [3.0, 20.0], [5.0, 60.0]]),),
        (np.array([[0.0, 1.0, 2.0], [4.0, -1.0, 2.5]]),),
        rtol=0.001,
    ),
    mistakes={
        "That normalises every sample over its features: LayerNorm.": lambda: (
            lambda X: (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
        ),
        "That only centres.": lambda: lambda X: X - X.mean(axis=0),
        "That divides by the root mean square, without taking the mean off.": lambda: (
            lambda X: X / np.sqrt((X**2).mean(axis=0))
        ),
        "BN takes the standard deviation that divides by N, not by N − 1.": lambda: (
            lambda X: (X - X.mean(axis=0)) / X.std(axis=0, ddof=1)
        ),
    },
)
def last_bn_by_hand() -> Callable[[Matrix], Matrix]:
    """Every feature gets mean 0 and mean square 1 over the batch."""

    def last_bn(X: Matrix) -> Matrix:
        return (X - X.mean(axis=0)) / X.std(axis=0)

    return last_bn
