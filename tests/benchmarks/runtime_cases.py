"""What runtimes.py compares: networks cut, gated or left early, and the same by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from exits import SHARES, ideal
from export import decided, leaving
from skipping import cut
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.errors import GatecliError, first_line
from gatecli.network import Network
from gatecli.network.compare import logits
from gatecli.network.costs import expected_macs
from gatecli.stages.own_module import network_of
from gatecli.traced.recipe import Recipe

STATIC, HALF, OPEN, STAGES = "static half", "AIG half", "AIG all open", "stage files"
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
