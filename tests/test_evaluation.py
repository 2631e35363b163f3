import contextlib
import copy
import json
import os
import re
import subprocess
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MethodType

import evaluation_in_turns
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from pyautoattack import AutoAttack
from recipe_files import ENVIRONMENT, together
from safetensors import safe_open
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import nn

from iad_ext.attacks import PGD
from iad_ext.evaluation import (
    ATTACKS,
    GRADIENT_ATTACKS,
    accuracy_under,
    evaluate,
    format_table,
    interval,
    masking,
    with_autoattack,
)
from iad_ext.evaluation.autoattack import Runner, State
from iad_ext.evaluation.kept import _sum
from iad_ext.evaluation.measures import BLOCK
from iad_ext.evaluation.samples import sample
from iad_ext.evaluation.subject import under_evaluation
from iad_ext.randomness import stream

EPS = 0.1
TRIMMED = {"n_iter": 6, "n_queries": 40}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they give on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_network(classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, classes),
    )


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


@pytest.fixture(scope="module")
def trained(digits, one_thread):
    """A small convolutional network, adversarially trained for a second."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = small_network()
        attack = PGD(network, eps=EPS, alpha=EPS / 2, steps=3)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(5):
            for chosen in torch.randperm(1400).split(100):
                network.train()
                loss = F.cross_entropy(network(attack(images[chosen], labels[chosen])), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def test_set(digits):
    return digits[0][1400:1500], digits[1][1400:1500]


@pytest.fixture(scope="module")
def all_attacks(trained, test_set):
    return evaluate(trained, *test_set, ATTACKS, EPS, batch_size=40, aa_settings=TRIMMED)


def flag_names(result):
    return {flag["flag"] for flag in result["flags"]}


class Wrapped(nn.Module):
    """A network broken on purpose: `before` changes its pixels, `after` its logits."""

    def __init__(self, network, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images):
        return self.after(self.network(self.before(images)))


class Untouchable(nn.Module):
    """A network that must not be run: the arguments are wrong and were to be refused before any compute."""

    def forward(self, images):
        raise AssertionError("the network was run")


# the form of the result


def test_percentages_are_the_means_of_the_flags(all_attacks):
    for attack in ATTACKS:
        flags = all_attacks["robust"][attack]
        assert flags.shape == (100,)
        assert flags.dtype == torch.bool
        assert flags.device.type == "cpu"
        assert all_attacks[attack] == pytest.approx(100 * flags.double().mean().item())
        low, high = all_attacks["interval"][attack]
        assert 0 <= low <= all_attacks[attack] <= high <= 100
    assert all_attacks["n"] == 100
    assert set(all_attacks) == {*ATTACKS, "n", "flags", "robust", "protocol", "interval"}


def test_the_default_attacks_are_the_papers(trained, test_set):
    result = evaluate(trained, test_set[0][:8], test_set[1][:8], eps=0.3, aa_settings=TRIMMED)
    assert set(result["robust"]) == {"natural", "fgsm", "pgd20", "cw_inf", "aa"}


def test_only_what_was_asked_is_reported(trained, test_set):
    result = evaluate(trained, *test_set, "pgd10")
    assert set(result["robust"]) == {"pgd10"}
    assert "natural" not in result


def test_the_protocol_is_plain_data_with_every_setting(all_attacks):
    protocol = json.loads(json.dumps(all_attacks["protocol"]))
    assert protocol["seed"] == 0
    assert protocol["n"] == 100
    assert protocol["batch_size"] == 40
    assert protocol["dtype"] == "float32"
    assert protocol["device"] == "cpu"
    assert protocol["hardware"]
    assert {"torch", "torchattacks", "pyautoattack", "iad-ext"} <= set(protocol["versions"])
    pgd = protocol["attacks"]["pgd20"]
    assert (pgd["steps"], pgd["alpha"], pgd["random_start"], pgd["mode"]) == (20, EPS / 4, True, "eval")
    assert protocol["attacks"]["fgsm"]["random_start"] is True
    assert protocol["attacks"]["fgsm_plain"]["random_start"] is False
    assert all(attack["seconds"] >= 0 for attack in protocol["attacks"].values())


def test_steps_are_the_papers_at_its_radius():
    assert GRADIENT_ATTACKS["pgd20"].protocol(8 / 255)["alpha"] == 2 / 255
    assert GRADIENT_ATTACKS["cw_inf"].protocol(8 / 255) | {"alpha": 2 / 255, "steps": 30} == GRADIENT_ATTACKS[
        "cw_inf"
    ].protocol(8 / 255)
    assert GRADIENT_ATTACKS["fgsm"].protocol(8 / 255)["alpha"] == 8 / 255


def test_autoattacks_stages_add_up(all_attacks):
    aa = all_attacks["protocol"]["attacks"]["aa"]
    assert [stage["stage"] for stage in aa["stages"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = all_attacks["robust"]["natural"].sum().item()
    for stage in aa["stages"]:
        assert stage["attacked"] == left
        left -= stage["broken"]
        assert stage["robust"] == pytest.approx(left)  # of 100 images
    assert aa["stages"][-1]["robust"] == all_attacks["aa"]


# laws


def test_robust_accuracy_falls_with_the_radius(trained, test_set):
    for attack in ("fgsm_plain", "pgd20", "cw_inf"):
        falling = [
            evaluate(trained, *test_set, (attack,), eps)[attack] for eps in (0.01, 0.05, 0.1, 0.2, 0.4)
        ]
        assert all(after <= before + 1 for before, after in pairwise(falling))
        assert falling[-1] < falling[0] - 20


def test_stronger_attacks_leave_fewer_standing(all_attacks):
    assert all_attacks["pgd20"] <= all_attacks["fgsm_plain"] + 1
    assert all_attacks["pgd20"] <= all_attacks["pgd10"] + 1
    assert all_attacks["aa"] <= min(all_attacks["pgd20"], all_attacks["cw_inf"]) + 1
    assert all_attacks["fgsm"] <= all_attacks["natural"]
    assert bool((all_attacks["robust"]["aa"] <= all_attacks["robust"]["natural"]).all())


def linear_network(classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    # far enough from 0 and 1 that no attack is clipped
    images = 0.4 + 0.2 * torch.rand(60, 2, 3, 3, generator=generator)
    labels = torch.randint(classes, (60,), generator=generator)
    with torch.no_grad():
        right = network(images).argmax(1)
    labels[:40] = right[:40]
    return network, images, labels


def exact_radii(network, images, labels):
    """The radius at which each image of a linear network falls: the smallest margin over its dual norm."""
    weight, bias = network[1].weight.detach(), network[1].bias.detach()
    radii = []
    for image, label in zip(images.flatten(1), labels.tolist(), strict=True):
        logits = weight @ image + bias
        others = [k for k in range(len(logits)) if k != label]
        radii.append(
            min((logits[label] - logits[k]) / (weight[label] - weight[k]).abs().sum() for k in others)
        )
    return torch.stack(radii)


def half_way(radii):
    """A radius between two images', with a few images on either side."""
    falling = radii[(radii > 0) & (radii < 0.35)].sort().values
    return falling[len(falling) // 2 - 1 : len(falling) // 2 + 1].mean().item()


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_cw_inf_for_any_number_of_classes(classes):
    network, images, labels = linear_network(classes)
    radii = exact_radii(network, images, labels)
    eps = half_way(radii)
    result = evaluate(network, images, labels, ("natural", "cw_inf"), eps)
    assert bool(((radii > eps) <= result["robust"]["cw_inf"]).all())  # what cannot be broken is not
    assert result["cw_inf"] < result["natural"]
    if classes == 2:
        assert result["robust"]["cw_inf"].tolist() == (radii > eps).tolist()


@pytest.mark.parametrize("classes", [2, 3, 4, 7, 12])
def test_autoattack_is_exact_on_linear_networks_of_few_and_many_classes(classes):
    network, images, labels = linear_network(classes, seed=1)
    budget = {"n_iter": 20, "n_queries": 10}
    radii = exact_radii(network, images, labels)
    eps = half_way(radii)
    result = evaluate(network, images, labels, ("natural", "aa"), eps, aa_settings=budget)
    assert result["robust"]["aa"].tolist() == (radii > eps).tolist()
    assert 0 < result["aa"] < result["natural"]
    aa = result["protocol"]["attacks"]["aa"]
    assert aa["n_target_classes"] == min(9, classes - 1)
    left_out = "apgd-t" not in [stage["stage"] for stage in aa["stages"]]
    assert left_out == (classes <= 3) == ("targeted_dlr_left_out" in flag_names(result))


def test_results_do_not_depend_on_the_batch_size_or_on_later_images(trained, digits):
    network, images, labels = copy.deepcopy(trained).double(), digits[0][1300:1600], digits[1][1300:1600]
    assert len(images) > BLOCK
    attacks = ("fgsm", "pgd10", "cw_inf")
    large = evaluate(network, images, labels, attacks, EPS, batch_size=300)["robust"]
    small = evaluate(network, images, labels, attacks, EPS, batch_size=37)["robust"]
    first = evaluate(network, images[:50], labels[:50], attacks, EPS)["robust"]
    for attack in attacks:
        assert torch.equal(large[attack], small[attack])
        assert torch.equal(large[attack][:50], first[attack])


def test_starts_follow_from_the_seed_and_the_attack(trained, test_set):
    def adversarial(seed, attack):
        seen = []
        network = Wrapped(trained, before=lambda x: (seen.append(x.detach().clone()), x)[1])
        evaluate(network, *test_set, (attack,), EPS, seed)
        return seen[-1]

    assert torch.equal(adversarial(1, "fgsm"), adversarial(1, "fgsm"))
    assert not torch.equal(adversarial(1, "fgsm"), adversarial(2, "fgsm"))
    # one step of eps from the image itself: no randomness at all
    assert torch.equal(adversarial(1, "fgsm_plain"), adversarial(2, "fgsm_plain"))


def test_every_image_shown_to_the_network_is_in_the_ball_and_in_pixel_space(trained, test_set):
    images, labels = test_set
    furthest = []

    def look(x):
        if len(x) == len(images):  # the natural images that are right are looked at alone
            furthest.append((x - images).abs().max().item())
        assert 0 <= x.min() <= x.max() <= 1
        return x

    evaluate(Wrapped(trained, before=look), images, labels, tuple(GRADIENT_ATTACKS), EPS)
    assert max(furthest) == pytest.approx(EPS, abs=1e-6)


# oracles


def test_pgd20_equals_stock_torchattacks_image_by_image(trained, test_set, monkeypatch):
    network = copy.deepcopy(trained).double()
    images, labels = test_set[0][:40].double(), test_set[1][:40]
    result = evaluate(network, images, labels, ("pgd20",), EPS, seed=3)

    generator = stream(3, "evaluate", "pgd20", 0)
    noise = torch.empty(256, 1, 8, 8).uniform_(-EPS, EPS, generator=generator).double()
    stock = torchattacks.PGD(network, eps=EPS, alpha=EPS / 4, steps=20, random_start=True)
    right = 0
    for position in range(40):
        image, label = images[position : position + 1], labels[position : position + 1]
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "uniform_", lambda x, *_, p=position: x.copy_(noise[p : p + 1]))
            adversarial = stock(image, label)
        right += int(network(adversarial).argmax(1) == label)
    assert result["pgd20"] == pytest.approx(100 * right / 40)
    assert 0 < right < 40


