"""What one layer's input and output gradient add to its two moments, kind by kind."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from lca_widgets.curvature.capture import Convolution, Layer, linear_sizes
from lca_widgets.curvature.moments import (
    ROWS,
    rows_multiplied_wide,
    scaled,
    scaling,
    second_moment_sum,
    sum_dtype,
)
from lca_widgets.curvature.patches import ConvGeometry, patch_moment_sum, patch_sums

__all__ = ["Conv", "LayerMoments", "layer_moments"]

Conv = Literal["patch", "pixel"]

VALUES = 2**18  # scaled at a time: what is written for a product is read again from the cache


class LayerMoments(Protocol):
    """Sums over samples n and positions t; G groups, 1 but for grouped convolution patches.

    ``positions`` is the spatial shape of the layer's output, empty for a linear layer.
    """

    def rows(self, x: Tensor, positions: torch.Size) -> int:
        """Return the number N·T of vectors x_nt."""

    def input_sum(self, x: Tensor, positions: torch.Size) -> Tensor:
        """Return Σ_nt x_nt x_ntᵀ, shape ``[G, d_in, d_in]``, in the sums' type."""

    def input_totals(self, x: Tensor, positions: torch.Size) -> Tensor:
        """Return Σ_t x_nt, shape ``[N, G, d_in]``."""

    def gradient_sum(self, g: Tensor) -> Tensor:
        """Return Σ_nt g_nt g_ntᵀ, shape ``[G, d_out, d_out]``, in the sums' type."""

    def gradient_totals(self, g: Tensor) -> Tensor:
        """Return Σ_t g_nt, shape ``[N, G, d_out]``."""

    def gradient_rows(self, g: Tensor) -> int:
        """Return the number N·T of vectors g_nt."""

    @property
    def wide(self) -> bool:
        """Whether all products are taken in float64, also of float32 values."""

    @property
    def positions_are_samples(self) -> bool:
        """Whether each of the N·T output positions counts as a sample, its gradient N·T·∂L/∂h."""


def layer_moments(layer: Layer, conv: Conv) -> LayerMoments:
    """Return what ``layer`` adds up, convolutions by patches or by pixels."""
    if not isinstance(layer, Convolution):
        return _Linear(layer)
    return _Patches(layer) if conv == "patch" else _Pixels()


class _Linear:
    """x of shape [N, T…, d_in]: every position is a vector."""

    positions_are_samples = False

    def __init__(self, layer: nn.Linear) -> None:
        self.wide = rows_multiplied_wide(max(linear_sizes(layer)))

    def rows(self, x: Tensor, positions: torch.Size) -> int:
        return x.shape[:-1].numel()

    def input_sum(self, x: Tensor, positions: torch.Size) -> Tensor:
        return second_moment_sum(x)[None]

    def input_totals(self, x: Tensor, positions: torch.Size) -> Tensor:
        return _row_totals(x)

    def gradient_sum(self, g: Tensor) -> Tensor:
        return second_moment_sum(g)[None]

    def gradient_totals(self, g: Tensor) -> Tensor:
        return _row_totals(g)

    def gradient_rows(self, g: Tensor) -> int:
        return g.shape[:-1].numel()


class _Patches:
    """x of shape [N, C_in, …]: the patch that each output position reads is a vector."""

    positions_are_samples = False
    wide = False

    def __init__(self, layer: Convolution) -> None:
        self._geometry = ConvGeometry.of(layer)

    def rows(self, x: Tensor, positions: torch.Size) -> int:
        return len(x) * math.prod(positions)

    def input_sum(self, x: Tensor, positions: torch.Size) -> Tensor:
        return patch_moment_sum(x, self._geometry, positions)

    def input_totals(self, x: Tensor, positions: torch.Size) -> Tensor:
        return patch_sums(x, self._geometry, positions)

    def gradient_sum(self, g: Tensor) -> Tensor:
        return channel_moment_sum(g, self._geometry.groups)

    def gradient_totals(self, g: Tensor) -> Tensor:
        return _channel_totals(g, self._geometry.groups)

    def gradient_rows(self, g: Tensor) -> int:
        return len(g) * g.shape[2:].numel()


class _Pixels:
    """x of shape [N, C_in, …]: the channels at each position are a vector; groups are not seen."""

    positions_are_samples = True
    wide = False

    def rows(self, x: Tensor, positions: torch.Size) -> int:
        return len(x) * x.shape[2:].numel()

    def input_sum(self, x: Tensor, positions: torch.Size) -> Tensor:
        return channel_moment_sum(x, groups=1)

    def input_totals(self, x: Tensor, positions: torch.Size) -> Tensor:
        return _channel_totals(x, groups=1)

    def gradient_sum(self, g: Tensor) -> Tensor:
        return channel_moment_sum(g, groups=1)

    def gradient_totals(self, g: Tensor) -> Tensor:
        return _channel_totals(g, groups=1)

    def gradient_rows(self, g: Tensor) -> int:
        return len(g) * g.shape[2:].numel()


def _row_totals(values: Tensor) -> Tensor:
    """Σ over positions of ``values`` [N, T…, d], shape [N, 1, d], in float32 at least."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.reshape(len(values), 1, -1, values.shape[-1]).sum(dim=2, dtype=dtype)


def _channel_totals(values: Tensor, groups: int) -> Tensor:
    """Σ over positions of ``values`` [N, C, …], shape [N, G, C/G], in float32 at least."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.flatten(2).sum(dim=2, dtype=dtype).unflatten(1, (groups, -1))


def channel_moment_sum(values: Tensor, groups: int) -> Tensor:
    """Return Σ over samples and positions of v vᵀ for ``values`` [N, C, …], ``[G, C/G, C/G]``."""
    by_group = values.flatten(2).unflatten(1, (groups, -1))  # [N, G, C/G, P]
    channels, positions = by_group.shape[2:]
    size = max(1, VALUES // by_group[0].numel())
    total = torch.zeros((), dtype=sum_dtype(values.device), device=values.device)
    # N matrices of C/G² would outgrow the values where there are more channels than positions.
    if channels > positions or not rows_multiplied_wide(channels):
        for part in by_group.split(max(size, ROWS // positions)):
            rows = part.permute(1, 0, 3, 2).flatten(1, 2)
            total = total + torch.stack([second_moment_sum(group) for group in rows])
        return total
    scale, square = scaling(values, wide=True)
    for part in by_group.split(size):
        vectors = scaled(part, scale, wide=True)
        total = total + (vectors @ vectors.mT).sum(dim=0, dtype=total.dtype)
    return total * square
