"""COCO's score against pycocotools, the reference."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.coco import CocoMetrics, truths_of

NAMES = ("a", "b", "c", "d")
SCORES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")


def draw(seed, images=30):
    """Predictions near truths and astray; crowds; images without either; the last class has no truth."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g)

    predictions, truths = [], []
    for i in range(images):
        count = int(rand(1) * 8)
        sides, corner = (rand(count, 2) * 6).exp() + 2, rand(count, 2) * 300
        boxes, labels = torch.cat([corner, corner + sides], 1), (rand(count) * 3).long()
        near = (rand(int(rand(1) * 6)) * max(count, 1)).long() if count else torch.zeros(0).long()
        found = boxes[near] + (rand(len(near), 4) - 0.5) * sides[near].repeat(1, 2) * 0.4
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
        corner = rand(int(rand(1) * 4), 2) * 300
        astray = torch.cat([corner, corner + (rand(len(corner), 2) * 6).exp()], 1)
        kinds = torch.where(rand(len(near)) < 0.8, labels[near], (rand(len(near)) * 4).long())
        found, kinds = torch.cat([found, astray]), torch.cat([kinds, (rand(len(corner)) * 4).long()])
        scores = rand(len(found))
        predictions.append(
            {"boxes": found, "scores": (scores * 20).round() / 20 if seed % 2 else scores, "labels": kinds}
        )
        area, crowd = sides.prod(-1) * (0.3 + 0.7 * rand(count)), rand(count) < 0.15
        truths.append({"boxes": boxes, "labels": labels, "crowd": crowd, "area": area, "image_id": i})
    return predictions, truths


def reference(predictions, truths):
    def rows(entries, i):
        boxes = entries["boxes"].double()
        xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        return [
            {"image_id": i, "category_id": k, "bbox": b} for k, b in zip(entries["labels"].tolist(), xywh, strict=True)
        ]

    annotations, results = [], []
    for i, (found, truth) in enumerate(zip(predictions, truths, strict=True)):
        for row, crowd, area in zip(rows(truth, i), truth["crowd"].tolist(), truth["area"].tolist(), strict=True):
            annotations.append(row | {"id": len(annotations) + 1, "iscrowd": int(crowd), "area": area})
        results += [r | {"score": s} for r, s in zip(rows(found, i), found["scores"].tolist(), strict=True)]
    gt = COCO()
    images, categories = [{"id": i} for i in range(len(truths))], [{"id": k} for k in range(len(NAMES))]
    gt.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        out = COCOeval(gt, gt.loadRes(results), "bbox")
        out.evaluate()
        out.accumulate()
        out.summarize()
    return out


PROGRAM = """
import sys, torch, torch.distributed as dist
from kornia_mvit.evaluation.coco import CocoMetrics
from tests.evaluation.test_coco import NAMES, SHARES, draw

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
predictions, truths = draw(1)
out, metrics = [], CocoMetrics(NAMES)
for shares in SHARES:
    for i in shares[int(sys.argv[2])]:
        metrics.update(predictions[i : i + 1], truths[i : i + 1])
    scores = metrics.compute()
    out.append((scores, [len(rows) for rows in metrics.stored().values()]))
    metrics.reset()
torch.save(out, sys.argv[3])
dist.destroy_process_group()
"""
# What each of two processes sees: unequally many images and two of them twice, and one process or the other nothing.
SHARES = (
    ([*range(19)], [3, *range(18, 30)]),
    ([*range(30)], []),
    ([], [*range(30)]),
)


