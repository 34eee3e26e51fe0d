"""What `gatecli profile` measures: parameters, bytes, MACs and latency.

The source stands beside what was made of it, and how much of the promise came true.

All networks are timed in one interleaved run with one number of threads, so that what else the
machine does hits them alike; the speed-up is the ratio of medians, in one runtime. Accelerators are
timed by their own events, from idle to done. `realised` = measured speed-up / the speed-up that the
expected MACs promise.
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
from gatecli.runtimes.machine import describe
from gatecli.stages.subject import Subject, subject_of
from gatecli.stages.timed import Cell, cells_of, ready
from gatecli.stages.timing import interleaved

__all__ = [
    "Latency",
    "Profile",
    "Row",
    "SiteRow",
    "Subject",
    "is_theoretical",
    "latency_of",
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
    """One checkpoint's figures in one runtime.

    Latency by batch size, speed-ups against the source's row in the same runtime, at the first
    batch size and at each; the batch sizes at which everything was computed, though gates decide.
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
    runtime: str
    precision: str
    masked: list[str]


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
    """`decisions`: "measured" (real images) or "recorded" (by recorded rates).

    `threads` that computed, on which `machine`.
    """

    rows: list[Row]
    sites: list[SiteRow]
    decisions: str
    threads: int
    repeats: int
    machine: str


def profile(  # noqa: PLR0913 - its command's options, by keyword
    source: Subject,
    subjects: Sequence[Subject],
    *,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 30,
    images: Tensor | None = None,
    runtimes: Sequence[str] = ("native",),
    precision: str = "fp32",
    progress: Progress = silent,
) -> Profile:
    """Profile `subjects` against `source`.

    Args:
        source: The source.
        subjects: What was made of it; the last one's sites are told.
        batch_sizes: Images a call.
        repeats: Timed calls of each.
        images: Real ones (n, C, H, W), normalised, for real decisions; none: random images, gates
            deciding by the rates.
        runtimes: Names of runtimes (gatecli.runtimes.registry).
        precision: One that all of them have.
        progress: Is told of each round.

    Raises:
        SettingError: Values are out of range, or a runtime is missing.
        ExportError: A runtime cannot take a network.
    """
    _check_asked(batch_sizes, repeats)
    networks = [subject.network for subject in subjects if subject.network is not None]
    _check_same_images(networks)
    for network in networks:
        # milliseconds of a network that computes nothing of use would mislead
        logits(network, random_images(network, 1))
    everyone = [source, *subjects]
    cells = cells_of(everyone, runtimes, precision, images)
    recipe = networks[-1].recipe
    times: dict[str, list[list[float]]] = {}
    masked: dict[str, list[bool]] = {}
    with progress.task("timing", len(batch_sizes) * repeats) as task:
        for size in batch_sizes:
            timed = ready(cells, size, recipe)
            masked[str(size)] = [each.prepared.masked for each in timed]
            times[str(size)] = interleaved(timed, size, repeats, task.advance)
    return Profile(
        rows=_rows(cells, len(everyone), times, masked),
        sites=site_rows(subjects[-1]) if subjects else [],
        decisions="recorded" if images is None else "measured",
        threads=torch.get_num_threads(),
        repeats=repeats,
        machine=describe(networks[-1].device),
    )


def _check_asked(batch_sizes: Sequence[int], repeats: int) -> None:
    if repeats < 3 or not batch_sizes or min(batch_sizes) < 1:
        raise SettingError(
            f"expected --repeats of at least 3 and batch sizes of at least 1, but got {repeats} and"
            f" {list(batch_sizes)}"
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


def _rows(
    cells: Sequence[Cell],
    width: int,
    times: Mapping[str, list[list[float]]],
    masked: Mapping[str, list[bool]],
) -> list[Row]:
    """The rows, runtime by runtime; the first of each `width` cells is the source."""
    rows = []
    for index, cell in enumerate(cells):
        base = index - index % width
        speedups = {}
        for size, each in times.items():
            speedups[size] = statistics.median(each[base]) / statistics.median(each[index])
        subject = cell.subject
        ideal = cells[base].subject.macs_expected / subject.macs_expected
        first = next(iter(speedups.values()))
        row = Row(
            name=subject.name,
            params=subject.params,
            file_bytes=subject.file_bytes,
            macs_dense=subject.macs_dense,
            macs_expected=subject.macs_expected,
            latency_ms={size: latency_of(each[index]) for size, each in times.items()},
            speedup=first,
            ideal_speedup=ideal,
            realised=first / ideal,
            speedups=speedups,
            runtime=cell.runtime,
            precision=cell.precision,
            masked=[size for size, flags in masked.items() if flags[index]],
        )
        rows.append(row)
    return rows


def latency_of(times: Sequence[float]) -> Latency:
    """What single calls took, of their milliseconds."""
    return Latency(
        median=statistics.median(times),
        p95=statistics.quantiles(times, n=20, method="inclusive")[-1],
        min=min(times),
    )
