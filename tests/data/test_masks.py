"""Label images: numbers, palettes and colours, what is wrong with them, and the folders and lists they come in."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kornia_mvit.data.classes import voc_colours
from kornia_mvit.data.masks import MaskFiles, read_mask
from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import SegmentationFolderData, VOCSegmentationData
from kornia_mvit.weights.registry import class_names

SKY, ROAD, VOID = (128, 128, 128), (128, 0, 64), (0, 0, 0)
COLOURS = {SKY: 0, ROAD: 1, VOID: 255}
NUMBERS = np.array([[0, 0, 1], [1, 255, 0]], dtype=np.uint8)


def painted(numbers=NUMBERS, mode="RGB", colours=COLOURS):
    """A label image of colours."""
    table = np.zeros((256, 3), dtype=np.uint8)
    for colour, number in colours.items():
        table[number] = colour
    image = Image.fromarray(table[numbers])
    return image.convert(mode, palette=Image.Palette.ADAPTIVE)


def indexed(numbers=NUMBERS):
    """A label image of indices of VOC's palette."""
    image = Image.fromarray(numbers)
    image.putpalette([value for colour in voc_colours(256) for value in colour])
    return image


class TestReadMask:
    @pytest.mark.parametrize("mode", ["L", "P", "I;16", "I"])
    def test_numbers(self, mode, tmp_path):
        path = tmp_path / ("a.tif" if mode == "I" else "a.png")
        image = {
            "L": lambda: Image.fromarray(NUMBERS),
            "P": indexed,
            "I;16": lambda: Image.fromarray(NUMBERS.astype(np.uint16)),
            "I": lambda: Image.fromarray(NUMBERS.astype(np.int32)),
        }[mode]()
        assert image.mode == mode
        image.save(path)
        mask = read_mask(path)
        assert mask.dtype == torch.int64
        assert mask.tolist() == NUMBERS.tolist()

    def test_one_bit(self, tmp_path):
        Image.fromarray(NUMBERS == 1).save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png").tolist() == (NUMBERS == 1).tolist()

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
    def test_colours(self, mode, tmp_path):
        painted(mode=mode).save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png", COLOURS).tolist() == NUMBERS.tolist()

    def test_grey_images_have_numbers_all_the_same(self, tmp_path):
        Image.fromarray(NUMBERS).save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png", COLOURS).tolist() == NUMBERS.tolist()

    @pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "LA"])
    @pytest.mark.parametrize("order", [(0, 255), (255, 0)])
    def test_grey_classes(self, mode, order, tmp_path):
        """Black and white are colours like any other, also where white is the number of the pixels to ignore."""
        colours = {(value,) * 3: number for number, value in enumerate(order)}
        for values in ([0, 255, 255], [0, 0, 0], [255, 255, 255]):
            Image.fromarray(np.array([values], dtype=np.uint8)).convert(mode).save(tmp_path / "a.png")
            expected = [[order.index(value) for value in values]]
            assert read_mask(tmp_path / "a.png", colours, reserved=[255]).tolist() == expected

    def test_greys_that_are_no_numbers(self, tmp_path):
        """Tools that make files smaller turn colours into greys where an image has no other."""
        Image.fromarray(np.array([[0, 128, 128]], dtype=np.uint8)).save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png", COLOURS, reserved=[255]).tolist() == [[255, 0, 0]]
        Image.fromarray(np.array([[0, 77]], dtype=np.uint8)).save(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"\(77, 77, 77\), at row 0 and column 1"):
            read_mask(tmp_path / "a.png", {(0, 0, 0): 0, (255, 255, 255): 1})

    def test_reserved_indices_of_a_palette(self, tmp_path):
        """VOC's 255 has a colour of its own, which no list of classes names."""
        numbers = np.array([[0, 1, 255]], dtype=np.uint8)
        indexed(numbers).save(tmp_path / "a.png")
        colours = {colour: n for n, colour in enumerate(voc_colours(3))}
        with pytest.raises(DataError, match=r"\(224, 224, 192\).*row 0 and column 2"):
            read_mask(tmp_path / "a.png", colours)
        assert read_mask(tmp_path / "a.png", colours, reserved=[255]).tolist() == numbers.tolist()

    @given(
        numbers=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=1), min_size=1, max_size=30),
        table=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=5, max_size=5, unique=True),
        order=st.permutations(range(5)),
    )
    def test_any_colours(self, numbers, table, order, tmp_path_factory):
        path = tmp_path_factory.getbasetemp() / "colours.png"
        colours = {table[n]: n for n in order}
        painted(np.array(numbers, dtype=np.uint8), colours=colours).save(path)
        assert read_mask(path, colours).tolist() == numbers

    @pytest.mark.parametrize(
        ("name", "image", "colours", "message"),
        [
            ("a.png", None, None, "no such label image: {path}"),
            ("a.png", painted(), None, "{path} is a colour image (RGB), (128, 128, 128) at its upper left; label"),
            ("a.png", painted(mode="RGBA"), None, "{path} is a colour image (RGBA), (128, 128, 128, 255) at"),
            ("a.png", painted(colours={**COLOURS, (1, 2, 3): 1}), COLOURS, "{path} has the colour (1, 2, 3), at row 0"),
            ("a.png", indexed(), COLOURS, "{path} has the colour (0, 0, 0), at row 0"),
            ("a.jpg", Image.fromarray(NUMBERS), None, "{path} is a JPEG, which changes values; label images are PNGs"),
            ("a.jpg", painted(), COLOURS, "{path} is a JPEG"),
        ],
    )
    def test_exception(self, name, image, colours, message, tmp_path):
        path = tmp_path / name
        if colours is not None:
            colours = {colour: number for colour, number in colours.items() if colour != VOID or image.mode != "P"}
        if image is not None:
            image.save(path)
        with pytest.raises(DataError) as error:
            read_mask(path, colours)
        assert message.format(path=path) in str(error.value)

    def test_damaged(self, tmp_path):
        painted(np.zeros((90, 90), dtype=np.uint8)).save(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        for content in (data[: len(data) // 2], b"", b"hello"):
            (tmp_path / "a.png").write_bytes(content)
            with pytest.raises(DataError, match=r"a\.png"):
                read_mask(tmp_path / "a.png")


class TestMaskFiles:
    def files(self, folder, mask, **arguments):
        Image.new("RGB", (3, 2)).save(folder / "a.jpg")
        mask.save(folder / "a.png")
        return MaskFiles([folder / "a.jpg"], [folder / "a.png"], 2, **arguments)

    def test_feature(self, tmp_path):
        sample = self.files(tmp_path, Image.fromarray(NUMBERS), transform=lambda s: s | {"seen": True})[0]
        assert sample["mask"].tolist() == NUMBERS.tolist()
        assert sample["image"].shape == (3, 2, 3)
        assert sample["seen"]
        assert sample["meta"] == {"path": str(tmp_path / "a.jpg")}

    @pytest.mark.parametrize(("ignore_index", "ignore_label"), [(255, None), (7, 255), (0, 255), (-100, 255)])
    def test_ignored(self, ignore_index, ignore_label, tmp_path):
        data = self.files(tmp_path, Image.fromarray(NUMBERS), ignore_index=ignore_index, ignore_label=ignore_label)
        expected = np.where(NUMBERS == 255, ignore_index, NUMBERS.astype(int))
        assert data[0]["mask"].tolist() == expected.tolist()

    def test_colours(self, tmp_path):
        data = self.files(tmp_path, painted(), colours={SKY: 0, ROAD: 1, VOID: 9}, ignore_index=9)
        assert data[0]["mask"].tolist() == np.where(NUMBERS == 255, 9, NUMBERS).tolist()

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (
                Image.fromarray(NUMBERS + 1),
                "{path} has class 2, but there are 2 classes, from 0; it is at row 0 and column 2",
            ),
            (Image.fromarray(NUMBERS.astype(np.uint16) + 300), "{path} has class 300, but there are 2 classes"),
            (Image.fromarray(NUMBERS.T.copy()), "a.jpg is 2x3, but its label image {path} is 3x2"),
            (painted(), "{path} is a colour image (RGB), (128, 128, 128) at"),
        ],
    )
    def test_exception(self, image, message, tmp_path):
        data = self.files(tmp_path, image)
        with pytest.raises(DataError) as error:
            data[0]
        assert message.format(path=tmp_path / "a.png") in str(error.value)
        (tmp_path / "a.png").unlink()
        with pytest.raises(DataError, match=r"label image.*a\.png"):
            data[0]
        with pytest.raises(ValueError, match="2 files, but 1 masks"):
            MaskFiles(["a", "b"], ["a"], 2)

    def test_negative_numbers(self, tmp_path):
        Image.new("RGB", (3, 1)).save(tmp_path / "a.jpg")
        Image.fromarray(np.array([[0, -3, 1]], dtype=np.int32)).save(tmp_path / "a.tif")
        data = MaskFiles([tmp_path / "a.jpg"], [tmp_path / "a.tif"], 2)
        with pytest.raises(DataError, match=r"class -3.*row 0 and column 1"):
            data[0]


def make_pairs(root, mask=None, names=("a/0", "b/0", "b/1"), splits=("train", "val")):
    for split in splits:
        for name in names:
            for folder, image in ((split, Image.new("RGB", (3, 2))), (f"{split}_labels", mask or painted())):
                path = root / folder / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return root


class TestSegmentationFolderData:
    @pytest.fixture
    def classes(self, tmp_path):
        path = tmp_path / "classes.yaml"
        path.write_text("classes:\n  sky: [128, 128, 128]\n  road: '#800040'\nignore: [[0, 0, 0]]\n")
        return str(path)

    def test_classes_from_a_file(self, classes, tmp_path):
        """Names and colours; subfolders keep images of the same name apart; another number to ignore pads batches."""
        root = make_pairs(tmp_path / "data")
        Image.new("RGB", (4, 2)).save(root / "val/b/1.png")
        painted(np.ones((2, 4), dtype=np.uint8)).save(root / "val_labels/b/1.png")
        data = SegmentationFolderData(str(root), 3, 0, 2, classes=classes, ignore_index=9)
        assert data.class_names == ("sky", "road")
        assert data.class_colours == (SKY, ROAD)
        data.setup()
        batch = next(iter(data.val_dataloader()))
        expected = np.where(NUMBERS == 255, 9, NUMBERS)
        assert batch.mask[0].tolist() == np.pad(expected, ((0, 0), (0, 1)), constant_values=9).tolist()
        assert batch.mask[2].unique().tolist() == [1]
        assert pickle.loads(pickle.dumps(data.splits["train"][0]["mask"])).shape == (2, 3), "for workers"

    @pytest.mark.parametrize(
        ("values", "arguments", "expected"),
        [
            ((0, 255), {"values": [0, 255]}, [0, 1, 1]),
            ((0, 255), {"values": [255, 0], "class_names": ["thing", "rest"]}, [1, 0, 0]),
            ((0, 200), {"values": [0, 200], "num_classes": 2, "ignore_index": -100}, [0, 1, 1]),
        ],
    )
    def test_values(self, values, arguments, expected, tmp_path):
        root = make_pairs(tmp_path, Image.fromarray(np.array([[values[0], *values[1:] * 2]] * 2, dtype=np.uint8)))
        data = SegmentationFolderData(str(root), 3, 0, **arguments)
        data.setup("fit")
        assert data.splits["train"][0]["mask"].tolist() == [expected] * 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"values": [0, 255], "num_classes": 3}, r"\[0, 255\] are 2, but there are 3 classes"),
            ({"values": [0, 256]}, "has 256"),
            ({"values": [0, 0]}, "occurs twice"),
            ({"values": [0, 255], "ignore_label": 255}, "ignore_label 255"),
        ],
    )
    def test_exception_of_values(self, arguments, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            SegmentationFolderData(str(tmp_path), **arguments)

    def test_two_classes_of_which_one_is_ignored(self, tmp_path):
        """0 and 255: training is refused, evaluation warns, and a split without a labelled pixel is refused."""
        root = make_pairs(tmp_path, Image.fromarray(np.array([[0, 0, 255], [0, 0, 0]], dtype=np.uint8)))
        with pytest.raises(DataError, match=r"train .*class 0 and pixels of 255.*of the 2 classes.*--data.values"):
            SegmentationFolderData(str(root), num_classes=2, ignore_label=255).setup("fit")
        with pytest.warns(UserWarning, match=r"val .*class 0 and pixels of 255.*--data.values"):
            SegmentationFolderData(str(root), num_classes=2, ignore_label=255).setup("validate")
        for path in (root / "val_labels").rglob("*.png"):
            Image.new("L", (3, 2), 255).save(path)
        with pytest.raises(DataError, match=r"3 label images of val .*no labelled pixel.*255"):
            SegmentationFolderData(str(root), num_classes=2, ignore_label=255).setup("validate")

    def test_what_the_labels_hold_is_told(self, tmp_path, caplog):
        root = make_pairs(tmp_path, Image.fromarray(np.array([[0, 255, 255], [1, 255, 255]], dtype=np.uint8)))
        with pytest.warns(UserWarning, match="67% of the pixels in the 3 label images of"), caplog.at_level("INFO"):
            SegmentationFolderData(str(root), class_names=["a", "b", "c", "d"]).setup("fit")
        assert "train that were looked at do not have 2 of the 4 classes: c, d" in caplog.text

    def test_other_names_of_splits(self, tmp_path):
        root = make_pairs(tmp_path, indexed(), splits=("Training", "valid", "test"))
        (root / "valid_labels").rename(root / "val_labels")
        shutil.rmtree(root / "test_labels")
        data = SegmentationFolderData(str(root), num_classes=2, num_workers=0)
        data.setup()
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 3}
        with pytest.raises(DataError, match="no test_labels beside it"):
            data.test_dataloader()

    def test_names_alone(self, tmp_path):
        (tmp_path / "classes.json").write_text('["sky", "road"]')
        root = make_pairs(tmp_path / "data", indexed())
        data = SegmentationFolderData(str(root), 3, 0, 2, classes=str(tmp_path / "classes.json"), num_classes=2)
        data.setup()
        assert data.class_colours is None
        assert data.splits["train"][0]["mask"].tolist() == NUMBERS.tolist()

    def test_exception(self, classes, tmp_path):
        root = make_pairs(tmp_path / "data")
        for arguments, message in (
            ({}, r"the number of classes is missing; give num_classes \(--data.num_classes\), class_names"),
            ({"classes": classes, "class_names": ["a"]}, "both given; one is enough"),
            ({"classes": classes, "num_classes": 3}, "num_classes is 3, but there are 2 names"),
            ({"class_names": ["a"], "num_classes": 3}, "num_classes is 3, but there are 1 names"),
            ({"classes": str(tmp_path / "nowhere.yaml")}, "no such file of classes: .*nowhere.yaml"),
        ):
            with pytest.raises(ValueError, match=message):
                SegmentationFolderData(str(root), **arguments)
        painted(colours=COLOURS | {(9, 9, 9): 1}).save(root / "train_labels/b/0.png")
        data = SegmentationFolderData(str(root), 3, 0, 2, classes=classes)
        data.setup()
        with pytest.raises(DataError, match=r"train_labels/b/0.png.*\(9, 9, 9\).*row 0 and column 2"):
            data.splits["train"][1]
        painted().save(root / "val_labels/b/0.bmp")
        with pytest.raises(DataError, match=r"b/0.bmp.*b/0.png"):
            SegmentationFolderData(str(root), classes=classes)
        (root / "train_labels/b/1.png").unlink()
        with pytest.raises(DataError, match=r"1 of the 3 images in .*train.*train_labels, such as b/1.png"):
            SegmentationFolderData(str(root), classes=classes)


