"""`analyze` and `watch` in every kind of loop: what they see, and that nothing changes for it."""

import contextlib
import copy
import gc
import math
import os
import socket
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import lca_widgets as lca
import lca_widgets.monitor as lca_monitor
from lca_widgets.curvature import kronecker_factors, layer_spectra
from lca_widgets.experiments.cifar import joined
from tests.benchmarks.networks import resnet
from tests.curvature.test_capture import hooks_on, state_of

LOSS = nn.CrossEntropyLoss()
N, CLASSES = 24, 3
TIGHT = {"rtol": 1e-9, "atol": 1e-14}


def mlp(norm=False, dropout=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6)] if norm else []
    middle += [nn.Dropout(0.5)] if dropout else []
    return nn.Sequential(
        nn.Linear(4, 6), *middle, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES)
    ).double()


def batch(n=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def train(model, steps, loss_fn=LOSS, lr=0.1, data=batch):
    """Plain gradient descent, one batch a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        x, y = data(seed=step)
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()


def numbers(table):
    return table.select_dtypes("number").astype(float)


def assert_tables_equal(a, b, rtol=1e-9, atol=1e-14):
    assert a["name"].tolist() == b["name"].tolist()
    a, b = (numbers(t).drop(columns="step", errors="ignore") for t in (a, b))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# Analyze.


def test_an_analysis_holds_what_the_estimators_measure():
    model, data = mlp(), batch()
    analysis = lca.analyze(model, LOSS, data)
    spectra = layer_spectra(kronecker_factors(model, LOSS, data).layers)
    assert [layer.name for layer in analysis.layers] == [layer.name for layer in spectra]
    for layer, other in zip(analysis.layers, spectra, strict=True):
        assert torch.equal(layer.input.eigenvalues, other.input.eigenvalues)
        assert torch.equal(layer.grad.eigenvalues, other.grad.eigenvalues)
        assert layer.kronecker.lambda_max == other.kronecker.lambda_max
        assert layer.block is None
    assert analysis.network is None
    assert analysis.loss == pytest.approx(LOSS(model(data[0]), data[1]).item(), rel=1e-12)


def test_the_table_has_one_row_a_layer_and_says_what_the_layers_say():
    analysis = lca.analyze(mlp(), LOSS, batch())
    table = analysis.table()
    assert table["layer"].tolist() == [1, 2, 3]
    assert "step" not in table
    for k, layer in enumerate(analysis.layers):
        row = table.iloc[k]
        assert row["kappa50"] == layer.kronecker.kappa(0.5)
        assert row["lambda_max_x_centred"] == layer.input_centred.lambda_max
        assert row["domination"] == layer.domination == layer.grad_sigma / layer.weight_sigma
        assert row["sensitivity"] == layer.sensitivity == layer.grad_sigma * layer.weight_sigma
    assert table["dying"].isna().tolist() == [False, False, True]


def test_exact_adds_the_blocks_and_the_network():
    analysis = lca.analyze(mlp(), LOSS, batch(), exact=True)
    assert [layer.block.dimension for layer in analysis.layers] == [24, 30, 15]
    of_layers = [layer.block.lambda_max for layer in analysis.layers]
    assert max(of_layers) <= analysis.network.lambda_max <= sum(of_layers)


def test_exact_takes_a_list_of_one_batch_and_refuses_several():
    one = lca.analyze(mlp(), LOSS, [batch()], exact=True)
    assert one.network.n == N
    with pytest.raises(ValueError, match=r"data must be one batch.*exact=True.*got 2"):
        lca.analyze(mlp(), LOSS, [batch(), batch()], exact=True)


@pytest.mark.parametrize("options", [{}, {"conv": "pixel"}, {"fisher": "exact"}], ids=str)
def test_results_do_not_depend_on_the_reduction(options):
    tables = [
        lca.analyze(mlp(), nn.CrossEntropyLoss(reduction=reduction), batch(), **options).table()
        for reduction in ("mean", "sum", "none")
    ]
    for table in tables[1:]:
        assert_tables_equal(tables[0], table)


def test_exact_leaves_the_random_state_of_a_shuffling_loader():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*batch()), batch_size=N, shuffle=True
    )
    before = torch.get_rng_state()
    lca.analyze(mlp(), LOSS, loader, exact=True)
    assert torch.equal(torch.get_rng_state(), before)
    for wrong in (5, torch.ones(4, 4)):
        with pytest.raises(TypeError, match=r"data must be one batch \(inputs, target\)"):
            lca.analyze(mlp(), LOSS, wrong, exact=True)


def test_a_loader_gives_the_same_as_its_batches_together():
    x, y = batch()
    whole = lca.analyze(mlp(), LOSS, (x, y)).table()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True
    )
    assert_tables_equal(whole, lca.analyze(mlp(), LOSS, loader).table())


def test_only_the_named_layers_are_measured():
    analysis = lca.analyze(mlp(), LOSS, batch(), layers=["2"])
    assert analysis.table()["name"].tolist() == ["2"]


def test_analyzing_changes_nothing():
    model = mlp(norm=True, dropout=True)
    LOSS(model(batch()[0]), batch()[1]).backward()
    before = state_of(model)
    lca.analyze(model, LOSS, batch(), exact=True, device="cpu")
    assert state_of(model) == before
    assert hooks_on(model) == []


def test_on_another_device_a_copy_is_measured(monkeypatch):
    moved = []

    def to(module, device):
        moved.append((type(module), device))
        return module

    model = mlp()
    loss_fn = nn.CrossEntropyLoss(weight=torch.ones(CLASSES, dtype=torch.float64))
    monkeypatch.setattr(lca_monitor, "_is_on", lambda module, device: False)
    monkeypatch.setattr(nn.Module, "to", to)
    lca.analyze(model, loss_fn, batch(), device="cpu")
    assert moved == [(nn.Sequential, torch.device("cpu")), (type(loss_fn), torch.device("cpu"))]


@pytest.mark.parametrize("device", ["cuda:99", "nowhere"])
def test_a_device_that_is_not_here_is_refused(device):
    message = f"device must be one that PyTorch finds here, got {device!r}"
    with pytest.raises(ValueError, match=message):
        lca.analyze(mlp(), LOSS, batch(), device=device)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda x: x, LOSS, batch()), TypeError, r"model must be a torch.nn.Module, got function"),
        ((mlp(), "ce", batch()), TypeError, r"loss_fn must be callable.*got str"),
        ((mlp(), LOSS, batch()[0]), TypeError, r"data must be one batch .inputs, target. or an it"),
        ((mlp(), LOSS, []), ValueError, r"data has no batch"),
        ((mlp(), LOSS, {"x": 1}), TypeError, r"data must be one batch"),
        ((nn.ReLU(), LOSS, batch()), ValueError, r"model has no linear or convolution layer"),
    ],
)
def test_analyze_names_the_argument_that_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        lca.analyze(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fisher": "true"}, r"fisher must be one of 'empirical', 'exact', 'sampled', got 'true'"),
        ({"conv": "patches"}, r"conv must be one of 'patch', 'pixel', got 'patches'"),
        ({"layers": ["9"]}, r"layers must be among '0', '2', '4'; got \['9'\]"),
        ({"reduction": "none"}, r"reduction must be one of 'mean', 'sum', got 'none'"),
    ],
)
def test_analyze_lists_what_an_option_accepts(options, message):
    with pytest.raises(ValueError, match=message):
        lca.analyze(mlp(), LOSS, batch(), **options)


# Watch: what it sees.


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_watched_step_says_what_an_analysis_says(norm, reduction):
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    analysis = lca.analyze(mlp(norm), loss_fn, batch(seed=0))
    model = mlp(norm)
    with lca.watch(model, every=1, reduction=reduction) as monitor:
        train(model, 1, loss_fn)
    assert_tables_equal(analysis.table(), monitor.table())


@pytest.mark.parametrize("conv", ["patch", "pixel"])
def test_convolutions_are_watched_as_they_are_analysed(conv):
    torch.manual_seed(0)
    model = resnet(8).double()
    x, y = torch.randn(8, 3, 12, 12, dtype=torch.float64), torch.arange(8)
    analysis = lca.analyze(model, LOSS, (x, y), conv=conv)
    with lca.watch(model, conv=conv) as monitor:
        LOSS(model(x), y).backward()
    assert_tables_equal(analysis.table(), monitor.table())
    assert monitor.skipped == analysis.skipped


def test_one_step_in_so_many_is_measured_from_the_first_on():
    model = mlp()
    with lca.watch(model, every=3) as monitor:
        train(model, 8)
    assert [report.step for report in monitor.reports] == [0, 3, 6]
    assert monitor.table()["step"].tolist() == [0] * 3 + [3] * 3 + [6] * 3


def test_a_step_is_there_as_soon_as_its_backward_pass_is_over():
    model = mlp()
    with lca.watch(model, every=2) as monitor:
        x, y = batch()
        loss = LOSS(model(x), y)
        assert monitor.reports == []
        loss.backward()
        assert len(monitor.reports) == 1
        assert len(monitor.table()) == 3


def test_weights_count_as_they_were_in_the_step():
    model = mlp()
    sigma = torch.linalg.svdvals(model[0].weight.detach())[0].item()
    with lca.watch(model) as monitor:
        train(model, 1, lr=100.0)
    assert monitor.reports[0].layers[0].weight_sigma == pytest.approx(sigma, rel=1e-9)


def test_validation_and_passes_without_a_backward_do_not_count():
    model, (x, y) = mlp(), batch()
    with lca.watch(model, every=2) as monitor:
        for _ in range(4):
            with torch.no_grad():
                model(x)
            model(x)  # with gradients on, but nobody asks for them
            LOSS(model(x), y).backward()
            model.zero_grad()
    assert [report.step for report in monitor.reports] == [0, 2]
    assert monitor.reports[0].layers[0].n == N


@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_accumulation_agrees_with_the_big_batch(pieces, reduction):
    x, y = batch()
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    whole = mlp()
    with lca.watch(whole, reduction=reduction) as big:
        loss_fn(whole(x), y).backward()
    model = mlp()
    with lca.watch(model, every=2, reduction=reduction, accumulation=pieces) as monitor:
        for _ in range(3):
            for part, labels in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                loss = loss_fn(model(part), labels)
                (loss / pieces if reduction == "mean" else loss).backward()
            model.zero_grad()
    assert [report.step for report in monitor.reports] == [0, 2]
    for report in monitor.reports:
        assert report.layers[0].n == N
    table = monitor.table()
    assert_tables_equal(big.table(), table[table["step"] == 2])


class Scale:
    """A gradient scaler's scale."""

    def __init__(self, scale):
        self.scale = scale

    def get_scale(self):
        return self.scale


def test_gradients_count_unscaled():
    x, y = batch()
    plain, scaled = mlp(), mlp()
    with lca.watch(plain) as one:
        LOSS(plain(x), y).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    with lca.watch(scaled, scaler=scaler) as other:
        scaler.scale(LOSS(scaled(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_tables_equal(one.table(), other.table())


def test_accumulation_and_scaling_go_together():
    x, y = batch()
    whole, model = mlp(), mlp()
    with lca.watch(whole) as one:
        LOSS(whole(x), y).backward()
    with lca.watch(model, scaler=Scale(64.0), accumulation=3) as other:
        for part, labels in zip(x.chunk(3), y.chunk(3), strict=True):
            (LOSS(model(part), labels) / 3 * 64).backward()
    assert_tables_equal(one.table(), other.table())


def test_a_step_whose_gradients_overflow_by_scaling_is_passed_over_for_the_next():
    model, (x, y) = mlp().float(), batch()
    scaler = Scale(1e38)
    with lca.watch(model, every=10, scaler=scaler) as monitor:
        for _ in range(3):
            (LOSS(model(x.float() * 1e3), y) * scaler.scale * 10).backward()
            scaler.scale = 1.0
    assert [report.step for report in monitor.reports] == [1]
    assert not any(layer.diverged for layer in monitor.reports[0].layers)


def test_gradients_that_stay_lost_are_a_divergence_and_no_overflow():
    model, (x, y) = mlp(), batch()
    with lca.watch(model, every=100, scaler=Scale(2.0)) as monitor:
        for _ in range(15):
            (LOSS(model(x), y) * math.nan).backward()
    assert [report.step for report in monitor.reports] == [10]
    assert monitor.findings()[0].kind == "diverged"


def test_a_real_scaler_that_overflows_is_passed_over_until_its_scale_fits():
    model = mlp().float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch()
    with lca.watch(model, every=100, scaler=scaler) as monitor:
        for _ in range(8):
            optimizer.zero_grad()
            scaler.scale(LOSS(1e3 * model(x.float()), y)).backward()
            scaler.step(optimizer)
            scaler.update()
    [report] = monitor.reports
    assert report.step > 0
    assert not any(layer.diverged for layer in report.layers)


def test_mixed_precision_is_watched():
    model, (x, y) = mlp().float(), batch()
    x = x.float()
    with lca.watch(model) as plain:
        LOSS(model(x), y).backward()
    with lca.watch(model) as mixed:
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSS(model(x), y)
        loss.backward()
    assert_tables_equal(plain.table().iloc[:, :5], mixed.table().iloc[:, :5], rtol=0.05)


class Checkpointed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())

    def forward(self, x):
        x = self.stem(x)
        if self.kind is None:
            return self.head(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.kind == "reentrant"))


@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
def test_gradient_checkpointing_is_measured_as_if_there_were_none(kind):
    tables = []
    for how in (None, kind):
        torch.manual_seed(0)
        model = Checkpointed(how).double()
        with lca.watch(model, every=1) as monitor:
            train(model, 2)
        tables.append(monitor.table().sort_values(["step", "name"]).drop(columns="layer"))
        assert hooks_on(model) == []
    assert_tables_equal(*tables)


def test_two_calls_of_the_model_for_one_loss_are_measured_together():
    model, (x, y) = mlp(), batch()
    with lca.watch(model) as monitor:
        (LOSS(model(x), y) + LOSS(model(-x), y)).backward()
    [report] = monitor.reports
    assert report.layers[0].n == 2 * N


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_calls_of_the_model_for_one_loss_are_one_backward_pass(accumulation):
    model, (x, y) = mlp(), batch()
    with lca.watch(model, every=2, accumulation=accumulation) as monitor:
        for _ in range(5 * accumulation):
            (LOSS(model(x), y) + LOSS(model(-x), y)).backward()
    assert [report.step for report in monitor.reports] == [0, 2, 4]
    assert {report.layers[0].n for report in monitor.reports} == {2 * N * accumulation}


def test_a_pass_that_nothing_comes_back_to_leaves_no_trace():
    x, y = batch()
    plain, model = mlp(), mlp()
    with lca.watch(plain) as one:
        LOSS(plain(x), y).backward()
    with lca.watch(model) as other:
        with torch.no_grad():
            model[0].weight.mul_(9)
        model(100 * x)
        with torch.no_grad():
            model[0].weight.div_(9)
        LOSS(model(x), y).backward()
    assert_tables_equal(one.table(), other.table())


def test_a_gradient_penalty_is_not_taken_for_the_loss():
    """Its first pass builds a graph; what comes back at last is the gradient of the whole loss."""

    def loss_of(model, x, y):
        x = x.clone().requires_grad_()
        output = model(x)
        [slope] = torch.autograd.grad(output.sum(), x, create_graph=True)
        return LOSS(output, y) + 0.0 * slope.square().sum()

    x, y = batch()
    plain, model = mlp(), mlp()
    with lca.watch(plain, every=2) as one:
        for _ in range(3):
            LOSS(plain(x), y).backward()
    with lca.watch(model, every=2) as other:
        for _ in range(3):
            loss_of(model, x, y).backward()
    assert_tables_equal(one.table(), other.table())


def test_what_else_is_differentiated_in_the_loop_is_not_taken():
    x, y = batch()
    plain, model = mlp(), mlp()
    with lca.watch(plain) as one:
        LOSS(plain(x), y).backward()
    with lca.watch(model) as other:
        loss = LOSS(model(x), y)
        lca.analyze(model, LOSS, (x, y))
        loss.backward(retain_graph=True)
        lca.analyze(model, LOSS, (x, y))
        loss.backward()
        torch.autograd.grad(model[0].weight.square().sum(), model[0].weight)
    assert_tables_equal(one.table(), other.table())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_model_is_measured_as_if_there_were_none(use_reentrant):
    x, y = batch()
    plain, model = mlp(), mlp()
    with lca.watch(plain, every=2) as one:
        for _ in range(3):
            LOSS(plain(x), y).backward()
    with lca.watch(model, every=2) as other:
        for _ in range(3):
            inputs = x.clone().requires_grad_()
            LOSS(checkpoint(model, inputs, use_reentrant=use_reentrant), y).backward()
    assert_tables_equal(one.table(), other.table())
    assert other.table()["step"].tolist() == one.table()["step"].tolist()


def test_a_backward_pass_that_breaks_off_is_no_step_of_the_record():
    model, (x, y) = mlp(), batch()

    def fails(_):
        raise ValueError

    with lca.watch(model, every=10) as monitor:
        handle = model[2].weight.register_hook(fails)
        with pytest.raises(ValueError):  # noqa: PT011 - the test's own
            LOSS(model(x), y).backward()
        handle.remove()
        LOSS(model(x), y).backward()
    [report] = monitor.reports
    assert report.step == 1
    assert all(layer.grad_sigma > 0 for layer in report.layers)


def test_functional_transforms_in_the_loop_are_left_alone():
    model, (x, y) = mlp(), batch()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss_of(parameters, x, y):
        logits = torch.func.functional_call(model, parameters, (x[None],))
        return LOSS(logits, y[None])

    per_sample = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))
    with lca.watch(model, every=1) as monitor:
        for _ in range(2):
            per_sample(parameters, x, y)
            LOSS(model(x), y).backward()
    assert len(monitor.reports) == 2


