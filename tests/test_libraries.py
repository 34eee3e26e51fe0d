"""Networks of the libraries: attached, written, read, pruned, written and read, all exactly."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import gatecli
from gatecli.checkpoint import Reading, load, read, write
from gatecli.probe import logits, random_images, relative_change

EXACT = 1e-5  # of the largest logit
TORCHVISION = ("densenet121", "mobilenet_v3_small", "mnasnet0_5")
TIMM = ("resnet10t", "rexnet_100", "tf_efficientnet_b0")
SIZED = ("mobilevit_xxs", "tiny_vit_5m_224", "efficientvit_b0", "convit_tiny", "mvitv2_tiny")


def through(plain: Path, arch: str, model: nn.Module, size: int, method: str) -> None:
    """Attach, write, load, prune, write, load."""
    network, _ = read(plain, Reading(arch=arch, input_size=(size, size)))
    gated = gatecli.attach(network, method).network.eval()
    images = random_images(gated)
    assert relative_change(logits(model, images), logits(gated, images)) <= EXACT
    assert torch.equal(logits(gated, images), again(gated, images, plain.parent / "a.safetensors"))
    draw = random.Random(0)
    rates = {}
    for site, gate in gated.site_gates.items():
        rates[site] = [float(draw.random() < 0.5) for _ in range(gate.units)]
        if not gate.data_dependent:
            odds = [[0.0, 9.0] if unit else [9.0, 0.0] for unit in rates[site]]
            with torch.no_grad():
                gate.logits.copy_(torch.tensor(odds))
    result = gatecli.prune(gated, rates=rates, static=0.5)
    assert result.max_logit_change <= EXACT
    pruned = result.network
    assert pruned.params < gated.params
    assert torch.equal(
        logits(pruned, images), again(pruned, images, plain.parent / "b.safetensors")
    )


def again(network: gatecli.Network, images: Tensor, path: Path) -> Tensor:
    write(network, path)
    return logits(load(path), images)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    through(tmp_path / "plain.pt", f"torchvision:{name}", model, 64, "ind-perbatch")


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    through(tmp_path / "plain.pt", f"timm:{name}", model, 64, "aig-perbatch")


@pytest.mark.parametrize("name", SIZED)
def test_timm_networks_that_ask_for_sizes(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    size = model.default_cfg["input_size"][1:]
    gated = gatecli.attach(model, "aig-perbatch", input_size=size).network.eval()
    for count in (1, 3):
        images = random_images(gated, count)
        assert relative_change(logits(model, images), logits(gated, images)) <= EXACT


class Logits(nn.Module):
    """A transformers classifier that returns the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}
TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
WINDOWS: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
TRANSFORMERS: dict[str, tuple[int, dict[str, Any]]] = {
    "ResNet": (32, {**STAGES, "embedding_size": 8, "layer_type": "basic"}),
    "ConvNext": (64, STAGES),
    "RegNet": (64, {**STAGES, "embedding_size": 8, "groups_width": 8}),
    "MobileNetV2": (64, {"depth_multiplier": 0.35, "image_size": 64}),
    "EfficientNet": (64, {"image_size": 64, "width_coefficient": 0.25, "hidden_dim": 320}),
    "ViT": (32, TOKENS),
    "DeiT": (32, TOKENS),
    "Swin": (64, WINDOWS),
}


@pytest.mark.parametrize("name", list(TRANSFORMERS))
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size, settings = TRANSFORMERS[name]
    config = getattr(transformers, f"{name}Config")(**settings, num_labels=7)
    model = Logits(getattr(transformers, f"{name}ForImageClassification")(config).eval())
    gated = gatecli.attach(model, "aig-perbatch", input_size=(size, size)).network.eval()
    images = random_images(gated, 5)
    assert relative_change(logits(model, images), logits(gated, images)) <= EXACT
    draw = random.Random(0)
    rows = {
        site: torch.tensor([[float(draw.random() < 0.5)] for _ in images])
        for site in gated.site_gates
    }
    with gatecli.force(gated, rows), torch.no_grad():
        assert relative_change(gated._masked(gated, images), gated(images)) <= EXACT
    decisions = {site: [number % 2] for number, site in enumerate(gated.site_gates)}
    rates = {site: [float(unit) for unit in units] for site, units in decisions.items()}
    result = gatecli.prune(gated, rates=rates, static=0.5)
    with gatecli.force(gated, decisions):
        wanted = logits(gated, images)
    assert relative_change(wanted, logits(result.network, images)) <= EXACT
    assert result.network.params < gated.params
