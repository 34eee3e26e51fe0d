"""Data sets and batches, on made data: no network, no files but those in tmp_path."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import io
import subprocess
import sys
import urllib.error
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import CIFAR10

import gatecli.data as public
from gatecli.data import (
    AUGMENTS,
    Split,
    Walk,
    arrays,
    batches,
    forms,
    load_data,
    prepare,
    splits,
    steps,
)
from gatecli.data.augment import PIXELS, crop_flip, generator, shift
from gatecli.data.folders import random_crop
from gatecli.data.forms import base
from gatecli.data.prepare import centre_crop
from gatecli.errors import DataError, SettingError
from gatecli.traced.recipe import InputSpec

GREY = InputSpec((8, 8), 3, (0.5,), (0.25,))
COLOUR = InputSpec((16, 16), 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
Arrays = dict[str, Any]


def made(
    count: int = 40, classes: int = 4, side: int = 8, colour: bool = False, seed: int = 0
) -> tuple[Any, Any]:
    chance = np.random.RandomState(seed)
    shape = (count, side, side, 3) if colour else (count, side, side)
    return (
        chance.randint(0, 256, shape).astype(np.uint8),
        (np.arange(count) % classes).astype(np.uint8)[:, None],
    )


def keys(**parts: tuple[Any, Any]) -> Arrays:
    return {
        f"{name}_{what}": array
        for name, pair in parts.items()
        for what, array in zip(("images", "labels"), pair, strict=True)
    }


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    def save(given: Mapping[str, Any]) -> str:
        np.savez(tmp_path / "data.npz", **given)
        return f"npz:{tmp_path / 'data.npz'}"

    return save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and val/ with three classes; images of several sizes and modes."""
    chance = np.random.RandomState(0)
    for name, count in (("train", 4), ("val", 2)):
        for label, kind in enumerate(("ant", "bee", "cat")):
            (tmp_path / name / kind).mkdir(parents=True)
            for number in range(count):
                pixels = chance.randint(0, 256, (20 + 3 * number, 30 - 4 * number, 3)).astype(
                    np.uint8
                )
                image = Image.fromarray(pixels).convert(("RGB", "L", "RGBA")[label])
                image.save(tmp_path / name / kind / f"{number}.png")
    return tmp_path


def walk(split: Split, **settings: Any) -> list[tuple[Tensor, Tensor]]:
    return list(started(split, **{"batch_size": 7, **settings}))


def started(split: Split, **settings: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """`batches`, with a walk's settings beside its own."""
    names = {each.name for each in dataclasses.fields(Walk)}
    walk = Walk(**{name: value for name, value in settings.items() if name in names})
    others = {name: value for name, value in settings.items() if name not in names}
    return batches(split, **{"input": GREY, "batch_size": 4, "walk": walk, **others})


def same(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True)
    )


def refused(spec: str, *parts: str, **settings: Any) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec, **settings)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# ---- data sets


def test_public_names() -> None:
    assert all(hasattr(public, name) for name in public.__all__)


def test_digits_are_fixed_and_balanced() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1169,
        "val": 269,
        "test": 359,
    }
    assert data.classes == tuple("0123456789") and data.augment == "shift" and data.val is None
    for split in data.splits.values():
        counts = torch.bincount(split.labels)
        assert counts.max() - counts.min() <= 7
    again = load_data("digits", val_seed=5)
    assert all(same(walk(data.splits[name]), walk(again.splits[name])) for name in data.splits)
    x, _ = walk(data.splits["val"], batch_size=269)[0]
    assert x.shape == (269, 3, 8, 8) and x.min() == -2 and x.max() == 2


def test_npz_with_all_splits(npz: Callable[..., str]) -> None:
    train, val, test = made(40), made(12, seed=1), made(8, seed=2)
    given = npz(keys(train=train, val=val, test=test))
    data = load_data(given)
    assert (
        data.spec == given
        and data.classes == ("0", "1", "2", "3")
        and data.augment == "shift"
        and data.val is None
    )
    assert data.mean == pytest.approx(
        ((train[0] / 255).mean(),), abs=1e-12
    ) and data.std == pytest.approx(((train[0] / 255).std(),), abs=1e-12)
    x, y = walk(data.splits["test"], batch_size=8)[0]
    expected = (
        torch.from_numpy(test[0]).float().div(255).sub(0.5).div(0.25)[:, None].expand(-1, 3, -1, -1)
    )
    assert torch.equal(x, expected) and x.is_contiguous() and x.dtype == torch.float32
    assert y.tolist() == test[1].ravel().tolist() and y.dtype == torch.int64


