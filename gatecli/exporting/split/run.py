"""`gatecli run` of a network in pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import ExportError, first_line
from gatecli.exporting.facts import Facts
from gatecli.exporting.outputs import runner_of
from gatecli.exporting.registry import Pieces, registered
from gatecli.exporting.runner import Runner
from gatecli.exporting.split import standalone
from gatecli.traced.recipe import parsed

__all__ = ["open_split"]


def open_split(path: Path) -> Runner:
    """Make the pieces that a description names ready to run.

    Raises:
        ExportError: it is no description, or a piece or its runtime are missing or damaged.
    """
    way = _way(path)

    def opened(file: str, threads: int) -> Any:
        way.check(Path(file))
        return way.open(file, threads)

    try:
        network = standalone.Pieces(path, opened, torch.get_num_threads())
    except standalone.PiecesError as error:
        raise ExportError(first_line(error)) from error
    facts = Facts.from_json(json.dumps(network.facts), str(path))
    if facts.exits != network.exits:
        raise ExportError(f"{path} is damaged: its stages have other exits than it says")

    def compute(image: Tensor, wanted: list[str]) -> list[Any]:
        try:
            logits, taken = network(image.numpy())
        except Exception as error:  # the runtime's own, for all that a graph may do
            raise ExportError(f"cannot run the pieces of {path}: {first_line(error)}") from error
        return [logits, taken][: len(wanted)]

    return runner_of(path, facts, ["logits", "exit"], compute)


def _way(path: Path) -> Pieces:
    """How the pieces' format reads them."""
    able = {each.name: each.pieces for each in registered() if each.pieces is not None}
    try:
        name = parsed(path.read_text(encoding="utf-8"))["format"]
        way = able[name]
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ExportError(
            f"expected {path} to say that its pieces are {' or '.join(able)}, as gatecli export"
            f" --split writes it, but it cannot be read ({first_line(error)}): export it again"
        ) from error
    return way()
