"""What a newcomer will meet in the first minutes: each is provoked, ends early, and says what to do."""

import functools
import importlib
import logging
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow
import pytest
import timm
import torch
from recipe_files import ENVIRONMENT, TINY, call, command

from iad_ext import (
    IntrospectiveAdversarialDistiller,
    as_art_classifier,
    cli,
    evaluate,
    memory,
    objectives,
    run,
    settings,
)
from iad_ext.assets import UsageError
from iad_ext.backbones import PixelSpace, create_network, save_network
from iad_ext.checkpoint import CheckpointError, newest
from iad_ext.data import load_splits
from iad_ext.loop import Engine, TrainingStopped
from iad_ext.settings import ObjectiveSettings, Settings
from iad_ext.signals import Interrupted

ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(line, *, name="at_resnet18"):
    return call(name, *TINY, *shlex.split(line))


def _evaluate(*args):
    try:
        return cli.main([str(arg) for arg in args])
    except SystemExit as stopped:
        return stopped.code


def _says(capsys, *words):
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    for word in words:
        assert word in " ".join(printed.err.split()), printed.err


# ------------------------------------------------------------------------------------------- no teacher, wrong folder


def test_a_teacher_that_nobody_reads_is_said(here, caplog):
    assert _run("--teacher somewhere --train.epochs 1 --eval.attacks= --out r") == 0
    assert "at reads no teacher: --teacher is not used" in caplog.messages


def test_no_teacher_at_all(here, capsys):
    assert _run("", name="iad1_resnet18") == 2
    _says(
        capsys,
        "error: no teacher yet: --teacher at looks in runs/digits/at_resnet18/seed0. Train it first: "
        "accelerate launch recipes/at_resnet18.py --data.name digits or name another one with --teacher",
    )
    assert list(here.iterdir()) == []


def test_a_name_that_is_mistyped_is_neither_a_network_nor_a_folder(here, capsys):
    assert _run("--teacher taecher", name="iad1_resnet18") == 2
    _says(capsys, "unknown network 'taecher'", f"there is no file or folder {here / 'taecher'} either")
    assert _evaluate("evaluate", "cifar_resnet81", "--data.name", "digits") == 2
    _says(capsys, "did you mean 'cifar_resnet8'?", f"no file or folder {here / 'cifar_resnet81'} either")


def test_a_folder_that_is_no_network(here, capsys):
    (here / "holiday").mkdir()
    (here / "holiday" / "photo.jpg").write_bytes(b"")
    assert _run("--teacher holiday", name="iad1_resnet18") == 2
    _says(capsys, "expected config.json in holiday, or a run's best/ or last/, found photo.jpg")
    assert _evaluate("evaluate", "holiday", "--data.name", "digits") == 2
    _says(capsys, "expected config.json in holiday, or a run's best/ or last/, found photo.jpg")


def test_a_folder_of_images_that_is_not_there(here, capsys):
    assert call("at_resnet18", "--data.name", "cifar10", "--data.path", "nowhere") == 2
    _says(capsys, "error: there is no folder nowhere; give one that datasets.load_dataset reads")


def test_a_folder_that_holds_no_images(here, capsys):
    (here / "holiday").mkdir()
    (here / "holiday" / "notes.md").write_text("nothing")
    assert call("at_resnet18", "--data.name", "cifar10", "--data.path", "holiday") == 2
    _says(capsys, "the data set", "cannot be loaded", "parquet")
    assert {path.name for path in here.iterdir()} == {"holiday"}