def test_statistics_of_colours_and_of_constant_images(npz: Callable[..., str]) -> None:
    images, labels = made(colour=True)
    images[..., 2] = 51
    data = load_data(npz(keys(train=(images, labels), val=(images, labels))))
    assert data.mean == pytest.approx([*(images / 255).mean((0, 1, 2))[:2], 0.2])
    assert data.std == pytest.approx([*(images / 255).std((0, 1, 2))[:2], 1.0])


def test_val_is_cut_from_train_by_class(npz: Callable[..., str]) -> None:
    images = np.arange(100, dtype=np.uint8).repeat(64).reshape(100, 8, 8)
    labels = np.array([0] * 70 + [1] * 29 + [2])
    given = npz(keys(train=(images, labels)))

    def held(**settings: Any) -> list[int]:
        split = load_data(given, **settings).splits["val"]
        return [
            int(v)
            for x, _ in walk(split, input=InputSpec((8, 8), 1, (0.0,), (1 / 255,)))
            for v in x[:, 0, 0, 0].round()
        ]

    data = load_data(given)
    assert data.val == {"from": "train", "fraction": 0.1, "seed": 0} and "test" not in data.splits
    assert torch.bincount(data.splits["val"].labels).tolist() == [
        7,
        3,
    ]  # the only image of class 2 stays
    assert torch.bincount(data.splits["train"].labels).tolist() == [63, 26, 1]
    assert held() == held() != held(val_seed=1)
    assert held() == [
        7,
        22,
        26,
        27,
        30,
        48,
        51,
        77,
        79,
        88,
    ], "a recorded seed must cut the same split for ever"
    assert len(held(val_fraction=0.5)) == 35 + 14


def test_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = []

    class Made:
        base_folder = CIFAR10.base_folder
        classes = ("plane", "car")

        def __init__(self, root: Path, train: bool, download: bool = False) -> None:
            print("Files already downloaded and verified")
            roots.append((root, download))
            if root.name == "bare" and (root, True) not in roots:
                raise RuntimeError("Dataset not found or corrupted.")
            if root.name == "offline":
                raise (
                    urllib.error.URLError("no\nnetwork")
                    if download
                    else RuntimeError("Dataset not found")
                )
            self.data, self.targets = made(20, 2, 32, colour=True)[0], [0, 1] * 10

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Made)
    data = load_data(f"cifar10:{tmp_path / CIFAR10.base_folder}")
    assert roots == [(tmp_path, False)] * 2
    assert (
        data.classes == ("plane", "car")
        and data.augment == "crop-flip"
        and data.mean is not None
        and round(data.mean[0], 3) == 0.491
    )
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 18,
        "val": 2,
        "test": 20,
    }
    capsys.readouterr()
    refused(
        f"cifar10:{tmp_path / 'bare'}", str(tmp_path / "bare"), "pass --data cifar10:"
    )  # a file must not cause a download
    load_data(f"cifar10:{tmp_path / 'bare'}", trusted=True)
    assert (
        roots[-2:] == [(tmp_path / "bare", True), (tmp_path / "bare", False)]
        and capsys.readouterr().out.count("verified") == 3
    )
    refused(
        f"cifar10:{tmp_path / 'offline'}",
        str(tmp_path / "offline"),
        "downloading it failed",
        "no network",
        trusted=True,
    )


def test_cifar_that_is_not_there(tmp_path: Path) -> None:
    refused(f"cifar100:{tmp_path}", str(tmp_path), "cifar100 is not in")


def test_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "print('hello')\n"
        "images, labels = np.zeros((8, 4, 4, 3), np.uint8), [0, 1] * 4\n"
        "images.setflags(write=False)\n"
        "def good(): return {'train': (images, labels), 'test': (images, labels)}\n"
        "def bad(): raise ValueError('one\\ntwo')\n"
        "def other(): return {'training': (images, labels)}\n"
        "def lone(): return {'train': images}\n"
        "def number(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    importlib.invalidate_caches()
    refused("my_data:good", "my_data:good", "pass --data my_data:good again")
    assert "my_data" not in sys.modules
    before = list(sys.path)
    data = load_data("my_data:good", trusted=True)
    assert (
        sorted(data.splits) == ["test", "train", "val"]
        and data.classes == ("0", "1")
        and sys.path == before
    )
    assert capsys.readouterr().out == ""
    refused("my_data:bad", "ValueError: one two", trusted=True)
    refused("my_data:other", "'train'", "'training'", trusted=True)
    refused("my_data:lone", "(images, labels)", "'train' is ndarray", trusted=True)
    refused("my_data:number", "got int", trusted=True)
    refused("my_data:absent", "AttributeError", "absent", trusted=True)
    refused("no_such_module:make", "ModuleNotFoundError", "no_such_module", trusted=True)
    sys.modules.pop("my_data")


