"""What an exported file says of itself."""

import json
from typing import Any

from kornia_mvit.exporters.graph import Deployed
from kornia_mvit.models.mobilevitv2 import MobileViTV2, mode_name
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.weights.cards import Model, task_of

__all__ = ["metadata"]


def metadata(model: Model, graph: Deployed | None = None) -> dict[str, str]:
    """Return in words what an exported file holds, so that it can be used without its checkpoint.

    Args:
        model: what was exported.
        graph: what was put around it, if known.

    Returns:
        Texts by name: ``task``, ``version`` of this package, and as JSON, where they are known, ``class_names``,
        ``class_colours``, ``preprocess`` (see :meth:`Preprocess.to_dict`), ``anchors`` of a detector, and ``graph``,
        what stands around the network: ``with_preprocess``, ``with_decode``, ``layout`` and ``nms``.

    Example:
        >>> from kornia_mvit import MobileViTClassifier
        >>> known = metadata(MobileViTClassifier('xxs', num_classes=2))
        >>> known['task'], known['num_classes']
        ('classification', '2')
    """
    from kornia_mvit import __version__

    out = {"task": str(task_of(model)), "version": __version__, "num_classes": str(model.num_classes)}
    known: dict[str, Any] = {
        "class_names": model.class_names,
        "class_colours": getattr(model, "class_colours", None),
        "preprocess": None if model.preprocess is None else model.preprocess.to_dict(),
    }
    if isinstance(model, SSDLite):  # what its raw outputs are decoded with
        known["anchors"] = {"aspect_ratios": model.aspect_ratios, "scales": model.scales}
        if isinstance(model.backbone, MobileViTV2):  # whose maps are larger where a patch does not divide them
            known["anchors"] |= {"mode": mode_name(model.backbone.width), "patch_size": model.backbone.patch_size}
    if graph is not None:
        known["graph"] = {name: getattr(graph, name) for name in ("with_preprocess", "with_decode", "layout", "nms")}
    return out | {name: json.dumps(value) for name, value in known.items() if value is not None}
