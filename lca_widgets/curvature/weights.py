"""The size of each layer's weight, and of the loss's gradient with respect to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from lca_widgets.curvature.capture import Convolution, Layer, LayerCall, stored_transposed
from lca_widgets.curvature.distributed import mean_over_processes
from lca_widgets.curvature.moments import exact_products, second_moment_sum, sum_dtype
from lca_widgets.curvature.passes import undisturbed
from lca_widgets.curvature.spectrum import largest_eigenvalues, to_cpu

__all__ = ["WeightCapture", "WeightNorms", "smaller_gram"]


@dataclass(frozen=True)
class WeightNorms:
    """The size of one layer's weight W, as the matrix that its input vectors are multiplied with.

    Attributes:
        sigma: σ_max(W), the largest singular value; of a grouped convolution that of all groups.
        norm: ‖W‖, the Frobenius norm.
        grad_sigma: σ_max(∂L/∂W), L the loss averaged over the samples; NaN where the weight gets
            no gradient of its own: frozen, computed by a parametrisation, or not reached.
    """

    sigma: float
    norm: float
    grad_sigma: float


class WeightCapture:
    """Takes the weights of the layers that are called, and the gradients that come to them.

    The weight counts as it is at the layer's first call since the last `take`. A weight that
    several layers share gets one gradient, of all its uses.

    Args:
        takes: Says, when a gradient comes to a weight in a backward pass, whether it counts;
            without it gradients are handed to `add_gradient`.
    """

    def __init__(self, takes: Callable[[], bool] | None = None) -> None:
        self._takes = takes
        self._grams: dict[str, Tensor] = {}
        self._layers: dict[str, tuple[Layer, Tensor]] = {}  # with a weight that gets a gradient
        self._gradients: dict[int, Tensor] = {}
        self._averaged: dict[str, Tensor] | None = None
        self._handles: dict[int, RemovableHandle] = {}

    def layer_called(self, call: LayerCall) -> None:
        """Take in the weight of a layer, at its first call."""
        name, layer = call.name, call.layer
        if name in self._grams:
            return
        weight = _weight(layer)
        with exact_products(weight.device):
            self._grams[name] = smaller_gram(_matrices(layer, weight.detach()))
        if not weight.requires_grad or is_parametrized(layer, "weight"):
            return
        self._layers[name] = layer, weight
        if self._takes and id(weight) not in self._handles:
            self._handles[id(weight)] = weight.register_hook(partial(self._receive, weight))

    @property
    def weights(self) -> list[Tensor]:
        """The different weights that a gradient can come to, in the order of their first call."""
        return list({id(weight): weight for _, weight in self._layers.values()}.values())

    def add_gradient(self, weight: Tensor, gradient: Tensor) -> None:
        """Add a gradient that came to one of `weights`."""
        before = self._gradients.get(id(weight))
        # A copy: autograd makes the tensor itself ``.grad``, which a gradient scaler divides.
        self._gradients[id(weight)] = gradient.clone() if before is None else before + gradient

    def average(self, device: torch.device, group: ProcessGroup) -> None:
        """Replace weights and gradients by their means over the processes of a training.

        A layer that was not called in some of them is one of all; without a gradient in some of
        them it has a gradient of zero there.
        """
        self._averaged = mean_over_processes(self._matrices_of_gradients(), device, group)
        called = {name: torch.ones(1) for name in self._grams}
        share = mean_over_processes(called, device, group)
        grams = mean_over_processes(self._grams, device, group)
        self._grams = {name: gram / share[name] for name, gram in grams.items()}

    def take(self, scale: float = 1.0) -> dict[str, WeightNorms]:
        """Return the sizes of every layer that was called, and start afresh.

        Args:
            scale: What the gradients' sum is to be multiplied with to be ∂L/∂W.
        """
        gradients = {}
        for name, matrices in self._matrices_of_gradients().items():
            with exact_products(matrices.device):
                gradients[name] = smaller_gram(matrices)
        largest = largest_eigenvalues([*self._grams.values(), *gradients.values()])
        sigmas = [math.sqrt(max(value, 0.0)) for value in largest]  # NaN stays NaN
        traces = [gram.diagonal(dim1=-2, dim2=-1).sum() for gram in self._grams.values()]
        norms = [trace.double().sqrt().item() for trace in to_cpu(traces)]
        of_gradients = dict(zip(gradients, sigmas[len(norms) :], strict=True))
        result = {
            name: WeightNorms(sigma, norm, of_gradients.get(name, math.nan) * abs(scale))
            for name, sigma, norm in zip(self._grams, sigmas, norms, strict=False)
        }
        self.discard()
        return result

    def discard(self) -> None:
        """Forget everything since the last `take`, and take the hooks off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._grams.clear()
        self._layers.clear()
        self._gradients.clear()
        self._averaged = None

    def _receive(self, weight: Tensor, gradient: Tensor) -> None:
        if self._takes and self._takes():
            self.add_gradient(weight, gradient)

    def _matrices_of_gradients(self) -> dict[str, Tensor]:
        """The sum of the gradients so far, for each layer whose weight got one, as matrices."""
        if self._averaged is not None:
            return self._averaged
        return {
            name: _matrices(layer, self._gradients[id(weight)])
            for name, (layer, weight) in self._layers.items()
            if id(weight) in self._gradients
        }


def _weight(layer: Layer) -> Tensor:
    if not is_parametrized(layer, "weight"):
        return layer.weight
    with undisturbed(layer):  # spectral normalisation iterates when its weight is asked for
        return layer.weight


def _matrices(layer: Layer, weight: Tensor) -> Tensor:
    """Return W, one matrix a group, shape ``[G, d_out/G, d_in/G·k·k]``."""
    if not isinstance(layer, Convolution):
        return (weight.mT if stored_transposed(layer) else weight).unsqueeze(0)
    by_group = weight.unflatten(0, (layer.groups, -1))
    if layer.transposed:  # their weight is [C_in, C_out/G, …]
        by_group = by_group.transpose(1, 2)
    return by_group.flatten(2)


def smaller_gram(matrices: Tensor) -> Tensor:
    """Return W Wᵀ or Wᵀ W of matrices ``[G, r, c]``, the smaller: ``[d, d]``, or ``[G, d, d]``."""
    rows = matrices if matrices.shape[1] > matrices.shape[2] else matrices.mT
    if len(rows) == 1:
        return second_moment_sum(rows[0])
    wide = rows.to(sum_dtype(rows.device))
    return wide.mT @ wide
