"""trackio[:PROJECT], Hugging Face's Trackio, in its own local folder."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from gatecli.tracking.base import Service, Told, Tracker, needs, register

__all__ = ["Trackio"]


class Trackio(Tracker):
    """A run of a project's. Trackio knows runs by their names, so each gets one of its own."""

    def __init__(self, project: str) -> None:
        self._library = needs("trackio", "trackio", "trackio")
        self.project = project or "gatecli"
        self._run: Any = None

    def begin(self, told: Told) -> str:
        name = told.known or f"{told.name}-{secrets.token_hex(4)}"
        self._run = self._library.init(
            project=self.project,
            name=name,
            config=dict(told.config),
            resume="never" if told.known is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        if self._run is not None:
            self._run.finish()


def _nowhere(where: str) -> str | None:
    return None


register(Service(name="trackio", operand="PROJECT", track=Trackio, folder=_nowhere))
