"""Common corruptions of images, after Hendrycks & Dietterich (2019): noise, blur, light and digital traces.

These are our own implementations of the published definitions, with the constants of their CIFAR-10-C, which are those
for images of 32 × 32 pixels. CIFAR-10-C itself is a set of files, made once with other random numbers and other
libraries: an accuracy measured here is no accuracy on CIFAR-10-C and must not be called one. Left out are those that
need pictures of their own or draw a whole scene: glass, motion and zoom blur, snow, frost, fog, elastic, spatter.

Every corruption is a function of the image, its position, the kind, the severity and the seed, the same to the last
bit whatever the batch. Noise is drawn on the CPU, so that every device sees the same; JPEG is coded there too, by
Pillow, as the published code does. As there, a result is cut to whole numbers of 0 … 255.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from iad_ext.checks import check_whole
from iad_ext.names import unknown
from iad_ext.randomness import stream
from iad_ext.types import Images

SEVERITIES = (1, 2, 3, 4, 5)
BLOCK = 256  # images that share one stream of noise, whatever the batch size
SLACK = 1e-4  # of a level: what float32 may lose before a whole number is cut to the one below
Constants: TypeAlias = float | tuple[float, float]


@dataclass(frozen=True)
class Place:
    """What a corruption's random numbers are named by.

    Attributes:
        name: the corruption.
        severity: 1 … 5.
        seed: of the measurement.
        first: position of the batch's first image.
    """

    name: str
    severity: int
    seed: int
    first: int

    def noise(self, draw: Callable[..., Tensor], images: Images) -> Images:
        """Noise in the shape of `images`, drawn for whole blocks of positions."""
        shape = (BLOCK, *images.shape[1:])
        last = self.first + len(images)
        blocks = range(self.first // BLOCK, (last - 1) // BLOCK + 1)
        drawn = [draw(shape, generator=self.stream(index)) for index in blocks]
        start = self.first - blocks[0] * BLOCK
        return torch.cat(drawn)[start : start + len(images)].to(images)

    def stream(self, *rest: int | str) -> torch.Generator:
        """The generator of this corruption for the part called `rest`."""
        return stream(self.seed, "corrupt", self.name, self.severity, *rest)


def gaussian_noise(images: Images, scale: float, place: Place) -> Images:
    """Add normal noise of standard deviation `scale`."""
    return images + scale * place.noise(torch.randn, images)


def shot_noise(images: Images, photons: float, place: Place) -> Images:
    """A Poisson number in place of each pixel's `photons` times its value, over `photons`."""
    rates = images.cpu() * photons
    # how much of a stream one image uses up depends on its pixels, so each has its own
    drawn = [
        torch.poisson(rate, generator=place.stream("image", place.first + k)) for k, rate in enumerate(rates)
    ]
    return torch.stack(drawn).to(images) / photons


def impulse_noise(images: Images, amount: float, place: Place) -> Images:
    """Replace each value with probability `amount` by 0 or 1, as likely the one as the other."""
    draw = place.noise(torch.rand, images)
    return torch.where(draw < amount, (draw < amount / 2).to(images), images)


def speckle_noise(images: Images, scale: float, place: Place) -> Images:
    """Add the image times normal noise of standard deviation `scale`."""
    return images + images * scale * place.noise(torch.randn, images)


def defocus_blur(images: Images, shape: tuple[float, float], place: Place) -> Images:  # noqa: ARG001
    """Correlate with a disc of a radius, smoothed by 3 × 3 Gaussian weights; edges are mirrored."""
    kernel = _disc(*shape)
    reach = kernel.shape[0] // 2
    padded = _padded(images, reach, "reflect")
    height, width = images.shape[2:]
    result = torch.zeros_like(images)
    # shifts and sums instead of a convolution, whose rounding may depend on the batch
    for i, row in enumerate(kernel.tolist()):
        for j, weight in enumerate(row):
            if weight:
                result += weight * padded[:, :, i : i + height, j : j + width]
    return result


