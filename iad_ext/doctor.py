"""What could be wrong with this machine's set-up: facts gathered, then judged in plain words, each with its fix.

`gather` looks and never fails: what is broken is a fact too. `examine` is a pure function from facts to findings.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from packaging.requirements import InvalidRequirement, Requirement

from iad_ext import __version__

T = TypeVar("T")
Level = Literal["ok", "note", "mend"]
MARKS: Mapping[Level, str] = {"ok": "✓", "note": "·", "mend": "✗"}
GIB = 2**30

IMPORTED_AS = {
    "adversarial-robustness-toolbox": "art",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
STRAY = ("robustbench", "autoattack")  # top-level packages that torchattacks leaves lying about
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
ROOM = 2.0  # GiB that a WideResNet-34-10's run folder takes, roughly, with two checkpoints, best and last


@dataclass(frozen=True, kw_only=True)
class Package:
    """A declared dependency.

    Attributes:
        name: on PyPI.
        needs: the declared range, such as `>=2.11`; empty for any.
        version: what is installed; None for nothing.
        fits: whether that is in the range.
        error: what importing it said; None where it imports.
    """

    name: str
    needs: str
    version: str | None
    fits: bool
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device; memory in GiB."""

    name: str
    memory: float
    free: float
    bf16: bool


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is so on this machine. Memory and disk in GiB; None where it cannot be known."""

    python: str = "3.11.0"
    version: str = __version__
    installed: str | None = __version__  # by the package's metadata
    location: str = "iad_ext"
    packages: Sequence[Package] = ()
    stray: Sequence[str] = ()  # of STRAY: importable, and no installed package of that name
    robustbench: str | None = None  # the real one's version
    cpu: str = "a CPU"
    cores: int = 1  # that this process may use
    quota: float | None = None  # cores' worth of time that a container gets
    threads: int | None = 1  # torch's
    memory: float | None = None
    omp: str | None = None  # OMP_NUM_THREADS
    torch_cuda: str | None = None  # the CUDA that torch was built for
    gpus: Sequence[Gpu] = ()
    gpu_hardware: bool = False  # an NVIDIA driver is there
    gpu_error: str | None = None  # what torch said when it looked
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    tf32: bool | None = None  # convolutions in fp32 may take it
    tf32_override: str | None = None  # NVIDIA_TF32_OVERRIDE
    precision: tuple[str, str] | None = None  # what pays off, and the measurement
    precision_error: str | None = None
    cache: str = "~/.cache/huggingface"
    cache_writable: bool = True
    cache_free: float | None = None
    offline: Sequence[str] = ()  # variables that switch the hub off
    cached: Mapping[str, bool] = field(default_factory=dict)  # data set -> in the cache
    data: str | None = None  # IAD_EXT_DATA
    data_sets: Sequence[str] | None = None  # the folders in it; None where it is no folder
    launch: Mapping[str, Any] = field(default_factory=dict)  # accelerate's default configuration
    launch_file: str | None = None
    here_writable: bool = True
    here_free: float | None = None


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `mend` is in the way, `note` is worth knowing, `ok` is fine."""

    level: Level
    about: str
    text: str
    fix: str | None = None


# ------------------------------------------------------------------------------------------- judging


def examine(facts: Facts) -> list[Finding]:
    """Judge the facts, in the order in which a reader should meet them."""
    parts = (
        *(_python, _itself, _packages, _requests, _robustbench, _devices, _threads, _precision, _arithmetic),
        *(_accelerate, _cache, _offline, _data, _room),
    )
    return [finding for part in parts for finding in part(facts)]


def _python(facts: Facts) -> Iterator[Finding]:
    if tuple(map(int, facts.python.split(".")[:2])) < (3, 11):
        yield Finding(
            "mend", "Python", f"{facts.python}; iad-ext needs 3.11 or newer", "make a new environment with it"
        )
    else:
        yield Finding("ok", "Python", facts.python)


