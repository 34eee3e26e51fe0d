"""Images in tar shards, Parquet files and Hugging Face's data sets, each against the same images
in folders.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, refused, save_source
from PIL import Image
from torch import Tensor

from gatecli.data import DataSet, Split, Walk, batches, load_data, tar_index
from gatecli.data.fingerprint import fingerprint
from gatecli.data.listed_classes import listed_classes
from gatecli.data.split_files import split_files
from gatecli.errors import DataError
from gatecli.traced.recipe import InputSpec

COLOUR = InputSpec((16, 16), 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
NAMES = ("ant", "bee", "cat")
COUNTS = {"train": 12, "val": 6}
Make = Callable[..., str]


def encoded(number: int, format: str = "PNG") -> bytes:
    """An image of a size and with pixels of its own."""
    chance = np.random.RandomState(number)
    pixels = chance.randint(0, 256, (18 + number % 3, 20, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def samples(split: str) -> list[tuple[bytes, int]]:
    """The images of a split and their classes, in the order of the classes."""
    first = 0 if split == "train" else 100
    count = COUNTS[split]
    return [(encoded(first + n), n * len(NAMES) // count) for n in range(count)]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def shard(path: Path, given: list[tuple[bytes, int]], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, (image, label) in enumerate(given, first):
            add(archive, f"pictures/{number:05d}.png", image)
            add(archive, f"pictures/{number:05d}.cls", str(label).encode())
            add(archive, f"pictures/{number:05d}.json", b"{}")
    return path


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    monkeypatch.setenv("GATECLI_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> DataSet:
    """The images as files in folders: what the others are compared with."""
    for split in COUNTS:
        for number, (image, label) in enumerate(samples(split)):
            file = tmp_path / "folder" / split / NAMES[label] / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
    return load_data(f"imagefolder:{tmp_path / 'folder'}")


def as_tar(root: Path) -> str:
    train = samples("train")
    shard(root / "x-train-0.tar", train[:7])
    shard(root / "x-train-1.tar", train[7:], 7)
    shard(root / "x-validation-0.tar", samples("val"))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return f"tar:{root}"


def arrow(split: str, rows: slice = slice(None), **more: Any) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    given = samples(split)[rows]
    images = [{"bytes": image, "path": None} for image, _ in given]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        "image": pyarrow.array(images, kind),
        "label": pyarrow.array([label for _, label in given], pyarrow.int64()),
        **more,
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(NAMES)},
    }
    said = json.dumps({"info": {"features": features}}).encode()
    return pyarrow.table(columns).replace_schema_metadata({b"huggingface": said})


def write(table: Any, path: Path, **how: Any) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **how)
    return path


def as_parquet(root: Path) -> str:
    write(arrow("train", slice(0, 7)), root / "data/train-00000-of-00002.parquet", row_group_size=2)
    write(arrow("train", slice(7, None)), root / "data/train-00001-of-00002.parquet")
    write(arrow("val"), root / "data/validation-00000-of-00001.parquet")
    return f"parquet:{root}"


def as_saved(root: Path) -> str:
    """What save_to_disk writes."""
    datasets = pytest.importorskip("datasets")
    parts = {"train": arrow("train"), "validation": arrow("val")}
    made = {name: datasets.Dataset(each) for name, each in parts.items()}
    datasets.disable_progress_bars()
    datasets.DatasetDict(made).save_to_disk(str(root))
    return f"hf:{root}"


def as_files(root: Path) -> str:
    """Files that load_dataset takes."""
    datasets = pytest.importorskip("datasets")
    datasets.config.HF_DATASETS_CACHE = root.parent / "library"
    as_parquet(root)
    return f"hf:{root}"


MAKERS = [as_tar, as_parquet, as_saved, as_files]


def walked(split: Split, **how: Any) -> list[tuple[Tensor, Tensor]]:
    workers = how.pop("workers", 0)
    return list(batches(split, input=COLOUR, batch_size=5, walk=Walk(**how), workers=workers))


def same(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("make", MAKERS)
def test_as_the_same_images_in_folders(folder: DataSet, tmp_path: Path, make: Make) -> None:
    data = load_data(make(tmp_path / "made"))
    assert data.classes == NAMES and data.named and not data.sorted_names
    assert data.augment == "imagenet" and data.mean is None and data.val is None
    for name, split in folder.splits.items():
        assert same(walked(data.splits[name]), walked(split))
        chance = {"shuffle": True, "augment": "imagenet", "seed": 3, "epoch": 2}
        assert same(walked(data.splits[name], **chance), walked(split, **chance))


@pytest.mark.filterwarnings("ignore")  # one core, or a Python that warns of forking
@pytest.mark.parametrize("make", MAKERS)
def test_read_by_workers_and_as_pickles(tmp_path: Path, make: Make) -> None:
    """Workers that are not forked get the split as a pickle."""
    split = load_data(make(tmp_path / "made")).splits["train"]
    whole = walked(split, shuffle=True)
    assert same(walked(split, shuffle=True, workers=2), whole)
    again = pickle.dumps(split)
    assert len(again) < 20_000 and same(walked(pickle.loads(again), shuffle=True), whole)


@pytest.mark.parametrize("make", MAKERS)
def test_a_val_split_is_cut_and_the_rest_is_known_again(tmp_path: Path, make: Make) -> None:
    root = tmp_path / "made"
    spec = make(root)
    whole = load_data(spec)
    part = whole.splits["train"].take(torch.tensor([7, 2]))
    assert same(walked(part), [tuple(part[[7, 2]] for part in joined(whole))])
    assert fingerprint(load_data(spec)) == fingerprint(whole)


def joined(data: DataSet) -> tuple[Tensor, Tensor]:
    pairs = walked(data.splits["train"])
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_without_a_val_split(tmp_path: Path) -> None:
    shard(tmp_path / "made/a.tar", samples("train"))
    data = load_data(f"tar:{tmp_path / 'made'}", val_fraction=0.25)
    assert data.val == {"from": "train", "fraction": 0.25, "seed": 0}
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "val": 3}
    assert data.classes == ("0", "1", "2") and not data.named


# ---- kept


def test_a_shard_is_indexed_once(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = as_tar(tmp_path / "made")
    before = load_data(spec)
    assert len(list(kept.iterdir())) == 3
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_built", lambda *_: pytest.fail("indexed again"))
        assert fingerprint(load_data(spec)) == fingerprint(before)
    shard(tmp_path / "made/x-train-1.tar", samples("train")[8:], 8)
    assert len(load_data(spec).splits["train"]) == 11  # the shard is another one
    assert len(list(kept.iterdir())) == 4


@pytest.mark.parametrize("make", [as_tar, as_parquet])
@pytest.mark.parametrize("damage", [b"", b"no index", None])
def test_what_is_kept_may_be_damaged(
    folder: DataSet, tmp_path: Path, kept: Path, make: Make, damage: bytes | None
) -> None:
    spec = make(tmp_path / "made")
    load_data(spec)
    for file in kept.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    split = load_data(spec).splits["train"]
    assert same(walked(split), walked(folder.splits["train"]))


def test_an_index_that_is_another_shard_s(tmp_path: Path, kept: Path) -> None:
    """It is not believed beyond the end of the file, nor with labels that cannot be."""
    spec = f"tar:{shard(tmp_path / 'made/a.tar', samples('train'))}"
    load_data(spec)
    (file,) = kept.iterdir()
    for wrong in ({"offsets": [10**9]}, {"sizes": [-1]}, {"labels": [10**9]}, {"labels": []}):
        arrays = {"offsets": [512], "sizes": [9], "labels": [0], **wrong}
        np.savez(file, **{name: np.array(each, np.int64) for name, each in arrays.items()})
        assert len(load_data(spec, val_fraction=0.25).splits["train"]) == 9


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GATECLI_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="GATECLI_CACHE"):
        load_data(as_tar(tmp_path / "made"))


# ---- damage


def message(spec: str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        for split in load_data(spec, **settings).splits.values():
            walked(split)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


def overwritten(path: Path, place: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[place : place + len(content)] = content
    path.write_bytes(whole)


def middle_header(path: Path) -> int:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        return members[len(members) // 2].offset


@pytest.mark.parametrize("content", [b"\xff" * 512, b"\0" * 512, b"\0" * 1536])
def test_a_shard_that_is_damaged_in_the_middle(tmp_path: Path, content: bytes) -> None:
    """tarfile takes such a header for the end; zeros are what a lost block of a disk reads as."""
    root = tmp_path / "made"
    spec = as_tar(root)
    overwritten(root / "x-train-1.tar", middle_header(root / "x-train-1.tar"), content)
    text = message(spec)
    assert str(root / "x-train-1.tar") in text and "damaged after byte" in text


def test_a_shard_that_is_cut_off(tmp_path: Path) -> None:
    root = tmp_path / "made"
    spec = as_tar(root)
    file = root / "x-train-1.tar"
    place = middle_header(file)
    whole = file.read_bytes()
    for cut in (place - 100, place + 100, place + 600, 100):
        file.write_bytes(whole[:cut])
        assert str(file) in message(spec)


def test_a_damaged_image_in_a_shard(tmp_path: Path) -> None:
    file = shard(tmp_path / "made/a.tar", samples("train"))
    with tarfile.open(file) as archive:
        place = archive.getmember("pictures/00004.png").offset_data
    overwritten(file, place, b"no image")
    text = message(f"tar:{tmp_path / 'made'}", val_fraction=0.1)
    assert str(file) in text and "pictures/00004.png" in text and f"byte {place}" in text


def test_a_shard_that_has_been_changed_since(tmp_path: Path) -> None:
    file = shard(tmp_path / "made/a.tar", samples("train"))
    split = load_data(f"tar:{file.parent}").splits["train"]
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut off"):
        walked(split)


ODD_MEMBERS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "pickle": ([("a.png", encoded(0)), ("a.cls", b"0"), ("a.pyd", b"x")], "a.pyd is a pickle"),
    "deep": ([("a.png", encoded(0)), ("a.cls", b"0"), ("a.x.PKL", b"x")], "is a pickle"),
    "no class": ([("a.png", encoded(0)), ("b.png", encoded(0))], "sample a has no .cls"),
    "no image": ([("a.cls", b"0")], "sample a has no image"),
    "two": ([("a.png", encoded(0)), ("a.jpg", encoded(0))], "a has two images"),
    "word": ([("a.png", encoded(0)), ("a.cls", b"ant")], "b'ant', where the number"),
    "below": ([("a.png", encoded(0)), ("a.cls", b"-1")], "b'-1', where the number"),
    "high": ([("a.png", encoded(0)), ("a.cls", b"9" * 9)], "where the number"),
    "long": ([("a.png", encoded(0)), ("a.cls", b"1" * 10**5)], "where the number"),
    "nothing": ([], "has no samples"),
}


@pytest.mark.parametrize("case", ODD_MEMBERS)
def test_members_that_do_not_fit(tmp_path: Path, case: str) -> None:
    given, said = ODD_MEMBERS[case]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in given:
            add(archive, name, content)
    assert said in message(f"tar:{tmp_path}")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S"])
def test_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    assert "no plain file" in message(f"tar:{tmp_path}")


def test_a_size_below_zero_does_not_loop(tmp_path: Path) -> None:
    """CVE-2025-8194: older Pythons follow it backwards for ever."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "a.png", encoded(0))
        add(archive, "a.cls", b"0")
    file = tmp_path / "a.tar"
    with tarfile.open(file) as archive:
        place = archive.getmember("a.cls").offset
    header = bytearray(file.read_bytes()[place : place + 512])
    header[124:136] = b"\xff" * 10 + b"\xfa\x00"  # base 256, below 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    overwritten(file, place, bytes(header))
    assert str(file) in message(f"tar:{tmp_path}")


