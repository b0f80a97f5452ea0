"""Questions of notebook 07: what reaches the last layer, and what a large input leads to."""

from __future__ import annotations

import math

from lca_widgets.exercises.exercise import Choice, Number, Vector, exercise


@exercise(
    "07.1",
    "Counting blocks",
    level=1,
    question=r"""
    The CIFAR ResNets have $6n+2$ layers. How many residual blocks has the one of 1202 layers?
    """,
    hints=(
        "First find $n$. There are three stages of $n$ blocks each.",
        "Two layers are in no block: the first convolution and the classifier.",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "That is $n$, the blocks of one of three stages.": lambda: 200,
        "Those are the layers in the blocks; each block has two.": lambda: 1200,
    },
)
def counting_blocks() -> float:
    """Of 1202 layers 1200 are in blocks, two in each."""
    return (1202 - 2) / 2


@exercise(
    "07.2",
    "The law",
    level=1,
    question=r"""
    A residual perceptron has 100 blocks and 64 units. Which $\lambda_{\max}(\Sigma_x)$ of the
    classifier's input does the law of section 1 promise?
    """,
    hints=(
        r"Which of the two limits of section 1 is about the mean?",
        r"$\tfrac2\pi\,d\,n$, with $d$ units and $n$ blocks.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That is the whole trace. The mean has a part of it.": lambda: 64 * 100,
        "That is for one unit.": lambda: 2 / math.pi * 100,
        "That counts layers, two a block; the walk makes one step a block.": (
            lambda: 2 / math.pi * 64 * 200
        ),
    },
)
def the_law() -> float:
    r"""$\tfrac2\pi\cdot 64\cdot 100$. Real networks come within a third of it."""
    return 2 / math.pi * 64 * 100


@exercise(
    "07.3",
    "Which layers?",
    level=1,
    question=r"""
    In the lab choose the preset **pre-activation without its final BN** and set `steps` to 0. How
    many of the 102 layers have an input with $\lambda_{\max}(\Sigma_x)$ above 100?
    """,
    hints=(
        "The panel *λ_max(Σ_x) of all layers* has a logarithmic axis; find 100 on it.",
        "Look at its right end.",
    ),
    answer=Number(rtol=0.001),
    mistakes={
        "So many are large in a post-activation network: the first layers of most blocks.": (
            lambda: 43
        ),
        "That would be so with the final BN.": lambda: 0,
    },
)
def which_layers() -> float:
    """The classifier alone.

    Every other layer gets its input from a BN, or from the image.
    """
    return 1


@exercise(
    "07.4",
    "A safe rate",
    level=2,
    question=r"""
    The classifier's input has $\lambda_{\max}(\Sigma_x) = 500$; there are 10 classes, and the
    network still holds them for equally likely. Below which rate can a step of gradient descent
    not raise the quadratic model of section 3?
    """,
    hints=(
        r"What is the largest eigenvalue of $\Sigma_x \otimes \tfrac1C(I - \tfrac1C 11^\top)$?",
        r"It is $\lambda_{\max}(\Sigma_x)/C$; and the limit is 2 over it.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"$\Sigma_g$ has the largest eigenvalue $1/C$, not 1.": lambda: 2 / 500,
        "The limit is 2 over the largest eigenvalue, not 1 (notebook 01).": lambda: 10 / 500,
    },
)
def a_safe_rate() -> float:
    r"""$2C/\lambda_{\max}(\Sigma_x)$.

    The loss itself rose only at rates two to five times larger in section 3: the gradient of a
    network at initialisation does not lie along the steepest direction alone.
    """
    return 2 * 10 / 500


@exercise(
    "07.5",
    "The mean's share",
    level=2,
    question=r"""
    After very many blocks a unit is distributed like $|z|$, with $z \sim N(0, n)$. Which share of
    its mean square $\mathbb E[x^2]$ is the square of its mean?
    """,
    hints=(
        r"The mean of $|z|$ is $\sqrt{2n/\pi}$.",
        r"And $\mathbb E[z^2] = n$.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That is the share of the variance.": lambda: 1 - 2 / math.pi,
        "Take the *square* of the mean.": lambda: math.sqrt(2 / math.pi),
    },
)
def the_means_share() -> float:
    r"""$\tfrac2\pi = 64\,\%$ of every unit, and so of the trace.

    Of $\lambda_{\max}$ the mean has more: the rest of the trace is spread over all directions.
    """
    return 2 / math.pi


