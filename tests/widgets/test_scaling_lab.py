"""The scaling lab without a browser: what its chart and its words say is what was measured."""

from __future__ import annotations

import html

import pytest

from lca_widgets.labs import Scaling

SMALL = {"depth": 4, "width": 8, "layer": 2, "samples": 16}
PATIENCE = 30  # seconds until a wait counts as hung


@pytest.fixture
def lab():
    lab = Scaling(**SMALL)
    yield lab
    lab.close()


def finished(lab, **settings):
    if settings:
        lab.set(**settings)
    else:
        lab.start()
    assert lab.wait(PATIENCE)
    return lab


def words(lab):
    return html.unescape(lab._sentence.value)


def test_the_chart_holds_measured_and_predicted_ratios_of_every_layer(lab):
    [measurement] = finished(lab).measurements
    rows = lab.chart.rows("layers")
    expected = []
    for layer in measurement.layers:
        found = (layer.z, layer.g, layer.weight_grad)
        expected.append([0, layer.layer, 0, *(one.ratio for one in found)])
        expected.append([0, layer.layer, 1, *(one.predicted for one in found)])
    assert rows.tolist() == expected
    assert lab.chart.rows("deviations").shape == (4 * 3, 4)


def test_each_preset_can_be_run_and_says_what_its_name_promises(lab):
    finished(lab)
    for name, settings in Scaling.presets.items():
        finished(lab, **settings)
        as_predicted = "All tensors are as predicted" in words(lab)
        assert as_predicted == (name != "plain: the real loss"), name
        assert ("BN takes the factor out" in words(lab)) == name.startswith("BN"), name


def test_the_words_name_layers_and_factors(lab):
    finished(lab, factor=5.0)
    assert "W_2 by 5. The theorem: a layer's factor multiplies" in words(lab)
    finished(lab, norm="batch-fixed", layer=4)
    assert "W_4 by 5. The theorem: no BN follows the output layer" in words(lab)
    finished(lab, factor=1.0)
    assert "Nothing is scaled." in words(lab)


def test_a_layer_beyond_the_depth_is_refused_and_the_last_run_stays(lab):
    before = finished(lab).measurements
    lab.set(layer=9)
    assert lab.toolbar.view["error"] == "layer must be between 1 and 4, got 9"
    assert lab.measurements == before


def test_training_before_the_scaling_gives_a_measurement_a_step(lab):
    finished(lab, steps=3)
    assert [m.training.step for m in lab.measurements] == [0, 1, 2, 3]
    assert set(lab.chart.rows("layers")[:, 0]) == {0, 1, 2, 3}


def test_a_training_that_diverges_says_so(lab):
    finished(lab, depth=10, width=16, samples=32, learning_rate=1e6, steps=50)
    assert lab.toolbar.view["state"] == "diverged"
    assert "diverged at step" in words(lab)


def test_the_table_has_a_row_a_layer_with_its_factor_and_the_deviations(lab):
    table = finished(lab, output_factor=2.0).table()
    assert table["a"].tolist() == [1, 3, 1, 2]
    assert table["layer"].tolist() == [1, 2, 3, 4]
    assert table["weight_grad_ratio"].tolist() == pytest.approx([6, 2, 6, 3])
    assert table["g_deviation"].max() < 1e-10


def test_the_name_of_a_run_tells_it_from_others():
    kept = Scaling(**SMALL, norm="batch-fixed", output_factor=10.0, loss="cross-entropy")
    assert kept.name_run(kept._settings) == "BN 4×8, W_2 × 3, W_4 × 10, cross-entropy"
    kept.close()


def test_the_finished_figure_shows_all_four_panels(lab):
    titles = [panel.title for panel in finished(lab).figure().concat]
    assert len(titles) == 4
    assert titles[0] == "∂L/∂W_k, after : before"
