"""Averages, perturbed weights, augmentations, more images and rates through the ART door, as in the recipes' engine."""

import copy
import itertools

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from test_art_resume import _die_after, _figures, _Kill, _killed_after, _same
from test_art_trainer import (  # noqa: F401
    EPS,
    OnlyGetBatch,
    accelerate_as_in_a_new_process,
    classifier,
    digits,
    distance,
    distiller,
    equal,
    network,
    percent,
    teacher,
    weights,
)
from torch import nn

from iad_ext import IntrospectiveAdversarialDistiller, attacks, objectives, rates
from iad_ext.augment import AUGMENTATIONS
from iad_ext.averaging import WeightAverage, reestimate_batchnorm
from iad_ext.batches import Batches
from iad_ext.data import ImageSet, unit_pixels
from iad_ext.loop import Engine, accelerator_for
from iad_ext.plan import Plan
from iad_ext.precision import Precision
from iad_ext.settings import Settings, override
from iad_ext.trainer.sources import ArrayBatches

BATCH, EPOCHS = 16, 2
CLASSES = tuple("0123456789")

# names as the door has them -> the same as the recipes have them
MIXES = {
    "plain": ({}, {}),
    "crop and mirror": ({"padding": 1, "flip": True}, {}),
    "cropshift and more images": ({"augment": "cropshift", "extra_share": 0.5}, {}),
    "everything": (
        {"augment": "idbh_weak", "flip": True, "cutmix": 0.5, "extra_share": 0.25},
        {"average": "ema", "average_decay": 0.8, "awp": 0.01, "bn_order": "faithful"},
    ),
    "swa": ({"cutmix": 0.5}, {"average": "swa", "average_batchnorm": "average"}),
    "late": ({}, {"average": "ema", "average_decay": 0.5, "average_start": 1, "awp": 0.02, "awp_start": 1}),
}


@pytest.fixture(scope="module")
def sets(digits):  # noqa: F811
    """The digits as the bytes of a recipe: 72 to train on, 20 more."""
    x, y, *_ = digits
    images = torch.from_numpy((x * 255).round().astype(np.uint8))
    labels = torch.from_numpy(y)
    return [ImageSet(images[here], labels[here], CLASSES) for here in (slice(0, 72), slice(100, 120))]


def arrays(images):
    return unit_pixels(images.images).numpy(), images.labels.numpy()


def recipe_batches(sets, mix, seed=0):
    known = {"padding": 0, "flip": False, "cutmix": 0.0, "extra_share": 0.0} | mix
    name = known.pop("augment", "crop")
    extra = sets[1] if known["extra_share"] else None
    return Batches(
        sets[0], batch_size=BATCH, seed=seed, augmentation=AUGMENTATIONS.get(name), extra=extra, **known
    )


def fit(trainer, sets, mix, **settings):
    x, y = arrays(sets[0])
    if mix.get("extra_share"):
        mix = mix | {"extra_data": arrays(sets[1])}
    trainer.fit(x, y, **({"batch_size": BATCH, "nb_epochs": EPOCHS} | mix | settings))


def student(**settings):
    return classifier(network(1, norm=True), **settings)


# ------------------------------------------------------------------------------------------ the recipes' engine


@pytest.mark.parametrize("name", MIXES)
def test_an_epochs_batches_are_those_of_a_recipe(sets, name, monkeypatch):
    mix, _ = MIXES[name]
    expected, seen = recipe_batches(sets, mix, seed=4), []
    original = ArrayBatches.batch

    def batch(self, epoch, step, **parts):
        found = original(self, epoch, step, **parts)
        seen.append((epoch, step, found))
        return found

    monkeypatch.setattr(ArrayBatches, "batch", batch)
    fit(IntrospectiveAdversarialDistiller(student(), objective="st", seed=4), sets, mix)
    places = {(epoch, step) for epoch, step, _ in seen}
    assert places == set(itertools.product(range(EPOCHS), range(5)))
    for epoch, step, found in seen:
        its = expected.batch(epoch, step)
        assert torch.equal(found.images, its.images)
        assert torch.equal(found.labels, its.labels)
        assert (found.offset, found.total) == (its.offset, its.total)


