"""What stands beside an image in a shard: label images and boxes that are right, and those that are not."""

import io
import json

import pytest
import torch
from PIL import Image

from kornia_mvit.data.loading.shards import ShardFiles
from kornia_mvit.data.loading.streams import ShardBatches, ShardLoader
from kornia_mvit.data.loading.targets import TargetError
from kornia_mvit.data.reading import DataError
from tests.data.test_shards import make_tar


def picture(mode="RGB", size=(10, 8), value=0, kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, kind)
    return file.getvalue()


def files(path, *members, **arguments):
    """A shard of one sample with an image."""
    shard = make_tar(path / "a.tar", [("1.jpg", picture(kind="JPEG")), *members])
    return ShardFiles({shard: 1}, ["even", "odd"], **arguments)


class TestMasks:
    def test_feature(self, tmp_path):
        sample = files(tmp_path, ("1.mask.png", picture("L", value=1)), targets="mask")[0]
        assert sample["image"].shape == (3, 8, 10)
        assert torch.equal(sample["mask"], torch.ones(8, 10, dtype=torch.int64))
        assert "label" not in sample

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ([], r"a\.tar/1 has no label image: it needs a file 1\.mask\.png"),
            ([("1.mask.png", picture("L", value=2))], r"1\.mask\.png has class 2, but there are 2 classes.*Ignored: 9"),
            ([("1.mask.png", picture("L", (8, 8)))], r"a\.tar/1 is 8x10, but its label image 8x8"),
            ([("1.mask.png", b"broken")], r"not a label image|1\.mask\.png"),
        ],
    )
    def test_exception(self, members, message, tmp_path):
        with pytest.raises(DataError, match=message):
            files(tmp_path, *members, targets="mask", ignore_index=9)[0]

    def test_a_wrong_class_is_not_skipped(self, tmp_path):
        wrong = files(tmp_path, ("1.mask.png", picture("L", value=2)), targets="mask")
        with pytest.raises(TargetError, match="has class 2"):
            next(iter(ShardLoader(ShardBatches(wrong, 1, on_error="skip"))))


class TestBoxes:
    def test_feature(self, tmp_path):
        found = {"boxes": [[1, 2, 5, 7], [0, 0, 99, 8]], "labels": ["odd", 0], "crowd": [False, True], "image_id": 6}
        sample = files(tmp_path, ("1.json", json.dumps(found).encode()), targets="boxes")[0]
        assert sample["boxes"].tolist() == [[1, 2, 5, 7], [0, 0, 10, 8]]
        assert sample["box_label"].tolist() == [1, 0]
        assert sample["box_ignore"].tolist() == [False, True]
        assert sample["meta"] == {
            "path": f"{tmp_path}/a.tar/1.jpg", "image_id": 6, "box_area": [20, 80], "box_crowd": [False, True]
        }  # fmt: skip
        none = files(tmp_path, ("1.json", b'{"boxes": [], "labels": []}'), targets="boxes")[0]
        assert none["boxes"].shape == (0, 4)

    def test_bad_boxes(self, tmp_path):
        found = {"boxes": [[1, 2, 5, 7], [3, 3, 3, 4], [20, 0, 30, 8]], "labels": [0, 1, 1]}
        member = ("1.json", json.dumps(found).encode())
        loader = ShardLoader(ShardBatches(files(tmp_path, member, targets="boxes"), 1))
        with pytest.warns(UserWarning, match=r"a\.tar/1: box \[.*\] (has no area|lies outside)") as caught:
            (batch,) = loader
        assert len(caught) == len(loader.skipped) == 2
        assert batch.boxes.tolist() == [[[1, 2, 5, 7]]]
        with pytest.raises(TargetError, match=r"a\.tar/1: box \[3, 3, 3, 4\] has no area; on_bad_box='drop'"):
            files(tmp_path, member, targets="boxes", on_bad_box="raise")[0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, r"a\.tar/1 has no boxes: it needs a \.json file"),
            ("[]", r"the \.json file of .*a\.tar/1 needs 'boxes' and 'labels'"),
            ('{"boxes": [[1, 2, 3]], "labels": [0]}', r"box \[1, 2, 3\] of .* is not left, top"),
            ('{"boxes": [[1, 2, 3, "4"]], "labels": [0]}', "is not left, top"),
            ('{"boxes": [[1, 2, 3, 1e400]], "labels": [0]}', "is not left, top"),
            ('{"boxes": [[1, 2, 3, 4]], "labels": []}', r"'labels' of .* is \[\], not a list with an entry"),
            ('{"boxes": 3, "labels": []}', "'boxes' of .* is 3, not a list"),
            ('{"boxes": [[1, 2, 3, 4]], "labels": ["third"]}', "label .*third.* is none of the 2 classes"),
            ("{", r"a\.tar/1"),
        ],
    )
    def test_exception(self, text, message, tmp_path):
        members = [] if text is None else [("1.json", text.encode())]
        with pytest.raises(DataError, match=message):
            files(tmp_path, *members, targets="boxes")[0]

    def test_unknown_targets(self, tmp_path):
        with pytest.raises(ValueError, match="unknown targets 'sound'; available: 'label', 'mask', 'boxes'"):
            files(tmp_path, targets="sound")
