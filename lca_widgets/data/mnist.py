"""MNIST-format files (IDX) of your own."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lca_widgets._checks import require_integer
from lca_widgets.data.records import Dataset, standardised

__all__ = ["MNIST_FILES", "mnist_format"]

# The four files of the MNIST distribution; Fashion-MNIST, KMNIST and others use the same names.
MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def mnist_format(folder: str | Path, *, seed: int = 0) -> Dataset:
    """Read an MNIST-format data set (four IDX files, plain or gzipped) from a local folder.

    Args:
        folder: Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
            ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each as it is or with
            ``.gz`` appended. Nothing is downloaded.
        seed: Fixes the order of the training samples.

    Returns:
        A data set of ``height * width`` features; the split is the files' own.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
        ValueError: a file is not IDX, is cut short, holds no samples or none of its kind; or images
            and labels differ in number, or training and test images in size.
    """
    require_integer("seed", seed, low=0)
    files = tuple(_find(Path(folder), name) for name in MNIST_FILES.values())
    # The size and the time of change are there to tell a file from what replaces it.
    states = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    home = Path(folder).resolve()  # a relative path means another folder after a chdir
    return _read_mnist_format(tuple(home / file.name for file in files), states, seed)


@lru_cache(maxsize=2)
def _read_mnist_format(files: tuple[Path, ...], _states: tuple[object, ...], seed: int) -> Dataset:
    parts = {part: _read_idx(file) for part, file in zip(MNIST_FILES, files, strict=True)}
    folder = files[0].parent
    for part, values in parts.items():
        kind = "labels" if part.startswith("y") else "images"
        if not values.size or (values.ndim == 1) != (kind == "labels"):
            raise ValueError(
                f"{MNIST_FILES[part]} must hold {kind}, got values of shape {values.shape}, "
                f"in {folder}"
            )
    for images, labels in (("x_train", "y_train"), ("x_test", "y_test")):
        if len(parts[images]) != len(parts[labels]):
            raise ValueError(
                f"{MNIST_FILES[images]} has {len(parts[images])} images but "
                f"{MNIST_FILES[labels]} has {len(parts[labels])} labels, in {folder}"
            )
    sizes = [parts[part].shape[1:] for part in ("x_train", "x_test")]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"training and test images must have one size, got {sizes[0]} and {sizes[1]}, "
            f"in {folder}"
        )
    order = np.random.default_rng(seed).permutation(len(parts["y_train"]))
    return standardised(
        folder.name,
        _flat(parts["x_train"][order]),
        parts["y_train"][order],
        _flat(parts["x_test"]),
        parts["y_test"],
    )


def _flat(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.reshape(len(images), -1)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    missing = "no such folder" if not folder.is_dir() else f"it has no {name} or {name}.gz"
    raise FileNotFoundError(
        f"data must be 'digits' or a folder with {', '.join(MNIST_FILES.values())}; "
        f"got {str(folder)!r}: {missing}"
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file: two zero bytes, type 0x08 (uint8), the rank, big-endian sizes, data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] == 0:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes (its first bytes differ)")
    rank = content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise ValueError(f"{path} is cut short inside its header")
    shape = struct.unpack(f">{rank}I", content[4:header])
    size = len(content) - header
    if size != math.prod(shape):
        fault = "is cut short" if size < math.prod(shape) else "is too long"
        raise ValueError(
            f"{path} {fault}: its header promises {' × '.join(map(str, shape))} values, "
            f"it holds {size}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
