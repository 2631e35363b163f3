"""Intervals cover what they should, tests and spreads equal slow loops, and power is what it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iad_ext import statistics
from iad_ext.statistics import Spread


def flags(*rows):
    return [np.array(row, dtype=bool) for row in rows]


def test_mean_and_std_are_the_textbook_s():
    assert statistics.mean_and_std([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    assert statistics.mean_and_std([4.5]) == (4.5, None)
    with pytest.raises(ValueError, match="at least one"):
        statistics.mean_and_std([])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_binomial_sum(pairs):
    a, b = flags(*zip(*pairs, strict=True))
    only_a = sum(x and not y for x, y in pairs)
    only_b = sum(y and not x for x, y in pairs)
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert statistics.mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_flags_of_other_images_are_refused():
    a, b = np.ones(3, dtype=bool), np.ones(4, dtype=bool)
    with pytest.raises(ValueError, match=r"same images; got \(3,\) and \(4,\)"):
        statistics.mcnemar(a, b)
    with pytest.raises(ValueError, match="same images"):
        statistics.paired_difference([a], [b])
    with pytest.raises(ValueError, match="at least one run"):
        statistics.paired_difference([], [b])


def bootstrap_by_loop(a, b, replicates, seed):
    """Draw images one by one."""
    draws = np.random.default_rng(seed)
    n = len(a[0])
    found = []
    for _ in range(replicates):
        drawn = draws.integers(0, n, size=n)
        found.append(100 * (np.mean([run[drawn] for run in a]) - np.mean([run[drawn] for run in b])))
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_is_that_of_the_loop(seeds):
    draws = np.random.default_rng(5)
    a = [draws.random(150) < 0.6 for _ in range(seeds)]
    b = [draws.random(150) < 0.5 for _ in range(seeds)]
    found = statistics.paired_difference(a, b, replicates=20_000)
    assert [found.low, found.high] == pytest.approx(bootstrap_by_loop(a, b, 4000, 1), abs=0.8)
    assert found.difference == pytest.approx(100 * (np.mean(a) - np.mean(b)))
    assert (found.seeds, found.n) == (seeds, 150)


def test_a_difference_turns_its_sign_with_its_sides():
    a, b = flags([1, 1, 1, 0, 1, 1, 1, 1, 1, 1] * 5, [0, 0, 1, 0, 0, 1, 0, 1, 0, 0] * 5)
    there, back = statistics.paired_difference([a], [b]), statistics.paired_difference([b], [a])
    assert there.difference == -back.difference > 0
    assert (there.verdict, back.verdict) == ("higher", "lower")
    assert there.mcnemar_p == back.mcnemar_p < 0.001
    same = statistics.paired_difference([a], [a])
    assert (same.low, same.high, same.verdict, same.mcnemar_p) == (0, 0, "tie", 1)


def test_several_seeds_p_values_are_twice_their_median():
    a = flags([1] * 8, [1] * 8, [1] * 8)
    b = flags([0] * 8, [1, 1, 1, 1, 1, 1, 0, 0], [1] * 8)
    assert statistics.paired_difference(a, b).mcnemar_p == 1.0
    b = flags([0] * 8, [0] * 8, [1] * 8)
    assert statistics.paired_difference(a, b).mcnemar_p == pytest.approx(2 * 2 / 2**8)


def spread_by_loop(rows):
    total, degrees = 0.0, 0
    for runs in rows:
        k, n = len(runs), len(runs[0])
        if k < 2:
            continue
        accuracies = [100 * sum(run) / n for run in runs]
        middle = sum(accuracies) / k
        observed = sum((value - middle) ** 2 for value in accuracies) / (k - 1)
        of_images = 0.0
        for i in range(n):
            at = [100.0 * run[i] for run in runs]
            of_images += sum((value - sum(at) / k) ** 2 for value in at) / (k - 1) / n / n
        total += (observed - of_images) * (k - 1)
        degrees += k - 1
    return max(0.0, total / degrees), degrees


def test_the_spread_is_that_of_the_loop():
    draws = np.random.default_rng(2)
    rows = [[draws.random(60) < p for p in (0.2, 0.5, 0.8)], [draws.random(60) < p for p in (0.4, 0.7)]]
    rows.append([draws.random(60) < 0.5])
    found = statistics.spread_over_seeds(rows)
    assert (found.variance, found.degrees) == pytest.approx(spread_by_loop(rows))
    assert found.variance > 100
    assert statistics.spread_over_seeds([[np.ones(3, dtype=bool)]]) == Spread(0.0, 0)


def test_a_spread_over_seeds_widens_the_interval():
    draws = np.random.default_rng(3)
    a, b = [draws.random(400) < 0.6], [draws.random(400) < 0.5]
    alone = statistics.paired_difference(a, b)
    wide = statistics.paired_difference(a, b, spread=Spread(variance=25.0, degrees=4))
    assert wide.high - wide.low > 1.5 * (alone.high - alone.low)
    assert alone == statistics.paired_difference(a, b, spread=Spread(0.0, 0))


def study_of(draws, *, n, seeds, gain, seed_spread):
    """Two methods' runs: images of different hardness, seeds of different luck."""
    hardness = draws.normal(size=n)

    def run(shift):
        luck = draws.normal() * seed_spread * 2.7 / 100  # in units of the latent variable
        return hardness + 0.7 * draws.normal(size=n) < shift + luck

    # a shift of the latent variable by 0.01 is about 0.33 points here
    return [run(gain * 0.0306) for _ in range(seeds)], [run(0.0) for _ in range(seeds)]


