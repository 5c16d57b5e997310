"""Preprocess: the record, and the module that it builds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from tests.tester import BaseTester

SIZES = st.one_of(st.integers(8, 90), st.tuples(st.integers(8, 90), st.integers(8, 90)))


def photos() -> list[torch.Tensor]:
    images = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    return [images[0], images[1], images[0][:, :101, :77], images[1][:, 30:363, 5:222]]


class TestPreprocess(BaseTester):
    def test_smoke(self, device, dtype):
        image = torch.rand(2, 3, 50, 70, device=device).to(dtype)
        out = Preprocess(40, crop=32, mean=(0.5,) * 3, std=(0.2,) * 3).module().to(device)(image)
        assert out.shape == (2, 3, 32, 32)
        assert out.dtype == dtype
        assert out.device == image.device

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"size": 0}, "size 0 is not a positive number of pixels"),
            ({"size": (4, -1)}, "size (4, -1) is not a positive"),
            ({"size": (1, 2, 3)}, "has 3 numbers"),
            ({"crop": "big"}, "crop 'big' is not a positive"),
            ({"size": 100, "crop": 128}, "crop 128 is larger than the image resized to 100"),
            ({"size": (100, 200), "crop": 128}, "crop 128 is larger than the image resized to (100, 200)"),
            ({"interpolation": "nearest"}, "available: 'bilinear', 'bicubic'"),
            ({"channel_order": "gbr"}, "available: 'rgb', 'bgr'"),
            ({"std": (1.0, 0.0, 1.0)}, "std (1.0, 0.0, 1.0) is not positive"),
            ({"size": (64, 64), "letterbox": "no"}, "letterbox='no' is neither true nor false"),
            ({"size": 64, "letterbox": True}, "a letterbox has a height and a width, and no crop; size is 64"),
            ({"size": (64, 64), "crop": 32, "letterbox": True}, "and no crop; size is (64, 64) and crop 32"),
        ],
    )
    def test_exception_of_record(self, arguments, message):
        with pytest.raises(ValueError) as error:
            Preprocess(**arguments)
        assert message in str(error.value)

    def test_exception(self):
        with pytest.raises(ValueError, match="crop 64x64; give Preprocess a size"):
            Preprocess(size=None, crop=64).module()(torch.rand(1, 3, 60, 100))
        with pytest.raises(TypeError, match=r"torch.int64.*image.to\(torch.uint8\)"):
            Preprocess().module()(torch.zeros(1, 3, 60, 100, dtype=torch.int64))
        with pytest.raises(ValueError, match="has no field colour"):
            Preprocess.from_dict({"colour": 1})

    @pytest.mark.parametrize(
        ("size", "crop", "shape"),
        [
            (64, None, (64, 85)),
            (64, 64, (64, 64)),
            (64, (48, 60), (48, 60)),
            ((20, 30), None, (20, 30)),
            (None, None, (60, 80)),
            (None, (50, 60), (50, 60)),
        ],
    )
    def test_cardinality(self, size, crop, shape):
        record = Preprocess(size, crop=crop)
        image = torch.rand(2, 3, 60, 80)
        assert record.module()(image).shape[-2:] == shape
        assert record.module()(image[0]).shape == (3, *shape)
        assert record.output_size in (shape, None)
        assert (record.output_size is None) == (crop is None and not isinstance(size, tuple))

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("size", [48, 144, 288])
    def test_feature(self, interpolation, size):
        """Equal to torchvision's on uint8; within 1/255 of it where the arithmetic is floating point."""
        module = Preprocess(size, crop=40, interpolation=interpolation).module()
        for photo in photos():
            resized = tv.resize(photo, [size], interpolation=InterpolationMode(interpolation), antialias=True)
            expected = tv.center_crop(resized, [40, 40]).float() / 255
            assert torch.equal(module(photo), expected)
            # torchvision's uint8 arithmetic rounds twice, each time by up to half a level
            assert (module(photo.float() / 255) - expected).abs().max() <= 1.07 / 255
            levels = module.geometry(photo.float(), levels=True)
            apart = (levels - expected * 255).abs()
            assert apart.max() <= 1.001
            assert (apart > 0.5).float().mean() <= 0.01

    def test_channel_order_mean_and_std(self):
        image = torch.rand(1, 3, 8, 8)
        module = Preprocess(None, channel_order="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).module()
        for i, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)]):
            self.assert_close(module(image)[0, i], (image[0, 2 - i] - mean) / std)
        self.assert_close(module.undo_values(module(image)), image)

    @given(size=SIZES, bgr=st.booleans(), cubic=st.booleans(), values=st.none() | st.tuples(*[st.floats(0.1, 2)] * 3))
    def test_round_trip_of_record(self, size, bgr, cubic, values):
        record = Preprocess(
            size,
            interpolation="bicubic" if cubic else "bilinear",
            channel_order="bgr" if bgr else "rgb",
            mean=values,
            std=values,
        )
        data = record.to_dict()
        assert not any(isinstance(value, tuple) for value in data.values())
        assert Preprocess.from_dict(data) == record

    @given(size=SIZES, height=st.integers(8, 90), width=st.integers(8, 90), cubic=st.booleans())
    @example(size=33, height=8, width=90, cubic=True)
    def test_range_and_size(self, size, height, width, cubic):
        record = Preprocess(size, interpolation="bicubic" if cubic else "bilinear")
        image = torch.randint(0, 2, (1, 3, height, width), dtype=torch.uint8) * 255
        for out in (record.module()(image), record.module()(image / 255)):
            assert out.shape[-2:] == record.resized_size(height, width)
            assert out.min() >= 0
            assert out.max() <= 1 + 1e-6
        if isinstance(size, int):
            assert min(record.resized_size(height, width)) == size

    def test_gradcheck(self):
        self.gradcheck(Preprocess(8, crop=6, std=(0.5,) * 3).module().double(), [torch.rand(1, 3, 9, 12)])

    @pytest.mark.long
    def test_dynamo(self):
        module = Preprocess(32, crop=24, channel_order="bgr", mean=(0.5,) * 3).module()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        image = torch.rand(2, 3, 40, 50)
        self.assert_close(compiled(image), module(image))
        photo = photos()[2]
        self.assert_close(compiled(photo), module(photo), atol=1.07 / 255)

    @given(st.integers(8, 90), st.integers(8, 90), st.integers(8, 60), st.integers(8, 60))
    def test_letterbox(self, height, width, tall, wide):
        """The whole image is there, its aspect kept to a pixel, and black beside it."""
        record = Preprocess((tall, wide), letterbox=True)
        assert Preprocess.from_dict(record.to_dict()) == record
        out = record.module()(torch.ones(1, 3, height, width))
        assert out.shape == (1, 3, tall, wide)
        h, w = record.resized_size(height, width)
        assert h == tall or w == wide
        scale = min(tall / height, wide / width)
        assert abs(h - height * scale) <= 1
        assert abs(w - width * scale) <= 1
        torch.testing.assert_close(out[..., :h, :w], torch.ones(1, 3, h, w))
        assert out.sum() == pytest.approx(3 * h * w, rel=1e-5)

    @example(height=8, width=60, training=True, canvas=False)
    @example(height=8, width=60, training=True, canvas=True)
    @given(height=st.integers(8, 90), width=st.integers(8, 90), training=st.booleans(), canvas=st.booleans())
    def test_letterbox_takes_targets_along_and_back(self, height, width, training, canvas):
        """Alike in training without augmentation and in evaluation, with and without a canvas beside the image."""
        pipeline = AugmentationPipeline(preprocess=Preprocess((40, 56), letterbox=True)).train(training)
        box = torch.tensor([[[0.0, 0.0, width, height], [width / 4, height / 4, width / 2, height]]])
        grey = torch.full((1, 3, height, width), 0.5)
        more = {}
        if canvas:
            grey = F.pad(grey, (0, 9, 0, 5))
            more["size"] = torch.tensor([[height, width]])
        mask = torch.ones(1, *grey.shape[2:], dtype=torch.long)
        batch = Batch(grey, boxes=box, box_label=torch.zeros(1, 2, dtype=torch.long), mask=mask, **more)
        out, params = pipeline.augment(batch) if training else pipeline.prepare(batch)
        h, w = pipeline.preprocess.resized_size(height, width)
        torch.testing.assert_close(out.boxes[0, 0], torch.tensor([0.0, 0.0, w, h]), atol=1e-3, rtol=0)
        torch.testing.assert_close(pipeline.inverse_boxes(out.boxes, params), box, atol=1e-3, rtol=0)
        assert torch.equal(out.mask[0] == 1, out.image[0, 0] > 0)
        assert (out.mask[0, h:] == 255).all()
        maps, valid = pipeline.inverse(torch.full_like(out.image, 0.5), params)
        torch.testing.assert_close(maps[..., :height, :width], torch.full((1, 3, height, width), 0.5))
        assert valid[..., :height, :width].all()


