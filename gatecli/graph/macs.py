"""Multiply-accumulates of a traced network, node by node.

Convolutions, linear layers and attention's products, nothing else.

Layers are counted by formula (a convolution's is fvcore's), whatever else multiplies (attention,
functional layers, modules kept whole) by torch's own counter; fvcore's analysis cannot do that, as
it traces with torch.jit, which runs no convolution without data. The network runs on torch's meta
device, so nothing is computed. A module that is called twice counts twice. FLOPs = 2 x MACs.
"""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from gatecli.graph.known_shapes import KnownShapes
from gatecli.traced.traced import NodeCost, Shape

__all__ = ["convolution_macs", "count_nodes", "meta_copy"]

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
COSTLY_FUNCTIONS = {
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
    F.scaled_dot_product_attention,
    operator.matmul,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.mm,
    torch.addmm,
    torch.einsum,
}
COSTLY_METHODS = {"matmul", "bmm", "baddbmm", "mm", "addmm"}
MOVES = {  # what neither multiplies nor is marked as elementwise or a view by torch
    "cat",
    "stack",
    "clone",
    "copy",
    "copy_",
    "_to_copy",
    "repeat",
    "index",
    "index_select",
    "gather",
    "embedding",
    "roll",
    "constant_pad_nd",
    "_reshape_copy",
    "_unsafe_view",
    "native_layer_norm",
    "native_batch_norm",
    "native_group_norm",
    "empty",
    "empty_like",
    "zeros",
    "zeros_like",
    "ones",
    "ones_like",
    "full",
    "arange",
    "flip",
    "sum",
    "mean",
    "amax",
    "amin",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_softmax",
    "native_dropout",
    "bernoulli_",
    "linalg_vector_norm",
    "norm",
    "std",
    "var",
    "var_mean",
    "cumsum",
}


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of the module without memory for its tensors.

    Shapes can be worked out on it, and nothing is computed.
    """
    tensors = [*module.parameters(), *module.buffers()]
    ghosts = {
        id(t): (
            nn.Parameter(t.detach().to("meta"), t.requires_grad)
            if isinstance(t, nn.Parameter)
            else t.to("meta")
        )
        for t in tensors
    }
    return copy.deepcopy(module, dict(ghosts))


def count_nodes(root: nn.Module, graph: fx.Graph, image: Shape) -> dict[str, NodeCost]:
    """The cost of every node of `graph` for one image of shape (channels, height, width).

    Args: root: the module in which the graph's targets are found. Returns node name -> NodeCost, in
    the order of execution.
    """
    counter = _Counter(root, graph)
    with torch.no_grad(), KnownShapes():
        counter.run(torch.empty(1, *image, device="meta"))
    return counter.costs


class _Counter(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(meta_copy(root).eval(), graph=graph)
        self.costs: dict[str, NodeCost] = {}

    def run_node(self, n: fx.Node) -> Any:
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        seen, macs = _Operations(), 0
        if _multiplies(n, module) or self._takes_weights(n):
            with _attention_in_sight(), FlopCounterMode(display=False) as counter, seen:
                result = super().run_node(n)
            macs = int(counter.get_total_flops()) // 2
        else:
            result = super().run_node(n)
        macs = macs or self._by_formula(n, module, result)
        shape = tuple(result.shape) if isinstance(result, Tensor) else None
        self.costs[n.name] = NodeCost(macs, shape, unknown=not macs and seen.work)
        return result

    def _by_formula(self, n: fx.Node, module: nn.Module | None, result: Any) -> int:
        if isinstance(module, CONVOLUTIONS):
            return convolution_macs(
                module, tuple(self.fetch_args_kwargs_from_env(n)[0][0].shape), tuple(result.shape)
            )
        if isinstance(module, nn.Linear):
            return int(math.prod(result.shape)) * module.in_features
        weight = self._bilinear_weight(n, module)
        return 0 if weight is None else int(math.prod(result.shape[:-1])) * weight.numel()

    def _bilinear_weight(self, n: fx.Node, module: nn.Module | None) -> Tensor | None:
        """(out, in1, in2): at each position y_o = x1 W_o x2."""
        if type(module) is nn.Bilinear:
            return module.weight
        if n.op != "call_function" or n.target is not F.bilinear:
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return cast(Tensor, args[2] if len(args) > 2 else kwargs["weight"])

    def _takes_weights(self, n: fx.Node) -> bool:
        """Whether a function or method is given weights of more than one dimension."""
        if getattr(n.target, "costs", None) is not None:
            return False
        attributes = [source for source in n.all_input_nodes if source.op == "get_attr"]
        return any(_is_weight(self.env.get(source)) for source in attributes)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(target, args, kwargs)
        except (RuntimeError, TypeError, ValueError):  # numpy's functions raise the latter two
            module: Any = self.fetch_attr(str(target))
            if type(module).__module__.startswith("torch.nn"):
                raise
            return on_zeros(module, args, kwargs)


def _is_weight(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.ndim > 1


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether any operation does more with its values than elementwise ones do.

    To move values, or to combine them element by element, is no more than that.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        plain = torch.Tag.pointwise in func.tags or func.is_view or name in MOVES
        self.work = self.work or not plain
        return func(*args, **(kwargs or {}))


def _multiplies(n: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node does products that no formula here knows."""
    if module is not None:
        return type(module) not in (*CONVOLUTIONS, nn.Linear, nn.Bilinear) and any(
            p.ndim > 1 for p in module.parameters()
        )
    ours = getattr(n.target, "costs", None)
    if ours is not None:
        return bool(ours(n))
    if n.op == "call_method":
        return n.target in COSTLY_METHODS
    return n.op == "call_function" and n.target in COSTLY_FUNCTIONS


def on_zeros(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """The result's ghost of a module that looks at its values, and so cannot run without.

    On zeros, with weights of zero.
    """
    real = copy.deepcopy(module).to_empty(device="cpu")
    for tensor in [*real.parameters(), *real.buffers()]:
        tensor.zero_()
    with torch.device("cpu"):  # gates are replayed on the meta device
        args, kwargs = tree_map_only(
            Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), (args, kwargs)
        )
        result = real(*args, **kwargs)
    return tree_map_only(Tensor, lambda t: t.to("meta"), result)


@contextmanager
def _attention_in_sight() -> Iterator[None]:
    """Attention as two products.

    Of its fused kernels, which torch's version and the device choose, some have no formula and
    would count as nothing.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def convolution_macs(module: nn.Module, shape_in: Shape, shape_out: Shape) -> int:
    """MACs of one convolution, by fvcore's formula; shapes (N, C, *spatial)."""
    weight: Any = module.weight
    transposed = bool(getattr(module, "transposed", False))
    return int(
        _fvcore().jit_handles.conv_flop_count(
            list(shape_in), list(weight.shape), list(shape_out), transposed
        )
    )


def _fvcore() -> Any:
    """fvcore.nn, imported late and without the warnings that its use of torch.jit gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fvcore.nn
        import fvcore.nn.jit_handles
    return fvcore.nn
