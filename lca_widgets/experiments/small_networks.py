"""What experiments on small networks for digits share: the networks, threads, and memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from lca_widgets.curvature import one_thread
from lca_widgets.data import Split, digits
from lca_widgets.models import INITIALISERS, mlp

__all__ = ["digits_mlp", "float64_digits", "float64_mlp", "in_one_thread", "made_once"]

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Settings = TypeVar("Settings")


def in_one_thread(
    generate: Callable[Arguments, Iterator[Item]],
) -> Callable[Arguments, Iterator[Item]]:
    """Let a generator work with one torch thread, and its caller, between two items, with his own.

    On networks as small as the experiments', a second thread brings nothing, and where another
    process is busy it costs up to a hundred times the step.

    Example:
        >>> @in_one_thread
        ... def threads():
        ...     yield torch.get_num_threads()
        >>> before = torch.get_num_threads()
        >>> list(threads()), torch.get_num_threads() == before
        ([1], True)
    """

    @functools.wraps(generate)
    def generator(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Item]:
        items = generate(*args, **kwargs)
        while True:
            with one_thread():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    return generator


def made_once(measure: Callable[[Settings], Item]) -> Callable[[Settings], Item]:
    """Let a function of settings remember what it returned, and work with one torch thread.

    Two threads that ask for the same, as a lab's and a cell's do, share the work; one that asks for
    something else does not wait.

    Example:
        >>> @made_once
        ... def square(number):
        ...     print("computed")
        ...     return number**2
        >>> square(3), square(3)
        computed
        (9, 9)
    """
    locks: dict[Any, threading.Lock] = {}
    remembered = functools.lru_cache(maxsize=4096)(measure)

    @functools.wraps(measure)
    def once(settings: Settings) -> Item:
        with locks.setdefault(settings, threading.Lock()), one_thread():
            return remembered(settings)

    return once


def digits_mlp(**network: Any) -> nn.Sequential:
    """Build a network for digits.

    Args:
        **network: Arguments of `lca_widgets.models.mlp` but its first two.

    Example:
        >>> digits_mlp(depth=2, width=8)[0].weight.shape
        torch.Size([8, 64])
    """
    data = digits()
    return mlp(data.features, data.classes, **network)


def float64_mlp(init: str, seed: int, **network: Any) -> nn.Sequential:
    """Build a network for digits in float64, its weights drawn in float64, too.

    Those that were drawn in float32 differ between processors by rounding, in the eighth digit; a
    training at a large rate makes other runs of them.

    Args:
        init: A name among `lca_widgets.models.INITIALISERS`.
        seed: Draws the weights.
        **network: Arguments of `lca_widgets.models.mlp`.

    Example:
        >>> float64_mlp("he", 0, depth=2, width=8)[0].weight.dtype
        torch.float64
    """
    model = digits_mlp(init=init, seed=seed, **network).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                INITIALISERS[init](layer.weight, generator)
    return model


def float64_digits(samples: int) -> Split:
    """Return the first training digits in float64."""
    batch = digits().train.first(samples)
    return Split(batch.x.double(), batch.y)
