"""A plan: what settings come to, before anything is loaded."""

from pathlib import Path

import pytest
import recipe_files

from iad_ext.plan import Plan, default_folder
from iad_ext.settings import Settings, from_command_line, override

PAPER = Settings()


def _plan(name="iad1_resnet18", line=""):
    return Plan.of(from_command_line(recipe_files.load(name), line.split()))


# ------------------------------------------------------------------------------------------- learning rates

RATES = {
    # schedule and epochs -> (epoch, rate) where it changes
    ("iad1_resnet18", "paper"): [(0, 0.1), (99, 0.1), (100, 0.01), (149, 0.01), (150, 0.001), (199, 0.001)],
    ("iad1_resnet18", "released"): [(0, 0.1), (99, 0.1), (100, 0.01), (149, 0.01), (150, 0.01), (199, 0.01)],
    ("at_wrn34", "paper"): [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (99, 0.001)],
    ("at_wrn34", "gairat"): [
        *[(0, 0.1), (59, 0.1), (60, 0.01), (89, 0.01), (90, 0.001)],
        *[(109, 0.001), (110, 0.0001), (119, 0.0001)],
    ],
    ("at_preactresnet18", "paper"): [(0, 0.1), (49, 0.1), (50, 0.01), (79, 0.01), (80, 0.001), (99, 0.001)],
    ("at_preactresnet18", "sec5_1"): [
        (0, 0.1),
        (99, 0.1),
        (100, 0.01),
        (149, 0.01),
        (150, 0.001),
        (199, 0.001),
    ],
}


@pytest.mark.parametrize(("recipe", "schedule"), RATES)
def test_the_rate_of_each_epoch(recipe, schedule):
    plan = _plan(recipe, f"--train.schedule {schedule}")
    points = RATES[recipe, schedule]
    assert plan.settings.train.epochs == points[-1][0] + 1
    for epoch, rate in points:
        assert plan.rate(epoch) == pytest.approx(rate, rel=1e-12), epoch


def test_a_short_run_s_rates_by_epoch():
    plan = _plan(line="--train.epochs 8 --train.lr 0.2 --train.drop-factor 0.5")
    assert [plan.rate(epoch) for epoch in range(8)] == [0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05]
    assert [_plan(line="--train.epochs 1").rate(0)] == [0.1]
    assert [_plan(line="--train.epochs 8 --train.drops").rate(epoch) for epoch in (0, 7)] == [0.1, 0.1]


def test_the_released_schedule_loses_every_drop_but_the_first():
    plan = _plan(line="--train.epochs 6 --train.drops 1 2 3 --train.schedule released")
    assert [plan.rate(epoch) for epoch in range(6)] == pytest.approx([0.1, *[0.01] * 5], rel=1e-12)


# ------------------------------------------------------------------------------------------- passes

# forward passes of one image (a backward is two): attack, student, teachers; in warm-up and after it
COSTS = {
    "st": [(0, 3, 0)],
    "at": [(20, 3, 0)],
    "trades": [(21, 6, 0)],  # one more to find the target of its attack
    "ard": [(20, 3, 1)],
    "akd2": [(20, 3, 2)],
    "iad1": [(20, 3, 1), (20, 6, 2)],
    "iad2": [(20, 3, 2), (20, 6, 2)],
}


@pytest.mark.parametrize("method", COSTS)
def test_the_cost_of_a_step_in_passes(method):
    plan = _plan(f"{method}_resnet18")
    warmup = plan.objective.warmup_epochs
    for epoch, (attack, student, teachers) in zip((0, warmup), COSTS[method], strict=False):
        total = attack + student + teachers
        said = f"{total} F = attack {attack} + student {student} + teachers {teachers}"
        assert plan.forward_passes(epoch) == (total, said)
    assert (warmup > 0) == (len(COSTS[method]) == 2)


