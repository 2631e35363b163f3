"""Checkpoints: what is read back is what was written, or it is not read at all."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import Lookahead
from torch import nn

from iad_ext import checkpoint
from iad_ext.checkpoint import Checkpoint, CheckpointError


def _checkpoint(epoch, step=0, *, seed=None):
    generator = torch.Generator().manual_seed(1000 * epoch + step if seed is None else seed)
    tensors = {
        "student": {"w": torch.randn(3, 4, generator=generator), "n": torch.tensor(epoch)},
        "optimizer": {"0/momentum_buffer": torch.randn(3, 4, generator=generator)},
    }
    return Checkpoint(epoch=epoch, step=step, tensors=tensors, state={"best": {"value": 0.1 + epoch}})


def _same(one, other):
    assert (one.epoch, one.step, one.state) == (other.epoch, other.step, other.state)
    assert one.tensors.keys() == other.tensors.keys()
    for group in one.tensors:
        assert one.tensors[group].keys() == other.tensors[group].keys()
        for name, value in one.tensors[group].items():
            assert value.dtype == other.tensors[group][name].dtype
            assert torch.equal(value, other.tensors[group][name])


def _folders(root):
    return sorted(path.name for path in root.iterdir())


# ------------------------------------------------------------------------------------------- one


def test_what_is_read_back_is_what_was_written(tmp_path):
    saved = _checkpoint(3, 250)
    folder = checkpoint.save(tmp_path / "deep" / "er", saved)
    assert folder.name == "epoch0003-step000250"
    _same(checkpoint.load(folder), saved)
    _same(checkpoint.newest(tmp_path / "deep" / "er"), saved)


def test_strided_tensors_and_every_kind_of_number_survive(tmp_path):
    tensors = {
        "student": {
            "nhwc": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "turned": torch.randn(3, 5).t(),
            "half": torch.randn(3).bfloat16(),
            "double": torch.randn(3).double(),
            "scalar": torch.tensor(7),
            "empty": torch.empty(0, 3),
            "with_gradient": torch.randn(2, requires_grad=True),
            "not_finite": torch.tensor([float("inf"), -0.0]),
        }
    }
    saved = Checkpoint(epoch=0, step=1, tensors=tensors, state={"x": 0.1 + 0.2, "y": None, "z": [1, "α"]})
    _same(checkpoint.load(checkpoint.save(tmp_path, saved)), saved)


def test_tied_weights_and_other_shared_memory_survive(tmp_path):
    """A layer under two names, a view of the whole and two of its parts."""
    tied = nn.Linear(4, 4)
    network = nn.ModuleDict({"a": tied, "b": nn.Sequential(tied)})
    whole = torch.arange(6.0)
    views = {"whole": whole, "turned": whole.view(2, 3), "first": whole[:2], "rest": whole[2:]}
    saved = Checkpoint(epoch=0, step=1, tensors={"student": network.state_dict(), "views": views}, state={})
    _same(checkpoint.load(checkpoint.save(tmp_path, saved)), saved)
    assert _folders(tmp_path) == ["epoch0000-step000001"]


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    files = ["manifest.json", "optimizer.safetensors", "state.json", "student.safetensors"]
    assert _folders(folder) == files
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == files[1:]
    for name, expected in manifest.items():
        assert expected == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_what_is_saved_is_a_copy(tmp_path):
    weights = torch.zeros(3)
    saved = Checkpoint(epoch=0, step=0, tensors={"student": {"w": weights}}, state={})
    folder = checkpoint.save(tmp_path, saved)
    weights += 1
    assert torch.equal(checkpoint.load(folder).tensors["student"]["w"], torch.zeros(3))


# ------------------------------------------------------------------------------------------- many


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_keep_stay(tmp_path, keep):
    positions = [(0, 7), (1, 0), (1, 20), (2, 0), (10, 0)]
    for epoch, step in positions:
        checkpoint.save(tmp_path, _checkpoint(epoch, step), keep=keep)
    assert _folders(tmp_path) == [f"epoch{e:04d}-step{s:06d}" for e, s in positions[-keep:]]
    _same(checkpoint.newest(tmp_path), _checkpoint(10))


def test_newest_is_by_number_not_by_spelling(tmp_path):
    for epoch, step in [(9999, 0), (10000, 0), (10000, 999_999), (10000, 1_000_000)]:
        checkpoint.save(tmp_path, _checkpoint(epoch, step), keep=9)
    assert (checkpoint.newest(tmp_path).epoch, checkpoint.newest(tmp_path).step) == (10000, 1_000_000)


def test_saving_a_position_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, _checkpoint(1, seed=1))
    checkpoint.save(tmp_path, _checkpoint(1, seed=2))
    assert _folders(tmp_path) == ["epoch0001-step000000"]
    _same(checkpoint.newest(tmp_path), _checkpoint(1, seed=2))


def test_the_one_that_is_saved_is_the_newest(tmp_path):
    """A run that begins an epoch again has left the course of the later ones."""
    for step in (0, 40, 50, 20):
        checkpoint.save(tmp_path, _checkpoint(3, step), keep=2)
    _same(checkpoint.newest(tmp_path), _checkpoint(3, 20))
    assert _folders(tmp_path) == ["epoch0003-step000020"]  # 0 had gone when 50 came
    checkpoint.save(tmp_path, _checkpoint(3, 30), keep=2)
    assert _folders(tmp_path) == ["epoch0003-step000020", "epoch0003-step000030"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None
    (tmp_path / "epoch1").mkdir()
    (tmp_path / "epoch0001-step000000").write_text("a file of that name")
    assert checkpoint.newest(tmp_path) is None


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    for epoch in range(4):
        checkpoint.save(tmp_path, _checkpoint(epoch), keep=1)
    assert _folders(tmp_path) == ["epoch0003-step000000", "mine"]


# ------------------------------------------------------------------------------------------- what goes wrong


class _Stop(BaseException):
    """What nothing catches, as a kill."""


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), _Stop(), KeyboardInterrupt()])
@pytest.mark.parametrize("at", range(9))
def test_an_end_in_the_middle_of_saving_leaves_the_earlier_ones_whole(tmp_path, monkeypatch, raised, at):
    """At every write, sync, rename and removal in turn."""
    checkpoint.save(tmp_path, _checkpoint(1), keep=2)
    checkpoint.save(tmp_path, _checkpoint(2), keep=2)
    calls = 0

    def failing(real):
        def one(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise raised
            return real(*args, **kwargs)

        return one

    with monkeypatch.context() as patched:
        for name in ("save_file", "_sync_file", "sync_folder"):
            patched.setattr(checkpoint, name, failing(getattr(checkpoint, name)))
        patched.setattr(os, "rename", failing(os.rename))
        with pytest.raises((CheckpointError, _Stop, KeyboardInterrupt)) as stopped:
            checkpoint.save(tmp_path, _checkpoint(3), keep=2)
    if isinstance(raised, OSError):
        assert isinstance(stopped.value, CheckpointError)
        assert "No space left" in str(stopped.value)
        assert "earlier checkpoints are untouched" in str(stopped.value)
        assert [name for name in _folders(tmp_path) if name.startswith(".")] == []
    _same(checkpoint.load(tmp_path / "epoch0001-step000000"), _checkpoint(1))
    _same(checkpoint.load(tmp_path / "epoch0002-step000000"), _checkpoint(2))
    assert checkpoint.newest(tmp_path).epoch in {2, 3}
    # the same save again succeeds over whatever was left lying about
    checkpoint.save(tmp_path, _checkpoint(3), keep=2)
    _same(checkpoint.newest(tmp_path), _checkpoint(3))
    assert _folders(tmp_path) == ["epoch0002-step000000", "epoch0003-step000000"]


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), _Stop()])
@pytest.mark.parametrize("at", [0, 1])
def test_an_end_in_the_middle_of_replacing_the_only_one_leaves_it(tmp_path, monkeypatch, raised, at):
    """At each of the two renames: there is none before it to go on from."""
    checkpoint.save(tmp_path, _checkpoint(3, seed=1), keep=1)
    rename, calls = os.rename, []

    def failing(*args):
        calls.append(args)
        if len(calls) == at + 1:
            raise raised
        rename(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing)
        with pytest.raises((CheckpointError, _Stop)):
            checkpoint.save(tmp_path, _checkpoint(3, seed=2), keep=1)
    assert len(calls) == at + 1
    _same(checkpoint.newest(tmp_path), _checkpoint(3, seed=1))
    checkpoint.save(tmp_path, _checkpoint(3, seed=2), keep=1)
    assert _folders(tmp_path) == ["epoch0003-step000000"]
    _same(checkpoint.newest(tmp_path), _checkpoint(3, seed=2))


def test_those_were_all_the_places(tmp_path, monkeypatch):
    """The parametrisation above is neither short nor long."""
    calls = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda *a: (calls.append("rename"), rename(*a)))
    for name in ("save_file", "_sync_file", "sync_folder"):
        real = getattr(checkpoint, name)
        monkeypatch.setattr(checkpoint, name, lambda *a, n=name, r=real: (calls.append(n), r(*a)))
    checkpoint.save(tmp_path, _checkpoint(1))
    written = ["save_file"] * 2 + ["_sync_file"] * 4 + ["sync_folder"]
    assert calls == [*written, "rename", "sync_folder"]
    assert len(calls) == 9


FILES = ("manifest.json", "state.json", "student.safetensors", "optimizer.safetensors")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path):
    path.write_bytes(b"")


def _flip_first(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def _flip_last(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _grow(path):
    with path.open("ab") as file:
        file.write(b"x")


def _remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [_cut, _empty, _flip_first, _flip_last, _grow, _remove])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, caplog, name, damage):
    checkpoint.save(tmp_path, _checkpoint(1))
    folder = checkpoint.save(tmp_path, _checkpoint(2))
    damage(folder / name)
    with pytest.raises(CheckpointError, match="is not whole"):
        checkpoint.load(folder)
    _same(checkpoint.newest(tmp_path), _checkpoint(1))
    assert [str(folder) in record.message for record in caplog.records] == [True]
    assert "trying the one before" in caplog.text


@settings(max_examples=60)
@given(st.data())
def test_no_single_bit_can_be_flipped_unseen(tmp_path_factory, data):
    folder = checkpoint.save(tmp_path_factory.mktemp("bits"), _checkpoint(2))
    path = folder / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    # the manifest's own spelling may differ (white space, the case of an escape), what it says may not
    try:
        read = checkpoint.load(folder)
    except CheckpointError:
        return
    assert path.name == "manifest.json"
    _same(read, _checkpoint(2))


def test_when_none_is_whole_there_is_none_and_each_is_reported(tmp_path, caplog):
    for epoch in (1, 2):
        _empty(checkpoint.save(tmp_path, _checkpoint(epoch)) / "student.safetensors")
    assert checkpoint.newest(tmp_path) is None
    assert len(caplog.records) == 2


def _rewrite_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a/../student.safetensors"])
def test_a_manifest_that_points_outside_is_refused_before_anything_is_read(tmp_path, name):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    shutil.copy(folder / "student.safetensors", tmp_path / "outside.safetensors")
    good = checkpoint.sha256(tmp_path / "outside.safetensors")
    _rewrite_manifest(folder, lambda manifest: manifest.update({name: good}))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_link_that_leads_outside_is_refused_whatever_it_leads_to(tmp_path, name):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is a link to"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a":' * 10**5, " " * (2**24 + 1)], ids=["lists", "objects", "large"]
)
def test_json_that_is_deep_or_huge_is_refused(tmp_path, name, text):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    (folder / name).write_text(text)
    if name == "state.json":
        good = checkpoint.sha256(folder / name)
        _rewrite_manifest(folder, lambda manifest: manifest.update({name: good}))
    with pytest.raises(
        CheckpointError, match=r"is not whole: .*(the JSON is nested too deeply|expected at most 16 MiB)"
    ):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(tmp_path, name):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    _rewrite_manifest(folder, lambda manifest: manifest.pop(name))
    with pytest.raises(CheckpointError, match=f"does not name {name}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '{"state.json": 3}', "{", '"state.json"'])
def test_a_manifest_that_is_none_is_refused(tmp_path, manifest):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="is not whole"):
        checkpoint.load(folder)


def test_a_state_that_is_none_is_refused_even_with_the_right_sum(tmp_path):
    folder = checkpoint.save(tmp_path, _checkpoint(1))
    (folder / "state.json").write_text("[]")
    good = checkpoint.sha256(folder / "state.json")
    _rewrite_manifest(folder, lambda manifest: manifest.update({"state.json": good}))
    with pytest.raises(CheckpointError, match="is not whole"):
        checkpoint.load(folder)


# ------------------------------------------------------------------------------------------- optimizer


def _network():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return network


def _take_steps(network, optimizer, steps):
    for step in steps:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=2e-4),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.85, 0.99), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),  # keeps rows and columns of a weight
    "lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=0.1, momentum=0.9), k=2),
    "two groups": lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], lr=0.1),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_an_optimizer_goes_on_to_the_last_bit(tmp_path, build, before):
    network = _network()
    optimizer = build(list(network.parameters()))
    _take_steps(network, optimizer, range(before))
    saved = Checkpoint(
        epoch=0,
        step=before,
        tensors={"student": network.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)},
        state={"optimizer": checkpoint.optimizer_numbers(optimizer)},
    )
    read = checkpoint.load(checkpoint.save(tmp_path, saved))

    again = _network()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    another = build(list(again.parameters()))
    groups = list(another.param_groups)
    for group in groups:
        group["lr"] = 123.0
    again.load_state_dict(read.tensors["student"])
    checkpoint.restore_optimizer(another, read.tensors["optimizer"], read.state["optimizer"])
    assert [g["lr"] for g in another.param_groups] == [g["lr"] for g in optimizer.param_groups]
    for group in (*optimizer.param_groups, *groups):  # as a scheduler does
        group["lr"] /= 2

    _take_steps(network, optimizer, range(before, before + 3))
    _take_steps(again, another, range(before, before + 3))
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    left, right = optimizer.state_dict()["state"], another.state_dict()["state"]
    assert left.keys() == right.keys()
    for index in left:
        for name, value in left[index].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(right[index][name]))


FUSED = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True),
}


@pytest.mark.parametrize("build", FUSED.values(), ids=FUSED)
def test_a_fused_optimizer_of_channels_last_weights_goes_on(tmp_path, build):
    """Its steps walk weights and state in the order of memory, and a file has an order of its own."""

    def take_steps(weight, optimizer):
        for _ in range(2):
            weight.grad = weight.detach().sin()
            optimizer.step()

    random = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    one = nn.Parameter(random.to(memory_format=torch.channels_last))
    optimizer = build([one])
    take_steps(one, optimizer)
    saved = Checkpoint(
        epoch=0, step=2, tensors={"optimizer": checkpoint.optimizer_tensors(optimizer)}, state={}
    )
    tensors = checkpoint.load(checkpoint.save(tmp_path, saved)).tensors["optimizer"]
    other = nn.Parameter(one.detach().clone())
    another = build([other])
    checkpoint.restore_optimizer(another, tensors, checkpoint.optimizer_numbers(optimizer))
    take_steps(one, optimizer)
    take_steps(other, another)
    assert torch.equal(one, other)


def test_what_json_cannot_hold_is_said_to_be():
    optimizer = torch.optim.SGD(_network().parameters(), lr=torch.tensor(0.1))
    with pytest.raises(ValueError, match="the optimizer SGD cannot be kept in a checkpoint: expected plain"):
        checkpoint.optimizer_numbers(optimizer)


def test_momentum_is_what_is_saved():
    network = _network()
    optimizer = OPTIMIZERS["momentum"](list(network.parameters()))
    _take_steps(network, optimizer, range(1))
    tensors = checkpoint.optimizer_tensors(optimizer)
    assert sorted(tensors) == [f"{index}/momentum_buffer" for index in range(3)]
    for index, parameter in enumerate(network.parameters()):
        assert torch.equal(tensors[f"{index}/momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])


# ------------------------------------------------------------------------------------------- run folder

_HOLD = """
import sys
import threading
from pathlib import Path
from iad_ext import checkpoint
try:
    with checkpoint.locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except checkpoint.CheckpointError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_lets_go(tmp_path):
    folder = tmp_path / "run"

    def start():
        command = [sys.executable, "-c", _HOLD, str(folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as first:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(CheckpointError, match=r"another process is running in .*choose another --out"),
            checkpoint.locked(folder),
        ):
            pass
        with start() as second:
            assert "another process is running" in second.stdout.readline()
        first.kill()
        first.wait()
    with checkpoint.locked(folder):
        pass


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"cannot write to the run folder .*choose another --out"),
        checkpoint.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_lines_are_appended_and_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert checkpoint.read_lines(path) == []
    records = [{"epoch": epoch, "loss": 0.1 + epoch, "none": None, "name": "α ü"} for epoch in range(3)]
    for record in records:
        checkpoint.append_line(path, record)
    assert checkpoint.read_lines(path) == records
    assert path.read_text(encoding="utf-8").count("\n") == 3


