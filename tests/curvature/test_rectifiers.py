"""Dying and full units against what each model itself notes of its rectifiers' outputs.

The reference looks at one number after the other. It sees neither a rectifier that a model forgets
to note, nor PyTorch's own faults.
"""

import gc
import threading
import warnings
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from lca_widgets.curvature import Capture
from lca_widgets.curvature.rectifiers import RectifierUnits, UnitActivity, merge


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def follow(units, model):
    """Hand each layer call of ``model`` to ``units``."""

    def on_call(call):
        units.layer_called(call.name, call.output, -1 if isinstance(call.layer, nn.Linear) else 1)

    return Capture(model, on_call)


def activity_of(model, *inputs):
    units = RectifierUnits()
    with follow(units, model), units.pass_() as activity:
        model(*inputs)
    return activity


def plain(activity):
    return {name: (a.never.tolist(), a.always.tolist()) for name, a in activity.items()}


def by_hand(notes):
    """Never and always of each layer, from (names, a rectifier's output, its units' dimension)."""
    values = {}
    for names, output, unit_dim in notes:
        rows = output.movedim(unit_dim, 0).reshape(output.shape[unit_dim], -1).tolist()
        for name in names:
            for unit, row in enumerate(rows):
                values.setdefault(name, {}).setdefault(unit, []).extend(row)
    return {
        name: (
            [all(value == 0 for value in row) for row in units.values()],
            [all(value > 0 for value in row) for row in units.values()],
        )
        for name, units in values.items()
    }


class Noting(nn.Module):
    """Keeps ``notes`` for the reference."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, output, *names, unit_dim=1):
        self.notes.append((names, output.detach().clone(), unit_dim))
        return output


class Perceptron(Noting):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.rectifier = nn.ReLU()

    def forward(self, x):
        x = self.note(self.rectifier(self.a(x)), "a", unit_dim=-1)
        return self.head(self.note(self.b(x).relu(), "b", unit_dim=-1))


class Normalised(Noting):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 5, 2)
        self.drop, self.head = nn.Dropout2d(0.3), nn.Linear(5, 3)

    def forward(self, x):
        x = self.note(functional.relu(self.norm(self.conv(x)), inplace=True), "conv")
        x = self.note(functional.relu6(functional.max_pool2d(self.drop(self.up(x)), 2)), "up")
        return self.head(x.mean((2, 3)))


class ResidualBlock(Noting):
    """A projection shortcut, and functional rectifiers in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.shortcut = nn.Conv2d(2, 5, 1)

    def forward(self, x):
        h = self.note(functional.relu(self.norm1(self.conv1(x))), "conv1")
        h = self.norm2(self.conv2(h))
        h += self.shortcut(x)
        return self.note(torch.relu_(h), "conv2", "shortcut").mean((1, 2, 3))


class PreActivation(Noting):
    """Every block of the stage reads what the earlier ones added to the stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x, before = self.stem(x), ["stem"]
        for k, conv in enumerate(self.convs):
            x = x + conv(self.note(functional.relu(self.norms[k](x)), *before))
            before.append(f"convs.{k}")
        return self.head(self.note(self.norms[2](x).clamp(min=0), *before).mean((2, 3)))


class Transformer(Noting):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True)
        self.encoder.activation = lambda x: self.note(
            functional.relu(x), "encoder.linear1", unit_dim=-1
        )

    def forward(self, x):
        return self.encoder(x).mean((1, 2))


class Shared(Noting):
    """One layer, called with a rectifier, without one, and with another."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x):
        x = self.note(functional.relu(self.layer(x)), "layer", unit_dim=-1)
        x = torch.tanh(self.layer(x))
        return self.note(functional.hardtanh(self.layer(x), 0, 0.5), "layer", unit_dim=-1)


class BothSigns(Noting):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        h = self.layer(x)
        parts = [self.note(torch.relu(part), "layer", unit_dim=-1) for part in (h, -h)]
        return torch.cat(parts, dim=-1)


