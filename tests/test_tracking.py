"""Trackers: what they are sent, once each, in the same place when a run goes on; none of it can stop a run."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recipe_files
from recipe_files import ENVIRONMENT, TINY, call, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iad_ext import checkpoint, run, tracking
from iad_ext.settings import FREE_ON_RESUME, Settings, for_trackers, from_command_line, override

# a tracker's module that writes down how it is called; {name} stands where its own name does
RECORDER = """
import json, os
from pathlib import Path

def _note(*what):
    with Path(os.environ["RECORDED"]).open("a") as file:
        file.write(json.dumps(["{name}", *what]) + chr(10))

class _Summary:
    def update(self, values):
        _note("summary", values)

class _Run:
    summary = _Summary()
    def log(self, values, step=None):
        if os.environ.get("TRACKER_FAILS_AT") == str(step):
            raise ConnectionError("the network is down")
        _note("log", step, values)
    def finish(self):
        _note("finish")

def init(**arguments):
    if "TRACKER_REFUSES" in os.environ:
        raise RuntimeError("no API key")
    _note("init", arguments)
    return _Run()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recorded(here, monkeypatch):
    """Stand-ins for wandb and trackio; returns what a run called of one of them since the last question."""
    for name in ("wandb", "trackio"):
        (here / "modules" / name).mkdir(parents=True)
        (here / "modules" / name / "__init__.py").write_text(RECORDER.replace("{name}", name))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(here / "modules")
    log = here / "calls.jsonl"
    monkeypatch.setenv("RECORDED", str(log))

    def calls(name):
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line[1:] for line in lines if line[0] == name]

    yield calls
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def _run(line, *, name="at_resnet18"):
    return call(name, *TINY, *shlex.split(line))


def _points(folder):
    """{tag: [(step, value)]} as TensorBoard shows them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert not tags["images"]
    assert not tags["tensors"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}


def _expected(folder):
    """The same points from metrics.jsonl."""
    points = {}
    for line in checkpoint.read_lines(folder / "metrics.jsonl"):
        for key, value in line.items():
            if key != "epoch" and value is not None:
                points.setdefault(key, []).append((line["epoch"], pytest.approx(value, rel=1e-6)))
    return points


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--log-with tensorbord", "unknown tracker in --log-with 'tensorbord'; did you mean 'tensorboard'?"),
        (
            "--log-with tensorboard,wandbb",
            "'wandbb'; did you mean 'wandb'? known: tensorboard, trackio, wandb",
        ),
    ],
)
def test_an_unknown_tracker_ends_with_2(here, capsys, line, said):
    assert _run(line) == 2
    assert said in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_tracker_that_is_not_installed_ends_with_2_and_says_what_to_install(here, capsys, monkeypatch):
    real = tracking.find_spec
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else real(name))
    assert _run("--log-with tensorboard,wandb") == 2
    assert "--log-with wandb needs the package wandb: pip install wandb\n" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_names_are_read_once_each():
    assert tracking.trackers_of("") == ()
    assert tracking.trackers_of(" tensorboard, tensorboard,") == ("tensorboard",)


# ------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_shows_the_run_s_numbers(here):
    assert _run("--log-with tensorboard --out r") == 0
    results = run.read_results(here / "r")
    points = _points(here / "r/tensorboard")
    of_results = {tag: points.pop(tag) for tag in list(points) if tag.startswith(("eval/best", "eval/last"))}
    assert points == _expected(here / "r")
    assert of_results == {
        f"eval/{which}/{attack}": [(1, pytest.approx(results[which][attack], rel=1e-6))]
        for which in ("best", "last")
        for attack in ("natural", "pgd10")
    }


def test_without_the_option_nothing_is_written(here):
    assert _run("--out r --train.epochs 1 --eval.attacks=") == 0
    assert not (here / "r/tensorboard").exists()
    assert not (here / "r/trackers.json").exists()


# after the third epoch's numbers are sent and before its checkpoint is written: the most that can be sent twice
KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from iad_ext import run
from recipe_files import call
real = run.Run._save
def save(self, engine, epoch, step):
    if epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, engine, epoch, step)
run.Run._save = save
call("at_resnet18", *{arguments!r})
"""


