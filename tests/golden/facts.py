"""What a golden file says and computes: asked by `make.py`, which records it, and by the test.

All of it goes through gatecli's public names; what of a `Network` is needed beyond calling it
(`methods`, `site_gates` with units and thresholds, `site_exits`) is asked for in this file alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commandline import call, contents
from torch import Tensor

import gatecli

HERE = Path(__file__).parent
COUNT = 8  # images that each file's answers are recorded for
LIMIT = 1e-5  # of the largest logit
NOT_ASKED = -1.0  # the decision of a gate that an image did not come to


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a network makes of images.

    Shape:
        logits, forced: (N, classes), as it decides itself and with every second unit forced to run.
        decisions: (N, all units), site after site; NOT_ASKED behind the exit that an image took.
        exits: (N,).
    """

    logits: Tensor
    forced: Tensor
    decisions: Tensor
    exits: Tensor


def arch_of(path: Path) -> str:
    """The architecture that a file names."""
    name: str = contents(path)[1]["source"]["arch"]
    return name


def load(path: Path) -> gatecli.Network:
    """Load a golden file, trusting what it names."""
    return gatecli.load(path, arch=arch_of(path))


def steps_of(path: Path) -> str:
    """A hash of the steps in a file."""
    text = json.dumps(contents(path)[1]["steps"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def images_for(network: gatecli.Network, grey: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) with the channels that the network takes."""
    return grey.expand(-1, network.input.channels, -1, -1).contiguous()


def units_of(network: gatecli.Network) -> dict[str, int]:
    """How many units each gated site has, in the order in which they run."""
    return {site: gate.units for site, gate in _gates(network).items()}


def thresholds_of(network: gatecli.Network) -> dict[str, list[float | None]]:
    """Every gate's thresholds; an infinite one, which JSON has no word for, is None."""
    gates = _gates(network).items()
    return {site: [_finite(value) for value in gate.threshold.tolist()] for site, gate in gates}


def _gates(network: gatecli.Network) -> dict[str, Any]:
    """The gates of gated sites, in the order in which they run."""
    return {site: gate for site, gate in network.site_gates.items() if site in network.gated_by}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def answers(network: gatecli.Network, x: Tensor) -> Answers:
    """What a network makes of images (N, C, H, W), as a batch; decisions are asked one by one."""
    with torch.no_grad():
        logits, exits = network(x, return_exits=True)
        with gatecli.force(network, _every_second(network)):
            forced = network(x)
    return Answers(logits=logits, forced=forced, decisions=decisions(network, x), exits=exits)


def logits(network: gatecli.Network, x: Tensor) -> Tensor:
    """Logits of images in the network's own precision, without autograd."""
    with torch.no_grad():
        found: Tensor = network(x.to(next(network.parameters()).dtype))
    return found


def _every_second(network: gatecli.Network) -> dict[str, list[int]]:
    """Units run in turn, and nobody leaves early."""
    forced, turn = dict[str, list[int]](), 0
    for site, units in units_of(network).items():
        leaves = site in network.site_exits
        forced[site] = [0] * units if leaves else [(turn + unit) % 2 for unit in range(units)]
        turn += units
    return forced


def change(one: Tensor, two: Tensor) -> float:
    """The largest difference, relative to the largest value of the second."""
    return float((one - two).abs().max() / two.abs().max())


def decisions(network: gatecli.Network, x: Tensor) -> Tensor:
    """Each image's decisions, one image at a time: (N, all units)."""
    rows = []
    for image in x.split(1):
        with torch.no_grad(), gatecli.record_gates(network) as record:
            network(image)
        rows.append(_row(units_of(network), record.latest()))
    return torch.cat(rows)


def _row(units: Mapping[str, int], seen: Mapping[str, Tensor]) -> Tensor:
    asked = [seen.get(site, torch.full((1, count), NOT_ASKED)) for site, count in units.items()]
    return torch.cat([torch.empty(1, 0), *(z.float() for z in asked)], 1)


def margin(network: gatecli.Network, x: Tensor) -> float:
    """How near a score lies to its threshold at most, of gates that tell one number a unit."""
    with torch.no_grad(), gatecli.record_gates(network) as record:
        network(x)
    nearest = [math.inf]
    for site, gate in _gates(network).items():
        exit_ = site in network.site_exits
        limit = gate.threshold if exit_ else torch.logit(gate.threshold.clamp(0, 1))
        nearest += [float((odds - limit).abs().min()) for odds in record.odds.get(site, [])]
    return min(nearest)


def rates_of(network: gatecli.Network, decided: Tensor) -> dict[str, list[float]]:
    """Each unit's rate over decisions (N, all units): who did not come there counts as 0."""
    parts = decided.clamp(min=0).mean(0).split(list(units_of(network).values()))
    return dict(zip(units_of(network), [part.tolist() for part in parts], strict=True))


def told(path: Path) -> dict[str, Any]:
    """What `gatecli inspect` says of a file: its figures, and the sites that are gated."""
    said = call("inspect", path, "--arch", arch_of(path))
    keys = ("params", "macs_dense", "macs_expected", "num_classes", "input_size")
    return {key: said[key] for key in keys} | {"gated": [s for s in said["sites"] if s["method"]]}


def pool() -> Tensor:
    """The images that golden files are asked about: (N, 1, 16, 16)."""
    with np.load(HERE / "logits.npz") as held:
        return torch.from_numpy(held["images"])
