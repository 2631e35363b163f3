"""The recipes of later papers: their sources' numbers, and each of them runs, tiny, through its own file."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import ENVIRONMENT, RECIPES, TINY, load

from iad_ext import load_network
from iad_ext.plan import Plan
from iad_ext.settings import from_yaml

# method -> epochs, drops, rate, weight decay, attack and its mode, teachers, source
SOURCES = {
    "rslad": (300, (215, 260, 285), 0.1, 2e-4, ("rslad", "eval"), ("at", None), "Zi et al. 2021"),
    "adaad": (200, (100, 150), 0.1, 5e-4, ("adaad", "eval"), ("at", None), "Huang et al. 2023"),
    "adaiad": (200, (100, 150), 0.1, 5e-4, ("adaad", "eval"), ("at", None), "Huang et al. 2023"),
    "mtard": (300, (215, 260, 285), 0.1, 2e-4, ("mart", "eval"), ("at", "st"), "Zhao et al. 2022"),
    "mart": (120, (74, 89, 99), 0.01, 3.5e-3, ("mart", "eval"), (None, None), "Wang et al. 2020"),
    "adr": (200, (100, 150), 0.1, 5e-4, ("adr", "train"), (None, None), "Wu et al. 2024"),
}
TERMS = {
    "rslad": {"teacher", "teacher_nat"},
    "adaad": {"teacher"},
    "adaiad": {"teacher", "self"},
    "mtard": {"teacher", "natural_teacher"},
    "mart": {"label", "self"},
    "adr": {"label"},
}


@pytest.mark.parametrize("method", SOURCES)
def test_the_numbers_are_its_source_s(method):
    epochs, drops, rate, decay, attack, teachers, source = SOURCES[method]
    recipe = load(f"{method}_resnet18")
    settings = recipe.settings
    train = settings.train
    assert (train.epochs, train.drops, train.lr, train.weight_decay) == (epochs, drops, rate, decay)
    assert (train.batch_size, train.momentum, train.drop_factor, train.rates) == (128, 0.9, 0.1, "drops")
    assert train.nesterov == (method == "adr")
    assert (settings.attack.name, settings.attack.mode, settings.attack.steps) == (*attack, 10)
    assert (settings.attack.eps, settings.attack.step) == (8 / 255, 2 / 255)
    assert (settings.teacher, settings.natural_teacher) == teachers
    assert source in recipe.title
    assert source in (RECIPES / f"{method}_resnet18.py").read_text(encoding="utf-8").split('"""')[1]
    objective = Plan.of(settings).objective
    assert (objective.name, objective.attack, objective.attack_training) == (
        method,
        attack[0],
        attack[1] == "train",
    )
    built = dict(objective.settings)
    assert built.get("warmup_epochs", 60) == 60
    assert built.get("tau", 1.0) == (30.0 if method == "adaiad" else 1.0)
    assert built.get("temperatures", (2.5, 2.0)) == (2.5, 2.0)
    assert built.get("ramp_epochs", epochs) == epochs  # ADR's schedules span the run
    shorter = Plan.of(recipe.defaults(epochs=10)).objective
    assert shorter.settings.get("ramp_epochs", 10) == 10
    cifar100 = Plan.of(recipe.defaults(data="cifar100")).objective.settings
    assert cifar100.get("temperatures", (1.5, 1.0)) == (1.5, 1.0)
    assert cifar100.get("warmup_epochs", 60) == 60


def test_adr_on_tiny_imagenet_is_shorter_and_trusts_its_average_less():
    settings = load("adr_resnet18").defaults(data="tiny-imagenet")
    assert (settings.train.epochs, settings.train.drops, settings.train.padding) == (80, (40, 60), 4)
    given = Plan.of(settings).objective.settings
    assert (given["rectification"], given["temperatures"], given["ramp_epochs"]) == (
        (0.5, 0.9),
        (2.0, 1.5),
        80,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All of them after their teachers, in one process: what each printed, and the folder."""
    folder = tmp_path_factory.mktemp("since")
    names = ["at_resnet18", "st_resnet18", *(f"{method}_resnet18" for method in SOURCES)]
    lines = [shlex.join([str(RECIPES / f"{name}.py"), *TINY]) for name in names]
    in_turn = str(Path(__file__).with_name("run_in_turn.py"))
    done = subprocess.run(
        [sys.executable, in_turn, *lines],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    parts = re.split(r"^=== (\w+)\n", done.stdout, flags=re.MULTILINE)[1:]
    return folder, dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", SOURCES)
def test_it_runs_and_keeps_what_it_found(runs, method):
    folder, printed = runs
    name = f"{method}_resnet18"
    own = folder / "runs" / "digits" / (f"{name}-at" if SOURCES[method][5][0] else name) / "seed0"
    settings = from_yaml((own / "settings.yaml").read_text(encoding="utf-8"))
    assert (settings.recipe, settings.objective.name, settings.train.epochs) == (name, method, 2)
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert {key for key in lines[-1] if key.startswith("loss/")} == {
        "loss/total",
        *(f"loss/{term}" for term in TERMS[method]),
    }
    results = json.loads((own / "results.json").read_text())
    for which in ("best", "last"):
        assert results[which]["pgd10"] <= results[which]["natural"]
        assert load_network(own / which).num_classes == 10
    assert f"objective        {method}(" in printed[name]
