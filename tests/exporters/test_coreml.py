"""Core ML packages: their specification, as only macOS runs them."""

import json
import sys
from collections import Counter

import pytest
import torch

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.exporters import file_size, to_coreml
from kornia_mvit.inference.engines.exported import silence
from tests.exporters.scenes import NETWORKS, build
from tests.models.networks import DEEP, TINY, randomize_norms


def network(kind):
    model = randomize_norms(kind(DEEP if kind is SSDLite else TINY, num_classes=5)).eval()
    model.preprocess = Preprocess((64, 96))
    return model


def read(path):
    with silence():
        import coremltools
    return coremltools.utils.load_spec(str(path))


def operations(spec):
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return [operation.type for operation in block.operations]


class TestToCoreml:
    @pytest.mark.long
    def test_smoke(self, tmp_path):
        model = network(MobileViTClassifier)
        model.class_names = tuple("abcde")
        path = to_coreml(model, tmp_path / "net.mlpackage", size=(64, 96))
        spec = read(path)
        (image,), (logits,) = spec.description.input, spec.description.output
        assert (image.name, list(image.type.multiArrayType.shape)) == ("image", [1, 3, 64, 96])
        assert (logits.name, list(logits.type.multiArrayType.shape)) == ("logits", [1, 5])
        about = spec.description.metadata.userDefined
        assert json.loads(about["kornia_mvit.class_names"]) == list("abcde")
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        assert operations(spec).count("conv") == len(layers)

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("kind", "outputs"),
        [
            (MobileViTClassifier, {"probabilities": [1, 5]}),
            (DeepLabV3, {"labels": [1, 120, 160]}),
            (SSDLite, {"boxes": None, "scores": None, "labels": None}),
        ],
    )
    def test_images_in_and_answers_out(self, kind, outputs, tmp_path):
        path = to_coreml(
            network(kind), tmp_path / "net.mlpackage", size=(120, 160), with_preprocess=True, with_decode=True
        )
        spec = read(path)
        image, size = spec.description.input
        assert image.type.WhichOneof("Type") == "imageType"
        assert (image.type.imageType.height, image.type.imageType.width) == (120, 160)
        assert (size.name, list(size.type.multiArrayType.shape)) == ("size", [2])
        found = {output.name: list(output.type.multiArrayType.shape) for output in spec.description.output}
        assert list(found) == list(outputs)
        assert all(found[name] == shape for name, shape in outputs.items() if shape)

    @pytest.mark.long
    def test_half_precision(self, tmp_path):
        paths = [
            to_coreml(network(MobileViTClassifier), tmp_path / f"{half}.mlpackage", size=64, fp16=half)
            for half in (False, True)
        ]
        assert file_size(paths[1]) < file_size(paths[0])
        specs = [read(path) for path in paths]
        kinds = [spec.description.output[0].type.multiArrayType.dataType for spec in specs]
        assert kinds == [65568, 65552]  # float32 and float16, as ArrayFeatureType numbers them
        assert [operations(spec).count("cast") for spec in specs] == [0, 1]  # the image's

    def test_exception(self, tmp_path, monkeypatch):
        model = network(MobileViTClassifier)
        with pytest.raises(ValueError, match=r"\.mlpackage"):
            to_coreml(model, tmp_path / "net.mlmodel")
        with pytest.raises(ValueError, match=r"Core ML.*any size"):
            to_coreml(model, tmp_path / "net.mlpackage", size="dynamic")
        with pytest.raises(ValueError, match=r"layout 'nhwc'.*Core ML"):
            to_coreml(model, tmp_path / "net.mlpackage", layout="nhwc")
        monkeypatch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(ImportError, match=r"install kornia-mvit\[export\]"):
            to_coreml(model, tmp_path / "net.mlpackage")

    @pytest.mark.long
    @pytest.mark.parametrize(("mode", "task"), NETWORKS)
    def test_every_layer_and_output_is_there(self, mode, task, tmp_path):
        """That the numbers are right too, only macOS can tell."""
        model = build(task, mode)
        spec = read(to_coreml(model, tmp_path / "net.mlpackage", size=(96, 64)))
        found = [list(output.type.multiArrayType.shape) for output in spec.description.output]
        with torch.no_grad():
            outputs = model(torch.zeros(1, 3, 96, 64))
        assert found == [list(y.shape) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]
        done = Counter(operations(spec))
        layers = [module for name, module in model.named_modules() if not name.startswith("aux_head")]
        for operation, kind in (
            ("conv", torch.nn.Conv2d),
            ("linear", torch.nn.Linear),
            ("layer_norm", torch.nn.LayerNorm),
        ):
            assert done[operation] == sum(isinstance(layer, kind) for layer in layers), operation
