"""Networks by name, to and from files. Importing this module registers the CIFAR networks in timm.

Whatever comes from here takes images with pixels in [0, 1] and returns logits. The CIFAR networks do so by
themselves; any other timm network is put into `PixelSpace`, with the normalisation that its weights were
trained with *inside*, so that ε means the same for every network.

    network = create_network("cifar_resnet18", num_classes=10)
    save_network(network, "runs/mine/best", metadata={"epoch": 7})
    teacher = load_network("runs/mine")  # or a folder, a timm name, hf-hub:owner/name
    teacher = load_network("teacher.pt", "cifar_resnet18", 10)  # or anybody's checkpoint

What `save_network` writes is timm's own folder layout: `timm.create_model("local-dir:FOLDER",
pretrained=True)` reads it, and so does the hub.
"""

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

import huggingface_hub
import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import Tensor, nn

from iad_ext.backbones import cifar, foreign
from iad_ext.backbones.cifar import hold_normalisation, normalised
from iad_ext.checks import check_flag, check_mapping, check_name, check_whole
from iad_ext.files import parse_json, read_json, refuse_outside, write_whole
from iad_ext.names import known_arguments, unknown
from iad_ext.provenance import digest
from iad_ext.revisions import refuse_unpinned
from iad_ext.types import Images, Logits

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METADATA = "iad_ext"  # the key of this package's own data, in the configuration and in the weights' header
FOREIGN_WEIGHTS = (WEIGHTS, "pytorch_model.bin", "pytorch_model.pth", "model.pth")
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".t7", ".tar", ".ckpt", ".bin", ".pkl")
HUB = ("hf-hub:", "hf_hub:")
LOCAL = "local-dir:"
MOST_OF_A_NUMBER = (
    2**16
)  # in a configuration's arguments: no network has more classes, channels, pixels or blocks

