"""AutoAttack "standard", batch by batch, with the flags that pyautoattack's own loop gives.

pyautoattack attacks the images still standing in batches, reseeds before every batch and counts what is left.
This module walks the same batches in the same order with attacks that decide as the stock ones do (`lean`), and so
ends with the same flags. What differs is around them: the state after every batch is in one's hands (for a progress
bar, or to save it and go on later), warnings come back as data, the network is the caller's frozen one, and
networks of fewer than ten classes work.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyautoattack import checks

from iad_ext.evaluation.lean import LeanAPGD, LeanAPGDTargeted, LeanFAB, LeanSquare
from iad_ext.evaluation.masking import Flag
from iad_ext.evaluation.samples import Sample
from iad_ext.evaluation.subject import Subject
from iad_ext.evaluation.turns import ALONE, Turns
from iad_ext.names import refuse_unknown
from iad_ext.reliability import predicts
from iad_ext.types import Flags, Images, Labels

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
BUDGET = {"n_iter": 100, "n_queries": 5000}

STANDS = -1  # no stage has broken the image yet
WRONG = -2  # wrong without any attack


@dataclass(frozen=True)
class Outcome:
    """What a stage did to a batch: `fell` of the images at `positions`, and the two counts of `State`."""

    positions: torch.Tensor
    fell: torch.Tensor
    non_finite: int
    met_zero_gradients: tuple[int, int]


@dataclass
class State:
    """Where a run stands after a batch: all that it needs to go on from there.

    Attributes:
        fell_to: (N,) int8 on the CPU, by image: the index of the stage that broke it, or STANDS or WRONG.
        stage: index of the stage at work; the number of stages when the run is over.
        batch: batches of that stage that are done.
        seconds: time spent, by stage.
        met_zero_gradients: how often targeted APGD started on images with an exactly zero gradient, and the most
            images at once.
        non_finite: images that a stage answered with an image on which the logits are not finite.
    """

    fell_to: torch.Tensor
    stage: int = 0
    batch: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    met_zero_gradients: tuple[int, int] = (0, 0)
    non_finite: int = 0

    @classmethod
    def start(cls, natural: Flags) -> "State":
        """Return the state before the first batch; `natural` says which images are right unattacked."""
        fell_to = torch.full((len(natural),), STANDS, dtype=torch.int8)
        fell_to[~natural.cpu()] = WRONG
        return cls(fell_to)

    @property
    def robust(self) -> Flags:
        """(N,), which images are right naturally and under every stage so far."""
        return self.fell_to == STANDS

    def take(self, outcome: Outcome) -> None:
        """Note what a batch of the stage at work came to."""
        self.fell_to[outcome.positions[outcome.fell]] = self.stage
        self.non_finite += outcome.non_finite
        (times, most), (more, at_once) = self.met_zero_gradients, outcome.met_zero_gradients
        self.met_zero_gradients = times + more, max(most, at_once)


class _Warnings:
    """Stands where pyautoattack expects a logger, and keeps what it says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, message: str) -> None:
        self.said.append(message)

    def zero_gradients(self) -> tuple[int, int]:
        """Return how often a zero gradient was met, and on how many images at most; then forget it."""
        counts = [
            int(found[1])
            for text in self.said
            if (found := re.search(r"(\d+) points with zero gradient", text))
        ]
        self.said.clear()
        return len(counts), max(counts, default=0)


