"""ONNX files: what ONNX Runtime makes of them, against the models that they were made from."""

import json

import onnx
import onnxruntime
import pytest
import torch

from kornia_mvit import Preprocess, __version__
from kornia_mvit.exporters import Suppression, compare, deployable, load_onnx, to_onnx
from tests.exporters.scenes import NETWORKS, TASKS, batch, build, photos

SIZES = ((256, 256), (160, 232))
RECORDS = {
    "untouched": Preprocess(None),
    "squash": Preprocess((64, 96), mean=(0.5,) * 3, std=(0.2,) * 3),
    "letterbox": Preprocess((64, 96), letterbox=True),
    "crop": Preprocess(72, crop=(64, 48), interpolation="bicubic", channel_order="bgr"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small classifier with everything in the graph."""
    model = build("classification", preprocess=Preprocess(72, crop=64))
    path = tmp_path_factory.mktemp("onnx") / "more" / "model.onnx"
    return model, model.to_onnx(path, with_preprocess=True, with_decode=True, layout="nhwc")


class TestToOnnx:
    def test_photos_of_all_sizes(self, exported):
        model, path = exported
        run, graph = load_onnx(path), deployable(model, with_preprocess=True, with_decode=True, layout="nhwc")
        found = compare(run, graph, [batch(photo, "nhwc") for photo in photos()])
        assert found.difference < 1e-4
        assert found.agreement == 1.0
        two = torch.cat([batch(photos()[0], "nhwc")] * 2)
        assert run(two)[0].shape == (2, 5)

    def test_file_says_what_it_is(self, exported):
        _, path = exported
        proto = onnx.load(path)
        known = {entry.key: entry.value for entry in proto.metadata_props}
        assert known["task"] == "classification"
        assert known["version"] == __version__
        assert json.loads(known["class_names"]) == ["ant", "bee", "cat", "dog", "eel"]
        assert Preprocess.from_dict(json.loads(known["preprocess"])) == Preprocess(72, crop=64)
        assert json.loads(known["graph"])["layout"] == "nhwc"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (image,), (out,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", "height", "width", 3])
        assert (out.name, out.shape) == ("probabilities", ["batch", 5])

    def test_operators_are_onnx_own(self, exported):
        """As a runtime that knows no others has them, such as that of browsers."""
        _, path = exported
        proto = onnx.load(path)
        assert {node.domain for node in proto.graph.node} == {""}
        assert [opset.domain for opset in proto.opset_import] == [""]

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (16, "size 16x16 is below the 32 px that the network takes"),
            ((0, 64), r"size \(0, 64\) is not one or two positive numbers"),
            ("any", "size 'any' is neither 'dynamic' nor a number of pixels"),
        ],
    )
    def test_exception(self, tmp_path, size, message):
        with pytest.raises(ValueError, match=message):
            to_onnx(build("classification"), tmp_path / "model.onnx", size=size)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("package", ["onnx", "onnxscript"])
    def test_missing_extra(self, tmp_path, monkeypatch, package):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ImportError, match=f"needs {package}; install kornia-mvit\\[export\\]"):
            to_onnx(build("classification"), tmp_path / "model.onnx")

    def test_missing_runtime(self, exported, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"onnxruntime; install kornia-mvit\[export\]"):
            load_onnx(exported[1])

    @pytest.mark.long
    @pytest.mark.parametrize(("mode", "task"), NETWORKS)
    def test_networks(self, tmp_path, mode, task):
        model = build(task, mode)
        run = load_onnx(to_onnx(model, tmp_path / "model.onnx"))
        for number, size in ((1, SIZES[0]), (2, SIZES[1])):
            found = compare(run, deployable(model, fused=False), [torch.rand(number, 3, *size)])
            assert found.difference < 1e-4
            assert found.agreement > 0.999

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("record", "task", "size"),
        # each record with each task, and either of them with both sizes
        [
            (record, task, "dynamic" if (i + j) % 2 else (222, 334))
            for i, record in enumerate(RECORDS)
            for j, task in enumerate(TASKS)
        ],
    )
    def test_preprocessing_and_answers(self, tmp_path, task, record, size):
        model = build(task, preprocess=RECORDS[record])
        path = to_onnx(model, tmp_path / "model.onnx", with_preprocess=True, with_decode=True, size=size)
        pictures = [image[:, :222, :334] for image in photos()[:1]] if size != "dynamic" else photos()
        graph = deployable(model, with_preprocess=True, with_decode=True, fused=False)
        found = compare(load_onnx(path), graph, [batch(image) for image in pictures])
        assert found.difference < 1e-4
        assert found.agreement > 0.999

    @pytest.mark.long
    def test_suppression(self, tmp_path):
        model, how = build("detection"), Suppression(score_threshold=0.2, max_detections=20)
        run = load_onnx(to_onnx(model, tmp_path / "model.onnx", with_preprocess=True, with_decode=True, nms=how))
        graph = deployable(model, with_preprocess=True, with_decode=True, nms=how)
        found = compare(run, graph, [batch(photo) for photo in photos()])
        assert found.difference < 1e-4
        assert found.agreement == 1.0

    @pytest.mark.long
    def test_half_precision(self, exported, tmp_path):
        model, single = exported
        path = to_onnx(model, tmp_path / "h.onnx", with_preprocess=True, with_decode=True, layout="nhwc", fp16=True)
        weights = {name: sum(t.ByteSize() for t in onnx.load(name).graph.initializer) for name in (path, single)}
        assert weights[path] < 0.7 * weights[single]
        graph = deployable(model, with_preprocess=True, with_decode=True, layout="nhwc")
        found = compare(load_onnx(path), graph, [batch(photo, "nhwc") for photo in photos()])
        assert 0 < found.difference < 0.02
