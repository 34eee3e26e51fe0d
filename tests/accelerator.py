"""A stand-in for a GPU: tensors that say that they are on one, and are computed on the CPU.

As on a GPU, an operation on tensors of two devices is an error; and what makes the host wait for
the device is counted. What a kernel computes, and how fast, no stand-in can tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

ops = torch.ops.aten
DEVICE = torch.device("cuda:0")
# The host reads a value, or a result's size depends on values.
WAITING = (ops._local_scalar_dense, ops.nonzero, ops.equal, ops.masked_select, ops.is_nonzero)
MOVING = (ops._to_copy, ops.copy_)  # from one device to another
waits: Counter[str] = Counter()


class There(Tensor):
    """A tensor on the stand-in; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [each for each in tree_flatten((args, given))[0] if isinstance(each, Tensor)]
        kind = func.overloadpacket
        goes_home = kind is ops._to_copy and _is_home(given.get("device"))
        if kind not in MOVING:
            alone = [each for each in tensors if not isinstance(each, There) and each.ndim]
            assert not alone, f"{func} is given a tensor on the CPU, {tuple(alone[0].shape)}"
        if kind in WAITING or goes_home:
            waits[str(kind)] += 1
        if _is_there(given.get("device")):
            given["device"] = torch.device("cpu")
        wrappers = {id(each.inner): each for each in tensors if isinstance(each, There)}
        found = func(*tree_map(_inner, args), **tree_map(_inner, given))
        return found if goes_home else tree_map(lambda each: _outer(each, wrappers), found)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.inner})"


def _is_there(device: Any) -> bool:
    return isinstance(device, torch.device | str) and str(device).startswith("cuda")


def _is_home(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, There) else value


def _outer(value: Any, wrappers: dict[int, There]) -> Any:
    """What was written into stays the tensor that it was."""
    if not isinstance(value, Tensor):
        return value
    return wrappers[id(value)] if id(value) in wrappers else There(value)


class Asked(TorchFunctionMode):
    """Lets tensors be made on the stand-in, and be moved there."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        flat = tree_flatten((args, given))[0]
        if func is F.batch_norm:  # it would ask the driver which library is best
            return _normed(*args, **given)
        if func is Tensor.to and isinstance(args[0], There):  # it would ask for the driver
            args = tuple(each for each in args if not _is_there(each))
            return func(*args, **given) if args[1:] or given else args[0]
        if func is Tensor.tolist and isinstance(args[0], There):
            waits["tolist"] += 1
            return args[0].inner.tolist()
        if any(isinstance(each, There) for each in flat) or not any(map(_is_there, flat)):
            return func(*args, **given)
        if "tensor" in func.__name__ and args and not isinstance(args[0], Tensor):
            waits["copied from the host"] += 1
        return There(func(*tree_map(_home, args), **tree_map(_home, given)))


def _normed(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    return ops.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)[0]


def _home(value: Any) -> Any:
    return "cpu" if _is_there(value) else value


@contextmanager
def stand_in() -> Iterator[Counter[str]]:
    """Let there be a GPU inside the block; gives the counts of what waits for it."""
    waits.clear()
    torch._C._ensureCUDADeviceGuardSet()  # as torch's own FakeTensor: no driver is asked
    with torch.backends.cudnn.flags(enabled=False), Asked():
        yield waits


def put(network: nn.Module) -> nn.Module:
    """Move a network's own tensors there, in place."""
    known: dict[int, Tensor] = {}
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = known.setdefault(id(tensor), _moved(tensor))  # type: ignore[assignment]
    return network


def _moved(tensor: Tensor) -> Tensor:
    there = There(tensor.detach())
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
