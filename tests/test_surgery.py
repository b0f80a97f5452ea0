"""What surgery changes, what it keeps bit for bit, and what it refuses.

The classifiers of models that others wrote are known by name (`peer_models`); that the measured
constant and the normalisations do what they say is seen in the classifier's Σ_x, which another
module measures. Small models stand for one operation between classifier and output each.
"""

import copy
import io
import logging
import math
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lca_widgets.curvature import kronecker_factors, layer_spectra, supported_layers
from lca_widgets.curvature.passes import run
from lca_widgets.surgery import add_final_norm, changes, freeze, rescale_
from tests import peer_models
from tests.benchmarks.networks import resnet
from tests.peer_models import PEER_MODELS

LOSS = nn.CrossEntropyLoss()
PEERS = {peer.name: peer for peer in PEER_MODELS}
WAYS = pytest.mark.parametrize("way", ["traced", "run"])
Pair = namedtuple("Pair", ["logits", "features"])


def state(model):
    """All that must not change, by value or by identity."""
    tensors = dict(model.state_dict(keep_vars=True))
    return (
        {name: (id(tensor), tensor.detach().clone()) for name, tensor in tensors.items()},
        [(id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
         for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        torch.random.get_rng_state(),
    )  # fmt: skip


def assert_same(before, after):
    """Compare nested containers bit for bit."""
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict | list | tuple):
        assert len(before) == len(after)
        pairs = [before.values(), after.values()] if isinstance(before, dict) else [before, after]
        for part, other in zip(*pairs, strict=True):
            assert_same(part, other)
    else:
        assert before == after


def input_lambda_max(model, inputs, target, name, loss_fn=LOSS):
    factors = kronecker_factors(
        model, loss_fn, (inputs, target), layers=[name], reduction="mean", conv="pixel"
    )
    return layer_spectra(factors.layers)[0].input.lambda_max


def seen_by(model, name, inputs):
    """What the layer multiplies its weight with."""
    seen = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, __: seen.append(args[0].detach()))
    run(model, inputs)
    handle.remove()
    [x] = seen
    return x


def inputs_for(way, inputs):
    return inputs if way == "run" else None


def perceptron(d_in=6, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d_in, 8), nn.ReLU(), nn.Linear(8, classes))


# The classifier is found, and nothing but the copy is changed


@WAYS
@pytest.mark.parametrize("peer", PEER_MODELS, ids=str)
def test_it_finds_the_classifier_of_models_that_others_wrote(peer, way):
    model, inputs, _, _ = peer.build()
    if way == "traced" and not peer.symbolic:
        with pytest.raises(ValueError, match=r"torch\.fx cannot trace .*pass a batch as inputs="):
            add_final_norm(model, "batch")
        return
    changed = add_final_norm(model, "batch", inputs_for(way, inputs))
    normalised = [name for name, m in changed.named_modules() if hasattr(m, "input_norm")]
    assert normalised == [peer.classifier]
    [change] = changes(changed)
    assert f"before '{peer.classifier}', " in change
    assert ("comes straight from" in change) == (peer.norm is not None)
    if peer.norm:
        assert change.endswith(f"({peer.norm})")


