"""Per-sample losses: their sum over a batch, and their gradients with respect to the outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lca_widgets._checks import require_one_of
from lca_widgets.curvature.moments import sum_dtype

__all__ = ["Fisher", "LossFunction", "Reduction", "output_gradients", "summed_loss"]

Fisher = Literal["empirical", "exact", "sampled"]
Reduction = Literal["mean", "sum"]
LossFunction = Callable[[Any, Any], Tensor]

# Losses that name a distribution of labels: softmax, N(output, 1/2), Bernoulli.
_KNOWN = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.BCELoss)
_FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.mse_loss: nn.MSELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.binary_cross_entropy: nn.BCELoss,
}


def summed_loss(
    loss_fn: LossFunction, output: Any, target: Any, n: int, reduction: Reduction | None = None
) -> Tensor:
    """Return Σ_n l_n, whatever the loss's own reduction, as a scalar with its graph.

    The per-sample losses are those of which ``loss_fn`` returns the mean, L = (1/N) Σ_n l_n, or the
    sum. So a mean loss that averages over positions or over several outputs as well has them
    averaged in l_n; class weights and ignored targets act as PyTorch's mean has them,
    l_n = (N/Σw)·w_n·(…). A loss that returns more than one number (``reduction="none"``) is summed.

    Args:
        loss_fn: Maps output and target to a loss.
        output: What the model returned.
        target: What the loss compares it with.
        n: Number of samples N.
        reduction: ``"mean"`` or ``"sum"``; ``None`` takes ``loss_fn.reduction`` where there is one,
            else finds out by comparing the gradient of the batch with those of its two halves.

    Raises:
        TypeError: the loss is no tensor.
        ValueError: ``reduction`` is unknown, contradicts the loss, or cannot be found out; output
            and target differ in their number of samples.
    """
    if reduction is not None:
        require_one_of("reduction", reduction, get_args(Reduction))
    _require_same_batch(loss_fn, output, target)
    loss = loss_fn(output, target)
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}")
    if loss.numel() > 1:
        return loss.sum()
    found = _reduction(loss_fn, output, target, n, loss, reduction)
    return loss.sum() * (n if found == "mean" else 1)


def output_gradients(
    loss_fn: LossFunction,
    output: Tensor,
    target: Any,
    *,
    fisher: Fisher,
    reduction: Reduction | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield columns δ whose outer products add up to the second moment of the output gradients.

    For every sample n, Σ_columns δ_n δ_nᵀ = E_y[(∂l_n/∂f_n)(∂l_n/∂f_n)ᵀ], f_n the model's output,
    with the expectation over labels y:

    - ``"empirical"``: the data's label; one column.
    - ``"exact"``: all labels, weighted by the model's probabilities. Softmax cross entropy over C
      classes takes C−1 columns, the others one column for each number in f_n. Where l_n has several
      terms (positions), their labels are independent and each term has columns of its own. Class
      weights, label smoothing and ``pos_weight``, whose gradients do not vanish on average, take
      C columns of differences from the mean, and one of the mean.
    - ``"sampled"``: one label drawn from the model; one column, right on average.

    The model's labels are softmax's for `torch.nn.CrossEntropyLoss`, Bernoulli for
    `torch.nn.BCEWithLogitsLoss` and `torch.nn.BCELoss`, and N(f, 1/2), whose −log p is the squared
    error, for `torch.nn.MSELoss`; the functions of the same names count as their modules.

    Args:
        loss_fn: As in `summed_loss`; for ``"exact"`` and ``"sampled"`` one of the four.
        output: Shape ``[N, …]``, classes in dimension 1 for cross entropy.
        target: The data's labels; its shape and ignored entries count, whatever ``fisher`` is.
        fisher: Which labels.
        reduction: As in `summed_loss`.
        generator: Draws the labels of ``"sampled"``; ``None`` uses torch's global state.

    Yields:
        Tensors of the shape of ``output``, detached.

    Raises:
        ValueError: ``fisher`` is unknown, or needs a distribution that ``loss_fn`` does not name.

    Source:
        The definition of the Fisher information; the C−1 columns are the Cholesky factor of
        diag(p) − p pᵀ in closed form (derived).

    Example:
        >>> logits, labels = torch.zeros(1, 2), torch.tensor([1])
        >>> [column] = output_gradients(nn.CrossEntropyLoss(), logits, labels, fisher="exact")
        >>> column
        tensor([[ 0.5000, -0.5000]])
    """
    require_one_of("fisher", fisher, get_args(Fisher))
    if reduction is not None:
        require_one_of("reduction", reduction, get_args(Reduction))
    _require_same_batch(loss_fn, output, target)
    output = output.detach()
    if fisher == "empirical":
        with torch.enable_grad():
            leaf = output.requires_grad_()
            loss = summed_loss(loss_fn, leaf, target, len(output), reduction)
            return iter(torch.autograd.grad(loss, leaf))
    module = _known(loss_fn)
    if reduction is not None:
        _reduction_of_its_own(loss_fn, reduction)
    if module is None:
        known = ", ".join(f"torch.nn.{kind.__name__}" for kind in _KNOWN)
        raise ValueError(
            f"fisher={fisher!r} needs a loss that says how labels are distributed, one of {known}; "
            f"got {_name(loss_fn)}: use fisher='empirical', which takes any per-sample loss"
        )
    if isinstance(module, nn.CrossEntropyLoss):
        return _softmax_columns(module, output, target, fisher, generator)
    return _elementwise_columns(module, output, fisher, generator)


