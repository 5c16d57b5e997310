"""Trained models as files for phones, browsers and servers. Needs ``kornia-mvit[export]``.

What a format needs is imported as it is written, so that a missing package matters to its format alone.
"""

from kornia_mvit.export.graph import DeployPreprocess, Deployed, Suppression, deployable
from kornia_mvit.export.metadata import metadata
from kornia_mvit.export.onnx import to_onnx

__all__ = ["DeployPreprocess", "Deployed", "Suppression", "deployable", "metadata", "to_onnx"]
