"""gatecli gates: what the gates of a network do on a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.class_tables import ClassMap, class_map, exits_by_class, print_classes, print_exits
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Loading, reads_checkpoints
from gatecli.cli.parsing import remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.render import spread, table
from gatecli.cli.session import Session
from gatecli.cli.text import show
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.data import DataSet
    from gatecli.network import Network
    from gatecli.stages.analyse import Use

__all__ = ["gates"]

WITHOUT_DATA = 2  # random images, where no gate looks at them


@reads_checkpoints
def gates(
    session: Session,
    *,
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
    strategy: Annotated[
        str, typer.Option(help="How gates decide: threshold, or stochastic (sampled).")
    ] = "threshold",
    picture: Annotated[str, typer.Option(help="Format of the pictures: png or svg.")] = "png",
    loading: Loading = Loading(),
) -> dict[str, Any]:
    """Say what the gates do.

    Which units are always on, always off, or on by the image, how often each site runs for each
    class, how alike images of a class are, and of how many exits are sure.
    """
    import torch

    from gatecli.gates.observe import strategy as deciding
    from gatecli.stages.analyse import analyse
    from gatecli.stages.plots import check_format

    check_format(picture)
    if images < 1:
        raise SettingError(f"expected --images to be at least 1, but got {images}")
    path = session.checkpoint(checkpoint)
    network = session.open(path)
    dataset = _data_set(session, network, remembered(data), sampled=strategy == "stochastic")
    looked_at = _images(network, dataset, split=split, count=images, loading=loading)
    with deciding(network, strategy):
        torch.manual_seed(session.seed)
        use = analyse(network, looked_at, Reporter(session))
    found = class_map(use, dataset) if dataset is not None and use.sites else None
    exits = exits_by_class(use, () if dataset is None else dataset.classes)
    if not session.json_:
        _print(session, use, found)
        print_exits(session, exits)
    files = [] if plot is None else _draw(session, network, use, found, plot, picture)
    for file in files:
        session.say(f"wrote {file}")
    return {
        "checkpoint": str(path),
        "arch": network.recipe.source.arch,
        "split": split,
        "strategy": strategy,
        **_facts(use, found),
        "exits": exits,
        "files": [str(file) for file in files],
    }


def _facts(use: Use, found: ClassMap | None) -> dict[str, Any]:
    """What the JSON says of what gates were seen to do."""
    least, mean, most = use.per_image
    return {
        "images": len(use.labels),
        "sites": [asdict(site) for site in use.sites],
        "histogram": use.histogram,
        "switching": use.switching,
        "classes": [] if found is None else found.facts(),
        "units_on": {"least": least, "mean": mean, "most": most, "histogram": asdict(use.counts)},
        "distance": asdict(use.alike),
        "macs_per_image": use.macs,
    }


def _data_set(
    session: Session, network: Network, data: str | None, *, sampled: bool
) -> DataSet | None:
    """The data set to look at; None where no gate looks at images, and none is known."""
    known = data is not None or network.recipe.data is not None
    if not known and not sampled and not _look_at_images(network):
        return None
    return open_data(session, network, data)


def _images(
    network: Network, dataset: DataSet | None, *, split: str, count: int, loading: Loading
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches (images, labels) of the split's first images; random ones without a data set."""
    import torch

    from gatecli.data import batches
    from gatecli.network.compare import random_images
    from gatecli.stages.fit import split_of

    if dataset is None:
        images = random_images(network, WITHOUT_DATA)
        return [(images, torch.zeros(WITHOUT_DATA, dtype=torch.long))]
    passes = batches(
        dataset.splits[split_of(dataset, split)],
        input=network.input,
        batch_size=min(loading.batch_size, count),
        workers=loading.workers,
    )
    return _first(passes, count)


def _look_at_images(network: Network) -> bool:
    """Whether any gate but an exit decides by the image, or there are exits alone."""
    from gatecli.gates.exit import Exit

    gates = [gate for gate in network.site_gates.values() if not isinstance(gate, Exit)]
    is_exits_alone = bool(network.site_exits) and not gates
    return is_exits_alone or any(gate.data_dependent for gate in gates)


def _first(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `count` images."""
    for x, y in batches:
        yield x[:count], y[:count]
        count -= len(y)
        if count <= 0:
            return


def _print(session: Session, use: Use, found: ClassMap | None) -> None:
    if use.sites:
        _print_units(session, use)
    if use.macs.get("std"):
        show(spread(use.macs))
    if any(site.dependent for site in use.sites):
        _print_histogram(session, use)
    if found is not None:
        print_classes(session, found)


def _print_units(session: Session, use: Use) -> None:
    columns = ("<site", "<kind", "units", "always on", "by the image", "always off", "rate")
    rows: list[tuple[Any, ...]] = []
    for site in use.sites:
        counts = (site.units, site.on, site.dependent, site.off)
        rows.append((site.name, site.kind, *counts, f"{site.rate:.3f}"))
    units = sum(site.units for site in use.sites)
    if len(rows) > 1:
        on = sum(site.on for site in use.sites)
        dependent = sum(site.dependent for site in use.sites)
        off = sum(site.off for site in use.sites)
        rate = sum(site.rate * site.units for site in use.sites) / units
        rows.append(("all", "", units, on, dependent, off, f"{rate:.3f}"))
    least, mean, most = use.per_image
    foot = (
        f"units on for an image: {mean:.1f} on average, {least:g} to {most:g}, of {units};"
        f" {len(use.labels)} images"
    )
    table(session, "units", columns, rows, foot)


def _print_histogram(session: Session, use: Use) -> None:
    width = 100 // len(use.histogram)  # percent
    rows = []
    for index, count in enumerate(use.histogram):
        rows.append((f"{width * index}-{width * (index + 1)} %", count))
    title = "\nhow often units that depend on the image are on"
    foot = f"on for 1 to 99 % of the images: {use.switching}{_alike(use)}"
    table(session, title, ("<of the images", "units"), rows, foot)


def _alike(use: Use) -> str:
    """How far decisions about two images of one class, and of two, differ, where both are known."""
    within, between = use.alike.within, use.alike.between
    if within is None or between is None:
        return ""
    return f"; two images of a class differ in {within:.1f} units, of two classes in {between:.1f}"


def _draw(
    session: Session,
    network: Network,
    use: Use,
    found: ClassMap | None,
    folder: Path,
    format: str,
) -> list[Path]:
    """Write the pictures that there is something for; returns their files."""
    from gatecli.stages import plots as drawing
    from gatecli.stages.analyse import embedded
    from gatecli.stages.connections import connections

    pictures = {"shares": drawing.shares(use), "per-image": drawing.per_image(use)}
    if sum(use.histogram):
        pictures["histogram"] = drawing.histogram(use)
        try:
            pictures["t-sne"] = drawing.points(embedded(use.vectors, session.seed), use.labels)
        except SettingError as error:
            session.say(f"no t-SNE: {error}")
    if found is not None:
        pictures["classes"] = drawing.class_map(found.rates, found.names)
    wired = connections(network)
    if wired:
        in_use = {site: int(read.any(0).sum()) for site, read in wired.items()}
        pictures["connections"] = drawing.connectivity(list(wired.items()))
        pictures["branches"] = drawing.active(in_use)
    return drawing.draw(folder, pictures, format)
