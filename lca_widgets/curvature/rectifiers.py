"""Which of a layer's units the rectifiers behind it block, and which they let pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["RectifierUnits", "UnitActivity", "merge"]


@dataclass(frozen=True, eq=False)
class UnitActivity:
    """What the rectifiers behind one layer do with each of its units.

    A unit is *dying* if it is rectified to 0 for every sample and position, and *full* if it comes
    out positive for each. One with a value that is not a number (NaN) is neither.

    Attributes:
        never: The dying units, bool, shape ``[units]``, on the layer's device.
        always: The full units, likewise.

    Example:
        >>> activity = UnitActivity(torch.tensor([True, False]), torch.tensor([False, False]))
        >>> activity.dying, activity.full
        (0.5, 0.0)
    """

    never: Tensor
    always: Tensor

    @property
    def dying(self) -> float:
        """Share of the units that never come through; reading it waits for the device."""
        return int(self.never.sum()) / len(self.never)

    @property
    def full(self) -> float:
        """Share of the units that always come through; reading it waits for the device."""
        return int(self.always.sum()) / len(self.always)


class RectifierUnits:
    """Finds the dying and the full units of layers during forward passes of any model.

    During a pass it follows each layer's output through the operations that leave units where they
    are to the rectifiers that read it, be they modules or functions, in place or not::

        followed:    + − × ÷ with anything (residual connections), normalisation, dropout, casts,
                     copies, masked_fill, pooling over positions
        rectifiers:  relu, relu6; threshold(x, t ≥ 0, 0); hardtanh and clamp from 0 upwards

    Anything else ends the way: what moves or mixes units (reshape, permute, indexing, cat, another
    layer), an activation that is not zero below a bound (GELU, SiLU, leaky ReLU, tanh), and code
    that PyTorch cannot show (TorchScript; a rectifier written as ``torch.maximum`` or ``x * (x >
    0)``). A layer behind which no rectifier is found has no result.

    A layer that is called several times, and one that several rectifiers read, is taken over all of
    them as over more samples: a unit is dying if *none* lets it through, full if *all* do. (In a
    residual network where normalisation and rectifier come first, every later block of a stage
    reads the layer; it is dying only if no block gets anything of it.) A rectifier behind a sum
    counts for each layer in the sum; its own output belongs to no layer.

    Nothing is changed or kept alive: two reductions of each rectifier's output are taken, on its
    device, and nothing waits for them.

    Example:
        >>> layer = torch.nn.Linear(2, 3)
        >>> _ = layer.bias.data.copy_(torch.tensor([-9.0, 0.0, 9.0]))
        >>> units = RectifierUnits()
        >>> with units.pass_() as activity:
        ...     h = layer(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        ...     units.layer_called("layer", h, unit_dim=-1)
        ...     _ = torch.relu(h * 2)
        >>> activity["layer"].never.tolist(), activity["layer"].always.tolist()
        ([True, False, False], [False, False, True])
    """

    def __init__(self) -> None:
        self._pass: _Pass | None = None
        self._depth = 0

    def start(self) -> None:
        """Begin a pass; one begun within another is a part of it."""
        self._depth += 1
        if self._pass is None:
            self._pass = _Pass()
            _push_mode(self._pass)

    def stop(self) -> dict[str, UnitActivity]:
        """End the pass, in the thread that began it.

        Returns:
            The activity of each layer that a rectifier followed, in the order of their first calls;
            nothing where no pass was begun, or another one is still around it.
        """
        self._depth = max(self._depth - 1, 0)
        if self._depth or self._pass is None:
            return {}
        ended, self._pass = self._pass, None
        return ended.close()

    def discard(self) -> None:
        """End whatever was begun, without a result."""
        self._depth = min(self._depth, 1)
        self.stop()

    @contextmanager
    def pass_(self) -> Iterator[dict[str, UnitActivity]]:
        """Begin a pass and end it; the mapping that is handed out is filled at the end."""
        activity: dict[str, UnitActivity] = {}
        self.start()
        try:
            yield activity
        finally:
            activity.update(self.stop())

    def layer_called(self, name: str, output: Tensor, unit_dim: int) -> None:
        """Follow the output of one call of a layer; without effect outside a pass.

        Args:
            name: Under which its activity is returned.
            output: The tensor that the model goes on with.
            unit_dim: The dimension of its units: 1 for a convolution, -1 for a linear layer.
        """
        if self._pass is not None:
            self._pass.follow(name, output, unit_dim)


def merge(passes: Iterable[Mapping[str, UnitActivity]]) -> dict[str, UnitActivity]:
    """Return the activity over several passes: dying or full is what is so in each of them.

    Args:
        passes: What `RectifierUnits.stop` returned. A pass that did not call a layer says nothing
            about it.

    Example:
        >>> first = UnitActivity(torch.tensor([True, True]), torch.tensor([False, False]))
        >>> second = UnitActivity(torch.tensor([True, False]), torch.tensor([False, True]))
        >>> merge([{"layer": first}, {"layer": second}])["layer"].never.tolist()
        [True, False]
    """
    parts: dict[str, list[UnitActivity]] = {}
    for activities in passes:
        for name, activity in activities.items():
            parts.setdefault(name, []).append(activity)
    return {name: _over_all(activities) for name, activities in parts.items()}


def _over_all(parts: Sequence[UnitActivity]) -> UnitActivity:
    if len(parts) == 1:
        return parts[0]
    device = parts[0].never.device  # a shared layer may be called on several
    return UnitActivity(
        torch.stack([part.never.to(device) for part in parts]).all(0),
        torch.stack([part.always.to(device) for part in parts]).all(0),
    )


# Rows this short reduce ten times slower (the channels-last output of few channels, on a CPU) than
# the long rows of all positions, which are then reduced again.
_SHORT = 32


class _Trail(NamedTuple):
    """A tensor has a layer's units along ``axis``, counted from the last one as in broadcasting."""

    name: str
    axis: int
    units: int


class _Pass(TorchFunctionMode):
    """One forward pass: sees each function of PyTorch that is called in this thread."""

    def __init__(self) -> None:
        super().__init__()
        # Each tensor's version with it: one that was written to since is no longer followed.
        self._trails: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._activity: dict[str, list[UnitActivity]] = {}

    def close(self) -> dict[str, UnitActivity]:
        """Leave the stack of modes, whichever are above, and return what was seen."""
        self._trails.clear()  # on another thread's stack it stays behind, with nothing to follow
        if any(mode is self for mode in _get_current_function_mode_stack()):
            above = []
            while (top := _pop_mode()) is not self:
                above.append(top)
            for mode in reversed(above):
                _push_mode(mode)
        return {name: _over_all(parts) for name, parts in self._activity.items() if parts}

    def follow(self, name: str, output: Tensor, unit_dim: int) -> None:
        self._activity.setdefault(name, [])
        with torch._C.DisableTorchFunctionSubclass():
            if _can_be_followed(output) and -output.dim() <= unit_dim < output.dim():
                axis = unit_dim if unit_dim < 0 else unit_dim - output.dim()
                self._mark(output, [_Trail(name, axis, output.shape[axis])])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FOLLOWED:
            return func(*args, **kwargs)
        # Before the call, which may write to them.
        trails = self._trails_of(args, kwargs)
        result = func(*args, **kwargs)
        if trails and isinstance(result, Tensor):
            with torch._C.DisableTorchFunctionSubclass():
                if _can_be_followed(result):
                    self._go_on(func, args, kwargs, result, trails)
        return result

    def _go_on(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Tensor,
        trails: Iterable[_Trail],
    ) -> None:
        rectifies = _RECTIFIERS.get(func)
        pooled = _POOLED.get(func, 0)
        trails = [trail for trail in trails if trail.axis < -pooled and _has_units(result, trail)]
        if rectifies is None:
            self._mark(result, trails)
        elif rectifies(args, kwargs) and result.numel():  # no sample came to an idle expert
            seen = {axis: _activity(result.detach(), axis) for axis in {t.axis for t in trails}}
            for trail in trails:
                self._activity[trail.name].append(seen[trail.axis])

    def _mark(self, tensor: Tensor, trails: Iterable[_Trail]) -> None:
        self._trails[tensor] = tensor._version, tuple(trails)

    def _trails_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[_Trail, None]:
        """The trails of all arguments, each once, in order."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with torch._C.DisableTorchFunctionSubclass():
            return {trail: None for tensor in tensors for trail in self._trails_at(tensor)}

    def _trails_at(self, tensor: Tensor) -> tuple[_Trail, ...]:
        entry = self._trails.get(tensor)
        if entry is None and not tensor.is_inference() and tensor._is_view():
            # A module's backward hook, or a custom function, hands its input on as a view of it.
            base = tensor._base
            entry = self._trails.get(base) if _same_entries(tensor, base) else None
        if entry is None or entry[0] != tensor._version:
            return ()
        return entry[1]


def _can_be_followed(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_inference()  # it has no version
        and not torch._C._are_functorch_transforms_active()  # their tensors die with them
    )


def _has_units(tensor: Tensor, trail: _Trail) -> bool:
    return tensor.dim() >= -trail.axis and tensor.shape[trail.axis] == trail.units


def _same_entries(view: Tensor, base: Tensor | None) -> bool:
    return (
        base is not None
        and view.shape == base.shape
        and view.stride() == base.stride()
        and view.storage_offset() == base.storage_offset()
    )


def _activity(rectified: Tensor, axis: int) -> UnitActivity:
    """Reduce a rectifier's output, nowhere negative, over all dimensions but the units'."""
    others = [dim for dim in range(-rectified.dim(), 0) if dim != axis]
    if not others:
        return UnitActivity(rectified == 0, rectified > 0)
    units = rectified.shape[axis]
    if not 1 < units < _SHORT or rectified.stride(axis) != 1:
        return UnitActivity(rectified.amax(dim=others) == 0, rectified.amin(dim=others) > 0)
    rows = rectified.movedim(axis, -1).flatten(1)
    low, high = rows.amin(dim=0).view(-1, units), rows.amax(dim=0).view(-1, units)
    return UnitActivity(high.amax(dim=0) == 0, low.amin(dim=0) > 0)


def _functions(names: str) -> set[Callable[..., Any]]:
    """What PyTorch calls so: a function, a method, in place or not."""
    return {
        function
        for place in (torch, Tensor, functional)
        for name in names.split()
        for spelling in (name, f"{name}_")
        if callable(function := getattr(place, spelling, None))
    }


def _argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: float | None
) -> Any:
    return args[place] if place < len(args) else kwargs.get(name, default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # to look into a tensor would wait for the device


def _always(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return True


def _from_zero(low: Any, high: Any) -> bool:
    above = high is None or (_is_number(high) and high > 0)
    return _is_number(low) and low == 0 and above


def _clamps(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    low = _argument(args, kwargs, 1, "min", None)
    return _from_zero(low, _argument(args, kwargs, 2, "max", None))


def _cuts(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    low = _argument(args, kwargs, 1, "min_val", -1.0)
    return _from_zero(low, _argument(args, kwargs, 2, "max_val", 1.0))


def _replaces(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    threshold = _argument(args, kwargs, 1, "threshold", None)
    value = _argument(args, kwargs, 2, "value", None)
    return _is_number(threshold) and threshold >= 0 and _is_number(value) and value == 0


_RECTIFIERS: dict[Callable[..., Any], Callable[[Sequence[Any], Mapping[str, Any]], bool]] = {
    function: rectifies
    for names, rectifies in (
        ("relu relu6", _always),
        ("clamp clip clamp_min", _clamps),
        ("hardtanh", _cuts),
        ("threshold", _replaces),
    )
    for function in _functions(names)
}

# The last so many dimensions are positions, the units' is not to be one of them.
_POOLED = {
    function: dimensions
    for dimensions in (1, 2, 3)
    for kind in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")
    for function in _functions(f"{kind}{dimensions}d")
}

_KEEPING = _functions(
    "add sub subtract rsub mul multiply div divide true_divide neg negative positive lerp addcmul "
    "addcdiv masked_fill __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ "
    "__imul__ __truediv__ __rtruediv__ __itruediv__ __rdiv__ "
    "batch_norm batch_norm_elemt layer_norm group_norm instance_norm rms_norm "
    "local_response_norm normalize dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_dropout feature_alpha_dropout to type type_as float double half bfloat16 cpu cuda "
    "contiguous clone detach requires_grad"
)

_FOLLOWED = _KEEPING | _POOLED.keys() | _RECTIFIERS.keys()