def test_records_as_lines_are_the_lines_that_were_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"epoch": epoch, "value": 0.1 * epoch, "none": None, "name": "α"} for epoch in range(3)]
    for record in records:
        checkpoint.append_line(path, record)
    read_back = json.loads(json.dumps(records))  # as a checkpoint keeps them
    assert checkpoint.as_lines(read_back) == path.read_bytes()
    assert checkpoint.as_lines([]) == b""


@pytest.mark.parametrize("kept", range(1, 22))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path, caplog, kept):
    path = tmp_path / "metrics.jsonl"
    whole = {"epoch": 0, "value": 0.5}
    checkpoint.append_line(path, whole)
    torn = json.dumps({"epoch": 1, "value": 7.5})[:-1]
    assert len(torn) > 21
    with path.open("a") as file:
        file.write(torn[:kept])
    path.write_bytes(checkpoint.as_lines(checkpoint.read_lines(path)))
    assert "torn line" in caplog.text
    checkpoint.append_line(path, {"epoch": 1, "value": 8.5})
    assert checkpoint.read_lines(path) == [whole, {"epoch": 1, "value": 8.5}]


def test_a_line_of_other_bytes_is_dropped(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 0}\n{"epoch": \xff\xfe}\n{"epoch": 2}\n')
    assert checkpoint.read_lines(path) == [{"epoch": 0}, {"epoch": 2}]
    assert "torn line" in caplog.text


def test_starting_again_leaves_nothing_of_the_earlier_run(tmp_path):
    for name in ("checkpoints", "best", "last", "figures"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("old")
    for name in ("metrics.jsonl", "results.json", "robust.safetensors", "report.html", "notes.txt"):
        (tmp_path / name).write_text("old")
    checkpoint.clear_run(tmp_path)
    assert _folders(tmp_path) == ["notes.txt"]
    checkpoint.clear_run(tmp_path)  # again, with nothing there


def test_looking_whether_a_folder_is_held_takes_it_from_nobody(tmp_path):
    assert not checkpoint.is_locked(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with checkpoint.locked(tmp_path):
        assert checkpoint.is_locked(tmp_path)
    assert not checkpoint.is_locked(tmp_path)


def test_a_folder_that_is_held_for_a_moment_is_waited_for(tmp_path):
    with contextlib.ExitStack() as held:
        held.enter_context(checkpoint.locked(tmp_path))
        later = threading.Timer(0.2, held.close)
        later.start()
        with checkpoint.locked(tmp_path):
            later.join()
            assert checkpoint.is_locked(tmp_path)
