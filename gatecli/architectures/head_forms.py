"""A known network's body with a head of another form, so that an error can say what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gatecli.architectures.comparison import SPELLINGS, Spelt, canonical, compare
from gatecli.architectures.heads import is_under
from gatecli.architectures.shapes import COUNTER, Shape
from gatecli.architectures.table import Row
from gatecli.architectures.wanted import Wanted, has_head

__all__ = ["other_form"]

MOST = 12  # parts under which a body is looked for


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A known body, and what a file has in the place of its head."""

    row: Row
    head: str
    extra: dict[str, Shape]
    size: int


def other_form(shapes: Mapping[str, Shape], wanted: Wanted) -> str | None:
    """What to say where a known body has a head of another form; None: no body is known."""
    if wanted.is_users_own:
        return None
    firsts = dict.fromkeys(name.partition(".")[0] for name in shapes if "." in name)
    best: _Match | None = None
    for body in ["", *list(firsts)[:MOST]]:
        inner, outer = _parted(shapes, body)
        spelt = {family: canonical(inner, family) for family in SPELLINGS}
        for row in wanted.known(shapes):
            match = _matched(row, spelt[row.family], outer, wanted)
            if match is not None and (best is None or match.size > best.size):
                best = match
    return None if best is None or _is_own(best) else _described(best)


def _parted(shapes: Mapping[str, Shape], body: str) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """What is under a part, by its name there, and what is not; counters are left out."""
    inner, outer = {}, {}
    for name, shape in shapes.items():
        if name.endswith(COUNTER):
            continue
        if not body or is_under(name, body):
            inner[name[len(body) + 1 :] if body else name] = shape
        else:
            outer[name] = shape
    return inner, outer


def _matched(row: Row, spelt: Spelt, outer: Mapping[str, Shape], wanted: Wanted) -> _Match | None:
    """What is left where all of a network but its head is there; None where it is not."""
    own = spelt[0]
    head = next((head for head in wanted.heads() if has_head(row, head)), None)
    if head is None or len(own) < len(row.tensors) - 2:
        return None
    body = {name: shape for name, shape in row.tensors.items() if not is_under(name, head)}
    if not body.keys() <= own.keys() or not _fits(body, own):
        return None
    extra = {name: shape for name, shape in own.items() if name not in body}
    if _has_more_layers(extra, body, head):
        return None
    return _Match(row=row, head=head, extra={**extra, **outer}, size=len(body))


def _fits(body: Mapping[str, Shape], own: Mapping[str, Shape]) -> bool:
    return not compare(body, {name: own[name] for name in body}).differing


def _has_more_layers(extra: Mapping[str, Shape], body: Mapping[str, Shape], head: str) -> bool:
    """Whether what is left lies within the body's own parts: it is another body then."""
    firsts = {name.partition(".")[0] for name in body} - {head.partition(".")[0]}
    return any(name.partition(".")[0] in firsts for name in extra)


def _is_own(match: _Match) -> bool:
    """Whether the head is the network's own, but for a count."""
    head = {n: shape[1:] for n, shape in match.row.tensors.items() if is_under(n, match.head)}
    return head == {name: shape[1:] for name, shape in match.extra.items()}


def _described(match: _Match) -> str:
    own = [name for name in match.extra if is_under(name, match.head)]
    rest = [f"`{name}`" for name in match.extra if name not in own]
    if rest and _fits_head(match, own):
        return (
            f"all of {match.row.arch} is there, but {', '.join(rest[:3])} beside it looks like a"
            " part of the network too: name the network with --arch package.module:callable"
        )
    return (
        f"the body is that of {match.row.arch}, but {_form(match)}, where one linear layer is"
        " expected: name the network with --arch package.module:callable"
    )


def _fits_head(match: _Match, own: list[str]) -> bool:
    """Whether a file has the network's own head, too."""
    head = {n: shape for n, shape in match.row.tensors.items() if is_under(n, match.head)}
    mine = {name: match.extra[name] for name in own}
    return head.keys() == mine.keys() and not compare(head, mine).differing


def _form(match: _Match) -> str:
    """What a file has in the place of a head."""
    layers = [name.rpartition(".")[0] for name, shape in match.extra.items() if len(shape) > 1]
    if not layers:
        return "it has no head"
    listed = ", ".join(f"`{layer}`" for layer in layers[:4])
    if len(layers) > 1:
        return f"its head has {len(layers)} layers ({listed}{', ...' if layers[4:] else ''})"
    return _one_layer(match, layers[0])


def _one_layer(match: _Match, layer: str) -> str:
    """What is odd about a head with one layer of weights."""
    shape = next(shape for shape in match.extra.values() if len(shape) > 1)
    width = match.row.tensors[f"{match.head}.weight"][1]
    if len(shape) == 2 and shape[1] != width:
        return f"its head `{layer}` reads {shape[1]} values of the {width} that the body gives"
    if f"{layer}.bias" not in match.extra:
        return f"its head `{layer}` has no bias (a cosine head, or a layer with bias=False)"
    others = sorted({name.rpartition(".")[0] for name in match.extra} - {layer})
    listed = ", ".join(f"`{other}`" for other in others[:3])
    return f"its head has {listed} beside `{layer}`" if others else f"its head is `{layer}`"
