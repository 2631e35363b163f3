"""A run from its settings: data, teachers, student, epochs, evaluation, and the folder that keeps them.

This is the only place that reads `Settings`; everything below takes plain arguments.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from iad_ext import attacks, checkpoint, compiling, files, precision, processes, provenance
from iad_ext import settings as settings_
from iad_ext.assets import Assets, UsageError
from iad_ext.augment import AUGMENTATIONS
from iad_ext.averaging import WeightAverage
from iad_ext.backbones import create_network, load_network, save_network, saved_metadata
from iad_ext.batches import Batches, share
from iad_ext.checkpoint import Checkpoint, CheckpointError
from iad_ext.compiling import Compilation
from iad_ext.data import ImageSet, Splits, left_out
from iad_ext.evaluation import accuracy_under, evaluate, format_table, gallery, interval, with_autoattack
from iad_ext.lines import fail, titled
from iad_ext.loop import Engine, TrainingStopped, accelerator_for
from iad_ext.memory import OutOfMemory, explained
from iad_ext.names import words
from iad_ext.objectives import ADVERSARIAL_PASSES
from iad_ext.plan import Plan
from iad_ext.precision import Precision
from iad_ext.processes import World, anyone, from_main, say
from iad_ext.settings import Change, Recipe, Settings
from iad_ext.signals import Interrupted, Stop
from iad_ext.spelling import with_file
from iad_ext.tracking import Tracking

log = logging.getLogger(__name__)

# of the changes that are accepted: what the best checkpoint is measured by, and what an epoch's steps consist of
MEASURED_BY = ("data", "eval.", "attack.eps")
STEPS_DEPEND_ON = ("data", "train.batch_size", "train.seed")

# what a run's checkpoint says beside its tensors, and the files of a kept network
KNOWN_STATE = {"engine", "precision", "data", "teachers", "best", "records", "accepted", "kept"}
RESULT_FILES = ("results.json", "robust.safetensors")
NETWORK_FILES = ("model.safetensors", "config.json")

# images on which a teacher that is no better than chance is refused; on fewer, a fair one can be that unlucky
ENOUGH_TO_REFUSE = 100


def main(recipe: Recipe, args: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line.

    Exit codes: 0 done, 1 a defect of this program, 2 wrong input (nothing was computed), 3 training stopped or out of
    memory (the last checkpoint is whole), 4 the run folder cannot be written, 5 stopped by SIGTERM, SIGUSR1 or SIGINT
    (all is saved), 130 forced by a second SIGINT.
    """
    _show_warnings()
    try:
        settings = settings_.from_command_line(
            recipe, with_file(recipe, sys.argv[1:] if args is None else args)
        )
    except ValueError as error:
        fail(2, error)
    if os.environ.get("RANK", "0") == "0":  # of several processes one says it
        for said in (*settings_.not_read(recipe, settings), *settings_.not_own(recipe, settings)):
            log.warning("%s", said)
    with exit_codes():
        run(settings)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Run within it, and end the process with a run's exit code and without a traceback; see `main`."""
    try:
        yield
    except UsageError as error:
        fail(2, error)
    except (TrainingStopped, OutOfMemory) as error:
        fail(3, error)
    except CheckpointError as error:
        fail(4, error)
    except Interrupted as stopped:
        say(f"stopped          {stopped}")
        processes.leave()
        sys.exit(5)
    except KeyboardInterrupt:
        fail(130, "forced to stop; the last checkpoint is whole, the same command goes on from it")
    processes.leave()


def _show_warnings() -> None:
    handler = logging.StreamHandler()
    # the hub's clients print their own already
    handler.addFilter(lambda record: record.name.partition(".")[0] not in ("huggingface_hub", "datasets"))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler])


def _say_fact(title: str, text: str) -> None:
    say(titled(title, text, column=17))


def run(settings: Settings) -> dict[str, Any] | None:
    """Carry out a run, or continue it, and return what `results.json` holds; None after a dry run.

    Raises:
        UsageError: wrong input, before any compute.
        TrainingStopped: a loss was not finite.
        OutOfMemory: of a GPU or of the machine; says what to lower.
        CheckpointError: the run folder cannot be written, or another process is running in it.
        Interrupted: a signal asked for the end; all is saved.
    """
    with Stop() as stop:
        return _run(settings, stop)


def _run(settings: Settings, stop: Stop) -> dict[str, Any] | None:
    # whatever is wrong with the input shows here, where a plain error message is the best answer
    try:
        plan = Plan.of(settings)
        if settings.dry_run:
            say(plan.description())
            return None
        world = processes.world()
        assets = Assets.load(plan, world.device)
        plan.objective.check_run(settings.train.epochs, classes=assets.splits.num_classes)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(str(error)) from error
    the_run = Run(plan, assets, world, stop)
    if not world.is_main_process:
        with explained(_less_memory(plan.settings)):
            return the_run.train()
    with checkpoint.locked(plan.folder), the_run.tracking, explained(_less_memory(plan.settings)):
        try:
            return the_run.train()
        except (OSError, SafetensorError) as error:  # all that is read is read by now
            raise CheckpointError(
                f"cannot write to the run folder {plan.folder}: {error}; what was saved before is whole"
            ) from error


