"""What a checkpoint says of itself beside its weights.

Training scripts store their options (timm, torchvision's references, Lightning), and safetensors
files have a header of words.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gatecli.checkpoint.said.facts import Said
from gatecli.checkpoint.said.values import Values
from gatecli.checkpoint.stand_ins import Options
from gatecli.traced.recipe import SaidInput

__all__ = ["options_of", "said_inside"]

NAMES = ("arch", "architecture", "model_name", "model", "backbone", "network", "arch_name")
HOLDERS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "model_args")
REFERENCES = {"val_resize_size", "val_crop_size"}  # options of torchvision's training scripts


def said_inside(found: Any, metadata: Mapping[str, str] | None = None) -> Said | None:
    """What a file's content says of its network; None: nothing.

    Args:
        found: what the file holds.
        metadata: the words in the header of a safetensors file.
    """
    whole: Said | None = None
    for where, values in _places(found, metadata or {}):
        said = _said(where, values)
        if said is not None:
            whole = said if whole is None else _filled(whole, said)
    return whole


def options_of(value: Any) -> dict[str, Any]:
    """Stored options as a dict; empty where they are none."""
    if isinstance(value, Mapping):
        return {key: each for key, each in value.items() if isinstance(key, str)}
    if isinstance(value, Options):
        return dict(value.values)
    return dict(vars(value)) if isinstance(value, Namespace) else {}


def _places(found: Any, metadata: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a file may say something, and what it has there."""
    if isinstance(found, Mapping):
        yield "the file", options_of(found)
        for holder in HOLDERS:
            values = options_of(found.get(holder))
            if values:
                yield f"the file's `{holder}`", values
    if metadata:
        whole_numbers = {}
        for key, value in metadata.items():
            whole_numbers[key] = int(value) if value.isdecimal() and len(value) < 9 else value
        yield "the file's metadata", whole_numbers


def _said(where: str, options: Mapping[str, Any]) -> Said | None:
    values = Values(options)
    name = _name(options)
    images = values.input(where)
    if options.keys() & REFERENCES:
        images = _of_references(where, values)
    classes = values.count("num_classes", "n_classes", "nb_classes")
    if not name and images is None and classes is None:
        return None
    library, colon, rest = name.partition(":")
    extra = options.get("model_kwargs")
    return Said(
        where=where,
        library=library if colon else "",
        arch=(rest if colon else name).split(".", 1)[0],
        args=dict(extra) if isinstance(extra, dict) else {},
        num_classes=classes,
        input=images,
    )


def _name(options: Mapping[str, Any]) -> str:
    """The first text that could be an architecture's name."""
    for key in NAMES:
        name = Values(options).name(key)
        if name and not any(sign in name for sign in "/\\ "):
            return name
    return ""


def _of_references(where: str, values: Values) -> SaidInput | None:
    size = values.size("val_crop_size")
    resize = values.count("val_resize_size")
    if size is None:
        return None
    return SaidInput(
        where=where,
        size=size,
        resize=(resize,) if resize else None,
        crop=size[0] / resize if resize else None,
        interpolation=values.interpolation("interpolation"),
    )


def _filled(first: Said, second: Said) -> Said:
    """What the first says, and the second of what that leaves unsaid."""
    images = first.input or second.input
    if first.input is not None and second.input is not None:
        given = {key: value for key, value in vars(first.input).items() if value is not None}
        images = SaidInput(**{**vars(second.input), **given})
    return replace(
        first if first.arch or not second.arch else second,
        num_classes=first.num_classes or second.num_classes,
        input=images,
    )
