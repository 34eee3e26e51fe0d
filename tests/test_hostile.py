"""Files made to take everything, to run something, or to be read wrong.

One line each, before anything is allocated.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import math
import os
import pathlib
import pickle
import struct
import types
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, edit, refused, save_source
from PIL import Image
from reading import read_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from gatecli import checkpoint, limits
from gatecli.architectures.build import TooLarge, at_most, build_skeleton
from gatecli.checkpoint import stand_ins, survey
from gatecli.data import load_data
from gatecli.data.folders import opened
from gatecli.errors import ArchitectureError, CheckpointError, DataError, ExportError, GatecliError
from gatecli.exporting.facts import Facts
from gatecli.exporting.onnx.run import open_onnx
from gatecli.exporting.weights.writer import Writer
from gatecli.graph.spelling import rename
from gatecli.graph.trace import trace
from gatecli.stages.attach import attach
from gatecli.traced.recipe import Recipe

TENSORS = {"a": torch.arange(8.0), "b": torch.arange(8.0, 24.0)}


def error(path: Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    text = str(caught.value)
    assert path.name in text and "\n" not in text and len(text) < 600
    return text


def save(path: Path, what: Any, old: bool = False) -> Path:
    torch.save(what, path, _use_new_zipfile_serialization=not old)
    return path


def rezip(path: Path, change: Callable[[str, bytes], bytes], how: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with the bytes of its entries changed, and checksums that fit them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))
    return path


def with_pickle(path: Path, data: bytes) -> Path:
    """A torch file that holds this pickle, and no storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.call


# --- sizes of tensors ---


@pytest.mark.parametrize("old", [False, True])
def test_expanded_tensors_are_compared_with_the_file(tmp_path: Path, old: bool) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.zeros(1).expand(20_000, 40_000)}, old)
    assert "3,200,000,000" in error(path)
    path = save(
        tmp_path / "x.pt", {f"w{n}": torch.zeros(1).expand(1000, 1000) for n in range(8)}, old
    )
    assert "32,000,000" in error(path)


@pytest.mark.parametrize("old", [False, True])
def test_small_expanded_shared_and_half_tensors_are_read(tmp_path: Path, old: bool) -> None:
    shared = torch.rand(100)
    given = {
        "expanded": torch.ones(1).expand(30, 30),
        "one": shared,
        "other": shared[10:20],
        "half": torch.rand(50).half(),
        "empty": torch.zeros(0),
    }
    found = read_tensors(save(tmp_path / "x.pt", given, old))
    assert all(torch.equal(found[name], given[name].float()) for name in given)


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TENSORS", 1)
    assert "2 tensors" in error(save(tmp_path / "x.pt", TENSORS))


def test_a_short_record_is_not_filled_with_its_neighbour(tmp_path: Path) -> None:
    path = rezip(
        save(tmp_path / "x.pt", TENSORS),
        lambda name, data: data[:-4] if name.endswith("data/0") else data,
    )
    assert "storage 0 has 28 bytes, but 32 are asked for" in error(path)


def test_a_long_or_missing_record(tmp_path: Path) -> None:
    path = rezip(
        save(tmp_path / "x.pt", TENSORS),
        lambda name, data: data + b"1234" if name.endswith("data/1") else data,
    )
    assert "storage 1 has 68 bytes" in error(path)
    with zipfile.ZipFile(save(tmp_path / "y.pt", TENSORS)) as archive:
        entries = {
            name: archive.read(name) for name in archive.namelist() if not name.endswith("data/1")
        }
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert "storage 1 has 0 bytes" in error(tmp_path / "y.pt")


def test_storages_of_older_files(tmp_path: Path) -> None:
    """Each follows the pickles behind its count."""
    whole = save(tmp_path / "x.pt", {"b": TENSORS["b"]}, old=True).read_bytes()
    place = len(whole) - 64 - 8
    assert struct.unpack("<q", whole[place : place + 8]) == (16,)
    for damaged in (
        whole[:place],
        whole[:-1],
        whole[:place] + struct.pack("<q", 15) + whole[place + 8 : -4],
    ):
        (tmp_path / "x.pt").write_bytes(damaged)
        assert "storage" in error(tmp_path / "x.pt")


