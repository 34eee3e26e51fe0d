"""Trace a network that asks for the sizes of its values: `if`, `range()`, `int()`, math on them.

torch.fx alone takes every size for something that is known at run time only. Here each value is
known for two batches, see gatecli.graph.shapes: sizes that do not depend on the number of images
are plain numbers while the forward runs; what depends on it stays traced, so that the trace is
right for any batch, and control flow on it is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.graph.builtin import traced_numbers
from gatecli.graph.ops import with_part
from gatecli.graph.shapes import Values
from gatecli.graph.tracer import Assignable, SiteTracer
from gatecli.traced.traced import Shape

__all__ = ["SizedTracer"]

# What a value of a network in evaluation is not.
UNTRUE = {"requires_grad", "is_cuda", "is_meta", "is_sparse", "is_quantized", "is_nested"}
MADE = {"new_zeros", "new_ones", "new_full"}


class SizedTracer(SiteTracer):
    """A tracer whose values know their sizes.

    Args:
        root: What is traced.
        image: (channels, height, width).
        leaves: Patterns of module paths to keep whole.
        whole: Classes of modules to keep whole.
        functions: Functions to keep whole.
    """

    def __init__(
        self,
        root: nn.Module,
        image: Shape,
        leaves: Sequence[str] = (),
        whole: Collection[type[nn.Module]] = (),
        functions: Sequence[Callable[..., Any]] = (),
    ) -> None:
        super().__init__(leaves, functions)
        self.values = Values(root, image)
        self.whole = frozenset(whole)
        self._busy = False

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        assert isinstance(root, nn.Module)
        with traced_numbers(root):
            graph = super().trace(root, concrete_args)
        _devices_follow(graph)
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._busy:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._busy:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy: fx.Proxy = super().create_proxy(kind, *args, **kwargs)
        if kind != "output":
            self._evaluate(proxy.node)
        return proxy

    def _evaluate(self, node: fx.Node) -> None:
        self._busy = True  # torch.fx watches the modules that run meanwhile
        try:
            self.values.add(node)
        finally:
            self._busy = False

    def plain(self, proxy: fx.Proxy) -> Any:
        """What a traced value is, where that is a plain one for any number of images.

        Raises TraceError where it is not.
        """
        node = proxy.node
        if self.values.is_constant(node):
            return self.values.constant(node)
        if self.values.of(node) is None:
            why = f"a value that nothing is known of: {self.values.problem}"
        elif self.values.varies(node):
            why = "a value that depends on the number of images"
        else:
            why = "values that are known only once there is an image"
        raise fx.proxy.TraceError(f"control flow, or a number, made of {why}")

    def known(self, proxy: fx.Proxy) -> bool:
        """Whether a traced value is a plain one for any number of images, or must be refused."""
        return not self.values.varies(proxy.node)

    def held(self, node: fx.Node) -> Tensor | None:
        """The network's own tensor that a node stands for; None for what is computed."""
        if node.op != "get_attr":
            return None
        self._busy = True
        try:
            value: Any = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
        finally:
            self._busy = False
        return value if isinstance(value, Tensor) else None

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.plain(obj))

    def iter(self, obj: Any) -> Iterator[Any]:
        values = self.values.of(obj.node)
        if values is None or not _is_list(values):
            return super().iter(obj)
        return iter([obj[number] for number in range(len(values[0]))])


def _devices_follow(graph: fx.Graph) -> None:
    """Let what was made where the network's tensors lay be made where the images lie."""
    images = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(images):
        place = graph.call_function(getattr, (images, "device"))
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            node.args = _with_place(node.args, place)
            node.kwargs = _with_place(node.kwargs, place)
    if not place.users:
        graph.erase_node(place)


def _with_place(given: Any, place: fx.Node) -> Any:
    def placed(value: Any) -> Any:
        return place if isinstance(value, torch.device) else value

    return fx.node.map_aggregate(given, placed)


