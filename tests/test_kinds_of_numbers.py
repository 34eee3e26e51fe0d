"""All tensors of a file are looked at: not finite, quantised, of half precision, complex."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import refused, run
from reading import State, computes, error, opened, prefixed, resnet20
from safetensors.torch import load_file, save_file

from gatecli.checkpoint import Reading, read
from gatecli.errors import CheckpointError


def small(state: State, kind: torch.dtype) -> State:
    """Weights as whole numbers of a kind."""
    found = {}
    for name, tensor in state.items():
        is_weight = tensor.dim() == 4
        found[name] = (tensor / tensor.abs().max() * 100).to(kind) if is_weight else tensor
    return found


def scaled(state: State) -> State:
    scales = {f"{n}_scale": t.abs().max() for n, t in state.items() if t.dim() == 4}
    return {**small(state, torch.int8), **scales}


def bitsandbytes(state: State) -> State:
    return {
        **state,
        "fc.weight": torch.zeros(320, 1, dtype=torch.uint8),
        "fc.weight.absmax": torch.zeros(10),
        "fc.weight.quant_map": torch.zeros(16),
    }


def torchs_own(state: State) -> State:
    found = dict(state)
    found["conv1.weight"] = torch.quantize_per_tensor(state["conv1.weight"], 0.1, 0, torch.qint8)
    return {**found, "conv1.scale": torch.tensor(1.0), "conv1.zero_point": torch.tensor(0)}


QUANTISED: dict[str, Callable[[State], State]] = {
    "int8": lambda s: small(s, torch.int8),
    "uint8": lambda s: small(s, torch.uint8),
    "float8": lambda s: small(s, torch.float8_e4m3fn),
    "with scales": scaled,
    "gptq": lambda s: {**s, "fc.qweight": torch.zeros(8, 8, dtype=torch.int32)},
    "bitsandbytes": bitsandbytes,
    "int32": lambda s: small(s, torch.int32),
    "one": lambda s: {**s, "fc.weight": s["fc.weight"].to(torch.int8)},
}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, prefix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = prefixed(QUANTISED[kind](dict(resnet20().state_dict())), prefix)
    for form in ("x.pt", "x.safetensors"):
        if form == "x.pt":
            torch.save({"state_dict": state}, form)
        else:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, form)
        for command in ("inspect", "attach --method ind-perbatch"):
            name, *rest = command.split()
            line = refused([name, form, *rest], form, "quanti")
            assert "recipe" not in line and "bug" not in line


@pytest.mark.filterwarnings("ignore")
def test_torchs_quantised_tensors_are_named(tmp_path: Path) -> None:
    text = error(tmp_path / "x.pt", torchs_own(dict(resnet20().state_dict())))
    assert "quantised weights (`conv1.weight` is qint8)" in text


@pytest.mark.parametrize("kind", [torch.complex64, torch.bool])
def test_other_kinds_of_weights_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    state = dict(resnet20().state_dict())
    state["fc.weight"] = state["fc.weight"].to(kind)
    assert "`fc.weight`" in error(tmp_path / "x.pt", state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["fc.bias", "layer1.0.conv1.weight", "bn1.running_mean", "layer3.2.bn2.running_var"]
)
@pytest.mark.parametrize("wrap", [False, True])
def test_numbers_that_are_not_finite_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float, wrap: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state = dict(resnet20().state_dict())
    state[name].flatten()[-1] = value
    torch.save({"state_dict": prefixed(state, "model.")} if wrap else state, "x.pt")
    refused("inspect x.pt", "x.pt", f"`{name}`", "not finite")
    refused("attach x.pt --method ind-perbatch", "x.pt", f"`{name}`", "not finite")


def test_the_same_in_what_gatecli_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(resnet20().state_dict(), "x.pt")
    done = run("attach", "x.pt", "--method", "dgate", "--out", "g.safetensors")
    assert done.code == 0, done.err
    from safetensors import safe_open

    with safe_open("g.safetensors", "pt") as file:
        about = file.metadata()
    tensors = load_file("g.safetensors")
    tensors["bn1.running_var"][0] = torch.nan
    save_file(tensors, "bad.safetensors", about)
    refused("inspect bad.safetensors", "`bn1.running_var`", "not finite")


HALF = {
    torch.float16: ("float16", "2 times"),
    torch.bfloat16: ("bfloat16", "2 times"),
    torch.float64: ("float64", "0.5 times"),
}


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("old", [False, True])
def test_other_precisions_are_said_and_read(tmp_path: Path, kind: torch.dtype, old: bool) -> None:
    model = resnet20().to(kind)
    torch.save(
        {"model": model.state_dict()}, tmp_path / "x.pt", _use_new_zipfile_serialization=not old
    )
    network, notes = read(tmp_path / "x.pt", Reading())
    word, size = HALF[kind]
    (note,) = (note for note in notes if "stored as" in note)
    assert word in note and size in note and "float32" in note
    assert computes(network, model.float())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in network.buffers())


def test_float32_says_nothing(tmp_path: Path) -> None:
    _, notes = opened(tmp_path / "x.pt", resnet20().state_dict())
    assert not any("stored as" in note for note in notes)


def test_numbers_too_large_for_float32_are_named(tmp_path: Path) -> None:
    state = {
        n: t.double() if t.is_floating_point() else t for n, t in resnet20().state_dict().items()
    }
    state["fc.weight"][0, 0] = 1e300
    assert "`fc.weight`" in error(tmp_path / "x.pt", state)


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    state = dict(resnet20().state_dict())
    state["fc.weight"] = state["fc.weight"].to_sparse()
    with pytest.raises(CheckpointError, match="sparse"):
        opened(tmp_path / "x.pt", state)


def test_a_masked_weight_may_not_be_sparse(tmp_path: Path) -> None:
    state = dict(resnet20().state_dict())
    weight = state.pop("fc.weight")
    state |= {"fc.weight_orig": weight.to_sparse(), "fc.weight_mask": torch.ones_like(weight)}
    assert "sparse" in error(tmp_path / "x.pt", state)
