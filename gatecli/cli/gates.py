"""gatecli gates"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer

from gatecli.cli.progress import Reporter
from gatecli.cli.render import table
from gatecli.cli.session import (
    BatchSize,
    Checkpoint,
    Data,
    Session,
    Workers,
    reads_checkpoints,
    remembered,
)
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.analysing import Use
    from gatecli.network import Network


@reads_checkpoints
def gates(
    session: Session,
    checkpoint: Checkpoint = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    images: Annotated[
        int, typer.Option(help="Look at so many images of the split at most.")
    ] = 5000,
    plot: Annotated[
        Optional[Path],
        typer.Option(
            help="Folder for pictures; needs pip install 'gatecli[report]'.", show_default=False
        ),
    ] = None,
    picture: Annotated[str, typer.Option(help="Format of the pictures: png or svg.")] = "png",
    batch_size: BatchSize = 256,
    workers: Workers = 0,
) -> dict[str, Any]:
    """Say what the gates do.

    Which units are always on, always off, or on by the image, and how alike images of a class are.
    """
    from gatecli.analysing import analyse
    from gatecli.drawing import check_format

    check_format(picture)
    if images < 1:
        raise SettingError(f"expected --images to be at least 1, but got {images}")
    path = session.checkpoint(checkpoint)
    network = session.open(path)
    use = analyse(
        network,
        _images(network, remembered(data), split, images, batch_size, workers),
        Reporter(session),
    )
    if not session.json_:
        _print(session, use)
    files = [] if plot is None else _draw(session, network, use, plot, picture)
    for file in files:
        session.say(f"wrote {file}")
    least, mean, most = use.per_image
    return {
        "checkpoint": str(path),
        "arch": network.recipe.source.arch,
        "split": split,
        "images": len(use.labels),
        "sites": [asdict(site) for site in use.sites],
        "histogram": use.histogram,
        "units_on": {"least": least, "mean": mean, "most": most},
        "files": [str(file) for file in files],
    }


def _images(
    network: Network, data: str | None, split: str, count: int, batch_size: int, workers: int
) -> Any:
    """Batches of the split.

    Of random images where no gate looks at them and no data set is known.
    """
    import torch

    from gatecli.data import batches
    from gatecli.gates import Exit
    from gatecli.inputs import open_data, split_of
    from gatecli.network.compare import random_images

    if (
        data is None
        and network.recipe.data is None
        and not any(
            gate.data_dependent
            for gate in network.site_gates.values()
            if not isinstance(gate, Exit)
        )
    ):
        return [(random_images(network, 2), torch.zeros(2, dtype=torch.long))]
    dataset = open_data(network, data)
    return _first(
        batches(
            dataset.splits[split_of(dataset, split)],
            input=network.input,
            batch_size=min(batch_size, count),
            workers=workers,
        ),
        count,
    )


def _first(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """The first `count` images."""
    for x, y in batches:
        yield x[:count], y[:count]
        count -= len(y)
        if count <= 0:
            return


def _print(session: Session, use: Use) -> None:
    rows: list[tuple[Any, ...]] = [
        (s.name, s.kind, s.units, s.on, s.dependent, s.off, f"{s.rate:.3f}") for s in use.sites
    ]
    total = [sum(int(row[place]) for row in rows) for place in range(2, 6)]
    if len(rows) > 1:
        rows.append(
            ("all", "", *total, f"{sum(s.rate * s.units for s in use.sites) / total[0]:.3f}")
        )
    least, mean, most = use.per_image
    foot = (
        f"units on for an image: {mean:.1f} on average, {least:g} to {most:g}, of {total[0]};"
        f" {len(use.labels)} images"
    )
    table(
        session,
        "units",
        ("<site", "<kind", "units", "always on", "by the image", "always off", "rate"),
        rows,
        foot,
    )
    if total[2]:
        width = 100 // len(use.histogram)
        bins = [
            (f"{width * index}-{width * (index + 1)} %", count)
            for index, count in enumerate(use.histogram)
        ]
        table(
            session,
            "\nhow often units that depend on the image are on",
            ("<of the images", "units"),
            bins,
        )


def _draw(session: Session, network: Network, use: Use, folder: Path, format: str) -> list[Path]:
    from gatecli import drawing
    from gatecli.analysing import embedded

    pictures = {"shares": drawing.shares(use), "per-image": drawing.per_image(use)}
    if sum(use.histogram):
        pictures["histogram"] = drawing.histogram(use)
        try:
            pictures["t-sne"] = drawing.points(embedded(use.vectors, session.seed), use.labels)
        except SettingError as error:
            session.say(f"no t-SNE: {error}")
    wired = {
        site: cast(Any, gate).connections().cpu()
        for site, gate in network.site_gates.items()
        if hasattr(gate, "connections")
    }
    if wired:
        pictures["connections"] = drawing.connectivity(
            [(site.removesuffix(".branches"), read) for site, read in wired.items()]
        )
        pictures["branches"] = drawing.active(
            {site.removesuffix(".branches"): int(read.any(0).sum()) for site, read in wired.items()}
        )
    return drawing.draw(folder, pictures, format)
