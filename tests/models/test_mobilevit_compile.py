"""One graph for all image sizes, and the numbers of eager code."""

import copy

import pytest
import torch
from torch.export import Dim

from kornia_mvit.models.mobilevit import MobileViT, MobileViTClassifier
from tests.models.networks import DEEP, SHALLOW, SINGLE, randomize
from tests.tester import BaseTester, GraphCounter

SIZES = [  # batch, height, width: square and not, divisible and not, with one patch in the deepest map and with many
    (2, 64, 64),
    (2, 96, 96),
    (3, 224, 160),
    (2, 160, 224),
    (4, 256, 256),
    (2, 100, 130),
    (5, 288, 288),
    (2, 75, 201),
    (2, 320, 192),
    (8, 65, 64),
    (2, 64, 130),
]


HALVES = [(batch, height // 2, width // 2) for batch, height, width in SIZES]  # the same cases, of one stage less


@torch.no_grad()
def run_all_sizes(model, first, graphs, sizes=SIZES):
    """Compile a model on one size, run it on all, compare each with eager code, and give the number of graphs."""
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for batch, *size in [first, *(other for other in sizes if other != first)]:
        x = torch.rand(batch, 3, *size)
        assert (compiled(x) - model(x)).abs().max() < 1e-5, (batch, *size)
    return graphs.count


class TestCompile:
    @pytest.mark.long
    @pytest.mark.parametrize("first", [(2, 32, 32), (4, 128, 128)], ids=str)
    def test_two_graphs_do_for_all_sizes(self, first):
        model = randomize(MobileViTClassifier(SINGLE, 10, patch_size=8)).eval()
        assert run_all_sizes(model, first, GraphCounter("eager"), HALVES) <= 2

    @pytest.mark.long
    def test_one_graph_does_after_an_oblong_image(self):
        """PyTorch takes equal sides of the first image for equal for ever, which costs the second graph above."""
        model = randomize(MobileViTClassifier(DEEP, 10)).eval()
        assert run_all_sizes(model, (2, 64, 130), GraphCounter("eager")) == 1

    @pytest.mark.long
    @pytest.mark.parametrize("patch", [3, (1, 2), (2, 4)], ids=str)
    def test_other_patches(self, patch):
        model = randomize(MobileViT(SINGLE, patch_size=patch)).eval()
        assert run_all_sizes(model, (2, 37, 100), GraphCounter("eager"), HALVES) == 1

    @pytest.mark.long
    def test_training(self):
        """Gradients and batch statistics, of one patch and of many; differentiation has guards of its own."""
        model = randomize(MobileViT(SINGLE, patch_size=8)).double()
        graphs = GraphCounter("aot_eager")
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
        for batch, *size in [(2, 32, 65), (2, 32, 32), (4, 37, 50)]:
            model.zero_grad()
            eager = copy.deepcopy(model)
            x = torch.rand(batch, 3, *size).double()
            expected = eager(x)
            weight = torch.randn_like(expected)
            (expected * weight).sum().backward()
            (compiled(x) * weight).sum().backward()
            for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
                BaseTester.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)
            for ours, theirs in zip(model.buffers(), eager.buffers(), strict=True):
                BaseTester.assert_close(ours, theirs)
        assert graphs.count == 1

    def test_inductor(self):
        model, x = randomize(MobileViT(SINGLE)).eval(), torch.rand(2, 3, 64, 70)
        with torch.no_grad():
            compiled = torch.compile(model, fullgraph=True, backend=GraphCounter("inductor"))
            assert (compiled(x) - model(x)).abs().max() < 1e-5

    @pytest.mark.long
    def test_inductor_for_all_sizes(self):
        model = randomize(MobileViTClassifier("xxs", 10)).eval()
        assert run_all_sizes(model, (2, 64, 130), GraphCounter("inductor")) == 1

    @pytest.mark.parametrize("size", [(64, 64), (75, 100)])
    def test_one_size(self, size):
        """Sizes that are no symbols take the plain unfold and fold: no index is left in the graph."""
        model, x = randomize(MobileViT(SHALLOW)).eval(), torch.rand(2, 3, *size)
        program = torch.export.export(model, (x,))
        BaseTester.assert_close(program.module()(x), model(x))
        assert "index_select" not in program.graph_module.code


class TestExport:
    @pytest.mark.long
    @pytest.mark.parametrize(
        ("mode", "traced"),
        [("xxs", (2, 96, 128)), (DEEP, (2, 64, 64))],
        ids=["xxs", "square"],
    )
    def test_dynamic(self, mode, traced):
        model = randomize(MobileViTClassifier(mode, 10)).eval()
        batch, *size = traced
        dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        program = torch.export.export(model, (torch.rand(batch, 3, *size),), dynamic_shapes=dynamic)
        run = program.module()
        with torch.no_grad():
            for batch, *size in [*SIZES, (1, 64, 64), (1, 100, 130), (2, 33, 47)]:
                x = torch.rand(batch, 3, *size)
                assert (run(x) - model(x)).abs().max() < 1e-5, (batch, *size)

    @pytest.mark.long
    def test_named_dimensions(self):
        """The ranges that a user states are kept."""
        model = randomize(MobileViT(SHALLOW)).eval()
        dynamic = {"x": {0: Dim("batch", min=2), 2: Dim("height", min=64, max=512), 3: Dim("width", min=64, max=512)}}
        program = torch.export.export(model, (torch.rand(2, 3, 96, 128),), dynamic_shapes=dynamic)
        assert sorted((r.lower, r.upper) for r in program.range_constraints.values())[1:] == [(64, 512), (64, 512)]
        for size in ((64, 64), (300, 65)):
            x = torch.rand(2, 3, *size)
            BaseTester.assert_close(program.module()(x), model(x))
