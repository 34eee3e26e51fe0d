"""Who may write into what: decided on the graph, where all readers can be seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.gates.decider import Decider
from gatecli.graph.ops import FRESH_LAYERS, is_add, is_cat, is_mask, is_relu, module_of
from gatecli.graph.trace import copied

__all__ = ["Executor", "WritingExecutor", "economical", "let_write"]


class Executor(nn.Module):
    """What runs in a gated part's place; it calls the network's own modules by their paths.

    Attributes:
        fresh: Whether its result has storage of its own.
    """

    fresh = True

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root: nn.Module
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself

    def for_export(self) -> nn.Module:
        """The same for one image, with torch.cond in the place of a Python `if`."""
        raise NotImplementedError


class WritingExecutor(Executor):
    """One that adds to a shortcut, its second input, and may write into the shortcut's storage.

    Attributes:
        write: Whether it may, as nothing else reads that.
        rectify: A ReLU follows the addition.
        rectified: The shortcut is never negative, so that there is nothing to rectify in it.
    """

    fresh = False

    def __init__(self, root: nn.Module, *, rectify: bool, rectified: bool) -> None:
        super().__init__(root)
        self.rectify = rectify
        self.rectified = rectified
        self.write = False
        self.never_negative = rectify

    def closed(self, shortcut: Tensor) -> Tensor:
        """What is left where nothing is added."""
        if self.rectified or not self.rectify:
            return shortcut
        return F.relu(shortcut, inplace=self.may_write())

    def finish(self, value: Tensor) -> Tensor:
        """The sum, which nobody else holds, through the ReLU if there is one."""
        if not self.rectify:
            return value
        return F.relu(value, inplace=not torch.is_grad_enabled())

    def may_write(self) -> bool:
        """Whether the shortcut may be overwritten: nobody else reads it, and no gradient does."""
        return self.write and not torch.is_grad_enabled()


def economical(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` that computes the same, its ReLUs in place where they may be."""
    result = copied(graph)
    for node in result.nodes:
        if is_relu(root, node):
            _rectify_in_place(root, node)
    return result


def _rectify_in_place(root: nn.Module, relu: fx.Node) -> None:
    """Let a ReLU write into its input where that is new and nothing else reads it.

    The trace has taken such writes out.
    """
    (source,) = relu.all_input_nodes
    is_ours = source.op not in ("placeholder", "get_attr") and not _shared(root, source)
    if len(source.users) == 1 and is_ours:
        relu.op, relu.target = "call_function", F.relu
        relu.args, relu.kwargs = (source,), {"inplace": True}


def let_write(root: nn.Module, graph: fx.Graph) -> None:
    """Let executors write into their shortcut's storage where nobody can notice.

    Decided once all are in, as each may return its shortcut.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        executor = module_of(root, node)
        if isinstance(executor, WritingExecutor):
            executor.write = _writable(root, node, order)


def _writable(root: nn.Module, writer: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether all other readers of what may be the shortcut's storage have run before."""
    owners = _owners(root, writer)
    if owners is None:
        return False
    sharing, todo = set(owners), list(owners)
    while todo:
        node = todo.pop()
        for user in node.users.keys() - {writer}:
            if order[user] > order[writer]:
                return False
            if user not in sharing and node in _shared(root, user):
                sharing.add(user)
                todo.append(user)
    return True


def _owners(root: nn.Module, writer: fx.Node) -> set[fx.Node] | None:
    """The values whose storage the writer's shortcut may be; None: the image or a constant."""
    owners, todo = set[fx.Node](), [_shortcut(writer)]
    while todo:
        node = todo.pop()
        if node.op in ("placeholder", "get_attr"):
            return None
        if node not in owners:
            owners.add(node)
            todo.extend(_shared(root, node))
    return owners


def _shared(root: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The inputs in whose storage the node's result may lie."""
    module = module_of(root, node)
    if isinstance(module, WritingExecutor):
        return [_shortcut(node)]
    is_fresh = is_add(node) or is_mask(node) or is_cat(node) or _makes_new(node, module)
    return [] if is_fresh else node.all_input_nodes


def _makes_new(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether what the node calls gives storage of its own."""
    if isinstance(module, (*FRESH_LAYERS, Decider)) or getattr(module, "fresh", False):
        return True
    return node.op == "call_function" and getattr(node.target, "fresh", False)


def _shortcut(writer: fx.Node) -> fx.Node:
    shortcut = writer.args[1]
    assert isinstance(shortcut, fx.Node)
    return shortcut
