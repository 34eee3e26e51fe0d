"""Heads of attention: found however it is written, gated, skipped, counted and cut out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from attentions import EACH, HEADS, NOT_PARTED, SIZE, WAYS, made, transformer, windows, windows_v2
from counting import counted
from networks import infer, masked, traced
from test_contract import decide
from torch import Tensor, nn

import gatecli
from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.costs import expected_macs

LIMIT = 1e-5
WINDOWS = (24, 24)
WINDOWED: dict[str, Callable[[], nn.Module]] = {"windows": windows, "windows, v2": windows_v2}
NAMES = [*WAYS, "Shifted", *WINDOWED]


def size_of(name: str) -> tuple[int, int]:
    return WINDOWS if name in WINDOWED else SIZE


def source(name: str) -> nn.Module:
    return made(WINDOWED[name]) if name in WINDOWED else transformer(name)


def images(name: str, count: int = 3) -> Tensor:
    return torch.randn(count, 3, *size_of(name), generator=torch.Generator().manual_seed(2))


@functools.cache
def attached(name: str) -> Network:
    return gatecli.attach(
        source(name), "ind-perbatch", kinds=["head"], input_size=size_of(name)
    ).network


def close(a: Tensor, b: Tensor) -> bool:
    return relative_change(a, b) <= LIMIT


def some(network: Network) -> dict[str, list[int]]:
    """At every site some heads closed, others at each."""
    sites = enumerate(network.site_gates.items())
    return {site: [(n + index) % 2 for n in range(gate.units)] for index, (site, gate) in sites}


def pruned_to(network: Network, decisions: dict[str, list[int]], round_to: int = 1) -> Network:
    """Pruned where the gates decide so by themselves."""
    said = network.copy()
    for site, units in decisions.items():
        on = torch.tensor(units) * 8.0
        said.site_gates[site].logits.data.copy_(torch.stack([4 - on, on - 4], 1))  # type: ignore[union-attr]
    return gatecli.prune(said, round_to=round_to).network


def by_hand(block: nn.Module, x: Tensor, open_: Sequence[int]) -> Tensor:
    """One residual attention of `Three`, head by head, query by query."""
    out = torch.zeros_like(x)
    for n in range(len(x)):
        q, k, v = (layer(x[n]) for layer in (block.q, block.k, block.v))  # type: ignore[operator]
        for head in range(HEADS):
            if not open_[head]:
                continue
            part = slice(head * EACH, (head + 1) * EACH)
            queries, keys = block.norm(q[:, part]), k[:, part]  # type: ignore[operator]
            for place, query in enumerate(queries):
                odds = torch.stack([torch.dot(query, key) for key in keys]) / EACH**0.5
                share = odds.exp() / odds.exp().sum()
                mixed = (share[:, None] * v[:, part]).sum(0)
                out[n, place] += block.out.weight[:, part] @ mixed  # type: ignore[index]
    return out


def test_closed_heads_are_left_out_as_by_hand() -> None:
    network, model, x = attached("Three"), source("Three"), images("Three", 2)
    open_ = some(network)
    with torch.no_grad():
        tokens = model.patches(x).flatten(2).transpose(1, 2)  # type: ignore[operator]
        for site, norm, layer in zip(open_, model.norms, model.layers, strict=True):  # type: ignore[arg-type]
            tokens = tokens + by_hand(layer, norm(tokens), open_[site])
        expected = model.head(tokens.mean(1))  # type: ignore[operator]
    with gatecli.force(network, open_):
        assert close(expected, infer(network, x)) and close(expected, masked(network, x))
    assert not close(infer(network, x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_found_skipped_and_cut(name: str) -> None:
    network, x = attached(name), images(name)
    units = [gate.units for gate in network.site_gates.values()]
    assert units == ([3, 3, 2] if name in WINDOWED else [HEADS, HEADS])
    assert all(site.endswith(".heads") for site in network.gated_by)
    assert close(infer(source(name), x), infer(network, x))
    z = {site: torch.eye(3)[:, : gate.units] for site, gate in network.site_gates.items()}
    with gatecli.force(network, z):
        assert close(masked(network, x), infer(network, x))
        assert not close(infer(source(name), x), infer(network, x))
    assert infer(network, x[:0]).shape == (0, 5)
    for decisions in (some(network), {site: [0] * n for site, n in zip(z, units, strict=True)}):
        check_cut(network, decisions, x)


def check_cut(network: Network, decisions: dict[str, list[int]], x: Tensor) -> None:
    """What is forced, cut, expected and multiplied is the same."""
    rates = {site: [float(unit) for unit in units] for site, units in decisions.items()}
    with gatecli.force(network, decisions):
        expected = infer(network, x)
        assert close(masked(network, x), expected) and close(infer(network, x[:1]), expected[:1])
        with counted() as skipped:
            infer(network, x[:1])
    pruned = pruned_to(network, decisions)
    with counted() as cut:
        assert close(expected[:1], infer(pruned, x[:1]))
    assert close(expected, infer(pruned, x))
    assert skipped.total == cut.total == pruned.macs_dense == expected_macs(network, rates)
    assert pruned.params < network.params


@pytest.mark.parametrize("name", ["Explicit", "windows, v2"])
def test_some_heads_stay_dynamic(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    network, x = attached_to_images(name), images(name)
    rates = {s: [0.0, *[0.5] * (gate.units - 1)] for s, gate in network.site_gates.items()}
    smaller = gatecli.prune(network, rates=rates).network
    z = {site: torch.eye(3)[:, : gate.units] for site, gate in smaller.site_gates.items()}
    whole = {site: torch.cat([torch.zeros(3, 1), each], 1) for site, each in z.items()}
    with gatecli.force(smaller, z), gatecli.force(network, whole):
        assert close(infer(network, x), infer(smaller, x))
        assert close(infer(network, x), masked(smaller, x))
    assert smaller.macs_dense < network.macs_dense


def attached_to_images(name: str) -> Network:
    model = source(name)
    return gatecli.attach(model, "aig-perbatch", kinds=["head"], input_size=size_of(name)).network


def test_heads_are_rounded_up_with_silent_ones() -> None:
    network, x = attached("Three"), images("Three")
    decisions = {site: [0, 1, 0] for site in network.gated_by}
    said = network.copy()
    decide(said, decisions)
    assert gatecli.prune(said, round_to=2).padded == dict.fromkeys(decisions, 1)
    assert gatecli.prune(said).padded == {}
    pruned = pruned_to(network, decisions, round_to=2)
    assert pruned.get_submodule("layers.0.q").out_features == 2 * EACH
    assert [site.units for site in pruned.sites.values() if site.kind == "head"] == [2, 2]
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(pruned, x))


@pytest.mark.parametrize("name", list(NOT_PARTED))
def test_heads_that_cannot_be_told_apart_are_named(name: str) -> None:
    model, why = transformer(name), NOT_PARTED[name][1]
    network = traced(copy.deepcopy(model), SIZE)
    assert not [site for site in network.sites.values() if site.kind == "head"]
    with pytest.raises(SettingError, match=f"none of kind `head`; `layers.0.*{why}"):
        gatecli.attach(model, "ind-perbatch", kinds=["head"], input_size=SIZE)


@pytest.mark.parametrize("name", ["Torchs", "Shifted", *WINDOWED])
def test_unfolding_changes_neither_training_nor_the_source(name: str) -> None:
    """Logits of a training step, dropout drawn alike; the source's modules are its own."""
    model, x = source(name), images(name)
    kinds = [type(part) for part in model.modules()]
    network = traced(model, size_of(name))
    assert [type(part) for part in model.modules()] == kinds
    assert set(network.state_dict()) == set(model.state_dict())
    logits = []
    for each in (model.train(), network.train()):
        torch.manual_seed(0)
        logits.append(infer(each, x))
    assert close(*logits)


