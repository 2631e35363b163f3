"""Weights from files that others wrote: read without running their code, tidied, checked, put into a network.

A checkpoint is read in three steps: `read_state` gives a flat dictionary of finite tensors whatever the file
wraps them in, `load_state` puts it into a network or says what does not fit, and `fitting` names the networks
of this package that it would fit.
"""

import codecs
import contextlib
import io
import logging
import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from iad_ext.backbones.cifar import (
    CifarMobileNetV2,
    CifarPreActResNet,
    CifarResNet,
    CifarWideResNet,
    PixelNetwork,
)
from iad_ext.names import unknown

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

# where training scripts put the weights inside a checkpoint, most telling first
ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "student",
    "ema",
    "state_dict_ema",
    "model_ema",
)
# what wrappers (DataParallel, torch.compile, ARD's and IAD's AttackPGD, nn.Sequential(normalisation, network)) put
# before every name
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "basic_net.", "1.")
# what weights are made of; anything else (quantised, sparse, eight-bit floats) is not a network's as it stands
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
# how networks that normalise inside call the buffers: RobustBench's say mu and sigma, or mean and std in a layer
# `normalize` before the network; MadryLab's robustness says new_mean and new_std in `normalizer`
NORMALISATIONS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
NORMALISERS = ("", "normalize.", "normalizer.", "0.")
# a second copy of the network, which robustness keeps to attack it
COPIES = ("attacker.",)


