"""The ART door with real ART classifiers and attacks: what ART's own trainer tests assert, and what they forget."""

import copy
import inspect
import logging
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import art_multi_process
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchattacks
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.defences.preprocessor import CutoutPyTorch, FeatureSqueezing, MixupPyTorch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from timm.scheduler import CosineLRScheduler, PlateauLRScheduler
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from iad_ext import IntrospectiveAdversarialDistiller, attacks, evaluate, objectives, precision
from iad_ext.loop import Engine, TrainingStopped
from iad_ext.randomness import stream, stream_seed
from iad_ext.trainer import distiller as door
from iad_ext.trainer import sources
from iad_ext.trainer.foreign_attacks import FromART, on_student
from iad_ext.trainer.pixels import PixelModule

torch.set_num_threads(1)  # tiny networks: a second thread costs more than it gives
EPS = 8 / 255


# ------------------------------------------------------------------------------------------------- material


def network(seed=0, *, norm=False, classes=10, last=(), dtype=torch.float32, channels=1):
    """A small nn.Sequential, (n, channels, 8, 8) -> (n, classes)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batch_norm = [nn.BatchNorm2d(8)] if norm else []
        layers = [
            nn.Conv2d(channels, 8, 3, stride=2),
            *batch_norm,
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, classes),
        ]
        return nn.Sequential(*layers, *last).to(dtype)


class Wrapped(nn.Module):
    """No nn.Sequential: ART's wrapper treats the two differently."""

    def __init__(self, seed=0, **settings):
        super().__init__()
        self.inner = network(seed, **settings)

    def forward(self, x):
        return self.inner(x)


def classifier(module=None, *, optimizer="sgd", lr=0.1, **settings):
    module = network() if module is None else module
    if optimizer == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    known = {"loss": nn.CrossEntropyLoss(), "input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0, 1)}
    return PyTorchClassifier(module, optimizer=optimizer, device_type="cpu", **known | settings)


def weights(trained):
    module = trained.get_classifier().model if isinstance(trained, Trainer) else trained
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def percent(logits, y):
    return 100 * float((logits.argmax(1) == y).mean())


@pytest.fixture(autouse=True)
def accelerate_as_in_a_new_process():
    yield
    for state in (PartialState, AcceleratorState, GradientState):
        state._shared_state.clear()


@pytest.fixture(scope="session")
def digits():
    """Images in [0, 1] and labels: 256 to train on, 200 held out."""
    scans = load_digits()
    x, y = (scans.images / 16).astype(np.float32)[:, None], scans.target
    return x[:256], y[:256], x[1000:1200], y[1000:1200]


@pytest.fixture(scope="session")
def teacher(digits):
    """Adversarially trained through the door itself."""
    x, y, *_ = digits
    trainer = IntrospectiveAdversarialDistiller(classifier(network(7)), objective="at", precision="fp32")
    trainer.fit(x, y, batch_size=32, nb_epochs=12)
    return trainer.get_classifier().model


def distiller(student, teacher, attack=None, **settings):
    """Two epochs in these tests have no warm-up unless they ask."""
    if isinstance(settings.get("objective", "iad1"), str) and settings.get("objective", "iad1").startswith(
        "iad"
    ):
        settings.setdefault("objective_settings", {"warmup_epochs": 0})
    return IntrospectiveAdversarialDistiller(student, teacher, attack, **settings)


# ------------------------------------------------------------------------- what ART's own trainer tests assert


def test_predicts_before_training_as_the_classifier_does(digits, teacher):
    x, *_ = digits
    student = classifier()
    trainer = distiller(student, teacher)
    assert isinstance(trainer, Trainer)
    assert np.array_equal(trainer.predict(x), student.predict(x))
    assert np.array_equal(trainer.predict(x, batch_size=7), student.predict(x, batch_size=7))
    assert trainer.get_classifier() is student
    assert trainer.classifier is student


@pytest.mark.parametrize("objective", ["iad1", "iad2", "trades"])
def test_fit_makes_the_student_robust(digits, teacher, objective):
    x, y, x_test, y_test = digits
    student = classifier()
    before = evaluate(student.model, x_test, y_test, attacks=("natural", "pgd20"))
    natural = network(7) if objective == "iad2" else None
    trainer = IntrospectiveAdversarialDistiller(
        student, teacher, objective=objective, natural_teacher=natural
    )
    trainer.fit(x, y, batch_size=32, nb_epochs=8)
    after = evaluate(student.model, x_test, y_test, attacks=("natural", "pgd20"))
    assert before["natural"] < 30
    assert after["natural"] > 60
    assert after["pgd20"] > before["pgd20"] + 30


def test_fits_fewer_images_than_a_batch(digits, teacher):
    x, y, *_ = digits
    trainer = distiller(classifier(), teacher)
    before = weights(trainer)
    trainer.fit(x[:5], y[:5], batch_size=128, nb_epochs=1)
    assert distance(before, weights(trainer)) > 0


def test_every_label_format_trains_the_same_bits(digits, teacher):
    x, y, *_ = digits
    x, y = x[:40], y[:40]
    formats = {
        "(n,)": y,
        "(n, 1)": y[:, None],
        "one-hot": np.eye(10)[y],
        "one-hot uint8": np.eye(10, dtype=np.uint8)[y],
        "float": y.astype(np.float32),
        "int8": y.astype(np.int8),
    }
    trained = {}
    for name, labels in formats.items():
        trainer = distiller(classifier(), teacher)
        trainer.fit(x, labels, batch_size=16, nb_epochs=2, validation_data=(x, labels))
        trained[name] = weights(trainer), trainer.history[-1]["eval/pgd10"]
    (reference, accuracy), *others = trained.values()
    for other, its_accuracy in others:
        assert equal(reference, other)
        assert accuracy == its_accuracy


@pytest.mark.parametrize("native", [True, False])
def test_leaves_images_and_labels_as_they_are(digits, teacher, native):
    x, y, x_test, y_test = (part[:40].copy() for part in digits)
    given = [x, y, x_test, y_test]
    kept = [part.copy() for part in given]
    for part in given:
        part.flags.writeable = False
    student = classifier()
    attack = None if native else ProjectedGradientDescent(student, eps=0.1, max_iter=2, verbose=False)
    distiller(student, teacher, attack).fit(x, y, validation_data=(x_test, y_test), nb_epochs=1)
    assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True))


def test_a_second_fit_goes_on_from_epoch_0_with_validation(digits, teacher):
    x, y, x_test, y_test = digits
    student = classifier()
    trainer = IntrospectiveAdversarialDistiller(student, teacher)
    trainer.fit(x, y, batch_size=64, nb_epochs=4)
    first, history = weights(trainer), trainer.history
    assert "eval/natural" not in history[0]
    assert [record["epoch"] for record in history] == [0, 1, 2, 3]
    momentum = [state["momentum_buffer"].clone() for state in student.optimizer.state.values()]
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=64, nb_epochs=4)
    assert distance(first, weights(trainer)) > 0
    assert [record["epoch"] for record in trainer.history] == [0, 1, 2, 3]
    # warm-up of round(0.3 · 4) = 1 epoch again: no introspection in epoch 0
    assert trainer.history[0].get("loss/self") is None
    assert trainer.history[1]["loss/self"] > 0
    assert trainer.history[-1]["eval/natural"] == percent(trainer.predict(x_test), y_test)
    assert [record["epoch"] for record in history] == [0, 1, 2, 3]  # the first fit's list is not touched
    assert "eval/natural" not in history[-1]
    now = [state["momentum_buffer"] for state in student.optimizer.state.values()]
    assert not any(torch.equal(a, b) for a, b in zip(momentum, now, strict=True))


def test_diagnostics_change_the_history_and_no_bit_of_the_student(digits, teacher):
    x, y, *_ = digits
    trained = {}
    for diagnostics in ("full", "half", "off"):
        trainer = distiller(classifier(), teacher, objective="ard", diagnostics=diagnostics)
        trainer.fit(x[:64], y[:64], nb_epochs=1, batch_size=16)
        (record,) = trainer.history
        seen = record["trust/histogram"]
        trained[diagnostics] = weights(trainer), None if seen is None else sum(seen)
    assert [images for _, images in trained.values()] == [64, 32, None]
    assert equal(trained["full"][0], trained["off"][0])
    assert equal(trained["half"][0], trained["off"][0])
    with pytest.raises(ValueError, match="unknown diagnostics 'ful'; did you mean 'full'"):
        distiller(classifier(), teacher, diagnostics="ful")


