"""What watching a training costs: measured steps, and the steps between them."""

import copy
import time

import pytest
import torch
from torch import nn

import lca_widgets as lca
from lca_widgets.curvature import one_thread
from tests.benchmarks.passes import problem

EVERY = 20


class Training:
    """A copy of a problem's model, trained a step at a time."""

    def __init__(self, case):
        self.model, self.x, self.y = copy.deepcopy(case.model), case.x, case.y
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.seconds: list[float] = []

    def step(self):
        start = time.perf_counter()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("conv", ["pixel", "patch"])
@pytest.mark.parametrize("name", ["ResNet-20", "MLP 64–9×64–10"])
def test_overhead_of_watching_every_20_steps(benchmark, name, conv, threads):
    """A measured step less a plain one, in percent of 20 plain steps; the report included.

    The three kinds of steps take turns, so that a disturbance meets all of them.
    """
    if threads > 1 and not benchmark.enabled:
        pytest.skip("differs from one thread by its time alone")
    case = problem(name, benchmark)
    plain, watched, between = Training(case), Training(case), Training(case)
    with (
        one_thread(),
        lca.watch(watched.model, every=1, conv=conv) as monitor,
        lca.watch(between.model, every=10**9, conv=conv),
    ):
        torch.set_num_threads(threads)
        between.step()  # the first is measured
        between.seconds.clear()

        def others():
            plain.step()
            between.step()

        def measured():
            watched.step()
            return monitor.reports

        rounds = 8 if "ResNet" in name else 60
        reports = benchmark.pedantic(measured, setup=others, rounds=rounds, warmup_rounds=1)
    layers = [m for m in case.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(reports[-1].layers) == len(layers)
    if benchmark.enabled:
        step = min(plain.seconds)
        extra = benchmark.stats.stats.min / step - 1
        benchmark.extra_info["passes"] = round(extra, 2)
        benchmark.extra_info["percent"] = round(100 * extra / EVERY, 2)
        benchmark.extra_info["percent between"] = round(100 * (min(between.seconds) / step - 1), 2)