@pytest.mark.parametrize("kind", ["batch", "layer", "scale"])
@pytest.mark.parametrize("peer", PEER_MODELS, ids=str)
def test_the_model_itself_stays_as_it_was_and_the_copy_trains(peer, kind):
    model, inputs, target, loss_fn = peer.build()
    loss_fn(run(model, inputs), target).backward()
    model.get_submodule(peer.classifier).eval()
    before = state(model)
    if kind == "layer" and peer.norm == "LayerNorm":
        with pytest.raises(ValueError, match=r"already comes straight from .*LayerNorm"):
            add_final_norm(model, kind, inputs)
        assert_same(before, state(model))
        return
    changed = add_final_norm(model, kind, inputs)
    assert_same(before, state(model))
    assert not changed.get_submodule(f"{peer.classifier}.input_norm").training

    changed.train()
    optimizer = torch.optim.SGD(changed.parameters(), lr=1e-3)
    weights = [p.detach().clone() for p in changed.get_submodule(peer.classifier).parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_fn(run(changed, inputs), target)
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    moved = changed.get_submodule(peer.classifier).parameters()  # the normalisation's among them
    assert not any(torch.equal(p, old) for p, old in zip(moved, weights, strict=True))


def test_tracing_computes_nothing_that_stays():
    # A batch normalisation that torch.fx looks into counts its batches for real.
    class Counting(nn.BatchNorm1d):
        def forward(self, x):
            self.num_batches_tracked.add_(1)
            return functional.batch_norm(x, None, None, self.weight, self.bias, training=True)

    model = nn.Sequential(nn.Linear(4, 5), Counting(5), nn.ReLU(), nn.Linear(5, 2))
    changed = add_final_norm(model, "batch")
    assert model[1].num_batches_tracked == changed[1].num_batches_tracked == 0


def test_a_tie_stays_a_tie():
    model, inputs, _, _ = PEERS["transformers GPT2"].build()
    changed = add_final_norm(model, "batch", inputs)
    assert changed.lm_head.weight is changed.transformer.wte.weight
    assert changed.lm_head.weight is not model.lm_head.weight
    changed.tie_weights()  # transformers' own code still finds its way
    assert changed.get_output_embeddings().weight is changed.transformer.wte.weight


def test_frozen_layers_and_a_caller_without_gradients_do_not_matter():
    model, x = perceptron().requires_grad_(False), torch.randn(8, 6)
    with torch.no_grad():
        changed = add_final_norm(model, "scale", x)
    assert "before '2'" in changes(changed)[0]
    assert not any(p.requires_grad for p in changed.parameters())


# From the classifier to the output


class After(nn.Module):
    """A body and a head, ``classifier``, and an operation behind it."""

    def __init__(self, operation, head=None):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 8), head or nn.Linear(8, 3)
        self.operation = operation

    def forward(self, x):
        h = torch.relu(self.body(x))
        return self.operation(self.classifier(h), h)


