"""What a measurement holds in memory, counted in bytes of live tensors."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lca_widgets.curvature import kronecker_factors

BATCH = 32


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation returns, while it is alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        given = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and id_of(tensor) not in given | self.seen:
                self.add(tensor.untyped_storage())
        return results

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key, size):
        self.seen.discard(key)
        self.now -= size


def id_of(tensor):
    return tensor.untyped_storage()._cdata


def peak(work):
    gc.collect()
    with LiveBytes() as live:
        result = work()
    del result
    return live.peak


def convolutions(depth=6, channels=8):
    layers = [nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def problem():
    torch.manual_seed(0)
    return convolutions(), torch.randn(BATCH, 3, 16, 16), torch.arange(BATCH) % 10


def test_the_counter_sees_what_a_training_step_holds():
    # Batch normalisation keeps its input, ReLU its output, and one more is alive at a time.
    model, x, y = problem()
    assert peak(lambda: nn.functional.cross_entropy(model(x), y)) == pytest.approx(
        (7 * 2 + 1) * BATCH * 8 * 16 * 16 * 4, rel=0.02
    )


@pytest.mark.parametrize(
    "options", [{}, {"conv": "pixel"}, {"fisher": "exact"}, {"sharing": "reduce"}], ids=str
)
def test_a_measurement_holds_at_most_the_activations_more_than_a_training_step(options):
    model, x, y = problem()
    loss = nn.CrossEntropyLoss()
    activations = peak(lambda: loss(model(x), y))
    step = peak(lambda: torch.autograd.grad(loss(model(x), y), list(model.parameters())))
    measured = peak(lambda: kronecker_factors(model, loss, (x, y), **options))
    assert measured - step <= activations


def test_more_batches_hold_no_more():
    model, x, y = problem()
    batches = [(x, y)] * 5
    one, many = (
        peak(lambda data=data: kronecker_factors(model, nn.CrossEntropyLoss(), data))
        for data in (batches[:2], batches)
    )
    assert many == pytest.approx(one, rel=0.01)
