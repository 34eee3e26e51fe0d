"""gatecli profile"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.progress import Reporter
from gatecli.cli.render import MACS_FOOT, gmacs, megabytes, millions, table
from gatecli.cli.session import Data, Session, reads_checkpoints, remembered
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.network import Network
    from gatecli.network.costs import Rates
    from gatecli.profiling import Profile


@reads_checkpoints
def profile(
    session: Session,
    checkpoints: Annotated[
        Optional[list[str]],
        typer.Argument(help="Checkpoints, a row each; none: the current one.", show_default=False),
    ] = None,
    data: Data = None,
    batch: Annotated[str, typer.Option(help="Batch sizes to time, as 1,32.")] = "1",
    repeats: Annotated[int, typer.Option(help="Timed calls of each network.")] = 30,
    sites: Annotated[bool, typer.Option("--sites/--no-sites", help="A table by site too.")] = True,
) -> dict[str, Any]:
    """Measure parameters, file size, GMACs and latency, beside the source's and beside what the
    MACs promise.
    """
    from gatecli import profiling

    sizes = _sizes(batch)
    paths = [Path(name) for name in checkpoints] if checkpoints else [session.checkpoint(None)]
    networks = [session.open(path) for path in paths]
    rates, images = _real(session, networks, remembered(data)) if data is not None else (None, None)
    subjects = [
        profiling.subject_of(
            path.name, network, _bytes(path, network), rates[index] if rates else _recorded(network)
        )
        for index, (path, network) in enumerate(zip(paths, networks, strict=True))
    ]
    source = _source(session, networks[0])
    result = profiling.profile(
        source,
        subjects,
        batch_sizes=sizes,
        repeats=repeats,
        images=images,
        progress=Reporter(session),
    )
    if not session.json_:
        _print(session, result, sites)
        _say_what_is_real(session, subjects[-1], sizes)
    return {
        "checkpoint": str(paths[-1]),
        "arch": networks[0].recipe.source.arch,
        "uncounted": networks[-1].uncounted,
        "rows": [asdict(row) for row in result.rows],
        "sites": [asdict(site) for site in result.sites],
        "decisions": result.decisions,
        "threads": result.threads,
        "repeats": result.repeats,
        "params": networks[-1].params,
        "macs_dense": networks[-1].macs_dense,
        "macs_expected": subjects[-1].macs_expected,
    }


def _say_what_is_real(session: Session, subject: Any, sizes: list[int]) -> None:
    """Of what filters' and channels' gates promise to save, what a batch does save."""
    from gatecli.profiling import real_share

    shares = {size: share for size in sizes if (share := real_share(subject, size)) is not None}
    if shares and max(shares) > 1:
        real = ", ".join(f"{100 * share:.0f} % at batch {size}" for size, share in shares.items())
        session.say(
            "note: a batch computes the filters that any of its images opens: of the MACs that"
            f" gated filters save for an image alone, by their rates, {real} are really saved"
        )


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"expected --batch to be batch sizes, as 1,32, but got `{text}`")
    return [int(part) for part in parts]


def _bytes(path: Path, network: Network) -> int:
    return path.stat().st_size if path.exists() else network.recipe.source.file_bytes


def _recorded(network: Network) -> Rates:
    from gatecli.network.costs import known_rates

    return known_rates(network)


def _source(session: Session, network: Network) -> Any:
    """The source, built anew with random weights: its latency does not depend on them.

    Its bytes and counts are those recorded.
    """
    from gatecli.checkpoint import skeleton_with_weights
    from gatecli.profiling import Subject

    source = network.recipe.source
    module = skeleton_with_weights(source).to(network.device).eval()
    return Subject(
        source.file or source.arch,
        module,
        source.file_bytes,
        source.params,
        source.macs,
        source.macs,
        {},
    )


def _real(
    session: Session, networks: list[Network], data: str | None
) -> tuple[list[Rates], Tensor]:
    """Each network's rates on val, and up to 512 images of it to time with."""
    import torch

    from gatecli.data import batches, steps
    from gatecli.inference import score
    from gatecli.inputs import open_data

    rates: list[Rates] = []
    images: list[Tensor] = []
    for network in networks:
        split = open_data(network, data).splits["val"]
        passes = batches(split, input=network.input, batch_size=256)
        rates.append(
            score(
                network, passes, Reporter(session), "measuring rates on val", steps(split, 256)
            ).rates
        )
        if not images:
            images = [
                x
                for x, _ in zip(
                    (x for x, _ in batches(split, input=network.input, batch_size=256)),
                    range(2),
                    strict=False,
                )
            ]
    return rates, torch.cat(images)


def _print(session: Session, result: Profile, with_sites: bool) -> None:
    sizes = [
        (
            row.name,
            millions(row.params),
            megabytes(row.file_bytes),
            gmacs(row.macs_dense),
            gmacs(row.macs_expected),
        )
        for row in result.rows
    ]
    table(
        session,
        "size",
        ("<checkpoint", "parameters", "file", "GMACs all on", "GMACs expected"),
        sizes,
        MACS_FOOT,
    )
    times = [
        (
            row.name,
            batch,
            f"{ms.median:.2f}",
            f"{ms.p95:.2f}",
            f"{ms.min:.2f}",
            *(f"{x:.2f}x" for x in (row.speedups[batch], row.ideal_speedup)),
            f"{row.speedups[batch] / row.ideal_speedup:.2f}",
        )
        for row in result.rows
        for batch, ms in row.latency_ms.items()
    ]
    how = (
        "decided by real images" if result.decisions == "measured" else "drawn from recorded rates"
    )
    foot = (
        f"{result.repeats} interleaved calls, {result.threads} threads; gates {how}; ideal: what"
        " expected MACs promise; realised = speed-up / ideal"
    )
    table(
        session,
        "\nlatency",
        ("<checkpoint", "batch", "median ms", "p95", "min", "speed-up", "ideal", "realised"),
        times,
        foot,
    )
    gated = [site for site in result.sites if site.method]
    if any(site.theoretical for site in gated):
        session.say(
            "note: expected GMACs are theoretical where gates decide for single activations, which"
            " no dense kernel can leave out: they save no time"
        )
    if with_sites and gated:
        site_rows = [
            (
                s.name,
                s.kind,
                s.units,
                gmacs(s.macs),
                s.method,
                f"{s.rate:.3f}{_remark(s)}",
                gmacs(s.gate_macs),
            )
            for s in gated
        ]
        foot = (
            "GMACs: what the gate decides about (an exit: what leaving there saves); its own: what"
            f" deciding costs. {len(result.sites) - len(gated)} sites without a gate: gatecli"
            " inspect"
        )
        table(
            session,
            f"\nsites of {result.rows[-1].name}",
            ("<site", "<kind", "units", "GMACs", "<gated by", "rate", "its own"),
            site_rows,
            foot,
        )


def _remark(site: Any) -> str:
    """What stands behind a site's rate."""
    if site.theoretical:
        return " (theoretical)"
    return "" if site.macs else " (saves nothing)"
