"""The average of a student's weights that a fit validates and ends with, where one is asked for."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import nn

from iad_ext.averaging import WeightAverage, check_taught, keeping_statistics
from iad_ext.checks import check_name, check_number
from iad_ext.loop import Engine
from iad_ext.names import unknown
from iad_ext.objectives import Objective
from iad_ext.trainer.sources import ArrayBatches, GeneratorBatches

Average: TypeAlias = Literal["none", "ema", "swa"]
Statistics: TypeAlias = Literal["reestimate", "average"]


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """What a fit is told about averages; fields are the trainer's arguments.

    Raises:
        TypeError: a name is no string.
        ValueError: a name is unknown, a number out of range, or the objective has another average already.
    """

    average: Average
    average_decay: float
    average_start: int
    average_batchnorm: Statistics

    def __post_init__(self) -> None:
        for name, known in (("average", get_args(Average)), ("average_batchnorm", get_args(Statistics))):
            value = getattr(self, name)
            check_name(name, value)
            if value not in known:
                raise ValueError(unknown(name, value, known))
        check_number("average_decay", self.average_decay, at_least=0, below=1)

    def check(self, objective: Objective) -> None:
        """Refuse an average that the objective cannot be taught by."""
        check_taught(objective, kind=self.average, decay=self.average_decay, start=self.average_start)

    def check_images(self, student: nn.Module, source: ArrayBatches | GeneratorBatches) -> None:
        """Refuse statistics that would have to be estimated on images that are gone."""
        if self.average == "none" or self.average_batchnorm == "average":
            return
        if isinstance(source, GeneratorBatches) and keeping_statistics(student):
            raise ValueError(
                "BatchNorm's statistics cannot be estimated anew on a generator's images, which come once; "
                "pass average_batchnorm='average', or arrays to fit"
            )

    def begin(self, student: nn.Module) -> WeightAverage | None:
        """The average of a student that is about to be trained; a ValueError where copy.deepcopy fails on it."""
        if self.average == "none":
            return None
        try:
            return WeightAverage(
                student, kind=self.average, decay=self.average_decay, start=self.average_start
            )
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"the classifier's module cannot be copied, which an average of its weights needs: {error}"
            ) from error

    def measured(self, engine: Engine, epoch: int) -> nn.Module:
        """What is validated after `epoch`, and what a fit ends with: the student, or its average if asked for."""
        if self.average == "none":
            return engine.student
        again = self.average_batchnorm == "reestimate" and not isinstance(engine.source, GeneratorBatches)
        return engine.measurable(epoch, reestimate=again)
