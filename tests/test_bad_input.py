"""Whatever is wrong with what the user gives.

One line that names it, exit code 1, no code of others run, nothing left behind.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from commandline import (
    SIDE,
    call,
    contents,
    current,
    edit,
    listing,
    refused,
    run,
    save_npz,
    save_source,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from gatecli import checkpoint
from gatecli.architectures import identify, table
from gatecli.errors import GatecliError

GPU = torch.cuda.is_available()
ATTACH = f"--method ind-perbatch --input-size {SIDE}"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files: a source, checkpoints gated in both ways, a pruned one, and data."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(folder / "r20.pt")
        save_npz(folder / "data.npz")
        call("attach", "r20.pt", *ATTACH.split(), "--out", "ind.safetensors")
        call(
            "attach",
            "r20.pt",
            "--method",
            "aig-perbatch",
            "--input-size",
            SIDE,
            "--out",
            "aig.safetensors",
        )
        call("prune", "ind.safetensors", "--out", "pruned.safetensors")
    shutil.rmtree(folder / ".gatecli")
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder that holds the good files."""
    for file in shelf.iterdir():
        os.link(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Evil:
    """Leaves a folder `pwned` behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


# --- files that cannot be read, or should not be ---


def damaged(name: str) -> None:
    good = Path("ind.safetensors").read_bytes()
    header = struct.unpack("<Q", good[:8])[0]
    files: dict[str, Callable[[], bytes]] = {
        "empty.safetensors": lambda: b"",
        "text.pt": lambda: b"not a checkpoint\n",
        "text.safetensors": lambda: b"not a checkpoint\n",
        "length.safetensors": lambda: struct.pack("<Q", 2**40) + good[8:],
        "header.safetensors": lambda: good[: 8 + header // 2],
        "data.safetensors": lambda: good[:-100],
        "longer.safetensors": lambda: good + b"\0",
        "json.safetensors": lambda: good[:8] + b"}" + good[9:],
        "cut.pt": lambda: Path("r20.pt").read_bytes()[:50_000],
        "flipped.pt": lambda: flipped(Path("r20.pt").read_bytes(), 60_000),
    }
    Path(name).write_bytes(files[name]())


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


BROKEN = (
    "empty.safetensors text.pt text.safetensors length.safetensors header.safetensors"
    " data.safetensors longer.safetensors json.safetensors cut.pt flipped.pt"
)


@pytest.mark.parametrize("name", BROKEN.split())
def test_damaged_files(here: Path, name: str) -> None:
    damaged(name)
    for command in (
        f"inspect {name}",
        f"attach {name} {ATTACH}",
        f"prune {name}",
        f"profile {name}",
        f"eval {name} --data digits",
        f"finetune {name} --data digits",
        f"calibrate {name} --target-acc 10 --data digits",
    ):
        refused(command, name)


@pytest.mark.parametrize(
    "command",
    [
        "inspect",
        "attach --method ind-perbatch",
        "prune",
        "finetune --data digits",
        "eval --data digits",
        "profile",
        "log",
        "use",
    ],
)
def test_missing_file_and_folder(here: Path, command: str) -> None:
    refused(f"{command} nofile.pt", "nofile.pt", "does not exist")
    Path("folder.pt").mkdir()
    refused(f"{command} folder.pt", "folder.pt")


HEADER_FLIPS = 25


def test_flipped_bits_in_the_header_never_surprise(here: Path) -> None:
    """A flip there gives an error, or a name, number or setting that is as valid as the old one.

    Flips in the tensors' bytes are another valid number each: safetensors has no checksum, and
    scripts may write tensors of their own under the same recipe, so gatecli adds none. What it can
    see is a number that is not finite, below.
    """
    good = Path("ind.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    chance = np.random.RandomState(0)
    recipe = good.index(b'"gatecli"')
    places = [
        *range(8),
        *chance.randint(8, header, HEADER_FLIPS),
        *chance.randint(recipe, recipe + 2000, HEADER_FLIPS),
    ]
    failed = 0
    for place in places:
        data = bytearray(good)
        data[place] ^= 1 << chance.randint(8)
        Path("flip.safetensors").write_bytes(data)
        try:
            checkpoint.read(Path("flip.safetensors"))
        except GatecliError as error:
            failed += 1
            assert "flip.safetensors" in str(error), (
                place,
                bytes(good[place - 20 : place + 20]),
                error,
            )
    assert failed > len(places) / 2


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_hostile_recipes_never_surprise(
    shelf: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any value of a recipe replaced by any other.

    It is read or refused, by gatecli and not by what it stumbles over.
    """
    tensors, recipe = contents(shelf / "pruned.safetensors")
    spots = list(walk(recipe))
    owner, key = data.draw(st.sampled_from(spots))
    owner[key] = data.draw(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(max_size=5),
            st.just([]),
            st.just({}),
            st.just([{}]),
            st.just({"a": [1]}),
        )
    )
    path = tmp_path_factory.mktemp("hostile") / "hostile.safetensors"
    save_file(tensors, path, {"gatecli": json.dumps(recipe)})
    told = run("log", path)
    assert told.code in (0, 1) and "a bug in gatecli" not in told.err, told.err
    try:
        checkpoint.read(path)
    except GatecliError as error:
        assert "hostile.safetensors" in str(error)