def _require_same_batch(loss_fn: LossFunction, output: Any, target: Any) -> None:
    if _known(loss_fn) is None:  # it may compare what it likes
        return
    shapes = [tuple(part.shape) for part in (output, target) if isinstance(part, Tensor)]
    if len(shapes) == 2 and shapes[1] and shapes[0][:1] != shapes[1][:1]:
        raise ValueError(
            f"target must have as many samples as the model's output: got target of shape "
            f"{shapes[1]} and output of shape {shapes[0]}"
        )


def _name(loss_fn: LossFunction) -> str:
    return getattr(loss_fn, "__name__", None) or type(loss_fn).__name__


def _known(loss_fn: LossFunction) -> nn.Module | None:
    """The loss as a module, if it is one whose distribution of labels is known."""
    for function, module in _FUNCTIONS.items():
        if loss_fn is function:
            return module()
    # Not a subclass: it may compute something else.
    return loss_fn if type(loss_fn) in _KNOWN else None  # type: ignore[return-value]


def _reduction(
    loss_fn: LossFunction, output: Any, target: Any, n: int, loss: Tensor, given: Reduction | None
) -> Reduction:
    own = _reduction_of_its_own(loss_fn, given)
    if own is not None:
        return own
    if n == 1 or not loss.isfinite():  # both are the same, or nothing can be told
        return given or "mean"
    fitting = _fitting_reductions(loss_fn, output, target, loss)
    if not fitting and given is None:
        raise ValueError(
            f"reduction of loss_fn {_name(loss_fn)} is unclear: the loss of the batch is not seen "
            "to be the mean or the sum over its two halves; pass reduction='mean' or 'sum'"
        )
    if fitting and given is not None and given not in fitting:
        raise ValueError(
            f"reduction={given!r} contradicts loss_fn: the loss of the batch is the {fitting[0]} "
            "over its two halves"
        )
    return given or fitting[0]


def _reduction_of_its_own(loss_fn: LossFunction, given: Reduction | None) -> Reduction | None:
    """The reduction that ``loss_fn`` says it has, which a given one must not contradict."""
    known = _known(loss_fn)
    own = getattr(known if known is not None else loss_fn, "reduction", None)
    if own == "none":  # one sample, whose only number needs no reduction
        return "sum"
    if own not in get_args(Reduction):
        return None
    if given not in (None, own):
        raise ValueError(f"reduction={given!r} contradicts the loss, whose reduction is {own!r}")
    return own


