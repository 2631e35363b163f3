"""The scripts of examples/ run from their command line, and print what their recorded output in the docs shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OWN_ARGUMENTS = {"art_pipeline": ["--keep", "kept"]}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each prints after two epochs, {its name: output}, and the folder that they ran in; side by side."""
    folder = tmp_path_factory.mktemp("examples")
    started = {
        path.stem: subprocess.Popen(
            [sys.executable, str(path), "--epochs", "2", *OWN_ARGUMENTS.get(path.stem, ())],
            cwd=folder,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path in EXAMPLES
    }
    ended = {name: (*run.communicate(timeout=600), run.returncode) for name, run in started.items()}
    for name, (_, err, code) in ended.items():
        assert code == 0, f"{name}: {err}"
    return {name: out for name, (out, _, _) in ended.items()}, folder


def _shape(output):
    """Its lines without their figures, each once: more epochs print no other ones."""
    lines = (re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "#", line)).strip() for line in output.splitlines())
    return [line for line in dict.fromkeys(lines) if line]


def _rows(output, columns):
    """{row: its percentages} of the table under `columns`."""
    _, _, table = output.partition(columns)
    number = r"\s+(\d+\.\d+)%?"
    found = re.findall(rf"^(\S.*?){number * len(columns.split())}$", table, re.MULTILINE)
    return {name.strip(): [float(share) for share in shares] for name, *shares in found}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_prints_what_the_docs_show(printed, path):
    recorded = (ROOT / "docs" / "gallery" / f"{path.stem}.txt").read_text(encoding="utf-8")
    head, _, rest = recorded.partition("\n")
    assert re.fullmatch(rf"# .*: python examples/{path.name}", head)
    # whether a flag is raised depends on how far training came
    shown, said = (_shape(text.partition("\nsigns of masked")[0]) for text in (rest, printed[0][path.stem]))
    assert said == shown


def test_the_pipeline_hardens_the_classifier_and_keeps_its_fits(printed):
    output, folder = printed
    rows = _rows(output["art_pipeline"], "natural    PGD-20    Square")
    before, teacher, after = rows.values()
    for natural, pgd, square in (before, teacher, after):
        assert 100 >= natural >= max(pgd, square)
    assert min(before[0], teacher[0], after[0]) > 60
    assert min(teacher[1], after[1]) > before[1]
    for fit in ("teacher", "student"):
        assert list((folder / "kept" / fit).rglob("*.safetensors")), fit


def test_an_objective_of_one_s_own_trains_and_its_slip_is_explained(printed):
    output = printed[0]["own_objective"]
    assert "unknown argument of soft_labels 'natural_wieght'; did you mean 'natural_weight'?" in output
    assert "its step runs student_adv, student_nat, teacher_nat" in output
    rows = _rows(output, "natural   fgsm  pgd20  cw_inf")
    assert list(rows) == ["AT (teacher)", "RSLAD", "RSLAD, introspective"]
    for natural, fgsm, pgd, cw in rows.values():
        assert natural > 60
        assert natural >= fgsm >= min(pgd, cw) > 20
    assert rows["RSLAD"] != rows["RSLAD, introspective"]


def test_a_student_of_timm_s_learns_from_the_teacher(printed):
    output = printed[0]["timm_student"]
    rows = _rows(output, "natural   fgsm  pgd20  cw_inf")
    _, alone, distilled = rows.values()
    assert min(alone[0], distilled[0]) > 40
    assert min(alone[2], distilled[2]) > 10
    assert "signs of masked gradients: " in output
