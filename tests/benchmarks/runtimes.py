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
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timing
import torch
from exits import SHARES, ideal
from export import decided, leaving
from skipping import cut
from stage_files import WAYS, NotThereError, stage_runs
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.errors import GatecliError, first_line
from gatecli.network import Network
from gatecli.network.compare import logits, relative_change
from gatecli.network.costs import expected_macs
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order, Prepared, Runtime
from gatecli.stages.own_module import network_of
from gatecli.traced.recipe import Recipe

LIMIT = 1e-3  # of the largest logit, in fp32: what differs by more is another network
COMPILED = "compiled"
WAYS_TO_COMPILE = 64  # of one function: every network here has code of its own
STATIC, HALF, OPEN, STAGES = "static half", "AIG half", "AIG all open", "stage files"
# (variant, runtime, precision) -> what the target is of, and the target; * is any
TARGETS = {
    (STATIC, "*", "*"): ("hand", ">= 0.98"),
    (HALF, "onnxruntime", "fp32"): ("hand", ">= 0.95"),
    (OPEN, "onnxruntime", "fp32"): ("plain", ">= 0.95"),
    (HALF, "native", "bf16"): ("hand", ">= 0.90"),
    (STAGES, "*", "*"): ("ideal", ">= 0.95"),
}
INSTEAD = {
    "MobileNetV3-Large": ("torchvision", "mobilenet_v3_large"),
    "EfficientNet-B0": ("torchvision", "efficientnet_b0"),
    "ResNet-34": ("torchvision", "resnet34"),
    "ResNet-26": ("timm", "resnet26"),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of the table: what runs, for which share of the images, and what is promised."""

    name: str
    kind: str = ""
    runs: Mapping[str, float]
    hand: Mapping[str, float] = field(default_factory=dict)
    ideal: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Networks that are timed in one interleaved run, `plain` among them.

    Attributes:
        name: Of the network.
        recipe: How large its images are.
        models: What a runtime makes ready, by the names that variants run.
        variants: The lines.
        staged: The network with exits that is also run as stage files.
        missing: Why a variant cannot be built here.
    """

    name: str
    recipe: Recipe
    models: dict[str, nn.Module]
    variants: list[Variant]
    staged: Network | None = None
    missing: dict[str, str] = field(default_factory=dict)


# --- what is compared ---


def blocks(name: str, model: nn.Module, size: int) -> Group:
    """Every other block removed, or closed by gates."""
    network = gatecli.attach(model, "aig-perbatch", input_size=(size, size)).network
    sites = list(network.site_gates)
    opened = [index % 2 == 1 for index in range(len(sites))]
    rates = {site: [float(flag)] for site, flag in zip(sites, opened, strict=True)}
    half = gatecli.prune(network, rates=rates).network
    cut_model = cut(copy.deepcopy(model), sites[::2])
    _same(half, cut_model, size)
    macs = network.recipe.source.macs
    by_hand = {"by hand": 1.0}
    every = {site: [1.0] for site in sites}
    return Group(
        name=name,
        recipe=network.recipe,
        models={
            "plain": model,
            "by hand": cut_model,
            STATIC: half,
            OPEN: decided(network, [True] * len(sites)),
            HALF: decided(network, opened),
        },
        variants=[
            Variant(name="half by hand", runs=by_hand, ideal=macs / half.macs_dense),
            _alone(STATIC, macs / half.macs_dense, by_hand),
            _alone(HALF, macs / expected_macs(network, rates), by_hand),
            _alone(OPEN, macs / expected_macs(network, every), {"plain": 1.0}),
        ],
    )


def _same(ours: nn.Module, by_hand: nn.Module, size: int) -> None:
    """End the benchmark where what was cut by hand is another network."""
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(logits(ours, x), logits(by_hand, x), rtol=1e-3, atol=1e-4)


def _alone(name: str, promised: float, hand: Mapping[str, float]) -> Variant:
    return Variant(name=name, kind=name, runs={name: 1.0}, hand=hand, ideal=promised)


class Through(nn.Module):
    """A ResNet of torchvision that ends behind one of its stages, in a classifier of its own."""

    def __init__(self, model: Any, stages: int, head: nn.Module) -> None:
        super().__init__()
        body = [getattr(model, f"layer{number + 1}") for number in range(stages)]
        self.body = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, *body)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


