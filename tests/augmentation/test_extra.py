"""Further images, maps and fields of vectors go through a pipeline in step with the image."""

import pickle

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import (
    AugmentationPipeline,
    Batch,
    CopyPaste,
    CutMix,
    Extra,
    LearnedRanges,
    Mix,
    MixUp,
    Mosaic,
    Preprocess,
)
from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.ops.geometry import invert, transform_points
from tests.augmentation.scenes import IGNORE, STACKS, scene

SIZE = (41, 49)
NOISE = [K.RandomGaussianNoise(std=0.2, p=1.0), K.RandomSaltAndPepperNoise(p=1.0), K.RandomErasing(p=1.0)]


def with_twins(batch):
    """Add the image, its mask as values, and channels of the image as values, under other names."""
    return batch.replace(
        extra={
            "twin": Extra(batch.image, kind="image"),
            "classes": Extra(batch.mask[:, None], kind="values", fill=IGNORE),
            "copy": Extra(batch.image, kind="values"),
        }
    )


def pixel_centres(size):
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in size), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)[None]


def flow_of(matrix, size):
    """The flow (B, 2, H, W) of what moves by matrices (B, 3, 3)."""
    points = pixel_centres(size).expand(len(matrix), -1, -1)
    moved = transform_points(matrix, points) - points
    return moved.mT.reshape(len(matrix), 2, *size)


def small_motion(generator, count):
    motion = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    motion[:, :2, :2] += 0.2 * torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) - 0.1
    motion[:, :2, 2] = 6 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 3
    return motion


class Bent(K.RandomElasticTransform):
    """One of which it is not known where it moves pixels."""


