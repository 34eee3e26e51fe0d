"""How images are prepared: pixel for pixel as the libraries do, and recorded with its origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, refused, run, save_source
from PIL import Image
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from gatecli.architectures.identify import Found, found_for
from gatecli.architectures.table import find_rows
from gatecli.checkpoint import Reading, load, write
from gatecli.checkpoint.pictures import input_of, recorded_input
from gatecli.data.description import as_json, in_words
from gatecli.data.libraries import library_input
from gatecli.data.prepare import arrays_resized, centre_crop, pixels, prepare, resized
from gatecli.errors import CheckpointError, DataError, SettingError
from gatecli.exporting.facts import Facts, facts_of
from gatecli.traced.images import InputSpec, SaidInput, read_input, written_input
from gatecli.traced.recipe import Recipe, Source

OFFICIAL = (
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "efficientnet_b3",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet1_3",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "swin_t",
    "swin_v2_b",
    "vit_h_14",
)
TIMM = (
    "resnet50",  # 0.95
    "resnet18",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "convnext_tiny",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "inception_v3",
    "deit_small_patch16_224",
    "regnety_032",
    "beit_base_patch16_384",
    "eva02_tiny_patch14_336",
    "tf_efficientnet_b3",
    "vit_base_patch16_sapiens2",  # not square
    "deepseek_vit_412m",  # a border
    "vit_base_patch32_clip_448",  # squashed
)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse noise, so that another crop or way of scaling shows."""
    coarse = np.random.RandomState(seed).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    fine = coarse.astype(np.uint8).repeat(8, 0).repeat(8, 1)
    return Image.fromarray(fine[:height, :width])


PICTURES = (photograph(400, 300), photograph(331, 503), photograph(60, 200), photograph(256, 256))


def found(arch: str, **args: Any) -> Found:
    """What identify says, of a row of the table."""
    row = find_rows(arch, {})[0]
    return Found(
        arch=arch,
        args=args,
        names={},
        input_size=row.input_size,
        mean=row.mean,
        std=row.std,
    )


def spec_of(arch: str, **told: Any) -> InputSpec:
    return input_of(found(arch), Reading(**told))


# --- the libraries' own transforms


@pytest.mark.parametrize("name", OFFICIAL)
def test_torchvisions_evaluation_transforms(name: str) -> None:
    official = models.get_model_weights(name).DEFAULT.transforms()
    spec = spec_of(f"torchvision:{name}")
    for picture in PICTURES:
        assert torch.equal(prepare(picture, spec, crop=True)[0], official(picture))
    assert set(spec.origin.values()) == {"library", "file"}, spec.origin
    assert spec.origin["channels"] == "file"


def test_a_size_alone_is_as_before() -> None:
    """What the cases call `centre_crop(picture, size)`: size / 0.875, bilinear."""
    old = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for picture in PICTURES:
        expected = TF.pil_to_tensor(old(picture))
        assert torch.equal(centre_crop(picture, (224, 224)), expected)
        read = read_input({"size": [224, 224], "channels": 3, "mean": None, "std": None})
        assert torch.equal(pixels(picture, read, crop=True)[0], expected)


@pytest.mark.parametrize("name", TIMM)
def test_timms_evaluation_transforms(name: str) -> None:
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    config = timm.models.get_pretrained_cfg(name)
    resolved = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    official = timm.data.create_transform(**resolved)
    said = library_input(f"timm:{name}", {})
    assert said is not None and said.size is not None
    stated = Found(
        arch=f"timm:{name}",
        args={},
        names={},
        input_size=said.size[0],
        mean=said.mean,
        std=said.std,
    )
    spec = input_of(stated, Reading())
    assert spec.size == tuple(resolved["input_size"][1:])
    for picture in PICTURES:
        ours, theirs = prepare(picture, spec, crop=True)[0], official(picture)
        assert torch.equal(ours, theirs), (ours - theirs).abs().max()


