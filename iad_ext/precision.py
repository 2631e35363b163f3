"""Which arithmetic pays off here: decided by timing the student's own passes, not by the name of the hardware."""

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import nn

from iad_ext.names import unknown

Kind = Literal["fp32", "bf16", "fp16"]
KINDS: tuple[Kind, ...] = ("fp32", "bf16", "fp16")
GAIN = 1.05  # a lower precision must be at least this much faster to be worth its rounding


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a run.

    Attributes:
        kind: `fp32`, or the autocast type of the passes; weights, images, logits and losses stay in fp32.
        channels_last: memory format of weights and images.
        reason: how it was decided, for people.
    """

    kind: Kind
    channels_last: bool
    reason: str

    @property
    def attack_loss_scale(self) -> float:
        """What an attack's loss is multiplied by: under fp16 a batch's mean underflows to a sign of 0."""
        return 2.0**14 if self.kind == "fp16" else 1.0

    @property
    def mixed_precision(self) -> str:
        """What accelerate calls it."""
        return {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[self.kind]


def asked(kind: str, *, reason: str, device: torch.device | None = None) -> Precision:
    """A precision that somebody named. channels_last goes with it: bf16 without is several times slower on a CPU.

    Raises:
        ValueError: there is no such precision, or not on `device`.
    """
    if kind == "fp16" and device is not None and device.type == "cpu":
        raise ValueError("fp16 needs a GPU: on a CPU the passes would quietly run in fp32; take bf16 or auto")
    for known in KINDS:
        if kind == known:
            return Precision(kind=known, channels_last=True, reason=reason)
    raise ValueError(unknown("precision", kind, KINDS))


def probe(
    network: nn.Module, *, image_shape: Sequence[int], device: torch.device, batch_size: int, repeats: int = 3
) -> Precision:
    """Time forward and input gradient, 71% of a training step, in each candidate, interleaved; take the fastest.

    Args:
        network: the student; a copy is timed, it is not touched.
        image_shape: (channels, height, width).
        device: where it will train.
        batch_size: images a pass; two are timed for one, of which BatchNorm has no statistics.
        repeats: timed passes of each candidate after one warm-up; the fastest counts.
    """
    candidates: list[tuple[Kind, bool]] = [("fp32", False), ("fp32", True), ("bf16", True)]
    network = copy.deepcopy(network).to(device).train()
    batch_size = max(batch_size, 2)
    images = torch.rand(batch_size, *image_shape, device=device)
    best = dict.fromkeys(candidates, float("inf"))
    for repeat in range(repeats + 1):
        for kind, channels_last in candidates:
            seconds = _time_pass(network, images, kind, channels_last=channels_last)
            if repeat:
                best[kind, channels_last] = min(best[kind, channels_last], seconds)
    fp32 = min((c for c in candidates if c[0] == "fp32"), key=best.__getitem__)
    fastest = min(candidates, key=best.__getitem__)
    chosen = fastest if best[fastest] * GAIN < best[fp32] else fp32
    rates = ", ".join(
        f"{kind}{' channels_last' if last else ''} {batch_size / best[kind, last]:.0f}"
        for kind, last in candidates
    )
    reason = f"measured on {device.type}: {rates} images a second (forward and input gradient)"
    return Precision(kind=chosen[0], channels_last=chosen[1], reason=reason)


def _time_pass(network: nn.Module, images: torch.Tensor, kind: Kind, *, channels_last: bool) -> float:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=memory_format)
    x = images.contiguous(memory_format=memory_format).requires_grad_(True)
    cast = torch.autocast(images.device.type, torch.bfloat16) if kind == "bf16" else nullcontext()
    with cast:
        wait_for(images.device)
        began = time.perf_counter()
        logits = network(x).float()
        torch.autograd.grad(F.cross_entropy(logits, logits.argmax(dim=1)), x)
        wait_for(images.device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait for the work of the device, to time it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
