"""A study on a GPU machine without a network, lent for minutes at a time: what goes there, runs there, comes back.

Every call is whole in itself: it unpacks what it is given, trains what fits in its time, measures in what is left, and
packs what is new into files of limited size. Networks travel in half precision, and teach and are measured as they
travel, so that it makes no difference where. A run that does not end in its call goes on in the next one where the
machine still has it, and is begun again where it does not.
"""

import dataclasses
import hashlib
import io
import logging
import math
import shlex
import shutil
import statistics
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from tyro.conf import Positional, UseAppendAction, subcommand

from iad_ext import checkpoint, files, names, provenance, spelling
from iad_ext import run as run_
from iad_ext.backbones import load_network, network_digest
from iad_ext.entrants import written_of_teacher
from iad_ext.evaluation import gallery
from iad_ext.plan import Plan, load_data
from iad_ext.settings import override
from iad_ext.signals import Interrupted, Stop
from iad_ext.studies import report
from iad_ext.studies.grid import Cell, Choices, Grid, expand, file_of, measured_by, read, seeds_of
from iad_ext.studies.overrides import Overrides, from_command_line
from iad_ext.studies.results import CHECKPOINTS
from iad_ext.studies.runner import Outcome, Runner, has_results, is_finished, refuse_others

log = logging.getLogger(__name__)

MEBIBYTE = 2**20
PART = 14 * MEBIBYTE  # a part's size at most: below 15 million bytes
BUNDLE = "bundle.json"
WEIGHTS = "model.safetensors"
SQUEEZED = ".z"  # a bundle's networks end in it
# says when and where a run was begun: what tells it from another one of its settings
BEGUN = "environment.json"
# of a run folder, what a table, a report or the next round reads; checkpoints stay where they are
SMALL = (
    "settings.yaml",
    "environment.json",
    "metrics.jsonl",
    "history.jsonl",
    "results.json",
    "robust.safetensors",
    "gallery.safetensors",
)
PACKING = 20.0  # seconds kept for it at a call's end
STARTING = 60.0  # seconds of a run beside its epochs: start, validation of the teachers, natural accuracy
MARGIN = 1.15  # epochs take longer than the shortest of them


# ------------------------------------------------------------------------------------------- networks


def rounded(network: nn.Module) -> nn.Module:
    """Round the weights of convolutions and linear layers to half precision, in place; they stay fp32."""
    with torch.no_grad():
        for parameter in network.parameters():
            if _travels_in_half(parameter):
                parameter.copy_(parameter.half())
    return network


def in_half(file: Path) -> bytes:
    """A network's safetensors file with those weights in half precision and everything else as it was."""
    with safe_open(file, framework="pt") as held:
        metadata = held.metadata()
    state = {
        name: tensor.half() if _travels_in_half(tensor) else tensor
        for name, tensor in load_file(file).items()
    }
    return save(state, metadata)


def _travels_in_half(tensor: torch.Tensor) -> bool:
    """Weights, not BatchNorm's vectors: they are small, and variances do not fit half precision's range."""
    return tensor.ndim >= 2 and tensor.dtype == torch.float32


def squeezed(content: bytes) -> bytes:
    """Compress a network's file without loss, to 0.86 of it: of two bytes one is an exponent, like the others."""
    return zlib.compress(content[::2] + content[1::2], level=1)