def test_a_parameter_among_the_outputs_keeps_no_hook():
    class WithScale(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = mlp(), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.inner(x), self.scale

    model, (x, y) = WithScale(), batch()
    with lca.watch(model, every=2) as monitor:
        for _ in range(3):
            logits, scale = model(x)
            (LOSS(logits, y) * scale.sum()).backward()
            assert not model.scale._backward_hooks
    assert [report.step for report in monitor.reports] == [0, 2]


def test_an_empty_batch_and_complex_layers_are_listed_and_no_error():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fourier = nn.Conv1d(1, 2, 1), nn.Linear(4, 4, dtype=torch.cfloat)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x):
            self.conv(x[:0, None])
            return self.head(self.fourier(x.cfloat()).abs())

    model, (x, y) = Spectral(), batch()
    with lca.watch(model, conv="patch") as monitor:
        LOSS(model(x.float()), y).backward()
    assert monitor.table()["name"].tolist() == ["head"]
    assert monitor.skipped == {"conv": "got an empty batch", "fourier": "works on complex numbers"}


def test_layers_that_the_loop_calls_by_themselves_are_not_measured():
    model, (x, y) = mlp(), batch()
    with lca.watch(model) as monitor:
        LOSS(model(x), y).backward()
        model[0](9 * x).sum().backward()
    assert monitor.reports[0].layers[0].n == N


