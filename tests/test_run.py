"""A run: what it refuses, what it leaves, how it goes on, and that its results are those of its networks."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import recipe_files
import torch
from conftest import REAL_DATA
from recipe_files import TINY, call
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from iad_ext import assets, checkpoint, evaluate, load_network, run
from iad_ext.backbones import PixelSpace, create_network, save_network
from iad_ext.compiling import Compilation
from iad_ext.data import ImageSet, load_splits
from iad_ext.loop import Engine
from iad_ext.precision import Precision
from iad_ext.provenance import digest
from iad_ext.settings import from_command_line
from iad_ext.signals import Stop

SPLITS = {"limit_train": 64, "limit_test": 32}  # those of TINY


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which the teachers of the digits' recipes have been trained."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        for name in ("at_resnet18", "st_resnet18"):
            line = shlex.split("--data.limit-train 320 --train.epochs 3 --eval.attacks natural")
            assert call(name, *TINY, *line) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def taught(world, here):
    """A folder to run in, with teachers."""
    shutil.copytree(world / "runs", here / "runs")
    return here


def _run(name, line="", *more):
    return call(name, *TINY, *shlex.split(line), *more)


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def _lines(folder):
    """metrics.jsonl without what depends on the clock and on the process."""
    return [
        {key: value for key, value in record.items() if not key.startswith(("time/", "memory/"))}
        for record in checkpoint.read_lines(folder / "metrics.jsonl")
    ]


def _results(folder):
    return json.loads((folder / "results.json").read_text())


def _same_run(one, other):
    assert (one / "last" / "model.safetensors").read_bytes() == (
        other / "last" / "model.safetensors"
    ).read_bytes()
    assert (one / "best" / "model.safetensors").read_bytes() == (
        other / "best" / "model.safetensors"
    ).read_bytes()
    assert _lines(one) == _lines(other)
    left, right = _results(one), _results(other)
    for which in ("best", "last"):
        assert {k: v for k, v in left[which].items() if k != "protocol"} == {
            k: v for k, v in right[which].items() if k != "protocol"
        }
    assert left["epochs"] == right["epochs"]
    assert _files(one)["robust.safetensors"] == _files(other)["robust.safetensors"]


# ------------------------------------------------------------------------------------------- what is refused

WRONG = {
    "attack's name": ("at_resnet18", "--eval.attacks natural,pdg20", "'pdg20'; did you mean 'pgd20'?"),
    "radius": ("at_resnet18", "--eval.eps 8", "--eval.eps is in pixels of [0, 1], such as 8/255; got 8"),
    "training radius": ("at_resnet18", "--attack.eps 8", "--attack.eps is in pixels of [0, 1]"),
    "knob": ("ard_resnet18", "--objective.beta 0.1", "unknown argument of ard 'beta'; did you mean"),
    "gamma": (
        "iad1_resnet18",
        "--objective.gamma much",
        "--objective.gamma takes 1-alpha, a number, or a schedule",
    ),
    "nesterov": (
        "at_resnet18",
        "--train.nesterov --train.momentum 0",
        "--train.nesterov is a form of momentum, and --train.momentum is 0",
    ),
    "epochs": ("at_resnet18", "--train.epochs 0", "--train.epochs must be at least 1, got 0"),
    "data folder": ("at_resnet18", "--data.name cifar10 --data.path nowhere", "no folder nowhere"),
    "data set": ("at_resnet18", "--data.name cifar11", "'cifar11'; did you mean 'cifar10"),
    "limit": ("at_resnet18", "--data.limit-train 0", "limit_train must be at least 1; got 0"),
    "resume": ("at_resnet18", "--resume nowhere", "there is no folder nowhere"),
    "no teacher": ("iad1_resnet18", "--teacher None", "iad1 needs --teacher: at, trades or st"),
    "no such teacher": ("iad1_resnet18", "--teacher some/where", "found nothing"),
    "missing teacher": ("iad1_resnet18", "", "accelerate launch recipes/at_resnet18.py --data.name digits\n"),
    "missing trades teacher": (
        "iad2_wrn34",
        "--teacher trades",
        "accelerate launch recipes/trades_wrn34.py --data.name digits\n",
    ),
    "missing teacher of a seed": (
        "ard_resnet18",
        "--train.seed 3",
        "looks in runs/digits/at_resnet18/seed3. Train it first:\n"
        "  accelerate launch recipes/at_resnet18.py --data.name digits --train.seed 3\n",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_with_2_says_why_and_leaves_nothing(here, capsys, case):
    name, line, said = WRONG[case]
    assert _run(name, line) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert list(here.iterdir()) == []


def test_a_part_of_one_image_that_the_student_cannot_take_ends_with_2(here, capsys):
    """The last stage of ResNet-18 has digits of one pixel."""
    line = "--student.name cifar_resnet18 --train.accumulation 16"
    assert _run("at_resnet18", line) == 2
    said = "error: --train.batch-size 16: a batch of size 16 in 16 parts (processes × accumulation = 1 × 16) has a"
    assert said in capsys.readouterr().err
    assert not list(here.rglob("settings.yaml"))


def test_a_missing_natural_teacher_is_named_too(taught, capsys):
    shutil.rmtree("runs/digits/st_resnet18")
    assert _run("iad2_resnet18") == 2
    assert "accelerate launch recipes/st_resnet18.py --data.name digits\n" in capsys.readouterr().err


def test_the_missing_teacher_s_command_is_the_one_that_makes_it(here, capsys):
    """Word for word, but for the launcher: afterwards the student finds its teacher."""
    small = shlex.split("--student.name cifar_resnet8 --train.epochs 1 --eval.attacks= --precision fp32")
    assert call("iad1_resnet18", "--data.name", "digits", *small) == 2
    command = re.search(r"accelerate launch recipes/(\w+)\.py (.*)\n", capsys.readouterr().err)
    assert call(command[1], *shlex.split(command[2]), *small) == 0
    assert call("iad1_resnet18", "--data.name", "digits", *small) == 0


@pytest.mark.parametrize(("line", "said"), [("--student.name cifar_resnt8", "did you mean 'cifar_resnet8'?")])
def test_an_unknown_student_ends_with_2(here, capsys, line, said):
    assert _run("at_resnet18", line) == 2
    assert said in capsys.readouterr().err


def test_fp16_on_a_cpu_ends_with_2(here, capsys):
    if torch.cuda.is_available():
        assert _run("at_resnet18", "--precision fp16") == 0
    else:
        assert _run("at_resnet18", "--precision fp16") == 2
        assert "fp16 needs a GPU" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- teachers


def test_a_teacher_of_other_classes_ends_with_2(here, capsys):
    save_network(create_network("cifar_resnet8", num_classes=7, seed=0), here / "seven", metadata={})
    assert _run("iad1_resnet18", "--teacher seven") == 2
    assert (
        "--teacher seven has 7 classes, the data 10; train a teacher on this data set"
        in capsys.readouterr().err
    )


def _with_classes_moved(folder):
    """A good network whose classes are in another order."""
    network = load_network("runs/digits/st_resnet18/seed0")
    with torch.no_grad():
        for parameter in [module for module in network.modules() if isinstance(module, nn.Linear)][
            -1
        ].parameters():
            parameter.copy_(parameter.roll(1, dims=0))
    save_network(network, folder, metadata={})


def _with_random_weights(folder):
    save_network(create_network("cifar_resnet8", num_classes=10, seed=0), folder, metadata={})


@pytest.mark.parametrize("make", [_with_classes_moved, _with_random_weights])
@pytest.mark.parametrize(
    ("name", "role"), [("iad1_resnet18", "teacher"), ("akd2_resnet18", "natural-teacher")]
)
def test_a_teacher_that_is_no_better_than_chance_ends_with_2(taught, capsys, make, name, role):
    make(taught / "bad")
    assert _run(name, f"--{role} bad --data.limit-train 1200 --out new") == 2  # 120 held-out images
    printed = capsys.readouterr()
    said = rf"the {role.replace('-', ' ')} bad is right on ([\d.]+)% of the images, chance is 10.00%"
    assert float(re.search(said, printed.err)[1]) <= 10
    assert "epoch" not in printed.out
    assert {path.name for path in (taught / "new").iterdir()} <= {".lock"}


def test_on_a_handful_of_images_that_is_only_said(taught, caplog):
    """Six images cannot tell a bad teacher from an unlucky one."""
    _with_classes_moved(taught / "bad")
    assert _run("ard_resnet18", "--teacher bad") == 0
    assert any("chance is 10.00%" in m and "on 6 images" in m for m in caplog.messages)


class _Odd(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.num_classes = answer, 10

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: torch.rand(len(x), 10).softmax(dim=1), "returns probabilities; distillation needs logits"),
        (lambda x: torch.full((len(x), 10), float("nan")), "not finite"),
        (lambda x: torch.zeros(len(x), 9), r"returns (16, 9)"),
    ],
)
def test_a_teacher_that_returns_no_logits_ends_with_2(here, capsys, monkeypatch, answer, said):
    monkeypatch.setattr(assets, "load_network", lambda *args, **kwargs: _Odd(answer))
    assert _run("ard_resnet18", "--teacher odd") == 2
    assert said in capsys.readouterr().err


def test_a_teacher_whose_training_goes_on_is_taken_with_a_word(taught, caplog):
    (taught / "runs/digits/at_resnet18/seed0/results.json").unlink()
    assert _run("ard_resnet18") == 0
    assert "its training has not finished" in caplog.text


def test_the_teacher_of_the_same_seed_comes_first(taught):
    shutil.copytree("runs/digits/at_resnet18/seed0", "runs/digits/at_resnet18/seed7")
    for seed, source in ((7, "seed7"), (8, "seed0")):
        assert _run("ard_resnet18", f"--train.seed {seed}") == 0
        results = _results(Path(f"runs/digits/ard_resnet18-at/seed{seed}"))
        assert results["teacher"]["source"] == f"runs/digits/at_resnet18/{source}"


# ------------------------------------------------------------------------------------------- what it leaves


def test_results_are_those_of_the_networks_that_were_kept(taught):
    """The table is what anyone measures who loads best/ and last/."""
    assert _run("iad1_resnet18", "--eval.attacks natural,fgsm,pgd10 --checkpoint.keep 9") == 0
    folder = Path("runs/digits/iad1_resnet18-at/seed0")
    results, flags = _results(folder), load_file(folder / "robust.safetensors")
    test = load_splits("digits", **SPLITS).test
    assert {name.split("/")[0] for name in flags} == {"best", "last"}
    for which in ("best", "last"):
        again = evaluate(
            load_network(folder / which), test.images, test.labels, ("natural", "fgsm", "pgd10"), eps=0.1
        )
        for attack in ("natural", "fgsm", "pgd10"):
            assert results[which][attack] == again[attack]
            assert torch.equal(flags[f"{which}/{attack}"].bool(), again["robust"][attack])
            percent = 100 * sum(flags[f"{which}/{attack}"].tolist()) / 32
            assert results[which][attack] == pytest.approx(percent, abs=0.01)
        assert results[which]["n"] == 32
        assert "robust" not in results[which]
    # each is the network of its epoch
    for which, epoch in results["epochs"].items():
        saved = load_file(folder / f"checkpoints/epoch{epoch + 1:04d}-step000000/student.safetensors")
        kept = load_network(folder / which).state_dict()
        assert saved.keys() == kept.keys()
        assert all(torch.equal(saved[name], kept[name]) for name in kept)
    assert results["epochs"]["last"] == 1


@pytest.mark.parametrize(
    ("name", "natural", "pgd10", "best"),
    [
        ("st_resnet18", [10.0, 30.0, 30.0, 20.0], [9.0, 1.0, 1.0, 5.0], 1),
        ("at_resnet18", [10.0, 30.0, 30.0, 20.0], [1.0, 9.0, 2.0, 9.0], 1),
        ("at_resnet18", [90.0, 30.0, 30.0, 20.0], [1.0, 2.0, 3.0, 4.0], 3),
        ("trades_resnet18", [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], 0),
    ],
)
def test_the_best_epoch_is_the_first_that_is_best_by_the_right_measure(
    here, monkeypatch, name, natural, pgd10, best
):
    told = {"natural": iter(natural), "pgd10": iter(pgd10)}
    monkeypatch.setattr(run.Run, "_accuracy", lambda self, network, images, attack: next(told[attack]))
    assert _run(name, "--train.epochs 4 --checkpoint.keep 9 --out r --eval.attacks natural") == 0
    assert _results(here / "r")["epochs"] == {"best": best, "last": 3}
    saved = load_file(here / f"r/checkpoints/epoch{best + 1:04d}-step000000/student.safetensors")
    kept = load_network(here / "r/best").state_dict()
    assert all(torch.equal(saved[key], kept[key]) for key in kept)
    lines = _lines(here / "r")
    assert [line["eval/natural"] for line in lines] == natural
    assert [line["eval/pgd10"] for line in lines] == ([None] * 4 if name.startswith("st") else pgd10)


def test_validation_is_what_anyone_counts(here):
    assert _run("at_resnet18", "--out r --data.limit-train 320") == 0
    validation = load_splits("digits", limit_train=320, limit_test=32).validation
    assert len(validation) == 32
    network = load_network(here / "r/last")
    right = sum(
        int(network(image[None].float() / 255).argmax()) == int(label)
        for image, label in zip(validation.images, validation.labels, strict=True)
    )
    under = evaluate(network, validation.images, validation.labels, ("pgd10",), eps=0.1)["pgd10"]
    line = _lines(here / "r")[-1]
    assert line["eval/natural"] == pytest.approx(100 * right / 32, abs=1e-3)
    assert line["eval/pgd10"] == pytest.approx(under, abs=0.01)


@pytest.mark.parametrize("processes", [2, 3, 40])
@pytest.mark.parametrize("attack", ["natural", "pgd10"])
def test_validation_shared_out_is_validation(taught, monkeypatch, processes, attack):
    """Every image once, each from the start that it has where one process attacks all of them."""
    line = ["--data.limit-train", "320", "--attack.eps", "0.02"]
    plan = run.Plan.of(from_command_line(recipe_files.load("at_resnet18"), [*TINY, *line]))
    images = run.Assets.load(plan, torch.device("cpu"))
    validation, network = images.splits.validation, load_network("runs/digits/at_resnet18/seed0").eval()
    starts, real = {}, run.accuracy_under

    def watched(network, pixels, labels, attack, *, first, **settings):
        starts.update({first + row: image for row, image in enumerate(pixels)})
        return real(network, pixels, labels, attack, first=first, **settings)

    def accuracy(rank, processes):
        world = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=processes)
        return run.Run(plan, images, world, Stop())._accuracy(network, validation, attack)

    whole, shares = accuracy(0, 1), torch.zeros(3, dtype=torch.float64)

    def add_up(counts):
        counts.copy_(shares.add_(counts))

    monkeypatch.setattr(torch.distributed, "all_reduce", add_up)
    monkeypatch.setattr(run, "accuracy_under", watched)
    for rank in reversed(range(processes)):  # the last one always has an image
        together = accuracy(rank, processes)
    assert together == whole
    assert int(shares[1]) == len(validation) == 32
    assert sorted(starts) == list(range(32))
    assert all(torch.equal(starts[row], validation.images[row]) for row in range(32))
    assert 0 < whole < 100


@pytest.mark.parametrize(("selection", "on", "n"), [("holdout", "held-out", 6), ("test", "test", 32)])
def test_what_selected_the_best_is_recorded(taught, capsys, selection, on, n):
    assert _run("iad1_resnet18", f"--out r --data.selection {selection}") == 0
    results = _results(taught / "r")
    assert (results["selection"], results["selected_on"]) == (selection, on)
    assert results["data"]["selection"] == selection
    assert results["teacher"]["n"] == n
    assert f"{n} {on}" in capsys.readouterr().out


def test_the_teachers_accuracy_is_stated(taught, capsys):
    assert _run("iad2_resnet18", "--data.limit-train 320 --out r") == 0
    validation = load_splits("digits", limit_train=320, limit_test=32).validation
    results, printed = _results(taught / "r"), " ".join(capsys.readouterr().out.split())
    for role, name in (("teacher", "at"), ("natural_teacher", "st")):
        source = f"runs/digits/{name}_resnet18/seed0"
        expected = evaluate(
            load_network(source), validation.images, validation.labels, ("natural", "pgd10"), eps=0.1
        )
        stated = results[role]
        assert stated["natural"] == pytest.approx(expected["natural"], abs=0.01)
        assert stated["pgd10"] == pytest.approx(expected["pgd10"], abs=0.01)
        assert (stated["n"], stated["source"]) == (32, source)
        assert stated["digest"] == digest(load_network(source).state_dict())
        assert f"{source}: natural {stated['natural']:.2f}%, PGD-10 {stated['pgd10']:.2f}%" in printed
    assert (
        json.loads((taught / "r/environment.json").read_text())["teachers"]["teacher"] == results["teacher"]
    )


def test_without_attacks_nothing_is_measured(here):
    assert _run("at_resnet18", "--out r --eval.attacks=") == 0
    assert "best" not in _results(here / "r")
    assert not (here / "r/robust.safetensors").exists()
    assert (here / "r/best/model.safetensors").exists()


def test_one_of_the_two_may_be_measured_alone_and_on_fewer_images(here):
    assert _run("at_resnet18", "--out r --eval.of last --eval.limit 10") == 0
    results = _results(here / "r")
    assert "best" not in results
    assert results["last"]["n"] == 10
    assert {len(flags) for flags in load_file(here / "r/robust.safetensors").values()} == {10}


def test_autoattack_on_fewer_images_says_so(here, monkeypatch):
    asked = []

    def measure(network, images, labels, *, attacks, **settings):
        asked.append((tuple(attacks), len(images)))
        quick = [name for name in attacks if name != "aa"] or ["natural"]
        found = evaluate(network, images, labels, attacks=quick, **settings)
        if attacks == ("aa",):
            found |= {"aa": found["natural"], "robust": {"aa": found["robust"]["natural"]}}
            found["interval"] = {"aa": found["interval"]["natural"]}
            found["protocol"]["attacks"] = {"aa": {"fell_to_square": []}}
        return found

    monkeypatch.setattr(run, "evaluate", measure)
    assert _run("at_resnet18", "--out r --eval.of last --eval.attacks natural,aa --eval.aa-limit 7") == 0
    assert sorted(asked) == [(("aa",), 7), (("natural",), 32)]
    last = _results(here / "r")["last"]
    assert (last["n"], last["n_aa"]) == (32, 7)
    flags = load_file(here / "r/robust.safetensors")
    assert {name: len(flag) for name, flag in flags.items()} == {"last/natural": 32, "last/aa": 7}
    assert last["aa"] == pytest.approx(100 * flags["last/aa"].double().mean().item(), abs=0.01)


def test_validation_may_be_rarer_but_never_misses_the_end(here):
    assert _run("at_resnet18", "--out r --train.epochs 5 --eval.every 2") == 0
    shown = [line["eval/pgd10"] is not None for line in _lines(here / "r")]
    assert shown == [False, True, False, True, True]


def test_checkpoints_may_be_rarer_but_never_miss_the_end(here):
    line = "--out r --train.epochs 5 --checkpoint.every-epochs 2 --checkpoint.keep 9"
    assert _run("at_resnet18", line) == 0
    names = sorted(path.name for path in (here / "r/checkpoints").iterdir())
    assert names == [f"epoch000{epoch}-step000000" for epoch in (2, 4, 5)]


@pytest.mark.slow
def test_normalisation_is_of_the_training_images_and_inside_the_network(here):
    assert (
        _run(
            "at_resnet18",
            "--out r --student.normalize --student.name resnet18 --train.epochs 1 --train.batch-size 64",
        )
        == 0
    )
    train = load_splits("digits", **SPLITS).train.images.double() / 255
    network = load_network(here / "r/best")
    assert isinstance(network, PixelSpace)
    for name, expected in (("mean", train.mean(dim=(0, 2, 3))), ("std", train.std(dim=(0, 2, 3)))):
        torch.testing.assert_close(getattr(network, name).flatten().double(), expected, rtol=1e-5, atol=1e-6)


class _Sizes(TorchDispatchMode):
    """Notes how many bytes each operation's result takes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.seen.append(made.numel() * made.element_size())
        return made


