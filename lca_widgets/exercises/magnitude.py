"""Questions of notebook 03: factors per layer, gains, and the two scaling theorems."""

from __future__ import annotations

import math
from collections.abc import Callable

from lca_widgets.exercises.exercise import Choice, Function, Number, Vector, exercise


@exercise(
    "03.1",
    "Read the slope",
    level=1,
    question=r"""
    In the first lab as it opens (LeCun, ReLU, no normalisation): by which number is
    $\lambda_{\max}(\Sigma_x)$ multiplied from one layer to the next, towards the output? Read it
    off the chart or the sentence below it.
    """,
    hints=(
        "The sentence *What you see* says how many-fold it shrinks.",
        "What shrinks six-fold is multiplied by a number below one.",
    ),
    answer=Number(rtol=0.15),
    mistakes={
        "That is by how much it is *divided*; asked is what it is multiplied by.": lambda: 6,
        r"That is $d\sigma_w^2$, the factor of a linear layer: the ReLU takes another half.": (
            lambda: 1 / 3
        ),
        "That is the factor of the activations' size. Second moments are squares of it.": lambda: (
            1 / math.sqrt(6)
        ),
    },
)
def read_the_slope() -> float:
    r"""In a wide network $\tfrac12 d\,\sigma_w^2 = \tfrac12\cdot\tfrac13 = \tfrac16$.

    A single network scatters about it.
    """
    from lca_widgets.diagnosis import magnitude_factors
    from lca_widgets.experiments import MagnitudeSettings, magnitude

    start = next(magnitude(MagnitudeSettings(depth=20, init="lecun", steps=0)))
    forward, _ = magnitude_factors(start)
    return forward


@exercise(
    "03.2",
    "What BN repairs, and what not",
    level=1,
    question=r"""
    Choose the preset **LeCun with BN** in the first lab. At the start of the run (the dotted
    lines), what does BN make level from layer to layer?
    """,
    hints=(
        r"Compare the dotted lines of $\lambda_{\max}(\Sigma_x)$ and $\lambda_{\max}(\Sigma_g)$.",
        r"Set `steps` to 0, so that the lines drawn are those of the start, and drag the gain.",
    ),
    answer=Choice("both", "only Σ_x, of the inputs", "only Σ_g, of the gradients", "neither"),
    mistakes={
        "Look at λ_max(Σ_g) again: on the way to the input it grows, layer by layer.": (
            lambda: "both"
        ),
        "It is the other way round.": lambda: "only Σ_g, of the gradients",
        "The inputs' curve is level: drag the gain, and it stays where it is.": lambda: "neither",
    },
)
def what_bn_repairs() -> str:
    r"""BN fixes the scale of what goes forward.

    Backwards, each layer multiplies the mean square of the gradient by about
    $\pi/(\pi-1) \approx 1.47$, because BN divides by the spread about the mean.
    """
    return "only Σ_x, of the inputs"


@exercise(
    "03.3",
    "The gain of He",
    level=2,
    question=r"""
    `init="normal"` draws weights of variance $1/d$. Which `gain` keeps magnitudes constant in a
    ReLU network?
    """,
    hints=(
        r"Section 2: the factor per layer is $\tfrac12 d\,\sigma_w^2$. What is it for `normal`?",
        "The gain multiplies the weights; by what does that multiply their variance?",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        "That is what the *variance* must be multiplied by; the gain multiplies the weights.": (
            lambda: 2
        ),
        "The ReLU loses half of the square; the gain must win it back, so it is above one.": (
            lambda: 1 / math.sqrt(2)
        ),
        "That keeps a *linear* network constant. A ReLU halves the mean square.": lambda: 1,
    },
)
def gain_of_he() -> float:
    r"""$\tfrac12 \cdot \mathrm{gain}^2 = 1$ at $\sqrt 2$: variance $2/d$, He's initialisation."""
    return math.sqrt(2)


