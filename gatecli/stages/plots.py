"""Pictures of what gates do, with matplotlib (extra `report`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gatecli.checkpoint.atomic import replacing
from gatecli.errors import SettingError
from gatecli.stages.analyse import Use
from gatecli.stages.class_rates import ClassRates

__all__ = [
    "active",
    "check_format",
    "class_map",
    "connectivity",
    "draw",
    "histogram",
    "per_image",
    "points",
    "shares",
]

FORMATS = ("png", "svg")
NAMED = 60  # classes up to which a picture names each
Picture = Callable[[Any], None]  # draws on matplotlib's axes


def check_format(format: str) -> None:
    """Raise SettingError unless pictures can be written so."""
    if format not in FORMATS:
        raise SettingError(
            f"expected --picture to be one of {', '.join(FORMATS)}, but got `{format}`"
        )


def draw(folder: Path, pictures: Mapping[str, Picture], format: str = "png") -> list[Path]:
    """Write pictures to files.

    Args:
        folder: made where there is none.
        pictures: what draws each, by the file's name without its ending.
        format: one of FORMATS.

    Returns:
        The files.

    Raises:
        SettingError: the format is none of these, or matplotlib is missing.
    """
    check_format(format)
    try:
        import matplotlib
    except ImportError as error:
        raise SettingError("pictures need matplotlib: pip install 'gatecli[report]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in pictures.items():
        figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
        picture(axes)
        path = folder / f"{name}.{format}"
        with replacing(path) as temporary:
            figure.savefig(temporary, format=format, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written


def shares(use: Use) -> Picture:
    """A bar for each site: the shares of its units that are always on, by the image, always off."""
    stacked = (
        ("always on", "tab:green", [site.on for site in use.sites]),
        ("by the image", "tab:orange", [site.dependent for site in use.sites]),
        ("always off", "tab:gray", [site.off for site in use.sites]),
    )

    def picture(axes: Any) -> None:
        places = range(len(use.sites))
        below = [0.0] * len(use.sites)
        for label, color, counts in stacked:
            heights = [count / site.units for count, site in zip(counts, use.sites, strict=True)]
            axes.bar(places, heights, bottom=below, color=color, label=label)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.set_xticks(places, [site.name for site in use.sites], rotation=90, fontsize=6)
        axes.set_ylabel("share of units")
        axes.legend()

    return picture


def histogram(use: Use) -> Picture:
    """How often the units that depend on the image are on."""

    def picture(axes: Any) -> None:
        width = 1 / len(use.histogram)
        centres = [(index + 0.5) * width for index in range(len(use.histogram))]
        axes.bar(centres, use.histogram, width=0.95 * width)
        axes.set_xlabel("share of the images for which a unit is on")
        axes.set_ylabel("units that depend on the image")

    return picture


def per_image(use: Use) -> Picture:
    """How many units are on for an image."""

    def picture(axes: Any) -> None:
        counts = use.counts
        begins = [counts.first + index * counts.width for index in range(len(counts.images))]
        axes.bar(begins, counts.images, width=counts.width, align="edge")
        axes.set_xlabel("units on")
        axes.set_ylabel("images")

    return picture


def class_map(found: ClassRates, names: Sequence[str]) -> Picture:
    """How often each site runs for each class: a row a class, a column a site.

    Args:
        found: The rates.
        names: The classes' names, row by row.

    Reference:
        Herrmann et al. 2018, figure 8.
    """

    def picture(axes: Any) -> None:
        drawn = axes.imshow(found.rates.numpy(), vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.figure.colorbar(drawn, label="rate")
        axes.set_xticks(range(len(found.sites)), found.sites, rotation=90, fontsize=6)
        if len(names) <= NAMED:
            axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set_ylabel("class")

    return picture


def points(places: Tensor, labels: Tensor) -> Picture:
    """Images in the plane (N, 2), coloured by class (N,)."""

    def picture(axes: Any) -> None:
        across = places[:, 0].numpy()
        up = places[:, 1].numpy()
        drawn = axes.scatter(across, up, c=labels.numpy(), cmap="tab20", s=6)
        axes.figure.colorbar(drawn, label="class")
        axes.set_axis_off()

    return picture


def connectivity(modules: Sequence[tuple[str, Tensor]]) -> Picture:
    """Modules from left to right, their branches one above the other, a line for each connection.

    Branches that nobody reads are hollow. At the end stands a module that is read in full.

    Args:
        modules: names and connections (readers, branches), in order.

    Reference:
        GateConnect, figure 3.
    """

    def picture(axes: Any) -> None:
        for column, (_, read) in enumerate(modules):
            _draw_connections(axes, column, read)
            _draw_branches(axes, column, read.any(0).tolist())
        readers = modules[-1][1].shape[0]
        last = len(modules)
        axes.scatter([last] * readers, range(readers), s=40, color="tab:blue", zorder=2)
        names = [*(name for name, _ in modules), "next"]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_ylabel("branch")

    return picture


def _draw_connections(axes: Any, column: int, read: Tensor) -> None:
    line = {"color": "tab:blue", "linewidth": 0.6, "alpha": 0.6, "zorder": 1}
    for reader, branch in read.nonzero().tolist():
        axes.plot((column, column + 1), (branch, reader), **line)


def _draw_branches(axes: Any, column: int, used: Sequence[bool]) -> None:
    for branch, is_read in enumerate(used):
        inside = "tab:blue" if is_read else "white"
        axes.scatter(column, branch, s=40, facecolors=inside, edgecolors="tab:blue", zorder=2)


def active(counts: Mapping[str, int]) -> Picture:
    """Branches in use, a bar for each module.

    Reference:
        GateConnect, figures 4 and 5.
    """

    def picture(axes: Any) -> None:
        axes.bar(range(len(counts)), list(counts.values()))
        axes.set_xticks(range(len(counts)), list(counts), rotation=90, fontsize=6)
        axes.set_ylabel("branches in use")

    return picture
