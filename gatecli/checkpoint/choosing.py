"""Which network of a file is read: all that it holds are listed, one is taken, and that is said."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gatecli.architectures.identify import Found
from gatecli.architectures.passengers import is_statistics
from gatecli.architectures.search import without_wrappers
from gatecli.architectures.shapes import COUNTER
from gatecli.architectures.wanted import Wanted
from gatecli.checkpoint.candidates import Candidate, collected, is_second
from gatecli.checkpoint.folding import folded
from gatecli.checkpoint.networks import Network, ends, networks
from gatecli.checkpoint.state_dicts import check_sizes, dense, describe
from gatecli.checkpoint.values import dtype_note
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError, reason

__all__ = ["Chosen", "choose"]

MOST = 5  # names in a note
LONGEST = 120  # characters of each


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The network that is read from a file.

    Attributes:
        tensors: by the names that the file has for them, less what was taken off.
        found: which network it is.
        notes: what was assumed, left out or put together.
        key: the keys that lead to its dict, joined by dots.
        prefix: what was taken off the tensors' names.
        module: the module that the file holds, with --trust-pickle.
    """

    tensors: dict[str, Tensor]
    found: Found
    notes: list[str]
    key: str = ""
    prefix: str = ""
    module: nn.Module | None = None


def choose(path: Path, held: Any, wanted: Wanted, key: str = "", prefix: str = "") -> Chosen:
    """The network that is meant in what a file holds.

    Plain weights are taken before their average, a student before its teacher.

    Args:
        path: the file.
        held: what it holds.
        wanted: which networks may be found.
        key: leads to the network where there are several; empty: the first.
        prefix: of the names of its tensors; empty: found.

    Raises:
        CheckpointError: there are no tensors, or none that can be read, or key or prefix lead
            nowhere.
        ArchitectureError: no network fits, or several fit the same tensors.
    """
    candidates = collected(held)
    if not candidates:
        raise CheckpointError(f"{path}: expected a state dict but got {describe(held)}")
    if path.is_file():  # not where a library has built the network
        for candidate in candidates:
            check_sizes(candidate.tensors, path)
    key = key.strip(".")
    with _named(path):
        among = _at(candidates, key)
        found = networks(among or candidates, wanted, prefix.strip("."))
        mine = found if among else _below(found, key)
    taken = min(mine, key=lambda network: is_second(network.path))
    others = [] if key else _unread(candidates, found, taken)
    return _chosen(path, taken, [*_which(taken, mine), *others], found)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name the file; those on architectures are named by who reads it."""
    try:
        yield
    except ArchitectureError:
        raise
    except GatecliError as error:
        raise type(error)(f"{path.name} {error}") from error
    except RuntimeError as error:  # torch's, of tensors that are no dense ones
        raise CheckpointError(f"{path.name} cannot be read: {reason(error, 160)}") from error


def _below(found: Sequence[Network], key: str) -> list[Network]:
    """The networks whose tensors' names a key is in. Raises CheckpointError: there is none."""
    inner = without_wrappers(key)
    mine = [each for each in found if ends(without_wrappers(each.path), inner)]
    if not mine:
        there = ", ".join(f"`{each.path}`" for each in found)
        raise CheckpointError(f"has no network at --key {key}: there are {there}")
    return mine


def _at(candidates: Sequence[Candidate], key: str) -> list[Candidate]:
    """The dicts to which a key leads; none where it leads to a group of tensors in one.

    Raises:
        CheckpointError: it leads nowhere.
    """
    if not key:
        return list(candidates)
    exact = [each for each in candidates if key in each.keys]
    near = exact or [each for each in candidates if any(ends(one, key) for one in each.keys)]
    if not near and not any(_is_in_names(key, each) for each in candidates):
        raise CheckpointError(f"has nothing at --key {key}: {_keys(candidates)}")
    return near


