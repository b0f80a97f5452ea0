"""Every finding on records and on a network built to show it, and none on sound networks.

Records show where a threshold lies and what is said; networks, that real measurements get there.
What the numbers themselves are worth is for the tests of the measurements.
"""

import dataclasses
import math
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lca_widgets.diagnosis import findings
from lca_widgets.monitor import analyze, watch
from lca_widgets.records import LayerReport, Report
from tests.finding_networks import (
    LOSS,
    SOUND,
    classifier,
    digits_batch,
    dominated,
    gradient_descent,
    killed_by_training,
    pictures,
    residual_mlp,
    with_dead_layer,
    with_nan,
)

NAN, INF = math.nan, math.inf


def layer(position, **changes):
    """A layer with nothing to be said about it."""
    fields = {
        "layer": position, "name": f"linear{position}", "kind": "Linear", "diverged": False,
        "lambda_max_x": 5.0, "lambda_max_g": 0.1, "lambda_max": 0.5,
        "lambda_max_x_centred": 4.0, "lambda_max_g_centred": 0.1,
        "kappa50_x": 20.0, "kappa50_g": 20.0, "kappa50": 200.0,
        "kappa50_x_centred": 15.0, "kappa50_g_centred": 20.0,
        "rank_x": 16, "rank_g": 16, "d_in": 16, "d_out": 16, "groups": 1, "n": 512, "rows": 512,
        "weight_sigma": 2.0, "weight_norm": 6.0, "grad_sigma": 0.2,
        "domination": 0.1, "sensitivity": 0.4,
        "dying": 0.0, "full": 0.0, "zero_inputs": 0, "constant_inputs": 0,
    }  # fmt: skip
    return LayerReport(**({"grad_rows": changes.get("rows", 512)} | fields | changes))


def report(*changes, step=0):
    """Six such layers, some of them changed: pairs of a position and a dict of fields."""
    changed = dict(changes)
    return Report(step, tuple(layer(k, **changed.get(k, {})) for k in range(1, 7)))


def profile(field, values):
    return report(*((k, {field: value}) for k, value in enumerate(values, start=1)))


def kinds(found):
    return [(finding.kind, finding.severity, finding.layer) for finding in found]


def only(found, kind):
    [finding] = [finding for finding in found if finding.kind == kind]
    return finding


def alarms(found):
    return [str(finding) for finding in found if finding.severity != "info"]


def analysed(model, batch=None, **options):
    return analyze(model, LOSS, digits_batch() if batch is None else batch, **options).findings()


# What all have in common


def test_nothing_is_found_in_no_report_in_an_empty_one_and_in_a_sound_one():
    assert findings([]) == []
    assert findings([Report(3, ())]) == []
    assert findings([report()]) == []


def test_a_finding_is_one_readable_line():
    [found] = findings([report((2, {"dying": 0.25}))])
    assert str(found) == (
        "info: dying units in linear2: Units that are zero for every sample: 25 % of linear2. They "
        "learn nothing and pass nothing on; a few do no harm. Batch normalisation, He's initial "
        "scale or a lower learning rate prevent it."
    )


def test_the_worst_comes_first_and_then_what_is_nearest_to_the_input():
    found = findings(
        [
            report(
                (2, {"diverged": True, "lambda_max_g": NAN}),
                (3, {"full": 0.5}),
                (4, {"domination": 1e-7, "sensitivity": 1.0}),
                (5, {"dying": 0.7}),
                (6, {"zero_inputs": 1, "rank_x": 15}),
            )
        ]
    )
    assert kinds(found) == [
        ("diverged", "critical", "linear2"),
        ("weight domination", "warning", "linear4"),
        ("dying units", "warning", "linear5"),
        ("full units", "info", "linear3"),
        ("rank-deficient input", "info", "linear6"),
    ]


def test_only_the_last_report_is_judged():
    assert findings([report((2, {"dying": 1.0})), report(step=20)]) == []


def test_missing_numbers_are_no_fault():
    missing = {
        "grad_sigma": NAN, "domination": NAN, "sensitivity": NAN, "dying": NAN, "full": NAN,
        "lambda_max_x_centred": NAN, "kappa50_x_centred": NAN, "lambda_max_g_centred": NAN,
        "kappa50_g_centred": NAN, "n": None,
    }  # fmt: skip
    assert findings([report(*((k, missing) for k in range(1, 7)))]) == []


