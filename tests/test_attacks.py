"""Attacks: equal to stock torchattacks to the bit, inside the ball, and without a trace on the network.

Runs on any torchattacks: IAD_EXT_TORCHATTACKS_PATH names a folder with another version than the installed one
(made by `pip install --no-deps --target FOLDER torchattacks==VERSION`).
"""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import margin
from torch import nn

from iad_ext import attacks
from iad_ext.attacks import MARTPGD, PGD, TRADESPGD, CWInf
from iad_ext.randomness import stream

EPS = 8 / 255
ROUNDING = 2**-24  # of a pixel in fp32


def guide():
    """A teacher of these images: one module, so that its logits of x are the same whoever asks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 10)).eval()


class RSLAD(attacks.RSLADPGD):
    """With the teacher's logits of x given."""

    def __call__(self, images, labels=None, noise=None):
        return super().__call__(images, labels, noise, target=guide()(images))


class ADR(attacks.ADRPGD):
    """With a rectified label given, which the teacher stands for."""

    def __call__(self, images, labels=None, noise=None):
        return super().__call__(images, labels, noise, target=guide()(images))


class AdaAD(attacks.AdaADPGD):
    """With a teacher to go through."""

    def __init__(self, model, **settings):
        super().__init__(model, teacher=guide(), **settings)


ALL = (PGD, CWInf, TRADESPGD, MARTPGD, RSLAD, ADR, AdaAD)


@pytest.fixture(scope="module")
def batch():
    generator = stream("test_attacks")
    images = torch.rand(6, 3, 6, 6, generator=generator)
    images[0], images[1, :, :3] = 0.0, 1.0  # corners, where the clip to [0, 1] acts
    return images, torch.randint(10, (6,), generator=generator)