class Squeezed(nn.Module):
    """A 1×1 convolution as the classifier, then a pooling."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(8, 3, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x):
        return torch.flatten(self.classifier(torch.relu(self.body(x))), 1)


OPERATIONS = {
    "as it is": lambda out, _: out,
    "reshaped": lambda out, _: out.view(out.size(0), 3, 1).squeeze(-1),
    "sliced": lambda out, _: out[:, :2],
    "transposed": lambda out, _: out.unsqueeze(1).transpose(1, 2),
    "cast": lambda out, _: out.double(),
    "dropped out": lambda out, _: functional.dropout(out, 0.5),
    "divided by a temperature": lambda out, _: 2.0 * out / 0.5,
    "through a softmax": lambda out, _: functional.log_softmax(out, dim=1),
    "capped": lambda out, _: 30 * torch.tanh(out / 30),
    "averaged": lambda out, _: out.mean(1),
    "in a dictionary": lambda out, _: {"y": out},
    "among other tensors": lambda out, h: (out, h.exp()),
    "logits beside a layer's output": lambda out, h: Pair(out, h),
    "a dictionary's logits": lambda out, h: {"features": h, "logits": out},
}


@WAYS
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_it_is_found_behind_operations_that_keep_the_values(operation, way):
    changed = add_final_norm(After(operation), "batch", inputs_for(way, torch.randn(8, 6)))
    assert "before 'classifier', " in changes(changed)[0]


@WAYS
def test_a_class_derived_from_a_layer_is_one(way):
    class Own(nn.Linear):
        def forward(self, x):
            return functional.linear(x, self.weight, self.bias)

    model = After(lambda out, _: out, Own(8, 3))
    changed = add_final_norm(model, "batch", inputs_for(way, torch.randn(8, 6)))
    assert "before 'classifier', Own(8 → 3), " in changes(changed)[0]


@WAYS
def test_a_convolution_before_a_pooling_is_found(way):
    x = torch.randn(8, 3, 6, 6)
    changed = add_final_norm(Squeezed(), "batch", inputs_for(way, x))
    assert "put BatchNorm2d(8) before 'classifier.1', Conv2d(8 → 3), " in changes(changed)[0]
    assert changed(x).isfinite().all()


REFUSED = {
    "a weight used by hand": (
        lambda: After(lambda _, h: h @ torch.ones(8, 2)),
        r"no linear or convolution layer gives the model's output, which comes from (matmul|Mm)",
    ),
    "two heads": (
        lambda: Heads(),
        r"returns the outputs of several layers, 'left', 'right': name the one .*classifier=",
    ),
    "a sum": (
        lambda: After(lambda out, h: out + h[:, :3]),
        r"which comes from [Aa]dd",
    ),
    "a learned factor": (lambda: Factor(), r"which comes from [Mm]ul"),
    "several calls": (lambda: Repeated(), r"'layer' is called 2 times in a pass"),
    "no tensor": (lambda: After(lambda *_: None), "which holds no tensor with a gradient"),
}


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x):
        return self.left(x), self.right(x)


class Factor(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.factor = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.last(x) * self.factor


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


@WAYS
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_one_classifier_is_refused_by_what_was_found(make, message, way):
    model, inputs = make(), inputs_for(way, torch.randn(8, 6))
    before = state(model)
    with pytest.raises(ValueError, match=message):
        add_final_norm(model, "batch", inputs)
    assert_same(before, state(model))


def test_a_layer_can_be_named():
    x = torch.randn(8, 6)
    for inputs in (None, x):
        changed = add_final_norm(Heads(), "batch", inputs, classifier="right")
        [change] = changes(changed)
        assert change == (
            "put BatchNorm1d(6) before 'right', Linear(6 → 3), named as the classifier"
        )
    with pytest.raises(ValueError, match="classifier must be among 'left', 'right'; got 'middle'"):
        add_final_norm(Heads(), "batch", classifier="middle")


@WAYS
@pytest.mark.parametrize(
    ("before", "kind", "refused"),
    [
        (nn.LayerNorm(8), "layer", True),
        (nn.Sequential(nn.LayerNorm(8), nn.Dropout()), "layer", True),
        (nn.LayerNorm(8), "batch", False),
        (nn.BatchNorm1d(8), "batch", True),
        (nn.RMSNorm(8), "layer", False),
        (nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()), "batch", False),
    ],
    ids=str,
)
def test_a_second_normalisation_of_the_same_kind_is_refused(before, kind, refused, way):
    model = nn.Sequential(nn.Linear(6, 8), before, nn.Linear(8, 3))
    inputs = inputs_for(way, torch.randn(8, 6))
    if not refused:
        assert len(changes(add_final_norm(model, kind, inputs))) == 1
        return
    with pytest.raises(ValueError, match="input of the classifier '2' already comes straight from"):
        add_final_norm(model, kind, inputs)
    # Behind it, where the caller insists.
    assert len(changes(add_final_norm(model, kind, inputs, classifier="2"))) == 1


# What the normalisation does


def test_it_brings_a_deep_network_s_classifier_input_down():
    torch.manual_seed(0)
    model, x, y = resnet(56), 2 * torch.randn(64, 3, 16, 16), torch.arange(64) % 10
    [name] = [
        name
        for name in supported_layers(model)
        if isinstance(model[int(name[:2].rstrip("."))], nn.Linear)
    ]
    largest = {
        kind: input_lambda_max(add_final_norm(model, kind, x), x, y, name)
        for kind in ("batch", "layer", "scale")
    }
    before = input_lambda_max(model, x, y, name)
    assert before > 8 * largest["batch"]
    assert largest["scale"] == pytest.approx(largest["batch"], rel=1e-5)
    # A layer normalisation gives every vector the squared length 64, most of it in the mean's
    # direction.
    assert largest["layer"] < before


def test_the_constant_is_measured_on_every_position():
    model, inputs, target, loss_fn = PEERS["transformers GPT2"].build()
    model.eval()  # dropout would draw anew for each measurement
    largest = []
    for kind in ("batch", "scale"):
        changed = add_final_norm(model, kind, inputs)
        changed.lm_head.input_norm.train()
        largest.append(input_lambda_max(changed, inputs, target, "lm_head", loss_fn))
    assert largest[1] == pytest.approx(largest[0], rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (8, 5, 6), (8, 3, 2, 6)], ids=str)
def test_features_are_normalised_over_all_positions(shape):
    model, x = perceptron(), torch.randn(shape)
    plain = seen_by(model, "2", x)
    batch = seen_by(add_final_norm(model, "batch"), "2", x)
    rows = plain.flatten(0, -2)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(batch.flatten(0, -2), expected)
    layer = seen_by(add_final_norm(model, "layer"), "2", x)
    torch.testing.assert_close(layer, functional.layer_norm(plain, (8,)))
    scale = seen_by(add_final_norm(model, "scale", divisor=4.0), "2", x)
    assert torch.equal(scale, plain / 4)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [(nn.Conv1d, (8, 4, 7)), (nn.Conv2d, (8, 4, 3, 5)), (nn.ConvTranspose3d, (8, 4, 2, 3, 2))],
)
def test_a_convolution_has_its_channels_normalised(conv, shape):
    torch.manual_seed(0)
    model, x = conv(4, 3, 1), 3 + torch.randn(shape)
    others = [0, *range(2, x.dim())]
    batch = seen_by(add_final_norm(model, "batch"), "", x)
    torch.testing.assert_close(batch.mean(others), torch.zeros(4))
    torch.testing.assert_close(batch.var(others, unbiased=False), torch.ones(4), rtol=0, atol=1e-4)
    layer = seen_by(add_final_norm(model, "layer"), "", x)
    torch.testing.assert_close(layer, functional.layer_norm(x.movedim(1, -1), (4,)).movedim(-1, 1))
    target = torch.zeros(model(x).shape)
    largest = [
        input_lambda_max(add_final_norm(model, kind, x), x, target, "", nn.MSELoss())
        for kind in ("batch", "scale")
    ]
    assert largest[1] == pytest.approx(largest[0], rel=1e-5)


class Transposed(nn.Module):
    """A perceptron whose last layer is transformers' Conv1D, called by keyword if asked."""

    def __init__(self, like, keyword=False):
        super().__init__()
        self.body, last, self.keyword = like[:-1], like[-1], keyword
        conv1d = peer_models.peer("transformers.pytorch_utils").Conv1D
        self.last = conv1d(last.out_features, last.in_features)
        self.last.load_state_dict({"weight": last.weight.T.clone(), "bias": last.bias})

    def forward(self, x):
        h = self.body(x)
        return self.last(x=h) if self.keyword else self.last(h)


