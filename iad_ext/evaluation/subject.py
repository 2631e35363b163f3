"""The network under evaluation: how attacks see it, and how it is left exactly as it was."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from iad_ext.modes import frozen, mode
from iad_ext.types import Flags, Images, Logits

log = logging.getLogger(__name__)

ROUNDING = 1e-4  # of the largest logit: how far folding may move one; it moves them by about 1e-6
BENT = 1e-2  # of the input gradients' norm: how far folding may move them; it flips a ReLU here and there


class Subject(nn.Module):
    """A network as attacks see it: pixels in [0, 1] in, logits out, in the attack's floating type.

    * Pixels are cast to the network's own type on the way in and logits back on the way out, so that an
      attack on a half-precision network still moves in float32.
    * The logits always depend on the pixels for autograd. Where the network cuts the graph, the gradient is
      an exact zero, which the evaluation counts and reports, instead of an error in the middle of an attack.

    Args:
        model: the network; it is not changed.
        channels_last: hand it images in the channels-last memory layout.
    """

    def __init__(self, model: nn.Module, *, channels_last: bool = False) -> None:
        super().__init__()
        tensors = list(chain(model.parameters(), model.buffers()))
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
        self.pixels = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        # torchattacks takes the device of the first parameter; some networks have none
        self.anchor = nn.Parameter(torch.empty(0, device=self.device), requires_grad=False)
        self.model = model

    def forward(self, images: Images) -> Logits:
        """Return the logits of `images`, (batch, classes), in the type of `images`."""
        logits: Tensor = self.model(images.to(self.dtype, memory_format=self.layout)).to(images.dtype)
        if images.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            return logits + 0 * images.flatten(1).sum(1, keepdim=True)
        return logits


@contextmanager
def under_evaluation(model: nn.Module, *, channels_last: bool = False) -> Iterator[Subject]:
    """Give the network in eval mode, frozen, in its own precision; put everything back afterwards.

    Put back, also when the block raises: every submodule's mode, what asks for a gradient, the memory layout
    of the weights, a forward that accelerate patched, and torch's global random state (AutoAttack reseeds
    it). Inside, an autocast or inference mode of the caller is off.

    Raises:
        TypeError: `model` is no `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        hint = "its network, classifier.model" if hasattr(model, "model") else "the network itself"
        raise TypeError(
            f"model: expected a torch.nn.Module that returns logits, got {type(model).__name__}; pass {hint}"
        )
    subject = Subject(model, channels_last=channels_last)
    with ExitStack() as stack:
        stack.enter_context(_random_state_kept())
        stack.enter_context(_forward_without_autocast(model))
        stack.enter_context(mode(subject, training=False))
        stack.enter_context(frozen(subject))
        if channels_last:
            stack.enter_context(_channels_last_weights(model))
        stack.enter_context(torch.autocast(subject.device.type, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield subject


@contextmanager
def all_under_evaluation(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, Subject]]:
    """Give several networks, by name, as `under_evaluation` gives one.

    Raises:
        TypeError: one is no `torch.nn.Module`.
        ValueError: there is none, or they are on different devices.
    """
    if not networks:
        raise ValueError("networks: expected at least one, as {name: network}; got none")
    with ExitStack() as stack:
        subjects = {name: stack.enter_context(under_evaluation(model)) for name, model in networks.items()}
        places = {name: subject.device for name, subject in subjects.items()}
        if len(set(places.values())) > 1:
            shown = ", ".join(f"{name} on {device}" for name, device in places.items())
            raise ValueError(f"networks: expected all on one device; got {shown}; move them with .to(device)")
        yield subjects


def fold_batchnorm(subject: Subject, images: Images) -> str:
    """Give `subject` a copy of its network whose BatchNorms are folded into the convolutions before them.

    In eval mode BatchNorm is an affine map, so the logits are the same but for rounding: an image that lies on
    the boundary to the last bits may fall on its other side. Forward and input gradient no longer pass over the
    feature maps a second time. The caller's network is not touched. A network that cannot be traced, or whose
    folded copy answers otherwise, stays as it is; so does one whose copy has other gradients, since tracing
    loses a `torch.no_grad()` in the forward.

    Args:
        subject: the network, in eval mode; its `model` is replaced.
        images: a batch to compare on.

    Returns:
        `folded`, or why not, for people.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in subject.model.modules()):
        return "not folded: the network has none"
    if subject.dtype not in (torch.float32, torch.float64):
        return f"not folded: the network is in {str(subject.dtype).removeprefix('torch.')}"
    expected = subject(images)
    said = expected.argmax(dim=1, keepdim=True)
    slope = _slope(subject, images, said)
    original = subject.model
    try:
        copy = fuse(original)
        copy.requires_grad_(False)
        if subject.layout == torch.channels_last:
            copy = copy.to(memory_format=torch.channels_last)
        subject.model = copy
        came, bent = subject(images), _slope(subject, images, said)
    except Exception as error:
        subject.model = original
        log.debug("not folded", exc_info=error)
        return f"not folded: the network cannot be traced ({type(error).__name__})"
    if came.shape != expected.shape or not (came - expected).abs().max() <= ROUNDING * expected.abs().max():
        subject.model = original
        return "not folded: the folded copy answers otherwise"
    if not (bent - slope).norm() <= BENT * slope.norm():
        subject.model = original
        return "not folded: the folded copy has other gradients"
    return "folded"


def _slope(subject: Subject, images: Images, classes: Tensor) -> Tensor:
    """The input gradient of each image's logit of the class in `classes`, (batch, 1)."""
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(subject(images).gather(1, classes).sum(), images)
    return gradient


@contextmanager
def _random_state_kept() -> Iterator[None]:
    # CUDA is not started for its random state: an evaluation on the CPU should not cost a CUDA context
    started = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else []):
        yield
    if torch.cuda.is_available() and not started and not torch.cuda.is_initialized():
        # seeding is queued until CUDA starts: queue the caller's seed again behind AutoAttack's
        torch.cuda.manual_seed_all(torch.initial_seed())


@contextmanager
def _forward_without_autocast(model: nn.Module) -> Iterator[None]:
    """Undo, for the block, accelerate's patch that runs a prepared network's forward under autocast."""
    original = vars(model).get("_original_forward")
    if original is None:
        yield
        return
    patched = vars(model)["forward"]
    try:
        vars(model)["forward"] = original
        yield
    finally:
        vars(model)["forward"] = patched


@contextmanager
def _channels_last_weights(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.data) for parameter in model.parameters() if parameter.ndim == 4]
    try:
        for parameter, weights in before:
            parameter.data = weights.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for parameter, weights in before:
            parameter.data = weights


def check_device(subject: Subject, device: torch.device | str | None) -> None:
    """Raise a ValueError if `device` is given and is not where the network is."""
    if device is None:
        return
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device: expected a name such as 'cuda:0' or a torch.device; got {device!r}")
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: torch knows no {device!r}; give for example 'cpu' or 'cuda:0'") from error
    same_index = asked.index is None or asked.index == subject.device.index
    if asked.type != subject.device.type or not same_index:
        raise ValueError(
            f"device: the network is on {subject.device}, {asked} was asked for; "
            f"move it first, with model.to({str(asked)!r}), or leave device out"
        )


def refuse_non_finite(finite: Flags, *, network: str = "model") -> None:
    """Raise a ValueError if the logits of `network` are not finite on some natural image; `finite` is (N,)."""
    if not bool(finite.all()):
        positions = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{network}: expected finite logits; got NaN or infinity on {len(positions)} of {len(finite)} "
            f"natural images, the first at position {positions[0]}; check its weights and that image"
        )


def probe(subject: Subject, images: Images, *, highest: int) -> Logits:
    """Run the first batch once and check what comes out.

    Args:
        subject: the network.
        images: its first batch.
        highest: the highest label of the evaluation.

    Raises:
        TypeError: the network returns something else than one floating tensor.
        ValueError: not (N, C) with C ≥ 2 classes, too few for the labels, or not finite.
    """
    try:
        raw = subject.model(images.to(subject.dtype, memory_format=subject.layout))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"model: it cannot take images of shape {tuple(images.shape)}: {error}; give images of the channels and "
            "the size that it was built for"
        ) from error
    expected = "model: expected logits of shape (N, C)"
    if not isinstance(raw, Tensor) or not raw.is_floating_point():
        came = raw.dtype if isinstance(raw, Tensor) else type(raw).__name__
        raise TypeError(
            f"{expected}, one floating tensor; got {came}; wrap the network in a module that returns them"
        )
    if raw.ndim != 2 or len(raw) != len(images):
        raise ValueError(
            f"{expected} for {len(images)} images; got shape {tuple(raw.shape)}; flatten its output"
        )
    if raw.shape[1] < 2:
        raise ValueError(f"{expected} with C ≥ 2; got {raw.shape[1]} column; return one logit for each class")
    if highest >= raw.shape[1]:
        raise ValueError(
            f"labels: the network has {raw.shape[1]} classes, so 0 … {raw.shape[1] - 1}; got {highest}; "
            f"use a network with at least {highest + 1} classes, or the labels of its data set"
        )
    if not bool(raw.isfinite().all()):
        raise ValueError(
            "model: expected finite logits; got NaN or infinity on natural images; check its weights"
        )
    return raw.to(images.dtype)
