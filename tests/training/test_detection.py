"""DetectionTask: its loss, evaluation in the pixels of the files, its checkpoints, and its report."""

import json
import math

import pytest
import torch
from torch import nn

from kornia_mvit import AugmentationPipeline, Batch, MobileViTClassifier, Preprocess, SSDLite, save_checkpoint
from kornia_mvit.draw.images import draw_detections
from kornia_mvit.evaluation.coco import CocoMetrics, truths_of
from kornia_mvit.evaluation.detection import (
    DetectionCollector,
    DetectionEvaluation,
    detection_metrics,
    image_f1,
)
from kornia_mvit.exporters import metadata
from kornia_mvit.models.ssdlite import RATIOS, SCALES
from kornia_mvit.ops.boxes import fit_anchors
from kornia_mvit.training import EMA, DetectionTask, LogPictures, Report, write_report
from kornia_mvit.training.recipe_cli import build_cli, quiet_lightning
from kornia_mvit.weights.files import CARD_KEY, read_checkpoint
from kornia_mvit.weights.registry import from_pretrained
from tests.evaluation.test_report import Page
from tests.training.shapes import BoxShapeData, make_yolo
from tests.training.test_tasks import trainer

SMALL = {"num_classes": 3, "image_size": 64}


class Known(nn.Module):
    """Returns what decodes to the truths of a batch, whatever it sees: boxes in pixels of its input."""

    num_classes = 4

    def __init__(self, boxes, labels):
        super().__init__()
        self.boxes, self.labels, self.scale = boxes, labels, nn.Parameter(torch.ones(()))

    def forward(self, image):
        return self.scale * torch.zeros(len(image), 1, 4), torch.zeros(len(image), 1, 4)

    def anchors(self, image_size, device=None):
        return torch.tensor([[0.5, 0.5, 1.0, 1.0]])

    def decode(self, logits, deltas, image_size, **_):
        from kornia_mvit.models.ssdlite import Detections

        ones = [torch.ones(len(labels)) for labels in self.labels]
        return [Detections(*one) for one in zip(self.boxes, ones, self.labels, strict=True)]


def scenes(**arguments):
    data = BoxShapeData(**arguments)
    data.setup()
    return Batch.collate(data.splits["train"])