def by_the_engine(sets, guide, mix, training, *, objective, natural_guide=None):
    """What a recipe trains, assembled by hand: its own weights, and those that it would keep."""
    trained = network(1, norm=True)
    known = {"average": "none", "average_decay": 0.995, "average_start": 0, "average_batchnorm": "reestimate"}
    known |= {"awp": 0.0, "awp_start": 0, "bn_order": "lean"} | training
    average = None
    if known["average"] != "none":
        average = WeightAverage(
            trained, kind=known["average"], decay=known["average_decay"], start=known["average_start"]
        )
    engine = Engine(
        accelerator=accelerator_for(Precision("fp32", False, "test"), cpu=True),
        student=trained,
        optimizer=torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9),
        objective=objective,
        attack=attacks.build(
            objective.attack,
            trained,
            teacher=guide,
            eps=EPS,
            alpha=EPS / 4,
            training=objective.attack_training,
        ),
        source=recipe_batches(sets, mix),
        seed=0,
        teacher=copy.deepcopy(guide),
        natural_teacher=copy.deepcopy(natural_guide),
        average=average,
        **{name: known[name] for name in ("awp", "awp_start", "bn_order")},
    )
    for epoch in range(EPOCHS):
        engine.epoch(epoch)
    if average is None:
        return trained.state_dict(), trained.state_dict()
    kept = copy.deepcopy(average.network)
    if known["average_batchnorm"] == "reestimate":
        trained_on = recipe_batches(sets, mix)
        steps = range(len(trained_on))
        reestimate_batchnorm(kept, (trained_on.batch(EPOCHS - 1, step).images for step in steps))
    return trained.state_dict(), kept.state_dict()


@pytest.mark.parametrize("name", MIXES)
def test_a_fit_ends_with_the_bits_of_the_recipes_engine(sets, teacher, name):  # noqa: F811
    mix, training = MIXES[name]
    trainer = distiller(student(), teacher, precision="fp32", **training)
    fit(trainer, sets, mix)
    raw, kept = by_the_engine(sets, teacher, mix, training, objective=objectives.iad1(warmup_epochs=0))
    assert equal(weights(trainer), kept)
    if "average" in training:
        assert equal(trainer.raw_weights, raw)
        assert distance(raw, kept) > 1e-4
    else:
        assert trainer.raw_weights is None


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("rslad", {}),
        ("adaad", {}),
        ("mtard", {"balance_rate": 0.3}),
        ("mart", {}),
        ("adr", {"ramp_epochs": EPOCHS}),
        ("adaiad", {"warmup_epochs": 1}),
        ("iad_rslad", {"warmup_epochs": 1}),
        ("iad_mtard", {"warmup_epochs": 1, "balance_rate": 0.3}),
        ("iad1", {"warmup_epochs": 1, "igdm": 2.0, "ramp_epochs": EPOCHS, "sample_weight": "entropy"}),
        ("rslad", {"introspect": True, "trust": "margin", "target": "swap"}),
    ],
)
def test_a_fit_by_a_later_method_ends_with_the_bits_of_the_recipes_engine(sets, teacher, name, given):  # noqa: F811
    natural = network(5)
    trainer = distiller(
        student(),
        teacher,
        objective=name,
        objective_settings=given,
        natural_teacher=natural,
        precision="fp32",
    )
    fit(trainer, sets, {})
    objective = objectives.build(name, **given)
    trained, _ = by_the_engine(sets, teacher, {}, {}, objective=objective, natural_guide=natural)
    assert equal(weights(trainer), trained)
    assert distance(trained, network(1, norm=True).state_dict()) > 1e-3


def test_options_left_alone_change_nothing(sets, teacher):  # noqa: F811
    trained = []
    for mix, training in (
        ({}, {}),
        (
            {"padding": 0, "flip": False, "augment": "crop", "cutmix": 0.0, "extra_share": 0.0},
            {
                "average": "none",
                "average_decay": 0.1,
                "awp": 0.0,
                "awp_start": 3,
                "bn_order": "lean",
                "average_batchnorm": "average",
            },
        ),
    ):
        trainer = distiller(student(), teacher, **training)
        fit(trainer, sets, mix)
        trained.append(weights(trainer))
    assert equal(*trained)


