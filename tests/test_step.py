"""The step runs exactly the passes that an objective reads, and each gives what it gives alone."""

import copy

import oracles
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from iad_ext import Outputs, attacks, introspect, objectives
from iad_ext.attacks import EPS
from iad_ext.objectives import ADVERSARIAL_PASSES, PASSES, ROWS, build
from iad_ext.randomness import stream
from iad_ext.step import Step

STEPS = 3
AFTER = 199
MORE = {
    "ard with labels": objectives.ard(label_weight=0.1),
    "iad1 scheduled": objectives.iad1(gamma={0: 0.0, 100: 1.0}),
    "introspect(at)": introspect(objectives.at(), warmup_epochs=3),
    "introspect(trades)": introspect(objectives.trades(), warmup_epochs=3),
    "introspect(st)": introspect(objectives.st(), warmup_epochs=3),
    "iad_rslad with everything": build("iad_rslad", igdm=2.0, sample_weight="entropy", trust="three_cases"),
    "trades with igdm": build("trades", igdm=2.0),
    "iad1 by correctness": build("iad1", sample_weight="correct", trust="entropy_correct"),
    "rslad with ADR's clip": build("rslad", introspect=True, trust="margin"),
    "rslad with other targets": build("rslad", target="swap", class_temperature={3: 2.0}),
    "at with smooth labels": build("at", label_smoothing=0.1),
}
OBJECTIVES = {**{name: build(name) for name in ROWS}, **MORE}
BOTH_EPOCHS = pytest.mark.parametrize("epoch", [0, AFTER])
EVERY = pytest.mark.parametrize("name", sorted(OBJECTIVES))


@pytest.fixture(scope="module")
def batch():
    generator = stream("test_step")
    return torch.rand(6, 3, 6, 6, generator=generator), torch.randint(10, (6,), generator=generator)


@pytest.fixture
def networks(tiny_network):
    """A student as it trains, two teachers and an average of the student as they are asked."""
    student, *asked = (tiny_network(seed=seed) for seed in (1, 2, 3, 4))
    return student.train(), *(network.eval() for network in asked)


def build_attack(objective, student, teacher):
    if objective.attack == "none":
        return None
    return attacks.build(
        objective.attack, student, teacher=teacher, steps=STEPS, training=objective.attack_training
    )


def build_step(objective, networks, **changed):
    student, teacher, natural, average = networks
    parts = {"attack": build_attack(objective, student, teacher), "forward": student}
    parts |= {"teacher": teacher, "natural_teacher": natural, "average": average}
    return Step(objective=objective, **(parts | changed))


def count_forwards(network):
    sizes = []
    network.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    return sizes


def start(batch):
    return 0.02 * torch.rand(batch[0].shape, generator=stream("start"))


def of_role(passes, role):
    return {name for name in passes if name.rpartition("_")[0] == role}


@EVERY
@BOTH_EPOCHS
def test_no_pass_runs_that_the_objective_does_not_read(name, epoch, networks, batch):
    objective = OBJECTIVES[name]
    needed = objective.needs(epoch=epoch)
    student, teacher, natural, average = (count_forwards(network) for network in networks)
    result = build_step(objective, networks)(*batch, epoch=epoch)
    assert {p for p in PASSES if getattr(result.outputs, p) is not None} == needed

    attacked = bool(needed & ADVERSARIAL_PASSES)
    attack_runs = attacked * (STEPS + (objective.attack == "trades"))
    assert student == [6] * (attack_runs + len(of_role(needed, "student")))
    # one forward with all passes in it, but for what the attack reads before there is an x̃, or goes through
    of_teacher = of_role(needed, "teacher")
    before = {"rslad": [6], "adaad": [6] * STEPS}.get(objective.attack, []) if attacked else []
    left = of_teacher - ({"teacher_nat"} if objective.attack == "rslad" else set())
    assert teacher == before + ([6 * len(left)] if left else [])
    of_natural = of_role(needed, "natural_teacher")
    assert natural == ([6 * len(of_natural)] if of_natural else [])
    assert average == ([6] if "average_nat" in needed else [])
    assert (result.adversarial is not None) == attacked


def test_the_counts_of_the_papers_methods_in_numbers(networks, batch):
    """Written out for IAD-I, IAD-II and standard training, so that the law above has something to stand on."""
    for name, epoch, expected in [
        ("st", 0, (1, 0, 0)),
        ("at", 0, (STEPS + 1, 0, 0)),
        ("trades", 0, (STEPS + 1 + 2, 0, 0)),
        ("iad1", 0, (STEPS + 1, 1, 0)),
        ("iad1", 60, (STEPS + 2, 1, 0)),
        ("iad2", 39, (STEPS + 1, 1, 1)),
        ("iad2", 40, (STEPS + 2, 1, 1)),
        ("rslad", 0, (STEPS + 2, 1, 0)),
        ("adaad", 0, (STEPS + 1, STEPS + 1, 0)),
        ("adaiad", 60, (STEPS + 2, STEPS + 1, 0)),
        ("iad_rslad", 90, (STEPS + 2, 2, 0)),
        ("mtard", 0, (STEPS + 2, 1, 1)),
        ("mart", 0, (STEPS + 2, 0, 0)),
    ]:
        fresh = tuple(copy.deepcopy(network) for network in networks)
        counts = [count_forwards(network) for network in fresh]
        build_step(build(name), fresh)(*batch, epoch=epoch)
        assert tuple(len(sizes) for sizes in counts) == (*expected, 0), (name, epoch)
    counts = [count_forwards(network) for network in networks]
    build_step(build("adr"), networks)(*batch, epoch=0)
    assert tuple(len(sizes) for sizes in counts) == (STEPS + 1, 0, 0, 1)


