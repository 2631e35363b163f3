"""A fit that survives its process: kept in a folder between steps, and continued from there to the same bits."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iad_ext import checkpoint
from iad_ext.checkpoint import Checkpoint
from iad_ext.compiling import Compilation
from iad_ext.loop import Engine
from iad_ext.precision import Precision
from iad_ext.processes import from_main

KEEP = 2  # checkpoints of a fit: the newest and the one before


class Keeper:
    """Keeps one fit in a folder.

    Args:
        folder: where; made when it is not there.
        every: steps between two checkpoints within an epoch; None for one at each epoch's end.
        fit: everything that the fit's result depends on, as plain data; another fit's folder is refused.
        main: whether this process writes.

    Raises:
        ValueError: the folder holds another fit, or not every process finds the same one.

    Attributes:
        history: the records of the epochs that are done.
        precision: the arithmetic that the fit was begun in; None for a new fit.
        compilation: how its attack was run, likewise.
    """

    def __init__(
        self, folder: str | PathLike[str], *, every: int | None, fit: Mapping[str, Any], main: bool
    ) -> None:
        self._folder, self._every, self._main = Path(folder), every, main
        self._fit = json.loads(json.dumps(fit))
        self._saved = checkpoint.newest(self._folder)
        self.position = (0, 0) if self._saved is None else (self._saved.epoch, self._saved.step)
        if from_main(self.position) != self.position:
            raise ValueError(
                f"checkpoint_folder: this process finds epoch {self.position[0]} in {self._folder}, the main one "
                "another; give a folder that all processes share"
            )
        self.history: list[dict[str, Any]] = []
        self.precision: Precision | None = None
        self.compilation: Compilation | None = None
        if self._saved is not None:
            self._refuse_another(self._saved.state["fit"])
            self.precision = Precision(**self._saved.state["precision"])
            self.compilation = Compilation(**self._saved.state["compile"])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this fit.

        Raises:
            CheckpointError: another process holds it, or it cannot be written.
        """
        if not self._main:
            yield
            return
        with checkpoint.locked(self._folder):
            yield

    def restore(
        self, engine: Engine, step_scheduler: Callable[[int, Mapping[str, Any]], None]
    ) -> tuple[int, int]:
        """Put a fit back where it was; returns the epoch and the step to go on with, (0, 0) for a new one.

        The scheduler's steps are made again: its state may be anything, what it did follows from the history.

        Raises:
            ValueError: the optimizer and the scheduler are not as they were given then, or they or the student cannot
                be kept.
        """
        _refuse_extra_state(engine.student)
        now, saved = checkpoint.optimizer_numbers(engine.optimizer), self._saved
        if saved is None:
            return self.position
        self.history = list(saved.state["history"])
        with warnings.catch_warnings():
            # the optimizer's steps between them are in the checkpoint
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step\\(\\)` before")
            for epoch, record in enumerate(self.history):
                step_scheduler(epoch, record)
            now = checkpoint.optimizer_numbers(engine.optimizer)
        then = saved.state["engine"]["optimizer"]
        apart = _differences(then["param_groups"], now["param_groups"], known=engine.optimizer.defaults)
        if apart:
            raise ValueError(
                f"the optimizer or the scheduler is not as the fit in {self._folder} was begun with: {apart}. Give "
                "both as they were made for it, the scheduler's steps are made again here"
            )
        engine.restore(saved.tensors, saved.state["engine"])
        engine.draw_again(*self.position)
        return self.position

    def after_step(self, engine: Engine, epoch: int) -> Callable[[int], None]:
        """What to do after each step of an epoch."""

        def save(done: int) -> None:
            # from its first step on an optimizer may hold what no checkpoint can: say so before an epoch is lost
            if done == 1:
                checkpoint.optimizer_numbers(engine.optimizer)
            if self._every is not None and done % self._every == 0 and done < len(engine.source):
                self.save(engine, epoch, done)

        return save

    def save(self, engine: Engine, epoch: int, step: int) -> None:
        """Keep the position between two steps. Every process calls it; the main one writes."""
        tensors, numbers = engine.state(within_epoch=step > 0)
        if self._main:
            assert self.precision is not None
            assert self.compilation is not None
            state = {
                "engine": numbers,
                "fit": self._fit,
                "history": self.history,
                "precision": dataclasses.asdict(self.precision),
                "compile": dataclasses.asdict(self.compilation),
            }
            checkpoint.save(
                self._folder, Checkpoint(epoch=epoch, step=step, tensors=tensors, state=state), keep=KEEP
            )

    def _refuse_another(self, then: Mapping[str, Any]) -> None:
        changed = [
            f"  {name}: {then.get(name)} before, {self._fit.get(name)} now"
            for name in sorted({*then, *self._fit})
            if then.get(name) != self._fit.get(name)
        ]
        if changed:
            raise ValueError(
                f"checkpoint_folder {self._folder} holds another fit:\n"
                + "\n".join(changed)
                + "\nGive the same arguments to continue it, or another folder"
            )


def _refuse_extra_state(student: nn.Module) -> None:
    """A layer's `get_extra_state` may return anything; a checkpoint holds tensors, and never a pickle."""
    other = {name: value for name, value in student.state_dict().items() if not isinstance(value, Tensor)}
    if other:
        said = ", ".join(f"{name} ({type(value).__name__})" for name, value in other.items())
        raise ValueError(
            f"the student cannot be kept in a checkpoint: of its state, {said} is no tensor. Let the layer's "
            "get_extra_state return a tensor, or fit without checkpoint_folder"
        )


def _differences(
    then: list[Mapping[str, Any]], now: list[Mapping[str, Any]], *, known: Mapping[str, Any]
) -> str:
    """In what was set; what an optimizer counts in its groups by itself is put back with them."""
    names = [name for name in sorted({*known, "lr", "initial_lr"}) if name.rpartition("_")[2] != "step"]
    if len(then) != len(now):
        return f"{len(then)} parameter groups before, {len(now)} now"
    return ", ".join(
        f"{name} {a.get(name)} before, {b.get(name)} now"
        for a, b in zip(then, now, strict=True)
        for name in names
        if a.get(name) != b.get(name)
    )