class TestCocoMetrics:
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_pycocotools(self, seed):
        predictions, truths = draw(seed)
        metrics = CocoMetrics(NAMES)
        for i in range(0, 30, 7):
            metrics.update(predictions[i : i + 7], truths[i : i + 7])
        scores, expected = metrics.compute(), reference(predictions, truths)
        for name, value in zip(SCORES, expected.stats, strict=False):
            assert float(scores[name]) == pytest.approx(value, abs=1e-6)
        assert float(scores["mar_100"]) == pytest.approx(expected.stats[8], abs=1e-6)
        for label, name in enumerate(NAMES[:3]):
            precision = torch.tensor(expected.eval["precision"][:, :, label, 0, 2])
            assert float(scores[f"ap/{name}"]) == pytest.approx(float(precision.mean()), abs=1e-6)
            torch.testing.assert_close(scores[f"precision_50/{name}"], precision[0].float())
        assert "ap/d" not in scores

    def test_classes_of_one_name(self):
        """Each keeps its own score."""
        box = torch.tensor([[10.0, 10, 60, 90], [100, 10, 160, 90]])
        truth = {"boxes": box, "labels": torch.tensor([0, 2])}
        metrics = CocoMetrics(["cat", "dog", "cat"])
        metrics.update([{"boxes": box[:1], "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}], [truth])
        scores = metrics.compute()
        assert {name: float(value) for name, value in scores.items() if name[:3] == "ap/"} == {
            "ap/cat (0)": 1.0,
            "ap/cat (2)": 0.0,
        }

    def test_numbers_beyond_64_bits(self):
        """Images with them are told apart, and found again."""
        predictions, truths = draw(1)
        expected, metrics = CocoMetrics(NAMES), CocoMetrics(NAMES)
        large = [truth | {"image_id": truth["image_id"] + 2**70} for truth in truths]
        expected.update(predictions, large)
        metrics.update(predictions, large)
        metrics.update(predictions[:3], large[:3])
        assert metrics.compute()["map"] == pytest.approx(float(expected.compute()["map"]), abs=1e-6)

    def test_the_order_of_images_and_repetitions_change_nothing(self):
        predictions, truths = draw(1)
        scores = []
        for order in (range(30), [*reversed(range(30)), 4, 7]):
            metrics = CocoMetrics(NAMES)
            metrics.update([predictions[i] for i in order], [truths[i] for i in order])
            scores.append(metrics.compute())
        assert scores[0].keys() == scores[1].keys()
        for name, value in scores[0].items():
            assert torch.equal(value, scores[1][name])

    @pytest.mark.long
    @pytest.mark.processes
    def test_two_processes_score_as_one(self, tmp_path):
        """And each keeps its own share, to which more can be added."""
        root = str(Path(__file__).parents[2])
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(tmp_path / "meet"), str(rank), str(tmp_path / f"{rank}.pt")],
                env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]
        try:
            assert [run.wait(timeout=240) for run in runs] == [0, 0]
        finally:
            for run in runs:
                run.kill()
        predictions, truths = draw(1)
        whole = CocoMetrics(NAMES)
        whole.update(predictions, truths)
        expected = whole.compute()
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
            for (scores, kept), shares in zip(found, SHARES, strict=True):
                assert scores.keys() == expected.keys()
                assert all(torch.equal(value, expected[name]) for name, value in scores.items())
                assert kept[0] == len(shares[rank])

    def test_difficult_truths_are_neither_missed_nor_found(self):
        boxes = torch.tensor([[0.0, 0, 50, 50], [100, 100, 150, 150]])
        truth = {"boxes": boxes, "labels": torch.tensor([0, 0]), "ignore": torch.tensor([False, True])}
        for found, expected in (([0], 1.0), ([0, 1], 1.0), ([1], 0.0)):
            metrics = CocoMetrics(NAMES)
            metrics.update(
                [{"boxes": boxes[found], "scores": torch.ones(len(found)), "labels": torch.zeros(len(found)).long()}],
                [truth],
            )
            assert float(metrics.compute()["map"]) == expected

    def test_nothing_at_all(self):
        scores = CocoMetrics(NAMES)
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
        scores.update([empty], [empty])
        out = scores.compute()
        assert out["map"].isnan()
        assert not any("/" in name for name in out)

    def test_exception(self):
        box, metrics = {"boxes": torch.zeros(1, 4), "labels": torch.tensor([4])}, CocoMetrics(NAMES)
        with pytest.raises(ValueError, match=r"0 images.*truths of 1"):
            metrics.update([], [box])
        with pytest.raises(ValueError, match=r"prediction 0.*from 4 to 4.*4 classes"):
            metrics.update([box | {"scores": torch.ones(1)}], [box])
        with pytest.raises(ValueError, match="there are no classes"):
            CocoMetrics([])


class TestTruthsOf:
    def test_original_pixels(self):
        meta = [{"image_id": 9, "box_area": [5.0], "box_crowd": [True]}]
        batch = Batch(
            torch.zeros(1, 3, 40, 50, dtype=torch.uint8),
            boxes=torch.tensor([[[2.0, 4, 20, 40], [0, 0, 0, 0]]]),
            box_label=torch.tensor([[1, -1]]),
            size=torch.tensor([[40, 20]]),
            original_size=torch.tensor([[80, 60]]),
            meta=meta,
        )
        (truth,) = truths_of(batch)
        assert truth["boxes"].tolist() == [[6.0, 8.0, 60.0, 80.0]]
        assert (truth["image_id"], truth["area"].tolist(), truth["crowd"].tolist()) == (9, [5.0], [True])
        meta[0]["box_area"] = []
        with pytest.raises(ValueError, match="measure batches as they are stored"):
            truths_of(batch)
