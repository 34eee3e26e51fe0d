"""Reading every form of checkpoint, and one line for every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import read_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from gatecli.checkpoint.formats import file_sha256
from gatecli.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(4)}


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = TENSORS) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def error(path: Path, trust_pickle: bool = False) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path, trust_pickle=trust_pickle)
    text = str(caught.value)
    assert path.name in text and "\n" not in text
    return text


def save(path: Path, what: Any, old: bool = False) -> Path:
    torch.save(what, path, _use_new_zipfile_serialization=not old)
    return path


# --- forms ---


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin"])
def test_safetensors_whatever_the_name(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / name)
    found = read_tensors(str(tmp_path / name))
    assert same({key: found[key] for key in TENSORS}) and len(found) == len(TENSORS)


@pytest.mark.parametrize(
    ("name", "old"), [("x.pt", False), ("x.pt", True), ("x.bin", False), ("x.safetensors", False)]
)
def test_torch_files_new_and_old(tmp_path: Path, name: str, old: bool) -> None:
    assert same(read_tensors(save(tmp_path / name, TENSORS, old)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {
            "state_dict": t,
            "epoch": 3,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        },
        lambda t: {"model": t, "best": torch.tensor(0.5)},
        lambda t: {"model_state_dict": t},
        lambda t: {"net": t, "acc": 93.0},
        lambda t: {"ema": t},
        lambda t: {"state_dict_ema": t},
        lambda t: {"ema": {"a.weight": torch.zeros(1)}, "model": t},
        lambda t: {"state_dict_ema": {"a.weight": torch.zeros(1)}, "state_dict": t},
        lambda t: {"model": {"name": "resnet"}, "state_dict": {"net": {"model": t}}},
        lambda t: {"model": t, "args": argparse.Namespace(lr=0.1)},
        lambda t: {**t, "epoch": 3, "note": "x", 5: torch.zeros(1)},
    ],
)
def test_wrappings(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    assert same(read_tensors(save(tmp_path / "x.pt", wrap(TENSORS))))


def test_floats_become_float32_and_contiguous(tmp_path: Path) -> None:
    kinds = {
        str(kind): torch.ones(2, 3, dtype=kind).t()
        for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    }
    found = read_tensors(
        save(
            tmp_path / "x.pt",
            {
                **kinds,
                "p": nn.Parameter(torch.ones(2)),
                "nan": torch.tensor([float("nan"), float("inf")]),
            },
        )
    )
    assert {name for name, tensor in found.items() if tensor.dtype != torch.float32} == {
        "torch.int64",
        "torch.bool",
    }
    assert all(
        tensor.is_contiguous() and not tensor.requires_grad and type(tensor) is Tensor
        for tensor in found.values()
    )
    assert torch.isnan(found["nan"][0]) and torch.isinf(found["nan"][1])


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_tensors_outlive_their_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(TENSORS, path) if path.suffix == ".safetensors" else save(path, TENSORS)
    found = read_tensors(path)
    os.truncate(path, 0)
    assert torch.equal(found["a.weight"], TENSORS["a.weight"])


def test_files_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "x.pt", TENSORS)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(read_tensors(tmp_path / "x.pt"))


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(CheckpointError, match="does not exist"):
        file_sha256(tmp_path / "none")


# --- trust ---


@pytest.mark.parametrize("old", [False, True])
def test_whole_modules_only_with_trust(tmp_path: Path, old: bool) -> None:
    module = nn.Linear(2, 3)
    path = save(tmp_path / "x.pt", {"model": module}, old)
    text = error(path)
    assert "--trust-pickle" in text and "torch.nn.modules.linear.Linear" in text
    assert same(read_tensors(path, trust_pickle=True), dict(module.state_dict()))


def test_trusted_class_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickled_usernet.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import pickled_usernet  # type: ignore[import-not-found]

    path = save(tmp_path / "x.pt", pickled_usernet.Net(2, 3))
    monkeypatch.undo()
    monkeypatch.delitem(__import__("sys").modules, "pickled_usernet")
    assert "No module named 'pickled_usernet'" in error(path, trust_pickle=True)
    monkeypatch.chdir(tmp_path)
    assert list(read_tensors(path, trust_pickle=True)) == ["weight", "bias"]


@pytest.mark.parametrize("write", ["zip", "old", "bare", "protocol0"])
def test_a_pickle_that_runs_code_does_not(tmp_path: Path, write: str) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    if write in ("zip", "old"):
        save(path, {"state_dict": Evil(mark), **TENSORS}, write == "old")
    else:
        path.write_bytes(pickle.dumps(Evil(mark), protocol=0 if write == "protocol0" else None))
    assert "--trust-pickle" in (text := error(path)) and "mkdir" in text
    assert not mark.exists()


def test_bare_pickle_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"state_dict": TENSORS}))
    assert "--trust-pickle" in error(path)
    assert same(read_tensors(path, trust_pickle=True))


# --- errors ---


def test_missing_folder_empty_and_foreign(tmp_path: Path) -> None:
    assert "does not exist" in error(tmp_path / "none.pt")
    assert "is a folder" in error(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "is empty" in error(tmp_path / "empty.pt")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    assert "neither safetensors nor a PyTorch file" in error(tmp_path / "page.pt")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", b"x")
    assert "zip archive but not a PyTorch file" in error(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (torch.zeros(3), "expected a state dict but got a Tensor"),
        ([torch.zeros(3)], "expected a state dict but got a list"),
        (5, "expected a state dict but got an int"),
        ({"epoch": 3, "lr": 0.1}, "a dict without tensors (keys: epoch, lr)"),
        ({}, "a dict without tensors (keys: none)"),
        ({"a": torch.zeros(3).to_sparse()}, "sparse"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_other_objects(tmp_path: Path, what: Any, words: str, old: bool) -> None:
    assert words in error(save(tmp_path / "x.pt", what, old))


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"epoch": 1}
    loop["model"] = loop
    assert "without tensors" in error(save(tmp_path / "x.pt", loop))


def test_bare_pickle_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "plain pickle without tensors" in error(tmp_path / "x.pt")


@pytest.mark.parametrize("form", ["safetensors", "zip", "old", "bare"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_cut_off(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pt")
    if form == "safetensors":
        save_file({"w": torch.zeros(500)}, path)
    elif form == "bare":
        path.write_bytes(pickle.dumps({"w": torch.zeros(500)}))
    else:
        save(path, {"w": torch.zeros(500)}, form == "old")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(4, int(share * len(whole)))])
    for trust in (False, True):
        assert "damaged" in error(path, trust)


def test_cut_safetensors_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":')
    assert "damaged or cut off" in error(path)


def test_flipped_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.rand(5000)})
    whole = path.read_bytes()
    for place in (
        len(whole) // 2,
        100,
        len(whole) - 60,
    ):  # a weight, the pickle, the zip's own directory
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert "damaged or cut off" in error(path)
    save_file({"w": torch.rand(50)}, path)
    whole = path.read_bytes()
    for place in (0, 9, 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert "damaged or cut off" in error(path)


def test_any_damage_is_one_line(tmp_path: Path) -> None:
    """Every cut and many flips of a small file either read or are refused in one line.

    Nothing else is raised.
    """
    generator = torch.Generator().manual_seed(0)
    for form in ("zip", "old", "safetensors"):
        path = tmp_path / f"{form}.pt"
        save_file(TENSORS, path) if form == "safetensors" else save(path, TENSORS, form == "old")
        whole = path.read_bytes()
        for place in torch.randint(len(whole), (60,), generator=generator).tolist():
            for damaged in (
                whole[:place],
                whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :],
            ):
                path.write_bytes(damaged)
                try:
                    read_tensors(path)
                except CheckpointError as caught:
                    assert "\n" not in str(caught)


def test_torchscript(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"")
        archive.writestr("x/constants.pkl", b"")
    assert "TorchScript" in error(tmp_path / "x.pt")
