"""What is timed: networks, a batch, our whole training step, and the floor under it.

Weights are those of a seed and images are noise: what a convolution costs does not depend on what it sees.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from harness import Contender
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from iad_ext import attacks, compiling, objectives, precision
from iad_ext.attacks import TRAINING_ATTACKS
from iad_ext.averaging import WeightAverage
from iad_ext.backbones import create_network
from iad_ext.batches import Batches
from iad_ext.data import ImageSet
from iad_ext.loop import Engine, accelerator_for
from iad_ext.modes import mode
from iad_ext.objectives import ADVERSARIAL_PASSES, Objective
from iad_ext.precision import Precision, wait_for
from iad_ext.randomness import stream

STEPS = 10
RATE = 1e-3  # small, so that the contenders' weights stay alike
FP32 = Precision(kind="fp32", channels_last=False, reason="as released: fp32, NCHW")

# what each method's step is called here, and at which epoch it is taken
OBJECTIVES: Mapping[str, tuple[Callable[[], Objective], int]] = {
    "AT": (objectives.at, 0),
    "TRADES": (objectives.trades, 0),
    "ARD": (objectives.ard, 0),
    "IAD-I in warm-up": (objectives.iad1, 0),
    "IAD-I": (objectives.iad1, 199),
    "AKD2": (objectives.akd2, 0),
    "IAD-II in warm-up": (objectives.iad2, 0),
    "IAD-II": (objectives.iad2, 199),
}


@dataclass(frozen=True)
class Method:
    """An objective, the epoch at which its step is taken, its training attack, and what else runs."""

    build: Callable[[], Objective]
    epoch: int
    attack: str | None = None
    average: bool = False
    awp: float = 0.0


@dataclass(frozen=True)
class Task:
    """A network, its images and the number of attack steps."""

    network: str
    batch: int
    size: int = 32
    classes: int = 10
    steps: int = STEPS
    dtype: torch.dtype = torch.float32

    def build(self, seed: int, device: torch.device) -> nn.Module:
        """The network with a seed's weights; seed 1 is the student, 2 and 3 are teachers."""
        network = create_network(self.network, num_classes=self.classes, seed=seed)
        return network.to(device, self.dtype)

    def pixels(self, device: torch.device) -> Tensor:
        """The images of a batch in [0, 1]."""
        return self.images(device).images.to(self.dtype).div(255)

    def images(self, device: torch.device, batches: int = 1) -> ImageSet:
        """Noise as uint8 with labels."""
        generator = stream("benchmark", self.batch, self.size)
        n = self.batch * batches
        pixels = torch.randint(256, (n, 3, self.size, self.size), generator=generator, dtype=torch.uint8)
        labels = torch.randint(self.classes, (n,), generator=generator)
        return ImageSet(pixels, labels, tuple(map(str, range(self.classes)))).to(device)

    def __str__(self) -> str:
        classes = f", {self.classes} classes" if self.classes != 10 else ""
        return f"{self.network} {self.size}² batch {self.batch}{classes}"


@lru_cache(maxsize=32)
def default_precision(task: Task, device: torch.device) -> Precision:
    """What a run would decide here: measured on this network, as `--precision auto` does."""
    shape = (3, task.size, task.size)
    return precision.probe(
        task.build(1, device), image_shape=shape, device=device, batch_size=min(64, task.batch)
    )


def passes_in_forwards(objective: Objective, epoch: int, steps: int) -> int:
    """The step's passes in units of one forward: a gradient of the images costs one more, a full backward two."""
    needed = objective.needs(epoch)
    attack = (2 * steps + (objective.attack == "trades")) if needed & ADVERSARIAL_PASSES else 0
    students = sum(name.startswith("student") for name in needed)
    return attack + 3 * students + len(needed) - students