@exercise(
    "03.4",
    "How deep may it be?",
    level=2,
    question=r"""
    All weights are drawn from $N(0, 0.05^2)$; the layers are 256 wide, with ReLU. What is the
    largest number of layers through which the mean square of the activations shrinks by less than
    a factor of $10^6$?
    """,
    hints=(
        r"What is $\tfrac12 d\,\sigma_w^2$ here?",
        r"$0.32^n > 10^{-6}$: take logarithms, and the whole number below.",
    ),
    answer=Number(rtol=0.0, atol=0.1),
    mistakes={
        r"With $d\,\sigma_w^2$ alone, the ReLU's half is missing.": lambda: math.floor(
            -6 / math.log10(0.64)
        ),
        "At that depth the factor is beyond a million: take the whole number below.": lambda: (
            math.ceil(-6 / math.log10(0.32))
        ),
    },
)
def how_deep() -> int:
    r"""$\tfrac12\cdot256\cdot0.0025 = 0.32$ a layer, and $0.32^{12} > 10^{-6} > 0.32^{13}$."""
    factor = 0.5 * 256 * 0.05**2
    return math.floor(math.log(1e-6) / math.log(factor))


@exercise(
    "03.5",
    "Two layers scaled, without BN",
    level=2,
    question=r"""
    A plain ReLU network of six layers. $W_2$ is multiplied by 3 and $W_5$ by ½, the output
    gradient stays as it was ($\mu = 1$). By which numbers are $\partial L/\partial W_1, \dots,
    \partial L/\partial W_6$ multiplied?
    """,
    hints=(
        r"""$\partial L/\partial \hat W_k =
        \mu\,\big(\prod_{i\neq k} a_i\big)\,\partial L/\partial W_k$.""",
        "For a layer that is not scaled itself, both factors count.",
    ),
    answer=Vector(6, rtol=0.01),
    mistakes={
        "That is the product of all the factors. A layer's own one is not in it.": lambda: (
            [1.5] * 6
        ),
        "That is the theorem with BN.": lambda: [1, 1 / 3, 1, 1, 2, 1],
        "These are the gradients ĝ_k: ∂L/∂W_k also has the layer's input in it.": lambda: (
            [1.5, 0.5, 0.5, 0.5, 1, 1]
        ),
        "Layers 2 and 5: each is multiplied by the *other* one's factor.": lambda: (
            [1.5, 3, 1.5, 1.5, 0.5, 1.5]
        ),
    },
)
def two_layers_plain() -> list[float]:
    r"""$3\cdot\tfrac12 = 1.5$ for the four others; for a scaled layer the factor of the other."""
    from lca_widgets.experiments.scaling import predicted_ratios

    factors = [1, 3, 1, 1, 0.5, 1]
    return [ratios.weight_grad for ratios in predicted_ratios(factors, "none")]


@exercise(
    "03.6",
    "A relative step under BN",
    level=2,
    question=r"""
    In a network with BN (ε = 0) behind every hidden layer, a hidden weight $W_k$ is multiplied by
    4 and the output layer's weight by 20; the gradient at the outputs stays as it was ($\mu = 1$).
    One gradient step changes $W_k$ by $\eta\,\lVert\partial L/\partial W_k\rVert$. By which number
    is the *relative* change, $\eta\,\lVert\partial L/\partial W_k\rVert/\lVert W_k\rVert$,
    multiplied?
    """,
    hints=(
        "What does the theorem say about the gradient of layer k, with $a_k = 4$ and $a_K = 20$?",
        "The gradient changes, and so does the norm that it is compared with.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That is the gradient. The weight that it is compared with has grown, too.": lambda: 20 / 4,
        "No BN follows the output layer: its factor reaches every gradient.": lambda: 1 / 16,
        "That is the output layer's factor alone. The layer's own divides, and twice.": lambda: 20,
    },
)
def relative_step() -> float:
    r"""$a_K/a_k$ from the gradient and $1/a_k$ from the norm: $a_K/a_k^2 = 20/16$.

    The output layer's growth hides what the layer's own has cost: by itself it makes the relative
    step $a_k^2 = 16$ times smaller. A few large steps early on can thus all but stop a layer, at no
    stationary point.
    """
    a_k, a_output = 4, 20
    return a_output / a_k**2


