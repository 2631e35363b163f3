"""Robust accuracy against the radius: exact against a loop over images, and a test for masking."""

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_digits
from torch import nn

from iad_ext import evaluate
from iad_ext.evaluation import curve
from iad_ext.plots import epsilon_curve
from iad_ext.randomness import stream

EPS = 0.1


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
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(20):
            for rows in torch.randperm(1500).split(100):
                optimizer.zero_grad()
                F.cross_entropy(net(images[rows]), labels[rows]).backward()
                optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def test_set(digits):
    return digits[0][1500:1600], digits[1][1500:1600]


class Rounds(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network((images * 4).round() / 4)


def counts(result):
    return [value * result["curve_n"] / 100 for value in result["curve"].values()]


def kinds(result):
    return {flag["flag"] for flag in result["flags"]}


def test_the_radii_are_the_named_ones_at_the_papers_radius():
    assert [round(radius * 255, 9) for radius in curve.radii(8 / 255)] == [0, 2, 4, 8, 12, 16, 24, 32]
    assert max(curve.radii(0.6)) == 1


def test_a_sound_network_falls_from_its_natural_accuracy_to_about_zero(network, test_set):
    result = evaluate(network, *test_set, ("natural", "pgd20"), EPS, curve=100)
    assert list(result["curve"]) == ["0", "0.025", "0.05", "0.1", "0.15", "0.2", "0.3", "0.4"]
    found = list(result["curve"].values())
    assert found[0] == result["natural"] > 80
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0
    assert result["curve"]["0.1"] <= result["pgd20"] + 2
    assert kinds(result) == set()
    assert result["protocol"]["curve"]["n"] == result["curve_n"] == 100
    json.dumps([result["curve"], result["protocol"]])


def test_it_equals_a_loop_over_images_and_steps(network, test_set):
    """The oracle takes every step for every image, and asks at every point."""
    images, labels = test_set[0][:40], test_set[1][:40]
    result = evaluate(network, images, labels, ("natural",), EPS, seed=5, curve=40, batch_size=17)
    noise = torch.empty(256, 1, 8, 8).uniform_(-1, 1, generator=stream(5, "evaluate", "curve", 0))
    for radius, percent in zip(curve.radii(EPS), result["curve"].values(), strict=True):
        standing = 0
        for image, label, start in zip(images, labels, noise, strict=False):
            image, label = image[None], label[None]
            seen = [image]
            if radius:
                adv = (image + radius * start).clamp(0, 1)
                seen.append(adv)
                for _ in range(20):
                    adv = adv.detach().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(F.cross_entropy(network(adv), label), adv)
                    adv = adv.detach() + radius / 4 * gradient.sign()
                    adv = (image + (adv - image).clamp(-radius, radius)).clamp(0, 1)
                    seen.append(adv)
            standing += all(int(network(point).argmax()) == int(label) for point in seen)
        assert percent == pytest.approx(100 * standing / 40)


def test_masked_gradients_are_seen_on_the_curve_alone(network, test_set):
    """Large logits saturate cross-entropy: at eps some images fall, far beyond it many still stand."""

    class Saturated(nn.Module):
        def forward(self, images):
            return 1e4 * network(images)

    result = evaluate(Saturated(), *test_set, ("natural", "pgd20"), EPS, curve=100)
    assert "curve_does_not_fall" in kinds(result)
    assert list(result["curve"].values())[-1] > 5


def test_a_rising_curve_is_flagged():
    def stands(*standing):
        return {0.1 * i: torch.arange(200) < count for i, count in enumerate(standing)}

    assert [flag["flag"] for flag in curve.flags(stands(180, 90, 100, 0))] == ["curve_rises"]
    assert [flag["flag"] for flag in curve.flags(stands(180, 90, 92, 0))] == []
    assert [flag["flag"] for flag in curve.flags(stands(180, 90, 40, 30))] == ["curve_does_not_fall"]
    assert [flag["flag"] for flag in curve.flags(stands(10, 10, 10, 10))] == []


@pytest.mark.parametrize(("eps", "judged"), [(2 / 255, False), (4 / 255, False), (0.031, True), (0.1, True)])
def test_what_stands_is_held_against_the_gradients_only_far_out(eps, judged):
    """At 4 · 2/255 an honest network may be right; at four times the paper's radius it may not."""
    stands = {radius: torch.arange(200) < 180 - 20 * k for k, radius in enumerate(curve.radii(eps))}
    assert [flag["flag"] for flag in curve.flags(stands)] == ["curve_does_not_fall"] * judged


def test_it_is_measured_on_the_first_images_and_only_if_asked(network, test_set):
    assert "curve" not in evaluate(network, *test_set, ("natural",), EPS)
    result = evaluate(network, *test_set, ("natural",), EPS, curve=30)
    first = evaluate(network, test_set[0][:30], test_set[1][:30], ("natural",), EPS, curve=1000)
    assert result["curve_n"] == first["curve_n"] == 30
    assert result["curve"] == first["curve"]


def test_broken_off_it_goes_on_and_more_images_keep_the_first(network, test_set, tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    left = iter(range(7))

    def stop():
        if next(left, None) is None:
            raise Stop

    arguments = {"attacks": ("natural",), "eps": EPS, "batch_size": 20}
    with pytest.raises(Stop):
        evaluate(network, *test_set, **arguments, curve=60, state_folder=tmp_path, after_batch=stop)
    evaluate(network, *test_set, **arguments, curve=60, state_folder=tmp_path)
    more = evaluate(network, *test_set, **arguments, curve=100, state_folder=tmp_path)
    fewer = evaluate(network, *test_set, **arguments, curve=40, state_folder=tmp_path)
    assert more["curve"] == evaluate(network, *test_set, **arguments, curve=100)["curve"]
    assert fewer["curve"] == evaluate(network, *test_set, **arguments, curve=40)["curve"]
    assert fewer["curve_n"] == 40


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_wrong_number_of_images_is_refused(network, test_set, value, error):
    with pytest.raises(error, match="curve"):
        evaluate(network, *test_set, ("natural",), curve=value)


def test_the_figure_shows_every_curve(network, test_set, tmp_path):
    sound = evaluate(network, *test_set, ("natural",), EPS, curve=100)
    masked = evaluate(Rounds(network), *test_set, ("natural",), EPS, curve=100)
    epsilon_curve({"sound": sound, "masked": masked, "not measured": {"n": 5}}, tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    assert "sound" in drawn
    assert "masked" in drawn
    assert "not measured" not in drawn
    with pytest.raises(ValueError, match="curve="):
        epsilon_curve({"not measured": {"n": 5}}, tmp_path / "none.svg")
