"""The methods by name, and what all of those in a network are asked together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatecli.errors import SettingError
from gatecli.methods.base import Method
from gatecli.network import Network, surgery
from gatecli.network.surgery import Decided, Decisions

__all__ = ["apply_decisions", "forget", "get", "names", "register"]

_REGISTRY: dict[str, Method[Any]] = {}


def register(method: Method[Any]) -> None:
    """Make a method known by its name. Raises ValueError where the name is taken."""
    name = method.about.name
    if name in _REGISTRY:
        raise ValueError(f"method `{name}` is registered twice")
    _REGISTRY[name] = method


def forget(name: str) -> None:
    """Take a method out of the registry, as tests do that register one of their own."""
    del _REGISTRY[name]


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> Method[Any]:
    """The method of that name. Raises SettingError, which lists the names, where there is none."""
    if name not in _REGISTRY:
        raise SettingError(f"expected --method to be one of {', '.join(names())}, but got `{name}`")
    return _REGISTRY[name]


def apply_decisions(
    network: Network,
    decisions: Decisions,
    *,
    wide: Sequence[str] | None = None,
    round_to: int = 1,
) -> Decided:
    """Decide sites for good, in place, and let the methods tidy up behind that.

    Args:
        network: The network.
        decisions: What is decided, by site; sites that are left out stay as they are.
        wide: The sites whose readers get zeros in the place of units that are gone, as a recipe
            records them; none: worked out.
        round_to: See gatecli.network.surgery.decide.
    """
    if wide is None:
        done = surgery.decide(network, decisions, round_to)
    else:
        done = surgery.settle(network, decisions, wide, round_to)
    for name in set(network.gated_by.values()):
        get(name).tidy(network)
    network.recount()
    return done
