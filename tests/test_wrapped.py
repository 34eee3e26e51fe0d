"""Networks under keys and prefixes of all sorts: read, listed, chosen by --key and --prefix."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import call, refused, run
from reading import State, computes, error, opened, prefixed, resnet20, stirred
from torch import nn

from gatecli.architectures.build import build
from gatecli.architectures.wanted import Wanted
from gatecli.checkpoint import load
from gatecli.checkpoint.candidates import collected

Wrap = Callable[[State], Any]
WRAPPED: dict[str, Wrap] = {
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "epoch": 3, "loops": {}},
    "net": lambda s: {"state_dict": prefixed(s, "net.")},
    "deep": lambda s: {"trainer": {"best_model": {"weights": prefixed(s, "a.b.c.")}}},
    "a list": lambda s: {"models": [s]},
    "deepspeed": lambda s: {"module": s, "global_steps": 1},
    "average": lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
    "ema alone": lambda s: {"model_ema": prefixed(s, "module.")},
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "compiled inside": lambda s: prefixed(s, "model._orig_mod."),
    "compiled part": lambda s: {n.replace("layer1.", "layer1._orig_mod."): t for n, t in s.items()},
    "parallel parts": lambda s: {
        n.replace("layer2.0.conv1", "layer2.0.module.conv1.module"): t for n, t in s.items()
    },
    "mmpretrain": lambda s: {
        "meta": {},
        "state_dict": {("head." if n[:2] == "fc" else "backbone.") + n: t for n, t in s.items()},
    },
    "lightning, body and head": lambda s: {
        "state_dict": {("" if n[:2] == "fc" else "encoder.net.") + n: t for n, t in s.items()}
    },
    "parts in dicts": lambda s: {
        "backbone": {n: t for n, t in s.items() if n[:2] != "fc"},
        "classifier": {"weight": s["fc.weight"], "bias": s["fc.bias"]},
    },
    "optimizer": lambda s: {
        "net_state": s,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "exp_avg": {name: torch.zeros_like(tensor) for name, tensor in s.items()},
        "lr_scheduler": {"last": torch.tensor(3)},
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_network_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    model = resnet20()
    network, _ = opened(tmp_path / "x.pt", WRAPPED[name](dict(model.state_dict())))
    assert network.recipe.source.arch == "cifar:resnet20" and computes(network, model)


def test_names_less_the_prefix_stay(tmp_path: Path) -> None:
    state = dict(resnet20().state_dict())
    network, notes = opened(tmp_path / "x.pt", {"state_dict": prefixed(state, "model.")})
    assert network.state_dict().keys() == state.keys()
    assert "`model.` is taken off" in notes[0] and "--prefix" in notes[0]
    mm = WRAPPED["mmpretrain"](state)
    network, _ = opened(tmp_path / "x.pt", mm)
    assert network.state_dict().keys() == mm["state_dict"].keys()


def test_what_wraps_modules_is_taken_off_in_silence(tmp_path: Path) -> None:
    state = dict(resnet20().state_dict())
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module.", "module.module."):
        network, notes = opened(tmp_path / "x.pt", prefixed(state, prefix))
        assert network.state_dict().keys() == state.keys()
        assert not any("file" in note or "prefix" in note for note in notes)


def test_parallel_features_of_old_files(tmp_path: Path) -> None:
    model = stirred(build("torchvision:squeezenet1_1", {"num_classes": 10}))
    state = {n.replace("features.", "features.module."): t for n, t in model.state_dict().items()}
    network, _ = opened(tmp_path / "x.pt", state, input_size=(64, 64))
    assert computes(network, model, side=64)


# --- several networks ---


def pair(plain: nn.Module, other: nn.Module) -> tuple[State, State]:
    return dict(plain.state_dict()), dict(other.state_dict())


SEVERAL: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "timm": (lambda a, b: {"state_dict_ema": b, "state_dict": a}, "state_dict", "state_dict_ema"),
    "torchvision": (
        lambda a, b: {
            "model_ema": {"n_averaged": torch.tensor(2), **prefixed(b, "module.")},
            "model": a,
        },
        "model",
        "model_ema",
    ),
    "dino": (
        lambda a, b: {
            "teacher": prefixed(b, "backbone."),
            "student": prefixed(a, "module.backbone."),
        },
        "student.backbone",
        "teacher",
    ),
    "moco": (
        lambda a, b: {
            "state_dict": {
                **prefixed(b, "module.encoder_k."),
                **prefixed(a, "module.encoder_q."),
                "module.queue": torch.zeros(8, 4),
                "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            }
        },
        "encoder_q",
        "encoder_k",
    ),
    "byol": (
        lambda a, b: {
            **prefixed(b, "target_encoder."),
            **prefixed(a, "online_encoder."),
            "predictor.0.weight": torch.zeros(4, 4),
        },
        "online_encoder",
        "target_encoder",
    ),
    "ensemble": (lambda a, b: {"models": [a, b]}, "models.0", "models.1"),
    "swa": (lambda a, b: {"swa_model": prefixed(b, "module."), "net": a}, "net", "swa_model"),
    "lucidrains": (
        lambda a, b: {
            "ema": {
                "initted": torch.tensor(True),
                "step": torch.tensor(3),
                **prefixed(a, "online_model."),
                **prefixed(b, "ema_model."),
            }
        },
        "ema.online_model",
        "ema_model",
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_the_plain_one_is_taken_and_said(tmp_path: Path, name: str) -> None:
    plain, other = resnet20(0), resnet20(1)
    make, mine, key = SEVERAL[name]
    held = make(*pair(plain, other))
    network, notes = opened(tmp_path / "x.pt", held)
    assert computes(network, plain)
    (said,) = (note for note in notes if "2 networks" in note)
    assert mine in said.split("is taken")[0] and key in said.split("is taken")[1]
    assert "--key" in said and not any("left out" in note and "conv1" in note for note in notes)
    network, notes = opened(tmp_path / "x.pt", held, key=key)
    assert computes(network, other) and not any("2 networks" in note for note in notes)
    network, _ = opened(tmp_path / "x.pt", held, key=mine)
    assert computes(network, plain)


def test_prefix_chooses_between_groups(tmp_path: Path) -> None:
    plain, other = resnet20(0), resnet20(1)
    held = SEVERAL["moco"][0](*pair(plain, other))
    for prefix in ("module.encoder_k", "module.encoder_k.", "encoder_k"):
        network, notes = opened(tmp_path / "x.pt", held, prefix=prefix)
        assert computes(network, other) and network.recipe.source.prefix.endswith("encoder_k")
        assert not any("networks" in note for note in notes)


def test_prefix_of_a_body_whose_head_is_elsewhere(tmp_path: Path) -> None:
    model = resnet20()
    held = WRAPPED["mmpretrain"](dict(model.state_dict()))
    network, _ = opened(tmp_path / "x.pt", held, prefix="backbone")
    assert computes(network, model)


def test_averages_alone_are_said(tmp_path: Path) -> None:
    _, notes = opened(tmp_path / "x.pt", WRAPPED["ema alone"](dict(resnet20().state_dict())))
    assert "`model_ema` alone" in notes[0]
    _, notes = opened(tmp_path / "x.pt", WRAPPED["average"](dict(resnet20().state_dict())))
    assert any("average" in note and "n_averaged` is 5" in note for note in notes)


def test_an_unknown_second_network_is_said(tmp_path: Path) -> None:
    model = resnet20()
    other = {f"x{index}.weight": torch.zeros(2, 2) for index in range(100)}
    network, notes = opened(tmp_path / "x.pt", {"student": model.state_dict(), "teacher": other})
    assert computes(network, model) and any("`teacher`" in note for note in notes)


# --- what leads nowhere ---


def test_a_key_that_leads_nowhere_lists_what_there_is(tmp_path: Path) -> None:
    held = SEVERAL["timm"][0](*pair(resnet20(0), resnet20(1)))
    text = error(tmp_path / "x.pt", held, key="teacher")
    assert "--key teacher" in text and "`state_dict`" in text and "`state_dict_ema`" in text
    assert "under no key" in error(tmp_path / "x.pt", resnet20().state_dict(), key="ema")


def test_a_key_of_something_else_is_no_network(tmp_path: Path) -> None:
    held = {"model": resnet20().state_dict(), "extra": {"a.weight": torch.zeros(2, 2)}}
    assert "nearest" in error(tmp_path / "x.pt", held, key="extra")


def test_a_prefix_that_fits_nothing_lists_what_there_is(tmp_path: Path) -> None:
    held = prefixed(dict(resnet20().state_dict()), "model.")
    text = error(tmp_path / "x.pt", held, prefix="net")
    assert "--prefix net." in text and "`model.`" in text and "`model.layer1.`" in text


def test_a_prefix_of_a_part_is_no_network(tmp_path: Path) -> None:
    assert "nearest" in error(tmp_path / "x.pt", resnet20().state_dict(), prefix="layer1")


def test_a_layer_beside_a_network_is_not_left_out_in_silence(tmp_path: Path) -> None:
    """Ten values that the network gives, and a layer that reads them."""
    state = prefixed(dict(resnet20().state_dict()), "backbone.")
    held = {**state, "head.weight": torch.zeros(4, 10), "head.bias": torch.zeros(4)}
    text = error(tmp_path / "x.pt", held)
    assert "`head.weight`" in text and "--prefix backbone" in text
    network, notes = opened(tmp_path / "x.pt", held, prefix="backbone")
    assert network.num_classes == 10 and any("`head.weight`" in note for note in notes)


# --- a user's own network ---

OWN = """
from torch import nn
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    def forward(self, x):
        return self.model(x)
