"""Python's `int()` and `len()` of traced values, which Python itself wants to be numbers at once.

`int(windows.shape[0] / (height * width / 49))` is how many images there are: it stays traced. So
while a network is traced its source sees an `int` and a `len` that can do so; both are put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


NUMBERS: dict[str, Any] = {"int": _Int, "len": _len}


@contextmanager
def traced_numbers(root: nn.Module) -> Iterator[None]:
    """Let the source files of the modules' classes see them; their own names stay theirs."""
    places = [namespace for namespace in _namespaces(root) if not NUMBERS.keys() & namespace.keys()]
    try:
        for namespace in places:
            namespace.update(NUMBERS)
        yield
    finally:
        for namespace in places:
            for name in NUMBERS:
                namespace.pop(name, None)


def _namespaces(root: nn.Module) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for part in root.modules():
        for kind in type(part).__mro__:
            forward = vars(kind).get("forward")
            namespace = getattr(forward, "__globals__", None)
            if namespace is not None and not kind.__module__.startswith("torch."):
                found[id(namespace)] = namespace
    return list(found.values())