def test_mean_and_deviation_are_those_of_the_pixels_and_take_no_copy_in_float64():
    images = torch.randint(256, (50, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    images[:, 1] //= 7
    with _Sizes() as sizes:
        found = run._mean_and_std(ImageSet(images, torch.zeros(50, dtype=torch.long), ("one",)))
    pixels = images.double() / 255
    for mine, expected in zip(found, (pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))), strict=True):
        torch.testing.assert_close(torch.tensor(mine, dtype=torch.float64), expected, rtol=1e-12, atol=0)
    assert 0 < max(sizes.seen) <= images.numel()


def test_a_dry_run_writes_nothing_and_needs_no_teacher(here, capsys):
    assert call("iad2_resnet18", "--dry-run", "--out", "r") == 0
    assert list(here.iterdir()) == []
    printed = " ".join(capsys.readouterr().out.split())  # lines break where the terminal ends
    assert "383 an epoch (49000 training images, 1000 held out; batch 128), 76600 in all" in printed


def test_the_seed_is_the_run(here):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert _run("at_resnet18", f"--train.seed {seed} --out {out}") == 0
    _same_run(here / "a", here / "b")
    assert _lines(here / "a") != _lines(here / "c")


# ------------------------------------------------------------------------------------------- stopping

STOPPED = "--out r --train.lr 1e30 --checkpoint.every-steps 1"