# what of a timm configuration says where its weights came from; a saved network's come from beside it
_SOURCES = frozenset(
    ["url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "label_offset"]
)
# what timm's create_model takes besides a network's arguments: a configuration that holds one could make it read
# other files than those beside it
_NOT_MODEL_ARGS = frozenset(
    [
        "checkpoint_path",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "cache_dir",
    ]
)


class PixelSpace(nn.Module):
    """A network that expects normalised input, taking pixels in [0, 1].

    Args:
        network: takes (x − mean) / std.
        mean: one number a channel, pixels in [0, 1].
        std: the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        hold_normalisation(self, mean=mean, std=std, channels=len(mean))

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return num_classes_of(self.network)

    def forward(self, x: Images) -> Logits:
        """Normalise, then classify."""
        return self.network(normalised(self, x))  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------- by name


def create_network(
    name: str,
    *,
    num_classes: int,
    image_size: int | Sequence[int] | None = None,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
    **model_args: Any,
) -> nn.Module:
    """Build a classifier of images with pixels in [0, 1].

    Args:
        name: any classifier in timm's registry, with or without a weights' tag (`timm.list_models()`); this
            package's own are `cifar.NAMES`.
        num_classes: number of logits.
        image_size: height and width in pixels, or one number for both. Networks that work at one size only
            (ViTs …) are built for it; the others note it.
        pretrained: start from timm's weights; where they have another number of classes, the last layer is
            new.
        mean: normalisation inside, one number a channel, pixels in [0, 1]. By default none for this package's
            own networks, and for others that of their weights.
        std: goes with `mean`.
        seed: makes the initial weights a function of it and leaves the global random state alone; None draws
            them from the global state.
        model_args: the network's own arguments (`depth=`, `width=`, `drop_rate=` …).

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: no network has that name, or a value is out of range.
    """
    check_flag("pretrained", pretrained)
    _require_known(name, pretrained=pretrained)
    if pretrained:
        _refuse_unpinned_weights(name, require=False)
    check_whole("num_classes", num_classes, at_least=1)
    if seed is not None:
        check_whole("seed", seed, at_least=0)
    for argument, values in (("mean", mean), ("std", std)):
        if values is not None and (isinstance(values, str) or not hasattr(values, "__len__")):
            raise TypeError(f"{argument} must be one number a channel, got {values!r}")
    size = checked_size(image_size)
    if size is not None and _has_fixed_size(name):
        model_args.setdefault("img_size", size)
    own = _architecture(name) in cifar.NAMES
    if own and (mean is not None or std is not None):
        model_args |= {"mean": _plain(mean), "std": _plain(std)}
    with _randomness(seed):
        network = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **model_args)
    _note_model_args(network, {"num_classes": num_classes, **model_args})
    if size is not None:
        network.pretrained_cfg = network.pretrained_cfg | {"input_size": (_channels(network), *size)}
    return network if own else _in_pixel_space(network, mean=mean, std=std)


def checked_size(size: int | Sequence[int] | None) -> list[int] | None:
    """Height and width in pixels; a TypeError or ValueError where an `image_size` is none."""
    if size is None:
        return None
    if isinstance(size, str) or (not isinstance(size, int) and not hasattr(size, "__len__")):
        raise TypeError(f"image_size must be a number of pixels, or (height, width); got {size!r}")
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2:
        raise ValueError(f"image_size must be a number of pixels, or (height, width); got {size!r}")
    for side in sides:
        check_whole("image_size", side, at_least=1)
    return sides


def num_classes_of(network: nn.Module) -> int:
    """Return the number of logits: `network.num_classes`, or else the width of the last linear layer."""
    known = getattr(network, "num_classes", None)
    if isinstance(known, int):
        return known
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"cannot tell how many classes {type(network).__name__} has: expected an attribute "
            "num_classes or a linear layer; set network.num_classes"
        )
    return linear[-1].out_features


def network_digest(network: nn.Module, prefix: str = "") -> str:
    """SHA-256 of a network's weights, and of what it computes with beside them, as its normalisation is.

    Args:
        network: any; the digest of one without buffers outside its state dict is that of its state dict.
        prefix: put before every name, as in `state_dict`.
    """
    buffers = dict(network.named_buffers(prefix=prefix.rstrip(".")))
    state = network.state_dict(prefix=prefix)
    return digest({name: value for name, value in (buffers | state).items() if isinstance(value, Tensor)})


def architecture_of(network: nn.Module) -> str | None:
    """Return the name in timm's registry that `network` was built from; None if it was not."""
    config = getattr(_inner(network), "pretrained_cfg", None)
    return config.get("architecture") if isinstance(config, Mapping) else None


def image_shape_of(network: nn.Module) -> tuple[int, int, int]:
    """Return (channels, height, width) that `network` was made for; 3 × 32 × 32 where it does not say."""
    config = getattr(_inner(network), "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (3, 32, 32))
    return int(channels), int(height), int(width)


def _inner(network: nn.Module) -> nn.Module:
    """The network that timm built, out of `torch.compile`'s wrapper and ours."""
    network = getattr(network, "_orig_mod", network)
    return network.network if isinstance(network, PixelSpace) else network


def _has_fixed_size(name: str) -> bool:
    config = get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def _architecture(name: str) -> str:
    return name.partition(".")[0]


def _require_known(
    name: str,
    *,
    pretrained: bool,
    elsewhere: str = "weights in a folder, a file or on the hub are for load_network",
) -> None:
    check_name("a network", name)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(name):
        near = get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.6)
        message = unknown("network", architecture, {*cifar.NAMES, *near})
        raise ValueError(f"{message} and all of timm.list_models(); {elsewhere}")
    if tag and name not in (tagged := timm.list_models(architecture, include_tags=True)):
        tags = filter(None, (known.partition(".")[2] for known in tagged))
        raise ValueError(unknown(f"weights of {architecture}", tag, tags))
    if pretrained and not is_model_pretrained(name):
        raise ValueError(
            f"timm has no pretrained weights of {name!r}; expected a name of timm.list_pretrained(), a "
            "folder or a checkpoint (create_network without pretrained starts at random)"
        )


@contextlib.contextmanager
def _randomness(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):  # weights are initialised on the CPU
        torch.manual_seed(seed)
        yield


def _channels(network: nn.Module) -> int:
    known = getattr(network, "in_chans", None)
    return known if isinstance(known, int) else int(_config(network)["input_size"][0])


def _config(network: nn.Module) -> dict[str, Any]:
    config: Any = network.pretrained_cfg
    return dict(config)


def _note_model_args(network: nn.Module, model_args: Mapping[str, Any]) -> None:
    """Keep the arguments for `save_network`; later timm does so itself, and notes later changes of size."""
    network._model_args = {**model_args, **getattr(network, "_model_args", {})}  # type: ignore[assignment]


def _in_pixel_space(
    network: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> nn.Module:
    """Put `network` behind `mean` and `std`, by default its configuration's; 0 and 1 leave it as it is."""
    config = _config(network)
    mean = config["mean"] if mean is None else mean
    std = config["std"] if std is None else std
    if all(value == 0 for value in mean) and all(value == 1 for value in std):
        return network
    return PixelSpace(network, mean=mean, std=std)


# -------------------------------------------------------------------------------------------------- to files


def save_network(network: nn.Module, folder: str | os.PathLike[str], *, metadata: Mapping[str, Any]) -> None:
    """Write `network` as a folder that `load_network`, timm and the hub read.

    The weights go to `model.safetensors`, what they belong to into `config.json`: architecture, arguments,
    number of classes, input size, and the normalisation that must come before the weights. Each file appears
    whole or not at all. The metadata stand in both, so that `saved_metadata` always tells of these very
    weights, also where a run was killed between the two.

    Args:
        network: from `create_network` or `load_network`; a bare timm network is taken for what it is, a
            function of pixels in [0, 1].
        folder: made where it is missing; what it held under these names is replaced.
        metadata: JSON values; numbers that are not finite become null.
    """
    folder = Path(folder)
    inner = _inner(network)
    if architecture_of(inner) is None:
        raise TypeError(
            f"expected a network that timm built, got {type(network).__name__}, which nobody could build "
            "again from its name; use create_network, or register it with timm's register_model"
        )
    config = _describe(inner, getattr(network, "_orig_mod", network))
    config[METADATA] = _json(metadata)
    state = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in inner.state_dict().items()
    }
    header = {"format": "pt", METADATA: json.dumps(config[METADATA])}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, _in_order(safetensors.torch.save(state, metadata=header)))
    write_whole(folder / CONFIG, json.dumps(config, indent=2).encode())


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order.

    safetensors writes them in any order, another one every time; the same network is to be the same file.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def saved_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata that `save_network` wrote with the weights in `folder`; else nothing."""
    path = Path(folder) / WEIGHTS
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"expected a safetensors file, but {path} is broken or cut short ({error})"
        ) from error
    try:
        found = parse_json(header.get(METADATA, "{}"))
    except ValueError as error:
        raise ValueError(f"expected JSON as the metadata in {path}, got something else ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object as the metadata in {path}, got {type(found).__name__}")
    return found


def _describe(inner: nn.Module, outer: nn.Module) -> dict[str, Any]:
    """Return timm's configuration of `inner`, with the normalisation that `outer` puts before it."""
    config = _config(inner)
    channels, classes = _channels(inner), num_classes_of(inner)
    described = {key: value for key, value in config.items() if key not in _SOURCES and key != "architecture"}
    described |= {
        "num_classes": classes,
        "input_size": [channels, *config["input_size"][1:]],
        "mean": _numbers(outer.mean) if isinstance(outer, PixelSpace) else [0.0] * channels,
        "std": _numbers(outer.std) if isinstance(outer, PixelSpace) else [1.0] * channels,
    }
    model_args = dict(getattr(inner, "_model_args", {})) | {"num_classes": classes}
    if isinstance(inner, cifar.PixelNetwork):
        model_args["global_pool"] = inner.global_pool.pool_type  # reset_classifier may have changed it
    return {
        "architecture": config["architecture"],
        "num_classes": classes,
        "num_features": getattr(inner, "num_features", None),
        "model_args": _json(model_args),
        "pretrained_cfg": _json(described),
    }


