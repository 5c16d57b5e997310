"""ONNX: for ONNX Runtime on servers and in browsers, and on the way to OpenVINO. Needs ``kornia-mvit[export]``."""

import re
from pathlib import Path
from typing import Any

import torch

from kornia_mvit.exporters.card import metadata
from kornia_mvit.exporters.graph import Deployed
from kornia_mvit.exporters.options import Options, Size, takes_options
from kornia_mvit.exporters.tracing import check_size, dynamic_shapes, example_input
from kornia_mvit.extras import needing
from kornia_mvit.files import write_whole
from kornia_mvit.inference.engines.exported import load_onnx, quiet
from kornia_mvit.weights.cards import Model

__all__ = ["load_onnx", "to_onnx"]

OPSET = 20


@takes_options("size", "with_preprocess", "with_decode", "layout", "nms", "fp16", "resample")
def to_onnx(model: Model, path: str | Path, *, options: Options) -> Path:
    """Write a model as an ONNX file, of images of any size and any number unless told otherwise.

    Args:
        model: what is written; left as it is.
        path: the file.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name.

    Returns:
        The path. Class names, preprocessing, task and version are in the file's metadata, see
        :func:`~kornia_mvit.exporters.metadata`.

    Raises:
        ImportError: where onnx or onnxscript is missing.
        ValueError: for sizes that the network does not take, and as :func:`~kornia_mvit.exporters.deployable` says.
    """
    with needing("writing ONNX needs {}", "export"):
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    graph = options.build_graph(model)
    check_size(graph, options.size)
    proto = _translate(graph, options.size)
    _name_dimensions(proto, graph)
    onnx.helper.set_model_props(proto, metadata(model, graph))
    onnx.checker.check_model(proto, full_check=True)
    with write_whole(path) as beside:
        onnx.save(proto, beside)
    return Path(path)


def _translate(graph: Deployed, size: Size) -> Any:
    image = example_input(graph, size)
    shapes = dynamic_shapes(graph, size)
    with quiet(), torch.no_grad():
        program = torch.export.export(graph, (image,), dynamic_shapes=shapes)
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.input_names,
            output_names=graph.output_names,
            external_data=False,
            verbose=False,
            custom_translation_table=_translations() if graph.nms else None,
        )
    assert written is not None
    return written.model_proto


def _translations() -> dict[Any, Any]:
    """Return how operators of this package are written."""
    import onnxscript

    op: Any = onnxscript.opset20  # its types are those of values, and these are names of such

    def suppress(boxes: Any, scores: Any, max_detections: int, iou_threshold: float, score_threshold: float) -> Any:
        rows = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[max_detections]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )  # image, class and box of each that is kept: its place among the scores
        ones = op.Expand(op.Constant(value_ints=[1]), op.Slice(op.Shape(rows), [0], [1]))
        zeros = op.Expand(op.Constant(value_ints=[0]), op.Shape(scores))
        return op.Cast(op.ScatterND(zeros, rows, ones), to=9)  # to bool

    return {torch.ops.kornia_mvit.suppress_boxes.default: suppress}


def _name_dimensions(proto: Any, graph: Deployed) -> None:
    """Call the sizes that are free what they are, in place of the tracer's symbols, and drop the tracer's notes."""
    names = ("batch", "height", "width") if graph.layout == "nhwc" else ("batch", "", "height", "width")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    renamed = {dim.dim_param: name for dim, name in zip(dims, names, strict=False) if dim.dim_param and name}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\bs\d+\b", lambda m: renamed.get(m[0], m[0]), dim.dim_param)
        del value.metadata_props[:]
    for node in (proto.graph, *proto.graph.node, *proto.graph.initializer):
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
        node.doc_string = ""
