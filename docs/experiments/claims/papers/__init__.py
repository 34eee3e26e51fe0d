"""The papers, a file each; `PAPERS` has them by the name that they are asked for."""

from __future__ import annotations

from claims.claim import Paper
from claims.papers import layer_gates
from gatecli.errors import SettingError

__all__ = ["PAPERS", "papers"]

PAPERS: dict[str, Paper] = {each.name: each for each in (layer_gates.PAPER,)}


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
