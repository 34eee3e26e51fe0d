"""Several processes train as one does, and a training is lost with none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import save_npz
from together_worker import BATCH, METHODS, SENT, STEPS, gated, trained
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

TESTS = Path(__file__).parent
ROUNDING = 1e-9  # of float64, after three steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    save_npz(folder / "data.npz", train=BATCH * STEPS)
    return folder


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def of_two(folder: Path) -> dict[str, Any]:
    """What two processes gave, started once for all methods."""
    return together_on(folder, "cpu")


def together_on(folder: Path, kind: str) -> dict[str, Any]:
    """What two processes gave, each on a device of this kind."""
    data, out = str(folder / "data.npz"), str(folder / f"{kind}.pt")
    worker = [str(TESTS / "together_worker.py"), data, out, kind]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *worker], env=environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, Any] = torch.load(out, weights_only=False)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one_does(method: str, folder: Path, of_two: dict[str, Any]) -> None:
    one, two = trained(method, folder / "data.npz"), of_two[method]
    assert one["tensors"].keys() == two["tensors"].keys()
    for name, tensor in one["tensors"].items():
        torch.testing.assert_close(two["tensors"][name], tensor, rtol=ROUNDING, atol=ROUNDING)
    for figure in ("history", "top1", "macs", "rates", "exits", "batchnorm"):
        assert close(one[figure], two[figure]), (figure, one[figure], two[figure])


def close(one: Any, two: Any) -> bool:
    """Whether two structures of numbers are the same but for rounding."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(close, one, two))
    if isinstance(one, float):
        return bool(abs(one - two) <= ROUNDING * max(1.0, abs(one)))
    return bool(one == two)


def test_all_processes_hold_the_same_bits(of_two: dict[str, Any]) -> None:
    assert of_two["different"] == []


@pytest.mark.parametrize("method", SENT)
def test_what_is_sent_besides_gradients(method: str, of_two: dict[str, Any]) -> None:
    """The table in docs/scale.md: rates and the gradient that reaches them, loss, norms, a stop."""
    network = gated(method)
    asked = sum(gate.units for gate in network.site_gates.values())
    if method == "early-exit":  # each image's decision at each exit
        asked = BATCH * len(network.site_exits)
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    channels = sum(norm.num_features for norm in norms)
    assert of_two["sent"][method] == [[asked, 1, asked, 2 * channels, 1]] * STEPS


def test_synchronised_batchnorm_against_torch_s_own(of_two: dict[str, Any]) -> None:
    x = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = F.batch_norm(x, None, None, torch.tensor([1.0, 2.0, 3.0]), training=True)
    expected.square().mul(x.detach()).sum().backward()
    parts = of_two["normed"]
    torch.testing.assert_close(torch.cat([each[0] for each in parts]), expected.detach())
    torch.testing.assert_close(torch.cat([each[3] for each in parts]), x.grad)
    for _, mean, variance, _ in parts:
        torch.testing.assert_close(mean, x.detach().mean((0, 2)))
        torch.testing.assert_close(variance, x.detach().var((0, 2), correction=0))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_hold_the_same_bits(folder: Path) -> None:
    found = together_on(folder, "cuda")
    assert found["different"] == []
    for method in METHODS:
        assert all(each.isfinite().all() for each in found[method]["tensors"].values())
