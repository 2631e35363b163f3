"""Checkpoints of a run: written aside and renamed, hashed, and read back only when whole.

A checkpoint is a folder of safetensors and JSON files with a manifest of their SHA-256 sums. Nothing here ever
writes or reads a pickle.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from iad_ext.files import read_json, refuse_outside, sync_folder

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LOOKED_AT = 1.0  # seconds that a folder may seem held because somebody looks whether it is
_NAME = re.compile(r"(\.)?epoch(\d{4,})-step(\d{6,})(?(1)\.old)")  # .NAME.old is what is being replaced


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or is not whole; the message says which file and why."""


@dataclass(frozen=True)
class Checkpoint:
    """A run's state between two steps.

    Attributes:
        epoch: the epoch that the next step belongs to.
        step: the next step within it; 0 at an epoch's start.
        tensors: named groups of tensors, one safetensors file each, such as `student` or `optimizer`.
        state: everything else, as JSON.
    """

    epoch: int
    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


# ---------------------------------------------------------------------------------------------- files


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------- one checkpoint


def save(root: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write `checkpoint` under `root`, whole or not at all, and delete all but it and the `keep` - 1 before it.

    Those of later positions go too: they are torn, or of a course that the run has left.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    name = f"epoch{checkpoint.epoch:04d}-step{checkpoint.step:06d}"
    aside, replaced = root / f".{name}.tmp", root / f".{name}.old"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _write_contents(aside, checkpoint)
        if (root / name).exists():  # it is found aside, too, until the new one is there
            shutil.rmtree(replaced, ignore_errors=True)
            (root / name).rename(replaced)
        aside.rename(root / name)
        sync_folder(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"could not write checkpoint {root / name}: {error}; earlier checkpoints are untouched. "
            "Free disk space or choose another --out, then run the same command again to continue"
        ) from error
    newest_first = [path for path in sorted(_checkpoints(root), key=_age, reverse=True) if path != replaced]
    kept = newest_first[newest_first.index(root / name) :][:keep]
    for other in {*_checkpoints(root)} - {*kept}:
        shutil.rmtree(other, ignore_errors=True)
    return root / name


def _write_contents(folder: Path, checkpoint: Checkpoint) -> None:
    for group, tensors in checkpoint.tensors.items():
        save_file(_apart(tensors), folder / f"{group}.safetensors")
    position = {"epoch": checkpoint.epoch, "step": checkpoint.step}
    (folder / "state.json").write_text(
        json.dumps({**checkpoint.state, **position}, indent=1), encoding="utf-8"
    )
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        _sync_file(path)
    sync_folder(folder)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and each in memory of its own: tied weights have two names and one place, which no file can have."""
    places: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if place in places else own
        places.add(place)
    return apart


def load(folder: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        CheckpointError: a file is missing, extra, or differs from the manifest's sum.
    """
    try:
        for path in folder.iterdir():
            refuse_outside(path, folder)
        files = read_json(folder / MANIFEST)
        _check_files(folder, files)
        state = read_json(folder / "state.json")
        tensors = {
            name.removesuffix(".safetensors"): load_file(folder / name)
            for name in files
            if name.endswith(".safetensors")
        }
        return Checkpoint(epoch=state.pop("epoch"), step=state.pop("step"), tensors=tensors, state=state)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} is not whole: {error}") from error


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    unknown = {path.name for path in folder.iterdir()} - {MANIFEST, *files}
    if unknown or "state.json" not in files:
        raise ValueError(f"the manifest does not name {', '.join(sorted(unknown)) or 'state.json'}")
    for name, expected in files.items():
        if Path(name).name != name:
            raise ValueError(f"the manifest names {name!r}, which is outside the checkpoint")
        if sha256(folder / name) != expected:
            raise ValueError(f"{name} differs from its SHA-256 in the manifest")


# ---------------------------------------------------------------------------------------------- many


