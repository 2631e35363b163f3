"""Studies as data, their cells, their tables and verdicts; then one for real, stopped and continued."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recipe_files import ENVIRONMENT, RECIPES
from study_runs import fake_run

from iad_ext import checkpoint, cli, paper, recipes, settings, spelling, statistics, studies
from iad_ext.diagnostics import TRUST_EDGES
from iad_ext.studies import overrides, results, runner, tables
from iad_ext.studies.grid import LONGEST, Claim
from iad_ext.studies.runner import Runner

NAMES = studies.names()
TABLES = [f"table{number}" for number in range(2, 15)]
FIGURES = [f"figure{number}" for number in range(1, 5)]


def chosen(line="", **choices):
    rest, given = overrides.from_command_line(shlex.split(line))
    assert not rest
    return studies.Choices(settings=given, **choices)


def grid_of(name, line="", **choices):
    return studies.expand(studies.read(str(name)), chosen(line, **choices))


def cells_by_label(grid):
    return {label: cell for cell in grid.cells for label in cell.labels}


# ------------------------------------------------------------------------------------------- the files


def test_every_table_and_figure_is_a_study():
    assert {*TABLES, *FIGURES} <= set(NAMES)
    assert NAMES[: len(TABLES)] == TABLES


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_command_line_of_its_recipe(name):
    """What the recipe makes of it is the cell's settings, no more and no less."""
    seen = set()
    for cell in grid_of(name, seeds=(1,)).cells:
        read = settings.from_command_line(recipes.load(cell.recipe), cell.arguments)
        assert read == cell.settings
        assert cell.folder == cell.settings.out
        assert cell.folder not in seen
        assert set(cell.needs) <= seen  # teachers come first
        seen.add(cell.folder)


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_are_the_paper_s(name):
    """Each row of the paper's table is a row of the study, and none is twice."""
    grid = grid_of(name)
    found = [(line.data, tuple(line.paper.items())) for line in grid.lines]
    printed = [(row["data"], tuple(row["numbers"].items())) for row in paper.rows(name)]
    assert sorted(found) == sorted(printed)
    measured = {measure for row in paper.rows(name) for measure in row["numbers"]}
    assert measured <= set(grid.study.measures)


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_s_claims_are_borne_out_by_the_paper_s_numbers(name):
    """What a study calls a claim of the paper must stand in its tables, on every data set."""
    grid = grid_of(name)
    lines = {(line.label.removesuffix(f", {line.data}"), line.data): line for line in grid.lines}
    for claim in grid.study.claims:
        for data in grid.study.data:
            if claim.claim.startswith("Not in the paper") or (claim.a, data) not in lines:
                continue
            if claim.b is None:
                continue  # of a figure by epoch, which the paper draws
            a, b = (lines[label, data].paper.get(claim.measure) for label in (claim.a, claim.b))
            if a is None or b is None:
                assert claim.measure in ("pgd20", "aa")  # Tables 9 to 11 leave some measures out
                continue
            if claim.expect == "close":
                assert abs(a - b) < claim.within, (claim, data, a, b)
            else:
                assert (a > b) == (claim.expect == "greater"), (claim, data, a, b)


@pytest.mark.parametrize("name", [*TABLES, *FIGURES, "small-scale", "one-gpu"])
def test_every_row_that_the_paper_has_stands_beside_its_numbers(name):
    without = [line.label for line in grid_of(name).lines if not line.paper]
    assert without == []


@pytest.mark.parametrize("name", [*TABLES, *FIGURES])
def test_every_table_and_figure_says_which_claims_it_tests(name):
    assert studies.read(name).claims


def test_the_main_table_at_the_paper_s_settings_is_the_recipes_own_folders():
    cells = cells_by_label(grid_of("table2", data=("cifar10",)))
    assert cells["AT"].folder == Path("runs/cifar10/at_resnet18/seed0")
    assert cells["IAD-I (TRADES)"].folder == Path("runs/cifar10/iad1_resnet18-trades/seed0")
    assert cells["IAD-I (TRADES)"].settings.teacher == "runs/cifar10/trades_resnet18/seed0"
    assert cells["IAD-II (AT)"].settings.natural_teacher == "runs/cifar10/st_resnet18/seed0"


def test_the_same_cell_of_two_studies_is_one_folder():
    folders = {name: {cell.folder for cell in grid_of(name).cells} for name in NAMES}
    without = Path("runs/cifar10/iad1_resnet18-at,warmup-epochs=0/seed0")
    for name in ("table5", "table6", "table14", "figure1", "figure2", "figure4"):
        assert without in folders[name] or name == "table14"
    assert Path("runs/cifar10/iad1_resnet18-at/seed0") in folders["table2"] & folders["table9"]
    assert Path("runs/cifar10/iad1_resnet18-at,gate-teacher=True/seed0") in (
        folders["table8"] & folders["table12"]
    )


@pytest.mark.parametrize(
    "name", ["aa_limit", "attacks", "batch_size", "curve_limit", "eps", "fast", "limit", "of"]
)
def test_how_a_run_is_measured_is_not_in_its_folder_s_name(name):
    assert overrides.named({f"eval.{name}": 1}) == ""
    assert not overrides.matters(f"eval.{name}")


def test_a_folder_s_name_fits_a_file_system_and_stays_its_cell_s_own():
    folders = [cell.folder for cell in grid_of("board").cells]
    long = [folder.parent.name for folder in folders if len(folder.parent.name) == LONGEST]
    assert long
    assert all(len(folder.parent.name.encode()) <= LONGEST for folder in folders)
    assert len(set(folders)) == len(folders)
    assert [cell.folder for cell in grid_of("board").cells] == folders


def test_scale_moves_warm_up_and_schedule_along_and_takes_fewer_images():
    cells = cells_by_label(grid_of("table6", epochs=0.1, images=0.5))
    settings_ = cells["IAD-I, warm-up 40"].settings
    assert (settings_.train.epochs, settings_.train.drops) == (20, (10, 15))
    assert settings_.objective.warmup_epochs == 4
    assert settings_.data.limit_train == 24_500
    # the paper's own warm-up of IAD-I, scaled, is the recipe's
    assert cells["IAD-I, warm-up 60"].folder.parent.name == "iad1_resnet18-at,epochs=20,limit-train=24500"
    assert grid_of("table6", epochs=0.1, images=0.5).folder == Path("runs/studies/table6-scale0.1x0.5")


def test_scale_takes_a_fraction_of_the_epochs_that_a_study_or_a_row_states():
    cells = cells_by_label(grid_of("teachers", epochs=0.5))
    epochs = {label: cell.settings.train.epochs for label, cell in cells.items()}
    assert (epochs["AT"], epochs["AT, stopped early"]) == (3, 1)
    assert cells["IAD-I of AT"].settings.objective.warmup_epochs == 1
    given = cells_by_label(grid_of("small-scale", "--train.epochs 4", epochs=0.5))
    assert given["AT"].settings.train.epochs == 4  # the command line is taken as given


def own_study(folder, *lines, rows="rows: [{label: one, method: iad1, teacher: at}]"):
    file = folder / "own.yaml"
    file.write_text("\n".join(["title: own", "data: [digits]", "student: resnet18", *lines, rows]) + "\n")
    return file


