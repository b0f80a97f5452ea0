"""Second moments of rows: one product, scaled so that nothing over- or underflows."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

__all__ = [
    "MIXED",
    "ROWS",
    "channels_multiplied_wide",
    "exact_products",
    "mixed",
    "product_dtype",
    "relative_cut",
    "rows_multiplied_wide",
    "scaled",
    "scaling",
    "second_moment_sum",
    "sum_dtype",
    "symmetric_sum",
]

ROWS = 2048  # float32 adds up this many rows at a time, float64 the sums of those
MIXED = 16  # rows that are mixed with each other: as cheap as a copy, and enough
UNSCALED = 2.0**40  # magnitudes below it, and above one over it, have products that float32 holds
NARROW = 64  # rows up to this width are multiplied in float64, where that costs little
FEW_CHANNELS = 16  # fewer channels of a convolution likewise
PANEL = 96  # columns of a product's panel: wide enough for BLAS, narrow enough to skip a half


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which moments are added up: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def relative_cut(dtype: torch.dtype, *, wide: bool) -> float:
    """Return the relative size below which an eigenvalue of a second moment is rounding noise.

    That is 1e-12 for float64 values. For float32 values it is 1e-7 where their products were
    float64, and 1e-6 where they were float32, of rows that were `mixed`: with every set of MKL's
    kernels (processors differ in them) noise stayed below half of that.

    Args:
        dtype: Of the values.
        wide: Whether the products were float64.
    """
    if dtype == torch.float64:
        return 1e-12
    return max(1e-7 if wide else 1e-6, torch.finfo(dtype).eps ** 2)


def rows_multiplied_wide(width: int) -> bool:
    """Whether rows of this width are multiplied in float64."""
    return width <= NARROW


def channels_multiplied_wide(channels: int) -> bool:
    """Whether so many channels in a group are multiplied in float64."""
    return channels < FEW_CHANNELS


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Multiply in the operands' own precision, without a graph, whatever the caller has set.

    Autocast would multiply in half precision, and TF32 (or bfloat16 on a CPU) would stand in for
    float32. Modes that look at every function (one that follows units, say) see none of these.
    """
    with torch.no_grad(), torch._C.DisableTorchFunction(), ExitStack() as settings:
        if torch.is_autocast_enabled(device.type):
            settings.enter_context(torch.autocast(device.type, enabled=False))
        if _float32_precision() != "highest":
            settings.enter_context(_full_float32())
        yield


def _float32_precision() -> str | None:
    """PyTorch's setting; None if it was made by the newer names, which do not mix with this one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def _full_float32() -> Iterator[None]:
    precision = _float32_precision()
    cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing in its types
    newer = (
        []
        if precision
        else [(backend, backend.fp32_precision) for backend in (torch.backends.cuda.matmul, cpu)]
    )
    try:
        if precision:
            torch.set_float32_matmul_precision("highest")
        for backend, _ in newer:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if precision:
            torch.set_float32_matmul_precision(precision)
        for backend, before in newer:
            backend.fp32_precision = before


def scaling(values: Tensor, *, wide: bool) -> tuple[Tensor | None, Tensor]:
    """Return a power of two s near one over the largest magnitude, and 1/s².

    Products of ``s * values`` neither overflow nor vanish, at whatever scale the layer works
    (gradients of 1e-30 have squares that float32 cannot hold), and multiplying by a power of two
    rounds nothing.

    Args:
        values: Any shape, not empty. A value that is not finite is left out of account.
        wide: Whether they will be multiplied in `sum_dtype`.

    Returns:
        s, for `scaled`, and 1/s² in `sum_dtype`, scalars on the same device. s is None where the
        values need no scaling: float32 ones multiplied in float64, and on a CPU all of a usual
        size; elsewhere nothing waits for the device to find out.
    """
    sums = sum_dtype(values.device)
    if wide and torch.finfo(sums).max > torch.finfo(values.dtype).max:
        return None, torch.ones((), dtype=sums, device=values.device)
    low, high = torch.aminmax(values.detach())
    largest = torch.maximum(high, -low).float()
    largest = largest.nan_to_num(nan=1.0, posinf=torch.finfo(torch.float32).max)
    if values.device.type == "cpu" and 1 / UNSCALED < largest.item() < UNSCALED:
        return None, torch.ones((), dtype=sums)
    # The exponent's bits alone are the power of two below the number; not every device has frexp.
    power = (largest.view(torch.int32) & 0x7F800000).view(torch.float32)
    power = power.clamp(2.0**-126, 2.0**126)
    return 1 / power, power.to(sums) ** 2


def product_dtype(values: Tensor, *, wide: bool) -> torch.dtype:
    """Return the type in which values are multiplied: float32 at least, `sum_dtype` if ``wide``."""
    least = sum_dtype(values.device) if wide else torch.float32
    return torch.promote_types(values.dtype, least)


def scaled(values: Tensor, scale: Tensor | None, *, wide: bool = False) -> Tensor:
    """Return ``s * values``, or ``values``, in `product_dtype`.

    Args:
        values: Any shape.
        scale: s of `scaling`.
        wide: Whether to multiply in `sum_dtype`.
    """
    values = values.to(product_dtype(values, wide=wide))
    return values if scale is None else values * scale


def second_moment_sum(rows: Tensor) -> Tensor:
    """Return Σ r rᵀ over all leading dimensions of ``rows`` […, d], shape ``[d, d]``.

    Narrow rows are multiplied in float64, others in their own type, float32 at least, `mixed` and
    two thousand at a time; the sum is taken and returned in `sum_dtype`. `relative_cut` says how
    far that may be off.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if not len(flat):
        return torch.zeros(2 * flat.shape[1:], dtype=sum_dtype(rows.device), device=rows.device)
    wide = rows_multiplied_wide(flat.shape[1])
    scale, square = scaling(flat, wide=wide)
    parts = (scaled(part, scale, wide=wide) for part in flat.split(ROWS))
    total = symmetric_sum(mixed(part) for part in parts)
    return total if scale is None else total.mul_(square)


