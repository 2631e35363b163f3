"""Loading and splitting: laws of the split, schemas, faults, and the real images where they are."""

import datetime
import inspect
import io
import json
import os
import time
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when datasets is imported first; the fixture below covers the other case
)

import datasets
import huggingface_hub.constants
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from iad_ext.data import ImageSet, load_splits, split_training_set, stratified_order

REPOSITORY = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("IAD_EXT_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """No network, and a cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} in {REAL}; IAD_EXT_DATA names the folder of real images")
    return REAL / name


def image(value=0, size=(6, 5), mode="RGB"):
    """An image of one colour; `size` is (width, height)."""
    return PIL.Image.new(mode, size, value if mode == "L" else (value, 7, 9))


def encoded(picture, file_format="PNG"):
    stream = io.BytesIO()
    picture.save(stream, file_format)
    return {"bytes": stream.getvalue(), "path": None}


CLASSES = ["ant", "bee", "cat"]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE, LABEL = datasets.Image(), datasets.ClassLabel(names=CLASSES)
INTEGER, FLOAT = datasets.Value("int64"), datasets.Value("float64")


def columns(n, labels=None, start=0, **changed):
    found = {
        "image": [encoded(image(start + row)) for row in range(n)],
        "label": [row % 3 for row in range(n)] if labels is None else labels,
    }
    return {column: values for column, values in {**found, **changed}.items() if values is not None}


def folder(where, features=None, **splits):
    """Parquet files as the hub has them: one of each split."""
    features = datasets.Features(features or {"image": IMAGE, "label": LABEL})
    (where / "data").mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        stored = datasets.Dataset.from_dict(content, features=features)
        stored.to_parquet(where / "data" / f"{split}-00000-of-00001.parquet")
    return where


# ------------------------------------------------------------------------------------------------ laws of the split


def balanced(classes, each):
    return torch.arange(classes).repeat(each)


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_a_stratified_order_is_a_fixed_permutation(labels):
    labels = torch.tensor(labels)
    order = stratified_order(labels, "test")
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    assert torch.equal(order, stratified_order(labels, "test"))


@settings(deadline=None)
@given(classes=st.integers(1, 9), each=st.integers(1, 12), data=st.data())
def test_every_beginning_of_a_stratified_order_is_balanced(classes, each, data):
    labels = balanced(classes, each)
    first = data.draw(st.integers(1, len(labels)))
    counts = labels[stratified_order(labels, "test")[:first]].bincount(minlength=classes)
    assert counts.max() - counts.min() <= 1


