"""int8 for ONNX Runtime, OpenVINO and ExecuTorch."""

import sys

import onnx
import pytest
import torch

from kornia_mvit import DataError, DeepLabV3, MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.exporters import (
    deployable,
    load_executorch,
    load_onnx,
    load_openvino,
    quantize_executorch,
    quantize_onnx,
    quantize_openvino,
)
from kornia_mvit.exporters.quantize import layer_errors
from kornia_mvit.exporters.report import compare, file_size, model_size
from tests.models.networks import DEEP, TINY, randomize_norms
from tests.test_preprocess import photos

SIZE = 64


def network(mode=TINY):
    model = randomize_norms(MobileViTClassifier(mode, num_classes=5)).eval()
    model.preprocess = Preprocess((SIZE, SIZE))
    return model


def images(count=4):
    return [photo[:, n : n + 200, n : n + 150] for n, photo in enumerate(photos()[:2] * (count // 2))]


def prepared(model):
    return [model.preprocess.module()(image[None]) for image in images()]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A small classifier, and its file."""
    model = network()
    path = tmp_path_factory.mktemp("int8") / "new" / "int8.onnx"
    return model, quantize_onnx(model, path, images(), size=SIZE, keep=())


class TestQuantizeOnnx:
    def test_smoke(self, quantized):
        model, path = quantized
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert {prop.key: prop.value for prop in proto.metadata_props}["task"] == "classification"
        assert 1e-5 < compare(load_onnx(path), model, prepared(model)).difference < 0.2

    @pytest.mark.long
    def test_what_is_kept_is_not_quantised(self, quantized, tmp_path):
        """A layer by its name, and all layers of a part by the part's."""
        model, whole = quantized
        keep = ("classifier", "backbone.stages.0")
        kept = quantize_onnx(model, tmp_path / "int8.onnx", images(), size=SIZE, keep=keep)
        names = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        spared = [name for name in names if name.startswith(keep)]
        assert len(spared) > 2
        for path, count in ((whole, len(names)), (kept, len(names) - len(spared))):
            stored = onnx.load(path).graph.initializer
            assert sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in stored) == count

    def test_each_channel_of_weights_has_its_scale(self, quantized):
        proto = onnx.load(quantized[1])
        shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
        scales = {node.input[0]: node.input[1] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
        weights = [name for name in scales if len(shapes.get(name, ())) == 4]
        assert weights
        assert all(shapes[scales[name]] == [shapes[name][0]] for name in weights)

    @pytest.mark.long
    def test_images_of_any_size_go_in(self, tmp_path):
        model = network()
        path = quantize_onnx(
            model, tmp_path / "int8.onnx", images(), with_preprocess=True, with_decode=True, layout="nhwc"
        )
        reference = deployable(model, with_preprocess=True, with_decode=True, layout="nhwc")
        found = compare(load_onnx(path), reference, [photo.permute(1, 2, 0)[None] for photo in photos()[2:]])
        assert found.difference < 0.2

    @pytest.mark.long
    def test_file_is_smaller(self, xxs, tmp_path):
        after = quantize_onnx(xxs, tmp_path / "int8.onnx", images(2), size=SIZE)
        assert file_size(after) < 0.4 * model_size(xxs)

    @pytest.mark.parametrize("write", [quantize_onnx, quantize_openvino, quantize_executorch])
    def test_exception(self, write, tmp_path, monkeypatch):
        model, path = network(), tmp_path / "file.xml"
        with pytest.raises(ValueError, match="calibration images"):
            write(model, path, [], size=SIZE)
        with pytest.raises(ValueError, match=r"\(3, H, W\).*image 1.*torch.float32.*\(3, 9, 9\)"):
            write(model, path, [*images()[:1], torch.rand(3, 9, 9)], size=SIZE)
        with pytest.raises(ValueError, match=r"of \(9, 8, 3\); give each as image.permute"):
            write(model, path, torch.zeros(2, 9, 8, 3, dtype=torch.uint8), size=SIZE)
        with pytest.raises(DataError, match="no such folder: nowhere"):
            write(model, path, "nowhere", size=SIZE)
        with pytest.raises(ValueError, match=r"'head'.*backbone\.stem"):
            write(model, path, images(), size=SIZE, keep=("head",))
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        monkeypatch.setitem(sys.modules, "nncf", None)
        monkeypatch.setitem(sys.modules, "torchao.quantization", None)
        with pytest.raises(ImportError, match=r"install kornia-mvit\[export\]"):
            write(model, path, images(), size=SIZE)


def quantized_weights(path):
    """Return the names of an OpenVINO file's operations with weights, and of those whose weights are 8-bit numbers."""
    import openvino

    kinds = ("Convolution", "GroupConvolution", "MatMul")
    layers = [op for op in openvino.Core().read_model(path).get_ordered_ops() if op.get_type_name() in kinds]
    found: dict[str, set[str]] = {}
    for layer in layers:
        waiting, kinds_of_constants = [layer.input_value(1).get_node()], set()
        while waiting:
            op = waiting.pop()
            if op.get_type_name() == "Constant":
                kinds_of_constants.add(op.get_element_type().get_type_name())
            if op.get_type_name() in ("Constant", "Convert", "Subtract", "Multiply", "Reshape", "FakeQuantize"):
                waiting += [value.get_node() for value in op.input_values()]
        if kinds_of_constants:
            found[layer.get_friendly_name()] = kinds_of_constants
    return list(found), [name for name, kinds in found.items() if kinds & {"i8", "u8"}]


class TestQuantizeOpenVINO:
    @pytest.mark.long
    def test_smoke(self, tmp_path, capfd):
        """Every layer with weights is quantised, what is told of the model stays, and nothing is printed."""
        model = network()
        path = quantize_openvino(model, tmp_path / "new" / "int8.xml", images(), size=SIZE)
        assert capfd.readouterr() == ("", "")
        assert 1e-5 < compare(load_openvino(path), model, prepared(model)).difference < 0.2
        layers, quantized = quantized_weights(path)
        weighted = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(layers) == len(quantized) == len(weighted)

    @pytest.mark.long
    def test_what_is_kept_is_not_quantised(self, tmp_path):
        model = network()
        path = quantize_openvino(
            model, tmp_path / "int8.xml", images(), size=SIZE, keep=("classifier", "backbone.stages.0")
        )
        spared = [name for name in dict(model.named_modules()) if name.startswith(("classifier", "backbone.stages.0"))]
        spared = [name for name in spared if isinstance(model.get_submodule(name), torch.nn.Conv2d | torch.nn.Linear)]
        layers, quantized = quantized_weights(path)
        assert len(spared) > 2
        assert len(quantized) == len(layers) - len(spared)

    @pytest.mark.long
    @pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
    def test_images_of_any_size_go_in(self, tmp_path, task):
        """Preparing and decoding stay in float32: boxes and maps are as fine as before."""
        build = {
            "classification": network,
            "segmentation": lambda: DeepLabV3(TINY, num_classes=3),
            "detection": lambda: SSDLite(DEEP, num_classes=3),
        }
        model = randomize_norms(build[task]()).eval()
        model.preprocess = Preprocess((SIZE, SIZE))
        options = {"with_preprocess": True, "with_decode": True, "layout": "nhwc"}
        path = quantize_openvino(model, tmp_path / "int8.xml", images(), **options)
        shown = [photo.permute(1, 2, 0)[None] for photo in photos()[2:]]
        found = compare(load_openvino(path), deployable(model, **options), shown)
        assert found.difference < 0.2
        keep = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        kept = quantize_openvino(model, tmp_path / "kept.xml", images(), keep=keep, **options)
        assert compare(load_openvino(kept), deployable(model, **options), shown).difference < 1e-3


class TestQuantizeExecutorch:
    @pytest.mark.long
    def test_answers_and_size(self, tmp_path):
        """Of a published network, in a file of less than half its size."""
        model = network("xxs")
        path = quantize_executorch(model, tmp_path / "int8.pte", images(), size=SIZE)
        assert 1e-5 < compare(load_executorch(path), model, prepared(model)).difference < 0.2
        assert file_size(path) < 0.4 * model_size(model)

    @pytest.mark.long
    def test_images_of_any_size_up_to_the_canvas(self, tmp_path):
        model = network()
        options = {"with_preprocess": True, "with_decode": True, "layout": "nhwc"}
        run = load_executorch(quantize_executorch(model, tmp_path / "int8.pte", images(), size=(340, 230), **options))
        found = compare(run, deployable(model, **options), [photo.permute(1, 2, 0)[None] for photo in photos()[2:]])
        assert found.difference < 0.2

    @pytest.mark.long
    def test_kept_layers_compute_in_float(self, tmp_path):
        model = network()
        path = quantize_executorch(model, tmp_path / "int8.pte", images(), size=SIZE, keep=("backbone", "classifier"))
        assert compare(load_executorch(path), model, prepared(model)).difference < 1e-5


class TestLayerErrors:
    def test_worst_first(self):
        model = network()
        with torch.no_grad():
            model.backbone.stem.conv.weight[0] *= 1e4  # one channel takes the range of all
        found = layer_errors(model, images())
        layers = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert sorted(one.name for one in found) == sorted(layers)
        assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)
        assert all(one.error > 0 for one in found)

    def test_head_of_training_alone_is_left_out(self):
        model = DeepLabV3(TINY, num_classes=3, aux_channels=8).eval()
        assert not any(one.name.startswith("aux_head") for one in layer_errors(model, images(2)))

    def test_leaves_the_model_alone(self):
        model = network().train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        layer_errors(model, images())
        assert model.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
