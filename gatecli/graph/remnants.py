"""What a forward that is traced leaves behind in its modules' attributes, put back as it was.

Some modules keep what they have calculated, to see whether it still fits at the next call. Traced,
they would keep values of a trace, on which another trace, or a plain call, would stumble.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["as_before"]

TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
CONSTANT = "_tensor_constant"  # what torch.fx calls tensors that a forward has made


@contextmanager
def as_before(module: nn.Module) -> Iterator[None]:
    """Put all attributes back at the end, but for the constants of a trace that has succeeded.

    These are tensors that the forward has made, and buffers that it has filled anew.
    """
    before = [(part, _state(part)) for part in module.modules()]
    made: dict[str, Any] = {}
    try:
        yield
        made = {name: value for name, value in vars(module).items() if _is_constant(name, value)}
        for part, state in before:
            state["_buffers"].update(_filled(part, state["_buffers"]))
    finally:
        for part, state in before:
            _restore(part, state)
        vars(module).update(made)


def _filled(part: nn.Module, before: Mapping[str, Any]) -> dict[str, Tensor]:
    """Buffers that hold another tensor than before."""
    found: dict[str, Tensor] = {}
    for name, value in part._buffers.items():
        if name in before and isinstance(value, Tensor) and value is not before[name]:
            found[name] = value
    return found


def _is_constant(name: str, value: Any) -> bool:
    return name.startswith(CONSTANT) and isinstance(value, Tensor)


def _state(part: nn.Module) -> dict[str, Any]:
    state = dict(vars(part))
    for table in TABLES:
        state[table] = state[table].copy()
    return state


def _restore(part: nn.Module, state: dict[str, Any]) -> None:
    for table in TABLES:
        held = vars(part)[table]
        held.clear()
        held.update(state[table])
        state[table] = held
    vars(part).clear()
    vars(part).update(state)
