"""A classifier's module as a network of pixels in [0, 1]: its clip values and preprocessing come before it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from iad_ext import attacks
from iad_ext.modes import mode
from iad_ext.provenance import digest
from iad_ext.types import Images, Logits

FEW = 16  # numbers of an array that are told apart by reading them


class ClipRange(nn.Module):
    """A classifier's `clip_values` as an affine map from pixels in [0, 1].

    Args:
        low: a number, or an array that broadcasts to an image.
        high: the same, above it.
    """

    low: Tensor
    span: Tensor

    def __init__(self, low: Any = 0.0, high: Any = 1.0) -> None:
        super().__init__()
        lower, upper = (torch.from_numpy(np.array(bound, dtype=np.float32)) for bound in (low, high))
        if not bool((lower < upper).all()):
            raise ValueError(f"clip_values must be (lower, upper), got {low} and {high}")
        self.register_buffer("low", lower, persistent=False)
        self.register_buffer("span", upper - lower, persistent=False)
        self._is_unit = bool((lower == 0).all() and (upper == 1).all())

    @classmethod
    def of(cls, classifier: PyTorchClassifier) -> "ClipRange":
        """Read the classifier's clip values."""
        if classifier.clip_values is None:
            raise ValueError(
                "the classifier has no clip_values, so no attack knows the range of a pixel; "
                "pass PyTorchClassifier(clip_values=(0, 1), …)"
            )
        return cls(*classifier.clip_values)

    def as_pixels(self, eps: float | None) -> float:
        """A radius in clip units as a share of the range; 8/255 of it when None."""
        if eps is None:
            return attacks.EPS
        if isinstance(eps, bool) or not isinstance(eps, int | float | np.number):
            raise ValueError(f"eps must be a number, in the units of clip_values; got {eps!r}")
        span = float(self.span.flatten()[0])
        if bool((self.span != span).any()):
            raise ValueError("eps is ambiguous where clip_values differ from pixel to pixel; leave it None")
        if not 0 < float(eps) / span < 1:
            raise ValueError(f"eps is in the units of clip_values, whose range is {span:g}; got {eps}")
        return float(eps) / span

    def checked_pixels(self, x: Tensor, name: str) -> Images:
        """From clip units to [0, 1]; a ValueError where a value is outside the range."""
        pixels = self.to_pixels(x)
        if float(pixels.min()) < -1e-5 or float(pixels.max()) > 1 + 1e-5:
            raise ValueError(
                f"{name} has values in [{float(x.min()):g}, {float(x.max()):g}], outside the classifier's "
                f"clip_values [{float(self.low.min()):g}, {float((self.low + self.span).max()):g}]; "
                "scale the images, or set clip_values"
            )
        return pixels.clamp(0, 1)

    def to_pixels(self, x: Tensor) -> Images:
        """From clip units to [0, 1]."""
        return x if self._is_unit else (x - self.low) / self.span

    def from_pixels(self, x: Images) -> Tensor:
        """From [0, 1] to clip units."""
        return x if self._is_unit else self.low + x * self.span


class PixelModule(nn.Module):
    """A module as a network of pixels in [0, 1]: clip range, preprocessing and a cast to its type come before it.

    Preprocessing is that of fitting in train mode and that of prediction in eval mode, as in ART.

    Args:
        module: returns logits.
        clip: the range that it, or its preprocessing, takes.
        operations: ART's PyTorch preprocessors, applied in this order.
    """

    def __init__(
        self, module: nn.Module, clip: ClipRange | None = None, operations: Iterable[Any] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self.dtype = type_of(module)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.clip = (clip or ClipRange()).to(device)
        self._operations = tuple(operations)

    @classmethod
    def of(cls, classifier: PyTorchClassifier) -> "PixelModule":
        """The classifier's module with what the classifier puts before it."""
        if not classifier.channels_first:
            raise ValueError(
                "expected a classifier of images (channels, height, width), got one with channels_first=False; give it "
                "channels_first=True, such an input_shape, and a module that takes such images"
            )
        operations = [op for op in classifier.preprocessing_operations if not _does_nothing(op)]
        if operations and not classifier.all_framework_preprocessing:
            raise ValueError(
                "the classifier's preprocessing has no gradient: "
                f"{', '.join(type(op).__name__ for op in operations)}; use its PyTorch version"
            )
        return cls(classifier.model, ClipRange.of(classifier), operations)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.clip.low.device

    @property
    def clip_values(self) -> list[Any]:
        """Lower and upper end of the range, as plain data."""
        return [as_plain(self.clip.low), as_plain(self.clip.low + self.clip.span)]

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """What is done to images before the module, as plain data: classes, and their settings as far as they are."""
        return [
            {
                "class": type(operation).__name__,
                "apply_fit": bool(operation.apply_fit),
                "apply_predict": bool(operation.apply_predict),
                **{
                    name: as_plain(value)
                    for name, value in sorted(vars(operation).items())
                    # private ones may change with use; the device has no say
                    if not name.startswith("_") and "device" not in name and as_plain(value) is not None
                },
            }
            for operation in self._operations
        ]

    def forward(self, images: Images) -> Logits:
        """Return logits of pixels in [0, 1]."""
        logits: Logits = self.module(self.prepared(images, fitting=self.training).to(self.dtype))
        return logits

    def prepared(self, images: Images, *, fitting: bool) -> Tensor:
        """What the module is given for `images`."""
        x = self.clip.from_pixels(images)
        for operation in self._operations:
            if operation.apply_fit if fitting else operation.apply_predict:
                x, _ = operation.forward(x, None)
        return x


def type_of(module: nn.Module) -> torch.dtype:
    """The floating type that a module computes in: its parameters'."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def as_plain(value: Any) -> Any:
    """Numbers, words and tuples of them as JSON has them, large arrays by their digest; None for anything else."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        value = torch.as_tensor(np.asarray(value))
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= FEW else digest({"": value})
    # a list may be what an operation notes in passing
    return [as_plain(each) for each in value] if isinstance(value, tuple) else None


def _does_nothing(operation: Any) -> bool:
    """Whether it is ART's default standardisation by mean 0 and standard deviation 1."""
    mean, std = getattr(operation, "mean", None), getattr(operation, "std", None)
    return mean is not None and std is not None and not np.any(mean) and bool(np.all(np.asarray(std) == 1))


def checked_logits(role: str, network: PixelModule, images: Images, classes: int) -> Logits:
    """The network's logits of some images in eval mode; a ValueError if they are none or do not fit."""
    name = role.replace("_", " ")
    with mode(network, training=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            network.prepared(images, fitting=True)  # fails for what mixes labels too
            logits = network(images)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"the {name} cannot take images of shape {tuple(images.shape[1:])}: {error}"
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the {name} must return logits ({len(images)}, {classes}) for {len(images)} images, got {came}"
        )
    if logits.shape[1] != classes:
        raise ValueError(
            f"the {name} has {logits.shape[1]} classes, the classifier nb_classes={classes}; they must agree"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError(f"the {name}'s logits are NaN or infinite; check its weights")
    if bool((logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-2).all()):
        raise ValueError(f"the {name} returns probabilities, not logits; leave out its last softmax")
    return logits
