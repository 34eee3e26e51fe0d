"""How much of the promised speed-up comes true on a GPU: layer gates, filters, exits.

ResNet-50 at 224, batches of 1 and 64, in float32 (with TF32, as torch has it) and bfloat16; timed
by the GPU's own events, from idle to done.

    realised / ideal = (plain time / time) / (plain MACs / expected MACs of exactly these decisions)

`static half`: every other block removed by gatecli; `by hand`: the same blocks left out of
torchvision's code. `graph`: the same captured as a CUDA graph, over the plain network's graph:
where all is static the host has nothing left to do. `AIG half`: half of the blocks closed by gates
that compute as ever, in a batch each image's own half at random. `filters half`: half of the last
convolutions' filters closed, given. Exits: d-gates behind three stages, who leaves given, in shares
of the images. What gates decide the host has to know: one wait for the GPU a gate.

With --tests the tests that need a GPU come first. Without a GPU one line says so.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import filters
import skipping
import timing
import torch
from exits import SHARES, at_exit, ideal, leave, left_at
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.network import Network
from gatecli.network.costs import expected_macs
from gatecli.network.precision import in_precision
from gatecli.runtimes.base import PRECISIONS
from gatecli.runtimes.machine import describe
from gatecli.stages.clock import milliseconds

ROOT = Path(__file__).parent.parent.parent
NOT_HERE = (
    "not measured: torch sees no GPU here (it takes an NVIDIA GPU with its driver, and a torch"
    " that is built for CUDA)"
)
WARM_UP = 3  # calls before a capture, as torch's manual asks
Runs = dict[str, Callable[[], Any]]


class Bench:
    """A network on a device, one batch size and one precision.

    Args:
        model: A ResNet of torchvision, on the CPU, in evaluation mode.
        size: Height and width of its images.
        batch: Images a call.
        precision: One of PRECISIONS.
        device: Where it runs.
    """

    def __init__(
        self, model: nn.Module, size: int, batch: int, precision: str, device: str = "cuda"
    ) -> None:
        self.model = model
        self.size = (size, size)
        self.batch = batch
        self.precision = precision
        self.device = torch.device(device)
        draw = torch.Generator().manual_seed(2)
        self.x = torch.randn(batch, 3, size, size, generator=draw).to(self.device)
        self.case = f"batch {batch}, {precision}"

    def here(self, network: Any) -> Any:
        """A copy on the device, in the precision."""
        return in_precision(copy.deepcopy(network).to(self.device), self.precision)

    def times(self, runs: Runs, rounds: int) -> timing.Times:
        return timing.interleaved(runs, rounds, warmup=WARM_UP, seconds=self._seconds)

    def _seconds(self, run: Callable[[], Any]) -> float:
        return milliseconds(lambda _: run(), self.x) / 1e3


def static(bench: Bench, rounds: int) -> list[timing.Row]:
    """Every other block removed, called as usual and as a CUDA graph."""
    network = gatecli.attach(bench.model, "aig-perbatch", input_size=bench.size).network
    sites = list(network.site_gates)
    rates = {site: [float(index % 2)] for index, site in enumerate(sites)}
    smaller = gatecli.prune(network, rates=rates).network
    by_hand = skipping.cut(copy.deepcopy(bench.model), sites[::2])
    one = bench.x[:1].cpu()
    torch.testing.assert_close(smaller(one), by_hand(one), rtol=1e-3, atol=1e-4)
    models = {
        "plain": bench.here(bench.model),
        "static half": bench.here(smaller),
        "by hand": bench.here(by_hand),
    }
    runs: Runs = {name: partial(model, bench.x) for name, model in models.items()}
    if bench.device.type == "cuda":
        for name, model in models.items():
            runs[f"{name}, graph"] = captured(model, bench.x)
    times = bench.times(runs, rounds)
    promised = network.recipe.source.macs / smaller.macs_dense
    rows = []
    for name in runs:
        base = "plain, graph" if name.endswith("graph") else "plain"
        if name == "plain":
            rows.append(timing.row(bench.case, name, times))
        elif name == base:
            rows.append(timing.compared(bench.case, name, times, "plain"))
        else:
            rows.append(timing.realised(bench.case, name, times, promised, base=base))
    return rows


def captured(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    """A call of a network whose operations are always the same, as one CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            model(x)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x)
    return graph.replay


