"""The settings of a run: typed, frozen, one YAML file, one command line. Only a run's assembly reads them.

A recipe is a `Settings` literal with the paper's numbers plus what changes by data set. Three choices move other
defaults with them before the command line is read, so that `--help` shows what will really be used: `--data.name`
picks the recipe's values for that data set, `--train.schedule` a named variant, and `--train.epochs` scales
learning-rate drops and warm-up in proportion. A value given on the command line is taken as given.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from iad_ext.attacks import TRAINING_ATTACKS
from iad_ext.augment import AUGMENTATIONS
from iad_ext.files import parse_yaml
from iad_ext.names import unknown, words
from iad_ext.objectives import ROWS, Objective, build, of_epochs
from iad_ext.objectives import unread as unread_beside
from iad_ext.objectives.plugins import SAMPLE_WEIGHTS, TARGETS, TRUSTS
from iad_ext.rates import COURSES
from iad_ext.units import Pixels, parse_fraction

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Compile = Literal["auto", "off", "step", "graphs"]
Schedule = Literal["paper", "released", "gairat", "sec5_1"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images."""

    name: str = "cifar10"
    """cifar10, cifar100, tiny-imagenet, digits, or a Hugging Face data set id with an image and a label column."""
    path: Path | None = None
    """Folder that holds the data set, for work without a network."""
    revision: str | None = None
    """Commit of the data set on the hub."""
    limit_train: int | None = None
    """Use this many training images, balanced over the classes."""
    limit_test: int | None = None
    """Use this many test images, balanced over the classes."""
    selection: Literal["holdout", "test"] = "holdout"
    """What selects the best checkpoint: held-out training images, or the test set as in the paper (Section 5)."""
    holdout: int = 1000
    """Images held out of the training set, at most a tenth of it."""
    extra: str | None = None
    """More images to train on: an .npz file with image and label, a folder, or a hub id, OWNER/NAME@COMMIT."""
    extra_share: float = 0.0
    """Their share of an epoch's images; generated CIFAR images take 0.7 to 0.8."""
    config: str | None = None
    """Which of its configurations, where the data set has several."""
    image_column: str | None = None
    """Column of the images; found by its type when not given."""
    label_column: str | None = None
    """Column of the labels; found by its type when not given."""


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """Which network is trained."""

    name: str = "cifar_resnet18"
    """Any classifier's name in timm's registry; iad-ext's own start with cifar_."""
    normalize: bool = False
    """Normalise inside the network by the training set's mean and standard deviation."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What is minimised (Table 1). A knob that the objective does not have is an error."""

    name: Literal[tuple(ROWS)] = "iad1"  # type: ignore[valid-type]
    """The row of Table 1, or a variant."""
    beta: float | None = None
    """β of the trust α = P_T(x̃|y)^β (Eq. 4; Table 5)."""
    gamma: str | None = None
    """Weight of introspection: 1-alpha, a number, or a schedule such as 0:0.5,100:2 (Table 9, Appendix A.3)."""
    tau: float | None = None
    """Distillation temperature τ (Tables 10 and 11)."""
    introspection_tau: float | None = None
    """Temperature of the introspection term alone (Appendix A.4)."""
    label_weight: float | None = None
    """λ of ARD and IAD-I, λ₁ of AKD2 and IAD-II (Table 12)."""
    teacher_weight: float | None = None
    """λ₂ of AKD2 and IAD-II (Table 13)."""
    natural_teacher_weight: float | None = None
    """λ₃ of AKD2 and IAD-II (Table 13)."""
    self_weight: float | None = None
    """TRADES' weight of its KL term."""
    gate_teacher: bool | None = None
    """Multiply the teacher term by α (IAD-II and IAD-I-Down do, IAD-I does not; Table 8)."""
    warmup_epochs: int | None = None
    """Epochs of the plain base objective before introspection begins (Section 5, Table 6)."""
    detach_target: bool | None = None
    """Stop the gradient through S(x) in the introspection term; off in the paper."""
    weights: str | None = None
    """Replace terms' weights, such as label=1,self=0; 0 drops a term and its passes."""
    adv_weight: float | None = None
    """RSLAD's and AdaAD's weight of the term on x̃; the rest is the term's on x."""
    ramp_epochs: int | None = None
    """Epochs over which IGDM's weight and ADR's λ and τ grow or fall; all of the run when not given."""
    introspect: bool = False
    """Wrap the objective in introspection (Eq. 3); beta, gamma, gate-teacher and warmup-epochs are then known."""
    trust: Literal[tuple(TRUSTS)] | None = None  # type: ignore[valid-type]
    """Another trust than Eq. 4's: the 0/1 gate of Section 3.2, ADR's clip, or entropy where the teacher is right."""
    igdm: float | None = None
    """Add IGDM's matching of input gradients; its weight grows from 0 to this."""
    label_smoothing: float | None = None
    """Share of every label that is spread over the classes."""
    target: Literal[tuple(TARGETS)] | None = None  # type: ignore[valid-type]
    """Change what teachers say: swap exchanges the true class and the largest one where they are wrong (DGAD)."""
    class_temperature: str | None = None
    """Temperature of the teachers by true class, such as 3:2,5:1.5."""
    sample_weight: Literal[tuple(SAMPLE_WEIGHTS)] | None = None  # type: ignore[valid-type]
    """Weigh images: by the teacher's entropy on x̃ (after SAAD), by whether it is right on x (after DGAD), or both."""
    options: str | None = None
    """Further arguments of the objective or of plug-ins, such as balance_rate=0.05,average_decay=0.99."""


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How the training images are attacked (Section 5)."""

    name: Literal[tuple(TRAINING_ATTACKS)] = "pgd"  # type: ignore[valid-type]
    """pgd, mart: cross-entropy; adr: with ADR's label; trades: KL from S(x); rslad: from T(x); adaad: from T(x̃)."""
    eps: Pixels = 8 / 255
    """L∞ radius in pixels of [0, 1]."""
    step: Pixels = 2 / 255
    """Step size, same unit."""
    steps: int = 10
    """Number of gradient steps."""
    mode: Literal["train", "eval"] = "train"
    """The student's mode under attack: train in the released distillation code, eval for AT and TRADES."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the student is optimised (Section 5): SGD with momentum and a rate that drops at given epochs."""

    epochs: int = 200
    """Number of epochs; drops and warm-up scale with it unless they are given too."""
    batch_size: int = 128
    """Images in an update, over all processes and accumulated parts."""
    accumulation: int = 1
    """Parts that each process computes a batch in, to save memory."""
    seed: int = 0
    """Seed of weights, order, augmentation and random starts."""
    lr: float = 0.1
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of it."""
    weight_decay: float = 2e-4
    """Weight decay of SGD."""
    drops: tuple[int, ...] = (100, 150)
    """Epochs at which the rate falls."""
    drop_factor: float = 0.1
    """What the rate is multiplied by at each drop."""
    schedule: Schedule = "paper"
    """released: second drop lost; gairat: 120 epochs, drops 60 90 110; sec5_1: 200, drops 100 150, decay 2e-4."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop the run, or skip the step and count it."""
    bn_order: Literal["lean", "faithful"] = "lean"
    """Passes that BatchNorm's running statistics see: those the loss reads, or the released step's, in its order."""
    rates: Literal[("drops", *COURSES)] = "drops"  # type: ignore[valid-type]
    """Course of the rate: falls at drops, half a cosine to 0, or linear up to 2/5 of the epochs and down to 0."""
    rate_warmup: int = 0
    """Epochs over which the rate rises linearly to its course."""
    awp: float = 0.0
    """γ of adversarial weight perturbation: its source has 0.01 with AT, 0.005 with TRADES; 0 for none."""
    awp_start: int = 0
    """First epoch with it."""
    padding: int = 4
    """Random crop after padding by this many pixels on each side; 0 for none."""
    flip: bool = True
    """Random horizontal flip."""
    augment: Literal[("crop", *AUGMENTATIONS)] = "crop"  # type: ignore[valid-type]
    """Random crop, or in its place CropShift, or IDBH-weak: CropShift, a change of colour or shape, erasing."""
    cutmix: float = 0.0
    """Share of images that get a rectangle of another, of at most half their area; labels stay."""


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """Average the student's weights; the average is then what is validated, selected, kept and measured."""

    name: Literal["none", "ema", "swa"] = "none"
    """ema follows every step, swa is the mean over the ends of epochs."""
    decay: float = 0.995
    """Share of the ema that stays at each step."""
    start: int = 0
    """First epoch that is averaged; scales with the epochs."""
    batchnorm: Literal["reestimate", "average"] = "reestimate"
    """BatchNorm's statistics: means over the epoch's images as they were trained on, or averaged as the weights are."""


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How the finished student is measured."""

    attacks: str = "natural,fgsm,pgd20,cw_inf,aa"
    """Comma-separated: natural, fgsm, fgsm_plain, pgd10, pgd20, cw_inf, aa; empty for none."""
    of: str = "best,last"
    """Which checkpoints to measure: best, last, or both."""
    eps: Pixels = 8 / 255
    """L∞ radius in pixels of [0, 1]."""
    limit: int | None = None
    """Measure on the first so many test images; all of them when not given."""
    aa_limit: int | None = None
    """AutoAttack on the first so many test images: on a CPU it takes a minute an image."""
    curve_limit: int = 256
    """Robust accuracy against the radius on the first so many test images, a test for masking; 0 for none."""
    fast: bool = False
    """BatchNorm folded into convolutions, channels last: the same attacks sooner, rounded otherwise."""
    batch_size: int = 250
    """Images at a time; AutoAttack's result depends on it a little."""
    seed: int = 0
    """Seed of the random starts."""
    validation_limit: int | None = None
    """Select checkpoints on the first so many validation images."""
    every: int = 1
    """Validate every so many epochs, and at the last."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What a killed run can be continued from."""

    every_epochs: int = 1
    """Save every so many epochs, and at the last."""
    every_steps: int | None = None
    """Save within epochs too, every so many steps."""
    keep: int = 2
    """How many checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run."""

    recipe: tyro.conf.Suppress[str] = "run"
    data: DataSettings = field(default_factory=DataSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    attack: AttackSettings = field(default_factory=AttackSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    average: AverageSettings = field(default_factory=AverageSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    teacher: str | None = None
    """Robust teacher: at or trades (that recipe's run), a run folder, a checkpoint, a timm name, hf-hub:OWNER/NAME."""
    natural_teacher: str | None = None
    """Naturally trained teacher: st, or as above."""
    teacher_architecture: str | None = None
    """The teacher's name in timm's registry, where a bare checkpoint does not say it."""
    natural_teacher_architecture: str | None = None
    """The natural teacher's, likewise."""
    require_revision: bool = False
    """Refuse data and teachers of the hub without a full commit; IAD_EXT_REQUIRE_REVISION=1 does so too."""
    precision: Precision = "auto"
    """Arithmetic of the passes; auto takes what a measurement finds fastest here, and says so."""
    diagnostics: Literal["full", "half", "off"] = "half"
    """Run the teacher for the figures alone too: on every batch, on every second one, or off."""
    compile: Compile = "auto"
    """How the attack runs: off (eager), one compiled step, or CUDA graphs; auto tries graphs on a GPU, and says why."""
    out: Path | None = None
    """Run folder; runs/DATA/RECIPE[-TEACHER]/seedS when not given."""
    resume: str = "auto"
    """auto continues the run folder from its newest checkpoint, never starts it again, a path continues that folder."""
    log_with: str = ""
    """Comma-separated: tensorboard, wandb, trackio; they are sent numbers only, and the same run when it goes on."""
    accept_changes: bool = False
    """Continue with other settings, images or teachers than the run was begun with; its results will say so."""
    dry_run: bool = False
    """Print settings, steps, passes a step and parameters, and stop."""


# ---------------------------------------------------------------------------------------------- recipes

Overrides = Mapping[str, Any]  # dotted name, as on the command line -> value
Change: TypeAlias = tuple[str, Any, Any]  # setting, before, now

# how a finished network is measured: no part of what comes out of the training
MEASURING = (
    "eval.attacks",
    "eval.of",
    "eval.eps",
    "eval.limit",
    "eval.aa_limit",
    "eval.curve_limit",
    "eval.fast",
    "eval.batch_size",
)

# what may change between a run and its continuation: it does not change what is trained
FREE_ON_RESUME = (
    "out",
    "resume",
    "accept_changes",
    "dry_run",
    "data.path",
    "precision",
    "compile",
    "require_revision",
    "diagnostics",
    "log_with",
    *MEASURING,
)

# what belongs to a data set, whatever the method
OF_DATA: Mapping[str, Overrides] = {
    "cifar10": {},
    "cifar100": {},
    "tiny-imagenet": {"train.padding": 8},
    # 8 × 8 digits: no mirror images, and a radius that 16 grey levels can feel
    "digits": {
        "train.padding": 1,
        "train.flip": False,
        "attack.eps": 0.1,
        "attack.step": 0.025,
        "eval.eps": 0.1,
    },
}

OF_SCHEDULE: Mapping[Schedule, Overrides] = {
    "paper": {},
    "released": {},
    "gairat": {"train.epochs": 120, "train.drops": (60, 90, 110)},
    "sec5_1": {"train.epochs": 200, "train.drops": (100, 150), "train.weight_decay": 2e-4},
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A setting of the paper.

    Attributes:
        title: one line for `--help`, with the place in the paper.
        settings: the paper's values.
        by_data: what differs by data set, as dotted names.
    """

    title: str
    settings: Settings
    by_data: Mapping[str, Overrides] = field(default_factory=dict)

    def defaults(
        self, *, data: str | None = None, schedule: Schedule | None = None, epochs: int | None = None
    ) -> Settings:
        """The recipe's values for a data set, a schedule's name and a number of epochs."""
        name = data or self.settings.data.name
        schedule = schedule or self.settings.train.schedule
        settings = override(self.settings, OF_DATA.get(name, {}))
        settings = override(settings, {"data.name": name, **self.by_data.get(name, {})})
        settings = override(settings, {"train.schedule": schedule, **OF_SCHEDULE[schedule]})
        return scaled(settings, epochs) if epochs is not None else settings


def override(settings: Settings, values: Overrides) -> Settings:
    """Return `settings` with dotted names replaced; of the same objective's options, those that are given.

    Raises:
        ValueError: there is no setting of that name.
    """
    known = [name for name, _ in flat(settings)]
    of_same = values.get("objective.name", settings.objective.name) == settings.objective.name
    for name, value in values.items():
        if name not in known:
            raise ValueError(unknown("setting", name, known))
        if name == "objective.options" and of_same:
            value = _options_over(settings.objective.options, value)
        group, _, leaf = name.rpartition(".")
        if group:
            inner = dataclasses.replace(getattr(settings, group), **{leaf: value})
            settings = dataclasses.replace(settings, **{group: inner})
        else:
            settings = dataclasses.replace(settings, **{leaf: value})
    return settings


def scaled(settings: Settings, epochs: int) -> Settings:
    """Shorten or lengthen a run: learning-rate drops, warm-up and ramps keep their share of the epochs."""
    if epochs < 1:
        raise ValueError(f"--train.epochs must be at least 1, got {epochs}")
    ratio = epochs / settings.train.epochs
    values: dict[str, Any] = {
        "train.epochs": epochs,
        # never at epoch 0: the first rate would not be used at all
        "train.drops": tuple(max(1, round(drop * ratio)) for drop in settings.train.drops),
    }
    for name in ("objective.warmup_epochs", "train.rate_warmup", "train.awp_start", "average.start"):
        group, _, leaf = name.partition(".")
        before = getattr(getattr(settings, group), leaf)
        if before is not None:
            values[name] = round(before * ratio)
    if settings.objective.ramp_epochs is not None:
        values["objective.ramp_epochs"] = max(1, round(settings.objective.ramp_epochs * ratio))
    return override(settings, values)


# ---------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class _PeekData:
    name: str | None = None


@dataclass(frozen=True)
class _PeekTrain:
    epochs: int | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True)
class _Peek:
    """The choices that move other defaults."""

    data: _PeekData = field(default_factory=_PeekData)
    train: _PeekTrain = field(default_factory=_PeekTrain)


def from_command_line(recipe: Recipe, args: Sequence[str] | None = None) -> Settings:
    """Read a run's settings from the command line, on top of the recipe's."""
    args = list(sys.argv[1:] if args is None else args)
    # the second reading reports what is wrong with the command line; the first takes what it understands
    without_help = [arg for arg in args if arg not in ("-h", "--help")]
    peek, _ = tyro.cli(_Peek, args=without_help, return_unknown_args=True)
    defaults = recipe.defaults(data=peek.data.name, schedule=peek.train.schedule, epochs=peek.train.epochs)
    said = f"{recipe.title}. --settings FILE takes settings from a YAML file, such as a run's settings.yaml."
    given = tyro.cli(Settings, args=args, default=defaults, description=said)
    objective = {f"objective.{name}": getattr(given.objective, name) for name in ("name", "options")}
    joined = override(defaults, objective).objective.options
    return dataclasses.replace(given, objective=dataclasses.replace(given.objective, options=joined))


def not_read(recipe: Recipe, settings: Settings) -> Iterator[str]:
    """Say of each setting that was changed from the recipe's, but that no part of this run reads, why it is not."""
    train, average = settings.train, settings.average
    usual = dict(flat(recipe.defaults(data=settings.data.name, schedule=train.schedule, epochs=train.epochs)))
    objective = _built(settings)
    unread = [
        (
            ("train.drops", "train.drop_factor"),
            train.rates != "drops",
            f"--train.rates {train.rates} has no drops",
        ),
        (
            ("train.padding",),
            train.augment != "crop",
            f"--train.augment {train.augment} crops in its own way",
        ),
        (("train.awp_start",), train.awp == 0, "--train.awp is 0"),
        (("average.decay",), average.name != "ema", f"--average.name is {average.name}"),
        (("average.start", "average.batchnorm"), average.name == "none", "--average.name is none"),
        (("data.holdout",), settings.data.selection == "test", "--data.selection test holds nothing out"),
        (("teacher_architecture",), settings.teacher is None, "no --teacher is given"),
        (
            ("natural_teacher_architecture",),
            settings.natural_teacher is None,
            "no --natural-teacher is given",
        ),
        (("eval.aa_limit",), "aa" not in words(settings.eval.attacks), "--eval.attacks does not have aa"),
        (
            ("attack.name", "attack.eps", "attack.step", "attack.steps", "attack.mode"),
            objective is not None and objective.attack == "none",
            f"{settings.objective.name} trains on natural images",
        ),
        (
            ("objective.beta",),
            objective is not None and objective.trust_of is not None and not objective.reads_trust,
            "no term is weighed by α",
        ),
    ]
    unread += [
        ((f"objective.{setting}",), True, f"{option(f'objective.{plug}')} takes its place")
        for setting, plug in unread_beside(vars(settings.objective)).items()
    ]
    now = dict(flat(settings))
    for names, is_unread, why in unread:
        for name in names:
            if is_unread and now[name] != usual[name]:
                yield f"{option(name)} is not used: {why}"
    late = [str(drop) for drop in train.drops if drop >= train.epochs]
    if train.rates == "drops" and late and now["train.drops"] != usual["train.drops"]:
        yield f"--train.drops {' '.join(late)} is not reached: the last epoch is {train.epochs - 1}"
    starts = {
        "average.start": average.start if average.name != "none" else 0,
        "train.awp_start": train.awp_start if train.awp else 0,
    }
    for name, start in starts.items():
        if start >= train.epochs:
            yield (
                f"{option(name)} {start} is not reached: the last epoch is {train.epochs - 1}, so that this run is "
                f"without {'its average' if name == 'average.start' else 'perturbed weights'}"
            )


def _built(settings: Settings) -> Objective | None:
    """The objective, or None where there is none of these settings, which the run's check says."""
    try:
        return build(settings.objective.name, **objective_arguments(settings.objective))
    except (ValueError, TypeError):
        return None


def not_own(recipe: Recipe, settings: Settings) -> Iterator[str]:
    """Say which of the attack's settings are still the recipe's, where another objective has its own."""
    usual, name = recipe.defaults(data=settings.data.name), settings.objective.name
    if name == usual.objective.name:
        return
    objective = build(name)
    if objective.attack == "none":
        return
    own = {"name": objective.attack, "mode": "train" if objective.attack_training else "eval"}
    for setting, value in own.items():
        kept = getattr(settings.attack, setting)
        if kept != value and kept == getattr(usual.attack, setting):
            here = option(f"attack.{setting}")
            yield f"{here} {kept} is the recipe's; {name}'s own, as in the ART trainer, is {here} {value}"


_GAMMA = "1-alpha, a number, or a schedule such as 0:0.5,100:2"
_CLASS_TEMPERATURE = "CLASS:TEMPERATURE,…, such as 3:2,5:1.5 (between quotes in YAML)"


def weights_of(text: str | None) -> dict[str, float] | None:
    """Read `label=1,self=0`."""
    if not text:
        return None
    pairs = _pairs("weights", text, "NAME=NUMBER,…")
    try:
        return {name: parse_fraction(value) for name, value in pairs.items()}
    except ValueError as error:
        raise ValueError(f"--objective.weights: {error}") from None


def _pairs(setting: str, text: str, form: str, *, sign: str = "=") -> dict[str, str]:
    """Read `a=1,b=2`, or with another sign; a ValueError says the form, or what stands there twice."""
    pairs: dict[str, str] = {}
    for part in text.split(","):
        name, there, value = (piece.strip() for piece in part.partition(sign))
        if not there:
            raise ValueError(f"--objective.{setting} takes {form}; got {text!r}")
        if name in pairs:
            raise ValueError(f"--objective.{setting} gives {name} twice: {text}")
        pairs[name] = value
    return pairs


def gamma_of(text: str | None) -> float | str | dict[int, float] | None:
    """Read `1-alpha`, `0.5`, or a schedule `0:0.5,100:2` of first epochs and values."""
    if text is None or text == "1-alpha":
        return text
    pairs = _pairs("gamma", text, _GAMMA, sign=":") if ":" in text else {}
    try:
        return {int(start): float(value) for start, value in pairs.items()} or float(text)
    except ValueError:
        raise ValueError(f"--objective.gamma takes {_GAMMA}; got {text!r}") from None


def class_temperature_of(text: str | None) -> dict[int, float] | None:
    """Read `3:2,5:1.5`."""
    if text is None:
        return None
    pairs = _pairs("class-temperature", text, _CLASS_TEMPERATURE, sign=":")
    try:
        return {int(k): float(value) for k, value in pairs.items()}
    except ValueError:
        raise ValueError(f"--objective.class-temperature takes {_CLASS_TEMPERATURE}; got {text!r}") from None


def _options_over(before: str | None, given: str | None) -> str | None:
    """Options given by name over those that were there; an empty text leaves none."""
    if not before or not given:
        return given
    pairs = {**_option_pairs(before), **_option_pairs(given)}
    return ",".join(f"{name}={value}" for name, value in pairs.items())


def _option_pairs(text: str) -> dict[str, str]:
    pairs = _pairs("options", text, "NAME=VALUE,…")
    return {name.replace("-", "_"): value for name, value in pairs.items()}


def options_of(text: str | None) -> dict[str, Any]:
    """Read `balance_rate=0.05,name=word,on=true,pair=0.7:0.95`."""
    return {name: _option_value(value) for name, value in _option_pairs(text).items()} if text else {}


def _option_value(text: str) -> Any:
    """A number, true or false, a pair of numbers with a colon between them, or a word."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if ":" in text:
            return tuple(float(part) for part in text.split(":"))
        return int(text) if text.lstrip("-").isdigit() else parse_fraction(text)
    except ValueError:
        return text


def objective_arguments(settings: ObjectiveSettings, *, epochs: int | None = None) -> dict[str, Any]:
    """The arguments to build the objective with: every knob that is set, and what follows the run's epochs.

    A knob that nothing reads beside a chosen plug-in is left out, since a recipe sets some; see `not_read`.
    """
    known = [f.name for f in dataclasses.fields(settings) if f.name not in ("name", "options")]
    values = {name: getattr(settings, name) for name in known}
    values |= {
        "gamma": gamma_of(settings.gamma),
        "weights": weights_of(settings.weights),
        "class_temperature": class_temperature_of(settings.class_temperature),
        "introspect": settings.introspect or None,
    }
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in options_of(settings.options).items():
        if name in given:
            raise ValueError(f"--objective.options and {option(f'objective.{name}')} both set {name}")
        given[name] = value
    given = {name: value for name, value in given.items() if name not in unread_beside(given)}
    return given if epochs is None else given | of_epochs(settings.name, epochs, given)


# ---------------------------------------------------------------------------------------------- YAML


def flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted name, value)."""
    for outer in dataclasses.fields(settings):
        value = getattr(settings, outer.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                yield f"{outer.name}.{inner.name}", getattr(value, inner.name)
        else:
            yield outer.name, value


def to_yaml(settings: Settings) -> str:
    """Write settings as plain YAML."""
    plain = {
        name: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for name, v in flat(settings)
    }
    nested: dict[str, Any] = {}
    for name, value in plain.items():
        group, _, leaf = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def changed(before: Settings, now: Settings) -> list[Change]:
    """Where settings train something else than those that a run was begun with; see `FREE_ON_RESUME`."""
    old, new = dict(flat(before)), dict(flat(now))
    return [
        (name, old[name], new[name])
        for name in old
        if old[name] != new[name] and name not in FREE_ON_RESUME and not name.startswith("checkpoint.")
    ]


def listed(changes: Iterable[Change]) -> str:
    """What changed, a line an option."""
    return "\n".join(f"  {option(name)}: {before} before, {now} now" for name, before, now in changes)


def from_yaml(text: str) -> Settings:
    """Read what `to_yaml` wrote. Tags, aliases and unknown names are refused.

    Raises:
        ValueError: it is no such YAML.
    """
    try:
        nested = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"not the settings of a run: {error}") from None
    if not isinstance(nested, dict):
        raise ValueError(f"settings are a YAML mapping, got {type(nested).__name__}")
    values: dict[str, Any] = {}
    for name, value in nested.items():
        inner = (
            {f"{name}.{leaf}": v for leaf, v in value.items()} if isinstance(value, dict) else {name: value}
        )
        values |= inner
    for name in ("data.path", "out"):
        if isinstance(values.get(name), str):
            values[name] = Path(values[name])
    if isinstance(values.get("train.drops"), list):
        values["train.drops"] = tuple(values["train.drops"])
    if not all(isinstance(name, str) for name in values):
        raise ValueError(f"settings have names, got {next(n for n in values if not isinstance(n, str))!r}")
    settings = override(Settings(), values)
    try:
        _check_types(settings)
    except TypeError as error:
        raise ValueError(f"not the settings of a run: {error}") from None
    return settings


def check(settings: Settings) -> None:
    """Refuse numbers that no run can use, before any compute.

    Raises:
        TypeError: a value is not of its setting's type.
        ValueError: says which, with its range.
    """
    _check_types(settings)
    _check_words(settings)
    values = dict(flat(settings))
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{option(name)} must be a finite number, got {value}")
    if not settings.resume:
        raise ValueError("--resume takes auto, never or a run folder; got an empty name")
    at_least = {
        "train.epochs": 1,
        "train.batch_size": 1,
        "train.accumulation": 1,
        "train.padding": 0,
        "train.rate_warmup": 0,
        "train.awp": 0,
        "train.awp_start": 0,
        "average.decay": 0,
        "train.cutmix": 0,
        "data.extra_share": 0,
        "average.start": 0,
        "train.seed": 0,
        "attack.steps": 1,
        "eval.batch_size": 1,
        "eval.seed": 0,
        "eval.every": 1,
        "eval.limit": 1,
        "eval.aa_limit": 1,
        "eval.curve_limit": 0,
        "eval.validation_limit": 1,
        "checkpoint.every_epochs": 1,
        "checkpoint.every_steps": 1,
        "checkpoint.keep": 1,
        "train.momentum": 0,
        "train.weight_decay": 0,
    }
    for name, least in at_least.items():
        if values[name] is not None and not least <= values[name] < 2**63:
            raise ValueError(
                f"{option(name)} must be at least {least} and less than 2^63, got {values[name]}"
            )
    for name in ("attack.eps", "attack.step", "eval.eps"):
        if not 0 < values[name] < 1:
            raise ValueError(
                f"{option(name)} is in pixels of [0, 1], such as 8/255; got {values[name]:g}, "
                "which is outside (0, 1)"
            )
    for name in ("train.lr", "train.drop_factor"):
        if not 0 < values[name] < float("inf"):
            raise ValueError(f"{option(name)} must be above 0, got {values[name]}")
    if settings.average.decay >= 1:
        raise ValueError(
            f"--average.decay must be below 1, got {settings.average.decay:g}: the average would stay as it began"
        )
    for name in ("train.cutmix", "data.extra_share"):
        if values[name] > 1:
            raise ValueError(f"{option(name)} must be at most 1, got {values[name]:g}")
    if (settings.data.extra is None) != (settings.data.extra_share == 0):
        raise ValueError("--data.extra says which images, --data.extra-share how many: give both, or neither")
    which = words(settings.eval.of)
    if not which or not set(which) <= {"best", "last"}:
        raise ValueError(f"--eval.of takes best, last or best,last; got {settings.eval.of!r}")
    if settings.train.nesterov and settings.train.momentum == 0:
        raise ValueError(
            "--train.nesterov is a form of momentum, and --train.momentum is 0; give it one, such as 0.9"
        )
    if settings.train.accumulation > settings.train.batch_size:
        raise ValueError("--train.accumulation is larger than --train.batch-size; a part would be empty")


def _check_words(settings: Settings) -> None:
    """A setting that takes one of some words has one of them."""
    for group in (settings, *(value for value in vars(settings).values() if dataclasses.is_dataclass(value))):
        for name, hint in get_type_hints(type(group)).items():
            if get_origin(hint) is Literal and vars(group)[name] not in get_args(hint):
                raise ValueError(unknown(name.replace("_", "-"), vars(group)[name], get_args(hint)))


def _check_types(settings: Settings) -> None:
    for group in (settings, *(value for value in vars(settings).values() if dataclasses.is_dataclass(value))):
        hints = get_type_hints(type(group))
        for name, value in vars(group).items():
            if not _is_of(value, hints[name]):
                where = next(
                    (f.name for f in dataclasses.fields(settings) if vars(settings)[f.name] is group), ""
                )
                full = f"{where}.{name}" if where else name
                raise TypeError(f"{option(full)} must be {_spoken(hints[name])}; got {value!r}")


def _is_of(value: object, hint: Any) -> bool:
    """Whether a setting's value is of its type; a whole number is a float too, True is no number."""
    if get_origin(hint) in (UnionType, Union):
        return any(_is_of(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str)  # which of the words is another question
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spoken(hint: Any) -> str:
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(_spoken(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a tuple of integers"
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a Path",
        NoneType: "None",
        bool: "a bool",
    }
    return names.get(hint, str(hint))


# of the machine that a run is on, not of the run
_OF_THE_MACHINE = ("resume", "teacher", "natural_teacher", "accept_changes", "dry_run", "log_with")


def for_trackers(settings: Settings) -> dict[str, str | int | float | bool]:
    """What a tracker shows beside a run: settings without paths."""
    return {
        name: value
        for name, value in flat(settings)
        if isinstance(value, str | int | float)
        and name not in _OF_THE_MACHINE
        and not (name in ("data.name", "data.extra") and _is_path(str(value)))
    }


def _is_path(source: str) -> bool:
    """Whether images lie in a folder or file, and are neither named by a word nor OWNER/NAME of the hub."""
    is_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(@\w*)?", source) and not source.endswith(".npz")
    return not is_name or ("/" in source and Path(source).is_dir())


def option(name: str) -> str:
    """The command line's spelling of a dotted name."""
    return "--" + name.replace("_", "-")
