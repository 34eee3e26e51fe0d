"""What torch.fx traces through, and what stays a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from types import CodeType, FunctionType
from typing import Any

from torch import fx, nn

from gatecli.errors import ArchitectureError
from gatecli.graph.names import is_writable
from gatecli.graph.normalize import ASSIGNING, TRAINING, same_but_for_dropout

__all__ = ["Assignable", "SiteTracer"]


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

    Attributes:
        leaves: Patterns of module paths to keep whole.
        failed: The innermost module whose forward could not be traced.
    """

    # what is calculated from a buffer is so at each call, and the buffer stays in the network
    proxy_buffer_attributes = True

    def __init__(
        self, leaves: Sequence[str] = (), functions: Sequence[Callable[..., Any]] = ()
    ) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.leaves = leaves
        self.failed: nn.Module | None = None

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
        # not a call that the tracer sees: it would ask whether to keep the module whole
        return type(self.module).forward(self.module, [x])
