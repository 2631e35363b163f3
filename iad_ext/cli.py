"""The command line `iad-ext`. Training has its own: the recipes.

Each subcommand is a dataclass whose fields are its options and whose `run` does it and returns the exit code. What is
heavy is imported in `run`, so that `--help` answers at once and the doctor works where torch does not.
"""

import contextlib
import dataclasses
import inspect
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import tyro
import yaml
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from iad_ext.lines import fail, width, wrapped
from iad_ext.names import unknown, words
from iad_ext.units import parse_fraction, show_fraction

if TYPE_CHECKING:
    from torch import nn

    from iad_ext.data import Splits
    from iad_ext.entrants import Entrant
    from iad_ext.processes import World

DONE, DEFECT, WRONG_INPUT, CANNOT_WRITE, STOPPED, TO_MEND = 0, 1, 2, 4, 5, 6
# a line that begins with a space keeps its break in tyro's help
EXIT_CODES = """Exit codes:
  0  done
  1  a defect of this program
  2  wrong input
  3  a cell of a study failed
  4  a result cannot be written
  5  stopped by a signal
  6  the doctor found something to mend
(To a recipe, 3 is training that stopped.)"""
SHELLS = ("bash", "zsh")
EXPORTS = ("timm", "safetensors", "onnx", "robustbench")
POSITIONAL = get_args(Positional[str])[1]  # tyro's mark


def _option(metavar: str) -> Any:
    """An option whose help says in words what happens without it."""
    return arg(metavar=metavar, help_behavior_hint="")


class WrongInputError(Exception):
    """What was asked for cannot be done; the message says what to change."""


class CannotWriteError(Exception):
    """A result cannot be written."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. Exit codes: see `EXIT_CODES`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # formulas on a terminal that has no Greek
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(_command(list(sys.argv[1:] if args is None else args)).run())
    except WrongInputError as error:
        fail(WRONG_INPUT, str(error))
    except CannotWriteError as error:
        fail(CANNOT_WRITE, str(error))
    except KeyboardInterrupt:
        fail(STOPPED, "stopped by a signal; evaluate --out FILE goes on where it was when given again")
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)


@contextlib.contextmanager
def _input() -> Iterator[None]:
    """What goes wrong in here is the input's fault."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise WrongInputError(_as_options(str(error))) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWriteError(f"cannot write {path}: {error}") from error


def _as_options(message: str) -> str:
    """The library's arguments in a message as the command line spells them."""
    message = re.sub(r"architecture='([\w.]+)'", r"--architecture \1", message)
    message = re.sub(r"\barchitecture=…", "--architecture NAME", message)
    message = re.sub(r",? (?:and )?num_classes=(\d+)", r" --num-classes \1", message)
    message = re.sub(r",? (?:and )?num_classes=…", " --num-classes N", message)
    message = re.sub(r",? model_args=\{([^}]*)\}", lambda found: _model_args_as_option(found[1]), message)
    return re.sub(r"\bkey=…", "--key ENTRY", message)


def _model_args_as_option(inside: str) -> str:
    values = yaml.safe_load("{" + inside + "}")
    return " --model-args " + " ".join(f"{name}={str(value).lower()}" for name, value in values.items())


# ------------------------------------------------------------------------------------------- doctor


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which test images; a run folder's own when not given."""

    name: Annotated[str | None, _option(metavar="NAME")] = None
    """cifar10, cifar100, tiny-imagenet, digits, or a Hugging Face data set id."""
    path: Annotated[Path | None, _option(metavar="DIR")] = None
    """Folder that holds the data set, for work without a network."""
    revision: Annotated[str | None, _option(metavar="COMMIT")] = None
    """Commit of the data set on the hub."""
    config: Annotated[str | None, _option(metavar="NAME")] = None
    """Which of its configurations, where the data set has several."""
    image_column: Annotated[str | None, _option(metavar="NAME")] = None
    """Column of the images; found by its type when not given."""
    label_column: Annotated[str | None, _option(metavar="NAME")] = None
    """Column of the labels; found by its type when not given."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Is this machine ready, or, with --teacher, that teacher?

    Of the machine: versions, devices, precision, traps, cache; each problem with its fix. Of a teacher: how right and
    how sure it is on the adversarial images of a student, from a few test images.
    """

    probe: bool = True
    """Leave out what takes some seconds: timing a ResNet-18 to see which precision pays off."""
    teacher: Annotated[str | None, _option(metavar="MODEL")] = None
    """Read this teacher: run folder, checkpoint, timm name or hf-hub:OWNER/NAME."""
    student: Annotated[str | None, _option(metavar="MODEL")] = None
    """The student whose attacks it is read on, likewise; the teacher itself when not given."""
    teacher_architecture: Annotated[str | None, _option(metavar="NAME")] = None
    """A bare checkpoint's name in timm's registry."""
    student_architecture: Annotated[str | None, _option(metavar="NAME")] = None
    """Likewise."""
    data: Data = field(default_factory=Data)
    limit: Annotated[int | None, _option(metavar="N")] = None
    """How many test images; 200 when not given."""
    eps: Annotated[str | None, _option(metavar="PIXELS")] = None
    """L∞ radius in pixels of [0, 1]; the teacher's own run's when not given, else 8/255 (0.1 for digits)."""

    def run(self) -> int:
        """Print what was found."""
        if self.teacher is not None:
            return self._read_teacher(self.teacher)
        self._refuse_what_only_a_teacher_needs()
        from iad_ext import doctor

        findings = doctor.examine(doctor.gather(probe=self.probe))
        print(doctor.report(findings, width=width()))
        return TO_MEND if any(finding.level == "mend" for finding in findings) else DONE

    def _refuse_what_only_a_teacher_needs(self) -> None:
        given = [
            f"--data.{name}" for name, value in dataclasses.asdict(self.data).items() if value is not None
        ]
        given += [
            f"--{name}"
            for name in ("student", "teacher_architecture", "student_architecture", "limit", "eps")
            if getattr(self, name) is not None
        ]
        if given:
            option = given[0].replace("_", "-")
            raise WrongInputError(f"{option} is for reading a teacher; name one with --teacher")

    def _read_teacher(self, source: str) -> int:
        from iad_ext.backbones import load_network
        from iad_ext.teacher_reading import read_teacher

        if not self.probe:
            raise WrongInputError("--no-probe is for looking at the machine; leave it out, or --teacher")
        with _input():
            device = _device(None)
            _check_radius(self.eps)
            limit = self.limit if self.limit is not None else 200
            images, eps = _images_for(source, self.data, self.eps, limit=limit)
            networks = []
            for model, architecture in (
                (source, self.teacher_architecture),
                (
                    self.student or source,
                    self.student_architecture or (None if self.student else self.teacher_architecture),
                ),
            ):
                classes = images.num_classes if architecture else None
                loaded = load_network(model, architecture=architecture, num_classes=classes)
                _require_classes(loaded, images, model)
                networks.append(loaded.to(device))
            test = images.test.to(device)
            teacher, student = networks
            reading = read_teacher(
                teacher, student, test.pixels(), test.labels, eps=eps, on_itself=self.student is None
            )
        *facts, advice = reading.lines()
        print("\n".join(wrapped(line, rest=" " * 18) for line in facts))
        print(wrapped(advice))
        return TO_MEND if reading.over_confident or reading.at_chance else DONE