@WAYS
@pytest.mark.parametrize("keyword", [False, True], ids=["", "keyword"])
@pytest.mark.parametrize("kind", ["batch", "layer", "scale"])
def test_a_linear_layer_stored_transposed_is_a_linear_layer(kind, keyword, way):
    linear, x = perceptron(), torch.randn(8, 5, 6)
    model = Transposed(linear, keyword)
    options = {"inputs": inputs_for(way, x), "divisor": 3.0 if kind == "scale" else None}
    changed, expected = (add_final_norm(m, kind, **options) for m in (model, linear))
    assert "before 'last', Conv1D(8 → 3), " in changes(changed)[0]
    torch.testing.assert_close(changed(x), expected(x))


def test_any_layer_of_gpt2_can_be_named():
    model, inputs, _, _ = PEERS["transformers GPT2"].build()
    name = "transformer.h.0.mlp.c_fc"
    [change] = changes(add_final_norm(model, "scale", inputs, classifier=name))
    assert f"before '{name}', Conv1D(16 → 64), named as the classifier; its input" in change
    assert freeze(model, [name]) == [name]


def test_a_fresh_batch_normalisation_in_eval_mode_changes_next_to_nothing():
    model, x = perceptron().eval(), torch.randn(8, 6)
    changed = add_final_norm(model, "batch", x)
    bias = model[2].bias
    torch.testing.assert_close(changed(x) - bias, (model(x) - bias) / math.sqrt(1 + 1e-5))


def test_it_stands_on_the_classifier_s_device_and_in_its_type():
    model = perceptron().double()
    changed = add_final_norm(model, "scale", torch.randn(8, 6, dtype=torch.float64))
    assert changed[2].input_norm.divisor.dtype == torch.float64
    norm = add_final_norm(nn.Linear(4, 2, device="meta"), "batch").input_norm
    assert norm.weight.is_meta
    assert norm.running_var.is_meta


def test_a_layer_called_by_keyword_is_normalised_too():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(input=x)

    model, x = ByKeyword(), torch.randn(8, 6)
    for inputs in (None, x):
        changed = add_final_norm(model, "scale", inputs, divisor=2.0)
        torch.testing.assert_close(changed(x), model.layer(x / 2))


# What is told, kept and shared