def test_a_second_fit_takes_another_order(digits, teacher):
    x, y, *_ = digits
    orders = []

    def order_of(trainer):
        seen = []
        original = sources.ArrayBatches.batch

        def batch(self, epoch, step, **parts):
            part = original(self, epoch, step, **parts)
            seen.append(part.labels.tolist())
            return part

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources.ArrayBatches, "batch", batch)
            trainer.fit(x[:64], y[:64], batch_size=64, nb_epochs=1)
        return seen[-1]

    trainer = distiller(classifier(lr=0.0), teacher)
    orders = [order_of(trainer), order_of(trainer)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(y[:64].tolist())


# --------------------------------------------------------------------------------------------- generators


class OnlyGetBatch(DataGenerator):
    """The least that ART asks of a generator."""

    def __init__(self, x, y, size=None, batch_size=16):
        super().__init__(size=len(x) if size is None else size, batch_size=batch_size)
        self.x, self.y, self.given = x, y, 0

    def get_batch(self):
        self.given += 1
        index = np.arange(self.batch_size * (self.given - 1), self.batch_size * self.given) % len(self.x)
        return self.x[index], self.y[index]


def generators(x, y):
    one_hot = np.eye(10, dtype=np.float32)[y]
    tensors = TensorDataset(torch.from_numpy(x), torch.from_numpy(one_hot))
    return {
        "custom": OnlyGetBatch(x, y),
        "numpy": NumpyDataGenerator(x, one_hot, batch_size=16, drop_remainder=False),
        "pytorch": PyTorchDataGenerator(DataLoader(tensors, batch_size=16), size=len(x), batch_size=16),
    }


@pytest.mark.parametrize("kind", ["custom", "numpy", "pytorch"])
def test_fits_generators_by_keyword(digits, teacher, kind):
    x, y, *_ = digits
    generator = generators(x[:48], y[:48])[kind]
    trainer = distiller(classifier(), teacher)
    before = weights(trainer)
    trainer.fit_generator(generator=generator, nb_epochs=2)
    assert distance(before, weights(trainer)) > 0
    assert len(trainer.history) == 2
    trained = weights(trainer)
    trainer.fit_generator(generator=generator, nb_epochs=1, validation_data=(x, y))  # as ART's AWP tests do
    assert distance(trained, weights(trainer)) > 0
    assert trainer.history[0]["eval/natural"] == percent(trainer.predict(x), y)


def test_generators_of_the_same_batches_train_the_same_bits(digits, teacher):
    x, y, *_ = digits
    trained = []
    for generator in generators(x[:48], y[:48]).values():
        trainer = distiller(classifier(), teacher)
        trainer.fit_generator(generator, nb_epochs=2)
        trained.append(weights(trainer))
    assert all(equal(trained[0], other) for other in trained[1:])


def test_every_batch_of_a_generator_is_trained_on_once(digits, teacher):
    x, y, *_ = digits
    generator = OnlyGetBatch(x[:40], y[:40])
    distiller(classifier(), teacher).fit_generator(generator, nb_epochs=3)
    assert generator.given == 3 * 3  # ceil(40 / 16) an epoch, none thrown away for a look at the data


def test_a_shuffled_loader_is_a_function_of_the_seed(digits, teacher):
    x, y, *_ = digits
    trained = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        loader = DataLoader(
            TensorDataset(torch.from_numpy(x[:48]), torch.from_numpy(y[:48])), batch_size=16, shuffle=True
        )
        trainer = distiller(classifier(), teacher, seed=5)
        trainer.fit_generator(PyTorchDataGenerator(loader, size=48, batch_size=16), nb_epochs=2)
        trained.append(weights(trainer))
    assert equal(*trained)


def test_refuses_what_is_no_generator_of_a_known_size(digits, teacher):
    x, y, *_ = digits
    trainer = distiller(classifier(), teacher)
    before = weights(trainer)
    with pytest.raises(ValueError, match="must be an ART DataGenerator, got list_iterator"):
        trainer.fit_generator(iter([(x, y)]), nb_epochs=1)
    unknown = OnlyGetBatch(x, y)
    unknown._size = None
    with pytest.raises(ValueError, match="size is None"):
        trainer.fit_generator(unknown, nb_epochs=1)
    with pytest.raises(ValueError, match=r"the generator's x has images of \(2, 8, 8\)"):
        trainer.fit_generator(OnlyGetBatch(np.repeat(x, 2, axis=1), y), nb_epochs=1)
    three = OnlyGetBatch(x, y)
    three.get_batch = lambda: (x, y, y)
    with pytest.raises(ValueError, match=r"must give \(images, labels\), it gave 3 things"):
        trainer.fit_generator(three, nb_epochs=1)
    assert equal(before, weights(trainer))


# ------------------------------------------------------------------------------------- preprocessing and ranges


def by_hand_pgd10(logits_of, x, y, *, eps=EPS, seed=0):
    """Validation's PGD-10 restated, on a function that takes pixels in [0, 1]."""
    noise = torch.empty(256, *x.shape[1:]).uniform_(-eps, eps, generator=stream(seed, "evaluate", "pgd10", 0))
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    adv = (images + noise[: len(x)]).clamp(0, 1)
    for _ in range(10):
        adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits_of(adv), labels), adv)
        adv = images + (adv.detach() + eps / 4 * gradient.sign() - images).clamp(-eps, eps)
        adv = adv.clamp(0, 1).detach()
    return adv


@pytest.mark.parametrize("given_eps", [None, 0.1])
def test_validation_preprocesses_once(digits, teacher, given_eps):
    x, y, x_test, y_test = digits
    mean, std = 0.6, 0.2
    student = classifier(preprocessing=(mean, std))
    trainer = distiller(student, teacher, eps=given_eps)
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=32, nb_epochs=3)
    eps = EPS if given_eps is None else given_eps
    adv = by_hand_pgd10(lambda pixels: student.model((pixels - mean) / std), x_test, y_test, eps=eps)
    with torch.no_grad():
        natural = student.model((torch.from_numpy(x_test) - mean) / std).numpy()
        robust = student.model((adv - mean) / std).numpy()
        twice = student.model(((torch.from_numpy(x_test) - mean) / std - mean) / std).numpy()
    record = trainer.history[-1]
    assert record["eval/natural"] == percent(natural, y_test) == percent(trainer.predict(x_test), y_test)
    assert record["eval/natural"] != percent(twice, y_test)
    assert record["eval/pgd10"] == percent(robust, y_test)


def test_preprocessing_equals_the_same_layer_inside_the_module(digits, teacher):
    x, y, *_ = digits

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, pixels):
            return self.network((pixels - torch.tensor([0.5])) / torch.tensor([0.25]))

    trained = []
    for student in (classifier(preprocessing=(0.5, 0.25)), classifier(Inside())):
        trainer = distiller(student, teacher)
        trainer.fit(x[:64], y[:64], batch_size=16, nb_epochs=2)
        trained.append(list(weights(trainer).values()))
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


class Gain(PreprocessorPyTorch):
    """Multiplies by a number, in fitting or in prediction or both."""

    def __init__(self, gain, **when):
        super().__init__(is_fitted=True, device_type="cpu", **when)
        self.gain, self.calls = gain, []

    def forward(self, x, y=None):
        self.calls.append(x.requires_grad)
        return self.gain * x, y


def test_pytorch_preprocessors_are_part_of_the_attacked_network(digits, teacher):
    x, y, x_test, y_test = digits
    cutout = CutoutPyTorch(length=2, channels_first=True, apply_predict=True, device_type="cpu")
    student = classifier(preprocessing_defences=[cutout, Gain(2.0)], preprocessing=(0.3, 0.4))
    trainer = distiller(student, teacher)
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=64, nb_epochs=2)
    assert trainer.history[-1]["eval/natural"] > 30
    gain = Gain(0.5)
    distiller(classifier(preprocessing_defences=gain), teacher).fit(x[:16], y[:16], nb_epochs=1)
    assert any(gain.calls)  # the attack differentiated through it


def test_preprocessing_for_fitting_only_and_for_prediction_only(digits):
    """The attack of `at` runs in eval mode: what is for prediction only is in the attack, not in the update."""
    x, y, x_test, y_test = digits
    when = {
        "fit": Gain(0.5, apply_fit=True, apply_predict=False),
        "predict": Gain(0.5, apply_fit=False, apply_predict=True),
    }
    for gain in when.values():
        student = classifier(preprocessing_defences=gain)
        trainer = IntrospectiveAdversarialDistiller(student, objective="at")
        trainer.fit(x[:32], y[:32], validation_data=(x_test, y_test), batch_size=32, nb_epochs=1)
        assert trainer.history[0]["eval/natural"] == percent(trainer.predict(x_test), y_test)
    # in fitting: a look beforehand and the update's own pass; the attack and validation are in eval mode
    assert when["fit"].calls == [False, False]
    assert sum(when["predict"].calls) == 10 + 10  # the attack's steps and validation's


def test_refuses_preprocessing_that_mixes_labels(digits, teacher):
    x, y, *_ = digits
    trainer = distiller(
        classifier(preprocessing_defences=MixupPyTorch(num_classes=10, device_type="cpu")), teacher
    )
    before = weights(trainer)
    with pytest.raises(ValueError, match=r"the student cannot take images .* Labels `y` cannot be None"):
        trainer.fit(x, y, nb_epochs=1)
    assert equal(before, weights(trainer))


