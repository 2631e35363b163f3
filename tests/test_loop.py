"""The engine: an epoch is what a hand-written loop does, however it is divided, interrupted or watched."""

import copy
import json
import random
import re
import subprocess
import sys
import types
from pathlib import Path

import loop_cases
import numpy as np
import pytest
import torch
from loop_cases import BY_HAND, CLASSES, IAD1, RATE, SHARED, Task, engine, figures_of, network, train_by_hand
from safetensors.torch import load_file
from torch import nn

from iad_ext import attacks, checkpoint, loop, objectives
from iad_ext.averaging import WeightAverage
from iad_ext.compiling import Compilation
from iad_ext.diagnostics import FIGURES, HISTOGRAM
from iad_ext.loop import TrainingStopped, accelerator_for
from iad_ext.objectives import ROWS, build
from iad_ext.precision import Precision
from iad_ext.randomness import stream
from iad_ext.trainer.keeping import Keeper

EVERY = pytest.mark.parametrize("name", sorted(ROWS))


def _close(one, other, tolerance):
    """Largest difference over largest value, of two sets of weights."""
    assert one.keys() == other.keys()
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    return apart <= tolerance * max(float(value.abs().max()) for value in other.values())


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _known(figures):
    return {name: value for name, value in figures.items() if value is not None}


def _objective(name):
    warmup = {"warmup_epochs": 1} if name.startswith("iad") else {}
    return build(name, **warmup)


# ------------------------------------------------------------------------------------------- one epoch


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("n", [24, 27])  # without and with a smaller last batch
def test_epochs_equal_a_hand_written_loop(name, n):
    objective, loss_of = BY_HAND[name]
    rates = [RATE, RATE, 0.1 * RATE]
    one = engine(objective, Task(n))
    records = [one.epoch(epoch, rate=rate) for epoch, rate in enumerate(rates)]
    weights, losses = train_by_hand(loss_of, Task(n), len(rates), rates)
    assert _close(one.student.state_dict(), weights, 1e-12)
    # the mean over images, not over batches
    assert [record["loss/total"] for record in records] == pytest.approx(losses, rel=1e-12)
    assert not _close(one.student.state_dict(), network(1).state_dict(), 1e-3)


@EVERY
@pytest.mark.parametrize("n", [24, 28])
def test_parts_of_a_batch_give_what_the_whole_batch_gives(name, n):
    whole = engine(_objective(name), Task(n))
    parts = engine(_objective(name), Task(n), accumulation=4)
    for epoch in range(2):
        one, other = whole.epoch(epoch, rate=RATE), parts.epoch(epoch, rate=RATE)
        assert figures_of([other]).keys() == figures_of([one]).keys()
        assert _known(figures_of([other])) == pytest.approx(_known(figures_of([one])), rel=1e-10)
    assert _close(parts.student.state_dict(), whole.student.state_dict(), 1e-10)


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_any_number_of_parts_even_of_unequal_size(accumulation):
    whole, parts = engine(IAD1, Task(24)), engine(IAD1, Task(24), accumulation=accumulation)
    for one in (whole, parts):
        one.epoch(1, rate=RATE)
    assert _close(parts.student.state_dict(), whole.student.state_dict(), 1e-10)


def test_a_tail_with_less_than_an_image_a_part_is_left_out():
    class WithoutTail(Task):
        def __len__(self):
            return super().__len__() - 1

    with_tail = engine(IAD1, Task(27), accumulation=4)
    without = engine(IAD1, WithoutTail(27), accumulation=4)
    one, other = with_tail.epoch(0, rate=RATE), without.epoch(0, rate=RATE)
    assert _equal(with_tail.student.state_dict(), without.student.state_dict())
    assert figures_of([one]) == figures_of([other])


def test_the_rate_is_the_epoch_s_or_the_optimizer_s_own():
    given, own = engine(objectives.at(), Task(16)), engine(objectives.at(), Task(16))
    for group in own.optimizer.param_groups:
        group["lr"] = RATE
    given.epoch(0, rate=RATE)
    own.epoch(0)
    assert _equal(given.student.state_dict(), own.student.state_dict())


def test_the_optimizer_that_was_given_is_the_one_that_steps():
    """Whoever made a scheduler for it, or saves it, holds it."""
    one = engine(objectives.at(), Task(16))
    groups = one.optimizer.param_groups
    one.epoch(0, rate=RATE)
    assert one.optimizer.param_groups is groups
    assert all("momentum_buffer" in state for state in one.optimizer.state.values())
    assert len(one.optimizer.state) == len(list(one.student.parameters()))


