"""One quantity of a study's rows against another: points, and rank correlations that say how few they are."""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from iad_ext import checkpoint, files, statistics
from iad_ext.evaluation import TITLES
from iad_ext.report.reading import OBJECTIVES
from iad_ext.studies.grid import OF_TEACHER, Grid, Line, Relation

# quantities of `metrics.jsonl`, as a table's head and a figure's axis call them
TITLES_OF_FIGURES = {
    "teacher/acc_nat": "teacher on x, %",
    "teacher/acc_on_student_adv": "teacher on the student's attacks, %",
    "teacher/entropy_on_student_adv": "teacher's entropy on the student's attacks, nats",
    "cases/reliable": "images with a reliable teacher, %",
    "cases/unreliable": "images with an unreliable teacher, %",
    "cases/wrong": "images that the teacher gets wrong, %",
}


def collect(grid: Grid, left_out: Set[Path] = frozenset()) -> list[dict[str, Any]]:
    """What the finished runs, but for those `left_out`, say of each of the study's relations, a data set at a time."""
    data = list(dict.fromkeys(line.data for line in grid.lines))
    return [_related(grid, relation, name, left_out) for name in data for relation in grid.study.relations]


def _related(grid: Grid, relation: Relation, data: str, left_out: Set[Path]) -> dict[str, Any]:
    points = list(_points(grid, relation, data, left_out))
    if relation.by == "group":
        found = [{"method": None, **_correlated("all rows", points)}] if points else []
    else:
        methods = dict.fromkeys(point["method"] for point in points)
        found = [
            {"method": method, **_correlated(_called(method), [p for p in points if p["method"] == method])}
            for method in methods
        ]
    return {
        "name": relation.name,
        "data": data,
        "x": relation.x,
        "y": relation.y,
        "x_title": title(relation.x),
        "y_title": title(relation.y),
        "checkpoint": relation.checkpoint,
        "by": relation.by,
        "points": points,
        "correlations": found,
    }


def _correlated(called: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    held = statistics.rank_correlation([p["x"] for p in points], [p["y"] for p in points])
    known = {name: getattr(held, name, None) for name in ("rho", "p", "least")}
    return {"called": called, "n": len(points), **known}


def _called(method: str) -> str:
    return OBJECTIVES.get(method, method)


def title(quantity: str) -> str:
    """A quantity as people call it, with its unit."""
    if quantity.startswith(OF_TEACHER):
        return f"teacher's {title(quantity.removeprefix(OF_TEACHER))}"
    return TITLES_OF_FIGURES.get(quantity, f"{TITLES[quantity]}, %" if quantity in TITLES else quantity)


def _points(grid: Grid, relation: Relation, data: str, left_out: Set[Path]) -> Iterator[dict[str, Any]]:
    """A point a row: means over its runs that have both quantities."""
    teachers = {cell.folder: cell.settings.teacher for cell in grid.cells}
    for line in grid.lines:
        if line.data != data:
            continue
        pairs = []
        for folder in line.cells:
            teacher = teachers[folder]
            by_teacher = any(q.startswith(OF_TEACHER) for q in (relation.x, relation.y))
            if folder in left_out or (by_teacher and teacher is not None and Path(teacher) in left_out):
                continue
            x, y = (_value(folder, teacher, q, relation.checkpoint) for q in (relation.x, relation.y))
            if x is not None and y is not None:
                pairs.append((x, y))
        if pairs and _is_of_a_student(line, relation):
            x, y = (statistics.mean_and_std(values)[0] for values in zip(*pairs, strict=True))
            yield {
                "label": line.label,
                "group": line.row.group,
                "method": line.row.method,
                "teacher": line.row.teacher,
                "x": x,
                "y": y,
                "seeds": len(pairs),
            }


def _is_of_a_student(line: Line, relation: Relation) -> bool:
    """Rows without a teacher are points only where nothing of a teacher is asked."""
    asked = any(q.startswith((OF_TEACHER, "teacher/")) for q in (relation.x, relation.y))
    return line.row.teacher is not None or not asked


def _value(folder: Path, teacher: str | None, quantity: str, which: str) -> float | None:
    """A quantity of a run: of its results, of its teacher's, or of the epoch that the checkpoint is of."""
    if quantity.startswith(OF_TEACHER):
        return None if teacher is None else _measured(Path(teacher), quantity.removeprefix(OF_TEACHER), which)
    return _logged(folder, quantity, which) if "/" in quantity else _measured(folder, quantity, which)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found: Any = files.read_json(file)
    except (OSError, ValueError):
        return {}  # not finished yet
    return found if isinstance(found, Mapping) else {}


def _measured(folder: Path, measure: str, which: str) -> float | None:
    value = _read(folder / "results.json").get(which, {}).get(measure)
    return None if value is None else float(value)


def _logged(folder: Path, figure: str, which: str) -> float | None:
    epoch, file = _read(folder / "results.json").get("epochs", {}).get(which), folder / "metrics.jsonl"
    if epoch is None or not file.is_file():
        return None
    lines = checkpoint.read_lines(file)
    value = next((line.get(figure) for line in lines if line.get("epoch") == epoch), None)
    return None if value is None else float(value)


def described(found: Mapping[str, Any]) -> str:
    """A rank correlation in words, with what so few points could tell at all."""
    n = f"n = {found['n']} row{'' if found['n'] == 1 else 's'}"
    if found["rho"] is None:
        return f"{found['called']}: no rank correlation of {n}"
    reach = (
        f"only from |ρ| = {found['least']:.2f} on would so few be told from chance"
        if found["least"] is not None
        else "so few cannot be told from chance whatever ρ is"
    )
    return f"{found['called']}: Spearman's ρ = {found['rho']:+.2f}, {n}, p = {found['p']:.2g}; {reach}"
