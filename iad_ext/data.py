"""Labelled images: a hub id, a local folder or the embedded digits in; decoded uint8 tensors out.

Which images are held out, and which stay under a limit, is a function of the labels alone. Neither the seed
nor the machine has a say, so every run on a data set trains, selects and tests on the same images.
"""

import contextlib
import hashlib
import io
import logging
import os
import pickle
import re
import textwrap
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import datasets
import huggingface_hub.constants
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pyarrow
import torch
from torch import Tensor

from iad_ext.checks import check_name, check_whole
from iad_ext.files import parse_yaml, refuse_outside
from iad_ext.names import unknown
from iad_ext.randomness import stream
from iad_ext.revisions import refuse_unpinned
from iad_ext.types import Images, Labels, RawImages

Selection: TypeAlias = Literal["holdout", "test"]
_Stored: TypeAlias = Mapping[str, datasets.Dataset]  # split by split, as load_dataset returns them


@dataclass(frozen=True)
class _Known:
    """Where a named data set lives and what its columns are called."""

    hub_id: str
    image: str
    label: str
    test: str
    original: (
        str | None
    )  # the hub's encoding, which a re-encoded copy is told apart from; None where there is no hub


KNOWN: Mapping[str, _Known] = {
    "cifar10": _Known("uoft-cs/cifar10", "img", "label", "test", "PNG"),
    "cifar100": _Known("uoft-cs/cifar100", "img", "fine_label", "test", "PNG"),
    "tiny-imagenet": _Known("zh-plus/tiny-imagenet", "image", "label", "valid", "JPEG"),
    "digits": _Known("scikit-learn's load_digits", "image", "label", "test", None),
}
# what images are stored as; Pillow would also take formats that it hands to other programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# where `datasets` looks for what a folder says of itself
CARDS = ("README.md", ".huggingface.yaml")
TEST_SPLITS = ("test", "valid", "validation")
# files that a local data set may consist of, and how those of its two parts are called; `datasets` knows more words
DATA_FILES = (".parquet", ".arrow", ".tar", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARTS = tuple(
    re.compile(rf"(?<![a-z])({words})(?![a-z])") for words in ("train|training", "test|valid|validation|val")
)
ARROW_SECONDS = 10.0  # at most, for Arrow's workers to end after an error
LONGEST_REASON = 300  # characters of what a loader says; Arrow's errors have schemas in them
HOLDOUT_RULE = "the first min(holdout, n_train // 10) images of stratified_order(labels, 'holdout')"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split, decoded.

    Attributes:
        images: uint8 (n, 3, height, width), contiguous, pixels in 0 … 255.
        labels: int64 (n,), in 0 … classes − 1, on the same device.
        classes: the classes' names, in the labels' order.
    """

    images: RawImages
    labels: Labels
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or not self.images.is_contiguous():
            raise ValueError(
                "images must be a contiguous uint8 tensor (n, 3, height, width); "
                f"got {self.images.dtype} {tuple(self.images.shape)}, strides {self.images.stride()}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 ({len(self.images)},), one an image; "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not all of them occur."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def take(self, indices: Tensor | Sequence[int] | slice) -> "ImageSet":
        """The images at `indices`, in that order."""
        if not isinstance(indices, slice):
            indices = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        return ImageSet(self.images[indices].contiguous(), self.labels[indices].contiguous(), self.classes)

    def pixels(self, indices: Tensor | Sequence[int] | slice | None = None) -> Images:
        """The images at `indices` (all without) as float32 in [0, 1]."""
        return unit_pixels(self.images if indices is None else self.take(indices).images)


@dataclass(frozen=True, eq=False)
class PixelSet:
    """Images in memory as floating-point pixels, of any number of channels, such as those of an ART pipeline.

    Attributes:
        images: (n, channels, height, width) in [0, 1].
        labels: int64 (n,), in 0 … classes − 1, on the same device.
        num_classes: number of classes, whether or not all of them occur.
    """

    images: Images
    labels: Labels
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "PixelSet":
        """The same images on `device`."""
        return PixelSet(self.images.to(device), self.labels.to(device), self.num_classes)

    def pixels(self, indices: slice) -> Images:
        """The images at `indices`."""
        return self.images[indices]


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, decoded and split.

    Attributes:
        train: the images to train on.
        validation: the images to select the best epoch on.
        test: the images to report on.
        selection: what `validation` is: `holdout`, a part of the training set that is not in `train`, or
            `test`, the test set itself, as in the paper.
        provenance: where the images came from and how they were split; plain values that JSON can hold.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    selection: Selection
    provenance: Mapping[str, object]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the labels' order."""
        return self.train.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[2:]
        return height, width


def unit_pixels(images: RawImages) -> Images:
    """`images` / 255 in float32, the same to the last bit on every device.

    CUDA multiplies by the rounded reciprocal when it divides by a Python number; by a tensor it divides.
    """
    return images / torch.full((), 255.0, device=images.device)


def stratified_order(labels: Labels, purpose: str) -> Tensor:
    """A fixed order of the images in which every beginning holds the classes in their proportions.

    With equally many images of each class, class counts of any beginning differ by at most one. The order
    depends on `labels` and on the name `purpose`, on nothing else. Returns int64 positions, (n,).
    """
    shuffled = torch.randperm(len(labels), generator=stream("data", purpose))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - first[labels[by_class]]
    share = torch.empty(len(labels), dtype=torch.float64)
    share[by_class] = (rank + 0.5) / counts[labels[by_class]].double()
    return shuffled[share[shuffled].argsort(stable=True)]


def split_training_set(labels: Labels, *, holdout: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions (int64, ascending) to train on and to hold out.

    First min(`holdout`, a tenth of all) images are set aside, then `limit` of the others are kept. Both are
    beginnings of a `stratified_order`, so a larger limit contains a smaller one. A limit also cuts the
    hold-out to a tenth of it, but never below one image, which the `limit` to train on does not contain.

    Raises:
        ValueError: a hold-out was asked for, and a tenth of the images is none.
    """
    aside = min(holdout, len(labels) // 10)
    if holdout and not aside:
        raise ValueError(
            f"a tenth of the training images is held out for selection; of {len(labels)} that is none: "
            "give at least 10, or select on the test set with selection='test'"
        )
    held = stratified_order(labels, "holdout")[:aside]
    is_free = torch.ones(len(labels), dtype=torch.bool).index_fill(0, held, False)
    kept = is_free.nonzero()[:, 0]
    if limit is not None:
        kept = kept[stratified_order(labels[kept], "train")[:limit]]
        held = held[: max(1, limit // 10)]
    return kept.sort().values, held.sort().values


def load_splits(
    name: str,
    *,
    path: str | Path | None = None,
    revision: str | None = None,
    require_revision: bool = False,
    selection: Selection = "holdout",
    holdout: int = 1000,
    limit_train: int | None = None,
    limit_test: int | None = None,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Load a data set, split it and decode it once to uint8 RGB.

    The hold-out is class-balanced (each class in its proportion), the same for every training seed, and set
    aside before any limit: min(`holdout`, n_train // 10) images; `split_training_set` has the whole rule.
    `limit_test` keeps the first N images of a fixed class-balanced order of the test set. With
    `selection="test"`, validation is the test set and nothing is held out.

    Without `image_column` and `label_column`, a known data set's own columns are read (`fine_label` of
    CIFAR-100), else the columns of a fitting type. Integer labels need not be contiguous; the training set's
    values, ascending, become the classes. The test images are those of the split called test, valid or
    validation.

    Args:
        name: `cifar10`, `cifar100`, `tiny-imagenet`, `digits`, a hub id (OWNER/NAME) or a local folder; with
            `path`, any name.
        path: folder that `datasets.load_dataset` reads; without it the hub or its local cache is asked.
        revision: the hub's branch, tag or commit, to pin a data set.
        require_revision: refuse a data set of the hub without a full commit as `revision`; the environment variable
            `IAD_EXT_REQUIRE_REVISION=1` asks for the same.
        selection: `holdout` or `test`.
        holdout: at most so many images are held out, ≥ 1.
        limit_train: at most so many images to train on, ≥ 1.
        limit_test: at most so many test images, ≥ 1.
        config: which of its configurations, where a data set has several.
        image_column: the column of images.
        label_column: the column of labels.

    Raises:
        TypeError: an argument is of the wrong kind (said before anything is loaded).
        ValueError: an argument is out of range (likewise), or the data are: a column or split
            is not there, sizes differ, a label or image is missing or out of range.
        FileNotFoundError: there is no such folder.
        OSError: the data set cannot be had from the hub or its cache, or its files cannot be read.
    """
    names = {"config": config, "image_column": image_column, "label_column": label_column}
    _check_arguments(selection, names, holdout=holdout, limit_train=limit_train, limit_test=limit_test)
    check_name("name", name)
    known = KNOWN.get(name)
    stored, origin = _fetch(name, path, revision, config, require_revision)
    train, test = _parts(stored, known, image_column, label_column)
    classes, train_labels, test_labels = _labels(train, test)
    aside = holdout if selection == "holdout" else 0
    kept, held = split_training_set(train_labels, holdout=aside, limit=limit_train)
    tested = stratified_order(test_labels, "test")[:limit_test].sort().values

    wanted = {"train": (train, kept, train_labels), "test": (test, tested, test_labels)}
    if selection == "holdout":
        wanted["validation"] = train, held, train_labels
    images, formats = {}, Counter[str]()
    for use, (part, rows, labels) in wanted.items():
        decoded, found = _decode(part, rows, origin["path"])
        images[use] = ImageSet(decoded, labels[rows], classes)
        formats += found
    images.setdefault("validation", images["test"])
    _check_sizes(images)
    provenance = {
        "name": name,
        **origin,
        "splits": {"train": train.name, "test": test.name},
        "columns": {"image": train.image, "label": train.label},
        "fingerprint": {part.name: part.rows._fingerprint for part in (train, test)},
        "n": {use: len(part) for use, part in images.items()},
        "digest": {use: _digest(part) for use, part in images.items()},
        "selection": selection,
        "holdout": {"rule": HOLDOUT_RULE, "at_most": holdout} if selection == "holdout" else None,
        "limits": {"train": limit_train, "test": limit_test},
        **_encoding(formats, known),
    }
    return Splits(images["train"], images["validation"], images["test"], selection, provenance)


def load_extra(
    source: str, classes: Sequence[str], *, require_revision: bool = False
) -> tuple[ImageSet, dict[str, object]]:
    """Load more images to train on, such as generated ones, and say where they came from.

    Args:
        source: an `.npz` file with `image`, uint8 (n, height, width, 3), and `label`, integers (n,), which is how
            generated CIFAR images are published; or a hub id (OWNER/NAME or OWNER/NAME@COMMIT) or local folder, of
            which the training split is taken.
        classes: the training set's classes.
        require_revision: see `load_splits`; of the hub the source then has to name the full commit.

    Raises:
        ValueError: the file holds something else, or labels outside the classes; or the data set has other classes,
            by their names where both have names. Those of the same names may stand in another order. Or there is no
            training split, or no commit where one is required.
        FileNotFoundError: there is no such file.
    """
    revision = None
    if source.endswith(".npz"):
        found = _npz_images(Path(source), classes)
    else:
        found, revision = _training_images(source, require_revision=require_revision)
    if found.num_classes != len(classes):
        raise ValueError(f"{source} has {found.num_classes} classes, the training set {len(classes)}")
    found = _in_order_of(classes, found, source)
    return found, {"source": source, "revision": revision, "n": len(found), "digest": _digest(found)}


def _training_images(source: str, *, require_revision: bool) -> tuple[ImageSet, str | None]:
    """All of a data set's training split, and its commit on the hub; whether it has others is not asked."""
    name, _, revision = (source, "", "") if Path(source).is_dir() else source.partition("@")
    pin = f"--data.extra {name}@COMMIT"
    stored, origin = _fetch(name, None, revision or None, None, require_revision, pin=pin)
    if "train" not in stored:
        raise ValueError(
            f"{source} has no split called train, of which extra images are taken; there is: {', '.join(stored)}. "
            "Give its images that name"
        )
    train, _ = _parts({"train": stored["train"], "test": stored["train"]}, KNOWN.get(name), None, None)
    classes, labels, _ = _labels(train, train)
    decoded, _ = _decode(train, torch.arange(len(labels)), origin["path"])
    return ImageSet(decoded, labels, classes), origin["revision"]


def left_out(labels: Labels, limit: int | None) -> str:
    """What a limit to the first so many images does where they lie by their classes; empty where it leaves none out."""
    held, all_ = len(labels[:limit].unique()), len(labels.unique())
    if held == all_:
        return ""
    return f"the first {limit} images are of {held} of the {all_} classes that occur"


def _in_order_of(classes: Sequence[str], found: ImageSet, source: str) -> ImageSet:
    """The images with the labels that their classes' names have in the training set."""
    # integers for names: their order is all that is known
    unnamed = any(all(name.isdigit() for name in names) for names in (classes, found.classes))
    if unnamed or found.classes == tuple(classes):
        return found
    if set(found.classes) != set(classes):
        raise ValueError(
            f"{source} has other classes than the training set: {_shortened(found.classes)}, not "
            f"{_shortened(classes)}; {sorted(set(found.classes) - set(classes))[0]!r} is none of them: give its "
            "classes the training set's names"
        )
    moved = torch.tensor([classes.index(name) for name in found.classes])
    return ImageSet(found.images, moved[found.labels], tuple(classes))


def _npz_images(path: Path, classes: Sequence[str]) -> ImageSet:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as held:
            images, labels = held["image"], held["label"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must hold arrays image and label: {error}") from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{path}: image must be uint8 (n, height, width, 3); got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: label must be integers ({len(images)},); got {labels.dtype} {labels.shape}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{path}: label must be in 0 … {len(classes) - 1}; got {labels.min()} … {labels.max()}"
        )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)), tuple(classes))