# ------------------------------------------------------------------------------------------ averages by hand


class Remembering(torch.optim.SGD):
    """Keeps the weights after each of its steps."""

    def step(self, closure=None):
        super().step(closure)
        held = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]
        self.seen = [*getattr(self, "seen", []), held[0]]


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_classifier_holds_the_average_of_what_its_optimizer_made(sets, teacher, kind):  # noqa: F811
    module = network(1, dtype=torch.float64)
    own = classifier(module, optimizer=Remembering(module.parameters(), lr=0.1))
    first = [p.detach().clone() for p in module.parameters()]
    trainer = distiller(own, teacher, average=kind, average_decay=0.7)
    x, y = arrays(sets[0])
    trainer.fit(x.astype(np.float64), y, batch_size=BATCH, nb_epochs=3)
    seen = own.optimizer.seen
    assert len(seen) == 15
    if kind == "ema":
        expected = first
        for after in seen:
            expected = [0.7 * slow + 0.3 * now for slow, now in zip(expected, after, strict=True)]
    else:
        expected = [torch.stack(ends).mean(0) for ends in zip(*seen[4::5], strict=True)]
    for mine, its in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.detach(), its)
    for mine, its in zip(trainer.raw_weights.values(), seen[-1], strict=True):
        assert torch.equal(mine, its)


def test_what_is_validated_is_what_the_classifier_then_holds(sets, digits, teacher):  # noqa: F811
    *_, x_test, y_test = digits
    watched = []

    class Highest:
        mode = "max"

        def step(self, metrics):
            watched.append(metrics)

    own = student()
    trainer = distiller(own, teacher, average="ema", average_decay=0.9)
    fit(trainer, sets, {}, nb_epochs=4, validation_data=(x_test, y_test), scheduler=Highest())
    record = trainer.history[-1]
    assert record["eval/natural"] == percent(trainer.predict(x_test), y_test)
    assert watched == [record["eval/pgd10"] for record in trainer.history]
    own.model.load_state_dict(trainer.raw_weights)
    assert percent(trainer.predict(x_test), y_test) != record["eval/natural"]