def mixed(rows: Tensor) -> Tensor:
    """Return other rows of which Σ r rᵀ is the same, but for rounding; float64 ones as they are.

    float32 sums of many equal products (of a constant background, of two classes' gradients) round
    to one side: up to 4e-5 of λ_max, depending on how many of them the processor's BLAS adds up in
    one chain. Random orthogonal matrices, each times a few rows, leave the sum alone and make the
    products differ: their errors go either way and cancel.

    Args:
        rows: Shape ``[…, n, d]``; a value that is not finite spreads to its neighbours' rows.

    Returns:
        The same shape.
    """
    if rows.dtype == torch.float64:
        return rows
    count, rest = divmod(rows.shape[-2], MIXED)
    whole = count * MIXED
    blocks = rows[..., :whole, :].unflatten(-2, (count, MIXED))
    power = 1 << count.bit_length()  # not as many as there are sizes of batches
    blocks = (_rotations(power, MIXED, rows.device)[:count] @ blocks).flatten(-3, -2)
    if not rest:
        return blocks
    others = _rotations(1, rest, rows.device)[0] @ rows[..., whole:, :]
    return torch.cat([blocks, others], dim=-2)


@functools.lru_cache(maxsize=64)
def _rotations(count: int, size: int, device: torch.device) -> Tensor:
    """Return the same random orthogonal matrices each time, shape ``[count, size, size]``."""
    with torch.inference_mode(False):  # they are kept for other modes
        generator = torch.Generator().manual_seed(0)
        gaussian = torch.randn(
            count, size, size, generator=generator, dtype=torch.float64, device="cpu"
        )
        return torch.linalg.qr(gaussian).Q.float().to(device)


def symmetric_sum(parts: Iterable[Tensor]) -> Tensor:
    """Return Σ ``part.T @ part`` over parts ``[n, d]``, computing only one half where that pays.

    The products are taken in the type of the parts, and added up in `sum_dtype`.
    """
    parts = iter(parts)
    first = next(parts)
    d, dtype = first.shape[1], sum_dtype(first.device)
    if d < 2 * PANEL:
        total = (first.T @ first).to(dtype)
        for part in parts:
            total += part.T @ part
        return total
    total = torch.empty(d, d, dtype=dtype, device=first.device)
    panels = [slice(start, start + PANEL) for start in range(0, d, PANEL)]
    for panel in panels:
        total[panel, panel.start :] = first[:, panel].T @ first[:, panel.start :]
    for part in parts:
        for panel in panels:
            total[panel, panel.start :] += part[:, panel].T @ part[:, panel.start :]
    for panel in panels:
        total[panel.stop :, panel] = total[panel, panel.stop :].T
    return total
