"""gatecli profile: what checkpoints cost, by count and by the clock."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.images import open_data
from gatecli.cli.options import Data, reads_checkpoints
from gatecli.cli.parsing import remembered
from gatecli.cli.precision import say_if_slow
from gatecli.cli.profile_tables import print_profile
from gatecli.cli.progress import Reporter
from gatecli.cli.session import Session
from gatecli.errors import SettingError
from gatecli.runtimes import registry

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.data import Split
    from gatecli.network import Network
    from gatecli.network.costs import Rates
    from gatecli.stages.profile import Profile, Subject

__all__ = ["profile"]

TIMED_BATCHES = 2  # of real images to time with
BATCH_SIZE = 256  # of the pass that measures rates


def _runtimes() -> str:
    known = [f"{name} ({registry.get(name).about})" for name in registry.names()]
    return f"Runtimes to time in, with commas between: {'; '.join(known)}."


@reads_checkpoints
def profile(
    session: Session,
    *,
    checkpoints: Annotated[
        Optional[list[str]],
        typer.Argument(help="Checkpoints, a row each; none: the current one.", show_default=False),
    ] = None,
    data: Data = None,
    batch: Annotated[str, typer.Option(help="Batch sizes to time, as 1,32.")] = "1",
    repeats: Annotated[int, typer.Option(help="Timed calls of each network.")] = 30,
    runtime: Annotated[str, typer.Option(help=_runtimes())] = "native",
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16, in every runtime that is timed.")
    ] = "fp32",
    sites: Annotated[bool, typer.Option("--sites/--no-sites", help="A table by site too.")] = True,
) -> dict[str, Any]:
    """Measure parameters, file size, GMACs and latency.

    They stand beside the source's and beside what the MACs promise.
    """
    from gatecli.stages import profile as profiling
    from gatecli.stages.subject import source_of

    sizes = _sizes(batch)
    runtimes = _chosen(session, runtime, precision)
    paths = [Path(name) for name in checkpoints] if checkpoints else [session.checkpoint(None)]
    networks = [session.open(path) for path in paths]
    rates, images = _rates(session, networks, data)
    subjects = _subjects(paths, networks, rates)
    result = profiling.profile(
        source_of(networks[0]),
        subjects,
        batch_sizes=sizes,
        repeats=repeats,
        images=images,
        runtimes=runtimes,
        precision=precision,
        progress=Reporter(session),
    )
    if not session.json_:
        print_profile(session, result, with_sites=sites)
        _say_what_is_real(session, subjects[-1], sizes)
    return {
        "checkpoint": str(paths[-1]),
        "arch": networks[0].recipe.source.arch,
        "uncounted": networks[-1].uncounted,
        **_facts(result),
        "params": networks[-1].params,
        "macs_dense": networks[-1].macs_dense,
        "macs_expected": subjects[-1].macs_expected,
    }


def _facts(result: Profile) -> dict[str, Any]:
    """What the JSON says of what was measured."""
    return {
        "rows": [asdict(row) for row in result.rows],
        "sites": [asdict(site) for site in result.sites],
        "decisions": result.decisions,
        "threads": result.threads,
        "repeats": result.repeats,
        "machine": result.machine,
    }


def _subjects(
    paths: Sequence[Path], networks: Sequence[Network], rates: Sequence[Rates]
) -> list[Subject]:
    """What is to be profiled, with the sizes of its files and its rates."""
    from gatecli.stages.profile import subject_of

    subjects = []
    for path, network, known in zip(paths, networks, rates, strict=True):
        size = path.stat().st_size if path.exists() else network.recipe.source.file_bytes
        subjects.append(subject_of(path.name, network, size, known))
    return subjects


def _say_what_is_real(session: Session, subject: Subject, sizes: Sequence[int]) -> None:
    """Of what filters' and channels' gates promise to save, what a batch does save."""
    from gatecli.stages.profile import real_share

    shares = {}
    for size in sizes:
        share = real_share(subject, size)
        if share is not None:
            shares[size] = share
    if shares and max(shares) > 1:
        real = ", ".join(f"{100 * share:.0f} % at batch {size}" for size, share in shares.items())
        session.say(
            "note: a batch computes the filters that any of its images opens: of the MACs that"
            f" gated filters save for an image alone, by their rates, {real} are really saved"
        )


def _chosen(session: Session, runtimes: str, precision: str) -> list[str]:
    """The runtimes asked for, made sure of before anything is read."""
    chosen = [name.strip() for name in runtimes.split(",")]
    for name in chosen:
        registry.get(name).require(precision)
    say_if_slow(session, precision)
    return chosen


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"expected --batch to be batch sizes, as 1,32, but got `{text}`")
    return [int(part) for part in parts]


def _rates(
    session: Session, networks: Sequence[Network], data: str | None
) -> tuple[list[Rates], Tensor | None]:
    """Each network's rates, recorded or, with a data set, measured; images of it to time with."""
    from gatecli.network.costs import known_rates

    if data is None:
        return [known_rates(network) for network in networks], None
    return _measured(session, networks, remembered(data))


def _measured(
    session: Session, networks: Sequence[Network], data: str | None
) -> tuple[list[Rates], Tensor]:
    """Each network's rates on val, and two batches of it, (N, C, H, W), to time with."""
    from gatecli.data import batches, steps
    from gatecli.stages.predict import score

    rates: list[Rates] = []
    images = None
    for network in networks:
        split = open_data(session, network, data).splits["val"]
        passes = batches(split, input=network.input, batch_size=BATCH_SIZE)
        total = steps(split, BATCH_SIZE)
        scores = score(network, passes, Reporter(session), "measuring rates on val", total)
        rates.append(scores.rates)
        if images is None:
            images = _first_images(network, split)
    assert images is not None  # there is at least one network
    return rates, images


def _first_images(network: Network, split: Split) -> Tensor:
    import torch

    from gatecli.data import batches

    passes = batches(split, input=network.input, batch_size=BATCH_SIZE)
    return torch.cat([x for x, _ in itertools.islice(passes, TIMED_BATCHES)])
