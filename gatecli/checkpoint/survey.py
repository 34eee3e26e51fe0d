"""Look through a torch file's pickle before torch reads it.

Nothing in it runs, and nothing is allocated.

Every class and function that the pickle names is answered by a stand-in of this module. What comes
out are the storages that the pickle asks for, which are compared with those that the file has, and
the names that `weights_only` loading would refuse. Values that gatecli has no use for (paths,
dates, numpy's scalars and arrays, parsed options) are harmless since they are never made: torch too
is given `PASSENGERS` in their place.
"""

from __future__ import annotations

import io
import math
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from gatecli import limits


class Odd(Exception):
    """The pickle holds what no checkpoint needs, or asks for too much."""


class Passenger:
    """Stands for a value that is not made; whatever is done to it is forgotten."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Passenger:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _empty_dict(*args: Any) -> dict[Any, Any]:
    return {}


def _empty_list(*args: Any) -> list[Any]:
    return []


# What training scripts store beside the weights, by the names under which Python pickles it.
_NUMBERS = (
    "bool_ bool str_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
)
_KINDS = (
    "Bool Float16 Float32 Float64 Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Str Bytes"
    " Object"
)
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_BUILTINS = "int float str bool list dict tuple bytes object range slice frozenset"
_HELD = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", *_NUMBERS.split())),
    *(f"numpy.dtypes.{name}DType" for name in _KINDS.split()),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS.split()),
    *(f"datetime.{name}" for name in ["datetime", "date", "time", "timedelta", "timezone"]),
    *(f"builtins.{name}" for name in _BUILTINS.split()),
    *(
        "argparse.Namespace",
        "types.SimpleNamespace",
        "torch.torch_version.TorchVersion",
        "uuid.UUID",
        "decimal.Decimal",
        "fractions.Fraction",
    ),
)
PASSENGERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_HELD, Passenger),
    "collections.defaultdict": _empty_dict,
    "collections.deque": _empty_list,
}


@dataclass(frozen=True)
class Named:
    """A class, function or constant that a pickle refers to."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage that a pickle asks for: its key in the file, its bytes, and those of one number."""

    key: str
    nbytes: int
    itemsize: int


class _Tensor:
    """Stands for a tensor that lies within its storage."""


@dataclass
class Survey:
    """What pickles hold.

    Attributes:
        value: what the last of them is, with stand-ins for all that would have to be made.
        storages: what it asks the file for, by key.
        foreign: names of code that `weights_only` loading does not run.
        end: where in the data the last pickle ends.
    """

    value: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    end: int = 0


def survey(data: bytes, pickles: int = 1, whole: bool = True) -> Survey:
    """Look through so many pickles in a row.

    Args:
        data: bytes that begin with the pickles.
        pickles: how many.
        whole: whether `data` is all that there is.

    Raises:
        Odd: a pickle asks for too much, or for what no checkpoint needs.
        Exception: whatever damage brings about.
    """
    found, file = Survey(), io.BytesIO(data)
    source = _Source(file, whole)
    for _ in range(pickles):
        try:
            found.value = _Reader(source, found).load()
        except Odd:
            if not found.foreign:
                raise
            break  # that it needs code is what there is to say
    found.end = file.tell()
    return found