FLOATS = st.sampled_from([0.0, NAN, INF, -1.0, 5e-324, 1e-200, 1e-8, 0.5, 1.0, 60.0, 1e200, 1e308])
COUNTS = st.sampled_from([0, 1, 2, 31, 600])
LAYERS = st.builds(
    LayerReport,
    **{
        field.name: {
            "float": FLOATS, "int": COUNTS, "str": st.sampled_from(["a", "b"]),
            "bool": st.booleans(), "int | None": st.one_of(st.none(), COUNTS),
        }[field.type]
        for field in dataclasses.fields(LayerReport)
    } | {"groups": st.sampled_from([1, 2])},
)  # fmt: skip
REPORTS = st.builds(Report, COUNTS, st.lists(LAYERS, max_size=9).map(tuple))


@given(reports=st.lists(REPORTS, max_size=3))
def test_no_combination_of_numbers_ends_in_an_error(reports):
    found = findings(reports)
    assert all("\n" not in str(finding) and "nan" not in str(finding) for finding in found)


@given(
    field=st.sampled_from(["lambda_max_x", "lambda_max_g"]),
    values=st.lists(st.one_of(st.floats(0), st.just(NAN)), min_size=6, max_size=6),
)
def test_no_profile_ends_in_an_error(field, values):
    findings([profile(field, values)])


@given(
    layers=st.lists(st.builds(layer, st.just(3), lambda_max_g=FLOATS, weight_sigma=FLOATS,
        domination=FLOATS, sensitivity=FLOATS, lambda_max_x=FLOATS, lambda_max=FLOATS,
        kappa50_x=FLOATS, dying=FLOATS, zero_inputs=st.sampled_from([0, 16])), max_size=4)
)  # fmt: skip
def test_no_combination_of_what_a_rule_compares_ends_in_an_error(layers):
    for finding in findings([Report(0, tuple(layers))] * 2):
        assert "nan" not in str(finding)


# Diverged


def test_the_first_weight_that_is_not_finite_is_named():
    lost = {"diverged": True, "lambda_max_x": NAN, "lambda_max_g": NAN}
    weight = {"weight_sigma": NAN}
    found = findings([report((3, lost | weight), (4, lost), (5, lost | weight), step=40)])
    assert kinds(found) == [("diverged", "critical", "linear3")]
    assert found[0].evidence == (
        "At step 40, the weight of linear3 is not finite; Σ_x or Σ_g is not finite in 3 of 6 "
        "layers."
    )


def test_an_input_that_overflows_is_told_from_a_gradient_that_does():
    forward = {"diverged": True, "lambda_max_x": NAN, "lambda_max_g": NAN}
    backward = {"diverged": True, "lambda_max_g": NAN}
    [found] = findings([report((1, backward), (4, forward), (5, forward))])
    assert (found.layer, "the input of linear4" in found.evidence) == ("linear4", True)
    [found] = findings([report((1, backward), (2, backward))])
    assert (found.layer, "back to linear2" in found.evidence) == ("linear2", True)


def test_the_step_at_which_it_diverged_is_the_first_of_the_last_stretch():
    lost = (2, {"diverged": True, "weight_sigma": NAN})
    series = [report(lost), report(step=10), report(lost, step=20), report(lost, step=30)]
    found = only(findings(series), "diverged")
    assert found.evidence.startswith("At step 20,")
    assert "look at the step before it" in found.suggestion


def test_a_single_step_that_was_lost_is_no_alarm():
    lost = (2, {"diverged": True, "lambda_max_g": NAN})
    found = findings([report(lost), report(step=10)])
    assert kinds(found) == [("diverged", "info", "linear2")]
    assert found[0].evidence.endswith("They are finite again since.")


def test_a_diverged_layer_takes_part_in_no_other_rule():
    lost = {
        "diverged": True, "rank_x": 0, "dying": 1.0, "rows": 3, "kappa50_x": INF, "kappa50_g": INF,
        "domination": 1e-9, "sensitivity": 1.0, "lambda_max_x": 1e9, "lambda_max": 1e9,
    }  # fmt: skip
    for rows in (3, 512):
        found = findings([report((6, lost | {"rows": rows}))])
        assert [finding.kind for finding in found] == ["diverged"]


