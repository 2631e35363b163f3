"""Runs with averages, perturbed weights, other rates, augmentations and more images: kept, measured, continued."""

import json
import shutil

import numpy as np
import pytest
import torch
from recipe_files import TINY, call
from safetensors.torch import load_file

from iad_ext import load_network
from iad_ext.augment import AUGMENTATIONS
from iad_ext.averaging import reestimate_batchnorm
from iad_ext.batches import Batches
from iad_ext.data import load_splits

EVERYTHING = {
    "ema": "--average.name ema --average.decay 0.8 --train.awp 0.005 --train.rates cosine --train.augment idbh_weak "
    "--train.cutmix 0.5 --objective.label-smoothing 0.1",
    "swa": "--average.name swa --average.start 1 --average.batchnorm average --train.rates cyclic "
    "--train.rate-warmup 1 --train.augment cropshift --data.extra made.npz --data.extra-share 0.5",
}


@pytest.fixture(scope="module", params=EVERYTHING)
def run(request, tmp_path_factory):
    """A tiny run with all of it, every second step kept: its folder, its line."""
    folder = tmp_path_factory.mktemp(request.param)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "made.npz", image=images, label=generator.integers(0, 10, 40))
    line = EVERYTHING[request.param].replace("made.npz", str(folder / "made.npz"))
    more = "--checkpoint.every-steps 2 --checkpoint.keep 99 --train.epochs 3"
    arguments = [*TINY, *line.split(), *more.split(), "--out", str(folder / "run")]
    assert call("at_resnet18", *arguments) == 0
    return request.param, folder / "run", arguments


def test_what_is_kept_is_the_average(run):
    name, folder, _ = run
    kept = load_network(folder / "last")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    average = load_file(newest / "average.safetensors")
    student = load_file(newest / "student.safetensors")
    found = kept.state_dict()
    assert any(not torch.equal(student[key], average[key]) for key in student)
    for key, value in average.items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(found[key], value), key
    if name == "swa":  # its statistics are averaged as its weights are
        assert all(torch.equal(found[key], average[key]) for key in average)
        return
    splits = load_splits("digits", limit_train=64, limit_test=32)
    kept.load_state_dict(average)
    trained_on = Batches(
        splits.train, batch_size=16, seed=0, flip=True, augmentation=AUGMENTATIONS["idbh_weak"], cutmix=0.5
    )
    reestimate_batchnorm(kept, (trained_on.batch(2, step).images for step in range(len(trained_on))))
    for key, value in kept.state_dict().items():
        torch.testing.assert_close(value, found[key])


def test_what_was_stopped_ends_with_the_same_bits(run, tmp_path):
    _, folder, arguments = run
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for newer in sorted((again / "checkpoints").iterdir())[-2:]:  # back into the last epoch
        shutil.rmtree(newer)
    assert call("at_resnet18", *arguments[:-1], again) == 0
    assert [p.name for p in sorted((again / "checkpoints").iterdir())][-1] == "epoch0003-step000000"
    for which in ("best", "last"):
        one, other = (load_file(f / which / "model.safetensors") for f in (folder, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (json.loads((f / "results.json").read_text())["last"]["pgd10"] for f in (folder, again))
    assert one == other


def test_more_images_are_named_and_must_stay_the_same(run, capsys):
    name, folder, arguments = run
    if name == "ema":
        return
    data = json.loads((folder / "environment.json").read_text())["data"]
    assert data["extra"]["n"] == 40
    assert data["digest"]["extra"] == data["extra"]["digest"]
    other = folder.parent / "other.npz"
    np.savez(other, image=np.zeros((4, 8, 8, 3), np.uint8), label=np.zeros(4, int))
    changed = [str(other) if a.endswith("made.npz") else a for a in arguments]
    assert call("at_resnet18", *changed) == 2
    assert "--data.extra" in capsys.readouterr().err
