"""Plug-ins against loops, their laws with any objective, MTARD's balance, and what is refused."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import random_batch

from iad_ext import Outputs, introspect, objectives, reliability, terms
from iad_ext.objectives import PASSES, PLUGINS, ROWS, build, plugins

AFTER = 199
NAMES = sorted(ROWS)
WEIGHED = ("iad1", "iad1_down", "iad2", "adaiad", "iad_rslad", "iad_mtard")
batches = given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 5),
    classes=st.integers(2, 12),
    scale=st.sampled_from([0.01, 1.0, 10.0, 50.0]),
    whole=st.booleans(),
)
EXAMPLES = settings(max_examples=40)


def rows(outputs):
    """Images as dictionaries from passes to lists of floats."""
    n = len(outputs.student_nat)
    return [{p: getattr(outputs, p)[i].tolist() for p in PASSES} for i in range(n)]


def close(tensor, numbers):
    assert tensor.tolist() == pytest.approx(numbers, rel=1e-7, abs=1e-9)


# ------------------------------------------------------------------------------------------ words, by loops


@batches
@EXAMPLES
def test_words_are_their_loops(seed, n, classes, scale, whole):
    outputs, labels = random_batch(seed, n=n, classes=classes, scale=scale, whole=whole)
    student, teacher = outputs.student_adv, outputs.teacher_adv
    images, ys = rows(outputs), labels.tolist()
    close(terms.entropy(teacher), [oracles.entropy(z["teacher_adv"]) for z in images])
    close(
        terms.boosted_cross_entropy(student, labels),
        [oracles.boosted(z["student_adv"], y) for z, y in zip(images, ys, strict=True)],
    )
    wanted = []
    for z in images:
        p, log_q = oracles.softmax(z["teacher_adv"]), oracles.log_softmax(z["student_adv"])
        wanted.append(-math.fsum(a * b for a, b in zip(p, log_q, strict=True)))
    close(terms.soft_cross_entropy(student=student, target=teacher), wanted)
    smoothed = []
    for z, y in zip(images, ys, strict=True):
        log_p = oracles.log_softmax(z["student_adv"])
        smoothed.append(-0.9 * log_p[y] - 0.1 * math.fsum(log_p) / classes)
    close(terms.cross_entropy(student, labels, smoothing=0.1), smoothed)
    clipped = []
    for z, y in zip(images, ys, strict=True):
        p = oracles.softmax(z["teacher_adv"])
        clipped.append(min(1.0, max(0.0, 1 - (max(p) - p[y]))))
    close(reliability.margin_trust(teacher, labels), clipped)


def trust_of(name, z, y):
    adv, classes = z["teacher_adv"], len(z["teacher_adv"])
    if name == "three_cases":
        return float(oracles.case(z["teacher_nat"], adv, y) == "reliable")
    if name == "margin":
        p = oracles.softmax(adv)
        return 1 - (max(p) - p[y])
    return oracles.entropy(adv) / math.log(classes) if oracles.prediction(adv) == y else 0.0


@pytest.mark.parametrize("name", sorted(plugins.TRUSTS))
@batches
@EXAMPLES
def test_a_trust_is_its_loop_and_takes_alphas_place(name, seed, n, classes, scale, whole):
    outputs, labels = random_batch(seed, n=n, classes=classes, scale=scale, whole=whole)
    loss = objectives.iad1_down(warmup_epochs=0, trust=name)(outputs, labels, epoch=0)
    plain = objectives.iad1_down(warmup_epochs=0, gamma=1.0)(outputs, labels, epoch=0)
    ungated = objectives.ard()(outputs, labels, epoch=0).terms["teacher"]
    expected = [trust_of(name, z, y) for z, y in zip(rows(outputs), labels.tolist(), strict=True)]
    close(loss.trust, expected)
    assert not loss.trust.requires_grad
    assert ((loss.trust >= 0) & (loss.trust <= 1)).all()
    torch.testing.assert_close(loss.terms["teacher"], loss.trust * ungated)
    torch.testing.assert_close(loss.terms["self"], (1 - loss.trust) * plain.terms["self"])


def weight_of(name, z, y):
    entropy = oracles.entropy(z["teacher_adv"])
    right = float(oracles.prediction(z["teacher_nat"]) == y)
    return {"entropy": entropy, "correct": right, "entropy_correct": entropy * right}[name]


@pytest.mark.parametrize("name", sorted(plugins.SAMPLE_WEIGHTS))
@pytest.mark.parametrize("row", ["rslad", "iad2", "mart", "mtard"])
def test_a_sample_weight_multiplies_the_whole_loss_of_an_image(name, row):
    outputs, labels = random_batch(n=12, classes=3)
    weighed = build(row, sample_weight=name)
    loss, plain = (o(outputs, labels, epoch=AFTER) for o in (weighed, build(row)))
    expected = [weight_of(name, z, y) for z, y in zip(rows(outputs), labels.tolist(), strict=True)]
    weight = torch.tensor(expected, dtype=torch.float64)
    assert float(weight.max()) > 0
    assert float(weight.min()) < float(weight.max())
    torch.testing.assert_close(loss.per_image, weight * plain.per_image)
    for term, values in plain.terms.items():
        torch.testing.assert_close(loss.terms[term], weight * values)
    # the weight is a number: no gradient reaches the teacher through it
    grads = torch.autograd.grad(loss.total, outputs.student_adv)[0]
    by_hand = torch.autograd.grad((weight * plain.per_image).mean(), outputs.student_adv)[0]
    torch.testing.assert_close(grads, by_hand)


@batches
@EXAMPLES
def test_igdm_is_its_loop(seed, n, classes, scale, whole):
    outputs, labels = random_batch(seed, n=n, classes=classes, scale=scale, whole=whole)
    loss = objectives.rslad(igdm=3.0, ramp_epochs=40)(outputs, labels, epoch=10)
    expected = []
    for z in rows(outputs):
        teacher, student = (
            [a - b for a, b in zip(z[f"{who}_adv"], z[f"{who}_mirror"], strict=True)]
            for who in ("teacher", "student")
        )
        expected.append(3.0 * 11 / 40 * oracles.kl(teacher, student))
    close(loss.terms["igdm"], expected)


def test_igdm_grows_linearly_from_its_first_epoch_to_its_last():
    outputs, labels = random_batch()
    objective = build("iad1", igdm=5.0, ramp_epochs=100, warmup_epochs=2)
    four = {"student_adv", "student_mirror", "teacher_adv", "teacher_mirror"}
    assert objective.needs(epoch=0) == build("ard").needs(epoch=0) | four
    assert objective.needs(epoch=2) == build("iad1").needs(epoch=AFTER) | four
    one, ten, last = (objective(outputs, labels, epoch=e).terms["igdm"] for e in (0, 9, 99))
    torch.testing.assert_close(ten, 10 * one)
    torch.testing.assert_close(last, 100 * one)
    for beyond in (100, 1000):
        assert torch.equal(objective(outputs, labels, epoch=beyond).terms["igdm"], last)
    # a student that answers to the attack as the teacher does has nothing to match, whatever it says
    same = outputs.student_mirror + outputs.teacher_adv - outputs.teacher_mirror + 3.0
    matched = Outputs(**{p: getattr(outputs, p) for p in PASSES if p != "student_adv"}, student_adv=same)
    assert objective(matched, labels, epoch=10).terms["igdm"].abs().max() < 1e-12


@pytest.mark.parametrize("row", ["rslad", "iad1", "iad2", "mtard"])
@pytest.mark.parametrize("change", [{"target": "swap"}, {"class_temperature": {0: 2.0, 1: 0.5, 2: 3.0}}])
def test_igdm_matches_what_the_teacher_said_whatever_is_made_of_it(row, change):
    outputs, labels = random_batch(n=12, classes=3)
    changed, plain = (
        build(row, igdm=2.0, **settings)(outputs, labels, epoch=AFTER) for settings in (change, {})
    )
    assert torch.equal(changed.terms["igdm"], plain.terms["igdm"])
    assert not torch.equal(changed.terms["teacher"], plain.terms["teacher"])


@batches
@EXAMPLES
def test_a_swapped_teacher_is_right_and_as_sure_as_it_was(seed, n, classes, scale, whole):
    outputs, labels = random_batch(seed, n=n, classes=classes, scale=scale, whole=whole)
    loss = objectives.rslad(target="swap")(outputs, labels, epoch=0)
    expected = []
    for z, y in zip(rows(outputs), labels.tolist(), strict=True):
        teacher = list(z["teacher_nat"])
        best = oracles.prediction(teacher)
        teacher[y], teacher[best] = teacher[best], teacher[y]
        assert sorted(teacher) == sorted(z["teacher_nat"])
        assert teacher[y] == max(teacher)
        expected.append(
            5 / 6 * oracles.kl(teacher, z["student_adv"]) + oracles.kl(teacher, z["student_nat"]) / 6
        )
    close(loss.per_image, expected)


def test_a_swap_leaves_trust_and_sample_weights_what_the_teacher_said():
    outputs, labels = random_batch(n=12, classes=3)
    chosen = {"sample_weight": "correct", "warmup_epochs": 0}
    with_swap = objectives.iad2(target="swap", **chosen)(outputs, labels, epoch=0)
    without = objectives.iad2(**chosen)(outputs, labels, epoch=0)
    assert torch.equal(with_swap.trust, without.trust)
    assert torch.equal(with_swap.terms["self"], without.terms["self"])
    assert not torch.equal(with_swap.terms["teacher"], without.terms["teacher"])


def test_a_temperature_of_the_class_softens_its_images_alone():
    outputs, labels = random_batch(n=12, classes=3)
    loss = build("adaad", class_temperature={1: 4.0})(outputs, labels, epoch=0)
    expected = []
    for z, y in zip(rows(outputs), labels.tolist(), strict=True):
        teacher = [value / (4.0 if y == 1 else 1.0) for value in z["teacher_adv"]]
        expected.append(oracles.kl(teacher, z["student_adv"]))
    close(loss.per_image, expected)
    with pytest.raises(ValueError, match="names class 3; the networks have 3"):
        build("adaad", class_temperature={3: 2.0})(outputs, labels, epoch=0)
    nothing = random_batch(n=0, classes=3)
    assert build("adaad", class_temperature={1: 4.0})(*nothing, epoch=0).per_image.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_label_smoothing_smooths_cross_entropy_and_nothing_else(name):
    outputs, labels = random_batch()
    if not any(t.cross_entropy_of and t.weight for t in build(name).terms):
        with pytest.raises(ValueError, match="changes a plain cross-entropy with the labels"):
            build(name, label_smoothing=0.2)
        return
    loss, plain = (o(outputs, labels, epoch=AFTER) for o in (build(name, label_smoothing=0.2), build(name)))
    student = next(t.cross_entropy_of for t in build(name).terms if t.cross_entropy_of)
    even = -getattr(outputs, student).log_softmax(dim=1).mean(dim=1)
    weight = next(t.weight for t in build(name).terms if t.name == "label")
    torch.testing.assert_close(loss.terms["label"], 0.8 * plain.terms["label"] + 0.2 * weight * even)
    for term in set(plain.terms) - {"label"}:
        assert torch.equal(loss.terms[term], plain.terms[term])


# ------------------------------------------------------------------------------------------ laws of composing

SOME = {
    "introspect": {"introspect": True, "beta": 0.2},
    "trust": {"introspect": True, "trust": "margin"},
    "igdm": {"igdm": 2.0},
    "target": {"target": "swap"},
    "class_temperature": {"class_temperature": {0: 2.0}},
    "sample_weight": {"sample_weight": "entropy_correct"},
}


def test_every_plugin_is_tried_with_every_objective():
    assert {*SOME, "label_smoothing"} == set(PLUGINS)


def can_be_given(row, plug):
    return not (plug in ("introspect", "trust") and row in (*WEIGHED, "akd2_down"))


def would_do_nothing(row, plug):
    return plug in ("target", "class_temperature") and row in ("st", "at", "trades", "mart", "adr")


@pytest.mark.parametrize("plug", SOME)
@pytest.mark.parametrize("row", NAMES)
@pytest.mark.parametrize("epoch", [0, 3, AFTER])
def test_any_objective_with_any_plugin_reads_what_it_asks_for(row, plug, epoch):
    if not can_be_given(row, plug):
        with pytest.raises(ValueError, match="weighed by trust already"):
            build(row, **SOME[plug])
        return
    if would_do_nothing(row, plug):
        with pytest.raises(ValueError, match=f"{plug} changes what teachers say, and no term of {row}"):
            build(row, **SOME[plug])
        return
    outputs, labels = random_batch()
    objective = build(row, **SOME[plug])
    needed = objective.needs(epoch=epoch)
    loss = objective(Outputs(**{p: getattr(outputs, p) for p in needed}), labels, epoch=epoch)
    assert loss.total.isfinite()
    torch.testing.assert_close(torch.stack(list(loss.terms.values())).sum(0), loss.per_image)
    for missing in needed:
        with pytest.raises(ValueError, match=f"reads {missing}"):
            objective(Outputs(**{p: getattr(outputs, p) for p in needed - {missing}}), labels, epoch=epoch)
    again = eval(repr(objective), dict(ROWS))
    assert (again.settings, again.formula, again.name) == (objective.settings, objective.formula, row)


@pytest.mark.parametrize(
    ("row", "plug"),
    [(r, p) for r in NAMES for p in SOME if can_be_given(r, p) and not would_do_nothing(r, p)],
)
def test_a_plugin_that_is_accepted_changes_the_loss(row, plug):
    outputs, labels = random_batch(n=12, classes=3)
    without = {"introspect": True} if plug == "trust" else {}
    one, other = (build(row, **s)(outputs, labels, epoch=AFTER) for s in (SOME[plug], without))
    assert not torch.equal(one.per_image, other.per_image)


def test_a_plugin_judges_terms_by_the_weights_that_they_will_have():
    outputs, labels = random_batch()
    smoothed = build("iad1", label_smoothing=0.2, weights={"label": 0.5})
    plain = build("iad1", weights={"label": 0.5})
    one, other = (o(outputs, labels, epoch=AFTER).terms for o in (smoothed, plain))
    assert torch.equal(one["teacher"], other["teacher"])
    even = -0.5 * outputs.student_nat.log_softmax(dim=1).mean(dim=1)
    torch.testing.assert_close(one["label"], 0.8 * other["label"] + 0.2 * even)
    # a target is refused where the terms that it changes are dropped, IGDM's beside them or not
    for more in ({}, {"igdm": 1.0}):
        with pytest.raises(ValueError, match="target changes what teachers say, and no term of"):
            build("iad1", target="swap", weights={"teacher": 0}, **more)
    with pytest.raises(ValueError, match="target changes what teachers say"):
        build("at", target="swap", igdm=1.0)
    with pytest.raises(ValueError, match="weighs nothing by trust"):
        build("rslad", introspect=True, trust="margin", weights={"self": 0})
    with pytest.raises(ValueError, match="label_smoothing changes a plain cross-entropy"):
        build("at", label_smoothing=0.1, weights={"label": 0}, igdm=1.0)


def test_a_beta_that_another_trust_leaves_unread_is_refused_and_not_shown():
    for row, more in (("iad1", {}), ("rslad", {"introspect": True})):
        with pytest.raises(ValueError, match=f"{row}: nothing reads beta beside trust='margin'"):
            build(row, trust="margin", beta=0.2, **more)
        objective = build(row, trust="margin", **more)
        assert "beta" not in objective.settings
        assert eval(repr(objective), dict(ROWS)).settings == objective.settings


def test_plugins_compose_and_by_name_is_by_function():
    outputs, labels = random_batch(n=6)
    by_name = build(
        "rslad",
        introspect=True,
        warmup_epochs=2,
        trust="entropy_correct",
        igdm=4.0,
        ramp_epochs=50,
        target="swap",
        sample_weight="entropy",
        weights={"self": 0.5},
    )
    made = plugins.trust(introspect(objectives.rslad(), warmup_epochs=2), "entropy_correct")
    made = plugins.target(plugins.igdm(made, 4.0, ramp_epochs=50), "swap")
    made = plugins.sample_weight(made, "entropy").with_weights({"self": 0.5})
    for epoch in (0, 1, 2, 30):
        assert by_name.needs(epoch=epoch) == made.needs(epoch=epoch)
        one, other = (o(outputs, labels, epoch=epoch) for o in (by_name, made))
        assert torch.equal(one.per_image, other.per_image)
        assert list(one.terms) == list(other.terms)
    assert list(one.terms) == ["teacher", "teacher_nat", "self", "igdm"]
    assert by_name.formula == made.formula


def test_introspection_by_name_is_the_row_that_is_called_so():
    outputs, labels = random_batch()
    for row, base in (("adaiad", "adaad"), ("iad_rslad", "rslad"), ("iad1", "ard")):
        given_ = {"beta": 0.4, "gamma": "1-alpha", "warmup_epochs": 3}
        one, other = build(row, **given_), build(base, introspect=True, **given_)
        for epoch in (0, 3):
            assert one.needs(epoch=epoch) == other.needs(epoch=epoch)
            assert torch.equal(
                one(outputs, labels, epoch=epoch).per_image, other(outputs, labels, epoch=epoch).per_image
            )


def test_a_plugin_that_is_off_is_not_there():
    for off in (None, False):
        assert build("rslad", introspect=off, igdm=None).formula == build("rslad").formula
        assert build("rslad", introspect=off, igdm=None).settings == build("rslad").settings


def test_what_a_plugin_reads_of_the_attack_brings_one():
    assert build("st", igdm=1.0).attack == "pgd"
    assert build("st", sample_weight="entropy").attack == "pgd"
    assert build("st", sample_weight="correct").attack == "none"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda: build("rslad", igdmm=1.0), TypeError, "argument of rslad 'igdmm'; did you mean 'igdm'"),
        (lambda: build("rslad", ramp_epochs=3), TypeError, "argument of rslad 'ramp_epochs'"),
        (lambda: build("rslad", beta=0.1), TypeError, "argument of rslad 'beta'"),
        (lambda: build("rslad", igdm=0.0), ValueError, "igdm must be above 0"),
        (lambda: build("rslad", igdm=1.0, ramp_epochs=0), ValueError, "ramp_epochs must be at least 1"),
        (lambda: build("rslad", target="swp"), ValueError, "did you mean 'swap'"),
        (lambda: build("rslad", sample_weight="entrpy"), ValueError, "did you mean 'entropy"),
        (lambda: build("rslad", sample_weight=1.0), TypeError, "sample_weight must be a name"),
        (lambda: build("iad1", trust="margn"), ValueError, "did you mean 'margin'"),
        (lambda: build("rslad", trust="margin"), ValueError, "weighs nothing by trust; introspect it first"),
        (lambda: build("iad1", trust="margin", gamma=1.0), ValueError, "weighs nothing by trust"),
        (lambda: build("at", label_smoothing=1.0), ValueError, "label_smoothing must be above 0 and at most"),
        (lambda: build("at", class_temperature={}), TypeError, "must be a mapping from classes"),
        (lambda: build("at", class_temperature={0: 0.0}), ValueError, "must be above 0"),
        (lambda: build("at", introspect=1), TypeError, "introspect must be True or False"),
        (lambda: objectives.rslad(adv_weight=1.5), ValueError, "adv_weight must be at least 0 and at most 1"),
        (lambda: objectives.adaad(tau=0.0), ValueError, "tau must be above 0"),
        (lambda: objectives.mtard(balance_rate=1.0), ValueError, "balance_rate must be"),
        (lambda: objectives.mart(self_weight=-1.0), ValueError, "self_weight must be at least 0"),
        (lambda: objectives.adr(rectification=(0.5, 1.5)), ValueError, "rectification, last must be"),
        (lambda: objectives.adr(temperatures=(0.0, 1.0)), ValueError, "temperatures, first must be"),
        (lambda: objectives.adr(temperatures=1.0), ValueError, "must be two numbers"),
        (lambda: objectives.adr(ramp_epochs=0), ValueError, "ramp_epochs must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_with_the_way_out(wrong, error, said, unchecked):
    with pytest.raises(error, match=said):
        wrong()


# ------------------------------------------------------------------------------------------ MTARD's balance


@EXAMPLES
@given(
    rate=st.floats(0, 0.9),
    slowed=st.floats(0, 1),
    power=st.floats(0, 3),
    losses=st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)), min_size=1, max_size=6),
)
def test_mtards_weights_are_the_loops(rate, slowed, power, losses):
    objective = objectives.mtard(balance_rate=rate, balance_power=power)
    state, weights, first = objective.balance.begin(), [0.5, 0.5], None
    for pair in losses:
        state = objective.balance.updated(state, torch.tensor(pair), slowed=slowed)
        first = first or pair
        relative = [(now / begun) ** power for now, begun in zip(pair, first, strict=True)]
        r_w = rate * slowed
        weights = [r_w * r / sum(relative) + (1 - r_w) * w for r, w in zip(relative, weights, strict=True)]
        assert state[0].tolist() == pytest.approx(weights, rel=1e-5)
        assert float(state[0].sum()) == pytest.approx(1.0)
        assert state[1].tolist() == pytest.approx(first, rel=1e-5)


def test_a_term_begins_where_it_first_has_a_loss():
    """A student that begins with a teacher's weights has none against it: no step is told from nothing."""
    balance = objectives.mtard(balance_rate=0.3).balance
    state = balance.begin()
    for first in (0.0, 0.0, 1e-5, 0.4):
        state = balance.updated(state, torch.tensor([1.0, first]))
        assert state[0].tolist() == pytest.approx([0.5, 0.5])
    assert state[1].tolist() == pytest.approx([1.0, 0.4])
    state = balance.updated(state, torch.tensor([5.0, 0.4]))  # five times its first, and as at first
    assert state[0].tolist() == pytest.approx([0.7 * 0.5 + 0.3 * 5 / 6, 0.7 * 0.5 + 0.3 / 6])


