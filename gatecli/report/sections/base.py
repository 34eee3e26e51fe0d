"""What a section is: a key, a heading, and what makes its panels from what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gatecli.errors import CheckpointError
from gatecli.report.blocks import Block, Missing, Panel, Section
from gatecli.report.material import Material

__all__ = ["Part", "data_command", "each", "made"]

Found = Sequence[Block] | Missing | None
Build = Callable[[Sequence[Material]], Sequence[Panel]]
BROKEN = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section that a report may have.

    Attributes:
        key: Its name in addresses and in JSON.
        title: Its heading.
        about: How to read it.
        build: Makes its panels; none where it is not about such networks.
    """

    key: str
    title: str
    about: str
    build: Build


def each(of_one: Callable[[Material, str], Found]) -> Build:
    """Panels side by side, one a checkpoint.

    Args:
        of_one: What a section has of one checkpoint: blocks, what it lacks, or None where the
            section is not about such networks. It also gets what its figures' keys begin with.
    """

    def build(materials: Sequence[Material]) -> list[Panel]:
        panels = []
        for number, material in enumerate(materials):
            found = of_one(material, f"{of_one.__module__.split('.')[-1]}-{number}")
            if isinstance(found, Missing):
                panels.append(Panel(name=material.name, missing=found))
            elif found is not None:
                panels.append(Panel(name=material.name, blocks=tuple(found)))
        return panels

    return build


def made(part: Part, materials: Sequence[Material]) -> Section | None:
    """The section; None where it is about none of the checkpoints.

    Raises:
        CheckpointError: A recipe records something that makes no sense.
    """
    try:
        panels = part.build(materials)
    except BROKEN as error:
        names = ", ".join(material.name for material in materials)
        raise CheckpointError(
            f"expected {names} to record what the report's section `{part.key}` shows, but it makes"
            f" no sense ({error!r:.200}): the file is damaged"
        ) from error
    if not panels:
        return None
    return Section(key=part.key, title=part.title, about=part.about, panels=tuple(panels))


def data_command(material: Material) -> str:
    """The command that makes a report with images."""
    return f"gatecli report {material.place} --data DATA"
