"""What `gatecli gates` tells class by class: how often sites run, and how sure exits are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gatecli.cli.render import table
from gatecli.cli.session import Session

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.stages.analyse import Use
    from gatecli.stages.class_rates import ClassRates

__all__ = ["ClassMap", "class_map", "exits_by_class", "print_classes", "print_exits"]

SITES, CLASSES = 8, 20  # of the map, as many as a terminal has room for
SHOWN = 100  # classes of which exits are told, at most


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """How often each site runs for each class, and the classes' names, row by row."""

    rates: ClassRates
    names: list[str]

    def facts(self) -> list[dict[str, Any]]:
        """The map as JSON has it: a part a class."""
        found = []
        for row, name in enumerate(self.names):
            rates = dict(zip(self.rates.sites, self.rates.rates[row].tolist(), strict=True))
            number, images = self.rates.classes[row], self.rates.images[row]
            found.append({"class": number, "name": name, "images": images, "rates": rates})
        return found


def class_map(use: Use, dataset: DataSet) -> ClassMap:
    """The map of what the gates did on images of a data set."""
    from gatecli.stages.class_rates import class_rates

    found = class_rates(use)
    return ClassMap(rates=found, names=[str(dataset.classes[label]) for label in found.classes])


def print_classes(session: Session, found: ClassMap) -> None:
    """The map, of the sites that differ most between classes; nothing where none does."""
    rates = found.rates
    sites = rates.most_varied(SITES)
    if not sites:
        return
    rows = []
    for row, name in enumerate(found.names[:CLASSES]):
        own = rates.rates[row, sites].tolist()
        rows.append((name, rates.images[row], *(f"{rate:.2f}" for rate in own)))
    foot = (
        f"{len(rows)} of {len(found.names)} classes; of {len(rates.sites)} sites the {len(sites)}"
        " that differ most between classes (--json and --plot have all)"
    )
    columns = ("<class", "images", *(rates.sites[site] for site in sites))
    table(session, "\nrates by class", columns, rows, foot)


def exits_by_class(use: Use, classes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What exits know of each class, as JSON; nothing where the images are random."""
    found: dict[str, list[dict[str, Any]]] = {}
    for site, exit_ in use.exits.items():
        counts = zip(classes, exit_.images, exit_.right, exit_.sure, strict=False)
        names = ("class", "images", "right", "sure")
        if classes:
            found[site] = [dict(zip(names, each, strict=True)) for each in counts]
    return found


def print_exits(session: Session, found: dict[str, list[dict[str, Any]]]) -> None:
    """Of how many images of each class exits are sure, as `exits_by_class` has it."""
    if not found:
        return
    rows = []
    for of_class in zip(*found.values(), strict=True):
        sure = [str(each["sure"]) for each in of_class]
        rows.append((of_class[0]["class"], of_class[0]["images"], *sure))
    left = len(rows) - SHOWN
    foot = f"{left} more classes: --json has all" if left > 0 else ""
    title = "\nright at an exit with a score of at least 1, of each class"
    table(session, title, ("<class", "images", *found), rows[:SHOWN], foot)
