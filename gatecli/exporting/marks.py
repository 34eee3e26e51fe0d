"""The network in the form that is exported.

One function of the images, with marks at what need not be computed.

Every gated branch is computed, and not multiplied by its decision where the file's format can
branch instead: then the values around it are returned beside the logits, so that whoever writes the
file finds them there by name (see gatecli.exporting.onnx.if_branches).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli import methods
from gatecli.gates.decider import Decider
from gatecli.gates.exit import Exit
from gatecli.graph.ops import (
    is_add,
    is_cat,
    is_mask,
    is_pick,
    module_of,
    never_negative,
    relu_after,
)
from gatecli.graph.trace import compile_graph, copied, remove_dead
from gatecli.network import Network, surgery
from gatecli.network.costs import exits_before
from gatecli.traced.site import SiteDecision

__all__ = ["Branch", "Computation", "Leave", "Opened", "decided", "masked", "opened"]


@dataclass(frozen=True)
class Branch:
    """A part to compute only where `decision` says so; all are names of values.

    Else `result` is the `shortcut`, through a ReLU if `rectify`; without a shortcut it is zeros.
    """

    site: str
    decision: str
    result: str
    shortcut: str | None
    rectify: bool


@dataclass(frozen=True)
class Leave:
    """An exit.

    Where `decision` says so, `logits` are the result, and nothing behind it need be computed.
    """

    site: str
    decision: str
    logits: str


@dataclass
class Opened:
    """`module`: images (N, C, H, W) -> the values called `names`, the network's own end first.

    `gates`: the name of each gate's decision, by site.
    """

    module: nn.Module
    names: list[str]
    branches: list[Branch] = field(default_factory=list)
    leaves: list[Leave] = field(default_factory=list)
    gates: dict[str, str] = field(default_factory=dict)

    @property
    def dynamic(self) -> bool:
        """Whether anything is decided at run time in a way that branching can use."""
        return bool(self.branches or self.leaves)


class Computation(nn.Module):
    """A graph over a network's modules, as a module."""

    def __init__(self, network: Network, graph: fx.Graph) -> None:
        super().__init__()
        self.network, self.run = network, compile_graph(graph)
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.run(self.network.root, images)


def decided(network: Network) -> Network:
    """A copy in which gates that do not look at the images are decided.

    Their branches are plain or gone; and exits at which nobody leaves are gone.
    """
    copy = network.copy().cpu().eval()
    decisions: dict[str, SiteDecision] = {}
    for site, gate in copy.site_gates.items():
        if isinstance(gate, Exit):
            if bool(gate.threshold.isposinf().all()):
                decisions[site] = SiteDecision.of(1, [])
            continue
        runs = methods.get(copy.gated_by[site]).decided(copy, site, None)
        if runs is not None:
            kept = [unit for unit, flag in enumerate(runs) if flag]
            decisions[site] = SiteDecision.of(len(runs), kept)
    exits = copy.site_exits
    empty = [site for site, each in decisions.items() if not each.keep and site not in exits]
    stuck = surgery.why_not_removable(copy.traced, empty)
    able = {site: each for site, each in decisions.items() if site not in stuck}
    methods.apply_decisions(copy, able)
    return copy


def masked(network: Network, *, decisions: bool = False) -> Opened:
    """Everything is computed, for batches of any size.

    Masks and the choice among exits remain operations. `decisions`: further outputs, as of
    `opened`.
    """
    graph = copied(network.graph)
    output = next(node for node in graph.nodes if node.op == "output")
    final, found = output.args[0], dict[str, fx.Node]()
    exits = _exits(final)
    with graph.inserting_before(output):
        for site, z in _decisions(network, graph).items() if decisions else ():
            found[f"gate.{site}"] = graph.call_function(
                _where_reached, (z, *(exits[name] for name in exits_before(network.traced, site)))
            )
        if decisions and exits:
            found["exit"] = graph.call_function(_taken, tuple(exits.values()))
    output.args = ((final, *found.values()),) if found else (final,)
    return Opened(Computation(network, graph), ["logits", *found])


