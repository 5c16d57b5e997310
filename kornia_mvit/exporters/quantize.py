"""Post-training static quantisation to int8: for ONNX Runtime, for OpenVINO, and for ExecuTorch on XNNPACK.

Convolutions and linear layers compute with 8-bit numbers: weights with a scale for each output channel, activations
with a scale and a zero point for each tensor, taken from the ranges that calibration images give. Everything between
them stays in float32: layer normalisation, softmax and the products of attention, sums, resizes, and what stands
around the network; for ExecuTorch the activations too. So do the layers that are named to be kept. OpenVINO's toolkit,
NNCF, decides for itself what else is quantised, the products of attention among it. Needs
``kornia-mvit[export]``.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit.exporters.canvas import Canvas, lay_on_canvas, static_graph
from kornia_mvit.exporters.executorch import lower, shared_provenance
from kornia_mvit.exporters.formats import find_format
from kornia_mvit.exporters.graph import deployable
from kornia_mvit.exporters.onnx import to_onnx
from kornia_mvit.exporters.openvino import translate
from kornia_mvit.exporters.options import Options, Size, sides, takes_options
from kornia_mvit.extras import needing
from kornia_mvit.files import scratch, write_whole
from kornia_mvit.inference.engines.exported import silence
from kornia_mvit.inference.engines.int8 import (
    Calibration,
    measure_change,
    prepare_calibration,
    quantize_graph,
    read_calibration,
    resize,
)
from kornia_mvit.models.layers import ConvNormAct
from kornia_mvit.weights.cards import Model

__all__ = [
    "LayerError",
    "describe_layers",
    "layer_errors",
    "quantize_executorch",
    "quantize_onnx",
    "quantize_openvino",
]

KEEP = ("backbone.stem",)  # layers that stay in float32 unless told otherwise: the first sees the image itself


# ---------------------------------------------------------------------------------------------------- calibration


def _inputs(model: Model, images: Calibration, size: Size) -> Iterator[Tensor]:
    """Prepare calibration images as the network takes them, one a batch."""
    return (_resize(x, size) for x in prepare_calibration(model, images))


def _resize(image: Tensor, size: Size) -> Tensor:
    """Return images (B, C, H, W) of a size; as they are where it is ``'dynamic'``."""
    return image if isinstance(size, str) else resize(image, sides(size))


def _layers(model: nn.Module) -> dict[str, tuple[nn.Conv2d | nn.Linear, nn.Module]]:
    """Return the layers with weights by name, each with the module that ends it: its normalisation, if any."""
    outputs: dict[nn.Module, nn.Module] = {
        module.conv: module.norm for module in model.modules() if isinstance(module, ConvNormAct)
    }
    return {
        name: (module, outputs.get(module, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def _kept(model: nn.Module, keep: Sequence[str]) -> set[str]:
    """Return the layers with weights that are named, or lie in what is named.

    Raises:
        ValueError: for a name that is none of a layer's, nor the beginning of one.
    """
    names, kept = list(_layers(model)), set()
    if keep is KEEP and not any(name.startswith(f"{KEEP[0]}.") for name in names):
        keep = names[:1]  # of another backbone
    for prefix in keep:
        found = {name for name in names if name == prefix or name.startswith(f"{prefix}.")}
        if not found:
            raise ValueError(f"{prefix!r} names no layer that is quantised; those are {', '.join(names)}")
        kept |= found
    return kept


def _execution_order(model: nn.Module, x: Tensor) -> list[str]:
    """Return the layers with weights in the order in which they run."""
    order: list[str] = []
    with torch.no_grad(), ExitStack() as hooks:
        for name, (layer, _) in _layers(model).items():
            hooks.enter_context(layer.register_forward_hook(lambda _, __, ___, name=name: order.append(name)))
        model(x)
    return order


# ----------------------------------------------------------------------------------------------------- ONNX Runtime


@takes_options("size", "with_preprocess", "with_decode", "layout", "nms")
def quantize_onnx(
    model: Model, path: str | Path, images: Calibration, *, options: Options, keep: Sequence[str] = KEEP
) -> Path:
    """Write a model as an ONNX file in int8, in ONNX Runtime's QDQ form.

    Args:
        model: what is written; left as it is.
        path: the file.
        images: calibration images, uint8 RGB (3, H, W), their paths or their folder: some dozens that are like those
            that the model will see.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name.
        keep: names of layers, or of blocks of them, that stay in float32; :func:`layer_errors` tells which matter.

    Returns:
        The path.

    Raises:
        ImportError: where onnx, onnxscript or onnxruntime is missing.
        ValueError: without images, for other images than uint8 ones, for names of no layer, and as
            :func:`~kornia_mvit.exporters.to_onnx` says.
    """
    with needing("quantising for ONNX Runtime needs {}", "export"):
        import onnx
        from onnxruntime import quantization
    kept, shown, path = _kept(model, keep), list(read_calibration(images)), Path(path)
    inputs = _calibration(model, shown, options)
    with scratch(path) as folder:
        source, target = folder / "float.onnx", folder / "int8.onnx"
        to_onnx(model, source, **vars(options))
        proto = onnx.load(source)
        nodes = _named_layers(model, proto, _inputs(model, shown[:1], options.size))
        with silence():
            quantization.quantize_static(
                source,
                target,
                _reader(quantization, proto.graph.input[0].name, inputs),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv", "Gemm", "MatMul", "Mul", "Sigmoid"],
                nodes_to_quantize=[
                    *(node for node, layer in nodes.items() if layer not in kept),
                    *_activations(proto),
                ],
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
        written = onnx.load(target)
    del written.metadata_props[:]
    written.metadata_props.extend(proto.metadata_props)
    with write_whole(path) as beside:
        onnx.save(written, beside)
    return path


def _calibration(model: Model, images: Sequence[Tensor], options: Options) -> list[Tensor]:
    """Return calibration images as what is written takes them, one a batch."""
    prepared = list(_inputs(model, images, options.size))  # which refuses what is no image
    if not options.with_preprocess:
        return prepared
    raw = [_resize(image[None], options.size) for image in images]
    return [x.permute(0, 2, 3, 1) if options.layout == "nhwc" else x for x in raw]


def _named_layers(model: Model, proto: Any, inputs: Iterable[Tensor]) -> dict[str, str]:
    """Return the layer of each node that multiplies with weights."""
    weights = {tensor.name for tensor in proto.graph.initializer if len(tensor.dims) >= 2}
    kinds = ("Conv", "Gemm", "MatMul")
    nodes = [node.name for node in proto.graph.node if node.op_type in kinds and weights & set(node.input)]
    order = _execution_order(deployable(model, fused=False).model, next(iter(inputs)))
    assert len(nodes) == len(order), "each layer with weights is one node of the graph, in the order that they run"
    return dict(zip(nodes, order, strict=True))


def _activations(proto: Any) -> list[str]:
    """Return the names of the nodes of SiLU: left in float32, each would bring its map to float32 and back."""
    sigmoids = [node for node in proto.graph.node if node.op_type == "Sigmoid"]
    gates = {node.output[0] for node in sigmoids}
    products = [node for node in proto.graph.node if node.op_type == "Mul" and gates & set(node.input)]
    return [node.name for node in (*sigmoids, *products)]


def _reader(quantization: Any, name: str, inputs: Iterable[Tensor]) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # known when it runs
        def __init__(self) -> None:
            self.batches = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.contiguous().numpy()}

    return Reader()


# --------------------------------------------------------------------------------------------------------- OpenVINO


@takes_options("size", "with_preprocess", "with_decode", "layout", "nms")
def quantize_openvino(
    model: Model, path: str | Path, images: Calibration, *, options: Options, keep: Sequence[str] = ()
) -> Path:
    """Write a model as OpenVINO's intermediate representation in int8, as its toolkit NNCF quantises transformers.

    Args:
        model: what is written; left as it is.
        path: the ``.xml`` file; its weights lie beside it in a ``.bin``.
        images: calibration images, uint8 RGB (3, H, W), their paths or their folder: some dozens that are like those
            that the model will see.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name.
        keep: names of layers, or of blocks of them, that stay in float32; :func:`layer_errors` tells which matter.

    Returns:
        The path.

    Raises:
        ImportError: where nncf, openvino, onnx or onnxscript is missing.
        ValueError: without images, for other images than uint8 ones, for names of no layer, and as
            :func:`~kornia_mvit.exporters.to_onnx` says.
    """
    with needing("quantising for OpenVINO needs {}", "export"):
        import nncf  # noqa: F401  # before the work begins
        import onnx
        import openvino
    kept, shown, path = _kept(model, keep), list(read_calibration(images)), Path(path)
    find_format(path, "openvino")  # refuses another ending
    inputs = _calibration(model, shown, options)
    with scratch(path) as folder:
        file = folder / "float.onnx"
        with silence():
            translated = translate(model, file, options)
        nodes = _named_layers(model, onnx.load(file), _inputs(model, shown[:1], options.size))
    outside = _outside(translated, list(nodes), {node for node, layer in nodes.items() if layer in kept})
    written = quantize_graph(translated, inputs, outside=outside)
    with write_whole(path) as beside:
        openvino.save_model(written, beside, compress_to_fp16=False)
    return path


def _outside(translated: Any, layers: Sequence[str], kept: set[str]) -> list[str]:
    """Return the operations that stay in float32: what stands before and after the network, and layers that are kept.

    Args:
        translated: OpenVINO's model.
        layers: names of the nodes that multiply with weights, the first one first.
        kept: those that stay.
    """
    # An operation that became several, such as a convolution and its bias, has names with what was added after a slash.
    ops = {op.get_friendly_name(): op for op in translated.get_ordered_ops()}

    def before(names: Iterable[str]) -> set[str]:
        """Return the operations that these take something from, at first hand or not."""
        found, waiting = set(), list(names)
        while waiting:
            for value in ops[waiting.pop()].input_values():
                name = value.get_node().get_friendly_name()
                if name not in found:
                    found.add(name)
                    waiting.append(name)
        return found

    ours = {name: name.partition("/")[0] for name in ops}
    weighted = {name for name in ops if ours[name] in layers}
    network = before(weighted) | weighted
    begun = {name for name in weighted if ours[name] == layers[0]}
    preparation = before(begun) - begun
    return [name for name in ops if name not in network or name in preparation or ours[name] in kept]


# ------------------------------------------------------------------------------------------------------- ExecuTorch


@takes_options("size", "with_preprocess", "with_decode", "layout", size=256)
def quantize_executorch(
    model: Model, path: str | Path, images: Calibration, *, options: Options, keep: Sequence[str] = KEEP
) -> Path:
    """Write a model as an ExecuTorch program in int8, on XNNPACK's kernels.

    Args:
        model: what is written; left as it is.
        path: the file.
        images: calibration images, uint8 RGB (3, H, W), their paths or their folder: some dozens that are like those
            that the model will see; those larger than the program's canvas are shrunk.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name;
            see :func:`~kornia_mvit.exporters.to_executorch`.
        keep: names of layers, or of blocks of them, that stay in float32; :func:`layer_errors` tells which matter.

    Returns:
        The path.

    Raises:
        ImportError: where executorch or torchao is missing.
        ValueError: without images, for other images than uint8 ones, for names of no layer, and as
            :func:`~kornia_mvit.exporters.to_executorch` says.
    """
    with needing("quantising for ExecuTorch needs {}", "export"), silence():
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        from torchao.quantization import pt2e
        from torchao.quantization.pt2e import quantize_pt2e
    kept, shown = _kept(model, keep), list(read_calibration(images))
    inputs = list(_inputs(model, shown, options.size))
    graph, example, about = static_graph(model, options, "ExecuTorch")
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack.XNNPACKQuantizer()
    for operator in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
        quantizer.set_operator_type(operator, config)
    quantizer.set_filter_function(lambda node: _module_of(node) not in kept)
    with torch.no_grad(), silence(), shared_provenance():
        module: Any = torch.export.export(graph, example).module()
        # The quantizer makes floats of whole numbers, exact here, of which these nodes would complain.
        for node in list(module.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)
        module.recompile()
        prepared = quantize_pt2e.prepare_pt2e(module, quantizer)
        pt2e.move_exported_model_to_eval(prepared)
        for image, x in zip(shown, inputs, strict=True):
            prepared(*(_on_canvas(image, graph) if isinstance(graph, Canvas) else (x,)))
        program = torch.export.export(quantize_pt2e.convert_pt2e(prepared), example)
    return lower(program, path, about)


def _on_canvas(image: Tensor, graph: Canvas) -> tuple[Tensor, Tensor]:
    scale = min(1.0, *(most / side for most, side in zip(graph.max_size, image.shape[-2:], strict=True)))
    if scale < 1:
        image = _resize(image[None], (int(image.shape[-2] * scale), int(image.shape[-1] * scale)))[0]
    return lay_on_canvas(image, graph.max_size, graph.deployed.layout)


def _module_of(node: torch.fx.Node) -> str:
    """Return the name, within the network, of the layer that a node of a traced graph comes from."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    name: str = list(stack.values())[-1][0]
    return name.partition("model.")[2]