def buffers(network):
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def same_state(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def stock_adversarial(stock, images, labels, *, training, seed):
    """The stock attack in the same mode, from the start that `seed` gives through global random state."""
    stock.set_model_training_mode(training, training, training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stock(images, labels)


def global_noise(draw, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return draw()


# ------------------------------------------------------------------------------------- equal to torchattacks


def test_the_torchattacks_that_was_asked_for_is_the_one_tested():
    asked = os.environ.get("IAD_EXT_TORCHATTACKS_PATH")
    home = Path(torchattacks.__file__).resolve()
    if asked:
        assert Path(asked).resolve() in home.parents
    assert issubclass(PGD, torchattacks.PGD)
    assert issubclass(TRADESPGD, torchattacks.TPGD)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("given_noise", [False, True])
def test_pgd_is_stock_pgd_to_the_bit(tiny_network, batch, training, steps, given_noise):
    ours, theirs = tiny_network().train(training), tiny_network().train(training)
    stock = torchattacks.PGD(theirs, eps=EPS, alpha=2 / 255, steps=steps)
    expected = stock_adversarial(stock, *batch, training=training, seed=5)
    attack = PGD(ours, eps=EPS, alpha=2 / 255, steps=steps, training=training)
    if given_noise:
        noise = global_noise(lambda: torch.empty_like(batch[0]).uniform_(-EPS, EPS), seed=5)
        found = attack(*batch, noise=noise)
    else:
        found = global_noise(lambda: attack(*batch), seed=5)
    assert torch.equal(found, expected)
    assert same_state(buffers(ours), buffers(theirs))


@pytest.mark.parametrize("training", [False, True])
def test_pgd_without_a_random_start_is_stock_pgd_to_the_bit(tiny_network, batch, training):
    ours, theirs = tiny_network(3), tiny_network(3)
    images, labels = batch[0], batch[1] % 3
    stock = torchattacks.PGD(theirs, eps=0.1, alpha=0.03, steps=4, random_start=False)
    expected = stock_adversarial(stock, images, labels, training=training, seed=0)
    found = PGD(ours, eps=0.1, alpha=0.03, steps=4, random_start=False, training=training)(images, labels)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("given_noise", [False, True])
def test_tradespgd_is_stock_tpgd_to_the_bit(tiny_network, batch, training, given_noise):
    ours, theirs = tiny_network(), tiny_network()
    stock = torchattacks.TPGD(theirs, eps=EPS, alpha=2 / 255, steps=5)
    expected = stock_adversarial(stock, *batch, training=training, seed=5)
    attack = TRADESPGD(ours, eps=EPS, alpha=2 / 255, steps=5, training=training)
    if given_noise:
        noise = global_noise(lambda: 0.001 * torch.randn_like(batch[0]), seed=5)
        found = attack(batch[0], noise=noise)
    else:
        found = global_noise(lambda: attack(batch[0]), seed=5)
    assert torch.equal(found, expected)
    assert same_state(buffers(ours), buffers(theirs))


def test_one_step_of_eps_is_fgsm(tiny_network, batch):
    network = tiny_network().eval()
    images, labels = batch
    one_step = PGD(network, eps=EPS, alpha=EPS, steps=1, random_start=False)(images, labels)
    torch.testing.assert_close(
        one_step, torchattacks.FGSM(network, eps=EPS)(images, labels), rtol=0, atol=2 * ROUNDING
    )


def test_fgsm_from_a_random_point_is_stock_pgd_of_one_step(tiny_network, batch):
    network = tiny_network().eval()
    stock = torchattacks.PGD(network, eps=EPS, alpha=EPS, steps=1)
    expected = stock_adversarial(stock, *batch, training=False, seed=2)
    found = global_noise(lambda: PGD(network, eps=EPS, alpha=EPS, steps=1)(*batch), seed=2)
    assert torch.equal(found, expected)


def test_dropout_of_a_train_mode_attack_is_stocks_too(tiny_network, batch):
    ours, theirs = tiny_network(dropout=0.5), tiny_network(dropout=0.5)
    stock = torchattacks.PGD(theirs, eps=EPS, alpha=2 / 255, steps=3)
    expected = stock_adversarial(stock, *batch, training=True, seed=5)
    found = global_noise(lambda: PGD(ours, steps=3, training=True)(*batch), seed=5)
    assert torch.equal(found, expected)
    assert not torch.equal(found, global_noise(lambda: PGD(ours, steps=3, training=True)(*batch), seed=6))


def test_the_modes_differ(tiny_network, batch):
    """Otherwise equality in each would say little."""
    noise = PGD(tiny_network()).draw_noise((6, 3, 6, 6), generator=stream(0))
    eval_, train = (PGD(tiny_network(), training=t)(*batch, noise=noise) for t in (False, True))
    assert not torch.equal(eval_, train)


# ------------------------------------------------------------------------------------------- CW∞ and a loop


def cw_by_hand(network, image, y, start, *, eps, alpha, steps):
    """One image at a time: the margin of a Python loop, the ball and [0, 1] pixel by pixel."""
    clean, pixels = image.flatten().tolist(), start.flatten().tolist()
    for _ in range(steps):
        x = torch.tensor(pixels, dtype=torch.float64).reshape(image.shape).requires_grad_(True)
        logits = network(x[None])[0]
        row = logits.tolist()
        slope = [0.0] * x.numel()
        if margin(row, y) > 0:
            rival = max((k for k in range(len(row)) if k != y), key=row.__getitem__)
            (gradient,) = torch.autograd.grad(logits[y] - logits[rival], x)
            slope = gradient.flatten().tolist()
        for i, s in enumerate(slope):
            stepped = pixels[i] - alpha * ((s > 0) - (s < 0))
            stepped = clean[i] + max(-eps, min(eps, stepped - clean[i]))
            pixels[i] = max(0.0, min(1.0, stepped))
    return torch.tensor(pixels, dtype=torch.float64).reshape(image.shape)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("size", [1.0, 300.0])  # the second puts some images beyond the confidence of 50
def test_cw_inf_is_the_loop(tiny_network, batch, classes, size):
    network = tiny_network(classes).double().eval()
    with torch.no_grad():
        network[-1].weight.mul_(size)
    images, labels = batch[0].double(), batch[1] % classes
    attack = CWInf(network, eps=0.06, alpha=0.02, steps=6)
    noise = attack.draw_noise(tuple(images.shape), generator=stream(classes), dtype=torch.float64)
    found = attack(images, labels, noise=noise)
    start = (images + noise).clamp(0, 1)
    for i, y in enumerate(labels.tolist()):
        expected = cw_by_hand(network, images[i], y, start[i], eps=0.06, alpha=0.02, steps=6)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-12)


def test_cw_inf_leaves_an_image_beyond_its_confidence_where_it_started(tiny_network, batch):
    network = tiny_network(2).eval()
    with torch.no_grad():
        network[-1].weight.zero_()
        network[-1].bias.copy_(torch.tensor([100.0, 0.0]))
    images = batch[0]
    assert torch.equal(CWInf(network, random_start=False)(images, torch.ones(6).long()), images)


def test_cw_infs_defaults_are_the_papers(tiny_network):
    attack = CWInf(tiny_network())
    assert (attack.eps, attack.alpha, attack.steps, attack.random_start) == (8 / 255, 2 / 255, 30, True)
    training = PGD(tiny_network())
    assert (training.eps, training.alpha, training.steps, training.random_start) == (
        8 / 255,
        2 / 255,
        10,
        True,
    )


# ---------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=25)
@given(
    eps=st.floats(0, 0.6),
    alpha=st.floats(0, 0.6),
    steps=st.integers(1, 4),
    training=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_adversarial_images_stay_in_the_ball_and_among_pixels(
    tiny_network, kind, eps, alpha, steps, training, seed
):
    generator = stream(seed)
    images = torch.rand(3, 3, 6, 6, generator=generator)
    attack = kind(tiny_network(), eps=eps, alpha=alpha, steps=steps, training=training)
    noise = attack.draw_noise(tuple(images.shape), generator=generator)
    adversarial = attack(images, torch.tensor([0, 1, 2]), noise=noise)
    assert (adversarial - images).abs().max() <= eps + ROUNDING
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("training", [False, True])
def test_inputs_are_left_alone_and_the_result_carries_no_graph(tiny_network, batch, kind, training):
    images, labels = batch[0].clone(), batch[1].clone()
    adversarial = kind(tiny_network(), steps=2, training=training)(images, labels)
    assert torch.equal(images, batch[0])
    assert torch.equal(labels, batch[1])
    assert not images.requires_grad
    assert not adversarial.requires_grad
    assert adversarial.shape == images.shape
    assert adversarial.dtype == images.dtype


def test_images_that_ask_for_a_gradient_are_no_trouble(tiny_network, batch):
    images = batch[0].clone().requires_grad_(True)
    for kind in ALL:
        assert not kind(tiny_network(), steps=1)(images, batch[1]).requires_grad
    assert images.grad is None


@pytest.mark.parametrize("kind", ALL)
def test_attacks_work_where_gradients_are_switched_off(tiny_network, batch, kind):
    network = tiny_network().eval()
    noise = 0.01 * torch.ones_like(batch[0])
    with torch.no_grad():
        found = kind(network, steps=2)(*batch, noise=noise)
    assert torch.equal(found, kind(network, steps=2)(*batch, noise=noise))


@pytest.mark.parametrize("kind", ALL)
def test_each_attack_raises_its_own_loss(tiny_network, batch, kind):
    network = tiny_network().eval()
    images, labels = batch
    clean = network(images).detach()

    def loss(adversarial):
        logits = network(adversarial)
        if kind in (PGD, MARTPGD):
            return F.cross_entropy(logits, labels, reduction="none")
        if kind is CWInf:
            return torch.tensor(
                [-margin(z, y) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
            )
        away_from = {TRADESPGD: clean, AdaAD: guide()(adversarial)}.get(kind, guide()(images))
        return F.kl_div(logits.log_softmax(1), away_from.softmax(1), reduction="none").sum(1)

    attack = kind(network)
    noise = attack.draw_noise(tuple(images.shape), generator=stream(1))
    start = (images + noise).clamp(0, 1)
    assert (loss(attack(images, labels, noise=noise)) > loss(start)).all()


def test_tradespgd_reads_no_labels(tiny_network, batch):
    attack = TRADESPGD(tiny_network(), steps=3)
    noise = attack.draw_noise((6, 3, 6, 6), generator=stream(0))
    without = attack(batch[0], noise=noise)
    assert torch.equal(attack(batch[0], batch[1], noise=noise), without)
    assert torch.equal(attack(batch[0], batch[1].flip(0), noise=noise), without)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("scale", [2.0**14, 2.0**-10])
def test_a_power_of_two_before_the_loss_changes_nothing(tiny_network, batch, kind, scale):
    noise = 0.02 * torch.rand(batch[0].shape, generator=stream(0))
    plain, scaled = (
        kind(tiny_network(), steps=4, training=True, loss_scale=s)(*batch, noise=noise) for s in (1.0, scale)
    )
    assert torch.equal(plain, scaled)


def test_a_scaled_loss_survives_fp16_where_a_plain_one_underflows(batch):
    """Why `loss_scale` exists: a gradient below fp16's smallest number has sign 0 and the attack stands still."""

    class Faint(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3 * 36, 2).half())

        def forward(self, images):
            sides = torch.tensor([1e-4, -1e-4]).half()
            return (images.half().flatten(1) @ (self.weight * sides)).float()

    images, labels = batch[0], torch.zeros(6).long()
    faint, strong = (PGD(Faint(), steps=1, random_start=False, loss_scale=s) for s in (1e-3, 2.0**14))
    assert torch.equal(faint(images, labels), images)
    assert (strong(images, labels) < images)[2:].all()
    # and where a scale does not save them, it is noticed
    assert faint.stuck.tolist() == [1.0] * 6
    assert strong.stuck.tolist() == [0.0] * 6


def test_the_share_of_steps_without_a_gradient_is_by_image(batch):
    """A network that looks at no pixel of dark images from the second step on."""

    class Sleepy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.rand(3 * 36, 2)), 0

        def forward(self, images):
            self.calls += 1
            awake = torch.ones(len(images)) if self.calls == 1 else torch.tensor([1.0, 0, 1, 1, 0, 1])
            return awake[:, None] * (images.flatten(1) @ self.weight)

    attack = PGD(Sleepy(), steps=4, loss_scale=2.0)
    attack(batch[0], torch.zeros(6).long())
    assert attack.stuck.tolist() == [0, 0.75, 0, 0, 0.75, 0]
    plain = PGD(Sleepy(), steps=4)
    plain(batch[0], torch.zeros(6).long())
    assert plain.stuck is None  # not looked for where nothing can underflow


# ------------------------------------------------------------------------------------ nothing left behind


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=15)
@given(pattern=st.lists(st.booleans(), min_size=11, max_size=11), training=st.booleans(), fails=st.booleans())
def test_every_submodule_keeps_its_mode(tiny_network, batch, kind, pattern, training, fails):
    network = tiny_network()
    for module, mode in zip(network.modules(), pattern, strict=True):
        module.training = mode
    seen = []
    network.register_forward_hook(lambda module, *_: seen.append({m.training for m in module.modules()}))

    def fail(*_):
        raise RuntimeError("in the forward")

    if fails:
        network.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the forward"):
            kind(network, steps=1, training=training)(*batch)
    else:
        kind(network, steps=1, training=training)(*batch)
    assert set().union(*seen) == {training}
    assert [module.training for module in network.modules()] == pattern


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("training", [False, True])
def test_batchnorm_frozen_inside_a_training_network_is_frozen_afterwards(tiny_network, batch, kind, training):
    network = tiny_network().train()
    network[1].eval()
    kind(network, steps=2, training=training)(*batch)
    assert network.training
    assert network[3][1].training
    assert not network[1].training


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("training", [False, True])
def test_parameters_and_their_gradients_are_untouched(tiny_network, batch, kind, training):
    network = tiny_network()
    first, *others = network.parameters()
    first.grad = torch.full_like(first, 3.0)
    others[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    kind(network, steps=2, training=training)(*batch)
    assert torch.equal(first.grad, torch.full_like(first, 3.0))
    assert all(parameter.grad is None for parameter in others)
    assert [parameter.requires_grad for parameter in others] == [False] + [True] * (len(others) - 1)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(("kind", "extra"), [(kind, int(kind is TRADESPGD)) for kind in ALL])
def test_batchnorm_statistics_move_in_train_mode_only(tiny_network, batch, kind, extra):
    network = tiny_network().train()
    before = buffers(network)
    kind(network, steps=4, training=False)(*batch)
    assert same_state(before, buffers(network))
    kind(network, steps=4, training=True)(*batch)
    after = buffers(network)
    assert after["1.num_batches_tracked"] == 4 + extra  # TRADES looks at the natural images first
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])