@pytest.mark.parametrize(
    ("name", "line", "phases"),
    [
        # S(x) is run for the statistics alone in warm-up, and read after it
        ("iad1_resnet18", "--train.bn-order faithful", {"in warm-up": 25, "from epoch 60": 28}),
        ("at_resnet18", "--train.awp 0.01 --train.awp-start 3", {"from epoch 0": 23, "from epoch 3": 26}),
        (
            "iad1_resnet18",
            "--objective.warmup-epochs 0 --objective.gamma 0:0,7:0.5",
            {"from epoch 0": 24, "from epoch 7": 27},
        ),
    ],
)
def test_every_phase_of_a_run_is_told_with_its_cost(name, line, phases, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    told = [said.split("  ")[-1] for said in _plan(name, line).description().split("\n") if " F = " in said]
    costs = {said.partition(": ")[0].removeprefix("passes ").strip(): said for said in told}
    assert {when: int(said.partition(" F = ")[0].split()[-1]) for when, said in costs.items()} == phases


def test_more_attack_steps_cost_two_passes_each():
    assert _plan(line="--attack.steps 7").forward_passes(0)[0] == 14 + 3 + 1


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("ard_resnet18", "", ["for the figures teacher_adv in every second step, 0.5 F more"]),
        ("ard_resnet18", "--diagnostics full", ["for the figures teacher_adv in every step, 1 F more"]),
        ("ard_resnet18", "--diagnostics off", [""]),
        ("akd2_resnet18", "", ["for the figures teacher_nat in every second step, 0.5 F more"]),
        # its attack reads T(x) already
        ("rslad_resnet18", "", ["for the figures teacher_adv in every second step, 0.5 F more"]),
        ("iad1_resnet18", "", ["for the figures teacher_adv in every second step, 0.5 F more", ""]),
        ("at_resnet18", "", [""]),
        ("st_resnet18", "", [""]),
    ],
)
def test_the_passes_of_the_figures_are_told_too(name, line, said):
    plan = _plan(name, line)
    epochs = (0, plan.objective.warmup_epochs)
    assert [plan.observed(epoch) for epoch, _ in zip(epochs, said, strict=False)] == said
    described = " ".join(plan.description().split())
    assert [one in described for one in said] == [True] * len(said)
    assert ("for the figures" in described) == any(said)


def test_the_passes_of_a_run_are_those_of_any_of_its_epochs():
    assert _plan().passes() == {"student_adv", "student_nat", "teacher_nat", "teacher_adv"}
    only_warmup = _plan(line="--train.epochs 10 --objective.warmup-epochs 10")
    assert only_warmup.passes() == {"student_adv", "teacher_nat"}


# ------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("name", "line", "folder"),
    [
        ("at_resnet18", "", "runs/cifar10/at_resnet18/seed0"),
        ("iad1_resnet18", "", "runs/cifar10/iad1_resnet18-at/seed0"),
        ("iad1_resnet18", "--teacher trades --train.seed 3", "runs/cifar10/iad1_resnet18-trades/seed3"),
        ("iad2_wrn34", "--data.name cifar100", "runs/cifar100/iad2_wrn34-at/seed0"),
        ("at_resnet18", "--data.name zh-plus/birds", "runs/zh-plus--birds/at_resnet18/seed0"),
        ("ard_resnet18", "--teacher some/where/model_test.pt", "runs/cifar10/ard_resnet18-model_test/seed0"),
        ("st_preactresnet18", "", "runs/tiny-imagenet/st_preactresnet18/seed0"),
        ("at_resnet18", "--out here", "here"),
    ],
)
def test_the_run_folder(name, line, folder):
    assert _plan(name, line).folder == Path(folder)


def test_a_folder_to_continue_is_the_run_s_folder(tmp_path):
    plan = _plan(line=f"--resume {tmp_path}")
    assert plan.folder == tmp_path
    assert plan.settings.out == tmp_path
    assert _plan(line="--resume never").folder == default_folder(_plan().settings)


def test_a_folder_to_continue_must_be_there():
    with pytest.raises(
        ValueError, match="--resume takes auto, never or a run folder; there is no folder nowhere"
    ):
        _plan(line="--resume nowhere")


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--eval.attacks natural,pdg20", "unknown attack in --eval.attacks 'pdg20'; did you mean 'pgd20'"),
        ("--objective.weights teacher=0,self=0", "nothing is left"),
        ("--objective.weights teacher=0", "iad1|ard"),  # nothing to train on in warm-up
        ("--objective.teacher-weight 1", "unknown argument of iad1 'teacher_weight'"),
        # of three epochs the one between first and last
        (
            "--train.epochs 3 --objective.gamma 0:1,1:0,2:1 --objective.weights teacher=0 "
            "--objective.warmup-epochs 0",
            "iad1: no term takes part at epoch 1; give one of label, teacher, self a weight above 0",
        ),
        ("--objective.beta -1", "beta"),
        ("--train.lr 0", "--train.lr must be above 0"),
    ],
)
def test_what_cannot_run_is_refused(line, said):
    with pytest.raises((ValueError, TypeError), match=said):
        _plan(line=line)


