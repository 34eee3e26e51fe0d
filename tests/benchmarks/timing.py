"""What the benchmarks share: an interleaved timer of thread CPU time, ratios with their targets, a
table, and the machine's facts.

CPU time of one pinned thread, as other work on a shared machine then hardly shows. Variants take
turns within each round, and a ratio is the median over the rounds of the two times of one round, so
that a slow spell hits both alike. What computes on threads or devices of its own has another clock.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sections

QUICK = 0.02  # seconds of a call
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NOT_MEASURED, LEFT_OUT = "not measured: ", "left out by --only"
Times = dict[str, list[float]]  # variant -> seconds, one a round


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table; `ratio` is what `target` ("<= 1.02", ">= 0.95") speaks of.

    Times in milliseconds, None where something else is compared. `of_ideal` and `of_hand`: the
    speed-up over the one that MACs promise, and over that of the network cut by hand.
    """

    case: str
    variant: str
    min_ms: float | None
    median_ms: float | None
    ratio: float | None = None
    target: str = ""
    note: str = ""
    of_ideal: float | None = None
    of_hand: float | None = None

    @property
    def verdict(self) -> str:
        if not self.target or self.ratio is None:
            return ""
        sign, limit = self.target.split()
        held = self.ratio <= float(limit) if sign == "<=" else self.ratio >= float(limit)
        return "yes" if held else "no"


def needs(package: str) -> Any:
    """A package of the extra `bench`; ends the benchmark with a line that says how to get it."""
    try:
        return import_module(package.replace("-", "_"))
    except ImportError as error:
        raise SystemExit(
            f"{package} cannot be imported ({error}): pip install '.[bench]'"
        ) from None


def main(
    about: str | None,
    title: str,
    rows: Callable[[argparse.Namespace], list[Row]],
    pinned: bool = True,
    **more: Any,
) -> None:
    """Run a benchmark as a script.

    Its rows, measured on one pinned thread unless it starts processes of its own, printed and
    written.
    """
    asked = arguments(about)
    if pinned:
        one_thread()
    report(title, rows(asked), {**facts(), **more}, asked)


def arguments(about: str | None, out: Path | None = None) -> argparse.Namespace:
    return parser(about, out).parse_args()


def parser(about: str | None, out: Path | None = None) -> argparse.ArgumentParser:
    """What every benchmark can be told."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds and few cases, to see that it runs"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=out,
        help="write rows and facts to this file" + ("" if out is None else f" (default: {out})"),
    )
    parser.add_argument(
        "--docs", type=Path, help="write the table into this file, between the benchmark's marks"
    )
    return parser


def add_only(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark of runtimes be told which of them to measure."""
    parser.add_argument("--only", default="", help="RUNTIME/PRECISION, commas between; none: all")


def missing(case: str, variant: str, why: str) -> Row:
    """A line for what is not measured."""
    return Row(case, variant, None, None, note=f"{NOT_MEASURED}{why}")


def why_not(asked: argparse.Namespace, runtime: str, precision: str) -> str:
    """Why `--only` leaves a runtime out; empty: it does not."""
    wanted = asked.only.split(",") if asked.only else []
    return LEFT_OUT if wanted and f"{runtime}/{precision}" not in wanted else ""


def one_thread() -> None:
    """Compute with one thread on one core, and let glibc keep freed memory.

    Else the kernel's clearing of fresh pages for each large
    tensor, a tenth to a fifth of the time and different in each call, is most of what is measured.
    """
    import torch

    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def thread_seconds(run: Callable[[], Any]) -> float:
    """CPU time that this thread takes for one call."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def process_seconds(run: Callable[[], Any]) -> float:
    """CPU time that all threads of this process take for one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 2,
    seconds: Callable[[Callable[[], Any]], float] = thread_seconds,
) -> Times:
    """Seconds of each variant in each round, by default thread CPU time.

    Each round has an order of its own, as a variant feels what ran before it; quick ones are called
    once more before it counts, as they feel whose weights the caches hold.
    """
    times: Times = {name: [] for name in variants}
    least = dict.fromkeys(variants, QUICK)
    order = random.Random(0)
    for turn in range(-warmup, rounds):
        for name in order.sample(list(variants), len(variants)):
            if least[name] < QUICK:
                variants[name]()
            elapsed = seconds(variants[name])
            least[name] = min(least[name], elapsed)
            if turn >= 0:
                times[name].append(elapsed)
    return times