class _Source:
    """The data, of which no more is read than is there; counts steps, too many of which are Odd."""

    def __init__(self, file: io.BytesIO, whole: bool) -> None:
        self._file, self._whole, self._left = file, whole, limits.PICKLE_STEPS

    def take(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise Odd(f"its pickle has more than {limits.PICKLE_STEPS:,} instructions")

    def read(self, size: int) -> bytes:
        self.take(1)
        data = self._file.read(size)
        if len(data) < size:
            self._end()
        return data

    def readline(self) -> bytes:
        self.take(1)
        line = self._file.readline()
        if not line.endswith(b"\n"):
            self._end()
        return line

    def _end(self) -> None:
        if not self._whole:
            raise Odd(f"its pickle has more than {limits.PICKLE_BYTES:,} bytes")
        raise EOFError("its pickle ends early")


class _Reader(pickle._Unpickler):
    """Reads a pickle as plain data.

    Python's own reader does the rest: its memo is a dict, its lists grow as they are filled.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, source: _Source, found: Survey) -> None:
        super().__init__(source, encoding="utf-8")
        self.source, self.found = source, found

    def find_class(self, module: str, name: str) -> Named:
        """The name in today's spelling; what is neither torch's nor a passenger's is noted."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full not in _KNOWN and full not in self.found.foreign:
            self.found.foreign.append(full)
        return Named(full)

    def persistent_load(self, pid: Any) -> Any:
        """A storage; in older files also the class of a module."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            if isinstance(pid, tuple) and pid[:1] == ("module",):
                return pid[1]
            raise Odd("its pickle refers to something that is no storage")
        kind, key, numbers = pid[1], pid[2], pid[4]
        if (
            not isinstance(kind, Named)
            or kind.name not in STORAGES
            or not isinstance(key, str)
            or not _is_count(numbers)
        ):
            raise Odd("its pickle asks for a storage of no known kind")
        itemsize = STORAGES[kind.name]
        asked = Storage(key, numbers * itemsize, itemsize)
        if self.found.storages.setdefault(key, asked) != asked:
            raise Odd(f"its pickle asks for storage {key} in two sizes")
        return self._viewed(asked, pid[5:])

    def _viewed(self, whole: Storage, view: tuple[Any, ...]) -> Storage:
        """The part of a storage that an older file may ask for."""
        if not view or view[0] is None:
            return whole
        _key, offset, numbers = view[0]
        if not (
            _is_count(offset)
            and _is_count(numbers)
            and (offset + numbers) * whole.itemsize <= whole.nbytes
        ):
            raise Odd(f"its pickle asks for more of storage {whole.key} than there is")
        return Storage(whole.key, numbers * whole.itemsize, whole.itemsize)

    def make(self, what: Any, args: Any) -> Any:
        """What a call gives: plain data, or a stand-in."""
        if isinstance(what, Passenger):
            return what
        if not isinstance(what, Named) or not isinstance(args, tuple):
            raise Odd("its pickle calls what is no function")
        if what.name in self.found.foreign:
            return Passenger()
        if what.name in _MAKERS:
            return _MAKERS[what.name](self, *args)
        if what.name in PASSENGERS:
            return PASSENGERS[what.name]()
        raise Odd(f"its pickle calls {what.name}, which no checkpoint needs")

    def check_key(self, key: Any) -> None:
        """Odd where hashing a key would take long.

        Tuples of the same tuples, or a number without end.
        """
        todo, count = [key], 0
        while todo:
            part, count = todo.pop(), count + 1
            if isinstance(part, tuple):
                todo += part[: limits.KEY_PARTS + 1]
            if count + len(todo) > limits.KEY_PARTS or (
                isinstance(part, int) and part.bit_length() > 8 * limits.KEY_PARTS
            ):
                raise Odd(f"its pickle has a key of more than {limits.KEY_PARTS} parts")
        self.source.take(count)

    def fill(self, target: Any, items: list[Any]) -> None:
        """Put keys and values, in turns, into a dict."""
        if isinstance(target, Passenger):
            return
        if not isinstance(target, dict):
            raise Odd("its pickle puts items into what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.check_key(key)
            target[key] = value

    def extend(self, target: Any, items: list[Any]) -> None:
        """Put items into a list, or a set."""
        if isinstance(target, list):
            target += items
        elif isinstance(target, set):
            for item in items:
                self.check_key(item)
        elif not isinstance(target, Passenger):
            raise Odd("its pickle puts items into what is no list")

    def build(self, target: Any, state: Any) -> None:
        """Give an object its attributes."""
        if isinstance(target, OrderedDict):
            self.check_attributes(state)
        elif not isinstance(target, Passenger):
            raise Odd("its pickle gives attributes to what has none")

    def check_attributes(self, state: Any) -> None:
        """Odd unless these are attributes by name, none of which every tensor or dict has."""
        for part in state if isinstance(state, tuple) else (state,):
            if part is not None and not isinstance(part, dict):
                raise Odd("its pickle gives attributes that have no names")
            self.source.take(len(part or ()))
            if any(map(_is_own, part or ())):
                raise Odd("its pickle changes what tensors or dicts are")

    def load_reduce(self) -> None:
        args, what = self.stack.pop(), self.stack.pop()
        self.append(self.make(what, args))

    def load_newobj_ex(self) -> None:
        _named, args, what = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.append(self.make(what, args))

    def load_obj(self) -> None:
        what, *args = self.pop_mark()
        self.append(self.make(what, tuple(args)))

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self.make(self.find_class(module, name), tuple(self.pop_mark())))

    def load_build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.fill(self.stack[-1], items)

    def load_append(self) -> None:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def load_appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def load_frozenset(self) -> None:
        self.extend(set(), self.pop_mark())
        self.append(Passenger())

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    own: ClassVar[dict[int, Any]] = {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.OBJ[0]: load_obj,
        pickle.INST[0]: load_inst,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.ADDITEMS[0]: load_appends,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }
    dispatch = {**pickle._Unpickler.dispatch, **own}


def _is_own(name: Any) -> bool:
    return (
        not isinstance(name, str) or hasattr(torch.nn.Parameter, name) or hasattr(OrderedDict, name)
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _ordered(reader: _Reader, pairs: Any = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict; older pickles give its items as a list of pairs."""
    if not isinstance(pairs, (list, tuple)):
        raise Odd("its pickle makes a dict of what are no pairs")
    made: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs:
        reader.source.take(1)
        key, value = pair
        reader.fill(made, [key, value])
    return made


def _counter(reader: _Reader, counts: Any = None) -> Counter[Any]:
    if counts is not None and not isinstance(counts, dict):
        raise Odd("its pickle counts what is no dict")
    reader.source.take(len(counts or ()))
    return Counter(counts)


def _set(reader: _Reader, items: Any = ()) -> Passenger:
    if not isinstance(items, (list, tuple)):
        raise Odd("its pickle makes a set of what is no list")
    reader.extend(set(), list(items))
    return Passenger()


def _bytes(reader: _Reader, text: Any = b"", encoding: Any = "latin1") -> bytes:
    """What pickles of Python 3 for Python 2 make bytes of; given bytes, the same."""
    if not isinstance(text, (str, bytes)) or encoding not in ("latin1", "latin-1"):
        raise Odd("its pickle makes bytes of what is no text")
    reader.source.take(1 + len(text) // 64)
    return text.encode("latin1") if isinstance(text, str) else text


def _size(reader: _Reader, sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, (list, tuple)):
        raise Odd("its pickle has a size that is none")
    reader.source.take(len(sizes))
    return tuple(sizes)


def _plain(reader: _Reader, *args: Any) -> Passenger:
    """A number, a device or a layout: made of words and numbers."""
    if not all(isinstance(arg, (str, int, float)) for arg in args):
        raise Odd("its pickle has a number or device that is none")
    return Passenger()


def _tensor(
    reader: _Reader, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> _Tensor:
    """Odd where a tensor reaches out of its storage, which torch would make larger, with whatever
    lies in memory there.
    """
    numbers = next(
        (NUMBERS[arg.name] for arg in rest if isinstance(arg, Named) and arg.name in NUMBERS), None
    )
    if (
        not isinstance(storage, Storage)
        or not isinstance(size, (tuple, list))
        or not isinstance(stride, (tuple, list))
    ):
        raise Odd("its pickle has a tensor without a storage")
    reader.source.take(len(size))
    if len(size) != len(stride) or not all(map(_is_count, (offset, *size, *stride))):
        raise Odd("its pickle has a tensor of no shape")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    end = offset if 0 in size else last + 1
    if end * (numbers or storage.itemsize) > storage.nbytes:
        raise Odd(
            f"it has a tensor of shape {tuple(size)} that takes more than its storage {storage.key}"
        )
    return _Tensor()


def _quantized(reader: _Reader, storage: Any, offset: Any, size: Any, *rest: Any) -> _Tensor:
    """As above; torch makes one of the full size first, whatever its strides."""
    made = _tensor(reader, storage, offset, size, *rest)
    if math.prod(size) * storage.itemsize > storage.nbytes:
        raise Odd(
            f"it has a quantized tensor of shape {tuple(size)} that takes more than its storage"
            f" {storage.key}"
        )
    return made


def _parameter(reader: _Reader, data: Any, *rest: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise Odd("its pickle makes a parameter of what is no tensor")
    for state in rest[2:]:
        reader.check_attributes(state)
    return data


def _of_class(reader: _Reader, function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes of its own."""
    if not isinstance(function, Named) or function.name not in _TENSORS:
        raise Odd("its pickle makes a tensor in no known way")
    reader.check_attributes(state)
    return reader.make(function, args)


def _without_storage(reader: _Reader, *args: Any) -> _Tensor:
    """A sparse tensor, of others that were looked at, or a shape alone; neither is allocated."""
    return _Tensor()


_KINDS_OF_STORAGE = {
    "Untyped": 1,
    "Byte": 1,
    "Char": 1,
    "Bool": 1,
    "Short": 2,
    "Half": 2,
    "BFloat16": 2,
    "Int": 4,
    "Float": 4,
    "Long": 8,
    "Double": 8,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "QUInt8": 1,
    "QInt8": 1,
    "QInt32": 4,
    "QUInt4x2": 1,
    "QUInt2x4": 1,
}
STORAGES = {
    f"{module}.{kind}Storage": size
    for module in ("torch", "torch.storage")
    for kind, size in _KINDS_OF_STORAGE.items()
}
NUMBERS = {
    str(kind): kind.itemsize for kind in vars(torch).values() if isinstance(kind, torch.dtype)
}
_SCHEMES = (
    "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric"
    " per_channel_affine_float_qparams"
)
_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_MAKERS: dict[str, Callable[..., Any]] = {
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
_KNOWN = {
    *_MAKERS,
    *PASSENGERS,
    *STORAGES,
    *NUMBERS,
    "torch.Tensor",
    *(f"torch.{name}" for name in _SCHEMES.split()),
}
