"""All kinds of sites: the one place that names them."""

from __future__ import annotations

from gatecli.errors import SettingError
from gatecli.kinds.base import Kind
from gatecli.kinds.block import BLOCK
from gatecli.kinds.branch import BRANCH
from gatecli.kinds.conv import CONV
from gatecli.kinds.exit import EXIT
from gatecli.kinds.filter import FILTER
from gatecli.kinds.head import HEAD
from gatecli.kinds.hidden import HIDDEN
from gatecli.kinds.layer import LAYER
from gatecli.traced.site import Site

__all__ = ["all_kinds", "get", "names", "of", "register", "unregister"]

_KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Make a kind known; its sites come after those of the kinds before it.

    Raises:
        ValueError: There is a kind of that name.
    """
    if kind.name in _KINDS:
        raise ValueError(f"kind `{kind.name}` is registered twice")
    _KINDS[kind.name] = kind


def unregister(name: str) -> None:
    """Forget a kind, as tests do that register one of their own."""
    del _KINDS[name]


def all_kinds() -> list[Kind]:
    """All kinds, in the order in which their sites are listed."""
    return list(_KINDS.values())


def names() -> list[str]:
    """The kinds' names, in that order."""
    return list(_KINDS)


def get(name: str) -> Kind:
    """The kind of that name.

    Raises:
        SettingError: There is none; the message lists those that there are.
    """
    if name not in _KINDS:
        raise SettingError(f"expected a kind to be one of {', '.join(_KINDS)}, but got `{name}`")
    return _KINDS[name]


def of(site: Site) -> Kind:
    """The kind of a site, as it is for sites of that role."""
    return get(site.kind).of(site)


for _kind in (BLOCK, LAYER, BRANCH, FILTER, EXIT, CONV, HIDDEN, HEAD):
    register(_kind)
