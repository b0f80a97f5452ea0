"""The two second moments of every layer, Σ_x and Σ_g: from own passes, or from the training's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lca_widgets._checks import require_integer, require_one_of
from lca_widgets.curvature.capture import (
    Capture,
    ForwardPass,
    Layer,
    LayerCall,
    measuring,
    supported_layers,
    uncovered_layers,
)
from lca_widgets.curvature.layers import Conv, layer_moments
from lca_widgets.curvature.losses import Fisher, LossFunction, Reduction
from lca_widgets.curvature.moments import (
    exact_products,
    relative_cut,
    scaled,
    scaling,
    second_moment_sum,
    sum_dtype,
)
from lca_widgets.curvature.passes import (
    Companion,
    Labels,
    batches,
    by_sample,
    measure_batch,
    nothing_measured,
    require_samples_first,
    undisturbed,
)

__all__ = ["FactorCapture", "Factors", "LayerFactors", "Sharing", "kronecker_factors"]

Sharing = Literal["expand", "reduce"]


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The Kronecker factors of one layer h = W x.

    Attributes:
        name: The layer's qualified name in the model.
        input_moment: Σ_x = E[x xᵀ], uncentred, shape ``[d_in, d_in]``, float64 (float32 on a device
            without it); for the patches of a convolution with G > 1 groups, ``[G, d_in, d_in]``,
            one matrix a group.
        grad_moment: Σ_g = E[g gᵀ], uncentred, shape ``[d_out, d_out]`` or ``[G, d_out, d_out]``,
            of the same type, of the *per-sample* output gradient g_n = ∂l_n/∂h_n, whatever the
            loss's reduction.
        n: Number of samples.
        cut: Eigenvalues below ``cut * λ_max`` are rounding noise at the activations' precision:
            1e-12 for float64, 1e-6 for float32, 1e-7 for a float32 linear layer of up to 64 inputs
            and outputs, whose products are taken in float64.
        kind: The layer's class, ``"Linear"`` or ``"Conv2d"``, say.
        rows: Number of vectors behind Σ_x: samples times positions and calls; samples for "reduce".
        grad_rows: The same behind Σ_g, times the columns of labels.
        input_mean: m_x = E[x], shape ``[d_in]`` or ``[G, d_in]``, where ``means`` were asked for:
            the centred moment is Σ_x − m_x m_xᵀ.
        grad_mean: m_g, √T times the mean of g over samples and their T positions, so that the
            centred moment is Σ_g − m_g m_gᵀ; ``None`` for an expectation over all labels.
        parts: The same of ``K`` disjoint parts of the samples, where they were asked for.
    """

    name: str
    input_moment: Tensor
    grad_moment: Tensor
    n: int
    cut: float
    kind: str = "Linear"
    rows: int = 0
    grad_rows: int = 0
    input_mean: Tensor | None = None
    grad_mean: Tensor | None = None
    parts: tuple[LayerFactors, ...] = ()


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of a model's layers, and what has none.

    Attributes:
        layers: One entry a measured layer, in the order of registration.
        skipped: Name and reason of every module with parameters that was not measured.
    """

    layers: list[LayerFactors]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Convention:
    """What `FactorCapture` and `kronecker_factors` are asked to sum."""

    conv: Conv
    sharing: Sharing
    bias: bool
    parts: int
    means: bool

    def __post_init__(self) -> None:
        require_one_of("conv", self.conv, get_args(Conv))
        require_one_of("sharing", self.sharing, get_args(Sharing))
        require_integer("parts", self.parts, low=1)
        if self.means and (self.sharing == "reduce" or self.parts > 1):
            raise ValueError("means=True is for sharing='expand' with parts=1")


def kronecker_factors(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    fisher: Fisher = "empirical",
    conv: Conv = "patch",
    sharing: Sharing = "expand",
    bias: bool = False,
    reduction: Reduction | None = None,
    layers: Collection[str] | None = None,
    parts: int = 1,
    means: bool = False,
    seed: int = 0,
) -> Factors:
    """Measure Σ_x and Σ_g of every linear and convolution layer, by passes of its own.

    Each batch takes one forward pass and one backward pass (C−1 for the exact Fisher of softmax
    cross entropy) to the layers' *outputs*: no weight gradient is computed, and memory does not
    grow with the number of batches. Frozen layers are measured like others. Afterwards parameters,
    their ``.grad``, buffers, modes and random state are bit for bit as before.

    With x_nt the vector that a layer multiplies its weight with at position t of sample n (all
    positions of all calls in a pass; T of them), and g_nt = ∂l_n/∂h_nt, the factors are::

        expand:  Σ_x = 1/(N·T) Σ_nt x_nt x_ntᵀ             Σ_g = 1/N Σ_nt g_nt g_ntᵀ
        reduce:  Σ_x = 1/N Σ_n x̄_n x̄_nᵀ, x̄_n = Σ_t x_nt/T   Σ_g = 1/N Σ_n ĝ_n ĝ_nᵀ, ĝ_n = Σ_t g_nt

    For ``conv="patch"``, x_nt is the patch (C_in/G·k·k) that output position t reads, padding
    included, and t runs over the output's positions. For ``conv="pixel"``, x_nt is the vector of
    C_in channels at input position t, and every position counts as a sample of its own, as in the
    code of Huang et al. (2020): "expand" has Σ_g multiplied by T. A sum over labels (``"exact"``)
    stands inside Σ_g; see `losses.output_gradients`. Where batch normalisation in train mode
    couples the samples, g_n is ∂(Σ_m l_m)/∂h_n; "exact" then sums the gradients of columns that
    all samples share, whose mixed products are not an expectation.

    N counts the first dimension of the targets. "reduce" and ``parts`` must know which of a layer's
    entries belong to a sample: its N·F entries are taken as F in a row for each.

    Args:
        model: Any module.
        loss_fn: Maps the model's output and the target to a loss; for another Fisher than the
            empirical, one of PyTorch's four losses in `losses.output_gradients`.
        data: One batch ``(inputs, target)``, or an iterable of them; see `passes.batches`.
        fisher: Which labels: ``"empirical"``, ``"exact"`` or ``"sampled"``.
        conv: ``"patch"`` or ``"pixel"``.
        sharing: ``"expand"`` or ``"reduce"``.
        bias: Append the constant 1 to the inputs of layers that have a bias.
        reduction: ``"mean"`` or ``"sum"``, how the loss combines the samples; ``None`` reads or
            finds it out, see `losses.summed_loss`.
        layers: Names of the layers to measure; ``None`` measures all.
        parts: Into how many parts each batch's samples are divided, whose factors come as well
            (for the sampling error; each needs memory of its own).
        means: Whether the means come as well, for centred spectra.
        seed: Draws the labels of ``"sampled"``.

    Returns:
        The factors, and the modules without any.

    Raises:
        TypeError: an argument of the wrong type; another Fisher than the empirical, and a model
            that does not return a tensor.
        ValueError: an unknown option, layer or reduction; a model without layers to measure; no
            batch; batch sizes that differ; no layer on the way from the input to the loss; means
            of "reduce" or of parts.

    Source:
        Huang et al. (2020): uncentred moments of per-sample quantities. Patches, the expectation
        over labels, "expand" and "reduce": K-FAC, Martens & Grosse (2015), Grosse & Martens
        (2016), Eschenhagen et al. (2023).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> batch = torch.randn(8, 3, 4, 4), torch.arange(8) % 2
        >>> factors = kronecker_factors(model, nn.CrossEntropyLoss(), batch, fisher="exact")
        >>> [tuple(layer.input_moment.shape) for layer in factors.layers]
        [(27, 27), (16, 16)]
    """
    convention = Convention(conv, sharing, bias, parts, means)
    labels = Labels(loss_fn, fisher, reduction, seed)
    return measured_factors(model, data, labels, convention, layers)


def measured_factors(
    model: nn.Module,
    data: Any,
    labels: Labels,
    convention: Convention,
    layers: Collection[str] | None,
    companion: Companion | None = None,
) -> Factors:
    """Measure as `kronecker_factors` does, with a companion that looks at the passes too."""
    sums = _sums(model, layers, convention)
    skipped = uncovered_layers(model) if layers is None else {}
    with undisturbed(model, labels.loss_fn):
        for inputs, target in batches(data, model):
            measure_batch(model, inputs, target, labels, sums, companion)
    measured = _taken(sums, skipped)
    if not measured:
        raise nothing_measured(sums)
    if labels.several:
        measured = [replace(layer, grad_mean=None) for layer in measured]
    return Factors(measured, skipped)


class FactorCapture:
    """Context manager that gathers Σ_x and Σ_g of every layer while a model is trained.

    It uses the forward and backward passes that happen anyway (the empirical Fisher's data
    labels), over as many batches as there are, and changes neither parameters, gradients, buffers,
    modes nor random state. The formulas are those of `kronecker_factors`, with g_nt = N·∂L/∂h_nt
    for a mean loss and ∂L/∂h_nt for a summed one, N the size of the batch: the first dimension of
    the model's first tensor argument.

    The gradient counts as it arrives, in the first backward pass over a graph. For a loss that was
    multiplied (by a gradient scaler) or divided (by a number of accumulation steps) tell `take`
    by what. A model called twice for one loss has each call's samples counted.

    Args:
        model: The module to watch.
        reduction: ``"mean"`` or ``"sum"``: how the loss combines the samples of a batch.
        conv: ``"patch"`` or ``"pixel"``.
        sharing: ``"expand"``, or ``"reduce"``, which keeps each batch's vectors until `take`.
        bias: Append the constant 1 to the inputs of layers that have a bias.
        means: Whether the means come as well, for centred spectra.
        layers: Names of the layers to watch; ``None`` watches all.
        on_call: Receives each call, those that reentrant checkpointing will repeat included.
        takes: Says, when a gradient comes, whether it counts; one that does not is waited for.

    Raises:
        ValueError: an unknown option or layer, a model without layers to measure, or means of
            "reduce".
        RuntimeError: `take` without a completed forward and backward pass.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
        >>> with FactorCapture(model) as capture:
        ...     nn.functional.cross_entropy(model(x), y).backward()
        >>> [factors] = capture.take()
        >>> bool(torch.allclose(factors.input_moment, torch.eye(3, dtype=torch.float64) / 3))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: Reduction = "mean",
        conv: Conv = "patch",
        sharing: Sharing = "expand",
        bias: bool = False,
        means: bool = False,
        layers: Collection[str] | None = None,
        on_call: Callable[[LayerCall], None] | None = None,
        takes: Callable[[], bool] = lambda: True,
    ) -> None:
        require_one_of("reduction", reduction, get_args(Reduction))
        self._reduction = reduction
        self._capture = Capture(model, self._on_call, layers=layers)
        self._sums = _sums(model, layers, Convention(conv, sharing, bias, 1, means))
        self._on_measured = on_call
        self._takes = takes
        self._uncovered = uncovered_layers(model) if layers is None else {}
        self._session = object()  # a gradient that arrives after __exit__ belongs to none
        self.skipped: dict[str, str] = {}

    def __enter__(self) -> FactorCapture:
        """Start watching."""
        self._session = object()
        self._capture.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching; what was gathered stays for `take`."""
        self._session = object()
        self._capture.__exit__(*exception)

    def begin_pass(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Watch the forward pass that follows; see `Capture.begin`."""
        self._capture.begin(args, kwargs)

    def end_pass(self) -> None:
        """Say that it is over; its gradients may still come."""
        self._capture.end()

    def detach(self) -> None:
        """Take the hooks off the layers; gradients of the passes so far may still come."""
        self._capture.detach()

    def take(self, loss_scale: float = 1.0) -> list[LayerFactors]:
        """Return the factors of every batch whose backward pass ended since the last call.

        A batch counts with its number of samples, so that the result over several batches is the
        mean of theirs, weighted by N. Layers that no gradient reached, and modules that have no
        factors, are named in ``skipped`` with the reason.

        Args:
            loss_scale: What every loss was multiplied with before its backward pass, not zero:
                Σ_g is divided by the square of it.
        """
        skipped = dict(self._uncovered)
        for sums in self._sums.values():
            sums.end_column()  # what "reduce" has totalled
        if not self.has_samples:
            raise RuntimeError(
                "run a forward and a backward pass inside the context before take(); no gradient "
                f"came from {', '.join(map(repr, self._sums))}"
            )
        factors = _taken(self._sums, skipped)
        self.skipped = skipped
        self.discard()
        return factors if loss_scale == 1 else [_unscaled(layer, loss_scale) for layer in factors]

    @property
    def has_samples(self) -> bool:
        """Whether a backward pass has come to any layer since the last `take`."""
        return any(sums.samples for sums in self._sums.values())

    def discard(self) -> None:
        """Forget every batch since the last `take`."""
        for sums in self._sums.values():
            sums.reset()

    def _on_call(self, call: LayerCall) -> None:
        if measuring.get():
            return
        if self._on_measured and not call.refusal:
            self._on_measured(call)
        sums = self._sums[call.name]
        if call.refusal or not call.output.requires_grad:
            sums.unmeasured = call.refusal or (
                "its output needed no gradient (under torch.no_grad, or frozen with nothing "
                "trainable before it)"
            )
            return
        sums.unmeasured = "no gradient came back: the loss does not depend on its output"
        # It counts when its gradient arrives: a forward pass alone leaves no trace in the sums,
        # and what it waits with is freed with its graph.
        device, forward_pass, session = call.input.device, call.forward_pass, self._session
        with exact_products(device):
            pending = [sums.measured(call)]

        def receive(gradient: Tensor) -> None:
            # Once, and not after the context was left.
            if pending and session is self._session and self._takes():
                scale = forward_pass.samples if self._reduction == "mean" else 1
                with exact_products(device):
                    pending.pop()()
                    sums.add_gradient(gradient, forward_pass, scale)

        # A hook on the tensor, not on the module: it also works before an in-place activation.
        call.output.register_hook(receive)


