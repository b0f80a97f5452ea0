"""Second moments of the patches that a convolution reads, without building the patches.

For a convolution the patch p_nt is what output position t of sample n reads, all taps of the kernel
side by side, and y_nt = W p_nt. Its second moment Σ_n Σ_t p_nt p_ntᵀ has one block for each pair of
taps (a, b), the sum over t of x[t + a] x[t + b]ᵀ. Were the sum to run over *every* t, it would
depend on b - a alone, and all blocks of one offset would be one product of the input with itself,
shifted: 13 products for a 3×3 kernel instead of the 45 that its patches take. The output has
positions t = 0 … T-1 only, so the few positions outside are subtracted; there, most taps read
nothing. In several dimensions both steps apply to each:

    Σ_{t inside} = Π_dimensions (Σ_{all t} - Σ_{t outside})

Every factor of this product is a *term* below, and every choice of one term for each dimension a
product of two views of the input.

A stride s merges s neighbouring values into channels; a transposed convolution reads an input with
zeros between its values, of which none is multiplied.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lca_widgets.curvature.moments import (
    MIXED,
    channels_multiplied_wide,
    mixed,
    product_dtype,
    scaled,
    scaling,
    sum_dtype,
    symmetric_sum,
)

__all__ = ["ConvGeometry", "patch_moment_sum", "patch_sums", "unfold_patches"]

ROWS = 2048  # float32 adds up this many rows, then float64
VALUES = 2**22  # values copied at once, at most, if a sample has not more
# Multiplications that take as long as copying a value, and as the calls for a product; matrices
# of fewer columns than NARROW are multiplied no faster.
COPY, CALL, NARROW = 64, 2**20, 16


@dataclass(frozen=True)
class ConvGeometry:
    """Which input values one output position of a (transposed) convolution reads.

    One entry a spatial dimension. In one dimension tap k of output position t reads, of the padded
    input, the value at t·stride + k·dilation; in a transposed convolution the value i for which
    i·stride + k·dilation = t + padding, if there is one.

    Attributes:
        kernel: Taps.
        stride: Distance between the windows; in a transposed convolution, between input values.
        dilation: Distance between the taps.
        padding: Values added (before, after); in a transposed convolution, cropped off the output.
        groups: Groups of channels.
        mode: What they are padded with, as `torch.nn.functional.pad` calls it.
        transposed: Whether the convolution is transposed.

    Example:
        >>> geometry = ConvGeometry.of(nn.Conv1d(4, 6, 2, padding="same", groups=2))
        >>> geometry.padding, geometry.groups, geometry.mode
        (((0, 1),), 2, 'constant')
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    mode: str
    transposed: bool

    @classmethod
    def of(cls, module: nn.Module) -> ConvGeometry:
        """Return the geometry of a convolution layer of any dimension, transposed or not.

        Raises:
            TypeError: ``module`` is no convolution.
        """
        if not isinstance(module, _ConvNd):
            raise TypeError(f"expected a convolution, got {type(module).__name__}")
        flat = module._reversed_padding_repeated_twice  # "same" and "valid" in numbers, too
        pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
        return cls(
            module.kernel_size,
            module.stride,
            module.dilation,
            pairs[::-1],
            module.groups,
            "constant" if module.padding_mode == "zeros" else module.padding_mode,
            isinstance(module, _ConvTransposeNd),
        )


