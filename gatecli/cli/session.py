"""What all commands share: common options, errors as one line, interrupts, notes for people, JSON
for scripts.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli import interrupts, workspace
from gatecli.cli.text import LONGEST, one_line, tell
from gatecli.data import forms
from gatecli.errors import GatecliError, Interrupted, SettingError, blame

if TYPE_CHECKING:
    from gatecli.checkpoint import Reading
    from gatecli.network import Network

GENERAL, MODEL = "General", "Reading the checkpoint"
COMMON: dict[str, tuple[Any, Any]] = {
    "json_": (
        Annotated[
            bool,
            typer.Option(
                "--json",
                help="Print one JSON object on stdout; everything for people goes to stderr.",
                rich_help_panel=GENERAL,
            ),
        ],
        False,
    ),
    "quiet": (
        Annotated[
            bool,
            typer.Option(
                "--quiet", "-q", help="No progress and no notes.", rich_help_panel=GENERAL
            ),
        ],
        False,
    ),
    "debug": (
        Annotated[
            bool,
            typer.Option(
                "--debug", help="Show a traceback when something fails.", rich_help_panel=GENERAL
            ),
        ],
        False,
    ),
    "device": (
        Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=GENERAL)],
        "auto",
    ),
    "seed": (
        Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=GENERAL)],
        0,
    ),
    "threads": (
        Annotated[
            typing.Optional[int],
            typer.Option(help="CPU threads; none: torch's choice.", rich_help_panel=GENERAL),
        ],
        None,
    ),
}
READING: dict[str, tuple[Any, Any]] = {
    "arch": (
        Annotated[
            typing.Optional[str],
            typer.Option(
                help=(
                    "torchvision:NAME, cifar:NAME, timm:NAME or package.module:callable; none:"
                    " found from the tensors."
                ),
                rich_help_panel=MODEL,
            ),
        ],
        None,
    ),
    "arch_arg": (
        Annotated[
            typing.Optional[list[str]],
            typer.Option(
                help="k=v, an argument of the architecture; repeatable.", rich_help_panel=MODEL
            ),
        ],
        None,
    ),
    "trust_pickle": (
        Annotated[
            bool,
            typer.Option(
                "--trust-pickle",
                help="Run the code in a pickled file. Only for files you made yourself.",
                rich_help_panel=MODEL,
            ),
        ],
        False,
    ),
    "input_size": (
        Annotated[
            typing.Optional[str],
            typer.Option(help="Pixels: 224, or 192x256 (height x width).", rich_help_panel=MODEL),
        ],
        None,
    ),
    "mean": (
        Annotated[
            typing.Optional[str],
            typer.Option(help="Normalisation, as 0.485,0.456,0.406.", rich_help_panel=MODEL),
        ],
        None,
    ),
    "std": (
        Annotated[
            typing.Optional[str],
            typer.Option(help="Normalisation, as 0.229,0.224,0.225.", rich_help_panel=MODEL),
        ],
        None,
    ),
    "leaf": (
        Annotated[
            typing.Optional[list[str]],
            typer.Option(
                help="Pattern of module paths to keep whole when tracing; repeatable.",
                rich_help_panel=MODEL,
            ),
        ],
        None,
    ),
}


@dataclass
class Session:
    """One run of a command."""

    json_: bool
    quiet: bool
    debug: bool
    device: str
    seed: int
    threads: int | None
    reading: dict[str, Any] = field(default_factory=dict)
    stopping: bool = False
    busy: int = 0

    def say(self, line: str) -> None:
        """A line for people, on stderr."""
        if not self.quiet:
            tell(line)

    def run(self, body: Callable[[], dict[str, Any] | None]) -> None:
        """Run a command's body: its result as JSON if asked for, its errors as one line."""
        start, handlers = time.monotonic(), self._catch_signals()
        try:
            self._prepare()
            with (
                contextlib.redirect_stdout(sys.stderr) if self.json_ else contextlib.nullcontext()
            ):  # a user's own code may print
                result = body()
            if self.json_:
                print(
                    json.dumps(
                        {**(result or {}), "seconds": round(time.monotonic() - start, 3)},
                        allow_nan=False,
                    )
                )
        except GatecliError as error:
            self._fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            self._fail("interrupted; nothing was written", Interrupted.exit_code)
        except BrokenPipeError:
            raise
        except Exception as error:
            self._fail(blame(error), 1)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _fail(self, text: str, code: int) -> None:
        if self.debug:
            raise
        tell("error: " + one_line(text, LONGEST - len("error: ")))
        raise typer.Exit(code)

    def _prepare(self) -> None:
        import warnings

        if not self.debug:
            warnings.simplefilter("ignore")
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**32 - 1),
            ("threads", self.threads, 1, 1024),
        ):
            if value is not None and not low <= value <= high:
                raise SettingError(
                    f"expected --{name} to be between {low} and {high}, but got {value}"
                )
        if self.device not in ("auto", "cpu") or self.threads is not None:
            import torch

            self.torch_device()
            if self.threads is not None:
                torch.set_num_threads(self.threads)

    def torch_device(self) -> Any:
        """The device asked for. Raises SettingError where it is not there."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kind, _, index = self.device.partition(":")
        there = {
            "cpu": 1,
            "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
            "mps": int(torch.backends.mps.is_available()),
        }
        if kind not in there or (index and not index.isdecimal()):
            raise SettingError(
                "expected --device to be auto, cpu, cuda, cuda:INDEX or mps, but got"
                f" `{self.device}`"
            )
        if int(index or 0) >= there[kind]:
            raise SettingError(
                f"expected --device to be there, but got `{self.device}` and this machine has"
                f" {there[kind]} {kind} devices"
            )
        return torch.device(self.device)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside, the first Ctrl-C or SIGTERM waits until the work can stop (see gatecli.progress);
        the second stops at once.
        """
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def _catch_signals(self) -> dict[int, Any]:
        def stop(number: int, frame: Any) -> None:
            if (
                not self.stopping
                and not self.busy
                and interrupts.importing(frame, Session.run.__code__)
            ):
                interrupts.leave()
            if self.stopping or not self.busy:
                raise KeyboardInterrupt
            self.stopping = True
            self.say("stopping after this step (again to stop at once)")

        try:
            return {
                number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not the main thread: whoever runs us there handles signals
            return {}

    def checkpoint(self, given: str | None) -> Path:
        """The checkpoint named, or the current one; says which."""
        if given is not None:
            return Path(given)
        path = workspace.current()
        self.say(f"reading {path} (current)")
        return path

    def open(self, path: Path) -> Network:
        """Read a checkpoint, print what had to be assumed, and move it to the device.

        What is random from here on follows the seed.
        """
        import torch

        from gatecli import checkpoint

        network, notes = checkpoint.read(path, self._reading())
        for note in notes:
            self.say(f"note: {note}")
        torch.manual_seed(self.seed)
        return network.to(self.torch_device())

    def open_other(self, path: Path) -> Network:
        """Read a second checkpoint that takes the same images.

        Of its architecture the options say nothing.
        """
        from gatecli import checkpoint

        network, notes = checkpoint.read(
            path,
            checkpoint.Reading(
                trust_pickle=self.reading["trust_pickle"],
                input_size=_size(self.reading["input_size"]),
            ),
        )
        for note in notes:
            self.say(f"note: {path}: {note}")
        return network

    def _reading(self) -> Reading:
        from gatecli.architectures.build import parse_arch_args
        from gatecli.checkpoint import Reading

        given = self.reading
        return Reading(
            given["arch"],
            parse_arch_args(given["arch_arg"] or []),
            given["trust_pickle"],
            _size(given["input_size"]),
            _numbers("--mean", given["mean"]),
            _numbers("--std", given["std"]),
            tuple(given["leaf"] or ()),
        )

    def written(self, out: Path) -> None:
        """Make an output current and say so."""
        workspace.make_current(out)
        self.say(f"wrote {out} (now current)")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().replace(",", "x").split("x")
    if not 1 <= len(sides) <= 2 or not all(
        side.isdecimal() and 0 < int(side) <= 65536 for side in sides
    ):
        raise SettingError(
            f"expected --input-size to be pixels, as 224 or 192x256, but got `{text}`"
        )
    return int(sides[0]), int(sides[-1])


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"expected {name} to be numbers with commas between, but got `{text}`"
        ) from None
    if not all(math.isfinite(value) and (value > 0 or name == "--mean") for value in values):
        raise SettingError(
            f"expected {name} to be finite numbers{'' if name == '--mean' else ' above 0'}, but got"
            f" `{text}`"
        )
    return values


