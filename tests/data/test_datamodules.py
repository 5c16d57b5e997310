"""The data modules: splits, storage, and broken folders."""

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from kornia_mvit import Batch, Preprocess
from kornia_mvit.data.datamodules import DigitsData, FolderData, storage_transform
from kornia_mvit.data.datasets import DataError, read_image


def make_folder(root, classes=("cat", "dog"), count=4, size=(50, 40), suffix="png"):
    """Images of two sizes, upright and lying, each of a grey of its own."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shade = 20 * k + i
            Image.new("RGB", size if i % 2 else size[::-1], (shade,) * 3).save(root / name / f"{i}.{suffix}")
    return root


class TestStorageTransform:
    @pytest.mark.parametrize("shape", [(427, 640), (640, 427), (300, 300), (100, 333), (50, 45)])
    @pytest.mark.parametrize(
        "record", [Preprocess(144, crop=128), Preprocess(96, crop=(80, 96)), Preprocess(64), Preprocess((40, 60))]
    )
    def test_evaluation_from_storage_equals_evaluation_of_the_original(self, shape, record):
        image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
        stored = storage_transform(record).module().geometry(image)
        assert stored.dtype == torch.uint8
        expected = record.module()(image)
        if record.output_size is None:  # the square of the shorter side is what storage keeps
            side = min(expected.shape[-2:])
            expected = Preprocess(None, crop=side).module()(expected)
        assert torch.equal(record.module()(stored), expected)

    def test_a_larger_storage_keeps_more_detail(self):
        image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
        assert storage_transform(Preprocess(64), 200).module().geometry(image).shape == (3, 200, 200)

    def test_exception(self):
        with pytest.raises(ValueError, match="give storage_size, or a Preprocess with a size"):
            storage_transform(Preprocess(None))


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

    def test_images_of_several_sizes_make_one_batch(self, tmp_path):
        data = FolderData(str(make_folder(tmp_path)), batch_size=3, storage_size=24, num_workers=0)
        data.setup()
        batch = next(iter(data.train_dataloader()))
        assert batch.image.shape == (3, 3, 24, 24)
        for image, label, meta in zip(batch.image, batch.label, batch.meta, strict=True):
            assert image.unique().tolist() == [int(read_image(meta["path"])[0, 0, 0])]
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
        assert task.shape[-2:] == (36, 36)

    def test_an_incomplete_training_batch_is_left_out(self, tmp_path):
        make_folder(tmp_path, count=5)
        for batch_size, lengths in {3: [3, 3], 64: [8]}.items():
            data = FolderData(str(tmp_path), batch_size=batch_size, num_workers=0)
            data.setup()
            assert [len(batch) for batch in data.train_dataloader()] == lengths

    @pytest.mark.parametrize(
        ("prepare", "message"),
        [
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
        with pytest.raises(ValueError, match=r"val_fraction 1\.0 is not between"):
            FolderData(str(tmp_path), val_fraction=1.0)
        with pytest.raises(ValueError, match="batch_size 0"):
            FolderData(str(tmp_path), batch_size=0)
        data = FolderData(str(tmp_path))
        data.setup()
        with pytest.raises(DataError, match="no test split; add a folder named test, or run validate"):
            data.test_dataloader()

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_unreadable_image_is_named(self, workers, tmp_path):
        make_folder(tmp_path)
        for path in tmp_path.rglob("*.png"):
            path.write_bytes(b"not an image")
        data = FolderData(str(tmp_path), num_workers=workers)
        data.setup()
        with pytest.raises(DataError, match=r"not an image, .*\.png"):
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
        with pytest.raises(DataError, match=r"class 'dog' of train in .* has no image that can be read"):
            FolderData(str(tmp_path), on_error="skip").setup()
