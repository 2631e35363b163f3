"""Networks that are measured together: read from run folders, with their names, their teachers and their β."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

from torch import nn

from iad_ext import objectives
from iad_ext import settings as settings_
from iad_ext.backbones import Loading, architecture_of, load_network, network_digest, num_classes_of
from iad_ext.export.record import run_folder_of
from iad_ext.files import read_json
from iad_ext.names import unknown
from iad_ext.plan import NAMED_TEACHERS

WHICH = ("best", "last")
HUB, LOCAL = ("hf-hub:", "hf_hub:"), "local-dir:"  # how sources begin that are no paths as they stand


@dataclass(frozen=True, eq=False, kw_only=True)
class Entrant:
    """One network and what its run folder says of it.

    Attributes:
        name: what it is called beside the others.
        source: what it was asked for as, for people.
        network: takes pixels in [0, 1].
        weights: SHA-256 of its weights.
        which: `best` or `last` of a run; None for what is no run folder.
        beta: β of the run's trust as Eq. 4 has it; None where it has none, or another.
        teacher: where the run's teacher came from; None where it has none or is no run.
        teacher_architecture: a bare checkpoint's, of that teacher.
        run: its run folder; None for what is none.
    """

    name: str
    source: str
    network: nn.Module
    weights: str
    which: str | None = None
    beta: float | None = None
    teacher: str | None = None
    teacher_architecture: str | None = None
    run: Path | None = None

    def facts(self) -> dict[str, Any]:
        """What stands beside results, as plain data."""
        return {
            "source": self.source,
            "of": self.which,
            "architecture": architecture_of(self.network),
            "num_classes": num_classes_of(self.network),
            "weights": self.weights,
            "beta": self.beta,
        }


def read_entrant(source: str, *, of: str = "best", **loading: Unpack[Loading]) -> Entrant:
    """Load a network and read what its run folder says of it.

    Args:
        source: anything that `load_network` takes by name.
        of: `best` or `last`, of a run folder.
        **loading: arguments of `load_network`.

    Raises:
        TypeError: as `load_network`.
        ValueError: as `load_network`; a run folder without that network, or whose files are broken.
        FileNotFoundError: nothing is there.
    """
    if of not in WHICH:
        raise ValueError(unknown("network of a run", of, WHICH))
    path = Path(source.removeprefix(LOCAL)).expanduser()
    run = run_folder_of(path)
    which = None
    if run is not None:
        which = of if path == run else path.name if path.name in WHICH else None
        if path == run and not (run / of).is_dir():
            raise ValueError(f"{source} has no {of}/; wait until it is written, or take the other of {WHICH}")
    network = load_network(str(run / of) if run is not None and path == run else source, **loading)
    found = Entrant(
        name=_name(path if run is None else run.absolute(), is_run=run is not None, source=source),
        source=source,
        network=network,
        weights=network_digest(network),
        which=which,
        run=run,
    )
    if run is None:
        return found
    settings = settings_.from_yaml((run / "settings.yaml").read_text(encoding="utf-8"))
    return replace(
        found,
        beta=_beta(settings),
        teacher=teacher_of(run, settings.teacher),
        teacher_architecture=settings.teacher_architecture,
    )


def loading_of(source: str, loading: Loading) -> Loading:
    """Those arguments of `load_network` that a source takes: of several networks only some are bare checkpoints."""
    if source.startswith(HUB):
        names = {"revision"}
    elif Path(source.removeprefix(LOCAL)).expanduser().is_file():
        names = {"architecture", "num_classes", "key", "model_args"}
    else:
        names = set()
    return cast(Loading, {name: value for name, value in loading.items() if name in names})


def _beta(settings: settings_.Settings) -> float | None:
    try:
        objective = objectives.build(
            settings.objective.name, **settings_.objective_arguments(settings.objective)
        )
    except (ValueError, TypeError):
        return None  # an objective of the user's own, which is not here
    return objective.trust_of.beta if objective.trust_of is not None and objective.reads_trust else None


def named_apart(entrants: Sequence[Entrant], names: Sequence[str] | None = None) -> list[Entrant]:
    """Give each its name: short, with the settings in its folder's name that others of that name do not share.

    Args:
        entrants: in order.
        names: one for each; None to make them.

    Raises:
        ValueError: another number of names than of networks, or a name given twice; a network asked for twice.
    """
    if names is not None and len(names) != len(entrants):
        raise ValueError(f"expected {len(entrants)} names, one a network, got {len(names)}")
    given = list(names) if names is not None else _told_apart(entrants)
    twice = [name for name, times in Counter(given).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice; each network once, and each with a name of its own")
    return [replace(each, name=name) for each, name in zip(entrants, given, strict=True)]


def read_teachers(
    entrants: Sequence[Entrant], asked: str | None = None, **loading: Unpack[Loading]
) -> tuple[list[Entrant], dict[str, str], list[str]]:
    """Load the teachers of some networks, each once.

    Args:
        entrants: the students, named.
        asked: a teacher for all of them, in place of those that their runs name.
        **loading: arguments of `load_network` for that one.

    Returns:
        The teachers that are not among the students, by student's name the name of its teacher, and of each that
        cannot be had a sentence that says why.

    Raises:
        ValueError: the teacher that was asked for cannot be loaded; `FileNotFoundError` where it is not there.
    """
    by_weights = {each.weights: each.name for each in entrants}
    loaded: dict[tuple[str, str | None], Entrant] = {}
    teachers: list[Entrant] = []
    of_student: dict[str, str] = {}
    missing: list[str] = []
    for student in entrants:
        source, architecture = (student.teacher, student.teacher_architecture)
        own: Loading = {}
        if asked is not None:
            source, architecture, own = asked, loading.get("architecture"), loading
        if source is None:
            continue
        key = (source if asked is not None else _found_from(source, student.run), architecture)
        if key not in loaded:
            if asked is None and architecture is not None:
                own = {"architecture": architecture, "num_classes": num_classes_of(student.network)}
            try:
                loaded[key] = read_entrant(key[0], **own)
            except (ValueError, TypeError, OSError) as error:
                if asked is not None:
                    raise
                missing.append(f"the teacher of {student.name}, {source}, cannot be loaded: {error}")
                continue
        teacher = loaded[key]
        if teacher.weights not in by_weights:
            taken = set(by_weights.values())
            name = teacher.name if teacher.name not in taken else f"teacher {teacher.source}"
            by_weights[teacher.weights] = name
            # as its student's run spelled it, not where that is on this machine
            teachers.append(replace(teacher, name=name, source=source))
        if by_weights[teacher.weights] != student.name:  # the teacher that was asked for may be among them
            of_student[student.name] = by_weights[teacher.weights]
    return teachers, of_student, missing


def _name(path: Path, *, is_run: bool, source: str) -> str:
    """Short: RECIPE-TEACHER/seedS of a run folder, without a study's settings behind the comma; else the last part."""
    if is_run:
        return f"{path.parent.name.partition(',')[0]}/{path.name}"
    return path.stem if path.is_file() else path.resolve().name if path.exists() else source