def stock_autoattack(network, images, labels, *, eps, seed, batch_size, budget=None):
    network = copy.deepcopy(network).eval()
    attack = AutoAttack(network, eps=eps, seed=seed, device="cpu", version="standard")
    if budget:
        attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = budget["n_iter"]
        attack.square.n_queries = budget["n_queries"]
    with torch.random.fork_rng(devices=[]):
        _, predicted = attack.run_standard_evaluation(images, labels, batch_size=batch_size)
    return predicted == labels


@pytest.mark.parametrize(("seed", "batch_size", "eps"), [(0, 100, 0.1), (7, 33, 0.15), (2, 16, 0.2)])
def test_autoattack_gives_stock_flags(trained, test_set, seed, batch_size, eps):
    budget = {"n_iter": 15, "n_queries": 60}
    stock = stock_autoattack(trained, *test_set, eps=eps, seed=seed, batch_size=batch_size, budget=budget)
    ours = evaluate(trained, *test_set, ("aa",), eps, seed, batch_size=batch_size, aa_settings=budget)
    assert ours["robust"]["aa"].tolist() == stock.tolist()
    assert 0 < stock.sum() < 100


@pytest.mark.slow
def test_autoattack_standard_gives_stock_flags(trained, test_set):
    images, labels = test_set[0][:20], test_set[1][:20]
    stock = stock_autoattack(trained, images, labels, eps=0.17, seed=0, batch_size=20)
    ours = evaluate(trained, images, labels, ("aa",), 0.17, batch_size=20)
    assert ours["robust"]["aa"].tolist() == stock.tolist()
    assert 0 < stock.sum() < 20
    assert ours["protocol"]["attacks"]["aa"]["version"] == "standard"
    assert "non_standard_budget" not in flag_names(ours)


