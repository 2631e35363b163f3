"""Fits through the ART door that are killed and go on, compared bit by bit with fits that were not."""

import contextlib
import copy
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm.optim
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescent
from safetensors.torch import load_file
from test_art_trainer import (  # noqa: F401
    Gain,
    OnlyGetBatch,
    classifier,
    digits,
    distance,
    distiller,
    equal,
    network,
    teacher,
    weights,
)
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau

from iad_ext import checkpoint, compiling
from iad_ext.backbones import create_network
from iad_ext.checkpoint import CheckpointError
from iad_ext.compiling import Compilation
from iad_ext.loop import Engine

pytestmark = pytest.mark.slow

EPOCHS, BATCH = 3, 16


class _Kill(BaseException):
    pass


def student(**settings):
    return classifier(network(1, norm=True), **settings)


def _fit(trainer, data, folder=None, **settings):
    x, y, x_val, y_val = data
    arguments = {"batch_size": BATCH, "nb_epochs": EPOCHS, "validation_data": (x_val[:32], y_val[:32])}
    kept = {} if folder is None else {"checkpoint_folder": folder, "checkpoint_every": 2}
    trainer.fit(x[:80], y[:80], **(arguments | kept | settings))


def _die_after(updates):
    """Training that ends without warning after so many updates."""
    real, done = Engine._update, []

    def update(engine, epoch, step):
        if len(done) == updates:
            raise _Kill
        done.append((epoch, step))
        return real(engine, epoch, step)

    return update


@contextlib.contextmanager
def _killed_after(updates, monkeypatch):
    """A fit in here is killed after so many updates."""
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_update", _die_after(updates))
        with pytest.raises(_Kill):
            yield


def _figures(trainer):
    return [
        {key: value for key, value in record.items() if not key.startswith(("time/", "memory/"))}
        for record in trainer.history
    ]


def _momentum(trainer):
    return checkpoint.optimizer_tensors(trainer.get_classifier().optimizer)


def _same(one, other):
    assert equal(weights(one), weights(other))
    assert equal(_momentum(one), _momentum(other))
    assert _figures(one) == _figures(other)
    assert (
        one.get_classifier().optimizer.param_groups[0]["lr"]
        == other.get_classifier().optimizer.param_groups[0]["lr"]
    )


@pytest.mark.parametrize("updates", [1, 3, 5, 7, 10, 14])
def test_a_fit_that_is_killed_goes_on_to_the_same_bits(digits, teacher, tmp_path, monkeypatch, updates):  # noqa: F811
    """Before the first checkpoint, within the first epoch, at its end, later, and before the last update."""
    whole = distiller(student(), teacher, objective_settings={"warmup_epochs": 1})
    _fit(whole, digits)
    with _killed_after(updates, monkeypatch):
        _fit(
            distiller(student(), teacher, objective_settings={"warmup_epochs": 1}),
            digits,
            tmp_path / "fit",
        )
    again = distiller(student(), teacher, objective_settings={"warmup_epochs": 1})
    _fit(again, digits, tmp_path / "fit")
    _same(again, whole)


SCHEDULERS = {
    "multi step": lambda optimizer: MultiStepLR(optimizer, [1, 2], gamma=0.3),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 5),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=4),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
    "timm": lambda optimizer: CosineLRScheduler(optimizer, t_initial=4, warmup_t=2),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_goes_on(digits, teacher, tmp_path, monkeypatch, name):  # noqa: F811
    def begin():
        own = student()
        return distiller(own, teacher), SCHEDULERS[name](own.optimizer)

    whole, scheduler = begin()
    _fit(whole, digits, scheduler=scheduler)
    rates = [record["lr"] for record in whole.history]
    assert len(set(rates)) > 1
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_update", _die_after(12))
        trainer, scheduler = begin()
        with pytest.raises(_Kill):
            _fit(trainer, digits, tmp_path, scheduler=scheduler)
    again, scheduler = begin()
    _fit(again, digits, tmp_path, scheduler=scheduler)
    _same(again, whole)