def _images(where, *, classes=3, each=4):
    """A data set in a folder: two parquet files, images of 6 × 6 pixels."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[f"c{i}" for i in range(classes)])}
    )
    where.mkdir(parents=True)
    for split in ("train", "test"):
        labels = list(range(classes)) * each
        pixels = [np.full((6, 6, 3), label, np.uint8) for label in labels]
        part = datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=features)
        part.to_parquet(where / f"{split}-00000-of-00001.parquet")
    return where


def test_a_folder_of_several_data_sets(here, capsys):
    for name in ("cifar10", "flowers"):
        _images(here / "data" / name / "plain")
    (here / "data/notes").mkdir()
    several = "expected the folder of one data set, but {} holds 2 (cifar10, flowers); did you mean {}?"
    assert call("at_resnet18", "--data.path", "data") == 2
    _says(capsys, "error: " + several.format("data", "data/cifar10"))
    # a folder higher up, and another name
    assert call("at_resnet18", "--data.path", here, "--data.name", "flower") == 2
    _says(capsys, "error: " + several.format(here, here / "data/flowers"))
    save_network(create_network("cifar_resnet8", num_classes=3, seed=0), here / "three", metadata={})
    assert _evaluate("evaluate", "three", "--data.path", "data") == 2
    _says(capsys, "error: " + several.format("data", "data/cifar10"))
    line = "--attacks natural --batch-size 4"
    assert _evaluate("evaluate", "three", "--data.path", "data/flowers", *line.split()) == 0
    assert "12 test images of data/flowers" in capsys.readouterr().out


def test_a_folder_that_says_which_files_belong_together_is_one_data_set(tmp_path):
    for part in ("a", "b"):
        _images(tmp_path / part)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: '*/train*'}\n"
    (tmp_path / "README.md").write_text(card + "  - {split: test, path: 'a/test*'}\n---\n")
    splits = load_splits("own", path=tmp_path)
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (24, 12)


def test_digits_have_no_folder(here, capsys):
    _images(here / "own")
    said = "the data set digits is scikit-learn's and needs no folder: leave --data.path out"
    assert _run("--data.path own") == 2
    _says(capsys, said)
    save_network(create_network("cifar_resnet8", num_classes=10, seed=0), here / "ten", metadata={})
    assert _evaluate("evaluate", "ten", "--data.name", "digits", "--data.path", "own") == 2
    _says(capsys, said)


def test_images_of_one_s_own_are_not_taken_for_cifar10(here, capsys):
    _images(here / "own")
    assert call("at_resnet18", "--data.path", "own") == 2
    _says(
        capsys,
        "--data.name cifar10 has 10 classes, the images of own have 3: say with --data.name what they are",
    )
    assert not (here / "runs").exists()


def test_a_broken_file_is_named_in_one_line(here, capsys):
    where = _images(here / "own")
    broken = where / "train-00001-of-00001.parquet"
    broken.write_bytes((where / "train-00000-of-00001.parquet").read_bytes()[:-40])
    assert call("at_resnet18", "--data.name", "own", "--data.path", "own") == 2
    printed = capsys.readouterr().err
    assert f"error: the data set own cannot be loaded: {broken}: " in printed
    assert "Failed to read file" not in printed


def test_what_arrow_reads_ahead_is_awaited_after_an_error(monkeypatch):
    """Its workers, dropping a buffer of Python's while the interpreter ends, would abort it: exit code 134 for 2."""
    before = pyarrow.total_allocated_bytes()

    def load_dataset(*_, **__):
        ahead = [pyarrow.allocate_buffer(1 << 20)]
        threading.Timer(0.3, ahead.clear).start()
        raise RuntimeError(f"columns differ{' …' * 500}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match="columns differ") as caught:
        load_splits("some/where")
    assert pyarrow.total_allocated_bytes() == before
    assert len(str(caught.value)) < 500


# ------------------------------------------------------------------------------------------- settings that nobody reads


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "at_resnet18",
            "--train.rates cosine --train.drops 3",
            "--train.drops is not used: --train.rates cosine",
        ),
        ("at_resnet18", "--train.drops 1 9", "--train.drops 9 is not reached: the last epoch is 1"),
        ("at_resnet18", "--average.decay 0.9", "--average.decay is not used: --average.name is none"),
        ("at_resnet18", "--train.awp-start 1", "--train.awp-start is not used: --train.awp is 0"),
        ("at_resnet18", "--eval.aa-limit 4", "--eval.aa-limit is not used: --eval.attacks does not have aa"),
        ("st_resnet18", "--attack.eps 4/255", "--attack.eps is not used: st trains on natural images"),
        (
            "st_resnet18",
            "--teacher-architecture resnet18",
            "--teacher-architecture is not used: no --teacher",
        ),
        ("at_resnet18", "--data.selection test --data.holdout 5", "--data.holdout is not used"),
        ("at_resnet18", "--train.augment cropshift --train.padding 2", "--train.padding is not used"),
    ],
)
def test_a_setting_that_nobody_reads_is_said(here, caplog, name, line, said):
    assert _run(f"{line} --dry-run", name=name) == 0
    assert [message for message in caplog.messages if message.startswith(said)], caplog.messages


def test_settings_that_are_read_are_not_talked_about(here, caplog):
    line = "--train.epochs 4 --train.drops 1 3 --average.name ema --average.decay 0.9 --attack.eps 4/255"
    assert _run(f"{line} --dry-run") == 0
    assert caplog.messages == []


