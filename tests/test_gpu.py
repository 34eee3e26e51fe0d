"""On a GPU: the same decisions, logits and thresholds, computed there.

Where there is none, a stand-in sees that nothing is computed or indexed elsewhere.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import There, put, stand_in
from commandline import SIDE, save_npz
from networks import CASES, RESNEXT, Case, infer, masked
from torch import Tensor

import gatecli
from gatecli.architectures.build import build
from gatecli.data import DataSet
from gatecli.gates.observe import gates_of
from gatecli.network import Network
from gatecli.network.compare import in_whole_float32, relative_change
from gatecli.network.precision import in_precision
from gatecli.runtimes import machine, registry
from gatecli.runtimes.base import Order

# Each kind of site by the method that its paper gates it with; gates that wait are told per site.
PAIRS = {
    "block": ("aig-perbatch", CASES["own"]),
    "layer": ("aig-perbatch", CASES["dense"]),
    "filter": ("gaternet", CASES["cifar-projection"]),
    "conv": ("cgnet", CASES["cifar-projection"]),
    "exit": ("dgate", CASES["cifar-projection"]),
    "branch": ("gateconnect", RESNEXT),
}
ARCH = "cifar:resnet20"
LIMIT = 1e-4  # of the largest logit: two devices round differently
real = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
pairs = pytest.mark.parametrize("kind", sorted(PAIRS))


def gated(kind: str) -> Network:
    """A gated network whose gates are not all of one opinion."""
    method, case = PAIRS[kind]
    return scattered(gatecli.attach(case.build(), method, input_size=case.size).network)


def scattered(network: Network) -> Network:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for gate in network.site_gates.values():
            for parameter in gate.parameters():
                more = 0.1 * torch.randn(parameter.shape, generator=draw)
                parameter.add_(more.to(parameter.device))
            for buffer in gate.buffers():
                if buffer.dtype == torch.bool:  # the neutral start
                    buffer.fill_(False)
    return network


def small(kind: str, device: str) -> tuple[Network, DataSet]:
    """A gated network that a file can name, on a device, and images for it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(ARCH, {}).to(device)
    network = gatecli.attach(model, PAIRS[kind][0], arch=ARCH, input_size=(SIDE, SIDE)).network
    data = gatecli.load_data(f"npz:{save_npz(Path('data.npz'))}")
    gatecli.fit(network, data)
    return network, data


def case_of(kind: str) -> Case:
    return PAIRS[kind][1]


def drawn(network: Network, count: int) -> dict[str, Tensor]:
    """Decisions of which each image has its own, but for those that all images share."""
    draw = torch.Generator().manual_seed(7)
    found = {}
    for site, gate in network.site_gates.items():
        rows = count if gate.data_dependent else 1
        z = (torch.rand(rows, gate.units, generator=draw) < 0.5).float()
        found[site] = z if rows > 1 else z[0]
    return found


# --- with a stand-in ---


@pytest.mark.parametrize("count", [1, 5])
@pairs
def test_what_skips_is_computed_where_the_network_is(kind: str, count: int) -> None:
    network = gated(kind)
    x = case_of(kind).images(count)
    expected, every = infer(network, x), masked(network, x)
    twin = put(network.copy())
    with stand_in():
        found = infer(twin, There(x))
        assert isinstance(found, There) and torch.equal(found.inner, expected)
        whole = masked(twin, There(x))  # type: ignore[arg-type]
        assert isinstance(whole, There) and torch.equal(whole.inner, every)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", ["block", "layer", "filter", "exit"])
def test_decisions_that_are_forced_are_where_the_network_is(kind: str, count: int) -> None:
    network = gated(kind)
    x = case_of(kind).images(count)
    decisions = drawn(network, count)
    with gatecli.force(network, decisions):
        expected = infer(network, x)
    twin = put(network.copy())
    with stand_in() as waits, gatecli.force(twin, decisions):
        copies = waits["copied from the host"]
        found = infer(twin, There(x))
        assert torch.equal(found.inner, expected)  # type: ignore[attr-defined]
        assert waits["copied from the host"] == copies
        assert all(isinstance(gate.forced, There) for gate in gates_of(twin).values())


@pytest.mark.parametrize("count", [1, 5])
def test_a_gate_of_a_block_waits_once_and_what_is_static_never(count: int) -> None:
    network = gated("block")
    x = There(case_of("block").images(count))
    rates = {site: [float(number % 2)] for number, site in enumerate(network.site_gates)}
    smaller = put(gatecli.prune(network, rates=rates).network)
    with stand_in() as waits:
        infer(smaller, x)
        assert not waits
        infer(put(network), x)
        assert sum(waits.values()) == len(network.site_gates)


