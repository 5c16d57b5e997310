"""The names of timm."""

from kornia_mvit.weights.layouts.rules import Head, Layout

__all__ = ["TIMM", "TIMM_V2"]

_HEADS = {"classification": Head("", {"classifier": ("head.fc",)})}
_STAGES = (
    (r"\.proj_in\.conv$", ".conv_1x1"),  # a convolution, which has a normalisation in one variant
    (r"\.proj_in\.norm$", ".conv_1x1.bn"),
    (r"(stem|head_conv|expand|depthwise|project|local|proj_out|fusion)\.norm$", r"\1.bn"),
    (r"^head_conv", "final_conv"),
    (r"\.expand\.", ".conv1_1x1."),
    (r"\.depthwise\.", ".conv2_kxk."),
    (r"\.project\.", ".conv3_1x1."),
    (r"\.local\.", ".conv_kxk."),
    (r"\.proj_out\.", ".conv_proj."),
    (r"\.fusion\.", ".conv_fusion."),
    (r"\.fc(\d)$", r".mlp.fc\1"),
)

TIMM = Layout(rules=_STAGES, heads=_HEADS)
TIMM_V2 = Layout(
    rules=(
        *_STAGES,
        (r"\.layers\.", ".transformer."),
        (r"\.attn\.qkv$", ".attn.qkv_proj"),
        (r"\.attn\.proj$", ".attn.out_proj"),
    ),
    heads=_HEADS,
)