def test_a_compressed_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        add(archive, "a.png", encoded(0))
    assert "whole tar file" in message(f"tar:{tmp_path}")
    assert "expected .parquet files in" in message_of_files(tmp_path, ".parquet")


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    root = tmp_path / "made"
    spec = as_parquet(root)
    file = root / "data/train-00001-of-00002.parquet"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"PAR1" + whole[4:-4] + b"nope", b""):
        file.write_bytes(content)
        assert str(file) in message(spec)
    write(arrow("train", slice(7, None)).drop_columns(["label"]), file)
    assert str(file) in message(spec)


def test_a_damaged_image_in_a_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for content, said in ((b"no image", "cannot identify"), (None, "has no bytes")):
        images = pyarrow.array([encoded(0)] * 3 + [content], pyarrow.binary())
        table = pyarrow.table({"img": images, "label": pyarrow.array(["a", "b"] * 2)})
        for split in ("train", "val"):
            file = write(table, tmp_path / split / "x.parquet")
        text = message(f"parquet:{tmp_path}")
        assert f"row 3 of {file.parent.parent / 'train' / file.name}" in text and said in text


def test_a_parquet_file_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary lets one image stand in a million rows."""
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr("gatecli.limits.MIB", 1)
    monkeypatch.setattr("gatecli.limits.unpacked", lambda stored: 8 * stored)
    images = pyarrow.array([encoded(0)] * 2000, pyarrow.binary())
    table = pyarrow.table({"image": images, "label": pyarrow.array([0, 1] * 1000)})
    write(table, tmp_path / "x.parquet", compression="zstd")
    assert "unpacks to more than" in message(f"parquet:{tmp_path}")
    assert not list((tmp_path / "kept").iterdir())


def test_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pictures = pyarrow.array([image for image, _ in samples("train")], pyarrow.binary())
    words = pyarrow.array([NAMES[label] for _, label in samples("train")])
    numbers = pyarrow.array([label for _, label in samples("train")], pyarrow.int8())
    spec = f"parquet:{tmp_path / 'x.parquet'}"

    def read(**columns: Any) -> DataSet:
        write(pyarrow.table(columns), tmp_path / "x.parquet")
        return load_data(spec)

    named = read(picture=pictures, kind=words.dictionary_encode())
    assert named.classes == NAMES and named.sorted_names
    assert read(picture=pictures, number=numbers, label=numbers).classes == ("0", "1", "2")
    (tmp_path / "classes.json").write_text(json.dumps({"bee": 1, "ant": 0, "cat": 2}))
    assert read(image=pictures, thumb=pictures, label=numbers).classes == NAMES
    write(pyarrow.table({"a": pictures, "b": pictures, "label": numbers}), tmp_path / "x.parquet")
    assert "2 could be: a, b: call it image" in message(spec)
    write(pyarrow.table({"image": pictures, "a": numbers, "b": words}), tmp_path / "x.parquet")
    assert "to hold the classes, but 2 could be: a, b" in message(spec)
    write(pyarrow.table({"label": numbers}), tmp_path / "x.parquet")
    assert "to hold the images, but none could be: call it image" in message(spec)


def test_labels_that_are_missing(tmp_path: Path) -> None:
    """ImageNet's test images have the label -1, or none."""
    pyarrow = pytest.importorskip("pyarrow")
    without = pyarrow.array([-1] * 3 + [None] * 3, pyarrow.int64())
    write(arrow("train"), tmp_path / "train.parquet")
    write(arrow("val", label=without), tmp_path / "test.parquet")
    data = load_data(f"parquet:{tmp_path}", val_fraction=0.5)
    assert "test" not in data.splits and "test have no labels" in data.notes[0]
    some = pyarrow.array([0, 1, 2, 0, 1, None], pyarrow.int64())
    write(arrow("val", label=some), tmp_path / "test.parquet")
    assert "the test labels" in message(f"parquet:{tmp_path}")
    write(arrow("val", label=pyarrow.array([7] * 6)), tmp_path / "test.parquet")
    assert "at most 2, but got 7 to 7" in message(f"parquet:{tmp_path}")


