"""What network is looked for: any that is known, or the one that the user names."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from gatecli import limits
from gatecli.architectures.arguments import is_callable_name
from gatecli.architectures.comparison import Unfit, canonical
from gatecli.architectures.identify import Found, found_for, identify, rows_for
from gatecli.architectures.shapes import CLASSES, COUNTER, Shape
from gatecli.architectures.table import Row, table

__all__ = ["HEADS", "Wanted"]

# Where libraries have their last layer, beside where the table's networks have theirs.
HEADS = ("fc", "classifier", "head", "head.fc", "last_linear", "classifier.1", "heads.head")
LEAST = 8  # tensors of a network that is looked for in the middle of a file


@dataclass
class Wanted:
    """What network is looked for.

    Attributes:
        arch: its name; None: any known one.
        args: its arguments.
        rows: what it may look like, once that had to be known.
        brief: whether errors need not say what is nearest.
        compared: how many names of tensors have been compared.
    """

    arch: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    rows: list[Row] | None = None
    brief: bool = False
    compared: int = 0

    @property
    def is_users_own(self) -> bool:
        """Whether it is a callable: its names are its own, and no part is found by its role."""
        return self.arch is not None and is_callable_name(self.arch)

    def fit(self, shapes: Mapping[str, Shape]) -> Found | None:
        """The network with these tensors; None where there is none, or too much was compared.

        Raises:
            ArchitectureError: several have them, or there is no such architecture.
        """
        self.compared += len(shapes)
        if self.compared > limits.COMPARED:
            return None
        if self.rows is not None and not any(_has_names(row, shapes) for row in self.rows):
            return None
        try:
            return self._find(shapes, nearest=False)
        except Unfit:
            self.rows = self.rows or self._own_rows(shapes)
            return None

    def explain(self, shapes: Mapping[str, Shape]) -> NoReturn:
        """Raise the error that says how the tensors differ from those wanted."""
        if not self.brief:
            self._find(shapes, nearest=True)
        raise Unfit("the tensors are those of no network that is looked for")

    def known(self, shapes: Mapping[str, Shape]) -> Iterator[Row]:
        """The rows that are looked for."""
        yield from table() if self.arch is None else self.rows or self._own_rows(shapes) or ()

    def heads(self) -> tuple[str, ...]:
        """Where the network's last layer may lie."""
        if self.is_users_own:
            return ()
        if self.rows is None:
            return _known_heads()
        return tuple(
            head for head in _known_heads() if any(has_head(row, head) for row in self.rows)
        )

    def least(self) -> int:
        """How many tensors it has at least."""
        return min((len(row.tensors) for row in self.rows or ()), default=LEAST)

    def _own_rows(self, shapes: Mapping[str, Shape]) -> list[Row] | None:
        return None if self.arch is None else rows_for(self.arch, self.args, shapes)

    def _find(self, shapes: Mapping[str, Shape], *, nearest: bool) -> Found:
        if self.arch is not None:
            return found_for(self.arch, dict(self.args), shapes)
        found = identify(shapes, nearest=nearest)
        if not self.args:
            return found
        left = tuple(each for each in found.assumed if not each.args.keys() & self.args.keys())
        altered = found_for(found.arch, {**found.args, **self.args}, shapes)
        return replace(altered, assumed=left)


def has_head(row: Row, head: str) -> bool:
    """Whether a network has a linear layer of this name."""
    return len(row.tensors.get(f"{head}.weight", ())) >= 2


def _has_names(row: Row, shapes: Mapping[str, Shape]) -> bool:
    own = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    return canonical(own, row.family)[0].keys() == row.tensors.keys()


@functools.cache
def _known_heads() -> tuple[str, ...]:
    heads = dict.fromkeys(HEADS)
    for row in table():
        for name, shape in row.tensors.items():
            if name.endswith(".weight") and shape[:1] == (CLASSES,) and not _is_aside(name):
                heads[name.removesuffix(".weight")] = None
    return tuple(heads)


def _is_aside(name: str) -> bool:
    """Whether a head is one that only training runs."""
    return name.startswith(("aux", "Aux"))