def _keys(candidates: Sequence[Candidate]) -> str:
    there = [f"`{each.key}` ({len(each.tensors)} tensors)" for each in candidates if each.key]
    return f"there are {', '.join(there[:8])}" if there else "its tensors are under no key"


def _is_in_names(key: str, candidate: Candidate) -> bool:
    """Whether some tensors' names have a key as parts."""
    inner = without_wrappers(key)
    paths = (without_wrappers(f"{candidate.key}.{name}") for name in candidate.tensors)
    return bool(inner) and any(f".{inner}." in f".{path}" for path in paths)


def _chosen(path: Path, taken: Network, notes: Sequence[str], found: Sequence[Network]) -> Chosen:
    """The network taken, its tensors copied, with notes.

    Args:
        path: the file.
        taken: the network.
        notes: which one it is.
        found: all networks in the file.
    """
    part, stored = taken.part, taken.candidate.tensors
    with _named(path):
        tensors, folds = folded(stored) if taken.is_folded else (stored, [])
    given = {name: tensors[old] for name, old in part.names.items()}
    own = [f"`{part.prefix}.` is taken off the tensors' names (if not: --prefix)"]
    said = dtype_note({name: stored.get(old, tensors[old]) for name, old in part.names.items()})
    return Chosen(
        tensors=dense(given, path),
        found=part.found,
        notes=[
            *notes,
            *(own if part.prefix else []),
            *folds,
            *([part.note] if part.note else []),
            *_left_out(taken, tensors, found),
            *([said] if said else []),
        ],
        key=taken.candidate.key,
        prefix=part.prefix,
        module=taken.candidate.module,
    )


def _which(taken: Network, among: Sequence[Network]) -> list[str]:
    """Which of several networks is read; what is not the plain weights is said of one too."""
    here = taken.path
    if len(among) > 1:
        others = [each.path or "the file's own" for each in among if each is not taken]
        return [
            f"the file holds {len(among)} networks: `{here}` is taken (--key chooses another:"
            f" {_few(others)})"
        ]
    if is_second(here):
        return [f"the file holds `{here}` alone, by its name an average or another's follower"]
    return []


def _unread(candidates: Sequence[Candidate], found: Sequence[Network], taken: Network) -> list[str]:
    """Other dicts with about as many tensors, which fit no network."""
    read = [each.candidate for each in found]
    most = len(taken.part.names) // 2
    others = [each.key for each in candidates if each not in read and len(each.tensors) > most]
    if not others or not all(each.key for each in read):
        return []
    return [f"the tensors under {_few(others)} are of no known network, and are not read"]


def _left_out(taken: Network, tensors: Mapping[str, Tensor], found: Sequence[Network]) -> list[str]:
    """What of a dict belongs to none of its networks, and what that says."""
    used: set[str] = set()
    for each in found:
        if each.candidate is taken.candidate:
            used.update(each.part.names.values())
    left = [name for name in tensors if name not in used and not name.endswith(COUNTER)]
    if not left:
        return []
    notes = [f"left out, as no layer of the network has them: {_few(left)}"]
    for name in left:
        said = _of_images(name, tensors[name])
        if said is not None:
            notes.append(said)
    return notes[:MOST]


def _of_images(name: str, tensor: Tensor) -> str | None:
    """What a tensor that is left out says: of an average, or of the images."""
    if name.rpartition(".")[2] == "n_averaged" and tensor.numel() == 1:
        return f"the weights are an average (`{name}` is {tensor.item():g})"
    if is_statistics(name, tuple(tensor.shape)) and tensor.numel() in (1, 3):
        values = ", ".join(f"{value:.4g}" for value in tensor.flatten().tolist())
        return f"`{name}` is {values}: see that --mean and --std say the same"
    return None


def _few(names: Collection[str]) -> str:
    listed = ", ".join(f"`{name[:LONGEST]}`" for name in list(names)[:MOST])
    return listed if len(names) <= MOST else f"{listed}, ... ({len(names)} in all)"
