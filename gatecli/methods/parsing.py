"""Settings as users and files say them, and as files record them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from gatecli.errors import SettingError
from gatecli.methods.base import Method
from gatecli.methods.settings import S, Settings, known
from gatecli.methods.values import plain, told

__all__ = ["parse_settings", "record_settings", "recorded_settings"]


def parse_settings(method: Method[S], given: Mapping[str, Any], base: S | None = None) -> S:
    """Check settings against the method's dataclass and return an instance of it.

    Args:
        method: whose settings these are.
        given: the settings by name; values may be the command line's words.
        base: settings to start from; structural ones may then not change.

    Raises:
        SettingError: It names the setting, what was expected and what came.
    """
    about = method.about
    mine = known(about.settings)
    start = about.settings() if base is None else base
    values = {}
    for name, value in given.items():
        if name not in mine:
            near = get_close_matches(name, mine, 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise SettingError(
                f"`{name}` is no setting of {about.name} (it has {', '.join(mine)}){hint}"
            )
        values[name] = mine[name].read(value)
        is_fixed = base is not None and mine[name].about["structural"]
        if is_fixed and values[name] != getattr(base, name):
            raise SettingError(
                f"`{name}` shapes the gates and cannot change after attach: attach again with --set"
                f" {name}={told(value)}"
            )
    result = replace(start, **values)
    method.objective.traits.price(result)  # it may not go with the loss
    return result


def recorded_settings(method: Method[S], stored: Mapping[str, Any]) -> S:
    """The settings that a checkpoint's recipe holds, in whatever spelling its version had.

    Those that its version did not know as it meant them. Raises SettingError.
    """
    later = {}
    for name, each in known(method.about.settings).items():
        meant = each.about["before"]
        if meant is not None and name not in stored:
            later[name] = meant(stored)
    return parse_settings(method, {**stored, **later})


def record_settings(settings: Settings) -> dict[str, Any]:
    """Settings as a recipe records them: every one, in JSON's own types."""
    return {each.name: plain(getattr(settings, each.name)) for each in fields(settings)}
