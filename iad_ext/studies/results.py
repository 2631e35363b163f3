"""What a study's run folders say: means and spreads, paired differences, and which claims hold.

The result is `study.json`; see docs/studies.md for its entries.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from iad_ext import checkpoint, files, paper, provenance, spelling, statistics
from iad_ext.evaluation import TITLES, images
from iad_ext.report.reading import COSTS, is_known
from iad_ext.statistics import Difference, Flags, Spread
from iad_ext.studies import relations
from iad_ext.studies.grid import MEASURES, Claim, Grid, Line
from iad_ext.studies.runner import environment_of, measured_otherwise

CHECKPOINTS = ("best", "last")
OWN_SPREAD = 3  # seeds that two rows have in common from which on these tell how far their difference moves
HOLDS, FAILS, OPEN = "holds", "fails", "cannot be told"
NAMES = {**TITLES, **COSTS}
# images of the test sets, to say what a study can find before it begins
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "tiny-imagenet": 10_000, "digits": 359}


@dataclass(frozen=True)
class Run:
    """What a finished run folder holds."""

    folder: Path
    results: dict[str, Any]

    def value(self, checkpoint_: str, measure: str) -> float | None:
        """A measure of a checkpoint; None where it was not taken."""
        if measure in COSTS:
            values = self.costs(measure)
            return None if not values else max(values) if measure == "gpu_mib" else float(np.median(values))
        found = self.results.get(checkpoint_, {}).get(measure)
        return None if found is None else float(found)

    def costs(self, measure: str) -> list[float]:
        """Seconds or MiB by epoch, without the first, which pays for warming up where there are others."""
        name = {"seconds_per_epoch": "time/epoch_s", "gpu_mib": "memory/peak_mib"}[measure]
        values = [float(line[name]) for line in checkpoint.read_lines(self.folder / "metrics.jsonl")]
        return values[1:] or values

    def n(self, checkpoint_: str, measure: str) -> int:
        """On how many images."""
        return images(self.results[checkpoint_], measure)

    def flags(self, checkpoint_: str, measure: str) -> Flags | None:
        """Which images the network got right."""
        return _flags(self.folder).get(f"{checkpoint_}/{measure}")

    def course(self, figure: str) -> list[float]:
        """A figure of `metrics.jsonl` by epoch, as far as it was logged."""
        lines = checkpoint.read_lines(self.folder / "metrics.jsonl")
        return [float(line[figure]) for line in lines if line.get(figure) is not None]

    @property
    def tested_on(self) -> str:
        """What tells its test images from others."""
        return str(self.results["data"]["digest"]["test"])


@lru_cache(maxsize=4096)
def _flags(folder: Path) -> dict[str, Flags]:
    try:
        found: dict[str, Any] = load_file(folder / "robust.safetensors")
    except (OSError, SafetensorError):
        return {}
    return {name: flags.astype(bool) for name, flags in found.items()}


def _runs_of(line: Line, left_out: Set[Path]) -> list[Run]:
    found = []
    for folder in line.cells:
        if folder in left_out:
            continue
        try:
            found.append(Run(folder, files.read_json(folder / "results.json")))
        except (OSError, ValueError):
            continue  # not finished yet
    return found


def collect(grid: Grid) -> dict[str, Any]:
    """Read every finished run of a study into what `study.json` holds."""
    _flags.cache_clear()
    return _Collector(grid).study()


class _Collector:
    def __init__(self, grid: Grid) -> None:
        self.grid, self.study_ = grid, grid.study
        self.left_out = {cell.folder for cell in grid.cells if measured_otherwise(cell)}
        self.runs = {line.label: _runs_of(line, self.left_out) for line in grid.lines}
        self.spreads: dict[tuple[str, str, str, str], Spread] = {}

    def study(self) -> dict[str, Any]:
        comparisons = list(self._comparisons())
        rows = [self._row(line) for line in self.grid.lines]
        study = self.study_
        return {
            "name": study.name,
            "title": study.title,
            "paper": {
                "table": study.table,
                "source": "{authors}, {title}, {venue}".format(**paper.source()),
            },
            "note": study.note,
            "settings": self._settings(),
            "measures": list(study.measures),
            "rows": rows,
            "comparisons": comparisons,
            "claims": [
                self._claim(claim, comparisons, data) for data in self._data() for claim in study.claims
            ],
            "figures": {name: list(labels) for name, labels in study.figures.items()},
            "relations": relations.collect(self.grid, self.left_out),
            "provenance": self._provenance(),
        }

    def _data(self) -> list[str]:
        return list(dict.fromkeys(line.data for line in self.grid.lines))

    def _settings(self) -> dict[str, Any]:
        choices = self.grid.choices
        return {
            "data": self._data(),
            "seeds": sorted({cell.settings.train.seed for cell in self.grid.cells if cell.labels}),
            "epochs_fraction": choices.epochs,
            "images_fraction": choices.images,
            "overrides": {
                where: {role: list(spelling.arguments(values)) for role, values in said.items() if values}
                for where, said in (("study", self.study_.settings), ("command_line", choices.settings))
            },
            "detectable_points": self._detectable(),
        }

    def _detectable(self) -> float | None:
        measured = {label: least for label, runs in self.runs.items() if (least := _fewest(runs)) is not None}
        found = power(self.grid, measured)
        return None if found is None else round(found, 2)

    # ------------------------------------------------------------------------------------------ rows

    def _row(self, line: Line) -> dict[str, Any]:
        runs = self.runs[line.label]
        return {
            "label": line.label,
            "group": line.row.group,
            "data": line.data,
            "teacher": line.row.teacher,
            "method": line.row.method,
            "against": line.against,
            "checkpoints": {which: self._measured(runs, which) for which in CHECKPOINTS},
            "paper": dict(line.paper),
            "runs": [os.path.relpath(folder, self.grid.folder) for folder in line.cells],
            "finished": len(runs),
            "masking": sorted(
                {
                    f"{flag['flag']} ({flag['attack']})"
                    for run in runs
                    for which in CHECKPOINTS
                    for flag in run.results.get(which, {}).get("flags", ())
                }
            ),
        }

    def _measured(self, runs: Sequence[Run], which: str) -> dict[str, Any]:
        found = {}
        for measure in self.study_.measures:
            values = [value for run in runs if (value := run.value(which, measure)) is not None]
            if values:
                mean, std = statistics.mean_and_std(values)
                n = (
                    None
                    if measure in COSTS
                    else min(run.n(which, measure) for run in runs if which in run.results)
                )
                found[measure] = {"mean": mean, "std": std, "values": values, "n": n}
        return found

    # ------------------------------------------------------------------------------------------ comparisons

    def _comparisons(self) -> Iterator[dict[str, Any]]:
        """Every pair of rows by each measure, best and last."""
        for a, b in self._pairs():
            for measure in self.study_.measures:
                for which in CHECKPOINTS:
                    if (made := self._compared(a, b, measure, which)) is not None:
                        yield made

    def _pairs(self) -> list[tuple[str, str]]:
        """Every row with the one that it is set against, and every claim's two."""
        pairs = [(line.label, line.against) for line in self.grid.lines if line.against]
        for data in self._data():
            suffix = self._suffix(data)
            pairs += [(claim.a + suffix, claim.b + suffix) for claim in self.study_.claims if claim.b]
        return [(a, b) for a, b in dict.fromkeys(pairs) if a in self.runs and b in self.runs]

    def _suffix(self, data: str) -> str:
        return f", {data}" if len(self._data()) > 1 else ""

    def _compared(self, a: str, b: str, measure: str, which: str) -> dict[str, Any] | None:
        if measure in COSTS:
            return self._compared_costs(a, b, measure) if which == "last" else None
        one, other = self._flags(a, measure, which), self._flags(b, measure, which)
        if not one or not other:
            return None
        data = self._data_of(a)
        paired = bool(one.keys() & other.keys())
        if not paired:
            pair = _first_images(list(one.values()), list(other.values()))
            spread = self._spread(data, measure, which)
        elif len((pair := _of_same_seeds(one, other))[0]) >= OWN_SPREAD:
            spread = statistics.spread_of_differences([pair])
        else:
            spread = self._spread_of_pairs(data, measure, which)
        made: Difference = statistics.paired_difference(*pair, spread=spread, same_seeds=paired)
        return {
            "a": a,
            "b": b,
            "data": data,
            "measure": measure,
            "checkpoint": which,
            "difference": made.difference,
            "low": made.low,
            "high": made.high,
            "seeds": made.seeds,
            "n": made.n,
            "mcnemar_p": made.mcnemar_p,
            "seed_spread": made.seed_spread,
            "paired_seeds": paired,
            "verdict": made.verdict,
        }

    def _compared_costs(self, a: str, b: str, measure: str) -> dict[str, Any] | None:
        """Costs have no images: their epochs are the sample."""
        one, other = ([value for run in self.runs[label] for value in run.costs(measure)] for label in (a, b))
        if len(one) < 2 or len(other) < 2:
            return None
        difference, low, high = statistics.difference_of_means(one, other)
        verdict = "higher" if low > 0 else "lower" if high < 0 else "tie"
        return {
            "a": a,
            "b": b,
            "data": self._data_of(a),
            "measure": measure,
            "checkpoint": "last",
            "difference": difference,
            "low": low,
            "high": high,
            "seeds": min(len(self.runs[a]), len(self.runs[b])),
            "n": min(len(one), len(other)),
            "mcnemar_p": None,
            "seed_spread": None,
            "paired_seeds": False,
            "verdict": verdict,
        }

    def _flags(self, label: str, measure: str, which: str) -> dict[str, Flags]:
        """Of each run that is finished, by its seed."""
        runs = self.runs[label]
        known = next((run.tested_on for runs in self.runs.values() for run in runs), None)
        data = self._data_of(label)
        first = next(
            (run.tested_on for line in self.grid.lines if line.data == data for run in self.runs[line.label]),
            known,
        )
        # pairs are of the same images: a run on another copy of them is left out
        found = {run.folder.name: run.flags(which, measure) for run in runs if run.tested_on == first}
        return {seed: flags for seed, flags in found.items() if flags is not None}

    def _spread_of_pairs(self, data: str, measure: str, which: str) -> Spread:
        """Of the differences of all pairs of rows that the study compares, over the seeds that a pair shares."""
        key = (data, measure, which, "pairs")
        if key not in self.spreads:
            # the same runs count once, whichever way round a row and a claim have them, and by whatever labels
            runs = {line.label: line.cells for line in self.grid.lines}
            apart = {frozenset((runs[a], runs[b])): (a, b) for a, b in self._pairs() if runs[a] != runs[b]}
            pairs = [
                _of_same_seeds(self._flags(a, measure, which), self._flags(b, measure, which))
                for a, b in apart.values()
                if self._data_of(a) == data
            ]
            self.spreads[key] = statistics.spread_of_differences(pairs)
        return self.spreads[key]

    def _data_of(self, label: str) -> str:
        return next(line.data for line in self.grid.lines if line.label == label)

    def _spread(self, data: str, measure: str, which: str) -> Spread:
        """Of the accuracies of all rows."""
        key = (data, measure, which, "rows")
        if key not in self.spreads:
            rows: dict[tuple[Path, ...], list[Flags]] = {}
            for line in self.grid.lines:
                if line.data == data:
                    flags = list(self._flags(line.label, measure, which).values())
                    n = min(map(len, flags), default=0)
                    rows[line.cells] = [one[:n] for one in flags]
            self.spreads[key] = statistics.spread_over_seeds(list(rows.values()))
        return self.spreads[key]

    # ------------------------------------------------------------------------------------------ claims

    def _claim(self, claim: Claim, comparisons: Sequence[dict[str, Any]], data: str) -> dict[str, Any]:
        suffix = self._suffix(data)
        a, b = claim.a + suffix, None if claim.b is None else claim.b + suffix
        which = "last" if claim.measure in COSTS else claim.checkpoint
        wanted = (a, b, claim.measure, which)
        made = next(
            (one for one in comparisons if (one["a"], one["b"], one["measure"], one["checkpoint"]) == wanted),
            None,
        )
        verdict, why = self._trend(claim, a) if b is None else judged(claim, made)
        return {
            "claim": claim.claim,
            "data": data,
            "a": a,
            "b": b,
            "measure": claim.measure,
            "expect": claim.expect,
            "verdict": verdict,
            "why": why,
        }

    def _trend(self, claim: Claim, label: str) -> tuple[str, str]:
        """How a figure of the row's runs changes from the first epoch to the last; seeds are the sample."""
        courses = [run.course(claim.measure) for run in self.runs.get(label, ())]
        ends = [(course[0], course[-1]) for course in courses if len(course) > 1]
        if not ends:
            return OPEN, "its runs are not finished, or have one epoch"
        first, last = (statistics.mean_and_std(values)[0] for values in zip(*ends, strict=True))
        said = (
            f"{relations.title(claim.measure)}: from {first:.2f} in the first epoch to {last:.2f} in the last"
        )
        if len(ends) == 1:
            return OPEN, f"{said}; of one seed, so that nothing is known of other seeds: --seeds 0,1,2"
        change, low, high = statistics.mean_with_interval([after - before for before, after in ends])
        said += f"; {change:+.2f}, 95% interval {low:+.2f} to {high:+.2f} ({len(ends)} seeds)"
        return judged_interval(claim, low, high, said)

    def _provenance(self) -> dict[str, Any]:
        environments = environment_of([run.folder for runs in self.runs.values() for run in runs])

        def every(pick: Callable[[Any], Any]) -> list[Any]:
            return sorted({str(pick(one)) for one in environments})

        return {
            "time": provenance.now(),
            "commits": every(lambda one: one.get("commit")),
            "hardware": every(lambda one: (one["hardware"]["gpus"] or [one["hardware"]["cpu"]])[0]),
            "precision": every(lambda one: one["precision"]["kind"]),
            "versions": _versions(environments),
            "data_notes": [
                note for note in every(lambda one: one["data"].get("encoding_note") or "") if note
            ],
            "selection": sorted(
                {str(run.results["selection"]) for runs in self.runs.values() for run in runs}
            ),
            "runs": sum(len(runs) for runs in self.runs.values()),
            "runs_wanted": sum(len(line.cells) for line in self.grid.lines),
            "measured_otherwise": len(
                {folder for line in self.grid.lines for folder in line.cells} & self.left_out
            ),
        }


