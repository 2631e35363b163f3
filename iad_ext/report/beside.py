"""The row of the paper that a run stands beside, and the settings by which it is not that row's run.

Which settings a row has, the recipes say, and the studies of the paper's tables.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iad_ext import files, paper, recipes
from iad_ext.evaluation import TITLES
from iad_ext.report.html import is_number
from iad_ext.report.reading import mapping, recipe_of_teacher, short_teacher
from iad_ext.settings import Settings, flat, override, scaled
from iad_ext.units import show_fraction

# settings that make other results, but for those of the data set and of the machine
COMPARED = ("student.", "objective.", "attack.", "train.", "average.", "data.extra", "eval.eps")
FREE = ("train.seed", "train.accumulation", "train.non_finite")


@dataclass(frozen=True)
class PapersRow:
    """A row of the paper's tables.

    Attributes:
        where: its table and its name there, such as `Table 9, IAD-I, γ = 4`.
        numbers: in percent, by measure.
        apart: how the run's settings differ from the row's, such as `attack.steps 5 for 10`.
        another: whether the loss is another one. Then the paper has no such run, and this row is the nearest.
    """

    where: str
    numbers: Mapping[str, float]
    apart: tuple[str, ...]
    another: bool


def papers_row(run: Mapping[str, Any]) -> PapersRow | None:
    """The row that a run's settings come nearest to; None where the paper has no such student, method and teacher."""
    found = [
        (differences(run, _settings_of(run, row)) | _of_teachers(run, row), table, row)
        for table, row in _rows(run)
    ]
    if not found:
        return None
    apart, table, row = min(found, key=lambda one: len(one[0]))  # of equals, the first table's
    return PapersRow(
        where=f"Table {table}, {row['label']}",
        numbers=paper.numbers(f"table{table}", data=run["data"]["name"], **row["paper"]),
        apart=tuple(
            f"{name} {_said(name, now)} for {_said(name, theirs)}" for name, (now, theirs) in apart.items()
        ),
        another=any(name.startswith("objective.") for name in apart),
    )


def differences(run: Mapping[str, Any], theirs: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings in which a run differs, each with its own value and theirs; what it does not name is the same."""
    found = {}
    for name, value in flat(theirs):
        group, _, leaf = name.partition(".")
        held = mapping(run.get(group))
        if name.startswith(COMPARED) and name not in FREE and leaf in held:
            usual = list(value) if isinstance(value, tuple) else value
            if not _same(held[leaf], usual):
                found[name] = (held[leaf], usual)
    return found


def _of_teachers(run: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The teachers that are of another recipe than the row's, or of its recipe with other settings."""
    natural = recipes.load(row["recipe"]).settings.natural_teacher
    network = row["recipe"].partition("_")[2]
    found = {}
    for role, method in (("teacher", row.get("teacher")), ("natural_teacher", natural)):
        if method is not None and role in run:
            own = recipe_of_teacher(run[role]) or run[role]
            if own not in (method, f"{method}_{network}"):
                found[role] = (own, f"{method}_{network}")
    return found


def _same(one: object, other: object) -> bool:
    """Equal, also where one is `4` and the other `4.0`."""
    try:
        return one == other or float(str(one)) == float(str(other))
    except ValueError:
        return False


def _said(name: str, value: object) -> str:
    if name.endswith((".eps", ".step")) and is_number(value):
        return show_fraction(float(value))
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@functools.cache
def _tables() -> Sequence[tuple[int, Mapping[str, Any]]]:
    """The studies of the paper's tables of accuracies, by their numbers."""
    found = {}
    for file in (recipes.folder() / "studies").glob("table*.yaml"):
        study = files.parse_yaml(file.read_text(encoding="utf-8"))
        if any(name in TITLES for row in paper.rows(study["table"]) for name in row["numbers"]):
            found[int(file.stem.removeprefix("table"))] = study
    return sorted(found.items())


def _rows(run: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The tables' rows of a run's data, student, method and teacher, with their recipes' names."""
    data, student = mapping(run.get("data")).get("name"), mapping(run.get("student")).get("name")
    method, teacher = mapping(run.get("objective")).get("name"), short_teacher(run.get("teacher"))
    for table, study in _tables():
        if data not in study["data"]:
            continue
        network = study["student"] if isinstance(study["student"], str) else study["student"][data]
        for row in study["rows"]:
            named = mapping(row.get("settings")).get("objective.name", row["method"])
            recipe = f"{row['method']}_{network}"
            if (named, row.get("teacher")) == (method, teacher) and _student(recipe) == student:
                yield table, {**row, "recipe": recipe}


def _student(recipe: str) -> str:
    return recipes.load(recipe).settings.student.name


def _settings_of(run: Mapping[str, Any], row: Mapping[str, Any]) -> Settings:
    """A row's settings; what counts epochs, at the run's own length."""
    usual = recipes.load(row["recipe"]).defaults(data=run["data"]["name"])
    settings = override(usual, mapping(row.get("settings")))
    epochs = mapping(run.get("train")).get("epochs")
    if isinstance(epochs, int) and epochs > 0:
        settings = override(scaled(settings, epochs), {"train.epochs": usual.train.epochs})
    return settings


__all__ = ["PapersRow", "differences", "papers_row"]
