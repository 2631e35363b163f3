"""How robust a network is: accuracy under the paper's attacks, with provenance, intervals and signs of masking."""

from iad_ext.evaluation.measures import ATTACKS, GRADIENT_ATTACKS, accuracy_under, evaluate
from iad_ext.evaluation.tables import (
    TITLES,
    format_table,
    hardware,
    images,
    interval,
    percent,
    with_autoattack,
)

__all__ = [
    "ATTACKS",
    "GRADIENT_ATTACKS",
    "TITLES",
    "accuracy_under",
    "evaluate",
    "format_table",
    "hardware",
    "images",
    "interval",
    "percent",
    "with_autoattack",
]
