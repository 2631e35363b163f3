"""The ART door: a trainer with ART's interface in front of the same engine that the recipes run.

Inside, pixels are in [0, 1] as everywhere here; the classifier's `clip_values` and preprocessing are part of the
network that is attacked and trained.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.data_generators import DataGenerator
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor, nn

from iad_ext import attacks, batchnorm, compiling, objectives, precision
from iad_ext.averaging import become, check_followed
from iad_ext.backbones import load_network, network_digest
from iad_ext.batches import share
from iad_ext.checkpoint import lay_out_as_weights
from iad_ext.checks import check_mapping, check_name, check_number
from iad_ext.compiling import Compilation
from iad_ext.data import PixelSet
from iad_ext.evaluation import accuracy_under
from iad_ext.loop import OBSERVED, Diagnostics, Engine, Source, accelerator_for
from iad_ext.modes import frozen, mode
from iad_ext.names import known_arguments, refuse_unknown, unknown
from iad_ext.objectives import ADVERSARIAL_PASSES, Objective
from iad_ext.precision import Precision
from iad_ext.processes import World, from_main, state_aside
from iad_ext.provenance import accelerate_precision, digest
from iad_ext.randomness import stream_seed
from iad_ext.reliability import predicts
from iad_ext.step import Attack, BnOrder
from iad_ext.trainer.averages import Average, Averaging, Statistics
from iad_ext.trainer.foreign_attacks import FromART, check_attack, on_student
from iad_ext.trainer.keeping import Keeper
from iad_ext.trainer.pixels import ClipRange, PixelModule, as_plain, checked_logits, type_of
from iad_ext.trainer.sources import CROP, ArrayBatches, GeneratorBatches, integer_labels
from iad_ext.types import Images, Labels

logger = logging.getLogger(__name__)

Teacher: TypeAlias = PyTorchClassifier | nn.Module | str | PathLike[str]
Data: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
# images of all epochs together from which on a measurement of precisions, which costs as much as 80, pays
WORTH_MEASURING = 1000
ENOUGH_TO_JUDGE = 32  # images on which a teacher that is right no more often than chance is suspect


class IntrospectiveAdversarialDistiller(Trainer):  # type: ignore[misc]
    """Distils an adversarially robust student from a robust teacher, as an ART trainer.

    | Paper: https://openreview.net/forum?id=u6TRGdzhfip

    Args:
        classifier: the student, with an optimizer; its module is trained in place by that optimizer.
        teacher: the adversarially trained teacher: a `PyTorchClassifier`, a module that takes pixels in [0, 1] and
            returns logits, or anything that `load_network` takes. None only where the objective reads no teacher.
        attack: how training images are attacked: an ART `EvasionAttack`, a torchattacks attack (radius in pixels of
            [0, 1]), or None for the objective's own, on the device: PGD-10 with a step of eps / 4.
        objective: its name (`iad1`, `iad2`, `ard`, …) or an `Objective`. By name, warm-up is 30% of the epochs for
            `iad1` and 20% for `iad2`.
        natural_teacher: the naturally trained teacher of AKD2 and IAD-II, as `teacher`.
        eps: L∞ radius of the default attack and of validation, in the units of `clip_values`; 8/255 of their range
            when None.
        objective_settings: arguments of an objective given by name, such as `{"beta": 0.1}`.
        seed: of the order of images and of the random starts, ≥ 0.
        precision: `fp32`, `bf16`, `fp16`, or `auto` to take what `accelerate launch` asks for, else what a short
            measurement finds fastest. One measurement serves a whole process; name a precision to have the same
            bits in another.
        diagnostics: run the teacher for `history` alone too, where the objective does not read it: in every step
            (`full`), in every second one (`half`), or not (`off`). Training is the same to the last bit.
        compile: how the attack runs: `off` (eager), `step` (one compiled step), `graphs` (a CUDA graph), or `auto` to
            take graphs where a trial on a GPU finds them faster. What fails is left out with a warning; ART's and
            torchattacks' own attacks run eagerly.
        average: average the student's weights: `ema` follows every step, `swa` is the mean over the ends of epochs.
            The average is then what is validated and what the classifier holds after a fit; `raw_weights` has the
            student's own. A fit that fails leaves the student's own in the classifier.
        average_decay: share of the `ema` that stays at each step, in [0, 1).
        average_start: first epoch that is averaged, ≥ 0; before, the average is the student itself.
        average_batchnorm: BatchNorm's statistics of the average: means over the last epoch's images as they were
            trained on, cropped and mixed but not attacked (`reestimate`), or averaged as the weights are (`average`),
            which a generator's images need.
        awp: γ of adversarial weight perturbation (Wu et al. 2020: 0.005), ≥ 0; 0 for none. Adds the student's passes
            once more, not the attack's and not the teachers'.
        awp_start: first epoch with it, ≥ 0.
        bn_order: which of the student's passes BatchNorm's running statistics see: those that the loss reads (`lean`),
            or those of the released step, in its order (`faithful`).

    Attributes:
        history: figures of every epoch of the last fit, under the names of a run folder's `metrics.jsonl`.
        raw_weights: the student's own weights at the end of the last fit, on the CPU, for the module's
            `load_state_dict`; None unless an average was asked for.

    Raises:
        TypeError: `objective`, a teacher or a name is of a wrong type.
        ValueError: `classifier` is no PyTorchClassifier, `attack` is no attack, a teacher is missing, is the student
            itself, has other classes or returns probabilities, the clip values are missing, or a name or a number is
            none that is known.
        NotImplementedError: the attack is targeted.
    """

    @known_arguments
    def __init__(
        self,
        classifier: PyTorchClassifier,
        teacher: Teacher | None = None,
        attack: EvasionAttack | attacks.TorchAttack | None = None,
        *,
        objective: str | Objective = "iad1",
        natural_teacher: Teacher | None = None,
        eps: float | None = None,
        objective_settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        precision: str = "auto",
        diagnostics: Literal["full", "half", "off"] = "half",
        compile: str = "auto",  # noqa: A002 (the setting's name everywhere)
        average: Average = "none",
        average_decay: float = 0.995,
        average_start: int = 0,
        average_batchnorm: Statistics = "reestimate",
        awp: float = 0.0,
        awp_start: int = 0,
        bn_order: BnOrder = "lean",
    ) -> None:
        if not isinstance(classifier, PyTorchClassifier):
            raise ValueError(f"classifier must be an ART PyTorchClassifier, got {type(classifier).__name__}")
        super().__init__(classifier)
        student = PixelModule.of(classifier)
        check_attack(attack)
        self._attack = attack
        self._eps = student.clip.as_pixels(eps)
        self._seed = _whole_number("seed", seed, at_least=0)
        self._precision = _known_precision(precision, student)
        if diagnostics not in OBSERVED:
            raise ValueError(unknown("diagnostics", str(diagnostics), OBSERVED))
        self._diagnostics: Diagnostics = diagnostics
        check_name("compile", compile)
        compiling.check(compile)
        self._compile = compile
        self._averaging = Averaging(
            average=average,
            average_decay=average_decay,
            average_start=_whole_number("average_start", average_start, at_least=0),
            average_batchnorm=average_batchnorm,
        )
        check_number("awp", awp, at_least=0)
        self._awp, self._awp_start = awp, _whole_number("awp_start", awp_start, at_least=0)
        check_name("bn_order", bn_order)
        if bn_order not in get_args(BnOrder):
            raise ValueError(unknown("bn_order", bn_order, get_args(BnOrder)))
        self._bn_order: BnOrder = bn_order
        self._objective = objective
        self._objective_settings = {} if objective_settings is None else objective_settings
        check_mapping("objective_settings", self._objective_settings, "{'beta': 0.1}")
        given = {"teacher": teacher, "natural_teacher": natural_teacher}
        built = self._built(nb_epochs=100)
        self._require_teachers(built, nb_epochs=100, given=given)
        self._averaging.check(built)
        check_followed(
            built,
            attack=type(attack).__name__,
            reads=getattr(attack, "reads", frozenset()),
            otherwise="leave attack= out, and the objective's own is taken",
        )
        self._teachers = {role: self._as_network(role, net) for role, net in given.items() if net is not None}
        self._fits = 0
        self.history: list[dict[str, Any]] = []
        self.raw_weights: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------ ART's interface

    def fit(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        validation_data: Data | None = None,
        batch_size: int = 128,
        nb_epochs: int = 20,
        scheduler: Any = None,
        *,
        extra_data: Data | None = None,
        extra_share: float = 0.0,
        padding: int = 0,
        flip: bool = False,
        augment: str = CROP,
        cutmix: float = 0.0,
        checkpoint_folder: str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the classifier; every fit starts at epoch 0, or goes on where `checkpoint_folder` says it stands.

        Args:
            x: training images (n, channels, height, width) within the classifier's `clip_values`. Not modified.
            y: labels, one-hot (n, classes), (n,) or (n, 1).
            validation_data: images and labels whose natural and PGD-10 accuracy `history` gets after every epoch.
            batch_size: images in an update, over all processes.
            nb_epochs: number of epochs.
            scheduler: anything with a `step()`, called once an epoch, such as `iad_ext.rates.scheduler` makes. One that
                watches a metric gets the training loss, or the PGD-10 accuracy in validation where its mode is `max`.
            extra_data: more images and labels to train on, such as generated ones, of the same form as `x` and `y`.
            extra_share: share of an epoch's images that are theirs, in [0, 1]; an epoch stays as long as `x`, and takes
                each of them once before any twice. Generated CIFAR images take 0.7 to 0.8.
            padding: random crop after padding by this many pixels on each side with the range's lower end; 0 for none.
            flip: mirror half of the images.
            augment: `crop`, or in place of the random crop `cropshift`, or `idbh_weak`, which is CropShift with colours
                and erasing. All of it is drawn by (seed, epoch) and done on the device, before the attack.
            cutmix: share of the images that get a rectangle of another, of at most half their area, in [0, 1]; labels
                stay.
            checkpoint_folder: keep the fit there after every epoch. The same program, run again after it was killed,
                goes on from the newest whole checkpoint and ends with the bits of a fit that was not; give model,
                optimizer, scheduler, data and arguments as the first time: what differs is refused as far as it can be
                told, which a function, such as a LambdaLR's, cannot. A fit that is done is only read back.
            checkpoint_every: keep it within epochs too, every so many steps.
            kwargs: none are known; every one is a TypeError.

        Raises:
            TypeError: an unknown argument, or one of a wrong type.
            ValueError: images or labels that cannot be trained on, a number out of range, no optimizer, a scheduler
                that cannot be stepped, a folder that holds another fit.
            CheckpointError: the folder cannot be written, or another process is fitting in it.
            TrainingStopped: a loss was not finite.
        """
        refuse_unknown("argument of fit", kwargs, _arguments(self.fit))
        batch_size = _whole_number("batch_size", batch_size, at_least=1)
        images, labels = self._checked(x, y, "x", "y")
        extra = self._checked_pair("extra_data", "extra", extra_data)
        mixed: dict[str, Any] = {
            "padding": _whole_number("padding", padding, at_least=0),
            "flip": flip,
            "augment": augment,
            "cutmix": cutmix,
            "extra_share": extra_share,
        }
        source = ArrayBatches(
            PixelSet(images, labels, self._classes),
            batch_size=batch_size,
            seed=self._fit_seed(),
            device=self._device,
            extra=None if extra is None else PixelSet(*extra, self._classes),
            **mixed,
        )
        more = {} if extra is None else {"extra_images": extra[0], "extra_labels": extra[1]}
        keeping = _Keeping.asked(
            checkpoint_folder,
            checkpoint_every,
            images=images,
            labels=labels,
            batch_size=batch_size,
            **more,
            **mixed,
        )
        self._train(source, len(labels), nb_epochs, scheduler, validation_data, keeping)

    def fit_generator(
        self,
        generator: DataGenerator,
        nb_epochs: int = 20,
        scheduler: Any = None,
        *,
        validation_data: Data | None = None,
        checkpoint_folder: str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the classifier on what an ART data generator gives; arguments as for `fit`.

        An epoch is `ceil(generator.size / generator.batch_size)` batches. On several processes the main one's
        batches are shared out, so that each image is used once. A fit that goes on draws the batches before its
        place again and passes over them: give a generator that begins as it did. Augmenting images and mixing in more
        of them is the generator's own affair.
        """
        refuse_unknown("argument of fit_generator", kwargs, _arguments(self.fit_generator))
        if not isinstance(generator, DataGenerator):
            raise ValueError(f"generator must be an ART DataGenerator, got {type(generator).__name__}")
        if generator.size is None:
            raise ValueError("the generator's size is None; give it the number of images in an epoch")
        source = GeneratorBatches(generator, check=self._checked, device=self._device)
        keeping = _Keeping.asked(
            checkpoint_folder,
            checkpoint_every,
            generator=type(generator).__name__,
            size=generator.size,
            batch_size=generator.batch_size,
        )
        self._train(source, generator.size, nb_epochs, scheduler, validation_data, keeping)

    def predict(self, x: NDArray[Any], **kwargs: Any) -> NDArray[Any]:
        """Return the classifier's prediction for `x`, as its own `predict` does."""
        predictions: NDArray[Any] = self._classifier.predict(x, **kwargs)
        return predictions

    # ------------------------------------------------------------------------------------------ training

    def _train(
        self,
        source: ArrayBatches | GeneratorBatches,
        images: int,
        nb_epochs: int,
        scheduler: Any,
        validation_data: Data | None,
        keeping: "_Keeping | None",
    ) -> None:
        """Check what is left to check, then run the engine; whatever happens, put back what is not the student's."""
        nb_epochs = _whole_number("nb_epochs", nb_epochs, at_least=1)
        validation = self._checked_validation(validation_data)
        optimizer = self._checked_optimizer()
        step_scheduler = _scheduler_step(scheduler, optimizer, with_validation=validation is not None)
        objective = self._built(nb_epochs)
        objective.check_run(nb_epochs, classes=self._classes)
        self._require_teachers(objective, nb_epochs, given=self._teachers)
        _warn_of_warmup(objective, nb_epochs)
        if "beta" in self._objective_settings and not objective.reads_trust:
            logger.warning("no term of %r is weighed by α: its beta is not used", objective)
        self._warn_of_starts(nb_epochs)
        student, seed = PixelModule.of(self._classifier), self._fit_seed()
        self._averaging.check_images(student, source)
        if self._bn_order == "faithful":
            batchnorm.tracking(student)  # refuses layers that the order cannot be told for
        with ExitStack() as stack:
            world = stack.enter_context(state_aside(self._device))
            stack.enter_context(_random_state_aside(seed, self._device))
            for teacher in self._teachers.values():
                stack.enter_context(_as_teacher(teacher, self._device))
            example = self._checked_example(source, student, world)
            keeper = None
            if keeping is not None:
                fit = self._what_decides(keeping, objective, nb_epochs, scheduler, validation)
                keeper = keeping.keeper(fit, main=world.is_main_process)
                stack.enter_context(keeper.locked())
            decided = (keeper and keeper.precision) or self._decide(
                student, example, nb_epochs * images, world
            )
            accelerator = accelerator_for(decided, cpu=self._device.type == "cpu")
            attack = self._training_attack(student, objective, nb_epochs, decided)
            # all is checked: from here on the student changes
            networks = (student, *self._teachers.values())
            stack.enter_context(_memory_format(networks, optimizer, channels_last=decided.channels_last))
            stack.callback(optimizer.zero_grad, set_to_none=True)
            stack.callback(self._classifier._model.eval)  # as ART's trainers do, here also where one fails
            average = self._averaging.begin(student)
            compilation = Compilation("off", "nothing is attacked")
            if attack is not None:
                compilation = self._compilation(attack, source, accelerator.autocast, world, keeper)
                attack = compiling.compiled(attack, compilation)
            engine = Engine(
                accelerator=accelerator,
                student=student,
                optimizer=optimizer,
                objective=objective,
                attack=attack,
                source=source,
                seed=seed,
                teacher=self._teachers.get("teacher"),
                natural_teacher=self._teachers.get("natural_teacher"),
                diagnostics=self._diagnostics,
                bn_order=self._bn_order,
                average=average,
                awp=self._awp,
                awp_start=self._awp_start,
            )
            engine.check_batches()
            if average is not None:
                become(average.network, student)  # every process has the main one's weights by now
            first_epoch, first_step, self.history, self.raw_weights = 0, 0, [], None
            if keeper is not None:
                keeper.precision, keeper.compilation = decided, compilation
                first_epoch, first_step = keeper.restore(engine, step_scheduler)
                self.history = keeper.history
            for epoch in range(first_epoch, nb_epochs):
                record = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
                record |= engine.epoch(
                    epoch,
                    first_step=first_step if epoch == first_epoch else 0,
                    after_step=keeper.after_step(engine, epoch) if keeper else None,
                )
                if validation is not None:
                    record |= self._validate(self._averaging.measured(engine, epoch), *validation, engine)
                step_scheduler(epoch, record)
                self.history.append(record)
                if keeper:
                    keeper.save(engine, epoch + 1, 0)
                logger.info("%s", _sentence(record, nb_epochs))
            if average is not None:
                self.raw_weights = _kept(self._classifier.model)
                become(student, self._averaging.measured(engine, nb_epochs - 1))
            self._fits += 1

    def _what_decides(
        self,
        keeping: "_Keeping",
        objective: Objective,
        nb_epochs: int,
        scheduler: Any,
        validation: tuple[Images, Labels] | None,
    ) -> dict[str, Any]:
        """Everything that a fit's result depends on, as far as it can be told."""
        networks = {"student": PixelModule.of(self._classifier), **self._teachers}
        return {
            **keeping.data,
            "fit": self._fits,
            "seed": self._seed,
            "nb_epochs": nb_epochs,
            "objective": repr(_with_values(objective, nb_epochs)),
            "attack": _plain_settings(self._attack),
            "eps": self._eps,
            "optimizer": type(self._classifier.optimizer).__name__,
            "scheduler": _plain_scheduler(scheduler),
            "precision": self._precision,
            "compile": self._compile,
            **asdict(self._averaging),
            "awp": self._awp,
            "awp_start": self._awp_start,
            "bn_order": self._bn_order,
            # the range of pixels before the module is told below
            "teachers": {
                role: network_digest(net.module, prefix="module.") for role, net in self._teachers.items()
            },
            "clip_values": {role: net.clip_values for role, net in networks.items()},
            "preprocessing": {role: net.preprocessing for role, net in networks.items()},
            "validation": None if validation is None else digest(dict(zip("xy", validation, strict=True))),
        }

    def _checked_example(self, source: Source, student: "PixelModule", world: World) -> Images:
        """Look at what student and teachers make of the first batch; return its first images."""
        first = source.batch(0, 0)
        if first.total < world.num_processes:
            raise ValueError(
                f"a batch of {first.total} images cannot be shared by {world.num_processes} processes; "
                "give more images, a larger batch_size or fewer processes"
            )
        images, labels = first.images[:64], first.labels[:64]
        checked_logits("student", student, images, self._classes)
        for role, teacher in self._teachers.items():
            logits = checked_logits(role, teacher, images, self._classes)
            right = 100 * float(predicts(logits, labels).double().mean())
            logger.info("%s: right on %.1f%% of the first %d images", role, right, len(labels))
            if len(labels) >= ENOUGH_TO_JUDGE and right <= 100 / self._classes:
                logger.warning(
                    "the %s is right on %.1f%% of the first training images, no better than chance: wrong weights, "
                    "classes in another order, or images outside the range it expects?",
                    role.replace("_", " "),
                    right,
                )
        return images

    def _decide(self, student: "PixelModule", example: Images, work: int, world: World) -> Precision:
        """The precision: what was asked for, else accelerate's, else the fastest where measuring it pays."""
        if student.dtype != torch.float32:
            return Precision(kind="fp32", channels_last=False, reason="the module's own type")
        if self._precision != "auto":
            return precision.asked(self._precision, reason="asked for", device=self._device)
        flag = accelerate_precision()
        if flag is not None:
            return precision.asked(flag, reason="asked for by accelerate", device=self._device)
        if work < WORTH_MEASURING:
            return Precision(
                kind="fp32", channels_last=False, reason="too little work to measure anything for"
            )
        agreed = from_main(_measured(student, example) if world.is_main_process else None)
        assert agreed is not None
        return agreed

    def _compilation(
        self,
        attack: Attack,
        source: Source,
        autocast: compiling.Autocast,
        world: World,
        keeper: Keeper | None,
    ) -> Compilation:
        """How the attack is run: as asked for, as the fit was begun, or as a trial on the first batch finds."""
        before = keeper.compilation if keeper else None
        wanted, reason = self._compile, "asked for"
        if before is not None:
            wanted, reason = before.kind, before.reason if before.kind == "off" else "as the fit was begun"
        images = source.batch(0, 0, part=world.process_index, parts=world.num_processes).images
        found = compiling.decide(
            wanted,
            attack,
            images,
            classes=self._classes,
            autocast=autocast,
            reason=reason,
        )
        return from_main(found)

    def _training_attack(
        self, student: "PixelModule", objective: Objective, nb_epochs: int, decided: Precision
    ) -> Attack | None:
        if not objective.passes(nb_epochs) & ADVERSARIAL_PASSES:
            return None
        if isinstance(self._attack, EvasionAttack):
            return FromART(self._attack, student, self._classes)
        if isinstance(self._attack, attacks.TorchAttack):
            return on_student(self._attack, student, self._device, loss_scale=decided.attack_loss_scale)
        return attacks.build(
            objective.attack if objective.attack != "none" else "pgd",
            student,
            teacher=self._teachers.get("teacher"),
            eps=self._eps,
            alpha=self._eps / 4,
            training=objective.attack_training,
            loss_scale=decided.attack_loss_scale,
        )

    def _validate(
        self, student: nn.Module, images: Images, labels: Labels, engine: Engine
    ) -> dict[str, float]:
        """Natural and PGD-10 accuracy in percent; each process measures its share of the images."""
        first, end = share(len(labels), engine.accelerator.process_index, engine.accelerator.num_processes)
        mine, here = slice(first, end), {"eps": self._eps, "seed": self._seed, "first": first}
        right = torch.zeros(2, dtype=torch.float64, device=self._device)
        if end > first:
            for k, name in enumerate(("natural", "pgd10")):
                right[k] = accuracy_under(student, images[mine], labels[mine], name, **here).sum()  # type: ignore[arg-type]
        natural, pgd10 = (100 * engine.accelerator.reduce(right, "sum") / len(labels)).tolist()
        return {"eval/natural": natural, "eval/pgd10": pgd10}

    # ------------------------------------------------------------------------------------------ parts

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._classifier.device
        return device

    @property
    def _classes(self) -> int:
        classes: int = self._classifier.nb_classes
        return classes

    def _fit_seed(self) -> int:
        """A second fit sees the images in another order than the first."""
        return self._seed if self._fits == 0 else stream_seed(self._seed, "fit", self._fits)

    def _built(self, nb_epochs: int) -> Objective:
        if isinstance(self._objective, Objective):
            return objectives.as_objective(self._objective, **self._objective_settings)
        if not isinstance(self._objective, str):
            raise TypeError(
                f"objective must be a name or an Objective, such as objectives.iad1(), got {self._objective!r}"
            )
        settings = dict(self._objective_settings)
        if self._objective in objectives.ROWS:
            settings |= objectives.of_epochs(self._objective, nb_epochs, settings)
        return objectives.build(self._objective, **settings)

    def _warn_of_starts(self, nb_epochs: int) -> None:
        averaged, start = self._averaging.average, self._averaging.average_start
        for what, asked, begins in (
            (f"the {averaged} of weights", averaged != "none", start),
            ("weight perturbation", self._awp > 0, self._awp_start),
        ):
            if asked and begins >= nb_epochs:
                logger.warning(
                    "%s begins at epoch %d, counted from 0: this fit of %d epochs is without it",
                    what,
                    begins,
                    nb_epochs,
                )

    def _require_teachers(self, objective: Objective, nb_epochs: int, *, given: Mapping[str, object]) -> None:
        needed = {objective.name: objective.passes(nb_epochs)}
        if needed[objective.name] & ADVERSARIAL_PASSES:  # else nothing is attacked
            needed[f"the attack {type(self._attack).__name__}"] = getattr(self._attack, "reads", frozenset())
        for role in ("teacher", "natural_teacher"):
            readers = [who for who, passes in needed.items() if any(p.startswith(f"{role}_") for p in passes)]
            if given.get(role) is None and readers:
                raise ValueError(
                    f"{readers[0]} reads a {role.replace('_', ' ')}; pass {role}= a PyTorchClassifier, a module, a run "
                    "folder, a folder in timm's layout, a timm name, hf-hub:OWNER/NAME, or of a bare checkpoint "
                    'load_network(FILE, "NAME")'
                )

    def _as_network(self, role: str, given: Teacher) -> "PixelModule":
        """The teacher as a network of pixels, after a look at its logits of two grey images."""
        if not isinstance(given, PyTorchClassifier):
            network = PixelModule(load_network(given))
        else:
            network = PixelModule.of(given)
        own = {id(parameter) for parameter in self._classifier.model.parameters()}
        if any(id(parameter) in own for parameter in network.parameters()):
            raise ValueError(
                f"the {role.replace('_', ' ')} shares weights with the student; pass a copy, trained beforehand"
            )
        grey = torch.full((2, *self._classifier.input_shape), 0.5, device=network.device)
        checked_logits(role, network, grey, self._classes)
        return network

    def _checked_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._classifier.optimizer
        if optimizer is None:
            raise ValueError(
                "the classifier has no optimizer; give PyTorchClassifier(optimizer=…) one to train with"
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held and p.requires_grad for p in self._classifier.model.parameters()):
            raise ValueError(
                "the classifier's optimizer holds none of its model's trainable parameters; build it from this model"
            )
        # of the class: a scheduler puts a step of its own on the optimizer
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"expected an optimizer that steps without a closure, got {type(optimizer).__name__}; choose another "
                "one, such as torch.optim.SGD"
            )
        return optimizer  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------------ data

    def _checked(self, x: Any, y: Any, x_name: str, y_name: str) -> tuple[Images, Labels]:
        """Images in [0, 1] and labels as integers, both on the CPU; the arguments stay as they are."""
        try:
            images = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{x_name} must be an array of images of one size: {error}") from error
        if images.ndim != 4 or images.dtype.kind not in "fiub":
            raise ValueError(
                f"{x_name} must be numbers of shape (n, channels, height, width), got {images.dtype} {images.shape}"
            )
        if images.shape[1:] != tuple(self._classifier.input_shape):
            raise ValueError(
                f"{x_name} has images of {images.shape[1:]}, the classifier takes {self._classifier.input_shape}"
            )
        if not len(images):
            raise ValueError(f"{x_name} is empty")
        labels = integer_labels(np.asarray(y), len(images), self._classes, x_name, y_name)
        wide = type_of(self._classifier.model) == torch.float64
        with np.errstate(over="ignore"):  # what overflows is found to be infinite below
            pixels = torch.from_numpy(images.astype(np.float64 if wide else np.float32))
        if not pixels.isfinite().all():
            raise ValueError(f"{x_name} contains NaN or infinity; clean the data first")
        return ClipRange.of(self._classifier).checked_pixels(pixels, x_name), labels

    def _checked_validation(self, data: Any) -> tuple[Images, Labels] | None:
        pair = self._checked_pair("validation_data", "validation", data)
        return None if pair is None else (pair[0].to(self._device), pair[1].to(self._device))

    def _checked_pair(self, argument: str, name: str, data: Any) -> tuple[Images, Labels] | None:
        if data is None:
            return None
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise ValueError(f"{argument} is a pair (images, labels)")
        return self._checked(data[0], data[1], f"{name} x", f"{name} y")


