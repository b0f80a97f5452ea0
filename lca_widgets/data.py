"""Real data sets as tensors: scikit-learn's bundled digits, and MNIST-format files of your own.

Every loader of a `Dataset` standardises its features with the statistics of the *training* part, so
that a layer's input second moment is not dominated by the units of a pixel. A `Table` is the
opposite: raw numbers in the units they came in, for linear models that ask what those units do.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of

__all__ = [
    "TABLES",
    "Dataset",
    "Split",
    "Table",
    "digits",
    "ill_conditioned",
    "load",
    "mnist_format",
    "table",
]

DIGITS_TEST_SIZE = 360  # of 1797 images: 1437 remain for training

# scikit-learn's bundled tables; the first has a continuous target, the others have classes.
TABLES = ("diabetes", "wine", "breast-cancer", "digits")

# The four files of the MNIST distribution; Fashion-MNIST, KMNIST and others use the same names.
MNIST_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


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


@lru_cache(maxsize=8)
def digits(*, seed: int = 0) -> Dataset:
    """Load scikit-learn's bundled handwritten digits (8×8 pixels, 10 classes), standardised.

    Args:
        seed: Fixes the stratified split into 1437 training and 360 test images.

    Returns:
        A data set of 64 features. Three pixels or, by the split, a few more are 0 in every training
        image; they stay 0, so the input second moment has rank 61 or less.

    Example:
        >>> data = digits(seed=0)
        >>> data.train.x.shape, data.test.x.shape
        (torch.Size([1437, 64]), torch.Size([360, 64]))
    """
    # scikit-learn takes a second to import; notebooks that bring their own data need not wait.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    require_integer("seed", seed, low=0, high=2**32 - 1)
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=DIGITS_TEST_SIZE, stratify=y, random_state=seed
    )
    return _standardised("digits", x_train, y_train, x_test, y_test)


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


def table(name: str) -> Table:
    """Load one of scikit-learn's bundled tables, raw.

    Args:
        name: ``"diabetes"`` (442 patients, 10 features, disease progression), ``"wine"`` (178 wines
            of 3 growers, 13 features), ``"breast-cancer"`` (569 tumours of 2 kinds, 30 features)
            or ``"digits"`` (1797 images of 10 digits, 64 pixels, three of them always 0).

    Raises:
        ValueError: there is no such table; the message lists them.

    Example:
        >>> wine = table("wine")
        >>> tuple(wine.x.shape), wine.classes, wine.features[0]
        ((178, 13), 3, 'alcohol')
    """
    require_one_of("name", name, TABLES)
    return _table(name)


@lru_cache(maxsize=len(TABLES))
def _table(name: str) -> Table:
    from sklearn import datasets

    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
    else:
        bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    classes = None if name == "diabetes" else len(bunch.target_names)
    target = bunch.target.astype(np.float64 if classes is None else np.int64)
    return Table(
        name,
        torch.from_numpy(bunch.data.astype(np.float64)),
        torch.from_numpy(target),
        classes,
        tuple(str(feature) for feature in bunch.feature_names),
    )


def ill_conditioned(n: int, d: int, kappa: float, seed: int = 0) -> Table:
    """Draw inputs whose second moment has a prescribed condition number, with a linear target.

    Gaussian numbers are orthogonalised, to each other and to the constant, and then scaled::

        x = √n Q Λ^½ Vᵀ,   Σ_x = 1/n xᵀ x = V Λ Vᵀ,   λ_i = κ^(-i/(d-1)), i = 0 … d-1

    So the eigenvalues run from 1 down to 1/κ in equal ratios, and every feature has mean 0, both
    up to rounding. The target ``y = Q s √(n/d)``, with random signs s, has variance 1, and each
    eigendirection explains the same share of it: its weights are larger the smaller λ is.

    Args:
        n: Samples, more than ``d``.
        d: Features, at least 2.
        kappa: κ(Σ_x), 1 to 1e24; beyond it rounding would decide the smallest eigenvalue.
        seed: Draws Q, V and s.

    Raises:
        TypeError, ValueError: an argument is out of range; the message names it.

    Source:
        Derived.

    Example:
        >>> data = ill_conditioned(50, 4, kappa=1000.0)
        >>> [round(v, 9) for v in torch.linalg.eigvalsh(data.x.T @ data.x / 50).tolist()]
        [0.001, 0.01, 0.1, 1.0]
    """
    require_integer("d", d, low=2)
    require_integer("n", n, low=d + 1)
    require_in_range("kappa", kappa, low=1, high=1e24)
    require_integer("seed", seed, low=0, high=2**31 - 1)
    generator = torch.Generator().manual_seed(seed)

    def gaussian(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    constant = torch.ones(n, 1, dtype=torch.float64)
    # The first column of Q is the constant: the others are orthogonal to it.
    q = torch.linalg.qr(torch.cat([constant, gaussian(n, d)], dim=1)).Q[:, 1:]
    v = torch.linalg.qr(gaussian(d, d)).Q
    roots = kappa ** (-torch.arange(d, dtype=torch.float64) / (2 * (d - 1)))
    signs = gaussian(d, 1).sign()
    return Table(
        "gaussian",
        math.sqrt(n) * (q * roots) @ v.T,
        (math.sqrt(n / d) * q @ signs)[:, 0],
        None,
        tuple(f"x{k}" for k in range(1, d + 1)),
    )


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
    return _standardised(
        folder.name,
        _flat(parts["x_train"][order]),
        parts["y_train"][order],
        _flat(parts["x_test"]),
        parts["y_test"],
    )


def _standardised(
    name: str,
    x_train: NDArray[np.generic],
    y_train: NDArray[np.generic],
    x_test: NDArray[np.generic],
    y_test: NDArray[np.generic],
) -> Dataset:
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