def test_it_says_what_it_did(caplog):
    model, x = perceptron(), torch.randn(16, 6)
    with caplog.at_level(logging.INFO, logger="lca_widgets.surgery"):
        changed = add_final_norm(model, "scale", x)
    [change] = changes(changed)
    assert [record.getMessage() for record in caplog.records] == [change]
    c = changed[2].input_norm.divisor.item()
    assert change.startswith(f"put a division by {c:.6g} (λ_max of its input's second moment over")
    assert change.endswith(
        "found by a run of the model as the layer whose output the model returns"
    )
    assert repr(changed[2].input_norm) == f"Divide({c:.6g})"
    assert changes(model) == []


@pytest.mark.parametrize("kind", ["batch", "layer", "scale"])
def test_the_change_outlives_copies_pickles_and_state_dictionaries(kind):
    model, x = perceptron(), torch.randn(16, 6)
    changed = add_final_norm(model, kind, x)
    changed(x)  # moves the running statistics
    file = io.BytesIO()
    torch.save(changed, file)
    file.seek(0)
    again = add_final_norm(perceptron(), kind, 5 * x)
    again.load_state_dict(changed.state_dict())
    copies = [copy.deepcopy(changed), torch.load(file, weights_only=False), again]
    expected = changed.eval()(x)
    for other in copies:
        assert torch.equal(other.eval()(x), expected)
    assert [changes(other) for other in copies[:2]] == [changes(changed)] * 2


def test_an_unchanged_model_s_weights_still_load():
    changed, other = add_final_norm(perceptron(), "layer"), perceptron()
    nn.init.normal_(other[2].weight)
    result = changed.load_state_dict(other.state_dict(), strict=False)
    assert result.missing_keys == ["2.input_norm.weight", "2.input_norm.bias"]
    assert not result.unexpected_keys
    assert torch.equal(changed[2].weight, other[2].weight)


def test_the_changed_model_compiles_traces_and_takes_synchronised_statistics():
    changed, x = add_final_norm(perceptron(), "batch"), torch.randn(8, 5, 6)
    changed(x)
    expected = changed.eval()(x)
    compiled = torch.compile(changed, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(changed)(x), expected)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(changed))
    assert isinstance(synchronised[2].input_norm, nn.SyncBatchNorm)
    assert torch.equal(synchronised(x), expected)


# Bad arguments


def compiled():
    return torch.compile(perceptron(), backend="eager")


ARGUMENTS = {
    "kind": ((perceptron, "group"), ValueError, "kind must be one of 'batch', 'layer', 'scale'"),
    "model": ((lambda: "fc", "batch"), TypeError, "model must be a torch.nn.Module, got str"),
    "no constant": ((perceptron, "scale"), ValueError, "pass a batch as inputs= .* or .*divisor="),
    "stray divisor": (
        (perceptron, "batch", None, 2.0), ValueError, "divisor belongs to kind='scale', got 2.0",
    ),
    "divisor": ((perceptron, "scale", None, 0.0), ValueError, "divisor must be above 0, got 0.0"),
    "type": ((perceptron, "scale", None, "2"), TypeError, "divisor must be a number"),
    "zeros": (
        (lambda: perceptron()[2], "scale", torch.zeros(8, 8)), ValueError, "not zero throughout",
    ),
    "not finite": (
        (lambda: perceptron()[2], "scale", torch.full((8, 8), math.nan)), ValueError, "λ_max = nan",
    ),
    "equal": (
        (perceptron, "scale", torch.ones(8, 6)), ValueError, r"samples differ.*8 equal row\(s\)",
    ),
    "no layer": ((nn.ReLU, "batch"), ValueError, "model has no linear or convolution layer"),
    "compiled": ((compiled, "batch"), ValueError, "model is compiled: pass model._orig_mod"),
    "parallel": (
        (lambda: nn.DataParallel(perceptron()), "batch"), ValueError,
        r"model is wrapped: pass model.module.*DataParallel given",
    ),
    "twice": (
        (lambda: add_final_norm(perceptron(), "scale", divisor=2.0), "batch"), ValueError,
        r"classifier '2' already has an input_norm, Divide\(2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_bad_arguments_are_named(arguments, error, message):
    make, *rest = arguments
    with pytest.raises(error, match=message):
        add_final_norm(make(), *rest)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_is_refused():
    with pytest.raises(ValueError, match=r"model is scripted .* pass the model it was made from"):
        add_final_norm(torch.jit.script(perceptron()), "batch")


# rescale_


PAIRS = {
    "Linear, BatchNorm1d": (nn.Linear(6, 8), nn.BatchNorm1d(8), (16, 6)),
    "Conv2d, BatchNorm2d": (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (8, 3, 6, 6)),
    "Conv2d, GroupNorm": (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), (8, 3, 6, 6)),
    "Conv1d, InstanceNorm1d": (
        nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True), (8, 3, 9),
    ),
    "Linear, LayerNorm": (nn.Linear(6, 8), nn.LayerNorm(8), (16, 6)),
    "Linear, RMSNorm": (nn.Linear(6, 8), nn.RMSNorm(8, eps=1e-5), (16, 6)),
    "no bias, no affine, no statistics": (
        nn.Linear(6, 8, bias=False),
        nn.BatchNorm1d(8, affine=False, track_running_stats=False),
        (16, 6),
    ),
}  # fmt: skip


