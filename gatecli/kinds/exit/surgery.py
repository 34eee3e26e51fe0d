"""Put exits into a graph, and take them out."""

from __future__ import annotations

from torch import fx, nn

from gatecli.graph.edit import place
from gatecli.graph.ops import is_pick, pick
from gatecli.graph.trace import remove_dead
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["end_at_exit", "insert_exit", "path_of", "remove_exit"]


def path_of(site: str) -> str:
    """Where an exit is kept in the network."""
    return f"exits.{site}"


def insert_exit(net: Traced, site: Site, exit_: nn.Module) -> None:
    """Let `exit_` see the site's value, and the network return what the first exit taken says."""
    graph, path = net.graph, path_of(site.name)
    place(net.root, path, exit_)
    entry = net.node(site.entry)
    with graph.inserting_after(entry):
        pair = graph.call_module(path, (entry,))
    output = next(node for node in graph.nodes if node.op == "output")
    (last,) = output.all_input_nodes
    final, others = (last.args[0], last.args[1:]) if is_pick(last) else (last, ())
    order = {node: index for index, node in enumerate(graph.nodes)}
    pairs = sorted([*others, pair], key=lambda node: order[node])
    with graph.inserting_before(output):
        picked = graph.call_function(pick, (final, *pairs))
    output.args = (picked,)
    remove_dead(graph)


def remove_exit(net: Traced, site: str) -> None:
    """Take the site's exit out: nobody leaves there."""
    picked, pairs = _exits(net.graph)
    kept = [pair for pair in pairs if pair.target != path_of(site)]
    if kept:
        picked.args = (picked.args[0], *kept)
    else:
        picked.replace_all_uses_with(picked.args[0])  # type: ignore[arg-type]
    remove_dead(net.graph)


def end_at_exit(net: Traced, site: str, head: nn.Module) -> None:
    """Let everybody who comes to the site's exit leave there.

    `head`, its classifier, takes its place, and what lies behind goes.
    """
    picked, pairs = _exits(net.graph)
    index = [pair.target for pair in pairs].index(path_of(site))
    place(net.root, path_of(site), head)
    if index:
        picked.args = (pairs[index], *pairs[:index])
    else:
        picked.replace_all_uses_with(pairs[index])
    remove_dead(net.graph)


def _exits(graph: fx.Graph) -> tuple[fx.Node, list[fx.Node]]:
    picked = next(node for node in graph.nodes if is_pick(node))
    return picked, [pair for pair in picked.args[1:] if isinstance(pair, fx.Node)]
