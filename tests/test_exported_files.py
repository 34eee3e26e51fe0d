"""The files of a format work in every runtime that reads it: logits and decisions."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from commandline import call, refused, save_source
from networks import CASES, RESNEXT, Case
from PIL import Image
from test_export import close, undecided
from torch import Tensor

import gatecli
from gatecli.exporting.export import export
from gatecli.network import Network

needs_openvino = pytest.mark.skipif(
    not importlib.util.find_spec("openvino"), reason="needs openvino"
)
COARSE = {"gate": "coarse"}
# The network, what gates it, and how it is exported.
KINDS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]], dict[str, bool]]] = {
    "static": ("own", [], {}),
    "layer gates": ("own", [("aig-perbatch", {})], {}),
    "exits": ("own", [("dgate", {})], {}),
    "both": ("own", [("aig-perbatch", {}), ("dgate", {})], {}),
    "both, told": ("cifar-projection", [("aig-perbatch", {}), ("dgate", {})], {"decisions": True}),
    "all computed": (
        "own",
        [("aig-perbatch", {}), ("dgate", {})],
        {"decisions": True, "all_computed": True},
    ),
    "filters": ("own", [("gaternet", {})], {"decisions": True}),
    "cgnet": ("own", [("cgnet", COARSE)], {"decisions": True}),
    "connections": ("resnext", [("gateconnect", {})], {}),  # these look at no image
}
# each by itself, where another has both
PARTS = ("layer gates", "exits")
PARAMETERS = [
    pytest.param(kind, marks=pytest.mark.slow) if kind in PARTS else kind for kind in KINDS
]
Outputs = dict[str, Any]


def in_onnxruntime(path: Path) -> Callable[[Tensor], Outputs]:
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(
        zip(names, session.run(names, {"images": images.numpy()}), strict=True)
    )


def in_openvino(path: Path) -> Callable[[Tensor], Outputs]:
    core = importlib.import_module("openvino").Core()
    network = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [min(output.get_names()) for output in network.outputs]

    def run(images: Tensor) -> Outputs:
        found = network([images.numpy()])
        return {name: np.array(found[name]) for name in names}

    return run


def case_of(name: str) -> Case:
    return RESNEXT if name == "resnext" else CASES[name]


def gated(kind: str) -> Network:
    case, methods, _ = KINDS[kind]
    network = case_of(case).network()
    for method, settings in methods:
        network = gatecli.attach(network, method, **settings).network
    draw = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if name.startswith(("gater.", "gates.")):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return network.eval() if kind == "connections" else undecided(network)


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize(
    ("format", "suffix", "reader"),
    [
        pytest.param("onnx", ".onnx", in_onnxruntime, id="onnx in ONNX Runtime"),
        pytest.param("onnx", ".onnx", in_openvino, id="onnx in OpenVINO", marks=needs_openvino),
        pytest.param("openvino", ".xml", in_openvino, id="IR in OpenVINO", marks=needs_openvino),
    ],
)
def test_a_file_says_in_each_runtime_what_the_network_says(
    kind: str,
    format: str,
    suffix: str,
    reader: Callable[[Path], Callable[[Tensor], Outputs]],
    tmp_path: Path,
) -> None:
    case, _, how = KINDS[kind]
    network, images = gated(kind), case_of(case).images(12, seed=4)
    done = export(network, tmp_path / f"file{suffix}", format, images=images, **how)
    compute = reader(done.out)
    for batch in images.split(1 if done.batch == 1 else len(images)):
        agrees(network, batch, compute(batch), told=how.get("decisions", False))


def agrees(network: Network, images: Tensor, found: Outputs, *, told: bool) -> None:
    """What a file returned for images is what the network computes and decides."""
    with torch.no_grad(), gatecli.record_gates(network) as record:
        logits, taken = network(images, return_exits=True)
    assert close(torch.from_numpy(found["logits"]), logits)
    if network.site_exits and told:
        assert found["exit"].tolist() == taken.tolist()
    gates = [site for site in network.site_gates if site not in network.site_exits]
    assert not told or all(f"gate.{site}" in found for site in gates)
    if (told and len(images) == len(taken) == 1) or (not network.site_exits and told):
        for site in gates:
            zeros = torch.zeros(found[f"gate.{site}"].shape)
            assert found[f"gate.{site}"].tolist() == record.latest().get(site, zeros).tolist()


@needs_openvino
def test_ir_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    Image.new("RGB", (20, 14), (200, 30, 90)).save(tmp_path / "one.png")
    done = call("export", "r20.pt", "--input-size", 8, "--format", "openvino")
    assert done["files"] == ["r20.xml", "r20.bin"] and done["max_logit_change"] <= 1e-4
    found = call("run", "r20.xml", "one.png", "--repeats", 1)["predictions"][0]
    native = call("run", "r20.pt", "--input-size", 8, "one.png", "--repeats", 1)["predictions"][0]
    assert [one["class"] for one in found["classes"]] == [one["class"] for one in native["classes"]]
    weights, graph = tmp_path / "r20.bin", tmp_path / "r20.xml"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused("run r20.xml one.png", "OpenVINO cannot read r20.xml", "weights")
    weights.unlink()
    refused("run r20.xml one.png", "r20.bin", "no such file")
    weights.write_bytes(whole)
    for text in ("<net", "", "<net/>"):
        graph.write_text(text, encoding="utf-8")
        refused("run r20.xml one.png", "r20.xml")
