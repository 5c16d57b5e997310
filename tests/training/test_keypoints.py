"""Keypoints on their way from files through a task: carried, and their pairs handed to its pipeline."""

import pytest
import torch

from kornia_mvit import AugmentationPipeline, Preprocess, policies
from kornia_mvit.training import DetectionTask
from kornia_mvit.training.datamodules import COCOData
from kornia_mvit.training.keypoints import adopt_flip_pairs
from tests.data.people import make_coco_people
from tests.training.test_tasks import trainer

FILES = {f"{split}_file": f"annotations/person_keypoints_{split}2017.json" for split in ("train", "val")}


class TestAdoptFlipPairs:
    @pytest.mark.parametrize(
        ("own", "pairs", "expected"),
        [
            (None, [[0, 1]], ((0, 1),)),
            (None, None, None),
            ([(2, 3)], [(0, 1)], ((2, 3),)),
            ([], [(0, 1)], ()),
        ],
    )
    def test_feature(self, own, pairs, expected):
        pipeline = AugmentationPipeline(keypoint_flip_pairs=own)
        adopt_flip_pairs(pipeline, type("Data", (), {"keypoint_flip_pairs": pairs}))
        assert pipeline.keypoint_flip_pairs == expected
        adopt_flip_pairs(pipeline, None)
        assert pipeline.keypoint_flip_pairs == expected


def test_a_detector_trains_on_boxes_with_keypoints(tmp_path):
    """The loss is that without keypoints, and the task's pipeline swaps the pairs that the file names."""
    losses, seen = [], []
    for keypoints in (True, False):
        data = COCOData(
            str(make_coco_people(tmp_path / str(keypoints))),
            keypoints=keypoints,
            num_workers=0,
            batch_size=3,
            storage_size=64,
            **FILES,
        )
        torch.manual_seed(0)
        pipeline = AugmentationPipeline(policies.detection_train(64), preprocess=Preprocess((64, 64)))
        task = DetectionTask(num_classes=1, pipeline=pipeline)
        train = trainer(tmp_path, max_steps=1)
        train.fit(task, datamodule=data)
        losses.append(float(train.callback_metrics["train/loss"]))
        seen.append(task.pipeline.keypoint_flip_pairs)
    assert losses[0] == losses[1]
    assert (len(seen[0]), seen[1]) == (8, None)
