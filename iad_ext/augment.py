"""Augmentations on the device, as functions of images and of numbers drawn for them.

Each takes uniform numbers in [0, 1), so many an image; who draws them by (seed, epoch) makes an image's augmentation
a function of its position in the epoch, whatever device or process computes it. Nothing here waits for the device, and
nothing loops over images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

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


def colour_shape(images: Images, numbers: Tensor) -> Images:
    """One of eight changes, equally likely, at a strength within IDBH's ranges for its colour-biased policy.

    Source: Li & Spratling (2023), released code: saturation 0.1 … 1.9, brightness and contrast 0.5 … 1.9, sharpness
    0.1 … 1.9, autocontrast, equalize, a shear of ±0.05 … 0.15 rad along one axis, a rotation by ±1 … 10 whole degrees;
    nearest pixel, black beyond the edge. That code works on 8-bit images and rounds after each change; here only
    equalize does.
    """
    kind = _whole(numbers[:, 0], 7)
    uniform, sign = numbers[:, 1], torch.where(numbers[:, 2] < 0.5, -1.0, 1.0)
    wide, narrow = (
        (least + reach * uniform)[:, None, None, None].to(images) for least, reach in ((0.1, 1.8), (0.5, 1.4))
    )
    grey = _grey(images)
    changed = (
        _blend(grey, images, wide),
        _blend(torch.zeros_like(grey), images, narrow),
        _blend(grey.mean(dim=(2, 3), keepdim=True), images, narrow),
        _blend(_smoothed(images), images, wide),
        v2.autocontrast(images),
        v2.equalize(images),
        _moved(images, _shears(sign * (0.05 + 0.1 * uniform), numbers[:, 3] < 0.5)),
        _moved(images, _rotations(sign * (1 + _whole(uniform, 9)))),
    )
    for k, one in enumerate(changed):
        images = torch.where((kind == k)[:, None, None, None], one, images)
    return images


def _blend(anchor: Tensor, images: Images, factor: Tensor) -> Images:
    """Away from `anchor` (towards it below 1)."""
    return (anchor + factor * (images - anchor)).clamp(0, 1)


def _grey(images: Images) -> Tensor:
    """Luma of three channels, (batch, 1, height, width); the mean of another number of them."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    grey: Images = 0.2989 * red + 0.587 * green + 0.114 * blue
    return grey


def _smoothed(images: Images) -> Images:
    """A mean over nine pixels in which the middle one counts five times; pixels at the edge stay."""
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, dtype=images.dtype, device=images.device) / 13
    kernel[:, :, 1, 1] = 5 / 13
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel, groups=channels)
    return smooth


def _shears(radians: Tensor, horizontal: Tensor) -> Tensor:
    """Where a pixel of the sheared image comes from: (batch, 2, 2) on (x, y) from the image's middle."""
    slope, none, one = radians.tan(), torch.zeros_like(radians), torch.ones_like(radians)
    right, down = torch.where(horizontal, slope, none), torch.where(horizontal, none, slope)
    return torch.stack([one, right, down, one], dim=1).reshape(-1, 2, 2)


def _rotations(degrees: Tensor) -> Tensor:
    """The same of an image rotated to the left."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)


def _moved(images: Images, sources: Tensor) -> Images:
    """Each pixel from the nearest one to where its image's matrix says, black beyond the edge."""
    height, width = images.shape[2:]
    down, right = (torch.arange(size, device=images.device) - (size - 1) / 2 for size in (height, width))
    x, y = torch.meshgrid(right, down, indexing="xy")
    places = torch.stack([x, y], dim=-1).to(images) @ sources.to(images).mT[:, None]
    places = torch.stack([places[..., 0] * (2 / width), places[..., 1] * (2 / height)], dim=-1)
    return F.grid_sample(images, places, mode="nearest", padding_mode="zeros", align_corners=False)


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
    return erase(colour_shape(cropshift(images, numbers[:, :6]), numbers[:, 6:10]), numbers[:, 10:15])


AUGMENTATIONS = {
    "cropshift": Augmentation("cropshift", 6, cropshift),
    "idbh_weak": Augmentation("idbh_weak", 15, _idbh_weak),
}
"""By name; both go with a horizontal flip and without a random crop."""

CUTMIX_NUMBERS = 4


def cutmix(images: Images, others: Images, numbers: Tensor, *, probability: float) -> Images:
    """CutMix (Yun et al. 2019) with labels that stay integers: a rectangle of another image in some of the images.

    The rectangle has the image's ratio of sides, 0 to 1/2 of its area and lies inside it, so that the label of what it
    is put into stays that of the larger part. Other than there: Yun et al. cut it off at the edge, let it cover up to
    the whole image and mix the labels, which would mean nothing to a gate by the true class.
    """
    height, width = images.shape[2:]
    side = (numbers[:, 1] / 2).sqrt()
    # rounded down: rounded to the nearest, one of 18 rectangles of 8 x 8 pixels would cover more than half
    tall, wide = ((side * size).long().clamp(min=1) for size in (height, width))
    inside = (
        _rectangle(images, tall, wide, numbers[:, 2:4]) & (numbers[:, 0] < probability)[:, None, None, None]
    )
    return torch.where(inside, others, images)
