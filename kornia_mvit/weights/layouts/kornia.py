"""The names of ``kornia.models.vit_mobile``, which numbers residuals and blocks through all stages."""

from kornia_mvit.weights.layouts.rules import Head, Layout

__all__ = ["KORNIA"]

KORNIA = Layout(
    rules=(
        (r"(stem|head_conv|local|proj_in|proj_out|fusion)\.conv$", r"\1.0"),
        (r"(stem|head_conv|local|proj_in|proj_out|fusion)\.norm$", r"\1.1"),
        (r"^stem", "conv1"),
        (r"^head_conv", "conv2"),
        (r"expand\.conv$", "conv.0"),
        (r"expand\.norm$", "conv.1"),
        (r"depthwise\.conv$", "conv.3"),
        (r"depthwise\.norm$", "conv.4"),
        (r"project\.conv$", "conv.6"),
        (r"project\.norm$", "conv.7"),
        (r"^stages\.0\.0", "mv2.0"),
        (r"^stages\.1\.0", "mv2.1"),
        (r"^stages\.1\.1", "mv2.2"),
        (r"^stages\.1\.2", "mv2.3"),
        (r"^stages\.2\.0", "mv2.4"),
        (r"^stages\.3\.0", "mv2.5"),
        (r"^stages\.4\.0", "mv2.6"),
        (r"^stages\.2\.1", "mvit.0"),
        (r"^stages\.3\.1", "mvit.1"),
        (r"^stages\.4\.1", "mvit.2"),
        (r"\.local\.", ".conv1."),
        (r"\.proj_in\.", ".conv2."),
        (r"\.proj_out\.", ".conv3."),
        (r"\.fusion\.", ".conv4."),
        (r"\.transformer\.", ".transformer.layers."),
        (r"\.norm1$", ".0.norm"),
        (r"\.attn\.qkv$", ".0.fn.to_qkv"),
        (r"\.attn\.proj$", ".0.fn.to_out.0"),
        (r"\.norm2$", ".1.norm"),
        (r"\.fc1$", ".1.fn.net.0"),
        (r"\.fc2$", ".1.fn.net.3"),
    ),
    # Kornia's class has none; the code that it came from has a linear layer without bias.
    heads={"classification": Head("", {"classifier": ("fc",)}, written=False)},
    transformed_first=True,
)
