"""Trained models as files for phones, browsers and servers. Needs ``kornia-mvit[export]``.

A format's code is imported as it is asked for, and what it needs as it is used: a missing package matters to its
format alone.

Functions that write take ``(model, path)`` and by name the fields of :class:`~kornia_mvit.exporters.options.Options`
that their format has, and return the path. Those that quantise take images after the path: uint8 RGB, (3, H, W) each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kornia_mvit.exporters.card import metadata
    from kornia_mvit.exporters.coreml import to_coreml
    from kornia_mvit.exporters.executorch import load_executorch, to_executorch
    from kornia_mvit.exporters.graph import Deployed, DeployPreprocess, Suppression, deployable
    from kornia_mvit.exporters.onnx import load_onnx, to_onnx
    from kornia_mvit.exporters.openvino import load_openvino, to_openvino
    from kornia_mvit.exporters.quantize import quantize_executorch, quantize_onnx, quantize_openvino
    from kornia_mvit.exporters.report import Comparison, Row, Table, compare, file_size, time_in_turn
    from kornia_mvit.exporters.torchexport import load_torchexport, to_torchexport
    from kornia_mvit.exporters.writing import Export, export

__all__ = [
    "Comparison",
    "DeployPreprocess",
    "Deployed",
    "Export",
    "Row",
    "Suppression",
    "Table",
    "compare",
    "deployable",
    "export",
    "file_size",
    "load_executorch",
    "load_onnx",
    "load_openvino",
    "load_torchexport",
    "metadata",
    "quantize_executorch",
    "quantize_onnx",
    "quantize_openvino",
    "time_in_turn",
    "to_coreml",
    "to_executorch",
    "to_onnx",
    "to_openvino",
    "to_torchexport",
]

_PLACES = {
    "graph": ("DeployPreprocess", "Deployed", "Suppression", "deployable"),
    "card": ("metadata",),
    "onnx": ("load_onnx", "to_onnx"),
    "openvino": ("load_openvino", "to_openvino"),
    "report": ("Comparison", "Row", "Table", "compare", "file_size", "time_in_turn"),
    "torchexport": ("load_torchexport", "to_torchexport"),
    "executorch": ("load_executorch", "to_executorch"),
    "coreml": ("to_coreml",),
    "writing": ("Export", "export"),
    "quantize": ("quantize_executorch", "quantize_onnx", "quantize_openvino"),
}
_PLACE = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PLACE[name]}"), name)
    globals()[name] = value
    return value