def test_a_hugging_face_data_set_without_the_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.DatasetDict(validation=datasets.Dataset(arrow("val")))
    made.save_to_disk(str(tmp_path / "made"))
    assert "called train, but its splits are validation" in message(f"hf:{tmp_path / 'made'}")
    both = {"train": datasets.Dataset(arrow("train")), "dev": datasets.Dataset(arrow("val"))}
    both["valid"] = both["dev"]
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "both"))
    assert "expected one val split" in message(f"hf:{tmp_path / 'both'}")
    datasets.Dataset(arrow("train")).save_to_disk(str(tmp_path / "one"))
    assert sorted(load_data(f"hf:{tmp_path / 'one'}").splits) == ["train", "val"]
    (tmp_path / "empty").mkdir()
    assert "check what is in it" in message(f"hf:{tmp_path / 'empty'}")


def test_a_name_that_a_file_remembers_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    import socket

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "pass --data hf:nobody/nothing again" in message("hf:nobody/nothing")
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "parquet"), ("datasets", "hf")])
def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, module: str, extra: str) -> None:
    monkeypatch.setattr(f"gatecli.data.forms.{extra}.find_spec", lambda name: None)
    assert module in message(f"{extra}:x") and f"'gatecli[{extra}]'" in message(f"{extra}:x")