"""


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.", "_orig_mod.model."])
def test_names_of_a_users_network_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    (tmp_path / "ownnet.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import ownnet  # type: ignore[import-not-found]

    model = stirred(ownnet.Own())
    state = prefixed(dict(model.state_dict()), prefix)
    network, _ = opened(tmp_path / "x.pt", state, arch="ownnet:Own", input_size=(8, 8))
    assert computes(network, model, side=8)
    assert network.state_dict().keys() == model.state_dict().keys()


# --- hostile nestings ---


def test_deep_wide_and_circular_dicts_are_looked_into_within_limits(tmp_path: Path) -> None:
    deep: Any = {"w": torch.zeros(1)}
    for _ in range(500):
        deep = {"model": deep, "other": [deep, deep]}
    assert collected(deep) == []
    wide = {str(index): {"w": torch.zeros(1)} for index in range(5000)}
    assert len(collected(wide)) <= 32
    loop: dict[str, Any] = {"w": torch.zeros(2)}
    loop["model"] = loop["self"] = [loop, (loop,)]
    (only,) = collected(loop)
    assert only.key == ""


def test_odd_names_take_no_time(tmp_path: Path) -> None:
    names = [".".join("ab" * 3000), "module." * 5000 + "x", "a" * 100_000, "." * 10_000, ""]
    text = error(tmp_path / "x.pt", {name: torch.zeros(2, 2) for name in names})
    assert "nearest" in text or "no known" in text


def test_the_same_tensors_many_times_are_searched_within_limits(tmp_path: Path) -> None:
    one = torch.zeros(1)
    state = {f"p{n // 50}.q{n % 50}.conv{n}.weight": one for n in range(5000)}
    error(tmp_path / "x.pt", {str(index): state for index in range(3)})


def test_an_exact_file_is_compared_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[int] = []
    fit = Wanted.fit

    def counted(self: Wanted, shapes: Any) -> Any:
        calls.append(len(shapes))
        return fit(self, shapes)

    monkeypatch.setattr(Wanted, "fit", counted)
    opened(tmp_path / "x.pt", {"model": resnet20().state_dict(), "optimizer": {"state": {}}})
    assert len(calls) == 1


def test_a_search_without_end_stops(tmp_path: Path) -> None:
    one = torch.zeros(2, 2)
    bias = torch.zeros(2)
    held: dict[str, Any] = {}
    for index in range(3):
        state: State = {}
        for number in range(2000):
            state[f"a.a.a.a.a.a.a.{index}{number}.weight"] = one
            state[f"a.a.a.a.a.a.a.{index}{number}.bias"] = bias
        held[str(index)] = state
    torch.save(held, tmp_path / "x.pt")
    begun = time.process_time()
    error(tmp_path / "x.pt", held)
    assert time.process_time() - begun < 40


def test_modules_in_a_file_are_networks_too(tmp_path: Path) -> None:
    plain, other = resnet20(0), resnet20(1)
    held = {"model": nn.DataParallel(plain), "ema": {"module": other}}
    network, notes = opened(tmp_path / "x.pt", held, trust_pickle=True)
    assert computes(network, plain) and any("2 networks" in note for note in notes)
    network, _ = opened(tmp_path / "x.pt", held, trust_pickle=True, key="ema")
    assert computes(network, other)
    (candidate, _) = collected(held)
    assert candidate.module is held["model"]


def test_key_and_prefix_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are recorded, say nothing of gatecli's own files, and are errors where they fail."""
    monkeypatch.chdir(tmp_path)
    plain, other = resnet20(0), resnet20(1)
    torch.save(SEVERAL["dino"][0](*pair(plain, other)), "x.pt")
    done = run("inspect", "x.pt")
    assert done.code == 0 and "`student.backbone` is taken (--key chooses another" in done.err
    found = call("inspect", "x.pt", "--key", "teacher")
    assert (found["key"], found["prefix"]) == ("teacher", "backbone")
    call("attach", "x.pt", "--key", "teacher", "--method", "ind-perbatch", "--out", "g.safetensors")
    assert computes(load("g.safetensors"), other)
    assert call("inspect", "g.safetensors")["key"] == "teacher"
    assert "one network" in run("inspect", "g.safetensors", "--key", "student").err
    refused("inspect x.pt --key neither", "--key neither", "`student`", "`teacher`")
    refused("inspect x.pt --prefix layer9", "--prefix layer9.", "`module.`")


def test_names_in_notes_are_cut(tmp_path: Path) -> None:
    state = {**resnet20().state_dict(), "loss." + "a" * 5000: torch.zeros(1)}
    _, notes = opened(tmp_path / "x.pt", state)
    assert max(map(len, notes)) < 600


def test_one_dict_under_two_keys_is_one_network(tmp_path: Path) -> None:
    model = resnet20()
    state = model.state_dict()
    held = {"best": {"state_dict": state}, "last": {"state_dict": state}, "ema": state}
    for key in ("", "best", "last", "ema", "last.state_dict"):
        network, notes = opened(tmp_path / "x.pt", held, key=key)
        assert computes(network, model) and not any("network" in note for note in notes)
        assert network.recipe.source.key == "last.state_dict"