# ------------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """The training objectives with their formulas; with a NAME, all about that one."""

    name: Annotated[Positional[str | None], _option(metavar="[NAME]")] = None
    """One of them."""

    def run(self) -> int:
        """Print them."""
        from iad_ext.objectives import ROWS

        if self.name is None:
            for name in ROWS:
                print(_objective_in_short(name))
            print(
                wrapped(
                    "α = P_T(x̃|y)^β, the trust in the teacher on an image. iad-ext objectives NAME tells all."
                )
            )
        elif self.name in ROWS:
            print(_objective_in_full(self.name))
        else:
            raise WrongInputError(unknown("objective", self.name, ROWS))
        return DONE


def _objective_in_short(name: str) -> str:
    from iad_ext import objectives

    objective = objectives.ROWS[name]()
    title = _paragraphs(objectives.ROWS[name])[0]
    indent = " " * 14
    lines = [
        _wrapped_formula(objective.formula, first=name.ljust(14), rest=indent),
        wrapped(f"passes {_passes(objective)}", first=indent, rest=indent + "  "),
        wrapped(title.partition(":")[0].rstrip("."), first=indent, rest=indent),
    ]
    return "\n".join(lines) + "\n"


def _wrapped_formula(formula: str, *, first: str, rest: str) -> str:
    """A formula in lines that break before a plus, or after a semicolon, only."""
    whole = " ".join(f"+ {term}".replace(" ", "\xa0") for term in formula.split(" + ")).removeprefix("+\xa0")
    whole = whole.replace(";\xa0", "; ")
    return wrapped(whole, first=first, rest=rest).replace("\xa0", " ")


def _passes(objective: Any) -> str:
    from iad_ext.objectives import SYMBOLS

    def said(epoch: int) -> str:
        needed = objective.needs(epoch)
        return ", ".join(symbol for name, symbol in SYMBOLS.items() if name in needed)

    if not objective.warmup_epochs:
        return said(0)
    return f"{said(objective.warmup_epochs)}; in warm-up ({objective.warmup_epochs} epochs) {said(0)}"


def _paragraphs(constructor: Any) -> list[str]:
    return [" ".join(part.split()) for part in (inspect.getdoc(constructor) or "").split("\n\n")]


def _documentation(constructor: Any) -> Iterator[str]:
    """A docstring as wide as the terminal; lists stay lists."""
    for paragraph in (inspect.getdoc(constructor) or "").split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith(" ") for line in lines):
            for line in lines:
                indent = line[: len(line) - len(line.lstrip())]
                yield wrapped(line.strip(), first=indent, rest=indent + "    ")
        else:
            yield wrapped(" ".join(lines))
        yield ""


def _objective_in_full(name: str) -> str:
    from iad_ext import objectives

    constructor = objectives.ROWS[name]
    objective = constructor()
    indent = " " * 10
    lines = [name, "", *_documentation(constructor)]
    lines += [_wrapped_formula(objective.formula, first="formula".ljust(10), rest=indent)]
    facts = [("passes", _passes(objective)), ("attack", objective.attack)]
    lines += [wrapped(said, first=title.ljust(10), rest=indent) for title, said in facts]
    settings = [p for p in inspect.signature(constructor).parameters.values() if p.name != "weights"]
    if settings:
        lines += ["", "settings of a recipe, with this objective's defaults:"]
        options = [_recipe_option(p.name, p.default) for p in settings]
        width_of_options = max(len(option) for option, _ in options)
        lines += [f"  {option.ljust(width_of_options)}  {default}" for option, default in options]
    return "\n".join(lines)


def _recipe_option(name: str, default: Any) -> tuple[str, str]:
    """An argument of an objective as recipes take it, and its default in their spelling."""
    from iad_ext.settings import ObjectiveSettings, option

    shown = ":".join(map(str, default)) if isinstance(default, tuple) else str(default)
    if name in {f.name for f in dataclasses.fields(ObjectiveSettings)}:
        return option(f"objective.{name}"), shown
    return f"--objective.options {name}=…", shown


# ------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """The paper's recipes: list them, or copy them out, to run with accelerate launch and to change."""

    copy: Annotated[Path | None, _option(metavar="DIR")] = None
    """Copy them into this folder."""
    force: bool = False
    """Replace files of the same name there."""

    def run(self) -> int:
        """List or copy."""
        folder = _recipes_folder()
        if self.copy is None:
            self._list(folder)
        else:
            self._copy(folder, self.copy)
        return DONE

    def _list(self, folder: Path) -> None:
        import ast

        files = sorted(folder.glob("*.py"))
        column = max(len(file.stem) for file in files) + 2
        for file in files:
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            title = said.partition("\n")[0].replace("`", "")
            print(wrapped(title, first=file.stem.ljust(column), rest=" " * column))
        print()
        print(
            wrapped(
                "iad-ext recipes --copy recipes copies them; then: accelerate launch recipes/at_resnet18.py --help"
            )
        )

    def _copy(self, folder: Path, into: Path) -> None:
        kinds = (".py", ".yaml")
        files = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.suffix in kinds]
        there = [str(into / file) for file in files if (into / file).exists()]
        if there and not self.force:
            raise WrongInputError(
                f"{there[0]} exists{f' and {len(there) - 1} more' if len(there) > 1 else ''}; give another folder, "
                "or --force to replace them"
            )
        with _writing(into):
            for file in files:
                (into / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, into / file)
        print(f"{len(files)} files in {into}; try: accelerate launch {into / 'at_resnet18.py'} --dry-run")


def _recipes_folder() -> Path:
    from iad_ext import recipes

    with _input():
        return recipes.folder()


# ------------------------------------------------------------------------------------------- studies


