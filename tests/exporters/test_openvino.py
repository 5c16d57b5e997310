"""OpenVINO's files against the models that they were made from."""

import sys

import pytest
import torch

from kornia_mvit import Preprocess
from kornia_mvit.exporters import compare, deployable, file_size, load_openvino, to_openvino
from tests.exporters.scenes import TASKS, batch, build, photos


class TestToOpenvino:
    def test_exception(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match=r"m\.onnx.*\.xml"):
            to_openvino(build("classification"), tmp_path / "m.onnx")
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(ImportError, match=r"openvino; install kornia-mvit\[export\]"):
            to_openvino(build("classification"), tmp_path / "m.xml")

    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_photos_of_all_sizes(self, tmp_path, task):
        import openvino

        model = build(task, preprocess=Preprocess((64, 96)))
        options = {"with_preprocess": True, "with_decode": True, "layout": "nhwc"}
        path = to_openvino(model, tmp_path / "m.xml", **options)
        found = compare(
            load_openvino(path), deployable(model, fused=False, **options), [batch(photo, "nhwc") for photo in photos()]
        )
        assert found.difference < 1e-4
        assert found.agreement > 0.999
        assert openvino.Core().read_model(path).get_rt_info(["kornia_mvit", "task"]).value == task

    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_networks(self, tmp_path, task):
        model = build(task, "xxs")
        path = to_openvino(model, tmp_path / "m.xml")
        for number, size in ((1, (256, 256)), (2, (160, 232))):
            found = compare(load_openvino(path), deployable(model, fused=False), [torch.rand(number, 3, *size)])
            assert found.difference < 1e-4
        if task == "classification":
            half = to_openvino(model, tmp_path / "half.xml", fp16=True)
            assert file_size(half) < 0.65 * file_size(path)
            assert (
                compare(load_openvino(half), deployable(model, fused=False), [torch.rand(1, 3, 96, 64)]).difference
                < 0.05
            )
