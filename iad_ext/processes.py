"""The processes that a run is spread over, as accelerate knows them; a single one is the commonest case."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")
World: TypeAlias = PartialState


def world(*, cpu: bool = False) -> World:
    """Rank, number of processes and device of this process; on a CPU where asked or where there is no CUDA device."""
    return PartialState(cpu=cpu or not torch.cuda.is_available())


def from_main(value: T) -> T:
    """The main process's `value`, everywhere: processes must not disagree because one of them was slower."""
    if PartialState().num_processes == 1:
        return value
    shared: list[Any] = [value]
    broadcast_object_list(shared)
    received: T = shared[0]
    return received


def anyone(flag: bool) -> bool:
    """Whether `flag` is true on any process; all of them must ask. Waits for the other processes, not for a GPU."""
    if PartialState().num_processes == 1:
        return flag
    asked = torch.tensor(int(flag))
    torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=_host_group())
    return bool(asked)


def gathered(part: T) -> list[T]:
    """Every process's `part`, in the order of the processes, everywhere; all of them must call."""
    if PartialState().num_processes == 1:
        return [part]
    parts: list[Any] = [None] * PartialState().num_processes
    torch.distributed.all_gather_object(parts, part, group=_host_group())
    return parts


@lru_cache(maxsize=1)
def _host_group() -> Any:
    """A group that exchanges from host memory: NCCL would put the question behind all the work of the device.

    A process may wait for another's last batch of AutoAttack for long; one that has died is noticed at once.
    """
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))


def leave() -> None:
    """Part from the other processes in good order: a group that is still open at the interpreter's end may abort it."""
    _host_group.cache_clear()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def say(text: str) -> None:
    """Print for people, once however many processes there are."""
    if PartialState().is_main_process:
        print(text, flush=True)


@contextmanager
def state_aside(device: torch.device) -> Iterator[World]:
    """Accelerate on the classifier's device; the surrounding program finds its own process-wide state again."""
    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    try:
        for state in states:
            state._shared_state.clear()
        world = PartialState(cpu=device.type == "cpu")
        if device.type == "cuda" and world.device.index not in (None, device.index):
            raise ValueError(
                f"the classifier is on {device}, this process trains on {world.device}; call "
                f"torch.cuda.set_device({world.device.index}) before building the PyTorchClassifier"
            )
        yield world
    finally:
        for state, content in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(content)
