"""A kind and a method that gatecli does not have: what CONTRIBUTING shows, from attach to export.

The kind is one class, and the method another; nothing in gatecli knows of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from commandline import call, refused, save_npz, save_source
from torch import Tensor, fx, nn

import gatecli
from gatecli import methods
from gatecli.gates.gate import Gate
from gatecli.graph import prune_channels
from gatecli.graph.trace import remove_dead
from gatecli.kinds import registry
from gatecli.kinds.base import MASK, Gone
from gatecli.kinds.masked import MaskedKind, nothing_of
from gatecli.methods import About, Method, Objective
from gatecli.methods.settings import Settings, setting
from gatecli.network import Network
from gatecli.traced.site import Saving, Site
from gatecli.traced.traced import Traced


class FeatureKind(MaskedKind):
    """The features that the last linear layer reads, one unit each."""

    name: ClassVar[str] = "feature"
    offers: ClassVar[frozenset[str]] = frozenset({MASK})
    one_by_one: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        linear = [node for node in net.graph.nodes if isinstance(net.module(node), nn.Linear)]
        if not linear:
            return []
        (value,) = linear[-1].all_input_nodes
        width = net.channels(value)
        return [
            Site(
                name="features",
                kind=self.name,
                units=width,
                macs=net.macs([linear[-1].name]),
                entry=value.name,
                value=value.name,
                branch=(value.name,),
                channels=width,
                positions=(),
                tail=(value.name,),
                role=linear[-1].name,  # who reads them
            )
        ]

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.role):
            return None
        return replace(site, units=net.channels(site.value), macs=net.macs([site.role]))

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        return (Saving(node=site.role, per_unit=True),)

    def kept(self, net: Traced, site: Site, channels: int) -> Site:
        return replace(site, units=channels)

    def whole(self, net: Traced, site: Site) -> Site:
        return site

    def zeros(self, net: Traced, site: Site) -> Gone:
        return nothing_of(net, site)

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        return prune_channels.foldable(net.root, net.graph, net.costs, nothing_of(net, site))

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        remove_dead(net.graph)
        return {}


@dataclass(frozen=True)
class CoinSettings(Settings):
    target_rate: float = setting(0.5, "share of units to run", low=0, high=1)


class Coin(Gate):
    """One number a unit, the same for all images: P(on) = sigmoid(weight)."""

    data_dependent = False

    def __init__(self, site: str, units: int) -> None:
        super().__init__(site, units)
        self.weight = nn.Parameter(torch.full((units,), 4.0))

    def scores(self, x: Tensor) -> Tensor:
        pair = torch.stack([torch.zeros_like(self.weight), self.weight], 1)
        return pair.expand(x.shape[0], self.units, 2)


class CoinObjective(Objective[CoinSettings]):
    def targets(self, settings: CoinSettings, sites: Iterable[str], epoch: int) -> dict[str, float]:
        return dict.fromkeys(sites, settings.target_rate)

    def loss(
        self, decisions: Mapping[str, Tensor], settings: CoinSettings, targets: Mapping[str, float]
    ) -> Tensor:
        parts = [(z.mean() - targets[site]).square() for site, z in decisions.items()]
        return torch.stack(parts).mean()


class CoinMethod(Method[CoinSettings]):
    def gate(self, network: Network, site: Site, settings: CoinSettings) -> Gate:
        return Coin(site.name, site.units)


# it requires a mask, as all do that say nothing else: so every kind that masks will do
COIN = About(
    name="coin", summary="a coin a unit", settings=CoinSettings, default_kinds=("feature",)
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    registry.register(FeatureKind())
    methods.register(CoinMethod(COIN, CoinObjective()))
    yield
    registry.unregister("feature")
    methods.forget("coin")


@pytest.mark.parametrize(
    ("method", "kind"), [("coin", None), ("coin", "block"), ("ind-perbatch", "feature")]
)
def test_from_attach_to_export(
    method: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = f"npz:{save_npz(tmp_path / 'few.npz')}"
    named = [] if kind is None else ["--kind", kind]
    source = save_source(tmp_path / "r.pt")
    size = ["--input-size", 8]
    attached = call("attach", source, "--method", method, *named, *size, "--out", "a.safetensors")
    assert attached["max_logit_change"] <= 1e-5 and attached["kinds"] == [kind or "feature"]
    train = ["--data", data, "--epochs", 1, "--batch-size", 32, "--bn-batches", 0]
    call("finetune", "a.safetensors", *train, "--out", "t.safetensors")
    network = gatecli.load("t.safetensors")
    with torch.no_grad():
        for gate in network.site_gates.values():
            gate.threshold[::2] = 1.0  # every second unit never runs
            gate.threshold[1::2] = 0.0
    if kind == "block":
        first = next(iter(network.site_gates.values()))
        assert not first.threshold[0] < 1
    gatecli.write(network, "h.safetensors")
    x = torch.randn(3, 3, 8, 8)
    wanted = network(x)
    pruned = call("prune", "h.safetensors", "--out", "p.safetensors")
    assert pruned["params"] < pruned["params_before"] and not pruned["kept_dynamic"]
    again = gatecli.load("p.safetensors")
    assert torch.allclose(again(x), wanted, atol=1e-5)
    assert again.macs_dense < network.macs_dense
    assert call("export", "p.safetensors", "--format", "weights")["max_logit_change"] <= 1e-5


def test_they_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = save_source(tmp_path / "r.pt")
    sites = call("inspect", source, "--kind", "all", "--input-size", 8)["sites"]
    assert [site["name"] for site in sites if site["kind"] == "feature"] == ["features"]
    known = {each["name"]: each for each in call("methods")["methods"]}
    assert "feature" in known["coin"]["kinds"] and "feature" in known["ind-perbatch"]["kinds"]
    assert "feature" not in known["aig-perbatch"]["kinds"]  # there is nothing to look at
    refused(
        ["attach", source, "--method", "aig-perbatch", "--kind", "feature", "--input-size", 8],
        "aig-perbatch can gate block, layer, filter",
        "but got `feature`",
    )