MODELS = {
    "perceptron": (Perceptron, (7, 4)),
    "perceptron on positions": (Perceptron, (3, 2, 5, 4)),
    "normalised convolutions": (Normalised, (3, 2, 5, 5)),
    "residual block": (ResidualBlock, (3, 2, 4, 4)),
    "pre-activation": (PreActivation, (3, 2, 4, 4)),
    "transformer": (Transformer, (3, 5, 4)),
    "shared layer": (Shared, (6, 5)),
    "both signs": (BothSigns, (6, 4)),
}


def uneven(make):
    """A model whose parameters of the units spread so that some units die and some are full."""
    torch.manual_seed(3)
    model = make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.copy_(torch.linspace(-9, 9, len(module.bias)))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_units_are_those_of_the_recorded_activations(name):
    make, shape = MODELS[name]
    model = uneven(make)
    activity = activity_of(model, torch.randn(shape))
    assert plain(activity) == by_hand(model.notes)


def test_reference_cases_have_dying_full_and_other_units():
    kinds = set()
    for make, shape in MODELS.values():
        model = uneven(make)
        model(torch.randn(shape))
        for never, always in by_hand(model.notes).values():
            kinds |= set(zip(never, always, strict=True))
    assert kinds == {(True, False), (False, True), (False, False)}


def test_units_made_by_large_biases_are_counted():
    model = nn.Sequential(nn.Conv2d(2, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3))
    with torch.no_grad():
        model[0].bias[:3] = -1e3
        model[0].bias[3:5] = 1e3
        model[0].bias[5:] = 0
    activity = activity_of(model, torch.randn(64, 2, 4, 4))
    assert list(activity) == ["0"]  # no rectifier follows the head
    assert (activity["0"].dying, activity["0"].full) == (0.3, 0.2)


def test_layers_come_in_the_order_of_their_calls():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            first = self.first(x)
            return torch.relu(self.second(first)) + torch.relu(first)

    assert list(activity_of(Reversed(), torch.randn(4, 3))) == ["first", "second"]


RECTIFIERS = {
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda h: h.relu(),
    "Tensor.relu_": lambda h: h.relu_(),
    "relu": functional.relu,
    "relu by keyword": lambda h: functional.relu(input=h),
    "relu in place": lambda h: functional.relu(h, inplace=True),
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "relu6": functional.relu6,
    "ReLU6": nn.ReLU6(inplace=True),
    "hardtanh": lambda h: functional.hardtanh(h, min_val=0.0, max_val=4.0),
    "hardtanh_": lambda h: functional.hardtanh_(h, 0, 1),
    "Hardtanh": nn.Hardtanh(0, 2, inplace=True),
    "threshold": lambda h: functional.threshold(h, 0, 0),
    "torch.threshold": lambda h: torch.threshold(h, threshold=0, value=0),
    "threshold_": lambda h: torch.threshold_(h, 0, 0),
    "Threshold": nn.Threshold(0.0, 0.0, inplace=True),
    "clamp": lambda h: torch.clamp(h, min=0),
    "Tensor.clamp": lambda h: h.clamp(0.0, 3),
    "clamp_": lambda h: h.clamp_(min=0),
    "clip": lambda h: torch.clip(h, 0),
    "clamp_min": lambda h: h.clamp_min(0),
    "clamp_min_": lambda h: torch.clamp_min_(h, min=0.0),
}
OTHERS = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "tanh_": torch.tanh_,
    "leaky": nn.LeakyReLU(inplace=True),
    "elu": functional.elu,
    "hardtanh": functional.hardtanh,
    "hardtanh from 1": lambda h: functional.hardtanh(h, 1, 2),
    "threshold to 1": lambda h: functional.threshold(h, 0, 1),
    "threshold below 0": lambda h: functional.threshold(h, -1, 0),
    "clamp above": lambda h: h.clamp(max=0),
    "clamp to below 0": lambda h: h.clamp(0, -1),
    "clamp at a guard": lambda h: h.clamp(min=1e-6),
    "clamp from below 0": lambda h: h.clamp(-1, 1),
    "clamp at a tensor": lambda h: h.clamp(min=torch.zeros(())),
}
KEEPERS = {
    "identity": nn.Identity(),
    "add": lambda h: h + torch.ones(5),
    "radd": lambda h: 1 + h,
    "iadd": lambda h: h.__iadd__(1.0),
    "broadcast to more dimensions": lambda h: h + torch.zeros(3, 1, 1, 5),
    "sub": lambda h: h - 1,
    "rsub": lambda h: 1 - h,
    "mul": lambda h: 2 * h,
    "mul_": lambda h: h.mul_(torch.full((4, 1), 0.5)),
    "div": lambda h: h / 2,
    "neg": lambda h: -h,
    "out": lambda h: torch.add(h, 1, out=torch.empty(0)),
    "dropout": lambda h: functional.dropout(h, 0.5),
    "dropout in place": nn.Dropout(0.5, inplace=True),
    "alpha dropout": nn.AlphaDropout(0.5),
    "batch norm": nn.BatchNorm1d(5),
    "layer norm": nn.LayerNorm(5),
    "group norm": lambda h: functional.group_norm(h, 5),
    "rms norm": nn.RMSNorm(5),
    "normalize": functional.normalize,
    "to": lambda h: h.to(torch.bfloat16),
    "double": lambda h: h.double(),
    "type_as": lambda h: h.type_as(torch.zeros(1, dtype=torch.float64)),
    "contiguous": lambda h: h.contiguous(),
    "clone": lambda h: h.clone(),
    "masked_fill": lambda h: h.masked_fill(torch.eye(4, 5, dtype=torch.bool), 0),
}
ENDERS = {
    "transpose": lambda h: h.t(),
    "reshape": lambda h: h.reshape(2, 10),
    "index": lambda h: h[:, [1, 0, 2, 3, 4]],
    "cat": lambda h: torch.cat([h, h], dim=-1),
    "flip": lambda h: h.flip(-1),
    "pooled units": lambda h: functional.max_pool1d(h, 3, stride=1, padding=1),
    "units spread": lambda h: h[:, :, None] + torch.zeros(4, 5, 5),
    "sparse": lambda h: h * torch.eye(4, 5).to_sparse(),
    "a view written to": lambda h: (h.view(20).tanh_(), h)[1],
    "an assignment": lambda h: (h.__setitem__(0, torch.randn(5)), h)[1],
    "written to by out=": lambda h: torch.tanh(torch.randn(4, 5), out=h),
}


