"""What the data sets are handed out as: frozen records of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lca_widgets._checks import require_integer

__all__ = ["CifarData", "Dataset", "Images", "Split", "Table", "standardised"]


@dataclass(frozen=True)
class Split:
    """Inputs and labels of one part of a data set.

    Attributes:
        x: Features, shape ``[n, d]``, float32, standardised (dimensionless).
        y: Class labels, shape ``[n]``, int64.

    The loaders keep what they loaded and hand the same tensors out again: do not write to them.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def first(self, n: int) -> Split:
        """Return the first ``n`` samples (the loaders have already shuffled).

        Raises:
            TypeError: ``n`` is not a whole number.
            ValueError: ``n`` is below 1, or there are fewer than ``n`` samples.
        """
        require_integer("samples", n, low=1, high=len(self))
        return Split(self.x[:n], self.y[:n])

    def to(self, device: torch.device | str) -> Split:
        """Return the same samples on ``device``."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """A classification data set with its fixed train/test split.

    Attributes:
        name: What the set is called in tables and charts.
        train: The training part.
        test: The test part, standardised with the training part's statistics.
        classes: Number of classes C; labels run from 0 to C-1.
    """

    name: str
    train: Split
    test: Split
    classes: int

    @property
    def features(self) -> int:
        """Return the number of input features d."""
        return self.train.x.shape[1]


@dataclass(frozen=True, eq=False)
class Table:
    """All samples of a data set, as they were recorded: nothing subtracted, nothing scaled.

    Attributes:
        name: What the table is called.
        x: Features, shape ``[n, d]``, float64, each column in a unit of its own.
        y: Target, shape ``[n]``: float64 in the target's unit, or class labels, int64.
        classes: Number of classes C, labels run from 0 to C-1; ``None`` for a continuous target.
        features: The columns' names, d of them.

    `table` hands the same tensors out again: do not write to them.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: int | None
    features: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Images:
    """Colour images and labels of one part of a data set, as they were recorded.

    Attributes:
        x: Pixels, shape ``[n, 3, 32, 32]`` (red, green, blue; rows; columns), uint8, 0 to 255.
        y: Class labels, shape ``[n]``, int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.y)


@dataclass(frozen=True, eq=False)
class CifarData:
    """CIFAR-10 or CIFAR-100 with its own train/test split, or a set in the same format.

    Attributes:
        name: ``"CIFAR-10"`` or ``"CIFAR-100"``.
        classes: Number of classes C, 10 or 100; labels run from 0 to C-1.
        train: The training part.
        test: The test part.
        published: Whether every file has the published checksum: measurements on this set can be
            compared with those of others.
    """

    name: str
    classes: int
    train: Images
    test: Images
    published: bool


def standardised(
    name: str,
    x_train: NDArray[np.generic],
    y_train: NDArray[np.generic],
    x_test: NDArray[np.generic],
    y_test: NDArray[np.generic],
) -> Dataset:
    """Scale both parts of a data set by the statistics of its training part."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x_train)  # leaves constant features at 0
    train, test = (
        Split(
            torch.as_tensor(scaler.transform(x), dtype=torch.float32),
            torch.from_numpy(y.astype(np.int64)),  # a copy: a file's bytes are read-only
        )
        for x, y in ((x_train, y_train), (x_test, y_test))
    )
    return Dataset(name, train, test, classes=int(max(train.y.max(), test.y.max())) + 1)