def _versions(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of each package, what the runs had; several where they differ."""
    names = dict.fromkeys(name for one in environments for name in one["versions"])
    return {
        name: ", ".join(sorted({one["versions"][name] for one in environments if name in one["versions"]}))
        for name in names
    }


def _of_same_seeds(one: Mapping[str, Flags], other: Mapping[str, Flags]) -> tuple[list[Flags], list[Flags]]:
    """The flags of the runs of two rows whose seeds both have, in the order of the seeds."""
    shared = sorted(one.keys() & other.keys())
    return _first_images([one[seed] for seed in shared], [other[seed] for seed in shared])


def _first_images(one: list[Flags], other: list[Flags]) -> tuple[list[Flags], list[Flags]]:
    """As many images of each run as the shortest has, which are the first of one test set."""
    n = min((len(flags) for flags in (*one, *other)), default=0)
    return [flags[:n] for flags in one], [flags[:n] for flags in other]


def judged(claim: Claim, comparison: dict[str, Any] | None) -> tuple[str, str]:
    """Whether a claim holds, fails, or cannot be told, and why."""
    if comparison is None:
        return OPEN, "its runs are not finished, or were not measured by this"
    said = described(comparison)
    low, high = comparison["low"], comparison["high"]
    if not is_known(comparison):
        return OPEN, f"{said}; of one seed each, so that nothing is known of other seeds: --seeds 0,1,2"
    return judged_interval(claim, low, high, said)


def judged_interval(claim: Claim, low: float, high: float, said: str) -> tuple[str, str]:
    """Whether an interval of a difference bears a claim out."""
    if claim.expect == "close":
        if -claim.within < low and high < claim.within:
            return HOLDS, f"{said}; all of it within ±{claim.within:g}"
        if low > claim.within or high < -claim.within:
            return FAILS, f"{said}; all of it outside ±{claim.within:g}"
        return OPEN, f"{said}; part of it outside ±{claim.within:g}"
    if claim.expect == "less":
        low, high = -high, -low
    if low > claim.by:
        return HOLDS, said
    if high < claim.by:
        return FAILS, said
    least = f"less than {claim.by:g} points" if claim.by else "no difference"
    return OPEN, f"{said}; {least} could be one too"


def described(comparison: dict[str, Any]) -> str:
    """A difference in words."""
    unit = {"seconds_per_epoch": "seconds", "gpu_mib": "MiB"}.get(comparison["measure"], "points")
    of = "epochs" if comparison["measure"] in COSTS else "images"
    seeds = f"{comparison['seeds']} seed{'s' if comparison['seeds'] > 1 else ''}"
    return (
        f"{comparison['difference']:+.2f} {unit} of {NAMES[comparison['measure']]}, 95% interval "
        f"{comparison['low']:+.2f} to {comparison['high']:+.2f} ({seeds}, {comparison['n']} {of})"
    )


def _fewest(runs: Sequence[Run]) -> int | None:
    """The images of the rarest measure that runs were taken by; None before any is finished."""
    sizes = [
        run.n(which, measure)
        for run in runs
        for which in CHECKPOINTS
        for measure in MEASURES
        if measure in run.results.get(which, {})
    ]
    return min(sizes, default=None)


def power(grid: Grid, measured: Mapping[str, int] | None = None) -> float | None:
    """About how many points a comparison of this study must be apart to be told, by its rarest measure.

    Args:
        grid: the study.
        measured: by a line's label, the images of its finished runs; of a data set of one's own nothing else says how
            many there are.

    Returns:
        None where a data set's size is not known, nor limited.
    """
    sizes, seeds = [], []
    for line in grid.lines:
        cell = next(cell for cell in grid.cells if cell.folder == line.cells[0])
        evaluation, data = cell.settings.eval, cell.settings.data
        whole = TEST_IMAGES.get(data.name, (measured or {}).get(line.label))
        limits = [whole, data.limit_test, evaluation.limit]
        if "aa" in cell.attacks:
            limits.append(evaluation.aa_limit)
        if not (known := [limit for limit in limits if limit is not None]):
            return None
        sizes.append(min(known))
        seeds.append(len(line.cells))
    return statistics.detectable(min(sizes), min(seeds))
