"""Hessian, generalised Gauss–Newton and Fisher matrices as products with vectors, never built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lca_widgets._checks import require_integer, require_one_of
from lca_widgets.curvature.losses import (
    Fisher,
    LossFunction,
    Reduction,
    output_gradients,
    summed_loss,
)
from lca_widgets.curvature.passes import batches, run, samples_in, undisturbed

__all__ = ["CurvatureOperator", "fisher", "ggn", "hessian"]

Tensors = Sequence[Tensor]
Product = Callable[[Tensors], Tensors]


class CurvatureOperator:
    """A symmetric matrix over a model's parameters, known by its products with vectors.

    `hessian`, `ggn` and `fisher` make one. ``operator @ v`` takes a vector ``[d]``, or the columns
    of a matrix ``[d, m]``, and returns the same shape. A vector holds the parameters one after the
    other, each flattened, in the order of ``parameters``.

    Every product is that of the model as it stands, at its present parameters and in its present
    mode. Batch normalisation in train mode couples the samples of a batch: the derivatives are
    those of the batch's function. Dropout takes its masks from torch's present random state.

    Inside ``with operator:`` the graph of data given as one batch is kept between products. Each
    then costs 2 forward-and-backward passes (the Hessian's) or 4/3 (the others'), where it would
    otherwise be 3; the parameters must not change meanwhile. The functions of
    `lca_widgets.curvature.lanczos` do this by themselves. A loader is gone through for every
    product, and must yield the same batches each time.

    Nothing is changed: the buffers of the model and the loss, the parameters' ``.grad`` and the
    random state are bit for bit the same after a product, or the ``with`` block, as before it.

    Attributes:
        parameters: The parameters by qualified name, in the order of registration.
        dimension: Number d of their entries.
        shape: ``(d, d)``.
        dtype: Of the products.
        device: Of the products.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        linearise: Callable[[_Batch], _Linearised],
        layers: Collection[str] | None,
    ) -> None:
        self.parameters = _trainable(model, layers)
        self._tensors = list(self.parameters.values())
        self._sizes = [tensor.numel() for tensor in self._tensors]
        self.dimension = sum(self._sizes)
        self.shape = torch.Size((self.dimension, self.dimension))
        self.dtype = functools.reduce(torch.promote_types, (t.dtype for t in self._tensors))
        self.device = self._tensors[0].device
        self._model = model
        self._loss_fn = loss_fn
        self._data = data
        self._linearise = linearise
        self._kept: tuple[_Linearised, int] | None = None
        self._context = ExitStack()
        self._depth = 0

    def __repr__(self) -> str:
        """Summarise in one line."""
        return f"CurvatureOperator({self.dimension} parameters: {', '.join(self.parameters)})"

    def __enter__(self) -> CurvatureOperator:
        """Keep the graph from the first product on."""
        # Buffers are put back at the very end: writing to them would invalidate the graph.
        if self._depth == 0:
            self._context.enter_context(undisturbed(self._model, self._loss_fn))
        self._depth += 1
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the graph and put back what the passes changed."""
        self._depth -= 1
        if self._depth == 0:
            self._kept = None
            self._context.close()

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the matrix times a vector ``[d]``, or times the columns of ``[d, m]``."""
        if vector.dim() not in (1, 2) or len(vector) != self.dimension:
            raise ValueError(
                f"vector must have shape [{self.dimension}] or [{self.dimension}, m], got "
                f"{list(vector.shape)}"
            )
        with self:
            if vector.dim() == 2:
                return torch.stack([self._times(column) for column in vector.T], dim=1)
            return self._times(vector)

    def hint(self) -> Tensor | None:
        """Return a vector ``[d]`` that tends to lean to the large eigenvalues, if one is at hand.

        It is the gradient for the Hessian of data given as one batch, which a product computes
        anyway: it tends to lie among the leading eigenvectors (Gur-Ari et al., 2018).
        """
        if not isinstance(self._data, tuple):
            return None
        with self:
            slope = self._only_batch()[0].slope
            return None if slope is None else _flat(slope).detach()

    def _times(self, vector: Tensor) -> Tensor:
        pieces = [
            piece.view_as(tensor).to(tensor)
            for piece, tensor in zip(vector.detach().split(self._sizes), self._tensors, strict=True)
        ]
        if isinstance(self._data, tuple):
            linearised, n = self._only_batch()
            return _flat(linearised.product(pieces)).div_(n)
        total, samples = torch.zeros((), device=self.device), 0
        with undisturbed(
            self._model, self._loss_fn
        ):  # every product starts from the same random state
            for number, (inputs, target) in enumerate(batches(self._data, self._model)):
                linearised, n = self._forward(inputs, target, number)
                total = total + _flat(linearised.product(pieces))
                samples += n
        return total / samples

    def _only_batch(self) -> tuple[_Linearised, int]:
        if self._kept is None:
            [(inputs, target)] = batches(self._data, self._model)
            self._kept = self._forward(inputs, target, number=0)
        return self._kept

    def _forward(self, inputs: Any, target: Any, number: int) -> tuple[_Linearised, int]:
        n = samples_in(inputs, target)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
            output = run(self._model, inputs)
        return self._linearise(_Batch(output, target, n, number, self._tensors)), n


