"""A damaged file in a run folder costs time or is refused by name; it never changes a result unnoticed."""

import contextlib
import os
import random
import shlex
import shutil
from collections import Counter

import pytest
from killing import differences
from recipe_files import TINY, call

pytestmark = pytest.mark.slow

LONG = os.environ.get("IAD_EXT_FAULTS") == "long"
FLIPS = 8 if LONG else 1

# every checkpoint is kept, so that any of them can be made the newest
LINE = [*TINY, *shlex.split("--train.epochs 3 --checkpoint.every-steps 3 --checkpoint.keep 99 --out r")]
MIDDLE = "epoch0002-step000003"

CHECKPOINT = {"student.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
BESIDE = {"settings.yaml", "environment.json", "metrics.jsonl", "history.jsonl"}
NETWORKS = {f"{which}/{name}" for which in ("best", "last") for name in ("model.safetensors", "config.json")}


def _newest(folder):
    return max((folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        assert call("at_resnet18", *LINE) == 0
    return folder / "r"


def stopped(folder):
    """Make a finished run one that stopped in the middle of its last epoch."""
    for path in (folder / "checkpoints").iterdir():
        if path.name > MIDDLE:
            shutil.rmtree(path)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    measured(folder)
    shutil.rmtree(folder / "last")


def measured(folder):
    """Make it one that stopped before its results were written."""
    for path in list(folder.iterdir()):
        if path.name in ("results.json", "robust.safetensors"):
            path.unlink()
        elif path.name == "evaluation":
            shutil.rmtree(path)


def finished(folder):
    """Leave it finished."""


STATES = {
    stopped: CHECKPOINT
    | {"sums.safetensors"}
    | BESIDE
    | {name for name in NETWORKS if name.startswith("best")},
    measured: CHECKPOINT | BESIDE | NETWORKS,
    finished: CHECKPOINT | BESIDE | NETWORKS | {"results.json", "robust.safetensors"},
}
CASES = [(state, file) for state, files in STATES.items() for file in sorted(files)]


def _path(folder, file):
    return _newest(folder) / file if file in STATES[stopped] - BESIDE - NETWORKS else folder / file


def test_every_file_of_a_run_is_damaged(whole, tmp_path):
    """Whatever a run leaves is among the cases; a new file belongs there too."""
    for state, files in STATES.items():
        folder = shutil.copytree(whole, tmp_path / state.__name__)
        state(folder)
        beside = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        beside = {name for name in beside if not name.startswith("checkpoints")} - {".lock", "report.html"}
        inside = {path.name for path in _newest(folder).iterdir()}
        assert {name for name in beside if not name.startswith("evaluation/")} | inside == files


# ------------------------------------------------------------------------------------------- damage


def truncated(keep):
    def damage(path, draw):
        content = path.read_bytes()
        path.write_bytes(content[: keep(len(content))])

    return damage


def flipped(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def deleted(path, draw):
    path.unlink()


def a_folder(path, draw):
    path.unlink()
    path.mkdir()


DAMAGES = [
    ("emptied", truncated(lambda size: 0)),
    ("cut to half", truncated(lambda size: size // 2)),
    ("one byte short", truncated(lambda size: size - 1)),
    ("deleted", deleted),
    ("a folder in its place", a_folder),
    *[("a bit flipped", flipped)] * FLIPS,
]
if not LONG:
    DAMAGES = [damage for damage in DAMAGES if damage[0] not in ("emptied", "one byte short")]


def _outcome(folder, whole, file, capsys, caplog):
    """What the same command comes to: `continued`, `refused`, or what is wrong with it."""
    caplog.clear()
    capsys.readouterr()
    try:
        code = call("at_resnet18", *LINE)
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:300]}"
    said = capsys.readouterr().err + caplog.text
    if code in (2, 4):
        named = file.rpartition("/")[2] in said or "begun with other settings" in said
        return "refused" if named else f"refused without naming the file: {said[:300]}"
    if code != 0:
        return f"exit code {code}: {said[:300]}"
    changed = differences(folder, whole)
    if changed:
        return f"other results, {'reported' if file in said else 'silently'}: {changed}"
    if file in CHECKPOINT | {"sums.safetensors"} and "trying the one before" not in said:
        return "the same result, from a damaged checkpoint that nobody reported"
    return "continued"


GOOD = {"continued", "refused"}


@pytest.mark.parametrize(("state", "file"), CASES, ids=[f"{state.__name__}-{file}" for state, file in CASES])
def test_damage_costs_time_or_is_refused(
    whole, tmp_path, monkeypatch, capsys, caplog, record_property, state, file
):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(f"{state.__name__} {file}")
    outcomes = []
    for name, damage in DAMAGES:
        folder = shutil.copytree(whole, tmp_path / "r")
        state(folder)
        damage(_path(folder, file), draw)
        outcomes.append((name, _outcome(folder, whole, file, capsys, caplog)))
        shutil.rmtree(folder)
    record_property(
        "corruption", {"file": file, "state": state.__name__, "outcomes": Counter(o for _, o in outcomes)}
    )
    wrong = [f"{name}: {outcome}" for name, outcome in outcomes if outcome not in GOOD]
    assert not wrong, "\n".join(wrong)