def test_a_state_weighs_the_balanced_terms_and_them_alone():
    outputs, labels = random_batch()
    objective = objectives.iad_mtard(warmup_epochs=3)
    state = torch.tensor([[0.2, 0.8], [1.0, 1.0]]).double()
    for epoch in (0, 3):
        even, moved = (objective(outputs, labels, epoch=epoch, balance=s) for s in (None, state))
        torch.testing.assert_close(moved.terms["teacher"], 0.4 * even.terms["teacher"])
        torch.testing.assert_close(moved.terms["natural_teacher"], 1.6 * even.terms["natural_teacher"])
    assert torch.equal(moved.terms["self"], even.terms["self"])


@pytest.mark.parametrize(
    "changed", [{}, {"gate_teacher": True}, {"sample_weight": "entropy"}, {"weights": {"teacher": 7.0}}]
)
def test_what_is_balanced_is_what_the_terms_are_before_trust_and_weights(changed):
    outputs, labels = random_batch()
    state = torch.tensor([[0.2, 0.8], [1.0, 1.0]]).double()
    plain = objectives.mtard()(outputs, labels, epoch=0)
    alone = {name: 2 * values.detach() for name, values in plain.terms.items()}  # both weights begin at 1/2
    objective = objectives.iad_mtard(**({"warmup_epochs": 3, "gate_teacher": False} | changed))
    for epoch in (0, 3):
        balanced = objective(outputs, labels, epoch=epoch, balance=state).balanced
        assert list(balanced) == list(objective.balance.terms)
        for name, values in balanced.items():
            torch.testing.assert_close(values, alone[name])
            assert not values.requires_grad
    assert objectives.rslad()(outputs, labels, epoch=0).balanced == {}


