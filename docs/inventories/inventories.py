"""The inventories that links into other projects' documentation are looked up in.

Building the docs reads the files NAME.inv beside this one and nothing from a network. `make docs-inventories` fetches
the projects' own, on request; until somebody has done so, an inventory is one of the names below, written by hand
(`python docs/inventories/inventories.py write`): its fourth line says so.
"""

import sys
import urllib.request
import zlib
from pathlib import Path

HERE = Path(__file__).parent
BY_HAND = "Written by hand. The remainder of this file is compressed using zlib."

# project -> where its documentation is
ADDRESSES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "timm": "https://huggingface.co/docs/timm/",
    "art": "https://adversarial-robustness-toolbox.readthedocs.io/en/latest/",
    "accelerate": "https://huggingface.co/docs/accelerate/",
    "datasets": "https://huggingface.co/docs/datasets/",
}

# project -> name -> (role, page); the place on the page is the name itself. What docstrings and pages link to.
NAMES: dict[str, dict[str, tuple[str, str]]] = {
    "python": {
        **dict.fromkeys(("bool", "float", "int", "object", "property"), ("class", "library/functions.html")),
        **dict.fromkeys(
            ("str", "dict", "list", "tuple", "frozenset", "set"), ("class", "library/stdtypes.html")
        ),
        "slice": ("class", "library/functions.html"),
        "type": ("class", "library/functions.html"),
        "Ellipsis": ("data", "library/constants.html"),
        "None": ("data", "library/constants.html"),
        **dict.fromkeys(
            [
                "AttributeError",
                "FileNotFoundError",
                "KeyboardInterrupt",
                "NotImplementedError",
                "OSError",
                "RuntimeError",
                "TypeError",
                "ValueError",
            ],
            ("exception", "library/exceptions.html"),
        ),
        **{
            f"collections.abc.{name}": ("class", "library/collections.abc.html")
            for name in ("Callable", "Iterable", "Iterator", "Mapping", "Sequence")
        },
        "contextlib.AbstractContextManager": ("class", "library/contextlib.html"),
        "os.PathLike": ("class", "library/os.html"),
        "pathlib.Path": ("class", "library/pathlib.html"),
        "typing.Any": ("data", "library/typing.html"),
        "typing.Literal": ("data", "library/typing.html"),
    },
    "numpy": {
        "numpy.ndarray": ("class", "reference/generated/numpy.ndarray.html"),
    },
    "torch": {
        "torch.Tensor": ("class", "tensors.html"),
        "torch.device": ("class", "tensor_attributes.html"),
        "torch.dtype": ("class", "tensor_attributes.html"),
        "torch.Generator": ("class", "generated/torch.Generator.html"),
        "torch.nn.Module": ("class", "generated/torch.nn.Module.html"),
        "torch.nn.BatchNorm2d": ("class", "generated/torch.nn.BatchNorm2d.html"),
        "torch.nn.parameter.Parameter": ("class", "generated/torch.nn.parameter.Parameter.html"),
        "torch.optim.Optimizer": ("class", "optim.html"),
        "torch.optim.SGD": ("class", "generated/torch.optim.SGD.html"),
        "torch.optim.lr_scheduler.LambdaLR": (
            "class",
            "generated/torch.optim.lr_scheduler.LambdaLR.html",
        ),
    },
    "timm": {
        "timm.create_model": ("function", "reference/models"),
        "timm.list_models": ("function", "reference/models"),
        "timm.models.register_model": ("function", "reference/models"),
    },
    "art": {
        "art.attacks.EvasionAttack": ("class", "modules/attacks.html"),
        "art.data_generators.DataGenerator": ("class", "modules/data_generators.html"),
        "art.defences.trainer.Trainer": ("class", "modules/defences/trainer.html"),
        "art.estimators.classification.PyTorchClassifier": (
            "class",
            "modules/estimators/classification.html",
        ),
    },
    "accelerate": {
        "accelerate.Accelerator": ("class", "package_reference/accelerator"),
    },
    "datasets": {
        "datasets.Dataset": ("class", "package_reference/main_classes"),
        "datasets.Image": ("class", "package_reference/main_classes"),
        "datasets.ClassLabel": ("class", "package_reference/main_classes"),
        "datasets.load_dataset": ("function", "package_reference/loading_methods"),
    },
}


def by_hand(project: str) -> bytes:
    """The inventory of a project's names above, in Sphinx's format, version 2."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# {BY_HAND}\n"
    lines = [f"{name} py:{role} 1 {page}#$ -\n" for name, (role, page) in sorted(NAMES[project].items())]
    return head.encode() + zlib.compress("".join(lines).encode(), 9)


def is_by_hand(content: bytes) -> bool:
    """Whether an inventory is one of ours and not the project's own."""
    return f"# {BY_HAND}\n".encode() in content[:200]


def write() -> None:
    """Write those that are by hand; fetched ones stay."""
    for project in ADDRESSES:
        file = HERE / f"{project}.inv"
        if not file.exists() or is_by_hand(file.read_bytes()):
            file.write_bytes(by_hand(project))


def fetch() -> int:
    """Fetch every project's own inventory; one that cannot be had leaves what was there."""
    missing = 0
    for project, address in ADDRESSES.items():
        try:
            with urllib.request.urlopen(f"{address}objects.inv", timeout=30) as answer:
                content = answer.read()
            if not content.startswith(b"# Sphinx inventory version"):
                raise OSError("what came is no inventory")
        except OSError as error:
            print(f"{project}: {error}; the file stays as it was", file=sys.stderr)
            missing += 1
        else:
            (HERE / f"{project}.inv").write_bytes(content)
            print(f"{project}: {len(content)} bytes")
    return 1 if missing else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    elif sys.argv[1:] == ["fetch"]:
        sys.exit(fetch())
    else:
        sys.exit("inventories.py write | fetch")