def test_statistics_are_those_of_prediction_on_the_images_as_they_are_trained_on(sets, teacher):  # noqa: F811
    """Augmented, extra ones among them, and behind the preprocessing of prediction."""

    class Shift(PreprocessorPyTorch):
        def __init__(self, by, **when):
            super().__init__(is_fitted=True, device_type="cpu", **when)
            self.by = by

        def forward(self, x, y=None):
            return x + self.by, y

    own = student(
        preprocessing_defences=[
            Shift(0.5, apply_fit=False, apply_predict=True),
            Shift(2.0, apply_fit=True, apply_predict=False),
        ]
    )
    trainer = distiller(own, teacher, average="ema")
    mix = {"augment": "idbh_weak", "extra_share": 0.5}
    fit(trainer, sets, mix)
    batches = recipe_batches(sets, mix)
    conv, norm = own.model[0], own.model[1]
    with torch.no_grad():
        seen = [conv(batches.batch(EPOCHS - 1, step).images + 0.5) for step in range(len(batches))]
    torch.testing.assert_close(norm.running_mean, torch.stack([s.mean((0, 2, 3)) for s in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([s.var((0, 2, 3)) for s in seen]).mean(0))


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_the_module_stays_the_users_own(sets, teacher, asked):  # noqa: F811
    own = student()
    module, parameters = own.model, list(own.model.parameters())
    trainer = distiller(own, teacher, precision=asked, average="ema", awp=0.01)
    fit(trainer, sets, {"padding": 1})
    assert own.model is module
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    assert not any(part.training for part in own._model.modules())
    for part in module.modules():
        assert "forward" not in vars(part)
        assert not {**part._forward_hooks, **part._forward_pre_hooks, **part._backward_hooks}
    for p in parameters:
        assert (p.dtype, p.requires_grad, p.grad) == (torch.float32, True, None)
        assert p.is_contiguous()
        assert p.is_leaf
    assert trainer.raw_weights.keys() == module.state_dict().keys()
    assert all(value.is_contiguous() and not value.requires_grad for value in trainer.raw_weights.values())


def test_a_second_fit_begins_with_the_average_or_with_what_is_put_back(sets, teacher):  # noqa: F811
    def after(put_back):
        own = student()
        trainer = distiller(own, teacher, average="ema", average_decay=0.5)
        fit(trainer, sets, {}, nb_epochs=1)
        first, raw = weights(trainer), trainer.raw_weights
        for group in own.optimizer.param_groups:
            group["lr"] = 0.0
        if put_back:
            own.model.load_state_dict(raw)
        fit(trainer, sets, {}, nb_epochs=1)
        return first, raw, trainer.raw_weights

    for put_back in (False, True):
        first, raw, again = after(put_back)
        begun, other = (raw, first) if put_back else (first, raw)
        assert torch.equal(again["0.weight"], begun["0.weight"])
        assert not torch.equal(again["0.weight"], other["0.weight"])


def test_a_fit_that_fails_leaves_the_students_own_weights(sets, teacher):  # noqa: F811
    class PowerCutError(Exception): ...

    class Cut(attacks.PGD):
        calls = 0

        def forward(self, images, labels, noise=None):
            Cut.calls += 1
            if Cut.calls == 3:
                raise PowerCutError
            return super().forward(images, labels, noise)

    module = network(1)
    own = classifier(module, optimizer=Remembering(module.parameters(), lr=0.1))
    trainer = distiller(own, teacher, Cut(module, steps=1), average="ema")
    with pytest.raises(PowerCutError):
        fit(trainer, sets, {})
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), own.optimizer.seen[1], strict=True))
    assert trainer.raw_weights is None


# ------------------------------------------------------------------------------------------ passes


def passes_of_an_epoch(sets, guide, **training):
    """Forward passes of student and teacher in an epoch of five steps, and how many images the average saw after it."""
    counts = {"student": 0, "teacher": 0}
    module, own_teacher = network(1, norm=True), copy.deepcopy(guide)

    def counting(name):
        def count(*_):
            counts[name] += 1

        return count

    own = classifier(module)
    trainer = distiller(own, own_teacher, diagnostics="off", precision="fp32", compile="off", **training)
    hooks = [
        net.register_forward_hook(counting(name))
        for name, net in (("student", module), ("teacher", own_teacher))
    ]
    x, y = arrays(sets[0])
    trainer.fit(x, y, batch_size=BATCH, nb_epochs=1)
    for hook in hooks:
        hook.remove()
    return counts, int(module[1].num_batches_tracked)


def test_passes_are_counted_exactly(sets, teacher):  # noqa: F811
    """A step of IAD-I is 10 passes of the attack, S(x̃), S(x), and one pass of the teacher on both; 5 steps."""
    plain, seen = passes_of_an_epoch(sets, teacher)
    looks = plain["student"] - 5 * 12, plain["teacher"] - 5
    assert looks == (1, 1)  # at the first batch, before training
    assert seen == 5 * 12
    with_awp, seen = passes_of_an_epoch(sets, teacher, awp=0.01)
    assert with_awp["student"] == plain["student"] + 5 * 2  # S(x̃) and S(x) once more
    assert with_awp["teacher"] == plain["teacher"]
    assert seen == 5 * 12  # which BatchNorm does not count
    late, _ = passes_of_an_epoch(sets, teacher, awp=0.01, awp_start=1)
    assert late == plain
    faithful, seen = passes_of_an_epoch(sets, teacher, bn_order="faithful")
    assert faithful == plain
    assert seen == 5 * 14  # S(x̃) and S(x) twice, run once
    averaged, seen = passes_of_an_epoch(sets, teacher, average="ema")
    # a copy, which hooks go with, goes once more over the images, five batches: it is what the classifier holds
    assert averaged == plain | {"student": plain["student"] + 5}
    assert seen == 5
    averaged, seen = passes_of_an_epoch(sets, teacher, average="ema", average_batchnorm="average")
    assert averaged == plain
    assert seen == 5 * 12


