"""What is known of a network beside its weights: read from its run folder, or from what `iad-ext evaluate` wrote."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Unpack

from torch import nn

from iad_ext import settings as settings_
from iad_ext.backbones import (
    Loading,
    architecture_of,
    image_shape_of,
    load_network,
    network_digest,
    num_classes_of,
    saved_metadata,
)
from iad_ext.data import KNOWN
from iad_ext.evaluation import ATTACKS
from iad_ext.files import read_json
from iad_ext.names import known_arguments

Facts = Mapping[str, Any]
# what an exported network carries in its metadata of the run that it came from
FROM_EXPORT = ("measured", "tested", "settings", "environment")


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A network and what is known of it; what is not known is empty.

    Attributes:
        network: takes pixels in [0, 1].
        source: what it was loaded from, for people.
        measured: what `evaluate` returned for these very weights.
        epoch: that the weights are of, counted from 0.
        settings: the run's `settings.yaml`.
        results: the run's `results.json`.
        environment: what trained it: versions, hardware, commit, precision.
        data: provenance of the images that it was trained on; a run's own measurement is of their test split.
        tested: provenance of the images of a later evaluation; empty where that is the run's own.
        metadata: what stood with the weights.
    """

    network: nn.Module
    source: str
    measured: Facts = field(default_factory=dict)
    epoch: int | None = None
    settings: Facts = field(default_factory=dict)
    results: Facts = field(default_factory=dict)
    environment: Facts = field(default_factory=dict)
    data: Facts = field(default_factory=dict)
    tested: Facts = field(default_factory=dict)
    metadata: Facts = field(default_factory=dict)

    @classmethod
    @known_arguments
    def of(
        cls,
        source: "str | os.PathLike[str] | Record",
        *,
        results: str | os.PathLike[str] | None = None,
        **loading: Unpack[Loading],
    ) -> "Record":
        """Load a network and read what is known of it.

        Args:
            source: anything that `load_network` takes by name; a record is returned as it is.
            results: the file that `iad-ext evaluate --out` wrote for this network; goes before the run's own.
            loading: arguments of `load_network` (`architecture`, `num_classes` …).

        Raises:
            TypeError: an unknown argument, or one beside a record.
            ValueError: `results` is no such file, or is about other weights; the run's files are broken.
        """
        if isinstance(source, Record):
            if results is not None or loading:
                raise TypeError("a record is loaded already; leave out the arguments for loading it")
            return source
        network = load_network(source, **loading)
        path = Path(os.fspath(source).removeprefix("local-dir:")).expanduser()
        # the weights' file of a folder is read as the folder, unless it is told what it holds
        whole = path.name == "model.safetensors" and loading.get("architecture") is None
        facts = _of_run(path.parent if whole else path)
        if results is not None:
            facts |= _of_evaluation(Path(results), network)
        return cls(network=network, source=os.fspath(source), **facts)

    @property
    def architecture(self) -> str:
        """The name in timm's registry."""
        return architecture_of(self.network) or type(self.network).__name__

    @property
    def classes(self) -> int:
        """Number of logits."""
        return num_classes_of(self.network)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) that the network was made for."""
        return image_shape_of(self.network)

    @property
    def attacks(self) -> list[str]:
        """The attacks that were measured, in their usual order."""
        return [attack for attack in ATTACKS if attack in self.measured]

    @property
    def measured_on(self) -> Facts:
        """Provenance of the images that `measured` speaks of."""
        return self.tested or self.data

    @property
    def dataset(self) -> str | None:
        """What the data set that it was trained on is called; where that is not known, the one it was tested on."""
        return dataset_of(self.data or self.tested)

    @property
    def dataset_on_hub(self) -> str | None:
        """That data set's id on the hub; None for what is not there."""
        return hub_id_of(self.data or self.tested)


def dataset_of(data: Facts) -> str | None:
    """A data set's name as people say it (`cifar10`), its hub id, or its folder's name."""
    name = data.get("name")
    if not name:
        return None
    return PurePath(name).name if data.get("source") == "folder" and not data.get("id") else str(name)


def hub_id_of(data: Facts) -> str | None:
    """A data set's id on the hub; None for what is not there."""
    name = dataset_of(data)
    if name is not None and name in KNOWN:
        return None if name == "digits" else KNOWN[name].hub_id
    found = data.get("id") if data.get("source") == "hub" else None
    return str(found) if found else None


def shown_source(source: str | None) -> str | None:
    """Where images or a teacher came from: a hub id whole; of a path, its last parts."""
    return None if source is None else "/".join(PurePath(source).parts[-2:])


def run_folder_of(source: Path) -> Path | None:
    """The run folder that `source` is, or whose `best` or `last` it is."""
    for folder in (source, source.parent):
        if (
            folder.is_dir()
            and (folder / "settings.yaml").is_file()
            and (folder / "environment.json").is_file()
        ):
            return folder
    return None


def _of_run(source: Path) -> dict[str, Any]:
    run = run_folder_of(source)
    weights = (
        source if source != run else next((run / w for w in ("best", "last") if (run / w).is_dir()), source)
    )
    if not (weights / "model.safetensors").is_file():
        return {}
    metadata = saved_metadata(weights)
    facts: dict[str, Any] = {
        "metadata": metadata,
        "epoch": metadata.get("epoch"),
        "data": metadata.get("data") or {},
    }
    if run is None:
        return facts | {name: metadata[name] for name in FROM_EXPORT if metadata.get(name)}
    settings = dataclasses.asdict(settings_.from_yaml((run / "settings.yaml").read_text(encoding="utf-8")))
    environment = read_json(run / "environment.json")
    facts |= {
        "settings": settings,
        "environment": environment,
        "data": environment.get("data", facts["data"]),
    }
    if (run / "results.json").is_file():
        results = read_json(run / "results.json")
        facts["results"] = results
        # a run that goes on after it was measured has other weights than those measured
        if results.get("epochs", {}).get(weights.name) == metadata.get("epoch"):
            facts["measured"] = results.get(weights.name, {})
    return facts


def _of_evaluation(path: Path, network: nn.Module) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not {"weights", "measured", "data"} <= content.keys():
        raise ValueError(
            f"expected a file that iad-ext evaluate --out wrote, got {path}; evaluate the network again"
        )
    if content["weights"] != network_digest(network):
        raise ValueError(
            f"{path} was measured on other weights, those of {content.get('source')}; measure these: "
            "iad-ext evaluate MODEL --out FILE"
        )
    return {"measured": content["measured"], "tested": content["data"]}