def _check_arguments(
    selection: str, names: Mapping[str, str | None], *, holdout: int, **limits: int | None
) -> None:
    check_name("selection", selection)
    if selection not in get_args(Selection):
        raise ValueError(unknown("selection", selection, get_args(Selection)))
    check_whole("holdout", holdout, at_least=1, hint="; selection='test' holds nothing out")
    for argument, count in limits.items():
        if count is not None:
            check_whole(argument, count, at_least=1)
    for argument, given in names.items():
        if given is not None:
            check_name(argument, given)


def locate(
    name: str,
    path: str | Path | None = None,
    revision: str | None = None,
    *,
    require_revision: bool = False,
    pin: str = "--data.revision COMMIT",
) -> tuple[Literal["folder", "scikit-learn", "hub"], str]:
    """Say where a data set's files are, without reading them: a folder, scikit-learn's digits, or a hub id.

    `pin` is how a commit is given, for the message that requires one.

    Raises:
        ValueError: there is no data set of that name, it has no folder or no revisions, or none was given that is
            required.
        FileNotFoundError: there is no such folder.
    """
    check_name("name", name)
    if not isinstance(path, str | Path | None):
        raise TypeError(f"path must be a folder, as a string or a Path; got {path!r}")
    if path is not None and name == "digits":
        raise ValueError(
            "the data set digits is scikit-learn's and needs no folder: leave --data.path out, or give the folder's "
            "data set another --data.name"
        )
    if path is None and name and name not in KNOWN and Path(name).is_dir():
        path = name
    if revision is not None and (path is not None or name == "digits"):
        what = "the embedded digits" if path is None else f"the local folder {path}"
        raise ValueError(f"revision pins a data set of the hub; {what} has none: leave it out")
    if path is not None:
        if not Path(path).is_dir():
            raise FileNotFoundError(f"there is no folder {path}; give one that datasets.load_dataset reads")
        return "folder", str(path)
    if name == "digits":
        return "scikit-learn", "load_digits"
    if name not in KNOWN and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        if "/" in name:
            raise FileNotFoundError(f"{name!r} is neither a folder nor a hub id (OWNER/NAME)")
        raise ValueError(unknown("data set", name, KNOWN) + "; or a hub id (OWNER/NAME), or a local folder")
    where = KNOWN[name].hub_id if name in KNOWN else name
    refuse_unpinned(f"{pin} for {where}", revision, address=f"datasets/{where}", require=require_revision)
    return "hub", where


