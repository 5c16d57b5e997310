"""Readers of annotations, one file a format. What is wrong with single boxes is told, not raised."""

from kornia_mvit.data.boxes import Annotation
from kornia_mvit.data.formats.coco import CocoFile, read_coco
from kornia_mvit.data.formats.voc import read_voc
from kornia_mvit.data.formats.yolo import read_yolo

__all__ = ["Annotation", "CocoFile", "read_coco", "read_voc", "read_yolo"]
