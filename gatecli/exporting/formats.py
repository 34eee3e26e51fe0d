"""The formats that gatecli has: one registration each.

Their files are imported when they are used, as they need torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.exporting.registry import Format, Logits, Pieces, Task, module_name, register

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


def _onnx_pieces() -> Pieces:
    from gatecli.exporting.onnx.one_file import refuse_other_files
    from gatecli.exporting.onnx.pieces import open_piece, quantise_piece, write_piece

    return Pieces(
        write=write_piece, open=open_piece, check=refuse_other_files, quantise=quantise_piece
    )


def _write_openvino(task: Task) -> Logits:
    from gatecli.exporting.openvino.file import write_openvino

    return write_openvino(task)


def _open_openvino(path: Path) -> Runner:
    from gatecli.exporting.openvino.run import open_openvino

    return open_openvino(path)


def _openvino_pieces() -> Pieces:
    from gatecli.exporting.openvino.packages import openvino_package
    from gatecli.exporting.openvino.pieces import open_piece, write_piece

    return Pieces(write=write_piece, open=open_piece, check=lambda path: openvino_package())


def _with_bin(out: Path) -> list[Path]:
    """A graph, and its weights where OpenVINO looks for them."""
    weights = out.with_suffix(".bin")
    return [out, out.with_name(f"{out.name}.bin") if weights == out else weights]


def _write_weights(task: Task) -> Logits:
    from gatecli.exporting.weights.file import write_weights

    return write_weights(task)


def _with_module(out: Path) -> list[Path]:
    """A weights file and the Python module beside it.

    `resnet50.pruned.weights.safetensors`, `resnet50_pruned.py`.
    """
    stem = out.name.removesuffix(".safetensors").removesuffix(".weights")
    return [out, out.with_name(f"{module_name(stem)}.py")]


register(
    Format(
        name="onnx",
        suffix=".onnx",
        noun="an ONNX file",
        write=_write_onnx,
        can_decisions=True,
        can_opset=True,
        open=_open_onnx,
        pieces=_onnx_pieces,
        logits=_onnx_logits,
        quantise=_quantise_onnx,
        lay_out=_lay_out_onnx,
    )
)
register(
    Format(
        name="openvino",
        suffix=".xml",
        noun="an OpenVINO file",
        about="IR",
        write=_write_openvino,
        files=_with_bin,
        can_decisions=True,
        open=_open_openvino,
        pieces=_openvino_pieces,
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