def test_a_network_with_a_nan_in_a_weight():
    [found] = [f for f in analysed(with_nan("linear3")) if f.severity == "critical"]
    assert (found.kind, found.layer) == ("diverged", "linear3")


def test_a_run_that_diverges_says_at_which_step():
    model = classifier()
    x, y = digits_batch(256)
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    with watch(model, every=1) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
    lost = [r.step for r in monitor.reports if any(layer.diverged for layer in r.layers)]
    assert lost
    assert lost[0] > monitor.reports[0].step
    found = only(monitor.findings(), "diverged")
    assert found.severity == "critical"
    assert found.evidence.startswith(f"At step {lost[0]},")


# Magnitude


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("lambda_max_x", [1, 1, 0.1, 0.01, 1e-3, 1e-4], "λ_max(Σ_x) shrinks towards the output"),
        ("lambda_max_x", [1, 1, 10, 100, 1e3, 1e4], "λ_max(Σ_x) grows towards the output"),
        ("lambda_max_g", [1e-4, 1e-3, 0.01, 0.1, 1, 1], "λ_max(Σ_g) shrinks towards the input"),
        ("lambda_max_g", [1e4, 1e3, 100, 10, 1, 1], "λ_max(Σ_g) grows towards the input"),
    ],
)
def test_growth_and_decay_are_told_apart_in_both_directions(field, values, words):
    found = only(findings([profile(field, values)]), "magnitude")
    assert (found.severity, found.layer) == ("warning", None)
    assert found.evidence.startswith(words + ", by a factor of about ")


def test_the_evidence_of_a_profile_names_its_two_ends():
    found = only(findings([profile("lambda_max_g", [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1])]), "magnitude")
    assert found.evidence.endswith("about 0.1 a layer: 0.1 at linear5, 1.0e-5 at linear1.")


@pytest.mark.parametrize(
    "values",
    [
        [1, 1, 1.7, 1.7**2, 1.7**3, 1.7**4],  # steep, but short
        [1e9, 1, 1, 1, 1, 1],  # the data's own scale
        [1, 1, 1, 1, 1e6, 1e6],  # one step
        [1, 1, 1e5, 1, 1e5, 1],  # to and fro
        [1, 1, 10, 100, NAN, 0],  # too little is left
    ],
    ids=["short", "data", "step", "zigzag", "lost"],
)
def test_what_does_not_add_up_over_the_depth_is_no_profile(values):
    assert "magnitude" not in [f.kind for f in findings([profile("lambda_max_x", values)])]


def test_a_few_layers_have_no_profile():
    steep = profile("lambda_max_g", [1e-12, 1e-9, 1e-6, 1e-3, 1, 1])
    assert [f.kind for f in findings([steep])] == ["magnitude"]
    assert findings([dataclasses.replace(steep, layers=steep.layers[1:])]) == []
    # The first layer's input is the data, and does not count.
    steep = profile("lambda_max_x", [1, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
    assert [f.kind for f in findings([steep])] == ["magnitude"]
    assert findings([dataclasses.replace(steep, layers=steep.layers[:5])]) == []


def deep(field, factor, depth=40):
    return Report(0, tuple(layer(k, **{field: factor**-k}) for k in range(depth)))


def test_the_growth_of_gradients_under_batch_normalisation_is_no_alarm():
    [found] = findings([deep("lambda_max_g", 1.4)])
    assert (found.kind, found.severity) == ("magnitude", "info")
    assert "Batch normalisation does this at the start" in found.suggestion
    assert findings([deep("lambda_max_g", 1.1, depth=150)]) == []


def test_what_float32_rounds_away_is_critical():
    severities = [only(findings([deep("lambda_max_g", f)]), "magnitude").severity for f in (2, 8)]
    assert severities == ["warning", "critical"]


def test_positions_alone_are_no_profile():
    # Σ_g of the pixel convention counts positions with their number: 10,000 of them down to one.
    layers = tuple(
        layer(k, rows=512 * t, lambda_max_g=0.1 * t)
        for k, t in enumerate([10**5, 10**4, 1000, 100, 10, 1], start=1)
    )
    assert findings([Report(0, layers)]) == []
    vectors = tuple(dataclasses.replace(each, grad_rows=512) for each in layers)
    assert [f.kind for f in findings([Report(0, vectors)])] == ["magnitude"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "lecun"}, ["λ_max(Σ_x) shrinks", "λ_max(Σ_g) shrinks"]),
        ({"init": "xavier"}, ["λ_max(Σ_x) shrinks", "λ_max(Σ_g) shrinks"]),
        ({"gain": 3.0}, ["λ_max(Σ_x) grows", "λ_max(Σ_g) grows"]),
        ({"gain": 3.0, "norm": "batch-fixed"}, []),
        ({}, []),
    ],
    ids=["LeCun", "Xavier", "large", "large, BN", "He"],
)
def test_deep_networks_whose_initial_scale_is_wrong(options, words):
    found = [f for f in analysed(classifier(depth=20, **options)) if f.severity != "info"]
    assert [f.evidence.split(" towards")[0] for f in found] == words


