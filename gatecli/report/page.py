"""The page: one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path

from gatecli.checkpoint.atomic import replacing
from gatecli.report.blocks import Missing, Section
from gatecli.report.material import Material
from gatecli.report.sections import PARTS
from gatecli.report.sections.base import made
from gatecli.words import printable

__all__ = ["Page", "compose", "write"]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page holds.

    Attributes:
        names: The checkpoints.
        sections: Those that have something to show.
        missing: What others would need: heading and need.
        notes: What must be known of the whole page.
        made: When, in UTC.
    """

    names: Sequence[str]
    sections: Sequence[Section]
    missing: Sequence[tuple[str, Missing]]
    notes: Sequence[str]
    made: str


def compose(materials: Sequence[Material]) -> Page:
    """Make the page of some checkpoints.

    Raises:
        CheckpointError: One records something that makes no sense.
    """
    sections = []
    missing: list[tuple[str, Missing]] = []
    for part in PARTS:
        section = made(part, materials)
        if section is None:
            continue
        if any(panel.blocks for panel in section.panels):
            sections.append(section)
            continue
        for panel in section.panels:
            if panel.missing is not None:
                missing.append((section.title, panel.missing))
    notes = dict.fromkeys(material.blind for material in materials if material.blind)
    return Page(
        names=[material.name for material in materials],
        sections=sections,
        missing=missing,
        notes=list(notes),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def write(page: Page, out: Path) -> int:
    """Write the page, all or nothing.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: It cannot be written.
    """
    written = rendered(page).encode("utf-8")
    with replacing(out) as temporary:
        temporary.write_bytes(written)
    return len(written)


def rendered(page: Page) -> str:
    """The page as HTML; all text in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("gatecli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    style = files("gatecli.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    # the style is gatecli's own
    return environment.get_template("page.html").render(page=page, style=Markup(style))


def _visible(value: object) -> object:
    """Text with whatever could turn or hide other text escaped; markup and numbers as they are."""
    return printable(value) if type(value) is str else value
