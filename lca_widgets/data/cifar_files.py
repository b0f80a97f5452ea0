"""CIFAR-10 and CIFAR-100 from the files that their authors publish."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lca_widgets._checks import require_one_of
from lca_widgets.data.cifar_editions import (
    HOME_PAGE,
    IMAGE_BYTES,
    Edition,
    Part,
    PublishedFile,
    editions,
    md5_of,
)
from lca_widgets.data.cifar_pickle import unpickled
from lca_widgets.data.records import CifarData, Images

__all__ = ["Found", "as_folder", "cifar", "whole_sets"]

AGAIN = "delete it, and copy or download it again"


def cifar(folder: str | Path, *, classes: int | None = None) -> CifarData:
    """Read CIFAR-10 or CIFAR-100 from a local folder, in their binary or their Python version.

    Published files must have their published checksums. Files of another number of images, such as
    a subset that was written in the same format, are read as they are; `CifarData.published` tells.

    Args:
        folder: Holds all files of a set, ``data_batch_1.bin`` to ``data_batch_5.bin`` and
            ``test_batch.bin`` for instance; or the folder that their archive unpacks to, such as
            ``cifar-10-batches-bin``. Nothing is downloaded: `download_cifar` does that.
        classes: 10 or 100; ``None`` for the set that is there. CIFAR-100's classes are its fine
            labels.

    Returns:
        The set; of two versions the binary one.

    Raises:
        TypeError: ``folder`` is neither text nor a path.
        FileNotFoundError: a file is missing; the message says which, and where to get it.
        ValueError: ``classes`` is not 10 or 100, or is needed as both sets are there; or a file is
            damaged, or not what its name says.

    Source:
        Formats: https://www.cs.toronto.edu/~kriz/cifar.html.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> image = bytes([4, 17]) + bytes(3072)  # its coarse and its fine label, black pixels
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "train.bin").write_bytes(5 * image)
        ...     _ = (Path(folder) / "test.bin").write_bytes(2 * image)
        ...     data = cifar(folder)
        >>> data.name, len(data.train), tuple(data.test.x.shape), data.test.y, data.published
        ('CIFAR-100', 5, (2, 3, 32, 32), tensor([17, 17]), False)
    """
    home = as_folder(folder)
    if classes is not None:
        require_one_of("classes", classes, (10, 100))
    found = whole_sets(home, classes)
    if not found:
        raise FileNotFoundError(_what_is_missing(home, classes))
    if len({edition.classes for edition, _ in found}) > 1:
        raise ValueError(
            f"{home} holds CIFAR-10 and CIFAR-100: say which is meant with classes=10 or "
            "classes=100"
        )
    edition, place = found[0]
    contents = [(file.part, _read(edition, file, place / file.name)) for file in edition.files]
    return CifarData(
        edition.name,
        edition.classes,
        _joined(contents, "train"),
        _joined(contents, "test"),
        published=all(content.published for _, content in contents),
    )


def as_folder(folder: str | Path) -> Path:
    """Return the argument ``folder`` as a path, or refuse it."""
    if not isinstance(folder, str | Path):
        raise TypeError(f"folder must be the path of a folder, got {folder!r}")
    return Path(folder)


class Found(NamedTuple):
    """A set all of whose files are in ``place``."""

    edition: Edition
    place: Path


def whole_sets(folder: Path, classes: int | None) -> list[Found]:
    """Return the sets that a folder holds with all their files, the preferred one first."""
    return [
        Found(edition, place)
        for edition in editions(classes)
        for place in edition.places(folder)
        if not edition.missing(place)
    ]


class _Content(NamedTuple):
    pixels: NDArray[np.uint8]  # [n, 3072]
    classes: NDArray[np.int64]  # [n]
    published: bool


def _joined(contents: list[tuple[Part, _Content]], part: Part) -> Images:
    files = [content for name, content in contents if name == part]
    # Joining copies, which is needed even for one file: the bytes of a file are read-only.
    x = np.concatenate([file.pixels for file in files]).reshape(-1, 3, 32, 32)
    y = np.concatenate([file.classes for file in files])
    return Images(torch.from_numpy(x), torch.from_numpy(y))


def _read(edition: Edition, file: PublishedFile, path: Path) -> _Content:
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty; {_expected(edition, file)}; {AGAIN}")
    split = _split_binary if edition.kind == "binary" else _split_python
    pixels, labels = split(edition, file, path, content)
    published = len(pixels) == file.images
    if published and (checksum := md5_of(content)) != file.md5:
        raise ValueError(
            f"{path} is damaged: it has the published {file.images} images, in {len(content)} "
            f"bytes, but the md5 checksum {checksum} instead of {file.md5}; {AGAIN}"
        )
    # From the end: the Python version is read without its coarse labels.
    for values, count in zip(labels[::-1], edition.labels[::-1], strict=False):
        if not ((values >= 0) & (values < count)).all():
            raise ValueError(
                f"{path}, of {len(content)} bytes, has labels from {values.min()} to "
                f"{values.max()}, expected 0 to {count - 1}: it is damaged, or not a file of "
                f"{edition.name}"
            )
    return _Content(pixels, labels[-1], published)


def _expected(edition: Edition, file: PublishedFile) -> str:
    if edition.kind == "python":
        return f"expected a pickle of images (the published file has {file.images})"
    labels = f"{len(edition.labels)} label byte{'s' if len(edition.labels) > 1 else ''}"
    return (
        f"expected a whole number of records of {edition.record} bytes ({labels}, {IMAGE_BYTES} "
        f"pixels; the published file has {file.images * edition.record} bytes)"
    )


_Parts = tuple[NDArray[np.uint8], list[NDArray[np.int64]]]


def _split_binary(edition: Edition, file: PublishedFile, path: Path, content: bytes) -> _Parts:
    """Split records: the label bytes, then the pixels."""
    if len(content) % edition.record:
        raise ValueError(
            f"{path} has {len(content)} bytes; {_expected(edition, file)}: it is cut short or not "
            f"a file of {edition.name}; {AGAIN}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, edition.record)
    labels = len(edition.labels)
    return records[:, labels:], list(records[:, :labels].T.astype(np.int64))


def _split_python(edition: Edition, file: PublishedFile, path: Path, content: bytes) -> _Parts:
    """Take pixels and labels from a pickled dictionary."""
    found = unpickled(path, content)
    key = b"labels" if len(edition.labels) == 1 else b"fine_labels"
    if missing := {b"data", key} - set(found):
        raise ValueError(
            f"{path} lacks {' and '.join(map(repr, sorted(missing)))}, it holds {list(found)}: a "
            f"file of {edition.name} has b'data' and {key!r}"
        )
    pixels = found[b"data"]
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"{path}: b'data' must be an array, got {type(pixels).__name__}")
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (IMAGE_BYTES,) or not len(pixels):
        raise ValueError(
            f"{path}: b'data' must be a uint8 array of shape (n, {IMAGE_BYTES}), got "
            f"{pixels.dtype} of shape {pixels.shape}"
        )
    labels = found[key]
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    return pixels, [_as_integers(path, key, labels, len(pixels))]


def _as_integers(path: Path, key: bytes, labels: object, images: int) -> NDArray[np.int64]:
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"{path}: {key!r} must be a list of whole numbers, got {labels!r:.60}")
    if len(labels) != images:
        raise ValueError(f"{path} has {images} images but {len(labels)} of {key!r}")
    # A number too large for an array is out of range there too.
    return np.array([max(-1, min(label, 2**31)) for label in labels], np.int64)


def _what_is_missing(folder: Path, classes: int | None) -> str:
    """Say what was looked for, where, what of it is there, and where to get it."""
    wanted = editions(classes)
    name = wanted[0].name if classes else "CIFAR-10 or CIFAR-100"
    lines = [f"there is no whole {name} in {str(folder)!r}"]
    if not folder.is_dir():
        lines[0] += ": no such folder"
    for edition in wanted:
        lines.append(
            f"  looked for {', '.join(file.name for file in edition.files)} there and in its "
            f"folder {edition.folder}"
        )
        for place in edition.places(folder):
            missing = edition.missing(place)
            if len(missing) < len(edition.files):
                lines.append(f"  {place} lacks {', '.join(missing)}: all of them are needed")
        archive = folder / edition.archive.name
        if archive.is_file():
            command = shlex.join(["tar", "-xzf", str(archive), "-C", str(folder)])
            lines.append(f"  {archive} is there: unpack it with {command}")
    lines += [
        f"  {HOME_PAGE} has {edition.archive.name} ({edition.archive.size} bytes, md5 "
        f"{edition.archive.md5}); download_cifar(folder, classes={edition.classes}), or the "
        "command's --download, fetches and unpacks it"
        for edition in wanted
        if edition.kind == "binary"
    ]
    return "\n".join(lines)
