"""Apple's MobileViT as a backbone, and an augmentation-aware pipeline around it, on PyTorch and Kornia."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kornia_mvit import moved

if TYPE_CHECKING:  # `as` marks, for type checkers, the public names that are not in `__all__`
    # isort: off
    from kornia_mvit import exporters
    from kornia_mvit.augmentation import policies
    from kornia_mvit.augmentation.copy_paste import CopyPaste
    from kornia_mvit.augmentation.mix import Mix
    from kornia_mvit.augmentation.mixes import CutMix, MixUp, Mosaic
    from kornia_mvit.augmentation.pipeline import AugmentationPipeline
    from kornia_mvit.augmentation.ranges import LearnedRanges
    from kornia_mvit.batch import Batch
    from kornia_mvit.data.class_lists import class_names
    from kornia_mvit.data.reading import DataError, read_image
    from kornia_mvit.draw.charts import (
        draw_confusion as draw_confusion,
        draw_curves as draw_curves,
        draw_per_class as draw_per_class,
        draw_precision_recall as draw_precision_recall,
        draw_reliability as draw_reliability,
    )
    from kornia_mvit.draw.images import draw_batch, draw_detections, draw_overlay, draw_predictions, draw_segmentation
    from kornia_mvit.exporters.writing import export
    from kornia_mvit.extra_images import Extra
    from kornia_mvit.inference.engines.fuse import fuse
    from kornia_mvit.inference.engines.optimize import optimize
    from kornia_mvit.inference.predictor import Predictor, predict
    from kornia_mvit.inference.results import ClassificationResult, DetectionResult, Result, Results, SegmentationResult
    from kornia_mvit.inference.sliding_window import SlidingWindow
    from kornia_mvit.inference.tta import TestTimeAugmentation
    from kornia_mvit.models.deeplabv3 import DeepLabV3
    from kornia_mvit.models.mobilevit import MobileViT, MobileViTClassifier, MobileViTConfig
    from kornia_mvit.models.mobilevitv2 import MobileViTV2, MobileViTV2Classifier
    from kornia_mvit.models.registration import register_in_kornia, register_in_timm
    from kornia_mvit.models.ssdlite import SSDLite
    from kornia_mvit.preprocess import Preprocess
    from kornia_mvit.testing import check_backbone as check_backbone
    from kornia_mvit.training import (
        EMA as EMA,
        AtomicCheckpointIO as AtomicCheckpointIO,
        ClassificationTask as ClassificationTask,
        CocoMetrics as CocoMetrics,
        CSVLog as CSVLog,
        DetectionTask as DetectionTask,
        ExactResume as ExactResume,
        LastCheckpoint as LastCheckpoint,
        LogPictures as LogPictures,
        Report as Report,
        SaveOnSignal as SaveOnSignal,
        SegmentationTask as SegmentationTask,
        find_recipe as find_recipe,
        last_checkpoint as last_checkpoint,
        list_recipes as list_recipes,
        write_report as write_report,
    )
    from kornia_mvit.training.datamodules import (
        COCOData as COCOData,
        DigitsData as DigitsData,
        FolderData as FolderData,
        SegmentationFolderData as SegmentationFolderData,
        ShardData as ShardData,
        TableData as TableData,
        VOCData as VOCData,
        VOCSegmentationData as VOCSegmentationData,
        YOLOData as YOLOData,
    )
    from kornia_mvit.training.demo import demo as demo
    from kornia_mvit.training.fit import (
        Run as Run,
        evaluate as evaluate,
        fit as fit,
    )
    from kornia_mvit.training.packing import shards as shards
    from kornia_mvit.training.preview import preview as preview
    from kornia_mvit.weights.checkpoints import load_checkpoint, read_weights, save_checkpoint
    from kornia_mvit.weights.conversion import convert
    from kornia_mvit.weights.files import CheckpointError
    from kornia_mvit.weights.hub import push_to_hub, save_pretrained
    from kornia_mvit.weights.info import info
    from kornia_mvit.weights.registry import find_weights, from_pretrained, list_weights
    # isort: on

__version__ = "0.2.0.dev0"

# Where each public name stands; it is imported when it is first used.
_PLACES = {
    "AtomicCheckpointIO": "training",
    "AugmentationPipeline": "augmentation.pipeline",
    "Batch": "batch",
    "COCOData": "training.datamodules",
    "CSVLog": "training",
    "CheckpointError": "weights.files",
    "ClassificationResult": "inference.results",
    "ClassificationTask": "training",
    "CocoMetrics": "training",
    "CopyPaste": "augmentation.copy_paste",
    "CutMix": "augmentation.mixes",
    "DataError": "data.reading",
    "DeepLabV3": "models.deeplabv3",
    "DetectionResult": "inference.results",
    "DetectionTask": "training",
    "DigitsData": "training.datamodules",
    "EMA": "training",
    "ExactResume": "training",
    "Extra": "extra_images",
    "FolderData": "training.datamodules",
    "LastCheckpoint": "training",
    "LearnedRanges": "augmentation.ranges",
    "LogPictures": "training",
    "Mix": "augmentation.mix",
    "MixUp": "augmentation.mixes",
    "MobileViT": "models.mobilevit",
    "MobileViTClassifier": "models.mobilevit",
    "MobileViTConfig": "models.mobilevit",
    "MobileViTV2": "models.mobilevitv2",
    "MobileViTV2Classifier": "models.mobilevitv2",
    "Mosaic": "augmentation.mixes",
    "Predictor": "inference.predictor",
    "Preprocess": "preprocess",
    "Report": "training",
    "Result": "inference.results",
    "Results": "inference.results",
    "Run": "training.fit",
    "SSDLite": "models.ssdlite",
    "SaveOnSignal": "training",
    "SegmentationFolderData": "training.datamodules",
    "SegmentationResult": "inference.results",
    "SegmentationTask": "training",
    "ShardData": "training.datamodules",
    "SlidingWindow": "inference.sliding_window",
    "TableData": "training.datamodules",
    "TestTimeAugmentation": "inference.tta",
    "VOCData": "training.datamodules",
    "VOCSegmentationData": "training.datamodules",
    "YOLOData": "training.datamodules",
    "check_backbone": "testing",
    "class_names": "data.class_lists",
    "convert": "weights.conversion",
    "demo": "training.demo",
    "draw_batch": "draw.images",
    "draw_confusion": "draw.charts",
    "draw_curves": "draw.charts",
    "draw_detections": "draw.images",
    "draw_overlay": "draw.images",
    "draw_per_class": "draw.charts",
    "draw_precision_recall": "draw.charts",
    "draw_predictions": "draw.images",
    "draw_reliability": "draw.charts",
    "draw_segmentation": "draw.images",
    "evaluate": "training.fit",
    "export": "exporters.writing",
    "exporters": "exporters",
    "find_recipe": "training",
    "find_weights": "weights.registry",
    "fit": "training.fit",
    "from_pretrained": "weights.registry",
    "fuse": "inference.engines.fuse",
    "info": "weights.info",
    "last_checkpoint": "training",
    "list_recipes": "training",
    "list_weights": "weights.registry",
    "load_checkpoint": "weights.checkpoints",
    "optimize": "inference.engines.optimize",
    "policies": "augmentation.policies",
    "predict": "inference.predictor",
    "preview": "training.preview",
    "push_to_hub": "weights.hub",
    "read_image": "data.reading",
    "read_weights": "weights.checkpoints",
    "register_in_kornia": "models.registration",
    "register_in_timm": "models.registration",
    "save_checkpoint": "weights.checkpoints",
    "save_pretrained": "weights.hub",
    "shards": "training.packing",
    "write_report": "training",
}

# What can be imported with torch and kornia alone; for the other names, `import *` would ask for an extra.
__all__ = [
    "AugmentationPipeline",
    "Batch",
    "CheckpointError",
    "ClassificationResult",
    "CopyPaste",
    "CutMix",
    "DataError",
    "DeepLabV3",
    "DetectionResult",
    "Extra",
    "LearnedRanges",
    "Mix",
    "MixUp",
    "MobileViT",
    "MobileViTClassifier",
    "MobileViTConfig",
    "MobileViTV2",
    "MobileViTV2Classifier",
    "Mosaic",
    "Predictor",
    "Preprocess",
    "Result",
    "Results",
    "SSDLite",
    "SegmentationResult",
    "SlidingWindow",
    "TestTimeAugmentation",
    "class_names",
    "convert",
    "draw_batch",
    "draw_detections",
    "draw_overlay",
    "draw_predictions",
    "draw_segmentation",
    "export",
    "exporters",
    "find_weights",
    "from_pretrained",
    "fuse",
    "info",
    "list_weights",
    "load_checkpoint",
    "optimize",
    "policies",
    "predict",
    "push_to_hub",
    "read_image",
    "read_weights",
    "register_in_kornia",
    "register_in_timm",
    "save_checkpoint",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_PLACES[name]}")
    value = module if name == _PLACES[name].rpartition(".")[2] and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


moved.install()