@dataclass
class _Part:
    """Running sums over one part of the samples."""

    input: Tensor | None = None
    gradient: Tensor | None = None
    input_total: Tensor | None = None
    gradient_total: Tensor | None = None
    rows: int = 0
    gradient_rows: int = 0
    samples: int = 0

    def add_input(self, moment_sum: Tensor, rows: int, total: Tensor | None = None) -> None:
        self.input = _plus(self.input, moment_sum)
        self.rows += rows
        if total is not None:
            self.input_total = _plus(self.input_total, total)

    def add_gradient(self, moment_sum: Tensor, rows: int, total: Tensor | None = None) -> None:
        self.gradient = _plus(self.gradient, moment_sum)
        self.gradient_rows += rows
        if total is not None:
            self.gradient_total = _plus(self.gradient_total, total)

    def factors(
        self, name: str, kind: str, cut: float, gradients_per_sample: float
    ) -> LayerFactors:
        """Divide the sums by their numbers, in place: they are used up."""
        assert self.input is not None
        assert self.gradient is not None
        share = gradients_per_sample / self.samples
        input_mean = grad_mean = None
        if self.input_total is not None and self.gradient_total is not None:
            input_mean = _squeeze(self.input_total / self.rows)
            grad_mean = _squeeze(self.gradient_total * math.sqrt(share / self.gradient_rows))
        return LayerFactors(
            name=name,
            input_moment=_squeeze(self.input.div_(self.rows)),
            grad_moment=_squeeze(self.gradient.mul_(share)),
            n=self.samples,
            cut=cut,
            kind=kind,
            rows=self.rows,
            grad_rows=self.gradient_rows,
            input_mean=input_mean,
            grad_mean=grad_mean,
        )


