"""run: what a network, in its own file or exported to ONNX, says of single images, where it left and what it skipped."""
from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatecli.data.arrays import luminance, resized
from gatecli.data.folders import centre_crop, opened
from gatecli.errors import CheckpointError, ExportError
from gatecli.exporting.onnx_file import facts_of, session_of
from gatecli.inputs import IMAGENET_MEAN, IMAGENET_STD
from gatecli.network import Network
from gatecli.probe import require_finite
from gatecli.record import record_gates


@dataclass(frozen=True)
class Answer:
    """Logits (K,) of one image, the number of the exit taken (how many exits there are: none; None: the file does not say), and the sites whose gates were all closed."""

    logits: Tensor
    exit: int | None
    skipped: list[str] | None


@dataclass(frozen=True)
class Runner:
    """A network that answers images (1, C, H, W), and what is known of it: see gatecli.exporting.onnx_file.facts_of."""

    answer: Callable[[Tensor], Answer]
    call: Callable[[Tensor], Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """What is said of one image: the likeliest classes (number, name, probability), the exit taken, the sites skipped, and the median time of a call."""

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
        skipped = [site for site in network.site_gates if site not in exits and not decided.get(site, False)]
        return Answer(logits[0].float().cpu(), int(taken[0]), skipped)

    def call(image: Tensor) -> Any:
        with torch.inference_mode():
            return network(image.to(network.device))

    return Runner(answer, call, json.loads(facts_of(network, False, classes)["gatecli"]))


def exported(path: Path) -> Runner:
    """Run an ONNX file that export wrote, with ONNX Runtime. Raises ExportError where it is none, or the package is missing."""
    session = session_of(path)
    text = session.get_modelmeta().custom_metadata_map.get("gatecli")
    if text is None:
        raise ExportError(f"expected {path} to be an ONNX file that gatecli export wrote, but it does not say how its images are to be prepared")
    facts, names = json.loads(text), [output.name for output in session.get_outputs()]

    def answer(image: Tensor) -> Answer:
        found = dict(zip(names, session.run(names, {"images": image.numpy()}), strict=True))
        told = all(f"gate.{site}" in found for site in facts["gates"])
        skipped = [site for site in facts["gates"] if not found[f"gate.{site}"].any()] if told else None
        taken = int(found["exit"].reshape(-1)[0]) if "exit" in found else None if facts["exits"] else 0
        return Answer(torch.from_numpy(found["logits"][0]), taken, skipped)

    return Runner(answer, lambda image: session.run(["logits"], {"images": image.numpy()}), facts)


def predict(runner: Runner, files: Sequence[str], top: int = 3, repeats: int = 5) -> list[Prediction]:
    """One prediction an image file. Raises DataError where one cannot be read."""
    images = [prepared(file, runner.facts) for file in files]
    return [_predicted(runner, file, image, top, repeats) for file, image in zip(files, images, strict=True)]


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
    classes = [{"class": number, "name": names[number] if names else None, "probability": share} for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    exits = runner.facts["exits"]
    left = None if answer.exit is None else exits[answer.exit] if answer.exit < len(exits) else "end"
    return Prediction(file, classes, left, answer.skipped, statistics.median(times))


def prepared(file: str, facts: Mapping[str, Any]) -> Tensor:
    """An image file as the network was trained on it: (1, C, H, W), normalised."""
    channels, size = facts["channels"], tuple(facts["input_size"])
    picture = opened(file, "L" if channels == 1 else "RGB")
    if facts["crop"]:
        pixels = centre_crop(picture, size)[None]
    else:
        whole = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(1, picture.height, picture.width, -1).permute(0, 3, 1, 2)
        pixels = resized(luminance(whole) if channels == 1 else whole, size)
    if channels not in (1, 3):
        raise CheckpointError(f"expected a network that takes 1 or 3 channels, but this one takes {channels}")
    default = (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = (torch.tensor(facts[key] or fallback).view(1, -1, 1, 1) for key, fallback in zip(("mean", "std"), default, strict=True))
    result: Tensor = (pixels.float() / 255 - mean) / std
    return result
