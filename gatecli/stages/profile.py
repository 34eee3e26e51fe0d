"""What `gatecli profile` measures: parameters, bytes, MACs and latency.

The source stands beside what was made of it, and how much of the promise came true.

All networks are timed in one interleaved run with one number of threads, so that what else the
machine does hits them alike; the speed-up is the ratio of medians. Accelerators are timed by their
own events, from idle to done. `realised` = measured speed-up / the speed-up that the expected MACs
promise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatecli.errors import SettingError
from gatecli.gates.observe import force
from gatecli.kinds import registry
from gatecli.network import Network
from gatecli.network.compare import logits, random_images
from gatecli.network.costs import Rates, expected_macs, gate_macs, mean_rate, reach
from gatecli.progress import Progress, silent
from gatecli.stages.clock import milliseconds


@dataclass(frozen=True)
class Subject:
    """A network to profile.

    `rates`: per unit, measured or recorded; `network` None is the source, `module` is what is
    timed.
    """

    name: str
    module: nn.Module
    file_bytes: int
    params: int
    macs_dense: int
    macs_expected: float
    rates: Rates
    network: Network | None = None


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
            times[str(size)] = _interleaved(everyone, size, repeats, images, task.advance)
    rows = [_row(everyone, index, times) for index in range(len(everyone))]
    return Profile(
        rows,
        site_rows(subjects[-1]) if subjects else [],
        "recorded" if images is None else "measured",
        torch.get_num_threads(),
        repeats,
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


def subject_of(name: str, network: Network, file_bytes: int, rates: Rates) -> Subject:
    """A network as a subject, its gates having these rates."""
    return Subject(
        name,
        network,
        file_bytes,
        network.params,
        network.macs_dense,
        expected_macs(network, rates),
        rates,
        network,
    )


def real_share(subject: Subject, size: int) -> float | None:
    """Of the MACs that closed filters and channels promise to save, the share that is saved.

    It is what a batch of `size` images does save; None where none are gated.

    What any image of a batch opens is computed for all of them; images are taken to decide
    independently of each other.
    """
    network = subject.network
    if network is None:
        return None
    alone = {}
    for site in network.gated_by:
        shares = registry.of(network.sites[site]).shares_batch
        shares = shares and not is_theoretical(network, site)
        if site in subject.rates and shares:
            alone[site] = subject.rates[site]
    together = {site: [1 - (1 - rate) ** size for rate in units] for site, units in alone.items()}
    promised, saved = (
        network.macs_dense - expected_macs(network, rates) for rates in (alone, together)
    )
    return saved / promised if promised else None


def _interleaved(
    subjects: Sequence[Subject],
    size: int,
    repeats: int,
    images: Tensor | None,
    tick: Callable[[], None],
) -> list[list[float]]:
    draw = torch.Generator().manual_seed(0)
    times: list[list[float]] = [[] for _ in subjects]
    for repeat in range(-3, repeats):  # three rounds to warm up
        for index, subject in enumerate(subjects):
            x = _images(subjects[-1], size, images, draw)
            with _drawn(subject, size, draw if images is None else None), torch.inference_mode():
                elapsed = milliseconds(subject.module, x)
            if repeat >= 0:
                times[index].append(elapsed)
        if repeat >= 0:
            tick()
    return times


def _images(subject: Subject, size: int, images: Tensor | None, draw: torch.Generator) -> Tensor:
    device = next(subject.module.parameters()).device
    if images is not None:
        return images[torch.randint(len(images), (size,), generator=draw)].to(device)
    assert subject.network is not None
    return torch.randn(
        size, subject.network.input.channels, *subject.network.input.size, generator=draw
    ).to(device)


@contextmanager
def _drawn(subject: Subject, size: int, draw: torch.Generator | None) -> Iterator[None]:
    """Decisions for one call drawn from the subject's rates, where no real images decide."""
    with ExitStack() as stack:
        if draw is not None and subject.network is not None:
            stack.enter_context(
                force(subject.network, _decisions(subject.network, subject.rates, size, draw))
            )
        yield


def _decisions(
    network: Network, rates: Rates, size: int, draw: torch.Generator
) -> Mapping[str, Tensor]:
    """Rates are shares of all samples.

    A gate decides for those that come to it, so it is drawn from the share of these.
    """
    drawn = {}
    for site, units in rates.items():
        come = max(reach(network, site, rates), 1e-9)
        drawn[site] = (
            torch.rand(size, len(units), generator=draw) < torch.tensor(units) / come
        ).float()
    return drawn


def _row(subjects: Sequence[Subject], index: int, times: Mapping[str, list[list[float]]]) -> Row:
    subject, source = subjects[index], subjects[0]
    speedups = {
        size: statistics.median(each[0]) / statistics.median(each[index])
        for size, each in times.items()
    }
    ideal = source.macs_expected / subject.macs_expected
    first = next(iter(speedups.values()))
    return Row(
        subject.name,
        subject.params,
        subject.file_bytes,
        subject.macs_dense,
        subject.macs_expected,
        {size: _latency(each[index]) for size, each in times.items()},
        first,
        ideal,
        first / ideal,
        speedups,
    )


def _latency(times: Sequence[float]) -> Latency:
    return Latency(
        statistics.median(times),
        statistics.quantiles(times, n=20, method="inclusive")[-1],
        min(times),
    )