@pytest.mark.parametrize("role", ["all", "students"])
def test_what_a_study_says_of_epochs_moves_along_as_a_row_s_does(tmp_path, role):
    said = (
        "train.epochs: 30, train.drops: [20, 25], objective.warmup_epochs: 10, objective.igdm: 1, "
        "objective.ramp_epochs: 15, average.name: swa, average.start: 20, objective.gamma: '0:0.5,20:2'"
    )
    file = own_study(tmp_path, f"{role}: {{{said}}}" if role == "students" else f"students: {{{said}}}")
    if role == "all":
        file = own_study(tmp_path, "all: {train.epochs: 30, train.drops: [20, 25], train.rate_warmup: 10}")
    for line, choices, epochs in (("", {"epochs": 0.1}, 3), ("--train.epochs 3", {}, 3), ("", {}, 30)):
        (cell,) = (cell for cell in grid_of(file, line, **choices).cells if cell.labels)
        train, objective, average = cell.settings.train, cell.settings.objective, cell.settings.average
        assert (train.epochs, train.drops) == ((3, (2, 2)) if epochs == 3 else (30, (20, 25)))
        if role == "all":
            assert train.rate_warmup == epochs // 3
            continue
        assert (objective.warmup_epochs, average.start) == (epochs // 3, 2 * epochs // 3)
        assert objective.ramp_epochs == (2 if epochs == 3 else 15)
        assert objective.gamma == f"0:0.5,{2 * epochs // 3}:2"


def test_a_row_s_ramp_is_scaled(tmp_path):
    row = "{label: one, method: iad1, teacher: at, settings: {objective.igdm: 1, objective.ramp_epochs: 100}}"
    file = own_study(tmp_path, rows=f"rows: [{row}]")
    ramps = {
        scale: grid_of(file, epochs=scale).cells[-1].settings.objective.ramp_epochs
        for scale in (1, 0.1, 0.001)
    }
    assert ramps == {1: 100, 0.1: 10, 0.001: 1}


def test_of_images_of_one_s_own_a_limit_tells_scale_how_many(tmp_path):
    own = {"data": ("someone/images",), "epochs": 0.1, "images": 0.1}
    row = "{label: one, method: at, settings: {data.limit_train: 300}}"
    with pytest.raises(ValueError, match=r"give --data\.limit-train too"):
        grid_of("table2", only="AT", **own)
    (cell,) = grid_of("table2", "--data.limit-train 100", only="AT", **own).cells
    assert cell.settings.data.limit_train == 100
    (cell,) = grid_of(own_study(tmp_path, rows=f"rows: [{row}]"), **own).cells
    assert cell.settings.data.limit_train == 30


def test_a_study_of_natural_accuracy_can_be_asked_for_more(tmp_path):
    rows = "rows: [{label: AT, method: at}, {label: ARD, method: ard, teacher: trades}]"
    file = own_study(tmp_path, "measures: [natural]", rows=rows)
    cells = grid_of(file, "--eval.attacks natural,pgd20").cells
    assert {cell.labels: cell.attacks for cell in cells} == {
        ("AT",): ("natural", "pgd20"),
        (): ("natural",),
        ("ARD",): ("natural", "pgd20"),
    }


def test_a_row_that_also_teaches_is_measured_as_the_row_says(tmp_path):
    rows = (
        "rows: [{label: AT, method: at, settings: {eval.limit: 10}}, {label: ARD, method: ard, teacher: at}]"
    )
    cells = cells_by_label(grid_of(own_study(tmp_path, rows=rows)))
    assert cells["AT"].settings.eval.limit == 10
    assert cells["ARD"].needs == (cells["AT"].folder,)


def test_what_is_given_is_taken_as_given():
    given = "--train.epochs 30 --train.drops 20 25 --data.limit-train 100"
    cells = cells_by_label(grid_of("table2", given, data=("cifar10",)))
    settings_ = cells["IAD-I (AT)"].settings
    assert (settings_.train.epochs, settings_.train.drops) == (30, (20, 25))
    assert settings_.objective.warmup_epochs == 9
    assert settings_.data.limit_train == 100


def test_teachers_and_students_have_settings_of_their_own():
    grid = grid_of("table2", "--teachers.train.epochs 50 --students.train.epochs 20 --train.lr 0.05")
    cells = cells_by_label(grid)
    assert cells["AT"].settings.train.epochs == 50
    assert cells["ARD (AT)"].settings.train.epochs == 20
    assert {cell.settings.train.lr for cell in grid.cells} == {0.05}
    # another teacher is another student
    assert cells["ARD (AT)"].folder.parent.name == "ard_resnet18-at,epochs=20,lr=0.05,at.epochs=50"


def test_a_gamma_schedule_is_scaled_with_the_epochs(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "title: own\ndata: [cifar10]\nstudent: resnet18\nteacher_seed: 0\nrows:\n"
        "  - {label: a, method: iad1, settings: {objective.gamma: '0:0.5,100:2'}}\n"
    )
    (cell,) = (cell for cell in grid_of(file, epochs=0.1, seeds=(3,)).cells if cell.labels)
    assert cell.settings.objective.gamma == "0:0.5,10:2"
    assert cell.settings.teacher == "runs/cifar10/at_resnet18,epochs=20/seed0"
    assert "at.seed=0" in str(cell.folder)
    assert cell.folder.name == "seed3"


def test_a_folder_of_several_data_sets_is_each_one_s_own(tmp_path):
    for name in ("cifar10", "cifar100"):
        (tmp_path / name).mkdir()
    cells = grid_of("table2", f"--data.path {tmp_path}", data=("cifar10", "cifar100", "digits")).cells
    paths = {cell.settings.data.name: cell.settings.data.path for cell in cells}
    assert paths == {"cifar10": tmp_path / "cifar10", "cifar100": tmp_path / "cifar100", "digits": None}


def test_one_folder_is_not_several_data_sets(tmp_path):
    (tmp_path / "cifar10").mkdir()
    said = rf"a folder for each .* \(cifar10, cifar100\); there is no folder {tmp_path / 'cifar100'}"
    with pytest.raises(ValueError, match=said):
        grid_of("table2", f"--data.path {tmp_path}")
    cells = grid_of("table2", f"--data.path {tmp_path}", data=("cifar10",)).cells
    assert {cell.settings.data.path for cell in cells} == {tmp_path / "cifar10"}


def test_only_brings_the_teachers_along():
    grid = grid_of("table2", only="IAD-II (AT)", data=("cifar10",))
    assert [cell.recipe for cell in grid.cells] == ["at_resnet18", "st_resnet18", "iad2_resnet18"]
    assert [cell.attacks for cell in grid.cells][:2] == [("natural",), ("natural",)]
    whole = grid_of("table2", data=("cifar10",))
    assert cells_by_label(whole)["AT"].attacks == tuple(studies.read("table2").measures)


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_shards_are_disjoint_and_together_everything(of):
    cells = grid_of("small-scale").cells
    shares = [runner.shard_of(cells, number, of) for number in range(1, of + 1)]
    folders = [cell.folder for share in shares for cell in share]
    assert len(folders) == len(set(folders)) == len(cells)
    assert {cell.folder for cell in cells} == set(folders)


BROKEN = {
    "rows: []": "nothing to run",
    "colour: red": "unknown entry of a study 'colour'",
    "all: {objective.betta: 1}": "all: unknown setting 'objective.betta'; did you mean 'objective.beta'?",
    "all: {train.seed: 1}": "unknown setting 'train.seed'",
    "all: {train.epochs: many}": "--train.epochs takes int, got 'many'",
    "all: {data.name: digits}": "the data sets of a study stand under data:",
    "measures: [natural, pgd2]": "unknown measure 'pgd2'",
    "table: table99": "unknown table of the paper",
    "figures: {figure9: [one]}": "unknown figure 'figure9'",
    "figures: {figure3: [two]}": "figure figure3: unknown row 'two'",
    "claims: [{claim: c, a: one, b: two, measure: natural, expect: greater}]": "unknown row 'two'",
    "claims: [{claim: c, a: one, b: one, measure: natural, expect: more}]": "unknown expectation",
    "claims: [{claim: c, a: one, measure: natural, expect: less}]": "claim 'c' needs an entry 'b'",
    "claims: [{claim: c, a: one, b: one, measure: trust/mean, expect: less}]": "of one row; leave b out",
    "claims: [{claim: c, a: one, measure: teacher/acc, expect: less}]": "unknown measure 'teacher/acc'",
    "rows: [{label: one, method: at}, {label: one, method: at}]": "two rows are called 'one'",
    "rows: [{label: one, method: at, against: two}]": "unknown row 'two'",
    "rows: [{label: one}]": "a row needs an entry 'method'",
    "rows: [{label: one, method: art}]": "unknown recipe 'art_resnet18'",
    "student: resnet180": "unknown recipe 'at_resnet180'",
    "seeds: [0, 1, 1]": "seeds has 1 twice; a seed makes one run",
    "seeds: 0.5": "own.yaml: seeds takes whole numbers from 0, such as 0,1,2; got 0.5",
    "seeds:": "own.yaml: seeds takes whole numbers from 0, such as 0,1,2; got None",
    "seeds: []": "seeds takes at least one seed",
    "teacher_seed: first": "teacher_seed takes whole numbers",
    "rows: [{label: one, method: at, seeds: [2, 2]}]": "seeds of row 'one' has 2 twice",
    "rows: [{label: one, method: at}, {label: two, method: at, settings: {eval.eps: 1/5}}]": (
        "rows 'one' and 'two' are one run, runs/digits/at_resnet18/seed0, which is measured in one way; they have "
        "--eval.eps 0.1 and 0.2"
    ),
    "all: {train.epochs: 0}": "--train.epochs must be at least 1, got 0",
    "rows: [{label: one, method: at, data: cifar10}]": "nothing to run on digits: of own there is 'one' on cifar10",
    "rows: [{label: one, method: at, against: 0.5}]": "own.yaml: row 'one': unknown row '0.5'",
    "measures:": "own.yaml: unknown measure 'None'",
    "figures: [figure3]": "own.yaml: figures is a mapping of figures to labels of rows, got ['figure3']",
    "claims: [{claim: c, a: one, b: one, measure: natural, expect: less, by: much}]": (
        "by of 'c' must be a finite number, got 'much'"
    ),
    "claims: [{claim: c, a: one, b: one, measure: natural, expect: close, within: -1}]": (
        "within of 'c' must be at least 0, got -1"
    ),
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_file_says_what_is_wrong(tmp_path, line):
    lines = {
        "title": "title: own",
        "data": "data: [digits]",
        "student": "student: resnet18",
        "rows": "rows: [{label: one, method: at}]",
    }
    lines[line.partition(":")[0]] = line
    file = tmp_path / "own.yaml"
    file.write_text("\n".join(lines.values()) + "\n")
    with pytest.raises(ValueError, match=re.escape(BROKEN[line])):
        grid_of(file)


def test_labels_may_be_numbers_and_figures_may_be_none(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "title: own\ndata: [digits]\nstudent: resnet18\nfigures:\nrows:\n"
        "  - {label: 0.5, method: at}\n  - {label: 1, method: at, against: 0.5, settings: {train.lr: 0.2}}\n"
        "claims: [{claim: c, a: 1, b: 0.5, measure: natural, expect: less, by: 1}]\n"
    )
    study = studies.read(str(file))
    assert [row.against for row in study.rows] == [None, "0.5"]
    assert (study.claims[0].a, study.claims[0].b, study.claims[0].by) == ("1", "0.5", 1)
    assert not study.figures


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tabel5", "unknown study 'tabel5'; did you mean 'table5'?"),
        ("table5 --objective.beta 1", "--objective.beta is what the rows of table5 differ by"),
        ("table5 --train.seed 1", "--seeds takes the seeds"),
        ("table5 --trian.epochs 1", "did you mean '--train.epochs'?"),
        ("table5 --train.epochs", "--train.epochs takes one value, got none"),
        ("table5 --only nix", "'nix' fits none of the rows: 'IAD-I, β = 0.01'"),
        ("table2 --only 'AT,IAD-1 (AT)'", "'IAD-1 (AT)' fits none of the rows"),
        ("table2 --only ,", "--only takes labels of rows, got none"),
        ("table5 --scale 2", "--scale takes a fraction in (0, 1]"),
        ("table5 --shard 3/2", "--shard takes I/N"),
        ("table5 --jobs 0", "--jobs must be at least 1"),
        ("table5 --budget 0", "--budget is in minutes"),
        ("table5 --seeds a", "--seeds takes whole numbers from 0, such as 0,1,2; got 'a'"),
        ("table5 --seeds 0.7", "--seeds takes whole numbers from 0, such as 0,1,2; got '0.7'"),
        ("table5 --seeds inf", "got 'inf'"),
        ("table5 --seeds 0,1,0", "--seeds has 0 twice"),
        ("table5 --students.data.name digits", "--students.data.name: all cells are of the same data sets"),
        ("table5 --teachers.data.name digits", "--teachers.data.name: all cells are of the same data sets"),
        ("table5 --data.path /no/such/folder", "there is no folder /no/such/folder"),
        ("table5 --objective.tau 2", "unknown argument of at 'tau'"),
    ],
)
def test_wrong_words_are_exit_code_2(capsys, tmp_path, line, said):
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit) as stopped:
        cli.main(["study", *shlex.split(line), "--dry-run"])
    assert stopped.value.code == cli.WRONG_INPUT
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("only", "labels"),
    [
        ("TRADES, τ = 1", ["TRADES, τ = 1"]),  # a label with a comma of its own
        ("TRADES, τ = 1,TRADES, τ = 20", ["TRADES, τ = 1", "TRADES, τ = 20"]),
        ("*= 60 , *= 100", ["TRADES, τ = 60", "TRADES, τ = 100"]),
        ("*0,TRADES, τ = 1", ["TRADES, τ = 1", "TRADES, τ = 20", "TRADES, τ = 60", "TRADES, τ = 100"]),
    ],
)
def test_only_takes_labels_whole_and_patterns(only, labels):
    assert [line.label for line in grid_of("table10", only=only).lines] == labels