class One(Noting):
    """One layer of five units, a way and a rectifier."""

    def __init__(self, way, rectifier):
        super().__init__()
        self.layer, self.way, self.rectifier = nn.Linear(3, 5), way, rectifier

    def forward(self, x):
        with torch.no_grad():  # so that anything may be written to
            return self.note(self.rectifier(self.way(self.layer(x))), "layer", unit_dim=-1)


@pytest.mark.parametrize("rectifier", RECTIFIERS.values(), ids=RECTIFIERS)
def test_every_spelling_of_a_rectifier_is_seen(rectifier):
    model = uneven(lambda: One(nn.Identity(), rectifier))
    activity = activity_of(model, torch.randn(4, 3))
    assert plain(activity) == by_hand(model.notes)
    assert activity["layer"].dying > 0
    assert activity["layer"].full > 0


@pytest.mark.parametrize("activation", OTHERS.values(), ids=OTHERS)
def test_activations_that_are_no_rectifiers_give_no_result(activation):
    assert activity_of(One(nn.Identity(), activation), torch.randn(4, 3)) == {}


@pytest.mark.parametrize("activation", OTHERS.values(), ids=OTHERS)
def test_the_way_ends_at_another_activation(activation):
    assert activity_of(One(activation, torch.relu), torch.randn(4, 3)) == {}


def test_the_way_ends_at_a_rectifier():
    model = uneven(lambda: One(torch.relu, lambda h: functional.relu(h + 100.0)))
    activity = activity_of(model, torch.randn(4, 3))
    assert activity["layer"].dying > 0  # by the first; the second lets all pass


@pytest.mark.parametrize("way", KEEPERS.values(), ids=KEEPERS)
def test_units_are_followed_through_what_leaves_them_in_place(way):
    model = uneven(lambda: One(way, functional.relu))
    activity = activity_of(model, torch.randn(4, 3))
    assert plain(activity) == by_hand(model.notes)
    assert list(activity) == ["layer"]


