"""What a network allocates while it is built: nothing for its weights, or no more than it may."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gatecli.errors import ArchitectureError

__all__ = ["TooLarge", "WithoutMemory", "at_most", "counted"]


class _Allocations(TorchFunctionMode):
    """Sees every call of one of torch's functions while a network is built."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*args, **self.given(func, args, kwargs or {}))

    def given(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments that the call is to have."""
        raise NotImplementedError


class WithoutMemory(_Allocations):
    """Puts on the meta device what is allocated to be filled, weights that is, and nothing else.

    With `torch.device("meta")` instead, constructors that calculate with tensors fail (RegNet's
    widths, rates of stochastic depth).
    """

    def given(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if func is torch.empty and kwargs.get("device") is None:
            return {**kwargs, "device": "meta"}
        return kwargs


class TooLarge(ArchitectureError):
    """A network asks for more than the file could hold that names it."""


_CEILING: ContextVar[tuple[int, int] | None] = ContextVar("ceiling", default=None)


@contextmanager
def at_most(tensors: int, numbers: int) -> Iterator[None]:
    """Inside, refuse a library's network that asks for more, before it has it.

    Args:
        tensors: how many it may have.
        numbers: how many they may hold together.

    Raises:
        TooLarge: it asks for more.
    """
    token = _CEILING.set((tensors, numbers))
    try:
        yield
    finally:
        _CEILING.reset(token)


def counted(what: str) -> AbstractContextManager[Any]:
    """Inside, count what is allocated, if there is a limit. `what` names the network in errors."""
    ceiling = _CEILING.get()
    return nullcontext() if ceiling is None else _Counted(what, *ceiling)


class _Counted(_Allocations):
    """Counts what is allocated while a network is built."""

    factories = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __init__(self, what: str, tensors: int, numbers: int) -> None:
        super().__init__()
        self.what = what
        self.tensors = tensors
        self.numbers = numbers

    def given(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if func in self.factories:
            self._take(kwargs.get("size", args))
        return kwargs

    def _take(self, size: Any) -> None:
        sides = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        self.tensors -= 1
        self.numbers -= math.prod(sides)
        if self.tensors < 0 or self.numbers < 0:
            raise TooLarge(
                f"{self.what} would be far larger than the file: expected a network whose weights"
                " the file holds"
            )
