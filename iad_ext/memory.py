"""Memory that runs out, said so that it helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# torch's allocator on a CPU raises a plain RuntimeError; these words are in it
_OF_THE_CPU_ALLOCATOR = ("DefaultCPUAllocator", "can't allocate memory")


class OutOfMemory(RuntimeError):  # noqa: N818 (it is what happened)
    """The memory of the GPU or of the machine ran out; what was saved before is whole."""


@contextmanager
def explained(advice: str) -> Iterator[None]:
    """Turn what torch and Python raise when memory runs out into an `OutOfMemory` that ends with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        # torch goes on about its allocator; its first sentences say how much was asked of which device
        said = ". ".join(str(error).replace("\n", " ").split(". ")[:2]) or type(error).__name__
        raise OutOfMemory(f"out of memory: {said.rstrip('.')}. {advice}") from error


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return all(words in str(error) for words in _OF_THE_CPU_ALLOCATOR)
