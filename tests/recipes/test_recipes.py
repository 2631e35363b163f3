"""Every recipe has the paper's numbers, and every recipe runs, tiny, through its own file."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recipe_files
from recipe_files import ENVIRONMENT, RECIPES, TINY, command, load
from safetensors.torch import load_file
from test_recipes_since import SOURCES

from iad_ext import load_network
from iad_ext.settings import from_yaml

METHODS = ("st", "at", "trades", "ard", "akd2", "iad1", "iad2")
STUDENTS = ("resnet18", "wrn34", "preactresnet18")
NAMES = [f"{method}_{student}" for method in METHODS for student in STUDENTS]
LAUNCH = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_processes", "1"]


def test_the_set_is_every_method_with_every_student():
    assert len(NAMES) == 21
    others = {f"{method}_resnet18" for method in SOURCES}
    assert set(recipe_files.names()) == {*NAMES, *others}


# ------------------------------------------------------------------------------------------- the paper's numbers

NETWORKS = {
    "resnet18": "cifar_resnet18",
    "wrn34": "cifar_wrn34_10",
    "preactresnet18": "cifar_preact_resnet18",
}
DATA = {"resnet18": "cifar10", "wrn34": "cifar10", "preactresnet18": "tiny-imagenet"}
PADDING = {"resnet18": 4, "wrn34": 4, "preactresnet18": 8}

# (epochs, drops, weight decay)
SHORT, LONG = (100, (50, 80), 5e-4), (200, (100, 150), 2e-4)
TRAINING = {
    "st": {"resnet18": LONG, "wrn34": LONG, "preactresnet18": LONG},
    "at": {"resnet18": LONG, "wrn34": (100, (30, 60), 2e-4), "preactresnet18": SHORT},
    "trades": {"resnet18": LONG, "wrn34": (100, (30, 60), 2e-4), "preactresnet18": SHORT},
    "ard": {"resnet18": LONG, "wrn34": LONG, "preactresnet18": SHORT},
    "akd2": {"resnet18": LONG, "wrn34": LONG, "preactresnet18": SHORT},
    "iad1": {"resnet18": LONG, "wrn34": LONG, "preactresnet18": SHORT},
    "iad2": {"resnet18": LONG, "wrn34": LONG, "preactresnet18": SHORT},
}

# λ of ARD and IAD-I, the label's weight in this notation
LABEL_WEIGHT = {"resnet18": 0.0, "wrn34": 0.0, "preactresnet18": 0.1}
AKD2 = {"tau": 1.0, "label_weight": 0.25, "teacher_weight": 0.5, "natural_teacher_weight": 0.25}
IAD = {"beta": 0.1, "gamma": "1-alpha", "tau": 1.0, "introspection_tau": 1.0}
OBJECTIVE = {
    "st": {},
    "at": {},
    "trades": {"self_weight": 6.0, "tau": 1.0},
    "ard": {"tau": 1.0},
    "akd2": AKD2,
    "iad1": {**IAD, "gate_teacher": False},
    "iad2": {**IAD, **AKD2, "gate_teacher": True},
}

WARMUP = {
    ("iad1", "resnet18"): {"cifar10": 60, "cifar100": 80},
    ("iad2", "resnet18"): {"cifar10": 40, "cifar100": 80},
    ("iad1", "wrn34"): {"cifar10": 5, "cifar100": 10},
    ("iad2", "wrn34"): {"cifar10": 5, "cifar100": 10},
    ("iad1", "preactresnet18"): {"tiny-imagenet": 10},
    ("iad2", "preactresnet18"): {"tiny-imagenet": 10},
}

TRAINING_ATTACK = {
    "st": ("pgd", "train"),  # not run
    "at": ("pgd", "eval"),
    "trades": ("trades", "eval"),
    "ard": ("pgd", "train"),
    "akd2": ("pgd", "train"),
    "iad1": ("pgd", "train"),
    "iad2": ("pgd", "train"),
}
TEACHERS = {"ard": ("at", None), "akd2": ("at", "st"), "iad1": ("at", None), "iad2": ("at", "st")}


def _set(group):
    return {key: value for key, value in vars(group).items() if value is not None}


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_are_the_paper_s(method, student):
    recipe = load(f"{method}_{student}")
    settings = recipe.settings
    epochs, drops, weight_decay = TRAINING[method][student]
    assert settings.recipe == f"{method}_{student}"
    assert _set(settings.train) == {
        "epochs": epochs,
        "drops": drops,
        "weight_decay": weight_decay,
        "batch_size": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "drop_factor": 0.1,
        "schedule": "paper",
        "padding": PADDING[student],
        "flip": True,
        "accumulation": 1,
        "seed": 0,
        "non_finite": "stop",
        "bn_order": "lean",
        "nesterov": False,
        "rates": "drops",
        "rate_warmup": 0,
        "awp": 0.0,
        "awp_start": 0,
        "augment": "crop",
        "cutmix": 0.0,
    }
    objective = {"name": method, "introspect": False, **OBJECTIVE[method]}
    if method in ("ard", "iad1"):
        objective["label_weight"] = LABEL_WEIGHT[student]
    if (method, student) in WARMUP:
        objective["warmup_epochs"] = WARMUP[method, student][DATA[student]]
    assert _set(settings.objective) == objective
    name, mode = TRAINING_ATTACK[method]
    attack = {"name": name, "mode": mode, "eps": 8 / 255, "step": 2 / 255, "steps": 10}
    assert _set(settings.attack) == attack
    assert _set(settings.student) == {"name": NETWORKS[student], "normalize": False}
    assert _set(settings.data) == {
        "name": DATA[student],
        "selection": "holdout",
        "holdout": 1000,
        "extra_share": 0.0,
    }
    assert (settings.teacher, settings.natural_teacher) == TEACHERS.get(method, (None, None))
    assert settings.eval.attacks == "natural,fgsm,pgd20,cw_inf,aa"
    assert (settings.eval.eps, settings.eval.of) == (8 / 255, "best,last")


@pytest.mark.parametrize(("method", "student"), WARMUP)
def test_warm_up_by_data_set(method, student):
    recipe = load(f"{method}_{student}")
    for data, epochs in WARMUP[method, student].items():
        settings = recipe.defaults(data=data)
        assert settings.objective.warmup_epochs == epochs
        assert settings.train == recipe.settings.train


@pytest.mark.parametrize("name", NAMES)
def test_its_title_and_its_file_say_where_in_the_paper_it_belongs(name):
    recipe = load(name)
    source = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    table = {"resnet18": "Table 2", "wrn34": "Table 3", "preactresnet18": "Table 4"}[name.split("_")[1]]
    where = "natural teacher of AKD2 and IAD-II" if name.startswith("st_") else table
    assert where in recipe.title
    assert where in source.split('"""')[1]


