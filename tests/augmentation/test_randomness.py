"""What a pipeline draws: seeds, counters, replay and views."""

import io
import pickle
from types import SimpleNamespace

import kornia.augmentation as K
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from kornia_mvit import AugmentationPipeline, Batch, Mix, Preprocess
from kornia_mvit.augmentation.randomness import SeedCounter, isolated_generators, seed_generators
from kornia_mvit.data.loading.loaders import ResumableLoader
from kornia_mvit.data.loading.samplers import EpochBatchSampler
from kornia_mvit.ops.seeds import combine_seed, multiscale_size, multiscale_sizes

CPU = torch.device("cpu")


def pipeline(**arguments):
    return AugmentationPipeline([K.RandomResizedCrop((24, 24)), K.RandomGaussianNoise(p=1.0)], **arguments).train()


def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class TestSeeds:
    @given(st.lists(st.integers(-(2**63), 2**63), max_size=5), st.lists(st.integers(-(2**63), 2**63), max_size=5))
    def test_combine_seed(self, a, b):
        assert 0 <= combine_seed(*a) < 2**63
        if a != b:
            assert combine_seed(*a) != combine_seed(*b)

    def test_seeds_of_neighbours_are_not_alike(self):
        """Half of the bits differ, whichever counter goes up by one."""
        seeds = [combine_seed(0, rank, epoch, step) for rank in range(4) for epoch in range(4) for step in range(64)]
        bits = torch.tensor([[s >> k & 1 for k in range(63)] for s in seeds], dtype=torch.float32)
        assert (bits.mean(0) - 0.5).abs().max() < 0.1
        assert ((bits[1:] != bits[:-1]).float().mean(0) - 0.5).abs().max() < 0.1

    def test_isolated_generators(self):
        before = torch.get_rng_state()
        with pytest.raises(KeyError), isolated_generators(CPU):
            seed_generators(3, CPU)
            torch.rand(9)
            raise KeyError
        assert torch.equal(torch.get_rng_state(), before)

    def test_multiscale_sizes(self):
        assert multiscale_sizes()[:2] == ((160, 160), (160, 192))
        assert len(multiscale_sizes()) == 25
        drawn = {multiscale_size(multiscale_sizes(), 0, 0, step) for step in range(400)}
        assert drawn == set(multiscale_sizes())
        for arguments in ({"low": 0}, {"low": 320, "high": 160}, {"count": 0}, {"multiple": 0}):
            with pytest.raises(ValueError, match="not an ascending range of sizes"):
                multiscale_sizes(**arguments)


