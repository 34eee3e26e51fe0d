"""What a run multiplies, counted by formulas of our own.

torch's FlopCounterMode knows some operations and passes over the others without a word, and which
kernel attention comes down to depends on torch's version and on the machine. Here attention is made
to be two products, and what may multiply and has no formula is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

MULTIPLIES = re.compile(
    r"conv|mm$|mv$|dot$|matmul|linear$|bilinear|einsum|attention|attn|lstm|gru|rnn|addr$"
)
HARMLESS = {
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
}  # resized by fixed shares: not counted by anybody


def _convolution(result: Tensor, image: Tensor, weight: Tensor, *rest: Any) -> int:
    """Each result reads a filter, or, transposed, each value of the image writes one."""
    transposed = bool(rest[4])
    return (image if transposed else result).numel() * math.prod(weight.shape[1:])


def _product(result: Tensor, left: Tensor, *_: Any) -> int:
    return result.numel() * left.shape[-1]


def _added(result: Tensor, _: Tensor, left: Tensor, *__: Any) -> int:
    return _product(result, left)


FORMULAS: dict[str, Callable[..., int]] = {
    "convolution": _convolution,
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": lambda _, left, *__: left.numel(),
    "addmm": _added,
    "baddbmm": _added,
    "addmv": _added,
}


class Macs(TorchDispatchMode):
    """Adds up the multiplications of convolutions and products of matrices in `total`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in FORMULAS:
            self.total += FORMULAS[name](result, *args)
        elif MULTIPLIES.search(name) and name not in HARMLESS:
            raise NotImplementedError(f"the tests have no formula for {func}")
        return result


@contextmanager
def counted() -> Iterator[Macs]:
    """`with counted() as macs: network(image)`, then `macs.total`."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer
    try:
        with sdpa_kernel(SDPBackend.MATH), Macs() as macs:
            yield macs
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
