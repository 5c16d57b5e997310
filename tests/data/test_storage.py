"""StorageResize."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.data.reading import ImageFiles, read_image
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.pictures import ORIENTATION


class TestStorageResize:
    @pytest.mark.parametrize("shape", [(427, 640), (640, 427), (300, 300), (170, 333), (50, 45)])
    @pytest.mark.parametrize("record", [Preprocess(144, crop=128), Preprocess(96, crop=(80, 96)), Preprocess(64)])
    def test_evaluation_from_storage_equals_evaluation_of_the_original(self, shape, record):
        """Alone, and in a batch with an image of another shape."""
        image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
        other = torch.randint(0, 256, (3, 90, 100), dtype=torch.uint8)
        store = StorageResize(record.size)
        batch = Batch.collate([store({"image": image}), store({"image": other})])
        out = AugmentationPipeline(preprocess=record).eval()(batch)
        for i, original in enumerate((image, other)):
            expected = record.module()(original)
            assert torch.equal(out.image[i, :, : expected.shape[1], : expected.shape[2]], expected)

    @given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 200))
    def test_sizes(self, height, width, size):
        short, long = sorted(StorageResize(size).resized_size(height, width))
        assert short <= size
        assert long <= 2 * size
        assert short == size or long == 2 * size
        assert max(StorageResize(size, fit="inside").resized_size(height, width)) == size
        assert StorageResize((size, 7)).resized_size(height, width) == (size, 7)

    @pytest.mark.parametrize("orientation", [1, 6])
    @pytest.mark.parametrize("size", [40, (60, 40)])
    def test_large_jpegs_are_decoded_with_fewer_pixels(self, size, orientation, tmp_path):
        """As they are turned; with nearly the same pixels, and the size of the file."""
        y, x = torch.meshgrid(torch.linspace(0, 6, 405), torch.linspace(0, 9, 601), indexing="ij")
        pixels = (127.5 + 127.5 * torch.stack([x.sin(), y.cos(), (x + y).sin()], -1)).to(torch.uint8)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(pixels.numpy()).save(tmp_path / "photo.jpg", quality=95, exif=exif)
        reduced, whole = (
            ImageFiles([tmp_path / "photo.jpg"], [0], StorageResize(size, reduced=reduced)) for reduced in (True, False)
        )
        assert max(reduced.read(0)["image"].shape) < 0.6 * 601
        assert min(reduced.read(0)["image"].shape[1:]) >= 2 * 40
        sample, expected = reduced[0], whole[0]
        assert sample["original_size"].tolist() == ([405, 601] if orientation == 1 else [601, 405])
        for name in ("original_size", "label"):
            assert torch.as_tensor(sample[name] == expected[name]).all()
        assert sample["image"].shape == expected["image"].shape
        # of an odd number of pixels half of the last one is beyond the edge: a quarter of a pixel of 17 levels' slope
        assert (sample["image"].int() - expected["image"].int()).abs().float().mean() < 4

    def test_small_images_and_others_than_jpegs_are_decoded_whole(self, tmp_path):
        pixels = torch.randint(0, 256, (200, 300, 3), dtype=torch.uint8)
        for name, side in (("small.jpg", 60), ("large.png", 20)):
            Image.fromarray(pixels.numpy()).save(tmp_path / name)
            assert torch.equal(
                ImageFiles([tmp_path / name], [0], StorageResize(side, reduced=True))[0]["image"],
                StorageResize(side)({"image": read_image(tmp_path / name)})["image"],
            )

    def test_targets_follow(self):
        """A painted square's box, mask and middle still agree."""
        image = torch.zeros(3, 60, 90, dtype=torch.uint8)
        image[:, 20:40, 30:60] = 255
        sample = {
            "image": image,
            "boxes": [[30.0, 20.0, 60.0, 40.0]],
            "keypoints": torch.tensor([[45.0, 30.0]]),
            "mask": (image[0] > 0).long(),
            "meta": {"path": "a.png"},
        }
        out = StorageResize(40)(sample)
        assert out["image"].shape == (3, 40, 60)
        assert out["boxes"].tolist() == [[20.0, pytest.approx(40 / 3), 40.0, pytest.approx(80 / 3)]]
        assert out["keypoints"].tolist() == [[30.0, 20.0]]
        assert out["original_size"].tolist() == [60, 90]
        assert out["meta"] == sample["meta"]
        rows, columns = torch.where(out["mask"] == 1)
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (13, 27, 20, 40)
        assert sample["image"].shape == (3, 60, 90), "the sample itself stays"

    def test_exception(self):
        for arguments, message in [
            ({"size": 0}, "size 0 is not a positive number"),
            ({"size": 8, "fit": "fill"}, "unknown fit 'fill'; available: 'cover', 'inside'"),
            ({"size": 8, "max_aspect": 0.5}, "max_aspect 0.5 is below 1"),
            ({"size": 8, "interpolation": "area"}, "unknown interpolation 'area'"),
        ]:
            with pytest.raises(ValueError, match=message):
                StorageResize(**arguments)