def _numbers(values: Tensor) -> list[float]:
    """The shortest numbers that give `values` back in float32: 0.485, not 0.48500001430511475."""
    return [float(str(value)) for value in values.detach().float().cpu().flatten().numpy()]


def _plain(values: Any) -> Any:
    """A tuple, tensor or array as a list; None as None."""
    return values.tolist() if hasattr(values, "tolist") else None if values is None else list(values)


def _json(value: Any) -> Any:
    """Return `value` in JSON's own types, not-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if hasattr(value, "tolist"):
        return _json(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(
        f"expected JSON values, got {type(value).__name__}: {value!r}; convert it to numbers or text"
    )


# ------------------------------------------------------------------------------------------------ from files


class Loading(TypedDict, total=False):
    """What `load_network` takes besides a source, for functions that pass it on."""

    architecture: str | None
    num_classes: int | None
    revision: str | None
    key: str | None
    model_args: Mapping[str, Any] | None


@known_arguments
def load_network(
    source: str | os.PathLike[str] | nn.Module,
    architecture: str | None = None,
    num_classes: int | None = None,
    *,
    revision: str | None = None,
    require_revision: bool = False,
    key: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a network with its weights, in eval mode on the CPU, for images with pixels in [0, 1].

    No source can run code: pickled objects are refused, only tensors are read. The global random state stays
    as it is.

    Args:
        source: one of
            a network, returned as it is;
            a run's folder, of which `best/` is read, else `last/`;
            a folder in timm's layout, as `save_network` writes it, also as `local-dir:FOLDER`;
            a checkpoint file, `.safetensors` or PyTorch's: nested dictionaries and prefixes are seen through;
            `hf-hub:owner/name` or `hf-hub:owner/name@revision`;
            a timm name, for the weights that timm has. A path that exists goes before a name.
        architecture: what a bare checkpoint was trained with, a timm name; the other sources know it.
        num_classes: number of logits of a bare checkpoint, by default read off its last layer; the other
            sources know it, and it is an error to ask for another.
        revision: a commit, tag or branch on the hub.
        require_revision: refuse what would come from the hub without a full commit, 40 hexadecimal digits; the
            environment variable `IAD_EXT_REQUIRE_REVISION=1` asks for the same. What a branch or tag resolved to
            is told by `hub_source`.
        key: the entry of a checkpoint that holds the weights, where it has several (`"ema"` …).
        model_args: more arguments of a bare checkpoint's network, as for `create_network` (`depth`, `mean`,
            `std` …).

    Raises:
        TypeError: an argument is of the wrong kind, or one that this source does not take.
        ValueError: what is there is no such network, is broken, or was asked for as another.
        FileNotFoundError: nothing is there.
    """
    if isinstance(source, nn.Module):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source: expected a network, a path or a name, got {type(source).__name__}; see help(load_network)"
        )
    for argument, given in (("architecture", architecture), ("revision", revision), ("key", key)):
        if given is not None:
            check_name(argument, given)
    if num_classes is not None:
        check_whole("num_classes", num_classes, at_least=1)
    if model_args is not None:
        check_mapping("model_args", model_args, '{"depth": 20}')
    name = os.fspath(source)
    path = Path(name.removeprefix(LOCAL)).expanduser()
    if not path.exists() and not name.startswith(HUB) and _looks_like_path(source):
        raise FileNotFoundError(_nothing_there(name, path))
    bare = path.is_file() and not (path.name == WEIGHTS and architecture is None and _is_folder(path.parent))
    if (key is not None or model_args) and not bare:
        raise TypeError(f"key and model_args are for bare checkpoint files; {name!r} is none, leave them out")
    if revision is not None and not name.startswith(HUB):
        raise TypeError(
            f"revision is for the hub; {name!r} is not there, leave it out or write hf-hub:owner/name"
        )
    with torch.random.fork_rng(devices=[]):
        if bare:
            network = _from_checkpoint(path, architecture, num_classes, key, dict(model_args or {}))
        elif path.exists():
            network = _from_folder(path.parent if path.is_file() else _weights_folder(path))
        elif name.startswith(HUB):
            network = _from_hub(name, revision, require=require_revision)
        else:
            elsewhere = f"there is no file or folder {path.absolute()} either"
            _require_known(name, pretrained=True, elsewhere=elsewhere)
            _refuse_unpinned_weights(name, require=require_revision)
            network = _in_pixel_space(_with_weights(name))
    if not bare:
        _refuse_another(name, network, architecture, num_classes)
    return network.to("cpu").eval()