@pytest.mark.parametrize("way", ENDERS.values(), ids=ENDERS)
def test_what_moves_or_overwrites_units_ends_the_way(way):
    assert activity_of(One(way, functional.relu), torch.randn(4, 3)) == {}


def test_one_unit_spread_over_several_ends_the_way():
    model = nn.Sequential(nn.Linear(3, 1), nn.Identity(), nn.ReLU())
    model[1].forward = lambda h: h * torch.ones(5)
    assert activity_of(model, torch.randn(4, 3)) == {}


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_pooling_over_positions_keeps_channels(dimensions):
    convolution = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1](2, 5, 1)
    for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg"):
        pool = getattr(nn, f"{kind}Pool{dimensions}d")(2)
        model = uneven(lambda pool=pool: nn.Sequential(convolution, pool, nn.ReLU()))
        x = torch.randn(3, 2, *[4] * dimensions)
        expected = by_hand([(("0",), model(x), 1)])
        assert plain(activity_of(model, x)) == expected


def test_both_layers_of_a_product_count():
    class Modulated(Noting):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            product = self.scale(x) * self.layer(x)
            return self.note(torch.relu(product), "scale", "layer", unit_dim=-1)

    model = uneven(Modulated)
    assert plain(activity_of(model, torch.randn(5, 3))) == by_hand(model.notes)


def test_nan_units_are_neither_dying_nor_full():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([float("nan"), -99.0, 99.0]))
    activity = activity_of(model, torch.rand(4, 2))["0"]
    assert activity.never.tolist() == [False, True, False]
    assert activity.always.tolist() == [False, False, True]


def test_an_empty_batch_says_nothing():
    assert activity_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.empty(0, 2)) == {}


@pytest.mark.parametrize(
    "shape", [(6,), (5, 6), (5, 1), (3, 4, 6), (3, 5, 2, 3), (3, 40, 2, 2), (3, 1, 2, 2)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_layout_is_reduced_over_all_but_the_units(shape, channels_last):
    torch.manual_seed(1)
    unit_dim = 1 if len(shape) == 4 else -1
    h = torch.randn(shape).movedim(unit_dim, -1)
    h = (h + torch.linspace(-9, 9, h.shape[-1])).movedim(-1, unit_dim)
    if channels_last and len(shape) == 4:
        h = h.contiguous(memory_format=torch.channels_last)
    units = RectifierUnits()
    with units.pass_() as activity:
        units.layer_called("h", h, unit_dim)
        y = torch.relu(h)
    assert plain(activity) == by_hand([(("h",), y, unit_dim)])


def test_merged_passes_equal_one_pass_over_all_samples():
    model = uneven(Perceptron)
    x = 4 * torch.randn(12, 4)
    whole = activity_of(model, x)
    parts = [activity_of(model, part) for part in x.split(2)]
    assert plain(merge(parts)) == plain(whole)
    assert any(plain(part) != plain(whole) for part in parts)


def test_a_pass_without_a_layer_says_nothing_about_it():
    some = UnitActivity(torch.tensor([True]), torch.tensor([False]))
    assert plain(merge([{"a": some}, {}, {"b": some}])) == plain({"a": some, "b": some})
    assert merge([]) == {}


# It takes part in anything that a model does


class Checkpointed(Noting):
    def __init__(self, use_reentrant):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 6))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        x = self.note(torch.relu(self.stem(x)), "stem")
        body = checkpoint(self.body, x, use_reentrant=self.use_reentrant)
        return self.head(self.note(torch.relu(body), "body.2"))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    model = uneven(lambda: Checkpointed(use_reentrant))
    x = torch.randn(5, 4)
    units = RectifierUnits()
    with follow(units, model):
        with units.pass_() as activity:
            loss = model(x).sum()
        before = plain(activity)
        loss.backward()  # runs the body again
    hidden = model.body[:2](model.notes[0][1])
    model.notes.append((("body.0",), hidden, 1))
    assert plain(activity) == before == by_hand(model.notes)
    assert list(activity) == ["stem", "body.0", "body.2"]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.mul(x, 2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_custom_functions_are_seen_from_within():
    assert list(activity_of(One(Double.apply, torch.relu), torch.randn(4, 3))) == ["layer"]


def test_backward_hooks_do_not_hide_a_layer():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4)), nn.ReLU())
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    x = torch.randn(5, 3, requires_grad=True)
    assert list(activity_of(model, x)) == ["0.0"]