def _itself(facts: Facts) -> Iterator[Finding]:
    if facts.installed is None:
        yield Finding(
            "note",
            "iad-ext",
            f"{facts.version} in {facts.location}, not installed: its dependencies' versions cannot be checked",
            "pip install -e . in its folder",
        )
    elif facts.installed != facts.version:
        yield Finding(
            "note",
            "iad-ext",
            f"{facts.version} in {facts.location} is imported, but {facts.installed} is installed: another copy comes "
            "first on Python's path",
            "leave that folder, unset PYTHONPATH, or install again",
        )
    else:
        yield Finding("ok", "iad-ext", f"{facts.version} in {facts.location}")


def _packages(facts: Facts) -> Iterator[Finding]:
    fine = [p for p in facts.packages if p.fits and p.error is None]
    if fine:
        listed = ", ".join(f"{p.name} {p.version}" for p in fine)
        yield Finding("ok", "packages", f"{len(fine)} of {len(facts.packages)} fit and import: {listed}")
    for package in facts.packages:
        if package.name == "requests" and package.version and not package.fits:
            continue  # has a story of its own
        wanted = f"{package.name}{package.needs}"
        if package.version is None:
            yield Finding(
                "mend", package.name, f"is not installed; {wanted} is needed", f"pip install '{wanted}'"
            )
        elif not package.fits:
            yield Finding(
                "mend",
                package.name,
                f"{package.version} is installed; {wanted} is needed",
                f"pip install '{wanted}'",
            )
        elif package.error is not None:
            yield Finding(
                "mend",
                package.name,
                f"{package.version} cannot be imported: {package.error}",
                _fix_of(package),
            )


def _fix_of(package: Package) -> str:
    if package.name in ("torch", "torchvision") or "torchvision::" in (package.error or ""):
        return "torch and torchvision must be built for each other: pip install --upgrade torch torchvision"
    return f"pip install --force-reinstall --no-deps '{package.name}{package.needs}'"


def _requests(facts: Facts) -> Iterator[Finding]:
    old = next((p for p in facts.packages if p.name == "requests" and p.version and not p.fits), None)
    if old is not None:
        yield Finding(
            "mend",
            "requests",
            f"{old.version} has published vulnerabilities and drags an old urllib3 and idna along; torchattacks 3.4 to "
            "3.5.1 pin it and never use it",
            "pip install 'requests>=2.33' 'torchattacks==3.3.0'; torchattacks 3.5.1 works too with the newer requests, "
            "whatever pip says",
        )


def _robustbench(facts: Facts) -> Iterator[Finding]:
    if facts.robustbench is not None:
        yield Finding(
            "note",
            "robustbench",
            f"{facts.robustbench} is installed; it asks for timm 1.0.9, older than iad-ext needs",
            "keep it in an environment of its own; iad-ext export --to robustbench does not need it",
        )
    stray = [name for name in facts.stray if not (name == "robustbench" and facts.robustbench)]
    if stray:
        yield Finding(
            "note",
            "stray packages",
            f"import {' and import '.join(stray)} would give leftovers that torchattacks installs, not the real thing; "
            "iad-ext uses neither",
            "trust pip show NAME, not a successful import",
        )


def _devices(facts: Facts) -> Iterator[Finding]:
    for gpu in facts.gpus:
        full = gpu.free < 0.5 * gpu.memory
        yield Finding(
            "note" if full else "ok",
            "GPU",
            f"{gpu.name}, {gpu.memory:.0f} GiB, {gpu.free:.0f} GiB free{', bf16' if gpu.bf16 else ''}"
            + ("; somebody else is using it" if full else ""),
        )
    if facts.gpus:
        return
    if facts.visible is not None and facts.visible.strip() in ("", "-1"):
        yield Finding(
            "mend" if facts.gpu_hardware else "note",
            "GPU",
            f"hidden: CUDA_VISIBLE_DEVICES={facts.visible!r}",
            "unset CUDA_VISIBLE_DEVICES",
        )
    elif facts.gpu_hardware and facts.torch_cuda is None:
        yield Finding(
            "mend",
            "GPU",
            "there is an NVIDIA GPU, but this torch was built without CUDA",
            "pip install --force-reinstall torch torchvision",
        )
    elif facts.gpu_hardware:
        reason = f" ({facts.gpu_error})" if facts.gpu_error else ""
        yield Finding(
            "mend",
            "GPU",
            f"there is an NVIDIA driver, but torch, built for CUDA {facts.torch_cuda}, cannot use it{reason}",
            f"run nvidia-smi; update the driver to one for CUDA {facts.torch_cuda}, or take a torch for an older CUDA",
        )
    else:
        yield Finding("ok", "GPU", "none; everything runs on the CPU, large networks slowly")