def early(name: str, model: nn.Module, size: int) -> Group:
    """Exits behind the first three stages."""
    network = gatecli.attach(model, "dgate", input_size=(size, size)).network
    exits = list(network.site_exits.values())
    models: dict[str, nn.Module] = {"plain": model}
    for number in range(len(exits) + 1):
        models[f"leave {number}"] = leaving(network, number)
    for number, exit_ in enumerate(exits):
        ending = Through(copy.deepcopy(model), number + 1, exit_.head()).eval()
        _same(models[f"leave {number}"], ending, size)
        models[f"hand {number}"] = ending
    variants = []
    for title, shares in SHARES.items():
        parts = dict(enumerate(shares))
        hand = {f"hand {number}": share for number, share in parts.items()}
        hand["plain"] = hand.pop(f"hand {len(exits)}")
        promised = ideal(network, shares)
        variants.append(Variant(name=f"exits {title} by hand", runs=hand, ideal=promised))
        for kind, run in (("", "leave"), (STAGES, "stages")):
            variants.append(
                Variant(
                    name=f"exits {title}{kind and ', ' + kind}",
                    kind=kind,
                    runs={f"{run} {number}": share for number, share in parts.items()},
                    hand=hand,
                    ideal=promised,
                )
            )
    return Group(name=name, recipe=network.recipe, models=models, variants=variants, staged=network)


def instead(name: str, model: nn.Module, size: int) -> Group:
    """Networks that somebody would take in its place, plain."""
    network = network_of(model, (size, size), "", {}, ())
    models: dict[str, nn.Module] = {"plain": model}
    variants, missing = [], {}
    for title, (library, arch) in INSTEAD.items():
        try:
            other = build(f"{library}:{arch}", {}).eval()
            macs = network_of(other, (size, size), "", {}, ()).macs_dense
        except GatecliError as error:
            missing[title] = first_line(error)
            macs = network.macs_dense
        else:
            models[title] = other
        variants.append(
            Variant(
                name=title,
                kind="instead",
                runs={title: 1.0},
                ideal=network.macs_dense / macs,
                note=_published(library, arch),
            )
        )
    return Group(
        name=f"instead of {name}",
        recipe=network.recipe,
        models=models,
        variants=variants,
        missing=missing,
    )


def _published(library: str, arch: str) -> str:
    """The accuracy that the installed library states of its own weights; else nothing."""
    if library != "torchvision":
        return ""
    from torchvision.models import get_model_weights

    found = []
    for entry in get_model_weights(arch):
        accuracy = entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        found.append(f"{accuracy:.1f} ({entry.name})")
    return f"ImageNet top-1 as torchvision's weights entries state it: {', '.join(found)}"


# --- how it is timed ---


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
        return [_missing(case, "all", found.reasons["plain"])]
    times = timing.interleaved(found.runs, rounds, warmup=3, seconds=timing.process_seconds)
    rows = [timing.row(case, "plain", times)]
    for variant in group.variants:
        if variant.kind == STAGES and runtime.name not in WAYS:
            continue
        lacking = [name for name in (*variant.runs, *variant.hand) if name in found.reasons]
        if lacking:
            rows.append(_missing(case, variant.name, found.reasons[lacking[0]]))
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


def _missing(case: str, variant: str, why: str) -> timing.Row:
    return timing.Row(case, variant, None, None, note=f"not measured: {why}")


def _why_not(group: Group, runtime: Runtime, precision: str, quick: bool) -> str:
    """Why a group is not measured in a runtime; empty: it is."""
    try:
        runtime.require(precision)
    except GatecliError as error:
        return first_line(error)
    if runtime.name != COMPILED:
        return ""
    if quick:
        return "--quick, and compiling takes minutes"
    if group.staged is not None:
        return "each way out compiles anew, and each exit breaks the graph"
    return ""


# --- all of it ---


def groups(quick: bool) -> Iterator[Group]:
    """One after the other, so that one at a time is held."""
    arch, deep, size = ("resnet18", "resnet18", 64) if quick else ("resnet50", "resnet101", 224)
    name = arch.replace("resnet", "ResNet-")
    torch.manual_seed(0)
    model = build(f"torchvision:{arch}", {}).eval()
    yield blocks(f"{name} at {size}", model, size)
    if not quick:
        yield early(f"{name} at {size}", model, size)
    small = build(f"torchvision:{deep}", {"stem": "cifar", "num_classes": 10}).eval()
    yield early(f"{deep.replace('resnet', 'ResNet-')} at 32", small, 32)
    yield instead(f"{name} at {size}", model, size)


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    if not asked.quick:
        from torch._dynamo import config

        config.recompile_limit = WAYS_TO_COMPILE
    found = []
    for group in groups(asked.quick):
        for runtime in map(registry.get, registry.names()):
            for precision in runtime.precisions:
                why = _why_not(group, runtime, precision, asked.quick)
                print(f"{group.name}, {runtime.name}, {precision} {why}", flush=True)
                if why:
                    found.append(_missing(f"{group.name}, {runtime.name}, {precision}", "all", why))
                    continue
                with torch.inference_mode():
                    found += measured(group, runtime, precision, 3 if asked.quick else 25)
    return found


if __name__ == "__main__":
    timing.main(
        __doc__,
        "In the runtimes that people deploy with: one image, one thread",
        rows,
        clock="process CPU time",
        **timing.versions("onnxruntime", "openvino", "timm"),
    )
