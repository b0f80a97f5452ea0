"""The descent on a quadratic, which knows no eigendirections, against the closed forms."""

import math
from itertools import pairwise

import pytest

from lca_widgets.experiments import QuadraticSettings, quadratic
from lca_widgets.linear_models import best_momentum, best_step, line_search_bound


def run(**settings):
    return list(quadratic(QuadraticSettings(**settings)))


@pytest.mark.parametrize("method", ["gradient", "momentum"])
@pytest.mark.parametrize("rate", [0.3, 1.0, 1.98, 2.02])
def test_both_eigendirections_follow_the_closed_form(method, rate):
    for m in run(method=method, rate=rate, kappa=50.0, rotation=37.0, steps=200):
        for measured, predicted in zip(m.errors, m.predicted, strict=True):
            assert abs(measured - predicted) < 1e-10 * max(1, abs(predicted))
        assert m.training.loss == pytest.approx(m.predicted_loss, rel=1e-9, abs=1e-12)


def test_each_gradient_step_multiplies_by_one_minus_eta_lambda():
    measurements = run(rate=1.9, kappa=4.0, steps=10)
    assert measurements[10].errors == pytest.approx(((-0.9) ** 10, (1 - 1.9 / 4) ** 10))


def test_just_below_the_limit_the_loss_falls_at_every_step():
    losses = [m.training.loss for m in run(rate=1.98, steps=500)]
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 1e-8 * losses[0]


def test_just_above_the_limit_it_grows_until_the_run_says_so():
    *others, last = run(rate=2.02, steps=5000)
    assert last.training.diverged
    assert not any(m.training.diverged for m in others)
    assert 1e6 < last.training.loss / others[0].training.loss < 1.1e6
    assert last.training.step == pytest.approx(math.log(1e6) / (2 * math.log(1.02)), abs=5)


def test_momentum_widens_the_limit_to_two_times_one_plus_beta():
    settings = {"method": "momentum", "momentum": 0.5, "steps": 800}
    assert run(rate=2.96, **settings)[-1].training.loss < 1e-6
    assert run(rate=3.04, **settings)[-1].training.diverged


@pytest.mark.parametrize(
    ("method", "tuned"), [("gradient", best_step), ("momentum", best_momentum)]
)
def test_the_best_fixed_settings_reach_their_factor(method, tuned):
    tuning = tuned(1.0, 1 / 100)
    measurements = run(
        kappa=100.0, method=method, rate=tuning.rate, momentum=tuning.momentum, steps=300
    )
    sizes = [math.hypot(*m.errors) for m in measurements]
    factor = (sizes[300] / sizes[200]) ** (1 / 100)
    assert factor == pytest.approx(tuning.factor, rel=0.01)


def test_line_search_zig_zags_at_its_worst_rate_and_keeps_to_the_bound_elsewhere():
    worst = run(method="line-search", start="zig-zag", kappa=20.0, steps=30)
    bound = line_search_bound(20.0)
    losses = [m.training.loss for m in worst]
    for before, after in pairwise(losses):
        assert after / before == pytest.approx(bound)
    steep = [m.errors[0] for m in worst]
    assert all(a * b < 0 for a, b in pairwise(steep))
    for m in run(method="line-search", start="random", seed=3, kappa=20.0, steps=30):
        assert m.training.loss <= m.predicted_loss * (1 + 1e-12)
        assert all(math.isnan(value) for value in m.predicted)


def test_line_search_on_a_circle_arrives_in_one_step_and_stays_there():
    measurements = run(method="line-search", kappa=1.0, steps=3)
    assert [m.training.loss < 1e-30 for m in measurements] == [False, True, True, True]
    assert not measurements[-1].training.diverged


def test_many_line_searches_underflow_without_a_false_alarm():
    assert not any(m.training.diverged for m in run(method="line-search", kappa=5.0, steps=1200))


def test_the_rotation_turns_the_path_and_changes_nothing_else():
    plain, turned = run(rotation=0.0, steps=5), run(rotation=90.0, steps=5)
    for a, b in zip(plain, turned, strict=True):
        assert b.point == pytest.approx((-a.point[1], a.point[0]))
        assert b.errors == pytest.approx(a.errors)


def test_the_seed_draws_the_random_start_and_no_other():
    first, second = (run(start="random", seed=seed, steps=0)[0].point for seed in (0, 1))
    assert first != pytest.approx(second)
    assert math.hypot(*first) == pytest.approx(math.sqrt(2))
    assert run(seed=1, steps=0)[0].point == run(seed=0, steps=0)[0].point


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("kappa", 0.5, "kappa must be between 1 and 10000, got 0.5"),
        ("rate", 5.0, "rate must be between 0.01 and 4, got 5.0"),
        ("method", "newton", "method must be one of 'gradient', 'momentum', 'line-search', got"),
        ("momentum", 1.0, "momentum must be at least 0 and below 1, got 1.0"),
        ("start", "far", "start must be one of 'equal', 'zig-zag', 'random', got 'far'"),
        ("rotation", 91.0, "rotation must be between -90 and 90, got 91.0"),
        ("steps", -1, "steps must be between 0 and 10000, got -1"),
        ("seed", -1, "seed must be between 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_words(field, value, words):
    with pytest.raises(ValueError, match=words):
        QuadraticSettings(**{field: value})