def logged(task):
    task.logged = {}
    task.log = lambda name, value, **_: task.logged.update({name: value})
    return task


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A task fitted for two epochs with EMA and its reports, and its checkpoint."""
    folder = tmp_path_factory.mktemp("detection")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = DetectionTask(**SMALL)
        run = trainer(folder, max_epochs=2, callbacks=[EMA(0.5), Report(worst=3), LogPictures()])
        run.fit(task, BoxShapeData())
    run.save_checkpoint(folder / "a.ckpt")
    return task, run.callback_metrics, folder


class TestDetectionTask:
    def test_smoke(self, fitted, tmp_path):
        task, metrics, _ = fitted
        assert {
            "train/loss",
            "train/class_loss",
            "train/box_loss",
            "val/loss",
            "val/map",
            "val/map_50",
        } <= metrics.keys()
        (result,) = trainer(tmp_path).test(task, BoxShapeData(), verbose=False)
        assert 0 <= result["test/map"] <= 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": None}, "num_classes is missing"),
            ({"num_classes": 0}, "num_classes 0 is not at least 1"),
            ({"mode": "m"}, "unknown mode 'm'; available: 'xxs', 'xs', 's'"),
            ({"policy": "best"}, "unknown policy 'best'"),
            ({"schedule": "step"}, "unknown schedule 'step'; available: 'cosine', 'poly'"),
            ({"tta": "spin"}, "unknown transforms spin"),
            ({"score_threshold": 2.0}, "score_threshold 2.0 is not in [0, 1]"),
            ({"max_detections": 0}, "max_detections 0 is not at least 1"),
            ({"negative_ratio": -1}, "negative_ratio -1 is not at least 0"),
            ({"network": SSDLite("xxs", 3)}, "has 3 classes; 3 classes of objects and the background are 4"),
            ({"network": SSDLite("xxs", 4), "weights": "a.ckpt"}, "give network or weights, not both"),
            ({"pipeline": AugmentationPipeline(preprocess=Preprocess(64))}, "leaves images of several sizes"),
            ({"anchors": "best"}, "anchors 'best' are unknown; give 'auto', or scales and aspect_ratios"),
            ({"anchors": {"sides": [0.1, 1.0]}}, "anchors have no 'sides'; give scales, aspect_ratios or both"),
            ({"anchors": {"scales": ["a", "b"]}}, "are not numbers, such as {'scales': [0.1, 1.05]}"),
            ({"anchors": {"scales": 0.1}}, "are not numbers, such as {'scales': [0.1, 1.05]}"),
            ({"anchors": {"scales": [0.5, 0.1]}}, "scales (0.5, 0.1) are not two numbers above 0"),
            ({"anchors": {"aspect_ratios": [[2]]}}, "are not six lists of positive numbers"),
            ({"network": Known([], []), "anchors": "auto"}, "anchors are of SSDLite, and the network is a Known"),
            (
                {"network": SSDLite("xxs", 4), "anchors": {"aspect_ratios": [[2]] * 6}},
                "the network has [2, 2, 2, 2, 2, 1]",
            ),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError) as error:
            DetectionTask(**{**SMALL, **arguments})
        assert message in str(error.value)

    def test_exception_of_data(self):
        with pytest.raises(ValueError, match="needs boxes"):
            DetectionTask(**SMALL).loss(Batch(torch.rand(2, 3, 64, 64)))

    def test_a_batch_without_a_box_trains(self):
        task = logged(DetectionTask(**SMALL))
        empty = torch.zeros(2, 0)
        batch = Batch(torch.rand(2, 3, 64, 64), boxes=torch.zeros(2, 0, 4), box_label=empty.long())
        loss = task.training_step(batch, 0)
        loss.backward()
        assert loss.isfinite()
        assert task.logged["train/box_loss"] == 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())

    def test_padding_does_not_matter(self):
        torch.manual_seed(0)
        task = DetectionTask(**SMALL)
        batch = task.pipeline.prepare(scenes(sizes=((64, 64),) * 4))[0]
        wider = batch.replace(
            boxes=nn.functional.pad(batch.boxes, (0, 0, 0, 5)),
            box_label=nn.functional.pad(batch.box_label, (0, 5), value=-1),
            box_ignore=nn.functional.pad(batch.box_ignore, (0, 5)),
        )
        torch.testing.assert_close(task.loss(batch), task.loss(wider))

    def test_weights_of_boxes_reach_the_loss(self):
        """As MixUp sets them, by the policy of the command line's options."""
        torch.manual_seed(0)
        task = DetectionTask(**SMALL, policy_args={"mosaic": 1.0, "mixup": 1.0}).eval()
        batch = task.pipeline.augment(scenes(sizes=((64, 64),) * 4), seed=1)[0]
        assert ((batch.box_weight > 0) & (batch.box_weight < 1)).any()
        classes, places = task.loss(batch)
        whole = task.loss(batch.replace(box_weight=(batch.box_label >= 0).float()))
        assert classes < whole[0]
        assert places < whole[1]
        torch.testing.assert_close(task.loss(batch.replace(box_weight=None)), whole)

    @pytest.mark.parametrize("letterbox", [False, True])
    def test_scores_are_of_the_files_pixels(self, letterbox):
        """Boxes that are right in the network's input are right in images of several sizes, shrunk from their files."""
        batch = scenes()
        size = batch.size if batch.size is not None else torch.tensor(batch.image.shape[2:]).expand(len(batch), 2)
        batch = batch.replace(original_size=size * torch.tensor([2, 3]))
        pipeline = AugmentationPipeline(preprocess=Preprocess((80, 64), letterbox=letterbox))
        seen = pipeline.prepare(batch)[0]
        real = [label >= 0 for label in batch.box_label]
        boxes = [rows[keep] for rows, keep in zip(seen.boxes, real, strict=True)]
        labels = [rows[keep] for rows, keep in zip(batch.box_label, real, strict=True)]
        task = logged(DetectionTask(**SMALL, network=Known(boxes, labels), pipeline=pipeline))
        task.coco = CocoMetrics(BoxShapeData().class_names)
        task.eval()
        with torch.no_grad():
            out = task.validation_step(batch, 0)
        task.on_validation_epoch_end()
        assert task.logged["val/map"] == pytest.approx(1.0)
        truths = truths_of(batch)
        for found, truth in zip(out["detections"], truths, strict=True):
            torch.testing.assert_close(found["boxes"], truth["boxes"], atol=1e-3, rtol=1e-4)

    def test_evaluation_does_not_depend_on_the_batch(self, fitted):
        task = fitted[0]
        task.eval()
        data = BoxShapeData()
        data.setup()
        samples = data.splits["val"]
        log, task.log = task.log, lambda *_, **__: None
        task.coco = CocoMetrics(data.class_names)
        try:
            with torch.no_grad():
                together = task.validation_step(Batch.collate(samples), 0)["detections"]
                alone = [task.validation_step(Batch.collate([sample]), 0)["detections"][0] for sample in samples]
        finally:
            task.log = log
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=1e-4)
            # scores that are equal but for rounding may change places, and their boxes with them
            apart = (one["boxes"][:, None] - other["boxes"]).abs().amax(-1)
            apart = apart.where((one["scores"][:, None] - other["scores"]).abs() < 1e-4, torch.inf)
            apart = apart.where(one["labels"][:, None] == other["labels"], torch.inf)
            assert apart.amin(0).max() < 1e-2
            assert apart.amin(1).max() < 1e-2

    def test_tta(self):
        torch.manual_seed(0)
        task = DetectionTask(**SMALL, tta="flip").eval()
        image = torch.rand(1, 3, 64, 64)
        image = (image + image.flip(-1)) / 2
        (found,) = task.detect(image)
        assert len(found["boxes"]) <= 100
        middle = found["boxes"][:, [0, 2]].mean(1)
        order = found["scores"].argsort(descending=True)[:4]
        for x, label in zip(middle[order], found["labels"][order], strict=True):  # a mirror image finds mirrored ones
            same = middle[found["labels"] == label]
            assert (same - (64 - x)).abs().min() < 1.0

    def test_checkpoint_says_what_it_holds(self, fitted):
        task, _, folder = fitted
        card = read_checkpoint(folder / "a.ckpt")[CARD_KEY]
        assert card["task"] == "detection"
        assert card["class_names"] == list(BoxShapeData().class_names)
        model = from_pretrained(folder / "a.ckpt")
        assert isinstance(model, SSDLite)
        assert model.preprocess == task.preprocess
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            for one, other in zip(model.eval()(image), task.eval()(image), strict=True):
                torch.testing.assert_close(one, other)

    def test_starts_from_weights(self, tmp_path):
        start = MobileViTClassifier("xs", 5)
        save_checkpoint(start, tmp_path / "start.ckpt")
        task = DetectionTask(**SMALL, weights=str(tmp_path / "start.ckpt"))
        assert task.hparams["mode"] == "xs"
        mine, given = task.network.backbone.state_dict(), start.backbone.state_dict()
        assert mine
        assert all(torch.equal(mine[name], given[name]) for name in mine)

    def test_starts_from_a_detector(self, tmp_path):
        """Of other classes and other anchors, which it takes over; its classifiers are fresh."""
        start = SSDLite("xxs", 9, scales=(0.2, 0.9))
        save_checkpoint(start, tmp_path / "start.ckpt")
        task = DetectionTask(**SMALL, weights=str(tmp_path / "start.ckpt"))
        assert task.network.scales == (0.2, 0.9)
        mine, given = task.network.state_dict(), start.state_dict()
        same = {name for name in mine if torch.equal(mine[name], given[name])} if mine.keys() == given.keys() else set()
        assert {name for name in mine if ".classifier." not in name} <= same

    def test_report(self, fitted, tmp_path):
        task, metrics, folder = fitted
        found = json.loads((folder / "report" / "metrics.json").read_text())
        assert found["map"] == pytest.approx(float(metrics["val/map"]), abs=1e-5)
        assert {"precision_recall.png", "per_class.png", "per_class.csv"} <= {
            p.name for p in (folder / "report").iterdir()
        }
        assert any(path.name.endswith("mistakes.png") for path in (folder / "pictures").iterdir())
        trainer(tmp_path, callbacks=[Report()]).validate(task, BoxShapeData(), verbose=False)
        again = json.loads((tmp_path / "report-validate" / "metrics.json").read_text())
        assert again["images"] == 4

    @pytest.mark.long
    @pytest.mark.parametrize("given", [False, True])
    def test_fitted_anchors(self, given, tmp_path, caplog):
        """They are those of the boxes as the network sees them, and every checkpoint and file says so."""
        network = SSDLite("xxs", 4) if given else None
        task = DetectionTask(**SMALL, anchors="auto", network=network, letterbox=True)
        data = BoxShapeData()
        run = trainer(tmp_path, max_epochs=1)
        run.fit(task, data)
        seen = [task.pipeline.prepare(Batch.collate([sample]))[0] for sample in data.splits["train"]]
        kept = [(batch.box_label >= 0) & ~batch.box_ignore for batch in seen]
        boxes = torch.cat([batch.boxes[rows] for batch, rows in zip(seen, kept, strict=True)]) / 64
        expected = fit_anchors(boxes, task.network.map_sizes((64, 64)))
        found = (task.network.scales, task.network.aspect_ratios)
        assert found == expected != (SCALES, RATIOS)
        assert f"scales {expected.scales[0]:g} to" in caplog.text
        run.save_checkpoint(tmp_path / "a.ckpt")
        model = from_pretrained(tmp_path / "a.ckpt")
        again = DetectionTask.load_from_checkpoint(
            tmp_path / "a.ckpt", **({"network": SSDLite("xxs", 4)} if given else {})
        )
        assert (model.scales, model.aspect_ratios) == (again.network.scales, again.network.aspect_ratios) == found
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            raw = task.eval().network(x)
            assert torch.equal(task.network.locate(*raw, (64, 64))[0], model.locate(*model(x), (64, 64))[0])
        assert json.loads(metadata(model)["anchors"])["scales"] == list(expected.scales)

    def test_a_resumed_run_keeps_its_anchors(self, fitted, tmp_path):
        """Whatever data it goes on with: the weights belong to them."""
        _, _, folder = fitted
        task = DetectionTask(**SMALL, anchors="auto")
        run = trainer(tmp_path, max_epochs=3, callbacks=[EMA(0.5), Report()])
        run.fit(task, BoxShapeData(), ckpt_path=folder / "a.ckpt", weights_only=True)
        assert (task.network.scales, task.network.aspect_ratios) == (SCALES, RATIOS)

    def test_anchors_of_the_weights(self, tmp_path):
        """Unless others are asked for; a checkpoint of the task builds the same network again."""
        source = SSDLite("xxs", 4, scales=(0.3, 1.0), aspect_ratios=[(1.5, 2)] * 5 + [(2,)])
        save_checkpoint(source, tmp_path / "a.pt")
        task = DetectionTask(**SMALL, weights=str(tmp_path / "a.pt"))
        other = DetectionTask(**SMALL, weights=str(tmp_path / "a.pt"), anchors={"scales": (0.2, 0.8)})
        assert (task.network.scales, other.network.scales) == ((0.3, 1.0), (0.2, 0.8))
        assert task.network.aspect_ratios == other.network.aspect_ratios == source.aspect_ratios
        for one in (task, other):
            run = trainer(tmp_path, max_epochs=1)
            run.fit(one, BoxShapeData())
            run.save_checkpoint(tmp_path / "b.ckpt")
            again = DetectionTask.load_from_checkpoint(tmp_path / "b.ckpt")
            assert again.network.scales == one.network.scales
            assert again.network.aspect_ratios == one.network.aspect_ratios

    def test_no_boxes_to_fit_anchors_to(self, tmp_path):
        data = BoxShapeData()
        data.setup()
        for sample in data.splits["train"]:
            sample["box_ignore"] = torch.ones(len(sample["boxes"]), dtype=torch.bool)
        data.setup = lambda stage=None: None
        with pytest.raises(ValueError, match=r"anchors 'auto' need training data.*boxes; give scales"):
            trainer(tmp_path, max_epochs=1).fit(DetectionTask(**SMALL, anchors="auto"), data)

    @pytest.mark.long
    def test_overfits_eight_images(self, tmp_path):
        """Through recipe, data, pipeline and task: AP50 0.9 on shapes."""
        root = make_yolo(tmp_path / "data", 8, (96, 96), shapes=(1, 2), radius=(0.2, 0.35))
        options = {
            "data.root": root,
            "data.batch_size": 8,
            "data.num_workers": 0,
            "data.storage_size": 96,
            "model.image_size": 96,
            "model.policy_args": "{zoom_out: 1.0, overlaps: [null], flip: 0.0, jitter: 0.0, hue: 0.0}",
            "model.learning_rate": 2.0e-3,
            "model.warmup_steps": 20,
            "trainer.max_epochs": 250,
            "trainer.check_val_every_n_epoch": 250,
            "trainer.accelerator": "cpu",
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.log_every_n_steps": 1,
            "trainer.default_root_dir": tmp_path,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        cli = build_cli(["--config", "folder-detection", *arguments], run=False)
        with quiet_lightning():
            cli.trainer.fit(cli.model, cli.datamodule)
        assert cli.trainer.callback_metrics["val/map_50"] >= 0.9


def one(boxes, labels, scores=None, **more):
    out = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
    }
    return out | ({} if scores is None else {"scores": torch.tensor(scores, dtype=torch.float32)}) | more