def test_a_library_that_says_nothing() -> None:
    assert library_input("cifar:resnet20", {}) is None
    assert library_input("some.module:make", {}) is None
    assert library_input("torchvision:no_such_network", {}) is None
    assert library_input("torchvision:resnet18", {"stem": "cifar"}) is None


# --- who is believed


def test_told_goes_before_the_file_and_the_file_before_the_library() -> None:
    said = SaidInput(
        where="config.json", size=(160, 160), crop=0.9, mean=(0.5, 0.5, 0.5), classes=("a", "b")
    )
    spec = input_of(found("torchvision:resnet50"), Reading(std=(0.25,)), said)
    assert spec == InputSpec(
        size=(160, 160),
        mean=(0.5, 0.5, 0.5),
        std=(0.25,),
        resize=(177,),
        crop=0.9,
        classes=("a", "b"),
    )
    assert spec.origin == {
        "channels": "file",
        "size": "file",
        "mean": "file",
        "std": "told",
        "interpolation": "library",
        "resize": "file",
        "crop": "file",
        "crop_mode": "file",
        "classes": "file",
    }
    assert input_of(found("torchvision:resnet50"), Reading(input_size=(192, 192)), said).size == (
        192,
        192,
    )


def test_scaling_follows_another_size() -> None:
    """A share stays; pixels that were stated for 224 are stated for 112."""
    small = spec_of("torchvision:resnet50", input_size=(112, 112))
    assert (small.resize, small.whence("resize"), small.whence("size")) == (
        (116,),
        "library",
        "told",
    )
    wide = spec_of("torchvision:resnet50", input_size=(112, 224))
    assert wide.resize == (116, 232) and wide.crop_mode == "center"
    for picture in PICTURES:
        assert pixels(picture, wide, crop=True).shape == (1, 3, 112, 224)
    again = recorded_input(Path("x"), small, Reading(input_size=(224, 224)))
    assert again.resize == (232,) and again.whence("resize") == "library"
    old = InputSpec((32, 32))
    assert recorded_input(Path("x"), old, Reading(input_size=(64, 64))).resize is None


def test_options_for_scaling() -> None:
    picture = PICTURES[0]
    side = spec_of("torchvision:resnet18", resize=(300,), interpolation="bicubic")
    steps = [transforms.Resize(300, InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    expected = TF.pil_to_tensor(transforms.Compose(steps)(picture))
    assert torch.equal(pixels(picture, side, crop=True)[0], expected)
    exact = spec_of("torchvision:resnet18", resize=(230, 250))
    steps = [transforms.Resize((230, 250)), transforms.CenterCrop(224)]
    expected = TF.pil_to_tensor(transforms.Compose(steps)(picture))
    assert torch.equal(pixels(picture, exact, crop=True)[0], expected)
    share = spec_of("torchvision:resnet18", crop=0.95)
    assert share.resize == (235,) and share.whence("resize") == "told"


def test_arrays_are_scaled_whole_unless_told() -> None:
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (3, 3, 28, 28), np.uint8))
    plain = spec_of("torchvision:resnet18", input_size=(56, 56))
    assert torch.equal(arrays_resized(images, plain), resized(images, (56, 56)))
    cubic = spec_of("torchvision:efficientnet_b0", input_size=(56, 56))
    assert not torch.equal(arrays_resized(images, cubic), arrays_resized(images, plain))
    told = spec_of("torchvision:resnet18", input_size=(56, 56), resize=(64,))
    expected = TF.center_crop(resized(images, (64, 64)), [56, 56])
    assert torch.equal(arrays_resized(images, told), expected)
    for way in ("nearest", "lanczos", "box", "hamming"):
        other = spec_of("torchvision:resnet18", input_size=(56, 56), interpolation=way)
        assert arrays_resized(images, other).shape == (3, 3, 56, 56)


