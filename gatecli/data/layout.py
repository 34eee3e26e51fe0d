"""Which folders of an image folder are its splits: they go by several names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gatecli.errors import DataError

__all__ = ["ALIASES", "Layout", "class_folders", "layout_of"]

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "dev"),
    "test": ("test", "testing"),
}
SHOWN = 3  # folders in a note


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The folder of each split.

    Attributes:
        folders: by the split's name; "train" is always there.
        notes: for people: names that were taken for a split's, folders that were passed over.
    """

    folders: dict[str, Path]
    notes: tuple[str, ...] = ()


def layout_of(where: str, folder: Path) -> Layout:
    """Find the splits in a folder; without any it is the train split itself.

    Args:
        where: what errors begin with.
        folder: holds a folder for each split, or for each class.

    Raises:
        DataError: there is no folder, no train split, or two folders for one split.
    """
    if not folder.is_dir():
        raise DataError(
            f"{where}: expected {folder} to be a folder, but there is none: check the path"
        )
    inside = class_folders(folder)
    found: dict[str, Path] = {}
    for split in ALIASES:
        named = _named_so(folder, inside, split)
        if len(named) > 1:
            raise DataError(
                f"{where}: expected one folder for the {split} split, but got"
                f" {' and '.join(path.name for path in named)}: take the others away"
            )
        found |= dict.fromkeys([split][: len(named)], named[0] if named else folder)
    if not found:
        return Layout(folders={"train": folder})
    if "train" not in found:
        there = ", ".join(path.name for path in found.values())
        raise DataError(
            f"{where}: expected {folder / 'train'} beside {there}, but there is none: put the"
            " training images there"
        )
    return _described(folder, inside, found)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, hidden ones left out, in order.

    Raises:
        DataError: it cannot be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError as error:
        raise DataError(
            f"expected {folder} to be a readable folder, but reading it failed ({error.strerror}):"
            " check its permissions"
        ) from error
    return tuple(sorted(name for name in names if not name.startswith(".")))


def _named_so(folder: Path, names: tuple[str, ...], split: str) -> list[Path]:
    """The folders that have a split's name.

    The name itself suffices; under another one there have to be folders of classes, or it is a
    class that is called so.
    """
    paths = []
    for name in names:
        path = folder / name
        if name == split or (name.lower() in ALIASES[split] and class_folders(path)):
            paths.append(path)
    return paths


def _described(folder: Path, inside: tuple[str, ...], found: dict[str, Path]) -> Layout:
    """The layout with its notes; ImageNet's test images come without labels, and are no split."""
    notes = []
    if "test" in found and not class_folders(found["test"]):
        notes.append(f"{found.pop('test')} has no class folders: its images are left out")
    for split, path in found.items():
        if path.name != split:
            notes.append(f"{path} is taken for the {split} split")
    taken = {path.name for path in found.values()} | {"test"}
    others = [name for name in inside if name not in taken]
    if others:
        rest = f", ... ({len(others)} in all)" if len(others) > SHOWN else ""
        notes.append(
            f"{folder} has splits, so {', '.join(others[:SHOWN])}{rest} beside them is passed over"
        )
    return Layout(folders=found, notes=tuple(notes))
