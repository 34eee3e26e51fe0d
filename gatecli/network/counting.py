"""Count what the nodes of a network cost, and read from their shapes."""

from __future__ import annotations

from typing import Any

from torch import fx

from gatecli.errors import ArchitectureError, first_line
from gatecli.graph.macs import count_nodes
from gatecli.graph.ops import is_pick
from gatecli.kinds import registry
from gatecli.traced.recipe import InputSpec
from gatecli.traced.traced import Traced

__all__ = ["classes", "costs_need_values", "count", "uncounted"]


def count(net: Traced, images: InputSpec) -> None:
    """Count every node's MACs for one image.

    Raises:
        ArchitectureError: The network does not take such images.
    """
    image = (images.channels, *images.size)
    try:
        net.costs = count_nodes(net.root, net.graph, image)
        for kind in registry.all_kinds():
            kind.recount(net)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise ArchitectureError(
            f"the network does not take images of {image[0]} x {image[1]} x {image[2]}"
            f" ({first_line(error)}); `--input-size` says how it was trained"
        ) from error


def costs_need_values(net: Traced) -> bool:
    """Whether what was counted without the tensors' values has to be counted again with them."""
    return any(kind.costs_need_values(net) for kind in registry.all_kinds())


def uncounted(net: Traced) -> list[str]:
    """What works with weights in a way that the counter does not know; see Network.uncounted."""
    unknown = [node for node in net.graph.nodes if net.costs[node.name].unknown]
    return [str(node.target) if node.op == "call_module" else node.name for node in unknown]


def classes(net: Traced) -> int:
    """How many logits the network returns.

    Raises:
        ArchitectureError: It returns something else.
    """
    output = next(node for node in net.graph.nodes if node.op == "output")
    returned: Any = output.args[0]
    if isinstance(returned, fx.Node) and is_pick(returned):
        returned = returned.args[0]
    shape = net.costs[returned.name].shape if isinstance(returned, fx.Node) else None
    if shape is None or len(shape) != 2:
        raise ArchitectureError(
            "expected the network to return logits (N, classes), but it returns"
            f" {shape or 'something else'}"
        )
    return shape[1]
