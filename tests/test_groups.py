"""Rows under headings: in tables, on the page, and as the marks of one quantity against another."""

import contextlib
import csv
import re

import pytest
from study_runs import fake_run

from iad_ext import studies
from iad_ext.studies import tables

STUDY = """
title: Two kinds
data: [digits]
student: resnet18
measures: [natural, pgd20]
all: {student.name: cifar_resnet8, train.epochs: 1}
rows:
  - {label: AT, method: at}
  - {group: "distilled & old", label: ARD, method: ard, teacher: at}
  - {group: "distilled & old", label: IAD-I, method: iad1, teacher: at}
  - {group: newer, label: RSLAD, method: rslad, teacher: at}
  - {group: newer, label: AdaAD, method: adaad, teacher: at}
relations:
  - {name: trade-off, x: natural, y: pgd20, by: group}
"""
# natural and PGD-20: AdaAD is beaten by IAD-I in both, ARD by AT in one at the same other
SHARES = {
    "AT": (0.8, 0.3),
    "ARD": (0.8, 0.2),
    "IAD-I": (0.7, 0.4),
    "RSLAD": (0.6, 0.5),
    "AdaAD": (0.65, 0.35),
}


def grid_of(folder, content=STUDY):
    (folder / "own.yaml").write_text(content)
    return studies.expand(studies.read(str(folder / "own.yaml")), studies.Choices())


@pytest.fixture
def reported(tmp_path):
    with contextlib.chdir(tmp_path):
        grid = grid_of(tmp_path)
        for cell in grid.cells:
            for label in cell.labels:
                natural, attacked = SHARES[label]
                fake_run(cell, {"natural": natural, "pgd20": attacked}, n=100)
        yield grid, studies.report(grid)


def test_a_group_has_a_line_above_its_rows(reported):
    grid, study = reported
    assert [row["group"] for row in study["rows"]] == [None, *["distilled & old"] * 2, *["newer"] * 2]
    best = (grid.folder / "table.md").read_text().split("## Best checkpoint")[1].split("\n## ")[0]
    lines = [line for line in best.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "AT",
        "*distilled & old*",
        "ARD",
        "IAD-I",
        "*newer*",
        "RSLAD",
        "AdaAD",
    ]
    assert len({line.count("|") for line in lines}) == 1
    made = tables.latex(study)
    assert made.count(r"\textit{distilled \& old}") == 2  # best and last
    widths = {line.count(" & ") for line in made.splitlines() if line.endswith(r"\\")}
    assert widths == {2, 4}  # results; a relation's points
    with (grid.folder / "table.csv").open() as file:
        groups = {line["label"]: line["group"] for line in csv.DictReader(file)}
    assert groups == {
        "AT": "",
        **dict.fromkeys(("ARD", "IAD-I"), "distilled & old"),
        **dict.fromkeys(("RSLAD", "AdaAD"), "newer"),
    }


def test_the_page_has_them_too(reported):
    page = (reported[0].folder / "report.html").read_text()
    results = re.findall(r"<section.*?Results, (?:best|last).*?</section>", page, flags=re.DOTALL)
    assert len(results) == 2
    for found in results:
        assert found.count("<tbody>") == 3
        assert re.findall(r'<tr class="group"><th scope="rowgroup" colspan="3">(.*?)</th>', found) == [
            "distilled &amp; old",
            "newer",
        ]
    assert "Named are the rows that no other exceeds in both." in page


def test_marks_are_of_groups_and_those_that_none_exceeds_are_named(reported):
    grid, study = reported
    (relation,) = study["relations"]
    assert len(relation["points"]) == 5  # a row without a teacher is one where nothing of a teacher is asked
    (held,) = relation["correlations"]
    assert (held["called"], held["n"], held["rho"]) == ("all rows", 5, pytest.approx(-0.82, abs=0.1))
    drawn = (grid.folder / "trade-off.svg").read_text()
    for said in ("other", "distilled &amp; old", "newer", "AT", "IAD-I", "RSLAD"):
        assert re.search(rf"<!-- {re.escape(said.replace('&amp;', '&'))} -->|>{re.escape(said)}<", drawn), (
            said
        )
    for said in ("ARD", "AdaAD"):
        assert not re.search(rf"<!-- {said} -->|>{said}<", drawn), said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("label: AdaAD", "label: AdaAD, grup: newer", "unknown entry of a row 'grup'; did you mean 'group'?"),
        ("by: group", "by: rows", "unknown by of relation trade-off 'rows'"),
        (
            "{group: newer, label: AdaAD",
            '{group: "distilled & old", label: AdaAD',
            "rows of the group 'distilled & old' stand apart",
        ),
        ("{group: newer, label: RSLAD", "{label: RSLAD", "rows without a group stand apart"),
    ],
)
def test_what_is_not_understood_is_said(tmp_path, old, new, said):
    assert old in STUDY
    with pytest.raises(ValueError, match=re.escape(said)):
        grid_of(tmp_path, STUDY.replace(old, new))
