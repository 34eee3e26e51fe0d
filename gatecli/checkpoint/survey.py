"""Look through a torch file's pickle before torch reads it.

Nothing in it runs, and nothing is allocated. What comes out are the storages that the pickle asks
for, which are compared with those that the file has, and the names that `weights_only` loading
would refuse.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

from gatecli.checkpoint.pickle_reader import PickleReader, Source
from gatecli.checkpoint.stand_ins import Odd, Storage

__all__ = ["Survey", "survey"]


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


def survey(data: bytes, pickles: int = 1, *, whole: bool = True) -> Survey:
    """Look through so many pickles in a row.

    Args:
        data: bytes that begin with the pickles.
        pickles: how many.
        whole: whether `data` is all that there is.

    Raises:
        Odd: a pickle asks for too much, or for what no checkpoint needs.
        Exception: whatever damage brings about.
    """
    found = Survey()
    file = io.BytesIO(data)
    source = Source(file, whole=whole)
    for _ in range(pickles):
        try:
            found.value = PickleReader(source, found).load()
        except Odd:
            if not found.foreign:
                raise
            break  # that it needs code is what there is to say
    found.end = file.tell()
    return found
