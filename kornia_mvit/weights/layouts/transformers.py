"""The names of Hugging Face's transformers."""

from collections.abc import Mapping

from kornia_mvit.weights.layouts.rules import Head, Layout, name_deeplab

__all__ = ["TRANSFORMERS", "TRANSFORMERS_V2"]

_STAGES = (
    (r"\.1\.norm$", ".1.layernorm"),  # after a transformer
    (r"\.norm$", ".normalization"),
    (r"\.conv$", ".convolution"),
    (r"^stem", "conv_stem"),
    (r"^stages\.([01])\.", r"encoder.layer.\1.layer."),
    (r"^stages\.(\d)\.0\.", r"encoder.layer.\1.downsampling_layer."),
    (r"^stages\.(\d)\.1\.", r"encoder.layer.\1."),
    (r"\.expand\.", ".expand_1x1."),
    (r"\.depthwise\.", ".conv_3x3."),
    (r"\.project\.", ".reduce_1x1."),
    (r"\.local\.", ".conv_kxk."),
    (r"\.proj_in\.", ".conv_1x1."),
    (r"\.proj_out\.", ".conv_projection."),
    (r"\.(?:transformer|layers)\.", ".transformer.layer."),
    (r"\.norm1$", ".layernorm_before"),
    (r"\.norm2$", ".layernorm_after"),
)


def _name_heads(prefix: str) -> Mapping[str, Head]:
    return {
        "classification": Head(prefix, {"classifier": ("classifier",)}),
        "segmentation": name_deeplab(
            prefix,
            "segmentation_head.aspp",
            "conv_1x1",
            ("convolution", "normalization"),
            ("segmentation_head.classifier.convolution",),
        ),
    }


TRANSFORMERS = Layout(
    rules=(
        *_STAGES,
        (r"^head_conv", "conv_1x1_exp"),
        (r"\.attn\.qkv$", ".attention.attention.{query,key,value}"),
        (r"\.attn\.proj$", ".attention.output.dense"),
        (r"\.fc1$", ".intermediate.dense"),
        (r"\.fc2$", ".output.dense"),
    ),
    heads=_name_heads("mobilevit."),
)
TRANSFORMERS_V2 = Layout(
    rules=(
        *_STAGES,
        (r"\.attn\.qkv$", ".attention.qkv_proj.convolution"),
        (r"\.attn\.proj$", ".attention.out_proj.convolution"),
        (r"\.fc1$", ".ffn.conv1.convolution"),
        (r"\.fc2$", ".ffn.conv2.convolution"),
    ),
    heads=_name_heads("mobilevitv2."),
)
