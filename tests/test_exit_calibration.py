"""Choosing exits' thresholds: against brute force over all combinations, and by simulation where a
promise is a probability.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatecli.calibration.exits.bound import box_bound, oracle_cost
from gatecli.calibration.exits.certify import (
    binomial_tails,
    certify,
    halves,
    lower_bound,
    right_counts,
)
from gatecli.calibration.exits.samples import (
    OperatingPoint,
    Samples,
    cheapest,
    leaves,
    measure,
    most_accurate,
)
from gatecli.calibration.exits.search import refine, search
from gatecli.calibration.exits.table import CELLS, candidates, frontier, make_grid
from gatecli.errors import DataError, SettingError

INF, NAN = math.inf, math.nan
MARGINS = st.sampled_from(
    [-INF, -1.0, 0.0, 0.5, 1.0, 1.0 + 2**-23, 3.0e38, INF, NAN]
)  # neighbours in float32, the end of its range


@st.composite
def problems(draw: st.DrawFn, exits: tuple[int, int] = (1, 3), most: int = 8) -> Samples:
    """Few samples, many ties; costs a sample or for all, whole or not."""
    count, width = draw(st.integers(1, most)), draw(st.integers(*exits))
    margins = draw(
        st.lists(st.lists(MARGINS, min_size=width, max_size=width), min_size=count, max_size=count)
    )
    correct = draw(
        st.lists(
            st.lists(st.booleans(), min_size=width + 1, max_size=width + 1),
            min_size=count,
            max_size=count,
        )
    )
    unit = draw(st.sampled_from([1, 218365952, 0.1]))
    costs = (
        torch.tensor(
            draw(
                st.lists(
                    st.lists(st.integers(0, 5), min_size=width + 1, max_size=width + 1),
                    min_size=count,
                    max_size=count,
                )
            )
        )
        * unit
    )
    return Samples.of(
        torch.tensor(margins), torch.tensor(correct), costs[0] if draw(st.booleans()) else costs
    )


def by_hand(samples: Samples, thresholds: tuple[float, ...]) -> OperatingPoint:
    """The definition, sample by sample."""
    right, cost, counts = 0, 0.0, [0] * (samples.exits + 1)
    for margins, correct, costs in zip(
        samples.margins.tolist(), samples.correct.tolist(), samples.costs.tolist(), strict=True
    ):
        where = next(
            (
                e
                for e, (m, t) in enumerate(zip(margins, thresholds, strict=True))
                if m >= t and t != INF
            ),
            samples.exits,
        )
        right, cost = right + correct[where], cost + costs[where]
        counts[where] += 1
    return OperatingPoint(
        thresholds,
        100 * right / len(samples),
        cost / len(samples),
        tuple(c / len(samples) for c in counts),
    )


def brute_force(samples: Samples) -> list[OperatingPoint]:
    """Every combination of every threshold that matters: just at each margin, and never."""
    values = [
        sorted({m for m in column if not math.isnan(m)} | {-INF, INF})
        for column in samples.margins.t().tolist()
    ]
    return [by_hand(samples, thresholds) for thresholds in itertools.product(*values)]


def figures(points: list[OperatingPoint]) -> list[tuple[float, float]]:
    return [(p.cost, p.top1) for p in points]


def undominated(points: list[OperatingPoint]) -> list[tuple[float, float]]:
    pairs = set(figures(points))
    return sorted(
        one
        for one in pairs
        if not any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in pairs)
    )


def population(count: int, exits: int, seed: int = 0) -> Samples:
    """Easy and hard samples.

    Later exits are right more often and cost more, and a margin tells something of being right.
    """
    chance = torch.Generator().manual_seed(seed)
    ease = (
        torch.linspace(0.5, 2.6, exits + 1)
        - torch.randn(count, 1, generator=chance)
        + 0.7 * torch.randn(count, exits + 1, generator=chance)
    )
    margins = ease[:, :exits] + 0.5 * torch.randn(count, exits, generator=chance)
    return Samples.of(margins, ease > 0, torch.arange(1, exits + 2) * 1000)


@settings(deadline=None, max_examples=150)
@given(problems())
def test_frontier_is_that_of_all_combinations(samples: Samples) -> None:
    found, every = frontier(samples), brute_force(samples)
    assert figures(found) == undominated(every)
    assert (
        found
        == [measure(samples, p.thresholds) for p in found]
        == [by_hand(samples, p.thresholds) for p in found]
    )
    for target in {p.top1 for p in every} | {0.0, 50.0}:
        best, least = (
            cheapest(found, target),
            min((p.cost for p in every if p.top1 >= target), default=None),
        )
        assert (best and best.cost) == least
    for budget in {p.cost for p in every} | {-1.0}:
        chosen, highest = (
            most_accurate(found, budget),
            max((p.top1 for p in every if p.cost <= budget), default=None),
        )
        assert (chosen and chosen.top1) == highest


@settings(deadline=None, max_examples=30)
@given(problems(), st.sampled_from([0.0, 30.0, 50.0, 75.0, 100.0]))
def test_a_search_from_coarse_candidates_lies_above_its_bounds(
    samples: Samples, target: float
) -> None:
    least, coarse = cheapest(brute_force(samples), target), cheapest(frontier(samples, 2), target)
    assert oracle_cost(samples, target) <= (least.cost if least else INF)
    found = search(samples, target, levels=2)
    assert (found is None) == (coarse is None)
    if least and coarse and found:
        for price, boxes in itertools.product((0.0, 1.0, 300.0), (1, 2**6, 2**9)):
            bound, region = box_bound(samples, target, coarse, price, boxes)
            inside = all(
                ((values[:-1] <= t) & (t <= values[1:])).any()
                for values, t in zip(region, least.thresholds, strict=True)
            )
            assert bound <= least.cost and (inside or least.cost == coarse.cost)
        assert (
            found.point.cost == found.bound == least.cost and found.point.top1 >= target
        )  # few enough samples to settle it
        assert found.point == measure(samples, found.point.thresholds)


@pytest.mark.parametrize(("exits", "count"), [(4, 6), (5, 4), (6, 3)])
def test_brute_force_lies_between_the_bound_and_the_search_on_many_exits(
    exits: int, count: int
) -> None:
    for seed in range(3):
        samples = population(count, exits, seed)
        every = brute_force(samples)
        for target in {p.top1 for p in every}:
            least, found = cheapest(every, target), search(samples, target, levels=3)
            assert (
                least
                and found
                and found.bound <= least.cost <= found.point.cost
                and 0 <= found.gap < 1
            )


def test_the_search_refines_what_a_coarse_table_found_and_its_bound_is_near() -> None:
    samples = population(2000, 4)
    found, coarse = search(samples, 94, levels=6), cheapest(frontier(samples, 6), 94)
    fine = cheapest(frontier(samples), 94)
    assert found and coarse and fine
    assert found.point.cost < fine.cost < coarse.cost
    assert oracle_cost(samples, 94) < found.bound and 0 <= found.gap < 0.25


def test_three_exits_are_settled_at_full_resolution() -> None:
    samples = population(1000, 3)
    found, coarse = search(samples, 94, levels=8), cheapest(frontier(samples), 94)
    assert (
        found
        and coarse
        and found.gap == 0
        and found.point.cost < coarse.cost
        and found.point.top1 >= 94
    )


def test_more_exits_than_boxes_are_bounded_by_the_oracle() -> None:
    samples = population(60, 7)
    found = search(samples, 90, levels=3)
    assert found and found.bound == oracle_cost(samples, 90) <= found.point.cost


def test_one_exit_alone_is_solved_exactly() -> None:
    samples = population(2000, 1)
    found, exact = search(samples, 95, levels=10), cheapest(frontier(samples), 95)
    assert found and exact and found.point == exact and found.gap == 0


def test_a_budget_can_be_refined_for_too() -> None:
    samples = population(500, 3)
    pick = partial(most_accurate, budget=2000)
    start = pick(frontier(samples, 5))
    assert start
    better = refine(samples, start, pick)
    assert better.top1 > start.top1 and better.cost <= 2000


def test_beyond_reach_nothing_is_found() -> None:
    samples = Samples.of(torch.zeros(4, 2), torch.zeros(4, 3, dtype=torch.bool), torch.arange(3))
    assert search(samples, 1) is None and oracle_cost(samples, 1) == INF
    assert cheapest(frontier(samples), 1) is None and most_accurate(frontier(samples), -1) is None


def test_all_leave_at_the_first_exit_where_it_is_as_good_and_unused_exits_stay_shut() -> None:
    samples = Samples.of(
        torch.randn(20, 3), torch.ones(20, 4, dtype=torch.bool), torch.arange(1, 5)
    )
    assert frontier(samples) == [OperatingPoint((-INF, INF, INF), 100.0, 1.0, (1.0, 0.0, 0.0, 0.0))]
    useless = torch.tensor([[False, False, True]]).expand(20, -1)
    assert frontier(Samples.of(torch.randn(20, 2), useless, torch.tensor([1, 1, 1]))) == [
        OperatingPoint((INF, INF), 100.0, 1.0, (0.0, 0.0, 1.0))
    ]


def test_a_sample_without_a_margin_never_exits() -> None:
    samples = Samples.of(
        torch.full((3, 1), NAN), torch.tensor([[True, False]] * 3), torch.tensor([1, 2])
    )
    assert [p.shares for p in frontier(samples)] == [(0.0, 1.0)]
    assert leaves(samples.margins, [-INF]).tolist() == [1, 1, 1]


@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=False), min_size=1, max_size=12),
    st.integers(2, 12),
)
@settings(deadline=None)
def test_candidates_separate_distinct_margins_in_their_own_type(
    values: list[float], levels: int
) -> None:
    margins = torch.tensor(values)
    every, few = candidates(margins), candidates(margins, levels)
    distinct = sorted({value for value in values if not math.isnan(value)})
    assert every[0] == -INF and every[-1] == INF and every.dtype == torch.float32
    assert len(every) == max(len(distinct) - 1, 0) + 2
    assert all(
        below < t <= above
        for below, t, above in zip(distinct, every[1:-1].tolist(), distinct[1:], strict=False)
    )
    assert len(few) == min(levels, len(every)) and set(few.tolist()) <= set(every.tolist())


def test_the_default_resolution_is_127_levels_for_three_exits_and_bounded_for_many() -> None:
    assert [len(values) for values in make_grid(population(500, 3))] == [127] * 3
    assert math.prod(len(values) + 1 for values in make_grid(population(500, 7))) <= CELLS
    with pytest.raises(SettingError, match="at most 10 exits"):
        make_grid(population(5, 11))
    with pytest.raises(SettingError, match="`levels` to be between 2 and 127"):
        frontier(population(500, 3), 129)


def test_costs_of_whole_macs_are_kept_and_sums_of_others_do_not_depend_on_their_order() -> None:
    macs = torch.tensor([[2_510_000_001, 5_020_000_003]] * 50_000)
    assert (
        Samples.of(torch.zeros(50_000, 1), torch.ones(50_000, 2, dtype=torch.bool), macs)
        .costs.long()
        .equal(macs)
    )
    costs = Samples.of(
        torch.zeros(999, 1), torch.ones(999, 2, dtype=torch.bool), torch.rand(999, 2)
    ).costs[:, 0]
    assert (
        costs.sum()
        == costs[torch.randperm(999)].sum()
        == sum(costs.tolist())
        == math.fsum(costs.tolist())
    )


@pytest.mark.parametrize(
    ("margins", "correct", "costs", "text"),
    [
        (torch.zeros(0, 2), torch.ones(0, 3).bool(), torch.ones(3), "at least one sample"),
        (torch.zeros(4), torch.ones(4, 2).bool(), torch.ones(2), "at one exit"),
        (torch.zeros(4, 1), torch.ones(4, 1).bool(), torch.ones(2), "`correct` to be bool"),
        (torch.zeros(4, 1), torch.ones(4, 2), torch.ones(2), "`correct` to be bool"),
        (torch.zeros(4, 1), torch.ones(4, 2).bool(), torch.ones(3), "`costs` to have shape"),
        (torch.zeros(4, 1), torch.ones(4, 2).bool(), torch.tensor([1, NAN]), "finite"),
        (torch.zeros(4, 1), torch.ones(4, 2).bool(), torch.tensor([1, -1]), "negative"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    margins: torch.Tensor, correct: torch.Tensor, costs: torch.Tensor, text: str
) -> None:
    with pytest.raises(DataError, match=text):
        Samples.of(margins, correct, costs)


@pytest.mark.parametrize("thresholds", [(1.0,), (1.0, NAN)])
def test_thresholds_that_do_not_fit_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="2 thresholds"):
        measure(population(5, 2), thresholds)


@pytest.mark.parametrize(("count", "rate"), [(1, 0.5), (40, 0.9), (300, 0.947), (300, 0.001)])
def test_binomial_tails_are_the_exact_sums(count: int, rate: float) -> None:
    p = Fraction(rate)
    terms = [math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(count + 1)]
    exact = torch.tensor(
        [float(tail) for tail in [*itertools.accumulate(reversed(terms))][::-1]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(binomial_tails(count, rate), exact, rtol=1e-10, atol=1e-300)


def test_the_lower_bound_is_the_rate_whose_tail_is_the_allowed_error() -> None:
    assert lower_bound(50, 50, 0.95) == pytest.approx(
        0.05 ** (1 / 50), abs=2e-6
    )  # all right: rate^n = 1 - confidence
    assert binomial_tails(200, lower_bound(180, 200, 0.9))[180] == pytest.approx(0.1, abs=1e-4)
    assert lower_bound(0, 10, 0.95) == 0


def test_certified_is_the_last_of_the_dearest_points_whose_tests_all_pass() -> None:
    samples = population(3000, 2)
    got = certify(samples, 90, 0.95, seed=3, levels=16)
    found, held_out = halves(samples, 3)
    sequence = frontier(found, 16)[::-1]
    tested = [measure(held_out, p.thresholds) for p in sequence]
    right = [round(p.top1 * len(held_out) / 100) for p in tested]
    assert right_counts(held_out, [p.thresholds for p in sequence]).tolist() == right
    passes = [binomial_tails(len(held_out), 0.9)[k].item() <= 0.05 for k in right]
    assert all(passes[: got.passed]) and not passes[got.passed] and got.candidates == len(sequence)
    assert got.tested == tested[got.passed - 1] and got.point == measure(
        samples, got.tested.thresholds
    )
    assert got == certify(samples, 90, 0.95, seed=3, levels=16) and got.p_value <= 0.05


def test_what_cannot_be_certified_says_what_can() -> None:
    samples = population(400, 2)
    with pytest.raises(
        SettingError, match=r"no thresholds can be certified to reach 99\.9 percent"
    ) as refused:
        certify(samples, 99.9, 0.95)
    highest = float(str(refused.value).split("certifies ")[1].split(";")[0])
    assert certify(samples, highest, 0.95).passed >= 1
    with pytest.raises(SettingError, match="certified"):
        certify(samples, highest + 0.02, 0.95)


@pytest.mark.parametrize(
    ("target", "confidence"), [(0, 0.9), (100, 0.9), (90, 0), (90, 1), (NAN, 0.9)]
)
def test_a_target_or_confidence_out_of_range_is_refused(target: float, confidence: float) -> None:
    with pytest.raises(SettingError, match="both exclusive"):
        certify(population(10, 1), target, confidence)


def test_the_promise_holds_over_a_thousand_splits_search_included() -> None:
    """The share of certified points that miss the target in truth.

    `pytest -s` shows the naive choice on one half beside it.
    """
    splits, target, confidence, chance = 1000, 85.0, 0.9, torch.Generator().manual_seed(1)
    everyone = population(5_000, 2)  # the truth: samples are drawn from these
    missed, naive = 0, 0
    for seed in range(splits):
        drawn = everyone.take(torch.randint(len(everyone), (400,), generator=chance))
        missed += (
            measure(
                everyone, certify(drawn, target, confidence, seed, levels=24).point.thresholds
            ).top1
            < target
        )
        plain = cheapest(frontier(halves(drawn, seed)[0], 24), target)
        naive += plain is not None and measure(everyone, plain.thresholds).top1 < target
    print(
        f"\nmissed: {missed / splits:.1%} certified at {confidence:.0%}, {naive / splits:.1%}"
        " chosen on one half"
    )
    assert missed / splits <= 1 - confidence + 3 * math.sqrt(confidence * (1 - confidence) / splits)
    assert naive > missed