def test_signals_that_underflow_are_vanishing_and_no_dead_layer():
    found = [f for f in analysed(classifier(depth=20, gain=1e-3)) if f.severity == "critical"]
    assert [f.kind for f in found] == ["magnitude"]
    assert "Σ_x) shrinks" in found[0].evidence


# Weight domination


def test_a_weight_that_dominates_away_from_a_stationary_point():
    stuck = {"domination": 2e-9, "sensitivity": 3.0, "weight_sigma": 4e4}
    found = findings([report((2, {"domination": 0.3})), report((2, stuck), (3, stuck), step=20)])
    assert kinds(found) == [("weight domination", "warning", None)]
    assert found[0].evidence == (
        "σ_max(∂L/∂W)/σ_max(W) is down to 2.0e-9 (0.3 at step 0): linear2, linear3 all but stand "
        "still since step 20 or earlier. It is no minimum: σ_max(W)·σ_max(∂L/∂W) is 3, and would "
        "be near 0. σ_max(W) is 4.0e4 in linear2."
    )
    assert "lca.surgery.rescale_(layer, a), here a = 2.5e-5" in found[0].suggestion


@pytest.mark.parametrize(
    "changes",
    [
        {"domination": 2e-4, "sensitivity": 3.0},
        {"domination": 2e-9, "sensitivity": 1e-3},
        {"domination": 2e-9, "sensitivity": NAN},
        {"domination": NAN, "sensitivity": 3.0},
        {"domination": INF, "sensitivity": 0.0, "weight_sigma": 0.0},
    ],
    ids=["moving", "converged", "no gradient", "no ratio", "zero weight"],
)
def test_what_is_not_domination(changes):
    assert findings([report((2, changes))]) == []


def test_a_layer_without_active_units_is_not_called_dominated():
    stuck = {"domination": 2e-9, "sensitivity": 3.0, "dying": 0.9}
    assert [f.kind for f in findings([report((2, stuck))])] == ["dying units"]


def test_a_network_whose_weights_have_blown_up_is_dominated():
    batch = digits_batch(256)
    found = analysed(dominated(batch), batch)
    warned = only(found, "weight domination")
    assert "linear1, linear2, linear3 and 2 more" in warned.evidence
    assert [f.kind for f in found if f.severity != "info"] == ["weight domination"]


def test_rescaled_weights_are_no_longer_dominating():
    batch = digits_batch(256)
    model = dominated(batch)
    with torch.no_grad():
        for k in range(1, 6):
            weight = model.get_submodule(f"linear{k}").get_parameter("weight")
            weight.div_(torch.linalg.matrix_norm(weight, 2))
    assert alarms(analysed(model, batch)) == []


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_converged_network_is_neither_dominated_nor_dead(norm):
    batch = digits_batch(256)
    model = classifier(depth=4, norm=norm)
    gradient_descent(model, batch, steps=150, rate=0.01, adam=True)
    analysis = analyze(model, LOSS, batch)
    assert analysis.loss < 2e-3
    assert alarms(analysis.findings()) == []


# Dead networks