def test_the_sequences_of_a_packed_input_are_the_samples():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, packed):
            return self.inner(nn.utils.rnn.unpack_sequence(packed)[0][:, :4])

    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4).double(), torch.randn(2, 4).double()])
    model = Packed()
    with lca.watch(model) as monitor:
        LOSS(model(packed), torch.tensor([0, 1, 2])).backward()
    assert monitor.reports[0].layers[0].n == 2


def test_a_number_of_samples_that_is_unknown_is_no_error():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self):
            return self.inner(batch()[0])

    model = Constant()
    with lca.watch(model, reduction="sum") as monitor:
        nn.functional.cross_entropy(model(), batch()[1], reduction="sum").backward()
    [report] = monitor.reports
    assert math.isnan(report.layers[0].grad_sigma)
    assert report.layers[0].lambda_max_g > 0


class Hidden:
    """An output that shows no tensor."""

    def __init__(self, logits):
        self.logits = logits


def test_an_output_of_the_models_own_kind_counts_too():
    class Wraps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return Hidden(self.inner(x))

    model, (x, y) = Wraps(), batch()
    with lca.watch(model, every=2) as monitor:
        for _ in range(3):
            LOSS(model(x).logits, y).backward()
    assert [report.step for report in monitor.reports] == [0, 2]


