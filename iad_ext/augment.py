"""Augmentations on the device, as functions of images and of numbers drawn for them.

Each takes uniform numbers in [0, 1), so many an image; who draws them by (seed, epoch) makes an image's augmentation
a function of its position in the epoch, whatever device or process computes it. No host sync, no loop over images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iad_ext.types import Images


@dataclass(frozen=True)
class Augmentation:
    """A change of images in [0, 1], (batch, channels, height, width).

    Attributes:
        name: as settings call it.
        numbers: how many uniform numbers it reads for an image.
        apply: (images, numbers (batch, `numbers`)) -> images of the same shape.
    """

    name: str
    numbers: int
    apply: Callable[[Images, Tensor], Images]


def _whole(uniform: Tensor, largest: Tensor | int) -> Tensor:
    """Integers 0 … largest, equally likely."""
    return (uniform * (largest + 1)).floor().long()


def cropshift(images: Images, numbers: Tensor) -> Images:
    """CropShift: cut out a window, put it down at another place, black around it.

    Source: Li & Spratling (2023). Of a strength 0 … 10 (at 32 pixels; in proportion at other sizes) a random part is
    taken off the width and the rest off the height; where the window is cut and put down is uniform.
    """
    height, width = images.shape[2:]
    strength = _whole(numbers[:, 0], round(10 * min(height, width) / 32))
    off_width = _whole(numbers[:, 1], strength)
    off_height = strength - off_width
    cut_left, cut_top, put_left, put_top = (
        _whole(numbers[:, k], off)
        for k, off in enumerate((off_width, off_height, off_width, off_height), start=2)
    )
    rows, inside_rows = _shifted(height, height - off_height, cut_top, put_top)
    columns, inside_columns = _shifted(width, width - off_width, cut_left, put_left)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def _shifted(size: int, window: Tensor, cut: Tensor, put: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis: where each pixel comes from, and whether it lies in the window, (batch, size) each."""
    places = torch.arange(size, device=window.device)[None]
    inside = (places >= put[:, None]) & (places < (put + window)[:, None])
    return (places - put[:, None] + cut[:, None]).clamp(0, size - 1), inside


def recolour(images: Images, numbers: Tensor) -> Images:
    """Brightness, contrast or saturation by a factor of 0.5 … 1.5, one of the three or none, equally likely.

    Our reading of IDBH's weak colours: the paper's list is longer, and its strengths are those of AutoAugment.
    """
    kind = _whole(numbers[:, 0], 3)[:, None, None, None]
    factor = (0.5 + numbers[:, 1])[:, None, None, None].to(images)
    grey = images.mean(dim=1, keepdim=True)
    anchor = torch.where(kind == 1, grey.mean(dim=(2, 3), keepdim=True), grey)
    anchor = torch.where(kind == 0, torch.zeros_like(anchor), anchor)
    return torch.where(kind == 3, images, (anchor + factor * (images - anchor)).clamp(0, 1))


def erase(images: Images, numbers: Tensor) -> Images:
    """Black out a rectangle of 2% to 33% of half of the images, of a ratio of sides 0.3 … 3.3.

    torchvision's `RandomErasing(p=0.5)`, but for a rectangle that does not fit: it draws another, this cuts it off.
    """
    height, width = images.shape[2:]
    area = (0.02 + 0.31 * numbers[:, 1]) * height * width
    low, high = torch.tensor([0.3, 3.3]).log().tolist()
    ratio = (low + (high - low) * numbers[:, 2]).exp()
    tall = (area * ratio).sqrt().round().clamp(1, height).long()
    wide = (area / ratio).sqrt().round().clamp(1, width).long()
    inside = _rectangle(images, tall, wide, numbers[:, 3:5]) & (numbers[:, 0] < 0.5)[:, None, None, None]
    return images.masked_fill(inside, 0.0)


def _rectangle(images: Images, tall: Tensor, wide: Tensor, numbers: Tensor) -> Tensor:
    """Which pixels lie in a rectangle somewhere in the image, (batch, 1, height, width)."""
    height, width = images.shape[2:]
    _, rows = _shifted(height, tall, torch.zeros_like(tall), _whole(numbers[:, 0], height - tall))
    _, columns = _shifted(width, wide, torch.zeros_like(wide), _whole(numbers[:, 1], width - wide))
    return rows[:, None, :, None] & columns[:, None, None, :]


def _idbh_weak(images: Images, numbers: Tensor) -> Images:
    return erase(recolour(cropshift(images, numbers[:, :6]), numbers[:, 6:8]), numbers[:, 8:13])


AUGMENTATIONS = {
    "cropshift": Augmentation("cropshift", 6, cropshift),
    "idbh_weak": Augmentation("idbh_weak", 13, _idbh_weak),
}
"""By name; both go with a horizontal flip and without a random crop."""

CUTMIX_NUMBERS = 4


def cutmix(images: Images, others: Images, numbers: Tensor, *, probability: float) -> Images:
    """CutMix (Yun et al. 2019) with labels that stay integers: a rectangle of another image in some of the images.

    The rectangle has the image's ratio of sides and 0 to 1/2 of its area, so that the label of what it is put into
    stays that of the larger part (our reading: mixed labels have no meaning to a gate by the true class).
    """
    height, width = images.shape[2:]
    side = (numbers[:, 1] / 2).sqrt()
    tall, wide = ((side * size).round().long().clamp(min=1) for size in (height, width))
    inside = (
        _rectangle(images, tall, wide, numbers[:, 2:4]) & (numbers[:, 0] < probability)[:, None, None, None]
    )
    return torch.where(inside, others, images)