def dead_from(position, **changes):
    """Nothing arrives at the layer after this one, and no gradient before."""
    silent = {"lambda_max_g": 0.0, "sensitivity": 0.0, "domination": 0.0, "grad_sigma": 0.0}
    blocked = {"zero_inputs": 16, "rank_x": 0, "lambda_max_x": 0.0, "kappa50_x": INF}
    before = [(k, silent) for k in range(1, position)]
    return report(*before, (position, silent | changes), (position + 1, blocked))


def test_a_layer_that_passes_nothing_on():
    found = findings([report(), dead_from(3, dying=1.0)])[0]
    assert (found.kind, found.severity, found.layer) == ("dead network", "critical", "linear3")
    assert found.evidence == (
        "linear3 passes (almost) nothing on: all that comes after it is zero or nearly constant, "
        "since step 0 or earlier. No gradient comes back through it: σ_max(W)·√λ_max(Σ_g) is at "
        "most 0 up to there, though the loss still asks for a change (√λ_max(Σ_g) = 0.316 at "
        "linear6)."
    )


def test_a_dead_network_is_not_called_anything_that_follows_from_it():
    found = findings([dead_from(5, domination=1e-9, sensitivity=1.0)])
    assert {f.kind for f in found if f.severity != "info"} == {
        "dead network",
        "rank-deficient input",
    }


def test_gradients_that_get_past_a_dead_layer_keep_the_network_alive():
    # As in a residual branch: the shortcut beside it brings them to the layers before.
    branch = report((3, {"dying": 1.0, "lambda_max_g": 0.0}), (4, {"zero_inputs": 16, "rank_x": 0}))
    assert "dead network" not in [f.kind for f in findings([branch])]


@pytest.mark.parametrize(
    "last",
    [
        {"lambda_max_g": 0.0},  # the loss is satisfied
        {"weight_sigma": 0.0},  # a last layer that starts at zero
        {"lambda_max_g": NAN, "diverged": True},
    ],
)
def test_gradients_may_be_zero_for_other_reasons(last):
    silent = {"lambda_max_g": 0.0, "dying": 0.6}
    found = findings([report(*((k, silent) for k in range(1, 6)), (6, last))])
    assert "dead network" not in [f.kind for f in found]


def test_one_sample_shows_no_dead_layer():
    batch = digits_batch(1)
    assert "dead network" not in [f.kind for f in analysed(with_dead_layer(), batch)]


def test_a_network_with_a_dead_layer_is_dead():
    found = analysed(with_dead_layer("linear3"))
    assert (found[0].kind, found[0].layer) == ("dead network", "linear3")
    assert "weight domination" not in [f.kind for f in found]


def test_networks_killed_by_too_large_steps_are_dead_and_not_dominated():
    batch = digits_batch(256)
    killed = list(islice(killed_by_training(batch), 3))
    assert len(killed) == 3
    for model in killed:
        kinds = {f.kind for f in analysed(model, batch)}
        assert kinds >= {"dead network", "dying units"}
        assert "weight domination" not in kinds


def test_a_last_layer_of_zeros_is_not_dead():
    model = classifier()
    nn.init.zeros_(model.get_submodule("linear6").get_parameter("weight"))
    assert alarms(analysed(model)) == []


def test_a_dead_residual_branch_is_not_a_dead_network():
    torch.manual_seed(0)
    model = residual_mlp(3)
    branch = model.get_submodule("4.norm1")
    nn.init.constant_(branch.get_parameter("bias"), -20.0)
    warned = {(f.kind, f.layer) for f in analysed(model) if f.severity != "info"}
    assert warned == {("dying units", "4.linear1"), ("rank-deficient input", "4.linear2")}


# Last layer


