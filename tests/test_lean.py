"""AutoAttack's stages with less computing: stock verdicts, stage by stage, and never more passes."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from sklearn.datasets import load_digits
from torch import nn

from iad_ext import evaluate
from iad_ext.evaluation.lean import LeanAPGD, LeanAPGDTargeted, LeanFAB, LeanSquare, onto_hyperplane

EPS = 0.12
STAGES = {
    "apgd-ce": (LeanAPGD, APGDAttack, {"n_iter": 100, "loss": "ce"}),
    "apgd-t": (LeanAPGDTargeted, APGDAttack_targeted, {"n_iter": 30, "n_target_classes": 2}),
    "fab-t": (LeanFAB, FABAttack_PT, {"n_iter": 12, "targeted": True, "n_target_classes": 3}),
    "square": (LeanSquare, SquareAttack, {"n_queries": 150, "resc_schedule": False}),
}


class Counted(nn.Module):
    """Counts the images that pass."""

    def __init__(self, network):
        super().__init__()
        self.network, self.passed = network, 0

    def forward(self, images):
        self.passed += len(images)
        return self.network(images)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(one_thread):
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


@pytest.fixture(scope="module")
def network(digits):
    """A small network with BatchNorm, trained for a second on noisy images."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, padding=1, stride=2),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 16, 10),
        )
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(1500).split(100):
                noisy = (images[rows] + 0.3 * torch.randn_like(images[rows]).sign()).clamp(0, 1)
                optimizer.zero_grad()
                F.cross_entropy(net(noisy), labels[rows]).backward()
                optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch(network, digits):
    """40 images that the network gets right: what a stage begins with."""
    images, labels = digits[0][1500:], digits[1][1500:]
    right = network(images).argmax(1) == labels
    return images[right][:40], labels[right][:40]


def run(kind, settings_, network, batch, *, eps=EPS, seed=0):
    counted = Counted(network)
    attack = kind(counted, eps=eps, norm="Linf", seed=seed, device="cpu", n_restarts=1, **settings_)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        adv = attack.perturb(*batch)
        return adv, network(adv).argmax(1) == batch[1], counted.passed


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("eps", "seed"), [(0.06, 0), (0.12, 3), (0.2, 1)])
def test_each_stage_gives_stock_verdicts(network, batch, stage, eps, seed):
    lean, stock, settings_ = STAGES[stage]
    _, expected, at_most = run(stock, settings_, network, batch, eps=eps, seed=seed)
    adv, stands, passed = run(lean, settings_, network, batch, eps=eps, seed=seed)
    assert stands.tolist() == expected.tolist()
    assert passed <= at_most
    assert torch.equal(adv[stands], batch[0][stands])
    assert (adv - batch[0]).abs().max() <= eps + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1


def test_these_verdicts_are_not_all_alike(network, batch):
    """The comparison above would prove little on images that all stand or all fall."""
    for lean, _, settings_ in STAGES.values():
        standing = [int(run(lean, settings_, network, batch, eps=eps)[1].sum()) for eps in (0.06, 0.12, 0.2)]
        assert all(more >= fewer for more, fewer in pairwise(standing))
        assert any(0 < some < 40 for some in standing)


@pytest.mark.parametrize("stage", ["square", "apgd-ce"])
def test_the_points_are_stocks_where_no_image_has_fallen(network, batch, stage):
    """At a radius at which nothing falls every query is kept, so that the state after it must be stock's."""
    lean, stock, settings_ = STAGES[stage]
    shared = {"eps": 0.01, "norm": "Linf", "seed": 0, "device": "cpu", "n_restarts": 1}
    ends = []
    for kind in (lean, stock):
        attack = kind(network, **shared, **settings_)
        attack.init_hyperparam(batch[0])
        seen = []
        attack.model = attack.predict = lambda x, seen=seen: seen.append(x.detach().clone()) or network(x)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            attack.attack_single_run(*batch)
        ends.append(seen)
    assert len(ends[0]) == len(ends[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))


def test_images_that_fall_leave_apgd_sooner(network, batch):
    lean, stock, settings_ = STAGES["apgd-ce"]
    _, stands, passed = run(lean, settings_, network, batch, eps=0.25)
    _, _, at_most = run(stock, settings_, network, batch, eps=0.25)
    assert stands.sum() < 20
    assert passed < 0.7 * at_most


# FAB's projection


numbers = st.floats(-3, 3, width=32).map(lambda value: round(value, 3))