def test_an_older_file_that_does_not_list_a_storage(tmp_path: Path) -> None:
    """Torch would leave it as memory happens to be."""
    whole = save(tmp_path / "x.pt", TENSORS, old=True).read_bytes()
    found = survey.survey(whole, pickles=5)
    keys = pickle.dumps(found.value, 2)
    start = whole.index(keys)
    (tmp_path / "x.pt").write_bytes(
        whole[:start] + pickle.dumps(found.value[:1], 2) + whole[start + len(keys) :]
    )
    assert "does not have the storages" in error(tmp_path / "x.pt")


def reaching(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Calls:
    """A tensor over a storage of eight numbers."""
    storage = torch.arange(8.0)._typed_storage()
    return Calls(
        torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict()
    )


@pytest.mark.parametrize(
    "tensor",
    [
        reaching((9,), (1,)),
        reaching((2, 2), (7, 1)),
        reaching((8,), (1,), 1),
        reaching((2,), (2**62,)),
        reaching((0,), (1,), 9),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_lies_within_its_storage(tmp_path: Path, tensor: Calls, old: bool) -> None:
    assert "more than its storage" in error(save(tmp_path / "x.pt", {"w": tensor}, old))


def test_a_tensor_that_just_fits_is_read(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.pt", {"w": reaching((2, 2), (6, 1)), "none": reaching((0, 5), (5, 1), 8)}
    )
    assert torch.equal(read_tensors(path)["w"], torch.tensor([[0.0, 1.0], [6.0, 7.0]]))


# --- archives ---


def test_compressed_entries_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = rezip(save(tmp_path / "x.pt", TENSORS), lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert "is compressed" in error(path)


def test_entries_that_come_twice_or_overlap(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", TENSORS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    assert "an entry twice" in error(path)
    whole = save(path, {"a": torch.zeros(5000)}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = archive.infolist()
        big = next(entry for entry in entries if entry.filename.endswith("data/0"))
        others = [entry for entry in entries if entry is not big]
    for entry in others:
        if entry.filename.endswith("version"):
            entry.file_size = entry.compress_size = 30_000
    with zipfile.ZipFile(path, "a") as archive:
        for entry in archive.filelist:
            if entry.filename.endswith("version"):
                entry.file_size = entry.compress_size = 30_000
        archive._didModify = True  # type: ignore[attr-defined]
    assert "overlap" in error(path)


def test_a_pickle_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_BYTES", 1000)
    many = {f"tensor.{n}": torch.zeros(1) for n in range(50)}
    for old in (False, True):
        assert "more than 1,000 bytes" in error(save(tmp_path / "x.pt", many, old))
    monkeypatch.undo()
    monkeypatch.setattr(limits, "PICKLE_STEPS", 1000)
    for old in (False, True):
        assert "more than 1,000 instructions" in error(save(tmp_path / "x.pt", many, old))
    assert "more than 1,000 instructions" in error(
        with_pickle(tmp_path / "y.pt", b"\x80\x02]q\x00(" + b"h\x00" * 2000 + b"l.")
    )


def test_copies_of_copies_are_counted(tmp_path: Path) -> None:
    """A list of a thousand, made a set a thousand times by three bytes each."""
    make = b"cbuiltins\nset\nq\x01]q\x02(" + b"K\x01" * 2000 + b"e"
    data = b"\x80\x02]" + b"(" + make + b"h\x01h\x02\x85R" * 2000 + b"e."
    assert "instructions" in error(with_pickle(tmp_path / "x.pt", data))


def test_a_safetensors_header_has_a_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(limits, "HEADER_BYTES", 50)
    assert "its header has more than 50 bytes" in error(tmp_path / "x.safetensors")
    assert checkpoint.read_recipe(tmp_path / "x.safetensors") is None


def test_safetensors_sizes_are_compared(tmp_path: Path) -> None:
    """By safetensors itself: no tensor is longer than its bytes, and no byte is two tensors'."""
    for claims in (
        {"shape": [3], "data_offsets": [0, 8]},
        {"shape": [2**40], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 16]},
    ):
        header = json.dumps({"a": {"dtype": "F32", **claims}}).encode()
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        assert "no readable safetensors file" in error(tmp_path / "x.safetensors")
    both = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}
    header = json.dumps(both).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "no readable safetensors file" in error(tmp_path / "x.safetensors")


# --- time ---


def nested(times: int) -> bytes:
    """A tuple of the same tuple twice, of the same tuple twice, ..."""
    return b"K\x01q\x00" + b"h\x00\x86q\x00" * times


@pytest.mark.parametrize(
    "data",
    [
        b"}" + nested(40) + b"K\x01s.",
        b"}(" + nested(40) + b"K\x01u.",
        b"cbuiltins\nset\n]" + nested(40) + b"a\x85R.",
        b"ccollections\nOrderedDict\n]" + nested(40) + b"K\x01\x86a\x85R.",
    ],
)
def test_keys_that_take_for_ever_to_hash(tmp_path: Path, data: bytes) -> None:
    assert "a key of more than 1000 parts" in error(
        with_pickle(tmp_path / "x.pt", b"\x80\x02" + data)
    )


def test_the_same_tuples_as_a_value_do_no_harm(tmp_path: Path) -> None:
    assert "without tensors" in error(
        with_pickle(tmp_path / "x.pt", b"\x80\x02}X\x01\x00\x00\x00a" + nested(60) + b"s.")
    )


def test_small_tuples_are_keys(tmp_path: Path) -> None:
    found = read_tensors(
        save(
            tmp_path / "x.pt",
            {"state_dict": TENSORS, "groups": {("a", (1, 2)): 3, None: 4, 1.5: 5, b"x": 6}},
        )
    )
    assert list(found) == list(TENSORS)


def test_numbers_without_end(tmp_path: Path) -> None:
    assert "a key of more than" in error(
        with_pickle(tmp_path / "x.pt", pickle.dumps({10**6000: 1}, 2))
    )


def test_wrappings_that_are_shared_are_looked_into_once(tmp_path: Path) -> None:
    wrapped: dict[str, Any] = {}
    for key in ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "ema"):
        wrapped[key] = wrapped
    assert "without tensors" in error(save(tmp_path / "x.pt", wrapped))
    level: dict[str, Any] = {"epoch": 1}
    for _ in range(30):
        level = {"state_dict": level, "model": level, "net": level, "ema": level}
    assert "without tensors" in error(save(tmp_path / "x.pt", level))
    assert list(read_tensors(save(tmp_path / "x.pt", {**wrapped, **TENSORS}))) == list(TENSORS)


def test_prefixes_without_end(tmp_path: Path) -> None:
    (name,) = read_tensors(save(tmp_path / "x.pt", {"module." * 5000 + "x": torch.zeros(1)}))
    assert name.endswith(".module.x")


def test_lists_in_lists(tmp_path: Path) -> None:
    assert "got a list" in error(
        with_pickle(tmp_path / "x.pt", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    )


# --- what pickles may hold, and what not ---

PASSENGERS: dict[str, Any] = {
    "numpy scalars": {
        "best": np.float64(0.5),
        "epoch": np.int64(3),
        "half": np.float16(1),
        "yes": np.bool_(True),
        "word": np.str_("x"),
    },
    "numpy arrays": {
        "curve": np.arange(5.0),
        "words": np.array(["a", "b"]),
        "mixed": np.array([1, None], dtype=object),
        "state": np.random.RandomState(0).get_state(),
    },
    "paths": {"out": pathlib.Path("a/b"), "pure": pathlib.PureWindowsPath("c")},
    "dates": {
        "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        "day": datetime.date(2026, 1, 2),
        "took": datetime.timedelta(1),
    },
    "dicts": {
        "counts": defaultdict(int, a=1),
        "order": OrderedDict(a=1),
        "seen": Counter("aab"),
        "lists": defaultdict(list, a=[1]),
    },
    "bags": {
        "args": argparse.Namespace(lr=0.1, deep=argparse.Namespace(out=pathlib.Path("x"))),
        "more": types.SimpleNamespace(a=1),
    },
    "others": {
        "last": deque([1, 2]),
        "names": {"a", "b"},
        "frozen": frozenset([1]),
        "raw": b"xyz",
        "array": bytearray(b"x"),
        "z": 1j,
        "torch": torch.__version__,
        "range": range(3),
    },
    "torch's": {
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "rng": torch.get_rng_state(),
        "p": nn.Parameter(torch.zeros(2)),
    },
}


@pytest.mark.parametrize("kind", PASSENGERS)
@pytest.mark.parametrize("old", [False, True])
def test_what_scripts_store_beside_the_weights_is_no_hindrance(
    tmp_path: Path, kind: str, old: bool
) -> None:
    found = read_tensors(save(tmp_path / "x.pt", {"state_dict": TENSORS, **PASSENGERS[kind]}, old))
    assert list(found) == list(TENSORS) and all(
        torch.equal(found[name], TENSORS[name]) for name in found
    )


def test_weights_in_a_default_dict_are_found(tmp_path: Path) -> None:
    assert list(
        read_tensors(
            save(tmp_path / "x.pt", defaultdict(list, state_dict=defaultdict(None, TENSORS)))
        )
    ) == list(TENSORS)


def test_parameters_with_attributes_are_read(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.arange(3.0))
    weight.decays = False  # type: ignore[attr-defined]
    assert torch.equal(read_tensors(save(tmp_path / "x.pt", {"w": weight}))["w"], torch.arange(3.0))


def test_passengers_are_never_made() -> None:
    assert {each.__module__ for each in stand_ins.PASSENGERS.values()} == {
        "gatecli.checkpoint.stand_ins"
    }
    assert not set(stand_ins.PASSENGERS) & {
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "functools.partial",
        "numpy.load",
    }


FOREIGN = {
    "a system call": Calls(os.mkdir, "ran"),
    "eval": Calls(eval, "__import__('os').mkdir('ran')"),
    "a path's method": Calls(pathlib.Path.mkdir, pathlib.Path("ran")),
    "numpy's own reader": Calls(np.load, "ran", allow_pickle := True),
    "partial": Calls(__import__("functools").partial, os.mkdir, "ran"),
    "torch.load": Calls(torch.load, "ran"),
    "in numpy's objects": {"x": np.array([Calls(os.mkdir, "ran")], dtype=object)},
    "in attributes": {"x": argparse.Namespace(y=Calls(os.mkdir, "ran"))},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("old", [False, True])
def test_whatever_else_a_pickle_calls_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, old: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--trust-pickle" in error(
        save(tmp_path / "x.pt", {"state_dict": TENSORS, "x": FOREIGN[kind]}, old)
    )
    assert not Path("ran").exists()


ODD = {
    "memory by a number": Calls(bytearray, 2**40),
    "a tensor by a number": Calls(torch.Tensor, 2**40),
    "codecs": Calls(__import__("_codecs").encode, "x", "utf-32"),
    "attributes that hide methods": Calls(OrderedDict, state={"items": 1, "keys": 2}),
    "attributes that are the tensor's own": Calls(
        torch._utils._rebuild_parameter_with_state,
        torch.zeros(2),
        False,
        OrderedDict(),
        {"data": torch.zeros(1)},
    ),
    "a quantized tensor": Calls(
        torch._utils._rebuild_qtensor,
        torch.zeros(1, dtype=torch.uint8)._typed_storage(),
        0,
        (2**20, 2**20),
        (0, 0),
        (torch.per_tensor_affine, 1.0, 0),
        False,
        OrderedDict(),
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_calls_of_torchs_own_that_take_memory_or_change_what_things_are(
    tmp_path: Path, kind: str
) -> None:
    assert "is refused" in error(save(tmp_path / "x.pt", {"state_dict": TENSORS, "x": ODD[kind]}))


def test_any_damage_to_a_pickle_is_one_line(tmp_path: Path) -> None:
    """Random bytes put into data.pkl, with a checksum that fits.

    Read or refused, and nothing runs or takes memory.
    """
    path = save(
        tmp_path / "x.pt",
        {"state_dict": TENSORS, "args": argparse.Namespace(x=(1, 2)), **PASSENGERS["numpy arrays"]},
    )
    with zipfile.ZipFile(path) as archive:
        data = archive.read("x/data.pkl")
    chance = np.random.RandomState(0)
    for _ in range(150):
        spoilt = bytearray(data)
        for place in chance.randint(0, len(data), chance.randint(1, 4)):
            spoilt[place] = chance.randint(256)
        new = bytes(spoilt)
        rezip(path, lambda name, old: new if name.endswith("data.pkl") else old)  # noqa: B023
        try:
            read_tensors(path)
        except CheckpointError as caught:
            assert "\n" not in str(caught)


# --- what is no file ---


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_pipes_and_devices_are_not_read(pipe: Path) -> None:
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is not a file"):
            checkpoint.read(path)
        with pytest.raises(DataError, match="a pipe or a device"):
            opened(str(path), "RGB")
        with pytest.raises(DataError, match="a pipe or a device"):
            load_data(f"npz:{path}")
        with pytest.raises(ExportError, match="no regular file"):
            open_onnx(path)


# --- images and arrays ---


def images(folder: Path) -> Path:
    for name in "ab":
        (folder / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "train" / name / f"{number}.png")
    return folder


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    folder = images(tmp_path)
    plain = load_data(f"imagefolder:{folder}").splits["train"]
    for number in range(3):
        (folder / f"train/a/l{number}").symlink_to(".")
    (folder / "train/a/up").symlink_to("..")
    looped = load_data(f"imagefolder:{folder}").splits["train"]
    assert len(looped) == len(plain) + 3  # class b's three come by the link upwards


def test_a_linked_folder_is_read(tmp_path: Path) -> None:
    folder = images(tmp_path / "d")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more/x.png")
    before = len(load_data(f"imagefolder:{folder}").splits["train"])
    (folder / "train/a/more").symlink_to(tmp_path / "more")
    assert len(load_data(f"imagefolder:{folder}").splits["train"]) == before + 1


def png(side: int) -> bytes:
    """A picture that claims side x side pixels, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 13_000, 30_000, 2**31 - 1])
def test_pictures_that_claim_too_many_pixels(tmp_path: Path, side: int) -> None:
    (tmp_path / "x.png").write_bytes(png(side))
    with pytest.raises(DataError, match="readable image"):
        opened(str(tmp_path / "x.png"), "RGB")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match="cannot identify"):
        opened(str(tmp_path / "x.png"), "RGB")


def test_arrays_that_unpack_to_far_more(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "x.npz",
        train_images=np.zeros((1100, 256, 256), np.uint8),
        train_labels=np.arange(1100) % 3,
    )
    with pytest.raises(DataError, match="unpack to"):
        load_data(f"npz:{tmp_path / 'x.npz'}")


def test_arrays_that_claim_more_than_they_have(tmp_path: Path) -> None:
    claims = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claims, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)}
    )
    labels = io.BytesIO()
    np.save(labels, np.zeros(4, np.int64))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("train_images.npy", claims.getvalue() + bytes(256))
        archive.writestr("train_labels.npy", labels.getvalue())
    with pytest.raises(DataError, match="train_images claims"):
        load_data(f"npz:{tmp_path / 'x.npz'}")


# --- recipes ---


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, checkpoints gated in two ways, and exported files."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(folder / "r20.pt")
        call(
            "attach",
            "r20.pt",
            "--method",
            "ind-perbatch",
            "--input-size",
            8,
            "--out",
            "ind.safetensors",
        )
        call(
            "attach",
            "r20.pt",
            "--method",
            "gaternet",
            "--input-size",
            8,
            "--out",
            "gaternet.safetensors",
        )
        call("prune", "ind.safetensors", "--out", "pruned.safetensors")
        call(
            "export",
            "r20.pt",
            "--input-size",
            8,
            "--format",
            "weights",
            "--out",
            "o.weights.safetensors",
        )
        call("export", "r20.pt", "--input-size", 8, "--format", "onnx", "--out", "o.onnx")
        Image.new("RGB", (8, 8)).save("one.png")
    return folder


def source(arch: str, **args: Any) -> Callable[[dict[str, Any]], None]:
    return lambda recipe: recipe["source"].update(arch=arch, arch_args=args)


def many_steps(recipe: dict[str, Any]) -> None:
    recipe["steps"] = recipe["steps"] * 300


def many_notes(recipe: dict[str, Any]) -> None:
    recipe["steps"] = [{**recipe["steps"][0], "op": "calibrate"}] * 5000


def empty_steps(recipe: dict[str, Any]) -> None:
    recipe["steps"][0]["settings"]["sites"] = []


RECIPES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "classes": (source("torchvision:resnet18", num_classes=10_000_000), "far larger"),
    "another network": (source("torchvision:vit_h_14"), "far larger"),
    "positions": (source("torchvision:vit_b_16", image_size=65_536), "far larger"),
    "channels": (source("cifar:resnet20", channels=65_536), ""),
    "depth": (source("torchvision:densenet121", growth_rate=60_000), ""),
    "pixels": (lambda recipe: recipe["input"].update(size=[65_536, 65_536]), "pixels"),
    "a long number": (lambda recipe: recipe["source"].update(params=10**4000), "params"),
    "a longer number": (
        lambda recipe: recipe["steps"][0]["results"].update(max_logit_change=int("9" * 4000)),
        "",
    ),
    "the same step": (many_steps, "twice"),
    "notes": (many_notes, "more than 1000 steps"),
    "nothing attached": (empty_steps, "to nothing"),
}


@pytest.mark.parametrize("file", ["ind.safetensors", "gaternet.safetensors"])
@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_that_ask_for_too_much(shelf: Path, tmp_path: Path, kind: str, file: str) -> None:
    change, words = RECIPES[kind]
    path = edit(shelf / file, tmp_path / "x.safetensors", recipe=change)
    if kind == "a longer number":  # it is no number of anything
        checkpoint.read(path)
        return
    with pytest.raises(GatecliError) as caught:
        checkpoint.read(path)
    assert words in str(caught.value) and len(str(caught.value)) < 600


def test_a_gater_too_is_no_larger_than_the_file(shelf: Path, tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe["steps"][0]["settings"]["settings"].update(gater="torchvision:vit_h_14")

    path = edit(shelf / "gaternet.safetensors", tmp_path / "x.safetensors", recipe=change)
    with pytest.raises(GatecliError):
        checkpoint.read(path)


def test_networks_are_counted_while_they_are_built() -> None:
    sizes = [
        tensor.numel() for tensor in build_skeleton("cifar:resnet20", {}).state_dict().values()
    ]
    with at_most(len(sizes) + 50, sum(sizes) + 50):
        build_skeleton("cifar:resnet20", {})
    for tensors, numbers in ((len(sizes) // 2, sum(sizes)), (len(sizes), sum(sizes) // 2)):
        with at_most(tensors, numbers), pytest.raises(TooLarge, match="far larger than the file"):
            build_skeleton("cifar:resnet20", {})
    build_skeleton("cifar:resnet20", {})  # outside, nothing is counted


def test_every_known_network_is_within_the_ceiling_of_its_own_file() -> None:
    """Heads that evaluation never runs are not in the file, nor is what was removed."""
    from gatecli.architectures.table import table

    for row in table():
        sizes = [
            math.prod(abs(side) for side in shape)
            for name, shape in row.tensors.items()
            if "aux" not in name.lower()
        ]
        everything = [math.prod(abs(side) for side in shape) for shape in row.tensors.values()]
        tensors, numbers = limits.network(len(sizes), sum(sizes), pruned=False)
        assert len(everything) * 6 / 5 < tensors and sum(everything) < numbers
        tensors, _ = limits.network(len(sizes) // 5, 0, pruned=True)
        assert len(everything) < tensors
        assert len(everything) < limits.TENSORS


def test_a_weights_file_is_called_what_it_is(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shelf)
    refused(["inspect", "o.weights.safetensors"], "a weights file that gatecli export wrote")


# --- ONNX files ---

FACTS = {
    "arch": "a",
    "num_classes": 2,
    "input_size": [8, 8],
    "channels": 3,
    "mean": None,
    "std": [1, 0.5, 1],
    "classes": ["a", "b"],
    "batch": None,
    "crop": True,
    "exits": [],
    "gates": [],
}


def test_facts_survive_json() -> None:
    assert Facts.from_json(json.dumps(FACTS), "x") == Facts(**FACTS)
    assert Facts.from_json(json.dumps({**FACTS, "more": 1}), "x").arch == "a"


VALUES = [
    None,
    True,
    -1,
    0,
    5,
    5.5,
    10**30,
    "x",
    "",
    [],
    [None],
    [None, 8],
    ["a"],
    [0, 0, 0],
    [1e300, 5],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("name", FACTS)
def test_odd_facts_are_refused_or_as_good_as_others(name: str) -> None:
    for value in VALUES:
        try:
            facts = Facts.from_json(json.dumps({**FACTS, name: value}), "x.onnx")
        except ExportError as error:
            assert "x.onnx" in str(error) and "\n" not in str(error) and len(str(error)) < 600
        else:
            assert type(getattr(facts, name)) in (type(FACTS[name]), type(value))
    with pytest.raises(ExportError, match=f"it has no '{name}'"):
        Facts.from_json(
            json.dumps({key: value for key, value in FACTS.items() if key != name}), "x.onnx"
        )


def with_metadata(shelf: Path, path: Path, text: str) -> Path:
    import onnx

    model = onnx.load(shelf / "o.onnx")
    next(entry for entry in model.metadata_props if entry.key == "gatecli").value = text
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "5",
        "",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({**FACTS, "num_classes": 10, "classes": None, "exits": ["x"], "gates": ["y"]}),
    ],
)
def test_odd_metadata_is_one_line(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with_metadata(shelf, tmp_path / "x.onnx", text)
    if "gates" in text:  # nothing says which exit was taken, or what was skipped
        assert call("run", "x.onnx", shelf / "one.png")["predictions"][0]["skipped"] is None
    else:
        assert "export it again" in refused(
            ["run", "x.onnx", shelf / "one.png"], "x.onnx", "metadata"
        )


def test_facts_that_do_not_fit_the_network(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for facts, words in (
        ({"num_classes": 7, "classes": None}, "(1, 7)"),
        (
            {"num_classes": 10, "classes": None, "channels": 1, "mean": [0.5], "std": [0.5]},
            "ONNX Runtime cannot run",
        ),
    ):
        with_metadata(shelf, tmp_path / "x.onnx", json.dumps({**FACTS, **facts}))
        refused(["run", "x.onnx", shelf / "one.png"], "x.onnx", words)


def test_weights_in_other_files_are_refused(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.chdir(tmp_path)
    onnx.save(
        onnx.load(shelf / "o.onnx"),
        "x.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    refused(["run", "x.onnx", shelf / "one.png"], "x.onnx", "refers to other files")


def test_weights_in_other_files_are_seen_in_branches_too(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="/etc/passwd")
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["w"], value=weight)], "branch", [], [output]
    )
    choice = helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [choice], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [output]
    )
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(ExportError, match="refers to other files"):
        open_onnx(tmp_path / "x.onnx")


# --- names in generated source ---

NAMES = [
    "it's",
    'a"b',
    "a\nb",
    "a\\",
    "a b",
    "a-b",
    "class",
    "None",
    "é",
    "\ufb01",
    "²",
    "x'); __import__('os').mkdir('ran'); ('",
    "",
]


def named(name: str) -> nn.Module:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict()
            self.inner._modules[name] = nn.Conv2d(3, 4, 1)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return self.fc(self.inner._modules[name](x).mean((2, 3)))

    return Own()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "a-b"])
def test_modules_whose_names_no_source_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchitectureError, match="rename it") as caught:
        attach(named(name), "ind-perbatch", input_size=(8, 8))
    assert repr(f"inner.{name}") in str(caught.value) and not Path("ran").exists()


@pytest.mark.parametrize("name", ["a", "A_1", "0", "12", "_x", "a-b"])
def test_modules_with_plain_names(name: str) -> None:
    assert f"inner.{name}" in [node.target for node in trace(named(name)).nodes]


@pytest.mark.parametrize("name", NAMES)
def test_other_spellings_are_names_too(name: str) -> None:
    root = named("a")
    with pytest.raises(ArchitectureError, match="expected another name"):
        rename(root, trace(root), {"fc": name})


def test_a_layer_that_prints_code_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "__import__('os').mkdir('ran')"
    layer = nn.LeakyReLU()
    layer.negative_slope = code  # type: ignore[assignment]  # printed as it is
    assert code not in Writer().constructor(layer, "x")
    spoofed = type(
        "ReLU",
        (nn.ReLU,),
        {"__module__": "torch.nn.modules.activation", "extra_repr": lambda self: f"inplace={code}"},
    )()
    assert "mkdir" not in Writer().constructor(spoofed, "x")
    assert not Path("ran").exists()


def test_layers_are_spelled_as_before() -> None:
    layers = {
        "nn.Conv2d(3, 4, kernel_size=(1, 1))": nn.Conv2d(3, 4, 1),
        "nn.BatchNorm2d(4)": nn.BatchNorm2d(4),
        "nn.LeakyReLU(negative_slope=0.2)": nn.LeakyReLU(0.2),
        "nn.LayerNorm((4,))": nn.LayerNorm(4),
    }
    found = [Writer().constructor(layer, "x") for layer in layers.values()]
    assert [text.replace(", stride=(1, 1)", "") for text in found] == list(layers)


def test_a_recipe_may_be_nested_without_end() -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Recipe.from_json("[" * 100_000, "x")