@pytest.mark.parametrize(
    ("changes", "severity", "words", "advice"),
    [
        (
            {"lambda_max_x": 50.0, "lambda_max": 5.0, "kappa50_x": 300.0},
            "info", "Both λ_max and κ matter", '"batch"',
        ),
        (
            {"lambda_max_x": 500.0, "lambda_max": 50.0, "kappa50_x": 300.0},
            "warning", "a limit of 2/λ_max = 0.04.", '"batch"',
        ),
        (
            {"lambda_max_x": 500.0, "lambda_max": 50.0, "kappa50_x": 20.0},
            "warning", "Only λ_max matters", '"scale"',
        ),
        (
            {"lambda_max_x": 5.0, "kappa50_x": 2000.0},
            "info", "Only κ matters", '"batch"',
        ),
    ],
    ids=["both", "both, steep", "λ_max", "κ"],
)  # fmt: skip
def test_a_last_layer_says_whether_lambda_max_or_kappa_matters(changes, severity, words, advice):
    [found] = findings([report((6, changes))])
    assert kinds([found]) == [("ill-conditioned last layer", severity, "linear6")]
    assert words in found.evidence
    assert advice in found.suggestion


def test_the_safe_rate_and_the_part_of_the_mean_are_given():
    large = {"lambda_max_x": 80.0, "lambda_max_x_centred": 8.0}
    [found] = findings([report((6, large))])
    assert "λ_max(Σ_x) = 80 (centred 8), κ_50(Σ_x) = 20." in found.evidence
    assert "4/λ_max(Σ_x) = 0.05 are safe" in found.evidence
    assert "Most of it is the inputs' mean." in found.evidence
    [found] = findings([report((6, large | {"lambda_max_x_centred": 60.0}))])
    assert "mean" not in found.evidence


@pytest.mark.parametrize(
    "changes",
    [
        {"lambda_max_x": 39.0, "kappa50_x": 900.0},
        {"kappa50_x": INF, "rows": 20, "kappa50_g": 1.0},
    ],
    ids=["moderate", "κ from too few samples"],
)
def test_what_is_no_ill_conditioned_last_layer(changes):
    assert "ill-conditioned last layer" not in [f.kind for f in findings([report((6, changes))])]


def test_kappa_of_too_few_samples_is_shown_but_not_judged():
    few = {"lambda_max_x": 80.0, "kappa50_x": INF, "rows": 20, "rank_x": 7}
    found = only(findings([report((6, few))]), "ill-conditioned last layer")
    assert "κ_50(Σ_x) = ∞ (from too few samples)." in found.evidence
    assert "matter" not in found.evidence


def test_only_the_last_layer_is_judged_as_such():
    assert findings([report((5, {"lambda_max_x": 500.0, "lambda_max": 50.0}))]) == []


@pytest.mark.parametrize("gradient", [1e-3, 30.0], ids=["trained", "another loss"])
def test_a_steep_last_layer_is_a_warning_only_at_the_start_of_a_softmax(gradient):
    steep = {"lambda_max_x": 1e6, "lambda_max": 1e6 * gradient, "lambda_max_g": gradient}
    assert [f.severity for f in findings([report((6, steep))])] == ["info"]


def test_a_deep_residual_network_and_its_cure():
    torch.manual_seed(0)
    model = residual_mlp(30)
    found = [f for f in analysed(model) if f.severity != "info"]
    assert kinds(found) == [
        ("ill-conditioned last layer", "warning", list(dict(model.named_children()))[-1])
    ]
    assert "Most of it is the inputs' mean." in found[0].evidence
    torch.manual_seed(0)
    normalised = residual_mlp(30, final=nn.BatchNorm1d(32))
    assert "ill-conditioned last layer" not in [f.kind for f in analysed(normalised)]


def test_a_constant_divisor_cures_lambda_max_and_leaves_kappa():
    class Scale(nn.Module):
        def forward(self, x):
            return x / 30

    torch.manual_seed(0)
    model = residual_mlp(30, final=Scale())
    assert alarms(analysed(model)) == []


# Rank


@pytest.mark.parametrize(
    ("position", "changes", "words", "advice"),
    [
        (1, {"rank_x": 13, "zero_inputs": 3}, "13 of 16 (3 always zero)", "empty pixels"),
        (2, {"rank_x": 13, "zero_inputs": 3}, "13 of 16 (3 always zero)", "see dying units"),
        (1, {"rank_x": 13, "constant_inputs": 4}, "(4 nearly constant)", "that a bias does not"),
        (
            2,
            {"rank_x": 13, "constant_inputs": 4},
            "(4 nearly constant)",
            "nearly the same for every sample",
        ),
        (1, {"rank_x": 10, "zero_inputs": 3}, "10 of 16 (3 always zero)", "PCA"),
        (2, {"rank_x": 5}, "rank 5 of 16.", "depend linearly"),
        (2, {"rank_x": 15}, "rank 15 of 16.", "layer normalisation"),
        (1, {"rank_x": 0, "zero_inputs": 16}, "rank 0 of 16", "look at the data"),
    ],
)
def test_missing_directions_are_explained(position, changes, words, advice):
    [found] = findings([report((position, changes))])
    assert kinds([found]) == [("rank-deficient input", "info", f"linear{position}")]
    assert words in found.evidence
    assert advice in found.suggestion