def test_a_picture_that_would_not_fit_into_memory() -> None:
    thin = Image.new("L", (200_000, 1))
    with pytest.raises(DataError, match="once scaled"):
        pixels(thin, InputSpec((224, 224), 1), crop=True)


# --- what cannot be so

WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
        ("0 to 255", "divide by 255", "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
    ),
    ({"mean": (127.5,)}, ("0 to 255", "--mean 0.5")),
    ({"std": (1.5,)}, ("0 to 255",)),
    ({"mean": (-0.1, 0.5, 0.5)}, ("from 0 to 1", "-0.1")),
    ({"std": (0.0,)}, ("above 0",)),
    ({"std": (float("nan"),)}, ("above 0",)),
    ({"resize": (200,)}, ("at least", "224x224", "200")),
    ({"resize": (224, 200)}, ("at least", "224x200")),
    ({"resize": (256,), "crop": 0.5}, ("--resize or --crop",)),
    ({"crop": 0.0}, ("--crop", "0.875")),
    ({"crop": 1.5}, ("--crop",)),
    ({"crop": float("nan")}, ("--crop",)),
    ({"interpolation": "cubic"}, ("bicubic", "`cubic`")),
    ({"class_order": "alphabet"}, ("names, natural, file", "`alphabet`")),
]


@pytest.mark.parametrize(("told", "words"), WRONG)
def test_what_is_told_must_be_possible(told: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        spec_of("torchvision:resnet18", **told)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_a_file_says_must_be_possible() -> None:
    said = SaidInput(where="config.json", mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    with pytest.raises(CheckpointError, match=r"config\.json says .* divide by 255"):
        input_of(found("torchvision:resnet18"), Reading(), said)
    spec = input_of(found("torchvision:resnet18"), Reading(mean=(0.5,), std=(0.2,)), said)
    assert spec.mean == (0.5,)
    plain = Reading(mean=(0.0,), std=(1.0,))
    assert input_of(found("torchvision:resnet18"), plain).std == (1.0,)
    plain = Reading(mean=(0.0,), std=(1 / 255,))
    assert input_of(found("torchvision:resnet18"), plain).std == (1 / 255,)


def test_a_command_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r.pt"))
    refused("inspect r.pt --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375", "by 255: --mean")
    refused("inspect r.pt --resize big", "--resize", "224 or 192x256")
    refused("inspect r.pt --resize 16", "at least", "32x32")
    refused("inspect r.pt --crop 2", "--crop")
    refused("inspect r.pt --interpolation soft", "--interpolation", "lanczos")
    refused("inspect r.pt --class-order odd", "--class-order", "natural")


# --- recorded, printed


def test_the_recipe_keeps_the_record_and_reads_older_ones() -> None:
    spec = spec_of("torchvision:efficientnet_b0", resize=(300, 310))
    recipe = Recipe(Source("torchvision:efficientnet_b0", {}), spec)
    again = Recipe.from_json(recipe.to_json(), "x").input
    assert again == spec and again.origin == spec.origin
    old = InputSpec((32, 32), 3, (0.5,), (0.5,))
    assert set(written_input(old)) == {"size", "channels", "mean", "std"}
    assert read_input(json.loads(json.dumps(written_input(old)))) == old
    assert old.whence("mean") == "file" and old.whence("resize") == "assumed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": [0]},
        {"resize": [1, 2, 3]},
        {"resize": "256"},
        {"resize": [1e9]},
        {"resize": [10**9]},
        {"crop": 0},
        {"crop": "a"},
        {"crop": 2.0},
        {"crop_mode": "stretch"},
        {"interpolation": ["bilinear"]},
        {"interpolation": None},
        {"class_order": "random"},
        {"classes": [1, 2]},
        {"classes": "abc"},
        {"origin": {"size": "heaven"}},
        {"origin": ["told"]},
    ],
)
def test_a_damaged_record_is_refused(wrong: dict[str, Any]) -> None:
    text = Recipe(Source("a", {}), InputSpec((8, 8))).to_json()
    raw = json.loads(text)
    raw["input"] |= wrong
    with pytest.raises(CheckpointError, match="cannot be read"):
        Recipe.from_json(json.dumps(raw), "x")