# ------------------------------------------------------------------------------------------------------ what it costs


@dataclass(frozen=True)
class LayerError:
    """What happens to a model's outputs when one layer computes in int8.

    Args:
        name: of the layer.
        error: root mean square of the outputs' change, as a share of the outputs' own.
        changed: share of the answers that change: classes of images, pixels or anchors.
    """

    name: str
    error: float
    changed: float


@torch.no_grad()
def layer_errors(model: Model, images: Calibration, size: Size = "dynamic") -> list[LayerError]:
    """Return which layers hurt most: each computes in int8 in turn, with PyTorch's arithmetic, and all others in float.

    Args:
        model: what would be quantised; left as it is.
        images: uint8 RGB (3, H, W): they give the ranges, and the outputs that are compared.
        size: of what the network sees; as the model's preprocessing has it when ``'dynamic'``.

    Returns:
        The layers, the worst first.

    Raises:
        ValueError: without images, or for other images than uint8 ones.

    Example:
        >>> from kornia_mvit import MobileViTClassifier, Preprocess
        >>> model = MobileViTClassifier('xxs', num_classes=5)
        >>> model.preprocess = Preprocess((64, 64))
        >>> worst = layer_errors(model, [torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8)])[0]
        >>> 0 < worst.error < 1
        True
    """
    training, inputs = model.training, list(_inputs(model, images, size))
    model.eval()
    try:
        layers = _layers(model)
        ranges = _ranges(model, layers, inputs)
        whole = [model(x) for x in inputs]
        found = []
        for name, (layer, output) in layers.items():
            if name not in ranges:  # an auxiliary head, which training alone runs
                continue
            with _quantised(layer, output, *ranges[name]):
                found.append(LayerError(name, *measure_change(whole, [model(x) for x in inputs])))
    finally:
        model.train(training)
    return sorted(found, key=lambda one: -one.error)


