"""BatchNorm's running statistics: what a forward pass leaves in them, counted more than once but run once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics.

    Raises:
        ValueError: one of them keeps plain averages (`momentum=None`), which have no order to be faithful to.
    """
    found = [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    for name, layer in found:
        if layer.momentum is None:
            raise ValueError(
                f"the BatchNorm layer '{name}' averages all batches alike (momentum=None); the faithful order is "
                "about layers with a momentum: take bn_order lean"
            )
    return [layer for _, layer in found]


@contextmanager
def counted(layers: Sequence[_BatchNorm], times: int) -> Iterator[None]:
    """Inside, one forward pass; afterwards the running statistics are as if it had been run `times` times in a row.

    In train mode a batch's own statistics b do not depend on the running ones r, so that r after k passes is
    b + (1 − m)^k (r − b), and b follows from r before and after one of them. Layers in eval mode stay as they are.
    """
    if times == 1:
        yield
        return
    before = [(layer, _statistics(layer, copy=True)) for layer in layers]
    yield
    for layer, held in before:
        momentum = float(layer.momentum or 0.0)
        more = (1 - (1 - momentum) ** times) / momentum - 1 if momentum else 0.0
        *averages, (now, then) = zip(_statistics(layer), held, strict=True)
        for value, old in averages:
            value += more * (value - old)
        now += (times - 1) * (now - then)


def _statistics(layer: _BatchNorm, *, copy: bool = False) -> tuple[Tensor, ...]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    # past autograd's watch, as BatchNorm itself changes them: no gradient of the pass reads them in train mode
    held = (layer.running_mean.data, layer.running_var.data, layer.num_batches_tracked.data)
    return tuple(value.clone() for value in held) if copy else held
