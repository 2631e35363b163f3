"""Rows that teach, one quantity of the rows against another, and how little a few points tell."""

import contextlib
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from recipe_files import call
from scipy import stats
from study_runs import fake_run

from iad_ext import settings, statistics, studies
from iad_ext.studies import tables

STUDY = """
title: Which teacher?
data: [digits]
student: resnet18
measures: [natural, pgd20]
all: {student.name: cifar_resnet8, train.epochs: 1}
rows:
  - {label: AT, method: at}
  - {label: "AT, longer", method: at, settings: {train.epochs: 2}}
  - {label: Standard, method: st}
  - {label: ARD of AT, method: ard, teacher: AT}
  - {label: ARD of the longer, method: ard, teacher: "AT, longer", against: ARD of AT}
  - {label: ARD of Standard, method: ard, teacher: Standard, against: ARD of AT}
  - {label: AKD2 of Standard, method: akd2, teacher: Standard}
relations:
  - {name: robustness, x: teacher.pgd20, y: pgd20}
  - {name: entropy, x: teacher/entropy_on_student_adv, y: pgd20}
"""


def grid_of(folder, content=STUDY, **choices):
    (folder / "own.yaml").write_text(content)
    return studies.expand(studies.read(str(folder / "own.yaml")), studies.Choices(**choices))


def by_label(grid):
    return {label: cell for cell in grid.cells for label in cell.labels}


# ------------------------------------------------------------------------------------------- rows that teach


def test_a_row_teaches_with_its_own_settings(tmp_path):
    grid = grid_of(tmp_path, seeds=(3,))
    cells = by_label(grid)
    for student, teacher in (
        ("ARD of AT", "AT"),
        ("ARD of the longer", "AT, longer"),
        ("ARD of Standard", "Standard"),
    ):
        assert cells[student].settings.teacher == str(cells[teacher].folder)
        assert cells[student].needs == (cells[teacher].folder,)
        assert cells[teacher].settings.train.seed == 3
    assert cells["AT, longer"].settings.train.epochs == 2
    assert cells["ARD of the longer"].settings.train.epochs == 1
    assert len({cell.folder for cell in grid.cells}) == len(grid.cells) == 7
    assert "at.epochs=2" in str(cells["ARD of the longer"].folder)


def test_a_teacher_that_a_recipe_would_make_is_that_recipe_s_cell(tmp_path):
    """By the row's label or by the short name: one network, one folder, one student."""
    grid = grid_of(tmp_path)
    short = grid_of(tmp_path, STUDY.replace("teacher: AT}", "teacher: at}"))
    assert {cell.folder for cell in grid.cells} == {cell.folder for cell in short.cells}


def test_two_teachers_of_one_recipe_stay_apart_in_a_name(tmp_path):
    content = STUDY.replace(
        "label: Standard, method: st", "label: Standard, method: st, settings: {train.lr: 0.05}"
    )
    cell = by_label(grid_of(tmp_path, content))["AKD2 of Standard"]
    assert cell.settings.teacher != cell.settings.natural_teacher
    plain = by_label(grid_of(tmp_path))["AKD2 of Standard"]
    assert plain.settings.teacher == plain.settings.natural_teacher
    assert cell.folder != plain.folder
    assert set(cell.needs) == {by_label(grid_of(tmp_path, content))["Standard"].folder, *plain.needs}


def test_only_a_student_brings_its_row_of_a_teacher_along(tmp_path):
    grid = grid_of(tmp_path, only="ARD of the longer")
    assert [(cell.settings.train.epochs, cell.labels) for cell in grid.cells] == [
        (2, ()),
        (1, ("ARD of the longer",)),
    ]


def test_the_teachers_study_takes_what_the_small_study_has_trained():
    own, small = (
        studies.expand(studies.read(name), studies.Choices()) for name in ("teachers", "small-scale")
    )
    shared = {cell.folder for cell in own.cells} & {cell.folder for cell in small.cells}
    cells = by_label(own)
    for label in ("AT", "TRADES", "ARD of AT", "ARD of TRADES", "IAD-I of AT", "IAD-I of TRADES"):
        assert cells[label].folder in shared
    taught = {cell.settings.teacher for cell in own.cells if cell.settings.teacher}
    assert len(taught) == 6
    for method in ("ard", "iad1"):
        assert sum(cell.recipe.startswith(method) for cell in own.cells) == 6
    assert {line.row.teacher for line in own.lines} - {None} <= set(cells)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'teacher: "AT, longer"',
            'teacher: "AT, lnger"',
            "unknown teacher 'AT, lnger'; did you mean 'AT, longer'?",
        ),
        ("teacher: AT}", "teacher: ARD of Standard}", "'ARD of Standard' is taught itself"),
        ("x: teacher.pgd20", "x: teacher.pgd2", "relation robustness: unknown quantity 'teacher.pgd2'"),
        ("x: teacher.pgd20", "x: aa", "unknown quantity 'aa'"),
        ("name: robustness", "name: figure3", "none of figure1a"),
        ("name: robustness", "name: ../out", "a relation's name is a file's"),
        (
            "y: pgd20}\n  - {name: e",
            "y: pgd20, checkpoint: first}\n  - {name: e",
            "unknown checkpoint of relation",
        ),
        ("name: robustness", "nam: robustness", "unknown entry of a relation 'nam'"),
    ],
)
def test_what_is_not_understood_is_said(tmp_path, old, new, said):
    assert old in STUDY
    with pytest.raises(ValueError, match=re.escape(said)):
        grid_of(tmp_path, STUDY.replace(old, new))


