"""Python's `int()` and `len()`, and torch's `ones()` and the like, of traced values.

Python wants numbers at once, and torch's functions that make tensors do not know traced ones. But
`int(windows.shape[0] / (height * width / 49))` is how many images there are, and `torch.ones(n, 1)`
one entry for each: they stay traced. So while a network is traced its source sees an `int` and a
`len`, and torch has functions, that can do so; all are put back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from gatecli.graph.flow import whole_number

__all__ = ["traced_numbers"]


class _AsInt(type):
    """Asked for its instances, what stands for `int` answers as that would."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class _Int(int, metaclass=_AsInt):
    def __new__(cls, value: Any = 0, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, fx.Proxy):
            return int(value, *args, **kwargs)
        known = getattr(value.tracer, "known", None)
        if known is None or known(value):
            return int(value)  # type: ignore[call-overload]
        return value.tracer.create_proxy("call_function", whole_number, (value,), {})


def _len(value: Any) -> Any:
    asks = getattr(type(value), "length", None)
    return len(value) if asks is None else asks(value)


MAKERS = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
NUMBERS: dict[str, Any] = {"int": _Int, "len": _len}


@contextmanager
def traced_numbers(root: nn.Module) -> Iterator[None]:
    """Let the source files of the modules' classes see them; their own names stay theirs."""
    before = {name: getattr(torch, name) for name in MAKERS}
    places = [namespace for namespace in _namespaces(root) if not NUMBERS.keys() & namespace.keys()]
    try:
        for namespace in places:
            namespace.update(NUMBERS)
        for name, maker in before.items():
            setattr(torch, name, _tracing(maker))
        yield
    finally:
        for name, maker in before.items():
            setattr(torch, name, maker)
        for namespace in places:
            for name in NUMBERS:
                namespace.pop(name, None)


def _tracing(maker: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes tensors, or is traced where it is told something that is."""

    @functools.wraps(maker)
    def make(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda each: _note(each, found))
        if not found:
            return maker(*args, **kwargs)
        return found[0].tracer.create_proxy("call_function", maker, args, kwargs)

    return make


def _note(value: Any, found: list[fx.Proxy]) -> Any:
    if isinstance(value, fx.Proxy):
        found.append(value)
    return value


def _namespaces(root: nn.Module) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for part in root.modules():
        for kind in type(part).__mro__:
            forward = vars(kind).get("forward")
            namespace = getattr(forward, "__globals__", None)
            if namespace is not None and not kind.__module__.startswith("torch."):
                found[id(namespace)] = namespace
    return list(found.values())
