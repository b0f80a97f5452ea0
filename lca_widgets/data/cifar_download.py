"""Fetching CIFAR-10 and CIFAR-100 from where they are published."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.request
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from lca_widgets._checks import require_one_of
from lca_widgets.data import cifar_editions
from lca_widgets.data.cifar_editions import Archive, Edition, editions
from lca_widgets.data.cifar_files import as_folder, whole_sets

__all__ = ["download_cifar"]

CHUNK = 2**20  # bytes at a time: an archive need not fit into memory
PATIENCE = 60  # seconds without an answer


def download_cifar(folder: str | Path, *, classes: int = 10) -> Path:
    """Fetch the binary version of CIFAR-10 or CIFAR-100, about 170 MB, and unpack it.

    Nothing is unpacked but an archive of the published size and checksum. What was fetched in vain
    is deleted, be the download interrupted or damaged.

    Args:
        folder: Where to put it; it is made if need be. Files that are there already are kept, and
            if they are all there, nothing is fetched.
        classes: 10 or 100.

    Returns:
        The folder that holds the files; `cifar` reads it, or ``folder``.

    Raises:
        TypeError: ``folder`` is neither text nor a path.
        ValueError: ``classes`` is not 10 or 100, or what was fetched is not what is published.
        OSError: the archive cannot be fetched (`ConnectionError`), or not be written.

    Example:
        >>> download_cifar("data", classes=20)
        Traceback (most recent call last):
        ...
        ValueError: classes must be one of 10, 100, got 20
    """
    home = as_folder(folder)
    require_one_of("classes", classes, (10, 100))
    if found := whole_sets(home, classes):
        return found[0].place
    edition = next(edition for edition in editions(classes) if edition.kind == "binary")
    # Files lie where others of the set lie already; an archive would make its own folder.
    place = min(reversed(edition.places(home)), key=lambda place: len(edition.missing(place)))
    home.mkdir(parents=True, exist_ok=True)
    # Beside the place, not on another disk: a file that is moved is there whole, or not at all.
    with TemporaryDirectory(prefix=".download-", dir=home) as temporary:
        archive = Path(temporary) / edition.archive.name
        _fetch(edition.archive, archive)
        _unpack(edition, archive, Path(temporary))
        place.mkdir(exist_ok=True)
        for name in edition.missing(place):
            (Path(temporary) / name).replace(place / name)
    return place


def _fetch(archive: Archive, path: Path) -> None:
    """Write the archive to ``path``, or raise."""
    url = cifar_editions.BASE_URL + archive.name
    size, checksum = 0, hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer, path.open("wb") as file:
            # One byte too many tells enough: a page that never ends need not fill the disk.
            while size <= archive.size and (chunk := answer.read(CHUNK)):
                file.write(chunk)
                checksum.update(chunk)
                size += len(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{url} could not be fetched: {type(error).__name__}: {error}, after {size} of "
            f"{archive.size} bytes; nothing was kept. Try again, or fetch it with a browser and "
            "unpack it"
        ) from error
    if (size, checksum.hexdigest()) != (archive.size, archive.md5):
        fault = "was cut short" if size < archive.size else "is not what is published"
        raise ValueError(
            f"{url} {fault}: expected {archive.size} bytes with the md5 checksum {archive.md5}, "
            f"got {size if size <= archive.size else 'more'} with {checksum.hexdigest()}; nothing "
            "was kept. Try again"
        )


def _unpack(edition: Edition, archive: Path, folder: Path) -> None:
    """Put the set's files from the archive, and nothing else that it holds, into ``folder``."""
    names = {f"{edition.folder}/{file.name}": file.name for file in edition.files}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                # Where a file goes is said here, not by the archive: no link is followed, and no
                # name leads out of the folder.
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None and member.name in names:
                    with content, (folder / names[member.name]).open("wb") as target:
                        shutil.copyfileobj(content, target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{edition.archive.name} cannot be unpacked: {error}") from error
    if missing := edition.missing(folder):
        raise ValueError(
            f"{edition.archive.name} has no regular file {edition.folder}/{missing[0]}; nothing "
            "was kept"
        )
