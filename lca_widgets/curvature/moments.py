"""Second moments of rows: one product, scaled so that nothing over- or underflows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

__all__ = [
    "ROWS",
    "channels_multiplied_wide",
    "exact_products",
    "relative_cut",
    "rows_multiplied_wide",
    "scaled",
    "scaling",
    "second_moment_sum",
    "sum_dtype",
    "symmetric_product",
]

ROWS = 4096  # float32 adds up this many rows at a time, float64 the sums of those
UNSCALED = 2.0**40  # magnitudes below it, and above one over it, have products that float32 holds
# Rows up to this width are multiplied in float64, where that costs little: BLAS adds up so narrow a
# float32 product in one chain, 1e-5 of λ_max off at worst.
NARROW = 64
FEW_CHANNELS = 16  # fewer channels of a convolution likewise
PANEL = 96  # columns of a product's panel: wide enough for BLAS, narrow enough to skip a half


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which moments are added up: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def relative_cut(dtype: torch.dtype, *, wide: bool) -> float:
    """Return the relative size below which an eigenvalue of a second moment is rounding noise.

    That is 1e-12 for float64 values. For float32 values it is 1e-7 where their products were
    float64, and 1e-6 where they were float32: sums of many equal numbers, of a constant background
    or of two classes' gradients, round to one side (up to 8e-7 of λ_max was seen).

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


def scaled(values: Tensor, scale: Tensor | None, *, wide: bool = False) -> Tensor:
    """Return ``s * values``, or ``values``, in the type to multiply in: float32 at least.

    Args:
        values: Any shape.
        scale: s of `scaling`.
        wide: Whether to multiply in `sum_dtype`.
    """
    least = sum_dtype(values.device) if wide else torch.float32
    values = values.to(torch.promote_types(values.dtype, least))
    return values if scale is None else values * scale


def second_moment_sum(rows: Tensor) -> Tensor:
    """Return Σ r rᵀ over all leading dimensions of ``rows`` […, d], shape ``[d, d]``.

    Narrow rows are multiplied in float64, others in their own type, float32 at least, a few
    thousand at a time; the sum is taken and returned in `sum_dtype`. `relative_cut` says how far
    that may be off.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if not len(flat):
        return torch.zeros(2 * flat.shape[1:], dtype=sum_dtype(rows.device), device=rows.device)
    wide = rows_multiplied_wide(flat.shape[1])
    scale, square = scaling(flat, wide=wide)
    parts = (scaled(part, scale, wide=wide) for part in flat.split(ROWS))
    products = (symmetric_product(part, square.dtype) for part in parts)
    total = next(products)
    for product in products:
        total += product
    return total if scale is None else total.mul_(square)


def symmetric_product(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``rows.T @ rows`` for rows ``[n, d]``, computing only one half where that pays.

    The product is taken in the type of ``rows`` and returned in ``dtype``.
    """
    d = rows.shape[1]
    if d < 2 * PANEL:
        return (rows.T @ rows).to(dtype)
    product = torch.empty(d, d, dtype=dtype, device=rows.device)
    for start in range(0, d, PANEL):
        stop = min(start + PANEL, d)
        panel = rows[:, start:stop].T @ rows[:, start:]
        product[start:stop, start:] = panel
        product[stop:, start:stop] = panel[:, stop - start :].T
    return product
