"""Undamaged files of every form, and what they say of four images, made once for a campaign."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from campaigns.commands import command
from gatecli import checkpoint
from gatecli.architectures.build import build
from gatecli.training import Run

SIDE = 8
ANSWERS, STATE, WEIGHTS = "answers.safetensors", "state.safetensors", "export.weights.safetensors"
GATED = "attached.ind-perbatch.safetensors"
METHODS = ("ind-perbatch", "aig-pergate", "dgate", "early-exit", "gaternet", "cgnet")
FEW = ("ind-perbatch",)
SETTINGS = {"early-exit": ["--set", "width=8"]}
TRAIN = ["--data", "digits", "--epochs", 1, "--batch-size", 256, "--bn-batches", 1, "--lr", 0.05]


def images() -> Tensor:
    """The images whose logits are compared."""
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def make(folder: Path, methods: Iterable[str] = METHODS, exports: bool = True) -> None:
    """Fill a folder, which may be there already from an earlier campaign."""
    if (folder / ANSWERS).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with inside(folder):
        _plain()
        for method in methods:
            _gated(method)
        _state()
        _data()
        if exports:
            _exports()
        _answers()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def answers(folder: Path) -> dict[str, Tensor]:
    """Each file's logits of `images()`."""
    return load_file(folder / ANSWERS)


def logits_of(path: Path) -> Tensor:
    """What the network in a file says of `images()`."""
    network = checkpoint.load(path)
    with torch.inference_mode():
        logits: Tensor = network(images())
        return logits


def _do(*args: object) -> None:
    done = command(*args)
    if done.code != 0 or done.escaped:
        raise RuntimeError(f"gatecli {' '.join(map(str, args))}: {done.err} {done.escaped}")


def _plain() -> None:
    """State dicts as users have them."""
    torch.manual_seed(0)
    state = build("cifar:resnet20", {}).state_dict()
    torch.save(state, "zip.pt")
    torch.save(state, "legacy.pt", _use_new_zipfile_serialization=False)
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(9)}}, "param_groups": [{"lr": 0.1}]}
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}}
    args = argparse.Namespace(lr=0.1, name="x")
    torch.save({**wrapped, "optimizer": momentum, "epoch": 3, "args": args}, "wrapped.pt")
    save_file(state, "plain.safetensors")


def _gated(method: str) -> None:
    attached, tuned = f"attached.{method}.safetensors", f"tuned.{method}.safetensors"
    more = SETTINGS.get(method, [])
    _do("attach", "zip.pt", "--method", method, "--input-size", SIDE, *more, "--out", attached)
    _do("finetune", attached, *TRAIN, "--out", tuned)
    _do("prune", tuned, "--data", "digits", "--out", f"pruned.{method}.safetensors")
    calibrated = f"calibrated.{method}.safetensors"
    _do("calibrate", tuned, "--data", "digits", "--max-drop", 5, "--out", calibrated)


def _state() -> None:
    """The state of a training that did not come to its end."""
    with mock.patch.object(Run, "finish"):
        _do("finetune", GATED, *TRAIN, "--save-every", 0, "--out", "out.safetensors")
    Path(".gatecli/runs/out/state.safetensors").rename(STATE)
    Path("out.safetensors").unlink()


def _data() -> None:
    """A data set as arrays and one as image files."""
    chance = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 40), ("val", 20), ("test", 20)):
        pixels = chance.randint(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels[:, None]}
    np.savez("arrays.npz", **arrays)
    for number in range(8):
        _image_file(number, chance)
    Image.new("RGB", (SIDE, SIDE), (10, 200, 30)).save("image.png")


def _image_file(number: int, chance: np.random.RandomState) -> None:
    split, name = ("train", "val")[number % 2], ("ant", "bee")[number // 2 % 2]
    suffix = ("png", "jpg", "bmp", "tif")[number % 4]
    folder = Path("images", split, name)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = chance.randint(0, 256, (12, 14, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.{suffix}")


def _exports() -> None:
    size = ["--input-size", SIDE]
    _do("export", "zip.pt", *size, "--format", "weights", "--out", WEIGHTS)
    _do("export", "zip.pt", *size, "--format", "onnx", "--out", "plain.onnx")
    gated = "calibrated.aig-pergate.safetensors"
    _do("export", gated, "--format", "onnx", "--decisions", "--out", "gated.onnx")


def _answers() -> None:
    files = [*Path().glob("*.safetensors"), *Path().glob("*.pt")]
    networks = [path for path in files if path.name not in (STATE, WEIGHTS)]
    known = {path.name: logits_of(path) for path in networks}
    for path in Path().glob("*.onnx"):
        known[path.name] = probabilities(command("run", path, "image.png", "--json").out)
    save_file(known, ANSWERS)


def probabilities(out: str) -> Tensor:
    """What `gatecli run --json` says of one image: a class and its probability, three times."""
    found = json.loads(out)["predictions"][0]["classes"]
    return torch.tensor([[one["class"], one["probability"]] for one in found])
