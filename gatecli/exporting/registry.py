"""The formats that networks are exported to.

Nothing here needs torch, so that help texts can be made from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gatecli.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gatecli.exporting.marks import Opened
    from gatecli.exporting.runner import Runner
    from gatecli.gates.exit import Exit
    from gatecli.network import Network

__all__ = [
    "Format",
    "Logits",
    "Piece",
    "Pieces",
    "Task",
    "get",
    "module_name",
    "register",
    "registered",
    "titles",
]

Logits: TypeAlias = "Callable[[Tensor], Tensor]"  # images (N, C, H, W) -> logits (N, K)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a format is asked to write.

    Attributes:
        network: the network, with nothing left to decide that does not depend on the image.
        parts: the same for single images, marked at what need not be computed.
        dynamic: write a file for single images that computes only what runs; else one for batches
            of any size, in which everything is computed.
        image: an example, (1, C, H, W), normalised.
        opset: version of the operations, for formats that have several.
        decisions: the gates' decisions and the exit taken as further outputs.
        facts: the file's metadata.
        out: what the first file will be called in the end.
        files: where to write now, as many files as `Format.files` names.
    """

    network: Network
    parts: Opened
    dynamic: bool
    image: Tensor
    opset: int
    decisions: bool
    facts: Mapping[str, str]
    out: Path
    files: list[Path]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One stage of a network with exits.

    Attributes:
        module: its values -> logits; with an exit behind it, scores and the next values as well.
        examples: its values for two images.
        takes: what the values are called.
        gives: what the results are called.
        exit: the exit behind it; None: the last stage.
    """

    module: nn.Module
    examples: tuple[Tensor, ...]
    takes: list[str]
    gives: list[str]
    exit: Exit | None


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """How a format writes and reads single stages.

    Attributes:
        write: writes a stage for batches of any size, with this opset, to these files. Raises
            ExportError.
        open: makes the file of that name ready to run, on so many threads (0: all): a function from
            arrays to arrays. Its source becomes part of the runner: it imports what it needs, the
            runtime alone.
        check: looks at a file before gatecli opens it. Raises ExportError where its package is
            missing, or it is none that gatecli writes.
        quantise: writes an eight-bit copy of one stage, (file, copy, its values in batches); None:
            it cannot. Raises ExportError.
    """

    write: Callable[[Piece, int, Sequence[Path]], None]
    open: Callable[[str, int], Any]
    check: Callable[[Path], None]
    quantise: Callable[[Path, Path, Iterable[Sequence[Any]]], None] | None = None


def _itself(out: Path) -> list[Path]:
    return [out]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of files.

    Functions that need torch import it when they are called, as `gatecli export --help` reads
    formats.

    Attributes:
        name: as `--format` takes it.
        suffix: how the names of its files end.
        noun: one of its files, in messages, with its article: "an ONNX file".
        about: what `--format`'s help says of it.
        write: writes the files of a task, and returns a function that gives a written file's
            logits. Raises ExportError.
        files: the files that are written for an output, the output itself first.
        can_skip: files may decide at run time what to compute.
        can_decisions: files may return the gates' decisions.
        can_opset: `--opset` means something to it.
        open: makes a file ready for `gatecli run`; None: it cannot be run there. Raises
            ExportError.
        pieces: how it takes networks with exits in pieces; None: it does not.
        logits: gives the function that computes a written file's logits. Raises ExportError.
        quantise: writes an eight-bit copy of a static file, (file, copy, batches of images to
            measure ranges on); needs `logits`. None: it cannot. Raises ExportError.
        lay_out: writes a copy of a file that skips for this machine's processor, (file, copy);
            needs `logits`. None: it cannot. Raises ExportError.
    """

    name: str
    suffix: str
    noun: str
    write: Callable[[Task], Logits]
    about: str = ""
    files: Callable[[Path], list[Path]] = _itself
    can_skip: bool = True
    can_decisions: bool = False
    can_opset: bool = False
    open: Callable[[Path], Runner] | None = None
    pieces: Callable[[], Pieces] | None = None
    logits: Callable[[Path], Logits] | None = None
    quantise: Callable[[Path, Path, Iterable[Tensor]], None] | None = None
    lay_out: Callable[[Path, Path], None] | None = None

    @property
    def title(self) -> str:
        """The noun without its article and "file": "ONNX"."""
        return self.noun.partition(" ")[2].removesuffix(" file")


_REGISTRY: dict[str, Format] = {}


def register(format: Format) -> None:
    """Make a format known by its name. Raises ValueError where the name or the suffix is taken."""
    for other in _REGISTRY.values():
        if format.name == other.name or format.suffix == other.suffix:
            raise ValueError(f"format `{format.name}` is registered twice")
    _REGISTRY[format.name] = format


def registered() -> list[Format]:
    """All formats, in the order in which they were registered."""
    return list(_REGISTRY.values())


def titles(trait: str, noun: str = "") -> str:
    """The titles of the formats that have a trait, a field of `Format`, each with a noun."""
    return ", ".join(each.title + noun for each in registered() if getattr(each, trait))


def get(name: str) -> Format:
    """The format of that name. Raises ExportError, which lists the names, where there is none."""
    if name not in _REGISTRY:
        raise ExportError(
            f"expected --format to be one of {', '.join(_REGISTRY)}, but got `{name}`"
        )
    return _REGISTRY[name]


def module_name(stem: str) -> str:
    """A name for a Python module beside a file: `resnet50.pruned` gives `resnet50_pruned`."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return name if name[:1].isalpha() else f"network_{name}"