# ------------------------------------------------------------------------------------------ images


def test_seeds_and_fits_augment_otherwise_and_the_same_again(sets, teacher, monkeypatch):  # noqa: F811
    firsts = []
    original = ArrayBatches.batch

    def batch(self, epoch, step, **parts):
        found = original(self, epoch, step, **parts)
        if (epoch, step) == (0, 0):
            firsts.append(found.images.clone())
        return found

    monkeypatch.setattr(ArrayBatches, "batch", batch)
    mix = {"augment": "idbh_weak", "cutmix": 0.5, "extra_share": 0.5}
    trained = []
    for global_seed, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(global_seed)
        trainer = distiller(student(), teacher, seed=seed, average="ema", awp=0.01)
        fit(trainer, sets, mix)
        trained.append((firsts[-1], weights(trainer)))
    fit(trainer, sets, mix)
    (first, one), (second, other), (third, apart) = trained
    assert torch.equal(first, second)
    assert equal(one, other)
    assert not torch.equal(first, third)
    assert distance(one, apart) > 0
    assert not torch.equal(third, firsts[-1])  # a second fit of the same trainer


@pytest.mark.parametrize("clip_values", [(0, 255), (-1, 1)])
def test_augmentations_are_of_pixels_whatever_their_unit(sets, teacher, clip_values):  # noqa: F811
    """Black is the lower end of the range, and more images are in it, too."""
    low, high = clip_values
    trained = []
    for own, scaled in (
        (classifier(network(dtype=torch.float64)), lambda x: x),
        (
            classifier(
                network(dtype=torch.float64), clip_values=clip_values, preprocessing=(low, high - low)
            ),
            lambda x: low + (high - low) * x,
        ),
    ):
        trainer = distiller(own, copy.deepcopy(teacher), average="ema")
        (x, y), (x_more, y_more) = arrays(sets[0]), arrays(sets[1])
        trainer.fit(
            scaled(x.astype(np.float64)),
            y,
            batch_size=BATCH,
            nb_epochs=1,
            padding=1,
            cutmix=0.5,
            extra_data=(scaled(x_more.astype(np.float64)), np.eye(10)[y_more]),
            extra_share=0.5,
        )
        trained.append(weights(trainer))
    assert distance(*trained) < 1e-6


def test_arrays_stay_as_they_are(sets, teacher):  # noqa: F811
    given = [*arrays(sets[0]), *arrays(sets[1])]
    given = [part.copy() for part in given]
    kept = [part.copy() for part in given]
    for part in given:
        part.flags.writeable = False
    x, y, x_more, y_more = given
    mix = {"augment": "idbh_weak", "cutmix": 1.0, "extra_data": (x_more, y_more), "extra_share": 0.9}
    distiller(student(), teacher, average="ema").fit(x, y, batch_size=BATCH, nb_epochs=1, **mix)
    assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True))


# ------------------------------------------------------------------------------------------ generators


@pytest.mark.parametrize("batchnorm", ["reestimate", "average"])
def test_a_generators_fit_is_averaged_too(sets, teacher, batchnorm):  # noqa: F811
    """Without BatchNorm there is nothing to estimate."""
    x, y = arrays(sets[0])
    norm = batchnorm == "average"
    own = classifier(network(1, norm=norm))
    generator = OnlyGetBatch(x, y)
    trainer = distiller(own, teacher, average="swa", average_batchnorm=batchnorm, awp=0.01)
    trainer.fit_generator(generator, nb_epochs=1)
    assert generator.given == 5  # each batch once
    assert equal(weights(trainer), trainer.raw_weights)  # the mean of one epoch's end
    trainer.fit_generator(generator, nb_epochs=2)
    assert distance(weights(trainer), trainer.raw_weights) > 0


def test_statistics_of_a_generators_images_cannot_be_estimated_anew(sets, teacher):  # noqa: F811
    x, y = arrays(sets[0])
    generator, trainer = OnlyGetBatch(x, y), distiller(student(), teacher, average="ema")
    before = weights(trainer)
    with pytest.raises(ValueError, match="pass average_batchnorm='average', or arrays to fit"):
        trainer.fit_generator(generator, nb_epochs=1)
    assert equal(before, weights(trainer))
    assert generator.given == 0


