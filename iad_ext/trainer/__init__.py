"""The ART door: a trainer with ART's interface in front of the same engine that the recipes run."""

from iad_ext.trainer.classifiers import as_art_classifier
from iad_ext.trainer.distiller import IntrospectiveAdversarialDistiller

__all__ = ["IntrospectiveAdversarialDistiller", "as_art_classifier"]
