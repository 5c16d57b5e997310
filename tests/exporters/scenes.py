"""Small models of each task, and photos, for the tests of this folder."""

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from kornia_mvit import DeepLabV3, MobileViTConfig, Preprocess, SSDLite
from kornia_mvit.models.modes import build_classifier
from kornia_mvit.weights.cards import Model
from tests.models.networks import DEEP

TASKS = ("classification", "segmentation", "detection")
# Each task, and two sizes of network; test_graph.py holds that the other pairs have no operators besides.
NARROW = "v2-0.05"  # the second version, as narrow as it gets
NETWORKS = (*(("xxs", task) for task in TASKS), ("s", "classification"))


def build(task: str, mode: str | MobileViTConfig = DEEP, preprocess: Preprocess | None = None) -> Model:
    """Return a model with weights that make something of what it sees, and statistics that are no identity."""
    torch.manual_seed(0)
    small = isinstance(mode, MobileViTConfig) or mode == NARROW
    if task == "classification":
        model: Model = build_classifier(mode, 5)
    elif task == "segmentation":
        model = DeepLabV3(mode, 4, aspp_channels=8 if small else 256, aux_channels=8)
    else:
        model = SSDLite(mode, 4, widths=(8,) * 6 if small else (512, 256, 256, 128, 128, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    names = ("ant", "bee", "cat", "dog", "eel")
    model.class_names = names[: model.num_classes - (task == "detection")]
    model.preprocess = preprocess or Preprocess((64, 96))
    return model.eval()


def photos() -> list[Tensor]:
    """Photos of odd sizes, uint8 (3, H, W): a landscape, one upright, and small cuts that are enlarged."""
    china, flower = (torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images)
    return [china[:, :333, :501], flower[:, 5:427, 11:322], china[:, 100:177, 200:301], flower[:, 30:243, 5:38]]


def batch(image: Tensor, layout: str = "nchw") -> Tensor:
    return image[None] if layout == "nchw" else image.permute(1, 2, 0)[None].contiguous()


def assert_same_levels(one, other, record):
    """Both round each direction to whole levels, and what lies at a half may go either way: few pixels by one level."""
    apart = (one - other).abs() * min(record.std or (1.0,)) * 255
    assert apart.max() <= 1 + 1e-3
    assert (apart > 0.01).float().mean() <= 0.02
