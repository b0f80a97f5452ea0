"""Questions of notebook 05: plateaus, and what rescaled weights prove."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lca_widgets.exercises.exercise import Choice, Function, Number, exercise

__all__ = ["AnonymousRun", "anonymous_runs"]

# What the runs without names are, and how each was made.
_RUNS = {
    "P": ("real minimum", {"learning_rate": 1.0}),
    "Q": ("dead network", {"norm": "batch"}),
    "R": ("false minimum", {}),
}


@dataclass(frozen=True)
class AnonymousRun:
    """The numbers of a run whose name and loss are not told, as powers of ten.

    Attributes:
        ratio: σ_max(∂L/∂W) / σ_max(W) of the hidden layers.
        product: σ_max(W)·σ_max(∂L/∂W).
    """

    ratio: str
    product: str


def anonymous_runs() -> dict[str, AnonymousRun]:
    """Train the three networks of "Which is which?" and return their numbers by name.

    Example:
        >>> list(anonymous_runs())
        ['P', 'Q', 'R']
    """
    from lca_widgets.experiments.false_minimum import FalseMinimumSettings, false_minimum

    runs = {}
    for name, (_, how) in _RUNS.items():
        *_, end = false_minimum(FalseMinimumSettings(seed=7, samples=256, every=10_000, **how))  # type: ignore[arg-type] # each of its own type
        runs[name] = AnonymousRun(
            _power(end.hidden("domination")), _power(end.hidden("sensitivity"))
        )
    return runs


def _power(size: float) -> str:
    """The nearest power of ten: what is the same on every processor."""
    if size < 1e-15:
        return "below 1e-15"
    return f"about 1e{round(float(np.log10(size))):+03d}"


@exercise(
    "05.1",
    "Which is which? (1)",
    level=1,
    question=r"""
    Look at the ratio and the product of the runs P, Q and R at the end of section 4. Which of them
    stands in a *false* minimum?
    """,
    hints=(
        "It has much to gain, and cannot move.",
        "A ratio that is tiny, and a product that is not.",
    ),
    answer=Choice("P", "Q", "R"),
    mistakes={
        "Its product is small: there is little to gain.": lambda: "P",
        "Its product is nothing, too: no gradient comes back.": lambda: "Q",
    },
)
def the_false_one() -> str:
    """The only one whose product is as large as at the start of a training."""
    return next(name for name, (state, _) in _RUNS.items() if state == "false minimum")


@exercise(
    "05.2",
    "Which is which? (2)",
    level=1,
    question="And which of the runs P, Q and R is dead: which one would rescaling not help?",
    hints=("Rescaling multiplies the gradient. What must there be to multiply?",),
    answer=Choice("P", "Q", "R"),
    mistakes={
        "It has learned its samples; it needs no help. Its product is small, but there.": (
            lambda: "P"
        ),
        "Rescaling does help this one.": lambda: "R",
    },
)
def the_dead_one() -> str:
    """No gradient comes back, so there is nothing for a factor to make larger."""
    return next(name for name, (state, _) in _RUNS.items() if state == "dead network")


@exercise(
    "05.3",
    "Divide by a hundred",
    level=1,
    question=r"""
    A layer under BN has $\sigma_{\max}(W) = 300$ and $\sigma_{\max}(G) = 0.004$. Its weight is
    divided by 100. What is $\sigma_{\max}(G)$ afterwards?
    """,
    hints=(r"$G(aW) = G(W)/a$, here with $a = 1/100$.",),
    answer=Number(rtol=0.01),
    mistakes={
        "Under a normalisation the gradient goes the other way: smaller weights, larger "
        "gradient.": lambda: 0.00004,
        "That is the product, which stays what it is.": lambda: 1.2,
    },
)
def divide_by_hundred() -> float:
    """The product stays 1.2, and the weight is 3 now."""
    product = 300 * 0.004
    return product / 3


@exercise(
    "05.4",
    "Why not just a lower rate?",
    level=1,
    question=r"""
    On the plateau of the first lab, *Lower the rate* leaves the loss where it is, to three digits
    and more. Why?
    """,
    hints=("What is the ratio there, and what does a rate of 1 make of it?",),
    answer=Choice(
        "the network is at a minimum",
        "each step turns the weights by almost nothing",
        "the steps jump over the minimum",
    ),
    mistakes={
        "Then rescaling would not help either: it does not change the function.": (
            lambda: "the network is at a minimum"
        ),
        "Steps that are too long would become better at a lower rate.": (
            lambda: "the steps jump over the minimum"
        ),
    },
)
def why_not_lower() -> str:
    r"""The ratio is about $10^{-11}$: a step at η = 1 turns the weights by that part of themselves.

    The steps were too long once. Now they are far too short.
    """
    return "each step turns the weights by almost nothing"


@exercise(
    "05.5",
    "Another way out",
    level=2,
    question=r"""
    All hidden weights of a network on its plateau are $10^5$ times larger than at the start.
    Dividing them by $10^5$ and training at η = 1 works. One could also leave the weights as they
    are, and take a larger rate. At which rate does the first step turn every weight by the same
    angle as the rescaled network's does at η = 1?
    """,
    hints=(
        r"A step turns a weight by $\eta\lVert G\rVert/\lVert W\rVert$.",
        r"$\lVert G\rVert$ is $10^5$ times smaller, and $\lVert W\rVert$ is $10^5$ times larger.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That makes up for the smaller gradient. The weight that it turns is longer, too.": (
            lambda: 1e5
        ),
        "A *larger* rate is needed.": lambda: 1e-10,
    },
)
def another_way_out() -> float:
    r"""$\eta/\lVert W\rVert^2$ is what counts: $(10^5)^2$.

    A false minimum is a matter of scale between rate and weights, and either can be changed.
    """
    factor = 1e5
    return factor**2


@exercise(
    "05.6",
    "The product, in code",
    level=2,
    question=r"""
    Write `product(W, G)` for two NumPy matrices of the same shape: it returns
    $\sigma_{\max}(W)\,\sigma_{\max}(G)$. Give the function as your answer.
    """,
    hints=(
        "`np.linalg.norm` has an argument that asks for the largest singular value.",
        "`np.linalg.norm(W, 2)`; without the 2 it is the Frobenius norm.",
    ),
    answer=Function(
        (np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[0.0, 1.0], [2.0, 0.0]])),
        (np.array([[1.0, 2.0, 3.0]]), np.array([[0.5, 0.0, -0.5]])),
        (np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])),
        rtol=0.001,
    ),
    mistakes={
        "Those are Frobenius norms, of all singular values together.": lambda: (
            lambda W, G: np.linalg.norm(W) * np.linalg.norm(G)
        ),
        "That is the largest singular value of their product; asked is the product of two.": (
            lambda: lambda W, G: np.linalg.norm(W @ G.T, 2)
        ),
    },
)
def the_product() -> Callable[..., float]:
    """The norm that `np.linalg.norm` calls 2."""
    matrix = npt.NDArray[np.float64]

    def product(W: matrix, G: matrix) -> float:
        return float(np.linalg.norm(W, 2) * np.linalg.norm(G, 2))

    return product


@exercise(
    "05.7",
    "Who survives?",
    level=2,
    question=r"""
    Some steps at $\eta = 10^6$, then rescaled weights and an ordinary rate: with which
    normalisation (all without γ and β) does the network learn?
    """,
    hints=(
        "Section 7 has tried all of them.",
        "Which of them keeps each unit's outputs apart, from sample to sample?",
    ),
    answer=Choice("batch", "layer", "group", "weight", "all of them"),
    mistakes={
        "All of them stall. But what a large step has done to the weights' directions, a factor "
        "does not undo.": lambda: "all of them",
    },
)
def who_survives() -> str:
    """Only batch normalisation gives each unit mean 0 and spread 1 *over the samples*.

    So whatever directions the weights have got, the samples stay apart.
    """
    return "batch"


@exercise(
    "05.8",
    "Open for how many?",
    level=3,
    question=r"""
    Under BN without γ and β a unit's outputs over a batch of $N = 512$ samples have mean 0 and
    variance 1. What is the *smallest* share of samples for which such a unit can be positive?
    """,
    hints=(
        "Can it be positive for none, if the mean is zero and not all are zero?",
        "One value large and all others slightly negative: does that have mean 0 and variance 1?",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        "With mean zero and variance one, some value must be above zero.": lambda: 0,
        "A symmetric distribution would have that. It need not be symmetric.": lambda: 0.5,
    },
)
def open_for_how_many() -> float:
    r"""One sample at $\sqrt{N-1}$ and the others at $-1/\sqrt{N-1}$: mean 0, variance 1.

    For none it cannot be: values that are never positive and have mean zero are all zero.
    """
    n = 512
    outputs = np.full(n, -1 / np.sqrt(n - 1))
    outputs[0] = np.sqrt(n - 1)
    assert abs(outputs.mean()) < 1e-12
    assert abs(outputs.var() - 1) < 1e-12
    return float((outputs > 0).mean())
