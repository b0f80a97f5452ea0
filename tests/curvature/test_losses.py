"""Output gradients against the definition: every label, one sample's own loss at a time.

The reference lists all labels of all terms of a sample with their probabilities and differentiates
PyTorch's loss at each. It does not see faults of PyTorch's losses.
"""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lca_widgets.curvature.losses import output_gradients, summed_loss
from tests.curvature.brute_force import CROSS_ENTROPY, Loss, assert_close

N = 3
FLOAT = {torch.float64: 1e-10, torch.float32: 1e-5}


def logits(*shape):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0))


def classes(*shape, count=3):
    return torch.randint(count, (N, *shape), generator=torch.Generator().manual_seed(1))


def bits(*shape):
    return classes(*shape, count=2).float()


WEIGHTS = torch.tensor([0.5, 0.0, 2.0])
IGNORING = torch.tensor([[0, -100], [2, 1], [1, 0]])
IGNORED_SAMPLE = torch.tensor([[0, -100], [2, -100], [-100, -100]])

CASES = {  # loss, output, target
    "softmax": (CROSS_ENTROPY, logits(3), classes()),
    "softmax, two classes": (CROSS_ENTROPY, logits(2), classes(count=2)),
    "softmax, positions": (CROSS_ENTROPY, logits(3, 2), classes(2)),
    "softmax, two by two positions": (CROSS_ENTROPY, logits(2, 2, 2), classes(2, 2, count=2)),
    "softmax, class weights, one of them 0": (
        Loss(nn.CrossEntropyLoss, {"weight": WEIGHTS}), logits(3), torch.tensor([0, 1, 2]),
    ),
    "softmax, class weights, positions": (
        Loss(nn.CrossEntropyLoss, {"weight": WEIGHTS}), logits(3, 2), classes(2),
    ),
    "softmax, smoothed": (
        Loss(nn.CrossEntropyLoss, {"label_smoothing": 0.3}), logits(3), classes(),
    ),
    "softmax, smoothed, weights": (
        Loss(nn.CrossEntropyLoss, {"label_smoothing": 0.3, "weight": WEIGHTS}),
        logits(3), classes(),
    ),
    "softmax, smoothed, positions": (
        Loss(nn.CrossEntropyLoss, {"label_smoothing": 0.3}), logits(3, 2), classes(2),
    ),
    "softmax, ignored labels": (CROSS_ENTROPY, logits(3, 2), IGNORING),
    "softmax, an ignored sample": (CROSS_ENTROPY, logits(3, 2), IGNORED_SAMPLE),
    "softmax, ignored labels, weights": (
        Loss(nn.CrossEntropyLoss, {"weight": WEIGHTS}), logits(3, 2), IGNORING,
    ),
    "softmax, another ignored label": (
        Loss(nn.CrossEntropyLoss, {"ignore_index": -1}), logits(3), torch.tensor([-1, 0, 2]),
    ),
    "softmax, probabilities": (CROSS_ENTROPY, logits(3), logits(3).sin().softmax(dim=1)),
    "softmax, probabilities, positions": (
        CROSS_ENTROPY, logits(3, 2), logits(3, 2).sin().softmax(dim=1),
    ),
    "softmax, probabilities, weights": (
        Loss(nn.CrossEntropyLoss, {"weight": WEIGHTS}), logits(3), logits(3).sin().softmax(dim=1),
    ),
    "squared error": (Loss(nn.MSELoss), logits(3), logits(3) + 1),
    "squared error, one number": (Loss(nn.MSELoss), logits(), logits() + 1),
    "squared error, positions": (Loss(nn.MSELoss), logits(2, 2), logits(2, 2) + 1),
    "logits of bits": (Loss(nn.BCEWithLogitsLoss), logits(3), bits(3)),
    "logits of bits, one number": (Loss(nn.BCEWithLogitsLoss), logits(), bits()),
    "logits of bits, positions": (Loss(nn.BCEWithLogitsLoss), logits(2, 2), bits(2, 2)),
    "logits of bits, weights": (
        Loss(nn.BCEWithLogitsLoss, {"weight": WEIGHTS}), logits(3), bits(3),
    ),
    "logits of bits, positive weights": (
        Loss(nn.BCEWithLogitsLoss, {"pos_weight": WEIGHTS + 0.5}), logits(3), bits(3),
    ),
    "probabilities of bits": (Loss(nn.BCELoss), logits(3).sigmoid(), bits(3)),
    "probabilities of bits, weights": (
        Loss(nn.BCELoss, {"weight": WEIGHTS}), logits(3).sigmoid(), bits(3),
    ),
}  # fmt: skip

# Where these labels' gradients have a mean, those of different terms are correlated.
UNBIASED = [case for case in CASES if "smooth" not in case and "weights" not in case]


