"""Which branches each module of a network reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatecli.network import Network

__all__ = ["connections"]


def connections(network: Network) -> dict[str, Tensor]:
    """Which branches each module reads, by the name of its site in pictures.

    Of sites whose connections are gated alone; true or false, (readers, branches).
    """
    found = {}
    for site, gate in network.site_gates.items():
        wired: Any = gate
        if hasattr(wired, "connections"):
            found[site.removesuffix(".branches")] = wired.connections().cpu()
    return found