def _fetch(
    name: str,
    path: str | Path | None,
    revision: str | None,
    config: str | None,
    require_revision: bool,
    **pin: str,
) -> tuple[_Stored, dict[str, Any]]:
    """The stored splits, and the part of the provenance that says where they come from."""
    source, where = locate(name, path, revision, require_revision=require_revision, **pin)
    origin: dict[str, Any] = {"source": source, "id": where, "path": None, "revision": None, "config": config}
    if source == "folder":
        _refuse_several(Path(where), name)
        _refuse_leading_outside(Path(where))
        return _load(where, config=config), origin | {"id": None, "path": str(Path(where).resolve())}
    if source == "scikit-learn":
        if config is not None:
            raise ValueError(
                f"the data set digits has one configuration; got config {config!r}, leave it out"
            )
        return _digits(), origin
    stored = _load(where, revision, config)
    return stored, origin | {"revision": _commit(stored) or revision}


def _refuse_leading_outside(folder: Path) -> None:
    """Refuse a folder of which links or its own description lead to files elsewhere, on this machine or another."""
    for root, directories, files in os.walk(folder):
        for entry in map(Path(root).joinpath, directories + files):
            if entry.is_symlink():
                refuse_outside(entry, folder)
    for card in CARDS:
        if not (folder / card).is_file():
            continue
        text = (folder / card).read_text(encoding="utf-8", errors="replace")
        try:
            described = parse_yaml(_front_matter(text) if card.endswith(".md") else text)
        except ValueError as error:
            raise ValueError(f"{folder / card} cannot be read: {error}; mend or remove it") from error
        configs = described.get("configs") if isinstance(described, dict) else None
        for address in _texts(configs):
            if "://" in address or "::" in address or address.startswith(("/", "~", "\\")) or ".." in address:
                raise ValueError(
                    f"{folder / card} names files outside the folder: {address[:200]!r}; name only files in it"
                )


