"""The proximal view: back-propagation as one step on a least-squares problem of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lca_widgets._checks import require_in_range
from lca_widgets.curvature import Capture, LayerCall, supported_layers
from lca_widgets.curvature.passes import undisturbed

__all__ = ["LayerPass", "LayerProblem", "layer_passes", "layer_problems"]


@dataclass(frozen=True, eq=False)
class LayerPass:
    """What one forward and one backward pass show of a linear layer h = W x.

    Attributes:
        name: The layer's qualified name.
        weight: W, shape ``[d_out, d_in]``, a copy.
        inputs: x_n, shape ``[N, d_in]``.
        outputs: h_n, shape ``[N, d_out]``.
        gradients: g_n = N·∂L/∂h_n, shape ``[N, d_out]``, L the mean loss: sample n's own gradient,
            or its definition where batch normalisation couples the samples.
    """

    name: str
    weight: Tensor
    inputs: Tensor
    outputs: Tensor
    gradients: Tensor

    @property
    def rows(self) -> Tensor:
        """Each sample's gradient g_n x_nᵀ of the weight, row by row, shape ``[N, d_out·d_in]``."""
        return torch.einsum("no,ni->noi", self.gradients, self.inputs).flatten(1)


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A layer's own least-squares problem: min over W of ½ E‖ĥ − W x‖².

    Attributes:
        weight: The layer's W, shape ``[d_out, d_in]``.
        inputs: x_n, shape ``[N, d_in]``.
        targets: ĥ_n = h_n − s·g_n, shape ``[N, d_out]``: the outputs, moved downhill.

    Source:
        Frerix et al. (2018), proximal back-propagation; Huang et al. (2020) for the layer's view.

    Example:
        >>> x, target = torch.eye(2), torch.tensor([[2.0], [4.0]])
        >>> problem = LayerProblem(torch.zeros(1, 2), x, target)
        >>> problem.step(), problem.solution()
        (tensor([[1., 2.]]), tensor([[2., 4.]]))
    """

    weight: Tensor
    inputs: Tensor
    targets: Tensor

    def loss(self, weight: Tensor) -> Tensor:
        """Return ½ E‖ĥ − W x‖² of a weight ``[d_out, d_in]``."""
        return (self.targets - self.inputs @ weight.T).square().sum(dim=1).mean() / 2

    def step(self, rate: float = 1.0) -> Tensor:
        """Return W after one gradient step: W + rate · E[(ĥ − W x) xᵀ].

        With ``rate=1`` it is the back-propagation step W − s·∂L/∂W (for a layer without bias).
        """
        residuals = self.targets - self.inputs @ self.weight.T
        return self.weight + rate * residuals.T @ self.inputs / len(self.inputs)

    def solution(self) -> Tensor:
        """Return the minimiser next to W: W + E[(ĥ − W x) xᵀ] Σ_x⁺.

        It is the same step, preconditioned by the layer's own curvature.
        """
        return self.weight + (self.step() - self.weight) @ torch.linalg.pinv(self.input_moment)

    @property
    def input_moment(self) -> Tensor:
        """Σ_x = E[x xᵀ], shape ``[d_in, d_in]``; the problem's Hessian is Σ_x ⊗ I."""
        return self.inputs.T @ self.inputs / len(self.inputs)

    @property
    def hessian(self) -> Tensor:
        """The Hessian for W's entries row by row, I ⊗ Σ_x, shape ``[d_out·d_in, d_out·d_in]``."""
        return torch.kron(torch.eye(len(self.weight)).to(self.weight), self.input_moment)


def layer_passes(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor]
) -> dict[str, LayerPass]:
    """Return inputs, outputs and output gradients of every linear layer, by one pass of its own.

    Args:
        model: Its layers are linear, trainable, and each called once, with one vector a sample.
            Nothing about it is changed.
        loss_fn: Maps outputs and labels to a scalar, *averaged* over the batch.
        batch: Inputs ``[N, …]`` and labels ``[N]``.

    Raises:
        ValueError: a layer is not as above: a convolution, one that is frozen, not called, called
            more than once, without influence on the loss, or called with other inputs than
            ``[N, d_in]``; the message names it.

    Example:
        >>> model, x = nn.Linear(2, 2, bias=False), torch.eye(2)
        >>> passes = layer_passes(model, nn.CrossEntropyLoss(), (x, torch.tensor([0, 1])))
        >>> passes[""].rows.shape
        torch.Size([2, 4])
    """
    calls: list[LayerCall] = []
    inputs, labels = batch
    with undisturbed(model), Capture(model, calls.append):
        loss = loss_fn(model(inputs), labels)
        _require_linear_calls(model, calls, len(inputs))
        gradients = torch.autograd.grad(loss, [call.output for call in calls], allow_unused=True)
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"layer {call.name!r} must influence the loss: it got no gradient")
    return {
        call.name: LayerPass(
            call.name,
            call.layer.weight.detach().clone(),
            call.input,
            call.output.detach(),
            len(inputs) * gradient,
        )
        for call, gradient in zip(calls, gradients, strict=True)
    }


def _require_linear_calls(model: nn.Module, calls: Sequence[LayerCall], n: int) -> None:
    """Refuse layers that are not one product W x of a trainable W with one vector a sample."""
    for name, layer in supported_layers(model).items():
        own = [call for call in calls if call.name == name]
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer {name!r} must be linear, got {type(layer).__name__}")
        if not layer.weight.requires_grad:
            raise ValueError(f"layer {name!r} must have a trainable weight, got a frozen one")
        if len(own) != 1:
            raise ValueError(f"layer {name!r} must be called once in a pass, got {len(own)} calls")
        shape = list(own[0].input.shape)
        if shape != [n, layer.in_features]:
            raise ValueError(
                f"layer {name!r} must get inputs of shape [{n}, {layer.in_features}], got {shape}"
            )


def layer_problems(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    step_size: float,
) -> dict[str, LayerProblem]:
    """Return every linear layer's least-squares problem, with targets ĥ_n = h_n − s·g_n.

    Args:
        model: As for `layer_passes`; its layers have no biases, which the problem leaves out.
        loss_fn: As for `layer_passes`.
        batch: As for `layer_passes`.
        step_size: s > 0, how far the targets lie from the outputs.

    Raises:
        TypeError: ``step_size`` is not a number.
        ValueError: ``step_size`` is not positive; a layer has a bias, or is not as `layer_passes`
            needs it.

    Example:
        >>> model, batch = nn.Linear(2, 2, bias=False), (torch.eye(2), torch.tensor([0, 1]))
        >>> loss_fn = nn.CrossEntropyLoss()
        >>> problem = layer_problems(model, loss_fn, batch, step_size=0.1)[""]
        >>> loss_fn(model(batch[0]), batch[1]).backward()
        >>> bool(torch.allclose(problem.step(), model.weight - 0.1 * model.weight.grad))
        True
    """
    require_in_range("step_size", step_size, low=0, open_low=True)
    for name, layer in supported_layers(model).items():
        if layer.bias is not None:
            raise ValueError(f"layer {name!r} must have no bias: its problem is one of W alone")
    return {
        name: LayerProblem(seen.weight, seen.inputs, seen.outputs - step_size * seen.gradients)
        for name, seen in layer_passes(model, loss_fn, batch).items()
    }
