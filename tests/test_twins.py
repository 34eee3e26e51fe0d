"""What no tensor tells: twins are listed, their options build what they say, evidence decides."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commandline import call
from networks import CASES, infer
from torch import Tensor, nn

import gatecli
from gatecli.architectures.arguments import accepted_args, parse_arch_args
from gatecli.architectures.build import build, build_skeleton
from gatecli.architectures.identify import identify
from gatecli.architectures.shapes import open_shapes, shapes_of
from gatecli.architectures.timm_table import timm_rows, timm_table
from gatecli.architectures.torchvision_args import EXTRA_ARGS
from gatecli.architectures.twins import FAMILIES, MOST, assumed_of, note
from gatecli.checkpoint import Reading, read, write
from gatecli.errors import ArchitectureError, GatecliError


def scattered(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its BatchNorm statistics no longer 0 and 1."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
    return network.eval()


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def differ(first: nn.Module, second: nn.Module, size: int = 64) -> float:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = first(images), second(images)
    return float((one - other).abs().max() / one.abs().max())


def without_pool() -> nn.Module:
    network = torchvision.models.resnet18(num_classes=10)
    network.maxpool = nn.Identity()
    return network


def dilated() -> nn.Module:
    dilation = [False, True, True]
    return torchvision.models.resnet50(num_classes=10, replace_stride_with_dilation=dilation)


def other_activation() -> nn.Module:
    network = torchvision.models.mobilenet_v2(num_classes=10)
    for path, part in list(network.named_modules()):
        if isinstance(part, nn.ReLU6):
            network.set_submodule(path, nn.SiLU())
    return network


def caffes_pool() -> nn.Module:
    network = torchvision.models.resnet18(num_classes=10)
    network.maxpool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    return network


def stride_of_one() -> nn.Module:
    network = torchvision.models.mobilenet_v2(num_classes=10)
    network.features[0][0].stride = (1, 1)
    return network


def other_eps() -> nn.Module:
    network = torchvision.models.mobilenet_v3_small(num_classes=10)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-5
    return network


TWINS = [
    (without_pool, "maxpool=false"),
    (dilated, "replace_stride_with_dilation=false,true,true"),
    (dilated, "replace_stride_with_dilation=[False, True, True]"),
    (other_activation, "activation=silu"),
    (caffes_pool, "ceil_mode=true"),
    (stride_of_one, "stem_stride=1"),
    (other_eps, "bn_eps=1e-05"),
]


@pytest.mark.parametrize(("make", "option"), TWINS)
def test_a_twin_is_listed_and_its_option_builds_it(make: Any, option: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    twin = scattered(make())
    path = saved(twin, tmp_path / "twin.pt")
    taken, notes = read(path)
    name = option.partition("=")[0]
    options = [each["option"] for each in taken.recipe.source.assumed]
    assert any(name in each for each in options)
    assert len([line for line in notes if "no tensor tells" in line]) == 1
    assert differ(twin, taken) > 1e-5
    told, notes = read(path, Reading(arch_args=parse_arch_args([option])))
    assert differ(twin, told) < 1e-5
    assert not any(name in each["option"] for each in told.recipe.source.assumed)
    again = gatecli.attach(told, "ind-perbatch").network
    assert differ(twin, again.eval()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_in_the_table_is_an_argument(family: str) -> None:
    accepted = set(EXTRA_ARGS.get(family, {})) | {"transform_input", "pad", "project", "stride_on"}
    for twin in FAMILIES[family]:
        assert set(twin.args) <= accepted


def test_no_argument_is_offered_that_the_builder_sets_itself() -> None:
    """As growth_rate of densenet121: the constructor has it, but the builder gives it."""
    for name in ("densenet121", "mnasnet0_5", "squeezenet1_1", "swin_t", "mobilenet_v3_small"):
        arch = f"torchvision:{name}"
        for key, argument in (accepted_args(arch) or {}).items():
            value = {bool: True, int: 3, float: 0.125}.get(argument.kind) or argument.choices[-1]
            try:
                build_skeleton(arch, {key: value})
            except ArchitectureError as error:
                assert "multiple values" not in str(error), (name, key)
    assert "growth_rate" not in (accepted_args("torchvision:densenet121") or {})
    assert "groups" not in (accepted_args("torchvision:resnext50_32x4d") or {})
    assert "groups" in (accepted_args("torchvision:resnet50") or {})


def test_the_note_is_short_and_the_record_complete() -> None:
    shapes = shapes_of(build_skeleton("torchvision:resnet50", {}))
    found = identify(shapes)
    assert len(found.assumed) > MOST
    (line,) = found.notes
    assert line.count("(") <= MOST + 1 and "\n" not in line
    for word in ("stride_on=conv1", "maxpool=false", "dilation", "timm:resnetblur50"):
        assert word in line
    for each in found.assumed:
        assert set(each.to_json()) == {"what", "instead", "option"}
        assert each.option.startswith("--arch")
    assert note(()) == ""


def test_a_named_architecture_is_not_doubted() -> None:
    shapes = open_shapes("torchvision:vgg11", {})[1]
    assert assumed_of("torchvision:vgg11", {}, shapes, named=False)
    assert not assumed_of("torchvision:vgg11", {}, shapes, named=True)


@pytest.mark.parametrize(
    ("arch", "args"), [("resnet18", {"activation": "nope"}), ("vgg11", {"maxpool": False})]
)
def test_options_that_do_not_fit(arch: str, args: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        build(f"torchvision:{arch}", args)
    assert next(iter(args)) in str(caught.value)


def test_json_has_what_was_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(torchvision.models.resnet18(num_classes=4), tmp_path / "net.pt")
    found = call("inspect", "net.pt", "--input-size", "32")
    assert {"--arch-arg maxpool=false", "--arch timm:resnetblur18"} <= {
        each["option"] for each in found["assumed"]
    }
    made = call("attach", "net.pt", "--method", "ind-perbatch", "--input-size", "32")
    assert made["assumed"] == found["assumed"]
    assert call("inspect", made["out"])["assumed"] == found["assumed"]


# --- timm's table ---


def test_the_table_of_timm_knows_torchvisions_twins() -> None:
    rows = timm_rows(open_shapes("torchvision:resnet18", {"num_classes": 7})[1])
    assert [row.name for row in rows] == ["resnet18", "resnetblur18"]
    assert sum(len(rows) for rows in timm_table().values()) > 1300


def test_timm_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"a": (2, 2)}
    row = timm_rows(open_shapes("torchvision:resnet18", {})[1])[0]
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("gatecli.architectures.identify.timm_rows", lambda tensors: [row])
    monkeypatch.setattr(type(row), "counts", lambda self, tensors: {})
    with pytest.raises(ArchitectureError, match=r"timm:resnet18.*gatecli\[timm\]"):
        identify(shapes)


@pytest.mark.parametrize("name", ["resnet26d", "efficientnet_b0", "tresnet_m", "regnetz_b16"])
def test_timm_files_are_found_from_their_tensors(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=5).eval()
    found = identify({key: tuple(value.shape) for key, value in network.state_dict().items()})
    assert (found.arch, found.args["num_classes"]) == (f"timm:{name}", 5)
    if name == "efficientnet_b0":
        assert "--arch timm:tf_efficientnet_b0" in [each.option for each in found.assumed]


def test_the_blurred_twin_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = scattered(timm.create_model("resnetblur18", num_classes=5))
    path = saved(network, tmp_path / "x.pt")
    assert differ(network, read(path, Reading(arch="timm:resnetblur18"))[0]) < 1e-5
    torch.save(network, tmp_path / "whole.pt")
    taken, _ = read(tmp_path / "whole.pt", Reading(trust_pickle=True))
    assert taken.recipe.source.arch == "timm:resnetblur18"
    assert differ(network, taken) < 1e-5


# --- a module in the file ---


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Code of a user's own, importable from the folder that the test works in."""
    (tmp_path / "ownnets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from torchvision.models.resnet import BasicBlock, ResNet\n"
        "class Halved(ResNet):\n"
        "    def __init__(self, num_classes=10):\n"
        "        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)\n"
        "    def forward(self, x):\n"
        "        return super().forward(x / 2 + .3)\n"
        "class Needs(Halved):\n"
        "    def __init__(self, what):\n"
        "        super().__init__()\n"
        "class Soft(nn.Module):\n"
        "    def __init__(self, kind='method'):\n"
        "        super().__init__()\n"
        "        self.kind, self.c, self.f = kind, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)\n"
        "        self.end = nn.Softmax(1) if kind == 'module' else None\n"
        "    def forward(self, x):\n"
        "        x = self.f(self.c(x).relu().mean((2, 3)))\n"
        "        if self.kind == 'exp':\n"
        "            x = x.exp()\n"
        "            return x / x.sum(1, keepdim=True)\n"
        "        return self.end(x) if self.end is not None else x.softmax(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ownnets", raising=False)
    return importlib.import_module("ownnets")