# ------------------------------------------------------------------------------------------ rates and labels


@pytest.mark.parametrize("course", ["cosine", "cyclic"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_rates_are_those_of_a_recipe(sets, course, warmup):
    own = student(lr=0.2)
    trainer = IntrospectiveAdversarialDistiller(own, objective="st")
    expected = override(
        Settings(),
        {
            "objective.name": "st",
            "data.name": "digits",
            "train.rates": course,
            "train.rate_warmup": warmup,
            "train.lr": 0.2,
            "train.epochs": 5,
        },
    )
    plan = Plan.of(expected)
    for _ in range(2):  # a second fit begins at the first's rate
        scheduler = rates.scheduler(own.optimizer, course, epochs=5, rate_warmup=warmup)
        fit(trainer, sets, {}, nb_epochs=5, scheduler=scheduler)
        assert [r["lr"] for r in trainer.history] == pytest.approx([plan.rate(e) for e in range(5)])
        assert own.optimizer.param_groups[0]["lr"] == trainer.history[-1]["lr"] > 0


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"course": "cosin"}, ValueError, "unknown course of the rate 'cosin'; did you mean 'cosine'"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 2.0}, TypeError, "epochs must be an integer"),
        ({"rate_warmup": -1}, ValueError, "rate_warmup must be at least 0"),
    ],
)
def test_rates_that_are_none(changed, error, said):
    own = student()
    with pytest.raises(error, match=said):
        rates.scheduler(own.optimizer, **({"course": "cosine", "epochs": 3} | changed))
    assert "initial_lr" not in own.optimizer.param_groups[0]


def test_labels_are_smoothed_by_a_setting_of_the_objective(sets):
    trained = []
    for objective, settings in (
        ("at", {"objective_settings": {"label_smoothing": 0.2}}),
        (objectives.build("at", label_smoothing=0.2), {}),
        ("at", {}),
    ):
        trainer = IntrospectiveAdversarialDistiller(student(), objective=objective, **settings)
        fit(trainer, sets, {}, nb_epochs=1)
        trained.append(weights(trainer))
    assert equal(trained[0], trained[1])
    assert distance(trained[0], trained[2]) > 0


# ------------------------------------------------------------------------------------------ what is killed goes on

