"""IAD from end to end in two minutes, on real images that need no download: scikit-learn's handwritten digits.

Two teachers, adversarially and naturally trained; three students distilled by ARD, IAD-I and IAD-II; then a table of
accuracies under attack and a picture. The results stay in runs/quickstart/.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ard_resnet18
import at_resnet18
import iad1_resnet18
import iad2_resnet18
import st_resnet18
import torch
import tyro

from iad_ext.assets import UsageError
from iad_ext.attacks import PGD
from iad_ext.backbones import load_network
from iad_ext.data import load_splits
from iad_ext.evaluation import format_table
from iad_ext.plots import comparison
from iad_ext.processes import say
from iad_ext.run import exit_codes, run
from iad_ext.settings import Overrides, Recipe, from_yaml, override


@dataclass(frozen=True)
class Quickstart:
    """IAD from end to end on handwritten digits, in about two minutes on two cores."""

    out: Path | None = None
    """Folder for the five run folders, the table and the picture; runs/quickstart, with other epochs or another seed
    in its name, when not given."""
    epochs: int = 12
    """Epochs of each of the five runs."""
    aa_limit: int = 64
    """AutoAttack on this many test images; the other attacks take all of them."""
    seed: int = 0
    """Seed of everything."""

    @property
    def folder(self) -> Path:
        """Where it goes: what is begun otherwise has a folder of its own."""
        if self.out is not None:
            return self.out
        asked = {"epochs": self.epochs, "seed": self.seed}
        changed = [f"-{name}{value}" for name, value in asked.items() if value != getattr(Quickstart, name)]
        return Path("runs") / "".join(["quickstart", *changed])


def main(settings: Quickstart) -> None:
    """Train the five networks, print the table, draw the picture; ends as a recipe does, with its exit codes."""
    with exit_codes():
        _refuse_another(settings)
        _run(settings)


def _refuse_another(settings: Quickstart) -> None:
    """See that the folder is free, or holds this quickstart, which then goes on.

    Raises:
        UsageError: it holds one of other epochs or another seed.
    """
    begun = settings.folder / "AT" / "settings.yaml"  # the first of the five
    if not begun.is_file():
        return
    try:
        train = from_yaml(begun.read_text(encoding="utf-8")).train
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{begun} cannot be read ({error}): delete {settings.folder}, or give another --out"
        ) from error
    if (train.epochs, train.seed) != (settings.epochs, settings.seed):
        raise UsageError(
            f"{settings.folder} holds a quickstart of --epochs {train.epochs} --seed {train.seed}, got --epochs "
            f"{settings.epochs} --seed {settings.seed}: delete {settings.folder}, or give another --out"
        )


def _run(settings: Quickstart) -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)  # images of 8 × 8 are too small to share out; waiting for each other costs more
    teachers: Overrides = {
        "teacher": str(settings.folder / "AT"),
        "natural_teacher": str(settings.folder / "ST"),
    }
    networks: dict[str, tuple[Recipe, Overrides]] = {
        "AT": (at_resnet18.RECIPE, {}),
        "ST": (st_resnet18.RECIPE, {}),
        "ARD": (ard_resnet18.RECIPE, teachers),
        "IAD-I": (iad1_resnet18.RECIPE, teachers),
        "IAD-II": (iad2_resnet18.RECIPE, teachers),
    }
    results: dict[str, dict[str, Any]] = {}
    for number, (name, (recipe, overrides)) in enumerate(networks.items(), start=1):
        say(f"\n=== {number} of {len(networks)}: {name}, {recipe.title} ===")
        result = run(_settings(settings, name, recipe, overrides))
        if result is not None:  # None on all but the main process
            results[name] = result["best"]
    if results:
        _report(settings, results, time.perf_counter() - began)


def _settings(quickstart: Quickstart, name: str, recipe: Recipe, overrides: Overrides) -> Any:
    """The recipe for digits: a small network, a few epochs, everything else the paper's."""
    return override(
        recipe.defaults(data="digits", epochs=quickstart.epochs),
        {
            "student.name": "cifar_resnet8",
            "train.seed": quickstart.seed,
            "eval.of": "best",
            "eval.aa_limit": quickstart.aa_limit,
            "precision": "fp32",  # the network is too small for anything else to pay
            "out": quickstart.folder / name,
            **overrides,
        },
    )


def _report(settings: Quickstart, results: dict[str, dict[str, Any]], seconds: float) -> None:
    table = format_table(results)
    say(
        "\nAccuracy in percent on the digits' test images, L∞ radius 0.1, at the epoch that was best on held-out "
        f"images\n\n{table}"
    )
    (settings.folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    for suffix in ("png", "svg"):
        comparison(
            results,
            title="Robust digits: teachers (AT, ST) and the students that they taught",
            path=settings.folder / f"picture.{suffix}",
            examples=_examples(settings),
        )
    say(f"\npicture   {settings.folder / 'picture.png'}\ndone in {seconds:.0f} s")


def _examples(settings: Quickstart) -> list[dict[str, Any]]:
    """Test digits as they are, and attacked through the natural teacher and through the IAD-I student."""
    test = load_splits("digits").test
    first = [int((test.labels == digit).nonzero()[0, 0]) for digit in range(test.num_classes)]
    images, labels = test.pixels(first), test.labels[first]
    rows = [{"label": "natural", "images": images, "captions": [str(int(label)) for label in labels]}]
    for name in ("ST", "IAD-I"):
        network = load_network(settings.folder / name)
        noise = torch.zeros_like(
            images
        )  # from the image itself: the picture shows the attack, not a random start
        attacked = PGD(network, eps=0.1, alpha=0.025, steps=20)(images, labels, noise=noise)
        with torch.inference_mode():
            seen = network(attacked).argmax(dim=1)
        captions = [f"{int(s)}" if s == y else f"read as {int(s)}" for s, y in zip(seen, labels, strict=True)]
        rows.append({"label": f"attacked\n({name})", "images": attacked, "captions": captions})
    return rows


if __name__ == "__main__":
    main(tyro.cli(Quickstart))
