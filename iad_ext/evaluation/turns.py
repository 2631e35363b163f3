"""Several processes that share an evaluation: they take batches in turns and tell each other what came of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from iad_ext.processes import World, gathered

T = TypeVar("T")


@dataclass(frozen=True)
class Turns:
    """One of `of` processes, the `rank`-th: of every `of` batches in a row it does one."""

    rank: int = 0
    of: int = 1

    @classmethod
    def among(cls, world: World | None) -> "Turns":
        """Among the processes of `world`; alone without one.

        Raises:
            TypeError: `world` is something else.
        """
        if not isinstance(world, World | None):
            raise TypeError(
                f"world: expected accelerate.PartialState(), or None for this process alone; got {world!r}"
            )
        return ALONE if world is None else cls(world.process_index, world.num_processes)

    def joined(self, mine: T | None) -> list[T]:
        """What all processes have of this round, in the batches' order; None where there is no batch left."""
        parts = gathered(mine) if self.of > 1 else [mine]
        return [part for part in parts if part is not None]

    def rounds(self, mine: Iterator[Tensor], count: int) -> Iterator[Tensor]:
        """Join what this process yields for its batches with the others', round by round, on the CPU.

        Args:
            mine: for each of this process's batches a tensor whose last axis are images.
            count: how many rounds there are; in the last one the later processes may have no batch.
        """
        for _ in range(count):
            part = next(mine, None)
            yield torch.cat(self.joined(None if part is None else part.cpu()), dim=-1)


ALONE = Turns()