@EVERY
def test_teachers_are_left_as_they_were(name):
    one = engine(_objective(name), Task(16), norm=True)
    teachers = [teacher for teacher in (one.teacher, one.natural_teacher) if teacher is not None]
    before = [copy.deepcopy(teacher.state_dict()) for teacher in teachers]
    for epoch in range(2):
        one.epoch(epoch, rate=RATE)
    for teacher, state in zip(teachers, before, strict=True):
        assert not any(module.training for module in teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert _equal(teacher.state_dict(), state)
    assert all(p.grad is not None for p in one.student.parameters())


def test_a_teacher_that_comes_training_is_put_to_rest():
    teacher = network(2, norm=True).train()
    one = engine(IAD1, Task(16), norm=True, teacher=teacher)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    one.epoch(1, rate=RATE)
    assert not any(module.training for module in teacher.modules())


def test_the_student_trains_in_train_mode_whatever_it_was_in():
    one, other = (engine(objectives.at(), Task(16), norm=True) for _ in range(2))
    one.student.eval()
    one.epoch(0, rate=RATE)
    other.epoch(0, rate=RATE)
    assert one.student.training
    assert _equal(one.student.state_dict(), other.student.state_dict())


# ------------------------------------------------------------------------------------------- figures


CASES = ("reliable", "unreliable", "wrong", "recovered")
READ = {
    "train/acc_adv": {"student_adv"},
    "train/acc_nat": {"student_nat"},
    "teacher/acc_nat": {"teacher_nat"},
    "teacher/acc_on_student_adv": {"teacher_adv"},
    "natural_teacher/acc_on_student_adv": {"natural_teacher_adv"},
    "teacher/entropy_on_student_adv": {"teacher_adv"},
    "combined/acc_on_student_adv": {"teacher_adv", "student_nat"},
    **{f"cases/{name}": {"teacher_nat", "teacher_adv"} for name in CASES},
}


@EVERY
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_figure_is_null_exactly_where_its_passes_did_not_run(name, epoch):
    objective = _objective(name)
    one = engine(objective, Task(16), diagnostics="off")
    record = one.epoch(epoch, rate=RATE)
    for figure, passes in READ.items():
        assert (record[figure] is None) == (not passes <= objective.needs(epoch)), figure
    has_trust = objective.trust_of is not None
    assert (record["trust/mean"] is None) == (not has_trust)
    if has_trust and objective.warming_up(epoch):
        assert record["trust/mean"] == 1.0
    assert set(FIGURES) == {*READ, "trust/mean"}
    assert set(FIGURES) < set(record)
    active = {term.name for term in objective.terms if term.active(epoch)}
    if not objective.warming_up(epoch):
        assert {key for key in record if key.startswith("loss/")} == {
            "loss/total",
            *(f"loss/{t}" for t in active),
        }
    terms = sum(v for key, v in record.items() if key.startswith("loss/") and key != "loss/total")
    assert record["loss/total"] == pytest.approx(terms, rel=1e-12)
    own = record.get(f"loss/{objective.introspection}")
    share = None if own is None else pytest.approx(100 * own / record["loss/total"], rel=1e-12)
    assert record["introspection/share"] == share


TEACHES = {"teacher/acc_nat", "teacher/acc_on_student_adv", "teacher/entropy_on_student_adv"}
TAUGHT = [name for name in sorted(ROWS) if _objective(name).needs(9) & {"teacher_nat", "teacher_adv"}]


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_diagnostics_leave_training_as_it_is_to_the_last_bit(name, accumulation):
    """Weights, momentum, BatchNorm, random state, and every figure of a pass that runs anyway."""
    ends = {}
    for diagnostics in ("full", "half", "off"):
        one = engine(
            _objective(name),
            Task(27),
            student=_Dropping(),
            teacher=_Drawing(),
            accumulation=accumulation,
            diagnostics=diagnostics,
        )
        records = [one.epoch(epoch, rate=RATE) for epoch in range(2)]
        ends[diagnostics] = one.state(within_epoch=False)[0], _known(figures_of(records))
    weights, known = ends.pop("off")
    for others, figures in ends.values():
        assert _equal(weights["student"], others["student"])
        assert _equal(weights["optimizer"], others["optimizer"])
        assert known.items() <= figures.items()


class _Drawing(nn.Module):
    """A teacher that draws numbers, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.network = network(2)

    def forward(self, x):
        return self.network(x) + 0 * torch.rand((), dtype=x.dtype)


class _Counted(nn.Module):
    """A teacher that counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.network, self.images = network(2), 0

    def forward(self, x):
        self.images += len(x)
        return self.network(x)


@pytest.mark.parametrize("name", TAUGHT)
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("diagnostics", "batches"), [("full", [8, 8, 8, 3]), ("half", [8, 8]), ("off", [])])
def test_only_the_missing_pass_of_only_those_batches_is_run(name, epoch, diagnostics, batches):
    objective, teacher = _objective(name), _Counted()
    one = engine(objective, Task(27), teacher=teacher, diagnostics=diagnostics)
    record = one.epoch(epoch, rate=RATE)
    reads = {"teacher_nat", "teacher_adv"} & objective.needs(epoch)
    through = (
        27 * loop_cases.STEPS if objective.attack == "adaad" else 0
    )  # the attack goes through the teacher
    assert teacher.images == through + 27 * len(reads) + sum(batches) * (2 - len(reads))
    for figure in (*TEACHES, "cases/wrong", HISTOGRAM):
        its_passes = READ.get(figure, {"teacher_adv"})
        assert (record[figure] is None) == (not its_passes <= reads and not batches), figure
    if batches:
        counted = 27 if "teacher_adv" in reads else sum(batches)
        assert sum(record[HISTOGRAM]) == counted
        assert sum(record[f"cases/{case}"] for case in CASES) == pytest.approx(100)