def _told_apart(entrants: Sequence[Entrant]) -> list[str]:
    """Short names; behind one that several have, the settings of its study's cell that not all of them share."""
    names = []
    for each in entrants:
        alike = [_cell(other) for other in entrants if other.name == each.name]
        own = [part for part in _cell(each) if not all(part in cell for cell in alike)]
        names.append(",".join([each.name, *own]))
    times = Counter(names)
    return [name if times[name] == 1 else each.source for name, each in zip(names, entrants, strict=True)]


def _cell(entrant: Entrant) -> list[str]:
    """The settings in the name of a study's cell: RECIPE,NAME=VALUE,…/seedS."""
    return [] if entrant.run is None else entrant.run.absolute().parent.name.split(",")[1:]


def teacher_of(run: Path, asked: str | None, role: str = "teacher") -> str | None:
    """Where the run found its teacher; `at` and its like are names of recipes, not places.

    Args:
        run: its folder.
        asked: what its settings say of the teacher.
        role: `teacher` or `natural_teacher`.
    """
    source = written_of_teacher(run, role).get("source")
    if isinstance(source, str):
        return source
    return None if asked in NAMED_TEACHERS else asked


def written_of_teacher(run: Path, role: str) -> Mapping[str, Any]:
    """What a run wrote down of its teacher when it began: `source`, `digest` and others; empty for nothing.

    Raises:
        OSError: the run has no `environment.json` that can be read.
        ValueError: it is no JSON.
    """
    environment = read_json(run / "environment.json")
    teachers = environment.get("teachers") if isinstance(environment, Mapping) else None
    found = teachers.get(role) if isinstance(teachers, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _found_from(source: str, run: Path | None) -> str:
    """A relative place as seen from where the run was started, which is some folder above it."""
    if run is None or Path(source).is_absolute() or Path(source).exists():
        return source
    above = (str(folder / source) for folder in run.absolute().parents if (folder / source).exists())
    return next(above, source)
