"""Steps in a row, each done once: stopped anywhere, the row goes on from the last finished one.

What was done is kept in a small JSON file of the working folder. A step counts as done if the same
line was run on the same bytes, and what it wrote is still there.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatecli.checkpoint.atomic import replacing
from gatecli.cli.options import Shared
from gatecli.cli.session import Session
from gatecli.cli.trust import option_of
from gatecli.cli.typed import as_typed, typed
from gatecli.cli.workspace import FOLDER, run_folder
from gatecli.errors import CheckpointError, Interrupted, TrainingError

__all__ = [
    "SLIM",
    "Done",
    "Once",
    "Road",
    "State",
    "latest",
    "options_spelled",
    "road_file",
    "spelled",
]

SLIM = "slim"
FORMAT = 1  # of the file
STATE = "state.safetensors"  # of a training that was stopped, see gatecli.training.run
LARGEST = 64 << 20  # bytes of a file that is read
BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A step that has been done.

    Attributes:
        line: What a user would have typed behind `gatecli`.
        inputs: The SHA-256 of each file that it read.
        out: The file that it wrote, if any, and `sha256` that file's.
        result: What it came to, as JSON.
        seconds: What it took, a resumed training only since it was resumed.
    """

    line: str
    inputs: dict[str, str]
    out: str | None
    sha256: str | None
    result: dict[str, Any]
    seconds: float


@dataclass(kw_only=True)
class State:
    """What the file holds.

    Attributes:
        about: The row's options, by the parameter's name.
        threads: CPU threads of its trainings.
        done: The steps behind it.
        begun: The line that was running, or nothing.
        out: What that line writes, or nothing.
        finished: Whether the row has come to its end.
        format: The file's.
    """

    about: dict[str, Any]
    threads: int
    done: list[Done] = field(default_factory=list)
    begun: str = ""
    out: str = ""
    finished: bool = False
    format: int = FORMAT


def read(path: Path) -> State:
    """What a file says.

    Raises:
        CheckpointError: It is damaged, or another gatecli's.
    """
    from gatecli.traced.strict import checked, parsed

    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        raw = parsed(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}")
        done = [checked(Done(**each)) for each in raw.pop("done")]
        state = State(**raw, done=done)
        if not isinstance(state.about, dict) or not 1 <= state.threads <= 1024:
            raise ValueError("no options")
        return state
    except BROKEN as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())[:160]}): remove it, and begin again"
            " without --resume"
        ) from error


