"""Which timm architectures have given tensors, by a shipped table of hashes.

A row holds an architecture's name, a hash of its tensors' names, where in their shapes counts of
classes and of input channels stand, and a hash of the shapes with these left open. What fits by
the hashes is built and compared before it is believed. The table is read only where torchvision's
and `cifar`'s do not fit.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gatecli.architectures.shapes import Shape

__all__ = ["TimmRow", "make_timm_row", "known_to_timm", "pack", "timm_rows", "timm_table", "unpack"]

FILE = "timm.json.gz"
Open = tuple[int, int, int]  # number of a tensor, of a dimension, and the mark that stands there


@dataclass(frozen=True, kw_only=True)
class TimmRow:
    """An architecture of timm.

    Attributes:
        name: as timm has it.
        names: hash of its tensors' names.
        shapes: hash of names and shapes, counts left open.
        open: where the counts stand, the tensors numbered in the order of their names.
    """

    name: str
    names: str
    shapes: str
    open: tuple[Open, ...]

    def counts(self, tensors: Mapping[str, Shape]) -> dict[int, int]:
        """The numbers that tensors have where the architecture leaves counts open, by mark."""
        keys = sorted(tensors)
        return {mark: tensors[keys[number]][at] for number, at, mark in self.open}


def make_timm_row(name: str, tensors: Mapping[str, Shape]) -> TimmRow:
    """The row of an architecture with these tensors, counts marked in their shapes."""
    marks = []
    for number, key in enumerate(sorted(tensors)):
        for dimension, size in enumerate(tensors[key]):
            if size < 0:
                marks.append((number, dimension, size))
    return TimmRow(
        name=name, names=_digest(sorted(tensors)), shapes=_of_shapes(tensors), open=tuple(marks)
    )


def timm_rows(tensors: Mapping[str, Shape]) -> list[TimmRow]:
    """The architectures that have these tensors by the hashes, the plainest first.

    That is the one with the shortest name, of those as long the first by the alphabet.
    """
    rows = timm_table().get(_digest(sorted(tensors)), ())
    fitting = [row for row in rows if _of_shapes(_opened(tensors, row.open)) == row.shapes]
    return sorted(fitting, key=lambda row: (len(row.name), row.name))


def known_to_timm(name: str) -> bool:
    """Whether timm has an architecture of this name, installed or not."""
    return any(name == row.name for rows in timm_table().values() for row in rows)


def _opened(tensors: Mapping[str, Shape], marks: Sequence[Open]) -> dict[str, Shape]:
    """The tensors with marks put where a row has its counts."""
    opened = dict(tensors)
    keys = sorted(tensors)
    for number, dimension, mark in marks:
        shape = list(opened[keys[number]])
        if dimension < len(shape):
            shape[dimension] = mark
        opened[keys[number]] = tuple(shape)
    return opened


def _of_shapes(tensors: Mapping[str, Shape]) -> str:
    return _digest(f"{name} {list(tensors[name])}" for name in sorted(tensors))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


@functools.cache
def timm_table() -> dict[str, tuple[TimmRow, ...]]:
    """The rows of the shipped table by the hash of their tensors' names."""
    folder = importlib.resources.files("gatecli.architectures")
    by_names: dict[str, list[TimmRow]] = {}
    for row in unpack(folder.joinpath(FILE).read_bytes()):
        by_names.setdefault(row.names, []).append(row)
    return {names: tuple(rows) for names, rows in by_names.items()}


def pack(rows: Iterable[TimmRow]) -> bytes:
    """Rows as gzipped JSON; the same rows give the same bytes."""
    packed = [[row.name, row.names, row.shapes, row.open] for row in rows]
    return gzip.compress(json.dumps(packed, separators=(",", ":")).encode(), mtime=0)


def unpack(data: bytes) -> list[TimmRow]:
    """The inverse of `pack`."""
    rows = []
    for name, names, shapes, marks in json.loads(gzip.decompress(data)):
        places = tuple((number, dimension, mark) for number, dimension, mark in marks)
        rows.append(TimmRow(name=name, names=names, shapes=shapes, open=places))
    return rows
