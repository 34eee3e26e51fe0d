"""Milliseconds of the networks that were kept, all in one interleaved run."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from claims.problem import Problem

from gatecli.data import batches
from gatecli.network import Network
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order
from gatecli.runtimes.machine import describe
from gatecli.stages.timing import Timed, interleaved

__all__ = ["RUNTIMES", "timed"]

RUNTIMES = ("native", "onnxruntime")
IMAGES, ROUNDS = 512, 512


def timed(networks: Mapping[str, Network], problem: Problem) -> dict[str, Any]:
    """Mean milliseconds of an image of val, by runtime and name: the gates decide by themselves.

    In each round all networks get the same image, so slow spells of the machine hit them alike; of
    two passes the quicker call of each image counts.
    """
    spec = next(iter(networks.values())).input
    images, _ = next(batches(problem.data.splits["val"], input=spec, batch_size=IMAGES))
    found: dict[str, Any] = {"machine": describe(), "load": os.getloadavg()[0], "ms": {}}
    for runtime in RUNTIMES:
        everyone = []
        for network in networks.values():
            prepared = registry.get(runtime).prepare(Order(model=network, recipe=network.recipe))
            everyone.append(Timed(prepared=prepared, images=images, rates={}))
        with torch.inference_mode():
            passes = [interleaved(everyone, 1, ROUNDS, lambda: None) for _ in range(2)]
        means = [
            statistics.fmean(map(min, *(each[place] for each in passes)))
            for place in range(len(everyone))
        ]
        found["ms"][runtime] = dict(zip(networks, means, strict=True))
    return found
