"""Networks of torchvision's and timm's families.

Sites, channels, logits and training as their source, tensors under the source's names.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import call, current, listing
from networks import branches, lively, traced
from safetensors.torch import save_file
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build, build_skeleton
from gatecli.checkpoint import read, write
from gatecli.errors import ArchitectureError, GatecliError
from gatecli.network import Network

# name -> number of sites, and which dimensions their gates average over
SITES: dict[str, tuple[int, set[tuple[int, ...]]]] = {
    "mobilenet_v3_small": (6, {(2, 3)}),
    "mnasnet0_5": (10, {(2, 3)}),
    "regnet_x_400mf": (22, {(2, 3)}),
    "regnet_y_1_6gf": (27, {(2, 3)}),
    "regnet_y_800mf": (14, {(2, 3)}),
    "efficientnet_v2_s": (35, {(2, 3)}),
    "convnext_small": (36, {(2, 3)}),
    "swin_t": (24, {(1, 2)}),
    "swin_v2_t": (
        24,
        {(1, 2)},
    ),  # its norms come last: attention is kept whole, and says where channels are
    "vit_b_32": (24, {(1,)}),
    "shufflenet_v2_x0_5": (0, set()),
    "squeezenet1_1": (0, set()),
    "googlenet": (0, set()),
    "inception_v3": (0, set()),
    "vgg11_bn": (0, set()),
}


@pytest.mark.parametrize("name", SITES)
def test_sites_of_a_family(name: str) -> None:
    network = traced(build_skeleton(f"torchvision:{name}", {}), (224, 224))
    assert (
        len(branches(network)),
        {site.positions for site in branches(network).values()},
    ) == SITES[name]


@pytest.mark.slow
def test_sites_of_maxvit() -> None:
    source = build_skeleton("torchvision:maxvit_t", {})
    network = traced(source, (224, 224))
    assert len(branches(network)) == 55 and set(network.state_dict()) == set(source.state_dict())


def weighted(arch: str, **args: Any) -> nn.Module:
    """The network with random weights; the library's own initialisation takes seconds."""
    torch.manual_seed(0)
    model = build_skeleton(arch, args)
    state = model.state_dict()  # with the versions that some modules ask for
    state.update(
        {
            name: torch.rand(tensor.shape) * 0.1 - 0.03
            for name, tensor in state.items()
            if tensor.is_meta
        }
    )
    model.load_state_dict(state, assign=True)
    return model


def logits(network: nn.Module, images: Tensor, training: bool) -> Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        result: Tensor = network.train(training)(images)
    return result


def check_behaviour(source: nn.Module, network: Network, size: int) -> None:
    """Twice in training first: BatchNorm has then learned the same on both sides, or evaluation
    would differ.
    """
    assert set(network.state_dict()) == set(source.state_dict())
    images = torch.randn(2, 3, size, size)
    for training in (True, True, False):
        assert torch.equal(logits(source, images, training), logits(network, images, training))
    if branches(network):
        gated = gatecli.attach(network, "ind-perbatch")
        assert gated.gates == len(branches(network)) and gated.max_logit_change < 1e-5


LARGE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("convnext_tiny", "swin_t", "swin_v2_t", "densenet121")
]


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        "regnet_y_400mf",
        "mnasnet0_5",
        "mobilenet_v3_small",
        "squeezenet1_1",
        *LARGE,
    ],
)
def test_a_family_behaves_as_its_source(name: str) -> None:
    source = lively(weighted(f"torchvision:{name}", num_classes=10), torch.randn(4, 3, 64, 64))
    check_behaviour(source, traced(copy.deepcopy(source), (64, 64)), 64)


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "mobilenetv3_small_100", pytest.param("resnetv2_50", marks=pytest.mark.slow)],
)
def test_timm(name: str) -> None:
    pytest.importorskip("timm")
    source = weighted(f"timm:{name}", num_classes=10)
    network = traced(copy.deepcopy(source), (64, 64))
    assert (
        len(branches(network))
        == {"resnet10t": 4, "mobilenetv3_small_100": 6, "resnetv2_50": 16}[name]
    )
    check_behaviour(source, network, 64)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("repvgg_a0", 0),
        ("mobileone_s0", 0),
        ("swinv2_tiny_window8_256", 24),
        ("resmlp_12_224", 24),
        ("vit_tiny_patch16_224", 24),
    ],
)
def test_sites_of_timm_s_networks(name: str, count: int) -> None:
    """RepVGG's parallel layers are no sites, nor what Swin v2 computes from constants.

    A ViT's optional arguments keep their defaults.
    """
    pytest.importorskip("timm")
    source = build_skeleton(f"timm:{name}", {})
    size = source.default_cfg["input_size"][-1]  # type: ignore[index, union-attr]
    assert len(branches(traced(source, (size, size)))) == count


