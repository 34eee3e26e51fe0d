"""Change what a network is made of: what attach puts in, what prune takes out."""

from __future__ import annotations

from gatecli.surgery.insert import insert_connections, insert_exit, insert_gate, place_exits
from gatecli.surgery.remove import (
    end_at_exit,
    fix_connections,
    keep_units,
    remove_branches,
    remove_exit,
    remove_gate,
    why_not_removable,
    why_stays_wide,
)

__all__ = [
    "end_at_exit",
    "fix_connections",
    "insert_connections",
    "insert_exit",
    "insert_gate",
    "keep_units",
    "place_exits",
    "remove_branches",
    "remove_exit",
    "remove_gate",
    "why_not_removable",
    "why_stays_wide",
]
