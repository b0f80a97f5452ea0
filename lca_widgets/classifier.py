"""Finding a model's classifier: its operations are followed backwards from what it returns.

Either autograd has recorded them, in a run of the model on a batch, or torch.fx traces the model
without one. Both are followed in the same way.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor, fx, nn
from torch.autograd.graph import Node

from lca_widgets.curvature import supported_layers
from lca_widgets.curvature.capture import Convolution, Layer, is_layer
from lca_widgets.curvature.passes import batches, run, undisturbed

__all__ = ["Classifier", "Norm", "find_classifier"]

NAMED = ", named as the classifier"


@dataclass(frozen=True)
class Norm:
    """A normalisation that was met, and the module that it happened in."""

    operation: str  # "BatchNorm", say
    module: str

    @property
    def kind(self) -> str:
        """What `add_final_norm` calls it."""
        return self.operation.removesuffix("Norm").lower()

    def __str__(self) -> str:
        return f"{self.module!r} ({self.operation})" if self.module else f"a {self.operation}"


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model's classifier, and how it was found.

    Attributes:
        name: Its qualified name.
        how: How it was found, to end a sentence with.
        norm: What its input comes straight from.
        rows: Its inputs, one row a sample and position, where the model was run.
    """

    name: str
    how: str = ""
    norm: Norm | None = None
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


def find_classifier(model: nn.Module, inputs: Any, name: str | None) -> Classifier:
    """Find the layer whose output a model returns, as `surgery.add_final_norm` describes it.

    Args:
        model: The model; it may be run or traced, and is put back.
        inputs: Inputs of a batch to run it on once; ``None`` has torch.fx trace it.
        name: Name of the layer, where it is known: then only its input is looked at.

    Raises:
        ValueError: there is no such layer, or are several; it is called several times; torch.fx
            cannot trace the model.
    """
    if inputs is None and name is not None:
        return Classifier(name, NAMED)
    if is_layer(model):
        rows = None if inputs is None else _rows(model, _run(model, inputs).values[""])
        return Classifier("", rows=rows)
    if inputs is None:
        return _followed(_symbolic(model), None, "torch.fx")
    trace = _run(model, inputs)
    found = _followed(trace, name, "a run of the model")
    rows = _rows(supported_layers(model)[found.name], trace.values[found.name])
    return replace(found, rows=rows)


def _followed(trace: _Trace[Point], name: str | None, tool: str) -> Classifier:
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
    return Classifier(name, how, _norm_before(trace, calls[0]))


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


def _norm_before(trace: _Trace[Point], point: Point) -> Norm | None:
    module = ""
    while True:
        module = trace.module(point) or module
        if match := _NORMS.match(_plain(trace.operation(point))):
            return Norm(_NORM_NAMES.get(match[1], f"{match[1].capitalize()}Norm"), module)
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
        if is_layer(module):
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
        return is_layer(m) or super().is_leaf_module(m, module_qualified_name)


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
        return str(point.target) if is_layer(module) else None

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