def test_refuses_preprocessing_without_gradient(teacher):
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=4)
    with pytest.raises(ValueError, match="no gradient: FeatureSqueezing; use its PyTorch version"):
        distiller(classifier(preprocessing_defences=squeezing), teacher)
    with pytest.raises(ValueError, match="no gradient: FeatureSqueezing"):
        distiller(classifier(), classifier(teacher, preprocessing_defences=squeezing))


@pytest.mark.parametrize("clip_values", [(0, 255), (-1, 1), (-0.5, 2.5)])
def test_clip_values_change_the_unit_and_nothing_else(digits, teacher, clip_values):
    x, y, x_test, y_test = digits
    low, high = clip_values
    span = high - low

    def scaled(images):
        return low + span * images.astype(np.float64)

    trained = []
    for settings, fed, eps in (
        ({}, lambda images: images.astype(np.float64), 0.1),
        ({"clip_values": clip_values, "preprocessing": (low, span)}, scaled, 0.1 * span),
    ):
        student = classifier(network(dtype=torch.float64), **settings)
        trainer = distiller(student, copy.deepcopy(teacher), eps=eps)
        trainer.fit(fed(x[:64]), y[:64], validation_data=(fed(x_test), y_test), batch_size=16, nb_epochs=2)
        trained.append((weights(trainer), trainer.history[-1]["eval/pgd10"]))
    assert distance(trained[0][0], trained[1][0]) < 1e-6
    assert abs(trained[0][1] - trained[1][1]) <= 0.5


def test_the_default_eps_is_8_255_of_the_range(digits, teacher):
    student = classifier(clip_values=(0, 255))
    assert distiller(student, teacher)._eps == EPS
    assert distiller(student, teacher, eps=16.0)._eps == pytest.approx(16 / 255)
    for eps in (0, -1, 255, 300, float("nan")):
        with pytest.raises(ValueError, match="whose range is 255; got"):
            distiller(student, teacher, eps=eps)


def test_array_clip_values(digits, teacher):
    x, y, *_ = digits
    low = np.zeros((1, 8, 8), dtype=np.float32)
    high = np.ones((1, 8, 8), dtype=np.float32)
    plain = distiller(classifier(), teacher)
    same = distiller(classifier(clip_values=(low, high)), teacher)
    for trainer in (plain, same):
        trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=1)
    assert equal(weights(plain), weights(same))

    high = high * np.linspace(1, 4, 8, dtype=np.float32)
    uneven = classifier(clip_values=(low, high))
    seen = []

    class Spy(attacks.PGD):
        def forward(self, images, labels, noise=None):
            adversarial = super().forward(images, labels, noise)
            seen.append((images, adversarial))
            return adversarial

    trainer = distiller(uneven, teacher, Spy(uneven.model, eps=0.05, alpha=0.02, steps=3))
    trainer.fit(x[:32] * high, y[:32], batch_size=16, nb_epochs=1)
    for images, adversarial in seen:  # a pixel's range is its own
        assert float(images.min()) == 0
        assert float(images.max()) == 1
        assert float((adversarial - images).abs().max()) <= 0.05 + 1e-6
    with pytest.raises(ValueError, match="ambiguous where clip_values differ"):
        distiller(uneven, teacher, eps=0.1)


def test_attack_and_default_eps_are_in_clip_units(digits, teacher, monkeypatch):
    """What the student is trained on differs from x by at most eps of the classifier's range."""
    x, y, *_ = digits
    seen = []
    original = FromART.__call__

    def spy(self, images, labels, noise=None):
        adversarial = original(self, images, labels, noise)
        seen.append(float((adversarial - images).abs().max()))
        return adversarial

    monkeypatch.setattr(FromART, "__call__", spy)
    student = classifier(clip_values=(0, 255), preprocessing=(0.0, 255.0))
    attack = ProjectedGradientDescent(student, eps=16.0, eps_step=8.0, max_iter=4, verbose=False)
    distiller(student, teacher, attack).fit(255 * x[:32], y[:32], batch_size=16, nb_epochs=1)
    assert max(seen) == pytest.approx(16 / 255, abs=1e-6)


# ----------------------------------------------------------------------------------------------- schedulers


SCHEDULERS = {
    "StepLR": lambda o: StepLR(o, step_size=1, gamma=0.5),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=4),
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=0.2, total_steps=4),
    "LambdaLR": lambda o: LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "SequentialLR": lambda o: SequentialLR(o, [LinearLR(o, total_iters=2), StepLR(o, 1)], milestones=[2]),
    "ChainedScheduler": lambda o: ChainedScheduler([LinearLR(o, total_iters=2), StepLR(o, 1)]),
    "timm cosine": lambda o: CosineLRScheduler(o, t_initial=4, lr_min=0.001, warmup_t=1, warmup_lr_init=0.01),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_schedulers_once_an_epoch(digits, teacher, name):
    """The learning rates are those of the scheduler's own idiom in a loop by hand; no warning is raised."""
    x, y, *_ = digits
    student = classifier()
    scheduler = SCHEDULERS[name](student.optimizer)
    trainer = distiller(student, teacher)
    trainer.fit(x[:48], y[:48], batch_size=16, nb_epochs=4, scheduler=scheduler)

    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler, expected = SCHEDULERS[name](optimizer), []
    for epoch in range(4):
        expected.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.zeros(1)
        optimizer.step()
        scheduler.step(*([epoch + 1] if name.startswith("timm") else []))
    assert [record["lr"] for record in trainer.history] == expected
    assert len(set(expected)) > 1


