"""Batches over shards: what processes and workers share, and what happens to broken images."""

import json
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit.data.loading.samplers import EpochBatchSampler, MultiScaleBatchSampler
from kornia_mvit.data.loading.shards import ShardFiles, count_shards
from kornia_mvit.data.loading.streams import ShardBatches, ShardLoader
from kornia_mvit.data.reading import DataError
from kornia_mvit.ops.seeds import multiscale_sizes
from tests.data.test_shards import cut_off, make_shards, make_tar
from tests.tester import raises_at_workers

SIZES = multiscale_sizes(32, 96, 3)


def planned(counts, batch_size, ranks, workers, *, epoch=0, **arguments):
    """The batches of every process, each a list of samples (shard, number), in the order that DataLoader asks."""
    files = ShardFiles({str(k): count for k, count in enumerate(counts)}, ["a", "b"])
    epochs = []
    for rank in range(ranks):
        batches = ShardBatches(files, batch_size, num_replicas=ranks, rank=rank, **arguments)
        batches.set_epoch(epoch)
        streams, lengths = [], []
        for worker in range(workers):
            mine, pieces = batches.plan(worker, workers)
            streams.append([(shard, i) for shard, first, last in pieces for i in range(first, last)])
            lengths.append(mine)
            assert sum(mine) == len(streams[-1])
        out = []
        for step in range(len(batches)):
            stream, mine = streams[step % workers], lengths[step % workers]
            begin = sum(mine[: step // workers])
            out.append(stream[begin : begin + mine[step // workers]])
        assert len(out) == sum(map(len, lengths))
        epochs.append(out)
    return epochs, batches.left_out


COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(any)


class TestShardBatches:
    @given(
        counts=COUNTS,
        batch_size=st.integers(1, 7),
        ranks=st.integers(1, 4),
        workers=st.integers(1, 4),
        epoch=st.integers(0, 3),
        scales=st.sampled_from([None, (SIZES, (64, 64))]),
    )
    @example(counts=[6] * 8, batch_size=3, ranks=2, workers=2, epoch=0, scales=None)
    @example(counts=[5, 5, 5, 8], batch_size=4, ranks=2, workers=2, epoch=0, scales=None)
    def test_training_shares_an_epoch(self, counts, batch_size, ranks, workers, epoch, scales):
        if sum(counts) < ranks:
            return
        epochs, left_out = planned(counts, batch_size, ranks, workers, epoch=epoch, seed=3, scales=scales)
        assert len({tuple(map(len, batches)) for batches in epochs}) == 1, "equal batches on all processes"
        seen = [sample for batches in epochs for batch in batches for sample in batch]
        assert len(seen) == len(set(seen)), "each at most once"
        assert left_out == sum(counts) - len(seen)
        if scales is None:
            share = sum(counts) // ranks
            assert {len(batch) for batches in epochs for batch in batches} == {min(batch_size, share)}
            assert share < batch_size or left_out < ranks * batch_size
            assert left_out == sum(counts) % ranks + ranks * (share % min(batch_size, share))

    @given(counts=COUNTS, batch_size=st.integers(1, 7), ranks=st.integers(1, 4), workers=st.integers(1, 4))
    def test_evaluation_sees_each_once(self, counts, batch_size, ranks, workers):
        epochs, left_out = planned(counts, batch_size, ranks, workers, train=False)
        assert len({len(batches) for batches in epochs}) == 1
        assert all(1 <= len(batch) <= batch_size for batches in epochs for batch in batches)
        seen = Counter(sample for batches in epochs for batch in batches for sample in batch)
        assert len(seen) == sum(counts)
        assert left_out == 0
        if batch_size > 1 and sum(counts) >= ranks:
            assert set(seen.values()) == {1}
        assert sum(seen.values()) - sum(counts) < ranks

    def test_whole_shards_where_they_divide(self):
        files = ShardFiles({str(k): 6 for k in range(8)}, ["a", "b"])
        for rank in range(2):
            for worker in range(2):
                _, pieces = ShardBatches(files, 3, num_replicas=2, rank=rank).plan(worker, 2)
                assert [(first, last) for _, first, last in pieces] == [(0, 6), (0, 6)]

    def test_what_is_left_out_differs(self):
        seen = set()
        for epoch in range(20):
            ((batches,), left_out) = planned([13], 5, 1, 1, epoch=epoch)
            assert left_out == 3
            seen |= {sample for batch in batches for sample in batch}
        assert len(seen) == 13

    def test_epochs_and_seeds_differ(self):
        def order(**arguments):
            return str(planned([4] * 6, 4, 1, 1, **arguments))

        assert len({order(epoch=e, seed=s) for e in range(3) for s in range(3)}) == 9
        assert order(epoch=2, seed=1) == order(epoch=2, seed=1)
        assert order(train=False) == order(train=False, epoch=1)

    def test_batches_are_as_large_as_the_sampler_s(self):
        files = ShardFiles({"a": 60}, ["a", "b"])
        batches = ShardBatches(files, 8, scales=(SIZES, (64, 64)), seed=4, num_replicas=2, rank=1)
        sampler = MultiScaleBatchSampler(range(30), 8, SIZES, base=(64, 64), seed=4, drop_last=True)
        for epoch in range(3):
            batches.set_epoch(epoch)
            sampler.set_epoch(epoch)
            assert batches.lengths() == [len(batch) for batch in sampler] == sampler.lengths()
        plain = EpochBatchSampler(range(7), 3, num_replicas=2, rank=1)
        assert plain.lengths() == [len(batch) for batch in plain]

    def test_exception(self):
        files = ShardFiles({"a": 3}, ["a", "b"])
        for arguments, message in [
            ({"batch_size": 0}, "batch_size 0 is not at least one"),
            ({"shuffle_buffer": 0}, "shuffle_buffer 0 is not at least one"),
            ({"num_replicas": 4, "rank": 0}, "3 samples in all shards are too few for 4 processes"),
            ({"num_replicas": 2, "rank": 2}, "rank 2 is not among 2 processes"),
        ]:
            with pytest.raises(ValueError, match=message):
                ShardBatches(files, **({"batch_size": 2} | arguments))
        with pytest.raises(DataError, match="0 samples in all shards"):
            ShardBatches(ShardFiles({"a": 0}, ["a", "b"]), 2, train=False)


def loader(shards, batch_size=3, *, workers=0, epoch=0, report=None, **arguments):
    files = ShardFiles(count_shards(shards)[0], ["even", "odd"])
    out = ShardLoader(
        ShardBatches(files, batch_size, **arguments),
        num_workers=workers,
        report=report,
        persistent_workers=workers > 0,
    )
    out.sampler.set_epoch(epoch)
    return out


def shades(batches):
    """The images' numbers, which are their shades, by batch."""
    return [batch.image[:, 0, 0, 0].tolist() for batch in batches]


def flat(batches):
    return [shade for batch in batches for shade in batch]


PROGRAM = """
import sys, torch, torch.distributed as dist
from kornia_mvit.data.loading.shards import ShardFiles, count_shards, find_shards
from kornia_mvit.data.loading.streams import ShardBatches, ShardLoader

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
out = {}
for name in ("equal", "unequal", "broken"):
    files = ShardFiles(count_shards(find_shards(f"{folder}/{name}/*.tar"))[0], ["even", "odd"])
    for train in (True, False):
        batches = ShardBatches(files, 4, train=train, on_error="skip")
        loader = ShardLoader(batches, num_workers=2, report=lambda line: print(f"{name}, rank {rank}: {line}"))
        seen = []
        for batch in loader:
            dist.all_reduce(torch.ones(1))  # which waits for the other
            seen.append(batch.image[:, 0, 0, 0].tolist())
        out[f"{name} {train}"] = seen
torch.save(out, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.long
@pytest.mark.processes
def test_two_workers_on_each_of_two_real_processes(tmp_path):
    """Equal shards, unequal ones, and some with broken images, in training and evaluation."""
    for name, sizes in {"equal": [8] * 4, "unequal": [9, 3, 14, 1, 4], "broken": [9, 7]}.items():
        (tmp_path / name).mkdir()
        shards = make_shards(tmp_path / name, sizes)
        if name == "broken":
            for k in range(4):
                break_image(shards[0], k)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    texts = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))

    def seen(case):
        return Counter(shade for part in first[case] + second[case] for shade in part)

    assert {case: (len(first[case]), len(second[case])) for case in first} == {
        "equal True": (4, 4),
        "equal False": (4, 4),
        "unequal True": (3, 3),
        "unequal False": (4, 4),
        "broken True": (2, 2),
        "broken False": (2, 2),
    }
    assert seen("equal True") == seen("equal False") == Counter(range(32))
    assert seen("unequal False") == Counter(range(31))
    assert len(seen("unequal True")) == seen("unequal True").total() == 24
    assert seen("broken False").keys() == seen("broken True").keys() == set(range(4, 16))
    warned = "".join(errors for _, errors in texts)
    assert all(f"{tmp_path}/broken/000-0.tar/{k:09d}.png" in warned for k in range(4))
    for rank, (out, _) in enumerate(texts):
        line = "7 of 31 samples left out, which do not make one more batch on every process"
        assert out.splitlines() == [f"unequal, rank {rank}: epoch 0: {line} (processes: 2, batches on each: 3)"]


def break_image(shard, number):
    """Spoil an image of a shard, and leave the rest as it is."""
    from kornia_mvit.data.loading.shards import read_shard

    samples = list(read_shard(shard))
    samples[number]["png"] = b"broken"
    make_tar(shard, [(f"{s['__key__']}.{suffix}", s[suffix]) for s in samples for suffix in ("cls", "png")])


class TestShardLoader:
    def test_two_workers_on_each_of_two_processes(self, tmp_path):
        """Each sample once, in every epoch, with equal shards; the processes simulated one after the other."""
        shards = make_shards(tmp_path, [6] * 8)
        lines = []
        loaders = [loader(shards, workers=2, num_replicas=2, rank=rank, report=lines.append) for rank in range(2)]
        orders = []
        for epoch in range(2):
            for one in loaders:
                one.sampler.set_epoch(epoch)
            parts = [shades(one) for one in loaders]
            assert [len(part) for part in parts] == [8, 8] == [len(one) for one in loaders]
            seen = [shade for part in parts for batch in part for shade in batch]
            assert sorted(seen) == list(range(48))
            orders.append(seen)
        assert orders[0] != orders[1], "workers that stay see the next epoch"
        assert lines == []

    def test_unequal_shards(self, tmp_path):
        """Processes stop together, and what is left out is told."""
        shards = make_shards(tmp_path, [5, 5, 5, 8])
        lines = []
        loaders = [loader(shards, 4, num_replicas=2, rank=rank, report=lines.append) for rank in range(2)]
        parts = [shades(one) for one in loaders]
        assert [len(part) for part in parts] == [2, 2]
        assert len({shade for part in parts for batch in part for shade in batch}) == 16
        assert lines[0] == lines[1]
        assert lines[0] == (
            "epoch 0: 7 of 23 samples left out, which do not make one more batch on every process (processes: 2, "
            "batches on each: 2)"
        )

    def test_feature(self, tmp_path):
        one = loader(make_shards(tmp_path, [5, 6]), 4, train=False)
        batches = list(one)
        assert shades(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert batches[1].label.tolist() == [0, 1, 0, 1]
        assert batches[1].image.dtype == torch.uint8
        assert batches[1].meta[1]["path"] == f"{tmp_path}/001-0.tar/{0:09d}.png"

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_order_is_that_of_seed_and_epoch(self, tmp_path, workers):
        shards = make_shards(tmp_path, [10, 10])
        first = shades(loader(shards, workers=workers, seed=1))
        again = loader(shards, workers=workers, seed=1, epoch=1)
        other = shades(again)
        again.sampler.set_epoch(0)
        assert shades(again) == first != other
        assert first != [sorted(batch) for batch in first], "shuffled within shards"

    def test_an_epoch_begins_anew_after_one_that_was_left(self, tmp_path):
        one = loader(make_shards(tmp_path, [10, 10]), workers=1)
        first = next(iter(one)).image
        assert torch.equal(next(iter(one)).image, first)

    def test_leaves_the_global_generators_alone(self, tmp_path):
        one = loader(make_shards(tmp_path, [4, 5]))
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        shades(one)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


class TestResumedShards:
    """An epoch that is interrupted, and resumed by as many processes and workers or by others."""

    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
    @pytest.mark.parametrize("broken", [False, True])
    def test_goes_on_with_the_next_sample(self, tmp_path, workers, broken):
        shards = make_shards(tmp_path, [9, 1, 14, 5])
        if broken:
            for number in (0, 3, 4, 7):
                break_image(shards[2], number)
        arguments = {"workers": workers, "epoch": 1, "shuffle_buffer": 8, "on_error": "skip"}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "skipped, as number")
            whole = shades(loader(shards, **arguments))
            for stop in range(1, 9):
                one, again = loader(shards, **arguments), loader(shards, **arguments)
                assert shades(islice(one, stop)) == whole[:stop]
                state = json.loads(json.dumps(one.state_dict()), object_hook=lambda d: d)
                state["cuts"][0]["stands"] = {int(rank): own for rank, own in state["cuts"][0]["stands"].items()}
                assert state["consumed"] == stop
                again.load_state_dict(state)
                assert again.state_dict() == one.state_dict()
                assert len(again) == len(whole)
                if stop == 4:  # once more from a resumed one
                    assert shades(islice(again, 2)) == whole[4:6]
                    state, again = again.state_dict(), loader(shards, **arguments)
                    again.load_state_dict(state)
                    assert shades(again) == whole[6:]
                else:
                    assert shades(again) == whole[stop:]
                    assert shades(again) == whole, "only the first iteration goes on"
                again.sampler.set_epoch(2)
                following = loader(shards, **(arguments | {"epoch": 2}))
                assert shades(again) == shades(following)

    def test_reads_only_the_shards_that_it_needs(self, tmp_path):
        shards = make_shards(tmp_path, [6] * 6)
        one = loader(shards, shuffle_buffer=2)
        seen = shades(islice(one, 7))
        gone = [shard for k, shard in enumerate(shards) if {*range(6 * k, 6 * k + 6)} <= set(flat(seen))]
        assert len(gone) >= 2
        for shard in gone:
            Path(shard).unlink()
        counts = dict.fromkeys(shards, 6)
        again = ShardLoader(ShardBatches(ShardFiles(counts, ["even", "odd"]), 3, shuffle_buffer=2))
        again.load_state_dict(one.state_dict())
        assert sorted(flat(seen + shades(again))) == list(range(36))

    @pytest.mark.parametrize("drop_last", [True, False])
    @pytest.mark.parametrize(("ranks", "size"), [(1, 4), (3, 4), (2, 5)])
    def test_others_share_what_is_left(self, tmp_path, ranks, size, drop_last):
        shards = make_shards(tmp_path, [9, 1, 14, 5, 12])
        old = [loader(shards, 4, num_replicas=2, rank=rank, drop_last=drop_last) for rank in range(2)]
        seen = [shade for one in old for batch in shades(islice(one, 3)) for shade in batch]
        state = ShardLoader.merge_states([one.state_dict() for one in old])
        lines, parts = [], []
        for rank in range(ranks):
            new = loader(shards, size, num_replicas=ranks, rank=rank, drop_last=drop_last, report=lines.append)
            new.load_state_dict(state)
            assert new.was_shared_anew == (ranks != 2 or size != 4)
            parts.append(shades(new))
            assert len(new) == 3 + len(parts[-1])
        rest = [shade for part in parts for batch in part for shade in batch]
        assert not set(rest) & set(seen)
        assert len({len(part) for part in parts}) == 1
        if drop_last:
            assert len(rest) == len(set(rest))
            assert 41 - len(seen) - len(rest) < ranks * size
        else:
            assert {*seen, *rest} == set(range(41))
            assert len(rest) - len(set(rest)) < ranks
            repeats = len(rest) - len(set(rest))
            assert any(f"{repeats} of 41 samples come twice" in line for line in lines) == (repeats > 0)
        left = f"the {41 - len(set(seen))} samples that are left"
        assert f"epoch 0: resumes after 3 batches, the last on 2 processes; {left}" in lines[0]

    def test_skipped_samples_of_all_processes_are_known(self, tmp_path):
        shards = make_shards(tmp_path, [12, 12])
        for number in (0, 1, 2, 3):
            break_image(shards[0], number)
            break_image(shards[1], number)
        arguments = {"on_error": "skip", "num_replicas": 2, "shuffle_buffer": 1}
        old = [loader(shards, 2, rank=rank, **arguments) for rank in range(2)]
        with pytest.warns(UserWarning, match="skipped, as number"):
            seen = [shade for one in old for batch in shades(islice(one, 2)) for shade in batch]
        state = ShardLoader.merge_states([one.state_dict() for one in old])
        assert state["cuts"][0]["stands"] == {0: [(0, 8)], 1: [(0, 8)]} or state["cuts"][0]["stands"] == {
            0: [[0, 8]],
            1: [[0, 8]],
        }
        new = loader(shards, 2, on_error="skip")
        new.load_state_dict(state)
        rest = flat(shades(new))
        assert len(new) == 2 + 4
        assert sorted(seen + rest) == [shade for shade in range(24) if shade % 12 > 3]

    def test_nothing_is_left(self, tmp_path):
        old = loader(make_shards(tmp_path, [8]), 2)
        shades(islice(old, 3))
        new = loader([str(tmp_path / "000-0.tar")], 4)
        new.load_state_dict(old.state_dict())
        assert (len(new), shades(new)) == (3, [])
        new.sampler.set_epoch(1)
        assert (len(new), len(shades(new))) == (2, 2)

    def test_a_finished_epoch_is_followed_by_the_next(self, tmp_path):
        shards = make_shards(tmp_path, [8])
        old, new = loader(shards, 2), loader(shards, 4)
        shades(old)
        new.load_state_dict(old.state_dict())
        assert (len(new), len(shades(new))) == (2, 2)

    def test_exception(self, tmp_path):
        shards = make_shards(tmp_path, [8, 3])
        old = loader(shards, 2)
        shades(islice(old, 1))
        state = old.state_dict()
        for other in (loader(shards, 2, seed=5), loader(shards[:1], 2)):
            with pytest.raises(ValueError, match=r"other shards or another seed \(0\) than this run has"):
                other.load_state_dict(state)
        with pytest.raises(ValueError, match="is not how an epoch"):
            loader(shards, 2).load_state_dict(state | {"cuts": [state["cuts"][0] | {"ranks": -1}]})


class TestBrokenImages:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_stops_the_run(self, tmp_path, workers):
        shards = make_shards(tmp_path, [5, 5])
        break_image(shards[1], 2)
        with raises_at_workers(DataError, match=rf"not an image, .*: {shards[1]}/0+2\.png"):
            shades(loader(shards, workers=workers))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_skipped_named_once_and_made_up_for(self, tmp_path, workers):
        shards = make_shards(tmp_path, [6, 6])
        break_image(shards[0], 1)
        break_image(shards[1], 3)
        one = loader(shards, workers=workers, on_error="skip")
        with pytest.warns(UserWarning, match="skipped, as number") as caught:
            parts = shades(one)
            one.sampler.set_epoch(1)
            shades(one)
        assert [len(part) for part in parts] == [3] * 4, "no batch less"
        assert {shade for part in parts for shade in part} == set(range(12)) - {1, 9}
        messages = sorted(str(warning.message) for warning in caught)
        assert len(messages) == len(one.skipped) == 2, "once in two epochs"
        assert [name in str(messages) for name in (f"{shards[0]}/000000001.png", f"{shards[1]}/000000003.png")]

    def test_evaluation_does_not_repeat(self, tmp_path):
        shards = make_shards(tmp_path, [6])
        break_image(shards[0], 1)
        break_image(shards[0], 2)
        one = loader(shards, 2, train=False, on_error="skip")
        with pytest.warns(UserWarning, match="skipped"):
            assert shades(one) == [[0, 3], [4, 5], [5]], "but for a batch that has nothing left"

    def test_a_shard_that_ends_early(self, tmp_path):
        shards = make_shards(tmp_path, [6, 6])
        cut_off(shards[0])
        with pytest.raises(DataError, match=rf"{shards[0]} after 5 samples"):
            shades(loader(shards))
        one = loader(shards, on_error="skip")
        with pytest.warns(UserWarning, match=rf"{shards[0]} after 5 samples"):
            parts = shades(one)
        assert len(parts) == 4
        assert {shade for part in parts for shade in part} == set(range(12)) - {5}

    def test_more_samples_promised_than_there_are(self, tmp_path):
        shards = make_shards(tmp_path, [6, 6])
        (tmp_path / "sizes.json").write_text(json.dumps({"000-0.tar": 9, "001-0.tar": 6}))
        with pytest.raises(DataError, match=r"000-0\.tar.*6 samples.*9.*sizes\.json"):
            shades(loader(shards))

    @pytest.mark.parametrize("train", [True, False])
    def test_nothing_left(self, tmp_path, train):
        shards = make_shards(tmp_path, [1, 1])
        break_image(shards[0], 0)
        break_image(shards[1], 0)
        with pytest.raises(DataError, match=r"2 shards.*not an image.*0\.png"):
            shades(loader(shards, 1, train=train, on_error="skip"))

    def test_a_wrong_label_is_not_skipped(self, tmp_path):
        shard = make_tar(tmp_path / "a.tar", [("1.cls", b"7"), ("1.png", b"")])
        with pytest.raises(DataError, match=r"a\.tar/1.*label 7.*2 classes"):
            shades(loader([shard], on_error="skip"))
