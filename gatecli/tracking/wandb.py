"""wandb[:PROJECT], Weights & Biases; its environment variables (WANDB_MODE, ...) hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatecli.tracking.base import Service, Told, Tracker, needs, register

__all__ = ["Wandb"]


class Wandb(Tracker):
    """A run of a project's."""

    def __init__(self, project: str) -> None:
        self._library = needs("wandb", "wandb", "wandb")
        self.project = project or "gatecli"
        self._run: Any = None

    def begin(self, told: Told) -> str:
        self._run = self._library.init(
            project=self.project,
            name=told.name,
            config=dict(told.config),
            id=told.known,
            resume=None if told.known is None else "allow",
            settings=self._library.Settings(console="off", silent=True),
        )
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # steps that a resumed run makes again are known there already, and left out by wandb
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if finished else 1)


def _nowhere(where: str) -> str | None:
    return None


register(Service(name="wandb", operand="PROJECT", track=Wandb, folder=_nowhere))