def ratio(times: Times, above: str, below: str) -> float:
    """Median over the rounds of time(above) / time(below)."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def row(
    case: str,
    variant: str,
    times: Times,
    ratio: float | None = None,
    target: str = "",
    note: str = "",
) -> Row:
    own = times[variant]
    return Row(case, variant, min(own) * 1e3, statistics.median(own) * 1e3, ratio, target, note)


def compared(case: str, variant: str, times: Times, base: str, target: str = "") -> Row:
    """The variant's time over that of `base`.

    The note has the ratio of the minima, which other work on the machine disturbs least.
    """
    return row(
        case,
        variant,
        times,
        ratio(times, variant, base),
        target,
        f"of minima {min(times[variant]) / min(times[base]):.3f}",
    )


def realised(
    case: str,
    variant: str,
    times: Times,
    ideal: float,
    target: str = "",
    note: str = "",
    base: str = "plain",
) -> Row:
    """How much of the `ideal` speed-up over `base` comes true: the ratio is realised / ideal.

    The note tells both, and what else there is to say.
    """
    reached = ratio(times, base, variant)
    return row(
        case,
        variant,
        times,
        reached / ideal,
        target,
        ", ".join(each for each in (f"{reached:.2f}x of {ideal:.2f}x", note) if each),
    )


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def noted(row: Row, more: str) -> Row:
    """The row with something more to say."""
    return replace(row, note=", ".join(each for each in (row.note, more) if each))


def versions(*packages: str) -> dict[str, str]:
    """What is installed of these."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def overruled(log_odds: Callable[[Any], Any], wanted: Any) -> Callable[[Any], Any]:
    """A gate's log-odds, computed as ever, and then given up for those wanted."""

    def run(x: Any) -> Any:
        log_odds(x)
        return wanted

    return run


def facts() -> dict[str, Any]:
    import torch

    cpu = torch.backends.cpu.get_cpu_capability()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": cpu,
        "clock": "thread CPU time",
    }


def in_ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def report(
    title: str, rows: list[Row], known: Mapping[str, Any], asked: argparse.Namespace
) -> None:
    """Print the table as Markdown, and write it, and the same as JSON, where asked.

    What `--only` has left out stays in the documentation as it was.
    """
    facts = f"({', '.join(f'{key} {value}' for key, value in known.items())})"
    text = f"{facts}\n\n{table(rows)}"
    print(f"\n{title}\n{text}")
    if asked.docs is not None:
        name = Path(sys.argv[0]).stem
        left_out = {row.case for row in rows if row.note == NOT_MEASURED + LEFT_OUT}
        sections.fill(asked.docs, name, sections.with_old(asked.docs, name, text, left_out))
    if asked.json is not None:
        write(
            asked.json,
            {
                "title": title,
                "machine": dict(known),
                "rows": [{**asdict(r), "held": r.verdict} for r in rows],
            },
        )


def table(rows: list[Row]) -> str:
    """Markdown; what no row has, has no column."""
    extra = {"realised / ideal": "of_ideal", "realised / by hand": "of_hand"}
    extra = {head: name for head, name in extra.items() if _is_told(rows, name)}
    heads = ["case", "variant", "min ms", "median ms", *extra, "ratio", "target", "held", "note"]
    lines = [_line(heads), "|---|---|---:|---:|" + "---:|" * len(extra) + "---:|---|---|---|"]
    for r in rows:
        figures = [in_ms(r.min_ms), in_ms(r.median_ms)]
        figures += [in_ratio(getattr(r, name)) for name in (*extra.values(), "ratio")]
        lines.append(_line([r.case, r.variant, *figures, r.target, r.verdict, r.note]))
    return "\n".join(lines)


def _is_told(rows: list[Row], name: str) -> bool:
    return any(getattr(r, name) is not None for r in rows)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def in_ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