def _refuse_several(folder: Path, name: str) -> None:
    """Refuse a folder of data sets: `datasets` would mix their images, or stop where their columns differ."""
    if any(
        (folder / card).is_file() and "configs:" in (folder / card).read_text("utf-8", "replace")
        for card in CARDS
    ):
        return  # it says itself which files belong together
    found = _data_sets_below(folder)
    if len(found) > 1:
        names = [one.name for one in found]
        nearest = found[names.index((get_close_matches(name, names, n=1) or names)[0])]
        raise ValueError(
            f"expected the folder of one data set, but {folder} holds {_shortened(names)}; did you mean {nearest}?"
        )


def _data_sets_below(folder: Path) -> list[Path]:
    """Sub-folders with images to train on and images to test on, each a data set; of a folder of these, those in it."""
    found: list[Path] = []
    for child in sorted(folder.iterdir()):
        if (
            child.is_dir()
            and not child.is_symlink()
            and not child.name.startswith(".")
            and _has_both_parts(child)
        ):
            below = _data_sets_below(child)
            found += below if len(below) > 1 else [child]
    return found


def _has_both_parts(folder: Path) -> bool:
    missing = set(PARTS)
    for root, _, files in os.walk(folder):
        for file in files:
            where = Path(root, file).relative_to(folder)
            if where.suffix.lower() in DATA_FILES:
                missing -= {part for part in missing if part.search(str(where).lower())}
            if not missing:
                return True
    return False


