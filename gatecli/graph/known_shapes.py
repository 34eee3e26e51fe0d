"""Shapes of results, each worked out once in a process.

A network is counted on torch's meta device, where most of the time goes into Python that works out
one result's shape. A network has few different operations, and is counted anew after each change.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["KnownShapes"]

MOST = 1 << 14  # results kept, of a few hundred bytes each
NUMBERS = (bool, int, float, str, type(None))
FORMS = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class _Ghost(NamedTuple):
    """All that there is of a tensor on the meta device."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _Unknown(Exception):
    """An operation is given something, or gives something, that is not told by its looks."""


class KnownShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside it, what an operation on the meta device gives is not worked out a second time.

    That of operations which make new tensors, or fill one element by element; others run as ever.
    """

    results: ClassVar[dict[Any, tuple[_Ghost, ...]]] = {}

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        key = _key(func, args, given)
        if key not in self.results:
            result = func(*args, **given)
            self._keep(key, result)
            return result
        if _fills(func):
            return args[0]
        made = tuple(ghost.tensor() for ghost in self.results[key])
        return made if len(made) > 1 else made[0]

    def _keep(self, key: Any, result: Any) -> None:
        """Keep what an operation gives, where it can be kept."""
        if key is None or len(self.results) == MOST:
            return
        with suppress(_Unknown):
            parts = result if isinstance(result, tuple) else (result,)
            self.results[key] = tuple(map(_ghost, parts))


def _key(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation's result follows from; None where it cannot be told."""
    if not (_makes(func) or _fills(func)):
        return None
    try:
        return func, _looks(args), _looks(tuple(kwargs.items()))
    except _Unknown:
        return None


@cache
def _makes(func: Any) -> bool:
    """Whether an operation gives tensors with memory of their own, and leaves all else alone."""
    schema = func._schema
    slots = [*schema.arguments, *schema.returns]
    is_apart = all(slot.alias_info is None for slot in slots)
    return is_apart and {str(each.type) for each in schema.returns} == {"Tensor"}


@cache
def _fills(func: Any) -> bool:
    """Whether an operation gives its first argument, changed element by element."""
    return torch.Tag.pointwise in func.tags and str(func.overloadpacket.__name__).endswith("_")


def _looks(value: Any) -> Any:
    """What tells a value from others, as one that can be looked up. Raises _Unknown."""
    if isinstance(value, Tensor):
        return _ghost(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_looks, value))
    if isinstance(value, (*NUMBERS, *FORMS)):
        return type(value), value  # 1 is no 1.0, though they are equal
    raise _Unknown


def _ghost(value: Tensor) -> _Ghost:
    """Raises _Unknown where it is no plain tensor on the meta device."""
    if type(value) not in (Tensor, nn.Parameter) or not value.is_meta:
        raise _Unknown
    return _Ghost(tuple(value.shape), value.stride(), value.dtype)
