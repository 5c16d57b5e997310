"""The names of Hugging Face's transformers."""

from kornia_mvit.weights.layouts.rules import Head, Layout, name_deeplab

__all__ = ["TRANSFORMERS"]

TRANSFORMERS = Layout(
    rules=(
        (r"\.1\.norm$", ".1.layernorm"),  # after a transformer
        (r"\.norm$", ".normalization"),
        (r"\.conv$", ".convolution"),
        (r"^stem", "conv_stem"),
        (r"^head_conv", "conv_1x1_exp"),
        (r"^stages\.([01])\.", r"encoder.layer.\1.layer."),
        (r"^stages\.(\d)\.0\.", r"encoder.layer.\1.downsampling_layer."),
        (r"^stages\.(\d)\.1\.", r"encoder.layer.\1."),
        (r"\.expand\.", ".expand_1x1."),
        (r"\.depthwise\.", ".conv_3x3."),
        (r"\.project\.", ".reduce_1x1."),
        (r"\.local\.", ".conv_kxk."),
        (r"\.proj_in\.", ".conv_1x1."),
        (r"\.proj_out\.", ".conv_projection."),
        (r"\.transformer\.", ".transformer.layer."),
        (r"\.norm1$", ".layernorm_before"),
        (r"\.attn\.qkv$", ".attention.attention.{query,key,value}"),
        (r"\.attn\.proj$", ".attention.output.dense"),
        (r"\.norm2$", ".layernorm_after"),
        (r"\.fc1$", ".intermediate.dense"),
        (r"\.fc2$", ".output.dense"),
    ),
    heads={
        "classification": Head("mobilevit.", {"classifier": ("classifier",)}),
        "segmentation": name_deeplab(
            "mobilevit.",
            "segmentation_head.aspp",
            "conv_1x1",
            ("convolution", "normalization"),
            ("segmentation_head.classifier.convolution",),
        ),
    },
)