def test_what_every_second_batch_shows_is_counted_on_those_alone():
    """With a rate of 0 the networks stand still; batches 0 and 2 of 4 are looked at."""
    task, teacher = Task(27), network(2)
    one = engine(build("ard"), task, student=network(1), teacher=teacher)
    for group in one.optimizer.param_groups:
        group["weight_decay"] = 0.0
    record = one.epoch(0, rate=0.0)
    adversarial = _recorded_attack(task, steps=(0, 2))
    right = [int(teacher(x[None])[0].argmax()) == y for x, y in adversarial]
    assert record["teacher/acc_on_student_adv"] == pytest.approx(100 * sum(right) / 16, rel=1e-12)
    entropies = [-sum(p * p.log() for p in teacher(x[None])[0].softmax(0)) for x, _ in adversarial]
    assert record["teacher/entropy_on_student_adv"] == pytest.approx(float(sum(entropies)) / 16, rel=1e-10)


def _recorded_attack(task, steps):
    """(x̃, y) of these steps of epoch 0, from the untrained student."""
    student = network(1)
    attack = attacks.build("pgd", student, eps=loop_cases.EPS, alpha=loop_cases.ALPHA, steps=loop_cases.STEPS)
    found = []
    for step in steps:
        part = task.batch(0, step)
        noise = torch.empty(part.images.shape, dtype=torch.float64)
        noise.uniform_(-loop_cases.EPS, loop_cases.EPS, generator=stream(loop_cases.SEED, "start", 0, step))
        found += zip(attack(part.images, part.labels, noise=noise), part.labels.tolist(), strict=True)
    return found


def test_percentages_are_those_of_counting():
    """With a rate of 0 the networks stand still, and anyone can count."""
    task = Task(27)
    one = engine(IAD1, task)
    student, teacher = copy.deepcopy(one.student), one.teacher
    for group in one.optimizer.param_groups:
        group["weight_decay"] = 0.0
    record = one.epoch(1, rate=0.0)
    attack = attacks.build("pgd", student, eps=loop_cases.EPS, alpha=loop_cases.ALPHA, steps=loop_cases.STEPS)
    counts = dict.fromkeys(("s_adv", "s_nat", "reliable", "unreliable", "wrong", "recovered"), 0)
    trust = 0.0
    for step in range(len(task)):
        part = task.batch(1, step)
        noise = torch.empty(part.images.shape, dtype=torch.float64)
        noise.uniform_(-loop_cases.EPS, loop_cases.EPS, generator=stream(loop_cases.SEED, "start", 1, step))
        adv = attack(part.images, part.labels, noise=noise)
        for x, x_adv, y in zip(part.images, adv, part.labels.tolist(), strict=True):
            nat, under = (int(teacher(image[None])[0].argmax()) == y for image in (x, x_adv))
            counts["s_nat"] += int(student(x[None])[0].argmax()) == y
            counts["s_adv"] += int(student(x_adv[None])[0].argmax()) == y
            case = {(True, True): "reliable", (True, False): "unreliable", (False, True): "recovered"}
            counts[case.get((nat, under), "wrong")] += 1
            trust += float(teacher(x_adv[None])[0].softmax(dim=0)[y]) ** 0.1
    assert 0 < counts["s_adv"] < 27
    percent = {key: 100 * count / 27 for key, count in counts.items()}
    assert record["train/acc_adv"] == pytest.approx(percent["s_adv"], rel=1e-12)
    assert record["train/acc_nat"] == pytest.approx(percent["s_nat"], rel=1e-12)
    assert record["teacher/acc_nat"] == pytest.approx(percent["reliable"] + percent["unreliable"], rel=1e-12)
    on_adv = percent["reliable"] + percent["recovered"]
    assert record["teacher/acc_on_student_adv"] == pytest.approx(on_adv, rel=1e-12)
    for case in ("reliable", "unreliable", "wrong", "recovered"):
        assert record[f"cases/{case}"] == pytest.approx(percent[case], rel=1e-12)
    assert record["trust/mean"] == pytest.approx(trust / 27, rel=1e-10)


