"""Multiply-accumulates of a traced network, node by node: convolutions, linear layers and attention's products, nothing else.

Counted with fvcore's formulas on shapes alone (the network runs on torch's meta device, so nothing is computed). A module that is
called twice counts twice. FLOPs = 2 x MACs.
"""
from __future__ import annotations

import copy
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

Shape = tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COSTLY_FUNCTIONS = {
    F.conv1d, F.conv2d, F.conv3d, F.linear, F.bilinear, F.scaled_dot_product_attention,
    operator.matmul, torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.einsum,
}  # fmt: skip
COSTLY_METHODS = {"matmul", "bmm", "mm", "__matmul__"}


@dataclass(frozen=True)
class NodeCost:
    """One node's MACs for one image, and the shape of what it returns (None where that is no tensor)."""

    macs: int
    shape: Shape | None


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of the module without memory for its tensors: shapes can be worked out on it, and nothing is computed."""
    tensors = [*module.parameters(), *module.buffers()]
    ghosts = {id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors}
    return copy.deepcopy(module, dict(ghosts))


def count_nodes(root: nn.Module, graph: fx.Graph, image: Shape) -> dict[str, NodeCost]:
    """The cost of every node of `graph` for one image of shape (channels, height, width).

    Args: root: the module in which the graph's targets are found. Returns node name -> NodeCost, in the order of execution.
    """
    counter = _Counter(root, graph)
    with torch.no_grad():
        counter.run(torch.empty(1, *image, device="meta"))
    return counter.costs


class _Counter(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(meta_copy(root).eval(), graph=graph)
        self.costs: dict[str, NodeCost] = {}
        self.seen: dict[tuple[Any, ...], int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        macs = 0
        if n.op in ("call_module", "call_function", "call_method"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            macs = self._macs(n, args, kwargs, result)
        self.costs[n.name] = NodeCost(macs, tuple(result.shape) if isinstance(result, Tensor) else None)
        return result

    def _macs(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            if type(module) in CONVOLUTIONS:
                return convolution_macs(module, tuple(args[0].shape), tuple(result.shape))
            if type(module) is nn.Linear:
                return int(math.prod(args[0].shape)) * module.out_features
            if not any(p.ndim > 1 for p in module.parameters()):
                return 0
            return self._traced(str(n.target), module, args, kwargs)
        if (n.op == "call_function" and n.target in COSTLY_FUNCTIONS) or (n.op == "call_method" and n.target in COSTLY_METHODS):
            call = n.target if callable(n.target) else lambda x, *rest, **named: getattr(x, str(n.target))(*rest, **named)
            return self._traced(str(n.target), call, args, kwargs)
        return 0

    def _traced(self, target: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        key = (target, *(tuple(a.shape) if isinstance(a, Tensor) else repr(a) for a in [*args, *kwargs.values()]))
        if key not in self.seen:
            self.seen[key] = traced_macs(call, args, kwargs)
        return self.seen[key]


def convolution_macs(module: nn.Module, shape_in: Shape, shape_out: Shape) -> int:
    """MACs of one convolution, by fvcore's formula; shapes (N, C, *spatial)."""
    weight: Any = module.weight
    transposed = bool(getattr(module, "transposed", False))
    return int(_fvcore().jit_handles.conv_flop_count(list(shape_in), list(weight.shape), list(shape_out), transposed))


def traced_macs(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> int:
    """MACs of any callable, by fvcore's analysis of its trace; BatchNorm and pooling are left out of the count.

    On tensors of the meta device, with a module whose own tensors are there, nothing is computed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = _fvcore().FlopCountAnalysis(_Call(call, args, kwargs or {}), (torch.empty(1, device="meta"),))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(**{f"aten::{op}": None for op in NOT_COUNTED}, **{"aten::scaled_dot_product_attention": _attention_macs})
        return int(analysis.total())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries (..., L, E) with keys (..., S, E), then with values (..., S, V), whose result is (..., L, V); fvcore has no handler for it."""
    queries, keys, result = (value.type().sizes() for value in (inputs[0], inputs[1], outputs[0]))
    return int(math.prod(queries[:-1])) * int(keys[-2]) * (int(queries[-1]) + int(result[-1]))


def _fvcore() -> Any:
    """fvcore.nn, imported late and without the warnings that its use of torch.jit gives at import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fvcore.nn
        import fvcore.nn.jit_handles
    return fvcore.nn


NOT_COUNTED = ("batch_norm", "group_norm", "layer_norm", "instance_norm", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_bilinear2d", "upsample_nearest2d", "grid_sampler")


class _Call(nn.Module):
    """A callable with its arguments as a module, since fvcore analyses modules called with tensors."""

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call, self.args, self.kwargs = call, args, kwargs

    def forward(self, _: Tensor) -> Any:
        return self.call(*self.args, **self.kwargs)