@torch.enable_grad()
def _fitting_reductions(
    loss_fn: LossFunction, output: Any, target: Any, loss: Tensor
) -> list[Reduction]:
    """The reductions that the gradients of a batch's halves agree with; empty: cannot be told."""
    leaves = _output_leaves(output)
    if not leaves or not isinstance(target, Tensor) or not target.dim():
        return []
    n, half = len(target), len(target) // 2

    def gradients(part: slice) -> Tensor:
        outputs = {key: leaf[part] for key, leaf in leaves.items()}
        loss = loss_fn(_with(output, outputs), target[part])
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])

    try:
        whole, *halves = map(gradients, (slice(None), slice(None, half), slice(half, None)))
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return []  # one that takes whole batches only
    if not whole.isfinite().all():
        return ["mean", "sum"]
    weights: dict[Reduction, tuple[float, float]] = {
        "mean": (half / n, (n - half) / n),
        "sum": (1.0, 1.0),
    }
    close = max(1e-4, 8 * torch.finfo(whole.dtype).eps) * whole.abs().max()
    return [
        name
        for name, (a, b) in weights.items()
        if (a * halves[0] + b * halves[1] - whole).abs().max() <= close
    ]


def _output_leaves(output: Any) -> dict[Any, Tensor]:
    """The output, or its entries, that a loss can be differentiated by, detached; by their key."""
    entries = output if isinstance(output, Mapping) else {None: output}
    return {
        key: value.detach().requires_grad_()
        for key, value in entries.items()
        if isinstance(value, Tensor) and value.dim() and value.is_floating_point()
    }


def _with(output: Any, entries: Mapping[Any, Tensor]) -> Any:
    """The output with other entries; a mapping such as those of transformers stays of its kind."""
    if not isinstance(output, Mapping):
        return entries[None]
    changed: Any = copy.copy(output)
    for key, value in entries.items():
        changed[key] = value
    return changed


