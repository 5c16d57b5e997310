"""Core ML: for Apple's phones and computers. Needs ``kornia-mvit[export]``.

A package is written and its specification checked on any machine; only macOS runs it.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit.exporters.canvas import Canvas, static_graph
from kornia_mvit.exporters.formats import find_format
from kornia_mvit.exporters.graph import Deployed
from kornia_mvit.exporters.options import Options, takes_options
from kornia_mvit.extras import needing
from kornia_mvit.files import scratch, write_whole
from kornia_mvit.inference.engines.exported import silence
from kornia_mvit.weights.cards import Model

__all__ = ["to_coreml"]


@takes_options("size", "with_preprocess", "with_decode", "layout", "fp16", size=256)
def to_coreml(model: Model, path: str | Path, *, options: Options) -> Path:
    """Write a model as a Core ML package for one image at a time, of one size.

    It needs iOS 16 or macOS 13. With preprocessing the input is an image, as a camera gives it, and beside it its
    ``size``; without, an array as the network takes it.

    Args:
        model: what is written; left as it is.
        path: the package, a folder whose name ends in ``.mlpackage``.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name. The size is
            256 unless given, and never ``'dynamic'``; with preprocessing it is that of the largest image: images lie
            on a canvas of that size, see :class:`~kornia_mvit.exporters.canvas.Canvas`. The layout is ``'nchw'``.
            With ``fp16`` what the preprocessing computes, and what follows the network, stays in single precision.

    Returns:
        The path. Class names, preprocessing, task and version are in the package's metadata, see
        :func:`~kornia_mvit.exporters.metadata`.

    Raises:
        ImportError: where coremltools is missing.
        ValueError: for a path of another ending, another layout, ``'dynamic'`` and other sizes that the package cannot
            take, preprocessing to various sizes, and as :func:`~kornia_mvit.exporters.deployable` says.
    """
    with needing("Core ML packages need coremltools", "export"), silence():
        import coremltools
    path = Path(path)
    find_format(path, "coreml")  # refuses another ending
    if options.layout != "nchw":
        raise ValueError(f"layout {options.layout!r} is not one of Core ML, which takes images as such; leave it out")
    graph, example, about = static_graph(model, replace(options, fp16=False), "Core ML")
    inputs = tuple(x.float() if n == 0 else x.to(torch.int32) for n, x in enumerate(example))
    with torch.no_grad(), silence():
        program = torch.export.export(_Named(graph), inputs).run_decompositions({})
        with scratch(path):  # coremltools has temporary folders of its own, where the error is to name the file, too
            try:
                package = coremltools.convert(
                    program,
                    minimum_deployment_target=coremltools.target.iOS16,
                    compute_precision=_half(coremltools) if options.fp16 else coremltools.precision.FLOAT32,
                    skip_model_load=True,
                )
            except RuntimeError as error:
                if "FileWriter" not in str(error):
                    raise
                raise OSError("coremltools could not write its weights") from None
            package = _describe(coremltools, package, graph, about)
        with write_whole(path) as beside:
            package.save(str(beside))
    return path


class _Named(nn.Module):
    """The graph with inputs that have names, as the package takes them over."""

    def __init__(self, graph: Deployed | Canvas) -> None:
        super().__init__()
        self.deployed = graph  # not graph, which is torch.fx's

    def forward(self, image: Tensor, size: Tensor | None = None) -> Any:
        return self.deployed(image) if size is None else self.deployed(image, size)


def _describe(coremltools: Any, package: Any, graph: Deployed | Canvas, about: dict[str, str]) -> Any:
    """Name the outputs, take images as images, and put down what the package says of itself."""
    spec = package.get_spec()
    for output, name in zip(list(spec.description.output), graph.output_names, strict=True):
        coremltools.utils.rename_feature(spec, output.name, name)
    if isinstance(graph, Canvas):
        kind = spec.description.input[0].type
        height, width = graph.max_size
        kind.imageType.width, kind.imageType.height = width, height
        kind.imageType.colorSpace = coremltools.proto.FeatureTypes_pb2.ImageFeatureType.RGB
    names = json.loads(about.get("class_names", "null"))
    spec.description.metadata.shortDescription = f"MobileViT for {about['task']}" + (
        f" of {len(names)} classes" if names else ""
    )
    spec.description.metadata.versionString = about["version"]
    spec.description.metadata.userDefined.update({f"kornia_mvit.{name}": text for name, text in about.items()})
    return coremltools.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)


def _half(coremltools: Any) -> Any:
    """Return half precision for what lies from the network's first operation with weights to its last."""
    weighted = ("conv", "linear")
    before: dict[Any, bool] = {}
    after: dict[Any, bool] = {}

    def follows(op: Any) -> bool:
        if op not in before:
            before[op] = any(p.op_type in weighted or follows(p) for p in _parents(op))
        return before[op]

    def leads(op: Any) -> bool:
        if op not in after:
            after[op] = any(c.op_type in weighted or leads(c) for o in op.outputs for c in o.child_ops)
        return after[op]

    def chosen(op: Any) -> bool:
        return op.op_type in weighted or (follows(op) and leads(op))

    return coremltools.transform.FP16ComputePrecision(op_selector=chosen)


def _parents(op: Any) -> Iterator[Any]:
    for value in op.inputs.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if one is not None and one.op is not None:
                yield one.op
