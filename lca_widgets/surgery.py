"""Changes to a user's model: a normalisation before its classifier, rescaled or frozen layers."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from lca_widgets._checks import require_in_range, require_one_of
from lca_widgets.classifier import find_classifier
from lca_widgets.curvature import row_spectrum, supported_layers
from lca_widgets.curvature.capture import Convolution, Layer, is_layer, linear_sizes
from lca_widgets.curvature.moments import sum_dtype
from lca_widgets.models import Divide

__all__ = [
    "Divide",
    "FinalNorm",
    "add_final_norm",
    "changes",
    "freeze",
    "rescale_",
]

FinalNorm = Literal["batch", "layer", "scale"]
Normalisation: TypeAlias = _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm

INPUT_NORM = "input_norm"  # what the normalisation is called in the layer

logger = logging.getLogger(__name__)


def add_final_norm(
    model: nn.Module,
    kind: FinalNorm,
    inputs: Any = None,
    divisor: float | None = None,
    *,
    classifier: str | None = None,
) -> nn.Module:
    """Return a copy of a model whose classifier's input is normalised.

    The classifier is the linear or convolution layer whose output the model returns, as it is or
    reshaped, sliced, cast, dropped out, multiplied by a constant, pooled, or through a softmax or
    another function of each output. It is found by following the model's operations backwards, not
    by its name. Where the model returns something with ``logits``, these are followed.

    ``"batch"`` puts a ``BatchNorm1d`` (for a convolution ``BatchNorm2d`` or the like) before it and
    ``"layer"`` a ``LayerNorm`` over its features (the channels at each position), both as PyTorch
    initialises them. ``"scale"`` divides by a constant c that leaves the input the largest
    eigenvalue that batch normalisation would give it (x̂), and its κ unchanged::

        c = sqrt(λ_max(Σ_x) / λ_max(Σ_x̂))

    The normalisation becomes a part of the layer, ``input_norm``, and a forward pre-hook applies it
    (as with torch's own ``prune``; ``torch.jit.script`` does not take such hooks). So the layer
    keeps its name, type and ties, and the state dictionary its keys: there are ``fc.input_norm.…``
    more, for a layer ``fc``, and one of the unchanged model loads with ``strict=False``. Replace
    the layer (``resize_token_embeddings``) before, not after: its normalisation would go with it.
    The copy's parameters are its own: make the optimiser for them. What was done is logged, and
    told by `changes`.

    Args:
        model: Any module; it is left as it is.
        kind: ``"batch"``, ``"layer"`` or ``"scale"``.
        inputs: Inputs of a batch, see `curvature.passes.run`: the copy is run once, in its present
            mode, to find the classifier and to measure c (which grows or falls with the number of
            samples where they are few: take a batch of the training's size). Without them torch.fx
            traces the model, which not every model allows.
        divisor: The constant c of ``"scale"``, in place of the one that is measured.
        classifier: Name of the layer, where it cannot be found or another one is meant.

    Returns:
        The changed copy, on the same device and in the same mode. A dropout right before the layer
        comes before the normalisation.

    Raises:
        TypeError: ``model`` is no module, or ``divisor`` no number.
        ValueError: an unknown kind or layer; no classifier or several; a classifier that is called
            several times, has an ``input_norm`` already, or gets its input straight from such a
            normalisation; a wrapped, compiled or scripted model; a model that torch.fx cannot
            trace, without inputs; neither inputs nor divisor for ``"scale"``, or inputs that
            cannot be batch-normalised.

    Source:
        ``"batch"``: ResNet_LastBN of Huang et al. (2020).

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> changed = add_final_norm(model, "batch")
        >>> [change] = changes(changed)
        >>> change  # doctest: +NORMALIZE_WHITESPACE
        "put BatchNorm1d(64) before '2', Linear(64 → 10), found by torch.fx as the layer whose
        output the model returns"
        >>> list(dict(changed[2].named_parameters()))
        ['weight', 'bias', 'input_norm.weight', 'input_norm.bias']
    """
    require_one_of("kind", kind, get_args(FinalNorm))
    _require_divisor(kind, inputs, divisor)
    _require_plain(model)
    layers = supported_layers(model)
    if classifier is not None and classifier not in layers:
        raise ValueError(
            f"classifier must be among {', '.join(map(repr, layers))}; got {classifier!r}"
        )
    changed = copy.deepcopy(model)
    found = find_classifier(changed, inputs, classifier)
    if found.norm and kind == found.norm.kind and classifier is None:
        raise ValueError(
            f"the input of the classifier {found.name!r} already comes straight from "
            f"{found.norm}: a second one of its kind would change nothing; pass another kind, or "
            f"classifier={found.name!r} if you want it nonetheless"
        )
    layer = supported_layers(changed)[found.name]
    if hasattr(layer, INPUT_NORM):
        raise ValueError(
            f"the classifier {found.name!r} already has an {INPUT_NORM}, {layer.input_norm}: pass "
            "the model that it was added to"
        )
    norm, words = _normalisation(kind, layer, found.rows, divisor)
    weight = layer.weight
    norm.to(weight.device, weight.dtype if weight.is_floating_point() else None)
    norm.train(layer.training)
    place = repr(found.name) if found.name else "the model itself"
    change = f"put {words} before {place}, {_shape(layer)}{found.how}"
    if found.norm:
        change += f"; its input comes straight from {found.norm}"
    layer.add_module(INPUT_NORM, norm)
    layer.register_forward_pre_hook(_NormalisedInput(change), with_kwargs=True)
    logger.info(change)
    return changed


def changes(model: nn.Module) -> list[str]:
    """Say what `add_final_norm` did to a model, or to what it was copied or loaded from.

    Example:
        >>> changes(add_final_norm(nn.Linear(4, 2), "scale", divisor=3.0))
        ['put a division by 3 (as given) before the model itself, Linear(4 → 2)']
    """
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return [hook.change for hook in hooks if isinstance(hook, _NormalisedInput)]


def rescale_(layer: nn.Module, a: float, norm: nn.Module | None = None) -> None:
    """Multiply a layer's weight and bias by a > 0, in place.

    A normalisation behind the layer takes the factor out again, except for its ε: it divides by
    √(a²σ² + ε) where √(a²(σ² + ε)) would be exact, which changes its output by the relative amount
    ``ε/2σ²·(1 − 1/a²)``, as long as that is small. With ``norm`` its ε is multiplied by a², the
    running mean by a and the running variance by a²: then the network computes the same function
    in train and in eval mode, bit for bit where a is a power of two, else to rounding. Without it,
    batch normalisation in eval mode still divides by the statistics of the old weights. Nothing
    but that normalisation may read the layer's output.

    ``.grad`` and the state of an optimiser (momentum) are not touched, and belong to the old scale.
    A weight that another layer shares is multiplied for that one too.

    Args:
        layer: A linear or convolution layer.
        a: The factor; a negative one would not go through the ReLU behind the normalisation.
        norm: The normalisation that takes the layer's output.

    Raises:
        TypeError: ``layer`` or ``norm`` is of another class, or ``a`` no number.
        ValueError: ``a`` is not above zero or not finite, or takes values out of the range of their
            type; the weight is computed from others (a parametrisation); ``norm`` has another
            number of features than the layer, or no ε of its own.

    Source:
        derived.

    Example:
        >>> layer, norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        >>> x = torch.randn(8, 3)
        >>> before = norm(layer(x))
        >>> rescale_(layer, 1024, norm)
        >>> torch.equal(norm(layer(x)), before)
        True
    """
    if not is_layer(layer):
        raise TypeError(f"layer must be a linear or convolution layer, got {type(layer).__name__}")
    require_in_range("a", a, low=0, open_low=True)
    computed = [name for name in ("weight", "bias") if _is_computed(layer, name)]
    if computed:
        raise ValueError(
            f"layer has a {' and a '.join(computed)} computed from other parameters: rescale "
            "those, or take the parametrisation off first (torch.nn.utils.parametrize."
            "remove_parametrizations)"
        )
    following = None if norm is None else _following(norm, layer)
    eps = None if following is None else _rescaled_eps(following.eps, a)
    updates = [
        (layer.weight, a),
        (layer.bias, a),
        (getattr(norm, "running_mean", None), a),
        (getattr(norm, "running_var", None), a * a),
    ]
    with torch.no_grad():
        products = [
            (value, _in_range(value * factor, value, a))
            for value, factor in updates
            if value is not None
        ]
        for value, product in products:
            value.copy_(product)
    if following is not None and eps is not None:
        following.eps = eps


def freeze(model: nn.Module, layers: str | Collection[str]) -> list[str]:
    """Choose which linear and convolution layers are trained.

    Freezing a layer turns off ``requires_grad`` of its weight and bias and drops their ``.grad``,
    which an optimiser would go on using: it leaves parameters without one alone, whatever its
    momentum and weight decay. Normalisations and embeddings are trained as before, except that a
    weight tied to a frozen layer's is frozen with it. Freeze before wrapping a model in
    DistributedDataParallel.

    Args:
        model: Any module.
        layers: A string with a digit for each layer, in the order of `curvature.supported_layers`:
            0 freezes the layer and 1 has it trained, so that ``"01111"`` freezes the first of five
            only. Or a collection of names: those are frozen, and the others left as they are.

    Returns:
        Names of all the layers that are frozen now.

    Raises:
        TypeError: ``layers`` is neither a string nor a collection of names.
        ValueError: a name that is no layer's; a string of other characters than 0 and 1, or of
            another length; a layer to freeze that shares its weight with one to train.

    Source:
        Huang et al. (2020), whose experiments are named by such digits.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> freeze(model, "01")
        ['0']
        >>> freeze(model, ["2"])
        ['0', '2']
    """
    found = supported_layers(model)
    trained = _trained(found, layers)
    parameters: dict[nn.Parameter, tuple[str, bool]] = {}
    for name, train in trained.items():
        for parameter in _own_parameters(found[name]):
            other, trained_there = parameters.setdefault(parameter, (name, train))
            if trained_there != train:
                raise ValueError(
                    f"layers {other!r} and {name!r} share a parameter: one cannot be frozen and "
                    "the other trained"
                )
    for parameter, (_, train) in parameters.items():
        if parameter.is_floating_point():
            parameter.requires_grad_(train)
        if not train:
            parameter.grad = None
    return [
        name
        for name, layer in found.items()
        if not any(parameter.requires_grad for parameter in _own_parameters(layer))
    ]


@dataclass(frozen=True)
class _NormalisedInput:
    """The hook that applies a layer's normalisation to its input; part of copies and pickles.

    Attributes:
        change: What `add_final_norm` did, in words.
    """

    change: str

    def __call__(
        self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (_normalised(layer, args[0]), *args[1:]), kwargs
        name = "input" if "input" in kwargs else "x"  # Conv1D's
        return args, kwargs | {name: _normalised(layer, kwargs[name])}


def _normalised(layer: Layer, x: Tensor) -> Tensor:
    norm = layer.input_norm
    assert isinstance(norm, nn.Module)
    linear = not isinstance(layer, Convolution)
    if linear and not isinstance(norm, nn.LayerNorm | Divide):
        # Batch normalisation would take the second of several dimensions for the features.
        return norm(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    if not linear and isinstance(norm, nn.LayerNorm):
        return norm(x.movedim(1, -1)).movedim(-1, 1)
    return norm(x)


def _normalisation(
    kind: FinalNorm, layer: Layer, rows: Tensor | None, divisor: float | None
) -> tuple[nn.Module, str]:
    """The normalisation of a classifier's input, and what it is in words."""
    d = _features(layer)[0]
    norm: nn.Module
    if kind == "scale":
        if divisor is not None:
            return Divide(divisor), f"a division by {divisor:.6g} (as given)"
        assert rows is not None
        raw, normalised = _largest_eigenvalues(rows)
        c = math.sqrt(raw / normalised)
        return Divide(c), (
            f"a division by {c:.6g} (λ_max of its input's second moment over {len(rows)} rows is "
            f"{raw:.4g}, and {normalised:.4g} once batch-normalised)"
        )
    if kind == "layer":
        norm = nn.LayerNorm(d)
    elif isinstance(layer, Convolution):
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        norm = kinds[len(layer.kernel_size) - 1](d)
    else:
        norm = nn.BatchNorm1d(d)
    return norm, f"{type(norm).__name__}({d})"


def _largest_eigenvalues(rows: Tensor) -> tuple[float, float]:
    """λ_max of the second moment of rows, as they are and batch-normalised."""
    rows = rows.to(sum_dtype(rows.device))
    raw = row_spectrum(rows).lambda_max
    if not raw or not math.isfinite(raw):
        raise ValueError(
            "inputs must give the classifier an input that is finite and not zero throughout, got "
            f"λ_max = {raw:g} of its second moment; give divisor= instead"
        )
    spread = len(rows) > 1 and bool((rows != rows[0]).any())
    if not spread:
        raise ValueError(
            "inputs must be a batch whose samples differ, for batch normalisation to compare with; "
            f"got {len(rows)} equal row(s) at the classifier; give divisor= instead"
        )
    return raw, row_spectrum(functional.batch_norm(rows, None, None, training=True)).lambda_max


def _features(layer: Layer) -> tuple[int, int]:
    """How many features, or channels, come in and go out."""
    if isinstance(layer, Convolution):
        return layer.in_channels, layer.out_channels
    return linear_sizes(layer)


def _shape(layer: Layer) -> str:
    d_in, d_out = _features(layer)
    return f"{type(layer).__name__}({d_in} → {d_out})"


def _require_divisor(kind: FinalNorm, inputs: Any, divisor: float | None) -> None:
    if kind != "scale" and divisor is not None:
        raise ValueError(f"divisor belongs to kind='scale', got {divisor!r} with kind={kind!r}")
    if kind == "scale" and divisor is None and inputs is None:
        raise ValueError(
            "kind='scale' needs a constant: pass a batch as inputs= to measure it, or the constant "
            "itself as divisor="
        )
    if divisor is not None:
        require_in_range("divisor", divisor, low=0, open_low=True)


_WRAPPED = {
    "_orig_mod": "compiled: pass model._orig_mod, and compile the copy",
    "_fsdp_wrapped_module": "wrapped: pass the module that was wrapped, and wrap the copy",
    "module": "wrapped: pass model.module, and wrap the copy",
}


def _require_plain(model: nn.Module) -> None:
    """Refuse what holds a model of its own, or one that cannot be changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model is scripted and cannot be changed: pass the model it was made from")
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    for attribute, advice in _WRAPPED.items():
        if attribute in model._modules and (parallel or attribute != "module"):
            raise ValueError(f"model is {advice} ({type(model).__name__} given)")


def _is_computed(layer: Layer, name: str) -> bool:
    """Whether a weight or bias is no parameter of the layer, but made from others."""
    return name not in layer._parameters


def _following(norm: nn.Module, layer: Layer) -> Normalisation:
    """Return the normalisation behind a layer, if it can be one."""
    if not isinstance(norm, Normalisation):
        raise TypeError(
            "norm must be the batch, layer, group, instance or RMS normalisation that takes the "
            f"layer's output, got {type(norm).__name__}"
        )
    d_out, sizes = _features(layer)[1], _normalised_sizes(norm)
    if d_out not in sizes:
        raise ValueError(
            f"norm must take the layer's {d_out} features, got {type(norm).__name__} over "
            f"{', '.join(map(str, sizes))}"
        )
    return norm


def _rescaled_eps(eps: float | None, a: float) -> float:
    """The ε of a normalisation whose input is multiplied by a."""
    if eps is None:
        raise ValueError("norm has no ε of its own (eps=None, the type's): set norm.eps first")
    rescaled = eps * a * a
    if not math.isfinite(rescaled) or bool(rescaled) != bool(eps):
        raise ValueError(f"a={a!r} takes norm's ε, {eps!r}, out of the range of a float")
    return rescaled


def _normalised_sizes(norm: Normalisation) -> tuple[int, ...]:
    if isinstance(norm, _NormBase):
        return (norm.num_features,)
    return (norm.num_channels,) if isinstance(norm, nn.GroupNorm) else tuple(norm.normalized_shape)


def _in_range(product: Tensor, value: Tensor, a: float) -> Tensor:
    overflow = value.isfinite() & ~product.isfinite()
    underflow = (value != 0) & (product == 0)
    if (overflow | underflow).any():
        raise ValueError(f"a={a!r} takes values out of the range of {value.dtype}")
    return product


def _own_parameters(layer: Layer) -> list[nn.Parameter]:
    """Those of weight and bias, or those that they are computed from."""
    named = layer.named_parameters()
    return [parameter for name, parameter in named if not name.startswith(f"{INPUT_NORM}.")]


def _trained(found: Mapping[str, Layer], layers: str | Collection[str]) -> dict[str, bool]:
    """Which of the layers are to be trained and which frozen; those left as they are, left out."""
    if isinstance(layers, str):
        if set(layers) - {"0", "1"}:
            raise ValueError(
                "layers must be a string of the digits 0 (frozen) and 1 (trained), or a collection "
                f"of names; got {layers!r}: a single name goes into a list, [{layers!r}]"
            )
        if len(layers) != len(found):
            raise ValueError(
                f"layers must have {len(found)} digits, one for each of "
                f"{', '.join(map(repr, found))}; got {layers!r}, which has {len(layers)}"
            )
        return {name: digit == "1" for name, digit in zip(found, layers, strict=True)}
    if not isinstance(layers, Collection):
        raise TypeError(
            "layers must be a string of digits or a collection of names, got "
            f"{type(layers).__name__}"
        )
    if unknown := [name for name in layers if name not in found]:
        raise ValueError(f"layers must be among {', '.join(map(repr, found))}; got {unknown}")
    return dict.fromkeys(layers, False)