def test_a_beginning_holds_unequal_classes_in_their_proportions():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    for first in (10, 50, 500):
        counts = labels[stratified_order(labels, "test")[:first]].bincount(minlength=3)
        assert (counts - first * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 1


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=10, max_size=120),
    holdout=st.integers(1, 20),
    limits=st.tuples(st.integers(1, 130), st.integers(1, 130)),
)
def test_hold_out_and_limits(labels, holdout, limits):
    labels = torch.tensor(labels)
    kept, held = split_training_set(labels, holdout=holdout)
    assert len(held) == min(holdout, len(labels) // 10)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    several = labels.bincount() >= 2
    assert (labels[kept].bincount(minlength=len(several))[several] > 0).all()

    small, large = sorted(limits)
    (few, few_held), (many, many_held) = (
        split_training_set(labels, holdout=holdout, limit=limit) for limit in (small, large)
    )
    assert set(few.tolist()) <= set(many.tolist()) <= set(kept.tolist())
    assert set(few_held.tolist()) <= set(many_held.tolist()) <= set(held.tolist())
    for limit, part, part_held in ((small, few, few_held), (large, many, many_held)):
        assert len(part) == min(limit, len(kept))
        assert 1 <= len(part_held) <= max(1, limit // 10)


def test_limited_parts_are_balanced():
    labels = balanced(10, 500)
    for limit in (10, 200, 1000):
        kept, held = split_training_set(labels, holdout=1000, limit=limit)
        assert (labels[kept].bincount(minlength=10) == limit // 10).all()
        held_counts = labels[held].bincount(minlength=10)
        assert len(held) == limit // 10
        assert held_counts.max() - held_counts.min() <= 1


def test_the_split_is_a_fixed_one():
    """A change of these numbers changes every run on every data set: earlier results no longer compare."""
    _, held = split_training_set(balanced(10, 20), holdout=1000)
    assert held.tolist() == [
        0,
        2,
        5,
        11,
        19,
        28,
        34,
        47,
        49,
        71,
        95,
        98,
        113,
        127,
        132,
        136,
        146,
        154,
        163,
        180,
    ]


# -------------------------------------------------------------------------------------------------------- image sets


def test_image_sets_take_and_move():
    images = torch.randint(256, (6, 3, 4, 5), dtype=torch.uint8)
    data = ImageSet(images, torch.tensor([0, 1, 0, 1, 0, 1]), ("a", "b", "c"))
    assert (len(data), data.num_classes) == (6, 3)
    for indices in ([4, 0, 4], torch.tensor([4, 0, 4])):
        assert torch.equal(data.take(indices).images, images[[4, 0, 4]])
        assert data.take(indices).labels.tolist() == [0, 0, 0]
        assert torch.equal(data.pixels(indices), images[[4, 0, 4]].float() / 255)
    assert torch.equal(data.take(slice(1, None, 2)).images, images[1::2])
    assert len(data.take([])) == 0
    assert torch.equal(data.pixels(), images.float() / 255)
    assert data.to("cpu").classes == data.classes


def test_image_sets_refuse_what_they_cannot_hold():
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"contiguous uint8 tensor .* strides"):
        ImageSet(torch.zeros(2, 3, 4, 5, dtype=torch.uint8).transpose(2, 3), labels, ("a",))
    with pytest.raises(ValueError, match=r"int64 \(2,\), one an image; got torch.int32 \(2,\)"):
        ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels.int(), ("a",))


# ------------------------------------------------------------------------------------------------------------ digits


def test_digits_are_the_real_scans():
    splits = load_splits("digits")
    assert splits.image_size == (8, 8)
    assert splits.classes == tuple("0123456789")
    assert splits.num_classes == 10
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1295, 143, 359]
    scans = load_digits()

    def multiset(images, labels):
        return Counter((picture.tobytes(), int(label)) for picture, label in zip(images, labels, strict=True))

    expected = multiset(np.floor(scans.images * 255 / 16 + 0.5).astype(np.uint8), scans.target)
    parts = (splits.train, splits.validation, splits.test)
    assert sum((multiset(part.images[:, 0].numpy(), part.labels) for part in parts), Counter()) == expected
    assert all(
        torch.equal(part.images[:, 0], part.images[:, channel]) for part in parts for channel in (1, 2)
    )
    for part in parts:
        share = part.labels.bincount(minlength=10) / len(part)
        assert (share - torch.from_numpy(np.bincount(scans.target) / 1797)).abs().max() < 0.01


def test_loading_again_gives_the_same():
    first, again = load_splits("digits", limit_train=50), load_splits("digits", limit_train=50)
    assert first.provenance == again.provenance
    for use in ("train", "validation", "test"):
        assert torch.equal(getattr(first, use).images, getattr(again, use).images)
        assert torch.equal(getattr(first, use).labels, getattr(again, use).labels)


def test_limits_take_balanced_subsets():
    splits = load_splits("digits", limit_train=100, limit_test=50)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [100, 10, 50]
    assert (splits.train.labels.bincount() == 10).all()
    assert (splits.test.labels.bincount(minlength=10) >= 4).all()
    assert splits.provenance["n"] == {"train": 100, "test": 50, "validation": 10}


def test_selection_on_the_test_set_holds_nothing_out():
    splits = load_splits("digits", selection="test")
    assert splits.validation is splits.test
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.provenance["holdout"] is None


def test_provenance_is_plain():
    provenance = load_splits("digits").provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["source"] == "scikit-learn"
    assert provenance["encoding_note"] is None


# ----------------------------------------------------------------------------------------------- schemas and columns


