"""Kinds of numbers in a file's tensors: what they become, and which are refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["dtype_note", "plain", "quantised"]

SMALL = re.compile(r"u?int[1-8]|float8\w*|float4\w*|q(u?int)\w+|bits\w+")  # of 8 bits or fewer
WEIGHT = re.compile(r"(.*\.)?(q?weight|bias|kernel|w)(_packed|_int8|_q|_quantized)?")
# What quantisers keep beside their numbers: torch's, bitsandbytes', GPTQ's and AWQ's.
QUANTISERS = re.compile(
    r"(.*\.)?(zero_point|weight_zero_point|_packed_params|qweight|qzeros|g_idx|SCB|weight_format"
    r"|absmax|quant_map|nested_absmax|weight\.(absmax|quant_map|quant_state\..*)"
    r"|weight_fake_quant\..*|activation_post_process\..*|weight_quantizer\..*)"
)


def plain(tensor: Tensor) -> Tensor:
    """A copy, floating ones as float32: the file may be replaced while its memory is mapped.

    Raises:
        RuntimeError: the tensor is not a dense one.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "sparse or empty (meta)"
        raise RuntimeError(f"a {kind} tensor of shape {tuple(tensor.shape)}")
    tensor = tensor.detach()
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)


def quantised(tensors: Mapping[str, Tensor]) -> str | None:
    """What shows that weights are quantised; None: nothing does."""
    for name, tensor in tensors.items():
        kind = _word(tensor)
        if tensor.is_quantized or (SMALL.fullmatch(kind) and WEIGHT.fullmatch(name[:1000])):
            return f"`{name}` is {kind}"
    beside = next((name for name in tensors if QUANTISERS.fullmatch(name[:1000])), None)
    return None if beside is None else f"it has `{beside}`"


def dtype_note(tensors: Mapping[str, Tensor]) -> str | None:
    """What to say of floating-point numbers of other precision than float32; None: nothing."""
    numbers: Counter[str] = Counter()
    stored = 0
    for tensor in tensors.values():
        if tensor.is_floating_point():
            numbers[_word(tensor)] += tensor.numel()
            stored += tensor.numel() * tensor.element_size()
    others = [kind for kind in numbers if kind != "float32"]
    if not others:
        return None
    times = 4 * sum(numbers.values()) / max(1, stored)
    half = f"{times:.2g} times" if times > 1 else f"{times:.1g} times"
    return (
        f"weights are stored as {', '.join(others)}; they are computed with and written as float32,"
        f" {half} the size"
    )


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
