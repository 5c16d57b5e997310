"""Heads on the second version, and its export."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from kornia_mvit import DeepLabV3, MobileViTV2Classifier, SSDLite, load_checkpoint
from kornia_mvit.models.mobilevitv2 import (
    MobileViTV2Block,
)
from kornia_mvit.ops.boxes import decode_boxes
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import Stage, apple_second, randomize
from tests.models.test_mobilevitv2 import cases, image_of
from tests.ops.test_boxes import check_golden
from tests.tester import BaseTester


class TestHeads:
    @cases("segmentation")
    def test_deeplab(self, case):
        """Apple's logits, of the head and of its auxiliary head, before and after they are brought to the image."""
        model = DeepLabV3("v2-0.5", align_corners=True, aux_channels=128).double().eval()
        load_checkpoint(model, apple_second("segmentation"))
        x = image_of(case)
        with torch.no_grad():
            maps = model.forward_features(x)
            low, aux = model.head(maps[-1]), model.aux_head(maps[-2])
            check_golden(model(x), case["logits"])
        for values, expected in zip(maps, case["features"].values(), strict=True):
            check_golden(values, expected)
        check_golden(low, case["logits_before_upsampling"])
        check_golden(aux, case["aux_logits"])

    @cases("detection")
    def test_ssdlite(self, case):
        """Apple's outputs, of the features to the boxes."""
        model = SSDLite("v2-0.5").double().eval()
        load_checkpoint(model, apple_second("detection"))
        x = image_of(case)
        with torch.no_grad():
            maps = model.forward_features(x, model.levels)
            for extra in model.extras:
                maps.append(extra(maps[-1]))
            logits, deltas = model(x)
        for values, expected in zip(maps, case["features"].values(), strict=True):
            check_golden(values, expected)
        check_golden(logits, case["confidences"])
        check_golden(deltas, case["locations"])
        anchors = model.anchors((320, 320), dtype=torch.float64)
        check_golden(anchors[None], case["anchors"])
        check_golden(decode_boxes(deltas, anchors), case["boxes"])
        check_golden(logits.softmax(-1), case["scores"])

    @pytest.mark.long
    @given(size=image_sizes(max_side=400), patch=st.sampled_from([(2, 2), (3, 3), (1, 4)]))
    @example((256, 352), (2, 2))
    @example((32, 32), (2, 2))
    def test_anchors_stand_on_the_maps_as_they_are(self, size, patch):
        """256x352 pixels: the map of stride 32 is 8x12, not 8x11, and Apple's network has 2,884 anchors."""
        with torch.device("meta"):
            model = SSDLite("v2-0.05", 4, patch_size=patch, widths=(8, 8, 8, 8, 8, 8)).eval()
            logits, _ = model(torch.empty(1, 3, *size))
        count = len(model.anchors(size))
        assert logits.shape[1] == count
        assert (size, patch) != ((256, 352), (2, 2)) or count == 2884

    def test_decode(self):
        model = randomize(SSDLite("v2-0.05", 4)).eval()
        x = torch.rand(2, 3, 70, 90)
        found = model.decode(*model(x), (70, 90), max_detections=5)
        assert [len(one.boxes) for one in found] == [5, 5]

    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    @pytest.mark.parametrize("size", [(64, 64), (75, 100), (32, 33)])
    def test_logits_have_the_size_of_the_image(self, size, output_stride):
        model = DeepLabV3("v2-0.05", 5, output_stride=output_stride, aspp_channels=4, aux_channels=3)
        outputs = model.forward_with_aux(torch.rand(2, 3, *size))
        assert [y.shape for y in outputs] == [(2, 5, *size)] * 2
        sum(y.sum() for y in outputs).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize(
        ("output_stride", "patch", "whole"), [(16, 2, (96, 128)), (8, 2, (80, 112)), (16, 3, (96, 144))]
    )
    def test_padding(self, output_stride, patch, whole):
        """To maps that patches divide, which then cover the image exactly; cropped, the logits are those in it."""
        model = DeepLabV3("v2-0.05", 5, output_stride=output_stride, patch_size=patch, aspp_channels=4).eval()
        x = torch.rand(1, 3, 80, 100)
        padded = nn.functional.pad(x, (0, whole[1] - 100, 0, whole[0] - 80), mode="replicate")
        assert model.backbone.feature_sizes(whole)[-1] == tuple(side // output_stride for side in whole)
        with torch.no_grad():
            BaseTester.assert_close(model(x), model(padded)[..., :80, :100])

    def test_width_of_the_pyramid(self):
        with torch.device("meta"):
            assert [DeepLabV3(mode).aspp_channels for mode in ("xxs", "v2-0.5")] == [256, 512]
            assert DeepLabV3("v2-0.5", aspp_channels=64).aspp_channels == 64


class TestExport:
    @pytest.mark.long
    def test_block(self):
        """One graph for all maps, those with one patch among them, whose tokens come out twice."""
        block = randomize(MobileViTV2Block(Stage(4, dim=4, depth=1), (2, 2), 1, 0.0, [0.0])).eval()
        dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        program = torch.export.export(block, (torch.rand(2, 4, 6, 9),), dynamic_shapes=dynamic).module()
        with torch.no_grad():
            for batch, *size in [(2, 6, 9), (1, 2, 2), (3, 5, 7), (1, 2, 8), (2, 3, 3)]:
                x = torch.rand(batch, 4, *size)
                BaseTester.assert_close(program(x), block(x))

    @pytest.mark.long
    @pytest.mark.parametrize("first", [(2, 64, 130), (2, 64, 64)], ids=str)
    def test_all_sizes(self, first):
        model = randomize(MobileViTV2Classifier(0.05, 5)).double().eval()
        batch, *size = first
        dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        program = torch.export.export(
            model, (torch.rand(batch, 3, *size, dtype=torch.float64),), dynamic_shapes=dynamic
        ).module()
        with torch.no_grad():
            for batch, *size in [first, (1, 64, 64), (3, 224, 160), (2, 100, 130), (1, 33, 47)]:
                x = torch.rand(batch, 3, *size, dtype=torch.float64)
                assert (program(x) - model(x)).abs().max() < 1e-9, size
