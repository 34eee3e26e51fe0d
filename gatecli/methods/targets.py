"""The rate that each gate is to reach.

Per-gate targets as users write them, and targets that follow the network.

Reference: Herrmann et al. 2018, sections 3.1 (t may differ per gate) and S2.2 (variable targets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from gatecli.errors import SettingError
from gatecli.methods.values import FrozenDict, ValueType, mapping

__all__ = ["DEFAULT", "FORMS", "TARGETS", "VARIABLE", "Targets", "follow", "read", "resolve"]

# by pattern or site; or one for each gate in their order, None: the target rate
Targets = Mapping[str, float] | tuple[float | None, ...]
VARIABLE = ("none", "moving", "exponential")
DEFAULT = "t"  # in a list, as in the papers' own: the target rate
FORMS = (
    f"a number for each gate (`{DEFAULT}`: the target rate), as 1,1,.8,t, or PATTERN:NUMBER pairs,"
    " as layer1.*:1,*.0:.7"
)


def resolve(asked: Targets, sites: Sequence[str]) -> dict[str, float]:
    """The target rates that are asked for, by site.

    Of several patterns that match a site the last one counts.

    Returns:
        Site -> target rate in [0, 1]; sites that are not mentioned are left out.

    Raises:
        SettingError: There are other sites; it says what was expected, and what came.
    """
    if isinstance(asked, Mapping):
        return _by_pattern(asked, sites)
    if len(asked) != len(sites):
        raise SettingError(
            f"expected setting `targets` to have {len(sites)} numbers, one for each gate, but got"
            f" {len(asked)}; the gates are: {', '.join(sites)}"
        )
    return {site: rate for site, rate in zip(sites, asked, strict=True) if rate is not None}


def _by_pattern(asked: Mapping[str, float], sites: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, rate in asked.items():
        matching = [site for site in sites if fnmatchcase(site, pattern)]
        if not matching:
            raise SettingError(
                f"expected setting `targets` to name gates, but `{pattern}` matches none of:"
                f" {', '.join(sites)}"
            )
        found.update(dict.fromkeys(matching, rate))
    return {site: found[site] for site in sites if site in found}


def read(value: Any) -> Targets:
    """Targets from any of their spellings: those of FORMS as one text, a mapping, or a list.

    Raises:
        SettingError: A part of it is none.
        TypeError: It is something else.
        ValueError: It is a text that begins as a JSON object, and is none.
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        return FrozenDict({_name(pattern): _rate(rate) for pattern, rate in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(None if part in (None, DEFAULT) else _rate(part) for part in value)
    raise TypeError(type(value).__name__)


def _from_text(text: str) -> Targets:
    if text.lstrip().startswith("{"):
        return read(mapping(text))
    parts = [part.strip() for part in text.split(",")]
    if ":" not in text:
        return read(parts)
    pairs: dict[str, float] = {}
    for part in parts:
        pattern, _, rate = part.rpartition(":")
        if not pattern:
            raise _odd(part)
        pairs.pop(pattern, None)  # the last one counts, so it comes last
        pairs[pattern] = _rate(rate)
    return FrozenDict(pairs)


def _name(pattern: Any) -> str:
    if not isinstance(pattern, str):
        raise _odd(pattern)
    return pattern


def _rate(given: Any) -> float:
    try:
        rate = -1 if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        rate = -1
    if not 0 <= rate <= 1:
        raise _odd(given)
    return rate


def _odd(part: Any) -> SettingError:
    return SettingError(
        f"expected setting `targets` to be {FORMS}, with numbers between 0 and 1, but got `{part}`"
    )


TARGETS = ValueType(
    expected=f"{FORMS}, with numbers between 0 and 1",
    words="number,...|pattern:number,...",
    read=read,
)


def follow(
    kind: str, momentum: float, targets: Mapping[str, float], rates: Mapping[str, float], count: int
) -> dict[str, float]:
    """The targets after a batch whose gates had these rates.

    Args:
        kind: `moving`: the mean of the target that the epoch began with and all its batches' rates;
            `exponential`: t <- momentum t + (1 - momentum) rate.
        momentum: Of `exponential`.
        targets: Before the batch, by site.
        rates: The batch's, by site.
        count: Its number in the epoch, from 1.
    """
    share = 1 / (count + 1) if kind == "moving" else 1 - momentum
    return {site: target + share * (rates[site] - target) for site, target in targets.items()}
