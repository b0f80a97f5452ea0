"""Measuring anyone's model: once (`analyze`), or while it trains in anyone's loop (`watch`)."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lca_widgets._checks import require_integer, require_one_of
from lca_widgets.analysis import Analysis, History, LayerAnalysis
from lca_widgets.curvature import exact_blocks, measure
from lca_widgets.curvature.capture import (
    Hook,
    LayerCall,
    backward_pass,
    measuring,
    samples_of,
    tensors_in,
)
from lca_widgets.curvature.distributed import reduce_factors
from lca_widgets.curvature.factors import FactorCapture
from lca_widgets.curvature.layers import Conv
from lca_widgets.curvature.losses import Fisher, LossFunction, Reduction
from lca_widgets.curvature.measurement import LayerMeasurement, Surroundings, measured_layers
from lca_widgets.curvature.passes import batches, undisturbed
from lca_widgets.records import Report, layer_reports

__all__ = ["Monitor", "Scaler", "analyze", "watch"]

# Steps in a row that a gradient scaler's overflow explains: it halves its scale at each, ten times
# a thousand. After them it is the training that diverged.
OVERFLOWS = 10


class Scaler(Protocol):
    """What scales a loss against underflow, as `torch.amp.GradScaler` does."""

    def get_scale(self) -> float:
        """Return what losses are multiplied with now."""


def analyze(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    fisher: Fisher = "empirical",
    conv: Conv = "patch",
    exact: bool = False,
    layers: Collection[str] | None = None,
    device: torch.device | str | None = None,
    reduction: Reduction | None = None,
    seed: int = 0,
) -> Analysis:
    """Measure the conditioning of every linear and convolution layer of a model, once.

    The formulas are those of `curvature.kronecker_factors`, and of `records.LayerReport`. The model
    is measured in the mode (train or eval) that it is in, module by module: batch normalisation in
    train mode uses the batch's statistics, as it does while the model trains. Afterwards
    parameters, their ``.grad``, buffers, modes and random state are bit for bit as before.

    Args:
        model: Any module.
        loss_fn: Maps the model's output and the target to a loss.
        data: One batch ``(inputs, target)``, a tuple, or an iterable of them such as a
            ``DataLoader``. The inputs are a tensor, a tuple or list (positional arguments) or a
            mapping (keyword arguments).
        fisher: Whose labels Σ_g is of: ``"empirical"`` (the data's), ``"exact"`` (the expectation
            over the model's own) or ``"sampled"`` (drawn from the model).
        conv: Convolutions by ``"patch"`` (K-FAC) or by ``"pixel"`` (Huang et al.).
        exact: Whether to measure the exact blocks and the whole network's matrix too, whose cost
            grows with the square of the number of samples: for one batch of some hundreds.
        layers: Names of the layers to measure; ``None`` measures all.
        device: Where to measure: a copy of the model, if it is elsewhere; ``None`` takes the
            model's own device.
        reduction: ``"mean"`` or ``"sum"``, how the loss combines the samples; ``None`` reads or
            finds it out. The results do not depend on it where the mean is over the samples; with
            class weights or ignored targets, see `curvature.losses.summed_loss`.
        seed: Draws the labels of ``"sampled"``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown option, layer or device; a model without layers to measure; no batch,
            or several for ``exact``.

    Source:
        Huang et al. (2020).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batch = torch.randn(64, 4), torch.arange(64) % 2
        >>> analysis = analyze(model, nn.CrossEntropyLoss(), batch)
        >>> analysis.table()["name"].tolist(), analysis.layers[0].input.dimension
        (['0', '2'], 4)
    """
    require_model(model)
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be callable as loss_fn(output, target), got {type(loss_fn).__name__}"
        )
    model, _ = unwrapped(model)
    if device is not None:
        model = _on(model, device)
        loss_fn = _on(loss_fn, device) if isinstance(loss_fn, nn.Module) else loss_fn
    if exact:
        data = _single_batch(data, model)
    options: dict[str, Any] = {"fisher": fisher, "reduction": reduction, "seed": seed}
    measurement = measure(model, loss_fn, data, conv=conv, layers=layers, **options)
    reports = layer_reports(measurement.layers)
    found = [
        LayerAnalysis(report, layer.spectra)
        for report, layer in zip(reports, measurement.layers, strict=True)
    ]
    if not exact:
        return Analysis(found, None, measurement.skipped, measurement.loss)
    names = [layer.name for layer in found]
    blocks = exact_blocks(model, loss_fn, data, layers=names, **options)
    with_blocks = [replace(layer, block=blocks.layers[layer.name]) for layer in found]
    return Analysis(with_blocks, blocks.network, measurement.skipped, measurement.loss)


def watch(
    model: nn.Module,
    *,
    every: int = 20,
    conv: Conv = "pixel",
    reduction: Reduction = "mean",
    accumulation: int = 1,
    scaler: Scaler | None = None,
    layers: Collection[str] | None = None,
) -> Monitor:
    """Return a context manager that measures a model while it is trained, in anyone's loop.

    It uses the loop's own forward and backward passes, on the batch at hand (the empirical Fisher),
    and changes none of their results. Between measured steps one hook on the model counts backward
    passes, and nothing is on the layers. What counts is a backward pass to the outputs of one or
    several forward passes of the model; not validation under ``torch.no_grad()``, a forward pass
    that nothing comes back to, or a pass that builds a graph (``create_graph``, as for a gradient
    penalty). A report holds what came back, all terms of the loss included. Whatever else sends
    gradients through the model's outputs, another loss's ``backward`` or `torch.autograd.grad`,
    counts as a step's too. Passes under `torch.func` transforms, and those of other threads than
    the first, are left alone.

    The number of samples N is the first dimension of the first tensor that the model is given (of a
    packed sequence the number of sequences): with another dimension first, Σ_g is off by the square
    of the ratio.

    * Compiled (``torch.compile(model)``): a measured step runs without compilation, and rounds and
      draws random numbers (dropout) as it does. After ``model.compile()``, in place, no hook of
      the model runs: that is said once.
    * Gradient checkpointing, reentrant or not, is measured as if there were none.
    * `DistributedDataParallel`: hand over the wrapper, in every process. The reports are of the
      batches of all processes together, and the same in each; a step's report is made when the
      next one begins, or the context ends.

    Args:
        model: The module that the loop calls, wrappers included.
        every: Steps (optimiser updates) from one measured step to the next.
        conv: Convolutions by ``"pixel"`` (Huang et al., cheaper) or by ``"patch"`` (K-FAC).
        reduction: ``"mean"`` or ``"sum"``: how the loss combines the samples of a batch.
        accumulation: Backward passes in a step, as one measurement; steps begin at every multiple.
            A mean loss is taken to be divided by their number, as is usual: for batches of
            different sizes ∂L/∂W is then that of the mean of means.
        scaler: The gradient scaler of a mixed-precision training: gradients count unscaled, and a
            step in which they overflow is passed over for the next, ten times in a row at most.
        layers: Names of the layers to measure; ``None`` measures all.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown option or layer, a number out of range, or a model without layers
            to measure.

    Source:
        Huang et al. (2020), who measure the empirical second moment on the training batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
        >>> with watch(model, every=2) as monitor:
        ...     for step in range(5):
        ...         optimizer.zero_grad()
        ...         nn.functional.cross_entropy(model(x), y).backward()
        ...         optimizer.step()
        >>> monitor.table()["step"].unique().tolist()
        [0, 2, 4]
    """
    require_model(model)
    require_integer("every", every, low=1)
    require_integer("accumulation", accumulation, low=1)
    require_one_of("conv", conv, get_args(Conv))
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise TypeError(
            "scaler must be a gradient scaler with get_scale(), such as torch.amp.GradScaler, got "
            f"{type(scaler).__name__}"
        )
    return Monitor(model, every, conv, reduction, accumulation, scaler, layers)


class _Step:
    """One step that is measured: its passes so far.

    Attributes:
        number: Steps before it.
        loss_scale: What each of its losses is multiplied with.
        received: Backward passes so far.
        receiving: Whether gradients count that come now.
        unfinished: Whether a backward pass is under way, or was broken off by an error.
        surroundings: What is seen beside the factors.
    """

    def __init__(self, number: int, loss_scale: float) -> None:
        self.number = number
        self.loss_scale = loss_scale
        self.received = 0
        self.receiving = self.unfinished = False
        self.surroundings = Surroundings(lambda: self.receiving)

    def begin_backward(self) -> None:
        """Take gradients from here on, to the end of the backward pass if one is running."""
        self.received += 1
        self.receiving = True
        if backward_pass() is not None:  # else a forward pass begins it, whose output is hidden
            self.unfinished = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def _end_backward(self) -> None:
        self.receiving = self.unfinished = False


class Monitor(History):
    """Records a training, as `watch` describes; open it as a context around the training."""

    def __init__(
        self,
        model: nn.Module,
        every: int,
        conv: Conv,
        reduction: Reduction,
        accumulation: int,
        scaler: Scaler | None,
        layers: Collection[str] | None,
    ) -> None:
        super().__init__()
        self._root = model
        inner, wrappers = unwrapped(model)
        self._group = next(
            (w.process_group for w in wrappers if isinstance(w, DistributedDataParallel)), None
        )
        self._compiled = any(map(_is_compiled, [*wrappers, *inner.modules()]))
        self._capture = FactorCapture(
            inner,
            reduction=reduction,
            conv=conv,
            means=True,
            layers=layers,
            on_call=self._layer_called,
            takes=_is_of_the_loss,
        )
        self._every = every
        self._reduction = reduction
        self._accumulation = accumulation
        self._scaler = scaler
        self._backward_passes = 0
        self._latest_backward: int | None = None
        self._thread: int | None = None  # of the first pass: those of others are left alone
        self._step: _Step | None = None
        self._next = 0  # number of the step to measure
        self._passed_over = 0  # steps since the last report that had none to give
        self._during_pass: ExitStack | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Monitor:
        """Put the hooks on the model."""
        if self._hooks:
            raise RuntimeError("this monitor is already watching")
        self._thread = None
        before, after = Hook(self._before_forward), Hook(self._after_forward)
        self._hooks = [
            self._root.register_forward_pre_hook(before, with_kwargs=True),
            self._root.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Take every hook off; what was recorded stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._leave_pass()
        if kind is None or self._group is None:  # other processes would wait for one that failed
            self._finish_step()
        if kind is None and not self._backward_passes:
            warnings.warn(_NOTHING_SEEN, stacklevel=2)
        self._drop_step()

    @property
    def reports(self) -> list[Report]:
        """One report a measured step so far, in order."""
        if self._group is None:  # else the other processes would have to take part
            self._finish_step()
        return self._reports

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if not self._is_training_pass(module):
            return
        self._leave_pass()
        self._finish_step()
        number = self._backward_passes // self._accumulation
        if self._step is None and self._is_due(number):
            scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
            self._step = _Step(number, scale)
        if self._step is None:
            self._capture.detach()
            return
        if not self._step.received:  # passes before it have come to nothing, or share its weights
            self._step.surroundings.weights.discard()
        self._during_pass = ExitStack()
        if self._compiled:
            self._during_pass.enter_context(torch.compiler.set_stance("force_eager"))
        self._during_pass.enter_context(self._step.surroundings)
        self._capture.begin_pass(args, kwargs)

    def _after_forward(
        self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        if self._is_training_pass(module):
            self._leave_pass()
            if output is not None:  # None: it was broken off by an error
                self._await_backward(output, samples_of([args, kwargs]) or 0)

    def _is_training_pass(self, module: nn.Module) -> bool:
        if torch.compiler.is_compiling() or module is not self._root or measuring.get():
            return False
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return False
        backward = backward_pass()
        if backward is not None and backward == self._latest_backward:
            return False  # checkpointing computes again what was counted
        self._thread = self._thread or threading.get_ident()
        return self._thread == threading.get_ident()

    def _await_backward(self, output: Any, samples: int) -> None:
        """Count the pass when the first gradient comes to an output, and its backward pass once."""
        step, came = self._step, False
        activity = {} if step is None else step.surroundings.latest
        # A leaf, such as a parameter, would keep the hook from pass to pass.
        outputs = [t for t in _tensors_of(output) if t.requires_grad and not t.is_leaf]
        hidden = not outputs  # in an object of the model's own: the pass counts by itself

        # It must not refer to an output: a graph that its own hook holds is never freed.
        def count(_: Tensor | None = None) -> None:
            nonlocal came
            if came or not self._hooks or not (hidden or _is_of_the_loss()):
                return
            came = True
            number = backward_pass()
            if number is None or number != self._latest_backward:
                self._latest_backward = number
                self._backward_passes += 1
                if step is not None:
                    step.begin_backward()
            if step is not None:
                step.surroundings.count(activity, samples)

        for tensor in outputs:
            tensor.register_hook(count)
        if hidden:
            count()

    def _layer_called(self, call: LayerCall) -> None:
        if self._step is not None:
            self._step.surroundings.layer_called(call)

    def _is_due(self, number: int) -> bool:
        return self._backward_passes % self._accumulation == 0 and number >= self._next

    def _leave_pass(self) -> None:
        if self._during_pass is not None:
            during_pass, self._during_pass = self._during_pass, None
            self._capture.end_pass()
            during_pass.close()

    def _finish_step(self) -> None:
        """Make the report of the step whose gradients have all come."""
        step = self._step
        if step is None or step.received < self._accumulation:
            return
        self._step = None
        if step.unfinished and self._group is None:  # an error broke its backward pass off
            step.surroundings.weights.discard()
            self._capture.discard()
            return
        layers = self._measured(step)
        overflow = step.loss_scale > 1 and any(map(_overflowed, layers))
        if not layers or (overflow and self._passed_over < OVERFLOWS):
            self._passed_over += 1
            return
        self._passed_over = 0
        self._next = (step.number // self._every + 1) * self._every
        self.skipped = self._capture.skipped
        self._reports.append(Report(step.number, layer_reports(layers)))

    def _measured(self, step: _Step) -> list[LayerMeasurement]:
        # A mean loss is the mean of the passes'; a summed one has nothing divided.
        mean = self._reduction == "mean"
        scale = step.loss_scale / (self._accumulation if mean else 1)
        factors = self._capture.take(scale) if self._capture.has_samples else []
        if self._group is not None:
            device = next(self._root.parameters()).device
            factors = reduce_factors(factors, device, self._group)
            step.surroundings.reduce(device, self._group)
        samples = 1.0 if mean else step.surroundings.samples or math.nan
        return measured_layers(factors, step.surroundings, 1 / (step.loss_scale * samples))

    def _drop_step(self) -> None:
        if self._step is not None:
            self._step.surroundings.weights.discard()
            self._step = None
        self._capture.discard()
        self._capture.detach()


_NOTHING_SEEN = (
    "watch saw no forward pass of the model with a backward pass to its outputs, and measured "
    "nothing: hand over the module that the loop calls. Inside a function that is compiled, or "
    "after model.compile(), its hooks do not run: use torch.compile(model)"
)


def require_model(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        TypeError: ``model`` is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def unwrapped(model: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return the model inside compilation and data parallelism, and these wrappers."""
    wrappers: list[nn.Module] = []
    while True:
        if isinstance(model, DistributedDataParallel):
            inner = model.module
        elif (inner := getattr(model, "_orig_mod", None)) is None:
            return model, wrappers
        wrappers.append(model)
        model = inner


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _is_of_the_loss() -> bool:
    """Whether the backward pass that runs ends with the loss, and is no part of making it."""
    return not torch.is_grad_enabled()  # one that builds a graph, as for a gradient penalty


def _overflowed(layer: LayerMeasurement) -> bool:
    return layer.spectra.grad.diverged and not layer.spectra.input.diverged


def _tensors_of(output: Any) -> Iterator[Tensor]:
    if is_dataclass(output) and not isinstance(output, Mapping | type):
        output = [getattr(output, field.name) for field in fields(output)]
    return tensors_in(output)


def _single_batch(data: Any, model: nn.Module) -> tuple[Any, Any]:
    """Return the one batch of the data: exact blocks compare every pair of samples."""
    with undisturbed(model):  # a loader that shuffles draws random numbers
        found = list(batches(data, model))
    if len(found) != 1:
        raise ValueError(
            f"data must be one batch (inputs, target) for exact=True, got {len(found)} batches: "
            "exact blocks compare every pair of samples, so join them into one"
        )
    return found[0]


def _on(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Return the module, or a copy of it, on a device."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device must be one that PyTorch finds here, got {device!r}") from error
    return module if _is_on(module, target) else copy.deepcopy(module).to(target)


def _is_on(module: nn.Module, device: torch.device) -> bool:
    here = torch.empty(0, device=device).device  # "cuda" is one of several
    return all(tensor.device == here for tensor in [*module.parameters(), *module.buffers()])