def latest() -> tuple[Path, State]:
    """The row of gatecli slim that was stopped last.

    Raises:
        TrainingError: None is unfinished.
        CheckpointError: One of the files is damaged.
    """
    paths = sorted(
        (FOLDER / SLIM).glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for path in paths:
        state = read(path)
        if not state.finished:
            return path, state
    raise TrainingError(
        f"there is nothing unfinished to resume in {FOLDER / SLIM}: name a checkpoint"
    )


@dataclass(frozen=True, kw_only=True)
class Once:
    """A step to be done.

    Attributes:
        line: What a user would type behind `gatecli`.
        reads: The files that it reads.
        out: The file that it writes.
        state: Where a training within it keeps what it goes on from.
        may_write: Whether `out` may be written; else the step refuses.
    """

    line: str
    reads: Sequence[Path]
    out: Path | None
    state: Path | None
    may_write: bool = True


def road_file(command: str, out: Path) -> Path:
    """Where a command keeps its row of steps that ends in the file `out`."""
    return FOLDER / command / f"{out.name.removesuffix('.safetensors')}.json"


class Road:
    """A row of steps.

    Attributes:
        path: Its file.
        state: What the file holds.
        steps: The steps taken so far, in order.
        again: What a user types to go on.
    """

    def __init__(
        self,
        session: Session,
        path: Path,
        about: Mapping[str, Any],
        threads: int,
        *,
        again: str,
    ) -> None:
        """Begin a row, or go on with the one that was stopped.

        Args:
            session: The command's.
            path: Its file, see `road_file`.
            about: What `--resume` needs.
            threads: CPU threads.
            again: What a user types to go on.

        Raises:
            CheckpointError: What is kept of it is damaged, or cannot be written.
        """
        self.session = session
        self.path = path
        self.again = again
        self.steps: list[Done] = []
        self.state = State(about=dict(about), threads=threads)
        if self.path.is_file():
            before = read(self.path)
            if not before.finished:
                before.about = self.state.about
                self.state = before

    def check_free(self, outs: Iterable[Path], *, source: Path, force: bool) -> None:
        """Refuse files that are there already, and that this row has not written.

        Args:
            outs: What the row is going to write.
            source: What it begins with, never replaced.
            force: Whether such files may be replaced.

        Raises:
            CheckpointError: One exists, or cannot be written.
        """
        from gatecli.checkpoint import check_output

        own = {self.state.out, *(each.out for each in self.state.done)}
        for out in outs:
            check_output(out, force=force or str(out) in own, inputs=[source])

    def take(
        self, line: str, *, reads: Iterable[Path], out: Path | None = None, force: bool = False
    ) -> dict[str, Any]:
        """Run a command, or recall what it said.

        Args:
            line: What a user would type behind `gatecli`, but for --force.
            reads: The files that it reads.
            out: The file that it writes.
            force: Whether that may replace one that is there.

        Returns:
            The command's JSON.
        """
        may_write = out is None or force or not out.exists()
        state = None if out is None else run_folder(out) / STATE
        words = [line, "--force"] if force and out is not None else [line]

        said = as_typed(self.session, line)
        begun = self._has_begun(said, out)

        def do() -> dict[str, Any]:
            hidden = [] if may_write or not begun else ["--force"]
            if begun and state is not None and state.is_file():
                os.utime(state)  # finetune --resume takes the one that was saved last
                hidden.append("--resume")
            return typed(self.session, " ".join(words), *hidden)

        step = Once(line=said, reads=list(reads), out=out, state=state, may_write=may_write)
        return self.once(step, do)

    def once(self, step: Once, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a step, or recall what it came to.

        Args:
            step: Which one.
            do: Does it, or goes on with it.

        Returns:
            What it came to, as JSON.
        """
        inputs = {str(path): _sha256(path) for path in step.reads if path.is_file()}
        before = self._recalled(step.line, inputs)
        if before is not None:
            return before.result
        if not self._has_begun(step.line, step.out):
            self._begin(step)
        start = time.monotonic()
        result = do()
        done = Done(
            line=step.line,
            inputs=inputs,
            out=None if step.out is None else str(step.out),
            sha256=None if step.out is None else _sha256(step.out),
            result=result,
            seconds=round(time.monotonic() - start, 3),
        )
        self.state.done.append(done)
        self.state.begun = self.state.out = ""
        if any(each.out for each in self.state.done):  # else there is nothing worth going on with
            self._save()
        self.steps.append(done)
        return result

    def _recalled(self, line: str, inputs: Mapping[str, str]) -> Done | None:
        """The step, if it has been done on these very inputs and its file is as it left it."""
        for each in self.state.done:
            if each.line == line and each.inputs == inputs and _is_there(each):
                self.session.say("")
                self.session.say(f"$ gatecli {line}   (done before)")
                self.steps.append(each)
                return each
        return None

    def _has_begun(self, line: str, out: Path | None) -> bool:
        """Whether it is this line that was stopped."""
        return self.state.begun == line and self.state.out == str(out)

    def _begin(self, step: Once) -> None:
        """Note that a step begins, unless it is going to refuse."""
        if step.out is None or not step.may_write:
            return
        if step.state is not None:
            step.state.unlink(missing_ok=True)
        self.state.begun = step.line
        self.state.out = str(step.out)
        self._save()

    def finish(self) -> None:
        """Note that the row has come to its end."""
        self.state.finished = True
        self._save()

    def stopped(self) -> Interrupted:
        """What to say where a signal has stopped a command."""
        if not self.path.is_file():
            return Interrupted("interrupted; nothing was written")
        at = f" at: gatecli {self.state.begun}" if self.state.begun else ""
        return Interrupted(f"stopped{at}; go on with: {self.again}")

    def _save(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(asdict(self.state)), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}") from error


def _is_there(done: Done) -> bool:
    """Whether what a command wrote is as it left it."""
    return done.out is None or (Path(done.out).is_file() and _sha256(Path(done.out)) == done.sha256)


def _sha256(path: Path) -> str:
    from gatecli.checkpoint.formats import file_sha256

    return file_sha256(path)


def spelled(*words: object) -> str:
    """A line of the words of a command, as a shell takes it; numbers in their shortest form."""
    return shlex.join(f"{word:g}" if _is_short(word) else str(word) for word in words)


def options_spelled(values: Mapping[str, Any], options: Mapping[str, Shared]) -> list[str]:
    """Options that are not as they are by default, as a user types them."""
    words: list[str] = []
    for name, option in options.items():
        value = values[name]
        if value == option.default or value in (None, (), []):
            continue
        if value is True:
            words.append(option_of(name))
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [option_of(name), str(each)]
    return words


def _is_short(word: object) -> bool:
    return isinstance(word, float) and float(f"{word:g}") == word