def test_autoattack_on_a_gradient_masked_network_gives_stock_flags(trained, test_set):
    network = Wrapped(trained, before=lambda x: (x * 4).round() / 4)
    settings_ = {"eps": 0.15, "seed": 0, "batch_size": 50}
    budget = {"n_iter": 5, "n_queries": 100}
    stock = stock_autoattack(network, *test_set, **settings_, budget=budget)
    ours = evaluate(network, *test_set, ("aa",), **settings_, aa_settings=budget)
    assert ours["robust"]["aa"].tolist() == stock.tolist()


def test_autoattack_goes_on_from_any_batch(trained, test_set):
    images, labels = test_set
    arguments = {
        "classes": 10,
        "eps": EPS,
        "seed": 0,
        "batch_size": 16,
        "settings": {"n_iter": 4, "n_queries": 9},
    }
    with under_evaluation(trained) as subject:
        data = sample(images, labels, device=subject.device, dtype=torch.float32)
        natural = subject(images).argmax(1) == labels

        def run(state, batches):
            runner, done = Runner(subject, **arguments), 0
            while state.stage < len(runner.stages):
                for _ in runner.run_stage(data, state):
                    done += 1
                    if done == batches:
                        return state
            return state

        whole = run(State.start(natural), batches=None)
        for batches in (1, 8, 11):
            interrupted = copy.deepcopy(run(State.start(natural), batches))
            assert interrupted.stage < 4
            assert run(interrupted, batches=None).fell_to.tolist() == whole.fell_to.tolist()


# ------------------------------------------------------------------------------------------- broken off


class _Enough(Exception):  # noqa: N818 (it is no error)
    pass


EVERYTHING = ("natural", "fgsm", "pgd20", "cw_inf", "aa")
PIECES = {"batch_size": 16, "eps": EPS, "aa_settings": {"n_iter": 4, "n_queries": 9}}


def _counted(network):
    """Counts the images that are shown to the network."""
    shown = []
    network.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    return shown


def _broken_off(network, test_set, folder, batches, attacks=EVERYTHING):
    """An evaluation that is broken off after so many batches."""
    done = 0

    def after_batch():
        nonlocal done
        done += 1
        if done == batches:
            raise _Enough

    with pytest.raises(_Enough):
        evaluate(network, *test_set, attacks, **PIECES, state_folder=folder, after_batch=after_batch)