def test_a_label_is_that_row_and_no_other():
    assert [line.label for line in grid_of("small-scale", only="TRADES, τ = 20").lines] == ["TRADES, τ = 20"]


def test_lists_may_have_spaces():
    line = "--eval.attacks 'natural, aa' --eval.of 'best, last' --eval.aa-limit 8"
    (cell,) = grid_of("table2", line, data=("cifar10",), only="AT").cells
    assert cell.attacks == ("natural", "aa")
    assert list(settings.not_read(recipes.load(cell.recipe), cell.settings)) == []


def test_a_role_s_flag_can_be_said_no_to():
    _, given = overrides.from_command_line(["--students.train.no-flip", "--teachers.train.flip", "True"])
    assert given["students"] == {"train.flip": False}
    words = [f"--students.{word[2:]}" for word in spelling.arguments(given["students"])]
    assert overrides.from_command_line(words)[1]["students"] == given["students"]
    with pytest.raises(ValueError, match=r"unknown option .*no-flop"):
        overrides.from_command_line(["--students.train.no-flop"])


def test_flags_and_lists_are_spelled_as_the_recipes_spell_them():
    line = "--train.no-flip --student.normalize --train.drops 3 4 --attack.eps 4/255 --objective.gate-teacher True"
    _, given = overrides.from_command_line(shlex.split(line))
    assert given["all"] == {
        "train.flip": False,
        "student.normalize": True,
        "train.drops": (3, 4),
        "attack.eps": pytest.approx(4 / 255),
        "objective.gate_teacher": True,
    }
    words = list(spelling.arguments(given["all"]))
    assert words[:2] == ["--train.no-flip", "--student.normalize"]
    assert overrides.from_command_line(words)[1]["all"] == given["all"]


