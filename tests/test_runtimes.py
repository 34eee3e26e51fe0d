"""Runtimes: each computes what the network does, and is timed beside the source in it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commandline import call, refused, run
from networks import CASES, infer
from torch import Tensor, nn

import gatecli
from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.runtimes import machine, registry
from gatecli.runtimes.base import Order, Prepared, Runtime
from gatecli.runtimes.rates import at_rates, varied_images
from gatecli.stages.predict import predict

CASE = CASES["cifar-projection"]
FILES = [name for name in ("onnxruntime", "openvino") if not registry.get(name).missing()]


def scattered(network: Network) -> Network:
    """The network with gates that tell images apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in network.site_gates.values():
            for parameter in gate.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.3)
    return network


def gated(method: str) -> Network:
    return scattered(gatecli.attach(CASE.network(), method).network)


def rates_of(network: Network, images: Tensor) -> dict[str, list[float]]:
    return predict(network, [(images, torch.zeros(len(images), dtype=torch.long))]).rates


def prepared(name: str, network: Network, batch: int = 1, precision: str = "fp32") -> Prepared:
    order = Order(model=network, recipe=network.recipe, batch=batch, precision=precision)
    return registry.get(name).prepare(order)


@pytest.mark.parametrize("method", ["aig-perbatch", "dgate"])
def test_thresholds_give_the_rates_asked_for(method: str) -> None:
    network = gated(method)
    images = varied_images(network, 16)
    asked = {site: [0.25] for site in network.site_gates}
    assert rates_of(at_rates(network, asked, images), images) == asked
    assert all(bool(torch.all(gate.threshold == before)) for gate, before in thresholds(network))


def thresholds(network: Network) -> list[tuple[nn.Module, Tensor]]:
    fresh = gated(next(iter(network.gated_by.values())))
    return [(gate, fresh.site_gates[site].threshold) for site, gate in network.site_gates.items()]


def test_units_that_no_threshold_parts_stay_as_they_are() -> None:
    network = gatecli.attach(CASE.network(), "aig-perbatch").network  # all score alike
    images = varied_images(network, 8)
    asked = {site: [0.5] for site in network.site_gates}
    found = at_rates(network, asked, images)
    assert {gate.threshold.item() for gate in found.site_gates.values()} == {0.5}


@pytest.mark.parametrize("name", ["native", *FILES])
@pytest.mark.parametrize(
    "method", ["aig-perbatch", pytest.param("dgate", marks=pytest.mark.slow), ""]
)
def test_a_runtime_computes_what_the_network_does(name: str, method: str) -> None:
    images = varied_images(CASE.network(), 4)
    network = CASE.network()
    if method:
        asked = {site: [0.5] for site in gated(method).site_gates}
        asked |= {"exit1": [0.25]} if method == "dgate" else {}
        network = at_rates(gated(method), asked, images)
    one = prepared(name, network)
    for image in images.split(1):
        assert relative_change(infer(network, image), one.classify(image)) < 1e-3
    many = prepared(name, network, batch=4)
    assert relative_change(infer(network, images), many.classify(images)) < 1e-3
    assert many.masked == (bool(method) and name != "native") and not one.masked


def test_decisions_are_forced_on_the_network_that_runs() -> None:
    network = gated("aig-perbatch")
    half = prepared("native", network, precision="bf16").obeying
    assert half is not network and half is not None
    assert {each.dtype for each in half.parameters()} == {torch.bfloat16, torch.float32}  # gates
    assert prepared("native", network).obeying is network


class Lacking(Runtime):
    name = "lacking"
    about = "a runtime that is not here"
    extra = "onnx"

    def missing(self) -> str:
        return "it is not installed"

    def prepare(self, order: Order) -> Prepared:
        raise AssertionError


def test_a_runtime_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(SettingError, match=r"lacking to be there.*pip install 'gatecli\[onnx\]'"):
        Lacking().require("fp32")
    with pytest.raises(SettingError, match=r"lacking has \(fp32\), but got `bf16`"):
        Lacking().require("bf16")


@pytest.mark.parametrize(
    ("flags", "slow"),
    [("fpu avx512f", True), ("fpu avx512_bf16", False), ("amx_tile amx_bf16", False)],
)
def test_a_slow_precision_is_said_before(
    flags: str, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"processor : 0\nmodel name : Some  CPU\nflags : {flags}\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert bool(machine.slow_precision("bf16")) == slow and not machine.slow_precision("fp32")
    assert machine.describe() == "Some CPU"


def test_profile_times_the_source_in_the_same_runtime(tmp_path: Path) -> None:
    network = gatecli.attach(
        CASE.build(), "aig-perbatch", input_size=CASE.size, arch="cifar:resnet20"
    ).network
    gatecli.write(scattered(network), tmp_path / "n.safetensors")
    names = ["native", *FILES]
    command = ["profile", tmp_path / "n.safetensors", "--repeats", 3, "--batch", "1,2"]
    found = call(*command, "--runtime", ",".join(names))
    assert [row["runtime"] for row in found["rows"]] == [name for name in names for _ in (0, 1)]
    for source, row in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        times = [each["latency_ms"]["1"]["median"] for each in (source, row)]
        assert source["speedup"] == 1 and row["speedup"] == pytest.approx(times[0] / times[1])
        assert row["masked"] == ([] if row["runtime"] == "native" else ["2"])
    command[-1] = "1"
    shown = run(*command, "--runtime", ",".join(names), "--precision", "fp32")
    assert all(f"latency in {name}, fp32" in shown.out for name in names)
    half = call(*command, "--precision", "bf16")
    assert {row["precision"] for row in half["rows"]} == {"bf16"} and half["machine"]


def test_bad_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("profile x.pt --runtime tensorrt", "native, compiled, onnxruntime, openvino, but got")
    refused("profile x.pt --runtime onnxruntime --precision bf16", "onnxruntime has (fp32)")
    if not find_spec("openvino"):
        refused("profile x.pt --runtime openvino", "pip install 'gatecli[openvino]'")
