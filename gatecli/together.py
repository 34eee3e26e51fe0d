"""Several processes that do one job together: who is here, and what they tell each other.

`joined` connects this process with the others. Until then, and behind it, there is one process, and
each function here gives back what it is given. What stands here is the same whatever the job is;
how a training uses it is in gatecli.training.processes.

Tensors on the CPU travel by gloo, those on a GPU by NCCL.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gatecli.errors import GatecliError, Interrupted, TrainingError, reason
from gatecli.progress import Progress

__all__ = [
    "Lost",
    "agree_to_go_on",
    "check_alike",
    "count",
    "from_main",
    "from_the_one_before",
    "gathered",
    "in_order",
    "joined",
    "moments",
    "part",
    "rank",
    "summed",
]

T = TypeVar("T")
_active = False


class Lost(TrainingError):
    """Another process is gone, so this one cannot go on."""


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _active else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _active else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Work inside together with the other processes that torchrun has started.

    Args:
        device: Where this process computes.

    Raises:
        TrainingError: The others cannot be reached.
        Lost: One of them is gone.
    """
    global _active
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, own, total = next(rendezvous("env://"))
        store = PrefixStore(_meeting(store, own, total), store)
        with _stdout_as_stderr():
            dist.init_process_group(backend, store=store, rank=own, world_size=total)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(_unreachable(error)) from error
    _active = True
    try:
        yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise Lost(f"another process of the job is gone ({reason(error, 160)})") from error
    else:
        dist.destroy_process_group()
    finally:
        _active = False


def _meeting(store: Store, own: int, total: int) -> str:
    """Agree on a name for this meeting.

    torchrun keeps its store when it starts the processes again, with the addresses of those that
    are gone. So the first process answers who has come under a name that each makes for itself, and
    again until it is heard: what it answers to one that is gone, nobody hears.
    """
    if own == 0:
        name = uuid.uuid4().hex
        missing = list(range(1, total))
        while missing:
            for other in missing:
                store.set("answer to " + store.get(f"process {other}").decode(), name)
            time.sleep(0.05)
            missing = [other for other in missing if not store.check([f"{name} heard by {other}"])]
        return name
    me = uuid.uuid4().hex
    store.set(f"process {own}", me)
    name = str(store.get(f"answer to {me}").decode())
    store.set(f"{name} heard by {own}", "")
    return name


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """Gloo of torch 2.10 greets on stdout, below Python; stdout belongs to --json."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _unreachable(error: BaseException) -> str:
    host = os.environ.get("MASTER_ADDR", "")
    port = os.environ.get("MASTER_PORT", "")
    if "EADDRINUSE" in str(error) or "already in use" in str(error):
        return (
            f"expected port {port} of {host} to be free for the processes to meet at, but it is in"
            " use: name another (torchrun --master-port), or let gatecli find one (--processes N)"
        )
    return f"the processes do not meet at {host}:{port}: {reason(error, 200)}"


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error says that what connects the processes broke."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "connection closed by peer", "connection reset", "nccl", "broken pipe")
    return any(word in str(error).lower() for word in words)


def part(total: int) -> slice:
    """Which of a batch's `total` images are this process's: neighbours, nearly as many each."""
    return slice(rank() * total // count(), (rank() + 1) * total // count())


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return summed(grads[0])


def summed(value: Tensor) -> Tensor:
    """The sum of the processes' values; gradients that reach it reach all of them."""
    if count() == 1:
        return value
    total: Tensor = _Summed.apply(value)
    return total


def moments(x: Tensor, over: Sequence[int]) -> tuple[Tensor, Tensor, float]:
    """Mean and variance (divided by n) over all processes' images, in float32.

    Args:
        x: Of the images here.
        over: The dimensions to average over, the images' among them.

    Returns:
        The mean, the variance, and over how many values they are.
    """
    values = x.float()
    sums = values.sum(list(over), keepdim=True)
    size = sums.new_tensor([x.numel() / sums.numel()])
    whole = summed(torch.cat([sums.flatten(), size]))
    count = whole[-1].detach()
    mean = (whole[:-1] / count).view_as(sums)
    variance = summed((values - mean).square().sum(list(over))) / count
    return mean.view_as(variance), variance, float(count)


def gathered(value: T) -> list[T]:
    """Every process's value, the first one's first."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def from_the_one_before(value: Tensor) -> Tensor:
    """The value, of one shape everywhere, of the process before this one; the first has the last's.

    No gradient goes back.
    """
    if count() == 1:
        return value
    found = [torch.empty_like(value) for _ in range(count())]
    dist.all_gather(found, value.contiguous())
    return found[rank() - 1]


def in_order(dealt: Sequence[T]) -> list[T]:
    """All processes' values, where what came was dealt out to them one by one."""
    hands = gathered(list(dealt))
    total = sum(map(len, hands))
    return [hands[number % len(hands)][number // len(hands)] for number in range(total)]


def from_main(make: Callable[[], T]) -> T:
    """What the first process makes, given to all; if it fails, all do.

    Raises:
        GatecliError: What `make` raised in the first process.
    """
    if count() == 1:
        return make()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = make()
        except GatecliError as error:
            told[1] = error
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    made: T = told[0]
    return made


def agree_to_go_on(progress: Progress) -> None:
    """Stop all processes at this point if somebody has asked one of them to.

    Raises:
        Interrupted: In all processes.
    """
    if count() == 1:
        return
    asked = torch.tensor(float(progress.stopping))
    dist.all_reduce(asked)
    if asked.item() > 0:
        raise Interrupted("interrupted; nothing was written")


def check_alike(facts: Mapping[str, Any]) -> None:
    """Check that all processes were started with the same settings and data.

    Args:
        facts: What must be the same, by the name that a user knows it by.

    Raises:
        TrainingError: Something is not, in all processes.
    """
    everyone = gathered(dict(facts))
    for other, theirs in enumerate(everyone):
        for name, mine in everyone[0].items():
            if theirs.get(name) != mine:
                raise TrainingError(
                    f"expected all {len(everyone)} processes to have the same {name}, but it is"
                    f" {str(mine)[:80]} in process 0 and {str(theirs.get(name))[:80]} in process"
                    f" {other}: start them alike"
                )
