"""Σ_x and Σ_g against their definition, one sample at a time, and the paper's exact facts.

The reference (`brute_force`) differentiates each sample's own loss in a call of its own, in
float64, and reads each layer's input vectors off the layer itself; it shares no code with the
library. It does not see faults of PyTorch's own layers and losses. Where batch normalisation
couples the samples, g_n is defined as N · ∂L/∂h_n, and has a reference of its own.
"""

import copy
import functools
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lca_widgets.curvature import (
    FactorCapture,
    LayerFactors,
    kronecker_factors,
    layer_spectra,
)
from lca_widgets.models import mlp
from tests.curvature.brute_force import (
    CROSS_ENTROPY,
    Loss,
    assert_close,
    call,
    reference,
    sample,
    vectors,
)

N, CLASSES = 4, 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LOSS = nn.CrossEntropyLoss()
EVEN_SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


# Models as data: each is a factory and the shape of one sample.


class Sequence(nn.Module):
    """Two layers applied at each of T positions, one to their mean."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 4, bias=False)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))).flatten(1, -2).mean(1))


class Flattened(nn.Module):
    """Its layers see [N·T, d]; a gradient still belongs to one of N samples."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(0, 1)))).unflatten(0, x.shape[:2]).mean(1)


class Twice(nn.Module):
    """One module called twice a pass."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class TwoScales(nn.Module):
    """One convolution called on 5×4 and on 2×2 pixels."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 2, 3, padding=1, stride=(2, 1)), nn.Linear(2, CLASSES)

    def forward(self, x):
        fine = torch.tanh(self.conv(x))
        coarse = torch.tanh(self.conv(nn.functional.avg_pool2d(x, 2)))
        return self.last(fine.mean((2, 3)) + coarse.mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(2, 5)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, left, right):
        return self.last(torch.tanh(self.left(input=left) * self.right(right)))