Range = tuple[float, float]


def _ranges(
    model: nn.Module, layers: dict[str, tuple[nn.Conv2d | nn.Linear, nn.Module]], inputs: list[Tensor]
) -> dict[str, tuple[Range, Range]]:
    """Return the least and largest values that go into each layer and that come out, zero among them."""
    ranges: dict[tuple[str, int], Range] = {}

    def widen(key: tuple[str, int], x: Tensor) -> None:
        low, high = ranges.get(key, (0.0, 0.0))
        ranges[key] = (min(low, float(x.min())), max(high, float(x.max())))

    with ExitStack() as hooks:
        for name, (layer, output) in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(lambda _, x, name=name: widen((name, 0), x[0])))
            hooks.enter_context(output.register_forward_hook(lambda _, __, y, name=name: widen((name, 1), y)))
        for x in inputs:
            model(x)
    return {name: (ranges[name, 0], ranges[name, 1]) for name in layers if (name, 1) in ranges}


@contextmanager
def _quantised(layer: nn.Conv2d | nn.Linear, output: nn.Module, before: Range, after: Range) -> Iterator[None]:
    """Let a layer compute as in int8 for a while; linear layers give float, as they do for ONNX Runtime."""
    weight = layer.weight.data
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    scale = scale.view(-1, *(1,) * (weight.ndim - 1))
    with layer.register_forward_pre_hook(lambda _, x: (_round_to(x[0], before),)), ExitStack() as more:
        if isinstance(layer, nn.Conv2d):
            more.enter_context(output.register_forward_hook(lambda _, __, y: _round_to(y, after)))
        layer.weight.data = (weight / scale).round() * scale
        try:
            yield
        finally:
            layer.weight.data = weight


def _round_to(x: Tensor, values: Range) -> Tensor:
    low, high = values
    scale = max((high - low) / 255, 1e-12)
    zero = round(-low / scale)
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale


def describe_layers(layers: Sequence[LayerError], most: int = 8) -> str:
    """Tell what the worst layers cost, one a line."""
    lines = ["layers that hurt most, each alone in int8: change of the logits, of the answers"]
    return "\n".join(lines + [f"  {one.name:<44} {one.error:7.2%} {one.changed:7.2%}" for one in layers[:most]])