# ---------------------------------------------------------------------------------------------- what is put back


@contextmanager
def _random_state_aside(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random state as a function of the seed for the block, and as it was afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "fit"))
        yield


@contextmanager
def _as_teacher(teacher: PixelModule, device: torch.device) -> Iterator[None]:
    """In eval mode, frozen and on the device for the block."""
    home = teacher.device
    try:
        with mode(teacher.to(device), training=False), frozen(teacher):
            yield
    finally:
        teacher.to(home)


@contextmanager
def _memory_format(
    networks: Iterable[nn.Module], optimizer: torch.optim.Optimizer, *, channels_last: bool
) -> Iterator[None]:
    """Train in channels_last; afterwards every weight, and what the optimizer keeps of it, lies as it did."""
    weights = [p for network in networks for p in network.parameters() if p.ndim == 4 and p.is_contiguous()]
    if not channels_last:
        weights = []
    try:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        lay_out_as_weights(optimizer)  # of an earlier fit, say
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()
        lay_out_as_weights(optimizer)


# ---------------------------------------------------------------------------------------------- small matters


@dataclass(frozen=True)
class _Keeping:
    """That a fit is to be kept, and on what data it is."""

    folder: str | PathLike[str]
    every: int | None
    data: Mapping[str, Any]

    @classmethod
    def asked(cls, folder: str | PathLike[str] | None, every: int | None, **data: Any) -> "_Keeping | None":
        """Check the two arguments; tensors of the data are known by their digest."""
        if folder is None:
            if every is not None:
                raise ValueError("checkpoint_every needs a checkpoint_folder to keep the fit in")
            return None
        if not isinstance(folder, str | PathLike):
            raise TypeError(f"checkpoint_folder must be a path, got {folder!r}")
        every = None if every is None else _whole_number("checkpoint_every", every, at_least=1)
        tensors = {name: value for name, value in data.items() if isinstance(value, Tensor)}
        others = {name: value for name, value in data.items() if name not in tensors}
        return cls(folder, every, others | ({"data": digest(tensors)} if tensors else {}))

    def keeper(self, fit: Mapping[str, Any], *, main: bool) -> Keeper:
        return Keeper(self.folder, every=self.every, fit=fit, main=main)


