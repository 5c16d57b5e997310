"""``kornia_mvit.export``: the file, the record, and the options that do not go together."""

import inspect

import pytest
import torch

import kornia_mvit
from kornia_mvit import DataError, MobileViT, Preprocess, optimize, save_checkpoint
from kornia_mvit.exporters import load_torchexport, to_executorch, to_onnx
from kornia_mvit.exporters.options import Options
from tests.exporters.scenes import build
from tests.models.networks import DEEP


class TestExport:
    @pytest.mark.long
    def test_checkpoint(self, tmp_path):
        save_checkpoint(build("classification", preprocess=Preprocess(72, crop=64)), tmp_path / "best.ckpt")
        out = kornia_mvit.export(tmp_path / "best.ckpt", tmp_path / "model.pt2", size=64)
        assert (out.path, out.format, out.task) == (tmp_path / "model.pt2", "torchexport", "classification")
        assert out.comparison.difference < 1e-4
        assert [row.name for row in out.table.rows] == ["eager", "torchexport"]
        assert len(load_torchexport(out.path)(torch.rand(1, 3, 64, 64))) == 1

    @pytest.mark.long
    def test_model_without_report(self, tmp_path):
        out = kornia_mvit.export(build("segmentation"), tmp_path / "model.pt2", size=(64, 96), report=False)
        assert (out.options.size, out.table, out.comparison) == ((64, 96), None, None)
        assert str(out).endswith("model.pt2: segmentation for torchexport, input float32 Bx3x64x96")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"format": "onnx"}, "does not end in .onnx"),
            ({"int8": True}, "torchexport has no int8"),
            ({"size": "big"}, "size big is none of"),
            ({"layout": "nhwc"}, "give with_preprocess too"),
        ],
    )
    def test_exception(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            kornia_mvit.export(build("classification"), tmp_path / "model.pt2", **options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("options", [{}, {"max_drop": 0.1}])
    @pytest.mark.parametrize(
        ("calibration", "error", "message"),
        [
            (5, TypeError, "5 holds no images"),
            (torch.zeros(2, 64, 64, 3, dtype=torch.uint8), ValueError, r"of \(64, 64, 3\); give each as image.permute"),
            (["photo.jpg"], DataError, "photo.jpg"),
            ([], ValueError, "no calibration images"),
        ],
    )
    def test_wrong_calibration(self, tmp_path, calibration, error, message, options):
        with pytest.raises(error, match=message):
            kornia_mvit.export(
                build("classification"), tmp_path / "model.xml", int8=True, calibration=calibration, **options
            )
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (torch.nn.Linear(2, 2), "Linear is none of this package's models for a task; pass"),
            (5, "5 is none of this package's models"),
            (MobileViT(DEEP), "MobileViT is none of this package's models for a task"),
            (
                optimize(MobileViT(DEEP), torch.rand(1, 3, 64, 64), engine="eager"),
                "pass the one that was given to optimize",
            ),
        ],
    )
    def test_no_model(self, tmp_path, model, message):
        with pytest.raises(TypeError, match=message):
            kornia_mvit.export(model, tmp_path / "model.pt2")


class TestOptions:
    def test_signatures_show_the_fields(self):
        parameters = inspect.signature(to_onnx).parameters
        assert list(parameters)[2:] == list(Options.__dataclass_fields__)
        assert parameters["size"].default == "dynamic"
        assert inspect.signature(to_executorch).parameters["size"].default == 256

    def test_exception(self, tmp_path):
        with pytest.raises(TypeError, match="nms"):
            to_executorch(build("detection"), tmp_path / "m.pte", nms=True)