KEPT = {
    "everything": MIXES["everything"],
    "swa and more images": (
        MIXES["cropshift and more images"][0],
        {"average": "swa", "awp": 0.01, "awp_start": 1},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("updates", [3, 7, 10])
@pytest.mark.parametrize("name", KEPT)
def test_a_killed_fit_goes_on_to_the_same_bits(sets, digits, teacher, tmp_path, monkeypatch, name, updates):  # noqa: F811
    """Within the first epoch and the second, and when all is trained and the average is not handed over."""
    mix, training = KEPT[name]
    *_, x_test, y_test = digits

    def run(folder=None):
        own = student()
        trainer = distiller(own, teacher, **training)
        kept = {} if folder is None else {"checkpoint_folder": folder, "checkpoint_every": 2}
        cosine = rates.scheduler(own.optimizer, "cosine", epochs=EPOCHS, rate_warmup=1)
        fit(trainer, sets, mix, validation_data=(x_test[:32], y_test[:32]), scheduler=cosine, **kept)
        return trainer

    whole = run()
    with monkeypatch.context() as patched:
        if updates < 10:
            patched.setattr(Engine, "_update", _die_after(updates))
        else:
            patched.setattr("iad_ext.trainer.distiller.become", _dead)
        with pytest.raises(_Kill):
            run(tmp_path)
    again = run(tmp_path)
    _same(again, whole)
    assert equal(again.raw_weights, whole.raw_weights)
    # what is done is only read back
    monkeypatch.setattr(Engine, "_update", _die_after(0))
    _same(run(tmp_path), whole)


def _dead(*_):
    raise _Kill


@pytest.mark.slow
def test_a_generators_average_goes_on(sets, teacher, tmp_path, monkeypatch):  # noqa: F811
    def run(folder=None):
        trainer = distiller(student(), teacher, average="ema", average_batchnorm="average", awp=0.01)
        kept = {} if folder is None else {"checkpoint_folder": folder, "checkpoint_every": 2}
        trainer.fit_generator(OnlyGetBatch(*arrays(sets[0])), nb_epochs=EPOCHS, **kept)
        return trainer

    whole = run()
    with _killed_after(7, monkeypatch):
        run(tmp_path)
    again = run(tmp_path)
    _same(again, whole)
    assert _figures(again)


@pytest.mark.slow
def test_other_options_are_another_fit(sets, teacher, tmp_path):  # noqa: F811
    mix = {"extra_share": 0.5}
    fit(distiller(student(), teacher), sets, mix, checkpoint_folder=tmp_path)
    swapped = [sets[0], sets[1].take(torch.arange(19))]
    for training, changed, of, said in (
        ({"average": "ema"}, {}, sets, "  average: none before, ema now"),
        ({"awp": 0.01}, {}, sets, "  awp: 0.0 before, 0.01 now"),
        ({"bn_order": "faithful"}, {}, sets, "  bn_order: lean before, faithful now"),
        ({}, {"augment": "cropshift"}, sets, "  augment: crop before, cropshift now"),
        ({}, {"extra_share": 0.25}, sets, "  extra_share: 0.5 before, 0.25 now"),
        ({}, {}, swapped, "  data: "),
    ):
        with pytest.raises(ValueError, match="holds another fit") as refused:
            fit(
                distiller(student(), teacher, **training),
                of,
                mix | changed,
                checkpoint_folder=tmp_path,
            )
        assert said in str(refused.value)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"average": "emma"}, ValueError, "unknown average 'emma'; did you mean 'ema'"),
        ({"average": None}, TypeError, "average must be a name"),
        ({"average_decay": 1.0}, ValueError, "average_decay must be at least 0 and below 1"),
        ({"average_decay": "0.9"}, ValueError, "average_decay must be a finite number"),
        ({"average_start": -1}, ValueError, "average_start must be an integer of at least 0"),
        ({"average_batchnorm": "reestimated"}, ValueError, "did you mean 'reestimate'"),
        ({"awp": -0.1}, ValueError, "awp must be at least 0"),
        ({"awp": float("nan")}, ValueError, "awp must be a finite number"),
        ({"awp_start": 0.5}, ValueError, "awp_start must be an integer"),
        ({"bn_order": "released"}, ValueError, "unknown bn_order 'released'"),
        ({"averaging": "ema"}, TypeError, "did you mean 'average'"),
        (
            {"objective": "adr", "average": "swa"},
            ValueError,
            "adr is taught by an ema of decay 0.995 from epoch 0 on, and swa from epoch 0 on would teach",
        ),
        (
            {"objective": "adr", "average": "ema", "average_decay": 0.9},
            ValueError,
            "and an ema of decay 0.9 from epoch 0 on would teach in its place; average by none",
        ),
        (
            {"objective": "adr", "average": "ema", "average_start": 2},
            ValueError,
            "and an ema of decay 0.995 from epoch 2 on would teach",
        ),
    ],
)
def test_bad_options_of_the_trainer(teacher, settings, error, said):  # noqa: F811
    with pytest.raises(error, match=said):
        distiller(student(), teacher, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"padding": -1}, ValueError, "padding must be an integer of at least 0"),
        ({"padding": 1.0}, ValueError, "padding must be an integer of at least 0"),
        ({"flip": 1}, TypeError, "flip must be True or False"),
        ({"augment": "cropshfit"}, ValueError, "unknown augmentation 'cropshfit'; did you mean 'cropshift'"),
        ({"augment": None}, TypeError, "augment must be a name"),
        ({"augment": "cropshift", "padding": 4}, ValueError, "in place of the random crop; leave padding=0"),
        ({"cutmix": 1.5}, ValueError, "cutmix must be at least 0 and at most 1"),
        ({"extra_share": 0.5}, ValueError, "give both, or neither"),
        ({"extra_data": "some", "extra_share": 0.5}, ValueError, r"extra_data is a pair \(images, labels\)"),
        ({"extra_data": "none"}, ValueError, "give both, or neither"),
        (
            {"extra_data": "fine", "extra_share": 1.5},
            ValueError,
            "extra_share must be at least 0 and at most 1",
        ),
        ({"extra_data": "wide", "extra_share": 0.5}, ValueError, r"extra x has images of \(2, 8, 8\)"),
        ({"extra_data": "bright", "extra_share": 0.5}, ValueError, "extra x has values in"),
        ({"extra_data": "eleven", "extra_share": 0.5}, ValueError, "extra y must be whole numbers in 0 … 9"),
        ({"cutmx": 0.5}, TypeError, "unknown argument of fit 'cutmx'; did you mean 'cutmix'"),
    ],
)
def test_bad_options_of_a_fit(sets, teacher, settings, error, said):  # noqa: F811
    x, y = arrays(sets[0])
    more, its = arrays(sets[1])
    given = {
        "some": (more,),
        "none": (more, its),
        "fine": (more, its),
        "wide": (np.repeat(more, 2, axis=1), its),
        "bright": (2 * more, its),
        "eleven": (more, its + 5),
    }
    if "extra_data" in settings:
        settings = settings | {"extra_data": given[settings["extra_data"]]}
    trainer = distiller(student(), teacher)
    before = weights(trainer)
    with pytest.raises(error, match=said):
        trainer.fit(x, y, batch_size=BATCH, nb_epochs=1, **settings)
    assert equal(before, weights(trainer))
    assert trainer.history == []


