"""What a tracker is, and the registry of the services that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gatecli.errors import SettingError

__all__ = ["Service", "Told", "Tracker", "find", "listed", "local_folder", "needs", "register"]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a tracker is told of a run when it begins.

    Attributes:
        name: the run's, for people.
        config: how it was begun: plain values by name.
        known: what `Tracker.begin` said when the run began, where it is resumed; else None.
    """

    name: str
    config: Mapping[str, Any]
    known: str | None = None


class Tracker(ABC):
    """Shows one run. What it raises ends the showing, not the run."""

    @abstractmethod
    def begin(self, told: Told) -> str:
        """Begin to show a run, or go on with one that is resumed.

        Returns:
            What to know the run by, should it be resumed.

        Raises:
            Exception: it cannot; nothing has been trained yet.
        """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers of a step."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Hand over what is still here; the run has come to its end, or been stopped."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One thing that --track can name: NAME or NAME:OPERAND.

    Attributes:
        name: what stands before the colon.
        operand: a word for what may stand behind it.
        required: whether something must.
        track: makes a tracker from what stands behind the colon. Raises SettingError where a
            package is missing.
        folder: the local folder that a tracker writes to, by what stands behind the colon; None:
            somewhere else, perhaps on other machines.
    """

    name: str
    operand: str
    required: bool = False
    track: Callable[[str], Tracker]
    folder: Callable[[str], str | None]

    @property
    def spelling(self) -> str:
        """The service as help and errors show it: "wandb[:PROJECT]"."""
        operand = f":{self.operand}"
        return f"{self.name}{operand if self.required else f'[{operand}]'}"


_SERVICES: dict[str, Service] = {}


def register(service: Service) -> Service:
    """Offer a service to --track.

    Raises:
        ValueError: there is one of that name already.
    """
    if service.name in _SERVICES:
        raise ValueError(f"there is a service {service.name} of --track already")
    _SERVICES[service.name] = service
    return service


def listed() -> str:
    """All services in one phrase."""
    *others, last = (service.spelling for service in _SERVICES.values())
    return f"{', '.join(others)} or {last}"


def find(spec: str) -> tuple[Service, str]:
    """The service that --track names, and what stands behind the colon.

    Raises:
        SettingError: it is none.
    """
    name, _, where = spec.partition(":")
    service = _SERVICES.get(name)
    if service is None or (service.required and not where):
        raise SettingError(f"expected --track to be {listed()}, but got {spec!r}")
    return service, where


def local_folder(spec: str) -> str | None:
    """The local folder that a tracker writes to; None where it may be anywhere.

    Raises:
        SettingError: there is no such service.
    """
    service, where = find(spec)
    return service.folder(where)


def needs(service: str, package: str, extra: str) -> Any:
    """A service's package.

    Raises:
        SettingError: it cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise SettingError(
            f"--track {service} needs a package that is not installed ({error}): pip install"
            f" 'gatecli[{extra}]'"
        ) from error