def _threads(facts: Facts) -> Iterator[Finding]:
    memory = f", {facts.memory:.0f} GiB of memory" if facts.memory is not None else ""
    yield Finding("ok", "CPU", f"{facts.cpu}, {facts.cores} cores{memory}")
    if facts.quota is not None and facts.threads is not None and facts.threads > facts.quota + 0.5:
        yield Finding(
            "note",
            "threads",
            f"{facts.threads} threads, but this container gets the time of {facts.quota:g} cores: threads wait",
            f"export OMP_NUM_THREADS={max(1, round(facts.quota))}",
        )
    elif facts.threads is not None and facts.threads < facts.cores:
        why = f", as OMP_NUM_THREADS={facts.omp} says" if facts.omp else ""
        yield Finding(
            "note",
            "threads",
            f"torch uses {facts.threads} of {facts.cores} cores{why}: right for tiny networks, slow for large ones "
            "on a CPU",
            f"export OMP_NUM_THREADS={facts.cores}",
        )
    if not facts.gpus and facts.cores > 1:
        yield Finding(
            "note",
            "accelerate launch",
            "gives a process on a CPU one thread unless it is told otherwise",
            f"accelerate launch --num_cpu_threads_per_process {facts.cores} …",
        )


def _precision(facts: Facts) -> Iterator[Finding]:
    if facts.precision is not None:
        kind, measurement = facts.precision
        words = {
            "bf16": "bf16 pays off here; --precision auto takes it",
            "fp32": "fp32 is as fast as anything here; --precision auto keeps it",
        }
        yield Finding("ok", "precision", f"{words[kind]}: {measurement}")
    elif facts.precision_error is not None:
        yield Finding(
            "mend",
            "precision",
            f"a ResNet-18 could not be run: {facts.precision_error}",
            "mend what stands above first; on a GPU, look whether its memory is taken (nvidia-smi)",
        )


def _arithmetic(facts: Facts) -> Iterator[Finding]:
    if not facts.gpus or facts.tf32 is None:
        return
    if facts.tf32 and facts.tf32_override != "0":
        yield Finding(
            "note",
            "TF32",
            "fp32 convolutions round to TF32 on this GPU, in evaluation too (torch's default): figures can "
            "differ by an image or two from strict fp32",
            "for strict fp32: export NVIDIA_TF32_OVERRIDE=0",
        )
    else:
        yield Finding("ok", "TF32", "off: fp32 is strict fp32")


def _accelerate(facts: Facts) -> Iterator[Finding]:
    if facts.launch_file is None:
        return
    told = {key: value for key, value in facts.launch.items() if value not in (None, "no", "NO", False)}
    said = ", ".join(f"{key} {value}" for key, value in told.items()) or "nothing special"
    wrong = facts.launch.get("mixed_precision") == "fp16" and not facts.gpus
    yield Finding(
        "mend" if wrong else "note",
        "accelerate launch",
        f"takes its defaults from {facts.launch_file}: {said}" + ("; fp16 needs a GPU" if wrong else ""),
        "accelerate config, or --precision fp32 in a recipe"
        if wrong
        else "--precision beats it; accelerate config changes it",
    )


