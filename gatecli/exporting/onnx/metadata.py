"""What ONNX files that are made of others say of themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gatecli.exporting.facts import KEY

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["take_facts"]


def take_facts(model: ModelProto, source: ModelProto, **changed: str) -> None:
    """Give a model the metadata of its source alone, some facts changed."""
    del model.metadata_props[:]
    for entry in source.metadata_props:
        value = entry.value
        if entry.key == KEY:
            value = json.dumps({**json.loads(value), **changed})
        model.metadata_props.add(key=entry.key, value=value)
