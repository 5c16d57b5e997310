"""MobileViTV2 through every format and engine, against the model; at sizes that patches divide and at others."""

from collections import Counter

import pytest
import torch

from kornia_mvit import Preprocess, fuse, optimize, predict
from kornia_mvit.exporters import (
    compare,
    deployable,
    load_executorch,
    load_onnx,
    load_openvino,
    quantize_onnx,
    quantize_openvino,
    to_coreml,
    to_executorch,
    to_onnx,
    to_openvino,
)
from kornia_mvit.inference.engines.exported import load_exported
from kornia_mvit.models.layers import ConvNormAct
from tests.exporters.scenes import NARROW, TASKS, batch, build, photos
from tests.exporters.test_coreml import operations, read

SIZES = ((1, (64, 96)), (2, (256, 352)), (1, (75, 130)), (1, (33, 47)))


def images():
    return [torch.rand(number, 3, *size) for number, size in SIZES]


class TestFuse:
    @pytest.mark.parametrize("task", TASKS)
    def test_equal(self, task):
        model = build(task, NARROW)
        found = compare(fuse(model), model, images())
        assert found.difference < 1e-4
        left = [m for m in fuse(model).modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert not left

    def test_optimize(self):
        model, image = build("classification", NARROW), torch.rand(2, 3, 64, 96)
        fast = optimize(model, image, engine="eager")
        with torch.no_grad():
            torch.testing.assert_close(fast(image), model(image), atol=1e-4, rtol=1e-4)
        count = sum(isinstance(module, ConvNormAct) for module in model.modules())
        assert fast.steps[0] == f"fused batch normalisation and activations into {count} convolutions"

    @pytest.mark.long
    @pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "compile"])
    def test_engines(self, engine):
        model, image = build("classification", "v2-0.5"), torch.rand(2, 3, 224, 160)
        fast = optimize(model, image, engine=engine)
        with torch.no_grad():
            torch.testing.assert_close(fast(image), model(image), atol=1e-4, rtol=1e-4)


class TestOnnx:
    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_all_sizes(self, task, tmp_path):
        model = build(task, NARROW)
        found = compare(load_onnx(to_onnx(model, tmp_path / "m.onnx")), deployable(model, fused=False), images())
        assert found.difference < 1e-4
        assert found.agreement > 0.999

    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_answers(self, task, tmp_path):
        options = {"with_preprocess": True, "with_decode": True, "layout": "nhwc"}
        model = build(task, NARROW, Preprocess((64, 90)))
        path = to_onnx(model, tmp_path / "m.onnx", **options)
        pictures = [batch(photo, "nhwc") for photo in photos()]
        found = compare(load_onnx(path), deployable(model, fused=False, **options), pictures)
        assert found.difference < 1e-4
        assert found.agreement > 0.999

    @pytest.mark.long
    def test_a_detector_is_decoded_on_its_own_maps(self, tmp_path):
        """Raw outputs of a size at which the maps are larger than the image's stride says."""
        model = build("detection", NARROW, Preprocess((75, 130)))
        path = to_onnx(model, tmp_path / "m.onnx", size=(75, 130))
        assert load_exported(path).anchors["mode"] == NARROW
        photo = photos()[0]
        (ours,), (theirs,) = predict(model, photo), predict(path, photo)
        torch.testing.assert_close(theirs.boxes, ours.boxes, atol=1e-2, rtol=1e-3)
        assert theirs.names == ours.names

    @pytest.mark.long
    def test_int8(self, tmp_path):
        model = build("classification", NARROW)
        path = quantize_onnx(model, tmp_path / "m.onnx", photos())
        assert compare(load_onnx(path), model, images()[:1]).difference < 1.0


class TestOpenvino:
    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_all_sizes(self, task, tmp_path):
        model = build(task, NARROW)
        found = compare(load_openvino(to_openvino(model, tmp_path / "m.xml")), deployable(model, fused=False), images())
        assert found.difference < 1e-4

    @pytest.mark.long
    def test_int8(self, tmp_path):
        model = build("classification", NARROW)
        path = quantize_openvino(model, tmp_path / "m.xml", photos())
        assert compare(load_openvino(path), model, images()[:1]).difference < 1.0


class TestExecutorch:
    @pytest.mark.long
    @pytest.mark.parametrize(("task", "size"), [("classification", (64, 96)), ("segmentation", (75, 130))])
    def test_parity(self, task, size, tmp_path):
        model = build(task, NARROW)
        run = load_executorch(to_executorch(model, tmp_path / "m.pte", size=size))
        assert compare(run, model, torch.rand(2, 1, 3, *size)).difference < 1e-4


class TestCoreml:
    @pytest.mark.long
    @pytest.mark.parametrize(("size", "resized"), [((64, 128), 0), ((75, 130), 3)])
    def test_operations(self, size, resized, tmp_path):
        model = build("classification", NARROW)
        spec = read(to_coreml(model, tmp_path / "m.mlpackage", size=size))
        found = Counter(operations(spec))
        assert found["conv"] == sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
        assert found["softmax"] == 9
        assert sum(found[name] for name in found if "upsample" in name or "resize" in name) == resized
