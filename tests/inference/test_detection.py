"""Boxes brought back from preprocessed images."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.inference.detection import predict_boxes

RECORDS = st.sampled_from(
    [Preprocess((48, 32)), Preprocess((48, 32), letterbox=True), Preprocess((32, 64), letterbox=True), Preprocess(40)]
)


def found(boxes):
    return {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": torch.zeros(len(boxes), dtype=torch.long)}


class TestPredictBoxes:
    @given(RECORDS, st.lists(st.tuples(st.integers(8, 80), st.integers(8, 80)), min_size=1, max_size=3), st.data())
    def test_a_box_comes_back_to_where_it_was(self, record, sizes, data):
        """From each image's own place in the input, into the pixels of its file; images have none, one or two."""
        images, truths = [], []
        for height, width in sizes:
            images.append(
                {"image": torch.zeros(3, height, width), "original_size": torch.tensor([2 * height, 3 * width])}
            )
            whole = torch.tensor([[0.0, 0, width, height], [width / 8, height / 4, width / 2, height]])
            truths.append(whole[: data.draw(st.integers(0, 2))])
        batch = Batch.collate(images)
        pipeline = AugmentationPipeline(preprocess=record)

        def predict(image):
            return [
                found(boxes / torch.tensor([w, h] * 2) * torch.tensor(record.resized_size(h, w)[::-1] * 2))
                for boxes, (h, w) in zip(truths, sizes, strict=True)
            ]

        out = predict_boxes(predict, batch, pipeline)
        for one, boxes in zip(out, truths, strict=True):
            torch.testing.assert_close(one["boxes"], boxes * torch.tensor([3.0, 2, 3, 2]), atol=1e-3, rtol=1e-4)
            assert len(one["scores"]) == len(boxes)

    def test_clips(self):
        pipeline = AugmentationPipeline(preprocess=Preprocess((32, 32)))
        beyond = found(torch.tensor([[-5.0, 10, 40, 50]]))
        (out,) = predict_boxes(lambda image: [beyond], Batch(torch.rand(1, 3, 64, 96)), pipeline)
        torch.testing.assert_close(out["boxes"], torch.tensor([[0.0, 20, 96, 64]]))