def gaussian_blur(images: Images, sigma: float, place: Place) -> Images:  # noqa: ARG001
    """Gaussian weights of standard deviation `sigma` pixels, cut at 4 of them; edges are repeated."""
    weights = _gaussian(sigma, int(4 * sigma + 0.5))
    reach = len(weights) // 2
    height, width = images.shape[2:]
    padded = _padded(images, reach, "replicate")
    rows = sum(weight * padded[:, :, i : i + height] for i, weight in enumerate(weights))
    assert isinstance(rows, Tensor)
    result = sum(weight * rows[:, :, :, j : j + width] for j, weight in enumerate(weights))
    assert isinstance(result, Tensor)
    return result


def brightness(images: Images, more: float, place: Place) -> Images:  # noqa: ARG001
    """Raise the value of HSV, the largest of the three channels, by `more`."""
    value = images.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(0, 1)
    # hue and saturation are ratios to the value; black has none and becomes grey
    return torch.where(value > 0, images * (raised / value), raised)


def contrast(images: Images, share: float, place: Place) -> Images:  # noqa: ARG001
    """Keep a `share` of each channel's distance from its mean over the image."""
    means = images.double().mean(dim=(2, 3), keepdim=True).to(images)
    return (images - means) * share + means


def saturate(images: Images, change: tuple[float, float], place: Place) -> Images:  # noqa: ARG001
    """Take the saturation of HSV times the first of `change`, plus the second. Greys have the hue of red."""
    factor, more = change
    value, lowest = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    spread = value - lowest
    saturation = torch.where(value > 0, spread / value, torch.zeros_like(value))
    raised = (saturation * factor + more).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    # how far each channel lies below the value, as a share of the lowest channel's way: the hue
    below = torch.where(spread > 0, (value - images) / spread, red)
    return value * (1 - raised * below)


def pixelate(images: Images, share: float, place: Place) -> Images:  # noqa: ARG001
    """Shrink to a `share` of height and width and back, with the box filter of Pillow on whole numbers of 0 … 255."""
    height, width = images.shape[2:]
    levels = (images * 255).round()
    levels = _boxed(_boxed(levels, 3, int(width * share)), 2, int(height * share))
    return _boxed(_boxed(levels, 3, width), 2, height) / 255


def jpeg_compression(images: Images, quality: float, place: Place) -> Images:  # noqa: ARG001
    """Code as JPEG of that quality and decode, with Pillow."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for image in pixels:
        held = io.BytesIO()
        PIL.Image.fromarray(image).save(held, "JPEG", quality=int(quality))
        with PIL.Image.open(held) as coded:
            decoded.append(np.asarray(coded))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        apply: the function; its second argument is the severity's constant.
        constants: of severities 1 … 5, those of CIFAR-10-C.
        group: noise, blur, light or digital (light is ours; the paper counts it as weather and digital).
        extra: one of the four that the paper keeps apart, for validation.
    """

    apply: Callable[..., Images]
    constants: tuple[Constants, ...]
    group: str
    extra: bool = False


# constants: github.com/hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py, the function of the same name
CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), "noise"),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50), "noise"),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), "noise"),
    "speckle_noise": Corruption(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), "noise", extra=True),
    "defocus_blur": Corruption(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)), "blur"
    ),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), "blur", extra=True),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3), "light"),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15), "light"),
    "saturate": Corruption(
        saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)), "light", extra=True
    ),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), "digital"),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40), "digital"),
}
NOTE = (
    "our own implementations of the definitions of Hendrycks & Dietterich (2019), with the constants of CIFAR-10-C; "
    "not the CIFAR-10-C images, and not to be called results on them"
)


