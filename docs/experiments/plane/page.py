"""The page: a figure, and the table behind it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plane.clock import RUNTIMES
from plane.networks import PAPER, SOURCE, TUNING

__all__ = ["draw", "page"]

COMMAND = "make plane DATA=glyphs36.npz"
HEAD = f"""# All methods on one network

    {COMMAND}                 # trains what is missing; then, on an idle machine:
    {COMMAND} MORE=--time     # measures milliseconds; both write this page

A ResNet-20 on ten letters and digits that look alike, 16x16 pixels, as in [claims.md](claims.md):
trained for {SOURCE} epochs, then with each method's gates for {TUNING} more, their settings as they
come but for what a name says, and pruned. Accuracy is on 6720 images that nothing was trained on or
chosen by; one seed, so a point of accuracy tells nothing. Milliseconds are means over 512 images of
val, one by one on one thread, gates deciding by themselves.

![accuracy against milliseconds](plane.svg)
"""
FOOT = """
`gateconnect` is not among them: it gates the branches of a ResNeXt, and this network has none.
`early-exit` as it comes has exits 128 channels wide, which cost more than this whole network: take
`--set width=16`, as in [claims.md](claims.md), where a network is so small. `gaternet`'s second
network is as large as the one that it gates, and is in every figure.
"""


def page(lines: list[dict[str, Any]], times: Mapping[str, Any] | None) -> str:
    """The page of the runs and times that there are."""
    rows = ["| network | top-1 | MMACs | " + " | ".join(f"ms, {each}" for each in RUNTIMES) + " |"]
    rows.append("|---|---|---|" + "---|" * len(RUNTIMES))
    by_name = {line["variant"]: line["figures"] for line in lines}
    for variant in PAPER.variants:
        figures = by_name.get(variant.name)
        if figures is None:
            rows.append(f"| {variant.name} | not run | - |" + " - |" * len(RUNTIMES))
            continue
        ms = [_ms(times, runtime, variant.name) for runtime in RUNTIMES]
        cells = [f"{_top1(figures):.2f}", f"{figures['macs'] / 1e6:.2f}", *ms]
        rows.append(f"| {variant.name} | " + " | ".join(cells) + " |")
    where = ""
    if times is not None:
        where = f"\nMeasured on {times['machine']}, load {times['load']:.1f}.\n"
    return "\n".join([HEAD, *rows]) + "\n" + where + FOOT


def _top1(figures: Mapping[str, Any]) -> float:
    return statistics.fmean(figures["top1"])


def _ms(times: Mapping[str, Any] | None, runtime: str, name: str) -> str:
    known = {} if times is None else times["ms"].get(runtime, {})
    return f"{known[name]:.3f}" if name in known else "not measured"


def draw(lines: list[dict[str, Any]], times: Mapping[str, Any], out: Path) -> None:
    """Accuracy against milliseconds, a panel a runtime."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    figure.patch.set_facecolor("white")  # to be read on dark pages too
    tops = {line["variant"]: _top1(line["figures"]) for line in lines}
    panels = figure.subplots(1, len(RUNTIMES), sharey=True, squeeze=False)[0]
    for axes, runtime in zip(panels, RUNTIMES, strict=True):
        for number, variant in enumerate(PAPER.variants):
            ms = times["ms"][runtime].get(variant.name)
            if ms is None or variant.name not in tops:
                continue
            shape = "o" if variant.settings.get("attach") else "s"
            look = {"color": colormaps["tab20"](number), "label": variant.name}
            axes.plot(ms, tops[variant.name], shape, **look)
        axes.set(xlabel="ms an image", title=runtime, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    known = panels[0].get_legend_handles_labels()
    figure.legend(*known, loc="outside right upper", fontsize=7)
    panels[0].set_ylabel("test top-1, %")
    figure.savefig(out, metadata={"Date": None})
