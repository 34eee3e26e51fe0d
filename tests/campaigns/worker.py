"""Cases in processes of their own, with limits of time and memory; one that dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from campaigns.outcome import FAILED, Outcome

HANG = 20  # seconds of CPU that a case may take
STUCK = 60.0  # seconds that it may take where it only waits
GRACE = 10.0  # seconds that a process has to end by itself
MEMORY = 1 << 30  # bytes that a case may add to what the process holds
ROOM = 6 << 30  # bytes of address space, so that a fault does not take the machine with it

Trial = Callable[[], Outcome]  # what is measured
Case = Callable[[int, Path], Trial]  # makes ready, in an empty folder, what the number says
Label = Callable[[int], Outcome]  # what is known of a case before it runs


class Worker:
    """One process that runs cases one by one."""

    def __init__(self, case: Case, label: Label) -> None:
        self._case, self._label = case, label
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, number: int) -> Outcome:
        """The outcome of a case; the process's death or silence is a failure."""
        folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        pipe = self._started()
        try:
            pipe.send((number, folder))
            if pipe.poll(STUCK):
                outcome: Outcome = pipe.recv()
                return outcome
            died = f"hang: no answer within {STUCK:g} s"
            self._process_there().kill()
        except (EOFError, OSError):
            died = self._death()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._process = None
        return replace(self._label(number), verdict=FAILED, detail=died)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None or self._pipe is None:
            return
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(GRACE)
        self._process.kill()  # does nothing to one that has ended
        self._process.join()
        self._process = None

    def _started(self) -> Connection:
        if self._process is None or self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there, self._case), daemon=True)
            self._process.start()
            there.close()
            self._pipe.recv()  # it has imported what it needs
        return self._pipe

    def _process_there(self) -> BaseProcess:
        assert self._process is not None
        return self._process

    def _death(self) -> str:
        process = self._process_there()
        process.join()
        code = process.exitcode or 0
        if code == -signal.SIGXCPU:
            return f"hang: more than {HANG} s of CPU"
        return f"the process died: {signal.Signals(-code).name if code < 0 else code}"


def run_all(case: Case, label: Label, numbers: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """The outcomes of many cases, `jobs` at a time, in their order."""
    own = threading.local()
    workers: list[Worker] = []

    def one(number: int) -> Outcome:
        if not hasattr(own, "worker"):
            own.worker = Worker(case, label)
            workers.append(own.worker)
        outcome: Outcome = own.worker.run(number)
        return outcome

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(one, numbers)
    finally:
        for worker in workers:
            worker.stop()


def limited(case: Case, number: int, folder: Path) -> Outcome:
    """Make a case ready in its folder, then run it there and measure what it takes."""
    os.chdir(folder)
    try:
        return _measured(case(number, folder))
    finally:
        os.chdir(folder.parent)


def _measured(trial: Trial) -> Outcome:
    before = _memory("VmRSS")
    _forget_peak()
    start = time.process_time()
    outcome = trial()
    cpu, added = time.process_time() - start, max(0, _memory("VmHWM") - before)
    outcome = replace(outcome, cpu=cpu, added=added)
    if added <= MEMORY:
        return outcome
    detail = f"it took {added >> 20} MiB of memory ({outcome.verdict}: {outcome.detail})"
    return replace(outcome, verdict=FAILED, detail=detail)


def _serve(pipe: Connection, case: Case) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    address_space = _memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    pipe.send(None)
    for number, folder in iter(pipe.recv, None):
        pipe.send(_caught(partial(_timed, case), number, folder))


def _timed(case: Case, number: int, folder: Path) -> Trial:
    """The case, with a limit to the time of its trial."""
    trial = case(number, folder)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + HANG, -1))
    return trial


def _caught(case: Case, number: int, folder: Path) -> Outcome:
    """What escapes a case is a fault of the campaign's own, and told as one."""
    try:
        return limited(case, number, folder)
    except Exception:
        with suppress(OSError):
            os.chdir(folder.parent)
        detail = f"the campaign itself: {' '.join(traceback.format_exc().split())[-600:]}"
        return Outcome(case=str(number), kind="campaign", verdict=FAILED, detail=detail)


def _memory(key: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(key))
    return 0


def _forget_peak() -> None:
    """Let VmHWM begin anew (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