def unsqueezed(content: bytes) -> bytes:
    """What `squeezed` was given."""
    apart = zlib.decompress(content)
    whole, half = bytearray(len(apart)), -(-len(apart) // 2)
    whole[::2], whole[1::2] = apart[:half], apart[half:]
    return bytes(whole)


def round_kept(cell: Cell) -> None:
    """Round a trained run's networks where they lie: its students have one teacher, whichever machine they are on."""
    for which in CHECKPOINTS:
        file = cell.folder / which / WEIGHTS
        files.write_whole(file, in_half(file))


# ------------------------------------------------------------------------------------------- bundles


@dataclass(frozen=True)
class Packed:
    """What a bundle came to.

    Attributes:
        files: paths that it holds, relative to the runs' folder.
        parts: files that it was split into.
        size: bytes in all.
        left_out: paths that would not fit.
    """

    files: tuple[str, ...]
    parts: tuple[Path, ...]
    size: int
    left_out: tuple[str, ...]


def networks_wanted(cells: Sequence[Cell]) -> Iterator[Path]:
    """Networks that the next call needs, in the order of their worth.

    First come teachers of what is not trained, then what is not measured, then its teachers, whom its gallery asks.
    """
    trained = [cell for cell in cells if has_results(cell.folder)]
    needed = {folder for cell in cells if not has_results(cell.folder) for folder in cell.needs}
    unmeasured = [(cell, left) for cell in trained if (left := left_to_measure(cell))]
    asked = {_teacher_of(cell) for cell, left in unmeasured if _asked(cell)[0] in left}
    wanted = [cell.folder / "best" for cell in trained if cell.folder in needed]
    wanted += [_network_of(cell, which) for cell, left in unmeasured for which in left]
    wanted += [cell.folder / "best" for cell in trained if cell.folder in asked]
    yield from dict.fromkeys(wanted)


def pack(
    cells: Sequence[Cell], root: Path, into: Path, *, most: int, have: Mapping[str, str], all_networks: bool
) -> Packed:
    """Write a bundle of finished runs into a folder.

    Args:
        cells: of the study.
        root: the runs' folder, that paths are relative to.
        into: folder for the parts and `bundle.json`.
        most: bytes in all.
        have: SHA-256 by path of what the other side has; left out.
        all_networks: the best networks of measured runs too, after those that are needed, as far as they fit.
    """
    into.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    entries: dict[str, bytes] = {}
    left_out = []
    size = 0
    for file in _files_wanted(cells, all_networks=all_networks):
        name = entry = str(file.relative_to(root))
        content = travels = file.read_bytes()
        if have.get(name) == _sha256(content):
            continue
        if file.name == WEIGHTS:
            content = in_half(file)
            entry, travels = name + SQUEEZED, squeezed(content)
        if size + len(travels) + 2048 > most:
            left_out.append(name)
            continue
        sums[name], entries[entry] = _sha256(content), travels
        size += len(travels) + 2048  # tar's header and padding
    tarred = _tar(entries)
    parts = []
    for number, start in enumerate(range(0, len(tarred), PART)):
        part = into / f"bundle-{number:02d}.part"
        files.write_whole(part, tarred[start : start + PART])
        parts.append(part)
    about = {
        "parts": {part.name: _sha256(part.read_bytes()) for part in parts},
        "files": sums,
    }
    files.write_json(into / BUNDLE, about)
    return Packed(tuple(sums), tuple(parts), len(tarred), tuple(left_out))


def _files_wanted(cells: Sequence[Cell], *, all_networks: bool) -> Iterator[Path]:
    """In the order of their worth."""
    trained = [cell for cell in cells if has_results(cell.folder)]
    for cell in trained:
        yield from (file for name in SMALL if (file := cell.folder / name).is_file())
        if not is_finished(cell):  # what is measured so far
            yield from sorted((cell.folder / "evaluation").glob("*.safetensors"))
    networks = list(networks_wanted(cells))
    if all_networks:
        networks += [cell.folder / "best" for cell in trained if cell.folder / "best" not in networks]
    for network in networks:
        yield from (file for name in ("config.json", WEIGHTS) if (file := network / name).is_file())


def _tar(contents: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def unpack(bundle: Path, root: Path) -> dict[str, str]:
    """Put a bundle's files into the runs' folder; returns their SHA-256 by path.

    Networks that are there already are left as they are: they may be the originals in full precision.

    Raises:
        ValueError: there is no bundle, or it is not whole.
    """
    if not (bundle / BUNDLE).is_file():
        raise ValueError(
            f"there is no {bundle / BUNDLE}; give the folder that came back, with all of its files"
        )
    about = files.read_json(bundle / BUNDLE)
    parts = []
    for name, wanted in about["parts"].items():
        part = bundle / Path(name).name
        if not part.is_file() or _sha256(content := part.read_bytes()) != wanted:
            raise ValueError(
                f"{part} is missing or not what was packed; copy the bundle again, all of its parts"
            )
        parts.append(content)
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        others = {
            file.parent
            for entry in archive
            if (file := root / entry.name).name == BEGUN
            and file.exists()
            and file.read_bytes() != _content(archive, entry)
        }
        for folder in others:
            log.warning("%s is another run than the bundle's; it is left as it is", folder)
        for entry in archive:
            file = root / entry.name.removesuffix(SQUEEZED)
            if {file.parent, file.parent.parent} & others:
                continue
            if not (file.exists() and file.name in (WEIGHTS, "config.json")):
                archive.extract(entry, root, filter="data")
                if entry.name.endswith(SQUEEZED):
                    files.write_whole(file, unsqueezed((root / entry.name).read_bytes()))
                    (root / entry.name).unlink()
    found: dict[str, str] = about["files"]
    return found


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    held = archive.extractfile(entry)
    return b"" if held is None else held.read()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------- a call


def call(
    grid: Grid,
    *,
    carried: Path | None,
    back: Path,
    minutes: float,
    most: int,
    say: Callable[[str], None] = print,
) -> Packed:
    """One call on the GPU machine: unpack, train, measure, pack.

    Args:
        grid: the study.
        carried: folder with the bundle that came along; None where none did.
        back: folder for what goes back.
        minutes: that the call has.
        most: bytes that may go back.
        say: where a line of progress goes.

    Raises:
        ValueError: what came along is not whole, or a folder of the study holds another run.
    """
    until = time.monotonic() + 60 * minutes - PACKING
    root = grid.choices.root
    have: dict[str, str] = {}
    if carried is not None and (carried / BUNDLE).is_file():
        have = unpack(carried, root)
        say(f"carried    {len(have)} files")
    refuse_others(grid.cells)
    try:
        _work(grid, until, say)
    finally:  # whatever went wrong, what is finished goes back
        packed = pack(grid.cells, root, back, most=most, have=have, all_networks=True)
        mib = packed.size / MEBIBYTE
        say(f"packed     {len(packed.files)} files, {mib:.1f} MiB in {len(packed.parts)} parts")
        _say_left_out(packed, most, say)
    return packed


def _say_left_out(packed: Packed, most: int, say: Callable[[str], None]) -> None:
    for name in packed.left_out:
        say(f"left out   {name}: it would be more than {most / MEBIBYTE:g} MiB")


def _work(grid: Grid, until: float, say: Callable[[str], None]) -> None:
    """Train what fits, then measure; what does not fit is begun only where there is nothing else to do."""
    failed: set[Path] = set()
    while (left := until - time.monotonic()) > 0:
        ready = [
            cell
            for cell in grid.cells
            if not has_results(cell.folder)
            and cell.folder not in failed
            and all(map(has_results, cell.needs))
        ]
        fitting = [cell for cell in ready if seconds_needed(cell, grid.cells) <= left]
        unmeasured = [cell for cell in grid.cells if _measurable(cell)]
        if not fitting and unmeasured:
            try:
                _measure_all(unmeasured, until, say)
            except Interrupted as stopped:
                say(f"stopped    {stopped}; what is measured is kept")
                return
            continue
        if not ready:
            return
        cell = (fitting or ready)[0]
        outcome: Outcome = Runner([measured_by(cell, ("natural",))], budget=left, say=say).run()
        failed |= outcome.failed.keys()
        for trained in outcome.finished:
            round_kept(trained)
        if outcome.stopped:
            return


def seconds_needed(cell: Cell, cells: Sequence[Cell]) -> float:
    """How long a run will take, by what others of the study took for a pass through the network; 0 if none did."""
    rates = []
    for other in cells:
        lines = checkpoint.read_lines(other.folder / "metrics.jsonl")
        seconds = [float(line["time/epoch_s"]) for line in lines if line.get("time/epoch_s")]
        passes = Plan.of(other.settings).forward_passes(other.settings.train.epochs - 1)[0]
        if seconds and passes >= 10:  # a run without attacks is bound by other things
            rates.append(statistics.median(seconds) / passes)
    if not rates:
        return 0.0
    epochs = cell.settings.train.epochs - len(checkpoint.read_lines(cell.folder / "metrics.jsonl"))
    passes = Plan.of(cell.settings).forward_passes(cell.settings.train.epochs - 1)[0]
    return MARGIN * max(rates) * passes * epochs + STARTING


def left_to_measure(cell: Cell) -> list[str]:
    """The checkpoints of a trained run that are not measured as its study wants."""
    if not cell.labels or not has_results(cell.folder):
        return []
    return [which for which in _asked(cell) if not is_finished(_of_checkpoint(cell, which))]


def _asked(cell: Cell) -> tuple[str, ...]:
    return names.words(cell.settings.eval.of)


def _of_checkpoint(cell: Cell, which: str) -> Cell:
    """The same run, measured by one checkpoint."""
    return dataclasses.replace(cell, settings=override(cell.settings, {"eval.of": which}))


def _network_of(cell: Cell, which: str) -> Path:
    """The folder of a checkpoint's network; where the last epoch was the best, `last` is `best`."""
    epochs = run_.read_results(cell.folder)["epochs"]
    return cell.folder / ("best" if epochs[which] == epochs["best"] else which)


def _measurable(cell: Cell) -> list[str]:
    """Of what is left to measure, the checkpoints whose networks are here."""
    return [which for which in left_to_measure(cell) if (_network_of(cell, which) / WEIGHTS).is_file()]


def _teacher_of(cell: Cell) -> Path | None:
    """The run folder of T_at; None where there is none, or it is no run of the study."""
    return next((folder for folder in cell.needs if str(folder) == cell.settings.teacher), None)


def _measure_all(cells: Sequence[Cell], until: float, say: Callable[[str], None]) -> None:
    with Stop() as stop:

        def after_batch() -> None:
            if stop or time.monotonic() > until:
                raise Interrupted(stop.asked_by or "the time is up")

        for cell in cells:
            began = time.monotonic()
            measure(cell, after_batch)
            say(f"measured   {cell.folder} ({(time.monotonic() - began) / 60:.1f} min)")


def measure(cell: Cell, after_batch: Callable[[], object] | None = None) -> None:
    """Measure a trained run by all that its study wants, from those of its networks that are here, as they travel.

    Raises:
        Interrupted: whatever `after_batch` raises; what is measured is kept, and the same call goes on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = load_data(cell.settings)
    left = _measurable(cell)
    for source in dict.fromkeys(_network_of(cell, which) for which in left):
        network = rounded(load_network(source)).to(device)
        found = run_.measure(network, splits.test, cell.settings, folder=cell.folder, after_batch=after_batch)
        checkpoints = [which for which in left if _network_of(cell, which) == source]
        if gallery.ATTACK in cell.attacks and _asked(cell)[0] in checkpoints:
            run_.keep_gallery(
                network,
                splits,
                cell.settings,
                teacher=_load_teacher(cell, device),
                folder=cell.folder,
                which=_asked(cell)[0],
                after_batch=after_batch,
            )
        _take_in(cell, checkpoints, found)


def _load_teacher(cell: Cell, device: torch.device) -> nn.Module | None:
    folder = _teacher_of(cell)
    if folder is None or not (folder / "best" / WEIGHTS).is_file():
        return None
    return rounded(load_network(folder / "best")).to(device).requires_grad_(False)


def _take_in(cell: Cell, checkpoints: Sequence[str], found: Mapping[str, Any]) -> None:
    """Put what one network was found to be into the run's results, beside the checkpoints that are measured already."""
    folder, left = cell.folder, left_to_measure(cell)
    before = [which for which in _asked(cell) if which not in left]
    held = load_file(folder / "robust.safetensors") if before else {}
    flags = {name: robust for name, robust in held.items() if name.partition("/")[0] in before}
    results = run_.read_results(folder)
    for which in set(CHECKPOINTS) - set(before):  # not as the study wants it
        results.pop(which, None)
    for which in checkpoints:
        flags |= {f"{which}/{attack}": robust.to(torch.uint8) for attack, robust in found["robust"].items()}
        results[which] = {key: value for key, value in found.items() if key != "robust"}
    of = [which for which in _asked(cell) if which in (*before, *checkpoints)]
    results |= {
        "evaluation": {**results["evaluation"], **vars(cell.settings.eval), "of": ",".join(of)},
        "weights": "rounded to half precision",
    }
    files.write_whole(folder / "robust.safetensors", save(flags))
    files.write_json(folder / "results.json", results)
    sums = {name: checkpoint.sha256(folder / name) for name in run_.RESULT_FILES}
    line = {"event": "measured", "time": provenance.now(), "weights": results["weights"], "files": sums}
    checkpoint.append_line(folder / "history.jsonl", line)


# ------------------------------------------------------------------------------------------- between calls

SCRIPT = """#!/bin/bash
# One call on the GPU machine, from the root of the source tree:
#   bash {folder}/round.sh OUT
# OUT is the folder whose files go back.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if compgen -G "$here/wheels/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$here/.site" \\
        "$here"/wheels/*.whl
fi
export PYTHONPATH="$here/.site:$PWD" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec python3 recipes/studies/rounds.py run "$here"/{study} --carried "$here" --back "${{1:?usage: round.sh OUT}}" \\
    --minutes {minutes:g} --most {most:g} {options}
"""


def prepare(
    grid: Grid,
    folder: Path,
    *,
    file: Path,
    wheels: Path | None,
    minutes: float,
    most: int,
    carry: int,
    words: Sequence[str],
    say: Callable[[str], None] = print,
) -> int:
    """Fill a folder with all that travels beside the source tree; returns its size in bytes.

    Args:
        grid: the study, with what is finished of it here.
        folder: made, or emptied.
        file: the study's own, which travels along: there may be none of that name there, or another one.
        wheels: folder of packages that the machine lacks.
        minutes: of a call.
        most: bytes that may come back.
        carry: bytes of finished runs that may go there.
        words: the command line there, but for where the images are: they travel along.
        say: where a line of progress goes.

    Raises:
        ValueError: the folder is something else's, or one that should travel is not there or has no packages.
    """
    paths = {
        cell.settings.data.name: path for cell in grid.cells if (path := cell.settings.data.path) is not None
    }
    study = file.read_text(encoding="utf-8")  # it may lie in the folder, which is emptied
    for needed in {*paths.values()} if wheels is None else {*paths.values(), wheels}:
        if not needed.is_dir():
            raise ValueError(f"there is no folder {needed}")
    if wheels is not None and not any(wheels.glob("*.whl")):
        raise ValueError(
            f"--wheels: {wheels} holds no packages (*.whl); leave it out where the machine has them all"
        )
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "round.sh").exists():
            raise ValueError(f"{folder} is not empty and not of an earlier round; give another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    options = [shlex.quote(word) for word in words]
    several = len(grid.choices.data or grid.study.data) > 1  # then --data.path holds a folder for each
    for name, path in paths.items():
        place = f"data/{name if several else path.name}"
        shutil.copytree(path, folder / place)
        if "--data.path" not in options:
            options += ["--data.path", f'"$here"/{"data" if several else shlex.quote(place)}']
    study_there = f"{grid.study.name}.yaml"
    (folder / study_there).write_text(study, encoding="utf-8")
    if wheels is not None:
        shutil.copytree(wheels, folder / "wheels")
    packed = _pack_whole_teachers(grid, folder, carry, say)
    script = SCRIPT.format(
        folder=folder.name,
        study=shlex.quote(study_there),
        minutes=minutes,
        most=most / MEBIBYTE,
        options=" ".join(options),
    )
    (folder / "round.sh").write_text(script, encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    _say_left_out(packed, carry, say)
    say(f"prepared   {folder}: {size / MEBIBYTE:.1f} MiB, {len(packed.files)} files of finished runs")
    return size


def _pack_whole_teachers(grid: Grid, folder: Path, carry: int, say: Callable[[str], None]) -> Packed:
    """Pack what the next call needs; a teacher whose network does not fit stays behind, to be trained again there."""
    cells = list(grid.cells)
    teachers = {needed for cell in cells if not has_results(cell.folder) for needed in cell.needs}
    while True:
        packed = pack(cells, grid.choices.root, folder, most=carry, have={}, all_networks=False)
        left = {grid.choices.root / name for name in packed.left_out}
        lacking = [
            cell for cell in cells if cell.folder in teachers and cell.folder / "best" / WEIGHTS in left
        ]
        if not lacking:
            return packed
        for part in packed.parts:
            part.unlink()
        cells.remove(lacking[-1])
        say(f"too large  {lacking[-1].folder}: it is trained again there")


def taught_otherwise(grid: Grid) -> Iterator[str]:
    """A line for every student whose teacher was another network than the one that is stored, a later one perhaps."""
    stored: dict[Path, set[str]] = {}
    for cell in grid.cells:
        for role in ("teacher", "natural_teacher"):
            folder = next((one for one in cell.needs if str(one) == getattr(cell.settings, role)), None)
            taught_by = _digest_of_teacher(cell.folder, role)
            if folder is None or taught_by is None or not (folder / "best" / WEIGHTS).is_file():
                continue
            if folder not in stored:
                network = load_network(folder / "best")
                stored[folder] = {network_digest(network), network_digest(rounded(network))}
            if taught_by not in stored[folder]:
                yield (
                    f"other      {cell.folder} was taught by another network than {folder / 'best'}; to have it taught "
                    "by that one, remove its folder"
                )


def _digest_of_teacher(folder: Path, role: str) -> str | None:
    """The SHA-256 of the network that taught a run, as `network_digest` has it; None where it is not known."""
    try:
        found = written_of_teacher(folder, role).get("digest")
    except (OSError, ValueError):
        return None
    return None if found is None else str(found)


def remaining(grid: Grid) -> Iterator[str]:
    """What is left to do, a line a run, and about how long it will train where something is known of its speed."""
    seconds = 0.0
    for cell in grid.cells:
        if not has_results(cell.folder):
            seconds += seconds_needed(cell, grid.cells)
            yield f"to train   {cell.folder}"
        elif left := left_to_measure(cell):
            lacking = [which for which in left if which not in _measurable(cell)]
            said = f" ({' and '.join(lacking)}: the network is not here)" if lacking else ""
            yield f"to measure {cell.folder}{said}"
    if seconds:
        yield f"training   about {math.ceil(seconds / 60)} minutes are left"


# ------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True, kw_only=True)
class _OfStudy:
    """What every command needs to know."""

    study: Positional[str]
    """Which study, such as one-gpu."""
    seeds: str | None = None
    """Comma-separated; the study's own when not given."""
    only: str | None = None
    """Comma-separated labels of rows, with * and ?."""
    out: Path = Path("runs")
    """The runs' folder."""
    most: float = 60
    """MiB that a bundle may have."""


@dataclass(frozen=True, kw_only=True)
class Prepare(_OfStudy):
    """Fill a folder with what travels beside the source tree: data, packages, what is finished, round.sh."""

    folder: Path
    """Made, or emptied where it is of an earlier round."""
    wheels: Path | None = None
    """Folder of the packages that the machine lacks."""
    minutes: float = 9.5
    """That a call may take there."""
    carry: float = 40
    """MiB of finished runs that may go there, beside images and packages."""


@dataclass(frozen=True, kw_only=True)
class Run(_OfStudy):
    """One call on the GPU machine; round.sh does it."""

    back: Path
    """Folder for what goes back."""
    carried: Path | None = None
    """Folder that came along."""
    minutes: float = 9.5
    """That the call may take."""


@dataclass(frozen=True, kw_only=True)
class Merge(_OfStudy):
    """Put what came back among the runs, and write the study's table."""

    back: Annotated[tuple[Path, ...], UseAppendAction]
    """Folder that came back; several in their order, --back again each time."""


def main(words: Sequence[str]) -> int:
    """Carry out `prepare`, `run` or `merge`; the recipes' options hold for all cells, as in `iad-ext study`.

    Returns:
        An exit code: 0 done, 2 wrong input.
    """
    try:
        rest, settings = from_command_line(words)
        command = tyro.cli(
            Annotated[Prepare, subcommand("prepare")]
            | Annotated[Run, subcommand("run")]
            | Annotated[Merge, subcommand("merge")],
            args=rest,
            prog="rounds.py",
            description=__doc__,
        )
        data = settings["all"].pop("data.name", None)
        choices = Choices(
            seeds=None if command.seeds is None else seeds_of(command.seeds.split(","), "--seeds"),
            only=command.only,
            data=None if data is None else (data,),
            settings=settings,
            root=command.out,
        )
        grid = expand(read(command.study), choices)
        _carry_out(command, grid, _given_again(command, settings, data))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _carry_out(command: Prepare | Run | Merge, grid: Grid, words: Sequence[str]) -> None:
    most = round(command.most * MEBIBYTE)
    if isinstance(command, Prepare):
        refuse_others(grid.cells)
        prepare(
            grid,
            command.folder,
            file=file_of(command.study),
            wheels=command.wheels,
            minutes=command.minutes,
            most=most,
            carry=round(command.carry * MEBIBYTE),
            words=words,
        )
    elif isinstance(command, Run):
        call(grid, carried=command.carried, back=command.back, minutes=command.minutes, most=most)
    else:
        for back in command.back:
            print(f"merged     {len(unpack(back, grid.choices.root))} files of {back}")
        refuse_others(grid.cells)
        for cell in filter(lambda cell: has_results(cell.folder), grid.cells):
            run_.write_report(cell.folder)  # before the study's page, which leads to them
        report(grid)
        print(f"table      {grid.folder / 'table.md'}")
        for line in taught_otherwise(grid):
            print(line)
    for line in remaining(grid):
        print(line)


def _given_again(command: _OfStudy, settings: Mapping[str, Overrides], data: str | None) -> list[str]:
    """The words that make the same grid on the other machine, but for where the images are."""
    words = ["--seeds", command.seeds] if command.seeds else []
    words += ["--only", command.only] if command.only else []
    words += ["--data.name", data] if data else []
    for role, values in settings.items():
        given = list(spelling.arguments({k: v for k, v in values.items() if k != "data.path"}))
        prefix = "" if role == "all" else f"{role}."
        words += [f"--{prefix}{word[2:]}" if word.startswith("--") else word for word in given]
    return words