def command(body: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Make `body(session, ...)` a command.

    It gets the common options, and those for reading checkpoints if it takes `reading=True`.
    """
    hints = typing.get_type_hints(body, include_extras=True)
    own = [
        p.replace(annotation=hints[p.name])
        for p in list(inspect.signature(body).parameters.values())[1:]
    ]
    shared = {**(READING if getattr(body, "reads", False) else {}), **COMMON}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in shared.items()
    ]

    @functools.wraps(body)
    def run(**given: Any) -> None:
        common = {name: given.pop(name) for name in COMMON}
        reading = {name: given.pop(name) for name in READING if name in given and name in shared}
        session = Session(**common, reading=reading)
        session.run(lambda: body(session, **given))

    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    return run


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
Workers = Annotated[int, typer.Option("--workers", help="Processes that read image files.")]


def parse_pairs(pairs: list[str] | None) -> dict[str, str]:
    """`["a=1"]` -> `{"a": "1"}`. Raises SettingError where there is no `=`."""
    result = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SettingError(f"expected --set name=value, but got `{pair}`")
        result[name.strip()] = value.strip()
    return result


def remembered(spec: str | None) -> str | None:
    """A data set's spec as the checkpoint shall remember it.

    Its path made absolute, so that other folders find it.
    """
    kind, _, path = (spec or "").partition(":")
    return (
        f"{kind}:{Path(path).resolve()}"
        if forms.names_path(kind) and path and Path(path).exists()
        else spec
    )


def is_function(spec: str) -> bool:
    """Whether a data set's spec names a function, package.module:callable."""
    return forms.may_be_code(spec)
