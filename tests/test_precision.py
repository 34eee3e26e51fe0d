"""Networks that run in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import call, refused, save_npz
from networks import CASES, infer
from PIL import Image
from torch import Tensor

import gatecli
from gatecli.errors import SettingError
from gatecli.gates.gate import Gate
from gatecli.gates.observe import force
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.precision import in_precision

NEAR = 0.1  # of the largest logit: eight bits, through up to fifty layers
METHODS = ("ind-perbatch", "aig-perbatch", "gaternet", "dgate", "early-exit", "cgnet")


def half(network: Network) -> Network:
    return in_precision(network.copy(), "bf16")


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_network_in_half_precision_answers_nearly_the_same(name: str) -> None:
    case = CASES[name]
    network = case.network()
    twin = half(network)
    found, images = infer(twin, case.images(4)), case.images(4)
    assert found.dtype == torch.float32 == images.dtype
    assert 0 < relative_change(infer(network, images), found) < NEAR
    assert {tensor.dtype for tensor in twin.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def decisions(network: Network, count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {site: gate.units for site, gate in network.site_gates.items()}
    return {
        site: torch.randint(0, 2, (count, units), generator=draw).float()
        for site, units in shapes.items()
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["cifar-projection", "dense", "own-gray-oblong"])
def test_gates_decide_in_half_precision_too(name: str, method: str) -> None:
    case = CASES[name]
    if (name, method) == ("dense", "cgnet"):
        pytest.skip("it gates nothing there by itself")
    network = gatecli.attach(case.network(), method).network
    chosen, images = decisions(network, 4), case.images(4)
    twin = half(network)
    with force(network, chosen), force(twin, chosen):
        assert relative_change(infer(network, images), infer(twin, images)) < NEAR
    assert relative_change(infer(network, images), infer(twin, images)) < NEAR
    for site, gate in network.site_gates.items():
        assert torch.equal(gate.threshold, twin.site_gates[site].threshold)
        assert twin.site_gates[site].threshold.dtype == torch.float32


@pytest.mark.parametrize("method", ["ind-perbatch", "aig-perbatch"])
def test_layer_gates_compute_in_float32_and_decide_in_the_network_s_precision(method: str) -> None:
    case = CASES["cifar-projection"]
    network = gatecli.attach(case.network(), method).network
    twin, x = half(network), torch.randn(4, 3, 8, 8).bfloat16()
    for site, gate in network.site_gates.items():
        theirs = twin.site_gates[site]
        assert isinstance(gate, Gate) and isinstance(theirs, Gate)
        for name, tensor in gate.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name])
        seen = x[:, :1].expand(-1, network.sites[site].channels, -1, -1)
        assert theirs(seen).dtype == torch.bfloat16
        with torch.no_grad():
            torch.testing.assert_close(
                theirs.log_odds(seen), gate.log_odds(seen.float()), rtol=0.01, atol=0.01
            )
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def test_exits_are_told_in_half_precision() -> None:
    case = CASES["cifar-projection"]
    network = gatecli.attach(case.network(), "dgate").network
    network.site_exits["exit2"].threshold.fill_(-1e30)
    with torch.no_grad():
        logits, taken = half(network)(case.images(3), return_exits=True)
    assert taken.tolist() == [1, 1, 1] and logits.dtype == torch.float32


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingError, match="fp32, bf16, but got `fp8`"):
        in_precision(CASES["dense"].network(), "fp8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    case = CASES["cifar-projection"]
    network = gatecli.attach(
        case.build(), "dgate", input_size=case.size, arch="cifar:resnet20"
    ).network
    gatecli.write(network, tmp_path / "n.safetensors")
    return tmp_path / "n.safetensors"


def test_a_network_in_half_precision_is_not_written(file: Path) -> None:
    network = gatecli.load(file, precision="bf16")
    assert {tensor.dtype for tensor in network.parameters()} == {torch.bfloat16}
    with pytest.raises(SettingError, match="rounded"):
        gatecli.write(network, file.with_name("again.safetensors"))
    assert not file.with_name("again.safetensors").exists()


def test_eval_and_run_in_half_precision(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = save_npz(tmp_path / "d.npz")
    found = call("eval", file, "--data", f"npz:{data}", "--precision", "bf16")
    assert found["precision"] == "bf16" and found["samples"] == 40 and len(found["exits"]) == 2
    Image.new("RGB", (20, 20), (200, 90, 10)).save(tmp_path / "a.png")
    half = call("run", file, tmp_path / "a.png", "--precision", "bf16")["predictions"][0]
    whole = call("run", file, tmp_path / "a.png")["predictions"][0]
    assert half["exit"] == whole["exit"] == "end"
    assert half["classes"][0]["probability"] == pytest.approx(
        whole["classes"][0]["probability"], abs=0.05
    )
    refused(f"eval {file} --data npz:{data} --precision fp8", "fp32, bf16, but got `fp8`")
