"""Files for one kind of processor: blocked values pass the edges of branches, and nothing else
changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from commandline import SIDE, call, refused, run, save_source
from networks import CASES
from PIL import Image
from test_export import undecided
from torch import Tensor

import gatecli
from gatecli.errors import ExportError
from gatecli.exporting.export import export
from gatecli.exporting.onnx.blocked import DOMAIN, optimised
from gatecli.exporting.onnx.processor import lay_out
from gatecli.exporting.onnx.run import logits_of
from gatecli.network import Network
from gatecli.runtimes import machine
from gatecli.stages import for_processor as stage
from gatecli.stages import pairs


@pytest.fixture(autouse=True, scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    done = export(CASES["bottleneck"].network().eval(), folder / "probe.onnx")
    nodes = optimised(done.out, folder / "optimised.onnx").graph.node
    if all(node.domain != DOMAIN for node in nodes):
        pytest.skip("ONNX Runtime has no blocked layout on this processor")


def forced(network: Network, closed: str) -> Network:
    """The network with none, half or all of its gates closed."""
    twin = network.copy().eval()
    for place, gate in enumerate(twin.site_gates.values()):
        shut = closed == "all" or (closed == "half" and place % 2 == 0)
        gate.threshold.fill_(2.0 if shut else -1.0)
    return twin


def logits(path: Path, images: Tensor) -> Tensor:
    run = logits_of(path)
    return torch.cat([run(image) for image in torch.split(images, 1)])


def outputs(path: Path, image: Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path))
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": image.numpy()}), strict=True))


def laid_out(network: Network, images: Tensor, folder: Path) -> tuple[Path, Path]:
    portable, own = folder / "portable.onnx", folder / "own.onnx"
    export(network, portable, images=images, decisions=True)
    lay_out(portable, own)
    return portable, own


@pytest.mark.parametrize("closed", ["none", "half", "all"])
@pytest.mark.parametrize(
    "case", [pytest.param("bottleneck", marks=pytest.mark.slow), "cifar-projection"]
)
def test_logits_are_those_of_the_portable_file(case: str, closed: str, tmp_path: Path) -> None:
    network = gatecli.attach(CASES[case].network(), "aig-perbatch").network
    images = CASES[case].images(2)
    portable, own = laid_out(forced(network, closed), images, tmp_path)
    expected, found = logits(portable, images), logits(own, images)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()


def test_decisions_and_exits_are_those_of_the_portable_file(tmp_path: Path) -> None:
    network = CASES["cifar-projection"].network()
    for method in ("aig-perbatch", "dgate"):
        network = gatecli.attach(network, method).network
    images = CASES["cifar-projection"].images(6, seed=4)
    portable, own = laid_out(undecided(network), images, tmp_path)
    exits = set()
    for image in torch.split(images, 1):
        ours, theirs = outputs(portable, image), outputs(own, image)
        assert ours.keys() == theirs.keys() and "exit" in ours
        for name, value in ours.items():
            assert abs(value - theirs[name]).max() <= 1e-5 * abs(value).max()
        exits.add(ours["exit"].item())
    assert len(exits) > 1


def conversions(graph: Any) -> int:
    """How many nodes convert to the blocked layout, in branches too."""
    count = 0
    for node in graph.node:
        count += node.op_type == "ReorderInput"
        count += sum(conversions(each.g) for each in node.attribute if each.HasField("g"))
    return count


def test_no_branch_converts_its_input(tmp_path: Path) -> None:
    network = gatecli.attach(CASES["bottleneck"].network(), "aig-perbatch").network.eval()
    portable, own = laid_out(network, CASES["bottleneck"].images(2), tmp_path)
    before = optimised(portable, tmp_path / "optimised.onnx")
    assert conversions(before.graph) > 0 == conversions(onnx.load(own).graph)


def test_a_file_without_blocked_values_at_its_edges(tmp_path: Path) -> None:
    network = gatecli.attach(CASES["tokens"].network(), "aig-perbatch").network.eval()
    with pytest.raises(ExportError, match="--for-this-processor gains nothing"):
        laid_out(network, CASES["tokens"].images(2), tmp_path)
    assert not (tmp_path / "own.onnx").exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint whose gates decide at run time."""
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    command = ["attach", "r20.pt", "--input-size", SIDE, "--method", "aig-perbatch"]
    return str(call(*command)["out"])


def timed(portable: float, own: float) -> Callable[..., float]:
    """A clock: files take these milliseconds; they come by turns, the portable one first."""
    order = [portable, own, own, portable] * 100
    return lambda function, image: order.pop()


def test_the_file_says_what_it_is_for(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "milliseconds", timed(3.0, 2.0))
    done = call("export", here, "--for-this-processor")
    found = done["for_processor"]
    assert found["speedup"] == 1.5 and found["processor"] == machine.kind() and done["dynamic"]
    assert done["files"] == [done["out"]] == ["r20.aig-perbatch.for-processor.onnx"]
    entries = {each.key: each.value for each in onnx.load(done["out"]).metadata_props}
    assert json.loads(entries["gatecli"])["processor"] == machine.kind()
    Image.new("RGB", (20, 14), (200, 30, 90)).save("one.png")
    command = ["run", done["out"], "one.png", "--repeats", 1]
    assert len(call(*command)["predictions"]) == 1
    monkeypatch.setattr(machine, "describe", lambda: "Another CPU")
    refused(command, "laid out for", "but this is Another CPU", "export it here")


def test_a_slower_file_is_not_written(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "milliseconds", timed(2.0, 3.0))
    refused(["export", here, "--for-this-processor"], "takes 1.500 times as long", "not written")


def test_other_logits_are_refused(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "relative_change", lambda *pair: 0.5)
    refused(["export", here, "--for-this-processor"], "differ by 5.0e-01")


def test_bad_requests(here: str) -> None:
    command = ["export", here, "--for-this-processor"]
    refused([*command, "--format", "pt2"], "--for-this-processor is for ONNX files: pt2")
    refused([*command, "--int8"], "--int8 is for networks that decide nothing", "leave one")
    refused([*command, "--all-computed"], "expected a file that decides at run time")
    shown = run("export", "--help")
    assert "--for-this-processor" in shown.out and "--int8" in shown.out
