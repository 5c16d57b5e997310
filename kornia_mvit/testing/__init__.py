"""Strategies for Hypothesis and properties of backbones, for tests of your own. Needs ``kornia-mvit[testing]``."""

try:
    import hypothesis  # noqa: F401  # to say early, and in one place, what is missing
except ImportError as _error:
    raise ImportError(f"kornia_mvit.testing needs {_error.name}; install kornia-mvit[testing]") from _error

from kornia_mvit.testing import strategies
from kornia_mvit.testing.builders import (
    make_batch,
    make_boxes,
    make_image,
    make_instance_masks,
    make_keypoints,
    make_mask,
    make_soft_labels,
)
from kornia_mvit.testing.properties import PROPERTIES, check_backbone
from kornia_mvit.testing.report import BackboneError, BackboneReport, Result, Status

__all__ = [
    "PROPERTIES",
    "BackboneError",
    "BackboneReport",
    "Result",
    "Status",
    "check_backbone",
    "make_batch",
    "make_boxes",
    "make_image",
    "make_instance_masks",
    "make_keypoints",
    "make_mask",
    "make_soft_labels",
    "strategies",
]