def corrupt(images: Images, name: str, severity: int, *, seed: int = 0, first: int = 0) -> Images:
    """Return corrupted images, on the device and in the type of `images`.

    Args:
        images: (batch, 3, height, width), pixels in [0, 1].
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) … 5.
        seed: of the noise, ≥ 0.
        first: position of the first image in the whole set, which names its noise.

    Returns:
        Pixels in [0, 1], in whole levels of 1/255.

    Raises:
        ValueError: there is no such corruption or severity, the images are no RGB images, or are too small for it.
    """
    if name not in CORRUPTIONS:
        raise ValueError(unknown("corruption", name, CORRUPTIONS))
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity: expected 1, 2, 3, 4 or 5; got {severity!r}")
    check_whole("seed", seed, at_least=0)
    check_whole("first", first, at_least=0)
    check_corruptible(images)
    if not len(images):
        return images
    kind = CORRUPTIONS[name]
    changed = kind.apply(images, kind.constants[severity - 1], Place(name, severity, seed, first))
    # over a tensor: CUDA multiplies by the rounded reciprocal of a Python number
    return (changed.clamp(0, 1) * 255 + SLACK).floor() / images.new_full((), 255)


def check_corruptible(images: Tensor) -> None:
    """Raise a ValueError unless these are RGB images of at least 8 × 8 pixels."""
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 8:
        raise ValueError(
            "corruptions are defined for RGB images, (N, 3, height, width) of at least 8 × 8 pixels; got "
            f"{tuple(images.shape)}; repeat a grey channel three times"
        )


def protocol(names: Sequence[str], severities: Sequence[int], seed: int) -> dict[str, Any]:
    """What stands beside results: what was done, with which constants, from where."""
    return {
        "corruptions": {
            name: {
                "group": CORRUPTIONS[name].group,
                "extra": CORRUPTIONS[name].extra,
                "constants": {str(s): CORRUPTIONS[name].constants[s - 1] for s in severities},
            }
            for name in names
        },
        "severities": list(severities),
        "seed": seed,
        "source": "https://github.com/hendrycks/robustness/blob/master/ImageNet-C/create_c/make_cifar_c.py",
        "note": NOTE,
    }


def _padded(images: Images, reach: int, edges: str) -> Images:
    return F.pad(images, (reach,) * 4, mode=edges) if reach else images


def _gaussian(sigma: float, reach: int) -> list[float]:
    """Weights at −reach … reach that sum to 1."""
    weights = [math.exp(-(place**2) / (2 * sigma**2)) for place in range(-reach, reach + 1)]
    return [weight / math.fsum(weights) for weight in weights]


@lru_cache(maxsize=8)
def _disc(radius: float, blur: float) -> Tensor:
    """A disc of weights that sum to 1, smoothed by 3 × 3 Gaussian weights; (size, size), centred."""
    reach = int(radius) + 1  # one more for the smoothing
    place = torch.arange(-reach - 1, reach + 2, dtype=torch.float64)
    disc = ((place[:, None] ** 2 + place[None, :] ** 2) <= radius**2).double()
    disc = disc / disc.sum()
    weights = _gaussian(blur, 1)
    size = 2 * reach + 1
    rows = torch.zeros(size, size + 2, dtype=torch.float64)
    for i, weight in enumerate(weights):
        rows += weight * disc[i : i + size]
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for j, weight in enumerate(weights):
        kernel += weight * rows[:, j : j + size]
    return kernel


@lru_cache(maxsize=64)
def _box(before: int, after: int) -> tuple[tuple[int, ...], ...]:
    """Which old places each new one averages when `before` places become `after`, as in Pillow's box filter."""
    scale = before / after
    reach = 0.5 * max(scale, 1.0)
    taken = []
    for new in range(after):
        centre = (new + 0.5) * scale
        low, high = max(0, int(centre - reach + 0.5)), min(before, int(centre + reach + 0.5))
        # Pillow asks each place between for its distance in units of the filter: in (−1/2, 1/2] it counts
        taken.append(
            tuple(old for old in range(low, high) if -0.5 < (old - centre + 0.5) / max(scale, 1.0) <= 0.5)
        )
    return tuple(taken)


def _boxed(levels: Images, dim: int, after: int) -> Images:
    """Box-filter one dimension to `after` places; levels of 0 … 255 are rounded half up, as Pillow does."""
    means = [
        levels.index_select(dim, torch.tensor(old, device=levels.device)).mean(dim, keepdim=True)
        for old in _box(levels.shape[dim], after)
    ]
    return (torch.cat(means, dim) + 0.5).floor()
