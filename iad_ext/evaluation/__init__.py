"""How robust a network is: accuracy under the paper's attacks, with provenance, intervals and signs of masking."""

from iad_ext.evaluation.calibration import evaluate_calibration, evaluate_trust
from iad_ext.evaluation.corruptions import CORRUPTIONS, corrupt
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
from iad_ext.evaluation.threats import THREAT_PARTS, evaluate_threats
from iad_ext.evaluation.transfer import evaluate_transfer
from iad_ext.evaluation.unseen import under_corruptions, under_threats

__all__ = [
    "ATTACKS",
    "CORRUPTIONS",
    "GRADIENT_ATTACKS",
    "THREAT_PARTS",
    "TITLES",
    "accuracy_under",
    "corrupt",
    "evaluate",
    "evaluate_calibration",
    "evaluate_threats",
    "evaluate_transfer",
    "evaluate_trust",
    "format_table",
    "hardware",
    "images",
    "interval",
    "percent",
    "under_corruptions",
    "under_threats",
    "with_autoattack",
]
