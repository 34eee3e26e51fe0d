"""What calls in a pickle give: plain data, or a stand-in. All else is Odd."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gatecli.checkpoint.stand_ins import (
    NUMBERS,
    PASSENGERS,
    STORAGES,
    Named,
    Odd,
    Passenger,
    Storage,
    StoredTensor,
)

if TYPE_CHECKING:
    from gatecli.checkpoint.pickle_reader import PickleReader

__all__ = ["KNOWN", "MAKERS", "is_count"]


def is_count(value: Any) -> bool:
    """Whether a value may be a size or a place."""
    return type(value) is int and 0 <= value < 2**63


def _ordered(reader: PickleReader, pairs: Any = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict; older pickles give its items as a list of pairs."""
    if not isinstance(pairs, (list, tuple)):
        raise Odd("its pickle makes a dict of what are no pairs")
    made: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        reader.source.take(1)
        key, value = pair
        reader.fill(made, [key, value])
    return made


def _counter(reader: PickleReader, counts: Any = None) -> Counter[Any]:
    if counts is not None and not isinstance(counts, dict):
        raise Odd("its pickle counts what is no dict")
    reader.source.take(len(counts or ()))
    return Counter(counts)


def _set(reader: PickleReader, items: Any = ()) -> Passenger:
    if not isinstance(items, (list, tuple)):
        raise Odd("its pickle makes a set of what is no list")
    reader.extend(set(), list(items))
    return Passenger()


def _bytes(reader: PickleReader, text: Any = b"", encoding: Any = "latin1") -> bytes:
    """What pickles of Python 3 for Python 2 make bytes of; given bytes, the same."""
    if not isinstance(text, (str, bytes)) or encoding not in ("latin1", "latin-1"):
        raise Odd("its pickle makes bytes of what is no text")
    reader.source.take(1 + len(text) // 64)
    return text.encode("latin1") if isinstance(text, str) else text


def _size(reader: PickleReader, sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, (list, tuple)):
        raise Odd("its pickle has a size that is none")
    reader.source.take(len(sizes))
    return tuple(sizes)


def _plain(reader: PickleReader, *args: Any) -> Passenger:
    """A number, a device or a layout: made of words and numbers."""
    if not all(isinstance(arg, (str, int, float)) for arg in args):
        raise Odd("its pickle has a number or device that is none")
    return Passenger()


def _tensor(
    reader: PickleReader, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> StoredTensor:
    """A tensor in a storage.

    Odd where it reaches out of its storage, which torch would make larger, with whatever lies in
    memory there.
    """
    has_shape = isinstance(size, (tuple, list)) and isinstance(stride, (tuple, list))
    if not isinstance(storage, Storage) or not has_shape:
        raise Odd("its pickle has a tensor without a storage")
    reader.source.take(len(size))
    if len(size) != len(stride) or not all(map(is_count, (offset, *size, *stride))):
        raise Odd("its pickle has a tensor of no shape")
    if _end(offset, size, stride) * (_itemsize(rest) or storage.itemsize) > storage.nbytes:
        raise Odd(
            f"it has a tensor of shape {tuple(size)} that takes more than its storage {storage.key}"
        )
    return StoredTensor()


def _itemsize(rest: tuple[Any, ...]) -> int | None:
    """Bytes of a number where the tensor's type is said beside its storage's."""
    for arg in rest:
        if isinstance(arg, Named) and arg.name in NUMBERS:
            return NUMBERS[arg.name]
    return None


def _end(offset: int, size: Sequence[int], stride: Sequence[int]) -> int:
    """How many numbers of its storage a tensor needs."""
    if 0 in size:
        return offset
    return offset + 1 + sum((count - 1) * step for count, step in zip(size, stride, strict=True))


def _quantized(
    reader: PickleReader, storage: Any, offset: Any, size: Any, *rest: Any
) -> StoredTensor:
    """As `_tensor`; torch makes one of the full size first, whatever its strides."""
    made = _tensor(reader, storage, offset, size, *rest)
    if math.prod(size) * storage.itemsize > storage.nbytes:
        raise Odd(
            f"it has a quantized tensor of shape {tuple(size)} that takes more than its storage"
            f" {storage.key}"
        )
    return made


def _parameter(reader: PickleReader, data: Any, *rest: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Odd("its pickle makes a parameter of what is no tensor")
    for state in rest[2:]:
        reader.check_attributes(state)
    return data


def _of_class(reader: PickleReader, function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes of its own."""
    if not isinstance(function, Named) or function.name not in _TENSORS:
        raise Odd("its pickle makes a tensor in no known way")
    reader.check_attributes(state)
    return reader.make(function, args)


def _without_storage(reader: PickleReader, *args: Any) -> StoredTensor:
    """A sparse tensor, of others that were looked at, or a shape alone; neither is allocated."""
    return StoredTensor()


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
MAKERS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch._utils._rebuild_sparse_tensor": _without_storage,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_storage,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _plain,
    "torch.serialization._get_layout": _plain,
    "builtins.complex": _plain,
    "builtins.bytearray": _bytes,
    "builtins.set": _set,
    "_codecs.encode": _bytes,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
}
_QUANTIZATIONS = (
    "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric"
    " per_channel_affine_float_qparams"
)
_SCHEMES = [f"torch.{name}" for name in _QUANTIZATIONS.split()]
KNOWN = {*MAKERS, *PASSENGERS, *STORAGES, *NUMBERS, "torch.Tensor", *_SCHEMES}
