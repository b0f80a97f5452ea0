"""Questions of notebook 06: BN and conditioning, dying and full units, a fair comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lca_widgets.exercises.exercise import Choice, Function, Number, Vector, exercise

# Unit outputs h and gradients behind BN, of five samples each.
_OUTPUTS = (
    [0.5, -1.0, 2.0, 0.0, 1.0],
    [3.0, 3.5, 2.5, 4.0, 1.0],
)
_GRADIENTS = (
    [1.0, 0.0, -2.0, 0.5, 0.5],
    [0.2, 0.4, 0.1, 0.3, 0.8],
)


@exercise(
    "06.1",
    "What BN leaves uneven",
    level=1,
    question=r"""
    In the first lab choose the preset **20 layers: BN, He** and set `steps` to 0. One quantity
    still differs more than a hundredfold between hidden layers. Which?
    """,
    hints=(
        "All four have a curve by layer; look at the ends of the vertical axes.",
        "It was already so in notebook 03, which calls it the price of BN.",
    ),
    answer=Choice("κ_50(Σ_x)", "κ_50(Σ_g)", "λ_max(Σ_x)", "λ_max(Σ_g)"),
    mistakes={
        "That one is about 80 in all hidden layers.": lambda: "κ_50(Σ_x)",
        "That one stays between 5 and 20.": lambda: "κ_50(Σ_g)",
        "BN fixes the scale of what goes forward: that curve is level.": lambda: "λ_max(Σ_x)",
    },
)
def what_stays_uneven() -> str:
    r"""At initialisation $\lambda_{\max}(\Sigma_g)$ grows from layer to layer towards the input.

    Better *conditioned* layers do not mean equally *scaled* layers.
    """
    return "λ_max(Σ_g)"


@exercise(
    "06.2",
    "The gain and κ",
    level=1,
    question=r"""
    In a plain ReLU network without biases every weight is doubled. By which number is
    $\kappa_{50}(\Sigma_x)$ of layer 10 multiplied?
    """,
    hints=(
        r"By which number is the *input* of layer 10 multiplied? See notebook 03.",
        r"$\kappa_p$ is a ratio of two eigenvalues of the same matrix.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That is what $\lambda_{\max}(\Sigma_x)$ is multiplied by; so is the median eigenvalue.": (
            lambda: 4**9
        ),
        "That is what the activations are multiplied by.": lambda: 2**9,
    },
)
def gain_and_kappa() -> float:
    r"""All eigenvalues of $\Sigma_x$ are multiplied by $4^9$, and their ratios stay.

    No scale of the weights, small or large, repairs the conditioning.
    """
    largest, median = 4.0**9, 4.0**9
    return largest / median


@exercise(
    "06.3",
    "Behind a ReLU",
    level=2,
    question=r"""
    A hidden layer has 256 units, whose values before the ReLU are independent and standard normal.
    What is $\kappa(\Sigma_x)$ behind the ReLU, not centred?
    """,
    hints=(
        r"Section 1: $\Sigma_x = a I + b\,\mathbf 1\mathbf 1^\top$, with $b$ the squared mean.",
        r"$a = \tfrac12 - \tfrac1{2\pi}$, $b = \tfrac1{2\pi}$; the largest eigenvalue is $a+db$.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That would be the centred one: all its eigenvalues are equal.": lambda: 1,
        "That is for 64 units.": lambda: 1 + 64 / (math.pi - 1),
        r"You divided by the uncentred $\tfrac12$; the small eigenvalues are the *variance*.": (
            lambda: 1 + 256 / math.pi
        ),
    },
)
def behind_a_relu() -> float:
    r"""$\kappa = (a + db)/a = 1 + d/(\pi-1)$.

    It grows with the width, and all of it is the mean: the centred matrix is a multiple of $I$.
    """
    a, b = 1 / 2 - 1 / (2 * math.pi), 1 / (2 * math.pi)
    return (a + 256 * b) / a


@exercise(
    "06.4",
    "Two ranks",
    level=2,
    question=r"""
    The last hidden layer of a plain network for ten classes has 100 units: 30 are dying, 45 are
    full. $\Sigma_x$ of its inputs has rank 100. What are the upper bounds for the rank of
    $\Sigma_x$ behind the layer, and for the rank of $\Sigma_g$ of its outputs? Give both as a list.
    """,
    hints=(
        r"Section 6 has both bounds. How many units are neither dying nor full?",
        r"""The gradients that come to this layer are those of the output layer. What is the rank of
        their $\Sigma_g$? Softmax gradients sum to zero.""",
    ),
    answer=Vector(2, rtol=0.001),
    mistakes={
        "Ten outputs, but their gradients sum to zero: rank 9.": lambda: [70, 35],
        r"Full units do not lose rank by themselves: $\min(f, \operatorname{rank})$ is added.": (
            lambda: [25, 25]
        ),
        r"The gradients of the full units are combinations of those behind the layer, and "
        r"these have a small rank.": lambda: [70, 70],
    },
)
def two_ranks() -> list[float]:
    r"""$25 + \min(45, 100) = 70$ forwards, $25 + \min(45, 9) = 34$ backwards.

    Full units cost rank where what they combine has a small rank: near the output, backwards.
    """
    width, dying, full = 100, 30, 45
    partial = width - dying - full
    return [partial + min(full, 100), partial + min(full, 9)]


@exercise(
    "06.5",
    "How many must die?",
    level=2,
    question=r"""
    A layer has 64 units, $m$ of them dying and none full; all other eigenvalues of $\Sigma_x$
    behind it are positive. From which $m$ on is $\kappa_{50}(\Sigma_x)$ infinite?
    """,
    hints=(
        r"$\kappa_{50} = \lambda_1/\lambda_{32}$.",
        "With how many dying units is the eigenvalue number 32 zero?",
    ),
    answer=Number(rtol=0.0, atol=0.1),
    mistakes={
        "With 32 dying units, 32 eigenvalues are positive, number 32 among them.": lambda: 32,
        "It is not only when all are dead.": lambda: 64,
    },
)
def how_many_must_die() -> int:
    r"""Number 32 is zero if at most 31 are positive: $64 - m \le 31$.

    The networks of section 6 have fewer. So dying units alone do not make their $\kappa_{50}$.
    """
    index = math.ceil(0.5 * 64)
    return 64 - (index - 1)


@exercise(
    "06.6",
    "How many samples are left?",
    level=2,
    question=r"""
    Late in training 4 of 512 samples have gradients of length 1, all others of length 0.05. How
    many samples carry $\Sigma_g$, by the number of section 5?
    """,
    hints=(
        r"The number is $(\sum_n s_n)^2/\sum_n s_n^2$ with $s_n = \lVert g_n\rVert^2$.",
        r"$s_n$ is 1 four times, and 0.0025 508 times.",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        "The lengths are to be squared first.": lambda: (4 + 508 * 0.05) ** 2 / (4 + 508 * 0.05**2),
        "The many small ones count a little, too: together they have a quarter of the trace.": (
            lambda: 4
        ),
    },
)
def how_many_are_left() -> float:
    r"""$(4 + 1.27)^2/(4 + 0.0032) \approx 6.9$.

    So few vectors cannot have 32 eigenvalues of one size: $\kappa_{50}(\Sigma_g)$ is large whatever
    the network.
    """
    squares = [1.0] * 4 + [0.05**2] * 508
    return sum(squares) ** 2 / sum(s * s for s in squares)


@exercise(
    "06.7",
    "A fair comparison",
    level=2,
    question=r"""
    Two networks start from the same weights and take 100 steps with the same rate. Then
    $\kappa_{50}(\Sigma_g)$ of the first is 400, that of the second 12. Why does this alone not show
    that the second network is better conditioned?
    """,
    hints=(
        r"What else than the network does $\Sigma_g$ depend on, late in training?",
        "Which samples still have gradients when most of them are fitted?",
    ),
    answer=Choice(
        "they may be at different losses",
        "κ_50 leaves out the small eigenvalues",
        "the moments are not centred",
        "the rate suits only one of them",
    ),
    mistakes={
        "True, but equally so of both networks.": lambda: "κ_50 leaves out the small eigenvalues",
        r"Centring changes $\Sigma_g$ little; section 4 prints it.": (
            lambda: "the moments are not centred"
        ),
        "It may, but how does that show in Σ_g? By what the rate leads to: say that.": (
            lambda: "the rate suits only one of them"
        ),
    },
)
def fair_comparison() -> str:
    r"""The lower the loss, the fewer samples carry $\Sigma_g$, and the larger its $\kappa_{50}$.

    At equal loss the difference that remains is the network's own.
    """
    return "they may be at different losses"


@exercise(
    "06.8",
    "Backwards through BN",
    level=3,
    question=r"""
    Batch normalisation (ε = 0, γ = 1, β = 0) turns a unit's outputs $h_1,\dots,h_N$ into
    $\hat h_n = (h_n - \mu)/\sigma$. Write `backward(gradient, h)` that takes the gradients with
    respect to all $\hat h_n$, and all $h_n$, as two lists of numbers, and returns the gradients
    with respect to all $h_n$ (`numpy` helps). Give the function as your answer.
    """,
    hints=(
        r"Section 4 has the formula; $\sigma$ divides by $N$, not by $N-1$.",
        r"""$\tfrac1\sigma\big(u_n - \overline{u} - \hat h_n\,\overline{u\hat h}\big)$, $u$ the
        gradients that come in and bars the means over the samples.""",
    ),
    answer=Function(*zip(_GRADIENTS, _OUTPUTS, strict=True), rtol=1e-3),
    mistakes={
        "μ and σ depend on h, too: two terms are missing.": lambda: (
            lambda gradient, h: np.asarray(gradient) / np.std(h)
        ),
        "σ depends on h, too: the last term is missing.": lambda: (
            lambda gradient, h: (np.asarray(gradient) - np.mean(gradient)) / np.std(h)
        ),
    },
)
def backwards_through_bn() -> Callable[[Sequence[float], Sequence[float]], object]:
    r"""The mean is taken off, and the part along $\hat h$.

    So the results sum to zero over the samples, exactly: behind BN the gradients of a unit have no
    mean, and $\Sigma_g$ is its own centred version.
    """

    def backward(gradient: Sequence[float], h: Sequence[float]) -> object:
        u, values = np.asarray(gradient), np.asarray(h)
        normalised = (values - values.mean()) / values.std()
        return (u - u.mean() - normalised * (u * normalised).mean()) / values.std()

    return backward


@exercise(
    "06.9",
    "How much of it is the mean?",
    level=3,
    question=r"""
    A plain network has $\kappa_{50}(\Sigma_x) = k$, and $k_c$ when centred; with BN they are $b$
    and $b_c$. On a logarithmic scale the gain is $\log(k/b)$, and what remains of it when both are
    centred is $\log(k_c/b_c)$. Write `share(k, k_c, b, b_c)` that returns the share of the gain
    that is gone when both are centred.
    """,
    hints=(
        "The share that remains is the quotient of the two logarithms.",
        "The share that is gone is one minus that.",
    ),
    answer=Function(
        (1000.0, 200.0, 80.0, 30.0),
        (5000.0, 900.0, 80.0, 36.0),
        (100.0, 10.0, 10.0, 10.0),
        rtol=0.01,
    ),
    mistakes={
        "That is the share that remains.": lambda: (
            lambda k, k_c, b, b_c: math.log(k_c / b_c) / math.log(k / b)
        ),
        "That is how much centring does to the plain network. BN's has a mean, too.": lambda: (
            lambda k, k_c, b, b_c: math.log(k / k_c) / math.log(k / b)
        ),
    },
)
def share_of_the_mean() -> Callable[[float, float, float, float], float]:
    r"""One minus the quotient of the logarithms: 15 to 40 % in the networks of section 3.

    In the last example all of the gain is the mean: centred, the networks are equal.
    """

    def share(k: float, k_c: float, b: float, b_c: float) -> float:
        return 1 - math.log(k_c / b_c) / math.log(k / b)

    return share
