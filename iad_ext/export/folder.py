"""A network as a folder that timm, the hub and `load_network` read, and that folder on the hub. Never a pickle."""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import huggingface_hub

from iad_ext.backbones import Loading, save_network
from iad_ext.export.card import model_card
from iad_ext.export.record import Record, dataset_of, shown_source
from iad_ext.files import write_text
from iad_ext.names import known_arguments

CARD = "README.md"
# what a folder on the hub may hold; none of these can run code when it is loaded, but for the loader that people read
UPLOADED = (".safetensors", ".json", ".md", ".onnx", ".py", ".txt", ".png", ".svg", ".html")
PICKLE = b"\x80"  # how a pickle begins; PyTorch's own files are zip files of them


@known_arguments
def to_folder(
    source: str | os.PathLike[str] | Record,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    license: str | None = None,  # noqa: A002 (the hub's word)
    results: str | os.PathLike[str] | None = None,
    **loading: Unpack[Loading],
) -> Path:
    """Write a network in timm's layout with a model card: `model.safetensors`, `config.json`, `README.md`.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` and `load_network(FOLDER)` read it. The card is written
    from the run folder alone, or from what `iad-ext evaluate` measured; what is not known it says it does not know.
    Paths of this machine stay out of it.

    Args:
        source: a run folder, its `best` or `last`, anything else that `load_network` takes by name, or a `Record`.
        folder: made where it is missing; files of these names in it are replaced.
        name: what the card calls the model; the folder's name when None.
        license: the hub's word for the weights' licence (`mit` …), for the card.
        results: what `iad-ext evaluate --out` wrote for this network; goes before the run's own.
        loading: for a source by name, arguments of `load_network` (`architecture`, `num_classes` …).

    Returns:
        The folder.
    """
    record = Record.of(source, results=results, **loading)
    folder = Path(folder)
    card = model_card(record, name=name or folder.resolve().name, license=license)
    save_network(record.network, folder, metadata=_public(record))
    write_text(folder / CARD, card)
    return folder


def _public(record: Record) -> dict[str, Any]:
    """The metadata without paths of this machine."""
    here = {"path": None, "name": record.dataset}
    public = dict(record.metadata) | {
        "data": _public_data(record.data),
        "tested": _public_data(record.tested),
    }
    if record.measured:
        public["measured"] = record.measured
    if record.settings:
        extra = shown_source(record.settings["data"].get("extra"))
        settings = {
            **record.settings,
            "out": None,
            "data": {**record.settings["data"], **here, "extra": extra},
        }
        public["settings"] = {**settings, "teacher": None, "natural_teacher": None}
    if record.environment:
        kept = ("time", "python", "versions", "hardware", "commit", "precision", "processes")
        public["environment"] = {key: record.environment[key] for key in kept if key in record.environment}
    return {key: value for key, value in public.items() if value or not isinstance(value, Mapping)}


def _public_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's provenance, and that of extra images, without where they lie here."""
    if not data:
        return {}
    public = {**data, "path": None, "name": dataset_of(data)}
    if isinstance(extra := data.get("extra"), Mapping):
        public["extra"] = {**extra, "source": shown_source(extra.get("source"))}
    return public


@known_arguments
def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    push: bool = False,
    private: bool = True,
    message: str | None = None,
) -> list[str]:
    """Upload an exported folder to the Hugging Face hub; without `push=True`, only say what would be uploaded.

    Args:
        folder: what `to_folder` wrote, with what was added to it.
        repo_id: OWNER/NAME.
        push: really upload. Who you are is what `hf auth login` or the variable HF_TOKEN says.
        private: where the repository is new, make it a private one.
        message: of the commit.

    Returns:
        The files, by their names in the repository.

    Raises:
        ValueError: the folder is no export, holds a pickle or a file of another kind, or the id is none.
        OSError: the hub refused, or cannot be reached.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"expected a repository as OWNER/NAME, got {repo_id!r}")
    files = _uploadable(folder)
    if not push:
        return files
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ValueError("cannot push: HF_HUB_OFFLINE is set; unset it")
    huggingface_hub.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    huggingface_hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=files,
        commit_message=message or f"{folder.resolve().name}, exported by iad-ext",
    )
    return files


def _uploadable(folder: Path) -> list[str]:
    missing = [name for name in ("model.safetensors", "config.json", CARD) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}; export a network there first: iad-ext export MODEL {folder}"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if _is_pickle(path):
            raise ValueError(
                f"{path} is a pickle, which could run any code where it is loaded; remove it, then push"
            )
        if path.suffix not in UPLOADED:
            raise ValueError(f"{path} is none of {' '.join(UPLOADED)}; remove it, then push")
    return [path.relative_to(folder).as_posix() for path in files]


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == PICKLE or zipfile.is_zipfile(path)