# ------------------------------------------------------------------------------------------- results


def finished(name, shares, line="", **choices):
    """A grid whose cells are all finished, right on these shares of the images by label."""
    grid = grid_of(name, line, **choices)
    for number, cell in enumerate(grid.cells):
        share = shares(cell.labels[0], cell.settings.train.seed) if cell.labels else 0.5
        fake_run(cell, share, seed=number if callable(shares) and choices.get("shuffled") else None)
    return grid


@pytest.fixture
def in_folder(tmp_path):
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_rows_are_means_and_spreads_beside_the_paper(in_folder):
    grid = finished("table2", lambda label, seed: 0.4 + 0.01 * seed, data=("cifar10",), seeds=(0, 1, 2))
    study = studies.report(grid)
    row = next(row for row in study["rows"] if row["label"] == "IAD-I (AT)")
    found = row["checkpoints"]["best"]["aa"]
    assert found["values"] == pytest.approx([40, 41, 42])
    assert (found["mean"], found["std"], found["n"]) == (pytest.approx(41), pytest.approx(1), 200)
    assert row["paper"]["aa"] == 48.66
    folder = grid.folder
    for run in row["runs"]:
        assert (folder / run / "results.json").is_file()
    assert json.loads((folder / "study.json").read_text()) == study
    assert study["provenance"]["runs"] == study["provenance"]["runs_wanted"] == 30


def shares_of(a, b, jitter=0.0, of_b=None):
    """The two rows' shares, and how far they move from a seed to the next; as far as each other unless told."""
    moves = {"ARD (AT)": jitter if of_b is None else of_b}

    def share(label, seed):
        base = {"IAD-I (AT)": a, "ARD (AT)": b}.get(label, 0.5)
        return base + moves.get(label, jitter) * (seed - 1)

    return share


@pytest.mark.parametrize(
    ("shares", "seeds", "verdict", "why"),
    [
        ((0.60, 0.45, 0.002), (0, 1, 2), "holds", "+15.00 points of AutoAttack"),
        ((0.45, 0.60, 0.002), (0, 1, 2), "fails", "-15.00 points of AutoAttack"),
        ((0.51, 0.50, 0.03, -0.03), (0, 1, 2), "cannot be told", "no difference could be one too"),
        # what both rows owe to the seed is no doubt about their difference, where three seeds tell that
        ((0.53, 0.50, 0.03), (0, 1, 2), "holds", "+3.00 points of AutoAttack"),
        ((0.53, 0.50, 0.03), (0, 1), "holds", "+3.00 points of AutoAttack"),
        ((0.60, 0.45, 0.0), (0,), "cannot be told", "of one seed each"),
    ],
)
def test_a_claim_holds_fails_or_cannot_be_told(in_folder, shares, seeds, verdict, why):
    grid = finished("table2", shares_of(*shares), data=("cifar10",), seeds=seeds)
    study = studies.report(grid)
    claim = study["claims"][0]
    assert claim["claim"] == "IAD-I is more robust than ARD under AutoAttack (AT teacher)"
    assert (claim["verdict"], why in claim["why"]) == (verdict, True)
    compared = next(
        c
        for c in study["comparisons"]
        if (c["a"], c["measure"], c["checkpoint"]) == ("IAD-I (AT)", "aa", "best")
    )
    assert compared["low"] <= compared["difference"] <= compared["high"]
    assert (compared["b"], compared["seeds"], compared["n"]) == ("ARD (AT)", len(seeds), 200)
    assert compared["paired_seeds"]


def test_of_images_of_one_s_own_the_power_is_known_once_they_are_measured(in_folder):
    own = {"data": ("someone/images",), "seeds": (0,), "only": "AT"}
    before = grid_of("table2", **own)
    said = []
    studies.announce(before, said.append)
    assert "not known before the first run" in " ".join(" ".join(said).split())
    assert results.collect(before)["settings"]["detectable_points"] is None
    limited = grid_of("table2", "--data.limit-test 300", **own)
    assert results.power(limited) == pytest.approx(statistics.detectable(300, 1))
    study = results.collect(finished("table2", lambda *_: 0.5, **own))  # AutoAttack on 200 of 400
    assert study["settings"]["detectable_points"] == pytest.approx(statistics.detectable(200, 1), abs=0.01)


def test_each_data_set_has_its_own_number_of_images(in_folder):
    grid = grid_of("table2", data=("cifar10", "cifar100"), only="AT", seeds=(0,))
    for cell in grid.cells:
        fake_run(cell, 0.5, n=400 if cell.settings.data.name == "cifar10" else 100)
    table = tables.markdown(results.collect(grid))
    assert "Images of cifar10: natural 400, " in table
    assert "Images of cifar100: natural 100, " in table


def test_a_row_of_one_seed_is_compared_with_that_seed_s_run(in_folder):
    """Not with the mean of other seeds; how far the difference might move is known from rows with several."""
    lucky = {0: 0.10, 1: 0.0, 2: -0.10}

    def share(label, seed):
        return 0.5 + lucky[seed] + (0.02 if "γ" in label else 0.01 if label.startswith("IAD-I") else 0.0)

    grid = finished("small-scale", share)
    compared = next(
        c
        for c in results.collect(grid)["comparisons"]
        if (c["a"], c["measure"], c["checkpoint"]) == ("IAD-I, γ = 4", "pgd20", "best")
    )
    assert (compared["b"], compared["seeds"], compared["paired_seeds"]) == ("IAD-I (AT)", 1, True)
    assert compared["difference"] == pytest.approx(1.0)
    assert compared["seed_spread"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.5, 0.8, "holds"), (1.2, 3.0, "fails"), (-0.5, 2.0, "cannot be told")]
)
def test_close_means_within_so_many_points(low, high, verdict):
    claim = Claim(claim="c", a="a", b="b", measure="aa", expect="close", within=1.0)
    made = {
        "measure": "aa", "difference": (low + high) / 2, "low": low, "high": high, "seeds": 3, "n": 100,
        "seed_spread": 0.3, "verdict": "tie",
    }  # fmt: skip
    assert results.judged(claim, made)[0] == verdict


@pytest.mark.parametrize(
    ("expect", "low", "high", "verdict"),
    [
        ("greater", 2.1, 4.0, "holds"),
        ("greater", 0.5, 3.0, "cannot be told"),  # higher, but perhaps not by two points
        ("greater", 0.5, 1.9, "fails"),
        ("less", -4.0, -2.1, "holds"),
        ("less", -1.9, -0.5, "fails"),
    ],
)
def test_by_asks_for_so_many_points(expect, low, high, verdict):
    claim = Claim(claim="c", a="a", b="b", measure="aa", expect=expect, by=2.0)
    found, why = results.judged_interval(claim, low, high, "said")
    assert (found, why.startswith("said")) == (verdict, True)


def test_less_is_the_other_way_round_and_nothing_measured_cannot_be_told():
    claim = Claim(claim="c", a="a", b="b", measure="aa", expect="less")
    made = {
        "measure": "aa", "difference": -3.0, "low": -4.0, "high": -2.0, "seeds": 3, "n": 100,
        "seed_spread": 0.3, "verdict": "lower",
    }  # fmt: skip
    assert results.judged(claim, made)[0] == "holds"
    assert results.judged(claim, made | {"difference": 3.0, "low": 2.0, "high": 4.0})[0] == "fails"
    assert results.judged(claim, None) == (
        "cannot be told",
        "its runs are not finished, or were not measured by this",
    )


