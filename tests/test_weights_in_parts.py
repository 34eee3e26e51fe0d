"""Weights that a file holds in parts, pruning masks and norms: put together, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reading import computes, error, opened, prefixed, resnet20
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

STATES = {
    "bare": lambda s: s,
    "lightning": lambda s: {"state_dict": prefixed(s, "model.")},
    "parallel": lambda s: prefixed(s, "module."),
}


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, nn.Conv2d)]


def masked(model: nn.Module) -> None:
    for part in convolutions(model)[:3]:
        prune.l1_unstructured(part, "weight", amount=0.5)
    prune.random_structured(model.fc, "weight", amount=3, dim=0)
    prune.l1_unstructured(model.fc, "bias", amount=2)


def old_weight_norm(model: nn.Module) -> None:
    convs = convolutions(model)
    nn.utils.weight_norm(convs[1])
    nn.utils.weight_norm(convs[2], dim=1)
    nn.utils.weight_norm(convs[3], dim=None)


def new_weight_norm(model: nn.Module) -> None:
    parametrizations.weight_norm(convolutions(model)[1])
    parametrizations.weight_norm(model.fc)


def old_spectral_norm(model: nn.Module) -> None:
    nn.utils.spectral_norm(convolutions(model)[1])
    nn.utils.spectral_norm(model.fc)


def new_spectral_norm(model: nn.Module) -> None:
    parametrizations.spectral_norm(convolutions(model)[1])


FORMS = {
    "pruning masks": masked,
    "weight norm, old": old_weight_norm,
    "weight norm, new": new_weight_norm,
    "spectral norm, old": old_spectral_norm,
    "spectral norm, new": new_spectral_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", STATES)
@pytest.mark.parametrize("form", FORMS)
def test_parts_are_put_together(tmp_path: Path, form: str, wrap: str) -> None:
    model = resnet20()
    FORMS[form](model)
    model.eval()
    held = STATES[wrap](dict(model.state_dict()))
    network, notes = opened(tmp_path / "x.pt", held)
    assert computes(network, model)
    assert network.state_dict().keys() == resnet20().state_dict().keys()
    assert any(form.split(",")[0] in note and "put together" in note for note in notes)


def test_the_share_of_zeros_is_said(tmp_path: Path) -> None:
    model = resnet20()
    prune.l1_unstructured(model.conv1, "weight", amount=0.5)
    _, notes = opened(tmp_path / "x.pt", model.state_dict())
    assert any(
        "1 weight is" in note and "50 % of their numbers are zeros" in note for note in notes
    )


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    model = resnet20()
    parametrize.register_parametrization(model.conv1, "weight", Doubled())
    text = error(tmp_path / "x.pt", model.state_dict())
    assert "parametrizations.weight.original" in text and "remove_parametrizations" in text
    model = resnet20()
    parametrizations.orthogonal(model.fc)
    assert "remove_parametrizations" in error(tmp_path / "x.pt", model.state_dict())
    state = dict(resnet20().state_dict())
    state["conv1.weight_orig"] = state.pop("conv1.weight")
    assert "prune.remove" in error(tmp_path / "x.pt", state)
    state["conv1.weight_mask"] = torch.ones(3)
    assert "prune.remove" in error(tmp_path / "x.pt", state)


def test_a_users_network_may_have_them_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the network named has the parts, nothing is put together."""
    (tmp_path / "partnet.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight_orig = nn.Parameter(torch.ones(4, 3, 1, 1))\n"
        "        self.register_buffer('weight_mask', torch.ones(4, 3, 1, 1))\n"
        "        self.fc = nn.Linear(4, 5)\n"
        "    def forward(self, x):\n"
        "        x = nn.functional.conv2d(x, self.weight_orig * self.weight_mask)\n"
        "        return self.fc(x.mean((2, 3)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import partnet  # type: ignore[import-not-found]

    state = dict(partnet.Net().state_dict())
    for held in (state, prefixed(state, "module."), {"state_dict": prefixed(state, "model.")}):
        network, _ = opened(tmp_path / "x.pt", held, arch="partnet:Net", input_size=(8, 8))
        assert network.state_dict().keys() == state.keys()