class Awkward(nn.Module):
    """Submodules of every awkward kind, with a rectifier at the end."""

    def __init__(self):
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.compiled = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
        self.complex = nn.Linear(4, 4, dtype=torch.complex64)
        self.head = nn.Linear(4, 4)
        with warnings.catch_warnings(action="ignore"):  # TorchScript announces its end
            self.scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x):
        x = functional.dropout(torch.relu(self.normed(x)), 0.2)
        x = x + self.attention(x, x, x)[0]
        x = self.encoder(self.recurrent(x)[0])
        x = self.compiled(self.scripted(x))
        x = x + self.complex(x.to(torch.complex64)).abs().to(x.dtype)
        return torch.relu_(self.head(x))


def state_after(model, x, watch, dtype=None):
    """All that a step of training makes or changes, bit by bit."""
    torch.manual_seed(5)
    units = RectifierUnits()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        if watch:
            with follow(units, model), units.pass_() as activity:
                output = model(x)
            assert activity
        else:
            output = model(x)
    output.float().square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [output, *gradients, *model.buffers(), torch.get_rng_state()]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", [*MODELS, "awkward"])
def test_nothing_is_changed(name, dtype):
    make, shape = {**MODELS, "awkward": (Awkward, (3, 5, 4))}[name]
    x = torch.randn(shape)
    with torch.compiler.set_stance("force_eager"):
        plainly, watched = (state_after(uneven(make), x, watch, dtype) for watch in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plainly, watched, strict=True))
    assert {type(tensor) for tensor in watched} == {torch.Tensor}


def test_layers_within_awkward_company_are_measured():
    with torch.compiler.set_stance("force_eager"):
        activity = activity_of(Awkward(), torch.randn(3, 5, 4))
    assert list(activity) == ["normed", "encoder.linear1", "compiled._orig_mod.0", "head"]


def test_without_gradients():
    model = uneven(Perceptron)
    with torch.no_grad():
        activity = activity_of(model, torch.randn(5, 4))
    assert plain(activity) == by_hand(model.notes)


def test_inference_tensors_are_left_alone():
    with torch.inference_mode():
        assert activity_of(Perceptron(), torch.randn(5, 4)) == {}


def test_mapped_functions_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    units = RectifierUnits()
    with follow(units, model), units.pass_() as activity:
        torch.vmap(model)(torch.randn(3, 5, 4))
    assert activity == {}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_left_alone(layout):
    x = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    units = RectifierUnits()
    with units.pass_() as activity:
        h = model[0](x)
        units.layer_called("0", h, -1)
        torch.relu(h + h)
    assert activity == {}


class Logged(torch.Tensor):
    """A subclass that notes what is called with it."""

    calls: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensor_subclasses_see_no_other_calls():
    def logged(watch):
        units = RectifierUnits()
        h = torch.linspace(-1, 1, 12).view(4, 3).as_subclass(Logged)
        Logged.calls.clear()
        if watch:
            with units.pass_() as activity:
                units.layer_called("h", h, -1)
                y = torch.relu(h * 2)
            assert list(activity) == ["h"]
            assert type(activity["h"].never) is torch.Tensor
        else:
            y = torch.relu(h * 2)
        assert type(y) is Logged
        return list(Logged.calls)

    assert logged(watch=True) == logged(watch=False)


# Passes begin and end in any way


class Counting(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **kwargs or {})


def begin(units, h):
    units.start()
    units.layer_called("h", h, -1)
    return h


def test_other_modes_stay_where_they_were():
    outer, inner = Counting(), Counting()
    units, h = RectifierUnits(), torch.randn(3, 4)
    with outer:
        begin(units, h)
        with inner:
            torch.relu(h)
            activity = units.stop()  # before the mode that was entered after it
            assert _get_current_function_mode_stack() == [outer, inner]
            torch.relu(h)
        assert _get_current_function_mode_stack() == [outer]
    assert list(activity) == ["h"]
    assert inner.calls == 2
    assert outer.calls >= 2
    assert _get_current_function_mode_stack() == []


