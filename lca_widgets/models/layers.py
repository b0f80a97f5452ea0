"""Small modules that networks here are built of, and that torch has not."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from lca_widgets._checks import require_in_range, require_integer

__all__ = ["Divide", "SeededDropout"]


class Divide(nn.Module):
    """Divides by a constant, which is saved with the model.

    Args:
        divisor: The constant c: the output is x / c.
        dtype: In which it is kept; ``None`` takes torch's default.

    Example:
        >>> Divide(4.0)(torch.tensor([2.0]))
        tensor([0.5000])
    """

    divisor: Tensor

    def __init__(self, divisor: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("divisor", torch.tensor(float(divisor), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return x / c."""
        return x / self.divisor

    def extra_repr(self) -> str:
        """Show the constant."""
        return "meta" if self.divisor.is_meta else f"{self.divisor.item():.6g}"


class SeededDropout(nn.Module):
    """Dropout whose mask depends on its seed and on the number of passes made, on nothing else.

    In train mode each entry is zeroed with probability p and the others are multiplied by 1/(1−p);
    in eval mode nothing is done. torch's own dropout draws from the global random state: a run of
    it cannot be repeated by a thread beside others. This one neither reads nor changes that state,
    and resumes exactly, because the number of passes is saved with the model.

    Args:
        p: Probability of zeroing, in [0, 1).
        seed: Seeds the masks.

    Raises:
        TypeError, ValueError: an argument is out of range.

    Source:
        Srivastava et al. (2014).

    Example:
        >>> first, second = SeededDropout(0.5, seed=1), SeededDropout(0.5, seed=1)
        >>> x = torch.ones(100)
        >>> torch.equal(first(x), second(x)), torch.equal(first(x), first(x))
        (True, False)
    """

    passes: Tensor

    def __init__(self, p: float, seed: int = 0) -> None:
        super().__init__()
        require_in_range("p", p, low=0, high=1, open_high=True)
        require_integer("seed", seed, low=0, high=2**31 - 1)
        self.p, self.seed = p, seed
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its mask in train mode, x itself in eval mode."""
        if not self.training:
            return x
        kept = _kept(x, self.passes, self.seed, self.p)
        self.passes += 1
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        """Show probability and seed."""
        return f"p={self.p}, seed={self.seed}"


# An operator of its own: torch.compile cannot look into a generator, and need not look into this.
@torch.library.custom_op("lca_widgets::kept", mutates_args=())
def _kept(x: Tensor, passes: Tensor, seed: int, p: float) -> Tensor:
    """Draw which entries of x are kept, of the pass that this many came before."""
    generator = Generator(x.device).manual_seed(seed * 1_000_003 + int(passes))
    return torch.rand(x.shape, generator=generator, device=x.device) >= p


@_kept.register_fake
def _(x: Tensor, passes: Tensor, seed: int, p: float) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)
