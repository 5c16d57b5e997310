"""ExecuTorch programs, run by its own runtime."""

import json
import sys

import pytest
import torch

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.export import deployable, load_executorch, to_executorch
from kornia_mvit.export.executorch import read_metadata
from kornia_mvit.export.report import compare
from tests.augmentation.test_preprocess import photos
from tests.models.networks import DEEP, TINY, randomize_norms

KINDS = {"classification": MobileViTClassifier, "segmentation": DeepLabV3, "detection": SSDLite}


def network(task, mode=None):
    model = KINDS[task](mode or (DEEP if task == "detection" else TINY), num_classes=5)
    return randomize_norms(model).eval()


class TestToExecutorch:
    def test_smoke(self, tmp_path):
        model = network("classification")
        model.class_names = tuple("abcde")
        path = to_executorch(model, tmp_path / "new" / "net.pte", size=(64, 48))
        found = compare(load_executorch(path), model, torch.rand(3, 1, 3, 64, 48))
        assert found.difference < 1e-5
        about = read_metadata(path)
        assert about["task"] == "classification"
        assert json.loads(about["class_names"]) == list("abcde")

    @pytest.mark.long
    def test_runs_of_one_program_do_not_share_memory(self, tmp_path):
        run = load_executorch(to_executorch(network("classification"), tmp_path / "net.pte", size=64))
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
    def test_half_precision(self, tmp_path):
        model = network("classification", "xxs")  # in smaller ones, casts outweigh what weights spare
        paths = [to_executorch(model, tmp_path / f"{half}.pte", size=64, fp16=half) for half in (False, True)]
        assert paths[1].stat().st_size < 0.8 * paths[0].stat().st_size
        found = compare(load_executorch(paths[1]), model, torch.rand(2, 1, 3, 64, 64))
        assert 1e-5 < found.difference < 2e-2

    def test_exception(self, tmp_path, monkeypatch):
        model, path = network("classification"), tmp_path / "net.pte"
        with pytest.raises(ValueError, match="ExecuTorch does not take images of any size; give one, such as 256"):
            to_executorch(model, path, size="dynamic")
        with pytest.raises(ValueError, match="below the 32 px"):
            to_executorch(model, path, size=16)
        with pytest.raises(ValueError, match="does not say its preprocessing"):
            to_executorch(model, path, with_preprocess=True)
        with pytest.raises(FileNotFoundError, match=r"there is no file .*net\.pte"):
            load_executorch(path)
        monkeypatch.setitem(sys.modules, "executorch", None)
        with pytest.raises(ImportError, match=r"install kornia-mvit\[export\]"):
            to_executorch(model, path)

    @pytest.mark.long
    @pytest.mark.parametrize("mode", ["xxs", "xs", "s"])
    @pytest.mark.parametrize("task", KINDS)
    def test_parity(self, task, mode, tmp_path):
        model = network(task, mode)
        for size in ((256, 256), (320, 192)):
            path = to_executorch(model, tmp_path / "net.pte", size=size)
            assert compare(load_executorch(path), model, torch.rand(2, 1, 3, *size), task).difference < 1e-4
