"""A study as data: rows of a table, each a recipe with settings, and what they come to: cells to run.

A cell is one run folder. Its name says what it is (recipe, teacher, settings that differ from the recipe's, seed), so
that the same cell of two studies is one folder, and a cell with the paper's own settings is the recipe's own folder.
"""

import dataclasses
import fnmatch
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iad_ext import files, paper, recipes, spelling
from iad_ext import settings as settings_
from iad_ext.checks import check_number
from iad_ext.diagnostics import FIGURES as LOGGED
from iad_ext.evaluation import ATTACKS
from iad_ext.names import unknown, words
from iad_ext.plan import NAMED_TEACHERS, TRAINING_IMAGES, Plan, default_folder
from iad_ext.plots import FIGURES
from iad_ext.report.reading import COSTS
from iad_ext.settings import Settings
from iad_ext.studies import overrides as overrides_
from iad_ext.studies.overrides import Overrides

MEASURES = ("natural", "fgsm", "pgd20", "cw_inf", "aa")
EXPECTED = ("greater", "less", "close")
RELATED_BY = ("method", "group")
OF_TEACHER = "teacher."  # before a measure: that of the network that taught the row
TEACHERS = NAMED_TEACHERS
LONGEST = 200  # bytes of a folder's name: file systems take 255, and the log beside it has a suffix
# images of a data set that --scale takes a fraction of
WHOLE = {**TRAINING_IMAGES, "digits": 1438}


@dataclass(frozen=True)
class Row:
    """A row of a study's table.

    Attributes:
        label: its name, unique within the study.
        method: of the recipe: `at`, `iad1` …
        teacher: `at`, `trades`, the label of a row that trains it, whatever --teacher takes, or None.
        settings: what it changes, in epochs of the recipe's own length.
        against: label of the row that it is compared with.
        seeds: its own; None for the study's.
        paper: what tells its row in the paper's table from the others, and `table` where that is not the study's;
            None where it has none there.
        data: data sets that it is run on; None for all of the study's.
        group: heading that it stands under in tables, with the rows before and after it that have the same; or None.
    """

    label: str
    method: str
    teacher: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None
    seeds: tuple[int, ...] | None = None
    paper: Mapping[str, Any] | None = None
    data: tuple[str, ...] | None = None
    group: str | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper that a study can test.

    Attributes:
        claim: the sentence.
        a: label of a row.
        measure: by which; or a figure of `metrics.jsonl`, which says how the row's own runs change in training.
        expect: `greater`, `less` or `close`: a against b, or a figure's last epoch against its first.
        b: label of another row; None for a figure.
        within: for `close`, how many points count as none.
        by: for `greater` and `less`, at least how many points.
        checkpoint: `best` or `last`.
    """

    claim: str
    a: str
    measure: str
    expect: str
    b: str | None = None
    within: float = 1.0
    by: float = 0.0
    checkpoint: str = "best"


@dataclass(frozen=True)
class Relation:
    """One quantity of the rows against another: a figure, a table and rank correlations.

    A quantity is a measure such as `aa`, the same of the row's teacher (`teacher.aa`), or a figure of `metrics.jsonl`
    such as `teacher/entropy_on_student_adv`, in the epoch that the checkpoint is of.

    Attributes:
        name: of the figure's files.
        x: one quantity.
        y: the other.
        checkpoint: `best` or `last`.
        by: `method`: ρ of each method's rows, points named by their teachers; or `group`: one ρ over all rows, of
            which those are named that no other row exceeds in both quantities.
    """

    name: str
    x: str
    y: str
    checkpoint: str = "best"
    by: str = "method"


@dataclass(frozen=True)
class Study:
    """What a study's file declares. See docs/studies.md for the file."""

    name: str
    title: str
    data: tuple[str, ...]
    student: Mapping[str, str]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    table: str | None = None
    figures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    relations: tuple[Relation, ...] = ()
    measures: tuple[str, ...] = MEASURES
    seeds: tuple[int, ...] = (0,)
    teacher_seed: int | None = None
    settings: Mapping[str, Overrides] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Choices:
    """What a command line adds to a study.

    Attributes:
        seeds: instead of the study's.
        epochs: fraction of the recipe's epochs.
        images: fraction of the training images.
        only: a list of labels, or of patterns of them, with commas; rows that none fits are left out, the teachers
            that the rest need are not.
        data: data sets instead of the study's.
        settings: by role, over the study's.
        root: what stands for `runs`.
    """

    seeds: tuple[int, ...] | None = None
    epochs: float = 1.0
    images: float = 1.0
    only: str | None = None
    data: tuple[str, ...] | None = None
    settings: Mapping[str, Overrides] = field(default_factory=dict)
    root: Path = Path("runs")


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        recipe: its recipe's name.
        settings: all of them.
        folder: the run folder.
        arguments: of the recipe's command line.
        needs: run folders of its teachers.
        labels: rows that it belongs to; empty for a run that only teaches.
    """

    recipe: str
    settings: Settings
    folder: Path
    arguments: tuple[str, ...]
    needs: tuple[Path, ...]
    labels: tuple[str, ...]

    @property
    def attacks(self) -> tuple[str, ...]:
        """What it is measured by."""
        return words(self.settings.eval.attacks)


@dataclass(frozen=True)
class Line:
    """A row on one data set: what it is called in the table, its numbers in the paper, its runs."""

    label: str
    row: Row
    data: str
    cells: tuple[Path, ...]
    paper: Mapping[str, float]

    @property
    def against(self) -> str | None:
        """The label it is compared with, as the table has it."""
        if self.row.against is None:
            return None
        return self.row.against + self.label.removeprefix(self.row.label)


@dataclass(frozen=True)
class Grid:
    """A study's lines and the cells they need, in the rows' order, each behind its teachers."""

    study: Study
    choices: Choices
    lines: tuple[Line, ...]
    cells: tuple[Cell, ...]

    @property
    def folder(self) -> Path:
        """Where the table goes: `runs/studies/NAME`, with what was changed of the study in its name."""
        choices = self.choices
        parts = [self.study.name]
        if choices.data is not None and choices.data != self.study.data:
            parts.append("+".join(name.replace("/", "--") for name in choices.data))
        if (choices.epochs, choices.images) != (1, 1):
            same = choices.epochs == choices.images
            parts.append(f"scale{choices.epochs:g}" + ("" if same else f"x{choices.images:g}"))
        for role, values in choices.settings.items():
            prefix = "" if role == "all" else f"{role}."
            parts += [named] if (named := overrides_.named(values, prefix=prefix)) else []
        return choices.root / "studies" / "-".join(parts)


# ------------------------------------------------------------------------------------------- the file


def folder() -> Path:
    """Where the studies' files are."""
    return recipes.folder() / "studies"


