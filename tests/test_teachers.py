"""Teachers teach and do not learn: neither as the student itself, nor in train mode, nor through a gradient."""

import copy

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from loop_cases import IAD1, RATE, Task, engine, network
from torch import nn

from iad_ext import IntrospectiveAdversarialDistiller, objectives
from iad_ext.step import Step
from iad_ext.teachers import refuse_student, refuse_training

AKD2 = objectives.akd2()
ROLES = {"teacher": IAD1, "natural_teacher": AKD2}
EVERY_ROLE = pytest.mark.parametrize("role", ROLES)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before, module):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# ------------------------------------------------------------------------------------------ the student itself


def view_of(student):
    """A network of its own, of which one weight is a view of the student's."""
    other = network(2, norm=True)
    other[-1].weight = nn.Parameter(student[-1].weight.detach()[:, :])
    return other


def same_statistics(student):
    """A network of its own, of which the running mean is the student's."""
    other = network(2, norm=True)
    other[1].running_mean = student[1].running_mean
    return other


THE_STUDENT = {
    "itself": lambda student: student,
    "wrapped": nn.Sequential,
    "in parallel": nn.DataParallel,
    "in part": lambda student: nn.Sequential(*list(student)[:-1], nn.Linear(16, 5).double()),
    "a view of a weight": view_of,
    "its statistics": same_statistics,
}


@EVERY_ROLE
@pytest.mark.parametrize("how", THE_STUDENT)
def test_an_engine_refuses_the_student_as_its_teacher(role, how):
    student = network(1, norm=True)
    before = state(student)
    with pytest.raises(
        ValueError, match=rf"the {role.replace('_', ' ')} shares weights with the student \(.*pass a copy"
    ):
        engine(ROLES[role], Task(16), student=student, norm=True, **{role: THE_STUDENT[how](student)})
    assert same(before, student)


@EVERY_ROLE
@pytest.mark.parametrize("how", THE_STUDENT)
def test_a_step_refuses_the_student_as_its_teacher(role, how):
    student = network(1, norm=True).eval()
    with pytest.raises(ValueError, match="shares weights with the student"):
        Step(objective=ROLES[role], forward=student, **{role: THE_STUDENT[how](student).eval()})


def test_a_copy_and_shared_constants_are_no_student():
    class Normalise(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

        def forward(self, x):
            return x - self.mean

    constants, inner = Normalise(), network(1, norm=True, dtype=torch.float32)
    student = nn.Sequential(constants, inner)
    refuse_student(student, copy.deepcopy(student), "teacher")
    refuse_student(student, nn.Sequential(constants, copy.deepcopy(inner)), "teacher")
    with torch.device("meta"):
        refuse_student(nn.Linear(2, 2), nn.Linear(2, 2), "teacher")


def classifier(module):
    return PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        input_shape=(3, 4, 4),
        nb_classes=5,
        clip_values=(0, 1),
        device_type="cpu",
    )


@pytest.fixture
def arrays():
    task = Task(16, dtype=torch.float32)
    return task.images.numpy(), task.labels.numpy()


@pytest.mark.parametrize("how", [how for how in THE_STUDENT if how != "in part"])
def test_the_art_door_refuses_the_student_as_its_teacher(how, arrays):
    student = network(1, norm=True, dtype=torch.float32)
    before = state(student)
    teacher = THE_STUDENT[how](student).float()
    with pytest.raises(ValueError, match="the teacher shares weights with the student"):
        IntrospectiveAdversarialDistiller(classifier(student), teacher, precision="fp32").fit(
            *arrays, nb_epochs=1
        )
    assert same(before, student)
    assert all(parameter.requires_grad for parameter in student.parameters())


# ------------------------------------------------------------------------------------------------ train mode


