"""Damage to ONNX files that gatecli exported, and what `gatecli run` makes of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from campaigns import damage, shelf
from campaigns.commands import command
from campaigns.outcome import OTHER, RIGHT

SIZES = ([None, 8], [65536, 65536], [0, 8], [8], 8, [8.0, 8.0], ["8", "8"], [10**9, 1], [-8, 8])


def metadata(chance: random.Random, data: bytes) -> bytes:
    """What the file says of its images and classes."""

    def change(text: str) -> str:
        if chance.random() < 0.2:
            return chance.choice(["", "{", "[]", "null", "1", "[" * 100000, text[:-1]])
        return damage.dumped(damage.mutate_json(chance, json.loads(text)))

    return _with_metadata(data, change)


def sizes(chance: random.Random, data: bytes) -> bytes:
    """Sizes, channels and classes that cannot be."""
    odd: dict[str, Any] = {
        "input_size": chance.choice(SIZES),
        "channels": chance.choice([0, 2, 1, "3", None, 10**9]),
        "classes": chance.choice([[], ["a"], 5.0, "abc", {"a": 1}, [None] * 10]),
        "mean": chance.choice([[], [0.5], "x", [1e308] * 3]),
        "std": chance.choice([[0, 0, 0], [-1, 1, 1], [None] * 3]),
        "exits": chance.choice([None, [1], "x", ["no such"]]),
        "gates": chance.choice([None, ["no such"], [{}], 3]),
    }
    key = chance.choice(sorted(odd))

    def change(text: str) -> str:
        return json.dumps({**json.loads(text), key: odd[key]})

    return _with_metadata(data, change)


def external(chance: random.Random, data: bytes) -> bytes:
    """A weight that lies in another file."""
    model = onnx.load_model_from_string(data)
    weights = [each for each in model.graph.initializer if len(each.raw_data) > 64]
    tensor = chance.choice(weights)
    places = ["/etc/passwd", "../secret", "image.png", "arrays.npz", "/dev/zero"]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=chance.choice(places))
    tensor.external_data.add(key="length", value=str(len(tensor.raw_data)))
    tensor.ClearField("raw_data")
    return bytes(model.SerializeToString())


def nodes(chance: random.Random, data: bytes) -> bytes:
    """Operations, names and shapes in the graph."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    node = chance.choice(list(graph.node))
    how = chance.randrange(5)
    if how == 0:
        node.op_type = chance.choice(["Relu", "NoSuch", "Loop", "Identity"])
    elif how == 1:
        graph.node.remove(node)
    elif how == 2:
        chance.choice(list(graph.initializer)).dims[:] = [1 << 40]
    elif how == 3:
        graph.input[0].name = "pictures"
    else:
        graph.output[0].name = node.output[0]
    return bytes(model.SerializeToString())


def _with_metadata(data: bytes, change: Callable[[str], str]) -> bytes:
    model = onnx.load_model_from_string(data)
    for entry in model.metadata_props:
        if entry.key == "gatecli":
            entry.value = change(entry.value)
    return bytes(model.SerializeToString())


def judge(path: Path, original: Path) -> tuple[str, str]:
    """Classify an image with it."""
    done = command("run", path, "image.png", "--repeats", 1, "--json")
    verdict, detail = done.judge()
    if verdict != RIGHT:
        return verdict, detail
    known = _answers(original.parent)[original.name]
    found = shelf.probabilities(done.out)
    if found.shape == known.shape and torch.allclose(found, known, atol=1e-5):
        return RIGHT, "the same classes"
    return OTHER, "other classes"


@cache
def _answers(store: Path) -> dict[str, Tensor]:
    return shelf.answers(store)


ONNX: dict[str, damage.Damage] = {
    "bits": damage.flip_bits,
    "cut off": damage.cut_off,
    "rearranged": damage.rearrange,
    "metadata": metadata,
    "sizes": sizes,
    "external data": external,
    "nodes": nodes,
}
