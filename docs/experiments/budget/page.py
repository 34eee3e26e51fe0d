"""docs/budget.md, from the lines of the runs: every number and every verdict is computed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from claims.claim import Paper, Results
from claims.differences import numbers
from claims.results import Line, figures_of, lines_of

from budget.cost import GOALS, RUNTIME
from budget.parts import CUT, LRS, PARTS, SHARES, SOURCE, TUNING, Way, point_of, ways_of
from budget.results import Outcome, compared, outcome

__all__ = ["page"]

SEEDS = 3
SLACK = {"macs": 0.01, "ms": 0.05}  # of the source's cost: more above its budget does not meet it
WORDS = {"shown": "ahead", "a tie": "a tie", "contradicted": "behind", "not shown": "not decided"}
GOAL = {"macs": "MACs", "ms": "milliseconds"}
FIGURES = {"macs": "macs_share", "ms": "ms_share"}
HEAD = f"""# One budget, met in several ways

Written by `make budget` from the runs in [experiments/budget/runs.jsonl]\
(experiments/budget/runs.jsonl); what is trained is in [experiments/budget/parts.py]\
(experiments/budget/parts.py), and how in [ways.py](experiments/budget/ways.py). Nothing here is \
typed.

A network is trained to the end, and then has to do with a share of its cost: .5 or .35 of its \
MACs, or of its milliseconds. Each way has the same {TUNING} epochs on the same images: in the \
first {CUT} of them the network is cut while it learns (gates close, or Torch-Pruning takes out \
channels before each epoch), in the others it is trained as it then is. A narrower network from \
scratch has the source's epochs and these in one. Learning rates are {LRS[0]:g}, {LRS[1]:g} and \
{LRS[2]:g} for every way, in both phases; val chooses for each way and share, at the first seed. \
By milliseconds, Torch-Pruning keeps multiples of 4 channels in a ResNet-20 and of 16 in a \
MobileNetV2, and what is narrower from scratch those of 4, 8 and 16 that let it have most MACs: \
with other numbers {RUNTIME} is far slower ([measured](how-to/milliseconds.md#what-to-expect)). \
gatecli finds that by itself. \
Top-1 is on images that nothing was trained on and nothing chosen by.

{{problem}}

MACs are counted in a run of the finished network by `tests/counting.py`, milliseconds are those \
of the fastest of a hundred calls with one image in {RUNTIME}, in turns with the source; both are \
given as shares of the source's. Tables have the mean and the standard deviation over the seeds.

The rule. Differences are known for each seed and for each of 20 parts of the test images, which \
gives a standard error. A way is **ahead** where the mean difference is at least two standard \
errors above 0 and no seed says the contrary, **behind** where the same holds of the opposite, \
**a tie** where mean and two standard errors are within a point, and else it is **not decided**. A \
way that takes more than its budget (by over .01 of the source's MACs, or .05 of its milliseconds, \
which the clock does not tell apart) is not compared, be it that its gates cannot come down so \
far. Torch-Pruning and what is \
ours stand for what val chooses among their rows, by its mean over the seeds that these all have.
"""
PROBLEM = """The problem: ten letters and digits that look alike ({classes}), {size}x{size} \
pixels, {train} images to train on, {test} to report on."""


def page(
    lines: Sequence[Line], chosen: Iterable[Paper] = PARTS.values(), epochs: int | None = None
) -> str:
    """The page's text.

    Args:
        lines: Of the runs.
        chosen: The networks to show.
        epochs: Of all runs, where it is a try.
    """
    problem = PROBLEM.format(**lines[-1]["problem"]) if lines else "Nothing has been run yet."
    sections = [HEAD.format(problem=problem)]
    for part in chosen:
        results = figures_of(lines_of(part, lines, epochs))
        sections.append(f"## {part.title}\n")
        for goal in GOALS:
            ways = [way for way in ways_of(part.name) if way.goal == goal]
            sections.append(f"### A share of the {GOAL[goal]}\n")
            sections.append(_table(ways, results))
            sections.append(_verdicts(ways, results))
    return "\n".join(sections)


def _table(ways: Sequence[Way], results: Results) -> str:
    heads = ["", "seeds"]
    for share in SHARES:
        heads += [f"top-1 at {share:g}", "lr", "MACs", "ms"]
    rows = [heads, ["---"] * len(heads), _source_row(results)]
    for way in ways:
        found = [outcome(results, point_of(way, share)) for share in SHARES]
        seeds = min(len(each.runs) for each in found)
        cells = [way.label, f"{seeds} of {SEEDS}" if seeds < SEEDS else str(seeds)]
        for each in found:
            cells += _cells(each)
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _source_row(results: Results) -> list[str]:
    found = outcome(results, SOURCE)
    seeds = len(found.runs)
    count = f"{seeds} of {SEEDS}" if seeds < SEEDS else str(seeds)
    return [SOURCE, count, *_cells(found), *["-"] * 4 * (len(SHARES) - 1)]


def _cells(found: Outcome) -> list[str]:
    """Top-1, the learning rate chosen, and the shares of the cost that are left."""
    if not found.runs:
        return ["not run", "-", "-", "-"]
    top1 = found.of("top1")
    text = f"{statistics.fmean(top1):.2f}"
    if len(top1) > 1:
        text += f" ± {statistics.stdev(top1):.2f}"
    rate = f"{found.lr:g}" if found.tried == len(LRS) else f"{found.lr:g} ({found.tried} tried)"
    return [text, rate, *(f"{found.mean(name):.3f}" for name in FIGURES.values())]


def _verdicts(ways: Sequence[Way], results: Results) -> str:
    """A sentence for each share and rival: ahead, a tie, behind."""
    said = []
    rivals = {"Torch-Pruning": "torch-pruning", "a smaller network from scratch": "scratch"}
    for share in SHARES:
        ours = _best([way for way in ways if way.ours], results, share)
        for rival, kind in rivals.items():
            theirs = _best([way for way in ways if way.settings["way"] == kind], results, share)
            said.append(f"- At {share:g}, against {rival}: {_sentence(ours, theirs)}")
    return "\n".join(said) + "\n"


Named = tuple[str, Outcome]


def _best(ways: Sequence[Way], results: Results, share: float) -> Named | None:
    """The way that val chooses, over the seeds that all have, of those within the budget."""
    found = []
    for way in ways:
        each = outcome(results, point_of(way, share))
        if each.runs and each.mean(FIGURES[way.goal]) <= share + SLACK[way.goal]:
            found.append((way.label, each))
    common = set.intersection(*(set(each.runs) for _, each in found)) if found else set()
    return max(found, key=lambda named: _on_val(named[1], common)) if found else None


def _on_val(found: Outcome, seeds: set[int]) -> float:
    return statistics.fmean(
        numbers(found.runs[seed], "val_top1")[0] for seed in seeds or found.runs
    )


def _sentence(ours: Named | None, theirs: Named | None) -> str:
    if ours is None or theirs is None:
        return "not run, or not within the budget"
    found = compared(ours[1], theirs[1])
    if not found.seeds:
        return "not run for the same seeds"
    return (
        f"**{WORDS[found.word]}** ({ours[0]}, less {theirs[0]}: {found.mean:+.2f} points, standard"
        f" error {found.error:.2f}, {found.seeds} of {SEEDS} seeds)"
    )
