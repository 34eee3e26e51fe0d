"""Where it all comes from: files with their hashes, how images are prepared, versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from gatecli import __version__
from gatecli.data.description import in_words
from gatecli.data.forms import is_cropped
from gatecli.report.blocks import Panel, Table
from gatecli.report.material import Material
from gatecli.report.sections.base import Part
from gatecli.runtimes.machine import describe

__all__ = ["PART"]

PACKAGES = ("torch", "torchvision", "numpy", "matplotlib", "jinja2", "onnxruntime", "openvino")


def _build(materials: Sequence[Material]) -> list[Panel]:
    panels = [Panel(name=each.name, blocks=(_facts(each),)) for each in materials]
    return [*panels, Panel(name="This report", blocks=(_versions(),))]


def _facts(material: Material) -> Table:
    recipe = material.network.recipe
    source = recipe.source
    data = recipe.data or {}
    spec = str(data.get("spec", ""))
    facts = {
        "file": material.place,
        "SHA-256": material.sha256,
        "source": source.file,
        "SHA-256 of the source": source.sha256,
        "architecture": source.arch,
        "arguments": json.dumps(source.arch_args) if source.arch_args else "",
        "network in the source's file": ".".join(filter(None, (source.key, source.prefix))),
        "classes": str(source.num_classes or ""),
        "images": in_words(recipe.input, cropped=not spec or is_cropped(spec))[len("images: ") :],
        "data": spec,
        "val": _cut(data.get("val")),
        "assumed": "; ".join(f"{one['what']} ({one['option']})" for one in source.assumed),
    }
    rows = [(name, value) for name, value in facts.items() if value]
    return Table(caption="The file and its source", columns=("<what", "<value"), rows=rows)


def _cut(val: object) -> str:
    """How val was cut from train."""
    return (
        ", ".join(f"{name} {value}" for name, value in val.items()) if isinstance(val, dict) else ""
    )


def _versions() -> Table:
    rows = [("gatecli", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    rows.append(("machine", describe()))
    return Table(caption="What made this page", columns=("<what", "<version"), rows=rows)


PART = Part(
    key="provenance",
    title="Provenance",
    about="Files with their hashes, and what this page was made with.",
    build=_build,
)
