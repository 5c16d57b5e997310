"""Lightning data modules."""

from kornia_mvit.data.datamodules.classification import DigitsData, FolderData
from kornia_mvit.data.datamodules.detection import COCOData, VOCData
from kornia_mvit.data.datamodules.segmentation import SegmentationFolderData, VOCSegmentationData
from kornia_mvit.data.datamodules.shards import ShardData
from kornia_mvit.data.datamodules.tables import TableData
from kornia_mvit.data.datamodules.yolo import YOLOData

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