def _without_time(result):
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key != "seconds"}
        if isinstance(value, list):
            return [plain(inner) for inner in value]
        return value.tolist() if isinstance(value, torch.Tensor) else value

    return plain(result)


@pytest.fixture(scope="module")
def in_one_go(trained, test_set):
    return evaluate(trained, *test_set, EVERYTHING, **PIECES)


def test_an_evaluation_that_is_broken_off_after_every_batch_gives_the_same_result(
    trained, test_set, in_one_go, tmp_path
):
    """Attack by attack and batch by batch, AutoAttack's stages too."""
    result, calls = None, 0
    while result is None:
        calls += 1
        try:
            _broken_off(trained, test_set, tmp_path, batches=1)
        except pytest.fail.Exception:  # it came to its end without another batch
            result = evaluate(trained, *test_set, EVERYTHING, **PIECES, state_folder=tmp_path)
    assert calls > 4 * len(test_set[1]) // 16
    assert _without_time(result) == _without_time(in_one_go)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 25), max_size=3))
def test_it_may_be_broken_off_anywhere(trained, test_set, in_one_go, tmp_path_factory, stops):
    folder = tmp_path_factory.mktemp("state")
    for batches in stops:
        with contextlib.suppress(pytest.fail.Exception):
            _broken_off(trained, test_set, folder, batches)
    result = evaluate(trained, *test_set, EVERYTHING, **PIECES, state_folder=folder)
    assert _without_time(result) == _without_time(in_one_go)