# ------------------------------------------------------------------------------------------- rank correlations


def by_all_orders(x, y):
    """Spearman's ρ and its exact two-sided p, a loop over the orders of y."""
    rho = stats.spearmanr(x, y).statistic
    found = [abs(stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    return rho, sum(value >= abs(rho) - 1e-9 for value in found) / len(found)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((1, 2, 3), (3, 1, 2)),
        ((0.3, 0.1, 0.7, 0.9, 0.2), (10, 5, 3, 8, 6)),
        ((1, 1, 2, 5), (4, 2, 2, 1)),
    ],
)
def test_a_few_ranks_are_held_against_all_orders(x, y):
    found = statistics.rank_correlation(x, y)
    rho, p = by_all_orders(x, y)
    assert (found.rho, found.p, found.n) == (pytest.approx(rho), pytest.approx(p), len(x))


def test_how_much_a_few_could_tell_at_all():
    assert statistics.rank_correlation((1, 2, 3, 4), (1, 2, 3, 4)).least is None  # p = 2/24 at best
    five = statistics.rank_correlation((1, 2, 3, 4, 5), (1, 2, 3, 4, 5))
    assert (five.rho, five.least, five.p) == (pytest.approx(1), pytest.approx(1), pytest.approx(2 / 120))
    # the printed tables' critical value for seven pairs
    assert statistics.rank_correlation(range(7), range(7)).least == pytest.approx(0.786, abs=5e-4)


def test_many_ranks_are_scipy_s():
    draws = np.random.default_rng(0)
    x = draws.normal(size=30)
    y = x + 2 * draws.normal(size=30)
    found, held = statistics.rank_correlation(list(x), list(y)), stats.spearmanr(x, y)
    assert (found.rho, found.p) == (pytest.approx(held.statistic), pytest.approx(held.pvalue))
    assert found.least == pytest.approx(0.361, abs=1e-3)
    same = statistics.rank_correlation(list(range(9)), list(range(9)))
    assert (same.rho, same.p) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_what_does_not_vary_has_no_rank_correlation():
    assert statistics.rank_correlation((1, 2), (1, 2)) is None
    assert statistics.rank_correlation((1, 1, 1), (1, 2, 3)) is None
    with pytest.raises(ValueError, match="got 2 and 3"):
        statistics.rank_correlation((1, 2), (1, 2, 3))


# ------------------------------------------------------------------------------------------- from run folders


@pytest.fixture
def in_folder(tmp_path):
    with contextlib.chdir(tmp_path):
        yield tmp_path


