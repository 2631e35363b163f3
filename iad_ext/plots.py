"""Figures from results, readable in print and by colour-blind readers. The only home of matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from iad_ext.evaluation import images
from iad_ext.units import parse_fraction

# Okabe & Ito's palette, and a marker each, so that a figure survives a black-and-white printer
MEASURES = {
    "natural": ("natural", "#000000", "o"),
    "fgsm": ("FGSM", "#56B4E9", "^"),
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
        {"font.size": 10, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
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
        ncols=len(measures), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, handletextpad=0.1
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


def epsilon_curve(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw robust accuracy against the radius, a line a network: a sound one falls to about zero.

    Args:
        results: by the network's name, what `evaluate` returned; those without a `curve` are left out.
        path: where to write; the suffix says the format.

    Raises:
        ValueError: no result has a curve.
    """
    curves = {name: result for name, result in results.items() if "curve" in result}
    if not curves:
        raise ValueError("results: none has a curve; measure it with evaluate(…, curve=256)")
    with mpl.rc_context(
        {"font.size": 10, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        # the palette's colours and markers in turn; a line style more where there are more networks than colours
        styles = [(colour, marker) for _, colour, marker in MEASURES.values()]
        for index, (name, result) in enumerate(curves.items()):
            colour, marker = styles[index % len(styles)]
            radii = [255 * parse_fraction(radius) for radius in result["curve"]]
            axes.plot(
                radii,
                list(result["curve"].values()),
                color=colour,
                marker=marker,
                linestyle=("-", "--", ":")[index // len(styles) % 3],
                markersize=5,
                label=f"{name}, n={result['curve_n']}",
            )
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        axes.set_xlabel("L∞ radius, 1/255")
        axes.set_ylabel("accuracy under PGD-20, %")
        axes.grid(color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150)
