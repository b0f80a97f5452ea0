"""Σ_x and Σ_g from their definition: one sample, one position, one label after the other.

It shares no code with the library. A layer is h = W p, linear in W: with W = e_d (and no bias) it
returns entry d of every vector p that it reads. A gradient is that of one sample's loss alone.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (
    nn.Linear,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """One of PyTorch's losses, and the labels that its distribution gives to one sample."""

    kind: Any
    options: dict[str, Any] = field(default_factory=dict)

    def module(self, reduction: str = "mean", dtype: torch.dtype = torch.float64) -> nn.Module:
        return self.kind(reduction=reduction, **copy.deepcopy(self.options)).to(dtype)

    def share(self, output: Tensor, target: Tensor, reduction: str) -> float:
        """What the sum over a sample's terms is multiplied by in l_n: N·mean/sum, or 1."""
        if reduction == "sum":
            return 1.0
        mean, total = (self.module(r)(output, target) for r in ("mean", "sum"))
        return len(output) * float(mean / total)

    def labels(self, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
        """All labels of a sample, ``output`` [1, …], with their probabilities.

        Normal labels are f ± the standard deviation: the gradient is linear in the label, so its
        second moment is that of any distribution with the same mean and variance.
        """
        output = output.detach()
        if self.kind is nn.CrossEntropyLoss:
            log_p = output.log_softmax(dim=1).movedim(1, -1).reshape(-1, output.shape[1])
            shape = target.shape if not target.is_floating_point() else output[:, 0].shape
            ignored = self.options.get("ignore_index", -100)
            kept = [True] * len(log_p) if target.is_floating_point() else target != ignored
            terms = [
                [(float(log_p[t, c]), c) for c in range(output.shape[1])]
                if keep
                else [(0.0, ignored)]
                for t, keep in enumerate(torch.as_tensor(kept).flatten().tolist())
            ]
            for choice in itertools.product(*terms):
                label = torch.tensor([c for _, c in choice]).reshape(shape)
                yield math.exp(sum(log_p for log_p, _ in choice)), label
            return
        p = torch.full_like(output, 0.5)
        if self.kind is not nn.MSELoss:
            p = output if self.kind is nn.BCELoss else output.sigmoid()
        for bits in itertools.product([0.0, 1.0], repeat=output.numel()):
            positive = torch.tensor(bits, dtype=output.dtype).reshape(output.shape)
            probability = float((positive * p + (1 - positive) * (1 - p)).prod())
            if self.kind is nn.MSELoss:
                yield probability, output + (2 * positive - 1) * math.sqrt(0.5)
            else:
                yield probability, positive


CROSS_ENTROPY = Loss(nn.CrossEntropyLoss)


@dataclass(frozen=True)
class Vectors:
    """What one layer multiplies, by sample; G groups.

    Attributes:
        inputs: For each sample the vectors ``[T, G, d_in]``.
        gradients: For each sample, for each label, its probability and ``[T, G, d_out]``.
        bias: Whether the layer has one.
        multiplier: Number of output positions, where each counts as a sample; else 1.
    """

    inputs: list[Tensor]
    gradients: list[list[tuple[float, Tensor]]]
    bias: bool
    multiplier: int

    def moments(self, sharing: str, *, bias: bool = False) -> tuple[Tensor, Tensor]:
        """The two sums of the docstring, one outer product after the other."""
        xs = self.inputs
        if bias and self.bias:
            xs = [torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) for x in xs]
        if sharing == "reduce":
            xs = [x.mean(dim=0, keepdim=True) for x in xs]
        rows = [row for x in xs for row in x]
        sigma_x = torch.stack([outer(row) for row in rows]).mean(dim=0)
        sigma_g = torch.zeros(())
        for labels in self.gradients:
            for probability, g in labels:
                if sharing == "reduce":
                    sigma_g = sigma_g + probability * outer(g.sum(dim=0))
                else:
                    squares = torch.stack([outer(row) for row in g]).sum(dim=0)
                    sigma_g = sigma_g + probability * self.multiplier * squares
        return sigma_x.squeeze(0), (sigma_g / len(self.gradients)).squeeze(0)


def outer(row: Tensor) -> Tensor:
    """[G, d] to [G, d, d]."""
    return row[:, :, None] * row[:, None, :]


