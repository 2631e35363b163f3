"""Training objectives as rows of weighted per-image terms, and introspection as a wrapper around a row.

A row is one line of the paper's Table 1, or of a later paper's. Each of its terms declares which network passes it
reads, so that a training step runs those and no other. `introspect` turns any row into its introspective form
(Eq. 3); IAD-I and IAD-II are `introspect(ard(…))` and `introspect(akd2(…))` and nothing more. Plug-ins change any
objective into another: a regulariser, a sample weight, another target, another trust.

To add an objective, write one function that returns an `Objective` and put `@row` above it; to add a plug-in, one
that takes an `Objective` and a value, and put `@plugin` above it.
"""

from iad_ext.objectives.core import (
    ADVERSARIAL_PASSES,
    PASSES,
    SYMBOLS,
    Balance,
    Factor,
    ImageWeight,
    Loss,
    Objective,
    Outputs,
    Target,
    Term,
    Weights,
)
from iad_ext.objectives.introspection import Gamma, alpha, introspect
from iad_ext.objectives.paper import (
    akd2,
    akd2_chen,
    akd2_down,
    ard,
    ard_goldblum,
    at,
    iad1,
    iad1_down,
    iad2,
    st,
    trades,
)
from iad_ext.objectives.plugins import class_temperature, igdm, label_smoothing, sample_weight, target, trust
from iad_ext.objectives.registry import (
    PLUGINS,
    ROWS,
    as_objective,
    build,
    instead_of,
    of_epochs,
    plugin,
    plugin_settings,
    row,
    takes,
    unread,
    warmup_share,
)
from iad_ext.objectives.since import adaad, adaiad, adr, iad_mtard, iad_rslad, mart, mtard, rslad

__all__ = [
    "ADVERSARIAL_PASSES",
    "PASSES",
    "PLUGINS",
    "ROWS",
    "SYMBOLS",
    "Balance",
    "Factor",
    "Gamma",
    "ImageWeight",
    "Loss",
    "Objective",
    "Outputs",
    "Target",
    "Term",
    "Weights",
    "adaad",
    "adaiad",
    "adr",
    "akd2",
    "akd2_chen",
    "akd2_down",
    "alpha",
    "ard",
    "ard_goldblum",
    "as_objective",
    "at",
    "build",
    "class_temperature",
    "iad1",
    "iad1_down",
    "iad2",
    "iad_mtard",
    "iad_rslad",
    "igdm",
    "instead_of",
    "introspect",
    "label_smoothing",
    "mart",
    "mtard",
    "of_epochs",
    "plugin",
    "plugin_settings",
    "row",
    "rslad",
    "sample_weight",
    "st",
    "takes",
    "target",
    "trades",
    "trust",
    "unread",
    "warmup_share",
]