def test_the_teacher_that_lags_behind_is_listened_to_more():
    balance = objectives.mtard().balance
    state = balance.updated(balance.begin(), torch.tensor([1.0, 1.0]))
    assert state[0].tolist() == pytest.approx([0.5, 0.5])
    state = balance.updated(state, torch.tensor([0.5, 0.1]))
    assert state[0][0] > 0.5 > state[0][1]


# ------------------------------------------------------------------------------------------ ADR's schedule


def test_adr_goes_from_its_first_values_to_its_last():
    outputs, labels = random_batch(n=8)
    objective = objectives.adr(rectification=(0.2, 0.9), temperatures=(3.0, 0.5), ramp_epochs=11)
    begun = (1 + math.cos(math.pi / 22)) / 2  # at the middle of the first of 11 epochs
    first = 0.9 - 0.7 * begun, 0.5 + 2.5 * begun
    for epoch, share, tau in ((0, *first), (5, 0.55, 1.75), (11, 0.9, 0.5), (50, 0.9, 0.5)):
        expected = []
        for z, y in zip(rows(outputs), labels.tolist(), strict=True):
            wanted = oracles.rectified(z["average_nat"], y, share, tau)
            assert wanted[y] == max(wanted)  # the true class keeps the highest probability
            log_q = oracles.log_softmax(z["student_adv"])
            expected.append(-math.fsum(a * b for a, b in zip(wanted, log_q, strict=True)))
        close(objective(outputs, labels, epoch=epoch).per_image, expected)
