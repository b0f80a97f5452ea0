"""What is read off eigenvalues, and the eigenvalues of ordinary, tiny, huge and broken matrices."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lca_widgets.curvature import (
    LayerFactors,
    SampleWarning,
    Spectrum,
    layer_spectra,
    moment_spectra,
    one_thread,
)

CUT = 1e-12


def moment(d, n=50, seed=0, dtype=torch.float64):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return rows.T @ rows / n


def spectrum_of(matrix, cut=CUT):
    [spectrum] = moment_spectra([matrix], [None], [cut])
    return spectrum


# κ_p


@given(d=st.integers(1, 2000), percent=st.integers(1, 100))
def test_kappa_p_divides_by_the_eigenvalue_number_ceil_of_p_d(d, percent):
    spectrum = Spectrum([2.0 ** (-k / 2) for k in range(d)])
    index = -(-percent * d // 100)  # ⌈p·d⌉ in whole numbers
    assert spectrum.kappa(percent / 100) == pytest.approx(2.0 ** ((index - 1) / 2))


@pytest.mark.parametrize(("p", "d", "index"), [(0.07, 100, 7), (0.55, 100, 55), (0.29, 100, 29)])
def test_rounding_of_p_times_d_does_not_move_the_index(p, d, index):
    assert p * d > index or math.ceil(p * d) == index  # 0.07 * 100 is 7.000000000000001
    assert Spectrum([1 / k for k in range(1, d + 1)]).kappa(p) == pytest.approx(index)


def test_a_tiny_p_is_the_first_eigenvalue_and_one_is_the_last():
    spectrum = Spectrum([8.0, 4.0, 2.0])
    assert (spectrum.kappa(1e-30), spectrum.kappa(1.0), spectrum.kappa()) == (1.0, 4.0, 4.0)


@pytest.mark.parametrize("p", [0, -0.5, 1.0000001, math.nan, math.inf])
def test_p_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\], got"):
        Spectrum([1.0]).kappa(p)


def test_kappa_is_infinite_past_the_rank_and_finite_up_to_it():
    spectrum = Spectrum([6.0, 3.0, 0.0, 0.0])
    assert spectrum.rank == 2
    assert [spectrum.kappa(p) for p in (0.25, 0.5, 0.51, 1.0)] == [1.0, 2.0, math.inf, math.inf]


# Construction


def test_eigenvalues_are_sorted_and_in_float64():
    spectrum = Spectrum(torch.tensor([1.0, 3.0, 2.0]), n=5)
    assert spectrum.eigenvalues.tolist() == [3.0, 2.0, 1.0]
    assert spectrum.eigenvalues.dtype == torch.float64
    assert (spectrum.dimension, spectrum.n, spectrum.trace) == (3, 5, 6)
    assert spectrum.stable_rank == pytest.approx(2)


def test_a_spectrum_does_not_share_memory_with_its_argument():
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    spectrum = Spectrum(values)
    values.zero_()
    assert spectrum.eigenvalues.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("values", [[], [[1.0]], 3.0])
def test_eigenvalues_that_are_no_vector_are_refused(values):
    with pytest.raises(ValueError, match="eigenvalues must be a non-empty vector, got"):
        Spectrum(values)


def test_negative_eigenvalues_are_refused():
    with pytest.raises(ValueError, match=r"eigenvalues must be at least 0, got -0\.5"):
        Spectrum([1.0, -0.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_non_finite_eigenvalue_makes_the_spectrum_diverged(bad):
    spectrum = Spectrum([1.0, bad, 2.0])
    assert spectrum.diverged
    assert spectrum.rank == 0
    numbers = [spectrum.lambda_max, spectrum.kappa(), spectrum.kappa(0.1), spectrum.trace,
               spectrum.stable_rank]  # fmt: skip
    assert all(map(math.isnan, numbers))


def test_a_spectrum_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spectrum([1.0]).n = 3  # type: ignore[misc]


def test_its_summary_names_rank_and_largest_eigenvalue():
    assert repr(Spectrum([4.0, 0.0], n=9)) == "Spectrum(d=2, n=9, rank=1, lambda_max=4)"


def test_stable_rank_of_huge_eigenvalues_does_not_overflow():
    assert Spectrum([1e308] * 4).stable_rank == 4


@pytest.mark.parametrize(("n", "warned"), [(15, True), (16, False), (None, False)])
def test_a_warning_stands_where_n_is_below_eight_d(n, warned):
    warning = Spectrum([2.0, 1.0], n=n).warning
    assert warning == (SampleWarning(n, 2) if warned else None)
    if warning:
        assert str(warning) == "15 samples for 2 dimensions: κ_p needs about 16"


# Kronecker products

vectors = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=6)


@given(a=vectors, b=vectors)
def test_kron_is_the_spectrum_of_the_kronecker_product(a, b):
    product = torch.kron(torch.diag(torch.tensor(a)), torch.diag(torch.tensor(b))).diagonal()
    torch.testing.assert_close(
        Spectrum(a).kron(Spectrum(b)).eigenvalues,
        product.sort(descending=True).values.double(),
        rtol=1e-5, atol=1e-30,
    )  # fmt: skip


def test_kron_agrees_with_the_eigenvalues_of_a_dense_product():
    a, b = moment(3), moment(4, seed=1)
    dense = torch.linalg.eigvalsh(torch.kron(a, b)).flip(0)
    product = spectrum_of(a).kron(spectrum_of(b))
    torch.testing.assert_close(product.eigenvalues, dense)
    assert product.n is None


def test_lambda_max_and_kappa_multiply_and_kappa_p_does_not():
    a, b = Spectrum([8.0, 4.0, 1.0]), Spectrum([9.0, 3.0])
    product = a.kron(b)
    assert product.lambda_max == a.lambda_max * b.lambda_max
    assert product.kappa() == a.kappa() * b.kappa()
    assert product.kappa(0.5) == 3.0  # of 72 36 24 12 9 3, number 3
    assert a.kappa(0.5) * b.kappa(0.5) == 2.0


def test_the_product_with_a_diverged_spectrum_is_diverged():
    assert Spectrum([1.0, 0.0]).kron(Spectrum([math.nan])).diverged


# Spectra of matrices


def test_eigenvalues_below_the_cut_are_exact_zeros():
    values = torch.tensor([1.0, 2e-7, 0.5e-7, -0.5e-7], dtype=torch.float64)
    spectrum = spectrum_of(torch.diag(values), cut=1e-7)
    torch.testing.assert_close(spectrum.eigenvalues[:2], values[:2])
    assert spectrum.eigenvalues[2:].tolist() == [0.0, 0.0]
    assert (spectrum.rank, spectrum.kappa()) == (2, math.inf)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_rank_is_the_number_of_samples_where_there_are_fewer_than_dimensions(n):
    spectrum = spectrum_of(moment(10, n=n))
    assert spectrum.rank == n
    assert math.isinf(spectrum.kappa()) == (n < 10)


def test_the_zero_matrix_has_rank_zero_and_infinite_kappa():
    spectrum = spectrum_of(torch.zeros(3, 3))
    assert (spectrum.lambda_max, spectrum.rank, spectrum.diverged) == (0.0, 0, False)
    assert (spectrum.kappa(), spectrum.kappa(0.1)) == (math.inf, math.inf)
    assert math.isnan(spectrum.stable_rank)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-40, 1e200, 1e300])
def test_kappa_does_not_depend_on_the_scale(scale):
    plain, scaled = spectrum_of(moment(6)), spectrum_of(moment(6) * scale)
    assert scaled.kappa() == pytest.approx(plain.kappa(), rel=1e-9)
    assert scaled.lambda_max == pytest.approx(plain.lambda_max * scale, rel=1e-9)


def test_float32_moments_are_decomposed_in_float64():
    matrix = moment(20, dtype=torch.float32)
    expected = torch.linalg.eigvalsh(matrix.double()).flip(0)
    torch.testing.assert_close(spectrum_of(matrix).eigenvalues, expected, rtol=1e-12, atol=0)


def test_float32_denormals_keep_their_spectrum():
    matrix = torch.diag(torch.tensor([1e-40, 1e-41, 0.0]))
    spectrum = spectrum_of(matrix, cut=1e-7)
    assert spectrum.rank == 2
    assert spectrum.kappa(0.5) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_matrix_among_good_ones_does_not_spoil_them(bad):
    broken = moment(4)
    broken[1, 2] = bad
    good, other = moment(4, seed=1), moment(4, seed=2)
    first, second, third = moment_spectra([good, broken, other], [7, 8, 9], [CUT] * 3)
    assert second.diverged
    assert not first.diverged
    torch.testing.assert_close(first.eigenvalues, torch.linalg.eigvalsh(good).flip(0))
    torch.testing.assert_close(third.eigenvalues, torch.linalg.eigvalsh(other).flip(0))
    assert [s.n for s in (first, second, third)] == [7, 8, 9]


def test_batching_by_size_equals_one_by_one():
    sizes = [5, 3, 5, 2, 3]
    moments = [moment(d, seed=k) for k, d in enumerate(sizes)]
    counts = list(range(5))
    cuts = [0.0, 0.9, 0.01, 0.0, 0.0]  # each matrix has its own
    together = moment_spectra(moments, counts, cuts)
    for k, spectrum in enumerate(together):
        [alone] = moment_spectra([moments[k]], [counts[k]], [cuts[k]])
        torch.testing.assert_close(spectrum.eigenvalues, alone.eigenvalues, rtol=1e-12, atol=0)
        assert spectrum.n == k
    assert [s.dimension for s in together] == sizes
    assert together[1].rank < 3


def test_moments_are_left_as_they_were():
    broken = moment(3)
    broken[0, 0] = math.nan
    moments = [moment(3, seed=1), broken]
    before = [m.clone() for m in moments]
    moment_spectra(moments, [None] * 2, [0.5] * 2)
    for old, new in zip(before, moments, strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)


def test_layer_spectra_keep_each_factor_with_its_layer():
    eye = torch.eye(2, dtype=torch.float64)
    factors = [
        LayerFactors(f"layer{k}", k * eye, 10 * k * torch.eye(3, dtype=torch.float64), 4 * k, CUT)
        for k in (1, 2)
    ]
    for k, layer in enumerate(layer_spectra(factors), start=1):
        assert layer.name == f"layer{k}"
        assert layer.input.eigenvalues.tolist() == [k] * 2
        assert layer.grad.eigenvalues.tolist() == [10 * k] * 3
        assert layer.input.n == layer.grad.n == 4 * k
        assert layer.kronecker.eigenvalues.tolist() == [10 * k * k] * 6


# Threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_one_thread_holds_inside_and_is_undone_after_an_error(threads):
    with one_thread():
        assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError), one_thread():
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == threads


def test_eigenvalues_are_computed_by_one_thread(threads, monkeypatch):
    seen = []
    original = torch.linalg.eigvalsh

    def spy(matrix):
        seen.append(torch.get_num_threads())
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", spy)
    spectrum_of(moment(3))
    assert seen == [1]
    assert torch.get_num_threads() == threads
