"""The images that a student fares worst on, and those on which its teacher is least to be trusted, to be looked at."""

import json
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import save
from torch import Tensor, nn

from iad_ext.attacks import EPS
from iad_ext.evaluation.measures import BATCH_SIZE, GRADIENT_ATTACKS, starting_noise
from iad_ext.evaluation.samples import Array, sample
from iad_ext.evaluation.subject import under_evaluation
from iad_ext.types import Labels, Logits, PerImage

ATTACK = "pgd20"
IMAGES = 256  # of the test set, looked at from the first on
KEPT = 12


def pick(
    model: nn.Module,
    images: Array,
    labels: Array,
    *,
    teacher: nn.Module | None = None,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    kept: int = KEPT,
    after_batch: Callable[[], object] | None = None,
) -> dict[str, Tensor]:
    """Attack `model` with PGD-20, from the starts of `evaluate`, and keep the images that are worth a look.

    Args:
        model: the student, returns logits (N, C).
        images: as for `evaluate`, (N, C, H, W).
        labels: (N,) integers.
        teacher: T_at, on the student's device; None where there is none.
        eps: radius in pixels of [0, 1].
        seed: of the random starts.
        batch_size: images a pass.
        kept: how many images to keep in each group.
        after_batch: called after every batch; what it raises breaks this off.

    Returns:
        For `worst` (the smallest margins z_y − max z_k of the student on x̃) and, where there is a teacher, for
        `distrusted` (the smallest P_T(x̃|y)), as `GROUP/NAME`:

        * `images`, `adversarial`: uint8 (kept, C, H, W), pixels in 0 … 255,
        * `position`, `label`, `said_natural`, `said_adversarial`: int64 (kept,), the place in `images`, the true class,
          and the student's answers on x and on x̃,
        * `margin`, and `trust` = P_T(x̃|y) where there is a teacher: float32 (kept,).

    Raises:
        TypeError: as `evaluate`.
        ValueError: as `evaluate`.
    """
    parts: list[dict[str, Tensor]] = []
    with under_evaluation(model) as subject:
        data = sample(images, labels, device=subject.device, dtype=subject.pixels)
        attack = GRADIENT_ATTACKS[ATTACK].build(subject, eps)
        starts = starting_noise(attack, ATTACK, seed, tuple(data.images.shape[1:]))
        for first in range(0, len(data), batch_size):
            x, y = data.batch(slice(first, first + batch_size))
            adversarial = attack(x, y, noise=starts(first, first + len(x)))
            logits = subject(adversarial)
            part = {
                "images": _as_bytes(x),
                "adversarial": _as_bytes(adversarial),
                "position": torch.arange(first, first + len(x)),
                "label": y,
                "said_natural": subject(x).argmax(dim=1),
                "said_adversarial": logits.argmax(dim=1),
                "margin": _margin(logits, y).float(),
            }
            if teacher is not None:
                part["trust"] = (
                    teacher(adversarial.float()).softmax(dim=1).gather(1, y[:, None])[:, 0].float()
                )
            parts.append({name: value.cpu() for name, value in part.items()})
            if after_batch is not None:
                after_batch()
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    groups = {"worst": "margin"} | ({"distrusted": "trust"} if teacher is not None else {})
    return {
        f"{group}/{name}": value[found[key].argsort(stable=True)[:kept]].contiguous()
        for group, key in groups.items()
        for name, value in found.items()
    }


def as_file(kept: dict[str, Tensor], *, eps: float, n: int, which: str, classes: Sequence[str]) -> bytes:
    """What `pick` returned as a safetensors file, with what a reader needs beside it."""
    about = {"attack": ATTACK, "eps": eps, "n": n, "network": which, "classes": list(classes)}
    return save(kept, metadata={"about": json.dumps(about)})


def _margin(logits: Logits, labels: Labels) -> PerImage:
    """z_y − max z_k over the other classes: below 0 where the answer is wrong."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
    return own[:, 0] - others


def _as_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
