"""One run of a command.

Errors are shown as one line, signals stop the work where it can go on, notes for people go to
stderr, and JSON for scripts to stdout.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from gatecli.cli import interrupts, several, workspace
from gatecli.cli.devices import device_named
from gatecli.cli.parsing import check_between, parse_numbers, parse_resize, parse_size
from gatecli.cli.text import LONGEST, one_line, tell
from gatecli.errors import GatecliError, Interrupted, TrainingError, blame

if TYPE_CHECKING:
    import torch

    from gatecli.checkpoint import Reading
    from gatecli.network import Network

__all__ = ["LARGEST_SEED", "MOST_THREADS", "Session"]

STOPPING = (signal.SIGINT, signal.SIGTERM)
LARGEST_SEED = 2**32 - 1
MOST_THREADS = 1024


@dataclass
class Session:
    """One run of a command.

    Attributes:
        json_: Whether stdout is for one JSON object.
        quiet: Whether to leave out progress and notes.
        debug: Whether an error is shown with its traceback.
        device: What --device says.
        seed: Of all that is random.
        threads: CPU threads; None: torch's choice.
        reading: What the options for reading checkpoints say (`gatecli.cli.options.READING`).
        stopping: Whether a signal has asked the work to stop.
        busy: How many pieces of work that can stop by themselves are going on, one in another.
        assumed: What no tensor tells of the checkpoint that was read; None: none was.
        input: The record of the images that were seen, JSON's `input`; None: none were.
        fail_after: The error that the command ends in once its result is printed; empty: none.
        spreads: Whether several processes can do the command together.
        processes: How many of them the user wants started here; None: no others.
        resumes: Whether the command goes on with --resume where it was stopped.
    """

    json_: bool
    quiet: bool
    debug: bool
    device: str
    seed: int
    threads: int | None
    reading: dict[str, Any] = field(default_factory=dict)
    stopping: bool = False
    busy: int = 0
    assumed: list[dict[str, str]] | None = None
    input: dict[str, Any] | None = None
    fail_after: str = ""
    spreads: bool = False
    processes: int | None = None
    resumes: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process tells and writes; of several the first one does."""
        return several.rank() == 0

    def say(self, line: str) -> None:
        """Print a line for people, on stderr."""
        if not self.quiet:
            tell(line)

    def run(self, body: Callable[[], dict[str, Any] | None]) -> None:
        """Run a command's body: its result as JSON if asked for, its errors as one line.

        Raises:
            typer.Exit: With the exit code of an error, unless `debug` raises the error itself.
        """
        start = time.monotonic()
        handlers = self._catch_signals()
        try:
            self._go(body, start)
        except typer.Exit:
            raise
        except GatecliError as error:
            several.wait_to_be_stopped(self, error)
            self._fail(several.signed(str(error)), error.exit_code)
        except KeyboardInterrupt as stop:
            self._interrupted(*stop.args)
        except BrokenPipeError:
            raise
        except Exception as error:
            several.wait_to_be_stopped(self, error)
            self._fail(several.signed(blame(error)), 1)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _go(self, body: Callable[[], dict[str, Any] | None], start: float) -> None:
        """Run the body, here or in processes that this one starts, and print its result."""
        is_launcher = several.to_be_launched(self)
        self.prepare()
        if is_launcher:
            return several.launch(self.processes or 1, resumes=self.resumes)
        with self._stdout_left_free(), several.shared(self):
            result = body()
        if self.json_ and self.is_main:
            self._print(dict(result or {}), time.monotonic() - start)
        if self.fail_after:
            raise GatecliError(self.fail_after)

    def _interrupted(self, number: int = signal.SIGINT) -> None:
        """End with what is to be said of a signal that has stopped the work at once."""
        if not interrupts.is_told_here(number):
            raise typer.Exit(Interrupted.exit_code)
        self._fail("interrupted; nothing was written", Interrupted.exit_code)

    def _print(self, result: dict[str, Any], seconds: float) -> None:
        """Print the result as JSON, with what was learnt on the way."""
        seen = {"assumed": self.assumed, "input": self.input}
        result |= {name: value for name, value in seen.items() if value is not None}
        print(json.dumps({**result, "seconds": round(seconds, 3)}, allow_nan=False))

    def _stdout_left_free(self) -> contextlib.AbstractContextManager[Any]:
        """Keep stdout for the JSON, as a user's own code may print."""
        if not self.is_main:
            return contextlib.redirect_stdout(None)
        return contextlib.redirect_stdout(sys.stderr) if self.json_ else contextlib.nullcontext()

    def _fail(self, text: str, code: int) -> None:
        """Show the error being handled as one line and exit; with --debug raise it again."""
        if self.debug:
            raise
        tell("error: " + one_line(text, LONGEST - len("error: ")))
        raise typer.Exit(code)

    def prepare(self) -> None:
        """Check the common options, and set what they say of the process. Raises SettingError."""
        if not self.debug:
            warnings.simplefilter("ignore")
        self.quiet = self.quiet or not self.is_main
        check_between("seed", self.seed, 0, LARGEST_SEED)
        if self.threads is not None:
            check_between("threads", self.threads, 1, MOST_THREADS)
        if self.device not in ("auto", "cpu") or self.threads is not None:
            self.torch_device()  # a slip shows before any work
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)

    def torch_device(self) -> torch.device:
        """Return the device asked for.

        Raises:
            SettingError: It is not there.
        """
        return device_named(self.device)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM inside wait until the work can stop.

        See gatecli.progress. The second one stops at once.
        """
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def _catch_signals(self) -> dict[int, Any]:
        """Handle the signals that stop; returns the handlers that were there before."""
        try:
            return {number: signal.signal(number, self._on_signal) for number in STOPPING}
        except ValueError:  # not the main thread: whoever runs us there handles signals
            return {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt(number)
        if self.busy:
            self.stopping = True
            self.say("stopping after this step (again to stop at once)")
            return
        if interrupts.importing(frame, Session.run.__code__):
            interrupts.leave(number)
        raise KeyboardInterrupt(number)

    def checkpoint(self, given: str | None) -> Path:
        """Return the checkpoint named, or the current one, and say so.

        Raises:
            CheckpointError: None is named, and there is no current one.
        """
        if given is not None:
            return Path(given)
        path = workspace.current()
        self.say(f"reading {path} (current)")
        return path

    def open(self, path: Path) -> Network:
        """Read a checkpoint, print what had to be assumed, and move it to the device.

        What is random from here on follows the seed.

        Raises:
            CheckpointError: It cannot be read.
            ArchitectureError: Its network cannot be found or built.
            SettingError: An option for reading it has a wrong value.
        """
        import torch

        from gatecli import checkpoint

        network, notes = checkpoint.read(path, self._reading())
        for note in notes:
            self.say(f"note: {note}")
        if self.assumed is None:  # a second checkpoint is a teacher, or compared with
            self.assumed = network.recipe.source.assumed
        torch.manual_seed(self.seed)
        return network.to(self.torch_device())

    def open_gated(self, path: Path, purpose: str) -> Network:
        """Read a checkpoint as `open` does, for a command that needs gates.

        Args:
            path: The checkpoint.
            purpose: What the gates are needed for, as "train".

        Raises:
            TrainingError: It has no gates.
        """
        network = self.open(path)
        if not network.gated_by:
            raise TrainingError(
                f"{path} has no gates to {purpose}: attach a method first (gatecli attach"
                f" {shlex.quote(str(path))} --method NAME)"
            )
        return network

    def open_other(self, path: Path) -> Network:
        """Read a second checkpoint that takes the same images.

        The options say nothing of its architecture.
        """
        from gatecli import checkpoint

        size = parse_size(self.reading["input_size"])
        reading = checkpoint.Reading(trust_pickle=self.reading["trust_pickle"], input_size=size)
        network, notes = checkpoint.read(path, reading)
        for note in notes:
            self.say(f"note: {path}: {note}")
        return network

    def _reading(self) -> Reading:
        from gatecli.architectures.build import parse_arch_args
        from gatecli.checkpoint import Reading

        given = self.reading
        return Reading(
            arch=given["arch"],
            arch_args=parse_arch_args(given["arch_arg"] or []),
            trust_pickle=given["trust_pickle"],
            input_size=parse_size(given["input_size"]),
            mean=parse_numbers("--mean", given["mean"], positive=False),
            std=parse_numbers("--std", given["std"], positive=True),
            resize=parse_resize(given["resize"]),
            crop=given["crop"],
            interpolation=given["interpolation"],
            class_order=given["class_order"],
            leaves=tuple(given["leaf"] or ()),
            key=given["key"],
            prefix=given["prefix"],
        )

    def written(self, out: Path) -> None:
        """Make an output current and say so."""
        if not self.is_main:
            return
        workspace.make_current(out)
        self.say(f"wrote {out} (now current)")
