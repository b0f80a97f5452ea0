"""What measuring costs, in forward-and-backward passes of the same network.

`extra_info["passes"]` is the fastest round over the fastest plain pass of those just before and
just after: the least disturbed of each.
"""

import functools
import itertools
import time

import pytest
import torch
from torch import nn

from lca_widgets.curvature import FactorCapture, layer_spectra
from lca_widgets.models import mlp

BATCH = 1024
NETWORKS = {
    "784–10×256–10": functools.partial(mlp, 784, 10, depth=11, width=256),
    "64–9×64–10": functools.partial(mlp, 64, 10, depth=10, width=64),
}
WORK = ["plain pass", "with factors", "with factors and eigenvalues"]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("network", NETWORKS)
def test_factors(benchmark, network, work):
    model = NETWORKS[network]()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, next(model.parameters()).shape[1], generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)

    def plain():
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    def measured():
        with FactorCapture(model) as capture:
            plain()
        factors = capture.take()
        return layer_spectra(factors) if work == WORK[2] else factors

    # Small matrices: one thread is what the eigenproblems take, and what compares.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before = times(plain) if benchmark.enabled else []
        benchmark(plain if work == WORK[0] else measured)
        after = times(plain) if benchmark.enabled else []
    finally:
        torch.set_num_threads(threads)
    if benchmark.enabled:
        benchmark.extra_info["passes"] = benchmark.stats.stats.min / min(before + after)


def times(function, rounds=30):
    marks = [time.perf_counter()]
    for _ in range(rounds):
        function()
        marks.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(marks)]