# ---- which files, which names


def message_of_files(path: Path, ending: str) -> str:
    with pytest.raises(DataError) as caught:
        split_files("x:y", path, ending)
    return str(caught.value)


def test_which_split_a_file_belongs_to(tmp_path: Path) -> None:
    for name in ("train/eval-0.tar", "b/Training/1.tar", "x_dev_2.tar", "testing/a/3.TAR", "4.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = split_files("x:y", tmp_path, ".tar")
    spelt = {
        name: [str(f.relative_to(tmp_path)) for f in each] for name, each in found.files.items()
    }
    assert spelt == {
        "train": ["b/Training/1.tar", "train/eval-0.tar"],
        "val": ["x_dev_2.tar"],
        "test": ["testing/a/3.TAR"],
    }
    assert "so 4.tar beside them is passed over" in found.notes[0]
    (tmp_path / "train-val.tar").touch()
    assert "says train and val" in message_of_files(tmp_path, ".tar")
    assert "there is none" in message_of_files(tmp_path / "no", ".tar")
    assert "those of val, test alone" in message_of_files(
        only(tmp_path / "o", "val", "test"), ".tar"
    )
    alone = split_files("x:y", only(tmp_path / "p", "trainer", "evaluate"), ".tar")
    assert len(alone.files["train"]) == 2  # no whole word of these is a split's


def only(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / f"{name}.tar").touch()
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "ant\nbee\n"),
        ("classes.txt", "ant\nbee\nbee\n"),
        ("classes.json", "[1, 2, 3]"),
        ("classes.json", '{"ant": 0, "bee": 2, "cat": 3}'),
        ("classes.json", '{"ant": true, "bee": 0, "cat": 2}'),
        ("classes.json", "[" * 100_000),
        ("classes.json", "no JSON"),
        ("classes.txt", "\ud800"),
    ],
)
def test_lists_of_classes_that_do_not_fit(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="mend it"):
        listed_classes("x:y", tmp_path, 3)


# ---- commands


def test_commands_remember_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_tar(Path("made"))
    save_source(Path("r20.pt"))
    found = call("eval", "r20.pt", "--data", "tar:made", "--input-size", 16, "--split", "val")
    assert found["samples"] == COUNTS["val"]
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", 16)
    how = ["--epochs", 1, "--batch-size", 4, "--bn-batches", 0]
    call("finetune", "--data", "tar:made", *how)
    os.chdir("made")
    found = call("eval", tmp_path / "r20.ind-perbatch.tuned.safetensors", "--split", "train")
    assert found["samples"] == COUNTS["train"]
    os.chdir(tmp_path)
    refused("eval r20.pt --data tar:made --input-size 16 --split test", "one of train, val")
    overwritten(Path("made/x-train-0.tar"), middle_header(Path("made/x-train-0.tar")), b"\xff" * 9)
    refused("eval r20.pt --data tar:made --input-size 16", "x-train-0.tar", "make it again")