class ViewInPlace(nn.Module):
    """A view of a layer's output is overwritten."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        h = self.first(x)
        h.unflatten(1, (2, 3)).tanh_()
        return self.last(h)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.stem, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.last(checkpoint(self.body, x, use_reentrant=self.use_reentrant))


def feed_forward():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5, bias=False), nn.Tanh(),
        nn.Linear(5, CLASSES),
    )  # fmt: skip


def frozen(make, *names):
    """``make()`` with the named modules frozen, all if none is named."""
    model = make()
    for module in [model.get_submodule(name) for name in names] or [model]:
        module.requires_grad_(False)
    return model


def residual_convolutions():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True),
        Residual(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh()), nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES),
    )  # fmt: skip


CASES = {
    "feed-forward, in-place ReLU": (feed_forward, (4,)),
    "three positions a sample": (Sequence, (3, 4)),
    "two by three positions": (Sequence, (2, 3, 4)),
    "positions flattened into the batch": (Flattened, (3, 4)),
    "a module called twice": (Twice, (4,)),
    "a convolution called at two scales": (TwoScales, (2, 5, 4)),
    "two inputs": (TwoInputs, ((4,), (2,))),
    "keyword inputs": (TwoInputs, {"right": (2,), "left": (4,)}),
    "in place on a view": (ViewInPlace, (4,)),
    "frozen, in place on a view": (functools.partial(frozen, ViewInPlace, "first"), (4,)),
    "frozen first layer, in-place ReLU": (functools.partial(frozen, feed_forward, "0"), (4,)),
    "all frozen": (functools.partial(frozen, feed_forward), (4,)),
    "all frozen, in-place ReLU after convolutions": (
        functools.partial(frozen, residual_convolutions), (1, 5, 6),
    ),
    "weight normalisation": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, CLASSES)
        ),
        (4,),
    ),
    "checkpointed": (functools.partial(Checkpointed, use_reentrant=False), (4,)),
    "residual convolutions": (residual_convolutions, (1, 5, 6)),
}  # fmt: skip

CONVOLUTIONS = {
    "1d": (nn.Conv1d, (2, 4, 3), {}, (2, 6)),
    "1d, even kernel, padding same": (nn.Conv1d, (2, 3, 4), {"padding": "same"}, (2, 5)),
    "1d, strided, cut off": (nn.Conv1d, (2, 3, 2), {"stride": 3}, (2, 7)),
    "1d, dilated, circular": (
        nn.Conv1d, (2, 3, 3), {"dilation": 2, "padding": 2, "padding_mode": "circular"}, (2, 6),
    ),
    "1x1": (nn.Conv2d, (3, 2, 1), {}, (3, 2, 3)),
    "2d, padded": (nn.Conv2d, (2, 3, 3), {"padding": 1}, (2, 4, 5)),
    "2d, strided, dilated": (
        nn.Conv2d, (2, 3, (3, 2)),
        {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 0)}, (2, 5, 4),
    ),
    "2d, reflected": (
        nn.Conv2d, (2, 3, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (2, 4, 4),
    ),
    "2d, replicated, strided": (
        nn.Conv2d, (2, 3, 3), {"padding": 1, "padding_mode": "replicate", "stride": 2}, (2, 4, 4),
    ),
    "2d, circular": (nn.Conv2d, (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, (2, 4, 3)),
    "2d, grouped": (nn.Conv2d, (4, 6, (2, 3)), {"groups": 2, "padding": 1}, (4, 3, 4)),
    "2d, depthwise, no bias": (
        nn.Conv2d, (3, 6, 3), {"groups": 3, "padding": 1, "bias": False}, (3, 3, 3),
    ),
    "2d, padding wider than the image": (nn.Conv2d, (1, 2, 3), {"padding": 3}, (1, 2, 1)),
    "3d, strided, padded": (
        nn.Conv3d, (1, 2, 2), {"stride": (1, 2, 1), "padding": (0, 1, 1)}, (1, 3, 2, 2),
    ),
    "3d, grouped, circular": (
        nn.Conv3d, (2, 2, (1, 2, 3)),
        {"groups": 2, "padding": (0, 1, 1), "padding_mode": "circular"}, (2, 2, 2, 3),
    ),
    "1d, transposed": (nn.ConvTranspose1d, (2, 3, 3), {"stride": 2, "padding": 1}, (2, 4)),
    "2d, transposed, output padding": (
        nn.ConvTranspose2d, (2, 3, (3, 2)),
        {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "dilation": (2, 1)},
        (2, 3, 2),
    ),
    "2d, transposed, grouped": (nn.ConvTranspose2d, (4, 6, 2), {"groups": 2}, (4, 2, 2)),
    "3d, transposed": (nn.ConvTranspose3d, (1, 2, 2), {"stride": (1, 2, 1)}, (1, 2, 2, 1)),
}  # fmt: skip


def convolution(kind, sizes, options, shape):
    """A convolution between two other layers, so that its input and its gradient are neither 0."""
    layer = kind(*sizes, **options)
    with torch.no_grad():
        features = layer(torch.zeros(1, *shape)).numel()
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, CLASSES))


for label, (kind, sizes, options, shape) in CONVOLUTIONS.items():
    CASES[f"convolution {label}"] = (
        functools.partial(convolution, kind, sizes, options, shape),
        shape,
    )


def drawn(shape, n):
    if isinstance(shape, dict):
        return {name: drawn(part, n) for name, part in shape.items()}
    if isinstance(shape[0], tuple):
        return tuple(drawn(part, n) for part in shape)
    return torch.randn(n, *shape) + 0.3  # not centred


def converted(inputs, dtype):
    if isinstance(inputs, dict):
        return {name: converted(part, dtype) for name, part in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(converted(part, dtype) for part in inputs)
    return inputs.to(dtype)


def problem(case, dtype=torch.float64, n=N):
    """Model, inputs and labels: the same numbers in either precision."""
    make, shape = CASES[case]
    torch.manual_seed(0)
    return make().to(dtype), converted(drawn(shape, n), dtype), torch.randint(CLASSES, (n,))


@functools.cache
def expected(case, fisher="empirical", conv="patch"):
    return reference(*problem(case), fisher=fisher, conv=conv)


def by_name(layers):
    return {layer.name: layer for layer in layers}


def assert_equal_factors(actual, other, tolerance=1e-12):
    assert [layer.name for layer in actual] == [layer.name for layer in other]
    for a, b in zip(actual, other, strict=True):
        assert_close(a.input_moment, b.input_moment, tolerance)
        assert_close(a.grad_moment, b.grad_moment, tolerance)
        assert a.n == b.n


def capture(model, x, y, reduction="mean", **convention):
    with FactorCapture(model, reduction=reduction, **convention) as watched:
        nn.functional.cross_entropy(call(model, x), y, reduction=reduction).backward()
    return by_name(watched.take())


# The definition.


CONVENTIONS = [(case, "patch") for case in CASES]
CONVENTIONS += [(case, "pixel") for case in CASES if "convolution" in case]


@EVEN_SAME
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("case", "conv"), CONVENTIONS)
def test_factors_are_the_moments_of_per_sample_quantities(case, conv, sharing, dtype):
    definition = expected(case, conv=conv)
    for bias in (False, True):
        model, *batch = problem(case, dtype)
        measured = kronecker_factors(
            model, LOSS, tuple(batch), conv=conv, sharing=sharing, bias=bias
        )
        assert [layer.name for layer in measured.layers] == list(definition)
        assert measured.skipped == {}
        for layer in measured.layers:
            sigma_x, sigma_g = definition[layer.name].moments(sharing, bias=bias)
            assert_close(layer.input_moment, sigma_x, TOLERANCE[dtype])
            assert_close(layer.grad_moment, sigma_g, TOLERANCE[dtype])
            assert layer.input_moment.dtype == layer.grad_moment.dtype == torch.float64
            assert layer.n == N
            assert layer.kind == type(model.get_submodule(layer.name)).__name__


TRAINED = [(case, conv) for case, conv in CONVENTIONS if "frozen" not in case]


@EVEN_SAME
@pytest.mark.parametrize(("sharing", "reduction"), [("expand", "mean"), ("reduce", "sum")])
@pytest.mark.parametrize(("case", "conv"), TRAINED)
def test_trainings_own_passes_give_the_same_factors_as_passes_of_its_own(
    case, conv, sharing, reduction
):
    model, x, y = problem(case)
    convention = {"conv": conv, "sharing": sharing, "bias": True}
    loss = nn.CrossEntropyLoss(reduction=reduction)
    own = kronecker_factors(model, loss, (x, y), **convention)
    watched = capture(model, x, y, reduction, **convention)
    assert_equal_factors(list(watched.values()), own.layers)


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    "case",
    [
        "feed-forward, in-place ReLU", "two by three positions", "a module called twice",
        "positions flattened into the batch", "frozen first layer, in-place ReLU", "all frozen",
        "residual convolutions", "checkpointed", "convolution 2d, grouped",
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_fisher_is_the_moment_over_the_models_own_labels(case, sharing, fisher, dtype):
    model, x, y = problem(case, dtype)
    measured = kronecker_factors(model, LOSS, (x, y), fisher=fisher, sharing=sharing)
    if fisher == "exact":
        definition = expected(case, fisher)
    else:  # the labels it drew are an empirical problem; drawn again from the same seed
        with torch.no_grad():
            p = call(model, x).double().softmax(dim=1)
        drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))[:, 0]
        definition = reference(model, x, drawn)
    for layer in measured.layers:
        sigma_x, sigma_g = definition[layer.name].moments(sharing)
        assert_close(layer.input_moment, sigma_x, TOLERANCE[dtype])
        assert_close(layer.grad_moment, sigma_g, TOLERANCE[dtype])


def test_sampled_labels_give_the_exact_fisher_on_average():
    model, x, y = problem("feed-forward, in-place ReLU")
    exact = kronecker_factors(model, LOSS, (x, y), fisher="exact").layers
    draws = [
        kronecker_factors(model, LOSS, (x, y), fisher="sampled", seed=seed).layers
        for seed in range(200)
    ]
    for k, layer in enumerate(exact):
        traces = torch.stack([draw[k].grad_moment.trace() for draw in draws])
        error = traces.mean() - layer.grad_moment.trace()
        assert error.abs() < 4 * traces.std() / 200**0.5  # four standard errors
        assert traces.std() > 0


LOSSES = {
    "class weights, one of them 0": (
        Loss(nn.CrossEntropyLoss, {"weight": torch.tensor([0.5, 0.0, 2.0])}), "labels",
    ),
    "label smoothing": (Loss(nn.CrossEntropyLoss, {"label_smoothing": 0.2}), "labels"),
    "an ignored label": (Loss(nn.CrossEntropyLoss, {"ignore_index": -1}), "some labels"),
    "class probabilities": (CROSS_ENTROPY, "probabilities"),
    "squared error": (Loss(nn.MSELoss), "values"),
    "binary": (
        Loss(nn.BCEWithLogitsLoss, {"pos_weight": torch.tensor([1.0, 3.0, 0.5])}), "bits",
    ),
}  # fmt: skip


def target_of(kind):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(N, CLASSES, generator=generator)
    return {
        "labels": torch.tensor([0, 1, 2, 2]),
        "some labels": torch.tensor([0, -1, 2, 2]),
        "probabilities": values.softmax(dim=1),
        "values": values,
        "bits": (values > 0).float(),
    }[kind]


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_loss_decides_the_per_sample_gradient(name, reduction, fisher, dtype):
    loss, kind = LOSSES[name]
    model, x, _ = problem("two by three positions", dtype)
    y = target_of(kind)
    target = y.to(dtype) if y.is_floating_point() else y
    measured = kronecker_factors(model, loss.module(reduction, dtype), (x, target), fisher=fisher)
    definition = reference(model, x, y, loss, fisher=fisher, reduction=reduction)
    for layer in measured.layers:
        assert_close(
            layer.grad_moment, definition[layer.name].moments("expand")[1], TOLERANCE[dtype]
        )


def test_any_per_sample_loss_of_any_output_gives_the_empirical_factors():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x):
            return {"mean": self.body(x), "spread": [self.scale(x)]}

    def loss(output, target):
        spread = output["spread"][0].squeeze(1)
        error = (output["mean"] - target["y"]).abs().sum(dim=1)
        return (error * spread.exp() - target["weight"] * spread).mean()

    torch.manual_seed(0)
    model, x = Named().double(), torch.randn(N, 4, dtype=torch.float64)
    target = {"y": torch.randn(N, 3).double(), "weight": torch.rand(N).double()}
    measured = kronecker_factors(model, loss, (x, target), reduction="mean")
    definition = vectors(model, x, N, lambda out, n: [(1.0, loss(out, sample(target, n)))])
    for layer in measured.layers:
        sigma_x, sigma_g = definition[layer.name].moments("expand")
        assert_close(layer.input_moment, sigma_x, 1e-10)
        assert_close(layer.grad_moment, sigma_g, 1e-10)


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_one_sample_is_enough(sharing, fisher):
    model, x, y = problem("three positions a sample")
    measured = kronecker_factors(model, LOSS, (x[:1], y[:1]), fisher=fisher, sharing=sharing)
    if fisher != "sampled":
        definition = reference(model, x[:1], y[:1], fisher=fisher)
        for layer in measured.layers:
            assert_close(layer.grad_moment, definition[layer.name].moments(sharing)[1], 1e-10)
    assert {layer.n for layer in measured.layers} == {1}


def test_one_sample_needs_no_reduction():
    model, x, y = problem("feed-forward, in-place ReLU")

    def loss(output, target):
        return nn.functional.cross_entropy(output, target)

    one = kronecker_factors(model, loss, (x[:1], y[:1]))
    assert_equal_factors(one.layers, kronecker_factors(model, LOSS, (x[:1], y[:1])).layers)
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]  # a loader's last batch may be one sample
    assert_equal_factors(
        kronecker_factors(model, loss, batches).layers,
        kronecker_factors(model, LOSS, (x, y)).layers,
    )


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["expand", "reduce"]),
    st.integers(0, 2**16),
)
def test_any_leading_dimensions(positions, d_in, d_out, sharing, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(d_in, d_out), nn.Tanh()).double()
    x = torch.randn(3, *positions, d_in, dtype=torch.float64)
    y = torch.randn(3, *positions, d_out, dtype=torch.float64)
    measured = kronecker_factors(model, nn.MSELoss(), (x, y), sharing=sharing)
    definition = reference(model, x, y, Loss(nn.MSELoss))["0"].moments(sharing)
    assert_close(measured.layers[0].input_moment, definition[0], 1e-10)
    assert_close(measured.layers[0].grad_moment, definition[1], 1e-10)


# Batch normalisation.


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("own_pass", [True, False])
def test_with_batch_norm_in_train_mode_g_is_n_times_the_batch_loss_gradient(own_pass, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)
    ).to(dtype)
    x, y = torch.randn(12, 4, dtype=dtype), torch.randint(CLASSES, (12,))
    twin = copy.deepcopy(model).double()
    if own_pass:
        measured = kronecker_factors(model, LOSS, (x, y)).layers[0]
    else:
        measured = capture(model, x, y)["0"]
    h = twin[0](x.double())
    loss = nn.functional.cross_entropy(twin[3](torch.relu(twin[1](h))), y)
    [gradient] = torch.autograd.grad(loss, h)
    expected = sum(torch.outer(12 * g, 12 * g) for g in gradient) / 12
    assert_close(measured.grad_moment, expected, TOLERANCE[dtype])


# Batches and parts.


UNEVEN = (slice(0, 1), slice(1, 4), slice(4, 9), slice(9, 12))


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    "case", ["three positions a sample", "residual convolutions", "a module called twice"]
)
def test_batches_of_any_sizes_give_the_factors_of_all_samples_at_once(case, sharing, fisher):
    model, x, y = problem(case, n=12)
    options = {"fisher": fisher, "sharing": sharing, "bias": True}
    whole = kronecker_factors(model, LOSS, (x, y), **options)
    stream = ((x[part], y[part]) for part in UNEVEN)  # which can be read once
    assert_equal_factors(kronecker_factors(model, LOSS, stream, **options).layers, whole.layers)


def test_two_batches_give_the_mean_of_their_factors_weighted_by_their_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()
    x, y = torch.randn(12, 4).double(), torch.randint(CLASSES, (12,))
    parts = (x[:4], y[:4]), (x[4:], y[4:])
    one, two = (kronecker_factors(model, LOSS, part).layers for part in parts)
    both = kronecker_factors(model, LOSS, list(parts)).layers
    with FactorCapture(model) as watched:
        for part in parts:
            LOSS(model(part[0]), part[1]).backward()
    for layers in (both, watched.take()):
        for layer, a, b in zip(layers, one, two, strict=True):
            assert_close(layer.input_moment, (4 * a.input_moment + 8 * b.input_moment) / 12, 1e-12)
            assert_close(layer.grad_moment, (4 * a.grad_moment + 8 * b.grad_moment) / 12, 1e-12)
            assert layer.n == 12


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    "case",
    [
        "three positions a sample", "positions flattened into the batch", "a module called twice",
        "convolution 2d, grouped", "convolution 2d, transposed, output padding",
    ],
)  # fmt: skip
def test_parts_are_the_factors_of_their_samples_and_their_mean_is_the_whole(case, sharing, fisher):
    model, x, y = problem(case, n=7)
    options = {"fisher": fisher, "sharing": sharing, "bias": True}
    measured = kronecker_factors(model, LOSS, (x, y), parts=3, **options)
    whole = kronecker_factors(model, LOSS, (x, y), **options)
    assert_equal_factors(measured.layers, whole.layers)
    slices = (slice(0, 2), slice(2, 4), slice(4, 7))
    alone = [kronecker_factors(model, LOSS, (x[part], y[part]), **options) for part in slices]
    for k, layer in enumerate(measured.layers):
        assert_equal_factors(layer.parts, [part.layers[k] for part in alone])
        for moment in ("input_moment", "grad_moment"):
            mean = sum(part.n * getattr(part, moment) for part in layer.parts) / 7
            assert_close(getattr(layer, moment), mean, 1e-12)


def test_a_part_without_a_sample_is_left_out():
    model, x, y = problem("three positions a sample", n=2)
    [first, *_] = kronecker_factors(model, LOSS, (x, y), parts=5).layers
    assert [part.n for part in first.parts] == [1, 1]
    [first, *_] = kronecker_factors(model, LOSS, (x, y)).layers
    assert first.parts == ()


@pytest.mark.parametrize(("fisher", "sharing"), [("empirical", "reduce"), ("exact", "expand")])
def test_memory_does_not_grow_with_the_number_of_batches(sharing, fisher):
    model, x, y = problem("residual convolutions")
    alive = []

    def stream():
        for k in range(9):
            if k in (2, 8):
                gc.collect()
                alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
            yield x.clone(), y.clone()

    kronecker_factors(model, LOSS, stream(), fisher=fisher, sharing=sharing)
    assert alive[0] == alive[1]


# The training's own passes.


def test_take_starts_afresh():
    model, x, y = problem("feed-forward, in-place ReLU", n=12)
    alone = capture(model, x[4:], y[4:])
    with FactorCapture(model) as watched:
        nn.functional.cross_entropy(model(x[:4]), y[:4]).backward()
        watched.take()
        nn.functional.cross_entropy(model(x[4:]), y[4:]).backward()
        for layer in watched.take():
            assert torch.equal(layer.input_moment, alone[layer.name].input_moment)
            assert torch.equal(layer.grad_moment, alone[layer.name].grad_moment)


def test_take_after_a_forward_pass_alone_names_what_is_missing():
    model, x, _ = problem("feed-forward, in-place ReLU")
    with FactorCapture(model) as watched:
        model(x)
        with pytest.raises(RuntimeError, match=r"forward and a backward pass .* '0', '2', '4'"):
            watched.take()


def test_a_forward_pass_without_backward_pass_leaves_no_trace_in_later_results():
    model, x, y = problem("feed-forward, in-place ReLU")
    expected = capture(model, x, y)
    watched = FactorCapture(model)
    with watched:
        model(1000 * x)
    with watched:
        model(1000 * x)
        nn.functional.cross_entropy(model(x), y).backward()
    for layer in watched.take():
        assert layer.n == N
        assert torch.equal(layer.input_moment, expected[layer.name].input_moment)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_take_between_a_forward_and_its_backward_pass_leaves_that_batch_to_the_next(sharing):
    model, x, y = problem("three positions a sample")
    expected = capture(model, 2 * x, y, sharing=sharing)
    with FactorCapture(model, sharing=sharing) as watched:
        nn.functional.cross_entropy(model(x), y).backward()
        loss = nn.functional.cross_entropy(model(2 * x), y)
        assert watched.take()[0].n == N
        loss.backward()
        for layer in watched.take():
            assert layer.n == N
            assert torch.equal(layer.input_moment, expected[layer.name].input_moment)
            assert torch.equal(layer.grad_moment, expected[layer.name].grad_moment)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("case", ["three positions a sample", "a module called twice"])
def test_two_forward_passes_may_precede_their_backward_passes(case, joint, sharing):
    model, x, y = problem(case, n=12)
    whole = kronecker_factors(model, LOSS, (x, y), sharing=sharing)
    with FactorCapture(model, sharing=sharing) as watched:
        losses = [LOSS(model(x[part]), y[part]) for part in UNEVEN]
        if joint:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
    assert_equal_factors(watched.take(), whole.layers)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_second_backward_pass_over_the_same_graph_counts_once(sharing):
    model, x, y = problem("three positions a sample")
    expected = capture(model, x, y, sharing=sharing)["first"]
    with FactorCapture(model, sharing=sharing) as watched:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()
    assert torch.equal(watched.take()[0].grad_moment, expected.grad_moment)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_recomputing_a_checkpoint_counts_once(sharing, use_reentrant):
    _, x, y = problem("checkpointed")
    torch.manual_seed(0)
    model = Checkpointed(use_reentrant).double()
    measured = capture(model, x, y, sharing=sharing)
    definition = expected("checkpointed")
    assert list(measured) == list(definition)
    for name, layer in measured.items():
        sigma_x, sigma_g = definition[name].moments(sharing)
        assert layer.n == N
        assert_close(layer.input_moment, sigma_x, 1e-10)
        assert_close(layer.grad_moment, sigma_g, 1e-10)


def test_frozen_layers_in_a_checkpoint_are_measured():
    model, x, y = problem("checkpointed")
    model.requires_grad_(False)
    measured = kronecker_factors(model, LOSS, (x, y)).layers
    definition = expected("checkpointed")
    for layer in measured:
        assert_close(layer.grad_moment, definition[layer.name].moments("expand")[1], 1e-10)


def test_factors_hold_no_graph_when_the_backward_pass_builds_one():
    model, x, y = problem("feed-forward, in-place ReLU")
    expected = capture(model, x, y)
    with FactorCapture(model) as watched:
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(LOSS(model(x), y), parameters, create_graph=True)
    for layer in watched.take():
        assert not layer.input_moment.requires_grad
        assert not layer.grad_moment.requires_grad
        assert_close(layer.grad_moment, expected[layer.name].grad_moment, 1e-12)


@pytest.mark.parametrize("own_pass", [True, False])
def test_autocast_does_not_reach_the_moments(own_pass):
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(64, 4), torch.randint(3, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        if own_pass:
            [layer] = kronecker_factors(model, LOSS, (x, y)).layers
        else:
            [layer] = capture(model, x, y).values()
    # What the layer multiplies is x, or x rounded; the product itself keeps full precision.
    errors = []
    for rows in (x.double(), x.bfloat16().double()):
        moment = rows.T @ rows / 64
        errors.append((layer.input_moment - moment).abs().max() / moment.max())
    assert min(errors) < 1e-6


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_dict_of_inputs_is_one_batch(sharing):
    class FromDict(Twice):
        def forward(self, batch):
            return super().forward(batch["x"])

    torch.manual_seed(0)
    model, (_, x, y) = FromDict().double(), problem("a module called twice")
    own = kronecker_factors(model, LOSS, (({"x": x},), y), sharing=sharing).layers
    with FactorCapture(model, sharing=sharing) as watched:
        LOSS(model({"x": x}), y).backward()
    definition = expected("a module called twice")
    for layers in (own, watched.take()):
        for layer in layers:
            assert layer.n == N
            assert_close(layer.grad_moment, definition[layer.name].moments(sharing)[1], 1e-10)


# What has no factors is listed with the reason.


class Assorted(nn.Module):
    """A layer of every kind that is not covered, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(4, 4)
        self.behind = nn.Linear(4, 4)
        self.blind = nn.Linear(4, 4)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, tokens):
        x = self.embed(tokens) + self.token
        with torch.no_grad():
            x = x + self.blind(x)
        x = self.attention(x, x, x, need_weights=False)[0] + self.behind(x).detach()
        return self.last(self.norm(self.recurrent(x)[0][:, -1]))


