"""Damaged files: each is read as an undamaged one, refused in one line, or what nobody can know."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from campaigns import bombs, damage, folders, graphs, pickles, shelf, states
from campaigns.commands import command
from campaigns.outcome import FAILED, OTHER, RIGHT, Outcome
from campaigns.worker import Trial
from gatecli import checkpoint
from gatecli.errors import GatecliError
from gatecli.exporting.facts import facts_of
from gatecli.network import Network
from gatecli.stages.classify import prepared

CANARY = "canary"
NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
COMMANDS = (
    ("inspect",),
    ("log",),
    ("use",),
    ("run", "image.png"),
    ("eval", "--data", "npz:arrays.npz"),
    ("prune", "--data", "npz:arrays.npz", "--out", "smaller.safetensors"),
)
RAW = {"bits": damage.flip_bits, "cut off": damage.cut_off, "rearranged": damage.rearrange}
SAFETENSORS = {
    **RAW,
    "header": damage.mutate_header,
    "recipe": damage.mutate_metadata,
    "names": damage.exchange_tensors,
    "values": damage.change_body,
}
Judged = tuple[str, str]  # verdict and detail


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of files, how they are damaged, and how one is judged.

    Attributes:
        pattern: which files of the shelf.
        weight: how often it comes.
        checked: damage that checksums tell, so that no other result may come of it.
    """

    pattern: str
    weight: int
    damages: Mapping[str, Callable[[random.Random, Any], Any]]
    judge: Callable[[Path, Path], Judged]
    checked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a case's number stands for."""

    form: str
    damage: str
    chance: random.Random


def plan(seed: int, number: int) -> Plan:
    """The form and the damage of a case, and what its further chance comes from."""
    chance = random.Random(f"files {seed} {number}")
    form = chance.choices(list(FORMS), [each.weight for each in FORMS.values()])[0]
    chosen = chance.choice(list(FORMS[form].damages))
    return Plan(form=form, damage=chosen, chance=chance)


def label(seed: int, number: int) -> Outcome:
    """The outcome of a case of which nothing came."""
    planned = plan(seed, number)
    kind = f"{planned.form}: {planned.damage}"
    return Outcome(case=f"files:{number}", kind=kind, verdict=FAILED)


def case(store: Path, seed: int, number: int, folder: Path) -> Trial:
    """Make a damaged file; the trial reads it."""
    torch.set_num_threads(1)  # a state may have set another number
    planned = plan(seed, number)
    form = FORMS[planned.form]
    originals = sorted(store.glob(form.pattern))
    if not originals:  # a short shelf lacks it
        return lambda: _outcome(seed, number, (RIGHT, "not on this shelf"))
    original = planned.chance.choice(originals)
    path = _damaged(planned, original, store, folder)
    return lambda: _outcome(seed, number, _tried(planned, path, original, folder))


def _outcome(seed: int, number: int, judged: Judged) -> Outcome:
    known = label(seed, number)
    return Outcome(case=known.case, kind=known.kind, verdict=judged[0], detail=judged[1])


def _damaged(planned: Plan, original: Path, store: Path, folder: Path) -> Path:
    """The damaged copy."""
    chance = planned.chance
    if original.is_dir():
        return folders.damaged(chance, planned.damage, original, folder / "images")
    path = folder / original.name
    if planned.damage == "hostile":
        path.write_bytes(pickles.hostile(chance, original.read_bytes(), str(folder / CANARY)))
    elif planned.damage == "bomb":
        path.write_bytes(bombs.bomb(chance, _gated(store)))
    else:
        path.write_bytes(FORMS[planned.form].damages[planned.damage](chance, original.read_bytes()))
    for name in ("arrays.npz", "image.png"):
        if not (folder / name).exists():
            (folder / name).symlink_to(store / name)
    return path


@cache
def _gated(store: Path) -> bytes:
    return sorted(store.glob("tuned.*"))[0].read_bytes()


def _tried(planned: Plan, path: Path, original: Path, folder: Path) -> Judged:
    form = FORMS[planned.form]
    try:
        verdict, detail = form.judge(path, original)
    except Exception as error:  # whatever gatecli lets out
        verdict, detail = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:250]}"
    if (folder / CANARY).exists():
        return FAILED, f"THE CANARY: a file's code was run ({verdict}: {detail})"
    if verdict == OTHER and planned.damage in form.checked:
        return FAILED, f"another result, which a checksum or a size tells: {detail}"
    return verdict, f"{original.name}: {detail}"


def judge_checkpoint(path: Path, original: Path) -> Judged:
    """Load it, compare the logits, and try a command on it."""
    try:
        network = checkpoint.load(path)
    except GatecliError as error:
        return _refusal(path, error)
    wrong = _unlike_file(network.state_dict(), path)
    if wrong:
        return FAILED, f"its tensor `{wrong}` is not what the file holds"
    with torch.inference_mode():
        logits = network(shelf.images())
    if not bool(logits.isfinite().all()):
        return _not_finite(path, network)
    chosen = COMMANDS[sum(path.read_bytes()[-64:]) % len(COMMANDS)]
    verdict, detail = command(chosen[0], path, *chosen[1:]).judge()
    if verdict == FAILED:
        return FAILED, f"gatecli {chosen[0]}: {detail}"
    return _compared(logits, _answers(original.parent).get(original.name))


