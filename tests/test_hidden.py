"""Kind hidden: what is widened and narrowed again, unit by unit, in libraries' own networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gated_perceptrons import Apart, Cut, Maps, Normed, Packed
from networks import EXPANSIONS, infer, lively, masked
from test_contract import close, decide, run_macs
from torch import Tensor, nn

import gatecli
from gatecli.errors import ArchitectureError, SettingError
from gatecli.network import Network
from gatecli.network.costs import expected_macs


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, 2, 2, 16, 40, num_classes=5)


def swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 8, [1, 2], [2, 2], [4, 4], num_classes=5)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=5)


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    stages = [MBConvConfig(1, 3, 1, 8, 8, 1, 1, 1), MBConvConfig(4, 3, 2, 8, 12, 2, 1, 1)]
    return EfficientNet(stages, 0.0, num_classes=5, last_channel=20)


def torchvisions(name: str, **how: Any) -> nn.Module:
    import torchvision

    made: nn.Module = torchvision.models.get_model(name, num_classes=5, **how)
    return made


def timms(name: str, **how: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    made: nn.Module = timm.create_model(name, num_classes=5, **how)
    return made


# name -> how it is made, and how many sites it has
LIBRARIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 2),
    "swin": (swin, 3),
    "convnext": (convnext, 3),
    "efficientnet": (efficientnet, 2),
    "gated-apart": (Apart, 1),
    "gated-packed": (Packed, 1),
    "gated-maps": (Maps, 2),
    "cut-behind": (Cut, 1),
    "mobilenet_v2": (functools.partial(torchvisions, "mobilenet_v2", width_mult=0.1), 16),
    "mobilenet_v3": (functools.partial(torchvisions, "mobilenet_v3_small", width_mult=0.2), 11),
}
SMALL: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
GATED: dict[str, Any] = SMALL | {"patch_size": 16, "embed_dim": 32}
TIMM: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm-vit": (functools.partial(timms, "vit_tiny_patch16_224", **SMALL), 2),
    "timm-deit": (functools.partial(timms, "deit_tiny_patch16_224", **SMALL), 2),
    "timm-swin": (
        functools.partial(
            timms,
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=8,
            depths=(1, 2),
            num_heads=(2, 2),
        ),
        3,
    ),
    "timm-convnext": (
        functools.partial(timms, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 12, 16)),
        4,
    ),
    "timm-convnext-linear": (
        functools.partial(timms, "convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 12, 16)),
        4,
    ),
    "timm-eva02": (functools.partial(timms, "eva02_tiny_patch14_224", **GATED), 2),
    "timm-dinov2": (functools.partial(timms, "vit_giant_patch14_dinov2", **GATED), 2),
    "timm-aimv2": (functools.partial(timms, "aimv2_large_patch14_224", **GATED), 2),
    "timm-efficientnet": (functools.partial(timms, "efficientnet_b0"), 15),
    "timm-mobilenet_v3": (functools.partial(timms, "mobilenetv3_small_050"), 11),
}
ALL = LIBRARIES | TIMM
SIZE = (32, 32)
every = pytest.mark.parametrize("name", sorted(ALL))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@functools.cache
def source(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(ALL[name][0](), images(4))
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():  # layer scales, heads of zeros, biases
                nn.init.uniform_(parameter, 0.1, 0.6)
        return model


@functools.cache
def gated(name: str) -> Network:
    how: dict[str, Any] = {"kinds": ["hidden"], "input_size": SIZE}
    return gatecli.attach(source(name), "ind-perbatch", **how).network


def drawn(network: Network, count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for site, gate in network.site_gates.items():
        z = torch.randint(0, 2, (count, gate.units), generator=generator).float()
        if gate.units > 1:
            z[:, :2] = torch.tensor([1.0, 0.0])
        found[site] = z
    return found


def alike(network: Network, seed: int) -> dict[str, list[int]]:
    return {site: z[0].int().tolist() for site, z in drawn(network, 1, seed).items()}


def by_hand(network: Network, model: nn.Module, decisions: dict[str, list[int]]) -> nn.Module:
    """The plain network in which nothing reads the closed units: columns of zeros."""
    for site, units in decisions.items():
        closed = [unit for unit, flag in enumerate(units) if not flag]
        width = len(units)
        for name in network.sites[site].branch:
            node = network.traced.node(name)
            if name in network.sites[site].tail or node.op != "call_module":
                continue
            layer: Any = model.get_submodule(str(node.target))
            columns = getattr(layer, "in_features", getattr(layer, "in_channels", 0))
            if columns == width:
                with torch.no_grad():
                    layer.weight[:, closed] = 0
    return model


@every
def test_libraries_networks_lose_half_of_their_hidden_units(name: str) -> None:
    network, x = gated(name), images(3)
    assert len(network.gated_by) == ALL[name][1]
    assert close(infer(source(name), x.clone()), infer(network, x))
    for count in (1, 3):
        with gatecli.force(network, drawn(network, count, count)):
            assert close(masked(network, x[:count]), infer(network, x[:count]))
    decisions = alike(network, 7)
    rates = {site: [float(unit) for unit in units] for site, units in decisions.items()}
    with gatecli.force(network, decisions):
        assert expected_macs(network, rates) == run_macs(network, x[:1])
    said = network.copy()
    decide(said, decisions)
    result = gatecli.prune(said)
    assert not result.network.gated_by and set(result.thinned) == set(decisions)
    assert result.network.macs_dense == run_macs(result.network, x[:1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = ALL[name][0]().eval()
    plain.load_state_dict(source(name).state_dict())
    assert close(infer(by_hand(network, plain, decisions), x), infer(result.network, x))


def expansions(**how: Any) -> Network:
    case = EXPANSIONS
    how = {"kinds": ["hidden"], "input_size": case.size, "arch": case.arch} | how
    return gatecli.attach(case.build(), "ind-perbatch", **how).network.copy()


def test_names_and_widths() -> None:
    network = expansions()
    assert {site: network.sites[site].units for site in network.gated_by} == {
        "first.expand.hidden": 24,
        "second.expand.hidden": 20,
        "wide.hidden": 28,
        "mlp.0.hidden": 16,
        "head.0.hidden": 18,
    }
    assert network.sites["wide.hidden"].positions == (1, 2)
    assert network.sites["head.0.hidden"].positions == ()


def test_a_unit_leaves_every_layer_that_it_has_a_part_in() -> None:
    network = expansions(include=["first*"])
    decide(network, {"first.expand.hidden": [1, 0] * 12})
    tensors = gatecli.prune(network).network.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key[:6] == "first."}
    assert shapes["first.expand.weight"] == (12, 8, 1, 1)
    assert shapes["first.depth.weight"] == (12, 1, 3, 3)
    assert shapes["first.bn1.running_mean"] == shapes["first.bn2.weight"] == (12,)
    assert shapes["first.squeeze.weight"] == (4, 12, 1, 1)
    assert shapes["first.excite.weight"] == (12, 4, 1, 1)
    assert shapes["first.excite.bias"] == (12,) and shapes["first.project.weight"] == (8, 12, 1, 1)


def test_widths_are_rounded_with_units_that_say_nothing() -> None:
    network, x = expansions(), EXPANSIONS.images(3)
    decisions = {site: [1] * 3 + [0] * (g.units - 3) for site, g in network.site_gates.items()}
    decide(network, decisions)
    result = gatecli.prune(network, round_to=8)
    smaller = result.network
    assert {smaller.sites[site].units for site in decisions} == {8}
    assert result.padded == dict.fromkeys(decisions, 5)
    assert gatecli.prune(network).padded == {}
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(smaller, x))


def test_without_units_one_stays_that_says_nothing() -> None:
    network, x = expansions(), EXPANSIONS.images(3)
    decisions = {site: [0] * gate.units for site, gate in network.site_gates.items()}
    decide(network, decisions)
    result = gatecli.prune(network)
    assert set(result.removed) == set(decisions) and not result.stuck
    assert result.network.get_submodule("wide").weight.shape[0] == 1  # type: ignore[union-attr]
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(result.network, x))


def test_some_units_stay_dynamic_and_are_replayed(tmp_path: Path) -> None:
    case = EXPANSIONS
    network = gatecli.attach(
        case.build(), "aig-perbatch", kinds=["hidden"], input_size=case.size, arch=case.arch
    ).network
    rates = {}
    for site, gate in network.site_gates.items():
        rates[site] = [(0.0, 0.5, 1.0, 0.5)[unit % 4] for unit in range(gate.units)]
    result = gatecli.prune(network, rates=rates)
    assert result.kept_dynamic == list(network.gated_by)
    gatecli.write(result.network, tmp_path / "net.safetensors")
    loaded, x = gatecli.load(tmp_path / "net.safetensors", arch=case.arch), case.images(4)
    assert loaded.sites == result.network.sites
    assert torch.equal(infer(result.network, x), infer(loaded, x))
    z = drawn(loaded, 4, 3)
    with gatecli.force(loaded, z):
        assert close(masked(loaded, x), infer(loaded, x))


def test_beside_filters_and_within_blocks() -> None:
    """Gates on the convolutions that read the units, and on what squeezes them."""
    case = EXPANSIONS
    network = gatecli.attach(
        expansions(kinds=["hidden"]),
        "ind-perbatch",
        kinds=["filter"],
        exclude=["*expand.filters", "mlp.0.filters"],
    ).network
    assert {"first.project.filters", "first.excite.filters"} <= set(network.gated_by)
    x = case.images(3)
    with gatecli.force(network, drawn(network, 3, 5)):
        assert close(masked(network, x), infer(network, x))
    decisions = alike(network, 6)
    rates = {site: [float(unit) for unit in units] for site, units in decisions.items()}
    with gatecli.force(network, decisions):
        assert expected_macs(network, rates) == pytest.approx(run_macs(network, x[:1]), rel=1e-9)
    decide(network, decisions)
    smaller = gatecli.prune(network).network
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(smaller, x))
    blocks = gatecli.attach(expansions(), "aig-perbatch", kinds=["block"]).network
    for seed in range(3):
        with gatecli.force(blocks, drawn(blocks, 3, seed)):
            assert close(masked(blocks, x), infer(blocks, x))


def test_the_same_channels_are_not_decided_twice() -> None:
    """Of two kinds that are one layer's channels the one that saves more is gated."""
    gated = expansions(kinds=["filter", "hidden"]).gated_by
    assert "first.expand.hidden" in gated and "first.project.filters" in gated
    assert "first.expand.filters" not in gated
    with pytest.raises(SettingError, match=r"first.expand.filters.*--exclude") as error:
        gatecli.attach(expansions(), "ind-perbatch", kinds=["filter"])
    assert "\n" not in str(error.value)


