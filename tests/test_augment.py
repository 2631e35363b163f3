"""Augmentations against loops, and more images by their share: all functions of the position alone."""

import math
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batches import SIZE, equal, random_images, telling_images
from torchvision.transforms.v2 import functional as F  # noqa: N812 (as torchvision's own pages call it)

from iad_ext import augment
from iad_ext.augment import AUGMENTATIONS, CUTMIX_NUMBERS
from iad_ext.batches import Batches
from iad_ext.data import ImageSet, load_extra
from iad_ext.randomness import stream

CLASSES = tuple("abcde")


def drawn(n, size, read, seed=0):
    generator = stream("augment", seed)
    return torch.rand(n, 3, *size, generator=generator), torch.rand(n, read, generator=generator)


def whole(uniform, largest):
    return int(float(uniform) * (largest + 1))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), height=st.integers(4, 40), width=st.integers(4, 40))
def test_cropshift_is_its_loop(seed, height, width):
    images, numbers = drawn(4, (height, width), 6, seed)
    found = augment.cropshift(images, numbers)
    for image, u, got in zip(images, numbers, found, strict=True):
        strength = whole(u[0], round(10 * min(height, width) / 32))
        off_x = whole(u[1], strength)
        off_y = strength - off_x
        cut_x, cut_y = whole(u[2], off_x), whole(u[3], off_y)
        put_x, put_y = whole(u[4], off_x), whole(u[5], off_y)
        expected = torch.zeros_like(image)
        for row in range(height - off_y):
            for column in range(width - off_x):
                expected[:, put_y + row, put_x + column] = image[:, cut_y + row, cut_x + column]
        assert torch.equal(got, expected)


def test_cropshift_takes_every_strength_and_keeps_most_of_an_image():
    images, numbers = torch.ones(2000, 3, 32, 32), drawn(2000, (1, 1), 6)[1]
    kept = augment.cropshift(images, numbers)[:, 0]
    rows, columns = kept.amax(2).sum(1), kept.amax(1).sum(1)
    strengths = (64 - rows - columns).long().bincount(minlength=11)
    assert len(strengths) == 11
    assert (strengths > 130).all()  # 2000 / 11 each, about


KINDS = ("saturation", "brightness", "contrast", "sharpness", "autocontrast", "equalize", "shear", "rotate")


def by_torchvision(image, kind, uniform, negative, horizontal):
    """One image by torchvision's functions, at the strength that `uniform` stands for."""
    if kind in ("autocontrast", "equalize"):
        return getattr(F, kind)((image * 255).round().to(torch.uint8)) / 255
    if kind == "shear":
        degrees = math.degrees((0.05 + 0.1 * uniform) * (-1 if negative else 1))
        shear = [degrees, 0.0] if horizontal else [0.0, degrees]
        return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear)
    if kind == "rotate":
        return F.rotate(image, (1 + int(uniform * 10)) * (-1 if negative else 1))
    wide = kind in ("saturation", "sharpness")
    return getattr(F, f"adjust_{kind}")(image, 0.1 + 1.8 * uniform if wide else 0.5 + 1.4 * uniform)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32), height=st.integers(8, 33), width=st.integers(8, 33))
def test_each_change_is_torchvision_s(kind, seed, height, width):
    images, numbers = drawn(6, (height, width), 4, seed)
    images = (images * 255).round() / 255
    numbers[:, 0] = (KINDS.index(kind) + 0.5) / 8
    found = augment.colour_shape(images, numbers)
    for image, u, got in zip(images, numbers.tolist(), found, strict=True):
        expected = by_torchvision(image, kind, u[1], u[2] < 0.5, u[3] < 0.5)
        if kind in ("shear", "rotate"):  # a place halfway between two pixels may be rounded to either
            assert (got == expected).float().mean() > 0.97
        else:
            torch.testing.assert_close(got, expected, atol=1.5 / 255, rtol=0)


def test_an_image_gets_one_of_eight_changes_and_all_are_as_likely():
    images, numbers = drawn(1600, (8, 8), 4)
    found = augment.colour_shape(images, numbers)
    for k in range(8):
        chosen = (numbers[:, 0] * 8).long() == k
        assert 150 < int(chosen.sum()) < 250
        alone = numbers[chosen].clone()
        alone[:, 0] = (k + 0.5) / 8
        torch.testing.assert_close(found[chosen], augment.colour_shape(images[chosen], alone))


def test_grey_images_keep_their_colour():
    images, numbers = drawn(64, (8, 8), 4)
    images = images[:, :1]
    assert augment.colour_shape(images, numbers).shape == images.shape
    same = augment.colour_shape(images.expand(-1, 3, -1, -1), numbers)
    torch.testing.assert_close(same[:, 0], same[:, 1], atol=1e-3, rtol=0)