def _age(folder: Path) -> tuple[int, int, bool]:
    """Epoch and step; of one position, what is being replaced is older than what replaces it."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[2]), int(match[3]), match[1] is None


def _checkpoints(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path for path in root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def newest(root: Path) -> Checkpoint | None:
    """Read the newest whole checkpoint under `root`; one that is not whole is reported and passed over."""
    for folder in sorted(_checkpoints(root), key=_age, reverse=True):
        try:
            return load(folder)
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
    return None


# ---------------------------------------------------------------------------------------------- optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state as `index/name`, such as `0/momentum_buffer`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def optimizer_numbers(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The rest of an optimizer's state as it comes back from JSON: parameter groups, and what is no tensor.

    Raises:
        ValueError: the optimizer holds something that is neither a tensor of its state nor plain data.
    """
    whole = optimizer.state_dict()
    plain = {
        str(index): {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        for index, values in whole["state"].items()
    }
    try:
        numbers: dict[str, Any] = json.loads(
            json.dumps({"param_groups": whole["param_groups"], "state": plain})
        )
    except TypeError as error:
        raise ValueError(
            f"the optimizer {type(optimizer).__name__} cannot be kept in a checkpoint: expected plain numbers in its "
            f"parameter groups ({error}); give plain numbers, or choose an optimizer that keeps to them"
        ) from error
    return numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_tensors` and `optimizer_numbers` returned.

    Raises:
        ValueError: it is the state of other parameters.
    """
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in numbers["state"].items()
    }
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.param_groups
    optimizer.load_state_dict({"state": state, "param_groups": numbers["param_groups"]})
    # torch makes new groups; whoever made a scheduler, or an optimizer around another, may hold the old ones
    for group, restored in zip(groups, optimizer.param_groups, strict=True):
        group.update(restored)
    optimizer.param_groups[:] = groups
    lay_out_as_weights(optimizer)


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Let what an optimizer keeps of a weight lie in memory as the weight does: fused steps walk both in one order."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    # the tensors themselves, also those of an optimizer that another one wraps
    state = optimizer.state_dict()["state"]
    for index in (key for key in state if isinstance(key, int)):  # any other key is of no weight
        weight = weights[index]
        for value in state[index].values():
            alike = isinstance(value, Tensor) and value.shape == weight.shape
            if alike and value.stride() != weight.stride():
                value.data = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


# ---------------------------------------------------------------------------------------------- run folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a second one is refused. The lock goes with the process, however it ends.

    Whoever only looks whether a folder is held has it for a moment: it is tried for a second.

    Raises:
        CheckpointError: another process holds the folder, or it cannot be written.
    """
    import fcntl  # not on Windows, where a run folder is not protected

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the run folder {folder}: {error}; choose another --out"
        ) from error
    with handle:
        until = time.monotonic() + LOOKED_AT
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise CheckpointError(
                        f"another process is running in {folder}; wait for it, or choose another --out"
                    ) from None
                time.sleep(0.02)
        yield


def is_locked(folder: Path) -> bool:
    """Whether some process holds `folder`; nothing is made there."""
    import fcntl

    try:
        handle = (folder / ".lock").open("rb")
    except FileNotFoundError:
        return False
    except OSError:
        return True  # of somebody else
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append one JSON line and sync it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file, without torn lines."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            log.warning("%s: dropped a torn line", path)
            continue
        records.append(record)
    return records


def as_lines(records: Sequence[Mapping[str, object]]) -> bytes:
    """What `append_line` makes of these records, one after the other."""
    return "".join(map(_line, records)).encode()


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left in `folder`, so that nothing of it can pass for the new one's."""
    for name in ("checkpoints", "best", "last", "evaluation", "figures", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    single = (
        "metrics.jsonl",
        "history.jsonl",
        "results.json",
        "robust.safetensors",
        "gallery.safetensors",
        "report.html",
        "trackers.json",
    )
    for name in single:
        (folder / name).unlink(missing_ok=True)
