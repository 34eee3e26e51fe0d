"""The steps of a recipe in words."""

from __future__ import annotations

from gatecli.methods.values import told
from gatecli.traced.recipe import Step

__all__ = ["settings_in_words"]

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
