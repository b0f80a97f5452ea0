"""Small sets in CIFAR's formats, of images that a small network can learn, and their release."""

import pickle
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lca_widgets.data import cifar_editions
from lca_widgets.data.cifar_editions import Archive, Edition, md5_of


def edition_of(classes: int, kind: str) -> Edition:
    [edition] = [edition for edition in cifar_editions.editions(classes) if edition.kind == kind]
    return edition


@lru_cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits(return_X_y=True)


def cifar_images(n: int, *, classes: int = 10, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits as images [n, 3, 32, 32], uint8, with their class labels."""
    pixels, digits = _digits()
    order = np.random.default_rng(0).permutation(len(digits))[first : first + n]
    assert len(order) == n, "there are 1797 digits, for training and test together"
    large = np.kron(pixels[order].reshape(n, 1, 8, 8), np.ones((4, 4)))
    tint = np.array([15, 12, 9]).reshape(3, 1, 1)  # no two planes are alike; 16 · 15 = 240
    labels = digits[order] if classes == 10 else 10 * digits[order] + 9  # up to 99
    return (large * tint).astype(np.uint8), labels


def write_cifar(
    folder: Path, *, classes: int = 10, train: int = 250, test: int = 50, kind: str = "binary"
) -> Path:
    """Write a set of ``train`` and ``test`` images; return the folder that holds the files."""
    edition = edition_of(classes, kind)
    place = folder / edition.folder
    place.mkdir(parents=True, exist_ok=True)
    for part, n, first in (("train", train, 0), ("test", test, train)):
        files = [file for file in edition.files if file.part == part]
        images, labels = cifar_images(n, classes=classes, first=first)
        for file, rows in zip(files, np.array_split(np.arange(n), len(files)), strict=True):
            content = encoded(images[rows], labels[rows], classes, kind)
            (place / file.name).write_bytes(content)
    return place


def encoded(images: np.ndarray, labels: np.ndarray, classes: int, kind: str) -> bytes:
    """Return the bytes of one file."""
    pixels = images.reshape(len(images), -1)
    if kind == "binary":
        columns = [labels] if classes == 10 else [labels // 5, labels]
        return np.column_stack([*columns, pixels]).astype(np.uint8).tobytes()
    content: dict[bytes, object] = {b"data": pixels}
    if classes == 10:
        content[b"labels"] = labels.tolist()
    else:
        content |= {b"coarse_labels": (labels // 5).tolist(), b"fine_labels": labels.tolist()}
    return pickle.dumps(content, protocol=2)


def publish(monkeypatch: pytest.MonkeyPatch, place: Path, classes: int, kind: str) -> Edition:
    """Make the files in ``place`` the published ones: their numbers of images, their checksums."""
    old = edition_of(classes, kind)
    files = []
    for file in old.files:
        content = (place / file.name).read_bytes()
        if kind == "binary":
            images = len(content) // old.record
        else:
            images = len(pickle.loads(content, encoding="bytes")[b"data"])
        files.append(replace(file, images=images, md5=md5_of(content)))
    return _put(monkeypatch, old, replace(old, files=tuple(files)))


@contextmanager
def release(
    monkeypatch: pytest.MonkeyPatch, folder: Path, classes: int = 10
) -> Iterator[ThreadingHTTPServer]:
    """Serve a small set as what is published: `download_cifar` fetches it from this machine.

    ``folder`` is the server's; the set lies in it, and the archive, which a test may damage.
    """
    place = write_cifar(folder, classes=classes)
    edition = publish(monkeypatch, place, classes, "binary")
    path = folder / edition.archive.name
    with tarfile.open(path, "w:gz") as tar:
        tar.add(place, arcname=edition.folder)
    content = path.read_bytes()
    archive = Archive(path.name, len(content), md5_of(content))
    _put(monkeypatch, edition, replace(edition, archive=archive))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    monkeypatch.setattr(cifar_editions, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # It looks every 20 ms whether it shall end: many tests start one.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _put(monkeypatch: pytest.MonkeyPatch, old: Edition, new: Edition) -> Edition:
    changed = tuple(new if edition is old else edition for edition in cifar_editions.EDITIONS)
    monkeypatch.setattr(cifar_editions, "EDITIONS", changed)
    return new