def test_the_network_is_run_once_a_step(tiny_network, batch):
    for kind, extra in [(kind, int(kind is TRADESPGD)) for kind in ALL]:
        network, runs = tiny_network(), []
        network.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        kind(network, steps=7)(*batch)
        assert len(runs) == 7 + extra


def test_adr_s_attack_climbs_the_cross_entropy_with_probabilities(tiny_network, batch):
    """Against a loop over steps: uniform start, gradient's sign, ball and pixels, in train mode."""
    ours, slow = tiny_network().train(), tiny_network().train()
    images = batch[0]
    target = torch.randn(len(images), 10, generator=stream(2))
    attack = attacks.ADRPGD(ours, eps=0.05, alpha=0.02, steps=3, training=True)
    noise = attack.draw_noise(tuple(images.shape), generator=stream(1))
    found = attack(images, noise=noise, target=target)
    adv = (images + noise).clamp(0, 1)
    for _ in range(3):
        adv = adv.detach().requires_grad_()
        loss = -(target.softmax(1) * slow(adv).log_softmax(1)).sum()
        (gradient,) = torch.autograd.grad(loss, adv)
        adv = (adv + 0.02 * gradient.sign()).clamp(images - 0.05, images + 0.05).clamp(0, 1)
    torch.testing.assert_close(found, adv)
    assert 0.02 < noise.abs().max() <= 0.05
    assert same_state(buffers(ours), buffers(slow))


