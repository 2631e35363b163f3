"""Figures from results, readable in print and by colour-blind readers. The only home of matplotlib.

`FIGURES` are drawn from run folders alone, in the form of the paper's.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from iad_ext import files
from iad_ext.checkpoint import read_lines
from iad_ext.diagnostics import HISTOGRAM, TRUST_EDGES
from iad_ext.evaluation import images
from iad_ext.names import unknown
from iad_ext.units import parse_fraction, show_fraction

# Okabe & Ito's palette, and a marker each, so that a figure survives a black-and-white printer
MEASURES = {
    "natural": ("natural", "#000000", "o"),
    "fgsm": ("FGSM", "#56B4E9", "^"),
    "fgsm_plain": ("FGSM, no random start", "#E69F00", "P"),
    "pgd10": ("PGD-10", "#CC79A7", "v"),
    "pgd20": ("PGD-20", "#0072B2", "s"),
    "cw_inf": ("CW∞", "#009E73", "D"),
    "aa": ("AutoAttack", "#D55E00", "*"),
}


def comparison(
    results: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    path: Path,
    examples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draw each network's accuracies with their 95% intervals, and example images under them.

    Args:
        results: by the network's name, what `evaluate` returned.
        title: one line above the figure.
        path: where to write; the suffix says the format. A `.png` and an `.svg` are the usual two.
        examples: rows of images as `{"label": str, "images": (n, C, H, W) in [0, 1], "captions": [str] * n}`.
    """
    with mpl.rc_context(
        {
            "font.size": 10,
            "svg.fonttype": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.parse_math": False,  # a name may hold a $
        }
    ):
        heights = [1.0 + 0.42 * len(results), 0.4 + 1.05 * len(examples)]
        figure = Figure(figsize=(8, sum(heights) if examples else heights[0]), layout="constrained")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        if examples:
            above, below = np.asarray(figure.subfigures(2, 1, height_ratios=heights), dtype=object)
            _accuracies(above.subplots(), results)
            _examples(below, examples)
        else:
            _accuracies(figure.subplots(), results)
        figure.savefig(path, dpi=150)


