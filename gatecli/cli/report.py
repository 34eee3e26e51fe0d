"""gatecli report: one HTML file of what became of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.images import open_data
from gatecli.cli.options import Data, Force, Loading, reads_checkpoints
from gatecli.cli.parsing import check_between, remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.session import Session
from gatecli.errors import DataError, SettingError
from gatecli.runtimes import registry

if TYPE_CHECKING:
    from gatecli.network import Network
    from gatecli.report.looking import Look, Seen
    from gatecli.report.material import Material

__all__ = ["report"]

MOST = 100  # example images at each exit
MOST_LOOKED_AT = 100_000
NO_RUNTIME = "none"


@reads_checkpoints
def report(
    session: Session,
    *,
    checkpoints: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="Checkpoints, side by side; none: the current one.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where to write.")] = Path("report.html"),
    force: Force = False,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    sample: Annotated[
        int, typer.Option(help="Look at so many images of the split at most, drawn at random.")
    ] = 1000,
    images: Annotated[
        int, typer.Option(help="Show so many of the images that leave at each exit.")
    ] = 6,
    runtime: Annotated[
        str,
        typer.Option(help=f"Runtimes to time in, with commas between; {NO_RUNTIME}: none."),
    ] = "native",
    loading: Loading = Loading(),
) -> dict[str, Any]:
    """Write a page: what was done, before and after, sites, exits, gates, training, provenance.

    One HTML file that needs nothing else. What there is no data for is left out, and said.
    """
    from gatecli.checkpoint import check_output
    from gatecli.report.drawing import require_matplotlib
    from gatecli.report.looking import Look
    from gatecli.report.page import compose, write

    check_between("images", images, 0, MOST)
    check_between("sample", sample, 1, MOST_LOOKED_AT)
    require_matplotlib()
    runtimes = _runtimes(runtime)
    paths = [Path(name) for name in checkpoints] if checkpoints else [session.checkpoint(None)]
    check_output(out, force=force, inputs=paths)
    how = Look(
        split=split,
        images=sample,
        examples=images,
        seed=session.seed,
        batch_size=loading.batch_size,
        workers=loading.workers,
    )
    materials = [_material(session, path, data, how, runtimes) for path in paths]
    page = compose(materials)
    size = write(page, out)
    for title, missing in page.missing:
        session.say(f"not in it: {title.lower()}. {missing.words} {missing.command}".rstrip())
    session.say(f"wrote {out}: {len(page.sections)} sections, {size / 1e6:.2f} MB")
    return {
        "checkpoints": [str(path) for path in paths],
        "out": str(out),
        "bytes": size,
        "sections": [section.key for section in page.sections],
        "missing": [title for title, _ in page.missing],
    }


def _runtimes(text: str) -> list[str]:
    """The runtimes asked for, made sure of before anything is read."""
    if text.strip() == NO_RUNTIME:
        return []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        registry.get(name).require("fp32")
    return names


def _material(
    session: Session, path: Path, data: str | None, how: Look, runtimes: Sequence[str]
) -> Material:
    from gatecli.report.material import material_of, timed

    network = session.open(path)
    seen, blind = _seen(session, network, path, data, how)
    material = material_of(path, network, seen=seen, blind=blind, seed=session.seed)
    if not runtimes:
        return material
    return replace(material, times=timed(material, runtimes, Reporter(session)))


def _seen(
    session: Session, network: Network, path: Path, data: str | None, how: Look
) -> tuple[Seen | None, str]:
    """What images showed, or why there are none.

    Raises:
        DataError: The data that the user names cannot be read, or the data has no such split.
    """
    from gatecli.report.looking import look

    known = (network.recipe.data or {}).get("spec")
    if data is None and known is None:
        return None, f"No data set is recorded in {path.name}, and none was named."
    try:
        dataset = open_data(session, network, remembered(data))
    except (DataError, SettingError) as error:
        if data is not None:
            raise
        session.say(f"note: the page is made without images: {error}")
        return None, f"The data set of {path.name}, {known}, could not be used: {error}."
    return look(network, dataset, how, Reporter(session)), ""
