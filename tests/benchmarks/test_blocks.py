"""What exact blocks and sampling intervals cost, in forward-and-backward passes."""

import pytest
import torch
from torch import nn

from lca_widgets.curvature import exact_blocks, kronecker_factors, sampling_intervals
from tests.benchmarks.passes import in_passes, problem

LOSS = nn.CrossEntropyLoss()
GROUPS = 32


@pytest.mark.parametrize(("name", "rounds"), [("MLP 64–9×64–10", 10), ("ResNet-20", 3)])
def test_exact_blocks(benchmark, name, rounds):
    case = problem(name, benchmark)
    blocks = in_passes(
        benchmark, case, lambda: exact_blocks(case.model, LOSS, (case.x, case.y)), rounds
    )
    assert blocks.network.lambda_max >= blocks.block_diagonal.lambda_max * (1 - 1e-6)


@pytest.mark.parametrize("resamples", [0, 8])
def test_sampling_intervals_of_all_layers(benchmark, resamples):
    """Beside the factors of as many parts, which they are read from."""
    case = problem("MLP 64–9×64–10", benchmark)
    factors = kronecker_factors(case.model, LOSS, (case.x, case.y), parts=GROUPS).layers

    def measure():
        return [
            sampling_intervals(
                torch.stack([getattr(part, moment) for part in layer.parts]),
                [part.n for part in layer.parts],
                cut=layer.cut,
                resamples=resamples,
            )
            for layer in factors
            for moment in ("input_moment", "grad_moment")
        ]

    intervals = in_passes(benchmark, case, measure, rounds=5)
    assert len(intervals) == 2 * len(factors)