def slopes(name, student, teacher, labels):
    """The gradients of an image's loss in the logits of student and teacher, written down; None for no gradient."""
    q, p = student.softmax(1), teacher.softmax(1)
    if name == "mart":
        return q - F.one_hot(labels, q.shape[1]), None
    apart = p.log() - q.log()
    return q - p, p * (apart - (p * apart).sum(1, keepdim=True)) if name == "adaad" else None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["mart", "rslad", "adaad"])
def test_later_attacks_are_their_loops(tiny_network, batch, name, training):
    """Step by step from a given start: the gradient of the logits by hand, then its sign, the ball and pixels."""
    ours, slow = (tiny_network().double().train() for _ in range(2))
    teacher = tiny_network(seed=7).double().eval().requires_grad_(False)
    images, labels = batch[0].double(), batch[1]
    settings_ = {"eps": 0.05, "alpha": 0.02, "steps": 4, "training": training}
    attack = attacks.build(name, ours, teacher=teacher, **settings_)
    noise = 0.04 * torch.randn(images.shape, generator=stream(3), dtype=torch.float64)
    target = [teacher(images)] if name == "rslad" else []
    found = attack(images, labels, noise, *target)
    slow.train(training)
    adv = (images + noise).clamp(0, 1)
    for _ in range(4):
        adv = adv.detach().requires_grad_()
        said = slow(adv), teacher(images if name == "rslad" else adv)
        by_student, by_teacher = slopes(name, *(z.detach() for z in said), labels)
        (gradient,) = torch.autograd.grad(said[0], adv, by_student, retain_graph=True)
        if by_teacher is not None:
            gradient = gradient + torch.autograd.grad(said[1], adv, by_teacher)[0]
        adv = (adv + 0.02 * gradient.sign()).clamp(images - 0.05, images + 0.05).clamp(0, 1)
    torch.testing.assert_close(found, adv.detach())
    assert same_state(buffers(ours), buffers(slow))


