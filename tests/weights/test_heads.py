"""Names of what stands on the backbone: against Apple's and transformers' own, and there and back."""

import json
from pathlib import Path

import pytest
import torch

from kornia_mvit import DeepLabV3, SSDLite
from kornia_mvit.models.modes import build_classifier
from kornia_mvit.models.staged import Classifier
from kornia_mvit.weights.cards import MODELS
from kornia_mvit.weights.files import CheckpointError
from kornia_mvit.weights.layouts.heads import HEADS, find_head, head_from_native, head_name, head_to_native
from tests.weights.peers import transformers_segmentation

APPLE = json.loads((Path(__file__).parents[1] / "golden" / "apple_classification_xxs.json").read_text())
PUBLISHED = [(layout, task) for layout, tasks in HEADS.items() for task in tasks]
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def apple_names(*, later=False, aux=False):
    """The names of Apple's DeepLabV3, by the attributes of its classes: of the first release, or as they are later.

    The first release puts dropout, classifier and upsampling in one sequence; later the classifier stands alone.
    transformers' conversion script takes both.
    """
    aspp = "seg_head.aspp.aspp_layer"
    blocks = [f"{aspp}.convs.{n}" for n in range(4)] + [f"{aspp}.convs.4.aspp_pool.conv_1x1", f"{aspp}.project"]
    last = ["seg_head.classifier" if later else "seg_head.classifier.classifier"]
    if aux:
        blocks.append(f"seg_head.aux_head.{'0' if later else 'aux_projection'}")
        last.append(f"seg_head.aux_head.{'2' if later else 'aux_classifier'}")
    head = [f"{block}.block.conv.weight" for block in blocks]
    head += [f"{block}.block.norm.{leaf}" for block in blocks for leaf in BATCH_NORM]
    head += [f"{block}.block.conv.{leaf}" for block in last for leaf in ("weight", "bias")]
    encoder = [name for name in APPLE["keys"] if not name.startswith(("conv_1x1_exp.", "classifier."))]
    return {*head, *(f"encoder.{name}" for name in encoder)}


def own_head(task, **arguments):
    """The names and weights beside the backbone of a model of ours."""
    build = {**MODELS, "classification": build_classifier}[task]
    state = build("xxs", 7, **arguments).state_dict()
    return {name: value for name, value in state.items() if not name.startswith("backbone.")}


class TestHeadName:
    @pytest.mark.parametrize("later", [False, True])
    @pytest.mark.parametrize("aux", [False, True])
    def test_apple(self, later, aux):
        """Every name of either release, and no other."""
        names = {name for name in apple_names(later=later, aux=aux) if not name.startswith("encoder.")}
        ours = {head_name(name, "apple", "segmentation") for name in names}
        assert ours == own_head("segmentation", aux_channels=4 * aux).keys()

    def test_transformers(self):
        peer = transformers_segmentation("xxs").state_dict()
        names = {name for name in peer if not name.startswith("mobilevit.")}
        ours = {head_name(name, "transformers", "segmentation"): peer[name].shape for name in names}
        assert ours == {name: value.shape for name, value in own_head("segmentation").items()}

    def test_unknown_names(self):
        assert head_name("segmentation_head.aspp.convs.5.convolution.weight", "transformers", "segmentation") is None
        assert head_name("classifier.fc.weight", "apple", "segmentation") is None
        assert head_name("stages.0.0.expand.conv.weight", "native", "segmentation") is None


class TestHeadFromNative:
    @pytest.mark.parametrize(("layout", "task"), PUBLISHED)
    def test_there_and_back(self, layout, task):
        state = own_head(task)
        theirs = head_from_native(state, layout, task)
        back = head_to_native({head_name(name, layout, task): value for name, value in theirs.items()}, layout, task)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], value) for name, value in state.items())

    def test_apple_is_written_as_it_was_published(self):
        theirs = head_from_native(own_head("segmentation", aux_channels=4), "apple", "segmentation")
        assert theirs.keys() == {name for name in apple_names(aux=True) if not name.startswith("encoder.")}

    def test_exception(self):
        with pytest.raises(KeyError, match=r"aux_head\.project\.conv"):
            head_from_native(own_head("segmentation", aux_channels=4), "transformers", "segmentation")
        with pytest.raises(KeyError, match=r"head\.aspp\.atrous\.3\.conv"):
            head_from_native({"head.aspp.atrous.3.conv.weight": torch.zeros(1)}, "apple", "segmentation")
        with pytest.raises(KeyError, match=r"heads\.2\.box"):
            state = own_head("detection", aspect_ratios=[(2, 3), (2, 3), (2,), (2, 3), (2, 3), (2,)])
            head_from_native(state, "apple", "detection")
        with pytest.raises(CheckpointError, match=r"ssd_heads\.5\..*\.conv\.bias \(21,\)"):
            head_to_native({"heads.5.both.bias": torch.zeros(21)}, "apple", "detection")


class TestFindHead:
    @pytest.mark.parametrize("outer", ["", "module."])
    @pytest.mark.parametrize(("layout", "task"), PUBLISHED)
    def test_feature(self, layout, task, outer):
        prefix = f"{outer}{HEADS[layout][task].prefix}"
        names = [f"{outer}{name}" for name in head_from_native(own_head(task), layout, task)]
        assert find_head([*names, f"{prefix}stem"], layout, prefix) == (outer, task)

    def test_backbones(self):
        """One under a head that has no names here keeps its prefix."""
        assert find_head(["encoder.a", "ssd_head.b"], "apple", "encoder.") == ("encoder.", None)
        assert find_head(["backbone.a", "b"], "native", "backbone.") == ("", None)
        assert find_head(["a"], "native", "") == ("", None)
        assert find_head(["x.a"], "kornia", "x.") == ("x.", None)

    def test_the_models_of_all_tasks_are_named(self):
        assert {Classifier, DeepLabV3, SSDLite} == set(MODELS.values())
        assert all(set(MODELS) == set(HEADS[layout]) for layout in ("native", "apple"))
        assert set(MODELS) - set(HEADS["transformers"]) == {"detection"}