def test_a_loss_that_is_no_number_ends_with_3_and_what_was_saved_is_whole(here, capsys):
    assert _run("at_resnet18", STOPPED) == 3
    error = capsys.readouterr().err
    assert error.startswith(
        "error: epoch 0, step 1: the loss term 'label' is not finite. What was saved before is whole"
    )
    saved = checkpoint.newest(here / "r/checkpoints")
    assert (saved.epoch, saved.step) == (0, 1)
    assert all(value.isfinite().all() for value in saved.tensors["student"].values())
    assert _lines(here / "r") == []


def test_a_network_that_breaks_with_its_only_step_ends_with_3_too(here, capsys):
    """An epoch of one step: no loss shows it, validation does."""
    assert _run("at_resnet18", "--out r --train.lr 1e30 --train.batch-size 64") == 3
    assert "error: validation: " in capsys.readouterr().err
    assert not (here / "r/best").exists()


def test_a_run_folder_that_cannot_be_written_ends_with_4(here, capsys):
    (here / "file").write_text("")
    assert _run("at_resnet18", "--out file/r") == 4
    assert "choose another --out" in capsys.readouterr().err


def test_a_run_folder_in_which_another_run_is_going_on_ends_with_4(here, capsys):
    with checkpoint.locked(here / "r"):
        assert _run("at_resnet18", "--out r") == 4
    assert "another process is running in r; wait for it, or choose another --out" in capsys.readouterr().err
    assert _run("at_resnet18", "--out r") == 0


