"""Trace a network with torch.fx into one flat graph whose modules keep the names that they had."""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import fx, nn

from gatecli.errors import ArchitectureError, first_line
from gatecli.graph.normalize import dropout_follows_mode, without_writes
from gatecli.graph.remnants import as_before
from gatecli.graph.tracer import SiteTracer

__all__ = ["compile_graph", "copied", "remove_dead", "trace"]


def trace(
    module: nn.Module,
    leaves: Sequence[str] = (),
    further: Callable[[], Sequence[Callable[[], SiteTracer]]] = list,
) -> fx.Graph:
    """The evaluation graph of `module`, without dead code.

    `leaves` are patterns of module paths to keep whole; `further` tracers are tried in turn where
    the plain one fails.

    Raises ArchitectureError, which names the line that stands in the way, where the forward cannot
    be traced.
    """
    was_training = module.training
    module.eval()
    try:
        graph = _first_trace(module, leaves, further)
    finally:
        module.train(was_training)
    without_writes(module, graph)
    dropout_follows_mode(graph)
    remove_dead(graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) > 1:
        raise ArchitectureError(
            f"expected {type(module).__name__} to take one image tensor, but it also reads"
            f" `{inputs[1].name}`"
        )
    return graph


def _first_trace(
    module: nn.Module,
    leaves: Sequence[str],
    further: Callable[[], Sequence[Callable[[], SiteTracer]]],
) -> fx.Graph:
    """What the first tracer makes that succeeds; else what the first of the others says."""
    failures: list[tuple[Exception, nn.Module | None]] = []
    tracers = iter([lambda: SiteTracer(leaves)])
    for make in itertools.chain(tracers, _late(further)):
        tracer = make()
        try:
            with as_before(module):
                return tracer.trace(module)
        except ArchitectureError:
            raise
        except Exception as error:  # whatever a forward may say of values that are none
            failures.append((error, tracer.failed))
    cause, failed = failures[:2][-1]
    raise ArchitectureError(
        f"{type(module).__name__} cannot be traced: {_blame(cause)}. Rewrite that line without"
        f" control flow, len() or numpy on tensors{_leaf_advice(module, failed)}"
    ) from cause


def _late(
    further: Callable[[], Sequence[Callable[[], SiteTracer]]],
) -> Iterator[Callable[[], SiteTracer]]:
    yield from further()


def _blame(error: Exception) -> str:
    """The last line of the network's own code on the way to the error."""
    own = tuple(
        f"{folder}{os.sep}"
        for folder in (
            Path(torch.__file__).parent,
            Path(numpy.__file__).parent,
            Path(__file__).parents[1] / "graph",
        )
    )
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)
    ]
    text = first_line(error)
    return (
        f"{frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}` ({text})"
        if frames
        else text
    )


def _leaf_advice(root: nn.Module, failed: nn.Module | None) -> str:
    """How to keep the module that failed whole, and with one pattern the others of its class."""
    if failed is None:
        return ""  # the line is in the network's own forward: nothing would be left of a graph
    modules = dict(root.named_modules())
    alike = [name for name, part in modules.items() if type(part) is type(failed)]
    path = next(name for name, part in modules.items() if part is failed)
    pattern = _numbers_open(path)
    matched = [name for name in modules if fnmatchcase(name, pattern)]
    patterns = alike
    if len(alike) > 1 and all(_lies_in(name, alike) for name in matched):
        patterns = [pattern]
    options = " ".join(f"--leaf '{pattern}'" for pattern in patterns)
    return f", or keep what runs it whole, with {options} (library: leaves={patterns})"


def _lies_in(name: str, modules: Sequence[str]) -> bool:
    """Whether a module is one of these, or a part of one."""
    return name in modules or name.startswith(tuple(f"{module}." for module in modules))


def _numbers_open(path: str) -> str:
    """A module's path as a pattern that takes other numbers too."""
    return ".".join("*" if part.isdecimal() else part for part in path.split("."))


def remove_dead(graph: fx.Graph, stays: Callable[[fx.Node], bool] = lambda node: False) -> None:
    """Erase every node that nothing reads, and unread inputs but the first.

    Evaluation has no side effects to lose, once nothing writes in place; what `stays` is true of
    does, until then.
    """
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for node in reversed(graph.nodes):
        is_unread = not node.users and node.op != "output" and node is not first
        if is_unread and not stays(node):
            graph.erase_node(node)


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a function (root, *inputs).

    `root` is the module in which the nodes' targets are looked up.

    Looking modules up when called, rather than binding them, is what lets a copied or moved network
    work on its own tensors.
    """
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    # torch.fx wrote this source from our own graph
    exec(compile(code.src, "<gatecli graph>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph, on the same modules."""
    result = fx.Graph()
    outputs: Any = result.graph_copy(graph, {})
    result.output(outputs)
    return result
