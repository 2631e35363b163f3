"""What a run's settings come to: objective, folder, learning rates and passes, before anything is loaded."""

import dataclasses
import functools
import logging
import math
from pathlib import Path

from iad_ext import objectives, rates
from iad_ext import settings as settings_
from iad_ext.attacks import TRAINING_ATTACKS
from iad_ext.averaging import check_followed, check_taught
from iad_ext.backbones import create_network
from iad_ext.data import Splits, load_splits, locate
from iad_ext.evaluation import ATTACKS
from iad_ext.lines import titled
from iad_ext.loop import OBSERVED
from iad_ext.names import unknown, words
from iad_ext.objectives import ADVERSARIAL_PASSES, Objective
from iad_ext.settings import Settings
from iad_ext.step import OF_TEACHER, as_released
from iad_ext.tracking import trackers_of

log = logging.getLogger(__name__)

# recipes whose run folders serve as teachers by their short name
NAMED_TEACHERS = ("at", "trades", "st")
TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the settings come to, before anything is loaded."""

    settings: Settings
    objective: Objective
    folder: Path
    attacks: tuple[str, ...]
    trackers: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Plan":
        """Check the settings and resolve them."""
        settings_.check(settings)
        objective = objectives.build(
            settings.objective.name,
            **settings_.objective_arguments(settings.objective, epochs=settings.train.epochs),
        )
        average = settings.average
        check_taught(objective, kind=average.name, decay=average.decay, start=average.start)
        check_followed(
            objective,
            attack=settings.attack.name,
            reads=TRAINING_ATTACKS[settings.attack.name].reads,
            otherwise=f"take --attack.name {objective.attack if objective.attack != 'none' else 'pgd'}",
        )
        names = words(settings.eval.attacks)
        for name in names:
            if name not in ATTACKS:
                raise ValueError(unknown("attack in --eval.attacks", name, ATTACKS))
        trackers = trackers_of(settings.log_with)
        if settings.resume not in ("auto", "never"):
            if not Path(settings.resume).is_dir():
                raise ValueError(
                    f"--resume takes auto, never or a run folder; there is no folder {settings.resume}"
                )
            if settings.out not in (None, Path(settings.resume)):
                raise ValueError(
                    f"--resume {settings.resume} goes on in that folder, --out {settings.out} names another; give one"
                )
            settings = dataclasses.replace(settings, out=Path(settings.resume))
        data = settings.data
        locate(data.name, data.path, data.revision, require_revision=settings.require_revision)
        plan = cls(settings, objective, settings.out or default_folder(settings), names, trackers)
        objective.check_run(settings.train.epochs)
        if objective.warmup is not None and objective.warmup_epochs >= settings.train.epochs:
            log.warning(
                "warm-up (%d epochs) covers all %d epochs: this run is plain %s",
                objective.warmup_epochs,
                settings.train.epochs,
                objective.warmup.name,
            )
        return plan

    def passes(self) -> frozenset[str]:
        """Every pass that some epoch reads."""
        passes = self.objective.passes(self.settings.train.epochs)
        return passes | self._attack_passes() if passes & ADVERSARIAL_PASSES else passes

    def _attack_passes(self) -> frozenset[str]:
        """The passes that the attack reads, or goes through."""
        attack = TRAINING_ATTACKS[self.settings.attack.name]
        return attack.reads | frozenset({"teacher_adv"} if attack.through_teacher else ())

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        train = self.settings.train
        highest = rates.rising(epoch, train.rate_warmup) * train.lr
        if train.rates != "drops":
            return highest * rates.COURSES[train.rates](epoch, train.epochs)
        fallen = sum(drop <= epoch for drop in train.drops)
        if train.schedule == "released":  # each drop there rescales the initial rate: the second one is lost
            fallen = min(fallen, 1)
        return highest * train.drop_factor**fallen

    def forward_passes(self, epoch: int) -> tuple[int, str]:
        """The step's cost in forward passes of one image (a backward is two), and where it goes."""
        needed = self.objective.needs(epoch)
        steps = self.settings.attack.steps if needed & ADVERSARIAL_PASSES else 0
        kind = TRAINING_ATTACKS[self.settings.attack.name]
        networks = 2 if kind.through_teacher else 1
        attack = 2 * steps * networks + (1 if steps and kind.predicts_first else 0)
        update = 3 * sum(name.startswith("student") for name in needed)
        if self.settings.train.bn_order == "faithful":  # what only the statistics see has no backward
            update += len(set(as_released(self.objective, epoch)) - needed)
        if self.settings.train.awp and epoch >= self.settings.train.awp_start:
            update *= 2
        read = kind.reads if steps else frozenset()
        teachers = sum(not name.startswith("student") for name in needed | read)
        total = attack + update + teachers
        return total, f"{total} F = attack {attack} + student {update} + teachers {teachers}"

    def observed(self, epoch: int) -> str:
        """The teacher's passes that only the figures read, and what they cost; empty where there are none."""
        needed, every = self.objective.needs(epoch), OBSERVED[self.settings.diagnostics]
        if self.settings.teacher is None or not every or not needed & ADVERSARIAL_PASSES:
            return ""
        only = sorted(OF_TEACHER - needed - TRAINING_ATTACKS[self.settings.attack.name].reads)
        steps = "every step" if every == 1 else "every second step"
        return (
            f"for the figures {' and '.join(only)} in {steps}, {len(only) / every:g} F more" if only else ""
        )

    def description(self) -> str:
        """What `--dry-run` prints."""
        settings, train = self.settings, self.settings.train
        images, source, classes = self._training_images()
        size = math.ceil(images / train.batch_size)
        network = create_network(settings.student.name, num_classes=classes)
        parameters = sum(p.numel() for p in network.parameters())
        said: dict[
            str, str
        ] = {}  # of the first epoch of each phase; a phase that comes back is not told twice
        for epoch in range(train.epochs):
            passes = "; ".join(filter(None, self._said_of_passes(epoch)))
            when = "in warm-up" if self.objective.warming_up(epoch) else f"from epoch {epoch}"
            said.setdefault(passes, when)
        fact = functools.partial(titled, column=13)
        lines = [
            settings_.to_yaml(settings).rstrip(),
            "",
            fact("objective", f"{self.objective!r}"),
            fact("", self.objective.formula),
            fact(
                "steps",
                f"{size} an epoch ({images} training images, {source}; batch {train.batch_size}), "
                f"{size * train.epochs} in all",
            ),
            *(fact("passes", f"{when}: {passes}") for passes, when in said.items()),
            fact("parameters", f"{parameters:,} ({settings.student.name}, {classes} classes)"),
            fact("folder", str(self.folder)),
        ]
        return "\n".join(lines)

    def _said_of_passes(self, epoch: int) -> tuple[str, ...]:
        return (
            ", ".join(sorted(self.objective.needs(epoch))),
            self.forward_passes(epoch)[1],
            self.observed(epoch),
        )

    def _training_images(self) -> tuple[int, str, int]:
        """How many there are, how that is known, and of how many classes; loaded where it is not known."""
        data = self.settings.data
        if data.path is None and data.name in TRAINING_IMAGES:
            whole = TRAINING_IMAGES[data.name]
            held_out = min(data.holdout, whole // 10) if data.selection == "holdout" else 0
            known = (whole - held_out, f"{held_out} held out", CLASSES[data.name])
        else:
            splits = load_data(self.settings)
            known = (len(splits.train), "counted", splits.num_classes)
        if data.limit_train is None:
            return known
        return min(data.limit_train, known[0]), "as limited", known[2]


def default_folder(settings: Settings) -> Path:
    """`runs/DATA/RECIPE[-TEACHER]/seedS`, where students look for their teachers."""
    teacher = settings.teacher
    suffix = "" if teacher is None else f"-{_short_name(teacher)}"
    name = f"{settings.recipe}{suffix}"
    return Path("runs") / data_folder(settings) / name / f"seed{settings.train.seed}"


def _short_name(teacher: str) -> str:
    """A teacher's name in its student's folder: `at`, or `at_wrn34-seed1` for the run folder …/at_wrn34/seed1."""
    if teacher in NAMED_TEACHERS:
        return teacher
    path = Path(teacher)
    return f"{path.parent.name}-{path.name}" if path.name.startswith("seed") else path.stem


def data_folder(settings: Settings) -> str:
    """The data set's name as a folder's."""
    data = settings.data
    name = data.name if data.config is None else f"{data.name}-{data.config}"
    return name.replace("/", "--")


def load_data(settings: Settings) -> Splits:
    """Load the images that the settings name.

    Raises:
        ValueError: see `load_splits`; or the folder is of another data set than the one that is named.
    """
    data = settings.data
    splits = load_splits(
        data.name,
        path=data.path,
        revision=data.revision,
        require_revision=settings.require_revision,
        selection=data.selection,
        holdout=data.holdout,
        limit_train=data.limit_train,
        limit_test=data.limit_test,
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    classes = CLASSES.get(data.name, splits.num_classes)
    if data.path is not None and data.label_column is None and splits.num_classes != classes:
        raise ValueError(
            f"--data.name {data.name} has {classes} classes, the images of {data.path} have {splits.num_classes}: say "
            "with --data.name what they are, in a word of your own for data of your own"
        )
    return splits
