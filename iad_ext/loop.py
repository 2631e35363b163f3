"""Epochs under accelerate: one engine behind the recipes and the ART door.

Order, augmentation and random starts come from (seed, epoch, step); the engine itself remembers only weights,
the optimizer and the running sums of the epoch it is in.
"""

import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from iad_ext.averaging import WeightAverage
from iad_ext.checkpoint import optimizer_numbers, optimizer_tensors, restore_optimizer
from iad_ext.diagnostics import FIGURES, HISTOGRAM, Sums, figures, introspection_share
from iad_ext.modes import buffers_kept, mode
from iad_ext.objectives import Loss, Objective, Outputs
from iad_ext.precision import Precision
from iad_ext.processes import anyone
from iad_ext.randomness import stream_seed
from iad_ext.step import Attack, BnOrder, Prepared, Step, StepResult
from iad_ext.teachers import refuse_student
from iad_ext.types import Images, Labels, Logits, PerImage

log = logging.getLogger(__name__)

_NEVER = 2**31  # a step that no run reaches
_BROKEN = (
    "What was saved before is whole; look for NaN in the data, lower the learning rate, or train in fp32"
)
Diagnostics = Literal["full", "half", "off"]
# of how many batches one gets the teacher's passes that only the figures read; 0 for none
OBSERVED: Mapping[Diagnostics, int] = {"full": 1, "half": 2, "off": 0}
UNDERFLOW = "attack/zero_gradient"  # percent of the attack's steps, known under fp16 only
SKIPPED_IN_A_ROW = 20  # from so many on, it is not a bad batch but a broken run


class TrainingStopped(RuntimeError):  # noqa: N818 (it is what happened)
    """Training cannot go on, such as at a loss that is not a number; what was saved before is whole."""


class Batch(Protocol):
    """One process's part of a global batch."""

    @property
    def images(self) -> Images: ...  # noqa: D102
    @property
    def labels(self) -> Labels: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def total(self) -> int: ...  # noqa: D102


class Source(Protocol):
    """Where batches come from; `iad_ext.batches.Batches` is one."""

    def __len__(self) -> int: ...
    def batch(self, epoch: int, step: int, *, part: int = 0, parts: int = 1) -> Batch: ...  # noqa: D102


class InPixels(nn.Module):
    """The student as accelerate prepares it: a shell, so that the network itself keeps its own forward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Images) -> Logits:
        """Return the network's logits."""
        logits: Logits = self.network(images)
        return logits


def accelerator_for(precision: Precision, *, cpu: bool = False) -> Accelerator:
    """An accelerator in that precision, on a CPU where asked or where there is no CUDA device.

    Two student forwards before one backward need BatchNorm's buffers left alone in between: they are averaged over
    the processes at the end of an epoch instead of broadcast at every forward.
    """
    # accelerate keeps one precision for the whole process; a second run in it may have another
    if (
        AcceleratorState._shared_state.get("_mixed_precision", precision.mixed_precision)
        != precision.mixed_precision
    ):
        AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=precision.mixed_precision,
        cpu=cpu or not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        # parts of a batch are the engine's own; accelerate's environment variable would divide gradients once more
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