def test_a_full_disk_ends_with_4_and_the_same_command_goes_on(taught, capsys, monkeypatch):
    assert _run("iad1_resnet18", "--out whole") == 0
    saves = []

    def full(folder, saved, **settings):
        saves.append(saved.epoch)
        if len(saves) == 2:
            with monkeypatch.context() as patched:
                patched.setattr(checkpoint, "save_file", _no_space)
                return real(folder, saved, **settings)
        return real(folder, saved, **settings)

    def _no_space(*_, **__):
        raise OSError(28, "No space left on device")

    real = checkpoint.save
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", full)
        assert _run("iad1_resnet18", "--out r") == 4
    assert "No space left on device" in capsys.readouterr().err
    assert _run("iad1_resnet18", "--out r") == 0
    _same_run(taught / "r", taught / "whole")


@pytest.mark.slow
def test_a_disk_that_is_really_full_leaves_the_last_checkpoint_and_the_run_goes_on(taught, uninterrupted):
    """No file may grow beyond 100 kB: the network's are larger."""
    _killed(f"{LONG} --out r", run.Run, "_validate")
    before = _files(taught / "r/checkpoints")
    assert before
    command = recipe_files.command("iad1_resnet18", *TINY, *shlex.split(LONG), "--out", "r")
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True, env=recipe_files.ENVIRONMENT, check=False)
    assert done.returncode == 4, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert _files(taught / "r/checkpoints") == before
    assert _run("iad1_resnet18", f"{LONG} --out r") == 0
    _same_run(taught / "r", uninterrupted)


