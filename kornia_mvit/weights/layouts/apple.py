"""The names of cvnets, Apple's training code.

The published files of the first version are of its first release, whose names of heads come first; its later code,
which made those of the second version, has the others.
"""

from kornia_mvit.weights.layouts.rules import Head, Layout, name_deeplab

__all__ = ["APPLE", "APPLE_V2"]


def _name_ssdlite(prefix: str) -> Head:
    names: dict[str, str] = {}

    def block(ours: str, theirs: str) -> None:
        names.update({f"{ours}.conv": f"{theirs}.block.conv", f"{ours}.norm": f"{theirs}.block.norm"})

    for n, stride in enumerate((64, 128, 256)):
        block(f"extras.{n}.depthwise", f"extra_layers.os_{stride}.dw_conv")
        block(f"extras.{n}.pointwise", f"extra_layers.os_{stride}.pw_conv")
    block("extras.3.mix", "extra_layers.os_-1.1")
    for n in range(6):
        last = f"ssd_heads.{n}.loc_cls_layer"
        block(f"heads.{n}.project", f"ssd_heads.{n}.proj_layer")
        if n < 5:
            block(f"heads.{n}.depthwise", f"{last}.dw_conv")
        names[f"heads.{n}.both"] = f"{last}.block.conv" if n == 5 else f"{last}.pw_conv.block.conv"
    shapes = {f"heads.{n}": 4 if n == 5 else 6 for n in range(6)}
    return Head(prefix, {ours: (theirs,) for ours, theirs in names.items()}, shapes)


def _name_segmentation(*names: tuple[str, str, str]) -> Head:
    """Name the parts of a DeepLabV3; of each release the last layer, and the auxiliary head's convolution and last."""
    return name_deeplab(
        "encoder.",
        "seg_head.aspp.aspp_layer",
        "aspp_pool.conv_1x1",
        ("block.conv", "block.norm"),
        tuple(classifier for classifier, _, _ in names),
        *((project, last) for _, project, last in names),
    )


_FIRST = (
    "seg_head.classifier.classifier.block.conv",
    "seg_head.aux_head.aux_projection",
    "seg_head.aux_head.aux_classifier.block.conv",
)
_LATER = ("seg_head.classifier.block.conv", "seg_head.aux_head.0", "seg_head.aux_head.2.block.conv")
_NORMS = (  # after the layers of each block, by their number
    (r"^stages\.2\.1\.norm$", "layer_3.1.global_rep.2"),
    (r"^stages\.3\.1\.norm$", "layer_4.1.global_rep.4"),
    (r"^stages\.4\.1\.norm$", "layer_5.1.global_rep.3"),
)
_STAGES = (
    (r"^stem", "conv_1"),
    (r"^stages\.0", "layer_1"),
    (r"^stages\.1", "layer_2"),
    (r"^stages\.2", "layer_3"),
    (r"^stages\.3", "layer_4"),
    (r"^stages\.4", "layer_5"),
    (r"\.expand\.", ".block.exp_1x1."),
    (r"\.depthwise\.", ".block.conv_3x3."),
    (r"\.project\.", ".block.red_1x1."),
    (r"\.proj_out\.", ".conv_proj."),
)

APPLE = Layout(
    rules=(
        *_NORMS,
        (r"\.(conv|norm)$", r".block.\1"),
        *_STAGES,
        (r"^head_conv", "conv_1x1_exp"),
        (r"\.local\.", ".local_rep.conv_3x3."),
        (r"\.proj_in\.", ".local_rep.conv_1x1."),
        (r"\.transformer\.", ".global_rep."),
        (r"\.norm1$", ".pre_norm_mha.0"),
        (r"\.attn\.qkv$", ".pre_norm_mha.1.qkv_proj"),
        (r"\.attn\.proj$", ".pre_norm_mha.1.out_proj"),
        (r"\.norm2$", ".pre_norm_ffn.0"),
        (r"\.fc1$", ".pre_norm_ffn.1"),
        (r"\.fc2$", ".pre_norm_ffn.4"),
    ),
    heads={
        "classification": Head("", {"classifier": ("classifier.fc",)}),
        "segmentation": _name_segmentation(_FIRST, _LATER),
        "detection": _name_ssdlite("encoder."),
    },
)

APPLE_V2 = Layout(
    rules=(
        *_NORMS,
        (r"\.(conv|norm)$", r".block.\1"),
        *_STAGES,
        (r"\.local\.", ".local_rep.0."),
        (r"\.proj_in\.", ".local_rep.1."),
        (r"\.layers\.", ".global_rep."),
        (r"\.norm1$", ".pre_norm_attn.0"),
        (r"\.attn\.qkv$", ".pre_norm_attn.1.qkv_proj.block.conv"),
        (r"\.attn\.proj$", ".pre_norm_attn.1.out_proj.block.conv"),
        (r"\.norm2$", ".pre_norm_ffn.0"),
        (r"\.fc1$", ".pre_norm_ffn.1.block.conv"),
        (r"\.fc2$", ".pre_norm_ffn.3.block.conv"),
    ),
    heads={
        "classification": Head("", {"classifier": ("classifier.1",)}),
        "segmentation": _name_segmentation(_LATER, _FIRST),
        "detection": _name_ssdlite("encoder."),
    },
)