@dataclass(kw_only=True)
class Engine:
    """Trains one student, an epoch at a time.

    Attributes:
        accelerator: processes, precision, backward.
        student: the raw network, on its device; attacked, trained in place.
        optimizer: over the student's parameters.
        objective: what is minimised.
        attack: makes adversarial images on the raw student.
        source: batches by (epoch, step).
        seed: of the random starts.
        teacher: T_at, frozen, in eval mode, on the device; None where no pass reads it.
        natural_teacher: T_st, likewise.
        accumulation: parts that a process computes its share of a batch in.
        look_every: steps between two looks at the device for a loss that is not finite.
        non_finite: what a loss or gradient that is not finite does: `stop` the training, or `skip` its step, which
            leaves weights, optimizer and BatchNorm as they were; skipping looks at the device in every step.
        diagnostics: whether T(x) and T(x̃) are run for the figures too where the objective does not read them: in every
            step (`full`), in every second one (`half`), or not (`off`). Training is the same to the last bit.
        bn_order: which passes BatchNorm's running statistics see, as for `Step`.
        average: follows the student's weights; where the objective reads its passes and none is given, one is made.
        awp: γ of adversarial weight perturbation (Wu et al. 2020), 0 for none: weights are moved by γ times their
            layer's norm along the loss's gradient, the step's own gradient is taken there, and they are put back.
        awp_start: first epoch with it.
        balance: the state of an objective that balances its terms; None for another.
        skipped: steps of the epoch that were skipped.
        seconds: that the epoch's training has taken so far, before a stop too.
        images: that it has trained on so far, likewise.
    """

    accelerator: Accelerator
    student: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    source: Source
    seed: int
    attack: Attack | None = None
    teacher: nn.Module | None = None
    natural_teacher: nn.Module | None = None
    accumulation: int = 1
    look_every: int = 50
    non_finite: Literal["stop", "skip"] = "stop"
    diagnostics: Diagnostics = "half"
    bn_order: BnOrder = "lean"
    average: WeightAverage | None = None
    awp: float = 0.0
    awp_start: int = 0
    balance: Tensor | None = field(init=False, default=None)
    sums: Sums = field(init=False)
    skipped: int = field(init=False, default=0)
    seconds: float = field(init=False, default=0.0)
    images: int = field(init=False, default=0)
    _epoch: int = field(init=False, default=0)
    _step: Step = field(init=False)
    _in_a_row: int = field(init=False, default=0)
    _one_image_fits: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            self.look_every = 1  # nothing to wait for
        teachers = {"teacher": self.teacher, "natural_teacher": self.natural_teacher}
        for role, network in teachers.items():
            if network is not None:
                refuse_student(self.student, network, role)  # before it is frozen
                network.eval().requires_grad_(False)
        # the optimizer's state lies where its parameters do; placing it anew would replace its param_groups, which
        # whoever made a scheduler may hold
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; accelerate passes the old name, which torch 2.11 knows too
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self._shell, self._prepared_optimizer = self.accelerator.prepare(
                InPixels(self.student), self.optimizer, device_placement=[True, False]
            )
        if self.average is None and self.objective.average_decay is not None:
            self.average = WeightAverage(self.student, decay=self.objective.average_decay)
        if self.objective.balance is not None:
            self.balance = self.objective.balance.begin(self.device)
        self._step = Step(
            objective=self.objective,
            forward=self._shell,
            attack=self.attack,
            teacher=self.teacher,
            natural_teacher=self.natural_teacher,
            average=self.average.network if self.average is not None else None,
            autocast=self.accelerator.autocast,
            bn_order=self.bn_order,
        )
        self._generator = torch.Generator(device=self.device)
        self._first_bad: dict[str, Tensor] = {}
        self.sums = Sums(self.device)

    def measurable(self, epoch: int, *, reestimate: bool) -> nn.Module:
        """What is measured after `epoch`: the student, or a copy of its average where it has one.

        Args:
            epoch: the epoch that was trained last.
            reestimate: give the average BatchNorm statistics of that epoch's images as they were trained on, cropped,
                mirrored and mixed: those that the student's own were taken from, before they were attacked.
                Otherwise it has its averaged ones.
        """
        if self.average is None:
            return self.student
        if not reestimate:
            return self.average.measurable(None)
        batches = (self.source.batch(epoch, step) for step in range(len(self.source)))
        return self.average.measurable(
            batch.images.to(self.device) for batch in batches if batch.total >= self._parts
        )

    # ------------------------------------------------------------------------------------------ batches

    def check_batches(self) -> None:
        """Refuse batches that cannot be trained on in so many parts, before the first step; changes nothing.

        Of a source that only goes forward, the first batch alone is known by now.

        Raises:
            ValueError: no batch has an image for each part, or the student cannot be trained on a part of one image.
        """
        last = 0 if getattr(self.source, "in_turn", False) else len(self.source) - 1
        parts = self._parts
        with self._random_state_kept():
            batches = [self.source.batch(0, step, part=parts - 1, parts=parts) for step in sorted({0, last})]
        shared = [batch for batch in batches if batch.total >= parts]
        if not shared:
            largest = max(batch.total for batch in batches)
            raise ValueError(
                f"a batch of size {largest} has not one image for each of {self._of_parts}; "
                "give more images or a larger batch size, or lower the accumulation or the number of processes"
            )
        smallest = min(shared, key=lambda batch: batch.total)
        if smallest.total < 2 * parts:
            self._try_one_image(smallest)

    def _try_one_image(self, batch: Batch) -> None:
        """BatchNorm, for one, has no statistics of a single value: some students cannot be trained on one image."""
        if self._one_image_fits:
            return
        one = batch.images[:1]
        with (
            self._random_state_kept(),
            buffers_kept(self.student),
            mode(self.student, training=True),
            torch.no_grad(),
        ):
            try:
                self.student(one)
            except ValueError as error:
                raise ValueError(
                    f"a batch of size {batch.total} in {self._of_parts} has a part of one image, and the student "
                    f"cannot be trained on one image ({error}); choose another batch size, accumulation or number of "
                    "processes, or another number of images"
                ) from error
        self._one_image_fits = True

    @property
    def _parts(self) -> int:
        """In how many parts a batch is computed."""
        processes: int = self.accelerator.num_processes
        return processes * self.accumulation

    @property
    def _of_parts(self) -> str:
        """The parts, for people."""
        processes = self.accelerator.num_processes
        return f"{self._parts} parts (processes × accumulation = {processes} × {self.accumulation})"

    # ------------------------------------------------------------------------------------------ epochs

    def epoch(
        self,
        epoch: int,
        *,
        first_step: int = 0,
        rate: float | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Train from `first_step` to the end of `epoch`.

        Args:
            epoch: counted from 0.
            first_step: where a continued epoch goes on; its earlier steps' figures are then in `sums` already.
            rate: learning rate of the epoch; the optimizer's own when None.
            after_step: called with the number of steps done, after each one.

        Returns:
            The epoch's figures under the flat names of `metrics.jsonl`; None for a pass that did not run.

        Raises:
            TrainingStopped: a loss was not finite; names the step and the term.
        """
        self.student.train()
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        if first_step == 0:
            self.sums, self.skipped, self.seconds, self.images = Sums(self.device), 0, 0.0, 0
        self._epoch, self._first_bad = epoch, {}
        began = time.perf_counter() - self.seconds
        _reset_peak_memory(self.device)
        with self._random_state_kept(), self._bar(epoch, first_step) as bar:
            for step in range(first_step, len(self.source)):
                self.images += self._update(epoch, step)
                if (step + 1) % self.look_every == 0:
                    self._refuse_bad_loss()
                self.seconds = time.perf_counter() - began
                bar.set_postfix_str(f"{self.images / self.seconds:.0f} img/s", refresh=False)
                bar.update(1)
                if after_step is not None:
                    after_step(step + 1)
        self._refuse_bad_loss()
        if not self.sums.sums:
            raise TrainingStopped(
                f"epoch {epoch}: none of its {len(self.source)} steps trained anything; {self.skipped} were skipped, "
                f"as what they computed is not finite. {_BROKEN}"
            )
        # a run that was stopped at the epoch's end has averaged them already
        if first_step < len(self.source):
            self.average_buffers()
            if self.average is not None:
                self.average.after_epoch(self.student, epoch)
        record = self._record()
        if record.get(UNDERFLOW):
            log.warning(
                "epoch %d: in %.2f%% of the attack's steps a gradient was exactly zero: it underflows in fp16, "
                "and the attack is weaker than it looks; train in bf16 or fp32",
                epoch,
                record[UNDERFLOW],
            )
        self.seconds = time.perf_counter() - began
        record["train/skipped_steps"] = self.skipped
        record["time/epoch_s"] = round(self.seconds, 3)
        record["time/images_per_s"] = round(self.images / self.seconds, 2)
        record["memory/peak_mib"] = _peak_memory(self.device)
        return record

    def _update(self, epoch: int, step: int) -> int:
        """One optimizer step on a global batch; returns the batch's size."""
        self._seed_layers(epoch, step)
        self._prepared_optimizer.zero_grad(set_to_none=True)
        parts = self._parts
        first = self.accelerator.process_index * self.accumulation
        before = [b.clone() for b in self.student.buffers()] if self.non_finite == "skip" else None
        noise, total, pieces = None, 0, []
        for k in range(self.accumulation):
            batch = self.source.batch(epoch, step, part=first + k, parts=parts)
            total = batch.total
            if total < parts:
                return 0  # the epoch's tail has not one image for each part: no process computes it
            if total < 2 * parts:
                self._try_one_image(batch)
            if k == 0:
                noise = self._noise(epoch, step, total, batch.images)
            start = noise[batch.offset : batch.offset + len(batch.labels)] if noise is not None else None
            pieces.append((batch, start))
        results = []
        with self._perturbed(pieces, epoch) as prepared:
            for k, (batch, start) in enumerate(pieces):
                with self._synchronised(last=k == self.accumulation - 1):
                    results.append(self._backward(batch, start, epoch, step, prepared[k]))
        if before is not None and self._to_skip(epoch, step, [loss.terms for _, loss in results]):
            for buffer, value in zip(self.student.buffers(), before, strict=True):
                buffer.copy_(value)
            return total
        for found, loss in results:
            self.sums.add(found)
            self._remember_bad(loss.terms, step)
        self._prepared_optimizer.step()
        if self.average is not None:
            self.average.after_step(self.student, epoch)
        self._balance_terms([loss.balanced for _, loss in results], total)
        return total

    def _balance_terms(self, losses: Sequence[Mapping[str, PerImage]], total: int) -> None:
        """Let the weights of balanced terms follow their means over the global batch."""
        balance, state = self.objective.balance, self.balance
        if balance is None or state is None:
            return
        sums = [torch.stack([terms[name].sum() for name in balance.terms]) for terms in losses]
        means = self.accelerator.reduce(torch.stack(sums).sum(0), "sum") / total
        # the released MTARD slows its weights down where it drops the learning rate
        first, rate = self.optimizer.defaults.get("lr"), self.optimizer.param_groups[0]["lr"]
        self.balance = balance.updated(state, means, slowed=min(1.0, float(rate / first)) if first else 1.0)

    @contextmanager
    def _perturbed(
        self, pieces: Sequence[tuple[Batch, Images | None]], epoch: int
    ) -> Iterator[Sequence[Prepared | None]]:
        """Weights as adversarial weight perturbation has them, for the block; yields what is prepared of each piece.

        Source: Wu et al. (2020), with the gradient itself in place of their proxy's step along it, rescaled to the same
        length. Weights of more than one dimension are moved. Here weight decay acts on the weights as they were.
        """
        if not self.awp or epoch < self.awp_start:
            yield [None] * len(pieces)
            return
        prepared = [self._step.prepare(b.images, b.labels, epoch=epoch, noise=start) for b, start in pieces]
        weights = [p for p in self.student.parameters() if p.requires_grad and p.ndim > 1]
        before = [weight.detach().clone() for weight in weights]
        gradients = self._of_whole_batch(prepared, [b for b, _ in pieces], weights, epoch)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient * (self.awp * weight.norm() / (gradient.norm() + 1e-20)))
        try:
            yield prepared
        finally:
            with torch.no_grad():
                for weight, was in zip(weights, before, strict=True):
                    weight.copy_(was)

    def _of_whole_batch(
        self, prepared: Sequence[Prepared], batches: Sequence[Batch], weights: list[nn.Parameter], epoch: int
    ) -> list[Tensor]:
        """The loss's gradient over the global batch; BatchNorm does not count these passes."""
        raw = replace(self._step, forward=self.student)
        total = [torch.zeros_like(weight) for weight in weights]
        with buffers_kept(self.student):
            for known, batch in zip(prepared, batches, strict=True):
                loss = raw.finish(known, batch.labels, epoch=epoch, balance=self.balance).loss
                found = torch.autograd.grad(loss.per_image.sum(), weights, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        return [self.accelerator.reduce(gradient, "sum") for gradient in total]

    def _seed_layers(self, epoch: int, step: int) -> None:
        """Dropout and the like draw from here: a function of where we are, as everything random is."""
        torch.manual_seed(stream_seed(self.seed, "layers", epoch, step, self.accelerator.process_index))

    def _backward(
        self, batch: Batch, noise: Images | None, epoch: int, step: int, prepared: Prepared | None
    ) -> tuple[dict[str, PerImage], Loss]:
        """Run a part of a step up to its gradients; returns its figures and its loss, without the graph."""
        if prepared is None:
            result = self._step(batch.images, batch.labels, epoch=epoch, noise=noise, balance=self.balance)
        else:
            result = self._step.finish(prepared, batch.labels, epoch=epoch, balance=self.balance)
        # the mean over the global batch, whatever share of it lies here; the wrapper averages over processes
        share = result.loss.per_image.sum() * (self.accelerator.num_processes / batch.total)
        self.accelerator.backward(share)
        outputs = self._observed(result, batch.images, step)
        found = figures(outputs, batch.labels, result.loss, trust_of=self.objective.trust_of)
        if result.stuck is not None:
            found[UNDERFLOW] = 100.0 * result.stuck
        return found, result.loss.detached()

    def _observed(self, result: StepResult, images: Images, step: int) -> Outputs:
        """The step's outputs with the teacher's passes that only the figures read, where this step has them."""
        every = OBSERVED[self.diagnostics]
        if self.teacher is None or result.adversarial is None or not every or step % every:
            return result.outputs
        # a teacher that draws, even in eval mode, must not move what the next part of the batch draws
        with self._random_state_kept(), self.accelerator.autocast():
            return self._step.with_teacher_passes(result, images)

    def _noise(self, epoch: int, step: int, total: int, images: Images) -> Images | None:
        """The whole global batch's random start, so that an image's does not depend on who computes it."""
        draw = getattr(self.attack, "draw_noise", None)
        if draw is None:
            return None
        self._generator.manual_seed(stream_seed(self.seed, "start", epoch, step))
        noise: Images | None = draw((total, *images.shape[1:]), generator=self._generator, dtype=images.dtype)
        return noise

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients only with the last part of a batch."""
        return nullcontext() if last else self.accelerator.no_sync(self._shell)

    def _random_state_kept(self) -> AbstractContextManager[Any]:
        """Whoever calls keeps the global random state that they had."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    # -------------------------------------------------------------------------------- losses that are no numbers

    def _to_skip(self, epoch: int, step: int, losses: Sequence[Mapping[str, PerImage]]) -> bool:
        """Whether any process met a number that is not finite; counted, and too many in a row stop the run."""
        bad = sorted(
            {name for terms in losses for name, values in terms.items() if not values.isfinite().all()}
        )
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        # fp16's scaler skips steps with infinite gradients itself, and learns its scale from them
        if not bad and self.accelerator.scaler is None and not get_total_norm(gradients).isfinite():
            bad = ["gradient"]
        if not anyone(bool(bad)):
            self._in_a_row = 0
            return False
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        where = f"epoch {epoch}, step {step}: {', '.join(bad) or 'a term on another process'} is not finite"
        if self._in_a_row >= SKIPPED_IN_A_ROW:
            raise TrainingStopped(f"{where}, as in the {self._in_a_row - 1} steps before. {_BROKEN}")
        log.warning("%s; skipped, %d in this epoch", where, self.skipped)
        return True

    def _remember_bad(self, terms: Mapping[str, PerImage], step: int) -> None:
        """Note on the device the first step at which a term was not finite."""
        never = torch.full((), _NEVER, device=self.device)
        for name, values in terms.items():
            here = torch.where(values.isfinite().all(), never, step)
            self._first_bad[name] = torch.minimum(self._first_bad.get(name, never), here)

    def _refuse_bad_loss(self) -> None:
        names = sorted(self._first_bad)
        if not names:
            return
        # every process stops at what any of them met
        gathered = self.accelerator.gather(torch.stack([self._first_bad[name] for name in names])[None])
        step, name = min(zip(gathered.amin(dim=0).tolist(), names, strict=True))
        if step < _NEVER:
            raise TrainingStopped(
                f"epoch {self._epoch}, step {step}: the loss term '{name}' is not finite. {_BROKEN}"
            )

    def _refuse_bad_weights(self) -> None:
        """A step may break them whose own loss was finite."""
        bad = [name for name, value in self.student.state_dict().items() if not value.isfinite().all()]
        if anyone(bool(bad)):
            where = f"{', '.join(bad[:3])} …" if bad else "on another process"
            raise TrainingStopped(f"epoch {self._epoch}: weights are not finite ({where}). {_BROKEN}")

    # ------------------------------------------------------------------------------------------ processes

    def average_buffers(self) -> None:
        """Average BatchNorm's running statistics over the processes, each of which saw its own share of the images."""
        if self.accelerator.num_processes == 1:
            return
        for buffer in self._own_buffers().values():
            buffer.copy_(self.accelerator.reduce(buffer.clone(), "mean"))

    def _record(self) -> dict[str, Any]:
        losses = sorted(name for name in self.sums.sums if name.startswith("loss/"))
        names = [*losses, *FIGURES, *({UNDERFLOW} & self.sums.sums.keys())]
        total = self.accelerator.reduce(self.sums.stacked(names), "sum")
        record: dict[str, Any] = self.sums.reduced(names, total)
        counts = self.accelerator.reduce(self.sums.histogram(), "sum").tolist()
        record[HISTOGRAM] = [int(count) for count in counts] if any(counts) else None
        record["introspection/share"] = introspection_share(record, self.objective.introspection)
        return record

    def _bar(self, epoch: int, first_step: int) -> "tqdm[Any]":
        return tqdm(
            total=len(self.source),
            initial=first_step,
            desc=f"epoch {epoch + 1}",
            unit="step",
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
            leave=False,
            dynamic_ncols=True,
        )

    # ------------------------------------------------------------------------------------------ state

    def state(self, *, within_epoch: bool) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """What the next step depends on, as groups of tensors and as JSON. Every process calls it.

        Within an epoch each process has BatchNorm statistics and figures of its own; `buffers` and `sums` hold
        those of all, as `rank/name`.

        Raises:
            TrainingStopped: a loss or the weights are not finite: nothing of it is to be saved.
        """
        self._refuse_bad_loss()
        self._refuse_bad_weights()
        tensors: dict[str, Mapping[str, Tensor]] = {
            "student": self.student.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.average is not None:
            tensors["average"] = self.average.network.state_dict()
        if self.balance is not None:
            tensors["balance"] = {"state": self.balance}
        if within_epoch and self.accelerator.num_processes > 1:
            tensors["buffers"] = self._of_all_processes(self._own_buffers())
        if within_epoch:
            tensors["sums"] = self._of_all_processes(dict(sorted(self.sums.sums.items())))
        scaler = self.accelerator.scaler
        numbers = {
            "optimizer": optimizer_numbers(self.optimizer),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "processes": self.accelerator.num_processes,
            "skipped": self.skipped if within_epoch else 0,
            "seconds": self.seconds if within_epoch else 0.0,
            "images": self.images if within_epoch else 0,
            "averaged": self.average.averaged if self.average is not None else 0,
        }
        return tensors, numbers

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Put back what `state` returned, after which `epoch(…, first_step=…)` goes on.

        On another number of processes, BatchNorm's statistics are the mean of those that were saved.

        Raises:
            ValueError: the state is of another network, or not finite; the student is then as it was.
        """
        here, saved_here = (
            {k: v.shape for k, v in s.items()} for s in (self.student.state_dict(), tensors["student"])
        )
        if here != saved_here:
            apart = sorted(k for k in {*here, *saved_here} if here.get(k) != saved_here.get(k))
            raise ValueError(f"the checkpoint is of another network; they differ in {', '.join(apart[:3])} …")
        bad = [name for name, value in tensors["student"].items() if not value.isfinite().all()]
        if bad:
            raise ValueError(f"the checkpoint's weights are not finite ({', '.join(bad[:3])} …)")
        self.student.load_state_dict(tensors["student"])
        if self.average is not None:  # one that was asked for only now begins with the student
            self.average.network.load_state_dict(tensors.get("average", tensors["student"]))
            self.average.averaged = int(numbers.get("averaged", 0)) if "average" in tensors else 0
        if self.balance is not None and "balance" in tensors:
            self.balance = tensors["balance"]["state"].to(self.device)
        restore_optimizer(self.optimizer, tensors["optimizer"], numbers["optimizer"])
        if self.accelerator.scaler is not None and numbers["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(dict(numbers["scaler"]))
        self.skipped = int(numbers["skipped"])
        self.seconds, self.images = float(numbers.get("seconds", 0.0)), int(numbers.get("images", 0))
        rank, saved = self.accelerator.process_index, int(numbers["processes"])
        same = saved == self.accelerator.num_processes
        buffers = tensors.get("buffers", {})
        for name, buffer in self._own_buffers().items() if buffers else ():
            if f"0/{name}" not in buffers:
                continue
            held = [buffers[f"{k}/{name}"] for k in range(saved)]
            buffer.copy_(held[rank] if same else torch.stack(held).mean(dim=0))
        self.sums = Sums(self.device)
        for key, value in tensors.get("sums", {}).items():
            k, _, name = key.partition("/")
            # the figures of another number of processes go on in the first; the others know their names all the same,
            # since all processes exchange the same figures
            figure = value.to(self.device)
            so_far = self.sums.sums.setdefault(name, torch.zeros_like(figure))
            if rank == (int(k) if same else 0):
                self.sums.sums[name] = so_far + figure

    def draw_again(self, epoch: int, step: int) -> None:
        """Bring a source that only goes forward to this place, under the random states of the steps before it."""
        if not getattr(self.source, "in_turn", False):
            return
        with self._random_state_kept():
            for place in range(epoch * len(self.source) + step):
                self._seed_layers(*divmod(place, len(self.source)))
                self.source.batch(*divmod(place, len(self.source)))

    def _own_buffers(self) -> dict[str, Tensor]:
        buffers = dict(self.student.named_buffers())
        if self.average is not None:
            buffers |= {f"average.{name}": b for name, b in self.average.network.named_buffers()}
        return {name: b for name, b in buffers.items() if b.is_floating_point()}

    def _of_all_processes(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each process's tensors as `rank/name`; all processes have the same names and shapes."""
        gathered = {name: self.accelerator.gather(value[None]) for name, value in tensors.items()}
        return {f"{k}/{name}": row for name, rows in gathered.items() for k, row in enumerate(rows)}


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> float:
    """MiB: what an epoch allocated at most on a GPU, the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(largest / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux KiB