def normalised_pair(pair, eps=0.1):
    """A layer and its normalisation, whose ε matters and whose statistics are those of data."""
    layer, norm, shape = copy.deepcopy(pair)
    torch.manual_seed(0)
    norm.eps = eps
    model = nn.Sequential(layer, norm)
    for _ in range(3):
        model(torch.randn(shape))
    return model, torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("a", [1024.0, 0.25, 3.0])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_rescaling_with_the_normalisation_keeps_the_function(pair, a):
    model, x = normalised_pair(pair)
    rescaled = copy.deepcopy(model)
    rescale_(rescaled[0], a, rescaled[1])
    tolerance = {"rtol": 0, "atol": 0} if math.log2(a).is_integer() else {}
    torch.testing.assert_close(rescaled[0](x), a * model[0](x))
    for mode in (True, False, True, False):  # train mode moves the statistics of both
        out, same = model.train(mode)(x), rescaled.train(mode)(x)
        torch.testing.assert_close(same, out, **tolerance)
        gradients = [torch.autograd.grad((y**3).sum(), x)[0] for y in (out, same)]
        torch.testing.assert_close(gradients[1], gradients[0], **tolerance)


def test_a_linear_layer_stored_transposed_is_rescaled():
    model, x = Transposed(perceptron()), torch.randn(8, 6)
    norm = nn.BatchNorm1d(3)
    before, normalised = model(x), norm(model(x))
    rescale_(model.last, 4.0, norm)
    assert torch.equal(model(x), 4 * before)
    norm.reset_running_stats()
    assert torch.equal(norm(model(x)), normalised)


@pytest.mark.parametrize("a", [0.5, 4.0])
def test_without_the_normalisation_it_is_off_as_far_as_it_says(a):
    model, x = normalised_pair(PAIRS["Linear, BatchNorm1d"], eps=1e-4)
    model.double().train()
    x = x.detach().double()
    before = model(x)
    variance = model[0](x).var(0, unbiased=False)
    rescale_(model[0], a)
    relative = (model(x) - before) / before
    expected = (1e-4 / (2 * variance) * (1 - 1 / a**2)).expand_as(relative)
    torch.testing.assert_close(relative, expected, rtol=0.02, atol=0)


def test_rescaling_leaves_gradients_and_other_parameters_alone():
    model, x = normalised_pair(PAIRS["Linear, BatchNorm1d"])
    model(x).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    affine = model[1].weight.detach().clone()
    rescale_(model[0], 2.0, model[1])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert torch.equal(model[1].weight, affine)