# ------------------------------------------------------------------------------------------- going on


class _Kill(BaseException):
    pass


def _raise_kill(*_, **__):
    raise _Kill


def _killed(line, where, name, by=_raise_kill, recipe="iad1_resnet18"):
    """Begin a run that ends without warning when it calls `name` of `where`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(where, name, by)
        with pytest.raises(_Kill):
            _run(recipe, line)


LONG = "--train.epochs 3 --checkpoint.every-steps 2"


@pytest.fixture(scope="module")
def uninterrupted(world):
    with contextlib.chdir(world):
        assert _run("iad1_resnet18", f"{LONG} --out {world / 'uninterrupted'}") == 0
    return world / "uninterrupted"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before a save", "after a save", "after a line"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    taught, uninterrupted, monkeypatch, capsys, moment, number
):
    """At its first, second, fourth checkpoint or line: in warm-up's epoch, at its end, after it."""
    calls = 0
    name = "append_line" if moment == "after a line" else "save"
    real = getattr(checkpoint, name)

    def deadly(*args, **kwargs):
        nonlocal calls
        calls += 1
        if moment.startswith("before") and calls == number:
            raise _Kill
        real(*args, **kwargs)
        if moment.startswith("after") and calls == number:
            raise _Kill

    number = min(number, 3) if name == "append_line" else number
    _killed(f"{LONG} --out r", checkpoint, name, deadly)
    saved = checkpoint.newest(taught / "r/checkpoints")
    capsys.readouterr()
    assert _run("iad1_resnet18", f"{LONG} --out r") == 0
    out = capsys.readouterr().out
    assert (f"continuing r at epoch {saved.epoch}, step {saved.step}" if saved else "objective") in out
    _same_run(taught / "r", uninterrupted)


def test_a_torn_newest_checkpoint_only_costs_time(taught, uninterrupted, caplog):
    _killed(f"{LONG} --out r", run.Run, "_measure")
    newest = sorted((taught / "r/checkpoints").iterdir())[-1]
    (newest / "student.safetensors").write_bytes(b"torn")
    assert _run("iad1_resnet18", f"{LONG} --out r") == 0
    assert "trying the one before" in caplog.text
    _same_run(taught / "r", uninterrupted)


@pytest.mark.parametrize("kept", [True, False])
def test_a_process_that_does_not_find_what_the_main_one_finds_is_refused(done, capsys, monkeypatch, kept):
    """Also where it finds nothing at all, as on a node without the shared file system."""
    if not kept:
        shutil.rmtree(done / "checkpoints")
        (done / "results.json").unlink()
    monkeypatch.setattr(run, "from_main", lambda position: (1, 2))
    assert _run("at_resnet18", f"--out {done}") == 2
    found = "epoch 2, step 0" if kept else "nothing"
    assert f"this process finds {found} in {done}, the main one something else" in capsys.readouterr().err


def test_a_folder_to_continue_can_be_named(taught, uninterrupted):
    _killed(f"{LONG} --out r", run.Run, "_measure")
    assert _run("iad1_resnet18", f"{LONG} --resume r") == 0
    _same_run(taught / "r", uninterrupted)


@pytest.fixture(scope="module")
def finished(world):
    with contextlib.chdir(world):
        assert _run("at_resnet18", f"--out {world / 'finished'}") == 0
    return world / "finished"


@pytest.fixture
def done(here, finished):
    shutil.copytree(finished, here / "r")
    return here / "r"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--train.lr 0.2", "--train.lr: 0.1 before, 0.2 now"),
        ("--train.epochs 3", "--train.epochs: 2 before, 3 now"),
        ("--train.seed 1", "--train.seed: 0 before, 1 now"),
        ("--attack.eps 8/255", f"--attack.eps: 0.1 before, {8 / 255} now"),
        ("--data.limit-train 65", "--data.limit-train: 64 before, 65 now"),
        ("--student.name cifar_resnet20", "--student.name: cifar_resnet8 before, cifar_resnet20 now"),
        ("--precision bf16", "--precision: fp32 before, bf16 now"),
        ("--compile step", "--compile: off before, step now"),
        ("--data.selection test", "--data.selection: holdout before, test now"),
        ("--eval.seed 1", "--eval.seed: 0 before, 1 now"),  # validation's too: it selects
        ("--train.lr 0.2 --train.momentum 0.5", "--train.momentum: 0.9 before, 0.5 now"),
    ],
)
def test_other_settings_are_refused_with_the_difference(done, capsys, line, said):
    before = _files(done)
    assert _run("at_resnet18", f"--out r {line}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: r was begun with other settings:\n")
    assert f"  {said}\n" in error
    assert "--resume never to start it again" in error
    assert _files(done) == before


