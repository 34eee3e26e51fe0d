"""Convolutions and BatchNorms as the tensors that they consist of, to fold one into the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["affine", "tensors_of"]


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation multiplies by, and what it adds: (C,) each."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = norm.bias - norm.running_mean * scale
    return scale, shift


def tensors_of(conv: Any, *norms: Any) -> list[Tensor]:
    """What folding depends on: the tensors of a convolution and of BatchNorms."""
    found = [conv.weight, conv.bias]
    for norm in norms:
        found += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return [tensor for tensor in found if tensor is not None]
