"""Figures from run folders: what is drawn is what was logged, and what was logged is what a loop counts."""

import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import oracles
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from iad_ext import Outputs, plots
from iad_ext.diagnostics import HISTOGRAM, TRUST_EDGES, Sums, figures
from iad_ext.evaluation import ATTACKS, TITLES
from iad_ext.objectives import PASSES, build

EPOCHS, BETA = 6, 0.3


def passes(seed, n=150):
    generator = torch.Generator().manual_seed(seed)
    logits = {p: 3 * torch.randn(n, 4, generator=generator, dtype=torch.float64) for p in PASSES}
    return Outputs(**logits), torch.randint(4, (n,), generator=generator)


def logged(seed):
    """A line of metrics.jsonl as an epoch makes it."""
    outputs, labels = passes(seed)
    objective = build("iad1", beta=BETA, warmup_epochs=0)
    sums = Sums("cpu")
    sums.add(figures(outputs, labels, objective(outputs, labels, epoch=0), trust_of=objective.trust_of))
    names = [name for name in sums.sums if name != HISTOGRAM]
    record = {"epoch": seed, **sums.reduced(names, sums.stacked(names))}
    counts = [int(count) for count in sums.histogram().tolist()]
    return record | {HISTOGRAM: counts, "eval/natural": 50.0 + seed, "eval/pgd10": 40.0 - seed}


EVERY = [logged(seed) for seed in range(EPOCHS)]


def run_folder(folder, records=None, **objective):
    records = EVERY if records is None else records
    folder.mkdir(parents=True)
    settings = {"recipe": "iad1_resnet18", "objective": {"name": "iad1", "beta": BETA, **objective}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    results = {"epochs": {"best": 3, "last": 5}}
    if records == EVERY:
        results |= {
            "best": {"curve": {"0": 80.0, "0.1": 30.0, "8/255": 50.0}},
            "last": {"curve": {"0": 85.0}},
        }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("plots") / "iad1" / "seed0", warmup_epochs=2)


