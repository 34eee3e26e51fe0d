"""GaterNet's table of sizes: gated filters exactly, parameters to the paper's digits."""

from __future__ import annotations

import pytest
import torch

from gatecli import methods
from gatecli.architectures.build import build_skeleton
from gatecli.kinds.filter.find import ROLES
from gatecli.methods.gaternet import GaterNetSettings
from gatecli.network import Network
from gatecli.traced.recipe import InputSpec, Recipe, Source

# backbone, its arguments, image size, bottleneck, gated filters, parameters of the backbone alone,
# in millions with the gater
CIFAR = [
    ("resnet20", {}, 336, 272_474, "0.55"),
    ("resnet56", {}, 1_008, 855_770, "1.14"),
    ("preresnet164", {"narrow": True}, 7_200, 1_620_058, "1.96"),
    ("densenetbc100_12", {}, 540, 769_162, "1.05"),
    ("densenetbc250_24", {}, 2_880, 15_324_406, "15.62"),
    ("densenetbc190_40", {}, 3_600, 25_624_430, "25.93"),
    ("shakeshake26_2x64d", {}, 3_584, 11_709_514, "12.01"),
    ("shakeshake26_2x96d", {}, 5_376, 26_331_754, "26.65"),
]
HUNDRED = [
    ("resnet20", {}, 336, 0.554),
    ("resnet56", {}, 1_008, 1.14),
    ("preresnet164", {"narrow": True}, 7_200, 1.98),
]
IMAGENET = [
    ("torchvision:resnet34", 3_776, "34.08"),
    ("torchvision:resnet101", 32_512, "64.21"),
    ("torchvision:resnet152", 47_872, "83.80"),
]


def plain(arch: str, args: dict[str, object], size: int) -> Network:
    """The network without memory for its weights: counting needs none."""
    return Network(
        build_skeleton(arch, args), Recipe(Source(arch, args), InputSpec((size, size), 3))
    )


def gated(network: Network, bottleneck: int) -> tuple[int, int]:
    """Gated filters, and parameters with the gater."""
    chosen = methods.get("gaternet")
    asked = GaterNetSettings(bottleneck=bottleneck)
    offered = [site.name for site in chosen.offers(network, asked)]
    sites, own = chosen.complete(network, offered, asked)
    assert own.policy in ROLES
    with torch.device("meta"):
        chosen.attach(network, sites, own)
    return sum(gate.units for gate in network.site_gates.values()), network.params


@pytest.mark.parametrize(
    ("name", "args", "filters", "alone", "millions"), CIFAR, ids=[row[0] for row in CIFAR]
)
def test_ten_classes(
    name: str, args: dict[str, object], filters: int, alone: int, millions: str
) -> None:
    network = plain(f"cifar:{name}", args, 32)
    assert network.params == alone
    count, params = gated(network, 8)
    assert (count, f"{params / 1e6:.2f}") == (filters, millions)


@pytest.mark.parametrize(
    ("name", "args", "filters", "millions"), HUNDRED, ids=[row[0] for row in HUNDRED]
)
def test_a_hundred_classes(
    name: str, args: dict[str, object], filters: int, millions: float
) -> None:
    network = plain(f"cifar:{name}", {**args, "num_classes": 100}, 32)
    count, params = gated(network, 8)
    assert count == filters and abs(params / 1e6 - millions) < (0.0005 if millions < 1 else 0.005)


def test_the_gater_of_a_small_network_by_hand() -> None:
    _, params = gated(plain("cifar:resnet20", {}, 32), 8)
    assert params == 272_474 + 271_824 + (64 * 8 + 8) + 2 * 8 + (8 * 336 + 336) == 547_858


def test_inception_v4_behind_its_concatenations() -> None:
    pytest.importorskip("timm")
    network = plain("timm:inception_v4", {}, 299)
    sites = [site for site in network.sites.values() if site.role == "concatenation"]
    widths = [160, 192, 384, *4 * [384], 1024, *7 * [1024], 1536, *3 * [1536]]
    assert sum(site.units for site in sites) == sum(widths) == 16_608
    assert gated(network, 8)[0] == 16_608


@pytest.mark.parametrize(
    ("arch", "filters", "millions"), IMAGENET, ids=[row[0] for row in IMAGENET]
)
def test_a_thousand_classes(arch: str, filters: int, millions: str) -> None:
    count, params = gated(plain(arch, {}, 224), 256)
    assert (count, f"{params / 1e6:.2f}") == (filters, millions)