@settings(max_examples=15)
@given(pattern=st.lists(st.booleans(), min_size=11, max_size=11), fails=st.booleans())
def test_a_teacher_that_is_gone_through_is_asked_in_eval_mode_and_left_as_it_was(
    tiny_network, batch, pattern, fails
):
    teacher, seen = tiny_network(seed=7), []
    for module, mode in zip(teacher.modules(), pattern, strict=True):
        module.training = mode
    first, *others = teacher.parameters()
    first.requires_grad_(False)
    before = buffers(teacher)
    teacher.register_forward_hook(lambda module, *_: seen.append({m.training for m in module.modules()}))

    def fail(*_):
        raise RuntimeError("in the forward")

    attack = attacks.AdaADPGD(tiny_network(), teacher=teacher, steps=2, training=True)
    if fails:
        teacher.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the forward"):
            attack(*batch)
    else:
        attack(*batch)
    assert set().union(*seen) == {False}
    assert [module.training for module in teacher.modules()] == pattern
    assert [p.requires_grad for p in (first, *others)] == [False] + [True] * len(others)
    assert all(p.grad is None for p in teacher.parameters())
    assert same_state(before, buffers(teacher))


@pytest.mark.parametrize(
    ("kind", "said"), [(attacks.RSLADPGD, "teacher_nat"), (attacks.ADRPGD, "average_nat")]
)
def test_an_attack_away_from_a_pass_asks_for_it(tiny_network, batch, kind, said):
    with pytest.raises(ValueError, match=f"give it the logits of {said} as target="):
        kind(tiny_network())(*batch)