def _with_weights(name: str) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
        return network
    except (OSError, HfHubHTTPError) as error:
        raise OSError(
            f"cannot load timm's weights of {name}: {str(error).rstrip('.')}; without network, give a local folder or "
            "a checkpoint"
        ) from error


def _from_checkpoint(
    path: Path, architecture: str | None, num_classes: int | None, key: str | None, model_args: dict[str, Any]
) -> nn.Module:
    state = foreign.read_state(path, key=key)
    inside = foreign.take_normalisation(state)
    if architecture is None:
        fits = foreign.fitting(state)
        advice = f"it fits {' or '.join(fits)}" if fits else "give architecture=… and num_classes=…"
        raise ValueError(
            f"{path} holds weights only: expected the architecture that they belong to; {advice}"
        )
    _require_known(architecture, pretrained=False)
    found = foreign.classes_of(state, _classifier_name(architecture))
    if found is not None and num_classes is not None and found != num_classes:
        raise ValueError(
            f"checkpoint has {found} classes, num_classes={num_classes} was asked for; "
            f"pass num_classes={found} or another file than {path}"
        )
    classes = num_classes if found is None else found
    if classes is None:
        fits = foreign.fitting(state)
        advice = f"; it fits {' or '.join(fits)}" if fits else ""
        raise ValueError(
            f"cannot tell how many classes {path} has as {architecture}: give num_classes=…{advice}"
        )
    if not {"mean", "std"} & model_args.keys():
        model_args |= inside
    network = create_network(architecture, num_classes=classes, **model_args)
    foreign.load_state(
        _inner(network), state, where=str(path), called=f"{architecture} with {classes} classes"
    )
    return network


