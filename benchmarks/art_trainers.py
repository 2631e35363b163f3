"""(c) ART's own trainers / our loop on the same objective, attack, network and batch; our ART door / our loop."""

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from equivalence import compared, our_update, small
from harness import Bench, Contender
from torch import nn
from workloads import FP32, RATE, Ours, Task, default_precision, sgd

from iad_ext import attacks, precision
from iad_ext.trainer import IntrospectiveAdversarialDistiller

SMALL = "cifar_resnet8"


class ByART:
    """A trainer of ART's on a network with a seed's weights; a step is a `fit` on one batch."""

    def __init__(
        self, task: Task, objective: str, device: torch.device, *, random_start: bool = True
    ) -> None:
        self.task, self.student = task, task.build(1, device)
        data = task.images(device)
        self.x = task.pixels(device).cpu().numpy()
        self.y = np.eye(task.classes, dtype=np.float32)[data.labels.cpu().numpy()]
        self.optimizer = sgd(self.student)
        self.classifier = PyTorchClassifier(
            self.student,
            loss=nn.CrossEntropyLoss(),
            input_shape=(3, task.size, task.size),
            nb_classes=task.classes,
            optimizer=self.optimizer,
            clip_values=(0.0, 1.0),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )
        settings: dict[str, Any] = {
            "eps": attacks.EPS,
            "eps_step": attacks.STEP,
            "max_iter": task.steps,
            "num_random_init": int(random_start),
        }
        self._fit: Callable[[], object]
        if objective == "AT":
            madry = AdversarialTrainerMadryPGD(
                self.classifier, nb_epochs=1, batch_size=task.batch, **settings
            )
            self.attack = madry.attack
            # 32 images at a time unless it is told
            self.attack.set_params(batch_size=task.batch, verbose=False)
            self._fit = lambda: madry.fit(self.x, self.y, batch_size=task.batch, nb_epochs=1)
        else:
            self.attack = ProjectedGradientDescent(
                self.classifier, batch_size=task.batch, verbose=False, **settings
            )
            trades = AdversarialTrainerTRADESPyTorch(self.classifier, self.attack, beta=6.0)
            self._fit = lambda: trades.fit(self.x, self.y, batch_size=task.batch, nb_epochs=1)

    def step(self) -> None:
        """One update, through ART's fit; its progress bars go nowhere."""
        with contextlib.redirect_stderr(io.StringIO()):
            self._fit()

    def warm(self) -> None:
        """The same with one attack step."""
        self.attack.set_params(max_iter=1)
        self.step()
        self.attack.set_params(max_iter=self.task.steps)

    def contender(self) -> Contender:
        """For a race."""
        return Contender(run=self.step, warm=self.warm)


def our_loop(task: Task, objective: str, device: torch.device, decided: precision.Precision) -> Contender:
    """Ours with ART's attack: PGD on cross-entropy in eval mode, for TRADES too."""
    ours = Ours(task, objective, device, decided, attack="pgd")
    return ours.contender()


def measure(bench: Bench, task: Task, objective: str, share: float) -> dict[str, Any]:
    """One objective by ART's trainer, by ours in fp32 NCHW as ART's, and by ours as it runs by default."""
    logging.getLogger("art").setLevel(logging.WARNING)
    check = art_is_ours(task, objective, bench.device)
    decided = default_precision(task, bench.device)
    timings = bench.race(
        {
            "ours": our_loop(task, objective, bench.device, decided),
            "ours fp32": our_loop(task, objective, bench.device, FP32),
            "ART": ByART(task, objective, bench.device).contender(),
        },
        share=share,
    )
    return {
        "ART / ours": timings.ratio("ART", "ours"),
        "ART / ours at fp32": timings.ratio("ART", "ours fp32"),
        "precision": f"{decided.kind}{' channels_last' if decided.channels_last else ''}",
        "equivalence": check,
        "seconds": timings.plain(),
    }


