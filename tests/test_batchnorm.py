"""The order in which BatchNorm's running statistics see the student's passes: lean, and as released."""

import pytest
import torch
from torch import nn

from iad_ext import attacks, batchnorm, objectives
from iad_ext.randomness import stream
from iad_ext.step import AS_RELEASED, Step

STEPS = 2


def close(one, other):
    """Running statistics equal up to fp32's rounding; counters exactly."""
    for name, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, other[name]), name
    return True


def buffers(network):
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.fixture
def batch():
    generator = stream("test_batchnorm")
    return torch.rand(6, 3, 6, 6, generator=generator), torch.randint(10, (6,), generator=generator)


@pytest.fixture
def noise():
    return 0.02 * torch.rand(6, 3, 6, 6, generator=stream("start"))


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, 0.0])
def test_counted_more_than_once_is_run_more_than_once(times, momentum, tiny_network, batch):
    once, often = (tiny_network(seed=1).train() for _ in range(2))
    for network in (once, often):
        for layer in batchnorm.tracking(network):
            layer.momentum = momentum
        network(torch.rand(4, 3, 6, 6, generator=stream("before")))  # not where they began
    with batchnorm.counted(batchnorm.tracking(once), times):
        logits = once(batch[0])
    for _ in range(times):
        expected = often(batch[0])
    assert torch.equal(logits, expected)
    assert close(buffers(once), buffers(often))


def test_layers_in_eval_mode_stay_as_they_are(tiny_network, batch):
    network = tiny_network(seed=1).train()
    network[1].eval()
    before = buffers(network[1])
    with batchnorm.counted(batchnorm.tracking(network), 3):
        network(batch[0])
    assert all(torch.equal(before[name], value) for name, value in network[1].named_buffers())
    assert network[3][1].num_batches_tracked == 3


def stepped(objective, tiny_network, batch, noise, epoch, *, training=True, **settings):
    student, teacher = tiny_network(seed=1).train(), tiny_network(seed=2).eval()
    attack = attacks.PGD(student, steps=STEPS, training=training)
    step = Step(objective=objective, forward=student, attack=attack, teacher=teacher, **settings)
    result = step(*batch, epoch=epoch, noise=noise)
    result.loss.total.backward()
    return student, result


RELEASED = [
    ("iad1", 199, ["adv", "adv", "nat", "nat"]),
    ("iad1", 0, ["adv", "adv", "nat"]),
    ("iad1_down", 199, ["adv", "adv", "nat", "nat"]),
    ("iad1_down", 0, ["adv", "adv", "nat"]),
    ("ard", 0, ["adv", "nat"]),
    ("at", 0, ["adv"]),
]


@pytest.mark.parametrize(("name", "epoch", "passes"), RELEASED)
def test_the_faithful_order_leaves_what_the_released_passes_leave(
    name, epoch, passes, tiny_network, batch, noise
):
    objective = objectives.build(name)
    student, result = stepped(objective, tiny_network, batch, noise, epoch, bn_order="faithful")
    by_hand = tiny_network(seed=1).train()
    attack = attacks.PGD(by_hand, steps=STEPS, training=True)
    images = {"adv": attack(*batch, noise=noise), "nat": batch[0]}
    assert torch.equal(images["adv"], result.adversarial)
    with torch.no_grad():
        for which in passes:
            by_hand(images[which])
    assert close(buffers(student), buffers(by_hand))


def test_in_warm_up_an_introspective_objective_is_its_base_to_batchnorm_too(tiny_network, batch, noise):
    wrapped = objectives.introspect(objectives.ard(), warmup_epochs=1)
    found = [
        buffers(stepped(objective, tiny_network, batch, noise, 0, bn_order="faithful")[0])
        for objective in (objectives.ard(), wrapped)
    ]
    assert close(*found)


@pytest.mark.parametrize("epoch", [0, 199])
def test_both_orders_give_the_same_loss_and_gradients_and_other_statistics(epoch, tiny_network, batch, noise):
    found = {
        order: stepped(objectives.iad1(), tiny_network, batch, noise, epoch, bn_order=order)
        for order in ("lean", "faithful")
    }
    (lean, of_lean), (faithful, of_faithful) = found["lean"], found["faithful"]
    assert torch.equal(of_lean.loss.total, of_faithful.loss.total)
    assert set(of_lean.loss.terms) == set(of_faithful.loss.terms)
    for one, other in zip(lean.parameters(), faithful.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert not torch.allclose(lean[1].running_mean, faithful[1].running_mean)


def test_a_network_without_batchnorm_runs_no_more_for_it(batch, noise):
    class Plain(nn.Sequential):
        calls = 0

        def forward(self, images):
            Plain.calls += 1
            return super().forward(images)

    student, teacher = (Plain(nn.Flatten(), nn.Linear(108, 10)) for _ in range(2))
    attack = attacks.PGD(student, steps=STEPS, training=True)
    step = Step(
        objective=objectives.iad1(),
        forward=student,
        attack=attack,
        teacher=teacher.eval(),
        bn_order="faithful",
    )
    step(*batch, epoch=0, noise=noise)
    assert Plain.calls == STEPS + 2  # attack, S(x̃), T(x): not S(x), which ARD does not read


def test_plain_averages_have_no_order(tiny_network):
    student = tiny_network(seed=1)
    student[1].momentum = None
    with pytest.raises(ValueError, match=r"'1' averages all batches alike .*bn_order lean"):
        Step(objective=objectives.at(), forward=student, bn_order="faithful")
    Step(objective=objectives.at(), forward=student)


def test_eval_mode_attacks_touch_no_statistics_in_either_order(tiny_network, batch, noise):
    for order in ("lean", "faithful"):
        student, result = stepped(
            objectives.at(), tiny_network, batch, noise, 0, bn_order=order, training=False
        )
        by_hand = tiny_network(seed=1).train()
        by_hand(result.adversarial)
        assert close(buffers(student), buffers(by_hand))


def test_only_objectives_that_exist_have_a_released_order():
    for name, _ in AS_RELEASED:
        assert objectives.build(name).name == name
