"""MultiScaleBatchSampler."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.data.loading.samplers import MultiScaleBatchSampler
from kornia_mvit.ops.seeds import multiscale_sizes

SIZES = multiscale_sizes(32, 96, 3)


def make(count, **arguments):
    return MultiScaleBatchSampler(range(count), **({"batch_size": 8, "sizes": SIZES, "base": (64, 64)} | arguments))


class TestMultiScaleBatchSampler:
    @given(
        count=st.integers(1, 200),
        ranks=st.integers(1, 5),
        batch_size=st.integers(1, 16),
        epoch=st.integers(0, 3),
        shuffle=st.booleans(),
    )
    def test_ranks_share_an_epoch(self, count, ranks, batch_size, epoch, shuffle):
        samplers = [
            make(count, batch_size=batch_size, num_replicas=ranks, rank=rank, shuffle=shuffle) for rank in range(ranks)
        ]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        epochs = [list(sampler) for sampler in samplers]
        assert len({len(batches) for batches in epochs}) == 1
        assert all(len(sampler) == len(epochs[0]) for sampler in samplers)
        assert all(len({len(batches[i]) for batches in epochs}) == 1 for i in range(len(epochs[0])))
        seen = [index for batches in epochs for batch in batches for index in batch]
        assert set(seen) == set(range(count))
        assert len(seen) == -(-count // ranks) * ranks, "no more are repeated than even shares need"
        for step in range(len(epochs[0])):
            assert len({sampler.size_of(step) for sampler in samplers}) == 1

    def test_area_of_a_batch_is_about_constant(self):
        sampler = make(2000, batch_size=16)
        for step, batch in enumerate(list(sampler)[:-1]):
            height, width = sampler.size_of(step)
            assert abs(len(batch) - 16 * 64 * 64 / (height * width)) <= 0.5
        assert make(10, batch_size=1, base=(32, 32)).drop_last is False
        assert all(len(batch) == 1 for batch in make(10, batch_size=1, base=(32, 32)))

    def test_epochs_differ_and_repeat(self):
        one, two = make(100), make(100)
        first = list(one)
        assert list(one) == first
        one.set_epoch(1)
        assert list(one) != first
        assert list(two) == first
        assert list(make(100, seed=1)) != first

    @given(count=st.integers(1, 120), stop=st.integers(0, 30))
    def test_resumes_in_the_middle(self, count, stop):
        whole, broken, resumed = make(count), make(count), make(count)
        for sampler in (whole, broken):
            sampler.set_epoch(2)
        expected = list(whole)
        given_out = [batch for batch, _ in zip(broken, range(min(stop, len(expected) - 1)), strict=False)]
        broken.position = len(given_out)  # zip asks for one batch more than it gives
        resumed.load_state_dict(broken.state_dict())
        assert given_out + list(resumed) == expected
        assert list(resumed) == expected, "the next epoch is whole again"

    def test_drop_last(self):
        sampler = make(50, drop_last=True)
        for step, batch in enumerate(sampler):
            height, width = sampler.size_of(step)
            assert len(batch) == max(1, round(8 * 64 * 64 / (height * width)))

    def test_pipeline_draws_the_same_sizes(self):
        sampler = make(60, seed=4)
        loader = DataLoader(TensorDataset(torch.rand(60, 3, 40, 40)), batch_sampler=sampler)
        pipeline = AugmentationPipeline(multi_scale=SIZES, seed=4).train()
        for epoch in range(2):
            sampler.set_epoch(epoch)
            pipeline.set_epoch(epoch)
            for step, (images,) in enumerate(loader):
                assert tuple(pipeline(Batch(images)).image.shape[-2:]) == sampler.size_of(step)

    def test_exception(self):
        with pytest.raises(ValueError, match="batch_size 0"):
            make(3, batch_size=0)
        with pytest.raises(ValueError, match=r"rank 2.*2 processes"):
            make(3, num_replicas=2, rank=2)
        with pytest.raises(ValueError, match="no sizes to sample from"):
            make(3, sizes=())
