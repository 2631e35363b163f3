"""Later methods by command line, YAML and ART: what is given arrives, and wrong values are refused."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from iad_ext import IntrospectiveAdversarialDistiller, objectives, recipes
from iad_ext import settings as settings_module
from iad_ext.objectives import PLUGINS, ROWS, plugins
from iad_ext.plan import Plan
from iad_ext.settings import (
    ObjectiveSettings,
    Recipe,
    Settings,
    TrainSettings,
    from_command_line,
    from_yaml,
    not_own,
    not_read,
    objective_arguments,
    options_of,
    to_yaml,
)


def plan_of(line, **objective):
    settings = Settings(
        recipe="test", objective=ObjectiveSettings(**objective), train=TrainSettings(epochs=100)
    )
    recipe = Recipe(title="A recipe of a test", settings=settings)
    return Plan.of(from_command_line(recipe, line.split()))


def classifier(tiny_network, seed):
    network = tiny_network(seed=seed)
    return PyTorchClassifier(
        network,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), 0.05),
        input_shape=(3, 6, 6),
        nb_classes=10,
        clip_values=(0, 1),
    )


PLUGGED = {
    "introspect": "--objective.introspect --objective.beta 0.3 --objective.warmup-epochs 4",
    "trust": "--objective.introspect --objective.trust margin",
    "igdm": "--objective.igdm 20",
    "target": "--objective.target swap",
    "class_temperature": "--objective.class-temperature 3:2,5:1.5",
    "sample_weight": "--objective.sample-weight entropy_correct",
}


def test_every_plugin_is_tried_by_the_command_line():
    assert {*PLUGGED, "label_smoothing"} == set(PLUGINS)


@pytest.mark.parametrize("plug", PLUGGED)
def test_a_plugin_by_command_line_and_by_yaml_is_the_one_by_name(plug):
    plan = plan_of(PLUGGED[plug], name="rslad")
    given = {
        "introspect": {"introspect": True, "beta": 0.3, "warmup_epochs": 4},
        "trust": {"introspect": True, "trust": "margin"},
        "igdm": {"igdm": 20.0, "ramp_epochs": 100},
        "target": {"target": "swap"},
        "class_temperature": {"class_temperature": {3: 2.0, 5: 1.5}},
        "sample_weight": {"sample_weight": "entropy_correct"},
    }[plug]
    assert repr(plan.objective) == repr(objectives.build("rslad", **given))
    again = Plan.of(from_yaml(to_yaml(plan.settings)))
    assert repr(again.objective) == repr(plan.objective)


def test_a_recipes_beta_gives_way_to_another_trust_and_ones_own_is_said():
    settings = Settings(recipe="test", objective=ObjectiveSettings(name="iad1", beta=0.1))
    recipe = Recipe(title="A recipe of a test", settings=settings)
    said = {}
    for line in ("--objective.trust margin", "--objective.trust margin --objective.beta 0.3"):
        found = from_command_line(recipe, line.split())
        assert "beta" not in Plan.of(found).objective.settings
        said[line] = list(not_read(recipe, found))
    assert list(said.values()) == [
        [],
        ["--objective.beta is not used: --objective.trust takes its place"],
    ]


@pytest.mark.parametrize("name", ["trust", "target", "sample_weight"])
def test_what_is_added_to_a_plugin_is_known_on_the_command_line(name, monkeypatch):
    table = {"trust": plugins.TRUSTS, "target": plugins.TARGETS, "sample_weight": plugins.SAMPLE_WEIGHTS}[
        name
    ]
    monkeypatch.setitem(table, "of_ones_own", next(iter(table.values())))
    spec = importlib.util.spec_from_file_location("settings_again", settings_module.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "settings_again", again)
    spec.loader.exec_module(again)
    recipe = again.Recipe(title="A recipe of a test", settings=again.Settings())
    read = again.from_command_line(recipe, [f"--objective.{name.replace('_', '-')}", "of_ones_own"])
    assert getattr(read.objective, name) == "of_ones_own"


def test_options_reach_arguments_that_have_no_setting_of_their_own():
    plan = plan_of("--objective.options balance_rate=0.1,balance_power=2", name="mtard")
    assert plan.objective.balance.rate == 0.1
    assert plan.objective.balance.power == 2
    read = options_of("a=1,b=1/2,c=true,d=word,e=0.7:0.95,some-name=2")
    assert read == {"a": 1, "b": 0.5, "c": True, "d": "word", "e": (0.7, 0.95), "some_name": 2}


def test_what_ramps_takes_the_epochs_of_the_run():
    assert plan_of("", name="adr").objective.settings["ramp_epochs"] == 100
    assert plan_of("--train.epochs 30", name="adr").objective.settings["ramp_epochs"] == 30
    assert plan_of("--objective.ramp-epochs 7", name="adr").objective.settings["ramp_epochs"] == 7
    assert "ramp_epochs" not in objective_arguments(ObjectiveSettings(name="rslad"), epochs=30)


def test_what_begins_after_the_last_epoch_is_said():
    recipe = Recipe(title="A recipe of a test", settings=Settings(recipe="test"))
    for line, said in {
        "--average.name swa --average.start 30": ["--average.start 30 is not reached", "without its average"],
        "--train.awp 0.01 --train.awp-start 31": [
            "--train.awp-start 31 is not reached",
            "without perturbed weights",
        ],
        "--average.name swa --average.start 29 --train.awp 0.01": [],
    }.items():
        found = list(not_read(recipe, from_command_line(recipe, [*line.split(), "--train.epochs", "30"])))
        assert len(found) == bool(said), found
        assert all(part in found[0] for part in said)


def test_an_average_may_be_the_one_that_teaches():
    for line in ("", "--average.name ema", "--average.decay 0.9 --average.start 5"):
        assert plan_of(line, name="adr").objective.average_decay == 0.995
    line = "--average.name ema --average.decay 0.9 --objective.options average_decay=0.9"
    assert plan_of(line, name="adr").objective.average_decay == 0.9
    assert plan_of("--average.name swa --average.start 5", name="at").settings.average.start == 5


@pytest.mark.parametrize(
    ("row", "share"),
    [("iad1", 9), ("iad1_down", 9), ("iad2", 6), ("adaiad", 9), ("iad_rslad", 9), ("iad_mtard", 9)],
)
def test_a_warm_up_is_a_share_of_the_run_by_both_doors(row, share, tiny_network):
    plan = plan_of("--train.epochs 30", name=row)
    assert plan.objective.warmup_epochs == share
    trainer = IntrospectiveAdversarialDistiller(
        classifier(tiny_network, 1),
        teacher=classifier(tiny_network, 2),
        natural_teacher=classifier(tiny_network, 3),
        objective=row,
    )
    assert repr(trainer._built(30)) == repr(plan.objective)
    assert plan_of("--train.epochs 30 --objective.warmup-epochs 2", name=row).objective.warmup_epochs == 2


def test_every_introspective_row_has_a_share():
    rows = [name for name in ROWS if objectives.build(name).warmup_epochs]
    assert rows
    assert [name for name in rows if "warmup_epochs" not in objectives.of_epochs(name, 10, {})] == []


def test_introspection_by_name_has_no_warm_up_unless_told():
    plan = plan_of("--objective.introspect --train.epochs 30", name="rslad")
    assert plan.objective.warmup_epochs == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", []),
        ("--attack.name trades", []),
        ("--objective.name iad1", []),
        ("--objective.name st", []),
        (
            "--objective.name adaad",
            ["--attack.name pgd is the recipe's", "--attack.mode train is the recipe's"],
        ),
        ("--objective.name adaad --attack.name adaad", ["--attack.mode train is the recipe's"]),
        ("--objective.name adaad --attack.name adaad --attack.mode eval", []),
        ("--objective.name at", ["--attack.mode train is the recipe's; at's own, as in the ART trainer, is"]),
    ],
)
def test_an_attack_that_the_recipe_has_for_another_objective_is_said(line, said):
    recipe = Recipe(
        title="A recipe of a test", settings=Settings(recipe="test", objective=ObjectiveSettings(name="ard"))
    )
    found = list(not_own(recipe, from_command_line(recipe, line.split())))
    assert len(found) == len(said)
    assert all(beginning in one for one, beginning in zip(found, said, strict=True))


def test_options_given_by_name_leave_the_recipe_s_others():
    def options(line):
        return options_of(from_command_line(recipes.load("adr_resnet18"), line.split()).objective.options)

    of_cifar100 = {"temperatures": (1.5, 1.0)}
    assert options("--data.name cifar100") == of_cifar100
    slower = options("--data.name cifar100 --objective.options average_decay=0.999")
    assert slower == of_cifar100 | {"average_decay": 0.999}
    assert options("--data.name cifar100 --objective.options temperatures=3:2") == {
        "temperatures": (3.0, 2.0)
    }
    # nor are they another objective's
    assert options("--data.name cifar100 --objective.name mtard --objective.options balance_rate=0.1") == {
        "balance_rate": 0.1
    }


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "iad1_resnet18",
            "--objective.gamma 0.5 --objective.beta 0.3",
            ["--objective.beta is not used: no term"],
        ),
        ("iad1_resnet18", "--objective.beta 0.3", []),
        ("iad2_resnet18", "--objective.gamma 0.5 --objective.beta 0.3", []),  # its gate reads α
        ("st_resnet18", "--attack.eps 0.1", ["--attack.eps is not used: st trains on natural images"]),
        ("st_resnet18", "--objective.introspect --attack.eps 0.1", []),
    ],
)
def test_what_no_term_reads_is_said_and_nothing_else(name, line, said):
    recipe = recipes.load(name)
    found = list(not_read(recipe, from_command_line(recipe, line.split())))
    assert [one.startswith(begin) for one, begin in zip(found, said, strict=True)] == [True] * len(said)


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ("--objective.options balance_rate", "mtard", "takes NAME=VALUE"),
        ("--objective.options beta=0.1 --objective.beta 0.1", "iad1", "both set beta"),
        ("--objective.options beta=0.1,beta=0.2", "iad1", "--objective.options gives beta twice"),
        ("--objective.weights self=1,self=2", "iad1", "--objective.weights gives self twice"),
        ("--objective.gamma 0:1,0:2", "iad1", "--objective.gamma gives 0 twice"),
        ("--objective.class-temperature 3:2,3:5", "rslad", "--objective.class-temperature gives 3 twice"),
        ("--objective.class-temperature 3:1", "rslad", "class_temperature changes nothing"),
        ("--objective.options balance_rat=0.1", "mtard", "did you mean 'balance_rate'"),
        ("--objective.class-temperature 3", "rslad", "takes CLASS:TEMPERATURE"),
        ("--objective.ramp-epochs 5", "rslad", "argument of rslad 'ramp_epochs'"),
        (
            "--average.name swa",
            "adr",
            "taught by an ema of decay 0.995 from epoch 0 on, and swa from epoch 0 on",
        ),
        (
            "--average.name ema --average.decay 0.9",
            "adr",
            "and an ema of decay 0.9 from epoch 0 on would teach",
        ),
        (
            "--average.name ema --average.start 5",
            "adr",
            "and an ema of decay 0.995 from epoch 5 on would teach",
        ),
        (
            "--average.name ema --objective.options average_decay=0.999",
            "adr",
            "is taught by an ema of decay 0.999",
        ),
        ("--average.name ema --average.decay 1", "at", "--average.decay must be below 1"),
        ("--objective.options average_decay=1", "adr", "average_decay must be at least 0 and below 1"),
        ("--train.awp -0.1", "at", "--train.awp must be at least 0"),
        ("--attack.name adr", "rslad", "which rslad does not keep; take --attack.name rslad"),
    ],
)
def test_what_cannot_be_is_said_before_any_compute(line, name, said):
    with pytest.raises((ValueError, TypeError), match=said):
        plan_of(line, name=name)


# ------------------------------------------------------------------------------------------ cost and rates


@pytest.mark.parametrize(
    ("name", "line", "cost"),
    [
        ("rslad", "--attack.name rslad", "27 F = attack 20 + student 6 + teachers 1"),
        ("adaad", "--attack.name adaad", "44 F = attack 40 + student 3 + teachers 1"),
        ("mart", "--attack.name mart", "26 F = attack 20 + student 6 + teachers 0"),
        ("adr", "", "24 F = attack 20 + student 3 + teachers 1"),
        ("adr", "--attack.name adr", "24 F = attack 20 + student 3 + teachers 1"),
        ("at", "--attack.name rslad", "24 F = attack 20 + student 3 + teachers 1"),
        ("at", "--train.awp 0.005", "26 F = attack 20 + student 6 + teachers 0"),
    ],
)
def test_the_cost_counts_what_the_attack_and_the_perturbation_add(name, line, cost):
    assert plan_of(line, name=name).forward_passes(0)[1] == cost


def test_an_attack_that_reads_a_teacher_needs_one():
    assert "teacher_nat" in plan_of("--attack.name rslad", name="at").passes()
    assert "teacher_adv" in plan_of("--attack.name adaad", name="at").passes()
    assert plan_of("--attack.name adaad", name="st").passes() == {"student_nat"}


def test_cosine_rates():
    plan = plan_of("--train.rates cosine --train.lr 0.2")
    expected = [0.2 * 0.5 * (1 + math.cos(math.pi * epoch / 100)) for epoch in range(100)]
    assert [plan.rate(epoch) for epoch in range(100)] == pytest.approx(expected)
    assert plan.rate(0) == 0.2
    # the same as torch's own, stepped once an epoch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for epoch in range(100):
        assert plan.rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_cyclic_rates_rise_to_two_fifths_and_fall_to_the_end():
    plan = plan_of("--train.rates cyclic --train.lr 0.2")
    rates = [plan.rate(epoch) for epoch in range(100)]
    places = (np.arange(100) + 0.5) / 100
    assert rates == pytest.approx(np.interp(places, [0, 0.4, 1], [0, 0.2, 0]).tolist())
    assert min(rates) > 0
    assert rates.index(max(rates)) in (39, 40)


@pytest.mark.parametrize("rates", ["drops", "cosine", "cyclic"])
def test_a_warm_up_of_the_rate_is_a_line_up_to_its_course(rates):
    plain, warm = (plan_of(f"--train.rates {rates} --train.rate-warmup {n}") for n in (0, 5))
    for epoch in range(100):
        share = min(1.0, (epoch + 1) / 5)
        assert warm.rate(epoch) == pytest.approx(share * plain.rate(epoch))


def test_starts_scale_with_the_epochs():
    settings = Settings(recipe="test", train=TrainSettings(epochs=100, awp=0.01, awp_start=10, rate_warmup=5))
    short = Recipe(title="t", settings=settings).defaults(epochs=20)
    assert (short.train.awp_start, short.train.rate_warmup) == (2, 1)


# ------------------------------------------------------------------------------------------ the ART door


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("rslad", {"sample_weight": "entropy", "target": "swap"}),
        ("adaad", {"igdm": 2.0}),
        ("adaiad", {"trust": "three_cases"}),
        ("mtard", {}),
        ("mart", {"igdm": 1.0}),
        ("adr", {}),
    ],
)
def test_the_art_trainer_trains_by_them(tiny_network, name, given):
    student = classifier(tiny_network, 1)
    before = [p.detach().clone() for p in student.model.parameters()]
    trainer = IntrospectiveAdversarialDistiller(
        student,
        teacher=classifier(tiny_network, 2),
        natural_teacher=classifier(tiny_network, 3),
        objective=name,
        objective_settings=given,
        precision="fp32",
    )
    generator = np.random.default_rng(0)
    x, y = generator.random((16, 3, 6, 6), dtype=np.float32), generator.integers(0, 10, 16)
    trainer.fit(x, y, batch_size=8, nb_epochs=3)
    assert len(trainer.history) == 3
    assert all(math.isfinite(record["loss/total"]) for record in trainer.history)
    assert ("loss/igdm" in trainer.history[-1]) == ("igdm" in given)
    after = list(student.model.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