@pytest.mark.slow
@pytest.mark.parametrize("break_off_after", [3, 30])
def test_processes_that_take_turns_get_what_one_gets(trained, test_set, tmp_path, break_off_after):
    """Three of them, seven batches an attack; broken off in natural accuracy or in AutoAttack, and continued."""
    how = {"attacks": EVERYTHING, **PIECES, "curve": 40}
    alone = evaluate(trained, *test_set, **how)
    given_ = {"network": trained, "images": test_set[0], "labels": test_set[1], "how": how}
    torch.save(given_ | {"break_off_after": break_off_after}, tmp_path / "given.pt")
    command = [*together(3), evaluation_in_turns.__file__, str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = ENVIRONMENT | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(3)]
    for one in found:
        assert _without_time(one["result"]) == _without_time(alone)
    # a third of the batches each: 7 are 3 rounds, 40 images of the curve one
    stages = alone["protocol"]["attacks"]["aa"]["stages"]
    batches = [7] * 4 + [3] * len(alone["curve"]) + [-(-stage["attacked"] // 16) for stage in stages]
    assert found[0]["rounds"] == sum(-(-count // 3) for count in batches)
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_what_is_known_is_not_measured_again(trained, test_set, tmp_path):
    network = copy.deepcopy(trained)
    evaluate(network, *test_set, ("natural", "pgd20"), **PIECES, state_folder=tmp_path)
    shown = _counted(network)
    evaluate(network, *test_set, ("natural", "pgd20"), **PIECES, state_folder=tmp_path)
    looks = sum(shown)  # at the network itself: its outputs, and where its gradient is zero
    shown.clear()
    evaluate(network, *test_set, ("natural", "fgsm", "pgd20"), **PIECES, state_folder=tmp_path)
    assert sum(shown) == looks + 2 * len(test_set[1])  # one step of FGSM, and its verdict


@pytest.mark.slow
@pytest.mark.parametrize("other", ["weights", "images", "labels", "eps", "seed", "batch_size", "aa_settings"])
def test_another_evaluation_in_the_same_folder_begins_by_itself(trained, test_set, tmp_path, other):
    images, labels = test_set
    changed, network = dict(PIECES), copy.deepcopy(trained)
    attacks = ("natural", "fgsm", "aa")
    evaluate(network, images, labels, attacks, **PIECES, state_folder=tmp_path)
    if other == "weights":
        with torch.no_grad():
            network[-1].bias[3] += 5.0
    elif other == "images":
        images = images.flip(3)
    elif other == "labels":
        labels = labels.flip(0)
    else:
        budget = {"n_iter": 2, "n_queries": 3}
        values = {"eps": 0.05, "seed": 7, "batch_size": 20, "aa_settings": budget}
        changed[other] = values[other]
    kept = evaluate(network, images, labels, attacks, **changed, state_folder=tmp_path)
    afresh = evaluate(network, images, labels, attacks, **changed)
    assert _without_time(kept) == _without_time(afresh)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "torn", "a bit", "too many", "no flags", "no stage", "another"])
def test_a_state_that_is_not_whole_is_reported_and_measured_again(
    trained, test_set, in_one_go, tmp_path, caplog, damage
):
    _broken_off(trained, test_set, tmp_path, batches=31)
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    with safe_open(file, framework="pt") as held:
        tensors, metadata = {name: held.get_tensor(name) for name in held.keys()}, held.metadata()  # noqa: SIM118
    if damage == "too many":
        tensors["passes/natural"] = torch.ones(2, 99999, dtype=torch.uint8)
    elif damage == "no flags":
        tensors["passes/natural"] = 7 * tensors["passes/natural"]
    elif damage == "no stage":
        metadata["numbers"] = metadata["numbers"].replace('"stage": ', '"stage": 9')
    elif damage == "another":
        metadata["key"] = metadata["key"][::-1]
    damaged = {
        "empty": b"",
        "torn": content[: len(content) // 2],
        "a bit": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    }
    metadata.pop("sum")
    metadata["sum"] = _sum(tensors, **metadata)
    file.write_bytes(damaged[damage] if damage in damaged else save(tensors, metadata))
    result = evaluate(trained, *test_set, EVERYTHING, **PIECES, state_folder=tmp_path)
    assert _without_time(result) == _without_time(in_one_go)
    assert f"{file} cannot be used" in caplog.text
    assert "measuring again" in caplog.text


def test_accuracy_under_can_be_broken_off(trained, test_set):
    calls = []

    def after_batch():
        calls.append(None)
        if len(calls) == 2:
            raise _Enough

    with pytest.raises(_Enough):
        accuracy_under(trained, *test_set, "pgd10", eps=EPS, batch_size=16, after_batch=after_batch)
    assert len(calls) == 2


def test_nothing_right_is_zero_without_an_attack(trained, test_set):
    images, labels = test_set
    wrong = (trained(images).argmax(1) + 1) % 10
    result = evaluate(trained, images, wrong, ("natural", "aa"), EPS)
    assert result["natural"] == result["aa"] == 0
    stages = result["protocol"]["attacks"]["aa"]["stages"]
    assert [stage["attacked"] for stage in stages] == [0, 0, 0, 0]
    assert result["interval"]["aa"][0] == 0 < result["interval"]["aa"][1]
    assert labels.shape == wrong.shape


# the cheap function of per-epoch validation


@pytest.mark.parametrize("attack", ["natural", "pgd10", "cw_inf"])
def test_accuracy_under_gives_the_flags_of_evaluate(trained, test_set, attack):
    images = (test_set[0] * 255).round().to(torch.uint8)
    flags = accuracy_under(trained, images, test_set[1], attack, eps=EPS, seed=5, batch_size=30)
    whole = evaluate(trained, images, test_set[1], (attack,), EPS, 5, batch_size=30)
    assert torch.equal(flags.cpu(), whole["robust"][attack])


def test_accuracy_under_is_not_for_autoattack(trained, test_set):
    with pytest.raises(ValueError, match="use evaluate"):
        accuracy_under(trained, *test_set, "aa")


# what is accepted


def test_all_forms_of_the_same_images_give_the_same_flags(trained, test_set):
    raw, labels = (test_set[0] * 255).round().to(torch.uint8), test_set[1]
    floats = raw.float() / 255
    read_only = floats.numpy().copy()
    read_only.flags.writeable = False
    strided = np.ascontiguousarray(raw.numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected = evaluate(trained, floats, labels, ("pgd10",), EPS)["robust"]["pgd10"]
    for images, given_labels in [
        (raw, labels.int()),
        (raw.numpy(), labels.numpy()),
        (read_only, labels.to(torch.uint8)),
        (strided, labels.numpy().astype(np.int16)),
        (floats.numpy().astype(">f4"), labels.numpy().astype(">i4")),
        (raw, labels.numpy().astype(np.uint16)),
        (raw, labels.to(torch.uint32)),
    ]:
        assert torch.equal(
            evaluate(trained, images, given_labels, ("pgd10",), EPS)["robust"]["pgd10"], expected
        )


def test_callers_autocast_and_grad_modes_change_nothing(trained, test_set):
    def flags():
        return evaluate(trained, *test_set, ("pgd10", "aa"), EPS, aa_settings=TRIMMED)["robust"]

    outside = flags()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = flags()
    with torch.no_grad():
        without_grad = flags()
    with torch.inference_mode():
        inference = flags()
    for attack in outside:
        assert torch.equal(outside[attack], autocast[attack])
        assert torch.equal(outside[attack], without_grad[attack])
        assert torch.equal(outside[attack], inference[attack])


def test_a_network_prepared_for_mixed_precision_is_evaluated_in_its_own(trained, test_set):
    network = copy.deepcopy(trained)
    expected = evaluate(network, *test_set, ("natural", "pgd10"), EPS)
    types = []

    def patched(self, images):  # what accelerate does to a network
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self._original_forward(images)
        types.append(logits.dtype)
        return logits.float()

    network._original_forward = network.forward
    network.forward = MethodType(patched, network)
    found = evaluate(network, *test_set, ("natural", "pgd10"), EPS)
    assert types == []
    assert torch.equal(found["robust"]["pgd10"], expected["robust"]["pgd10"])
    network(test_set[0])
    assert types == [torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_networks_own_type_is_kept(trained, test_set, dtype):
    seen = set()
    network = Wrapped(copy.deepcopy(trained).to(dtype), before=lambda x: (seen.add(x.dtype), x)[1])
    result = evaluate(network, *test_set, ("pgd10", "aa"), EPS, aa_settings=TRIMMED)
    assert seen == {dtype}
    assert result["protocol"]["dtype"] == str(dtype).removeprefix("torch.")
    assert result["aa"] <= result["pgd10"] + 1


def test_channels_last_agrees_and_the_weights_come_back(trained, test_set):
    network = copy.deepcopy(trained)
    before = [(parameter.data_ptr(), parameter.stride()) for parameter in network.parameters()]
    plain = evaluate(network, *test_set, ("pgd20", "aa"), EPS, aa_settings=TRIMMED)
    last = evaluate(network, *test_set, ("pgd20", "aa"), EPS, aa_settings=TRIMMED, channels_last=True)
    assert abs(plain["pgd20"] - last["pgd20"]) <= 1
    assert abs(plain["aa"] - last["aa"]) <= 1
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in network.parameters()] == before


def test_a_network_without_parameters_can_be_evaluated(test_set):
    class Means(nn.Module):
        def forward(self, images):
            return 10 * F.adaptive_avg_pool2d(images, 4)[:, 0].flatten(1)[:, :10]

    result = evaluate(Means(), *test_set, ("natural", "pgd10", "aa"), EPS, aa_settings=TRIMMED)
    assert result["aa"] <= result["pgd10"] <= result["natural"]


# what is left alone


@pytest.mark.parametrize("broken", [False, True])
def test_the_network_and_the_global_random_state_are_left_as_they_were(trained, test_set, broken):
    network = copy.deepcopy(trained).train()
    network[1].eval()  # a BatchNorm frozen on purpose
    network[0].weight.requires_grad_(False)
    network[3].weight.grad = torch.ones_like(network[3].weight)
    weights = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    asked = [parameter.requires_grad for parameter in network.parameters()]
    torch.manual_seed(11)
    random = torch.get_rng_state()

    if broken:
        network.register_forward_hook(lambda *_: "no logits")
        with pytest.raises(TypeError, match="logits"):
            evaluate(network, *test_set, ATTACKS, EPS, aa_settings=TRIMMED)
    else:
        evaluate(network, *test_set, ATTACKS, EPS, aa_settings=TRIMMED)

    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == asked
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(network[3].weight.grad, torch.ones_like(network[3].weight))
    assert network[6].weight.grad is None


def test_images_and_labels_are_left_as_they_were(trained, test_set):
    images, labels = test_set[0].clone().requires_grad_(True), test_set[1].clone()
    evaluate(trained, images, labels, ATTACKS, EPS, aa_settings=TRIMMED)
    assert torch.equal(images, test_set[0])
    assert torch.equal(labels, test_set[1])
    assert images.grad is None


# flags: none on a sound network, each on a network broken on purpose


def test_a_sound_network_raises_no_flag(trained, test_set, all_attacks):
    assert flag_names(all_attacks) == {"non_standard_budget"}
    few = evaluate(trained, test_set[0][:20], test_set[1][:20], ("natural", "pgd20", "cw_inf"), EPS)
    assert few["flags"] == []


def test_each_flag_has_the_public_form(all_attacks):
    (flag,) = all_attacks["flags"]
    assert set(flag) == {"flag", "attack", "detail", "images"}
    assert flag["attack"] == "aa"
    assert flag["images"] == 100
    assert "6" in flag["detail"]


def test_probabilities_are_flagged(trained, test_set):
    network = Wrapped(trained, after=lambda z: z.softmax(1))
    assert "probabilities" in flag_names(evaluate(network, *test_set, ("natural",)))


def test_dropout_that_ignores_the_mode_is_flagged(trained, test_set):
    network = Wrapped(trained, before=lambda x: F.dropout(x, 0.2, training=True))
    result = evaluate(network, *test_set, ("natural",))
    (flag,) = result["flags"]
    assert flag["flag"] == "non_deterministic"
    assert flag["images"] > 50


@pytest.mark.parametrize(
    "cut", [lambda x: (x * 8).round() / 8, lambda x: x.detach()], ids=["rounding", "detach"]
)
def test_zero_gradients_are_flagged_and_counted(trained, test_set, cut):
    result = evaluate(Wrapped(trained, before=cut), *test_set, ("natural", "pgd10"), EPS)
    flag = next(flag for flag in result["flags"] if flag["flag"] == "zero_gradients")
    assert flag["images"] == result["robust"]["natural"].sum()
    assert "100.0%" in flag["detail"]


def test_square_beating_masked_gradients_is_flagged_and_counted(trained, test_set):
    network = Wrapped(trained, before=lambda x: (x * 4).round() / 4)
    budget = {"n_iter": 5, "n_queries": 300}
    result = evaluate(network, *test_set, ("natural", "fgsm_plain", "aa"), 0.15, aa_settings=budget)
    flags = {(flag["flag"], flag["attack"]): flag for flag in result["flags"]}
    square = result["protocol"]["attacks"]["aa"]["stages"][-1]
    assert square["stage"] == "square"
    assert square["broken"] > 5
    assert 0 < flags["square_beats_gradients", "aa"]["images"] <= square["broken"]
    assert ("zero_gradients", "*") in flags
    assert ("zero_gradients", "aa") in flags


def test_a_gradient_that_points_the_wrong_way_is_flagged(trained, test_set):
    network = Wrapped(trained, before=lambda x: 2 * x.detach() - x)
    result = evaluate(network, *test_set, ("natural", "pgd20"), EPS)
    assert {"robust_above_natural", "found_nothing"} <= flag_names(result)


def test_a_weaker_attack_that_is_stronger_is_flagged(trained, test_set):
    def honest_on_the_data_only(x):
        on_grid = ((x * 16).round() == x * 16).flatten(1).all(1)[:, None, None, None]
        return torch.where(on_grid, x, 2 * x.detach() - x)

    network = Wrapped(trained, before=honest_on_the_data_only)
    result = evaluate(network, *test_set, ("natural", "fgsm_plain", "pgd20"), EPS)
    flag = next(flag for flag in result["flags"] if flag["flag"] == "weaker_attack_stronger")
    assert flag["attack"] == "pgd20"
    assert flag["images"] == round(result["pgd20"] - result["fgsm_plain"])


def test_autoattack_above_pgd_is_flagged_beyond_a_whisker():
    natural, pgd, close, far = (torch.arange(1000) < count for count in (900, 500, 504, 520))
    assert list(masking.from_robust(natural, {"pgd20": pgd, "aa": close}, eps=0.03)) == []
    (flag,) = masking.from_robust(natural, {"pgd20": pgd, "aa": far}, eps=0.03)
    assert (flag["flag"], flag["attack"], flag["images"]) == ("weaker_attack_stronger", "aa", 20)


def test_fewer_images_for_autoattack_take_no_flag_from_it(trained, test_set, monkeypatch):
    """Measured in two parts, it is doubted for what one call on those images doubts it for."""
    real, fells = Runner._attacked, {"square": []}

    def weak(self, stage, sample, positions):
        outcome = real(self, stage, sample, positions)
        outcome.fell[:] = torch.from_numpy(np.isin(positions, fells.get(stage, [])))
        return outcome

    monkeypatch.setattr(Runner, "_attacked", weak)
    attacks = ("natural", "pgd20")
    others = evaluate(trained, *test_set, attacks, EPS, batch_size=40)
    few = test_set[0][:80], test_set[1][:80]
    stood = others["robust"]["pgd20"][:80].nonzero()[:, 0].tolist()
    fallen = (~others["robust"]["pgd20"][:80]).nonzero()[:, 0].tolist()
    for fells["square"], flag in (
        ([], "weaker_attack_stronger"),
        (stood, "square_beats_gradients"),
        (fallen, None),
    ):
        whole = evaluate(trained, *few, (*attacks, "aa"), EPS, batch_size=40, aa_settings=TRIMMED)
        alone = evaluate(trained, *few, ("aa",), EPS, batch_size=40, aa_settings=TRIMMED)
        merged = with_autoattack(others, alone)
        assert merged["flags"] == whole["flags"]
        assert flag_names(merged) & {"weaker_attack_stronger", "square_beats_gradients"} == {flag} - {None}


def test_a_harmless_radius_is_no_sign_of_masking():
    natural = torch.arange(1000) < 900
    assert list(masking.from_robust(natural, {"pgd20": natural}, eps=1 / 255)) == []
    assert [flag["flag"] for flag in masking.from_robust(natural, {"pgd20": natural}, eps=8 / 255)] == [
        "found_nothing"
    ]


def test_adversarial_images_without_finite_logits_are_flagged_and_do_not_count(trained, test_set):
    def undefined_off_the_data(x):
        return torch.where((x * 16).round() == x * 16, x, torch.nan)

    result = evaluate(Wrapped(trained, before=undefined_off_the_data), *test_set, ("natural", "pgd10"), EPS)
    assert "non_finite_logits" in flag_names(result)
    assert result["natural"] > 80
    assert result["pgd10"] == 0


def test_a_network_that_optimises_in_its_forward_is_flagged(trained, test_set):
    def purify(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(trained(leaf).logsumexp(1).sum(), leaf)
        return x + 0.001 * gradient

    images, labels = test_set[0][:20], test_set[1][:20]
    result = evaluate(Wrapped(trained, before=purify), images, labels, ("aa",), EPS, aa_settings=TRIMMED)
    assert "dynamic_defense" in flag_names(result)


# errors: before any compute, in words that help


@contextmanager
def refused(message):
    """A TypeError or ValueError that says `message`, unless a run-time type checker was quicker."""
    with pytest.raises((TypeError, ValueError)) as error:
        yield
    assert isinstance(error.value, TypeCheckError) or re.search(message, str(error.value))


def good():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": good()[0] * 255}, "divide them by 255"),
        ({"images": good()[0] * 4 - 2}, "inside the network"),
        ({"images": good()[0].long()}, "int64"),
        ({"images": good()[0].bool()}, "bool"),
        ({"images": good()[0][0]}, r"images\[None\]"),
        ({"images": good()[0].permute(0, 2, 3, 1).numpy()}, "channels last"),
        ({"images": good()[0][:0], "labels": good()[1][:0]}, "no image"),
        ({"images": good()[0][:, :, :0]}, "without pixels"),
        ({"images": good()[0][:5]}, "6 labels for 5 images"),
        ({"images": good()[0].tolist()}, "list"),
        ({"images": np.array(["a"])}, "array of <U1"),
        ({"labels": good()[1].float()}, "labels.long"),
        ({"labels": F.one_hot(good()[1])}, "argmax"),
        ({"labels": good()[1][:, None]}, "reshape"),
        ({"labels": good()[1] - 1}, "the lowest is -1"),
        ({"attacks": ("pgd21",)}, "did you mean 'pgd20'"),
        ({"attacks": ("natural", "cw")}, "did you mean 'cw_inf'"),
        ({"attacks": ()}, "at least one"),
        ({"eps": 8.0}, "did you mean 8 / 255"),
        ({"eps": 0.0}, "0 < eps < 1"),
        ({"eps": float("nan")}, "0 < eps < 1"),
        ({"eps": "8/255"}, "8 / 255"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"device": "meta"}, "model.to"),
    ],
)
def test_wrong_arguments_are_refused_before_any_compute(change, message):
    images, labels = good()
    with refused(message):
        evaluate(Untouchable(), **({"images": images, "labels": labels} | change))


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 6 * 64 - 1), value=st.sampled_from([float("nan"), float("inf"), -1e-3, 1.001]))
def test_one_bad_pixel_anywhere_is_refused(position, value):
    images, labels = good()
    images.view(-1)[position] = value
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        evaluate(Untouchable(), images, labels)


