"""Costs in forward-and-backward passes of the same network and batch, in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lca_widgets.curvature import one_thread
from tests.benchmarks.networks import network


@dataclass(frozen=True)
class Problem:
    """A network with a batch of Gaussian inputs and uniform labels of ten classes."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def forward_backward(self) -> None:
        """One training step's passes."""
        self.model.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()


def problem(name: str, benchmark: Any) -> Problem:
    """Return the problem; a small batch where the benchmark is only checked to work."""
    torch.manual_seed(0)
    model, shape, size = network(name)
    generator = torch.Generator().manual_seed(0)
    size = size if benchmark.enabled else 16
    x = torch.randn(size, *shape, generator=generator)
    return Problem(model, x, torch.randint(10, (size,), generator=generator))


def in_passes(
    benchmark: Any, problem: Problem, work: Callable[[], Any], rounds: int, name: str = "passes"
) -> Any:
    """Time ``work`` in turn with plain passes; record the ratio of the fastest of each.

    The least disturbed round of each is what compares: other processes only add to a time.
    """
    plain: list[float] = []

    def before() -> None:
        start = time.perf_counter()
        problem.forward_backward()
        plain.append(time.perf_counter() - start)

    with one_thread():  # what eigenproblems of this size take, and what compares
        result = benchmark.pedantic(work, setup=before, rounds=rounds, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info[name] = round(benchmark.stats.stats.min / min(plain), 2)
    return result
