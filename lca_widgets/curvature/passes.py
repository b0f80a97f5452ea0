"""A measurement's own passes through a model: any data, and nothing about the model changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.utils.rnn import PackedSequence

from lca_widgets._checks import require_one_of
from lca_widgets.curvature.capture import (
    Capture,
    Convolution,
    ForwardPass,
    LayerCall,
    measuring,
    tensors_in,
)
from lca_widgets.curvature.losses import (
    Fisher,
    LossFunction,
    Reduction,
    output_gradients,
    summed_loss,
)
from lca_widgets.curvature.moments import exact_products

__all__ = [
    "Companion",
    "Labels",
    "Observer",
    "batches",
    "by_sample",
    "measure_batch",
    "nothing_measured",
    "require_samples_first",
    "run",
    "samples_in",
    "undisturbed",
]


def batches(data: Any, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield inputs and target of each batch, on the model's device.

    Args:
        data: One batch ``(inputs, target)``, a tuple, or any other iterable of them (a list, a
            ``DataLoader``). The inputs are a tensor, a tuple or list (positional arguments) or a
            mapping (keyword arguments); a tuple of one mapping is an argument that is a mapping.
        model: Its first parameter tells the device.

    Raises:
        ValueError: there is no batch, a batch has no samples, or one is not a pair.
        TypeError: ``data`` is no iterable.
    """
    if isinstance(data, tuple):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, Tensor | str | Mapping):
        raise TypeError(
            "data must be one batch (inputs, target) or an iterable of batches, got "
            f"{type(data).__name__}"
        )
    device = next((p.device for p in model.parameters()), None)
    empty = True
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"data must yield pairs (inputs, target), got {_describe(batch)}; one batch by "
                "itself must be a tuple"
            )
        inputs, target = (_to(part, device) for part in batch)
        yield inputs, target
        empty = False
    if empty:
        raise ValueError("data has no batch: the loader is empty, or was used up by an earlier run")


def run(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a tensor is its argument, a tuple or list its arguments, a mapping by name.

    Example:
        >>> run(nn.Bilinear(2, 3, 1), (torch.ones(4, 2), torch.ones(4, 3))).shape
        torch.Size([4, 1])
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence):
        return model(*inputs)
    return model(inputs)


