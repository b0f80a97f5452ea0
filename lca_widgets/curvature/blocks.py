"""Exact layer blocks, and the whole network's second moment, from per-sample gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lca_widgets.curvature.capture import (
    Convolution,
    ForwardPass,
    Layer,
    LayerCall,
    linear_sizes,
    supported_layers,
    uncovered_layers,
)
from lca_widgets.curvature.losses import Fisher, LossFunction, Reduction
from lca_widgets.curvature.moments import exact_products, relative_cut, second_moment_sum
from lca_widgets.curvature.passes import (
    Labels,
    batches,
    by_sample,
    measure_batch,
    nothing_measured,
    require_samples_first,
    undisturbed,
)
from lca_widgets.curvature.patches import ConvGeometry, unfold_patches
from lca_widgets.curvature.spectrum import LayerSpectra, Spectrum, gram_spectrum

__all__ = ["BlockComparison", "Blocks", "compare_blocks", "exact_blocks"]

VALUES = 2**24  # of per-sample gradients, or of patches, that are held at a time


@dataclass(frozen=True, eq=False)
class Blocks:
    """Spectra of the exact second moment of the per-sample gradients.

    Attributes:
        layers: Spectrum of each layer's block M_k, of its own weights.
        network: Spectrum of the whole matrix M, over the weights of all these layers together.
        skipped: Name and reason of every module with parameters that is not in it.
    """

    layers: dict[str, Spectrum]
    network: Spectrum
    skipped: dict[str, str]

    @cached_property
    def block_diagonal(self) -> Spectrum:
        """Spectrum of the block-diagonal part of M: the blocks' eigenvalues together."""
        values = torch.cat([spectrum.eigenvalues for spectrum in self.layers.values()])
        return Spectrum(values, self.network.n, self.network.dimension)


@dataclass(frozen=True)
class BlockComparison:
    """How far the Kronecker approximation Σ_x ⊗ Σ_g is from the exact block of a layer.

    Attributes:
        name: The layer's qualified name.
        lambda_max_ratio: λ_max of the approximation over that of the block.
        kappa_ratio: κ_p likewise; NaN where the block's is infinite (fewer samples than p·d).
    """

    name: str
    lambda_max_ratio: float
    kappa_ratio: float


