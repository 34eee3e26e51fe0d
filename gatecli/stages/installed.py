"""Which of the packages that gatecli asks for are there, by the extra that brings them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    Asked = list[tuple[Requirement, str]]

__all__ = ["DEVELOPERS", "NAME", "PURPOSES", "Extra", "core_missing", "extras"]

NAME = "gatecli"
PURPOSES = {
    "demo": "gatecli demo, --data digits",
    "timm": "timm's networks, hf-hub: checkpoints",
    "transformers": "folders of Hugging Face's image classifiers",
    "onnx": "export and run of ONNX files, --runtime onnxruntime",
    "openvino": "export of OpenVINO files, --runtime openvino",
    "report": "gates --plot, finetune --track tensorboard:DIR",
    "hf": "--data hf:NAME",
    "parquet": "--data parquet:PATH",
    "wandb": "finetune --track wandb",
    "mlflow": "finetune --track mlflow",
    "trackio": "finetune --track trackio",
}
DEVELOPERS = ("test", "bench", "dev", "docs", "release")  # extras that serve no user


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An extra of gatecli.

    Attributes:
        name: As pip takes it.
        purpose: What it is for.
        missing: What it asks for and is not there, each as `onnx>=1.21 (not installed)`.
        install: The command that brings it; None: nothing is missing.
    """

    name: str
    purpose: str
    missing: tuple[str, ...]
    install: str | None


def extras() -> list[Extra]:
    """The extras for users, in the order of their names; none where nothing tells of them."""
    try:
        asked = _asked()
    except ModuleNotFoundError:  # core_missing says so
        return []
    names = {name for _, name in asked if name} - set(DEVELOPERS)
    found = []
    for name in sorted(names):
        missing = tuple(_missing([each for each, extra in asked if extra == name], asked))
        found.append(
            Extra(
                name=name,
                purpose=PURPOSES.get(name, ""),
                missing=missing,
                install=f"pip install '{NAME}[{name}]'" if missing else None,
            )
        )
    return found


def core_missing() -> list[str]:
    """What gatecli itself asks for and is not there, in the same words."""
    try:
        asked = _asked()
    except ModuleNotFoundError as error:  # of what reads requirements
        return [f"{error.name} (not installed)"]
    return list(_missing([each for each, extra in asked if not extra], asked))


def _asked() -> Asked:
    """What gatecli asks for here, each with its extra; empty: without one."""
    from packaging.requirements import Requirement

    try:
        about = metadata(NAME)
    except PackageNotFoundError:  # run from its source
        return []
    asked: Asked = []
    for text in about.get_all("Requires-Dist") or []:
        needed = Requirement(text)
        for extra in ["", *(about.get_all("Provides-Extra") or [])]:
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                asked.append((needed, extra))
                break
    return asked


def _missing(needed: list[Requirement], asked: Asked) -> Iterator[str]:
    """What of these is not there; an extra that asks for another one asks for what that asks."""
    for each in needed:
        if each.name == NAME:
            yield from _missing([one for one, extra in asked if extra in each.extras], asked)
            continue
        try:
            there = version(each.name)
        except PackageNotFoundError:
            yield f"{each.name}{each.specifier} (not installed)"
            continue
        if not each.specifier.contains(there, prereleases=True):
            yield f"{each.name}{each.specifier} ({there} is installed)"