def cast(value, dtype):
    return value.to(dtype) if value.is_floating_point() else value


def definition(case, fisher, reduction):
    """For each sample E_y[(∂l_n/∂f_n)(∂l_n/∂f_n)ᵀ], f_n flattened."""
    loss, output, target = CASES[case]
    output, target = output.double(), cast(target, torch.float64)
    share = loss.share(output, target, reduction)
    terms = loss.module("sum")
    moments = []
    for n in range(N):
        f = output[n : n + 1].clone().requires_grad_()
        labels = [(1.0, target[n : n + 1])]
        if fisher == "exact":
            labels = list(loss.labels(f, target[n : n + 1]))
        assert sum(probability for probability, _ in labels) == pytest.approx(1)
        moment = torch.zeros(())
        for probability, label in labels:
            [g] = torch.autograd.grad(share * terms(f, label), f)
            moment = moment + probability * torch.outer(g.flatten(), g.flatten())
        moments.append(moment)
    return torch.stack(moments)


def moments_of(columns):
    return sum(c.flatten(1)[:, :, None] * c.flatten(1)[:, None, :] for c in map(to_double, columns))


def to_double(column):
    return column.reshape(N, -1).double()


@pytest.mark.parametrize("dtype", FLOAT, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_the_columns_outer_products_are_the_moment_of_the_output_gradient(
    case, fisher, reduction, dtype
):
    loss, output, target = CASES[case]
    columns = list(
        output_gradients(
            loss.module(reduction, dtype), output.to(dtype), cast(target, dtype), fisher=fisher
        )
    )
    assert {column.shape for column in columns} == {output.shape}
    assert {column.dtype for column in columns} == {dtype}
    assert not any(column.requires_grad for column in columns)
    assert_close(moments_of(columns), definition(case, fisher, reduction), FLOAT[dtype])


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("softmax", 2), ("softmax, two classes", 1), ("softmax, positions", 4),
        ("squared error", 3), ("squared error, one number", 1), ("logits of bits", 3),
    ],
)  # fmt: skip
def test_the_exact_fisher_takes_the_fewest_backward_passes(case, count):
    loss, output, target = CASES[case]
    assert len(list(output_gradients(loss.module(), output, target, fisher="exact"))) == count


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_a_sampled_column_is_the_gradient_for_some_label_of_the_model(case, reduction):
    loss, output, target = CASES[case]
    output, target = output.double(), cast(target, torch.float64)
    module = loss.module(reduction)
    for seed in range(2):
        [column] = output_gradients(
            module, output, target, fisher="sampled", generator=torch.Generator().manual_seed(seed)
        )
        share, terms = loss.share(output, target, reduction), loss.module("sum")
        if loss.kind is nn.MSELoss:  # any label is possible
            assert (column != 0).all()
            continue
        for n in range(N):
            f = output[n : n + 1].clone().requires_grad_()
            possible = [
                torch.autograd.grad(share * terms(f, label), f)[0][0]
                for _, label in loss.labels(f, target[n : n + 1])
            ]
            assert min((column[n] - g).abs().max() for g in possible) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_sampled_columns_have_the_exact_moment_on_average(case):
    loss, output, target = CASES[case]
    output, target = output.double(), cast(target, torch.float64)
    generator, draws = torch.Generator().manual_seed(0), 1000
    # The same samples again and again: each draws labels of its own.
    output, target = (torch.cat([part] * draws) for part in (output, target))
    [column] = output_gradients(
        loss.module(), output, target, fisher="sampled", generator=generator
    )
    g = column.reshape(draws, N, -1)
    drawn = g[..., :, None] * g[..., None, :]
    error = drawn.mean(dim=0) - definition(case, "exact", "mean")
    # Five standard errors for each of a hundred entries; 1e-9 where no label can be drawn.
    assert (error.abs() <= 5 * drawn.std(dim=0) / draws**0.5 + 1e-9).all()


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize(
    ("function", "kind", "case"),
    [
        (functional.cross_entropy, nn.CrossEntropyLoss, "softmax"),
        (functional.mse_loss, nn.MSELoss, "squared error"),
        (functional.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss, "logits of bits"),
        (functional.binary_cross_entropy, nn.BCELoss, "probabilities of bits"),
    ],
)
def test_the_functions_of_the_same_names_count_as_their_modules(function, kind, case, fisher):
    _, output, target = CASES[case]
    for a, b in zip(
        output_gradients(function, output, target, fisher=fisher),
        output_gradients(kind(), output, target, fisher=fisher),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_one_generator_gives_one_column_and_leaves_the_global_state_alone():
    for case in ("softmax", "squared error", "logits of bits", "probabilities of bits"):
        loss, output, target = CASES[case]
        before = torch.get_rng_state()
        first, again, other = (
            next(output_gradients(
                loss.module("mean", torch.float32), output, target, fisher="sampled",
                generator=torch.Generator().manual_seed(seed),
            ))
            for seed in (3, 3, 4)
        )  # fmt: skip
        assert torch.equal(first, again)
        assert torch.equal(torch.get_rng_state(), before)
        if case != "softmax":  # three labels, which two seeds may share
            assert not torch.equal(first, other)


def test_the_output_is_not_changed():
    output = logits(3).requires_grad_()
    for fisher in ("empirical", "exact", "sampled"):
        list(output_gradients(nn.CrossEntropyLoss(), output, classes(), fisher=fisher))
        with torch.no_grad():
            list(output_gradients(nn.CrossEntropyLoss(), output, classes(), fisher=fisher))
    assert output.requires_grad
    assert output.grad is None


# Extremes.


@pytest.mark.parametrize("dtype", FLOAT, ids=str)
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHTS}, {"label_smoothing": 0.1}], ids=str)
def test_a_saturated_softmax_has_a_finite_fisher(options, dtype):
    output = torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, 1000.0], [1e30, 0.0, -1e30]])
    loss = Loss(nn.CrossEntropyLoss, options).module("mean", dtype)
    for fisher in ("exact", "sampled"):
        columns = list(output_gradients(loss, output.to(dtype), classes(), fisher=fisher))
        assert all(column.isfinite().all() for column in columns)
        if not options:  # the label is certain
            assert not any(column.any() for column in columns)