def _less_memory(settings: Settings) -> str:
    """What to lower when memory runs out."""
    train, evaluation = settings.train, settings.eval
    return (
        f"In training, --train.accumulation {2 * train.accumulation} computes a batch in parts (BatchNorm then sees "
        "the parts); a run that has begun takes it with --accept-changes. In validation and evaluation, lower "
        f"--eval.batch-size, {evaluation.batch_size} now. What was saved before is whole: the same command goes on "
        "from it"
    )


# ---------------------------------------------------------------------------------------------- run


class Run:
    """A run in its folder: trains from where it is, keeps what it finds, and measures the result."""

    def __init__(self, plan: Plan, assets: Assets, world: World, stop: Stop) -> None:
        self.plan, self.assets, self.world, self.stop = plan, assets, world, stop
        self.settings, self.folder = plan.settings, plan.folder
        self.validation = assets.splits.validation
        if self.settings.eval.validation_limit is not None:
            self.validation = self.validation.take(slice(0, self.settings.eval.validation_limit))
        self.validation = self.validation.to(world.device)
        self.measure = "natural" if plan.objective.attack == "none" else "pgd10"
        self.student = self._student()
        self.asked_precision = self._asked_precision()
        # its trackers are opened on the main process only
        self.tracking = Tracking(plan.trackers, plan.folder, settings_.for_trackers(self.settings))
        self.best: dict[str, Any] = {}
        self.teacher_accuracy: dict[str, Any] = {}
        self.records: list[dict[str, Any]] = []  # the lines of metrics.jsonl
        self.accepted: list[dict[str, Any]] = []  # changes of settings that the run was continued with
        self.kept: dict[str, str] = {}  # SHA-256 of the networks' files

    # ------------------------------------------------------------------------------------------ training

    def train(self) -> dict[str, Any] | None:
        """Train what is left to train, then evaluate; the results on the main process, None on the others."""
        saved, changed = self._resumable()
        if saved is not None:
            self._check_kept(saved)
            self._take_up(saved)
        done = self._measured_already(saved)
        if done is not None:
            return done
        student = self.student
        self.decided = decided = self._precision(student, saved)
        self.compilation = Compilation("off", "nothing is attacked")
        try:
            self._measure_teacher()
        except Interrupted:
            raise Interrupted(f"{self._who_asked()} before training; the same command starts it") from None
        engine = self._engine(student, decided, saved, changed)
        try:
            engine.check_batches()
        except ValueError as error:
            raise UsageError(f"--train.batch-size {self.settings.train.batch_size}: {error}") from error
        epoch, step = 0, 0
        if saved is not None:
            epoch, step = self._restore(engine, saved, changed)
            say(f"continuing {self.folder} at epoch {epoch}, step {step}")
        if changed:
            self._accept(engine, changed, epoch, step)
        self._start_folder(saved, changed, epoch, step)
        self._announce(student)
        began = time.perf_counter()
        for current in range(epoch, self.settings.train.epochs):
            self._epoch(engine, current, step if current == epoch else 0)
            trained = current - epoch + 1
            left = (time.perf_counter() - began) / trained * (self.settings.train.epochs - current - 1)
            self._say_epoch(current, left)
        self.world.wait_for_everyone()
        try:
            measured = self._measure()
            return self._finish(measured) if self.world.is_main_process else None
        except Interrupted:
            self._note("stopped", evaluating=True)
            raise Interrupted(
                f"{self._who_asked()} while evaluating; what is measured is kept, the same command goes on"
            ) from None

    def _epoch(self, engine: Engine, epoch: int, first_step: int) -> None:
        train, every = self.settings.train, self.settings.checkpoint
        last, steps = epoch == train.epochs - 1, len(engine.source)

        def after_step(done: int) -> None:
            stopped = anyone(bool(self.stop)) and done < steps  # the epoch's end comes first
            if stopped or (every.every_steps and done % every.every_steps == 0 and done < steps):
                self._save(engine, epoch, done)
            if stopped:
                raise self._interrupted(epoch, done)

        record: dict[str, Any] = {"epoch": epoch, "lr": self.plan.rate(epoch)}
        record |= engine.epoch(
            epoch, first_step=first_step, rate=self.plan.rate(epoch), after_step=after_step
        )
        try:
            if anyone(bool(self.stop)):
                raise Interrupted
            if (epoch + 1) % self.settings.eval.every == 0 or last:
                network = self._measured(engine, epoch)
                record |= self._validate(network)
                self._keep_best(network, epoch, record)
            else:
                record |= {"eval/natural": None, "eval/pgd10": None}
        except Interrupted:
            self._save(engine, epoch, steps)  # the epoch is trained; its validation is still to be done
            raise self._interrupted(epoch, steps) from None
        self.records.append(record)
        if self.world.is_main_process:
            checkpoint.append_line(self.folder / "metrics.jsonl", record)
            self.tracking.send_epochs()
        if last:
            self._save_network(network, "last", epoch, record)
        if (epoch + 1) % every.every_epochs == 0 or last:
            self._save(engine, epoch + 1, 0)

    def _interrupted(self, epoch: int, step: int) -> Interrupted:
        """To be raised when the position is saved."""
        self._note("stopped", epoch=epoch, step=step)
        return Interrupted(
            f"{self._who_asked()} at epoch {epoch}, step {step}; the same command goes on from there"
        )

    def _who_asked(self) -> str:
        return f"by {self.stop.asked_by or 'a signal to another process'}"

    def _validate(self, student: nn.Module) -> dict[str, float | None]:
        """Natural and PGD-10 accuracy on the validation images, in percent; each image counted once.

        Raises:
            Interrupted: a signal came to some process.
        """
        record: dict[str, float | None] = {"eval/natural": None, "eval/pgd10": None}
        try:
            record["eval/natural"] = self._accuracy(student, self.validation, "natural")
            if self.measure == "pgd10":
                record["eval/pgd10"] = self._accuracy(student, self.validation, "pgd10")
        except ValueError as error:  # an epoch of one step is over before its loss shows anything
            raise TrainingStopped(f"validation: {error}. What was saved before is whole") from error
        return record

    def _accuracy(self, network: nn.Module, images: ImageSet, attack: str) -> float:
        """Percent right under `attack`, the images shared out over the processes."""
        n, rank, world = len(images), self.world.process_index, self.world.num_processes
        first, end = share(n, rank, world)
        counts = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        if end > first:
            mine = images.take(slice(first, end))
            try:
                flags = accuracy_under(
                    network,
                    mine.images,
                    mine.labels,
                    attack,
                    eps=self.settings.attack.eps,
                    seed=self.settings.eval.seed,
                    batch_size=self.settings.eval.batch_size,
                    first=first,
                    after_batch=self._break_off,
                )
                counts += torch.tensor([int(flags.sum()), len(flags), 0], device=counts.device)
            except Interrupted:
                counts[2] = 1
        if world > 1:
            torch.distributed.all_reduce(counts)
        right, total, broken_off = counts.tolist()
        if broken_off:
            raise Interrupted
        return round(100 * float(right) / float(total), 4)

    def _break_off(self) -> None:
        """Leave an evaluation between two batches when a signal came; the others learn of it when they are done."""
        if self.stop:
            raise Interrupted

    def _break_off_together(self) -> None:
        """Leave an evaluation between two rounds of batches when a signal came to any of the processes."""
        if anyone(bool(self.stop)):
            raise Interrupted

    def _keep_best(self, student: nn.Module, epoch: int, record: Mapping[str, Any]) -> None:
        value = record[f"eval/{self.measure}"]
        if not self.best or value > self.best["value"]:
            self.best = {"epoch": epoch, "value": value, "measure": self.measure}
            self._save_network(student, "best", epoch, record)

    def _save_network(self, student: nn.Module, name: str, epoch: int, record: Mapping[str, Any]) -> None:
        if self.world.is_main_process:
            validated = {key: record[key] for key in ("eval/natural", "eval/pgd10")}
            metadata = {
                "recipe": self.settings.recipe,
                "objective": repr(self.plan.objective),
                "data": dict(self.assets.splits.provenance),
                "epoch": epoch,
                "selection": self.settings.data.selection,
                "validation": validated,
            }
            save_network(student, self.folder / name, metadata=metadata)
            for file in NETWORK_FILES:
                self.kept[f"{name}/{file}"] = checkpoint.sha256(self.folder / name / file)

    # ------------------------------------------------------------------------------------------ assembly

    def _student(self) -> nn.Module:
        splits, student = self.assets.splits, self.settings.student
        mean, std = _mean_and_std(splits.train) if student.normalize else (None, None)
        try:
            network = create_network(
                student.name,
                num_classes=splits.num_classes,
                image_size=splits.image_size,
                mean=mean,
                std=std,
                seed=self.settings.train.seed,
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"--student.name: {error}") from error
        return network.to(self.world.device)

    def _asked_precision(self) -> Precision | None:
        """The precision that --precision names."""
        if self.settings.precision == "auto":
            return None
        return self._named_precision(self.settings.precision, "asked for by --precision")

    def _named_precision(self, kind: str, reason: str) -> Precision:
        try:
            return precision.asked(kind, reason=reason, device=self.world.device)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _precision(self, student: nn.Module, saved: Checkpoint | None) -> Precision:
        """What was asked for, else what the run began with, else accelerate's flag, else a measurement."""
        if self.asked_precision is not None:
            return self.asked_precision
        if saved is not None:
            return Precision(**saved.state["precision"])
        flag = provenance.accelerate_precision()
        if flag is not None:
            return self._named_precision(flag, "asked for by accelerate")
        decided = None
        if self.world.is_main_process:
            train, shape = self.settings.train, self.assets.splits.train.images.shape[1:]
            batch = min(64, math.ceil(train.batch_size / (self.world.num_processes * train.accumulation)))
            decided = precision.probe(student, image_shape=shape, device=self.world.device, batch_size=batch)
        decided = from_main(decided)
        assert decided is not None
        return decided

    def _engine(
        self, student: nn.Module, decided: Precision, saved: Checkpoint | None, changed: Sequence[Change]
    ) -> Engine:
        train = self.settings.train
        memory_format = torch.channels_last if decided.channels_last else torch.contiguous_format
        networks = (student, self.assets.teacher, self.assets.natural_teacher)
        for network in networks:
            if network is not None:
                network.to(memory_format=memory_format)
        optimizer = torch.optim.SGD(
            student.parameters(),
            lr=train.lr,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            nesterov=train.nesterov,
        )
        source = Batches(
            self.assets.splits.train.to(self.world.device),
            batch_size=train.batch_size,
            seed=train.seed,
            padding=train.padding if train.augment == "crop" else 0,
            flip=train.flip,
            augmentation=AUGMENTATIONS.get(train.augment),
            cutmix=train.cutmix,
            extra=self.assets.extra,
            extra_share=self.settings.data.extra_share,
            channels_last=decided.channels_last,
        )
        accelerator = accelerator_for(decided)
        attack = self._attack(student, decided)
        if attack is not None:
            parts = self.world.num_processes * train.accumulation
            images = source.batch(0, 0, part=parts - 1, parts=parts).images
            asked_anew = any(name == "compile" for name, _, _ in changed)
            before = None if saved is None or asked_anew else saved.state.get("compile")
            self.compilation = self._compilation(attack, images, accelerator.autocast, before)
            attack = compiling.compiled(attack, self.compilation)
        return Engine(
            accelerator=accelerator,
            student=student,
            optimizer=optimizer,
            objective=self.plan.objective,
            attack=attack,
            source=source,
            seed=train.seed,
            teacher=self.assets.teacher,
            natural_teacher=self.assets.natural_teacher,
            accumulation=train.accumulation,
            non_finite=train.non_finite,
            diagnostics=self.settings.diagnostics,
            bn_order=train.bn_order,
            average=self._average(student),
            awp=train.awp,
            awp_start=train.awp_start,
        )

    def _compilation(
        self, attack: Any, images: Tensor, autocast: compiling.Autocast, before: Mapping[str, str] | None
    ) -> Compilation:
        """What the run began with, else what is asked for or a trial finds; the main process decides."""
        wanted: str = self.settings.compile
        reason = "asked for by --compile"
        if before is not None:
            wanted = before["kind"]
            reason = before["reason"] if wanted == "off" else "as the run was begun"
        classes = self.assets.splits.num_classes
        found = compiling.decide(wanted, attack, images, classes=classes, autocast=autocast, reason=reason)
        return from_main(found)

    def _average(self, student: nn.Module) -> WeightAverage | None:
        asked = self.settings.average
        if asked.name == "none":
            return None
        return WeightAverage(student, kind=asked.name, decay=asked.decay, start=asked.start)

    def _measured(self, engine: Engine, epoch: int) -> nn.Module:
        """What is validated and kept after `epoch`: the student, or its average where one is asked for."""
        asked = self.settings.average
        if asked.name == "none":
            return engine.student
        return engine.measurable(epoch, reestimate=asked.batchnorm == "reestimate")

    def _attack(self, student: nn.Module, decided: Precision) -> Any:
        if not self.plan.passes() & ADVERSARIAL_PASSES:
            return None
        attack = self.settings.attack
        return attacks.build(
            attack.name,
            student,
            teacher=self.assets.teacher,
            eps=attack.eps,
            alpha=attack.step,
            steps=attack.steps,
            training=attack.mode == "train",
            loss_scale=decided.attack_loss_scale,
        )

    def _measure_teacher(self) -> None:
        """State each teacher's accuracy before training on it, and refuse one that knows nothing."""
        for role in ("teacher", "natural_teacher"):
            network = getattr(self.assets, role)
            if network is None:
                continue
            natural = self._accuracy(network, self.validation, "natural")
            robust = self._accuracy(network, self.validation, "pgd10")
            self.teacher_accuracy[role] = {
                "natural": natural,
                "pgd10": robust,
                "n": len(self.validation),
                "source": self.assets.sources[role],
                "digest": self.assets.digests[role],
            }
            _say_fact(
                role.replace("_", " "),
                f"{self.assets.sources[role]}: natural {natural:.2f}%, "
                f"PGD-10 {robust:.2f}% ({len(self.validation)} {self._validated_on()} images)",
            )
            chance = 100 / self.assets.splits.num_classes
            enough = len(self.validation) >= ENOUGH_TO_REFUSE
            # a network that answers the same to every image is right a little more often than chance by luck
            right = round(natural * len(self.validation) / 100)
            if (interval(right, len(self.validation))[0] if enough else natural) <= chance:
                said = (
                    f"the {role.replace('_', ' ')} {self.assets.sources[role]} is right on {natural:.2f}% of the "
                    f"images, chance is {chance:.2f}%: wrong weights, classes in another order, or images that it "
                    "expects normalised"
                )
                if enough:
                    raise UsageError(said)
                log.warning("%s; or bad luck, on %d images", said, len(self.validation))

    def _validated_on(self) -> str:
        return "test" if self.settings.data.selection == "test" else "held-out"

    # ------------------------------------------------------------------------------------------ folder

    def _resumable(self) -> tuple[Checkpoint | None, list[Change]]:
        """The checkpoint to go on from, and what was changed since and accepted."""
        if self.settings.resume == "never":
            return None, []
        saved = checkpoint.newest(self.folder / "checkpoints")
        position = None if saved is None else (saved.epoch, saved.step)
        # before anything is decided by it: a process that finds nothing must not go on while the main one waits
        if from_main(position) != position:
            found = "nothing" if saved is None else f"epoch {saved.epoch}, step {saved.step}"
            raise UsageError(
                f"this process finds {found} in {self.folder}, the main one something else: several nodes need one "
                "run folder on a shared file system"
            )
        if saved is None:
            self._refuse_to_overwrite()
            return None, []
        try:
            before = settings_.from_yaml((self.folder / "settings.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.folder} cannot be continued: its settings.yaml: {error}") from error
        missing = KNOWN_STATE - saved.state.keys()
        if missing:
            raise UsageError(
                f"{self.folder} was begun by another version of iad-ext (its checkpoints lack "
                f"{', '.join(sorted(missing))}); --resume never starts it again"
            )
        changed = settings_.changed(before, self.settings) + self._changed_since(saved, before)
        if saved.state["teachers"] == self.assets.digests:  # the same networks, by whatever name
            changed = [one for one in changed if one[0] not in ("teacher", "natural_teacher")]
        if changed and not self.settings.accept_changes:
            raise UsageError(
                f"{self.folder} was begun with other settings:\n{settings_.listed(changed)}\n"
                "Give the same settings to continue it, another --out, --resume never to start it again, or "
                "--accept-changes to continue it all the same, which its results will say"
            )
        self._refuse_too_late(saved, [name for name, _, _ in changed])
        return saved, changed

    def _refuse_too_late(self, saved: Checkpoint, changed: Sequence[str]) -> None:
        """Changes that only epochs which are still to be trained could follow, where none is."""
        epochs = self.settings.train.epochs
        if saved.epoch < epochs:
            return
        ways = "Give what it was begun with, another --out, or --resume never to start it again"
        if "train.epochs" in changed:
            raise UsageError(
                f"{self.folder} is at epoch {saved.epoch}, step {saved.step}: --train.epochs {epochs} leaves nothing "
                f"to train; it must be above {saved.epoch}. {ways}"
            )
        selected_by = [settings_.option(name) for name in changed if name.startswith(MEASURED_BY)]
        if selected_by:
            raise UsageError(
                f"{self.folder} is trained, and its best epoch was chosen before {', '.join(selected_by)} changed; the "
                f"networks of the other epochs are gone. {ways}"
            )

    def _refuse_to_overwrite(self) -> None:
        """What a run left is not thrown away unasked because its checkpoints are gone or broken."""
        if (self.folder / "results.json").exists() or any((self.folder / "checkpoints").glob("epoch*")):
            raise UsageError(
                f"{self.folder} holds an earlier run and no whole checkpoint to continue it from. Choose another "
                "--out, or --resume never to throw it away and start again"
            )

    def _check_kept(self, saved: Checkpoint) -> None:
        """Refuse networks that are not those that the run left: their figures would be others' figures.

        A best network of a later epoch than the checkpoint's is written again when that epoch is repeated.
        """
        if not self.world.is_main_process:
            return
        for name in ("best", "last"):
            paths = [f"{name}/{file}" for file in NETWORK_FILES if f"{name}/{file}" in saved.state["kept"]]
            damaged = [path for path in paths if self._sum_of(path) != saved.state["kept"][path]]
            if damaged and not self._is_later(self.folder / name, saved.epoch):
                raise UsageError(
                    f"{self.folder / damaged[0]} is not what the run left there: damaged, or changed by hand. Put "
                    "it back, or --resume never to start the run again"
                )

    def _sum_of(self, path: str) -> str | None:
        try:
            return checkpoint.sha256(self.folder / path)
        except OSError:
            return None

    @staticmethod
    def _is_later(folder: Path, epoch: int) -> bool:
        try:
            found = saved_metadata(folder).get("epoch")
        except (OSError, ValueError):
            return False
        return isinstance(found, int) and found >= epoch

    def _take_up(self, saved: Checkpoint) -> None:
        """What the run knew when the checkpoint was saved; `metrics.jsonl` is written anew where it says otherwise."""
        state = saved.state
        self.best, self.kept = dict(state["best"]), dict(state["kept"])
        self.records, self.accepted = list(state["records"]), list(state["accepted"])
        if not self.world.is_main_process:
            return
        path = self.folder / "metrics.jsonl"
        try:
            found = path.read_bytes()
        except OSError:
            found = b""
        written = checkpoint.as_lines(self.records)
        if not found.startswith(written):
            log.warning("%s is not what the run wrote there; it is restored from the checkpoint", path)
        if found != written:
            files.write_whole(path, written)

    def _changed_since(self, saved: Checkpoint, before: Settings) -> list[Change]:
        """What must be the same beside the settings: the arithmetic, the images and the teachers themselves."""
        began, asked = saved.state["precision"]["kind"], self.settings.precision
        changed: list[Change] = [("precision", began, asked)] if asked not in ("auto", began) else []
        way, asked_way = saved.state.get("compile", {}).get("kind"), self.settings.compile
        # what was asked for before may have been refused by the trial: asking for it again changes nothing
        if way is not None and asked_way not in ("auto", way, before.compile):
            changed.append(("compile", way, asked_way))
        now = {"data": self.assets.splits.provenance["digest"], "teachers": dict(self.assets.digests)}
        return changed + [
            (name, saved.state[name], now[name]) for name in now if saved.state[name] != now[name]
        ]

    def _accept(self, engine: Engine, changed: Sequence[Change], epoch: int, step: int) -> None:
        """Save what was accepted, before `settings.yaml` says the new settings: from then on nothing else tells."""
        accepted = [{"epoch": epoch, "step": step} | change for change in _as_records(changed)]
        # killed between the two, it is accepted again
        self.accepted += [change for change in accepted if change not in self.accepted]
        self._save(engine, epoch, step)

    def _start_folder(
        self, saved: Checkpoint | None, changed: Sequence[Change], epoch: int, step: int
    ) -> None:
        if not self.world.is_main_process:
            return
        self._warn_of_classes_left_out()
        if saved is None:
            checkpoint.clear_run(self.folder)
        # what this command line alone was to do is no setting of the run: whoever takes the file would do it again
        orders = {"resume": "auto", "accept_changes": False, "dry_run": False}
        files.write_text(
            self.folder / "settings.yaml", settings_.to_yaml(settings_.override(self.settings, orders))
        )
        environment = provenance.environment() | {
            "precision": dataclasses.asdict(self.decided),
            "compile": dataclasses.asdict(self.compilation),
            "processes": self.world.num_processes,
            "data": dict(self.assets.splits.provenance),
            "teachers": self.teacher_accuracy,
        }
        files.write_json(self.folder / "environment.json", environment)
        self._note(
            "begun" if saved is None else "continued",
            epoch=epoch,
            step=step,
            changed=_as_records(changed),
            **{name: environment[name] for name in ("commit", "versions", "hardware", "processes")},
        )
        self.tracking.open(epoch)

    def _warn_of_classes_left_out(self) -> None:
        """The first images of data that lie by their classes are of few of them; figures on them say little."""
        asked, splits = self.settings.eval, self.assets.splits
        held_out = "data.holdout" if splits.selection == "holdout" else "data.limit_test"
        limits = [
            ("eval.validation_limit", splits.validation, asked.validation_limit, held_out),
            ("eval.limit", splits.test, asked.limit, "data.limit_test"),
        ]
        if "aa" in self.plan.attacks:
            limits.append(("eval.aa_limit", splits.test, asked.aa_limit, "data.limit_test"))
        for name, images, limit, balanced in limits:
            if limit is not None and (said := left_out(images.labels, limit)):
                log.warning(
                    "%s: %s; %s takes as many of each",
                    settings_.option(name),
                    said,
                    settings_.option(balanced),
                )

    def _note(self, event: str, **what: object) -> None:
        """Add a line to the run's history: when it was begun, stopped and continued, where, and what changed."""
        if self.world.is_main_process and self.folder.is_dir():
            line = {"event": event, "time": provenance.now(), **what}
            checkpoint.append_line(self.folder / "history.jsonl", line)

    def _save(self, engine: Engine, epoch: int, step: int) -> None:
        """Save the position between two steps. Every process calls it; the main one writes."""
        tensors, numbers = engine.state(within_epoch=step > 0)
        if not self.world.is_main_process:
            return
        state = {
            "engine": numbers,
            "precision": dataclasses.asdict(self.decided),
            "compile": dataclasses.asdict(self.compilation),
            "data": self.assets.splits.provenance["digest"],
            "teachers": dict(self.assets.digests),
            "best": self.best,
            "records": self.records,
            "accepted": self.accepted,
            "kept": self.kept,
        }
        saved = Checkpoint(epoch=epoch, step=step, tensors=tensors, state=state)
        checkpoint.save(self.folder / "checkpoints", saved, keep=self.settings.checkpoint.keep)

    def _restore(self, engine: Engine, saved: Checkpoint, changed: Sequence[Change]) -> tuple[int, int]:
        """Put the run back where it was; returns the epoch and the step to go on with."""
        own = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
        try:
            engine.restore(saved.tensors, saved.state["engine"])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UsageError(f"{self.folder} cannot be continued: {error}") from error
        for group, settings in zip(engine.optimizer.param_groups, own, strict=True):
            group.update(settings)  # those of this command line, which may have been changed and accepted
        before = int(saved.state["engine"]["processes"])
        if before != self.world.num_processes:
            log.warning(
                "begun on %d processes, continued on %d: the images are the same, BatchNorm's shares are not",
                before,
                self.world.num_processes,
            )
        names = [name for name, _, _ in changed]
        # found by another measure, or written after the checkpoint, by epochs that are not trained like that again
        best_is_lost = any(name.startswith(MEASURED_BY) for name in names) or (
            bool(names) and from_main(self._is_later(self.folder / "best", saved.epoch))
        )
        if best_is_lost:
            self.best = {}
            self.kept = {path: sum_ for path, sum_ in self.kept.items() if not path.startswith("best/")}
        if saved.step and any(name.startswith(STEPS_DEPEND_ON) for name in names):
            log.warning("the steps of epoch %d are others now: it begins again", saved.epoch)
            engine.average_buffers()  # at an epoch's start all processes have the same
            return saved.epoch, 0
        return saved.epoch, saved.step

    # ------------------------------------------------------------------------------------------ words

    def _announce(self, student: nn.Module) -> None:
        decided = self.decided
        splits, plan = self.assets.splits, self.plan
        parameters = sum(p.numel() for p in student.parameters())
        processes = f", {self.world.num_processes} processes" if self.world.num_processes > 1 else ""
        _say_fact("objective", f"{plan.objective!r}")
        _say_fact(
            "student",
            f"{self.settings.student.name}, {parameters / 1e6:.2f} M parameters, "
            f"{decided.kind}{' channels_last' if decided.channels_last else ''} ({decided.reason}){processes}",
        )
        _say_fact(
            "data",
            f"{self.settings.data.name}: {len(splits.train)} training, "
            f"{len(self.validation)} {self._validated_on()}, {len(splits.test)} test images",
        )
        _say_fact("step", f"{plan.forward_passes(0)[1]} at epoch 0")
        if plan.passes() & ADVERSARIAL_PASSES:
            _say_fact("attack", f"compile {self.compilation.kind} ({self.compilation.reason})")
        _say_fact("folder", str(self.folder))
        self._say_idle_cores()

    def _say_idle_cores(self) -> None:
        """On a CPU, `accelerate launch` gives a process one thread unless it is told otherwise, and says nothing."""
        cores, here = provenance.usable_cores(), self.world.num_processes
        if self.world.device.type == "cpu" and torch.get_num_threads() * here < cores:
            _say_fact(
                "threads",
                f"{torch.get_num_threads() * here} of {cores} cores; large networks gain from "
                f"accelerate launch --num_cpu_threads_per_process {cores // here} (or OMP_NUM_THREADS)",
            )

    def _say_epoch(self, epoch: int, left: float) -> None:
        record, epochs = self.records[-1], self.settings.train.epochs
        shown = [f"loss {record['loss/total']:.4f}"]
        for name, key in (
            ("adv", "train/acc_adv"),
            ("trust", "trust/mean"),
            ("T(x̃)", "teacher/acc_on_student_adv"),
        ):
            if record.get(key) is not None:
                shown.append(f"{name} {record[key]:.3f}" if name == "trust" else f"{name} {record[key]:.1f}%")
        for name in ("natural", "pgd10"):
            if record[f"eval/{name}"] is not None:
                shown.append(f"val {name} {record[f'eval/{name}']:.2f}%")
        best = " *" if self.best.get("epoch") == epoch else ""
        say(
            f"epoch {epoch + 1:>3}/{epochs}  {'  '.join(shown)}  {record['time/images_per_s']:.0f} img/s  "
            f"left {_clock(left)}{best}"
        )

    # ------------------------------------------------------------------------------------------ results

    def _measure(self) -> dict[str, dict[str, Any]]:
        """Measure best and last in fp32 on the test images; the processes take batches in turns."""
        wanted = words(self.settings.eval.of) if self.plan.attacks else ()
        measured: dict[str, dict[str, Any]] = {}
        for which in wanted:
            same = (
                which == "last"
                and "best" in measured
                and self.best["epoch"] == self.settings.train.epochs - 1
            )
            measured[which] = measured["best"] if same else self._evaluate(which)
        return measured

    def _finish(self, measured: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Write results.json, robust.safetensors, the gallery and the report."""
        results: dict[str, Any] = {
            "recipe": self.settings.recipe,
            "selection": self.settings.data.selection,
            "evaluation": dataclasses.asdict(self.settings.eval),
            "epochs": {"best": self.best["epoch"], "last": self.settings.train.epochs - 1},
            "teacher": self.teacher_accuracy.get("teacher", {}),
            "natural_teacher": self.teacher_accuracy.get("natural_teacher", {}),
            "precision": dataclasses.asdict(self.decided),
            "compile": dataclasses.asdict(self.compilation),
            "bn_order": self.settings.train.bn_order,
            "data": dict(self.assets.splits.provenance),
            "changed": self.accepted,
        }
        flags: dict[str, Tensor] = {}
        for which, found in measured.items():
            flags |= {f"{which}/{attack}": robust for attack, robust in found["robust"].items()}
            results[which] = {key: value for key, value in found.items() if key != "robust"}
            results["selected_on"] = self._validated_on()
        if measured and gallery.ATTACK in self.plan.attacks:
            self._keep_gallery(next(iter(measured)))
        files.write_json(self.folder / "results.json", results)
        if flags:
            held = save({name: flag.to(torch.uint8) for name, flag in flags.items()})
            files.write_whole(self.folder / "robust.safetensors", held)
        files_ = {name: self._sum_of(name) for name in RESULT_FILES}
        self._note("measured", files=files_)
        self.tracking.send_results(results)
        self._show(measured, results["epochs"])
        write_report(self.folder)
        return results

    def _keep_gallery(self, which: str) -> None:
        keep_gallery(
            load_network(self.folder / which).to(self.world.device),
            self.assets.splits,
            self.settings,
            teacher=self.assets.teacher,
            folder=self.folder,
            which=which,
            after_batch=self._break_off,
        )

    def _measured_already(self, saved: Checkpoint | None) -> dict[str, Any] | None:
        """The results of a run that is finished and measured as asked; None where there is something to do."""
        if (
            saved is None
            or saved.epoch < self.settings.train.epochs
            or not (self.folder / "results.json").exists()
        ):
            return None
        lines = checkpoint.read_lines(self.folder / "history.jsonl")
        known: dict[str, str] = next(
            (line["files"] for line in reversed(lines) if line.get("event") == "measured"), {}
        )
        damaged = [name for name in RESULT_FILES if name not in known or self._sum_of(name) != known[name]]
        if damaged:
            log.warning("%s is not what the run wrote there; it is measured again", self.folder / damaged[0])
            return None
        results = read_results(self.folder)
        if results.get("evaluation") != dataclasses.asdict(self.settings.eval):
            return None
        say(f"{self.folder} is finished; --resume never starts it again")
        if self.world.is_main_process:
            self.tracking.open(saved.epoch)
            self.tracking.send_results(results)
        self._show(
            {which: results[which] for which in ("best", "last") if which in results}, results["epochs"]
        )
        return results

    def _show(self, measured: Mapping[str, Mapping[str, Any]], epochs: Mapping[str, int]) -> None:
        if measured:
            say("")
            say(format_table({f"{which} (epoch {epochs[which] + 1})": m for which, m in measured.items()}))
            say(f"results          {self.folder / 'results.json'}")

    def _evaluate(self, which: str) -> dict[str, Any]:
        """All attacks on the test images; AutoAttack on fewer of them where asked."""
        return measure(
            load_network(self.folder / which).to(self.world.device),
            self.assets.splits.test,
            self.settings,
            folder=self.folder,
            after_batch=self._break_off_together,
            world=self.world,
        )


def measure(
    network: nn.Module,
    test: ImageSet,
    settings: Settings,
    *,
    folder: Path,
    after_batch: Callable[[], object] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Measure a network as its run's settings ask: all attacks, AutoAttack on fewer images where asked.

    Args:
        network: on the device to measure on.
        test: the images, of which the settings may take the first few.
        settings: of the run; its `eval` says what and how.
        folder: the run folder, which keeps what is measured so far.
        after_batch: see `iad_ext.evaluate`.
        world: likewise.
    """
    asked = settings.eval
    attacks = words(asked.attacks)
    everything = test.take(slice(0, asked.limit)) if asked.limit else test
    few = everything.take(slice(0, asked.aa_limit)) if asked.aa_limit else everything
    measured = functools.partial(
        evaluate,
        network,
        eps=asked.eps,
        seed=asked.seed,
        batch_size=asked.batch_size,
        fast=asked.fast,
        state_folder=folder / "evaluation",
        after_batch=after_batch,
        world=world,
    )
    curve = asked.curve_limit if set(attacks) != {"natural"} else 0
    if len(few) == len(everything) or "aa" not in attacks:
        return measured(everything.images, everything.labels, attacks=attacks, curve=curve)
    others = tuple(name for name in attacks if name != "aa")
    result = measured(few.images, few.labels, attacks=("aa",), curve=0 if others else curve)
    if others:
        of_others = measured(everything.images, everything.labels, attacks=others, curve=curve)
        result = with_autoattack(of_others, result)
    return result


def keep_gallery(
    network: nn.Module,
    splits: Splits,
    settings: Settings,
    *,
    teacher: nn.Module | None,
    folder: Path,
    which: str,
    after_batch: Callable[[], object] | None = None,
) -> None:
    """Keep the worst and the most distrusted of the first test images; a run never fails by it.

    Args:
        network: on the device to attack it on.
        splits: the images and the names of their classes.
        settings: of the run; its `eval` says how.
        teacher: T_at, on the same device; without it nothing is distrusted.
        folder: the run folder, where `gallery.safetensors` goes.
        which: the checkpoint's name, `best` or `last`.
        after_batch: see `iad_ext.evaluate`.
    """
    asked = settings.eval
    test = splits.test.take(slice(0, min(gallery.IMAGES, asked.limit or gallery.IMAGES)))
    try:
        kept = gallery.pick(
            network,
            test.images,
            test.labels,
            teacher=teacher,
            eps=asked.eps,
            seed=asked.seed,
            batch_size=asked.batch_size,
            after_batch=after_batch,
        )
        content = gallery.as_file(kept, eps=asked.eps, n=len(test), which=which, classes=splits.classes)
        files.write_whole(folder / "gallery.safetensors", content)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        log.warning("no gallery of images: %s", error)


def write_report(folder: Path) -> None:
    """Make a run folder's report.html; a report that cannot be made is a warning."""
    try:
        from iad_ext import report  # brings matplotlib, which training does without

        say(f"report           {report.write(folder)}")
    except Exception as error:  # the run is done, and worth more than its report
        log.warning("no report (%s: %s); iad-ext report %s", type(error).__name__, error, folder)


def _as_records(changed: Sequence[Change]) -> list[dict[str, Any]]:
    """What changed, as it comes back from JSON."""
    records = [{"setting": name, "before": before, "now": now} for name, before, now in changed]
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in record.items()} for record in records]


def _mean_and_std(images: ImageSet) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of the training pixels, in units of [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.images.unbind(dim=1):
        # of bytes there are 256 values; the pixels in float64 would take eight times the images' memory, twice
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        n = counts.sum()
        mean = (counts * values).sum() / n
        means.append(mean.item())
        deviations.append(((counts * (values - mean) ** 2).sum() / (n - 1)).sqrt().item())
    return means, deviations


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def read_results(folder: str | Path) -> dict[str, Any]:
    """Read a run folder's `results.json`."""
    results: dict[str, Any] = files.read_json(Path(folder) / "results.json")
    return results
