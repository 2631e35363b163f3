"""A run's numbers in the trackers that accelerate knows: scalars only, by `--log-with`.

The run folder stays the truth: trackers are sent what `metrics.jsonl` and `results.json` hold. `trackers.json` beside
them says under which name the run goes there and what has been sent, so that a continued run goes on in the same place,
sends nothing twice, and makes up for what an outage or a late `--log-with` left out.
"""

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from iad_ext import files
from iad_ext.checkpoint import read_lines
from iad_ext.names import unknown, words

log = logging.getLogger(__name__)

T = TypeVar("T")
Config = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class _Kind:
    """How a tracker is opened on the same run again.

    Attributes:
        package: what must be installed.
        open: from the run folder, the run's name there, its settings and the first epoch that it will be sent.
        rewinds: what was sent from that epoch on is taken back when it is opened.
    """

    package: str
    open: Callable[[Path, str, Config, int], GeneralTracker]
    rewinds: bool = False


def _tensorboard(folder: Path, run: str, config: Config, epoch: int) -> GeneralTracker:  # noqa: ARG001
    # readers drop what earlier event files say of these epochs
    return TensorBoardTracker("tensorboard", folder, purge_step=epoch)


def _wandb(folder: Path, run: str, config: Config, epoch: int) -> GeneralTracker:  # noqa: ARG001
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", "iad-ext"),
        id=run,
        name=_title(folder),
        resume="allow",
        config=dict(config),
        dir=str(folder),
        # numbers only: neither what is printed, nor the program, nor the repository that it lies in
        settings={"console": "off", "save_code": False, "disable_git": True},
    )


def _trackio(folder: Path, run: str, config: Config, epoch: int) -> GeneralTracker:  # noqa: ARG001
    # a run's name is all that Trackio knows it by
    return TrackioTracker("iad-ext", name=f"{_title(folder)}-{run}", resume="allow", config=dict(config))


def _title(folder: Path) -> str:
    """The last parts of a run folder's path: `iad1_resnet18-at-seed0`."""
    return "-".join(folder.resolve().parts[-2:]).strip("/-")


TRACKERS: Mapping[str, _Kind] = {
    "tensorboard": _Kind("tensorboard", _tensorboard, rewinds=True),
    "wandb": _Kind("wandb", _wandb),
    "trackio": _Kind("trackio", _trackio),
}


def trackers_of(text: str) -> tuple[str, ...]:
    """Read `tensorboard,wandb`; nothing is imported or sent.

    Raises:
        ValueError: there is no such tracker, or its package is not installed.
    """
    names = words(text)
    for name in names:
        if name not in TRACKERS:
            raise ValueError(unknown("tracker in --log-with", name, TRACKERS))
        package = TRACKERS[name].package
        if find_spec(package) is None:
            raise ValueError(f"--log-with {name} needs the package {package}: pip install {package}")
    return names


class Tracking:
    """The trackers of one run, as a context that closes them. What goes wrong in one is said once and stops nothing.

    Args:
        names: of `TRACKERS`, as `trackers_of` checked them.
        folder: the run folder.
        config: settings to show beside the run, where a tracker can.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, config: Config) -> None:
        self.names, self.folder, self.config = names, folder, config
        self._open: dict[str, GeneralTracker] = {}
        self._failed: set[str] = set()
        self._run, self._sent = "", dict[str, dict[str, Any]]()

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in self._open.items():
            self._try(name, tracker.finish)
        self._open = {}

    def open(self, epoch: int) -> None:
        """Open the trackers on a run that goes on at `epoch`, and send what they lack of the epochs before it."""
        if not self.names:
            return
        self._read()
        for name in self.names:
            kind, sent = TRACKERS[name], self._sent.setdefault(name, {"epochs": 0, "results": {}})
            if kind.rewinds and epoch < sent["epochs"]:
                sent |= {"epochs": epoch, "results": {}}
            tracker = self._try(name, _started, kind, self.folder, self._run, self.config, sent["epochs"])
            if tracker is not None:
                self._open[name] = tracker
        self._write()
        self.send_epochs()

    def send_epochs(self) -> None:
        """Send the lines of `metrics.jsonl` that were not sent yet, each at its epoch."""
        lines = read_lines(self.folder / "metrics.jsonl") if self._open else []
        for name, tracker in self._open.items():
            sent = self._sent[name]
            for line in lines:
                if line["epoch"] < sent["epochs"]:
                    continue
                if not self._try(name, _log, tracker, line):
                    break  # the next epoch tries again
                sent["epochs"] = int(line["epoch"]) + 1
        self._write()

    def send_results(self, results: Mapping[str, Any]) -> None:
        """Send what `results.json` holds as `eval/best/pgd20` and the like, unless it was sent before."""
        numbers = {
            f"eval/{which}/{name}": value
            for which in ("best", "last")
            for name, value in scalars(results.get(which, {})).items()
            if name in results[which]["interval"]
        }
        step = int(results["epochs"]["last"])
        for name, tracker in self._open.items():
            new = bool(numbers) and self._sent[name]["results"] != numbers
            if new and self._try(name, _conclude, tracker, numbers, step):
                self._sent[name]["results"] = numbers
        self._write()

    def _try(self, name: str, act: Callable[..., T], *args: Any) -> T | None:
        """What `act` returns; None after a failure, which is said the first time."""
        try:
            return act(*args)
        except Exception as error:  # others' code and others' networks: whatever it is, the run is worth more
            if name not in self._failed:
                log.warning(
                    "%s does not take this run's numbers (%s: %s). Training goes on; metrics.jsonl holds all of them, "
                    "and the same command sends what is missing when the run is continued",
                    name,
                    type(error).__name__,
                    error,
                )
            self._failed.add(name)
            return None

    # ---------------------------------------------------------------------------------------------- trackers.json

    def _read(self) -> None:
        path = self.folder / "trackers.json"
        try:
            held: Any = files.read_json(path) if path.exists() else {"run": secrets.token_hex(4), "sent": {}}
            self._run, self._sent = str(held["run"]), dict(held["sent"])
        except (ValueError, KeyError, TypeError) as error:
            log.warning(
                "%s cannot be read (%s): the trackers are sent all of this run under a new name", path, error
            )
            self._run, self._sent = secrets.token_hex(4), {}

    def _write(self) -> None:
        if self.names and self._run:
            files.write_json(self.folder / "trackers.json", {"run": self._run, "sent": self._sent})


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Those entries of a record that are numbers."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _started(kind: _Kind, folder: Path, run: str, config: Config, epoch: int) -> GeneralTracker:
    tracker = kind.open(folder, run, config, epoch)
    tracker.start()
    return tracker


def _log(tracker: GeneralTracker, record: Mapping[str, Any]) -> bool:
    numbers = {name: value for name, value in scalars(record).items() if name != "epoch"}
    tracker.log(numbers, step=int(record["epoch"]))
    return True


def _conclude(tracker: GeneralTracker, numbers: dict[str, float], step: int) -> bool:
    if isinstance(tracker, WandBTracker):  # W&B drops what comes for a step that it has closed
        tracker.tracker.summary.update(numbers)
    else:
        tracker.log(numbers, step=step)
    return True
