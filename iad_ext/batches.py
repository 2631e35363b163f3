"""Batches on the device: order, crops and flips as one plan an epoch, and one gather a step."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from iad_ext import augment
from iad_ext.augment import CUTMIX_NUMBERS, Augmentation
from iad_ext.checks import check_number
from iad_ext.data import ImageSet, PixelSet, unit_pixels
from iad_ext.randomness import stream
from iad_ext.types import Images, Labels


def share(n: int, part: int, parts: int) -> tuple[int, int]:
    """First and end of the `part`-th of `parts` near-equal slices of n things."""
    return n * part // parts, n * (part + 1) // parts


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's part of a global batch.

    Attributes:
        images: in [0, 1], augmented, on the data's device, (part, channels, height, width); float32 of an `ImageSet`.
        labels: int64 (part,).
        index: int64 (part,), positions in the data.
        offset: position of the part's first image within the global batch.
        total: size of the global batch, over all processes and accumulated parts.
    """

    images: Images
    labels: Labels
    index: Tensor
    offset: int
    total: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """What happens at each position of an epoch. All on the data's device, (n,)."""

    order: Tensor
    down: Tensor  # the crop's first row in the padded image
    right: Tensor  # its first column
    flip: Tensor
    numbers: Tensor  # (n, …), of the augmentation and CutMix
    partner: Tensor  # the image of the same epoch that CutMix takes its rectangle from