def walk(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, part in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield value, key
        yield from walk(part)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(here: Path, value: float) -> None:
    state = torch.load("r20.pt")
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, "nan.pt")
    refused(f"attach nan.pt {ATTACH}", "nan.pt", "layer2.0.conv1.weight", "finite")


@pytest.mark.parametrize("form", ["plain pickle", "torch.save", "in a state dict", "whole module"])
def test_pickles_do_not_run(here: Path, form: str) -> None:
    with open("evil.pt", "wb") as file:
        if form == "plain pickle":
            pickle.dump(Evil(), file)
        else:
            torch.save(
                {
                    "torch.save": Evil(),
                    "in a state dict": {**torch.load("r20.pt"), "x": Evil()},
                    "whole module": torch.nn.Linear(2, 2),
                }[form],
                file,
            )
    for command in ("inspect evil.pt", f"attach evil.pt {ATTACH}", "eval evil.pt --data digits"):
        refused(command, "evil.pt", "--trust-pickle")
    assert not Path("pwned").exists()


def test_a_pickle_runs_where_it_is_trusted(here: Path) -> None:
    """The other side of the same coin: the test above would see it if a pickle ran."""
    torch.save({"state_dict": Evil()}, "evil.pt")
    refused("inspect evil.pt --trust-pickle", "evil.pt")
    assert Path("pwned").is_dir()


def a_module(name: str, text: str) -> None:
    Path(f"{name}.py").write_text(
        f"import pathlib\npathlib.Path('imported_{name}').mkdir()\n{text}"
    )
    sys.modules.pop(name, None)


def test_a_file_that_names_a_callable(here: Path) -> None:
    a_module(
        "theirs",
        "from gatecli.architectures.cifar import CifarResNet\ndef net():\n    return"
        " CifarResNet(20)\n",
    )
    edit(
        Path("ind.safetensors"),
        Path("named.safetensors"),
        recipe=lambda recipe: recipe["source"].update(arch="theirs:net", arch_args={}),
    )
    for command in (
        "inspect",
        "prune",
        "profile",
        "finetune --data digits",
        "eval --data digits",
        f"attach {ATTACH}",
    ):
        refused(
            f"{command} named.safetensors", "named.safetensors", "theirs:net", "--arch theirs:net"
        )
    assert not Path("imported_theirs").exists()
    assert call("inspect", "named.safetensors", "--arch", "theirs:net")["arch"] == "theirs:net"
    assert Path("imported_theirs").exists()


def test_a_file_that_names_a_function_for_its_data(here: Path) -> None:
    a_module("makers", "def images():\n    raise RuntimeError('I ran')\n")
    edit(
        Path("aig.safetensors"),
        Path("named.safetensors"),
        recipe=lambda recipe: recipe.update(data={"spec": "makers:images", "val": None}),
    )
    for command in ("prune", "finetune", "eval", "calibrate --target-acc 10"):
        refused(f"{command} named.safetensors", "makers:images", "--data")
    assert not Path("imported_makers").exists()
    refused("eval named.safetensors --data makers:images", "makers:images", "I ran")
    assert Path("imported_makers").exists()


# --- what a file says of itself ---


def test_newer_format(here: Path) -> None:
    edit(
        Path("ind.safetensors"),
        Path("new.safetensors"),
        recipe=lambda recipe: recipe.update(format=99),
    )
    for command in (
        "inspect",
        "prune",
        "profile",
        "log",
        "finetune --data digits",
        "eval --data digits",
        "calibrate --target-acc 10 --data digits",
        f"attach {ATTACH}",
    ):
        refused(f"{command} new.safetensors", "new.safetensors", "99", "upgrade gatecli")


