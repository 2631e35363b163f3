"""An epoch's figures against a loop over its images."""

import dataclasses

import oracles
import pytest
import torch

from iad_ext import Outputs
from iad_ext.diagnostics import FIGURES, HISTOGRAM, TRUST_EDGES, Sums, figures, introspection_share
from iad_ext.objectives import PASSES, ImageWeight, build

LOOKS = {
    "train/acc_adv": "student_adv",
    "train/acc_nat": "student_nat",
    "teacher/acc_nat": "teacher_nat",
    "teacher/acc_on_student_adv": "teacher_adv",
    "natural_teacher/acc_on_student_adv": "natural_teacher_adv",
}


def batch(seed, n, passes=PASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = {p: torch.randn(n, 4, generator=generator, requires_grad=True) for p in PASSES}
    return Outputs(**{p: logits[p] for p in passes}), torch.randint(4, (n,), generator=generator)


def slow_figures(batches, objective_name, epoch, passes):
    """Plain means over every image of the epoch."""
    values = {}
    for outputs, labels in batches:
        for i, y in enumerate(labels.tolist()):
            z = {p: getattr(outputs, p)[i].tolist() for p in passes}
            for figure, p in LOOKS.items():
                if p in z:
                    values.setdefault(figure, []).append(100.0 if oracles.prediction(z[p]) == y else 0.0)
            if "teacher_nat" in z and "teacher_adv" in z:
                here = oracles.case(z["teacher_nat"], z["teacher_adv"], y)
                for case in ("reliable", "unreliable", "wrong", "recovered"):
                    values.setdefault(f"cases/{case}", []).append(100.0 if case == here else 0.0)
            if objective_name in ("iad1", "iad2"):
                warm = epoch < {"iad1": 60, "iad2": 40}[objective_name]
                alpha = 1.0 if warm else oracles.trust(z["teacher_adv"], y, 0.1)
                values.setdefault("trust/mean", []).append(alpha)
            if "teacher_adv" in z:
                entropy = oracles.entropy(z["teacher_adv"])
                values.setdefault("teacher/entropy_on_student_adv", []).append(entropy)
            if "teacher_adv" in z and "student_nat" in z:
                alpha = oracles.trust(z["teacher_adv"], y, 0.1)
                guidance = oracles.combined(z["teacher_adv"], z["student_nat"], alpha)
                right = oracles.prediction(guidance) == y
                values.setdefault("combined/acc_on_student_adv", []).append(100.0 if right else 0.0)
            padded = {p: z.get(p, [0.0] * 4) for p in PASSES}  # for terms of weight 0, left out below
            row = oracles.ROWS[objective_name](padded, y, epoch)
            losses = {name: t.weight * t.factor * t.value for name, t in row.items() if t.weight}
            for name, value in losses.items():
                values.setdefault(f"loss/{name}", []).append(value)
            values.setdefault("loss/total", []).append(sum(losses.values()))
    return {name: sum(found) / len(found) for name, found in values.items()}


@pytest.mark.parametrize("name", ["st", "at", "trades", "ard", "akd2", "iad1", "iad2"])
@pytest.mark.parametrize("epoch", [0, 100])
def test_an_epochs_figures_are_the_loops_and_null_where_no_pass_ran(name, epoch):
    objective = build(name)
    passes = sorted(objective.needs(epoch=epoch))
    batches = [batch(seed, n, passes) for seed, n in ((0, 7), (1, 7), (2, 3))]  # the last one is smaller
    sums = Sums("cpu")
    for outputs, labels in batches:
        sums.add(figures(outputs, labels, objective(outputs, labels, epoch=epoch)))
    expected = slow_figures(batches, name, epoch, passes)
    asked = [*FIGURES, *sorted(set(expected) - set(FIGURES))]
    found = sums.reduced(asked, sums.stacked(asked))
    assert set(sums.sums) - {HISTOGRAM} == set(expected)
    assert (HISTOGRAM in sums.sums) == ("teacher_adv" in passes)
    for figure in asked:
        if figure in expected:
            assert found[figure] == pytest.approx(expected[figure], rel=1e-5), figure
        else:
            assert found[figure] is None, figure
    cases = [found[figure] for figure in FIGURES if figure.startswith("cases/")]
    if cases[0] is not None:
        assert sum(cases) == pytest.approx(100)


def test_figures_carry_no_graph():
    outputs, labels = batch(0, 5)
    found = figures(outputs, labels, build("iad2")(outputs, labels, epoch=100))
    assert {f"loss/{term}" for term in ("label", "teacher", "natural_teacher", "self", "total")} <= set(found)
    assert set(FIGURES) <= set(found)
    for values in found.values():
        assert values.shape == (5,)
        assert not values.requires_grad


def test_the_histogram_counts_every_image_in_the_bin_of_its_probability():
    sums, expected = Sums("cpu"), [0] * (len(TRUST_EDGES) - 1)
    for seed, scale in ((0, 1.0), (1, 30.0), (2, 300.0)):  # certain and very wrong teachers among them
        outputs, labels = batch(seed, 200)
        teacher_adv = outputs.teacher_adv.detach().double() * scale
        outputs = dataclasses.replace(outputs, teacher_adv=teacher_adv)
        sums.add(figures(outputs, labels, build("iad1")(outputs, labels, epoch=100)))
        for row, y in zip(teacher_adv.tolist(), labels.tolist(), strict=True):
            p = oracles.trust(row, y, 1.0)
            place = max(k for k, edge in enumerate(TRUST_EDGES[:-1]) if edge <= p)
            expected[place] += 1
    assert sums.histogram().tolist() == expected
    assert sum(expected) == 600
    assert expected[0] > 0 < expected[-1]


def test_the_histogram_has_20_bins_of_one_width_for_the_paper_s_beta_and_for_1():
    assert (TRUST_EDGES[0], TRUST_EDGES[-1]) == (0, 1)
    assert list(TRUST_EDGES) == sorted(set(TRUST_EDGES))
    for k in range(21):
        assert min(abs(edge - k / 20) for edge in TRUST_EDGES) < 1e-12
        assert min(abs(edge**0.1 - k / 20) for edge in TRUST_EDGES) < 1e-12


def test_a_probability_of_1_is_counted():
    sums = Sums("cpu")
    sums.add({HISTOGRAM: torch.tensor([1.0, 0.0, 1.0])})
    counts = sums.histogram().tolist()
    assert (counts[0], counts[-1], sum(counts)) == (1, 2, 3)


def always(alpha):
    return ImageWeight(lambda _, labels: torch.full((len(labels),), alpha), frozenset(), "a number")


def test_the_combination_takes_the_objective_s_trust():
    """A teacher that nobody trusts leaves the student's own answer, one trusted fully its own."""
    outputs, labels = batch(0, 50)
    loss = build("iad1")(outputs, labels, epoch=100)
    for alpha, alone in ((0.0, "train/acc_nat"), (1.0, "teacher/acc_on_student_adv")):
        found = figures(outputs, labels, loss, trust_of=always(alpha))
        assert torch.equal(found["combined/acc_on_student_adv"], found[alone])


@pytest.mark.parametrize(
    ("own", "total", "expected"), [(1.0, 4.0, 25.0), (None, 4.0, None), (0.0, 0.0, None)]
)
def test_introspection_s_share_of_the_loss(own, total, expected):
    assert introspection_share({"loss/self": own, "loss/total": total}, "self") == expected
    assert introspection_share({"loss/self": own, "loss/total": total}, None) is None


def test_sums_of_several_processes_divide_by_all_their_images():
    """Each process stacks its own sums; added up they are one epoch's, figures known to one side included."""
    one, other = Sums("cpu"), Sums("cpu")
    one.add({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0])})
    other.add({"a": torch.tensor([6.0])})
    names = ["a", "b", "c"]
    assert one.reduced(names, one.stacked(names) + other.stacked(names)) == {"a": 3.0, "b": 10.0, "c": None}


def test_sums_do_not_lose_small_figures_in_a_long_epoch():
    sums = Sums("cpu")
    for _ in range(300):
        sums.add({"a": torch.full((1000,), 0.1)})
    expected = float(torch.tensor(0.1).double())
    assert sums.reduced(["a"], sums.stacked(["a"]))["a"] == pytest.approx(expected, rel=1e-12)