@lru_cache(maxsize=32)
def flops_of_forward(task: Task) -> int:
    """Floating-point operations of one forward of one image: two a multiplication with addition."""
    network = task.build(1, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, mode(network, training=False), torch.no_grad():
        network(torch.zeros(1, 3, task.size, task.size))
    return int(counter.get_total_flops())


# ---------------------------------------------------------------------------------------------- our step


@contextmanager
def process_state(kept: dict[type, dict[str, Any]]) -> Iterator[None]:
    """Accelerate keeps one precision a process; each contender finds its own and leaves the others' alone."""
    states = (PartialState, AcceleratorState, GradientState)
    before = {state: dict(state._shared_state) for state in states}
    for state in states:
        state._shared_state.clear()
        state._shared_state.update(kept.get(state, {}))
    try:
        yield
    finally:
        for state in states:
            kept[state] = dict(state._shared_state)
            state._shared_state.clear()
            state._shared_state.update(before[state])


class Ours:
    """The engine's whole step, as a run does it: batch, random start, attack, passes, loss, figures, update.

    Without the passes that only figures read: `--diagnostics off`.
    """

    def __init__(
        self,
        task: Task,
        objective: str | Method,
        device: torch.device,
        decided: Precision,
        *,
        attack: str | None = None,
        compile: str = "auto",  # noqa: A002 (the setting's name)
        **engine: Any,
    ) -> None:
        self.task, self.device = task, device
        method = objective if isinstance(objective, Method) else Method(*OBJECTIVES[objective])
        self.objective, self.epoch = method.build(), method.epoch
        attack = attack or method.attack or ("trades" if self.objective.attack == "trades" else "pgd")
        needed = self.objective.needs(self.epoch)
        if needed & ADVERSARIAL_PASSES:
            needed |= TRAINING_ATTACKS[attack].reads
        through_teacher = TRAINING_ATTACKS[attack].through_teacher
        asks_teacher = through_teacher or any(name.startswith("teacher") for name in needed)
        memory_format = torch.channels_last if decided.channels_last else torch.contiguous_format

        def network(seed: int) -> nn.Module:
            return task.build(seed, device).to(memory_format=memory_format)

        self.student = network(1).train()
        teacher = network(2).eval().requires_grad_(False) if asks_teacher else None
        self.attack = None
        if needed & ADVERSARIAL_PASSES:
            self.attack = attacks.build(
                attack,
                self.student,
                teacher=teacher,
                steps=task.steps,
                training=self.objective.attack_training,
                loss_scale=decided.attack_loss_scale,
            )
        self._state: dict[type, dict[str, Any]] = {}
        source = Batches(
            task.images(device),
            batch_size=task.batch,
            seed=0,
            padding=4,
            flip=True,
            channels_last=decided.channels_last,
        )
        with process_state(self._state):
            accelerator = accelerator_for(decided, cpu=device.type == "cpu")
            self.compilation = compiling.Compilation("off", "nothing is attacked")
            run: Any = self.attack
            if self.attack is not None:
                images, autocast = source.batch(0, 0).images, accelerator.autocast
                self.compilation = compiling.decide(
                    compile, self.attack, images, classes=task.classes, autocast=autocast
                )
                run = compiling.compiled(self.attack, self.compilation)
            self.engine = Engine(
                accelerator=accelerator,
                student=self.student,
                optimizer=sgd(self.student),
                objective=self.objective,
                source=source,
                seed=0,
                attack=run,
                diagnostics="off",
                teacher=teacher,
                natural_teacher=network(3) if any(n.startswith("natural_teacher") for n in needed) else None,
                average=WeightAverage(self.student) if method.average else None,
                awp=method.awp,
                **engine,
            )

    def step(self) -> None:
        """One update."""
        with process_state(self._state):
            self.engine._update(self.epoch, 0)

    def warm(self) -> None:
        """The same with one attack step: every kernel has been seen, at a fraction of the price."""
        if self.attack is None or self.device.type == "cuda":
            return self.step()
        self.attack.steps = 1
        try:
            self.step()
        finally:
            self.attack.steps = self.task.steps

    def contender(self) -> Contender:
        """For a race."""
        return Contender(run=self.step, warm=self.warm)


def sgd(student: nn.Module) -> torch.optim.SGD:
    """The paper's optimizer, at a rate that changes little."""
    return torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, weight_decay=2e-4)


# ---------------------------------------------------------------------------------------------- the floor


