"""Damage to data sets, npz files and folders of images, and what is read of them."""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from campaigns import damage
from campaigns.commands import command
from campaigns.outcome import FAILED, OTHER, REFUSED, RIGHT
from campaigns.pickles import archive_of, entries_of
from campaigns.shelf import SIDE
from gatecli.data import batches, load_data
from gatecli.errors import GatecliError
from gatecli.traced.recipe import InputSpec

INPUT = InputSpec((SIDE, SIDE), 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SHAPES = ("(40, 8, 8, 3)", "(20, 8, 8, 3)", "(20, 1)", "(40, 1)")


def edit_arrays(chance: random.Random, data: bytes) -> bytes:
    """What an array's header says of its type, order and shape."""
    entries = entries_of(data)
    name = chance.choice(sorted(entries))
    content = entries[name]
    length = 10 + int.from_bytes(content[8:10], "little")
    header = _header(chance)
    if chance.random() < 0.3:
        header = content[10:length].decode().strip().replace("8", "4", 1)
    text = header.encode() + b"\n"
    entries[name] = content[:8] + struct.pack("<H", len(text)) + text + content[length:]
    return archive_of(entries)


def _header(chance: random.Random) -> str:
    kinds = ["|u1", "<f4", "<i8", "|O", "|S8", "<U4", "|V3", "<c16", "|b1", "<M8[s]"]
    huge = ["(1000000000000,)", "(65536, 65536, 3)", "(-1, 8)", "()", "(40, 8, 8, 3, 1)"]
    shape = chance.choice([*SHAPES, *huge, "(" * 200 + ")" * 200])
    order = chance.choice(["False", "True", "None"])
    return f"{{'descr': {chance.choice(kinds)!r}, 'fortran_order': {order}, 'shape': {shape}, }}"


def judge_arrays(path: Path, original: Path) -> tuple[str, str]:
    """Read the file, and compare it with the undamaged one."""
    return _judge(f"npz:{path}", f"npz:{original}", original.parent)


def judge_folder(path: Path, original: Path) -> tuple[str, str]:
    """Read all images, and compare them with the undamaged ones."""
    return _judge(f"imagefolder:{path}", f"imagefolder:{original}", original.parent)


def _judge(spec: str, original: str, store: Path) -> tuple[str, str]:
    try:
        found = _everything(spec)
    except GatecliError as error:
        size = ("--input-size", SIDE)
        verdict, detail = command("eval", store / "zip.pt", "--data", spec, *size).judge()
        return (FAILED, f"eval: {detail}") if verdict == FAILED else (REFUSED, str(error))
    wanted = _undamaged(original)
    same = len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    return (RIGHT, "the same images") if same else (OTHER, "other images")


@cache
def _undamaged(spec: str) -> list[Tensor]:
    return _everything(spec)


def _everything(spec: str) -> list[Tensor]:
    """All images and labels of all splits."""
    data = load_data(spec)
    found: list[Tensor] = []
    for name in sorted(data.splits):
        for pixels, labels in batches(data.splits[name], input=INPUT, batch_size=64):
            found += [pixels, labels]
    return found


def damaged(chance: random.Random, name: str, original: Path, folder: Path) -> Path:
    """A copy of a folder of images with one damage."""
    shutil.copytree(original, folder)
    FOLDER[name](chance, folder)
    return folder


def _image(chance: random.Random, folder: Path) -> Path:
    return chance.choice(sorted(path for path in folder.rglob("*.*") if path.is_file()))


def _bytes(chance: random.Random, folder: Path) -> None:
    for _ in range(chance.randint(1, 3)):
        path = _image(chance, folder)
        if path.stat().st_size:
            how = chance.choice([damage.flip_bits, damage.cut_off, damage.rearrange])
            path.write_bytes(how(chance, path.read_bytes()))


def _links(chance: random.Random, folder: Path) -> None:
    """Links that lead back, to nowhere, or to files that are none."""
    home = _image(chance, folder).parent
    targets = [".", "..", str(folder), "nowhere", "/dev/zero", "/dev/full", "/proc/self/mem"]
    for number in range(chance.randint(1, 3)):
        suffix = chance.choice(["", ".png"])
        (home / f"link{number}{suffix}").symlink_to(chance.choice(targets))


def _special(chance: random.Random, folder: Path) -> None:
    """What has an image's name and is no file."""
    home = _image(chance, folder).parent
    if chance.random() < 0.5:
        os.mkfifo(home / "x.png")
    else:
        (home / "x.png").mkdir()


def _names(chance: random.Random, folder: Path) -> None:
    """Names that are no text, or no good one."""
    path = _image(chance, folder)
    names = [b"\xff\xfe.png", b" x.png", b"a\nb.png", b"\x1b[31m.png", b"n" * 240 + b".png"]
    os.rename(os.fsencode(path), os.fsencode(path.parent) + b"/" + chance.choice(names))
    if chance.random() < 0.5:
        odd = Path(os.fsdecode(os.fsencode(path.parent) + b"/" + names[0]))
        odd.write_bytes(_image(chance, folder).read_bytes())  # the very same file, it may be
    if chance.random() < 0.3:
        path.write_bytes(b"no image")


def _classes(chance: random.Random, folder: Path) -> None:
    """Classes and splits that are empty, gone, or more than there should be."""
    split = folder / chance.choice(["train", "val"])
    how = chance.randrange(5)
    if how == 0:
        (split / "cat").mkdir()
    elif how == 1:
        shutil.rmtree(split / "ant")
    elif how == 2:
        shutil.rmtree(split)
    elif how == 3:
        (split / "dog").write_bytes(b"no folder")
    else:
        os.rename(split / "ant", os.fsencode(split) + b"/\xff\n")


def _huge(chance: random.Random, folder: Path) -> None:
    """A small file that is a large image."""
    home = _image(chance, folder).parent
    (home / "huge.png").write_bytes(_png(chance.choice([9000, 13000, 30000])))


@cache
def _png(side: int) -> bytes:
    """A black image."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    facts = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [_chunk(b"IHDR", facts), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


FOLDER: dict[str, Callable[[random.Random, Path], None]] = {
    "bytes": _bytes,
    "links": _links,
    "special files": _special,
    "names": _names,
    "classes": _classes,
    "huge": _huge,
}