def _is_list(values: tuple[Any, ...]) -> bool:
    """Whether a value has parts, equally many for any number of images."""
    if not all(isinstance(value, (tuple, list, Tensor)) for value in values):
        return False
    if any(isinstance(value, Tensor) and value.ndim == 0 for value in values):
        return False
    return len({len(value) for value in values}) == 1


class _Sized(Assignable):
    """A traced value that is asked for its sizes."""

    tracer: SizedTracer

    def __getattr__(self, name: str) -> Any:
        if name in UNTRUE:
            return False
        tensors = self._tensors() if name == "ndim" else None
        return _Attribute(self, name) if tensors is None else tensors[0].ndim

    def _tensors(self) -> tuple[Tensor, ...] | None:
        return self.tracer.values.tensor(self.node)

    @property
    def shape(self) -> Any:
        tensors = self._tensors()
        if tensors is None:
            return _Attribute(self, "shape")
        sizes = [self._size_of(dim, tensors) for dim in range(tensors[0].ndim)]
        known = all(isinstance(size, int) for size in sizes)
        return torch.Size(sizes) if known else _Sizes(sizes)

    def _size_of(self, dim: int, tensors: tuple[Tensor, ...]) -> Any:
        found = {tensor.shape[dim] for tensor in tensors}
        if len(found) == 1:
            return found.pop()
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def size(self, dim: int | None = None) -> Any:
        tensors = self._tensors()
        if tensors is None:
            given = () if dim is None else (dim,)
            return self.tracer.create_proxy("call_method", "size", (self, *given), {})
        return self.shape if dim is None else self._size_of(operator.index(dim), tensors)

    def dim(self) -> Any:
        return self.ndim

    def is_floating_point(self) -> Any:
        tensors = self._tensors()
        if tensors is None:
            return self.tracer.create_proxy("call_method", "is_floating_point", (self,), {})
        return tensors[0].is_floating_point()

    @property
    def device(self) -> Any:
        held = self.tracer.held(self.node)
        return _Device(self, "device") if held is None else held.device

    @property
    def dtype(self) -> Any:
        held = self.tracer.held(self.node)
        return _Attribute(self, "dtype") if held is None else held.dtype

    def __len__(self) -> int:
        values = self.tracer.values.of(self.node)
        if values is not None and _is_list(values):
            return len(values[0])
        if self._tensors() is not None:
            raise fx.proxy.TraceError("len() of the number of images: write .shape[0]")
        return len(self.tracer.plain(self))

    def length(self) -> Any:
        """What `len()` says, also where that is the number of images."""
        tensors = self._tensors()
        if tensors is None or tensors[0].ndim == 0:
            return len(self)
        return self._size_of(0, tensors)

    def __int__(self) -> int:
        return int(self.tracer.plain(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.plain(self))

    def __float__(self) -> float:
        return float(self.tracer.plain(self))

    def __setitem__(self, index: Any, value: Any) -> None:
        """`x[index] = value`, of a value just made that nothing else has read, nor can see."""
        is_made = self.node.target is with_part or self.node.target in MADE
        if not is_made or self.node.users:
            raise fx.proxy.TraceError("an assignment to a part of a value that others may read")
        made = self.tracer.create_proxy("call_function", with_part, (self, index, value), {})
        self.node = made.node

    def __contains__(self, item: Any) -> bool:
        return item in self.tracer.plain(self)


class _Attribute(fx.proxy.Attribute, _Sized):
    """An attribute of a traced value, read only where it is used."""


class _Device(_Attribute):
    """Where a tensor is; contexts of autocast ask for the type while tracing."""

    type = "cpu"
    index = None


class _Sizes(tuple[Any, ...]):
    """Sizes of which some depend on the number of images."""

    def numel(self) -> Any:
        """Their product."""
        product: Any = 1
        for size in self:
            product = size * product
        return product
