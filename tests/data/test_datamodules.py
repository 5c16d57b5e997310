"""The data modules: splits, storage, and broken folders."""

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from kornia_mvit import Batch, Preprocess
from kornia_mvit.data.reading import DataError, read_image
from kornia_mvit.training.datamodules import DigitsData, FolderData, SegmentationFolderData, VOCData
from tests.tester import raises_at_workers


def make_folder(root, classes=("cat", "dog"), count=4, size=(50, 40), suffix="png"):
    """Images of two sizes, upright and lying, each of a grey of its own."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shade = 20 * k + i
            Image.new("RGB", size if i % 2 else size[::-1], (shade,) * 3).save(root / name / f"{i}.{suffix}")
    return root


@pytest.fixture(scope="module")
def digits():
    data = DigitsData(storage_size=16)
    data.setup()
    return data


class TestDigitsData:
    def test_cardinality(self, digits):
        assert digits.num_classes == 10
        assert digits.class_names == tuple("0123456789")
        assert {name: len(split) for name, split in digits.splits.items()} == {"train": 1257, "val": 180, "test": 360}

    def test_splits_share_no_image(self, digits):
        numbers = [sample["meta"]["id"] for split in digits.splits.values() for sample in split]
        assert sorted(numbers) == list(range(1797))

    def test_splits_have_every_class(self, digits):
        for split in digits.splits.values():
            counts = torch.bincount(torch.stack([sample["label"] for sample in split]))
            assert counts.min() > 0.08 * counts.sum()

    def test_another_seed_splits_otherwise(self, digits):
        def ids(seed):
            other = DigitsData(storage_size=16, seed=seed)
            other.setup()
            return [sample["meta"]["id"] for sample in other.splits["test"]]

        assert ids(0) == [sample["meta"]["id"] for sample in digits.splits["test"]]
        assert ids(0) != ids(1)

    def test_loader(self, digits):
        batch = next(iter(digits.val_dataloader()))
        assert isinstance(batch, Batch)
        assert batch.image.shape == (64, 3, 16, 16)
        assert batch.image.dtype == torch.uint8
        assert batch.image.max() > 240


class TestFolderData:
    def test_one_folder_is_split_by_class_and_seed(self, tmp_path):
        make_folder(tmp_path, count=10)

        def split(seed):
            data = FolderData(str(tmp_path), val_fraction=0.3, seed=seed, num_workers=0)
            data.setup()
            return {name: {str(file) for file in part.files} for name, part in data.splits.items()}, data

        first, data = split(0)
        assert data.class_names == ("cat", "dog")
        assert {name: len(files) for name, files in first.items()} == {"train": 14, "val": 6}
        assert not first["train"] & first["val"]
        assert sum("cat" in file for file in first["val"]) == 3
        assert split(0)[0] == first
        assert split(1)[0] != first

    def test_given_splits_are_kept(self, tmp_path):
        for name, count in {"train": 4, "val": 2, "test": 3}.items():
            make_folder(tmp_path / name, count=count)
        data = FolderData(str(tmp_path), num_workers=0)
        data.setup()
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 4, "test": 6}
        assert sum(len(batch) for batch in data.test_dataloader()) == 6

    def test_storage_size_is_for_training(self, tmp_path):
        """Evaluation sees what the task's Preprocess makes of the file, and nothing that was resized twice."""

        class Task(pl.LightningModule):
            preprocess = Preprocess(32, crop=24)

        data = FolderData(str(make_folder(tmp_path, size=(90, 80))), storage_size=48, num_workers=0)
        data.trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        data.trainer.strategy.connect(Task())
        data.setup()
        assert min(data.splits["train"][0]["image"].shape[1:]) == 48
        assert min(data.splits["val"][0]["image"].shape[1:]) == 32

    def test_images_of_several_sizes_make_one_batch(self, tmp_path):
        data = FolderData(str(make_folder(tmp_path)), batch_size=3, storage_size=24, num_workers=0)
        data.setup()
        batch = next(iter(data.train_dataloader()))
        assert batch.image.shape == (3, 3, 30, 30), "50 x 40 and 40 x 50 at a shorter side of 24"
        for image, (height, width), label, meta in zip(batch.image, batch.size, batch.label, batch.meta, strict=True):
            assert sorted([int(height), int(width)]) == [24, 30]
            assert image[:, :height, :width].unique().tolist() == [int(read_image(meta["path"])[0, 0, 0])]
            assert int(image.sum()) == int(image[:, :height, :width].sum()), "the rest is zero"
            assert data.class_names[int(label)] in meta["path"]

    def test_storage_is_what_the_task_asks_for(self, tmp_path):
        class Task(pl.LightningModule):
            preprocess = Preprocess(36, crop=32)

            def validation_step(self, batch, index):
                self.shape = batch.image.shape

        task, data = Task(), FolderData(str(make_folder(tmp_path / "data")), num_workers=0)
        pl.Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False).validate(
            task, data, verbose=False
        )
        assert sorted(task.shape[-2:]) == [36, 45]

    def test_an_incomplete_training_batch_is_left_out(self, tmp_path):
        make_folder(tmp_path, count=5)
        for batch_size, lengths in {3: [3, 3], 64: [8]}.items():
            data = FolderData(str(tmp_path), batch_size=batch_size, num_workers=0)
            data.setup()
            assert [len(batch) for batch in data.train_dataloader()] == lengths

    @pytest.mark.parametrize(
        ("folders", "expected"),
        [
            (("Training", "valid", "TEST"), {"train": 8, "val": 8, "test": 8}),
            (("train", "Val", "notes"), {"train": 8, "val": 8}),
            (("TRAIN", "validation"), {"train": 8, "val": 8}),
            (("Training",), {"train": 6, "val": 2}),
        ],
    )
    def test_other_names_of_splits(self, folders, expected, tmp_path, caplog):
        for folder in folders:
            make_folder(tmp_path / folder, count=4)
        (tmp_path / folders[0] / "cat" / "about.txt").write_text("cats")
        data = FolderData(str(tmp_path), num_workers=0)
        with caplog.at_level("INFO"):
            data.setup()
        assert {name: len(split) for name, split in data.splits.items()} == expected
        assert data.class_names == ("cat", "dog")
        assert "1 .txt" in caplog.text
        for folder in folders:
            told = f"{folder} for" if folder != "notes" else "left out: notes"
            assert folder == "train" or told in caplog.text

    def test_classes_that_are_called_as_splits(self, tmp_path):
        make_folder(tmp_path, ("train", "bus"), count=4)
        assert FolderData(str(tmp_path)).class_names == ("bus", "train")

    def test_test_images_without_folders(self, tmp_path):
        """Such as those of competitions, which have no labels: they do not stop training."""
        make_folder(tmp_path / "train", count=4)
        make_folder(tmp_path, ("test",), count=4)
        data = FolderData(str(tmp_path), num_workers=0)
        data.setup()
        assert sorted(data.splits) == ["train", "val"]
        with pytest.raises(DataError, match="test has no folder for each class"):
            data.test_dataloader()

    def test_what_is_hidden_and_where_links_lead(self, tmp_path):
        root = make_folder(tmp_path / "data", count=4)
        (tmp_path / "far").mkdir()
        for n, suffix in enumerate(("JPG", "jfif", "JPEG", "Png")):
            Image.new("RGB", (40, 40)).save(tmp_path / "far" / f"{n}.{suffix}")
        (root / "cat" / "more").symlink_to(tmp_path / "far")
        (root / "cat" / "more" / "back").symlink_to(root / "cat")
        (root / "cat" / "up").symlink_to(root)  # which would make all dogs cats
        for place in ("cat/.ipynb_checkpoints/0-checkpoint.png", ".ipynb_checkpoints/1.png", "dog/._0.png"):
            (root / place).parent.mkdir(exist_ok=True)
            (root / place).write_bytes(b"no image")
        data = FolderData(str(root), num_workers=0)
        data.setup()
        assert data.class_names == ("cat", "dog")
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "val": 3}
        assert len([sample for split in data.splits.values() for sample in split]) == 12

    @pytest.mark.parametrize(
        ("prepare", "message"),
        [
            (
                lambda root: [make_folder(root / name) for name in ("train", "val", "Valid")],
                "{root} has Valid and val, which both stand for val",
            ),
            (
                lambda root: [make_folder(root / name) for name in ("valid", "test")],
                "{root} has test, valid, but no train",
            ),
            (lambda root: make_folder(root, ("train", "val")), "{root} has train, val, but no train folder with"),
            (
                lambda root: [make_folder(root / "train"), make_folder(root, ("val",))],
                "{root}/val has 4 images but no folders",
            ),
            (lambda root: None, "no such folder: {root}; root (--data.root) is the folder with your images"),
            (lambda root: make_folder(root, ("cat",)), "{root} has one class folder, 'cat'; classification needs two"),
            (lambda root: root.mkdir(), "{root} is empty: it needs a folder for each class"),
            (lambda root: (make_folder(root) / "emu").mkdir(), "no image in {root}/emu"),
            (lambda root: make_folder(root, count=1), "class 'cat' in {root} has one image, too few"),
            (
                lambda root: (make_folder(root / "train"), make_folder(root / "val", ("cat", "cow"))),
                "train and val in {root} differ in the classes cow, dog",
            ),
        ],
    )
    def test_exception(self, prepare, message, tmp_path):
        root = tmp_path / "data"
        prepare(root)
        with pytest.raises(DataError) as error:
            FolderData(str(root))
        assert message.format(root=root) in str(error.value)

    def test_exception_of_arguments(self, tmp_path):
        make_folder(tmp_path)
        with pytest.raises(ValueError, match="available: 'raise', 'skip'"):
            FolderData(str(tmp_path), on_error="ignore")
        with pytest.raises(ValueError, match=r"val_fraction 1\.1"):
            FolderData(str(tmp_path), val_fraction=1.1)
        with pytest.raises(ValueError, match="batch_size 0"):
            FolderData(str(tmp_path), batch_size=0)
        data = FolderData(str(tmp_path))
        data.setup()
        with pytest.raises(DataError, match="test split; add a folder named test, or run validate"):
            data.test_dataloader()

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_unreadable_image_is_named(self, workers, tmp_path):
        make_folder(tmp_path)
        for path in tmp_path.rglob("*.png"):
            path.write_bytes(b"not an image")
        data = FolderData(str(tmp_path), num_workers=workers)
        data.setup()
        with raises_at_workers(DataError, match=r"not an image, .*\.png"):
            next(iter(data.train_dataloader()))

    def test_unreadable_images_are_skipped_counted_and_listed(self, tmp_path, caplog):
        make_folder(tmp_path, count=6)
        bad = [tmp_path / "cat" / "2.png", tmp_path / "dog" / "5.png"]
        for path in bad:
            path.write_bytes(path.read_bytes()[:40])
        data = FolderData(str(tmp_path), num_workers=0, on_error="skip")
        with caplog.at_level("INFO"):
            data.setup()
            data.setup()
        assert sorted(data.skipped) == bad
        assert sum(len(split) for split in data.splits.values()) == 10
        assert caplog.text.count("skipped 2 of 12 images") == 1
        assert all(str(path) in caplog.text for path in bad)
        assert sum(len(batch) for batch in data.val_dataloader()) + len(data.splits["train"]) == 10

    def test_a_class_with_no_readable_image(self, tmp_path):
        make_folder(tmp_path)
        for path in (tmp_path / "dog").iterdir():
            path.write_bytes(b"")
        with pytest.raises(DataError, match=r"'dog' of train"):
            FolderData(str(tmp_path), on_error="skip").setup()


