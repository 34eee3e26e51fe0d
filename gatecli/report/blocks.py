"""What a page is made of: sections of tables, figures, pictures and sentences. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = ["Block", "Figure", "Gallery", "Missing", "Panel", "Picture", "Section", "Table", "Text"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        columns: Their names; those that begin with `<` are text, with `<<` long text, the others
            numbers.
        rows: A cell a column; the first one names the row.
        foot: What must be known to read it.
        closed: Whether it is shown only on request, as the numbers of a figure are.
    """

    form: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: str = ""
    closed: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing.

    Attributes:
        title: What it shows.
        description: What is to be seen in it, for who does not see it.
        svg: The drawing, an element of HTML.
        foot: What must be known to read it.
    """

    form: ClassVar[str] = "figure"
    title: str
    description: str
    svg: str
    foot: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of a data set.

    Attributes:
        source: A `data:` address that holds it.
        alternative: What it is, for who does not see it.
        label: What stands below it.
        right: Whether the network's answer is right.
    """

    source: str
    alternative: str
    label: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images side by side."""

    form: ClassVar[str] = "gallery"
    caption: str
    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A sentence."""

    form: ClassVar[str] = "text"
    words: str


Block = Table | Figure | Gallery | Text


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What a section would need.

    Attributes:
        words: What there is not.
        command: What would make it; empty where nothing would.
    """

    words: str
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What a section has of one checkpoint, or of all together.

    Attributes:
        name: The checkpoint; empty where the panel is about all.
        blocks: What it shows.
        missing: What it lacks, where it shows nothing.
    """

    name: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: Missing | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its name in addresses, as `#exits`.
        title: Its heading.
        about: How to read it, in a sentence.
        panels: One, or one a checkpoint.
    """

    key: str
    title: str
    about: str
    panels: Sequence[Panel]