def test_one_line_and_json() -> None:
    spec = spec_of("torchvision:resnet50")
    assert in_words(spec) == (
        "images: 224x224, resized to 232, bilinear, mean 0.485,0.456,0.406 std 0.229,0.224,0.225"
        " (library); classes in order of names (assumed)"
    )
    told = spec_of("torchvision:swin_t", input_size=(256, 256), std=(0.5,))
    assert in_words(told, cropped=False, named=False) == (
        "images: 256x256 (told), scaled whole (data), bicubic, mean 0.485,0.456,0.406 (library),"
        " std 0.5 (told); classes by number (data)"
    )
    facts = as_json(spec)
    assert facts["resize"] == {"value": 232, "from": "library"}
    assert facts["crop"] == {"value": 0.9655, "from": "library"}
    assert facts["size"] == {"value": [224, 224], "from": "library"}
    assert facts["interpolation"] == {"value": "bilinear", "from": "library"}
    assert facts["class_order"] == {"value": "names", "from": "assumed"}
    whole = as_json(spec, cropped=False, named=False)
    assert whole["resize"] == {"value": [224, 224], "from": "data"}
    assert whole["crop"] == {"value": 1.0, "from": "data"}
    assert whole["class_order"] == {"value": None, "from": "data"}
    cifar = input_of(found("cifar:resnet20"), Reading())
    assert as_json(cifar)["mean"] == {"value": None, "from": "data"}
    assert as_json(cifar)["size"] == {"value": [32, 32], "from": "assumed"}


def test_two_ways_of_preparing_are_two_evaluations() -> None:
    specs = [
        spec_of("torchvision:resnet18"),
        spec_of("torchvision:resnet18", resize=(232,)),
        spec_of("torchvision:resnet18", interpolation="bicubic"),
        spec_of("torchvision:resnet18", mean=(0.5,)),
    ]
    assert len({spec.key() for spec in specs}) == len(specs)
    assert spec_of("torchvision:resnet18").key() == specs[0].key()


def test_exports_say_how_images_are_prepared(tmp_path: Path) -> None:
    weights = save_source(tmp_path / "e.pt", "torchvision:mobilenet_v3_small")
    network = load(weights, resize=(240,), interpolation="bicubic")
    facts = facts_of(network, single=False)
    again = Facts.from_json(facts.to_metadata()["gatecli"], "x")
    assert again.input() == network.input and again.input().origin == network.input.origin
    older = json.loads(facts.to_metadata()["gatecli"])
    for name in ("resize", "crop_share", "crop_mode", "interpolation", "class_order", "origin"):
        del older[name]
    assert Facts.from_json(json.dumps(older), "x").input().box == (256, 256)
    write(network, tmp_path / "own.safetensors")
    assert load(tmp_path / "own.safetensors").input == network.input


