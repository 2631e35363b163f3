"""Batches from arrays in memory and from ART's data generators, checked and in pixel space."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.data_generators import DataGenerator
from numpy.typing import NDArray

from iad_ext.augment import AUGMENTATIONS
from iad_ext.batches import Batches, share
from iad_ext.checks import check_flag, check_name
from iad_ext.data import PixelSet
from iad_ext.names import unknown
from iad_ext.processes import from_main
from iad_ext.types import Images, Labels

CROP = "crop"  # the augmentation that needs no other: a random crop after padding, none without


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
    """Images in memory as `iad_ext.batches.Batches`, given on the device to train on.

    Args:
        data: the images, on the CPU.
        batch_size: images in a global batch, ≥ 1.
        seed: of order and augmentation, with the epoch.
        device: to train on.
        padding: as for `Batches`, like the ones below.
        flip: mirror half of the images.
        augment: `crop`, or the name of an augmentation in place of the random crop.
        cutmix: share of the images that get a rectangle of another.
        extra: more images, of which `extra_share` says how many an epoch takes.
        extra_share: share of an epoch's images that are theirs.

    Raises:
        ValueError: a name is unknown, a number out of range, or two of them contradict each other.
    """

    def __init__(
        self,
        data: PixelSet,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        padding: int = 0,
        flip: bool = False,
        augment: str = CROP,
        cutmix: float = 0.0,
        extra: PixelSet | None = None,
        extra_share: float = 0.0,
    ) -> None:
        check_flag("flip", flip)
        check_name("augment", augment)
        if augment not in (CROP, *AUGMENTATIONS):
            raise ValueError(unknown("augmentation", augment, (CROP, *AUGMENTATIONS)))
        if padding and augment != CROP:
            raise ValueError(f"augment={augment!r} is in place of the random crop; leave padding=0")
        if (extra is None) != (extra_share == 0):
            raise ValueError(
                "extra_data are the images and extra_share says how many are theirs: give both, or neither"
            )
        # on the device once, unless they would crowd out the training
        needed = data.images.nbytes + (extra.images.nbytes if extra is not None else 0)
        needed *= 2 if padding or extra is not None else 1  # a padded copy, or both sets as one
        stay = device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] / 4
        home = data.images.device if stay else device
        self._device = device
        self._batches = Batches(
            data.to(home),
            batch_size=batch_size,
            seed=seed,
            padding=padding,
            flip=flip,
            augmentation=AUGMENTATIONS.get(augment),
            cutmix=cutmix,
            extra=extra,
            extra_share=extra_share,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, step: int, *, part: int = 0, parts: int = 1) -> Part:
        """Return a process's part of a step's batch."""
        found = self._batches.batch(epoch, step, part=part, parts=parts)
        return Part(found.images.to(self._device), found.labels.to(self._device), found.offset, found.total)


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
