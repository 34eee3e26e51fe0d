"""What users call the nodes that stand in the way."""

from __future__ import annotations

from torch import fx

__all__ = ["is_own", "reader"]

OWN = {"gates": "the gate at", "exits": "the exit"}


def is_own(node: fx.Node) -> bool:
    """Whether a node calls a gate or an exit, and not a module of the network's own."""
    return node.op == "call_module" and str(node.target).partition(".")[0] in OWN


def reader(node: fx.Node) -> str:
    """A node as users know it: by its module or site, or by the module that it follows."""
    if node.op == "call_module":
        room, _, site = str(node.target).partition(".")
        return f"{OWN[room]} `{site}`" if room in OWN else f"`{node.target}`"
    if _is_part_of_its_reader(node):
        return reader(next(iter(node.users)))
    what = getattr(node.target, "__name__", str(node.target))
    before = _module_before(node)
    return f"`{what}`" if before is None else f"`{what}` behind {reader(before)}"


def _is_part_of_its_reader(node: fx.Node) -> bool:
    """Whether a node does a part of what the module behind it did: its padding, say."""
    place = getattr(node.target, "__module__", None) or ""
    return place.startswith("gatecli.graph.see_through") and len(node.users) == 1


def _module_before(node: fx.Node) -> fx.Node | None:
    """The nearest call of a module of the network's own among what a node is made from."""
    todo = list(node.all_input_nodes)
    seen = set(todo)
    for source in todo:
        if source.op == "call_module" and not is_own(source):
            return source
        new = [each for each in source.all_input_nodes if each not in seen]
        seen.update(new)
        todo += new
    return None