@settings(max_examples=15, deadline=None)
@given(position=st.integers(0, 5), label=st.integers(10, 1000))
def test_one_label_without_a_class_is_refused(position, label):
    images, labels = good()
    labels[position] = label
    with pytest.raises(ValueError, match=f"at least {label + 1} classes"):
        evaluate(small_network(), images, labels)


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (lambda z: (z, z), TypeError, "tuple"),
        (lambda z: z.argmax(1), TypeError, "int64"),
        (lambda z: z[:, :, None], ValueError, r"\(6, 10, 1\)"),
        (lambda z: z[:, :1], ValueError, "1 column"),
        (lambda z: z / 0, ValueError, "finite"),
    ],
)
def test_networks_that_return_no_logits_are_refused(outputs, error, message):
    for function in (lambda m: evaluate(m, *good()), lambda m: accuracy_under(m, *good(), "pgd10")):
        with pytest.raises(error, match=message):
            function(Wrapped(small_network(), after=outputs))


def test_a_natural_image_of_a_later_batch_without_finite_logits_is_named(trained):
    images, labels = good()
    images[4] = 0

    def undefined_on_black(x):
        return torch.where(x.flatten(1).any(1)[:, None, None, None], x, torch.nan)

    with pytest.raises(ValueError, match="position 4"):
        evaluate(Wrapped(trained, before=undefined_on_black), images, labels, ("natural",), batch_size=2)


