"""Calibration errors: a slow loop, cases by hand, and what their intervals are for."""

import math

import numpy as np
import oracles
import pytest
import torch

from iad_ext.evaluation import calibration as calibrations
from iad_ext.evaluation import evaluate_calibration, evaluate_trust
from iad_ext.evaluation.calibration import reliability
from iad_ext.randomness import stream
from iad_ext.statistics import bootstrap_interval


@pytest.fixture(scope="module")
def answers():
    generator = stream("test_calibration")
    logits = 2 * torch.randn(80, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (80,), generator=generator)


def error_by_loop(forecasts, events, bins):
    """Guo et al.'s Equation 3, a forecast at a time."""
    held = [[] for _ in range(bins)]
    for forecast, event in zip(forecasts, events, strict=True):
        for k in range(bins):
            if k / bins < forecast <= (k + 1) / bins or (k == 0 and forecast == 0):
                held[k].append((forecast, event))
    total = 0.0
    for each in held:
        if each:
            sure = math.fsum(forecast for forecast, _ in each) / len(each)
            right = sum(event for _, event in each) / len(each)
            total += len(each) / len(forecasts) * abs(sure - right)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_is_the_loop(answers, bins):
    logits, labels = answers
    found = evaluate_calibration(logits, labels, bins=bins, replicates=20)
    rows, ys = logits.tolist(), labels.tolist()
    p = [oracles.softmax(row) for row in rows]
    right = [oracles.prediction(row) == y for row, y in zip(rows, ys, strict=True)]
    assert found["ece"] == pytest.approx(100 * error_by_loop([max(q) for q in p], right, bins))
    every = [value for q in p for value in q]
    events = [k == y for y in ys for k in range(5)]
    assert found["classes"] == pytest.approx(100 * error_by_loop(every, events, bins))
    assert found["accuracy"] == pytest.approx(100 * sum(right) / 80)
    assert found["confidence"] == pytest.approx(100 * sum(max(q) for q in p) / 80)
    assert found["nll"] == pytest.approx(
        sum(oracles.cross_entropy(r, y) for r, y in zip(rows, ys, strict=True)) / 80
    )
    brier = [sum((q[k] - (k == y)) ** 2 for k in range(5)) for q, y in zip(p, ys, strict=True)]
    assert found["brier"] == pytest.approx(sum(brier) / 80)
    assert sum(each[2] for each in found["bins"]) == found["n"] == 80


@pytest.mark.parametrize("beta", [1.0, 0.1, 0.0])
def test_trust_is_the_loop(answers, beta):
    logits, labels = answers
    found = evaluate_trust(logits, labels, beta=beta, replicates=20)
    rows, ys = logits.tolist(), labels.tolist()
    alphas = [oracles.trust(row, y, beta) for row, y in zip(rows, ys, strict=True)]
    right = [oracles.prediction(row) == y for row, y in zip(rows, ys, strict=True)]
    assert found["error"] == pytest.approx(100 * error_by_loop(alphas, right, 15))
    assert found["trust"] == pytest.approx(100 * sum(alphas) / 80)
    assert found["accuracy"] == pytest.approx(100 * sum(right) / 80)
    assert found["beta"] == beta


def test_by_hand():
    """Two bins: 0.25 right never, 0.75 and 1 right once in two: |0.25 − 0| / 3 + 2/3 · |0.875 − 0.5| = 1/3."""
    forecast = torch.tensor([0.25, 0.75, 1.0])
    found = reliability(forecast, torch.tensor([False, True, False]), bins=2, replicates=5)
    assert found.error == pytest.approx(1 / 3)
    assert [each.count for each in found.bins] == [1, 2]
    assert [each.forecast for each in found.bins] == [0.25, 0.875]
    assert [each.share for each in found.bins] == [0.0, 0.5]
    assert (found.forecast, found.share, found.n) == (pytest.approx(2 / 3), pytest.approx(1 / 3), 3)


def test_a_forecast_on_an_edge_is_in_the_bin_below_and_an_empty_bin_has_no_mean():
    forecast = torch.tensor([0.0, 0.2, 0.4, 1.0], dtype=torch.float64)
    found = reliability(forecast, torch.ones(4).bool(), bins=5, replicates=5)
    assert [each.count for each in found.bins] == [2, 1, 0, 0, 1]
    assert found.bins[2].forecast is found.bins[2].share is None


