"""Any network as an ART classifier, in one call."""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any, Unpack

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from iad_ext.backbones import Loading, checked_size, image_shape_of, load_network, num_classes_of
from iad_ext.names import known_arguments, unknown

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@known_arguments
def as_art_classifier(
    source: str | os.PathLike[str] | nn.Module,
    *,
    clip_values: tuple[float, float] = (0.0, 1.0),
    loss: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: str | None = None,
    **loading: Unpack[Loading],
) -> PyTorchClassifier:
    """Return an ART `PyTorchClassifier` of any network, ready to be attacked, defended or trained.

    Args:
        source: anything that `load_network` takes: a run folder, a checkpoint, a timm name, `hf-hub:OWNER/NAME`.
        clip_values: the range of the images that the classifier will be given; (0, 255) works too.
        loss: takes logits and labels; cross-entropy when None.
        optimizer: makes one from parameters, such as `functools.partial(torch.optim.SGD, lr=0.1)`; only training
            needs it.
        image_size: height and width in pixels, or one number for both; the network's own when None.
        device: `cpu` or `gpu`; a GPU where there is one when None.
        loading: arguments of `load_network` (`architecture`, `num_classes`, `revision` …).

    Raises:
        TypeError: an image size of a wrong type, or as `load_network`.
        ValueError: clip values, an image size or a device that are none, or whatever `load_network` finds wrong.
    """
    low, high = _checked_range(clip_values)
    size = checked_size(image_size)
    if device not in (None, "cpu", "gpu"):
        raise ValueError(unknown("device", str(device), ("cpu", "gpu")))
    network = load_network(source, **loading)
    channels, *own_size = image_shape_of(network)
    return PyTorchClassifier(
        network,
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=optimizer(network.parameters()) if optimizer is not None else None,
        input_shape=(channels, *(size or own_size)),
        nb_classes=num_classes_of(network),
        clip_values=(low, high),
        # the network takes pixels in [0, 1]
        preprocessing=None if (low, high) == (0, 1) else (low, high - low),
        device_type=device or ("gpu" if torch.cuda.is_available() else "cpu"),
    )


def _checked_range(clip_values: Any) -> tuple[Any, Any]:
    """The two ends of a range, the lower one first."""
    ends = tuple(clip_values) if isinstance(clip_values, tuple | list | np.ndarray) else ()
    numbers = all(isinstance(end, int | float | np.number) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
        raise ValueError(
            f"clip_values must be (lower, upper), two finite numbers such as (0, 255), got {clip_values!r}"
        )
    return ends
