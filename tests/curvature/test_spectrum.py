"""What is read off eigenvalues, and the eigenvalues of ordinary, tiny, huge and broken matrices."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lca_widgets.curvature import spectrum as module
from lca_widgets.curvature.factors import LayerFactors
from lca_widgets.curvature.spectrum import (
    KroneckerSpectrum,
    SampleWarning,
    Spectrum,
    gram_spectrum,
    largest_eigenvalues,
    layer_spectra,
    moment_spectra,
    one_thread,
    row_spectrum,
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


# Zeros that are not stored


@given(
    values=st.lists(st.floats(0, 1e9), min_size=1, max_size=9),
    zeros=st.integers(0, 30),
    p=st.floats(0.001, 1),
)
def test_eigenvalues_that_are_not_stored_count_as_zeros(values, zeros, p):
    short = Spectrum(values, n=5, dimension=len(values) + zeros)
    full = Spectrum([*values, *[0.0] * zeros], n=5)
    assert facts(short, p) == pytest.approx(facts(full, p), nan_ok=True)
    assert repr(short) == repr(full)
    assert short.warning == full.warning
    assert len(short.eigenvalues) == len(values)


def facts(spectrum, p):
    numbers = [spectrum.lambda_max, spectrum.kappa(p), spectrum.kappa(), spectrum.trace]
    return [*numbers, spectrum.stable_rank, spectrum.rank, spectrum.dimension, spectrum.diverged]


def test_a_diverged_spectrum_is_diverged_past_its_stored_values_too():
    assert math.isnan(Spectrum([math.nan], dimension=10).kappa())


def test_a_dimension_below_the_number_of_eigenvalues_is_refused():
    with pytest.raises(ValueError, match="dimension must be at least 2, got 1"):
        Spectrum([2.0, 1.0], dimension=1)
    with pytest.raises(TypeError, match="dimension must be a whole number"):
        Spectrum([2.0, 1.0], dimension=2.0)


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


def test_the_product_with_zeros_that_are_not_stored_has_their_zeros():
    product = Spectrum([4.0, 1.0], dimension=4).kron(Spectrum([3.0, 2.0], dimension=5))
    assert (product.dimension, product.rank, product.eigenvalues.tolist()) == (20, 4, [12, 8, 3, 2])
    assert [product.kappa(p) for p in (0.2, 0.21)] == [6.0, math.inf]


@pytest.fixture(params=["sorted", "selected", "bisected"])
def route(request, monkeypatch):
    """Every way to a κ_p, whatever the size of the product."""
    sizes = {"sorted": (10**9, 10**9), "selected": (0, 10**9), "bisected": (0, 0)}[request.param]
    for name, size in zip(("SORTED_PRODUCTS", "SELECTED_PRODUCTS"), sizes, strict=True):
        monkeypatch.setattr(module, name, size)


def products_of(left, right):
    """All products of two vectors, or of pairs of rows, as float64 rounds them; descending."""
    left, right = (torch.atleast_2d(torch.as_tensor(v, dtype=torch.float64)) for v in (left, right))
    products = (left[:, :, None] * right[:, None, :]).flatten().sort(descending=True).values
    return products.where(products >= torch.finfo(torch.float64).tiny, 0)


def check_against_products(spectrum, products):
    """Every quantity, and every eigenvalue bit by bit, is that of the list of all products."""
    dense = Spectrum(products)
    assert spectrum.rank == dense.rank
    assert spectrum.stable_rank == pytest.approx(dense.stable_rank, nan_ok=True)
    assert spectrum.trace == pytest.approx(dense.trace, rel=1e-12, abs=1e-300)
    for k in range(1, len(products) + 1):
        p = k / len(products)
        assert spectrum.kappa(p) == dense.kappa(p)
    assert spectrum.eigenvalues.tolist() == products.tolist()


@pytest.mark.parametrize(("left", "right"), [
    ([3.0, 2.0, 1.0], [0.5, 0.25]),
    ([1.0] * 7, [2.0] * 5),  # one value, 35 times
    ([2.0 ** -k for k in range(8)], [2.0 ** -k for k in range(8)]),  # many ties
    ([1 + k * 2.0 ** -52 for k in range(6)][::-1], [1 + k * 2.0 ** -52 for k in range(5)][::-1]),
    ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0]),
    ([0.0, 0.0], [1.0]),
    ([1e200, 1.0, 1e-200], [1e100, 1e-150, 1e-300]),  # 1e-350 is zero, 1e-100 is not
    ([1e-200, 1e-300], [1e-200]),  # all underflow
    ([1e-155, 1e-160], [1e-154]),  # so do these, whose digits float64 keeps only in part
    ([1e300, 1e-300], [1e8, 1e-8, 1e-9]),  # 1e-308 is no full float64 number
])  # fmt: skip
def test_a_kronecker_product_equals_the_list_of_all_products(left, right, route):
    check_against_products(Spectrum(left).kron(Spectrum(right)), products_of(left, right))


wide = st.floats(-300, 150).map(lambda exponent: 2.0**exponent)  # 2^1023 is the largest


@settings(max_examples=20)
@given(st.data())
def test_bisection_finds_every_eigenvalue_of_every_product(data):
    groups = data.draw(st.integers(1, 3))
    vectors = [
        data.draw(st.lists(
            st.lists(wide | st.sampled_from([0.0, 1.0, 3.0]), min_size=size, max_size=size)
            .map(lambda values: sorted(values, reverse=True)),
            min_size=groups, max_size=groups,
        ))
        for size in (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    ]  # fmt: skip
    left, right = (torch.tensor(v, dtype=torch.float64) for v in vectors)
    products = products_of(left, right)
    spectrum = KroneckerSpectrum(left, right, len(products))
    assert spectrum._count(module.SMALLEST) == (products > 0).sum()
    if products[0] > 0:
        found = [spectrum._bisected(k) for k in range(1, len(products) + 1)]
        assert found == products.tolist()
        check_against_products(spectrum, products)


def test_kappa_of_a_large_product_forms_no_product(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = (Spectrum(torch.rand(size, generator=generator)) for size in (3000, 2000))
    product = a.kron(b)
    monkeypatch.setattr(KroneckerSpectrum, "_products", None)
    assert product.lambda_max == a.lambda_max * b.lambda_max
    assert product.dimension == 6_000_000
    assert product.rank == a.rank * b.rank
    assert product.trace == pytest.approx(a.trace * b.trace)
    assert product.stable_rank == pytest.approx(a.stable_rank * b.stable_rank)
    assert product.kappa() == pytest.approx(a.kappa() * b.kappa(), rel=1e-12)
    low = product.lambda_max / product.kappa(0.5)
    above = sum((a.eigenvalues * value >= low * (1 - 1e-14)).sum().item() for value in b._numbers)
    assert above == pytest.approx(3_000_000, abs=5)


@pytest.mark.parametrize(("left", "right"), [([1e200, 1.0], [1e200, 1.0]), ([math.nan], [0.0])])
def test_a_product_that_overflows_or_has_a_diverged_factor_is_diverged(left, right, route):
    product = Spectrum(left).kron(Spectrum(right))
    assert product.diverged
    assert product.rank == 0
    numbers = [product.lambda_max, product.kappa(), product.kappa(0.5), product.trace,
               product.stable_rank, *product.eigenvalues.tolist()]  # fmt: skip
    assert all(map(math.isnan, numbers))


def test_the_trace_of_a_product_of_zeros_is_zero():
    product = Spectrum([0.0]).kron(Spectrum([1.0]))
    assert (product.trace, product.rank, product.kappa()) == (0.0, 0, math.inf)


def test_a_kronecker_spectrum_can_be_multiplied_again_and_says_what_it_is():
    product = Spectrum([2.0, 1.0]).kron(Spectrum([3.0]))
    assert product.kron(Spectrum([5.0])).eigenvalues.tolist() == [30.0, 15.0]
    assert repr(product) == "KroneckerSpectrum(d=2, n=None, rank=2, lambda_max=6)"
    assert product.warning is None


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


@pytest.mark.parametrize("d", [5, 200])
@pytest.mark.parametrize("shown", [0, 1, 4])
def test_rows_of_zeros_change_nothing(d, shown):
    small = moment(shown) if shown else torch.zeros(0, 0, dtype=torch.float64)
    large = torch.zeros(d, d, dtype=torch.float64)
    place = torch.arange(shown) * (d // 5)  # dead units between live ones
    large[place[:, None], place] = small
    spectrum = spectrum_of(large)
    assert len(spectrum.eigenvalues) == d
    torch.testing.assert_close(
        spectrum.eigenvalues[:shown], torch.linalg.eigvalsh(small).flip(0), rtol=1e-12, atol=0
    )
    assert spectrum.rank == shown


def test_a_row_is_dropped_only_if_all_of_it_is_zero():
    matrix = torch.zeros(200, 200, dtype=torch.float64)
    matrix[0, 0] = 1.0
    matrix[0, 1] = matrix[1, 0] = 1e-170  # of a column of 1e-170, whose square is zero
    assert spectrum_of(matrix).rank == 1
    matrix[0, 1] = matrix[1, 0] = 1.0  # no second moment, but what is asked for is its spectrum
    torch.testing.assert_close(
        spectrum_of(matrix).lambda_max, torch.linalg.eigvalsh(matrix[:2, :2])[-1].item()
    )


@pytest.mark.parametrize("d", [3, 130])
def test_large_matrices_diverge_alone_too(d):
    broken = moment(d)
    broken[2, 1] = math.nan
    first, second = moment_spectra([broken, moment(d)], [None] * 2, [CUT] * 2)
    assert first.diverged
    dense = torch.linalg.eigvalsh(moment(d)).flip(0)
    torch.testing.assert_close(second.eigenvalues, dense, rtol=1e-9, atol=1e-12)
    assert moment_spectra([], [], []) == []


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


# Grouped convolutions


def grouped_factors(groups, d_in, d_out, n=7):
    inputs = torch.stack([moment(d_in, seed=k) * 10**k for k in range(groups)])
    grads = torch.stack([moment(d_out, seed=9 + k) for k in range(groups)])
    return LayerFactors("grouped", inputs, grads, n, CUT)


def test_spectra_of_a_grouped_layer_are_those_of_the_block_diagonal_matrices():
    factors = grouped_factors(groups=3, d_in=4, d_out=2)
    plain = LayerFactors("plain", moment(4), moment(2), 5, CUT)
    layer, other = layer_spectra([factors, plain])
    for spectrum, blocks in (
        (layer.input, factors.input_moment),
        (layer.grad, factors.grad_moment),
    ):
        dense = torch.linalg.eigvalsh(torch.block_diag(*blocks)).flip(0)
        torch.testing.assert_close(spectrum.eigenvalues, dense, rtol=1e-9, atol=0)
        assert (spectrum.n, spectrum.dimension) == (7, len(dense))
    pairs = zip(factors.input_moment, factors.grad_moment, strict=True)
    block = torch.block_diag(*(torch.kron(x, g) for x, g in pairs))
    dense = torch.linalg.eigvalsh(block).flip(0)
    torch.testing.assert_close(layer.kronecker.eigenvalues, dense, rtol=1e-9, atol=0)
    assert layer.kronecker.dimension == 3 * 4 * 2
    assert layer.kronecker.kappa(0.5) == pytest.approx((dense[0] / dense[11]).item())
    # The largest input eigenvalue and the largest gradient eigenvalue may be in different groups.
    assert layer.kronecker.lambda_max < layer.input.lambda_max * layer.grad.lambda_max
    assert other.kronecker.dimension == 8


def test_a_group_that_diverges_takes_its_layer_with_it_and_no_other():
    factors = grouped_factors(groups=3, d_in=4, d_out=2)
    factors.input_moment[1, 0, 0] = math.nan
    layer, other = layer_spectra([factors, grouped_factors(groups=3, d_in=4, d_out=2)])
    assert layer.input.diverged
    assert layer.input.eigenvalues.isnan().all()
    assert layer.kronecker.diverged
    assert not layer.grad.diverged
    assert not other.kronecker.diverged


def test_the_groups_of_a_depthwise_convolution_are_decomposed_together(monkeypatch):
    calls = []
    original = torch.linalg.eigvalsh

    def spy(stacked):
        calls.append(stacked.shape)
        return original(stacked)

    monkeypatch.setattr(torch.linalg, "eigvalsh", spy)
    ones = torch.ones(300, 1, 1, dtype=torch.float64)
    inputs = torch.stack([moment(9, seed=k) for k in range(300)])
    [layer] = layer_spectra([LayerFactors("depthwise", inputs, ones, 50, CUT)])
    assert layer.kronecker.eigenvalues.tolist() == layer.input.eigenvalues.tolist()
    assert sorted(calls) == [(1, 300, 1, 1), (1, 300, 9, 9)]


# The smaller of two matrices


@given(n=st.integers(1, 12), d=st.integers(1, 12), double=st.booleans())
def test_rows_have_the_spectrum_of_their_second_moment(n, d, double):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(n + 20 * d))
    rows = rows.double() if double else rows
    spectrum = row_spectrum(rows)
    dense = torch.linalg.eigvalsh(rows.double().T @ rows.double() / n).flip(0)
    stored = spectrum.eigenvalues
    assert len(stored) == min(n, d)
    precision = 1e-12 if double else 1e-6
    torch.testing.assert_close(stored, dense[: len(stored)], rtol=1e-6, atol=precision * dense[0])
    assert (spectrum.n, spectrum.dimension) == (n, d)
    assert math.isinf(spectrum.kappa()) or n >= d


@pytest.mark.parametrize("scale", [1e-30, 1e30])  # their squares do not fit into float32
def test_rows_of_any_scale_have_a_spectrum(scale):
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    plain, scaled = row_spectrum(rows), row_spectrum(rows * scale)
    assert scaled.rank == 3
    assert scaled.stable_rank == pytest.approx(plain.stable_rank, rel=1e-5)


def test_the_cut_of_rows_is_that_of_their_precision():
    rows = torch.diag(torch.tensor([1.0, 1e-5], dtype=torch.float64))  # squares: 1 and 1e-10
    assert row_spectrum(rows).rank == 2
    assert row_spectrum(rows.float()).rank == 1


def test_rows_with_a_nan_diverge():
    rows = torch.ones(3, 5)
    rows[0, 0] = math.nan
    spectrum = row_spectrum(rows)
    assert spectrum.diverged
    assert spectrum.dimension == 5


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3)])
def test_rows_that_are_no_matrix_are_refused(shape):
    with pytest.raises(ValueError, match="rows must be a non-empty matrix"):
        row_spectrum(torch.zeros(shape))


@pytest.mark.parametrize("rows", [3, 9])
def test_a_gram_matrix_has_the_spectrum_of_the_other_product(rows):
    r = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = gram_spectrum(r @ r.T, dimension=5, n=4, cut=CUT)
    dense = torch.linalg.eigvalsh(r.T @ r).flip(0)
    torch.testing.assert_close(spectrum.eigenvalues, dense[: min(rows, 5)])
    assert (spectrum.dimension, spectrum.n, spectrum.rank) == (5, 4, min(rows, 5))
    assert spectrum.warning == SampleWarning(4, 5)


def test_a_gram_matrix_of_no_dimension_is_refused():
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        gram_spectrum(torch.eye(2), dimension=0, n=2, cut=CUT)


# The largest eigenvalue alone


def relu_moment(d):
    rows = torch.randn(2 * d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return rows.relu().T @ rows.relu() / len(rows)


@pytest.mark.parametrize("matrix", [
    moment(5),
    relu_moment(300),
    relu_moment(300).float(),
    moment(300, n=4000),  # many almost equal eigenvalues: more steps than there are
    moment(300, n=3),
    torch.eye(300),
    torch.zeros(300, 300),
    relu_moment(300) * 1e-290,
    relu_moment(300) * 1e290,
    torch.diag(torch.arange(400.0) ** 2),
    torch.stack([relu_moment(300), 3 * relu_moment(300)]),
    torch.stack([moment(4), moment(4, seed=1)]),
])  # fmt: skip
def test_the_largest_eigenvalue_alone_is_the_first_of_all(matrix):
    expected = torch.linalg.eigvalsh(matrix.double())[..., -1].max().item()
    [found] = largest_eigenvalues([matrix])
    assert found == pytest.approx(expected, rel=1e-9)


def test_largest_eigenvalues_keep_the_order_of_large_and_small_and_broken_matrices():
    broken, small_broken = relu_moment(300), moment(3)
    broken[1, 0] = broken[0, 1] = math.inf
    small_broken[0, 0] = math.nan
    large = [relu_moment(300), moment(3), broken, small_broken, relu_moment(260)]
    found = largest_eigenvalues(large)
    assert [math.isnan(value) for value in found] == [False, False, True, True, False]
    for k in (0, 1, 4):
        assert found[k] == pytest.approx(torch.linalg.eigvalsh(large[k])[-1].item(), rel=1e-9)
    assert largest_eigenvalues([]) == []


def test_large_matrices_need_no_decomposition_and_touch_no_random_state(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    state = torch.get_rng_state()
    first, again = largest_eigenvalues([relu_moment(300)]), largest_eigenvalues([relu_moment(300)])
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)


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
