"""Find the networks in one dict of tensors: under prefixes, among passengers, with other heads.

The names as they are come first; only where these fit nothing is anything taken off or left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gatecli import limits
from gatecli.architectures.comparison import Unfit
from gatecli.architectures.head_forms import other_form
from gatecli.architectures.heads import by_role
from gatecli.architectures.identify import Found
from gatecli.architectures.passengers import (
    is_counter,
    is_of_layer,
    is_outsider,
    is_passenger,
    strangers,
)
from gatecli.architectures.shapes import COUNTER, Shape
from gatecli.architectures.wanted import Wanted

__all__ = ["Part", "below", "networks_in", "prefixes", "without_wrappers"]

# Modules that wrap others, anywhere in a network: DataParallel's and DDP's, torch.compile's,
# FSDP's, activation checkpointing's, Fabric's, Opacus's.
WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_module",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network in a dict of tensors.

    Attributes:
        prefix: what was taken off the names, without what wraps modules; empty: nothing.
        names: of the network's tensors -> those in the dict.
        found: the network.
        left_out: tensors of the dict that are none of its.
        note: what was assumed of it; empty: nothing.
    """

    prefix: str
    names: dict[str, str]
    found: Found
    left_out: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Tensors under a common prefix.

    Attributes:
        prefix: that.
        names: relative to it -> those in the dict.
        shapes: by the relative names.
        whole: relative names of tensors of whole numbers.
    """

    prefix: str
    names: dict[str, str]
    shapes: dict[str, Shape]
    whole: set[str] = field(default_factory=set)


def networks_in(shapes: Mapping[str, Shape], whole: Collection[str], wanted: Wanted) -> list[Part]:
    """The networks in a dict of tensors, those with most tensors first.

    Args:
        shapes: the tensors' shapes by name.
        whole: names of the tensors of whole numbers.
        wanted: which networks may be found.

    Raises:
        Unfit: there is none; or beside one there is what looks like more of it.
        ArchitectureError: several fit the same tensors, or there is no such architecture.
    """
    found = wanted.fit(shapes)
    if found is not None:
        return [Part(prefix="", names={name: name for name in shapes}, found=found)]
    everything = _whole(shapes, whole)
    parts = _parts(everything, wanted)
    if not parts:
        _refuse(everything, wanted)
    _check_rest(everything, parts)
    return parts


def below(shapes: Mapping[str, Shape], prefix: str) -> dict[str, str]:
    """Names below a prefix -> those in the dict, whose wrappers may be left out."""
    start = prefix.rstrip(".") + "."
    found = {name[len(start) :]: name for name in shapes if name.startswith(start)}
    if found:
        return found
    clean = _unwrapped(shapes)
    return {name[len(start) :]: old for name, old in clean.items() if name.startswith(start)}


def prefixes(names: Collection[str], least: int = 2) -> list[str]:
    """What several names begin with, the most frequent first, each before what is below it."""
    counts: Counter[str] = Counter()
    for name in names:
        path = ""
        for part in name.split(".", limits.NESTED)[: limits.NESTED][:-1] or ():
            path = f"{path}.{part}" if path else part
            counts[path] += 1
    several = [(-count, path.count("."), path) for path, count in counts.items() if count >= least]
    order = {path: place for place, path in enumerate(counts)}
    several.sort(key=lambda each: (*each[:2], order[each[2]]))
    return [path for _, _, path in several]


def _whole(shapes: Mapping[str, Shape], whole: Collection[str]) -> _Group:
    """All tensors, with what wraps modules taken out of the names."""
    names = _unwrapped(shapes)
    numbers = set(whole)
    return _Group(
        prefix="",
        names=names,
        shapes={name: shapes[old] for name, old in names.items()},
        whole={name for name, old in names.items() if old in numbers},
    )


def without_wrappers(path: str) -> str:
    """A path without the parts that wrap others."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _unwrapped(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Names without what wraps modules -> the names; all as they are where two would be one."""
    names: dict[str, str] = {}
    for name in shapes:
        names[without_wrappers(name) or name] = name
    return names if len(names) == len(shapes) else {name: name for name in shapes}


def _parts(everything: _Group, wanted: Wanted) -> list[Part]:
    """The networks: all of the tensors, or those under some prefixes."""
    part = _fitted(everything, wanted)
    if part is not None:
        return [part]
    parts: list[Part] = []
    for prefix in prefixes(everything.names, wanted.least())[: limits.GROUPS]:
        if any(f"{prefix}.".startswith(f"{part.prefix}.") for part in parts):
            continue
        part = _fitted(_under(everything, prefix), wanted)
        if part is not None:
            parts.append(part)
    return parts


def _under(group: _Group, prefix: str) -> _Group:
    start = len(prefix) + 1
    names = {name[start:]: name for name in group.names if name.startswith(f"{prefix}.")}
    return _Group(
        prefix=prefix,
        names={name: group.names[full] for name, full in names.items()},
        shapes={name: group.shapes[full] for name, full in names.items()},
        whole={name for name, full in names.items() if full in group.whole},
    )


def _fitted(group: _Group, wanted: Wanted) -> Part | None:
    """The network in a group: all of it, or without passengers, or with another head."""
    found = wanted.fit(group.shapes)
    if found is not None:
        return Part(prefix=group.prefix, names=group.names, found=found)
    kept = _without_passengers(group)
    found = wanted.fit(kept) if len(kept) < len(group.shapes) else None
    note = ""
    if found is None:
        role = by_role(kept, wanted)
        if role is None:
            return None
        found, note = role
    left = [name for name in group.shapes if name not in kept]
    if not strangers(left, kept):
        return None
    return Part(
        prefix=group.prefix,
        names={name: group.names[name] for name in group.names if name in kept},
        found=found,
        left_out=tuple(group.names[name] for name in left if not name.endswith(COUNTER)),
        note=note,
    )


def _without_passengers(group: _Group) -> dict[str, Shape]:
    kept = {}
    layered = {name.partition(".")[0] for name in group.shapes if is_of_layer(name)}
    for name, shape in group.shapes.items():
        in_layer = name.partition(".")[0] in layered
        odd = is_counter(name) or is_passenger(name, shape, group.whole, in_layer=in_layer)
        if name.endswith(COUNTER) or not odd:
            kept[name] = shape
    return kept


def _check_rest(everything: _Group, parts: list[Part]) -> None:
    """Raises Unfit where there is more beside the networks than what is plainly none of theirs."""
    covered: set[str] = set()
    for part in parts:
        covered.update(part.names.values(), part.left_out)
    for name, old in everything.names.items():
        shape = everything.shapes[name]
        if old in covered or is_outsider(name, shape, everything.whole):
            continue
        first = parts[0]
        raise Unfit(
            f"under `{first.prefix}.` is {first.found.arch}, but `{name}` beside it looks like a"
            f" part of the network too: --prefix {first.prefix} takes what is under it alone; for"
            " all of it, --arch package.module:callable"
        )


def _refuse(everything: _Group, wanted: Wanted) -> None:
    """Raises the error that says best why nothing fits."""
    kept = _without_passengers(everything)
    groups = [kept]
    common = prefixes(everything.names)[:1]
    if common:
        inner = _under(everything, common[0])
        groups.append(_without_passengers(inner))
    for shapes in groups:
        said = other_form(shapes, wanted)
        if said is not None:
            raise Unfit(said)
    every = common and len(groups[1]) == len(kept)
    wanted.explain(groups[1] if every else kept)
