"""The closed forms against loops, autograd and NumPy: they share no code with what they check.

What these tests cannot see: whether a real run follows them. The tests of the experiments do.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from lca_widgets.data import table
from lca_widgets.linear_models import (
    PREPARATIONS,
    best_momentum,
    best_step,
    error_factors,
    excess_loss,
    input_basis,
    input_moment,
    kappa_above,
    line_search_bound,
    line_search_step,
    long_run_factor,
    predicted_iterations,
    prepare,
    solve_in_range,
    step_size_limit,
    with_constant,
)
from lca_widgets.linear_problem import LinearProblem, minimiser, minimum


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n, classes, seed=1):
    drawn = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(drawn, classes).double()


# Preparations


def test_raw_inputs_stay_what_they_are():
    x = gaussian(5, 3)
    assert torch.equal(prepare(x, "raw").x, x)


def test_centring_and_standardising_are_scikit_learns():
    x = 3 + gaussian(20, 4) * torch.tensor([1.0, 10.0, 100.0, 0.1], dtype=torch.float64)
    expected = {
        "centred": StandardScaler(with_std=False).fit_transform(x.numpy()),
        "standardised": StandardScaler().fit_transform(x.numpy()),
    }
    for name, values in expected.items():
        torch.testing.assert_close(prepare(x, name).x, torch.from_numpy(values))


def test_whitening_is_scikit_learns_up_to_signs():
    x = gaussian(30, 4) @ gaussian(4, 4, seed=1)
    scaled = StandardScaler().fit_transform(x.numpy())
    expected = PCA(whiten=True).fit_transform(scaled) * math.sqrt(30 / 29)  # it divides by n - 1
    torch.testing.assert_close(prepare(x, "whitened").x.abs(), torch.from_numpy(expected).abs())


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_what_was_subtracted_and_multiplied_gives_the_prepared_inputs(preparation):
    x = table("wine").x
    prepared = prepare(x, preparation)
    assert torch.equal((x - prepared.mean) @ prepared.transform, prepared.x)


@pytest.mark.parametrize(("name", "rank"), [("digits", 61), ("breast-cancer", 30)])
def test_whitened_moments_are_the_identity_of_the_rank(name, rank):
    moment = input_moment(prepare(table(name).x, "whitened").x)
    torch.testing.assert_close(moment, torch.eye(rank).double(), rtol=0, atol=1e-9)


def test_a_constant_feature_stays_finite_and_is_left_out_by_whitening():
    x = torch.cat([gaussian(10, 2), torch.full((10, 1), 0.1, dtype=torch.float64)], dim=1)
    assert prepare(x, "standardised").x[:, 2].abs().max() < 1e-12
    assert prepare(x, "whitened").x.shape == (10, 2)


def test_the_cut_off_decides_what_whitening_keeps():
    x = gaussian(50, 3) @ torch.tensor(
        [[1.0, 1.0, 0.0], [0.0, 1e-4, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    assert prepare(x, "whitened").x.shape[1] == 3
    assert prepare(x, "whitened", cutoff=1e-6).x.shape[1] == 2


def test_an_unknown_preparation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"preparation must be one of 'raw', 'centred', .*'white'"):
        prepare(gaussian(3, 2), "white")


# The spectrum


def test_eigenvalues_by_singular_values_are_those_of_the_moment():
    x = gaussian(12, 4)
    basis = input_basis(x)
    moment = (x.T @ x / 12).numpy()
    np.testing.assert_allclose(basis.eigenvalues, np.linalg.eigvalsh(moment)[::-1], rtol=1e-10)
    recomposed = (basis.vectors * basis.eigenvalues) @ basis.vectors.T
    np.testing.assert_allclose(recomposed, moment, atol=1e-12)


def test_fewer_samples_than_features_leave_zeros_and_a_whole_basis():
    basis = input_basis(gaussian(3, 5))
    assert basis.rank == 3
    assert basis.vectors.shape == (5, 5)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, torch.eye(5).double())


def test_singular_values_resolve_what_the_moment_itself_has_lost():
    rotation = torch.linalg.qr(gaussian(2, 2)).Q
    x = torch.linalg.qr(gaussian(9, 2, seed=1)).Q * torch.tensor([3.0, 3e-10]).double() @ rotation
    assert input_basis(x, cutoff=0).kappa == pytest.approx(1e20, rel=1e-4)


def test_kappa_of_raw_breast_cancer_depends_on_the_cut_off():
    eigenvalues = input_basis(table("breast-cancer").x).eigenvalues
    found = [kappa_above(eigenvalues, cutoff) for cutoff in (1e-14, 1e-10, 1e-8, 1e-6)]
    assert [rank for _, rank in found] == [30, 19, 11, 7]
    kappas = [kappa for kappa, _ in found]
    assert all(a > 50 * b for a, b in pairwise(kappas))


def test_digits_have_rank_61_and_one_kappa_for_every_cut_off_in_the_gap():
    x = table("digits").x
    assert int((x == 0).all(dim=0).sum()) == 3
    found = {kappa_above(input_basis(x).eigenvalues, 10.0**-k) for k in range(7, 30)}
    [(kappa, rank)] = found
    assert kappa == pytest.approx(6.495e6, rel=1e-3)
    assert rank == 61


# Step sizes


def brute_force(eigenvalue, rate, steps, momentum):
    error, velocity, path = 1.0, 0.0, [1.0]
    for _ in range(steps):
        velocity = momentum * velocity + eigenvalue * error
        error -= rate * velocity
        path.append(error)
    return path


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("rate", [0.1, 1.0, 1.9, 2.1])
def test_error_factors_are_those_of_a_loop(rate, momentum):
    eigenvalues = torch.tensor([1.0, 0.3, 1e-3, 0.0], dtype=torch.float64)
    paths = [brute_force(value, rate, 40, momentum) for value in eigenvalues.tolist()]
    for step in (0, 1, 2, 17, 40):
        expected = torch.tensor([path[step] for path in paths], dtype=torch.float64)
        factors = error_factors(eigenvalues, rate, step, momentum)
        torch.testing.assert_close(factors, expected, rtol=1e-11, atol=1e-13)


def test_error_factors_keep_their_digits_over_a_million_million_steps():
    left = error_factors(torch.tensor([1e-13], dtype=torch.float64), 1.0, 10**12)
    assert left.item() == pytest.approx(math.exp(-0.1), rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_just_below_the_limit_it_shrinks_and_just_above_it_grows(momentum):
    limit = step_size_limit(5.0, momentum)
    eigenvalues = torch.tensor([5.0], dtype=torch.float64)
    assert error_factors(eigenvalues, 0.99 * limit, 2000, momentum).abs() < 1e-3
    assert error_factors(eigenvalues, 1.01 * limit, 2000, momentum).abs() > 1e3


def test_no_other_step_size_does_better_than_the_best_one():
    best = best_step(3.0, 0.1)
    rates = torch.linspace(0.01, 0.66, 200, dtype=torch.float64)
    worst = torch.maximum((1 - 3.0 * rates).abs(), (1 - 0.1 * rates).abs())
    assert best.factor <= worst.min()
    assert best.factor == pytest.approx(29 / 31)


def test_no_other_momentum_does_better_than_the_best_one():
    best = best_momentum(3.0, 0.1)

    def factor(rate, momentum):
        return max(long_run_factor(value, rate, momentum) for value in (3.0, 1.0, 0.1))

    grid = [
        factor(rate, momentum)
        for rate in np.linspace(0.1, 1.3, 41)
        for momentum in np.linspace(0, 0.98, 50)
    ]
    # At the best settings two roots coincide: rounding moves them by its square root.
    assert factor(best.rate, best.momentum) == pytest.approx(best.factor, abs=1e-7)
    assert best.factor < min(grid)


@pytest.mark.parametrize(("rate", "momentum"), [(0.5, 0.0), (1.5, 0.2), (3.0, 0.6), (3.3, 0.6)])
def test_the_long_run_factor_is_the_spectral_radius(rate, momentum):
    matrix = np.array([[1 + momentum - rate, -momentum], [1.0, 0.0]])
    radius = np.abs(np.linalg.eigvals(matrix)).max()
    assert long_run_factor(1.0, rate, momentum) == pytest.approx(radius)


def test_predicted_iterations_are_those_of_a_loop():
    eigenvalues = torch.tensor([2.0, 0.3, 0.01], dtype=torch.float64)
    errors = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    left, count = errors.clone(), 0
    goal = 1e-3 * excess_loss(eigenvalues, errors)
    while excess_loss(eigenvalues, left) > goal:
        left, count = left * (1 - 0.9 * eigenvalues), count + 1
    assert predicted_iterations(eigenvalues, errors, 0.9) == count > 100


def test_a_target_beyond_the_limit_is_never_reached():
    assert predicted_iterations(torch.ones(2).double(), torch.ones(2).double(), 2.0) == math.inf


def test_line_search_finds_the_lowest_point_along_the_gradient():
    root = gaussian(3, 3)
    hessian, point = root @ root.T, gaussian(3, seed=1)
    gradient = hessian @ point
    best = line_search_step(gradient, hessian)

    def loss(rate):
        moved = point - rate * gradient
        return (moved @ hessian @ moved).item()

    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))
    assert line_search_step(1e-200 * gradient, hessian) == pytest.approx(best)


def test_the_bound_on_line_search_is_reached_from_equal_gradients():
    hessian = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64))
    point = torch.tensor([1.0, 10.0], dtype=torch.float64)
    gradient = hessian @ point
    after = point - line_search_step(gradient, hessian) * gradient
    ratio = (after @ hessian @ after) / (point @ hessian @ point)
    assert ratio.item() == pytest.approx(line_search_bound(10.0))


def test_solving_leaves_the_null_space_alone():
    rows = gaussian(3, 5)
    matrix, vector = rows.T @ rows, gaussian(5, seed=2)
    expected = np.linalg.pinv(matrix.numpy(), rcond=1e-10) @ vector.numpy()
    np.testing.assert_allclose(solve_in_range(matrix, vector), expected, rtol=1e-8)


def test_momentum_beyond_the_limit_overflows_to_a_signed_infinity():
    eigenvalues = torch.tensor([1.0, 0.1], dtype=torch.float64)
    for steps, sign in ((5000, 1), (5001, -1)):
        steep, flat = error_factors(eigenvalues, 4.0, steps, 0.9).tolist()
        assert steep == sign * math.inf
        assert abs(flat) < 1e-100


def test_iterations_without_end_are_infinite():
    two = torch.tensor([1.0, 1e-30], dtype=torch.float64)
    assert predicted_iterations(two, torch.tensor([1.0, 1e20]).double(), 1.0) == math.inf
    assert predicted_iterations(two, torch.full((2,), math.nan).double(), 1.0) == math.inf


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: kappa_above(torch.zeros(2), 0.1),
            ValueError,
            "eigenvalues must be a vector whose",
        ),
        (lambda: prepare(gaussian(3, 2) / 0, "whitened"), ValueError, "x must be finite"),
        (lambda: prepare(gaussian(3, 2), "raw", cutoff=2.0), ValueError, "cutoff must be at least"),
        (lambda: input_basis(torch.ones(3, 2).int()), TypeError, "x must be float64, got .*int32"),
        (lambda: minimiser_of_float32(), TypeError, "targets must be float64, got .*float32"),
    ],
)
def test_a_bad_argument_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def minimiser_of_float32():
    return LinearProblem(gaussian(3, 2), torch.ones(3, 1), "logistic")


# Losses


def problem(kind, n=12, d=3, classes=3):
    targets = {
        "least-squares": gaussian(n, 2, seed=3),
        "logistic": labels(n, 2)[:, :1],
        "softmax": labels(n, classes),
    }[kind]
    return LinearProblem(with_constant(gaussian(n, d)), targets, kind)


def torch_loss(model):
    """The same loss by PyTorch's own functions."""

    def loss(weights):
        outputs = model.x @ weights.T
        if model.kind == "least-squares":
            return 0.5 * ((outputs - model.targets) ** 2).sum() / len(model.x)
        if model.kind == "logistic":
            return torch.nn.functional.binary_cross_entropy_with_logits(outputs, model.targets)
        return torch.nn.functional.cross_entropy(outputs, model.targets.argmax(dim=1))

    return loss


