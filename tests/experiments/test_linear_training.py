"""Runs on real tables: what theory says of them is checked against the runs themselves."""

import math
import sys
import time
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from lca_widgets.data import TABLES, table
from lca_widgets.experiments import (
    LinearSettings,
    iterations_to_reach,
    kappa_sweep,
    linear_training,
    log_log_slope,
    preparation_sweep,
)
from lca_widgets.experiments.linear_training import linear_problem
from lca_widgets.linear_models import PREPARATIONS


def run(**settings):
    return list(linear_training(LinearSettings(**settings)))


def losses(measurements):
    return [m.training.loss for m in measurements]


@pytest.fixture(scope="module")
def sweep():
    return {(record.data, record.preparation): record for record in preparation_sweep()}


def test_every_table_and_preparation_falls_just_below_the_limit_and_grows_just_above(sweep):
    assert set(sweep) == {(data, way) for data in TABLES for way in PREPARATIONS}
    for record in sweep.values():
        assert record.falls_below, record
        assert record.left_below < 0.8, record
        assert 300 < record.diverged_above < 500, record


def test_the_sweep_can_tell_a_run_that_does_not_fall_or_grow(monkeypatch):
    module = sys.modules[preparation_sweep.__module__]
    monkeypatch.setattr(module, "JUST_BELOW", 2.02)
    monkeypatch.setattr(module, "JUST_ABOVE", 1.98)
    for record in preparation_sweep(["wine"]):
        assert not record.falls_below
        assert record.left_below > 1
        assert math.isinf(record.diverged_above)


def test_each_preparation_lowers_kappa_and_whitening_makes_it_one(sweep):
    for data in TABLES:
        kappas = [sweep[data, way].kappa for way in PREPARATIONS]
        assert all(after < before for before, after in pairwise(kappas))
        assert kappas[0] > 1e3 * kappas[2]
        assert kappas[3] == pytest.approx(1, abs=1e-9)


def test_whitened_inputs_need_one_step_and_raw_ones_ten_thousands(sweep):
    for data in TABLES:
        counts = [sweep[data, way].iterations for way in PREPARATIONS]
        assert counts[3] == 1
        assert counts[2] > 10
        assert counts[0] > 5e5


def test_digits_have_rank_61_beside_the_constant(sweep):
    for way in PREPARATIONS:
        assert sweep["digits", way].rank == 62
    assert sweep["digits", "raw"].dimension == 65


@pytest.mark.parametrize("data", [*TABLES, "gaussian"])
@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_every_eigendirection_follows_the_closed_form(data, preparation):
    for method, rate in (("gradient", 1.9), ("momentum", 3.0)):
        measurements = run(data=data, preparation=preparation, method=method, rate=rate, steps=30)
        for m in measurements[::10]:
            assert len(m.errors) == m.inputs.rank
            worst = max(abs(a - b) for a, b in zip(m.errors, m.predicted, strict=True))
            assert worst < 1e-10
            assert m.excess == pytest.approx(
                m.predicted_excess, rel=1e-6, abs=1e-20 * m.training.loss
            )


def test_the_excess_is_the_loss_on_the_data_less_its_minimum():
    settings = LinearSettings(data="diabetes", steps=3)
    problem = linear_problem(settings)
    x, y = problem.x.numpy(), problem.targets.numpy()
    best, *_ = np.linalg.lstsq(x, y, rcond=None)
    lowest = 0.5 * ((x @ best - y) ** 2).mean()
    weights = np.zeros_like(best)
    rate = 1.9 / np.linalg.eigvalsh(x.T @ x / len(x))[-1]
    for m in run(data="diabetes", steps=3):
        loss = 0.5 * ((x @ weights - y) ** 2).mean()
        assert m.training.loss == pytest.approx(loss, rel=1e-10)
        assert m.excess == pytest.approx(loss - lowest, rel=1e-8)
        weights -= rate * x.T @ (x @ weights - y) / len(x)


def test_all_preparations_start_at_one_loss_and_have_one_minimum():
    for data in TABLES:
        starts = [run(data=data, preparation=way, steps=0)[0] for way in PREPARATIONS]
        for m in starts[1:]:
            assert m.training.loss == pytest.approx(starts[0].training.loss, rel=1e-9)
            assert m.inputs.infimum == pytest.approx(starts[0].inputs.infimum, rel=1e-9)