def read_state(path: Path, *, key: str | None = None) -> State:
    """Return the tensors of a checkpoint file by their plain names, on the CPU.

    Args:
        path: a `.safetensors` file; any other is read as PyTorch's format, weights only: no pickled code ever
            runs.
        key: the entry that holds the weights, where a checkpoint has several; by default the first of
            `ENTRIES`.

    Raises:
        ValueError: the file is broken or lies about its size, holds more than weights, no weights, or NaN or
            infinite ones.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    try:
        state = _without_wrappers(_find_state(content, path, key))
    except RecursionError:
        raise ValueError(f"found no weights in {path}: its entries are nested without end") from None
    _refuse_unreal(state, path)
    refuse_non_finite(state, str(path))
    return state


def read_safetensors(path: Path) -> State:
    """Return a safetensors file's tensors; a broken file, a header that lies included, is a ValueError."""
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(
            f"expected a safetensors file, but {path} is broken or cut short ({error}); copy or save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    _refuse_bomb(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is no checkpoint; the error below says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own text also tells how to run the code after all
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else "it does not begin as a checkpoint does"
        raise ValueError(
            f"refused to load {path}: it is no checkpoint, or holds pickled objects besides tensors, which "
            f"could run any code ({reason}); where it came from, save the weights alone: "
            "torch.save(network.state_dict(), file), or safetensors"
        ) from error
    except Exception as error:  # a broken file can raise anything
        raise ValueError(
            f"expected a PyTorch checkpoint, but {path} cannot be read ({error}); copy it again"
        ) from error


def _refuse_bomb(path: Path) -> None:
    """Refuse a file that is small to hold and huge to read, before any of it is unpacked or unpickled."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as PyTorch, too, tells
    if not is_zip:
        if path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _refuse_growing(content, path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_inflating(archive.infolist(), path)
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    _refuse_growing(archive.read(name), path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"expected a PyTorch checkpoint, but {path} cannot be read ({error}); copy it again"
        ) from error


def _refuse_inflating(entries: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuse entries that unpack to more than the file: PyTorch compresses nothing."""
    size, declared = path.stat().st_size, sum(entry.file_size for entry in entries)
    packed = [
        entry.filename for entry in entries if entry.compress_type or entry.compress_size != entry.file_size
    ]
    if packed or declared > size:
        raise ValueError(
            f"refused to load {path}: its {size} bytes unpack to {declared}, and PyTorch writes no compressed files"
            f"{f' ({_few(packed)})' if packed else ''}; save the weights again with torch.save, or as safetensors"
        )


def _refuse_growing(content: bytes | mmap.mmap, path: Path) -> None:
    """Refuse a pickle that encodes bytes as text again and again.

    Weights-only reading allows the function that pickled bytes need, with any codec. In hexadecimal bytes double: a
    kilobyte of such calls fills all memory.
    """
    if content.find(b"_codecs") < 0:
        return
    stream: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    texts: set[str] = set()
    # what is no pickle ends the search; torch says what is wrong with the file, if anything is
    with contextlib.suppress(Exception):
        for _ in range(5):  # a file of the format before 1.6 begins with so many pickles
            texts.update(
                argument for _, argument, _ in pickletools.genops(stream) if isinstance(argument, str)
            )
    growing = sorted(filter(_encodes_bytes, texts))
    if growing:
        raise ValueError(
            f"refused to load {path}: it holds bytes that grow while they are read ({_few(growing)}); save the weights "
            "alone: torch.save(network.state_dict(), file), or safetensors"
        )


def _encodes_bytes(codec: str) -> bool:
    """Whether `codec` is one of those from bytes to bytes, under any of its names."""
    try:
        return not codecs.lookup(codec)._is_text_encoding
    except (LookupError, ValueError):
        return False


def _refuse_unreal(state: State, path: Path) -> None:
    """Refuse tensors that are no plain numbers, or claim more of them than the file can hold.

    A tensor with strides of 0, or one that the file makes without filling it, costs nothing to load and all of
    the memory to look at.
    """
    strange = [
        f"{name} ({tensor.dtype}, {tensor.layout}, {tensor.device})"
        for name, tensor in state.items()
        if tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.dtype not in FLOATS + INTEGERS
    ]
    if strange:
        raise ValueError(f"expected plain dense weights in {path}, got {_few(strange)}; save them as float32")
    size = path.stat().st_size
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()
    }
    claims = [
        f"{name} {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ]
    if claims or sum(storages.values()) > size:
        raise ValueError(
            f"refused to load {path}: its tensors claim more than its {size} bytes hold"
            f"{f' ({_few(claims)})' if claims else ''}; save the weights again as contiguous tensors"
        )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _find_state(content: Any, path: Path, key: str | None) -> State:
    """Follow `key`, or the known entries, down to a dictionary of tensors only."""
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            entries = content if isinstance(content, Mapping) else ()
            raise ValueError(f"{path}: {unknown('entry', key, map(str, entries))}")
        return _find_state(content[key], path, None)
    if _is_state(content):
        return dict(content)
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a dictionary of tensors in {path}, got {type(content).__name__}")
    holding = [entry for entry in ENTRIES if isinstance(content.get(entry), Mapping)]
    holding = holding or [str(entry) for entry, value in content.items() if _is_state(value)][:1]
    if not holding:
        raise ValueError(
            f"found no weights in {path}; its entries are {_few(map(str, content))}; "
            "name the one that holds them, key=…"
        )
    if len(holding) > 1:
        logger.warning("%s holds %s; took %r, choose with key=…", path, " and ".join(holding), holding[0])
    return _find_state(content[holding[0]], path, None)


def _without_wrappers(state: State) -> State:
    """Drop the prefixes that every name has, and what the TRADES code builds and never uses."""
    normalisation: State = {}
    while True:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(COPIES)}
        normalisation |= _pop_normalisation(state)
        prefix = _shared_prefix(state)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("sub_block1.")}
    return state | normalisation


def _pop_normalisation(state: State) -> State:
    """Take the normalisation that stands beside or before the network, by its plain names; none if there is none."""
    for before in NORMALISERS:
        for pair in NORMALISATIONS:
            if all(before + name in state for name in pair):
                return {name: state.pop(before + name) for name in pair}
    return {}


def _shared_prefix(state: State) -> str | None:
    return next(
        (prefix for prefix in PREFIXES if state and all(name.startswith(prefix) for name in state)), None
    )


def take_normalisation(state: State) -> dict[str, list[float]]:
    """Take the normalisation out of the weights, where one is among them, as `mean` and `std`."""
    for mean, std in NORMALISATIONS:
        if mean in state and std in state:
            return {"mean": state.pop(mean).flatten().tolist(), "std": state.pop(std).flatten().tolist()}
    return {}