def test_time_and_memory_are_there():
    record = engine(objectives.at(), Task(16)).epoch(0, rate=RATE)
    assert record["time/epoch_s"] > 0
    assert record["time/images_per_s"] > 0
    assert record["memory/peak_mib"] > 50  # a process with torch in it


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_the_largest_resident_size_is_in_mib_whatever_the_system_counts_in(monkeypatch, system, unit):
    usage = types.SimpleNamespace(ru_maxrss=300 * 2**20 // unit)
    monkeypatch.setattr(loop.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(loop.sys, "platform", system)
    assert loop._peak_memory(torch.device("cpu")) == 300.0


# ------------------------------------------------------------------------------------------- random state


class _Dropping(nn.Module):
    """A student whose layers draw from the global generator."""

    def __init__(self):
        super().__init__()
        self.network, self.dropout = network(1, norm=True), nn.Dropout(0.5)

    def forward(self, x):
        return self.network(self.dropout(x))


def test_global_random_state_is_kept_and_has_no_say(unchecked):  # the type checker itself draws numbers
    trained = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        student = _Dropping()
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        engine(IAD1, Task(16), student=student).epoch(1, rate=RATE)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert random.getstate() == before[2]
        trained.append(student.state_dict())
    assert _equal(*trained)


def test_it_is_kept_when_the_epoch_is_broken_off():
    def stop(_):
        raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        engine(objectives.at(), Task(16), student=_Dropping()).epoch(0, rate=RATE, after_step=stop)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changed", [{"seed": 4}, {"epoch": 2}])
def test_random_starts_and_dropout_change_with_seed_and_epoch(changed):
    class SameOrder(Task):
        def batch(self, epoch, step, *, part=0, parts=1):
            return super().batch(0, step, part=part, parts=parts)

    trained = []
    for settings in ({}, changed):
        settings = {"seed": 3, "epoch": 1} | settings
        one = engine(IAD1, SameOrder(16), seed=settings["seed"])
        one.epoch(settings["epoch"], rate=RATE)
        trained.append(one.student.state_dict())
    assert not _close(*trained, 1e-9)


def test_layers_draw_anew_at_every_step_and_the_same_when_a_step_is_repeated():
    drawn = []
    for _ in range(2):
        student = loop_cases.Drawing()
        one = engine(objectives.st(), Task(32), student=student)
        for epoch in range(2):
            one.epoch(epoch, rate=RATE)
        drawn.append([float(number) for number in student.drawn])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == len(drawn[0]) == 8


# ------------------------------------------------------------------------------------------- going on


GOING_ON = {
    "iad1": (IAD1, {}),
    "mtard": (objectives.mtard(balance_rate=0.3), {}),
    "adr": (objectives.adr(), {}),
    "ema": (objectives.at(), {"kind": "ema", "decay": 0.7}),
    "swa": (objectives.at(), {"kind": "swa", "start": 1}),
    "awp": (objectives.iad_mtard(warmup_epochs=1), {"awp": 0.02, "awp_start": 1}),
}


def going_on(name, task, student):
    objective, changed = GOING_ON[name]
    if "kind" in changed:
        changed = {"average": WeightAverage(student, **changed)}
    return engine(objective, task, student=student, **changed)


@pytest.mark.parametrize("name", GOING_ON)
@pytest.mark.parametrize("stop_at", [(1, 0), (1, 1), (1, 3), (2, 2), (1, 4)])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(stop_at, name):
    task, epochs = Task(27), 3
    whole = going_on(name, task, _Dropping())
    states = {}
    records = []
    for epoch in range(epochs):

        def keep(done, epoch=epoch):
            states[epoch, done] = copy.deepcopy(whole.state(within_epoch=True))

        if epoch:
            states[epoch, 0] = copy.deepcopy(whole.state(within_epoch=False))
        records.append(whole.epoch(epoch, rate=RATE * 0.5**epoch, after_step=keep))
        states[epoch, len(task)] = copy.deepcopy(whole.state(within_epoch=True))  # trained, not yet validated
    saved = states[stop_at]
    student = _Dropping()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(9.0)
    again = going_on(name, task, student)
    tensors, numbers = saved
    again.restore(tensors, json.loads(json.dumps(numbers)))
    for epoch in range(stop_at[0], epochs):
        first = stop_at[1] if epoch == stop_at[0] else 0
        record = again.epoch(epoch, first_step=first, rate=RATE * 0.5**epoch)
        assert figures_of([record]) == figures_of([records[epoch]])
    assert _equal(student.state_dict(), whole.student.state_dict())
    ended, expected = (one.state(within_epoch=False)[0] for one in (again, whole))
    assert ended.keys() == expected.keys()
    for group, tensors in ended.items():
        assert _equal(tensors, expected[group]), group


def test_an_epoch_that_was_stopped_at_its_end_only_reports():
    """Nothing is trained, and BatchNorm's statistics are not averaged a second time."""
    whole = engine(objectives.at(), Task(27), norm=True)
    record = whole.epoch(0, rate=RATE)
    again = engine(objectives.at(), Task(27), norm=True)
    again.restore(*whole.state(within_epoch=True))
    assert figures_of([again.epoch(0, first_step=4, rate=RATE)]) == figures_of([record])
    assert _equal(again.student.state_dict(), whole.student.state_dict())


@pytest.mark.parametrize("step", [2, 3])
def test_an_epoch_that_goes_on_at_a_tail_that_is_left_out_ends_all_the_same(step):
    """Nothing is trained any more, and the epoch's end is still to come: SWA takes its weights there."""

    def averaged():
        student = network(1)
        average = WeightAverage(student, kind="swa")
        return engine(objectives.at(), Task(27), student=student, accumulation=4, average=average)

    whole, states = averaged(), {}

    def keep(done):
        states[done] = copy.deepcopy(whole.state(within_epoch=True))

    whole.epoch(0, rate=RATE, after_step=keep)
    again = averaged()
    again.restore(*states[step])
    again.epoch(0, first_step=step, rate=RATE)
    assert _equal(again.average.network.state_dict(), whole.average.network.state_dict())
    assert _equal(again.average.network.state_dict(), again.student.state_dict())  # of one epoch


@pytest.mark.parametrize("step", [1, 4])
def test_an_epoch_s_time_is_what_it_took_before_a_stop_and_after(step):
    whole, states = engine(objectives.at(), Task(27)), {}
    whole.epoch(0, rate=RATE, after_step=lambda done: states.update({done: whole.state(within_epoch=True)}))
    tensors, numbers = states[step]
    assert numbers["seconds"] > 0
    assert numbers["images"] == min(8 * step, 27)
    again = engine(objectives.at(), Task(27))
    again.restore(tensors, numbers | {"seconds": 1000.0})
    record = again.epoch(0, first_step=step, rate=RATE)
    assert 1000 <= record["time/epoch_s"] < 1600
    assert record["time/images_per_s"] == pytest.approx(27 / record["time/epoch_s"], abs=0.01)
    assert again.epoch(1, rate=RATE)["time/epoch_s"] < 600
    assert whole.state(within_epoch=False)[1]["seconds"] == 0


def _as_if_saved_by_two(one):
    """The state of one process, made into that of two with statistics and figures of their own."""
    tensors, numbers = copy.deepcopy(one.state(within_epoch=True))
    own = {name: b for name, b in tensors["student"].items() if name.startswith("1.running")}
    tensors["buffers"] = {f"{k}/{name}": b + k for k in range(2) for name, b in own.items()}
    tensors["sums"] |= {key.replace("0/", "1/", 1): 2 * held for key, held in tensors["sums"].items()}
    return tensors, numbers | {"processes": 2}


def test_another_number_of_processes_takes_the_mean_of_the_statistics_and_all_the_figures():
    one = engine(objectives.at(), Task(27), norm=True)
    one.epoch(0, rate=RATE)
    again = engine(objectives.at(), Task(27), norm=True)
    again.restore(*_as_if_saved_by_two(one))
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(
            again.student.state_dict()[name], one.student.state_dict()[name] + 0.5, rtol=0, atol=1e-15
        )
    assert again.sums.sums.keys() == one.sums.sums.keys()
    for name, held in one.sums.sums.items():
        assert torch.equal(again.sums.sums[name], 3 * held)


class _Rank:
    """An accelerator as one of several processes has it, as far as a state is put back."""

    def __init__(self, accelerator, rank, processes):
        self.accelerator, self.process_index, self.num_processes = accelerator, rank, processes

    def __getattr__(self, name):
        return getattr(self.accelerator, name)


@pytest.mark.parametrize(("saved", "now"), [(1, 2), (1, 3), (2, 3), (2, 1), (3, 2), (2, 2)])
def test_figures_go_on_once_and_by_the_same_names_in_every_process(saved, now):
    """Processes exchange figures by place, so one that takes over none has theirs at 0."""
    one = engine(objectives.at(), Task(27))
    one.epoch(0, rate=RATE)
    tensors, numbers = copy.deepcopy(one.state(within_epoch=True))
    sums = {key.partition("/")[2]: value for key, value in tensors["sums"].items()}
    tensors["sums"] = {f"{k}/{name}": (k + 1) * value for k in range(saved) for name, value in sums.items()}
    whole = sum(range(saved + 1))
    held = []
    for rank in range(now):
        again = engine(objectives.at(), Task(27))
        again.accelerator = _Rank(again.accelerator, rank, now)
        again.restore(tensors, numbers | {"processes": saved})
        held.append(again.sums.sums)
        assert held[-1].keys() == one.sums.sums.keys()
    for name, value in one.sums.sums.items():
        torch.testing.assert_close(sum(sums[name] for sums in held), whole * value, rtol=1e-15, atol=0)


def test_the_state_of_another_network_is_refused():
    one, other = (engine(objectives.at(), Task(27), norm=norm) for norm in (False, True))
    with pytest.raises(ValueError, match="the checkpoint is of another network"):
        other.restore(*one.state(within_epoch=False))


def test_after_each_step_its_number_is_told():
    told = []
    engine(objectives.at(), Task(27)).epoch(0, rate=RATE, after_step=told.append)
    assert told == [1, 2, 3, 4]
    told.clear()
    engine(objectives.at(), Task(27)).epoch(0, first_step=2, rate=RATE, after_step=told.append)
    assert told == [3, 4]


# ------------------------------------------------------------------------------------------- what is no number


class _BadAt(Task):
    """One pixel of one step is not a number."""

    def __init__(self, epoch, step, value):
        super().__init__(40)
        self.bad, self.value = (epoch, step), value

    def batch(self, epoch, step, *, part=0, parts=1):
        found = super().batch(epoch, step, part=part, parts=parts)
        if (epoch, step) == self.bad and part == 0:
            found.images = found.images.clone()
            found.images[0, 0, 0, 0] = self.value
        return found


@pytest.mark.parametrize("value", [float("nan")])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 3), (1, 2)])
def test_a_pixel_that_is_no_number_stops_the_run_at_its_step(epoch, step, value, accumulation):
    one = engine(objectives.at(), _BadAt(epoch, step, value), accumulation=accumulation)
    done = []

    def train():
        for current in range(2):
            one.epoch(current, rate=RATE, after_step=lambda n, e=current: done.append((e, n - 1)))

    said = rf"^epoch {epoch}, step {step}: the loss term 'label' is not finite"
    with pytest.raises(TrainingStopped, match=said):
        train()
    # nobody is told that the bad step is done, so nobody saves what it made
    assert done == [(e, s) for e in range(2) for s in range(5) if (e, s) < (epoch, step)]


