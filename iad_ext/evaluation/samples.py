"""Images and labels of an evaluation: checked before any compute, then handed out batch by batch."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iad_ext.types import Images, Labels

Array: TypeAlias = Tensor | NDArray[Any]

IMAGES = "images: expected (N, C, H, W), floats in [0, 1] or uint8 in 0 … 255"
LABELS = "labels: expected integers of shape (N,), one class index an image"


@dataclass(frozen=True)
class Sample:
    """Checked images and labels, kept where the caller keeps them; only batches travel.

    Attributes:
        images: (N, C, H, W), floats in [0, 1] or uint8.
        labels: (N,) int64, on `device`.
        device: where batches are wanted.
        dtype: the floating type that batches are wanted in.
    """

    images: Tensor
    labels: Labels
    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: slice | Tensor) -> tuple[Images, Labels]:
        """Return the images, as pixels in [0, 1], and the labels at `positions`, on the device."""
        there = positions if isinstance(positions, slice) else positions.to(self.images.device)
        here = positions if isinstance(positions, slice) else positions.to(self.device)
        images = self.images[there].to(self.device)
        pixels = images.to(self.dtype).div(255) if images.dtype == torch.uint8 else images.to(self.dtype)
        return pixels, self.labels[here]


def sample(images: Array, labels: Array, *, device: torch.device, dtype: torch.dtype) -> Sample:
    """Check images and labels and bring them into one form; nothing is copied that is a tensor already.

    Args:
        images: (N, C, H, W) tensor or NumPy array, floats in [0, 1] or uint8 in 0 … 255.
        labels: (N,) integers, tensor or NumPy array.
        device: where batches are wanted.
        dtype: the floating type that batches are wanted in.

    Raises:
        TypeError: neither tensors nor arrays, or of the wrong number type.
        ValueError: wrong shape, no images, pixels outside [0, 1] or not finite, negative labels.
    """
    pixels, classes = _tensor(images, IMAGES), _tensor(labels, LABELS)
    _check_types(pixels, classes)
    _check_shapes(pixels, classes)
    _check_pixels(pixels)
    classes = classes.to(torch.int64)  # torch takes no minimum of uint16
    if (lowest := int(classes.min())) < 0:
        raise ValueError(f"{LABELS} from 0; the lowest is {lowest}; drop or relabel those images")
    return Sample(pixels, classes.to(device), device, dtype)


def _tensor(values: Array, expected: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        # torch shares memory with arrays that are writable, contiguous and of this machine's byte order, and complains
        # about others
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    came = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
    raise TypeError(
        f"{expected}, as a tensor or NumPy array; got {came}; convert it, for example with np.stack"
    )


def _check_types(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{IMAGES}; got {images.dtype}; use images.to(torch.uint8) if the values are 0 … 255")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"{LABELS}; got {labels.dtype}; use labels.long(), or labels.argmax(1) if they are one-hot"
        )


def _check_shapes(images: Tensor, labels: Tensor) -> None:
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = "; add the batch dimension: images[None]" if images.ndim == 3 else ""
        raise ValueError(f"{IMAGES}; got shape {shape}{hint}")
    if len(images) == 0:
        raise ValueError(f"{IMAGES}; got no image at all; check the split or the limit that chose them")
    if 0 in shape:
        raise ValueError(f"{IMAGES}; got shape {shape}, images without pixels")
    if shape[3] in (1, 3) and shape[1] == shape[2] > 4:
        raise ValueError(f"{IMAGES}; got shape {shape}, channels last; use images.permute(0, 3, 1, 2)")
    if labels.ndim != 1:
        hint = "labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else "labels.reshape(-1)"
        raise ValueError(f"{LABELS}; got shape {tuple(labels.shape)}; use {hint}")
    if len(labels) != len(images):
        raise ValueError(f"{LABELS}; got {len(labels)} labels for {len(images)} images")


def _check_pixels(images: Tensor) -> None:
    if images.dtype == torch.uint8:
        return
    low, high = (float(bound) for bound in images.aminmax())  # NaN if any pixel is
    if low >= 0 and high <= 1:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{IMAGES}; got NaN or infinite pixels; find them with ~images.isfinite()")
    if low >= 0 and high <= 255:
        hint = "divide them by 255"
    else:
        hint = "undo the normalisation: attacks run in pixel space, so it belongs inside the network"
    raise ValueError(f"{IMAGES}; got floats in [{low:.6g}, {high:.6g}]; {hint}")
