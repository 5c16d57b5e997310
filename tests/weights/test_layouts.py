"""Name maps: against the peers' own classes and Apple's names, and there and back."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import MobileViT, MobileViTClassifier
from kornia_mvit.weights.layouts import LAYOUTS, find_prefix, from_native, module_map, to_native

APPLE = json.loads((Path(__file__).parents[1] / "golden" / "apple_classification_xxs.json").read_text())
MODES = ("xxs", "xs", "s")


def state_of(variant, mode, dtype=torch.float32, seed=0):
    """A backbone's weights under our names, all different."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MobileViT(mode, variant=variant).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


class TestModuleMap:
    def test_exception(self):
        with pytest.raises(ValueError, match=r"'jax'; available: 'native', 'apple', 'timm'"):
            module_map("jax")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_name_stands_for_two_modules(self, layout):
        names = [n for name in module_map(layout).values() for n in ((name,) if isinstance(name, str) else name)]
        # timm's and Kornia's names for modules that their networks do not have may be anything
        assert len(set(names)) == len(names)

    def test_our_own_names_are_all_there(self):
        modules = {
            name.rpartition(".")[0]
            for variant in ("apple", "kornia")
            for name in MobileViT(variant=variant).state_dict()
        }
        assert modules == set(module_map("native"))
        assert all(ours == name for ours, name in module_map("native").items())


class TestToNative:
    def test_apple(self):
        """Every name of Apple's classifier, and no other, with the shapes of ours."""
        state = {name: torch.empty(shape) for name, shape in APPLE["keys"].items()}
        native, unknown = to_native(state, "apple")
        assert sorted(unknown) == ["classifier.fc.bias", "classifier.fc.weight"]
        expected = {
            name.removeprefix("backbone."): value.shape
            for name, value in MobileViTClassifier("xxs").state_dict().items()
            if name.startswith("backbone.")
        }
        assert {name: value.shape for name, value in native.items()} == expected

    def test_unknown_names_are_given_back(self):
        state = from_native(state_of("apple", "xxs"), "transformers")
        query = "encoder.layer.2.transformer.layer.0.attention.attention.query.weight"
        del state[query]
        state["extra.weight"] = torch.zeros(1)
        native, unknown = to_native(state, "transformers")
        assert "extra.weight" in unknown
        assert query.replace("query", "key") in unknown
        assert "stages.2.1.transformer.0.attn.qkv.weight" not in native

    @given(
        layout=st.sampled_from(sorted(LAYOUTS)),
        mode=st.sampled_from(MODES),
        dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        seed=st.integers(0, 2**16),
    )
    def test_there_and_back_keeps_every_tensor(self, layout, mode, dtype, seed):
        state = state_of("kornia" if layout == "kornia" else "apple", mode, dtype, seed)
        theirs = from_native(state, layout)
        back, unknown = to_native(theirs, layout)
        assert not unknown
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], value) and back[name].dtype == dtype for name, value in state.items())
        again = from_native(back, layout)
        assert again.keys() == theirs.keys()
        assert all(torch.equal(again[name], value) for name, value in theirs.items())


class TestFindPrefix:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_first_of_two_backbones(self, layout):
        names = list(from_native(state_of("kornia" if layout == "kornia" else "apple", "xxs"), layout))
        for first, second in (("student.", "teacher."), ("teacher.", "student.")):
            both = [f"{prefix}{name}" for prefix in (first, second) for name in names]
            assert find_prefix(both, layout) == (first, len(names))

    def test_nothing_found(self):
        assert find_prefix(["fc.weight", "fc.bias"], "native") == ("", 0)
