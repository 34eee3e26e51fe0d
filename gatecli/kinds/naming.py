"""Sites are named by the modules that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import fx, nn

from gatecli.graph.ops import module_of
from gatecli.traced.site import Site

__all__ = ["module_path", "with_unique_names"]


def module_path(node: fx.Node, branch: Iterable[fx.Node], root: nn.Module) -> str:
    """The module path that the branch's modules share, as `layer1.0`.

    Where they share none, the node's own.
    """
    paths = [str(part.target).split(".") for part in branch if module_of(root, part) is not None]
    if len(paths) == 1:
        return ".".join(paths[0])
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or (str(node.target) if node.op == "call_module" else node.name)


def with_unique_names(found: Sequence[Site]) -> dict[str, Site]:
    """Branches under one module, as a transformer block's two, are told apart by their order.

    `block#1`, `block#2`.
    """
    names = [site.name for site in found]
    result: dict[str, Site] = {}
    for index, site in enumerate(found):
        name = (
            site.name
            if names.count(site.name) == 1
            else f"{site.name}#{names[:index].count(site.name) + 1}"
        )
        result[name] = replace(site, name=name)
    return result