def _accuracies(axes: Axes, results: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(results)
    measures = [key for key in MEASURES if any(key in result for result in results.values())]
    # marks of one network stand a little apart, so that their intervals can be told from each other
    offsets = np.linspace(-0.24, 0.24, len(measures)) if len(measures) > 1 else [0.0]
    for measure, offset in zip(measures, offsets, strict=True):
        label, colour, marker = MEASURES[measure]
        counts = {images(result, measure) for result in results.values() if measure in result}
        label += f", n={counts.pop()}" if len(counts) == 1 else ""
        rows = [(row + offset, results[name]) for row, name in enumerate(names) if measure in results[name]]
        values = np.array([result[measure] for _, result in rows])
        bounds = np.array([result["interval"][measure] for _, result in rows]).T
        spread = np.abs(bounds - values)
        axes.errorbar(
            values,
            [y for y, _ in rows],
            xerr=spread,
            fmt=marker,
            color=colour,
            markersize=8 if marker == "*" else 5.5,
            elinewidth=1,
            alpha=0.95,
            label=label,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy, % (bars: 95% interval over the test images)")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(
        ncols=min(len(measures), 5),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
        handletextpad=0.1,
    )


def _examples(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = len(rows[0]["captions"])
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, image, caption in zip(axes_row, row["images"], row["captions"], strict=True):
            axes.imshow(_picture(image), interpolation="nearest", vmin=0, vmax=1)
            axes.set_title(caption, fontsize=8, pad=2)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(row["label"], rotation=0, ha="right", va="center", fontsize=9)


def _picture(image: Tensor) -> Any:
    return image.detach().cpu().permute(1, 2, 0).numpy()


# ---------------------------------------------------------------------------------------------- figures of runs

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
MARKS = (
    (BLACK, "o", "-"),
    (VERMILION, "s", "--"),
    (BLUE, "^", "-."),
    (GREEN, "D", ":"),
    (PURPLE, "v", "-"),
    (ORANGE, "P", "--"),
    (SKY, "X", "-."),
)
BETAS = (0.01, 0.1, 0.5, 1.0)  # those of the paper's Figure 4 that can be told apart in one picture
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a $
    "svg.hashsalt": "iad-ext",  # the same run gives the same file
}


class NothingToDrawError(ValueError):
    """The runs have no such figures: they ran no such passes, or not enough epochs."""


@dataclass(frozen=True)
class Run:
    """What a run folder says, as far as figures need it.

    Attributes:
        label: what it is called beside others.
        records: the lines of `metrics.jsonl`, one an epoch.
        settings: `settings.yaml`, as nested dictionaries.
        results: `results.json`; empty where the run is not measured yet.
    """

    label: str
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path, label: str | None = None) -> "Run":
        """Read a run folder.

        Raises:
            ValueError: it is none, or one of its files is damaged.
        """
        folder = Path(folder)
        if not (folder / "settings.yaml").is_file():
            raise ValueError(f"{folder} is no run folder: it has no settings.yaml")
        settings = files.parse_yaml((folder / "settings.yaml").read_text(encoding="utf-8"))
        results = files.read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
        if not isinstance(settings, dict) or not isinstance(results, dict):
            raise ValueError(f"{folder}: settings.yaml and results.json must hold mappings")
        records = read_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        return cls(label or f"{folder.parent.name}/{folder.name}", records, settings, results)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs, counted from 1, and values of a figure, where it is known."""
        known = [(int(r["epoch"]) + 1, float(r[name])) for r in self.records if _is_number(r.get(name))]
        return [epoch for epoch, _ in known], [value for _, value in known]

    def objective(self, name: str) -> Any:
        """A setting of the objective, None where it is not set."""
        held = self.settings.get("objective", {})
        return held.get(name) if isinstance(held, Mapping) else None

    @property
    def beta(self) -> float | None:
        """β of α = P_T(x̃|y)^β; None where the run has none, or its `trust` is another."""
        held = self.objective("beta")
        return float(held) if _is_number(held) and self.objective("trust") is None else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def draw(name: str, runs: Sequence[str | Path | Run], path: str | Path) -> None:
    """Draw one of `FIGURES` from run folders alone.

    Args:
        name: such as `figure1a`.
        runs: run folders; all but `figure3c` and `radius` take one.
        path: where to write; the suffix says the format. A `.png` and an `.svg` are the usual two.

    Raises:
        ValueError: there is no such figure, or a folder is no run.
        NothingToDrawError: the runs have no such numbers.
    """
    with mpl.rc_context(STYLE):
        _figure(name, runs).savefig(path, dpi=200, **_undated(Path(path).suffix))


def svg(name: str, runs: Sequence[str | Path | Run], *, mark: str = "") -> str:
    """One of `FIGURES` as an SVG element, for a page whose colours it takes: no background, black left to `fill`.

    The other colours are the custom properties `--fig-000000`, `--fig-0072B2` and so on where the page sets them.
    `mark` tells it from other figures of that name on the page.
    """
    with mpl.rc_context(STYLE):
        return _element(f"{name}{mark}", _figure(name, runs))


def relation(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw one quantity of a study's rows against another.

    Points are marked by method and named by their teachers, or marked by group and named where no other exceeds them
    in both quantities, as the relation is declared.

    Args:
        found: an entry of `relations` in a study's `study.json`.
        path: where to write; the suffix says the format.

    Raises:
        NothingToDrawError: no row has both quantities yet.
    """
    with mpl.rc_context(STYLE):
        _scattered(found).savefig(path, dpi=200, **_undated(Path(path).suffix))


def relation_svg(found: Mapping[str, Any], *, mark: str = "") -> str:
    """The same as an SVG element, as `svg` makes one."""
    with mpl.rc_context(STYLE):
        return _element(f"relation{mark}", _scattered(found))


