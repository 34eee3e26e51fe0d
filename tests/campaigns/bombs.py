"""Small files that ask for much: memory, time, or depth."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from campaigns.damage import join_safetensors, split_safetensors
from campaigns.pickles import PICKLE, archive_of

WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "ema")
HUGE = 65536


def bomb(chance: random.Random, gated: bytes) -> bytes:
    """One of them; `gated` is a gatecli checkpoint whose recipe asks for more than it needs."""
    return chance.choice(BOMBS)(chance, gated)


def expanded(chance: random.Random, gated: bytes) -> bytes:
    """Four bytes that become gigabytes by strides of 0."""
    one = torch.zeros(1)
    rows = chance.choice([20000, 30000])
    tensors = {f"w{n}": one.expand(rows, 40000) for n in range(chance.randint(1, 4))}
    return _saved({**tensors, "fc.weight": one.expand(rows, 40000)})


def overlapping(chance: random.Random, gated: bytes) -> bytes:
    """Many tensors that share one storage."""
    whole = torch.zeros(1 << 16)
    return _saved({f"w{n}": whole for n in range(chance.choice([5000, 20000]))})


def keys(chance: random.Random, gated: bytes) -> bytes:
    """A tuple of tuples of tuples as a key: its hash takes 2**N steps."""
    depth = chance.choice([30, 40, 60])
    pickled = b"\x80\x02}K\x01q\x00" + b"h\x00\x86q\x00" * depth + b"K\x01s."
    return _zipped(pickled)


def values(chance: random.Random, gated: bytes) -> bytes:
    """The same as a value, of which nobody may ask for a text."""
    depth = chance.choice([30, 60])
    pickled = b"\x80\x02}X\x01\x00\x00\x00aK\x01q\x00" + b"h\x00\x86q\x00" * depth + b"s."
    return _zipped(pickled)


def integers(chance: random.Random, gated: bytes) -> bytes:
    """An integer that Python refuses to print."""
    return _zipped(pickle.dumps({10 ** chance.choice([5000, 50000]): 1}, 2))


def wrappings(chance: random.Random, gated: bytes) -> bytes:
    """A dict that holds itself in all the ways in which a state dict may be wrapped."""
    whole: dict[str, Any] = {}
    for key in WRAPPINGS[: chance.randint(2, 6)]:
        whole[key] = whole
    return _zipped(pickle.dumps(whole, 2))


def shared_wrappings(chance: random.Random, gated: bytes) -> bytes:
    """Each level wraps the one below in many ways: as many paths as 6**depth."""
    whole: dict[str, Any] = {}
    for _ in range(chance.choice([8, 50])):
        whole = dict.fromkeys(WRAPPINGS, whole)
    return _zipped(pickle.dumps(whole, 2))


def depth(chance: random.Random, gated: bytes) -> bytes:
    """Lists in lists."""
    count = chance.choice([2000, 100000])
    return _zipped(b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b".")


def compressed(chance: random.Random, gated: bytes) -> bytes:
    """Zeros that are small as long as nobody unpacks them."""
    return _of_zeros(chance.choice([PICKLE, "archive/data/0"]))


@cache
def _of_zeros(name: str) -> bytes:
    zeros = bytes(1 << 26)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if name != PICKLE:
            archive.writestr(PICKLE, b"\x80\x02}.")
        archive.writestr("archive/version", "3\n")
        with archive.open(name, "w", force_zip64=True) as file:
            for _ in range(20):
                file.write(zeros)
    return out.getvalue()


def many_steps(chance: random.Random, gated: bytes) -> bytes:
    """The same step of a recipe hundreds of times."""

    def change(recipe: dict[str, Any]) -> None:
        recipe["steps"] *= chance.choice([300, 3000])

    return _recipe(gated, change)


def huge_source(chance: random.Random, gated: bytes) -> bytes:
    """An architecture, or an input, far larger than the tensors in the file."""
    arch, args = chance.choice(
        [
            ("torchvision:vit_b_16", {"num_layers": 20000, "num_classes": 10}),
            ("torchvision:vit_b_16", {"hidden_dim": HUGE, "num_classes": 10}),
            ("torchvision:vit_b_16", {"image_size": HUGE}),
            ("torchvision:resnet18", {"width_per_group": HUGE}),
            ("torchvision:resnet18", {"num_classes": 10**7}),
            ("torchvision:densenet121", {"growth_rate": HUGE}),
            ("torchvision:swin_t", {"stochastic_depth_prob": 5.0}),
            ("cifar:resnet20", {"num_classes": 10**9}),
            ("cifar:resnet110", {}),
        ]
    )

    def change(recipe: dict[str, Any]) -> None:
        recipe["source"]["arch"], recipe["source"]["arch_args"] = arch, args

    return _recipe(gated, change)


def huge_input(chance: random.Random, gated: bytes) -> bytes:
    """Images of billions of pixels."""
    size = chance.choice([[HUGE, HUGE], [1, HUGE], [10**12, 8]])
    return _recipe(gated, lambda recipe: recipe["input"].update(size=size))


BOMBS: list[Callable[[random.Random, bytes], bytes]] = [
    expanded,
    overlapping,
    keys,
    values,
    integers,
    wrappings,
    shared_wrappings,
    depth,
    compressed,
    many_steps,
    huge_source,
    huge_source,
    huge_input,
]


def _zipped(pickled: bytes) -> bytes:
    return archive_of({PICKLE: pickled, "archive/version": b"3\n", "archive/byteorder": b"little"})


def _saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def _recipe(gated: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    header, body = split_safetensors(gated)
    recipe = json.loads(header["__metadata__"]["gatecli"])
    change(recipe)
    header["__metadata__"]["gatecli"] = json.dumps(recipe)
    return join_safetensors(header, body)