class TestCounter:
    def test_each_draw_differs_and_a_new_run_repeats_them(self):
        first, second = pipeline(seed=3), pipeline(seed=3)
        one = [first(images()) for _ in range(3)]
        assert not torch.equal(one[0], one[1])
        for expected in one:
            torch.rand(7)
            assert torch.equal(second(images()), expected)
        assert not torch.equal(pipeline(seed=4)(images()), one[0])

    def test_epochs_have_streams_of_their_own(self):
        a = pipeline()
        first = a(images())
        a.set_epoch(1)
        other = a(images())
        a.set_epoch(0)
        assert torch.equal(a(images()), first)
        assert not torch.equal(first, other)
        a.set_epoch(0)
        assert not torch.equal(a(images()), first), "the same epoch goes on"

    def test_resumes_where_it_stopped(self):
        a, b = pipeline(seed=9), pipeline(seed=0)
        a.set_epoch(2)
        a(images())
        file = io.BytesIO()
        torch.save(a.state_dict(), file)
        file.seek(0)
        b.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(a(images()), b(images()))

    def test_ranks_differ(self, monkeypatch):
        def seed(rank):
            monkeypatch.setattr("kornia_mvit.augmentation.randomness.current_rank", lambda: rank)
            return SeedCounter(1).next()

        assert len({seed(rank) for rank in range(8)}) == 8

    def test_each_draw_of_a_loader_has_a_seed_of_its_own(self):
        """In each worker, sample and epoch, though each epoch starts the workers anew."""
        loader = DataLoader(Seeds(4), batch_size=None, num_workers=2)
        assert len({seed for _ in range(2) for seed in loader}) == 8

    def test_workers_repeat_an_epoch_that_was_told(self):
        """A run that is resumed with it goes on exactly, wherever PyTorch's generator is."""

        def run(epochs):
            samples, out = Seeds(4), []
            loader = DataLoader(samples, batch_size=None, num_workers=2)
            for epoch in epochs:
                samples.counter.set_epoch(epoch)
                out.append(list(loader))
            return out

        whole = run([0, 1])
        assert len({seed for epoch in whole for seed in epoch}) == 8
        assert run([1]) == whole[1:]

    def test_workers_that_start_anew_know_the_rank(self, monkeypatch):
        """They are in no group, and what they get is pickled where the rank is known."""

        def seed(rank):
            with monkeypatch.context() as patch:
                patch.setattr("kornia_mvit.augmentation.randomness.current_rank", lambda: rank)
                counter = pickle.loads(pickle.dumps(SeedCounter(1)))
            with monkeypatch.context() as patch:
                worker = SimpleNamespace(id=0, seed=5)
                patch.setattr("kornia_mvit.augmentation.randomness.get_worker_info", lambda: worker)
                return counter.next()

        assert len({seed(rank) for rank in range(3)}) == 3

    def test_batches_draw_by_their_place(self):
        """Whoever loads them; another rank, epoch or batch draws otherwise, and so does each draw of a batch."""

        def run(workers, epoch=0, rank=0, resume=0):
            sampler = EpochBatchSampler(range(6), 2, shuffle=False, num_replicas=2, rank=rank)
            loader = ResumableLoader(Seeds(6), sampler, num_workers=workers, collate_fn=list)
            loader.load_state_dict({"epoch": epoch, "consumed": resume})
            return [seed for batch in loader for seed in batch]

        whole = run(0)
        every = [*whole, *run(0, epoch=1), *run(0, rank=1)]
        assert len(set(every)) == len(every) == 9
        assert run(0, resume=1) == whole[2:]
        assert run(2) == whole
        assert run(2, resume=1) == whole[2:]

    def test_draws_outside_a_loader_go_by_the_counter(self):
        samples = Seeds(4)
        expected = [SeedCounter(0).next() for _ in range(1)]
        for _ in ResumableLoader(samples, EpochBatchSampler(range(4), 2), collate_fn=list):
            break
        assert [samples.counter.next()] == expected


class Seeds(Dataset):
    """Samples that are seeds which a counter gives."""

    def __init__(self, count):
        self.count, self.counter = count, SeedCounter(0)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.counter.next()


class TestArguments:
    def test_seed_decides_alone(self):
        a = pipeline()
        expected = a(images(), seed=7)
        a(images())
        torch.rand(3)
        assert torch.equal(a(images(), seed=7), expected)
        assert torch.equal(pipeline(seed=5)(images(), seed=7), expected)
        assert not torch.equal(a(images(), seed=8), expected)

    @pytest.mark.long
    def test_a_compiled_pipeline_draws_as_it_does_uncompiled(self):
        """And its draws are compiled for no seed, step or shape anew."""
        a, mix = pipeline(), AugmentationPipeline([K.RandomAffine(20.0), K.RandomResizedCrop((24, 24))], Mix(3)).train()
        compiled, mixing = (torch.compile(one, backend="aot_eager") for one in (a, mix))
        for seed in range(3):
            assert torch.equal(compiled(images(), seed=seed), a(images(), seed=seed))
            for out, expected in zip(
                mixing(images(), torch.arange(3), seed=seed), mix(images(), torch.arange(3), seed=seed), strict=True
            ):
                assert torch.equal(out, expected)
        a.set_epoch(1)
        expected = pipeline()
        expected.set_epoch(1)
        for _ in range(10):  # more than PyTorch would compile
            assert torch.equal(compiled(images()), expected(images()))

    def test_generator_moves_on_and_decides_alone(self):
        a, generator = pipeline(), torch.Generator().manual_seed(3)
        first, second = a(images(), generator=generator), a(images(), generator=generator)
        assert not torch.equal(first, second)
        assert torch.equal(a(images(), generator=generator.manual_seed(3)), first)
        with pytest.raises(ValueError, match="a seed or a generator, not both"):
            a(images(), seed=1, generator=generator)

    def test_seeded_draws_leave_the_counter_alone(self):
        a, b = pipeline(), pipeline()
        a(images(), seed=1)
        assert torch.equal(a(images()), b(images()))

    def test_labels_travel(self):
        out, label = pipeline()(images(), torch.arange(3), seed=1)
        assert torch.equal(out, pipeline()(images(), seed=1))
        assert torch.equal(label, torch.arange(3))


