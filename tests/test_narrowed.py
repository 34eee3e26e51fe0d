"""What has lost some of its filters and is added to what has all: no detour in any runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from networks import CASES, infer
from test_contract import decide, run_macs

import gatecli
from gatecli.network import Network
from gatecli.network.costs import expected_macs

CASE = CASES["cifar-projection"]
LEFT: dict[str, Callable[[int], bool]] = {
    "one run": lambda unit: unit >= 3,
    "many runs": lambda unit: unit % 2 == 0,
}


def pruned(runs: str) -> Network:
    network = gatecli.attach(CASE.network(), "ind-perbatch", kinds=["filter"]).network
    gates = network.site_gates
    decide(network, {s: [int(LEFT[runs](unit)) for unit in range(gates[s].units)] for s in gates})
    return gatecli.prune(network).network.eval()


def nodes_of(network: Network, path: Path) -> Counter[str]:
    """The operators of its ONNX file."""
    done = gatecli.export(network, path)
    return Counter(node.op_type for node in onnx.load(done.out).graph.node)


@pytest.mark.parametrize("runs", LEFT)
def test_an_onnx_file_has_each_value_padded_and_put_in_place(runs: str, tmp_path: Path) -> None:
    """Slices that are assigned to become a dozen nodes each, and take longer than what is saved."""
    whole = nodes_of(CASE.network(), tmp_path / "whole.onnx")
    nodes = nodes_of(pruned(runs), tmp_path / "pruned.onnx")
    assert (nodes - whole).keys() <= {"Pad", "Gather"}
    assert nodes["Pad"] > 0 and nodes["Gather"] <= nodes["Pad"]


@pytest.mark.parametrize("runs", LEFT)
def test_torch_compile_takes_it_as_it_takes_a_plain_network(runs: str) -> None:
    """At the first call, when nothing has been lowered, and whole at the second."""
    network, images = pruned(runs), CASE.images(2)
    expected = infer(network.copy().eval(), images)
    torch.compiler.reset()
    with torch.inference_mode():
        assert torch.equal(torch.compile(network, backend="eager")(images), expected)
        torch.compiler.reset()
        whole = torch.compile(network, backend="eager", fullgraph=True)
        assert torch.equal(whole(images), expected)


@pytest.mark.parametrize("name", [name for name in CASES if name != "oneblock"])
def test_what_is_pruned_never_costs_more_than_what_skips(name: str) -> None:
    """A convolution reads less of what an addition beside it reads in full."""
    network = gatecli.attach(CASES[name].network(), "ind-perbatch", kinds=["filter"]).network
    torch.manual_seed(0)
    gates = network.site_gates
    decisions = {site: torch.randint(2, (gates[site].units,)).tolist() for site in gates}
    for units in decisions.values():
        units[0] = 1
    decide(network, decisions)
    rates = {site: [float(unit) for unit in units] for site, units in decisions.items()}
    images = CASES[name].images(1)
    logits = infer(network.eval(), images)
    result = gatecli.prune(network)
    assert result.macs_expected <= expected_macs(network, rates) == run_macs(network, images)
    assert run_macs(result.network, images) == result.macs_expected
    assert torch.allclose(infer(result.network.eval(), images), logits, atol=1e-5)
