"""Adversarial distillation for robust image classifiers: IAD and its family, as an extension of ART and timm.

Importing this package registers its networks with timm. What brings more than that is imported when first used.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iad_ext import objectives
    from iad_ext.backbones import load_network
    from iad_ext.evaluation import evaluate
    from iad_ext.objectives import Outputs, introspect
    from iad_ext.trainer import IntrospectiveAdversarialDistiller, as_art_classifier

__version__ = "0.1.0"

__all__ = [
    "IntrospectiveAdversarialDistiller",
    "Outputs",
    "as_art_classifier",
    "evaluate",
    "introspect",
    "load_network",
    "objectives",
]

_LAZY = {
    "IntrospectiveAdversarialDistiller": "iad_ext.trainer",
    "Outputs": "iad_ext.objectives",
    "as_art_classifier": "iad_ext.trainer",
    "evaluate": "iad_ext.evaluation",
    "introspect": "iad_ext.objectives",
    "load_network": "iad_ext.backbones",
}


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return import_module("iad_ext.objectives")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_command_line() -> bool:
    """Whether this process is `iad-ext …` or `python -m iad_ext …`."""
    return Path(sys.argv[0]).stem == "iad-ext" or sys.orig_argv[1:3] == ["-m", "iad_ext"]


# the command line must answer --help in no time, and its doctor where torch is broken: there a subcommand brings the
# networks when it needs them
if not _is_command_line():
    from iad_ext.backbones import cifar as _registers_networks  # noqa: F401