@pytest.mark.filterwarnings(
    "ignore:PlateauLRScheduler is deprecated:FutureWarning"
)  # timm's own, still in use
def test_schedulers_that_watch_a_metric(digits, teacher):
    x, y, x_test, y_test = digits
    x, y = x[:48], y[:48]
    validation = (x_test, y_test)

    class Spy(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            self.seen = [*getattr(self, "seen", []), metrics]
            super().step(metrics)

    student = classifier()
    lowest, highest = Spy(student.optimizer, mode="min"), Spy(student.optimizer, mode="max")
    trainer = distiller(student, teacher)
    trainer.fit(x, y, nb_epochs=2, scheduler=lowest)
    assert lowest.seen == [record["loss/total"] for record in trainer.history]
    trainer.fit(x, y, nb_epochs=2, scheduler=highest, validation_data=validation)
    assert highest.seen == [record["eval/pgd10"] for record in trainer.history]
    plateau = PlateauLRScheduler(student.optimizer, decay_rate=0.5, patience_t=0, mode="min", threshold=10.0)
    trainer.fit(x, y, nb_epochs=4, scheduler=plateau)
    assert trainer.history[-1]["lr"] < trainer.history[0]["lr"]
    before = weights(trainer)
    with pytest.raises(ValueError, match="needs validation_data to watch"):
        trainer.fit(x, y, nb_epochs=2, scheduler=highest)
    assert equal(before, weights(trainer))


def test_a_scheduler_of_its_own_kind(digits, teacher):
    """It may have read the optimizer's groups once and hold on to them."""

    class Halving:
        def __init__(self, optimizer):
            self.groups, self.steps = optimizer.param_groups, 0

        def step(self):
            self.steps += 1
            for group in self.groups:
                group["lr"] /= 2

    x, y, *_ = digits
    student = classifier()
    scheduler = Halving(student.optimizer)
    trainer = distiller(student, teacher)
    trainer.fit(x[:48], y[:48], batch_size=16, nb_epochs=3, scheduler=scheduler)
    assert scheduler.steps == 3
    assert [record["lr"] for record in trainer.history] == [0.1, 0.05, 0.025]


def test_refuses_schedulers_that_cannot_be_stepped(digits, teacher):
    x, y, *_ = digits
    trainer = distiller(classifier(), teacher)
    before = weights(trainer)

    class Asks:
        def step(self, temperature): ...

    other = torch.optim.SGD(network(1).parameters(), lr=0.1)
    for scheduler, message in (
        ("cosine", r"must have a step\(\) to call once an epoch, got str"),
        (Asks(), r"asks for temperature"),
        (StepLR(other, 1), "of another optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(x, y, nb_epochs=1, scheduler=scheduler)
    assert equal(before, weights(trainer))


# ------------------------------------------------------------------------------------- how the user's things are left


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_module_is_trained_in_place_and_left_as_art_leaves_it(digits, teacher, asked, norm):
    x, y, x_test, y_test = digits
    x, x_test = (
        np.repeat(part, 3, axis=1) for part in (x, x_test)
    )  # of one channel, every memory format is the same
    student = classifier(network(norm=norm, channels=3), input_shape=(3, 8, 8))
    teacher = nn.Sequential(nn.Conv2d(3, 1, 1), teacher)
    module, optimizer = student.model, student.optimizer
    parameters, groups, attributes = list(module.parameters()), optimizer.param_groups, set(vars(module))
    before = weights(module)
    distiller(student, teacher, precision=asked).fit(
        x[:64], y[:64], validation_data=(x_test, y_test), batch_size=16, nb_epochs=2
    )
    assert student.model is module
    assert student.optimizer is optimizer
    assert optimizer.param_groups is groups
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    assert all(not torch.equal(before[name], value) for name, value in weights(module).items())
    assert not any(part.training for part in student._model.modules())
    assert set(vars(module)) == attributes
    for part in module.modules():
        assert "forward" not in vars(part)
        assert not {**part._forward_hooks, **part._forward_pre_hooks, **part._backward_hooks}
    assert type(module).forward is nn.Sequential.forward
    for parameter in parameters:
        assert parameter.is_contiguous()
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert parameter.grad is None
        assert parameter.is_leaf
        assert not parameter._backward_hooks
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert momentum.is_contiguous()
        assert momentum.dtype == torch.float32
    assert "step" not in vars(optimizer)
    assert student.predict(x).dtype == np.float32


def test_a_channels_last_module_stays_so(digits):
    x, y, *_ = digits
    student = classifier(network(channels=3).to(memory_format=torch.channels_last), input_shape=(3, 8, 8))
    trainer = IntrospectiveAdversarialDistiller(student, objective="at", precision="fp32")
    trainer.fit(np.repeat(x[:16], 3, axis=1), y[:16], nb_epochs=1)
    assert student.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not student.model[0].weight.is_contiguous()


def test_batch_norm_statistics_are_learnt_and_stay_fp32(digits, teacher):
    x, y, *_ = digits
    student = classifier(network(norm=True))
    norm = student.model[1]
    distiller(student, teacher).fit(x[:64], y[:64], batch_size=16, nb_epochs=1)
    assert not torch.equal(norm.running_mean, torch.zeros(8))
    assert norm.running_mean.dtype == torch.float32
    # 4 steps: 10 of the attack in train mode, as the released IAD code does, then S(x̃) and S(x)
    assert int(norm.num_batches_tracked) == 4 * 12
    eval_mode = classifier(network(norm=True))
    IntrospectiveAdversarialDistiller(eval_mode, objective="at").fit(
        x[:64], y[:64], batch_size=16, nb_epochs=1
    )
    assert int(eval_mode.model[1].num_batches_tracked) == 4  # `at` attacks in eval mode


def test_teachers_are_left_untouched(digits, teacher):
    x, y, *_ = digits
    robust, natural = network(7, norm=True), Wrapped(8, norm=True)
    robust.train()
    robust[1].eval()  # a submodule's own mode is its own
    natural.eval()
    natural.inner[0].weight.requires_grad_(False)
    kept = [
        (
            weights(net),
            [m.training for m in net.modules()],
            [p.requires_grad for p in net.parameters()],
            [p.is_contiguous() for p in net.parameters()],
        )
        for net in (robust, natural)
    ]
    trainer = distiller(classifier(), robust, objective="iad2", natural_teacher=natural, precision="fp32")
    trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=1)
    for net, (its_weights, modes, asked, contiguous) in zip((robust, natural), kept, strict=True):
        assert equal(its_weights, weights(net))
        assert [m.training for m in net.modules()] == modes
        assert [p.requires_grad for p in net.parameters()] == asked
        assert [p.is_contiguous() for p in net.parameters()] == contiguous
        assert all(p.grad is None for p in net.parameters())


def test_global_random_states_stay(digits, teacher):
    x, y, *_ = digits
    student = classifier()
    attack = ProjectedGradientDescent(student, eps=0.1, num_random_init=1, max_iter=2, verbose=False)
    for chosen in (None, attack, torchattacks.PGD(student.model, eps=0.1, steps=2)):
        torch.manual_seed(123)
        np.random.seed(321)
        before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
        trainer = distiller(student, teacher, chosen)
        trainer.fit(
            x[:32], y[:32], validation_data=(x[:32], y[:32]), nb_epochs=40
        )  # enough to measure precision
        assert torch.equal(before, torch.get_rng_state())
        assert np.array_equal(numpys, np.random.get_state()[1])


def test_copies_and_pickles_as_before(digits, teacher, monkeypatch, tmp_path):
    from art import config

    monkeypatch.setattr(config, "ART_DATA_PATH", str(tmp_path))  # where ART keeps the weights of a pickle
    x, y, *_ = digits
    student = classifier()
    trainer = distiller(student, teacher, precision="bf16")
    trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=1)
    expected = student.predict(x)
    assert np.array_equal(copy.deepcopy(student.model)(torch.from_numpy(x)).detach().numpy(), expected)
    assert np.array_equal(
        pickle.loads(pickle.dumps(student.model))(torch.from_numpy(x)).detach().numpy(), expected
    )
    assert np.array_equal(pickle.loads(pickle.dumps(student)).predict(x), expected)
    assert np.array_equal(copy.deepcopy(student).predict(x), expected)
    student.clone_for_refitting().fit(x[:16], y[:16], nb_epochs=1)


def test_an_exception_in_the_middle_leaves_everything_usable(digits, teacher):
    x, y, *_ = digits
    student = classifier(network(norm=True))
    own = Accelerator(cpu=True)
    states = [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)]

    class PowerCutError(Exception): ...

    class Cut(attacks.PGD):
        calls = 0

        def forward(self, images, labels, noise=None):
            Cut.calls += 1
            if Cut.calls == 3:
                raise PowerCutError
            return super().forward(images, labels, noise)

    teacher.train()
    trainer = distiller(student, teacher, Cut(student.model, steps=2), precision="bf16")
    before, torchs = weights(trainer), torch.get_rng_state()
    with pytest.raises(PowerCutError):
        trainer.fit(x[:64], y[:64], batch_size=16, nb_epochs=1)
    assert Cut.calls == 3
    assert distance(before, weights(trainer)) > 0  # two steps were done
    assert not any(part.training for part in student._model.modules())
    assert all(part.training for part in teacher.modules())
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(p.is_contiguous() and p.grad is None and p.requires_grad for p in student.model.parameters())
    assert "forward" not in vars(student.model)
    assert torch.equal(torchs, torch.get_rng_state())
    assert [dict(state._shared_state) for state in (PartialState, AcceleratorState, GradientState)] == states
    assert own.mixed_precision == "no"
    teacher.eval()
    trainer.fit(x[:64], y[:64], batch_size=16, nb_epochs=1)
    assert trainer.history


def test_a_loss_that_is_no_number_stops_with_the_module_in_eval_mode(digits, teacher):
    x, y, *_ = digits
    student = classifier(lr=1e30)
    with pytest.raises(TrainingStopped, match="epoch 0, step 1: the loss term 'teacher' is not finite"):
        distiller(student, teacher, objective="ard").fit(x[:64], y[:64], batch_size=16, nb_epochs=1)
    assert not any(part.training for part in student.model.modules())


def test_a_users_own_accelerator_goes_on_as_it_was(digits, teacher):
    x, y, *_ = digits
    own = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4, cpu=True)
    model = own.prepare(network(3))
    trainer = distiller(classifier(), teacher, precision="fp32")
    trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=1)
    assert own.mixed_precision == "bf16"
    assert own.gradient_accumulation_steps == 4
    assert own.state.mixed_precision == "bf16"
    assert GradientState().num_steps == 4
    with own.autocast():
        assert model[0](torch.from_numpy(x[:1])).dtype == torch.bfloat16
    with own.accumulate(model):
        own.backward(model(torch.from_numpy(x[:4])).sum())
    for state in (PartialState, AcceleratorState, GradientState):
        state._shared_state.clear()
    plain = distiller(classifier(), teacher, precision="fp32")
    plain.fit(x[:32], y[:32], batch_size=16, nb_epochs=1)
    assert equal(weights(trainer), weights(plain))
    assert AcceleratorState._shared_state == {}
    # a program that computes elsewhere does not draw the classifier there
    PartialState(cpu=True)
    PartialState._shared_state["device"] = torch.device("meta")
    elsewhere = distiller(classifier(), teacher, precision="fp32")
    elsewhere.fit(x[:32], y[:32], batch_size=16, nb_epochs=1)
    assert equal(weights(elsewhere), weights(plain))
    assert PartialState().device.type == "meta"


# ------------------------------------------------------------------------------------------- kinds of modules


@pytest.mark.parametrize("kind", [network, Wrapped])
@pytest.mark.parametrize("last", [(), (nn.LogSoftmax(dim=1),), (nn.Identity(),)])
def test_sequential_and_other_modules(digits, teacher, kind, last):
    x, y, x_test, y_test = digits
    loss = nn.NLLLoss() if last and isinstance(last[0], nn.LogSoftmax) else nn.CrossEntropyLoss()
    trainer = distiller(classifier(kind(last=last), loss=loss), teacher)
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=32, nb_epochs=3)
    assert trainer.history[-1]["eval/natural"] == percent(trainer.predict(x_test), y_test) > 30


