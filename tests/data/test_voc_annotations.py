"""What the annotations of Pascal VOC tell of their images, and what is wrong with it."""

import pytest
from PIL import Image

from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import VOCData
from tests.data.test_datamodules import make_voc


class TestVOCAnnotations:
    """What an annotation tells of its image."""

    def annotate(self, root, size, number=1):
        items = "<object><name>cat</name><bndbox>{}</bndbox></object>"
        boxes = [(3, 5, 20, 25), (35, 5, 60, 20), (41, 5, 60, 20)]
        inner = [
            "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            for box in boxes
        ]
        text = f"<annotation>{size}{''.join(map(items.format, inner))}</annotation>"
        (root / "Annotations" / f"{number}.xml").write_text(text)

    @pytest.mark.parametrize(
        "size",
        [
            "",
            "<size><width>0</width><height>0</height></size>",
            "<size><width>40</width></size>",
            "<size><width>wide</width><height>30</height></size>",
        ],
    )
    def test_no_size(self, tmp_path, size):
        """The image's own tells which boxes lie outside it."""
        self.annotate(make_voc(tmp_path, ()), size)
        data = VOCData(str(tmp_path), num_workers=0, class_names=["cat"])
        assert data.bad_boxes == ["1.xml: cat (41, 5, 60, 20) lies outside the image"]
        assert data.clipped_boxes == 1
        data.setup()
        assert data.splits["val"][1]["boxes"].tolist() == [[2, 4, 20, 25], [34, 4, 40, 20]]
        with pytest.raises(DataError) as error:
            VOCData(str(tmp_path), class_names=["cat"], on_bad_box="raise")
        assert str(error.value) == (
            f"1 boxes in {tmp_path} cannot be used:\n1.xml: cat (41, 5, 60, 20) lies outside the image"
        )

    def test_another_size(self, tmp_path):
        """Boxes of an image that was resized after it was annotated are wrong, all of them."""
        self.annotate(make_voc(tmp_path, ()), "<size><width>80</width><height>60</height></size>")
        data = VOCData(str(tmp_path), num_workers=0, class_names=["cat"])
        data.setup()
        with pytest.raises(DataError) as error:
            data.splits["val"][1]
        image = tmp_path / "JPEGImages" / "1.png"
        assert str(error.value) == (f"{image} is 30x40, turned as its EXIF data tell, but its annotation says 60x80")

    def test_no_annotation(self, tmp_path):
        make_voc(tmp_path)
        (tmp_path / "Annotations" / "3.xml").unlink()
        with pytest.raises(DataError, match=r"annotation.*3.xml"):
            VOCData(str(tmp_path))

    def test_origin(self, tmp_path):
        make_voc(tmp_path, (("cat", 0, 0, 39, 29),))
        data = VOCData(str(tmp_path), num_workers=0, origin=0)
        data.setup()
        assert data.clipped_boxes == 0
        assert data.splits["val"][1]["boxes"].tolist() == [[0, 0, 40, 30]]

    def test_turned_images(self, tmp_path):
        """Images are turned as their EXIF data tell, and so are the sizes that they are compared with."""
        make_voc(tmp_path, ())
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (30, 40)).save(tmp_path / "JPEGImages" / "1.jpg", exif=exif)
        (tmp_path / "JPEGImages" / "1.png").unlink()
        self.annotate(tmp_path, "")
        data = VOCData(str(tmp_path), num_workers=0, class_names=["cat"])
        data.setup()
        sample = data.splits["val"][1]
        assert sample["image"].shape == (3, 30, 40)
        assert sample["boxes"].tolist() == [[2, 4, 20, 25], [34, 4, 40, 20]]