@dataclass(frozen=True)
class _Batch:
    """One batch after its forward pass."""

    output: Any
    target: Any
    n: int
    number: int  # counts from 0
    parameters: Tensors


@dataclass(frozen=True)
class _Linearised:
    """A batch's product, summed over its samples, and the gradient if it was computed for it."""

    product: Product
    slope: Tensors | None = None


def hessian(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    layers: Collection[str] | None = None,
    reduction: Reduction | None = None,
) -> CurvatureOperator:
    """Return the Hessian H = ∇²L of the mean loss L = (1/N) Σ_n l_n.

    Args:
        model: Any module that autograd can differentiate twice.
        loss_fn: Maps output and target to a loss.
        data: One batch ``(inputs, target)``, a tuple, or an iterable of batches, over all of which
            the loss is averaged, each sample alike.
        layers: Names of modules whose parameters count, with those of the modules inside them;
            ``None`` takes all. Frozen parameters never count.
        reduction: How ``loss_fn`` combines the samples; the matrix is the same either way.
            ``None`` reads it off the loss, or finds out.

    Returns:
        The operator; a parameter that the loss does not depend on has rows of zeros.

    Raises:
        ValueError: a layer does not exist, nothing is trainable; in a product: the data has no
            batch, or the reduction is unknown.

    Source:
        Pearlmutter (1994), as one backward pass over the graph of the gradient.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> H = hessian(nn.Linear(2, 1, bias=False), nn.MSELoss(), (x, y))  # 2/N Σ x xᵀ
        >>> H @ torch.tensor([1.0, 2.0])
        tensor([1., 2.])
    """

    def linearise(batch: _Batch) -> _Linearised:
        loss = summed_loss(loss_fn, batch.output, batch.target, batch.n, reduction)
        slope = _pull([loss], batch.parameters, [torch.ones_like(loss)], create_graph=True)
        return _Linearised(functools.partial(_pull, slope, batch.parameters), slope)

    return CurvatureOperator(model, loss_fn, data, linearise, layers)


def ggn(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    layers: Collection[str] | None = None,
    reduction: Reduction | None = None,
) -> CurvatureOperator:
    """Return the generalised Gauss–Newton matrix (1/N) Σ_n J_nᵀ ∇²l_n J_n.

    J_n is the Jacobian of sample n's output f_n and ∇²l_n the Hessian of its loss with respect to
    f_n: the Hessian of L without the curvature of the network. For softmax cross entropy it is the
    exact Fisher matrix.

    Args:
        model: As in `hessian`; it must return one tensor.
        loss_fn: As in `hessian`.
        data: As in `hessian`.
        layers: As in `hessian`.
        reduction: As in `hessian`.

    Raises:
        TypeError: in a product: the model does not return a tensor.
        ValueError: as `hessian`.

    Source:
        Schraudolph (2002).

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> ggn(nn.Linear(2, 1, bias=False), nn.MSELoss(), (x, y)) @ torch.tensor([1.0, 2.0])
        tensor([1., 2.])
    """

    def linearise(batch: _Batch) -> _Linearised:
        leaf = _output(batch).detach().requires_grad_()
        loss = summed_loss(loss_fn, leaf, batch.target, batch.n, reduction)
        slope = _pull([loss], [leaf], [torch.ones_like(loss)], create_graph=True)
        return _Linearised(_sandwich(batch, functools.partial(_pull, slope, [leaf])))

    return CurvatureOperator(model, loss_fn, data, linearise, layers)


