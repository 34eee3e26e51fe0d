"""The formats that gatecli has: one registration each.

Their files are imported when they are used, as they need torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.exporting.registry import Format, Logits, Task, register

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.exporting.runner import Runner

__all__ = ["DEFAULT"]

DEFAULT = "onnx"


def _write_onnx(task: Task) -> Logits:
    from gatecli.exporting.onnx.file import write_onnx

    return write_onnx(task)


def _open_onnx(path: Path) -> Runner:
    from gatecli.exporting.onnx.run import open_onnx

    return open_onnx(path)


def _onnx_logits(path: Path) -> Logits:
    from gatecli.exporting.onnx.run import logits_of

    return logits_of(path)


def _quantise_onnx(source: Path, out: Path, images: Iterable[Tensor]) -> None:
    from gatecli.exporting.onnx.int8 import quantise

    quantise(source, out, ({"images": batch.numpy()} for batch in images))


def _lay_out_onnx(source: Path, out: Path) -> None:
    from gatecli.exporting.onnx.processor import lay_out

    lay_out(source, out)


def _write_pt2(task: Task) -> Logits:
    from gatecli.exporting.pt2 import write_pt2

    return write_pt2(task)


def _write_weights(task: Task) -> Logits:
    from gatecli.exporting.weights.file import write_weights

    return write_weights(task)


def _with_module(out: Path) -> list[Path]:
    """A weights file and the Python module beside it.

    `resnet50.pruned.weights.safetensors`, `resnet50_pruned.py`.
    """
    stem = out.name.removesuffix(".safetensors").removesuffix(".weights")
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    if not name[:1].isalpha():
        name = f"network_{name}"
    return [out, out.with_name(f"{name}.py")]


register(
    Format(
        name="onnx",
        suffix=".onnx",
        noun="an ONNX file",
        write=_write_onnx,
        can_decisions=True,
        can_opset=True,
        open=_open_onnx,
        logits=_onnx_logits,
        quantise=_quantise_onnx,
        lay_out=_lay_out_onnx,
    )
)
register(
    Format(
        name="pt2",
        suffix=".pt2",
        noun="a pt2 file",
        about="torch.export",
        write=_write_pt2,
    )
)
register(
    Format(
        name="weights",
        suffix=".weights.safetensors",
        noun="a weights file",
        about="safetensors and a Python module that needs torch alone",
        write=_write_weights,
        files=_with_module,
        can_skip=False,
    )
)
