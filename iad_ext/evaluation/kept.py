"""What an evaluation has measured so far, kept in a file: a later call on the same network and images goes on there."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from iad_ext.evaluation.autoattack import STANDS, WRONG, State
from iad_ext.evaluation.samples import Sample
from iad_ext.evaluation.subject import Subject
from iad_ext.files import write_whole
from iad_ext.provenance import digest, versions

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two writes: what a process that is killed has to measure again


class Kept:
    """Results of the attacks as far as they have come.

    Attributes:
        passes: by attack, (2, images done) bool on the CPU: which are right, and which have finite logits.
        seconds: by attack, the time spent.
        autoattack: where AutoAttack stands; None before it begins.

    Args:
        folder: where to keep it, made when it is not there; None to keep nothing.
        key: names everything that the results depend on; see `key_of`.
        n: number of images.
        stages: number of AutoAttack's stages.
    """

    def __init__(self, folder: str | Path | None, key: str, *, n: int, stages: int) -> None:
        self.passes: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self.autoattack: State | None = None
        self._key, self._n, self._stages, self._written = key, n, stages, time.monotonic()
        self._file = None if folder is None else Path(folder) / f"{key[:16]}.safetensors"
        if self._file is not None and self._file.exists():
            self._read(self._file)

    def save(self, *, due_only: bool = False) -> None:
        """Write what is known, whole or not at all; with `due_only`, at most every two seconds."""
        if self._file is None or (due_only and time.monotonic() - self._written < EVERY):
            return
        tensors = {f"passes/{name}": done.to(torch.uint8) for name, done in self.passes.items()}
        numbers: dict[str, Any] = {"seconds": self.seconds}
        if self.autoattack is not None:
            state = self.autoattack
            tensors["autoattack"] = state.fell_to
            numbers["autoattack"] = {
                "stage": state.stage,
                "batch": state.batch,
                "seconds": state.seconds,
                "met_zero_gradients": state.met_zero_gradients,
                "non_finite": state.non_finite,
            }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"key": self._key, "numbers": json.dumps(numbers)}
        write_whole(self._file, save(tensors, metadata | {"sum": _sum(tensors, **metadata)}))
        self._written = time.monotonic()

    def _read(self, file: Path) -> None:
        """Take up what an earlier call left; what is not whole is measured again."""
        try:
            with safe_open(file, framework="pt") as held:
                metadata = held.metadata()
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (it is no dict)
            if metadata.pop("sum") != _sum(tensors, **metadata):
                raise ValueError("it differs from its SHA-256")
            if metadata["key"] != self._key:
                raise ValueError("it is of another evaluation")
            numbers = json.loads(metadata["numbers"])
            passes = {
                name.partition("/")[2]: self._checked(done).bool()
                for name, done in tensors.items()
                if name.startswith("passes/")
            }
            autoattack = None
            if "autoattack" in tensors:
                autoattack = self._state(tensors["autoattack"], numbers["autoattack"])
            self.passes, self.autoattack = passes, autoattack
            self.seconds = {name: float(value) for name, value in numbers["seconds"].items()}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be used (%s); measuring again", file, error)

    def _checked(self, done: Tensor) -> Tensor:
        if done.dtype != torch.uint8 or done.ndim != 2 or len(done) != 2 or done.shape[1] > self._n:
            raise ValueError(f"results of {self._n} images cannot be {done.dtype} {tuple(done.shape)}")
        if done.numel() and int(done.max()) > 1:
            raise ValueError("flags are 0 or 1")
        return done

    def _state(self, fell_to: Tensor, numbers: dict[str, Any]) -> State:
        if fell_to.dtype != torch.int8 or fell_to.shape != (self._n,):
            raise ValueError(
                f"AutoAttack on {self._n} images cannot stand at {fell_to.dtype} {tuple(fell_to.shape)}"
            )
        stage, batch = int(numbers["stage"]), int(numbers["batch"])
        if not 0 <= stage <= self._stages or batch < 0:
            raise ValueError(f"AutoAttack has no stage {stage}, batch {batch}")
        if int(fell_to.min()) < min(STANDS, WRONG) or int(fell_to.max()) >= self._stages:
            raise ValueError("AutoAttack has no such stage")
        times, most = numbers["met_zero_gradients"]
        return State(
            fell_to,
            stage=stage,
            batch=batch,
            seconds={name: float(value) for name, value in numbers["seconds"].items()},
            met_zero_gradients=(int(times), int(most)),
            non_finite=int(numbers["non_finite"]),
        )


def _sum(tensors: Mapping[str, Tensor], *, key: str, numbers: str) -> str:
    return hashlib.sha256(f"{key}\n{numbers}\n{digest(tensors)}".encode()).hexdigest()


def key_of(subject: Subject, data: Sample, **settings: object) -> str:
    """SHA-256 of everything that the results depend on: network, images, labels, settings, versions, kind of device."""
    network = dict(subject.model.named_parameters()) | dict(subject.model.named_buffers())
    rest = {
        "network": [repr(subject.model), digest(network)],
        "images": digest({"images": data.images, "labels": data.labels}),
        "settings": settings,
        "layout": str(subject.layout),
        "device": subject.device.type,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
