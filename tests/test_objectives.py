"""Objectives: the paper's laws, the passes they read, every row against a loop, and the errors."""

import inspect
import itertools
import math
from dataclasses import replace

import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iad_ext import Outputs, introspect, objectives, terms
from iad_ext.objectives import PASSES, ROWS, as_objective, build
from iad_ext.reliability import trust

AFTER = 199  # an epoch after every warm-up
NAMES = sorted(ROWS)
INTROSPECTIVE = ("iad1", "iad1_down", "iad2", "adaiad", "iad_rslad", "iad_mtard")
BASES = {
    "at": objectives.at(),
    "trades": objectives.trades(tau=2.0),
    "ard": objectives.ard(tau=3.0, label_weight=0.3),
    "ard_goldblum": objectives.ard_goldblum(label_weight=0.2),
    "akd2": objectives.akd2(tau=2.0),
    "akd2_chen": objectives.akd2_chen(),
    "rslad": objectives.rslad(tau=2.0),
    "adaad": objectives.adaad(adv_weight=0.8),
    "mtard": objectives.mtard(tau=2.0),
    "mart": objectives.mart(),
}
WITH_TEACHER = [name for name in BASES if name not in ("at", "trades", "mart")]


def random_batch(seed=0, *, n=4, classes=5, scale=3.0, dtype=torch.float64, whole=False):
    """Logits of all passes, each a leaf that asks for its gradient, and labels."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * (2 * torch.rand(len(PASSES), n, classes, generator=generator, dtype=dtype) - 1)
    drawn = drawn.round() if whole else drawn
    logits = {name: z.clone().requires_grad_(True) for name, z in zip(PASSES, drawn, strict=True)}
    return Outputs(**logits), torch.randint(classes, (n,), generator=generator)


def gradients(loss, outputs):
    """Gradient of the total with respect to every pass; zeros where it does not depend on one."""
    logits = [getattr(outputs, name) for name in PASSES]
    found = torch.autograd.grad(loss.total, logits, allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(z) if g is None else g
        for name, z, g in zip(PASSES, logits, found, strict=True)
    }


def only(outputs, passes):
    return Outputs(**{name: getattr(outputs, name) for name in passes})


def assert_same(one, other, outputs, *, names=None):
    """Equal to the last bit: values, terms and gradients. `names` renames terms of `other`."""
    assert torch.equal(one.per_image, other.per_image)
    assert torch.equal(one.total, other.total)
    assert list(one.terms) == list(other.terms)
    for name in one.terms:
        assert torch.equal(one.terms[name], other.terms[name])
    ours, theirs = gradients(one, outputs), gradients(other, outputs)
    for name in PASSES:
        assert torch.equal(ours[name], theirs[name]), name


# ------------------------------------------------------------------------------------------------ laws


@pytest.mark.parametrize(
    ("name", "gate", "detach"),
    [
        (name, gate, d)
        for name in BASES
        for gate in (False, True)[: 1 + (name in WITH_TEACHER)]
        for d in (0, 1)
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_0_gives_back_the_base_exactly(name, gate, detach, dtype):
    outputs, labels = random_batch(scale=20.0, dtype=dtype)
    base = BASES[name]
    wrapped = introspect(base, beta=0, gate_teacher=gate, detach_target=bool(detach))
    loss, expected = (o(outputs, labels, epoch=0) for o in (wrapped, base))
    assert torch.equal(loss.trust, torch.ones_like(loss.per_image))
    assert torch.equal(loss.per_image, expected.per_image)
    assert torch.equal(loss.total, expected.total)
    ours, theirs = gradients(loss, outputs), gradients(expected, outputs)
    for p in PASSES:
        assert torch.equal(ours[p], theirs[p]), p


@pytest.mark.parametrize(("iad", "base"), [("iad1", "ard"), ("iad1_down", "ard"), ("iad2", "akd2")])
def test_beta_0_turns_iad_into_the_row_it_wraps(iad, base):
    outputs, labels = random_batch()
    loss = build(iad, beta=0, warmup_epochs=0)(outputs, labels, epoch=0)
    assert torch.equal(loss.per_image, build(base)(outputs, labels, epoch=0).per_image)
    assert not loss.terms["self"].any()


@pytest.mark.parametrize("gamma", ["1-alpha", 2.0, {0: 1.5}, lambda epoch: 1.0 + epoch])
@pytest.mark.parametrize("name", BASES)
def test_warmup_is_the_base_exactly_passes_included(name, gamma):
    outputs, labels = random_batch()
    base = BASES[name]
    wrapped = introspect(base, gamma=gamma, warmup_epochs=7, gate_teacher=name in WITH_TEACHER)
    for epoch in (0, 6):
        assert wrapped.needs(epoch=epoch) == base.needs(epoch=epoch)
        loss = wrapped(only(outputs, base.needs(epoch=epoch)), labels, epoch=epoch)
        assert_same(loss, base(outputs, labels, epoch=epoch), outputs)
    assert wrapped.needs(epoch=7) >= base.needs(epoch=7) | {"student_nat", "student_adv"}
    after = wrapped(outputs, labels, epoch=7)
    assert not torch.equal(after.per_image, base(outputs, labels, epoch=7).per_image)
    assert len(after.terms) == len(base.terms) + 1


@pytest.mark.parametrize("name", INTROSPECTIVE)
def test_trust_is_ones_in_warmup_and_alpha_afterwards(name):
    outputs, labels = random_batch()
    objective = build(name, beta=0.3, warmup_epochs=5)
    assert torch.equal(objective(outputs, labels, epoch=4).trust, torch.ones(4).double())
    alpha = objective(outputs, labels, epoch=5).trust
    assert torch.equal(alpha, trust(outputs.teacher_adv, labels, beta=0.3))
    assert ((alpha > 0) & (alpha < 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_teacher_to_weigh_have_no_trust(name):
    outputs, labels = random_batch()
    has_trust = name in (*INTROSPECTIVE, "akd2_down")
    assert (build(name)(outputs, labels, epoch=AFTER).trust is not None) == has_trust


def test_a_constant_gamma_without_a_gate_has_no_trust_either():
    outputs, labels = random_batch()
    objective = objectives.iad1(gamma=1.0)
    assert objective.needs(epoch=AFTER) == {"student_nat", "student_adv", "teacher_nat"}
    for epoch in (0, AFTER):
        assert objective(outputs, labels, epoch=epoch).trust is None


@pytest.mark.parametrize("name", [*INTROSPECTIVE, "akd2_down"])
def test_trust_carries_no_gradient(name):
    """α is a number: T_at(x̃) gets a gradient from the divergence it is the target of, and none through α."""
    outputs, labels = random_batch()
    objective = build(name, beta=1.0)
    loss = objective(outputs, labels, epoch=AFTER)
    assert not loss.trust.requires_grad
    if name in ("iad1", "iad1_down", "iad_rslad"):  # T_at(x̃) serves for α alone
        assert not gradients(loss, outputs)["teacher_adv"].any()
    else:
        base = {"adaiad": objectives.adaad(), "iad_mtard": objectives.mtard()}.get(name, objectives.akd2())
        by_target = gradients(base(outputs, labels, epoch=0), outputs)["teacher_adv"]
        found = gradients(loss, outputs)["teacher_adv"]
        gate = loss.trust[:, None] if name != "adaiad" else 1.0
        torch.testing.assert_close(found, gate * by_target)


@pytest.mark.parametrize("c", [0.5, 1.0, 4.0])
def test_a_constant_gamma_adds_its_share_of_kl_to_ard(c):
    outputs, labels = random_batch()
    base = objectives.ard(tau=3.0, label_weight=0.2)
    loss = objectives.iad1(gamma=c, tau=3.0, label_weight=0.2, warmup_epochs=0)(outputs, labels, epoch=0)
    own = terms.kl(student=outputs.student_adv, target=outputs.student_nat)
    expected = base(outputs, labels, epoch=0).per_image + c * (1 - 0.2) * own
    torch.testing.assert_close(loss.per_image, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("c", [0.5, 1.0, 4.0])
def test_a_constant_gamma_adds_its_share_of_kl_to_akd2_and_alpha_stays_on_the_teacher(c):
    outputs, labels = random_batch()
    base = objectives.akd2(tau=3.0, teacher_weight=0.7)(outputs, labels, epoch=0)
    loss = objectives.iad2(gamma=c, tau=3.0, teacher_weight=0.7, warmup_epochs=0)(outputs, labels, epoch=0)
    alpha = trust(outputs.teacher_adv, labels, beta=0.1)
    own = terms.kl(student=outputs.student_adv, target=outputs.student_nat)
    expected = (
        base.terms["label"]
        + alpha * base.terms["teacher"]
        + base.terms["natural_teacher"]
        + c * 0.7 * 9 * own
    )
    torch.testing.assert_close(loss.per_image, expected, rtol=1e-12, atol=0)
    assert torch.equal(loss.trust, alpha)


@pytest.mark.parametrize("name", ["iad1", "iad1_down", "iad2"])
def test_a_teacher_certain_of_y_leaves_nothing_to_introspect(name):
    outputs, labels = random_batch()
    certain = torch.full((4, 5), -1000.0).double().scatter(1, labels[:, None], 1000.0).requires_grad_(True)
    outputs = replace(outputs, teacher_adv=certain)
    base = {"iad2": objectives.akd2()}.get(name, objectives.ard())
    loss = build(name, warmup_epochs=0)(outputs, labels, epoch=0)
    expected = base(outputs, labels, epoch=0)
    assert torch.equal(loss.per_image, expected.per_image)
    ours, theirs = gradients(loss, outputs), gradients(expected, outputs)
    for p in PASSES:
        assert torch.equal(ours[p], theirs[p])


def test_iad1_leaves_its_teacher_alone_and_iad1_down_weighs_it():
    outputs, labels = random_batch()
    plain, down = (
        build(name, tau=2.0, warmup_epochs=0)(outputs, labels, epoch=0) for name in ("iad1", "iad1_down")
    )
    teacher = objectives.ard(tau=2.0)(outputs, labels, epoch=0).terms["teacher"]
    assert torch.equal(plain.terms["teacher"], teacher)
    assert torch.equal(down.terms["teacher"], down.trust * teacher)
    assert torch.equal(plain.terms["self"], down.terms["self"])
    gated = objectives.iad1(tau=2.0, warmup_epochs=0, gate_teacher=True)(outputs, labels, epoch=0)
    assert_same(down, gated, outputs)


def test_table_7_weighs_the_teacher_only_where_it_is_wrong():
    outputs, labels = random_batch(n=12, classes=3)
    right = outputs.teacher_adv.argmax(1) == labels
    assert right.any()
    assert not right.all()
    loss = objectives.akd2_down(beta=0.4)(outputs, labels, epoch=0)
    plain = objectives.akd2()(outputs, labels, epoch=0)
    alpha = trust(outputs.teacher_adv, labels, beta=0.4)
    assert torch.equal(loss.trust, torch.where(right, torch.ones_like(alpha), alpha))
    assert torch.equal(loss.terms["teacher"], loss.trust * plain.terms["teacher"])
    assert torch.equal(loss.per_image[right], plain.per_image[right])
    assert (loss.per_image[~right] < plain.per_image[~right]).all()
    same = objectives.akd2_down(beta=0)(outputs, labels, epoch=0)
    assert_same(same, plain, outputs)


@pytest.mark.parametrize("name", ["trades", *INTROSPECTIVE])
def test_detach_target_stops_the_gradient_through_natural_predictions_only(name):
    outputs, labels = random_batch()
    open_, detached = (
        build(name, detach_target=detach)(outputs, labels, epoch=AFTER) for detach in (False, True)
    )
    assert torch.equal(open_.per_image, detached.per_image)
    before, after = gradients(open_, outputs), gradients(detached, outputs)
    for p in set(PASSES) - {"student_nat"}:
        assert torch.equal(before[p], after[p])
    # what is left is the gradient of the terms that read S(x) otherwise
    without = torch.zeros_like(outputs.student_nat)
    if name in ("trades", "iad_rslad", "iad_mtard"):
        alone = build(name, weights={"self": 0})(outputs, labels, epoch=AFTER)
        without = gradients(alone, outputs)["student_nat"]
    torch.testing.assert_close(after["student_nat"], without, rtol=1e-12, atol=0)
    assert not torch.allclose(before["student_nat"], without)


def test_tau_squared_stands_before_iad1s_teacher_term_only():
    outputs, labels = random_batch()
    one, three = (objectives.iad1(tau=tau, warmup_epochs=0)(outputs, labels, epoch=0) for tau in (1.0, 3.0))
    assert torch.equal(one.terms["self"], three.terms["self"])
    divergence = terms.kl(student=outputs.student_adv, target=outputs.teacher_nat, temperature=3.0)
    torch.testing.assert_close(three.terms["teacher"], 9 * divergence)


def test_tau_squared_stands_before_both_terms_of_iad2s_group():
    outputs, labels = random_batch()
    one, three = (objectives.iad2(tau=tau, warmup_epochs=0)(outputs, labels, epoch=0) for tau in (1.0, 3.0))
    torch.testing.assert_close(three.terms["self"], 9 * one.terms["self"])
    adv, nat = (
        terms.kl(student=outputs.student_adv, target=target, temperature=3.0)
        for target in (outputs.teacher_adv, outputs.natural_teacher_adv)
    )
    torch.testing.assert_close(three.terms["teacher"], 0.5 * 9 * three.trust * adv)
    torch.testing.assert_close(three.terms["natural_teacher"], 0.25 * 9 * nat)
    assert torch.equal(one.terms["label"], three.terms["label"])


@pytest.mark.parametrize(("name", "scale"), [("iad1", 1.0), ("iad2", 4.0)])
def test_introspection_has_a_temperature_of_its_own(name, scale):
    outputs, labels = random_batch()
    objective = build(name, tau=2.0, introspection_tau=5.0, gamma=1.0, warmup_epochs=0)
    loss = objective(outputs, labels, epoch=0)
    divergence = terms.kl(student=outputs.student_adv, target=outputs.student_nat, temperature=5.0)
    weight = 0.5 if name == "iad2" else 1.0
    torch.testing.assert_close(loss.terms["self"], weight * scale * divergence)
    plain = build(name, tau=2.0, gamma=1.0, warmup_epochs=0)(outputs, labels, epoch=0)
    assert torch.equal(plain.terms["teacher"], loss.terms["teacher"])


@pytest.mark.parametrize("name", NAMES)
def test_terms_sum_to_the_image_and_images_average_to_the_total(name):
    outputs, labels = random_batch(n=5)
    loss = build(name)(outputs, labels, epoch=AFTER)
    assert all(values.shape == (5,) for values in (*loss.terms.values(), loss.per_image))
    torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(0), loss.per_image)
    assert loss.total.shape == ()
    torch.testing.assert_close(loss.total, loss.per_image.sum() / 5)


@pytest.mark.parametrize("name", NAMES)
def test_dead_classes_change_nothing_but_goldblums_class_mean(name):
    """The reduction sums over classes: what a network can never predict has no say in the loss."""
    outputs, labels = random_batch(n=3, classes=4)
    dead = torch.full((3, 12), -1e7, dtype=torch.float64)
    wider = Outputs(**{p: torch.cat([getattr(outputs, p), dead], dim=1) for p in PASSES})
    objective = build(name)
    loss, wide = (objective(z, labels, epoch=AFTER) for z in (outputs, wider))
    share = 4 / 16 if name == "ard_goldblum" else 1
    torch.testing.assert_close(wide.per_image, share * loss.per_image)


@pytest.mark.parametrize("gamma", ["1-alpha", 2.0, {0: 0.0, 3: 1.0}])
def test_iad1_is_introspect_around_ard(gamma):
    outputs, labels = random_batch()
    shared = {"beta": 0.2, "gamma": gamma, "introspection_tau": 2.0, "detach_target": True}
    for epoch in (0, 1, 2, 3):
        iad1 = objectives.iad1(tau=3.0, label_weight=0.1, warmup_epochs=2, **shared)
        wrapped = introspect(objectives.ard(tau=3.0, label_weight=0.1), warmup_epochs=2, **shared)
        assert iad1.needs(epoch=epoch) == wrapped.needs(epoch=epoch)
        assert_same(*(o(outputs, labels, epoch=epoch) for o in (iad1, wrapped)), outputs)


@pytest.mark.parametrize("gamma", ["1-alpha", 2.0, {0: 0.0, 3: 1.0}])
def test_iad2_is_introspect_around_akd2(gamma):
    outputs, labels = random_batch()
    shared = {"beta": 0.2, "gamma": gamma, "introspection_tau": 2.0, "gate_teacher": True}
    for epoch in (0, 1, 2, 3):
        iad2 = objectives.iad2(tau=3.0, label_weight=0.1, warmup_epochs=2, **shared)
        wrapped = introspect(objectives.akd2(tau=3.0, label_weight=0.1), warmup_epochs=2, **shared)
        assert iad2.needs(epoch=epoch) == wrapped.needs(epoch=epoch)
        assert_same(*(o(outputs, labels, epoch=epoch) for o in (iad2, wrapped)), outputs)


@pytest.mark.parametrize("name", BASES)
def test_introspect_adds_one_term_to_any_base(name):
    """AT, TRADES (whose own `self` keeps its name), ARD as Goldblum ran it: Eq. 3 around each."""
    outputs, labels = random_batch()
    base = BASES[name]
    wrapped = introspect(base, beta=0.5)
    loss, plain = (o(outputs, labels, epoch=0) for o in (wrapped, base))
    added = "introspection" if name in ("trades", "mart") else "self"
    assert list(loss.terms) == [*plain.terms, added]
    for term, values in plain.terms.items():
        assert torch.equal(loss.terms[term], values)
    weight = {"ard": 0.7, "ard_goldblum": 0.8, "akd2": 0.5 * 2**2, "akd2_chen": 0.6 * 2**2}
    weight |= {"rslad": 5 / 6, "adaad": 0.8, "mtard": 0.5 * 2**2}
    weight = weight.get(name, 1.0)
    divergence = terms.kl(student=outputs.student_adv, target=outputs.student_nat)
    alpha = trust(outputs.teacher_adv, labels, beta=0.5)
    torch.testing.assert_close(loss.terms[added], weight * (1 - alpha) * divergence)
    assert wrapped.needs(epoch=0) == base.needs(epoch=0) | {"student_nat", "student_adv", "teacher_adv"}
    assert (wrapped.attack, wrapped.attack_training) == (base.attack, base.attack_training)


def test_introspect_around_natural_training_brings_the_attack_that_it_then_needs():
    wrapped = introspect(objectives.st(), warmup_epochs=2)
    assert "student_adv" in wrapped.needs(epoch=2)
    assert wrapped.attack == "pgd"


@pytest.mark.parametrize("epoch", [0, 59, 60, 61, 89, 90, 200])
def test_a_gamma_schedule_holds_from_its_epochs_on(epoch):
    outputs, labels = random_batch()
    value = 0.0 if epoch < 60 else 1.5 if epoch < 90 else 0.25
    own = terms.kl(student=outputs.student_adv, target=outputs.student_nat)
    for gamma in ({90: 0.25, 0: 0.0, 60: 1.5}, lambda e: 0.0 if e < 60 else 1.5 if e < 90 else 0.25):
        objective = introspect(objectives.ard(), gamma=gamma)
        loss = objective(outputs, labels, epoch=epoch)
        if value == 0:
            assert "self" not in loss.terms
            assert objective.needs(epoch=epoch) == {"student_adv", "teacher_nat"}
        else:
            torch.testing.assert_close(loss.terms["self"], value * own)
            assert objective.needs(epoch=epoch) == {"student_adv", "teacher_nat", "student_nat"}
        assert loss.trust is None


def test_a_schedule_counts_from_the_start_of_the_run_and_not_from_warmups_end():
    outputs, labels = random_batch()
    objective = introspect(objectives.ard(), gamma={0: 1.0, 5: 3.0}, warmup_epochs=4)
    own = terms.kl(student=outputs.student_adv, target=outputs.student_nat)
    torch.testing.assert_close(objective(outputs, labels, epoch=4).terms["self"], own)
    torch.testing.assert_close(objective(outputs, labels, epoch=5).terms["self"], 3 * own)


TERMS = {
    "st": ["label"],
    "at": ["label"],
    "trades": ["label", "self"],
    "ard": ["label", "teacher"],
    "ard_goldblum": ["label", "teacher"],
    "akd2": ["label", "teacher", "natural_teacher"],
    "akd2_chen": ["label", "teacher", "natural_teacher"],
    "akd2_down": ["label", "teacher", "natural_teacher"],
    "iad1": ["label", "teacher", "self"],
    "iad1_down": ["label", "teacher", "self"],
    "iad2": ["label", "teacher", "natural_teacher", "self"],
    "rslad": ["teacher", "teacher_nat"],
    "adaad": ["teacher", "teacher_nat"],
    "mtard": ["teacher", "natural_teacher"],
    "mart": ["label", "self"],
    "adr": ["label"],
    "adaiad": ["teacher", "teacher_nat", "self"],
    "iad_rslad": ["teacher", "teacher_nat", "self"],
    "iad_mtard": ["teacher", "natural_teacher", "self"],
}


@pytest.mark.parametrize("name", NAMES)
def test_weights_replace_what_the_constructor_chose(name):
    outputs, labels = random_batch()
    ones = build(name, weights=dict.fromkeys(TERMS[name], 1.0))(outputs, labels, epoch=AFTER)
    assert list(ones.terms) == TERMS[name]
    chosen = {term: 2.0 + i for i, term in enumerate(TERMS[name])}
    loss = build(name, weights=chosen)(outputs, labels, epoch=AFTER)
    for term, weight in chosen.items():
        torch.testing.assert_close(loss.terms[term], weight * ones.terms[term], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "term"), [(n, t) for n in NAMES for t in TERMS[n] if len(TERMS[n]) > 1])
def test_weight_0_drops_a_term_and_the_passes_only_it_reads(name, term):
    outputs, labels = random_batch()
    full = dict.fromkeys(TERMS[name], 1.0)
    whole, less = build(name, weights=full), build(name, weights=full | {term: 0})
    assert less.needs(epoch=AFTER) == oracles.needs(name, AFTER, weights=full | {term: 0})
    loss = less(only(outputs, less.needs(epoch=AFTER)), labels, epoch=AFTER)
    kept = {n: v for n, v in whole(outputs, labels, epoch=AFTER).terms.items() if n != term}
    assert list(loss.terms) == list(kept)
    # one of two balanced teachers alone is not balanced: its weight is 1 and no longer 1/2
    alone = name in ("mtard", "iad_mtard") and term in ("teacher", "natural_teacher")
    for n, values in kept.items():
        double = alone and n in ("teacher", "natural_teacher")
        assert torch.equal(loss.terms[n], 2 * values if double else values)


def test_weights_reach_the_warmup_too():
    outputs, labels = random_batch()
    objective = objectives.iad2(weights={"natural_teacher": 0, "label": 3.0}, warmup_epochs=5)
    assert objective.needs(epoch=0) == {"student_adv", "teacher_adv"}
    base = objectives.akd2(weights={"natural_teacher": 0, "label": 3.0})
    assert_same(*(o(outputs, labels, epoch=0) for o in (objective, base)), outputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type_give_the_same_loss(name, dtype, unchecked):
    outputs, labels = random_batch()
    objective = build(name)
    assert_same(*(objective(outputs, y, epoch=AFTER) for y in (labels, labels.to(dtype))), outputs)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(name):
    outputs, labels = random_batch()
    before = {p: getattr(outputs, p).detach().clone() for p in PASSES}
    build(name)(outputs, labels, epoch=AFTER).total.backward()
    assert all(torch.equal(getattr(outputs, p), before[p]) for p in PASSES)


# ------------------------------------------------------------------------------------------ the paper's values


def test_the_defaults_are_the_papers():
    given_ = {name: dict(build(name).settings) for name in NAMES}
    iad = {"beta": 0.1, "gamma": "1-alpha", "tau": 1.0, "introspection_tau": 1.0, "detach_target": False}
    akd2 = {"tau": 1.0, "label_weight": 0.25, "teacher_weight": 0.5, "natural_teacher_weight": 0.25}
    assert given_ == {
        "st": {},
        "at": {},
        "trades": {"self_weight": 6.0, "tau": 1.0, "detach_target": False},
        "ard": {"tau": 1.0, "label_weight": 0.0},
        "ard_goldblum": {"tau": 30.0, "label_weight": 0.0},
        "akd2": akd2,
        "akd2_chen": {
            "tau": 2.0,
            "label_weight": 0.3,
            "teacher_weight": 0.6,
            "natural_teacher_weight": 0.1,
        },
        "akd2_down": {"beta": 0.1} | akd2,
        "iad1": iad | {"label_weight": 0.0, "gate_teacher": False, "warmup_epochs": 60},
        "iad1_down": iad | {"label_weight": 0.0, "warmup_epochs": 60},
        "iad2": iad | akd2 | {"gate_teacher": True, "warmup_epochs": 40},
        "rslad": {"tau": 1.0, "adv_weight": 5 / 6},
        "adaad": {"tau": 1.0, "adv_weight": 1.0},
        "mtard": {"tau": 1.0, "balance_rate": 0.025, "balance_power": 1.0},
        "mart": {"self_weight": 5.0},
        "adr": {
            "rectification": (0.7, 0.95),
            "temperatures": (2.5, 2.0),
            "average_decay": 0.995,
            "ramp_epochs": 200,
        },
        "adaiad": iad | {"adv_weight": 1.0, "gate_teacher": False, "warmup_epochs": 60},
        "iad_rslad": iad | {"adv_weight": 5 / 6, "gate_teacher": False, "warmup_epochs": 90},
        "iad_mtard": iad
        | {"balance_rate": 0.025, "balance_power": 1.0, "gate_teacher": True, "warmup_epochs": 90},
    }


def test_each_row_names_the_attack_of_its_source():
    assert {name: (build(name).attack, build(name).attack_training) for name in NAMES if name != "st"} == {
        "at": ("pgd", False),
        "trades": ("trades", False),
        "ard": ("pgd", True),
        "ard_goldblum": ("pgd", True),
        "akd2": ("pgd", True),
        "akd2_chen": ("pgd", True),
        "akd2_down": ("pgd", True),
        "iad1": ("pgd", True),
        "iad1_down": ("pgd", True),
        "iad2": ("pgd", True),
        "rslad": ("rslad", False),
        "adaad": ("adaad", False),
        "mtard": ("mart", False),
        "mart": ("mart", False),
        "adr": ("adr", True),
        "adaiad": ("adaad", False),
        "iad_rslad": ("rslad", False),
        "iad_mtard": ("mart", False),
    }
    assert objectives.st().attack == "none"


def test_formulas_read_as_the_paper_writes_them():
    assert objectives.iad1().formula == "KL(T_at(x) → S(x̃)) + (1 − α) · KL(S(x) → S(x̃))"
    assert objectives.ard(tau=2.0, label_weight=0.1).formula == (
        "0.1 · CE(S(x), y) + 0.9 · 4 · KL(T_at(x) → S(x̃); τ=2)"
    )
    assert objectives.iad2().formula == (
        "0.25 · CE(S(x̃), y) + 0.5 · α · KL(T_at(x̃) → S(x̃)) + 0.25 · KL(T_st(x̃) → S(x̃))"
        " + 0.5 · (1 − α) · KL(S(x) → S(x̃))"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_builds_the_objective_again(name):
    objective = build(name, weights={TERMS[name][0]: 0.5})
    again = eval(repr(objective), dict(ROWS))
    assert (again.settings, again.formula, again.name) == (objective.settings, objective.formula, name)


def test_as_objective_takes_names_and_finished_objectives():
    finished = objectives.ard()
    assert as_objective(finished) is finished
    assert as_objective("ard", tau=2.0).settings["tau"] == 2.0


# ---------------------------------------------------------------------------------------------- passes

WARM, PASSES_OF_IAD1 = 0, {"student_nat", "student_adv", "teacher_nat", "teacher_adv"}
PASSES_OF_AKD2 = {"student_adv", "teacher_adv", "natural_teacher_adv"}
PASSES_OF_MTARD = {"student_nat", "student_adv", "teacher_adv", "natural_teacher_nat"}
TABLE_1 = {  # row -> passes in warm-up, passes after it
    "st": ({"student_nat"}, {"student_nat"}),
    "at": ({"student_adv"}, {"student_adv"}),
    "trades": ({"student_nat", "student_adv"}, {"student_nat", "student_adv"}),
    "ard": ({"student_adv", "teacher_nat"}, {"student_adv", "teacher_nat"}),
    "ard_goldblum": ({"student_adv", "teacher_nat"}, {"student_adv", "teacher_nat"}),
    "akd2": (PASSES_OF_AKD2, PASSES_OF_AKD2),
    "akd2_chen": (PASSES_OF_AKD2, PASSES_OF_AKD2),
    "akd2_down": (PASSES_OF_AKD2, PASSES_OF_AKD2),
    "iad1": ({"student_adv", "teacher_nat"}, PASSES_OF_IAD1),
    "iad1_down": ({"student_adv", "teacher_nat"}, PASSES_OF_IAD1),
    "iad2": (PASSES_OF_AKD2, PASSES_OF_AKD2 | {"student_nat"}),
    "rslad": ({"student_nat", "student_adv", "teacher_nat"}, {"student_nat", "student_adv", "teacher_nat"}),
    "adaad": ({"student_adv", "teacher_adv"}, {"student_adv", "teacher_adv"}),
    "mtard": (PASSES_OF_MTARD, PASSES_OF_MTARD),
    "mart": ({"student_nat", "student_adv"}, {"student_nat", "student_adv"}),
    "adr": ({"student_adv", "average_nat"}, {"student_adv", "average_nat"}),
    "adaiad": ({"student_adv", "teacher_adv"}, {"student_nat", "student_adv", "teacher_adv"}),
    "iad_rslad": ({"student_nat", "student_adv", "teacher_nat"}, PASSES_OF_IAD1),
    "iad_mtard": (PASSES_OF_MTARD, PASSES_OF_MTARD),
}


def test_every_row_is_tested():
    assert set(TABLE_1) == set(TERMS) == set(oracles.ROWS) == set(ROWS) >= {"st", "at", "trades", "iad1"}


@pytest.mark.parametrize("name", NAMES)
def test_each_row_reads_the_passes_of_table_1(name):
    objective = build(name)
    in_warmup, after = TABLE_1[name]
    last = {"iad1": 59, "iad1_down": 59, "iad2": 39, "adaiad": 59, "iad_rslad": 89, "iad_mtard": 89}
    last = last.get(name, 0)
    assert objective.needs(epoch=0) == objective.needs(epoch=last) == in_warmup
    assert objective.needs(epoch=last + 1) == objective.needs(epoch=AFTER) == after


@pytest.mark.parametrize(("name", "in_warmup"), [("ard", True), ("iad1", True), ("iad1_down", True)])
def test_a_label_weight_brings_the_students_natural_pass(name, in_warmup):
    objective = build(name, label_weight=0.1)
    assert objective.needs(epoch=0) == TABLE_1[name][0] | {"student_nat"}
    assert objective.needs(epoch=AFTER) == TABLE_1[name][1] | {"student_nat"}


def test_a_label_weight_of_1_leaves_ard_and_iad1_nothing_but_labels():
    for name in ("ard", "iad1", "iad1_down"):
        assert build(name, label_weight=1.0).needs(epoch=AFTER) == {"student_nat"}


weight = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 3))
gammas = st.one_of(
    st.just("1-alpha"),
    weight,
    st.dictionaries(st.integers(1, 100), weight, max_size=3).flatmap(
        lambda d: weight.map(lambda v: {**d, 0: v})
    ),
    weight.map(lambda v: lambda epoch: v if epoch % 2 else 0.0),
)
ARGUMENTS = {
    "beta": st.one_of(st.just(0.0), st.floats(0.001, 2)),
    "gamma": gammas,
    "tau": st.floats(0.3, 30),
    "introspection_tau": st.floats(0.3, 30),
    "label_weight": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99)),
    "self_weight": weight,
    "teacher_weight": weight,
    "natural_teacher_weight": weight,
    "gate_teacher": st.booleans(),
    "detach_target": st.booleans(),
    "warmup_epochs": st.integers(0, 100),
    "adv_weight": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99)),
    "balance_rate": st.floats(0, 0.9),
    "balance_power": st.floats(0, 3),
    "rectification": st.tuples(st.floats(0, 1), st.floats(0, 1)),
    "temperatures": st.tuples(st.floats(0.3, 10), st.floats(0.3, 10)),
    "average_decay": st.floats(0, 1),
    "ramp_epochs": st.integers(1, 300),
}
epochs = st.integers(0, 200)


@st.composite
def some_settings(draw, name):
    """Some of the row's arguments, each drawn; a row's new argument without a strategy is an error here."""
    known = [argument for argument in inspect.signature(ROWS[name]).parameters if argument != "weights"]
    chosen = {argument: draw(ARGUMENTS[argument]) for argument in known if draw(st.booleans())}
    if draw(st.booleans()):
        chosen["weights"] = draw(st.dictionaries(st.sampled_from(TERMS[name]), weight))
    return chosen


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data(), epoch=epochs)
def test_an_objective_reads_exactly_what_it_asks_for(name, data, epoch):
    chosen = data.draw(some_settings(name))
    needed = oracles.needs(name, epoch, **chosen)
    assume(needed)
    objective = build(name, **chosen)
    assert objective.needs(epoch=epoch) == needed
    outputs, labels = random_batch(n=2, classes=3)
    exact = objective(only(outputs, needed), labels, epoch=epoch)
    assert_same(exact, objective(outputs, labels, epoch=epoch), outputs)
    for missing in needed:
        with pytest.raises(ValueError, match=f"reads {missing}, which is not among the outputs"):
            objective(only(outputs, needed - {missing}), labels, epoch=epoch)


# ---------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(
    data=st.data(),
    epoch=epochs,
    seed=st.integers(0, 2**32),
    n=st.integers(1, 5),
    classes=st.integers(2, 20),
    scale=st.sampled_from([0.01, 1.0, 10.0, 50.0]),
    whole=st.booleans(),
)
def test_every_term_and_gradient_is_the_loops(name, data, epoch, seed, n, classes, scale, whole):
    chosen = data.draw(some_settings(name))
    assume(oracles.needs(name, epoch, **chosen))
    outputs, labels = random_batch(seed, n=n, classes=classes, scale=scale, whole=whole)
    loss = build(name, **chosen)(outputs, labels, epoch=epoch)
    slow = oracles.objective(
        name, {p: getattr(outputs, p).tolist() for p in PASSES}, labels.tolist(), epoch, **chosen
    )
    for term, values in slow.terms.items():
        found = loss.terms[term].tolist() if term in loss.terms else [0.0] * n
        assert found == pytest.approx(values, rel=1e-8, abs=1e-10), term
    assert set(loss.terms) <= set(slow.terms)
    assert loss.total.item() == pytest.approx(slow.total, rel=1e-8, abs=1e-10)
    for p, gradient in gradients(loss, outputs).items():
        for image, expected in zip(gradient.tolist(), slow.gradients[p], strict=True):
            assert image == pytest.approx(expected, rel=1e-7, abs=1e-9), p


@pytest.mark.parametrize("name", NAMES)
def test_the_loops_gradients_are_those_of_its_values(name):
    """Central differences of the slow total, every logit of every pass."""
    outputs, labels = random_batch(n=2, classes=3)
    chosen = {} if "tau" not in inspect.signature(ROWS[name]).parameters else {"tau": 1.7}
    if name in INTROSPECTIVE:  # α is held fixed by β = 0, γ takes its place
        chosen |= {"introspection_tau": 0.6, "beta": 0.0, "gamma": 0.8}
    if name == "akd2_down":
        chosen |= {"beta": 0.0}
    batch = {p: getattr(outputs, p).tolist() for p in PASSES}
    slow = oracles.objective(name, batch, labels.tolist(), AFTER, **chosen)
    step = 1e-5
    numbers = {"adr": {"average_nat"}}.get(name, set())  # ADR's target is a number
    for p, i, k in itertools.product([p for p in PASSES if p not in numbers], range(2), range(3)):
        at = batch[p][i][k]
        moved = []
        for offset in (step, -step):
            batch[p][i][k] = at + offset
            moved.append(oracles.objective(name, batch, labels.tolist(), AFTER, **chosen).total)
        batch[p][i][k] = at
        assert slow.gradients[p][i][k] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), seed=st.integers(0, 2**32), n=st.integers(1, 5), classes=st.integers(2, 12))
@settings(max_examples=15)
def test_the_order_of_images_and_the_names_of_classes_do_not_matter(name, data, seed, n, classes):
    outputs, labels = random_batch(seed, n=n, classes=classes, scale=8.0)
    images = torch.tensor(data.draw(st.permutations(range(n))))
    names = torch.tensor(data.draw(st.permutations(range(classes))))
    objective = build(name, beta=0.5) if name in (*INTROSPECTIVE, "akd2_down") else build(name)
    loss = objective(outputs, labels, epoch=AFTER)
    shuffled = Outputs(**{p: getattr(outputs, p)[images][:, names] for p in PASSES})
    moved = objective(shuffled, names.argsort()[labels[images]], epoch=AFTER)
    torch.testing.assert_close(moved.per_image, loss.per_image[images], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved.total, loss.total, rtol=1e-9, atol=1e-11)
    if loss.trust is not None:
        torch.testing.assert_close(moved.trust, loss.trust[images], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [50.0, 1e4, 1e20])
def test_large_fp32_logits_give_finite_losses_and_gradients(name, scale):
    outputs, labels = random_batch(scale=scale, dtype=torch.float32)
    loss = build(name)(outputs, labels, epoch=AFTER)
    assert loss.total.dtype == torch.float32
    assert loss.per_image.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(loss, outputs).values())


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: build("iad_1"), ValueError, "unknown objective 'iad_1'; did you mean 'iad1'"),
        (lambda: build("tradse"), ValueError, "did you mean 'trades'"),
        (lambda: build("zzz"), ValueError, "unknown objective 'zzz'; known: adaad, "),
        (lambda: objectives.iad1(betta=1), TypeError, "argument of iad1 'betta'; did you mean 'beta'"),
        (lambda: build("iad2", warmup=3), TypeError, "did you mean 'warmup_epochs'"),
        (lambda: objectives.st(tau=1.0), TypeError, "argument of st 'tau'"),
        (lambda: objectives.ard(2.0), TypeError, "positional"),
        (lambda: objectives.iad1(weights={"teachr": 1}), TypeError, "'teachr'; did you mean 'teacher'"),
        (lambda: objectives.ard(weights={"teachr": 1}), TypeError, "'teachr'; did you mean 'teacher'"),
        (lambda: objectives.ard(weights={"self": 1}), TypeError, "known: label, teacher"),
        (lambda: objectives.ard(weights={"label": -1}), ValueError, r"weights\['label'\] must be at least 0"),
        (lambda: objectives.ard(weights={"label": math.nan}), ValueError, "finite number, got nan"),
        (lambda: objectives.ard(weights={"teacher": 0}), ValueError, "nothing is left to train on"),
        (lambda: objectives.iad1(beta=-0.1), ValueError, "beta must be at least 0, got -0.1"),
        (lambda: objectives.iad1(beta=math.nan), ValueError, "beta must be a finite number, got nan"),
        (lambda: objectives.iad1(beta="0.1"), ValueError, "beta must be a finite number, got '0.1'"),
        (lambda: objectives.iad1(beta=True), ValueError, "beta must be a finite number, got True"),
        (lambda: objectives.akd2_down(beta=-1), ValueError, "beta must be at least 0"),
        (lambda: objectives.ard(tau=0), ValueError, "tau must be above 0, got 0"),
        (lambda: objectives.akd2(tau=-2.0), ValueError, "tau must be above 0, got -2"),
        (lambda: objectives.trades(tau=math.inf), ValueError, "tau must be a finite number"),
        (lambda: objectives.trades(self_weight=-6), ValueError, "self_weight must be at least 0"),
        (lambda: objectives.iad2(introspection_tau=0), ValueError, "introspection_tau must be above 0"),
        (
            lambda: objectives.ard(label_weight=1.1),
            ValueError,
            "label_weight must be at least 0 and at most 1",
        ),
        (lambda: objectives.akd2(teacher_weight=-1), ValueError, "teacher_weight must be at least 0"),
        (lambda: objectives.iad1(gamma="1-a"), ValueError, "1-alpha.*got '1-a'"),
        (lambda: objectives.iad1(gamma=-1), ValueError, "gamma must be at least 0"),
        (lambda: objectives.iad1(gamma=math.nan), ValueError, "gamma must be a finite number"),
        (lambda: objectives.iad1(gamma=None), ValueError, "gamma must be a finite number, got None"),
        (lambda: objectives.iad1(gamma={}), ValueError, "add 0: value"),
        (lambda: objectives.iad1(gamma={60: 1.0}), ValueError, "from epoch 0 on.*add 0: value"),
        (lambda: objectives.iad1(gamma={0: 1, 60: -1}), ValueError, "gamma from epoch 60 must be at least 0"),
        (lambda: objectives.iad1(gamma={0: 1, -3: 1}), ValueError, "integer, got -3"),
        (lambda: objectives.iad1(gamma={0: 1, 1.5: 1}), ValueError, "integer, got 1.5"),
        (lambda: objectives.iad1(gamma={0: math.nan}), ValueError, "finite number, got nan"),
        (
            lambda: objectives.iad1(warmup_epochs=-1),
            ValueError,
            "warmup_epochs must be an integer ≥ 0, got -1",
        ),
        (lambda: objectives.iad1(warmup_epochs=2.0), ValueError, "warmup_epochs must be .* got 2.0"),
        (lambda: objectives.iad1(warmup_epochs=True), ValueError, "warmup_epochs must be .* got True"),
        (lambda: introspect(objectives.iad1()), ValueError, "iad1 is weighed by trust already"),
        (lambda: introspect(introspect(objectives.at())), ValueError, "already"),
        (lambda: introspect(objectives.akd2_down()), ValueError, "akd2_down is weighed by trust already"),
        (lambda: introspect(objectives.at(), gate_teacher=True), ValueError, "'teacher', which at lacks"),
        (lambda: introspect(objectives.trades(), gate_teacher=True), ValueError, "which trades lacks"),
        (lambda: as_objective(objectives.ard(), tau=2.0), TypeError, "tau"),
        (lambda: as_objective("ardd"), ValueError, "did you mean 'ard'"),
    ],
)
def test_wrong_settings_are_refused_with_the_way_out(wrong, error, said, unchecked):
    with pytest.raises(error, match=said):
        wrong()


@pytest.mark.parametrize("epoch", [-1, True, 1.0, None, "3", math.nan])
@pytest.mark.parametrize("name", ["st", "iad1"])
def test_an_epoch_is_an_integer_from_0_on(name, epoch, unchecked):
    outputs, labels = random_batch()
    with pytest.raises(ValueError, match="epoch counts from 0 as an integer"):
        build(name).needs(epoch=epoch)
    with pytest.raises(ValueError, match="epoch counts from 0 as an integer"):
        build(name)(outputs, labels, epoch=epoch)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_gamma_function_is_held_to_its_range_too(value):
    objective = introspect(objectives.ard(), gamma=lambda epoch: value if epoch else 1.0)
    assert "student_nat" in objective.needs(epoch=0)
    with pytest.raises(ValueError, match="gamma at epoch 1 must be"):
        objective.needs(epoch=1)


def test_a_teacher_of_other_classes_is_named(unchecked):
    outputs, labels = random_batch(classes=10)
    outputs = replace(outputs, teacher_nat=torch.zeros(4, 100).double())
    with pytest.raises(
        ValueError, match=r"number of classes: student_adv 10, teacher_nat 100; .*num_classes"
    ):
        objectives.ard()(outputs, labels, epoch=0)
    assert objectives.at()(outputs, labels, epoch=0).total.isfinite()  # nobody reads that teacher


def test_passes_of_different_batches_are_refused(unchecked):
    outputs, labels = random_batch()
    outputs = replace(outputs, student_nat=outputs.student_nat[:3])
    with pytest.raises(ValueError, match="passes differ in their batch"):
        objectives.trades()(outputs, labels, epoch=0)


@pytest.mark.parametrize("shape", [(4,), (4, 5, 1), ()])
def test_logits_are_images_by_classes(shape, unchecked):
    with pytest.raises(ValueError, match=r"logits must be \(batch, classes\)"):
        objectives.st()(Outputs(student_nat=torch.zeros(shape)), torch.zeros(4).long(), epoch=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: torch.nn.functional.one_hot(y, 5),
        lambda y: torch.nn.functional.one_hot(y, 5).float(),
        lambda y: y.double(),
        lambda y: y > 1,
        lambda y: y[:3],
        lambda y: y[:, None],
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_labels_are_integers_one_an_image(name, change, unchecked):
    outputs, labels = random_batch()
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(4,\).*argmax"):
        build(name)(outputs, change(labels), epoch=AFTER)


def test_nothing_to_train_on_at_an_epoch_is_an_error_that_names_it():
    outputs, labels = random_batch()
    alone = objectives.iad1(weights={"teacher": 0, "label": 0}, warmup_epochs=3)
    assert alone(outputs, labels, epoch=3).total > 0
    with pytest.raises(ValueError, match=r"ard: no term takes part at epoch 2; .*label, teacher"):
        alone(outputs, labels, epoch=2)
    scheduled = introspect(objectives.ard(), gamma={0: 0.0, 2: 1.0}, weights={"teacher": 0})
    with pytest.raises(ValueError, match="no term takes part at epoch 1"):
        scheduled(outputs, labels, epoch=1)


def test_new_rows_register_themselves_and_refuse_unknown_arguments(monkeypatch):
    monkeypatch.setitem(ROWS, "mine", None)  # and taken out again afterwards

    @objectives.row
    def mine(*, tau: float = 1.0) -> objectives.Objective:
        """AT under another name."""
        return objectives.at()

    outputs, labels = random_batch()
    assert build("mine", tau=2.0).name == "mine"
    assert_same(*(build(name)(outputs, labels, epoch=0) for name in ("mine", "at")), outputs)
    with pytest.raises(TypeError, match="argument of mine 'tua'; did you mean 'tau'"):
        build("mine", tua=2.0)


def test_a_name_of_the_package_cannot_be_taken():
    before = objectives.ROWS["ard"]

    def ard():
        return before()

    with pytest.raises(ValueError, match="iad_ext has an objective called ard; give yours another name"):
        objectives.row(ard)
    assert objectives.ROWS["ard"] is before