def names() -> list[str]:
    """The studies that come with the package, tables before figures, in the paper's order."""

    def order(name: str) -> tuple[int, int, str]:
        kind = next((i for i, start in enumerate(("table", "figure")) if name.startswith(start)), 2)
        digits = "".join(filter(str.isdigit, name))
        return kind, int(digits) if digits and kind < 2 else 0, name

    return sorted((file.stem for file in folder().glob("*.yaml")), key=order)


def file_of(name: str) -> Path:
    """Where a study's file is, of one's own or of the package.

    Raises:
        ValueError: there is none.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder() / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(unknown("study", name, names()) + "; or a .yaml file")
    return file


def read(name: str) -> Study:
    """Read a study by its name, or from a file of one's own.

    Raises:
        ValueError: there is none, or something in it is not understood; says what and where.
    """
    file = file_of(name)
    try:
        content = files.parse_yaml(file.read_text(encoding="utf-8"))
        return _study(file.stem, content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from None


def seeds_of(given: Sequence[object], where: str) -> tuple[int, ...]:
    """Seeds from a file or, as words, from a command line. Each counts once: runs of one seed are no sample.

    Raises:
        ValueError: one is no whole number from 0, or is there twice, or there is none.
    """
    seeds = []
    for seed in given:
        word = str(seed).strip()
        if not re.fullmatch("[0-9]{1,18}", word):
            raise ValueError(f"{where} takes whole numbers from 0, such as 0,1,2; got {seed!r}")
        seeds.append(int(word))
    if not seeds:
        raise ValueError(f"{where} takes at least one seed; got none")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ValueError(f"{where} has {twice[0]} twice; a seed makes one run, which counts once")
    return tuple(seeds)


def _fields(content: object, known: Sequence[str], what: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} is a mapping, got {content!r}")
    for key in content:
        if key not in known:
            raise ValueError(unknown(f"entry of {what}", str(key), known))
    for key in needed:
        if key not in content:
            raise ValueError(f"{what} needs an entry {key!r}")
    return dict(content)


def _study(name: str, content: object) -> Study:
    known = [
        "title",
        "note",
        "table",
        "figures",
        "relations",
        "data",
        "student",
        "measures",
        "seeds",
        "teacher_seed",
        "all",
        "teachers",
        "students",
        "rows",
        "claims",
    ]
    found = _fields(content, known, "a study", needed=("title", "data", "student", "rows"))
    data = tuple(_list(found["data"]))
    student, teacher_seed = found["student"], found.get("teacher_seed")
    rows = tuple(_row(row) for row in _list(found["rows"]))
    study = Study(
        name=name,
        title=str(found["title"]),
        note=" ".join(str(found.get("note", "")).split()),
        data=data,
        student=dict(student) if isinstance(student, Mapping) else dict.fromkeys(data, str(student)),
        rows=rows,
        claims=tuple(_claim(claim) for claim in _list(found.get("claims", []))),
        table=found.get("table"),
        figures=_figures(found.get("figures")),
        relations=tuple(_relation(relation) for relation in _list(found.get("relations", []))),
        measures=tuple(map(str, _list(found.get("measures", MEASURES)))),
        seeds=seeds_of(_list(found.get("seeds", 0)), "seeds"),
        teacher_seed=None if teacher_seed is None else seeds_of([teacher_seed], "teacher_seed")[0],
        settings={role: overrides_.checked(found.get(role), role) for role in ("all", *overrides_.ROLES)},
    )
    _check(study)
    return study


def _figures(given: object) -> dict[str, tuple[str, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"figures is a mapping of figures to labels of rows, got {given!r}")
    return {str(name): tuple(map(str, _list(labels))) for name, labels in given.items()}


def _text(value: object) -> str | None:
    """A word of a file, which may look like a number; None where nothing stands."""
    return None if value is None else str(value)


def _list(value: object) -> Sequence[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _row(content: object) -> Row:
    found = _fields(content, [f.name for f in dataclasses.fields(Row)], "a row", needed=("label", "method"))
    label = str(found["label"])
    return Row(
        label=label,
        method=str(found["method"]),
        teacher=_text(found.get("teacher")),
        settings=overrides_.checked(found.get("settings"), f"row {label!r}"),
        against=_text(found.get("against")),
        seeds=seeds_of(_list(found["seeds"]), f"seeds of row {label!r}") if "seeds" in found else None,
        paper=found.get("paper"),
        data=tuple(_list(found["data"])) if "data" in found else None,
        group=str(found["group"]) if "group" in found else None,
    )


def _claim(content: object) -> Claim:
    needed = ("claim", "a", "measure", "expect")
    found = _fields(content, [f.name for f in dataclasses.fields(Claim)], "a claim", needed=needed)
    for name in ("within", "by"):
        if name in found:
            check_number(f"{name} of {found['claim']!r}", found[name], at_least=0)
    words_ = {name: _text(value) for name, value in found.items() if name not in ("within", "by")}
    claim = Claim(**(found | words_))
    if claim.expect not in EXPECTED:
        raise ValueError(unknown(f"expectation of {claim.claim!r}", claim.expect, EXPECTED))
    if claim.checkpoint not in ("best", "last"):
        raise ValueError(unknown(f"checkpoint of {claim.claim!r}", claim.checkpoint, ("best", "last")))
    return claim


def _relation(content: object) -> Relation:
    found = _fields(
        content, [f.name for f in dataclasses.fields(Relation)], "a relation", needed=("name", "x", "y")
    )
    relation = Relation(**{name: str(value) for name, value in found.items()})
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", relation.name) or relation.name in FIGURES:
        raise ValueError(
            f"a relation's name is a file's, and none of {', '.join(FIGURES)}; got {relation.name!r}"
        )
    if relation.checkpoint not in ("best", "last"):
        raise ValueError(
            unknown(f"checkpoint of relation {relation.name}", relation.checkpoint, ("best", "last"))
        )
    if relation.by not in RELATED_BY:
        raise ValueError(unknown(f"by of relation {relation.name}", relation.by, RELATED_BY))
    return relation


def _check(study: Study) -> None:
    if not study.rows or not study.data:
        raise ValueError("a study needs at least one row and one data set; there is nothing to run")
    labels = [row.label for row in study.rows]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two rows are called {label!r}; labels tell rows apart")
    headings = [group for group, _ in itertools.groupby(row.group for row in study.rows)]
    for heading in headings:
        if headings.count(heading) > 1:
            rows = "without a group" if heading is None else f"of the group {heading!r}"
            raise ValueError(f"rows {rows} stand apart; put them one after the other")
    for row in study.rows:
        if row.against is not None and row.against not in labels:
            raise ValueError(f"row {row.label!r}: {unknown('row', row.against, labels)}")
    for row in study.rows:
        _check_teacher(study, row)
    quantities = [*study.measures, *(OF_TEACHER + measure for measure in study.measures), *LOGGED]
    for relation in study.relations:
        for quantity in (relation.x, relation.y):
            if quantity not in quantities:
                raise ValueError(f"relation {relation.name}: {unknown('quantity', quantity, quantities)}")
    known = {*ATTACKS, *COSTS}
    for measure in study.measures:
        if measure not in known:
            raise ValueError(unknown("measure", measure, known))
    for claim in study.claims:
        _check_claim(study, claim, labels)
    if study.table is not None:
        paper.rows(study.table)
    for name, drawn in study.figures.items():
        if name not in FIGURES:
            raise ValueError(unknown("figure", name, FIGURES))
        for label in drawn:
            if label not in labels:
                raise ValueError(f"figure {name}: {unknown('row', label, labels)}")


def _check_claim(study: Study, claim: Claim, labels: Sequence[str]) -> None:
    for label in (claim.a, claim.b):
        if label is not None and label not in labels:
            raise ValueError(f"claim {claim.claim!r}: {unknown('row', label, labels)}")
    if claim.measure in LOGGED:
        if claim.b is not None:
            raise ValueError(
                f"claim {claim.claim!r}: {claim.measure} is a figure by epoch, of one row; leave b out"
            )
        return
    if claim.measure not in study.measures:
        raise ValueError(
            f"claim {claim.claim!r}: {unknown('measure', claim.measure, (*study.measures, *LOGGED))}"
        )
    if claim.b is None:
        raise ValueError(
            f"claim {claim.claim!r} needs an entry 'b', the row that {claim.a!r} is held against"
        )


def _check_teacher(study: Study, row: Row) -> None:
    """A row that teaches is of a method that is not taught itself: its name would not say by whom."""
    if row.teacher is None or row.teacher in TEACHERS:
        return
    labels = [one.label for one in study.rows]
    if row.teacher not in labels:
        if " " in row.teacher:  # no path, name or id that --teacher takes
            raise ValueError(f"row {row.label!r}: {unknown('teacher', row.teacher, [*TEACHERS, *labels])}")
        return
    teaching = study.rows[labels.index(row.teacher)]
    for student in dict.fromkeys(study.student.values()):
        usual = recipes.load(f"{teaching.method}_{student}").settings
        if teaching.teacher or usual.teacher or usual.natural_teacher:
            raise ValueError(
                f"row {row.label!r}: {row.teacher!r} is taught itself; a row that teaches is of a method without a "
                "teacher, such as at, trades or st"
            )


# ------------------------------------------------------------------------------------------- cells


def expand(study: Study, choices: Choices) -> Grid:
    """What a study comes to.

    Raises:
        ValueError: settings that no run can use, labels that no pattern fits, a setting that rows give too.
    """
    _refuse_what_rows_set(study, choices)
    for role in overrides_.ROLES:
        if "data.name" in choices.settings.get(role, {}):
            raise ValueError(
                f"--{role}.data.name: all cells are of the same data sets; --data.name takes them"
            )
    if choices.seeds is not None:
        seeds_of(choices.seeds, "--seeds")
    wanted = _wanted(study.rows, choices.only)
    data = choices.data or study.data
    cells: dict[Path, Cell] = {}
    lines = []
    for name in data:
        for row in wanted:
            # a data set of one's own is everybody's
            if row.data is not None and name in study.data and name not in row.data:
                continue
            seeds = choices.seeds or row.seeds or study.seeds
            made = [_Maker(study, choices, name, seed).row(row) for seed in seeds]
            for cell in (cell for needed in made for cell in needed):
                cells[cell.folder] = _merged(cells.get(cell.folder), cell)
            label = row.label + (f", {name}" if len(data) > 1 else "")
            own = tuple(needed[-1].folder for needed in made)
            lines.append(Line(label, row, name, own, _numbers(study, row, name)))
    if not lines:
        rows = ", ".join(f"{row.label!r} on {', '.join(row.data or study.data)}" for row in wanted)
        raise ValueError(f"nothing to run on {', '.join(data)}: of {study.name} there is {rows}")
    return Grid(study, choices, tuple(lines), tuple(_with_arguments(cell) for cell in cells.values()))


def _wanted(rows: Sequence[Row], only: str | None) -> list[Row]:
    """The rows that a list of patterns asks for; every one of them has to fit some."""
    if only is None:
        return list(rows)
    labels, chosen = [row.label for row in rows], set()
    for pattern in _patterns(only, labels):
        fitting = [pattern] if pattern in labels else fnmatch.filter(labels, pattern)
        if not fitting:
            raise ValueError(
                f"--only {only}: {pattern!r} fits none of the rows: {', '.join(map(repr, labels))}"
            )
        chosen.update(fitting)
    if not chosen:
        raise ValueError(f"--only takes labels of rows, got none; there are {', '.join(map(repr, labels))}")
    return [row for row in rows if row.label in chosen]


def _patterns(only: str, labels: Sequence[str]) -> Iterator[str]:
    """A list with commas, in which labels may have commas of their own: the longest label there is counts."""
    parts = only.split(",")
    while parts:
        ends = range(len(parts), 0, -1)
        taken = next((end for end in ends if ",".join(parts[:end]).strip() in labels), 1)
        if pattern := ",".join(parts[:taken]).strip():
            yield pattern
        parts = parts[taken:]


def _refuse_what_rows_set(study: Study, choices: Choices) -> None:
    given = {name for values in choices.settings.values() for name in values}
    for row in study.rows:
        for name in row.settings:
            if name in given:
                raise ValueError(
                    f"{settings_.option(name)} is what the rows of {study.name} differ by ({row.label!r} has "
                    f"{row.settings[name]}); leave it out"
                )


def _numbers(study: Study, row: Row, data: str) -> Mapping[str, float]:
    if row.paper is None or data not in study.data:
        return {}
    what = dict(row.paper)
    table = what.pop("table", study.table)
    if table is None:
        raise ValueError(f"row {row.label!r}: paper needs an entry 'table': the study itself is of none")
    return paper.numbers(table, data=data, **what)


def _merged(known: Cell | None, cell: Cell) -> Cell:
    """One cell that is measured by all that either is; as a row asks, where the other only teaches.

    Raises:
        ValueError: two rows ask for it otherwise; a run has one measurement.
    """
    if known is None:
        return cell
    if known.labels and cell.labels:
        here, there = (vars(one.settings.eval) for one in (known, cell))
        if apart := [name for name in here if name != "attacks" and here[name] != there[name]]:
            name = apart[0]
            raise ValueError(
                f"rows {known.labels[0]!r} and {cell.labels[0]!r} are one run, {cell.folder}, which is measured in one "
                f"way; they have {settings_.option(f'eval.{name}')} {here[name]} and {there[name]}. Give both the "
                "same, and measure otherwise with iad-ext evaluate, or in a study with another --out"
            )
    both = {*known.attacks, *cell.attacks}
    attacks = ",".join(name for name in ATTACKS if name in both)
    of = cell if cell.labels else known
    settings = settings_.override(of.settings, {"eval.attacks": attacks})
    labels = tuple(dict.fromkeys((*known.labels, *cell.labels)))
    return dataclasses.replace(of, settings=settings, labels=labels)


def measured_by(cell: Cell, attacks: Sequence[str]) -> Cell:
    """The same run, measured by other attacks."""
    settings = settings_.override(cell.settings, {"eval.attacks": ",".join(attacks)})
    return _with_arguments(dataclasses.replace(cell, settings=settings))


def _with_arguments(cell: Cell) -> Cell:
    return dataclasses.replace(cell, arguments=tuple(_arguments(cell)))


def _arguments(cell: Cell) -> Iterator[str]:
    """The shortest command line of the recipe that gives the cell's settings."""
    settings = cell.settings
    train = settings.train
    recipe = recipes.load(cell.recipe)
    given: Overrides = {"data.name": settings.data.name}
    usual = recipe.defaults(data=settings.data.name)
    if train.schedule != usual.train.schedule:
        given["train.schedule"] = train.schedule
        usual = recipe.defaults(data=settings.data.name, schedule=train.schedule)
    if train.epochs != usual.train.epochs:
        given["train.epochs"] = train.epochs
        usual = settings_.scaled(usual, train.epochs)
    before = dict(settings_.flat(usual))
    given |= {name: value for name, value in settings_.flat(settings) if value != before[name]}
    given.pop("recipe", None)
    yield from spelling.arguments(given)


