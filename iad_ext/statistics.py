"""Differences between networks that were measured on the same images: intervals, McNemar's test, power.

Two things make a difference between two methods uncertain: which images were tested, and which seeds were trained.
Images are resampled in pairs (an image that both networks get right says nothing). Seeds are few, and resampling three
of them would claim more than they know: their spread enters with Student's t. Runs of one seed have first weights,
batches and often the teacher in common: methods are compared by runs of the same seeds, and the spread is that of their
differences, their own of three seeds or more, else that of all pairs of a study. Methods without a seed in common are
left with the spread of accuracies, pooled over all rows.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

Flags: TypeAlias = npt.NDArray[np.bool_]  # of a run: which images it gets right
Counts: TypeAlias = npt.NDArray[np.int64]  # how often each image is drawn

REPLICATES = 4000
# what the power statement takes for two students of one teacher before any is trained: the share of images on which
# just one of the two is right, and the spread of one method's accuracy over seeds
DISAGREEMENT, SEED_SPREAD = 0.15, 0.3


@dataclass(frozen=True)
class Spread:
    """How much differs from seed to seed: a method's accuracy, or the difference of two methods.

    Attributes:
        variance: in squared percentage points.
        degrees: of freedom it was estimated with; 0 where no method has two seeds.
    """

    variance: float
    degrees: int


@dataclass(frozen=True)
class Difference:
    """Accuracy of `a` minus that of `b`, in percentage points.

    Attributes:
        difference: mean over images and seeds.
        low: end of the 95% interval.
        high: the other end.
        seeds: runs on the side that has fewer.
        n: images.
        mcnemar_p: p-value of McNemar's exact test; over several seeds twice the median of theirs.
        seed_spread: standard deviation over seeds that the interval holds: of the differences, or of one method's
            accuracy; None where it holds none.
    """

    difference: float
    low: float
    high: float
    seeds: int
    n: int
    mcnemar_p: float
    seed_spread: float | None

    @property
    def verdict(self) -> str:
        """`higher` or `lower` where the interval leaves out 0, else `tie`."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "tie"


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n − 1 in the denominator; None of a single value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("expected at least one value, got none")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mcnemar(a: Flags, b: Flags) -> float:
    """P-value of McNemar's exact test: were the images on which just one of two is right a fair coin's?

    Two-sided. Source: McNemar (1947), with the binomial distribution in place of χ².

    Raises:
        ValueError: not the same number of images.
    """
    _check_pair(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def spread_over_seeds(rows: Sequence[Sequence[Flags]]) -> Spread:
    """Pool the spread over seeds of several methods.

    The variance of a method's accuracies over seeds holds noise of the images too, on which its networks disagree;
    the bootstrap over images has that already, and it is taken off here.

    Args:
        rows: of each method the flags of its runs, on the same images within a row.
    """
    total, degrees = 0.0, 0
    for runs in rows:
        if len(runs) < 2:
            continue
        right = 100 * np.stack(runs).astype(float)  # (seeds, images)
        observed = right.mean(axis=1).var(ddof=1)
        of_images = right.var(axis=0, ddof=1).mean() / right.shape[1]
        total += (observed - of_images) * (len(runs) - 1)
        degrees += len(runs) - 1
    return Spread(variance=max(0.0, total / degrees) if degrees else 0.0, degrees=degrees)


def spread_of_differences(pairs: Sequence[tuple[Sequence[Flags], Sequence[Flags]]]) -> Spread:
    """Pool the spread over seeds of the differences of several pairs of methods.

    The noise of finitely many images, which the differences hold too, is not taken off: of few seeds that would leave
    too little too often.

    Args:
        pairs: of two methods the flags of their runs, the k-th of both with one seed. One seed alone tells nothing.
    """
    total, degrees = 0.0, 0
    for a, b in pairs:
        by_seed = [100 * float(np.mean(one) - np.mean(other)) for one, other in zip(a, b, strict=True)]
        if len(by_seed) > 1:
            total += float(np.var(by_seed, ddof=1)) * (len(by_seed) - 1)
            degrees += len(by_seed) - 1
    return Spread(variance=total / degrees if degrees else 0.0, degrees=degrees)


def paired_difference(
    a: Sequence[Flags],
    b: Sequence[Flags],
    *,
    spread: Spread | None = None,
    same_seeds: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Difference:
    """Compare two methods by the flags of their runs, all on the same images.

    A replicate draws images with replacement, the same for all runs, and adds what other seeds would have changed:
    a draw of Student's t with the spread's degrees of freedom. The interval holds the middle 95%.

    Args:
        a: flags of each run of one method.
        b: of the other.
        spread: over seeds; None leaves it out: the interval then speaks of these very networks.
        same_seeds: the k-th run of `a` has the seed of the k-th run of `b`, and `spread` is that of differences.
        replicates: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: no runs, flags of different images, or no pairs of seeds where there should be.
    """
    if not a or not b:
        raise ValueError("expected at least one run of each method, got none")
    if same_seeds and len(a) != len(b):
        raise ValueError(f"same_seeds: expected as many runs of each, got {len(a)} and {len(b)}")
    for runs in (a, b):
        for flags in runs:
            _check_pair(flags, a[0])
    draws = np.random.default_rng(seed)
    per_image = 100 * (np.mean(np.stack(a), axis=0) - np.mean(np.stack(b), axis=0))
    n = len(per_image)
    # images are drawn by how often each value of the difference is: there are few values
    values, counts = np.unique(per_image.round(9), return_counts=True)
    means = draws.multinomial(n, counts / n, size=replicates) @ values / n
    seed_spread = None
    if spread is not None and spread.degrees:
        seed_spread = math.sqrt(spread.variance)
        error = seed_spread * math.sqrt(1 / len(a) if same_seeds else 1 / len(a) + 1 / len(b))
        means = means + error * draws.standard_t(spread.degrees, size=replicates)
    low, high = np.quantile(means, [0.025, 0.975])
    pairs = [mcnemar(one, other) for one, other in zip(a, b, strict=False)]
    p = pairs[0] if len(pairs) == 1 else min(1.0, 2 * float(np.median(pairs)))
    return Difference(
        difference=float(per_image.mean()),
        low=float(low),
        high=float(high),
        seeds=min(len(a), len(b)),
        n=n,
        mcnemar_p=p,
        seed_spread=seed_spread,
    )


def bootstrap_interval(
    measure: Callable[[Counts], float], n: int, *, replicates: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95% interval of what is measured on `n` images, by drawing images with replacement.

    The basic interval, 2 m − q97.5 to 2 m − q2.5, not the quantiles themselves: a measure that finitely many images
    bias upwards, as they do a calibration error, is biased once more in every replicate, and the quantiles can then lie
    above the truth altogether. Source: Davison & Hinkley (1997), section 5.2.

    Args:
        measure: of how often each image is drawn, (n,); all once gives the estimate m.
        n: images, at least 1.
        replicates: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: no images.
    """
    if n < 1:
        raise ValueError(f"expected at least one image, got {n}")
    draws = np.random.default_rng(seed)
    estimate = measure(np.ones(n, dtype=np.int64))
    drawn = (np.bincount(draws.integers(n, size=n), minlength=n) for _ in range(replicates))
    low, high = np.quantile([measure(counts) for counts in drawn], [0.025, 0.975])
    return float(2 * estimate - high), float(2 * estimate - low)


def difference_of_means(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `a` minus mean of `b`, with the ends of its 95% interval. Source: Welch (1947).

    Raises:
        ValueError: fewer than two values on a side: nothing tells how they spread.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"expected at least two values of each, got {len(a)} and {len(b)}")
    found: Any = stats.ttest_ind(a, b, equal_var=False) if np.ptp(a) or np.ptp(b) else None
    difference = float(np.mean(a) - np.mean(b))
    if found is None:
        return difference, difference, difference
    interval = found.confidence_interval(0.95)
    return difference, float(interval.low), float(interval.high)


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of a sample, with the ends of its 95% interval by Student's t.

    Raises:
        ValueError: fewer than two values: nothing tells how they spread.
    """
    mean, std = mean_and_std(values)
    if std is None:
        raise ValueError("expected at least two values, got one")
    half = float(stats.t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of a few pairs.

    Attributes:
        rho: ρ, in [−1, 1].
        p: two-sided p-value: exact, of all orders that one side could have, up to 8 pairs; Student's t beyond.
        n: pairs.
        least: the smallest size of ρ that so many pairs would tell from chance (p ≤ 0.05); None where none would.
    """

    rho: float
    p: float
    n: int
    least: float | None


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation | None:
    """Correlate the ranks of two quantities; None for fewer than three pairs, or where one of them does not vary.

    Raises:
        ValueError: not as many of the one as of the other.
    """
    if len(x) != len(y):
        raise ValueError(f"pairs need as many of each quantity; got {len(x)} and {len(y)}")
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    ranks = [stats.rankdata(values) - (n + 1) / 2 for values in (x, y)]
    a, b = (one / np.linalg.norm(one) for one in ranks)
    rho = float(a @ b)
    if n <= 8:
        orders = np.array(list(itertools.permutations(b)))
        # rounded, since equal sums differ by their order of adding
        by_chance = np.abs(orders @ a).round(9)
        p = float((by_chance >= round(abs(rho), 9)).mean())
        told = [value for value in np.unique(by_chance) if (by_chance >= value).mean() <= 0.05]
        least = float(told[0]) if told else None
    else:
        t = rho * math.sqrt((n - 2) / max(1 - rho**2, 1e-12))
        p = float(2 * stats.t.sf(abs(t), n - 2))
        bound = float(stats.t.ppf(0.975, n - 2))
        least = bound / math.sqrt(n - 2 + bound**2)
    return RankCorrelation(rho=rho, p=p, n=n, least=least)


def detectable(
    n: int,
    seeds: int,
    *,
    disagreement: float = DISAGREEMENT,
    seed_spread: float = SEED_SPREAD,
    power: float = 0.8,
) -> float:
    """The smallest true difference, in points, that a comparison of this size finds with probability `power`.

    Args:
        n: images.
        seeds: trained of each method.
        disagreement: share of images on which just one of the two methods is right.
        seed_spread: standard deviation of a method's accuracy over seeds, in points.
        power: how often it is to be found.
    """
    if n < 1 or seeds < 1:
        raise ValueError(f"expected at least one image and one seed, got {n} and {seeds}")
    error = math.sqrt(100**2 * disagreement / n + 2 * seed_spread**2 / seeds)
    return float((stats.norm.ppf(0.975) + stats.norm.ppf(power)) * error)


def _check_pair(a: Flags, b: Flags) -> None:
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired flags are of the same images; got {a.shape} and {b.shape}")