LEFT, RIGHT = [0, 0, 10, 10], [20, 0, 30, 10]


class TestImageF1:
    @pytest.mark.parametrize(
        ("found", "truth", "score"),
        [
            (one([LEFT, RIGHT], [0, 1], [0.9, 0.8]), one([LEFT, RIGHT], [0, 1]), 1.0),
            (one([LEFT, LEFT], [0, 0], [0.9, 0.8]), one([LEFT, RIGHT], [0, 1]), 0.5),  # twice the same, one missed
            (one([LEFT], [1], [0.9]), one([LEFT], [0]), 0.0),
            (one([LEFT], [0], [0.2]), one([LEFT], [0]), 0.0),  # not sure enough
            (one([], [], []), one([LEFT], [0]), 0.0),
            (one([LEFT], [0], [0.9]), one([], []), 0.0),
            (
                one([LEFT, RIGHT], [0, 1], [0.9, 0.8]),
                one([LEFT, RIGHT], [0, 1], ignore=torch.tensor([False, True])),
                1.0,
            ),
        ],
    )
    def test_feature(self, found, truth, score):
        assert image_f1(found, truth) == pytest.approx(score)

    def test_nothing(self):
        assert math.isnan(image_f1(one([], [], []), one([], [])))


def collect(worst=4, batches=((0, 1), (2, 3))):
    data = BoxShapeData()
    data.setup()
    collector = DetectionCollector(worst)
    for rows in batches:
        batch = Batch.collate([data.splits["val"][i] for i in rows])
        found = [{k: v for k, v in truth.items() if k in ("boxes", "labels")} for truth in truths_of(batch)]
        found = [f | {"scores": torch.full((len(f["labels"]),), 0.9)} for f in found]
        found[0] = {name: value[:0] for name, value in found[0].items()}  # misses all of its first image
        collector.add({"detections": found, "num_classes": 3}, batch)
    return collector.evaluation()