@settings(max_examples=60, deadline=None)
@given(
    point=st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=6, max_size=6),
    normal=st.lists(numbers, min_size=6, max_size=6),
    offset=numbers,
)
def test_the_projection_is_stocks(point, normal, offset):
    points, w = torch.tensor([point], dtype=torch.float64), torch.tensor([normal], dtype=torch.float64)
    b = torch.tensor([offset], dtype=torch.float64)
    moves = onto_hyperplane(points, w, b)
    assert torch.allclose(moves, projection_linf(points, w, b), atol=1e-9)
    assert (points + moves).clamp(0, 1).sub(points + moves).abs().max() < 1e-12


def test_the_projection_lands_or_comes_as_close_as_it_can():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 40, generator=generator, dtype=torch.float64)
    w = torch.randn(200, 40, generator=generator, dtype=torch.float64)
    b = (w * points).sum(1) + 12 * torch.randn(200, generator=generator, dtype=torch.float64)
    landed = points + onto_hyperplane(points, w, b)
    highest, lowest = w.clamp(min=0).sum(1), w.clamp(max=0).sum(1)
    reachable = (b <= highest) & (b >= lowest)
    assert 20 < reachable.sum() < 200
    assert torch.allclose((w * landed).sum(1), b.clamp(lowest, highest))


def test_a_hyperplane_without_a_normal_moves_nothing():
    points = torch.rand(3, 5)
    assert torch.equal(onto_hyperplane(points, torch.zeros(3, 5), torch.ones(3)), torch.zeros(3, 5))


# BatchNorm folded


def test_fast_gives_the_same_flags_and_says_what_it_did(network, digits):
    images, labels = digits[0][1500:1600], digits[1][1500:1600]
    ours = copy.deepcopy(network).requires_grad_(True).train()
    before = copy.deepcopy(ours.state_dict())
    attacks, trimmed = ("natural", "pgd20", "aa"), {"n_iter": 6, "n_queries": 40}
    plain = evaluate(ours, images, labels, attacks, EPS, aa_settings=trimmed)
    fast = evaluate(ours, images, labels, attacks, EPS, aa_settings=trimmed, fast=True)
    for attack in attacks:
        assert torch.equal(plain["robust"][attack], fast["robust"][attack])
    assert plain["protocol"]["batchnorm"] == "as it is"
    assert fast["protocol"]["batchnorm"] == "folded"
    assert fast["protocol"]["channels_last"] is True
    assert isinstance(ours[1], nn.BatchNorm2d)
    assert ours[1].training
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


class Chooses(nn.Module):
    """Its forward depends on the numbers it sees, which no tracing can follow."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        logits = self.network(images)
        return logits * 2 if logits.max() > 1e9 else logits


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Chooses, "cannot be traced (TraceError)"),
        (lambda net: net.to(torch.bfloat16), "in bfloat16"),
        (lambda net: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False), "has none"),
    ],
    ids=["untraceable", "half", "none"],
)
def test_what_cannot_be_folded_is_measured_as_it_is(network, batch, change, said):
    changed = change(copy.deepcopy(network))
    plain = evaluate(changed, *batch, ("natural", "pgd10"), EPS, channels_last=True)
    fast = evaluate(changed, *batch, ("natural", "pgd10"), EPS, fast=True)
    assert said in fast["protocol"]["batchnorm"]
    for attack in ("natural", "pgd10"):
        assert torch.equal(plain["robust"][attack], fast["robust"][attack])


def test_a_copy_with_other_gradients_is_not_used(network, batch):
    """Tracing follows the numbers, and loses what stops the gradient."""

    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            with torch.no_grad():
                images = images * 1.0
            return self.network(images)

    fast = evaluate(Hides(), *batch, ("natural", "pgd10"), EPS, fast=True)
    assert "other gradients" in fast["protocol"]["batchnorm"]
    assert "zero_gradients" in {flag["flag"] for flag in fast["flags"]}


def test_a_copy_that_answers_otherwise_is_not_used(network, batch, monkeypatch):
    from iad_ext.evaluation import subject

    real = subject.fuse
    monkeypatch.setattr(subject, "fuse", lambda net: nn.Sequential(real(net), nn.Softmax(dim=1)))
    fast = evaluate(network, *batch, ("natural",), fast=True)
    assert "answers otherwise" in fast["protocol"]["batchnorm"]
    assert fast["natural"] == 100


def test_a_kept_measurement_is_not_taken_over_by_fast(network, batch, tmp_path):
    for fast in (False, True):
        evaluate(network, *batch, ("natural",), fast=fast, state_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