def test_probabilities_are_refused_before_training(digits, teacher):
    x, y, *_ = digits
    with pytest.raises(ValueError, match="the teacher returns probabilities, not logits"):
        distiller(classifier(), nn.Sequential(teacher, nn.Softmax(dim=1)))
    student = classifier(network(last=[nn.Softmax(dim=1)], norm=True))
    trainer = distiller(student, teacher)
    before, modes = weights(trainer), [m.training for m in student.model.modules()]
    with pytest.raises(
        ValueError, match="the student returns probabilities, not logits; leave out its last softmax"
    ):
        trainer.fit(x, y, nb_epochs=1)
    assert equal(before, weights(trainer))
    assert modes == [m.training for m in student.model.modules()]
    with pytest.raises(ValueError, match="the natural teacher returns probabilities"):
        distiller(
            classifier(), teacher, objective="iad2", natural_teacher=nn.Sequential(teacher, nn.Softmax(dim=1))
        )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, bool])
def test_images_of_any_number_type(digits, teacher, dtype):
    x, y, *_ = digits
    images = (x[:32] > 0.5).astype(dtype)
    trained = []
    for fed in (images, images.astype(np.float32)):
        trainer = distiller(classifier(), teacher)
        trainer.fit(fed, y[:32], batch_size=16, nb_epochs=1)
        trained.append(weights(trainer))
    assert equal(*trained)


def test_uint8_images_in_0_to_255(digits, teacher):
    x, y, *_ = digits
    images = (255 * x[:64]).astype(np.uint8)
    trained = []
    for fed, settings in (
        (images, {"clip_values": (0, 255), "preprocessing": (0.0, 255.0)}),
        (images.astype(np.float32) / np.float32(255), {}),
    ):
        trainer = distiller(classifier(**settings), teacher)
        trainer.fit(fed, y[:64], batch_size=16, nb_epochs=1)
        trained.append(weights(trainer))
    assert distance(*trained) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_of_other_types_are_trained_in_them(digits, teacher, dtype):
    x, y, x_test, y_test = digits
    student = classifier(network(norm=True, dtype=dtype))
    trainer = distiller(student, teacher)  # whose teacher computes in float32
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=32, nb_epochs=4)
    assert {p.dtype for p in student.model.parameters()} == {dtype}
    assert trainer.history[-1]["eval/natural"] > 30
    for name in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"{name} is for float32 modules"):
            distiller(student, teacher, precision=name)


# ---------------------------------------------------------------------------------------------- what is trained


def test_the_door_equals_a_loop_by_hand(digits):
    """IAD-I without warm-up, two epochs of SGD in float64, restated without anything of this package."""
    x, y, *_ = digits
    x, y = x[:50].astype(np.float64), y[:50]
    robust = network(7, dtype=torch.float64)
    trainer = distiller(classifier(network(dtype=torch.float64)), robust, seed=3)
    trainer.fit(x, y, batch_size=16, nb_epochs=2)

    student = network(dtype=torch.float64)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    for epoch in range(2):
        order = torch.randperm(50, generator=stream(3, "order", epoch))
        for step in range(4):
            index = order[16 * step : 16 * (step + 1)]
            nat, true = images[index], labels[index]
            start = torch.Generator().manual_seed(stream_seed(3, "start", epoch, step))
            adv = nat + torch.empty_like(nat).uniform_(-EPS, EPS, generator=start)
            adv = adv.clamp(0, 1)
            for _ in range(10):
                adv.requires_grad_(True)
                (gradient,) = torch.autograd.grad(F.cross_entropy(student(adv), true), adv)
                moved = adv.detach() + 2 / 255 * gradient.sign()
                adv = (nat + (moved - nat).clamp(-EPS, EPS)).clamp(0, 1)
            with torch.no_grad():
                from_nat, from_adv = robust(nat).softmax(1), robust(adv).softmax(1)
            alpha = from_adv[torch.arange(len(index)), true] ** 0.1
            log_adv, own = student(adv).log_softmax(1), student(nat).softmax(1)
            distil = (from_nat * (from_nat.log() - log_adv)).sum(1)
            introspect = (own * (own.log() - log_adv)).sum(1)
            optimizer.zero_grad()
            (distil + (1 - alpha) * introspect).mean().backward()
            optimizer.step()
    assert distance(weights(trainer), weights(student)) < 1e-9


def test_nothing_passes_through_numpy_when_the_attack_is_native(digits, teacher, monkeypatch):
    x, y, x_test, y_test = digits
    student = classifier(preprocessing=(0.3, 0.4))
    inside = []
    epoch, validate = Engine.epoch, IntrospectiveAdversarialDistiller._validate

    def counting(method):
        def counted(self, *args, **kwargs):
            inside.append(True)
            try:
                return method(self, *args, **kwargs)
            finally:
                inside.pop()

        return counted

    def numpy_refused(original):
        def call(*args, **kwargs):
            assert not inside, "through NumPy in the loop"
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(Engine, "epoch", counting(epoch))
    monkeypatch.setattr(IntrospectiveAdversarialDistiller, "_validate", counting(validate))
    monkeypatch.setattr(torch.Tensor, "numpy", numpy_refused(torch.Tensor.numpy))
    monkeypatch.setattr(torch.Tensor, "__array__", numpy_refused(torch.Tensor.__array__))
    monkeypatch.setattr(torch, "from_numpy", numpy_refused(torch.from_numpy))
    for name in ("loss_gradient", "predict", "class_gradient", "compute_loss"):
        monkeypatch.setattr(student, name, numpy_refused(getattr(student, name)))
    trainer = distiller(student, teacher)
    trainer.fit(x[:48], y[:48], validation_data=(x_test, y_test), batch_size=16, nb_epochs=2)
    assert len(trainer.history) == 2
    attack = FastGradientMethod(student, eps=0.1)
    with pytest.raises(AssertionError, match="through NumPy"):  # the check can fail
        distiller(student, teacher, attack).fit(x[:48], y[:48], nb_epochs=1)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(digits, teacher):
    x, y, *_ = digits

    def trained(attack=None, **settings):
        student = classifier()
        trainer = distiller(student, teacher, attack and attack(student), **settings)
        torch.manual_seed(len(done))  # the surroundings' random state has no say
        np.random.seed(len(done))
        trainer.fit(x, y, batch_size=64, nb_epochs=4)  # enough to measure precision
        done.append(weights(trainer))
        return done[-1]

    done = []
    assert equal(trained(seed=1), trained(seed=1))
    assert distance(trained(seed=1), trained(seed=2)) > 0
    for attack in (
        lambda student: ProjectedGradientDescent(
            student, eps=0.1, eps_step=0.05, max_iter=2, num_random_init=1, verbose=False
        ),
        lambda student: torchattacks.PGD(student.model, eps=0.1, alpha=0.05, steps=2),
    ):
        assert equal(trained(attack, seed=1), trained(attack, seed=1))
        assert distance(trained(attack, seed=1), trained(attack, seed=2)) > 0


def test_warm_up_by_name_is_a_share_of_the_epochs(digits, teacher):
    x, y, *_ = digits
    x, y = x[:16], y[:16]
    for name, share in (("iad1", 0.3), ("iad1_down", 0.3), ("iad2", 0.2)):
        for epochs in (4, 10):
            trainer = IntrospectiveAdversarialDistiller(
                classifier(),
                teacher,
                torchattacks.FGSM(teacher, eps=0.1),
                objective=name,
                natural_teacher=network(7) if name == "iad2" else None,
            )
            trainer.fit(x, y, nb_epochs=epochs)
            introspective = [record.get("loss/self") is not None for record in trainer.history]
            warmup = round(share * epochs)
            assert introspective == [False] * warmup + [True] * (epochs - warmup)
    trainer = IntrospectiveAdversarialDistiller(
        classifier(), teacher, objective_settings={"warmup_epochs": 1}
    )
    trainer.fit(x, y, nb_epochs=4)
    assert [r.get("loss/self") is not None for r in trainer.history] == [False, True, True, True]


def test_warm_up_that_covers_every_epoch_warns_before_compute(digits, teacher, caplog, monkeypatch):
    x, y, *_ = digits
    said = []
    original = Engine.epoch
    monkeypatch.setattr(
        Engine, "epoch", lambda self, *a, **k: said.append(caplog.text) or original(self, *a, **k)
    )
    trainer = IntrospectiveAdversarialDistiller(
        classifier(), teacher, objective=objectives.iad1(warmup_epochs=2)
    )
    trainer.fit(x[:16], y[:16], nb_epochs=2)
    assert "warm-up (2 epochs) covers all 2 epochs: this fit is plain ard" in said[0]
    caplog.clear()
    trainer.fit(x[:16], y[:16], nb_epochs=3)
    assert "warm-up" not in caplog.text


def test_objectives_by_name_and_as_objects_train_the_same_bits(digits, teacher):
    x, y, *_ = digits
    trained = []
    for objective, settings in (
        ("iad1", {"objective_settings": {"beta": 0.3, "warmup_epochs": 1}}),
        (objectives.iad1(beta=0.3, warmup_epochs=1), {}),
        (objectives.introspect(objectives.ard(), beta=0.3, warmup_epochs=1), {}),
    ):
        trainer = IntrospectiveAdversarialDistiller(classifier(), teacher, objective=objective, **settings)
        trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=2)
        trained.append(weights(trainer))
    assert equal(trained[0], trained[1])
    assert equal(trained[0], trained[2])


