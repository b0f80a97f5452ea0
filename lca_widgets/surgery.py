"""Changes to a user's model: a normalisation before its classifier, rescaled or frozen layers."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import Node
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from lca_widgets._checks import require_in_range, require_one_of
from lca_widgets.curvature import row_spectrum, supported_layers
from lca_widgets.curvature.capture import Convolution, Layer
from lca_widgets.curvature.moments import sum_dtype
from lca_widgets.curvature.passes import batches, run, undisturbed

__all__ = [
    "Divide",
    "FinalNorm",
    "add_final_norm",
    "changes",
    "freeze",
    "rescale_",
]

FinalNorm = Literal["batch", "layer", "scale"]
Normalisation: TypeAlias = _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm

INPUT_NORM = "input_norm"  # what the normalisation is called in the layer
NAMED = ", named as the classifier"

logger = logging.getLogger(__name__)


class Divide(nn.Module):
    """Divides by a constant, which is saved with the model.

    Args:
        divisor: The constant c: the output is x / c.

    Example:
        >>> Divide(4.0)(torch.tensor([2.0]))
        tensor([0.5000])
    """

    divisor: Tensor

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.register_buffer("divisor", torch.tensor(float(divisor)))

    def forward(self, x: Tensor) -> Tensor:
        """Return x / c."""
        return x / self.divisor

    def extra_repr(self) -> str:
        """Show the constant."""
        return "meta" if self.divisor.is_meta else f"{self.divisor.item():.6g}"


def add_final_norm(
    model: nn.Module,
    kind: FinalNorm,
    inputs: Any = None,
    divisor: float | None = None,
    *,
    classifier: str | None = None,
) -> nn.Module:
    """Return a copy of a model whose classifier's input is normalised.

    The classifier is the linear or convolution layer whose output the model returns, as it is or
    reshaped, sliced, cast, dropped out, multiplied by a constant, pooled, or through a softmax or
    another function of each output. It is found by following the model's operations backwards, not
    by its name. Where the model returns something with ``logits``, these are followed.

    ``"batch"`` puts a ``BatchNorm1d`` (for a convolution ``BatchNorm2d`` or the like) before it and
    ``"layer"`` a ``LayerNorm`` over its features (the channels at each position), both as PyTorch
    initialises them. ``"scale"`` divides by a constant c that leaves the input the largest
    eigenvalue that batch normalisation would give it (x̂), and its κ unchanged::

        c = sqrt(λ_max(Σ_x) / λ_max(Σ_x̂))

    The normalisation becomes a part of the layer, ``input_norm``, and a forward pre-hook applies it
    (as with torch's own ``prune``; ``torch.jit.script`` does not take such hooks). So the layer
    keeps its name, type and ties, and the state dictionary its keys: there are ``fc.input_norm.…``
    more, for a layer ``fc``, and one of the unchanged model loads with ``strict=False``. Replace
    the layer (``resize_token_embeddings``) before, not after: its normalisation would go with it.
    The copy's parameters are its own: make the optimiser for them. What was done is logged, and
    told by `changes`.

    Args:
        model: Any module; it is left as it is.
        kind: ``"batch"``, ``"layer"`` or ``"scale"``.
        inputs: Inputs of a batch, see `curvature.passes.run`: the copy is run once, in its present
            mode, to find the classifier and to measure c (which grows or falls with the number of
            samples where they are few: take a batch of the training's size). Without them torch.fx
            traces the model, which not every model allows.
        divisor: The constant c of ``"scale"``, in place of the one that is measured.
        classifier: Name of the layer, where it cannot be found or another one is meant.

    Returns:
        The changed copy, on the same device and in the same mode. A dropout right before the layer
        comes before the normalisation.

    Raises:
        TypeError: ``model`` is no module, or ``divisor`` no number.
        ValueError: an unknown kind or layer; no classifier or several; a classifier that is called
            several times, has an ``input_norm`` already, or gets its input straight from such a
            normalisation; a wrapped, compiled or scripted model; a model that torch.fx cannot
            trace, without inputs; neither inputs nor divisor for ``"scale"``, or inputs that
            cannot be batch-normalised.

    Source:
        ``"batch"``: ResNet_LastBN of Huang et al. (2020).

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> changed = add_final_norm(model, "batch")
        >>> [change] = changes(changed)
        >>> change  # doctest: +NORMALIZE_WHITESPACE
        "put BatchNorm1d(64) before '2', Linear(64 → 10), found by torch.fx as the layer whose
        output the model returns"
        >>> list(dict(changed[2].named_parameters()))
        ['weight', 'bias', 'input_norm.weight', 'input_norm.bias']
    """
    require_one_of("kind", kind, get_args(FinalNorm))
    _require_divisor(kind, inputs, divisor)
    _require_plain(model)
    layers = supported_layers(model)
    if classifier is not None and classifier not in layers:
        raise ValueError(
            f"classifier must be among {', '.join(map(repr, layers))}; got {classifier!r}"
        )
    changed = copy.deepcopy(model)
    found = _find(changed, inputs, classifier)
    if found.norm and kind == found.norm.kind and classifier is None:
        raise ValueError(
            f"the input of the classifier {found.name!r} already comes straight from "
            f"{found.norm}: a second one of its kind would change nothing; pass another kind, or "
            f"classifier={found.name!r} if you want it nonetheless"
        )
    layer = supported_layers(changed)[found.name]
    if hasattr(layer, INPUT_NORM):
        raise ValueError(
            f"the classifier {found.name!r} already has an {INPUT_NORM}, {layer.input_norm}: pass "
            "the model that it was added to"
        )
    norm, words = _normalisation(kind, layer, found.rows, divisor)
    weight = layer.weight
    norm.to(weight.device, weight.dtype if weight.is_floating_point() else None)
    norm.train(layer.training)
    place = repr(found.name) if found.name else "the model itself"
    change = f"put {words} before {place}, {_shape(layer)}{found.how}"
    if found.norm:
        change += f"; its input comes straight from {found.norm}"
    layer.add_module(INPUT_NORM, norm)
    layer.register_forward_pre_hook(_NormalisedInput(change), with_kwargs=True)
    logger.info(change)
    return changed


def changes(model: nn.Module) -> list[str]:
    """Say what `add_final_norm` did to a model, or to what it was copied or loaded from.

    Example:
        >>> changes(add_final_norm(nn.Linear(4, 2), "scale", divisor=3.0))
        ['put a division by 3 (as given) before the model itself, Linear(4 → 2)']
    """
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return [hook.change for hook in hooks if isinstance(hook, _NormalisedInput)]


def rescale_(layer: nn.Module, a: float, norm: nn.Module | None = None) -> None:
    """Multiply a layer's weight and bias by a > 0, in place.

    A normalisation behind the layer takes the factor out again, except for its ε: it divides by
    √(a²σ² + ε) where √(a²(σ² + ε)) would be exact, which changes its output by the relative amount
    ``ε/2σ²·(1 − 1/a²)``, as long as that is small. With ``norm`` its ε is multiplied by a², the
    running mean by a and the running variance by a²: then the network computes the same function
    in train and in eval mode, bit for bit where a is a power of two, else to rounding. Without it,
    batch normalisation in eval mode still divides by the statistics of the old weights. Nothing
    but that normalisation may read the layer's output.

    ``.grad`` and the state of an optimiser (momentum) are not touched, and belong to the old scale.
    A weight that another layer shares is multiplied for that one too.

    Args:
        layer: A linear or convolution layer.
        a: The factor; a negative one would not go through the ReLU behind the normalisation.
        norm: The normalisation that takes the layer's output.

    Raises:
        TypeError: ``layer`` or ``norm`` is of another class, or ``a`` no number.
        ValueError: ``a`` is not above zero or not finite, or takes values out of the range of their
            type; the weight is computed from others (a parametrisation); ``norm`` has another
            number of features than the layer, or no ε of its own.

    Source:
        derived.

    Example:
        >>> layer, norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        >>> x = torch.randn(8, 3)
        >>> before = norm(layer(x))
        >>> rescale_(layer, 1024, norm)
        >>> torch.equal(norm(layer(x)), before)
        True
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a linear or convolution layer, got {type(layer).__name__}")
    require_in_range("a", a, low=0, open_low=True)
    computed = [name for name in ("weight", "bias") if _is_computed(layer, name)]
    if computed:
        raise ValueError(
            f"layer has a {' and a '.join(computed)} computed from other parameters: rescale "
            "those, or take the parametrisation off first (torch.nn.utils.parametrize."
            "remove_parametrizations)"
        )
    following = None if norm is None else _following(norm, layer)
    eps = None if following is None else _rescaled_eps(following.eps, a)
    updates = [
        (layer.weight, a),
        (layer.bias, a),
        (getattr(norm, "running_mean", None), a),
        (getattr(norm, "running_var", None), a * a),
    ]
    with torch.no_grad():
        products = [
            (value, _in_range(value * factor, value, a))
            for value, factor in updates
            if value is not None
        ]
        for value, product in products:
            value.copy_(product)
    if following is not None and eps is not None:
        following.eps = eps


def freeze(model: nn.Module, layers: str | Collection[str]) -> list[str]:
    """Choose which linear and convolution layers are trained.

    Freezing a layer turns off ``requires_grad`` of its weight and bias and drops their ``.grad``,
    which an optimiser would go on using: it leaves parameters without one alone, whatever its
    momentum and weight decay. Normalisations and embeddings are trained as before, except that a
    weight tied to a frozen layer's is frozen with it. Freeze before wrapping a model in
    DistributedDataParallel.

    Args:
        model: Any module.
        layers: A string with a digit for each layer, in the order of `curvature.supported_layers`:
            0 freezes the layer and 1 has it trained, so that ``"01111"`` freezes the first of five
            only. Or a collection of names: those are frozen, and the others left as they are.

    Returns:
        Names of all the layers that are frozen now.

    Raises:
        TypeError: ``layers`` is neither a string nor a collection of names.
        ValueError: a name that is no layer's; a string of other characters than 0 and 1, or of
            another length; a layer to freeze that shares its weight with one to train.

    Source:
        Huang et al. (2020), whose experiments are named by such digits.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> freeze(model, "01")
        ['0']
        >>> freeze(model, ["2"])
        ['0', '2']
    """
    found = supported_layers(model)
    trained = _trained(found, layers)
    parameters: dict[nn.Parameter, tuple[str, bool]] = {}
    for name, train in trained.items():
        for parameter in _own_parameters(found[name]):
            other, trained_there = parameters.setdefault(parameter, (name, train))
            if trained_there != train:
                raise ValueError(
                    f"layers {other!r} and {name!r} share a parameter: one cannot be frozen and "
                    "the other trained"
                )
    for parameter, (_, train) in parameters.items():
        if parameter.is_floating_point():
            parameter.requires_grad_(train)
        if not train:
            parameter.grad = None
    return [
        name
        for name, layer in found.items()
        if not any(parameter.requires_grad for parameter in _own_parameters(layer))
    ]


@dataclass(frozen=True)
class _NormalisedInput:
    """The hook that applies a layer's normalisation to its input; part of copies and pickles.

    Attributes:
        change: What `add_final_norm` did, in words.
    """

    change: str

    def __call__(
        self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (_normalised(layer, args[0]), *args[1:]), kwargs
        return args, kwargs | {"input": _normalised(layer, kwargs["input"])}


def _normalised(layer: Layer, x: Tensor) -> Tensor:
    norm = layer.input_norm
    assert isinstance(norm, nn.Module)
    linear = isinstance(layer, nn.Linear)
    if linear and not isinstance(norm, nn.LayerNorm | Divide):
        # Batch normalisation would take the second of several dimensions for the features.
        return norm(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    if not linear and isinstance(norm, nn.LayerNorm):
        return norm(x.movedim(1, -1)).movedim(-1, 1)
    return norm(x)


@dataclass(frozen=True)
class _Norm:
    """A normalisation that was met, and the module that it happened in."""

    operation: str  # "BatchNorm", say
    module: str

    @property
    def kind(self) -> str:
        return self.operation.removesuffix("Norm").lower()

    def __str__(self) -> str:
        return f"{self.module!r} ({self.operation})" if self.module else f"a {self.operation}"


@dataclass(frozen=True, eq=False)
class _Found:
    """A classifier, and how it was found.

    Attributes:
        name: Its qualified name.
        how: How it was found, to end a sentence with.
        norm: What its input comes straight from.
        rows: Its inputs, one row a sample and position, where the model was run.
    """

    name: str
    how: str = ""
    norm: _Norm | None = None
    rows: Tensor | None = None


Point = TypeVar("Point")


class _Trace(Protocol[Point]):
    """A model's operations, as points to be followed backwards from its output."""

    def outputs(self) -> list[Point]:
        """Where each tensor that the model returns was made."""

    def inputs(self, layer: str) -> list[Point]:
        """Where the input of each of the layer's calls was made."""

    def layer(self, point: Point) -> str | None:
        """Name of the layer whose output this is."""

    def module(self, point: Point) -> str | None:
        """Name of the innermost module whose output this is."""

    def operation(self, point: Point) -> str:
        """What made it: the name of a function, of a module's class or of an autograd node."""

    def operands(self, point: Point) -> list[Point]:
        """What it was made from."""


# Operations by their names in torch, torch.nn and autograd, in lower case without underscores.
_PRODUCTS = {"mul", "div", "truediv"}
_SHAPING = _PRODUCTS | {
    "alias", "asstrided", "bfloat16", "clone", "contiguous", "double", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "featuredropout", "flatten", "float", "getitem", "half", "identity",
    "index", "movedim", "nativedropout", "permute", "reshape", "reshapealias", "select", "slice",
    "split", "splitwithsizes", "squeeze", "swapaxes", "t", "to", "tocopy", "transpose", "type",
    "unbind", "unflatten", "unsafeview", "unsqueeze", "view",
}  # fmt: skip
_POINTWISE = {
    "hardtanh", "logsigmoid", "logsoftmax", "relu", "relu6", "sigmoid", "softmax", "softplus",
    "tanh",
}  # fmt: skip
_POOLING = re.compile(
    r"(adaptive)?(avg|max)pool\dd(withindices)?|mean|sum|amax|interpolate|upsample.*"
)
_NORMS = re.compile(r".*?(batch|layer|group|instance|rms)norm")
_NORM_NAMES = {"rms": "RMSNorm"}


def _find(model: nn.Module, inputs: Any, name: str | None) -> _Found:
    """Find the classifier; ``model`` is a copy, which may be run and is put back."""
    if inputs is None and name is not None:
        return _Found(name, NAMED)
    if isinstance(model, Layer):
        rows = None if inputs is None else _rows(model, _run(model, inputs).values[""])
        return _Found("", rows=rows)
    if inputs is None:
        return _followed(_symbolic(model), None, "torch.fx")
    trace = _run(model, inputs)
    found = _followed(trace, name, "a run of the model")
    rows = _rows(supported_layers(model)[found.name], trace.values[found.name])
    return replace(found, rows=rows)


def _followed(trace: _Trace[Point], name: str | None, tool: str) -> _Found:
    """Follow the model's output back to its layer, and that one's input to a normalisation."""
    how = NAMED
    if name is None:
        name = _last_layer(trace)
        how = f", found by {tool} as the layer whose output the model returns"
    calls = trace.inputs(name)
    if len(calls) != 1:
        raise ValueError(
            f"the classifier {name!r} is called {len(calls)} times in a pass: a normalisation in "
            "front of it must see one call; name another layer with classifier="
        )
    return _Found(name, how, _norm_before(trace, calls[0]))


def _last_layer(trace: _Trace[Point]) -> str:
    found: dict[str, None] = {}
    stops: dict[str, None] = {}
    for point in trace.outputs():
        while (name := trace.layer(point)) is None:
            operand = _kept(trace, point, final=True)
            if operand is None:
                stops[trace.operation(point)] = None
                break
            point = operand
        else:
            found[name] = None
    if len(found) == 1:
        return next(iter(found))
    if found:
        raise ValueError(
            f"model returns the outputs of several layers, {', '.join(map(repr, found))}: name "
            "the one to put a normalisation before with classifier="
        )
    origin = f"comes from {', '.join(stops)}" if stops else "holds no tensor with a gradient"
    raise ValueError(
        f"no linear or convolution layer gives the model's output, which {origin}: a classifier "
        "that is no such module (a product with a weight, say) cannot be found; name the layer to "
        "put a normalisation before with classifier="
    )


def _norm_before(trace: _Trace[Point], point: Point) -> _Norm | None:
    module = ""
    while True:
        module = trace.module(point) or module
        if match := _NORMS.match(_plain(trace.operation(point))):
            return _Norm(_NORM_NAMES.get(match[1], f"{match[1].capitalize()}Norm"), module)
        operand = _kept(trace, point, final=False)
        if operand is None:
            return None
        point = operand


def _kept(trace: _Trace[Point], point: Point, *, final: bool) -> Point | None:
    """What an operation took its values from, if it keeps them; the final ones may do more."""
    operation = _plain(trace.operation(point))
    known = operation in _SHAPING or (
        final and (operation in _POINTWISE or bool(_POOLING.fullmatch(operation)))
    )
    operands = trace.operands(point)
    if not known or not operands or (operation in _PRODUCTS and len(operands) > 1):
        return None
    return operands[0]  # what else there is tells sizes


def _plain(operation: str) -> str:
    return re.sub(r"Backward\d*$", "", operation).replace("_", "").lower()


@dataclass(eq=False)
class _Run:
    """One pass of a model, as autograd recorded it."""

    results: list[Tensor]
    layers: dict[Node, str] = field(default_factory=dict)
    modules: dict[Node, str] = field(default_factory=dict)
    values: dict[str, list[Tensor]] = field(default_factory=dict)

    def outputs(self) -> list[Node | None]:
        return [value.grad_fn for value in self.results if value.grad_fn is not None]

    def inputs(self, layer: str) -> list[Node | None]:
        return [value.grad_fn for value in self.values.get(layer, [])]

    def layer(self, point: Node | None) -> str | None:
        return None if point is None else self.layers.get(point)

    def module(self, point: Node | None) -> str | None:
        return None if point is None else self.modules.get(point)

    def operation(self, point: Node | None) -> str:
        return "the data" if point is None else point.name()

    def operands(self, point: Node | None) -> list[Node | None]:
        following = [] if point is None else point.next_functions
        return [node for node, _ in following if node is not None]

    def see(self, name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        """Take note of a module's call; those of the modules within it came before."""
        if isinstance(module, Layer):
            self.values.setdefault(name, []).append(x)
            if output.grad_fn is not None:
                self.layers.setdefault(output.grad_fn, name)
        if output.grad_fn is not None:
            self.modules.setdefault(output.grad_fn, name)


def _run(model: nn.Module, inputs: Any) -> _Run:
    """Run a model once, with hooks on all of its modules."""
    trace = _Run([])

    def hook(name: str) -> Any:
        def see(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            values = [*args, *kwargs.values()]
            if isinstance(output, Tensor):
                trace.see(name, module, values[0] if values else output, output)

        return see

    [(inputs, _)] = batches((inputs, None), model)
    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        with undisturbed(model), _all_trainable(model):
            trace.results.extend(_results(run(model, inputs), Tensor))
    finally:
        for handle in handles:
            handle.remove()
    return trace


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Let autograd record frozen layers too."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class _Tracer(fx.Tracer):
    """Keeps the layers whole, whoever derived them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True, eq=False)
class _Symbols:
    """A model's operations, as torch.fx traced them."""

    model: nn.Module
    graph: fx.Graph

    def outputs(self) -> list[fx.Node]:
        [end] = (node for node in self.graph.nodes if node.op == "output")
        output = end.args[0]
        if isinstance(output, fx.Node) and isinstance(output.target, type):  # a named tuple, say
            signature = inspect.signature(output.target)
            output = signature.bind(*output.args, **output.kwargs).arguments
        return list(_results(output, fx.Node))

    def inputs(self, layer: str) -> list[fx.Node]:
        calls = [node for node in self.graph.nodes if self.layer(node) == layer]
        return [node.all_input_nodes[0] for node in calls]

    def layer(self, point: fx.Node) -> str | None:
        module = self._called(point)
        return str(point.target) if isinstance(module, Layer) else None

    def module(self, point: fx.Node) -> str | None:
        stack = list(point.meta.get("nn_module_stack", {}).values())
        return stack[-1][0] if stack else None

    def operation(self, point: fx.Node) -> str:
        module = self._called(point)
        if module is not None:
            return type(module).__name__
        return getattr(point.target, "__name__", str(point.target))

    def operands(self, point: fx.Node) -> list[fx.Node]:
        return point.all_input_nodes

    def _called(self, point: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(point.target)) if point.op == "call_module" else None


def _symbolic(model: nn.Module) -> _Symbols:
    try:
        with undisturbed(model):  # what torch.fx does not take for a symbol is computed
            return _Symbols(model, _Tracer().trace(model))
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}); pass "
            "a batch as inputs=, which the model is run on once"
        ) from error


Result = TypeVar("Result")


def _results(output: Any, kind: type[Result]) -> Iterator[Result]:
    """Yield the tensors (or their symbols) in a model's output; of one with logits only these."""
    if isinstance(output, kind):
        yield output
    elif isinstance(logits := _logits(output), kind):
        yield logits
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _results(part, kind)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _results(part, kind)


def _logits(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("logits")
    return getattr(output, "logits", None)


def _rows(layer: Layer, calls: Sequence[Tensor]) -> Tensor:
    """The inputs of a layer's call, shape ``[n, d]``."""
    x = calls[0].detach()
    if isinstance(layer, Convolution):
        x = x.movedim(-1 - len(layer.kernel_size), -1)
    return x.reshape(-1, x.shape[-1])


def _normalisation(
    kind: FinalNorm, layer: Layer, rows: Tensor | None, divisor: float | None
) -> tuple[nn.Module, str]:
    """The normalisation of a classifier's input, and what it is in words."""
    d = _features(layer)[0]
    norm: nn.Module
    if kind == "scale":
        if divisor is not None:
            return Divide(divisor), f"a division by {divisor:.6g} (as given)"
        assert rows is not None
        raw, normalised = _largest_eigenvalues(rows)
        c = math.sqrt(raw / normalised)
        return Divide(c), (
            f"a division by {c:.6g} (λ_max of its input's second moment over {len(rows)} rows is "
            f"{raw:.4g}, and {normalised:.4g} once batch-normalised)"
        )
    if kind == "layer":
        norm = nn.LayerNorm(d)
    elif isinstance(layer, nn.Linear):
        norm = nn.BatchNorm1d(d)
    else:
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        norm = kinds[len(layer.kernel_size) - 1](d)
    return norm, f"{type(norm).__name__}({d})"


def _largest_eigenvalues(rows: Tensor) -> tuple[float, float]:
    """λ_max of the second moment of rows, as they are and batch-normalised."""
    rows = rows.to(sum_dtype(rows.device))
    raw = row_spectrum(rows).lambda_max
    if not raw or not math.isfinite(raw):
        raise ValueError(
            "inputs must give the classifier an input that is finite and not zero throughout, got "
            f"λ_max = {raw:g} of its second moment; give divisor= instead"
        )
    spread = len(rows) > 1 and bool((rows != rows[0]).any())
    if not spread:
        raise ValueError(
            "inputs must be a batch whose samples differ, for batch normalisation to compare with; "
            f"got {len(rows)} equal row(s) at the classifier; give divisor= instead"
        )
    return raw, row_spectrum(functional.batch_norm(rows, None, None, training=True)).lambda_max


def _features(layer: Layer) -> tuple[int, int]:
    """How many features, or channels, come in and go out."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _shape(layer: Layer) -> str:
    d_in, d_out = _features(layer)
    return f"{type(layer).__name__}({d_in} → {d_out})"


def _require_divisor(kind: FinalNorm, inputs: Any, divisor: float | None) -> None:
    if kind != "scale" and divisor is not None:
        raise ValueError(f"divisor belongs to kind='scale', got {divisor!r} with kind={kind!r}")
    if kind == "scale" and divisor is None and inputs is None:
        raise ValueError(
            "kind='scale' needs a constant: pass a batch as inputs= to measure it, or the constant "
            "itself as divisor="
        )
    if divisor is not None:
        require_in_range("divisor", divisor, low=0, open_low=True)


_WRAPPED = {
    "_orig_mod": "compiled: pass model._orig_mod, and compile the copy",
    "_fsdp_wrapped_module": "wrapped: pass the module that was wrapped, and wrap the copy",
    "module": "wrapped: pass model.module, and wrap the copy",
}


def _require_plain(model: nn.Module) -> None:
    """Refuse what holds a model of its own, or one that cannot be changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model is scripted and cannot be changed: pass the model it was made from")
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    for attribute, advice in _WRAPPED.items():
        if attribute in model._modules and (parallel or attribute != "module"):
            raise ValueError(f"model is {advice} ({type(model).__name__} given)")


def _is_computed(layer: Layer, name: str) -> bool:
    """Whether a weight or bias is no parameter of the layer, but made from others."""
    return name not in layer._parameters


def _following(norm: nn.Module, layer: Layer) -> Normalisation:
    """Return the normalisation behind a layer, if it can be one."""
    if not isinstance(norm, Normalisation):
        raise TypeError(
            "norm must be the batch, layer, group, instance or RMS normalisation that takes the "
            f"layer's output, got {type(norm).__name__}"
        )
    d_out, sizes = _features(layer)[1], _normalised_sizes(norm)
    if d_out not in sizes:
        raise ValueError(
            f"norm must take the layer's {d_out} features, got {type(norm).__name__} over "
            f"{', '.join(map(str, sizes))}"
        )
    return norm


def _rescaled_eps(eps: float | None, a: float) -> float:
    """The ε of a normalisation whose input is multiplied by a."""
    if eps is None:
        raise ValueError("norm has no ε of its own (eps=None, the type's): set norm.eps first")
    rescaled = eps * a * a
    if not math.isfinite(rescaled) or bool(rescaled) != bool(eps):
        raise ValueError(f"a={a!r} takes norm's ε, {eps!r}, out of the range of a float")
    return rescaled


def _normalised_sizes(norm: Normalisation) -> tuple[int, ...]:
    if isinstance(norm, _NormBase):
        return (norm.num_features,)
    return (norm.num_channels,) if isinstance(norm, nn.GroupNorm) else tuple(norm.normalized_shape)


def _in_range(product: Tensor, value: Tensor, a: float) -> Tensor:
    overflow = value.isfinite() & ~product.isfinite()
    underflow = (value != 0) & (product == 0)
    if (overflow | underflow).any():
        raise ValueError(f"a={a!r} takes values out of the range of {value.dtype}")
    return product


def _own_parameters(layer: Layer) -> list[nn.Parameter]:
    """Those of weight and bias, or those that they are computed from."""
    named = layer.named_parameters()
    return [parameter for name, parameter in named if not name.startswith(f"{INPUT_NORM}.")]


def _trained(found: Mapping[str, Layer], layers: str | Collection[str]) -> dict[str, bool]:
    """Which of the layers are to be trained and which frozen; those left as they are, left out."""
    if isinstance(layers, str):
        if set(layers) - {"0", "1"}:
            raise ValueError(
                "layers must be a string of the digits 0 (frozen) and 1 (trained), or a collection "
                f"of names; got {layers!r}: a single name goes into a list, [{layers!r}]"
            )
        if len(layers) != len(found):
            raise ValueError(
                f"layers must have {len(found)} digits, one for each of "
                f"{', '.join(map(repr, found))}; got {layers!r}, which has {len(layers)}"
            )
        return {name: digit == "1" for name, digit in zip(found, layers, strict=True)}
    if not isinstance(layers, Collection):
        raise TypeError(
            "layers must be a string of digits or a collection of names, got "
            f"{type(layers).__name__}"
        )
    if unknown := [name for name in layers if name not in found]:
        raise ValueError(f"layers must be among {', '.join(map(repr, found))}; got {unknown}")
    return dict.fromkeys(layers, False)