@dataclass(kw_only=True)
class Studies:
    """Run tables and figures of the paper as grids of recipes, or list them; what is finished is not run again.

    Options of the recipes hold for all cells: --student.name cifar_resnet8 --data.path DIR --eval.aa-limit 256. With
    teachers. or students. before them they hold for these alone: --teachers.train.epochs 30. --data.name takes several.
    """

    names: Annotated[Positional[tuple[str, ...]], _option(metavar="[NAME ...]")] = ()
    """Studies, or YAML files of one's own; the known ones are listed when none is given."""
    seeds: Annotated[str | None, _option(metavar="LIST")] = None
    """Comma-separated, such as 0,1,2; the study's own when not given."""
    scale: Annotated[str | None, _option(metavar="F")] = None
    """Fraction of the epochs, with warm-up and schedule, and of the training images; E,I for two fractions."""
    only: Annotated[str | None, _option(metavar="LIST")] = None
    """Comma-separated labels of rows, with * and ?; their teachers are run too."""
    jobs: Annotated[int | None, _option(metavar="N")] = None
    """Cells at a time; one, or one a GPU of --devices, when not given."""
    devices: Annotated[str | None, _option(metavar="LIST")] = None
    """Comma-separated numbers of GPUs to share the cells out to."""
    shard: Annotated[str, arg(metavar="I/N")] = "1/1"
    """Run the I-th of N shares of the cells, for arrays of jobs; shares wait for each other's teachers."""
    budget: Annotated[float | None, _option(metavar="MINUTES")] = None
    """Ask running cells to save and end after so many minutes; exit code 5, the same command goes on."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Instead of runs/: the cells' and the tables' folder."""
    dry_run: bool = False
    """Say how far each cell is, and stop."""
    report: bool = False
    """Run nothing; write the tables of what is finished."""
    settings: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)  # the recipes' options

    def run(self) -> int:
        """List, show, run or report."""
        from iad_ext import studies
        from iad_ext.checkpoint import CheckpointError

        with _input():
            if not self.names:
                return self._list()
            choices, way = self._choices(), self._way()
            grids = [studies.expand(studies.read(name), choices) for name in self.names]
            for grid in [] if self.dry_run else grids:
                studies.check(grid)
        outcomes = []
        for grid in grids:
            studies.announce(grid, _say)
            if self.dry_run:
                print("\n".join([*studies.listing(grid, way), ""]))
                continue
            if not self.report:
                outcomes.append(studies.run(grid, way, _say))
            # of several shares, the last one to be done writes the tables
            if way.shard == (1, 1) or studies.shards_are_done(grid):
                try:
                    studies.report(grid)
                except CheckpointError as error:
                    raise CannotWriteError(str(error)) from error
                print(f"\n{(grid.folder / 'table.md').read_text(encoding='utf-8')}")
            if outcomes and outcomes[-1].stopped:
                break
        return studies.exit_code(outcomes)

    def _list(self) -> int:
        from iad_ext import studies

        for name in studies.names():
            print(wrapped(studies.read(name).title, first=name.ljust(14), rest=" " * 14))
        print("\n" + wrapped("iad-ext study NAME --dry-run says what its cells are and how far each is."))
        return DONE

    def _choices(self) -> Any:
        from iad_ext import studies
        from iad_ext.studies.grid import seeds_of

        fractions = [_number(part, "--scale") for part in (self.scale or "1").split(",")]
        if len(fractions) > 2 or not all(0 < fraction <= 1 for fraction in fractions):
            raise ValueError(f"--scale takes a fraction in (0, 1], or two as E,I; got {self.scale}")
        seeds = None if self.seeds is None else seeds_of(self.seeds.split(","), "--seeds")
        data = words(self.settings.get("all", {}).pop("data.name", None))
        return studies.Choices(
            seeds=seeds,
            epochs=fractions[0],
            images=fractions[-1],
            only=self.only,
            data=data or None,
            settings=self.settings,
            root=self.out,
        )

    def _way(self) -> Any:
        from iad_ext import studies

        devices = words(self.devices)
        jobs = self.jobs if self.jobs is not None else max(1, len(devices))
        if jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {jobs}")
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard takes I/N with I from 1 to N, such as 2/4; got {self.shard}")
        if self.budget is not None and self.budget <= 0:
            raise ValueError(f"--budget is in minutes, more than 0; got {self.budget:g}")
        return studies.Way(
            jobs=jobs,
            devices=devices,
            shard=(int(found[1]), int(found[2])),
            budget=None if self.budget is None else 60 * self.budget,
        )


def _say(line: str) -> None:
    print(line, flush=True)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} takes numbers, got {text!r}") from None