def test_no_checkpoint_is_made_of_a_bad_loss_that_nobody_has_looked_at_yet(tmp_path):
    """On a GPU the device is looked at every 50 steps; here, never by itself."""
    one = engine(objectives.at(), _BadAt(0, 2, float("nan")))
    one.look_every = 50
    keeper = Keeper(tmp_path, every=1, fit={}, main=True)
    keeper.precision = Precision(kind="fp32", channels_last=False, reason="test")
    keeper.compilation = Compilation("off", "test")
    with pytest.raises(TrainingStopped, match=r"^epoch 0, step 2: the loss term 'label' is not finite"):
        one.epoch(0, rate=RATE, after_step=keeper.after_step(one, 0))
    saved = checkpoint.newest(tmp_path)
    assert (saved.epoch, saved.step) == (0, 2)
    assert all(value.isfinite().all() for value in saved.tensors["student"].values())


class _Blind(nn.Module):
    """A teacher that has no answer on images it has been shown twice or more."""

    def __init__(self, after):
        super().__init__()
        self.after, self.calls = after, 0

    def forward(self, x):
        self.calls += 1
        return torch.zeros(len(x), CLASSES, dtype=x.dtype) * (float("nan") if self.calls > self.after else 1)


@pytest.mark.parametrize(("role", "term"), [("teacher", "teacher"), ("natural_teacher", "natural_teacher")])
def test_the_term_that_is_no_number_is_named(role, term):
    one = engine(objectives.iad2(), Task(40), diagnostics="off", **{role: _Blind(after=2)})
    with pytest.raises(TrainingStopped, match=rf"step 2: the loss term '{term}' is not finite"):
        one.epoch(0, rate=RATE)