@pytest.mark.parametrize("kind", ["least-squares", "logistic", "softmax"])
def test_loss_gradient_and_hessian_are_autograds(kind):
    model = problem(kind)
    weights = gaussian(*model.start().shape, seed=5)
    loss = torch_loss(model)
    assert model.loss(weights) == pytest.approx(loss(weights).item(), rel=1e-12)
    [gradient] = torch.autograd.grad(loss(leaf := weights.clone().requires_grad_()), leaf)
    torch.testing.assert_close(model.gradient(weights), gradient, rtol=1e-10, atol=1e-12)
    m = weights.numel()
    hessian = torch.autograd.functional.hessian(loss, weights).reshape(m, m)
    torch.testing.assert_close(model.hessian(weights), hessian, rtol=1e-10, atol=1e-12)
    vector = gaussian(m, seed=6)
    product = model.hessian_product(weights)(vector)
    torch.testing.assert_close(product, hessian @ vector, rtol=1e-10, atol=1e-12)
    largest = torch.linalg.eigvalsh(hessian)[-1].item()
    assert model.lambda_max(weights) == pytest.approx(largest, rel=1e-10)


def test_the_least_squares_hessian_is_the_moment_once_an_output():
    model = problem("least-squares")
    kron = np.kron(np.eye(2), (model.x.T @ model.x / 12).numpy())
    np.testing.assert_allclose(model.hessian(model.start()), kron, atol=1e-14)


