"""A graph that is being lowered, and the module that holds its executors."""

from __future__ import annotations

from torch import fx, nn

from gatecli.gates.decider import Decider
from gatecli.graph.ops import decided_by, is_mask, module_of
from gatecli.graph.trace import remove_dead
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["LOWERED", "Lowering"]

# The module that holds the executors; they have no tensors, so no file ever sees them.
LOWERED = "_lowered"


class Lowering:
    """A copy of a network's graph in which executors take the place of what they skip.

    Attributes:
        net: The network.
        root: Its modules; executors are added to them.
        graph: The copy.
    """

    def __init__(self, net: Traced, graph: fx.Graph) -> None:
        self.net = net
        self.root = net.root
        self.graph = graph
        self._holder = nn.ModuleDict()
        self.root.add_module(LOWERED, self._holder)

    def replace(self, last: fx.Node, executor: nn.Module, inputs: tuple[fx.Node, ...]) -> fx.Node:
        """Let an executor give what `last` gave; returns its node."""
        number = len(self._holder)
        self._holder[str(number)] = executor
        with self.graph.inserting_before(last):
            node = self.graph.call_module(f"{LOWERED}.{number}", inputs)
        last.replace_all_uses_with(node)
        remove_dead(self.graph)
        return node

    def gate_of(self, masked: fx.Node) -> Decider | None:
        """The gate that decides a mask; None where the node is no mask."""
        if not is_mask(masked):
            return None
        gate = module_of(self.root, decided_by(masked))
        return gate if isinstance(gate, Decider) else None

    def site_of(self, masked: fx.Node) -> Site | None:
        """The site whose mask a node is; None where it is none."""
        gate = self.gate_of(masked)
        return None if gate is None else self.net.sites.get(gate.site)

    def finish(self) -> None:
        """Forget the holder where nothing was lowered."""
        if not len(self._holder):
            del self.root._modules[LOWERED]
