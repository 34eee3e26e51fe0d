"""Train what has not been trained yet, one run after the other."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gatecli
from claims.claim import Paper, Variant
from claims.problem import Problem
from claims.store import Store
from claims.training import Run
from gatecli.errors import TrainingError

__all__ = ["Laboratory"]

HERE = Path(__file__).parent
CODE = ("gatecli", "docs/experiments")  # what a run's figures depend on


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """Where runs are made.

    Attributes:
        problem: What is trained on.
        store: Where their lines go.
        cache: A folder for networks that runs start from.
        epochs: For a try: so many in every run; None: as each says.
    """

    problem: Problem
    store: Store
    cache: Path
    epochs: int | None = None

    def work(self, papers: Sequence[Paper], seeds: Sequence[int]) -> int:
        """Make all runs that are missing, one seed of everything first.

        What fails is said on stderr, and tried again the next time; a training that diverges is a
        result.

        Returns:
            How many failed.
        """
        failed = 0
        for paper, variant, seed in _runs(papers, seeds):
            run = self.run(paper, variant, seed)
            if self.store.find(run) is not None:
                continue
            began = time.monotonic()
            try:
                figures = self._figures(paper, variant, seed)
            except Exception:  # the others are to be made all the same
                traceback.print_exc()
                failed += 1
                continue
            seconds = round(time.monotonic() - began, 1)
            line = {**run, **provenance(), "seconds": seconds, "figures": figures}
            self.store.append(line)
            print(f"{paper.name}: {variant.name}, seed {seed}: {seconds} s", file=sys.stderr)
        return failed

    def run(self, paper: Paper, variant: Variant, seed: int) -> dict[str, Any]:
        """What a run is, as its line has it."""
        return {
            "paper": paper.name,
            "variant": variant.name,
            "seed": seed,
            "epochs": self.epochs or variant.epochs,
            "settings": variant.settings,
            "problem": self.problem.about,
        }

    def _figures(self, paper: Paper, variant: Variant, seed: int) -> dict[str, Any]:
        epochs = self.epochs or variant.epochs
        try:
            return paper.make(
                Run(
                    problem=self.problem,
                    settings=variant.settings,
                    epochs=epochs,
                    seed=seed,
                    cache=self.cache,
                )
            )
        except TrainingError as error:
            return {"diverged": str(error)}


def _runs(papers: Sequence[Paper], seeds: Sequence[int]) -> Iterator[tuple[Paper, Variant, int]]:
    for seed in seeds:
        for paper in papers:
            for variant in paper.variants:
                if variant.seeds is None or seed in variant.seeds:
                    yield paper, variant, seed


def provenance() -> dict[str, Any]:
    """Which code a run is made with."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *CODE, ":!*.jsonl")
    return {
        "gatecli": gatecli.__version__,
        "commit": f"{commit} dirty" if changed else commit,
    }


def _git(*words: str) -> str:
    root = HERE.parent.parent.parent
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()
