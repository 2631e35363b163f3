"""That two contenders compute the same thing: on a few images, from the same weights and random start.

The sign in the attack's arithmetic turns a gradient's last bit into a step of the other direction, so that where the
arithmetic is reordered x̃ is compared pixel by pixel: at least 99.9% must be equal. Where it is not reordered, all are.
What one step's rounding leaves, the next multiplies: ResNet-18 in train mode on 8 images agrees with itself, reordered,
in 100% of the pixels after one step and in 98% after three. Whole attacks are therefore compared in fp64 too.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from workloads import OBJECTIVES, Task, sgd

from iad_ext import attacks
from iad_ext.step import Step

PIXELS = 0.999
# of the largest value; in fp32, what a pixel's rounding leaves in the gradient of an untrained ResNet-18 is 3e-3
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-6}


class NotEqualError(RuntimeError):
    """Two contenders do not compute the same thing: their times cannot be compared."""


def small(task: Task, *, batch: int = 8, steps: int = 3, dtype: torch.dtype = torch.float32) -> Task:
    """The same network on a few images."""
    return Task(task.network, batch, task.size, task.classes, steps=steps, dtype=dtype)


def our_update(
    task: Task,
    objective: str,
    device: torch.device,
    *,
    start: Tensor,
    attack: str | None = None,
    **step: Any,
) -> dict[str, Any]:
    """One update of ours in the task's type; what it computed on the way."""
    build, epoch = OBJECTIVES[objective]
    row = build()
    student, teacher, natural = (task.build(seed, device) for seed in (1, 2, 3))
    data = task.images(device)
    pixels = task.pixels(device)
    row_attack = attacks.build(
        attack or row.attack, student.train(), steps=task.steps, training=row.attack_training
    )
    one = Step(
        objective=row,
        forward=student,
        attack=row_attack,
        teacher=teacher.eval(),
        natural_teacher=natural.eval(),
        **step,
    )
    result = one(pixels, data.labels, epoch=epoch, noise=start)
    result.loss.total.backward()
    return updated(student, float(result.loss.total.detach()), result.adversarial)


def updated(student: nn.Module, loss: float, adversarial: Tensor | None) -> dict[str, Any]:
    """Gradients as they are, then the weights and buffers after one step of SGD."""
    gradients = {
        name: p.grad.detach().clone() for name, p in student.named_parameters() if p.grad is not None
    }
    sgd(student).step()
    return {
        "loss": loss,
        "adversarial": adversarial,
        "gradients": gradients,
        "weights": {name: p.detach().clone() for name, p in student.named_parameters()},
        "buffers": {n: b.clone() for n, b in student.named_buffers() if b.is_floating_point()},
    }


def compared(
    ours: Mapping[str, Any], other: Mapping[str, Any], *, parts: tuple[str, ...] = ("gradients", "buffers")
) -> dict[str, Any]:
    """How far two updates are apart.

    Raises:
        NotEqualError: farther than rounding explains.
    """
    found: dict[str, Any] = {}
    tolerance = TOLERANCE[next(iter(ours[parts[0]].values())).dtype]
    if ours["adversarial"] is not None:
        equal = _near(ours["adversarial"], other["adversarial"])
        found["x̃ equal"] = f"{100 * equal:.2f}%"
        if equal < PIXELS:
            raise NotEqualError(f"x̃ is equal in {100 * equal:.3f}% of its pixels only")
    if "loss" in ours and other.get("loss") is not None:
        found["loss apart"] = float(f"{abs(ours['loss'] - other['loss']) / abs(other['loss']):.1e}")
        if found["loss apart"] > tolerance:
            raise NotEqualError(f"losses are {ours['loss']} and {other['loss']}")
    for part in parts:
        apart = farthest(ours[part], other[part])
        found[f"{part} apart"] = float(f"{apart:.1e}")
        if apart > tolerance:
            raise NotEqualError(f"{part} are {apart:.1e} of their largest value apart")
    return found


def _near(one: Tensor, other: Tensor) -> float:
    """Share of the pixels that are equal up to fp32's rounding of a pixel."""
    return float(((one - other).abs() <= 1e-6).double().mean())


def farthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference over the largest value."""
    if one.keys() != other.keys():
        raise NotEqualError(f"they hold other things: {sorted(one.keys() ^ other.keys())[:3]}")
    largest = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def start_of(task: Task, device: torch.device) -> Tensor:
    """A random start that keeps x̃ within [0, 1], where clipping it (as we do) or not (as released) is the same."""
    pixels = task.pixels(device)
    noise = torch.empty(pixels.shape).uniform_(-8 / 255, 8 / 255, generator=torch.Generator().manual_seed(0))
    return (pixels + noise.to(pixels)).clamp(0, 1) - pixels
