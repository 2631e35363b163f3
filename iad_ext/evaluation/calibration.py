"""Does a network's confidence say how often it is right? On natural images, and on adversarial ones.

IAD takes the teacher's probability of the true class on the student's adversarial image as the trust in it,
α = P_T(x̃|y)^β. That asks three things of the teacher, each of which has its own reliability diagram here:

* is it right on x̃ as often as it is sure (`confidence`: the largest probability; Guo et al. 2017),
* is a probability p that it gives to a class, any class, right in a share p of the cases (`every class`),
* is α the chance that it is right on x̃ (`trust`). α knows the true class: above 1/2, P_T(x̃|y) is never wrong, so that a
  perfectly calibrated teacher still has a trust that is too low there and too high below. It is a property of α, not a
  defect of the teacher.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from iad_ext.checks import check_number, check_whole
from iad_ext.reliability import predicts, trust
from iad_ext.statistics import Counts, bootstrap_interval
from iad_ext.types import Labels, Logits

BINS = 15  # Guo et al. (2017)
REPLICATES = 1000

Numbers: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """The forecasts that lie in one bin.

    Attributes:
        low: the bin's lower end, which does not belong to it (0 belongs to the first).
        high: its upper end, which does.
        count: how many forecasts.
        forecast: their mean; None in an empty bin.
        share: how many of them came true; None in an empty bin.
    """

    low: float
    high: float
    count: int
    forecast: float | None
    share: float | None


@dataclass(frozen=True)
class Reliability:
    """How forecasts and what came true differ, bin by bin.

    Attributes:
        error: mean distance, weighed by the bins' counts, of mean forecast and share, in [0, 1]: with confidences, the
            expected calibration error. Finitely many images make it too large.
        low: lower end of the 95% bootstrap interval over images, which takes that bias off.
        high: upper end.
        by_chance: what 19 of 20 perfectly calibrated forecasts of these values would stay below; None for forecasts of
            several events an image. An `error` below it is no sign of miscalibration.
        forecast: mean forecast.
        share: share of what came true.
        n: images.
        bins: of equal width.
    """

    error: float
    low: float
    high: float
    by_chance: float | None
    forecast: float
    share: float
    n: int
    bins: tuple[Bin, ...]


def reliability(
    forecast: Tensor, came_true: Tensor, *, bins: int = BINS, replicates: int = REPLICATES, seed: int = 0
) -> Reliability:
    """Compare forecasts with what came true. Source: Guo et al. (2017), Eq. 2 and 3.

    Args:
        forecast: (batch,) in [0, 1], or (batch, events) with several an image.
        came_true: bool, of the same shape.
        bins: of equal width, (k/bins, (k + 1)/bins].
        replicates: of the bootstrap over images.
        seed: of its draws.

    Raises:
        TypeError: a count is no integer.
        ValueError: no images, shapes that differ, or forecasts outside [0, 1].
    """
    check_whole("bins", bins, at_least=1)
    check_whole("replicates", replicates, at_least=1)
    check_whole("seed", seed, at_least=0)
    if forecast.shape != came_true.shape or forecast.ndim not in (1, 2) or not forecast.numel():
        raise ValueError(
            "forecast and came_true: expected the same shape, (images,) or (images, events), and at least one image; "
            f"got {tuple(forecast.shape)} and {tuple(came_true.shape)}"
        )
    values = forecast.detach().cpu().double().numpy().reshape(len(forecast), -1)
    if not (values.min() >= 0 and values.max() <= 1 + 1e-6):  # NaN is refused too; softmax rounds
        raise ValueError(f"forecast: expected probabilities, got {values.min():g} to {values.max():g}")
    events = came_true.detach().cpu().double().numpy().reshape(values.shape)
    place = _places(values, bins)
    gaps = _by_bin(values - events, place, bins)

    def error(counts: Counts) -> float:
        return float(np.abs(counts @ gaps).sum() / (counts.sum() * values.shape[1]))

    low, high = bootstrap_interval(error, len(values), replicates=replicates, seed=seed)
    count = np.bincount(place.ravel(), minlength=bins)
    sums = [np.bincount(place.ravel(), what.ravel(), minlength=bins) for what in (values, events)]
    return Reliability(
        error=error(np.ones(len(values), dtype=np.int64)),
        low=max(0.0, low),
        high=min(1.0, max(0.0, high)),
        by_chance=_by_chance(values[:, 0], place[:, 0], bins, replicates, seed)
        if values.shape[1] == 1
        else None,
        forecast=float(values.mean()),
        share=float(events.mean()),
        n=len(values),
        bins=tuple(
            Bin(k / bins, (k + 1) / bins, int(c), f / c if c else None, s / c if c else None)
            for k, (c, f, s) in enumerate(zip(count.tolist(), *(each.tolist() for each in sums), strict=True))
        ),
    )


def _places(values: Numbers, bins: int) -> npt.NDArray[np.int64]:
    edges = np.arange(1, bins + 1) / bins
    return np.searchsorted(edges, values, side="left").clip(0, bins - 1)


def _by_bin(gaps: Numbers, place: npt.NDArray[np.int64], bins: int) -> Numbers:
    """The sums of the gaps of each image by bin, (images, bins)."""
    sums = np.zeros((len(gaps), bins))
    np.add.at(sums, (np.arange(len(gaps))[:, None], place), gaps)
    return sums


def _by_chance(values: Numbers, place: npt.NDArray[np.int64], bins: int, replicates: int, seed: int) -> float:
    """The 95% quantile of the error where every forecast is the chance of its event. Source: Bröcker & Smith (2007)."""
    draws = np.random.default_rng([seed, 1])
    errors = []
    for _ in range(replicates):
        gaps = values - (draws.random(len(values)) < values)
        errors.append(np.abs(np.bincount(place, gaps, minlength=bins)).sum() / len(values))
    return float(np.quantile(errors, 0.95))


def evaluate_calibration(
    logits: Logits, labels: Labels, *, bins: int = BINS, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Any]:
    """Measure how well a network's confidence says how often it is right.

    Args:
        logits: (batch, classes); images whose logits are not finite are left out, and `n` is smaller.
        labels: (batch,), true classes.
        bins: of equal width.
        replicates: of the bootstrap.
        seed: of its draws.

    Returns:
        What JSON can hold. `accuracy`, `confidence` (mean largest probability), `ece`, `by_chance` and `classes` (the
        error of every class's probability) in percent, `nll` in nats, `brier` (sum over the classes, 0 to 2),
        `interval` (95%, by name), `bins` as [low, high, count, mean confidence, accuracy] with shares of 1, `n`.

    Raises:
        ValueError: no image has finite logits, or shapes do not fit.
    """
    logits, labels = _finite(logits, labels)
    settings = {"bins": bins, "replicates": replicates, "seed": seed}
    p = logits.softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1])
    confident = reliability(p.amax(dim=1), predicts(logits, labels), **settings)
    classes = reliability(p, truth.bool(), **settings)
    losses = {
        "nll": F.cross_entropy(logits, labels, reduction="none"),
        "brier": (p - truth).square().sum(dim=1),
    }
    most = {"nll": math.inf, "brier": 2.0}
    return {
        "n": confident.n,
        "accuracy": 100 * confident.share,
        "confidence": 100 * confident.forecast,
        "ece": 100 * confident.error,
        "by_chance": 100 * (confident.by_chance or 0.0),
        "classes": 100 * classes.error,
        **{name: float(loss.mean()) for name, loss in losses.items()},
        "interval": {
            "ece": [100 * confident.low, 100 * confident.high],
            "classes": [100 * classes.low, 100 * classes.high],
            **{
                name: mean_interval(loss, most=most[name], replicates=replicates, seed=seed)
                for name, loss in losses.items()
            },
        },
        "bins": _plain(confident.bins),
    }


def evaluate_trust(
    teacher_adv: Logits,
    labels: Labels,
    *,
    beta: float = 1.0,
    bins: int = BINS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure whether α = P_T(x̃|y)^β is the chance that the teacher is right on x̃.

    Args:
        teacher_adv: the teacher's logits on the student's adversarial images, (batch, classes).
        labels: (batch,), true classes.
        beta: β ≥ 0; 1 asks it of the probability itself.
        bins: of equal width.
        replicates: of the bootstrap.
        seed: of its draws.

    Returns:
        What JSON can hold. `beta`, `trust` (mean α), `accuracy` (of the teacher on x̃) and `error` in percent,
        `interval` (95%), `bins` as [low, high, count, mean α, share of images on which the teacher is right], `n`.

    Raises:
        ValueError: no image has finite logits, shapes do not fit, or `beta` is out of range.
    """
    check_number("beta", beta, at_least=0)
    logits, labels = _finite(teacher_adv, labels)
    found = reliability(
        trust(logits, labels, beta=beta),
        predicts(logits, labels),
        bins=bins,
        replicates=replicates,
        seed=seed,
    )
    return {
        "n": found.n,
        "beta": beta,
        "trust": 100 * found.forecast,
        "accuracy": 100 * found.share,
        "error": 100 * found.error,
        "interval": {"error": [100 * found.low, 100 * found.high]},
        "bins": _plain(found.bins),
    }


def mean_interval(values: Tensor, *, most: float, replicates: int = REPLICATES, seed: int = 0) -> list[float]:
    """The 95% bootstrap interval of a mean over images; `values` is (images,), each from 0 to `most`."""
    numbers = values.detach().cpu().double().numpy()
    low, high = bootstrap_interval(
        lambda counts: float(counts @ numbers / counts.sum()), len(numbers), replicates=replicates, seed=seed
    )
    return [max(0.0, low), min(most, high)]


def _finite(logits: Logits, labels: Labels) -> tuple[Logits, Labels]:
    if logits.ndim != 2 or logits.shape[:1] != labels.shape:
        raise ValueError(
            f"expected logits (N, C) and labels (N,); got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    finite = logits.isfinite().all(dim=1)
    if not bool(finite.any()):
        raise ValueError(f"expected finite logits, got none on {len(logits)} images; check the network")
    return logits[finite], labels[finite]


def _plain(bins: Sequence[Bin]) -> list[list[float | int | None]]:
    return [[each.low, each.high, each.count, each.forecast, each.share] for each in bins]
