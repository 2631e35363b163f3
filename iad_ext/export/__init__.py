"""Networks out of the house: a folder for timm and the hub with a model card, ONNX, RobustBench.

An ART classifier of any network is `iad_ext.as_art_classifier`.
"""

from iad_ext.export.folder import push_to_hub, to_folder
from iad_ext.export.onnx import to_onnx
from iad_ext.export.record import Record
from iad_ext.export.robustbench import robustbench_model_info

__all__ = ["Record", "push_to_hub", "robustbench_model_info", "to_folder", "to_onnx"]