def test_a_layer_most_of_whose_inputs_are_silent_is_a_warning_but_not_the_data():
    wasted = {"rank_x": 6, "zero_inputs": 10}
    assert [f.severity for f in findings([report((3, wasted))])] == ["warning"]
    assert [f.severity for f in findings([report((1, wasted))])] == ["info"]


def test_layers_that_lack_the_same_are_one_finding():
    found = findings([report(*((k, {"rank_x": 15}) for k in range(2, 7)))])
    assert kinds(found) == [("rank-deficient input", "info", None)]
    assert "linear2 has rank 15 of 16; " in found[0].evidence
    assert " and 2 more." in found[0].evidence


def test_a_rank_that_the_rows_bound_is_not_the_networks():
    assert "rank-deficient input" not in [
        f.kind for f in findings([report((2, {"rank_x": 15, "rows": 31}))])
    ]


def test_a_network_on_data_with_empty_pixels_and_a_constant_feature():
    x, y = digits_batch()
    x = torch.cat([x[:, 1:40], torch.zeros(len(x), 3), torch.full((len(x), 2), 1.5)], dim=1)
    empty = int((x == 0).all(0).sum())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(44, 8), nn.Tanh(), nn.Linear(8, 10))
    found = only(analysed(model, (x, y)), "rank-deficient input")
    assert (found.layer, found.severity) == ("0", "info")
    assert f"{empty} always zero, " in found.evidence


def test_a_network_on_full_data_has_no_missing_directions():
    torch.manual_seed(0)
    x, y = torch.randn(512, 24), torch.arange(512) % 10
    model = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 10))
    assert analysed(model, (x, y)) == []


def test_the_direction_that_layer_normalisation_takes_is_called_harmless():
    torch.manual_seed(0)
    x, y = torch.randn(512, 24), torch.arange(512) % 10
    model = nn.Sequential(nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 10))
    found = only(analysed(model, (x, y)), "rank-deficient input")
    assert found.layer == "2"
    assert "harmless" in found.suggestion


# Units


def test_dying_and_full_units_come_with_their_shares():
    found = findings([report((2, {"dying": 0.125}), (3, {"dying": 0.25}), (4, {"full": 1.0}))])
    assert kinds(found) == [("dying units", "info", None), ("full units", "info", "linear4")]
    assert found[0].evidence.endswith(": 25 % of linear3; 12 % of linear2.")
    assert found[1].evidence.endswith(": 100 % of linear4.")


def test_half_a_layer_dying_is_a_warning():
    found = findings([report((2, {"dying": 0.49}), (3, {"dying": 0.5}))])
    assert kinds(found) == [
        ("dying units", "warning", "linear3"),
        ("dying units", "info", "linear2"),
    ]


def test_a_handful_of_samples_shows_no_dying_units():
    few = {"n": 16, "dying": 0.3, "full": 0.3}
    assert findings([report((2, few))]) == []


def test_units_that_biases_hold_down_or_up_are_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        model[0].bias[:8], model[0].bias[8:12] = -100.0, 100.0
    found = analysed(model)
    assert "25 % of 0" in only(found, "dying units").evidence
    assert "12 % of 0" in only(found, "full units").evidence
    plain = analysed(classifier(norm="batch"))
    assert not {"dying units", "full units"} & {f.kind for f in plain}


# Samples


