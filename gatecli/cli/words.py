"""Write what shells complete, from the registries: `python -m gatecli.cli.words`."""

from __future__ import annotations

import json
from typing import Any

from gatecli.cli.completion import SETTING, WORDS

__all__ = ["text", "words"]


def words() -> dict[str, Any]:
    """The words by the parameter that takes them; settings by method."""
    from gatecli import methods
    from gatecli.data.forms.base import SPLITS, spellings
    from gatecli.exporting.registry import registered
    from gatecli.kinds import registry as kinds
    from gatecli.methods.settings import known
    from gatecli.runtimes import registry as runtimes
    from gatecli.stages.evaluate import ALL_STRATEGIES
    from gatecli.traced.images import INTERPOLATIONS, ORDERS
    from gatecli.training.options import CHOICES

    settings = {}
    for name in methods.names():
        settings[name] = sorted(known(methods.get(name).about.settings))
    forms = [each.partition(":") for each in spellings()]
    return {
        "method": methods.names(),
        "train": methods.names(),
        "name": methods.names(),
        "kind": kinds.names(),
        "runtime": runtimes.names(),
        "format": [each.name for each in registered()],
        "data": [kind + colon for kind, colon, _ in forms if "." not in kind],
        "split": list(SPLITS),
        "strategy": list(ALL_STRATEGIES),
        "device": ["auto", "cpu", "cuda", "mps"],
        "interpolation": list(INTERPOLATIONS),
        "class_order": list(ORDERS),
        **{name: list(choices) for name, choices in CHOICES.items()},
        SETTING: settings,
    }


def text() -> str:
    """The file's text."""
    lines = [f"{json.dumps(name)}: {json.dumps(said)}" for name, said in words().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    WORDS.write_text(text(), encoding="utf-8")