def unfold_patches(x: Tensor, geometry: ConvGeometry, positions: Sequence[int]) -> Tensor:
    """Return the patches themselves, for which y[n, g, :, t] = W_g p[n, g, :, t] + bias.

    W_g, of shape ``[C_out/G, D]``, is ``weight.flatten(1)`` of group g's output channels; for a
    transposed convolution, whose weight is ``[C_in, C_out/G, *kernel]``, it is group g's part with
    the first two dimensions swapped, then flattened. So D runs over (channel of the group, tap).

    Args:
        x: The layer's input ``[N, C_in, *size]``.
        geometry: Of the layer.
        positions: Spatial shape of the layer's output.

    Returns:
        Shape ``[N, G, D, T]``, D = C_in/G · taps, T the number of positions; prod(kernel) times
        the input's memory.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> unfold_patches(x, ConvGeometry.of(nn.Conv1d(1, 1, 2)), (2,)).tolist()
        [[[[1.0, 2.0], [2.0, 3.0]]]]
    """
    dims = len(positions)
    if geometry.transposed:
        stride = (1,) * dims
        windows = _stuffed(x, geometry, positions)
    else:
        stride = geometry.stride
        windows = _padded(x, geometry)
    for d in range(dims):
        reach = (geometry.kernel[d] - 1) * geometry.dilation[d] + 1
        windows = windows.unfold(2 + d, reach, stride[d]).narrow(2 + d, 0, positions[d])
        windows = windows[..., :: geometry.dilation[d]]
    if geometry.transposed:
        windows = windows.flip(*range(2 + dims, 2 + 2 * dims))
    channels_taps_positions = (1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    patches = windows.permute(0, *channels_taps_positions)
    return patches.reshape(len(x), geometry.groups, -1, math.prod(positions))


def patch_sums(x: Tensor, geometry: ConvGeometry, positions: Sequence[int]) -> Tensor:
    """Return Σ_t p_nt for each sample, the sums of `unfold_patches`, without the patches.

    Along each dimension, tap k of all positions together reads value i of the input c_ik times, so
    that the sum is x times the matrices c, one dimension after the other.

    Args:
        x: The layer's input ``[N, C_in, *size]``.
        geometry: Of the layer.
        positions: Spatial shape of the layer's output.

    Returns:
        Shape ``[N, G, D]``, D in the order of `unfold_patches`; the type of x, added up in it
        (float32 for half precision).

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> patch_sums(x, ConvGeometry.of(nn.Conv1d(1, 1, 2)), (2,)).tolist()
        [[[3.0, 5.0]]]
    """
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    sums, geometry = _with_zeros(x, geometry)
    for d, count in enumerate(positions):
        value = torch.arange(sums.shape[2], device=x.device)[:, None]
        tap = torch.arange(geometry.kernel[d], device=x.device) * geometry.dilation[d]
        stride, before = geometry.stride[d], geometry.padding[d][0]
        if geometry.transposed:
            position = value * stride + tap - before
            reads = (position >= 0) & (position < count)
        else:
            start = value + before - tap  # of the window, in the padded input
            reads = (start >= 0) & (start <= (count - 1) * stride) & (start % stride == 0)
        # The dimension goes, its taps come last: in the end they stand in their order.
        sums = sums.movedim(2, -1) @ reads.to(sums.dtype)
    return sums.reshape(len(x), geometry.groups, -1)


def patch_moment_sum(x: Tensor, geometry: ConvGeometry, positions: Sequence[int]) -> Tensor:
    """Return Σ_n Σ_t p_nt p_ntᵀ, the second moment of the patches, without building them.

    It is that of `unfold_patches`, up to rounding. float64 inputs are multiplied in float64; so are
    those of few channels, and where fewer than 16 samples are taken at a time. Others are
    multiplied in float32: about 1e-8 of the largest eigenvalue off, up to 1e-6 where all inputs are
    one of two numbers. On a GPU nothing waits for the device. Memory beyond the result: some copies
    of a part of the batch, and a padded input where the padding is not zeros. Where patches cost
    less, as for a 1×1 kernel or few positions, they are built.

    Args:
        x: The layer's input ``[N, C_in, *size]``; a value that is not finite stays in the result.
        geometry: Of the layer.
        positions: Spatial shape of the layer's output.

    Returns:
        Shape ``[G, D, D]``, D in the order of `unfold_patches`, of `sum_dtype`.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> patch_moment_sum(x, ConvGeometry.of(nn.Conv1d(1, 1, 2)), (2,)).tolist()
        [[[5.0, 8.0], [8.0, 13.0]]]

    Source:
        The patch moment: Grosse and Martens (2016), "A Kronecker-factored approximate Fisher
        matrix for convolution layers".
    """
    x = x.detach()
    x, geometry = _with_zeros(x, geometry)
    axes = tuple(
        _axis(*sizes, transposed=geometry.transposed)
        for sizes in zip(x.shape[2:], geometry.kernel, geometry.stride, geometry.dilation,
                         (before for before, _ in geometry.padding), positions, strict=True)
    )  # fmt: skip
    products = _products(axes)
    channels = x.shape[1] // geometry.groups
    wide = channels_multiplied_wide(channels)
    chunks = _chunks(x, axes[-1].length, x[0].numel())
    by_patches = _patches_cost_less(x, geometry, positions, axes, products)
    wide = wide or (not by_patches and len(chunks[0]) < MIXED)  # too few samples to mix
    scale, square = scaling(x, wide=wide)  # for one chunk after the other: no copy of all
    if by_patches:
        return _moment_of_patches(x, scale, geometry, positions, wide) * square
    rounded = product_dtype(x, wide=wide) == torch.float32
    stretch = _stretch(x.shape[1], x.device)
    sums: list[Tensor] = []
    for part in chunks:
        values = scaled(part, scale, wide=wide)
        if rounded:
            values = _mixed_samples(values, stretch)
        stored = _stored(values, geometry, axes)
        new = [_multiply(stored, product, axes) for product in products]
        sums = [a.add_(b) for a, b in zip(sums, new, strict=True)] if sums else new
    moment = _assembled([total * square for total in sums], products, axes, geometry, channels)
    if rounded:
        columns = stretch.to(moment.dtype).view(geometry.groups, channels, 1)
        columns = columns.expand(-1, -1, math.prod(geometry.kernel)).flatten(1)
        moment /= columns[:, :, None] * columns[:, None, :]
    return moment


def _mixed_samples(x: Tensor, stretch: Tensor) -> Tensor:
    """Return ``x`` `mixed`, and its channels times ``stretch``.

    Rows may be mixed by samples only, all positions alike, if they are to be shifted. Then there
    are few different products in a sum, and errors that many pairs of channels and taps share: of
    two values everywhere, up to 2e-6 of λ_max. Channels of different sizes share none.
    """
    return mixed(x.flatten(1)).view_as(x).mul_(stretch.view(-1, *[1] * (x.dim() - 2)))


@functools.lru_cache(maxsize=64)
def _stretch(channels: int, device: torch.device) -> Tensor:
    """Return the same random factors between 1 and 2 each time, shape ``[channels]``."""
    with torch.inference_mode(False):  # they are kept for other modes
        generator = torch.Generator().manual_seed(0)
        factors = 1 + torch.rand(channels, generator=generator, dtype=torch.float32, device="cpu")
        return factors.to(device)


def _padded(x: Tensor, geometry: ConvGeometry) -> Tensor:
    amounts = [amount for pair in reversed(geometry.padding) for amount in pair]
    return functional.pad(x, amounts, mode=geometry.mode) if any(amounts) else x


def _with_zeros(x: Tensor, geometry: ConvGeometry) -> tuple[Tensor, ConvGeometry]:
    """Return the same patches as those of a convolution that pads with zeros, if at all."""
    if geometry.mode == "constant":
        return x, geometry
    nothing = ((0, 0),) * len(geometry.padding)
    return _padded(x, geometry), replace(geometry, padding=nothing, mode="constant")


def _stuffed(x: Tensor, geometry: ConvGeometry, positions: Sequence[int]) -> Tensor:
    """Return the input over which a transposed convolution is one of stride 1, taps reversed."""
    spread = x.new_zeros(
        *x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], geometry.stride, strict=True))
    )
    spread[tuple(slice(None, None, s) for s in (1, 1, *geometry.stride))] = x
    amounts: list[int] = []
    for d, count in enumerate(positions):
        reach = (geometry.kernel[d] - 1) * geometry.dilation[d]
        before = reach - geometry.padding[d][0]
        amounts = [before, count + reach - before - spread.shape[2 + d], *amounts]
    return functional.pad(spread, amounts)  # a negative amount crops