def _front_matter(text: str) -> str:
    """The YAML between the first two lines of three dashes; nothing where the text does not begin with it."""
    lines = text.splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return ""
    return "\n".join(lines[1 : lines.index("---", 1)])


def _texts(value: object) -> Iterator[str]:
    """Every text in nested lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _load(where: str, revision: str | None = None, config: str | None = None) -> _Stored:
    held = pyarrow.total_allocated_bytes()
    try:
        with _readers_heard() as unreadable:
            stored: _Stored = datasets.load_dataset(where, name=config, revision=revision)
        return stored
    except Exception as error:  # broken files can raise anything
        _let_go(error, held)
        reason = f"{error}" if error.__cause__ is None else f"{error} ({error.__cause__})"
        if unreadable:
            reason = f"{unreadable[-1]}: {error.__cause__ or error}"
        reason = textwrap.shorten(reason, LONGEST_REASON, placeholder=" …")
        if isinstance(error, pickle.UnpicklingError):  # of which the text tells how to run the code after all
            reason = "it holds pickled objects, which could run any code"
        if found := re.search(r"(?:not found. Available: |available configs: )(\[.*?\])", str(error)):
            raise ValueError(
                f"the data set {where} has the configurations {found[1]}, got {config!r}: config=NAME, or "
                "--data.config NAME, chooses one"
            ) from error
        if Path(where).is_dir():
            advice = "it must hold files that datasets.load_dataset reads, such as parquet files"
        else:
            advice = "without network, --data.path DIR takes a local folder that datasets.load_dataset reads"
        raise OSError(f"the data set {where} cannot be loaded: {reason.rstrip('.')}; {advice}") from error


class _Unreadable(logging.Handler):
    """Notes the files that `datasets` logs as unreadable; its error does not name them."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"Failed to read file '(.+?)' with", record.getMessage()):
            self.files.append(found[1])


