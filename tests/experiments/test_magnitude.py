"""At small scale: what an initialisation does to magnitudes, with and without BN."""

import functools
import math

import pytest
import torch

from lca_widgets.diagnosis import magnitude_factors
from lca_widgets.experiments import MagnitudeSettings, magnitude


@functools.cache
def at_start(**settings):
    """The measurement at initialisation of a network of 16 layers × 64."""
    defaults = {"depth": 16, "width": 64, "samples": 256, "steps": 0}
    [measurement] = magnitude(MagnitudeSettings(**(defaults | settings)))
    return measurement


def profile(measurement, field="lambda_max_x"):
    return [getattr(layer, field) for layer in measurement.layers]


def test_he_keeps_both_magnitudes_about_constant():
    # Single weights scatter: the geometric mean of five networks is within a tenth a layer.
    factors = torch.tensor([magnitude_factors(at_start(init="he", seed=s)) for s in range(5)])
    for factor in factors.log().mean(dim=0).exp().tolist():
        assert 0.85 < factor < 1.15


def test_lecun_divides_both_by_about_six_at_every_layer():
    factors = torch.tensor([magnitude_factors(at_start(init="lecun", seed=s)) for s in range(5)])
    for factor in factors.log().mean(dim=0).exp().tolist():
        assert 1 / 6.9 < factor < 1 / 5.2


def test_orthogonal_linear_layers_keep_both_exactly():
    measurement = at_start(init="orthogonal", activation="linear")
    x, g = profile(measurement), profile(measurement, "lambda_max_g")[:-1]
    assert max(x) == pytest.approx(min(x), rel=1e-4)
    assert max(g) == pytest.approx(min(g), rel=1e-4)


@pytest.mark.parametrize("norm", ["batch", "batch-fixed"])
def test_with_bn_the_forward_profile_is_flat_and_the_same_for_every_scale(norm):
    he = profile(at_start(norm=norm, init="he"))[1:]
    assert max(he) < 2.5 * min(he)
    gained = profile(at_start(norm=norm, init="he", gain=10.0))[1:]
    assert gained == pytest.approx(he, rel=1e-2)
    for init in ("lecun", "xavier", "normal", "orthogonal"):
        assert profile(at_start(norm=norm, init=init))[1:] == pytest.approx(he, rel=0.6)


@pytest.mark.parametrize("init", ["lecun", "he"])
def test_with_bn_the_gradient_still_grows_toward_the_input(init):
    forward, backward = magnitude_factors(at_start(norm="batch", init=init))
    assert 1 / 1.1 < forward < 1.1
    assert backward > 1.15
    g = profile(at_start(norm="batch", init=init), "lambda_max_g")
    assert g[0] > 5 * g[-2]


def test_every_layer_and_every_step_is_measured():
    measurements = list(magnitude(MagnitudeSettings(depth=4, width=8, samples=32, steps=3)))
    assert [m.training.step for m in measurements] == [0, 1, 2, 3]
    for m in measurements:
        assert [layer.name for layer in m.layers] == [f"linear{k}" for k in (1, 2, 3, 4)]
        assert [(layer.d_in, layer.d_out) for layer in m.layers] == [
            (64, 8), (8, 8), (8, 8), (8, 10),
        ]  # fmt: skip
        assert all(layer.n == 32 for layer in m.layers)
    # The data do not change, the first layer's gradient does.
    assert len({m.layers[0].lambda_max_x for m in measurements}) == 1
    assert len({m.layers[0].lambda_max_g for m in measurements}) == 4


def test_the_last_layer_has_gradients_of_rank_nine():
    assert at_start(init="he").layers[-1].rank_g == 9  # softmax gradients sum to zero
    assert math.isinf(at_start(init="he").layers[0].kappa50_x) is False


def test_the_same_settings_give_the_same_measurements_and_another_seed_others():
    settings = MagnitudeSettings(depth=3, width=8, samples=32, steps=2)
    first, again = list(magnitude(settings)), list(magnitude(settings))
    assert first == again
    other = MagnitudeSettings(depth=3, width=8, samples=32, steps=2, seed=1)
    assert list(magnitude(other)) != first


def test_training_lowers_the_loss():
    settings = MagnitudeSettings(depth=3, width=32, init="he", samples=256, steps=30)
    *_, last = measurements = list(magnitude(settings))
    assert last.training.loss < 0.7 * measurements[0].training.loss
    assert last.training.accuracy > 0.7


def test_too_large_a_rate_ends_in_a_diverged_record():
    settings = MagnitudeSettings(depth=6, width=16, init="he", samples=64, learning_rate=1e6)
    measurements = list(magnitude(settings))
    assert len(measurements) < 201
    last = measurements[-1]
    assert last.training.diverged
    assert any(layer.diverged for layer in last.layers)
    assert not any(m.training.diverged for m in measurements[:-1])


def test_a_network_that_overflows_at_its_start_is_a_diverged_record():
    [measurement] = magnitude(
        MagnitudeSettings(depth=40, width=16, init="he", gain=1e3, samples=64)
    )
    assert measurement.training.diverged
    assert measurement.layers[-1].diverged
    assert not math.isnan(measurement.layers[0].lambda_max_x)


def test_a_network_that_vanishes_is_zero_of_rank_zero_and_infinite_kappa():
    measurement = at_start(depth=40, init="lecun", gain=1e-3)
    last = measurement.layers[-1]
    assert (last.lambda_max_x, last.rank_x, last.kappa50_x) == (0.0, 0, math.inf)
    assert not last.diverged


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"depth": 1}, ValueError, "depth must be between 2 and 100, got 1"),
        ({"depth": 3.0}, TypeError, r"depth must be a whole number \(int\), got 3\.0 .*"),
        ({"width": 1025}, ValueError, "width must be between 2 and 1024, got 1025"),
        ({"init": "He"}, ValueError, "init must be one of 'lecun', .*'normal', got 'He'"),
        ({"gain": 0}, ValueError, r"gain must be between 0\.001 and 1000, got 0"),
        ({"activation": "gelu"}, ValueError, "activation must be one of .*'linear', got 'gelu'"),
        ({"norm": "layer"}, ValueError, "norm must be one of .*'batch-fixed', got 'layer'"),
        ({"learning_rate": 0}, ValueError, r"learning_rate must be between 1e-06 and .*, got 0"),
        ({"steps": -1}, ValueError, "steps must be between 0 and 100000, got -1"),
        ({"samples": 1}, ValueError, "samples must be at least 2, got 1"),
        ({"seed": 2**31}, ValueError, "seed must be between 0 and 2147483647, got 2147483648"),
        ({"data": 5}, TypeError, "data must be 'digits' or the path of a folder, got 5"),
        ({"device": "tpu"}, ValueError, r"device must be one of .*'cpu'.*, got 'tpu'"),
        ({"device": None}, ValueError, r"device must be one of .*'cpu'.*, got None"),
        ({"device": "cuda:99"}, ValueError, r"device must be one of .*'cpu'.*, got 'cuda:99'"),
    ],
)
def test_settings_that_are_not_accepted_are_refused_by_name(settings, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        MagnitudeSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"samples": 1438}, ValueError, "samples must be between 1 and 1437, got 1438"),
        ({"data": "/nowhere"}, FileNotFoundError, "data must be 'digits' or .*: no such folder"),
    ],
)
def test_settings_that_the_data_do_not_allow_are_refused_at_the_start(settings, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        next(magnitude(MagnitudeSettings(**settings)))
