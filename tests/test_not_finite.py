"""Weights that are numbers, and logits that are not: said by every command that computes them.

And images at the end of what float32 holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, refused, save_npz, save_source
from networks import CASES, infer
from PIL import Image
from torch import Tensor, nn

import gatecli
from gatecli import methods
from gatecli.checkpoint import Reading, read
from gatecli.errors import ArchitectureError, CheckpointError
from gatecli.network.compare import relative_change

SIZE = ["--input-size", SIDE]
WORDS = ("not finite", "too large")


LAYERS = ["fc.weight", "conv1.weight"]


@pytest.fixture(params=LAYERS)
def spoilt(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose weights are finite and whose logits overflow, in a folder with data and an
    image.
    """
    monkeypatch.chdir(tmp_path)
    state: dict[str, Tensor] = torch.load(save_source(tmp_path / "good.pt"), weights_only=True)
    state[request.param] = 3e38 * state[request.param].sign()
    torch.save(state, "m.pt")
    save_npz(tmp_path / "few.npz")
    Image.new("RGB", (SIDE, SIDE), (10, 200, 30)).save("image.png")
    return tmp_path / "m.pt"


@pytest.mark.parametrize(
    "args",
    [
        ["attach", "m.pt", "--method", "ind-perbatch"],
        ["eval", "m.pt", "--data", "npz:few.npz"],
        ["export", "m.pt", "--format", "weights"],
        ["export", "m.pt", "--format", "onnx"],
        ["run", "m.pt", "image.png"],
        ["profile", "m.pt", "--repeats", 3],
    ],
)
def test_a_plain_checkpoint_is_refused_by_whoever_computes_logits(
    spoilt: Path, args: list[Any]
) -> None:
    refused([*args, *SIZE], *WORDS)


@pytest.mark.parametrize(
    "args",
    [
        ["prune", "g.safetensors"],
        ["prune", "g.safetensors", "--threshold", 0.99],
        ["finetune", "g.safetensors", "--data", "npz:few.npz", "--epochs", 1, "--batch-size", 32],
        ["calibrate", "g.safetensors", "--data", "npz:few.npz", "--target-acc", 1],
        ["attach", "g.safetensors", "--method", "dgate"],
        ["gates", "g.safetensors", "--data", "npz:few.npz"],
    ],
)
def test_a_gated_checkpoint_too(spoilt: Path, args: list[Any]) -> None:
    good = call("attach", "good.pt", "--method", "ind-perbatch", *SIZE, "--out", "good.safetensors")
    network = gatecli.load(good["out"])
    with torch.no_grad():
        network.get_parameter("fc.weight").copy_(3e38 * network.get_parameter("fc.weight").sign())
    gatecli.write(network, "g.safetensors")
    refused(args, *WORDS)


def test_what_asks_for_no_logits_goes_on(spoilt: Path) -> None:
    assert call("inspect", "m.pt", *SIZE)["params"] > 0


HUGE = [1e20, 1e30, 1e36, 3e38]


@pytest.mark.parametrize(
    "name", ["own-gray-oblong", "preactivation", "tokens", "dense", "cifar-projection"]
)
@pytest.mark.parametrize("method", methods.names())
def test_attach_is_exact_at_the_end_of_the_range(method: str, name: str) -> None:
    """Sums that gates take overflow before the logits do, which a BatchNorm brings back.

    Such a gate runs, and such an exit lets nobody go.
    """
    case = CASES[name]
    source = case.build()
    try:
        network = gatecli.attach(source, method, input_size=case.size).network
    except ArchitectureError as error:
        pytest.skip(str(error))
    for size in HUGE:
        images = size * torch.rand(
            2, case.channels, *case.size, generator=torch.Generator().manual_seed(0)
        )
        before = infer(source, images)
        rows = before.isfinite().all(1)
        after = infer(network, images)
        assert bool(after[rows].isfinite().all())
        if bool(rows.any()):
            assert relative_change(before[rows], after[rows]) <= 1e-5


def test_one_infinite_pixel_closes_no_gate() -> None:
    case = CASES["preactivation"]
    source = case.build()
    network = gatecli.attach(source, "aig-perbatch", input_size=case.size).network
    images = torch.randn(2, case.channels, *case.size)
    images[0, 0, 0, 0] = torch.inf
    before, after = infer(source, images), infer(network, images)
    assert torch.equal(before.isfinite(), after.isfinite())
    assert relative_change(before[1:], after[1:]) <= 1e-5


class Clipped(nn.Module):
    """Values clipped at bounds that are single numbers, infinite until somebody sets them."""

    def __init__(self, low: float = -torch.inf, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("scale", torch.full((4,), scale))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.maximum(self.conv(x), self.low).mean((2, 3)) * self.scale
        out: Tensor = self.fc(x)
        return out


def test_bounds_may_be_infinite_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clippednets.py").write_text("from test_not_finite import Clipped\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    how = Reading(arch="clippednets:Clipped", input_size=(8, 8))
    model = Clipped().eval()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    images = torch.randn(2, 3, 8, 8)
    assert torch.allclose(infer(read(tmp_path / "x.pt", how)[0], images), infer(model, images))
    for low, scale, name in ((torch.nan, 1.0, "low"), (0.0, torch.inf, "scale")):
        torch.save(Clipped(low, scale).state_dict(), tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=f"`{name}` holds values that are not finite"):
            read(tmp_path / "x.pt", how)
