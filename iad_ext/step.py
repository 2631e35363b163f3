"""One training step up to its loss: attack the student, run the passes the objective reads, evaluate it.

No optimizer, no logging, no waiting for the device.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from iad_ext import batchnorm
from iad_ext.objectives import ADVERSARIAL_PASSES, PASSES, Loss, Objective, Outputs
from iad_ext.teachers import refuse_student, refuse_training
from iad_ext.types import Images, Labels, Logits

# (images, labels, starting noise, logits of each pass that its `reads` names) -> adversarial images
Attack = Callable[..., Images]
Network = Callable[[Images], Logits]
BnOrder: TypeAlias = Literal["lean", "faithful"]

_LEAN = ("student_adv", "student_nat", "student_mirror")
OF_TEACHER = frozenset({"teacher_nat", "teacher_adv"})
# The student's passes of the authors' released step in their order, by objective and whether it is in warm-up, where
# they are not those that the loss reads: S(x) for a cross-entropy of weight 0, S(x̃) for nothing at all, S(x) twice.
AS_RELEASED = {
    ("ard", False): ("student_adv", "student_nat"),
    ("iad1", True): ("student_adv", "student_adv", "student_nat"),
    ("iad1", False): ("student_adv", "student_adv", "student_nat", "student_nat"),
}
AS_RELEASED |= {("iad1_down", warm): passes for (name, warm), passes in AS_RELEASED.items() if name == "iad1"}


def as_released(objective: Objective, epoch: int) -> tuple[str, ...]:
    """The student's passes of the released step in their order; none where it is not known for this objective."""
    warming_up = objective.warming_up(epoch)
    known = AS_RELEASED.get((objective.name, warming_up), ())
    if not known and warming_up and objective.warmup is not None:
        return AS_RELEASED.get((objective.warmup.name, False), ())  # warm-up is the base itself
    return known


@dataclass(frozen=True)
class Prepared:
    """What a step computes before its student is trained: x̃, if any, and what the teachers say.

    Attributes:
        images: x, (batch, channels, height, width).
        adversarial: x̃, likewise.
        logits: of each pass that has run, by its name.
        stuck: where the attack counts them, the share of its steps in which an image's gradient was zero, (batch,).
    """

    images: Images
    adversarial: Images | None
    logits: dict[str, Logits]
    stuck: Tensor | None = None

    def view(self, name: str) -> Images:
        """The images that a pass reads, by the end of its name: x, x̃, or the mirror image 2x − x̃, not clipped."""
        view = name.rpartition("_")[2]
        if view == "nat":
            return self.images
        assert self.adversarial is not None
        return self.adversarial if view == "adv" else 2 * self.images - self.adversarial


