"""Residual networks: what they compute, how they start, and what their options change."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import lca_widgets as lca
from lca_widgets.data import Split, digit_images
from lca_widgets.models import (
    FINAL_NORMS,
    Divide,
    ResidualNetwork,
    SeededDropout,
    residual_mlp,
    resnet,
)
from lca_widgets.training import Checkpoint, TrainingRun, TrainingSettings

SMALL = {"channels": 1, "width_factor": 0.25, "dtype": torch.float64}


def images(n, size=8, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64)


def layers_of(model):
    """The layers with weights, without the 1×1 convolutions of shortcuts."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3))
    ]


def batch_norm(x):
    """BN with γ = 1, β = 0, ε = 1e-5, written out."""
    dims = [0, *range(2, x.dim())]
    mean = x.mean(dim=dims, keepdim=True)
    return (x - mean) / (x.var(dim=dims, correction=0, keepdim=True) + 1e-5).sqrt()


def by_hand(model, x, *, preactivation, shortcut, own_norm=True):
    """The network's logits from its weights alone, block by block."""
    weights = [layer.weight for layer in layers_of(model)]
    projections = iter([m for m in model.modules() if getattr(m, "kernel_size", 0) == (1, 1)])
    stem, *inner, last = weights

    def conv(x, weight, stride=1):
        return functional.conv2d(x, weight, stride=stride, padding=1)

    def skip(x, d_out, stride):
        if x.shape[1] == d_out:
            return x
        if shortcut == "B":
            out = functional.conv2d(x, next(projections).weight, stride=stride)
            return out if preactivation else batch_norm(out)
        x = x[:, :, ::stride, ::stride]
        return torch.cat([x, torch.zeros_like(x[:, : d_out - x.shape[1]])], dim=1)

    x = conv(x, stem)
    if not preactivation:
        x = batch_norm(x).relu()
    blocks = list(zip(inner[::2], inner[1::2], strict=True))
    for number, (first, second) in enumerate(blocks):
        begins = number % (len(blocks) // 3) == 0
        stride = 2 if begins and number else 1
        if preactivation:
            h = batch_norm(x).relu()
            x = h if begins else x
            branch = conv(batch_norm(conv(h, first, stride)).relu(), second)
            x = skip(x, len(first), stride) + branch
        else:
            branch = batch_norm(conv(batch_norm(conv(x, first, stride)).relu(), second))
            x = (skip(x, len(first), stride) + branch).relu()
    if preactivation:
        x = (batch_norm(x) if own_norm else x).relu()
    return x.mean(dim=(2, 3)) @ last.T


@pytest.mark.parametrize("depth", [8, 20, 56, 110])
@pytest.mark.parametrize("preactivation", [False, True])
def test_a_resnet_has_6n_plus_2_layers(depth, preactivation):
    for shortcut in ("A", "B"):
        model = resnet(depth, preactivation=preactivation, shortcut=shortcut, width_factor=0.1)
        assert len(layers_of(model)) == depth
        assert len(model.blocks) == (depth - 2) // 2


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(
    ("preactivation", "own_norm"), [(False, True), (True, True), (True, False)]
)
@pytest.mark.parametrize("size", [8, 32])
def test_the_logits_are_those_of_the_formulas(shortcut, preactivation, own_norm, size):
    model = resnet(
        14, preactivation=preactivation, own_final_norm=own_norm, shortcut=shortcut, seed=1, **SMALL
    )
    x = images(5, size)
    expected = by_hand(model, x, preactivation=preactivation, shortcut=shortcut, own_norm=own_norm)
    assert torch.allclose(model(x), expected, rtol=1e-10, atol=1e-10)
    assert expected.abs().max() > 0.1


def test_a_residual_perceptron_is_the_same_with_linear_layers():
    model = residual_mlp(6, 3, blocks=2, width=5, dtype=torch.float64)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stem, a, b, c, d, last = (layer.weight for layer in layers_of(model))
    h = batch_norm(x @ stem.T).relu()
    for first, second in ((a, b), (c, d)):
        h = (h + batch_norm(batch_norm(h @ first.T).relu() @ second.T)).relu()
    assert torch.allclose(model(x), h @ last.T, rtol=1e-10, atol=1e-10)


def test_convolutions_start_by_their_outputs_and_the_classifier_by_its_inputs():
    model = resnet(20)
    for layer in layers_of(model)[:-1]:
        assert layer.bias is None
        std = math.sqrt(2 / (9 * layer.out_channels))
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    assert model.classifier.bias.abs().max() == 0
    largest = model.classifier.weight.abs().max().item()
    assert 0.95 / 8 < largest <= 1 / 8
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


@pytest.mark.parametrize(
    ("final_norm", "kinds"),
    [
        ("none", [nn.AdaptiveAvgPool2d, nn.Flatten]),
        ("batch", [nn.AdaptiveAvgPool2d, nn.Flatten, nn.BatchNorm1d]),
        ("batch-before-pooling", [nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Flatten]),
        ("scale", [nn.AdaptiveAvgPool2d, nn.Flatten, Divide]),
    ],
)
def test_a_final_norm_stands_where_its_name_says(final_norm, kinds):
    divisor = 0.3 if final_norm == "scale" else 1.0
    model = resnet(8, final_norm=final_norm, divisor=divisor, dropout=0.5, **SMALL)
    assert [type(module) for module in model.head] == [*kinds, SeededDropout]
    if final_norm == "scale":
        plain = resnet(8, dropout=0.5, **SMALL)
        expected = plain.features(images(4)) / 0.3
        assert torch.allclose(model.features(images(4)), expected, rtol=1e-14, atol=0)


def test_preactivation_keeps_its_last_relu_without_its_final_norm():
    with_norm, without = (
        resnet(8, preactivation=True, own_final_norm=own, **SMALL) for own in (True, False)
    )
    assert [type(m) for m in with_norm.head][:2] == [nn.BatchNorm2d, nn.ReLU]
    assert isinstance(next(iter(without.head)), nn.ReLU)
    assert (without.features(images(4)) >= 0).all()


def test_a_single_batch_norm_is_the_only_one():
    model = resnet(20, block_norm=False, final_norm="batch", **SMALL)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms == [model.head.final_norm]


@pytest.mark.parametrize(
    "change", [{"final_norm": name} for name in FINAL_NORMS] + [{"dropout": 0.3}]
)
def test_what_stands_before_the_classifier_changes_no_weight(change):
    plain, changed = resnet(14, seed=3, **SMALL), resnet(14, seed=3, **(SMALL | change))
    pairs = zip(layers_of(plain), layers_of(changed), strict=True)
    assert all(torch.equal(a.weight, b.weight) for a, b in pairs)
    other = resnet(14, seed=4, **SMALL)
    assert not torch.equal(layers_of(plain)[0].weight, layers_of(other)[0].weight)


def test_weights_in_float32_are_those_in_float64_rounded():
    wide, narrow = resnet(8, dtype=torch.float64), resnet(8)
    for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(a.float(), b)


def test_building_and_running_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    model = resnet(8, dropout=0.5, **SMALL)
    model(images(4)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def counting(sizes):
    """A hook that notes the sizes of the tensors that it is handed."""

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    return keep


@pytest.mark.parametrize("preactivation", [False, True])
def test_checkpointing_changes_nothing_but_what_is_kept(preactivation):
    chosen = {"preactivation": preactivation, "final_norm": "batch", "dropout": 0.3, **SMALL}
    kept: dict[bool, int] = {}
    models = {}
    for checkpointing in (False, True):
        model = models[checkpointing] = resnet(14, checkpointing=checkpointing, **chosen)
        sizes: list[int] = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            with torch.autograd.graph.saved_tensors_hooks(counting(sizes), counting([])):
                loss = model(images(6, seed=step)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        kept[checkpointing] = sum(sizes)
    plain, checkpointed = (models[flag].state_dict() for flag in (False, True))
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert plain["head.final_norm.num_batches_tracked"] == 3
    grads = [[p.grad for p in model.parameters()] for model in models.values()]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert kept[True] < kept[False] / 3
    for model in models.values():
        model.eval()
    with torch.no_grad():
        assert torch.equal(models[False](images(4)), models[True](images(4)))


def test_a_checkpointed_network_is_measured_as_the_plain_one():
    batch = images(16), torch.arange(16) % 10
    tables = []
    for checkpointing in (False, True):
        model = resnet(8, checkpointing=checkpointing, **SMALL)
        before = copy.deepcopy(model.state_dict())
        tables.append(lca.analyze(model, functional.cross_entropy, batch).table())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    columns = ["name", "lambda_max_x", "lambda_max_g", "grad_sigma"]
    for a, b in zip(tables[0][columns].to_numpy(), tables[1][columns].to_numpy(), strict=True):
        assert a[0] == b[0]
        assert a[1:].tolist() == pytest.approx(b[1:].tolist(), rel=1e-9)


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_a_checkpointed_network_goes_backwards_as_often_as_it_has_labels(fisher):
    batch = images(16), torch.arange(16) % 10
    models = [resnet(8, checkpointing=flag, **SMALL) for flag in (False, True)]
    tables = [
        lca.analyze(model, functional.cross_entropy, batch, fisher=fisher).table()
        for model in models
    ]
    assert tables[0].equals(tables[1])


def test_a_checkpointed_graph_that_is_kept_goes_backwards_twice_and_has_second_derivatives():
    found = []
    for checkpointing in (False, True):
        model = resnet(8, checkpointing=checkpointing, **SMALL)
        loss = model(images(6)).square().sum()
        for _ in range(2):
            loss.backward(retain_graph=True)
        first = torch.autograd.grad(loss, model.stem[0].weight, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), model.stem[0].weight)[0]
        norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert all(norm.num_batches_tracked == 1 and norm.momentum == 0.1 for norm in norms)
        found.append([*(p.grad for p in model.parameters()), second, *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_checkpointed_network_is_watched_and_differentiated_in_eval_mode_as_the_plain_one():
    x, y = images(16), torch.arange(16) % 10
    tables, grads = [], []
    for checkpointing in (False, True):
        model = resnet(8, checkpointing=checkpointing, **SMALL)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with lca.watch(model, every=2) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        tables.append(monitor.table())
        before = copy.deepcopy(model.state_dict())
        model.eval().zero_grad()
        model(x).square().sum().backward()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        grads.append([parameter.grad for parameter in model.parameters()])
    assert len(tables[0]) == 2 * 8
    assert tables[0].equals(tables[1])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_1202_layers_run_backwards_and_can_be_copied_and_pickled():
    model = resnet(1202, channels=1, width_factor=0.1)
    assert len(layers_of(model)) == 1202
    model(images(2).float()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    names = model.state_dict().keys()
    assert copied.state_dict().keys() == names
    assert len(list(model.modules())) < 12 * 1202


def test_dropout_keeps_the_mean_and_zeroes_its_share():
    dropout = SeededDropout(0.3, seed=1)
    out = dropout(torch.ones(100_000))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert out.max().item() == pytest.approx(1 / 0.7)
    x = torch.randn(10)
    assert dropout.eval()(x) is x
    assert dropout.passes == 1


def test_a_mask_depends_on_the_seed_and_the_pass():
    x = torch.ones(1000)
    a, b, c = SeededDropout(0.5, 1), SeededDropout(0.5, 1), SeededDropout(0.5, 2)
    first, second = a(x), a(x)
    assert torch.equal(first, b(x))
    assert not torch.equal(first, second)
    assert not torch.equal(first, c(x))
    resumed = SeededDropout(0.5, 1)
    resumed.load_state_dict(b.state_dict())
    assert torch.equal(resumed(x), second)


def test_the_networks_seed_draws_the_masks_too():
    zeros = []
    for seed in (1, 1, 2):
        dropout = resnet(8, dropout=0.5, seed=seed, **SMALL).head.dropout
        zeros.append(dropout(torch.ones(100)) == 0)
    assert torch.equal(zeros[0], zeros[1])
    assert not torch.equal(zeros[0], zeros[2])


def test_a_training_with_dropout_resumes_exactly(tmp_path):
    train = digit_images().train.first(64)
    data = Split(train.x.double(), train.y)
    settings = TrainingSettings(6, 0.5, momentum=0.9, batch_size=16)

    def fresh():
        return residual_mlp(64, 10, blocks=2, width=8, dropout=0.3, dtype=torch.float64)

    whole = [record.loss for record in TrainingRun(fresh(), data, settings)]
    run = TrainingRun(fresh(), data, settings)
    for record in run:
        if record.step == 3:
            run.checkpoint().save(tmp_path / "run.pt")
            break
    checkpoint = Checkpoint.load(tmp_path / "run.pt")
    resumed = TrainingRun(fresh(), data, settings, checkpoint=checkpoint)
    assert [record.loss for record in resumed] == whole[3:]


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_surgery_finds_the_classifier(kind):
    model = resnet(8, **SMALL)
    changed = lca.add_final_norm(model, kind)
    assert isinstance(changed, ResidualNetwork)
    if kind == "batch":
        built = resnet(8, final_norm="batch", **SMALL)
        assert torch.allclose(changed(images(5)), built(images(5)), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "arguments", "words"),
    [
        (resnet, {"depth": 10}, r"depth must be 6n\+2 \(8, 14, 20, 26, …\), got 10"),
        (resnet, {"depth": 2}, "depth must be at least 8, got 2"),
        (resnet, {"classes": 1}, "classes must be at least 2, got 1"),
        (resnet, {"channels": 0}, "channels must be at least 1, got 0"),
        (resnet, {"width_factor": 0}, "width_factor must be above 0, got 0"),
        (resnet, {"shortcut": "C"}, "shortcut must be one of 'A', 'B', got 'C'"),
        (resnet, {"final_norm": "layer"}, "final_norm must be one of 'none', .*, got 'layer'"),
        (resnet, {"divisor": 2.0}, "divisor belongs to final_norm='scale', got 2.0 with 'none'"),
        (resnet, {"final_norm": "scale", "divisor": 0}, "divisor must be above 0, got 0"),
        (resnet, {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        (resnet, {"seed": -1}, "seed must be between 0 and 2147483647, got -1"),
        (residual_mlp, {"blocks": 0}, "blocks must be at least 1, got 0"),
        (residual_mlp, {"width": 0}, "width must be at least 1, got 0"),
        (residual_mlp, {"final_norm": "batch-before-pooling"}, "final_norm must be one of"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(build, arguments, words):
    given = arguments if build is resnet else {"features": 4, "classes": 3} | arguments
    with pytest.raises(ValueError, match=words):
        build(**given)


def test_dropout_can_be_compiled_in_one_piece():
    plain = residual_mlp(6, 3, blocks=1, width=5, dropout=0.5, dtype=torch.float64)
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(2):
        assert torch.allclose(compiled(x), plain(x), rtol=1e-12)
    assert other.state_dict()["head.dropout.passes"] == 2
