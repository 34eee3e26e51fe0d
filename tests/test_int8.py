"""Eight-bit files: what is in them, what is said of them, and what has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commandline import SIDE, call, refused, run, save_npz, save_source
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor

import gatecli
from gatecli import exporting
from gatecli.data import DataSet, batches, load_data
from gatecli.errors import ExportError
from gatecli.exporting import Format, registry
from gatecli.exporting.export import Exported
from gatecli.exporting.onnx.int8 import quantise
from gatecli.stages.fit import fit
from gatecli.stages.int8 import Samples, to_int8

COMMAND = ["export", "r20.pt", "--input-size", SIDE, "--data", "npz:d.npz", "--int8"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "d.npz")
    return tmp_path


def opened_data() -> tuple[DataSet, Any]:
    """The data set as the network takes it, and how it wants images."""
    network = gatecli.load("r20.pt", input_size=(SIDE, SIDE))
    return fit(network, load_data("npz:d.npz")), network.input


def answers(file: str, images: Tensor) -> Any:
    return onnxruntime.InferenceSession(file).run(["logits"], {"images": images.numpy()})[0]


def test_both_files_are_measured_on_val(here: Path) -> None:
    done = call(*COMMAND, "--val-images", 30, "--calibration-images", 20)
    call("export", "r20.pt", "--input-size", SIDE, "--data", "npz:d.npz")
    data, input = opened_data()
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:30]
    images, labels = next(batches(data.splits["val"].take(rows), input=input, batch_size=30))
    full, small = (answers(f"r20{what}.onnx", images) for what in ("", ".int8"))
    found = done["int8"]
    assert found["images"] == done["images"] == 30 and found["calibration_images"] == 20
    for side, logits, file in (("before", full, "r20.onnx"), ("after", small, "r20.int8.onnx")):
        right = np.mean(logits.argmax(1) == labels.numpy())
        assert found[side]["top1"] == pytest.approx(100 * right)
        # the metadata of both files may differ by a letter or two
        assert abs(found[side]["file_bytes"] - (here / file).stat().st_size) < 20
        assert found[side]["latency_ms"]["median"] > 0
    assert found["kept"] == pytest.approx(100 * np.mean(full.argmax(1) == small.argmax(1)))
    change = np.abs(full - small).max() / np.abs(full).max()
    assert done["max_logit_change"] == pytest.approx(change, rel=1e-3) and 0 < change < 0.2
    assert done["files"] == [done["out"]] == ["r20.int8.onnx"] and done["batch"] is None
    assert found["after"]["file_bytes"] < 0.5 * found["before"]["file_bytes"]


def test_the_file_runs_and_says_what_it_is(here: Path) -> None:
    shown = run(*COMMAND)
    assert "of 40 images of val keep their class" in shown.err and "int8" in shown.out
    Image.new("RGB", (20, 14), (200, 30, 90)).save("one.png")
    found = call("run", "r20.int8.onnx", "one.png", "--repeats", 1)
    assert found["precision"] == "int8" and len(found["predictions"]) == 1
    assert call("run", "r20.pt", "one.png", "--repeats", 1)["precision"] == "fp32"
    refused(COMMAND, "r20.int8.onnx", "--force")


def small_file(path: Path, weight: Any) -> Path:
    """A convolution and an addition, from another input than images, with two outputs."""
    sizes: list[Any] = ["batch", 3, 6, 6]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("a", "b", "c")
    ]
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "b"], ["c"]),
    ]
    weights = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_weights_are_rounded_by_channel(tmp_path: Path) -> None:
    chance = np.random.RandomState(0)
    weight = (chance.randn(3, 3, 3, 3) * [[[[0.01]]], [[[1.0]]], [[[20.0]]]]).astype(np.float32)
    source = small_file(tmp_path / "s.onnx", weight)
    feeds = [{"a": chance.randn(8, 3, 6, 6).astype(np.float32)} for _ in range(3)]
    quantise(source, tmp_path / "q.onnx", feeds)
    held = {each.name: each for each in onnx.load(tmp_path / "q.onnx").graph.initializer}
    rounded = numpy_helper.to_array(next(e for e in held.values() if len(e.dims) == 4))
    assert rounded.dtype == np.int8
    for channel in range(3):
        scale = np.abs(weight[channel]).max() / 127
        assert np.abs(rounded[channel] * scale - weight[channel]).max() <= 0.51 * scale
    sessions = [onnxruntime.InferenceSession(tmp_path / name) for name in ("s.onnx", "q.onnx")]
    for ours, theirs in zip(*(each.run(None, feeds[0]) for each in sessions), strict=True):
        assert 0 < np.abs(ours - theirs).max() <= 0.03 * np.abs(ours).max()


def test_what_decides_at_run_time_has_no_eight_bit_file(here: Path) -> None:
    source = call("attach", *COMMAND[1:4], "--method", "aig-perbatch")["out"]
    command = ["export", source, "--data", "npz:d.npz", "--int8"]
    refused(command, "gates do not depend on the image", "prune", "--all-computed")
    done = call(*command, "--all-computed")
    assert not done["dynamic"] and done["int8"]["images"] == 40 and done["masked"]
    call("export", source, "--out", "if.onnx")
    with pytest.raises(ExportError, match=r"it has branches \(`If`\).*--all-computed"):
        quantise(Path("if.onnx"), Path("q.onnx"), [])
    assert not Path("q.onnx").exists()


def test_bad_requests(here: Path) -> None:
    refused([*COMMAND[:4], "--int8"], "expected a data set with --int8", "--data")
    refused([*COMMAND, "--format", "pt2"], "--int8 is for ONNX files: pt2")
    refused([*COMMAND, "--format", "weights"], "--int8 is for ONNX files: weights")
    refused([*COMMAND, "--calibration-images", 0], "--calibration-images to be between 1")
    refused([*COMMAND, "--val-images", 0], "--val-images to be between 1")
    refused([*COMMAND[:5], "npz:gone.npz", "--int8"], "gone.npz")


def test_classes_that_val_lacks_are_said(here: Path) -> None:
    held = dict(np.load("d.npz"))
    kept = held["val_labels"].ravel() < 8
    held["val_images"], held["val_labels"] = held["val_images"][kept], held["val_labels"][kept]
    np.savez("d.npz", **held)
    shown = run(*COMMAND)
    assert shown.code == 0 and "val has no images of class 8, 9" in shown.err, shown.err


def test_a_file_that_cannot_be_quantised(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime.quantization as quantisation

    def fail(*args: object, **how: object) -> None:
        raise RuntimeError("no such operation\nmore")

    monkeypatch.setattr(quantisation, "quantize_static", fail)
    refused(COMMAND, "ONNX Runtime cannot quantise the network: no such operation")


def matcher(images: Tensor) -> Tensor:
    """Right about every image of `save_npz`: the mean where its class is bright."""
    pixels = images.mean(1).flatten(1)
    places = [[(label * 6 + place) % pixels.shape[1] for place in range(5)] for label in range(10)]
    return torch.stack([pixels[:, each].mean(1) for each in places], 1)


@pytest.fixture
def guessing(monkeypatch: pytest.MonkeyPatch) -> Format:
    """A format whose files are right, and whose eight-bit files say always the same."""

    def quantise(source: Path, out: Path, images: Any) -> None:
        assert sum(len(batch) for batch in images) == 96
        out.write_text("guess", encoding="utf-8")

    def logits(path: Path) -> Callable[[Tensor], Tensor]:
        if path.read_text(encoding="utf-8") == "guess":
            return lambda images: torch.eye(10)[:1].expand(len(images), 10)
        return matcher

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    format = Format(
        name="guessing",
        suffix=".guess",
        noun="a guess",
        write=lambda task: matcher,
        logits=logits,
        quantise=quantise,
    )
    exporting.register(format)
    return format


def test_a_useless_file_is_not_written(here: Path, guessing: Format) -> None:
    data, input = opened_data()
    (here / "full").write_text("right", encoding="utf-8")
    full = Exported(
        out=here / "full",
        format="guessing",
        files=[here / "full"],
        dynamic=False,
        batch=None,
        max_difference=0,
        images=8,
    )
    samples = Samples(data=data, input=input)
    with pytest.raises(ExportError, match=r"right for 10.00 % of 40 images.*--force"):
        to_int8(full, here / "small", samples)
    assert not (here / "small").exists()
    found = to_int8(full, here / "small", samples, accept_useless=True)
    assert (found.before.top1, found.after.top1, found.kept) == (100, 10, 10)
    assert (here / "small").read_text(encoding="utf-8") == "guess"