def make_voc(root, objects=(("cat", 3, 5, 20, 25), ("dog", 10, 10, 30, 28)), splits=("train", "val")):
    """Four images of 40 x 30, each with the objects, and one without any."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (40, 30), (20 * i,) * 3).save(root / "JPEGImages" / f"{i}.png")
        items = "".join(
            f"<object><name>{n}</name><difficult>{int(n == 'dog')}</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{r}</xmax><ymax>{b}</ymax></bndbox></object>"
            for n, x, y, r, b in (objects if i else ())
        )
        size = "<size><width>40</width><height>30</height></size>"
        (root / "Annotations" / f"{i}.xml").write_text(f"<annotation>{size}{items}</annotation>")
    for split in splits:
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(5)))
    return root


class TestVOCData:
    def test_feature(self, tmp_path):
        """Boxes count from 1 with the last pixel named; storage scales them; images without one stay."""
        data = VOCData(str(make_voc(tmp_path)), batch_size=5, num_workers=0, storage_size=60)
        data.setup()
        batch = next(iter(data.val_dataloader()))
        assert data.class_names == ("cat", "dog")
        assert batch.image.shape == (5, 3, 60, 80)
        assert batch.box_label.tolist() == [[-1, -1]] + [[0, 1]] * 4
        assert batch.boxes[1].tolist() == [[4.0, 8.0, 40.0, 50.0], [18.0, 18.0, 60.0, 56.0]]
        assert batch.box_ignore[1].tolist() == [False, True]
        assert batch.original_size.tolist() == [[30, 40]] * 5

    def test_bad_boxes_are_listed(self, tmp_path):
        bad = (("cat", 5, 5, 5, 9), ("cat", 50, 5, 60, 9), ("bird", 1, 1, 9, 9), ("cat", "nan", 1, 9, 9))
        make_voc(tmp_path, (("cat", 1, 1, 50, 30), *bad), splits=("train", "val", "test"))
        data = VOCData(str(tmp_path), num_workers=0, class_names=["cat"])
        assert len(data.bad_boxes) == 16
        reasons = [reason.split(": ")[1] for reason in data.bad_boxes if reason.startswith("1.xml")]
        assert [reason.split(") ")[-1] for reason in reasons] == [
            "has no area",
            "lies outside the image",
            "is of the unknown class bird",
            "is incomplete",
        ]
        data.setup()
        sample = data.splits["test"][1]
        assert sample["boxes"].tolist() == [[0.0, 0.0, sample["image"].shape[2], 30.0]], "clipped to the image"
        with pytest.raises(DataError, match=r"16 boxes in .*:\n1.xml: cat"):
            VOCData(str(tmp_path), class_names=["cat"], on_bad_box="raise")

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"train.txt in .*root.*no image"):
            VOCData(str(tmp_path))
        with pytest.raises(ValueError, match="on_bad_box 'keep'"):
            VOCData(str(tmp_path), on_bad_box="keep")
        make_voc(tmp_path, ())
        with pytest.raises(DataError, match="train images"):
            VOCData(str(tmp_path))
        (tmp_path / "Annotations" / "2.xml").write_text("<annotation>")
        with pytest.raises(DataError, match=r"annotation.*2.xml"):
            VOCData(str(tmp_path), class_names=["cat"])
        (tmp_path / "JPEGImages" / "2.png").unlink()
        with pytest.raises(DataError, match=r"1 images.*JPEGImages, such as '2'"):
            VOCData(str(tmp_path), class_names=["cat"])

    def test_names_with_spaces(self, tmp_path):
        """And lists that tell whether an image has a class."""
        make_voc(tmp_path)
        for folder, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
            (tmp_path / folder / f"1.{suffix}").rename(tmp_path / folder / f"a b  1.{suffix}")
        lists = tmp_path / "ImageSets" / "Main"
        (lists / "train.txt").write_text("\ufeffa b  1\n2  1\r\n 3 -1\n", encoding="utf-8")
        (lists / "val.txt").write_text("a b  1 -1\n2.png\n0\n")
        data = VOCData(str(tmp_path), num_workers=0)
        data.setup()
        for split, names in (("train", ["a b  1", "2", "3"]), ("val", ["a b  1", "2", "0"])):
            assert [path.stem for path in data.splits[split].files] == names
            assert [len(sample["boxes"]) for sample in data.splits[split]] == [2, 2, 2 if split == "train" else 0]

    @pytest.mark.parametrize("lost", ["JPEGImages/4.png", "Annotations/4.xml"])
    def test_test_images_that_are_missing(self, lost, tmp_path, caplog):
        """As VOC 2012 has a list of test images, and not the images: they matter to ``test`` alone."""
        make_voc(tmp_path, splits=("test",))
        for name in ("train", "val"):
            (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text("1\n2\n")
        (tmp_path / lost).unlink()
        data = VOCData(str(tmp_path), num_workers=0)
        with caplog.at_level("INFO"):
            data.setup("fit")
        assert "test is left out" in caplog.text
        with pytest.raises(DataError, match=r"4"):
            data.test_dataloader()

    def test_annotations_that_would_expand_are_refused(self, tmp_path):
        make_voc(tmp_path)
        bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
        (tmp_path / "Annotations" / "1.xml").write_text(bomb)
        with pytest.raises(DataError, match=r"1.xml.*EntitiesForbidden"):
            VOCData(str(tmp_path))


def make_masks(root, mode="L"):
    """Three images of 40 x 30 for each split, the left half of class 1, a corner of class 11."""
    for split in ("train", "val"):
        for folder in (split, f"{split}_labels"):
            (root / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 30), (20 * i,) * 3).save(root / split / f"{i}.jpg")
            mask = Image.new("L", (40, 30), 0)
            mask.paste(1, (0, 0, 20, 30))
            mask.paste(11, (0, 0, 4, 4))
            if mode == "P":
                mask.putpalette([255 - k % 256 for k in range(768)])
            if mode == "I;16":  # little-endian
                mask = Image.frombytes(mode, mask.size, b"".join(bytes([v, 0]) for v in mask.tobytes()))
            mask.save(root / f"{split}_labels" / f"{i}.png")
    return root


class TestSegmentationFolderData:
    @pytest.mark.parametrize("mode", ["L", "P", "I;16"])
    def test_feature(self, tmp_path, mode):
        data = SegmentationFolderData(
            str(make_masks(tmp_path, mode)), 3, 0, 60, class_names=["sky", "road"], ignore_label=11
        )
        data.setup()
        assert next(iter(data.val_dataloader())).mask.shape == (3, 30, 40)  # which are scored at their own size
        batch = next(iter(data.train_dataloader()))
        assert batch.image.shape == (3, 3, 60, 80)
        assert batch.mask.shape == (3, 60, 80)
        for value, count in ((1, 40 * 60 - 64), (255, 64), (0, 40 * 60)):
            assert int((batch.mask[0] == value).sum()) == count
        assert data.num_classes == 2

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"no image in .*test_exception"):
            SegmentationFolderData(str(tmp_path))
        make_masks(tmp_path)
        with pytest.raises(ValueError, match=r"the number of classes is missing.*--data.num_classes.* 0, 1, 11"):
            SegmentationFolderData(str(tmp_path))
        data = SegmentationFolderData(str(tmp_path), num_classes=2, num_workers=0)
        data.setup()
        with pytest.raises(DataError, match=r"0.png.*class 11.*2 classes"):
            data.splits["train"][0]
        Image.new("RGB", (40, 30)).save(tmp_path / "train_labels" / "0.png")
        with pytest.raises(DataError, match=r"0.png.*RGB"):
            data.splits["train"][0]
        Image.new("L", (30, 30)).save(tmp_path / "train_labels" / "0.png")
        with pytest.raises(DataError, match=r"0.jpg.*30x40.*0.png.*30x30"):
            data.splits["train"][0]
        (tmp_path / "val_labels" / "2.png").unlink()
        with pytest.raises(DataError, match=r"1 of the 3 images in .*val.*val_labels"):
            SegmentationFolderData(str(tmp_path), num_classes=2)
        with pytest.raises(ValueError, match=r"ignore_label 1.*from 0 to 1"):
            SegmentationFolderData(str(tmp_path), num_classes=2, ignore_label=1)
        (tmp_path / "val").rename(tmp_path / "dev")
        with pytest.raises(DataError, match=r"folder: .*val; root \(--data.root\) .* train_labels"):
            SegmentationFolderData(str(tmp_path), num_classes=2)

    def test_images_stay_as_they_are_where_nothing_says_a_size(self, tmp_path):
        data = SegmentationFolderData(str(make_masks(tmp_path)), 3, 0, num_classes=12)
        data.setup()
        assert next(iter(data.train_dataloader())).image.shape == (3, 3, 30, 40)
