"""What the files of a network in pieces are called; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from gatecli.exporting.registry import Format, module_name

__all__ = ["SUFFIX", "piece_files", "runner_file", "split_files"]

SUFFIX = ".split.json"  # of the file that describes the pieces


def split_files(out: Path, format: Format, exits: int) -> list[Path]:
    """All files of a network in pieces: the description, the runner, and one or more a stage."""
    files = [out, runner_file(out)]
    for stage in range(exits + 1):
        files += piece_files(out, format, stage)
    return files


def runner_file(out: Path) -> Path:
    """The Python module beside a description: `resnet50.split.json`, `resnet50_split.py`."""
    return out.with_name(f"{module_name(_stem(out))}_split.py")


def piece_files(out: Path, format: Format, stage: int) -> list[Path]:
    """The files of one stage, the one to open first: `resnet50.stage0.onnx`."""
    return format.files(out.with_name(f"{_stem(out)}.stage{stage}{format.suffix}"))


def _stem(out: Path) -> str:
    return out.name.removesuffix(".json").removesuffix(".split")