def _cache(facts: Facts) -> Iterator[Finding]:
    free = f", {facts.cache_free:.0f} GiB free" if facts.cache_free is not None else ""
    if not facts.cache_writable:
        yield Finding(
            "mend",
            "cache",
            f"{facts.cache} cannot be written, so nothing can be downloaded or prepared",
            "export HF_HOME=DIR, a folder of yours",
        )
        return
    held = [name for name, there in facts.cached.items() if there]
    kept = f"; holds {', '.join(held)}" if held else ""
    yield Finding("ok", "cache", f"{facts.cache}{free}{kept}")


def _offline(facts: Facts) -> Iterator[Finding]:
    if not facts.offline:
        return
    missing = [name for name, there in facts.cached.items() if not there]
    text = f"{' and '.join(facts.offline)} set: the hub is not asked"
    if missing:
        text += f"; not in the cache: {', '.join(missing)}"
    yield Finding(
        "note",
        "offline",
        text,
        f"--data.path DIR for a local copy, or unset {' '.join(facts.offline)}" if missing else None,
    )


def _data(facts: Facts) -> Iterator[Finding]:
    if facts.data is None:
        return
    if facts.data_sets is None:
        yield Finding(
            "mend",
            "IAD_EXT_DATA",
            f"names {facts.data}, which is no folder: tests on real images would not find them",
            "correct it, or unset IAD_EXT_DATA",
        )
    else:
        yield Finding(
            "ok",
            "IAD_EXT_DATA",
            f"{facts.data}: {', '.join(facts.data_sets) or 'empty'} (for the tests on real images; "
            "recipes take --data.path)",
        )


def _room(facts: Facts) -> Iterator[Finding]:
    if not facts.here_writable:
        yield Finding(
            "mend",
            "this folder",
            "cannot be written, and run folders go to runs/ in it",
            "change folder, or give --out DIR",
        )
    elif facts.here_free is not None and facts.here_free < ROOM:
        yield Finding(
            "mend" if facts.here_free < 0.2 else "note",
            "this folder",
            f"{facts.here_free:.1f} GiB free; a run folder of a WideResNet-34-10 takes about {ROOM:g}",
            "make room, or give --out DIR on another disk",
        )


# ------------------------------------------------------------------------------------------- saying


def report(findings: Sequence[Finding], *, width: int = 80) -> str:
    """Lay findings out for people, lines of at most `width`; a last line says what they come to."""
    column = max(len(finding.about) for finding in findings) + 4
    lines = []
    for finding in findings:
        head = f"{MARKS[finding.level]} {finding.about}".ljust(column)
        lines += _block(finding.text, width, first=head, rest=" " * column)
        if finding.fix is not None:
            lines += _block(finding.fix, width, first=f"{' ' * column}→ ", rest=f"{' ' * column}  ")
    wrong = sum(finding.level == "mend" for finding in findings)
    verdict = "Nothing is in the way." if not wrong else f"To mend: {wrong}, marked {MARKS['mend']}."
    return "\n".join([*lines, "", verdict])


def _block(text: str, width: int, *, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


# ------------------------------------------------------------------------------------------- gathering


def gather(*, probe: bool = True) -> Facts:
    """Look around. Imports every dependency, and with `probe` times a ResNet-18 for some seconds."""
    packages = _declared()
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "installed": _version("iad-ext"),
        "location": str(Path(__file__).parent),
        "packages": packages,
        "stray": [name for name in STRAY if importlib.util.find_spec(name) and _version(name) is None],
        "robustbench": _version("robustbench"),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "quota": _quota(),
        "memory": _tried(lambda: os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB),
        "gpu_hardware": Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
        "offline": [
            name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        ],
        "here_writable": os.access(Path.cwd(), os.W_OK),
        "here_free": _free(Path.cwd()),
    }
    found |= _from_torch() | _from_cache() | _from_data()
    if probe:
        found |= _measured()
    return Facts(**found)


