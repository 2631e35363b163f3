"""A reading of a teacher before it teaches: how right and how sure it is on a student's adversarial images.

A teacher's own robustness says little about what a student gets from it; how it answers to the student's attacks says
more. One that is surer than it is right teaches its mistakes.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from iad_ext.attacks import EPS, PGD
from iad_ext.checks import check_whole
from iad_ext.modes import mode
from iad_ext.reliability import predicts
from iad_ext.statistics import mean_with_interval
from iad_ext.terms import entropy
from iad_ext.types import Images, Labels

# how far a mean probability may lie above the share of right answers; our choice
OVER_CONFIDENT = 0.1


@dataclass(frozen=True)
class Reading:
    """What was read from some images; x̃ is PGD-10 on the student.

    Attributes:
        images: how many.
        classes: how many.
        student_right: share of x̃ on which the student is right.
        right_natural: share of x on which the teacher is right.
        right: share of x̃ on which it is.
        sure: its mean largest probability on x̃.
        surer: ends of the 95% interval of `sure` minus `right`, over images.
        entropy: its mean entropy on x̃, in nats.
        entropy_where_wrong: the same over those on which it is wrong; None where there is none.
        on_itself: x̃ is PGD-10 on the teacher itself, for want of a student.
    """

    images: int
    classes: int
    student_right: float
    right_natural: float
    right: float
    sure: float
    surer: tuple[float, float]
    entropy: float
    entropy_where_wrong: float | None
    on_itself: bool = False

    @property
    def over_confident(self) -> bool:
        """Whether it is surer on the attacks than it is right, by more than so few images could make it seem."""
        return self.sure - self.right > OVER_CONFIDENT and self.surer[0] > 0

    @property
    def at_chance(self) -> bool:
        """Whether it is right on natural images no more often than chance allows."""
        chance = 1 / self.classes
        return self.right_natural <= chance + 2 * math.sqrt(chance * (1 - chance) / self.images)

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        attacks = "its own attacks" if self.on_itself else "your student's attacks"
        if self.at_chance:
            return (
                "this teacher is right no more often than chance: wrong weights, classes in another order, or images "
                "that it expects normalised"
            )
        if self.over_confident:
            return (
                f"this teacher is over-confident on {attacks}: use the entropy weight "
                "(--objective.sample-weight entropy)"
            )
        return f"this teacher is about as sure on {attacks} as it is right, or less: no weight is needed"

    def lines(self) -> list[str]:
        """The reading for people."""
        most = math.log(self.classes)
        wrong = self.entropy_where_wrong
        where_wrong = "" if wrong is None else f", {wrong:.3f} where it is wrong"
        low, high = (100 * end for end in self.surer)
        attacked = (
            "x̃ is PGD-10 on the teacher itself; --student names the one whose attacks it will meet"
            if self.on_itself
            else f"right on {100 * self.student_right:.1f}% (PGD-10 on the student)"
        )
        return [
            f"teacher on x      right on {100 * self.right_natural:.1f}% of {self.images} images",
            f"teacher on x̃      right on {100 * self.right:.1f}%, mean largest probability {100 * self.sure:.1f}%: "
            f"surer than right by {100 * (self.sure - self.right):+.1f} points [{low:+.1f}, {high:+.1f}]",
            f"its entropy on x̃  {self.entropy:.3f} nats of at most {most:.3f}{where_wrong}",
            f"student on x̃      {attacked}",
            self.advice,
        ]


def read_teacher(
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    labels: Labels,
    *,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = 100,
    on_itself: bool = False,
) -> Reading:
    """Attack `student` on some images and look at what `teacher` makes of them; both are left as they were.

    Args:
        teacher: returns logits.
        student: returns logits; any network of the student's kind, trained or not. An untrained one's attacks are weak.
        images: pixels in [0, 1].
        labels: true classes.
        eps: L∞ radius in pixels of [0, 1]; steps are a quarter of it.
        seed: of the random starts.
        batch_size: images at a time, ≥ 1.
        on_itself: `student` is the teacher once more; the reading then says so.

    Raises:
        ValueError: there are not two images, or the networks differ in their number of classes.
    """
    check_whole("batch_size", batch_size, at_least=1)
    if len(images) < 2:
        raise ValueError(f"a reading needs at least two images, got {len(images)}")
    attack = PGD(student, eps=eps, alpha=eps / 4, steps=10)
    generator = torch.Generator(device=images.device).manual_seed(seed)
    natural, robust, own = [], [], []
    with mode(teacher, training=False), mode(student, training=False):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            adv = attack(x, y, attack.draw_noise(tuple(x.shape), generator=generator))
            with torch.no_grad():
                natural.append(teacher(x).float())
                robust.append(teacher(adv).float())
                own.append(student(adv).float())
    nat, adv_logits, student_logits = torch.cat(natural), torch.cat(robust), torch.cat(own)
    if nat.shape != student_logits.shape:
        raise ValueError(
            f"the teacher has {nat.shape[1]} classes, the student {student_logits.shape[1]}; they must be the same"
        )
    right, surprise = predicts(adv_logits, labels), entropy(adv_logits)
    largest = adv_logits.softmax(dim=1).amax(dim=1)
    _, low, high = mean_with_interval((largest.double() - right.double()).tolist())
    return Reading(
        images=len(images),
        classes=nat.shape[1],
        student_right=_share(predicts(student_logits, labels)),
        right_natural=_share(predicts(nat, labels)),
        right=_share(right),
        sure=float(largest.mean()),
        surer=(low, high),
        entropy=float(surprise.mean()),
        entropy_where_wrong=None if bool(right.all()) else float(surprise[~right].mean()),
        on_itself=on_itself,
    )


def _share(flags: torch.Tensor) -> float:
    return float(flags.float().mean())
