"""Pipelines in threads: each batch comes out as in one thread, and the global generators stay where they are."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kornia_mvit import AugmentationPipeline, Batch, Mix, policies
from kornia_mvit.augmentation.locks import lock_of
from kornia_mvit.augmentation.operations import is_known
from kornia_mvit.augmentation.randomness import OwnGenerators, SeedCounter

THREADS = 8


@pytest.fixture
def switching():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def numbers():
    return torch.Generator().manual_seed(5)


def images():
    return torch.rand(3, 3, 24, 28, generator=numbers())


class Stateful(K.IntensityAugmentationBase2D):
    """Keeps what it draws, and draws again while it is applied."""

    def generate_parameters(self, batch_shape):
        self.kept = torch.rand(batch_shape[0], 1, 1, 1)
        return {}

    def apply_transform(self, input, params, flags, transform=None):
        self.late = torch.rand_like(input)
        return F.dropout(input * self.kept, 0.3) + self.late


def containers():
    steps = (K.RandomHorizontalFlip(), K.RandomAffine(10.0), K.RandomGaussianNoise())
    opaque = nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.1), nn.RReLU())
    return [K.ImageSequential(*steps, random_apply=2), K.ImageSequential(opaque)]


CASES = {
    "classification_train": lambda: AugmentationPipeline(policies.classification_train(16, jitter=0.3)),
    "classification_strong": lambda: AugmentationPipeline(policies.classification_strong(16, num_classes=4)),
    "segmentation_train": lambda: AugmentationPipeline(policies.segmentation_train(16, jitter=0.3, rotate=10.0)),
    "detection_train": lambda: AugmentationPipeline(policies.detection_train(16)),
    "containers": lambda: AugmentationPipeline(containers(), fuse=False),
    "another's": lambda: AugmentationPipeline([Stateful(p=1.0), K.RandomVerticalFlip()]),
}


def batch_for(name):
    if name == "segmentation_train":
        return Batch(images(), mask=torch.randint(0, 4, (3, 24, 28), generator=numbers()))
    if name == "detection_train":
        boxes = torch.tensor([[2.0, 3, 20, 22], [10, 8, 22, 20]]).expand(3, 2, 4).clone()
        return Batch(images(), boxes=boxes, box_label=torch.zeros(3, 2, dtype=torch.long))
    return Batch(images(), torch.arange(3))


def tensors(batch):
    found = (batch.image, batch.label, batch.boxes, batch.box_label, batch.mask)
    return [value for value in found if value is not None]


def count_differing(name, shared, count):
    """Augment batches in one thread, then in several, and count those that differ in either of two ways."""
    batch = batch_for(name)
    alone = [tensors(CASES[name]().augment(batch, seed=seed)[0]) for seed in range(count)]
    pipelines = [CASES[name]()] * THREADS if shared else [CASES[name]() for _ in range(THREADS)]

    def run(thread):
        differing = 0
        for seed in range(thread, count, THREADS):
            out, params = pipelines[thread].augment(batch, seed=seed)
            same = all(map(torch.equal, tensors(out), alone[seed]))
            again = pipelines[thread].replay(batch, params) if name != "another's" else out
            differing += not (same and all(map(torch.equal, tensors(again), alone[seed])))
        return differing

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(run, range(THREADS)))


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("shared", [False, True], ids=["own", "common"])
class TestThreads:
    @pytest.mark.parametrize("name", CASES)
    def test_as_in_one_thread(self, name, shared):
        before = torch.get_rng_state()
        assert count_differing(name, shared, 16) == 0
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.long
    @pytest.mark.parametrize(("name", "count"), [("classification_strong", 250), ("detection_train", 100)])
    def test_many_batches(self, name, count, shared):
        before = torch.get_rng_state()
        assert count_differing(name, shared, count) == 0
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_thread_that_samples_meanwhile(self, shared):
        """It gets what the global generator gives, as if nobody else were there."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            expected = torch.cat([torch.rand(1) for _ in range(2000)])
            torch.manual_seed(3)
            with ThreadPoolExecutor(1) as pool:
                drawn = pool.submit(lambda: torch.cat([torch.rand(1) for _ in range(2000)]))
                differing = count_differing("classification_strong", shared, 16)
                assert torch.equal(drawn.result(), expected)
            assert differing == 0

    def test_no_step_twice(self, shared):
        """Eight counters of one seed give the same seeds; one that is shared gives none of them twice."""
        counters = [SeedCounter(1)] * THREADS if shared else [SeedCounter(1) for _ in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            given = list(pool.map(lambda counter: [counter.next() for _ in range(200)], counters))
        alone = SeedCounter(1)
        expected = [alone.next() for _ in range(200 * THREADS if shared else 200)]
        assert sorted(seed for seeds in given for seed in seeds) == sorted(expected * (1 if shared else THREADS))


class TestOwnGenerators:
    @pytest.mark.parametrize(
        "function",
        [
            lambda: torch.rand(5),
            lambda: torch.randn(5, dtype=torch.float64),
            lambda: torch.randint(3, 9, (40,)),
            lambda: torch.randint(9, (40,)),
            lambda: torch.randperm(40),
            lambda: torch.rand_like(torch.ones(5)),
            lambda: torch.randint_like(torch.ones(40), 9),
            lambda: torch.normal(0.0, 1.0, (5,)),
            lambda: torch.bernoulli(torch.full((40,), 0.5)),
            lambda: torch.multinomial(torch.ones(9), 5),
            lambda: torch.poisson(torch.full((9,), 5.0)),
            lambda: torch.empty(5).uniform_().add(torch.empty(5).exponential_()),
            lambda: torch.distributions.Beta(0.4, 0.4).sample((9,)),
            lambda: torch.distributions.Gamma(0.4, 0.4).sample((9,)),
            lambda: F.dropout(torch.ones(40)),
            lambda: F.alpha_dropout(torch.ones(40), 0.5, training=True),
            lambda: F.rrelu(-torch.ones(40), training=True),
            lambda: F.scaled_dot_product_attention(*torch.ones(3, 1, 2, 4, 4), dropout_p=0.5),
            lambda: torch.native_dropout(torch.ones(40), 0.5, True)[0],  # takes no generator
        ],
    )
    def test_as_the_global_generator_after_a_seed(self, function):
        own, before = OwnGenerators(), torch.get_rng_state()
        own.seed(7)
        first, second = own.sample(function), own.sample(function)
        own.seed(7)
        plainly = own.sample_plainly(function)
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            assert torch.equal(first, function())
            assert torch.equal(second, function())
        assert torch.equal(plainly, first)
        assert not torch.equal(second, first)

    def test_a_generator_of_the_caller(self):
        own, expected = OwnGenerators(), torch.rand(5, generator=numbers())
        assert torch.equal(own.sample(torch.rand, 5, generator=numbers()), expected)
        assert torch.equal(own.sample_plainly(torch.rand, 5, generator=numbers()), expected)

    def test_exception(self):
        own, before = OwnGenerators(), torch.get_rng_state()
        with pytest.raises(RuntimeError, match="p=2"):
            own.sample(torch.native_dropout, torch.ones(3), -1.0, True)
        with pytest.raises(RuntimeError, match="-5"):
            own.sample_plainly(torch.rand, -5)
        assert torch.equal(torch.get_rng_state(), before)
        after = torch.rand(3)
        torch.set_rng_state(before)
        assert torch.equal(torch.rand(3), after), "the mode has ended"


KORNIAS = {
    K.CenterCrop: ((16, 16),), K.Denormalize: (torch.zeros(3), torch.ones(3)), K.LongestMaxSize: (20,),
    K.Normalize: (torch.zeros(3), torch.ones(3)), K.PadTo: ((32, 32),), K.RandomAffine: (20.0,),
    K.RandomCrop: ((16, 16),), K.RandomGaussianBlur: ((3, 3), (0.1, 2.0)), K.RandomMedianBlur: ((3, 3),),
    K.RandomFisheye: (torch.tensor([-0.3, 0.3]), torch.tensor([-0.3, 0.3]), torch.tensor([0.9, 1.0])),
    K.RandomMotionBlur: (3, 35.0, 0.5), K.RandomResizedCrop: ((16, 16),), K.RandomRotation: (20.0,),
    K.RandomRotation90: ((0, 3),), K.RandomShear: (10.0,), K.Resize: ((20, 20),), K.SmallestMaxSize: (20,),
    K.RandomSnow: ((0.3, 0.7), (1.0, 1.5)),
}  # fmt: skip
BASES = (K.AugmentationBase2D, K.GeometricAugmentationBase2D, K.IntensityAugmentationBase2D)


def kornias_own():
    """List Kornia's augmentations of images, but for the one that downloads a network."""
    found = {value for value in vars(K).values() if isinstance(value, type) and issubclass(value, BASES[0])}
    return sorted(found - {*BASES, K.RigidAffineAugmentationBase2D, K.RandomDissolving}, key=lambda cls: cls.__name__)


class TestKornia:
    @pytest.mark.parametrize("cls", kornias_own(), ids=lambda cls: cls.__name__)
    def test_the_global_generator_stays(self, cls):
        """Also while it is applied, where nothing of Kornia's is watched: a new release may sample there."""
        module = cls(*KORNIAS.get(cls, ()))
        assert is_known(module)
        pipeline, batch = AugmentationPipeline([module]), Batch(images())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            before = torch.get_rng_state()
            out = [pipeline.augment(batch, seed=seed)[0].image for seed in range(4)]
            assert torch.equal(torch.get_rng_state(), before)
            torch.manual_seed(2)
            for seed, expected in enumerate(out):
                assert torch.equal(pipeline.augment(batch, seed=seed)[0].image, expected)

    def test_others_are_not_known(self):
        hooked = K.RandomHorizontalFlip()
        hooked.register_forward_hook(lambda module, given, out: out)
        assert not is_known(hooked)
        assert not is_known(Stateful())
        assert not is_known(nn.Dropout())
        assert is_known(Mix(3))

    def test_a_hook_that_samples(self):
        module, before = K.RandomHorizontalFlip(), torch.get_rng_state()
        module.register_forward_hook(lambda module, given, out: out + torch.rand(3, 1, 1))
        pipeline = AugmentationPipeline([module], fuse=False)
        out, params = pipeline.augment(Batch(images()), seed=1)
        assert torch.equal(pipeline.replay(Batch(images()), params).image, out.image)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_finds_locks_open():
    """A loader's workers are forked while another thread may be augmenting."""
    module, held, done = nn.Dropout(), threading.Event(), threading.Event()

    def hold():
        with lock_of(module):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    if (child := os.fork()) == 0:
        os._exit(0 if lock_of(module).acquire(timeout=10) else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