# ------------------------------------------------------------------------------------------- networks


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What a MODEL needs to be loaded; a run folder, a saved folder and a timm name need nothing."""

    architecture: Annotated[str | None, _option(metavar="NAME")] = None
    """A bare checkpoint's name in timm's registry, such as cifar_resnet18."""
    num_classes: Annotated[int | None, _option(metavar="N")] = None
    """A bare checkpoint's number of classes, where its last layer does not say."""
    model_args: Annotated[tuple[str, ...], _option(metavar="NAME=VALUE …")] = ()
    """More arguments of a bare checkpoint's network: depth=28 width=10, mean=[0.49,0.48,0.45]."""
    key: Annotated[str | None, _option(metavar="ENTRY")] = None
    """The entry of a checkpoint that holds the weights, where it has several."""
    revision: Annotated[str | None, _option(metavar="COMMIT")] = None
    """Of hf-hub:OWNER/NAME."""

    def arguments(self) -> dict[str, Any]:
        """As `load_network` takes them."""
        values: dict[str, Any] = {}
        for text in self.model_args:
            name, equals, value = text.partition("=")
            if not equals:
                raise WrongInputError(f"--model-args takes NAME=VALUE, got {text!r}")
            values[name] = yaml.safe_load(value)
        given = {"architecture": self.architecture, "num_classes": self.num_classes}
        optional = {"revision": self.revision, "key": self.key, "model_args": values or None}
        return given | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a network: natural accuracy, FGSM, PGD-20, CW∞, AutoAttack, signs of masked gradients."""

    model: Annotated[Positional[str], _option(metavar="MODEL")]
    """Run folder, folder in timm's layout, checkpoint file, timm name, or hf-hub:OWNER/NAME."""
    data: Data = field(default_factory=Data)
    attacks: Annotated[str, arg(metavar="LIST")] = "natural,fgsm,pgd20,cw_inf,aa"
    """Comma-separated: natural, fgsm, fgsm_plain, pgd10, pgd20, cw_inf, aa."""
    eps: Annotated[str | None, _option(metavar="PIXELS")] = None
    """L∞ radius in pixels of [0, 1]; the run's own when not given, else 8/255 (0.1 for digits)."""
    limit: Annotated[int | None, _option(metavar="N")] = None
    """Measure on the first so many test images; all of them when not given."""
    aa_limit: Annotated[int | None, _option(metavar="N")] = None
    """AutoAttack on the first so many: on a CPU it takes a ResNet-18 a minute an image."""
    curve_limit: Annotated[int, arg(metavar="N")] = 256
    """Robust accuracy against the radius on the first so many, a test for masking; 0 for none."""
    fast: bool = False
    """BatchNorm folded into convolutions, channels last: the same attacks sooner, rounded otherwise."""
    batch_size: Annotated[int, arg(metavar="N")] = 250
    """Images at a time; AutoAttack's result depends on it a little."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the random starts."""
    device: Annotated[str | None, _option(metavar="NAME")] = None
    """cpu, cuda, cuda:1 …; a GPU where there is one when not given."""
    out: Annotated[Path | None, _option(metavar="FILE")] = None
    """Write the results, with their provenance, as JSON, and each image's verdicts beside it, for compare; a
    measurement that was stopped then goes on where it was."""
    loading: OmitArgPrefixes[Loading] = field(default_factory=Loading)

    def run(self) -> int:
        """Load, measure, print, write; of several processes the main one prints and writes."""
        if self.out is not None:
            _require_writable(self.out)
        with _together(self.device) as world:
            with _input():
                names = self._attacks()
                network, images, eps, device = self._prepared(world)
                self._announce(network, images, eps, device)
                measured = self._measure(network, images, names, eps, world)
            _show(measured)
            if self.out is not None and (world is None or world.is_main_process):
                self._write(self.out, network, images, measured)
                shutil.rmtree(_kept_beside(self.out), ignore_errors=True)
        return DONE

    def _attacks(self) -> tuple[str, ...]:
        from iad_ext.evaluation import ATTACKS

        names = words(self.attacks)
        for name in names:
            if name not in ATTACKS:
                raise ValueError(unknown("attack in --attacks", name, ATTACKS))
        if not names:
            raise ValueError(f"--attacks takes some of {', '.join(ATTACKS)}; got none")
        for option, value in (
            ("limit", self.limit),
            ("aa-limit", self.aa_limit),
            ("batch-size", self.batch_size),
        ):
            if value is not None and value < 1:
                raise ValueError(f"--{option} must be at least 1, got {value}")
        if self.aa_limit is not None and "aa" not in names:
            raise ValueError("--aa-limit is AutoAttack's; add aa to --attacks, or leave it out")
        if self.curve_limit < 0:
            raise ValueError(f"--curve-limit must be at least 0, got {self.curve_limit}")
        _check_radius(self.eps)
        return names

    def _prepared(self, world: "World | None") -> "tuple[nn.Module, Splits, float, str]":
        """The network on its device, the images, and the radius."""
        from iad_ext.backbones import load_network

        device = _device(self.device) if world is None else str(world.device)
        network = load_network(self.model, **self.loading.arguments())
        images, radius = _images_for(self.model, self.data, self.eps)
        _require_classes(network, images, self.model)
        return network.to(device), images, radius, device

    def _announce(self, network: "nn.Module", images: "Splits", eps: float, device: str) -> None:
        from iad_ext.backbones import architecture_of, num_classes_of
        from iad_ext.evaluation import hardware

        parameters = sum(p.numel() for p in network.parameters())
        n = min(len(images.test), self.limit or len(images.test))
        note = images.provenance.get("encoding_note")
        rows = [
            ("network", f"{architecture_of(network) or type(network).__name__} from {self.model}, "
             f"{num_classes_of(network)} classes, {parameters / 1e6:.2f} M parameters"),
            ("images", f"{n} test images of {images.provenance['name']}" + (f" ({note})" if note else "")),
            ("attacks", f"L∞ radius {show_fraction(eps)}, seed {self.seed}, on {hardware(_device_of(network))}"),
        ]  # fmt: skip
        for title, said in rows:
            print(wrapped(said, first=title.ljust(10), rest=" " * 10))
        attacked = min(n, self.aa_limit or n)
        if "aa" in self.attacks and device == "cpu" and attacked > 100:
            print(
                wrapped(
                    f"AutoAttack on {attacked} images can take many hours on a CPU; --aa-limit N takes fewer",
                    first="note".ljust(10),
                    rest=" " * 10,
                )
            )
        sys.stdout.flush()

    def _measure(
        self,
        network: "nn.Module",
        images: "Splits",
        names: tuple[str, ...],
        eps: float,
        world: "World | None",
    ) -> dict[str, Any]:
        import functools

        from iad_ext.evaluation import evaluate, with_autoattack

        test = images.test.take(slice(0, self.limit)) if self.limit else images.test
        few = test.take(slice(0, self.aa_limit)) if self.aa_limit else test
        measure = functools.partial(
            evaluate,
            network,
            eps=eps,
            seed=self.seed,
            batch_size=self.batch_size,
            fast=self.fast,
            state_folder=_kept_beside(self.out) if self.out is not None else None,
            world=world,
        )
        curve = self.curve_limit if set(names) != {"natural"} else 0
        if "aa" not in names or len(few) == len(test):
            return measure(test.images, test.labels, attacks=names, curve=curve)
        others = tuple(name for name in names if name != "aa")
        result = measure(few.images, few.labels, attacks=("aa",), curve=0 if others else curve)
        if others:
            of_others = measure(test.images, test.labels, attacks=others, curve=curve)
            result = with_autoattack(of_others, result)
        return result

    def _write(self, out: Path, network: "nn.Module", images: "Splits", measured: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        from iad_ext import files, provenance
        from iad_ext.backbones import architecture_of, network_digest, num_classes_of
        from iad_ext.comparing import verdicts_beside

        content = {
            "source": self.model,
            "architecture": architecture_of(network),
            "num_classes": num_classes_of(network),
            "weights": network_digest(network),
            "measured": {key: value for key, value in measured.items() if key != "robust"},
            "data": dict(images.provenance),
            "environment": provenance.environment(),
        }
        verdicts = verdicts_beside(out)
        with _writing(out):
            files.write_whole(
                verdicts, save({name: flags.byte() for name, flags in measured["robust"].items()})
            )
            files.write_json(out, content)
        print(f"{'results'.ljust(10)}{out}, {verdicts.name}")


# ------------------------------------------------------------------------------------------- compare


@dataclass(frozen=True, kw_only=True)
class Compare:
    """What one method's networks have over another's: paired differences with their intervals.

    Of two measurements it speaks of these very networks; of several seeds of each, in the same order, of the methods.
    """

    these: Annotated[Positional[tuple[str, ...]], _option(metavar="RESULT…")]
    """Run folders, or the JSON files that evaluate --out wrote."""
    against: Annotated[tuple[str, ...], _option(metavar="RESULT …")]
    """Those that they are compared with: as many, the first with the first, the second with the second."""
    of: Annotated[str | None, _option(metavar="best|last")] = None
    """Which network of a run folder; best when not given."""
    out: Annotated[Path | None, _option(metavar="FILE")] = None
    """Write the differences as JSON."""

    def run(self) -> int:
        """Read, compare, print, write."""
        from iad_ext import files
        from iad_ext.comparing import as_json, compare, read_measured
        from iad_ext.evaluation import TITLES
        from iad_ext.evaluation.tables import aligned

        if self.out is not None:
            _require_writable(self.out)
        with _input():
            runs = any(Path(source).is_dir() for source in (*self.these, *self.against))
            if self.of is not None and not runs:
                raise ValueError(
                    "--of is for run folders, and none of these is one: a JSON file holds one network; leave it out"
                )
            of = (self.of or "best") if runs else None
            these, against = (
                [read_measured(source, of=of or "best") for source in side]
                for side in (self.these, self.against)
            )
            found = compare(these, against)
        several = len(these) > 1
        what = f"{len(these)} networks" if several else str(self.these[0])
        whose = f"those of {len(against)}, one by one" if several else str(self.against[0])
        over = (
            "over images and seeds, both paired" if several else "over images, paired: of these very networks"
        )
        radius = f"accuracy in points at L∞ radius {show_fraction(these[0].eps)}, with 95% intervals {over}"
        print(wrapped(f"{what} less {whose}", first="compared".ljust(10), rest=" " * 10))
        print(wrapped(radius, first=" " * 10, rest=" " * 10) + "\n")
        rows = [("", "difference", "95% interval", "", "McNemar p", "images")]
        for name, one in found.items():
            between = f"{one.low:+.2f} to {one.high:+.2f}"
            rows.append(
                (
                    TITLES[name],
                    f"{one.difference:+.2f}",
                    between,
                    one.verdict,
                    f"{one.mcnemar_p:.2g}",
                    f"{one.n}",
                )
            )
        print("\n".join(aligned(rows)))
        if self.out is not None:
            content = {
                "these": list(self.these),
                "against": list(self.against),
                "of": of,
                "differences": as_json(found),
            }
            with _writing(self.out):
                files.write_json(self.out, content)
            print(f"\n{'written'.ljust(10)}{self.out}")
        return DONE


@contextlib.contextmanager
def _together(device: str | None) -> "Iterator[World | None]":
    """The processes that accelerate launched, of which the main one prints; None for one alone."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    from iad_ext import processes

    if device is not None:
        raise WrongInputError(f"--device {device}: leave it out, the launcher gives each process its own")
    world = processes.world()
    with contextlib.ExitStack() as silent:
        if not world.is_main_process:
            silent.enter_context(contextlib.redirect_stdout(silent.enter_context(Path(os.devnull).open("w"))))
        yield world
        processes.leave()


def _kept_beside(out: Path) -> Path:
    """Where an evaluation keeps what it has measured until it is written."""
    return out.with_name(f".{out.name}.parts")


def _require_writable(path: Path) -> None:
    """Before hours of attacks, not after them."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CannotWriteError(
            f"cannot write {path}: it is a folder, or its folder is missing or closed to you"
        )