@contextlib.contextmanager
def _readers_heard() -> Iterator[list[str]]:
    """The files that cannot be read, in place of the lines that `datasets` prints of them."""
    readers, cards = (
        logging.getLogger("datasets.packaged_modules"),
        logging.getLogger("huggingface_hub.repocard"),
    )
    handler, before = _Unreadable(), (readers.propagate, cards.level)
    readers.addHandler(handler)
    readers.propagate = False
    cards.setLevel(logging.ERROR)  # a folder's README.md need not be a card
    try:
        yield handler.files
    finally:
        readers.removeHandler(handler)
        readers.propagate = before[0]
        cards.setLevel(before[1])


def _let_go(error: BaseException, held: int) -> None:
    """Wait until Arrow has dropped what it read ahead, its memory back to `held` bytes.

    Its workers decode on after an error, and then release Python's buffers: an interpreter that is ending by then is
    aborted (github.com/apache/arrow/issues/45214). The frames of the error hold the readers, so they are emptied first.
    """
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__
    end = time.monotonic() + ARROW_SECONDS
    while pyarrow.total_allocated_bytes() > held and time.monotonic() < end:
        time.sleep(0.02)


def _commit(stored: _Stored) -> str | None:
    """The hub's commit that the files are of, where `datasets` kept their addresses (…/ID@COMMIT/FILE)."""
    for split in stored.values():
        for address in split.info.download_checksums or {}:
            if found := re.search(r"@([0-9a-f]{40})/", address):
                return found.group(1)
    return None


def _digits() -> _Stored:
    """scikit-learn's 1,797 scanned digits, 8 × 8: grey 0 … 16 scaled to 0 … 255, in three equal channels.

    The test set is the first fifth of a fixed class-balanced order.
    """
    from sklearn.datasets import load_digits  # here, because importing it takes a second that few runs need

    scans = load_digits()
    grey = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    images, labels = np.repeat(grey[..., None], 3, axis=3), scans.target
    names = [str(digit) for digit in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})

    def part(rows: Tensor) -> datasets.Dataset:
        chosen = rows.sort().values.numpy()
        columns = {"image": list(images[chosen]), "label": labels[chosen]}
        return datasets.Dataset.from_dict(columns, features=features)

    order = stratified_order(torch.from_numpy(labels).long(), "digits")
    tested = len(labels) // 5
    return {"train": part(order[tested:]), "test": part(order[:tested])}


@dataclass(frozen=True)
class _Part:
    """One stored split and the columns to read of it."""

    rows: datasets.Dataset
    name: str
    image: str
    label: str


def _parts(
    stored: _Stored, known: _Known | None, image_column: str | None, label_column: str | None
) -> tuple[_Part, _Part]:
    """The training and the test split; both have the training split's columns."""
    train_name, test_name = _split_names(stored, known)
    train, test = stored[train_name], stored[test_name]
    image, label = _image_column(train, image_column, known), _label_column(train, label_column, known)
    for column in (image, label):
        if column not in test.features:
            raise ValueError(
                f"{test_name} lacks the column {column!r} of {train_name}; it has {_described(test)}: "
                "give both splits the same columns"
            )
    return _Part(train, train_name, image, label), _Part(test, test_name, image, label)


def _split_names(stored: _Stored, known: _Known | None) -> tuple[str, str]:
    preferred = (known.test, *TEST_SPLITS) if known else TEST_SPLITS
    test = next((split for split in preferred if split in stored), None)
    if "train" in stored and test is not None:
        return "train", test
    missing = "test (or valid, validation)" if test is None else "train"
    raise ValueError(
        f"there is no split called {missing}; there is: {', '.join(stored)}. Make one, for example with "
        "dataset.train_test_split(0.2, stratify_by_column=LABEL).save_to_disk(DIR), and give --data.path DIR"
    )