def test_a_generator_augments_by_itself(sets, teacher):  # noqa: F811
    trainer = distiller(student(), teacher)
    for name, value in (("cutmix", 0.5), ("extra_share", 0.5), ("padding", 4)):
        with pytest.raises(TypeError, match=f"unknown argument of fit_generator '{name}'"):
            trainer.fit_generator(OnlyGetBatch(*arrays(sets[0])), nb_epochs=1, **{name: value})


def test_batchnorm_without_a_momentum_has_no_order(sets, teacher):  # noqa: F811
    module = nn.Sequential(network(1)[0], nn.BatchNorm2d(8, momentum=None), *network(1)[1:])
    trainer = distiller(classifier(module), teacher, bn_order="faithful")
    before = weights(trainer)
    with pytest.raises(ValueError, match="averages all batches alike"):
        fit(trainer, sets, {})
    assert equal(before, weights(trainer))


def test_a_module_that_cannot_be_copied_has_no_average(sets):
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(1)

        def forward(self, x):
            return self.inner(x)

        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle it")

    own = classifier(Stubborn())
    before = weights(own.model)
    with pytest.raises(ValueError, match=r"cannot be copied, which an average .* cannot pickle it"):
        fit(IntrospectiveAdversarialDistiller(own, objective="at", average="ema"), sets, {})
    assert equal(before, weights(own.model))
    fit(IntrospectiveAdversarialDistiller(own, objective="at"), sets, {}, nb_epochs=1)
    assert not equal(before, weights(own.model))


def test_an_attack_on_an_average_that_nothing_keeps_is_refused(teacher):  # noqa: F811
    own = student()
    attack = attacks.ADRPGD(own.model, eps=EPS, alpha=EPS / 4)
    with pytest.raises(ValueError, match=r"ADRPGD climbs away from .* iad1 does not keep; leave attack"):
        distiller(own, teacher, attack=attack)
    IntrospectiveAdversarialDistiller(own, objective="adr", attack=attack)


def test_what_begins_after_the_last_epoch_is_mentioned(sets, teacher, caplog):  # noqa: F811
    trainer = distiller(student(), teacher, average="swa", average_start=2, awp=0.01, awp_start=1)
    fit(trainer, sets, {}, nb_epochs=2)
    assert (
        "the swa of weights begins at epoch 2, counted from 0: this fit of 2 epochs is without it"
        in caplog.text
    )
    assert "perturbation" not in caplog.text
