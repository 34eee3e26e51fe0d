"""What a network's graph is turned into to be run: the masked form and the skipping one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gatecli.graph.ops import is_pick, pick
from gatecli.graph.trace import compile_graph
from gatecli.lowering.inplace import economical
from gatecli.network.lower import skipping
from gatecli.traced.traced import Traced

if TYPE_CHECKING:
    from gatecli.network.network import Network

__all__ = ["Form", "Forms", "watching_end"]

Form = Callable[..., Any]  # (root, images) -> logits


class Forms:
    """The forms of one graph, each made when first needed; another graph has others.

    Attributes:
        watch: Is shown in training what the final classifier says of all images, (N, K).
    """

    def __init__(self, net: Traced) -> None:
        self.net = net
        self.watch: Callable[[Tensor], None] | None = None

    @cached_property
    def masked(self) -> Form:
        """What training runs."""
        return compile_graph(economical(self.net.root, self.net.graph))

    @cached_property
    def unpicked(self) -> Form:
        """The same up to the final logits and the exits, of which `pick` makes the answer."""
        graph = economical(self.net.root, self.net.graph)
        (picked,) = (node for node in graph.nodes if is_pick(node))
        output = next(iter(picked.users))
        output.args = (tuple(picked.args),)
        graph.erase_node(picked)
        return compile_graph(graph)

    def in_training(self, x: Tensor) -> Any:
        """Logits (N, K) of images in training."""
        if self.watch is None:
            return self.masked(self.net.root, x)
        end, *exits = self.unpicked(self.net.root, x)
        self.watch(end)
        return pick(end, *exits)

    @cached_property
    def skipping(self) -> Form:
        """What evaluation runs."""
        form: Form = skipping(self.net)
        return form

    def at_exits(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What exits see of images, and the final logits; see Network.at_exits."""
        values = getattr(self.skipping, "values", None)
        if values is None:
            return {}, self.skipping(self.net.root, x)
        seen, logits = values(self.net.root, x)
        exits = [path.partition(".")[2] for path in getattr(self.skipping, "exits", ())]
        return dict(zip(exits, seen, strict=True)), logits


@contextmanager
def watching_end(network: Network, watch: Callable[[Tensor], None]) -> Iterator[None]:
    """Show what the final classifier says in training of all images, whoever leaves before.

    Args:
        network: Has its exits for as long as the block lasts.
        watch: Called with logits (N, K) at every forward; never, where there are no exits.
    """
    forms = network._forms
    forms.watch = watch if network.site_exits else None
    try:
        yield
    finally:
        forms.watch = None