def _image_column(split: datasets.Dataset, asked: str | None, known: _Known | None) -> str:
    """The column asked for, else the known one, else the only one that holds images."""
    features: Mapping[str, object] = split.features
    fitting = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if asked is not None:
        return asked if asked in fitting else _no_column("image", f"{asked!r} is no column of images", split)
    if known and known.image in fitting:
        return known.image
    if len(fitting) != 1:
        _no_column("image", f"{len(fitting)} columns of images, expected one", split)
    return fitting[0]


def _label_column(split: datasets.Dataset, asked: str | None, known: _Known | None) -> str:
    """The column asked for, else the known one, else the only one of class labels, else of integers.

    Of several, `label` or `fine_label` is taken; a coarse label only when asked for.
    """
    features: Mapping[str, object] = split.features
    if asked is not None:
        return asked if asked in features else _no_column("label", f"there is no {asked!r}", split)
    if known and known.label in features:
        return known.label
    fine = [column for column in features if not column.startswith("coarse")]
    fitting = [column for column in fine if isinstance(features[column], datasets.ClassLabel)]
    fitting = fitting or [column for column in fine if "int" in _typed(features[column])]
    # a column called so but of another type is taken too: its values are refused with a better reason
    for usual in ("label", "fine_label"):
        if usual in (fitting or features):
            return usual
    if len(fitting) != 1:
        _no_column("label", f"{len(fitting)} columns of class labels or integers, expected one", split)
    return fitting[0]


def _no_column(kind: str, why: str, split: datasets.Dataset) -> NoReturn:
    raise ValueError(f"no {kind} column: {why}; found {_described(split)}. Name it with {kind}_column")


def _described(split: datasets.Dataset) -> str:
    return ", ".join(f"{column} ({_typed(feature)})" for column, feature in split.features.items())


def _typed(feature: object) -> str:
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


def _labels(train: _Part, test: _Part) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """The classes' names, and both splits' labels as positions among them, int64 (n_train,) and (n_test,)."""
    train_values, test_values = _label_values(train), _label_values(test)
    feature, test_feature = train.rows.features[train.label], test.rows.features[test.label]
    if isinstance(feature, datasets.ClassLabel):
        if isinstance(test_feature, datasets.ClassLabel) and test_feature.names != feature.names:
            raise ValueError(
                f"{test.name} has other classes in {test.label!r} than {train.name}: "
                f"{_shortened(test_feature.names)}, not {_shortened(feature.names)}; give both the same"
            )
        values, classes = torch.arange(feature.num_classes), tuple(feature.names)
    else:
        values = torch.from_numpy(np.unique(train_values.numpy()))
        classes = tuple(str(value) for value in values.tolist())
        if len(classes) == len(train_values):
            raise ValueError(
                f"every image has a label of its own in {train.label!r}, as in a column of ids; "
                "name the column of labels with label_column"
            )
    return classes, _positions(train_values, values, train), _positions(test_values, values, test)


def _label_values(part: _Part) -> Labels:
    """The stored integers (n,), none missing and none negative (the hub's unlabelled images have −1)."""
    if len(part.rows) == 0:
        raise ValueError(f"the split {part.name} is empty; it needs images")
    values = part.rows.select_columns([part.label]).with_format("arrow")[:].column(0).to_numpy()
    missing = np.zeros(len(values), bool)
    if values.dtype.kind == "O":
        missing = np.array([value is None for value in values])
    elif values.dtype.kind == "f":  # arrow gives integers with gaps as floats with NaN
        missing = np.isnan(values)
    elif values.dtype.kind == "i":
        missing = values < 0
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(values)} labels in {part.label!r} of {part.name} are missing (none or "
            f"negative), first in row {missing.argmax()}; remove those rows or name another label_column"
        )
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be class labels or integers; found {_described(part.rows)}: cast {part.label!r}, "
            "for example with datasets' class_encode_column, or name another label_column"
        )
    return torch.from_numpy(values.astype(np.int64))


