"""gatecli gates: shares, histogram, units on for an image, pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import SIDE, call, refused, run, save_npz, save_source
from networks import CASES
from torch import Tensor

import gatecli
from gatecli.errors import SettingError
from gatecli.stages.analyse import analyse, embedded


def images(count: int) -> list[tuple[Tensor, Tensor]]:
    x, y = CASES["cifar-projection"].images(count), torch.arange(count) % 3
    return [(x[: count // 2], y[: count // 2]), (x[count // 2 :], y[count // 2 :])]


def test_counts_are_those_of_the_decisions() -> None:
    network = gatecli.attach(CASES["cifar-projection"].network(), "aig-perbatch").network
    on, off, varied, *others = network.gated_by
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(0, 2, (10, 1), generator=generator).float()
    given = {
        on: torch.ones(10, 1),
        off: torch.zeros(10, 1),
        varied: z,
        **{site: torch.ones(10, 1) for site in others},
    }
    x, y = CASES["cifar-projection"].images(10), torch.arange(10)
    with gatecli.force(network, given):
        use = analyse(network, [(x, y)])
    found = {site.name: (site.on, site.dependent, site.off, site.rate) for site in use.sites}
    assert (
        found[on] == (1, 0, 0, 1.0)
        and found[off] == (0, 0, 1, 0.0)
        and found[varied] == (0, 1, 0, pytest.approx(z.mean().item()))
    )
    assert sum(use.histogram) == 1 and use.histogram[min(9, int(10 * z.mean().item()))] == 1
    assert use.per_image == (
        len(others) + 1,
        pytest.approx(len(others) + 1 + z.mean().item()),
        len(others) + 2,
    )
    assert torch.equal(use.vectors, torch.cat(list(given.values()), 1)) and torch.equal(
        use.labels, y
    )


def test_embedding_and_what_it_refuses() -> None:
    vectors = torch.randint(0, 2, (30, 12), generator=torch.Generator().manual_seed(0)).float()
    assert embedded(vectors).shape == (30, 2) and torch.equal(embedded(vectors), embedded(vectors))
    with pytest.raises(SettingError, match="at least 10 images"):
        embedded(vectors[:9])
    with pytest.raises(SettingError, match="no gate depends on the image"):
        embedded(torch.ones(20, 4))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r20.pt"))
    save_npz(Path("data.npz"))
    refused("gates r20.pt --data npz:data.npz", "has no gates to look at")
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)
    assert call("gates")["images"] == 2  # nothing depends on the images
    call("attach", "r20.pt", "--method", "aig-perbatch", "--input-size", SIDE)
    refused("gates", "expected a data set")
    refused("gates --data npz:data.npz --images 0", "--images to be at least 1")
    refused("gates --data npz:data.npz --plot p --picture gif", "one of png, svg")
    found = call(
        "gates", "--data", "npz:data.npz", "--images", 17, "--plot", "pictures", "--picture", "svg"
    )
    assert (
        found["images"] == 17
        and all(Path(file).stat().st_size > 1000 for file in found["files"])
        and len(found["files"]) >= 2
    )
    assert "units on for an image" in run("gates", "--data", "npz:data.npz").out


def test_connections_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("x.pt"), "cifar:resnext20_8x4d")
    call(
        "attach",
        "x.pt",
        "--method",
        "gateconnect",
        "--set",
        "fan_in=1",
        "--set",
        "connectivity=random",
        "--input-size",
        SIDE,
    )
    found = call("gates", "--plot", "pictures")
    assert {Path(file).stem for file in found["files"]} == {
        "shares",
        "per-image",
        "connections",
        "branches",
    }
