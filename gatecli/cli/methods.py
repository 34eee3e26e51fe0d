"""gatecli methods: what gating methods there are, and their settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.render import table
from gatecli.cli.session import Session
from gatecli.cli.text import show

if TYPE_CHECKING:
    from gatecli.methods import Method

__all__ = ["methods"]


def methods(
    session: Session,
    name: Annotated[Optional[str], typer.Argument(help="A method; none: all of them.")] = None,
) -> dict[str, Any]:
    """Explain the gating methods and their settings, with defaults and papers."""
    from gatecli import methods as registry

    names = [name] if name else registry.names()
    described = [_describe(registry.get(each)) for each in names]
    if not session.json_:
        for method in described:
            _print(session, method)
    return {"methods": described}


def _describe(method: Method[Any]) -> dict[str, Any]:
    """A method as the JSON has it."""
    from gatecli.methods.settings import known
    from gatecli.methods.values import plain

    settings = []
    for each in known(method.about.settings).values():
        settings.append(
            {
                "name": each.name,
                "type": each.hint,
                "takes": each.words,
                "default": plain(each.default),
                "help": each.about["help"],
                "choices": each.choices,
            }
        )
    about = method.about
    return {
        "name": about.name,
        "summary": about.summary,
        "needs": about.needs,
        "kinds": about.kinds(),
        "default_kinds": list(about.default_kinds),
        "paper": about.paper,
        "settings": settings,
    }


def _kinds(method: dict[str, Any]) -> str:
    """The kinds of sites that a method can gate, and which by default."""
    usual = ", ".join(method["default_kinds"])
    others = [kind for kind in method["kinds"] if kind not in method["default_kinds"]]
    return f"{usual}; with --kind also {', '.join(others)}" if others else usual


def _print(session: Session, method: dict[str, Any]) -> None:
    from gatecli.methods.values import told

    show("")
    show(f"{method['name']}: {method['summary']}")
    show(f"  needs {method['needs']}")
    show(f"  gates {_kinds(method)}")
    show(f"  {method['paper']}")
    rows = []
    for each in method["settings"]:
        rows.append((each["name"], each["takes"], told(each["default"]), each["help"]))
    table(session, "", ("<--set", "<takes", "<default", "<meaning"), rows)
