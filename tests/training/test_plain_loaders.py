"""Tasks with loaders of one's own: tuples of torchvision's datasets, with PyTorch's collate or Batch.collate."""

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from kornia_mvit import Batch
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import label_image
from kornia_mvit.training import ClassificationTask, DetectionTask, SegmentationTask
from tests.training.test_tasks import Tiny, trainer

SIZES = ((40, 56), (48, 40))


def pairs(count=32):
    """Dark and bright images with their classes, as a dataset of torchvision gives them after ToTensor."""
    generator = torch.Generator().manual_seed(0)
    tones = torch.randint(0, 100, (count, 3, 40, 40), generator=generator)
    return [((tone + 150 * (i % 2)) / 255, i % 2) for i, tone in enumerate(tones)]


def scenes(kind):
    """PIL images of two sizes with boxes or label images, as torchvision's datasets give them."""
    samples = [Shapes(1, size, seed=number)[0] for number, size in enumerate(SIZES)]
    for sample in samples:
        image = to_pil_image(sample["image"])
        if kind == "mask":
            yield image, label_image(sample["mask"])
        else:
            yield image, {"boxes": sample["boxes"], "labels": sample["box_label"], "image_id": 1, "area": [1.0]}


def small(task):
    torch.manual_seed(0)
    if task is DetectionTask:
        return DetectionTask(num_classes=3, image_size=64)
    if task is SegmentationTask:
        return SegmentationTask(num_classes=4, image_size=32, network=nn.Conv2d(3, 4, 1), resize_size=24)
    return ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=0.1, label_smoothing=0.0)


class TestFit:
    @pytest.mark.long
    @pytest.mark.parametrize("options", [{}, {"collate_fn": Batch.collate}, {"collate_fn": list}])
    def test_classification_learns(self, options, tmp_path):
        train, val = (DataLoader(pairs(), 8, shuffle=shuffle, **options) for shuffle in (True, False))
        run = trainer(tmp_path, max_epochs=6)
        run.fit(small(ClassificationTask), train, val)
        assert run.callback_metrics["val/accuracy"] == 1.0

    @pytest.mark.parametrize(
        ("task", "kind", "score"), [(DetectionTask, "boxes", "val/map"), (SegmentationTask, "mask", "val/miou")]
    )
    def test_detection_and_segmentation(self, task, kind, score, tmp_path):
        """Of images of two sizes; where the loader keeps images and targets apart, too."""
        data = list(scenes(kind))
        train = DataLoader(data, 2, collate_fn=Batch.collate)
        val = DataLoader(
            data, 2, collate_fn=list if kind == "mask" else lambda samples: tuple(zip(*samples, strict=True))
        )
        run = trainer(tmp_path, num_sanity_val_steps=0)
        run.fit(small(task), train, val)
        assert score in run.callback_metrics
        assert run.callback_metrics["train/loss"].isfinite()

    @pytest.mark.filterwarnings("ignore:You requested to overfit")
    @pytest.mark.parametrize("options", [{}, {"collate_fn": Batch.collate}])
    def test_overfits(self, options, tmp_path):
        """Each epoch sees the same batches, the first."""
        seen = []

        class Note(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, number):
                seen.append(batch.label.tolist())

        data = [(image, number % 2) for number, (image, _) in enumerate(pairs(12))]
        run = trainer(tmp_path, max_epochs=2, overfit_batches=2, callbacks=[Note()])
        run.fit(small(ClassificationTask), DataLoader(data, 3, shuffle=True, **options), DataLoader(data, 3, **options))
        assert seen == [[0, 1, 0], [1, 0, 1]] * 2

    @pytest.mark.parametrize(
        ("task", "target", "message"),
        [
            (ClassificationTask, 2, "label has 2.*num_classes=2"),
            (ClassificationTask, -1, "label has -1"),
            (DetectionTask, {"boxes": [[1, 2, 3, 4]], "labels": [3]}, "box_label has 3.*subtract 1"),
        ],
    )
    def test_exception_of_classes(self, task, target, message, tmp_path):
        loader = DataLoader([(torch.rand(3, 40, 40), target)] * 2, 2, collate_fn=Batch.collate)
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path).validate(small(task), loader)

    def test_exception_of_images(self, tmp_path):
        loader = DataLoader([(image * 2 - 1, label) for image, label in pairs(4)], 2)
        with pytest.raises(ValueError, match="undo the normalisation"):
            trainer(tmp_path).validate(small(ClassificationTask), loader)


class TestPredict:
    def test_after_an_error_of_another_loader(self, tmp_path):
        """Lightning changes DataLoader while a hook makes one, and leaves it so where the hook fails."""

        class Broken(pl.LightningDataModule):
            def predict_dataloader(self):
                raise OSError("no such folder")

        before = DataLoader.__init__, DataLoader.__setattr__
        for _ in range(2):
            with pytest.raises(OSError, match="no such folder"):
                trainer(tmp_path).predict(small(ClassificationTask), datamodule=Broken())
            assert before == (DataLoader.__init__, DataLoader.__setattr__)
        loader = DataLoader([image for image, _ in pairs(5)], 2)
        assert len(torch.cat(trainer(tmp_path).predict(small(ClassificationTask), loader))) == 5

    """Each image's result, in its own pixels, whatever loads it."""

    @pytest.mark.parametrize("kind", ["alone", "labelled"])
    def test_classes(self, kind, tmp_path):
        data = pairs(5)
        loader = DataLoader([image for image, _ in data] if kind == "alone" else data, 2)
        task = small(ClassificationTask)
        found = torch.cat(trainer(tmp_path).predict(task, loader))
        images = torch.stack([image for image, _ in data])
        with torch.no_grad():
            torch.testing.assert_close(found, task.eval()(task.preprocess.module()(images)))

    @pytest.mark.parametrize("alone", [True, False])
    def test_boxes(self, alone, tmp_path):
        data = list(scenes("boxes"))
        loader = DataLoader([image for image, _ in data] if alone else data, 2, collate_fn=Batch.collate)
        task = small(DetectionTask)
        ((first, second),) = trainer(tmp_path).predict(task, loader)
        for one, (height, width) in zip((first, second), SIZES, strict=True):
            assert len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) > 0
            assert (one["boxes"] >= 0).all()
            assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
            assert one["boxes"][:, 2].max() > 32 and one["boxes"][:, 3].max() > 32

    @pytest.mark.parametrize("alone", [True, False])
    def test_label_maps(self, alone, tmp_path):
        data = list(scenes("mask"))
        loader = DataLoader([image for image, _ in data] if alone else data, 2, collate_fn=Batch.collate)
        (maps,) = trainer(tmp_path).predict(small(SegmentationTask), loader)
        assert [tuple(one.shape) for one in maps] == [*SIZES]
        assert all(one.max() < 4 for one in maps)

    def test_images_of_pillow(self, tmp_path):
        """A list of images is no pair of images and masks."""
        images = [Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), "white")]
        (found,) = trainer(tmp_path).predict(small(ClassificationTask), DataLoader(images, 2, collate_fn=Batch.collate))
        assert found.shape == (2, 2) and not torch.equal(*found)
