"""What is stated twice agrees: versions, pins, Makefile and workflows; and a built package holds what it should."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import iad_ext

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


# ------------------------------------------------------------------------------------------- versions and pins


def test_one_version():
    assert PROJECT["dynamic"] == ["version"]  # out of iad_ext/__init__.py
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert iad_ext.__version__ == str(cited["version"]) == newest[1]


def test_everything_declared_is_pinned_within_its_range():
    extras = PROJECT["optional-dependencies"]
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    for line in [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(extras), line
        else:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_hooks_before_a_commit_are_the_pinned_versions_and_what_make_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    repositories = {repository["repo"]: repository for repository in config["repos"]}
    ruff = repositories.pop("https://github.com/astral-sh/ruff-pre-commit")
    assert ruff["rev"] == f"v{PINS['ruff']}"
    (local,) = repositories.values()
    for hook in local["hooks"]:
        assert hook["entry"].replace(".venv/bin", "$(BIN)") in MAKEFILE, hook["id"]


# ------------------------------------------------------------------------------------------- Makefile and workflows


def test_every_target_is_listed_and_no_file():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    listed = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert TARGETS == listed == set(phony.split())


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (ROOT / ".github").rglob("*") if path.suffix in {".yml", ".yaml"}),
    ids=lambda path: path.name,
)
def test_a_form_or_workflow_is_yaml(path):
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path in WORKFLOWS:
        # YAML reads the key `on` as true
        assert {"name", True, "jobs", "permissions"} <= set(found)
        assert all("timeout-minutes" in job for job in found["jobs"].values())
    elif path.name != "config.yml":
        assert {"name", "description", "body"} <= set(found)


def _commands(workflow):
    for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def test_workflows_call_what_exists():
    called = "\n".join(command for workflow in WORKFLOWS for command in _commands(workflow))
    scripts = re.findall(r"^\.ci/\S+", called, re.MULTILINE)
    assert scripts == [".ci/run"]
    called += "\n" + (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = re.findall(r"^make (.*)$", called, re.MULTILINE)
    made = {word for line in lines for word in line.split() if "=" not in word}
    assert {"lint", "types", "docs", "test"} <= made <= TARGETS


def test_contributing_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`?\bmake ([a-z-]+)`?(?= |`|$)", text)) <= TARGETS
    assert {"check", "test", "format"} <= set(re.findall(r"^make (\S+)", text, re.MULTILINE))
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    named = re.findall(r"`((?:iad_ext|docs|tests|recipes|\.ci|\.github)/[\w./-]*)`", text)
    assert {f"docs/extend/{what}.md" for what in ("objective", "attack", "network", "data-set")} <= set(
        linked
    )
    for path in [*linked, *named]:
        assert (ROOT / path).exists(), path


# ------------------------------------------------------------------------------------------- what is built


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel's and the source archive's names, and the wheel's metadata; as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    assert iad_ext.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode()
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    return set(names), sources, said


def test_a_wheel_holds_types_recipes_and_licence_and_nothing_else(built):
    names, _, metadata = built
    files = (path.relative_to(ROOT) for path in (ROOT / "iad_ext").rglob("*") if path.is_file())
    packaged = {path.as_posix() for path in files if not {"__pycache__", "_recipes"} & set(path.parts)}
    inside = (path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*") if path.is_file())
    recipes = {f"iad_ext/_recipes/{path.as_posix()}" for path in inside if "__pycache__" not in path.parts}
    assert len(recipes) > 21
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == packaged | recipes
    assert "iad_ext/py.typed" in packaged
    assert any(name.endswith("/licenses/LICENSE") for name in about)
    assert f"Version: {iad_ext.__version__}\n" in metadata
    assert "License-Expression: MIT\n" in metadata
    assert "# iad-ext" in metadata  # README is its page on PyPI


def test_a_source_archive_can_be_built_and_tested(built):
    _, sources, _ = built
    for path in (
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "README.md",
        "tests/test_habits.py",
    ):
        assert path in sources, path
    assert not [name for name in sources if name.startswith((".venv", "runs/", "docs/_build"))]