_measurements: dict[tuple[object, ...], Precision] = {}


def _plain_settings(attack: object) -> dict[str, Any]:
    """An attack's class and those of its settings that are plain data; what it prints has no say."""
    settings = {} if attack is None else vars(attack)
    plain = {name: as_plain(value) for name, value in settings.items() if not name.startswith("_")}
    known = {name: value for name, value in plain.items() if value is not None and name != "verbose"}
    return {"class": type(attack).__name__, **known}


def _plain_scheduler(scheduler: Any) -> list[Any]:
    """A scheduler's class and that of its state which is plain data."""
    state = scheduler.state_dict() if callable(getattr(scheduler, "state_dict", None)) else {}
    plain = {"last_epoch": getattr(scheduler, "last_epoch", None)}
    for name, value in sorted(state.items()):
        with suppress(TypeError, ValueError):  # anything may stand there
            plain[name] = json.loads(json.dumps(value))
    return [type(scheduler).__name__, plain]


def _measured(student: PixelModule, example: Images) -> Precision:
    """What is fastest for such a network here, measured once in a process: the same trainer gives the same bits."""
    case = (str(student), tuple(example.shape), example.device, torch.get_num_threads())
    if case not in _measurements:
        _measurements[case] = precision.probe(
            student, image_shape=example.shape[1:], device=example.device, batch_size=len(example)
        )
        logger.info("precision: %s", _measurements[case])
    return _measurements[case]


