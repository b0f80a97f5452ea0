"""Data sets by name or folder."""

from __future__ import annotations

from pathlib import Path

from lca_widgets.data.bundled import digits
from lca_widgets.data.mnist import mnist_format
from lca_widgets.data.records import Dataset

__all__ = ["load"]


def load(source: str | Path = "digits", *, seed: int = 0) -> Dataset:
    """Load a data set by name, or from a local folder of MNIST-format files.

    Args:
        source: ``"digits"``, or the path of a folder that holds the four files of an MNIST-format
            set (see `mnist_format`).
        seed: Fixes the split of ``"digits"``, and the order of the samples of both.

    Raises:
        TypeError: ``source`` is neither text nor a path.
        FileNotFoundError: ``source`` is neither ``"digits"`` nor a folder with those files.
        ValueError: one of the files is damaged, or not what its name says.

    Example:
        >>> load("digits").name
        'digits'
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"data must be 'digits' or the path of a folder, got {source!r}")
    return digits(seed=seed) if source == "digits" else mnist_format(source, seed=seed)