def test_a_folder_to_go_on_in_and_another_one(here, capsys):
    (here / "r").mkdir()
    assert _run("--resume r --out s") == 2
    _says(capsys, "--resume r goes on in that folder, --out s names another; give one")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("doctor --data.name digits", "--data.name is for reading a teacher; name one with --teacher"),
        ("doctor --eps 4/255", "--eps is for reading a teacher"),
        ("export x y --image-size 32", "--image-size is ONNX's; add onnx to --to"),
        ("export x y --paper.title T", "--paper. … is for RobustBench; add robustbench to --to"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(here, capsys, line, said):
    assert _evaluate(*line.split()) == 2
    _says(capsys, said)


def test_a_run_knows_its_images_and_its_radius(here, capsys):
    assert _run("--train.epochs 1 --eval.eps 0.05 --eval.attacks natural --out r") == 0
    capsys.readouterr()
    assert _evaluate(*shlex.split("doctor --teacher r --limit 8")) in (0, cli.TO_MEND)
    assert "of 8 images" in capsys.readouterr().out
    assert _evaluate(*shlex.split("evaluate r --limit 8 --attacks natural --data.label-column nothing")) == 2
    _says(capsys, "there is no 'nothing'")
    assert _evaluate(*shlex.split("evaluate r --limit 8 --attacks natural")) == 0
    assert "L∞ radius 0.05" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- a terminal of 80 columns


@pytest.mark.parametrize("name", objectives.ROWS)
def test_an_objective_s_page_fits_and_its_options_exist(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    assert _evaluate("objectives", name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for line in lines:
        if (found := re.match(r"  --objective\.([a-z-]+)", line)) and found[1] != "options":
            assert hasattr(ObjectiveSettings(), found[1].replace("-", "_"))


def test_what_a_run_says_first_fits(here, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert _run("--train.epochs 1 --eval.attacks= --out r") == 0
    head, _, _ = capsys.readouterr().out.partition("\nepoch ")
    assert "folder           r" in head
    assert max(map(len, head.splitlines())) <= 80


def test_a_teacher_in_the_making_is_no_teacher_yet(here, capsys):
    (here / "runs/digits/at_resnet18/seed0/checkpoints").mkdir(parents=True)
    assert _run("", name="iad1_resnet18") == 2
    _says(capsys, "no teacher yet: --teacher at looks in runs/digits/at_resnet18/seed0. Train it first:")


# ------------------------------------------------------------------------------------------- offline


def test_cifar10_without_a_network_and_without_a_path(here):
    """Through the real command line, since the hub's client reads its variables when it is imported."""
    environment = ENVIRONMENT | {"HF_HOME": str(here / "empty")}
    done = subprocess.run(
        command("at_resnet18"), env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "error: the data set uoft-cs/cifar10 cannot be loaded" in done.stderr
    assert "without network, --data.path DIR takes a local folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "runs").exists()


def test_a_teacher_of_the_hub_without_a_network(here, capsys):
    assert _run("--teacher hf-hub:nobody/nothing", name="iad1_resnet18") == 2
    _says(capsys, "cannot load hf-hub:nobody/nothing", "without network, give a local folder")
    assert _evaluate("evaluate", "hf-hub:nobody/nothing", "--data.name", "digits") == 2
    _says(capsys, "cannot load hf-hub:nobody/nothing", "without network, give a local folder")


def test_weights_of_timm_without_a_network(here, capsys, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to the hub.")

    monkeypatch.setattr(timm, "create_model", offline)
    assert _evaluate("evaluate", "resnet18", "--data.name", "digits") == 2
    _says(
        capsys,
        "error: cannot load timm's weights of resnet18: no route to the hub; without network, give a local folder",
    )


def test_what_the_hub_s_client_prints_itself_is_not_printed_twice(monkeypatch, capsys):
    """It tries again for half a minute, in two lines a time."""
    monkeypatch.setattr(logging.root, "handlers", [])
    run._show_warnings()
    for name in ("huggingface_hub.utils._http", "datasets.load", "iad_ext.plan"):
        logging.getLogger(name).warning(f"of {name}")
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING: ")]
    assert printed == ["WARNING: of iad_ext.plan"]


# ------------------------------------------------------------------------------------------- class mismatch


def test_a_network_of_other_classes_is_not_measured(here, capsys):
    save_network(create_network("cifar_resnet8", num_classes=7, seed=0), here / "seven", metadata={})
    assert _evaluate("evaluate", "seven", "--data.name", "digits") == 2
    _says(capsys, "seven has 7 classes, digits has 10; evaluate it on the data that it was trained for")


def test_a_teacher_of_other_classes_teaches_nothing(here, capsys):
    save_network(create_network("cifar_resnet8", num_classes=7, seed=0), here / "seven", metadata={})
    assert _run("--teacher seven", name="iad1_resnet18") == 2
    _says(capsys, "error: --teacher seven has 7 classes, the data 10; train a teacher on this data set")


def test_labels_beyond_the_network_s_classes():
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"the network has 10 classes, so 0 … 9; got 12"):
        evaluate(
            create_network("cifar_resnet8", num_classes=10, seed=0), images, torch.arange(9, 13), ("natural",)
        )


def _classifier(**settings):
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    network = create_network("cifar_resnet8", num_classes=10, seed=0)
    return as_art_classifier(network, optimizer=sgd, image_size=8, **settings)


def test_a_teacher_of_other_classes_at_the_art_door():
    with pytest.raises(ValueError, match=r"teacher has 7 classes, the classifier nb_classes=10"):
        IntrospectiveAdversarialDistiller(_classifier(), create_network("cifar_resnet8", num_classes=7))


# ------------------------------------------------------------------------------------------- normalised inputs

NORMALISED = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(16) % 10


def test_evaluate_refuses_normalised_images():
    network = create_network("cifar_resnet8", num_classes=10, seed=0)
    with pytest.raises(ValueError, match=r"got floats in \[-.*undo the normalisation.*inside the network"):
        evaluate(network, torch.tensor(NORMALISED), torch.tensor(LABELS), ("natural",))


def test_the_art_door_refuses_normalised_images():
    trainer = IntrospectiveAdversarialDistiller(_classifier(), objective="at")
    with pytest.raises(ValueError, match=r"outside the classifier's clip_values \[0, 1\]; scale the images"):
        trainer.fit(NORMALISED, LABELS)


def test_images_of_0_to_255_in_a_classifier_of_0_to_1():
    trainer = IntrospectiveAdversarialDistiller(_classifier(), objective="at")
    with pytest.raises(ValueError, match=r"outside the classifier's clip_values \[0, 1\]"):
        trainer.fit(np.abs(NORMALISED) * 100, LABELS)


@pytest.fixture(scope="module")
def of_other_pixels():
    """A good network of digits whose pixels are scaled otherwise, and what brings [0, 1] to them."""
    digits, test = load_splits("digits").train, load_splits("digits").test
    network = create_network("cifar_resnet8", num_classes=10, seed=0)
    inside = PixelSpace(network, mean=[0.5] * 3, std=[1 / 255] * 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(6):
        for batch in torch.randperm(len(digits), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            logits = inside(digits.pixels(batch.tolist()))
            torch.nn.functional.cross_entropy(logits, digits.labels[batch]).backward()
            optimizer.step()
    inside.eval()
    with torch.no_grad():
        right = (inside(test.pixels()).argmax(1) == test.labels).double().mean()
    assert right > 0.8
    return network.eval()


def test_a_teacher_that_expects_other_pixels_is_refused_with_the_likely_cause(here, capsys, of_other_pixels):
    save_network(of_other_pixels, here / "teacher", metadata={})
    assert _run("--teacher teacher --data.limit-train 1200 --out r", name="iad1_resnet18") == 2
    _says(
        capsys,
        "the teacher teacher is right on",
        "chance is 10.00%: wrong weights, classes in another order, or images that it expects normalised",
    )
    assert not (here / "r/metrics.jsonl").exists()


# ------------------------------------------------------------------------------------------- out of memory


def _too_much(*args, **kwargs):
    torch.empty(2**60)


def test_out_of_memory_in_a_step_keeps_the_checkpoint_and_says_what_to_lower(here, capsys, monkeypatch):
    real = Engine.epoch

    def second_too_large(self, epoch, **settings):
        return real(self, epoch, **settings) if epoch == 0 else _too_much()

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "epoch", second_too_large)
        assert _run("--out r") == 3
    _says(
        capsys,
        "error: out of memory: ",
        "DefaultCPUAllocator",
        "--train.accumulation 2 computes a batch in parts",
        "lower --eval.batch-size, 250 now",
        "the same command goes on from it",
    )
    assert newest(here / "r/checkpoints").epoch == 1
    # what the message offers is taken
    assert _run("--out r --train.accumulation 2 --accept-changes") == 0
    assert run.read_results(here / "r")["changed"][0]["setting"] == "train.accumulation"


def test_out_of_memory_in_the_evaluation(here, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate", _too_much)
        assert _run("--out r --train.epochs 1") == 3
    _says(capsys, "error: out of memory: ", "lower --eval.batch-size, 250 now")
    assert _run("--out r --train.epochs 1 --eval.batch-size 16") == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 1 GiB."),
        MemoryError(),
    ],
)
def test_a_gpu_s_and_python_s_own_say_so_too(error):
    said = pytest.raises(memory.OutOfMemory, match=r"^out of memory: .*\. Buy some$")
    with said as caught, memory.explained("Buy some"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match=r"^something else$"), memory.explained("Buy some"):
        raise RuntimeError("something else")


# ------------------------------------------------------------------------------------------- the set-up


def test_a_python_that_is_too_old_is_named_before_anything_is_installed(here):
    """An interpreter that says it is 3.10."""
    old = here / "python3"
    old.write_text(
        "#!/bin/sh\n"
        f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", here)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, here)
    done = subprocess.run(
        ["make", f"PYTHON={old}", "quickstart"], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "iad-ext needs Python 3.11 or newer; try make PYTHON=python3.12" in done.stderr
    assert not (here / ".venv").exists()


@pytest.mark.slow
def test_accelerate_that_was_never_configured(here):
    """No configuration file is needed: the README's command works as it stands."""
    accelerate = str(Path(sys.executable).parent / "accelerate")
    arguments = command("at_resnet18", *TINY, "--train.epochs", "1", "--eval.attacks", "natural")[1:]
    done = subprocess.run(
        [accelerate, "launch", *arguments],
        env=ENVIRONMENT | {"HF_HOME": str(here / "empty")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"results +runs/digits/at_resnet18/seed0/results.json", done.stdout)


# ------------------------------------------------------------------------------------------- the quickstart


@pytest.fixture
def quickstart(here, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    module = importlib.import_module("quickstart")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda _: None)
    return module


def test_a_quickstart_of_other_epochs_has_another_folder_and_one_that_is_given_is_not_shared(
    quickstart, capsys
):
    asked = (
        {},
        {"aa_limit": 16},
        {"epochs": 2},
        {"epochs": 2, "seed": 1},
        {"out": Path("mine"), "epochs": 2},
    )
    folders = [str(quickstart.Quickstart(**one).folder) for one in asked]
    assert folders == [
        "runs/quickstart", "runs/quickstart", "runs/quickstart-epochs2", "runs/quickstart-epochs2-seed1", "mine",
    ]  # fmt: skip
    (Path("mine") / "AT").mkdir(parents=True)
    begun = settings.override(Settings(), {"train.epochs": 1})
    Path("mine/AT/settings.yaml").write_text(settings.to_yaml(begun))
    with pytest.raises(SystemExit, match=r"^2$"):
        quickstart.main(quickstart.Quickstart(out=Path("mine"), epochs=2))
    said = capsys.readouterr().err
    assert "mine holds a quickstart of --epochs 1 --seed 0, got --epochs 2 --seed 0: delete mine, or" in said
    assert "--train." not in said


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UsageError("it"), 2),
        (TrainingStopped("it"), 3),
        (CheckpointError("it"), 4),
        (Interrupted("it"), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_quickstart_ends_as_a_run_does(quickstart, monkeypatch, raised, code):
    def fail(_):
        raise raised

    monkeypatch.setattr(quickstart, "run", fail)
    with pytest.raises(SystemExit, match=f"^{code}$"):
        quickstart.main(quickstart.Quickstart())


# ------------------------------------------------------------------------------------------- images by their classes


def test_a_limit_that_leaves_classes_out_is_told_before_training(here, caplog):
    """Folders of images lie by their classes: the first few are of the first."""
    shades = np.random.default_rng(0)
    for part, each in (("train", 20), ("test", 4)):
        for name in "abc":
            (here / "own" / part / name).mkdir(parents=True)
            for number in range(each):
                pixels = shades.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(here / "own" / part / name / f"{number:02}.png")
    line = (
        "--data.name own --student.name cifar_resnet8 --train.epochs 1 --train.batch-size 27 --precision fp32 "
        "--eval.attacks natural --eval.limit 8 --eval.validation-limit 2 --eval.aa-limit 1 --out run"
    )
    assert call("st_resnet18", *shlex.split(line)) == 0
    said = [one.getMessage() for one in caplog.records if "classes that occur" in one.getMessage()]
    assert said == [
        "--eval.validation-limit: the first 2 images are of 1 of the 3 classes that occur; --data.holdout takes as "
        "many of each",
        "--eval.limit: the first 8 images are of 2 of the 3 classes that occur; --data.limit-test takes as many of "
        "each",
    ]
    caplog.clear()
    whole = line.replace("--eval.limit 8 --eval.validation-limit 2", "--eval.limit 12").replace(
        "run", "whole"
    )
    assert call("st_resnet18", *shlex.split(whole)) == 0
    assert "classes that occur" not in caplog.text
