"""What the papers claim, as data: variants to train, comparisons of their figures, claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Claim", "Column", "Comparison", "Difference", "Figures", "Paper", "Results", "Variant"]

Figures = Mapping[str, "float | list[float]"]  # a list: a number for each fold of the test images
Results = Mapping[str, Mapping[int, Figures]]  # variant -> seed -> its figures


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One network to train, once for each seed.

    Attributes:
        name: As tables show it.
        epochs: Of its training.
        settings: All else that decides what comes of it, see `claims.training.train`.
        seeds: The seeds for which it is trained; None: all.
    """

    name: str
    epochs: int
    settings: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None


class Difference(Protocol):
    """Something that is positive where a claim says so, see `claims.differences`."""

    def differences(self, results: Results) -> dict[int, list[float]]:
        """By seed: a number for each fold, or one."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A difference that a claim is about.

    Attributes:
        says: Which, as `per-batch less per-gate, sampled`.
        of: The difference.
        expect: What is claimed of it, one of `claims.verdicts.EXPECTED`.
        margin: Differences below it do not matter: a tie.
        unit: Of the difference.
    """

    says: str
    of: Difference
    expect: str = "more"
    margin: float = 1.0
    unit: str = "points"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a claim's table: a figure, and how it is printed."""

    figure: str
    head: str
    form: str = ".2f"
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper.

    Attributes:
        says: The claim.
        rows: The variants in its table.
        columns: The figures in it.
        comparisons: What decides.
        distance: How far the setting is from the paper's.
    """

    says: str
    rows: Sequence[str]
    columns: Sequence[Column]
    comparisons: Sequence[Comparison]
    distance: str


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper: what is trained for it, what is measured, and what it claims.

    Attributes:
        name: As it is asked for.
        title: Of the paper.
        variants: What is trained.
        claims: In their order on the page.
        make: Makes a `claims.training.Run`, and gives what is measured of it.
    """

    name: str
    title: str
    variants: Sequence[Variant]
    claims: Sequence[Claim]
    make: Callable[..., dict[str, Any]]