def test_erasing_blacks_out_a_rectangle_of_half_of_the_images():
    images, numbers = torch.ones(1000, 3, 32, 32), drawn(1000, (1, 1), 5)[1]
    kept = augment.erase(images, numbers)[:, 0]
    missing = 1 - kept
    erased = missing.amax((1, 2)) > 0
    assert torch.equal(erased, numbers[:, 0] < 0.5)
    tall, wide = missing.amax(2).sum(1), missing.amax(1).sum(1)
    assert torch.equal(tall * wide, missing.sum((1, 2)))  # a rectangle
    share = (tall * wide)[erased] / 32**2
    assert 0.01 < share.min() < 0.05
    assert 0.28 < share.max() < 0.36
    free = (tall < 32) & (wide < 32) & erased
    ratio = (tall / wide)[free]
    assert 0.2 < ratio.min() < 0.5
    assert 2.5 < ratio.max() < 4.5


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (32, 32)])
def test_cutmix_takes_a_rectangle_of_at_most_half(size):
    images, numbers = torch.zeros(1000, 3, *size), drawn(1000, (1, 1), CUTMIX_NUMBERS)[1]
    mixed = augment.cutmix(images, torch.ones_like(images), numbers, probability=0.4)[:, 0]
    chosen = mixed.amax((1, 2)) > 0
    assert torch.equal(chosen, numbers[:, 0] < 0.4)
    tall, wide = mixed.amax(2).sum(1), mixed.amax(1).sum(1)
    assert torch.equal(tall * wide, mixed.sum((1, 2)))
    share = (tall * wide)[chosen] / (size[0] * size[1])
    assert 0.35 < share.max() <= 0.5  # whole pixels of a half at most
    assert share.min() < 0.1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pixels_stay_pixels_and_the_arguments_as_they_were(name):
    images, numbers = drawn(50, (8, 8), AUGMENTATIONS[name].numbers)
    before = images.clone(), numbers.clone()
    found = AUGMENTATIONS[name].apply(images, numbers)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(images, before[0])
    assert torch.equal(numbers, before[1])


# ------------------------------------------------------------------------------------------ in batches


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_s_augmentation_belongs_to_its_position(name):
    def batches():
        return Batches(
            random_images(39),
            batch_size=16,
            seed=0,
            flip=True,
            augmentation=AUGMENTATIONS[name],
            cutmix=0.5,
            extra=random_images(20, seed=9),
            extra_share=0.4,
        )

    whole_batch = batches().batch(3, 1)
    slices = [batches().batch(3, 1, part=part, parts=3) for part in range(3)]
    assert torch.equal(torch.cat([part.images for part in slices]), whole_batch.images)
    assert torch.equal(torch.cat([part.labels for part in slices]), whole_batch.labels)
    assert not torch.equal(batches().batch(4, 1).images, whole_batch.images)


def test_without_them_the_batches_are_what_they_were():
    plain = {"batch_size": 16, "seed": 0, "padding": 2, "flip": True}
    more = plain | {"extra": random_images(9, seed=1), "extra_share": 0.0, "cutmix": 0.0}
    assert equal(
        Batches(random_images(39), **plain).batch(2, 1), Batches(random_images(39), **more).batch(2, 1)
    )


def test_cutmix_s_rectangles_are_of_extra_images_as_often_as_images_are():
    """Own images are black, extra ones white, a hundred times as many: they still come at their share."""
    own, extra = random_images(100), random_images(9000, seed=1)
    own, extra = (
        replace(data, images=torch.full_like(data.images, value)) for data, value in ((own, 0), (extra, 255))
    )
    mixed = Batches(own, batch_size=100, seed=0, extra=extra, extra_share=0.1, cutmix=1.0)
    index = torch.cat([mixed.batch(epoch, 0).index for epoch in range(20)])
    images = torch.cat([mixed.batch(epoch, 0).images for epoch in range(20)])
    white_in_own = images[index < 100].mean(dim=1).amax((1, 2))
    assert 0.06 < (white_in_own > 0).float().mean() < 0.14


def test_cutmix_leaves_labels_and_takes_pixels_of_the_set():
    data = telling_images(40)
    plain = Batches(data, batch_size=40, seed=0).batch(0, 0)
    mixed = Batches(data, batch_size=40, seed=0, cutmix=1.0).batch(0, 0)
    assert torch.equal(mixed.labels, plain.labels)
    assert not torch.equal(mixed.images, plain.images)
    # rows and columns tell where they lie, and a rectangle stays where it lay
    assert torch.equal(mixed.images[:, :2], plain.images[:, :2])


