"""Averages of a network's weights over steps or epochs, and BatchNorm statistics that fit them."""

import copy
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from iad_ext.checks import check_number, check_whole
from iad_ext.modes import mode
from iad_ext.names import unknown
from iad_ext.objectives import Objective
from iad_ext.types import Images

Kind = Literal["ema", "swa"]


class WeightAverage:
    """An average of a student's weights and running statistics, as a network in eval mode.

    `ema` moves by a share of 1 − decay at every step; `swa` is the plain mean of the weights at the ends of epochs
    (Izmailov et al. 2018). Both begin at epoch `start`: before, the average is the student itself. What is no
    floating-point number, such as BatchNorm's count of batches, is copied.

    Args:
        student: the network that is averaged; copied here.
        kind: `ema` or `swa`.
        decay: of `ema`, in [0, 1); at 1 it would stay as it began.
        start: first epoch that is averaged, ≥ 0.

    Attributes:
        network: the average.
        averaged: of `swa`, how many ends of epochs are in it.
    """

    def __init__(
        self, student: nn.Module, *, kind: Kind = "ema", decay: float = 0.995, start: int = 0
    ) -> None:
        if kind not in ("ema", "swa"):
            raise ValueError(unknown("average", str(kind), ("ema", "swa")))
        check_number("decay", decay, at_least=0, below=1)
        check_whole("start", start, at_least=0)
        self.kind, self.decay, self.start = kind, decay, start
        self.network = copy.deepcopy(student).eval().requires_grad_(False)
        self.averaged = 0

    def after_step(self, student: nn.Module, epoch: int) -> None:
        """Follow a step of `epoch`."""
        if epoch < self.start:
            become(self.network, student)
        elif self.kind == "ema":
            self._move(student, get_ema_multi_avg_fn(self.decay), 1)

    def after_epoch(self, student: nn.Module, epoch: int) -> None:
        """Follow the end of `epoch`."""
        if self.kind == "swa" and epoch >= self.start:
            self._move(student, get_swa_multi_avg_fn(), self.averaged)
            self.averaged += 1

    def measurable(self, batches: Iterable[Images] | None) -> nn.Module:
        """A copy of the average as it is now, with BatchNorm's statistics of `batches`; its averaged ones for None."""
        network = copy.deepcopy(self.network)
        if batches is not None:
            reestimate_batchnorm(network, batches)
        return network

    @torch.no_grad()
    def _move(self, student: nn.Module, move: object, averaged: int) -> None:
        pairs = list(zip(_tensors(self.network), _tensors(student), strict=True))
        floating = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
        mine, its = [a for a, _ in floating], [b.detach() for _, b in floating]
        move(mine, its, averaged)  # type: ignore[operator]
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)


@torch.no_grad()
def become(network: nn.Module, other: nn.Module) -> None:
    """Give `network` the weights and buffers of `other`, a network of the same form, in place."""
    for mine, its in zip(_tensors(network), _tensors(other), strict=True):
        mine.copy_(its)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def check_taught(objective: Objective, *, kind: Kind | Literal["none"], decay: float, start: int) -> None:
    """Refuse an average that would teach in the place of the one that the objective is taught by, and is another.

    Raises:
        ValueError: says which average teaches, and which was asked for.
    """
    its = objective.average_decay
    if its is None or kind == "none" or (kind, decay, start) == ("ema", its, 0):
        return
    asked = f"an ema of decay {decay:g}" if kind == "ema" else kind
    raise ValueError(
        f"{objective.name} is taught by an ema of decay {its:g} from epoch 0 on, and {asked} from epoch {start} on "
        f"would teach in its place; average by none, or by ema with the decay {its:g} and the start 0"
    )


def check_followed(objective: Objective, *, attack: str, reads: frozenset[str], otherwise: str) -> None:
    """Refuse an attack that climbs away from an average which the objective does not keep.

    Args:
        objective: what is trained.
        attack: its attack's name.
        reads: the passes that the attack is given.
        otherwise: what to do instead, for people.

    Raises:
        ValueError: says what to do instead.
    """
    if "average_nat" in reads and objective.average_decay is None:
        raise ValueError(
            f"the attack {attack} climbs away from a moving average of weights, which {objective.name} does not keep; "
            f"{otherwise}"
        )


def keeping_statistics(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def reestimate_batchnorm(network: nn.Module, batches: Iterable[Images]) -> None:
    """Replace BatchNorm's running statistics by their means over `batches`; everything else stays in eval mode.

    An average of weights has other activations than the networks that it averages, and their statistics do not fit it.
    A network without BatchNorm is not run.
    """
    layers = keeping_statistics(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with mode(network, training=False), torch.no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean
            layer.train()
        for images in batches:
            network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
