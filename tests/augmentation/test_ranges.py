"""LearnedRanges, and their part in a pipeline."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from kornia_mvit import AugmentationPipeline, Batch, LearnedRanges, Mix, Preprocess, policies
from kornia_mvit.augmentation.adjustments import NEUTRAL, adjust
from kornia_mvit.ops.seeds import combine_seed
from tests.augmentation.scenes import scene
from tests.tester import BaseTester, GraphCounter, raises_at_workers

SEEDS = st.integers(0, 2**20)
EVERY = tuple(NEUTRAL)
SMOOTH = tuple(name for name in EVERY if name != "blur")  # its lower end is where a blur changes nothing


def photos(count=32, side=32):
    """Images with edges, gradients and dark and bright areas."""
    own = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 4, 4, generator=own)
    image = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (image * torch.rand(count, 1, 1, 1, generator=own).add(0.3)).clamp(0, 1)


def render(image, drawn, ends, operations):
    """Apply brightness, contrast and noise as cvnets' formulas say, in NumPy and float64."""
    image, place = image.double().numpy().copy(), {name: i for i, name in enumerate(operations)}
    own = torch.Generator().manual_seed(combine_seed(drawn["seed"], 1))
    for name in drawn["order"]:
        rows, shares = (drawn[key][place[name]].numpy() for key in ("rows", "shares"))
        low, high = ends[place[name]]
        noise = torch.randn(len(rows), *image.shape[1:], generator=own, dtype=torch.float64) if name == "noise" else ()
        for number, (row, share) in enumerate(zip(rows, shares.astype(np.float64), strict=True)):
            m, x = low + share * (high - low), image[row]
            if name == "brightness":
                image[row] = m * x
            elif name == "contrast":
                image[row] = (1 - m) * x.mean((1, 2), keepdims=True) + m * x
            else:
                image[row] = x + m * noise[number].numpy()
    return np.clip(image, 0, 1)