class Batches:
    """Order, crops and flips of every epoch as functions of (seed, epoch) alone.

    Any step can be asked for directly. An image's augmentation belongs to its position in the epoch, so it is
    the same whatever the number of parts. It is that of torchvision's `RandomCrop(size, padding)` and
    `RandomHorizontalFlip(0.5)`: black padding on all sides, every offset 0 … 2 · padding equally likely, then
    a mirror image with probability 0.5.

    Args:
        data: the images, on the device to train on; with padding, a padded copy of them is kept there.
        batch_size: images in a global batch, ≥ 1.
        seed: the run's seed.
        padding: pixels added on each side before the crop; 0 means no crop.
        flip: mirror half of the images.
        shuffle: take the images in a new order every epoch, otherwise as they lie.
        augmentation: what is done to an image after crop and flip.
        cutmix: share of the images that get a rectangle of another, in [0, 1]; see `augment.cutmix`.
        extra: more images of the same size and classes, such as generated ones; `Batch.index` counts them after
            those of `data`.
        extra_share: share of an epoch's images that are theirs, in [0, 1]; an epoch stays as long as `data`. They are
            taken in random order, each once before any is taken twice.
        drop_last: leave out an epoch's last batch when it is smaller than the others.
        channels_last: give images in torch's channels_last memory format.

    Raises:
        ValueError: there is no image, no full batch to keep, or a number is out of range.
    """

    def __init__(
        self,
        data: ImageSet | PixelSet,
        *,
        batch_size: int,
        seed: int,
        padding: int = 0,
        flip: bool = False,
        shuffle: bool = True,
        augmentation: Augmentation | None = None,
        cutmix: float = 0.0,
        extra: ImageSet | PixelSet | None = None,
        extra_share: float = 0.0,
        drop_last: bool = False,
        channels_last: bool = False,
    ) -> None:
        if batch_size < 1 or padding < 0:
            raise ValueError(
                f"need batch_size ≥ 1 and padding ≥ 0; got batch_size={batch_size}, padding={padding}"
            )
        if len(data) == 0 or (drop_last and len(data) < batch_size):
            raise ValueError(
                f"an epoch of {len(data)} images has no batch of {batch_size}; "
                "give more images, a smaller batch_size or drop_last=False"
            )
        check_number("cutmix", cutmix, at_least=0, at_most=1)
        check_number("extra_share", extra_share, at_least=0, at_most=1)
        if extra_share and (extra is None or not len(extra)):
            raise ValueError(f"extra_share={extra_share:g} asks for extra images; give some")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.augmentation, self.cutmix = augmentation, cutmix
        self._of_data, self._of_extra = len(data), 0
        if extra is not None and extra_share:
            self._of_extra = len(extra)
            self.data = data = _joined(data, extra)
        self._from_extra = round(extra_share * self._of_data)
        self.padding, self.flip, self.shuffle, self.drop_last = padding, flip, shuffle, drop_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        images = data.images.contiguous(memory_format=self._format)  # a gather keeps its source's format
        padded = F.pad(images, (padding,) * 4) if padding else images
        height, width = data.images.shape[2:]
        # a view of every crop, so that one gather takes them: (n, channels, offsets, offsets, height, width)
        self._crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        self._planned: tuple[int, _Plan] | None = None

    def __len__(self) -> int:
        full, rest = divmod(self._of_data, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batch(self, epoch: int, step: int, *, part: int = 0, parts: int = 1) -> Batch:
        """Return the `part`-th of `parts` near-equal contiguous slices of the global batch.

        Slices differ by at most one image; one is empty only where the global batch has fewer images than
        `parts`.

        Raises:
            IndexError: the epoch has no such step.
            ValueError: `part` is not in 0 … `parts` − 1, or `epoch` is negative.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"an epoch has steps 0 … {len(self) - 1}; got {step}")
        if not 0 <= part < parts or epoch < 0:
            raise ValueError(
                f"need 0 ≤ part < parts and epoch ≥ 0; got part={part}, parts={parts}, epoch={epoch}"
            )
        begin = step * self.batch_size
        total = min(self.batch_size, self._of_data - begin)
        offset, end = share(total, part, parts)
        here = slice(begin + offset, begin + end)
        plan = self._plan(epoch)
        index = plan.order[here]
        images = self._augmented(index, plan.down[here], plan.right[here], plan.flip[here])
        if self.augmentation is not None:
            images = self.augmentation.apply(images, plan.numbers[here, CUTMIX_NUMBERS:])
        if self.cutmix:
            others = _in_unit(self._crops[plan.partner[here], :, self.padding, self.padding])
            images = augment.cutmix(images, others, plan.numbers[here], probability=self.cutmix)
        return Batch(images, self.data.labels[index], index, offset, total)

    def _augmented(self, index: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Images:
        crops = self._crops[index, :, down, right]
        if self.flip:
            crops = torch.where(flip[:, None, None, None], crops.flip(3), crops)
        return _in_unit(crops.contiguous(memory_format=self._format))

    def _plan(self, epoch: int) -> _Plan:
        """The epoch's plan: drawn on the CPU, so that every device gets the same, and moved once."""
        if self._planned is None or self._planned[0] != epoch:
            n, device = self._of_data, self.data.images.device
            corners = torch.randint(2 * self.padding + 1, (2, n), generator=stream(self.seed, "crop", epoch))
            flip = torch.rand(n, generator=stream(self.seed, "flip", epoch)) < 0.5
            read = CUTMIX_NUMBERS + (self.augmentation.numbers if self.augmentation else 0)
            numbers = torch.rand(n, read, generator=stream(self.seed, "augment", epoch))
            order = self._order(epoch)
            partner = order[torch.randint(n, (n,), generator=stream(self.seed, "cutmix", epoch))]
            drawn = (order, *corners, flip, numbers, partner)
            self._planned = epoch, _Plan(*(tensor.to(device) for tensor in drawn))
        return self._planned[1]

    def _order(self, epoch: int) -> Tensor:
        """Which image stands at each position of the epoch, (n,)."""
        n, generator = self._of_data, stream(self.seed, "order", epoch)
        own = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        if not self._from_extra:
            return own
        generator = stream(self.seed, "extra", epoch)
        rounds = -(-self._from_extra // self._of_extra)
        others = torch.cat([torch.randperm(self._of_extra, generator=generator) for _ in range(rounds)])
        mixed = torch.cat([own[: n - self._from_extra], n + others[: self._from_extra]])
        return mixed[torch.randperm(n, generator=generator)]


def _in_unit(images: Tensor) -> Images:
    return images if images.is_floating_point() else unit_pixels(images)


def _joined(data: ImageSet | PixelSet, extra: ImageSet | PixelSet) -> ImageSet | PixelSet:
    if type(extra) is not type(data) or extra.images.dtype != data.images.dtype:
        raise ValueError(
            f"extra images must be stored as the training images, {data.images.dtype} in an {type(data).__name__}; "
            f"got {extra.images.dtype} in an {type(extra).__name__}"
        )
    if extra.images.shape[1:] != data.images.shape[1:] or extra.num_classes != data.num_classes:
        raise ValueError(
            f"extra images must be as the training images, {tuple(data.images.shape[1:])} of {data.num_classes} "
            f"classes; got {tuple(extra.images.shape[1:])} of {extra.num_classes}"
        )
    extra = extra.to(data.images.device)
    images, labels = torch.cat([data.images, extra.images]), torch.cat([data.labels, extra.labels])
    return replace(data, images=images, labels=labels)