class TestCarried:
    @pytest.mark.parametrize("name", STACKS)
    @pytest.mark.parametrize("padded", [False, True])
    def test_a_twin_stays_one(self, name, padded):
        """What is the image stays the image, and what is the mask the mask, to the bit."""
        batch = with_twins(scene(3, height=47, width=61, padded=padded))
        pipeline = AugmentationPipeline(
            STACKS[name](), preprocess=Preprocess((33, 41), mean=(0.4,) * 3, std=(0.2,) * 3)
        )
        out, params = pipeline.augment(batch, seed=5)
        assert torch.equal(out.extra["twin"].tensor, out.image)
        assert torch.equal(out.extra["classes"].tensor[:, 0], out.mask)
        again = pipeline.replay(batch, params)
        assert all(torch.equal(again.extra[key].tensor, one.tensor) for key, one in out.extra.items())
        assert torch.equal(out.image, pipeline.augment(batch.replace(extra=None), seed=5)[0].image)

    @pytest.mark.parametrize("letterbox", [False, True])
    @pytest.mark.parametrize("padded", [False, True])
    def test_a_twin_stays_one_in_eval_mode(self, letterbox, padded):
        batch = with_twins(scene(3, height=47, width=61, padded=padded))
        pipeline = AugmentationPipeline(preprocess=Preprocess((33, 41), letterbox=letterbox)).eval()
        out = pipeline(batch)
        assert torch.equal(out.extra["twin"].tensor, out.image)
        assert torch.equal(out.extra["classes"].tensor[:, 0], out.mask)

    @pytest.mark.parametrize("operation", NOISE, ids=lambda one: type(one).__name__)
    def test_noise_is_the_same_in_images_and_none_in_values(self, operation):
        batch = with_twins(scene(4))
        out, _ = AugmentationPipeline([operation]).augment(batch, seed=1)
        assert torch.equal(out.extra["twin"].tensor, out.image)
        assert not torch.equal(out.image, batch.image)
        assert torch.equal(out.extra["copy"].tensor, batch.image)

    def test_values_are_read_as_images_are(self):
        batch = with_twins(scene(5))
        stack = [K.RandomAffine(30.0, scale=(0.7, 1.3), p=1.0), K.RandomPerspective(0.4, p=1.0)]
        out, _ = AugmentationPipeline(stack).augment(batch, seed=1)
        torch.testing.assert_close(out.extra["copy"].tensor, out.image)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.float16, torch.float64])
    def test_values_keep_their_dtype_and_are_filled(self, dtype):
        values = torch.ones(2, 4, 29, 37).to(dtype)
        fill = 0.0 if dtype == torch.bool else 7.0
        batch = Batch(torch.rand(2, 3, 29, 37), extra={"own": Extra(values, kind="values", fill=fill)})
        found = AugmentationPipeline([K.PadTo((40, 50))])(batch).extra["own"].tensor
        assert found.dtype == dtype
        assert bool((found[..., :29, :37] == 1).all()) and bool((found[..., 29:, :].float() == fill).all())

    def test_unknown_values_stay_unknown_and_spread_no_further(self):
        depth = torch.ones(1, 1, 11, 11)
        depth[0, 0, 4, 5] = float("nan")
        extra = {"depth": Extra(depth, kind="values", mode="nearest", fill=float("nan"))}
        pipeline = AugmentationPipeline([K.RandomRotation90((1, 1), p=1.0), K.PadTo((13, 13))])
        found = pipeline(Batch(torch.rand(1, 3, 11, 11), extra=extra)).extra["depth"].tensor
        assert int(found.isnan().sum()) == 13 * 13 - 11 * 11 + 1

    def test_elastic_transforms_carry_images_and_values_and_unknown_ones_refuse_vectors(self):
        batch = with_twins(scene(6))
        pipeline = AugmentationPipeline([K.RandomElasticTransform(p=1.0)])
        out, _ = pipeline.augment(batch.replace(boxes=None, box_label=None, box_ignore=None, keypoints=None,
                                                keypoint_visible=None), seed=1)  # fmt: skip
        assert torch.equal(out.extra["twin"].tensor, out.image)
        assert torch.equal(out.extra["classes"].tensor[:, 0], out.mask)
        flow = {"flow": Extra(torch.zeros(2, 2, 64, 72), kind="vectors")}
        with pytest.raises(ValueError, match=r"Bent cannot carry extra\['flow'\]"):
            AugmentationPipeline([Bent()])(Batch(batch.image, extra=flow))

    @pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
    def test_large_unsigned_numbers(self, dtype):
        """PyTorch neither fills nor copies these."""
        depth = torch.arange(2 * 29 * 37).view(2, 1, 29, 37).to(dtype)
        batch = Batch(torch.rand(2, 3, 29, 37), extra={"depth": Extra(depth, kind="values", fill=9)})
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0), K.PadTo((31, 40))], CutMix(1.0))
        alone = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0), K.PadTo((31, 40)), K.RandomErasing(p=1.0)],
                                     erase_targets=["extra"])  # fmt: skip
        out, params = alone.augment(batch, seed=1)
        padded = out.extra["depth"].tensor[..., 29:, :]
        assert padded.dtype == dtype and bool((padded.long() == 9).all())
        back, known = alone.inverse_extra(out.extra, params)
        same = back["depth"].tensor.long() == depth.long()
        assert bool(known.all()) and bool((same | (back["depth"].tensor.long() == 9)).all())
        assert pipeline(batch, seed=1).extra["depth"].tensor.dtype == dtype

    @pytest.mark.parametrize("kind", ["values", "vectors"])
    def test_unknown_padding_is_not_read(self, kind):
        """Rounding may give pixels beside the image a weight of one in a million, of which NaN makes NaN."""
        size = torch.tensor([[9, 3], [11, 4], [3, 5], [7, 7]])
        given = torch.rand(4, 2, 11, 11, dtype=torch.float64)
        row, column = torch.arange(11)[:, None], torch.arange(11)
        inside = ((row < size[:, :1, None]) & (column < size[:, 1:, None]))[:, None].expand(-1, 2, -1, -1)
        given = given.masked_fill(~inside, float("nan"))
        batch = Batch(torch.rand(4, 3, 11, 11), size=size, extra={"map": Extra(given, kind=kind, fill=float("nan"))})
        pipeline = AugmentationPipeline([K.RandomHorizontalFlip(p=1.0), K.RandomVerticalFlip(p=1.0)])
        out, params = pipeline.augment(batch)
        assert torch.equal(out.extra["map"].tensor.isnan(), given.isnan().flip(-1, -2))
        back = pipeline.inverse_extra(out.extra, params)[0]["map"].tensor
        torch.testing.assert_close(back, given, atol=1e-4, rtol=0.0, equal_nan=True)

    def test_learned_ranges_change_images_alike(self):
        batch = with_twins(scene(7))
        out, _ = AugmentationPipeline(ranges=LearnedRanges(target_psnr=15)).augment(batch, seed=1)
        assert not torch.equal(out.image, batch.image)
        assert torch.equal(out.extra["twin"].tensor, out.image)
        assert torch.equal(out.extra["copy"].tensor, batch.image)

    def test_half_precision_and_bytes(self):
        half = scene(8).image.half()
        batch = Batch((half * 255).byte(), extra={"half": Extra(half, kind="image")})
        out = AugmentationPipeline([K.RandomAffine(30.0, p=1.0)])(batch)
        assert out.image.dtype == torch.float32 and out.extra["half"].tensor.dtype == torch.float16
        assert (out.image - out.extra["half"].tensor.float()).abs().max() < 0.01

    def test_no_images(self):
        batch = Batch(torch.rand(0, 3, 29, 37), extra={"flow": Extra(torch.rand(0, 2, 29, 37), kind="vectors")})
        assert AugmentationPipeline([K.CenterCrop((20, 21))])(batch).extra["flow"].tensor.shape == (0, 2, 20, 21)

    def test_shares_no_memory(self):
        batch = with_twins(scene(9))
        out = AugmentationPipeline()(batch)
        for name, one in out.extra.items():
            assert torch.equal(one.tensor, batch.extra[name].tensor)
            assert one.tensor.data_ptr() != batch.extra[name].tensor.data_ptr()


