"""ExecuTorch programs, run by its own runtime."""

import json
import sys

import pytest
import torch

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.exporters import deployable, load_executorch, to_executorch
from kornia_mvit.exporters.executorch import read_metadata
from kornia_mvit.exporters.report import compare
from tests.exporters.scenes import NETWORKS
from tests.models.networks import DEEP, TINY, randomize_norms
from tests.test_preprocess import photos

KINDS = {"classification": MobileViTClassifier, "segmentation": DeepLabV3, "detection": SSDLite}


def network(task, mode=None):
    model = KINDS[task](mode or (DEEP if task == "detection" else TINY), num_classes=5)
    return randomize_norms(model).eval()


class TestToExecutorch:
    @pytest.mark.long
    def test_smoke(self, xxs, xxs_program):
        found = compare(load_executorch(xxs_program), xxs, torch.rand(3, 1, 3, 64, 64))
        assert found.difference < 1e-4
        about = read_metadata(xxs_program)
        assert about["task"] == "classification"
        assert json.loads(about["class_names"]) == ["ant", "bee", "cat", "dog", "eel"]

    @pytest.mark.long
    def test_runs_of_one_program_do_not_share_memory(self, xxs_program):
        run = load_executorch(xxs_program)
        first = run(torch.zeros(1, 3, 64, 64))[0]
        kept = first.clone()
        run(torch.ones(1, 3, 64, 64))
        assert torch.equal(first, kept)

    @pytest.mark.long
    @pytest.mark.parametrize("task", ["segmentation", "detection"])
    def test_images_of_any_size_up_to_the_canvas(self, task, tmp_path):
        model = network(task)
        model.preprocess = Preprocess((64, 96))
        path = to_executorch(
            model, tmp_path / "net.pte", size=(340, 230), with_preprocess=True, with_decode=True, layout="nhwc"
        )
        reference = deployable(model, with_preprocess=True, with_decode=True, layout="nhwc")
        images = [photo.permute(1, 2, 0)[None] for photo in photos()[2:]]
        found = compare(load_executorch(path), reference, images)
        assert found.difference < 1e-4
        assert found.agreement > 0.999

    @pytest.mark.long
    def test_half_precision(self, xxs, xxs_program, tmp_path):
        """Of a published size: in smaller ones, casts outweigh what weights spare."""
        path = to_executorch(xxs, tmp_path / "half.pte", size=64, fp16=True)
        assert path.stat().st_size < 0.8 * xxs_program.stat().st_size
        found = compare(load_executorch(path), xxs, torch.rand(2, 1, 3, 64, 64))
        assert 1e-5 < found.difference < 2e-2

    def test_exception(self, tmp_path, monkeypatch):
        model, path = network("classification"), tmp_path / "net.pte"
        with pytest.raises(ValueError, match=r"ExecuTorch.*any size; give one, such as 256"):
            to_executorch(model, path, size="dynamic")
        with pytest.raises(ValueError, match="below the 32 px"):
            to_executorch(model, path, size=16)
        with pytest.raises(ValueError, match="preprocessing"):
            to_executorch(model, path, with_preprocess=True)
        with pytest.raises(FileNotFoundError, match=r"net\.pte"):
            load_executorch(path)
        monkeypatch.setitem(sys.modules, "executorch", None)
        with pytest.raises(ImportError, match=r"install kornia-mvit\[export\]"):
            to_executorch(model, path)

    @pytest.mark.long
    @pytest.mark.parametrize(("mode", "task"), NETWORKS[1:])
    def test_parity(self, mode, task, tmp_path):
        """Of the first of them in test_smoke."""
        model, size = network(task, mode), (256, 256) if task == "segmentation" else (320, 192)
        path = to_executorch(model, tmp_path / "net.pte", size=size)
        assert compare(load_executorch(path), model, torch.rand(2, 1, 3, *size), task).difference < 1e-4