@pytest.mark.parametrize("method", ["ind-perbatch", "gaternet"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "mnasnet0_5",
        "squeezenet1_1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("densenet121", "regnet_y_400mf", "googlenet", "vit_b_32", "swin_t")
        ),
    ],
)
def test_what_prune_writes_is_read(name: str, method: str, tmp_path: Path) -> None:
    """A third of the units decided off, so that channels go from whatever reads them."""
    args: dict[str, Any] = {"num_classes": 10}
    source = weighted(f"torchvision:{name}", **args)
    size = 224 if name.startswith(("vit", "swin")) else 64
    settings = {"where": "*"} if method == "gaternet" else {}
    try:
        gated = gatecli.attach(
            source,
            method,
            input_size=(size, size),
            arch=f"torchvision:{name}",
            arch_args=args,
            **settings,
        ).network
    except ArchitectureError as error:
        pytest.skip(str(error))
    draw = torch.Generator().manual_seed(0)
    rates = {
        site: (torch.rand(gate.units, generator=draw) > 0.3).float().tolist()
        for site, gate in gated.site_gates.items()
    }
    for site, gate in gated.site_gates.items():
        if not gate.data_dependent:
            gate.threshold.copy_(1 - torch.tensor(rates[site]))
    pruned = gatecli.prune(gated, rates=rates)
    assert pruned.removed or pruned.thinned
    write(pruned.network, tmp_path / "p.safetensors", reload=True)
    again = gatecli.load(tmp_path / "p.safetensors")
    images = torch.randn(2, 3, size, size)
    assert torch.equal(logits(again, images, False), logits(pruned.network, images, False))


def test_prune_replaces_nothing_by_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a DenseNet's was: the fault is put back for this test."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(build("cifar:resnet20", {}).state_dict(), "r.pt")
    call("attach", "r.pt", "--method", "ind-perbatch", "--input-size", 16)

    def broken(*args: Any) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    kept = current()
    monkeypatch.setattr("gatecli.checkpoint.loading.replayed", broken)
    network = gatecli.attach(
        build("cifar:resnet20", {}), "ind-perbatch", input_size=(16, 16), arch="cifar:resnet20"
    ).network
    before = listing()
    with pytest.raises(GatecliError, match="cannot be read again"):
        write(
            gatecli.prune(network, threshold=0.99).network,
            tmp_path / "r.ind-perbatch.pruned.safetensors",
            reload=True,
        )
    assert listing() == before and current() == kept


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def old(name: str) -> str:
    """DenseNet's names before torchvision 0.3: `denselayer1.norm.1`."""
    for kind in ("norm", "conv"):
        for number in "12":
            name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
    return name


def test_old_densenet_names_are_read_and_kept(tmp_path: Path) -> None:
    source = weighted("torchvision:densenet121", num_classes=5)
    tensors = {
        old(name): tensor
        for name, tensor in source.state_dict().items()
        if "num_batches" not in name
    }
    assert (
        "features.denseblock1.denselayer1.norm.1.weight" in tensors
        and "features.transition1.norm.weight" in tensors
    )
    network, _ = read(saved(tmp_path / "old.safetensors", tensors))
    assert network.recipe.source.arch == "torchvision:densenet121"
    assert {name for name in network.state_dict() if "num_batches" not in name} == set(tensors)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(network, images, False), logits(source, images, False))
    write(network, tmp_path / "own.safetensors")
    assert set(gatecli.load(tmp_path / "own.safetensors").state_dict()) == set(network.state_dict())


@pytest.mark.parametrize("heads", [True, False])
def test_auxiliary_heads_are_dropped_and_that_is_said(tmp_path: Path, heads: bool) -> None:
    source = weighted(
        "torchvision:googlenet", num_classes=5, aux_logits=heads, transform_input=True
    )
    path = saved(tmp_path / "googlenet.safetensors", source.state_dict())
    network, notes = read(path)
    assert [note for note in notes if note.startswith("dropped")] == [
        "dropped aux1, aux2: evaluation never runs it"
    ] * heads
    assert any("transform_input=true" in note for note in notes)
    network = gatecli.load(path, arch="torchvision:googlenet", arch_args={"transform_input": True})
    assert set(network.state_dict()) == {
        name for name in source.state_dict() if not name.startswith("aux")
    }
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(network, images, False), logits(source, images, False))
