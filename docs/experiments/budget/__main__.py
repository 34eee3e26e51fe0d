"""python -m budget: make the runs that are missing, and write the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from claims.claim import Paper
from claims.command import add_options, finished, tried
from claims.laboratory import Laboratory
from claims.problem import read_problem
from claims.store import Store

from budget.page import page
from budget.parts import LRS, parts
from budget.results import narrowed
from budget.ways import WAYS, lacking

HERE = Path(__file__).parent


def arguments(words: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="budget", description=__doc__)
    add_options(parser, HERE)
    parser.add_argument("--part", nargs="*", default=[], help="which networks; none: all")
    parser.add_argument("--ways", nargs="*", choices=[*WAYS], help="which ways; none: all")
    parser.add_argument("--goals", nargs="*", choices=["macs", "ms"], help="of what; none: both")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the laboratory; returns the exit code."""
    args = arguments(words)
    return finished(_quick if args.quick else _all, args)


def _all(args: argparse.Namespace) -> int:
    store = Store(args.runs)
    failed = 0
    if not args.write_only:
        chosen = _possible(args)
        problem = read_problem(args.data)
        lab = Laboratory(problem=problem, store=store, cache=args.cache)
        for number, seed in enumerate(args.seeds):
            lines = store.lines()
            asked = [narrowed(part, lines) if number else part for part in chosen]
            failed += lab.work(asked, [seed])
    args.page.write_text(page(store.lines()), encoding="utf-8")
    return int(failed > 0)


def _quick(args: argparse.Namespace) -> int:
    """Every run that differs in more than its learning rate."""
    chosen = [_at_one_rate(part) for part in _possible(args)]
    return tried(chosen, args, lambda lines: page(lines, chosen, epochs=1))


def _at_one_rate(part: Paper) -> Paper:
    variants = [each for each in part.variants if each.settings["train"]["lr"] == LRS[0]]
    return replace(part, variants=variants)


def _possible(args: argparse.Namespace) -> Sequence[Paper]:
    """The runs asked for, without those that lack something here, which is said once for each."""
    found = []
    said = set()
    for part in parts(args.part):
        variants = []
        for variant in part.variants:
            settings = variant.settings
            if args.ways and settings["way"] not in args.ways:
                continue
            if args.goals and settings["goal"] not in args.goals:
                continue
            lacks = lacking(settings)
            if not lacks:
                variants.append(variant)
            elif lacks not in said:
                print(f"not run: {variant.name}, and others: {lacks}", file=sys.stderr)
                said.add(lacks)
        found.append(replace(part, variants=variants))
    return found


if __name__ == "__main__":
    sys.exit(main())
