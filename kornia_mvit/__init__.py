"""Apple's MobileViT as a backbone, and an augmentation-aware pipeline around it, on PyTorch and Kornia."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kornia_mvit import moved

if TYPE_CHECKING:
    from kornia_mvit import exporters
    from kornia_mvit.augmentation import policies
    from kornia_mvit.augmentation.mix import Mix
    from kornia_mvit.augmentation.pipeline import AugmentationPipeline
    from kornia_mvit.batch import Batch
    from kornia_mvit.draw.images import draw_batch
    from kornia_mvit.exporters.writing import export
    from kornia_mvit.inference.engines.fuse import fuse
    from kornia_mvit.inference.engines.optimize import optimize
    from kornia_mvit.inference.predictor import Predictor, predict
    from kornia_mvit.inference.tta import TestTimeAugmentation
    from kornia_mvit.models.deeplabv3 import DeepLabV3
    from kornia_mvit.models.mobilevit import MobileViT, MobileViTClassifier, MobileViTConfig
    from kornia_mvit.models.registration import register_in_kornia
    from kornia_mvit.models.ssdlite import SSDLite
    from kornia_mvit.preprocess import Preprocess
    from kornia_mvit.training.demo import demo as demo
    from kornia_mvit.training.fit import Run as Run
    from kornia_mvit.training.fit import evaluate as evaluate
    from kornia_mvit.training.fit import fit as fit
    from kornia_mvit.training.preview import preview as preview
    from kornia_mvit.weights.checkpoints import load_checkpoint, save_checkpoint
    from kornia_mvit.weights.conversion import convert
    from kornia_mvit.weights.info import info
    from kornia_mvit.weights.registry import from_pretrained, list_weights

__version__ = "0.2.0.dev0"

# Where each public name stands; it is imported when it is first used.
_PLACES = {
    "AugmentationPipeline": "augmentation.pipeline",
    "Batch": "batch",
    "DeepLabV3": "models.deeplabv3",
    "Mix": "augmentation.mix",
    "MobileViT": "models.mobilevit",
    "MobileViTClassifier": "models.mobilevit",
    "MobileViTConfig": "models.mobilevit",
    "Predictor": "inference.predictor",
    "Preprocess": "preprocess",
    "Run": "training.fit",
    "SSDLite": "models.ssdlite",
    "TestTimeAugmentation": "inference.tta",
    "convert": "weights.conversion",
    "demo": "training.demo",
    "draw_batch": "draw.images",
    "evaluate": "training.fit",
    "export": "exporters.writing",
    "exporters": "exporters",
    "fit": "training.fit",
    "from_pretrained": "weights.registry",
    "fuse": "inference.engines.fuse",
    "info": "weights.info",
    "list_weights": "weights.registry",
    "load_checkpoint": "weights.checkpoints",
    "optimize": "inference.engines.optimize",
    "policies": "augmentation.policies",
    "predict": "inference.predictor",
    "preview": "training.preview",
    "register_in_kornia": "models.registration",
    "save_checkpoint": "weights.checkpoints",
}

# What needs torch and kornia alone; of the other names, `import *` would ask for an extra.
__all__ = [
    "AugmentationPipeline",
    "Batch",
    "DeepLabV3",
    "Mix",
    "MobileViT",
    "MobileViTClassifier",
    "MobileViTConfig",
    "Predictor",
    "Preprocess",
    "SSDLite",
    "TestTimeAugmentation",
    "convert",
    "draw_batch",
    "export",
    "exporters",
    "from_pretrained",
    "fuse",
    "info",
    "list_weights",
    "load_checkpoint",
    "optimize",
    "policies",
    "predict",
    "register_in_kornia",
    "save_checkpoint",
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
