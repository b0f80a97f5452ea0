"""Hooks that see each layer's inputs and its per-sample output gradients, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Capture", "supported_layers"]

Sink = Callable[[str, Tensor], None]


def supported_layers(
    model: nn.Module, layers: Collection[str] | None = None
) -> dict[str, nn.Linear]:
    """Return the linear layers of ``model`` by qualified name, in the order of registration.

    Args:
        model: Any module.
        layers: Names to restrict the search to; ``None`` takes every linear layer.

    Raises:
        ValueError: a name in ``layers`` is no linear layer of the model, or there is none at all.

    Example:
        >>> list(supported_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
        ['0', '2']
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not found:
        raise ValueError(f"model has no linear layer to measure: {type(model).__name__}")
    if layers is None:
        return found
    if unknown := set(layers) - set(found):
        raise ValueError(
            f"layers must be among {', '.join(map(repr, found))}; got {sorted(unknown)}"
        )
    return {name: module for name, module in found.items() if name in layers}


class Capture:
    """Context manager that passes every layer's input and output gradient on as they appear.

    While it is open, one forward pass calls ``on_input(name, x)`` for each layer, x of shape
    ``[N, …, d_in]``, and one backward pass calls ``on_output_gradient(name, g)``, g = ∂L/∂h of
    shape ``[N, …, d_out]``, exactly as autograd computes it (a mean loss has divided it by N).
    Both are detached views of the training's own tensors: read them inside the callback, do not
    write to them. Forward passes whose output needs no gradient (under ``torch.no_grad``, or of a
    layer that is frozen and has nothing trainable before it) are not seen. A deep copy or a pickle
    of the model takes no part.

    Args:
        model: The module to watch.
        on_input: Receives each layer's input during the forward pass.
        on_output_gradient: Receives ∂L/∂h during the backward pass.
        layers: Names of the linear layers to watch; ``None`` watches all.

    Raises:
        ValueError: as `supported_layers`; or, during the passes, an input without a batch
            dimension.
        RuntimeError: during the passes: a layer ran again before its gradient came back (a module
            used twice in one pass, or two forward passes in a row).
    """

    def __init__(
        self,
        model: nn.Module,
        on_input: Sink,
        on_output_gradient: Sink,
        *,
        layers: Collection[str] | None = None,
    ) -> None:
        self.layers = supported_layers(model, layers)
        self._on_input = on_input
        self._on_output_gradient = on_output_gradient
        self._handles: list[RemovableHandle] = []
        self._awaiting_gradient: dict[str, object] = {}  # layer: a mark of its forward pass

    def __enter__(self) -> Capture:
        """Put the hooks on."""
        for name, module in self.layers.items():
            hook = _ForwardHook(self, name)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        """Take every hook off, whatever happened inside."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._awaiting_gradient.clear()

    def _forward(self, name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        # A replica of the model may carry this hook along; it is not ours to measure.
        if module is not self.layers[name] or not output.requires_grad:
            return
        if x.dim() < 2:
            raise ValueError(
                f"layer {name!r} got an input of shape {tuple(x.shape)}; measuring needs a batch "
                "dimension, [N, ..., d_in]"
            )
        if name in self._awaiting_gradient:
            raise RuntimeError(
                f"layer {name!r} ran again before its gradient came back: a module used twice in "
                "one pass, or two forward passes before a backward pass, cannot be measured"
            )
        mark = self._awaiting_gradient[name] = object()
        self._on_input(name, x.detach())
        # A hook on the tensor, not on the module: it also works before an in-place activation.
        output.register_hook(lambda gradient: self._receive(name, mark, gradient))

    def _receive(self, name: str, mark: object, gradient: Tensor) -> None:
        # Another mark, or none: the context was left between the forward and the backward pass.
        if self._awaiting_gradient.get(name) is mark:
            del self._awaiting_gradient[name]
            self._on_output_gradient(name, gradient.detach())


class _ForwardHook:
    """A layer's forward hook, which turns into an idle one where the model is copied or pickled."""

    def __init__(self, capture: Capture, name: str) -> None:
        self._capture = capture
        self._name = name

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        self._capture._forward(self._name, module, [*args, *kwargs.values()][0], output)

    def __reduce__(self) -> tuple[type[_IdleHook], tuple[()]]:
        return _IdleHook, ()


class _IdleHook:
    def __call__(self, *_: Any) -> None:
        """Do nothing."""