def _scattered(found: Mapping[str, Any]) -> Figure:
    if not found["points"]:
        raise NothingToDrawError(f"no row has {found['x']} and {found['y']} yet")
    by_group = found.get("by") == "group"
    figure = Figure(figsize=(5.6, 4.0) if by_group else (4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for (label, own), (colour, marker, _) in zip(_series(found), itertools.cycle(MARKS), strict=False):
        axes.plot([p["x"] for p in own], [p["y"] for p in own], marker, color=colour, label=label)
    for point in _front(found["points"]) if by_group else found["points"]:
        axes.annotate(
            str(point["label"] if by_group else point["teacher"] or point["label"]),
            (point["x"], point["y"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=6,
            color="#777777",
        )
    axes.margins(x=0.16, y=0.1)
    axes.set_xlabel(found["x_title"])
    axes.set_ylabel(found["y_title"])
    _legend_above(axes, handletextpad=0.1)
    return figure


def _series(found: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """A relation's points as they share a mark: by method, with its ρ, or by group."""
    points = found["points"]
    if found.get("by") == "group":
        for group in dict.fromkeys(point["group"] for point in points):
            yield str(group or "other"), [point for point in points if point["group"] == group]
        return
    for held in found["correlations"]:
        rho = f"ρ = {held['rho']:+.2f}" if held["rho"] is not None else "no ρ"
        own = [point for point in points if point["method"] == held["method"]]
        yield f"{held['called']}: {rho}, n = {held['n']}", own


def _front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that no other point exceeds in both quantities, nor in one at the same other."""
    return [
        one
        for one in points
        if not any(
            other["x"] >= one["x"]
            and other["y"] >= one["y"]
            and (other["x"], other["y"]) != (one["x"], one["y"])
            for other in points
        )
    ]


def _legend_above(axes: Axes, **style: Any) -> None:
    """In two columns, or in one, or smaller, where the axes would give way to a legend wider than the figure."""
    labels = axes.get_legend_handles_labels()[1]
    size = FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()
    widths = [TextPath((0, 0), label, size=size).get_extents().width for label in labels] or [0.0]
    half = math.ceil(len(widths) / 2)
    figure = axes.figure.get_figure(root=True)
    room = 72 * figure.get_figwidth() - 5 * size  # right of the axes' own labels
    mark = 4.5 * size  # before a label, with the gap to the next column
    columns = 2 if max(widths[:half]) + max(widths[half:], default=0) + 2 * mark <= room else 1
    if columns == 1:
        size *= min(1.0, (room - mark) / max(widths))
        # the lines that two columns would have saved
        figure.set_figheight(figure.get_figheight() + 1.5 * size * (len(widths) - half) / 72)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0.1,
        fontsize=size,
        **style,
    )


def _element(name: str, figure: Figure) -> str:
    held = io.StringIO()
    figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    text = held.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # several figures share a page: what they refer to by name must not meet
    text = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"#([0-9a-fA-F]{6})\b", lambda found: f"var(--fig-{found[1].upper()}, #{found[1]})", text)


def _undated(suffix: str) -> dict[str, Any]:
    return {"metadata": {"Date": None}} if suffix == ".svg" else {}


def _figure(name: str, runs: Sequence[str | Path | Run]) -> Figure:
    if name not in FIGURES:
        raise ValueError(unknown("figure", name, FIGURES))
    read = [run if isinstance(run, Run) else Run.read(run) for run in runs]
    if not read:
        raise ValueError(f"{name}: expected a run folder, got none")
    figure = Figure(figsize=(3.8, 2.8), layout="constrained")
    FIGURES[name](figure.subplots(), read)
    return figure


def _only(runs: Sequence[Run]) -> Run:
    if len(runs) != 1:
        raise ValueError(f"this figure is of one run, got {len(runs)}")
    return runs[0]


def _curves(axes: Axes, run: Run, names: Mapping[str, str]) -> None:
    """Draw figures of a run by epoch; a curve has a marker at some of its points, to be told without colour."""
    drawn = 0
    for (name, label), (colour, marker, line) in zip(names.items(), MARKS, strict=False):
        epochs, values = run.series(name)
        if epochs:
            every = max(1, len(epochs) // 8)
            axes.plot(
                epochs,
                values,
                line,
                color=colour,
                marker=marker,
                markevery=(drawn % every, every),
                label=label,
            )
            drawn += 1
    if not drawn:
        raise NothingToDrawError(f"{run.label} has no {', '.join(names)}")
    _by_epoch(axes, run)


def _by_epoch(axes: Axes, run: Run) -> None:
    """Epochs below, a line where warm-up ends, the legend above."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    warmup, epochs = run.objective("warmup_epochs"), len(run.records)
    if _is_number(warmup) and 0 < warmup < epochs:
        axes.margins(y=0.14)  # room for the word
        axes.axvline(warmup + 0.5, color="#888888", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            "warm-up ends",
            (warmup + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color="#777777",
        )
    _legend_above(axes, handlelength=2.4)


def teacher_accuracy(axes: Axes, runs: Sequence[Run]) -> None:
    """Figure 1a: the teacher's accuracy on natural training images and on the student's adversarial ones."""
    names = {
        "teacher/acc_nat": "teacher on x",
        "teacher/acc_on_student_adv": "teacher on the student's x̃",
    }
    _curves(axes, _only(runs), names)
    axes.set_ylabel("training accuracy, %")


def three_cases(axes: Axes, runs: Sequence[Run]) -> None:
    """Figure 2b: the three cases by epoch, and the fourth, which should be nearly empty."""
    names = {
        "cases/reliable": "reliable: both right",
        "cases/unreliable": "unreliable: x̃ wrong",
        "cases/wrong": "wrong: both wrong",
        "cases/recovered": "only x wrong",
    }
    _curves(axes, _only(runs), names)
    axes.set_ylabel("training images, %")
    axes.set_ylim(bottom=0)


def training_accuracy(axes: Axes, runs: Sequence[Run]) -> None:
    """Figure 3: accuracy of student, teacher and the two combined by α on the training attack's images."""
    names = {
        "train/acc_adv": "student on x̃",
        "teacher/acc_on_student_adv": "teacher on x̃",
        "combined/acc_on_student_adv": "α T(x̃) + (1 − α) S(x)*",
    }
    run = _only(runs)
    _curves(axes, run, names)
    axes.set_ylabel(f"{_training_attack(run)} training accuracy, %")
    if run.series("combined/acc_on_student_adv")[0]:
        axes.set_xlabel("epoch    (* uses the true label, through α)")


def trust_by_beta(axes: Axes, runs: Sequence[Run]) -> None:
    """Figure 4: how P_T(x̃|y)^β is distributed in the last epoch, by β; with the run's own β it is its α."""
    run = _only(runs)
    held = [record for record in run.records if isinstance(record.get(HISTOGRAM), list)]
    if not held:
        raise NothingToDrawError(f"{run.label} has no {HISTOGRAM}")
    counts, edges = np.array(held[-1][HISTOGRAM], dtype=float), np.array(TRUST_EDGES)
    if counts.shape != (len(edges) - 1,) or not counts.sum() > 0:
        raise NothingToDrawError(
            f"{run.label}: {HISTOGRAM} has {counts.shape} bins, expected {len(edges) - 1}"
        )
    # the share of images with at least so much trust: no choice of bins in it, and one line a β
    above = 100 * np.append(counts[::-1].cumsum()[::-1], 0) / counts.sum()
    own = run.beta
    betas = sorted({*BETAS, *([] if own is None else [own])})
    for beta, (colour, marker, line) in zip(betas, MARKS, strict=False):
        places = edges**beta if beta else np.ones_like(edges)
        label = f"β = {beta:g}" + (", this run's" if beta == own else "")
        axes.plot(places, above, line, color=colour, marker=marker, markevery=(1, 6), label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"{'P_T(x̃|y)^β' if own is None else 'α'}, epoch {int(held[-1]['epoch']) + 1}")
    axes.set_ylabel("images with at least this α, %")
    _legend_above(axes, handlelength=2.4)


def trust_histogram(axes: Axes, runs: Sequence[Run]) -> None:
    """The histogram of α = P_T(x̃|y)^β, or of P_T(x̃|y)^0.1 where the run has no β, first and last epoch with one."""
    run = _only(runs)
    held = [record for record in run.records if isinstance(record.get(HISTOGRAM), list)]
    if not held:
        raise NothingToDrawError(f"{run.label} has no {HISTOGRAM}")
    beta = 0.1 if run.beta is None else run.beta
    widths, edges = np.linspace(0, 1, 21), np.array(TRUST_EDGES) ** beta
    for record, (colour, hatch) in zip(
        held[:: max(1, len(held) - 1)], ((SKY, ""), (VERMILION, "///")), strict=False
    ):
        counts = np.array(record[HISTOGRAM], dtype=float)
        if counts.shape != (len(edges) - 1,) or not counts.sum() > 0:
            raise NothingToDrawError(f"{run.label}: {HISTOGRAM} has {counts.shape} bins")
        shares = rebinned(counts, edges, widths)
        axes.stairs(
            100 * shares / counts.sum(),
            widths,
            color=colour,
            fill=not hatch,
            hatch=hatch,
            alpha=None if hatch else 0.55,
            label=f"epoch {int(record['epoch']) + 1}",
        )
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"P_T(x̃|y)^{beta:g}" if run.beta is None else f"α = P_T(x̃|y)^β, β = {beta:g}")
    axes.set_ylabel("training images, %")
    _legend_above(axes)


def rebinned(counts: Any, edges: Any, onto: Any) -> Any:
    """Counts between `edges` as counts between the edges `onto`; spread evenly within a bin where they do not meet."""
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(onto, edges, below))


def losses(axes: Axes, runs: Sequence[Run]) -> None:
    """The loss and its weighted terms by epoch."""
    run = _only(runs)
    terms = sorted({name for record in run.records for name in record if name.startswith("loss/")})
    order = ["loss/total", *(name for name in terms if name != "loss/total")]
    _curves(axes, run, {name: name.removeprefix("loss/").replace("_", " ") for name in order})
    axes.set_ylabel("loss, nats")


def learning(axes: Axes, runs: Sequence[Run]) -> None:
    """The student's accuracy by epoch: under the training attack, and on the images that select the checkpoint."""
    names = {
        "train/acc_adv": "training, PGD",
        "eval/natural": "validation, natural",
        "eval/pgd10": "validation, PGD-10",
    }
    run = _only(runs)
    _curves(axes, run, names)
    axes.set_ylabel("student's accuracy, %")
    epochs = run.results.get("epochs")
    best = epochs.get("best") if isinstance(epochs, Mapping) else None
    if _is_number(best):
        axes.axvline(best + 1, color="#888888", linewidth=1)
        axes.annotate(
            "best",
            (best + 1, 0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="#777777",
        )


def _training_attack(run: Run) -> str:
    attack = run.settings.get("attack")
    steps = attack.get("steps") if isinstance(attack, Mapping) else None
    return f"PGD-{steps}" if _is_number(steps) else "PGD"


def robust_accuracy(axes: Axes, runs: Sequence[Run]) -> None:
    """Figure 3's last part: PGD-10 accuracy by epoch of several runs, such as with introspection and without."""
    for run, (colour, marker, line) in zip(runs, itertools.cycle(MARKS), strict=False):
        epochs, values = run.series("eval/pgd10")
        if epochs:
            every = max(1, len(epochs) // 8)
            axes.plot(epochs, values, line, color=colour, marker=marker, markevery=every, label=run.label)
    if not axes.lines:
        raise NothingToDrawError("no run has eval/pgd10")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation PGD-10 accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(axes, handlelength=2.4)


def accuracy_by_radius(axes: Axes, runs: Sequence[Run]) -> None:
    """Robust accuracy by radius: a sound network's falls to about zero. Best and last of one run, best of several."""
    if len(runs) == 1:
        measured = {which: runs[0].results.get(which) for which in ("best", "last")}
    else:
        measured = {run.label: run.results.get("best") for run in runs}
    curves = {
        label: of["curve"]
        for label, of in measured.items()
        if isinstance(of, Mapping) and isinstance(of.get("curve"), Mapping) and of["curve"]
    }
    if not curves:
        raise NothingToDrawError(f"{', '.join(run.label for run in runs)}: not measured by radius")
    _by_radius(axes, curves)


def _by_radius(axes: Axes, curves: Mapping[str, Mapping[str, float]]) -> None:
    for (label, curve), (colour, marker, line) in zip(curves.items(), itertools.cycle(MARKS), strict=False):
        points = sorted((255 * parse_fraction(str(radius)), value) for radius, value in curve.items())
        axes.plot(*zip(*points, strict=True), line, color=colour, marker=marker, label=label)
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.set_xlabel("L∞ radius, 1/255")
    axes.set_ylabel("accuracy under PGD-20, %")
    _legend_above(axes, handlelength=2.4)


FIGURES: Mapping[str, Callable[[Axes, Sequence[Run]], None]] = {
    "figure1a": teacher_accuracy,
    "figure2b": three_cases,
    "figure3": training_accuracy,
    "figure3c": robust_accuracy,
    "figure4": trust_by_beta,
    "trust": trust_histogram,
    "learning": learning,
    "losses": losses,
    "radius": accuracy_by_radius,
}


def epsilon_curve(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw robust accuracy against the radius, a line a network: a sound one falls to about zero.

    Args:
        results: by the network's name, what `evaluate` returned; those without a `curve` are left out.
        path: where to write; the suffix says the format.

    Raises:
        ValueError: no result has a curve.
    """
    curves = {
        f"{name}, n={result['curve_n']}": result["curve"]
        for name, result in results.items()
        if "curve" in result
    }
    if not curves:
        raise ValueError("results: none has a curve; measure it with evaluate(…, curve=256)")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        _by_radius(figure.subplots(), curves)
        figure.savefig(path, dpi=200)


# ---------------------------------------------------------------------------------------------- beyond one threat

FEWEST = 10  # images in a bin that is drawn: the share of fewer says little


def transfer_matrix(result: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy of each network under the attacks made on every other; its own attack has a frame.

    Args:
        result: what `iad_ext.evaluation.evaluate_threats` returned.
        path: where to write; the suffix says the format.

    Raises:
        ValueError: the transfer was not measured.
    """
    if "transfer" not in result:
        raise ValueError("result: the transfer was not measured; ask evaluate_threats for it in parts")
    names, found = list(result["networks"]), result["transfer"]
    values = np.array([[found["accuracy"][source][target] for target in names] for source in names])
    with mpl.rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        side = 1.6 + 0.52 * len(names)
        figure = Figure(figsize=(side + 1.6, side + 0.4), layout="constrained")
        axes = figure.subplots()
        # cividis is even in lightness and the same to people who see fewer colours
        low, high = 5 * np.floor(values.min() / 5), 5 * np.floor(values.max() / 5) + 5
        drawn = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
        for row, column in np.ndindex(values.shape):
            light = values[row, column] > (low + high) / 2
            axes.text(
                column,
                row,
                f"{values[row, column]:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="#000000" if light else "#FFFFFF",
            )
            if row == column:
                axes.add_patch(
                    Rectangle(
                        (column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=VERMILION, lw=1.6
                    )
                )
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.set_xlabel("accuracy of")
        axes.set_ylabel("PGD-20 images made on")
        axes.set_title(f"ε = {show_fraction(found['protocol']['eps'])}, n = {found['n']}")
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="accuracy, %").outline.set_visible(False)
        figure.savefig(path, dpi=200, **_undated(path.suffix))


def reliability_diagrams(result: Mapping[str, Any], path: Path) -> None:
    """Draw how often forecasts came true against what they said: a line a network, the diagonal where they are right.

    Args:
        result: what `iad_ext.evaluation.evaluate_threats` returned.
        path: where to write; the suffix says the format.

    Raises:
        ValueError: calibration was not measured.
    """
    if "calibration" not in result:
        raise ValueError("result: calibration was not measured; ask evaluate_threats for it in parts")
    found = {name: result["calibration"][name] for name in result["networks"]}
    panels = {
        "student_nat": ("itself, on x", "confidence", "accuracy"),
        "student_adv": ("itself, on x̃", "confidence", "accuracy"),
        "teacher_adv": ("its teacher, on x̃", "confidence", "accuracy"),
        "trust": ("trust in its teacher", "P(y | x̃) of the teacher", "teacher right on x̃"),
    }
    shown = [key for key in panels if any(key in of for of in found.values())]
    with mpl.rc_context(STYLE):
        rows = (len(shown) + 1) // 2
        figure = Figure(figsize=(6.2, 2.9 * rows + 0.22 * len(found)), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, 2)).ravel()
        for axes, key in zip(grid, shown, strict=True):
            title, forecast, share = panels[key]
            axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=(0, (1, 2)))
            for index, (name, of) in enumerate(found.items()):
                if key not in of:
                    continue
                # the trust at β = 1 comes first
                bins = (of[key][0] if key == "trust" else of[key])["bins"]
                colour, marker, line = MARKS[index % len(MARKS)]
                points = [(each[3], each[4]) for each in bins if each[2] >= FEWEST]
                axes.plot(
                    [point[0] for point in points],
                    [point[1] for point in points],
                    line,
                    color=colour,
                    marker=marker,
                    # as many networks as marks, then once more with open ones
                    markerfacecolor=colour if index < len(MARKS) else "none",
                    label=name,
                    clip_on=False,
                )
            axes.set_title(title)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_xlabel(forecast)
            axes.set_ylabel(share)
        # by name, also one that begins with "_", which matplotlib would leave out; behind the diagonal every panel
        # draws, the first has every network
        figure.legend(grid[0].lines[1:], list(found), loc="outside lower center", ncols=2, handlelength=2.8)
        figure.savefig(path, dpi=200, **_undated(path.suffix))
