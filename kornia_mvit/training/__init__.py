"""Training on Lightning. Needs ``kornia-mvit[train]``."""

try:
    import torchmetrics  # noqa: F401  # to say early, and in one place, what is missing

    from kornia_mvit.training import lightning_names  # noqa: F401
except ImportError as _error:
    raise ImportError(f"kornia_mvit.training needs {_error.name}; install kornia-mvit[train]") from _error

from kornia_mvit.evaluation.classification import Evaluation, classification_metrics
from kornia_mvit.evaluation.coco import CocoMetrics
from kornia_mvit.evaluation.report import write_report
from kornia_mvit.ops.intervals import wilson_interval
from kornia_mvit.training.callbacks import EMA
from kornia_mvit.training.classification import ClassificationTask
from kornia_mvit.training.detection import DetectionTask
from kornia_mvit.training.recipes import describe_recipe, find_recipe, list_recipes
from kornia_mvit.training.reporting import CSVLog, LogPictures, Report
from kornia_mvit.training.resuming import (
    AtomicCheckpointIO,
    ExactResume,
    LastCheckpoint,
    SaveOnSignal,
    last_checkpoint,
)
from kornia_mvit.training.runs import RunFolder
from kornia_mvit.training.segmentation import SegmentationTask

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "CSVLog",
    "ClassificationTask",
    "CocoMetrics",
    "DetectionTask",
    "Evaluation",
    "ExactResume",
    "LastCheckpoint",
    "LogPictures",
    "Report",
    "RunFolder",
    "SaveOnSignal",
    "SegmentationTask",
    "classification_metrics",
    "describe_recipe",
    "find_recipe",
    "last_checkpoint",
    "list_recipes",
    "wilson_interval",
    "write_report",
]
