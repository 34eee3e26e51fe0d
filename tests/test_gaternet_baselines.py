"""The baselines of GaterNet's table 1, docs/experiments/baselines.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from commandline import call, save_npz

from gatecli.errors import SettingError

FOLDER = Path(__file__).parents[1] / "docs" / "experiments"


@pytest.fixture(scope="module")
def baselines() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import baselines as found

        yield found


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("cifar:resnet20", 10, ".28"),
        ("cifar:resnet56", 10, ".88"),
        ("cifar:resnet20", 100, ".29"),
        ("cifar:resnet56", 100, ".89"),
    ],
)
def test_squeeze_and_excitation_has_the_paper_s_parameters(
    baselines: ModuleType, name: str, classes: int, millions: str
) -> None:
    network = baselines.build(name, "se", classes)
    assert f"{baselines.params(network) / 1e6:.2f}".lstrip("0") == millions


@pytest.mark.parametrize(("name", "gated"), [("cifar:resnet20", 547_858), ("cifar:resnet56", None)])
def test_wider_has_the_gated_network_s_parameters(
    baselines: ModuleType, name: str, gated: int | None
) -> None:
    aim = baselines.gated_params(name)
    assert gated in (None, aim)
    own = baselines.params(baselines.build(name, "wider"))
    assert own == pytest.approx(aim, rel=0.003)
    assert f"{own:,} parameters" in baselines.told(name, "wider")


def test_a_block_s_branch_is_scaled_by_what_its_channels_say(baselines: ModuleType) -> None:
    """Hu et al., equations 2 to 4, channel by channel."""
    torch.manual_seed(0)
    block = baselines.Excited(8, 8, 1).eval()
    x = torch.randn(2, 8, 4, 4)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).clamp(min=0)))
    for sample in range(2):
        means = [branch[sample, channel].mean() for channel in range(8)]
        hidden = block.squeeze.weight @ torch.stack(means) + block.squeeze.bias
        scale = 1 / (
            1 + torch.exp(-(block.excite.weight @ hidden.clamp(min=0) + block.excite.bias))
        )
        for channel in range(8):
            wanted = branch[sample, channel] * scale[channel] + x[sample, channel]
            assert torch.allclose(block(x)[sample, channel], wanted.clamp(min=0), atol=1e-6)


def test_what_there_is_not_is_refused(baselines: ModuleType) -> None:
    with pytest.raises(SettingError, match="one of se, wider, but got `deeper`"):
        baselines.build("cifar:resnet20", "deeper")
    with pytest.raises(SettingError, match="cifar:resnet110, but got `cifar:resnet21`"):
        baselines.build("cifar:resnet21", "se")


def train(*words: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(FOLDER / "train_source.py")]
    return subprocess.run([*script, *words], capture_output=True, text=True, check=False)


def test_the_script_trains_one_that_gatecli_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    save_npz(Path("color.npz"), train=64)
    grey = {}
    for name, array in np.load("color.npz").items():
        grey[name] = array[..., 0] if name.endswith("images") and array.ndim == 4 else array
    grey |= {f"test_{kind}": grey[f"val_{kind}"] for kind in ("images", "labels")}
    np.savez("grey.npz", **grey)
    short = ("--epochs", "1", "--size", "8", "--batch-size", "32", "--baseline")
    done = train("cifar:resnet20", "grey.npz", "se.pt", *short, "se")
    assert done.returncode == 0, done.stderr
    assert "280,958 parameters" in done.stdout
    named = ["--arch", "baselines:build", "--arch-arg", "name=cifar:resnet20"]
    named += ["--arch-arg", "baseline=se", "--input-size", "8", "--mean", "0.5", "--std", "0.25"]
    assert call("eval", "se.pt", *named, "--data", "npz:grey.npz")["params"] == 280_958
    wrong = train("cifar:resnet20", "grey.npz", "no.pt", *short, "deeper")
    lines = wrong.stderr.strip().splitlines()
    assert (wrong.returncode, len(lines)) == (1, 1)
    assert lines[0].startswith("error: expected --baseline to be one of se, wider")
