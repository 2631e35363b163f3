"""Signals: real ones to real processes, which end between two steps with all saved, and go on as if never stopped."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from recipe_files import ENVIRONMENT, TINY, call, command

from iad_ext import checkpoint, run
from iad_ext.evaluation import measures
from iad_ext.signals import ASKING, Stop

pytestmark = pytest.mark.slow

SAID = "stopping after this step; Ctrl-C to force"

# ------------------------------------------------------------------------------------------- in this process


@pytest.mark.parametrize("asking", ASKING)
def test_a_signal_is_noted_and_nothing_else(asking, capfd):
    with Stop() as stop:
        assert not stop
        os.kill(os.getpid(), asking)
        assert stop
        assert stop.asked_by == asking.name
    assert capfd.readouterr().err == f"\n{asking.name}: {SAID}\n"


@pytest.mark.parametrize("first", ASKING)
def test_ctrl_c_after_any_signal_forces(first):
    with Stop() as stop:
        os.kill(os.getpid(), first)
        for later in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), later)
        assert stop.asked_by == first.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = [signal.getsignal(asking) for asking in ASKING]
    with contextlib.suppress(RuntimeError), Stop():
        assert all(signal.getsignal(asking) not in before for asking in ASKING)
        raise RuntimeError
    assert [signal.getsignal(asking) for asking in ASKING] == before


def test_outside_the_main_thread_nothing_is_listened_to():
    before = [signal.getsignal(asking) for asking in ASKING]
    seen = []

    def inside():
        with Stop() as stop:
            seen.append((bool(stop), [signal.getsignal(asking) for asking in ASKING] == before))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


# ------------------------------------------------------------------------------------------- real processes


LINE = [*TINY, *shlex.split("--train.epochs 12 --eval.validation-limit 6")]
AA = shlex.split(
    "--data.limit-train 64 --data.limit-test 32 --eval.attacks natural,pgd20,aa --eval.batch-size 4"
)


@pytest.fixture
def start():
    """Starts recipes in sessions of their own; whatever happens, none outlives the test."""
    begun = []

    def _start(*line, processes=1):
        words = command("at_resnet18", *line)
        if processes > 1:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            words = [*launch, str(processes), *words[1:]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(words, **pipes, env=ENVIRONMENT, start_new_session=True))
        return begun[-1]

    yield _start
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _wait_for(happened, process, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def _lines(folder):
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))}
        for line in checkpoint.read_lines(folder / "metrics.jsonl")
    ]


def _measured(folder):
    results = json.loads((folder / "results.json").read_text())
    assert results.pop("changed") == []
    for which in ("best", "last"):
        results[which].pop("protocol")
    return results


def _same(one, other):
    for name in ("last/model.safetensors", "best/model.safetensors", "robust.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert _lines(one) == _lines(other)
    assert _measured(one) == _measured(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert call("at_resnet18", *LINE, "--out", folder) == 0
    return folder


def _history(folder):
    lines = [line for line in checkpoint.read_lines(folder / "history.jsonl") if line["event"] != "measured"]
    return [(line["event"], line["epoch"], line["step"]) for line in lines]


@pytest.mark.parametrize("asking", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_in_training_ends_with_5_and_the_same_command_goes_on(
    tmp_path, whole, start, capsys, asking
):
    out = tmp_path / "run"
    process = start(*LINE, "--out", out)
    lines = 1 + ASKING.index(asking)
    _wait_for(lambda: len(checkpoint.read_lines(out / "metrics.jsonl")) >= lines, process)
    process.send_signal(asking)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 5, error
    assert f"{asking.name}: {SAID}" in error
    assert f"stopped          by {asking.name} at epoch " in said
    assert "Traceback" not in error
    saved = checkpoint.newest(out / "checkpoints")
    assert _history(out)[1:] == [("stopped", saved.epoch, saved.step)]
    assert call("at_resnet18", *LINE, "--out", out) == 0
    assert f"continuing {out} at epoch {saved.epoch}, step {saved.step}" in capsys.readouterr().out
    assert _history(out)[2:] == [("continued", saved.epoch, saved.step)]
    _same(out, whole)


def test_two_ctrl_c_force(tmp_path, start):
    out = tmp_path / "run"
    process = start(*LINE, "--train.batch-size", "64", "--attack.steps", "3000", "--out", out)
    _wait_for((out / "history.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # one step takes many seconds
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.endswith(
        "error: forced to stop; the last checkpoint is whole, the same command goes on from it\n"
    )


def test_a_signal_to_one_of_two_processes_ends_both_and_the_run_goes_on(tmp_path, start):
    """Mid-epoch: each process's own BatchNorm statistics are part of what goes on."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    line = [*LINE, "--train.epochs", "2", "--train.batch-size", "8", "--attack.steps", "20"]
    process = start(*line, "--out", out, processes=2)
    _wait_for((out / "history.jsonl").exists, process)
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    reference = start(*line, "--out", whole, processes=2)
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGUSR1)
    said, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped          by " in said
    assert f"SIGUSR1: {SAID}" in error
    saved = checkpoint.newest(out / "checkpoints")
    assert 0 < saved.step < 8
    assert {key.partition("/")[0] for key in saved.tensors["sums"]} == {"0", "1"}
    again = start(*line, "--out", out, processes=2)
    for finished in (reference, again):
        said, error = finished.communicate(timeout=120)
        assert finished.returncode == 0, error
    assert f"continuing {out} at epoch {saved.epoch}, step {saved.step}" in said
    _same(out, whole)


# ------------------------------------------------------------------------------------------- in evaluations


def test_a_signal_in_validation_saves_the_epoch_and_validates_it_again(tmp_path, whole, monkeypatch):
    out, real, calls = tmp_path / "run", run.accuracy_under, []

    def signalled(*args, after_batch, **settings):
        calls.append(args[3])
        if calls == ["natural", "pgd10"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, after_batch=after_batch, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(run, "accuracy_under", signalled)
        assert call("at_resnet18", *LINE, "--out", out) == 5
    assert calls == ["natural", "pgd10"]
    saved = checkpoint.newest(out / "checkpoints")
    assert (saved.epoch, saved.step) == (0, 4)
    assert _lines(out) == []
    assert call("at_resnet18", *LINE, "--out", out) == 0
    _same(out, whole)


def test_signals_in_the_final_evaluation_cost_nothing_but_time(tmp_path, capsys, monkeypatch):
    """Stopped over and over, after another few batches each time."""
    line = [*LINE, "--train.epochs", "1", *AA, "--eval.aa-limit", "10", "--eval.of", "last"]
    monkeypatch.setattr("iad_ext.evaluation.autoattack.BUDGET", {"n_iter": 4, "n_queries": 20})
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert call("at_resnet18", *line, "--out", whole) == 0
    ends, batches = [], 0
    real = measures._Course._batch_done

    def signalled(course):
        nonlocal batches
        batches += 1
        if batches % 7 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        real(course)

    monkeypatch.setattr(measures._Course, "_batch_done", signalled)
    while not ends or ends[-1] == 5:
        ends.append(call("at_resnet18", *line, "--out", out))
        assert len(ends) < 20
    assert ends[-1] == 0
    assert len(ends) >= 3
    assert "while evaluating; what is measured is kept, the same command goes on" in capsys.readouterr().out
    one, other = (
        json.loads((out / "results.json").read_text()),
        json.loads((whole / "results.json").read_text()),
    )
    for key in ("natural", "pgd20", "aa", "interval", "flags", "n", "n_aa"):
        assert one["last"][key] == other["last"][key]
    assert (out / "robust.safetensors").read_bytes() == (whole / "robust.safetensors").read_bytes()
