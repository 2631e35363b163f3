"""ART's and torchattacks' own attacks as training attacks on a student in pixel space."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from torch import nn

from iad_ext import attacks
from iad_ext.attacks import TorchAttack
from iad_ext.modes import frozen, mode
from iad_ext.step import Attack
from iad_ext.trainer.pixels import PixelModule
from iad_ext.types import Images, Labels


def check_attack(attack: object) -> None:
    """Refuse what is no attack, and attacks that training cannot use."""
    if attack is None:
        return
    if not isinstance(attack, EvasionAttack | TorchAttack):
        raise ValueError(
            f"attack must be an ART EvasionAttack, a torchattacks attack or None, got {type(attack).__name__}"
        )
    if getattr(attack, "targeted", False):
        raise NotImplementedError("training attacks are untargeted; pass targeted=False")
    if getattr(attack, "normalization_used", None) is not None:
        raise ValueError(
            "the attack normalises images itself, but training attacks pixels; "
            "give the classifier preprocessing=(mean, std) instead"
        )
    if getattr(attack, "return_type", "float") != "float":
        raise ValueError(
            "the attack returns images in 0 … 255, but training takes pixels in [0, 1]; call its "
            "set_return_type('float')"
        )


class FromART:
    """An ART attack as a training attack: through NumPy, in the classifier's own units."""

    def __init__(self, attack: EvasionAttack, student: PixelModule, classes: int) -> None:
        if student.dtype != torch.float32:
            raise ValueError(
                f"ART's attacks compute in float32, the classifier's module in {student.dtype}; "
                "leave attack=None, or use a torchattacks attack"
            )
        self._attack, self._student, self._classes = attack, student, classes

    def __call__(self, images: Images, labels: Labels, noise: Images | None = None) -> Images:  # noqa: ARG002
        """Attack in the classifier's own units, through NumPy."""
        clip = self._student.clip
        x = clip.from_pixels(images).contiguous().cpu().numpy()
        y = np.eye(self._classes, dtype=np.float32)[labels.cpu().numpy()]
        with _as_art_expects(self._student):
            adversarial = self._attack.generate(x=x, y=y)
        return clip.to_pixels(torch.from_numpy(np.asarray(adversarial)).to(images)).clamp(0, 1)


@contextmanager
def _as_art_expects(student: nn.Module) -> Iterator[None]:
    """What ART's attacks assume and change: no autocast, no weight gradients, their mode, NumPy's random state."""
    before = np.random.get_state()
    # the engine seeds torch at every step, so that what ART draws is a function of the place in the run
    np.random.seed(int(torch.randint(2**32, ())))
    device = next(student.parameters()).device.type
    try:
        with _left_alone(student), torch.autocast(device, enabled=False):
            yield
    finally:
        np.random.set_state(before)


@contextmanager
def _left_alone(student: nn.Module) -> Iterator[None]:
    """A foreign attack may set modes, accumulate weight gradients, or fill autocast's cache without a graph."""
    with mode(student, training=student.training), frozen(student), torch.enable_grad():
        yield


def on_student(
    attack: TorchAttack, student: PixelModule, device: torch.device, *, loss_scale: float = 1.0
) -> Attack:
    """A copy of the attack on the student in pixel space, wherever it was built.

    Args:
        attack: this package's or torchattacks'.
        student: to be attacked.
        device: where it is.
        loss_scale: that keeps gradients from underflowing in the run's precision; 1 where they do not. This package's
            attacks take it unless they have one of their own; others, which know none, run without autocast.
    """
    own = copy.deepcopy(attack, {id(attack.model): student})
    own.set_model(student)
    own.set_device(device)
    if isinstance(own, attacks.PGD | attacks.TRADESPGD):
        own.loss_scale = loss_scale if own.loss_scale == 1 else own.loss_scale
        return own

    def foreign(images: Images, labels: Labels, noise: Images | None = None) -> Images:  # noqa: ARG001
        in_full = nullcontext() if loss_scale == 1 else torch.autocast(device.type, enabled=False)
        with _left_alone(student), in_full:
            adversarial: Images = own(images, labels)
        return adversarial

    return foreign