def sample(value: Any, n: int) -> Any:
    """Sample n of a batch, as a batch of one."""
    if isinstance(value, Tensor):
        return value[n : n + 1]
    if isinstance(value, dict):
        return {key: sample(part, n) for key, part in value.items()}
    return tuple(sample(part, n) for part in value)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def vectors(
    model: nn.Module,
    inputs: Any,
    samples: int,
    losses: Callable[[Any, int], Iterable[tuple[float, Tensor]]],
    conv: str = "patch",
) -> dict[str, Vectors]:
    """The vectors of every layer; ``losses`` maps output and n to (probability, l_n) of its labels.

    The model is copied, in float64 and with gradients everywhere, and runs on each sample alone.
    """
    model = copy.deepcopy(model).double().requires_grad_(True)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    calls: list[tuple[str, Tensor, Tensor]] = []

    def keep(name):
        def hook(_, args, kwargs, output):
            x = args[0] if args else kwargs["input"]
            calls.append((name, x.detach().clone(), output))
            return output.clone()  # which an in-place activation may overwrite

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(keep(name), with_kwargs=True)
    xs: dict[str, list[Tensor]] = {}
    gs: dict[str, list[list[tuple[float, Tensor]]]] = {}
    counts: dict[str, int] = {}
    for n in range(samples):
        calls.clear()
        output = call(model, sample(inputs, n))
        record = list(calls)
        outputs = [h for _, _, h in record]
        by_label = []
        for probability, loss in losses(output, n):
            found = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
            by_label.append((probability, found))
        for name in dict.fromkeys(name for name, _, _ in record):
            places = [k for k, (other, _, _) in enumerate(record) if other == name]
            layer = layers[name]
            groups = 1 if conv == "pixel" else getattr(layer, "groups", 1)
            xs.setdefault(name, []).append(
                torch.cat([read(layer, record[k][1], conv) for k in places])
            )
            gs.setdefault(name, []).append([
                (probability, torch.cat([rows(layer, found[k], groups) for k in places]))
                for probability, found in by_label
            ])  # fmt: skip
            pixels = conv == "pixel" and not isinstance(layer, nn.Linear)
            counts[name] = len(gs[name][-1][0][1]) if pixels else 1
    return {
        name: Vectors(xs[name], gs[name], layers[name].bias is not None, counts[name])
        for name in layers
        if name in xs
    }


def rows(layer: nn.Module, h: Tensor, groups: int) -> Tensor:
    """[…, d] or [N, C, …] to [T, G, d/G]."""
    channels_last = h if isinstance(layer, nn.Linear) else h.movedim(1, -1)
    return channels_last.reshape(-1, groups, channels_last.shape[-1] // groups)


def read(layer: nn.Module, x: Tensor, conv: str) -> Tensor:
    """The vectors [T, G, d_in] that a layer multiplies its weight with."""
    if conv == "pixel" or isinstance(layer, nn.Linear):
        return rows(layer, x, 1)
    groups = layer.groups
    # The rows of the weight that make the first output channel of each group.
    probe = torch.zeros_like(layer.weight)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        first = probe.unflatten(0, (groups, -1))[:, :, 0]  # [G, C_in/G, *k]
    else:
        first = probe.unflatten(0, (groups, -1))[:, 0]
    probe_values = {"weight": probe}
    if layer.bias is not None:
        probe_values["bias"] = torch.zeros_like(layer.bias)
    entries = []
    for place in itertools.product(*map(range, first.shape[1:])):
        probe.zero_()
        first[(slice(None), *place)] = 1
        h = torch.func.functional_call(layer, probe_values, x)
        entries.append(rows(layer, h, groups)[..., 0])
    return torch.stack(entries, dim=-1)


def reference(
    model: nn.Module,
    inputs: Any,
    target: Tensor,
    loss: Loss = CROSS_ENTROPY,
    *,
    fisher: str = "empirical",
    reduction: str = "mean",
    conv: str = "patch",
) -> dict[str, Vectors]:
    """`vectors` for one of PyTorch's losses, over the data's labels or all of the model's."""
    double = target.double() if target.is_floating_point() else target
    twin = copy.deepcopy(model).double()
    inputs = as_double(inputs)
    with torch.no_grad():
        share = loss.share(call(twin, inputs), double, reduction)
    terms = loss.module("sum")

    def losses(output, n):
        labelled = [(1.0, double[n : n + 1])]
        if fisher == "exact":
            labelled = list(loss.labels(output, double[n : n + 1]))
        for probability, label in labelled:
            yield probability, share * terms(output, label)

    return vectors(model, inputs, len(target), losses, conv)


def as_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: as_double(part) for key, part in value.items()}
    return tuple(as_double(part) for part in value)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare within ``tolerance`` times the largest entry."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
