"""Damage to the state of an unfinished training, and what `finetune --resume` makes of it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from campaigns import damage
from campaigns.commands import command
from campaigns.outcome import FAILED, OTHER, RIGHT
from campaigns.shelf import GATED, inside

RUN = Path(".gatecli/runs/out")
PRECIOUS = "precious"
OUTPUTS = ("../precious.safetensors", "kept.safetensors", "/dev/full", "no/such/folder", "")


def about(chance: random.Random, data: bytes) -> bytes:
    """What the run was started with; not its options: an honest run may be long."""
    header, body = damage.split_safetensors(data)
    metadata = header["__metadata__"]
    begun = json.loads(metadata["about"])
    options = begun.pop("options")
    changed = damage.mutate_json(chance, begun)
    metadata["about"] = damage.dumped({**changed, "options": options})
    return damage.join_safetensors(header, body)


def outputs(chance: random.Random, data: bytes) -> bytes:
    """A run that wants to replace what is not its own."""
    header, body = damage.split_safetensors(data)
    metadata = header["__metadata__"]
    begun = json.loads(metadata["about"])
    begun |= {"out": chance.choice(OUTPUTS), "force": True}
    metadata["about"] = json.dumps(begun)
    return damage.join_safetensors(header, body)


def position(chance: random.Random, data: bytes) -> bytes:
    """How far the training is."""
    header, body = damage.split_safetensors(data)
    metadata = header["__metadata__"]
    changed = damage.mutate_json(chance, json.loads(metadata["position"]))
    metadata["position"] = damage.dumped(changed)
    return damage.join_safetensors(header, body)


def judge(path: Path, original: Path) -> tuple[str, str]:
    """Resume in a folder of its own, with files in and beside it that the run must not touch."""
    work = path.parent / "work"
    (work / RUN).mkdir(parents=True)
    shutil.copy(original.parent / GATED, work / GATED)
    shutil.move(path, work / RUN / "state.safetensors")
    precious = [work.parent / f"{PRECIOUS}.safetensors", work / "kept.safetensors"]
    for each in precious:
        each.write_text(PRECIOUS, encoding="utf-8")
    verdict, detail = _resumed(work)
    if any(each.read_bytes() != PRECIOUS.encode() for each in precious):
        return FAILED, "a file that the state names was replaced without a word of the user's"
    return (OTHER, "trained to its end") if verdict == RIGHT else (verdict, detail)


def _resumed(work: Path) -> tuple[str, str]:
    with inside(work):
        return command("finetune", "--resume", "--quiet").judge()


STATE: dict[str, damage.Damage] = {
    "bits": damage.flip_bits,
    "cut off": damage.cut_off,
    "rearranged": damage.rearrange,
    "header": damage.mutate_header,
    "about": about,
    "outputs": outputs,
    "position": position,
}
