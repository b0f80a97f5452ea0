"""Residual networks: the CIFAR ResNets of 6n+2 layers, and perceptrons of the same build."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.models.layers import Divide, SeededDropout
from lca_widgets.models.mlp import INITIALISERS

__all__ = ["FINAL_NORMS", "ResidualBlock", "ResidualNetwork", "residual_mlp", "resnet"]

# What is put before the classifier: nothing; batch normalisation behind the pooling (LastBN), or in
# front of it; a division by a constant.
FINAL_NORMS = ("none", "batch", "batch-before-pooling", "scale")
SHORTCUTS = ("A", "B")
STAGES = (16, 32, 64)  # channels of the CIFAR ResNets


class ResidualBlock(nn.Module):
    """Returns after(shortcut(z) + branch(z)), with z = before(x)."""

    def __init__(
        self, before: nn.Module, branch: nn.Module, shortcut: nn.Module, after: nn.Module
    ) -> None:
        super().__init__()
        self.before, self.branch, self.shortcut, self.after = before, branch, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        x = self.before(x)
        return self.after(self.shortcut(x) + self.branch(x))


class ResidualNetwork(nn.Module):
    """A residual network in four parts: ``stem``, ``blocks``, ``head`` and ``classifier``.

    `resnet` and `residual_mlp` build it. The head turns the last block's output into the d features
    of a sample: what the classifier gets.

    Args:
        stem: The layers before the first block.
        blocks: The residual blocks, one after the other.
        head: What follows the last block: pooling, a normalisation, dropout.
        classifier: The last linear layer, d → C.
        checkpointing: Whether the blocks' inner values are computed again in the backward pass
            instead of being kept (gradient checkpointing): less memory, a forward pass more.
            Losses, gradients and running statistics stay the same.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        blocks: nn.Sequential,
        head: nn.Sequential,
        classifier: nn.Linear,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head, self.classifier = stem, blocks, head, classifier
        self.checkpointing = checkpointing

    def features(self, x: Tensor) -> Tensor:
        """Return what the classifier gets, shape ``[n, d]``."""
        x = self.stem(x)
        if self.checkpointing and torch.is_grad_enabled():
            for block in self.blocks:
                x = _checkpointed(block, x)
        else:
            x = self.blocks(x)
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape ``[n, C]``."""
        return self.classifier(self.features(x))


def resnet(
    depth: int = 20,
    *,
    classes: int = 10,
    channels: int = 3,
    width_factor: float = 1.0,
    preactivation: bool = False,
    own_final_norm: bool = True,
    shortcut: str = "A",
    block_norm: bool = True,
    final_norm: str = "none",
    divisor: float = 1.0,
    dropout: float = 0.0,
    checkpointing: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ResidualNetwork:
    r"""Build a CIFAR ResNet of 6n+2 layers: a convolution, 3n blocks of two, and the classifier.

    The three stages have 16, 32 and 64 channels, the second and third begin with stride 2. A block
    of the post-activation kind is ``ReLU(x + BN conv ReLU BN conv x)``, one of the pre-activation
    kind ``x + conv ReLU BN conv ReLU BN x``, where the first block of a stage applies BN and ReLU
    before shortcut and branch part. Convolutions are 3×3, without bias, and start as
    N(0, 2/(k²·C_out)); the classifier starts as U(±1/√d), its bias at 0.

    Args:
        depth: Layers with weights, 6n+2: 8, 14, 20, …
        classes: Outputs C, ≥ 2.
        channels: Of the images, ≥ 1. These may be of any size; 8×8 to 32×32 is what three stages
            are made for.
        width_factor: Multiplies the stages' channels, > 0.
        preactivation: Whether BN and ReLU come before the convolutions.
        own_final_norm: Whether a pre-activation network has its own BN after the last block (the
            ReLU behind it stays in any case); without meaning for post-activation.
        shortcut: Where channels are doubled, ``"A"``: every second pixel, and zeros for the new
            channels; ``"B"``: a 1×1 convolution (post-activation: with BN).
        block_norm: Whether the blocks and the stem have their BN. Without it and with ``"batch"``
            below there is a single BN in the whole network.
        final_norm: ``"none"``; ``"batch"``: BN between pooling and classifier (LastBN);
            ``"batch-before-pooling"``; ``"scale"``: a division by ``divisor``.
        divisor: The constant of ``"scale"``, > 0; else it must be 1.
        dropout: Probability of `SeededDropout` right before the classifier, in [0, 1).
        checkpointing: See `ResidualNetwork`.
        seed: Seeds weights and dropout. The global random state is neither read nor changed.
        dtype: Of the weights, which are drawn in float64 in any case.

    Raises:
        TypeError, ValueError: an argument is not accepted; the message names it.

    Source:
        He et al. (2016a, 2016b); details of the authors' code of Huang et al. (2020), as far as
        they are known; ``"batch"`` is their ResNet_LastBN.

    Example:
        >>> model = resnet(8, channels=1, width_factor=0.5, final_norm="batch")
        >>> model(torch.zeros(2, 1, 8, 8)).shape, model.classifier.in_features
        (torch.Size([2, 10]), 32)
    """
    require_integer("depth", depth, low=8)
    if depth % 6 != 2:
        raise ValueError(f"depth must be 6n+2 (8, 14, 20, 26, …), got {depth}")
    require_integer("channels", channels, low=1)
    require_in_range("width_factor", width_factor, low=0, open_low=True)
    require_one_of("shortcut", shortcut, SHORTCUTS)
    require_one_of("final_norm", final_norm, FINAL_NORMS)
    head = _Head(classes, own_final_norm and preactivation, final_norm, divisor, dropout)
    parts = _Parts(True, preactivation, shortcut, block_norm, seed, dtype)
    widths = [max(1, round(width_factor * width)) for width in STAGES]
    stem = parts.stem(channels, widths[0])
    blocks = []
    d_in = widths[0]
    for stage, d_out in enumerate(widths):
        for number in range((depth - 2) // 6):
            stride = 2 if stage and not number else 1
            blocks.append(parts.block(d_in, d_out, stride, first_of_stage=not number))
            d_in = d_out
    return ResidualNetwork(
        stem,
        nn.Sequential(*blocks),
        parts.head(d_in, head),
        parts.classifier(d_in, classes),
        checkpointing=checkpointing,
    )


def residual_mlp(
    features: int,
    classes: int,
    *,
    blocks: int = 10,
    width: int = 32,
    preactivation: bool = False,
    own_final_norm: bool = True,
    block_norm: bool = True,
    final_norm: str = "none",
    divisor: float = 1.0,
    dropout: float = 0.0,
    checkpointing: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ResidualNetwork:
    """Build a residual perceptron: a `resnet` of one stage, with linear layers for convolutions.

    It has 2·blocks + 2 linear layers, of constant width, and nothing to pool.

    Args:
        features: Size of an input, ≥ 1.
        classes: Outputs C, ≥ 2.
        blocks: Residual blocks, ≥ 1.
        width: Units of every hidden layer, ≥ 1.
        preactivation: As for `resnet`; so are all that follow.
        own_final_norm: As there.
        block_norm: As there.
        final_norm: ``"none"``, ``"batch"`` or ``"scale"``.
        divisor: As there.
        dropout: As there.
        checkpointing: As there.
        seed: As there.
        dtype: As there.

    Raises:
        TypeError, ValueError: an argument is not accepted; the message names it.

    Source:
        derived from He et al. (2016a).

    Example:
        >>> model = residual_mlp(64, 10, blocks=3, width=16)
        >>> model(torch.zeros(2, 64)).shape, len(model.blocks)
        (torch.Size([2, 10]), 3)
    """
    require_integer("features", features, low=1)
    require_integer("blocks", blocks, low=1)
    require_integer("width", width, low=1)
    require_one_of("final_norm", final_norm, ("none", "batch", "scale"))
    head = _Head(classes, own_final_norm and preactivation, final_norm, divisor, dropout)
    parts = _Parts(False, preactivation, "A", block_norm, seed, dtype)
    return ResidualNetwork(
        parts.stem(features, width),
        nn.Sequential(
            *(parts.block(width, width, 1, first_of_stage=not number) for number in range(blocks))
        ),
        parts.head(width, head),
        parts.classifier(width, classes),
        checkpointing=checkpointing,
    )


class _Head:
    """What is asked for between the last block and the logits, checked."""

    def __init__(
        self, classes: int, own_norm: bool, final_norm: str, divisor: float, dropout: float
    ) -> None:
        require_integer("classes", classes, low=2)
        require_in_range("divisor", divisor, low=0, open_low=True)
        if divisor != 1 and final_norm != "scale":
            raise ValueError(
                f"divisor belongs to final_norm='scale', got {divisor!r} with {final_norm!r}"
            )
        require_in_range("dropout", dropout, low=0, high=1, open_high=True)
        self.own_norm, self.final_norm = own_norm, final_norm
        self.divisor, self.dropout = divisor, dropout


class _Parts:
    """Makes the parts of one network, with weights from one generator."""

    def __init__(
        self,
        images: bool,
        preactivation: bool,
        shortcut: str,
        block_norm: bool,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        require_integer("seed", seed, low=0, high=2**31 - 1)
        self._images, self._preactivation = images, preactivation
        self._shortcut, self._block_norm = shortcut, block_norm
        self._seed, self._dtype = seed, dtype
        self._generator = Generator().manual_seed(seed)

    def stem(self, d_in: int, d_out: int) -> nn.Sequential:
        layer = self._layer(d_in, d_out)
        activated = () if self._preactivation else (*self._norm(d_out), nn.ReLU())
        return nn.Sequential(layer, *activated)

    def block(self, d_in: int, d_out: int, stride: int, *, first_of_stage: bool) -> ResidualBlock:
        first, second = self._layer(d_in, d_out, stride), self._layer(d_out, d_out)
        between = (*self._norm(d_out), nn.ReLU())
        shortcut = self._shortcut_of(d_in, d_out, stride)
        if not self._preactivation:
            branch = nn.Sequential(first, *between, second, *self._norm(d_out))
            return ResidualBlock(nn.Identity(), branch, shortcut, nn.ReLU())
        activated = (*self._norm(d_in), nn.ReLU())
        if first_of_stage:
            before, branch = nn.Sequential(*activated), nn.Sequential(first, *between, second)
            return ResidualBlock(before, branch, shortcut, nn.Identity())
        branch = nn.Sequential(*activated, first, *between, second)
        return ResidualBlock(nn.Identity(), branch, shortcut, nn.Identity())

    def head(self, d: int, asked: _Head) -> nn.Sequential:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        if asked.own_norm:
            modules["own_norm"] = self._batch_norm(d)
        if self._preactivation:
            modules["activation"] = nn.ReLU()
        if asked.final_norm == "batch-before-pooling":
            modules["final_norm"] = self._batch_norm(d)
        if self._images:
            modules |= {"pooling": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        if asked.final_norm == "batch":
            modules["final_norm"] = nn.BatchNorm1d(d, dtype=self._dtype)
        if asked.final_norm == "scale":
            modules["final_norm"] = Divide(asked.divisor, self._dtype)
        if asked.dropout:
            modules["dropout"] = SeededDropout(asked.dropout, self._seed)
        return nn.Sequential(modules)

    def classifier(self, d: int, classes: int) -> nn.Linear:
        # skip_init: nn.Linear's own initialisation would draw from the global random state.
        layer = nn.utils.skip_init(nn.Linear, d, classes, dtype=self._dtype)
        weight = torch.empty(classes, d, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(INITIALISERS["lecun"](weight, self._generator))
            layer.bias.zero_()
        return layer

    def _layer(self, d_in: int, d_out: int, stride: int = 1, size: int = 3) -> nn.Module:
        layer: nn.Conv2d | nn.Linear
        if self._images:
            layer = nn.utils.skip_init(
                nn.Conv2d, d_in, d_out, size, stride, padding=size // 2, bias=False,
                dtype=self._dtype,
            )  # fmt: skip
            fan_out = size**2 * d_out
        else:
            layer = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False, dtype=self._dtype)
            fan_out = d_out
        weight = torch.empty(layer.weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight.normal_(0, math.sqrt(2 / fan_out), generator=self._generator))
        return layer

    def _norm(self, d: int) -> Iterable[nn.Module]:
        return (self._batch_norm(d),) if self._block_norm else ()

    def _batch_norm(self, d: int) -> nn.Module:
        kind = nn.BatchNorm2d if self._images else nn.BatchNorm1d
        return kind(d, dtype=self._dtype)

    def _shortcut_of(self, d_in: int, d_out: int, stride: int) -> nn.Module:
        if d_in == d_out and stride == 1:
            return nn.Identity()
        if self._shortcut == "A":
            return _PaddedShortcut(stride, d_out - d_in)
        projection = self._layer(d_in, d_out, stride, size=1)
        return nn.Sequential(projection, *(() if self._preactivation else self._norm(d_out)))


class _PaddedShortcut(nn.Module):
    """Takes every ``stride``-th pixel in both directions, and appends channels of zeros."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new_channels}"


def _checkpointed(block: nn.Module, x: Tensor) -> Any:
    return checkpoint(
        block,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # no block draws random numbers
        context_fn=lambda: (nullcontext(), _Recomputation(block)),
    )


class _Recomputation(AbstractContextManager[None]):
    """`_uncounted`, as often as a graph that is kept goes backwards: once for each time."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __enter__(self) -> None:
        self._current = _uncounted(self._block)
        self._current.__enter__()

    def __exit__(self, *exception: Any) -> bool | None:
        return self._current.__exit__(*exception)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Let a block's normalisations keep their running statistics: a batch counts once.

    A momentum of zero does it. To hand them none, or to put them back, would not do: autograd has
    kept them, and refuses what has changed.
    """
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    counted = [None if count is None else count.clone() for count in counts]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count, before in zip(norms, momenta, counts, counted, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)