class Runner:
    """The stages of AutoAttack "standard" on one network.

    Args:
        subject: the network, in eval mode and frozen.
        classes: C, how many it tells apart. Below 10 the targeted stages aim at the C − 1 others; below 4 the
            targeted DLR loss is not defined and its stage is left out.
        eps: L∞ radius in pixels of [0, 1].
        seed: set before every batch, as AutoAttack does.
        batch_size: images a batch; the random starts, and so the flags, depend on it.
        settings: a smaller budget for trials: `n_iter` of APGD and FAB (100), `n_queries` of Square (5000).

    Raises:
        TypeError: `settings` has other keys, or values that are no integers.
        ValueError: `settings` has values below 1.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        classes: int,
        eps: float,
        seed: int,
        batch_size: int,
        settings: Mapping[str, int] | None = None,
    ) -> None:
        self.subject, self.seed, self.batch_size = subject, seed, batch_size
        self.classes = classes
        self.budget = BUDGET | _checked({} if settings is None else settings)
        self.stages = tuple(stage for stage in STANDARD if stage != "apgd-t" or classes > 3)
        self.targets = min(9, classes - 1)
        self.warnings = _Warnings()
        self.attacks = self._build(eps)

    def _build(self, eps: float) -> dict[str, Any]:
        """The attacks of AutoAttack's version "standard", by stage."""
        common = {
            "eps": eps,
            "norm": "Linf",
            "seed": self.seed,
            "device": self.subject.device,
            "verbose": False,
        }
        # step-size checkpoints stay those of 100 iterations: a trimmed run is the standard one cut short
        climb = common | {"n_restarts": 1, "n_iter": BUDGET["n_iter"], "rho": 0.75, "logger": self.warnings}
        walk = common | {"n_restarts": 1, "n_iter": self.budget["n_iter"], "targeted": True}
        search = common | {"n_restarts": 1, "n_queries": self.budget["n_queries"], "resc_schedule": False}
        attacks: dict[str, Any] = {
            "apgd-ce": LeanAPGD(self.subject, loss="ce", **climb),
            "apgd-t": LeanAPGDTargeted(self.subject, n_target_classes=self.targets, **climb),
            "fab-t": LeanFAB(self.subject, n_target_classes=self.targets, **walk),
            "square": LeanSquare(self.subject, p_init=0.8, **search),
        }
        attacks["apgd-ce"].n_iter = attacks["apgd-t"].n_iter = self.budget["n_iter"]
        return attacks

    def queue(self, state: State) -> torch.Tensor:
        """Return the positions that stood when the stage at work began, also in the middle of it."""
        return ((state.fell_to == STANDS) | (state.fell_to == state.stage)).nonzero()[:, 0]

    def run_stage(self, sample: Sample, state: State, turns: Turns = ALONE) -> Iterator[int]:
        """Bring the stage at work to its end, changing `state`; yields after every round its number of images.

        A round is a batch of each process. A batch is attacked in the same way whoever does it, so that the flags are
        those of one process. Images are attacked in float32 whatever the type of the network, as pyautoattack does.
        """
        sample = Sample(sample.images, sample.labels, sample.device, torch.float32)
        queue, name = self.queue(state), self.stages[state.stage]
        batches = queue.split(self.batch_size) if len(queue) else ()
        while state.batch < len(batches):
            began = time.perf_counter()
            mine = batches[state.batch + turns.rank :][:1]
            outcomes = turns.joined(self._attacked(name, sample, mine[0]) if mine else None)
            for outcome in outcomes:
                state.take(outcome)
            state.batch += len(outcomes)
            state.seconds[name] = state.seconds.get(name, 0.0) + time.perf_counter() - began
            yield sum(len(outcome.positions) for outcome in outcomes)
        state.stage, state.batch = state.stage + 1, 0

    def _attacked(self, stage: str, sample: Sample, positions: torch.Tensor) -> Outcome:
        images, labels = sample.batch(positions)
        with torch.no_grad():
            logits = self.subject(self._perturb(stage, images, labels))
        return Outcome(
            positions,
            fell=(~predicts(logits, labels)).cpu(),
            non_finite=int((~logits.isfinite().all(dim=1)).sum()),
            met_zero_gradients=self.warnings.zero_gradients(),
        )

    def _perturb(self, stage: str, images: Images, labels: Labels) -> Images:
        self.attacks[stage].seed = self.seed
        adv: Images = self.attacks[stage].perturb(images, labels)
        return adv

    def protocol(self, state: State) -> dict[str, Any]:
        """Say what was run, for every stage how many images it attacked and broke, and which fell to Square."""
        n, stages = len(state.fell_to), []
        for index, name in enumerate(self.stages):
            attacked = int(((state.fell_to == STANDS) | (state.fell_to >= index)).sum())
            broken = int((state.fell_to == index).sum())
            stages.append(
                {
                    "stage": name,
                    "attacked": attacked,
                    "broken": broken,
                    "robust": 100 * (attacked - broken) / n,
                    "seconds": state.seconds.get(name, 0.0),
                }
            )
        return {
            "attack": "AutoAttack",
            "version": "standard" if self.budget == BUDGET else "trimmed",
            "mode": "eval",
            **self.budget,
            "n_target_classes": self.targets,
            "stages": stages,
            "fell_to_square": (state.fell_to == self.stages.index("square")).nonzero()[:, 0].tolist(),
        }

    def flags(self, sample: Sample, state: State) -> Iterator[Flag]:
        """What AutoAttack has to say about the network and about this run."""
        n = len(state.fell_to)
        if self.budget != BUDGET:
            yield Flag(
                flag="non_standard_budget",
                attack="aa",
                images=n,
                detail=f"AutoAttack ran with {self.budget} instead of {BUDGET}: the percentage is too high "
                "and cannot be compared with published ones. Leave aa_settings out",
            )
        if "apgd-t" not in self.stages:
            yield Flag(
                flag="targeted_dlr_left_out",
                attack="aa",
                images=n,
                detail=f"the targeted DLR loss needs 4 classes, the network has {self.classes}: AutoAttack "
                "ran without APGD-T. Say so beside the number",
            )
        times, most = state.met_zero_gradients
        if times:
            yield Flag(
                flag="zero_gradients",
                attack="aa",
                images=most,
                detail=f"targeted APGD started {times} times on images whose gradient is exactly zero, up "
                f"to {most} of them in a batch of {self.batch_size}: it cannot move there. See whether "
                "Square breaks them",
            )
        if self._computes_gradients(sample):
            yield Flag(
                flag="dynamic_defense",
                attack="aa",
                images=n,
                detail="the network computes gradients or runs an optimisation inside its forward: "
                "AutoAttack may be too weak for it. Use an attack that goes through that computation",
            )

    def _computes_gradients(self, sample: Sample) -> bool:
        """Ask pyautoattack's check, which traces the calls of one forward; a debugger's trace is put back."""
        images, _ = sample.batch(slice(0, self.batch_size))
        log, trace = _Warnings(), sys.gettrace()
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # it never starts counting afresh
        try:
            checks.check_dynamic(self.subject, images, logger=log)
        finally:
            sys.settrace(trace)
        return bool(log.said)


def _checked(settings: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(settings, Mapping):
        raise TypeError(f"aa_settings: expected a mapping such as {BUDGET}, got {settings!r}")
    refuse_unknown("AutoAttack setting", settings, BUDGET)
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"aa_settings: {name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"aa_settings: {name} must be at least 1, got {value}")
    return dict(settings)