@pytest.mark.slow
def test_a_killed_and_continued_run_shows_each_epoch_once(here):
    arguments = [
        *TINY,
        *shlex.split("--train.epochs 5 --eval.attacks natural --log-with tensorboard --out r"),
    ]
    script = KILLED.format(tests=str(Path(recipe_files.__file__).parent), arguments=arguments)
    killed = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    # the third epoch was sent, and will be trained again
    assert [step for step, _ in _points(here / "r/tensorboard")["loss/total"]] == [0, 1, 2]
    assert checkpoint.newest(here / "r/checkpoints").epoch == 2
    before = {path.name for path in (here / "r/tensorboard").iterdir()}
    # in a process of its own: event files are read in the order of the second that they were begun in
    subprocess.run(command("at_resnet18", *arguments), env=ENVIRONMENT, timeout=300, check=True)
    points = _points(here / "r/tensorboard")
    assert [step for step, _ in points["loss/total"]] == [0, 1, 2, 3, 4]
    assert {tag: points[tag] for tag in _expected(here / "r")} == _expected(here / "r")
    assert before < {path.name for path in (here / "r/tensorboard").iterdir()}


def test_a_finished_run_can_be_sent_afterwards_and_only_once(here):
    assert _run("--out r") == 0
    for _ in range(2):
        assert _run("--out r --log-with tensorboard") == 0
        points = _points(here / "r/tensorboard")
        assert [step for step, _ in points["loss/total"]] == [0, 1]
        assert [step for step, _ in points["eval/last/pgd10"]] == [1]


def test_a_run_that_is_started_again_leaves_nothing_of_the_old_one(here):
    assert _run("--out r --train.epochs 3 --log-with tensorboard --eval.attacks=") == 0
    name = json.loads((here / "r/trackers.json").read_text())["run"]
    assert _run("--out r --train.epochs 1 --log-with tensorboard --eval.attacks= --resume never") == 0
    assert [step for step, _ in _points(here / "r/tensorboard")["lr"]] == [0]
    assert json.loads((here / "r/trackers.json").read_text())["run"] != name


# ------------------------------------------------------------------------------------------- W&B and Trackio


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_same_run_goes_on(here, recorded, name, monkeypatch):
    stopping = run.Run._save

    def stop_after_two(self, engine, epoch, step):
        stopping(self, engine, epoch, step)
        if epoch == 2:
            raise KeyboardInterrupt

    line = f"--out r --train.epochs 3 --log-with {name}"
    with monkeypatch.context() as patched:
        patched.setattr(run.Run, "_save", stop_after_two)
        assert _run(line) == 130
    assert [call[0] for call in recorded(name)] == ["init", "log", "log", "finish"]
    assert _run(line) == 0
    calls = recorded(name)
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second
    assert first["resume"] == "allow"
    assert first["project"] == "iad-ext"
    assert first["config"]["attack.eps"] == 0.1
    logged = [(call[1], call[2]) for call in calls if call[0] == "log"]
    assert [step for step, values in logged if "lr" in values] == [0, 1, 2]
    assert all(type(value) in (int, float) for _, values in logged for value in values.values())
    results = run.read_results(here / "r")
    of_results = {
        "wandb": [call[1] for call in calls if call[0] == "summary"],
        "trackio": [values for step, values in logged if "lr" not in values],
    }[name]
    assert [values["eval/best/pgd10"] for values in of_results] == [results["best"]["pgd10"]]
    assert calls[-1] == ["finish"]


def test_wandb_is_told_to_keep_its_hands_off_the_rest(here, recorded):
    assert _run("--out r --train.epochs 1 --eval.attacks= --log-with wandb") == 0
    arguments = recorded("wandb")[0][1]
    assert arguments["settings"] == {"console": "off", "save_code": False, "disable_git": True}
    assert arguments["dir"] == "r"
    assert arguments["id"] == json.loads((here / "r/trackers.json").read_text())["run"]


