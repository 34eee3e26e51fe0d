"""gatecli demo"""
from __future__ import annotations
from typing import Any
from gatecli.cli.session import Session


def demo(session: Session) -> dict[str, Any]:
    """Demo."""
    return {}
