"""A figure for each method's card: where its gates stand, what they see, and what they close."""

from __future__ import annotations

from collections.abc import Callable

from drawing import Drawing

__all__ = ["FIGURES"]

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def _residual(title: str) -> Drawing:
    """A residual block whose branch is multiplied by z."""
    drawing = Drawing(title)
    drawing.text(30, 145, "x")
    drawing.arrow((42, 140), (180, 140))
    drawing.box(180, 123, 190, "branch F")
    drawing.arrow((370, 140), (430, 140))
    drawing.circle(444, 140, TIMES)
    drawing.arrow((458, 140), (518, 140))
    drawing.circle(532, 140, "+")
    drawing.arrow((546, 140), (606, 140))
    drawing.arrow((80, 140), (80, 185), (532, 185), (532, 154))
    drawing.text(300, 180, "shortcut")
    return drawing


def by_block() -> Drawing:
    drawing = _residual(
        "Two learned numbers a block say whether its branch runs, for all images alike."
        " Closed, the shortcut alone is left."
    )
    drawing.box(350, 30, 190, "z from two logits", of="gate")
    drawing.arrow((444, 64), (444, 126), of="gate")
    return drawing


def by_image() -> Drawing:
    drawing = _residual(
        "A small gate averages what enters the block, and says for each image whether its branch"
        " runs. Closed, the branch is not computed."
    )
    drawing.box(150, 30, 300, "mean → 16 → [off, on] → z", of="gate")
    drawing.arrow((80, 140), (80, 47), (150, 47), of="gate")
    drawing.arrow((444, 64), (444, 126), of="gate")
    return drawing


def by_chance() -> Drawing:
    drawing = _residual(
        "In training the branch of block l of L runs with a probability that falls with its depth;"
        " in evaluation all run."
    )
    drawing.box(320, 30, 240, f"z drawn, P = 1 {MINUS} l/L (1 {MINUS} p)", of="gate")
    drawing.arrow((444, 64), (444, 126), of="gate")
    return drawing


def by_gater() -> Drawing:
    drawing = Drawing(
        "The gater, a network of its own, sees the image and gives the gates of all filters at"
        " once. A closed filter is a channel of zeros, and is not computed."
    )
    drawing.text(40, 105, "image")
    drawing.box(130, 20, 130, "gater E", of="gate")
    drawing.box(300, 20, 240, "b features → g, 0 or 1 a filter", of="gate")
    drawing.arrow((60, 95), (80, 95), (80, 37), (130, 37))
    drawing.arrow((260, 37), (300, 37), of="gate")
    drawing.arrow((60, 105), (80, 105), (80, 147), (130, 147))
    drawing.arrow((420, 54), (420, 92), of="gate", tip=False)
    drawing.arrow((185, 92), (505, 92), of="gate", tip=False)
    for place, x in enumerate((130, 290, 450)):
        drawing.box(x, 130, 110, f"conv {place + 1}")
        drawing.arrow((x + 55, 92), (x + 55, 130), of="gate")
        drawing.arrow((x + 110, 147), (x + 160, 147))
    return drawing


def by_connection() -> Drawing:
    drawing = Drawing(
        "Each branch of a module reads K of the branches of the module before it. Branches that"
        " nobody reads are removed."
    )
    heights = (20, 80, 140)
    for y in heights:
        drawing.box(60, y, 170, "branch", of="closed" if y == 140 else "")
        drawing.box(400, y, 170, "branch")
        drawing.arrow((570, y + 17), (612, y + 17))
    for start, end in ((20, 20), (20, 80), (80, 80), (80, 140), (20, 140), (80, 20)):
        drawing.arrow((230, start + 17), (400, end + 17), of="gate")
    drawing.text(315, 190, "K = 2 of C = 3 connections each", of="gate")
    return drawing


def by_channel() -> Drawing:
    drawing = Drawing(
        "A share of the input channels is convolved first. Where its sums are above a learned"
        " threshold, the rest of the input is added, else the base path stands alone."
    )
    drawing.box(30, 30, 150, "η of the channels")
    drawing.box(30, 140, 150, "the others")
    drawing.box(230, 30, 130, "base path Wp")
    drawing.box(230, 140, 130, "the rest of W", of="closed")
    drawing.box(410, 30, 170, "sums above Δ?", of="gate")
    drawing.arrow((180, 47), (230, 47))
    drawing.arrow((180, 157), (230, 157), of="closed")
    drawing.arrow((360, 47), (410, 47))
    drawing.arrow((495, 64), (495, 110), (295, 110), (295, 140), of="gate")
    drawing.arrow((360, 157), (480, 157), of="closed")
    drawing.circle(495, 157, "+")
    drawing.arrow((380, 47), (380, 130), (488, 146))
    drawing.arrow((509, 157), (590, 157))
    return drawing


def _exits(title: str, answer: str) -> Drawing:
    """Three stages, an exit behind each of the first two."""
    drawing = Drawing(title)
    drawing.text(25, 155, "image")
    drawing.arrow((48, 150), (70, 150))
    for place, x in enumerate((70, 250, 430)):
        drawing.box(x, 133, 110, f"stage {place + 1}")
        drawing.arrow((x + 110, 150), (x + 180 if place < 2 else x + 160, 150))
        if place < 2:
            drawing.box(x + 60, 40, 150, answer, of="gate")
            drawing.arrow((x + 135, 150), (x + 135, 74), of="gate")
            drawing.arrow((x + 135, 40), (x + 135, 10), of="gate")
    drawing.text(220, 22, "sure: leaves", of="gate", anchor="start")
    drawing.text(615, 155, "rest")
    return drawing


def by_margin() -> Drawing:
    return _exits(
        "After each stage a linear classifier looks at averages over parts of the map. Images of"
        " which it is sure leave there, and what comes later is not computed for them.",
        f"max(Wx {MINUS} b) ≥ t?",
    )


def by_exit_gate() -> Drawing:
    return _exits(
        "After each stage a gate and a classifier, both with convolutions and trained with the"
        " network. Images leave where the gate says so.",
        "gate and classifier",
    )


# By the method's name.
FIGURES: dict[str, Callable[[], Drawing]] = {
    "ind-perbatch": by_block,
    "ind-pergate": by_block,
    "aig-perbatch": by_image,
    "aig-pergate": by_image,
    "stochastic-depth": by_chance,
    "gaternet": by_gater,
    "gateconnect": by_connection,
    "cgnet": by_channel,
    "dgate": by_margin,
    "early-exit": by_exit_gate,
}