def test_every_module_without_factors_is_listed_with_the_reason():
    torch.manual_seed(0)
    batch = torch.randint(7, (N, 3)), torch.randint(CLASSES, (N,))
    model = Assorted()
    measured = kronecker_factors(model, LOSS, batch)
    with FactorCapture(model) as watched:
        LOSS(model(batch[0]), batch[1]).backward()
    assert [layer.name for layer in watched.take()] == ["last"]
    assert [layer.name for layer in measured.layers] == ["last"]
    for skipped in (measured.skipped, watched.skipped):
        assert set(skipped) == {
            "", "embed", "norm", "recurrent", "attention", "attention.out_proj", "unused",
            "behind", "blind",
        }  # fmt: skip
        for name, kind in {
            "": "Assorted", "embed": "Embedding", "norm": "BatchNorm1d", "recurrent": "LSTM",
            "attention": "MultiheadAttention",
        }.items():  # fmt: skip
            assert skipped[name] == f"{kind} is neither a linear nor a convolution layer"
        assert "not called" in skipped["unused"]
        assert "not called" in skipped["attention.out_proj"]
        assert "not called" not in skipped["behind"]
        assert "not called" not in skipped["blind"]
    assert "no_grad" in measured.skipped["blind"]
    assert "does not depend" in measured.skipped["behind"]