def test_iad2_with_a_natural_teacher(digits, teacher):
    x, y, *_ = digits
    trainer = distiller(classifier(), classifier(teacher), objective="iad2", natural_teacher=Wrapped(3))
    trainer.fit(x[:64], y[:64], batch_size=16, nb_epochs=2)
    assert all(
        trainer.history[-1][f"loss/{name}"] is not None for name in ("label", "teacher", "natural_teacher")
    )
    assert trainer.history[-1]["natural_teacher/acc_on_student_adv"] is not None
    with pytest.raises(ValueError, match="iad2 reads a natural teacher; pass natural_teacher="):
        distiller(classifier(), teacher, objective="iad2")


@pytest.mark.parametrize("objective", ["st", "at", "trades"])
def test_no_teacher_where_none_is_read(digits, objective):
    x, y, *_ = digits
    trainer = IntrospectiveAdversarialDistiller(classifier(), objective=objective)
    before = weights(trainer)
    trainer.fit(x[:64], y[:64], batch_size=16, nb_epochs=1)
    assert distance(before, weights(trainer)) > 0


def test_a_schedule_that_begins_late_finds_its_attack(digits):
    """No pass is adversarial before epoch 1."""
    x, y, *_ = digits
    late = objectives.introspect(objectives.st(), gamma={0: 0.0, 1: 1.0})
    trainer = IntrospectiveAdversarialDistiller(classifier(), network(7), objective=late)
    trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=2)
    assert trainer.history[0]["train/acc_adv"] is None
    assert trainer.history[1]["train/acc_adv"] is not None


def test_teachers_from_everywhere(digits, teacher, tmp_path):
    from iad_ext.backbones import create_network, save_network

    x, y, *_ = digits
    x = np.repeat(x[:32], 3, axis=1)
    saved = create_network("cifar_resnet8", num_classes=10, seed=1)
    save_network(saved, tmp_path / "teacher", metadata={})
    trained = []
    for given in (
        saved,
        tmp_path / "teacher",
        str(tmp_path / "teacher"),
        classifier(saved, input_shape=(3, 8, 8)),
    ):
        module = nn.Sequential(nn.Conv2d(3, 1, 1), network())
        torch.manual_seed(0)
        nn.init.constant_(module[0].weight, 0.3)
        nn.init.zeros_(module[0].bias)
        trainer = distiller(classifier(module, input_shape=(3, 8, 8)), given)
        trainer.fit(x, y[:32], batch_size=16, nb_epochs=1)
        trained.append(weights(trainer))
    assert all(equal(trained[0], other) for other in trained[1:])


def test_a_teacher_classifier_brings_its_own_range_and_preprocessing(digits, teacher):
    """A teacher of 0 … 255 teaches a student of 0 … 1 what its bare module would."""
    x, y, *_ = digits

    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x / 255)

    trained = []
    for given in (teacher, classifier(Scaled(teacher), clip_values=(0, 255)), classifier(teacher)):
        trainer = distiller(classifier(network(dtype=torch.float64)), given)
        trainer.fit(x[:32].astype(np.float64), y[:32], batch_size=16, nb_epochs=1)
        trained.append(weights(trainer))
    assert distance(trained[0], trained[1]) < 1e-5
    assert equal(trained[0], trained[2])


def test_a_teacher_that_knows_nothing_is_mentioned(digits, teacher, caplog):
    x, y, *_ = digits
    confused = nn.Sequential(teacher, nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        confused[1].weight.copy_(torch.eye(10).roll(1, 0))  # classes in another order
    distiller(classifier(), confused).fit(x[:64], y[:64], nb_epochs=1)
    assert "no better than chance" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        distiller(classifier(), teacher).fit(x[:64], y[:64], validation_data=(x[:32], y[:32]), nb_epochs=1)
    assert "no better than chance" not in caplog.text
    assert "teacher: right on" in caplog.text
    assert "epoch 1/1  loss" in caplog.text


# --------------------------------------------------------------------------------------------------- attacks


def foreign_attacks(student):
    return {
        "art pgd": ProjectedGradientDescent(
            student, eps=0.1, eps_step=0.05, max_iter=3, num_random_init=1, verbose=False
        ),
        "art fgsm": FastGradientMethod(student, eps=0.1),
        "torchattacks": torchattacks.PGD(student.model, eps=0.1, alpha=0.05, steps=3),
        "ours": attacks.PGD(student.model, eps=0.1, alpha=0.05, steps=3),
    }


def public(attack):
    return {k: v for k, v in vars(attack).items() if k[0] != "_" and isinstance(v, int | float | str | None)}


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["art pgd", "art fgsm", "torchattacks", "ours"])
def test_trains_on_any_attack(digits, teacher, name, asked):
    x, y, x_test, y_test = digits
    student = classifier(network(norm=True), lr=0.05)
    attack = foreign_attacks(student)[name]
    settings = public(attack)
    model = getattr(attack, "model", None)
    trainer = distiller(student, teacher, attack, precision=asked)
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=64, nb_epochs=3)
    assert trainer.history[-1]["eval/natural"] > 40
    assert trainer.history[-1]["train/acc_adv"] < trainer.history[-1]["train/acc_nat"]
    # 12 steps of S(x̃) and S(x) in train mode; the attack was in eval mode, and put train mode back
    assert int(student.model[1].num_batches_tracked) == 12 * 2
    assert getattr(attack, "model", None) is model  # the user's attack goes on attacking what it was built on
    assert public(attack) == settings


def test_foreign_attacks_leave_no_gradient_behind(digits):
    """ART's attacks call backward() on the weights; what they leave must not get into the update."""
    x, y, *_ = digits
    x, y = x[:16], y[:16]
    trained = []
    for foreign in (True, False):
        student = classifier()
        attack = FastGradientMethod(student, eps=0.1) if foreign else None
        if not foreign:  # the same attack without randomness
            attack = attacks.PGD(student.model, eps=0.1, alpha=0.1, steps=1, random_start=False)
        trainer = IntrospectiveAdversarialDistiller(student, objective="at", attack=attack)
        trainer.fit(x, y, batch_size=16, nb_epochs=3)
        trained.append(weights(trainer))
    assert distance(*trained) < 1e-5


def test_stock_torchattacks_sees_the_classifiers_preprocessing(digits, teacher):
    """Built on the bare module, which takes normalised images, it must attack pixels all the same."""
    x, y, *_ = digits
    trained = []
    for build in (torchattacks.PGD, attacks.PGD):
        student = classifier(preprocessing=(0.3, 0.4))
        settings = {"eps": 0.1, "alpha": 0.05, "steps": 3, "random_start": False}
        trainer = distiller(student, teacher, build(student.model, **settings))
        trainer.fit(x[:32], y[:32], batch_size=16, nb_epochs=2)
        trained.append(weights(trainer))
    assert equal(*trained)
    nested = torchattacks.MultiAttack(
        [torchattacks.FGSM(student.model, eps=0.1), torchattacks.PGD(student.model, eps=0.1, steps=2)]
    )
    models = [inner.model for inner in nested._attacks.values()]
    before = weights(trainer)
    distiller(student, teacher, nested).fit(x[:32], y[:32], nb_epochs=1)
    assert distance(before, weights(trainer)) > 0
    assert all(a.model is b for a, b in zip(nested._attacks.values(), models, strict=True))


def test_attacks_of_ones_own_take_the_scale_that_fp16_needs():
    """One that has a scale keeps it; the user's attack stays as it is."""
    student = PixelModule(network())
    for own, scale in ((1.0, 1024.0), (8.0, 8.0)):
        for build in (attacks.PGD, attacks.CWInf, attacks.TRADESPGD):
            given = build(network(), loss_scale=own)
            assert on_student(given, student, torch.device("cpu"), loss_scale=1024.0).loss_scale == scale
            assert on_student(given, student, torch.device("cpu")).loss_scale == own
            assert given.loss_scale == own


@pytest.mark.parametrize("build", [torchattacks.PGD, torchattacks.FGSM])
def test_attacks_without_a_scale_do_not_run_in_fp16(build):
    """Where others need a scale, theirs would underflow: they run in full precision; elsewhere, in the run's."""
    seen = []

    class Watched(PixelModule):
        def forward(self, images):
            logits = super().forward(images)
            seen.append(logits.dtype)
            return logits

    student, images, labels = Watched(network()), torch.rand(4, 1, 8, 8), torch.arange(4)
    for scale, expected in ((1024.0, torch.float32), (1.0, torch.bfloat16)):
        attack = on_student(build(network(), eps=0.1), student, torch.device("cpu"), loss_scale=scale)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attack(images, labels)
        assert set(seen) == {expected}
        seen.clear()


