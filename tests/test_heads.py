"""Heads under other names, found by their role; heads of other forms, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import call, run
from reading import State, computes, error, opened, prefixed, resnet20, stirred
from safetensors.torch import load_file
from torch import nn

from gatecli.architectures.build import build
from gatecli.checkpoint import load

HEADS = ["last_linear", "head", "head.fc", "classifier", "classifier.1", "fc.1", "linear", "my.out"]


def resnet18() -> nn.Module:
    args = {"num_classes": 10, "width_per_group": 64}
    return stirred(build("torchvision:resnet18", args))


def with_head(model: nn.Module, before: str, after: str) -> State:
    state = {}
    for name, tensor in model.state_dict().items():
        own = name.startswith(f"{before}.")
        state[after + name[len(before) :] if own else name] = tensor
    return state


@pytest.mark.parametrize("arch", [None, "torchvision:resnet18"])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_by_another_name(tmp_path: Path, head: str, arch: str | None) -> None:
    model = resnet18()
    state = with_head(model, "fc", head)
    network, notes = opened(tmp_path / "x.pt", state, arch=arch, input_size=(64, 64))
    assert network.recipe.source.arch == "torchvision:resnet18"
    assert computes(network, model, side=64)
    assert network.state_dict().keys() == state.keys()
    if head not in ("classifier", "linear"):  # ResNets' usual spellings
        assert any(f"`{head}` is taken for the last layer" in note for note in notes)


NETWORKS = [
    ("torchvision:mobilenet_v2", {"width_mult": 0.25}, "classifier.1", "classifier", 64),
    ("torchvision:mobilenet_v3_small", {}, "classifier.3", "head.fc", 64),
    ("torchvision:squeezenet1_1", {}, "classifier.1", "head", 64),
    ("torchvision:efficientnet_b0", {}, "classifier.1", "classifier.1.1", 64),
    ("torchvision:densenet121", {}, "classifier", "fc", 64),
    ("torchvision:regnet_y_400mf", {}, "fc", "head.fc", 64),
    ("torchvision:shufflenet_v2_x0_5", {}, "fc", "linear", 64),
    ("cifar:preresnet56", {}, "fc", "out", 32),
]


@pytest.mark.parametrize(("arch", "args", "before", "after", "side"), NETWORKS)
def test_heads_of_other_networks(
    tmp_path: Path, arch: str, args: dict[str, Any], before: str, after: str, side: int
) -> None:
    model = stirred(build(arch, {"num_classes": 7}))
    state = prefixed(with_head(model, before, after), "model.")
    network, _ = opened(tmp_path / "x.pt", state, input_size=(side, side))
    assert network.recipe.source.arch == arch and computes(network, model, side)
    assert set(prefixed(dict(network.state_dict()), "model.")) == set(state)


def test_the_spelling_of_a_body_goes_with_another_head(tmp_path: Path) -> None:
    model = resnet20()
    state = with_head(model, "fc", "last_linear")
    state = {name.replace("downsample", "shortcut"): tensor for name, tensor in state.items()}
    network, _ = opened(tmp_path / "x.pt", {"net": state})
    assert network.state_dict().keys() == state.keys() and computes(network, model)


def test_names_stay_through_attach_and_prune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Body and head under names of their own, and none but these in what is written."""
    monkeypatch.chdir(tmp_path)
    model = resnet20()
    state = {}
    for name, tensor in with_head(model, "fc", "head.fc").items():
        state[name if name[:4] == "head" else f"backbone.{name}"] = tensor
    torch.save({"state_dict": state}, "mm.pt")
    sites = [site["name"] for site in call("inspect", "mm.pt")["sites"]]
    assert any(site.startswith("backbone.layer1.0") for site in sites)
    gated = call("attach", "mm.pt", "--method", "ind-perbatch", "--out", "g.safetensors")
    names = {name for name in load_file(gated["out"]) if not name.startswith("gates.")}
    assert names == state.keys() and computes(load(gated["out"]), model)
    call("prune", "g.safetensors", "--threshold", 0.999, "--out", "p.safetensors")
    left = set(load_file("p.safetensors"))
    assert left < state.keys() and "head.fc.weight" in left
    assert [site["name"] for site in call("inspect", "g.safetensors")["sites"]] == sites
    assert load("p.safetensors").state_dict().keys() == left


def test_a_head_in_the_place_of_a_container(tmp_path: Path) -> None:
    """`classifier.0` is a Dropout, `classifier` itself the head: neither is lost."""
    model = stirred(build("torchvision:mobilenet_v2", {"num_classes": 7}))
    state = with_head(model, "classifier.1", "classifier")
    torch.save(state, tmp_path / "x.pt")
    done = run(
        "attach",
        tmp_path / "x.pt",
        "--method",
        "aig-perbatch",
        "--input-size",
        64,
        "--out",
        tmp_path / "g.safetensors",
    )
    assert done.code == 0, done.err
    network = load(tmp_path / "g.safetensors")
    assert computes(network, model, side=64)
    network.train()
    network(torch.randn(2, 3, 64, 64))


# --- other forms ---


def forms() -> dict[str, tuple[State, str]]:
    body = {name: t for name, t in resnet18().state_dict().items() if name[:3] != "fc."}
    zeros = torch.zeros
    two = {
        "fc.0.weight": zeros(64, 512),
        "fc.0.bias": zeros(64),
        "fc.2.weight": zeros(9, 64),
        "fc.2.bias": zeros(9),
    }
    cosine = {"head.weight": zeros(9, 512), "head.scale": zeros(1)}
    normed = {
        "head.0.weight": zeros(512),
        "head.0.bias": zeros(512),
        "head.1.weight": zeros(9, 512),
        "head.1.bias": zeros(9),
    }
    wide = {"fc.weight": zeros(9, 1024), "fc.bias": zeros(9)}
    return {
        "two layers": ({**body, **two}, "2 layers (`fc.0`, `fc.2`)"),
        "two, body prefixed": ({**prefixed(body, "backbone."), **two}, "2 layers"),
        "cosine": ({**body, **cosine}, "`head` has no bias (a cosine head"),
        "normed": ({**body, **normed}, "`head.0` beside `head.1`"),
        "none": (body, "it has no head"),
        "none, prefixed": (prefixed(body, "module.backbone."), "it has no head"),
        "wider": ({**body, **wide}, "reads 1024 values of the 512"),
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("arch", [None, "torchvision:resnet18"])
def test_heads_of_other_forms_are_named(tmp_path: Path, form: str, arch: str | None) -> None:
    state, words = forms()[form]
    text = error(tmp_path / "x.pt", {"state_dict": state}, arch=arch)
    assert "torchvision:resnet18" in text and words in text, text
    assert "--arch package.module:callable" in text


def test_a_body_with_more_layers_is_another_body(tmp_path: Path) -> None:
    state = dict(resnet18().state_dict())
    state["layer1.0.attention.weight"] = torch.zeros(64, 64)
    assert "nearest" in error(tmp_path / "x.pt", state)
    state = with_head(resnet18(), "fc", "head")
    state["layer1.0.attention.weight"] = torch.zeros(64, 64)
    assert "nearest" in error(tmp_path / "x.pt", state)


def test_a_users_network_has_no_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plainnet.py").write_text(
        "import torchvision\ndef make():\n    return torchvision.models.resnet18(num_classes=10)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    state = with_head(resnet18(), "fc", "head")
    text = error(tmp_path / "x.pt", state, arch="plainnet:make")
    assert "not those of plainnet:make" in text