def test_a_frozen_layer_is_listed_with_the_reason_and_the_others_measured():
    model, (x, y) = mlp(), batch()
    model[0].requires_grad_(False)
    with lca.watch(model) as monitor:
        LOSS(model(x), y).backward()
    assert monitor.table()["name"].tolist() == ["2", "4"]
    assert "frozen" in monitor.skipped["0"]


def test_nothing_to_measure_in_a_step_is_no_error_and_the_next_is_tried():
    model, (x, y) = mlp(), batch()
    bias = nn.Parameter(torch.zeros(CLASSES, dtype=torch.float64))
    with lca.watch(model, every=5) as monitor:
        for trainable in (False, False, True):
            model.requires_grad_(trainable)
            LOSS(model(x) + bias, y).backward()
    assert len(monitor.reports) == 1


def test_a_run_that_diverges_is_recorded_as_diverged():
    model = mlp()
    with lca.watch(model, every=1) as monitor:
        train(model, 40, lr=1e300)
    table = monitor.table()
    assert table["diverged"].iloc[-1]
    assert not table["diverged"].iloc[0]
    assert table["step"].max() == 39
    assert monitor.findings()[0].kind == "diverged"


# Compilation.


def counting(calls):
    def backend(graph, _):
        def run(*args):
            calls.append(1)
            return graph.forward(*args)

        return run

    return backend


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own look
@pytest.mark.parametrize("inside", [False, True], ids=["whole model", "a part of it"])
def test_measured_steps_of_a_compiled_model_run_without_compilation_and_only_those(inside):
    calls = []
    x, y = batch()
    plain = mlp()
    with lca.watch(plain) as one:
        LOSS(plain(x), y).backward()
    model = mlp()
    if inside:
        model[2] = torch.compile(model[2], backend=counting(calls))
    else:
        model = torch.compile(model, backend=counting(calls))
    seen = []
    with lca.watch(model, every=3) as monitor:
        for _ in range(4):
            LOSS(model(x), y).backward()
            model.zero_grad()
            seen.append(len(calls))
    assert [report.step for report in monitor.reports] == [0, 3]
    assert seen == [0, 1, 2, 2]
    names = monitor.table()["name"].str.replace("._orig_mod", "")
    assert_tables_equal(one.table(), monitor.table().assign(name=names).iloc[:3])
    torch._dynamo.reset()


