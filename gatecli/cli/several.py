"""Commands that several processes do together: how they are started, and how one of them ends.

`--processes N` starts torchrun's own agent here, which starts this very command line N times and
watches over them. Started by torchrun, a command finds the others through the environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from gatecli.cli.interrupts import OURS
from gatecli.cli.parsing import check_between
from gatecli.errors import Interrupted, SettingError, TrainingError

if TYPE_CHECKING:
    from gatecli.cli.session import Session

__all__ = [
    "check_untimed",
    "command_line",
    "is_resumed",
    "launch",
    "leave",
    "rank",
    "shared",
    "signed",
    "started",
    "to_be_launched",
    "told_again",
    "wait_to_be_stopped",
]

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun says them to each process
PATIENCE = 20.0  # seconds until a process that has lost the others ends by itself
LATER = 5.0  # seconds for which the first process may tell of an error that all have
MOST = 1024
SPREADING = ("finetune", "eval", "calibrate")


def started() -> int:
    """Of how many processes that torchrun has started this is one; 1: of none."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, MEETING)) else 1


def rank() -> int:
    """This process's number among them."""
    return int(os.environ["RANK"]) if started() > 1 else 0


def is_resumed() -> bool:
    """Whether torchrun has started the processes anew, one of them having died."""
    return started() > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextlib.contextmanager
def shared(session: Session) -> Iterator[None]:
    """Do what is inside together with the other processes, if there are any.

    Raises:
        TrainingError: They cannot be reached, or one of them is gone.
    """
    if started() == 1:
        yield
        return
    import torch

    from gatecli import together

    device = session.torch_device()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        _check_gpu(device.index)
        torch.cuda.set_device(device)
    with together.joined(device):
        yield


def _check_gpu(index: int) -> None:
    import torch

    if index >= torch.cuda.device_count():
        raise SettingError(
            f"expected a GPU for each process of this machine, but it has"
            f" {torch.cuda.device_count()}: take fewer processes, or --device cpu"
        )


def to_be_launched(session: Session) -> bool:
    """Whether this process is to start others that do the work.

    Raises:
        SettingError: The command is for one process, or the user says two numbers of them.
    """
    asked = session.processes
    if started() > 1:  # before torch is there: what its wrapper warns of once is meant so
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if asked is not None:
        check_between("processes", asked, 1, MOST)
    there = started()
    if there > 1 and not session.spreads:
        raise SettingError(
            f"expected torchrun to start a command that several processes can do together"
            f" ({', '.join(SPREADING)}), but it has started {there} of another: run it by itself"
        )
    if there > 1 and asked not in (None, there):
        raise SettingError(
            f"expected --processes to be the {there} that torchrun has started, but got {asked}:"
            " leave it out"
        )
    return there == 1 and (asked or 1) > 1


def check_untimed(*, timed: bool) -> None:
    """Refuse to measure milliseconds while other processes compute.

    Raises:
        SettingError: They were asked for, and there are other processes.
    """
    if timed and started() > 1:
        raise SettingError(
            "expected one process where milliseconds count, as several disturb one another, but got"
            f" {started()}: leave --processes out"
        )


def signed(text: str) -> str:
    """An error's text, with the process that it is of, where that is not the first."""
    return text if rank() == 0 else f"process {rank()} of {started()}: {text}"


def command_line(count: int) -> str:
    """How a user starts what this process is one of, as far as the word for the command."""
    return "gatecli" if count == 1 or _is_ours() else "torchrun ... -m gatecli"


def told_again(count: int) -> str:
    """The option by which so many processes are started again; empty where torchrun does so."""
    return f" --processes {count}" if count > 1 and _is_ours() else ""


def _is_ours() -> bool:
    """Whether gatecli itself has started, or is to start, the processes."""
    return os.environ.get("TORCHELASTIC_RUN_ID", OURS).startswith(OURS)


def wait_to_be_stopped(session: Session, error: Exception) -> None:
    """Let others tell first what happened, before this process does.

    torchrun stops all processes once one has ended. Of an error that all of them have the first one
    tells; one that has lost the others waits for the end.

    Raises:
        typer.Exit: This process has nothing to tell.
    """
    if started() == 1:
        return
    from gatecli import together

    is_lost = isinstance(error, together.Lost)
    if rank() == 0 and not is_lost:
        return
    if not (is_lost and session.stopping):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # to be stopped is the end
        time.sleep(PATIENCE if is_lost else LATER)
    if is_lost:
        os._exit(Interrupted.exit_code)  # to take apart what is broken may wait for the others
    if isinstance(error, Interrupted):
        raise typer.Exit(Interrupted.exit_code)


def leave(code: object) -> None:
    """End this process at once, its work being done, if it is one of several.

    Threads that connected it with the others may be left. Taking Python and torch apart around
    them has aborted a process now and then, and the whole job with it.
    """
    if started() > 1 and isinstance(code, int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(count: int, *, resumes: bool) -> None:
    """Start this command line `count` times, and wait for the end.

    Args:
        count: How many processes.
        resumes: Whether the command goes on with --resume.

    Raises:
        TrainingError: A process died.
        typer.Exit: One failed, or the user stopped them, and the first one has said so.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "20")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"{OURS}{os.getpid()}",
        max_restarts=0,
        local_addr="localhost",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "gatecli", *sys.argv[1:])
    except ChildFailedError as error:
        again = "go on from the last saved state with --resume" if resumes else "start it again"
        raise _failed(error.failures, count, again) from error
    except SignalException:
        raise typer.Exit(Interrupted.exit_code) from None


def _failed(failures: Mapping[int, Any], count: int, again: str) -> Exception:
    """What to raise for the first process that died of a signal, if any did.

    SIGTERM is how the others are stopped once one has ended.
    """
    dead = {}
    for number, each in failures.items():
        if each.exitcode < 0 and each.exitcode != -signal.SIGTERM:
            dead[number] = each
    if not dead:
        return typer.Exit(max(1, *(each.exitcode for each in failures.values())))
    first = min(dead, key=lambda number: dead[number].timestamp)
    name = signal.Signals(-dead[first].exitcode).name
    return TrainingError(
        f"process {first} of {count} died (rank {first}, pid {dead[first].pid} on"
        f" {platform.node()}, {name}), and the others were stopped: {again}"
    )