@exercise(
    "07.6",
    "Why the classifier?",
    level=2,
    question=r"""
    In a post-activation network the first layers of the last blocks get inputs as large as the
    classifier's. Why does a training fail because of the classifier, and not because of them?
    """,
    hints=(
        "What follows a layer in a block, and what follows the classifier?",
        "Notebook 03, second theorem: the gradient of a layer whose output is normalised.",
    ),
    answer=Choice(
        "BN follows them, and takes the size out",
        "their weights start smaller",
        "they are further from the loss",
        "the shortcut passes their gradient by",
    ),
    mistakes={
        "They start larger: the classifier's weights are the smaller ones.": (
            lambda: "their weights start smaller"
        ),
        "The last block's is two layers from the loss.": lambda: "they are further from the loss",
        "The shortcut adds a way for the gradient; it takes nothing from a weight's own.": (
            lambda: "the shortcut passes their gradient by"
        ),
    },
)
def why_the_classifier() -> str:
    """Behind BN the size of the input does not reach the output, and divides the gradient.

    The logits are not normalised.
    """
    return "BN follows them, and takes the size out"


@exercise(
    "07.7",
    "In which order?",
    level=2,
    question=r"""
    Put the events of section 5 into their order, as a list of four numbers:

    1. the features collapse;
    2. the classifier's gradient is large;
    3. the weight dominates its gradient, and the loss stays at $\ln 10$;
    4. ‖W‖ jumps, and the loss rises.
    """,
    hints=(
        "At step 0 nothing has moved yet: which of them is true already?",
        r"Compare $\lambda_{\max}(\Sigma_x)$ and ‖W‖ at step 1.",
    ),
    answer=Vector(4, rtol=0.01),
    mistakes={
        "At step 1 the features are as large as before, and ‖W‖ has grown tenfold.": (
            lambda: [2, 1, 4, 3]
        ),
        "A weight can dominate its gradient only once it has grown.": lambda: [2, 3, 4, 1],
    },
)
def in_which_order() -> list[float]:
    """Large gradient, jump, collapse, plateau.

    The collapse is the other layers' answer to the classifier's jump.
    """
    return [2, 4, 1, 3]


@exercise(
    "07.8",
    "How long is a gradient?",
    level=3,
    question=r"""
    By the law of section 1, the trace of $\Sigma_x$ is $d\,n$: take 32 units and 50 blocks. The
    network holds its ten classes for equally likely. What is the root mean square, over the
    samples, of $\lVert g\,x^\top\rVert$, the norm of one sample's gradient of the classifier's
    weight?
    """,
    hints=(
        r"The squared norm of $g x^\top$ is $\lVert g\rVert^2\,\lVert x\rVert^2$.",
        r"""$g = p - e_y$ with all $p = \tfrac1{10}$: one entry is $-\tfrac9{10}$, nine are
        $\tfrac1{10}$. And $\mathbb E\lVert x\rVert^2$ is the trace.""",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        r"That leaves out $\lVert g\rVert^2 = 0.9$.": lambda: math.sqrt(32 * 50),
        "That is its square.": lambda: 0.9 * 32 * 50,
        "That is with LastBN, where the trace is $d$.": lambda: math.sqrt(0.9 * 32),
    },
)
def how_long_is_a_gradient() -> float:
    r"""$\sqrt{0.9\cdot 32\cdot 50} = 38$, seven times what it would be with LastBN.

    At rate 1 such gradients, alike in direction, take ‖W‖ from 1.8 to 21 in one step.
    """
    g = (9 / 10) ** 2 + 9 * (1 / 10) ** 2
    return math.sqrt(g * 32 * 50)