@dataclass(frozen=True)
class _Maker:
    """Makes the cells of one data set and seed."""

    study: Study
    choices: Choices
    data: str
    seed: int

    def row(self, row: Row) -> list[Cell]:
        """The cells of a row: its teachers, then itself."""
        measured = ",".join(name for name in self.study.measures if name in ATTACKS)
        return self._cells(row.method, row.teacher, row.settings, measured, row.label, self.seed)

    def _cells(
        self,
        method: str,
        teacher: str | None,
        own: Mapping[str, Any],
        measured: str,
        label: str | None,
        seed: int,
    ) -> list[Cell]:
        student = self.study.student.get(self.data) or next(iter(self.study.student.values()))
        recipe = f"{method}_{student}"
        usual = recipes.load(recipe).defaults(data=self.data)
        asked = {"teacher": teacher or usual.teacher, "natural_teacher": usual.natural_teacher}
        given = self._given(recipe, method, measured, only_teaches=label is None)
        settings = self._settings(recipe, given, own)
        cells: list[Cell] = []
        paths: dict[str, str] = {}
        differences = {"": self._differences(recipe, settings)}
        other_seeds: list[str] = []
        rows = {one.label: one for one in self.study.rows}
        for role, source in asked.items():
            if source in TEACHERS or source in rows:
                of_teacher = self.seed if self.study.teacher_seed is None else self.study.teacher_seed
                teaches, its_own = (
                    (source, {}) if source in TEACHERS else (rows[source].method, rows[source].settings)
                )
                made = self._cells(teaches, None, its_own, "natural", None, of_teacher)
                cells += made
                asked[role] = teaches
                paths[role] = str(made[-1].folder)
                prefix = f"{teaches}." if f"{teaches}." not in differences else f"{role}."
                differences[prefix] = self._differences(made[-1].recipe, made[-1].settings)
                if of_teacher != seed:
                    other_seeds.append(f"{teaches}.seed={of_teacher}")
            elif source is not None:
                paths[role] = source
        named = settings_.override(settings, {"train.seed": seed, **asked, "out": None})
        where = default_folder(named)
        suffix = ",".join(part for part in (_suffix(differences), *other_seeds) if part)
        name = where.parent.name + (f",{suffix}" if suffix else "")
        where = where.parent.with_name(_that_fits(name)) / where.name
        where = self.choices.root.joinpath(*where.parts[1:])
        settings = settings_.override(settings, {"train.seed": seed, "out": where, **paths})
        try:
            Plan.of(settings)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{label or recipe}: {error}") from None
        needs = tuple(cell.folder for cell in cells if str(cell.folder) in paths.values())
        labels = (label,) if label else ()
        return [*cells, Cell(recipe, settings, where, (), needs, labels)]

    def _given(self, recipe: str, method: str, measured: str, *, only_teaches: bool) -> Overrides:
        """What is said of all cells, or of all of this one's role: the study's file, then the command line."""
        role = "teachers" if method in TEACHERS else "students"
        by_study, by_command_line = (
            {**said.get("all", {}), **said.get(role, {})}
            for said in (self.study.settings, self.choices.settings)
        )
        schedule = by_command_line.get("train.schedule", by_study.get("train.schedule"))
        usual = recipes.load(recipe).defaults(data=self.data, schedule=schedule)
        # what the study says of epochs is at the length that it states, else at the recipe's own
        stated = settings_.override(usual, by_study)
        epochs = by_command_line.get("train.epochs", self._epochs(stated.train.epochs))
        moved = dict(settings_.flat(_moved(stated, epochs)))
        by_study = {name: moved[name] for name in by_study}
        given: Overrides = {"eval.attacks": measured, **by_study, **by_command_line}
        if only_teaches:
            given["eval.attacks"] = measured
        if (path := given.get("data.path")) is not None:
            data = self.choices.data or self.study.data
            if (path / self.data).is_dir():
                given["data.path"] = path / self.data
            elif self.data == "digits" and len(data) > 1:
                del given["data.path"]  # the others'
            elif len(data) > 1:
                raise ValueError(
                    f"--data.path holds a folder for each data set of the study ({', '.join(data)}); there is no "
                    f"folder {path / self.data}. --data.name takes some of them"
                )
        return given

    def _settings(self, recipe: str, given: Overrides, own: Mapping[str, Any]) -> Settings:
        usual = recipes.load(recipe).defaults(data=self.data, schedule=given.get("train.schedule"))
        if "train.epochs" in own or "train.epochs" not in given:
            given = {**given, "train.epochs": self._epochs(own.get("train.epochs", usual.train.epochs))}
        epochs = given["train.epochs"]
        # what a row says of epochs is at the recipe's own length
        settings = settings_.override(usual, {k: v for k, v in own.items() if k != "train.epochs"})
        settings = _moved(settings, epochs)
        if self.choices.images != 1 and "data.limit_train" not in given:
            settings = settings_.override(settings, {"data.limit_train": self._images(settings)})
        return settings_.override(settings, {k: v for k, v in given.items() if k not in own})

    def _epochs(self, whole: int) -> int:
        """As many of a study's, a row's or a recipe's epochs as --scale says."""
        return max(1, round(whole * self.choices.epochs))

    def _images(self, settings: Settings) -> int:
        """The fraction of a row's or the data set's images that --scale says."""
        if (limit := settings.data.limit_train) is not None:
            return max(1, round(limit * self.choices.images))
        if self.data not in WHOLE:
            raise ValueError(f"--scale knows no number of images of {self.data}; give --data.limit-train too")
        whole = WHOLE[self.data]
        held_out = min(settings.data.holdout, whole // 10) if settings.data.selection == "holdout" else 0
        return max(1, round((whole - held_out) * self.choices.images))

    def _differences(self, recipe: str, settings: Settings) -> Overrides:
        """What tells the network from the one that the recipe's own settings would give."""
        found = recipes.load(recipe)
        usual = found.defaults(data=self.data)
        differences: Overrides = {}
        if settings.train.schedule != usual.train.schedule:
            differences["train.schedule"] = settings.train.schedule
            usual = found.defaults(data=self.data, schedule=settings.train.schedule)
        if settings.train.epochs != usual.train.epochs:
            differences["train.epochs"] = settings.train.epochs
            usual = settings_.scaled(usual, settings.train.epochs)
        before = dict(settings_.flat(usual))
        now = dict(settings_.flat(settings))
        return differences | {
            name: now[name] for name in now if now[name] != before[name] and overrides_.matters(name)
        }


def _moved(settings: Settings, epochs: int) -> Settings:
    """Settings at another length: drops, warm-up and ramps keep their share of the epochs, γ's schedule too."""
    if settings.train.epochs < 1:
        raise ValueError(f"--train.epochs must be at least 1, got {settings.train.epochs}")
    ratio = epochs / settings.train.epochs
    if ratio == 1:
        return settings
    settings = settings_.scaled(settings, epochs)
    if ":" in (gamma := settings.objective.gamma or ""):
        parts = (part.partition(":") for part in gamma.split(","))
        moved = ",".join(f"{round(int(start) * ratio)}:{value}" for start, _, value in parts)
        settings = settings_.override(settings, {"objective.gamma": moved})
    return settings


def _suffix(differences: Mapping[str, Overrides]) -> str:
    """A cell's settings, and those of its teachers where they differ from its own beyond the objective."""
    own = differences[""]
    parts = [overrides_.named(own)]
    for prefix, theirs in differences.items():
        if prefix:
            others = {
                name: theirs.get(name, "usual")
                for name in {*theirs, *(name for name in own if not name.startswith("objective."))}
                if theirs.get(name) != own.get(name)
            }
            parts.append(overrides_.named(others, prefix=prefix))
    return ",".join(part for part in parts if part)


def _that_fits(name: str) -> str:
    """A folder's name as it is, or where a file system would not take it, its beginning and a digest of the whole."""
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    beginning = name.encode()[: LONGEST - len(digest) - 1].decode(errors="ignore")
    return f"{beginning}-{digest}"
