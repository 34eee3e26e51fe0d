"""What `gatecli profile` measures: parameters, bytes, MACs and latency.

The source stands beside what was made of it, and how much of the promise came true.

All networks are timed in one interleaved run with one number of threads, so that what else the
machine does hits them alike; the speed-up is the ratio of medians. Accelerators are timed by their
own events, from idle to done. `realised` = measured speed-up / the speed-up that the expected MACs
promise.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.errors import SettingError
from gatecli.kinds import registry
from gatecli.network import Network
from gatecli.network.compare import logits, random_images
from gatecli.network.costs import expected_macs, gate_macs, mean_rate
from gatecli.progress import Progress, silent
from gatecli.stages.subject import Subject, subject_of
from gatecli.stages.timing import interleaved

__all__ = [
    "Latency",
    "Profile",
    "Row",
    "SiteRow",
    "Subject",
    "is_theoretical",
    "profile",
    "real_share",
    "site_rows",
    "subject_of",
]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call."""

    median: float
    p95: float
    min: float


@dataclass(frozen=True)
class Row:
    """One checkpoint's figures.

    Latency by batch size, speed-ups against the first row, at the first batch size and at each.
    """

    name: str
    params: int
    file_bytes: int
    macs_dense: int
    macs_expected: float
    latency_ms: dict[str, Latency]
    speedup: float
    ideal_speedup: float
    realised: float
    speedups: dict[str, float]


@dataclass(frozen=True)
class SiteRow:
    """One site of the last checkpoint.

    The MACs that its gate decides about (an exit's: that leaving there saves), the method that
    gates it, how often it runs (1 where nothing gates it), what the gate, or an exit with its
    classifier, costs itself, and whether what it saves is theoretical: no time.
    """

    name: str
    kind: str
    units: int
    macs: int
    method: str | None
    rate: float
    gate_macs: int
    theoretical: bool


@dataclass(frozen=True)
class Profile:
    """`decisions`: "measured" (real images) or "recorded" (drawn from recorded rates).

    `threads` that computed.
    """

    rows: list[Row]
    sites: list[SiteRow]
    decisions: str
    threads: int
    repeats: int


def profile(
    source: Subject,
    subjects: Sequence[Subject],
    *,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 30,
    images: Tensor | None = None,
    progress: Progress = silent,
) -> Profile:
    """Profile `subjects` against `source`.

    Args: images: real ones (n, C, H, W), normalised, for real decisions; none: random images,
    decisions drawn from the rates.
    Raises: SettingError for values out of range.
    """
    if repeats < 3 or not batch_sizes or min(batch_sizes) < 1:
        raise SettingError(
            f"expected --repeats of at least 3 and batch sizes of at least 1, but got {repeats} and"
            f" {list(batch_sizes)}"
        )
    networks = [subject.network for subject in subjects if subject.network is not None]
    _check_same_images(networks)
    for network in networks:
        # milliseconds of a network that computes nothing of use would mislead
        logits(network, random_images(network, 1))
    everyone = [source, *subjects]
    times: dict[str, list[list[float]]] = {}
    with progress.task("timing", len(batch_sizes) * repeats) as task:
        for size in batch_sizes:
            times[str(size)] = interleaved(everyone, size, repeats, images, task.advance)
    rows = [_row(everyone, index, times) for index in range(len(everyone))]
    return Profile(
        rows=rows,
        sites=site_rows(subjects[-1]) if subjects else [],
        decisions="recorded" if images is None else "measured",
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def _check_same_images(networks: Sequence[Network]) -> None:
    """Raises SettingError where networks take images of different sizes."""
    sizes = {(*network.input.size, network.input.channels) for network in networks}
    if len(sizes) > 1:
        words = ["x".join(map(str, size)) for size in sorted(sizes)]
        raise SettingError(
            f"expected checkpoints that take the same images, but got {' and '.join(words)}:"
            " profile them one by one"
        )


def site_rows(subject: Subject) -> list[SiteRow]:
    """The rows of the table by site; none for the source."""
    network = subject.network
    if network is None:
        return []
    rows = []
    for name, site in network.sites.items():
        kind = registry.of(site)
        if name in network.gated_by or kind.listed:  # parts of branches: only those gated
            usual = [0.0 if kind.leaves else 1.0]
            rows.append(
                SiteRow(
                    name=name,
                    kind=site.kind,
                    units=site.units,
                    macs=site.macs,
                    method=network.gated_by.get(name),
                    rate=mean_rate(subject.rates.get(name, usual)),
                    gate_macs=gate_macs(network.traced, name),
                    theoretical=is_theoretical(network, name),
                )
            )
    return rows


def is_theoretical(network: Network, site: str) -> bool:
    """Whether what a site saves is no time."""
    kind = registry.of(network.sites[site])
    return site in network.gated_by and kind.is_theoretical(network.traced, site)


def real_share(subject: Subject, size: int) -> float | None:
    """Of the MACs that closed filters and channels promise to save, the share that is saved.

    It is what a batch of `size` images does save; None where none are gated.

    What any image of a batch opens is computed for all of them; images are taken to decide
    independently of each other.
    """
    network = subject.network
    if network is None:
        return None
    alone, together = {}, {}
    for site in network.gated_by:
        shares = registry.of(network.sites[site]).shares_batch
        if site in subject.rates and shares and not is_theoretical(network, site):
            units = alone[site] = subject.rates[site]
            together[site] = [1 - (1 - rate) ** size for rate in units]
    promised = network.macs_dense - expected_macs(network, alone)
    saved = network.macs_dense - expected_macs(network, together)
    return saved / promised if promised else None


def _row(subjects: Sequence[Subject], index: int, times: Mapping[str, list[list[float]]]) -> Row:
    subject, source = subjects[index], subjects[0]
    speedups = {
        size: statistics.median(each[0]) / statistics.median(each[index])
        for size, each in times.items()
    }
    ideal = source.macs_expected / subject.macs_expected
    first = next(iter(speedups.values()))
    return Row(
        name=subject.name,
        params=subject.params,
        file_bytes=subject.file_bytes,
        macs_dense=subject.macs_dense,
        macs_expected=subject.macs_expected,
        latency_ms={size: _latency(each[index]) for size, each in times.items()},
        speedup=first,
        ideal_speedup=ideal,
        realised=first / ideal,
        speedups=speedups,
    )


def _latency(times: Sequence[float]) -> Latency:
    return Latency(
        median=statistics.median(times),
        p95=statistics.quantiles(times, n=20, method="inclusive")[-1],
        min=min(times),
    )