def test_a_rate_that_is_too_high_stops_the_run():
    one = engine(objectives.at(), Task(40))
    with pytest.raises(TrainingStopped, match="lower the learning rate"):
        one.epoch(0, rate=1e300)


def test_finite_losses_stop_nothing_and_an_earlier_stop_is_forgotten():
    one = engine(objectives.at(), _BadAt(0, 1, float("nan")))
    before = copy.deepcopy(one.student.state_dict())
    with pytest.raises(TrainingStopped):
        one.epoch(0, rate=RATE)
    one.student.load_state_dict(before)
    one.optimizer.state.clear()
    assert np.isfinite(one.epoch(1, rate=RATE)["loss/total"])


class _PassedOver(Task):
    """The same task without one step: nobody computes a tail that is too small."""

    def __init__(self, n, at):
        super().__init__(n)
        self.at = at

    def batch(self, epoch, step, *, part=0, parts=1):
        found = super().batch(epoch, step, part=part, parts=parts)
        found.total = 0 if (epoch, step) == self.at else found.total
        return found


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("at", [(0, 0), (0, 3), (1, 2)])
def test_a_skipped_step_never_was(at, accumulation):
    """Weights, momentum, BatchNorm and figures are those of a run without that step; it is counted."""
    ran = []
    for task in (_BadAt(*at, float("nan")), _PassedOver(40, at)):
        student = network(1, norm=True)
        one = engine(objectives.at(), task, student=student, accumulation=accumulation, non_finite="skip")
        records = [one.epoch(epoch, rate=RATE) for epoch in range(2)]
        ran.append((one.state(within_epoch=False)[0], records))
    (skipping, records), (without, expected) = ran
    for group in ("student", "optimizer"):
        assert _equal(skipping[group], without[group])
    counts = [record.pop("train/skipped_steps") for record in records]
    assert counts == [int(epoch == at[0]) for epoch in range(2)]
    assert [record.pop("train/skipped_steps") for record in expected] == [0, 0]
    assert figures_of(records) == figures_of(expected)


def test_without_a_bad_step_skipping_changes_nothing():
    stopping, skipping = (
        engine(IAD1, Task(27), non_finite=non_finite, norm=True) for non_finite in ("stop", "skip")
    )
    assert figures_of([stopping.epoch(0, rate=RATE)]) == figures_of([skipping.epoch(0, rate=RATE)])
    assert _equal(stopping.student.state_dict(), skipping.student.state_dict())


