"""At small scale: what an initialisation does to magnitudes, with and without BN."""

import functools
import math

import pytest
import torch

from lca_widgets.data import digits
from lca_widgets.diagnosis import factor_per_layer, magnitude_factors
from lca_widgets.experiments import MagnitudeSettings, magnitude
from lca_widgets.experiments.magnitude import (
    SQUARE_LAYER_VARIANCES,
    initial_spectra,
    initialisation_factors,
    saturation,
    simulate_layer,
    simulate_normalised_layers,
    wide_network_factors,
)
from lca_widgets.models import ACTIVATIONS, INITIALISERS, mlp


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
        ({"norm": "instance"}, ValueError, "norm must be one of .*'weight', got 'instance'"),
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_initialiser_scales_both_ways_as_a_wide_network_would(activation):
    rows = list(initialisation_factors(activations=[activation], seeds=[0]))
    assert [row.init for row in rows] == list(INITIALISERS)
    for row in rows:
        assert row.forward == pytest.approx(row.forward_theory, rel=0.15)
        assert row.backward == pytest.approx(row.backward_theory, rel=0.15)
    # Five initialisers with three scales between them: the theory tells them apart.
    assert len({round(row.forward_theory, 3) for row in rows}) == 3


def test_the_theory_of_the_table_is_refused_for_normalised_networks():
    with pytest.raises(ValueError, match=r"^norm must be one of 'none', got 'batch'$"):
        next(initialisation_factors(MagnitudeSettings(norm="batch")))


def test_the_gain_enters_the_theory_squared():
    assert wide_network_factors("normal", "relu", math.sqrt(2)) == pytest.approx((1, 1))
    assert wide_network_factors("lecun", "linear", 3.0) == pytest.approx((3, 3))