def test_a_model_compiled_in_place_cannot_be_watched_and_that_is_said_once():
    model, (x, y) = mlp(), batch()
    model.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"model.compile\(\).*use torch.compile\(model\)") as said:  # noqa: SIM117
        with lca.watch(model) as monitor:
            LOSS(model(x), y).backward()
    assert len(said) == 1
    assert monitor.reports == []
    torch._dynamo.reset()


# It changes nothing, and leaves nothing.


def trained(watched, conv):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(6 * 36, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with lca.watch(model, every=2, conv=conv) if watched else contextlib.nullcontext():
        for _ in range(5):
            optimizer.zero_grad()
            LOSS(model(torch.randn(8, 3, 8, 8)), torch.arange(8) % 10).backward()
            optimizer.step()
    return state_of(model)


@pytest.mark.parametrize("conv", ["patch", "pixel"])
def test_a_watched_training_is_bit_for_bit_the_same(conv):
    assert trained(True, conv) == trained(False, conv)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["in the loop", "in the forward pass"])
def test_an_error_leaves_no_hook_and_keeps_what_was_recorded(error, where):
    class Fails(nn.Sequential):
        broken = False

        def forward(self, x):
            x = super().forward(x)
            if self.broken:
                raise error
            return x

    model = Fails(*mlp())
    monitor = lca.watch(model, every=1)

    def loop():
        with monitor:
            train(model, 2)
            if where == "in the loop":
                raise error
            model.broken = True
            train(model, 1)

    with pytest.raises(error):
        loop()
    assert hooks_on(model) == []
    assert all(not p._backward_hooks for p in model.parameters())
    assert torch.overrides._get_current_function_mode_stack() == []
    assert len(monitor.reports) == 2
    model.broken = False
    train(model, 1)
    assert len(monitor.reports) == 2