def test_cifar100_reads_the_fine_labels(tmp_path):
    features = {
        "img": IMAGE,
        "fine_label": datasets.ClassLabel(names=[f"fine{label}" for label in range(100)]),
        "coarse_label": datasets.ClassLabel(names=[f"coarse{label}" for label in range(20)]),
    }

    def content(n):
        fine = [row % 100 for row in range(n)]
        return {
            "img": [encoded(image(label)) for label in fine],
            "fine_label": fine,
            "coarse_label": [label // 5 for label in fine],
        }

    where = folder(tmp_path / "c100", features, train=content(200), test=content(100))
    for name, chosen in (("cifar100", {}), ("my-hundred", {}), (str(where), {"label_column": "fine_label"})):
        splits = load_splits(name, path=None if name == str(where) else where, **chosen)
        assert splits.num_classes == 100
        assert splits.classes[3] == "fine3"
        assert torch.equal(splits.test.labels, torch.arange(100))
        assert torch.equal(splits.train.images[:, 0, 0, 0].long(), splits.train.labels)
        assert splits.provenance["columns"] == {"image": "img", "label": "fine_label"}
        assert splits.provenance["encoding"] == "PNG"
    coarse = load_splits("cifar100", path=where, label_column="coarse_label")
    assert coarse.num_classes == 20


def test_a_known_data_set_has_its_own_columns_first(tmp_path):
    features = {"image": IMAGE, "img": IMAGE, "label": LABEL, "fine_label": LABEL}
    content = columns(20, labels=[0] * 20, fine_label=[1, 2] * 10)
    content["img"] = [encoded(image(99))] * 20
    splits = load_splits("cifar100", path=folder(tmp_path / "both", features, train=content, test=content))
    assert splits.provenance["columns"] == {"image": "img", "label": "fine_label"}
    assert splits.test.labels.tolist() == [1, 2] * 10
    assert (splits.test.images[:, 0] == 99).all()


def test_coarse_labels_are_never_taken_unasked(tmp_path):
    features = {"img": IMAGE, "coarse_label": LABEL}
    content = {"img": [encoded(image())] * 20, "coarse_label": [0, 1] * 10}
    where = folder(tmp_path / "coarse", features, train=content, test=content)
    with pytest.raises(ValueError, match=r"no label column: 0 columns .* found img \(Image\), coarse_label"):
        load_splits("cifar100", path=where)


def test_a_copy_in_jpeg_is_noted(tmp_path):
    content = columns(20, image=[encoded(image(row), "JPEG") for row in range(20)])
    provenance = load_splits(
        "cifar10", path=folder(tmp_path / "jpeg", train=content, test=content)
    ).provenance
    assert provenance["encoding"] == "JPEG"
    assert "uoft-cs/cifar10 is PNG" in provenance["encoding_note"]


@pytest.mark.parametrize("test_split", ["test", "valid", "validation"])
def test_a_folder_with_other_column_names_is_read_by_type(tmp_path, test_split):
    features = {"note": datasets.Value("string"), "photo": IMAGE, "species": LABEL, "row": INTEGER}

    def content(n):
        rows = list(range(n))
        pictures = [encoded(image(row)) for row in rows]
        return {"note": ["x"] * n, "photo": pictures, "species": [row % 3 for row in rows], "row": rows}

    where = folder(tmp_path / "own", features, train=content(30), **{test_split: content(6)})
    splits = load_splits(str(where))
    assert splits.classes == tuple(CLASSES)
    assert splits.image_size == (5, 6)
    assert splits.test.images[:, 0, 2, 3].tolist() == list(range(6))
    assert splits.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (splits.test.images[:, 1] == 7).all()
    assert (splits.test.images[:, 2] == 9).all()
    assert splits.provenance["source"] == "folder"
    assert splits.provenance["splits"] == {"train": "train", "test": test_split}


def test_integer_labels_need_not_be_contiguous(tmp_path):
    features = {"image": IMAGE, "label": INTEGER}
    train, test = columns(20, labels=[3, 40] * 10), columns(2, labels=[40, 3])
    splits = load_splits(str(folder(tmp_path / "gaps", features, train=train, test=test)))
    assert splits.classes == ("3", "40")
    assert splits.test.labels.tolist() == [1, 0]


def test_other_modes_become_rgb(tmp_path):
    grey, transparent = image(100, mode="L"), PIL.Image.new("RGBA", (6, 5), (1, 2, 3, 255))
    palette = image(50).quantize(4)
    train = columns(20)
    test = columns(3, image=[encoded(picture) for picture in (grey, transparent, palette)])
    splits = load_splits(str(folder(tmp_path / "modes", train=train, test=test)))
    assert splits.test.images[:, :, 0, 0].tolist() == [[100, 100, 100], [1, 2, 3], [50, 7, 9]]


def test_a_folder_saved_by_datasets_loads(tmp_path):
    """What the error about a lacking test split advises."""
    stored = datasets.Dataset.from_dict(
        columns(40), features=datasets.Features({"image": IMAGE, "label": LABEL})
    )
    stored.train_test_split(0.2, stratify_by_column="label").save_to_disk(tmp_path / "saved")
    splits = load_splits(str(tmp_path / "saved"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (29, 3, 8)


# --------------------------------------------------------------------------------------------------------- the hub


def test_known_names_and_revisions_reach_the_hub(monkeypatch):
    asked = []
    commit = "0123456789abcdef0123456789abcdef01234567"
    features = datasets.Features({"img": IMAGE, "fine_label": LABEL})
    content = {
        "img": [encoded(image(row)) for row in range(20)],
        "fine_label": [row % 3 for row in range(20)],
    }
    split = datasets.Dataset.from_dict(content, features=features)
    split.info.download_checksums = {f"hf://datasets/uoft-cs/cifar100@{commit}/train.parquet": {}}

    def load_dataset(where, name, revision):
        asked.append((where, name, revision))
        return datasets.DatasetDict(train=split, test=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    provenance = load_splits("cifar100", revision="main", config="fine").provenance
    assert asked == [("uoft-cs/cifar100", "fine", "main")]
    assert (provenance["id"], provenance["revision"], provenance["source"]) == (
        "uoft-cs/cifar100",
        commit,
        "hub",
    )


@pytest.mark.parametrize("how", ["argument", "environment"])
@pytest.mark.parametrize(("name", "where"), [("cifar10", "uoft-cs/cifar10"), ("some/where", "some/where")])
def test_a_full_commit_can_be_required(monkeypatch, name, where, how):
    asked = []

    def load_dataset(where, name, revision):
        asked.append((where, name, revision))
        features = datasets.Features({"image": IMAGE, "label": LABEL})
        split = datasets.Dataset.from_dict(columns(20), features=features)
        return datasets.DatasetDict(train=split, test=split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("IAD_EXT_REQUIRE_REVISION", "1" if how == "environment" else "")
    required = {"require_revision": True} if how == "argument" else {}
    for revision in (None, "main", "0123456"):
        with pytest.raises(
            ValueError,
            match=rf"full commit .* got {revision or 'none'}: write --data\.revision COMMIT for {where} .*"
            rf"https://huggingface\.co/datasets/{where}/commits/main",
        ):
            load_splits(name, revision=revision, **required)
    assert asked == []
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert load_splits(name, revision=commit, **required).provenance["revision"] == commit
    assert asked == [(where, None, commit)]


def test_what_is_here_needs_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("IAD_EXT_REQUIRE_REVISION", "1")
    load_splits("digits", require_revision=True)
    load_splits(str(folder(tmp_path, train=columns(20), test=columns(4))), require_revision=True)


@pytest.mark.parametrize("name", ["cifar10", "nobody/nothing"])
def test_without_network_the_way_to_a_local_folder_is_shown(name):
    with pytest.raises(OSError, match=r"cannot be loaded: .*Offline.*--data.path DIR takes a local folder"):
        load_splits(name)


# ------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "cifar1"}, r"unknown data set 'cifar1'; did you mean 'cifar10'\?.*OWNER/NAME"),
        ({"name": "digits", "limit_train": 0}, "limit_train must be at least 1; got 0"),
        ({"name": "digits", "limit_test": -5}, "limit_test must be at least 1; got -5"),
        (
            {"name": "digits", "holdout": 0},
            "holdout must be at least 1; got 0; selection='test' holds nothing out",
        ),
        ({"name": "digits", "revision": "main"}, "the embedded digits has none"),
        ({"name": "cifar10", "path": ".", "revision": "main"}, "the local folder . has none"),
        ({"name": "cifar10", "path": "no/such/place"}, "there is no folder no/such/place"),
        ({"name": "./no/such/place"}, "neither a folder nor a hub id"),
    ],
)
def test_wrong_arguments_are_errors_before_loading(monkeypatch, arguments, said):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it loaded"))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        load_splits(**arguments)


def test_an_unknown_selection_is_an_error():
    unchecked = inspect.unwrap(load_splits)  # a type checker of the suite would refuse it in other words
    with pytest.raises(ValueError, match="unknown selection 'tests'; did you mean 'test'"):
        unchecked("digits", selection="tests")


# ------------------------------------------------------------------------------------------------------ faulty data


def faulty(tmp_path, train, test=None, features=None, **arguments):
    splits = {"train": train} if test is None else {"train": train, "test": test}
    return load_splits(str(folder(tmp_path / "faulty", features, **splits)), **arguments)


def test_no_test_split(tmp_path):
    with pytest.raises(
        ValueError, match=r"no split called test \(or valid, validation\); there is: train\. Make"
    ):
        faulty(tmp_path, columns(20))


def test_no_training_split(tmp_path):
    with pytest.raises(ValueError, match="no split called train; there is: test"):
        load_splits(str(folder(tmp_path / "faulty", test=columns(5))))


def test_no_column_of_images(tmp_path):
    features = {"pixels": datasets.Value("string"), "label": LABEL}
    content = {"pixels": ["a"] * 12, "label": [0, 1] * 6}
    said = (
        r"no image column: 0 columns of images, expected one; found pixels \(string\), label \(ClassLabel\)"
    )
    with pytest.raises(ValueError, match=said):
        faulty(tmp_path, content, content, features)
    with pytest.raises(ValueError, match="'pixels' is no column of images"):
        faulty(tmp_path, content, content, features, image_column="pixels")


def test_no_column_of_labels(tmp_path):
    features = {"image": IMAGE, "score": datasets.Value("float32")}
    content = columns(12, label=None, score=[0.5] * 12)
    with pytest.raises(
        ValueError, match=r"no label column: 0 .*found image \(Image\), score \(float32\)\. Name it"
    ):
        faulty(tmp_path, content, content, features)
    with pytest.raises(ValueError, match="there is no 'kind'"):
        faulty(tmp_path, content, content, features, label_column="kind")


def test_two_columns_that_fit(tmp_path):
    features = {"left": IMAGE, "right": IMAGE, "kind": LABEL, "colour": LABEL}
    pictures = [encoded(image(row)) for row in range(12)]
    content = {"left": pictures, "right": pictures, "kind": [0, 1] * 6, "colour": [1, 2] * 6}
    with pytest.raises(ValueError, match=r"2 columns of images.*Name it with image_column"):
        faulty(tmp_path, content, content, features)
    with pytest.raises(ValueError, match=r"2 columns of class labels.*Name it with label_column"):
        faulty(tmp_path, content, content, features, image_column="left")
    splits = faulty(tmp_path, content, content, features, image_column="right", label_column="colour")
    assert splits.test.labels.tolist() == [1, 2] * 6


def test_a_data_set_of_several_configurations(tmp_path):
    for name, n in (("small", 20), ("large", 40)):
        folder(tmp_path / "both" / name, train=columns(n), test=columns(10))
    described = [
        {
            "config_name": name,
            "data_files": [
                {"split": split, "path": f"{name}/data/{split}-*.parquet"} for split in ("train", "test")
            ],
        }
        for name in ("small", "large")
    ]
    (tmp_path / "both/README.md").write_text(f"---\n{yaml.safe_dump({'configs': described})}---\n")
    where = str(tmp_path / "both")
    for name, n in (("small", 20), ("large", 40)):
        splits = load_splits(where, config=name)
        assert len(splits.train) + len(splits.validation) == n
        assert splits.provenance["config"] == name
    for wrong in (None, "tiny"):
        said = rf"configurations \['small', 'large'\], got {wrong!r}: config=NAME, or --data.config NAME"
        with pytest.raises(ValueError, match=said):
            load_splits(where, config=wrong)
    with pytest.raises(ValueError, match="digits has one configuration; got config 'small'"):
        load_splits("digits", config="small")


def test_test_split_with_other_columns(tmp_path):
    folder(tmp_path / "both", train=columns(20))
    folder(tmp_path / "both", {"image": IMAGE, "kind": LABEL}, test=columns(5, label=None, kind=[0] * 5))
    with pytest.raises((ValueError, OSError), match="kind"):
        load_splits(str(tmp_path / "both"))


def test_images_of_differing_size(tmp_path):
    odd = columns(20)
    odd["image"][11] = encoded(image(size=(9, 4)))
    with pytest.raises(ValueError, match=r"in test, row 0 is 6 × 5 and row 11 is 9 × 4 \(width × height\)"):
        faulty(tmp_path, columns(20), odd)


def test_test_images_of_another_size(tmp_path):
    test = columns(3, image=[encoded(image(size=(9, 4)))] * 3)
    with pytest.raises(ValueError, match=r"train 6 × 5, test 9 × 4, validation 6 × 5"):
        faulty(tmp_path, columns(20), test)


@pytest.mark.parametrize(
    ("feature", "gap"),
    [(LABEL, None), (LABEL, -1), (INTEGER, None), (INTEGER, -1), (FLOAT, None), (FLOAT, float("nan"))],
)
def test_missing_labels(tmp_path, feature, gap):
    labels = [0, 1, 2, 1] * 5
    labels[7] = labels[9] = gap
    with pytest.raises(ValueError, match=r"2 of 20 labels in 'label' of train are missing .* first in row 7"):
        faulty(tmp_path, columns(20, labels=labels), columns(3), {"image": IMAGE, "label": feature})


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        (datasets.Value("string"), ["a", "b"] * 6),
        (datasets.Value("bool"), [True, False] * 6),
        (datasets.Value("date32"), [datetime.date(2020, 1, 1)] * 12),
        (FLOAT, [0.0, 1.0] * 6),
    ],
)
def test_labels_of_a_wrong_type(tmp_path, feature, labels):
    content = columns(12, labels=labels)
    with pytest.raises(ValueError, match=rf"found image \(Image\), label \({feature.dtype}\): cast 'label'"):
        faulty(tmp_path, content, content, {"image": IMAGE, "label": feature})


def test_labels_that_training_does_not_know(tmp_path):
    train, test = columns(20, labels=[2, 5] * 10), columns(4, labels=[2, 5, 3, 9])
    with pytest.raises(
        ValueError, match=r"'label' of test holds 3, 9, none of the training set's 2 classes \(2 … 5\)"
    ):
        faulty(tmp_path, train, test, {"image": IMAGE, "label": INTEGER})


def test_ids_are_no_labels(tmp_path):
    content = columns(20, label=None, id=list(range(20)))
    with pytest.raises(ValueError, match="every image has a label of its own in 'id'"):
        faulty(tmp_path, content, content, {"image": IMAGE, "id": INTEGER})


def test_other_classes_in_the_test_set(monkeypatch):
    def split(names):
        features = datasets.Features({"image": IMAGE, "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict(columns(20), features=features)

    stored = datasets.DatasetDict(train=split(CLASSES), test=split(["bee", "ant", "cat", "dog"]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stored)
    with pytest.raises(
        ValueError, match=r"test has other classes .* 4 \(bee, ant, cat …\), not 3 \(ant, bee, cat\)"
    ):
        load_splits("some/where")


def test_broken_and_missing_images(tmp_path):
    for broken, said in (
        ({"bytes": b"no image", "path": None}, "row 3 of test cannot be decoded"),
        (
            {"bytes": encoded(image(size=(60, 50)), "JPEG")["bytes"][:-300], "path": None},
            "row 3 of test cannot be",
        ),
        (None, "row 3 of test is missing"),
        (
            encoded(PIL.Image.new("I;16", (6, 5), 4000)),
            r"row 3 of test has more than 8 bits a channel \(mode I;16\)",
        ),
    ):
        test = columns(5)
        test["image"][3] = broken
        with pytest.raises(ValueError, match=said):
            faulty(tmp_path, columns(20), test)


def test_too_few_images_to_hold_one_out(tmp_path):
    with pytest.raises(ValueError, match="of 9 that is none: give at least 10"):
        faulty(tmp_path, columns(9), columns(3))
    assert len(faulty(tmp_path, columns(9), columns(3), selection="test").train) == 9


def test_empty_and_unreadable_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"it must hold files that datasets\.load_dataset reads"):
        load_splits(str(tmp_path / "empty"))
    where = folder(tmp_path / "cut", train=columns(20), test=columns(3))
    parquet = where / "data" / "train-00000-of-00001.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-100])
    with pytest.raises(OSError, match="cannot be loaded"):
        load_splits(str(where))


def test_an_empty_test_split(monkeypatch):
    features = datasets.Features({"image": IMAGE, "label": LABEL})
    train, test = (datasets.Dataset.from_dict(columns(n), features=features) for n in (20, 0))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=train, test=test)
    )
    with pytest.raises(ValueError, match="the split test is empty"):
        load_splits("some/where")


# ------------------------------------------------------------------------------------------------------- real images


def stored_rows(parquet, column, rows):
    """The images as Pillow alone reads them, (rows, height, width, 3)."""
    stored = pyarrow.parquet.read_table(parquet, columns=[column]).column(0)
    pictures = [PIL.Image.open(io.BytesIO(stored[row].as_py()["bytes"])) for row in rows]
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]), {p.mode for p in pictures}


