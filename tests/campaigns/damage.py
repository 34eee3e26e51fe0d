"""Damage to any file, to JSON, and to safetensors: functions of chance and of what is damaged."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Json = Any
DEEP = "nested too deep"  # see `dumped`
Damage = Callable[[random.Random, bytes], bytes]


def flip_bits(chance: random.Random, data: bytes) -> bytes:
    """One to eight bits, anywhere or among the first 4096 bytes."""
    changed = bytearray(data)
    reach = len(data) if chance.random() < 0.5 else min(4096, len(data))
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut_off(chance: random.Random, data: bytes) -> bytes:
    """The file's beginning."""
    lengths = [0, 1, 8, chance.randrange(200), chance.randrange(len(data)), len(data) - 1]
    return data[: chance.choice(lengths)]


def rearrange(chance: random.Random, data: bytes) -> bytes:
    """A part overwritten, doubled, taken out, or followed by something else."""
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice([1, 16, 512, 65536]))
    part = data[start:end]
    return chance.choice(
        [
            data[:start] + bytes(len(part)) + data[end:],
            data[:start] + chance.randbytes(len(part)) + data[end:],
            data[:end] + part + data[end:],
            data[:start] + data[end:],
            data + chance.randbytes(chance.randint(1, 4096)),
        ]
    )


def odd_value(chance: random.Random, value: Json) -> Json:
    """Something that JSON can hold and nobody expects in the place of `value`."""
    scalars: list[Json] = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, 0.5, "", "x" * 100000]
    texts = ["\x1b[31m\u202e\x00", "../../x", "a.b:c", "os:system", "__class__", "ind-perbatch"]
    holders: list[Json] = [[], {}, [value], {"x": value}, [value] * 50, DEEP]
    near: list[Json] = [_near(chance, value)] * 12
    return chance.choice([*scalars, *texts, *holders, *near])


def _near(chance: random.Random, value: Json) -> Json:
    """Something of the same type, so that checks of the type alone let it pass."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        numbers = [value + 1, value - 1, -value, value * 1000, value * 10**9]
        return type(value)(chance.choice(numbers))
    if isinstance(value, str):
        return chance.choice([value[:-1], value + "x", value.upper(), value[::-1]])
    items = list(value.items()) if isinstance(value, dict) else list(value)
    chance.shuffle(items)
    kept = items[: chance.randint(0, len(items))]
    return dict(kept) if isinstance(value, dict) else kept


def places(value: Json) -> list[tuple[Any, Any]]:
    """All (holder, key) pairs in a JSON value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found


def mutate_json(chance: random.Random, value: Json) -> Json:
    """A copy with one to three places changed, taken out, exchanged, or with unknown keys."""
    copied = json.loads(json.dumps(value))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        known = places(copied)
        if known:
            _mutate_place(chance, known)
    return copied


def _mutate_place(chance: random.Random, known: list[tuple[Any, Any]]) -> None:
    holder, key = chance.choice(known)
    how = chance.choice(["odd", "odd", "odd", "odd", "gone", "other", "unknown"])
    if how == "odd":
        holder[key] = odd_value(chance, holder[key])
    elif how == "gone":
        del holder[key]
    elif how == "other":
        second, place = chance.choice(known)
        holder[key] = json.loads(json.dumps(second[place]))
    elif isinstance(holder, dict):
        holder[f"unknown {key}"] = odd_value(chance, holder[key])
    else:
        holder.append(odd_value(chance, holder[key]))


def dumped(value: Json) -> str:
    """JSON text of a value, with what Python's own writer cannot write in the place of DEEP."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 20000 + "]" * 20000)


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes."""
    (length,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def join_safetensors(header: Json, body: bytes) -> bytes:
    """A file of a header and the tensors' bytes."""
    text = dumped(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def mutate_header(chance: random.Random, data: bytes) -> bytes:
    """What the header says of tensors: types, shapes, places."""
    header, body = split_safetensors(data)
    kept = header.pop("__metadata__", None)
    chosen = chance.sample(sorted(header), chance.randint(1, min(3, len(header))))
    changed = mutate_json(chance, {name: header[name] for name in chosen})
    header = {name: entry for name, entry in header.items() if name not in chosen} | changed
    return join_safetensors(header if kept is None else {"__metadata__": kept, **header}, body)


def mutate_metadata(chance: random.Random, data: bytes) -> bytes:
    """The document in the metadata: gatecli's recipe, where there is one."""
    header, body = split_safetensors(data)
    metadata = header.setdefault("__metadata__", {"gatecli": "{}"})
    for key in metadata:
        metadata[key] = _mutated_text(chance, metadata[key])
    return join_safetensors(header, body)


def _mutated_text(chance: random.Random, text: str) -> str:
    """JSON with its values changed, or a text that is none any more."""
    if chance.random() < 0.1:
        return chance.choice(["", "{", "[]", "null", "[" * 100000, text[:-1], text + text])
    try:
        return dumped(mutate_json(chance, json.loads(text)))
    except ValueError:
        return text[::-1]


def exchange_tensors(chance: random.Random, data: bytes) -> bytes:
    """Two tensors with each other's names, or one with no name that is known."""
    header, body = split_safetensors(data)
    names = [name for name in header if name != "__metadata__"]
    one, two = chance.sample(names, 2)
    if chance.random() < 0.3:
        header[f"{one}x"] = header.pop(one)
    else:
        header[one], header[two] = header[two], header[one]
    return join_safetensors(header, body)


def change_body(chance: random.Random, data: bytes) -> bytes:
    """The tensors' values alone."""
    header, body = split_safetensors(data)
    damaged = chance.choice([flip_bits, _special_numbers])(chance, body)
    return join_safetensors(header, damaged)


def _special_numbers(chance: random.Random, data: bytes) -> bytes:
    number = chance.choice([float("nan"), float("inf"), 3e38, -3e38, 1e-40, 0.0])
    start = chance.randrange(len(data) // 4 - 8) * 4
    count = chance.choice([1, 4, 8])
    return data[:start] + struct.pack("<f", number) * count + data[start + 4 * count :]
