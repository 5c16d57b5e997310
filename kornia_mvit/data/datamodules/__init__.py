"""Lightning data modules."""

from kornia_mvit.data.datamodules.classification import DigitsData, FolderData
from kornia_mvit.data.datamodules.detection import VOCData
from kornia_mvit.data.datamodules.segmentation import SegmentationFolderData, VOCSegmentationData
from kornia_mvit.data.datamodules.shards import ShardData
from kornia_mvit.data.datamodules.tables import TableData

__all__ = [
    "DigitsData",
    "FolderData",
    "SegmentationFolderData",
    "ShardData",
    "TableData",
    "VOCData",
    "VOCSegmentationData",
]