def _shortened(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"


def _positions(stored: Labels, values: Tensor, part: _Part) -> Labels:
    """Positions of the `stored` labels among the classes' ascending `values`."""
    labels = torch.searchsorted(values, stored).clamp(max=len(values) - 1)
    strangers = np.unique(stored[values[labels] != stored].numpy())
    if len(strangers):
        raise ValueError(
            f"{part.label!r} of {part.name} holds {', '.join(map(str, strangers[:5]))}, none of the training "
            f"set's {len(values)} classes ({values[0]} … {values[-1]}): correct or remove those rows"
        )
    return labels


def _decode(part: _Part, rows: Tensor, folder: str | None) -> tuple[RawImages, Counter[str]]:
    """The images at `rows` as uint8 RGB (n, 3, height, width), and how many there are of each file format.

    An image that lies in a file of its own must lie in `folder`, or where `datasets` and the hub keep their copies.
    """
    homes = [
        datasets.config.HF_DATASETS_CACHE,
        huggingface_hub.constants.HF_HUB_CACHE,
        *([folder] if folder else []),
    ]
    within = [Path(home).expanduser().resolve() for home in homes]
    feature = part.rows.features[part.image]
    if not isinstance(feature, datasets.Image):
        raise ValueError(f"{part.image!r} of {part.name} must hold images; found {_described(part.rows)}")
    chosen = part.rows.select(rows.numpy()).select_columns([part.image]).with_format("arrow")
    stored = (image for table in chosen.iter(batch_size=1000) for image in table.column(0).to_pylist())
    decoded, formats = np.empty((0, 3, 0, 0), np.uint8), Counter[str]()
    for position, (row, image) in enumerate(zip(rows.tolist(), stored, strict=True)):
        pixels, file_format = _rgb(feature, image, f"the image in row {row} of {part.name}", within)
        height, width = pixels.shape[:2]
        if position == 0:
            decoded = _room(len(rows), height, width)
        if decoded.shape[2:] != (height, width):
            raise ValueError(
                f"all images must have the same size; in {part.name}, row {rows[0]} is {decoded.shape[3]} × "
                f"{decoded.shape[2]} and row {row} is {width} × {height} (width × height): resize them first"
            )
        decoded[position] = pixels.transpose(2, 0, 1)
        formats[file_format] += 1
    return torch.from_numpy(decoded), formats


def _room(n: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    try:
        return np.empty((n, 3, height, width), np.uint8)
    except MemoryError:
        raise ValueError(
            f"{n} images of {width} × {height} need {n * 3 * height * width / 2**30:.0f} GiB: resize them first, or "
            "limit their number"
        ) from None


def _rgb(
    feature: datasets.Image, stored: dict[str, Any] | None, what: str, within: Sequence[Path]
) -> tuple[npt.NDArray[np.uint8], str]:
    """One image, (height, width, 3), and its file format."""
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        raise ValueError(f"{what} is missing; remove that row")
    source = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
    if isinstance(source, str) and not any(Path(source).resolve().is_relative_to(home) for home in within):
        raise ValueError(
            f"{what} is outside the data set's own folder: {source[:200]!r}; store the image in it"
        )
    try:
        with (
            warnings.catch_warnings(action="error", category=PIL.Image.DecompressionBombWarning),
            PIL.Image.open(source, formats=FORMATS) as opened,
        ):
            image, file_format = PIL.ImageOps.exif_transpose(opened), opened.format
    except Exception as error:  # a broken image can raise anything
        raise ValueError(f"{what} cannot be decoded ({error}); repair it or remove that row") from error
    if feature.mode and feature.mode != image.mode:
        image = image.convert(feature.mode)
    if image.mode[0] in "IF":  # RGB would clip them to white
        raise ValueError(f"{what} has more than 8 bits a channel (mode {image.mode}); scale it to 8 bits")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), file_format or "unknown"


def _check_sizes(images: Mapping[str, ImageSet]) -> None:
    sizes = {use: "{3} × {2}".format(*part.images.shape) for use, part in images.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{use} {size}" for use, size in sizes.items())
        raise ValueError(
            f"all images must have the same size; got {found} (width × height): resize them first"
        )


def _encoding(formats: Counter[str], known: _Known | None) -> dict[str, object]:
    """How the images are stored, with a note where a copy lost what the original has."""
    note = None
    if known and known.original == "PNG" and "JPEG" in formats:
        note = f"JPEG, with loss; {known.hub_id} is PNG: do not compare with figures on it without saying so"
    return {"encoding": ", ".join(found for found, _ in formats.most_common()), "encoding_note": note}


def _digest(part: ImageSet) -> str:
    """The same wherever the same images and labels lie; `datasets`' fingerprint changes with the folder."""
    digest = hashlib.blake2b(part.labels.numpy().tobytes(), digest_size=8)
    digest.update(part.images.numpy().data)
    return digest.hexdigest()
