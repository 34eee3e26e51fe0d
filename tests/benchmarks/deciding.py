"""What `prune --decide measured` keeps of a network that decides at run time, in each runtime.

A ResNet-50 with AIG's gates, whose rates rise evenly over its blocks from .05 to .95: each runtime
is asked which gates are worth keeping. Milliseconds are prune's own, of one interleaved run: a mean
over images whose blocks run by these rates. `ratio` is the time taken over the better of the two
extremes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import timing
import torch

import gatecli
from gatecli.architectures.build import build
from gatecli.errors import GatecliError, first_line
from gatecli.network import Network
from gatecli.runtimes import registry
from gatecli.stages.price import How as Where
from gatecli.stages.prune import How
from gatecli.stages.prune_measured import BY_RATE, DYNAMIC, DecidedBy, prune_measured

LEFT_OUT = ("compiled",)  # a gate's decision breaks its graph
ARCH, SIDE = "torchvision:resnet50", 224


def undecided(quick: bool) -> tuple[Network, dict[str, list[float]]]:
    """A network with gates, and the rate of each site."""
    torch.manual_seed(0)
    side = 64 if quick else SIDE
    model = build(ARCH, {}).eval()
    network = gatecli.attach(model, "aig-perbatch", input_size=(side, side), arch=ARCH).network
    sites = list(network.site_gates)
    rises = torch.linspace(0.05, 0.95, len(sites)).tolist()
    return network, {site: [rate] for site, rate in zip(sites, rises, strict=True)}


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    network, rates = undecided(asked.quick)
    found: list[timing.Row] = []
    for name, precision in places():
        where = Where(runtime=name, precision=precision, repeats=5 if asked.quick else 15)
        case = f"ResNet-50, {name}, {precision}"
        print(case, flush=True)
        if why := timing.why_not(asked, name, precision):
            found.append(timing.missing(case, "all", why))
            continue
        try:
            decided = prune_measured(network, How(), where, rates=rates)
        except GatecliError as error:
            found.append(timing.missing(case, "all", first_line(error)))
            continue
        found.extend(told(case, decided, len(rates)))
    return found


def places() -> Iterator[tuple[str, str]]:
    """The runtimes and their precisions."""
    for name in registry.names():
        if name not in LEFT_OUT:
            for precision in registry.get(name).precisions:
                yield name, precision


def told(case: str, decided: DecidedBy, sites: int) -> Iterator[timing.Row]:
    """The lines of one runtime."""
    best = min(decided.ms[DYNAMIC], decided.ms[BY_RATE])
    for name, ms in decided.ms.items():
        taken = name == decided.taken
        kept = f"taken: {len(decided.pruned.kept_dynamic)} of {sites} gates kept" if taken else ""
        yield timing.Row(
            case,
            name,
            None,
            ms,
            ratio=ms / best if taken else None,
            target="<= 1.00" if taken else "",
            note=kept,
        )


def main() -> None:
    """Measure what is asked for, and write the table."""
    parser = timing.parser(__doc__)
    timing.add_only(parser)
    asked = parser.parse_args()
    timing.one_thread()
    title = "What is worth its gate, by runtime: one image, one thread"
    timing.report(title, rows(asked), {**timing.facts(), "clock": "wall time"}, asked)


if __name__ == "__main__":
    main()
