"""Questions of notebook 00: reading a lab, a condition number, and the records behind a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lca_widgets.exercises.exercise import Choice, Number, Vector, exercise

if TYPE_CHECKING:
    from lca_widgets.records import LayerRecord


@exercise(
    "00.1",
    "A condition number",
    level=1,
    question=r"""
    A quadratic bowl has curvature 40 along one axis and 2 along the other: its Hessian is
    $\operatorname{diag}(40, 2)$. What is its condition number $\kappa$?
    """,
    hints=(
        r"$\kappa = \lambda_{\max}/\lambda_{\min}$, the largest eigenvalue over the smallest.",
        "The eigenvalues of a diagonal matrix stand on its diagonal.",
    ),
    answer=Number(rtol=0.01),
    mistakes={
        "That is the smallest over the largest; the condition number is at least one.": lambda: (
            2 / 40
        ),
        "That is the difference; what counts is the ratio.": lambda: 40 - 2,
        "That is the larger curvature alone. It limits the step; the ratio counts the steps.": (
            lambda: 40
        ),
    },
)
def condition_number() -> float:
    """The eigenvalues are 40 and 2, and their ratio is 20."""
    return 40 / 2


@exercise(
    "00.2",
    "Two bowls",
    level=1,
    question=r"""
    Look at the two descents in the picture above. Both go with the same
    $\eta\lambda_{\max} = 1.5$. Why has the right one made so little progress after the same number
    of steps?
    """,
    hints=(
        "In which direction is the right one still far from the minimum: the steep or the flat?",
        r"""In a direction of curvature $\lambda$ a step multiplies the distance by
        $1-\eta\lambda$. How near to one is that for the smallest $\lambda$?""",
    ),
    answer=Choice(
        "its steps along the flat direction are too short",
        "its steps along the steep direction are too short",
        "it has left the bowl",
    ),
    mistakes={
        "The steep direction is the one that converges: the path has settled there.": (
            lambda: "its steps along the steep direction are too short"
        ),
        "It would, with a rate above 2/λ_max. This path stays inside and goes on downhill.": (
            lambda: "it has left the bowl"
        ),
    },
)
def two_bowls() -> str:
    r"""The rate is set by the steep direction, $\eta = 1.5/\lambda_{\max}$.

    Along the flat one a step then removes only the part $\eta\lambda_{\min} = 1.5/\kappa$ of the
    distance. A large condition number makes the step too short where the way is long.
    """
    return "its steps along the flat direction are too short"


@exercise(
    "00.3",
    "The lab with BN",
    level=1,
    question=r"""
    In the lab of section 2 set *steps* to 0, so that it shows the network before any training,
    and *normalisation* to *BN* (*init* is LeCun again). In which layer is
    $\lambda_{\max}(\Sigma_g)$, the size of the gradients, now *smallest*?
    """,
    hints=(
        "Look at the chart *λ_max(Σ_g) by layer*; layer 1 is next to the input.",
        "Choose *none* and then *BN* again, and watch which end of the curve goes down.",
    ),
    answer=Choice("in the first layer", "in the middle", "in the last layer"),
    mistakes={
        "That is so without normalisation. You may also have looked at another chart.": (
            lambda: "in the first layer"
        ),
        "The curve goes down almost everywhere: its lowest point is at one of its ends.": (
            lambda: "in the middle"
        ),
    },
)
def smallest_gradient() -> str:
    """With BN gradients *grow* on their way from the output to the input.

    Why they do, and by how much: notebook 03.
    """
    layers = _layers_at_start("lecun", norm="batch")
    smallest = min(layers, key=lambda layer: layer.lambda_max_g)
    return {1: "in the first layer", 10: "in the last layer"}.get(smallest.layer, "in the middle")


@exercise(
    "00.4",
    "A state string",
    level=1,
    question="""
    Below every lab stands its *state*, a short string that holds what differs from the lab's
    defaults. A colleague sends you `depth=12&init=he&steps=50`. Make that lab with
    `lab = lca.labs.Magnitude.from_state("…")`, run the cell, and count: how many measurements has
    its run, when it is finished? (`len(lab.measurements)` tells, too.)
    """,
    hints=(
        "It makes 50 updates. Is the network measured before the first of them?",
        "A run of *s* updates has a measurement at the start and one after each update.",
    ),
    answer=Number(rtol=0.0, atol=0.1),
    mistakes={
        "These are the updates. The network is measured once before the first of them, too.": (
            lambda: 50
        ),
        "These are rows of its table: one for each layer and measurement.": lambda: 51 * 12,
    },
)
def state_string() -> int:
    """One measurement before the first update, and one after each of the 50."""
    return 1 + 50


@exercise(
    "00.5",
    "Through ten layers",
    level=2,
    question=r"""
    A quantity shrinks six-fold at every layer. It is followed from the input of layer 2 to the
    input of layer 10. By which factor has it shrunk, all in all?
    """,
    hints=(
        "How many layers does it pass on the way? Layer 10 itself is not one of them.",
        "From 2 to 10 there are eight steps, each of which divides by six.",
    ),
    answer=Number(rtol=0.02),
    mistakes={
        "Ten factors: from the input of layer 2 to that of layer 10 there are fewer.": lambda: (
            6.0**10
        ),
        "Nine factors: count the layers that it passes, 2 to 9.": lambda: 6.0**9,
        "Factors multiply, they do not add.": lambda: 6 * 8,
        "That is what remains; by which factor has it *shrunk*?": lambda: 6.0**-8,
    },
)
def through_ten_layers() -> float:
    r"""It passes the eight layers 2 to 9: $6^8 \approx 1.7$ million.

    That is how a harmless factor per layer becomes an enormous one: it is exponential in depth.
    """
    return 6.0**8


@exercise(
    "00.6",
    "From records to an answer",
    level=2,
    question="""
    Use `lca.labs.Magnitude.run(...)` with `steps=0`, width 32, ten layers and He's initialisation.
    Give the list of `lambda_max_x` of its ten layers (right to 1 %).
    """,
    hints=(
        "`run` returns a list of measurements; here it has one. Its `layers` are the rows.",
        "`[layer.lambda_max_x for layer in measurement.layers]`",
    ),
    answer=Vector(10, rtol=0.01),
    mistakes={
        "These are the gradients' largest eigenvalues; the inputs' were asked for.": lambda: (
            [layer.lambda_max_g for layer in _layers_at_start("he")]
        ),
        "That is LeCun's initialisation, the lab's default: say init='he'.": lambda: (
            [layer.lambda_max_x for layer in _layers_at_start("lecun")]
        ),
    },
)
def from_records() -> list[float]:
    """One measurement at the start, and one row for each of its ten layers.

    `lca.labs.Magnitude.run(depth=10, width=32, init="he", steps=0)` returns the same measurement,
    in a list.
    """
    return [layer.lambda_max_x for layer in _layers_at_start("he")]


def _layers_at_start(init: str, norm: str = "none") -> tuple[LayerRecord, ...]:
    """What `lca.labs.Magnitude.run(depth=10, width=32, steps=0, …)[0].layers` holds."""
    from lca_widgets.experiments import MagnitudeSettings, magnitude

    settings = MagnitudeSettings(depth=10, width=32, init=init, norm=norm, steps=0)
    return next(magnitude(settings)).layers