def test_two_measurements_do_not_disturb_each_other():
    model, x = uneven(Perceptron), torch.randn(5, 4)
    one, two = RectifierUnits(), RectifierUnits()
    with follow(one, model), follow(two, model), one.pass_() as first, two.pass_() as second:
        model(x)
    assert plain(first) == plain(second) == by_hand(model.notes)


def test_under_a_default_device():
    model = uneven(Perceptron)
    with torch.device("cpu"):
        activity = activity_of(model, torch.randn(5, 4))
    assert plain(activity) == by_hand(model.notes)


def test_a_pass_within_a_pass_is_a_part_of_it():
    units, h = RectifierUnits(), torch.tensor([[-1.0, 0.0, 1.0]])
    begin(units, h)
    units.start()
    torch.relu(h)
    assert units.stop() == {}
    torch.relu(-h)
    assert plain(units.stop()) == {"h": ([False, True, False], [False, False, False])}
    assert _get_current_function_mode_stack() == []


def test_stop_without_start_is_empty():
    units = RectifierUnits()
    assert units.stop() == {}
    begin(units, torch.ones(1, 2))
    assert units.stop() == {}
    begin(units, h := torch.ones(1, 2))
    torch.relu(h)
    assert list(units.stop()) == ["h"]


def test_an_error_in_the_model_ends_the_pass():
    units, model = RectifierUnits(), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(3, 2))
    model.register_forward_pre_hook(lambda *_: units.start())
    model.register_forward_hook(lambda *_: units.stop() and None, always_call=True)
    for _ in range(2):
        with follow(units, model), pytest.raises(RuntimeError, match="shapes"):
            model(torch.ones(1, 2))
        assert _get_current_function_mode_stack() == []
    with pytest.raises(RuntimeError, match="shapes"), units.pass_():
        model(torch.ones(1, 2))
    assert _get_current_function_mode_stack() == []


def test_discard_ends_all_passes_without_a_result():
    units, h = RectifierUnits(), torch.ones(1, 2)
    begin(units, h)
    begin(units, h)
    torch.relu(h)
    units.discard()
    assert _get_current_function_mode_stack() == []
    assert units.stop() == {}
    units.start()
    assert units.stop() == {}  # nothing is left of it


def test_calls_outside_a_pass_have_no_effect():
    units, h = RectifierUnits(), torch.ones(1, 2)
    units.layer_called("h", h, -1)
    with units.pass_() as activity:
        torch.relu(h)
    assert activity == {}


def test_a_pass_ended_in_another_thread_sees_no_more():
    units, h = RectifierUnits(), torch.ones(1, 2)
    begin(units, h)
    torch.relu(h)
    results = []
    thread = threading.Thread(target=lambda: results.append(units.stop()))
    thread.start()
    thread.join()
    [left] = _get_current_function_mode_stack()
    torch.relu(h)
    assert list(results[0]) == ["h"]
    left.__exit__(None, None, None)


def test_activations_are_not_kept_alive():
    units = RectifierUnits()
    gc.disable()
    try:
        with units.pass_() as activity:
            memory = np.ones((2, 3), dtype=np.float32)
            h = torch.from_numpy(memory)
            units.layer_called("h", h, -1)
            followed = h.mul_(2)
            y = torch.relu_(followed)
            assert y is h
            left = [weakref.ref(memory), weakref.ref(h)]
            del memory, h, followed, y
            assert [reference() for reference in left] == [None, None]
        assert list(activity) == ["h"]
    finally:
        gc.enable()


def test_results_wait_for_no_one():
    """On the meta device nothing can be read; only shares are."""
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.ReLU6()).to("meta")
    units = RectifierUnits()
    with units.pass_() as activity:
        h = model[0](torch.ones(1, 2, 3, 3, device="meta"))
        units.layer_called("0", h, 1)
        torch.relu(h), torch.relu(-h)
    assert activity["0"].never.is_meta
    assert merge([activity, activity])["0"].always.shape == (4,)
