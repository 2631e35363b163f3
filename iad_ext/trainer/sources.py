"""Batches from arrays in memory and from ART's data generators, checked and in pixel space."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.data_generators import DataGenerator
from numpy.typing import NDArray
from torch import Tensor

from iad_ext.batches import share
from iad_ext.processes import from_main
from iad_ext.randomness import stream
from iad_ext.types import Images, Labels


@dataclass(frozen=True)
class Part:
    """A process's part of a batch; fields as in `iad_ext.batches.Batch`."""

    images: Images
    labels: Labels
    offset: int
    total: int

    @classmethod
    def of(cls, images: Images, labels: Labels, part: int, parts: int, device: torch.device) -> "Part":
        """The `part`-th of `parts` near-equal slices."""
        first, end = share(len(labels), part, parts)
        return cls(images[first:end].to(device), labels[first:end].to(device), first, len(labels))


class ArrayBatches:
    """Images in memory, in an order that is a function of (seed, epoch)."""

    def __init__(
        self, images: Images, labels: Labels, *, batch_size: int, seed: int, device: torch.device
    ) -> None:
        # on the device once, unless they would crowd out the training
        stay = device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / 4
        self._images, self._labels = (images, labels) if stay else (images.to(device), labels.to(device))
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._ordered: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return math.ceil(len(self._labels) / self._batch_size)

    def batch(self, epoch: int, step: int, *, part: int = 0, parts: int = 1) -> Part:
        """Return a process's part of a step's batch."""
        if self._ordered[0] != epoch:
            order = torch.randperm(len(self._labels), generator=stream(self._seed, "order", epoch))
            self._ordered = (epoch, order.to(self._labels.device))
        index = self._ordered[1][step * self._batch_size : (step + 1) * self._batch_size]
        return Part.of(self._images[index], self._labels[index], part, parts, self._device)


class GeneratorBatches:
    """What an ART data generator gives, batch after batch; checked like the arguments of `fit`.

    A place in the run that was asked for last can be asked for again; the next one draws the next batch.
    """

    in_turn = True

    def __init__(
        self,
        generator: DataGenerator,
        *,
        check: Callable[[Any, Any, str, str], tuple[Images, Labels]],
        device: torch.device,
    ) -> None:
        self._generator, self._check, self._device = generator, check, device
        self._place: tuple[int, int] | None = None
        self._drawn: tuple[Images, Labels]

    def __len__(self) -> int:
        return math.ceil(int(self._generator.size) / int(self._generator.batch_size))

    def batch(self, epoch: int, step: int, *, part: int = 0, parts: int = 1) -> Part:
        """Return a process's part of the batch at this place."""
        if self._place != (epoch, step):
            self._place, self._drawn = (epoch, step), self._draw()
        return Part.of(*self._drawn, part, parts, self._device)

    def _draw(self) -> tuple[Images, Labels]:
        drawn = from_main(list(self._generator.get_batch()))
        if len(drawn) != 2:
            raise ValueError(f"the generator must give (images, labels), it gave {len(drawn)} things")
        images, labels = drawn
        return self._check(images, labels, "the generator's x", "the generator's y")


def integer_labels(y: NDArray[Any], n: int, classes: int, x_name: str, y_name: str) -> Labels:
    """Read one-hot, (n,) or (n, 1) labels."""
    one_hot = y.ndim == 2 and y.shape[1] == classes and classes > 1
    if y.dtype.kind not in "fiub" or not (one_hot or y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        raise ValueError(
            f"{y_name} must be numbers, one-hot (n, {classes}), (n,) or (n, 1), got {y.dtype} {y.shape}"
        )
    if len(y) != n:
        raise ValueError(f"{x_name} has {n} images, {y_name} {len(y)} labels")
    if one_hot:
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(f"{y_name} of shape {y.shape} must be one-hot; soft labels are not supported")
        return torch.from_numpy(y.argmax(axis=1))
    y = y.reshape(-1)
    if not (np.isin(y, np.arange(classes))).all():
        raise ValueError(
            f"{y_name} must be whole numbers in 0 … {classes - 1}, got values in [{y.min()}, {y.max()}]"
        )
    return torch.from_numpy(y.astype(np.int64))