def exact_blocks(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    *,
    fisher: Fisher = "empirical",
    bias: bool = False,
    reduction: Reduction | None = None,
    layers: Collection[str] | None = None,
    seed: int = 0,
) -> Blocks:
    """Measure the exact spectrum of every layer's block, and of the whole network's matrix.

    The rows of J_k are the gradients of the N samples with respect to layer k's weight (one for
    each column of labels, see `losses.output_gradients`, for ``fisher="exact"``), and the block is
    M_k = J_kᵀ J_k / N. Its non-zero eigenvalues are those of the Gram matrix J_k J_kᵀ / N, and
    those of the whole M are those of the sum of these over the layers. Where a layer is applied at
    one position a sample, J_k J_kᵀ = (X Xᵀ) ∘ (G Gᵀ) costs N² (d_in + d_out); otherwise the
    per-sample gradients Σ_t g_nt x_ntᵀ are formed, a part of the weight at a time. Nothing about
    the model is changed.

    Args:
        model: Any module; its linear and convolution layers are measured.
        loss_fn: As for `factors.kronecker_factors`.
        batch: ``(inputs, target)``: every pair of its samples is compared, so it is one batch.
            The inputs and output gradients of all layers are held in memory.
        fisher: Which labels.
        bias: Include the layers' biases.
        reduction: ``"mean"`` or ``"sum"``; ``None`` reads or finds it out.
        layers: Names of the layers to measure; ``None`` measures all.
        seed: Draws the labels of ``"sampled"``.

    Raises:
        TypeError, ValueError: as `factors.kronecker_factors`; or ``batch`` is more than one batch,
            two layers share a weight, or a layer's entries cannot be told apart by sample (N·F of
            them are taken as F in a row for each).
        RuntimeError: a layer's input was changed in place after the layer had read it.

    Source:
        Huang et al. (2020) for M; the Gram matrices are derived from vec(g xᵀ)·vec(g' x'ᵀ) =
        (g·g')(x·x').

    Example:
        >>> model, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> loss_fn = nn.MSELoss(reduction="sum")
        >>> blocks = exact_blocks(model, loss_fn, (x, torch.zeros(2, 1)), fisher="exact")
        >>> [round(value, 5) for value in blocks.network.eigenvalues.tolist()]  # E[2 x xᵀ]
        [4.0, 1.0]
    """
    found = supported_layers(model, layers)
    labels = Labels(loss_fn, fisher, reduction, seed)
    with undisturbed(model, loss_fn):  # a parametrised weight may change buffers when looked at
        gradients = {name: _LayerGradients(layer, bias) for name, layer in found.items()}
        _require_own_weights(gradients, model)
        given = list(batches(batch, model))
        if len(given) != 1:
            raise ValueError(
                f"batch must be one batch (inputs, target), got {len(given)}: exact blocks compare "
                "every pair of samples, so join them into one"
            )
        n = measure_batch(model, *given[0], labels, gradients)
        skipped = uncovered_layers(model) if layers is None else {}
        skipped |= {name: layer.unmeasured for name, layer in gradients.items() if not layer.calls}
        measured = {name: layer for name, layer in gradients.items() if layer.calls}
        if not measured:
            raise nothing_measured(gradients)
        with exact_products(next(iter(measured.values())).calls[0].input.device):
            grams = {name: layer.gram() / n for name, layer in measured.items()}
    cut = max(layer.cut for layer in measured.values())
    return Blocks(
        {
            name: gram_spectrum(gram, dimension=measured[name].dimension, n=n, cut=cut)
            for name, gram in grams.items()
        },
        gram_spectrum(
            torch.stack(list(grams.values())).sum(dim=0),
            dimension=sum(layer.dimension for layer in measured.values()),
            n=n,
            cut=cut,
        ),
        skipped,
    )


def compare_blocks(
    blocks: Blocks, spectra: Sequence[LayerSpectra], p: float = 0.5
) -> list[BlockComparison]:
    """Return, layer by layer, how far Σ_x ⊗ Σ_g is from the exact block.

    Args:
        blocks: As `exact_blocks` returns them.
        spectra: Of the same layers, data, labels and biases.
        p: Which κ_p is compared.

    Raises:
        ValueError: the spectra are not those of the blocks' layers.
    """
    names = [layer.name for layer in spectra]
    if names != list(blocks.layers):
        raise ValueError(
            f"spectra must be of the layers {list(blocks.layers)}, in this order; got {names}"
        )
    return [
        BlockComparison(
            layer.name,
            _ratio(layer.kronecker.lambda_max, blocks.layers[layer.name].lambda_max),
            _ratio(layer.kronecker.kappa(p), blocks.layers[layer.name].kappa(p)),
        )
        for layer in spectra
    ]


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference and math.isfinite(reference) else math.nan


def _require_own_weights(layers: Collection[str], model: nn.Module) -> None:
    """Refuse layers that share a weight: their gradients add up, and are no blocks side by side."""
    seen: dict[int, str] = {}
    for name in layers:
        weight = id(model.get_submodule(name).weight)
        if weight in seen:
            raise ValueError(
                f"layers {seen[weight]!r} and {name!r} share a weight, which has one block for "
                "both: name one of them in layers="
            )
        seen[weight] = name


def _outputs_per_group(layer: Layer) -> int:
    if isinstance(layer, Convolution):
        return layer.out_channels // layer.groups
    return linear_sizes(layer)[1]