class Floor:
    """The same passes and an SGD step, and nothing else: no attack arithmetic, no loss, no data, no figures.

    Gradients of the logits are constants, the images are the same in every pass.
    """

    def __init__(self, task: Task, objective: str, device: torch.device, decided: Precision) -> None:
        build, epoch = OBJECTIVES[objective]
        self.objective, self.task, self.device = build(), task, device
        self.needed = self.objective.needs(epoch)
        self.steps = task.steps if self.needed & ADVERSARIAL_PASSES else 0
        memory_format = torch.channels_last if decided.channels_last else torch.contiguous_format

        def network(seed: int) -> nn.Module:
            return task.build(seed, device).to(memory_format=memory_format)

        self.student = network(1).train()
        self.teacher = network(2).eval().requires_grad_(False)
        self.natural_teacher = network(3).eval().requires_grad_(False)
        self.optimizer = sgd(self.student)
        pixels = task.pixels(device)
        self.images = pixels.contiguous(memory_format=memory_format)
        self.leaf = self.images.clone().requires_grad_(True)
        self.both = torch.cat([self.images, self.images])
        self.gradient = torch.randn(task.batch, task.classes, device=device) / task.batch
        self.autocast = autocast_of(decided, device)
        self.search = device.type == "cuda" and self._gains_from_search()

    def _gains_from_search(self) -> bool:
        """Whether cuDNN's search for the fastest kernels pays: the floor is the best configuration."""
        seconds = {}
        for self.search in (False, True):
            self.step()
            wait_for(self.device)
            began = time.perf_counter()
            self.step()
            wait_for(self.device)
            seconds[self.search] = time.perf_counter() - began
        return seconds[True] < seconds[False]

    def step(self) -> None:
        """The passes of one update."""
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=self.search, allow_tf32=torch.backends.cudnn.allow_tf32
        ):
            self._passes()

    def _passes(self) -> None:
        with self.autocast():
            with mode(self.student, training=self.objective.attack_training):
                if self.steps and self.objective.attack == "trades":
                    with torch.no_grad():
                        self.student(self.images)
                for _ in range(self.steps):
                    logits = self.student(self.leaf)
                    torch.autograd.grad(logits, self.leaf, self.gradient.to(logits.dtype))
            of_teacher = len(self.needed & {"teacher_nat", "teacher_adv"})
            with torch.inference_mode():
                if of_teacher:
                    self.teacher(self.both if of_teacher == 2 else self.images)
                if "natural_teacher_adv" in self.needed:
                    self.natural_teacher(self.images)
            passes = [self.student(self.images) for name in sorted(self.needed) if name.startswith("student")]
        torch.autograd.backward(passes, [self.gradient.to(logits.dtype) for logits in passes])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def warm(self) -> None:
        """The same with one attack step."""
        before, self.steps = self.steps, min(self.steps, 1)
        self.step()
        self.steps = before

    def contender(self) -> Contender:
        """For a race."""
        return Contender(run=self.step, warm=self.warm)


def autocast_of(decided: Precision, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """The autocast of a precision."""
    if decided.kind == "fp32":
        return nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[decided.kind]
    return lambda: torch.autocast(device.type, dtype)


class Counted:
    """Counts images that go forward through networks, and backwards through them."""

    def __init__(self, *networks: nn.Module) -> None:
        self.forwards = self.backwards = 0
        self._handles = [network.register_forward_hook(self._forward) for network in networks]

    def _forward(self, _module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forwards += len(args[0])
        if logits.requires_grad:
            logits.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def close(self) -> tuple[int, int]:
        """Take the hooks away; (images forward, images backward)."""
        for handle in self._handles:
            handle.remove()
        return self.forwards, self.backwards


def same_passes(task: Task, objective: str, device: torch.device) -> dict[str, Any]:
    """That the floor runs the step's own passes: images forward and backward through each, counted."""
    small = Task(task.network, 2, task.size, task.classes, steps=3)
    ours, floor = (kind(small, objective, device, FP32) for kind in (Ours, Floor))
    counts = []
    for contender, networks in (
        (ours, [ours.student, ours.engine.teacher, ours.engine.natural_teacher]),
        (floor, [floor.student, floor.teacher, floor.natural_teacher]),
    ):
        counted = Counted(*(network for network in networks if network is not None))
        contender.step()
        counts.append(counted.close())
    if counts[0] != counts[1]:
        raise RuntimeError(f"{objective}: the step and its floor differ in passes: {counts}")
    return {"images forward, backward": [n // small.batch for n in counts[0]]}
