"""The module that is exported: its preprocessing is Preprocess's, its decoding that of predict."""

import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, MobileViT, MobileViTClassifier, Preprocess
from kornia_mvit.exporters import DeployPreprocess, Suppression, deployable
from kornia_mvit.exporters.graph import resize_weights, suppress_boxes
from kornia_mvit.inference.detection import predict_boxes
from kornia_mvit.inference.sliding_window import predict_maps
from tests.exporters.scenes import TASKS, assert_same_levels, batch, build, photos

RECORDS = {
    "crop": Preprocess(72, crop=64),
    "squash": Preprocess((65, 97), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
    "letterbox": Preprocess((64, 80), letterbox=True, channel_order="bgr"),
    "bicubic": Preprocess(70, crop=(60, 64), interpolation="bicubic"),
    "shorter": Preprocess(50),
    "untouched": Preprocess(None),
    "cut": Preprocess(None, crop=(31, 32)),
}


class TestDeployPreprocess:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_smoke(self, layout):
        prepare = DeployPreprocess(Preprocess(40, crop=32), layout)
        assert prepare(batch(photos()[0], layout)).shape == (1, 3, 32, 32)

    @pytest.mark.parametrize("resample", ["native", "matmul"])
    @pytest.mark.parametrize("name", RECORDS)
    def test_equals_preprocess_on_photos(self, name, resample):
        record = RECORDS[name]
        prepare = DeployPreprocess(record, "nhwc", resample)
        for photo in photos():
            given, wanted = prepare(batch(photo, "nhwc")), record.module()(photo)[None]
            assert given.shape == wanted.shape
            assert_same_levels(given, wanted, record)

    @pytest.mark.parametrize("name", RECORDS)
    def test_both_ways_to_resample_are_one(self, name):
        for photo in photos():
            one, other = (DeployPreprocess(RECORDS[name], resample=way)(batch(photo)) for way in ("native", "matmul"))
            assert_same_levels(one, other, RECORDS[name])

    def test_weights(self):
        weights = resize_weights(301, 64, 64, 0, "bilinear")
        side = torch.rand(1, 1, 301, 4)
        wanted = torch.nn.functional.interpolate(side, (64, 4), mode="bilinear", antialias=True)
        torch.testing.assert_close(weights @ side[0, 0], wanted[0, 0], rtol=0, atol=1e-5)


class TestDeployable:
    @pytest.mark.parametrize("task", TASKS)
    def test_smoke(self, task):
        model = build(task)
        graph = deployable(model, with_preprocess=True, with_decode=True)
        outputs = graph(batch(photos()[0]))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert len(outputs) == len(graph.output_names)
        assert not graph.training
        assert graph.task == task

    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("fused", [False, True])
    def test_raw_outputs_are_the_models(self, task, fused):
        model, image = build(task), torch.rand(2, 3, 64, 75)
        with torch.no_grad():
            torch.testing.assert_close(deployable(model, fused=fused)(image), model(image), rtol=1e-4, atol=1e-5)

    def test_model_is_left_as_it_is(self):
        model = build("segmentation").train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        deployable(model, dtype=torch.float16)
        assert model.training
        assert model.aux_head is not None
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize(
        ("task", "arguments", "message"),
        [
            ("classification", {"layout": "nhwc"}, "add with_preprocess=True"),
            ("classification", {"layout": "chw"}, "unknown layout 'chw'; available: 'nchw', 'nhwc'"),
            ("classification", {"resample": "nearest"}, "unknown resample 'nearest'; available: 'native', 'matmul'"),
            ("classification", {"nms": True, "with_decode": True}, "a model for classification gives none"),
            ("segmentation", {"nms": True}, "a model for segmentation gives none"),
            ("detection", {"nms": True}, "nms needs decoded boxes; add with_decode=True"),
        ],
    )
    def test_exception(self, task, arguments, message):
        with pytest.raises(ValueError) as error:
            deployable(build(task), **arguments)
        assert message in str(error.value)

    def test_exception_of_models(self):
        with pytest.raises(TypeError, match=r"MobileViT.*task"):
            deployable(MobileViT())
        with pytest.raises(ValueError, match=r"set model\.preprocess to a Preprocess"):
            deployable(MobileViTClassifier("xxs", 3), with_preprocess=True)

    def test_probabilities(self):
        model, image = build("classification"), torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(
                deployable(model, with_decode=True)(image), model(image).softmax(-1), rtol=1e-4, atol=1e-6
            )

    @pytest.mark.parametrize("name", ["squash", "letterbox", "shorter", "untouched"])
    def test_labels_are_those_of_predict(self, name):
        """But for pixels on a border between classes, which the preprocessing's rounding decides."""
        model = build("segmentation", preprocess=RECORDS[name])
        graph = deployable(model, with_preprocess=True, with_decode=True)
        for photo in photos():
            with torch.no_grad():
                given = graph(batch(photo))
                pipeline = AugmentationPipeline(preprocess=model.preprocess)
                ((_, maps, _),) = predict_maps(model, Batch(photo[None]), pipeline)
            assert given.shape == (1, *photo.shape[1:])
            assert given.dtype == torch.int64
            assert (given == maps.argmax(1)).float().mean() > 0.99

    @pytest.mark.parametrize("name", ["squash", "letterbox", "crop"])
    def test_boxes_are_those_of_predict(self, name):
        model = build("detection", preprocess=RECORDS[name])
        how = Suppression(score_threshold=0.2, max_detections=20)
        graph = deployable(model, with_preprocess=True, with_decode=True, nms=how)
        pipeline = AugmentationPipeline(preprocess=model.preprocess)

        def find(image):
            size = (image.shape[-2], image.shape[-1])
            return [found._asdict() for found in model.decode(*model(image), size, 0.2, max_detections=20)]

        for photo in photos():
            with torch.no_grad():
                boxes, scores, labels = graph(batch(photo))
                (wanted,) = predict_boxes(find, Batch(photo[None]), pipeline)
            count = len(wanted["scores"])
            assert count > 0
            torch.testing.assert_close(scores[0, :count], wanted["scores"], rtol=0, atol=0.02)
            assert (scores[0, count:] == 0).all()
            assert (labels[0, count:] == -1).all()
            # each box is among the others', as scores that are nearly equal may stand in another order
            distance = (boxes[0, :count, None] - wanted["boxes"][None]).abs().amax(-1)
            distance[labels[0, :count, None] != wanted["labels"]] = torch.inf
            near = distance.amin(1) < 0.02 * max(photo.shape)
            assert near.float().mean() > 0.9


class TestSuppression:
    def test_operator(self):
        torch.library.opcheck(suppress_boxes, (torch.rand(2, 7, 4), torch.rand(2, 3, 7), 4, 0.5, 0.1))

    def test_equals_decode(self):
        model, image = build("detection"), torch.rand(2, 3, 96, 64)
        with torch.no_grad():
            outputs = model(image)
            wanted = model.decode(*outputs, (96, 64), top_k=30, max_detections=25)
            boxes, scores, labels = Suppression(top_k=30, max_detections=25)(*model.locate(*outputs, (96, 64)))
        for i, found in enumerate(wanted):
            torch.testing.assert_close(boxes[i], found.boxes)
            torch.testing.assert_close(scores[i], found.scores)
            assert torch.equal(labels[i], found.labels)

    def test_the_threshold_is_exclusive(self):
        boxes, scores = torch.tensor([[[0.0, 0, 4, 4], [6, 6, 9, 9]]]), torch.tensor([[[0.75, 0.5]]])
        assert suppress_boxes(boxes, scores, 4, 0.5, 0.5).tolist() == [[[True, False]]]

    def test_fewer_boxes_than_asked_for(self):
        boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]]])
        scores = torch.tensor([[[0.9], [0.8], [0.3]]])
        kept, best, labels = Suppression(max_detections=4)(boxes, scores)
        assert labels.tolist() == [[0, 0, -1, -1]]
        torch.testing.assert_close(best, torch.tensor([[0.9, 0.3, 0.0, 0.0]]))
        assert kept[0].tolist() == [[0, 0, 4, 4], [6, 6, 9, 9], [0] * 4, [0] * 4]


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_networks_of_all_modes_have_the_same_operators(task):
    """So that files of one mode show for the others, in every format, that what is in them can be written and run."""
    seen = []
    for mode in ("xxs", "xs", "s"):
        program = torch.export.export(deployable(build(task, mode)), (torch.zeros(1, 3, 96, 128),))
        seen.append({str(node.target) for node in program.graph.nodes if node.op == "call_function"})
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]
    assert any("conv2d" in name for name in seen[0])
