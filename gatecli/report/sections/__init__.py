"""The sections of a report, in their order. A new one is a file here and a line below."""

from __future__ import annotations

from gatecli.report.sections import (
    classes,
    connections,
    exits,
    frontier,
    gates,
    history,
    plane,
    provenance,
    sites,
    summary,
    times,
    training,
)
from gatecli.report.sections.base import Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
    summary.PART,
    history.PART,
    sites.PART,
    frontier.PART,
    exits.PART,
    classes.PART,
    gates.PART,
    plane.PART,
    connections.PART,
    training.PART,
    times.PART,
    provenance.PART,
)
