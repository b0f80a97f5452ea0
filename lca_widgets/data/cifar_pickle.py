"""Reading the pickles of CIFAR's Python version without running anything that they name."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["unpickled"]


class _Forbidden(ValueError):
    """A pickle asks for what an array does not need."""


class _Type:
    """Stands for `numpy.dtype`: of the numbers that a batch can hold, and of nothing else."""

    def __init__(self, code: str | bytes, *_copying: object) -> None:
        self.code = _text(code)
        if self.code not in ("u1", "i4", "i8"):
            raise ValueError(f"numbers of type {self.code!r}")
        self.type = np.dtype(self.code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.type = np.dtype(_text(state[1]) + self.code)  # the order of the bytes before it


def _text(word: str | bytes) -> str:
    return word.decode("ascii") if isinstance(word, bytes) else word  # Python 2 wrote bytes


class _Array:
    """Stands for `numpy.ndarray` and for what rebuilds it: bytes, with a type and a shape.

    The real classes trust the state that a pickle hands them, down to where memory lies.
    """

    def __init__(self, *_kind: object) -> None:
        self.values: NDArray[Any] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, by_columns, content = state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise ValueError("an array that is not made of numbers")
        values = np.frombuffer(content, kind.type)
        self.values = values.reshape(shape, order="F" if by_columns else "C")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # what numpy 2 writes
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): codecs.encode,  # bytes, as Python 3 writes them for Python 2
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Forbidden(f"{module}.{name}")
        return _STAND_INS[module, name]


def unpickled(path: Path, content: bytes) -> dict[object, object]:
    """Return the dictionary that a file of the Python version holds, its arrays as arrays.

    Args:
        path: What the file is called in error messages.
        content: The file's bytes.

    Raises:
        ValueError: the file is no pickle of a dictionary, or names a class or a function that an
            array does not need. None of them is imported, none is called.

    Example:
        >>> unpickled(Path("test"), pickle.dumps({b"fine_labels": [3, 1]}))
        {b'fine_labels': [3, 1]}
        >>> unpickled(Path("test"), pickle.dumps({b"fine_labels": print}))
        Traceback (most recent call last):
        ...
        ValueError: test asks for 'builtins.print', which a file of images does not need: it was ...
    """
    try:
        found = _Reader(io.BytesIO(content), encoding="bytes").load()
    except _Forbidden as error:
        raise ValueError(
            f"{path} asks for {str(error)!r}, which a file of images does not need: it was not "
            "loaded. Get the file from its publisher; a subset of your own must be written as a "
            "dictionary of a uint8 array and a list of int, with pickle protocol 2 to 4"
        ) from None
    except Exception as error:  # a pickle that is damaged can raise anything
        raise ValueError(
            f"{path} cannot be read as a pickle of images: {type(error).__name__}: {error}; "
            "copy or download it again"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(found).__name__}")
    return {
        key: value.values if isinstance(value, _Array) else value for key, value in found.items()
    }