def test_a_figure_s_course_is_a_claim_too(in_folder):
    """Its change from the first epoch to the last, over seeds."""
    falls = {0: [60.0, 52.0, 50.0], 1: [61.0, 50.0, 51.5], 2: [60.0, 49.0, 49.0]}

    def judged(seeds, rises=False):
        grid = grid_of("figure1", seeds=seeds)
        for cell in grid.cells:
            course = falls[cell.settings.train.seed][:: -1 if rises else 1]
            fake_run(cell, 0.5, logged={"teacher/acc_on_student_adv": course})
        return results.collect(grid)["claims"][0]

    claim = judged((0, 1, 2))
    # −10, −9.5, −11: mean −10.17, standard deviation 0.7638, t of 2 degrees 4.3027
    assert claim["verdict"] == "holds"
    assert "from 60.33 in the first epoch to 50.17 in the last; -10.17" in claim["why"]
    assert "95% interval -12.06 to -8.27 (3 seeds)" in claim["why"]
    assert (claim["b"], claim["measure"]) == (None, "teacher/acc_on_student_adv")
    assert judged((0, 1, 2), rises=True)["verdict"] == "fails"
    assert judged((0,))["verdict"] == "cannot be told"


def test_a_figure_s_course_of_no_finished_run_cannot_be_told(in_folder):
    claim = results.collect(grid_of("figure2"))["claims"][0]
    assert (claim["verdict"], claim["why"]) == (
        "cannot be told",
        "its runs are not finished, or have one epoch",
    )


def test_a_pair_that_stands_both_ways_round_counts_once(in_folder):
    """Table 8 sets IAD-I-Down against IAD-I, and a claim the other way: two seeds leave one degree of freedom."""
    share = {("IAD-I", 0): 0.50, ("IAD-I", 1): 0.52, ("IAD-I-Down", 0): 0.44, ("IAD-I-Down", 1): 0.47}
    grid = finished("table8", lambda label, seed: share[label, seed], data=("cifar10",), seeds=(0, 1))
    compared = next(
        c
        for c in results.collect(grid)["comparisons"]
        if (c["a"], c["measure"], c["checkpoint"]) == ("IAD-I", "pgd20", "best")
    )
    # differences 6 and 5 points: standard deviation 0.7071; half an interval 12.706 · 0.7071/√2 = 6.35 and more
    assert compared["seed_spread"] == pytest.approx(0.7071, abs=1e-3)
    assert compared["high"] - compared["low"] > 2 * 5.5
    assert compared["verdict"] == "tie"


def test_runs_under_other_labels_tell_no_more_of_the_spread(in_folder):
    """Nor does a row set against itself, whose difference is 0 with every seed."""
    once = "{label: A, method: at}, {label: B, method: trades, against: A}"
    again = "{label: A2, method: at, against: A}, {label: B2, method: trades, against: A2}"
    share = {"at_resnet18": (0.50, 0.52), "trades_resnet18": (0.44, 0.47)}
    found = []
    for rows in (once, f"{once}, {again}"):
        grid = grid_of(own_study(in_folder, "seeds: [0, 1]", "measures: [natural]", rows=f"rows: [{rows}]"))
        for cell in grid.cells:
            fake_run(cell, share[cell.recipe][cell.settings.train.seed])
        found.append(next(c for c in results.collect(grid)["comparisons"] if (c["a"], c["b"]) == ("B", "A")))
    assert found[0] == found[1]
    assert found[0]["seed_spread"] == pytest.approx(0.7071, abs=1e-3)


def test_runs_that_were_measured_otherwise_are_left_out(in_folder):
    """Of other images or another radius, but not by more attacks, nor where older results say less."""
    grid = finished("table2", lambda label, seed: 0.5, data=("cifar10",), only="AT,TRADES,IAD-I (AT)")
    cells = cells_by_label(grid)
    trial = {"eval.eps": 0.001, "eval.limit": 20}
    fake_run(
        dataclasses.replace(cells["AT"], settings=settings.override(cells["AT"].settings, trial)), 0.9, n=20
    )
    fake_run(cells["TRADES"], 0.4, n=300)
    file = cells["TRADES"].folder / "results.json"
    content = json.loads(file.read_text())
    content["evaluation"]["attacks"] += ",fgsm_plain"
    del content["evaluation"]["curve_limit"]
    file.write_text(json.dumps(content))
    study = studies.report(grid)
    rows = {row["label"]: row for row in study["rows"]}
    assert {label: row["finished"] for label, row in rows.items()} == {"AT": 0, "TRADES": 1, "IAD-I (AT)": 1}
    assert rows["AT"]["checkpoints"]["best"] == {}
    assert (study["provenance"]["runs"], study["provenance"]["measured_otherwise"]) == (2, 1)
    table = (grid.folder / "table.md").read_text()
    assert "Left out: 1 measured with other `--eval` settings than the study's" in table
    assert "\nImages: natural 300 or 400, FGSM 300 or 400, " in table


def test_the_versions_are_the_runs_own(in_folder):
    grid = grid_of("table2", data=("cifar10",), only="AT,TRADES")
    for cell, torch in zip(grid.cells, ("2.9.1", "2.11.0"), strict=True):
        fake_run(cell, 0.5, torch=torch)
    found = results.collect(grid)["provenance"]["versions"]
    assert found == {"torch": "2.11.0, 2.9.1", "numpy": "1.0"}


def test_a_recipe_s_own_run_is_the_study_s_cell(in_folder):
    """The recipe asks for `at`, the study for that run's folder: the run says where it found it."""
    grid = finished("table2", shares_of(0.6, 0.4), data=("cifar10",), only="ARD (AT),AKD2 (AT)")
    for cell in grid.cells:
        by_recipe = dataclasses.replace(
            cell.settings,
            teacher="at" if cell.settings.teacher else None,
            natural_teacher="st" if cell.settings.natural_teacher else None,
        )
        (cell.folder / "settings.yaml").write_text(settings.to_yaml(by_recipe))
        environment = json.loads((cell.folder / "environment.json").read_text())
        asked = {role: getattr(cell.settings, role) for role in ("teacher", "natural_teacher")}
        environment["teachers"] = {role: {"source": source} for role, source in asked.items() if source}
        (cell.folder / "environment.json").write_text(json.dumps(environment))
    assert {runner.state_of(cell) for cell in grid.cells} == {"finished"}
    student = cells_by_label(grid)["ARD (AT)"].folder
    file = student / "environment.json"
    file.write_text(
        file.read_text().replace("runs/cifar10/at_resnet18/seed0", "runs/cifar10/at_resnet18/seed1")
    )
    with pytest.raises(ValueError, match="--teacher: at before"):
        runner.refuse_others(grid.cells)


def test_runs_on_other_test_images_are_not_paired(in_folder):
    grid = finished("table2", shares_of(0.6, 0.4), data=("cifar10",), only="ARD (AT),IAD-I (AT)")
    cells = cells_by_label(grid)
    fake_run(cells["IAD-I (AT)"], 0.6, tested_on="another copy")
    study = studies.report(grid)
    assert study["comparisons"] == []
    assert {claim["verdict"] for claim in study["claims"]} == {"cannot be told"}


def test_a_half_finished_study_has_a_table_too(in_folder):
    grid = grid_of("table2", data=("cifar10",))
    cells = cells_by_label(grid)
    fake_run(cells["AT"], 0.5)
    study = studies.report(grid)
    assert (study["provenance"]["runs"], study["provenance"]["runs_wanted"]) == (1, 10)
    text = (grid.folder / "table.md").read_text()
    assert "| ARD (AT) | – |" in text
    assert "Finished runs: 1 of 10" in text


