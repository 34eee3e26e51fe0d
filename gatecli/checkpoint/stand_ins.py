"""What stands for the values in a pickle, so that none of them need be made.

Values that gatecli has no use for (paths, dates, numpy's scalars and arrays, parsed options) are
harmless since they are never made: torch too is given `PASSENGERS` in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "NUMBERS",
    "PASSENGERS",
    "STORAGES",
    "Named",
    "Odd",
    "Passenger",
    "Storage",
    "StoredTensor",
]


class Odd(Exception):
    """The pickle holds what no checkpoint needs, or asks for too much."""


class Passenger:
    """Stands for a value that is not made; whatever is done to it is forgotten."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Passenger:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class Options(Passenger):
    """Stands for the options that a script parsed: what they were is kept, as plain data."""

    values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.values = {key: value for key, value in state.items() if isinstance(key, str)}


def _empty_dict(*args: Any) -> dict[Any, Any]:
    return {}


def _empty_list(*args: Any) -> list[Any]:
    return []


# What training scripts store beside the weights, by the names under which Python pickles it.
_ARRAY_KINDS = (
    "Bool Float16 Float32 Float64 Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Str Bytes"
    " Object"
)
_ARRAY_TYPES = [f"{kind}DType" for kind in _ARRAY_KINDS.split()]
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_HELD = {
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy": (
        "dtype ndarray bool_ bool str_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16"
        " float32 float64"
    ),
    "numpy.dtypes": " ".join(_ARRAY_TYPES),
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "datetime": "datetime date time timedelta timezone",
    "builtins": "int float str bool list dict tuple bytes object range slice frozenset",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "torch.torch_version": "TorchVersion",
    "uuid": "UUID",
    "decimal": "Decimal",
    "fractions": "Fraction",
}


def _passengers() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module, names in _HELD.items():
        found.update(dict.fromkeys([f"{module}.{name}" for name in names.split()], Passenger))
    found.update({"argparse.Namespace": Options, "types.SimpleNamespace": Options})
    found["collections.defaultdict"] = _empty_dict
    found["collections.deque"] = _empty_list
    return found


PASSENGERS = _passengers()


@dataclass(frozen=True)
class Named:
    """A class, function or constant that a pickle refers to."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A storage that a pickle asks for.

    Attributes:
        key: its name in the file.
        nbytes: its size.
        itemsize: bytes of one number in it.
    """

    key: str
    nbytes: int
    itemsize: int


class StoredTensor:
    """Stands for a tensor that lies within its storage."""


_STORAGE_SIZES = {
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


def _storages() -> dict[str, int]:
    found = {}
    for kind, size in _STORAGE_SIZES.items():
        for module in ("torch", "torch.storage"):
            found[f"{module}.{kind}Storage"] = size
    return found


STORAGES = _storages()  # bytes of a number, by the class's name
_DTYPES = [kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)]
NUMBERS = {str(kind): kind.itemsize for kind in _DTYPES}
