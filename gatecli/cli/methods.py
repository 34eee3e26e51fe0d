"""gatecli methods"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Optional

import typer

from gatecli.cli.render import table
from gatecli.cli.session import Session
from gatecli.cli.text import show


def methods(
    session: Session,
    name: Annotated[Optional[str], typer.Argument(help="A method; none: all of them.")] = None,
) -> dict[str, Any]:
    """Explain the gating methods and their settings, with defaults and papers."""
    from gatecli import methods as registry

    chosen = [registry.get(name)] if name else [registry.get(each) for each in registry.names()]
    described: list[dict[str, Any]] = [
        {
            "name": m.name,
            "summary": m.summary,
            "needs": m.needs,
            "paper": m.paper,
            "settings": [
                {
                    "name": f.name,
                    "type": str(f.type),
                    "default": f.default,
                    "help": f.metadata["help"],
                    "choices": list(f.metadata["choices"]),
                }
                for f in fields(m.settings)
            ],
        }
        for m in chosen
    ]
    if not session.json_:
        for m in described:
            for line in (
                "",
                f"{m['name']}: {m['summary']}",
                f"  needs {m['needs']}",
                f"  {m['paper']}",
            ):
                show(line)
            rows = [
                (s["name"], "none" if s["default"] is None else s["default"], s["help"])
                for s in m["settings"]
            ]
            table(session, "", ("<--set", "<default", "<meaning"), rows)
    return {"methods": described}
