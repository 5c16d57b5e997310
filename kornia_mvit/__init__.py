"""Apple's MobileViT as a backbone, and an augmentation-aware pipeline around it, on PyTorch and Kornia."""

from kornia_mvit.augmentation import policies
from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.augmentation.tta import TestTimeAugmentation
from kornia_mvit.data.batch import Batch
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.models.fuse import fuse
from kornia_mvit.models.mobilevit import MobileViT, MobileViTClassifier, MobileViTConfig
from kornia_mvit.models.optimize import optimize
from kornia_mvit.models.registration import register_in_kornia
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.visualize import draw_batch
from kornia_mvit.weights.checkpoints import load_checkpoint, save_checkpoint
from kornia_mvit.weights.registry import from_pretrained, list_weights

__version__ = "0.1.0"

__all__ = [
    "AugmentationPipeline",
    "Batch",
    "DeepLabV3",
    "Mix",
    "MobileViT",
    "MobileViTClassifier",
    "MobileViTConfig",
    "Preprocess",
    "SSDLite",
    "TestTimeAugmentation",
    "draw_batch",
    "from_pretrained",
    "fuse",
    "list_weights",
    "load_checkpoint",
    "optimize",
    "policies",
    "register_in_kornia",
    "save_checkpoint",
]
