"""What holds for every image, patch and variant."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from kornia_mvit.models.mobilevit import VARIANTS, MobileViT, MobileViTClassifier, fold, unfold
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import randomize

OUT_CHANNELS = {"xxs": 320, "xs": 384, "s": 640}

seeds = st.integers(0, 2**32 - 1)
modes = st.sampled_from(["xxs", "xs", "s"])
variants = st.sampled_from(list(VARIANTS))
patches = st.tuples(st.integers(1, 4), st.integers(1, 4))
sizes = image_sizes(max_side=100)  # pixels, of which patches divide some and not others
dtypes = st.sampled_from([torch.float32, torch.float64])
memory_formats = st.sampled_from([torch.contiguous_format, torch.channels_last])


@given(
    mode=modes,
    variant=variants,
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    patch=patches,
    size=sizes,
    training=st.booleans(),
)
@example("xxs", "apple", 1, 3, (2, 2), (32, 32), False)
@example("s", "kornia", 2, 3, (2, 2), (96, 64), False)
@example("xs", "apple", 2, 1, (3, 2), (64, 33), True)
def test_output_is_finite_and_of_the_stated_shape(mode, variant, batch, channels, patch, size, training):
    model = MobileViT(mode, channels, patch, variant=variant)
    # in training, batch normalisation asks for two values at least
    model.train(training and (batch > 1 or max(size) > 32))
    with torch.no_grad():
        y = model(torch.rand(batch, channels, *size))
    assert y.shape == (batch, OUT_CHANNELS[mode], -(-size[0] // 32), -(-size[1] // 32))
    assert y.isfinite().all()


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    patch=patches,
    memory_format=memory_formats,
)
@example(1, 1, 1, 1, (1, 1), torch.contiguous_format)
def test_fold_undoes_unfold(batch, channels, rows, columns, patch, memory_format):
    size = (rows * patch[0], columns * patch[1])
    x = torch.rand(batch, channels, *size).to(memory_format=memory_format)
    tokens = unfold(x, patch)
    assert tokens.shape == (batch, patch[0] * patch[1], rows * columns, channels)
    assert torch.equal(fold(tokens, patch, size), x)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, which is in proportion to the largest logit."""
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[expected.dtype]
    assert (actual - expected).abs().max() < tolerance * max(1.0, expected.abs().max().item())


@given(mode=modes, variant=variants, neighbours=st.integers(1, 3), size=sizes, dtype=dtypes, seed=seeds)
@example("xxs", "apple", 1, (64, 64), torch.float32, 0)
def test_logits_do_not_depend_on_the_neighbours(mode, variant, neighbours, size, dtype, seed):
    torch.manual_seed(seed)
    model = randomize(MobileViTClassifier(mode, 10, variant=variant)).to(dtype).eval()
    x = torch.rand(1 + neighbours, 3, *size, dtype=dtype)
    with torch.no_grad():
        alone = model(x[:1])
        assert_same(model(x)[:1], alone)
        assert_same(model(x.flip(0))[-1:], alone)


@given(mode=modes, variant=variants, patch=patches, size=sizes, dtype=dtypes, seed=seeds)
@example("xxs", "apple", (2, 2), (64, 64), torch.float32, 0)
def test_memory_format_does_not_matter(mode, variant, patch, size, dtype, seed):
    torch.manual_seed(seed)
    model = randomize(MobileViTClassifier(mode, 10, patch_size=patch, variant=variant)).to(dtype).eval()
    x = torch.rand(2, 3, *size, dtype=dtype)
    with torch.no_grad():
        expected = model(x)
        assert_same(model(x.to(memory_format=torch.channels_last)), expected)
        assert_same(model.to(memory_format=torch.channels_last)(x), expected)


@given(
    mode=modes,
    variant=variants,
    patch=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=image_sizes(min_side=65, max_side=100),  # every block then has several patches to attend to
    seed=seeds,
)
@example("xxs", "apple", (2, 2), (96, 128), 0)
def test_gradients_reach_every_parameter(mode, variant, patch, size, seed):
    torch.manual_seed(seed)
    model = randomize(MobileViTClassifier(mode, 10, patch_size=patch, variant=variant))
    x = torch.rand(2, 3, *size, requires_grad=True)
    logits = model(x)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in [("the image", x), *model.named_parameters()]:
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name
        if name.endswith("qkv.weight"):  # query, key and value apart, and above what rounding leaves
            largest = [part.abs().max() for part in parameter.grad.chunk(3)]
            assert min(largest) > 1e-4 * max(largest), name
