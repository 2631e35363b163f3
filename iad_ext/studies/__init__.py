"""The paper's tables and figures as declared grids over the recipes: run, resumed, set beside the paper's numbers.

A study is a YAML file (recipes/studies/), its cells are runs of the recipes, its result is `study.json` and the tables
made of it. See docs/studies.md.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iad_ext import checkpoint, files, plots
from iad_ext.checkpoint import CheckpointError
from iad_ext.lines import titled
from iad_ext.report import write as write_page
from iad_ext.studies import results, runner, tables
from iad_ext.studies.grid import Cell, Choices, Grid, Relation, Study, expand, names, read
from iad_ext.studies.runner import Outcome, Runner

log = logging.getLogger(__name__)

DONE, FAILED, STOPPED = 0, 3, 5


@dataclass(frozen=True)
class Way:
    """How a study's cells are run.

    Attributes:
        jobs: at a time.
        devices: numbers of the GPUs to share out.
        shard: (number, of how many): this runner's share of the cells.
        budget: seconds until running cells are asked to save and end.
    """

    jobs: int = 1
    devices: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)
    budget: float | None = None


def announce(grid: Grid, say: Callable[[str], None] = print) -> None:
    """Say what a study is and what it can find."""
    study = grid.study
    where = f" ({study.table.replace('table', 'Table ')})" if study.table else ""
    say(titled("study", f"{study.name}: {study.title}{where}", column=11))
    say(titled("rows", f"{len(grid.lines)}, cells {len(grid.cells)} with their teachers", column=11))
    if any(cell.attacks for cell in grid.cells if cell.labels):
        points = results.power(grid)
        said = (
            "not known before the first run: nothing says how many test images there are; --data.limit-test does"
            if points is None
            else f"a comparison by the measure with the fewest images can detect about {points:.1f} points "
            "(80% power, 95% intervals; 15% of images apart, 0.3 points of spread over seeds assumed)"
        )
        say(titled("power", said, column=11))
    say(f"folder     {grid.folder}")


def listing(grid: Grid, way: Way | None = None) -> list[str]:
    """How far each cell is, a line a cell."""
    way = way or Way()
    return list(runner.listing(runner.shard_of(grid.cells, *way.shard)))


def check(grid: Grid) -> None:
    """See that no run in the study's folders is another's.

    Raises:
        ValueError: a run was begun with other settings.
    """
    runner.refuse_others(grid.cells)


def run(grid: Grid, way: Way | None = None, say: Callable[[str], None] = print) -> Outcome:
    """Run a study's cells, or this share of them."""
    way = way or Way()
    cells = runner.shard_of(grid.cells, *way.shard)
    return Runner(cells, jobs=way.jobs, devices=way.devices, budget=way.budget, say=say).run()


def report(grid: Grid) -> dict[str, Any]:
    """Write `study.json`, tables, figures and page of what is finished; returns what `study.json` holds.

    Raises:
        CheckpointError: the study's folder cannot be written, or another runner is writing it.
    """
    folder = grid.folder
    content = results.collect(grid)
    with checkpoint.locked(folder):
        try:
            files.write_json(folder / "study.json", content)
            files.write_text(folder / "table.md", tables.markdown(content))
            files.write_text(folder / "table.tex", tables.latex(content))
            files.write_text(folder / "table.csv", tables.comma_separated(content))
            _draw(grid, folder)
            _draw_relations(content, folder)
            write_page(folder)
        except OSError as error:
            raise CheckpointError(f"cannot write to the study's folder {folder}: {error}") from error
    return content


def _draw(grid: Grid, folder: Path) -> None:
    """The study's figures of each data set, of the first seed's runs where all of them are finished."""
    several = len({line.data for line in grid.lines}) > 1
    for data in dict.fromkeys(line.data for line in grid.lines):
        first = {line.row.label: line for line in grid.lines if line.data == data}
        for name, labels in grid.study.figures.items():
            lines = [first[label] for label in labels if label in first]
            if len(lines) < len(labels) or not all(runner.has_results(line.cells[0]) for line in lines):
                continue
            called = (f"{name}-{data}" if several else name).replace("/", "--")
            try:
                read = [plots.Run.read(line.cells[0], line.label) for line in lines]
                for suffix in ("png", "svg"):
                    plots.draw(name, read, folder / f"{called}.{suffix}")
            except plots.NothingToDrawError as error:
                log.warning("%s is not drawn: %s", called, error)


def _draw_relations(content: dict[str, Any], folder: Path) -> None:
    for relation in content["relations"]:
        name = relation["name"] + (f"-{relation['data']}" if len(content["settings"]["data"]) > 1 else "")
        try:
            for suffix in ("png", "svg"):
                plots.relation(relation, folder / f"{name.replace('/', '--')}.{suffix}")
        except plots.NothingToDrawError as error:
            log.warning("%s is not drawn: %s", name, error)


def shards_are_done(grid: Grid, say: Callable[[str], None] = print) -> bool:
    """Whether all cells of a study are finished, whoever ran them; where not, says why there is no table yet."""
    left = sum(not runner.is_finished(cell) for cell in grid.cells)
    if left:
        say(
            f"no table   {left} of {len(grid.cells)} cells are not finished; --report without --shard writes the "
            "tables of those that are"
        )
    return not left


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 when everything is done, 5 when somebody stopped it, 3 when a cell failed."""
    if any(outcome.stopped for outcome in outcomes):
        return STOPPED
    return FAILED if any(outcome.failed or outcome.left for outcome in outcomes) else DONE


__all__ = [
    "Cell",
    "Choices",
    "Grid",
    "Outcome",
    "Relation",
    "Study",
    "Way",
    "announce",
    "check",
    "exit_code",
    "expand",
    "listing",
    "names",
    "read",
    "report",
    "run",
    "shards_are_done",
]
