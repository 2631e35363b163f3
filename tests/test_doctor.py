"""The doctor: from facts to findings, each trap with its fix; and what it says of this machine."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iad_ext import doctor
from iad_ext.doctor import Facts, Finding, Gpu, Package, examine, report

GPU = Gpu(name="H100", memory=80.0, free=79.0, bf16=True)
OLD_REQUESTS = Package(name="requests", needs=">=2.33", version="2.25.1", fits=False)
FINE = Package(name="timm", needs=">=1.0.20", version="1.0.31", fits=True)


def found(about, **facts):
    """The one finding about something, of these facts."""
    (finding,) = [finding for finding in examine(Facts(**facts)) if finding.about == about]
    return finding


def test_a_machine_without_a_fault_has_nothing_to_mend():
    facts = Facts(packages=[FINE], gpus=[GPU], tf32=False, precision=("bf16", "measured"), here_free=100.0)
    assert {finding.level for finding in examine(facts)} == {"ok"}
    assert report(examine(facts)).endswith("Nothing is in the way.")


# what is so, what it is about, how bad, what the words must hold, what the fix must hold
TRAPS = {
    "old Python": ({"python": "3.10.4"}, "Python", "mend", "3.11 or newer", "new environment"),
    "old requests": (
        {"packages": [OLD_REQUESTS]},
        "requests",
        "mend",
        "torchattacks 3.4",
        "'torchattacks==3.3.0'",
    ),
    "missing package": (
        {"packages": [dataclasses.replace(FINE, version=None, fits=False)]},
        "timm",
        "mend",
        "is not installed",
        "pip install 'timm>=1.0.20'",
    ),
    "old package": (
        {"packages": [dataclasses.replace(FINE, version="1.0.9", fits=False)]},
        "timm",
        "mend",
        "1.0.9 is installed; timm>=1.0.20 is needed",
        "pip install 'timm>=1.0.20'",
    ),
    "torchvision of another torch": (
        {
            "packages": [
                Package(
                    name="torchvision",
                    needs=">=0.26",
                    version="0.29.2",
                    fits=True,
                    error="RuntimeError: operator torchvision::nms does not exist",
                )
            ]
        },
        "torchvision",
        "mend",
        "cannot be imported: RuntimeError: operator torchvision::nms",
        "pip install --upgrade torch torchvision",
    ),
    "timm that fails on torchvision": (
        {
            "packages": [
                dataclasses.replace(FINE, error="RuntimeError: operator torchvision::nms does not exist")
            ]
        },
        "timm",
        "mend",
        "cannot be imported",
        "pip install --upgrade torch torchvision",
    ),
    "stray robustbench": (
        {"stray": ["robustbench"]},
        "stray packages",
        "note",
        "not the real thing",
        "pip show",
    ),
    "real robustbench": (
        {"robustbench": "1.1"},
        "robustbench",
        "note",
        "timm 1.0.9",
        "environment of its own",
    ),
    "another copy": ({"installed": "0.0.9"}, "iad-ext", "note", "another copy", "PYTHONPATH"),
    "not installed": ({"installed": None}, "iad-ext", "note", "cannot be checked", "pip install -e ."),
    "hidden GPU": (
        {"visible": "", "gpu_hardware": True},
        "GPU",
        "mend",
        "CUDA_VISIBLE_DEVICES=''",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "torch without CUDA": (
        {"gpu_hardware": True},
        "GPU",
        "mend",
        "built without CUDA",
        "force-reinstall torch",
    ),
    "old driver": (
        {"gpu_hardware": True, "torch_cuda": "13.2", "gpu_error": "the driver is too old"},
        "GPU",
        "mend",
        "the driver is too old",
        "update the driver to one for CUDA 13.2",
    ),
    "taken GPU": (
        {"gpus": [dataclasses.replace(GPU, free=3.0)]},
        "GPU",
        "note",
        "somebody else is using it",
        None,
    ),
    "no GPU": ({}, "GPU", "ok", "everything runs on the CPU", None),
    "one thread": (
        {"cores": 16, "threads": 1, "omp": "1"},
        "threads",
        "note",
        "1 of 16 cores, as OMP_NUM_THREADS=1 says",
        "export OMP_NUM_THREADS=16",
    ),
    "launch on a CPU": (
        {"cores": 16, "threads": 16},
        "accelerate launch",
        "note",
        "one thread unless",
        "--num_cpu_threads_per_process 16",
    ),
    "container's quota": (
        {"cores": 16, "threads": 16, "quota": 2.0, "gpus": [GPU]},
        "threads",
        "note",
        "the time of 2 cores",
        "export OMP_NUM_THREADS=2",
    ),
    "probe failed": (
        {"precision_error": "CUDA out of memory"},
        "precision",
        "mend",
        "CUDA out of memory",
        "nvidia-smi",
    ),
    "bf16 pays": ({"precision": ("bf16", "75 against 141")}, "precision", "ok", "bf16 pays off", None),
    "fp32 stays": ({"precision": ("fp32", "75 against 60")}, "precision", "ok", "fp32 is as fast", None),
    "TF32": ({"gpus": [GPU], "tf32": True}, "TF32", "note", "in evaluation too", "NVIDIA_TF32_OVERRIDE=0"),
    "TF32 overridden": (
        {"gpus": [GPU], "tf32": True, "tf32_override": "0"},
        "TF32",
        "ok",
        "strict fp32",
        None,
    ),
    "accelerate's fp16": (
        {"launch_file": "default_config.yaml", "launch": {"mixed_precision": "fp16"}},
        "accelerate launch",
        "mend",
        "fp16 needs a GPU",
        "--precision fp32",
    ),
    "closed cache": ({"cache_writable": False}, "cache", "mend", "cannot be written", "HF_HOME"),
    "offline": (
        {"offline": ["HF_HUB_OFFLINE"], "cached": {"cifar10": True, "cifar100": False}},
        "offline",
        "note",
        "not in the cache: cifar100",
        "--data.path DIR",
    ),
    "no data folder": ({"data": "/gone"}, "IAD_EXT_DATA", "mend", "is no folder", "unset IAD_EXT_DATA"),
    "data folder": ({"data": "d", "data_sets": ["cifar10"]}, "IAD_EXT_DATA", "ok", "cifar10", None),
    "closed folder": ({"here_writable": False}, "this folder", "mend", "cannot be written", "--out DIR"),
    "little room": ({"here_free": 1.2}, "this folder", "note", "1.2 GiB free", "--out DIR"),
    "no room": ({"here_free": 0.1}, "this folder", "mend", "0.1 GiB free", "make room"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_named_with_its_fix(trap):
    facts, about, level, words, fix = TRAPS[trap]
    finding = found(about, **facts)
    assert finding.level == level
    assert words in finding.text
    if fix is None:
        assert finding.fix is None
    else:
        assert fix in finding.fix


def test_whatever_must_be_mended_comes_with_a_fix():
    for facts, *_ in TRAPS.values():
        assert all(finding.fix for finding in examine(Facts(**facts)) if finding.level == "mend")


def test_the_installed_robustbench_is_not_called_stray():
    findings = examine(Facts(stray=["robustbench"], robustbench="1.1"))
    assert "stray packages" not in [finding.about for finding in findings]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_report_fits_its_width_and_counts_what_is_to_mend(width):
    findings = [
        Finding("ok", "one", "fine " * 30),
        Finding("mend", "another", "broken " * 30, "do this " * 20),
        Finding("mend", "a third", "broken", "mend it"),
    ]
    said = report(findings, width=width)
    assert max(map(len, said.splitlines())) <= width
    assert "✗ another" in said
    assert "→ do this" in said
    assert said.endswith("To mend: 2, marked ✗.")


def test_what_it_gathers_here_is_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("IAD_EXT_DATA", str(tmp_path))
    (tmp_path / "hub/datasets--uoft-cs--cifar10").mkdir(parents=True)
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text("mixed_precision: bf16\nnum_processes: 3\n")
    facts = doctor.gather(probe=False)
    assert facts.precision is None
    by_name = {package.name: package for package in facts.packages}
    assert by_name["torch"].fits
    assert all(package.error is None for package in facts.packages), facts.packages
    assert facts.offline == ["HF_HUB_OFFLINE"]
    assert facts.cached == {"cifar10": True, "cifar100": False, "tiny-imagenet": False}
    assert facts.launch == {"mixed_precision": "bf16", "num_processes": 3}
    assert facts.data_sets == ["accelerate", "hub"]
    assert facts.threads == 1
    assert facts.memory > 0.5


def test_the_cache_is_where_the_hub_s_client_looks_for_it(monkeypatch, tmp_path):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "huggingface/hub/datasets--uoft-cs--cifar10").mkdir(parents=True)
    found = doctor._from_cache()
    assert found["cache"] == str(tmp_path / "huggingface")
    assert found["cached"]["cifar10"]


def test_the_probe_names_a_precision_and_its_measurement():
    measured = doctor._measured()
    assert measured["precision"][0] in ("fp32", "bf16")
    assert "images a second" in measured["precision"][1]


def test_it_works_where_torch_does_not(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open')\n")
    root = str(Path(doctor.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root]), "COLUMNS": "110"}
    done = subprocess.run(
        [sys.executable, "-m", "iad_ext", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "✗ torch" in done.stdout
    assert "libcudart.so.13: cannot open" in done.stdout
    assert "Traceback" not in done.stderr
