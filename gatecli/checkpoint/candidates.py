"""Every dict of tensors in what a file holds, each with the keys that lead to it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from gatecli import limits

__all__ = ["WRAPPINGS", "Candidate", "collected", "is_second", "joined"]

# Where training scripts put the weights, the most usual first.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module")
# Words of names of an average of weights, or of what follows or precedes another network: taken
# only where there is nothing else, or by --key.
AVERAGES = {"average", "averaged", "avg", "swa", "shadow", "polyak", "lookahead", "slow"}
FOLLOWERS = {"teacher", "target", "momentum", "key", "k", "pretrained", "best"}
EARLIER = {"old", "previous", "prev", "initial", "init"}
BESIDE = {"discriminator", "loss", "metric", "metrics", "criterion"}
SECOND = AVERAGES | FOLLOWERS | EARLIER | BESIDE
# An optimizer's state, and what else scripts keep that has tensors and is no network.
TRAINING = re.compile(
    r"(.*[._])?(optim\w*|\w*optimizers?\w*|lr_schedulers?|schedulers?|\w*scaler|exp_avg\w*"
    r"|momentum_buffers?|rng\w*|\w*rng_states?|callbacks|loops|hyper_parameters|args|config)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A dict of tensors in a file.

    Attributes:
        key: the keys that lead to it, joined by dots; empty: the file's own.
        tensors: by name.
        module: the module whose they are, where the file holds one (--trust-pickle).
        others: more keys that lead to the very same dict.
    """

    key: str
    tensors: dict[str, Tensor]
    module: nn.Module | None = None
    others: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """All keys that lead to it."""
        return [self.key, *self.others]


def collected(found: Any) -> list[Candidate]:
    """The dicts of tensors in what a file holds, those first that are rather the network's own.

    Optimizers' states are left out. A pickle can hold the same dict in many places, and itself:
    each is looked into once, and no more than limits allow.
    """
    candidates: dict[int, Candidate] = {}
    seen: set[int] = set()
    todo: deque[tuple[tuple[str, ...], Any]] = deque([((), found)])
    while todo and len(seen) < limits.DICTS:
        path, value = todo.popleft()
        if id(value) in seen or _is_training(path, value):
            _note_key(candidates.get(id(value)), path)
            continue
        seen.add(id(value))
        module = value if isinstance(value, nn.Module) else None
        inside = value.state_dict() if module is not None else value
        tensors = _tensors(inside)
        if tensors:
            candidates[id(value)] = Candidate(key=".".join(path), tensors=tensors, module=module)
        if len(path) < limits.NESTED:
            todo.extend(((*path, key), inner) for key, inner in _containers(inside))
    best = [_by_best_key(candidate) for candidate in candidates.values()]
    return sorted(best, key=lambda each: _rank(each.key, each.tensors))[: limits.CANDIDATES]


def is_second(name: str) -> bool:
    """Whether a name is that of an average of weights, or of a network that follows another."""
    words = re.split(r"[._\d]+", name[:1000].lower())
    return any(word in SECOND or word.startswith("ema") or word.endswith("ema") for word in words)


def joined(candidates: Collection[Candidate]) -> Candidate | None:
    """All dicts as one: a script may keep body and head apart. None where there is only one."""
    tensors: dict[str, Tensor] = {}
    for candidate in candidates:
        start = f"{candidate.key}." if candidate.key else ""
        tensors.update({start + name: tensor for name, tensor in candidate.tensors.items()})
    return Candidate(key="", tensors=tensors) if len(candidates) > 1 else None


def _note_key(candidate: Candidate | None, path: tuple[str, ...]) -> None:
    """Note that other keys lead to a dict, too; those through itself are left out."""
    key = ".".join(path)
    if candidate is None or not candidate.key or len(candidate.others) >= limits.NESTED:
        return
    if not any(f"{key}.".startswith(f"{other}.") for other in candidate.keys):
        candidate.others.append(key)


def _by_best_key(candidate: Candidate) -> Candidate:
    """The candidate under the most usual of its keys."""
    key, *others = sorted(candidate.keys, key=lambda key: _rank(key, candidate.tensors))
    return replace(candidate, key=key, others=others)


def _rank(key: str, tensors: Mapping[str, Tensor]) -> tuple[bool, int, bool]:
    """Plain weights before averages, then by how usual the place is; a stray tensor comes last."""
    places = [WRAPPINGS.index(part) for part in key.split(".") if part in WRAPPINGS]
    place = min(places, default=len(WRAPPINGS))
    return is_second(key), place, len(tensors) < 2


def _is_training(path: tuple[str, ...], value: Any) -> bool:
    """Whether this is what only training needs."""
    if path and TRAINING.fullmatch(path[-1][:100]):
        return True
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def _tensors(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    tensors = {}
    for name, tensor in value.items():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            tensors[name] = tensor
    return tensors


def _containers(value: Any) -> Iterator[tuple[str, Any]]:
    """What may hold tensors in a dict or a list, by key."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value[: limits.DICTS])
    for key, inner in items:
        if isinstance(inner, (Mapping, nn.Module, list, tuple)):
            yield str(key)[:1000], inner
