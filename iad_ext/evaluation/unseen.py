"""Threats that a network was not trained for: another norm, a larger radius, common corruptions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iad_ext.attacks import EPS, PGDL2
from iad_ext.checks import check_number
from iad_ext.evaluation import corruptions as corruptions_
from iad_ext.evaluation.calibration import mean_interval
from iad_ext.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from iad_ext.evaluation.measures import (
    BATCH_SIZE,
    GRADIENT_ATTACKS,
    GradientAttack,
    ProgressBar,
    adversarial_batches,
    check_numbers,
)
from iad_ext.evaluation.samples import Array, Sample, sample
from iad_ext.evaluation.subject import Subject, all_under_evaluation, probe, under_evaluation
from iad_ext.evaluation.tables import interval, percent
from iad_ext.names import known_arguments, unknown
from iad_ext.reliability import predicts
from iad_ext.types import Flags, Images, Labels

L2_EPS = 128 / 255


@dataclass(frozen=True)
class Threat:
    """An attack and the norm of its ball."""

    attack: GradientAttack
    norm: str
    random_starts: str


# steps in L2 are 2.5 · eps / steps long, so that 20 of them cross the ball (Madry et al.'s rule)
THREATS = {
    "linf": Threat(GRADIENT_ATTACKS["pgd20"], "Linf", "pgd20"),
    "l2": Threat(GradientAttack(PGDL2, "cross-entropy", steps=20, step=0.125), "L2", "pgd20_l2"),
}


@known_arguments
def under_threats(
    model: nn.Module,
    images: Array,
    labels: Array,
    *,
    linf_eps: float = 2 * EPS,
    l2_eps: float = L2_EPS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure a network under PGD-20 of another radius and of another norm.

    Args:
        model: returns logits (N, C).
        images: as for `evaluate`, (N, C, H, W).
        labels: (N,) integers.
        linf_eps: L∞ radius in pixels of [0, 1]; the attack is `evaluate`'s `pgd20`.
        l2_eps: L2 radius of a whole image's offset, same unit; 20 steps along the gradient over its norm, each 1/8 of
            the radius, from a random start.
        seed: of the random starts.
        batch_size: images a pass.
        progress: show a bar; None on a terminal only.

    Returns:
        `linf` and `l2`: accuracy in percent; `n`; `interval`: by threat, the 95% Wilson interval; `right`: by threat,
        (N,) bool on the CPU; `protocol`: by threat, its settings.

    Raises:
        TypeError: as `evaluate`.
        ValueError: as `evaluate`.
    """
    check_numbers(eps=linf_eps, seed=seed, batch_size=batch_size)
    check_number("l2_eps, an L2 radius in pixels of [0, 1],", l2_eps, above=0)
    radii = {"linf": linf_eps, "l2": l2_eps}
    right = {}
    with under_evaluation(model) as subject:
        data = sample(images, labels, device=subject.device, dtype=subject.pixels)
        probe(subject, data.batch(slice(0, batch_size))[0], highest=int(data.labels.max()))
        for name, threat in THREATS.items():
            batches = adversarial_batches(
                subject,
                data,
                threat.attack,
                threat.random_starts,
                eps=radii[name],
                seed=seed,
                batch_size=batch_size,
            )
            found: list[Flags] = []
            with ProgressBar(f"{threat.norm} PGD-20", len(data), progress) as bar:
                for adv, y in batches:
                    found.append(_right(subject, adv, y))
                    bar.advance(len(y), percent(torch.cat(found)))
            right[name] = torch.cat(found)
    n = len(data)
    return {
        **{name: percent(flags) for name, flags in right.items()},
        "n": n,
        "interval": {name: interval(int(flags.sum()), n) for name, flags in right.items()},
        "right": right,
        "protocol": {
            name: {
                **threat.attack.protocol(radii[name]),
                "norm": threat.norm,
                "seed": seed,
                "batch_size": batch_size,
            }
            for name, threat in THREATS.items()
        },
    }


def _right(subject: Subject, images: Images, labels: Labels) -> Flags:
    logits = subject(images)
    right: Tensor = predicts(logits, labels) & logits.isfinite().all(dim=1)
    return right.cpu()