def check_flow(name, seed, padded):
    """Compare the flow of a turned pair with the pair's own: of points that move by matrices, where these go."""
    generator = torch.Generator().manual_seed(seed)
    motion = small_motion(generator, 2)
    batch = scene(seed, height=SIZE[0] + 2 * (seed % 9), width=SIZE[1] + 2 * (seed % 7), padded=padded)
    size = batch.image.shape[-2:]
    flow = flow_of(motion, size)
    extra = {"flow": Extra(flow, kind="vectors", fill=float("nan"))}
    pipeline = AugmentationPipeline(STACKS[name]() if name else None, preprocess=Preprocess((31, 43)))
    out, params = pipeline.augment(Batch(batch.image, size=batch.size, extra=extra), seed=seed)
    found = out.extra["flow"].tensor
    geometry = Geometry.from_dict(params["geometry"], torch.device("cpu"))
    there = geometry.matrix(0, len(geometry))
    own = flow_of(there @ motion @ invert(there), found.shape[-2:])
    known = found.isfinite().all(1, keepdim=True)
    # Beyond the centres of the outermost pixels the field goes on with theirs.
    points = transform_points(invert(there), pixel_centres(found.shape[-2:]).expand(2, -1, -1))
    view = torch.tensor(size).flip(0) if batch.size is None else batch.size.flip(-1)[:, None]
    inner = ((points >= 0.5) & (points <= view - 0.5)).all(-1).view(known.shape)
    error = (found - own).abs().amax(1, keepdim=True)[known & inner]
    assert not error.numel() or error.max() < 2e-3 * (1 + own.abs().amax().clamp(max=50))
    back, seen = pipeline.inverse_extra(out.extra, params)
    assert back["flow"].tensor.shape == flow.shape
    middle = (back["flow"].tensor.isfinite().all(1, keepdim=True)) & seen
    wrong = (back["flow"].tensor - flow).abs().amax(1, keepdim=True)[middle]
    return wrong