def method(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda recipe: recipe["steps"][0]["settings"].update(method=name)


def steps(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda recipe: recipe["steps"][0]["settings"].update(changes)


RECIPES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown method": (method("quantum"), "quantum"),
    "unknown site": (steps(sites=["layer9.9"]), "layer9.9"),
    "unknown setting": (steps(settings={"nope": 1}), "nope"),
    "setting out of range": (steps(settings={"target_rate": 7}), "target_rate"),
    "a site less": (lambda recipe: recipe["steps"][0]["settings"]["sites"].pop(), "gates."),
    "unknown architecture": (
        lambda recipe: recipe["source"].update(arch="torchvision:nope"),
        "nope",
    ),
    "another architecture": (
        lambda recipe: recipe["source"].update(arch="cifar:resnet32"),
        "layer",
    ),
    "architecture arguments": (
        lambda recipe: recipe["source"].update(arch_args={"weights": "DEFAULT"}),
        "weights",
    ),
    "no steps": (lambda recipe: recipe.pop("steps"), "steps"),
    "format is a word": (lambda recipe: recipe.update(format="one"), "damaged"),
    "huge images": (lambda recipe: recipe["input"].update(size=[10**9, 10**9]), "input size"),
}


@pytest.mark.parametrize("what", RECIPES)
def test_recipes_that_cannot_be_followed(here: Path, what: str) -> None:
    change, word = RECIPES[what]
    edit(Path("ind.safetensors"), Path("odd.safetensors"), recipe=change)
    refused("inspect odd.safetensors", "odd.safetensors", word)


def test_a_plan_for_a_site_that_is_not_gated(here: Path) -> None:
    edit(
        Path("pruned.safetensors"),
        Path("odd.safetensors"),
        recipe=lambda recipe: recipe["steps"][1]["settings"].update(plan={"layer9.9": []}),
    )
    refused("inspect odd.safetensors", "odd.safetensors", "layer9.9")


def test_tensors_that_do_not_match_the_recipe(here: Path) -> None:
    edit(
        Path("ind.safetensors"), Path("less.safetensors"), tensors=lambda held: held.pop("fc.bias")
    )
    refused("inspect less.safetensors", "less.safetensors", "fc.bias")
    edit(
        Path("ind.safetensors"),
        Path("more.safetensors"),
        tensors=lambda held: held.update(extra=torch.zeros(2)),
    )
    refused("inspect more.safetensors", "more.safetensors", "extra")
    edit(
        Path("ind.safetensors"),
        Path("odd.safetensors"),
        tensors=lambda held: held.update({"fc.bias": torch.zeros(3)}),
    )
    refused("inspect odd.safetensors", "odd.safetensors", "fc.bias", "(3,)")


# --- architectures ---


def test_state_dicts_that_fit_none_or_several(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"conv.weight": torch.randn(3, 3)}, "odd.pt")
    refused("inspect odd.pt", "odd.pt", "--arch", "nearest")
    torch.save(torch.randn(3), "tensor.pt")
    refused("inspect tensor.pt", "tensor.pt", "state dict")
    torch.save({"epoch": 3}, "none.pt")
    refused("inspect none.pt", "none.pt", "epoch")
    twice = tuple(row for row in table.table() for _ in range(2))
    monkeypatch.setattr(identify, "table", lambda: twice)
    refused("inspect r20.pt", "r20.pt", "several", "cifar:resnet20", "--arch")


ARCHES = {
    "--arch torchvision:resnet50": ["torchvision:resnet50", "tensors differ"],
    "--arch torchvision:nope": ["torchvision:nope", "nearest"],
    "--arch resnet20": ["resnet20", "torchvision:NAME"],
    "--arch nosuchmodule:net": ["nosuchmodule"],
    "--arch torch.nn:Nothing": ["Nothing"],
    "--arch torch.nn:Linear": ["torch.nn:Linear"],
    "--arch cifar:resnet20 --arch-arg num_classes=7": ["fc.weight", "7"],
    "--arch cifar:resnet20 --arch-arg depth=3": ["depth"],
    "--arch cifar:resnet20 --arch-arg num_classes": ["--arch-arg", "num_classes"],
    "--arch cifar:resnet20 --arch-arg num_classes=many": ["num_classes", "many"],
    "--arch cifar:resnet20 --arch-arg num_classes=10 --arch-arg num_classes=11": [
        "num_classes",
        "twice",
    ],
    "--arch-arg weights=DEFAULT": ["weights"],
}


@pytest.mark.parametrize("options", ARCHES)
def test_wrong_architectures(here: Path, options: str) -> None:
    refused(f"inspect r20.pt {options}", *ARCHES[options])