@dataclass
class _Totals:
    """What "reduce" totals over the positions and calls of one pass before it takes products."""

    input: Tensor | None = None
    positions: int = 0
    gradient: Tensor | None = None


class _LayerSums:
    """Running sums of one layer over batches."""

    def __init__(self, name: str, layer: Layer, convention: Convention) -> None:
        self.name = name
        self.kind = type(layer).__name__
        self.unmeasured = "was not called as a module in the forward pass"
        self._moments = layer_moments(layer, convention.conv)
        self._reduce = convention.sharing == "reduce"
        self._constant = convention.bias and layer.bias is not None
        self._count = convention.parts
        self._means = convention.means
        self._cut = 0.0
        self.reset()

    def reset(self) -> None:
        """Start afresh."""
        self._parts = [_Part() for _ in range(self._count)]
        self._outputs = 0
        self._passes: dict[ForwardPass, _Totals] = {}

    @property
    def samples(self) -> int:
        """Number of samples that count; 0 if none brought an input (an expert left out)."""
        return sum(part.samples for part in self._parts if part.rows)

    def measured(self, call: LayerCall) -> Callable[[], None]:
        """Measure a call's input now; the function that is returned makes it count."""
        self._see(call.input)
        x, positions, n = call.input, call.output.shape[2:], call.forward_pass.samples
        if self._reduce or self._count > 1:
            require_samples_first(call)
        if self._reduce:
            totals = by_sample(self._moments.input_totals(x, positions), n, self.name).sum(dim=1)
            return partial(self._hold, call.forward_pass, totals, self._moments.rows(x, positions))
        sums = [
            (
                k,
                self._input_sum(chunk, positions),
                self._moments.rows(chunk, positions),
                self._input_total(chunk, positions) if self._means else None,
            )
            for k, chunk in self._split(x, n)
        ]
        outputs = call.output.shape[0] * positions.numel()
        return partial(self._add_input, call.forward_pass, sums, outputs)

    def add_gradient(self, g: Tensor, forward_pass: ForwardPass, scale: float = 1.0) -> None:
        """Add ∂L/∂h of one call; ``scale`` times it is the per-sample gradient."""
        n = forward_pass.samples
        self._see(g)
        if self._reduce:
            totals = self._passes[forward_pass]
            samples = by_sample(self._moments.gradient_totals(g), n, self.name).sum(dim=1)
            totals.gradient = _plus(totals.gradient, samples * scale)
            return
        for k, chunk in self._split(g, n):
            moment_sum = self._moments.gradient_sum(chunk)
            total = self._gradient_total(chunk) * scale if self._means else None
            self._parts[k].add_gradient(
                moment_sum if scale == 1 else moment_sum.mul_(scale**2),
                self._moments.gradient_rows(chunk),
                total,
            )

    def end_column(self) -> None:
        """Take the products of what "reduce" has totalled, for one column of labels."""
        for forward_pass, totals in self._passes.items():
            if totals.gradient is not None:
                with exact_products(totals.gradient.device):
                    self._take_products(totals, forward_pass.samples)

    def _take_products(self, totals: _Totals, n: int) -> None:
        if totals.input is not None:  # once: it is the same for all columns
            means = totals.input * (n / totals.positions)
            if self._constant:
                means = torch.cat([means, torch.ones_like(means[..., :1])], dim=-1)
            for k, chunk in self._split(means, n):
                self._parts[k].add_input(_group_moment_sum(chunk), len(chunk))
            totals.input = None
        if totals.gradient is not None:
            for k, chunk in self._split(totals.gradient, n):
                self._parts[k].add_gradient(_group_moment_sum(chunk), len(chunk))
            totals.gradient = None

    def end_batch(self) -> None:
        """Forget the batch's passes: all of their gradients have come."""
        self._passes.clear()

    def factors(self) -> LayerFactors:
        """Divide the sums by their numbers, in place: they are used up."""
        parts = [part for part in self._parts if part.rows]
        by_position = self._moments.positions_are_samples and not self._reduce
        per_sample = self._outputs / self.samples if by_position else 1
        results = [part.factors(self.name, self.kind, self._cut, per_sample) for part in parts]
        return results[0] if self._count == 1 else _joined(results)

    def _add_input(
        self,
        forward_pass: ForwardPass,
        sums: list[tuple[int, Tensor, int, Tensor | None]],
        outputs: int,
    ) -> None:
        self._enter(forward_pass)
        self._outputs += outputs
        for k, moment_sum, rows, total in sums:
            self._parts[k].add_input(moment_sum, rows, total)

    def _hold(self, forward_pass: ForwardPass, totals: Tensor, rows: int) -> None:
        self._enter(forward_pass)
        held = self._passes[forward_pass]
        held.input = _plus(held.input, totals)
        held.positions += rows

    def _enter(self, forward_pass: ForwardPass) -> None:
        """Count the samples of a pass once, however often it calls the layer."""
        if forward_pass not in self._passes:
            self._passes[forward_pass] = _Totals()
            for k, start, stop in self._shares(forward_pass.samples):
                self._parts[k].samples += stop - start

    def _input_sum(self, x: Tensor, positions: torch.Size) -> Tensor:
        moment_sum = self._moments.input_sum(x, positions)
        if not self._constant:
            return moment_sum
        total = self._input_total(x, positions).unsqueeze(2)  # its last entry is the ones'
        return torch.cat([torch.cat([moment_sum, total[:, :-1].mT], dim=1), total], dim=2)

    def _input_total(self, x: Tensor, positions: torch.Size) -> Tensor:
        """Σ x over samples and positions, shape ``[G, d_in]``, the constants' sum appended."""
        total = self._moments.input_totals(self._over_samples(x), positions)[0]
        if not self._constant:
            return total
        ones = total.new_full((len(total), 1), self._moments.rows(x, positions))
        return torch.cat([total, ones], dim=1)

    def _gradient_total(self, g: Tensor) -> Tensor:
        """Σ g over samples and positions, shape ``[G, d_out]``."""
        return self._moments.gradient_totals(self._over_samples(g))[0]

    def _over_samples(self, values: Tensor) -> Tensor:
        """Σ_n, kept as one sample: the sums over positions are linear, and cheap in float64."""
        least = sum_dtype(values.device) if self._moments.wide else torch.float32
        dtype = torch.promote_types(values.dtype, least)
        return values.sum(dim=0, keepdim=True, dtype=dtype).to(sum_dtype(values.device))

    def _split(self, values: Tensor, n: int) -> list[tuple[int, Tensor]]:
        """Divide the n samples of ``values`` among the parts; the empty ones are left out."""
        if self._count == 1:
            return [(0, values)]
        samples = by_sample(values, n, self.name)
        return [(k, samples[start:stop].flatten(0, 1)) for k, start, stop in self._shares(n)]

    def _see(self, values: Tensor) -> None:
        """Take the coarsest precision of all: autocast may have halved it on one side only."""
        self._cut = max(self._cut, relative_cut(values.dtype, wide=self._moments.wide))

    def _shares(self, n: int) -> list[tuple[int, int, int]]:
        """Which of n samples each part gets, those that get any."""
        bounds = [n * k // self._count for k in range(self._count + 1)]
        shares = zip(range(self._count), bounds, bounds[1:], strict=False)
        return [share for share in shares if share[1] < share[2]]


def _joined(parts: list[LayerFactors]) -> LayerFactors:
    """The factors of all samples from those of their parts."""
    n, rows = sum(part.n for part in parts), sum(part.rows for part in parts)
    inputs = sum((part.input_moment * (part.rows / rows) for part in parts), torch.zeros(()))
    gradients = sum((part.grad_moment * (part.n / n) for part in parts), torch.zeros(()))
    return replace(
        parts[0],
        input_moment=inputs,
        grad_moment=gradients,
        n=n,
        rows=rows,
        grad_rows=sum(part.grad_rows for part in parts),
        parts=tuple(parts),
    )


def _unscaled(factors: LayerFactors, loss_scale: float) -> LayerFactors:
    mean = factors.grad_mean
    return replace(
        factors,
        grad_moment=factors.grad_moment / loss_scale**2,
        grad_mean=None if mean is None else mean / loss_scale,
    )


def _plus(total: Tensor | None, new: Tensor) -> Tensor:
    return new if total is None else total.add_(new)


def _squeeze(moment: Tensor) -> Tensor:
    """One matrix where there is one group."""
    return moment[0] if len(moment) == 1 else moment


def _group_moment_sum(rows: Tensor) -> Tensor:
    """Σ_n r_n r_nᵀ for ``rows`` [n, G, d], shape [G, d, d]."""
    if rows.shape[1] == 1:
        return second_moment_sum(rows)[None]
    scale, square = scaling(rows, wide=True)
    groups = scaled(rows, scale, wide=True).transpose(0, 1)
    return (groups.mT @ groups).to(square.dtype) * square


def _sums(
    model: nn.Module, layers: Collection[str] | None, convention: Convention
) -> dict[str, _LayerSums]:
    return {
        name: _LayerSums(name, layer, convention)
        for name, layer in supported_layers(model, layers).items()
    }


def _taken(sums: Mapping[str, _LayerSums], skipped: dict[str, str]) -> list[LayerFactors]:
    """The factors of the layers that were measured; the others are added to ``skipped``."""
    skipped |= {name: layer.unmeasured for name, layer in sums.items() if not layer.samples}
    return [layer.factors() for layer in sums.values() if layer.samples]
