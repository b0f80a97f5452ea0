"""Hooks that see each call of each layer, its input and its output, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

__all__ = [
    "Capture",
    "ForwardPass",
    "Hook",
    "Layer",
    "LayerCall",
    "backward_pass",
    "is_layer",
    "linear_sizes",
    "measuring",
    "samples_of",
    "stored_transposed",
    "supported_layers",
    "tensors_in",
    "uncovered_layers",
]

# Whether a measurement runs passes of its own, which are not those of a training that is watched.
measuring: ContextVar[bool] = ContextVar("measuring", default=False)

Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d
    | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)  # fmt: skip
Layer: TypeAlias = nn.Linear | Convolution


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One call of the whole model; a module called several times in it shares this object.

    Attributes:
        samples: Number of samples N: the first dimension of the first tensor among the
            model's arguments (or within one), or the number of sequences of a packed one.
    """

    samples: int


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of one layer.

    Attributes:
        name: The layer's qualified name.
        layer: The module; what is no convolution is linear.
        input: Its input x, detached, shape ``[N, …, d_in]`` or ``[N, C_in, …]``.
        output: Its output h, with its graph.
        forward_pass: The call of the model that it belongs to.
    """

    name: str
    layer: Layer
    input: Tensor
    output: Tensor
    forward_pass: ForwardPass

    @property
    def refusal(self) -> str | None:
        """Why the call cannot be measured, if it cannot."""
        layer = self.layer
        own = 1 + len(layer.kernel_size) if isinstance(layer, Convolution) else 1
        shape, n = tuple(self.input.shape), self.forward_pass.samples
        if self.input.is_complex() or self.output.is_complex():
            return "works on complex numbers"
        if isinstance(layer, Convolution) and not self.input.numel():
            return "got an empty batch"
        # [1, d] may also be the one row that an expert is given, and [1, N, d] a sequence of one.
        shared = len(shape) > 2 and shape[0] == 1 < n and n not in shape[1:]
        if len(shape) > own and not shared:
            return None
        return f"got an input without a batch dimension, of shape {shape}"


def supported_layers(model: nn.Module, layers: Collection[str] | None = None) -> dict[str, Layer]:
    """Return the linear and convolution layers of ``model`` by name, in the order of registration.

    The ``Conv1D`` of transformers' GPT-2, a linear layer whose weight is stored transposed, is one.

    Args:
        model: Any module.
        layers: Names to restrict the search to; ``None`` takes every one.

    Raises:
        TypeError: ``layers`` is a single string.
        ValueError: a name in ``layers`` is no such layer, there is none at all, or the model has
            lazy parameters that a first forward pass must still create.

    Example:
        >>> list(supported_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
        ['0', '2']
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a collection of names, got the string {layers!r}")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has lazy parameters: run a forward pass before measuring it")
    found = {name: m for name, m in model.named_modules() if is_layer(m)}
    if not found:
        raise ValueError(
            f"model has no linear or convolution layer to measure: {type(model).__name__}"
        )
    if layers is None:
        return found
    if not layers:
        raise ValueError("layers must name at least one layer, got none; layers=None takes all")
    if unknown := set(layers) - set(found):
        raise ValueError(
            f"layers must be among {', '.join(map(repr, found))}; got {sorted(unknown)}"
        )
    return {name: module for name, module in found.items() if name in layers}


def is_layer(module: nn.Module | None) -> TypeGuard[Layer]:
    """Whether a module is a linear or convolution layer, transformers' ``Conv1D`` included."""
    return isinstance(module, Layer) or stored_transposed(module)


