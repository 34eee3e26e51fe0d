"""The steps of a recipe in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatecli.methods.values import told
from gatecli.traced.recipe import Step

__all__ = ["changes_of", "settings_in_words"]

LONG = ("settings", "plan", "sites")  # settings too long to tell


def settings_in_words(step: Step) -> str:
    """A step's settings as the command line says them: `target_rate=0.6, epochs=4`.

    Raises:
        TypeError: They are no settings: the file is damaged.
        AttributeError: Likewise.
    """
    settings = {**step.settings, **step.settings.get("settings", {})}
    said = []
    for name, value in settings.items():
        if name not in LONG and value is not None:
            said.append(f"{name}={told(value)}")
    return ", ".join(said)


def changes_of(step: Step, attached: Step) -> dict[str, Any]:
    """The settings that a training was told, rather than had from before or from its own length.

    Args:
        step: The training.
        attached: Where the method that it trained was put in.
    """
    name = step.settings["method"]
    own = attached.settings["settings"] if attached.settings["method"] == name else {}
    suited = step.results.get("suited", {}).get(name, {})
    said: Mapping[str, Any] = step.settings["settings"]
    return {each: said[each] for each in said if each not in suited and said[each] != own.get(each)}