def _chunks(x: Tensor, rows: int, values: int) -> tuple[Tensor, ...]:
    """Split the batch into parts of few rows and few values, of which a sample has so many."""
    samples = max(1, min(ROWS // rows, VALUES // values))
    return x.split(samples - samples % MIXED if samples > MIXED else samples)


def _moment_of_patches(
    x: Tensor,
    scale: Tensor | None,
    geometry: ConvGeometry,
    positions: Sequence[int],
    wide: bool,
) -> Tensor:
    """Return the moment of ``x * scale`` by way of its patches."""
    count = math.prod(positions)
    total = torch.zeros((), dtype=sum_dtype(x.device), device=x.device)
    for part in _chunks(x, count, x.shape[1] * math.prod(geometry.kernel) * count):
        patches = unfold_patches(scaled(part, scale, wide=wide), geometry, positions)
        rows = mixed(patches.permute(1, 0, 3, 2).flatten(1, 2))
        if len(rows) == 1:
            total = total + symmetric_sum([rows[0]])[None]
        else:
            total = total + (rows.mT @ rows).to(total.dtype)
    return total


class _Term(NamedTuple):
    """A sum over positions t of one dimension: over all at one lag, or over some outside.

    Attributes:
        lag: b - a of the pairs of taps (a, b) that it belongs to; 0 for positions outside.
        taps: The taps that it belongs to, for positions outside; ``None`` for a lag.
        left: First stored value that tap a reads.
        right: First stored value that tap b reads.
        length: Number of values.
    """

    lag: int
    taps: range | None
    left: int
    right: int
    length: int

    @property
    def stack(self) -> int:
        """Number of taps that are multiplied at once."""
        return 1 if self.taps is None else len(self.taps)


_Product = tuple[_Term, ...]  # one for each dimension


class _Axis(NamedTuple):
    """How the values of one dimension are stored, and which sums over its positions are needed.

    Of a convolution of stride s, tap k = α·phases + ρ is tap α of one of stride 1, whose channels
    hold the input's values s·i + ρ·dilation.

    Attributes:
        phases: Values merged into channels.
        taps: Number of taps α; phases·taps may exceed the kernel by some that do not exist.
        padding: Zeros to store (before, after); negative where values that no tap reads are cut.
        length: Number of stored values, for each phase.
        shift: Stored values between a tap and the next that reads at the same position.
        terms: The sums.
    """

    phases: int
    taps: int
    padding: tuple[int, int]
    length: int
    shift: int
    terms: tuple[_Term, ...]


@functools.lru_cache(maxsize=1024)
def _axis(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    before: int,
    positions: int,
    *,
    transposed: bool,
) -> _Axis:
    common = math.gcd(stride, dilation)
    shift = dilation // common
    if transposed:  # a convolution with reversed taps over values that lie a stride apart
        terms = _terms(kernel, dilation, stride, (kernel - 1) * dilation - before, size, positions)
        return _Axis(1, kernel, (0, 0), size, shift, terms)
    if stride == 1:  # nothing is read beyond the values: no zeros to store
        terms = _terms(kernel, dilation, 1, before, size, positions)
        return _Axis(1, kernel, (0, 0), size, shift, terms)
    phases = min(kernel, stride // common)
    taps = math.ceil(kernel / phases)
    length = positions + (taps - 1) * shift
    after = (length - 1) * stride + (phases - 1) * dilation + 1 - before - size
    terms = _terms(taps, shift, 1, 0, length, positions)
    return _Axis(phases, taps, (before, after), length, shift, terms)


def _terms(
    taps: int, step: int, spread: int, origin: int, length: int, positions: int
) -> tuple[_Term, ...]:
    """Return the sums of a dimension in which tap a of position t reads value i.

    i = (t + a·step - origin) / spread; it reads nothing where that is no integer or not in
    [0, length).
    """
    terms = []
    for lag in range(1 - taps, taps):
        shift, rest = divmod(lag * step, spread)
        if not rest and abs(shift) < length:
            terms.append(_Term(lag, None, max(0, -shift), max(0, shift), length - abs(shift)))
    # Positions whose taps all read one value further than another's are one term with it.
    outside: dict[range, list[_Term]] = {}
    for t in range(origin - (taps - 1) * step, origin + (length - 1) * spread + 1):
        places = {a: t + a * step - origin for a in range(taps)}
        reads = [a for a, at in places.items() if at % spread == 0 and 0 <= at < length * spread]
        if 0 <= t < positions or not reads:
            continue
        start = places[reads[0]] // spread
        readers = range(reads[0], reads[-1] + 1, spread // math.gcd(step, spread))
        runs = outside.setdefault(readers, [])
        if runs and runs[-1].left + runs[-1].length == start:
            runs[-1] = runs[-1]._replace(length=runs[-1].length + 1)
        else:
            runs.append(_Term(0, readers, start, start, 1))
    return (*terms, *itertools.chain.from_iterable(outside.values()))


@functools.lru_cache(maxsize=256)
def _products(axes: tuple[_Axis, ...]) -> tuple[_Product, ...]:
    """Return one half of all choices of a term for each dimension: the other is its transpose."""
    none = (0,) * len(axes)
    choices = itertools.product(*(axis.terms for axis in axes))
    return tuple(terms for terms in choices if tuple(term.lag for term in terms) >= none)


def _patches_cost_less(
    x: Tensor,
    geometry: ConvGeometry,
    positions: Sequence[int],
    axes: tuple[_Axis, ...],
    products: Sequence[_Product],
) -> bool:
    """Return whether the patches cost less than the products, both in multiplications."""

    def row(width: int) -> int:
        return width * max(width, NARROW)

    channels = x.shape[1] // geometry.groups
    merged = channels * math.prod(axis.phases for axis in axes)
    taps = math.prod(geometry.kernel)
    patches = math.prod(positions) * (row(channels * taps) + channels * taps * COPY)
    stored = math.prod(axis.length for axis in axes) * merged * COPY
    multiplied = sum(
        math.prod(term.length for term in product)
        * row(merged * math.prod(term.stack for term in product))
        for product in products
    )
    saved = len(x) * geometry.groups * (patches - stored - multiplied)
    return saved <= len(products) * CALL


def _stored(x: Tensor, geometry: ConvGeometry, axes: tuple[_Axis, ...]) -> Tensor:
    """Return ``x`` as ``[*outer, G, inner, n, K]``, K = phases · C_in/G, contiguous.

    Inner is the last spatial dimension, outer are the others: so the rows (inner, n) of a product
    are contiguous, and one batched product takes them all.
    """
    dims = len(axes)
    amounts = [amount for axis in reversed(axes) for amount in axis.padding]
    values = functional.pad(x, amounts) if any(amounts) else x
    for d, axis in enumerate(axes):
        stride = 1 if geometry.transposed else geometry.stride[d]
        reach = (axis.phases - 1) * geometry.dilation[d] + 1
        values = values.unfold(2 + d, reach, stride)[..., :: geometry.dilation[d]]
    values = values.unflatten(1, (geometry.groups, -1))  # [n, G, C_in/G, *lengths, *phases]
    lengths, phases = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    if geometry.groups == 1:  # a plain transposition, of which torch has a fast one
        flat = values.permute(0, 1, *phases, 2, *lengths).reshape(
            -1, math.prod(axis.length for axis in axes)
        )
        outer = (axis.length for axis in axes[:-1])
        return flat.T.contiguous().view(*outer, 1, axes[-1].length, len(x), -1)
    stored = values.permute(*lengths[:-1], 1, lengths[-1], 0, *phases, 2).contiguous()
    return stored.flatten(2 + dims)


def _multiply(stored: Tensor, product: _Product, axes: tuple[_Axis, ...]) -> Tensor:
    """Return Σ over the rows of the product, shape ``[G, taps · K, taps · K]``."""
    left = _rows(stored, product, [term.left for term in product], axes)
    right = _rows(stored, product, [term.right for term in product], axes)
    groups, dtype = stored.shape[len(axes) - 1], sum_dtype(stored.device)
    parts = [
        _inner(left[:, row : row + ROWS], right[:, row : row + ROWS])
        for row in range(0, left.shape[1], ROWS)
    ]
    sums = [part.view(-1, groups, *part.shape[1:]).sum(0, dtype=dtype) for part in parts]
    return functools.reduce(torch.add, sums)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀ b for each matrix of a batch."""
    if a.shape[2] == 1:  # depthwise convolution: BLAS is slow at columns
        return (a * b).sum(1, keepdim=True)
    return torch.bmm(a.mT, b)


def _rows(
    stored: Tensor, product: _Product, starts: Sequence[int], axes: tuple[_Axis, ...]
) -> Tensor:
    """Return the values that the taps of a product read, ``[outer · G, rows, taps · K]``.

    A view of ``stored`` where each dimension has one tap.
    """
    *outer, group, inner, sample, channel = stored.stride()
    *outer_lengths, inner_length = (term.length for term in product)
    strides = (*outer, inner)
    view = stored.as_strided(
        (*outer_lengths, stored.shape[-4], inner_length, stored.shape[-2],
         *(term.stack for term in product), stored.shape[-1]),
        (*outer, group, inner, sample,
         *(axis.shift * stride for axis, stride in zip(axes, strides, strict=True)), channel),
        stored.storage_offset() + sum(map(operator.mul, starts, strides)),
    )  # fmt: skip
    taps = math.prod(term.stack for term in product)
    return view.reshape(-1, inner_length * stored.shape[-2], taps * stored.shape[-1])


def _assembled(
    sums: Sequence[Tensor],
    products: Sequence[_Product],
    axes: tuple[_Axis, ...],
    geometry: ConvGeometry,
    channels: int,
) -> Tensor:
    """Return the moment ``[G, D, D]``: every product added where its pairs of taps stand."""
    side = (channels, *(size for axis in axes for size in (axis.taps, axis.phases)))
    moment = sums[0].new_zeros(geometry.groups, *side, *side)
    # The sums have the taps of all dimensions first, then their phases, then the channels.
    order = (*range(2, len(side) + 1, 2), *range(3, len(side) + 1, 2), 1)
    blocks = moment.permute(0, *order, *(len(side) + dim for dim in order))
    for total, product in zip(sums, products, strict=True):
        stacked = (*(term.stack for term in product), *blocks.shape[1 + len(axes) : len(side) + 1])
        sign = (-1) ** sum(term.taps is not None for term in product)
        if any(term.lag for term in product):  # the other half
            mirrored = tuple(term._replace(lag=-term.lag) for term in product)
            transposed = total.mT.reshape(-1, *stacked, *stacked)
            _place(blocks, mirrored).add_(transposed, alpha=sign)
        _place(blocks, product).add_(total.view(-1, *stacked, *stacked), alpha=sign)
    side = (channels, *(axis.taps * axis.phases for axis in axes))
    moment = moment.view(-1, *side, *side)
    for d, kernel in enumerate(geometry.kernel):
        for dim in (2 + d, 2 + len(side) + d):
            moment = moment.narrow(dim, 0, kernel)
            moment = moment.flip(dim) if geometry.transposed else moment
    size = channels * math.prod(geometry.kernel)
    return moment.reshape(-1, size, size)


def _place(blocks: Tensor, product: _Product) -> Tensor:
    """Return the blocks that a product belongs to, ``[G, *taps, …, *taps, …]`` as it has them.

    The pairs of taps (a, a + lag) are a diagonal; it takes the place of a, that of b has size 1.
    """
    sizes, strides, offset = list(blocks.shape), list(blocks.stride()), 0
    for d, term in enumerate(product):
        a, b = 1 + d, (len(sizes) + 1) // 2 + d
        if term.taps is None:
            first = max(0, -term.lag)
            offset += first * strides[a] + (first + term.lag) * strides[b]
            sizes[a], strides[a] = sizes[a] - abs(term.lag), strides[a] + strides[b]
            sizes[b] = 1
        else:
            offset += term.taps.start * (strides[a] + strides[b])
            for dim in (a, b):
                sizes[dim], strides[dim] = term.stack, strides[dim] * term.taps.step
    return blocks.as_strided(sizes, strides, offset)
