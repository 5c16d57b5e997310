"""ResumableLoader, over EpochBatchSampler."""

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit.data.loading.loaders import ResumableLoader
from kornia_mvit.data.loading.samplers import EpochBatchSampler


def make(count=20, *, batch_size=4, workers=0, **arguments):
    samples = [{"image": torch.zeros(3, 2, 2), "label": i} for i in range(count)]
    return ResumableLoader(samples, EpochBatchSampler(samples, batch_size, **arguments), num_workers=workers)


def labels(batches):
    return [batch.label.tolist() for batch in batches]


class TestResumableLoader:
    @given(count=st.integers(1, 30), batch_size=st.integers(1, 8), epoch=st.integers(0, 3), data=st.data())
    def test_goes_on_with_the_next_batch(self, count, batch_size, epoch, data):
        loader = make(count, batch_size=batch_size)
        loader.sampler.set_epoch(epoch)
        whole = labels(loader)
        taken = data.draw(st.integers(0, len(whole) - 1))
        batches = iter(loader)
        for _ in range(taken):
            next(batches)
        again = make(count, batch_size=batch_size)
        again.load_state_dict(loader.state_dict())
        assert labels(again) == whole[taken:]
        assert again.state_dict() == {"epoch": epoch, "consumed": len(whole)}
        assert labels(again) == whole, "only the first iteration goes on"

    @pytest.mark.parametrize("workers", [0, 2])
    def test_counts_what_was_taken_not_what_was_loaded_ahead(self, workers):
        loader = make(workers=workers)
        whole = labels(loader)
        batches = iter(loader)
        next(batches)
        assert loader.state_dict() == {"epoch": 0, "consumed": 1}
        again = make(workers=workers)
        again.load_state_dict(loader.state_dict())
        assert labels(again) == whole[1:]

    def test_an_epoch_begins_anew_after_one_that_was_left(self):
        loader = make()
        first = next(iter(loader)).label.tolist()
        assert next(iter(loader)).label.tolist() == first

    def test_a_finished_epoch_is_followed_by_the_next(self):
        loader = make()
        labels(loader)
        again = make()
        again.load_state_dict(loader.state_dict())
        again.sampler.set_epoch(1)
        assert len(labels(again)) == 5

    def test_the_state_of_another_epoch_does_not_matter(self):
        loader = make()
        next(iter(loader))
        again = make()
        again.load_state_dict(loader.state_dict())
        again.sampler.set_epoch(1)
        whole = make()
        whole.sampler.set_epoch(1)
        assert labels(again) == labels(whole)

    def test_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        labels(make())
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "end", ["raise KeyError", *(pytest.param(end, marks=pytest.mark.long) for end in ("sys.exit(3)", "pass"))]
    )
    def test_a_process_ends_that_has_not_done_with_its_workers(self, end):
        """Which ignore the signal by which Python asks them to end; an error keeps the iterator in its traceback."""
        code = f"""
        import sys
        from tests.data.test_loaders import make
        batches = iter(make(workers=1))
        next(batches)
        sys.kept = batches
        {end}
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=240, check=False
        )
        assert run.returncode == {"raise KeyError": 1, "sys.exit(3)": 3, "pass": 0}[end]
        assert (b"KeyError" in run.stderr) == (end == "raise KeyError")


class TestEpochBatchSampler:
    @given(
        count=st.integers(1, 60),
        batch_size=st.integers(1, 9),
        ranks=st.integers(1, 5),
        mode=st.sampled_from([(True, False), (True, True), (False, False)]),
    )
    def test_processes_share_an_epoch(self, count, batch_size, ranks, mode):
        repeat, drop_last = mode
        samplers = [
            EpochBatchSampler(
                range(count), batch_size, repeat=repeat, drop_last=drop_last, num_replicas=ranks, rank=rank
            )
            for rank in range(ranks)
        ]
        epochs = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in epochs} == {len(samplers[0])}
        assert all(1 <= len(batch) <= batch_size for batches in epochs for batch in batches)
        seen = [index for batches in epochs for batch in batches for index in batch]
        if drop_last and repeat and -(-count // ranks) >= batch_size:
            assert len(seen) == -(-count // ranks) // batch_size * batch_size * ranks
        elif not drop_last:
            assert set(seen) == set(range(count))
            assert len(seen) - count < ranks
            if not repeat and batch_size > 1 and count >= ranks:
                assert len(seen) == count

    def test_epochs_and_seeds_differ(self):
        def order(seed, epoch):
            sampler = EpochBatchSampler(range(50), 50, seed=seed)
            sampler.set_epoch(epoch)
            return next(iter(sampler))

        orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
        assert len({tuple(o) for o in orders}) == 4
        assert order(1, 1) == orders[3]

    def test_exception(self):
        with pytest.raises(ValueError, match="batch_size 0"):
            EpochBatchSampler(range(3), 0)
        with pytest.raises(ValueError, match="drop_last"):
            EpochBatchSampler(range(3), 1, drop_last=True, repeat=False)
        with pytest.raises(ValueError, match=r"rank 2.*2 processes"):
            EpochBatchSampler(range(3), 1, num_replicas=2, rank=2)
