"""What all methods have in common that let images leave early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from gatecli.kinds import registry
from gatecli.kinds.base import EXIT
from gatecli.methods.base import About, Method
from gatecli.methods.settings import Settings, setting
from gatecli.network import Network

__all__ = ["AboutExits", "E", "ExitMethod", "ExitSettings"]


@dataclass(frozen=True)
class ExitSettings(Settings):
    """Settings of all methods that put exits in."""

    after: tuple[str, ...] | None = setting(
        None,
        "blocks, layers or modules after which to put exits, with commas between; none: the end of"
        " each stage but the last",
        structural=True,
    )


E = TypeVar("E", bound=ExitSettings)


@dataclass(frozen=True, kw_only=True)
class AboutExits(About[E]):
    """The card of a method that puts exits in."""

    needs: str = (
        "stages that end with a change of resolution (or say where with --set after=SITE,SITE)"
    )
    requires: frozenset[str] = frozenset({EXIT})
    default_kinds: tuple[str, ...] = ("exit",)


class ExitMethod(Method[E]):
    """A way of leaving early: exits at the ends of stages, or where the setting `after` says."""

    def ready(self, network: Network, settings: E) -> None:
        if settings.after is None:
            return
        for kind in self.about.default_kinds:
            registry.get(kind).place(network.traced, settings.after)
        network.recount()
