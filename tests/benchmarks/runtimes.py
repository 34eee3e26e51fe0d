"""What is cut, decided or left early, in each runtime that people deploy with.

One image, one thread, process CPU time: some runtimes compute on a thread of their own.

    realised / ideal   = (plain time / time) / (plain MACs / expected MACs of these decisions)
    realised / by hand = time by hand / time, both in this runtime and precision

`static half`: every other block removed by gatecli. `AIG half`: the same blocks closed by gates
that compute as ever; `AIG all open`: none. `by hand`: the same network with these blocks left out
of its code, or that ends behind the exit taken, with the classifier there: the most that a runtime
can make of it. Exits: d-gates; a share is a mean over images that leave at each. `stage files`: as
`export --split` writes them, run one after the other. `ratio` is what the target speaks of: by hand
for blocks, the plain network for `all open`, the ideal for stage files. `instead`: what somebody
would take who wants a quicker network and no gates; the ratio is the speed-up over the plain one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timing
import torch
from runtime_cases import HALF, OPEN, STAGES, STATIC, Group, Variant, groups
from stage_files import WAYS, NotThereError, stage_runs
from torch import Tensor, nn

from gatecli.errors import GatecliError, first_line
from gatecli.network import Network
from gatecli.network.compare import logits, relative_change
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order, Prepared, Runtime

LIMIT = 1e-3  # of the largest logit, in fp32: what differs by more is another network
COMPILED = "compiled"
WAYS_TO_COMPILE = 64  # of one function: every network here has code of its own
# (variant, runtime, precision) -> what the target is of, and the target; * is any
TARGETS = {
    (STATIC, "*", "*"): ("hand", ">= 0.98"),
    (HALF, "onnxruntime", "fp32"): ("hand", ">= 0.95"),
    (OPEN, "onnxruntime", "fp32"): ("plain", ">= 0.95"),
    (HALF, "native", "bf16"): ("hand", ">= 0.90"),
    (STAGES, "*", "*"): ("ideal", ">= 0.95"),
}


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What is timed, why other things are not, and where nothing is skipped."""

    runs: dict[str, Callable[[], Any]]
    reasons: dict[str, str]
    masked: set[str]


def ready(group: Group, runtime: Runtime, precision: str) -> Ready:
    """Everything of a group in one runtime, seen to compute what it should."""
    found = Ready(runs={}, reasons=dict(group.missing), masked=set())
    spec = group.recipe.input
    x = torch.randn(1, 3, *spec.size, generator=torch.Generator().manual_seed(2))
    for name, model in group.models.items():
        order = Order(model=model, recipe=group.recipe, precision=precision)
        try:
            with torch.inference_mode(mode=False):  # else weights are folded anew in every call
                prepared = runtime.prepare(order)
            _check(model, prepared, x, precision)
        except GatecliError as error:
            found.reasons[name] = first_line(error)
            continue
        found.runs[name] = partial(prepared.call, prepared.feed(x))
        if prepared.masked:
            found.masked.add(name)
    if group.staged is not None:
        _add_stages(found, group.staged, runtime.name, precision, x)
    return found


def _check(model: nn.Module, prepared: Prepared, x: Tensor, precision: str) -> None:
    change = relative_change(logits(model, x), prepared.classify(x))
    if precision == "fp32" and not change <= LIMIT:
        raise GatecliError(f"its logits differ by {change:.1e} of the largest")


def _add_stages(found: Ready, network: Network, runtime: str, precision: str, x: Tensor) -> None:
    names = [f"stages {number}" for number in range(len(network.site_exits) + 1)]
    try:
        found.runs.update(zip(names, stage_runs(network, runtime, precision, x), strict=True))
    except (NotThereError, GatecliError) as error:
        found.reasons.update(dict.fromkeys(names, first_line(error)))


