"""What is published of CIFAR-10 and CIFAR-100: files, sizes, checksums, and where."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "BASE_URL",
    "EDITIONS",
    "HOME_PAGE",
    "IMAGE_BYTES",
    "Archive",
    "Edition",
    "Part",
    "PublishedFile",
    "editions",
    "md5_of",
]

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
HOME_PAGE = BASE_URL + "cifar.html"

Part = Literal["train", "test"]

IMAGE_BYTES = 3 * 32 * 32  # a red, a green and a blue plane, each row by row


@dataclass(frozen=True)
class PublishedFile:
    """One file of an edition.

    Attributes:
        name: The file's name.
        part: Which part its images belong to.
        images: How many images the published file holds.
        md5: Its published checksum.
    """

    name: str
    part: Part
    images: int
    md5: str


@dataclass(frozen=True)
class Archive:
    """What an edition is downloaded as; ``size`` in bytes."""

    name: str
    size: int
    md5: str


@dataclass(frozen=True)
class Edition:
    """One set in one format.

    Attributes:
        classes: 10 or 100.
        kind: The format.
        folder: The folder that the archive unpacks to.
        archive: The archive.
        labels: For each label that is stored with an image, how many values it has; the last of
            them is the class (CIFAR-100 stores a coarse label, of 20, before it).
        files: All files that hold images, in the set's order.
    """

    classes: Literal[10, 100]
    kind: Literal["binary", "python"]
    folder: str
    archive: Archive
    labels: tuple[int, ...]
    files: tuple[PublishedFile, ...]

    @property
    def name(self) -> str:
        """Return the set's name."""
        return f"CIFAR-{self.classes}"

    @property
    def record(self) -> int:
        """Return the bytes that an image takes in a binary file, with its labels."""
        return len(self.labels) + IMAGE_BYTES

    def places(self, folder: Path) -> tuple[Path, Path]:
        """Return where the files are looked for: in the folder, and where an archive puts them."""
        return folder, folder / self.folder

    def missing(self, place: Path) -> list[str]:
        """Return the names of the files that are not in ``place``."""
        return [file.name for file in self.files if not (place / file.name).is_file()]


# The binary editions come first: they are preferred, for nothing in them can be mistaken for code.
EDITIONS = (
    Edition(
        classes=10,
        kind="binary",
        folder="cifar-10-batches-bin",
        archive=Archive("cifar-10-binary.tar.gz", 170052171, "c32a1d4ab5d03f1284b67883e8d87530"),
        labels=(10,),
        files=(
            PublishedFile("data_batch_1.bin", "train", 10000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
            PublishedFile("data_batch_2.bin", "train", 10000, "5ea93a67294ea407fff1d09f752e9692"),
            PublishedFile("data_batch_3.bin", "train", 10000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
            PublishedFile("data_batch_4.bin", "train", 10000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
            PublishedFile("data_batch_5.bin", "train", 10000, "53f37980c15c3d472c316c40844f3f0d"),
            PublishedFile("test_batch.bin", "test", 10000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
        ),
    ),
    Edition(
        classes=100,
        kind="binary",
        folder="cifar-100-binary",
        archive=Archive("cifar-100-binary.tar.gz", 168513733, "03b5dce01913d631647c71ecec9e9cb8"),
        labels=(20, 100),
        files=(
            PublishedFile("train.bin", "train", 50000, "6172c7755cfe09b2fe270c85cebc1b15"),
            PublishedFile("test.bin", "test", 10000, "4499cfba6c016c1be1438163640a0898"),
        ),
    ),
    Edition(
        classes=10,
        kind="python",
        folder="cifar-10-batches-py",
        archive=Archive("cifar-10-python.tar.gz", 170498071, "c58f30108f718f92721af3b95e74349a"),
        labels=(10,),
        files=(
            PublishedFile("data_batch_1", "train", 10000, "c99cafc152244af753f735de768cd75f"),
            PublishedFile("data_batch_2", "train", 10000, "d4bba439e000b95fd0a9bffe97cbabec"),
            PublishedFile("data_batch_3", "train", 10000, "54ebc095f3ab1f0389bbae665268c751"),
            PublishedFile("data_batch_4", "train", 10000, "634d18415352ddfa80567beed471001a"),
            PublishedFile("data_batch_5", "train", 10000, "482c414d41f54cd18b22e5b47cb7c3cb"),
            PublishedFile("test_batch", "test", 10000, "40351d587109b95175f43aff81a1287e"),
        ),
    ),
    Edition(
        classes=100,
        kind="python",
        folder="cifar-100-python",
        archive=Archive("cifar-100-python.tar.gz", 169001437, "eb9058c3a382ffc7106e4002c42a8d85"),
        labels=(20, 100),
        files=(
            PublishedFile("train", "train", 50000, "16019d7e3df5f24257cddd939b257f8d"),
            PublishedFile("test", "test", 10000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ),
    ),
)


def editions(classes: int | None = None) -> list[Edition]:
    """Return the editions of a set, the preferred one first; of both sets without ``classes``."""
    return [edition for edition in EDITIONS if classes in (None, edition.classes)]


def md5_of(content: bytes) -> str:
    """Return the checksum that is published beside the files; it tells damage, not forgery."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
