"""Exits in pieces: one file a stage, and a runner that needs numpy and their runtime alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, refused, run, save_npz, save_source
from environment import environment
from networks import CASES
from PIL import Image
from test_export import close, gated, undecided
from torch import Tensor

import gatecli
from gatecli import exporting
from gatecli.data import batches, load_data
from gatecli.errors import ExportError
from gatecli.exporting.export import export
from gatecli.exporting.split import write
from gatecli.exporting.split.cut import pieces
from gatecli.exporting.split.int8 import quantise_pieces
from gatecli.exporting.split.run import open_split
from gatecli.exporting.split.standalone import Pieces
from gatecli.network import Network
from gatecli.stages.fit import fit

needs_openvino = pytest.mark.skipif(
    not importlib.util.find_spec("openvino"), reason="needs openvino"
)
FORMATS = ["onnx", pytest.param("openvino", marks=needs_openvino)]
# Uses the runner as a program would that has only what lies in the folder.
WITH_RUNNER = """
import sys, numpy
sys.path.insert(0, sys.argv[1])
import net_split
network = net_split.load(threads=1)
logits, taken = network(numpy.load(sys.argv[2]))
numpy.savez(sys.argv[3], logits=logits, taken=taken)
"""


def images(count: int, seed: int = 4) -> Tensor:
    return CASES["own"].images(count, seed=seed)


def whole(network: Network, given: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits, taken = network(given, return_exits=True)
    return logits, taken


def two_exits() -> Network:
    """Exits by which a third of the images leaves, and half of the rest."""
    network = gatecli.attach(CASES["cifar-projection"].network(), "dgate").network
    return undecided(network)


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for format, package in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        if importlib.util.find_spec(package):
            found[format] = environment(tmp_path_factory.mktemp(package), package)
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_pieces_run_alone(format: str, pythons: dict[str, Path], tmp_path: Path) -> None:
    network, given = gated("own", "aig-perbatch", "dgate"), images(9)
    done = export(network, tmp_path / "net.split.json", format, images=given, split=True)
    assert (done.stages, done.batch, done.dynamic) == (2, None, True)
    assert done.masked == [site for site in network.site_gates if site not in network.site_exits]
    assert sorted(tmp_path.iterdir()) == sorted(done.files)
    np.save(tmp_path / "images.npy", given.numpy())
    given_to = [tmp_path, tmp_path / "images.npy", tmp_path / "found.npz"]
    told = subprocess.run(
        [pythons[format], "-I", "-c", WITH_RUNNER, *given_to],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    found, (logits, taken) = np.load(tmp_path / "found.npz"), whole(network, given)
    assert found["taken"].tolist() == taken.tolist() and set(taken.tolist()) == {0, 1}
    assert close(torch.from_numpy(found["logits"]), logits)


@pytest.mark.parametrize("format", FORMATS)
def test_who_leaves_leaves_the_batch(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, given = two_exits(), CASES["cifar-projection"].images(24, seed=7)
    export(network, tmp_path / "net.split.json", format, images=given, split=True)
    runner = opened(tmp_path, format)
    sizes: list[int] = []
    for number, stage in enumerate(runner.stages):

        def counted(values: list[Any], stage: Any = stage) -> Any:
            sizes.append(len(values[0]))
            return stage(values)

        runner.stages[number] = counted
    logits, taken = whole(network, given)
    found = runner(given.numpy())
    assert close(torch.from_numpy(found[0]), logits) and found[1].tolist() == taken.tolist()
    assert sizes == [int((taken >= stage).sum()) for stage in range(3)] and sizes[-1] > 0
    for count in (0, 1, 5):
        assert runner(given[:count].numpy())[1].tolist() == taken[:count].tolist()
    leaver = given[taken == 0][:1]
    sizes.clear()
    runner(leaver.numpy())
    assert sizes == [1]


def opened(folder: Path, format: str) -> Pieces:
    """The runner as it was written, on the files in the folder."""
    space: dict[str, Any] = {"__file__": str(folder / "net_split.py"), "__name__": "net_split"}
    exec((folder / "net_split.py").read_text(encoding="utf-8"), space)
    found: Pieces = space["load"](threads=1)
    return found


def test_what_later_stages_need_goes_along(tmp_path: Path) -> None:
    """A gater decides about all filters at the beginning."""
    network = gatecli.attach(CASES["own"].network(), "gaternet").network
    draw = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if name.startswith("gater."):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    network = undecided(gatecli.attach(network, "dgate").network)
    found = pieces(network.cpu(), images(1))
    assert len(found[0].gives) > 3 and len(found[1].takes) == len(found[0].gives) - 2
    done = export(network, tmp_path / "net.split.json", images=images(12), split=True)
    assert done.max_difference <= 1e-4 and done.images > 0


@pytest.mark.parametrize("format", FORMATS)
def test_the_runner_is_short_and_plain(format: str, tmp_path: Path) -> None:
    export(gated("own", "dgate"), tmp_path / "net.split.json", format, images=images(4), split=True)
    text = (tmp_path / "net_split.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100 and max(map(len, text.splitlines())) <= 100
    assert "torch" not in text and "import gatecli" not in text
    told = json.loads((tmp_path / "net.split.json").read_text(encoding="utf-8"))
    assert told["gatecli"]["mean"] == [0.485, 0.456, 0.406]  # ImageNet's, said in full
    assert [stage["exit"] for stage in told["stages"]] == ["exit1", None]


def test_the_runner_prepares_pixels(tmp_path: Path) -> None:
    network = gated("own", "dgate")
    names = ["a", "b", "c", "d", "e"]
    export(network, tmp_path / "net.split.json", images=images(4), split=True, classes=names)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    runner = opened(tmp_path, "onnx")
    mean, std = (torch.tensor(runner.facts[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    assert close(torch.from_numpy(runner.normalised(pixels)).float(), expected)
    np.save(tmp_path / "pixels.npy", pixels)
    said = program(tmp_path, "pixels.npy").stdout.split()
    logits, taken = whole(network, expected)
    assert said[::2] == [names[best] for best in logits.argmax(1).tolist()]
    assert said[1::2] == [["exit1", "end"][number] for number in taken.tolist()]


def program(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    import sys

    return subprocess.run(
        [sys.executable, folder / "net_split.py", *args],
        cwd=folder,
        capture_output=True,
        text=True,
    )


# --- what cannot be, and damaged files ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    Image.new("RGB", (20, 14), (200, 30, 90)).save(tmp_path / "one.png")
    return tmp_path


def exits_file(path: str) -> None:
    """A checkpoint with two exits, at which some random images leave."""
    call("attach", "r20.pt", "--method", "dgate", "--input-size", 8, "--out", "new.safetensors")
    network = gatecli.load("new.safetensors")
    gatecli.checkpoint.write(undecided(network), Path(path))


def test_bad_requests(here: Path) -> None:
    call("attach", "r20.pt", "--method", "dgate", "--input-size", 8, "--out", "e.safetensors")
    refused(["export", "r20.pt", "--input-size", 8, "--split"], "has none", "leave --split out")
    refused(["export", "e.safetensors", "--split"], "not been calibrated")
    refused(["export", "e.safetensors", "--split", "--force"], "exits that images can leave by")
    refused(["export", "e.safetensors", "--split", "--format", "pt2"], "--split is for ONNX", "pt2")
    for option in ("--all-computed", "--decisions"):
        refused(["export", "e.safetensors", "--split", "--force", option], "--split and " + option)


def test_damaged_pieces(tmp_path: Path) -> None:
    export(gated("own", "dgate"), tmp_path / "net.split.json", images=images(4), split=True)
    np.save(tmp_path / "images.npy", images(2).numpy())
    np.save(tmp_path / "small.npy", images(2)[..., 1:].numpy())
    assert program(tmp_path, "images.npy").returncode == 0
    for args, word in (([], "index"), (["no.npy"], "no.npy"), (["small.npy"], "expected images")):
        one_line(tmp_path, args, word)
    piece, text = tmp_path / "net.stage1.onnx", tmp_path / "net.split.json"
    whole_piece, whole_text = piece.read_bytes(), text.read_text(encoding="utf-8")
    piece.write_bytes(whole_piece[:-100])
    one_line(tmp_path, ["images.npy"], "net.stage1.onnx is damaged")
    piece.unlink()
    one_line(tmp_path, ["images.npy"], "No such file", "net.stage1.onnx")
    piece.write_bytes(whole_piece)
    for before, after in (
        ('"stages"', '"steps"'),
        ("{", "["),
        ('"threshold": null', '"threshold": nul'),
        ('"num_classes": 5', '"num_classes": null'),
        ('"exit1"', "null, 3"),
    ):
        text.write_text(whole_text.replace(before, after), encoding="utf-8")
        one_line(tmp_path, ["images.npy"], "net.split.json")


def one_line(folder: Path, args: list[str], *words: str) -> None:
    """The runner, and gatecli, end with one line that has the words."""
    told = program(folder, *args)
    assert told.returncode == 1 and told.stderr.startswith("error: "), told.stderr
    assert len(told.stderr.splitlines()) == 1 and all(word in told.stderr for word in words)
    if args == ["images.npy"]:
        with pytest.raises(ExportError) as caught:
            open_split(folder / "net.split.json")
        assert "\n" not in str(caught.value)


def test_nothing_is_written_where_exits_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = gated("own", "dgate")
    monkeypatch.setattr(write, "float", lambda limit: 1e6, raising=False)  # thresholds, in the file
    with pytest.raises(ExportError, match="other exits"):
        export(network, tmp_path / "net.split.json", images=images(6), split=True)
    assert not list(tmp_path.iterdir())


# --- the command line ---


@pytest.mark.parametrize("format", FORMATS)
def test_split_and_run(format: str, here: Path) -> None:
    exits_file("e.safetensors")
    done = call("export", "e.safetensors", "--split", "--format", format)
    assert done["out"] == "e.split.json" and done["stages"] == 3 and done["dynamic"]
    assert done["files"][:2] == ["e.split.json", "e_split.py"]
    native = call("run", "e.safetensors", "one.png", "--repeats", 1)["predictions"][0]
    found = call("run", "e.split.json", "one.png", "--repeats", 1)["predictions"][0]
    assert found["exit"] == native["exit"] and found["skipped"] == []
    assert [one["class"] for one in found["classes"]] == [one["class"] for one in native["classes"]]
    assert "one.png" in run("run", "e.split.json", "one.png").out
    refused(["export", "e.safetensors", "--split", "--format", format], "e.split.json", "--force")
    (here / "e.split.json").unlink()
    refused(["export", "e.safetensors", "--split", "--format", format], "e_split.py", "--force")
    refused(["run", "e.split.json", "one.png"], "e.split.json")


def test_a_missing_package_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "gatecli.exporting.openvino.packages.find_spec",
        lambda name: None if name == "openvino" else find(name),
    )
    asked = ["export", "r20.pt", "--input-size", 8, "--format", "openvino"]
    refused(asked, "pip install 'gatecli[openvino]'")
    (here / "a.xml").write_text("<net/>", encoding="utf-8")
    refused(["run", "a.xml", "one.png"], "pip install 'gatecli[openvino]'")


# --- in eight bits ---


def eight_bits(*more: object) -> dict[str, Any]:
    command = ["export", "e.safetensors", "--split", "--int8", "--data", "npz:d.npz", *more]
    return call(*command, "--val-images", 30)


def test_stages_in_eight_bits(here: Path) -> None:
    exits_file("e.safetensors")
    save_npz(here / "d.npz")
    done = eight_bits("--calibration-images", 64)
    assert done["out"] == "e.int8.split.json" and done["stages"] == 3
    assert all((here / file).is_file() for file in done["files"]) and len(done["files"]) == 5
    call("export", "e.safetensors", "--split", "--data", "npz:d.npz")
    both = [opened_as(name) for name in ("e_split", "e_int8_split")]
    network = gatecli.load("e.safetensors")
    data = fit(network, load_data("npz:d.npz"))
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:30].sort().values
    walk = batches(data.splits["val"].take(rows), input=network.input, batch_size=30)
    given, labels = next(iter(walk))
    (full, left), (small, leaves) = (each(given.numpy()) for each in both)
    found = done["int8"]
    for side, logits in (("before", full), ("after", small)):
        right = np.mean(logits.argmax(1) == labels.numpy())
        assert found[side]["top1"] == pytest.approx(100 * right)
    assert found["same_exit"] == pytest.approx(100 * np.mean(left == leaves))
    assert found["kept"] == pytest.approx(100 * np.mean(full.argmax(1) == small.argmax(1)))
    assert found["after"]["file_bytes"] < 0.6 * found["before"]["file_bytes"]
    assert len(set(left.tolist())) > 1
    alike = left == leaves
    assert 0 < np.abs(full[alike] - small[alike]).max() < 0.2 * np.abs(full).max()
    shown = call("run", "e.int8.split.json", "one.png", "--repeats", 1)
    assert shown["precision"] == "int8" and shown["predictions"][0]["exit"] is not None


def opened_as(name: str) -> Pieces:
    """A runner in this folder, by its name."""
    space: dict[str, Any] = {"__file__": str(Path(f"{name}.py").resolve()), "__name__": name}
    exec(Path(f"{name}.py").read_text(encoding="utf-8"), space)
    found: Pieces = space["load"](threads=1)
    return found


def test_ranges_are_measured_on_what_comes_to_a_stage(tmp_path: Path) -> None:
    network, given = two_exits(), CASES["cifar-projection"].images(24, seed=7)
    export(network, tmp_path / "net.split.json", images=given, split=True)
    _, taken = whole(network, given)
    seen: list[int] = []

    def counted(source: Path, out: Path, feeds: Any) -> None:
        seen.append(sum(len(values[0]) for values in feeds))
        out.write_bytes(source.read_bytes())

    format = exporting.get("onnx")
    assert format.pieces is not None
    way = replace(format.pieces(), quantise=counted)
    format = replace(format, pieces=lambda: way)
    copy = tmp_path / "copy" / "net.split.json"
    copy.parent.mkdir()
    quantise_pieces(tmp_path / "net.split.json", copy, format, lambda: given.split(5))
    assert seen == [int((taken >= stage).sum()) for stage in range(3)]
    leavers = given[taken == 0]
    with pytest.raises(ExportError, match=r"none of \d+ images of train comes to stage 1"):
        quantise_pieces(tmp_path / "net.split.json", copy, format, lambda: [leavers])


def test_bad_requests_for_eight_bits(here: Path) -> None:
    exits_file("e.safetensors")
    command = ["export", "e.safetensors", "--split"]
    refused([*command, "--int8", "--format", "openvino"], "--int8 is for ONNX files: openvino")
    refused([*command, "--int8"], "expected a data set with --int8", "--data")
    refused([*command, "--for-this-processor"], "networks in one file", "--split out")