def test_between_measured_steps_nothing_is_on_the_layers():
    model, (x, y) = mlp(), batch()
    with lca.watch(model, every=3):
        for step in range(3):
            LOSS(model(x), y).backward()
            on_layers = [hooks_on(layer) for layer in model]
            assert any(on_layers) == (step == 0)
            assert all(not p._backward_hooks for p in model.parameters()) == (step != 0)


def test_an_analysis_in_the_loop_is_not_watched():
    model = mlp()
    with lca.watch(model, every=1) as monitor:
        train(model, 1)
        lca.analyze(model, LOSS, batch())
        train(model, 1)
    assert [report.step for report in monitor.reports] == [0, 1]
    assert monitor.reports[0].layers[0].n == N


def test_a_copy_of_the_model_is_not_watched():
    model, (x, y) = mlp(), batch()
    with lca.watch(model, every=1) as monitor:
        twin = copy.deepcopy(model)
        LOSS(twin(x), y).backward()
        LOSS(model(x), y).backward()
    assert len(monitor.reports) == 1


def test_what_a_pass_made_is_freed_after_it_and_the_model_after_the_last():
    model, (x, y) = mlp(), batch()
    with lca.watch(model, every=2) as monitor:
        for _ in range(4):
            output = model(x)
            made = weakref.ref(output)
            LOSS(output, y).backward()
            del output
            gc.collect()
            assert made() is None
    assert len(monitor.reports) == 2
    seen = weakref.ref(model)
    del model, monitor
    gc.collect()
    assert seen() is None