def _tried(look: Callable[[], T]) -> T | None:
    """What `look` finds; None where that fails, as it may in any way on a broken machine."""
    try:
        return look()
    except Exception:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _declared() -> list[Package]:
    """The dependencies by the installed package's own metadata; none where it is not installed."""
    packages = []
    for text in _tried(lambda: importlib.metadata.requires("iad-ext")) or ():
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = _version(needed.name)
        packages.append(
            Package(
                name=needed.name,
                needs=str(needed.specifier),
                version=version,
                fits=version is not None and needed.specifier.contains(version, prereleases=True),
                error=None if version is None else _import_error(needed.name),
            )
        )
    return packages


def _import_error(name: str) -> str | None:
    module = IMPORTED_AS.get(name.lower(), name.replace("-", "_"))
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(module)
    except Exception as error:  # a broken package can raise anything
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def _quota() -> float | None:
    """Cores' worth of time that a Linux container gets; None for all."""

    def read() -> float | None:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return None if granted == "max" else int(granted) / int(period)

    return _tried(read)


def _free(folder: Path) -> float | None:
    existing = next((f for f in (folder, *folder.parents) if f.exists()), folder)
    return _tried(lambda: shutil.disk_usage(existing).free / GIB)


def _from_torch() -> dict[str, Any]:
    """What torch knows of the machine; little where it cannot be imported."""
    try:
        import torch

        from iad_ext import provenance
    except Exception:
        return {"cores": os.cpu_count() or 1, "threads": None, "cpu": platform.machine()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gpus = _tried(_gpus)
    return {
        "cpu": provenance.cpu_name(),
        "cores": provenance.usable_cores(),
        "threads": torch.get_num_threads(),
        "torch_cuda": torch.version.cuda,
        "gpus": gpus or (),
        "gpu_error": str(said[0].message).partition("\n")[0] if said else None,
        "tf32": _tried(lambda: torch.backends.cudnn.allow_tf32),
    }


def _gpus() -> list[Gpu]:
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        found.append(
            Gpu(name=torch.cuda.get_device_name(index), memory=total / GIB, free=free / GIB, bf16=bf16)
        )
    return found


def _from_cache() -> dict[str, Any]:
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    home = Path(os.environ.get("HF_HOME", caches / "huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    existing = next((folder for folder in (home, *home.parents) if folder.exists()), home)
    found: dict[str, Any] = {
        "cache": str(home),
        "cache_writable": os.access(existing, os.W_OK),
        "cache_free": _free(home),
    }
    known = _tried(lambda: importlib.import_module("iad_ext.data").KNOWN) or {}
    found["cached"] = {
        name: (hub / f"datasets--{where.hub_id.replace('/', '--')}").is_dir()
        or (prepared / where.hub_id.replace("/", "___")).is_dir()
        for name, where in known.items()
        if name != "digits"
    }
    config = home / "accelerate" / "default_config.yaml"
    if config.is_file():
        content = _tried(
            lambda: importlib.import_module("yaml").safe_load(config.read_text(encoding="utf-8"))
        )
        kept = ("mixed_precision", "num_processes", "use_cpu", "distributed_type", "dynamo_backend")
        found["launch_file"] = str(config)
        found["launch"] = (
            {key: content[key] for key in kept if key in content} if isinstance(content, dict) else {}
        )
    return found


def _from_data() -> dict[str, Any]:
    named = os.environ.get("IAD_EXT_DATA")
    if named is None:
        return {}
    folder = Path(named)
    inside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else None
    return {"data": named, "data_sets": inside}


def _measured() -> dict[str, Any]:
    """What precision pays off for a ResNet-18 on 32 × 32 pixels."""
    try:
        import torch

        from iad_ext.backbones import create_network
        from iad_ext.precision import probe

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        decided = probe(
            create_network("cifar_resnet18", num_classes=10, seed=0),
            image_shape=(3, 32, 32),
            device=device,
            batch_size=256 if device.type == "cuda" else 16,
            repeats=2,
        )
    except Exception as error:  # a broken machine can fail in any way
        return {"precision_error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    return {"precision": (decided.kind, f"ResNet-18 {decided.reason}")}
