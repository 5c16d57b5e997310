"""Models of the peers' own classes, with weights and statistics that tell every tensor from every other."""

from typing import Any

import torch
from kornia.models.vit_mobile import MobileViT as KorniaMobileViT
from torch import Tensor, nn

SIZES = {
    "xxs": ([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
    "xs": ([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "s": ([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
}


def timm(mode: str, num_classes: int = 7) -> nn.Module:
    from timm import create_model

    return create_model(f"mobilevit_{mode}", num_classes=num_classes)


def transformers(mode: str, num_classes: int = 7) -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    hidden, neck, expand = SIZES[mode]
    config = MobileViTConfig(hidden_sizes=hidden, neck_hidden_sizes=neck, expand_ratio=expand, num_labels=num_classes)
    return MobileViTForImageClassification(config)


def transformers_segmentation(mode: str, num_classes: int = 7, output_stride: int = 16, **options: Any) -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    hidden, neck, expand = SIZES[mode]
    config = MobileViTConfig(
        hidden_sizes=hidden,
        neck_hidden_sizes=neck,
        expand_ratio=expand,
        num_labels=num_classes,
        output_stride=output_stride,
        **options,
    )
    return MobileViTForSemanticSegmentation(config)


def kornia(mode: str, num_classes: int = 0) -> nn.Module:
    return KorniaMobileViT(mode)


def timm_second(width: float, num_classes: int = 7, **options: Any) -> nn.Module:
    from timm import create_model

    return create_model(f"mobilevitv2_{round(100 * width):03d}", num_classes=num_classes, **options)


def transformers_second(width: float, num_classes: int = 7) -> nn.Module:
    from transformers import MobileViTV2Config, MobileViTV2ForImageClassification

    return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=num_classes))


def transformers_second_segmentation(width: float, num_classes: int = 7, **options: Any) -> nn.Module:
    from transformers import MobileViTV2Config, MobileViTV2ForSemanticSegmentation

    options = {"output_stride": 16, **options}
    config = MobileViTV2Config(width_multiplier=width, num_labels=num_classes, **options)
    return MobileViTV2ForSemanticSegmentation(config)


PEERS = {"timm": timm, "transformers": transformers, "kornia": kornia}
SECOND = {"timm": timm_second, "transformers": transformers_second}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill weights and statistics so that a map that confuses two of them shows, and signals keep their size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(value: Tensor, std: float) -> Tensor:
        return torch.empty_like(value).normal_(0.0, std, generator=generator)

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(int(torch.randint(1000, (), generator=generator)))
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                value.copy_(normal(value, 0.1))
            elif value.ndim > 1:
                value.copy_(normal(value, 1.25 / value[0].numel() ** 0.5))
            else:
                value.uniform_(0.8, 1.2, generator=generator)
    return model.eval()


def run(model: nn.Module, image: Tensor) -> Tensor:
    """Return logits, or the final map of a backbone."""
    out = model(image)
    return getattr(out, "logits", out)
