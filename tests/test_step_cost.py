"""What a whole engine step costs, counted and not timed: passes, gradients of weights, waits for the device.

Without the passes that only figures read (`diagnostics`), which are the loop's tests' business.
"""

import pytest
import torch
from loop_cases import CLASSES, SEED, sgd
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from iad_ext import attacks
from iad_ext.batches import Batches
from iad_ext.data import ImageSet
from iad_ext.loop import Engine, accelerator_for
from iad_ext.objectives import build
from iad_ext.precision import Precision
from iad_ext.randomness import stream

STEPS, BATCH, CONVOLUTIONS = 4, 6, 2
WARM_UP, AFTER = 0, 199
# reading a value back, and what cannot be sized without one
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "unique")


class Counted(TorchDispatchMode):
    """Counts what the operators say of themselves."""

    def __init__(self):
        super().__init__()
        self.backwards = self.of_weights = 0
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name == "convolution_backward":
            self.backwards += 1
            self.of_weights += args[-1][1]  # its output_mask: images, weights, bias
        by_flags = name.startswith(("index", "_index")) and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for x in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name in WAITS or by_flags:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def read_back(monkeypatch):
    """Names of the ways by which a tensor became a Python or NumPy value, beside the operators."""
    found = []
    for name in ("tolist", "numpy", "cpu", "__array__"):
        original = getattr(torch.Tensor, name)

        def noted(self, *args, _name=name, _original=original, **kwargs):
            found.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, noted)
    return found


def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )


def engine(objective, **changed):
    student, teacher = network(1).train(), network(2)
    generator = stream("step cost")
    data = ImageSet(
        torch.randint(256, (BATCH, 3, 8, 8), generator=generator, dtype=torch.uint8),
        torch.randint(CLASSES, (BATCH,), generator=generator),
        tuple("abcdefghijklm"[:CLASSES]),
    )
    attack = None
    if objective.attack != "none":
        attack = attacks.build(
            objective.attack, student, teacher=teacher, steps=STEPS, training=objective.attack_training
        )
    parts = {
        "accelerator": accelerator_for(Precision(kind="fp32", channels_last=False, reason="test"), cpu=True),
        "student": student,
        "optimizer": sgd(student),
        "objective": objective,
        "attack": attack,
        "source": Batches(data, batch_size=BATCH, seed=SEED, padding=1, flip=True),
        "seed": SEED,
        "teacher": teacher,
        "natural_teacher": network(3),
        "diagnostics": "off",
    }
    return Engine(**(parts | changed))


def passes_of(network):
    sizes = []
    network.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    return sizes


# what stands under another name than its row's: its objective, and what the engine is told beside
NAMED = {
    "iad1 + igdm": (build("iad1", igdm=1.0), {}),
    "iad1 + awp": (build("iad1"), {"awp": 0.01}),
}
# objective, epoch, forwards of the student, images that each teacher sees, backwards, those with weights' gradients
COSTS = [
    ("st", WARM_UP, 1, [], [], 1, 1),
    ("at", WARM_UP, STEPS + 1, [], [], STEPS + 1, 1),
    ("trades", WARM_UP, STEPS + 3, [], [], STEPS + 2, 2),
    ("ard", WARM_UP, STEPS + 1, [BATCH], [], STEPS + 1, 1),
    ("akd2", WARM_UP, STEPS + 1, [BATCH], [BATCH], STEPS + 1, 1),
    ("iad1", WARM_UP, STEPS + 1, [BATCH], [], STEPS + 1, 1),
    ("iad1", AFTER, STEPS + 2, [2 * BATCH], [], STEPS + 2, 2),
    ("iad2", WARM_UP, STEPS + 1, [BATCH], [BATCH], STEPS + 1, 1),
    ("iad2", AFTER, STEPS + 2, [BATCH], [BATCH], STEPS + 2, 2),
    ("rslad", WARM_UP, STEPS + 2, [BATCH], [], STEPS + 2, 2),
    # its attack goes through the teacher, whose convolutions pass the gradient on
    ("adaad", WARM_UP, STEPS + 1, [BATCH] * (STEPS + 1), [], 2 * STEPS + 1, 1),
    ("mtard", WARM_UP, STEPS + 2, [BATCH], [BATCH], STEPS + 2, 2),
    ("mart", WARM_UP, STEPS + 2, [], [], STEPS + 2, 2),
    ("adr", WARM_UP, STEPS + 1, [], [], STEPS + 1, 1),
    ("iad1 + igdm", AFTER, STEPS + 3, [3 * BATCH], [], STEPS + 3, 3),
    ("iad1 + awp", AFTER, STEPS + 4, [2 * BATCH], [], STEPS + 4, 4),
]


@pytest.mark.parametrize(
    ("name", "epoch", "forwards", "teacher", "natural", "backwards", "of_weights"), COSTS
)
def test_a_step_costs_exactly_this(name, epoch, forwards, teacher, natural, backwards, of_weights, read_back):
    objective, told = NAMED[name] if name in NAMED else (build(name), {})
    one = engine(objective, **told)
    one._update(epoch, 0)  # what is done once: the epoch's plan, the optimizer's state
    seen = [passes_of(n) for n in (one.student, one.teacher, one.natural_teacher)]
    of_average = passes_of(one.average.network) if one.average is not None else None
    read_back.clear()
    with Counted() as counted:
        one._update(epoch, 0)
    assert seen == [[BATCH] * forwards, teacher, natural]
    assert of_average == ([BATCH] if name == "adr" else None)
    assert counted.backwards == CONVOLUTIONS * backwards
    assert counted.of_weights == CONVOLUTIONS * of_weights
    assert counted.waits == read_back == []


def test_skipping_bad_steps_is_known_to_wait(read_back):
    """The counter counts: this setting is documented to look at the device in every step."""
    one = engine(build("at"), non_finite="skip")
    with Counted() as counted:
        one._update(0, 0)
    assert counted.waits


@pytest.mark.parametrize(
    "wait",
    [lambda t: t.item(), lambda t: bool(t), lambda t: t.tolist(), lambda t: t[t > 0], lambda t: t.numpy()],
)
def test_every_way_to_wait_is_counted(wait, read_back):
    with Counted() as counted:
        wait(torch.ones(1))
    assert counted.waits + read_back


@pytest.mark.parametrize(("epoch", "more"), [(WARM_UP, 1), (AFTER, 0)])
def test_the_faithful_order_costs_a_forward_in_warm_up_and_no_gradient(epoch, more, read_back):
    counts = {}
    for order in ("lean", "faithful"):
        one = engine(build("iad1"), bn_order=order)
        forwards = passes_of(one.student)
        with Counted() as counted:
            one._update(epoch, 0)
        counts[order] = len(forwards), counted.backwards, counted.of_weights, counted.waits
    lean, faithful = counts["lean"], counts["faithful"]
    assert faithful == (lean[0] + more, *lean[1:])