def test_intervals_cover_the_truth_as_often_as_they_say():
    """1.0 points of true difference, known from a very large sample, met by 95% intervals of small ones."""
    draws = np.random.default_rng(7)
    big_a, big_b = study_of(draws, n=2_000_000, seeds=1, gain=1.0, seed_spread=0.0)
    truth = 100 * (np.mean(big_a) - np.mean(big_b))
    met = 0
    for _ in range(300):
        a, b = study_of(draws, n=500, seeds=3, gain=1.0, seed_spread=1.0)
        others = [study_of(draws, n=500, seeds=3, gain=0.0, seed_spread=1.0)[0] for _ in range(2)]
        spread = statistics.spread_over_seeds([a, b, *others])
        found = statistics.paired_difference(a, b, spread=spread, replicates=500)
        met += found.low <= truth <= found.high
    assert 0.91 <= met / 300 <= 0.995


def test_runs_of_one_seed_are_compared_with_each_other():
    """A seed's luck, which both methods have, is no part of what their difference is uncertain of."""
    draws = np.random.default_rng(4)
    levels = [draws.random(4000) < p for p in (0.4, 0.5, 0.6)]
    a = [level | (draws.random(4000) < 0.05) for level in levels]
    pooled = statistics.paired_difference(a, levels, spread=statistics.spread_over_seeds([a, levels]))
    own = statistics.spread_of_differences([(a, levels)])
    paired = statistics.paired_difference(a, levels, spread=own, same_seeds=True, replicates=20_000)
    assert paired.difference == pooled.difference
    assert (pooled.verdict, paired.verdict) == ("tie", "higher")
    by_seed = [100 * (sum(one) - sum(other)) / 4000 for one, other in zip(a, levels, strict=True)]
    middle = sum(by_seed) / 3
    spread = math.sqrt(sum((value - middle) ** 2 for value in by_seed) / 2)
    assert paired.seed_spread == pytest.approx(spread)
    alone = statistics.paired_difference(a, levels)
    # two independent errors: of the images, and Student's t with two degrees of freedom
    of_images = (alone.high - alone.low) / 2 / 1.96
    total = draws.normal(size=200_000) * of_images + draws.standard_t(2, 200_000) * spread / math.sqrt(3)
    assert paired.high - paired.difference == pytest.approx(np.quantile(total, 0.975), rel=0.1)
    assert alone.seed_spread is None
    with pytest.raises(ValueError, match="same_seeds: expected as many runs of each, got 3 and 2"):
        statistics.paired_difference(a, levels[:2], same_seeds=True)


def test_the_spread_of_differences_is_pooled_over_pairs():
    """By hand: differences of 10, 20 and 30 points, of 0 and 20, and of one seed."""

    def runs(*percents):
        return [np.arange(10) < percent / 10 for percent in percents]

    pairs = [(runs(60, 70, 80), runs(50, 50, 50)), (runs(50, 70), runs(50, 50)), (runs(90), runs(10))]
    found = statistics.spread_of_differences(pairs)
    assert (found.variance, found.degrees) == (pytest.approx((2 * 100 + 1 * 200) / 3), 3)
    assert statistics.spread_of_differences(pairs[2:]) == Spread(0.0, 0)


@pytest.mark.parametrize("own_spread", [0.0, 0.5, 2.0])
def test_intervals_of_paired_seeds_cover_the_truth_as_often_as_they_say(own_spread):
    """Seeds whose luck of 3 points both methods share, and some that is a method's own."""
    draws = np.random.default_rng(9)

    def pairs(n, seeds, spread):
        hardness, found = draws.normal(size=n), ([], [])
        for _ in range(seeds):
            luck = 0.09 * draws.normal()
            for side, gain in ((0, 0.0306), (1, 0.0)):
                own = 0.0306 * spread / math.sqrt(2) * draws.normal()
                found[side].append(hardness + 0.5 * draws.normal(size=n) < gain + luck + own)
        return found

    truth = np.mean([100 * (np.mean(a) - np.mean(b)) for a, b in (pairs(400_000, 1, 0.0) for _ in range(20))])
    met = 0
    for _ in range(300):
        a, b = pairs(500, 3, own_spread)
        own = statistics.spread_of_differences([(a, b)])
        found = statistics.paired_difference(a, b, spread=own, same_seeds=True, replicates=500)
        met += found.low <= truth <= found.high
    assert met / 300 >= 0.93


def test_the_detectable_difference_is_found_four_times_in_five():
    n, disagreement = 1000, 0.15
    points = statistics.detectable(n, 1, disagreement=disagreement, seed_spread=0.0)
    assert points == pytest.approx((1.96 + 0.8416) * 100 * math.sqrt(disagreement / n), rel=1e-3)
    draws = np.random.default_rng(11)
    found = 0
    for _ in range(300):
        only_a = (disagreement + points / 100) / 2
        kind = draws.random(n)
        a, b = kind < 0.4 + only_a, (kind < 0.4) | (kind > 1 - (disagreement - only_a))
        found += statistics.paired_difference([a], [b], replicates=400).verdict == "higher"
    assert 0.72 <= found / 300 <= 0.88
    assert statistics.detectable(n, 3) < statistics.detectable(n, 1)
    with pytest.raises(ValueError, match="at least one image"):
        statistics.detectable(0, 1)


def test_means_of_costs_are_compared_by_welch():
    difference, low, high = statistics.difference_of_means([5.0, 5.2, 5.1], [4.0, 4.1, 4.05])
    assert difference == pytest.approx(1.05)
    assert low < 1.05 < high
    assert low > 0.7
    assert statistics.difference_of_means([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least two"):
        statistics.difference_of_means([1.0], [2.0, 3.0])