def make_voc(root):
    """Three images, of which the last has a label in the larger set alone."""
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for n in range(3):
        Image.new("RGB", (3, 2)).save(root / f"JPEGImages/2007_{n}.jpg")
        if n < 2:
            indexed().save(root / f"SegmentationClass/2007_{n}.png")
        else:
            Image.fromarray(np.full((2, 3), 20, dtype=np.uint8)).save(root / f"SegmentationClassAug/2007_{n}.png")
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("2007_0\n")
    (lists / "val.txt").write_text("2007_1\n\n")
    (lists / "trainval.txt").write_text("2007_0\n2007_1\n")
    (lists / "train_aug.txt").write_text(
        "2007_0\n/JPEGImages/2007_2.jpg /SegmentationClassAug/2007_2.png\n",
    )
    return root


class TestVOCSegmentationData:
    def files(self, data, split):
        return [path.stem for path in data.splits[split].files]

    def test_feature(self, tmp_path):
        data = VOCSegmentationData(str(make_voc(tmp_path)), 1, 0, 2)
        data.setup()
        assert data.class_names == class_names("voc")
        assert data.class_colours[15] == (192, 128, 128)
        assert (self.files(data, "train"), self.files(data, "val")) == (["2007_0"], ["2007_1"])
        assert "test" not in data.splits
        batch = next(iter(data.val_dataloader()))
        assert batch.mask[0].tolist() == NUMBERS.tolist(), "the index is the class, 255 stays"

    def test_the_larger_set(self, tmp_path):
        data = VOCSegmentationData(str(make_voc(tmp_path)), 1, 0, 2, train_list="train_aug", ignore_index=30)
        data.setup()
        assert self.files(data, "train") == ["2007_0", "2007_2"]
        masks = [sample["mask"] for sample in data.splits["train"]]
        assert masks[0].tolist() == np.where(NUMBERS == 255, 30, NUMBERS).tolist()
        assert masks[1].unique().tolist() == [20]

    def test_images_in_two_splits_are_told_of(self, tmp_path, caplog):
        data = VOCSegmentationData(str(make_voc(tmp_path)), 1, 0, 2, train_list="trainval")
        with caplog.at_level("INFO"):
            data.setup()
        assert "1 of the 1 val images are in train, too" in caplog.text

    def test_test_labels(self, tmp_path):
        """VOC keeps its own; a set in its layout may have them."""
        root = make_voc(tmp_path)
        (root / "ImageSets/Segmentation/test.txt").write_text("2007_2\n")
        assert list(VOCSegmentationData(str(root))._pairs) == ["train", "val"]
        indexed().save(root / "SegmentationClass/2007_2.png")
        data = VOCSegmentationData(str(root), 1, 0, 2)
        data.setup()
        assert self.files(data, "test") == ["2007_2"]

    def test_other_classes(self, tmp_path):
        data = VOCSegmentationData(str(make_voc(tmp_path)), 1, 0, 2, class_names=["none", "plane"])
        data.setup()
        assert data.class_colours == ((0, 0, 0), (128, 0, 0))
        assert data.num_classes == 2

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"folder.*JPEGImages"):
            VOCSegmentationData(str(tmp_path))
        root = make_voc(tmp_path)
        with pytest.raises(DataError, match=r"trainaug.txt.*train, train_aug, trainval, val"):
            VOCSegmentationData(str(root), train_list="trainaug")
        lists = root / "ImageSets/Segmentation"
        for text, message in (
            ("2007_2\n", r"1 images of .*train\.txt have no label image in SegmentationClass, such as 2007_2"),
            ("2007_0\n2008_1\n", r"train\.txt names 1 images that are not in JPEGImages, such as '2008_1'"),
            ("\n", r"train\.txt names no image"),
        ):
            (lists / "train.txt").write_text(text)
            with pytest.raises(DataError, match=message):
                VOCSegmentationData(str(root))
        (lists / "train.txt").write_text("2007_0\n")
        Image.fromarray(NUMBERS + 21).save(root / "SegmentationClass/2007_0.png")
        data = VOCSegmentationData(str(root), 1, 0, 2)
        data.setup()
        with pytest.raises(DataError, match=r"2007_0.png.*class 21.*21 classes"):
            data.splits["train"][0]
