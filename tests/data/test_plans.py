"""The plan of an epoch over shards, interrupted and resumed with other numbers of processes and workers."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit.data.loading.plans import Cut, EpochPlan, Runs
from kornia_mvit.ops.seeds import multiscale_sizes

SIZES = multiscale_sizes(32, 96, 3)
CUTS = st.builds(
    Cut,
    ranks=st.integers(1, 4),
    workers=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    drop_last=st.booleans(),
    buffer=st.integers(1, 12),
    batches=st.integers(0, 6),
)


def taken(plan, rank, batches):
    """The samples of a process's batches, and how long these are: by the workers in turn, through their buffers."""
    workers, streams = plan.cut.workers, []
    for worker in range(workers):
        own = [(shard, number) for shard, first, last in plan.pieces(rank, worker) for number in range(first, last)]
        streams.append([own[k] for k in plan.buffer(rank, worker, len(own), (0, 0))])
    out = []
    for step, length in enumerate(plan.lengths[:batches].tolist()):
        out += [streams[step % workers].pop(0) for _ in range(length)]
    return out


class TestEpochPlan:
    @given(
        counts=st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(lambda counts: sum(counts) >= 4),
        cuts=st.lists(CUTS, min_size=1, max_size=4),
        scales=st.sampled_from([None, (SIZES, (64, 64))]),
    )
    @example(
        counts=[12, 5], cuts=[Cut(3, 1, 2, False, 3, 2), Cut(2, 2, 3, False, 9, 1), Cut(1, 1, 4, False, 5)], scales=None
    )
    def test_each_sample_at_most_once(self, counts, cuts, scales):
        drop_last = cuts[-1].drop_last
        seen, past = [], []
        for number, cut in enumerate(cuts):
            plan = EpochPlan(counts, 3, 1, [*past, cut], scales)
            last = number == len(cuts) - 1
            count = len(plan.lengths) if last else min(cut.batches, len(plan.lengths))
            past.append(replace(cut, batches=count))
            parts = [taken(plan, rank, count) for rank in range(cut.ranks)]
            assert len({len(part) for part in parts}) == 1
            new = [sample for part in parts for sample in part]
            assert not set(new) & set(seen), "none that came in an earlier cut"
            assert len(new) - len(set(new)) <= (0 if cut.drop_last else cut.ranks - 1)
            if last:
                assert plan.repeated == len(new) - len(set(new))
                assert plan.left_out == sum(counts) - len(set(seen)) - len(set(new))
            seen += new
        if drop_last and (plan.before or sum(counts) // cut.ranks >= cut.batch_size) and scales is None:
            assert plan.left_out < cut.ranks * cut.batch_size
        if not drop_last:
            assert len(set(seen)) == sum(counts)

    def test_a_worker_that_skipped_samples_has_taken_more(self):
        cut = Cut(1, 2, 2, True, buffer=3, batches=2, stands={0: [(0, 5), (1, 2)]})
        plan = EpochPlan([20], 0, 0, [cut, Cut(1, 1, 2, True, buffer=3)])
        assert plan.left == 20 - 5 - 10, "the second worker has read all of its samples once"
        assert [plan.stand(0, 0), EpochPlan([20], 0, 0, [cut]).stand(0, 1)] == [(0, 0), (1, 2)]

    def test_pieces_lie_within_shards(self):
        counts = [3, 0, 4, 0, 0, 5]
        plan = EpochPlan(counts, 0, 0, [Cut(2, 2, 3, True, buffer=1)])
        pieces = [piece for rank in range(2) for worker in range(2) for piece in plan.pieces(rank, worker)]
        assert all(0 <= first < last <= counts[shard] for shard, first, last in pieces)
        seen = Counter((shard, number) for shard, first, last in pieces for number in range(first, last))
        assert (len(seen), seen.total()) == (12, 12)


class TestCut:
    @given(cut=CUTS)
    def test_state(self, cut):
        cut = replace(cut, stands={0: [(0, 3)] * cut.workers})
        assert Cut.from_state(cut.state_dict()) == cut

    @pytest.mark.parametrize(
        "change", [{"ranks": 0}, {"batches": -1}, {"workers": 1.5}, {"stands": {0: [[1, 2]]}}, {"stands": {0: [3, 4]}}]
    )
    def test_exception(self, change):
        state = Cut(1, 2, 3, True, 4).state_dict() | change
        with pytest.raises((TypeError, ValueError)):
            Cut.from_state(state)


class TestRuns:
    @given(data=st.data(), places=st.sets(st.integers(0, 40), min_size=1))
    def test_are_places(self, data, places):
        places = sorted(places)
        runs = Runs(places, [place + 1 for place in places])
        assert len(runs) == len(places)
        numbers = st.integers(0, len(places))
        spans = data.draw(st.lists(st.tuples(numbers, numbers).map(sorted), max_size=4))
        gone = {number for first, last in spans for number in range(first, last)}
        spans = [(first, last) for first, last in spans if first < last]
        left = runs.without(*(np.array([span[k] for span in spans], "int64") for k in range(2)))
        expected = [place for number, place in enumerate(places) if number not in gone]
        assert [place for first, last in left.part(0, len(left)) for place in range(first, last)] == expected
        first, last = sorted(data.draw(st.tuples(numbers, numbers)))
        inside = [place for start, stop in runs.part(first, last) for place in range(start, stop)]
        assert inside == places[first:last]