@settings(max_examples=40)
@given(st.integers(2, 6), st.floats(0.1, 300), st.integers(0, 2**16))
def test_the_softmax_columns_are_a_factor_of_diag_p_minus_p_pt_at_any_scale(count, scale, seed):
    torch.manual_seed(seed)
    output = scale * torch.randn(N, count, dtype=torch.float64)
    p = output.softmax(dim=1)
    columns = output_gradients(nn.CrossEntropyLoss(), output, classes(count=2), fisher="exact")
    exact = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert (moments_of(columns) - exact).abs().max() <= 1e-14
    # A nearly certain label's variance p(1 − p) is small, and not rounded away.
    variance = moments_of(
        output_gradients(nn.CrossEntropyLoss(), output, classes(count=2), fisher="exact")
    ).diagonal(dim1=1, dim2=2)
    rest = torch.stack([p[:, [j for j in range(count) if j != i]].sum(1) for i in range(count)], 1)
    torch.testing.assert_close(variance, p * rest, rtol=1e-10, atol=1e-200)


@pytest.mark.parametrize("logit", [-30.0, -10.0, 10.0, 15.0, 30.0])
def test_confident_bits_keep_single_precision(logit):
    output = torch.full((N, 2), logit)
    columns = output_gradients(nn.BCEWithLogitsLoss(), output, bits(2), fisher="exact")
    p = 1 / (1 + math.exp(-abs(logit)))
    variance = p * math.exp(-abs(logit)) * p / 4  # two numbers, averaged
    assert moments_of(columns)[:, 0, 0].tolist() == pytest.approx([variance] * N, rel=1e-5, abs=0)


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
def test_certain_probabilities_of_bits_have_a_finite_fisher(fisher):
    output, target = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 1.0]]), bits(2) * 0
    target[:, 1] = 1.0
    target[1] = torch.tensor([1.0, 0.0])
    columns = list(output_gradients(nn.BCELoss(), output, target, fisher=fisher))
    assert all(column.isfinite().all() for column in columns)


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batch_whose_labels_are_all_ignored_has_the_gradient_zero(reduction, fisher):
    # PyTorch's mean over no label is NaN, its gradient 0.
    loss = nn.CrossEntropyLoss(reduction=reduction)
    for column in output_gradients(loss, logits(3), torch.full((N,), -100), fisher=fisher):
        assert not column.any()


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("case", UNBIASED)
def test_a_non_finite_output_gives_a_non_finite_column_and_no_error(case, fisher):
    loss, output, target = CASES[case]
    if loss.kind is nn.BCELoss:  # which itself refuses a probability outside [0, 1]
        return
    output = output.clone()
    output.view(-1)[0] = math.nan
    columns = list(
        output_gradients(
            loss.module("mean", torch.float32), output, cast(target, torch.float32), fisher=fisher
        )
    )
    if loss.kind is nn.MSELoss and fisher != "empirical":
        return  # its gradients for the model's labels do not depend on the output
    assert not all(column.isfinite().all() for column in columns)


# The sum of per-sample losses, whatever the loss's reduction.


def absolute_mean(output, target):
    return (output - target).abs().sum(dim=1).mean()


def absolute_sum(output, target):
    return (output - target).abs().sum()


