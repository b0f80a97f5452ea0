"""Multi-layer perceptrons, and the initialisers that set their scale."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from lca_widgets._checks import require_in_range, require_integer, require_one_of

__all__ = ["ACTIVATIONS", "INITIALISERS", "NORMS", "WeightNormalised", "mlp"]

GROUPS = 8  # of group normalisation

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def _lecun(weight: Tensor, generator: Generator) -> Tensor:
    """U(±1/√fan_in), variance 1/(3·fan_in): PyTorch's default and the paper's random init."""
    bound = 1 / math.sqrt(weight.shape[1])
    return weight.uniform_(-bound, bound, generator=generator)


def _xavier(weight: Tensor, generator: Generator) -> Tensor:
    """U(±√(6/(fan_in + fan_out))), variance 2/(fan_in + fan_out)."""
    return nn.init.xavier_uniform_(weight, generator=generator)


def _he(weight: Tensor, generator: Generator) -> Tensor:
    """N(0, 2/fan_in): keeps the squared magnitude through a ReLU."""
    return nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def _orthogonal(weight: Tensor, generator: Generator) -> Tensor:
    """Orthonormal rows or columns: an isometry where the layer is square."""
    return nn.init.orthogonal_(weight, generator=generator)


def _normal(weight: Tensor, generator: Generator) -> Tensor:
    """N(0, 1/fan_in): with it, ``gain`` is the factor per layer of a linear network."""
    return weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=generator)


INITIALISERS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "lecun": _lecun,
    "xavier": _xavier,
    "he": _he,
    "orthogonal": _orthogonal,
    "normal": _normal,
}


def _group_norm(width: int) -> nn.Module:
    # A group of one unit would be normalised to zero.
    groups = math.gcd(GROUPS, width) if width >= 2 * GROUPS else 1
    return nn.GroupNorm(groups, width, affine=False)


# What stands behind a hidden layer; "-fixed" is without learnable γ and β.
NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm1d,
    "batch-fixed": lambda width: nn.BatchNorm1d(width, affine=False),
    "layer": nn.LayerNorm,
    "layer-fixed": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "group-fixed": _group_norm,
    "weight": None,  # nothing: the layer itself is a `WeightNormalised`
}


class WeightNormalised(nn.Linear):
    r"""A linear layer with weight normalisation: the rows of W give directions, not sizes.

    For an input x ``[…, d_in]`` the unit i returns::

        h_i = √2 · (w_i / ‖w_i‖) · x

    The factor √2 is the length of a row in He's initialisation, which keeps magnitudes through a
    ReLU. The scale is not learned. ``weight`` holds the rows w_i ``[d_out, d_in]``, and ``.grad``
    is the loss's gradient with respect to them.

    Source:
        Salimans and Kingma (2016), without their learned scale.

    Example:
        >>> layer = WeightNormalised(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[30.0, 40.0]])
        >>> layer(torch.tensor([1.0, 0.0]))
        tensor([0.8485], grad_fn=<SqueezeBackward4>)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return h ``[…, d_out]``."""
        length = torch.linalg.vector_norm(self.weight, dim=1, keepdim=True)
        return functional.linear(input, math.sqrt(2) * self.weight / length, self.bias)


def mlp(
    features: int,
    classes: int,
    *,
    depth: int,
    width: int,
    activation: str = "relu",
    init: str = "he",
    gain: float = 1.0,
    norm: str = "none",
    seed: int = 0,
) -> nn.Sequential:
    """Build a bias-free multi-layer perceptron whose linear layers are ``linear1`` … ``linearK``.

    Layer k computes h = W x; all but the last are followed by ``norm`` and ``activation``.

    Args:
        features: Size of an input, ≥ 1.
        classes: Number of outputs (logits), ≥ 2.
        depth: Number K of linear layers, the output layer included, ≥ 1.
        width: Units of each hidden layer, ≥ 1.
        activation: ``"relu"``, ``"tanh"`` or ``"linear"`` (none).
        init: ``"lecun"`` U(±1/√fan_in), ``"xavier"`` U(±√(6/(fan_in+fan_out))),
            ``"he"`` N(0, 2/fan_in), ``"orthogonal"``, or ``"normal"`` N(0, 1/fan_in).
        gain: Multiplies every initial weight, > 0.
        norm: ``"none"``; ``"batch"``: batch normalisation; ``"layer"``: layer normalisation;
            ``"batch-fixed"``, ``"layer-fixed"``: the same without learnable γ and β;
            ``"group-fixed"``: group normalisation without them, in 8 groups (of an odd width, or
            one below 16, in fewer); ``"weight"``: hidden layers are `WeightNormalised`, with
            nothing behind them.
        seed: Seeds the weights. The global random state is neither read nor changed.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size, the gain or a name is not accepted; the message lists what is.

    Source:
        LeCun et al. (1998), Glorot and Bengio (2010), He et al. (2015), Saxe et al. (2014); Ioffe
        and Szegedy (2015), Ba et al. (2016), Wu and He (2018), Salimans and Kingma (2016).

    Example:
        >>> [name for name, _ in mlp(64, 10, depth=2, width=32, norm="batch").named_children()]
        ['linear1', 'norm1', 'activation1', 'linear2']
    """
    require_integer("features", features, low=1)
    require_integer("classes", classes, low=2)
    require_integer("depth", depth, low=1)
    require_integer("width", width, low=1)
    require_integer("seed", seed, low=0, high=2**63 - 1)
    require_in_range("gain", gain, low=0, open_low=True)
    require_one_of("activation", activation, ACTIVATIONS)
    require_one_of("init", init, INITIALISERS)
    require_one_of("norm", norm, NORMS)

    sizes = [features] + [width] * (depth - 1) + [classes]
    generator = Generator().manual_seed(seed)
    make_norm = NORMS[norm]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        kind = WeightNormalised if norm == "weight" and k < depth else nn.Linear
        modules[f"linear{k}"] = _linear(kind, fan_in, fan_out, init, gain, generator)
        if k < depth:
            if make_norm is not None:
                modules[f"norm{k}"] = make_norm(fan_out)
            modules[f"activation{k}"] = ACTIVATIONS[activation]()
    return nn.Sequential(modules)


def _linear(
    kind: type[nn.Linear], fan_in: int, fan_out: int, init: str, gain: float, generator: Generator
) -> nn.Linear:
    # skip_init: nn.Linear's own initialisation would draw from the global random state.
    layer = nn.utils.skip_init(kind, fan_in, fan_out, bias=False)
    with torch.no_grad():
        INITIALISERS[init](layer.weight, generator).mul_(gain)
    return layer
