"""Weights that a file holds in parts, put together: pruning masks, weight and spectral norm.

torch computes such a weight anew before each call, from what the file has. What is computed in
evaluation depends on nothing else, so the weight itself can be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.checkpoint.values import plain
from gatecli.errors import CheckpointError

__all__ = ["folded"]

REMOVE = (
    "make it plain before it is saved (torch.nn.utils.parametrize.remove_parametrizations, or"
    " torch.nn.utils.prune.remove)"
)
PARAMETRIZED = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<weight>[^.]+)\.(?P<rest>.+)")


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A way of keeping a weight in parts: what it is called, its parts' suffixes, the weight."""

    title: str
    parts: tuple[str, ...]
    compute: Callable[..., Tensor | None]


def _masked(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask if mask.shape == weight.shape else None


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor | None:
    """The direction at the given length, normed over all dimensions that `length` has not."""
    if length.dim() not in (0, direction.dim()):
        return None
    pairs = list(zip(length.shape, direction.shape, strict=False))
    if any(mine not in (1, theirs) for mine, theirs in pairs):
        return None
    over = [place for place, (mine, _) in enumerate(pairs) if mine == 1] or None
    if length.dim() and over is None:
        return None
    norm = torch.linalg.vector_norm(direction, dim=over, keepdim=length.dim() > 0)
    weight: Tensor = direction * (length / norm)
    return weight


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """The weight over its largest singular value, as the stored vectors have it."""
    rows = weight.shape[0] if weight.dim() > 1 else 0
    if not rows or left.shape != (rows,) or right.shape != (weight.numel() // rows,):
        return None
    largest: Tensor = torch.dot(left, torch.mv(weight.reshape(rows, -1), right))
    return weight / largest


FORMS = (
    _Form(title="pruning masks", parts=("_orig", "_mask"), compute=_masked),
    _Form(title="spectral norm", parts=("_orig", "_u", "_v"), compute=_spectral_norm),
    _Form(title="weight norm", parts=("_g", "_v"), compute=_weight_norm),
    _Form(title="weight norm", parts=(".original0", ".original1"), compute=_weight_norm),
    _Form(title="spectral norm", parts=(".original", ".0._u", ".0._v"), compute=_spectral_norm),
)


def folded(
    tensors: Mapping[str, Tensor], *, values: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with weights in place of the parts that they are kept in.

    Args:
        tensors: by name.
        values: whether weights are computed; else they have a shape and nothing more.

    Returns:
        The tensors, in the same order, and notes on what was put together.

    Raises:
        CheckpointError: a weight is kept in parts of which it cannot be told.
    """
    take = plain if values else _shape_alone
    homes = {name: _parted(name) for name in tensors}
    bases = _bases(homes)
    result: dict[str, Tensor] = {}
    done: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        base, part = homes[name]
        given = bases.get(base, {})
        form = _form_of(given) if part else None
        if form is None:
            _check_plain(name, part)
            result[name] = tensor
        elif part == form.parts[0]:
            weight = _computed(name, form, [take(tensors[given[each]]) for each in form.parts])
            result[base] = weight
            done.setdefault(form.title, []).append(weight)
    return result, [_note(title, weights) for title, weights in done.items()] if values else []


def _bases(homes: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """For each weight that may be in parts: the names of these, by part."""
    bases: dict[str, dict[str, str]] = {}
    for name, (base, part) in homes.items():
        if part:
            bases.setdefault(base, {})[part] = name
    return bases


def _computed(name: str, form: _Form, parts: list[Tensor]) -> Tensor:
    weight = form.compute(*parts)
    if weight is None:
        raise CheckpointError(f"holds `{name}`, which makes no weight: {REMOVE}")
    return weight


def _shape_alone(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta")


def _parted(name: str) -> tuple[str, str]:
    """The name of the weight whose part this may be, and which part; empty: of none."""
    inner = PARAMETRIZED.fullmatch(name) if len(name) < 1000 else None
    if inner is not None:
        return inner["module"] + inner["weight"], f".{inner['rest']}"
    for suffix in ("_orig", "_mask", "_u", "_v", "_g"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _form_of(given: Mapping[str, str]) -> _Form | None:
    """The form in which exactly these parts are."""
    return next((form for form in FORMS if set(form.parts) == given.keys()), None)


def _check_plain(name: str, part: str) -> None:
    """Raises CheckpointError where a tensor is a part of a weight in no form that is known."""
    if part.startswith(".") or part == "_orig":
        raise CheckpointError(
            f"holds `{name}`, a part of a weight that is computed anew at each call: {REMOVE}"
        )


def _note(title: str, weights: list[Tensor]) -> str:
    many = "1 weight is" if len(weights) == 1 else f"{len(weights)} weights are"
    text = f"{many} put together from parts in the file ({title})"
    if title != FORMS[0].title:
        return text
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    share = 100 * zeros / max(1, sum(weight.numel() for weight in weights))
    return f"{text}; {share:.0f} % of their numbers are zeros, which are computed like others"
