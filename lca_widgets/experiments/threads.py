"""One torch thread for experiments on small networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from lca_widgets.curvature import one_thread

__all__ = ["in_one_thread"]

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")


def in_one_thread(
    generate: Callable[Arguments, Iterator[Item]],
) -> Callable[Arguments, Iterator[Item]]:
    """Let a generator work with one torch thread, and its caller, between two items, with his own.

    On networks as small as the experiments', a second thread brings nothing, and where another
    process is busy it costs up to a hundred times the step.

    Example:
        >>> import torch
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