def test_a_stand_in_is_no_place_for_tensors_of_the_cpu() -> None:
    with stand_in() as waits:
        x = torch.zeros(3, device="cuda:0")
        assert isinstance(x, There) and x.device.type == "cuda"
        with pytest.raises(AssertionError, match="on the CPU"):
            x.add(torch.ones(3))
        assert bool(x.any()) is False and sum(waits.values()) == 1
        assert type(x.cpu()) is Tensor and sum(waits.values()) == 2


def test_a_gpu_is_told_beside_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert machine.describe(torch.device("cuda")) == f"Some GPU, {machine.describe()}"
    assert machine.describe(torch.device("cpu")) == machine.describe()
    assert not machine.slow_precision("bf16", "cuda")


def test_comparisons_keep_all_bits_and_leave_torch_as_it_was() -> None:
    cudnn = torch.backends.cudnn

    def said() -> tuple[object, ...]:
        return cudnn.allow_tf32, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision

    before = said()
    try:
        for allowed in (True, False):
            cudnn.allow_tf32 = allowed
            own = said()
            with in_whole_float32():
                assert said() == (False, "ieee", "ieee")
            assert said() == own
    finally:
        cudnn.allow_tf32 = before[0]


# --- with a real one: make gpu ---


@pytest.mark.gpu
@real
@pytest.mark.parametrize("count", [1, 5])
@pairs
def test_skipping_is_masking_on_a_gpu(kind: str, count: int) -> None:
    network = gated(kind)
    x = case_of(kind).images(count)
    expected = infer(network, x)
    network.cuda()
    with in_whole_float32():
        found, every = infer(network, x.cuda()), masked(network, x.cuda())
    assert found.device.type == "cuda"
    assert (
        relative_change(every, found) <= LIMIT and relative_change(expected, found.cpu()) <= LIMIT
    )


@pytest.mark.gpu
@real
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", ["block", "layer", "filter", "exit"])
def test_forced_decisions_skip_on_a_gpu_as_on_a_cpu(kind: str, count: int) -> None:
    network = gated(kind)
    x = case_of(kind).images(count)
    decisions = drawn(network, count)
    with gatecli.force(network, decisions):
        expected = infer(network, x)
    network.cuda()
    with gatecli.force(network, decisions), in_whole_float32():
        assert relative_change(expected, infer(network, x.cuda()).cpu()) <= LIMIT


@pytest.mark.gpu
@real
@pytest.mark.parametrize("kind", ["block", "filter", "exit"])
def test_bf16_runs_natively_on_a_gpu(kind: str) -> None:
    network = gated(kind)
    x = case_of(kind).images(4)
    half = in_precision(network.copy().cuda(), "bf16")
    expected = infer(in_precision(network.copy(), "bf16"), x)
    order = Order(model=network.copy().cuda(), recipe=network.recipe, batch=4, precision="bf16")
    prepared = registry.get("native").prepare(order)
    with gatecli.force(half, drawn(network, 4)):
        assert infer(half, x.cuda()).dtype == torch.float32
    found = prepared.classify(x)
    assert found.device.type == "cuda" and relative_change(expected, found.cpu()) <= 0.1


@pytest.mark.gpu
@real
@pytest.mark.parametrize("kind", ["block", "exit"])
def test_calibrated_on_a_gpu_as_on_a_cpu(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    same: dict[str, Tensor] = {}  # a device draws fresh gates its own way
    for device in ("cpu", "cuda"):
        network, data = small(kind, device)
        same = same or {name: each.clone() for name, each in network.state_dict().items()}
        network.load_state_dict(same)
        calibrate: Any = gatecli.calibrate_exits if kind == "exit" else gatecli.calibrate
        with in_whole_float32():
            done = calibrate(scattered(network), data, max_drop=5)
        assert done.network.device.type == device
        found.append({site: gate.threshold.cpu() for site, gate in gates_of(done.network).items()})
    for site, expected in found[0].items():
        torch.testing.assert_close(found[1][site], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@real
@pytest.mark.parametrize("kind", ["block", "exit"])
def test_attached_on_a_gpu(kind: str) -> None:
    method, case = PAIRS[kind]
    model = copy.deepcopy(case.build()).cuda()
    found = gatecli.attach(model, method, input_size=case.size)
    assert found.network.device.type == "cuda" and found.max_logit_change <= 1e-5


@pytest.mark.gpu
@real
@pytest.mark.parametrize("kind", ["block", "exit"])
def test_what_a_gpu_has_trained_loads_on_a_cpu(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network, data = small(kind, "cuda")
    trained = gatecli.finetune(network, data, gatecli.TrainOptions(epochs=1)).network
    assert trained.device.type == "cuda"
    gatecli.write(trained, "trained.safetensors")
    loaded = gatecli.load("trained.safetensors")
    assert loaded.device.type == "cpu"
    x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with in_whole_float32():
        assert relative_change(infer(loaded, x), infer(trained, x.cuda()).cpu()) <= 1e-3
