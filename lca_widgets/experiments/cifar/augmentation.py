"""The images of an iteration: their order, crops and flips, all from (seed, iteration) alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["MEAN", "PADDING", "STD", "Crops", "crops_of", "normalised", "sample_indices"]

# Of the training images' red, green and blue, on the scale of their bytes: the authors' numbers.
MEAN = (125.3, 123.0, 113.9)
STD = (63.0, 62.1, 66.7)
PADDING = 4  # pixels, reflected, on each side

ORDER, CROPS = 0, 1  # what random numbers are for: each its own stream


def sample_indices(samples: int, batch_size: int, seed: int, iteration: int) -> Tensor:
    """Return which images an iteration takes, with no need of those before it.

    The images are shuffled anew for every epoch; those left over at its end are not used.

    Example:
        >>> first, second = (sample_indices(10, 4, seed=0, iteration=k) for k in (0, 1))
        >>> len(set(first.tolist()) | set(second.tolist()))
        8
    """
    epoch, position = divmod(iteration, samples // batch_size)
    return _order(samples, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, ORDER, epoch)).permutation(samples))


@dataclass(frozen=True, eq=False)
class Crops:
    """Where crops of the padded images begin, and which of them are flipped; one entry an image.

    Attributes:
        top: First row of the crop in the padded image, 0 … 8; 4 is the image as it was.
        left: First column, likewise.
        flipped: Whether left and right are exchanged after cropping.
    """

    top: Tensor
    left: Tensor
    flipped: Tensor

    def __getitem__(self, part: slice) -> Crops:
        """Return those of some of the images."""
        return Crops(self.top[part], self.left[part], self.flipped[part])

    def of(self, images: Tensor) -> Tensor:
        """Return the crops of images [n, channels, height, width], of the same size.

        Example:
            >>> image = torch.arange(25).view(1, 1, 5, 5)
            >>> as_it_was = Crops(torch.tensor([4]), torch.tensor([4]), torch.tensor([False]))
            >>> torch.equal(as_it_was.of(image), image)
            True
        """
        rows = _reflected(self.top.to(images.device), images.shape[2])
        columns = _reflected(self.left.to(images.device), images.shape[3])
        flipped = self.flipped.to(images.device)
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
        # Nothing is padded: each pixel is fetched from where its reflection is.
        image = torch.arange(len(images), device=images.device)
        picked = images[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return picked.movedim(-1, 1)


def crops_of(count: int, seed: int, iteration: int) -> Crops:
    """Draw the crops and flips of an iteration's images, on the CPU: alike for every device.

    Example:
        >>> crops = crops_of(128, seed=0, iteration=7)
        >>> int(crops.top.min()), int(crops.top.max())
        (0, 8)
    """
    generator = np.random.default_rng((seed, CROPS, iteration))
    offsets = torch.from_numpy(generator.integers(2 * PADDING + 1, size=(2, count)))
    flipped = torch.from_numpy(generator.integers(2, size=count) == 1)
    return Crops(offsets[0], offsets[1], flipped)


def normalised(images: Tensor) -> Tensor:
    """Return images of bytes [n, 3, height, width] as float32, less MEAN and divided by STD.

    Example:
        >>> normalised(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten()
        tensor([-1.9889, -1.9807, -1.7076])
    """
    mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) for value in (MEAN, STD))
    return (images.float() - mean) / std


def _reflected(start: Tensor, size: int) -> Tensor:
    """Rows, or columns, of the images behind those of the crops, [n, size]."""
    place = start[:, None] + torch.arange(size, device=start.device) - PADDING
    last = size - 1
    return last - (last - place.abs()).abs()