def test_other_images_are_refused(done, capsys, monkeypatch):
    before = _files(done)
    real = assets.load_data

    def brighter(settings):
        splits = real(settings)
        splits.provenance["digest"]["train"] = "another"
        return splits

    monkeypatch.setattr(assets, "load_data", brighter)
    assert _run("at_resnet18", "--out r") == 2
    assert "--data: " in capsys.readouterr().err
    assert _files(done) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("--train.lr 0.02", ("train.lr", 0.1, 0.02)),
        ("--train.momentum 0.5", ("train.momentum", 0.9, 0.5)),
        ("--train.batch-size 8", ("train.batch_size", 16, 8)),
        ("--data.limit-train 48", ("data.limit_train", 64, 48)),
        ("--precision bf16", ("precision", "fp32", "bf16")),
    ],
)
def test_other_settings_can_be_accepted_and_are_recorded_everywhere(here, capsys, line, change):
    _killed("--checkpoint.every-steps 3 --out r", run.Run, "_validate", recipe="at_resnet18")
    saved = checkpoint.newest(here / "r/checkpoints")
    assert (saved.epoch, saved.step) == (0, 3)
    assert _run("at_resnet18", f"--checkpoint.every-steps 3 --out r {line}") == 2
    assert "--accept-changes to continue it all the same" in capsys.readouterr().err
    assert _run("at_resnet18", f"--checkpoint.every-steps 3 --out r {line} --accept-changes") == 0
    name, before, now = change
    recorded = {"setting": name, "before": before, "now": now}
    others = [
        c for c in _results(here / "r")["changed"] if c["setting"] != "data"
    ]  # the images' digest, with a limit
    assert [{key: c[key] for key in recorded} for c in others] == [recorded]
    # the epoch's steps are other steps with another batch or other images: it begins again
    step = 0 if name.startswith(("train.batch", "data")) else 3
    assert f"continuing r at epoch 0, step {step}\n" in capsys.readouterr().out
    history = checkpoint.read_lines(here / "r/history.jsonl")
    assert history.pop()["event"] == "measured"
    assert [(h["event"], h["epoch"], h["step"]) for h in history] == [("begun", 0, 0), ("continued", 0, step)]
    assert recorded in history[1]["changed"]
    # from here on the changed settings are the run's own, and what was accepted once is not forgotten
    assert _run("at_resnet18", f"--checkpoint.every-steps 3 --out r {line} --eval.attacks natural") == 0
    assert [c["setting"] for c in _results(here / "r")["changed"] if c["setting"] != "data"] == [name]


def test_an_accepted_momentum_is_the_one_that_trains(here):
    """What the checkpoint says of the optimizer does not overrule what was asked for."""
    for out, line in (("r", ""), ("s", "")):
        _killed(f"--out {out} {line}", run.Run, "_save", recipe="at_resnet18", by=_after_saves(2))
    assert _run("at_resnet18", "--out r --train.epochs 3 --train.drops 1 2 --accept-changes") == 0
    more = "--train.epochs 3 --train.drops 1 2 --train.momentum 0.1 --accept-changes"
    assert _run("at_resnet18", f"--out s {more}") == 0
    assert (here / "r/last/model.safetensors").read_bytes() != (
        here / "s/last/model.safetensors"
    ).read_bytes()


def _after_saves(number, real=run.Run._save):
    calls = []

    def save(*args):
        real(*args)
        calls.append(args)
        if len(calls) == number:
            raise _Kill

    return save


@pytest.mark.parametrize("at", ["_start_folder", "_announce"])
def test_what_was_accepted_outlives_a_kill_before_the_next_checkpoint(here, at):
    """Killed before settings.yaml says the new settings, and after."""
    _killed("--checkpoint.every-steps 3 --out r", run.Run, "_save", _after_saves(3), "at_resnet18")
    assert checkpoint.newest(here / "r/checkpoints").state["best"]["epoch"] == 0
    line = "--checkpoint.every-steps 3 --out r --train.drops 1 --eval.seed 1 --accept-changes"
    _killed(line, run.Run, at, recipe="at_resnet18")
    assert checkpoint.newest(here / "r/checkpoints").state["best"] == {}
    assert _run("at_resnet18", line) == 0
    results = _results(here / "r")
    assert [change["setting"] for change in results["changed"]] == ["train.drops", "eval.seed"]
    assert results["epochs"]["best"] == 1  # the other one was chosen by another measure


def test_an_epoch_that_begins_again_is_gone_on_from_where_it_was_killed(here):
    """Not from the later step of the batches that it had before."""
    for out in ("r", "s"):
        by = _after_saves(3)
        _killed(f"--checkpoint.every-steps 1 --out {out}", run.Run, "_save", by, "at_resnet18")
    saved = checkpoint.newest(here / "r/checkpoints")
    assert (saved.epoch, saved.step) == (0, 3)
    line = "--checkpoint.every-steps 1 --train.batch-size 8 --accept-changes"
    _killed(f"{line} --out r", run.Run, "_save", _after_saves(2), "at_resnet18")
    saved = checkpoint.newest(here / "r/checkpoints")
    assert (saved.epoch, saved.step) == (0, 1)
    assert [change["now"] for change in saved.state["accepted"]] == [8]
    for out in ("r", "s"):
        assert _run("at_resnet18", f"{line} --out {out}") == 0
    _same_run(here / "r", here / "s")
    assert _results(here / "r")["changed"] == _results(here / "s")["changed"]


