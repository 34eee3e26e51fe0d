"""Read a pickle as plain data: every class and function that it names is answered by a stand-in."""

from __future__ import annotations

import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gatecli import limits
from gatecli.checkpoint.makers import KNOWN, MAKERS, is_count
from gatecli.checkpoint.stand_ins import PASSENGERS, STORAGES, Named, Odd, Passenger, Storage

if TYPE_CHECKING:
    from gatecli.checkpoint.survey import Survey

__all__ = ["PickleReader", "Source"]


class Source:
    """The data, of which no more is read than is there.

    It counts steps, too many of which are Odd.

    Args:
        file: the data.
        whole: whether it is all that there is.
    """

    def __init__(self, file: io.BytesIO, *, whole: bool) -> None:
        self._file = file
        self._whole = whole
        self._left = limits.PICKLE_STEPS

    def take(self, steps: int) -> None:
        """Count so many steps."""
        self._left -= steps
        if self._left < 0:
            raise Odd(f"its pickle has more than {limits.PICKLE_STEPS:,} instructions")

    def read(self, size: int) -> bytes:
        """So many bytes, as a file gives them."""
        self.take(1)
        data = self._file.read(size)
        if len(data) < size:
            self._end()
        return data

    def readline(self) -> bytes:
        """The next line, as a file gives it."""
        self.take(1)
        line = self._file.readline()
        if not line.endswith(b"\n"):
            self._end()
        return line

    def _end(self) -> None:
        if not self._whole:
            raise Odd(f"its pickle has more than {limits.PICKLE_BYTES:,} bytes")
        raise EOFError("its pickle ends early")


class PickleReader(pickle._Unpickler):
    """Reads a pickle as plain data.

    Python's own reader does the rest: its memo is a dict, its lists grow as they are filled.

    Args:
        source: the pickle.
        found: where to put down what it asks for.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, source: Source, found: Survey) -> None:
        super().__init__(source, encoding="utf-8")
        self.source = source
        self.found = found

    def find_class(self, module: str, name: str) -> Named:
        """The name in today's spelling; what is neither torch's nor a passenger's is noted."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full not in KNOWN and full not in self.found.foreign:
            self.found.foreign.append(full)
        return Named(full)

    def persistent_load(self, pid: Any) -> Any:
        """A storage; in older files also the class of a module."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            if isinstance(pid, tuple) and pid[:1] == ("module",):
                return pid[1]
            raise Odd("its pickle refers to something that is no storage")
        _, kind, key, _device, numbers = pid[:5]
        is_known = isinstance(kind, Named) and kind.name in STORAGES
        if not is_known or not isinstance(key, str) or not is_count(numbers):
            raise Odd("its pickle asks for a storage of no known kind")
        itemsize = STORAGES[kind.name]
        asked = Storage(key=key, nbytes=numbers * itemsize, itemsize=itemsize)
        if self.found.storages.setdefault(key, asked) != asked:
            raise Odd(f"its pickle asks for storage {key} in two sizes")
        return self._viewed(asked, pid[5:])

    def _viewed(self, whole: Storage, view: tuple[Any, ...]) -> Storage:
        """The part of a storage that an older file may ask for."""
        if not view or view[0] is None:
            return whole
        _key, offset, numbers = view[0]
        are_counts = is_count(offset) and is_count(numbers)
        if not are_counts or (offset + numbers) * whole.itemsize > whole.nbytes:
            raise Odd(f"its pickle asks for more of storage {whole.key} than there is")
        return replace(whole, nbytes=numbers * whole.itemsize)

    def make(self, what: Any, args: Any) -> Any:
        """What a call gives: plain data, or a stand-in."""
        if isinstance(what, Passenger):
            return what
        if not isinstance(what, Named) or not isinstance(args, tuple):
            raise Odd("its pickle calls what is no function")
        if what.name in self.found.foreign:
            return Passenger()
        if what.name in MAKERS:
            return MAKERS[what.name](self, *args)
        if what.name in PASSENGERS:
            return PASSENGERS[what.name]()
        raise Odd(f"its pickle calls {what.name}, which no checkpoint needs")

    def check_key(self, key: Any) -> None:
        """Odd where hashing a key would take long.

        So it would with tuples of the same tuples, or with a number without end.
        """
        todo = [key]
        count = 0
        while todo:
            part = todo.pop()
            count += 1
            if isinstance(part, tuple):
                todo += part[: limits.KEY_PARTS + 1]
            is_long = isinstance(part, int) and part.bit_length() > 8 * limits.KEY_PARTS
            if is_long or count + len(todo) > limits.KEY_PARTS:
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
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if part is not None and not isinstance(part, dict):
                raise Odd("its pickle gives attributes that have no names")
            self.source.take(len(part or ()))
            if any(map(_is_own, part or ())):
                raise Odd("its pickle changes what tensors or dicts are")

    def load_reduce(self) -> None:
        args = self.stack.pop()
        what = self.stack.pop()
        self.append(self.make(what, args))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # named arguments, of which nothing is made
        args = self.stack.pop()
        what = self.stack.pop()
        self.append(self.make(what, args))

    def load_obj(self) -> None:
        what, *args = self.pop_mark()
        self.append(self.make(what, tuple(args)))

    def load_inst(self) -> None:
        module = self.readline()[:-1].decode("ascii")
        name = self.readline()[:-1].decode("ascii")
        self.append(self.make(self.find_class(module, name), tuple(self.pop_mark())))

    def load_build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
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
    """Whether a name is one of every tensor's or dict's own attributes, or none at all."""
    if not isinstance(name, str):
        return True
    return hasattr(torch.nn.Parameter, name) or hasattr(OrderedDict, name)
