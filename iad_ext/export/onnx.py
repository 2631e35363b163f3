"""A network as an ONNX graph: pixels in [0, 1] in, logits out, normalisation inside, checked against torch."""

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from iad_ext.backbones import Loading, checked_size, image_shape_of, load_network
from iad_ext.export.record import Record
from iad_ext.names import known_arguments

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest logit: beyond that a graph is another network, not another order of sums


@known_arguments
def to_onnx(
    source: str | os.PathLike[str] | nn.Module | Record,
    path: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    dynamic_batch: bool = True,
    **loading: Unpack[Loading],
) -> float:
    """Write a network as an ONNX file and compare it with torch in onnxruntime.

    The graph's input is `pixels`, (batch, channels, height, width) float32 in [0, 1]; its output `logits`, (batch,
    classes).

    Args:
        source: anything that `load_network` takes, or a `Record`.
        path: the file; its folder is made where it is missing.
        image_size: height and width in pixels, or one number for both; the network's own when None.
        dynamic_batch: take any number of images; else one.
        loading: for a source by name, arguments of `load_network`.

    Returns:
        The largest absolute difference of a logit between onnxruntime and torch, on uniform random images.

    Raises:
        ValueError: a package is missing, torch cannot export the network, or the graph does not compute what it does.
    """
    require_packages()
    size = checked_size(image_size)
    network = source.network if isinstance(source, Record) else load_network(source, **loading)
    network = copy.deepcopy(network).cpu().float().eval()  # a network that is given stays as it is
    channels, *own_size = image_shape_of(network)
    size = size or own_size
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.rand(3, channels, *size, generator=torch.Generator().manual_seed(0))
    example = images[:2] if dynamic_batch else images[:1]  # a batch of one would be taken for a constant
    program = _exported(network, example, dynamic_batch=dynamic_batch)
    program.model.metadata_props["pixels"] = "float32 in [0, 1], channels first; normalisation is inside"
    program.save(path)
    return _difference(network, path, images if dynamic_batch else images[:1])


def require_packages() -> None:
    """Raise a ValueError where an optional package that ONNX needs is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}; install them: pip install 'iad-ext[onnx]'")


def _exported(network: nn.Module, example: torch.Tensor, *, dynamic_batch: bool) -> Any:
    shapes = ({0: torch.export.Dim.DYNAMIC if dynamic_batch else torch.export.Dim.STATIC},)
    try:
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"torch cannot write this network as an ONNX graph: {reason}") from error
    assert program is not None
    return program


def _difference(network: nn.Module, path: Path, images: torch.Tensor) -> float:
    import onnxruntime  # an optional package

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": images.numpy()})
    with torch.inference_mode():
        expected = network(images).numpy()
    difference = float(np.abs(logits - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ValueError(
            f"{path} does not compute what the network does: logits differ by up to {difference:.3g}; report this "
            "network as one that torch exports wrongly"
        )
    return difference