def measured(group: Group, runtime: Runtime, precision: str, rounds: int) -> list[timing.Row]:
    """The lines of one group in one runtime and precision."""
    case = f"{group.name}, {runtime.name}, {precision}"
    found = ready(group, runtime, precision)
    if "plain" in found.reasons:
        return [timing.missing(case, "all", found.reasons["plain"])]
    times = timing.interleaved(found.runs, rounds, warmup=3, seconds=timing.process_seconds)
    rows = [timing.row(case, "plain", times)]
    for variant in group.variants:
        if variant.kind == STAGES and runtime.name not in WAYS:
            continue
        lacking = [name for name in (*variant.runs, *variant.hand) if name in found.reasons]
        if lacking:
            rows.append(timing.missing(case, variant.name, found.reasons[lacking[0]]))
            continue
        rows.append(_line(case, variant, times, _target(variant, runtime.name, precision)))
        if found.masked & variant.runs.keys():
            rows[-1] = timing.noted(rows[-1], "everything is computed, then multiplied")
    return rows


def _line(case: str, variant: Variant, times: timing.Times, aim: tuple[str, str]) -> timing.Row:
    ours = {**times, variant.name: _mixed(times, variant.runs)}
    speedup = timing.ratio(ours, "plain", variant.name)
    of_hand = None
    if variant.hand:
        ours["by hand"] = _mixed(times, variant.hand)
        of_hand = timing.ratio(ours, "by hand", variant.name)
    of, target = aim
    told = {"hand": of_hand, "ideal": speedup / variant.ideal, "plain": speedup, "": None}[of]
    said = f"{speedup:.2f}x of {variant.ideal:.2f}x"
    return timing.Row(
        case=case,
        variant=variant.name,
        min_ms=min(ours[variant.name]) * 1e3,
        median_ms=timing.median(ours[variant.name]) * 1e3,
        ratio=told,
        target=target,
        note=", ".join(each for each in (said, variant.note) if each),
        of_ideal=speedup / variant.ideal,
        of_hand=of_hand,
    )


def _mixed(times: timing.Times, shares: Mapping[str, float]) -> list[float]:
    """A mean over images of which so many take each way, round by round."""
    rounds = range(len(times["plain"]))
    return [sum(share * times[name][turn] for name, share in shares.items()) for turn in rounds]


def _target(variant: Variant, runtime: str, precision: str) -> tuple[str, str]:
    if variant.kind == "instead":
        return "plain", ""
    for key in ((variant.kind, runtime, precision), (variant.kind, "*", "*")):
        if key in TARGETS:
            return TARGETS[key]
    return "", ""


def _why_not(group: Group, runtime: Runtime, precision: str, asked: argparse.Namespace) -> str:
    """Why a group is not measured in a runtime; empty: it is."""
    if runtime.name in asked.without.split(","):
        return "left out by --without"
    if why := timing.why_not(asked, runtime.name, precision):
        return why
    try:
        runtime.require(precision)
    except GatecliError as error:
        return first_line(error)
    if runtime.name != COMPILED:
        return ""
    if asked.quick:
        return "--quick, and compiling takes minutes"
    if group.staged is not None:
        return "each way out compiles anew, and each exit breaks the graph"
    return ""


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    if not asked.quick:
        from torch._dynamo import config

        config.recompile_limit = WAYS_TO_COMPILE
    found = []
    for group in groups(asked.quick):
        for runtime in map(registry.get, registry.names()):
            for precision in runtime.precisions:
                why = _why_not(group, runtime, precision, asked)
                case = f"{group.name}, {runtime.name}, {precision}"
                print(case, why, flush=True)
                if why:
                    found.append(timing.missing(case, "all", why))
                    continue
                with torch.inference_mode():
                    found += measured(group, runtime, precision, 3 if asked.quick else 25)
    return found


def main() -> None:
    """Measure what is asked for, and write the table."""
    parser = timing.parser(__doc__)
    parser.add_argument("--without", default="", help="runtimes to leave out, commas between")
    timing.add_only(parser)
    asked = parser.parse_args()
    timing.one_thread()
    versions = timing.versions("onnxruntime", "openvino", "timm")
    known = {**timing.facts(), "clock": "process CPU time", **versions}
    title = "In the runtimes that people deploy with: one image, one thread"
    timing.report(title, rows(asked), known, asked)


if __name__ == "__main__":
    main()