@contextmanager
def undisturbed(*modules: object) -> Iterator[None]:
    """Let passes run with gradients on, and put back what they change: buffers and random state.

    Batch normalisation in train mode moves its running statistics, dropout draws numbers, a
    loader shuffles by torch's global random state; afterwards all of that is bit for bit as
    before, also if an error was raised. Generators of the data's own are not put back. Parameters'
    ``.grad`` is left alone by passes that ask for gradients with `torch.autograd.grad`.

    Args:
        modules: The model, and the loss in case it is a module too; others are left out.
    """
    models = [module for module in modules if isinstance(module, nn.Module)]
    parameters = [parameter for model in models for parameter in model.parameters()]
    buffers = [
        (
            module._buffers,
            dict(module._buffers),
            [(b, b.clone()) for b in module._buffers.values() if b is not None],
        )
        for model in models
        for module in model.modules()
    ]
    kinds = {p.device.type for p in parameters} - {"cpu", "meta"}
    device_type = next(iter(kinds), "cuda")
    devices = [p.device for p in parameters if p.device.type == device_type]
    with (
        torch.random.fork_rng(list(dict.fromkeys(devices)), device_type=device_type),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        outside = measuring.set(True)
        try:
            yield
        finally:
            measuring.reset(outside)
            with torch.no_grad():
                for registered, before, values in buffers:
                    registered.clear()
                    registered.update(before)
                    for buffer, value in values:
                        # Past autograd's version counter: a training step's graph may hold it.
                        buffer.data.copy_(value)


class Observer(Protocol):
    """What takes in the calls of one layer and their output gradients.

    Attributes:
        unmeasured: Why the layer would have no result so far.
    """

    unmeasured: str

    def measured(self, call: LayerCall) -> Callable[[], None]:
        """Look at a call; what is returned is called when a gradient shows that it counts."""

    def add_gradient(self, g: Tensor, forward_pass: ForwardPass) -> None:
        """Take in the per-sample gradients ∂l_n/∂h_n of one call, of its output's shape."""

    def end_column(self) -> None:
        """All gradients of one column of labels have come."""

    def end_batch(self) -> None:
        """All gradients of the batch have come."""


class Companion(AbstractContextManager[object], Protocol):
    """What looks at whole passes beside the layers' observers, open during the model's forward."""

    def layer_called(self, call: LayerCall) -> None:
        """Look at a call."""

    def wanted(self) -> list[Tensor]:
        """Return those of which the loss's gradient is wanted, after the forward pass."""

    def end_batch(self, loss: Tensor, gradients: Sequence[Tensor | None], samples: int) -> None:
        """Take in Σ_n l_n of the batch, and its gradients with respect to those weights."""


class Labels:
    """Whose labels' gradients a measurement takes: the columns to seed backward passes with.

    Attributes:
        several: Whether a batch takes more than one backward pass.
        of_outputs: Whether these begin at the model's outputs, and not at the loss.
    """

    def __init__(
        self, loss_fn: LossFunction, fisher: Fisher, reduction: Reduction | None, seed: int
    ) -> None:
        require_one_of("fisher", fisher, get_args(Fisher))
        self.loss_fn = loss_fn
        self._fisher: Fisher = fisher
        self._reduction = reduction
        self._seed = seed
        self._generator: torch.Generator | None = None
        self.several = fisher == "exact"
        self.of_outputs = fisher != "empirical"

    def loss(self, output: Any, target: Any, n: int) -> Tensor:
        """Return Σ_n l_n of the data's labels."""
        return summed_loss(self.loss_fn, output, target, n, self._reduction)

    def columns(self, output: Any, target: Any, n: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield what to differentiate, and with which weights."""
        if self._fisher == "empirical":
            yield self.loss(output, target, n), None
            return
        if not isinstance(output, Tensor):
            raise TypeError(
                f"fisher={self._fisher!r} needs a model that returns a tensor, got "
                f"{type(output).__name__}; fisher='empirical' takes what loss_fn takes"
            )
        if self._generator is None:
            self._generator = torch.Generator(output.device).manual_seed(self._seed)
        for column in output_gradients(
            self.loss_fn,
            output,
            target,
            fisher=self._fisher,
            reduction=self._reduction,
            generator=self._generator,
        ):
            yield output, column


def measure_batch(
    model: nn.Module,
    inputs: Any,
    target: Any,
    labels: Labels,
    observers: Mapping[str, Observer],
    companion: Companion | None = None,
) -> int:
    """Run one forward pass and the backward passes over it, observed; its graph ends with this.

    Returns:
        Number of samples in the batch.

    Raises:
        ValueError: no layer lies between the model's input and the loss.
    """
    _keep_freed_memory()
    forward_pass = ForwardPass(samples_in(inputs, target))
    attention = _Attention()
    output, edges = _forward(model, inputs, forward_pass, observers, companion, attention)
    if not edges:
        raise nothing_measured(observers)
    last = _last_reached(edges)
    samples = forward_pass.samples
    if companion and labels.of_outputs:
        loss = labels.loss(output, target, samples)
        with attention.paused():
            _tell(companion, loss, _gradients(loss, companion.wanted(), keep=True), samples)
    told = companion if not labels.of_outputs else None
    for root, column in labels.columns(output, target, samples):
        weights = told.wanted() if told else []
        gradients = _gradients(root, [*last, *weights], column, keep=labels.several)
        if told:
            _tell(told, root, gradients[len(last) :], samples)
        del gradients
        for observer in observers.values():
            observer.end_column()
    for observer in observers.values():
        observer.end_batch()
    return samples


def nothing_measured(observers: Mapping[str, Observer]) -> ValueError:
    """Return the error that says why no layer has a result."""
    reasons = (f"{name!r} {observer.unmeasured}" for name, observer in observers.items())
    return ValueError(f"model has no layer that can be measured: {'; '.join(reasons)}")


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library keep more of the memory that one backward pass frees for the next.

    glibc gives the end of its heap back beyond twice the largest block that was ever freed on its
    own, of up to 32 MiB; taking it again, page by page, was a tenth of the exact Fisher's time. The
    block is not written to, so that it costs nothing; elsewhere this has no effect.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


@dataclass
class _Attention:
    """Whether the observers take in the gradients that come to the layers' outputs."""

    on: bool = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.on = False
        yield
        self.on = True


def _gradients(
    root: Tensor,
    of: Sequence[Any],  # tensors, or edges of the graph
    column: Tensor | None = None,
    *,
    keep: bool,
) -> Sequence[Tensor | None]:
    if not root.requires_grad:
        raise ValueError(
            "no layer to measure lies between the model's input and the loss: the output needs no "
            "gradient (a model that detaches it cannot be measured)"
        )
    if not of:
        return []
    return torch.autograd.grad(root, of, column, retain_graph=keep, allow_unused=True)


def _tell(
    companion: Companion, loss: Tensor, gradients: Sequence[Tensor | None], samples: int
) -> None:
    with exact_products(loss.device):
        companion.end_batch(loss.detach(), gradients, samples)


def _forward(
    model: nn.Module,
    inputs: Any,
    forward_pass: ForwardPass,
    observers: Mapping[str, Observer],
    companion: Companion | None,
    attention: _Attention,
) -> tuple[Any, list[GradientEdge]]:
    """Run the model once, so that a backward pass shows each call's output gradient.

    Returns:
        What the model returns, and where the calls' outputs stand in the graph.
    """
    edges: list[GradientEdge] = []

    def on_call(call: LayerCall) -> Tensor | None:
        observer, replacement = observers[call.name], None
        if call.refusal or not torch.is_grad_enabled():
            observer.unmeasured = (
                call.refusal
                or "ran without gradients (under torch.no_grad, or reentrant checkpointing)"
            )
            return None
        output = call.output
        if not output.requires_grad:  # frozen, with nothing trainable before it
            # The copy may be written to in place, which a leaf may not.
            output = replacement = output.detach().requires_grad_().clone()
        observer.unmeasured = "the loss does not depend on its output"
        with exact_products(output.device):
            call = replace(call, forward_pass=forward_pass, output=output)
            pending = [observer.measured(call)]
        if companion:
            companion.layer_called(call)

        def receive(gradient: Tensor) -> None:
            if not attention.on:
                return
            with exact_products(gradient.device):
                while pending:
                    pending.pop()()
                observer.add_gradient(gradient, forward_pass)

        # Dealt with and freed on the way: kept, all gradients together would cost fresh memory.
        output.register_hook(receive)
        edges.append(get_gradient_edge(output))
        return replacement

    with Capture(model, on_call, layers=observers), companion or nullcontext():
        return run(model, inputs), edges


def _last_reached(edges: Sequence[GradientEdge]) -> list[GradientEdge]:
    """The edges from which no other is reached: a backward pass to these passes all of them.

    So autograd computes the gradients of the layers' outputs, but not those of their weights.
    """
    own = {edge.node for edge in edges}
    reaches: dict[Node, bool] = {}  # whether a node, or one behind it, is an edge's
    for edge in edges:
        stack = [edge.node]
        while stack:
            node = stack[-1]
            behind = [following for following, _ in node.next_functions if following is not None]
            unseen = [following for following in behind if following not in reaches]
            if unseen:
                stack.extend(unseen)
                continue
            reaches[node] = any(following in own or reaches[following] for following in behind)
            stack.pop()
    return [edge for edge in edges if not reaches[edge.node]]


def _to(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        value = value.clone() if value.is_inference() else value
        return value if device is None else value.to(device)
    if isinstance(value, PackedSequence):
        return value if device is None else value.to(device)  # type: ignore[arg-type]  # wrongly typed
    if isinstance(value, Mapping):
        return {key: _to(part, device) for key, part in value.items()}
    if isinstance(value, list):
        return [_to(part, device) for part in value]
    if isinstance(value, tuple):
        return tuple(_to(part, device) for part in value)
    return value


def samples_in(inputs: Any, target: Any) -> int:
    """Return the number of samples: the target's first dimension, else the inputs'.

    Raises:
        ValueError: neither holds a tensor with a batch dimension, or the first is empty.
    """
    own = isinstance(target, Tensor | Mapping)  # not a list with one target a sample
    for part in (target, inputs) if own else (inputs, target):
        first = next((tensor for tensor in tensors_in(part) if tensor.dim()), None)
        if first is not None:
            if not len(first):
                raise ValueError("data has a batch without samples")
            return len(first)
    raise ValueError("data must hold tensors with a batch dimension")


def require_samples_first(call: LayerCall) -> None:
    """Refuse a linear layer's input ``[T, N, d]``, whose first dimension does not tell samples.

    Raises:
        ValueError: another dimension than the first has as many entries as there are samples.
    """
    n, shape = call.forward_pass.samples, tuple(call.input.shape)
    if not isinstance(call.layer, Convolution) and shape[0] != n and n in shape[1:-1]:
        raise ValueError(
            f"layer {call.name!r} got an input of shape {shape} for {n} samples: they must come "
            "first; sharing='expand' with parts=1 does not need to know"
        )


def by_sample(values: Tensor, n: int, name: str) -> Tensor:
    """Return a layer's values ``[n·F, …]`` as ``[n, F, …]``: F entries belong to each sample.

    Raises:
        ValueError: the number of entries of layer ``name`` is no multiple of ``n``.
    """
    if len(values) % n:
        raise ValueError(
            f"layer {name!r} works on {len(values)} entries for {n} samples: which belong to one "
            "sample cannot be told; sharing='expand' with parts=1 does not need to know"
        )
    return values.unflatten(0, (n, len(values) // n))


def _describe(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {len(batch)}"
    return type(batch).__name__
