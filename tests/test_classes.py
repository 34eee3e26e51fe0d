"""Which class is which: orders of folders, names in files, counts that differ, names of splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, refused, run, save_source
from PIL import Image

from gatecli.checkpoint import load, write
from gatecli.data import load_data
from gatecli.data.class_names import natural_key, own_numbers
from gatecli.data.classes import matched
from gatecli.data.layout import ALIASES, layout_of
from gatecli.errors import DataError
from gatecli.stages.fit import fit
from gatecli.traced.images import InputSpec

TOY = """
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self, num_classes=12):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.conv(x)
        x = x + self.block(x)
        return self.fc(x.mean((2, 3)))
"""
WAY = ["--arch", "toy:Toy", "--input-size", "16", "--mean", "0", "--std", "1"]
TWELVE = [str(number) for number in range(12)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def greys(classes: int, file: str = "toy.pt") -> list[object]:
    """A network that tells so many levels of grey apart, and how it is read."""
    tensors = {
        "conv.weight": torch.zeros(8, 3, 1, 1),
        "conv.bias": torch.zeros(8),
        "block.0.weight": torch.zeros(8, 8, 3, 3),
        "block.0.bias": torch.zeros(8),
        "block.2.weight": torch.zeros(8, 8, 3, 3),
        "block.2.bias": torch.zeros(8),
        "fc.weight": torch.zeros(classes, 8),
        "fc.bias": torch.zeros(classes),
    }
    level = (torch.arange(classes) + 0.5) / classes
    tensors["conv.weight"][0] = 1 / 3
    tensors["fc.weight"][:, 0] = 200 * level
    tensors["fc.bias"] -= 100 * level**2
    torch.save(tensors, file)
    return [file, *WAY, "--arch-arg", f"num_classes={classes}"]


def folders(root: str, names: list[str], levels: list[int] | None = None, **how: Any) -> str:
    """Class `names[i]` is grey of the level `levels[i]`, of `count`."""
    count = how.get("count", len(names))
    for split in how.get("splits", ("train", "val")):
        for name, level in zip(names, levels or range(len(names)), strict=True):
            place = Path(root, split, name)
            place.mkdir(parents=True)
            value = round(255 * (level + 0.5) / count)
            for number in range(2):
                Image.new("RGB", (20, 20), (value,) * 3).save(place / f"{number}.png")
    return f"imagefolder:{root}"


# --- orders


def test_natural_order_is_timms() -> None:
    names = ["10", "9", "b2", "B10", "a", "Z"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "b2", "B10", "Z"]
    misc = pytest.importorskip("timm.utils.misc")
    assert sorted(names, key=misc.natural_key) == sorted(names, key=natural_key)


def test_folders_of_numbers_sort_in_two_ways(here: Path) -> None:
    """A network trained with timm on 0..11 is right in natural order, and said to be else."""
    how = greys(12)
    data = ["--data", folders("data", TWELVE)]
    by_name = run("eval", *how, *data)
    assert "class 2 is 10" in by_name.err and "--class-order natural" in by_name.err
    assert "classes in order of names (assumed)" in by_name.err
    wrong = call("eval", *how, *data)
    assert wrong["top1"] < 40
    assert wrong["input"]["class_order"] == {"value": "names", "from": "assumed"}
    right = call("eval", *how, *data, "--class-order", "natural")
    assert right["top1"] == 100
    assert right["input"]["class_order"] == {"value": "natural", "from": "told"}
    told = run("eval", *how, *data, "--class-order", "names")
    assert "note: class folders" not in told.err and "in order of names (told)" in told.err


@pytest.mark.parametrize(
    ("names", "differ"),
    [
        (["cat", "dog"], False),
        (["c01", "c10", "c02"], False),
        (["1", "2", "10"], True),
        (["class 9", "class 10"], True),
        (["Zebra", "ant"], True),
    ],
)
def test_only_orders_that_differ_are_told(here: Path, names: list[str], differ: bool) -> None:
    data = load_data(folders("data", names))
    notes = matched(data, InputSpec((16, 16)), len(names)).notes
    assert any("--class-order natural" in note for note in notes) == differ


def test_the_order_is_recorded_and_used_by_later_commands(here: Path) -> None:
    how = greys(12)
    data = ["--data", folders("data", TWELVE)]
    call("attach", *how, "--method", "aig-perbatch", "--class-order", "natural")
    trust = ["--arch", "toy:Toy"]
    tuned = call("finetune", *data, *trust, "--epochs", "1", "--lr", "1e-9")
    assert tuned["baseline_top1"] == 100
    network = load(tuned["out"], "toy:Toy")
    assert network.input.classes == tuple(TWELVE) and network.input.class_order == "natural"
    assert call("eval", *trust)["top1"] == call("eval", *trust, *data)["top1"] == tuned["top1"]
    # a part of the classes is known by its names from then on
    part = ["--data", folders("part", ["10", "3"], [10, 3], count=12)]
    assert call("eval", *trust, *part, "--strategy", "always-on")["top1"] == 100
    # and another order may be told at any time
    assert call("eval", *trust, *data, "--class-order", "names")["top1"] < tuned["top1"]


def test_names_in_the_file_are_matched_by_name(here: Path) -> None:
    greys(3)
    given = folders("data", ["ant", "bee", "cat"], [2, 0, 1])
    network = load("toy.pt", "toy:Toy", arch_args={"num_classes": 3}, input_size=(16, 16))
    said = replace(
        network.input,
        classes=("bee", "cat", "ant"),
        origin={**network.input.origin, "classes": "file"},
    )
    network.recipe = replace(network.recipe, input=said)
    data = fit(network, load_data(given))
    assert data.classes == ("bee", "cat", "ant")
    assert data.splits["val"].labels.tolist() == [2, 2, 0, 0, 1, 1]
    assert any("in another order: matched by name" in note for note in data.notes)
    assert network.input.class_order == "file"
    write(network, here / "own.safetensors")
    how = ["own.safetensors", "--arch", "toy:Toy"]
    told = call("eval", *how, "--data", given, "--class-order", "file")
    assert told["input"]["class_order"] == {"value": "file", "from": "told"}
    others = folders("others", ["eel", "fox", "gnu"])
    line = refused(
        ["eval", *how, "--data", others, "--class-order", "file"], "eel", "bee, cat, ant"
    )
    assert "--class-order names" in line
    said_of = run("eval", *how, "--data", others)
    assert "other class names (bee, cat, ..." in said_of.err and said_of.code == 0
    assert "in order of names (assumed)" in said_of.err


def test_a_list_of_classes_beside_the_data(here: Path) -> None:
    """classes.txt tells which classes a part of them is."""
    how = greys(12)
    data = ["--data", folders("part", ["dog", "cow"], [7, 9], count=12)]
    unknown = run("eval", *how, *data)
    assert unknown.code == 0 and "nothing says which" in unknown.err
    assert "classes.txt" in unknown.err and "--class-order file" in unknown.err
    order = ["--class-order", "file"]
    refused(["eval", *how, *data, *order], "no class names", "classes.txt", "natural")
    names = [f"other{number}" for number in range(12)]
    names[7], names[9] = "dog", "cow"
    listing = Path("part/classes.txt")
    listing.write_text("\n".join(names) + "\n")
    found = run("eval", *how, *data, *order)
    assert call("eval", *how, *data, *order)["top1"] == 100
    assert "no images of class other0, other1" in found.err and "(10 in all)" in found.err
    listing.write_text("\n".join(names[:5]))
    refused(["eval", *how, *data, *order], "12 classes", "names 5")
    listing.write_text("\n".join(["dog", *names[:11]]))
    refused(["eval", *how, *data, *order], "dog", "not once")
    listing.write_bytes(b"\xff\xfe\n")
    refused(["eval", *how, *data, *order], "classes.txt", "UTF-8")


def test_an_order_where_there_is_nothing_to_order(here: Path) -> None:
    how = greys(4)
    images = np.zeros((8, 16, 16, 3), np.uint8)
    np.savez("d.npz", train_images=images, train_labels=np.arange(8) % 4)
    for order in ("names", "natural", "file"):
        refused(
            ["eval", *how, "--data", "npz:d.npz", "--class-order", order], "numbers", "leave it out"
        )


# --- counts


def test_a_part_of_numbered_classes(here: Path) -> None:
    how = greys(12)
    data = ["--data", folders("part", ["3", "7", "11"], [3, 7, 11], count=12)]
    found = run("eval", *how, *data)
    assert "folders' numbers are taken for the classes'" in found.err
    assert "no images of class 0, 1, 2" in found.err
    assert call("eval", *how, *data)["top1"] == 100
    assert own_numbers(["1", "01"]) is None and own_numbers(["a"]) is None
    assert own_numbers(["003", "10"]) == [3, 10]


def test_more_classes_than_the_network_are_refused(here: Path) -> None:
    how = greys(2)
    refused(["eval", *how, "--data", folders("data", ["a", "b", "c"])], "3 classes", "has 2")
    given = folders("typo", ["a", "b"])
    Path("typo/val/b").rename("typo/val/bb")
    refused(["eval", *how, "--data", given], "class bb is in val alone", "has 2")


def labelled(file: str, **labels: Any) -> list[object]:
    arrays = {}
    for split, values in labels.items():
        numbers = np.asarray(values)
        level = np.clip(numbers, 0, 9)
        pixels = np.rint(255 * (level + 0.5) / 10).astype(np.uint8)
        arrays[f"{split}_labels"] = numbers
        arrays[f"{split}_images"] = np.broadcast_to(
            pixels[:, None, None, None], (len(numbers), 16, 16, 3)
        )
    np.savez(file, **arrays)
    return ["--data", f"npz:{file}"]


def test_labels_from_one_on(here: Path) -> None:
    how = greys(10)
    line = refused(
        ["eval", *how, *labelled("one.npz", train=np.arange(40) % 10 + 1)],
        "labels from 1 to 10",
        "no label 0",
        "subtract 1",
    )
    assert "10 classes" in line
    refused(["eval", *how, *labelled("far.npz", train=[0, 11] * 4)], "12 classes", "has 10")


def test_labels_with_gaps(here: Path) -> None:
    how = greys(10)
    some = np.arange(36) % 9
    every = np.arange(40) % 10
    found = run("eval", *how, *labelled("less.npz", train=some, val=every))
    assert found.code == 0 and "train has no images of class 9" in found.err
    assert call("eval", *how, *labelled("less.npz", train=some, val=every))["top1"] == 100
    few = run("eval", *how, *labelled("few.npz", train=some[some != 4], val=some[some != 4]))
    assert "no images of class 4, 9" in few.err
    one = labelled("part.npz", train=[3, 5] * 8, val=[3, 5] * 4)
    assert run("eval", *how, *one).code == 0
    save_source(Path("r20.pt"))
    call("attach", "r20.pt", "--method", "aig-perbatch")
    assert call("finetune", *one, "--epochs", "1", "--batch-size", "8")["out"]
    assert "rates" in call("calibrate", "--max-drop", "90")
    assert call("eval")["samples"] == 8
    assert call("gates")["images"] == 8
    assert call("prune")["out"]
    assert call("attach", "--method", "dgate")["gates"] > 0
    assert call("finetune", "--epochs", "1", "--batch-size", "8")["out"]
    assert call("calibrate", "--max-drop", "90")["shares"]
    assert call("run", Path(".gatecli/current").read_text().strip(), picture())["predictions"]


def picture() -> str:
    Image.new("RGB", (20, 20), (90, 90, 90)).save("one.png")
    return "one.png"


# --- names of splits


@pytest.mark.parametrize("val", [*ALIASES["val"], "Valid", "VAL"])
@pytest.mark.parametrize("train", [*ALIASES["train"], "Train"])
def test_splits_by_other_names(here: Path, train: str, val: str) -> None:
    given = folders("data", ["a", "b"], splits=(train, val, "testing"))
    data = load_data(given)
    assert sorted(data.splits) == ["test", "train", "val"] and data.val is None
    assert data.classes == ("a", "b")
    said = "\n".join(data.notes)
    assert (f"{val} is taken for the val split" in said) == (val != "val")
    assert (f"{train} is taken for the train split" in said) == (train != "train")
    assert "testing is taken for the test split" in said


def test_two_folders_for_one_split(here: Path) -> None:
    given = folders("data", ["a", "b"], splits=("train", "val", "valid"))
    with pytest.raises(DataError, match="one folder for the val split, but got val and valid"):
        load_data(given)


def test_folders_that_are_no_splits(here: Path) -> None:
    given = folders("data", ["a", "b"], splits=("train", "val", "vaild"))
    assert any("vaild beside them is passed over" in note for note in load_data(given).notes)
    given = folders("alone", ["a", "b"], splits=("validation", "testing"))
    with pytest.raises(DataError, match="train beside validation, testing"):
        load_data(given)
    classes = folders("flat", ["dev", "training", "cat"], splits=("",))
    data = load_data(classes)
    assert data.classes == ("cat", "dev", "training") and data.val is not None


def test_images_without_labels_are_said(here: Path) -> None:
    given = folders("data", ["a", "b"])
    Path("data/test").mkdir()
    Path("data/test/1.png").write_bytes(Path("data/train/a/0.png").read_bytes())
    data = load_data(given)
    assert "test" not in data.splits
    assert [note for note in data.notes if "has no class folders" in note]
    assert layout_of("x", Path("data")).folders.keys() == {"train", "val"}