def test_a_layer_whose_output_needs_no_gradient_in_training_is_listed_with_that_reason():
    model, x, y = problem("frozen first layer, in-place ReLU")
    with FactorCapture(model) as watched:
        LOSS(model(x), y).backward()
    assert [layer.name for layer in watched.take()] == ["2", "4"]
    assert list(watched.skipped) == ["0"]
    assert "gradient" in watched.skipped["0"]


def test_a_layer_that_a_pass_gives_no_rows_adds_nothing():
    class Routed(nn.Module):
        """Two experts; all samples may go to one."""

        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

        def forward(self, x):
            left = x[:, 0] > 0
            out = torch.zeros(len(x), CLASSES, dtype=x.dtype)
            out = out.index_put((left,), self.left(x[left]))
            return out.index_put((~left,), self.right(x[~left]))

    torch.manual_seed(0)
    model, x, y = Routed().double(), torch.randn(N, 4).double(), torch.randint(CLASSES, (N,))
    x[:, 0] = 1.0
    layers = by_name(kronecker_factors(model, LOSS, (x, y)).layers)
    assert_close(layers["left"].input_moment, x.T @ x / N, 1e-12)
    assert "right" not in layers or not layers["right"].grad_moment.any()


# Scale and precision.


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("case", ["three positions a sample", "residual convolutions"])
def test_tiny_gradients_and_huge_activations_keep_their_precision(case, sharing):
    model, x, y = problem(case, torch.float32)
    first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(2.0**-83)  # 1e-25
    huge = kronecker_factors(
        model, lambda out, t: 2.0**-100 * nn.functional.cross_entropy(out, t),  # 1e-30
        (2.0**83 * x, y), sharing=sharing, reduction="mean",
    ).layers  # fmt: skip
    definition = expected(case)
    for layer in huge:
        sigma_x, sigma_g = definition[layer.name].moments(sharing)
        is_first = layer is huge[0]
        assert_close(layer.input_moment, sigma_x * (4.0**83 if is_first else 1), 1e-5)
        # ∂l/∂h of the first layer does not see the scale of its weight.
        assert_close(layer.grad_moment, sigma_g * 4.0**-100, 1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_activations_are_summed_in_single(dtype, sharing, bias):
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.layer(x).float().mean(1)

    torch.manual_seed(0)
    model = Long().to(dtype)
    x, y = (1000 * torch.rand(N, 90, 4)).to(dtype), torch.randint(CLASSES, (N,))
    [layer] = kronecker_factors(model, LOSS, (x, y), sharing=sharing, bias=bias).layers
    rows = x.double()
    if bias:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)
    rows = rows.mean(dim=1) if sharing == "reduce" else rows.flatten(0, 1)
    assert_close(layer.input_moment, rows.T @ rows / len(rows), 1e-5)


