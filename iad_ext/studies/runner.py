"""Runs a study's cells: each a process of its recipe's own command line, several at a time, stopped and continued.

Whatever happens to the runner, a cell loses nothing that its run folder has: finished ones are left alone, and
interrupted ones go on where they were.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import iad_ext
from iad_ext import checkpoint, entrants, files, recipes, settings
from iad_ext.names import words
from iad_ext.provenance import usable_cores
from iad_ext.settings import Change
from iad_ext.signals import Stop
from iad_ext.studies.grid import Cell

State: TypeAlias = Literal["finished", "running", "interrupted", "another", "waiting", "to do"]

DONE, CANNOT_WRITE, STOPPED = 0, 4, 5  # a recipe's exit codes
POLL = 0.05  # seconds between two looks at the processes
OTHERS = 2.0  # seconds between two looks at what other runners do
# seconds of waiting in which another runner may take up what failed before: shares start apart
PATIENCE = 300.0
# of a launcher of several processes; a cell is one
_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def state_of(cell: Cell) -> State:
    """How far a cell is, by its folder alone."""
    if begun_otherwise(cell):
        return "another"
    if is_finished(cell):
        return "finished"
    if checkpoint.is_locked(cell.folder):
        return "running"
    if (cell.folder / "settings.yaml").exists():
        return "interrupted"
    return "to do" if all(has_results(folder) for folder in cell.needs) else "waiting"


def has_results(folder: Path) -> bool:
    """Whether a run is trained and measured by whatever it was told to: it can teach."""
    return (folder / "results.json").is_file()


def begun_otherwise(cell: Cell) -> list[Change]:
    """What a run in the cell's folder trains otherwise than the cell: it is another run, and none of the study's."""
    try:
        before = settings.from_yaml((cell.folder / "settings.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # nothing there, or nothing that the run itself would take
    return [
        change for change in settings.changed(before, cell.settings) if not _is_same_teacher(cell, change)
    ]


def _is_same_teacher(cell: Cell, change: Change) -> bool:
    """Whether a teacher is only called otherwise: a recipe asks for `at`, a study for that run's folder."""
    name, before, now = change
    if name not in ("teacher", "natural_teacher") or not (before and now):
        return False
    try:
        found = entrants.teacher_of(cell.folder, before, name)
    except (OSError, ValueError):
        return False
    return found is not None and Path(found).resolve() == Path(now).resolve()


def refuse_others(cells: Sequence[Cell]) -> None:
    """See that no cell's folder holds another run, a trial with fewer epochs perhaps.

    Raises:
        ValueError: one does.
    """
    others = [(cell, changes) for cell in cells if (changes := begun_otherwise(cell))]
    if others:
        cell, changes = others[0]
        more = f" So were {len(others) - 1} more of the study's folders." if len(others) > 1 else ""
        raise ValueError(
            f"{cell.folder} was begun with other settings than the study's:\n{settings.listed(changes)}\n"
            f"Give another --out, or the settings that it was begun with.{more}"
        )


def is_finished(cell: Cell) -> bool:
    """Whether a cell is trained, and measured by all that its study wants and as it wants it."""
    measured = measured_by(cell.folder)
    if measured is None:
        return False
    asked = dataclasses.asdict(cell.settings.eval)
    attacks, of = set(cell.attacks), set(words(asked.pop("of")))
    del asked["attacks"]
    known = {name: value for name, value in measured.items() if name not in ("attacks", "of")}
    return (
        known == asked
        and attacks <= set(words(str(measured["attacks"])))
        and of <= set(words(str(measured["of"])))
    )


def measured_otherwise(cell: Cell) -> bool:
    """Whether a run's results are of other images, another radius and the like than the cell's study asks for.

    Which attacks and checkpoints there are is no part of it. What older results do not say counts as the default.
    """
    measured = measured_by(cell.folder)
    asked = dataclasses.asdict(cell.settings.eval)
    usual = dataclasses.asdict(settings.EvalSettings())
    return measured is not None and any(
        measured.get(name, usual[name]) != asked[name] for name in asked if name not in ("attacks", "of")
    )