class TestLearnedRanges(BaseTester):
    def test_smoke(self, device, dtype):
        ranges = LearnedRanges(EVERY, target_psnr=20).to(device)
        image = torch.rand(4, 3, 16, 16, device=device).to(dtype)
        drawn = ranges.sample(4, 0)
        out = ranges(image, drawn)
        assert out.dtype == dtype
        assert out.device.type == device.type
        assert 0 <= float(out.detach().min()) <= float(out.detach().max()) <= 1
        ranges.loss(out, image, drawn).backward()
        assert bool(ranges.raw_high.grad.isfinite().all())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"preset": "google"}, r"unknown preset 'google'; available: 'default', 'apple'"),
            ({"operations": ["shadow"]}, "no operation 'shadow'; available: brightness"),
            ({"operations": ["hue"], "preset": "apple"}, "preset 'apple' has no operation 'hue'"),
            ({"operations": []}, "are none, or have one twice"),
            ({"operations": ["hue", "hue"]}, "name each once"),
            ({"target_psnr": 60}, r"target_psnr 60 is not a number in \(0, 60\)"),
            ({"target_psnr": [40, 30, 20]}, "or a pair of such"),
            ({"target_psnr": "20"}, "target_psnr 20 is not a number"),
            ({"target_psnr": math.nan}, "target_psnr nan"),
            ({"target_ssim": 1.0}, r"target_ssim 1.0 is not a number in \(0, 1\)"),
            ({"target_ssim": 0.8, "target_psnr": 20}, "in the place of target_psnr"),
            ({"target_ssim": 0.8, "preset": "apple"}, "not with preset='apple'"),
            ({"schedule": "steps"}, "unknown schedule 'steps'; available: 'cosine', 'linear'"),
            ({"learning_rate": 0}, "learning_rate 0 or weight 1.0 is not positive"),
            ({"start": {"noise": [0.0, 0.1]}}, "end 0.0 of noise is not between 0 and 0.001"),
            ({"start": {"noise": [0.1]}}, "give its lower and its upper end"),
            ({"start": {"hue": [-0.1, 0.1]}}, "hue is not learned; these are: brightness, contrast, noise"),
        ],
    )
    def test_exception_of_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            LearnedRanges(**arguments)

    def test_exception(self):
        ranges = LearnedRanges(["hue", "saturation"])
        with pytest.raises(ValueError, match="hue and saturation take images of 3 channels, got 1"):
            ranges(torch.rand(2, 1, 8, 8), ranges.sample(2, 0))
        with pytest.raises(TypeError, match=r"got torch\.uint8; divide by 255"):
            ranges(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ranges.sample(2, 0))
        for step, total in ((-1, 5), (0, 0)):
            with pytest.raises(ValueError, match=f"step {step} is negative, or total {total} not at least 1"):
                ranges.set_step(step, total)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_cardinality(self, channels):
        ranges = LearnedRanges(["brightness", "contrast", "gamma", "sharpness", "blur", "noise"])
        for shape in ((1, channels, 1, 1), (5, channels, 7, 3)):
            drawn = ranges.sample(shape[0], 1)
            out = ranges(torch.rand(shape), drawn)
            assert out.shape == shape
            assert ranges.similarity(out, torch.rand(shape)).shape == shape[:1]
        assert drawn["rows"].shape == drawn["shares"].shape == (6, 2)

    def test_feature(self):
        """Start and bounds of cvnets at 7771756, as its code gives them."""
        found = LearnedRanges(preset="apple").values()
        for name, low, high in (
            ("brightness", 0.59797, 8.37641),
            ("contrast", 0.59797, 8.37641),
            ("noise", 2.5e-5, 0.52503),
        ):
            assert found[name] == pytest.approx((low, high), abs=5e-6)

    def test_feature_of_the_loss(self):
        """The loss that cvnets at 7771756 gives for these mean squared errors of eight images, at 40 dB."""
        errors = torch.tensor([0, 5278.9229, 5654.6118, 1114.2299, 18578.9883, 6455.9272, 9467.3516, 2251.0684])
        image = torch.zeros(8, 3, 4, 4, dtype=torch.float64)
        augmented = image + (errors.double().sqrt() / 255).view(-1, 1, 1, 1)
        ranges = LearnedRanges(preset="apple", target_psnr=40)
        loss = ranges.loss(augmented, image, ranges.sample(8, 0))
        assert float(loss.detach()) == pytest.approx(9.37295, abs=5e-6)

    @pytest.mark.parametrize(("psnr", "mse"), [(40, 6.5025), (30, 65.025), (20, 650.25), (10, 6502.5), (5, 20562.71)])
    def test_feature_of_targets(self, psnr, mse):
        """Images of which each has cvnets' target error have no loss."""
        image = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
        augmented = image + math.sqrt(mse) / 255
        ranges = LearnedRanges(preset="apple", target_psnr=psnr)
        assert float(ranges.loss(augmented, image, ranges.sample(2, 0))) == pytest.approx(0, abs=1e-7)
        assert LearnedRanges(target_psnr=psnr).similarity(augmented, image)[0] == pytest.approx(psnr, abs=0.05)

    def test_feature_of_the_curriculum(self):
        """Cvnets' table for 40 to 20 dB in 300 epochs, and half a cosine in dB beside it."""
        apple, own = (LearnedRanges(preset=preset, target_psnr=(40, 20)) for preset in ("apple", "default"))
        places = (0, 1, 10, 50, 100, 150, 200, 300, 400)
        known = (40.0, 39.988, 38.964, 31.198, 25.917, 22.989, 21.252, 20.0, 20.0)
        assert [apple.target_at(i, 300) for i in places] == pytest.approx(known, abs=5e-4)
        assert [own.target_at(i, 300) for i in (0, 100, 150, 200, 300, 400)] == pytest.approx([40, 35, 30, 25, 20, 20])
        linear = LearnedRanges(target_psnr=(40, 20), schedule="linear")
        assert [linear.target_at(i, 4) for i in (0, 1, 4)] == [40, 35, 20]
        linear.set_step(1, 4)
        assert linear.target == 35

    @given(seed=SEEDS, count=st.integers(1, 6))
    def test_equals_a_plain_rendering(self, seed, count):
        ranges = LearnedRanges(preset="apple").double()
        image, drawn = torch.rand(count, 3, 6, 5, dtype=torch.float64), ranges.sample(count, seed)
        expected = render(image, drawn, ranges.ends().tolist(), ranges.operations)
        self.assert_close(ranges(image, drawn).detach(), torch.from_numpy(expected))

    @given(seed=SEEDS, count=st.integers(1, 9))
    def test_half_of_the_images_get_each_operation(self, seed, count):
        drawn = LearnedRanges(EVERY).sample(count, seed)
        assert sorted(drawn["order"]) == sorted(EVERY)
        for rows in drawn["rows"]:
            assert len(set(rows.tolist())) == len(rows) == max(1, count // 2)
        assert 0 <= float(drawn["shares"].min()) <= float(drawn["shares"].max()) < 1
        changed = LearnedRanges.changed(drawn, count)
        assert changed.nonzero().flatten().tolist() == sorted(set(drawn["rows"].flatten().tolist()))

    @pytest.mark.parametrize("name", EVERY)
    def test_neutral_magnitudes_change_nothing(self, name):
        image = torch.rand(3, 3, 9, 7)
        chosen = {name: torch.tensor([2, 0])}
        out = adjust(image, [name], {name: torch.full((2,), NEUTRAL[name])}, chosen, 0)
        self.assert_close(out, image, atol=1e-6)
        changed = adjust(image, [name], {name: torch.full((2,), NEUTRAL[name] + 0.4)}, chosen, 0)
        assert torch.equal(changed[1], image[1])
        assert float((changed - image).flatten(1).abs().amax(1)[[0, 2]].min()) > 0.02

    def test_operations_do_what_their_names_say(self):
        image = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).expand(1, 3, 5, 5).clone()
        image[..., 2, 2] = 0.1

        def one(name, magnitude):
            return adjust(image, [name], {name: torch.tensor([magnitude])}, {name: torch.tensor([0])}, 0)[0]

        self.assert_close(one("brightness", 0.5), image[0] * 0.5)
        grey = one("saturation", 0.0)
        self.assert_close(grey[0], grey[2])
        self.assert_close(grey[0, 0, 0], torch.tensor(0.8 * 0.299 + 0.4 * 0.587 + 0.2 * 0.114))
        self.assert_close(one("gamma", 2.0), image[0] ** 2)
        assert float(one("sharpness", 2.0)[0, 2, 2]) < 0.1 < float(one("sharpness", 0.5)[0, 2, 2])
        assert float(one("blur", 1.0)[0, 2, 2]) > 0.4
        assert float(one("contrast", 0.0).std((1, 2)).max()) < 1e-6
        turned = one("hue", 1 / 3)[:, 0, 0]
        assert int(turned.argmax()) != 0

    @given(seed=SEEDS)
    def test_order_counts_and_is_kept(self, seed):
        """Operations between which nothing is clamped are put together, and still act in their order."""
        image = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.3 + 0.3
        names = ["saturation", "contrast", "hue", "brightness"]
        magnitudes = {"saturation": 1.3, "contrast": 0.8, "hue": 0.05, "brightness": 1.1}
        own = {name: torch.full((2,), value, dtype=torch.float64) for name, value in magnitudes.items()}
        rows = dict.fromkeys(names, torch.tensor([0, 1]))
        whole = adjust(image, names, own, rows, 0)
        single = image
        for name in names:
            single = adjust(single, [name], own, rows, 0)
        self.assert_close(whole, single)

    @pytest.mark.parametrize("arguments", [{}, {"target_ssim": 0.8}, {"preset": "apple"}])
    def test_gradcheck(self, arguments):
        """Of the loss by each end."""
        operations = ("brightness", "contrast", "noise") if "preset" in arguments else SMOOTH
        start = {} if "preset" in arguments else {"noise": (5e-4, 0.05), "gamma": (0.8, 1.3)}
        ranges = LearnedRanges(operations, start=start, **arguments).double()
        image = photos(6, 12).double() * 0.5 + 0.2
        drawn = ranges.sample(6, 3)

        def loss(low, high):
            ends = torch.stack([low, high], 1)
            return ranges.loss(ranges(image, drawn, ends), image, drawn)

        ends = ranges.ends().detach()
        assert torch.autograd.gradcheck(loss, [end.clone().requires_grad_() for end in ends.unbind(1)], eps=1e-7)

        def by_raw(low, high):
            found = torch.func.functional_call(ranges, {"raw_low": low, "raw_high": high}, (image, drawn))
            return ranges.loss(found, image, drawn)

        raw = [one.detach().clone().requires_grad_() for one in (ranges.raw_low, ranges.raw_high)]
        assert torch.autograd.gradcheck(by_raw, raw)

    def test_gradcheck_of_blur(self):
        ranges = LearnedRanges(["blur"], start={"blur": (0.25, 1.2)}).double()
        image, drawn = photos(4, 16).double(), ranges.sample(4, 1)

        def loss(ends):
            return ranges.loss(ranges(image, drawn, ends), image, drawn)

        assert torch.autograd.gradcheck(loss, ranges.ends().detach().requires_grad_())

    @pytest.mark.long
    def test_dynamo(self):
        ranges, counter = LearnedRanges(EVERY), GraphCounter()
        image, drawn = torch.rand(4, 3, 8, 8), ranges.sample(4, 0)
        drawn["order"] = [name for name in drawn["order"] if name != "noise"]  # its generator is no part of a graph
        compiled = torch.compile(ranges, backend=counter)
        self.assert_close(compiled(image, drawn).detach(), ranges(image, drawn).detach())
        assert counter.count >= 1

    @pytest.mark.parametrize(
        ("name", "target"),
        [
            pytest.param(name, target, marks=[] if (name, target) == ("strong", 20.0) else pytest.mark.long)
            for name in ("weak", "strong", "lopsided")
            for target in (20.0, 30.0)
        ],
    )
    def test_ends_reach_the_target(self, name, target):
        start = {
            "weak": {},
            "strong": {"brightness": (0.4, 3.0), "contrast": (0.4, 3.0), "noise": (1e-4, 0.3)},
            "lopsided": {"brightness": (0.99, 2.0), "contrast": (0.3, 1.02), "noise": (5e-4, 0.002)},
        }[name]
        ranges, image = LearnedRanges(target_psnr=target, start=start), photos(64, 16)
        optimiser = torch.optim.Adam(ranges.parameters(), ranges.learning_rate)
        for step in range(300):
            part, drawn = image[step % 2 :: 2], ranges.sample(32, step)
            optimiser.zero_grad()
            ranges.loss(ranges(part, drawn), part, drawn).backward()
            optimiser.step()
        with torch.no_grad():
            drawn = [ranges.sample(64, 1000 + n) for n in range(40)]
            found = sum(float(ranges.compare(ranges(image, one), image, one)[1]) for one in drawn) / 40
        assert found == pytest.approx(target, abs=0.5)
        for operation, (low, high) in ranges.values().items():
            assert NEUTRAL[operation] - low >= -1e-3
            assert high >= NEUTRAL[operation]

    @pytest.mark.long
    def test_ends_reach_a_target_of_ssim(self):
        ranges, image = LearnedRanges(["contrast", "blur", "noise"], target_ssim=0.8), photos(32, 16)
        optimiser = torch.optim.Adam(ranges.parameters(), ranges.learning_rate)
        for step in range(200):
            drawn = ranges.sample(32, step)
            optimiser.zero_grad()
            ranges.loss(ranges(image, drawn), image, drawn).backward()
            optimiser.step()
        with torch.no_grad():
            drawn = [ranges.sample(32, 1000 + n) for n in range(20)]
            found = sum(float(ranges.compare(ranges(image, one), image, one)[1]) for one in drawn) / 20
        assert found == pytest.approx(0.8, abs=0.05)

    def test_state(self):
        ranges = LearnedRanges(target_psnr=(40, 20))
        ranges.set_ends({"noise": (5e-4, 0.3)})
        ranges.set_step(3, 7)
        file = io.BytesIO()
        torch.save(ranges.state_dict(), file)
        file.seek(0)
        other = LearnedRanges(target_psnr=(40, 20))
        other.load_state_dict(torch.load(file, weights_only=True))
        assert other.values() == ranges.values()
        assert other.values()["noise"] == pytest.approx((5e-4, 0.3), rel=1e-5)
        assert other.target == ranges.target < 40

    def test_repr(self):
        assert "brightness 0.97 to 1.03" in repr(LearnedRanges(target_psnr=(40, 20)))
        assert "target=40 to 20 dB" in repr(LearnedRanges(target_psnr=(40, 20)))
        assert "target=0.8 SSIM" in repr(LearnedRanges(target_ssim=0.8))