def test_refuses_attacks_that_cannot_train(digits, teacher):
    student = classifier()
    with pytest.raises(NotImplementedError, match="untargeted"):
        distiller(student, teacher, ProjectedGradientDescent(student, targeted=True, verbose=False))
    targeted = torchattacks.PGD(student.model)
    targeted.targeted = True
    with pytest.raises(NotImplementedError, match="untargeted"):
        distiller(student, teacher, targeted)
    normalising = torchattacks.PGD(student.model)
    normalising.set_normalization_used(mean=[0.5], std=[0.5])
    with pytest.raises(ValueError, match=r"give the classifier preprocessing=\(mean, std\) instead"):
        distiller(student, teacher, normalising)
    whole_numbers = torchattacks.PGD(student.model)
    whole_numbers.set_return_type("int")
    with pytest.raises(ValueError, match=r"returns images in 0 … 255, .* set_return_type\('float'\)"):
        distiller(student, teacher, whole_numbers)
    for attack in ("pgd", lambda x, y: x, ProjectedGradientDescent, student):
        with pytest.raises(
            ValueError, match="attack must be an ART EvasionAttack, a torchattacks attack or None"
        ):
            distiller(student, teacher, attack)
    wide = classifier(network(dtype=torch.float64))
    trainer = distiller(wide, teacher, FastGradientMethod(wide, eps=0.1))
    with pytest.raises(ValueError, match=r"compute in float32, the classifier's module in torch\.float64"):
        trainer.fit(*(part[:16] for part in digits[:2]), nb_epochs=1)
    assert wide.model.training


def test_the_trained_classifier_goes_on_into_arts_attacks(digits, teacher):
    x, y, x_test, y_test = digits
    student = classifier(Wrapped(norm=True))
    distiller(student, teacher, precision="bf16").fit(x, y, batch_size=32, nb_epochs=4)
    few, truth = x_test[:12], y_test[:12]
    pgd = ProjectedGradientDescent(student, eps=EPS, eps_step=2 / 255, max_iter=10, verbose=False)
    adversarial = pgd.generate(few, truth)
    assert np.abs(adversarial - few).max() <= EPS + 1e-6
    assert percent(student.predict(adversarial), truth) <= percent(student.predict(few), truth)
    common = {"eps": EPS, "eps_step": 2 / 255, "batch_size": 12}
    auto = AutoAttack(
        student,
        **common,
        attacks=[
            AutoProjectedGradientDescent(
                student, **common, max_iter=5, loss_type="cross_entropy", verbose=False
            ),
            SquareAttack(student, eps=EPS, max_iter=20, batch_size=12, verbose=False),
        ],
    )
    adversarial = auto.generate(few, np.eye(10, dtype=np.float32)[truth])
    assert np.abs(adversarial - few).max() <= EPS + 1e-6
    assert percent(student.predict(adversarial), truth) <= percent(student.predict(few), truth)


# ------------------------------------------------------------------------------------------------ precision


def test_bf16_trains_and_leaves_fp32(digits, teacher):
    x, y, x_test, y_test = digits
    student = classifier(network(norm=True))
    trainer = distiller(student, teacher, precision="bf16")
    trainer.fit(x, y, validation_data=(x_test, y_test), batch_size=32, nb_epochs=4)
    assert trainer.history[-1]["eval/natural"] > 60
    assert {value.dtype for value in student.model.state_dict().values()} == {torch.float32, torch.int64}
    exact = distiller(classifier(network(norm=True)), teacher, precision="fp32")
    exact.fit(x, y, batch_size=32, nb_epochs=4)
    assert distance(weights(trainer), weights(exact)) > 1e-6  # it did compute otherwise


def test_auto_measures_once_where_it_pays(digits, teacher, monkeypatch):
    x, y, *_ = digits
    probes = []
    monkeypatch.setattr(
        precision,
        "probe",
        lambda *a, **k: probes.append(k["batch_size"]) or precision.asked("bf16", reason="pretended"),
    )
    monkeypatch.setattr(door, "_measurements", {})

    def fitted(nb_epochs, **settings):
        seen = []
        original = door.accelerator_for
        monkeypatch.setattr(
            door, "accelerator_for", lambda decided, **k: seen.append(decided.kind) or original(decided, **k)
        )
        distiller(classifier(), teacher, **settings).fit(x[:64], y[:64], batch_size=16, nb_epochs=nb_epochs)
        return seen[0]

    assert fitted(2) == "fp32"
    assert probes == []
    assert fitted(16) == fitted(16) == "bf16"
    assert probes == [16]
    assert fitted(16, precision="fp32") == "fp32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert fitted(2) == "bf16"
    assert fitted(2, precision="fp32") == "fp32"
    assert probes == [16]


# ------------------------------------------------------------------------------------------------- bad input


def bad_arrays(x, y):
    nan, inf = x.copy(), x.copy()
    nan[3, 0, 2, 2], inf[0, 0, 0, 0] = np.nan, np.inf
    soft = np.full((len(y), 10), 0.1)
    twice = np.eye(10)[y]
    twice[0] = 1
    return [
        (nan, y, "x contains NaN or infinity"),
        (inf, y, "x contains NaN or infinity"),
        (x.astype(np.float64) * 1e300, y, "x contains NaN or infinity"),
        (x * 255, y, r"x has values in \[0, 255\], outside the classifier's clip_values \[0, 1\]"),
        (x - 0.5, y, r"x has values in \[-0.5, 0.5\], outside"),
        ((255 * x).astype(np.uint8), y, r"x has values in \[0, 255\], outside"),
        (x[:0], y[:0], "x is empty"),
        (x[:, 0], y, r"x must be numbers of shape \(n, channels, height, width\), got float32 \(40, 8, 8\)"),
        (x.reshape(40, 64), y, "x must be numbers of shape"),
        (np.repeat(x, 3, axis=1), y, r"x has images of \(3, 8, 8\), the classifier takes \(1, 8, 8\)"),
        (x.astype(object), y, "x must be numbers of shape"),
        (x.astype(str), y, "x must be numbers of shape"),
        (x + 0j, y, "x must be numbers of shape"),
        (None, y, "x must be numbers of shape"),
        (x, y[:-1], "x has 40 images, y 39 labels"),
        (x, y[:0], "x has 40 images, y 0 labels"),
        (x, np.eye(10)[y][:-1], "x has 40 images, y 39 labels"),
        (x, y + 1, r"y must be whole numbers in 0 … 9, got values in \[1, 10\]"),
        (x, y - 1, r"y must be whole numbers in 0 … 9, got values in \[-1, 8\]"),
        (x, y + 0.5, "y must be whole numbers in 0 … 9"),
        (x, np.where(y == 3, np.nan, y), "y must be whole numbers in 0 … 9"),
        (x, soft, r"y of shape \(40, 10\) must be one-hot; soft labels are not supported"),
        (x, twice, "y of shape .* must be one-hot"),
        (x, 2 * np.eye(10)[y], "y of shape .* must be one-hot"),
        (
            x,
            np.eye(7)[y % 7],
            r"y must be numbers, one-hot \(n, 10\), \(n,\) or \(n, 1\), got float64 \(40, 7\)",
        ),
        (x, y.astype(str), "y must be numbers"),
        (x, y.astype(object), "y must be numbers"),
        (x, None, "y must be numbers"),
        (x, np.array(3), "y must be numbers"),
        (x, y[:, None, None], "y must be numbers"),
    ]


def test_bad_arrays_are_refused_and_nothing_is_lost(digits, teacher):
    x, y = digits[0][:40], digits[1][:40]
    student = classifier(network(norm=True))
    trainer = distiller(student, teacher)
    trainer.fit(x, y, nb_epochs=1)
    student.model.train()
    student.model[1].eval()
    teacher.train()
    kept, history, random = weights(trainer), trainer.history, torch.get_rng_state()
    state = copy.deepcopy(student.optimizer.state_dict()["state"])
    modes = [m.training for m in student.model.modules()]
    for bad_x, bad_y, message in bad_arrays(x, y):
        with pytest.raises(ValueError, match=message):
            trainer.fit(bad_x, bad_y, nb_epochs=1)
        with pytest.raises(ValueError, match="validation " + message.replace(", y ", ", validation y ")):
            trainer.fit(x, y, nb_epochs=1, validation_data=(bad_x, bad_y))
    for validation in (x, (x,), (x, y, y), {"x": x, "y": y}):
        with pytest.raises(ValueError, match=r"validation_data is a pair \(images, labels\)"):
            trainer.fit(x, y, nb_epochs=1, validation_data=validation)
    for counts in (
        {"nb_epochs": 0},
        {"nb_epochs": 1.5},
        {"batch_size": 0},
        {"batch_size": "8"},
        {"nb_epochs": True},
    ):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            trainer.fit(x, y, **{"nb_epochs": 1} | counts)
    assert equal(kept, weights(trainer))
    assert trainer.history is history
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in student.model.modules()] == modes
    assert all(m.training for m in teacher.modules())
    assert all(p.requires_grad for p in teacher.parameters())
    now = student.optimizer.state_dict()["state"]
    assert all(torch.equal(now[k]["momentum_buffer"], state[k]["momentum_buffer"]) for k in state)
    assert PartialState._shared_state == {}
    teacher.eval()