def measured_by(folder: Path) -> dict[str, Any] | None:
    """The evaluation settings of a run's results; None where it has none that can be read."""
    try:
        found = files.read_json(folder / "results.json")["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and {"attacks", "of"} <= found.keys() else None


def seconds_of(folder: Path) -> float:
    """How long a run has trained so far."""
    lines = checkpoint.read_lines(folder / "metrics.jsonl")
    return sum(float(line.get("time/epoch_s") or 0) for line in lines)


def shard_of(cells: Sequence[Cell], number: int, of: int) -> list[Cell]:
    """Every `of`-th cell, beginning with the `number`-th: the shares are disjoint and together all cells."""
    return list(cells[number - 1 :: of])


def command(cell: Cell) -> list[str]:
    """The command line that a cell is run by."""
    return [sys.executable, str(recipes.file_of(cell.recipe)), *cell.arguments]


@dataclass
class Outcome:
    """What a runner has done.

    Attributes:
        finished: cells that it finished.
        failed: cells whose process ended with an error, with the exit code.
        stopped: a signal or the budget ended it before the end.
        left: cells that are not finished.
    """

    finished: list[Cell] = field(default_factory=list)
    failed: dict[Path, int] = field(default_factory=dict)
    stopped: str = ""
    left: list[Cell] = field(default_factory=list)


@dataclass
class _Process:
    cell: Cell
    process: subprocess.Popen[bytes]
    device: str | None
    began: float


class Runner:
    """Runs cells.

    Args:
        cells: to be run here, teachers before students.
        jobs: how many at a time.
        devices: numbers of GPUs to share out; none leaves the machine's own choice.
        budget: seconds after which those that run are asked to stop; None for no end.
        say: where a line of progress goes.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        jobs: int = 1,
        devices: Sequence[str] = (),
        budget: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.cells, self.jobs, self.devices, self.say = list(cells), jobs, list(devices), say
        self.until = None if budget is None else time.monotonic() + budget
        self.running: list[_Process] = []
        self.outcome = Outcome()
        self._looked = -OTHERS
        self._waits_since: float | None = None
        self._told: set[Path] = set()

    def run(self) -> Outcome:
        """Run until everything is done, nothing more can be done, or somebody asks for the end."""
        pending = [cell for cell in self.cells if not is_finished(cell)]
        skipped = len(self.cells) - len(pending)
        if skipped:
            self.say(f"{skipped} of {len(self.cells)} cells are finished already")
        for cell in pending:  # what failed before is tried again
            failure_of(cell.folder).unlink(missing_ok=True)
        with Stop() as stop:
            try:
                while pending or self.running:
                    if reason := self._asked_to_stop(stop):
                        self._stop(reason)
                        break
                    pending = self._start([*self._collect(), *pending])
                    if not self.running and pending and not self._may_wait(pending):
                        break
                    time.sleep(POLL)
            finally:
                self._end_all()
        self.outcome.left = [cell for cell in self.cells if not is_finished(cell)]
        return self.outcome

    # ------------------------------------------------------------------------------------------ processes

    def _start(self, pending: list[Cell]) -> list[Cell]:
        """Start what can be started; what is left."""
        if len(self.running) >= self.jobs or (
            self._waits_since is not None and not self.running and time.monotonic() - self._looked < OTHERS
        ):
            return pending
        self._looked = time.monotonic()
        left = []
        for cell in pending:
            if len(self.running) < self.jobs and all(map(has_results, cell.needs)):
                if is_finished(cell):  # by another runner
                    continue
                if not checkpoint.is_locked(cell.folder):
                    self._launch(cell)
                    continue
            left.append(cell)
        return left

    def _launch(self, cell: Cell) -> None:
        used = [running.device for running in self.running]
        device = min(self.devices, key=used.count) if self.devices else None
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        going_on = (cell.folder / "settings.yaml").exists()
        with log_of(cell.folder).open("ab") as log:
            process = subprocess.Popen(
                command(cell),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(device),
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
            )
        self.running.append(_Process(cell, process, device, time.monotonic()))
        on = f" on GPU {device}" if device is not None else ""
        self.say(f"{'going on' if going_on else 'begun'}      {cell.folder}{on}")

    def _environment(self, device: str | None) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
        package = str(Path(iad_ext.__file__).parent.parent)
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([package, *([before] if before else [])])
        environment["PYTHONUNBUFFERED"] = "1"
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        if self.jobs > 1:  # processes that each take all cores wait for each other
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // self.jobs)))
        return environment

    def _collect(self) -> list[Cell]:
        """Take note of the processes that have ended; returns the cells that another runner was quicker to begin."""
        theirs = []
        for running in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(running)
            if self._is_another_s(running):
                theirs.append(running.cell)
            else:
                self._take(running)
        return theirs

    @staticmethod
    def _is_another_s(running: _Process) -> bool:
        """Whether a run ended because another runner holds its folder: both saw it free, and one came second."""
        folder = running.cell.folder
        refused = running.process.returncode == CANNOT_WRITE
        return refused and (checkpoint.is_locked(folder) or is_finished(running.cell))

    def _take(self, running: _Process) -> None:
        cell, code = running.cell, running.process.returncode
        took = f"{(time.monotonic() - running.began) / 60:.1f} min"
        if code == DONE:
            self.outcome.finished.append(cell)
            self.say(f"finished   {cell.folder} ({took})")
        elif code == STOPPED:
            self.outcome.stopped = self.outcome.stopped or "a cell was stopped by a signal"
            self.say(f"stopped    {cell.folder} ({took}); it goes on where it was")
        else:
            self.outcome.failed[cell.folder] = code
            with contextlib.suppress(OSError):  # a full disk may be why it failed; this runner knows anyway
                files.write_text(failure_of(cell.folder), f"exit code {code}\n")
            self.say(f"failed     {cell.folder} with exit code {code}: {_last_words(cell)}")

    def _may_wait(self, pending: Sequence[Cell]) -> bool:
        """Whether others may still finish what the pending cells need: not where it failed."""
        if self.outcome.stopped:
            return False
        own = {cell.folder for cell in pending}
        lost = set(self.outcome.failed) | self._failed_elsewhere(pending)
        while more := {cell.folder for cell in pending if set(cell.needs) & lost} - lost:
            lost |= more
        waiting = [cell for cell in pending if cell.folder not in lost]
        needed = {
            folder
            for cell in waiting
            for folder in cell.needs
            if folder not in own and not has_results(folder)
        }
        if waiting and self._waits_since is None:
            self._waits_since = time.monotonic()
            what = sorted(map(str, needed)) or [str(cell.folder) for cell in waiting]
            self.say(f"waiting    for another runner to finish {', '.join(what)}")
        return bool(waiting)

    def _failed_elsewhere(self, pending: Sequence[Cell]) -> set[Path]:
        """Teachers that failed in another share, and that nobody has taken up again while this one waited."""
        if self._waits_since is None or time.monotonic() - self._waits_since < PATIENCE:
            return set()
        needed = {folder for cell in pending for folder in cell.needs if not has_results(folder)}
        failed = {
            folder for folder in needed if failure_of(folder).exists() and not checkpoint.is_locked(folder)
        }
        for folder in sorted(failed - self._told):
            self._told.add(folder)
            self.say(f"given up   what needs {folder}: it failed in another share (all in {log_of(folder)})")
        return failed

    # ------------------------------------------------------------------------------------------ the end

    def _asked_to_stop(self, stop: Stop) -> str:
        if stop:
            return stop.asked_by
        if self.until is not None and time.monotonic() >= self.until:
            return "the budget is spent"
        return ""

    def _stop(self, reason: str) -> None:
        """Ask the running cells to save and end, and wait for them."""
        self.outcome.stopped = reason
        if self.running:
            self.say(f"stopping   {len(self.running)} running cells ({reason}); they save and end")
        for running in self.running:
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGTERM)
        while self.running:
            self._collect()
            time.sleep(POLL)

    def _end_all(self) -> None:
        """On an exception, a forced Ctrl-C among them: leave no process behind."""
        for running in self.running:
            running.process.kill()
            running.process.wait()


def log_of(folder: Path) -> Path:
    """The file beside a run folder that holds what the run printed."""
    return folder.with_name(f"{folder.name}.log")


def failure_of(folder: Path) -> Path:
    """The file beside a run folder that says to other shares that the run failed, until its runner tries it again."""
    return folder.with_name(f"{folder.name}.failed")


def _last_words(cell: Cell) -> str:
    lines = log_of(cell.folder).read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or ["it printed nothing"])[-1] + f" (all in {log_of(cell.folder)})"


def listing(cells: Sequence[Cell]) -> Iterator[str]:
    """A line a cell: how far it is, its time so far, its folder; then the sum."""
    total = 0.0
    counts: dict[str, int] = {}
    for cell in cells:
        state, seconds = state_of(cell), seconds_of(cell.folder)
        total += seconds
        counts[state] = counts.get(state, 0) + 1
        yield f"{state:<12} {_clock(seconds):>9}  {cell.folder}"
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    yield f"{len(cells)} cells: {said}; {_clock(total)} of training so far"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def environment_of(folders: Sequence[Path]) -> list[Mapping[str, Any]]:
    """What each run says of the machine, versions and data behind it."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            found.append(files.read_json(folder / "environment.json"))
    return found