def drawn(name, *folders):
    """The axes of a figure, and its curves by their label."""
    axes = Figure().subplots()
    plots.FIGURES[name](axes, [plots.Run.read(each) for each in folders])
    return axes, {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


CURVES = {
    "figure1a": ["teacher/acc_nat", "teacher/acc_on_student_adv"],
    "figure2b": ["cases/reliable", "cases/unreliable", "cases/wrong", "cases/recovered"],
    "figure3": ["train/acc_adv", "teacher/acc_on_student_adv", "combined/acc_on_student_adv"],
    "learning": ["train/acc_adv", "eval/natural", "eval/pgd10"],
    "losses": ["loss/total", "loss/self", "loss/teacher"],
}


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_its_figure_by_epoch(folder, name):
    _, curves = drawn(name, folder)
    assert len(curves) == len(CURVES[name])
    for figure, line in zip(CURVES[name], curves.values(), strict=True):
        assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
        assert list(line.get_ydata()) == [logged(seed)[figure] for seed in range(EPOCHS)], figure


def test_figures_1a_2b_and_3_are_the_loop_s_over_the_logits(folder):
    """From the curve back to the images: accuracies, cases and the combination of one epoch."""
    outputs, labels = passes(4)
    z = [{p: getattr(outputs, p)[i].tolist() for p in PASSES} for i in range(len(labels))]
    true = labels.tolist()

    def percent(right):
        return pytest.approx(100 * sum(right) / len(true), rel=1e-9)

    values = {
        name: [line.get_ydata()[4] for line in drawn(name, folder)[1].values()]
        for name in ("figure1a", "figure2b", "figure3")
    }
    on = {p: [oracles.prediction(row[p]) == y for row, y in zip(z, true, strict=True)] for p in PASSES}
    assert values["figure1a"] == [percent(on["teacher_nat"]), percent(on["teacher_adv"])]
    cases = [oracles.case(row["teacher_nat"], row["teacher_adv"], y) for row, y in zip(z, true, strict=True)]
    kinds = ("reliable", "unreliable", "wrong", "recovered")
    assert values["figure2b"] == [percent([case == kind for case in cases]) for kind in kinds]
    combined = [
        oracles.prediction(
            oracles.combined(
                row["teacher_adv"], row["student_nat"], oracles.trust(row["teacher_adv"], y, BETA)
            )
        )
        == y
        for row, y in zip(z, true, strict=True)
    ]
    assert values["figure3"] == [percent(on["student_adv"]), percent(on["teacher_adv"]), percent(combined)]


def probabilities(seed):
    outputs, labels = passes(seed)
    rows = outputs.teacher_adv.tolist()
    return [oracles.trust(row, y, 1.0) for row, y in zip(rows, labels.tolist(), strict=True)]


def test_figure_4_counts_the_images_that_are_trusted_so_far(folder):
    found = probabilities(EPOCHS - 1)
    _, curves = drawn("figure4", folder)
    assert list(curves) == ["β = 0.01", "β = 0.1", "β = 0.3, this run's", "β = 0.5", "β = 1"]
    for beta, line in zip((0.01, 0.1, 0.3, 0.5, 1.0), curves.values(), strict=True):
        for edge, place, above in zip(TRUST_EDGES[:-1], *line.get_data(), strict=False):
            assert place == pytest.approx(edge**beta)
            # between two edges the counts say nothing; on one of them they are exact
            assert above == pytest.approx(100 * sum(p >= edge for p in found) / len(found), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_the_histogram_of_trust_is_that_of_the_images(tmp_path, beta):
    folder = run_folder(tmp_path / "run", beta=beta)
    axes, _ = drawn("trust", folder)
    for stairs, seed in zip(axes.patches, (0, EPOCHS - 1), strict=True):
        alphas = [p**beta for p in probabilities(seed)]
        expected = [
            100 * sum(k / 20 <= alpha < (k + 1) / 20 + (k == 19) for alpha in alphas) / len(alphas)
            for k in range(20)
        ]
        assert list(stairs.get_data().values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("objective", [{"trust": "three_cases"}, {"beta": None}])
def test_a_run_whose_weight_is_no_power_has_no_beta_of_its_own(tmp_path, objective):
    """`beta` keeps its default beside another trust, and says nothing there."""
    folder = run_folder(tmp_path / "run", **{"beta": 0.3, **objective})
    assert drawn("trust", folder)[0].get_xlabel() == "P_T(x̃|y)^0.1"
    axes, curves = drawn("figure4", folder)
    assert list(curves) == ["β = 0.01", "β = 0.1", "β = 0.5", "β = 1"]
    assert axes.get_xlabel() == "P_T(x̃|y)^β, epoch 6"
    own = run_folder(tmp_path / "own", beta=0.0)
    assert drawn("trust", own)[0].get_xlabel() == "α = P_T(x̃|y)^β, β = 0"


def test_accuracy_by_radius_is_what_was_measured(folder):
    _, curves = drawn("radius", folder)
    assert list(curves) == ["best", "last"]
    radii, values = curves["best"].get_data()
    assert list(radii) == pytest.approx([0, 8, 25.5])
    assert list(values) == [80.0, 50.0, 30.0]
    assert list(curves["last"].get_ydata()) == [85.0]


def test_rebinning_keeps_every_image():
    counts, edges = np.array([3.0, 0.0, 5.0]), np.array([0.0, 0.1, 0.7, 1.0])
    found = plots.rebinned(counts, edges, np.linspace(0, 1, 8))
    assert found.sum() == pytest.approx(8)
    assert plots.rebinned(counts, edges, edges) == pytest.approx(counts)


def test_runs_beside_each_other_keep_their_names(folder, tmp_path):
    other = run_folder(tmp_path / "ard" / "seed0", [logged(seed) for seed in range(3)])
    _, curves = drawn("figure3c", folder, other)
    assert {name: list(line.get_ydata()) for name, line in curves.items()} == {
        "iad1/seed0": [40.0 - seed for seed in range(6)],
        "ard/seed0": [40.0, 39.0, 38.0],
    }


@pytest.mark.parametrize("name", ["figure3c", "radius"])
@pytest.mark.parametrize(("label", "columns"), [("IAD-I", 2), ("IAD-I × 4, β = 1 under RSLAD's attack", 1)])
def test_long_names_take_no_room_from_the_axes(folder, name, label, columns):
    read = plots.Run.read(folder)
    figure = plots._figure(name, [dataclasses.replace(read, label=f"{label} {k}") for k in range(5)])
    (axes,) = figure.axes
    figure.canvas.print_figure(io.BytesIO())
    shown, whole = axes.get_tightbbox(), figure.bbox
    assert (shown.x0, shown.y0) >= (whole.x0, whole.y0)
    assert (shown.x1, shown.y1) <= (whole.x1, whole.y1)
    assert axes.bbox.width > 0.7 * whole.width
    assert axes.bbox.height > 0.4 * whole.height
    assert axes.get_legend()._ncols == columns


def test_a_gap_is_a_gap(tmp_path):
    """Epochs without the figure are left out, not drawn at 0."""
    records = [logged(seed) for seed in range(4)]
    for record in records[:2]:
        record["combined/acc_on_student_adv"] = None
    _, curves = drawn("figure3", run_folder(tmp_path / "run", records))
    assert list(list(curves.values())[2].get_xdata()) == [3, 4]


def test_the_training_attack_has_the_steps_that_it_had(tmp_path):
    run = run_folder(tmp_path / "run")
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    (run / "settings.yaml").write_text(yaml.safe_dump({**settings, "attack": {"name": "pgd", "steps": 5}}))
    assert drawn("figure3", run)[0].get_ylabel() == "PGD-5 training accuracy, %"


@pytest.mark.parametrize("name", sorted(plots.FIGURES))
def test_curves_can_be_told_apart_without_colour(folder, name):
    axes, curves = drawn(name, folder)
    marks = [(line.get_marker(), line.get_linestyle()) for line in curves.values()]
    assert len(set(marks)) == len(marks)
    assert axes.get_xlabel()
    assert axes.get_ylabel()


@pytest.mark.parametrize("name", sorted(plots.FIGURES))
def test_each_is_drawn_as_png_and_svg_the_same_each_time(folder, tmp_path, name):
    for suffix in ("png", "svg"):
        for k in range(2):
            plots.draw(name, [folder], tmp_path / f"{k}.{suffix}")
        first, second = ((tmp_path / f"{k}.{suffix}").read_bytes() for k in range(2))
        assert first == second
        assert first.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_on_a_page_figures_do_not_meet_and_take_its_colours(folder):
    ids = []
    for name in sorted(plots.FIGURES):
        text = plots.svg(name, [folder])
        root = ElementTree.fromstring(text)
        own = [element.get("id") for element in root.iter() if element.get("id")]
        assert all(found.startswith(f"{name}-") for found in own)
        ids += set(own)
        for element in root.iter():
            reference = element.get("{http://www.w3.org/1999/xlink}href")
            assert reference is None or reference[1:] in own
        assert "white" not in text
        assert "var(--fig-" in text
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "records"),
    [(name, [{"epoch": 0}]) for name in sorted(plots.FIGURES)]
    + [("figure4", [{"epoch": 0, HISTOGRAM: [1, 2]}]), ("trust", [{"epoch": 0, HISTOGRAM: [0] * 39}])],
)
def test_what_a_run_does_not_have_is_not_drawn(tmp_path, name, records):
    with pytest.raises(plots.NothingToDrawError):
        plots.draw(name, [run_folder(tmp_path / "run", records)], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_can_stand_beside_others(tmp_path, monkeypatch, attack):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    result = {attack: 40.0, "n": 50, "interval": {attack: (30.0, 55.0)}}
    plots.comparison({"one": result}, title="t", path=tmp_path / "a.png")
    (legend,) = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert legend == f"{TITLES[attack]}, n=50"


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown figure 'figure1'; did you mean 'figure1a'"):
        plots.draw("figure1", [folder], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"is no run folder: it has no settings\.yaml"):
        plots.draw("figure1a", [tmp_path], tmp_path / "a.png")
    with pytest.raises(ValueError, match="of one run, got 2"):
        plots.draw("figure1a", [folder, folder], tmp_path / "a.png")
    with pytest.raises(ValueError, match="expected a run folder, got none"):
        plots.draw("figure3c", [], tmp_path / "a.png")
