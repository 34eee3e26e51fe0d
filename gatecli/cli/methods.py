"""gatecli methods: what gating methods there are, and their settings."""

from __future__ import annotations

from dataclasses import fields
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


def _describe(method: Method) -> dict[str, Any]:
    """A method as the JSON has it."""
    settings = []
    for field in fields(method.settings):
        settings.append(
            {
                "name": field.name,
                "type": str(field.type),
                "default": field.default,
                "help": field.metadata["help"],
                "choices": list(field.metadata["choices"]),
            }
        )
    return {
        "name": method.name,
        "summary": method.summary,
        "needs": method.needs,
        "kinds": method.kinds(),
        "default_kinds": list(method.default_kinds),
        "paper": method.paper,
        "settings": settings,
    }


def _kinds(method: dict[str, Any]) -> str:
    """The kinds of sites that a method can gate, and which by default."""
    usual = ", ".join(method["default_kinds"])
    others = [kind for kind in method["kinds"] if kind not in method["default_kinds"]]
    return f"{usual}; with --kind also {', '.join(others)}" if others else usual


def _print(session: Session, method: dict[str, Any]) -> None:
    show("")
    show(f"{method['name']}: {method['summary']}")
    show(f"  needs {method['needs']}")
    show(f"  gates {_kinds(method)}")
    show(f"  {method['paper']}")
    rows = []
    for setting in method["settings"]:
        default = "none" if setting["default"] is None else setting["default"]
        rows.append((setting["name"], default, setting["help"]))
    table(session, "", ("<--set", "<default", "<meaning"), rows)
