"""Steps in a row, each done once: stopped anywhere, the row goes on from the last finished one.

What was done is kept in a small JSON file of the working folder. A step counts as done if the same
line was run on the same bytes, and what it wrote is still there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatecli.cli.road_state import Done, State, keep, read
from gatecli.cli.session import Session
from gatecli.cli.typed import as_typed, typed
from gatecli.cli.workspace import run_folder
from gatecli.errors import Interrupted

__all__ = ["Once", "Road"]

STATE = "state.safetensors"  # of a training that was stopped, see gatecli.training.run


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
        is_free = out is None or force or not out.exists()
        # whichever step was writing it: the one before it has to be done again, if it wrote it too
        is_own = self.state.out == str(out)
        state = None if out is None else run_folder(out) / STATE
        words = [line, "--force"] if force and out is not None else [line]

        said = as_typed(self.session, line)
        begun = self._has_begun(said, out)

        def do() -> dict[str, Any]:
            hidden = [] if is_free or not is_own else ["--force"]
            if begun and state is not None and state.is_file():
                os.utime(state)  # finetune --resume takes the one that was saved last
                hidden.append("--resume")
            return typed(self.session, " ".join(words), *hidden)

        may_write = is_free or is_own
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
        """The step, if it has been done on these very inputs and its file is as it left it.

        Or as a later step left it, which wrote the same one.
        """
        for number, each in enumerate(self.state.done):
            later = [other for other in self.state.done[number:] if other.out == each.out]
            if each.line == line and each.inputs == inputs and any(map(_is_there, later)):
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
        keep(self.path, self.state)


def _is_there(done: Done) -> bool:
    """Whether what a command wrote is as it left it."""
    return done.out is None or (Path(done.out).is_file() and _sha256(Path(done.out)) == done.sha256)


def _sha256(path: Path) -> str:
    from gatecli.checkpoint.formats import file_sha256

    return file_sha256(path)
