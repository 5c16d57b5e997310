import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit.models.graph import fold_dynamic, is_static, resize, unfold_dynamic
from kornia_mvit.models.mobilevit import TransformerLayer, fold, unfold
from tests.tester import BaseTester, GraphCounter

patches = st.tuples(st.integers(1, 4), st.integers(1, 4))


class TestIsStatic:
    def test_eager(self):
        assert is_static()
        assert is_static(3, 1)

    def test_traced(self):
        """Of a (B, C) tensor with a dynamic B; to ask costs no graph."""
        graphs = GraphCounter("eager")

        def f(x):
            return x + 1 if is_static(*x.shape) else x + (3 if is_static(x.shape[1]) else 2)

        compiled = torch.compile(f, fullgraph=True, backend=graphs)
        for rows, count in ((5, 1), (6, 2), (7, 2), (9, 2)):
            x = torch.zeros(rows, 4)
            assert set(compiled(x).flatten().tolist()) == {1.0 if count == 1 else 3.0}
            assert graphs.count == count


class TestResize:
    def test_is_free_where_the_size_fits(self):
        x = torch.rand(1, 2, 4, 6)
        assert resize(x, (4, 6)) is x

    @pytest.mark.parametrize("size", [(6, 6), (4, 8), (3, 5)])
    def test_feature(self, size):
        x = torch.rand(1, 2, 4, 6)
        expected = F.interpolate(x, size, mode="bilinear", align_corners=False)
        assert torch.equal(resize(x, size), expected)

    def test_traced_is_exact_where_the_size_fits(self):
        graphs = GraphCounter("eager")
        compiled = torch.compile(lambda x, y: resize(x, y.shape[2:]), fullgraph=True, dynamic=True, backend=graphs)
        x = torch.rand(1, 2, 4, 6)
        compiled(x, torch.rand(1, 2, 8, 7))
        assert torch.equal(compiled(x, x.clone()), x)
        assert graphs.count == 1


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=patches,
)
@example(1, 1, 1, 1, (1, 1))
@example(2, 3, 1, 1, (2, 2))
@example(2, 3, 1, 3, (2, 2))
@example(2, 3, 3, 1, (2, 2))
def test_unfold_dynamic_is_unfold(batch, channels, rows, columns, patch):
    size = (rows * patch[0], columns * patch[1])
    x = torch.rand(batch, channels, *size)
    tokens, expected = unfold_dynamic(x, patch), unfold(x, patch)
    # a single row or column comes out twice
    times = (1, 1, 2 if rows == 1 else 1, 2 if columns == 1 else 1, 1)
    expected = expected.unflatten(2, (rows, columns)).repeat(times).flatten(2, 3)
    assert torch.equal(tokens, expected)
    assert torch.equal(fold_dynamic(tokens, patch, size), x)


class TestUnfoldDynamic(BaseTester):
    def test_smoke(self, device, dtype):
        tokens = unfold_dynamic(torch.rand(2, 3, 4, 6, device=device, dtype=dtype), (2, 2))
        assert (tokens.device.type, tokens.dtype) == (device.type, dtype)

    def test_exception(self):
        """A map of more patches than there are tokens: internal use only, so PyTorch's own error will do."""
        tokens = unfold_dynamic(torch.rand(1, 2, 4, 6), (2, 2))
        with pytest.raises(RuntimeError, match="out of"):
            fold_dynamic(tokens, (2, 2), (4, 8))

    @pytest.mark.parametrize(
        ("size", "patches_shown"), [((2, 3), 2 * 2), ((4, 3), 2 * 2), ((2, 9), 2 * 3), ((4, 9), 2 * 3)]
    )
    def test_cardinality(self, size, patches_shown):
        assert unfold_dynamic(torch.rand(2, 5, *size), (2, 3)).shape == (2, 6, patches_shown, 5)

    @pytest.mark.parametrize("size", [(2, 2), (2, 6), (4, 2), (4, 6)])
    def test_feature(self, size):
        """A transformer's results do not depend on all tokens' coming twice."""
        layer = TransformerLayer(8, 16, 2, 4, True, 0.0, 0.0).double()
        x = torch.rand(2, 8, *size).double()
        once = fold(layer(unfold(x, (2, 2))), (2, 2), size)
        self.assert_close(fold_dynamic(layer(unfold_dynamic(x, (2, 2))), (2, 2), size), once)

    @pytest.mark.parametrize("size", [(2, 3), (4, 6)])
    def test_gradcheck(self, size):
        self.gradcheck(lambda x: unfold_dynamic(x, (2, 3)), [torch.rand(2, 2, *size)])
        self.gradcheck(lambda x: fold_dynamic(unfold_dynamic(x, (2, 3)) ** 2, (2, 3), size), [torch.rand(2, 2, *size)])

    @pytest.mark.long
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_dynamo(self, backend):
        graphs = GraphCounter(backend)

        def f(x):
            tokens = unfold_dynamic(x, (2, 2))
            return fold_dynamic(2 * tokens, (2, 2), (x.shape[2], x.shape[3]))

        compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=graphs)
        for size in ((4, 6), (2, 2), (2, 8), (6, 2), (10, 10)):
            x = torch.rand(2, 3, *size)
            assert torch.equal(compiled(x), 2 * x)
        assert graphs.count == 1