def layer_gates(bench: Bench, rounds: int) -> list[timing.Row]:
    """AIG's gates, every one at work in the timed call."""
    network = gatecli.attach(bench.model, "aig-perbatch", input_size=bench.size).network
    half = skipping.half_closed(network, bench.batch)
    every = {site: torch.ones_like(z) for site, z in half.items()}
    runs: Runs = {"plain": partial(bench.here(bench.model), bench.x)}
    for name, decisions in (("AIG all open", every), ("AIG half", half)):
        moved = {site: z.to(bench.device) for site, z in decisions.items()}
        runs[name] = partial(skipping.decide(bench.here(network), moved), bench.x)
    times = bench.times(runs, rounds)
    return [
        timing.compared(bench.case, "AIG all open", times, "plain"),
        timing.realised(bench.case, "AIG half", times, _ideal(network, half)),
    ]


def closed_filters(bench: Bench, rounds: int) -> list[timing.Row]:
    """Filters, given for each image: the gater itself costs nothing here."""
    network = gatecli.attach(bench.model, "gaternet", input_size=bench.size, bottleneck=256).network
    half = filters.half(network, bench.batch)
    moved = {site: z.to(bench.device) for site, z in half.items()}
    ours = filters.force(bench.here(filters.without_gater(network)), moved)
    times = bench.times(
        {
            "plain": partial(bench.here(bench.model), bench.x),
            "filters half": partial(ours, bench.x),
        },
        rounds,
    )
    macs = expected_macs(network, filters.shares(half)) - filters.gater_macs(network)
    promised = network.recipe.source.macs / macs
    return [timing.realised(bench.case, "filters half", times, promised)]


def early(bench: Bench, rounds: int) -> list[timing.Row]:
    """Exits; at batch 1 a share is a mean over calls, in a batch who leaves is drawn."""
    network = gatecli.attach(bench.model, "dgate", input_size=bench.size).network
    ours = bench.here(network)
    count = len(network.site_exits)

    def run(decisions: dict[str, Tensor]) -> None:
        leave(ours, decisions)
        ours(bench.x)

    taken = {f"at {number}": torch.tensor([number]) for number in range(count + 1)}
    if bench.batch > 1:
        taken = {name: left_at(bench.batch, shares) for name, shares in SHARES.items()}
    ways = {name: at_exit(ours, each.to(bench.device)) for name, each in taken.items()}
    runs: Runs = {"plain": partial(bench.here(bench.model), bench.x)}
    times = bench.times(runs | {name: partial(run, each) for name, each in ways.items()}, rounds)
    if bench.batch == 1:
        times |= {name: _mixed(times, shares) for name, shares in SHARES.items()}
    return [
        timing.realised(bench.case, f"exits {name}", _named(times, name), ideal(network, shares))
        for name, shares in SHARES.items()
    ]


def _mixed(times: timing.Times, shares: tuple[float, ...]) -> list[float]:
    rounds = range(len(times["plain"]))
    parts = list(enumerate(shares))
    return [sum(share * times[f"at {number}"][turn] for number, share in parts) for turn in rounds]


def _named(times: timing.Times, name: str) -> timing.Times:
    return {**times, f"exits {name}": times[name]}


def _ideal(network: Network, decisions: skipping.Decisions) -> float:
    rates = {site: z.mean(0).tolist() for site, z in decisions.items()}
    return network.recipe.source.macs / expected_macs(network, rates)


def benches(quick: bool) -> Iterator[Bench]:
    arch, size = ("resnet18", 64) if quick else ("resnet50", 224)
    torch.manual_seed(0)
    model = build(f"torchvision:{arch}", {}).eval()
    for precision in PRECISIONS:
        for batch in (1, 64):
            yield Bench(model, size, batch, precision)


def rows_of(bench: Bench, rounds: int) -> list[timing.Row]:
    with torch.inference_mode():
        found = []
        for part in (static, layer_gates, closed_filters, early):
            found += part(bench, rounds)
        return found


def main() -> int:
    """Run the tests where asked, then the benchmark."""
    parser = timing.parser(__doc__)
    parser.add_argument("--tests", action="store_true", help="the tests that need a GPU, first")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print(NOT_HERE)
        return 0
    if asked.tests:
        tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0"]
        code = subprocess.run(tests, cwd=ROOT).returncode
        if code:
            return code
    rows = []
    for bench in benches(asked.quick):
        rows += rows_of(bench, 5 if asked.quick else 30)
    known = {**timing.facts(), "clock": "CUDA events", "gpu": describe(torch.device("cuda"))}
    timing.report("On a GPU: realised / ideal speed-up", rows, known, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