def _softmax_columns(
    loss: nn.CrossEntropyLoss,
    output: Tensor,
    target: Tensor,
    fisher: Fisher,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Columns of softmax cross entropy for ``output`` [N, C, …]."""
    logits = output.movedim(1, -1)  # [N, …, C]
    p = _wide(logits).softmax(dim=-1)
    c = p.shape[-1]
    scale = _softmax_scale(loss, output, target)  # [N, …, 1]
    weight = p.new_ones(c) if loss.weight is None else loss.weight.to(p)
    # Label smoothing mixes in the gradient of the mean over all labels, whichever is drawn.
    keep = 1 - loss.label_smoothing
    common = loss.label_smoothing / c * (weight.sum() * p - weight)
    plain = loss.weight is None and loss.label_smoothing == 0

    def gradient(labels: Tensor) -> Tensor:
        one_hot = functional.one_hot(labels, c).to(p)
        return keep * weight[labels].unsqueeze(-1) * (p - one_hot) + common

    def shaped(column: Tensor) -> Tensor:
        return (column * scale).to(output.dtype).movedim(-1, 1)

    if fisher == "sampled":
        chances = p.where(p.isfinite(), 1.0).reshape(-1, c)  # a diverged row draws any label
        yield shaped(
            gradient(torch.multinomial(chances, 1, generator=generator).reshape(p.shape[:-1]))
        )
        return
    if plain:
        yield from _by_term((shaped(column) for column in _cholesky_columns(p)), classes=True)
        return
    labels = torch.arange(c, device=p.device)
    gradients = [gradient(label.expand(p.shape[:-1])) for label in labels]
    mean = sum((p[..., k, None] * g for k, g in enumerate(gradients)), start=torch.zeros(()))
    roots = (p[..., k, None].sqrt() * (g - mean) for k, g in enumerate(gradients))
    yield from _by_term(map(shaped, roots), classes=True)
    yield shaped(mean)


def _cholesky_columns(p: Tensor) -> Iterator[Tensor]:
    """Columns of the Cholesky factor of diag(p) − p pᵀ, C−1 of them, for ``p`` […, C].

    Column j is √(p_j / (s_j s_{j+1})) · (s_{j+1} e_j − Σ_{i>j} p_i e_i), s_j = Σ_{i≥j} p_i.
    """
    tails = p.flip(-1).cumsum(-1).flip(-1)
    for j in range(p.shape[-1] - 1):
        rest = tails[..., j + 1, None]
        both = tails[..., j, None] * rest
        # Where the tail has vanished, so has the column.
        size = (p[..., j, None] / both.where(both > 0, 1)).sqrt() * (both > 0)
        column = -p * size
        column[..., :j] = 0
        column[..., j, None] = rest * size
        yield column


def _softmax_scale(loss: nn.CrossEntropyLoss, output: Tensor, target: Tensor) -> Tensor:
    """What PyTorch's reduction multiplies each term's gradient by, times N; 0 where ignored."""
    n = len(output)
    if target.is_floating_point():  # class probabilities: none is ignored, none weighted
        scale = torch.ones_like(_wide(output[:, :1].movedim(1, -1)))
        return scale * (n / scale.numel()) if loss.reduction == "mean" else scale
    counted = (target != loss.ignore_index).unsqueeze(-1)
    scale = counted.to(_wide(output).dtype)
    if loss.reduction != "mean":
        return scale
    if loss.weight is None:
        total = scale.sum()
        return scale * (n / total.where(total > 0, 1))
    weights = loss.weight.to(scale)[target.where(counted[..., 0], 0)]
    total = (scale[..., 0] * weights).sum()
    return scale * (n / total.where(total > 0, 1))


def _elementwise_columns(
    loss: nn.Module, output: Tensor, fisher: Fisher, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Columns of a loss that is a sum over independent labels, one for each number in a sample."""
    scale = _elementwise_scale(loss, output)
    if fisher == "sampled":
        yield _drawn_gradient(loss, output, generator) * scale
        return
    if isinstance(loss, nn.MSELoss):  # 2 (f − y), y ~ N(f, 1/2)
        yield from _by_term([torch.full_like(output, math.sqrt(2)) * scale], classes=False)
        return
    p, q, at_one, at_zero = _binary_gradients(loss, output)
    deviation = (p * q).sqrt() * (at_one - at_zero)
    yield from _by_term([(deviation * scale).to(output.dtype)], classes=False)
    if getattr(loss, "pos_weight", None) is not None:
        yield ((p * at_one + q * at_zero) * scale).to(output.dtype)


def _drawn_gradient(loss: nn.Module, output: Tensor, generator: torch.Generator | None) -> Tensor:
    """∂l/∂f for labels drawn from the model."""
    if isinstance(loss, nn.MSELoss):
        return math.sqrt(2) * torch.empty_like(output).normal_(generator=generator)
    p, _, at_one, at_zero = _binary_gradients(loss, output)
    chances = p.where(p.isfinite(), 0.5)  # a diverged number draws any label
    drawn = torch.bernoulli(chances, generator=generator)
    return torch.where(drawn > 0, at_one, at_zero).to(output.dtype)


def _elementwise_scale(loss: Any, output: Tensor) -> Tensor | float:
    weight = 1.0 if getattr(loss, "weight", None) is None else loss.weight.to(output)
    return weight * (len(output) / output.numel() if loss.reduction == "mean" else 1.0)


def _binary_gradients(loss: nn.Module, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The probabilities of the labels 1 and 0, and ∂l/∂f for each."""
    wide = _wide(output)
    if isinstance(loss, nn.BCELoss):  # with respect to the probability itself, as PyTorch bounds it
        p, q = wide, 1 - wide
        variance = (p * q).clamp(min=1e-12)
        return p, q, -q / variance, p / variance
    p, q = wide.sigmoid(), (-wide).sigmoid()  # 1 − p would round a confident label's q away
    weight = getattr(loss, "pos_weight", None)
    return p, q, -q if weight is None else -q * weight.to(q), p


def _wide(values: Tensor) -> Tensor:
    return values.to(sum_dtype(values.device))


def _by_term(columns: Iterable[Tensor], *, classes: bool) -> Iterator[Tensor]:
    """Split each column so that a piece holds one label of every sample: a term of the loss.

    The labels of different terms are drawn independently and the columns are centred, so products
    between terms vanish on average, which one column for all of them would not see. With
    ``classes``, dimension 1 belongs to one label; else every number has a label of its own.
    """
    for column in columns:
        if column.dim() <= 1 + classes:
            yield column
            continue
        flat = column.reshape(len(column), column.shape[1] if classes else 1, -1)
        for term in range(flat.shape[-1]):
            piece = torch.zeros_like(flat)
            piece[..., term] = flat[..., term]
            yield piece.reshape(column.shape)