def test_unknown_arguments_are_type_errors_with_a_suggestion(digits, teacher):
    x, y, *_ = digits
    trainer = distiller(classifier(), teacher)
    before = weights(trainer)
    with pytest.raises(TypeError, match="unknown argument of fit 'nb_epoch'; did you mean 'nb_epochs'"):
        trainer.fit(x, y, nb_epoch=1)
    with pytest.raises(TypeError, match="unknown argument of fit 'drop_last'"):
        trainer.fit(x, y, nb_epochs=1, drop_last=True)
    with pytest.raises(
        TypeError, match="unknown argument of fit_generator 'schedule'; did you mean 'scheduler'"
    ):
        trainer.fit_generator(OnlyGetBatch(x, y), nb_epochs=1, schedule=None)
    with pytest.raises(TypeError, match="unknown argument of iad1 'betta'; did you mean 'beta'"):
        distiller(classifier(), teacher, objective_settings={"betta": 1.0})
    with pytest.raises(TypeError, match="go to an objective given by name"):
        distiller(classifier(), teacher, objective=objectives.ard(), objective_settings={"tau": 2.0})
    assert equal(before, weights(trainer))


def test_the_signatures_are_arts():
    fit = inspect.signature(IntrospectiveAdversarialDistiller.fit).parameters
    ours = [name for name, parameter in fit.items() if parameter.kind is parameter.KEYWORD_ONLY]
    assert list(fit) == [
        "self",
        "x",
        "y",
        "validation_data",
        "batch_size",
        "nb_epochs",
        "scheduler",
        *ours,
        "kwargs",
    ]
    assert {"checkpoint_folder", "checkpoint_every", "extra_data", "augment"} < set(ours)
    assert (fit["batch_size"].default, fit["nb_epochs"].default) == (128, 20)
    generator = inspect.signature(IntrospectiveAdversarialDistiller.fit_generator).parameters
    assert list(generator)[:4] == ["self", "generator", "nb_epochs", "scheduler"]


def test_bad_constructor_arguments(digits, teacher):
    student = classifier()
    with pytest.raises(ValueError, match="classifier must be an ART PyTorchClassifier, got Sequential"):
        distiller(network(), teacher)
    with pytest.raises(ValueError, match="unknown objective 'iad3'; did you mean"):
        distiller(student, teacher, objective="iad3")
    for objective in (objectives.iad1, None, 3):
        with pytest.raises(TypeError, match=r"a name or an Objective, such as objectives\.iad1\(\)"):
            distiller(student, teacher, objective=objective)
    with pytest.raises(ValueError, match="iad1 reads a teacher; pass teacher="):
        distiller(student, None)
    with pytest.raises(ValueError, match="the classifier has no clip_values"):
        distiller(classifier(clip_values=None), teacher)
    with pytest.raises(ValueError, match="the classifier has no clip_values"):
        distiller(student, classifier(teacher, clip_values=None))
    last = classifier(channels_first=False, input_shape=(8, 8, 1))
    for given in ((last, teacher), (student, last)):
        with pytest.raises(
            ValueError, match=r"\(channels, height, width\), got one with channels_first=False"
        ):
            distiller(*given)
    with pytest.raises(ValueError, match="unknown precision 'bf32'; did you mean 'fp32'"):
        distiller(student, teacher, precision="bf32")
    with pytest.raises(ValueError, match="unknown way to compile 'graph'; did you mean 'graphs'"):
        distiller(student, teacher, compile="graph")
    with pytest.raises(TypeError, match="compile must be a name"):
        distiller(student, teacher, compile=True)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        distiller(student, teacher, precision="fp16")
    for seed in (-1, 1.5, None, "7"):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
            distiller(student, teacher, seed=seed)
    assert distiller(student, teacher, seed=np.int64(3))._seed == 3


def test_bad_teachers(teacher):
    student = classifier()
    with pytest.raises(
        ValueError, match="the teacher has 7 classes, the classifier nb_classes=10; they must agree"
    ):
        distiller(student, network(classes=7))
    with pytest.raises(ValueError, match="the natural teacher has 7 classes"):
        distiller(student, teacher, objective="akd2", natural_teacher=Wrapped(classes=7))
    for own in (student, student.model, nn.Sequential(student.model), classifier(student.model)):
        with pytest.raises(ValueError, match="the teacher shares weights with the student; pass a copy"):
            distiller(student, own)
    with pytest.raises(ValueError, match=r"the teacher cannot take images of shape \(1, 8, 8\)"):
        distiller(student, nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 10)))
    with pytest.raises(
        ValueError, match=r"the teacher must return logits \(2, 10\) for 2 images, got \(2, 8, 3, 3\)"
    ):
        distiller(student, network()[:2])

    class Two(Wrapped):
        def forward(self, x):
            return self.inner(x), x

    with pytest.raises(ValueError, match=r"the teacher must return logits .* got tuple"):
        distiller(student, Two())
    broken = network(1)
    broken[0].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="the teacher's logits are NaN or infinite"):
        distiller(student, broken)
    with pytest.raises(TypeError, match="expected a network, a path or a name, got int"):
        distiller(student, 3)
    reading = attacks.RSLADPGD(student.model)
    with pytest.raises(ValueError, match="the attack RSLADPGD reads a teacher; pass teacher="):
        distiller(student, None, reading, objective="at")
    distiller(student, None, reading, objective="st")  # attacks nothing
    with pytest.raises(ValueError, match="unknown network 'cifar_resnet81'; did you mean 'cifar_resnet8'"):
        distiller(student, "cifar_resnet81")


def test_a_student_of_other_classes_than_it_says(digits, teacher):
    x, y, *_ = digits
    student = classifier(network(classes=7), nb_classes=10)
    with pytest.raises(ValueError, match="the student has 7 classes, the classifier nb_classes=10"):
        distiller(student, teacher).fit(x, y, nb_epochs=1)


def test_bad_optimizers(digits, teacher):
    x, y, *_ = digits
    without = distiller(classifier(optimizer=None), teacher)
    assert without.predict(x).shape == (256, 10)
    with pytest.raises(ValueError, match="the classifier has no optimizer"):
        without.fit(x, y, nb_epochs=1)
    others = torch.optim.SGD(network(1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds none of its model's trainable parameters"):
        distiller(classifier(optimizer=others), teacher).fit(x, y, nb_epochs=1)
    module = network()
    closing = classifier(module, optimizer=torch.optim.LBFGS(module.parameters()))
    with pytest.raises(ValueError, match="an optimizer that steps without a closure, got LBFGS"):
        distiller(closing, teacher).fit(x, y, nb_epochs=1)
    still = network().requires_grad_(False)
    with pytest.raises(ValueError, match="holds none of its model's trainable parameters"):
        distiller(classifier(still), teacher).fit(x, y, nb_epochs=1)


def test_only_what_the_optimizer_holds_is_trained(digits, teacher):
    x, y, *_ = digits
    module = network()
    module[0].requires_grad_(False)
    student = classifier(module, optimizer=torch.optim.Adam(module[-1].parameters(), lr=0.01))
    before = weights(module)
    distiller(student, teacher).fit(x[:64], y[:64], batch_size=16, nb_epochs=1)
    after = weights(module)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["3.weight"], after["3.weight"])
    assert not module[0].weight.requires_grad


# ------------------------------------------------------------------------------------------- several processes


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What two processes under `accelerate launch` left."""
    folder = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", str(port), art_multi_process.__file__, str(folder)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_agree_with_each_other(two_processes):
    first, second = two_processes
    for name in ("arrays", "generator", "foreign", "measured", "beyond", "beyond with norm"):
        assert equal(first[name]["weights"], second[name]["weights"])
        assert equal(first[name]["raw"], second[name]["raw"])
        assert first[name]["history"] == second[name]["history"]
        assert not first[name]["training"]
        assert not second[name]["training"]
    assert first["validated"] == {(0, 2)}
    assert second["validated"] == {(2, 3)}
    for refused in (first["refused"], second["refused"]):
        assert refused.startswith("a batch of 1 images cannot be shared by 2 processes")


@pytest.mark.slow
def test_two_processes_train_what_one_does(two_processes):
    one, (first, _) = art_multi_process.fits(), two_processes
    for name in ("arrays", "generator", "beyond"):
        assert distance(first[name]["weights"], one[name]["weights"]) < 1e-9
        for together, alone in zip(first[name]["history"], one[name]["history"], strict=True):
            known = {key: value for key, value in alone.items() if value is not None}
            assert {key for key, value in together.items() if value is not None} == known.keys()
            assert together["trust/histogram"] == known.pop("trust/histogram", None)
            assert {key: together[key] for key in known} == pytest.approx(known, rel=1e-9)