def test_a_warm_up_that_covers_the_run_is_said(caplog):
    _plan(line="--train.epochs 10 --objective.warmup-epochs 10")
    assert caplog.messages == ["warm-up (10 epochs) covers all 10 epochs: this run is plain ard"]
    caplog.clear()
    _plan(line="--train.epochs 10 --objective.warmup-epochs 9")
    assert caplog.messages == []


def test_attacks_are_read_with_or_without_blanks_and_may_be_none():
    assert _plan(line="--eval.attacks natural,aa").attacks == ("natural", "aa")
    settings = override(PAPER, {"eval.attacks": " natural , aa,"})
    assert Plan.of(settings).attacks == ("natural", "aa")
    assert Plan.of(override(PAPER, {"eval.attacks": ""})).attacks == ()


# ------------------------------------------------------------------------------------------- dry run


@pytest.mark.parametrize(
    ("name", "line", "steps", "parameters"),
    [
        (
            "iad1_resnet18",
            "",
            "383 an epoch (49000 training images, 1000 held out; batch 128), 76600 in all",
            "11,173,962 (cifar_resnet18, 10 classes)",
        ),
        (
            "iad2_resnet18",
            "--data.name cifar100 --data.selection test --train.epochs 10",
            "391 an epoch (50000 training images, 0 held out; batch 128), 3910 in all",
            "11,220,132 (cifar_resnet18, 100 classes)",
        ),
        (
            "at_preactresnet18",
            "--train.batch-size 1000",
            "99 an epoch (99000 training images, 1000 held out; batch 1000), 9900 in all",
            "11,269,640 (cifar_preact_resnet18, 200 classes)",
        ),
        (
            "st_resnet18",
            "--data.name digits --student.name cifar_resnet8 --train.epochs 3",
            "11 an epoch (1295 training images, counted; batch 128), 33 in all",
            "75,290 (cifar_resnet8, 10 classes)",
        ),
        (
            "st_resnet18",
            "--student.name cifar_resnet8 --data.limit-train 130",
            "2 an epoch (130 training images, as limited; batch 128), 400 in all",
            "75,290 (cifar_resnet8, 10 classes)",
        ),
    ],
)
def test_a_dry_run_counts_steps_and_parameters(name, line, steps, parameters):
    said = " ".join(_plan(name, line).description().split())
    assert f" steps {steps} " in said
    assert f" parameters {parameters} " in said


def test_a_dry_run_says_settings_formula_passes_and_folder(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plan = _plan()
    text = plan.description()
    assert text.startswith("recipe: iad1_resnet18\ndata:\n  name: cifar10\n")
    assert "  warmup_epochs: 60\n" in text
    lines = text.splitlines()
    said = " ".join(text.split())
    assert f"objective {plan.objective!r} KL(T_at(x) → S(x̃)) + (1 − α) · KL(S(x) → S(x̃)) steps " in said
    assert (
        "passes in warm-up: student_adv, teacher_nat; 24 F = attack 20 + student 3 + teachers 1; "
        "for the figures teacher_adv in every second step, 0.5 F more "
        "passes from epoch 60: student_adv, student_nat, teacher_adv, teacher_nat; "
        "28 F = attack 20 + student 6 + teachers 2 parameters "
    ) in said
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "folder       runs/cifar10/iad1_resnet18-at/seed0"


def test_a_dry_run_of_one_phase_has_one_line_of_passes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = _plan("at_resnet18").description().splitlines()
    assert [line for line in lines if line.startswith("passes")] == [
        "passes       from epoch 0: student_adv; 23 F = attack 20 + student 3 + teachers 0"
    ]