def test_a_monitor_goes_on_where_it_was_left():
    model = mlp()
    monitor = lca.watch(model, every=2)
    for _ in range(2):
        with monitor:
            train(model, 2)
    assert [report.step for report in monitor.reports] == [0, 2]
    with monitor, pytest.raises(RuntimeError, match="already watching"), monitor:
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, r"every must be at least 1, got 0"),
        ({"every": 2.5}, TypeError, r"every must be a whole number \(int\), got 2.5"),
        ({"accumulation": 0}, ValueError, r"accumulation must be at least 1, got 0"),
        ({"conv": "x"}, ValueError, r"conv must be one of 'patch', 'pixel', got 'x'"),
        ({"reduction": "none"}, ValueError, r"reduction must be one of 'mean', 'sum', got 'none'"),
        ({"scaler": 1024.0}, TypeError, r"scaler must be a gradient scaler.*got float"),
        ({"layers": ["9"]}, ValueError, r"layers must be among '0', '2', '4'; got \['9'\]"),
    ],
)
def test_watch_names_the_argument_that_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        lca.watch(mlp(), **options)


def test_watching_the_wrong_thing_is_refused_or_said():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        lca.watch(lambda x: x)
    with pytest.warns(UserWarning, match="saw no forward pass of the model"), lca.watch(mlp()):
        pass


# Several processes.


class Experts(nn.Module):
    """One of two experts works on a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.experts = nn.Linear(4, 5), nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.head = nn.Linear(5, CLASSES)
        self.double()

    def forward(self, x, expert):
        return self.head(torch.relu(self.experts[expert](torch.relu(self.stem(x)))))


def in_process(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    with joined("cpu"):
        save_reports(rank, folder)
    Path(folder, f"threads{rank}").write_text("\n".join(threads()))


def threads():
    """The names of this process's threads, Python's and others', as Linux knows them."""
    return [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]