def _classifier_name(architecture: str) -> str:
    config = get_pretrained_cfg(architecture)
    name = config.classifier if config is not None else None
    return name if isinstance(name, str) else "" if name is None else str(name[0])


def _is_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _weights_folder(path: Path) -> Path:
    """Return the folder in timm's layout that `path` is, or that the run in `path` has."""
    if _is_folder(path):
        return path
    if _is_folder(path / "best"):
        return path / "best"
    if _is_folder(path / "last"):
        logger.warning("%s has no best/ yet; took last/", path)
        return path / "last"
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"expected {CONFIG} in {path}, or a run's best/ or last/, found {inside}; name the checkpoint file "
        "itself if it is one of these"
    )


def _from_folder(folder: Path) -> nn.Module:
    config_file = folder / CONFIG
    refuse_outside(config_file, folder)
    try:
        config = read_json(config_file)
        architecture = config["architecture"]
        described = config.get("pretrained_cfg", config)
        model_args = dict(config.get("model_args", {}))
        model_args.setdefault("num_classes", config.get("num_classes", described.get("num_classes")))
        if not isinstance(architecture, str) or len(architecture) > 200:
            raise TypeError(f"architecture is {str(architecture)[:200]!r}")
        if refused := sorted(model_args.keys() & _NOT_MODEL_ARGS):
            raise ValueError(f"model_args has {', '.join(refused)}")
        _check_numbers(model_args)
        known = {
            name: described[name]
            for name in ("input_size", "mean", "std", "num_classes")
            if described.get(name)
        }
        _check_described(known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected timm's config.json with an architecture, but {config_file} cannot be read as one "
            f"({type(error).__name__}: {error}); save the network again"
        ) from error
    _require_known(architecture, pretrained=False)
    weights = next((folder / name for name in FOREIGN_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"expected {WEIGHTS} beside {config_file}, found none; copy it there")
    refuse_outside(weights, folder)
    state = foreign.read_state(weights)
    called = f"{architecture} of {config_file}"
    try:
        with torch.device(
            "meta"
        ):  # without memory: sizes of the configuration's own choice come after those of the file
            sketch = timm.create_model(architecture, pretrained=False, **model_args)
    except Exception as error:  # a network's own arguments can be wrong in any way
        raise ValueError(
            f"{config_file}: cannot build {architecture} with its model_args ({error})"
        ) from error
    state = _converted(sketch, state)
    foreign.refuse_misfit(sketch, state, where=str(weights), called=called)
    network = timm.create_model(architecture, pretrained=False, **model_args)
    _note_model_args(network, model_args)
    network.pretrained_cfg = network.pretrained_cfg | known
    foreign.load_state(network, state, where=str(weights), called=called)
    return _in_pixel_space(network)


def _check_numbers(value: Any) -> None:
    """Refuse numbers that would make a network larger or deeper than any."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_numbers(item)
    elif isinstance(value, int | float) and not abs(value) <= MOST_OF_A_NUMBER:
        raise ValueError(f"model_args has {value:g}; no network takes more than {MOST_OF_A_NUMBER}")


def _check_described(known: Mapping[str, Any]) -> None:
    """Refuse normalisation and sizes that are no numbers."""
    for name in ("input_size", "mean", "std"):
        values = known.get(name, [])
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise TypeError(f"{name} is {str(values)[:200]}")
    sides = known.get("input_size", [1, 1, 1])
    if len(sides) != 3 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"input_size is {str(sides)[:200]}, not [channels, height, width]")
    if not isinstance(known.get("num_classes", 0), int):
        raise TypeError(f"num_classes is {str(known['num_classes'])[:200]}")


def _converted(network: nn.Module, state: foreign.State) -> foreign.State:
    """`state` under the names of today, where timm renamed a network's layers since the file was written."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None or network.state_dict().keys() == state.keys():
        return state
    try:
        return dict(convert(dict(state), network))
    except Exception:  # written for other weights than these; what does not fit is said by name
        return state


def _from_hub(name: str, revision: str | None, *, require: bool) -> nn.Module:
    """Load the hub's files at one commit, as a folder that nobody vouches for."""
    identifier, at, named = name.partition(":")[2].partition("@")
    if revision is not None and at:
        raise ValueError(f"expected one revision, got {name!r} and revision={revision!r}; leave one out")
    revision = revision or named or None
    if not identifier:
        raise ValueError(f"source: expected hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION, got {name!r}")
    refuse_unpinned(f"hf-hub:{identifier}@COMMIT", revision, address=identifier, require=require)
    config = _download(identifier, CONFIG, revision)
    if config is None:
        raise ValueError(f"cannot load {name}: expected {CONFIG} there, found none")
    # the files lie in …/snapshots/COMMIT; the weights must be of the same commit, also where a branch moves meanwhile
    commit = config.parent.name
    if not any(_download(identifier, weights, commit) for weights in FOREIGN_WEIGHTS):
        raise ValueError(
            f"cannot load {name}: expected one of {', '.join(FOREIGN_WEIGHTS)} there, found none"
        )
    network = _from_folder(config.parent)
    inner = _inner(network)
    inner.pretrained_cfg = inner.pretrained_cfg | {"hf_hub_id": f"{identifier}@{commit}", "source": "hf-hub"}  # type: ignore[operator]
    return network


def _download(identifier: str, file: str, revision: str | None) -> Path | None:
    """The cached copy of a hub's file; None where there is no such file."""
    try:
        return Path(huggingface_hub.hf_hub_download(identifier, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"cannot load hf-hub:{identifier}: {error}; without network, give a local folder"
        ) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"cannot load hf-hub:{identifier}: {error}") from error


def hub_source(network: nn.Module) -> str | None:
    """Return `hf-hub:owner/name@COMMIT` of a network that `load_network` took from the hub; else None."""
    config = getattr(_inner(network), "pretrained_cfg", None) or {}
    return f"hf-hub:{config['hf_hub_id']}" if config.get("source") == "hf-hub" else None


def _refuse_unpinned_weights(name: str, *, require: bool) -> None:
    """Weights by a timm name come from the hub too, from a branch."""
    config = get_pretrained_cfg(name)
    identifier = getattr(config, "hf_hub_id", None) or f"timm/{name}"
    identifier = f"{identifier}{name}" if identifier.endswith("/") else identifier
    refuse_unpinned(f"hf-hub:{identifier}@COMMIT", None, address=identifier, require=require)


def _refuse_another(name: str, network: nn.Module, architecture: str | None, num_classes: int | None) -> None:
    built, classes = architecture_of(network), num_classes_of(network)
    if architecture is not None and _architecture(architecture) != built:
        raise ValueError(f"{name} holds {built}, architecture={architecture!r} was asked for; leave it out")
    if num_classes is not None and num_classes != classes:
        raise ValueError(
            f"{name} has {classes} classes, num_classes={num_classes} was asked for; "
            f"pass num_classes={classes} (create_network(…, pretrained=True) starts from timm's weights "
            "with a new last layer)"
        )


def _looks_like_path(source: str | os.PathLike[str]) -> bool:
    name = os.fspath(source)
    return (
        isinstance(source, os.PathLike)
        or name.startswith((LOCAL, ".", "~"))
        or "/" in name
        or os.sep in name
        or name.endswith(CHECKPOINT_SUFFIXES)
    )


def _nothing_there(name: str, path: Path) -> str:
    hub = f"; for the hub write hf-hub:{name}" if name.count("/") == 1 and name[0] not in "./~" else ""
    return (
        f"expected a run's folder, a saved network or a checkpoint at {path.absolute()}, found nothing{hub}"
    )