def test_markdown_is_bold_where_a_difference_exceeds_the_spread(in_folder):
    grid = finished("table2", shares_of(0.6, 0.45, 0.005), data=("cifar10",), seeds=(0, 1, 2))
    studies.report(grid)
    text = (grid.folder / "table.md").read_text()
    best = text.split("## Best checkpoint")[1].split("## ")[0]
    rows = {line.split("|")[1].strip(): line for line in best.splitlines() if line.startswith("| ")}
    assert "**60.00 ± 0.50**" in rows["IAD-I (AT)"]
    assert "**" not in rows["ARD (TRADES)"]
    assert len({line.count("|") for line in rows.values()}) == 1
    assert " 48.66 |" in rows["IAD-I (AT)"]
    for said in ("## Differences", "## Claims", "**holds**", "JPEG, with loss", "Table 2"):
        assert said in text


def test_one_seed_is_never_bold(in_folder):
    grid = finished("table2", shares_of(0.6, 0.4), data=("cifar10",))
    studies.report(grid)
    text = (grid.folder / "table.md").read_text()
    assert "**" not in text.split("## Claims")[0]
    assert "these very networks only" in text


def test_latex_has_as_many_cells_in_every_row_and_nothing_that_latex_would_choke_on(in_folder):
    grid = finished("table5", lambda label, seed: 0.5)
    study = studies.report(grid)
    text = tables.latex(study)
    for block in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.S):
        columns = len(block[0])
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {columns}
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"IAD-I, $\beta$ = 0.1" in code
    assert code.isascii()
    assert not re.search(r"(?<!\\)[%#]", code)


def test_csv_has_a_line_a_row_checkpoint_and_measure(in_folder):
    grid = finished("table2", shares_of(0.6, 0.4, 0.001), seeds=(0, 1))
    study = studies.report(grid)
    lines = list(csv.DictReader(io.StringIO((grid.folder / "table.csv").read_text())))
    assert len(lines) == 20 * 2 * 5
    (line,) = (
        line
        for line in lines
        if (line["label"], line["checkpoint"], line["measure"]) == ("IAD-I (AT), cifar100", "last", "aa")
    )
    assert line["against"] == "ARD (AT), cifar100"
    assert (line["paper"], line["verdict"], line["seeds"]) == ("23.66", "higher", "2")
    assert float(line["low"]) < float(line["difference"]) < float(line["high"])
    assert {claim["data"] for claim in study["claims"]} == {"cifar10", "cifar100"}


def test_costs_are_compared_over_epochs(in_folder):
    grid = grid_of("table14")
    for cell in grid.cells:
        fake_run(cell, 0.5, epochs=6, seconds=3.0 if "iad1" in cell.recipe else 2.0)
    study = studies.report(grid)
    row = next(row for row in study["rows"] if row["label"] == "IAD-I")
    assert row["checkpoints"]["last"]["seconds_per_epoch"]["mean"] == pytest.approx(3.03)
    assert row["paper"] == {"seconds_per_epoch": 182.01, "gpu_mib": 3977}
    verdicts = {claim["claim"]: claim["verdict"] for claim in study["claims"]}
    assert verdicts["IAD-I takes longer than ARD"] == "holds"
    assert verdicts["IAD-II takes longer than AKD2"] == "cannot be told"
    assert "seconds an epoch" in (grid.folder / "table.md").read_text()


def test_signs_of_masking_are_told(in_folder):
    grid = finished("table11", lambda label, seed: 0.5)
    fake_run(cells_by_label(grid)["ARD, τ = 0.1"], 0.7, masked=True)
    studies.report(grid)
    assert "- ARD, τ = 0.1: zero_gradients (pgd20)" in (grid.folder / "table.md").read_text()


