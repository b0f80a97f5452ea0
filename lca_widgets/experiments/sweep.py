"""The same measurement for many settings, each result kept on disk until anything changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

import lca_widgets
from lca_widgets.curvature import one_thread

__all__ = ["CACHE_VARIABLE", "cache_folder", "sweep"]

# Where results are kept; set but empty, none are: every sweep is computed anew.
CACHE_VARIABLE = "LCA_CACHE"

Settings = TypeVar("Settings")
Result = TypeVar("Result")


def sweep(
    measure: Callable[[Settings], Result], settings: Iterable[Settings], kind: type[Result]
) -> Iterator[Result]:
    """Measure for one settings after the other, and keep each result on disk.

    A result is read back only where nothing that it depends on has changed: the settings, the
    function, the source of this whole package, PyTorch's version and the processor's instructions
    are its key. Results are kept one by one, so that a sweep that is interrupted goes on where it
    stopped. A file that cannot be read is computed again; where none can be written, none is kept.

    Args:
        measure: A function of this package, whose source is part of the key, of one settings; the
            same settings must give the same result.
        settings: Frozen dataclasses of plain values.
        kind: The result's class: a frozen dataclass of plain numbers, texts and tuples of them.

    Yields:
        ``measure(one)`` for each of ``settings``, in their order.

    Raises:
        ValueError: ``measure`` is not of this package.

    Example:
        >>> from lca_widgets.experiments.freezing import (
        ...     FreezingSettings, FrozenTraining, frozen_training
        ... )
        >>> runs = [FreezingSettings(trained, samples=64, steps=1) for trained in ("11", "01")]
        >>> [end.frozen for end in sweep(frozen_training, runs, FrozenTraining)]
        [0, 1]
    """
    if measure.__module__.partition(".")[0] != lca_widgets.__name__:
        raise ValueError(
            f"measure must be a function of {lca_widgets.__name__}, whose changes are seen, got "
            f"{measure.__module__}.{measure.__qualname__}"
        )
    return _results(measure, settings, kind)


def _results(
    measure: Callable[[Settings], Result], settings: Iterable[Settings], kind: type[Result]
) -> Iterator[Result]:
    folder = cache_folder()
    for one in settings:
        path = folder / f"{_key(measure, one)}.json" if folder else None
        result = _read(path, kind) if path else None
        if result is None:
            with one_thread():  # small networks: a second one would cost more than it brings
                result = measure(one)
            if path:
                _write(path, result)
        yield result


def cache_folder() -> Path | None:
    """Return the folder in which sweeps are kept, or ``None`` where they are not.

    It is ``$LCA_CACHE``, or ``lca_widgets`` in the user's folder of caches. It may be deleted at
    any time.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lca_widgets"


def _key(measure: Callable[..., Any], settings: Any) -> str:
    parts = [
        f"{measure.__module__}.{measure.__qualname__}",
        f"{type(settings).__qualname__} {sorted(asdict(settings).items())!r}",
        *_surroundings(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _surroundings() -> tuple[str, ...]:
    """What a result depends on beside its settings; the source as it was at the first sweep."""
    source = hashlib.sha256()
    root = Path(lca_widgets.__file__).parent
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return torch.__version__, torch.backends.cpu.get_cpu_capability(), source.hexdigest()


def _read(path: Path, kind: type[Result]) -> Result | None:
    try:
        fields = json.loads(path.read_text())
        return kind(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in fields.items()
            }
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, result: Any) -> None:
    # Written aside and moved, so that no other process reads half a file. JSON keeps every digit
    # of a float, NaN and infinities too.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(result)))
        aside.replace(path)
    except OSError:  # a folder that cannot be written, or a full disk: only the keeping is lost
        return