def test_what_looks_at_no_image_has_no_hidden_units() -> None:
    """As the perceptron that makes the bias of positions: no gate could look at anything."""
    sites = attached("windows, v2").sites
    hidden = [name for name, site in sites.items() if site.kind == "hidden"]
    assert hidden == [f"features.{name}.mlp.0.hidden" for name in ("1.0", "1.1", "3.0")]


@pytest.mark.parametrize("family", ["timm", "transformers"])
def test_heads_of_other_libraries(family: str) -> None:
    library = pytest.importorskip(family)
    if family == "timm":
        swin = library.models.SwinTransformer
        make = functools.partial(
            swin,
            img_size=24,
            patch_size=2,
            window_size=2,
            embed_dim=12,
            depths=(2,),
            num_heads=(3,),
        )
    else:
        config = library.ViTConfig(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8
        )
        config.image_size, config.patch_size = 24, 4
        make = functools.partial(Logits, library.ViTForImageClassification, config)
    model, x = made(make), images("windows")
    network = gatecli.attach(model, "ind-perbatch", kinds=["head"], input_size=WINDOWS).network
    assert [gate.units for gate in network.site_gates.values()] == [3, 3]
    check_cut(network, some(network), x)


def test_heads_of_shifted_windows_that_are_told_a_mask() -> None:
    library = pytest.importorskip("transformers")
    config = library.SwinConfig(
        image_size=24, patch_size=2, embed_dim=12, depths=[2], num_heads=[3], window_size=4
    )
    model = made(functools.partial(Logits, library.SwinForImageClassification, config))
    network = gatecli.attach(model, "ind-perbatch", kinds=["head"], input_size=WINDOWS).network
    path = "network.swin.encoder.layers.0.blocks.{}.attention.heads"
    assert list(network.site_gates) == [path.format(0), path.format(1)]
    check_cut(network, some(network), images("windows"))


class Logits(nn.Module):
    """What a Hugging Face classifier says, alone."""

    def __init__(self, kind: Callable[[Any], nn.Module], config: Any) -> None:
        super().__init__()
        self.network = kind(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits
