"""check_backbone: a clean network passes, and each planted fault is found by the property that is there for it."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, SSDLite
from kornia_mvit.testing import PROPERTIES, BackboneError, BackboneReport, Result, Status, check_backbone
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import DEEP, TINY
from tests.testing import faults

DEFAULT = [name for name in PROPERTIES if name != "compile"]

# A fault, the one property that it breaks, and what the report has to say.
FAULTS = [
    (faults.Refuses, "sizes", "32x33: ValueError: height 32 and width 33 are not multiples of 32"),
    (faults.Crashes, "sizes", "RuntimeError: shape"),
    (faults.Transposes, "shapes", "32x33: output is 9 high, but 8 for 32x32"),
    (faults.ChangesChannels, "shapes", "32x41: output has 7 channels, but 8 for other sizes"),
    (faults.NotANumber, "finite", "32x41, low images with values from 0 to 1: output has NaN"),
    (faults.DividesBySpread, "finite", "32x32, low images with values from 0 to 1: output has NaN"),
    (faults.Squeezes, "batch_sizes", "a batch of 1: output is (8,), not (1, 8)"),
    (faults.SubtractsBatchMean, "neighbours", "32x32, with another neighbour: output differs by up to"),
    (faults.BatchStatistics, "neighbours", "32x32, with another neighbour: output differs by up to"),
    (faults.CountsCalls, "repeatable", "run a second time, after other images: output differs by up to 2"),
    (faults.DropsInEval, "randomness", "a forward pass moved PyTorch's global generator"),
    (faults.DrawsFromPython, "randomness", "a forward pass moved Python's global generator"),
    (faults.WeightsWithoutSeed, "seeded_weights", "these differ: head.bias"),
    (faults.RoundsImage, "input_gradient", "no gradient reaches the image"),
    (faults.DeadParameter, "parameters", "no gradient reaches spare.weight, spare.bias"),
    (faults.DeadBuffer, "buffers", "changing these changes nothing: mean"),
    (faults.Float32, "dtypes", "torch.bfloat16: RuntimeError: "),
    (faults.OnCPU, "device", "on the meta device: "),
    (faults.NoAutocast, "autocast", "raised RuntimeError: "),
    (faults.Memory, "channels_last", "32x32, images in channels_last: output differs by up to"),
    (faults.Views, "strided", "32x32: RuntimeError: view size is not compatible"),
    (faults.InPlace, "input_unchanged", "32x32: in eval mode the image is changed in place, by up to 0.5"),
    (faults.OtherInTraining, "modes", "in training mode output has another shape: (4, 8)"),
    (faults.HidesWeights, "state_dict", "loaded into another network: output differs by up to"),
    (faults.SharesWeights, "deepcopy", "the copy shares head.weight, head.bias"),
    (faults.Unpicklable, "pickles", "cannot be pickled: "),
    (faults.AsksValues, "export", "torch.export: "),
]


def check(network, **arguments):
    """With few and small sizes, to be quick."""
    return check_backbone(network, **{"sizes": image_sizes(max_side=64), "max_examples": 8} | arguments)


def names(results):
    return [result.name for result in results]


class TestCheckBackbone:
    @pytest.mark.parametrize("network", [faults.Clean, faults.Maps, faults.Classifier])
    def test_clean_network_passes(self, network):
        report = check(network)
        assert names(report.results) == DEFAULT
        assert {result.status for result in report.results} == {Status.PASSED}

    @pytest.mark.long
    @pytest.mark.parametrize(("network", "name", "detail"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
    def test_fault_is_found_by_its_property_alone(self, network, name, detail):
        report = check(network, raise_on_failure=False)
        assert names(report.failures) == [name], str(report)
        assert detail in report[name].detail

    def test_every_property_has_a_fault(self):
        assert {fault[1] for fault in FAULTS} == set(DEFAULT)

    @pytest.mark.long
    def test_compiles_when_asked(self):
        report = check(faults.Clean, properties=["compile"])
        assert names(report.results) == ["compile"]
        broken = check(faults.AsksValues, properties=["compile"], raise_on_failure=False)
        assert "torch.compile: " in broken["compile"].detail

    def test_raises_at_the_end_with_every_failure(self):
        class Both(faults.InPlace, faults.DeadParameter):
            pass

        with pytest.raises(
            BackboneError, match=r"(?s)parameters +failed.*spare.weight.*input_unchanged +failed"
        ) as raised:
            check(Both, exclude=["pickles"])
        assert names(raised.value.report.failures) == ["parameters", "input_unchanged"]

    def test_training_mode_left_on_is_named(self):
        class Stays(faults.Clean):
            def train(self, mode=True):
                super().train(mode)
                self.norm.train()
                return self

        report = check(Stays, properties=["neighbours"], raise_on_failure=False)
        assert "in training mode after eval(): norm" in report["neighbours"].detail

    def test_refusals_are_told_from_crashes(self):
        report = check(faults.Refuses, raise_on_failure=False)
        assert report["sizes"].status is Status.REFUSED
        assert "sizes drawn are refused; taken are 32x32" in report["sizes"].detail
        assert check(faults.Crashes, raise_on_failure=False)["sizes"].status is Status.FAILED
        stated = check(faults.Refuses, sizes=[(64, 32), (32, 96)], properties=["sizes", "shapes"])
        assert stated.ok

    def test_without_any_size_nothing_else_applies(self):
        report = check(faults.Refuses, sizes=[(33, 33)], raise_on_failure=False)
        assert report["sizes"].status is Status.REFUSED
        others = {result.name: result.status for result in report.results if result.name != "sizes"}
        assert {name for name, status in others.items() if status is Status.PASSED} == {"seeded_weights"}
        assert set(others.values()) == {Status.PASSED, Status.NOT_APPLICABLE}

    @pytest.mark.parametrize(
        ("network", "shape"),
        [
            (faults.Clean, lambda b, h, w: (b, 8, -(-h // 4), -(-w // 4))),
            (faults.Classifier, lambda b, h, w: [b, 8]),
            (
                faults.Maps,
                lambda b, h, w: {"early": (b, 6, -(-h // 2), -(-w // 2)), "late": [(b, 8, -(-h // 4), -(-w // 4))]},
            ),
        ],
    )
    def test_shapes_that_are_expected(self, network, shape):
        assert check(network, output_shape=shape, properties=["shapes"]).ok
        wrong = check(network, output_shape=lambda b, h, w: (b, 9), properties=["shapes"], raise_on_failure=False)
        assert wrong["shapes"].detail.startswith("32x32: output")

    def test_says_the_same_again_and_draws_nothing(self):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        details = []
        for _ in range(2):
            report = check(faults.SubtractsBatchMean, properties=["shapes", "neighbours"], raise_on_failure=False)
            details.append([result.detail for result in report.results])
            torch.rand(3)
            torch.set_rng_state(before[0])
        assert details[0] == details[1]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]

    def test_reports_rounding_as_such(self):
        """A weak dependence on the neighbours is found, and rounding is none."""

        class Weak(faults.Clean):
            def forward(self, x):
                y = self.stages(x)
                return y + 1e-3 * y.mean(0, keepdim=True)

        assert not check(Weak, properties=["neighbours"], raise_on_failure=False).ok

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"properties": ["shape"]}, ValueError, "unknown properties shape; available: sizes, shapes, finite"),
            ({"exclude": ["gpu"]}, ValueError, "unknown properties gpu"),
            ({"sizes": []}, ValueError, "sizes is empty; give at least one height and width"),
            ({"max_examples": 0}, ValueError, "max_examples 0 and in_channels 3 are not at least 1"),
            ({"factory": faults.Clean()}, TypeError, "factory is a Clean itself; give a function that builds one"),
            ({"factory": lambda: 3}, TypeError, "factory gave a int; it is to build a torch.nn.Module"),
        ],
    )
    def test_exception(self, arguments, error, message):
        with pytest.raises(error) as raised:
            check_backbone(**{"factory": faults.Clean} | arguments)
        assert message in str(raised.value)

    def test_exception_of_a_factory_that_gives_one_network(self):
        model = faults.Clean()
        with pytest.raises(TypeError, match="same network twice"):
            check_backbone(lambda: model)
        assert check(lambda: copy.deepcopy(model), properties=["sizes"]).ok

    def test_other_channels(self):
        assert check(lambda: nn.Conv2d(5, 4, 3, padding=1), in_channels=5).ok

    def test_output_that_is_no_tensor(self):
        class Speaks(faults.Clean):
            def forward(self, x):
                return "a cat"

        report = check(Speaks, raise_on_failure=False)
        assert "output is a str; a backbone gives tensors" in report["sizes"].detail


class TestOurs:
    """The models of this package have all properties."""

    @pytest.mark.parametrize(
        "factory",
        [
            pytest.param(lambda: MobileViT(TINY), id="TINY"),
            pytest.param(lambda: MobileViTClassifier(DEEP, 5), id="DEEP", marks=pytest.mark.long),
        ],
    )
    def test_small(self, factory):
        check_backbone(factory, max_examples=5, exclude=["export"])

    @pytest.mark.long
    @pytest.mark.parametrize(("mode", "variant"), [("xxs", "apple"), ("xs", "kornia"), ("s", "apple")])
    def test_every_mode(self, mode, variant):
        model = MobileViTClassifier(mode, 10, variant=variant)
        channels = model.backbone.out_channels
        check_backbone(
            lambda: MobileViT(mode, variant=variant),
            output_shape=lambda b, h, w: (b, channels, -(-h // 32), -(-w // 32)),
            max_examples=4,
            exclude=["export"],
        )
        check_backbone(
            lambda: MobileViTClassifier(mode, 10, variant=variant),
            output_shape=lambda b, h, w: (b, 10),
            properties=["sizes", "shapes", "finite", "neighbours", "parameters", "export"],
            max_examples=4,
        )

    @pytest.mark.long
    def test_heads(self):
        check_backbone(
            lambda: DeepLabV3(DEEP, 4, aspp_channels=6), output_shape=lambda b, h, w: (b, 4, h, w), max_examples=4
        )
        check_backbone(lambda: SSDLite(DEEP, 4, widths=(10, 8, 8, 8, 6, 5)), max_examples=4)


class TestBackboneReport:
    report = BackboneReport(
        "Net",
        (
            Result("sizes", Status.REFUSED, "32x33: ValueError: no\n3 of 4 sizes drawn are refused", 0.25),
            Result("shapes", Status.PASSED, "", 1.0),
            Result("buffers", Status.NOT_APPLICABLE, "it has no floating-point buffers"),
        ),
    )

    def test_table(self):
        assert str(self.report).splitlines() == [
            "Net: 1 passed, 1 refused, 1 n/a, 1.2 s",
            "  sizes    refused   0.2 s  32x33: ValueError: no",
            "                            3 of 4 sizes drawn are refused",
            "  shapes   passed    1.0 s",
            "  buffers  n/a       0.0 s  it has no floating-point buffers",
        ]

    def test_feature(self):
        assert names(self.report.failures) == ["sizes"]
        assert not self.report.ok
        assert self.report["shapes"].status is Status.PASSED
        assert self.report.to_dict()["results"][0]["status"] == "refused"
        with pytest.raises(BackboneError, match="32x33"):
            self.report.raise_for_failures()
        with pytest.raises(KeyError, match=r"neighbours.*sizes, shapes, buffers"):
            self.report["neighbours"]