def fisher(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    fisher: Fisher = "empirical",
    layers: Collection[str] | None = None,
    reduction: Reduction | None = None,
    seed: int = 0,
) -> CurvatureOperator:
    """Return the Fisher matrix (1/N) Σ_n E_y[∇l_n ∇l_nᵀ], uncentred.

    ∇l_n = J_nᵀ δ_n is the gradient of sample n's own loss, δ_n = ∂l_n/∂f_n. Where batch
    normalisation couples the samples, J_n is the Jacobian of row n of the batch's output.

    Args:
        model: As in `ggn`.
        loss_fn: As in `hessian`; for ``"exact"`` and ``"sampled"`` one that names a distribution
            of labels, see `lca_widgets.curvature.losses.output_gradients`.
        data: As in `hessian`.
        fisher: The labels y: ``"empirical"``, the data's; ``"exact"``, the expectation over the
            model's; ``"sampled"``, one label for each sample drawn from the model. With
            ``"exact"``, one copy of the output for each possible label is kept in memory.
        layers: As in `hessian`.
        reduction: As in `hessian`.
        seed: Seeds ``"sampled"``; each product uses the same labels.

    Raises:
        TypeError: as `ggn`.
        ValueError: as `hessian`; ``fisher`` is unknown, or needs another loss.

    Source:
        Martens (2020) for the three and for what sets them apart.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, dtype=torch.long)
        >>> fisher(nn.Linear(2, 2), nn.CrossEntropyLoss(), (x, y), fisher="exact").shape
        torch.Size([6, 6])
    """
    require_one_of("fisher", fisher, get_args(Fisher))
    require_integer("seed", seed, low=0, high=2**62)

    def linearise(batch: _Batch) -> _Linearised:
        output = _output(batch)
        generator = torch.Generator(output.device).manual_seed(seed + batch.number)
        columns = output_gradients(
            loss_fn,
            output,
            batch.target,
            fisher=fisher,
            reduction=reduction,
            generator=generator,
        )
        stacked = torch.stack([column.flatten(1) for column in columns])  # [columns, N, outputs]
        return _Linearised(_sandwich(batch, functools.partial(_second_moment, stacked)))

    return CurvatureOperator(model, loss_fn, data, linearise, layers)


def _second_moment(columns: Tensor, vectors: Tensors) -> Tensors:
    """Σ_columns δ_n δ_nᵀ w_n for each sample n."""
    [w] = vectors
    weights = torch.einsum("kno,no->kn", columns, w.flatten(1))
    return [torch.einsum("kno,kn->no", columns, weights).view_as(w)]


def _sandwich(batch: _Batch, middle: Product) -> Product:
    """V ↦ Jᵀ B J v, with J the Jacobian of the batch's output and B as ``middle``.

    J v is the derivative of Jᵀ u, which is linear in u, with respect to u: unlike forward-mode
    differentiation, that reuses the forward pass, and works through batch normalisation in train
    mode.
    """
    output = _output(batch)
    u = torch.zeros_like(output, requires_grad=True)
    pulled = _pull([output], batch.parameters, [u], create_graph=True)

    def product(vectors: Tensors) -> Tensors:
        forward = _pull(pulled, [u], vectors)
        return _pull([output], batch.parameters, middle(forward))

    return product


def _pull(
    outputs: Tensors, inputs: Tensors, vectors: Tensors, *, create_graph: bool = False
) -> Tensors:
    """Return (∂outputs/∂inputs)ᵀ vectors, keeping the graph; zeros where nothing depends."""
    dependent = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not dependent:
        return [torch.zeros_like(tensor) for tensor in inputs]
    return torch.autograd.grad(
        [outputs[i] for i in dependent],
        inputs,
        [vectors[i] for i in dependent],
        create_graph=create_graph,
        retain_graph=True,
        materialize_grads=True,
    )


def _output(batch: _Batch) -> Tensor:
    if not isinstance(batch.output, Tensor):
        raise TypeError(
            f"model must return one tensor, got {type(batch.output).__name__}: only the Hessian "
            "takes other outputs"
        )
    return batch.output


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _trainable(model: nn.Module, layers: Collection[str] | None) -> dict[str, Tensor]:
    """The parameters that require a gradient, of all layers or the named ones."""
    trainable: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if layers is not None:
        modules = {name: module for name, module in model.named_modules() if name}
        if unknown := [name for name in layers if name not in modules]:
            raise ValueError(f"layers must be among {', '.join(map(repr, modules))}; got {unknown}")
        wanted = {id(p) for name in layers for p in modules[name].parameters()}
        trainable = {name: p for name, p in trainable.items() if id(p) in wanted}
    if not trainable:
        where = type(model).__name__ if layers is None else f"layers {list(layers)}"
        raise ValueError(f"model must have trainable parameters, got none in {where}")
    return trainable