class TestReplay:
    def test_an_operation_that_draws_while_it_applies(self):
        """It is seeded again, so that its noise is the same."""

        class Late(K.IntensityAugmentationBase2D):
            def apply_transform(self, input, params, flags, transform=None):
                return input + torch.rand_like(input)

        a = AugmentationPipeline([Late(p=1.0), K.RandomHorizontalFlip(), Late(p=1.0)])
        out, params = a.augment(Batch(images()), seed=2)
        torch.rand(5)
        assert torch.equal(a.replay(Batch(images()), params).image, out.image)

    def test_mix(self):
        a = AugmentationPipeline([K.RandomHorizontalFlip()], mix=Mix(4))
        batch = Batch(images(), torch.tensor([0, 3, 2]))
        out, params = a.augment(batch, seed=2)
        again = a.replay(batch, params)
        assert torch.equal(again.image, out.image)
        assert torch.equal(again.label, out.label)
        assert out.label.shape == (3, 4)

    def test_multi_scale(self):
        a = pipeline(multi_scale=multiscale_sizes(32, 96, 3))
        sizes = set()
        for _ in range(12):
            out, params = a.augment(Batch(images()))
            sizes.add(tuple(out.image.shape[-2:]))
            assert torch.equal(a.replay(Batch(images()), params).image, out.image)
        assert len(sizes) > 2
        assert sizes <= set(multiscale_sizes(32, 96, 3))

    def test_exception(self):
        a = pipeline(preprocess=Preprocess(24))
        _, params = a.augment(Batch(images()))
        with pytest.raises(ValueError, match=r"\(3, 3, 32, 32\).*\(3, 3, 32, 40\)"):
            a.replay(Batch(torch.rand(3, 3, 32, 40)), params)
        other = AugmentationPipeline([K.RandomHorizontalFlip()])
        with pytest.raises(ValueError, match="RandomResizedCrop at 'RandomResizedCrop_0'"):
            other.replay(Batch(images()), params)
        with pytest.raises(ValueError, match="not of augment"):
            a.replay(Batch(images()), a.prepare(Batch(images()))[1])


class TestViews:
    def test_views_are_independent(self):
        a = pipeline()
        (one, params), (two, _) = a.views(Batch(images()), seed=1)
        assert not torch.equal(one.image, two.image)
        assert torch.equal(a.replay(Batch(images()), params).image, one.image)
        assert torch.equal(a.views(Batch(images()), 2, seed=1)[1][0].image, two.image)
        assert len(a.views(Batch(images()), 4)) == 4
        with pytest.raises(ValueError, match="n 0"):
            a.views(Batch(images()), 0)

    def test_views_augment_in_eval_mode_too(self):
        a = pipeline().eval()
        (one, _), (two, _) = a.views(Batch(images()))
        assert not torch.equal(one.image, two.image)
