"""Our own names. Heads are told by their first part alone, so that a pyramid may have any number of branches."""

from kornia_mvit.weights.layouts.rules import Head, Layout

__all__ = ["NATIVE"]

NATIVE = Layout(
    rules=(),
    heads={
        "classification": Head("backbone.", {"classifier": ("classifier",)}),
        "segmentation": Head("backbone.", {"head": ("head",), "aux_head": ("aux_head",)}),
        "detection": Head("backbone.", {"extras": ("extras",), "heads": ("heads",)}),
    },
)
