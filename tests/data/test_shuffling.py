"""ShuffleBuffer."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit.data.loading.shuffling import ShuffleBuffer


class TestShuffleBuffer:
    @given(count=st.integers(0, 700), size=st.integers(1, 400), seed=st.integers(0, 2**62), taken=st.integers(0, 700))
    @example(count=10_000, size=300, seed=1, taken=9_000)
    @example(count=9_000, size=20_000, seed=1, taken=4_500)
    def test_goes_on_where_another_stopped(self, count, size, seed, taken):
        taken = min(taken, count)
        whole = list(ShuffleBuffer(count, size, seed))
        assert sorted(whole) == list(range(count))
        buffer = ShuffleBuffer(count, size, seed, taken)
        assert len(buffer.slots) <= size
        assert sorted([*buffer.slots, *range(buffer.read, count)]) == sorted(whole[taken:])
        assert list(buffer) == whole[taken:]

    def test_reads_no_further_than_its_size(self):
        buffer = ShuffleBuffer(10_000, 500, seed=0)
        assert buffer.read == 100
        for step, number in enumerate(buffer, 1):
            assert number < buffer.read <= step + 500

    def test_mixes(self):
        """A buffer of the size of the whole gives each number each place, about as often."""
        first = [next(ShuffleBuffer(50, 50, seed)) for seed in range(2000)]
        assert min(map(first.count, range(50))) > 10
        places = [place - number for place, number in enumerate(ShuffleBuffer(20_000, 1000, seed=0))]
        assert 500 < sum(map(abs, places)) / len(places) < 1500

    def test_seeds_differ(self):
        orders = {tuple(ShuffleBuffer(60, 30, seed)) for seed in range(20)}
        assert len(orders) == 20

    def test_a_buffer_of_one_keeps_the_order(self):
        assert list(ShuffleBuffer(5, 1, seed=0)) == [0, 1, 2, 3, 4]
        with pytest.raises(StopIteration):
            next(ShuffleBuffer(0, 1, seed=0))
