"""How anything is timed here: contenders take turns in one process, and only ratios within a turn are reported.

A turn runs every contender once, in an order that rotates; a ratio is formed within each turn and the median over the
turns is the figure, with the smallest and the largest beside it. Warm-up and compilation are outside the clock. What is
known is written after every case, and a run that is started again goes on with the case that is missing.
"""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iad_ext import files, provenance
from iad_ext.precision import wait_for


@dataclass(kw_only=True)
class Contender:
    """One thing to be timed.

    Attributes:
        run: does the work once; the clock runs around it and the wait for the device.
        warm: done once before the first turn, outside the clock; `run` itself when None.
        close: gives back what it holds.
    """

    run: Callable[[], object]
    warm: Callable[[], object] | None = None
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Timings:
    """Seconds of every contender in every turn, and of each one's warm-up (compilation included)."""

    seconds: Mapping[str, Sequence[float]]
    warm_up: Mapping[str, float]

    def ratio(self, above: str, below: str) -> dict[str, float]:
        """Seconds of `above` over seconds of `below`, formed within each turn."""
        return spread(
            [a / b for a, b in zip(self.seconds[above], self.seconds[below], strict=True)],
        )

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            name: {**spread(seconds), "warm_up": round(self.warm_up[name], 4)}
            for name, seconds in self.seconds.items()
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and number of values."""
    return {
        "median": float(f"{statistics.median(values):.4g}"),
        "low": float(f"{min(values):.4g}"),
        "high": float(f"{max(values):.4g}"),
        "n": len(values),
    }


@dataclass(kw_only=True)
class Bench:
    """A run of the benchmarks: where, how long, and what is known so far.

    Attributes:
        device: what is timed on.
        budget: seconds for everything; cases get their share of it.
        out: folder of the results; None keeps nothing.
        quick: the smallest sizes and one turn: shows that the code runs, measures nothing.
        found: case -> what was found, as JSON.
    """

    device: torch.device
    budget: float
    out: Path | None = None
    quick: bool = False
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.about = {
            "quick": self.quick,
            "device": machine_kind(self.device),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            "python": platform.python_version(),
            "commit": provenance.commit(),
        }
        if self.out is not None and (self.out / "cases.json").exists():
            before = json.loads((self.out / "cases.json").read_text(encoding="utf-8"))
            if before["about"] == self.about:
                self.found = before["cases"]

    # ------------------------------------------------------------------------------------------ one case

    def case(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What `measure` finds, or found before an interruption; kept at once. A failure is a finding too."""
        if name not in self.found:
            began = time.monotonic()
            try:
                found = dict(measure())
            except (RuntimeError, ValueError, OSError) as error:
                found = {"failed": f"{type(error).__name__}: {error}"}
                if self.quick:
                    raise
            _tidy(self.device)
            found["took_s"] = round(time.monotonic() - began, 1)
            self.found[name] = found
            self._keep()
            print(f"{time.monotonic() - self.began:6.0f} s  {name:<44} {_sentence(found)}", flush=True)
        return dict(self.found[name])

    def race(
        self, contenders: Mapping[str, Contender], *, share: float, turns: int = 25, least: int = 2
    ) -> Timings:
        """Let the contenders take turns for their share of the budget, at least `least` and at most `turns`.

        A step that draws on the CPU is waited for on the device before the clock stops.
        """
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        warm_up = {}
        for name, contender in contenders.items():
            warm_up[name] = self._clocked(contender.warm or contender.run)
        until = time.monotonic() + share * self.budget
        order = list(contenders)
        gc.disable()  # a collection would fall on whoever is running
        try:
            for turn in range(1 if self.quick else turns):
                a_turn = sum(values[-1] for values in seconds.values()) if turn else 0.0
                if turn >= least and time.monotonic() + a_turn > until:
                    break
                for name in order:
                    seconds[name].append(self._clocked(contenders[name].run))
                order = order[1:] + order[:1]
                if not self.quick:
                    gc.collect()
        finally:
            gc.enable()
            for contender in contenders.values():
                contender.close()
        return Timings(seconds, warm_up)

    def _clocked(self, run: Callable[[], object]) -> float:
        wait_for(self.device)
        began = time.perf_counter()
        run()
        wait_for(self.device)
        return time.perf_counter() - began

    # ------------------------------------------------------------------------------------------ results

    def _keep(self) -> None:
        if self.out is not None:
            files.write_json(self.out / "cases.json", {"about": self.about, "cases": self.found})

    def report(self, name: str, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
        """Write one group's JSON and table; returns the table."""
        table = as_table(title, rows, notes, self.about)
        if self.out is not None:
            about = {"title": title, "about": self.about, "rows": list(rows), "notes": list(notes)}
            files.write_json(self.out / f"{name}.json", about)
            files.write_text(self.out / f"{name}.md", table)
        return table


def as_table(
    title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str], about: Mapping[str, Any]
) -> str:
    """Markdown: a column for each key that some row has, then where it was measured."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"# {title}", ""]
    if about["quick"]:
        lines += ["**A quick trial of the code: these figures mean nothing.**", ""]
    lines += [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(shown(row.get(column)) for column in columns) + " |" for row in rows),
        "",
        *(f"{note}\n" for note in notes),
    ]
    hardware = about["hardware"]
    where = ", ".join(hardware["gpus"][:1]) if about["device"].startswith("gpu") else hardware["cpu"]
    lines.append(
        f"{where}, {hardware['cores']} cores, {hardware['threads']} threads; torch {about['versions']['torch']}, "
        f"ART {about['versions']['adversarial-robustness-toolbox']}, torchattacks "
        f"{about['versions']['torchattacks']}; commit {str(about['commit'])[:12]}."
    )
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A cell: a spread as `median (low … high, n)`."""
    if isinstance(value, Mapping) and "median" in value:
        return f"**{value['median']:g}** ({value['low']:g} … {value['high']:g}, n={value['n']})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")


def _sentence(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"FAILED: {found['failed'][:200]}"
    parts = [
        f"{key} {value['median']:g}"
        for key, value in found.items()
        if isinstance(value, Mapping) and "median" in value
    ]
    return ", ".join([*parts, f"{found['took_s']} s"])


def machine_kind(device: torch.device) -> str:
    """A folder's name for such machines: `gpu-nvidia-h100…`, `cpu-amd-epyc-2-cores-bf16`."""
    if device.type == "cuda":
        return "gpu-" + _slug(torch.cuda.get_device_name(device))
    flags = _cpu_flags()
    extra = "-amx" if "amx_bf16" in flags else "-bf16" if "avx512_bf16" in flags else ""
    return f"cpu-{_slug(provenance.cpu_name())}-{provenance.usable_cores()}-cores{extra}"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