RESCALE_ERRORS = {
    "layer": (nn.ReLU(), 2.0, None, TypeError, "layer must be a linear or convolution layer"),
    "zero": (nn.Linear(2, 3), 0.0, None, ValueError, "a must be above 0, got 0.0"),
    "negative": (nn.Linear(2, 3), -1.0, None, ValueError, "a must be above 0, got -1.0"),
    "infinite": (nn.Linear(2, 3), math.inf, None, ValueError, "a must be finite"),
    "type": (nn.Linear(2, 3), "2", None, TypeError, "a must be a number"),
    "parametrised": (
        parametrizations.weight_norm(nn.Linear(2, 3)), 2.0, None,
        ValueError, "weight computed from other parameters.*remove_parametrizations",
    ),
    "norm": (nn.Linear(2, 3), 2.0, nn.ReLU(), TypeError, "norm must be the .*got ReLU"),
    "features": (
        nn.Linear(2, 3), 2.0, nn.BatchNorm1d(4), ValueError,
        "norm must take the layer's 3 features, got BatchNorm1d over 4",
    ),
    "eps": (nn.Linear(2, 3), 2.0, nn.RMSNorm(3), ValueError, "norm has no ε of its own"),
    "overflow": (
        nn.Linear(2, 3), 1e39, None, ValueError, "a=1e.39 takes values out of .*float32",
    ),
    "underflow": (nn.Linear(2, 3), 1e-50, None, ValueError, "takes values out of the range"),
    "statistics": (
        nn.Linear(2, 3), 1e25, nn.BatchNorm1d(3), ValueError, "takes values out of the range",
    ),
    "eps overflow": (
        nn.Linear(2, 3), 1e200, nn.BatchNorm1d(3), ValueError, "takes norm's ε, 1e-05, out of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "a", "norm", "error", "message"), RESCALE_ERRORS.values(), ids=RESCALE_ERRORS
)
def test_a_refused_rescaling_changes_nothing(layer, a, norm, error, message):
    model = nn.ModuleList([layer] if norm is None else [layer, norm])
    before, eps = state(model), getattr(norm, "eps", None)
    with pytest.raises(error, match=message):
        rescale_(layer, a, norm)
    assert_same(before, state(model))
    assert getattr(norm, "eps", None) == eps


# freeze


def four_layers():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 5, bias=False),
        nn.Linear(5, 5), parametrizations.weight_norm(nn.Linear(5, 2)),
    )  # fmt: skip


def layer_grads(model):
    return [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("digits", ["0111", "1010", "0000", "1111"])
def test_digits_say_which_layers_move(digits):
    torch.manual_seed(0)
    model, x, y = four_layers(), torch.randn(8, 2, 4), torch.arange(8) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def step():
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()

    step()  # there is momentum, and a gradient, by the time of freezing
    LOSS(model(x), y).backward()
    names = list(supported_layers(model))
    expected = [name for name, digit in zip(names, digits, strict=True) if digit == "0"]
    assert freeze(model, digits) == expected
    before = copy.deepcopy(model)
    optimizer.step()
    step()
    for name, digit in zip(names, digits, strict=True):
        layer, old = model.get_submodule(name), before.get_submodule(name)
        for parameter, before_it in zip(layer.parameters(), old.parameters(), strict=True):
            assert torch.equal(parameter, before_it) == (digit == "0")
    assert not torch.equal(model[1].weight, before[1].weight)  # no layer: trained as before


def test_digits_train_what_was_frozen_and_names_do_not():
    model = four_layers()
    assert freeze(model, "0011") == ["0", "3"]
    assert freeze(model, ["4"]) == ["0", "3", "4"]
    assert freeze(model, "1110") == ["5"]
    assert freeze(model, []) == ["5"]


def test_the_normalisation_of_a_frozen_classifier_is_trained():
    model = add_final_norm(perceptron(), "batch")
    assert freeze(model, ["2"]) == ["2"]
    assert model[2].input_norm.weight.requires_grad
    assert not model[2].weight.requires_grad


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "layers", "error", "message"),
    [
        (four_layers, "01", ValueError, "must have 4 digits, one for each of '0', '3', '4', '5'"),
        (four_layers, "0121", ValueError, "digits 0 .frozen. and 1 .trained."),
        (four_layers, "fc", ValueError, r"a single name goes into a list, \['fc'\]"),
        (four_layers, "", ValueError, "must have 4 digits"),
        (four_layers, ["0", "fc"], ValueError, r"layers must be among '0', .*; got \['fc'\]"),
        (four_layers, 3, TypeError, "layers must be a string of digits or a collection of names"),
        (tied, "01", ValueError, "layers '0' and '1' share a parameter"),
    ],
)
def test_a_refused_freezing_changes_nothing(make, layers, error, message):
    model = make()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state(model)
    with pytest.raises(error, match=message):
        freeze(model, layers)
    assert_same(before, state(model))