def refuse_non_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError where weights are NaN or infinite."""
    bad = [
        name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if bad:
        raise ValueError(
            f"expected finite weights, but {where} has NaN or infinity in {_few(bad)}; use another checkpoint"
        )


def classes_of(state: Mapping[str, Tensor], classifier: str) -> int | None:
    """Return the number of classes of a state dict whose last layer is called `classifier`, or None."""
    weight = state.get(f"{classifier}.weight")
    return None if weight is None or weight.ndim < 2 else weight.shape[0]


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, where: str, called: str) -> None:
    """Copy `state` into `network`; every parameter must be there, with its shape, and nothing else.

    BatchNorm's `num_batches_tracked`, which old checkpoints lack, may be missing: inference does not read it.

    Args:
        network: changed in place.
        state: tensors by name.
        where: the file, for the message.
        called: the network, for the message.

    Raises:
        ValueError: `state` does not fit, or is not finite in the network's own type.
    """
    refuse_misfit(network, state, where=where, called=called)
    network.load_state_dict(dict(state), strict=False)
    refuse_non_finite(network.state_dict(), where)


def refuse_misfit(network: nn.Module, state: Mapping[str, Tensor], *, where: str, called: str) -> None:
    """Raise a ValueError where `state` is not what `network` holds, by name, shape and kind of number."""
    own = _shapes(network)
    floating = {name: tensor.is_floating_point() for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items() if not _is_counter(name)}
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    reshaped = [
        f"{name}: {given[name]} in the file, {own[name]} in the network"
        for name in own
        if name in given and given[name] != own[name]
    ]
    retyped = [
        f"{name}: {state[name].dtype} in the file"
        for name in own
        if name in given and state[name].is_floating_point() != floating[name]
    ]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": reshaped,
        "of another type": retyped,
    }
    wrong = [f"{len(names)} {what} ({_few(names)})" for what, names in found.items() if names]
    if wrong:
        fits = fitting(state)
        advice = f"it fits {' or '.join(fits)}" if fits else "give the architecture that it was trained with"
        raise ValueError(f"{where} does not fit {called}: {'; '.join(wrong)}; {advice}")


def fitting(state: Mapping[str, Tensor]) -> list[str]:
    """Name the networks of this package that `state` fits exactly, with the arguments that they need."""
    given = {name: tuple(tensor.shape) for name, tensor in state.items() if not _is_counter(name)}
    return [
        _call(name, classes, model_args)
        for name, kind, classifier, arguments, model_args in _candidates(state)
        if (classes := classes_of(state, classifier)) is not None
        and given == _shapes(_on_meta(kind, classes, arguments | model_args))
    ]


def _candidates(
    state: Mapping[str, Tensor],
) -> Iterator[tuple[str, type[PixelNetwork], str, dict[str, Any], dict[str, Any]]]:
    """Registered name, class, last layer, arguments that the name implies, arguments to be given with it."""
    small = {"base_width": 16, "shortcut": "pad"}
    for name, arguments in (
        ("cifar_resnet8", {"blocks": (1, 1, 1), **small}),
        ("cifar_resnet8_s2", {"blocks": (1, 1, 1), "base_width": 32, "stem_stride": 2}),
        ("cifar_resnet18", {}),
        ("cifar_resnet20", {"blocks": (3, 3, 3), **small}),
    ):
        yield name, CifarResNet, "linear", arguments, {}
        if "pad" in arguments.values():
            yield name, CifarResNet, "linear", arguments, {"shortcut": "conv"}
    yield "cifar_preact_resnet18", CifarPreActResNet, "linear", {}, {}
    yield "cifar_preact_resnet18", CifarPreActResNet, "linear", {}, {"final_norm": False}
    yield "cifar_mobilenetv2", CifarMobileNetV2, "linear", {}, {}
    blocks = {name.split(".")[2] for name in state if name.startswith("block1.layer.")}
    last = state.get("fc.weight")
    if blocks and last is not None and last.ndim == 2 and last.shape[1] >= 64:
        size = {"depth": 6 * len(blocks) + 4, "width": last.shape[1] // 64}
        yield "cifar_wrn34_10", CifarWideResNet, "fc", {}, {} if size == {"depth": 34, "width": 10} else size


def _call(name: str, classes: int, model_args: Mapping[str, Any]) -> str:
    rest = f", model_args={dict(model_args)}" if model_args else ""
    return f"architecture={name!r}, num_classes={classes}{rest}"


def _on_meta(kind: type[PixelNetwork], classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return kind(num_classes=classes, **arguments)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if not _is_counter(name)
    }


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
