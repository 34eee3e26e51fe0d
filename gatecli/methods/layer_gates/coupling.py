"""The setting `coupled`: filters that share an addition are gated as one site."""

from __future__ import annotations

from collections.abc import Sequence

from gatecli.errors import SettingError
from gatecli.kinds import registry
from gatecli.methods.base import Method
from gatecli.methods.settings import S
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["CoupledFilters"]


class CoupledFilters(Method[S]):
    """A method whose settings have a field `coupled`."""

    def ready(self, network: Network, settings: S) -> None:
        if not _asks(settings):
            return
        found = [kind.couple(network.traced) for kind in registry.all_kinds()]
        if not any(found):
            raise SettingError(
                "expected, for setting `coupled`, convolutions that are added up and read by layers"
                " that can lose their channels, but this network has none: leave it out"
            )

    def offers(self, network: Network, settings: S, kinds: Sequence[str] = ()) -> list[Site]:
        asked = kinds or self.about.default_kinds
        able = [kind.name for kind in registry.all_kinds() if kind.couples]
        if _asks(settings) and not set(able) & set(asked):
            raise SettingError(
                f"expected --kind {' or '.join(able)} with setting `coupled`, but the kinds to gate"
                f" are {', '.join(asked)}"
            )
        return super().offers(network, settings, kinds)


def _asks(settings: S) -> bool:
    """Whether the settings ask for it."""
    return bool(getattr(settings, "coupled", False))