class TestDetectionEvaluation:
    def test_smoke(self):
        found = collect()
        assert len(found) == 4
        assert [example.score for example in found.worst] == [0.0, 0.0]
        assert found.worst[0].name == "id 0"
        metrics = detection_metrics(found, BoxShapeData().class_names)
        assert 0 < metrics["map"] < 1
        assert metrics["truths"] == sum(row["truths"] for row in metrics["per_class"])
        assert sum(row["truths"] for row in metrics["per_size"]) == metrics["truths"]

    def test_parts_and_dictionaries(self):
        whole = collect(batches=((0, 1, 2, 3),))
        again = DetectionEvaluation.from_dict(whole.to_dict())
        parts = [collect(batches=((0, 1),)), collect(batches=((2, 3),))]
        together = DetectionEvaluation.concatenate(parts, 4)
        assert detection_metrics(again) == detection_metrics(whole)
        assert detection_metrics(together) == detection_metrics(collect())

    def test_nothing(self):
        assert DetectionCollector().evaluation() is None

    def test_exception(self):
        with pytest.raises(ValueError, match="no evaluations"):
            DetectionEvaluation.concatenate([])
        with pytest.raises(ValueError, match=r"2 class names.*3 classes"):
            detection_metrics(collect(), ["a", "b"])
        with pytest.raises(ValueError, match="one image or more"):
            DetectionEvaluation({}, [], 3)

    def test_report(self, tmp_path):
        history = [{"epoch": 1.0, "train/loss": 2.0, "val/map": 0.1}, {"epoch": 2.0, "train/loss": 1.0, "val/map": 0.4}]
        path = write_report(
            tmp_path, collect(), history=history, class_names=BoxShapeData().class_names, title="<Shapes>", best=2.0
        )
        page = Page(path)
        assert "<Shapes>" in page.texts
        files = {file.name for file in tmp_path.iterdir()}
        assert {f"{name}.png" for name in ("curves", "precision_recall", "per_class", "worst")} <= files
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["map"] == detection_metrics(collect())["map"]


class TestDrawDetections:
    def test_smoke(self):
        image = torch.zeros(3, 40, 60, dtype=torch.uint8)
        boxes = torch.tensor([[5.0, 5, 30, 30], [20, 10, 60, 40]])
        picture = draw_detections(image, boxes, torch.tensor([0, 1]), torch.tensor([0.9, 0.4]), ["cat", "dog"])
        assert picture.size == (60, 40)
        assert picture.getpixel((5, 29)) != (0, 0, 0)
        assert picture.getpixel((1, 1)) == (0, 0, 0)