def art_is_ours(task: Task, objective: str, device: torch.device) -> dict[str, Any]:
    """One update of each in fp32 without a random start: x̃, and the weights afterwards.

    ART's TRADES runs S(x) before S(x̃), ours after it: running statistics are left out there.
    """
    few = small(task)
    theirs = ByART(few, objective, device, random_start=False)
    adversarial = theirs.attack.generate(theirs.x, y=theirs.y)
    theirs.step()
    other = {
        "adversarial": torch.from_numpy(adversarial).to(device),
        "weights": {name: p.detach() for name, p in theirs.student.named_parameters()},
        "buffers": {n: b for n, b in theirs.student.named_buffers() if b.is_floating_point()},
    }
    zero = torch.zeros(theirs.x.shape, device=device)
    ours = our_update(few, objective, device, start=zero, attack="pgd")
    parts = ("weights",) if objective == "TRADES" else ("weights", "buffers")
    return compared(ours, other, parts=parts)


# ---------------------------------------------------------------------------------------------- our own door


def door(bench: Bench, task: Task, batches: int, share: float) -> dict[str, Any]:
    """Our ART trainer's whole `fit` of some batches over as many steps of the loop."""
    kind = default_precision(task, bench.device).kind
    decided = precision.asked(kind, reason="as the door is asked")
    loop = Ours(task, "AT", bench.device, decided)
    student = task.build(1, bench.device)
    classifier = PyTorchClassifier(
        student,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, task.size, task.size),
        nb_classes=task.classes,
        optimizer=torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, weight_decay=2e-4),
        clip_values=(0.0, 1.0),
        device_type="gpu" if bench.device.type == "cuda" else "cpu",
    )
    trainer = IntrospectiveAdversarialDistiller(classifier, objective="at", precision=kind)
    data = task.images(bench.device, batches)
    x, y = data.images.float().div(255).cpu().numpy(), data.labels.cpu().numpy()

    def steps() -> None:
        for _ in range(batches):
            loop.step()

    timings = bench.race(
        {
            "loop": Contender(run=steps, warm=loop.warm),
            "door": Contender(
                run=lambda: trainer.fit(x, y, batch_size=task.batch, nb_epochs=1),
                warm=lambda: trainer.fit(
                    x[: task.batch], y[: task.batch], batch_size=task.batch, nb_epochs=1
                ),
            ),
        },
        share=share,
    )
    return {"door / loop": timings.ratio("door", "loop"), "seconds": timings.plain()}


# ---------------------------------------------------------------------------------------------- the group


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    assert only == {"c"}
    gpu = bench.device.type == "cuda"
    if bench.quick:
        tasks, doors = [(Task(SMALL, 4, 8, steps=2), 0.0)], [(Task(SMALL, 4, 8, steps=2), 2, 0.0)]
    else:
        tasks = [(Task("cifar_resnet18", 128), 0.03 if gpu else 0.1), (Task(SMALL, 128), 0.005)]
        doors = [
            (Task("cifar_resnet18", 128 if gpu else 32), 8 if gpu else 3, 0.02),
            (Task(SMALL, 128), 8, 0.005),
        ]
    rows = []
    for task, share in tasks:
        for objective in ("TRADES", "AT"):
            found = bench.case(
                f"ART: {task}: {objective}", lambda t=task, o=objective, s=share: measure(bench, t, o, s)
            )
            rows.append(
                {
                    "network": str(task),
                    "objective": objective,
                    "ART / ours at fp32": found.get("ART / ours at fp32", found.get("failed")),
                    "target at fp32": 1.4 if not gpu and objective == "TRADES" else None,
                    "ART / ours": found.get("ART / ours"),
                    "target": (6.0 if gpu else 3.5) if objective == "TRADES" else None,
                    "ours": found.get("precision"),
                    "check": ", ".join(f"{k} {v}" for k, v in found.get("equivalence", {}).items()),
                }
            )
    for task, batches, share in doors:
        found = bench.case(
            f"ART door: {task}: {batches} batches", lambda t=task, b=batches, s=share: door(bench, t, b, s)
        )
        rows.append(
            {
                "network": f"{task}, {batches} batches",
                "objective": "AT",
                "our door / our loop": found.get("door / loop", found.get("failed")),
            }
        )
    notes = (
        "ART's `AdversarialTrainerTRADESPyTorch` (beta 6) and `AdversarialTrainerMadryPGD` through their own `fit`, "
        "one batch a fit, attacked by ART's `ProjectedGradientDescent` in batches of the whole (its default of 32 "
        "images would be slower). Ours attacks likewise: PGD-10 on cross-entropy in eval mode. Ours cuts and flips "
        "its images besides, ART does not.",
        "The door's time is that of a whole fit, its checks of the user's input included.",
    )
    return [bench.report("c", "ART's trainers / our loop", rows, notes)]
