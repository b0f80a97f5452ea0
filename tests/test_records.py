"""Records hold plain numbers of the right layer; tables have one row a layer and step."""

import math

import pytest
import torch

from lca_widgets.curvature import LayerSpectra, Spectrum
from lca_widgets.records import Measurement, layer_records, layer_table, step_table
from lca_widgets.training import StepRecord

SPECTRA = [
    LayerSpectra("first", Spectrum([9.0, 3.0, 1.0], n=40), Spectrum([4.0, 2.0], n=40)),
    LayerSpectra("second", Spectrum([5.0, 0.0], n=40), Spectrum([math.nan], n=40)),
]


def measurement(step):
    return Measurement(StepRecord(step, 0.5, 0.75), layer_records(SPECTRA))


def test_a_record_holds_what_the_spectra_say():
    first, _ = layer_records(SPECTRA)
    assert (first.layer, first.name, first.n, first.diverged) == (1, "first", 40, False)
    assert (first.lambda_max_x, first.lambda_max_g, first.lambda_max) == (9.0, 4.0, 36.0)
    assert (first.kappa50_x, first.kappa50_g) == (3.0, 1.0)
    assert (first.rank_x, first.rank_g, first.d_in, first.d_out) == (3, 2, 3, 2)


def test_a_diverged_factor_flags_the_layer_and_leaves_the_other_factor():
    _, second = layer_records(SPECTRA)
    assert (second.layer, second.diverged) == (2, True)
    assert (second.lambda_max_x, second.kappa50_x, second.rank_x) == (5.0, 1.0, 1)
    assert math.isnan(second.lambda_max_g)
    assert math.isnan(second.lambda_max)
    assert second.rank_g == 0


def test_numbers_are_plain():
    for record in layer_records(SPECTRA):
        assert not any(isinstance(value, torch.Tensor) for value in vars(record).values())


def test_the_layer_table_has_one_row_a_layer_and_step():
    table = layer_table(map(measurement, (0, 10)))
    assert table[["step", "layer"]].to_numpy().tolist() == [[0, 1], [0, 2], [10, 1], [10, 2]]
    assert table["kappa50_x"].tolist() == [3.0, 1.0] * 2
    assert table["diverged"].tolist() == [False, True] * 2


def test_the_step_table_has_one_row_a_step():
    table = step_table(map(measurement, (0, 10)))
    assert table.to_dict("list") == {
        "step": [0, 10], "loss": [0.5] * 2, "accuracy": [0.75] * 2, "diverged": [False] * 2,
    }  # fmt: skip


@pytest.mark.parametrize("make", [layer_table, step_table])
def test_no_measurements_give_an_empty_table_with_the_same_columns(make):
    assert len(make([])) == 0
    assert list(make([]).columns) == list(make([measurement(0)]).columns)