def test_a_best_network_of_a_course_that_was_left_is_not_taken_for_the_run_s(here, monkeypatch):
    """It lies there from after the checkpoint, and the epochs after it are others with what was accepted."""
    told = iter([10.0, 10.0, 20.0, 20.0, 30.0, 30.0, 5.0, 5.0, 4.0, 4.0])
    monkeypatch.setattr(run.Run, "_accuracy", lambda self, network, images, attack: next(told))
    line = "--train.epochs 4 --checkpoint.every-epochs 2 --out r --eval.attacks natural"
    calls = []

    def left_in_epoch_3(engine, epoch, real=Engine.epoch, **settings):
        calls.append(epoch)
        if epoch == 3:
            raise _Kill
        return real(engine, epoch, **settings)

    _killed(line, Engine, "epoch", left_in_epoch_3, "at_resnet18")
    left = (here / "r/best/model.safetensors").read_bytes()
    assert checkpoint.newest(here / "r/checkpoints").state["best"]["epoch"] == 1
    assert _run("at_resnet18", f"{line} --train.lr 0.01 --accept-changes") == 0
    assert _results(here / "r")["epochs"] == {"best": 2, "last": 3}
    assert (here / "r/best/model.safetensors").read_bytes() != left


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--train.epochs 1",
            "is at epoch 2, step 0: --train.epochs 1 leaves nothing to train; it must be above 2",
        ),
        ("--eval.seed 1", "its best epoch was chosen before --eval.seed changed"),
        ("--data.holdout 5", "its best epoch was chosen before --data.holdout, --data changed"),
    ],
)
def test_what_a_finished_run_cannot_follow_is_refused_before_any_compute(
    done, capsys, monkeypatch, line, said
):
    before = _files(done)
    for name in ("evaluate", "accuracy_under"):
        monkeypatch.setattr(run, name, _raise_kill)
    assert _run("at_resnet18", f"--out r {line} --accept-changes") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--resume never to start it again" in error
    assert _files(done) == before


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_is_not_shortened_to_less_than_it_has_trained(here, capsys, epochs):
    _killed("--train.epochs 3 --out r", run.Run, "_save", _after_saves(2), "at_resnet18")
    assert _run("at_resnet18", f"--train.epochs {epochs} --out r --accept-changes") == 2
    assert f"--train.epochs {epochs} leaves nothing to train; it must be above 2" in capsys.readouterr().err


def test_another_network_cannot_be_accepted(done, capsys):
    assert _run("at_resnet18", "--out r --student.name cifar_resnet20 --train.epochs 3 --accept-changes") == 2
    assert "r cannot be continued: the checkpoint is of another network" in capsys.readouterr().err


def test_a_teacher_that_was_changed_meanwhile_is_noticed(taught, capsys):
    _killed("--out r", run.Run, "_measure")
    network = load_network("runs/digits/at_resnet18/seed0")
    with torch.no_grad():
        next(network.parameters())[0] += 1e-3
    save_network(network, Path("runs/digits/at_resnet18/seed0/best"), metadata={})
    assert _run("iad1_resnet18", "--out r") == 2
    assert re.search(
        r"--teachers: \{'teacher': '\w{64}'\} before, \{'teacher': '\w{64}'\} now", capsys.readouterr().err
    )
    assert _run("iad1_resnet18", "--out r --accept-changes") == 0
    assert [change["setting"] for change in _results(taught / "r")["changed"]] == ["teachers"]


def test_a_teacher_by_another_name_is_the_same_teacher(taught):
    """A study names it by its folder, a recipe by `at`: its weights decide."""
    _killed("--out r", run.Run, "_measure")
    assert _run("iad1_resnet18", "--out r --teacher runs/digits/at_resnet18/seed0") == 0
    assert _run("iad1_resnet18", f"--out r --teacher {taught / 'runs/digits/at_resnet18/seed0'}") == 0
    assert _results(taught / "r")["changed"] == []


def test_a_finished_run_shows_its_table_and_does_nothing(done, capsys, monkeypatch):
    before = _files(done)
    monkeypatch.setattr(Engine, "epoch", _raise_kill)
    monkeypatch.setattr(run, "evaluate", _raise_kill)
    assert _run("at_resnet18", "--out r") == 0
    out = capsys.readouterr().out
    assert "r is finished; --resume never starts it again" in out
    best = _results(done)["best"]
    assert re.search(rf"best \(epoch \d\) +{best['natural']:.2f} +{best['pgd10']:.2f}", out)
    assert _files(done) == before


def test_a_finished_run_is_measured_otherwise_without_training(done, monkeypatch):
    before = _files(done)
    monkeypatch.setattr(Engine, "epoch", _raise_kill)
    assert _run("at_resnet18", "--out r --eval.attacks natural,fgsm_plain --eval.limit 9") == 0
    results = _results(done)
    assert results["best"]["n"] == 9
    assert "fgsm_plain" in results["last"]
    assert "pgd10" not in results["last"]
    after = _files(done)
    for name in ("metrics.jsonl", "best/model.safetensors", "last/model.safetensors"):
        assert after[name] == before[name]


def test_a_finished_run_is_measured_under_another_radius_without_training(done, monkeypatch):
    """Validation's radius is the attack's: nothing that was trained or chosen depends on this one."""
    monkeypatch.setattr(Engine, "epoch", _raise_kill)
    before = _results(done)["best"]["pgd10"]
    assert _run("at_resnet18", "--out r --eval.eps 0.4") == 0
    results = _results(done)
    assert (results["evaluation"]["eps"], results["changed"]) == (0.4, [])
    assert results["best"]["pgd10"] < before


def test_resume_never_starts_again_and_leaves_nothing_of_the_old_run(done, finished):
    (done / "report.html").write_text("of the old run")
    (done / "notes.txt").write_text("mine")
    os.utime(done / "best/model.safetensors", (0, 0))
    assert _run("at_resnet18", "--out r --resume never") == 0
    assert (done / "report.html").read_text() != "of the old run"
    assert (done / "notes.txt").read_text() == "mine"
    assert (done / "best/model.safetensors").stat().st_mtime > 0
    _same_run(done, finished)
    assert _run("at_resnet18", "--out r --resume never --train.lr 0.2") == 0
    assert _lines(done)[0]["lr"] == 0.2