class TestMaxPixels:
    @pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
    @pytest.mark.parametrize("arguments", [{"size": 64}, {"size": 64, "crop": 64}, {"size": None, "max_pixels": 999}])
    def test_larger_images_are_refused(self, size, arguments):
        record = Preprocess(**arguments)
        message = rf"{size[0]}x{size[1]} pixels .* larger than {record.max_pixels:,} pixels"
        with pytest.raises(ValueError, match=message):
            record.module()(torch.zeros(3, *size, dtype=torch.uint8))
        with pytest.raises(ValueError, match=message):
            AugmentationPipeline(preprocess=record).eval()(Batch(torch.zeros(1, 3, *size)))

    def test_the_bound_itself(self):
        image = torch.zeros(3, 10, 30, dtype=torch.uint8)
        assert Preprocess(20, max_pixels=1200).module()(image).shape == (3, 20, 60)
        with pytest.raises(ValueError, match="10x30 pixels resized to 20x60"):
            Preprocess(20, max_pixels=1199).module()(image)
        assert Preprocess((20, 90), max_pixels=1).module()(image).shape == (3, 20, 90)
        assert Preprocess((20, 90), letterbox=True, max_pixels=1).module()(image).shape == (3, 20, 90)
        assert Preprocess(64, max_pixels=None).resized_size(1, 20000) == (64, 1_280_000)

    def test_it_travels(self):
        record = Preprocess(64, max_pixels=500)
        assert record.to_dict()["max_pixels"] == 500
        assert Preprocess.from_dict(record.to_dict()) == record
        assert "max_pixels" not in Preprocess(64).to_dict()  # which older versions read
        assert Preprocess.from_dict({"size": 64}).max_pixels == 4096**2
        assert Preprocess.from_dict(Preprocess(64, max_pixels=None).to_dict()).max_pixels is None

    @pytest.mark.parametrize("bound", [0, -1, 1.5, True, "a"])
    def test_exception(self, bound):
        with pytest.raises(ValueError, match=f"max_pixels {bound!r}"):
            Preprocess(64, max_pixels=bound)