def test_figures_are_drawn_of_finished_runs(in_folder):
    grid = grid_of("figure3")
    ard, iad = (next(c for c in grid.cells if c.recipe.startswith(name)) for name in ("ard", "iad1"))
    for cell in grid.cells:
        fake_run(cell, 0.5)
    lines = [json.loads(line) for line in (iad.folder / "metrics.jsonl").read_text().splitlines()]
    lines = [
        line | {"train/acc_adv": 30.0 + line["epoch"], "teacher/acc_on_student_adv": 50.0, "eval/pgd10": 20.0}
        for line in lines
    ]
    for cell in (ard, iad):
        (cell.folder / "settings.yaml").write_text("objective: {name: iad1}\n")
    (iad.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(ard.folder)
    studies.report(grid)
    drawn = {path.name for path in grid.folder.glob("figure*")}
    assert drawn == {"figure3.png", "figure3.svg"}  # figure3c needs both runs
    page = (grid.folder / "report.html").read_text()
    assert "<b>Figure 3. </b>" in page
    assert "of their numbers: figure3c.</p>" in page


FOR_FIGURES = {
    "teacher/acc_nat": 80.0,
    "teacher/acc_on_student_adv": 50.0,
    "cases/reliable": 40.0,
    "trust/histogram": [1] * (len(TRUST_EDGES) - 1),
}


def with_figures(cell):
    """A finished cell whose run counted what the paper's figures are drawn of."""
    fake_run(cell, 0.5)
    (cell.folder / "settings.yaml").write_text("objective: {name: iad1, beta: 0.1}\n")
    path = cell.folder / "metrics.jsonl"
    lines = [json.loads(line) | FOR_FIGURES for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("name", "called"), [("figure1", "Figure 1a"), ("figure2", "Figure 2b"), ("figure4", "Figure 4")]
)
def test_a_figure_s_study_has_it_on_its_page(in_folder, name, called):
    grid = grid_of(name)
    for cell in grid.cells:
        with_figures(cell)
    studies.report(grid)
    page = (grid.folder / "report.html").read_text()
    assert f"<b>{called}. </b>" in page
    assert "Trust in the teacher" in page
    assert "Not drawn" not in page


def test_figures_are_drawn_of_each_data_set(in_folder):
    grid = grid_of("figure1", data=("cifar10", "cifar100"))
    for cell in grid.cells:
        with_figures(cell)
    studies.report(grid)
    drawn = {path.name for path in grid.folder.glob("figure*")}
    assert drawn == {f"figure1a-{data}.{end}" for data in ("cifar10", "cifar100") for end in ("png", "svg")}
    assert (grid.folder / "report.html").read_text().count("<b>Figure 1a. </b>") == 2


def test_figures_of_a_data_set_of_the_hub_are_drawn_and_named_while_another_s_runs_are_missing(in_folder):
    hub = "someone/images"
    grid = grid_of("figure1", "--data.limit-train 9", data=("cifar10", hub))
    for cell in grid.cells:
        if cell.settings.data.name == hub:
            with_figures(cell)
    studies.report(grid)
    drawn = {path.name for path in grid.folder.glob("figure*")}
    assert drawn == {f"figure1a-someone--images.{end}" for end in ("png", "svg")}
    page = (grid.folder / "report.html").read_text()
    assert page.count("<b>Figure 1a. </b>") == 1
    assert "of their numbers: figure1a (cifar10)." in page


def test_a_figure_without_numbers_is_told(in_folder, caplog):
    grid = grid_of("figure2")
    for cell in grid.cells:
        fake_run(cell, 0.5)
        (cell.folder / "settings.yaml").write_text("objective: {name: iad1}\n")
    studies.report(grid)
    assert "figure2b is not drawn" in caplog.text
    assert not list(grid.folder.glob("figure*"))


# ------------------------------------------------------------------------------------------- the runner

STUB = """
import json, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "settings.yaml").write_text("")
def stop(*_):
    (folder / "stopped").write_text("")
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
code, seconds = int(sys.argv[2]), float(sys.argv[3])
if (folder / "stopped").exists():
    seconds = 0
began = time.time()
time.sleep(seconds)
if code:
    print("error: it broke")
    sys.exit(code)
evaluation = json.loads(sys.argv[4])
(folder / "results.json").write_text(json.dumps({"evaluation": evaluation, "time": [began, time.time()]}))
"""


@pytest.fixture
def stubbed(in_folder, monkeypatch):
    """Cells whose processes do nothing but end as a test wants; the codes and seconds by recipe's method."""
    (in_folder / "stub.py").write_text(STUB)
    ends = {}

    def command(cell):
        code, seconds = ends.get(cell.recipe.partition("_")[0], (0, 0.0))
        evaluation = json.dumps(dataclasses.asdict(cell.settings.eval))
        return [sys.executable, "stub.py", str(cell.folder), str(code), str(seconds), evaluation]

    monkeypatch.setattr(runner, "command", command)
    return ends


def run_all(grid, **way):
    said = []
    outcome = Runner(grid.cells, say=said.append, **way).run()
    return outcome, "\n".join(said)


def test_finished_cells_are_not_run_again(stubbed):
    grid = grid_of("table2", data=("cifar10",), only="IAD-I (AT),ARD (AT)")
    outcome, _ = run_all(grid)
    assert len(outcome.finished) == 3
    assert not outcome.left
    again, said = run_all(grid)
    assert again.finished == []
    assert "3 of 3 cells are finished already" in said
    assert studies.exit_code([again]) == 0


def test_a_cell_that_wants_more_measures_is_run_for_them(stubbed):
    run_all(grid_of("table2", "--eval.attacks natural", data=("cifar10",), only="AT"))
    more = grid_of("table2", "--eval.attacks natural,pgd20", data=("cifar10",), only="AT")
    assert [runner.state_of(cell) for cell in more.cells] == ["interrupted"]
    assert len(run_all(more)[0].finished) == 1
    fewer = grid_of("table2", "--eval.attacks pgd20", data=("cifar10",), only="AT")
    assert [runner.state_of(cell) for cell in fewer.cells] == ["finished"]


def test_a_trial_with_other_settings_is_no_cell(stubbed, capsys):
    """A finished run of two epochs in a cell's folder is refused before anything runs, and never in the table."""
    grid = grid_of("table2", data=("cifar10",), only="ARD (AT)")
    run_all(grid)
    teacher = grid.cells[0]
    trial = settings.override(teacher.settings, {"train.epochs": 2, "eval.aa_limit": 8})
    (teacher.folder / "settings.yaml").write_text(settings.to_yaml(trial))
    assert [runner.state_of(cell) for cell in grid.cells] == ["another", "finished"]
    line = ["study", "table2", "--data.name", "cifar10", "--only", "ARD (AT)"]
    for more in ([], ["--report"]):
        with pytest.raises(SystemExit, match=r"^2$"):
            cli.main([*line, *more])
        said = capsys.readouterr().err
        assert f"{teacher.folder} was begun with other settings" in said
        assert "--train.epochs: 2 before, 200 now" in said
        assert "aa-limit" not in said  # how it is measured may change
    assert not grid.folder.exists()
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([*line, "--dry-run"])
    assert "1 another, 1 finished" in capsys.readouterr().out


def test_a_share_that_writes_no_tables_says_why(stubbed, capsys):
    grid = grid_of("table2", data=("cifar10",), only="ARD (AT)")
    Runner(grid.cells[:1], say=lambda line: None).run()
    line = ["study", "table2", "--data.name", "cifar10", "--only", "ARD (AT)", "--report", "--shard", "1/2"]
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(line)
    assert "1 of 2 cells are not finished; --report without --shard writes" in capsys.readouterr().out
    assert not grid.folder.exists()


def test_students_wait_for_their_teachers_and_jobs_run_side_by_side(stubbed):
    stubbed.update(at=(0, 0.3), ard=(0, 0.5), iad1=(0, 0.5))
    grid = grid_of("table2", data=("cifar10",), only="IAD-I (AT),ARD (AT)")
    outcome, _ = run_all(grid, jobs=2, devices=("0", "1"))
    assert not outcome.left
    times = {
        cell.recipe: json.loads((cell.folder / "results.json").read_text())["time"] for cell in grid.cells
    }
    assert times["at_resnet18"][1] <= min(times["ard_resnet18"][0], times["iad1_resnet18"][0])
    assert max(times["ard_resnet18"][0], times["iad1_resnet18"][0]) < min(
        times["ard_resnet18"][1], times["iad1_resnet18"][1]
    )


def test_devices_are_shared_out(stubbed, monkeypatch, in_folder):
    printing = (
        "import os, sys; print('on', os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('WORLD_SIZE'))"
    )
    monkeypatch.setattr(runner, "command", lambda cell: [sys.executable, "-c", printing])
    monkeypatch.setenv("WORLD_SIZE", "1")
    grid = grid_of("table2", data=("cifar10",), only="AT,TRADES")
    run_all(grid, jobs=2, devices=("3", "5"))
    said = {runner.log_of(cell.folder).read_text().strip() for cell in grid.cells}
    assert said == {"on 3 None", "on 5 None"}


def test_a_failure_is_told_and_stops_only_what_needs_it(stubbed):
    stubbed.update(at=(3, 0.0))
    grid = grid_of("table2", data=("cifar10",), only="ARD (AT),ARD (TRADES)")
    outcome, said = run_all(grid)
    assert "with exit code 3: error: it broke" in said
    assert [cell.recipe for cell in outcome.finished] == ["trades_resnet18", "ard_resnet18"]
    assert {cell.folder.parent.name for cell in outcome.left} == {"at_resnet18", "ard_resnet18-at"}
    assert studies.exit_code([outcome]) == 3


def test_a_budget_ends_running_cells_in_good_order_and_the_rest_goes_on_later(stubbed):
    stubbed.update(at=(0, 60.0))
    grid = grid_of("table2", data=("cifar10",), only="AT,TRADES")
    outcome, said = run_all(grid, budget=1.0)
    assert outcome.stopped == "the budget is spent"
    assert "it goes on where it was" in said
    assert studies.exit_code([outcome]) == 5
    assert [runner.state_of(cell) for cell in grid.cells] == ["interrupted", "to do"]
    assert (grid.cells[0].folder / "stopped").exists()
    outcome, said = run_all(grid)
    assert not outcome.left
    assert "going on" in said


def test_a_share_waits_for_the_teacher_of_another(stubbed, monkeypatch, in_folder):
    monkeypatch.setattr(runner, "OTHERS", 0.1)
    grid = grid_of("table2", data=("cifar10",), only="ARD (AT)")
    teacher, student = grid.cells
    said = []

    def say(line):
        said.append(line)
        if line.startswith("waiting"):
            other = Runner([teacher], say=lambda line: None)
            other.run()

    outcome = Runner([student], say=say).run()
    assert any("for another runner to finish runs/cifar10/at_resnet18/seed0" in line for line in said)
    assert outcome.finished == [student]


def when_waiting(do):
    """Says nothing, and does something once the runner waits for others."""
    return lambda line: do() if line.startswith("waiting") else None


def test_a_share_does_not_wait_for_a_teacher_that_failed_in_another(stubbed, monkeypatch):
    monkeypatch.setattr(runner, "OTHERS", 0.1)
    monkeypatch.setattr(runner, "PATIENCE", 0.2)
    stubbed.update(at=(3, 0.0))
    grid = grid_of("table2", data=("cifar10",), only="ARD (AT)")
    teacher, student = grid.cells
    said = []

    def say(line):
        said.append(line)
        when_waiting(Runner([teacher], say=lambda line: None).run)(line)

    outcome = Runner([student], budget=30, say=say).run()
    assert outcome.stopped == ""
    assert outcome.left == [student]
    assert studies.exit_code([outcome]) == 3
    given_up = [line for line in said if line.startswith("given up")]
    assert given_up == [
        "given up   what needs runs/cifar10/at_resnet18/seed0: it failed in another share "
        "(all in runs/cifar10/at_resnet18/seed0.log)"
    ]


def test_a_teacher_that_failed_before_is_waited_for_where_another_share_tries_it_again(stubbed, monkeypatch):
    monkeypatch.setattr(runner, "OTHERS", 0.1)
    grid = grid_of("table2", data=("cifar10",), only="ARD (AT)")
    teacher, student = grid.cells
    stubbed.update(at=(3, 0.0))
    assert Runner([teacher], say=lambda line: None).run().failed
    assert runner.failure_of(teacher.folder).read_text() == "exit code 3\n"
    stubbed.update(at=(0, 0.0))
    again = when_waiting(Runner([teacher], say=lambda line: None).run)
    assert Runner([student], budget=60, say=again).run().finished == [student]
    assert not runner.failure_of(teacher.folder).exists()


def test_a_cell_that_another_process_runs_is_waited_for(stubbed, monkeypatch):
    """As after a runner was killed: what it had started trains on."""
    monkeypatch.setattr(runner, "OTHERS", 0.1)
    grid = grid_of("table2", data=("cifar10",), only="AT")
    (cell,) = grid.cells
    said = []
    with contextlib.ExitStack() as held:
        held.enter_context(checkpoint.locked(cell.folder))
        assert runner.state_of(cell) == "running"

        def say(line):
            said.append(line)
            if line.startswith("waiting"):
                held.close()

        outcome = Runner(grid.cells, say=say).run()
    assert outcome.finished == [cell]
    assert any(line.startswith("waiting") for line in said)


def test_of_two_runners_that_begin_the_same_cell_the_second_waits(stubbed, monkeypatch):
    """Both see the folder free; the run that comes second ends with 4, and that is no failure."""
    monkeypatch.setattr(runner, "OTHERS", 0.1)
    stubbed["at"] = (4, 0.0)
    grid = grid_of("table2", data=("cifar10",), only="AT")
    (cell,) = grid.cells
    said = []
    launch = Runner._launch
    with contextlib.ExitStack() as held:

        def launched(self, cell):
            launch(self, cell)
            held.enter_context(checkpoint.locked(cell.folder))  # by the other one

        def say(line):
            said.append(line)
            if line.startswith("waiting"):
                stubbed["at"] = (0, 0.0)
                monkeypatch.setattr(Runner, "_launch", launch)
                held.close()

        monkeypatch.setattr(Runner, "_launch", launched)
        outcome = Runner(grid.cells, say=say).run()
    assert (outcome.finished, outcome.failed) == ([cell], {})
    assert not runner.failure_of(cell.folder).exists()


def test_a_run_that_cannot_write_has_failed(stubbed):
    stubbed["at"] = (4, 0.0)
    outcome, _ = run_all(grid_of("table2", data=("cifar10",), only="AT"))
    assert list(outcome.failed.values()) == [4]


# ------------------------------------------------------------------------------------------- for real


STUDY = """
title: Tiny
table: table2
data: [digits]
student: resnet18
measures: [natural, pgd20]
all: {checkpoint.every_steps: 2}
students: {train.epochs: 12}
rows:
  - {label: AT, method: at}
  - {label: IAD-I, method: iad1, teacher: at, against: AT}
claims:
  - {claim: IAD-I is more robust, a: IAD-I, b: AT, measure: pgd20, expect: greater}
"""
OPTIONS = (
    "--student.name cifar_resnet8 --data.limit-train 64 --data.limit-test 32 --train.batch-size 16 "
    "--teachers.train.epochs 1 --precision fp32"
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A study through the recipes' own command lines: stopped by a signal within the student, then continued."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "tiny.yaml").write_text(STUDY)
    line = [sys.executable, str(RECIPES / "studies/run.py"), "tiny.yaml", *shlex.split(OPTIONS)]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(RECIPES.parent)}
    with subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if list(folder.glob("runs/digits/iad1*/seed0/checkpoints/epoch0001-*")):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        first = process.communicate(timeout=120)[0]
    again = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return folder, (process.returncode, first), (again.returncode, again.stdout + again.stderr)


@pytest.mark.slow
def test_a_signal_stops_a_study_and_the_same_command_goes_on(real):
    folder, (code, said), (second, said_again) = real
    assert code == 5, said
    assert "they save and end" in said
    assert "## Claims" in said  # a table of what there is
    assert second == 0, said_again
    assert "1 of 2 cells are finished already" in said_again
    assert "going on" in said_again
    (student,) = folder.glob("runs/digits/iad1*/seed0")
    events = [json.loads(line)["event"] for line in (student / "history.jsonl").read_text().splitlines()]
    assert events == ["begun", "stopped", "continued", "measured"]
    assert len((student / "metrics.jsonl").read_text().splitlines()) == 12


@pytest.mark.slow
def test_its_table_is_of_its_run_folders(real):
    (table,) = real[0].glob("runs/studies/tiny-*/study.json")
    study = json.loads(table.read_text())
    row = next(row for row in study["rows"] if row["label"] == "IAD-I")
    run = table.parent / row["runs"][0]
    measured = json.loads((run / "results.json").read_text())
    for which in ("best", "last"):
        for measure in ("natural", "pgd20"):
            assert row["checkpoints"][which][measure]["mean"] == pytest.approx(
                measured[which][measure], abs=0.01
            )
    (compared,) = (c for c in study["comparisons"] if (c["measure"], c["checkpoint"]) == ("pgd20", "best"))
    teacher = json.loads((table.parent / study["rows"][0]["runs"][0] / "results.json").read_text())
    assert compared["difference"] == pytest.approx(
        measured["best"]["pgd20"] - teacher["best"]["pgd20"], abs=0.01
    )
    assert study["claims"][0]["verdict"] == "cannot be told"
    assert measured["teacher"]["source"] == str(
        next(real[0].glob("runs/digits/at_*/seed0")).relative_to(real[0])
    )


@pytest.mark.slow
def test_a_dry_run_says_how_far_everything_is(real, capsys):
    folder = real[0]
    with contextlib.chdir(folder), pytest.raises(SystemExit) as stopped:
        cli.main(["study", "tiny.yaml", *shlex.split(OPTIONS), "--dry-run"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "2 cells: 2 finished" in said
    assert "can detect about" in " ".join(said.split())
    assert not os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.slow
def test_a_report_alone_runs_nothing(real, capsys, monkeypatch):
    monkeypatch.setattr(studies, "run", lambda *_: pytest.fail("it ran"))
    with contextlib.chdir(real[0]), pytest.raises(SystemExit) as stopped:
        cli.main(["study", "tiny.yaml", *shlex.split(OPTIONS), "--report"])
    assert stopped.value.code == 0
    assert "## Claims" in capsys.readouterr().out


def test_studies_are_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"\n{name} " in f"\n{said}"


def test_flags_are_read_once_and_as_booleans(in_folder):
    grid = finished("table2", lambda label, seed: 0.25, data=("cifar10",), only="AT")
    (run,) = (results.Run(cell.folder, {}) for cell in grid.cells)
    results._flags.cache_clear()  # of a folder of the same name in another test's folder
    flags = run.flags("best", "natural")
    assert flags.dtype == np.bool_
    assert flags.mean() == 0.25
