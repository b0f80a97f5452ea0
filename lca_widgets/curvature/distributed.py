"""Measurements of the processes of one training, joined to those of the whole batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_gather_object, all_reduce, get_world_size

from lca_widgets.curvature.factors import LayerFactors
from lca_widgets.curvature.moments import sum_dtype
from lca_widgets.curvature.rectifiers import UnitActivity

__all__ = ["joint_order", "mean_over_processes", "reduce_activity", "reduce_factors"]

Key = TypeVar("Key", bound=Hashable)


def reduce_factors(
    factors: Sequence[LayerFactors], device: torch.device, group: ProcessGroup | None = None
) -> list[LayerFactors]:
    """Return, in every process, the factors of the samples of all processes.

    With N_r samples and M_r vectors x behind process r's factors::

        Σ_x = Σ_r M_r Σ_x,r / Σ_r M_r        Σ_g = Σ_r N_r Σ_g,r / Σ_r N_r

    Every process of the group must call it. A layer that had samples in some processes only is in
    the result of all.

    Args:
        factors: This process's, of the same model and the same kind of loss.
        device: Where the group's backend wants its tensors.
        group: The processes; ``None`` takes all.
    """
    sums = {}
    for layer in factors:
        counts = [layer.n, layer.rows, layer.grad_rows]
        sums[layer.name, "counts"] = torch.tensor(counts, dtype=torch.float64)
        sums[layer.name, "input_moment"] = layer.input_moment * layer.rows
        sums[layer.name, "grad_moment"] = layer.grad_moment * layer.n
        if layer.input_mean is not None:
            sums[layer.name, "input_mean"] = layer.input_mean * layer.rows
        if layer.grad_mean is not None:
            sums[layer.name, "grad_mean"] = layer.grad_mean * layer.n
    totals = _summed(sums, device, group)
    kinds = _gathered({layer.name: layer.kind for layer in factors}, group)
    cuts = _gathered({layer.name: layer.cut for layer in factors}, group)
    return [_factors_of(name, kinds[name], cuts[name], totals) for name in kinds]


def _factors_of(
    name: str, kind: str, cut: float, totals: Mapping[tuple[str, str], Tensor]
) -> LayerFactors:
    n, rows, grad_rows = (int(count) for count in totals[name, "counts"])
    input_mean, grad_mean = totals.get((name, "input_mean")), totals.get((name, "grad_mean"))
    return LayerFactors(
        name=name,
        input_moment=totals[name, "input_moment"] / rows,
        grad_moment=totals[name, "grad_moment"] / n,
        n=n,
        cut=cut,
        kind=kind,
        rows=rows,
        grad_rows=grad_rows,
        input_mean=None if input_mean is None else input_mean / rows,
        grad_mean=None if grad_mean is None else grad_mean / n,
    )


def reduce_activity(
    activity: Mapping[str, UnitActivity], device: torch.device, group: ProcessGroup | None = None
) -> dict[str, UnitActivity]:
    """Return the units that are dying, or full, in every process that called their layer."""
    sums = {}
    for name, units in activity.items():
        sums[name, "processes"] = torch.ones(1)
        sums[name, "never"] = units.never
        sums[name, "always"] = units.always
    totals = _summed(sums, device, group)
    return {
        name: UnitActivity(totals[name, "never"] == processes, totals[name, "always"] == processes)
        for (name, part), processes in totals.items()
        if part == "processes"
    }


def mean_over_processes(
    tensors: Mapping[str, Tensor], device: torch.device, group: ProcessGroup | None = None
) -> dict[str, Tensor]:
    """Return the means of the tensors of one name; one that a process lacks is zero there."""
    world = get_world_size(group)
    return {name: total / world for name, total in _summed(tensors, device, group).items()}


def joint_order(names: Iterable[str], group: ProcessGroup | None = None) -> list[str]:
    """Return the names of all processes in one order: the first's, then what others have more."""
    return list(_gathered(dict.fromkeys(names, 0), group))


def _summed(
    tensors: Mapping[Key, Tensor], device: torch.device, group: ProcessGroup | None
) -> dict[Key, Tensor]:
    """Sum over the processes, in one exchange; what one of them lacks counts as zeros there."""
    shapes = _gathered({key: tensor.shape for key, tensor in tensors.items()}, group)
    dtype = sum_dtype(device)
    parts = [
        tensors[key].detach().to(device, dtype).flatten()
        if key in tensors
        else torch.zeros(shape.numel(), dtype=dtype, device=device)
        for key, shape in shapes.items()
    ]
    if not parts:
        return {}
    together = torch.cat(parts)
    all_reduce(together, group=group)
    pieces = together.split([len(part) for part in parts])
    return {
        key: piece.reshape(shape)
        for (key, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def _gathered(facts: dict[Key, Any], group: ProcessGroup | None) -> dict[Key, Any]:
    """The facts of all processes in an order that is the same in each; the largest of a key's."""
    of_all: list[Any] = [None] * get_world_size(group)
    all_gather_object(of_all, facts, group=group)
    joined: dict[Key, Any] = {}
    for of_one in of_all:
        for key, fact in of_one.items():
            joined[key] = max(joined.get(key, fact), fact)
    return joined
