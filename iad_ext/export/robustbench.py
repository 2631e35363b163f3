"""RobustBench's `model_info` of a network, and a loader for its benchmark."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from iad_ext.backbones import Loading
from iad_ext.evaluation import images
from iad_ext.export.record import Record, dataset_of
from iad_ext.files import write_json, write_text
from iad_ext.names import known_arguments
from iad_ext.units import show_fraction

LOADER = "robustbench_loader.py"
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000}  # what RobustBench measures on


@known_arguments
def robustbench_model_info(
    source: str | os.PathLike[str] | Record,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    title: str | None = None,
    link: str = "",
    authors: str = "",
    venue: str = "",
    additional_data: bool = False,
    results: str | os.PathLike[str] | None = None,
    **loading: Unpack[Loading],
) -> Path:
    """Write `model_info/DATA/Linf/NAME.json` as RobustBench keeps it, and `robustbench_loader.py`.

    Args:
        source: a run folder or another source of `Record.of`, measured with `natural` and `aa`.
        folder: an exported network (`to_folder`), which the loader loads.
        name: RobustBench's id of the model, such as `Zhu2022Reliable_RN18`; the folder's name when None.
        title: of the paper; `name` when None.
        link: to the paper.
        authors: comma-separated.
        venue: where it appeared; RobustBench takes none for unpublished.
        additional_data: whether other images than the data set's had a part in training, a teacher's included; they
            had where the run itself trained on extra images.
        results: what `iad-ext evaluate --out` wrote for this network; goes before the run's own.
        loading: for a source by name, arguments of `load_network`.

    Returns:
        The JSON file.

    Raises:
        ValueError: natural accuracy or AutoAttack was not measured, or nobody knows on which data.
    """
    record = Record.of(source, results=results, **loading)
    folder = Path(folder)
    name = name or folder.resolve().name
    require_measured(record)
    info: dict[str, Any] = {
        "link": link,
        "name": title or name,
        "authors": authors,
        "additional_data": additional_data or bool((record.settings.get("data") or {}).get("extra")),
        "number_forward_passes": 1,
        "dataset": str(dataset_of(record.measured_on)),
        "venue": venue,
        "architecture": record.architecture,
        "eps": show_fraction(record.measured["protocol"]["eps"]),
        "clean_acc": f"{record.measured['natural']:.2f}",
        "reported": f"{record.measured['aa']:.2f}",
        "autoattack_acc": f"{record.measured['aa']:.2f}",
        "footnote": _footnote(record),
        "unreliable": bool(record.measured.get("flags")),
    }
    path: Path = folder / "model_info" / info["dataset"].replace("/", "--") / "Linf" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, info)
    write_text(folder / LOADER, _loader(name, info))
    return path


def require_measured(record: Record) -> None:
    """Raise a ValueError where what RobustBench states was not measured."""
    missing = [attack for attack in ("natural", "aa") if attack not in record.measured]
    if missing or dataset_of(record.measured_on) is None:
        raise ValueError(
            f"RobustBench's model_info needs {' and '.join(missing) or 'the data set'} of {record.source}, "
            "which is not known; measure it with: iad-ext evaluate MODEL --attacks natural,aa --out FILE, "
            "then give --results FILE"
        )


def _footnote(record: Record) -> str:
    """What keeps these figures from standing beside RobustBench's."""
    n, full = images(record.measured, "aa"), TEST_IMAGES.get(dataset_of(record.measured_on) or "")
    settings = record.measured["protocol"].get("aa", record.measured["protocol"])["attacks"]["aa"]
    said = []
    if full is None:
        said.append("RobustBench has no leaderboard for this data set.")
    if n != full:
        said.append(f"AutoAttack on {n} test images only.")
    if images(record.measured, "natural") != full:
        said.append(f"Clean accuracy on {images(record.measured, 'natural')} test images.")
    if settings["version"] != "standard":
        said.append(f"AutoAttack was not the standard one ({settings['version']}).")
    if note := record.measured_on.get("encoding_note"):
        said.append(f"Images: {note}.")
    return " ".join(said)


def _loader(name: str, info: Mapping[str, Any]) -> str:
    # names stand as Python writes them, in comments: any quotes and braces leave the file a program
    return f'''# {name!r}: the network in this folder, for RobustBench's benchmark. Needs iad-ext.
#
# It takes pixels in [0, 1] and returns logits, as RobustBench expects:
#
#     from robustbench.eval import benchmark
#     benchmark(load_model(), dataset={info["dataset"]!r}, threat_model="Linf", eps={info["eps"]})

from pathlib import Path

from iad_ext import load_network


def load_model():
    """Return the network, in eval mode on the CPU."""
    return load_network(Path(__file__).parent)


if __name__ == "__main__":
    network = load_model()
    parameters = sum(p.numel() for p in network.parameters())
    print({name!r} + f": {{parameters:,}} parameters, {{network.num_classes}} classes")
'''
