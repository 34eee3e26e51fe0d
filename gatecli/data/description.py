"""The record of a network's images, in one line for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatecli.traced.images import InputSpec

__all__ = ["as_json", "in_words", "is_scaled_whole"]

ORDERS = {
    "names": "in order of names",
    "natural": "in natural order of names",
    "file": "in the order of the names recorded in the file",
}


def is_scaled_whole(spec: InputSpec, *, cropped: bool) -> bool:
    """Whether pictures are scaled whole, as out of arrays, and nothing is cut off.

    Args:
        spec: the record.
        cropped: whether the data set's pictures are cropped where nothing else is told.
    """
    return not cropped and not spec.crops_arrays


def as_json(spec: InputSpec, *, cropped: bool = True, named: bool = True) -> dict[str, Any]:
    """Each field with its value and where it comes from.

    Args:
        spec: the record.
        cropped: whether the data set's pictures are cropped where nothing else is told.
        named: whether the data set has classes that are put in order by name.
    """
    whole = is_scaled_whole(spec, cropped=cropped)
    resize: int | list[int] = list(spec.size) if whole else list(spec.box)
    if not whole and spec.crop_mode == "center" and spec.box[0] == spec.box[1]:
        resize = spec.box[0]
    scaling = "data" if whole else spec.whence("resize")
    order = (spec.class_order or "names") if named else None
    return {
        "size": _field(list(spec.size), spec.whence("size")),
        "resize": _field(resize, scaling),
        "crop": _field(1.0 if whole else spec.share, scaling),
        "crop_mode": _field("squash" if whole else spec.crop_mode, scaling),
        "interpolation": _field(spec.interpolation, spec.whence("interpolation")),
        "mean": _statistic(spec, "mean"),
        "std": _statistic(spec, "std"),
        "channels": _field(spec.channels, spec.whence("channels")),
        "class_order": _field(order, spec.whence("class_order") if named else "data"),
    }


def _field(value: Any, whence: str) -> dict[str, Any]:
    return {"value": value, "from": whence}


def _statistic(spec: InputSpec, name: str) -> dict[str, Any]:
    """Mean or deviation; where it is not known yet, the data set seen first has it."""
    values = getattr(spec, name)
    if values is None:
        return _field(None, "data")
    return _field(list(values), spec.whence(name))


def in_words(spec: InputSpec, *, cropped: bool = True, named: bool = True) -> str:
    """The record in one line; what stands before an origin without one has the same.

    Arguments as of `as_json`.
    """
    facts = as_json(spec, cropped=cropped, named=named)
    size = "x".join(map(str, spec.size))
    grey = {1: " grey", 3: ""}.get(spec.channels, f" with {spec.channels} channels")
    parts = [
        (f"{size}{grey}", facts["size"]["from"]),
        (_scaling(facts), facts["resize"]["from"]),
        (spec.interpolation, facts["interpolation"]["from"]),
        *_normalisation(spec, facts),
    ]
    line = f"images: {_joined(parts)}"
    if not named:
        return f"{line}; classes by number (data)"
    order = facts["class_order"]
    return f"{line}; classes {ORDERS[order['value']]} ({order['from']})"


def _scaling(facts: dict[str, Any]) -> str:
    mode = facts["crop_mode"]["value"]
    resize = facts["resize"]["value"]
    if facts["resize"]["from"] == "data":
        return "scaled whole"
    spelt = "x".join(map(str, resize)) if isinstance(resize, list) else str(resize)
    if mode == "squash":
        return f"squashed to {spelt}"
    if mode == "border":
        return f"fitted into {spelt} with a border"
    return f"resized to {spelt}"


def _normalisation(spec: InputSpec, facts: dict[str, Any]) -> list[tuple[str, str]]:
    if spec.mean is None and spec.std is None:
        return [("mean and std of the data", "data")]
    parts: list[tuple[str, str]] = []
    for name in ("mean", "std"):
        values = facts[name]["value"]
        spelt = "of the data" if values is None else numbers(values)
        parts.append((f"{name} {spelt}", facts[name]["from"]))
    if parts[0][1] == parts[1][1]:
        return [(f"{parts[0][0]} {parts[1][0]}", parts[0][1])]
    return parts


def numbers(values: Sequence[float]) -> str:
    """Numbers with commas between, as options are typed; of equal ones, one."""
    spelt = [f"{value:.4g}" for value in values]
    return spelt[0] if len(set(spelt)) == 1 else ",".join(spelt)


def _joined(parts: list[tuple[str, str]]) -> str:
    """Parts with commas between, the origin behind the last of those that share it."""
    text = []
    for place, (part, origin) in enumerate(parts):
        is_last = place + 1 == len(parts) or parts[place + 1][1] != origin
        text.append(f"{part} ({origin})" if is_last else part)
    return ", ".join(text)