def gradient_of(loss_fn, output, target, reduction=None):
    leaf = output.clone().requires_grad_()
    total = summed_loss(loss_fn, leaf, target, len(output), reduction)
    assert total.shape == ()
    return torch.autograd.grad(total, leaf)[0]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("loss_fn", [absolute_mean, absolute_sum])
def test_the_reduction_of_any_loss_is_found_out(loss_fn, n):
    torch.manual_seed(0)
    output, target = torch.randn(2, n, 3)
    assert torch.equal(gradient_of(loss_fn, output, target), (output - target).sign())


def test_a_loss_of_zero_does_not_hide_its_reduction():
    # Zero as a zero-initialised last layer makes it; the gradient is the target.
    output, target = torch.zeros(4, 3), torch.randn(4, 3)

    def linear_sum(output, target):
        return (output * target).sum()

    def linear_mean(output, target):
        return (output * target).sum(dim=1).mean()

    for loss_fn in (linear_sum, linear_mean):
        torch.testing.assert_close(gradient_of(loss_fn, output, target), target)


def test_a_loss_per_sample_is_summed():
    output, target = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = 2 * (output - target)
    assert torch.allclose(gradient_of(nn.MSELoss(reduction="none"), output, target), expected)
    one = (output[:1], target[:1])
    assert torch.allclose(gradient_of(nn.MSELoss(reduction="none"), *one), expected[:1])
    per_sample = functools.partial(functional.mse_loss, reduction="none")
    assert torch.allclose(gradient_of(per_sample, output, target), expected)


def test_batchmean_is_a_mean():
    output = logits(3).log_softmax(dim=1)
    target = logits(3).softmax(dim=1)
    gradient = gradient_of(nn.KLDivLoss(reduction="batchmean"), output, target)
    torch.testing.assert_close(gradient, -target)


def test_where_the_reduction_is_unclear_it_is_asked_for():
    weights = torch.tensor([1.0, 1.0, 4.0])

    def weighted(output, target):
        return functional.cross_entropy(output, target, weight=weights)

    output, target = logits(3), torch.tensor([0, 2, 1])
    with pytest.raises(ValueError, match=r"reduction of loss_fn weighted is unclear: .* pass red"):
        gradient_of(weighted, output, target)
    module = nn.CrossEntropyLoss(weight=weights)
    assert torch.equal(
        gradient_of(weighted, output, target, "mean"), gradient_of(module, output, target)
    )


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(reduction="sum"), absolute_sum])
def test_a_reduction_that_contradicts_the_loss_is_refused(loss_fn):
    output, target = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="reduction='mean' contradicts"):
        summed_loss(loss_fn, output, target, 4, "mean")


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
def test_a_reduction_is_checked_whichever_labels_are_used(fisher):
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'none'"):
        list(output_gradients(
            nn.CrossEntropyLoss(), logits(3), classes(), fisher=fisher, reduction="none"
        ))  # fmt: skip
    with pytest.raises(ValueError, match="reduction='sum' contradicts the loss"):
        list(output_gradients(
            nn.CrossEntropyLoss(), logits(3), classes(), fisher=fisher, reduction="sum"
        ))  # fmt: skip


def test_a_loss_of_another_type_is_refused():
    with pytest.raises(TypeError, match="loss_fn must return a tensor, got float"):
        summed_loss(lambda output, target: output.mean().item(), logits(3), classes(), N)


class Doubled(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return 2 * super().forward(input, target)


@pytest.mark.parametrize(
    ("loss_fn", "name"),
    [
        (nn.L1Loss(), "L1Loss"), (Doubled(), "Doubled"), (absolute_mean, "absolute_mean"),
        (functools.partial(functional.cross_entropy), "partial"),
    ],
)  # fmt: skip
def test_a_loss_that_names_no_distribution_is_refused(loss_fn, name):
    for fisher in ("exact", "sampled"):
        with pytest.raises(ValueError, match=rf"torch.nn.CrossEntropyLoss, .*; got {name}: use"):
            output_gradients(loss_fn, logits(3), classes(), fisher=fisher)


def test_a_loss_that_cannot_be_hashed_is_a_loss():
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, output, target):
            return absolute_mean(output, target)

    output, target = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gradient_of(Unhashable(), output, target), (output - target).sign())


def test_a_batch_size_mismatch_is_refused_with_both_shapes():
    for fisher in ("empirical", "exact", "sampled"):
        with pytest.raises(
            ValueError, match=r"target must have as many samples .* \(2,\) .* \(3, 3"
        ):
            output_gradients(nn.CrossEntropyLoss(), logits(3), classes()[:2], fisher=fisher)


def test_an_unknown_fisher_is_refused():
    with pytest.raises(ValueError, match="fisher must be one of 'empirical', 'exact', 'sampled'"):
        output_gradients(nn.CrossEntropyLoss(), logits(3), classes(), fisher="mc")
