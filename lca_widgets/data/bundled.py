"""Data that need no files: scikit-learn's bundled sets, and inputs drawn with a known spectrum."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.data.records import Dataset, Split, Table, standardised

__all__ = ["DIGITS_TEST_SIZE", "TABLES", "digit_images", "digits", "ill_conditioned", "table"]

DIGITS_TEST_SIZE = 360  # of 1797 images: 1437 remain for training

# scikit-learn's bundled tables; the first has a continuous target, the others have classes.
TABLES = ("diabetes", "wine", "breast-cancer", "digits")


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
    return standardised("digits", *_split_digits(seed))


@lru_cache(maxsize=8)
def digit_images(*, seed: int = 0) -> Dataset:
    """Load the images of `digits` with one mean and one spread for all pixels, as images are.

    `digits` standardises every pixel by itself, which makes the rare ones at the border as large as
    30. Convolutions, and residual networks that hand their input on, want the picture as it is.

    Args:
        seed: Fixes the split, which is that of `digits`.

    Returns:
        A data set of 64 features, pixel by pixel, row by row; the training part has mean 0 and
        variance 1 over all images and pixels.

    Example:
        >>> data = digit_images()
        >>> data.train.x.shape, f"{data.train.x.double().std(correction=0):.6f}"
        (torch.Size([1437, 64]), '1.000000')
    """
    x_train, y_train, x_test, y_test = _split_digits(seed)
    train, test = (
        Split(
            torch.as_tensor((x - x_train.mean()) / x_train.std(), dtype=torch.float32),
            torch.from_numpy(y),
        )
        for x, y in ((x_train, y_train), (x_test, y_test))
    )
    return Dataset("digit images", train, test, classes=10)


def _split_digits(seed: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Training images and labels, test images and labels."""
    # scikit-learn takes a second to import; notebooks that bring their own data need not wait.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    require_integer("seed", seed, low=0, high=2**32 - 1)
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=DIGITS_TEST_SIZE, stratify=y, random_state=seed
    )
    return x_train, y_train, x_test, y_test


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