@dataclass(frozen=True)
class StepResult:
    """What a step computed: the loss to differentiate, its logits, the adversarial images if any, see `Prepared`."""

    loss: Loss
    outputs: Outputs
    adversarial: Images | None
    stuck: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step as a function of a batch.

    Attributes:
        objective: says which passes to run and what to make of them.
        forward: the student as it is trained: the network itself, or its distributed wrapper.
        attack: makes x̃ from x on the raw student; None only where no pass reads x̃.
        teacher: T_at in eval mode, or None where no pass reads it.
        natural_teacher: T_st in eval mode, or None likewise.
        average: the moving average of the student's weights in eval mode, or None likewise.
        autocast: entered once around the whole step, so that weights are cast once and not once a pass.
        bn_order: which of the student's passes BatchNorm's running statistics see, after those of the attack. `lean`:
            those that the loss reads, once each, x̃ before x. `faithful`: those of the released step (`AS_RELEASED`), in
            its order and as often; only a pass that the loss does not read at all is run for it, without gradient.
            Loss and gradients are the same in both.

    Raises:
        ValueError: a teacher shares weights with the student, or is in train mode (looked at in every step); the
            faithful order is asked for BatchNorm without a momentum.
    """

    objective: Objective
    forward: Network
    attack: Attack | None = None
    teacher: nn.Module | None = None
    natural_teacher: nn.Module | None = None
    average: nn.Module | None = None
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    bn_order: BnOrder = "lean"

    def __post_init__(self) -> None:
        for role, teacher in self._asked().items():
            if teacher is not None:
                refuse_training(teacher, role)
                if isinstance(self.forward, nn.Module):
                    refuse_student(self.forward, teacher, role)
        self._tracking()

    def _asked(self) -> dict[str, nn.Module | None]:
        """The networks that are asked and not trained, by their passes' beginning."""
        return {"teacher": self.teacher, "natural_teacher": self.natural_teacher, "average": self.average}

    def __call__(
        self,
        images: Images,
        labels: Labels,
        *,
        epoch: int,
        noise: Images | None = None,
        balance: Tensor | None = None,
    ) -> StepResult:
        """Attack, run the passes in `objective.needs(epoch)`, and return the loss.

        Args:
            images: natural images in [0, 1], (batch, channels, height, width).
            labels: true classes, (batch,).
            epoch: counted from 0.
            noise: the attack's starting offset, the shape of `images`; drawn by the attack when None.
            balance: the state of an objective that balances its terms.
        """
        with self.autocast():
            prepared = self.prepare(images, labels, epoch=epoch, noise=noise)
            outputs = self._student_passes(prepared, epoch)
        return self._result(prepared, outputs, labels, epoch, balance)

    def prepare(self, images: Images, labels: Labels, *, epoch: int, noise: Images | None = None) -> Prepared:
        """Attack, and ask the teachers; arguments as for a call."""
        needed = self.objective.needs(epoch)
        with self.autocast():
            prepared = Prepared(images, None, {})
            if needed & ADVERSARIAL_PASSES:
                if self.attack is None:
                    raise ValueError(
                        f"{self.objective.name} reads adversarial images; give the step an attack"
                    )
                # an attack that climbs away from a pass on natural images has it run first, once for both
                reads: frozenset[str] = getattr(self.attack, "reads", frozenset())
                prepared = self._teacher_passes(reads, prepared)
                known = Outputs(**{name: prepared.logits[name] for name in reads})
                if getattr(self.attack, "as_target", False):
                    known = self.objective.with_targets(known, labels, epoch)
                away_from = [known.get(name) for name in sorted(reads)]
                adversarial = self.attack(images, labels, noise, *away_from)
                stuck: Tensor | None = getattr(self.attack, "stuck", None)
                prepared = replace(prepared, adversarial=adversarial, stuck=stuck)
            return self._teacher_passes(needed, prepared)

    def finish(
        self, prepared: Prepared, labels: Labels, *, epoch: int, balance: Tensor | None = None
    ) -> StepResult:
        """Run the student's passes and return the loss; may be called again under other weights."""
        with self.autocast():
            outputs = self._student_passes(prepared, epoch)
        return self._result(prepared, outputs, labels, epoch, balance)

    def with_teacher_passes(self, result: StepResult, images: Images) -> Outputs:
        """The outputs of a step on `images` with T(x) and T(x̃); runs those that the objective did not ask for."""
        known = {name: logits for name in OF_TEACHER if (logits := getattr(result.outputs, name)) is not None}
        prepared = self._teacher_passes(OF_TEACHER, Prepared(images, result.adversarial, known))
        return replace(result.outputs, **prepared.logits)

    def _result(
        self, prepared: Prepared, outputs: Outputs, labels: Labels, epoch: int, balance: Tensor | None
    ) -> StepResult:
        """The loss, outside autocast: in the precision of the logits, which is at least fp32."""
        loss = self.objective(outputs, labels, epoch=epoch, balance=balance)
        return StepResult(loss, outputs, prepared.adversarial, prepared.stuck)

    def _order(self, needed: frozenset[str], epoch: int) -> Counter[str]:
        """The student's passes in their order, each with how often the running statistics see it."""
        lean = Counter(name for name in _LEAN if name in needed)
        if self.bn_order == "lean":
            return lean
        released = Counter(as_released(self.objective, epoch))
        return released + (lean - released)

    def _tracking(self) -> list[nn.modules.batchnorm._BatchNorm]:
        if self.bn_order == "lean" or not isinstance(self.forward, nn.Module):
            return []
        return batchnorm.tracking(self.forward)

    def _student_passes(self, prepared: Prepared, epoch: int) -> Outputs:
        """Run each needed pass once. The student's are never merged: batch statistics would change."""
        needed, logits = self.objective.needs(epoch), dict(prepared.logits)
        layers = self._tracking()
        # x̃ first, as the released code has it; BatchNorm's running statistics remember the order
        for name, times in self._order(needed, epoch).items():
            pixels = prepared.view(name)
            with batchnorm.counted(layers, times):
                if name in needed:
                    logits[name] = _full_precision(self.forward(pixels))
                elif layers:
                    with torch.no_grad():
                        self.forward(pixels)
        return Outputs(**logits)

    def _teacher_passes(self, needed: frozenset[str], prepared: Prepared) -> Prepared:
        """Add each teacher's passes that are needed and not run yet, as one forward, which eval mode allows."""
        logits = dict(prepared.logits)
        for role, network in self._asked().items():
            its_passes = [name for name in PASSES if name.rpartition("_")[0] == role]
            names = [name for name in its_passes if name in needed and name not in logits]
            if names:
                batches = [prepared.view(name) for name in names]
                logits.update(zip(names, _inferred(role, network, batches, names), strict=True))
        return replace(prepared, logits=logits)


def _inferred(role: str, network: nn.Module | None, batches: list[Images], names: list[str]) -> list[Logits]:
    if network is None:
        raise ValueError(f"the objective reads {' and '.join(names)}, but that teacher was not given")
    refuse_training(network, role)
    with torch.inference_mode():
        logits = network(torch.cat(batches) if len(batches) > 1 else batches[0])
    # a copy made outside inference mode can be part of the student's graph; detached, since a teacher's own forward can
    # leave that mode
    return [
        _full_precision(part.detach().clone()) for part in logits.split([len(batch) for batch in batches])
    ]


def _full_precision(logits: Logits) -> Logits:
    """Losses are computed in at least fp32, whatever the passes ran in."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
