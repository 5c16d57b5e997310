"""Pipelines under ``torch.compile``: what is drawn stays out of the graph, and all that follows is one."""

import dataclasses

import pytest
import torch
from kornia.augmentation import IntensityAugmentationBase2D, RandomAffine, RandomGaussianNoise, RandomHorizontalFlip

from kornia_mvit import AugmentationPipeline, Batch, CopyPaste, CutMix, Mix, MixUp, Mosaic, Preprocess, policies
from tests.augmentation.scenes import STACKS, figures, scene
from tests.augmentation.test_copy_paste import objects
from tests.augmentation.test_instances import painted

PREPROCESS = Preprocess((48, 48), mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
POLICIES = {
    "affine": lambda: [RandomHorizontalFlip(), RandomAffine(20.0, scale=(0.8, 1.2))],
    "chain": STACKS["chain"],
    "classification_train": lambda: policies.classification_train(48, jitter=0.4),
    "segmentation_train": lambda: policies.segmentation_train((48, 48), rotate=10.0),
    "detection_train": lambda: policies.detection_train((48, 48)),
}
FIELDS = [field.name for field in dataclasses.fields(Batch) if field.name not in ("image", "fields", "meta")]


def built(name: str, preprocess: Preprocess = PREPROCESS, **arguments) -> AugmentationPipeline:
    return AugmentationPipeline(POLICIES[name](), preprocess=preprocess, **arguments).train()


def assert_equal(out: Batch, wanted: Batch, atol: float = 0.0) -> None:
    torch.testing.assert_close(out.image, wanted.image, rtol=0, atol=atol)
    for name in FIELDS:
        one, other = getattr(out, name), getattr(wanted, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=atol)
    for name, value in (wanted.fields or {}).items():
        torch.testing.assert_close(out.fields[name], value, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def graphs():
    """Forget what was compiled; the numbers of graphs that were made since."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("name", POLICIES)
def test_one_graph_for_any_seed(name, graphs):
    """Equal to the bit for 20 seeds and for the pipeline's own counter; nothing but the drawing is left out."""
    eager, compiled = built(name), torch.compile(built(name), backend="aot_eager")
    atol = 2e-6 if name == "chain" else 0.0  # uncompiled on a CPU, jitter_colors rounds otherwise than ColorJitter
    for seed in [*range(20), None, None]:
        batch = scene(seed or 0, count=6)
        assert_equal(compiled(batch, seed=seed), eager(batch, seed=seed), atol)
    if name != "chain":  # of whose operations some are drawn by no image, which makes a graph of its own
        assert graphs["unique_graphs"] == 1


@pytest.mark.long
def test_antialias(graphs):
    eager = built("segmentation_train", antialias=True)
    compiled = torch.compile(built("segmentation_train", antialias=True), backend="aot_eager")
    for seed in range(5):
        batch = scene(seed, count=6)
        assert_equal(compiled(batch, seed=seed), eager(batch, seed=seed), atol=1e-6)
    assert graphs["unique_graphs"] == 1


@pytest.mark.long
def test_keypoints_of_instances(graphs):
    """Pairs are swapped within the graph, and rows go with their boxes."""
    arguments = {"preprocess": PREPROCESS, "keypoint_flip_pairs": [(2, 3)], "min_box_visibility": 0.5}
    eager = AugmentationPipeline(POLICIES["affine"](), **arguments)
    compiled = torch.compile(AugmentationPipeline(POLICIES["affine"](), **arguments), backend="aot_eager")
    for seed in range(3):
        batch = figures(11)[[0, 1] * 3]
        assert_equal(compiled(batch, seed=seed), eager(batch, seed=seed))
    assert graphs["unique_graphs"] == 1


@pytest.mark.long
@pytest.mark.parametrize("method", ["corners", "mask"])
def test_instance_masks_and_fields(method, graphs):
    """What is bound to boxes follows them within the graph."""
    arguments = {"preprocess": PREPROCESS, "box_method": method}
    make = [RandomHorizontalFlip(p=1.0), RandomAffine(20.0, p=1.0)]
    eager, compiled = AugmentationPipeline(make, **arguments), AugmentationPipeline(make, **arguments)
    compiled = torch.compile(compiled, backend="aot_eager")
    for seed in range(3):
        batch = painted(7, (51, 63))
        assert_equal(compiled(batch, seed=seed), eager(batch, seed=seed))
    assert graphs["unique_graphs"] == 1


@pytest.mark.long
def test_mixes_are_left_out_of_the_graph(graphs):
    """What comes after the sampling of a mix is carried out uncompiled, and gives the same."""
    mixes = [CopyPaste(0.7), Mosaic(0.7), CutMix(0.7), MixUp(0.7)]
    eager, compiled = (AugmentationPipeline([RandomHorizontalFlip(p=1.0)], mixes) for _ in range(2))
    compiled = torch.compile(compiled, backend="aot_eager")
    batch = objects(1, 24, 32).replace(mask=None)
    for seed in range(3):
        assert_equal(compiled(batch, seed=seed), eager(batch, seed=seed))
    assert graphs["unique_graphs"] == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["segmentation_train", "detection_train"])
def test_argument(name, graphs):
    """By the default compiler, which rounds otherwise, and replayed."""
    eager, compiled = built(name), built(name, compile=True)
    for seed in range(20):
        batch = scene(seed, count=6)
        out, params = compiled.augment(batch, seed=seed)
        assert_equal(out, eager.augment(batch, seed=seed)[0], atol=1e-4)
    assert graphs["unique_graphs"] == 1
    assert_equal(compiled.replay(batch, params), out, atol=1e-4)
    assert_equal(eager.replay(batch, params), out, atol=1e-4)


@pytest.mark.long
def test_sizes():
    """Images of other sizes and numbers, padded ones, and a letterbox."""
    preprocess = Preprocess((48, 64), letterbox=True)
    eager, compiled = built("affine", preprocess), torch.compile(built("affine", preprocess), backend="aot_eager")
    for seed, (count, height, padded) in enumerate([(2, 64, False), (2, 80, False), (3, 70, True), (5, 64, True)]):
        batch = scene(seed, count=count, height=height, padded=padded)
        assert_equal(compiled(batch, seed=seed), eager(batch, seed=seed), atol=1e-5)


class Noise(IntensityAugmentationBase2D):
    """Draws as it goes, of which the pipeline knows nothing."""

    def apply_transform(self, image, params, flags, transform=None):
        return image + 0.1 * torch.rand_like(image)


@pytest.mark.long
@pytest.mark.parametrize("step", [RandomGaussianNoise(p=1.0), Noise(p=1.0)], ids=["kornia", "own"])
def test_what_draws_as_it_goes_draws_the_same(step):
    def make() -> AugmentationPipeline:
        return AugmentationPipeline([RandomHorizontalFlip(), step], Mix(3), preprocess=PREPROCESS).train()

    eager, compiled = make(), torch.compile(make(), backend="aot_eager")
    for seed in range(3):
        image, label = torch.rand(4, 3, 40, 40), torch.tensor([0, 1, 2, 0])
        for one, other in zip(compiled(image, label, seed=seed), eager(image, label, seed=seed), strict=True):
            assert torch.equal(one, other)