def opened(network: Network) -> Opened:
    """Single images: gates of one unit and exits become marks; other masks remain."""
    graph = copied(network.graph)
    names: dict[fx.Node, str] = {}
    output = next(node for node in graph.nodes if node.op == "output")
    gates = _decisions(network, graph)
    branches = [
        branch
        for node in list(graph.nodes)
        if is_mask(node) and (branch := _branch(network, graph, node, names)) is not None
    ]
    final: Any = output.args[0]
    leaves = [_leave(graph, site, pair, names) for site, pair in _exits(final).items()]
    final = final.args[0] if is_pick(final) else final
    decisions = {site: _named(names, z) for site, z in gates.items()}
    marks = [node for node in names if node.op != "placeholder"]
    output.args = ((final, *marks),)
    remove_dead(graph)
    return Opened(
        Computation(network, graph),
        ["logits", *(names[node] for node in marks)],
        branches,
        leaves,
        decisions,
    )


def _exits(final: Any) -> dict[str, fx.Node]:
    """The nodes that give an exit's logits and decisions, by site, in the order of the exits."""
    return (
        {str(pair.target).partition(".")[2]: pair for pair in final.args[1:]}
        if is_pick(final)
        else {}
    )


def _decisions(network: Network, graph: fx.Graph) -> dict[str, fx.Node]:
    """The nodes that decide about a site's units, by site."""
    found = {}
    for node in graph.nodes:
        gate = module_of(network, node)
        if isinstance(gate, Decider) and not isinstance(gate, Exit):
            found[gate.site] = node
    return found


def _named(names: dict[fx.Node, str], node: fx.Node) -> str:
    return names.setdefault(node, "images" if node.op == "placeholder" else f"mark{len(names)}")


def _branch(
    network: Network, graph: fx.Graph, masked: fx.Node, names: dict[fx.Node, str]
) -> Branch | None:
    """Take one mask out of the graph and name what is around it.

    None where the file cannot branch there.
    """
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    gate: Any = module_of(network, decision)
    around = None if gate is None or gate.units != 1 else _around(network, masked, value)
    if around is None:
        return None
    masked.replace_all_uses_with(value)
    graph.erase_node(masked)
    shortcut = around.shortcut
    return Branch(
        gate.site,
        _named(names, decision),
        _named(names, around.result),
        None if shortcut is None else _named(names, shortcut),
        around.rectify,
    )


@dataclass(frozen=True, kw_only=True)
class _Around:
    """What is around a mask, see `Branch`."""

    result: fx.Node
    shortcut: fx.Node | None = None
    rectify: bool = False


def _around(network: Network, masked: fx.Node, value: fx.Node) -> _Around | None:
    if all(is_cat(user) for user in masked.users):
        return _Around(result=value)
    add = next(iter(masked.users))
    if len(masked.users) != 1 or not is_add(add):
        return None
    shortcut: Any = next(arg for arg in add.args if arg is not masked)
    relu = relu_after(network, add)
    rectify = relu is not None and not never_negative(network, shortcut)
    return _Around(result=relu or add, shortcut=_bare(network, shortcut), rectify=rectify)


def _bare(network: Network, value: fx.Node) -> fx.Node:
    """The value itself, where layers that do nothing hand it on: exporters leave these out."""
    while isinstance(module_of(network, value), (nn.Identity, nn.Dropout)):
        (value,) = value.all_input_nodes
    return value


def _leave(graph: fx.Graph, site: str, pair: fx.Node, names: dict[fx.Node, str]) -> Leave:
    with graph.inserting_after(pair):
        decision = graph.call_function(operator.getitem, (pair, 1))
        early = graph.call_function(operator.getitem, (pair, 0))
    return Leave(site, _named(names, decision), _named(names, early))


def _taken(*exits: tuple[Tensor, Tensor]) -> Tensor:
    """The number of the first exit that each sample takes: (N,).

    From 0 on; where it takes none, how many exits there are.
    """
    taken = torch.full_like(exits[0][1].reshape(-1), len(exits), dtype=torch.int64)
    for number, (_, z) in reversed(list(enumerate(exits))):
        taken = torch.where(z.reshape(-1) > 0, number, taken)
    return taken


def _where_reached(z: Tensor, *exits: tuple[Tensor, Tensor]) -> Tensor:
    """Decisions z (N, units), 0 where a sample has left at one of these exits."""
    for _, left in exits:
        z = z * (1 - left)
    return z