class Stubborn(nn.Module):
    """It is in train mode whatever it is told."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        nn.Module.train(self, True)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.inner(x)


@EVERY_ROLE
def test_a_step_refuses_a_teacher_in_train_mode_and_names_the_module(role):
    teacher = network(2, norm=True).eval()
    teacher[1].train()
    with pytest.raises(
        ValueError, match=rf"the {role.replace('_', ' ')} must be in eval mode, but its BatchNorm2d '1'"
    ):
        Step(objective=ROLES[role], forward=network(1), **{role: teacher})


def test_a_teacher_that_is_set_training_later_is_refused_at_the_next_step():
    one = engine(IAD1, Task(16), norm=True)
    one.epoch(0, rate=RATE)
    before, trained = state(one.teacher), [weight.clone() for weight in one.student.parameters()]
    one.teacher[1].train()
    with pytest.raises(
        ValueError, match="the teacher must be in eval mode, but its BatchNorm2d '1' is in train mode"
    ):
        one.epoch(1, rate=RATE)
    assert same(before, one.teacher)
    assert all(map(torch.equal, trained, one.student.parameters()))


@EVERY_ROLE
def test_a_teacher_that_cannot_be_put_to_rest_is_refused_before_it_changes(role):
    teacher = Stubborn(network(2, norm=True))
    before = state(teacher)
    with pytest.raises(
        ValueError, match=r"must be in eval mode, but Stubborn is in train mode; .* no train\(\) of its own"
    ):
        engine(ROLES[role], Task(16), norm=True, **{role: teacher})
    assert same(before, teacher)


def test_the_art_door_refuses_a_teacher_that_cannot_be_put_to_rest(arrays):
    student, teacher = (network(seed, norm=True, dtype=torch.float32) for seed in (1, 2))
    before = state(student)
    trainer = IntrospectiveAdversarialDistiller(classifier(student), Stubborn(teacher), precision="fp32")
    with pytest.raises(ValueError, match="the teacher must be in eval mode"):
        trainer.fit(*arrays, nb_epochs=1)
    assert same(before, student)


def test_a_teacher_at_rest_is_none_in_train_mode():
    refuse_training(network(2, norm=True).eval(), "teacher")


# ------------------------------------------------------------------------------------------------- gradients


class Eager(nn.Module):
    """It asks for gradients in its own forward, whatever is around it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.inference_mode(False), torch.enable_grad():
            for parameter in self.inner.parameters():
                parameter.requires_grad_(True)
            return self.inner(x.clone())


class Unwilling(nn.Module):
    """It does not let itself be frozen."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def requires_grad_(self, requires_grad=True):
        return super().requires_grad_(True)

    def forward(self, x):
        return self.inner(x)


TEACHERS = {
    "plain": lambda inner: inner,
    "in train mode": lambda inner: inner.train(),
    "asking for gradients": lambda inner: inner.requires_grad_(True),
    "wrapped": lambda inner: nn.Sequential(inner),
    "in parallel": nn.DataParallel,
    "eager": Eager,
    "unwilling": Unwilling,
}


@EVERY_ROLE
@pytest.mark.parametrize("kind", TEACHERS)
def test_no_teacher_gets_a_gradient_or_changes_in_an_epoch(role, kind):
    inner = network(2, norm=True)
    before = state(inner)
    teacher = TEACHERS[kind](inner)
    one = engine(ROLES[role], Task(24), norm=True, **{role: teacher})
    for epoch in range(2):
        one.epoch(epoch, rate=RATE)
    assert all(parameter.grad is None for parameter in inner.parameters())
    assert same(before, inner)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is not None for parameter in one.student.parameters())


@EVERY_ROLE
@pytest.mark.parametrize("kind", [kind for kind in TEACHERS if kind != "in train mode"])
def test_a_step_s_loss_reaches_no_teacher(role, kind):
    inner, student = network(2, norm=True), network(1, norm=True)
    teachers = {"teacher": network(3).eval(), role: TEACHERS[kind](inner).eval()}
    step = Step(objective=ROLES[role], forward=student, attack=lambda images, *_: images + 0.01, **teachers)
    before, part = state(inner), Task(8).batch(0, 0)
    step(part.images, part.labels, epoch=99).loss.total.backward()
    assert all(parameter.grad is None for parameter in inner.parameters())
    assert same(before, inner)


def test_an_optimizer_that_holds_the_teacher_s_weights_does_not_move_them():
    student, teacher = network(1, norm=True), network(2, norm=True)
    before = state(teacher)
    weights = [*student.parameters(), *teacher.parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1)
    one = engine(IAD1, Task(16), student=student, teacher=teacher, optimizer=optimizer)
    one.epoch(0, rate=RATE)
    assert same(before, teacher)
    assert not same(state(network(1, norm=True)), student)


def test_the_art_door_gives_a_teacher_back_as_it_was(arrays):
    student, teacher = (network(seed, norm=True, dtype=torch.float32) for seed in (1, 2))
    teacher.train()[1].eval()
    teacher[-1].bias.requires_grad_(False)
    before = state(teacher)
    modes = [module.training for module in teacher.modules()]
    asked = [parameter.requires_grad for parameter in teacher.parameters()]
    IntrospectiveAdversarialDistiller(classifier(student), teacher, precision="fp32").fit(
        *arrays, nb_epochs=1
    )
    assert same(before, teacher)
    assert [module.training for module in teacher.modules()] == modes
    assert [parameter.requires_grad for parameter in teacher.parameters()] == asked
    assert all(parameter.grad is None for parameter in teacher.parameters())
