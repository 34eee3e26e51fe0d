"""run: what a network, in its own file or exported to ONNX, says of single images, where it left
and what it skipped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from gatecli.data.folders import opened
from gatecli.data.prepare import mode_for, prepare
from gatecli.errors import CheckpointError, DataError, ExportError, first_line
from gatecli.exporting.facts import KEY, Facts, facts_of
from gatecli.exporting.onnx_file import refuse_other_files, session_of
from gatecli.inputs import IMAGENET_MEAN, IMAGENET_STD
from gatecli.network import Network
from gatecli.probe import require_finite
from gatecli.record import record_gates
from gatecli.traced.recipe import InputSpec


@dataclass(frozen=True)
class Answer:
    """Logits (K,) of one image, the number of the exit taken (how many exits there are: none; None:
    the file does not say), and the sites whose gates were all closed.
    """

    logits: Tensor
    exit: int | None
    skipped: list[str] | None


@dataclass(frozen=True)
class Runner:
    """A network that answers images (1, C, H, W), and what is known of it.

    See gatecli.exporting.facts.Facts.
    """

    answer: Callable[[Tensor], Answer]
    call: Callable[[Tensor], Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    The likeliest classes (number, name, probability), the exit taken, the sites skipped, and the
    median time of a call.
    """

    image: str
    classes: list[dict[str, Any]]
    exit: str | None
    skipped: list[str] | None
    ms: float


def native(network: Network, classes: Sequence[str] = ()) -> Runner:
    """Run the network itself, one image at a time, skipping."""
    network.eval()
    exits = list(network.site_exits)

    def answer(image: Tensor) -> Answer:
        with torch.inference_mode(), record_gates(network) as record:
            logits, taken = network(image.to(network.device), return_exits=True)
        decided = {site: bool(z.any()) for site, z in record.latest().items() if site not in exits}
        skipped = [
            site
            for site in network.site_gates
            if site not in exits and not decided.get(site, False)
        ]
        return Answer(logits[0].float().cpu(), int(taken[0]), skipped)

    def call(image: Tensor) -> Any:
        with torch.inference_mode():
            return network(image.to(network.device))

    return Runner(answer, call, vars(facts_of(network, False, classes)))


def exported(path: Path) -> Runner:
    """Run an ONNX file that export wrote, with ONNX Runtime.

    Raises ExportError where it is none, or the package is missing.
    """
    refuse_other_files(path)
    session = session_of(path)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ExportError(
            f"expected {path} to be an ONNX file that gatecli export wrote, but it does not say how"
            " its images are to be prepared"
        )
    facts = Facts.from_json(text, str(path))
    names = [output.name for output in session.get_outputs()]
    if "logits" not in names:
        raise ExportError(
            f"expected {path} to be an ONNX file that gatecli export wrote, but it returns"
            f" {', '.join(names)}, and no logits"
        )

    def run(image: Tensor, wanted: list[str]) -> list[Any]:
        try:
            return list(session.run(wanted, {"images": image.numpy()}))
        except (
            Exception
        ) as error:  # ONNX Runtime has exceptions of its own for all that a graph may do
            raise ExportError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error

    def answer(image: Tensor) -> Answer:
        return _told(facts, dict(zip(names, run(image, names), strict=True)), path)

    return Runner(answer, lambda image: run(image, ["logits"]), vars(facts))


def _told(facts: Facts, found: Mapping[str, Any], path: Path) -> Answer:
    """What an ONNX file's outputs say of one image.

    Raises ExportError where they are not as its facts have them.
    """
    logits = numpy.asarray(found["logits"])
    if logits.dtype != numpy.float32 or logits.shape != (1, facts.num_classes):
        raise ExportError(
            f"expected {path} to return float32 logits (1, {facts.num_classes}), but got"
            f" {logits.dtype} {logits.shape}: export it again"
        )
    told = all(f"gate.{site}" in found for site in facts.gates)
    skipped = (
        [site for site in facts.gates if not numpy.any(found[f"gate.{site}"])] if told else None
    )
    return Answer(torch.from_numpy(logits[0]), _taken(facts, found, path), skipped)


def _taken(facts: Facts, found: Mapping[str, Any], path: Path) -> int | None:
    if "exit" not in found:
        return None if facts.exits else 0
    taken = numpy.asarray(found["exit"])
    if taken.dtype.kind not in "iu" or taken.size != 1 or not 0 <= taken.item() <= len(facts.exits):
        raise ExportError(
            f"expected {path} to return the number of one of {len(facts.exits)} exits, but got"
            f" {taken.dtype} {taken.shape}: export it again"
        )
    return int(taken.item())


def predict(
    runner: Runner, files: Sequence[str], top: int = 3, repeats: int = 5
) -> list[Prediction]:
    """One prediction an image file. Raises DataError where one cannot be read."""
    images = [prepared(file, runner.facts) for file in files]
    return [
        _predicted(runner, file, image, top, repeats)
        for file, image in zip(files, images, strict=True)
    ]


def _predicted(runner: Runner, file: str, image: Tensor, top: int, repeats: int) -> Prediction:
    answer = runner.answer(image)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        runner.call(image)
        times.append(1e3 * (time.perf_counter() - start))
    require_finite(answer.logits[None])
    best = answer.logits.softmax(0).topk(min(top, len(answer.logits)))
    names = runner.facts["classes"]
    classes = [
        {"class": number, "name": names[number] if names else None, "probability": share}
        for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    exits = runner.facts["exits"]
    left = (
        None if answer.exit is None else exits[answer.exit] if answer.exit < len(exits) else "end"
    )
    return Prediction(file, classes, left, answer.skipped, statistics.median(times))


def prepared(file: str, facts: Mapping[str, Any]) -> Tensor:
    """An image file as the network was trained on it: (1, C, H, W), normalised."""
    height, width = facts["input_size"]
    mean = tuple(facts["mean"] or IMAGENET_MEAN)
    std = tuple(facts["std"] or IMAGENET_STD)
    wanted = InputSpec(size=(height, width), channels=facts["channels"], mean=mean, std=std)
    picture = opened(file, mode_for(wanted))
    if wanted.channels not in (1, 3):
        raise CheckpointError(
            f"expected a network that takes 1 or 3 channels, but this one takes {wanted.channels}"
        )
    if wanted.channels == 1 and None in (facts["mean"], facts["std"]):
        raise DataError(
            "the normalisation of the network's input is not known: give --mean and --std as it was"
            " trained with"
        )
    return prepare(picture, wanted, crop=facts["crop"])
