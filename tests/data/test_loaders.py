"""ResumableLoader, over EpochBatchSampler."""

import subprocess
import sys
import textwrap
from itertools import islice

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
        state = again.state_dict()
        assert (state["epoch"], state["consumed"]) == (epoch, len(whole))
        assert labels(again) == whole, "only the first iteration goes on"

    @pytest.mark.parametrize("workers", [0, 2])
    def test_counts_what_was_taken_not_what_was_loaded_ahead(self, workers):
        loader = make(workers=workers)
        whole = labels(loader)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        assert (state["epoch"], state["consumed"], state["taken"]) == (0, 1, 4)
        again = make(workers=workers)
        again.load_state_dict(state)
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

    def test_takes_the_state_of_an_older_version(self):
        again = make()
        again.load_state_dict({"epoch": 0, "consumed": 2})
        assert labels(again) == labels(make())[2:]

    @given(
        count=st.integers(1, 60),
        runs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 6)), min_size=2, max_size=4),
        drop_last=st.booleans(),
    )
    def test_goes_on_with_other_processes(self, count, runs, drop_last):
        """Interrupted and resumed with other numbers of processes and batch sizes, each image comes once."""
        state, seen = None, []
        for number, (ranks, size, stop) in enumerate(runs):
            arguments = {"batch_size": size, "drop_last": drop_last, "num_replicas": ranks}
            loaders = [make(count, rank=rank, **arguments) for rank in range(ranks)]
            for loader in loaders if state else []:
                loader.load_state_dict(state)
            end = count if number == len(runs) - 1 else min(stop, len(loaders[0]) - 1)
            before = state["consumed"] if state else 0
            parts = [labels(islice(loader, max(0, end - before))) for loader in loaders]
            assert len({tuple(map(len, part)) for part in parts}) == 1, "equal batches on all processes"
            assert {loader.state_dict()["consumed"] for loader in loaders} == {before + len(parts[0])}
            state = loaders[0].state_dict()
            seen += [label for part in parts for batch in part for label in batch]
        assert {len(loader) for loader in loaders} == {state["consumed"]}
        assert len(seen) - len(set(seen)) < ranks, "fewer come twice than there are processes"
        if not drop_last:
            assert set(seen) == set(range(count))
        elif state["consumed"] > 1:
            assert count - len(set(seen)) < ranks * size

    def test_other_images_than_before(self):
        loader = make(batch_size=5)
        next(iter(loader))
        with pytest.raises(ValueError, match="5 of 3 images were taken"):
            make(3).load_state_dict(loader.state_dict())

    def test_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        labels(make())
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.long
    @pytest.mark.parametrize("end", ["raise KeyError", "sys.exit(3)", "pass"])
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