def _known_precision(name: str, student: PixelModule) -> str:
    known = ("auto", *precision.KINDS)
    if name not in known:
        raise ValueError(unknown("precision", str(name), known))
    if name in ("bf16", "fp16") and student.dtype != torch.float32:
        raise ValueError(
            f"{name} is for float32 modules, the classifier's is {student.dtype}; leave it at auto"
        )
    if name == "fp16" and student.device.type == "cpu":
        raise ValueError("fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return name


def _arguments(method: Any) -> list[str]:
    return [name for name, p in inspect.signature(method).parameters.items() if p.kind is not p.VAR_KEYWORD]


def _with_values(objective: Objective, nb_epochs: int) -> Objective:
    """The objective to be told from others by its repr: a computed γ by its values, where a function has an address."""

    def told(name: str, value: Any) -> Any:
        if isinstance(value, Objective):
            return _with_values(value, nb_epochs)
        if name == "gamma" and callable(value):
            return [float(value(epoch)) for epoch in range(nb_epochs)]
        return value

    return replace(
        objective, settings={name: told(name, value) for name, value in objective.settings.items()}
    )


def _kept(module: nn.Module) -> dict[str, Any]:
    """A copy of a module's state on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        if isinstance(value, Tensor)
        else value  # extra state of a layer, whatever that is
        for name, value in module.state_dict().items()
    }


def _whole_number(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not at_least <= value < 2**63:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return int(value)


def _warn_of_warmup(objective: Objective, nb_epochs: int) -> None:
    if objective.warmup is not None and objective.warmup_epochs >= nb_epochs:
        logger.warning(
            "warm-up (%d epochs) covers all %d epochs: this fit is plain %s",
            objective.warmup_epochs,
            nb_epochs,
            objective.warmup.name,
        )


def _scheduler_step(
    scheduler: Any, optimizer: torch.optim.Optimizer, *, with_validation: bool
) -> Callable[[int, Mapping[str, Any]], None]:
    """How to step any scheduler once an epoch, as a function of the epoch and its record."""
    if scheduler is None:
        return lambda _epoch, _record: None
    if not callable(getattr(scheduler, "step", None)):
        raise ValueError(
            f"scheduler must have a step() to call once an epoch, got {type(scheduler).__name__}"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("the scheduler is of another optimizer than the classifier's")
    parameters = inspect.signature(scheduler.step).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    # timm's take the epoch to come and perhaps a metric, torch's ReduceLROnPlateau a metric, the others nothing
    wanted = [p.name for p in named if p.name in ("metric", "metrics") or p.default is p.empty]
    if not {"epoch", "metric", "metrics"}.issuperset(wanted):
        raise ValueError(
            f"the scheduler's step() asks for {', '.join(wanted)}; an epoch or a metric can be given"
        )
    highest = getattr(getattr(scheduler, "lr_scheduler", scheduler), "mode", "min") == "max"
    if highest and not with_validation:
        raise ValueError("a scheduler that waits for a maximum needs validation_data to watch")
    watched = "eval/pgd10" if highest else "loss/total"

    def step(epoch: int, record: Mapping[str, Any]) -> None:
        known = {"epoch": epoch + 1, "metric": record[watched], "metrics": record[watched]}
        scheduler.step(**{name: known[name] for name in wanted})

    return step


def _sentence(record: Mapping[str, Any], nb_epochs: int) -> str:
    parts = [f"epoch {record['epoch'] + 1}/{nb_epochs}", f"loss {record['loss/total']:.4f}"]
    for name, key in (
        ("acc(adv)", "train/acc_adv"),
        ("trust", "trust/mean"),
        ("val", "eval/natural"),
        ("val PGD-10", "eval/pgd10"),
    ):
        if record.get(key) is not None:
            parts.append(f"{name} {record[key]:.2f}")
    return "  ".join([*parts, f"{record['time/epoch_s']:.1f} s"])