def learning(**arguments):
    policy = policies.classification_learned(24, **({"target_psnr": 20} | arguments))
    return AugmentationPipeline(policy, preprocess=Preprocess(24, crop=24, mean=(0.4,) * 3, std=(0.5,) * 3)).train()


def plain(pipeline):
    """The same pipeline without its ranges."""
    out = copy.deepcopy(pipeline)
    out.ranges = None
    return out


class TestPipeline:
    @given(seed=SEEDS)
    def test_targets_are_those_without_ranges(self, seed):
        batch = scene(seed)
        for kind in (policies.segmentation_learned, policies.detection_learned):
            pipeline = AugmentationPipeline(kind(32, target_psnr=20)).train()
            out, other = (one.augment(batch, seed=seed)[0] for one in (pipeline, plain(pipeline)))
            for name in ("mask", "boxes", "box_label", "keypoints", "keypoint_visible"):
                assert torch.equal(getattr(out, name), getattr(other, name))
            assert not torch.equal(out.image, other.image)

    @given(seed=SEEDS, dtype=st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64]))
    def test_replay_is_equal_to_the_bit(self, seed, dtype):
        pipeline = learning(operations=list(EVERY))
        image = torch.randint(0, 256, (4, 3, 30, 28), dtype=torch.uint8)
        batch = Batch(image if dtype == torch.uint8 else (image / 255).to(dtype))
        out, params = pipeline.augment(batch, seed=seed)
        file = io.BytesIO()
        torch.save(params, file)
        file.seek(0)
        params = torch.load(file, weights_only=True)
        pipeline.ranges.set_ends({"noise": (5e-4, 0.5), "hue": (-0.3, 0.4)})  # training has moved on
        again = pipeline.replay(batch, params)
        assert torch.equal(out.image, again.image)
        assert out.image.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        assert torch.equal(params["ranges"]["ends"], LearnedRanges(EVERY, target_psnr=20).ends())
        assert not torch.equal(pipeline.augment(batch, seed=seed)[0].image, out.image)

    def test_the_loss_is_that_of_the_augmented_images(self):
        pipeline, batch = learning(), Batch(photos(8))
        out, params, found = pipeline.augment_with_loss(batch, seed=3)
        original = plain(pipeline).replay(batch, {**params, "ranges": None})
        assert torch.equal(out.image, pipeline.augment(batch, seed=3)[0].image)
        undo = pipeline.preprocess.module().undo_values
        ranges = pipeline.ranges
        expected = ranges.loss(undo(out.image), undo(original.image), params["ranges"])
        torch.testing.assert_close(found.loss, expected, rtol=1e-4, atol=1e-4)
        found.loss.backward()
        given = [one.grad.clone() for one in ranges.parameters()]
        ranges.zero_grad()
        again = pipeline.range_loss(batch, params)
        assert torch.equal(again, found.loss)
        again.backward()
        assert all(torch.equal(one, parameter.grad) for one, parameter in zip(given, ranges.parameters(), strict=True))

    def test_range_loss_takes_the_present_ends(self):
        pipeline, batch = learning(), Batch(photos(8))
        _, params = pipeline.augment(batch, seed=3)
        before = pipeline.range_loss(batch, params)
        pipeline.ranges.set_ends({"brightness": (0.3, 3.0)})
        assert not torch.equal(pipeline.range_loss(batch, params), before)

    def test_gradients_of_the_task(self):
        batch = Batch(photos(8))
        assert not learning()(batch).image.requires_grad
        pipeline = learning(task_gradients=True)
        image = pipeline(batch).image
        image.square().sum().backward()
        assert float(pipeline.ranges.raw_high.grad.abs().min()) > 0
        with torch.no_grad():
            assert not pipeline(batch).image.requires_grad
        assert not pipeline.eval().augment(batch)[0].image.requires_grad
        assert learning(preset="apple")(batch).image.requires_grad

    def test_evaluation_is_as_without_ranges(self):
        pipeline, image = learning().eval(), torch.rand(2, 3, 40, 30)
        assert torch.equal(pipeline(image), plain(pipeline).eval()(image))
        assert not pipeline(image).requires_grad

    def test_after_a_mix(self):
        pipeline = AugmentationPipeline(mix=Mix(3), ranges=LearnedRanges(target_psnr=20)).train()
        batch = Batch(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
        out, params = pipeline.augment(batch, seed=1)
        assert torch.equal(pipeline.replay(batch, params).image, out.image)
        mixed = plain(pipeline).augment(batch, seed=1)[0]
        assert torch.equal(mixed.label, out.label)
        changed = LearnedRanges.changed(params["ranges"], 4)
        assert ((mixed.image - out.image).flatten(1).abs().amax(1) > 0).tolist() == changed.tolist()

    def test_no_images(self):
        pipeline = learning()
        out, params, found = pipeline.augment_with_loss(Batch(torch.rand(0, 3, 30, 28)))
        assert out.image.shape == (0, 3, 24, 24)
        found.loss.backward()
        assert float(found.loss.detach()) == float(pipeline.ranges.raw_high.grad.abs().max()) == 0
        assert pipeline.replay(Batch(torch.rand(0, 3, 30, 28)), params).image.shape == (0, 3, 24, 24)

    def test_what_is_put_in_stays(self):
        image = photos(4)
        kept = image.clone()
        AugmentationPipeline(ranges=LearnedRanges(target_psnr=10)).train()(Batch(image)).image.zero_()
        assert torch.equal(image, kept)

    def test_half_precision_and_autocast(self):
        pipeline, batch = learning(task_gradients=True), Batch(photos(4).half())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, _, found = pipeline.augment_with_loss(batch)
        assert out.image.dtype == torch.float16
        assert found.loss.dtype == torch.float32
        out.image.float().sum().backward()
        assert pipeline.ranges.raw_low.grad is not None

    def test_state(self):
        pipeline, other = learning(), learning()
        pipeline.ranges.set_ends({"noise": (5e-4, 0.3)})
        other.load_state_dict(pipeline.state_dict())
        assert other.ranges.values() == pipeline.ranges.values()
        assert [name for name, _ in other.named_parameters()] == ["ranges.raw_low", "ranges.raw_high"]

    def test_exception(self):
        batch = Batch(torch.rand(2, 3, 30, 28))
        without = AugmentationPipeline()
        _, params = learning().augment(batch)
        for run in (lambda: without.augment_with_loss(batch), lambda: without.range_loss(batch, params)):
            with pytest.raises(ValueError, match=r"no learned ranges; build it with ranges=LearnedRanges"):
                run()
        with pytest.raises(ValueError, match="of another pipeline: one of the two has learned ranges"):
            without.replay(batch, params)
        with pytest.raises(ValueError, match="of another pipeline"):
            learning().replay(batch, without.augment(batch)[1])
        with pytest.raises(TypeError, match=r"ranges are kornia_mvit.LearnedRanges, got dict"):
            AugmentationPipeline(ranges={})

    def test_exception_in_a_process_that_loads_data(self):
        pipeline = learning()

        def load():
            data = TensorDataset(photos(4))
            return next(iter(DataLoader(data, 2, num_workers=1, collate_fn=lambda rows: _augment(pipeline, rows))))

        with raises_at_workers(ValueError, match=r"learn in the process that trains.* ranges.requires_grad_\(False\)"):
            load()
        pipeline.ranges.requires_grad_(False)
        assert load().shape == (2, 3, 24, 24)


def _augment(pipeline, rows):
    return pipeline(torch.stack([image for (image,) in rows]))