def test_lambda_max_of_a_large_hessian_is_found_from_products():
    model = problem("softmax", n=60, d=24, classes=9)
    weights = gaussian(9, 25, seed=7)
    largest = torch.linalg.eigvalsh(model.hessian(weights))[-1].item()
    assert model.lambda_max(weights) == pytest.approx(largest, rel=5e-3)


def test_the_logistic_hessian_is_never_larger_than_at_zero():
    model = problem("logistic", n=40)
    start = model.lambda_max(model.start())
    assert start == pytest.approx(input_basis(model.x).lambda_max / 4)
    for seed in range(5):
        assert model.lambda_max(gaussian(1, 4, seed=seed)) < start


def test_the_softmax_hessian_can_outgrow_its_start_but_not_its_bound():
    model = problem("softmax", n=40, classes=6)
    bound = input_basis(model.x).lambda_max / 2
    assert model.lambda_max(model.start()) == pytest.approx(bound / 3)
    weights = torch.zeros(6, 4, dtype=torch.float64)
    weights[:2, 3] = 5  # two classes share every sample: their curvature is near ½
    assert 2 * bound / 3 < model.lambda_max(weights) < bound


def test_one_newton_step_minimises_least_squares():
    model = problem("least-squares")
    weights = gaussian(2, 4, seed=8)
    after = weights - model.newton_step(weights)
    expected = np.linalg.lstsq(model.x.numpy(), model.targets.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(after, expected, atol=1e-12)
    np.testing.assert_allclose(minimiser(model.x, model.targets), expected, atol=1e-12)


def test_the_minimiser_is_the_shortest_one():
    x = gaussian(3, 6)
    targets = gaussian(3, 2, seed=1)
    np.testing.assert_allclose(
        minimiser(x, targets), (np.linalg.pinv(x.numpy()) @ targets.numpy()).T, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_overlapping_classes_have_a_minimum_where_autograds_gradient_vanishes(kind):
    model = problem(kind, n=40)
    found = minimum(model)
    weights = found.weights.clone().requires_grad_()
    loss = torch_loss(model)(weights)
    [gradient] = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-8  # the loss is convex: that is enough
    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    assert not found.separable
    assert found.decrements[-1] < 1e-13 < found.decrements[-2]


def test_separable_classes_have_the_infimum_zero():
    x = with_constant(gaussian(20, 2))
    model = LinearProblem(x, (x[:, :1] > 0.1).double(), "logistic")
    found = minimum(model)
    assert (found.separable, found.loss) == (True, 0.0)
    assert model.separates(found.weights)
    assert not model.separates(model.start())
    assert model.loss(50 * found.weights) < 0.01 * model.loss(found.weights)


def test_a_search_along_a_direction_to_infinity_slows_to_a_factor_of_e():
    # The feature is on in one class alone, but does not separate: its weight grows for ever.
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    targets = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    found = minimum(LinearProblem(with_constant(x), targets, "logistic"))
    assert not found.separable
    assert found.loss == pytest.approx(-(math.log(1 / 3) + 2 * math.log(2 / 3)) / 4, abs=1e-11)
    ratios = [b / a for a, b in pairwise(found.decrements)]
    assert ratios[-5:-2] == pytest.approx([math.exp(-1)] * 3, rel=1e-3)


def test_the_search_finds_raw_inputs_separable_whatever_their_kappa():
    data = table("breast-cancer")
    model = LinearProblem(with_constant(data.x), data.y[:, None].double(), "logistic")
    found = minimum(model)
    assert found.separable
    assert model.separates(found.weights)


def test_the_infimum_is_the_same_for_all_units():
    overlapping = problem("softmax", n=40)
    scales = torch.tensor([1.0, 1e6, 1e-4, 1.0], dtype=torch.float64)
    scaled = LinearProblem(overlapping.x * scales, overlapping.targets, "softmax")
    found, again = minimum(overlapping), minimum(scaled)
    assert again.loss == pytest.approx(found.loss, rel=1e-12)
    assert scaled.loss(again.weights) == pytest.approx(found.loss, rel=1e-9)


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_the_curvature_of_saturated_outputs_keeps_its_digits(kind):
    x = torch.ones(1, 1, dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0]] if kind == "softmax" else [[1.0]], dtype=torch.float64)
    model = LinearProblem(x, targets, kind)
    # p (1 - p) at an output of 50, where 1 - p is lost to rounding.
    weights = torch.tensor([[50.0], [0.0]] if kind == "softmax" else [[50.0]], dtype=torch.float64)
    first = torch.zeros(weights.numel(), dtype=torch.float64)
    first[0] = 1
    assert model.hessian(weights)[0, 0].item() == pytest.approx(math.exp(-50), rel=1e-12)
    product = model.hessian_product(weights)(first)
    assert product[0].item() == pytest.approx(math.exp(-50), rel=1e-12)


