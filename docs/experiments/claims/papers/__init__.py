"""The papers, a file each; `PAPERS` has them by the name that they are asked for."""

from __future__ import annotations

from claims.claim import Paper
from claims.papers import (
    channel_gating,
    decision_gates,
    early_exits,
    gateconnect,
    gaternet,
    layer_gates,
)
from gatecli.errors import SettingError

__all__ = ["PAPERS", "papers"]

FILES = (layer_gates, early_exits, decision_gates, gaternet, channel_gating, gateconnect)
PAPERS: dict[str, Paper] = {file.PAPER.name: file.PAPER for file in FILES}


def papers(names: list[str]) -> list[Paper]:
    """The papers of these names; none: all.

    Raises:
        SettingError: There is no such paper.
    """
    for name in names:
        if name not in PAPERS:
            raise SettingError(
                f"expected --paper to be one of {', '.join(PAPERS)}, but got `{name}`"
            )
    return [PAPERS[name] for name in names or PAPERS]
