"""What a case comes to, and the table of all of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

RIGHT = "right"  # the same result as without the damage
OTHER = "other"  # another result, where nobody can know that the file was another one
REFUSED = "refused"  # one clear line
FAILED = "failed"
VERDICTS = (RIGHT, OTHER, REFUSED, FAILED)
SLOW = 2.0  # seconds of CPU above which a case is listed as slow


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdict on one case.

    Attributes:
        case: what `--only` repeats it by, as `files:12`.
        kind: the row of the table that it counts in.
        cpu: seconds of processor time that it took.
        added: bytes that it added to the memory in use, at most.
    """

    case: str
    kind: str
    verdict: str
    detail: str = ""
    cpu: float = 0.0
    added: int = 0

    @property
    def slow(self) -> bool:
        """Whether the case took more processor time than a small file should."""
        return self.cpu > SLOW


def table(outcomes: Iterable[Outcome]) -> str:
    """Counts by kind, as lines of text."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in outcomes:
        for kind in (one.kind, "all"):
            counts[kind].update(["tried", one.verdict, *["slow"] * one.slow])
    columns = ("tried", *VERDICTS, "slow")
    rows = [f"{'kind':<34}" + "".join(f"{name:>9}" for name in columns)]
    for kind in sorted(counts, key=lambda kind: (kind == "all", kind)):
        rows.append(f"{kind:<34}" + "".join(f"{counts[kind][name]:>9}" for name in columns))
    return "\n".join(rows)


def line(one: Outcome) -> str:
    """One case as a line of text."""
    facts = f"{one.cpu:.1f} s of CPU, {one.added >> 20} MiB"
    return f"{one.case} {one.kind}: {one.verdict}: {one.detail[:300]} ({facts})"
