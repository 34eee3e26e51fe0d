"""The lowest version of each direct dependency, as pyproject.toml has it.

`python tests/floor.py EXTRA...` prints them as pip's constraints.

They are read from what is installed of gatecli (`pip install --no-deps --editable .`), so that
floors stand in one place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import requires

from packaging.requirements import Requirement

OURS = "gatecli"


def asked(lines: Iterable[str], extra: str) -> list[Requirement]:
    """What is required with this extra ("": with none), on this machine."""
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]


def direct(lines: list[str], extras: Iterable[str]) -> list[Requirement]:
    """What gatecli and its extras require, those that an extra names (`gatecli[demo]`) with it."""
    waiting, seen, found = ["", *extras], set[str](), dict[str, Requirement]()
    while waiting:
        seen.add(extra := waiting.pop())
        for each in asked(lines, extra):
            if each.name == OURS:
                waiting += sorted(each.extras - seen)
            else:
                found[str(each)] = each
    return list(found.values())


def floor(requirement: Requirement) -> str:
    """`torch>=2.10` -> `torch==2.10`."""
    versions = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(versions) != 1:
        raise SystemExit(
            f"expected one floor (>=) for {requirement.name} in pyproject.toml, but got"
            f" {requirement}"
        )
    return f"{requirement.name}=={versions[0]}"


def floors(lines: list[str], extras: Iterable[str]) -> list[str]:
    return sorted({floor(each) for each in direct(lines, extras)})


if __name__ == "__main__":
    print("\n".join(floors(requires(OURS) or [], sys.argv[1:])))