def test_units_in_groups() -> None:
    network, x = expansions(granularity=2), EXPANSIONS.images(3)
    assert {gate.units for gate in network.site_gates.values()} == {2}
    with gatecli.force(network, drawn(network, 3, 1)):
        assert close(masked(network, x), infer(network, x))
    with pytest.raises(SettingError, match="divide the 24 hidden units"):
        expansions(granularity=7)


def test_a_gated_perceptrons_unit_leaves_both_layers() -> None:
    how: dict[str, Any] = {"input_size": SIZE, "kinds": ["hidden"]}
    for build, made in ((Apart, {"up": 8, "gate": 8}), (Packed, {"both": 16})):
        network = gatecli.attach(build().eval(), "ind-perbatch", **how).network
        (site,) = network.gated_by
        decide(network, {site: [1, 0] * 8})
        smaller = gatecli.prune(network).network
        assert smaller.get_submodule("down").weight.shape == (8, 8)
        for name, width in made.items():
            assert smaller.get_submodule(name).weight.shape == (width, 8)
        decide(network, {site: [0] * 16})
        assert gatecli.prune(network).removed == [site]
        decide(network, {site: [1] * 3 + [0] * 13})
        rounded, x = gatecli.prune(network, round_to=8).network, images(2)
        assert rounded.sites[site].units == 8
        assert close(infer(rounded, x), infer(gatecli.prune(network).network, x))


def test_a_gated_perceptron_behind_which_units_are_normalised_is_refused() -> None:
    how: dict[str, Any] = {"input_size": SIZE, "kinds": ["hidden"]}
    with pytest.raises((SettingError, ArchitectureError), match="hidden") as error:
        gatecli.attach(Normed().eval(), "ind-perbatch", **how)
    assert "gate.hidden" in str(error.value) and "a norm over all units" in str(error.value)