def test_accuracy_counts_the_largest_output_or_the_sign():
    x = torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64)
    binary = LinearProblem(x, torch.tensor([[1.0], [0.0], [0.0]]).double(), "logistic")
    assert binary.accuracy(torch.ones(1, 1).double()) == pytest.approx(2 / 3)
    one_hot = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).double()
    weights = torch.tensor([[1.0], [0.0]]).double()
    for kind in ("softmax", "least-squares"):
        assert LinearProblem(x, one_hot, kind).accuracy(weights) == pytest.approx(2 / 3)
    assert math.isnan(LinearProblem(x, x, "least-squares").accuracy(torch.ones(1, 1).double()))


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        ("hinge", (4, 1), "kind must be one of 'least-squares', 'logistic', 'softmax', got"),
        ("logistic", (4, 2), "targets must have one column for 'logistic', got 2"),
        ("softmax", (4, 1), "targets must have at least two columns for 'softmax', got 1"),
        ("softmax", (3, 2), r"targets must be a matrix \[4, C\], got \(3, 2\)"),
        ("logistic", (4, 1), "targets must be 0 and 1 for 'logistic'"),
        ("softmax", (4, 2), "targets must be one-hot rows for 'softmax'"),
    ],
)
def test_a_problem_that_does_not_fit_is_refused_in_words(kind, shape, words):
    with pytest.raises(ValueError, match=words):
        LinearProblem(gaussian(4, 2), gaussian(*shape), kind)
