"""What a block may change of a network for itself, as context managers that put it back: modes, gradients, buffers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Put `network` in train or eval mode inside the block, then restore each submodule's mode exactly.

    A BatchNorm layer that was frozen in eval mode inside a training network is frozen again afterwards, also
    when the block raises.
    """
    before = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside the block, so that no attack pays for one."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, asked in before:
            parameter.requires_grad_(asked)


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Buffers, such as BatchNorm's running statistics, are after the block what they were before it."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
