"""H, GGN, F and M of a tiny network against their definitions; blocks against Kronecker factors."""

import functools
import itertools
import math

import pytest
import torch
from torch.func import functional_call

from lca_widgets.curvature import Spectrum
from lca_widgets.experiments import CurvatureSettings, block_comparison, curvature_matrices
from lca_widgets.experiments.curvature_matrices import digit_components, measured_steps
from lca_widgets.models import mlp
from lca_widgets.training import TrainingRun, TrainingSettings

SMALL = {"components": 3, "classes": 3, "width": 3, "samples": 12}
cross_entropy = torch.nn.functional.cross_entropy


@functools.cache
def measured(**changes):
    """All measurements of a run of 27 weights on 12 samples."""
    return list(curvature_matrices(CurvatureSettings(**(SMALL | {"steps": 0} | changes))))


def network(**changes):
    """The same network and samples, built from their parts."""
    settings = CurvatureSettings(**(SMALL | changes))
    model = mlp(
        settings.components,
        settings.classes,
        depth=settings.depth,
        width=settings.width,
        activation=settings.activation,
        init="xavier",
        norm=settings.norm,
        seed=settings.seed,
    ).double()
    return model, digit_components(settings.classes, settings.components).first(settings.samples)


def flat_function(model, x):
    """The outputs of the whole batch as a function of one vector with all weights."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def outputs(vector):
        parts = zip(shapes.items(), vector.split(sizes), strict=True)
        state = {name: part.view(shape) for (name, shape), part in parts}
        return functional_call(model, state | dict(model.named_buffers()), (x,))

    return outputs, torch.cat([p.detach().flatten() for p in model.parameters()])


def jacobian(model, x):
    """∂f_n/∂θ of the batch's outputs, shape [N, C, d]."""
    outputs, vector = flat_function(model, x)
    return torch.autograd.functional.jacobian(outputs, vector)


