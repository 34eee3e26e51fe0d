"""Simple block diagrams as SVG that takes the page's own colours."""

from __future__ import annotations

from html import escape

__all__ = ["Drawing"]

GATE, CLOSED = "#00897b", "#9e9e9e"
HEAD = (
    '<figure class="drawing"><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    ' width="{width}" role="img" aria-label="{title}" style="max-width: 100%; height: auto"'
    ' font-family="sans-serif" font-size="13" fill="none" stroke="currentColor">'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    ' orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor" stroke="none"/></marker></defs>'
)


class Drawing:
    """A diagram that is drawn piece by piece; all lengths are in pixels.

    Args:
        title: What it shows, for those who do not see it.
        width: Of the whole.
        height: Of the whole.
    """

    def __init__(self, title: str, width: int = 640, height: int = 200) -> None:
        self._title = title
        self._parts = [HEAD.format(width=width, height=height, title=escape(title))]

    def box(self, x: int, y: int, width: int, text: str, *, height: int = 34, of: str = "") -> None:
        """A rectangle with a text in it; `of` is `gate` (in colour) or `closed` (dashed grey)."""
        colour = {"gate": GATE, "closed": CLOSED}.get(of, "currentColor")
        dash = ' stroke-dasharray="5 4"' if of == "closed" else ""
        fill = f' fill="{GATE}" fill-opacity="0.15"' if of == "gate" else ""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" stroke="{colour}"'
            f"{dash}{fill}/>"
        )
        self.text(x + width // 2, y + height // 2 + 5, text, of=of)

    def text(self, x: int, y: int, text: str, *, of: str = "", anchor: str = "middle") -> None:
        """A line of text, its middle (or `start`, `end`) at x."""
        colour = {"gate": GATE, "closed": CLOSED}.get(of, "currentColor")
        self._parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" stroke="none">'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[int, int], of: str = "", tip: bool = True) -> None:
        """A line through points, with a tip at its end; `of` as for boxes."""
        colour = {"gate": GATE, "closed": CLOSED}.get(of, "currentColor")
        dash = ' stroke-dasharray="5 4"' if of else ""
        path = " ".join(f"{x},{y}" for x, y in points)
        end = ' marker-end="url(#tip)"' if tip else ""
        self._parts.append(f'<polyline points="{path}" stroke="{colour}"{dash}{end}/>')

    def circle(self, x: int, y: int, text: str) -> None:
        """A small circle with a sign in it, as of an addition."""
        self._parts.append(f'<circle cx="{x}" cy="{y}" r="12"/>')
        self.text(x, y + 5, text)

    def svg(self) -> str:
        """The whole, as a page holds it."""
        caption = f"<figcaption>{escape(self._title)}</figcaption>"
        return "".join([*self._parts, "</svg>", caption, "</figure>"])
