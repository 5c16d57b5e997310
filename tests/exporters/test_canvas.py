"""Canvas: what graphs of one size do with images of any."""

import pytest
import torch

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.exporters import deployable
from kornia_mvit.exporters.canvas import Canvas, lay_on_canvas
from tests.exporters.scenes import assert_same_levels
from tests.models.networks import DEEP, TINY
from tests.test_preprocess import photos

SIZE = (450, 660)
RECORDS = [
    Preprocess(72, crop=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), channel_order="bgr"),
    Preprocess((64, 96), interpolation="bicubic"),
    Preprocess((64, 96), letterbox=True),
]


def network(kind, record):
    config = DEEP if kind is SSDLite else TINY
    model = kind(config, num_classes=5).eval()
    model.preprocess = record
    return model


class TestCanvas:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_smoke(self, layout):
        model = network(MobileViTClassifier, RECORDS[0])
        graph = Canvas(deployable(model, with_preprocess=True, layout=layout), (100, 120))
        image = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8)
        assert graph(*lay_on_canvas(image, (100, 120), layout)).shape == (1, 5)
        assert graph.input_names == ["image", "size"]

    @pytest.mark.parametrize("record", RECORDS)
    def test_preprocessing_is_that_of_the_record(self, record):
        graph = Canvas(deployable(network(MobileViTClassifier, record), with_preprocess=True), SIZE)
        seen = []
        graph.deployed.model.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        for photo in photos():
            graph(*lay_on_canvas(photo, SIZE))
            assert_same_levels(seen[-1], record.module()(photo[None]), record)

    @pytest.mark.parametrize("record", RECORDS)
    @pytest.mark.parametrize("kind", [MobileViTClassifier, DeepLabV3, SSDLite])
    def test_answers_are_those_of_the_graph_of_any_size(self, kind, record):
        if kind is DeepLabV3 and record.crop:
            record = Preprocess((64, 48))
        plain = deployable(network(kind, record), with_preprocess=True, with_decode=True)
        graph = Canvas(plain, SIZE)
        for photo in photos()[1:]:
            expected, given = plain(photo[None]), graph(*lay_on_canvas(photo, SIZE))
            if kind is DeepLabV3:
                _, height, width = photo.shape
                assert (given[:, height:] == -1).all()
                assert (given[:, :, width:] == -1).all()
                assert (given[:, :height, :width] == expected).float().mean() > 0.9999
                continue
            for one, other in zip(given, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_pixels_beside_the_image_do_not_count(self):
        graph = Canvas(deployable(network(DeepLabV3, RECORDS[1]), with_preprocess=True, with_decode=True), SIZE)
        canvas, size = lay_on_canvas(photos()[2], SIZE)
        expected = graph(canvas, size)
        canvas[:, :, size[0] :], canvas[:, :, :, size[1] :] = 255, 77
        assert torch.equal(graph(canvas, size), expected)

    def test_exception(self):
        model = network(MobileViTClassifier, None)
        with pytest.raises(ValueError, match="add with_preprocess=True"):
            Canvas(deployable(model), SIZE)
        for kind, record in [(MobileViTClassifier, Preprocess(64)), (DeepLabV3, Preprocess(72, crop=64))]:
            with pytest.raises(ValueError, match=r"such as Preprocess\(size=\(256, 256"):
                Canvas(deployable(network(kind, record), with_preprocess=True), SIZE)
        with pytest.raises(ValueError, match=r"640x700.*450x660.*shrink it"):
            lay_on_canvas(torch.zeros(3, 640, 700, dtype=torch.uint8), SIZE)