@pytest.mark.slow
@pytest.mark.real_data
def test_real_cifar10():
    where = real("cifar10")
    started = time.perf_counter()
    splits = load_splits("cifar10", path=where)
    print(f"\nCIFAR-10: {time.perf_counter() - started:.1f} s")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [49000, 1000, 10000]
    for part, each in ((splits.train, 4900), (splits.validation, 100), (splits.test, 1000)):
        assert (part.labels.bincount() == each).all()
    assert splits.classes == CIFAR10
    assert splits.image_size == (32, 32)
    assert splits.provenance["columns"] == {"image": "img", "label": "label"}
    assert splits.provenance["encoding"] == "JPEG"
    # the mean of CIFAR-10's training images, as is widely used to normalise them
    mean = splits.train.pixels(slice(None, None, 7)).mean(dim=(0, 2, 3))
    assert (mean - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.004
    expected, _ = stored_rows(where / "plain_text" / "test-00000-of-00001.parquet", "img", [0, 17, 9999])
    assert np.array_equal(splits.test.images[[0, 17, 9999]].permute(0, 2, 3, 1).numpy(), expected)
    held = {picture.tobytes() for picture in splits.validation.images.numpy()}
    assert not held & {picture.tobytes() for picture in splits.train.images.numpy()}


@pytest.mark.slow
@pytest.mark.real_data
def test_real_tiny_imagenet_with_grey_images():
    where = real("tiny-imagenet")
    started = time.perf_counter()
    splits = load_splits("tiny-imagenet", path=where)
    print(f"\nTiny-ImageNet: {time.perf_counter() - started:.1f} s")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [19000, 1000, 5000]
    for part, each in ((splits.train, 95), (splits.validation, 5), (splits.test, 25)):
        assert (part.labels.bincount() == each).all()
    assert splits.num_classes == 200
    assert splits.image_size == (64, 64)
    assert splits.provenance["splits"] == {"train": "train", "test": "valid"}
    expected, modes = stored_rows(where / "data" / "valid-00000-of-00001.parquet", "image", range(300))
    assert modes == {"RGB", "L"}
    assert np.array_equal(splits.test.images[:300].permute(0, 2, 3, 1).numpy(), expected)
    assert 0.4 < splits.train.pixels(range(2000)).mean() < 0.5


@pytest.mark.real_data
def test_real_limits_are_quick_and_nested():
    where = real("cifar10")
    small, large = (load_splits("cifar10", path=where, limit_train=n, limit_test=n) for n in (100, 300))

    def pictures(part):
        return {picture.tobytes() for picture in part.images.numpy()}

    for use in ("train", "validation", "test"):
        assert pictures(getattr(small, use)) < pictures(getattr(large, use))
    assert (small.train.labels.bincount() == 10).all()
    assert (large.test.labels.bincount() == 30).all()
