"""The false minimum: it stalls, recovers when rescaled, and its product tells it from the others.

All at a size that runs in a second or two; the same is asserted at full size in notebook 05.
"""

import dataclasses
import math
from functools import cache, partial

import pytest
import torch

from lca_widgets.data import digits
from lca_widgets.experiments.false_minimum import (
    FalseMinimumSettings,
    along_gradient,
    false_minimum,
    plateau_outcome,
    rescale_to,
)
from lca_widgets.experiments.weight_domination import layer_weights
from lca_widgets.models import NORMS, mlp
from lca_widgets.surgery import freeze
from lca_widgets.training import TrainingRun, TrainingSettings

# Deep enough for units under γ and β to die in every layer; at six layers some runs live on.
DEAD = {"norm": "batch", "depth": 10, "plateau_steps": 100}
TINY = FalseMinimumSettings(depth=6, samples=256, plateau_steps=40, branch_steps=60, every=20)
DATA = digits().train.first(256)
MODULE = plateau_outcome.__globals__  # the package's name for the module is the function's


@cache
def outcome(**changes):
    return plateau_outcome(dataclasses.replace(TINY, **changes))


def run(**changes):
    return list(false_minimum(dataclasses.replace(TINY, **changes)))


@pytest.mark.parametrize("seed", range(5))
def test_the_run_stalls_and_recovers_when_its_weights_are_rescaled(seed):
    end = outcome(seed=seed)
    assert end.plateau > 0.7 * end.start
    assert end.wait > 1.5
    assert end.lower == pytest.approx(end.plateau, abs=1e-3)
    assert end.rescaled == pytest.approx(end.plateau, rel=1e-5)
    assert end.rescale < 0.15
    assert end.restart < 0.15


def test_the_product_tells_the_three_plateaus_apart():
    false = [outcome(seed=seed).plateau_sensitivity for seed in range(3)]
    real = [outcome(seed=seed).restart_sensitivity for seed in range(3)]
    dead = [outcome(seed=seed, **DEAD).plateau_sensitivity for seed in range(3)]
    assert min(false) > 50 * max(real)
    assert min(real) > 50 * max(dead)


def test_the_impostor_is_dead_at_any_size_of_its_weights():
    end = outcome(**DEAD)
    assert end.plateau_silent > 0.8
    assert end.rescale == pytest.approx(end.plateau, rel=1e-3)
    assert end.restart < 0.15
    assert outcome().plateau_silent == 0
    assert outcome().plateau_dying == 0  # without γ and β a unit is open for some sample


@pytest.mark.parametrize("norm", ["batch-fixed", "layer-fixed", "group-fixed", "weight"])
def test_weights_drawn_too_large_stall_under_every_normalisation_and_recover(norm):
    end = outcome(norm=norm, gain=1000.0, learning_rate=0.1, new_rate=0.1)
    assert end.lower == pytest.approx(end.start, rel=0.01)
    assert end.rescale < 0.3 * end.plateau


@pytest.mark.parametrize("norm", ["layer-fixed", "group-fixed", "weight"])
def test_large_steps_under_other_normalisations_are_not_undone_by_rescaling(norm):
    end = outcome(norm=norm, new_rate=0.1)
    assert end.rescale > 1
    assert end.restart < 0.5


def test_without_normalisation_the_rate_diverges_and_only_the_restart_goes_on():
    measured = run(
        norm="none",
        learning_rate=1e4,
        train_last=True,
        branches="wait,rescale,restart",
        new_rate=0.1,
    )
    ends = {m.branch: m.training for m in measured}
    assert ends["plateau"].diverged
    assert ends["wait"].diverged
    assert ends["rescale"].diverged
    assert ends["restart"].loss < 1


def test_branches_begin_where_the_run_stood_and_count_on():
    measured = run(branches="wait,rescale,restart")
    steps = {
        name: [m.step for m in measured if m.branch == name]
        for name in ("plateau", "wait", "restart")
    }
    assert steps["plateau"] == [0, 20, 40]
    assert steps["wait"] == steps["restart"] == [40, 60, 80, 100]
    by_branch = {}
    for m in measured:
        by_branch.setdefault(m.branch, m.training.loss)
    at_fork = next(m for m in measured if m.step == 40).training.loss
    assert by_branch["wait"] == at_fork
    assert by_branch["rescale"] == pytest.approx(at_fork, rel=1e-5)
    assert by_branch["restart"] == measured[0].training.loss
    done = [m.training.step for m in measured]
    assert done == sorted(done)
    assert done[-1] == dataclasses.replace(TINY, branches="wait,rescale,restart").steps == 220


