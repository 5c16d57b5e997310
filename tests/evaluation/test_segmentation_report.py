"""What is kept of segmented images, the numbers that follow from it, and the files of a report."""

import csv
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from kornia_mvit import Batch
from kornia_mvit.draw.images import draw_segmentation
from kornia_mvit.evaluation.segmentation import (
    SegmentationCollector,
    SegmentationEvaluation,
    bootstrap_intervals,
    segmentation_metrics,
)
from kornia_mvit.training import Report, SegmentationTask, write_report
from tests.evaluation.test_report import Page
from tests.training.shapes import ShapeData
from tests.training.test_tasks import trainer

NAMES = ("sky", "sea", "sand")


def draw(count, classes=3, seed=0, right=0.7):
    """Masks, some pixels of which are ignored, and what was predicted for them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes, (count, 12, 16), generator=generator)
    other = torch.randint(0, classes, mask.shape, generator=generator)
    prediction = mask.where(torch.rand(mask.shape, generator=generator) < right, other)
    mask[:, :2] = 255
    return mask, prediction


def count(mask, prediction, classes=3):
    known = mask != 255
    counts = torch.zeros(len(mask), classes, classes, dtype=torch.long)
    for i in range(len(mask)):
        for truth, said in zip(mask[i][known[i]].tolist(), prediction[i][known[i]].tolist(), strict=True):
            counts[i, truth, said] += 1
    return counts


def evaluate(number=7, classes=3, worst=6, step=3):
    mask, prediction = draw(number, classes)
    collector = SegmentationCollector(worst)
    for start in range(0, number, step):
        part = slice(start, start + step)
        image = torch.rand(len(mask[part]), 3, 12, 16)
        batch = Batch(image, mask=mask[part], meta=[{"path": f"a/{i}.png"} for i in range(number)[part]])
        counts = count(mask[part], prediction[part], classes)
        collector.add({"counts": counts, "prediction": prediction[part]}, batch)
    return collector.evaluation(), mask, prediction


class TestSegmentationEvaluation:
    def test_smoke(self):
        found, mask, prediction = evaluate()
        assert len(found) == 7
        known = mask != 255
        assert found.right.sum() == (mask == prediction)[known].sum()
        assert found.names[4] == "a/4.png"
        scores = [one.score for one in found.worst]
        assert len(scores) == 2
        assert scores == sorted(scores)
        assert found.best[0].score > found.worst[0].score
        one = found.worst[0]
        assert torch.equal(one.truth == 65535, mask[int(one.name[2])] == 255)

    @given(st.integers(1, 9), st.integers(1, 9))
    def test_batches_do_not_matter(self, number, step):
        one, other = evaluate(number)[0], evaluate(number, step=step)[0]
        assert torch.equal(one.right, other.right)
        assert torch.equal(one.confusion, other.confusion)
        assert [e.name for e in one.worst] == [e.name for e in other.worst]

    def test_parts_and_dictionaries(self):
        whole = evaluate(8, step=8)[0]
        again = SegmentationEvaluation.from_dict(whole.to_dict())
        assert torch.equal(again.confusion, whole.confusion)
        assert again.worst[0].name == whole.worst[0].name
        twice = SegmentationEvaluation.concatenate([whole, again], worst=3)
        assert len(twice) == 16
        assert torch.equal(twice.confusion, 2 * whole.confusion)
        assert len(twice.worst) == 1

    def test_nothing(self):
        assert SegmentationCollector().evaluation() is None
        mask = torch.full((1, 12, 16), 255)
        collector = SegmentationCollector()
        collector.add(
            {"counts": torch.zeros(1, 3, 3, dtype=torch.long), "prediction": mask},
            Batch(torch.rand(1, 3, 12, 16), mask=mask),
        )
        found = collector.evaluation()
        assert (found.worst, found.best) == ([], [])
        assert segmentation_metrics(found)["miou"]["value"] is None

    def test_exception(self):
        with pytest.raises(ValueError, match="needs masks"):
            SegmentationCollector().add({}, Batch(torch.rand(1, 3, 8, 8)))
        with pytest.raises(ValueError, match="no evaluations"):
            SegmentationEvaluation.concatenate([])
        with pytest.raises(ValueError, match="3 and 4 classes"):
            SegmentationEvaluation.concatenate([evaluate()[0], evaluate(classes=4)[0]])
        with pytest.raises(ValueError, match="one image or more"):
            SegmentationEvaluation(*[torch.zeros(0, 2)] * 3, torch.zeros(2, 2), [])
        with pytest.raises(ValueError, match="1 images and 2 classes"):
            SegmentationEvaluation(*[torch.zeros(1, 3)] * 3, torch.zeros(2, 2), ["a"])


class TestSegmentationMetrics:
    def test_equals_torchmetrics(self):
        found, mask, prediction = evaluate(9)
        metrics = segmentation_metrics(found, NAMES)
        theirs = MulticlassJaccardIndex(3, average=None, ignore_index=255)(prediction, mask)
        assert [row["iou"] for row in metrics["per_class"]] == pytest.approx(theirs.tolist(), abs=1e-6)
        assert metrics["miou"]["value"] == pytest.approx(theirs.mean().item(), abs=1e-6)
        assert metrics["miou"]["low"] < metrics["miou"]["value"] < metrics["miou"]["high"]
        assert metrics["pixels"] == 9 * 10 * 16
        assert [row["class"] for row in metrics["per_class"]] == list(NAMES)

    def test_a_class_that_is_nowhere(self):
        mask = torch.zeros(2, 12, 16, dtype=torch.long)
        collector = SegmentationCollector(0)
        collector.add({"counts": count(mask, mask), "prediction": mask}, Batch(torch.rand(2, 3, 12, 16), mask=mask))
        metrics = segmentation_metrics(collector.evaluation())
        assert [row["iou"] for row in metrics["per_class"]] == [1.0, None, None]
        assert metrics["miou"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert (metrics["miou_classes"], metrics["labelled_classes"]) == (1, 1)

    def test_interval_holds_what_it_says(self):
        """Of the true IoU of many images, in 95 of 100 sets of 40 of them."""
        generator = torch.Generator().manual_seed(0)
        share = torch.rand(4000, 1, generator=generator)
        union = torch.randint(50, 150, (4000, 1), generator=generator)
        right = (share * union).long()
        true = float(right.sum() / union.sum())
        inside = 0
        for i in range(100):
            part = slice(40 * i, 40 * i + 40)
            (low, high), _ = (ends.flatten().tolist() for ends in bootstrap_intervals(right[part], union[part], 400, i))
            inside += low <= true <= high
        assert 88 <= inside <= 99

    def test_exception(self):
        with pytest.raises(ValueError, match=r"2 class names.*3 classes"):
            segmentation_metrics(evaluate()[0], NAMES[:2])


class TestWriteSegmentationReport:
    def test_smoke(self, tmp_path):
        found = evaluate()[0]
        history = [
            {"epoch": 1.0, "train/loss": 2.0, "val/miou": 0.2},
            {"epoch": 2.0, "train/loss": 1.0, "val/miou": 0.4},
        ]
        path = write_report(
            tmp_path, found, history=history, class_names=NAMES, title="<Beach>", best=2.0, settings={"mode": "xxs"}
        )
        page = Page(path)
        assert "<Beach>" in page.texts
        assert {name for name, _ in page.attributes} <= {"src", "href"}
        files = {file.name for file in tmp_path.iterdir()}
        assert {f"{name}.png" for name in ("curves", "confusion", "per_class", "worst", "best")} <= files
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["miou"] == segmentation_metrics(found)["miou"]
        with (tmp_path / "per_image.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert sum(int(row["right/sea"]) for row in rows) == found.right[:, 1].sum()
        assert [row["image"] for row in rows] == found.names

    @pytest.mark.long
    def test_many_classes(self, tmp_path):
        write_report(tmp_path, evaluate(4, classes=33)[0])
        assert (tmp_path / "confusion_part.png").is_file()

    def test_an_earlier_report_goes(self, tmp_path):
        (tmp_path / "worst.png").write_bytes(b"old")
        write_report(tmp_path, evaluate(worst=0)[0])
        assert not (tmp_path / "worst.png").exists()

    @pytest.mark.filterwarnings("ignore:The number of training batches")
    def test_of_a_fit(self, tmp_path):
        """And of a validation by itself, which gives the same numbers."""
        torch.manual_seed(0)
        task = SegmentationTask(num_classes=4, image_size=32, policy_args={"short_side": (32, 48)}, aspp_channels=8)
        run = trainer(tmp_path, callbacks=[Report(worst=3)], max_epochs=1)
        run.fit(task, ShapeData())
        found = json.loads((tmp_path / "report" / "metrics.json").read_text())
        assert found["miou"]["value"] == pytest.approx(float(run.callback_metrics["val/miou"]), abs=1e-5)
        assert found["accuracy"] == pytest.approx(float(run.callback_metrics["val/accuracy"]), abs=1e-5)
        run.validate(task, ShapeData(), verbose=False)
        again = json.loads((tmp_path / "report-validate" / "metrics.json").read_text())
        assert again["confusion"] == found["confusion"]


class TestDrawSegmentation:
    def test_smoke(self):
        mask = torch.zeros(20, 30, dtype=torch.long)
        picture = draw_segmentation(torch.zeros(3, 20, 30, dtype=torch.uint8), [mask, mask])
        assert picture.size == (3 * 30 + 2 * 4, 20)

    def test_exception(self):
        with pytest.raises(ValueError, match=r"\(20, 30\).*mask \(20, 20\)"):
            draw_segmentation(torch.zeros(3, 20, 30, dtype=torch.uint8), [torch.zeros(20, 20, dtype=torch.long)])
