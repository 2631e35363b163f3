"""Any network as an ART classifier, in one call."""

import os
from collections.abc import Callable, Iterable
from typing import Unpack

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from iad_ext.backbones import Loading, image_shape_of, load_network, num_classes_of
from iad_ext.names import known_arguments

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
        ValueError: clip values that are none, or whatever `load_network` finds wrong.
    """
    low, high = clip_values
    if not low < high:
        raise ValueError(f"clip_values must be (lower, upper), got {clip_values}")
    network = load_network(source, **loading)
    channels, *own_size = image_shape_of(network)
    size = [image_size, image_size] if isinstance(image_size, int) else list(image_size or own_size)
    return PyTorchClassifier(
        network,
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=optimizer(network.parameters()) if optimizer is not None else None,
        input_shape=(channels, *size),
        nb_classes=num_classes_of(network),
        clip_values=(low, high),
        # the network takes pixels in [0, 1]
        preprocessing=None if (low, high) == (0, 1) else (low, high - low),
        device_type=device or ("gpu" if torch.cuda.is_available() else "cpu"),
    )
