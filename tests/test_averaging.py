"""Averages of weights, BatchNorm statistics that fit them, perturbed weights: each against its definition."""

import copy

import pytest
import torch
from loop_cases import RATE, Task, engine, network
from torch import nn

from iad_ext import objectives
from iad_ext.averaging import WeightAverage, keeping_statistics, reestimate_batchnorm
from iad_ext.loop import UNDERFLOW
from iad_ext.randomness import stream

DECAY = 0.7


def drifting(steps, *, norm=True):
    """A network and the states that it goes through."""
    student = network(1, norm=norm)
    generator = stream("drift")
    for _ in range(steps):
        with torch.no_grad():
            for tensor in (*student.parameters(), *student.buffers()):
                if tensor.is_floating_point():
                    tensor += torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                else:
                    tensor += 1
        yield student


def assert_state(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_ema_is_its_loop(start):
    average, slow = None, None
    for step, student in enumerate(drifting(6)):
        if average is None:
            average = WeightAverage(student, kind="ema", decay=DECAY, start=start)
            slow = copy.deepcopy(student.state_dict())
        epoch = step // 2
        average.after_step(student, epoch)
        average.after_epoch(student, epoch)  # which is nothing to an ema
        for name, value in student.state_dict().items():
            moves = epoch >= start and value.is_floating_point()
            slow[name] = DECAY * slow[name] + (1 - DECAY) * value if moves else value.clone()
    assert_state(average.network.state_dict(), slow)
    assert not any(module.training for module in average.network.modules())
    assert not any(p.requires_grad for p in average.network.parameters())


@pytest.mark.parametrize("start", [0, 2])
def test_swa_is_the_mean_of_the_ends_of_epochs(start):
    average, ends = None, []
    for epoch, student in enumerate(drifting(5)):
        average = average or WeightAverage(student, kind="swa", start=start)
        average.after_step(student, epoch)
        average.after_epoch(student, epoch)
        if epoch >= start:
            ends.append(copy.deepcopy(student.state_dict()))
    mean = {
        name: torch.stack([end[name] for end in ends]).mean(0) if value.is_floating_point() else value
        for name, value in ends[-1].items()
    }
    assert_state(average.network.state_dict(), mean)


def test_swa_that_joins_a_run_late_is_the_mean_from_there_on():
    """Asked for when a run goes on, and stopped once more: a mean of what it has seen."""
    ends, kept = [], None
    for epoch in range(6):
        student = network(1, norm=True)
        asked = WeightAverage(student, kind="swa") if epoch >= 2 else None
        one = engine(objectives.at(), Task(24), student=student, average=asked)
        if kept is not None:
            one.restore(*kept)
        one.epoch(epoch, rate=RATE)
        kept = copy.deepcopy(one.state(within_epoch=False))
        if epoch >= 2:
            ends.append(copy.deepcopy(student.state_dict()))
    mean = {
        name: torch.stack([end[name] for end in ends]).mean(0) if value.is_floating_point() else value
        for name, value in ends[-1].items()
    }
    assert_state(one.average.network.state_dict(), mean)


def test_what_is_no_average_is_refused():
    with pytest.raises(ValueError, match="unknown average 'emma'; did you mean 'ema'"):
        WeightAverage(network(1), kind="emma")
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        WeightAverage(network(1), decay=1.5)


# ------------------------------------------------------------------------------------------ BatchNorm


def test_statistics_are_the_means_over_batches():
    student = network(1, norm=True)
    student.insert(0, nn.Dropout(0.5))  # stays at rest, or the statistics would be of other activations
    student.eval()
    images = torch.rand(12, 3, 4, 4, generator=stream("bn"), dtype=torch.float64)
    batches = images.split(4)
    before = copy.deepcopy(student.state_dict())
    reestimate_batchnorm(student, batches)
    activations = [student[1](batch) for batch in batches]
    mean = torch.stack([a.mean((0, 2, 3)) for a in activations]).mean(0)
    var = torch.stack([a.var((0, 2, 3)) for a in activations]).mean(0)
    torch.testing.assert_close(student[2].running_mean, mean)
    torch.testing.assert_close(student[2].running_var, var)
    assert student[2].momentum == 0.1
    assert not any(module.training for module in student.modules())
    for name, value in student.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name])


