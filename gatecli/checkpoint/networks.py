"""All networks in a file: in each of its dicts of tensors, those that fit, or the error why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from gatecli.architectures.comparison import Unfit
from gatecli.architectures.heads import ROOT
from gatecli.architectures.search import Part, below, networks_in, prefixes
from gatecli.architectures.shapes import Shape
from gatecli.architectures.wanted import Wanted
from gatecli.checkpoint.candidates import Candidate, joined
from gatecli.checkpoint.folding import folded
from gatecli.checkpoint.values import quantised
from gatecli.errors import CheckpointError, GatecliError

__all__ = ["Network", "ends", "networks"]

QUANTISED = (
    "gatecli takes floating-point weights: save the network before it is quantised, or dequantise"
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of a file's networks.

    Attributes:
        candidate: the dict that it is in.
        part: which tensors of that dict are its, and what it is.
        is_folded: whether its weights are to be put together from parts.
    """

    candidate: Candidate
    part: Part
    is_folded: bool

    @property
    def path(self) -> str:
        """The keys and the prefix that lead to it."""
        return ".".join(filter(None, (self.candidate.key, self.part.prefix)))


def networks(candidates: Sequence[Candidate], wanted: Wanted, prefix: str) -> list[Network]:
    """The networks in dicts of tensors.

    Args:
        candidates: the dicts.
        wanted: which networks may be found.
        prefix: of their tensors' names, where the user says it; empty: found.

    Raises:
        GatecliError: there are none; what was wrong with the first dict.
    """
    found: list[Network] = []
    errors: list[GatecliError] = []
    for candidate in candidates:
        wanted.brief = bool(errors or found)
        try:
            found += _networks_of(candidate, wanted, prefix)
        except GatecliError as error:
            errors.append(error)
    whole = joined(candidates) if not found else None
    if whole is not None:
        with suppress(GatecliError):  # the parts' errors say more
            found += _networks_of(whole, wanted, prefix)
    if not found:
        told = [error for error in errors if prefix and isinstance(error, Unfit)]
        raise [*told, *errors][0]
    return found


def ends(path: str, key: str) -> bool:
    """Whether the last parts of a path are these, or the first ones."""
    return f".{path}".endswith(f".{key}") or path.startswith(f"{key}.")


def _networks_of(candidate: Candidate, wanted: Wanted, prefix: str) -> list[Network]:
    """The networks in one dict. Raises GatecliError where there is none."""
    said = quantised(candidate.tensors)
    if said is not None:
        raise CheckpointError(f"holds quantised weights ({said}): {QUANTISED}")
    tensors: Mapping[str, Tensor] = candidate.tensors
    try:
        parts = _parts(tensors, wanted, prefix)
    except Unfit:
        tensors, _ = folded(candidate.tensors, values=False)
        if tensors.keys() == candidate.tensors.keys():
            raise
        parts = _parts(tensors, wanted, prefix)
    is_folded = tensors is not candidate.tensors
    return [Network(candidate=candidate, part=part, is_folded=is_folded) for part in parts]


def _parts(tensors: Mapping[str, Tensor], wanted: Wanted, prefix: str) -> list[Part]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    whole = {name for name, tensor in tensors.items() if not tensor.is_floating_point()}
    if prefix:
        return _told(shapes, whole, wanted, prefix)
    return networks_in(shapes, whole, wanted)


def _told(shapes: Mapping[str, Shape], whole: set[str], wanted: Wanted, prefix: str) -> list[Part]:
    """The network under a prefix that the user names; its head may lie elsewhere.

    Raises:
        CheckpointError: no tensor's name begins so.
        ArchitectureError: no network fits.
    """
    names = below(shapes, prefix)
    if not names:
        there = ", ".join(f"`{path}.`" for path in prefixes(list(shapes))[:8])
        raise CheckpointError(
            f"has no tensors whose names begin with --prefix {prefix}.: there are"
            f" {there or 'no prefixes'}"
        )
    inner = {name: shapes[full] for name, full in names.items()}
    numbers = {name for name, full in names.items() if full in whole}
    try:
        parts = networks_in(inner, numbers, wanted)
    except Unfit:
        with suppress(Unfit):
            around = networks_in(shapes, whole, wanted)
            around = [part for part in around if _has_body_at(part, prefix)]
            if around:
                return around
        raise
    return [_outside(part, names, prefix) for part in parts]


def _has_body_at(part: Part, prefix: str) -> bool:
    """Whether a network's body, not all of it, has a prefix."""
    body = ".".join(filter(None, (part.prefix, part.found.names.get(ROOT, ""))))
    return ROOT in part.found.names and ends(prefix, body)


def _outside(part: Part, names: Mapping[str, str], prefix: str) -> Part:
    """A network under a prefix, as it is in the whole dict."""
    return Part(
        prefix=".".join(filter(None, (prefix, part.prefix))),
        names={name: names[old] for name, old in part.names.items()},
        found=part.found,
        left_out=tuple(names[name] for name in part.left_out),
        note=part.note,
    )
