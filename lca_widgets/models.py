"""Networks to analyse, and the initialisers that set their scale."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of

__all__ = ["ACTIVATIONS", "INITIALISERS", "NORMS", "mlp"]

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

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": nn.BatchNorm1d,
    "batch-fixed": lambda width: nn.BatchNorm1d(width, affine=False),  # no learnable γ and β
}


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
        norm: ``"none"``; ``"batch"``: batch normalisation; ``"batch-fixed"``: batch normalisation
            without learnable γ and β.
        seed: Seeds the weights. The global random state is neither read nor changed.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size, the gain or a name is not accepted; the message lists what is.

    Source:
        LeCun et al. (1998), Glorot and Bengio (2010), He et al. (2015), Saxe et al. (2014).

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
        modules[f"linear{k}"] = _linear(fan_in, fan_out, init, gain, generator)
        if k < depth:
            if make_norm is not None:
                modules[f"norm{k}"] = make_norm(fan_out)
            modules[f"activation{k}"] = ACTIVATIONS[activation]()
    return nn.Sequential(modules)


def _linear(fan_in: int, fan_out: int, init: str, gain: float, generator: Generator) -> nn.Linear:
    # skip_init: nn.Linear's own initialisation would draw from the global random state.
    layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=False)
    with torch.no_grad():
        INITIALISERS[init](layer.weight, generator).mul_(gain)
    return layer