def test_small_gradients_move_an_image_in_any_company(trained, test_set):
    """In fp16 a mean over the batch loses what one image alone keeps."""
    network = Wrapped(copy.deepcopy(trained).half(), after=lambda z: z / 2**16)
    for attack in ("pgd20", "cw_inf"):
        alone, together = (
            accuracy_under(network, *test_set, attack, eps=EPS, batch_size=size) for size in (1, 100)
        )
        assert (alone != together).sum() <= 1


def test_something_that_is_no_network_is_refused():
    class Classifier:
        model = small_network()

    with refused(r"classifier\.model"):
        evaluate(Classifier(), *good())


def test_autoattack_settings_are_checked(trained, test_set):
    for wrong, message in [
        ({"n_iters": 5}, "did you mean 'n_iter'"),
        ({"n_iter": 0}, "at least 1"),
        ({"n_queries": 0.5}, "integer"),
    ]:
        with refused(message):
            evaluate(trained, *test_set, ("aa",), aa_settings=wrong)


# what is shown


def test_progress_shows_attack_images_and_percentage_only_if_asked(trained, test_set, capsys):
    attacks, budget = ("pgd10", "aa"), {"n_iter": 2, "n_queries": 2}
    for progress in (None, False):  # a captured stream is no terminal
        evaluate(trained, *test_set, attacks, EPS, progress=progress, aa_settings=budget)
        assert capsys.readouterr().err == ""
    result = evaluate(trained, *test_set, attacks, EPS, progress=True, aa_settings=budget)
    captured = capsys.readouterr()
    assert captured.out == ""
    for text in (
        "pgd10",
        "100/100",
        f"robust {result['pgd10']:.2f}%",
        "aa square",
        f"robust {result['aa']:.2f}%",
    ):
        assert text in captured.err


def test_the_table_is_aligned_and_names_doubts():
    flag = {"flag": "zero_gradients", "attack": "*", "detail": "…", "images": 3}
    results = {
        "teacher": {"n": 200, "natural": 84.5, "aa": 48.25, "flags": []},
        "a student": {"n": 200, "natural": 100.0, "pgd20": 5.0, "flags": [flag]},
    }
    assert format_table(results).split("\n") == [
        "           natural  pgd20     aa",
        "             n=200  n=200  n=200",
        "teacher      84.50      –  48.25",
        "a student   100.00   5.00      –",
        "! a student: zero_gradients (*)",
    ]
    results["teacher"]["n"] = 50
    assert format_table(results).split("\n")[0].split() == ["natural", "pgd20", "aa", "n"]
    with pytest.raises(ValueError, match="at least one"):
        format_table({})


def test_the_interval_is_wilsons():
    assert interval(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert interval(0, 10) == pytest.approx((0, 27.753), abs=1e-3)
    assert interval(10, 10) == pytest.approx((72.247, 100), abs=1e-3)