def test_every_command_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r.pt"), num_classes=2)
    for split in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            Path(split, name).mkdir(parents=True)
            for index in range(3):
                picture = photograph(40, 40, seed=3 * number + index)
                picture.save(Path(split, name, f"{index}.png"))
    data = ["--data", "imagefolder:."]
    told = run("inspect", "r.pt")
    assert "images: 32x32, resized to 37, bilinear (assumed), mean and std of the data" in told.err
    assert call("inspect", "r.pt")["input"]["mean"] == {"value": None, "from": "data"}
    said = run("eval", "r.pt", *data)
    assert "ImageNet's mean and std are taken (if not: --mean, --std)" in said.err
    assert "mean 0.485,0.456,0.406 std 0.229,0.224,0.225 (assumed)" in said.err
    assert "images:" not in run("eval", "r.pt", *data, "-q").err
    wanted = {"value": [0.485, 0.456, 0.406], "from": "assumed"}
    assert call("eval", "r.pt", *data)["input"]["mean"] == wanted
    assert call("run", "r.pt", "val/a/0.png")["input"]["mean"] == wanted
    assert call("eval", "r.pt", *data, "--resize", "40")["input"]["resize"] == {
        "value": 40,
        "from": "told",
    }
    assert "input" in call("attach", "r.pt", "--method", "aig-perbatch", "--resize", "40")
    tuned = call("finetune", *data, "--epochs", "1", "--batch-size", "3")
    assert tuned["input"]["resize"] == {"value": 40, "from": "told"}
    for command in ("calibrate", "gates", "prune", "profile"):
        goal = ["--max-drop", "90"] if command == "calibrate" else []
        found = call(command, *data, *goal)
        assert found["input"]["mean"] == wanted, command
        assert found["input"]["resize"] == {"value": 40, "from": "told"}, command
    assert call("run", Path(".gatecli/current").read_text().strip(), "val/a/0.png")["input"][
        "resize"
    ] == {"value": 40, "from": "told"}


def test_an_identified_file_has_the_librarys_pipeline(tmp_path: Path) -> None:
    weights = save_source(tmp_path / "m.pt", "torchvision:efficientnet_b0", num_classes=3)
    spec = load(weights).input
    assert (spec.interpolation, spec.resize, spec.size) == ("bicubic", (256,), (224, 224))
    shapes = {"weight": (1,)}
    with pytest.raises(Exception, match="not those"):
        found_for("torchvision:efficientnet_b0", {}, shapes)


def test_a_baseline_is_measured_anew_on_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of 37 pixels cut to 32 says nothing of 64 cut to 32."""
    monkeypatch.chdir(tmp_path)
    save_source(Path("r.pt"), num_classes=2)
    for split in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            Path(split, name).mkdir(parents=True)
            for index in range(4):
                picture = photograph(40, 40, seed=4 * number + index)
                picture.save(Path(split, name, f"{index}.png"))
    call("attach", "r.pt", "--method", "aig-perbatch")
    how = ["--data", "imagefolder:.", "--epochs", "1", "--batch-size", "4"]
    assert "before training: val" in run("finetune", *how, "--out", "one.safetensors").err
    again = run("finetune", "one.safetensors", *how, "--out", "two.safetensors")
    assert "before training: val" not in again.err
    other = run("finetune", "one.safetensors", *how, "--out", "three.safetensors", "--resize", "64")
    assert other.code == 0 and "before training: val" in other.err


def test_an_onnx_file_prepares_images_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    save_source(Path("r.pt"), num_classes=2)
    photograph(90, 70).save("p.png")
    told = ["--resize", "50x44", "--interpolation", "bicubic", "--mean", "0.4", "--std", "0.3"]
    ours = call("run", "r.pt", "p.png", *told)
    call("export", "r.pt", *told, "--format", "onnx", "--out", "r.onnx")
    theirs = call("run", "r.onnx", "p.png")
    assert theirs["input"] == ours["input"]
    assert ours["input"]["resize"] == {"value": [50, 44], "from": "told"}
    for mine, its in zip(
        ours["predictions"][0]["classes"], theirs["predictions"][0]["classes"], strict=True
    ):
        assert mine["class"] == its["class"]
        assert mine["probability"] == pytest.approx(its["probability"], abs=1e-5)
    plain = call("run", "r.pt", "p.png", "--mean", "0.4", "--std", "0.3")
    difference = plain["predictions"][0]["classes"][0]["probability"]
    assert difference != pytest.approx(
        ours["predictions"][0]["classes"][0]["probability"], abs=1e-6
    )
    call("export", "r.pt", *told, "--format", "weights", "--out", "w.safetensors")
    source = Path("w.py").read_text()
    assert "RESIZE = [50, 44]" in source and "INTERPOLATION = 'bicubic'" in source
