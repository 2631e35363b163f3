"""The check in CI that no dependency may be a version with published vulnerabilities."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CHECK = REPOSITORY / ".ci" / "check_floors.py"
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text()


def check(folder, pyproject, constraints):
    (folder / "pyproject.toml").write_text(pyproject)
    (folder / "constraints.txt").write_text(constraints)
    files = (folder / "pyproject.toml", folder / "constraints.txt")
    return subprocess.run([sys.executable, CHECK, *files], capture_output=True, text=True)


def changed(text, before, after):
    assert text.count(before) == 1
    return text.replace(before, after)


def pin(name):
    return next(line for line in CONSTRAINTS.splitlines() if line.startswith(f"{name}=="))


def test_ours_pass():
    done = subprocess.run([sys.executable, CHECK], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            '"requests>=2.33"',
            '"requests>=2.32.5"',
            "pyproject.toml permits requests 2.32.5: raise it to 2.33 (",
        ),
        ('"requests>=2.33"', '"requests"', "pyproject.toml permits requests of any age: raise it to 2.33 ("),
        (
            '"requests>=2.33"',
            '"requests<3"',
            "pyproject.toml permits requests of any age: raise it to 2.33 (",
        ),
        ('"requests>=2.33"', '"requests!=2.32"', "pyproject.toml permits requests of any age"),
        ('"requests>=2.33"', '"Requests~=2.25.1"', "pyproject.toml permits requests 2.25.1"),
        ('"requests>=2.33",', "", "pyproject.toml declares no requests: declare requests>=2.33 ("),
        (
            '"torch>=2.11"',
            '"torch>=2.9.1"',
            "pyproject.toml permits torch 2.9.1: raise it to 2.10 (older weights-only",
        ),
        ('"torch>=2.11"', '"torch>=2.9,<3"', "pyproject.toml permits torch 2.9: "),
        ('"torch>=2.11"', '"torch==2.9.*"', "pyproject.toml permits torch 2.9: "),
        ('"torch>=2.11"', '"torch>=2.10.0rc1"', "pyproject.toml permits torch 2.10.0rc1: "),
        ('"ruff>=0.11"', '"ruff>=0.11", "torch>=2.8"', "pyproject.toml permits torch 2.8: "),
    ],
)
def test_a_range_that_begins_too_early_fails(tmp_path, before, after, said):
    done = check(tmp_path, changed(PYPROJECT, before, after), CONSTRAINTS)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("name", ["pillow", "requests", "torch"])
def test_a_pin_that_is_too_old_or_missing_fails(tmp_path, name):
    old = check(tmp_path, PYPROJECT, changed(CONSTRAINTS, pin(name), f"{name}==2.9.1"))
    assert old.returncode == 1
    assert f"constraints.txt permits {name} 2.9.1: raise it to" in old.stderr
    gone = check(tmp_path, PYPROJECT, changed(CONSTRAINTS, pin(name), ""))
    assert gone.returncode == 1
    assert f"constraints.txt does not pin {name}" in gone.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"torch>=2.11"', '"torch>=2.10"'),
        ('"torch>=2.11"', '"torch>=2.11,<3"'),
        ('"requests>=2.33"', '"requests~=2.34"'),
    ],
)
def test_a_range_that_begins_late_enough_passes(tmp_path, before, after):
    done = check(tmp_path, changed(PYPROJECT, before, after), CONSTRAINTS)
    assert (done.returncode, done.stderr) == (0, "")