# ---------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("kind", ALL)
def test_noise_is_a_function_of_its_generator(tiny_network, kind):
    attack = kind(tiny_network())
    shape = (5, 3, 6, 6)
    state = torch.get_rng_state()
    first = attack.draw_noise(shape, generator=stream(1, "start"))
    assert first.shape == shape
    assert torch.equal(first, attack.draw_noise(shape, generator=stream(1, "start")))
    assert not torch.equal(first, attack.draw_noise(shape, generator=stream(2, "start")))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pgds_noise_fills_the_ball_evenly(tiny_network, dtype):
    noise = PGD(tiny_network(), eps=0.2).draw_noise((100, 3, 32, 32), generator=stream(0), dtype=dtype)
    assert noise.dtype == dtype
    assert noise.abs().max() <= 0.2
    counts = torch.histc(noise.float(), bins=10, min=-0.2, max=0.2) / noise.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), rtol=0, atol=0.005)


@pytest.mark.parametrize("kind", [TRADESPGD, MARTPGD, RSLAD, AdaAD])
def test_tradess_noise_is_normal_and_small(tiny_network, kind):
    noise = kind(tiny_network()).draw_noise((100, 3, 32, 32), generator=stream(0))
    assert noise.mean().abs() < 1e-5
    assert noise.std().item() == pytest.approx(0.001, rel=0.01)


def test_without_a_random_start_there_is_no_noise(tiny_network, batch):
    attack = PGD(tiny_network(), random_start=False, steps=1)
    assert attack.draw_noise((2, 3, 6, 6), generator=stream(0)) is None
    assert torch.equal(attack(*batch), attack(*batch))


@pytest.mark.parametrize("kind", ALL)
def test_a_start_is_clipped_to_the_pixels_before_the_first_gradient(tiny_network, batch, kind):
    network, seen = tiny_network(), []
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    kind(network, steps=1)(*batch, noise=torch.full_like(batch[0], 0.3))
    assert torch.equal(seen[-1], (batch[0] + 0.3).clamp(0, 1))


# --------------------------------------------------------------------------------------------- being built


def test_build_finds_attacks_by_name(tiny_network):
    network = tiny_network()
    built = attacks.build("pgd", network, eps=0.1, alpha=0.02, steps=3, training=True, loss_scale=4.0)
    assert type(built) is PGD
    assert (built.eps, built.alpha, built.steps, built.training, built.loss_scale) == (
        0.1,
        0.02,
        3,
        True,
        4.0,
    )
    assert type(attacks.build("trades", network)) is TRADESPGD
    assert not attacks.build("trades", network).training
    with pytest.raises(ValueError, match="unknown training attack 'pdg'; did you mean 'pgd'"):
        attacks.build("pdg", network)
    with pytest.raises(TypeError, match="stepss"):
        attacks.build("pgd", network, stepss=3)


