"""A run shown by trackers: what one of them raises is said once, and the run goes on."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from gatecli import limits
from gatecli.checkpoint.atomic import replacing
from gatecli.errors import SettingError, reason
from gatecli.tracking.base import Told, Tracker, find
from gatecli.tracking.scalars import scalars
from gatecli.training.run import Run

__all__ = ["Shown", "opened", "shown"]

KNOWN = "trackers.json"  # in the run's folder: what each tracker knows the run by
LONGEST = 140  # characters of what a tracker raises


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A tracker with what the user typed for it."""

    spec: str
    tracker: Tracker


def opened(specs: Sequence[str]) -> list[Shown]:
    """The trackers that are asked for, each once.

    Raises:
        SettingError: one is unknown, or its package is missing.
    """
    found = []
    for spec in dict.fromkeys(specs):
        service, where = find(spec)
        found.append(Shown(spec=spec, tracker=service.track(where)))
    return found


@contextmanager
def shown(
    run: Run, trackers: Sequence[Shown], told: Told, say: Callable[[str], None], *, resumed: bool
) -> Iterator[None]:
    """Show what a run logs inside the block.

    Args:
        run: its log is listened to.
        trackers: who shows it.
        told: what they are told of the run.
        say: prints a line for people.
        resumed: whether the run has been begun before.

    Raises:
        SettingError: a tracker cannot begin; nothing has been trained yet.
    """
    known = _read(run) if resumed else {}
    listeners: list[_Listener] = []
    finished = False
    try:
        for each in trackers:
            listeners.append(_Listener(each, say))
            known[each.spec] = _begun(each, replace(told, known=known.get(each.spec)))
        if trackers:
            with replacing(run.folder / KNOWN) as temporary:
                temporary.write_text(json.dumps(known), encoding="utf-8")
        run.listeners += listeners
        yield
        finished = True
    finally:
        for listener in listeners:
            if listener in run.listeners:
                run.listeners.remove(listener)
            listener.close(finished=finished)


class _Listener:
    """Hands the lines of a log to a tracker until it fails."""

    def __init__(self, shown: Shown, say: Callable[[str], None]) -> None:
        self.shown = shown
        self.say = say
        self.failed = False

    def __call__(self, row: Mapping[str, Any]) -> None:
        if not self.failed:
            self._try(lambda: self.shown.tracker.log(row["step"], scalars(row)))

    def close(self, *, finished: bool) -> None:
        """Let the tracker hand over what it still has."""
        self._try(lambda: self.shown.tracker.close(finished=finished))

    def _try(self, act: Callable[[], None]) -> None:
        """Do something with the tracker; its first failure is said."""
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
                act()
        except Exception as error:  # a service's library may raise anything
            if not self.failed:
                self.say(
                    f"note: --track {self.shown.spec} has failed ({reason(error, LONGEST)}): the"
                    " run goes on without it, and its own log has everything"
                )
            self.failed = True


def _begun(shown: Shown, told: Told) -> str:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return shown.tracker.begin(told)
    except Exception as error:  # a service's library may raise anything
        raise SettingError(
            f"--track {shown.spec} cannot begin ({reason(error, LONGEST)}): mend that, or leave it"
            " out"
        ) from error


def _read(run: Run) -> dict[str, str]:
    """What the trackers know the run by; nothing where that cannot be read."""
    path = run.folder / KNOWN
    try:
        if path.stat().st_size > limits.CONFIG_BYTES:
            return {}
        said = json.loads(path.read_text(encoding="utf-8"))
        return {spec: each for spec, each in said.items() if isinstance(each, str)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