@pytest.mark.parametrize("right", [True, False])
def test_certainty_is_perfect_or_as_wrong_as_can_be(right):
    logits = torch.full((6, 3), -1e4)
    logits[:, 1] = 1e4
    found = evaluate_calibration(logits, torch.full((6,), 1 if right else 2), replicates=5)
    assert found["ece"] == (0 if right else 100)
    assert found["brier"] == (0 if right else 2)
    assert found["interval"]["ece"] == [found["ece"]] * 2


def test_above_a_half_the_trust_is_never_wrong(answers):
    """α knows the true class: no bin above 1/2 holds an image on which the teacher is wrong."""
    found = evaluate_trust(*answers, bins=10, replicates=5)
    above = [each for each in found["bins"] if each[0] >= 0.5 and each[2]]
    assert above
    assert all(each[4] == 1 for each in above)


def calibrated(n, seed, *, over=0.0):
    draws = np.random.default_rng(seed)
    forecast = draws.uniform(0.3, 1, size=n)
    hit = draws.random(n) < np.clip(forecast - over, 0, 1)
    return torch.tensor(forecast), torch.tensor(hit)


def test_the_interval_holds_the_truth_and_is_free_of_the_bias_of_few_images():
    """Over-confident by 0.1 everywhere: the error is 0.1, its estimate on few images more, its interval around it."""
    kept, estimates = 0, []
    for seed in range(40):
        found = reliability(*calibrated(300, seed, over=0.1), replicates=200, seed=seed)
        kept += found.low <= 0.1 <= found.high
        estimates.append(found.error)
    assert np.mean(estimates) > 0.105
    assert kept >= 33  # 95% of 40 is 38; five below is what luck and the bootstrap may take


def test_chance_tells_a_calibrated_network_from_one_that_is_not():
    below = [
        found.error <= found.by_chance
        for found in (reliability(*calibrated(300, seed), replicates=200, seed=seed) for seed in range(40))
    ]
    assert sum(below) >= 33
    found = reliability(*calibrated(300, 0, over=0.2), replicates=200)
    assert found.error > found.by_chance


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    draws = np.random.default_rng(0)
    values = draws.normal(size=400)
    low, high = bootstrap_interval(lambda counts: float(counts @ values / counts.sum()), 400)
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    again = bootstrap_interval(lambda counts: float(counts @ values / counts.sum()), 400)
    assert again == (low, high)


def test_an_interval_of_few_images_stays_where_its_mean_can_lie():
    """One image of 40 is odd: the basic interval is the reflected one, and leaves the range on the other side."""
    rare = torch.zeros(40, dtype=torch.float64)
    rare[0] = 1
    assert calibrations.mean_interval(rare, most=math.inf)[0] == 0
    assert calibrations.mean_interval(1 - rare, most=1)[1] == 1
    logits = torch.full((40, 2), 9.0).scatter(1, rare.long()[:, None], 0.0)
    for labels in (torch.ones(40, dtype=torch.long), torch.zeros(40, dtype=torch.long)):
        found = evaluate_calibration(logits, labels)
        for name, most in (("nll", math.inf), ("brier", 2)):
            low, high = found["interval"][name]
            assert 0 <= low <= found[name] <= high <= most


def test_images_without_finite_logits_are_left_out(answers):
    logits, labels = answers
    broken = logits.clone()
    broken[3, 2], broken[7, 0] = float("nan"), float("inf")
    keep = [k for k in range(80) if k not in (3, 7)]
    expected = evaluate_calibration(logits[keep], labels[keep], replicates=5)
    assert evaluate_calibration(broken, labels, replicates=5) == expected
    assert expected["n"] == 78


def test_refusals(answers):
    logits, labels = answers
    with pytest.raises(ValueError, match=r"expected finite logits, got none on 80 images"):
        evaluate_calibration(logits * float("nan"), labels)
    with pytest.raises(
        ValueError, match=r"expected logits \(N, C\) and labels \(N,\); got \(80, 5\) and \(79,\)"
    ):
        evaluate_calibration(logits, labels[1:])
    with pytest.raises(ValueError, match="beta must be at least 0"):
        evaluate_trust(logits, labels, beta=-1.0)
    with pytest.raises(ValueError, match="expected probabilities"):
        reliability(torch.tensor([1.2]), torch.tensor([True]))
    with pytest.raises(ValueError, match="expected the same shape"):
        reliability(torch.rand(3), torch.tensor([True]))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        reliability(torch.rand(1), torch.tensor([True]), bins=0)
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_interval(lambda counts: 0.0, 0)
    assert calibrations.BINS == 15
