"""The last layer of a network under another name, found by what it is: the one that is left over.

All else fits a known network's body, and one linear layer remains, which reads what that body
gives. What remains in another form is for `head_forms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from gatecli.architectures.identify import Found
from gatecli.architectures.shapes import Shape
from gatecli.architectures.wanted import Wanted

__all__ = ["ROOT", "by_role"]

ROOT = "."  # before a part of a name: that of the whole network, not of any part
DEEPEST = 4  # parts before a body's names
MOST = 6  # layers that are tried


def by_role(shapes: Mapping[str, Shape], wanted: Wanted) -> tuple[Found, str] | None:
    """A known network whose head, and whose body, may have other names.

    Args:
        shapes: of all its tensors.
        wanted: which network may be found.

    Returns:
        The network, with `names` that spell it as the shapes do, and a note; None: none fits.
    """
    for layer in _last_layers(shapes):
        tensors = {name: shapes[name] for name in shapes if is_under(name, layer)}
        rest = {name: shapes[name] for name in shapes if name not in tensors}
        for body, inner in _bodies(rest):
            if body and is_under(layer, body):
                break  # the same without the prefix that all names have
            for head in wanted.heads():
                found = _fitting(inner, tensors, layer, head, wanted)
                if found is not None and (head, "") != (layer, body):
                    return _spelt(found, layer, head, body), _note(found, layer, head)
    return None


def _fitting(
    body: Mapping[str, Shape], tensors: Mapping[str, Shape], layer: str, head: str, wanted: Wanted
) -> Found | None:
    """The network with a body's tensors, and a layer's in the place of its head."""
    moved = {head + name[len(layer) :]: shape for name, shape in tensors.items()}
    return None if moved.keys() & body.keys() else wanted.fit({**body, **moved})


def _spelt(found: Found, layer: str, head: str, body: str) -> Found:
    """The network, its parts spelled as in the file."""
    names = dict(found.names)
    if body:
        names[ROOT] = body
    names[ROOT + head] = layer
    return replace(found, names=names)


def _note(found: Found, layer: str, head: str) -> str:
    return f"`{layer}` is taken for the last layer of {found.arch}, `{head}`"


def _last_layers(shapes: Mapping[str, Shape]) -> Iterator[str]:
    """The linear layers that may be a head: alone under their first part, or the last of all."""
    linear = [name.removesuffix(".weight") for name in shapes if _is_linear(name, shapes)]
    firsts: dict[str, set[str]] = {}
    for name in shapes:
        firsts.setdefault(name.partition(".")[0], set()).add(name.rpartition(".")[0])
    last = linear[-1:]
    alone = [layer for layer in linear if len(firsts[layer.partition(".")[0]]) == 1]
    yield from dict.fromkeys([*last, *reversed(alone[-MOST:])])


def _is_linear(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether this is the weight of a linear layer, or of a 1x1 convolution, with a bias."""
    shape = shapes[name]
    if not name.endswith(".weight") or len(shape) not in (2, 4) or set(shape[2:]) - {1}:
        return False
    return shapes.get(name.removesuffix("weight") + "bias") == shape[:1]


def _bodies(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, dict[str, Shape]]]:
    """The tensors as they are, and with each part of names that is common to all taken off."""
    path = ""
    tensors = dict(shapes)
    for _ in range(DEEPEST):
        yield path, tensors
        firsts = {name.partition(".")[0] for name in tensors}
        if len(firsts) != 1 or not all("." in name for name in tensors):
            return
        (first,) = firsts
        path = f"{path}.{first}" if path else first
        tensors = {name[len(first) + 1 :]: shape for name, shape in tensors.items()}


def is_under(name: str, path: str) -> bool:
    """Whether a tensor belongs to the module at a path."""
    return name.startswith(f"{path}.")