def test_without_batchnorm_nothing_is_run():
    def images():
        raise AssertionError("images were asked for")
        yield

    reestimate_batchnorm(network(1, norm=False), images())


# ------------------------------------------------------------------------------------------ in the engine


def test_the_engine_s_average_follows_its_student():
    student = network(1, norm=True)
    average = WeightAverage(student, kind="ema", decay=DECAY)
    one = engine(objectives.at(), Task(24), student=student, average=average)
    slow = copy.deepcopy(student.state_dict())

    def follow(_):
        for name, value in student.state_dict().items():
            slow[name] = (
                DECAY * slow[name] + (1 - DECAY) * value if value.is_floating_point() else value.clone()
            )

    for epoch in range(2):
        one.epoch(epoch, rate=RATE, after_step=follow)
    assert_state(average.network.state_dict(), slow)


def test_what_is_measured_has_the_statistics_of_the_epoch_s_images():
    """In float64, over batches of unequal size, those that this epoch and no other was trained on."""
    student = network(1, norm=True)
    task = Task(22)
    one = engine(objectives.at(), task, student=student, average=WeightAverage(student, decay=DECAY))
    for epoch in range(2):
        one.epoch(epoch, rate=RATE)
    expected = copy.deepcopy(one.average.network)
    reestimate_batchnorm(expected, [task.batch(1, step).images for step in range(len(task))])
    assert_state(one.measurable(1, reestimate=True).state_dict(), expected.state_dict())
    (raw,), (found,) = keeping_statistics(one.average.network), keeping_statistics(expected)
    assert not torch.equal(raw.running_mean, found.running_mean)
    assert_state(one.measurable(1, reestimate=False).state_dict(), one.average.network.state_dict())


def test_without_an_average_the_student_is_measured():
    one = engine(objectives.at(), Task(24), norm=True)
    assert one.measurable(0, reestimate=True) is one.student


def test_an_average_changes_nothing_that_is_trained():
    plain = engine(objectives.at(), Task(24), norm=True)
    student = network(1, norm=True)
    followed = engine(objectives.at(), Task(24), student=student, average=WeightAverage(student))
    for one in (plain, followed):
        one.epoch(0, rate=RATE)
    assert_state(followed.student.state_dict(), plain.student.state_dict())


def test_adr_is_taught_by_the_average_of_its_student():
    one = engine(objectives.adr(average_decay=0.6), Task(24), norm=True)
    assert one.average.decay == 0.6
    assert one.average.kind == "ema"
    seen = []
    one.average.network.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    one.epoch(0, rate=RATE)
    assert seen == [8, 8, 8]


def test_mtards_weights_move_with_the_global_batch_whatever_its_parts():
    states = []
    for accumulation in (1, 2):
        one = engine(objectives.mtard(balance_rate=0.3), Task(24), accumulation=accumulation)
        for epoch in range(2):
            one.epoch(epoch, rate=RATE)
        states.append(one.balance)
    torch.testing.assert_close(states[0], states[1])
    assert float(states[0][0].sum()) == pytest.approx(1)
    assert states[0][0].tolist() != [0.5, 0.5]


def test_mtards_weights_slow_down_with_the_learning_rate():
    one = engine(objectives.mtard(balance_rate=0.3), Task(24))
    assert one.optimizer.defaults["lr"] > 0
    one.epoch(0, rate=one.optimizer.defaults["lr"])
    fast = one.balance[0].clone()
    one.epoch(1, rate=1e-12)
    assert fast.tolist() != [0.5, 0.5]
    torch.testing.assert_close(one.balance[0], fast)


def test_the_gate_that_begins_after_warm_up_does_not_move_mtards_weights():
    """The student stands still, so that α is all that could make one teacher's term fall and not the other's."""
    states = []
    for gated in (True, False):
        one = engine(objectives.iad_mtard(warmup_epochs=1, balance_rate=0.3, gate_teacher=gated), Task(24))
        one.optimizer.defaults["lr"] = 1e-30  # the first rate, so that the weights move at their full one
        for epoch in range(2):
            one.epoch(epoch, rate=1e-30)
        states.append(one.balance)
    assert torch.equal(*states)
    assert states[0][0].tolist() != [0.5, 0.5]