def close(record, expected, tolerance=1e-11):
    return (record.tensor - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("norm", ["none", "batch-fixed"])
def test_the_hessian_is_that_of_the_mean_loss_of_the_batch(norm):
    model, data = network(norm=norm)
    outputs, vector = flat_function(model, data.x)
    expected = torch.autograd.functional.hessian(
        lambda v: cross_entropy(outputs(v), data.y), vector
    )
    assert close(measured(norm=norm)[0].hessian, expected)


@pytest.mark.parametrize("norm", ["none", "batch-fixed"])
def test_fisher_and_ggn_are_one_sum_over_all_labels(norm):
    model, data = network(norm=norm)
    jacobians = jacobian(model, data.x)
    chances = model(data.x).softmax(dim=1)
    expected = torch.zeros(27, 27, dtype=torch.float64)
    for n, label in itertools.product(range(12), range(3)):
        gradient = jacobians[n].T @ (chances[n] - torch.eye(3)[label])
        expected += chances[n, label] * torch.outer(gradient, gradient) / 12
    [start] = measured(norm=norm)
    assert close(start.fisher, expected)
    assert close(start.ggn, expected)


def test_m_sums_the_gradients_of_single_samples():
    model, data = network()
    expected = torch.zeros(27, 27, dtype=torch.float64)
    for n in range(12):
        loss = cross_entropy(model(data.x[n : n + 1]), data.y[n : n + 1])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
        expected += torch.outer(gradient, gradient) / 12
    assert close(measured()[0].empirical, expected)


def test_with_bn_m_is_of_output_gradients_and_not_of_the_samples_own_losses():
    model, data = network(norm="batch-fixed")
    chances = model(data.x).softmax(dim=1)
    own = torch.einsum("ncd,nc->nd", jacobian(model, data.x), chances - torch.eye(3)[data.y])
    [start] = measured(norm="batch-fixed")
    assert not close(start.empirical, own.T @ own / 12, tolerance=0.1)
    # Both kinds of rows have the same mean, the loss's gradient: those of the last layer agree.
    last = slice(18, 27)
    expected = (own.T @ own / 12)[last, last]
    assert torch.allclose(start.empirical.tensor[last, last], expected, atol=1e-12)


def test_the_kronecker_matrix_is_made_of_the_two_moments():
    model, data = network()
    x = [data.x]
    for layer in model[:-1]:
        x.append(layer(x[-1]).detach())
    chances = model(data.x).softmax(dim=1)
    expected = torch.zeros(3, 3, dtype=torch.float64)  # of the last layer's Σ_g
    for p, label in itertools.product(chances.detach(), range(3)):
        g = p - torch.eye(3)[label]
        expected += p[label] * torch.outer(g, g) / 12
    last = torch.kron(expected, x[-1].T @ x[-1] / 12)
    found = measured()[0].kronecker.tensor
    assert torch.allclose(found[18:, 18:], last, atol=1e-14)
    assert (found[:9, 9:] == 0).all()


@pytest.mark.parametrize("labels", ["model", "data"])
@pytest.mark.parametrize("norm", ["none", "batch-fixed", "batch"])
def test_the_whole_matrix_lies_between_its_largest_block_and_their_sum(norm, labels):
    settings = CurvatureSettings(**SMALL, norm=norm, labels=labels, steps=20)
    for m in block_comparison(settings):
        assert m.largest_block <= m.lambda_max * (1 + 1e-12)
        assert m.lambda_max <= m.sum_of_blocks * (1 + 1e-12)
        assert m.largest_block < 0.99 * m.sum_of_blocks


@pytest.mark.parametrize(
    ("norm", "labels"), [("none", "model"), ("none", "data"), ("batch-fixed", "model")]
)
def test_the_comparison_without_matrices_measures_the_same(norm, labels):
    settings = CurvatureSettings(**SMALL, norm=norm, labels=labels, steps=2)
    for m, without in zip(
        measured(norm=norm, labels=labels, steps=2), block_comparison(settings), strict=True
    ):
        assert without.lambda_max == pytest.approx(m.lambda_max, rel=1e-10)
        assert without.off_block == pytest.approx(m.off_block, rel=1e-8)
        for one, other in zip(m.layers, without.layers, strict=True):
            assert one.lambda_max == pytest.approx(other.lambda_max, rel=1e-10)
            assert one.lambda_max_kronecker == other.lambda_max_kronecker


def test_the_share_off_the_blocks_is_that_of_the_matrix():
    [start] = measured()
    matrix = start.fisher.tensor
    blocks = torch.block_diag(*start.blocks("fisher"))
    assert torch.equal(blocks[9:18, 9:18], matrix[9:18, 9:18])
    share = (matrix - blocks).square().sum() / matrix.square().sum()
    assert start.off_block == pytest.approx(share.item(), rel=1e-9)
    assert 0.1 < start.off_block < 0.8


def test_the_error_of_a_kronecker_block_is_relative_to_its_block():
    [start] = measured()
    fisher, kronecker = start.fisher.tensor[:9, :9], start.kronecker.tensor[:9, :9]
    error = ((kronecker - fisher).norm() / fisher.norm()).item()
    assert start.kronecker_errors[0] == pytest.approx(error, rel=1e-9)


def test_softmax_makes_the_last_gradient_moment_singular():
    for m in measured(steps=5):
        assert m.layers[-1].rank_g == 2
        assert math.isinf(m.layers[-1].kappa_g)
        assert all(math.isfinite(layer.kappa_g) for layer in m.layers[:-1])


def test_kappa_50_does_not_multiply():
    left, right = Spectrum([4.0, 1.0]), Spectrum([8.0, 2.0, 1.0, 1.0])
    product = left.kron(right)
    assert product.lambda_max == left.lambda_max * right.lambda_max
    assert product.kappa() == left.kappa() * right.kappa()
    assert (left.kappa(0.5), right.kappa(0.5), product.kappa(0.5)) == (1.0, 4.0, 8.0)


def test_without_hidden_layers_the_hessian_is_the_ggn():
    assert measured(depth=1)[0].distance("hessian", "ggn") < 1e-14
    assert measured()[0].distance("hessian", "ggn") > 0.1


def test_relu_leaves_the_ggn_inside_each_layer_and_tanh_only_in_the_last():
    for activation, expected in (("relu", [True, True, True]), ("tanh", [False, False, True])):
        [start] = measured(activation=activation)
        blocks = zip(start.blocks("hessian"), start.blocks("ggn"), strict=True)
        assert [bool((h - g).norm() < 1e-13 * g.norm()) for h, g in blocks] == expected
    assert start.distance("hessian", "ggn") > 0.1


def test_the_hessian_has_negative_eigenvalues_and_the_others_none():
    [start] = measured()
    assert start.negative_eigenvalues >= 5
    for record in (start.ggn, start.fisher, start.empirical):
        assert min(record.eigenvalues) >= 0
    assert list(start.hessian.eigenvalues) == sorted(start.hessian.eigenvalues, reverse=True)


def test_where_few_samples_are_fitted_m_vanishes_beside_f():
    run = measured(steps=200, learning_rate=1.0)
    ratios = [sum(m.empirical.eigenvalues) / sum(m.fisher.eigenvalues) for m in run]
    assert run[-1].training.accuracy == 1
    assert ratios[0] > 0.3
    assert ratios[-1] < 0.05


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_measuring_changes_nothing_of_the_training(norm):
    model, data = network(norm=norm)
    alone = [r.loss for r in TrainingRun(model, data, TrainingSettings(6, 0.5))]
    run = measured(norm=norm, steps=6)
    assert [r.loss for m in run for r in m.passed] == alone
    assert [m.training.step for m in run] == [0, 1, 2, 5, 6]
    assert [m.passed[-1] for m in run] == [m.training for m in run]


def test_with_bn_the_models_labels_are_drawn_and_the_same_every_time():
    run = measured(norm="batch-fixed")
    assert list(curvature_matrices(CurvatureSettings(**SMALL, norm="batch-fixed", steps=0))) == run
    assert measured(norm="batch-fixed", labels="data")[0].layers != run[0].layers


def test_the_inputs_are_principal_components():
    data = digit_components(3, 4)
    covariance = data.x.T @ data.x / len(data)
    variances = covariance.diag()
    assert torch.allclose(covariance, variances.diag(), atol=1e-12)
    assert variances.mean().item() == pytest.approx(1)
    assert (variances.diff() < 0).all()
    assert data.x.mean(dim=0).abs().max() < 1e-12
    assert sorted(set(data.y.tolist())) == [0, 1, 2]


def test_steps_are_measured_at_round_numbers_and_the_last():
    assert measured_steps(0) == [0]
    assert measured_steps(5) == [0, 1, 2, 5]
    assert measured_steps(300) == [0, 1, 2, 5, 10, 20, 50, 100, 200, 300]


def test_too_large_a_rate_ends_in_a_diverged_record():
    run = list(
        curvature_matrices(
            CurvatureSettings(**SMALL, depth=4, activation="linear", learning_rate=1e4)
        )
    )
    assert run[-1].training.diverged
    assert not any(m.training.diverged for m in run[:-1])
    assert math.isnan(run[-1].lambda_max)
    assert all(map(math.isnan, run[-1].hessian.eigenvalues))


def test_a_network_too_large_to_draw_is_refused_by_its_number_of_weights():
    settings = CurvatureSettings(components=16, classes=10, width=16)
    with pytest.raises(ValueError, match="at most 200 weights to draw, got 672; block_comparison"):
        next(curvature_matrices(settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"components": 33}, "components must be between 2 and 32, got 33"),
        ({"classes": 1}, "classes must be between 2 and 10, got 1"),
        ({"depth": 0}, "depth must be between 1 and 6, got 0"),
        ({"width": 33}, "width must be between 2 and 32, got 33"),
        ({"activation": "gelu"}, "activation must be one of .*, got 'gelu'"),
        ({"norm": "instance"}, "norm must be one of .*, got 'instance'"),
        ({"norm": "weight"}, "norm must be one of .*, got 'weight'"),
        ({"labels": "all"}, "labels must be one of 'model', 'data', got 'all'"),
        ({"learning_rate": 0}, r"learning_rate must be between 0\.0001 and 10000, got 0"),
        ({"steps": -1}, "steps must be between 0 and 100000, got -1"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"seed": -1}, "seed must be between 0 and 2147483647, got -1"),
    ],
)
def test_settings_that_are_not_accepted_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        CurvatureSettings(**settings)


def test_more_samples_than_there_are_images_are_refused_at_the_start():
    with pytest.raises(ValueError, match=r"^samples must be between 1 and 430, got 431$"):
        next(curvature_matrices(CurvatureSettings(samples=431)))


def test_a_matrix_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^other must be one of 'hessian', .*, got 'kfac'$"):
        measured()[0].distance("fisher", "kfac")