@pytest.mark.parametrize("damage", ["gone", "broken"])
def test_a_run_whose_checkpoints_are_lost_is_not_thrown_away_unasked(done, capsys, damage):
    if damage == "gone":
        shutil.rmtree(done / "checkpoints")
    else:
        for folder in (done / "checkpoints").iterdir():
            (folder / "state.json").write_text("{}")
    before = _files(done)
    assert _run("at_resnet18", "--out r") == 2
    assert "--resume never to throw it away and start again" in capsys.readouterr().err
    assert _files(done) == before
    assert _run("at_resnet18", "--out r --resume never") == 0


# ------------------------------------------------------------------------------------------- precision


def test_what_a_measurement_decided_is_kept(here, monkeypatch):
    decided = Precision(kind="bf16", channels_last=True, reason="measured: here")
    asked = []

    def measured(*_, **settings):
        asked.append(settings["batch_size"])
        return decided

    monkeypatch.setattr(run.precision, "probe", measured)
    _killed("--out r --precision auto", run.Run, "_measure", recipe="at_resnet18")
    assert asked == [16]
    monkeypatch.setattr(run.precision, "probe", _raise_kill)
    assert _run("at_resnet18", "--out r --precision auto") == 0
    assert _results(here / "r")["precision"] == {
        "kind": "bf16",
        "channels_last": True,
        "reason": "measured: here",
    }


@pytest.mark.parametrize(
    ("flag", "line", "kind", "reason"),
    [
        ("bf16", "--precision fp32", "fp32", "asked for by --precision"),
        ("bf16", "--precision auto", "bf16", "asked for by accelerate"),
        ("no", "--precision auto", "fp32", "measured: here"),
    ],
)
def test_the_option_beats_accelerate_s_flag_which_beats_a_measurement(
    here, monkeypatch, flag, line, kind, reason
):
    measured = Precision(kind="fp32", channels_last=False, reason="measured: here")
    monkeypatch.setattr(run.precision, "probe", lambda *_, **__: measured)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", flag)
    assert _run("at_resnet18", f"--out r {line} --train.epochs 1") == 0
    environment = json.loads((here / "r/environment.json").read_text())
    assert (environment["precision"]["kind"], environment["precision"]["reason"]) == (kind, reason)


# ------------------------------------------------------------------------------------------- compile


def test_how_the_attack_is_run_is_kept(here, monkeypatch, capsys):
    """As decided at the start, whatever a trial would find later."""
    wanted, taken = [], []

    def decide(way, attack, images, **how):
        wanted.append((way, how["reason"], len(images)))
        return Compilation("step", "measured: here")

    def step_of(attack):
        taken.append(attack)
        return attack.take_step

    monkeypatch.setattr(run.compiling, "decide", decide)
    monkeypatch.setattr(run.compiling, "CompiledStep", step_of)
    _killed("--out r", run.Run, "_measure", recipe="at_resnet18")
    assert "attack           compile step (measured: here)" in capsys.readouterr().out
    assert _run("at_resnet18", "--out r") == 0
    assert wanted == [("auto", "asked for by --compile", 16), ("step", "as the run was begun", 16)]
    assert len(taken) == 2
    assert _results(here / "r")["compile"] == {"kind": "step", "reason": "measured: here"}
    assert json.loads((here / "r/environment.json").read_text())["compile"]["kind"] == "step"


def test_what_was_asked_for_and_refused_may_be_asked_for_again(here, monkeypatch, capsys):
    """The same command continues a run whose compiled step the trial did not take, eagerly as it was begun."""
    wanted = []

    def decide(way, attack, images, **how):
        wanted.append(way)
        return Compilation("off", "step was wanted; x̃ is another")

    monkeypatch.setattr(run.compiling, "decide", decide)
    _killed("--out r --compile step", run.Run, "_measure", recipe="at_resnet18")
    assert _run("at_resnet18", "--out r --compile graphs") == 2
    assert "--compile: off before, graphs now" in capsys.readouterr().err
    assert _run("at_resnet18", "--out r --compile step") == 0
    assert wanted == ["step", "off"]
    assert _results(here / "r")["compile"]["kind"] == "off"


def test_nothing_is_compiled_where_nothing_is_attacked(here, monkeypatch):
    monkeypatch.setattr(run.compiling, "decide", _raise_kill)
    assert _run("st_resnet18", "--out r --train.epochs 1") == 0
    assert _results(here / "r")["compile"] == {"kind": "off", "reason": "nothing is attacked"}


@pytest.mark.parametrize("order", ["lean", "faithful"])
def test_results_name_the_order_of_batchnorm(here, order):
    assert _run("at_resnet18", f"--out r --train.epochs 1 --train.bn-order {order}") == 0
    assert _results(here / "r")["bn_order"] == order


# ------------------------------------------------------------------------------------------- the rest


def test_a_run_is_a_function_too(here):
    settings = from_command_line(recipe_files.load("at_resnet18"), [*TINY, "--out", "r"])
    results = json.loads(json.dumps(run.run(settings)))
    assert results == run.read_results(here / "r") == run.run(settings)


@pytest.mark.slow
@pytest.mark.real_data
def test_real_cifar10(here):
    folder = REAL_DATA / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 at {folder}; set IAD_EXT_DATA to the folder that holds cifar10")
    line = "--student.name cifar_resnet8 --data.limit-train 200 --data.limit-test 50 --train.epochs 1"
    more = "--eval.attacks natural,fgsm,pgd20 --precision fp32 --train.batch-size 50"
    assert call("at_resnet18", "--data.path", folder, *shlex.split(line), *shlex.split(more)) == 0
    results = _results(here / "runs/cifar10/at_resnet18/seed0")
    assert results["data"]["n"] == {"train": 200, "test": 50, "validation": 20}
    assert results["best"]["n"] == 50
    assert results["best"]["protocol"]["eps"] == pytest.approx(8 / 255)
    assert results["best"]["pgd20"] <= results["best"]["natural"] + 10