@EVERY
@BOTH_EPOCHS
def test_a_step_is_its_passes_run_one_by_one(name, epoch, networks, batch):
    objective = OBJECTIVES[name]
    images, labels = batch
    slow_student, slow_teacher, slow_natural, slow_average = (copy.deepcopy(n) for n in networks)
    result = build_step(objective, networks)(images, labels, epoch=epoch, noise=start(batch))
    result.loss.total.backward()

    needed, logits = objective.needs(epoch=epoch), {}
    adversarial = mirror = None
    if needed & ADVERSARIAL_PASSES:
        attack = build_attack(objective, slow_student, slow_teacher)
        given = {"target": slow_teacher(images)} if objective.attack == "rslad" else {}
        if objective.attack == "adr":
            known = Outputs(average_nat=slow_average(images).detach())
            given = {"target": objective.with_targets(known, labels, epoch).average_nat}
        adversarial = attack(images, labels, noise=start(batch), **given)
        assert torch.equal(result.adversarial, adversarial)
        mirror = images - (adversarial - images)
    for p, network, pixels in [  # the student sees x̃ before x, as in the released code
        ("student_adv", slow_student, adversarial),
        ("student_nat", slow_student, images),
        ("teacher_nat", slow_teacher, images),
        ("teacher_adv", slow_teacher, adversarial),
        ("natural_teacher_adv", slow_natural, adversarial),
        ("natural_teacher_nat", slow_natural, images),
        ("average_nat", slow_average, images),
        ("student_mirror", slow_student, mirror),
        ("teacher_mirror", slow_teacher, mirror),
    ]:
        if p in needed:
            logits[p] = network(pixels) if p.startswith("student") else network(pixels).detach()
            torch.testing.assert_close(getattr(result.outputs, p), logits[p])
    loss = objective(Outputs(**logits), labels, epoch=epoch)
    loss.total.backward()
    torch.testing.assert_close(result.loss.total, loss.total)
    torch.testing.assert_close(result.loss.terms, loss.terms)
    for ours, slow in zip(networks[0].parameters(), slow_student.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, slow.grad, rtol=1e-4, atol=1e-6)
    for ours, slow in zip(networks[0].buffers(), slow_student.buffers(), strict=True):
        assert torch.equal(ours, slow)


def test_a_steps_loss_is_the_loops(networks, batch):
    result = build_step(objectives.iad2(), networks)(*batch, epoch=AFTER)
    logits = {p: getattr(result.outputs, p).tolist() for p in objectives.iad2().needs(epoch=AFTER)}
    slow = oracles.objective("iad2", logits, batch[1].tolist(), AFTER)
    assert result.loss.total.item() == pytest.approx(slow.total, rel=1e-5)


@EVERY
def test_teachers_carry_no_graph_and_are_left_alone(name, networks, batch):
    before = [copy.deepcopy(network.state_dict()) for network in networks[1:]]
    result = build_step(OBJECTIVES[name], networks)(*batch, epoch=AFTER)
    for p in [name for name in PASSES if not name.startswith("student_")]:
        logits = getattr(result.outputs, p)
        if logits is not None:
            assert not logits.requires_grad
            assert not logits.is_inference()  # else it could not stand in the student's graph
    result.loss.total.backward()
    for network, state in zip(networks[1:], before, strict=True):
        assert all(parameter.grad is None for parameter in network.parameters())
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert not any(module.training for module in network.modules())
    assert all(parameter.grad is not None for parameter in networks[0].parameters())


@EVERY
@BOTH_EPOCHS
def test_the_student_keeps_its_modes(name, epoch, networks, batch):
    networks[0][1].eval()
    before = [module.training for module in networks[0].modules()]
    build_step(OBJECTIVES[name], networks)(*batch, epoch=epoch)
    assert [module.training for module in networks[0].modules()] == before


def test_no_attack_runs_where_no_pass_reads_its_images(networks, batch):
    def attack(images, labels, noise):
        raise AssertionError("the attack was run")

    objective = introspect(objectives.st(), warmup_epochs=3)
    step = build_step(objective, networks, attack=attack)
    assert step(*batch, epoch=2).adversarial is None
    with pytest.raises(AssertionError, match="the attack was run"):
        step(*batch, epoch=3)


