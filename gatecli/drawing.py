"""Pictures of what gates do, with matplotlib (extra `report`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gatecli.analysing import Use
from gatecli.checkpoint.atomic import replacing
from gatecli.errors import SettingError

FORMATS = ("png", "svg")


def check_format(format: str) -> None:
    """Raise SettingError unless pictures can be written so."""
    if format not in FORMATS:
        raise SettingError(
            f"expected --picture to be one of {', '.join(FORMATS)}, but got `{format}`"
        )


def draw(
    folder: Path, pictures: Mapping[str, Callable[[Any], None]], format: str = "png"
) -> list[Path]:
    """Write each picture, a function that draws on matplotlib's axes, to folder/NAME.format.

    Raises SettingError without matplotlib.
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


def shares(use: Use) -> Callable[[Any], None]:
    """A bar a site: the shares of its units that are always on, by the image, always off."""

    def picture(axes: Any) -> None:
        places, below = range(len(use.sites)), [0.0] * len(use.sites)
        for label, color, counts in (
            ("always on", "tab:green", [s.on for s in use.sites]),
            ("by the image", "tab:orange", [s.dependent for s in use.sites]),
            ("always off", "tab:gray", [s.off for s in use.sites]),
        ):
            heights = [count / site.units for count, site in zip(counts, use.sites, strict=True)]
            axes.bar(places, heights, bottom=below, color=color, label=label)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.set_xticks(places, [site.name for site in use.sites], rotation=90, fontsize=6)
        axes.set_ylabel("share of units")
        axes.legend()

    return picture


def histogram(use: Use) -> Callable[[Any], None]:
    """How often the units that depend on the image are on."""

    def picture(axes: Any) -> None:
        width = 1 / len(use.histogram)
        axes.bar(
            [(index + 0.5) * width for index in range(len(use.histogram))],
            use.histogram,
            width=0.95 * width,
        )
        axes.set_xlabel("share of the images for which a unit is on")
        axes.set_ylabel("units that depend on the image")

    return picture


def per_image(use: Use) -> Callable[[Any], None]:
    """How many units are on for an image."""

    def picture(axes: Any) -> None:
        axes.hist(use.vectors.double().sum(1).numpy(), bins=40)
        axes.set_xlabel("units on")
        axes.set_ylabel("images")

    return picture


def points(places: Tensor, labels: Tensor) -> Callable[[Any], None]:
    """Images in the plane (N, 2), coloured by class (N,)."""

    def picture(axes: Any) -> None:
        drawn = axes.scatter(
            places[:, 0].numpy(), places[:, 1].numpy(), c=labels.numpy(), cmap="tab20", s=6
        )
        axes.figure.colorbar(drawn, label="class")
        axes.set_axis_off()

    return picture


def connectivity(modules: Sequence[tuple[str, Tensor]]) -> Callable[[Any], None]:
    """Modules from left to right, their branches one above the other, a line for each connection.

    Branches that nobody reads are hollow (GateConnect, figure 3).

    modules: (name, connections (readers, branches)) in order; a module that is read in full stands
        at the end.
    """

    def picture(axes: Any) -> None:
        for column, (_, read) in enumerate(modules):
            for reader, branch in read.nonzero().tolist():
                axes.plot(
                    (column, column + 1),
                    (branch, reader),
                    color="tab:blue",
                    linewidth=0.6,
                    alpha=0.6,
                    zorder=1,
                )
            used = read.any(0)
            for branch in range(read.shape[1]):
                axes.scatter(
                    column,
                    branch,
                    s=40,
                    facecolors="tab:blue" if used[branch] else "white",
                    edgecolors="tab:blue",
                    zorder=2,
                )
        axes.scatter(
            [len(modules)] * modules[-1][1].shape[0],
            range(modules[-1][1].shape[0]),
            s=40,
            color="tab:blue",
            zorder=2,
        )
        axes.set_xticks(
            range(len(modules) + 1),
            [*(name for name, _ in modules), "next"],
            rotation=90,
            fontsize=6,
        )
        axes.set_ylabel("branch")

    return picture


def active(counts: Mapping[str, int]) -> Callable[[Any], None]:
    """Branches in use, a bar a module (GateConnect, figures 4 and 5)."""

    def picture(axes: Any) -> None:
        axes.bar(range(len(counts)), list(counts.values()))
        axes.set_xticks(range(len(counts)), list(counts), rotation=90, fontsize=6)
        axes.set_ylabel("branches in use")

    return picture
