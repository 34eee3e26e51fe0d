"""The clock: an accelerator is timed by its own events, a CPU by the host's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatecli.runtimes.base import Prepared
from gatecli.stages import clock, timing
from gatecli.stages.timing import Timed


class Device:
    """Stands in for an accelerator: counts its own milliseconds, and notes what was asked of it."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, list[str]()

    def event(self, enable_timing: bool = False) -> Event:
        assert enable_timing
        return Event(self)

    def wait(self) -> None:
        self.asked.append("wait")


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.device.asked.append("record")
        self.at = self.device.now

    def synchronize(self) -> None:
        self.device.asked.append("synchronize")

    def elapsed_time(self, end: Event) -> float:
        assert self.device.asked[-1] == "synchronize", "read before the device was there"
        return end.at - self.at


class Work(nn.Module):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def forward(self, x: object) -> None:
        self.device.asked.append("work")
        self.device.now += 12.5


class Image:
    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_an_accelerator_is_timed_by_its_own_events(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    device = Device()
    home = torch.cuda if kind == "cuda" else torch.mps.event
    monkeypatch.setattr(home, "Event", device.event)
    monkeypatch.setattr(torch.cuda if kind == "cuda" else torch.mps, "synchronize", device.wait)
    monkeypatch.setattr(torch.cuda, "device", lambda which: nullcontext())
    monkeypatch.setattr(
        clock.time, "perf_counter", lambda: pytest.fail("the host's clock was read")
    )
    assert clock.milliseconds(Work(device), Image(kind)) == 12.5  # type: ignore[arg-type]
    assert device.asked == ["wait", "record", "work", "record", "synchronize"]


def test_a_cpu_is_timed_by_the_host_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 1.25])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(ticks))
    assert clock.milliseconds(nn.Identity(), torch.zeros(1)) == 250.0


@pytest.mark.gpu
def test_events_of_a_real_gpu() -> None:
    """A call that keeps the device busy for long takes long, though the host returns from it at
    once.
    """
    cycles = 100_000_000

    class Busy(nn.Module):
        def forward(self, x: Tensor) -> None:
            torch.cuda._sleep(cycles)

    x = torch.zeros(1, device="cuda")
    times = [clock.milliseconds(Busy(), x) for _ in range(3)]
    assert min(times) > cycles / 4e9 * 1e3  # no GPU's clock reaches 4 GHz
    assert clock.milliseconds(nn.Identity(), x) < min(times)


@pytest.mark.parametrize(("ms", "calls"), [(timing.QUICK / 2, 2), (timing.QUICK * 2, 1)])
def test_a_quick_network_is_called_once_more_before_it_counts(
    monkeypatch: pytest.MonkeyPatch, ms: float, calls: int
) -> None:
    """So that it finds its weights in the caches, whatever was called before it."""
    called: list[str] = []

    def timed(name: str) -> Timed:
        prepared = Prepared(
            feed=lambda images: images,
            call=lambda images: called.append(name),
            logits=lambda found: found,
        )
        return Timed(prepared=prepared, images=torch.zeros(2, 1), rates={})

    def took(call: Any, feed: Tensor) -> float:
        call(feed)
        called.append("counts")
        return ms

    monkeypatch.setattr(timing, "milliseconds", took)
    times = timing.interleaved([timed("a"), timed("b")], 1, 4, lambda: None)
    assert times == [[ms] * 4] * 2
    turn = [*["a"] * calls, "counts", *["b"] * calls, "counts"]
    assert called[-4 * len(turn) :] == turn * 4