def test_a_module_that_agrees_settles_it(tmp_path: Path) -> None:
    network = scattered(torchvision.models.resnet18(num_classes=10))
    torch.save(network, tmp_path / "whole.pt")
    taken, notes = read(tmp_path / "whole.pt", Reading(trust_pickle=True))
    assert taken.recipe.source.arch == "torchvision:resnet18"
    assert not taken.recipe.source.assumed and any("agrees" in line for line in notes)


def test_a_module_without_its_pool_is_read_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = scattered(without_pool())
    torch.save({"model": network, "epoch": 3}, tmp_path / "whole.pt")
    taken, notes = read(tmp_path / "whole.pt", Reading(trust_pickle=True))
    assert taken.recipe.source.arch_args["maxpool"] is False
    assert differ(network, taken) < 1e-5 and any("maxpool=False" in line for line in notes)


def test_a_module_of_another_class_is_built_by_it(own: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = scattered(own.Halved(7))
    torch.save(network, tmp_path / "whole.pt")
    taken, _ = read(tmp_path / "whole.pt", Reading(trust_pickle=True))
    assert taken.recipe.source.arch == "ownnets:Halved"
    assert differ(network, taken) < 1e-5
    write(gatecli.attach(taken, "ind-perbatch").network, tmp_path / "g.safetensors")
    with pytest.raises(GatecliError, match="ownnets:Halved"):
        gatecli.load(tmp_path / "g.safetensors")
    again = gatecli.load(tmp_path / "g.safetensors", arch="ownnets:Halved")
    assert differ(network, again) < 1e-5


def test_a_module_that_nothing_builds_is_refused(own: Any, tmp_path: Path) -> None:
    torch.save(scattered(own.Needs(1)), tmp_path / "whole.pt")
    with pytest.raises(ArchitectureError) as caught:
        read(tmp_path / "whole.pt", Reading(trust_pickle=True))
    text = str(caught.value)
    assert "torchvision:resnet18" in text and "% of the largest" in text
    assert "package.module:callable" in text and "\n" not in text


# --- a softmax at the end ---


@pytest.mark.parametrize("kind", ["method", "module", "exp"])
def test_a_softmax_at_the_end_is_taken_off(own: Any, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = own.Soft(kind).eval()
    torch.nn.init.normal_(network.f.weight, std=3)
    saved(network, tmp_path / "soft.pt")
    how = Reading(arch="ownnets:Soft", arch_args={"kind": kind}, input_size=(16, 16))
    taken, notes = read(tmp_path / "soft.pt", how)
    assert any("softmax" in line for line in notes)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        logits: Tensor = taken(images)
        assert (logits.softmax(1) - network(images)).abs().max() < 1e-5
        assert (logits.sum(1) - 1).abs().max() > 1e-3
    assert taken.recipe.source.softmax
    assert list(taken.state_dict()) == list(network.state_dict())


def test_logits_stay_as_they_are(own: Any, tmp_path: Path) -> None:
    network = torchvision.models.resnet18(num_classes=10)
    taken, notes = read(saved(network, tmp_path / "x.pt"))
    assert not taken.recipe.source.softmax and not any("softmax" in line for line in notes)


def test_a_module_that_ends_in_a_softmax_is_gated_at_its_logits() -> None:
    case = CASES["cifar-projection"]
    model = nn.Sequential(case.build(), nn.Softmax(1)).eval()
    with pytest.warns(UserWarning, match="ends in a softmax"):
        network = gatecli.attach(model, "aig-perbatch", input_size=case.size).network
    images = case.images(3)
    assert torch.allclose(infer(network, images).softmax(1), infer(model, images), atol=1e-6)
    assert network.recipe.source.softmax