@cache
def _answers(store: Path) -> dict[str, Tensor]:
    return shelf.answers(store)


def _refusal(path: Path, error: GatecliError) -> Judged:
    """What the command line makes of a file that the library refuses."""
    verdict, detail = command("inspect", path).judge()
    if verdict == RIGHT:
        return FAILED, f"inspect reads what the library refuses: {error}"
    return verdict, detail


def _not_finite(path: Path, network: Network) -> Judged:
    """Logits that are not finite: a command has to say so of the image where they are not."""
    verdict, detail = command("run", path, "image.png", "--json").judge()
    if verdict != RIGHT:
        return verdict, detail
    image = prepared("image.png", facts_of(network, single=True))
    with torch.inference_mode():
        finite = bool(network(image).isfinite().all())
    if finite:
        return OTHER, "weights so large that some images overflow, and this one does not"
    return FAILED, "the logits are not finite, and gatecli run does not say so"


def _compared(found: Tensor, known: Tensor | None) -> Judged:
    if known is not None and found.shape == known.shape and torch.allclose(found, known):
        return RIGHT, "the same logits"
    return OTHER, "other logits"


def _unlike_file(loaded: dict[str, Tensor], path: Path) -> str:
    """The first tensor that differs from the bytes in a safetensors file, read here anew."""
    data = path.read_bytes()
    if data[8:9] != b"{" or data.startswith((b"PK", b"\x80")):
        return ""
    header, body = damage.split_safetensors(data)
    for name, tensor in loaded.items():
        entry = header.get(name)
        if entry is not None and entry["dtype"] in NUMBERS and not _is(tensor, entry, body):
            return name
    return ""


def _is(tensor: Tensor, entry: dict[str, list[int]], body: bytes) -> bool:
    start, end = entry["data_offsets"]
    stored = np.frombuffer(body[start:end], NUMBERS[str(entry["dtype"])]).reshape(entry["shape"])
    wanted = stored.astype(tensor.numpy().dtype)
    return bool(np.array_equal(wanted, tensor.numpy(), equal_nan=tensor.is_floating_point()))


def zero_checksums(chance: random.Random, data: bytes) -> bytes:
    """Take the checksums out of an archive, then change a byte of a tensor."""
    changed = bytearray(data)
    for mark, at in ((b"PK\x01\x02", 16), (b"PK\x03\x04", 14)):
        start = data.find(mark)
        while start >= 0:
            struct.pack_into("<I", changed, start + at, 0)
            start = data.find(mark, start + 4)
    changed[chance.randrange(len(data) // 4, len(data) // 2)] ^= 1
    return bytes(changed)


def _special(chance: random.Random, data: bytes) -> bytes:
    """Stands for damage that `_damaged` does itself."""
    return data


ZIP = {
    **RAW,
    "entries": pickles.edit_entries,
    "sizes": pickles.resize_records,
    "opcodes": pickles.edit_zip_pickle,
    "no checksums": zero_checksums,
    "hostile": _special,
    "bomb": _special,
}
LEGACY = {**RAW, "opcodes": pickles.edit_legacy_pickle}
NPZ = {**RAW, "entries": pickles.edit_entries, "headers": folders.edit_arrays}
FORMS = {
    "attached": Form(pattern="attached.*", weight=10, damages=SAFETENSORS, judge=judge_checkpoint),
    "tuned": Form(pattern="tuned.*", weight=12, damages=SAFETENSORS, judge=judge_checkpoint),
    "pruned": Form(pattern="pruned.*", weight=12, damages=SAFETENSORS, judge=judge_checkpoint),
    "calibrated": Form(
        pattern="calibrated.*", weight=10, damages=SAFETENSORS, judge=judge_checkpoint
    ),
    "plain": Form(
        pattern="plain.safetensors", weight=6, damages=SAFETENSORS, judge=judge_checkpoint
    ),
    "weights": Form(
        pattern="export.weights.safetensors", weight=3, damages=SAFETENSORS, judge=judge_checkpoint
    ),
    "zip": Form(
        pattern="[zw]*.pt",
        weight=22,
        damages=ZIP,
        judge=judge_checkpoint,
        checked=("bits", "cut off", "rearranged", "sizes"),
    ),
    "legacy": Form(pattern="legacy.pt", weight=7, damages=LEGACY, judge=judge_checkpoint),
    "state": Form(pattern="state.safetensors", weight=2, damages=states.STATE, judge=states.judge),
    "onnx": Form(pattern="*.onnx", weight=6, damages=graphs.ONNX, judge=graphs.judge),
    "npz": Form(
        pattern="arrays.npz",
        weight=6,
        damages=NPZ,
        judge=folders.judge_arrays,
        checked=("bits", "cut off"),
    ),
    "folder": Form(pattern="images", weight=6, damages=folders.FOLDER, judge=folders.judge_folder),
}
