"""Put the executors of gatecli.kinds.branch.executor into a graph."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from gatecli.gates.decider import Decider
from gatecli.graph.ops import module_of
from gatecli.kinds.branch.cost import is_lean, way_of
from gatecli.kinds.branch.executor import Fold, StreamConv, StreamMean, Streams
from gatecli.kinds.branch.ops import connect, fold_streams, mean_streams, unfold_streams

__all__ = ["lower_branches"]

Replace = Callable[[fx.Node, nn.Module, tuple[fx.Node, ...]], fx.Node]


def lower_branches(root: nn.Module, graph: fx.Graph, replace: Replace) -> None:
    """Put executors in where branches read different sums.

    Args:
        root: the network.
        graph: changes.
        replace: lets an executor of some inputs give what a node gave; returns the new node.
    """
    shared: dict[fx.Node, fx.Node] = {}  # streams that several may read -> who reads which
    for node in list(graph.nodes):
        if node.target is not connect or not is_lean(root, node):
            continue
        read = node.all_input_nodes[2]
        fixed = not isinstance(module_of(root, read), Decider)
        streams = _lower_connect(root, node, replace, shared, fixed=fixed)
        if fixed:
            shared[streams] = read
        for user in list(streams.users):
            reader = module_of(root, user)
            if isinstance(reader, nn.Conv2d) and reader.groups > 1:
                replace(user, StreamConv(root, str(user.target), shared=fixed), (streams, read))
            elif fixed and user.target is mean_streams:
                replace(user, StreamMean(), (streams, read))
            elif fixed and user.target is fold_streams:
                _lower_way(user, streams, replace, shared)


def _lower_connect(
    root: nn.Module,
    node: fx.Node,
    replace: Replace,
    shared: dict[fx.Node, fx.Node],
    *,
    fixed: bool,
) -> fx.Node:
    """Let an executor give what a `connect` and the ReLU behind it give."""
    norm, shortcut, read = node.all_input_nodes
    (relu,) = node.users
    (conv,) = norm.all_input_nodes
    inputs = [conv.all_input_nodes[0], shortcut, read]
    if shortcut in shared:
        inputs.append(shared[shortcut])
    executor = Streams(root, str(conv.target), str(norm.target), shared=fixed)
    return replace(relu, executor, tuple(inputs))


def _lower_way(
    fold: fx.Node, streams: fx.Node, replace: Replace, shared: dict[fx.Node, fx.Node]
) -> None:
    """A shortcut with layers of its own runs on the streams that there are."""
    read = shared[streams]
    first = replace(fold, Fold(fold_streams), (streams, read))
    last = way_of(first)[-1]
    unfold = replace(last, Fold(unfold_streams), (last.all_input_nodes[0], read))
    shared[unfold] = read
    for mean in [user for user in unfold.users if user.target is mean_streams]:
        replace(mean, StreamMean(), (unfold, read))
