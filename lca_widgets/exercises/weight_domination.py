"""Questions of notebook 04: ratio and product, growing weights, frozen layers."""

from __future__ import annotations

import math
from collections.abc import Callable

from lca_widgets.exercises.exercise import Choice, Function, Number, exercise


@exercise(
    "04.1",
    "Two numbers, one diagnosis",
    level=1,
    question=r"""
    In a network with BN, a hidden layer has $\sigma_{\max}(G)/\sigma_{\max}(W) = 10^{-8}$ and
    $\sigma_{\max}(W)\,\sigma_{\max}(G) = 2$; at the start of the training the product was 1. What
    is the matter with it?
    """,
    hints=(
        "The table of section 1 has three rows.",
        "The product says what there is to gain from turning the weight.",
    ),
    answer=Choice("it has converged", "it is dominated", "no gradient reaches it"),
    mistakes={
        "A layer with nothing left to gain has a small product, too.": lambda: "it has converged",
        "A gradient that is gone stays gone however large the weight: the product would be "
        "small.": lambda: "no gradient reaches it",
    },
)
def diagnosis() -> str:
    """As much is to be gained from it as at the start, and it cannot move."""
    return "it is dominated"


@exercise(
    "04.2",
    "Ten times the rate",
    level=1,
    question=r"""
    One large step is taken at $\eta = 10^4$, in another network at $\eta = 10^5$. By which number
    is the second one's ratio $\sigma_{\max}(G)/\sigma_{\max}(W)$ *afterwards*, divided by the
    first one's?
    """,
    hints=(
        "The weights are ten times as large. What does that do to the gradient?",
        "Numerator and denominator change, both by a factor of ten. Section 4 has it measured.",
    ),
    answer=Number(rtol=0.05),
    mistakes={
        "By that the gradient is multiplied. The weight that it is compared with has grown, "
        "too.": lambda: 0.1,
        "The wrong way round: the larger the step, the smaller the ratio.": lambda: 100,
        "That is the product's factor.": lambda: 1,
    },
)
def ten_times_the_rate() -> float:
    r"""The gradient goes as $1/\eta$ and the weight as $\eta$, so the ratio as $1/\eta^2$."""
    return 10.0**-2


@exercise(
    "04.3",
    "Pythagoras",
    level=1,
    question=r"""
    A weight under BN has $\lVert W\rVert = 11$ and $\lVert G\rVert = 0.5$. What is its norm after
    one step at $\eta = 40$?
    """,
    hints=(
        "Weight and gradient are at right angles.",
        r"$\lVert W_1\rVert^2 = \lVert W_0\rVert^2 + \eta^2\lVert G_0\rVert^2$.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "They are not parallel: lengths at right angles do not add.": lambda: 31,
        "That is the difference: the weight cannot shrink.": lambda: math.sqrt(20**2 - 11**2),
        "That is the square of it.": lambda: 11**2 + 20**2,
    },
)
def pythagoras() -> float:
    r"""$\sqrt{11^2 + (40\cdot0.5)^2}$."""
    weight, gradient, rate = 11.0, 0.5, 40.0
    return math.hypot(weight, rate * gradient)


@exercise(
    "04.4",
    "Name the pattern",
    level=1,
    question=r"""
    Five layers; the second and the fourth, counted from the input, are frozen. What is the run
    called?
    """,
    hints=("The first digit is the first layer's; 0 is frozen.",),
    answer=Choice("10101", "01010", "11010", "01011"),
    mistakes={"1 stands for *trained*.": lambda: "01010"},
)
def name_the_pattern() -> str:
    """A digit for each layer, 1 where it is trained."""
    return "".join("0" if layer in (2, 4) else "1" for layer in range(1, 6))


@exercise(
    "04.5",
    "Which layer is missed most?",
    level=1,
    question=r"""
    One of five layers is frozen, the others are trained for 40 steps (section 6, BN without γ and
    β). Which pattern ends with the highest loss?
    """,
    hints=(
        "The second lab shows it: freeze one layer after the other.",
        "For which layer alone does the *size* of its weight count?",
    ),
    answer=Choice("01111", "10111", "11011", "11101", "11110"),
    mistakes={
        "The first layer is missed, but another one more: try all five in the lab.": (
            lambda: "01111"
        ),
    },
)
def missed_most() -> str:
    """The output layer's: of all weights its size alone counts, as no BN takes it out again.

    The loss falls towards zero only as the outputs grow. With the last layer frozen they do so no
    further than the features before it come to point the right way.
    """
    from lca_widgets.experiments.freezing import FreezingSettings, frozen_training

    candidates = ("01111", "10111", "11011", "11101", "11110")
    losses = {
        trained: sum(
            frozen_training(FreezingSettings(trained, seed=seed, steps=40)).loss
            for seed in range(3)
        )
        for trained in candidates
    }
    return max(losses, key=losses.__getitem__)