def test_the_cut_off_leaves_the_reported_loss_alone():
    settings = LinearSettings("gaussian", "raw", method="momentum", cutoff=0.05, steps=60)
    *_, last = linear_training(settings)
    problem = linear_problem(settings)
    weights = velocity = problem.start()
    rate = settings.rate / problem.lambda_max(weights)
    for _ in range(60):
        velocity = settings.momentum * velocity + problem.gradient(weights)
        weights = weights - rate * velocity
    assert last.inputs.rank < 18
    assert last.training.loss == pytest.approx(problem.loss(weights), rel=1e-6)
    assert last.excess == pytest.approx(last.predicted_excess, rel=1e-6)


def test_a_preconditioned_step_leaves_directions_below_the_cut_as_predicted():
    settings = {"data": "gaussian", "preparation": "raw", "cutoff": 1e-1, "rate": 1.0, "steps": 1}
    start, after = run(method="preconditioned", **settings)
    assert 0.1 * start.excess < after.excess == pytest.approx(after.predicted_excess, rel=1e-9)


def test_a_newton_run_that_overshoots_ends_as_diverged():
    measurements = run(
        data="digits", preparation="whitened", model="softmax", method="preconditioned",
        rate=4.0, steps=12,
    )  # fmt: skip
    assert measurements[-1].training.diverged
    assert len(measurements) < 13


def test_whitening_with_a_cut_that_costs_functions_has_an_infimum_of_its_own():
    settings = {"data": "breast-cancer", "model": "logistic", "cutoff": 1e-2, "steps": 0}
    whole = run(preparation="standardised", **settings)[0].inputs
    cut = run(preparation="whitened", **settings)[0].inputs
    assert (whole.separable, whole.infimum, cut.separable) == (True, 0.0, False)
    assert cut.infimum > 0.04


def test_the_excess_of_a_converged_run_is_never_negative():
    # Toward infinity the loss goes on falling below where the search for its infimum stopped.
    settings = {"data": "digits", "preparation": "whitened", "model": "logistic"}
    *_, last = run(method="preconditioned", rate=1.0, steps=40, **settings)
    assert 0 <= last.excess < 1e-11


def test_a_diverged_run_is_not_counted_to_its_end():
    started = time.perf_counter()
    assert iterations_to_reach(LinearSettings(rate=4.0, steps=100_000)) == math.inf
    assert time.perf_counter() - started < 1


def test_a_large_lambda_max_is_measured_a_hundred_times_in_a_run():
    measurements = linear_training(LinearSettings("digits", model="softmax", steps=300))
    lambdas = [m.lambda_max for m in islice(measurements, 4)]
    assert lambdas[0] == lambdas[1] == lambdas[2] != lambdas[3]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: list(kappa_sweep([0.5])), "kappas must be between 1 and"),
        (lambda: log_log_slope([1, 2], [1]), "y must have as many numbers as x, 2, got 1"),
        (lambda: log_log_slope([1, 1], [1, 2]), "x must hold at least two different numbers"),
        (lambda: log_log_slope([1, 2], [1, math.inf]), "y must be finite and above 0, got inf"),
    ],
)
def test_a_bad_argument_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("data", TABLES)
def test_one_preconditioned_step_arrives_whatever_kappa(data):
    start, after = run(data=data, method="preconditioned", rate=1.0, steps=1)
    assert start.inputs.kappa > 40
    assert after.excess < 1e-15 * start.excess


def test_counted_iterations_are_the_predicted_ones(sweep):
    for data in ("diabetes", "wine", "digits"):
        settings = LinearSettings(data, "standardised", rate=1.0, steps=200)
        assert iterations_to_reach(settings) == sweep[data, "standardised"].iterations
    assert iterations_to_reach(LinearSettings("wine", "raw", rate=1.0, steps=200)) == math.inf


def test_iterations_grow_with_kappa_and_with_its_root_for_momentum():
    kappas = [30.0, 100.0, 300.0, 1000.0, 3000.0]
    records = list(kappa_sweep(kappas))
    slope = log_log_slope(kappas, [record.gradient for record in records])
    assert 0.95 < slope < 1.05
    slope = log_log_slope(kappas, [record.momentum for record in records])
    assert 0.45 < slope < 0.65  # the factor t of t·β^(t/2) makes it a little more than a half


def test_a_run_beyond_the_limit_ends_with_a_diverged_record():
    *others, last = run(data="diabetes", rate=2.02, steps=5000)
    assert last.training.diverged
    assert last.training.loss > 1e6 * others[0].training.loss
    assert not any(m.training.diverged for m in others)
    assert last.lambda_max > last.limit


