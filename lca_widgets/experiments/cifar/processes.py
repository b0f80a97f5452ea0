"""The processes of one training, as torchrun starts them, or the single one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# Before there is a group: imported later, its defaults would hold that group for good (`joined`).
import torch.distributed.nn.functional
from torch import Tensor, distributed

__all__ = ["Processes", "joined"]


@dataclass(frozen=True)
class Processes:
    """The processes of one training, each with an equal part of every batch.

    Attributes:
        rank: This one's number.
        world: How many there are.
        device: Where this one computes.

    Example:
        >>> Processes(rank=1, world=2, device=torch.device("cpu")).part(128)
        slice(64, 128, None)
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return which of the ``count`` samples of a batch are this one's."""
        own = count // self.world
        return slice(self.rank * own, (self.rank + 1) * own)

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order; each must call it."""
        if self.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, in each; each must call it."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values / self.world

    def any(self, flag: bool) -> bool:
        """Return whether one of them says so; each must call it, and waits for the others."""
        if self.world == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes if torchrun started several, and part from them afterwards.

    A group ends with the last that refers to it. One whose threads outlive the interpreter can
    abort the process on its way out, so keep no `DistributedDataParallel` beyond the ``with``.

    Args:
        device: One of `lca_widgets.training.present_devices`, or ``"auto"``. Of several processes
            on GPUs, each takes its own: the one of its ``LOCAL_RANK``.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cuda":
        local, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= present:
            raise ValueError(f"process {local} of this machine has no GPU: there are {present}")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(int(os.environ["RANK"]), world, place)
    finally:
        gc.collect()  # models that refer to themselves, and with them to the group
        distributed.destroy_process_group()
