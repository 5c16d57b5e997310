"""int8 that costs no more than it may."""

import pytest
import torch
from PIL import Image

from kornia_mvit import export
from kornia_mvit.exporters import load_onnx
from kornia_mvit.exporters.accuracy import limit_drop, worst_first
from kornia_mvit.exporters.report import compare
from tests.exporters.test_quantize import SIZE, images, network, prepared


class TestLimitDrop:
    @staticmethod
    def run(scores, max_drop, written):
        """With scores of files by the number of layers in float32."""
        layers = [f"layer{n}" for n in range(5)]

        def quantize(kept):
            assert list(kept) == layers[: len(kept)]
            written.append(len(kept))
            return len(kept)

        return limit_drop(quantize, lambda file: 0.9 if file is None else scores[file], layers, max_drop)

    @pytest.mark.parametrize(
        ("max_drop", "expected"), [(0.4, [0]), (0.2, [0, 1]), (0.05, [0, 1, 2, 4]), (0.0, [0, 1, 2, 4, 5])]
    )
    def test_feature(self, max_drop, expected):
        """More layers stay in float32 until the drop is small enough, and no file is written after that."""
        written = []
        scores = {0: 0.5, 1: 0.7, 2: 0.8, 4: 0.85, 5: 0.9}
        assert len(self.run(scores, max_drop, written)) == expected[-1]
        assert written == expected

    def test_exception(self):
        with pytest.raises(ValueError, match=r"0\.7000 at best, and 0\.8900 is asked for.*larger max_drop"):
            self.run({0: 0.5, 1: 0.7, 2: 0.6, 4: 0.6, 5: 0.6}, 0.01, [])
        with pytest.raises(ValueError, match=r"max_drop 1\.5.*such as 0\.01"):
            self.run({}, 1.5, [])


def test_worst_first():
    """The layer that sees the image, then those that change the outputs most."""
    model = network()
    names = worst_first(model, images())
    assert names[0].startswith("backbone.stem")
    assert sorted(names) == sorted(
        name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    )


class TestExport:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        for number, image in enumerate(images()):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        return folder

    @pytest.mark.long
    def test_answers(self, folder, tmp_path):
        """All answers stay the model's."""
        model = network()
        found = export(
            model, tmp_path / "int8.onnx", size=SIZE, int8=True, calibration=folder, max_drop=0.0, report=False
        )
        assert compare(load_onnx(found.path), model, prepared(model)).agreement == 1
        assert ("in float32" in str(found)) == bool(found.kept)

    def test_exception(self, tmp_path):
        with pytest.raises(ValueError, match="max_drop is for int8"):
            export(network(), tmp_path / "model.onnx", max_drop=0.01)
