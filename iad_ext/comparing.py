"""Two methods by what their networks were measured to be, image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from iad_ext import files, statistics
from iad_ext.evaluation import TITLES
from iad_ext.names import unknown
from iad_ext.statistics import Difference, Flags
from iad_ext.units import show_fraction

WHICH = ("best", "last")
ROUNDING = 1e-3  # points: one image of 60,000 is more


@dataclass(frozen=True)
class Measured:
    """What a measurement left of a network.

    Attributes:
        source: where it lies.
        right: by attack, whether the network is right on each image, in the test set's order.
        images: digest of the test set that they are the first of.
        eps: L∞ radius of the attacks.
    """

    source: Path
    right: Mapping[str, Flags]
    images: str
    eps: float


def verdicts_beside(results: Path) -> Path:
    """Where the verdicts image by image of an evaluation's JSON lie.

    Of `beta0.1` and `beta0.5` the part behind the dot tells them apart: it is no suffix.
    """
    return results.with_name(f"{results.name.removesuffix('.json')}.robust.safetensors")


def read_measured(source: str | Path, *, of: str = "best") -> Measured:
    """Read a run folder, or the JSON that `iad-ext evaluate --out` wrote, with the verdicts beside it.

    Args:
        source: either.
        of: `best` or `last`, of a run folder.

    Raises:
        ValueError: it is neither, is not measured yet, cannot be read, or the verdicts are another measurement's.
    """
    if of not in WHICH:
        raise ValueError(unknown("network of a run", of, WHICH))
    path = Path(source)
    results, verdicts = (
        (path / "results.json", path / "robust.safetensors")
        if path.is_dir()
        else (path, verdicts_beside(path))
    )
    try:
        content, held = files.read_json(results), load_file(verdicts)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: {error.filename} is missing; give measured run folders, or what iad-ext evaluate --out wrote"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    prefix = f"{of}/" if path.is_dir() else ""
    try:
        found = content[of] if path.is_dir() else content["measured"]
        images, eps = str(content["data"]["digest"]["test"]), float(found["protocol"]["eps"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} holds no measurement{f' of {of}' if path.is_dir() else ''}") from None
    right = {
        name.removeprefix(prefix): flags.astype(bool)
        for name, flags in held.items()
        if name.startswith(prefix)
    }
    for name, flags in right.items():
        if not _is_of(flags, found, name):
            raise ValueError(
                f"{verdicts} is not of the measurement in {results}: its {TITLES.get(name, name)} is "
                f"{100 * flags.mean():.2f}% on {len(flags)} images, that of the measurement "
                f"{found.get(name, 'not there')}; measure the network again"
            )
    return Measured(path, right, images, eps)


def _is_of(flags: Flags, found: Mapping[str, Any], attack: str) -> bool:
    """Whether verdicts come to the percentage that was measured."""
    percent = found.get(attack)
    return isinstance(percent, int | float) and abs(100 * float(flags.mean()) - percent) < ROUNDING


def compare(these: Sequence[Measured], against: Sequence[Measured]) -> dict[str, Difference]:
    """What one method's networks have over another's, by attack, on the images that all were asked.

    Pairs are the first with the first, the second with the second …, of the same seed. With two seeds or more the
    intervals hold their spread; with one pair they speak of these very networks.

    Raises:
        ValueError: not as many of each, other images or another radius, or no attack that all have met.
    """
    if not these or len(these) != len(against):
        raise ValueError(
            f"pairs are compared, the first with the first and so on: expected as many networks of each, got "
            f"{len(these)} and {len(against)}"
        )
    first = these[0]
    for other in (*these, *against):
        if other.images != first.images:
            raise ValueError(f"{other.source} was measured on other test images than {first.source}")
        if other.eps != first.eps:
            raise ValueError(
                f"{other.source} was attacked at {show_fraction(other.eps)}, {first.source} at "
                f"{show_fraction(first.eps)}"
            )
    common = [name for name in TITLES if all(name in each.right for each in (*these, *against))]
    if not common:
        raise ValueError(
            "there is no attack that all of these networks have met; measure them with the same --attacks"
        )
    return {name: _difference(name, these, against) for name in common}


def _difference(attack: str, these: Sequence[Measured], against: Sequence[Measured]) -> Difference:
    n = min(len(each.right[attack]) for each in (*these, *against))
    a, b = ([each.right[attack][:n] for each in side] for side in (these, against))
    spread = statistics.spread_of_differences([(a, b)]) if len(a) > 1 else None
    return statistics.paired_difference(a, b, spread=spread, same_seeds=True)


def as_json(found: Mapping[str, Difference]) -> dict[str, Any]:
    """Differences as JSON holds them."""
    return {
        name: {
            "difference": one.difference,
            "low": one.low,
            "high": one.high,
            "verdict": one.verdict,
            "mcnemar_p": one.mcnemar_p,
            "seeds": one.seeds,
            "seed_spread": one.seed_spread,
            "n": one.n,
        }
        for name, one in found.items()
    }
