"""run: what a network says of single images, where it left and what it skipped.

The network is a checkpoint's, or a file that export wrote.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatecli.data.folders import opened
from gatecli.data.prepare import mode_for, prepare
from gatecli.errors import CheckpointError
from gatecli.exporting.facts import Facts, facts_of
from gatecli.exporting.runner import Answer, Runner
from gatecli.gates.observe import record_gates
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.stages.fit import with_usual

__all__ = ["Prediction", "native", "predict", "prepared"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is said of one image.

    Attributes:
        image: its file.
        classes: the likeliest ones, each with its number ("class"), "name" and "probability".
        exit: the site of the exit taken, "end" for none; None: not known.
        skipped: the sites whose gates were all closed; None: not known.
        ms: the median time of a call, in milliseconds.
    """

    image: str
    classes: list[dict[str, Any]]
    exit: str | None
    skipped: list[str] | None
    ms: float


def native(network: Network, classes: Sequence[str] = ()) -> Runner:
    """Run a network itself, one image at a time, skipping.

    Args:
        network: goes into evaluation.
        classes: their names; none: not known.
    """
    network.eval()
    sites = [site for site in network.site_gates if site not in network.site_exits]

    def answer(image: Tensor) -> Answer:
        with torch.inference_mode(), record_gates(network) as record:
            logits, taken = network(image.to(network.device), return_exits=True)
        on = {site for site, z in record.latest().items() if bool(z.any())}
        return Answer(
            logits=logits[0].float().cpu(),
            exit=int(taken[0]),
            skipped=[site for site in sites if site not in on],
        )

    def call(image: Tensor) -> Any:
        with torch.inference_mode():
            return network(image.to(network.device))

    return Runner(answer=answer, call=call, facts=facts_of(network, single=False, classes=classes))


def predict(
    runner: Runner, files: Sequence[str], top: int = 3, repeats: int = 5
) -> list[Prediction]:
    """Classify image files.

    Args:
        runner: the network.
        files: the images.
        top: how many classes to tell of.
        repeats: timed calls an image.

    Raises:
        DataError: a file cannot be read.
    """
    images = [prepared(file, runner.facts) for file in files]
    found = []
    for file, image in zip(files, images, strict=True):
        answer = runner.answer(image)
        ms = _median_ms(runner, image, repeats)
        require_finite(answer.logits[None])
        found.append(
            Prediction(
                image=file,
                classes=_likeliest(answer.logits, runner.facts.classes, top),
                exit=_exit_name(answer, runner.facts.exits),
                skipped=answer.skipped,
                ms=ms,
            )
        )
    return found


def _median_ms(runner: Runner, image: Tensor, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        runner.call(image)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _likeliest(logits: Tensor, names: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """The `top` classes of logits (K,), the likeliest first."""
    best = logits.softmax(0).topk(min(top, len(logits)))
    found = []
    for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        name = names[number] if names else None
        found.append({"class": number, "name": name, "probability": share})
    return found


def _exit_name(answer: Answer, exits: Sequence[str]) -> str | None:
    if answer.exit is None:
        return None
    return exits[answer.exit] if answer.exit < len(exits) else "end"


def prepared(file: str, facts: Facts) -> Tensor:
    """Read an image file as the network was trained on it: (1, C, H, W), normalised.

    Raises:
        DataError: it cannot be read, or the normalisation is not known.
        CheckpointError: the network takes neither 1 nor 3 channels.
    """
    wanted = facts.input()
    picture = opened(file, mode_for(wanted))
    if facts.channels not in (1, 3):
        raise CheckpointError(
            f"expected a network that takes 1 or 3 channels, but this one takes {facts.channels}"
        )
    known, _ = with_usual(wanted)
    return prepare(picture, known, crop=facts.crop)
