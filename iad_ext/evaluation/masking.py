"""Signs that an evaluation cannot be trusted: masked gradients, attacks that did not work, wrong outputs.

The checks are those of Athalye, Carlini & Wagner (2018), section 3.1, and of AutoAttack's own warnings. A
flag does not prove that a network is fooling its attacks, and no flag does not prove the contrary.
"""

from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)

from iad_ext.evaluation.samples import Sample
from iad_ext.evaluation.subject import Subject
from iad_ext.types import Flags, Images, Logits

ALL = "*"  # a flag that is about every attack

# an attack, and those that should leave fewer images standing than it does
STRONGER = {
    "fgsm": ("pgd10", "pgd20", "aa"),
    "fgsm_plain": ("pgd10", "pgd20", "aa"),
    "pgd10": ("pgd20", "aa"),
    "pgd20": ("aa",),
    "cw_inf": ("aa",),
}
HURTS = 4 / 255  # a radius at which some natural image in MANY should fall to any attack that works
MANY = 20


class Flag(TypedDict):
    """One finding.

    Keys:
        flag: its kind, a fixed word.
        attack: the attack it is about, `*` for all.
        detail: what was seen, with the numbers, and what to do, in plain words.
        images: how many images it is about.
    """

    flag: str
    attack: str
    detail: str
    images: int


def _whisker(n: int) -> float:
    """How many images random starts alone may put between two attacks: 0.5% of `n`, never fewer than 2."""
    return max(2.0, 0.005 * n)


def from_outputs(first: Logits, second: Logits) -> Iterator[Flag]:
    """Flags of two forward passes on the same batch: do they agree, and are they logits?"""
    scale = first.norm(dim=1).clamp(min=1e-10)
    moved = int((((first - second).norm(dim=1) / scale) > 1e-4).sum())
    if moved:
        yield Flag(
            flag="non_deterministic",
            attack=ALL,
            images=moved,
            detail=f"the network answers differently when asked twice, in eval mode, on {moved} of "
            f"{len(first)} images of the first batch: attacks see noisy gradients and one run measures "
            "little. Take randomness out of its forward, or use an attack that averages over it "
            "(AutoAttack's version 'rand')",
        )
    if bool((first >= 0).all()) and bool(((first.sum(dim=1) - 1).abs() < 1e-5).all()):
        yield Flag(
            flag="probabilities",
            attack=ALL,
            images=len(first),
            detail=f"every output row of the first batch ({len(first)} images) is non-negative and sums to "
            "1: these look like probabilities, whose second softmax flattens the gradients of "
            "cross-entropy and spoils the margin of CW. Return logits: drop the final softmax",
        )


def zero_gradients(subject: Subject, sample: Sample, right: Flags, *, batch_size: int) -> Iterator[Flag]:
    """Flag the images that are right and whose input gradient of cross-entropy is exactly zero.

    Args:
        subject: the network.
        sample: the images.
        right: (N,), whether the natural image is classified correctly.
        batch_size: images a pass.
    """
    positions = right.nonzero()[:, 0]
    if not len(positions):
        return
    zero = sum(_without_gradient(subject, *sample.batch(some)) for some in positions.split(batch_size))
    if zero:
        yield Flag(
            flag="zero_gradients",
            attack=ALL,
            images=int(zero),
            detail=f"the input gradient is exactly zero on {int(zero)} of the {len(positions)} images that "
            f"are right ({100 * int(zero) / len(positions):.1f}%): gradient attacks cannot move there, "
            "whatever their steps. Look for rounding, detach, saturated outputs; trust only attacks "
            "without gradients, or a differentiable stand-in",
        )