# ------------------------------------------------------------------------------------------- every one runs


def _subprocess(line, cwd, **changed):
    return subprocess.run(
        line,
        cwd=cwd,
        env=ENVIRONMENT | changed,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _done(line, cwd, **changed):
    finished = _subprocess(line, cwd, **changed)
    assert finished.returncode == 0, f"{shlex.join(line)}\n{finished.stdout}\n{finished.stderr[-3000:]}"
    return finished.stdout


def _script(name):
    return [str(RECIPES / f"{name}.py"), *TINY]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All of them, teachers first, in an empty folder: {recipe: what it printed}, and the folder."""
    folder = tmp_path_factory.mktemp("recipes")
    printed = {}
    for name in ("at_resnet18", "iad1_resnet18"):
        printed[name] = _done([*LAUNCH, *_script(name)], folder)
    for name in ("st_resnet18", "iad2_resnet18"):
        printed[name] = _done(command(name, *TINY), folder)
    others = [
        name for method in METHODS for name in NAMES if name.startswith(f"{method}_") and name not in printed
    ]
    in_turn = str(Path(__file__).with_name("run_in_turn.py"))
    out = _done([sys.executable, in_turn, *(shlex.join(_script(name)) for name in others)], folder)
    parts = re.split(r"^=== (\w+)\n", out, flags=re.MULTILINE)[1:]
    printed |= dict(zip(parts[::2], parts[1::2], strict=True))
    return folder, printed


def _folder(runs, name):
    teacher = "-at" if name.split("_")[0] in TEACHERS else ""
    return runs[0] / "runs" / "digits" / f"{name}{teacher}" / "seed0"


@pytest.mark.slow
def test_every_recipe_ran(runs):
    folder, printed = runs
    assert sorted(printed) == sorted(NAMES)
    where = sorted(path.relative_to(folder) for path in folder.glob("*/*/*/*"))
    assert where == sorted(_folder(runs, name).relative_to(folder) for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_folder_holds_what_it_should(runs, name):
    folder = _folder(runs, name)
    found = {path.name for path in folder.iterdir()} - {".lock"}
    assert found == {
        "settings.yaml",
        "environment.json",
        "metrics.jsonl",
        "history.jsonl",
        "checkpoints",
        "best",
        "last",
        "evaluation",
        "robust.safetensors",
        "results.json",
        "report.html",
    }
    for which in ("best", "last"):
        assert {path.name for path in (folder / which).iterdir()} == {"model.safetensors", "config.json"}
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"epoch0001-step000000", "epoch0002-step000000"}
    assert not [path for path in folder.rglob("*") if path.suffix in {".pt", ".pth", ".pkl", ".tmp", ".part"}]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_settings_are_its_command_line(runs, name):
    settings = from_yaml((_folder(runs, name) / "settings.yaml").read_text(encoding="utf-8"))
    assert settings.recipe == name
    assert (settings.data.name, settings.student.name) == ("digits", "cifar_resnet8")
    assert (settings.data.limit_train, settings.train.epochs, settings.train.batch_size) == (64, 2, 16)
    assert settings.objective.name == load(name).settings.objective.name


# what is known of each method in its last epoch, after warm-up where there is one; the teacher is seen by all that have
# one, on x and on x̃
STUDENT, NATURAL = "train/acc_", "natural_teacher/acc_on_student_adv"
CASES = {f"cases/{case}" for case in ("reliable", "unreliable", "wrong", "recovered")}
COMBINED = "combined/acc_on_student_adv"
TEACHER = {"teacher/acc_nat", "teacher/acc_on_student_adv", "teacher/entropy_on_student_adv", *CASES}
KNOWN = {
    "st": {STUDENT + "nat"},
    "at": {STUDENT + "adv"},
    "trades": {STUDENT + "adv", STUDENT + "nat"},
    "ard": {STUDENT + "adv", *TEACHER},
    "akd2": {STUDENT + "adv", NATURAL, *TEACHER},
    "iad1": {STUDENT + "adv", STUDENT + "nat", COMBINED, *TEACHER},
    "iad2": {STUDENT + "adv", STUDENT + "nat", NATURAL, COMBINED, *TEACHER},
}
TERMS = {
    "st": {"label"},
    "at": {"label"},
    "trades": {"label", "self"},
    "ard": {"teacher"},
    "akd2": {"label", "teacher", "natural_teacher"},
    "iad1": {"teacher", "self"},
    "iad2": {"label", "teacher", "self", "natural_teacher"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_metrics_are_flat_and_null_where_a_pass_did_not_run(runs, name):
    method, student = name.split("_")
    lines = [json.loads(line) for line in (_folder(runs, name) / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    last = lines[-1]
    always = {"epoch", "lr", "loss/total", "time/epoch_s", "time/images_per_s", "memory/peak_mib"}
    always |= {
        "train/skipped_steps",
        "eval/natural",
        "eval/pgd10",
        "trust/mean",
        "trust/histogram",
        "introspection/share",
        *set().union(*KNOWN.values()),
    }
    labelled = method in LABELLED and student == "preactresnet18"
    terms = TERMS[method] | ({"label"} if labelled else set())
    assert set(last) == always | {f"loss/{term}" for term in terms}
    counts = last.pop("trust/histogram")
    assert all(value is None or isinstance(value, int | float) for value in last.values())
    figures = {
        key
        for key in last
        if key.startswith((STUDENT, "teacher/", "natural_teacher/", "combined/", "cases/"))
    }
    known = KNOWN[method] | ({STUDENT + "nat", COMBINED} if labelled else set())
    assert {key for key in figures if last[key] is not None} == known
    introspective, taught = method in ("iad1", "iad2"), method in ("ard", "akd2", "iad1", "iad2")
    assert (last["trust/mean"] is not None) == introspective
    assert (last["introspection/share"] is not None) == introspective
    # all 64 images where the objective reads T(x̃), else every second batch of 16
    seen = {"iad1": 64, "iad2": 64, "akd2": 64, "ard": 32}
    assert (None if counts is None else sum(counts)) == seen.get(method)
    if taught:
        assert sum(last[key] for key in CASES) == pytest.approx(100)
    assert (last["eval/pgd10"] is None) == (method == "st")
    assert [line["lr"] for line in lines] == pytest.approx(RATES_OF_TWO_EPOCHS[TRAINING[method][student][1]])


LABELLED = ("ard", "iad1")  # λ > 0 with a PreActResNet-18 alone
# each kind of schedule shortened to two epochs
RATES_OF_TWO_EPOCHS = {(100, 150): [0.1, 0.01], (50, 80): [0.1, 0.01], (30, 60): [0.1, 0.001]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_results_are_in_percent_with_their_provenance(runs, name):
    method, student = name.split("_")
    results = json.loads((_folder(runs, name) / "results.json").read_text())
    flags = load_file(_folder(runs, name) / "robust.safetensors")
    assert set(flags) == {
        f"{which}/{attack}" for which in ("best", "last") for attack in ("natural", "pgd10")
    }
    for which in ("best", "last"):
        for attack in ("natural", "pgd10"):
            right = flags[f"{which}/{attack}"]
            assert len(right) == 32
            assert results[which][attack] == pytest.approx(100 * int(right.sum()) / 32, abs=0.01)
        assert results[which]["pgd10"] <= results[which]["natural"]
    assert (results["recipe"], results["selection"]) == (name, "holdout")
    teacher, natural = TEACHERS.get(method, (None, None))
    for role, source in (("teacher", teacher), ("natural_teacher", natural)):
        expected = None if source is None else f"runs/digits/{source}_{student}/seed0"
        assert results[role].get("source") == expected
        assert (results[role] == {}) == (source is None)
    environment = json.loads((_folder(runs, name) / "environment.json").read_text())
    assert environment["command"] == [f"{name}.py", *TINY]
    assert environment["versions"]["torch"]
    assert environment["hardware"]["cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_networks_load(runs, name):
    for source in (_folder(runs, name), _folder(runs, name) / "last"):
        assert load_network(source).num_classes == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_does(runs, name):
    printed = runs[1][name]
    assert f"folder           {_folder(runs, name).relative_to(runs[0])}" in printed
    assert re.search(r"^epoch +2/2  loss \d", printed, re.MULTILINE)
    assert re.search(r"^best \(epoch \d\) +\d", printed, re.MULTILINE)


# ------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_help_is_grouped_and_says_defaults_units_and_places_in_the_paper(tmp_path):
    shown = _done(command("iad1_wrn34", "--help"), tmp_path, COLUMNS="100")  # one column
    for group in ("data", "student", "objective", "attack", "train", "eval", "checkpoint"):
        assert f"─ {group} options ─" in shown
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown).split())
    for said in (
        "IAD-I, WideResNet-34-10 student (Eq. 5; Table 3)",
        "--objective.beta {None}|FLOAT β of the trust α = P_T(x̃|y)^β (Eq. 4; Table 5). (default: 0.1)",
        "--objective.warmup-epochs {None}|INT Epochs of the plain base objective before introspection begins "
        "(Section 5, Table 6). (default: 5)",
        "--attack.eps PIXELS L∞ radius in pixels of [0, 1]. (default: 8/255)",
        "--train.drops [INT [INT ...]] Epochs at which the rate falls. (default: 100 150)",
        "--student.name STR Any classifier's name in timm's registry; iad-ext's own start with cifar_. "
        "(default: cifar_wrn34_10)",
        "--precision {auto,fp32,bf16,fp16}",
        "(default: at)",
    ):
        assert said in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_exit_codes_reach_the_shell(tmp_path):
    """Wrong input is 2, stopped training 3, a folder that cannot be written 4; each with one plain sentence."""
    (tmp_path / "file").write_text("")
    for name, line, code, said in (
        ("ard_wrn34", "", 2, "Train it first:\n  accelerate launch recipes/at_wrn34.py --data.name digits\n"),
        ("at_resnet18", "--train.lr 1e30", 3, "epoch 0, step 1: the loss term 'label' is not finite"),
        ("at_resnet18", "--out file/r", 4, "cannot write to the run folder"),
    ):
        stopped = _subprocess(command(name, *TINY, *shlex.split(line)), tmp_path)
        assert stopped.returncode == code, stopped.stderr
        assert stopped.stderr.startswith("error: ")
        assert said in stopped.stderr
        assert "Traceback" not in stopped.stderr


# ------------------------------------------------------------------------------------------- killed, shared


def _lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith(("time/", "memory/"))} for record in records]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_and_lines(runs):
    """SIGKILL in the middle of an epoch, as a machine that goes away."""
    folder, _ = runs
    settings = "--data.limit-train 160 --train.epochs 6 --checkpoint.every-steps 3"
    line = command("iad1_resnet18", *TINY, *shlex.split(settings))
    with subprocess.Popen(
        [*line, "--out", "killed"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    ) as run:
        metrics, deadline = folder / "killed/metrics.jsonl", time.monotonic() + 200
        # a line of the first epoch, and a checkpoint within the second
        while run.poll() is None and time.monotonic() < deadline:
            within = [path for path in folder.glob("killed/checkpoints/epoch0001-*") if path.name[-1] != "0"]
            if metrics.exists() and metrics.read_text().count("\n") >= 1 and within:
                break
            time.sleep(0.002)
        os.kill(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert not (folder / "killed/results.json").exists()
    continued = _done([*line, "--out", "killed"], folder)
    position = re.search(r"continuing killed at epoch (\d+), step (\d+)", continued)
    assert int(position[1]) >= 1
    _done([*line, "--out", "whole"], folder)
    for which in ("best", "last"):
        one, other = (folder / run / which / "model.safetensors" for run in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes()
    assert _lines(folder / "killed") == _lines(folder / "whole")
    assert len(_lines(folder / "whole")) == 6


@pytest.mark.slow
def test_of_two_processes_one_says_what_is_wrong(tmp_path):
    launch = [LAUNCH[0], "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    failed = _subprocess([*launch, *_script("iad2_resnet18")], tmp_path, ACCELERATE_USE_CPU="true")
    assert failed.returncode != 0
    assert failed.stderr.count("error: no teacher yet: --teacher at looks in") == 1, failed.stderr


@pytest.mark.slow
def test_two_processes_share_a_run(runs):
    """The same recipe, two ranks: one folder, every line once, every image counted once."""
    folder, _ = runs
    launch = [LAUNCH[0], "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    script = [
        *_script("iad2_resnet18"),
        "--out",
        "shared",
        "--precision",
        "auto",
        "--checkpoint.every-steps",
        "3",
    ]
    printed = _done([*launch, *script], folder, ACCELERATE_USE_CPU="true")
    assert printed.count("results          shared/results.json") == 1
    assert "2 processes" in " ".join(printed.split())
    environment = json.loads((folder / "shared/environment.json").read_text())
    assert environment["processes"] == 2
    assert [line["epoch"] for line in _lines(folder / "shared")] == [0, 1]
    alone = _folder(runs, "iad2_resnet18")
    # the teachers were measured on the same images
    one, other = (json.loads((run / "results.json").read_text()) for run in (folder / "shared", alone))
    for role in ("teacher", "natural_teacher"):
        assert one[role] == other[role]
    assert one["best"]["n"] == 32
