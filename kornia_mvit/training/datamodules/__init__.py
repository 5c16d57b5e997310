"""Lightning data modules. Needs ``kornia-mvit[train]``."""

try:
    import sklearn  # noqa: F401  # to say early, and in one place, what is missing
except ImportError as _error:
    raise ImportError(f"kornia_mvit.training.datamodules needs {_error.name}; install kornia-mvit[train]") from _error

from kornia_mvit.training.datamodules.classification import DigitsData, FolderData
from kornia_mvit.training.datamodules.detection import COCOData, VOCData
from kornia_mvit.training.datamodules.segmentation import SegmentationFolderData, VOCSegmentationData
from kornia_mvit.training.datamodules.shards import ShardData
from kornia_mvit.training.datamodules.tables import TableData
from kornia_mvit.training.datamodules.yolo import YOLOData

__all__ = [
    "COCOData",
    "DigitsData",
    "FolderData",
    "SegmentationFolderData",
    "ShardData",
    "TableData",
    "VOCData",
    "VOCSegmentationData",
    "YOLOData",
]
