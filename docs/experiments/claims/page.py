"""docs/claims.md, from the lines of the runs: every number and every verdict is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from claims import verdicts
from claims.claim import Claim, Paper, Results
from claims.papers import PAPERS
from claims.results import Line, figures_of, lines_of
from claims.tables import comparison_line, judged, table

__all__ = ["page"]

SEEDS = 3
HEAD = """# The papers' claims, measured

Written by `make claims` from the runs in [experiments/claims/runs.jsonl]\
(experiments/claims/runs.jsonl); what is trained, and what decides, is in \
[experiments/claims/papers](experiments/claims/papers). Nothing here is typed.

The problem: ten letters and digits that look alike ({classes}), {size}x{size} pixels, {train} \
images to train on, the data's own val split to choose by, {test} images to report on: the test \
split and what is left over of the training images. "With new fonts" is the test split alone, 30 % \
of which is in fonts that no training image has. Thresholds and epochs are chosen on val. Networks \
are trained until they converge; the control has as many epochs of the same batches. Tables have \
the mean and the standard deviation over seeds.

The rule. A difference is known for each seed and for each of 20 parts of the test images; its \
standard error has a part from either. It is **shown** where the mean is at least two standard \
errors above 0 and no seed says the contrary, **contradicted** where the same holds of the \
opposite, **a tie** where the mean and two standard errors beside it are within the margin (a \
point of accuracy unless a claim says otherwise), and else **not shown**. That two are the same is \
shown by a tie; that one is no worse, where the mean less two standard errors is above minus the \
margin. Where fewer than three seeds have been run, the verdict is so far's.
"""


def page(
    lines: Sequence[Line], papers: Iterable[Paper] = PAPERS.values(), epochs: int | None = None
) -> str:
    """The page's text.

    Args:
        lines: Of the runs.
        papers: Those to show.
        epochs: Of all runs, where it is a try.
    """
    about = lines[-1]["problem"] if lines else dict.fromkeys(("classes", "size", "train", "test"))
    summary = ["| paper | claim | verdict |", "|---|---|---|"]
    sections = []
    for paper in papers:
        own = lines_of(paper, lines, epochs)
        results = figures_of(own)
        sections.append(f"## {paper.title}\n")
        for claim in paper.claims:
            summary.append(f"| {paper.name} | {claim.says} | {_verdict(claim, results)} |")
            sections.append(_section(claim, results, own))
    return "\n".join([HEAD.format(**about), *summary, "", *sections])


def _section(claim: Claim, results: Results, lines: Sequence[Line]) -> str:
    said = [comparison_line(each, judged(each, results), SEEDS) for each in claim.comparisons]
    parts = [
        f"### {claim.says}",
        table(claim, results, lines, SEEDS),
        "\n".join(said),
        f"Verdict: {_verdict(claim, results)}.",
        f"Distance from the paper: {claim.distance}",
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(claim: Claim, results: Results) -> str:
    """The claim's, from the comparisons that there are runs for, and whether it is preliminary."""
    found = [judged(each, results) for each in claim.comparisons]
    run = [each for each in found if each.seeds]
    word = verdicts.overall([each.word for each in run or found])
    missing = []
    if run and len(run) < len(found):
        missing.append(f"{len(run)} of {len(found)} comparisons")
    if run and min(each.seeds for each in run) < SEEDS:
        missing.append(f"{min(each.seeds for each in run)} of {SEEDS} seeds")
    return f"{word} so far ({', '.join(missing)})" if missing else word