def test_a_repr_states_the_settings(tiny_network):
    network = tiny_network()
    assert repr(PGD(network, steps=3)) == (
        "PGD(eps=0.0313725, alpha=0.00784314, steps=3, random_start=True, training=False, loss_scale=1)"
    )
    assert repr(TRADESPGD(network, training=True)) == (
        "TRADESPGD(eps=0.0313725, alpha=0.00784314, steps=10, training=True, loss_scale=1)"
    )


@pytest.mark.parametrize("kind", ALL)
def test_attacks_are_untargeted(tiny_network, kind):
    with pytest.raises(ValueError, match=r"(?i)target"):
        kind(tiny_network()).set_mode_targeted_random()


def test_a_copy_attacks_another_network(tiny_network, batch):
    """As the ART trainer does with a user's attack: the original goes on with its own."""
    one, other = tiny_network(seed=1).eval(), tiny_network(seed=2).eval()
    noise = torch.zeros_like(batch[0])
    attack = PGD(one, steps=2)
    before = attack(*batch, noise=noise)
    moved = copy.copy(attack)
    moved.set_model(other)
    assert torch.equal(moved(*batch, noise=noise), PGD(other, steps=2)(*batch, noise=noise))
    assert torch.equal(attack(*batch, noise=noise), before)


# ------------------------------------------------------------------------------------------- L2


L2 = {"eps": 0.5, "alpha": 0.1, "steps": 6}


def test_l2_pgd_is_stock_pgdl2_to_rounding(tiny_network, batch):
    network = tiny_network().eval()
    stock = torchattacks.PGDL2(network, **L2)
    expected = stock_adversarial(stock, *batch, training=False, seed=5)
    attack = attacks.PGDL2(network, **L2)
    noise = global_noise(lambda: attack.draw_noise(tuple(batch[0].shape)), 5)
    assert torch.allclose(attack(*batch, noise), expected, atol=1e-5)


def test_l2_pgd_of_one_image_is_stock_pgdl2_to_the_bit(tiny_network, batch):
    network, images, labels = tiny_network().eval(), batch[0][4:5], batch[1][4:5]
    expected = stock_adversarial(torchattacks.PGDL2(network, **L2), images, labels, training=False, seed=2)
    attack = attacks.PGDL2(network, **L2)
    noise = global_noise(lambda: attack.draw_noise(tuple(images.shape)), 2)
    assert torch.equal(attack(images, labels, noise), expected)


def test_l2_pgd_stays_in_its_ball_climbs_and_does_not_depend_on_the_batch(tiny_network, batch):
    network, (images, labels) = tiny_network().double().eval(), batch
    images = images.double()
    attack = attacks.PGDL2(network, **L2)
    noise = attack.draw_noise(tuple(images.shape), generator=stream("l2"), dtype=torch.float64)
    assert float(noise.flatten(1).norm(dim=1).max()) <= 0.5
    adv = attack(images, labels, noise)
    assert float((adv - images).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-9
    assert 0 <= float(adv.min()) <= float(adv.max()) <= 1
    losses = [torch.nn.functional.cross_entropy(network(x), labels) for x in (images, adv)]
    assert losses[1] > losses[0]
    alone = torch.cat(
        [attack(images[k : k + 1], labels[k : k + 1], noise[k : k + 1]) for k in range(len(images))]
    )
    assert torch.allclose(alone, adv, atol=1e-12)


def test_l2_pgd_refuses_what_is_no_radius(tiny_network, unchecked):
    for eps in (0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="eps, an L2 radius"):
            attacks.PGDL2(tiny_network(), eps=eps, alpha=0.1)
    assert "eps=3" in repr(attacks.PGDL2(tiny_network(), eps=3.0, alpha=0.1))
    assert (
        attacks.PGDL2(tiny_network(), eps=1.0, alpha=0.1, random_start=False).draw_noise((1, 3, 6, 6)) is None
    )