class TestOnePixelWide:
    """Results one pixel wide, whose rows PyTorch's antialiased resize confounds."""

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("height", "width"), [(21, 17), (21, 1), (2, 5)])
    def test_rows_are_those_of_a_result_of_two_columns(self, height, width, channels, interpolation):
        column = torch.rand(1, channels, height, 1).expand(1, channels, height, width).contiguous()
        for rows in (1, 6, height):
            two = Preprocess((rows, 2), interpolation=interpolation).module()
            one = Preprocess((rows, 1), interpolation=interpolation).module()
            for image in (column, column.to(memory_format=torch.channels_last), column.double()):
                torch.testing.assert_close(one(image), two(image)[..., :1])
            image = (column * 255).to(torch.uint8)
            torch.testing.assert_close(one(image), two(image)[..., :1], rtol=0, atol=1.01 / 255)

    def test_the_mean_of_a_row(self):
        image = torch.tensor([[[[0.0, 0.25, 0.5]], [[0.5, 0.75, 1.0]]]]).expand(1, 2, 40, 3).contiguous()
        out = Preprocess((4, 1)).module()(image)
        assert out.shape == (1, 2, 4, 1)
        torch.testing.assert_close(out.flatten(2), torch.tensor([[[0.25] * 4, [0.75] * 4]]))


class TestCall:
    """A record as a function of an image, whatever library the image is of."""

    RECORD = Preprocess(40, crop=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    ARRAY = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)

    def test_every_library_gives_the_same(self):
        tensor = torch.from_numpy(self.ARRAY).permute(2, 0, 1)
        expected = self.RECORD.module()(tensor[None])
        assert expected.shape == (1, 3, 32, 32)
        for image in (tensor, tensor[None], self.ARRAY, Image.fromarray(self.ARRAY), [self.ARRAY]):
            assert torch.equal(self.RECORD(image), expected)
        both = self.RECORD([Image.fromarray(self.ARRAY), tensor])
        assert torch.equal(both, expected.expand(2, -1, -1, -1))

    def test_floating_point(self):
        image = torch.rand(2, 3, 50, 70)
        assert torch.equal(self.RECORD(image), self.RECORD.module()(image))

    def test_grey_and_turned_pictures(self):
        grey = self.ARRAY[..., 0]
        assert torch.equal(self.RECORD(grey), self.RECORD(np.stack([grey] * 3, -1)))
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        picture = Image.fromarray(self.ARRAY)
        picture.info["exif"] = exif.tobytes()
        assert torch.equal(self.RECORD(picture), self.RECORD(np.rot90(self.ARRAY, -1)))

    @pytest.mark.parametrize(
        ("image", "error", "told"),
        [
            (torch.rand(50, 70, 3), ValueError, "permute"),
            (torch.rand(50, 70), ValueError, r"\(50, 70\)"),
            (255 * torch.rand(3, 50, 70), ValueError, "uint8"),
            (torch.full((3, 50, 70), torch.nan), ValueError, "NaN"),
            (torch.zeros(3, 50, 70, dtype=torch.int64), TypeError, "int64"),
            (ARRAY.astype(float), TypeError, "float64"),
            (ARRAY.transpose(2, 0, 1), ValueError, "from_numpy"),
            ("photo.jpg", TypeError, "read_image"),
            (None, TypeError, "NoneType"),
        ],
    )
    def test_exception(self, image, error, told):
        with pytest.raises(error, match=told):
            self.RECORD(image)

    def test_exception_of_sizes(self):
        with pytest.raises(ValueError, match=r"32x32, 32x64.*crop"):
            Preprocess(32)([torch.rand(3, 50, 50), torch.rand(3, 50, 100)])