def test_image_folder(folder: Path) -> None:
    data = load_data(f"imagefolder:{folder}")
    assert (
        data.classes == ("ant", "bee", "cat")
        and data.mean is None
        and data.std is None
        and data.augment == "imagenet"
        and data.val is None
    )
    assert (
        sorted(data.splits) == ["train", "val"]
        and data.splits["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    (x, y), (last, _) = walk(data.splits["train"], input=COLOUR)
    assert x.shape == (7, 3, 16, 16) and last.shape[0] == 5 and y.tolist() == [0] * 4 + [1] * 3
    normalise = transforms.Normalize(COLOUR.mean, COLOUR.std)
    reference = transforms.Compose(
        [transforms.Resize(18), transforms.CenterCrop(16), transforms.ToTensor(), normalise]
    )
    assert torch.allclose(
        x[1], reference(Image.open(folder / "train" / "ant" / "1.png")), atol=1e-6
    )
    grey = walk(data.splits["train"], input=InputSpec((16, 16), 1, (0.5,), (0.5,)), augment="shift")
    assert grey[0][0].shape == (7, 1, 16, 16)


def test_image_folder_with_test_and_without_val(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    data = load_data(f"imagefolder:{folder}", val_fraction=0.5)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 6,
        "test": 6,
        "val": 6,
    }
    assert data.val == {"from": "train", "fraction": 0.5, "seed": 0}
    flat = load_data(f"imagefolder:{folder / 'train'}")
    assert flat.classes == data.classes and sorted(flat.splits) == ["train", "val"]


def test_unlabelled_test_images_are_no_split(folder: Path) -> None:
    (folder / "test").mkdir()
    (folder / "test" / "1.png").write_bytes((folder / "val" / "ant" / "0.png").read_bytes())
    assert "test" not in load_data(f"imagefolder:{folder}").splits


# ---- batches


@pytest.mark.parametrize("augment", ["none", "shift", "crop-flip"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_array_batches_depend_on_seeds_alone(
    npz: Callable[..., str], augment: str, drop_last: bool
) -> None:
    split = load_data(npz(keys(train=made(), val=made()))).splits["train"]
    settings: Arrays = {
        "augment": augment,
        "shuffle": True,
        "seed": 3,
        "epoch": 2,
        "drop_last": drop_last,
    }
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = walk(split, **settings)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert len(whole) == steps(split, 7, drop_last=drop_last) == (5 if drop_last else 6)
    for start in range(8):
        assert same(walk(split, start=start, **settings), whole[start:])
    assert same(walk(split, workers=2, **settings), whole)
    assert not same(walk(split, **{**settings, "epoch": 3}), whole)
    assert not same(walk(split, **{**settings, "seed": 4}), whole)


def test_shuffle_is_a_permutation(npz: Callable[..., str]) -> None:
    split = load_data(npz(keys(train=made(), val=made()))).splits["train"]
    plain, shuffled = (
        torch.cat([x for x, _ in walk(split, shuffle=shuffle)]).flatten(1)
        for shuffle in (False, True)
    )
    assert not torch.equal(plain, shuffled)
    assert sorted(plain.tolist()) == sorted(shuffled.tolist())


@pytest.mark.filterwarnings("ignore")  # one core, or a Python that warns of forking
@pytest.mark.parametrize("augment", ["shift", "crop-flip", "imagenet"])
def test_folder_batches_depend_on_seeds_alone(folder: Path, augment: str) -> None:
    split = load_data(f"imagefolder:{folder}").splits["train"]
    settings: Arrays = {
        "input": COLOUR,
        "augment": augment,
        "shuffle": True,
        "seed": 3,
        "batch_size": 5,
    }
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = walk(split, **settings)
    assert same(walk(split, start=1, **settings), whole[1:])
    if augment == "imagenet":
        assert same(walk(split, workers=2, **settings), whole)
        assert same(walk(split, workers=2, start=2, **settings), whole[2:])
    assert torch.equal(before, torch.get_rng_state())
    assert not same(walk(split, epoch=1, **settings), whole)
    one_by_one = walk(
        split, **{**settings, "batch_size": 1}
    )  # a sample's draw does not depend on its batch
    assert torch.equal(torch.cat([x for x, _ in one_by_one]), torch.cat([x for x, _ in whole]))


def test_resizing_grey_and_luminance(npz: Callable[..., str]) -> None:
    images, labels = made(12, side=9, colour=True)
    split = load_data(npz(keys(train=(images, labels), val=(images, labels)))).splits["train"]
    one = InputSpec((9, 9), 1, (0.0,), (1 / 255,))
    grey = walk(split, input=one, batch_size=12)[0][0]
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert np.array_equal(grey[:, 0].round().numpy(), expected)
    resized = walk(split, input=InputSpec((5, 6), 3, (0.0,), (1 / 255,)), batch_size=12)[0][0]
    pil = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((6, 5), Image.Resampling.BILINEAR))
            for image in images
        ]
    ).transpose(0, 3, 1, 2)
    assert resized.shape == (12, 3, 5, 6) and np.abs(resized.numpy() - pil).max() <= 1.01


def test_too_large_to_keep_resized_gives_the_same(
    npz: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = npz(keys(train=made(), val=made()))
    settings: Arrays = {
        "input": InputSpec((12, 10), 3, (0.5,), (0.5,)),
        "augment": "crop-flip",
        "shuffle": True,
    }
    kept = walk(load_data(given).splits["train"], **settings)
    monkeypatch.setattr(arrays, "KEEP_BYTES", 0)
    monkeypatch.setattr(prepare, "CHUNK", 3)
    assert same(walk(load_data(given).splits["train"], **settings), kept)


def test_shift_against_a_slow_reference() -> None:
    images = torch.randint(
        256, (6, 2, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    draw = generator(PIXELS, 1, 2, 3)
    dy, dx = (
        torch.randint(2 * reach + 1, (6, 1), generator=draw).flatten() - reach for reach in (2, 1)
    )
    assert dy.abs().max() == 2 and dx.abs().max() == 1
    expected = torch.empty_like(images)
    for n in range(6):
        for row in range(32):
            for column in range(16):
                expected[n, :, row, column] = images[
                    n, :, min(max(row + int(dy[n]), 0), 31), min(max(column + int(dx[n]), 0), 15)
                ]
    assert torch.equal(shift(images, generator(PIXELS, 1, 2, 3)), expected)


def test_crop_flip_against_a_slow_reference() -> None:
    images = torch.randint(
        1, 256, (8, 3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    draw = generator(PIXELS, 1, 2, 3)
    top, left = (torch.randint(2 * pad + 1, (8, 1), generator=draw).flatten() for pad in (2, 4))
    mirrored = torch.randint(2, (8, 1), generator=draw).flatten().bool()
    assert mirrored.any() and not mirrored.all()
    expected = torch.zeros_like(images)
    for n in range(8):
        padded = np.pad(images[n].numpy(), ((0, 0), (2, 2), (4, 4)))
        crop = padded[:, int(top[n]) : int(top[n]) + 16, int(left[n]) : int(left[n]) + 32]
        expected[n] = torch.from_numpy((crop[:, :, ::-1] if mirrored[n] else crop).copy())
    assert torch.equal(crop_flip(images, generator(PIXELS, 1, 2, 3)), expected)


def test_shift_reaches_every_place_and_small_images_move() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(400, -1, -1, -1)
    moved = shift(images, generator(PIXELS, 0, 0))[:, 0, 4, 4] - images[0, 0, 4, 4]
    assert sorted(set(moved.to(torch.int8).tolist())) == [-9, -8, -7, -1, 0, 1, 7, 8, 9]


def test_generators_differ_in_every_number() -> None:
    numbers = [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (0, 2**32, 0, 0),
        (0, -1, 0, 0),
    ]
    assert len(
        {int(torch.randint(2**62, (1,), generator=generator(*four))) for four in numbers}
    ) == len(numbers)


def test_random_crop_is_torchvisions() -> None:
    image = Image.fromarray(made(1, side=40, colour=True)[0][0])
    draws = [random_crop(image, (16, 12), generator(PIXELS, 0, 0, index)) for index in range(8)]
    assert (
        all(draw.shape == (3, 16, 12) for draw in draws)
        and len({tuple(draw.flatten().tolist()) for draw in draws}) == 8
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(PIXELS, 0, 0, 3).get_state())
        crop = transforms.RandomResizedCrop((16, 12))(image)
        crop = transforms.functional.hflip(crop) if torch.rand(()) < 0.5 else crop
    assert torch.equal(draws[3], transforms.functional.pil_to_tensor(crop))


@pytest.mark.parametrize("size", [(14, 14), (14, 28), (28, 14)])
@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (33, 33), (3, 90)])
def test_centre_crop_covers_its_size(size: tuple[int, int], shape: tuple[int, int]) -> None:
    white = Image.fromarray(np.full((*shape, 3), 255, np.uint8))
    crop = centre_crop(white, size)
    assert (
        crop.shape == (3, *size) and crop.min() == 255
    )  # center_crop would pad with black what the image does not cover


# ---- errors


@pytest.mark.parametrize(
    "given", ["", "digit", "npz", "npz:", "imagenet:/data", "my module:make", "digits:7", "cifar10"]
)
def test_unknown_spec(given: str) -> None:
    refused(
        given,
        "digits, cifar10:DIR, cifar100:DIR, hf:NAME_OR_FOLDER, imagefolder:DIR, npz:FILE,"
        " parquet:PATH, tar:FOLDER, package",
        repr(given),
        trusted=True,
    )


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **settings: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    refused("digits", "pip install 'gatecli[demo]'")


def test_missing_paths(tmp_path: Path) -> None:
    refused(f"npz:{tmp_path / 'no.npz'}", str(tmp_path / "no.npz"), "no such file")
    refused(f"imagefolder:{tmp_path / 'no'}", str(tmp_path / "no"), "there is none")
    refused(f"npz:{tmp_path}", str(tmp_path), "no such file")
    refused("npz:~nobody-of-this-name/x.npz", "no such file")


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, **keys(train=made()))
    whole = file.read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content in (b"", b"text", whole[: len(whole) // 2], buffer.getvalue()):
        file.write_bytes(content)
        refused(f"npz:{file}", str(file), "expected an npz file")
    np.savez(file, train_images=np.array([{}], dtype=object), train_labels=np.zeros(1, int))
    refused(f"npz:{file}", str(file), "expected an npz file of plain arrays")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images", "abc")
        archive.writestr("train_labels", "abc")
    refused(f"npz:{file}", str(file), "expected the train images to be uint8")


@pytest.mark.parametrize("header", ["{'descr': '|u1'", "{'descr':\n 1}\n  2", "(" * 3000, "{1: 2}"])
def test_npz_whose_headers_are_no_python(tmp_path: Path, header: str) -> None:
    """numpy reads them with Python's own parser, which raises more than ValueError."""
    text = header.encode().ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(200)
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images.npy", array)
        archive.writestr("train_labels.npy", array)
    refused(f"npz:{file}", str(file), "expected an npz file of plain arrays")


def test_npz_keys(npz: Callable[..., str]) -> None:
    images, labels = made()
    refused(
        npz({"x": images, "train_labels": labels}),
        "data.npz",
        "expected the keys train_images,",
        "has x, train_labels",
    )
    refused(npz({"x": images}), "train_images, train_labels")
    refused(
        npz({**keys(train=(images, labels)), "val_images": images}), "expected the keys val_labels,"
    )
    refused(
        npz({**keys(train=(images, labels)), "test_labels": labels}),
        "expected the keys test_images,",
    )


LABELS: list[tuple[Any, str]] = [
    (np.arange(40) - 1, "-1 to 38"),
    (np.full(40, 2**63, np.uint64), "9223372036854775808"),
    (np.zeros(40), "float64 (40,)"),
    (np.zeros(39, int), "int64 (39,)"),
    (np.zeros((40, 2), int), "int64 (40, 2)"),
    (np.zeros(40, bool), "bool (40,)"),
    (np.array(["a"] * 40), "<U1 (40,)"),
]


@pytest.mark.parametrize(("labels", "got"), LABELS)
def test_wrong_labels(npz: Callable[..., str], labels: Any, got: str) -> None:
    refused(npz(keys(train=(made()[0], labels))), "data.npz", "train labels", "expected", got)


IMAGES: list[tuple[Any, str]] = [
    (np.zeros((40, 8, 8), np.float32), "float32 (40, 8, 8)"),
    (np.zeros((40, 3, 8, 8), np.uint8), "uint8 (40, 3, 8, 8)"),
    (np.zeros((40, 8, 8, 4), np.uint8), "uint8 (40, 8, 8, 4)"),
    (np.zeros((40, 64), np.uint8), "uint8 (40, 64)"),
    (np.zeros((40, 0, 8), np.uint8), "no samples"),
]


@pytest.mark.parametrize(("images", "got"), IMAGES)
def test_wrong_images(npz: Callable[..., str], images: Any, got: str) -> None:
    refused(npz(keys(train=(images, made()[1]))), "data.npz", "train", got)


def test_splits_that_do_not_fit(npz: Callable[..., str]) -> None:
    empty = np.zeros((0, 8, 8), np.uint8), np.zeros(0, int)
    refused(npz(keys(train=made(), val=empty)), "data.npz", "the val split has no samples")
    refused(npz(keys(train=empty)), "the train split has no samples")
    refused(npz(keys(train=made(4))), "has no val split")
    settings: list[Arrays] = [
        {"val_fraction": 0.0},
        {"val_fraction": 1.5},
        {"val_fraction": "a"},
        {"val_seed": "b"},
    ]
    for wrong in settings:
        refused(npz(keys(train=made())), "`val_fraction` to be between 0 and 1", **wrong)


def test_folder_errors(folder: Path) -> None:
    given = f"imagefolder:{folder}"
    for file in (folder / "val" / "bee").iterdir():
        file.unlink()
    refused(given, str(folder / "val" / "bee"), "has no images")
    (folder / "val" / "bee").rmdir()
    (folder / "train").rename(folder / "pictures")
    refused(given, str(folder / "train"), "beside val")
    empty = folder / "empty"
    empty.mkdir()
    refused(f"imagefolder:{empty}", str(empty), "a folder of images for each class")
    (empty / "train" / "ant").mkdir(parents=True)
    refused(f"imagefolder:{empty}", f"class folders of {empty / 'train'}", "found none")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image(folder: Path, workers: int) -> None:
    file = folder / "train" / "cat" / "2.png"
    whole = file.read_bytes()
    for content in (b"no image", whole[: len(whole) // 2])[: 2 - workers]:
        file.write_bytes(content)
        split = load_data(f"imagefolder:{folder}").splits["train"]
        with pytest.raises(DataError) as caught:
            walk(split, workers=workers, input=COLOUR)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        EOFError(),
        ConnectionResetError(104, "reset"),
    ],
)
def test_a_worker_that_dies(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def dying(*args: Any, **settings: Any) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr(splits, "DataLoader", dying)
    with pytest.raises(DataError, match="--workers 0"):
        walk(load_data(f"imagefolder:{folder}").splits["train"], workers=2, input=COLOUR)


def test_batches_refuse_on_the_call(npz: Callable[..., str], folder: Path) -> None:
    split = load_data(npz(keys(train=made(), val=made()))).splits["train"]
    colour = load_data(npz(keys(train=made(colour=True), val=made(colour=True)))).splits["train"]
    files = load_data(f"imagefolder:{folder}").splits["train"]
    cases: list[tuple[Split, Arrays, str]] = [
        (split, {"augment": "blur"}, "none, shift, crop-flip, but got 'blur'"),
        (files, {"augment": "blur"}, "none, shift, crop-flip, imagenet, but got 'blur'"),
        (split, {"augment": "imagenet"}, "expected one of none, shift, crop-flip for"),
        (split, {"input": InputSpec((8, 8), 3)}, "--mean and --std"),
        (split, {"input": InputSpec((8, 8), 3, (0.5, 0.5), (0.5,))}, "1 or 3 values"),
        (split, {"input": InputSpec((8, 8), 3, (0.5,), (0.0,))}, "`std` above 0"),
        (split, {"input": InputSpec((8, 8), 3, (float("nan"),), (1.0,))}, "`mean` to be finite"),
        (
            colour,
            {"input": InputSpec((8, 8), 4, (0.5,), (0.5,))},
            "3 channels, but the network takes 4",
        ),
        (files, {"input": InputSpec((8, 8), 4, (0.5,), (0.5,))}, "the network takes 4"),
    ]
    for given, settings, text in cases:
        with pytest.raises(DataError) as caught:
            started(given, **settings)
        assert text in str(caught.value), caught.value
    for name in ("batch_size", "start", "workers"):
        with pytest.raises(SettingError, match="at least"):
            walk(split, **{name: -1})
    assert walk(split, input=InputSpec((8, 8), 5, (0.5,), (0.5,)))[0][0].shape == (7, 5, 8, 8)
    assert set(split.augments) < set(AUGMENTS)


# --- the registry of forms ---

ADDED = """
from gatecli.data import forms

def read(request):
    from gatecli.data.arrays import array_split
    import numpy as np
    images = np.full((20, 8, 8), int(request.operand), dtype=np.uint8)
    labels = np.arange(20) % 2
    return forms.Found(splits={"train": array_split(request.spec, "train", images, labels)})

forms.register(forms.Form(kind="flat", operand="VALUE", read=read, augment="none"))
"""


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that one file adds, and nothing else knows."""
    monkeypatch.setattr("gatecli.data.forms.base._FORMS", dict(base._FORMS))
    exec(ADDED, {})


def test_a_new_form_is_read(added: None) -> None:
    data = load_data("flat:51")
    assert data.augment == "none" and data.classes == ("0", "1")
    assert data.mean == (0.2,) and set(data.splits) == {"train", "val"}
    assert not forms.may_be_code("flat:51") and not forms.names_path("flat")
    (batch, _) = walk(data.splits["train"], input=GREY)[0]
    assert torch.allclose(batch, torch.tensor((0.2 - 0.5) / 0.25))


def test_a_new_form_is_offered(added: None) -> None:
    listing = (
        "digits, cifar10:DIR, cifar100:DIR, flat:VALUE, hf:NAME_OR_FOLDER, imagefolder:DIR,"
        " npz:FILE, parquet:PATH, tar:FOLDER"
    )
    refused("nothing", f"expected --data to be one of {listing}, package.module:callable")
    refused("flat", listing)
    with pytest.raises(ValueError, match="a form flat of --data already"):
        exec(ADDED, {})
    code = f"{ADDED}\nimport sys\nfrom gatecli.cli.app import app\napp(['eval', '--help'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "flat:VALUE" in run.stdout


def test_what_the_forms_say_of_themselves() -> None:
    assert forms.listed() == (
        "digits, cifar10:DIR, cifar100:DIR, hf:NAME_OR_FOLDER, imagefolder:DIR, npz:FILE,"
        " parquet:PATH, tar:FOLDER or package.module:callable"
    )
    paths = [kind for kind in base._FORMS if forms.names_path(kind)]
    assert sorted(paths) == ["cifar10", "cifar100", "hf", "imagefolder", "npz", "parquet", "tar"]
    assert not forms.names_path("package.module") and not forms.names_path("unheard")
    assert forms.may_be_code("my.module:make") and forms.may_be_code("package.module:callable")
    assert forms.may_be_code("digits:7") and not forms.may_be_code("digits")
    assert not any(forms.may_be_code(f"{kind}:x") for kind in paths)
    assert forms.is_cropped("imagefolder:x") and not forms.is_cropped("imagefolder")
    assert not forms.is_cropped("npz:x") and not forms.is_cropped("digits")
    usual = {kind: form.augment for kind, form in base._FORMS.items()}
    assert usual == {
        "digits": "shift",
        "cifar10": "crop-flip",
        "cifar100": "crop-flip",
        "hf": "imagenet",
        "imagefolder": "imagenet",
        "npz": "shift",
        "parquet": "imagenet",
        "tar": "imagenet",
        "package.module": "shift",
    }


@pytest.mark.parametrize(
    ("side", "channels", "crop"), [(8, 3, True), (20, 3, False), (20, 1, True)]
)
def test_one_picture_is_prepared_as_a_split_of_it(side: int, channels: int, crop: bool) -> None:
    input = InputSpec((side, side), channels, (0.4,), (0.3,))
    images = torch.randint(256, (1, 3, 16, 24), dtype=torch.uint8)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).convert(prepare.mode_for(input))
    ready = prepare.prepare(picture, input, crop=crop)
    assert ready.shape == (1, channels, side, side)
    if not crop:
        split = arrays.ArraySplit(images, torch.zeros(1, dtype=torch.int64))
        assert torch.equal(ready, walk(split, input=input)[0][0])
