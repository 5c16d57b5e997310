"""What the package relies on of Kornia's insides, tried with the release that ``kornia_adapter.TRIED_WITH`` names."""

import ast
from pathlib import Path

import kornia
import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation.auto import RandAugment

import kornia_mvit
from kornia_mvit.augmentation import kornia_adapter as adapter

PACKAGE = Path(kornia_mvit.__file__).parent
ADAPTER = PACKAGE / "augmentation" / "kornia_adapter.py"
CHANGED = f"Kornia {kornia.__version__} differs from {adapter.TRIED_WITH}: change augmentation/kornia_adapter.py"


def private_names(source: str) -> list[str]:
    """List the imports and attributes by which a file reaches into Kornia."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kornia":
            names = [alias.name for alias in node.names]
            deep = node.module.startswith("kornia.augmentation.") and node.module != "kornia.augmentation.auto"
            found += [f"{node.module}.{name}" for name in names if deep or name.startswith("_")]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("kornia.augmentation.")]
        elif isinstance(node, ast.Attribute) and node.attr == "_param_generator":
            found.append(node.attr)
        elif isinstance(node, ast.MatchClass) and "_param_generator" in node.kwd_attrs:
            found.append("_param_generator")
        elif isinstance(node, ast.Constant) and node.value == "_param_generator":
            found.append("_param_generator")
    return found


def test_no_other_file_uses_private_names_of_kornia():
    files = [path for path in PACKAGE.rglob("*.py") if path != ADAPTER]
    found = {str(path.relative_to(PACKAGE)): names for path in files if (names := private_names(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "from kornia.augmentation.base import _AugmentationBase",
        "from kornia.augmentation import _2d",
        "import kornia.augmentation.container.base",
        "x._param_generator.scale",
        "getattr(x, '_param_generator')",
        "match x:\n    case A(_param_generator=g): pass",
    ],
)
def test_private_names_are_found(source):
    assert private_names(source)


def test_constraints_name_the_release():
    constraints = PACKAGE.parent / "constraints.txt"
    assert f"kornia=={adapter.TRIED_WITH}" in constraints.read_text().split(), CHANGED


class TestContract:
    def test_kinds(self):
        assert issubclass(adapter.AugmentationBase, adapter.BasicAugmentationBase), CHANGED
        assert issubclass(K.RandomHorizontalFlip, adapter.AugmentationBase), CHANGED
        assert issubclass(K.RandomCutMixV2, adapter.BasicAugmentationBase), CHANGED
        assert issubclass(K.ImageSequential, adapter.ImageSequentialBase), CHANGED
        assert issubclass(adapter.ImageSequentialBase, adapter.SequentialBase), CHANGED
        assert issubclass(RandAugment, adapter.PolicyAugmentBase), CHANGED

    def test_policies(self):
        policy = RandAugment(2, 9)
        children = list(policy.children())
        assert all(isinstance(child, adapter.PolicySequential) for child in children), CHANGED
        operation = children[0][0]
        assert isinstance(operation, adapter.OperationBase), CHANGED
        assert isinstance(operation.op, adapter.AugmentationBase), CHANGED
        params = policy.forward_parameters(torch.Size((2, 3, 8, 8)))
        assert len(params) == 2, CHANGED
        for item in params:
            assert isinstance(item, adapter.ParamItem), CHANGED
            assert isinstance(policy.get_submodule(item.name), adapter.PolicySequential), CHANGED
            ((_, sampled),) = item.data
            assert {"batch_prob", "forward_input_shape"} <= set(sampled), CHANGED

    def test_ranges(self):
        scale, ratio = adapter.crop_ranges(K.RandomResizedCrop((8, 8), scale=(0.2, 0.9), ratio=(0.5, 2.0)))
        assert tuple(map(float, scale)) == pytest.approx((0.2, 0.9)), CHANGED
        assert tuple(map(float, ratio)) == pytest.approx((0.5, 2.0)), CHANGED
        assert adapter.rotation_degrees(K.RandomRotation(30.0)) == 30.0, CHANGED

    def test_cutmix(self):
        torch.manual_seed(0)
        pairs, boxes = adapter.sample_cutmix(K.RandomCutMixV2(use_correct_lambda=True), 6, 20, 30)
        assert sorted(pairs.tolist()) == list(range(6)), CHANGED
        assert boxes.shape == (6, 4, 2), CHANGED
        assert bool((boxes >= -1).all() and (boxes[..., 0] < 30).all() and (boxes[..., 1] < 20).all()), CHANGED

    @pytest.mark.parametrize("kind", [K.RandomResizedCrop, K.RandomCrop])
    def test_windows(self, kind):
        module = kind((8, 8))
        sampled = module.forward_parameters(torch.Size((2, 3, 16, 16)))
        assert {"src", "dst", "output_size", "batch_prob"} <= set(sampled), CHANGED
        assert sampled["src"].shape == (2, 4, 2), CHANGED