def test_a_bfloat16_model_is_measured():
    model, x, y = problem("residual convolutions", torch.bfloat16)
    for fisher in ("empirical", "exact", "sampled"):
        measured = kronecker_factors(model, LOSS, (x, y), fisher=fisher)
        assert all(layer.grad_moment.isfinite().all() for layer in measured.layers)
    definition = reference(model, x, y)
    for layer in kronecker_factors(model, LOSS, (x, y)).layers:
        # Eight bits an activation, several layers.
        assert_close(layer.input_moment, definition[layer.name].moments("expand")[0], 0.03)
        assert_close(layer.grad_moment, definition[layer.name].moments("expand")[1], 0.1)


def test_the_cut_follows_the_precision_of_the_activations():
    cuts = {
        dtype: kronecker_factors(*arguments(problem("three positions a sample", dtype)))
        .layers[0]
        .cut
        for dtype in TOLERANCE
    }
    assert cuts == {torch.float64: 1e-12, torch.float32: 1e-7}


def arguments(problem):
    model, x, y = problem
    return model, LOSS, (x, y)


@pytest.mark.parametrize("fisher", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("loss", [LOSS, nn.functional.cross_entropy, "any"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["feed-forward, in-place ReLU", "residual convolutions"])
def test_a_non_finite_input_is_a_diverged_layer_and_no_error(case, value, loss, fisher):
    model, x, y = problem(case)
    x[0, 0] = value
    if loss == "any":
        if fisher != "empirical":
            return

        def loss(output, target):
            return nn.functional.cross_entropy(output, target)

    measured = kronecker_factors(model, loss, (x, y), fisher=fisher).layers
    assert not measured[0].input_moment.isfinite().all()
    assert all(layer.grad.diverged for layer in layer_spectra(measured))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_input_in_training_is_a_diverged_layer_and_no_error(value):
    model, x, y = problem("feed-forward, in-place ReLU")
    x[0, 0] = value
    measured = capture(model, x, y)
    assert not measured["0"].input_moment.isfinite().all()
    assert all(layer.grad.diverged for layer in layer_spectra(list(measured.values())))


# Options.


def test_one_seed_gives_one_result_and_another_another():
    model, x, y = problem("feed-forward, in-place ReLU")
    options = {"fisher": "sampled"}
    first, again, other = (
        kronecker_factors(model, LOSS, (x, y), seed=seed, **options).layers[0].grad_moment
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_layers_can_be_chosen():
    model, x, y = problem("feed-forward, in-place ReLU")
    whole = by_name(kronecker_factors(model, LOSS, (x, y)).layers)
    chosen = kronecker_factors(model, LOSS, (x, y), layers=["2"])
    assert [layer.name for layer in chosen.layers] == ["2"]
    assert torch.equal(chosen.layers[0].grad_moment, whole["2"].grad_moment)
    assert chosen.skipped == {}


def test_a_model_that_is_a_layer_has_the_empty_name():
    torch.manual_seed(0)
    model, x = nn.Linear(4, CLASSES).double(), torch.randn(N, 4).double()
    [layer] = kronecker_factors(model, LOSS, (x, torch.zeros(N).long())).layers
    assert layer.name == ""
    assert_close(layer.input_moment, x.T @ x / N, 1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fisher": "true"}, "fisher must be one of 'empirical', 'exact', 'sampled', got 'true'"),
        ({"conv": "pixels"}, "conv must be one of 'patch', 'pixel', got 'pixels'"),
        ({"sharing": "sum"}, "sharing must be one of 'expand', 'reduce', got 'sum'"),
        ({"reduction": "none"}, "reduction must be one of 'mean', 'sum', got 'none'"),
        ({"parts": 0}, "parts must be at least 1, got 0"),
        ({"layers": ["1"]}, r"layers must be among '0', '2', '4'; got \['1'\]"),
        ({"fisher": "exact", "reduction": "none"}, "reduction must be one of 'mean', 'sum'"),
        ({"reduction": "sum"}, "reduction='sum' contradicts the loss, .* is 'mean'"),
        ({"fisher": "exact", "reduction": "sum"}, "reduction='sum' contradicts the loss"),
        ({"fisher": "sampled", "reduction": "sum"}, "reduction='sum' contradicts the loss"),
    ],
)
def test_a_wrong_option_is_refused_with_the_accepted_ones(wrong, message):
    with pytest.raises(ValueError, match=message):
        kronecker_factors(*arguments(problem("feed-forward, in-place ReLU")), **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reduction": "none"}, "reduction must be one of 'mean', 'sum', got 'none'"),
        ({"conv": "pixels"}, "conv must be one of"),
        ({"sharing": "sum"}, "sharing must be one of"),
    ],
)
def test_a_capture_refuses_a_wrong_option(wrong, message):
    with pytest.raises(ValueError, match=message):
        FactorCapture(feed_forward(), **wrong)


def test_a_batch_size_mismatch_is_refused_with_both_shapes():
    model, x, y = problem("feed-forward, in-place ReLU")
    for fisher in ("empirical", "exact", "sampled"):
        with pytest.raises(ValueError, match=r"target .* \(3,\) and output of shape \(4, 3\)"):
            kronecker_factors(model, LOSS, (x, y[:3]), fisher=fisher)


def test_an_output_without_gradient_is_refused():
    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    torch.manual_seed(0)
    for fisher in ("empirical", "exact"):
        with pytest.raises(ValueError, match="the output needs no gradient"):
            kronecker_factors(
                Detached(nn.Linear(4, CLASSES)), LOSS,
                (torch.randn(N, 4), torch.randint(CLASSES, (N,))), fisher=fisher,
            )  # fmt: skip


def test_a_loss_that_names_no_distribution_is_refused_for_the_fisher():
    model, x, y = problem("feed-forward, in-place ReLU")
    with pytest.raises(ValueError, match=r"fisher='exact' needs a loss .* got NLLLoss: use"):
        kronecker_factors(model, nn.NLLLoss(), (x, y), fisher="exact")


def test_samples_in_the_second_dimension_are_counted_or_refused():
    class TimeFirst(Sequence):
        """[T, N, d], as PyTorch's recurrent layers have it by default."""

        def forward(self, x):
            return super().forward(x.transpose(0, 1)) + self.first(x).mean((0, 2))[:, None]

    class TimeSecond(Sequence):
        def forward(self, x):
            return super().forward(x) + self.first(x).mean((1, 2))[:, None]

    torch.manual_seed(0)
    model, twin = TimeFirst().double(), TimeSecond().double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(N, 2 * N, 4).double(), torch.randint(CLASSES, (N,))
    batch = x.transpose(0, 1).contiguous(), y
    definition = kronecker_factors(twin, LOSS, (x, y)).layers
    assert_equal_factors(kronecker_factors(model, LOSS, batch).layers, definition)
    for options in ({"sharing": "reduce"}, {"parts": 2}):
        with pytest.raises(ValueError, match="layer 'first'"):
            kronecker_factors(model, LOSS, batch, **options)


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_an_output_that_is_no_tensor_is_refused_for_the_fisher(fisher):
    class Named(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    model = nn.Sequential(nn.Linear(4, 4), Named(4, CLASSES))
    with pytest.raises(TypeError, match=f"fisher='{fisher}' needs a model .* tensor, got dict"):
        kronecker_factors(
            model, LOSS, (torch.randn(N, 4), torch.zeros(N).long()), fisher=fisher, layers=["0"]
        )


def test_where_positions_cannot_be_told_apart_the_layer_is_named():
    class Ragged(nn.Module):
        """Its layer sees a number of rows that no sample owns."""

        def __init__(self):
            super().__init__()
            self.odd = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.odd(torch.cat([x, x[:1]]))[: len(x)]

    torch.manual_seed(0)
    batch = torch.randn(N, 4), torch.randint(CLASSES, (N,))
    for options in ({"sharing": "reduce"}, {"parts": 2}):
        with pytest.raises(ValueError, match="layer 'odd' works on 5 entries for 4 samples"):
            kronecker_factors(Ragged(), LOSS, batch, **options)
    assert kronecker_factors(Ragged(), LOSS, batch).layers[0].n == N


# Exact facts.


def test_where_all_inputs_are_one_the_layer_block_is_the_kronecker_product():
    # E[(x xᵀ) ⊗ (g gᵀ)] factorises exactly for a constant x: independence holds.
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES, bias=False).double()
    x = torch.randn(1, 4, dtype=torch.float64).expand(N, 4)
    y = torch.randint(CLASSES, (N,))
    gradients = torch.stack([
        torch.autograd.grad(nn.functional.cross_entropy(model(x_n[None]), y_n[None]), model.weight)[
            0
        ].flatten()
        for x_n, y_n in zip(x, y, strict=True)
    ])  # fmt: skip
    [layer] = layer_spectra(list(capture(model, x, y).values()))
    block = torch.linalg.eigvalsh(gradients.T @ gradients / N).flip(0)
    torch.testing.assert_close(layer.kronecker.eigenvalues[:2], block[:2])


# Two exact scaling theorems, W_k → a_k W_k, without and with batch normalisation.

FACTORS = (0.5, 3.0, 0.25, 2.0)


def scaled(model, factors, mu=1.0):
    """λ_max(Σ_x) and λ_max(Σ_g) of every layer after scaling the weights, loss times μ."""
    torch.manual_seed(1)
    x, targets = torch.randn(64, 6).double(), torch.randn(64, CLASSES).double()
    with torch.no_grad():
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight.mul_(factor)
    with FactorCapture(model) as watched:
        # A linear loss: its gradient with respect to the outputs does not see their scale.
        (mu * (model(x) * targets).sum(dim=1).mean()).backward()
    spectra = layer_spectra(watched.take())
    return [s.input.lambda_max for s in spectra], [s.grad.lambda_max for s in spectra]


def product(values):
    return functools.reduce(lambda a, b: a * b, values, 1.0)


def test_plain_relu_scaling_reaches_every_later_input_and_every_earlier_gradient():
    build = functools.partial(mlp, 6, CLASSES, depth=4, width=8, seed=3)
    x, g = scaled(build().double(), (1, 1, 1, 1))
    x_hat, g_hat = scaled(build().double(), FACTORS, mu=5.0)
    for k in range(4):
        assert x_hat[k] == pytest.approx(product(FACTORS[:k]) ** 2 * x[k], rel=1e-10)
        assert g_hat[k] == pytest.approx((5 * product(FACTORS[k + 1 :])) ** 2 * g[k], rel=1e-10)


def test_batch_norm_scaling_stays_within_its_layer():
    def build():
        model = mlp(6, CLASSES, depth=4, width=8, seed=3, norm="batch").double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eps = 1e-300  # exact only with ε = 0, which this is in float64
        return model

    factors = (*FACTORS[:3], 1.0)  # nothing normalises the last layer
    x, g = scaled(build(), (1, 1, 1, 1))
    x_hat, g_hat = scaled(build(), factors)
    for k in range(4):
        assert x_hat[k] == pytest.approx(x[k], rel=1e-10)
        assert g_hat[k] == pytest.approx(g[k] / factors[k] ** 2, rel=1e-10)


def trace_ratios(init, seed):
    """Squared magnitude of the 6th layer's input over the first's, and of the gradients back."""
    torch.manual_seed(1000 + seed)  # another stream than the weights', or both correlate
    model = mlp(128, 128, depth=6, width=128, init=init, seed=seed)
    x, targets = torch.randn(2, 64, 128)
    with FactorCapture(model) as watched:
        (model(x) * targets).sum(dim=1).mean().backward()
    layers: list[LayerFactors] = watched.take()
    return [
        layers[-1].input_moment.trace() / layers[0].input_moment.trace(),
        layers[0].grad_moment.trace() / layers[-1].grad_moment.trace(),
    ]


@pytest.mark.parametrize(("init", "factor"), [("lecun", 1 / 6), ("he", 1.0)])
def test_a_relu_layer_multiplies_squared_magnitudes_in_both_directions_by(init, factor):
    # The mean over all weights is exact; one network of this width is off by a third in five
    # layers, 32 networks by a fifteenth, and their fifth root, one layer, by less than two percent.
    ratios = torch.tensor([trace_ratios(init, seed) for seed in range(32)]).mean(dim=0)
    for per_layer in (ratios ** (1 / 5)).tolist():
        assert per_layer == pytest.approx(factor, rel=0.06)


def test_an_orthogonal_linear_network_is_an_isometry():
    torch.manual_seed(0)
    model = mlp(16, 16, depth=8, width=16, init="orthogonal", activation="linear").double()
    x, targets = torch.randn(2, 40, 16, dtype=torch.float64)
    with FactorCapture(model) as watched:
        (model(x) * targets).sum(dim=1).mean().backward()
    first, *others = layer_spectra(watched.take())
    for layer in others:  # the initialiser draws in float32
        torch.testing.assert_close(
            layer.input.eigenvalues, first.input.eigenvalues, rtol=1e-5, atol=0
        )
        torch.testing.assert_close(
            layer.grad.eigenvalues, first.grad.eigenvalues, rtol=1e-5, atol=0
        )


def test_autocast_makes_the_cut_that_of_the_coarser_side():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Linear(40, CLASSES))
    x, y = torch.randn(64, 5), torch.randint(CLASSES, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        first = kronecker_factors(model, LOSS, (x, y)).layers[0]
    assert first.cut == torch.finfo(torch.bfloat16).eps ** 2
    [spectra] = layer_spectra([first])
    assert spectra.grad.rank == CLASSES - 1


def test_a_table_that_all_samples_share_is_listed_as_having_no_batch_dimension():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = nn.Linear(2, 4), nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.layer(x + self.table(torch.ones(1, 3, 2)).mean(1))

    batch = torch.randn(N, 4), torch.randint(CLASSES, (N,))
    assert list(kronecker_factors(Biased(), LOSS, batch).skipped) == ["table"]


def test_an_expert_without_tokens_is_listed_and_not_diverged():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

        def forward(self, x):
            return torch.cat([self.left(x), self.right(x[:0])])

    batch = torch.randn(N, 4), torch.randint(CLASSES, (N,))
    measured = kronecker_factors(Experts(), LOSS, batch)
    assert [layer.name for layer in measured.layers] == ["left"]
    assert list(measured.skipped) == ["right"]


def test_a_loss_of_whole_batches_only_takes_its_reduction_as_given():
    model, x, y = problem("feed-forward, in-place ReLU")
    weights = torch.ones(N, dtype=x.dtype)

    def loss(output, target):
        return (weights * nn.functional.cross_entropy(output, target, reduction="none")).mean()

    with pytest.raises(ValueError, match="reduction of loss_fn loss is unclear"):
        kronecker_factors(model, loss, (x, y))
    given = kronecker_factors(model, loss, (x, y), reduction="mean").layers
    assert_equal_factors(given, kronecker_factors(model, LOSS, (x, y)).layers)
