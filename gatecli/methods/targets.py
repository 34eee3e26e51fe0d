"""The rate that each gate is to reach.

Per-gate targets as users write them, and targets that follow the network.

Reference: Herrmann et al. 2018, sections 3.1 (t may differ per gate) and S2.2 (variable targets).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from gatecli.errors import SettingError

VARIABLE = ("none", "moving", "exponential")
DEFAULT = "t"  # in a list, as in the papers' own: the target rate
FORMS = (
    f"a number for each gate (`{DEFAULT}`: the target rate), as 1,1,.8,t, or PATTERN:NUMBER pairs,"
    " as layer1.*:1,*.0:.7"
)


def resolve(text: str, sites: Sequence[str]) -> dict[str, float]:
    """The target rates that `text` names, of the forms that FORMS says.

    Of several patterns that match a site the last one counts.

    Returns:
        Site -> target rate in [0, 1]; sites that `text` does not mention are left out.

    Raises:
        SettingError: It says what was expected, and what came.
    """
    parts = [part.strip() for part in text.split(",")]
    if ":" in text:
        return _by_pattern(parts, sites)
    if len(parts) != len(sites):
        raise SettingError(
            f"expected setting `targets` to have {len(sites)} numbers, one for each gate, but got"
            f" {len(parts)}; the gates are: {', '.join(sites)}"
        )
    return {site: _rate(part) for site, part in zip(sites, parts, strict=True) if part != DEFAULT}


def _by_pattern(parts: Iterable[str], sites: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        pattern, _, value = part.rpartition(":")
        matching = [site for site in sites if fnmatchcase(site, pattern)]
        if not matching:
            raise SettingError(
                f"expected setting `targets` to name gates, but `{pattern or part}` matches none"
                f" of: {', '.join(sites)}"
            )
        found.update(dict.fromkeys(matching, _rate(value)))
    return {site: found[site] for site in sites if site in found}


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1
    if not 0 <= rate <= 1:
        raise SettingError(
            f"expected setting `targets` to be {FORMS}, with numbers between 0 and 1, but got"
            f" `{text}`"
        )
    return rate


def read(text: str) -> dict[str, float]:
    """Targets by site, from the form that `written` gives.

    Raises:
        SettingError: It has another form.
    """
    targets = {}
    for part in text.split(","):
        site, _, rate = part.rpartition(":")
        targets[site] = _rate(rate)
    return targets


def written(targets: Mapping[str, float]) -> str | None:
    """Targets by site as a recipe records them; None where there are none."""
    return ",".join(f"{site}:{rate:g}" for site, rate in targets.items()) or None


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