@exercise(
    "03.7",
    "μ of another loss",
    level=3,
    question=r"""
    A plain ReLU network of ten layers is trained on $\ell_n = \tfrac12\lVert f_n\rVert^2$, the
    square of its outputs. *All* weights are multiplied by 1.1. By which number is each
    $\partial L/\partial W_k$ multiplied?
    """,
    hints=(
        r"""$\mu$ is what the gradient $\partial\ell_n/\partial f_n$ is multiplied by. What is that
        gradient for this loss?""",
        r"$\partial\ell_n/\partial f_n = f_n$, which is multiplied by $1.1^{10}$.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That is the product of the nine others. This loss's output gradient is not left as it "
        "was: what is μ?": lambda: 1.1**9,
        "That is μ; the nine other layers multiply it.": lambda: 1.1**10,
        "A layer's own factor is not in the product.": lambda: 1.1**20,
    },
)
def another_mu() -> float:
    r"""$\mu = 1.1^{10}$, because the output gradient is the output itself; times $1.1^9$.

    For this loss μ is one number, and the theorem is exact. For cross-entropy it is not.
    """
    mu = 1.1**10
    return mu * 1.1**9


@exercise(
    "03.8",
    "Leaky ReLU",
    level=3,
    question=r"""
    A leaky ReLU passes positive values and multiplies negative ones by $\alpha$. Write a function
    `gain(alpha)` that returns the gain with which `normal` weights (variance $1/d$) keep
    magnitudes constant. Give the function as your answer.
    """,
    hints=(
        r"Which part of $\mathbb E[h^2]$ remains behind it, for a symmetric distribution?",
        r"$\tfrac12(1 + \alpha^2)$: the positive half, and $\alpha^2$ times the negative one.",
    ),
    answer=Function((0.0,), (0.1,), (0.5,), (1.0,), rtol=0.01),
    mistakes={
        "That is the gain squared.": lambda: lambda alpha: 2 / (1 + alpha**2),
        r"The negative half is multiplied by α, its square by α².": lambda: (
            lambda alpha: math.sqrt(2 / (1 + alpha))
        ),
    },
)
def leaky_gain() -> Callable[[float], float]:
    r"""$\tfrac12(1+\alpha^2)\,\mathrm{gain}^2 = 1$.

    With $\alpha = 0$ it is He's $\sqrt2$, with $\alpha = 1$ (linear) it is 1.
    """

    def gain(alpha: float) -> float:
        return math.sqrt(2 / (1 + alpha**2))

    return gain


@exercise(
    "03.9",
    "The growth under BN",
    level=3,
    question=r"""
    Section 6 derives the factor $\pi/(\pi-1)$ by which BN with ReLU multiplies the mean square of
    the gradient at each layer. Write `growth(alpha)`, the same factor for a leaky ReLU of slope
    $\alpha$ (for a Gaussian $z$, $\mathbb E[|z|] = \sqrt{2/\pi}$).
    """,
    hints=(
        r"""The factor is $\mathbb E[\phi'(z)^2]/\operatorname{Var}[\phi(z)]$ for
        $z\sim N(0,1)$.""",
        r"""$\mathbb E[\phi'^2] = \mathbb E[\phi^2] = \tfrac12(1+\alpha^2)$, and
        $\mathbb E[\phi] = (1-\alpha)/\sqrt{2\pi}$.""",
    ),
    answer=Function((0.0,), (0.2,), (0.5,), (1.0,), rtol=0.01),
    mistakes={
        "Upside down: that is below one.": (
            lambda: lambda alpha: 1 - (1 - alpha) ** 2 / (math.pi * (1 + alpha**2))
        ),
        "The mean's square is to be taken off, not the mean.": lambda: (
            lambda alpha: (
                (1 + alpha**2) / 2 / ((1 + alpha**2) / 2 - (1 - alpha) / math.sqrt(2 * math.pi))
            )
        ),
    },
)
def growth_under_bn() -> Callable[[float], float]:
    r"""The mean square of the slope over the variance of the value.

    A linear network ($\alpha = 1$) does not grow: its activations have no mean, and BN divides by
    all of their square.
    """

    def growth(alpha: float) -> float:
        square = (1 + alpha**2) / 2
        mean = (1 - alpha) / math.sqrt(2 * math.pi)
        return square / (square - mean**2)

    return growth
