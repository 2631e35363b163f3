"""The step that the paper's authors released, re-stated in our own words, with all that it does.

Source: github.com/ZFancy/IAD, IAD-I.py and IAD-II.py. In fp32, NCHW; the student in train mode throughout; the random
start is not clipped before the first gradient; the trust of each image is found in a loop that reads two numbers back
from the device an image; a cross-entropy of weight zero is differentiated all the same; the loss is read back twice.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from harness import Contender
from torch import Tensor, nn
from workloads import OBJECTIVES, STEPS, Task, sgd

EPS, ALPHA, BETA = 8 / 255, 2 / 255, 0.1


def attacked(
    student: nn.Module, images: Tensor, labels: Tensor, start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """PGD on summed cross-entropy from a start outside of [0, 1]; the student's logits on x̃, and x̃."""
    adversarial = images.detach() + start
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = F.cross_entropy(student(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [adversarial])
        adversarial = adversarial.detach() + ALPHA * torch.sign(gradient.detach())
        adversarial = torch.min(torch.max(adversarial, images - EPS), images + EPS)
        adversarial = torch.clamp(adversarial, 0.0, 1.0)
    return student(adversarial), adversarial


def trusted(guide: Tensor, labels: Tensor) -> Tensor:
    """α of each image, image by image; the softmax of the whole batch is computed anew for each."""
    alpha = torch.ones(len(labels), device=guide.device)
    for k in range(len(labels)):
        probability = F.softmax(guide, dim=1)[k][labels[k].item()]
        alpha[k] = probability.pow(BETA).item()
    return alpha


def divergence(student: Tensor, target: Tensor) -> Tensor:
    """KL(target → student) of each image."""
    found = F.kl_div(F.log_softmax(student, dim=1), F.softmax(target, dim=1), reduction="none")
    return found.sum(dim=1)


class Released:
    """IAD-I or IAD-II as released, before (`epoch` 0) and after warm-up."""

    def __init__(self, task: Task, objective: str, device: torch.device) -> None:
        if objective.removesuffix(" in warm-up") not in ("IAD-I", "IAD-II"):
            raise ValueError(f"no step of {objective} was released; there are IAD-I and IAD-II")
        self.task, self.second = task, objective.startswith("IAD-II")
        self.introspective = not objective.endswith("in warm-up")
        self.student = task.build(1, device).train()
        self.teacher = task.build(2, device).eval().requires_grad_(False)
        self.natural_teacher = task.build(3, device).eval().requires_grad_(False)
        self.optimizer = sgd(self.student)
        data = task.images(device)
        self.images, self.labels = task.pixels(device), data.labels
        self.steps = task.steps
        self.start: Tensor | None = None
        self.adversarial = self.images

    def step(self) -> None:
        """One update; cuDNN searches for kernels as the released script has it."""
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32
        ):
            self.optimizer.zero_grad()
            loss = self.loss(self.images, self.labels)
            loss.backward()
            self.optimizer.step()
        self.total = loss.item()
        self.shown = str(loss.item())

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The attack, the passes in the released order, the loss."""
        start = torch.zeros_like(images).uniform_(-EPS, EPS) if self.start is None else self.start
        return (self._second if self.second else self._first)(images, labels, start)

    def _first(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        of_natural = self.teacher(images)
        outputs, self.adversarial = attacked(self.student, images, labels, start, self.steps)
        self.student(self.adversarial).detach()  # nothing reads it
        guide = self.teacher(self.adversarial)
        n = len(outputs)
        loss = (1 / n) * divergence(outputs, of_natural).sum()
        if self.introspective:
            alpha = trusted(guide, labels)
            own = divergence(outputs, self.student(images)).mul(1 - alpha)
            loss = loss + (1 / n) * own.sum()
        return loss + 0.0 * F.cross_entropy(self.student(images), labels)

    def _second(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        outputs, self.adversarial = attacked(self.student, images, labels, start, self.steps)
        of_teacher = self.teacher(self.adversarial)
        of_natural_teacher = self.natural_teacher(self.adversarial)
        guide = self.teacher(self.adversarial)  # the same again
        n = len(outputs)
        guided = divergence(outputs, of_teacher)
        own: Tensor | float = 0.0
        if self.introspective:
            alpha = trusted(guide, labels)
            guided = guided.mul(alpha)
            own = (1 / n) * divergence(outputs, self.student(images)).mul(1 - alpha).sum()
        return (
            0.25 * F.cross_entropy(outputs, labels)
            + 0.5 * ((1 / n) * guided.sum() + own)
            + 0.25 * (1 / n) * divergence(outputs, of_natural_teacher).sum()
        )

    def warm(self) -> None:
        """The same with one attack step."""
        self.steps = 1
        self.step()
        self.steps = self.task.steps

    def contender(self) -> Contender:
        """For a race."""
        return Contender(run=self.step, warm=self.warm)


FORWARDS: dict[str, Callable[[int], int]] = {
    "IAD-I in warm-up": lambda steps: 2 * steps + 9,
    "IAD-I": lambda steps: 2 * steps + 12,
    "IAD-II in warm-up": lambda steps: 2 * steps + 6,
    "IAD-II": lambda steps: 2 * steps + 9,
}
"""Its passes in units of one forward of one image: 32 for IAD-I, 29 in its warm-up."""
assert FORWARDS["IAD-I"](STEPS) == 32
assert FORWARDS.keys() <= OBJECTIVES.keys()
