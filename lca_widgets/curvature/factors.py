"""The two second moments of every layer, Σ_x and Σ_g, from the training's own passes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lca_widgets.curvature.capture import Capture

__all__ = ["FactorCapture", "LayerFactors", "Reduction"]

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The Kronecker factors of one linear layer h = W x.

    Attributes:
        name: The layer's qualified name in the model.
        input_moment: Σ_x = E[x xᵀ], uncentred, shape ``[d_in, d_in]``, float64.
        grad_moment: Σ_g = E[g gᵀ], uncentred, shape ``[d_out, d_out]``, float64, of the
            *per-sample* output gradient g_n = ∂l_n/∂h_n, whatever the loss's reduction.
        n: Number of samples.
        cut: Eigenvalues below ``cut * λ_max`` are rounding noise at the activations' precision.
    """

    name: str
    input_moment: Tensor
    grad_moment: Tensor
    n: int
    cut: float


class FactorCapture:
    """Context manager that gathers Σ_x and Σ_g of every linear layer while a model is trained.

    It uses the forward and backward passes that happen anyway (the empirical Fisher's data
    labels), adds its sums up in float64 where the device has it, over as many batches as there
    are, and changes neither parameters, gradients, buffers, modes nor random state.

    For inputs x of shape ``[N, T…, d_in]`` ("expand" convention, T positions per sample)::

        Σ_x = 1/(N·T) Σ_n Σ_t x_nt x_ntᵀ        Σ_g = 1/N Σ_n Σ_t g_nt g_ntᵀ

    with g_nt = N·∂L/∂h_nt for a mean loss and ∂L/∂h_nt for a summed one, N the size of the batch
    that the gradient belongs to.

    Args:
        model: The module to watch.
        reduction: ``"mean"`` or ``"sum"``: how the loss combines the samples of a batch.
        layers: Names of the linear layers to watch; ``None`` watches all.

    Raises:
        ValueError: an unknown reduction or layer, or a model without linear layers.
        RuntimeError: `take` without a completed forward and backward pass of every layer.

    Source:
        Huang et al. (2020): uncentred moments of per-sample quantities. "Expand" is one of K-FAC's
        two conventions for weight sharing, Eschenhagen et al. (2023).

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
        >>> with FactorCapture(model) as capture:
        ...     nn.functional.cross_entropy(model(x), y).backward()
        >>> [factors] = capture.take()
        >>> bool(torch.allclose(factors.input_moment, torch.eye(3, dtype=torch.float64) / 3))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: Reduction = "mean",
        layers: Collection[str] | None = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self._reduction = reduction
        self._capture = Capture(model, self._add_input, self._add_gradient, layers=layers)
        self._sums = {name: _Sums() for name in self._capture.layers}

    def __enter__(self) -> FactorCapture:
        """Start watching."""
        self._capture.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching; what was gathered stays for `take`."""
        self._capture.__exit__(*exception)

    def take(self) -> list[LayerFactors]:
        """Return the factors of every batch whose backward pass ended since the last call.

        A batch counts with its number of samples, so that the result over several batches is the
        mean of theirs, weighted by N.
        """
        missing = [name for name, sums in self._sums.items() if not sums.samples]
        if missing:
            raise RuntimeError(
                "run a forward and a backward pass inside the context before take(); no gradient "
                f"came from {', '.join(map(repr, missing))} (a layer that the loss does not depend "
                "on, that is not called as a module, or that is frozen with nothing trainable "
                "before it, can be left out: name the others in layers=)"
            )
        factors = [sums.factors(name) for name, sums in self._sums.items()]
        self._sums = {name: _Sums(sums.awaiting, sums.cut) for name, sums in self._sums.items()}
        return factors

    def _add_input(self, name: str, x: Tensor) -> None:
        # It counts when its gradient arrives: a forward pass alone leaves no trace in the sums.
        sums = self._sums[name]
        sums.awaiting = (_second_moment_sum(x), x.shape[:-1].numel())
        sums.cut = relative_cut(x.dtype)

    def _add_gradient(self, name: str, g: Tensor) -> None:
        sums = self._sums[name]
        assert sums.awaiting is not None
        input_sum, rows = sums.awaiting
        sums.awaiting = None
        sums.input = sums.input + input_sum
        sums.rows += rows
        scale = len(g) if self._reduction == "mean" else 1
        sums.gradient = sums.gradient + _second_moment_sum(g) * scale**2
        sums.samples += len(g)


@dataclass
class _Sums:
    """Running sums of one layer, and the part of them whose gradient is still to come."""

    awaiting: tuple[Tensor, int] | None = None  # Σ x xᵀ of a batch and its number of rows
    cut: float = 0.0
    input: Tensor | float = 0.0
    gradient: Tensor | float = 0.0
    rows: int = 0
    samples: int = 0

    def factors(self, name: str) -> LayerFactors:
        assert isinstance(self.input, Tensor)
        assert isinstance(self.gradient, Tensor)
        return LayerFactors(
            name, self.input / self.rows, self.gradient / self.samples, self.samples, self.cut
        )


def relative_cut(dtype: torch.dtype) -> float:
    """Return the relative size below which an eigenvalue is rounding noise of ``dtype`` inputs."""
    return 1e-12 if dtype == torch.float64 else 1e-7


def _second_moment_sum(rows: Tensor) -> Tensor:
    """Σ r rᵀ over all leading dimensions of ``rows`` […, d], in the widest type of its device."""
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    flat = rows.reshape(-1, rows.shape[-1]).to(wide)
    return flat.T @ flat