class TestVectors:
    @pytest.mark.parametrize("name", STACKS)
    def test_flow_of_a_turned_pair_is_the_pairs_own(self, name):
        check_flow(name, 3, padded=False)
        check_flow(name, 4, padded=True)

    @pytest.mark.long
    def test_flow_of_a_turned_pair_is_the_pairs_own_in_200_cases(self):
        names = list(STACKS)
        for seed in range(200):
            check_flow(names[seed % len(names)], 100 + seed, padded=seed % 3 == 0)

    @pytest.mark.parametrize("name", ["horizontal flip", "affine", "quarter turns", "resize", "shear"])
    def test_the_way_back(self, name):
        wrong = check_flow(name, 11, padded=False)
        assert wrong.numel() > 100 and wrong.median() < 0.02

    def test_painted_pairs(self):
        """A dot in each of two frames: where the flow at the first one's place leads, the second one is."""
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            first = torch.tensor([14, 16]) + torch.randint(0, 8, (2,), generator=generator)
            move = torch.randint(-5, 6, (2,), generator=generator)
            frames = torch.zeros(2, 1, 3, 37, 39)
            for frame, (x, y) in zip(frames, (first, first + move), strict=True):
                frame[0, :, y - 1 : y + 2, x - 1 : x + 2] = 1.0
            flow = move.float()[None, :, None, None].expand(1, 2, 37, 39)
            extra = {"next": Extra(frames[1], kind="image"), "flow": Extra(flow, kind="vectors")}
            stack = [
                K.RandomHorizontalFlip(p=0.5),
                K.RandomAffine(180.0, scale=(0.9, 1.5), shear=10.0, p=1.0),
                K.RandomRotation90((-1, 2), p=1.0),
            ]
            out, _ = AugmentationPipeline(stack).augment(Batch(frames[0], extra=extra), seed=seed)
            here, there = (find_dot(one[0, 0]) for one in (out.image, out.extra["next"].tensor))
            if here is None or there is None:
                continue
            x, y = here.long().tolist()
            assert (here + out.extra["flow"].tensor[0, :, y, x] - there).abs().max() < 0.5


def find_dot(image):
    """The middle of what is bright; None where some of it may be outside."""
    rim = torch.cat([image[[0, -1]].flatten(), image[:, [0, -1]].flatten()])
    if rim.max() > 0 or image.sum() < 3:
        return None
    y, x = (torch.arange(n) + 0.5 for n in image.shape)
    return torch.stack([(image.sum(0) * x).sum(), (image.sum(1) * y).sum()]) / image.sum()


class TestBack:
    def test_images_and_values(self):
        batch = with_twins(scene(3, height=47, width=61))
        pipeline = AugmentationPipeline([K.RandomAffine(40.0, p=1.0)])
        out, params = pipeline.augment(batch, seed=2)
        back, seen = pipeline.inverse_extra(out.extra, params)
        image, valid = pipeline.inverse(out.image, params)
        assert torch.equal(back["twin"].tensor, image) and torch.equal(seen, valid)
        classes = back["classes"].tensor
        assert bool((classes[~seen] == IGNORE).all())
        assert (classes == batch.mask[:, None])[seen].float().mean() > 0.95

    def test_of_another_size_is_refused(self):
        pipeline = AugmentationPipeline([K.CenterCrop((20, 20))])
        batch = with_twins(scene(3))
        _, params = pipeline.augment(batch)
        with pytest.raises(ValueError, match="20x20"):
            pipeline.inverse_extra(batch.extra, params)
        with pytest.raises(ValueError, match="empty"):
            pipeline.inverse_extra({}, params)


