"""Programs of torch.export against the models that they were made from."""

import json
import subprocess
import sys

import pytest
import torch

from kornia_mvit import Preprocess
from kornia_mvit.exporters import compare, deployable, load_torchexport, to_torchexport
from tests.exporters.scenes import TASKS, batch, build, photos


class TestToTorchexport:
    def test_smoke(self, tmp_path):
        model = build("classification")
        path = to_torchexport(model, tmp_path / "m.pt2", size=(64, 72))
        found = compare(load_torchexport(path), deployable(model, fused=False), [torch.rand(3, 3, 64, 72)])
        assert found.difference < 1e-4
        extra = {"kornia_mvit.json": ""}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra["kornia_mvit.json"])["task"] == "classification"

    def test_exception(self, tmp_path):
        with pytest.raises(ValueError, match=r"m\.onnx.*\.pt2"):
            to_torchexport(build("classification"), tmp_path / "m.onnx")
        with pytest.raises(ValueError, match=r"16x16.*32 px"):
            to_torchexport(build("classification"), tmp_path / "m.pt2", size=16)

    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_photos_of_all_sizes(self, tmp_path, task):
        model = build(task, preprocess=Preprocess((64, 96), letterbox=True))
        options = {"with_preprocess": True, "with_decode": True, "layout": "nhwc"}
        path = to_torchexport(model, tmp_path / "m.pt2", **options)
        found = compare(
            load_torchexport(path),
            deployable(model, fused=False, **options),
            [batch(photo, "nhwc") for photo in photos()],
        )
        assert found.difference < 1e-4
        assert found.agreement > 0.999

    @pytest.mark.long
    def test_runs_without_this_package(self, tmp_path):
        path = to_torchexport(build("detection"), tmp_path / "m.pt2", with_preprocess=True, with_decode=True, size=64)
        code = (
            "import sys, torch; sys.modules['kornia_mvit'] = None\n"
            "run = torch.export.load(sys.argv[1]).module()\n"
            "print([tuple(y.shape) for y in run(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))])"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("[(2, ")