def test_noise_is_where_the_attack_starts(networks, batch):
    given = []

    def attack(images, labels, noise):
        given.append(noise)
        return images

    step = build_step(objectives.at(), networks, attack=attack)
    noise = start(batch)
    step(*batch, epoch=0, noise=noise)
    step(*batch, epoch=0)
    assert given[0] is noise
    assert given[1] is None


def test_the_same_noise_gives_the_same_images_and_other_noise_others(tiny_network, batch):
    def adversarial(noise):
        student, *teachers = (tiny_network(seed=seed) for seed in (1, 2, 3, 4))
        networks = student, *(teacher.eval() for teacher in teachers)
        return build_step(objectives.at(), networks)(*batch, epoch=0, noise=noise).adversarial

    noise = start(batch)
    assert torch.equal(adversarial(noise), adversarial(noise.clone()))
    assert not torch.equal(adversarial(noise), adversarial(-noise))


def test_the_step_forwards_through_the_wrapper_and_attacks_what_the_attack_was_built_on(networks, batch):
    """Under a distributed wrapper the two differ: the wrapper must see the passes and none of the attack."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, images):
            return self.module(images)

    wrapper = Wrapper(networks[0])
    inner, outer = count_forwards(networks[0]), count_forwards(wrapper)
    build_step(objectives.iad1(), networks, forward=wrapper)(*batch, epoch=AFTER)
    assert (len(inner), len(outer)) == (STEPS + 2, 2)


@pytest.mark.parametrize(
    ("name", "lacking", "said"),
    [
        ("iad1", "teacher", "reads teacher_nat and teacher_adv, but that teacher was not given"),
        ("ard", "teacher", "reads teacher_nat, but that teacher was not given"),
        ("akd2", "natural_teacher", "reads natural_teacher_adv, but that teacher was not given"),
        ("iad1", "attack", "iad1 reads adversarial images; give the step an attack"),
    ],
)
def test_what_is_missing_is_named(name, lacking, said, networks, batch):
    with pytest.raises(ValueError, match=said):
        build_step(build(name), networks, **{lacking: None})(*batch, epoch=AFTER)


def test_what_no_pass_needs_may_be_missing(networks, batch):
    bare = {"teacher": None, "natural_teacher": None}
    assert build_step(objectives.st(), networks, attack=None, **bare)(*batch, epoch=0).loss.total.isfinite()
    assert build_step(objectives.at(), networks, **bare)(*batch, epoch=0).loss.total.isfinite()
    step = build_step(objectives.iad1(), networks, natural_teacher=None)
    assert step(*batch, epoch=AFTER).loss.total.isfinite()


def test_a_teacher_of_other_classes_is_named(networks, batch, tiny_network, unchecked):
    step = build_step(objectives.iad1(), networks, teacher=tiny_network(100).eval())
    with pytest.raises(ValueError, match=r"student_adv 10, .*teacher_nat 100; .*num_classes"):
        step(*batch, epoch=AFTER)


@pytest.mark.parametrize("name", ["iad1", "iad2", "trades"])
def test_under_autocast_passes_are_bf16_and_losses_fp32(name, networks, batch):
    seen = set()
    for network in networks:
        network.register_forward_hook(lambda _, __, logits: seen.add(logits.dtype))
    step = build_step(build(name), networks, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    result = step(*batch, epoch=AFTER, noise=start(batch))
    assert seen == {torch.bfloat16}
    for p in build(name).needs(epoch=AFTER):
        assert getattr(result.outputs, p).dtype == torch.float32
    assert result.loss.per_image.dtype == torch.float32
    assert result.adversarial.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert (result.adversarial - batch[0]).abs().max() <= EPS + 2**-24

    plain = copy.deepcopy(networks[0])  # bf16 passes give fp32's gradients up to bf16's rounding
    result.loss.total.backward()
    outputs = {"student_adv": plain(result.adversarial), "student_nat": plain(batch[0])}
    teachers = {p: z for p in PASSES if p not in outputs and (z := getattr(result.outputs, p)) is not None}
    build(name)(Outputs(**outputs, **teachers), batch[1], epoch=AFTER).total.backward()
    found, expected = (
        torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (networks[0], plain)
    )
    assert F.cosine_similarity(found, expected, dim=0) > 0.99
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.1)


def test_double_precision_stays_double(networks, batch):
    doubles = [network.double() for network in networks]
    result = build_step(objectives.iad1(), doubles)(batch[0].double(), batch[1], epoch=AFTER)
    assert result.loss.total.dtype == torch.float64


def test_gradients_reach_the_student_through_both_its_passes(networks, batch):
    """S(x) as the target of introspection is not detached: the released code's and TRADES's reading."""
    step = build_step(objectives.iad1(gamma=1.0, weights={"teacher": 0}), networks)
    result = step(*batch, epoch=AFTER)
    nat, adv = result.outputs.student_nat, result.outputs.student_adv
    by_nat, by_adv = torch.autograd.grad(result.loss.total, (nat, adv))
    assert by_nat.any()
    assert by_adv.any()
