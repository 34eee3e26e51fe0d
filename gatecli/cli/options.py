"""Options that several commands take.

`COMMON` options go to every command, `READING` ones to those that read checkpoints; neither stands
in a command's signature (see gatecli.cli.commands). The types at the end do, and so do the groups:
data classes whose fields are options.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gatecli.data import forms

__all__ = [
    "COMMON",
    "READING",
    "SPREADING",
    "BatchSize",
    "Checkpoint",
    "Data",
    "Loading",
    "Output",
    "Set",
    "Shared",
    "Workers",
    "reads_checkpoints",
    "spreads",
]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """An option that commands get without naming it.

    Attributes:
        annotation: Its type with Typer's option, `Annotated[type, typer.Option(...)]`.
        default: Its value where the user does not give it.
    """

    annotation: Any
    default: Any

    @property
    def type(self) -> Any:
        """The type of its values."""
        return typing.get_args(self.annotation)[0]


def _general(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="General")


def _reading(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Reading the checkpoint")


Json = Annotated[
    bool,
    _general(
        "--json", help="Print one JSON object on stdout; everything for people goes to stderr."
    ),
]
Quiet = Annotated[bool, _general("--quiet", "-q", help="No progress and no notes.")]
Debug = Annotated[bool, _general("--debug", help="Show a traceback when something fails.")]
Device = Annotated[str, _general(help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, _general(help="Seed of everything random.")]
Threads = Annotated[typing.Optional[int], _general(help="CPU threads; none: torch's choice.")]

COMMON = {
    "json_": Shared(annotation=Json, default=False),
    "quiet": Shared(annotation=Quiet, default=False),
    "debug": Shared(annotation=Debug, default=False),
    "device": Shared(annotation=Device, default="auto"),
    "seed": Shared(annotation=Seed, default=0),
    "threads": Shared(annotation=Threads, default=None),
}

Arch = Annotated[
    typing.Optional[str],
    _reading(
        help=(
            "torchvision:NAME, cifar:NAME, timm:NAME or package.module:callable; none: found from"
            " the tensors."
        )
    ),
]
ArchArg = Annotated[
    typing.Optional[list[str]],
    _reading(help="k=v, an argument of the architecture; repeatable."),
]
TrustPickle = Annotated[
    bool,
    _reading(
        "--trust-pickle",
        help="Run the code in a pickled file. Only for files you made yourself.",
    ),
]
InputSize = Annotated[
    typing.Optional[str], _reading(help="Pixels: 224, or 192x256 (height x width).")
]
Mean = Annotated[typing.Optional[str], _reading(help="Normalisation, as 0.485,0.456,0.406.")]
Std = Annotated[typing.Optional[str], _reading(help="Normalisation, as 0.229,0.224,0.225.")]
Resize = Annotated[
    typing.Optional[str],
    _reading(
        help=(
            "Pixels that image files are scaled to before the middle is cut out: 256 (the shorter"
            " side), or 256x320 (exactly so)."
        )
    ),
]
Crop = Annotated[
    typing.Optional[float],
    _reading(help="Share of the scaled image that is cut out, as 0.875, instead of --resize."),
]
Interpolation = Annotated[
    typing.Optional[str],
    _reading(help="nearest, bilinear, bicubic, lanczos, box or hamming."),
]
ClassOrder = Annotated[
    typing.Optional[str],
    _reading(
        help=(
            "Order of class folders: names (as torchvision), natural (as timm), or file (names that"
            " the checkpoint records, or DIR/classes.txt)."
        )
    ),
]
Leaf = Annotated[
    typing.Optional[list[str]],
    _reading(help="Pattern of module paths to keep whole when tracing; repeatable."),
]

Key = Annotated[
    str,
    _reading(
        "--key", help="Which network of the file: the key that it is under; none: its weights."
    ),
]
Prefix = Annotated[
    str,
    _reading("--prefix", help="What the names of the network's tensors begin with; none: found."),
]

READING = {
    "arch": Shared(annotation=Arch, default=None),
    "arch_arg": Shared(annotation=ArchArg, default=None),
    "trust_pickle": Shared(annotation=TrustPickle, default=False),
    "input_size": Shared(annotation=InputSize, default=None),
    "mean": Shared(annotation=Mean, default=None),
    "std": Shared(annotation=Std, default=None),
    "resize": Shared(annotation=Resize, default=None),
    "crop": Shared(annotation=Crop, default=None),
    "interpolation": Shared(annotation=Interpolation, default=None),
    "class_order": Shared(annotation=ClassOrder, default=None),
    "leaf": Shared(annotation=Leaf, default=None),
    "key": Shared(annotation=Key, default=""),
    "prefix": Shared(annotation=Prefix, default=""),
}


Processes = Annotated[
    typing.Optional[int],
    _general(
        "--processes",
        help="Processes on this machine that do it together, one a GPU; more machines: torchrun.",
    ),
]
SPREADING = {"processes": Shared(annotation=Processes, default=None)}


def spreads(body: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a command's body as one that several processes can do together."""
    body.spreads = True  # type: ignore[attr-defined]
    return body


def reads_checkpoints(body: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a command's body as one that takes the options for reading checkpoints."""
    body.reads = True  # type: ignore[attr-defined]
    return body


Checkpoint = Annotated[
    typing.Optional[str],
    typer.Argument(help="A checkpoint; none: the current one.", show_default=False),
]
Out = Annotated[
    typing.Optional[Path],
    typer.Option("--out", help="Where to write; none: a name that says what was done."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Data = Annotated[
    typing.Optional[str],
    typer.Option(
        "--data",
        help=f"{forms.listed()}; none: the one remembered.",
    ),
]
Set = Annotated[
    typing.Optional[list[str]],
    typer.Option(
        "--set", help="name=value, a setting of the method; repeatable. See gatecli methods."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images a batch.")]
Workers = Annotated[
    typing.Optional[int],
    typer.Option(
        "--workers",
        help="Processes that read image files; none: as many as help.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The options of a command that reads images."""

    batch_size: BatchSize = 256
    workers: Workers = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """The options of a command that writes a file."""

    out: Out = None
    force: Force = False
