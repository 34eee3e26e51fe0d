"""From differences to a word, by one rule for all claims.

A difference is known once for each seed and each fold of the test images. Its standard error has a
part from the seeds and one from the images:

    error^2 = var over seeds / seeds + var over folds / folds

"More" is *shown* where the mean is at least two standard errors above 0 and no seed says the
contrary, *contradicted* where that holds of the opposite, *a tie* where the mean and two standard
errors beside it are within the margin (a point), and else *not shown*; "less" likewise. "The same"
is shown by a tie, and contradicted where the mean is two standard errors beyond the margin. "No
less" is shown where the mean less two standard errors is above minus the margin, and contradicted
where it is below that by two standard errors.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["EXPECTED", "Judged", "judge", "overall"]

EXPECTED = ("more", "less", "same", "no less")
SHOWN, TIE, NOT_SHOWN, CONTRADICTED = "shown", "a tie", "not shown", "contradicted"
NOT_RUN = "not run"
ERRORS = 2.0  # so many standard errors from 0 are not chance


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A difference and what it says of a claim.

    Attributes:
        word: The verdict.
        mean: Of the difference, over seeds and folds.
        error: Its standard error.
        seeds: How many there are.
    """

    word: str
    mean: float
    error: float
    seeds: int


def judge(differences: Mapping[int, Sequence[float]], expect: str, margin: float) -> Judged:
    """Judge a difference that is known by seed, for each fold of the test images or once.

    Args:
        differences: In the sense that `expect` says something of.
        expect: One of EXPECTED.
        margin: Less does not matter.
    """
    if not differences:
        return Judged(word=NOT_RUN, mean=0.0, error=0.0, seeds=0)
    by_seed = [statistics.fmean(each) for each in differences.values()]
    by_fold = [statistics.fmean(each) for each in zip(*differences.values(), strict=True)]
    mean = statistics.fmean(by_seed)
    error = (_variance_of_mean(by_seed) + _variance_of_mean(by_fold)) ** 0.5
    rule = {"more": _more, "less": _less, "same": _same, "no less": _no_less}[expect]
    word = rule(mean, ERRORS * error, margin)
    agree = all(each * mean > 0 for each in by_seed)
    if expect in ("more", "less") and word in (SHOWN, CONTRADICTED) and not (agree and error):
        word = NOT_SHOWN  # the seeds disagree, or nothing says how much is chance
    return Judged(word=word, mean=mean, error=error, seeds=len(by_seed))


def _variance_of_mean(values: Sequence[float]) -> float:
    return statistics.variance(values) / len(values) if len(values) > 1 else 0.0


def _more(mean: float, reach: float, margin: float) -> str:
    if abs(mean) >= reach:
        return SHOWN if mean > 0 else CONTRADICTED
    return TIE if abs(mean) + reach <= margin else NOT_SHOWN


def _less(mean: float, reach: float, margin: float) -> str:
    return _more(-mean, reach, margin)


def _same(mean: float, reach: float, margin: float) -> str:
    if abs(mean) + reach <= margin:
        return SHOWN
    return CONTRADICTED if abs(mean) - reach > margin else NOT_SHOWN


def _no_less(mean: float, reach: float, margin: float) -> str:
    if mean - reach >= -margin:
        return SHOWN
    return CONTRADICTED if mean + reach < -margin else NOT_SHOWN


def overall(words: Sequence[str]) -> str:
    """The verdict on a claim that several comparisons decide."""
    counts = Counter(words)
    if len(counts) == 1:
        return words[0]
    if counts[SHOWN]:
        return f"shown in part ({counts[SHOWN]} of {len(words)})"
    return CONTRADICTED if counts[CONTRADICTED] else NOT_SHOWN