class TestMixes:
    def extras(self, image):
        flow = image[:, :2] * 10
        return {
            "twin": Extra(image, kind="image"),
            "near": Extra(image, kind="values", mode="nearest"),
            "flow": Extra(flow, kind="vectors"),
        }

    def test_cutmix(self):
        image = torch.rand(4, 3, 21, 23)
        out = CutMix(p=1.0)(Batch(image, extra=self.extras(image)))
        assert torch.equal(out.extra["twin"].tensor, out.image) and torch.equal(out.extra["near"].tensor, out.image)
        assert torch.equal(out.extra["flow"].tensor, out.image[:, :2] * 10)

    def test_mosaic(self):
        image = (torch.rand(4, 3, 21, 23) > 0.5).float()
        extra = self.extras(image)
        flow = extra.pop("flow")
        out = Mosaic(p=1.0, scale=(1.0, 1.0))(Batch(image, extra=extra))
        assert torch.equal(out.extra["twin"].tensor, out.image)
        assert set(out.extra["near"].tensor.unique().tolist()) <= {0.0, 1.0}
        assert (out.extra["near"].tensor - out.image).abs().mean() < 0.3
        with pytest.raises(ValueError, match=r"Mosaic cannot carry extra\['flow'\]"):
            Mosaic()(Batch(image, extra={"flow": flow}))

    def test_mixup_blends_images_and_refuses_maps(self):
        image = torch.rand(4, 3, 21, 23)
        extra = self.extras(image)
        out = MixUp(p=1.0)(Batch(image, extra={"twin": extra["twin"]}))
        assert torch.equal(out.extra["twin"].tensor, out.image)
        for name in ("near", "flow"):
            with pytest.raises(ValueError, match=rf"MixUp cannot carry extra\['{name}'\]"):
                MixUp()(Batch(image, extra={name: extra[name]}))

    def test_copy_paste(self):
        image = torch.rand(2, 3, 21, 23)
        masks = torch.zeros(2, 1, 21, 23, dtype=torch.bool)
        masks[0, 0, 3:9, 4:8], masks[1, 0, 10:19, 9:20] = True, True
        boxes = torch.tensor([[[4.0, 3, 8, 9]], [[9.0, 10, 20, 19]]])
        rows = {"boxes": boxes, "box_label": torch.zeros(2, 1).long(), "instance_masks": masks}
        out = CopyPaste(p=1.0)(Batch(image, extra=self.extras(image), **rows))
        assert torch.equal(out.extra["near"].tensor, out.image) and not torch.equal(out.image, image)

    def test_mix_refuses_them(self):
        image = torch.rand(2, 3, 21, 23)
        with pytest.raises(ValueError, match="Mix cannot carry extra along; take CutMix for extra"):
            Mix(3)(Batch(image, torch.tensor([0, 1]), extra=self.extras(image)))

    def test_in_a_pipeline(self):
        image = torch.rand(4, 3, 21, 23)
        pipeline = AugmentationPipeline(
            [K.RandomHorizontalFlip()], CutMix(p=1.0), Preprocess((15, 17), mean=(0.5,) * 3)
        )
        out, params = pipeline.augment(Batch(image, extra={"twin": Extra(image, kind="image")}), seed=3)
        assert torch.equal(out.extra["twin"].tensor, out.image)
        again = pipeline.replay(Batch(image, extra={"twin": Extra(image, kind="image")}), params)
        assert torch.equal(again.extra["twin"].tensor, out.image)