OPTIMIZERS = {
    "adafactor": torch.optim.Adafactor,
    "adan": timm.optim.Adan,
    "lookahead": lambda parameters: timm.optim.Lookahead(torch.optim.SGD(parameters, 0.1, 0.9), k=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on(digits, teacher, tmp_path, monkeypatch, name):  # noqa: F811
    """Those that keep other shapes than their weights', or count their steps in their groups, too."""

    def begin():
        module = network(1, norm=True)
        own = classifier(module, optimizer=OPTIMIZERS[name](module.parameters()))
        return distiller(own, teacher), {"scheduler": MultiStepLR(own.optimizer, [1, 2], gamma=0.3)}

    whole, arguments = begin()
    _fit(whole, digits, **arguments)
    with _killed_after(7, monkeypatch):
        fit, arguments = begin()
        _fit(fit, digits, tmp_path, **arguments)
    again, arguments = begin()
    _fit(again, digits, tmp_path, **arguments)
    _same(again, whole)


def test_an_optimizer_that_cannot_be_kept_says_so_at_its_first_step(digits, teacher, tmp_path):  # noqa: F811
    module = network(1)
    trainer = distiller(classifier(module, optimizer=timm.optim.Lamb(module.parameters())), teacher)
    before = weights(trainer)
    with pytest.raises(ValueError, match="the optimizer Lamb cannot be kept in a checkpoint"):
        trainer.fit(*digits[:2], batch_size=16, nb_epochs=1, checkpoint_folder=tmp_path)
    assert not equal(before, weights(trainer))
    assert trainer.get_classifier().optimizer.param_groups[0]["step"] == 1


def test_a_fused_optimizer_trains_as_one_that_is_not(digits, tmp_path, monkeypatch):  # noqa: F811
    """In a second fit, and in one that goes on: weights then lie in channels_last, and so must the momentum."""
    x, y, *_ = digits
    x = np.repeat(x[:64], 3, axis=1)  # of one channel, every memory format is the same

    def begin(*, fused):
        module = network(1, norm=True, channels=3)
        optimizer = torch.optim.SGD(module.parameters(), 0.05, 0.9, fused=fused)
        own = classifier(module, optimizer=optimizer, input_shape=(3, 8, 8))
        return distiller(own, None, objective="at", precision="fp32", compile="off")

    def fit(trainer, **settings):
        trainer.fit(x, y[:64], batch_size=16, nb_epochs=2, **settings)

    plain, fused = begin(fused=False), begin(fused=True)
    for trainer in (plain, fused):
        fit(trainer)
        fit(trainer)
    assert distance(weights(plain), weights(fused)) < 1e-4
    whole, again = begin(fused=True), begin(fused=True)
    fit(whole)
    with _killed_after(6, monkeypatch):
        fit(begin(fused=True), checkpoint_folder=tmp_path)
    fit(again, checkpoint_folder=tmp_path)
    _same(again, whole)


def test_a_generator_that_begins_as_it_did_goes_on(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    x, y, *_ = digits

    def run(folder=None):
        trainer = distiller(student(), teacher)
        kept = {} if folder is None else {"checkpoint_folder": folder, "checkpoint_every": 1}
        trainer.fit_generator(OnlyGetBatch(x[:72], y[:72], size=40), nb_epochs=EPOCHS, **kept)
        return trainer

    whole = run()
    with _killed_after(5, monkeypatch):
        run(tmp_path)
    _same(run(tmp_path), whole)


def test_a_foreign_attack_goes_on(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    """ART's own PGD draws from NumPy's global state, which is a function of the place in the run."""

    def run(folder=None):
        own = student()
        attack = ProjectedGradientDescent(
            own, eps=0.1, eps_step=0.05, max_iter=2, num_random_init=1, verbose=False
        )
        trainer = distiller(own, teacher, attack)
        _fit(trainer, digits, folder, nb_epochs=2)
        return trainer

    whole = run()
    with _killed_after(7, monkeypatch):
        run(tmp_path)
    np.random.rand(3)
    _same(run(tmp_path), whole)


def test_a_fit_that_is_done_is_only_read_back(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    first = distiller(student(), teacher)
    _fit(first, digits, tmp_path)
    monkeypatch.setattr(Engine, "_update", _die_after(0))
    again = distiller(student(), teacher)
    _fit(again, digits, tmp_path)
    _same(again, first)


def test_the_precision_is_the_one_it_was_begun_in(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with _killed_after(5, monkeypatch):
        _fit(distiller(student(), teacher), digits, tmp_path)
    whole = distiller(student(), teacher, precision="bf16")
    _fit(whole, digits)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    again = distiller(student(), teacher)
    _fit(again, digits, tmp_path)
    _same(again, whole)


def test_the_attack_is_run_as_the_fit_was_begun(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    wanted, taken = [], []

    def decide(way, attack, images, **how):
        wanted.append((way, how["reason"]))
        return Compilation("step", "measured: here")

    def step_of(attack):
        taken.append(attack)
        return attack.take_step

    monkeypatch.setattr(compiling, "decide", decide)
    monkeypatch.setattr(compiling, "CompiledStep", step_of)
    with _killed_after(5, monkeypatch):
        _fit(distiller(student(), teacher), digits, tmp_path)
    again = distiller(student(), teacher)
    _fit(again, digits, tmp_path)
    assert wanted == [("auto", "asked for"), ("step", "as the fit was begun")]
    assert len(taken) == 2
    monkeypatch.undo()
    whole = distiller(student(), teacher, compile="off")
    _fit(whole, digits)
    _same(again, whole)  # the stand-in of a compiled step is the eager one


def test_a_computed_gamma_is_the_same_wherever_its_function_lies(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    """What tells fits apart are its values: another function of the same ones goes on, one of others is refused."""

    def run(folder=None, *, end=0.5):
        trainer = distiller(student(), teacher, objective_settings={"gamma": lambda epoch: end * epoch})
        _fit(trainer, digits, folder)
        return trainer

    whole = run()
    with _killed_after(7, monkeypatch):
        run(tmp_path)
    with pytest.raises(
        ValueError, match=r"objective: .*gamma=\[0\.0, 0\.5, 1\.0\].* before, .*\[0\.0, 0\.25, 0\.5\]"
    ):
        run(tmp_path, end=0.25)
    _same(run(tmp_path), whole)


class _Tied(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = network(1)
        self.again = self.first[-1]

    def forward(self, x):
        return self.first(x)


def test_tied_weights_go_on(digits, teacher, tmp_path, monkeypatch):  # noqa: F811
    def run(folder=None):
        trainer = distiller(classifier(_Tied()), teacher)
        _fit(trainer, digits, folder)
        return trainer

    whole = run()
    with _killed_after(7, monkeypatch):
        run(tmp_path)
    _same(run(tmp_path), whole)


# ------------------------------------------------------------------------------------------- what is refused


class _Counting(nn.Identity):
    """A layer with a state that is no tensor."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_a_state_that_is_no_tensor_cannot_be_kept(digits, teacher, tmp_path):  # noqa: F811
    """Said before the first step; without a folder it is trained on, and a teacher may have it."""
    own = classifier(nn.Sequential(network(1), _Counting()))
    trainer = distiller(own, nn.Sequential(teacher, _Counting()))
    before = copy.deepcopy(own.model[0].state_dict())
    with pytest.raises(
        ValueError, match=r"cannot be kept in a checkpoint: .*_extra_state \(dict\) is no tensor"
    ):
        _fit(trainer, digits, tmp_path)
    assert equal(before, own.model[0].state_dict())
    assert checkpoint.newest(tmp_path) is None
    _fit(trainer, digits, nb_epochs=1)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            {},
            {"clip_values": (0, 2)},
            "clip_values: {'student': [0.0, 1.0], 'teacher': [0.0, 1.0]} before, {'stu",
        ),
        (
            {},
            {"preprocessing": (0.3, 0.4)},
            "preprocessing: {'student': [], 'teacher': []} before, {'student': [",
        ),
        ({"preprocessing": (0.3, 0.5)}, {"preprocessing": (0.3, 0.4)}, "'mean': 0.3"),
        ({"preprocessing_defences": Gain(2.0)}, {"preprocessing_defences": Gain(3.0)}, "'gain': 2.0"),
        (
            {"preprocessing_defences": Gain(2.0)},
            {"preprocessing_defences": Gain(2.0, apply_predict=False)},
            "'apply_predict': False",
        ),
    ],
)
@pytest.mark.parametrize("of", ["student", "teacher"])
def test_other_preprocessing_is_another_fit(digits, teacher, tmp_path, before, now, said, of):  # noqa: F811
    """The student's or the teacher's; the same one goes on, however often it has been used."""

    def run(settings):
        asked = {"student": {}, "teacher": {}} | {of: settings}
        own, guide = student(**asked["student"]), classifier(teacher, **asked["teacher"])
        _fit(distiller(own, guide), digits, tmp_path, nb_epochs=1)

    run(before)
    run(before)
    with pytest.raises(ValueError, match="holds another fit") as refused:
        run(now)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fit": {"batch_size": 8}}, "  batch_size: 16 before, 8 now"),
        ({"fit": {"nb_epochs": 4}}, "  nb_epochs: 3 before, 4 now"),
        ({"fit": {"validation_data": None}}, "  validation: "),
        ({"door": {"seed": 5}}, "  seed: 0 before, 5 now"),
        ({"door": {"eps": 0.2}}, "  eps: "),
        ({"door": {"objective": "ard"}}, "  objective: "),
        ({"door": {"compile": "off"}}, "  compile: auto before, off now"),
        ({"images": 3}, "  data: "),
        ({"teacher": 8}, "  teachers: "),
    ],
)
def test_another_fit_is_refused_with_the_difference(digits, teacher, tmp_path, change, said):  # noqa: F811
    _fit(distiller(student(), teacher), digits, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    x, *rest = digits
    x = np.roll(x, change.get("images", 0), axis=3)
    guide = network(change["teacher"]) if "teacher" in change else teacher
    other = distiller(student(), guide, **change.get("door", {}))
    before = weights(other)
    with pytest.raises(ValueError, match="holds another fit") as refused:
        _fit(other, (x, *rest), tmp_path, **change.get("fit", {}))
    assert said in str(refused.value)
    assert equal(before, weights(other))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_teacher_that_normalises_otherwise_is_another(digits, tmp_path):  # noqa: F811
    def guide(**settings):
        return create_network("cifar_resnet8", num_classes=10, in_chans=1, seed=1, **settings)

    _fit(distiller(student(), guide()), digits, tmp_path, nb_epochs=1)
    with pytest.raises(ValueError, match=r"holds another fit:\n  teachers: "):
        _fit(distiller(student(), guide(mean=[0.5], std=[0.2])), digits, tmp_path, nb_epochs=1)


def test_an_attacks_numbers_tell_fits_apart_and_what_it_prints_does_not(digits, tmp_path):  # noqa: F811
    def fit(make, folder):
        own = student()
        _fit(distiller(own, None, make(own), objective="at"), digits, tmp_path / folder, nb_epochs=1)

    for eps in (0.1, 0.2):
        said = pytest.raises(ValueError, match=r"attack: .*'eps': 0\.1\d*,.* before, .*'eps': 0\.2\d*,")
        with contextlib.nullcontext() if eps == 0.1 else said:
            fit(lambda own, eps=eps: torchattacks.PGD(own.model, eps=np.float32(eps), steps=1), "numpy")
    for verbose in (False, True):
        fit(
            lambda own, verbose=verbose: ProjectedGradientDescent(own, max_iter=1, verbose=verbose), "printed"
        )


def test_a_second_fit_needs_a_folder_of_its_own(digits, teacher, tmp_path):  # noqa: F811
    trainer = distiller(student(), teacher)
    _fit(trainer, digits, tmp_path)
    with pytest.raises(ValueError, match="fit: 0 before, 1 now"):
        _fit(trainer, digits, tmp_path)


def test_an_optimizer_or_a_scheduler_that_is_not_as_it_was_is_refused(digits, teacher, tmp_path):  # noqa: F811
    _fit(distiller(student(), teacher), digits, tmp_path)
    with pytest.raises(ValueError, match=r"lr 0.1 before, 0.2 now"):
        _fit(distiller(student(lr=0.2), teacher), digits, tmp_path)
    fresh, own = student(), student()
    _fit(distiller(fresh, teacher), digits, tmp_path / "other", scheduler=MultiStepLR(fresh.optimizer, [1]))
    used = MultiStepLR(own.optimizer, [1])
    own.optimizer.step()
    used.step()
    with pytest.raises(
        ValueError, match=r"scheduler: \['MultiStepLR', {'last_epoch': 0, .* before, .*{'last_epoch': 1, "
    ):
        _fit(distiller(own, teacher), digits, tmp_path / "other", scheduler=used)
    own = student()
    later = MultiStepLR(own.optimizer, [1, 7])  # as far as the fit came, the same
    with pytest.raises(ValueError, match=r"scheduler: .*'milestones': {'1': 1}.* before, .*'7': 1"):
        _fit(distiller(own, teacher), digits, tmp_path / "other", scheduler=later)


def test_another_network_is_refused(digits, teacher, tmp_path):  # noqa: F811
    _fit(distiller(student(), teacher), digits, tmp_path)
    with pytest.raises(ValueError, match="the checkpoint is of another network"):
        _fit(distiller(classifier(network(1)), teacher), digits, tmp_path)


def test_bad_checkpoint_arguments(digits, teacher, tmp_path):  # noqa: F811
    x, y, *_ = digits
    trainer = distiller(student(), teacher)
    before = weights(trainer)
    for arguments, error, said in (
        ({"checkpoint_every": 3}, ValueError, "checkpoint_every needs a checkpoint_folder"),
        ({"checkpoint_folder": 3}, TypeError, "checkpoint_folder must be a path, got 3"),
        (
            {"checkpoint_folder": tmp_path, "checkpoint_every": 0},
            ValueError,
            "checkpoint_every must be an integer",
        ),
        ({"checkpoint_foldr": tmp_path}, TypeError, "did you mean 'checkpoint_folder'"),
    ):
        with pytest.raises(error, match=said):
            trainer.fit(x[:32], y[:32], nb_epochs=1, **arguments)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write to the run folder"):
        trainer.fit(x[:32], y[:32], nb_epochs=1, checkpoint_folder=tmp_path / "file")
    with (
        checkpoint.locked(tmp_path / "busy"),
        pytest.raises(CheckpointError, match="another process is running in"),
    ):
        trainer.fit(x[:32], y[:32], nb_epochs=1, checkpoint_folder=tmp_path / "busy")
    assert equal(before, weights(trainer))


def test_a_torn_newest_checkpoint_only_costs_time(digits, teacher, tmp_path, caplog):  # noqa: F811
    whole = distiller(student(), teacher)
    _fit(whole, digits, tmp_path)
    newest = sorted(path for path in tmp_path.iterdir() if path.is_dir())[-1]
    (newest / "student.safetensors").write_bytes(b"torn")
    again = distiller(student(), teacher)
    _fit(again, digits, tmp_path)
    assert "trying the one before" in caplog.text
    _same(again, whole)


# ------------------------------------------------------------------------------------------- a real process


SCRIPT = """
    import sys, numpy as np, torch
    from art.estimators.classification import PyTorchClassifier
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits
    from torch import nn
    from iad_ext import IntrospectiveAdversarialDistiller

    torch.set_num_threads(1)
    scans = load_digits()
    x, y = (scans.images / 16).astype(np.float32)[:256, None], scans.target[:256]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    student = PyTorchClassifier(
        module, nn.CrossEntropyLoss(), (1, 8, 8), 10,
        optimizer=torch.optim.SGD(module.parameters(), 0.05, momentum=0.9), clip_values=(0, 1), device_type="cpu",
    )
    trainer = IntrospectiveAdversarialDistiller(student, objective="at", precision="fp32")
    trainer.fit(x, y, batch_size=16, nb_epochs=4, checkpoint_folder=sys.argv[1], checkpoint_every=3)
    save_file(module.state_dict(), sys.argv[2])
"""


def test_a_killed_program_run_again_ends_with_the_same_bits(tmp_path):
    script = tmp_path / "pipeline.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(folder, out):
        return [sys.executable, str(script), str(tmp_path / folder), str(tmp_path / out)]

    subprocess.run(command("whole", "whole.safetensors"), check=True, env=environment, timeout=120)
    with subprocess.Popen(command("killed", "killed.safetensors"), env=environment) as process:
        while not list((tmp_path / "killed").glob("epoch0001-step00000[369]")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.safetensors").exists()
    subprocess.run(command("killed", "killed.safetensors"), check=True, env=environment, timeout=120)
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("killed", "whole"))
    assert equal(one, other)
