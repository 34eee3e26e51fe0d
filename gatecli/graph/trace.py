"""Trace a network with torch.fx into one flat graph whose modules keep the names that they had."""

from __future__ import annotations

import inspect
import itertools
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy
import torch
from torch import fx, nn

from gatecli.errors import ArchitectureError, first_line
from gatecli.graph.names import is_writable
from gatecli.graph.remnants import as_before
from gatecli.graph.settle import (
    ASSIGNING,
    TRAINING,
    dropout_follows_mode,
    same_but_for_dropout,
    without_writes,
)


class Assignable(fx.Proxy):
    """A traced value that records `x += y` as what it is; torch.fx takes it for `x = x + y`."""


for _assign in ASSIGNING:
    setattr(
        Assignable,
        f"__{_assign.__name__}__",
        lambda self, other, _op=_assign: self.tracer.create_proxy(
            "call_function", _op, (self, other), {}
        ),
    )


class SiteTracer(fx.Tracer):
    """Traces a model down to its leaves.

    Leaves are torch's own layers, their subclasses, modules that read `self.training`, and those
    that the user names.

    A trace bakes `self.training` into the graph as a constant (stochastic depth would never drop
    again, or always), so whatever reads it stays a module; but functional dropout, which is the
    same graph in both modes, can be told to follow it.
    """

    # what is calculated from a buffer is so at each call, and the buffer stays in the network
    proxy_buffer_attributes = True

    def __init__(
        self, leaves: Sequence[str] = (), functions: Sequence[Callable[..., Any]] = ()
    ) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.leaves = leaves
        self.failed: nn.Module | None = (
            None  # the innermost module whose forward could not be traced
        )

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """Trace with the first argument alone.

        The others keep their defaults, on which a forward may branch (`if mask is None`).

        Raises ArchitectureError, besides what tracing comes to, where a module or tensor has a name
        that cannot stand in source.
        """
        graph = super().trace(root, concrete_args or _defaults(root))
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr") and not is_writable(str(node.target)):
                raise ArchitectureError(
                    f"the network has a part called {str(node.target)!r}, which no source can name:"
                    " expected names of letters, digits and underscores, and no keywords of"
                    " Python: rename it"
                )
        return graph

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m).forward is nn.Sequential.forward:
            return False
        if any(fnmatchcase(module_qualified_name, pattern) for pattern in self.leaves):
            return True
        return _is_torch_layer(m) or (_reads_training(m) and not _only_drops(m))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Assignable(node, self)


def _defaults(root: nn.Module | Callable[..., Any]) -> dict[str, Any]:
    function = root.forward if isinstance(root, nn.Module) else root
    others = list(inspect.signature(function).parameters.values())[1:]
    return {
        parameter.name: parameter.default
        for parameter in others
        if parameter.default is not parameter.empty
    }


_NO_LAYERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_torch_layer(module: nn.Module) -> bool:
    return any(
        cls.__module__.startswith("torch.nn.modules") and cls not in _NO_LAYERS
        for cls in type(module).__mro__
    )


def _reads_training(module: nn.Module) -> bool:
    """Whether the module's forward, or a method of its own that it calls, mentions `training`."""
    seen: set[str] = set()
    todo = ["forward"]
    while todo:
        names = set(_names_read(getattr(type(module), todo.pop())))
        if TRAINING in names:
            return True
        todo += [
            name
            for name in names - seen
            if not hasattr(nn.Module, name)
            and isinstance(getattr(type(module), name, None), FunctionType)
        ]
        seen |= names
    return False


def _names_read(function: Callable[..., Any]) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_names if isinstance(code, CodeType) else ()


def _only_drops(module: nn.Module) -> bool:
    """Whether all that training changes in the module's graph is functional dropout.

    Only then is it traced through.
    """
    if not any(True for _ in module.children()):
        return False
    modes = [(part, part.training) for part in module.modules()]
    try:
        for each in (module, _OfList(module)):
            with suppress(Exception):  # whatever tracing comes to
                return same_but_for_dropout(
                    SiteTracer().trace(each.eval()), SiteTracer().trace(each.train())
                )
        return False  # it stays whole
    finally:
        for part, training in modes:
            part.training = training


class _OfList(nn.Module):
    """Calls a module that takes a list of tensors, as a layer of a dense block does.

    Torch.cat of older versions takes no traced value in its place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return type(self.module).forward(
            self.module, [x]
        )  # not a call that the tracer sees: it would ask whether to keep the module whole


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


def remove_dead(graph: fx.Graph) -> None:
    """Erase every node that nothing reads, and unread inputs but the first.

    Evaluation has no side effects to lose.
    """
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for node in reversed(graph.nodes):
        if not node.users and node.op != "output" and node is not first:
            graph.erase_node(node)


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a function (root, *inputs).

    `root` is the module in which the nodes' targets are looked up.

    Looking modules up when called, rather than binding them, is what lets a copied or moved network
    work on its own tensors.
    """
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    exec(
        compile(code.src, "<gatecli graph>", "exec"), namespace
    )  # torch.fx wrote this source from our own graph
    function: Callable[..., Any] = namespace["forward"]
    return function


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph, on the same modules."""
    result = fx.Graph()
    outputs: Any = result.graph_copy(graph, {})
    result.output(outputs)
    return result