def log(cell, **figures):
    """Write figures into a run's epochs; the first, which is the best, has half of each."""
    file = cell.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [line | {k: v / (2 if line["epoch"] == 0 else 1) for k, v in figures.items()} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_points_are_means_over_seeds_of_the_student_and_of_its_own_teacher(in_folder):
    grid = grid_of(in_folder, seeds=(0, 1))
    shares = {"AT": 0.5, "AT, longer": 0.6, "Standard": 0.0, "ARD of AT": 0.4, "ARD of the longer": 0.35}
    for cell in grid.cells:
        label = cell.labels[0] if cell.labels else None
        fake_run(cell, shares.get(label, 0.2) + 0.1 * cell.settings.train.seed, n=100)
        if cell.settings.teacher:
            log(cell, **{"teacher/entropy_on_student_adv": 2.0 if "longer" in label else 1.0})
    study = studies.report(grid)
    robustness, entropy = study["relations"]
    points = {point["label"]: point for point in robustness["points"]}
    assert set(points) == {"ARD of AT", "ARD of the longer", "ARD of Standard", "AKD2 of Standard"}
    assert (points["ARD of the longer"]["x"], points["ARD of the longer"]["y"]) == (
        pytest.approx(65),
        pytest.approx(40),
    )
    assert points["ARD of the longer"]["seeds"] == 2
    assert {point["label"]: point["x"] for point in entropy["points"]}["ARD of the longer"] == pytest.approx(
        1.0
    )
    ard, akd2 = robustness["correlations"]
    assert (ard["method"], ard["n"], ard["rho"]) == ("ard", 3, pytest.approx(0.5))
    assert (ard["p"], ard["least"]) == (pytest.approx(1.0), None)
    assert (akd2["called"], akd2["n"], akd2["rho"]) == ("AKD2", 1, None)
    text = (grid.folder / "table.md").read_text()
    assert "## PGD-20, % against teacher's PGD-20, %" in text
    assert "| ARD of the longer | AT, longer | 65.00 | 40.00 | 2 |" in text
    assert "- ARD: Spearman's ρ = +0.50, n = 3 rows, p = 1; so few cannot be told from chance" in text
    assert "- AKD2: no rank correlation of n = 1 row." in text
    for name in ("robustness", "entropy"):
        for suffix in ("png", "svg"):
            assert (grid.folder / f"{name}.{suffix}").stat().st_size > 1000
    drawn = (grid.folder / "robustness.svg").read_text()
    assert "ARD: ρ = +0.50, n = 3" in drawn
    assert "AT, longer" in drawn
    page = (grid.folder / "report.html").read_text()
    assert "Spearman" in page
    assert "entropy on the student" in page
    assert tables.latex(study).isascii()


def test_what_is_not_finished_or_not_logged_is_no_point(in_folder, caplog):
    grid = grid_of(in_folder)
    cells = by_label(grid)
    fake_run(cells["AT"], 0.5)
    fake_run(cells["ARD of AT"], 0.4)
    fake_run(cells["ARD of Standard"], 0.1)  # its teacher was not measured
    study = studies.report(grid)
    robustness, entropy = study["relations"]
    assert [point["label"] for point in robustness["points"]] == ["ARD of AT"]
    assert entropy["points"] == []
    assert "entropy is not drawn: no row has teacher/entropy_on_student_adv and pgd20 yet" in caplog.text
    assert not (grid.folder / "entropy.svg").exists()


def test_what_was_measured_otherwise_is_no_point(in_folder):
    """Neither a student, nor what a teacher is known by; what is logged of it stays."""
    grid = grid_of(in_folder)
    cells = by_label(grid)
    for cell in grid.cells:
        fake_run(cell, 0.5, logged={"teacher/entropy_on_student_adv": [1.0, 1.1, 1.2]})
    for label in ("AT", "ARD of Standard"):
        few = settings.override(cells[label].settings, {"eval.limit": 20})
        fake_run(
            dataclasses.replace(cells[label], settings=few),
            0.9,
            logged={"teacher/entropy_on_student_adv": [1.0, 1.1, 1.2]},
        )
    robustness, entropy = ([p["label"] for p in one["points"]] for one in studies.report(grid)["relations"])
    assert robustness == ["ARD of the longer", "AKD2 of Standard"]
    assert entropy == ["ARD of AT", "ARD of the longer", "AKD2 of Standard"]


def test_a_whole_small_study_of_teachers(in_folder):
    """Teachers with settings of their own, their students, the figures: from nothing, on handwritten digits."""
    small = STUDY.replace(
        "train.epochs: 1}",
        "train.epochs: 1, data.limit_train: 40, data.limit_test: 20, train.batch_size: 20, precision: fp32, "
        "attack.steps: 2, eval.of: best, eval.curve_limit: 0}",
        1,
    ).replace("train.epochs: 2}", "train.epochs: 2, train.lr: 0.3}")
    grid = grid_of(in_folder, small, only="AT,AT, longer,ARD of AT,ARD of the longer")
    for cell in grid.cells:
        assert call(cell.recipe, *cell.arguments) == 0
    study = studies.report(grid)
    for relation in study["relations"]:
        assert [point["teacher"] for point in relation["points"]] == ["AT", "AT, longer"]
        assert (relation["correlations"][0]["n"], relation["correlations"][0]["rho"]) == (2, None)
    one, other = (point["x"] for point in study["relations"][1]["points"])
    assert one != other
    assert all(0 < entropy <= np.log(10) + 1e-6 for entropy in (one, other))
    teachers = [row["checkpoints"]["best"]["pgd20"]["mean"] for row in study["rows"][:2]]
    assert [point["x"] for point in study["relations"][0]["points"]] == pytest.approx(teachers, abs=0.01)
    assert (grid.folder / "entropy.png").is_file()
