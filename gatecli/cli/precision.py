"""The option --precision of commands that run a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gatecli.cli.session import Session
from gatecli.runtimes.base import PRECISIONS
from gatecli.runtimes.machine import slow_precision

if TYPE_CHECKING:
    from gatecli.network import Network

__all__ = ["Precision", "run_in", "say_if_slow"]

Precision = Annotated[
    str,
    typer.Option(
        "--precision", help=f"{' or '.join(PRECISIONS)}: what the weights are while it runs."
    ),
]


def run_in(session: Session, network: Network, precision: str) -> None:
    """Let a network run in a precision, and say before if this machine is slow at it.

    Raises:
        SettingError: There is no such precision.
    """
    from gatecli.network.precision import in_precision

    in_precision(network, precision)
    say_if_slow(session, precision, network.device.type)


def say_if_slow(session: Session, precision: str, device: str = "cpu") -> None:
    """Say that this machine is slow at a precision, before it is used, where it is so."""
    slow = slow_precision(precision, device)
    if slow:
        session.say(f"note: {slow}")