@known_arguments
def under_corruptions(
    networks: Mapping[str, nn.Module],
    images: Array,
    labels: Array,
    *,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure networks on corrupted images; each image is corrupted once and shown to all networks.

    Args:
        networks: by name, all on one device; each returns logits (N, C).
        images: as for `evaluate`, (N, 3, H, W).
        labels: (N,) integers.
        corruptions: any of `CORRUPTIONS`.
        severities: any of 1 … 5.
        seed: of the noise.
        batch_size: images a pass.
        progress: show a bar; None on a terminal only.

    Returns:
        `networks`, by name: `mean`, the accuracy over corruptions and severities in percent; `interval`, its 95%
        bootstrap interval over images; `kinds`, by corruption `mean`, `severity` (by severity) and their Wilson
        `interval`. And `protocol`: what was done.

    Raises:
        TypeError: as `evaluate`.
        ValueError: as `evaluate`; no or unknown corruptions or severities; images that are not RGB.
    """
    check_numbers(eps=EPS, seed=seed, batch_size=batch_size)
    kinds, levels = _checked(corruptions, severities)
    right: dict[str, dict[tuple[str, int], Flags]] = {}
    with all_under_evaluation(networks) as subjects:
        some = next(iter(subjects.values()))
        # in float32 whatever the networks' type: the same corrupted images for all of them
        data = sample(images, labels, device=some.device, dtype=torch.float32)
        corruptions_.check_corruptible(data.images)
        for name, subject in subjects.items():
            probe(subject, data.batch(slice(0, batch_size))[0], highest=int(data.labels.max()))
            right[name] = {}
        for kind in kinds:
            with ProgressBar(kind, len(levels) * len(data), progress) as bar:
                for level in levels:
                    found: dict[str, list[Flags]] = {name: [] for name in subjects}
                    for x, y in _corrupted(data, kind, level, seed=seed, batch_size=batch_size):
                        for name, subject in subjects.items():
                            found[name].append(_right(subject, x, y))
                        bar.advance(len(y), percent(torch.cat(next(iter(found.values())))))
                    for name, parts in found.items():
                        right[name][kind, level] = torch.cat(parts)
    return {
        "networks": {name: _of_network(flags, kinds, levels, seed) for name, flags in right.items()},
        "protocol": corruptions_.protocol(kinds, levels, seed)
        | {"n": len(data), "image_size": list(data.images.shape[2:]), "batch_size": batch_size},
    }


def _corrupted(
    data: Sample, kind: str, severity: int, *, seed: int, batch_size: int
) -> Iterator[tuple[Images, Labels]]:
    for first in range(0, len(data), batch_size):
        x, y = data.batch(slice(first, first + batch_size))
        yield corrupt(x, kind, severity, seed=seed, first=first), y


def _checked(corruptions: Sequence[str], severities: Sequence[int]) -> tuple[list[str], list[int]]:
    kinds, levels = list(dict.fromkeys(corruptions)), sorted(set(severities))
    for kind in kinds:
        if kind not in CORRUPTIONS:
            raise ValueError(unknown("corruption", kind, CORRUPTIONS))
    if not kinds or not levels or not set(levels) <= set(SEVERITIES):
        raise ValueError(
            f"expected at least one corruption, and severities of 1 … 5; got {kinds} and {levels}"
        )
    return kinds, levels


def _of_network(
    right: Mapping[tuple[str, int], Flags], kinds: Sequence[str], levels: Sequence[int], seed: int
) -> dict[str, Any]:
    per_image = torch.stack(list(right.values())).double().mean(dim=0)
    return {
        "mean": 100 * float(per_image.mean()),
        "interval": [100 * end for end in mean_interval(per_image, most=1, seed=seed)],
        "kinds": {
            kind: {
                "mean": sum(percent(right[kind, level]) for level in levels) / len(levels),
                "severity": {str(level): percent(right[kind, level]) for level in levels},
                "interval": {
                    str(level): interval(int(right[kind, level].sum()), len(per_image)) for level in levels
                },
            }
            for kind in kinds
        },
    }