def _check_radius(eps: str | None) -> None:
    if eps is not None and not 0 < parse_fraction(eps) < 1:
        raise ValueError(f"--eps is in pixels of [0, 1], such as 8/255; got {eps}, which is outside (0, 1)")


def _images_for(
    model: str, asked: Data, eps: str | None, *, limit: int | None = None
) -> "tuple[Splits, float]":
    """The images and the radius to measure a model at: what was asked for, then what its run had, then the usual."""
    own, radius = _of_run(Path(model))
    images, name = _test_images(_asked_or_own(asked, own), model, limit=limit)
    return images, parse_fraction(eps) if eps is not None else radius or _usual_eps(name)


def _asked_or_own(asked: Data, own: Data) -> Data:
    """Other images where their name is asked for; else a run's own, from where and as what they are asked for."""
    if asked.name is not None:
        return asked
    if asked.path is not None:
        own = dataclasses.replace(own, revision=None)  # it is the hub's; a folder has none
    return dataclasses.replace(own, **{key: value for key, value in vars(asked).items() if value is not None})


def _of_run(source: Path) -> tuple[Data, float | None]:
    """The images and the radius that a run folder was measured on; nothing for what is no run folder."""
    from iad_ext import settings as settings_
    from iad_ext.export.record import run_folder_of

    folder = run_folder_of(source)
    if folder is None:
        return Data(), None
    settings = settings_.from_yaml((folder / "settings.yaml").read_text(encoding="utf-8"))
    fields = {f.name: getattr(settings.data, f.name) for f in dataclasses.fields(Data)}
    return Data(**fields), settings.eval.eps


def _device(asked: str | None) -> str:
    """The device that was asked for, else a GPU where there is one; refused where torch cannot use it."""
    import torch

    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).partition(chr(10))[0]}") from error
    return device