def test_an_own_checkpoint_has_its_architecture(here: Path) -> None:
    refused(
        "inspect ind.safetensors --arch torchvision:resnet18",
        "ind.safetensors",
        "cifar:resnet20",
        "torchvision:resnet18",
    )


def test_names_without_weights(here: Path) -> None:
    refused("inspect torchvision:nope", "torchvision:nope")
    refused("inspect cifar:resnet20", "cifar:resnet20")


@pytest.mark.parametrize("size", ["0", "-8", "x", "8x", "8x8x8", "1e9", "99999", "8.5"])
def test_input_sizes(here: Path, size: str) -> None:
    refused(["inspect", "r20.pt", "--input-size", size], "--input-size", size)


def test_a_network_that_does_not_take_such_images(here: Path) -> None:
    a_module(
        "fixed",
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3),"
        " nn.Flatten(), nn.Linear(4 * 14 * 14, 10))\n",
    )
    torch.save(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 10)
        ).state_dict(),
        "fixed.pt",
    )
    refused("inspect fixed.pt --arch fixed:net --input-size 32", "3 x 32 x 32", "--input-size")
    assert (
        call("inspect", "fixed.pt", "--arch", "fixed:net", "--input-size", 16)["num_classes"] == 10
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--mean", "a,b"),
        ("--mean", "nan"),
        ("--std", "0"),
        ("--std", "1,-1,1"),
        ("--std", "inf"),
        ("--mean", ""),
        ("--mean", "1,2"),
    ],
)
def test_normalisation(here: Path, option: str, value: str) -> None:
    refused(
        ["eval", "r20.pt", "--data", "npz:data.npz", "--input-size", SIDE, option, value], option
    )


# --- methods and their settings ---