def stored_transposed(module: nn.Module | None) -> bool:
    """Whether it is transformers' ``Conv1D``: h = Wᵀ x + b with a weight ``[d_in, d_out]``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def linear_sizes(layer: Any) -> tuple[int, int]:
    """Return d_in and d_out of a linear layer; asking its weight may run a parametrisation."""
    if stored_transposed(layer):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features


def uncovered_layers(model: nn.Module) -> dict[str, str]:
    """Return the modules that have parameters of their own but no factors, with the reason.

    Example:
        >>> uncovered_layers(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
        {'1': 'LayerNorm is neither a linear nor a convolution layer'}
    """
    return {
        name: f"{type(module).__name__} is neither a linear nor a convolution layer"
        for name, module in _outside_layers(model, "")
        if any(True for _ in module.parameters(recurse=False))
    }


def _outside_layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """All modules that are no supported layer nor inside one (a parametrised weight)."""
    if is_layer(module):
        return
    yield name, module
    for child_name, child in module.named_children():
        yield from _outside_layers(child, f"{name}.{child_name}" if name else child_name)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in tensors_in(part))
    elif isinstance(value, tuple | list):
        yield from (tensor for part in value for tensor in tensors_in(part))


def samples_of(arguments: Any) -> int | None:
    """Return the first dimension of the first tensor, or the sequences of a packed one, in order.

    Example:
        >>> samples_of([[torch.tensor(0.5)], {"x": torch.zeros(6, 2)}])
        6
    """
    if isinstance(arguments, PackedSequence):
        return int(arguments.batch_sizes[0])
    if isinstance(arguments, Tensor):
        return len(arguments) if arguments.dim() else None
    if isinstance(arguments, Mapping):
        arguments = list(arguments.values())
    if isinstance(arguments, tuple | list):
        return next((n for part in arguments if (n := samples_of(part)) is not None), None)
    return None


class Capture:
    """Context manager that hands over every call of every layer during forward passes.

    While it is open, ``on_call`` receives a `LayerCall` after each layer's forward; if it returns
    a tensor, that replaces the layer's output. Read the tensors inside the callback, do not write
    to them. A deep copy or a pickle of the model takes no part. Instead of the context, who has
    hooks of their own on the model brackets chosen passes with `begin` and `end`, and ends with
    `detach`: between them nothing is on the layers.

    Args:
        model: The module to watch.
        on_call: Receives each call.
        layers: Names of the layers to watch; ``None`` watches all.

    Raises:
        TypeError, ValueError: as `supported_layers`.
    """

    def __init__(
        self,
        model: nn.Module,
        on_call: Callable[[LayerCall], Tensor | None],
        *,
        layers: Collection[str] | None = None,
    ) -> None:
        self.layers = supported_layers(model, layers)
        self._model = model
        self._on_call = on_call
        self._handles: list[RemovableHandle] = []
        self._forward_pass: ForwardPass | None = None
        self._last_pass: ForwardPass | None = None
        self._bracketed = False
        self._in_pass = False

    def __enter__(self) -> Capture:
        """Put the hooks on."""
        enter, leave = Hook(self._enter_model), Hook(self._leave_model)
        self._handles.append(self._model.register_forward_pre_hook(enter, with_kwargs=True))
        self._attach()
        self._handles.append(self._model.register_forward_hook(leave, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        """Take every hook off, whatever happened inside."""
        self.detach()

    def begin(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Hand over the calls of the forward pass that follows, of these arguments.

        After `end`, those that its backward pass makes (checkpointing) still are, others are not.
        """
        if not self._handles:
            self._bracketed = True
            self._attach()
        samples = samples_of([args, kwargs])
        self._forward_pass = None if samples is None else ForwardPass(samples)
        self._last_pass = self._forward_pass
        self._in_pass = True

    def end(self) -> None:
        """The forward pass is over; layers that its backward pass calls again belong to it."""
        self._forward_pass = None
        self._in_pass = False

    def detach(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._bracketed = False
        self.end()

    def _attach(self) -> None:
        for name, module in self.layers.items():
            hook = Hook(self._call, name)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _enter_model(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if module is self._model:
            self.begin(args, kwargs)

    def _leave_model(self, module: nn.Module, *_: object) -> None:
        if module is self._model:
            self.end()

    def _call(
        self, name: str, module: Layer, args: Any, kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        # A replica of the model may carry this hook along; it is not ours to measure.
        if module is not self.layers[name]:
            return None
        if self._bracketed and not self._in_pass and backward_pass() is None:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        forward_pass = self._forward_pass or self._outside(len(x) if x.dim() else 1)
        return self._on_call(LayerCall(name, module, x.detach(), output, forward_pass))

    def _outside(self, entries: int) -> ForwardPass:
        """The pass of a layer that is called outside the model's forward."""
        # Reentrant checkpointing runs layers again during the backward pass of the last one.
        if self._last_pass is not None and entries % self._last_pass.samples == 0:
            return self._last_pass
        return ForwardPass(entries)


def backward_pass() -> int | None:
    """Return a number of the backward pass that is running in this thread, if one is."""
    number = torch._C._current_graph_task_id()
    return None if number == -1 else number


class Hook:
    """A hook that turns into an idle one where the model is copied or pickled."""

    def __init__(self, method: Callable[..., Tensor | None], *names: str) -> None:
        self._method = method
        self._names = names
        self.__name__ = "hook"  # which torch.jit asks for

    def __call__(self, *args: Any) -> Any:
        """Do what it is there for."""
        return self._method(*self._names, *args)

    def __reduce__(self) -> tuple[type[_IdleHook], tuple[()]]:
        return _IdleHook, ()


class _IdleHook:
    def __call__(self, *_: Any) -> None:
        """Do nothing."""
