"""Which split each of a data set's files belongs to, where a file holds many samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gatecli.data.layout import ALIASES
from gatecli.data.walked import files_within
from gatecli.errors import DataError

__all__ = ["SplitFiles", "split_files", "split_named"]

SHOWN = 3  # files in a note


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The files of each split.

    Attributes:
        folder: what holds them all; of a single file, the folder that it lies in.
        files: by the split's name, sorted; "train" is always there.
        notes: for people: files that were passed over.
    """

    folder: Path
    files: dict[str, tuple[Path, ...]]
    notes: tuple[str, ...] = ()


def split_files(where: str, path: Path, ending: str) -> SplitFiles:
    """Sort files by their splits.

    A folder that is called as a split says whose its files are, else a word of the file's name does
    (`imagenet-train-0001.tar`). Where nothing says it, all are train's.

    Args:
        where: what errors begin with.
        path: a folder, or a file, which is the train split.
        ending: of the files, ".tar".

    Raises:
        DataError: there are no such files, none is train's, or one's name has two splits in it.
    """
    if path.is_file():
        return SplitFiles(folder=path.parent, files={"train": (path,)})
    if not path.is_dir():
        raise DataError(
            f"{where}: expected {path} to be a folder of {ending} files, but there is none: check"
            " the path"
        )
    by_split: dict[str | None, list[Path]] = {}
    for name in files_within(path, (ending,)):
        file = Path(name)
        by_split.setdefault(_split_of(where, path, file), []).append(file)
    if not by_split:
        raise DataError(
            f"{where}: expected {ending} files in {path}, but found none: check the path"
        )
    others = by_split.pop(None, [])
    if not by_split:
        return SplitFiles(folder=path, files={"train": tuple(others)})
    found = {name: tuple(by_split[name]) for name in ALIASES if name in by_split}
    if "train" not in found:
        there = ", ".join(found)
        raise DataError(
            f"{where}: expected {ending} files of the train split in {path}, but got those of"
            f" {there} alone: say `train` in the files' names, or put them into a folder train"
        )
    notes = (_passed_over(path, others),) if others else ()
    return SplitFiles(folder=path, files=found, notes=notes)


def split_named(word: str) -> str | None:
    """The split that goes by a name; None where none does."""
    spelt = word.lower()
    return next((split for split, names in ALIASES.items() if spelt in names), None)


def _split_of(where: str, folder: Path, file: Path) -> str | None:
    for parent in reversed(file.relative_to(folder).parts[:-1]):
        split = split_named(parent)
        if split is not None:
            return split
    words = re.split(r"[^A-Za-z]+", file.stem)
    named = {split_named(word) for word in words} - {None}
    if len(named) > 1:
        raise DataError(
            f"{where}: expected the name of {file} to say one split, but it says"
            f" {' and '.join(sorted(map(str, named)))}: rename it, or put it into a folder called"
            " as its split"
        )
    return next(iter(named), None)


def _passed_over(folder: Path, files: list[Path]) -> str:
    names = ", ".join(str(file.relative_to(folder)) for file in files[:SHOWN])
    rest = f", ... ({len(files)} in all)" if len(files) > SHOWN else ""
    return f"{folder} has splits, so {names}{rest} beside them is passed over"
