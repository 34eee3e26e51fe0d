"""Lower the graph of a gated network to one that skips.

The graph says what the network *means*: every branch computed, then multiplied by its gate's
decision. That is what training runs. For evaluation each kind of site puts an executor in, which
computes a branch only for the samples whose gate is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gatecli.graph.ops import decided_by, is_add, is_mask, module_of
from gatecli.graph.trace import compile_graph
from gatecli.kinds import registry
from gatecli.lowering.context import LOWERED, Lowering
from gatecli.lowering.inplace import economical, let_write
from gatecli.lowering.narrowed import lower_addition
from gatecli.traced.traced import Traced

__all__ = ["LOWERED", "lower", "lower_whole", "skipping", "stages_of"]

Form = Callable[..., Any]  # (root, images) -> what the network returns


@torch.compiler.disable  # type: ignore[untyped-decorator]
def skipping(net: Traced) -> Form:
    """What evaluation runs; a kind may cut it into stages.

    torch.compile is to see what is made here, not how.
    """
    graph = lower(net)
    return stages_of(graph) or compile_graph(graph)


def stages_of(lowered: fx.Graph) -> Form | None:
    """A lowered graph cut as a kind of site asks for; None where none does."""
    for kind in registry.all_kinds():
        form = kind.finish(lowered)
        if form is not None:
            return form
    return None


def lower(net: Traced) -> fx.Graph:
    """A copy of the graph that skips; masks that no executor fits stay, and save nothing.

    The executors become children of the network's root.
    """
    low = Lowering(net, economical(net.root, net.graph))
    kinds = registry.all_kinds()
    for kind in kinds:
        kind.prepare(low)
    for node in list(low.graph.nodes):
        taken = any(kind.lower(low, node) for kind in kinds)
        if not taken and is_add(node):
            lower_addition(low, node)
    let_write(low.root, low.graph)
    low.finish()
    return low.graph


def lower_whole(net: Traced) -> fx.Graph:
    """The same, but only what has a single gate is skipped."""
    low = Lowering(net, economical(net.root, net.graph))
    kinds = registry.all_kinds()
    for node in list(low.graph.nodes):
        if is_mask(node) and getattr(module_of(low.root, decided_by(node)), "units", 0) == 1:
            any(kind.lower(low, node) for kind in kinds)
    return low.graph