def test_waiting_is_the_run_gone_on():
    longer, waited = run(plateau_steps=100), run(branches="wait")
    assert waited[-1].training.loss == longer[-1].training.loss


def test_a_run_asked_for_again_is_the_same_and_costs_nothing(monkeypatch):
    first = run(seed=11, branches="lower")
    refusal = partial(pytest.fail, "measured again")
    monkeypatch.setitem(MODULE, "layer_weights", refusal)
    assert run(seed=11, branches="lower") == first


@pytest.mark.parametrize("calls", [1, 2, 4, 5])
def test_an_interruption_is_not_taken_for_the_end(monkeypatch, calls):
    settings = dataclasses.replace(TINY, seed=13 + calls, branches="lower")
    left = iter(range(calls - 1))

    def interrupted(model):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return layer_weights(model)

    with monkeypatch.context() as patch:
        patch.setitem(MODULE, "layer_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(false_minimum(settings))
    assert [m.step for m in false_minimum(settings)] == [0, 20, 40, 40, 60, 80, 100]


def test_a_reader_who_stops_half_way_leaves_the_rest_to_the_next_one():
    settings = dataclasses.replace(TINY, seed=12)
    next(false_minimum(settings))
    assert [m.step for m in false_minimum(settings)] == [0, 20, 40]


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_rescaling_keeps_the_function_and_the_product(norm):
    model = mlp(64, 10, depth=4, width=32, norm=norm, gain=50.0).double()
    reference = mlp(64, 10, depth=4, width=32, norm=norm)
    states = []
    for _ in range(2):
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(DATA.x.double()), DATA.y)
        loss.backward()
        states.append((loss.item(), layer_weights(model)))
        rescale_to(model, reference)
    (before, old), (after, new) = states
    assert after == pytest.approx(before, rel=1e-10)
    for one, other, target in zip(old[:-1], new[:-1], layer_weights(reference)[:-1], strict=True):
        assert other.weight_norm == pytest.approx(target.weight_norm, rel=1e-6)
        assert other.sensitivity == pytest.approx(one.sensitivity, rel=1e-6)
    assert new[-1].weight_norm == old[-1].weight_norm


def test_downhill_leads_down_from_a_false_minimum_and_nowhere_from_a_dead_network():
    walks = {}
    for norm in ("batch-fixed", "batch"):
        model = mlp(64, 10, depth=10, width=64, norm=norm)
        freeze(model, "1111111110")
        list(TrainingRun(model, DATA, TrainingSettings(100, 1e6)))
        before = [p.detach().clone() for p in model.parameters()]
        walks[norm] = along_gradient(model, DATA, [0.0, 0.01])
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert walks["batch-fixed"][1] < walks["batch-fixed"][0] - 0.1
    assert walks["batch"][1] == pytest.approx(walks["batch"][0], abs=1e-4)


def test_blanks_between_branches_do_not_count():
    assert FalseMinimumSettings(branches="wait, lower").branch_names == ("wait", "lower")


def test_what_was_not_done_is_not_known():
    end = outcome(branches="rescale")
    assert math.isnan(end.wait)
    assert math.isnan(end.restart_sensitivity)
    assert end.rescale < 0.15


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"branches": "fly"}, ValueError, "branches must be one of 'wait', 'lower', .*, got 'fly'"),
        ({"branches": "wait,wait"}, ValueError, "branches must be different ones, got 'wait,wait'"),
        ({"branches": None}, TypeError, "branches must be a text, got None"),
        ({"gain": 0.0}, ValueError, "gain must be between 0.001 and 1000, got 0.0"),
        ({"train_last": 1.5}, ValueError, "train_last must be one of False, True, got 1.5"),
        ({"plateau_steps": -1}, ValueError, "plateau_steps must be between 0 and 10000, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        FalseMinimumSettings(**changes)