SETTINGS = {
    "nope=1": ["nope", "target_rate"],
    "target_rat=.5": ["target_rat", "did you mean `target_rate`"],
    "target_rate=7": ["target_rate", "between 0", "7"],
    "target_rate=-.1": ["target_rate"],
    "target_rate=x": ["target_rate", "a number", "x"],
    "target_rate=": ["target_rate"],
    "target_rate=nan": ["target_rate", "nan"],
    "loss_weight=inf": ["loss_weight", "inf"],
    "gate_lr=inf": ["gate_lr", "inf"],
    "gate_lr=1e300": ["gate_lr", "1e300"],
    "gate_weight_decay=1e300": ["gate_weight_decay", "1e300"],
    "loss_weight=1e300": ["loss_weight", "1e300"],
    "target_rate": ["name=value", "target_rate"],
    "=.5": ["name=value"],
    "hidden=2.5": ["hidden", "whole number"],
    "hidden=0": ["hidden", "1"],
    "loss_form=cubic": ["loss_form", "const-quad", "cubic"],
    "target_rate=true": ["target_rate", "true"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(here: Path, setting: str) -> None:
    refused(
        f"attach r20.pt --method aig-perbatch --input-size {SIDE} --set {setting}",
        *SETTINGS[setting],
    )


@pytest.mark.parametrize("setting", ["nope=1", "target_rate=7", "loss_weight=inf", "target_rate"])
def test_settings_at_finetune(here: Path, setting: str) -> None:
    refused(f"finetune aig.safetensors --data npz:data.npz --set {setting}", *SETTINGS[setting])
    assert not Path(".gatecli").exists()


def test_a_setting_that_shapes_the_gates_stays(here: Path) -> None:
    refused("finetune aig.safetensors --data npz:data.npz --set hidden=4", "hidden", "attach again")


def test_nothing_to_gate(here: Path) -> None:
    torch.save(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(4, 10),
        ).state_dict(),
        "chain.pt",
    )
    Path("chain.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    save_source(Path("squeezenet.pt"), "torchvision:squeezenet1_1", num_classes=5)
    for name in ("aig-perbatch", "ind-perbatch"):
        refused(
            f"attach chain.pt --arch chain:net --input-size 16 --method {name}",
            name,
            "chain:net",
            "residual",
        )
        refused(
            "attach squeezenet.pt --arch torchvision:squeezenet1_1 --input-size 32 --method"
            f" {name}",
            name,
            "squeezenet1_1",
            "residual",
        )


def test_methods_and_sites(here: Path) -> None:
    refused("attach r20.pt", "--method", "aig-perbatch")
    refused("attach r20.pt --method quantum", "quantum", "ind-perbatch")
    refused("methods quantum", "quantum", "ind-perbatch")
    refused(f"attach ind.safetensors {ATTACH}", "ind-perbatch", "gates already", "prune")
    refused(f"attach r20.pt {ATTACH} --include layer9.*", "layer9.*", "layer1.0")
    refused(f"attach r20.pt {ATTACH} --exclude *", "--exclude")


@pytest.mark.parametrize("file", ["r20.pt", "pruned.safetensors"])
def test_no_gates(here: Path, file: str) -> None:
    refused(f"finetune {file} --data npz:data.npz", "no gates", "gatecli attach")
    refused(f"prune {file}", "no gates", "gatecli attach")
    assert not Path(".gatecli").exists()


def test_prune_without_rates(here: Path) -> None:
    refused("prune aig.safetensors", "layer1.0", "--data")
    refused("prune aig.safetensors --static .5", "layer1.0", "--data")


# --- data ---


def a_folder(change: str) -> None:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            Path("images", split, name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 9), (number * 50, 0, 0)).save(
                    f"images/{split}/{name}/{number}.png"
                )
    spoil(change)


def spoil(change: str) -> None:
    if change == "corrupt":
        Path("images/train/bee/1.png").write_bytes(Path("images/train/bee/1.png").read_bytes()[:40])
    elif change == "corrupt in val":
        Path("images/val/ant/1.png").write_bytes(b"no image")
    elif change == "empty class":
        for file in Path("images/train/bee").iterdir():
            file.unlink()
    elif change == "no images":
        for file in list(Path("images").rglob("*.png")):
            file.rename(file.with_suffix(".txt"))


FOLDERS = {
    "corrupt": "images/train/bee/1.png",
    "corrupt in val": "images/val/ant/1.png",
    "empty class": "images/train/bee",
    "no images": "images",
}


@pytest.mark.parametrize("what", FOLDERS)
def test_image_folders(here: Path, what: str) -> None:
    a_folder(what)
    save_source(Path("two.pt"), num_classes=2)
    call("attach", "two.pt", *ATTACH.split(), "--out", "two.safetensors")
    refused(
        "finetune two.safetensors --data imagefolder:images --batch-size 4 --epochs 1",
        FOLDERS[what],
    )
    assert current() == "two.safetensors"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_image_in_a_worker(here: Path, split: str) -> None:
    a_folder("corrupt")
    save_source(Path("two.pt"), num_classes=2)
    if split == "train":
        refused(
            "eval two.pt --data imagefolder:images --split train --input-size 8 --workers 1",
            "images/train/bee/1.png",
        )
    else:
        assert (
            run(
                "eval", "two.pt", "--data", "imagefolder:images", "--input-size", 8, "--workers", 1
            ).code
            == 0
        )


def test_folders_and_files_of_data(here: Path) -> None:
    Path("empty").mkdir()
    np.savez("keys.npz", train_images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(4, np.uint8))
    np.savez("objects.npz", train_images=np.array([None, 1]), train_labels=np.zeros(2, np.uint8))
    np.savez(
        "counts.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.zeros(3, np.uint8)
    )
    np.savez("floats.npz", train_images=np.zeros((4, 8, 8)), train_labels=np.zeros(4, np.uint8))
    np.save("array.npy", np.zeros(3))
    Path("cut.npz").write_bytes(Path("data.npz").read_bytes()[:3000])
    Path("flip.npz").write_bytes(flipped(Path("data.npz").read_bytes(), 3000))
    a_module("broken", "def images():\n    return 3\n")
    for spec, words in {
        "imagefolder:empty": ["empty"],
        "imagefolder:nowhere": ["nowhere"],
        "npz:nofile.npz": ["nofile.npz"],
        "npz:r20.pt": ["r20.pt", "train_images"],
        "npz:empty": ["empty"],
        "npz:keys.npz": ["keys.npz", "train_labels"],
        "npz:objects.npz": ["objects.npz"],
        "npz:counts.npz": ["counts.npz", "labels"],
        "npz:floats.npz": ["floats.npz", "uint8"],
        "npz:array.npy": ["array.npy"],
        "npz:cut.npz": ["cut.npz"],
        "npz:flip.npz": ["flip.npz"],
        "nope": ["nope", "digits"],
        "npz:": ["npz:"],
        "cifar10": ["cifar10"],
        "": ["--data"],
        "nosuch:images": ["nosuch"],
        "broken:nothing": ["broken", "nothing"],
        "broken:images": ["broken:images", "train"],
    }.items():
        refused(["eval", "r20.pt", "--input-size", SIDE, "--data", spec], *words)


def test_no_data_named(here: Path) -> None:
    for command in ("eval r20.pt --input-size 8", "finetune ind.safetensors"):
        refused(command, "--data digits")


def test_data_that_is_gone(here: Path) -> None:
    shutil.copy("data.npz", "mine.npz")
    call(
        "finetune",
        "ind.safetensors",
        "--data",
        "npz:mine.npz",
        "--epochs",
        1,
        "--batch-size",
        48,
        "--out",
        "tuned.safetensors",
    )
    Path("mine.npz").unlink()
    for command in ("eval", "finetune"):
        refused(command, "mine.npz")


def test_other_class_counts(here: Path) -> None:
    save_source(Path("seven.pt"), num_classes=7)
    call("attach", "seven.pt", *ATTACH.split(), "--out", "seven.safetensors")
    for command in (
        "eval seven.pt --input-size 8",
        "eval seven.safetensors",
        "finetune seven.safetensors",
        "profile seven.safetensors",
    ):
        refused(f"{command} --data npz:data.npz", "data.npz", "10 classes", "7")


def test_choices(here: Path) -> None:
    data = f"--data npz:data.npz --input-size {SIDE}"
    refused(f"eval r20.pt {data} --split holdout", "--split", "train, val, test", "holdout")
    refused(f"eval r20.pt {data} --strategy guess", "--strategy", "always-on", "guess")
    refused(f"finetune ind.safetensors {data} --augment imagenet", "imagenet")


def test_one_training_image(here: Path) -> None:
    with np.load("data.npz") as data:
        np.savez(
            "one.npz",
            **{
                name: array[:1] if name.startswith("train") else array
                for name, array in data.items()
            },
        )
        np.savez(
            "single.npz",
            **{
                name: np.zeros_like(array[:1]) if "label" in name else array[:1]
                for name, array in data.items()
            },
        )
    save_source(Path("one.pt"), num_classes=1)
    call("attach", "one.pt", *ATTACH.split(), "--out", "one.safetensors")
    refused(
        "finetune one.safetensors --data npz:single.npz --epochs 1",
        "single.npz",
        "2 training images",
    )
    refused("finetune ind.safetensors --data npz:one.npz --epochs 1", "one.npz")


# --- outputs ---

WRITERS = {
    f"attach r20.pt {ATTACH}": "r20.ind-perbatch.safetensors",
    "prune ind.safetensors": "ind.pruned.safetensors",
    "finetune ind.safetensors --data npz:data.npz --epochs 1 --batch-size 48": (
        "ind.tuned.safetensors"
    ),
}


@pytest.mark.parametrize("command", WRITERS)
def test_where_an_output_cannot_go(here: Path, command: str) -> None:
    Path(WRITERS[command]).write_bytes(b"mine")
    refused(command, WRITERS[command], "--force")
    Path("old.safetensors").write_bytes(b"mine")
    refused(f"{command} --out old.safetensors", "old.safetensors", "--force")
    source = command.split()[1]
    for force in ("", " --force"):
        refused(f"{command} --out {source}{force}", source, "never overwrites")
        refused(f"{command} --out ./{source}{force}", source, "never overwrites")
    refused(f"{command} --out nowhere/x.safetensors", "nowhere/x.safetensors", "nowhere")
    refused(f"{command} --out old.safetensors/x.safetensors", "old.safetensors/x.safetensors")
    Path("folder").mkdir()
    refused(f"{command} --out folder --force", "folder")
    assert not Path(".gatecli/current").exists()


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_is_not_writable(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    Path("locked").mkdir(0o500)
    if os.geteuid() == 0:  # root may write everywhere but on a read-only disk
        monkeypatch.setattr("os.access", lambda path, mode: str(path) != "locked")
    refused(f"{command} --out locked/x.safetensors", "locked", "writable")


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("stage", ["writing", "flushing"])
def test_the_disk_is_full(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str, stage: str
) -> None:
    if stage == "flushing":
        monkeypatch.setattr("gatecli.checkpoint.atomic.os.fsync", full)
    else:
        monkeypatch.setattr("gatecli.checkpoint.saving.save_file", partly)
    refused(command, "cannot write", "safetensors", "No space left")
    assert not Path(".gatecli/current").exists()
    assert not list(Path().rglob("*.tmp"))


def partly(tensors: Any, path: Path, metadata: Any) -> None:
    Path(path).write_bytes(b"the first bytes")
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


@pytest.mark.parametrize("good", [1, 3])
def test_the_disk_is_full_in_the_middle_of_a_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    """The state saved before stays, and the training goes on from it once there is room."""
    command = (
        "finetune ind.safetensors --data npz:data.npz --epochs 2 --batch-size 48 --save-every 0"
    )
    saves: list[Path] = []

    def some(tensors: Any, path: Path, metadata: Any) -> None:
        saves.append(path)
        (save_file if len(saves) <= good else partly)(tensors, path, metadata)

    monkeypatch.setattr("gatecli.checkpoint.saving.save_file", some)
    refused(command, "state.safetensors", "No space left")
    assert not list(Path().rglob("*.tmp"))
    monkeypatch.setattr("gatecli.checkpoint.saving.save_file", save_file)
    call("finetune", "--resume")
    call(*command.split(), "--out", "straight.safetensors")
    assert all(
        torch.equal(tensor, contents("straight.safetensors")[0][name])
        for name, tensor in contents("ind.tuned.safetensors")[0].items()
    )


def test_the_log_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".gatecli/runs/ind.tuned").mkdir(parents=True)
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return full() if self.name == "log.jsonl" else opened(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", refuse)
    refused(
        "finetune ind.safetensors --data npz:data.npz --epochs 1 --batch-size 48",
        "log.jsonl",
        "No space left",
    )


def test_the_run_folder_cannot_be_made(here: Path) -> None:
    Path(".gatecli").write_text("a file where a folder should be")
    refused("finetune ind.safetensors --data npz:data.npz --epochs 1", ".gatecli")
    done = run("use", "ind.safetensors")
    assert done.code == 1 and ".gatecli" in done.last


# --- the current checkpoint ---


@pytest.mark.parametrize(
    "command",
    [
        "inspect",
        "attach --method ind-perbatch",
        "prune",
        "profile",
        "log",
        "finetune --data digits",
        "eval --data digits",
        "calibrate --target-acc 10",
    ],
)
def test_no_current_checkpoint(here: Path, command: str) -> None:
    refused(command, "current")
    Path(".gatecli").mkdir()
    Path(".gatecli/current").write_bytes(b"\xff\xfe")
    refused(command, "current")
    Path(".gatecli/current").write_text("gone.safetensors\n")
    refused(command, "current", "gone.safetensors", "gatecli use")
    Path(".gatecli/current").write_text("..\n")
    refused(command, "current")


def test_the_current_checkpoint_is_deleted(here: Path) -> None:
    call("attach", "r20.pt", *ATTACH.split())
    Path("r20.ind-perbatch.safetensors").unlink()
    refused("inspect", "r20.ind-perbatch.safetensors", "gatecli use")


def test_a_failure_leaves_the_current_checkpoint(here: Path) -> None:
    call("use", "ind.safetensors")
    refused("attach r20.pt --method ind-perbatch --set nope=1", "nope")
    refused("prune --collapse 7", "--collapse")
    assert current() == "ind.safetensors"


def test_log_of_what_is_none(here: Path) -> None:
    refused("log r20.pt", "r20.pt", "no gatecli checkpoint")
    refused("log data.npz", "data.npz", "no gatecli checkpoint")


# --- numbers ---


@pytest.mark.parametrize(
    "device",
    [
        "tpu",
        "cpu:1",
        "cuda:x",
        "cuda:-1",
        "",
        "mps",
        "cuda:99",
        *([] if GPU else ["cuda", "cuda:0"]),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "profile r20.pt",
        "eval r20.pt --data digits",
        f"attach r20.pt {ATTACH}",
        "finetune ind.safetensors --data digits",
        "prune ind.safetensors",
    ],
)
def test_devices(here: Path, command: str, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    refused([*command.split(), "--device", device], "--device", device)


NUMBERS = {
    "--epochs": ["0", "-1"],
    "--lr": ["nan", "-1", "inf", "1e300"],
    "--batch-size": ["0", "1", "-5"],
    "--weight-decay": ["nan", "-1", "inf"],
    "--momentum": ["nan", "-.1", "1.1"],
    "--label-smoothing": ["nan", "-.1", "1.5"],
    "--workers": ["-1"],
    "--bn-batches": ["-1"],
    "--save-every": ["nan", "-1", "inf"],
    "--seed": ["-1", str(2**32), str(10**30)],
    "--threads": ["0", "-2", "100000"],
    "--schedule": ["linear", ""],
    "--precision": ["fp8"],
    "--augment": ["mixup", ""],
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in NUMBERS.items() for value in values]
)
def test_options_of_finetune(here: Path, option: str, value: str) -> None:
    refused(["finetune", "ind.safetensors", "--data", "npz:data.npz", option, value], option)
    assert not Path(".gatecli").exists()


@pytest.mark.parametrize(
    "options", ["--batch-size 0", "--batch-size -1", "--workers -1", "--threads 0", "--seed -1"]
)
def test_options_of_eval(here: Path, options: str) -> None:
    name = options.split()[0].removeprefix("--")
    assert re.search(
        name.replace("-", "[-_]"),
        refused(f"eval r20.pt --data npz:data.npz --input-size {SIDE} {options}"),
    )


@pytest.mark.parametrize(
    "options",
    [
        "--batch 0",
        "--batch -1",
        "--batch x",
        "--batch 1,,2",
        "--batch 1.5",
        "--repeats 2",
        "--repeats -1",
    ],
)
def test_options_of_profile(here: Path, options: str) -> None:
    refused(f"profile ind.safetensors {options}", options.split()[0])
    refused(["profile", "ind.safetensors", "--batch", ""], "--batch")


@pytest.mark.parametrize(
    "options",
    [
        "--threshold nan",
        "--threshold inf",
        "--collapse nan",
        "--collapse -.1",
        "--collapse .6",
        "--static nan",
        "--static 2",
        "--static -1",
    ],
)
def test_options_of_prune(here: Path, options: str) -> None:
    refused(f"prune ind.safetensors {options}", options.split()[0])


def test_profiles_of_different_images(here: Path) -> None:
    call(
        "attach",
        "r20.pt",
        "--method",
        "ind-perbatch",
        "--input-size",
        16,
        "--out",
        "large.safetensors",
    )
    refused("profile ind.safetensors large.safetensors", "8x8", "16x16")


@pytest.mark.parametrize("lr", ["1e10", "1e30"])
def test_a_training_that_diverges(here: Path, lr: str) -> None:
    """The step is named, and the last good state is where the message says."""
    line = refused(
        f"finetune ind.safetensors --data npz:data.npz --epochs 3 --batch-size 32 --lr {lr}",
        "step",
        "--lr",
        ".gatecli/runs/ind.tuned",
    )
    told = re.search(
        r"stopped at step (\d+): .*last good state, of step (\d+), is in (\S+)\. ", line
    )
    assert told is not None and int(told[1]) > int(told[2]), line
    with safetensors.safe_open(Path(told[3], "state.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["position"])["step"] == int(told[2])
        tensors = [file.get_tensor(name) for name in file.keys()]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_memory_that_is_not_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr("gatecli.stages.predict.predict", lack)
    monkeypatch.setattr("gatecli.stages.evaluate.predict", lack)
    refused(f"eval r20.pt --data npz:data.npz --input-size {SIDE}", "not enough memory", "9 GiB")


# --- how it is told ---


def test_usage_errors_exit_2(here: Path) -> None:
    before = listing()
    for args in (
        "attach --nope",
        "nope",
        "inspect a b",
        "finetune --epochs x",
        "finetune --lr fast",
        "use",
        "prune --threshold high",
        "profile --repeats many",
    ):
        done = run(*args.split())
        assert (done.code, done.out) == (2, "") and "Traceback" not in done.err, args
    assert listing() == before


def test_debug_shows_where(here: Path) -> None:
    from typer.testing import CliRunner

    from gatecli.cli.app import app

    result = CliRunner().invoke(app, ["inspect", "nofile.pt", "--debug"])
    assert isinstance(result.exception, GatecliError) and result.exit_code == 1


def test_a_bug_is_one_line_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatecli.checkpoint.read", lambda *_: 1 / 0)
    done = run("inspect", "r20.pt")
    assert (
        done.code == 1
        and done.last.startswith("error: ZeroDivisionError")
        and "--debug" in done.last
    )


def test_errors_leave_stdout_to_json(here: Path) -> None:
    refused("inspect nofile.pt --json", "nofile.pt")
    refused("inspect nofile.pt --json --quiet", "nofile.pt")


@pytest.mark.parametrize("name", ["[bold]x.pt", "a b.pt", "ünï.pt", ":smile:.pt"])
def test_odd_file_names_are_told_as_they_are(here: Path, name: str) -> None:
    shutil.copy("r20.pt", name)
    refused(["inspect", f"no{name}"], f"no{name}")
    call("attach", name, *ATTACH.split())
    gated = Path(name).stem + ".ind-perbatch.safetensors"
    assert current() == gated
    done = run("log")
    assert done.code == 0 and gated in done.out and name in done.out
