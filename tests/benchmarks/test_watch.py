"""What watching a training costs: measured steps, and the steps between them."""

import time

import pytest
import torch
from torch import nn

import lca_widgets as lca
from lca_widgets.curvature import one_thread
from tests.benchmarks.passes import problem

EVERY = 20


def train_step(case, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(case.model(case.x), case.y).backward()
    optimizer.step()


def fastest(work, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("conv", ["pixel", "patch"])
@pytest.mark.parametrize("name", ["ResNet-20", "MLP 64–9×64–10"])
def test_overhead_of_watching_every_20_steps(benchmark, name, conv, threads):
    """A measured step less a plain one, in percent of 20 plain steps; the report included."""
    case = problem(name, benchmark)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=1e-4)
    rounds = (6 if "ResNet" in name else 40) if benchmark.enabled else 1

    def step():
        train_step(case, optimizer)

    with one_thread():
        torch.set_num_threads(threads)
        step()
        plain = fastest(step, rounds)
        with lca.watch(case.model, every=1, conv=conv) as monitor:

            def measured():
                step()
                return monitor.reports

            reports = benchmark.pedantic(measured, rounds=rounds, warmup_rounds=1)
        plain = min(plain, fastest(step, rounds))
        with lca.watch(case.model, every=10**9):
            step()
            between = fastest(step, rounds)
        plain = min(plain, fastest(step, rounds))
    assert len(reports[-1].layers) == sum(
        isinstance(m, nn.Conv2d | nn.Linear) for m in case.model.modules()
    )
    if benchmark.enabled:
        extra = benchmark.stats.stats.min / plain - 1
        benchmark.extra_info["passes"] = round(extra, 2)
        benchmark.extra_info["percent"] = round(100 * extra / EVERY, 2)
        benchmark.extra_info["percent between"] = round(100 * (between / plain - 1), 2)
