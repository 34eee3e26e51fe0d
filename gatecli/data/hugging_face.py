"""Data sets of Hugging Face's library, map-style: each row by its number."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gatecli.data.split_files import split_named
from gatecli.data.tables import ImageTable
from gatecli.errors import DataError, reason

__all__ = ["HuggingFaceTable", "by_split", "loaded"]

SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes


class HuggingFaceTable(ImageTable):
    """One split of a data set."""

    def __init__(self, name: str, dataset: Any, image: str) -> None:
        """Read a split.

        Args:
            name: for errors.
            dataset: the library's.
            image: the column of images.
        """
        self.name = name
        self.count = len(dataset)
        files = [Path(each["filename"]) for each in dataset.cache_files]
        sizes = [f"{file.name} {file.stat().st_size}" for file in files]
        self.identity = "\0".join((*sizes, str(self.count)))
        self._rows = dataset.select_columns([image]).with_format("arrow")

    def image(self, row: int) -> bytes:
        given = self._rows[row].column(0)[0].as_py()
        content = given.get("bytes") if isinstance(given, dict) else given
        if content is not None:
            return bytes(content)
        path = given.get("path") if isinstance(given, dict) else None
        if path is None or not Path(path).is_file():
            raise ValueError(f"it has no bytes, and {path!r} is no file")
        return Path(path).read_bytes()


def loaded(where: str, operand: str, *, trusted: bool) -> Any:
    """What the library makes of a folder or a name.

    Args:
        where: what errors begin with.
        operand: a folder that save_to_disk wrote, or one of data files; else a name on the hub,
            behind a colon with its configuration where it has several.
        trusted: whether the user has typed it just now. Only then is anything downloaded, and never
            for a folder.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets

    folder = Path(operand).expanduser()
    is_folder = folder.is_dir()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        with _offline(datasets, is_wanted=is_folder or not trusted):
            if any((folder / name).is_file() for name in SAVED):
                return datasets.load_from_disk(str(folder))
            if is_folder:
                return datasets.load_dataset(str(folder))
            name, _, config = operand.partition(":")
            return datasets.load_dataset(name, config or None)
    except Exception as error:  # the library has many, and passes on others'
        way_out = _way_out(where, is_folder=is_folder, trusted=trusted)
        raise DataError(
            f"{where}: expected a folder, or a data set of Hugging Face's, but loading it failed"
            f" ({reason(error, 250)}): {way_out}"
        ) from error


def _way_out(where: str, *, is_folder: bool, trusted: bool) -> str:
    if is_folder:
        return "check what is in it"
    if trusted:
        return "check the name, or name a folder"
    return f"where it is not on this machine yet, pass --data {where} again to have it downloaded"


@contextmanager
def _offline(datasets: Any, *, is_wanted: bool) -> Iterator[None]:
    """Keep the library from the network inside the block; it then takes what it has."""
    from huggingface_hub import constants

    places = [(datasets.config, "HF_HUB_OFFLINE"), (constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in places]
    for (module, name), was in zip(places, before, strict=True):
        setattr(module, name, was or is_wanted)
    try:
        yield
    finally:
        for (module, name), was in zip(places, before, strict=True):
            setattr(module, name, was)


def by_split(where: str, found: Any) -> dict[str, Any]:
    """The data sets of train, val and test, whatever they are called; one alone is train.

    Raises:
        DataError: there is no train split, two are the same split, or it is no map-style data set.
    """
    parts: Mapping[str, Any] = found if isinstance(found, dict) else {"train": found}
    splits: dict[str, Any] = {}
    for name, part in parts.items():
        split = split_named(name)
        if split in splits:
            raise DataError(f"{where}: expected one {split} split, but got two: take one away")
        if split is not None:
            splits[split] = part
    if "train" not in splits:
        there = ", ".join(parts) or "none"
        raise DataError(
            f"{where}: expected a split that is called train, but its splits are {there}: rename"
            " one"
        )
    return splits