class _LayerGradients:
    """The inputs of one layer's calls in a pass, and their output gradients, column by column."""

    def __init__(self, layer: Layer, bias: bool) -> None:
        self.unmeasured = "was not called as a module in the forward pass"
        self.dimension = layer.weight.numel()
        self.cut = 0.0  # relative size of rounding noise
        self.calls: list[LayerCall] = []
        self._geometry = ConvGeometry.of(layer) if isinstance(layer, Convolution) else None
        self._columns: list[list[Tensor]] = [[]]
        self._constant = False
        if bias and layer.bias is not None:
            self._constant = True
            self.dimension += layer.bias.numel()
        self._width = self.dimension // _outputs_per_group(layer)  # of x_nt in all groups

    def measured(self, call: LayerCall) -> Callable[[], None]:
        require_samples_first(call)
        version = call.input._version

        def count() -> None:
            if call.input._version != version:
                raise RuntimeError(
                    f"layer {call.name!r}: its input was changed in place after the layer had read "
                    "it; exact blocks need it as it was"
                )
            # Detached: its graph would outlive the pass.
            self.calls.append(replace(call, output=call.output.detach()))

        self._see(call.input)
        return count

    def add_gradient(self, g: Tensor, forward_pass: ForwardPass) -> None:
        self._see(g)
        self._columns[-1].append(g)

    def end_column(self) -> None:
        self._columns.append([])

    def end_batch(self) -> None:
        self._columns = [column for column in self._columns if column]

    def _see(self, values: Tensor) -> None:
        self.cut = max(self.cut, relative_cut(values.dtype, wide=False))

    def gram(self) -> Tensor:
        """Return J Jᵀ; the rows of J are the samples, for one column of labels after the other."""
        n = self.calls[0].forward_pass.samples
        gradients = torch.stack(
            [torch.cat([self._gradients(g, n) for g in column], dim=-1) for column in self._columns]
        )  # [columns, N, G, d_out, T]
        columns, _, groups, outputs, positions = gradients.shape
        if groups == positions == 1:
            inputs = second_moment_sum(self._inputs(0, n)[:, 0, :, 0].T)
            outer = second_moment_sum(gradients.reshape(columns * n, outputs).T)
            return inputs.repeat(columns, columns) * outer
        step = max(1, VALUES // (self._width * columns * n))
        return sum(
            (second_moment_sum(self._per_sample(part).T) for part in gradients.split(step, dim=3)),
            start=torch.zeros(()),
        )

    def _per_sample(self, gradients: Tensor) -> Tensor:
        """Return Σ_t g_nt x_ntᵀ for some of the outputs, shape [columns·N, …]."""
        columns, n, _, _, positions = gradients.shape
        step = max(1, VALUES // (self._width * positions))
        rows = [
            gradients[:, start : start + step] @ self._inputs(start, start + step).mT
            for start in range(0, n, step)
        ]
        return torch.cat(rows, dim=1).reshape(columns * n, -1)

    def _inputs(self, start: int, stop: int) -> Tensor:
        """Return x_nt of some samples, shape [·, G, d_in, T], positions of all calls in a row."""
        vectors = torch.cat([self._vectors(call, start, stop) for call in self.calls], dim=-1)
        if not self._constant:
            return vectors
        return torch.cat([vectors, torch.ones_like(vectors[:, :, :1])], dim=2)

    def _vectors(self, call: LayerCall, start: int, stop: int) -> Tensor:
        x = by_sample(call.input, call.forward_pass.samples, call.name)[start:stop]  # [n, F, …]
        if self._geometry is None:
            return x.flatten(1, -2).mT.unsqueeze(1)
        patches = unfold_patches(x.flatten(0, 1), self._geometry, call.output.shape[2:])
        return patches.unflatten(0, x.shape[:2]).movedim(1, -2).flatten(-2)

    def _gradients(self, g: Tensor, n: int) -> Tensor:
        """Return g_nt of one call, shape [N, G, d_out, T]."""
        g = by_sample(g, n, self.calls[0].name)
        if self._geometry is None:
            return g.flatten(1, -2).mT.unsqueeze(1)
        return g.flatten(3).movedim(1, -2).flatten(-2).unflatten(1, (self._geometry.groups, -1))