@pytest.mark.parametrize(("share", "extra"), [(0.25, 100), (0.8, 7), (1.0, 40)])
def test_more_images_have_their_share_of_an_epoch(share, extra):
    data, more = random_images(40), random_images(extra, seed=5)
    batches = Batches(data, batch_size=8, seed=0, extra=more, extra_share=share)
    assert len(batches) == 5
    for epoch in range(3):
        index = torch.cat([batches.batch(epoch, step).index for step in range(5)])
        theirs = index[index >= 40] - 40
        assert len(index) == 40
        assert len(theirs) == round(share * 40)
        own = index[index < 40]
        assert len(own.unique()) == len(own)
        times = theirs.bincount(minlength=extra)
        assert times.max() - times.min() <= 1  # each once before any twice
        found = torch.cat([batches.batch(epoch, step).labels for step in range(5)])
        assert torch.equal(found, torch.cat([data.labels, more.labels])[index])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"extra_share": 0.5}, "asks for extra images"),
        ({"extra_share": 1.5, "extra": random_images(4)}, "extra_share must be at least 0 and at most 1"),
        ({"extra_share": 0.5, "extra": random_images(4, SIZE + 1)}, "as the training images"),
        ({"cutmix": -0.1}, "cutmix must be at least 0"),
    ],
)
def test_what_cannot_be_mixed_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        Batches(random_images(8), batch_size=4, seed=0, **changed)


# ------------------------------------------------------------------------------------------ generated images


def test_generated_images_are_read_as_they_are_published(tmp_path):
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.savez(tmp_path / "made.npz", image=images, label=np.array([4, 0], dtype=np.uint8))
    found, where = load_extra(str(tmp_path / "made.npz"), CLASSES)
    assert torch.equal(found.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert found.labels.tolist() == [4, 0]
    assert (found.classes, where["n"]) == (CLASSES, 2)
    _, other = load_extra(str(tmp_path / "made.npz"), CLASSES)
    assert where["digest"] == other["digest"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((2, 4, 4, 3), np.uint8)}, "must hold arrays image and label"),
        ({"image": np.zeros((2, 4, 4, 3)), "label": np.zeros(2, int)}, "image must be uint8"),
        ({"image": np.zeros((2, 3, 4, 4), np.uint8), "label": np.zeros(2, int)}, "image must be uint8"),
        ({"image": np.zeros((2, 4, 4, 3), np.uint8), "label": np.zeros(3, int)}, "label must be integers"),
        ({"image": np.zeros((2, 4, 4, 3), np.uint8), "label": np.array([0, 5])}, "label must be in 0 … 4"),
        ({"image": np.array([{}]), "label": np.zeros(1, int)}, "must hold arrays image and label"),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "made.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        load_extra(str(tmp_path / "made.npz"), CLASSES)


def test_a_data_set_s_training_split_may_be_the_extra_one():
    digits, where = load_extra("digits", [str(k) for k in range(10)])
    assert len(digits) == where["n"] > 1000
    with pytest.raises(ValueError, match="has 10 classes, the training set 5"):
        load_extra("digits", CLASSES)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_extra("nothing.npz", CLASSES)


def test_extra_images_need_no_other_split_than_train(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("cat", "dog"):
        for shade in range(3):
            path = tmp_path / "made/train" / name / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (5, 4), (shade, 0, 0)).save(path)
    found, where = load_extra(str(tmp_path / "made"), ("dog", "cat"))
    assert (found.images.shape, found.labels.bincount().tolist()) == ((6, 3, 4, 5), [3, 3])
    assert (where["n"], where["revision"]) == (6, None)
    (tmp_path / "made/train").rename(tmp_path / "made/test")
    with pytest.raises(
        ValueError, match="no split called train, of which extra images are taken; there is: test"
    ):
        load_extra(str(tmp_path / "made"), ("dog", "cat"))


def test_extra_images_keep_their_classes_where_the_names_stand_in_another_order(monkeypatch):
    """Of a data set whose classes are numbered otherwise, such as folders by their alphabet."""
    names = ("cat", "dog", "frog")
    labels = torch.tensor([0, 1, 2, 2])

    def stored(*_, **__):
        return ImageSet(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), labels, names), None

    monkeypatch.setattr("iad_ext.data._training_images", stored)
    training = ("frog", "cat", "dog")
    found, _ = load_extra("folder", training)
    assert found.classes == training
    assert [training[k] for k in found.labels] == [names[k] for k in labels]
    with pytest.raises(
        ValueError, match=r"other classes than the training set: 3 \(cat, .*'frog' is none of"
    ):
        load_extra("folder", ("deer", "cat", "dog"))
    assert (
        load_extra("folder", ("0", "1", "2"))[0].labels.tolist() == labels.tolist()
    )  # without names, by number
