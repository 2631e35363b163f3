"""Robust accuracy against the radius: a network that is not fooling its attacks falls to about zero.

Athalye, Carlini & Wagner (2018), section 3.1: an attack without a bound must reach 100%, and a larger radius must
not help the network. Both are seen on a curve and on no single percentage.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from iad_ext.evaluation.masking import MANY, Flag
from iad_ext.evaluation.samples import Sample
from iad_ext.evaluation.subject import Subject
from iad_ext.reliability import predicts
from iad_ext.types import Flags, Images, Labels
from iad_ext.units import show_fraction

TIMES = (
    0.0,
    0.25,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
)  # of eps: 0, 2, 4, 8, 12, 16, 24, 32/255 at the paper's radius
STEPS = 20
STEP = 0.25  # of the radius
ZERO = 0.05  # share of images that may still stand at the largest radius: "about zero"
FAR = 30 / 255  # a radius at which nothing should be left: four times the paper's, also written as 0.031


def radii(eps: float) -> list[float]:
    """The curve's radii for an evaluation at `eps`, in pixels of [0, 1], ascending, none above 1."""
    return sorted({min(times * eps, 1.0) for times in TIMES})


def standing(
    subject: Subject,
    data: Sample,
    radius: float,
    starts: Callable[[int, int], Tensor],
    *,
    batch_size: int,
    done: int = 0,
    stride: int | None = None,
) -> Iterator[Flags]:
    """Attack batch by batch after the first `done` images; yields which stand at `radius`.

    An image stands if it is right without an attack and at every point that PGD-20 on cross-entropy passes
    through. That is at most what the last point alone leaves standing, and lets an image go as soon as it
    falls. Every radius is attacked afresh: a point found in a smaller ball would be valid in a larger one, but
    would make the curve fall by construction, and its rise is a sign to look for.

    Args:
        subject: the network, frozen, in eval mode.
        data: the images.
        radius: in pixels of [0, 1].
        starts: the starting noise of the images at positions first … last − 1, uniform in [−1, 1].
        batch_size: images a pass.
        done: images that an earlier call has done.
        stride: images from a batch to the next, where several processes take turns.
    """
    for first in range(done, len(data), stride or batch_size):
        images, labels = data.batch(slice(first, first + batch_size))
        stands = _right(subject, images, labels)
        if radius:
            left = stands.nonzero()[:, 0]
            noise = starts(first, first + len(images)).to(images)[left]
            stands[left] = _under_pgd(subject, images[left], labels[left], noise, radius)
        yield stands


def _right(subject: Subject, images: Images, labels: Labels) -> Flags:
    logits = subject(images)
    right: Tensor = predicts(logits, labels) & logits.isfinite().all(dim=1)
    return right


def _under_pgd(subject: Subject, images: Images, labels: Labels, noise: Images, radius: float) -> Flags:
    """Which images stay right at the start and after every step."""
    stands = torch.ones(len(images), dtype=torch.bool, device=images.device)
    left = torch.arange(len(images), device=images.device)
    adv = (images + radius * noise).clamp(0, 1)
    for step in range(STEPS + 1):
        if not len(left):
            break
        with torch.enable_grad():
            adv = adv.detach().requires_grad_(True)
            logits = subject(adv)
            right = (predicts(logits, labels) & logits.isfinite().all(dim=1)).detach()
            stands[left[~right]] = False
            if step == STEPS:
                break
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), adv)
        ahead = adv.detach() + STEP * radius * gradient.sign()
        adv = (images + (ahead - images).clamp(-radius, radius)).clamp(0, 1)
        left, images, labels, adv = left[right], images[right], labels[right], adv[right]
    return stands


def result(stands: Mapping[float, Flags]) -> dict[str, float]:
    """The curve as it is kept: by radius as people write it, `8/255`, percent."""
    return {show_fraction(radius): 100 * int(flags.sum()) / len(flags) for radius, flags in stands.items()}


def protocol(n: int, seconds: float) -> dict[str, Any]:
    """What was done, as it stands beside the curve."""
    return {
        "attack": "PGD",
        "loss": "cross-entropy",
        "steps": STEPS,
        "alpha": f"{STEP:g} of the radius",
        "random_start": True,
        "mode": "eval",
        "stands": "right without an attack and at every point of the attack's way",
        "n": n,
        "seconds": seconds,
    }


def flags(stands: Mapping[float, Flags]) -> Iterator[Flag]:
    """What the curve says against the gradients: it does not fall to about zero far out, or it rises.

    Args:
        stands: by radius, ascending, (n,) which images stand there.
    """
    counts = {radius: int(flags.sum()) for radius, flags in stands.items()}
    n, largest = len(next(iter(stands.values()))), max(counts)
    natural, left = counts[min(counts)], counts[largest]
    if largest >= FAR and natural >= MANY and left > max(2.0, ZERO * n):
        yield Flag(
            flag="curve_does_not_fall",
            attack="*",
            images=left,
            detail=f"at a radius of {show_fraction(largest)}, where nothing should be left, PGD-{STEPS} leaves {left} "
            f"of {n} images standing ({100 * left / n:.1f}%): it does not find what is there, as on masked gradients. "
            "Compare with Square, and look at the gradients",
        )
    lowest = natural
    for radius, count in counts.items():
        more = count - lowest
        if more > max(3.0, 0.02 * n):
            yield Flag(
                flag="curve_rises",
                attack="*",
                images=more,
                detail=f"at a radius of {show_fraction(radius)} {more} more of {n} images stand than at a smaller "
                "one: a larger radius cannot help a network, so the attack loses its way. Distrust every figure of a "
                "gradient attack here",
            )
            break
        lowest = min(lowest, count)
