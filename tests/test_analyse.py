"""gatecli gates: shares, histogram, units on for an image, pictures."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from commandline import SIDE, call, refused, run, save_npz, save_source
from networks import CASES
from torch import Tensor

import gatecli
from gatecli.errors import SettingError
from gatecli.stages.alike import counts_of, distances
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


def test_distances_against_all_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randint(0, 2, (23, 9), generator=generator).float()
    labels = torch.randint(0, 4, (23,), generator=generator)
    apart: dict[bool, list[int]] = {True: [], False: []}
    for one in range(23):
        for other in range(one):
            pair = zip(vectors[one].tolist(), vectors[other].tolist(), strict=True)
            same = bool(labels[one] == labels[other])
            apart[same].append(sum(a != b for a, b in pair))
    found = distances(vectors, labels)
    assert found.within == pytest.approx(statistics.fmean(apart[True]))
    assert found.between == pytest.approx(statistics.fmean(apart[False]))


def test_distances_that_nothing_has() -> None:
    vectors = torch.eye(4)
    alone = distances(vectors, torch.arange(4))
    assert (alone.within, alone.between) == (None, 2.0)
    one = distances(vectors, torch.zeros(4))
    assert (one.within, one.between) == (2.0, None)
    means = distances(vectors / 2, torch.zeros(4))  # gates that decide for single activations
    assert (means.within, means.between) == (None, None)


@pytest.mark.parametrize(
    ("on", "first", "width", "images"),
    [
        ([3, 5, 5, 4], 3, 1, [1, 1, 2]),
        ([7, 7], 7, 1, [2]),
        ([0, 39, 40, 41, 100], 0, 3, [1, *[0] * 12, 3, *[0] * 19, 1]),
        ([0.5, 1.75], 0, 1, [1, 1]),
    ],
)
def test_for_how_many_images_how_many_units_are_on(
    on: list[float], first: int, width: int, images: list[int]
) -> None:
    found = counts_of(torch.tensor(on, dtype=torch.float64))
    assert (found.first, found.width, found.images) == (first, width, images)


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
    assert sum(found["units_on"]["histogram"]["images"]) == 17
    assert found["switching"] == 0  # as attached, all are open
    assert found["distance"] == {"within": 0.0, "between": 0.0}


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