class TestBatch:
    def batch(self, count=3):
        return Batch(
            torch.rand(count, 3, 9, 11),
            extra={
                "next": Extra(torch.rand(count, 3, 9, 11), kind="image"),
                "depth": Extra(torch.rand(count, 1, 9, 11), kind="values", mode="nearest", fill=-1.0),
            },
        )

    def test_goes_where_the_batch_goes(self):
        batch = self.batch()
        part = batch[[2, 0]]
        assert torch.equal(part.extra["depth"].tensor, batch.extra["depth"].tensor[[2, 0]])
        assert part.extra["depth"].fill == -1.0 and part.extra["depth"].mode == "nearest"
        assert batch.to("meta").extra["next"].tensor.device.type == "meta"
        again = pickle.loads(pickle.dumps(batch))
        assert torch.equal(again.extra["next"].tensor, batch.extra["next"].tensor)
        assert repr(batch).endswith("extra={next: image (3, 3, 9, 11) float32, depth: values (3, 1, 9, 11) float32})")
        assert "mode='nearest', fill=-1" in repr(batch.extra["depth"])

    def test_samples_and_collate(self):
        batch = self.batch()
        samples = [batch.sample(i) for i in range(3)]
        again = Batch.collate(samples)
        assert torch.equal(again.extra["depth"].tensor, batch.extra["depth"].tensor)
        small = {"image": samples[0]["image"][:, :5], "extra": {
            name: one.replace(one.tensor[:, :5]) for name, one in samples[0]["extra"].items()
        }}  # fmt: skip
        laid = Batch.collate([small, samples[1]])
        assert bool((laid.extra["depth"].tensor[0, :, 5:] == -1).all())
        assert bool((laid.extra["next"].tensor[0, :, 5:] == 0).all())

    def test_collate_tells_what_differs(self):
        one, other = (self.batch(1).sample(0) for _ in range(2))
        with pytest.raises(ValueError, match=r"extra\['depth'\] differs between samples: values of torch.float32"):
            Batch.collate(
                [one, other | {"extra": other["extra"] | {"depth": Extra(torch.rand(1, 9, 11), kind="values")}}]
            )
        with pytest.raises(ValueError, match="extra differs in its names: depth, next or next"):
            Batch.collate([one, other | {"extra": {"next": other["extra"]["next"]}}])
        with pytest.raises(ValueError, match=r"sample 1: extra\['depth'\] is 9x10, but the image is 9x11"):
            shorter = Extra(torch.rand(1, 9, 10), kind="values")
            Batch.collate([one, other | {"extra": other["extra"] | {"depth": shorter}}])

    def test_arrays_become_tensors(self):
        sample = {"image": torch.rand(3, 9, 11), "extra": {"depth": Extra(torch.rand(1, 9, 11).numpy(), kind="values")}}
        assert Batch.collate([sample]).extra["depth"].tensor.shape == (1, 1, 9, 11)

    @pytest.mark.parametrize(
        ("extra", "error", "text"),
        [
            (torch.rand(2, 1, 9, 11), TypeError, "extra is a Tensor, not a dictionary"),
            ({"d": torch.rand(2, 1, 9, 11)}, TypeError, r"extra\['d'\] is a Tensor, and nothing says what it is"),
            ({"d": Extra(torch.rand(1, 9, 11), kind="values")}, ValueError, r"expected \(B, C, H, W\)"),
            ({"d": Extra(torch.rand(3, 1, 9, 11), kind="values")}, ValueError, r"2 images, but extra\['d'\] has 3"),
            ({"d": Extra(torch.rand(2, 1, 9, 12), kind="values")}, ValueError, r"extra\['d'\] is 9x12"),
            (
                {"d": Extra(torch.rand(2, 1, 9, 11), kind="image")},
                ValueError,
                "1 channels and the image 3; kind='values'",
            ),
        ],
    )
    def test_what_does_not_fit_is_named(self, extra, error, text):
        with pytest.raises(error, match=text):
            Batch(torch.rand(2, 3, 9, 11), extra=extra)

    def test_values_of_images_are_looked_at(self):
        batch = Batch(torch.rand(2, 3, 9, 11), extra={"next": Extra(torch.full((2, 3, 9, 11), 2.0), kind="image")})
        with pytest.raises(ValueError, match=r"extra\['next'\]: .*from 2 to 2"):
            AugmentationPipeline()(batch)

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"kind": "depth"}, ValueError, "unknown kind 'depth'"),
            ({"kind": "values", "mode": "cubic"}, ValueError, "unknown mode 'cubic'"),
            ({"kind": "vectors"}, ValueError, "dx and dy"),
            ({"kind": "image", "fill": 1.0}, ValueError, "no fill"),
            ({"kind": "image", "mode": "nearest"}, ValueError, "no mode"),
            (
                {"kind": "values", "tensor": torch.ones(1, 2, 2).long(), "mode": "bilinear"},
                ValueError,
                "mode='nearest'",
            ),
            ({"kind": "values", "tensor": torch.ones(1, 2, 2).byte(), "fill": 300}, ValueError, "from 0 to 255"),
            ({"kind": "values", "tensor": torch.ones(1, 2, 2).byte(), "fill": float("nan")}, ValueError, "fill nan"),
            ({"kind": "values", "tensor": torch.ones(2, 2)}, ValueError, "unsqueeze"),
            ({"kind": "vectors", "tensor": torch.ones(2, 2, 2).long()}, TypeError, "float"),
            ({"kind": "image", "tensor": torch.ones(3, 2, 2).long()}, TypeError, "uint8 or floating"),
            ({"kind": "values", "tensor": torch.ones(1, 2, 2, dtype=torch.complex64)}, TypeError, "complex64"),
            ({"kind": "values", "tensor": "depth.png"}, TypeError, "str cannot become a tensor"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, error, text):
        with pytest.raises(error, match=text):
            Extra(**{"tensor": torch.rand(3, 4, 4), **arguments})
