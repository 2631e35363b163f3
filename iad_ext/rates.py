"""Courses of the learning rate over the epochs of a training, as shares of the rate that it begins with."""

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from iad_ext.checks import check_whole
from iad_ext.names import unknown


def cosine(epoch: int, epochs: int) -> float:
    """Half a cosine, from 1 at epoch 0 towards 0 after the last."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def cyclic(epoch: int, epochs: int) -> float:
    """Linear up to 1 at 2/5 of the epochs and down to 0; taken in an epoch's middle, so that none trains at 0."""
    passed = (epoch + 0.5) / epochs
    return min(passed / 0.4, (1 - passed) / 0.6)


COURSES: dict[str, Callable[[int, int], float]] = {"cosine": cosine, "cyclic": cyclic}
"""Courses by their names, each a function of an epoch and the number of epochs."""


def rising(epoch: int, warmup: int) -> float:
    """Share of its course that a rate has in an epoch, when it rises to it linearly over `warmup` epochs."""
    return min(1.0, (epoch + 1) / warmup) if warmup else 1.0


def scheduler(
    optimizer: torch.optim.Optimizer, course: str, *, epochs: int, rate_warmup: int = 0
) -> LambdaLR:
    """A torch scheduler, stepped once an epoch, that gives an optimizer the rates of a recipe.

    Args:
        optimizer: its rates at the start are those that the course takes its share of.
        course: `cosine` or `cyclic`.
        epochs: of the whole training, ≥ 1; a scheduler that is stepped further stays at the last epoch's rate.
        rate_warmup: epochs over which the rate rises linearly to its course, ≥ 0.

    Raises:
        ValueError: there is no course of that name, or a number is out of range.
    """
    if course not in COURSES:
        raise ValueError(unknown("course of the rate", str(course), COURSES))
    check_whole("epochs", epochs, at_least=1)
    check_whole("rate_warmup", rate_warmup, at_least=0)

    def share(epoch: int) -> float:
        epoch = min(epoch, epochs - 1)
        return rising(epoch, rate_warmup) * COURSES[course](epoch, epochs)

    return LambdaLR(optimizer, share)