def test_the_tanh_theory_is_what_a_wide_network_does():
    """By brute force: a layer of 4000 tanh units at a time, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    gain, depth = 2.0, 8
    q, squares, slopes = gain**2, [], []
    for _ in range(depth - 1):
        h = math.sqrt(q) * torch.randn(200_000, generator=generator, dtype=torch.float64)
        squares.append(h.tanh().square().mean().item())
        slopes.append((1 - h.tanh().square()).square().mean().item())
        q = gain**2 * squares[-1]
    gradients = [1.0]
    for slope in reversed(slopes[:-1]):
        gradients.append(gradients[-1] * gain**2 * slope)
    expected = (factor_per_layer(squares), factor_per_layer(gradients))
    assert wide_network_factors("normal", "tanh", gain, depth) == pytest.approx(expected, rel=0.01)
    assert expected[1] > 1.2


@pytest.mark.parametrize("gain", [0.01, 1.0, 3.0, 30.0, 300.0])
def test_the_tanh_theory_holds_at_every_gain(gain):
    """Against a plain sum over a grid that is fine enough for the steepest of them."""
    s = 2 * gain * gain
    z = torch.arange(-10, 10, 1e-4, dtype=torch.float64)
    density = 1e-4 * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    q, squares, gradients = s, [], [1.0]
    for _ in range(3):
        tanh = (math.sqrt(q) * z).tanh().square()
        squares.append((density * tanh).sum().item())
        gradients.append(s * (density * (1 - tanh).square()).sum().item())
        q = s * squares[-1]
    # Depth 4: the layers' slopes are passed from the last hidden layer but one to the first.
    backward = [1.0, gradients[2], gradients[2] * gradients[1]]
    expected = (factor_per_layer(squares), factor_per_layer(backward))
    assert wide_network_factors("he", "tanh", gain, 4) == pytest.approx(expected, rel=1e-9)


def test_a_layer_that_cuts_everything_off_has_no_ratio():
    layers = [simulate_layer("he", width=1, samples=1, seed=seed) for seed in range(8)]
    assert any(math.isnan(layer.linear) for layer in layers)
    assert any(layer.linear > 0 for layer in layers)


def test_the_square_layers_variances_are_those_of_the_initialisers():
    for init, expected in SQUARE_LAYER_VARIANCES.items():
        weight = next(mlp(300, 2, depth=2, width=300, init=init).parameters())
        assert 300 * weight.var().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("init", "variance"), [("lecun", 1 / 3), ("normal", 1.0), ("he", 2.0)])
def test_one_wide_relu_layer_halves_what_its_weights_multiply(init, variance):
    layer = simulate_layer(init, width=1000, samples=100)
    assert layer.linear == pytest.approx(variance, rel=0.07)
    assert layer.rectified == pytest.approx(0.5, rel=0.07)
    assert layer.forward == pytest.approx(variance / 2, rel=0.1)
    assert layer.backward == pytest.approx(variance / 2, rel=0.07)


def test_an_orthogonal_layer_keeps_the_mean_square_exactly():
    assert simulate_layer("orthogonal", width=100).linear == pytest.approx(1, abs=1e-12)


def test_wide_layers_with_batch_normalisation_enlarge_the_gradient_by_pi_over_pi_minus_1():
    factors = simulate_normalised_layers(width=400, depth=5, samples=300)
    assert len(factors) == 4
    mean = math.prod(factors) ** (1 / 4)
    assert mean == pytest.approx(math.pi / (math.pi - 1), rel=0.02)


def test_batch_normalisation_takes_the_scale_of_the_weights_out_of_every_factor(monkeypatch):
    usual = simulate_normalised_layers("normal", width=20, depth=3, samples=30)
    normal = INITIALISERS["normal"]
    monkeypatch.setitem(
        INITIALISERS, "normal", lambda weight, generator: normal(weight, generator).mul_(10)
    )
    tenfold = simulate_normalised_layers("normal", width=20, depth=3, samples=30)
    assert tenfold == pytest.approx(usual, rel=1e-9)


def spectrum_spread(spectra):
    """The largest difference from the first spectrum, relative to its largest eigenvalue."""
    first = spectra[0].eigenvalues
    return max((s.eigenvalues - first).abs().max().item() for s in spectra) / first.max().item()


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-12), (False, 1e-5)])
def test_orthogonal_linear_layers_are_isometric_in_every_eigenvalue(double, tolerance):
    settings = MagnitudeSettings(init="orthogonal", activation="linear", samples=256)
    layers = initial_spectra(settings, double=double)
    assert spectrum_spread([layer.input for layer in layers]) < tolerance
    assert spectrum_spread([layer.grad for layer in layers[:-1]]) < tolerance
    # The output layer has fewer units than inputs: the rest of the next spectrum is zero.
    last, before = layers[-1].grad, layers[-2].grad
    nine = last.eigenvalues[:9]
    assert (before.eigenvalues[:9] - nine).abs().max() < tolerance * last.lambda_max
    assert before.rank == last.rank == 9


@pytest.mark.parametrize("change", [{"activation": "relu"}, {"init": "normal"}])
def test_relu_or_other_weights_end_the_isometry(change):
    settings = {"init": "orthogonal", "activation": "linear", "samples": 256, "depth": 4} | change
    layers = initial_spectra(MagnitudeSettings(**settings), double=True)
    assert spectrum_spread([layer.input for layer in layers]) > 0.05


def test_spectra_of_the_start_are_those_that_a_run_measures():
    settings = MagnitudeSettings(depth=4, samples=64, steps=0)
    measured = profile(next(magnitude(settings)))
    assert [layer.input.lambda_max for layer in initial_spectra(settings)] == measured


def test_weights_of_standard_deviation_a_hundredth_fall_out_of_float32():
    """Of 64 inputs, a gain of 0.08: a factor of 1/310 a layer."""
    tiny = {"init": "normal", "gain": 0.08}
    shallow = at_start(depth=20, **tiny)
    assert 1e-50 < shallow.layers[-1].lambda_max_x < 1e-42  # float32 ends at 1e-45
    deep = at_start(depth=40, **tiny)
    assert deep.layers[-1].lambda_max_x == 0  # the activations, too, have ended
    assert not deep.training.diverged


def test_weights_of_standard_deviation_a_half_explode_or_saturate():
    large = {"init": "normal", "gain": 4.0}
    forward, backward = magnitude_factors(at_start(depth=20, **large))
    assert 7 < forward < 9
    assert 7 < backward < 9
    tanh = {"activation": "tanh", "depth": 20} | large
    forward, backward = magnitude_factors(at_start(**tanh))
    assert 0.9 < forward < 1.1
    assert 2.2 < backward < 2.8
    shares = saturation(MagnitudeSettings(samples=256, **tanh))
    assert len(shares) == 19
    assert all(0.35 < share < 0.55 for share in shares)


def test_saturation_counts_outputs_beyond_the_threshold():
    settings = MagnitudeSettings(depth=3, width=8, samples=64, activation="tanh", gain=2.0)
    model = mlp(64, 10, depth=3, width=8, activation="tanh", init="lecun", gain=2.0)
    first = model[1](model[0](digits().train.first(64).x))
    assert saturation(settings, 0.5)[0] == (first.abs() > 0.5).double().mean().item()
    assert saturation(settings, 0.0) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wide_network_factors("kaiming", "relu"), "init must be one of .*'kaiming'"),
        (lambda: wide_network_factors("he", "gelu"), "activation must be one of .*'gelu'"),
        (lambda: wide_network_factors("he", "relu", 0.0), "gain must be above 0, got 0.0"),
        (lambda: wide_network_factors("he", "relu", depth=2), "depth must be at least 3, got 2"),
        (lambda: simulate_layer("kaiming"), "init must be one of .*'kaiming'"),
        (lambda: simulate_layer(width=0), "width must be at least 1, got 0"),
        (lambda: simulate_normalised_layers("kaiming"), "init must be one of .*'kaiming'"),
        (lambda: simulate_normalised_layers(depth=1), "depth must be at least 2, got 1"),
        (lambda: simulate_layer(seed=-1), "seed must be between 0 and .*, got -1"),
        (lambda: saturation(MagnitudeSettings(), -1.0), "threshold must be at least 0, got -1.0"),
    ],
)
def test_other_arguments_that_are_not_accepted_are_refused_by_name(call, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        call()
