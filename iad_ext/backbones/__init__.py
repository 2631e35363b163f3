"""Networks: those of the CIFAR and Tiny-ImageNet literature, registered in timm, and all of timm's own.

Importing this registers the former, so that `timm.create_model("cifar_resnet18", num_classes=10)` works.
"""

from iad_ext.backbones.networks import (
    Loading,
    PixelSpace,
    architecture_of,
    checked_size,
    create_network,
    hub_source,
    image_shape_of,
    load_network,
    network_digest,
    num_classes_of,
    save_network,
    saved_metadata,
)

__all__ = [
    "Loading",
    "PixelSpace",
    "architecture_of",
    "checked_size",
    "create_network",
    "hub_source",
    "image_shape_of",
    "load_network",
    "network_digest",
    "num_classes_of",
    "save_network",
    "saved_metadata",
]
