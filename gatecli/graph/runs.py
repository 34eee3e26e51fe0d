"""Numbers of channels, as runs of such as follow one another."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Runs", "are_few", "numbers_of", "others", "part_of", "runs_of", "sources_of"]

Runs = tuple[tuple[int, int], ...]  # channels as (first, one past the last) pairs


def are_few(runs: Runs) -> bool:
    """Whether slices are quicker than an index where PyTorch itself runs them."""
    return len(runs) <= 4


def numbers_of(runs: Runs) -> list[int]:
    """All channels of some runs: ((0, 2), (4, 5)) -> [0, 1, 4]."""
    return [number for first, end in runs for number in range(first, end)]


def others(count: int, channels: Sequence[int]) -> tuple[int, ...]:
    """Those of `count` channels that are not among `channels`."""
    return tuple(sorted(set(range(count)) - set(channels)))


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs: [0, 1, 4] -> [(0, 2), (4, 5)]."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def part_of(runs: Runs, numbers: Sequence[int]) -> Runs:
    """Of the channels of some runs those of these numbers.

    ((2, 4), (6, 7)) and [1, 2] -> ((3, 4), (6, 7)).
    """
    channels = numbers_of(runs)
    return tuple(runs_of([channels[number] for number in numbers]))


def sources_of(runs: Runs, width: int) -> tuple[int, ...]:
    """Where each of `width` channels is among those of `runs`, in order, and one more behind them.

    That one is for those in no run: ((1, 3),) of 4 -> (2, 0, 1, 2).
    """
    count = sum(end - first for first, end in runs)
    sources, done = [count] * width, 0
    for first, end in runs:
        sources[first:end] = range(done, done + end - first)
        done += end - first
    return tuple(sources)
