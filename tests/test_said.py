"""What files, and folders as hubs lay them out, say of themselves."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commandline import call, run
from safetensors.torch import save_file
from torch import nn

import gatecli
from gatecli import limits
from gatecli.checkpoint import Reading, read, write
from gatecli.checkpoint.said.config import said_beside
from gatecli.checkpoint.said.hub import fetched
from gatecli.checkpoint.said.values import Values
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError
from gatecli.stages.chance import at_chance

CONFIG: dict[str, Any] = {
    "architecture": "resnet18",
    "num_classes": 5,
    "pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "input_size": [3, 96, 96],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "label_names": ["a", "b", "c", "d", "e"],
    },
}


def resnet(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=classes).eval()


def hub(folder: Path, config: Any = CONFIG, classes: int = 5) -> Path:
    folder.mkdir()
    save_file(resnet(classes).state_dict(), folder / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


def refused(path: Path, **how: Any) -> str:
    with pytest.raises(GatecliError) as caught:
        read(path, Reading(**how))
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- timm's config.json ---


def test_a_folder_and_the_file_in_it_say_the_same(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    for path in (folder, folder / "model.safetensors"):
        network, notes = read(path)
        assert network.recipe.source.arch == "torchvision:resnet18"
        assert network.input.size == (96, 96)
        assert (network.input.mean, network.input.std) == ((0.5,) * 3, (0.25,) * 3)
        assert any("config.json" in line and "96x96" in line for line in notes)
        assert not network.recipe.source.assumed  # the file says which it is
        assert len(network.recipe.source.sha256) == 64


def test_what_the_user_says_goes_before(tmp_path: Path) -> None:
    how = Reading(input_size=(64, 64), mean=(0.1,), std=(0.2,))
    network, notes = read(hub(tmp_path / "hub"), how)
    assert (network.input.size, network.input.mean) == ((64, 64), (0.1,))
    assert not any("config.json" in line for line in notes)


def test_all_that_it_says_of_images(tmp_path: Path) -> None:
    said, notes = said_beside(hub(tmp_path / "hub"))
    assert said is not None and said.input is not None and notes == []
    images = said.input
    assert (images.crop, images.interpolation, images.channels) == (0.95, "bicubic", 3)
    assert images.classes == ("a", "b", "c", "d", "e")


def test_the_folder_is_a_checkpoint_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub(tmp_path / "hub")
    assert call("inspect", "hub")["input_size"] == [96, 96]
    made = call("attach", "hub", "--method", "ind-perbatch")
    assert made["out"] == "hub.ind-perbatch.safetensors"
    assert call("inspect", made["out"])["input_size"] == [96, 96]


def test_a_contradiction_is_refused_with_both_sides(tmp_path: Path) -> None:
    text = refused(hub(tmp_path / "a", {**CONFIG, "num_classes": 7}))
    assert "7 classes" in text and "for 5" in text and "--arch" in text
    text = refused(hub(tmp_path / "b", {**CONFIG, "architecture": "resnet34"}))
    assert "`resnet34`" in text and "torchvision:resnet18" in text and "--arch" in text
    network, _ = read(tmp_path / "b", Reading(arch="torchvision:resnet18"))
    assert network.num_classes == 5


def test_a_name_that_is_not_known_is_passed_over(tmp_path: Path) -> None:
    network, notes = read(hub(tmp_path / "hub", {**CONFIG, "architecture": "os:system"}))
    assert network.recipe.source.arch == "torchvision:resnet18"
    assert any("`os:system`" in line for line in notes)


HOSTILE = {
    "huge": "[" + "1," * 3_000_000 + "1]",
    "deep": '{"architecture":' * 100_000 + "1" + "}" * 100_000,
    "no JSON": "{",
    "not UTF-8": "\udcff",
    "a list": "[1, 2]",
    "infinite": '{"architecture": "resnet18", "num_classes": Infinity}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config_is_passed_over_with_a_note(text: str, tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", "{}")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    network, notes = read(folder)
    assert network.recipe.source.arch == "torchvision:resnet18"
    assert any("config.json" in line and "passed over" in line for line in notes)


def test_wrong_types_are_passed_over_by_name(tmp_path: Path) -> None:
    wrong = {
        "architecture": "resnet18",
        "num_classes": "five",
        "pretrained_cfg": {
            "mean": ["a", 1],
            "std": [0, 0, 0],
            "input_size": [3, -1, 10**30],
            "crop_pct": [],
            "interpolation": {"a": 1},
            "label_names": 7,
        },
        "model_args": {"weights": "http://x", "features_only": True, "in_chans": "x"},
    }
    network, notes = read(hub(tmp_path / "hub", wrong))
    assert network.input.size == (224, 224)
    (line,) = [each for each in notes if "no readable way" in each]
    assert "`num_classes`" in line and "`mean`" in line
    assert not {"weights", "features_only"} & network.recipe.source.arch_args.keys()


def test_another_programs_config_is_left_alone(tmp_path: Path) -> None:
    network, notes = read(hub(tmp_path / "hub", {"port": 80, "architecture": ["x"]}))
    assert network.input.size == (224, 224) and not any("config" in line for line in notes)


def test_a_config_is_read_to_a_ceiling() -> None:
    assert limits.CONFIG_BYTES < 10 * limits.MIB


# --- which files hold the weights ---


def test_several_files_of_weights_are_listed(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    torch.save(resnet().state_dict(), folder / "other.pt")
    text = refused(folder)
    assert "model.safetensors" in text and "other.pt" in text
    assert read(folder / "other.pt")[0].num_classes == 5


def test_the_same_weights_in_two_formats_are_one(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    torch.save(resnet().state_dict(), folder / "pytorch_model.bin")
    notes = read(folder)[1]
    assert any("pytorch_model.bin holds the same" in line for line in notes)
    torch.save(resnet(6).state_dict(), folder / "pytorch_model.bin")
    assert "2 files of weights" in refused(folder)


def test_gateclis_own_files_are_no_second_weights(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    write(gatecli.attach(read(folder)[0], "ind-perbatch").network, folder / "own.safetensors")
    torch.save({"lr": 1}, folder / "optimizer.pt")
    assert read(folder)[0].num_classes == 5


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert "folder without weights" in refused(tmp_path)


def sharded(folder: Path) -> Path:
    folder.mkdir()
    tensors = resnet().state_dict()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:40], names[40:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "name", ["", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
def test_all_shards_are_read(name: str, tmp_path: Path) -> None:
    network, _ = read(sharded(tmp_path / "hub") / name)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(x), resnet()(x), atol=1e-5)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hub")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks model-00002-of-00002.safetensors" in refused(folder)


def test_a_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hub")
    save_file({"x": torch.zeros(1)}, folder / "model-00002-of-00002.safetensors")
    assert "no shard has it" in refused(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "", "..", 7, None])
def test_an_index_names_files_beside_it_alone(name: Any, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "hub")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    assert "no readable list of shards" in refused(folder)


# --- hubs ---


@pytest.mark.parametrize("name", ["hf-hub:x", "hf-hub:../x/y", "hf-hub:a/b/c", "hf-hub:"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(CheckpointError, match="ORGANISATION/NAME"):
        fetched(name)


def test_a_hub_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_library = pytest.importorskip("huggingface_hub")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network\nin tests")

    monkeypatch.setattr(hub_library, "snapshot_download", fail)
    done = run("inspect", "hf-hub:timm/resnet18.a1_in1k")
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1
    assert "cannot be had from the hub" in done.err and "model.safetensors" in done.err


def test_a_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = run("inspect", "hf-hub:timm/resnet18.a1_in1k")
    assert done.code == 1 and "gatecli[timm]" in done.err


def test_a_fetched_folder_is_read_as_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub(tmp_path / "hub")
    monkeypatch.setattr("gatecli.checkpoint.plain.fetched", lambda name: folder)
    assert read(Path("hf-hub:timm/resnet18"))[0].input.size == (96, 96)


# --- what a file says inside ---


def test_options_of_training_scripts(tmp_path: Path) -> None:
    args = Namespace(
        model="resnet18", val_resize_size=72, val_crop_size=64, interpolation="bicubic"
    )
    whole = {"model": resnet().state_dict(), "args": args, "epoch": 9}
    torch.save(whole, tmp_path / "x.pth")
    network, notes = read(tmp_path / "x.pth")
    assert network.input.size == (64, 64)
    assert any("`args`" in line and "64x64" in line for line in notes)


def test_timms_training_checkpoint(tmp_path: Path) -> None:
    args = Namespace(model="resnet18", num_classes=5, mean=[0.1] * 3, std=None, img_size=80)
    whole = {"arch": "resnet18", "args": args, "version": 2, "state_dict": resnet().state_dict()}
    torch.save(whole, tmp_path / "x.pth.tar")
    network, _ = read(tmp_path / "x.pth.tar")
    assert network.input.size == (80, 80) and network.input.mean == (0.1,) * 3


def test_lightnings_hyper_parameters_choose_between_twins(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    told = {"model_name": "resnetblur18", "num_classes": 5}
    torch.save({"state_dict": resnet().state_dict(), "hyper_parameters": told}, tmp_path / "x.ckpt")
    assert read(tmp_path / "x.ckpt")[0].recipe.source.arch == "timm:resnetblur18"


def test_timm_transformers_of_another_image_size(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64)
    args = Namespace(model="vit_tiny_patch16_224", img_size=64)
    whole = {"arch": "vit_tiny_patch16_224", "args": args, "state_dict": network.state_dict()}
    torch.save(whole, tmp_path / "x.pth.tar")
    taken, _ = read(tmp_path / "x.pth.tar")
    assert taken.recipe.source.arch_args["img_size"] == 64 and taken.input.size == (64, 64)


def test_a_header_of_safetensors(tmp_path: Path) -> None:
    save_file(resnet().state_dict(), tmp_path / "x.safetensors", {"architecture": "resnet18"})
    assert read(tmp_path / "x.safetensors")[0].recipe.source.arch == "torchvision:resnet18"


@pytest.mark.parametrize(
    "name", ["resnet34", "os:system", "a/b", "x" * 5000, 7, None, ["resnet18"]]
)
def test_what_is_said_inside_is_no_order(name: Any, tmp_path: Path) -> None:
    """A name that does not fit, or names code, is passed over: tensors are believed."""
    torch.save({"arch": name, "state_dict": resnet().state_dict()}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt")[0].recipe.source.arch == "torchvision:resnet18"


def test_single_values() -> None:
    assert Values({"a": True}).count("a") is None and Values({"a": 10}).count("a") == 10
    assert Values({"size": 96}).size("size") == (96, 96)
    assert Values({"size": [3, 96, 80]}).size("size") == (96, 80)
    assert Values({"resample": 3}).interpolation("resample") == "bicubic"
    assert Values({"class_to_idx": {"b": 1, "a": 0}}).classes() == ("a", "b")
    assert Values({"id2label": {"1": "b", "0": "a"}}).classes() == ("a", "b")
    assert Values({"id2label": {"1": "b", "7": "a"}}).classes() is None


# --- transformers ---


def test_transformers_missing_is_one_line(tmp_path: Path) -> None:
    config = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
    try:
        import transformers  # noqa: F401
    except ImportError:
        assert "gatecli[transformers]" in refused(hub(tmp_path / "hub", config))
    else:
        assert "config.json" in refused(hub(tmp_path / "hub", config))


def small_convnext(folder: Path, **changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        num_labels=5, hidden_sizes=[16, 24, 32, 40], depths=[2, 2, 2, 2]
    )
    network: nn.Module = transformers.ConvNextForImageClassification(config).eval()
    network.save_pretrained(folder)
    images = {"size": {"shortest_edge": 56}, "crop_pct": 0.875, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **changes}))
    return network


LEAVES = ("convnext.embeddings",)


def test_a_folder_of_transformers_is_read_and_rebuilt_without_it(tmp_path: Path) -> None:
    network = small_convnext(tmp_path / "hub")
    taken, _ = read(tmp_path / "hub", Reading(leaves=LEAVES))
    assert taken.recipe.source.arch == "transformers:ConvNextForImageClassification"
    assert taken.input.size == (56, 56) and taken.input.mean == (0.5,) * 3
    assert set(taken.state_dict()) == set(network.state_dict())
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.allclose(taken(x), network(x).logits, atol=1e-6)
    write(gatecli.attach(taken, "ind-perbatch").network, tmp_path / "own.safetensors")
    for file in (tmp_path / "hub").iterdir():
        file.unlink()
    again = gatecli.load(tmp_path / "own.safetensors")
    with torch.no_grad():
        assert torch.allclose(again(x), network(x).logits, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": "a", "1": "b"}},
        {"architectures": ["ViTForImageClassification"], "model_type": "vit"},
        {"architectures": ["PreTrainedModel"]},
        {"depths": [2, 2, 2, 3]},
        {"depths": [10**9, 2, 2, 2]},
        {"depths": "x"},
        {"hidden_sizes": [[[[[[1]]]]]]},
        {"num_channels": 10**12},
        {"patch_size": 0},
    ],
)
def test_a_config_of_transformers_that_lies(changes: dict[str, Any], tmp_path: Path) -> None:
    small_convnext(tmp_path / "hub", **changes)
    assert "config.json" in refused(tmp_path / "hub", leaves=LEAVES)


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    small_convnext(tmp_path / "hub", auto_map={"AutoModel": "evil.Evil"}, backbone="resnet18")
    (tmp_path / "hub" / "evil.py").write_text("raise SystemExit('run')")
    taken, _ = read(tmp_path / "hub", Reading(leaves=LEAVES))
    assert not {"auto_map", "backbone"} & taken.recipe.source.arch_args.keys()


# --- chance ---


def test_chance() -> None:
    assert at_chance(10.0, 1000, 10) and at_chance(12.0, 1000, 10)
    assert not at_chance(14.0, 1000, 10) and not at_chance(50.0, 1000, 10)
    assert not at_chance(0.0, 1, 2)  # no accuracy on one image says anything
    assert not at_chance(100.0, 1000, 1) and not at_chance(0.0, 0, 10)


def test_eval_says_that_it_is_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    nn.init.zeros_(network.fc.weight)
    torch.save(network.state_dict(), "net.pt")
    done = run("eval", "net.pt", "--data", "digits", "--input-size", "32")
    assert done.code == 0 and "no better than guessing" in done.err, done.err
    with pytest.raises(ArchitectureError):
        read(Path("net.pt"), Reading(arch="torchvision:vgg11"))
