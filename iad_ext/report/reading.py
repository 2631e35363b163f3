"""What report pages read, and how they go on where something cannot be read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from iad_ext import files
from iad_ext.plan import NAMED_TEACHERS
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
# what every run measures as it trains and is no accuracy
COSTS = {"seconds_per_epoch": "seconds an epoch", "gpu_mib": "memory, MiB"}
# what figures are called under them, and what they show
CAPTIONS = {
    "figure1a": ("Figure 1a. ", "How far the teacher can be trusted on what attacks this student."),
    "figure2b": ("Figure 2b. ", "The paper's three cases; its “wrong” is the last two together."),
    "figure3": ("Figure 3. ", "Student, teacher, and both combined by α, on x̃ of the training images."),
    "figure3c": ("Figure 3, right. ", "Validation PGD-10 accuracy by epoch."),
    "figure4": ("Figure 4. ", "What other β would have made of the teacher's last probabilities."),
    "trust": ("Trust. ", "The histogram of P_T(x̃|y)^β, in the first epoch and in the last."),
    "learning": ("", "The student by epoch. The checkpoint called best is marked."),
    "losses": ("", "The loss and its weighted terms, mean over the training images."),
    "radius": ("", "Robust accuracy by radius: of a sound network it falls to about zero."),
}
# what a damaged file makes of the code that reads it
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError)

Made = TypeVar("Made")


@dataclass
class Sections:
    """The parts of a page as they are made; one that cannot be made is named instead.

    Attributes:
        broken: what could not be shown, for people.
    """

    broken: list[str] = field(default_factory=list)

    def make(self, name: str, build: Callable[[], Made | None]) -> Made | None:
        """What `build` returns; None, and a line in `broken`, where the files do not allow it."""
        try:
            return build()
        except NothingToDrawError:
            return None
        except DAMAGED as error:
            self.broken.append(f"{name} cannot be shown: {type(error).__name__}: {error}")
            return None

    def figure(
        self, name: str, runs: Sequence[Run], more: object = "", *, caption: object = None, mark: str = ""
    ) -> Html | None:
        """One of the figures; None where the runs have no such numbers.

        Args:
            name: such as `figure1a`.
            runs: what it is drawn from.
            more: what the caption says after its usual words.
            caption: instead of all of them.
            mark: what tells it from others of this name on the page.
        """

        def drawn() -> Html:
            called, words = CAPTIONS.get(name, ("", ""))
            said = [tag("b", called) if called else "", words, " " if more else "", more]
            return tag("figure", Html(svg(name, runs, mark=mark)), tag("figcaption", caption or said))

        return self.make(f"figure {name}", drawn)


def is_known(comparison: Mapping[str, Any]) -> bool:
    """Whether a difference of a study was held against the spread over seeds; the sample of a cost is its epochs."""
    return comparison.get("measure") in COSTS or comparison.get("seed_spread") is not None


def mapping(value: object) -> Mapping[str, Any]:
    """A mapping out of a file; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def read(folder: Path, name: str) -> Mapping[str, Any]:
    """A JSON file of the folder that holds a mapping; empty where there is none."""
    return mapping(files.read_json(folder / name)) if (folder / name).is_file() else {}


def recipe_of_teacher(teacher: object) -> str | None:
    """A teacher's recipe, with what a study's cell changes of it behind a comma: `at_resnet18,epochs=6`.

    Of a short name, that name; None for what is no run folder: anybody's folder may begin like a recipe.
    """
    if not isinstance(teacher, str):
        return None
    if teacher in NAMED_TEACHERS:
        return teacher
    path = Path(teacher)
    run = path.parent if path.name in ("best", "last") else path
    return run.parent.name if run.name.startswith("seed") else None


def short_teacher(teacher: object) -> str | None:
    """`at` or `trades` for a teacher of that recipe, be it named by its short name or by its run folder."""
    method = (recipe_of_teacher(teacher) or "").partition("_")[0]
    return method if method in ("at", "trades") else None


def bar(value: object) -> Html | None:
    """A thin bar of so many percent."""
    if not is_number(value):
        return None
    return tag(
        "span", tag("span", style=f"width:{min(100.0, max(0.0, float(str(value)))):.2f}%"), class_="bar"
    )