@exercise(
    "04.6",
    "The step after",
    level=2,
    question=r"""
    The same weight, $\lVert W\rVert = 11$ and $\lVert G\rVert = 0.5$, takes one step at
    $\eta = 1000$. Suppose that $s = \lVert W\rVert\lVert G\rVert$ is as large in its new direction
    as in the old one. By which part of itself does a *second* step, now at $\eta = 1$, turn it?
    """,
    hints=(
        r"What is $\lVert W_1\rVert$? And what is $\lVert G_1\rVert = s/\lVert W_1\rVert$?",
        r"$\eta\,\lVert G_1\rVert/\lVert W_1\rVert = \eta\,s/\lVert W_1\rVert^2$.",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        "That is the gradient's size; asked is the part of the weight.": lambda: (
            5.5 / math.hypot(11, 500)
        ),
        "That is the first weight's: it has grown since.": lambda: 0.5 / 11,
        "The gradient has shrunk as well, by as much as the weight has grown.": lambda: (
            0.5 / math.hypot(11, 500)
        ),
    },
)
def the_step_after() -> float:
    r"""$5.5/(11^2 + 500^2)\approx 2\cdot10^{-5}$: some 45 000 such steps for one radian."""
    weight, gradient, large, rate = 11.0, 0.5, 1000.0, 1.0
    s = weight * gradient
    return rate * s / (weight**2 + large**2 * gradient**2)


@exercise(
    "04.7",
    "The norm, step by step",
    level=2,
    question=r"""
    Write `norm(steps, rate, s, start)`: the norm of a weight under BN after so many steps of
    gradient descent at `rate`, from the norm `start`, if $s = \lVert W\rVert\lVert G\rVert$ stays
    the same. Give the function as your answer.
    """,
    hints=(
        "Repeat Pythagoras, with the gradient that belongs to the norm so far.",
        r"$\lVert W_{t+1}\rVert^2 = \lVert W_t\rVert^2 + \eta^2 s^2/\lVert W_t\rVert^2$.",
    ),
    answer=Function(
        (0, 1.0, 2.0, 3.0), (1, 10.0, 2.0, 3.0), (50, 0.1, 5.0, 1.0), (20, 100.0, 1.0, 10.0),
        rtol=0.001,
    ),
    mistakes={
        "The gradient's norm is s divided by the weight's.": lambda: (
            lambda steps, rate, s, start: math.sqrt(start**2 + steps * rate**2 * s**2)
        ),
        "The gradient falls as the weight grows: it is not the first one's at every step.": (
            lambda: lambda steps, rate, s, start: math.sqrt(
                start**2 + steps * (rate * s / start) ** 2
            )
        ),
    },
)  # fmt: skip
def step_by_step() -> Callable[[int, float, float, float], float]:
    """Pythagoras again and again; the first step does nearly all of it where the rate is large."""

    def norm(steps: int, rate: float, s: float, start: float) -> float:
        square = start**2
        for _ in range(steps):
            square += rate**2 * s**2 / square
        return math.sqrt(square)

    return norm


@exercise(
    "04.8",
    "How slowly it grows",
    level=3,
    question=r"""
    Let $s = \lVert W\rVert\lVert G\rVert$ stay the same for a whole training at a constant rate
    $\eta$. For large $t$ the norm grows as a power of the number of steps,
    $\lVert W_t\rVert\propto t^p$. What is $p$?
    """,
    hints=(
        r"""Put $\lVert G\rVert = s/\lVert W\rVert$ into Pythagoras: what does
        $\lVert W\rVert^2$ grow by at a step?""",
        r"With $q = \lVert W\rVert^2$: $\dot q = \eta^2 s^2/q$. Separate the variables.",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        r"Either that is the power of $q = \lVert W\rVert^2$, or you kept the gradient's norm "
        "constant: it falls as the weight grows.": lambda: 0.5,
        "Steps at right angles do not add up like that.": lambda: 1.0,
    },
)
def how_slowly() -> float:
    r"""$q\,\dot q = \eta^2s^2$, so $q^2 = 2\eta^2s^2t$, and $\lVert W\rVert = q^{1/2}$.

    So $\eta/\lVert W\rVert^2$ falls as $t^{-1/2}$: gradient descent under BN brings its own
    schedule.
    """
    return 0.25


@exercise(
    "04.9",
    "The balance of weight decay",
    level=3,
    question=r"""
    With weight decay λ, and *if* $s$ stays the same (in a network that learns it falls, and the
    balance with it), the norm tends to a value at which shrinking and growth balance. Write
    `balance(rate, decay, s)` that returns it, for any rate and decay with $\eta\lambda < 1$.
    """,
    hints=(
        r"""At the balance $q = \lVert W\rVert^2$ is the same before and after a step:
        $q = (1-\eta\lambda)^2 q + \eta^2 s^2/q$.""",
        r"Solve for $q^2$; $1 - (1-\eta\lambda)^2 = \eta\lambda(2-\eta\lambda)$.",
    ),
    answer=Function((0.1, 1e-3, 1.0), (1.0, 0.01, 2.0), (1.0, 0.5, 3.0), rtol=0.01),
    mistakes={
        r"That is $\lVert W\rVert^2$; asked is the norm.": lambda: (
            lambda rate, decay, s: math.sqrt(rate * s**2 / (decay * (2 - rate * decay)))
        ),
        "Good for a small ηλ only: keep its square.": lambda: (
            lambda rate, decay, s: (rate * s**2 / (2 * decay)) ** 0.25
        ),
    },
)
def balance_of_decay() -> Callable[[float, float, float], float]:
    r"""$q^2 = \eta s^2/\lambda(2-\eta\lambda)$, for small $\eta\lambda$ about $\eta s^2/2\lambda$.

    There the weight turns by $\eta s/q\approx\sqrt{2\eta\lambda}$ at each step, whatever $s$ is:
    rate and decay count only as a product.
    """

    def balance(rate: float, decay: float, s: float) -> float:
        square = rate * s**2 / (decay * (2 - rate * decay))
        return float(square**0.25)

    return balance
