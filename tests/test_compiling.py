"""Compiled attacks give what eager ones give, and what cannot be compiled runs eagerly and says so."""

import dataclasses
import logging
from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
from torch import nn

from iad_ext import attacks, compiling
from iad_ext.compiling import Compilation, CompiledStep, Graphed, compiled, decide
from iad_ext.randomness import stream

STEPS = 3
KINDS = ["off", "step", "graphs", "auto"]
BUILDERS = {
    "pgd": lambda network: attacks.PGD(network, steps=STEPS, training=True),
    "pgd in eval mode": lambda network: attacks.PGD(network, steps=STEPS),
    "trades": lambda network: attacks.TRADESPGD(network, steps=STEPS),
    "fp16's scale": lambda network: attacks.PGD(network, steps=STEPS, training=True, loss_scale=2.0**14),
}


@pytest.fixture
def images():
    return torch.rand(6, 3, 6, 6, generator=stream("test_compiling"))


@pytest.fixture
def labels():
    return torch.arange(6)


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_traced_step_is_the_eager_step_to_the_last_bit(name, tiny_network, images, labels, unchecked):
    """Traced, not yet fused: images, BatchNorm's statistics and the share of zero gradients are the same."""
    found = []
    for traced in (False, True):
        network = tiny_network(seed=1).train()
        attack = BUILDERS[name](network)
        noise = attack.draw_noise(images.shape, generator=stream("noise"))
        if traced:
            attack.stepper = CompiledStep(attack, backend="aot_eager")
        found.append((attack(images, labels, noise), state(network), attack.stuck))
    (eager, after, stuck), (same, after_same, stuck_same) = found
    assert torch.equal(eager, same)
    assert equal(after, after_same)
    assert (stuck is None) == (stuck_same is None)
    assert stuck is None or torch.equal(stuck, stuck_same)


