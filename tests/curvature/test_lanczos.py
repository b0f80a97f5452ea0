"""Eigenvalues, trace and density of given matrices, against LAPACK and closed forms.

The matrices are dense here, so nothing about networks is tested, and every number is known.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lca_widgets.curvature.lanczos import (
    NotConverged,
    spectral_density,
    top_eigenvalues,
    trace,
)

D = 40
SPECTRA = {
    "random": torch.randn(D, generator=torch.Generator().manual_seed(0)).double(),
    "clustered at the top": torch.cat([2 - 1e-6 * torch.arange(5), torch.linspace(0, 1, D - 5)]),
    "top three times": torch.cat([torch.full((3,), 5.0), torch.linspace(0, 3, D - 3)]),
    "two values only": torch.cat([torch.full((6,), 2.0), torch.full((D - 6,), -1.0)]),
    "all negative": -torch.linspace(1, 4, D),
    "a large negative one": torch.cat([torch.tensor([-100.0]), torch.linspace(-1, 1, D - 1)]),
    "geometric": 0.5 ** torch.arange(D),
    "rank one": torch.cat([torch.tensor([3.0]), torch.zeros(D - 1)]),
    "minus rank one": torch.cat([torch.tensor([-3.0]), torch.zeros(D - 1)]),
    "zero": torch.zeros(D),
    "identity": torch.ones(D),
    "one by one": torch.tensor([-2.0]),
    "two by two": torch.tensor([1.0, -1.0]),
    "tiny": 1e-30 * torch.linspace(1, 2, D).double() ** 8,
    "huge": 1e30 * torch.linspace(1, 2, D).double() ** 8,
}
ORDER = {"largest": lambda v: -v, "smallest": lambda v: v, "magnitude": lambda v: -v.abs()}


def matrix_of(spectrum, dtype=torch.float64, seed=1):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    spectrum = torch.as_tensor(spectrum).double()
    noise = torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(noise.double()).Q
    a = q @ torch.diag(spectrum) @ q.T
    return ((a + a.T) / 2).to(dtype)


def expected(matrix, k, which):
    values = torch.linalg.eigvalsh(matrix.double())
    return values[ORDER[which](values).argsort()][:k]


def assert_eigenvalues(matrix, k, which, found, tolerance):
    scale = torch.linalg.eigvalsh(matrix.double()).abs().max()
    exact = expected(matrix, k, which)
    if which == "magnitude":  # the order of λ and −λ is open
        exact, values = exact.abs(), found.values.abs()
    else:
        values = found.values
    assert values.dtype == torch.float64
    assert values.shape == found.residuals.shape == found.errors.shape == (k,)
    assert (values - exact).abs().max() <= tolerance * scale


class Counted:
    """A matrix that is known by its products, and how many there were."""

    def __init__(self, matrix, hint=None):
        self.matrix, self.products, self.open = matrix, 0, False
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device
        self.hint = lambda: hint

    def __matmul__(self, vector):
        assert vector.dtype == self.dtype
        assert self.open
        self.products += 1
        return self.matrix @ vector

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False


# Eigenvalues


@pytest.mark.parametrize("which", ORDER)
@pytest.mark.parametrize("k", [1, 4, D])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvalues_are_lapacks_each_as_often_as_it_occurs(name, k, which):
    matrix = matrix_of(SPECTRA[name])
    k = min(k, len(matrix))
    found = top_eigenvalues(matrix, k, which=which, tolerance=1e-12, max_products=400)
    assert_eigenvalues(matrix, k, which, found, 1e-10)


@pytest.mark.parametrize("name", SPECTRA)
def test_in_float32_they_are_within_its_rounding(name):
    matrix = matrix_of(SPECTRA[name], torch.float32)
    found = top_eigenvalues(matrix, min(3, len(matrix)), tolerance=1e-6, max_products=400)
    assert_eigenvalues(matrix, min(3, len(matrix)), "largest", found, 1e-5)


@given(
    spectrum=st.lists(st.integers(-4, 4), min_size=1, max_size=12),
    k=st.integers(1, 12),
    which=st.sampled_from(list(ORDER)),
    seed=st.integers(0, 100),
)
def test_any_multiplicities(spectrum, k, which, seed):
    matrix = matrix_of([float(value) for value in spectrum], seed=seed)
    k = min(k, len(spectrum))
    found = top_eigenvalues(matrix, k, which=which, tolerance=1e-10, seed=seed)
    assert_eigenvalues(matrix, k, which, found, 1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-6])
def test_the_tolerance_is_kept_and_the_bounds_hold(tolerance, seed):
    # A spectrum like a network's: a bulk around zero and outliers.
    bulk = torch.randn(500, generator=torch.Generator().manual_seed(seed)).double() * 0.1
    matrix = torch.diag(torch.cat([bulk, torch.tensor([9.0, 4.0, 3.5, -3.0])]))
    found = top_eigenvalues(matrix, 3, tolerance=tolerance, vectors=True, seed=seed)
    exact = torch.tensor([9.0, 4.0, 3.5]).double()
    assert ((found.values - exact).abs() <= tolerance * exact).all()
    assert ((found.values - exact).abs() <= found.errors + 1e-12).all()
    assert (found.errors <= found.residuals).all()
    residuals = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0)
    torch.testing.assert_close(residuals, found.residuals, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.vectors.norm(dim=0), torch.ones(3).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors_are_orthonormal_and_of_the_operators_precision(dtype):
    matrix = matrix_of(SPECTRA["top three times"], dtype)
    found = top_eigenvalues(matrix, 5, tolerance=1e-6, vectors=True)
    assert found.vectors.dtype == dtype
    gram = found.vectors.T @ found.vectors
    torch.testing.assert_close(gram, torch.eye(5, dtype=dtype), rtol=0, atol=1e-5)
    assert top_eigenvalues(matrix).vectors is None


@pytest.mark.parametrize("ratio", [1.05, 1.5, 3.0, 100.0])
def test_a_hint_orthogonal_to_the_outermost_eigenvector_does_not_hide_it(ratio):
    spectrum = torch.cat([torch.tensor([ratio, 1.0]), torch.linspace(-0.1, 0.1, 3000)])
    along_second = torch.zeros(len(spectrum)).double()
    along_second[1] = 7.0
    operator = Counted(torch.diag(spectrum.double()), hint=along_second)
    assert top_eigenvalues(operator).values.item() == pytest.approx(ratio, rel=1e-3)


def test_a_good_hint_saves_products():
    spectrum = torch.cat([torch.tensor([2.0]), torch.linspace(-1, 1, 5000)]).double()
    top = torch.zeros(len(spectrum)).double()
    top[0] = 1e-20  # its length does not matter
    plain, hinted = Counted(torch.diag(spectrum)), Counted(torch.diag(spectrum), hint=top)
    assert top_eigenvalues(plain).products > top_eigenvalues(hinted).products


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_useless_hint_is_ignored(value):
    operator = Counted(matrix_of(SPECTRA["random"]), hint=torch.full((D,), value).double())
    alone = top_eigenvalues(operator.matrix)
    assert torch.equal(top_eigenvalues(operator).values, alone.values)


def test_products_are_counted_and_at_most_as_many_as_the_matrix_has_rows():
    for k in (1, 5, D):
        operator = Counted(matrix_of(SPECTRA["geometric"]))
        found = top_eigenvalues(operator, k, tolerance=1e-12)
        assert found.products == operator.products
        assert not operator.open
    assert found.products == D


@pytest.mark.parametrize("k", [1, 3])
def test_too_few_products_raise_and_hand_over_what_was_reached(k):
    spectrum = torch.linspace(0, 1, 2000).double()
    with pytest.raises(NotConverged, match=r"max_products=9 products were not enough") as error:
        top_eigenvalues(torch.diag(spectrum), k, max_products=9, vectors=True)
    reached = error.value.reached
    assert reached.products == 9
    assert reached.vectors.shape == (2000, k)
    assert f"{reached.values[0]:.6g}" in str(error.value)
    assert (reached.errors > 1e-3 * reached.values.abs()).any()
    # Honest all the same: an eigenvalue is as near as the residual says.
    distances = (reached.values[:, None] - spectrum).abs().amin(dim=1)
    assert (distances <= reached.residuals).all()


def test_a_bulk_does_not_stop_the_search_before_the_outlier_is_seen():
    # Two steps see a third of the largest eigenvalue: their residual is large, and they know it.
    spectrum = torch.cat([torch.tensor([3.0]), torch.linspace(0.9, 1, 20_000)])
    matrix = Diagonal(spectrum.double())
    assert [
        top_eigenvalues(matrix, seed=seed).values.item() for seed in range(10)
    ] == pytest.approx([3.0] * 10, rel=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_a_pair_mixed_of_two_close_eigenvectors_does_not_hide_the_second(seed):
    # One start vector shows 5.99 and 5.86 as one value for a while, and 5.64 as the next.
    bulk = torch.randn(20_000, generator=torch.Generator().manual_seed(seed)) * 0.3
    spectrum = torch.cat([torch.tensor([7.84, 5.99, 5.86, 5.64, 4.9, 4.2, 3.5, 3.0]), bulk])
    found = top_eigenvalues(Diagonal(spectrum.double()), 3, seed=seed)
    assert found.values.tolist() == pytest.approx([7.84, 5.99, 5.86], rel=1e-3)


class Diagonal:
    """A large diagonal matrix."""

    def __init__(self, diagonal):
        self.diagonal = diagonal
        self.shape, self.dtype = torch.Size((len(diagonal),) * 2), diagonal.dtype
        self.device = diagonal.device

    def __matmul__(self, vector):
        return self.diagonal * vector


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_products_that_are_not_finite_give_nan(value):
    matrix = torch.full((5, 5), value)
    found = top_eigenvalues(matrix, 2, vectors=True)
    assert found.values.isnan().all()
    assert found.errors.isnan().all()
    assert found.vectors.isnan().all()
    assert found.vectors.shape == (5, 2)
    assert math.isnan(trace(matrix, 6).value)
    assert spectral_density(matrix).nodes.isnan().all()


def test_overflow_after_some_products_gives_nan():
    class Overflowing(Counted):
        def __matmul__(self, vector):
            product = super().__matmul__(vector)
            return product if self.products < 3 else product * math.inf

    assert top_eigenvalues(Overflowing(matrix_of(SPECTRA["random"])), 2).values.isnan().all()


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="operator must be a symmetric matrix, the same one"):
        top_eigenvalues(torch.triu(torch.ones(9, 9)), tolerance=1e-6)


def test_products_that_change_are_refused():
    class Drifting(Counted):
        def __matmul__(self, vector):
            return super().__matmul__(vector) * (1 + 0.2 * self.products)

    with pytest.raises(ValueError, match="does its data change, or its dropout"):
        top_eigenvalues(Drifting(matrix_of(SPECTRA["random"])), tolerance=1e-6)


def test_a_product_that_returns_its_argument_is_not_written_to():
    class Identity(Counted):
        def __matmul__(self, vector):
            return vector

    operator = Identity(torch.eye(6).double())
    assert top_eigenvalues(operator, 2).values.tolist() == pytest.approx([1, 1])


def test_the_same_seed_gives_the_same_and_the_global_random_state_is_left_alone():
    matrix = matrix_of(SPECTRA["random"])
    before = torch.get_rng_state()
    one, two, other = (top_eigenvalues(matrix, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.values, two.values)
    assert not torch.equal(one.values, other.values)
    trace(matrix)
    spectral_density(matrix)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be between 1 and 4, got 0"),
        ({"k": 5}, "k must be between 1 and 4, got 5"),
        ({"which": "LA"}, "which must be one of 'largest', 'smallest', 'magnitude', got 'LA'"),
        ({"tolerance": 0}, "tolerance must be above 0 and at most 1, got 0"),
        ({"max_products": 0}, "max_products must be at least 1, got 0"),
        ({"seed": -1}, "seed must be between 0 and"),
    ],
)
def test_arguments_of_top_eigenvalues(arguments, message):
    with pytest.raises(ValueError, match=message):
        top_eigenvalues(torch.eye(4), **arguments)


# Trace

METHODS = ["hutch++", "hutchinson"]


@pytest.mark.parametrize("method", METHODS)
def test_traces_are_unbiased_and_their_standard_error_is_right(method):
    matrix = matrix_of(0.8 ** torch.arange(60))
    exact = matrix.trace().item()
    estimates = [trace(matrix, 24, method=method, seed=seed) for seed in range(300)]
    deviations = torch.tensor([(e.value - exact) for e in estimates])
    errors = torch.tensor([e.standard_error for e in estimates])
    assert deviations.mean().abs() < 4 * deviations.std() / math.sqrt(300)
    assert deviations.std().item() == pytest.approx(errors.square().mean().sqrt().item(), rel=0.2)
    assert all(e.products == 24 for e in estimates)


def test_hutchinsons_error_is_that_of_his_formula():
    matrix = matrix_of(torch.randn(60, generator=torch.Generator().manual_seed(0)))
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    estimates = [trace(matrix, 10, method="hutchinson", seed=seed).value for seed in range(500)]
    expected = math.sqrt(2 * (off_diagonal**2).sum() / 10)
    assert torch.tensor(estimates).std().item() == pytest.approx(expected, rel=0.15)


def test_of_a_matrix_of_low_rank_hutch_plus_plus_is_exact():
    matrix = matrix_of(torch.cat([torch.tensor([5.0, -3.0, 1.0]), torch.zeros(60)]))
    estimate = trace(matrix, 12)
    assert estimate.value == pytest.approx(3.0, rel=1e-10)
    assert estimate.standard_error < 1e-10
    assert trace(matrix, 12, method="hutchinson").standard_error > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 2, 7, 30])
def test_as_many_products_as_rows_give_the_exact_trace(method, d):
    matrix = matrix_of(torch.linspace(-1, 3, d))
    operator = Counted(matrix)
    estimate = trace(operator, 30, method=method)
    assert estimate.value == pytest.approx(matrix.trace().item(), rel=1e-12)
    assert (estimate.standard_error, estimate.products, operator.products) == (0.0, d, d)


def test_arguments_of_trace():
    with pytest.raises(ValueError, match=r"method must be one of 'hutch\+\+', 'hutchinson', got"):
        trace(torch.eye(4), method="exact")
    with pytest.raises(ValueError, match="products must be at least 6, got 5"):
        trace(torch.eye(4), 5)
    with pytest.raises(ValueError, match="products must be at least 2, got 1"):
        trace(torch.eye(4), 1, method="hutchinson")


# Spectral density


def test_a_diagonal_matrix_has_its_eigenvalues_and_their_shares_as_nodes_and_weights():
    # Random signs have the same size along every eigenvector of a diagonal matrix.
    spectrum = torch.tensor([-1.0] * 2 + [0.0] * 5 + [2.0] * 3).double()
    density = spectral_density(torch.diag(spectrum), probes=3, steps=10)
    nodes, weights = density.nodes.reshape(3, 3), density.weights.reshape(3, 3)
    torch.testing.assert_close(nodes, torch.tensor([[-1.0] * 3, [0.0] * 3, [2.0] * 3]).double())
    torch.testing.assert_close(weights.sum(1), torch.tensor([0.2, 0.5, 0.3]).double())
    assert (density.dimension, density.products) == (10, 9)


@pytest.mark.parametrize("power", [1, 2, 3, 6])
def test_moments_of_the_density_are_those_of_the_matrix(power):
    matrix = matrix_of(torch.linspace(-1, 2, 300))
    density = spectral_density(matrix, probes=40, steps=10)
    exact = torch.linalg.matrix_power(matrix, power).trace() / 300
    estimate = (density.weights * density.nodes**power).sum()
    assert estimate.item() == pytest.approx(exact.item(), abs=4 * 2**power / math.sqrt(40 * 300))
    assert density.weights.sum().item() == pytest.approx(1)
    assert (density.nodes.diff() >= 0).all()


def test_a_steps_quadrature_is_exact_below_degree_twice_its_steps():
    matrix = matrix_of(torch.linspace(-1, 2, 30))
    few = spectral_density(matrix, probes=1, steps=4)
    many = spectral_density(matrix, probes=1, steps=30)
    for power in range(8):
        assert (few.weights * few.nodes**power).sum().item() == pytest.approx(
            (many.weights * many.nodes**power).sum().item(), rel=1e-9
        )


def test_the_density_on_a_grid_integrates_to_one_and_shows_outlier_and_bulk():
    spectrum = torch.cat([torch.tensor([5.0]), torch.linspace(-1, 1, 99)])
    density = spectral_density(matrix_of(spectrum), probes=5, steps=40)
    grid = torch.linspace(-3, 7, 4001)
    on_grid = density.on(grid, width=0.1)
    assert on_grid.shape == grid.shape
    assert torch.trapezoid(on_grid, grid.double()).item() == pytest.approx(1, rel=1e-6)
    outlier = torch.trapezoid(on_grid[grid > 4], grid[grid > 4].double())
    assert outlier.item() == pytest.approx(0.01, rel=0.8)  # one of 100, five probes
    assert on_grid[(grid > 2) & (grid < 4)].max() < 1e-4
    with pytest.raises(ValueError, match="width must be above 0, got 0"):
        density.on(grid, width=0)


def test_arguments_of_spectral_density():
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        spectral_density(torch.eye(4), probes=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        spectral_density(torch.eye(4), steps=0)