def test_too_few_rows_for_kappa_are_one_warning():
    few = {"rows": 7, "n": 7, "rank_x": 7, "rank_g": 7, "kappa50_x": INF, "kappa50_g": INF}
    found = findings([report(*((k, few) for k in range(1, 7)))])
    assert [f for f in kinds(found) if f[0] == "too few samples"] == [
        ("too few samples", "warning", None)
    ]
    assert "linear1 has 7 for 16 inputs and 16 outputs; " in found[0].evidence
    assert found[0].evidence.endswith(
        "and 3 more. κ_50 is infinite, whatever the network: see it as missing."
    )
    [advice] = [f.suggestion for f in found if f.kind == "too few samples"]
    assert "18.3 times as many" in advice  # 8 for each of 16 inputs


def test_rows_that_leave_kappa_finite_but_unsure_are_worth_a_note():
    assert kinds(findings([report((2, {"rows": 127}))])) == [("too few samples", "info", "linear2")]
    assert findings([report((2, {"rows": 128}))]) == []


def test_the_vectors_of_each_moment_are_held_against_its_own_size():
    sides = {"rows": 2048, "d_in": 3, "rank_x": 3, "grad_rows": 32, "d_out": 64, "rank_g": 32}
    [found] = findings([report((2, sides))])
    assert (found.kind, found.severity) == ("too few samples", "info")
    assert "linear2 has 2048 for 3 inputs and 32 for 64 outputs." in found.evidence
    assert "16 times as many" in found.suggestion
    starved = sides | {"grad_rows": 31, "rank_g": 31, "kappa50_g": INF}
    assert [f.severity for f in findings([report((2, starved))])] == ["warning"]
    # The labels of an expectation count as vectors.
    assert findings([report((2, sides | {"grad_rows": 32 * 16, "rank_g": 63}))]) == []


def test_a_convolution_by_pixels_with_a_large_stride_has_few_output_positions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )
    batch = torch.randn(8, 3, 16, 16), torch.arange(8)
    found = analyze(model, LOSS, batch, conv="pixel", layers=["0"]).findings()
    assert (
        "0 has 2048 for 3 inputs and 32 for 64 outputs." in only(found, "too few samples").evidence
    )


def test_the_gradient_of_softmax_is_singular_and_no_finding():
    softmax = {"d_out": 10, "rank_g": 9, "kappa50_g": INF}
    assert findings([report((6, softmax))]) == []


def test_networks_measured_on_few_and_on_many_samples():
    found = analysed(classifier(norm="batch"), digits_batch(24))
    assert only(found, "too few samples").severity == "warning"
    assert "too few samples" not in [f.kind for f in analysed(classifier(norm="batch"))]


# Sound networks raise no alarm


@pytest.mark.parametrize("name", SOUND)
def test_sound_networks_raise_no_alarm_at_the_start_and_after_a_few_steps(name):
    case = SOUND[name]
    torch.manual_seed(0)
    model, batch = case.make(), case.batch()
    for conv in ("patch", "pixel"):
        assert alarms(analyze(model, case.loss, batch, conv=conv).findings()) == []
    gradient_descent(model, batch, 5, case.rate, loss=case.loss, adam=case.adam)
    assert alarms(analyze(model, case.loss, batch).findings()) == []


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_other_labels_raise_no_alarm_either(fisher):
    model = classifier(norm="batch")
    assert alarms(analysed(model, fisher=fisher)) == []


def test_a_network_in_eval_mode_raises_no_alarm():
    batch = pictures()
    case = SOUND["ResNet-8"]
    torch.manual_seed(0)
    model = case.make()
    gradient_descent(model, batch, 5, case.rate)
    assert alarms(analysed(model.eval(), batch)) == []


def test_the_groups_of_a_convolution_are_counted_one_by_one():
    """240 groups of 9 inputs need 8 · 9 vectors, each of which every group sees a part of."""
    depthwise = {"d_in": 2160, "d_out": 240, "rank_x": 2160, "rank_g": 240, "groups": 240}
    assert findings([report((2, {**depthwise, "rows": 72}))]) == []
    [found] = findings([report((2, {**depthwise, "rows": 71}))])
    assert (found.kind, found.severity) == ("too few samples", "info")
    assert "2160 inputs and 240 outputs in 240 groups" in found.evidence
    starved = {**depthwise, "rows": 4, "rank_x": 960, "kappa50_x": math.inf}
    assert ("too few samples", "warning", "linear2") in kinds(findings([report((2, starved))]))