class _ExplodingBackward(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("inf")


class _Exploding(nn.Module):
    """Finite losses; gradients of the weights that are not, from the third update on."""

    def __init__(self):
        super().__init__()
        self.network, self.updates = network(1), 0

    def forward(self, x):
        if x.requires_grad or not self.training:
            return self.network(x)
        self.updates += 1
        logits = self.network(x)
        return _ExplodingBackward.apply(logits) if self.updates == 3 else logits


def test_a_gradient_that_is_not_finite_is_skipped_too(caplog):
    student = _Exploding()
    record = engine(objectives.at(), Task(40), student=student, non_finite="skip").epoch(0, rate=RATE)
    assert record["train/skipped_steps"] == 1
    assert "epoch 0, step 2: gradient is not finite; skipped, 1 in this epoch" in caplog.text
    assert all(parameter.isfinite().all() for parameter in student.parameters())


def test_weights_that_are_not_finite_are_not_made_a_state_of():
    """The loss of the step that breaks them is finite."""
    one = engine(objectives.at(), Task(40), student=_Exploding())
    done = []

    def save(step):
        one.state(within_epoch=True)
        done.append(step)

    with pytest.raises(TrainingStopped, match=r"^epoch 0: weights are not finite \(network\."):
        one.epoch(0, rate=RATE, after_step=save)
    assert done == [1, 2]


class _AllBad(Task):
    def batch(self, epoch, step, *, part=0, parts=1):
        found = super().batch(epoch, step, part=part, parts=parts)
        found.images = found.images * (float("nan") if step != 3 else 1)
        return found


class _BadFrom(Task):
    """Every pixel from a step on is not a number."""

    def __init__(self, first):
        super().__init__(128)
        self.first = first

    def batch(self, epoch, step, *, part=0, parts=1):
        found = super().batch(epoch, step, part=part, parts=parts)
        found.images = found.images * (float("nan") if step >= self.first else 1)
        return found


def test_too_many_in_a_row_stop_the_run():
    one = engine(objectives.at(), _AllBad(400), non_finite="skip")
    with pytest.raises(
        TrainingStopped, match=r"epoch 0, step 23: .*label.* is not finite, as in the 19 steps before"
    ):
        one.epoch(0, rate=RATE)


def test_they_may_lie_in_several_epochs():
    """Of an epoch's 16 steps step 3 alone is good: there are 12 bad ones behind it, and 3 before the next."""
    one = engine(objectives.at(), _AllBad(128), non_finite="skip")
    assert one.epoch(0, rate=RATE)["train/skipped_steps"] == 15
    one.source = _BadFrom(0)
    with pytest.raises(
        TrainingStopped, match=r"epoch 1, step 7: .* is not finite, as in the 19 steps before"
    ):
        one.epoch(1, rate=RATE)


def test_an_epoch_in_which_every_step_is_skipped_stops_the_run():
    one = engine(objectives.at(), _AllBad(24), non_finite="skip")
    with pytest.raises(
        TrainingStopped, match=r"^epoch 0: none of its 3 steps trained anything; 3 were skipped"
    ):
        one.epoch(0, rate=RATE)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_attack_that_underflows_is_reported(caplog, accumulation):
    """One image of eight has no gradient in half of the attack's steps."""

    def attack(images, labels, noise):
        attack.stuck = torch.zeros(len(images))
        attack.stuck[0] = 0.5 * accumulation
        return images

    one = engine(objectives.at(), Task(32), attack=attack, accumulation=accumulation)
    assert one.epoch(0, rate=RATE)["attack/zero_gradient"] == pytest.approx(100 * accumulation**2 / 16)
    assert "it underflows in fp16" in caplog.text


# ------------------------------------------------------------------------------------------- precision


def test_bf16_runs_stays_finite_and_keeps_weights_and_losses_in_fp32():
    low = engine(IAD1, Task(24, dtype=torch.float32), dtype=torch.float32, kind="bf16", norm=True)
    full = engine(IAD1, Task(24, dtype=torch.float32), dtype=torch.float32, norm=True)
    for one in (low, full):
        assert np.isfinite(one.epoch(1, rate=0.01)["loss/total"])
    for name, value in low.student.state_dict().items():
        assert value.dtype == full.student.state_dict()[name].dtype
        assert value.isfinite().all()
    assert not _equal(low.student.state_dict(), full.student.state_dict())  # it really was another arithmetic
    assert _close(low.student.state_dict(), full.student.state_dict(), 0.05)


def test_the_student_is_still_itself_afterwards():
    """accelerate prepares a shell; the network keeps its own forward, in its own precision."""
    student = network(1, dtype=torch.float32)
    one = engine(
        objectives.at(),
        Task(16, dtype=torch.float32),
        student=student,
        dtype=torch.float32,
        kind="bf16",
    )
    one.epoch(0, rate=RATE)
    assert "forward" not in vars(student)
    assert student(torch.zeros(2, 3, 4, 4)).dtype == torch.float32
    assert copy.deepcopy(student).state_dict().keys() == network(1).state_dict().keys()


def test_an_accelerator_has_the_precision_that_was_asked_for_whatever_came_before():
    for kind, mixed in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        accelerator = accelerator_for(Precision(kind=kind, channels_last=True, reason=""), cpu=True)
        assert accelerator.mixed_precision == mixed
        assert accelerator.device.type == "cpu"


def test_gradients_are_not_divided_by_what_accelerate_is_told_to_accumulate(monkeypatch):
    expected = engine(objectives.at(), Task(16))
    expected.epoch(0, rate=RATE)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    one = engine(objectives.at(), Task(16))
    one.epoch(0, rate=RATE)
    assert _equal(one.student.state_dict(), expected.student.state_dict())


# ------------------------------------------------------------------------------------------- too small a part


def _flat(seed):
    """BatchNorm over the images alone, beside a layer that draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
        return nn.Sequential(*layers).double()


@pytest.mark.parametrize(
    ("n", "accumulation", "said"),
    [
        (25, 1, "a batch of size 1 in 1 parts (processes × accumulation = 1 × 1) has a part of one image, "),
        (27, 2, "a batch of size 3 in 2 parts (processes × accumulation = 1 × 2) has a part of one image, "),
        (24, 8, "a batch of size 8 in 8 parts (processes × accumulation = 1 × 8) has a part of one image, "),
    ],
)
def test_a_part_of_one_image_is_refused_before_any_step_where_the_student_cannot_take_it(
    n, accumulation, said
):
    one = engine(objectives.at(), Task(n), student=_flat(1), accumulation=accumulation)
    before = copy.deepcopy(one.student.state_dict())
    with pytest.raises(
        ValueError, match=f"^{re.escape(said)}.*Expected more than 1 value per channel.*batch size"
    ):
        one.check_batches()
    assert _equal(one.student.state_dict(), before)


def test_a_source_that_only_goes_forward_shows_it_at_the_batch():
    """Its last batch is known when it comes."""
    task = Task(25)
    task.in_turn = True
    one = engine(objectives.at(), task, student=_flat(1))
    one.check_batches()
    with pytest.raises(ValueError, match=r"^a batch of size 1 in 1 parts"):
        one.epoch(0, rate=RATE)


@pytest.mark.parametrize(("n", "accumulation"), [(26, 1), (28, 2), (25, 2), (24, 4)])
def test_parts_of_more_images_and_a_tail_that_is_left_out_are_no_matter(n, accumulation):
    one = engine(objectives.at(), Task(n), student=_flat(1), accumulation=accumulation)
    one.check_batches()
    assert np.isfinite(one.epoch(0, rate=RATE)["loss/total"])


@pytest.mark.parametrize("accumulation", [1, 8])
def test_looking_at_one_image_leaves_training_as_it_is_to_the_last_bit(accumulation):
    """BatchNorm over the image's places takes a single one; its statistics and what is drawn stay."""
    trained = []
    for look in (True, False):
        student = nn.Sequential(network(1, norm=True), nn.Dropout(0.3))
        one = engine(objectives.at(), Task(25), student=student, accumulation=accumulation)
        one._one_image_fits = not look
        torch.manual_seed(5)
        before = torch.get_rng_state()
        if look:
            one.check_batches()
            assert one._one_image_fits
        assert torch.equal(torch.get_rng_state(), before)
        one.epoch(0, rate=RATE)
        trained.append(one.student.state_dict())
    assert _equal(*trained)


def test_batches_that_have_not_an_image_for_each_part_are_refused():
    one = engine(objectives.at(), Task(24), accumulation=9)
    with pytest.raises(ValueError, match=r"^a batch of size 8 has not one image for each of 9 parts \("):
        one.check_batches()


# ------------------------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes got from the shared cases."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(loop_cases.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(folder)], capture_output=True, text=True, timeout=300, cwd=script.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one_with_the_same_batches(two_processes, name):
    _, (first, second) = two_processes
    weights, records = loop_cases.run_shared(name)
    for rank in (first, second):
        theirs = {key: rank[f"{name}/weights/{key}"] for key in weights}
        assert _close(theirs, weights, 1e-9)
        figures = _known(figures_of(records))
        assert {key for key in rank if key.startswith(f"{name}/figures/")} == {
            f"{name}/figures/{key}" for key in figures
        }
        for key, value in figures.items():
            assert float(rank[f"{name}/figures/{key}"]) == pytest.approx(value, rel=1e-9)
    assert not _close(weights, network(1).state_dict(), 1e-3)


@pytest.mark.slow
def test_both_processes_end_with_the_same_running_statistics(two_processes):
    _, (first, second) = two_processes
    normed = {key: value for key, value in first.items() if key.startswith("norm/")}
    assert any(key.endswith("running_mean") for key in normed)
    for key, value in normed.items():
        torch.testing.assert_close(value, second[key], rtol=0, atol=0)


@pytest.mark.slow
def test_layers_draw_otherwise_in_another_process(two_processes):
    _, (first, second) = two_processes
    assert len(set(first["drawn"].tolist()) | set(second["drawn"].tolist())) == 8


@pytest.mark.slow
def test_what_one_process_meets_stops_both(two_processes):
    folder, _ = two_processes
    for rank in range(2):
        said = (folder / f"{rank}.stopped").read_text()
        assert said.startswith("epoch 0, step 2: the loss term 'label' is not finite")


@pytest.mark.slow
def test_what_one_process_skips_both_skip(two_processes):
    """Both go on with the same weights; each with BatchNorm statistics of its own share until the epoch's end."""
    folder, _ = two_processes
    first, second = (load_file(folder / f"{rank}.skipped.safetensors") for rank in range(2))
    assert _equal(first, second)
    assert all(value.isfinite().all() for value in first.values())
    assert {key.partition("/")[0] for key in first} == {"student", "optimizer", "buffers", "sums"}
    for rank in range(2):
        assert json.loads((folder / f"{rank}.skipped.json").read_text()) == [1, 1]
        assert torch.equal(first[f"buffers/{rank}/1.running_mean"], first["student/1.running_mean"])
    images = [float(first[f"sums/{rank}/loss/total"][1]) for rank in range(2)]
    assert images == [12.0, 12.0]  # three of four batches of eight