# ------------------------------------------------------------------------------------------ perturbed weights


def test_awp_takes_its_gradient_where_the_loss_is_higher_and_comes_back():
    """One step against the definition, on the student's own loss; BatchNorm counts the second pass alone."""
    gamma = 0.05
    student = network(1, norm=True)
    one = engine(objectives.at(), Task(8), student=student, awp=gamma)
    slow = copy.deepcopy(student)
    batch = one.source.batch(0, 0)
    noise = one._noise(0, 0, 8, batch.images)
    one.epoch(0, rate=RATE)

    again = engine(objectives.at(), Task(8), student=slow)
    adversarial = again.attack(batch.images, batch.labels, noise=noise)
    slow.train()

    def loss():
        return nn.functional.cross_entropy(slow(adversarial), batch.labels)

    buffers = copy.deepcopy(dict(slow.named_buffers()))
    first = loss()
    first.backward()
    weights = {name: p.detach().clone() for name, p in slow.named_parameters()}
    with torch.no_grad():
        for p in slow.parameters():
            if p.ndim > 1:
                p += gamma * p.norm() * p.grad / p.grad.norm()
        for name, buffer in slow.named_buffers():
            buffer.copy_(buffers[name])
    slow.zero_grad()
    second = loss()
    assert second > first
    second.backward()
    with torch.no_grad():
        for name, p in slow.named_parameters():
            p.copy_(weights[name])
    for group in again.optimizer.param_groups:
        group["lr"] = RATE
    again.optimizer.step()
    assert_state(student.state_dict(), slow.state_dict())


def test_awp_before_its_epoch_is_nothing_and_parts_are_the_whole():
    plain, late = (engine(objectives.iad1(), Task(24), **awp) for awp in ({}, {"awp": 0.05, "awp_start": 1}))
    for one in (plain, late):
        one.epoch(0, rate=RATE)
    assert_state(late.student.state_dict(), plain.student.state_dict())
    whole, parts = (engine(objectives.at(), Task(24), awp=0.05, accumulation=k) for k in (1, 4))
    for one in (whole, parts):
        one.epoch(0, rate=RATE)
    assert_state(parts.student.state_dict(), whole.student.state_dict())


def test_awp_runs_the_teacher_and_the_attack_once():
    counts = []
    for awp in (0.0, 0.05):
        teacher, runs = network(2), []
        teacher.register_forward_hook(lambda _, args, __, runs=runs: runs.append(len(args[0])))
        student, passes = network(1), []
        one = engine(
            objectives.rslad(), Task(8), student=student, teacher=teacher, awp=awp, diagnostics="off"
        )
        student.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        one.epoch(0, rate=RATE)
        counts.append((runs, len(passes)))
    assert counts[0][0] == counts[1][0] == [8]
    assert counts[1][1] - counts[0][1] == 2  # S(x̃) and S(x) once more


class Counting:
    """An attack that says of each part's gradients whether they were all zero: of every other part."""

    stuck, calls = None, 0

    def __call__(self, images, labels, noise=None):
        self.stuck = torch.full((len(images),), float(self.calls % 2 == 0))
        self.calls += 1
        return images


@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_zero_gradients_are_counted_in_the_part_that_met_them(awp):
    one = engine(objectives.at(), Task(4), accumulation=2, attack=Counting(), awp=awp)
    assert one.epoch(0, rate=RATE)[UNDERFLOW] == 50


def test_a_tail_that_is_not_trained_on_is_not_in_the_statistics_either():
    """Of nine images in batches of eight the ninth has not one image for each of two parts."""
    task, student = Task(9), network(1, norm=True)
    one = engine(
        objectives.at(), task, student=student, norm=True, accumulation=2, average=WeightAverage(student)
    )
    one.epoch(0, rate=RATE)
    again = copy.deepcopy(one.average.network)
    reestimate_batchnorm(again, [task.batch(0, 0).images])
    assert_state(one.measurable(0, reestimate=True).state_dict(), again.state_dict())
