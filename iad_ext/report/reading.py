"""What report pages read, and how they go on where something cannot be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iad_ext import files, paper
from iad_ext.plots import NothingToDrawError, Run, svg
from iad_ext.report.html import Html, is_number, tag

OBJECTIVES = {
    "st": "ST",
    "at": "AT",
    "trades": "TRADES",
    "ard": "ARD",
    "akd2": "AKD2",
    "iad1": "IAD-I",
    "iad1_down": "IAD-I-Down",
    "iad2": "IAD-II",
    "rslad": "RSLAD",
    "adaad": "AdaAD",
    "mtard": "MTARD",
    "mart": "MART",
    "adr": "ADR",
    "adaiad": "AdaIAD",
    "iad_rslad": "IAD on RSLAD",
    "iad_mtard": "IAD on MTARD",
}
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet"}
# the paper's table of each student
TABLES = {"cifar_resnet18": "table2", "cifar_wrn34_10": "table3", "cifar_preact_resnet18": "table4"}
# what a damaged file makes of the code that reads it
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError)


@dataclass
class Sections:
    """The parts of a page as they are made; one that cannot be made is named instead.

    Attributes:
        broken: what could not be shown, for people.
    """

    broken: list[str] = field(default_factory=list)

    def make(self, name: str, build: Callable[[], Html | None]) -> Html | None:
        """What `build` returns; None, and a line in `broken`, where the files do not allow it."""
        try:
            return build()
        except NothingToDrawError:
            return None
        except DAMAGED as error:
            self.broken.append(f"{name} cannot be shown: {type(error).__name__}: {error}")
            return None

    def figure(self, name: str, runs: list[Run], caption: object) -> Html | None:
        """One of the figures with its caption; None where the runs have no such numbers."""

        def drawn() -> Html:
            return tag("figure", Html(svg(name, runs)), tag("figcaption", caption))

        return self.make(f"figure {name}", drawn)


def mapping(value: object) -> Mapping[str, Any]:
    """A mapping out of a file; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def read(folder: Path, name: str) -> Mapping[str, Any]:
    """A JSON file of the folder that holds a mapping; empty where there is none."""
    return mapping(files.read_json(folder / name)) if (folder / name).is_file() else {}


def papers_numbers(settings: Mapping[str, Any]) -> tuple[str, Mapping[str, float]] | None:
    """Where the paper has this student, method, teacher and data, and its numbers; None where it does not."""
    data, student = mapping(settings.get("data")), mapping(settings.get("student"))
    objective = mapping(settings.get("objective")).get("name")
    table, method = TABLES.get(str(student.get("name"))), OBJECTIVES.get(str(objective))
    teacher = objective if objective in ("at", "trades") else short_teacher(settings.get("teacher"))
    if table is None or method is None or teacher is None:
        return None
    try:
        found = paper.numbers(table, data=data.get("name"), method=method, teacher=teacher)
    except ValueError:
        return None
    return f"Table {table.removeprefix('table')}, {method}, {str(teacher).upper()} teacher", found


def short_teacher(teacher: object) -> str | None:
    """`at` or `trades` for a teacher of that recipe, be it named by its short name or by its run folder."""
    if not isinstance(teacher, str):
        return None
    names = [teacher, *Path(teacher).parts]
    return next(
        (kind for kind in ("at", "trades") for n in names if n == kind or n.startswith(f"{kind}_")), None
    )


def bar(value: object) -> Html | None:
    """A thin bar of so many percent."""
    if not is_number(value):
        return None
    return tag(
        "span", tag("span", style=f"width:{min(100.0, max(0.0, float(str(value)))):.2f}%"), class_="bar"
    )