def test_wandb_s_own_project_variable_is_obeyed(here, recorded, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert _run("--out r --train.epochs 1 --eval.attacks= --log-with wandb") == 0
    assert recorded("wandb")[0][1]["project"] == "mine"


def test_a_tracker_can_be_added_when_a_run_goes_on(here, recorded):
    assert _run("--out r --train.epochs 2 --log-with wandb") == 0
    assert _run("--out r --train.epochs 3 --train.drops 1 2 --accept-changes --log-with wandb,trackio") == 0
    for name in ("wandb", "trackio"):
        logged = [call[1] for call in recorded(name) if call[0] == "log" and "lr" in call[2]]
        assert logged == [0, 1, 2]


# ------------------------------------------------------------------------------------------- what goes wrong there


def test_a_tracker_that_fails_once_is_sent_it_later_and_said_once(here, recorded, caplog, monkeypatch):
    monkeypatch.setenv("TRACKER_FAILS_AT", "1")
    assert _run("--out r --train.epochs 3 --log-with wandb") == 0
    said = [m for m in caplog.messages if "the network is down" in m]
    assert len(said) == 1
    assert said[0].startswith("wandb does not take this run's numbers (ConnectionError: the network is down)")
    monkeypatch.delenv("TRACKER_FAILS_AT")
    assert _run("--out r --train.epochs 3 --log-with wandb") == 0
    assert [call[1] for call in recorded("wandb") if call[0] == "log"] == [0, 1, 2]


def test_a_tracker_that_refuses_to_start_stops_nothing(here, recorded, caplog, monkeypatch):
    monkeypatch.setenv("TRACKER_REFUSES", "1")
    assert _run("--out r --log-with wandb,tensorboard") == 0
    assert [m for m in caplog.messages if "no API key" in m]
    assert recorded("wandb") == []
    assert [step for step, _ in _points(here / "r/tensorboard")["lr"]] == [0, 1]


@pytest.mark.parametrize("content", ["{", "[]", '{"run": "a"}'])
def test_a_damaged_record_begins_anew(here, caplog, content):
    assert _run("--out r --log-with tensorboard") == 0
    (here / "r/trackers.json").write_text(content)
    assert _run("--out r --log-with tensorboard") == 0
    assert [m for m in caplog.messages if "trackers.json cannot be read" in m]
    points = _points(here / "r/tensorboard")
    assert [step for step, _ in points["loss/total"]] == [0, 1]
    assert [step for step, _ in points["eval/last/pgd10"]] == [1]


# ------------------------------------------------------------------------------------------- what they are told


def test_no_path_of_the_machine_is_among_the_settings():
    line = "--data.path /home/someone/data --out /home/someone/runs --teacher /home/someone/teacher --log-with wandb"
    settings = from_command_line(recipe_files.load("iad1_resnet18"), shlex.split(line))
    told = for_trackers(settings)
    assert "/home" not in json.dumps(told)
    assert told["objective.beta"] == 0.1
    assert told["data.name"] == "cifar10"


@pytest.mark.parametrize(
    ("source", "is_told"),
    [
        ("someone/images", True),
        (f"someone/images@{'0' * 40}", True),
        ("my-own", True),
        ("/home/someone/images", False),
        ("../images", False),
        ("~/images", False),
        ("made.npz", False),
        ("folder/images", False),
    ],
)
def test_images_are_told_by_a_name_and_not_by_a_path(source, is_told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder/images").mkdir(parents=True)
    told = for_trackers(override(Settings(), {"data.name": source, "data.extra": source}))
    assert [name for name in ("data.name", "data.extra") if name in told] == [
        "data.name",
        "data.extra",
    ] * is_told


def test_scalars_are_numbers():
    record = {"a": 1, "b": 0.5, "c": None, "d": "x", "e": [1], "f": True, "g": {"h": 1}}
    assert tracking.scalars(record) == {"a": 1, "b": 0.5}


def test_it_is_free_on_resume():
    assert Settings().log_with == ""
    assert "log_with" in FREE_ON_RESUME