def save_reports(rank, folder):
    x, y = batch()
    model = DistributedDataParallel(mlp())
    with lca.watch(model, every=2) as monitor:
        for _ in range(3):
            LOSS(model(x[rank::2]), y[rank::2]).backward()
            model.zero_grad()
            if rank == 0:
                monitor.table()  # one process alone: the others need not take part
    monitor.save(f"{folder}/equal{rank}")

    own = slice(18) if rank == 0 else slice(18, None)
    with lca.watch(model, reduction="sum", accumulation=2, scaler=Scale(8.0)) as monitor:
        for part, labels in zip(x[own].chunk(2), y[own].chunk(2), strict=True):
            loss = nn.functional.cross_entropy(model(part), labels, reduction="sum")
            (8 * loss).backward()
    monitor.save(f"{folder}/unequal{rank}")

    experts = DistributedDataParallel(Experts(), find_unused_parameters=True)
    with lca.watch(experts) as monitor:
        LOSS(experts(x.chunk(2)[rank], rank), y.chunk(2)[rank]).backward()
    monitor.save(f"{folder}/experts{rank}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    spawn(in_process, (str(folder), free_port()), nprocs=2)
    return folder


def of_one_process(model, reduction="mean"):
    x, y = batch()
    with lca.watch(model, reduction=reduction) as monitor:
        nn.functional.cross_entropy(model(x), y, reduction=reduction).backward()
    return monitor.table()


@pytest.mark.parametrize("rank", [0, 1])
def test_data_parallel_processes_report_the_whole_batch(of_two_processes, rank):
    table = lca.load(of_two_processes / f"equal{rank}").table()
    assert table["step"].tolist() == [0, 0, 0, 2, 2, 2]
    for step in (0, 2):
        assert_tables_equal(of_one_process(mlp()), table[table["step"] == step])


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_different_batches_accumulating_scaled_sums_do_too(of_two_processes, rank):
    table = lca.load(of_two_processes / f"unequal{rank}").table()
    assert_tables_equal(of_one_process(mlp(), "sum"), table)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_layer_of_one_process_is_in_the_report_of_all(of_two_processes, rank):
    table = lca.load(of_two_processes / f"experts{rank}").table().sort_values("name")
    model = Experts()
    with lca.watch(model, accumulation=2) as monitor:
        for k, (x, y) in enumerate(zip(*(part.chunk(2) for part in batch()), strict=True)):
            (LOSS(model(x, k), y) / 2).backward()
    alone = monitor.table().sort_values("name")
    assert_tables_equal(alone.drop(columns="layer"), table.drop(columns="layer"))
    assert sorted(table["layer"]) == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are named on Linux only")
@pytest.mark.parametrize("rank", [0, 1])
def test_no_thread_of_the_processes_group_outlives_it(of_two_processes, rank):
    names = (of_two_processes / f"threads{rank}").read_text().split()
    assert "python" in names
    assert not [name for name in names if "gloo" in name or "tcpstore" in name]


# Results: findings, charts and files.


def test_results_have_charts_and_findings():
    model = mlp()
    analysis = lca.analyze(model, LOSS, batch())
    with lca.watch(model, every=1) as monitor:
        train(model, 3)
    for result in (analysis, monitor):
        assert result.chart().png().startswith(b"\x89PNG")
        assert all(finding.suggestion for finding in result.findings())


def saved(result, tmp_path):
    result.save(tmp_path / "saved")
    return lca.load(tmp_path / "saved")


def test_a_saved_analysis_comes_back_whole(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    data = torch.randn(6, 4, 4, 4), torch.arange(6) % CLASSES
    analysis = lca.analyze(model, LOSS, data, exact=True, fisher="exact")
    again = saved(analysis, tmp_path)
    pd.testing.assert_frame_equal(again.table(), analysis.table(), check_exact=True)
    assert (again.skipped, again.loss) == (analysis.skipped, analysis.loss)
    assert again.network.kappa(0.01) == analysis.network.kappa(0.01)
    for a, b in zip(again.layers, analysis.layers, strict=True):
        assert torch.equal(a.kronecker.eigenvalues, b.kronecker.eigenvalues)
        assert torch.equal(a.input_centred.eigenvalues, b.input_centred.eigenvalues)
        assert a.grad_centred is None
        assert (a.block.n, a.block.dimension) == (b.block.n, b.block.dimension)
        assert torch.equal(a.block.eigenvalues, b.block.eigenvalues)
    assert [str(f) for f in again.findings()] == [str(f) for f in analysis.findings()]


def test_a_saved_history_comes_back_whole_even_if_it_diverged(tmp_path):
    model = mlp()
    with lca.watch(model, every=10) as monitor:
        train(model, 21, lr=1e300)
    again = saved(monitor, tmp_path)
    pd.testing.assert_frame_equal(again.table(), monitor.table(), check_exact=True)
    assert type(again.reports[0].layers[0].rank_x) is int
    assert type(again.reports[0].layers[0].diverged) is bool
    assert again.skipped == monitor.skipped


def test_an_empty_history_is_one_too(tmp_path):
    with pytest.warns(UserWarning, match="saw no forward"), lca.watch(mlp()) as monitor:
        pass
    assert saved(monitor, tmp_path).reports == []
    assert len(monitor.table()) == 0
    assert monitor.findings() == []


def test_a_file_that_is_no_saved_analysis_is_refused(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        lca.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{path} is no saved analysis, or is damaged"):
        lca.load(path)
    np.savez(path.with_suffix(".npz"), header=np.array({"format": "lca_widgets"}, dtype=object))
    with pytest.raises(ValueError, match="is no saved analysis"):  # a pickle, which is not opened
        lca.load(path.with_suffix(".npz"))
    lca.analyze(mlp(), LOSS, batch()).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is no saved analysis, or is damaged"):
        lca.load(path)


def test_a_file_of_a_newer_version_says_what_to_do(tmp_path):
    with (tmp_path / "new").open("wb") as file:
        np.savez(file, header=np.array('{"format": "lca_widgets", "version": 2}'))
    with pytest.raises(ValueError, match=r"format version 2.*reads up to 1: update"):
        lca.load(tmp_path / "new")


def test_saving_replaces_a_file_only_once_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    analysis = lca.analyze(mlp(), LOSS, batch())
    analysis.save(path)
    before = path.read_bytes()

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fails)
    with pytest.raises(OSError, match="disk full"):
        analysis.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="path must be in an existing folder"):
        analysis.save(tmp_path / "no" / "file")


def test_tables_are_written_for_other_programs(tmp_path):
    pytest.importorskip("pyarrow")
    analysis = lca.analyze(mlp(), LOSS, batch())
    analysis.to_csv(tmp_path / "table.csv")
    analysis.to_parquet(tmp_path / "table.parquet")
    np.testing.assert_allclose(
        numbers(pd.read_csv(tmp_path / "table.csv", dtype={"name": str})), numbers(analysis.table())
    )
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), analysis.table())


def test_numbers_are_not_a_number_where_they_are_unknown():
    [layer] = lca.analyze(nn.Linear(4, 3).double(), LOSS, batch()).layers
    assert math.isnan(layer.dying)
    assert math.isnan(layer.full)
