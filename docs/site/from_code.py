"""Parts of pages that are made from the code: options, settings, functions, JSON objects."""

from __future__ import annotations

from claims_page import claims
from command_line import command_line
from figures import FIGURES
from json_objects import JSON_OBJECTS
from tables import plain, table

import gatecli
from gatecli import methods
from gatecli.kinds import registry as kinds
from gatecli.methods.settings import Known, known
from gatecli.methods.values import told

__all__ = ["PARTS"]

FIELDS = (
    "    options: {merge_init_into_class: true}"  # each with its type, also where none is explained
)
NONE = "-"


def card(method: str) -> str:
    """What a method gates and needs, and its paper."""
    about = methods.get(method).about
    usual = ", ".join(about.default_kinds)
    others = ", ".join(kind for kind in about.kinds() if kind not in about.default_kinds)
    rows = (
        ("what it does", plain(about.summary)),
        ("needs", plain(about.needs)),
        ("gates by default", usual),
        ("with `--kind` also", others or NONE),
        ("paper", about.paper),
    )
    return table((f"`{method}`", ""), rows)


def settings(method: str) -> str:
    """A method's settings."""
    rows = [_setting(each) for each in known(methods.get(method).about.settings).values()]
    return table(("`--set`", "takes", "default", "meaning"), rows)


def _setting(known: Known) -> tuple[str, ...]:
    fixed = " (fixed once attached)" if known.about["structural"] else ""
    meaning = f"{plain(known.about['help'])}{fixed}"
    return f"`{known.name}`", f"`{known.words}`", f"`{told(known.default)}`", meaning


def figure(method: str) -> str:
    """A drawing of where its gates stand."""
    return FIGURES[method]().svg()


def meetings() -> str:
    """Which method gates which kind: its paper's, or with --kind."""
    columns = ("", *kinds.names())
    rows = []
    for name in methods.names():
        about = methods.get(name).about
        able, usual = about.kinds(), about.default_kinds
        cells = [
            "**default**" if kind in usual else "yes" if kind in able else NONE
            for kind in kinds.names()
        ]
        rows.append((f"[{name}]({name}.md)", *cells))
    return table(columns, rows)


def functions() -> str:
    """What `import gatecli` gives, for mkdocstrings."""
    names = sorted(gatecli.__all__, key=lambda name: name[0].isupper())  # functions first
    return "\n".join(f"::: gatecli.{name}\n" for name in names)


def json_objects() -> str:
    """The data classes behind the JSON, for mkdocstrings."""
    lines, last = [], None
    for command, module, names in JSON_OBJECTS:
        if command != last:
            lines += [f"## In the JSON of {command}", ""]
        last = command
        lines += [f"::: {module}.{name}\n{FIELDS}\n" for name in names]
    return "\n".join(lines)


# By the word behind `<!-- generated: ` in a page; what follows it is the arguments.
PARTS = {
    "command-line": command_line,
    "card": card,
    "settings": settings,
    "figure": figure,
    "claims": claims,
    "meetings": meetings,
    "functions": functions,
    "json-objects": json_objects,
}
