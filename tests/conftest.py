"""Every test run: no network, one thread, annotations checked, and a header that says what it ran on."""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# a folder with another torchattacks, to run the same tests on it
if another := os.environ.get("IAD_EXT_TORCHATTACKS_PATH"):
    sys.path.insert(0, another)

import pytest
import torch
from hypothesis import settings
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook
from torch import nn

CHECKED = ("terms", "reliability", "objectives", "step", "attacks")
assert "iad_ext" not in sys.modules  # or the hook comes too late and checks nothing
install_import_hook([f"iad_ext.{module}" for module in CHECKED], "typechecks.check")

torch.set_num_threads(1)
settings.register_profile("iad_ext", deadline=None, print_blob=True)
settings.load_profile("iad_ext")

REAL_DATA = Path(os.environ.get("IAD_EXT_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()


def pytest_report_header():
    import torchattacks

    folders = sorted(path.name for path in REAL_DATA.glob("*") if path.is_dir())
    return [
        f"real data: {', '.join(folders) or 'none'} in {REAL_DATA} (IAD_EXT_DATA)",
        f"torch {torch.__version__}, torchattacks from {Path(torchattacks.__file__).parent}",
    ]


@pytest.fixture
def record_property(record_property):
    """What tests record, as JSON: pytest-xdist's worker processes send plain values only."""
    return lambda name, value: record_property(name, json.dumps(value, ensure_ascii=False))


@pytest.fixture
def unchecked():
    """No run-time type checks: what a user meets is the library's own error."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_network():
    """A constructor of small networks, the same for the same seed: (n, 3, 6, 6) -> (n, classes)."""

    def build(classes=10, *, seed=0, dropout=0.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
                nn.Flatten(),
                nn.Dropout(dropout),
                nn.Linear(8 * 9, classes),
            )

    return build


@pytest.fixture
def say(capsys, monkeypatch):
    """Call the command line in this process; the exit code, what it printed, and what it said on stderr."""
    from iad_ext.cli import main

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test run's own handlers stay
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args):
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call
