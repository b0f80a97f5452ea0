"""The labs of notebook 02: what their charts, words and tables are told."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from lca_widgets.labs import CurvatureMatrices, SampleSize
from lca_widgets.labs.curvature_matrices import describe_matrices
from lca_widgets.labs.sample_size import describe_sample_size
from tests.widgets.lab_checks import (
    assert_presets_and_controls_are_of_settings,
    finished_on_screen,
    rows,
)

TINY = {"components": 2, "width": 2, "depth": 2, "samples": 12, "steps": 2}
FEW = {"layer": 2, "width": 8, "steps": 3, "samples": 200}

labs = pytest.mark.parametrize(("kind", "settings"), [(CurvatureMatrices, TINY), (SampleSize, FEW)])


@functools.cache
def ran(kind, **changes):
    return kind.run(**((TINY if kind is CurvatureMatrices else FEW) | changes))


@labs
def test_a_lab_on_screen_measures_what_its_headless_run_does(kind, settings):
    with finished_on_screen(kind, settings) as lab:
        assert lab.measurements == ran(kind)


@labs
def test_every_preset_and_control_is_of_settings_that_exist(kind, settings):
    assert_presets_and_controls_are_of_settings(kind)


@labs
def test_the_fixed_ends_hold_what_is_drawn(kind, settings):
    run = ran(kind)
    limits = kind.limits(kind.settings_type(**settings), run[0])
    for name, table in kind.tables.items():
        for column, values in zip(table.columns, rows(kind, name, run[-1]).T, strict=True):
            low, high = limits.get(column, (-math.inf, math.inf))
            assert low <= np.nanmin(values)
            assert np.nanmax(values) <= high


def test_cells_are_sizes_relative_to_the_largest_entry():
    m = ran(CurvatureMatrices)[0]
    cells = rows(CurvatureMatrices, "entries", m)
    assert len(cells) == len(m.fisher.eigenvalues) ** 2
    hessian = m.hessian.tensor.abs()
    expected = (hessian / hessian.max()).clamp(min=1e-3)
    assert np.allclose(cells[:, 3], expected.flatten())
    assert cells[1][:3].tolist() == [0, 1, 2]  # the first row's second column
    assert cells[-1][7] == pytest.approx(m.kronecker.tensor[-1, -1] / m.kronecker.tensor.max())


def test_negative_eigenvalues_are_a_line_of_their_own():
    m = ran(CurvatureMatrices)[0]
    drawn = rows(CurvatureMatrices, "spectra", m)
    hessian = np.array(m.hessian.eigenvalues)
    assert m.negative_eigenvalues > 0
    assert np.array_equal(drawn[drawn[:, 2] == 4][:, 3], -hessian[hessian < 0])
    assert np.array_equal(drawn[drawn[:, 2] == 0][:, 3], hessian[hessian > 0])


def test_the_loss_of_every_step_is_drawn_though_few_are_measured():
    run = ran(CurvatureMatrices, steps=7)
    assert [m.training.step for m in run] == [0, 1, 2, 5, 7]
    drawn = np.concatenate([rows(CurvatureMatrices, "steps", m) for m in run])
    assert drawn[:, 0].tolist() == list(range(8))


def test_the_words_give_the_numbers_of_the_measurement():
    m = ran(CurvatureMatrices)[-1]
    words = describe_matrices(m)
    assert f"has {m.negative_eigenvalues} negative eigenvalues" in words
    assert f"λ_max of the whole network, {m.lambda_max:.3g}" in words
    few = CurvatureMatrices.run(samples=2, labels="data", steps=0)[0]
    assert "the blocks' κ_50 is infinite: too few samples" in describe_matrices(few)


def test_a_diverged_run_says_so_in_words():
    *_, last = ran(CurvatureMatrices, depth=5, activation="linear", learning_rate=1e4, steps=50)
    assert last.training.diverged
    assert describe_matrices(last).startswith("The run diverged")
    assert np.isnan(rows(CurvatureMatrices, "entries", last)[:, 3:]).all()


def test_a_network_without_gradients_is_said_to_be_dead():
    dead = {"activation": "relu", "depth": 5, "learning_rate": 0.01, "samples": 430, "steps": 10}
    *_, last = ran(CurvatureMatrices, **dead, components=4)
    assert last.lambda_max == 0
    assert "every block is zero" in describe_matrices(last)
    assert CurvatureMatrices.results(last)["λ_max, Kronecker : exact"] == "–"


def test_the_words_say_whether_the_samples_are_enough():
    fewest, *_, most = ran(SampleSize)
    assert f"{fewest.n} is fewer than 8·d = 64" in describe_sample_size(fewest)
    assert f"{most.n} is at least 8·d = 64" in describe_sample_size(most)
    below_rank = ran(SampleSize, width=64, steps=1)[0]
    assert "κ_p is infinite, because Σ_x has rank 16 only" in describe_sample_size(below_rank)
    past_rank = ran(SampleSize, layer=1, p=1.0, steps=0)[0]
    assert "infinite even with all 1437 samples" in describe_sample_size(past_rank)


def test_no_band_is_drawn_where_kappa_is_infinite_or_the_samples_are_fewer_than_twice_d():
    infinite, *_ = ran(SampleSize, width=64, steps=1)
    few, *_, most = ran(SampleSize, width=16)
    assert infinite.kappa.estimate == math.inf
    assert few.n < 2 * few.dimension
    assert most.n >= 2 * most.dimension
    bands = [rows(SampleSize, "kappa", m)[0, 3:].tolist() for m in (infinite, few, most)]
    assert np.isnan(bands[:2]).all()
    assert bands[2] == [most.kappa.low, most.kappa.high]
    assert "fewer than 2·d samples give it no interval" in describe_sample_size(few)
    assert f"its interval is {most.kappa.low:.3g} to" in describe_sample_size(most)


def test_the_table_holds_the_interval_and_the_value_of_all_samples():
    table = SampleSize.tabulate(ran(SampleSize))
    last = ran(SampleSize)[-1]
    assert table["n"].tolist() == [16, 37, 86, 200]
    assert table["kappa_low"].iloc[-1] == last.kappa.low
    assert (table["kappa_all"] == last.kappa_all).all()


def test_the_block_table_has_a_row_for_each_layer_and_step():
    table = CurvatureMatrices.tabulate(ran(CurvatureMatrices))
    assert table[["step", "layer"]].to_numpy().tolist() == [
        [step, layer] for step in (0, 1, 2) for layer in (1, 2)
    ]
    assert (table["whole"] <= table["sum_of_blocks"]).all()