def test_the_logistic_hessian_shrinks_so_that_a_rate_safe_at_the_start_stays_safe():
    measurements = run(data="breast-cancer", model="logistic", rate=1.9, steps=100)
    lambdas = [m.lambda_max for m in measurements]
    assert lambdas[0] == pytest.approx(measurements[0].inputs.eigenvalues[0] / 4)
    assert max(lambdas) == lambdas[0]
    assert lambdas[-1] < 0.1 * lambdas[0]
    assert all(after < before for before, after in pairwise(losses(measurements)))


def test_a_logistic_run_survives_twice_the_limit_of_its_start():
    measurements = run(data="breast-cancer", model="logistic", rate=4.0, steps=100)
    assert measurements[0].lambda_max == pytest.approx(2 * measurements[0].limit)
    assert measurements[-1].lambda_max < 0.2 * measurements[0].limit
    assert measurements[-1].training.loss < 0.2 * measurements[0].training.loss


def test_a_softmax_rate_that_is_safe_at_the_start_can_become_unsafe():
    measurements = run(data="wine", preparation="raw", model="softmax", rate=1.9, steps=40)
    assert measurements[0].lambda_max < 0.96 * measurements[0].limit
    assert max(m.lambda_max for m in measurements) > 1.02 * measurements[0].limit
    found = losses(measurements)
    assert sum(after > before for before, after in pairwise(found)) >= 3


def test_separable_classes_let_the_whole_hessian_vanish():
    measurements = run(data="wine", model="softmax", steps=200)
    first, last = measurements[0], measurements[-1]
    assert (first.inputs.separable, first.inputs.infimum) == (True, 0.0)
    assert last.training.accuracy == 1
    for before, after in zip(first.hessian[:20], last.hessian, strict=False):
        assert after < 0.2 * before
    assert last.excess == last.training.loss


def test_odd_and_even_digits_are_not_separable_and_four_pixels_have_no_best_weight():
    first = run(data="digits", model="logistic", steps=0)[0]
    assert not first.inputs.separable
    assert 0.16 < first.inputs.infimum < 0.17
    x, even = table("digits").x, table("digits").y % 2 == 0
    lit = x > 0
    one_sided = [k for k in range(64) if lit[:, k].any() and even[lit[:, k]].all()]
    assert one_sided == [31, 40, 48, 56]


def test_a_large_hessian_has_its_largest_eigenvalue_measured_and_no_spectrum():
    first, after = run(data="digits", model="softmax", steps=1)
    assert first.hessian == ()
    assert first.lambda_max == pytest.approx(first.inputs.eigenvalues[0] / 10, rel=1e-3)
    assert after.lambda_max < first.lambda_max
    assert math.isnan(after.predicted_excess)


def test_newton_on_separable_data_lowers_the_loss_by_e_a_step():
    measurements = run(
        data="wine", preparation="whitened", model="softmax", method="preconditioned", rate=1.0,
        steps=8,
    )  # fmt: skip
    ratios = [b / a for a, b in pairwise(losses(measurements)[3:])]
    for ratio in ratios:
        assert ratio == pytest.approx(math.exp(-1), rel=0.3)


def test_the_seed_and_kappa_make_the_gaussian_data():
    options = {"data": "gaussian", "preparation": "raw", "steps": 5}
    seeds = (0, 0, 1)
    first, again, other = (linear_problem(LinearSettings(**options, seed=s)).x for s in seeds)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.1
    for kappa in (10.0, 100.0):
        inputs = run(**options, kappa=kappa)[0].inputs
        assert inputs.kappa == pytest.approx(kappa)
        assert min(inputs.eigenvalues) == pytest.approx(1 / kappa)
    # Every draw has the same spectrum, and explains the same share of it in each direction.
    assert losses(run(**options, seed=1)) == pytest.approx(losses(run(**options, seed=0)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "iris"}, "data must be one of 'diabetes', 'wine', .*, got 'iris'"),
        ({"preparation": "pca"}, "preparation must be one of 'raw', .*, got 'pca'"),
        ({"model": "svm"}, "model must be one of 'least-squares', .*, got 'svm'"),
        (
            {"data": "diabetes", "model": "softmax"},
            "model must be 'least-squares' for 'diabetes', .*, got 'softmax'",
        ),
        ({"method": "adam"}, "method must be one of 'gradient', .*, got 'adam'"),
        ({"rate": 0.0}, "rate must be between 0.01 and 4, got 0.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"steps": -1}, "steps must be between 0 and 100000, got -1"),
        ({"cutoff": 1.0}, "cutoff must be between 1e-16 and 0.1, got 1.0"),
        ({"kappa": 0.1}, "kappa must be between 1 and 1e.06, got 0.1"),
        ({"seed": -1}, "seed must be between 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        LinearSettings(**settings)