def test_one_graph_and_no_gradient_of_weights(tiny_network, images, labels, unchecked):
    """A step that dynamo left eager, or that computed weights' gradients, would be slow and say nothing."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    network = tiny_network(seed=1).train()
    attack = attacks.PGD(network, steps=STEPS, training=True)
    attack.stepper = CompiledStep(attack, backend=backend)
    attack(images, labels, torch.zeros_like(images))
    assert len(graphs) == 1
    assert all(parameter.grad is None for parameter in network.parameters())
    attack(images[:4], labels[:4], torch.zeros_like(images[:4]))  # an epoch's last batch runs eagerly
    assert len(graphs) == 1


def test_a_step_that_cannot_be_traced_is_an_error_not_a_slow_step(images, labels, unchecked):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(108, 10)

        def forward(self, x):
            torch._dynamo.graph_break()
            return self.linear(x.flatten(1))

    network = Breaks()
    attack = attacks.PGD(network, steps=STEPS, training=True)
    attack.stepper = CompiledStep(attack, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="graph_break"):
        attack(images, labels, torch.zeros_like(images))


# ------------------------------------------------------------------------------------------- deciding


def decided(wanted, attack, images):
    return decide(wanted, attack, images, classes=10, autocast=nullcontext)


def test_on_a_cpu_auto_is_off_and_says_what_was_measured(tiny_network, images, caplog):
    caplog.set_level(logging.WARNING)
    found = decided("auto", attacks.PGD(tiny_network()), images)
    assert found.kind == "off"
    assert "1.06 times" in found.reason
    assert not caplog.records


def test_graphs_without_a_gpu_fall_back_with_a_word(tiny_network, images, caplog):
    found = decided("graphs", attacks.PGD(tiny_network()), images)
    assert found == Compilation("off", "graphs was wanted; CUDA graphs need a GPU")
    assert "--compile graphs is not taken: CUDA graphs need a GPU; the attack runs eagerly" in caplog.text


def test_others_attacks_run_eagerly(tiny_network, images, caplog):
    assert decided("step", lambda *_: images, images).kind == "off"
    assert "only this package's own attacks" in caplog.text


def test_attacks_that_are_given_a_teachers_pass_run_eagerly(tiny_network, images):
    found = decided("auto", attacks.RSLADPGD(tiny_network()), images)
    assert found.kind == "off"
    assert "given a teacher's pass" in found.reason


def test_off_is_off_without_a_trial(images):
    assert decided("off", None, images) == Compilation("off", "asked for")


def test_unknown_ways_are_named(tiny_network, images):
    with pytest.raises(ValueError, match=r"'stpe'.*did you mean.*step"):
        decided("stpe", attacks.PGD(tiny_network()), images)


@pytest.fixture
def compile_by(monkeypatch):
    """Another backend than inductor, which takes ten seconds for the smallest network."""

    def choose(backend):
        monkeypatch.setattr(compiling, "CompiledStep", lambda attack: CompiledStep(attack, backend=backend))

    return choose


def test_a_trial_leaves_network_and_random_state_alone(tiny_network, images, compile_by, unchecked):
    compile_by("aot_eager")
    network = tiny_network(seed=1).train()
    before, random = state(network), torch.get_rng_state()
    attack = attacks.PGD(network, steps=STEPS, training=True)
    found = decided("step", attack, images)
    assert found.kind == "step"
    assert "asked for: " in found.reason
    assert "the same in 100.00% of its pixels" in found.reason
    assert equal(before, state(network))
    assert torch.equal(random, torch.get_rng_state())
    assert attack.steps == STEPS
    stepper = attack.stepper
    assert compiled(attack, found) is attack
    assert attack.stepper is stepper  # what was compiled for the trial serves the run


@pytest.mark.parametrize("failure", ["raises", "other images"])
def test_what_fails_or_computes_something_else_is_left_out(
    failure, tiny_network, images, monkeypatch, caplog
):
    def take(adv, clean, target):
        if failure == "raises":
            raise RuntimeError("no compiler here\nand a long trace")
        return clean.detach(), torch.zeros_like(clean)

    monkeypatch.setattr(compiling, "CompiledStep", lambda attack: take)
    attack = attacks.PGD(tiny_network(seed=1), steps=STEPS)
    found = decided("step", attack, images)
    assert found.kind == "off"
    said = {"raises": "it fails here (RuntimeError: no compiler here)", "other images": "of its pixels only"}
    assert said[failure] in found.reason
    assert said[failure] in caplog.text
    assert attack.stepper is None
    assert attack.steps == STEPS


def test_compiled_is_what_was_decided(tiny_network):
    attack = attacks.PGD(tiny_network())
    assert compiled(attack, Compilation("off", "")) is attack
    assert attack.stepper is None
    assert compiled(attack, Compilation("step", "")) is attack
    assert isinstance(attack.stepper, CompiledStep)
    assert isinstance(compiled(attack, Compilation("graphs", "")), Graphed)


# ------------------------------------------------------------------------------------------- graphs


class Replayed:
    """Stands where a captured graph stands: notes what it was captured for and what was replayed."""

    captured: list[tuple[int, ...]]

    def __init__(self, attack, images, labels, noise):
        self.captured.append(tuple(images.shape))
        self.attack = attack
        attack(images, labels, noise)
        self.stuck = attack.stuck

    def replayed(self, images, labels, noise):
        """Writes where the capture did, and leaves what the attack itself holds."""
        held = self.attack.stuck
        adversarial = self.attack(images, labels, noise)
        if held is not None:
            self.stuck.copy_(self.attack.stuck)
        self.attack.stuck = held
        return adversarial


def test_two_sizes_get_a_graph_and_others_run_eagerly(tiny_network, images, labels, monkeypatch):
    Replayed.captured = []
    monkeypatch.setattr(compiling, "_Graph", Replayed)
    attack = attacks.PGD(tiny_network(seed=1), steps=STEPS)
    graphed = Graphed(attack)
    for n in (6, 4, 6, 3, 4):
        noise = attack.draw_noise(images[:n].shape, generator=stream("noise", n))
        expected = attack(images[:n], labels[:n], noise)
        assert torch.equal(graphed(images[:n], labels[:n], noise), expected)
    assert [shape[0] for shape in Replayed.captured] == [6, 4]
    assert graphed.stuck is None
    same = [a.draw_noise(images.shape, generator=stream("noise")) for a in (attack, graphed)]
    assert torch.equal(*same)


class _Blind(torch.nn.Module):
    """Has no gradient for images that are black in one place."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        seen = (images[:, :1, :1, :1] > 0.5).to(images)
        return self.network(images * seen)


def test_what_is_stuck_is_the_last_attack_s_of_whatever_size(tiny_network, images, labels, monkeypatch):
    Replayed.captured = []
    monkeypatch.setattr(compiling, "_Graph", Replayed)
    images = images.clone()
    images[::2, :1, :1, :1], images[1::2, :1, :1, :1] = 0.0, 1.0
    attack = attacks.PGD(_Blind(tiny_network(seed=1)), steps=STEPS, loss_scale=2.0)
    graphed, still = Graphed(attack), torch.zeros_like(images)
    for chosen in ([0, 1, 2, 3, 4, 5], [0, 2, 4, 1], [1, 3, 5, 0, 2, 4], [1, 3, 5], [5, 3, 1, 2]):
        graphed(images[chosen], labels[chosen], still[chosen])
        assert graphed.stuck.tolist() == pytest.approx([float(k % 2 == 0) for k in chosen])


def test_a_start_is_drawn_where_none_is_given(tiny_network, images, labels, monkeypatch):
    Replayed.captured = []
    monkeypatch.setattr(compiling, "_Graph", Replayed)
    network = tiny_network(seed=1)
    still = Graphed(attacks.PGD(network, steps=STEPS, random_start=False))
    assert torch.equal(still(images, labels), still.attack(images, labels))
    drawn = Graphed(attacks.PGD(network, steps=STEPS))
    assert not torch.equal(drawn(images, labels), drawn(images, labels))


def test_a_decision_is_plain_data():
    decision = Compilation("graphs", "measured")
    assert Compilation(**dataclasses.asdict(decision)) == decision
