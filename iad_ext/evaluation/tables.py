"""What stands beside a percentage: its interval, the machine and versions behind it, a table of many."""

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from iad_ext.evaluation import masking
from iad_ext.provenance import cpu_name
from iad_ext.types import Flags

# the attacks in the order of a table's columns, as people call them
TITLES = {
    "natural": "natural",
    "fgsm": "FGSM",
    "fgsm_plain": "FGSM, no random start",
    "pgd10": "PGD-10",
    "pgd20": "PGD-20",
    "cw_inf": "CW∞",
    "aa": "AutoAttack",
}
COLUMNS = tuple(TITLES)


def percent(flags: Flags) -> float:
    """Return how many of the flags are set, in percent."""
    return 100 * int(flags.sum()) / len(flags)


def interval(right: int, n: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of `right` out of `n`, in percent.

    It speaks of the choice of images only, neither of the attack's random starts nor of training.
    Source: Wilson (1927).
    """
    z = 1.959964
    share = right / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    return 100 * max(0.0, min(low, share)), 100 * min(1.0, max(high, share))


def hardware(device: torch.device) -> str:
    """Name the machine part that computes on `device`, and for a CPU the threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} on {platform.machine()}"
    threads = torch.get_num_threads()
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{cpu_name()}, {count}, {torch.backends.cpu.get_cpu_capability()}"


def images(result: Mapping[str, Any], attack: str) -> int:
    """On how many images `attack` was run: `n`, or `n_ATTACK` where that attack took fewer."""
    return int(result.get(f"n_{attack}", result["n"]))


def with_autoattack(others: dict[str, Any], aa: dict[str, Any]) -> dict[str, Any]:
    """One result from attacks on all images and AutoAttack on the first of them; `n_aa` says how many.

    What casts doubt on AutoAttack is looked for beside the other attacks on these images, as `evaluate` does it.
    """
    n = aa["n"]
    beside = {name: stands[:n] for name, stands in others["robust"].items() if name != "natural"}
    fell_to_square = torch.zeros(n, dtype=torch.bool)
    fell_to_square[aa["protocol"]["attacks"]["aa"]["fell_to_square"]] = True
    known = {(flag["flag"], flag["attack"]) for flag in others["flags"]}  # of the network, on more images
    own = (flag for flag in aa["flags"] if (flag["flag"], flag["attack"]) not in known)
    strengths = masking.from_strengths(beside | {"aa": aa["robust"]["aa"]})
    flags = [
        *others["flags"],
        *(flag for flag in own if flag["flag"] != "square_beats_gradients"),  # it saw AutoAttack alone
        *masking.square_beats_gradients(fell_to_square, beside),
        *(flag for flag in strengths if flag["attack"] == "aa"),
    ]
    merged = others | {"aa": aa["aa"], "n_aa": n, "flags": flags}
    for key in ("robust", "interval"):
        merged[key] = others[key] | {"aa": aa[key]["aa"]}
    merged["protocol"] = others["protocol"] | {"aa": aa["protocol"]}
    return merged


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out results as plain text: a row a network, a column an attack, percentages with two decimals.

    The number of images stands under each attack's name, or in a last column where the networks' numbers
    differ. Below the table, a line for each network whose evaluation raised flags.

    Args:
        results: by the network's name, what `evaluate` returned.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("results: expected at least one evaluation, as {name: evaluate(…)}; got none")
    attacks = [attack for attack in COLUMNS if any(attack in result for result in results.values())]
    sizes = [
        {images(result, attack) for result in results.values() if attack in result} for attack in attacks
    ]
    agree = all(len(of_attack) == 1 for of_attack in sizes)
    rows = [["", *attacks], ["", *(f"n={n}" for (n,) in sizes)]] if agree else [["", *attacks, "n"]]
    for name, result in results.items():
        cells = [f"{result[attack]:.2f}" if attack in result else "–" for attack in attacks]
        counts = dict.fromkeys(str(images(result, attack)) for attack in attacks if attack in result)
        rows.append([name, *cells, *([] if agree else ["/".join(counts)])])
    return "\n".join(aligned(rows) + _doubts(results))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))]
        )
        for row in rows
    ]


def _doubts(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, result in results.items():
        flags = ", ".join(f"{flag['flag']} ({flag['attack']})" for flag in result.get("flags", ()))
        lines += [f"! {name}: {flags}"] if flags else []
    return lines
