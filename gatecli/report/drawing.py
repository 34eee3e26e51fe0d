"""Matplotlib's drawings as elements of a page.

Text stays text. Lines and letters take the colour of the page's text, so that they can be read in
the dark too, and every name that an element has is the drawing's own, as a page holds many.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

from gatecli.errors import SettingError
from gatecli.report.blocks import Figure
from gatecli.words import printable

__all__ = ["COLORS", "Picture", "draw", "require_matplotlib"]

Picture = Callable[[Any], None]  # draws on matplotlib's axes
INK = "#010203"  # drawn instead of the page's text colour, whatever that is
# Drawn instead of the page's own colours, which differ in the dark; by their names in page.css.
COLORS = {"on": "#010204", "image": "#010205", "gone": "#010206", "second": "#010207"}
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of classes are no formulas
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.framealpha": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.color": INK,
    "hatch.linewidth": 0.5,
}
NAME = re.compile(r'\bid="([^"]*)"')
USED = re.compile(r'(?:xlink:href="#|url\(#)([^")]*)')


def require_matplotlib() -> None:
    """Raise SettingError unless matplotlib and jinja2 are installed."""
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        raise SettingError(f"a report needs {error.name}: pip install 'gatecli[report]'") from error
    del jinja2, matplotlib


def draw(
    key: str,
    picture: Picture,
    *,
    title: str,
    description: str,
    size: tuple[float, float] = (9, 4),
    foot: str = "",
) -> Figure:
    """Draw a figure.

    Args:
        key: A name that no other figure of the page has.
        picture: What draws it.
        title: What it shows.
        description: What is to be seen in it.
        size: Width and height in inches.
        foot: What must be known to read it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style: Any = {**STYLE, "svg.hashsalt": key}
    with matplotlib.rc_context(style):
        figure = Canvas(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        picture(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = _element(written.getvalue(), key, (title, description), width=size[0])
    return Figure(title=title, description=description, svg=svg, foot=foot)


def _element(text: str, key: str, told: tuple[str, str], *, width: float) -> str:
    """An SVG file as an element of the page whose names begin with `key`.

    Its title and description are `told`.
    """
    title, about = (html.escape(printable(words)) for words in told)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _renamed(text, key)
    text = text.replace(INK, "currentColor")
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None  # matplotlib always writes one
    spoken = f'<title id="{key}-title">{title}</title><desc id="{key}-about">{about}</desc>'
    return (
        f'<svg {view[0]} style="min-width: {4.2 * width:.0f}rem" role="img"'
        f' aria-labelledby="{key}-title" aria-describedby="{key}-about">{spoken}{rest.strip()}'
    )


def _renamed(text: str, key: str) -> str:
    """The names that something refers to begin with `key`; the others go."""
    used = set(USED.findall(text))

    def renamed(found: re.Match[str]) -> str:
        return f'id="{key}-{found[1]}"' if found[1] in used else ""

    text = NAME.sub(renamed, text)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{key}-", text)
