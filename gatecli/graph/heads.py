"""Operations on the heads of attention that gatecli puts into graphs."""

from __future__ import annotations

from torch import Tensor

from gatecli.graph.ops import mask

__all__ = ["bias_alone", "for_parts", "mask_where", "some_heads"]


def for_parts(z: Tensor, parts: int) -> Tensor:
    """Decisions z (N, heads) for each of the parts that images are cut into: (N * parts, heads)."""
    return z.repeat_interleave(parts, 0)


def mask_where(value: Tensor, z: Tensor | None) -> Tensor:
    """`mask`, or the value itself where there are no decisions."""
    return value if z is None else mask(value, z)


def some_heads(tensor: Tensor, dim: int, before: int, after: int, heads: Tensor) -> Tensor:
    """The entries of some heads (k,) in dimension `dim`, which is `before` x all x `after`."""
    size = tensor.shape
    parted = tensor.reshape(*size[:dim], before, -1, after, *size[dim + 1 :])
    return parted.index_select(dim + 1, heads).flatten(dim, dim + 2)


def bias_alone(x: Tensor, width: int, bias: Tensor | None = None) -> Tensor:
    """What a linear layer of this width makes of zeros in the place of x: (..., width)."""
    zeros = x.new_zeros(*x.shape[:-1], width)
    return zeros if bias is None else zeros + bias