def _test_images(data: Data, model: str, *, limit: int | None = None) -> "tuple[Splits, str]":
    """The test images, and what their data set is called; `model` is whose they should be.

    With a limit, those that a run with that --data.limit-test is measured on.
    """
    from iad_ext.data import load_splits

    name = data.name or (str(data.path) if data.path is not None else None)
    if name is None:
        raise ValueError(
            f"{model} does not say which images it is for; give --data.name cifar10, or another, and "
            "--data.path DIR where there is no network"
        )
    # only the test images are wanted; one training image tells what the classes are
    images = load_splits(
        name,
        path=data.path,
        revision=data.revision,
        selection="test",
        limit_train=1,
        limit_test=limit,
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    return images, name


def _require_classes(network: "nn.Module", images: "Splits", model: str) -> None:
    from iad_ext.backbones import num_classes_of

    classes = num_classes_of(network)
    if classes != images.num_classes:
        name = images.provenance["name"]
        raise ValueError(
            f"{model} has {classes} classes, {name} has {images.num_classes}; evaluate it on the data that it "
            "was trained for"
        )


def _usual_eps(name: str) -> float:
    from iad_ext.attacks import EPS
    from iad_ext.settings import OF_DATA

    return float(OF_DATA.get(name, {}).get("eval.eps", EPS))


def _device_of(network: "nn.Module") -> Any:
    """Where a network is."""
    return next(network.parameters()).device


def _show(measured: Mapping[str, Any]) -> None:
    """One network's results: a row an attack, then what casts doubt on them, in plain words."""
    from iad_ext.evaluation import ATTACKS, TITLES, images

    print(f"\n{'':<22}{'accuracy':>9}   {'95% interval':<16}{'images':>7}")
    for attack in ATTACKS:
        if attack in measured:
            low, high = measured["interval"][attack]
            print(
                f"{TITLES[attack]:<22}{measured[attack]:>8.2f}%   {f'{low:.2f} to {high:.2f}':<16}"
                f"{images(measured, attack):>7}"
            )
    if "curve" in measured:
        print(f"\nRobust accuracy against the radius, {measured['curve_n']} images")
        print("  ".join(f"{radius:>6}" for radius in measured["curve"]))
        print("  ".join(f"{value:>5.1f}%" for value in measured["curve"].values()))
    print()
    for flag in measured["flags"]:
        about = "" if flag["attack"] == "*" else f" ({TITLES[flag['attack']]})"
        print(wrapped(f"{flag['flag']}{about}: {flag['detail']}.", first="! ", rest="  "))
    if not measured["flags"] and measured["robust"].keys() - {"natural"}:
        print(wrapped("No sign of masked gradients, which is no proof that there is none."))


# ------------------------------------------------------------------------------------------- threats


@dataclass(frozen=True, kw_only=True)
class Threats:
    """Measure networks beyond one threat: each other's attacks, other norms and radii, corruptions, calibration.

    All on the same images. PGD-20 images are made once on each network, and every network is asked what they show.
    Corruptions are our own implementations of published definitions, no CIFAR-10-C.
    """

    models: Annotated[Positional[tuple[str, ...]], _option(metavar="MODEL…")]
    """As for evaluate: run folders, folders in timm's layout, checkpoint files, timm names, hf-hub:OWNER/NAME."""
    data: Data = field(default_factory=Data)
    of: Annotated[str, arg(metavar="best|last")] = "best"
    """Which network of a run folder."""
    names: Annotated[str | None, _option(metavar="LIST")] = None
    """Comma-separated: what the networks are called, in order; made of the folders' names when not given."""
    with_teachers: bool = False
    """Measure the teachers of run folders like the others; without it they only answer to their students' attacks."""
    teacher: Annotated[str | None, _option(metavar="MODEL")] = None
    """The teacher of all networks, in place of those that the run folders name."""
    parts: Annotated[str, arg(metavar="LIST")] = "transfer,calibration,unseen,corruptions"
    """Comma-separated: what to measure."""
    corruptions: Annotated[str | None, _option(metavar="LIST")] = None
    """Comma-separated, such as gaussian_noise,contrast; all of them when not given."""
    eps: Annotated[str | None, _option(metavar="PIXELS")] = None
    """L∞ radius of the transferred attack; the runs' own when not given, else 8/255 (0.1 for digits)."""
    linf_eps: Annotated[str | None, _option(metavar="PIXELS")] = None
    """Unseen L∞ radius; twice --eps when not given."""
    l2_eps: Annotated[str | None, _option(metavar="PIXELS")] = None
    """Unseen L2 radius; 128/255 when not given."""
    limit: Annotated[int | None, _option(metavar="N")] = None
    """Measure on so many test images, those of a run with --data.limit-test N; all of them when not given."""
    batch_size: Annotated[int, arg(metavar="N")] = 250
    """Images at a time."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of random starts, noise and bootstrap."""
    device: Annotated[str | None, _option(metavar="NAME")] = None
    """cpu, cuda, cuda:1 …; a GPU where there is one when not given."""
    out: Annotated[Path | None, _option(metavar="DIR")] = None
    """Write threats.json with provenance, threats.md, figures as SVG and PNG, and each image's verdicts, here."""
    loading: OmitArgPrefixes[Loading] = field(default_factory=Loading)

    def run(self) -> int:
        """Load, measure, print, write."""
        with _input():
            settings = self._settings()
            entrants, teachers, missing = self._loaded()
            images, eps = self._images(entrants)
            for each in (*entrants, *teachers[0]):
                _require_classes(each.network, images, each.source)
        if self.out is not None:
            with _writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
        measured = [*entrants, *(teachers[0] if self.with_teachers else [])]
        self._announce(measured, teachers[1], images, eps, missing)
        result = self._measure(measured, teachers, images, settings | {"eps": eps})
        self._show(result)
        if self.out is not None:
            self._write(self.out, result, [*entrants, *teachers[0]], images)
        return DONE

    def _settings(self) -> dict[str, Any]:
        """What `evaluate_threats` takes beside networks, images and radius; refused before anything is loaded."""
        _device(self.device)
        from iad_ext.evaluation import CORRUPTIONS, THREAT_PARTS

        parts, kinds = words(self.parts), words(self.corruptions)
        for option, given, known in (("parts", parts, THREAT_PARTS), ("corruptions", kinds, CORRUPTIONS)):
            for word in given:
                if word not in known:
                    raise ValueError(unknown(f"one of --{option}", word, known))
        if not self.models:
            raise ValueError("name at least one MODEL, such as runs/cifar10/iad1_resnet18-at/seed0")
        if not parts:
            raise ValueError(f"--parts takes some of {', '.join(THREAT_PARTS)}; got none")
        for option, value in (("limit", self.limit), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"--{option} must be at least 1, got {value}")
        for option, text in (("eps", self.eps), ("linf-eps", self.linf_eps)):
            if text is not None and not 0 < parse_fraction(text) < 1:
                raise ValueError(
                    f"--{option} is in pixels of [0, 1], such as 8/255; got {text}, which is outside (0, 1)"
                )
        radius = ("transfer", "calibration", *(["unseen"] if self.linf_eps is None else []))
        for option, text, of in (
            ("corruptions", self.corruptions, ["corruptions"]),
            ("linf-eps", self.linf_eps, ["unseen"]),
            ("l2-eps", self.l2_eps, ["unseen"]),
            ("eps", self.eps, radius),
            ("teacher", None if self.with_teachers else self.teacher, ["calibration"]),
        ):
            if text is not None and not set(of) & set(parts):
                raise ValueError(
                    f"--{option} is for {' and '.join(of)}; add {of[0]} to --parts, or leave it out"
                )
        l2_eps = parse_fraction("128/255" if self.l2_eps is None else self.l2_eps)
        if not 0 < l2_eps < float("inf"):
            raise ValueError(f"--l2-eps is in pixels of [0, 1], such as 128/255; got {self.l2_eps}")
        return {
            "parts": parts,
            **({"corruptions": kinds} if kinds else {}),
            "linf_eps": None if self.linf_eps is None else parse_fraction(self.linf_eps),
            "l2_eps": l2_eps,
        }

    def _loaded(self) -> "tuple[list[Entrant], tuple[list[Entrant], dict[str, str]], list[str]]":
        """The networks, their teachers and whose those are, and what could not be had."""
        from iad_ext.entrants import loading_of, named_apart, read_entrant, read_teachers

        loading: Any = {name: value for name, value in self.loading.arguments().items() if value is not None}
        of = {source: loading_of(source, loading) for source in (*self.models, self.teacher) if source}
        names = None if self.names is None else words(self.names)
        entrants = named_apart(
            [read_entrant(source, of=self.of, **of[source]) for source in self.models], names
        )
        for name in loading:
            if not any(name in taken for taken in of.values()):
                kind = "of the hub" if name == "revision" else "a bare checkpoint"
                raise ValueError(
                    f"--{name.replace('_', '-')} has nothing to tell: none of the networks is {kind}; leave it out"
                )
        teachers, of_student, missing = read_teachers(
            entrants, self.teacher, **(of[self.teacher] if self.teacher else {})
        )
        if self.with_teachers and missing:
            raise ValueError(f"{missing[0]}; give --teacher MODEL, or leave out --with-teachers")
        return entrants, (teachers, of_student), missing

    def _images(self, entrants: "Sequence[Entrant]") -> "tuple[Splits, float]":
        """The test images and the radius: what was asked for, else what the run folders agree on."""
        found = {each.source: _of_run(each.run) for each in entrants if each.run is not None}
        data, own = self.data, [of for of, _ in found.values()]
        if data.name is None and own:
            others = {" ".join(filter(None, (of.name, of.config, of.label_column))) for of in own}
            if len(others) > 1:
                raise ValueError(f"the runs are of {' and '.join(sorted(others))}; give --data.name")
            data = _asked_or_own(data, own[0])
        images, name = _test_images(data, self.models[0], limit=self.limit)
        if self.eps is not None:
            return images, parse_fraction(self.eps)
        radii = {eps for _, eps in found.values() if eps is not None}
        if len(radii) > 1:
            shown = " and ".join(map(show_fraction, sorted(radii)))
            raise ValueError(f"the runs were measured at {shown}; give --eps")
        return images, radii.pop() if radii else _usual_eps(name)

    def _announce(
        self,
        measured: "Sequence[Entrant]",
        teachers: Mapping[str, str],
        images: "Splits",
        eps: float,
        missing: Sequence[str],
    ) -> None:
        from iad_ext.evaluation.threat_tables import letters

        short = letters([each.name for each in measured])
        rows = []
        for each in measured:
            teacher = teachers.get(each.name)
            said = f", teacher {teacher}" if teacher is not None else ""
            rows.append((short[each.name], f"{each.name}: {each.which or each.source}{said}"))
        note = images.provenance.get("encoding_note")
        parts = set(words(self.parts))
        attacking = parts - {"corruptions"}
        at = f"L∞ radius {show_fraction(eps)}, " if attacking - {"unseen"} else ""
        rows += [
            ("images", f"{len(images.test)} test images of {images.provenance['name']}{f' ({note})' if note else ''}"),
            *([("attacks", f"PGD-20 on each network, {at}seed {self.seed}")] if attacking else []),
            *(("note", each) for each in missing),
        ]  # fmt: skip
        for title, said in rows:
            print(wrapped(said, first=title.ljust(10), rest=" " * 10))
        sys.stdout.flush()

    def _measure(
        self,
        measured: "Sequence[Entrant]",
        teachers: "tuple[Sequence[Entrant], Mapping[str, str]]",
        images: "Splits",
        settings: Mapping[str, Any],
    ) -> dict[str, Any]:
        from iad_ext.evaluation import evaluate_threats

        with _input():
            device = _device(self.device)
            return evaluate_threats(
                {each.name: each.network.to(device) for each in (*measured, *teachers[0])},
                images.test.images,
                images.test.labels,
                measured=[each.name for each in measured],
                teachers=teachers[1],
                betas={each.name: each.beta for each in measured if each.beta is not None},
                seed=self.seed,
                batch_size=self.batch_size,
                **settings,
            )

    def _show(self, result: Mapping[str, Any]) -> None:
        from iad_ext.evaluation.threat_tables import tables

        for table in tables(result):
            print(f"\n{table.text(width())}")
            if table.note:
                print(wrapped(table.note))
        for flag in result["flags"]:
            print(wrapped(f"{flag['flag']}: {flag['detail']}.", first="! ", rest="  "))

    def _write(
        self, out: Path, result: dict[str, Any], entrants: "Sequence[Entrant]", images: "Splits"
    ) -> None:
        from safetensors.torch import save

        from iad_ext import files, plots, provenance
        from iad_ext.evaluation.threat_tables import page

        facts = {each.name: each.facts() for each in entrants}
        right = {name: flags.contiguous() for name, flags in result["right"].items()}
        measured = {key: value for key, value in result.items() if key != "right"}
        drawings = {"transfer": plots.transfer_matrix, "calibration": plots.reliability_diagrams}
        drawn = [part for part in drawings if part in result]
        content = {
            "models": facts,
            "measured": measured,
            "data": dict(images.provenance),
            "environment": provenance.environment(),
        }
        with _writing(out):  # what cost the time first
            files.write_json(out / "threats.json", content)
            if right:
                files.write_whole(out / "right.safetensors", save(right))
            shown = [f"{part}.svg" for part in drawn]
            files.write_text(out / "threats.md", page(result, facts, images.provenance, shown))
            figures = [f"{part}{suffix}" for part in drawn for suffix in (".svg", ".png")]
            for figure in figures:
                drawings[Path(figure).stem](result, out / figure)
        written = ["threats.json", "threats.md", *(["right.safetensors"] if right else []), *figures]
        print("\n" + wrapped(f"{', '.join(written)} in {out}", first="written".ljust(10), rest=" " * 10))


# ------------------------------------------------------------------------------------------- export


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What RobustBench wants to know of the paper."""

    title: Annotated[str | None, _option(metavar="TEXT")] = None
    """Its title."""
    link: Annotated[str, _option(metavar="URL")] = ""
    """To the paper."""
    authors: Annotated[str, _option(metavar="TEXT")] = ""
    """Comma-separated."""
    venue: Annotated[str, _option(metavar="TEXT")] = ""
    """Where it appeared."""
    additional_data: bool = False
    """Other images than the data set's had a part in training, a teacher's included."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a network for others: timm and the hub with a model card, ONNX, RobustBench. Never a pickle."""

    model: Annotated[Positional[str], _option(metavar="MODEL")]
    """Run folder, folder in timm's layout, checkpoint file, timm name, or hf-hub:OWNER/NAME."""
    folder: Annotated[Positional[Path], _option(metavar="DIR")]
    """Where to."""
    to: Annotated[str, arg(metavar="LIST")] = "timm"
    """Comma-separated: timm (also called safetensors: weights, configuration, card), onnx, robustbench."""
    name: Annotated[str | None, _option(metavar="NAME")] = None
    """What the model is called; DIR's name when not given."""
    results: Annotated[Path | None, _option(metavar="FILE")] = None
    """What iad-ext evaluate --out wrote for this network; a run folder has its own."""
    license: Annotated[str | None, _option(metavar="NAME")] = None
    """The weights' licence in the hub's spelling: mit, cc-by-4.0 …"""
    image_size: Annotated[int | None, _option(metavar="N")] = None
    """Height and width of ONNX's input; the network's own when not given."""
    repo: Annotated[str | None, _option(metavar="OWNER/NAME")] = None
    """Say what would be uploaded to this repository of the Hugging Face hub."""
    push: bool = False
    """Really upload it (who you are: hf auth login)."""
    public: bool = False
    """Where the repository is new, make it a public one, not a private one."""
    force: bool = False
    """Write into a folder that is not empty; files of the same names are replaced."""
    paper: Paper = field(default_factory=Paper)
    loading: OmitArgPrefixes[Loading] = field(default_factory=Loading)

    def run(self) -> int:
        """Load, write, upload where asked."""
        wanted = self._wanted()
        with _input():
            from iad_ext.export import Record

            record = Record.of(self.model, results=self.results, **self.loading.arguments())
            self._require(record, wanted)
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._write(record, wanted)
        if self.repo is not None:
            self._upload(self.repo)
        return DONE

    def _wanted(self) -> list[str]:
        wanted = list(words(self.to))
        for name in wanted:
            if name not in EXPORTS:
                raise WrongInputError(unknown("export in --to", name, EXPORTS))
        if not wanted:
            raise WrongInputError(f"--to takes some of {', '.join(EXPORTS)}; got none")
        if self.folder.exists() and not self.folder.is_dir():
            raise WrongInputError(f"{self.folder} is a file; give a folder")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self.force:
            raise WrongInputError(
                f"{self.folder} is not empty; give another folder, or --force to write into it"
            )
        if self.push and self.repo is None:
            raise WrongInputError("--push needs --repo OWNER/NAME: where to")
        if self.image_size is not None and "onnx" not in wanted:
            raise WrongInputError("--image-size is ONNX's; add onnx to --to, or leave it out")
        if self.paper != Paper() and "robustbench" not in wanted:
            raise WrongInputError("--paper. … is for RobustBench; add robustbench to --to, or leave it out")
        return wanted

    def _require(self, record: Any, wanted: Sequence[str]) -> None:
        """Nothing is written where a part of it cannot be."""
        from iad_ext.backbones import checked_size
        from iad_ext.export import onnx, robustbench

        if "onnx" in wanted:
            onnx.require_packages()
            checked_size(self.image_size)
        if "robustbench" in wanted:
            robustbench.require_measured(record)

    def _write(self, record: Any, wanted: Sequence[str]) -> None:
        from iad_ext import export

        # the loader of RobustBench reads the folder, and so does the hub
        if {"timm", "safetensors", "robustbench"} & set(wanted) or self.repo is not None:
            with _input():
                export.to_folder(record, self.folder, name=self.name, license=self.license)
            _say_written(
                self.folder / "model.safetensors", "with config.json, as timm and load_network read them"
            )
            measured = "its measurements" if record.measured else "no measurements: see --results"
            _say_written(self.folder / "README.md", f"the model card, with {measured}")
        if "onnx" in wanted:
            path = self.folder / "model.onnx"
            with _input():
                difference = export.to_onnx(record, path, image_size=self.image_size)
            _say_written(path, f"logits within {difference:.1g} of torch's")
        if "robustbench" in wanted:
            with _input():
                info = export.robustbench_model_info(
                    record, self.folder, name=self.name, **dataclasses.asdict(self.paper)
                )
            _say_written(info, "and robustbench_loader.py")

    def _upload(self, repo: str) -> None:
        from iad_ext.export import push_to_hub

        with _input():
            files = push_to_hub(self.folder, repo, push=self.push, private=not self.public)
        done = "uploaded to" if self.push else "would be uploaded to"
        print(wrapped(f"{', '.join(files)} {done} {repo}" + ("" if self.push else "; --push does it")))


def _say_written(path: Path, what: str) -> None:
    print(wrapped(f"{path}  {what}", rest="  "))


# ------------------------------------------------------------------------------------------- report


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html into run folders and studies' folders, from what lies in them alone."""

    runs: Annotated[Positional[tuple[str, ...]], _option(metavar="RUN…")]
    """Folders of runs, or of studies."""
    figures: bool = False
    """Write a run's figures into its folder figures/ too, as SVG and PNG."""

    def run(self) -> int:
        """Write them."""
        from iad_ext import report

        if not self.runs:
            raise WrongInputError("name at least one run folder, such as runs/cifar10/iad1_resnet18-at/seed0")
        for folder in self.runs:
            with _input():
                if not Path(folder).is_dir():
                    raise ValueError(f"there is no folder {folder}")
                _require_writable(Path(folder) / "report.html")
                written = report.write(folder)
                drawn = report.write_figures(folder) if self.figures else []
            for path in (written, *drawn):
                _say_written(path, "")
        return DONE


# ------------------------------------------------------------------------------------------- completion


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print the completion script of a shell; for bash: eval "$(iad-ext completion bash)"."""

    shell: Annotated[Positional[str], _option(metavar="SHELL")]
    """bash or zsh."""

    def run(self) -> int:
        """Print it."""
        if self.shell not in SHELLS:
            raise WrongInputError(unknown("shell", self.shell, SHELLS))
        _command(["--tyro-print-completion", self.shell])  # prints and exits
        return DEFECT


COMMANDS: Mapping[str, Any] = {
    "doctor": Doctor,
    "evaluate": Evaluate,
    "compare": Compare,
    "threats": Threats,
    "export": Export,
    "objectives": Objectives,
    "recipes": Recipes,
    "study": Studies,
    "report": Report,
    "completion": Completion,
}


def _command(args: list[str]) -> Any:
    """The subcommand that the arguments ask for, with its options."""
    settings: dict[str, dict[str, Any]] | None = None
    if args and not args[0].startswith("-"):
        if args[0] not in COMMANDS:
            raise WrongInputError(unknown("command", args[0], COMMANDS))
        if args[0] == "study" and not {"-h", "--help"} & set(args):
            from iad_ext.studies.overrides import from_command_line

            with _input():
                rest, settings = from_command_line(args[1:])
            args = ["study", *rest]
        known = {"--help", *_option_names(COMMANDS[args[0]])}
        for given in args[1:]:
            name = given.partition("=")[0]
            if name.startswith("--") and name.replace("_", "-") not in known:
                raise WrongInputError(unknown(f"option of {args[0]}", name, known))
    union: Any = None
    for name, command in COMMANDS.items():
        named = Annotated[command, subcommand(name)]  # type: ignore[valid-type]
        union = named if union is None else union | named
    command = tyro.cli(
        union,
        prog="iad-ext",
        description="Look at the set-up, measure and export networks, run the paper's studies. Recipes do the training."
        f"\n\n{EXIT_CODES}",
        args=args or ["--help"],
        config=(FlagCreatePairsOff,),
    )
    if settings is not None:
        command.settings = settings
    return command


def _option_names(command: Any, prefix: str = "") -> Iterator[str]:
    """What the options of a subcommand are called: tyro's own suggestions come too late where MODEL is missing too."""
    for option in dataclasses.fields(command):
        group = option.default_factory
        if POSITIONAL in get_args(option.type) or not option.init:
            continue
        if dataclasses.is_dataclass(group):
            yield from _option_names(group, "" if group is Loading else f"{option.name}.")
        else:
            name = f"no_{option.name}" if option.default is True else option.name
            yield f"--{prefix}{name}".replace("_", "-")