def _without_gradient(subject: Subject, images: Images, labels: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        loss = F.cross_entropy(subject(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    return (gradient.flatten(1) == 0).all(dim=1).sum()


def from_robust(natural: Flags, robust: Mapping[str, Flags], *, eps: float) -> Iterator[Flag]:
    """Flags of the attacks' results beside each other.

    Args:
        natural: (N,), right on the natural image.
        robust: by attack, (N,), right on the adversarial image.
        eps: radius, in pixels of [0, 1].
    """
    for attack, standing in robust.items():
        yield from _above_natural(attack, natural, standing)
        yield from _found_nothing(attack, natural, standing, eps)
    yield from from_strengths(robust)


def from_strengths(robust: Mapping[str, Flags]) -> Iterator[Flag]:
    """Flag the attacks that leave more images standing than a weaker one; `robust` as for `from_robust`."""
    for stronger in sorted({strong for weak in robust for strong in STRONGER.get(weak, ())}):
        if stronger in robust:
            yield from _weaker_is_stronger(stronger, robust)


def _above_natural(attack: str, natural: Flags, standing: Flags) -> Iterator[Flag]:
    n, more = len(natural), int(standing.sum()) - int(natural.sum())
    if more > _whisker(n):
        yield Flag(
            flag="robust_above_natural",
            attack=attack,
            images=more,
            detail=f"more images are right under {attack} ({int(standing.sum())} of {n}) than without an "
            f"attack ({int(natural.sum())}): the attack helps the network, so its gradient points the wrong "
            "way. Check the network's backward and its mode",
        )


def _found_nothing(attack: str, natural: Flags, standing: Flags, eps: float) -> Iterator[Flag]:
    right, fell = int(natural.sum()), int((natural & ~standing).sum())
    if fell == 0 and right >= MANY and eps >= HURTS:
        yield Flag(
            flag="found_nothing",
            attack=attack,
            images=right,
            detail=f"{attack} broke none of the {right} images that are right, at a radius of "
            f"{eps * 255:.3g}/255: that is rarer than an attack that does not work. Try a larger eps, which "
            "must break some, and look at the gradients",
        )


def _weaker_is_stronger(stronger: str, robust: Mapping[str, Flags]) -> Iterator[Flag]:
    weaker = [attack for attack in robust if stronger in STRONGER.get(attack, ())]
    best = min(weaker, key=lambda attack: int(robust[attack].sum()))
    more = int(robust[stronger].sum()) - int(robust[best].sum())
    n = len(robust[stronger])
    if more > _whisker(n):
        yield Flag(
            flag="weaker_attack_stronger",
            attack=stronger,
            images=more,
            detail=f"{stronger} leaves {more} more of {n} images standing than {best}, which is the weaker "
            f"attack ({100 * more / n:.2f} points): its steps get lost, as they do on masked gradients. "
            "Report the lower of the two, and try more steps and restarts",
        )


def square_beats_gradients(fell_to_square: Flags, robust: Mapping[str, Flags]) -> Iterator[Flag]:
    """Flag the images that Square broke, without gradients, and that every gradient attack left standing.

    Args:
        fell_to_square: (N,), stood under AutoAttack's three gradient attacks and fell to Square.
        robust: by gradient attack run beside AutoAttack, (N,), right on the adversarial image.
    """
    stood = torch.stack([fell_to_square, *robust.values()]).all(dim=0)
    n, images = len(stood), int(stood.sum())
    if images > 0.002 * n:  # AutoAttack's own threshold
        names = ", ".join(["AutoAttack's", *robust])
        yield Flag(
            flag="square_beats_gradients",
            attack="aa",
            images=images,
            detail=f"Square, which sees no gradient, broke {images} of {n} images ({100 * images / n:.2f}%) "
            f"that every gradient attack here ({names}) left standing: the gradients mislead. Run Square "
            "with more queries and restarts, or an attack made for this network",
        )


def non_finite(attack: str, images: int) -> Iterator[Flag]:
    """Flag adversarial images on which the network gave NaN or infinity."""
    if images:
        verdict = (
            "pyautoattack's verdict on them is arbitrary" if attack == "aa" else "they do not count as right"
        )
        yield Flag(
            flag="non_finite_logits",
            attack=attack,
            images=images,
            detail=f"the logits are NaN or infinite on {images} adversarial images of {attack}: {verdict}, "
            "and the gradient there told the attack nothing. Look for overflow, log(0) or division by zero",
        )


def from_transfer(right: Mapping[str, Mapping[str, Flags]]) -> Iterator[Flag]:
    """Flag networks that fall to an attack made on another one more often than to the same attack made on them.

    An attack that sees the network's own gradients should do more harm than one that was handed over; where it does
    not, those gradients are to be doubted (Athalye, Carlini & Wagner 2018, section 3.1).

    Args:
        right: by the network attacked and the network asked, (N,), right on the adversarial image.
    """
    for source, answers in right.items():
        for target, standing in answers.items():
            if target == source or target not in right:
                continue
            own = right[target][target]
            fewer = int(own.sum()) - int(standing.sum())
            if fewer > _whisker(len(own)):
                yield Flag(
                    flag="transfer_beats_white_box",
                    attack="pgd20",
                    images=fewer,
                    detail=f"{target} is right on {int(own.sum())} of {len(own)} images under the attack made on it, "
                    f"and on {int(standing.sum())} under the one made on {source}: its own gradients may be masked. "
                    "Measure it with AutoAttack",
                )
