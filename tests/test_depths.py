"""Image files of all depths and modes, and networks of one channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import call, refused, run, save_source
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.transforms import functional as TF

from gatecli.data.folders import opened
from gatecli.errors import DataError

Save = Callable[[np.ndarray, Path], None]


def ramp(dtype: type, most: float) -> np.ndarray:
    return np.rint(np.linspace(0, most, 256)).astype(dtype).reshape(16, 16)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sixteen_bits_are_shares_of_65535(tmp_path: Path, ending: str, mode: str) -> None:
    file = tmp_path / f"deep.{ending}"
    Image.fromarray(ramp(np.uint16, 65535)).save(file)
    found = np.asarray(opened(str(file), mode))
    assert np.array_equal(found if mode == "L" else found[..., 0], ramp(np.uint8, 255))


def test_floats_from_0_to_1_are_shares(tmp_path: Path) -> None:
    file = tmp_path / "float.tif"
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(file)
    assert np.array_equal(np.asarray(opened(str(file), "L")), ramp(np.uint8, 255))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 4), 200.0, np.float32), "float, from 200 to 200"),
        (np.full((4, 4), -0.5, np.float32), "float, from -0.5"),
        (np.full((4, 4), np.nan, np.float32), "float, from nan"),
        (np.full((4, 4), np.inf, np.float32), "float, from inf"),
        (np.full((4, 4), 70000, np.int32), "32 bits"),
    ],
)
def test_other_depths_are_refused_by_name(tmp_path: Path, values: np.ndarray, words: str) -> None:
    file = tmp_path / "odd.tif"
    Image.fromarray(values).save(file)
    with pytest.raises(DataError, match=words):
        opened(str(file), "RGB")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_are_converted_as_torchvision_does(tmp_path: Path, mode: str) -> None:
    """Palettes, alpha (dropped), CMYK and one bit; an orientation in the file is not followed."""
    noise = np.random.RandomState(0).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).convert(mode).save(file, exif=exif)
    ours, theirs = opened(str(file), "RGB"), default_loader(str(file))
    assert torch.equal(TF.pil_to_tensor(ours), TF.pil_to_tensor(theirs))
    grey = TF.pil_to_tensor(opened(str(file), "L")).int()
    assert (grey - TF.pil_to_tensor(theirs.convert("L")).int()).abs().max() <= 1


@pytest.fixture
def grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A network of one channel, and colour files."""
    monkeypatch.chdir(tmp_path)
    save_source(Path("grey.pt"), num_classes=2, channels=1)
    for split in ("train", "val"):
        for value, name in ((40, "a"), (200, "b")):
            Path(split, name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 40), (value, 90, 10)).save(Path(split, name, f"{number}.png"))
    return ["grey.pt"]


def test_one_channel_asks_for_its_normalisation(grey: list[object]) -> None:
    """ImageNet's numbers are of three channels: nothing is guessed."""
    for command in (["eval", *grey, "--data", "imagefolder:."], ["run", *grey, "val/a/0.png"]):
        refused(command, "1 channel", "turned to grey", "--mean and --std")
        refused([*command, "--mean", "0.5"], "(--std is missing)")
        refused([*command, "--mean", ".4,.4,.4", "--std", ".2,.2,.2"], "1 number", "got 3")


def test_one_channel_on_colour_files(grey: list[object]) -> None:
    told = ["--mean", "0.45", "--std", "0.225"]
    found = run("eval", *grey, "--data", "imagefolder:.", *told)
    assert found.code == 0 and "images: 32x32 grey" in found.err
    assert "mean 0.45 std 0.225 (told)" in found.err
    assert call("eval", *grey, "--data", "imagefolder:.", *told)["input"]["channels"] == {
        "value": 1,
        "from": "file",
    }
    assert call("run", *grey, "val/a/0.png", *told)["predictions"][0]["classes"]


def test_an_npz_has_statistics_of_its_own(grey: list[object]) -> None:
    images = np.random.RandomState(0).randint(0, 60, (20, 28, 28, 3)).astype(np.uint8)
    labels = np.arange(20) % 2
    np.savez("d.npz", train_images=images, train_labels=labels)
    save_source(Path("r18.pt"), "torchvision:resnet18", num_classes=2)
    how = ["--data", "npz:d.npz", "--input-size", "32"]
    found = run("eval", "r18.pt", *how)
    assert "normalised with the library's numbers" in found.err and "--mean 0.11" in found.err
    assert "scaled whole (data)" in found.err and "(library); classes by number" in found.err
    told = run("eval", "r18.pt", *how, "--mean", "0.115", "--std", "0.068")
    assert "of its own" not in told.err
    save_source(Path("r20.pt"), num_classes=2)
    own = run("eval", "r20.pt", *how)
    assert "of its own" not in own.err and "(data); classes by number" in own.err
