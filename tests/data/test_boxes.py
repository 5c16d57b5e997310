"""Tables of boxes, and the dataset of images with them."""

import pickle

import pytest
import torch
from PIL import Image

from kornia_mvit.data.boxes import BoxFiles, BoxRows, build_table
from kornia_mvit.data.reading import DataError
from kornia_mvit.data.storage import StorageResize


def rows(boxes, image=None, labels=None, crowd=None, areas=None):
    count = len(boxes)
    return BoxRows(
        torch.tensor([0] * count if image is None else image, dtype=torch.long),
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor([0] * count if labels is None else labels, dtype=torch.long),
        torch.zeros(count, dtype=torch.bool),
        torch.tensor([False] * count if crowd is None else crowd, dtype=torch.bool),
        torch.tensor([torch.nan] * count if areas is None else areas, dtype=torch.float64),
    )


SIZES = torch.tensor([[30, 40], [30, 40], [60, 20]])


class TestBuildTable:
    def test_boxes_of_an_image_stand_together(self):
        given = rows([[0, 0, n + 1, 5] for n in range(5)], image=[2, 0, 2, 0, 2], labels=[0, 1, 2, 3, 4])
        table, faults, clipped = build_table(given, SIZES)
        assert (faults, clipped, len(table)) == ({}, 0, 3)
        assert table.starts.tolist() == [0, 2, 2, 5]
        assert table.labels.tolist() == [1, 3, 0, 2, 4]
        assert table.areas.tolist() == [10, 20, 5, 15, 25]
        some = table.select([2, 1, 2])
        assert some.starts.tolist() == [0, 3, 3, 6]
        assert some.labels.tolist() == [0, 2, 4] * 2
        assert some.sizes.tolist() == [[60, 20], [30, 40], [60, 20]]
        assert len(table.select([])) == 0

    def test_clipping(self):
        given = rows([[-5, 2, 10, 40], [0, 0, 40.02, 30], [39, 0, 41, 30], [50, 0, 60, 9], [5, 5, 5, 9], [9, 9, 5, 5]])
        table, faults, clipped = build_table(given, SIZES)
        assert table.boxes.tolist() == [[0, 2, 10, 30], [0, 0, 40, 30], [39, 0, 40, 30]]
        assert faults == {3: "lies outside the image", 4: "has no area", 5: "has no area"}
        assert clipped == 2, "a box beyond by less than a thousandth was rounded, not wrong"

    def test_nothing(self):
        table, faults, clipped = build_table(rows([]), SIZES)
        assert (len(table), faults, clipped) == (3, {}, 0)
        assert table.boxes.shape == (0, 4)


class TestBoxFiles:
    def files(self, folder, given, sizes=SIZES[:1], **arguments):
        table, _, _ = build_table(given, sizes, relative=arguments.pop("relative", False))
        path = folder / "a.png"
        Image.new("RGB", (40, 30)).save(path)
        return BoxFiles([path], table, **arguments)

    def test_sample(self, tmp_path):
        given = rows([[0, 0, 20, 10], [5, 5, 40, 30]], labels=[1, 0], crowd=[False, True], areas=[150, torch.nan])
        sample = self.files(tmp_path, given, image_ids=[77])[0]
        assert sample["boxes"].tolist() == [[0, 0, 20, 10], [5, 5, 40, 30]]
        assert sample["box_label"].tolist() == [1, 0]
        assert sample["box_ignore"].tolist() == [False, True]
        assert sample["original_size"].tolist() == [30, 40]
        assert sample["meta"] == {
            "path": str(tmp_path / "a.png"),
            "image_id": 77,
            "box_area": [150.0, 875.0],
            "box_crowd": [False, True],
        }

    def test_shares(self, tmp_path):
        sample = self.files(tmp_path, rows([[0.25, 0.5, 0.5, 1.0]]), relative=True)[0]
        assert sample["boxes"].tolist() == [[10, 15, 20, 30]]
        assert sample["meta"]["box_area"] == [150.0]

    def test_samples_are_not_the_tables_own(self, tmp_path):
        files = self.files(tmp_path, rows([[0, 0, 20, 10]]))
        for value in files[0].values():
            if isinstance(value, torch.Tensor):
                value.fill_(1)
        assert files[0]["boxes"].tolist() == [[0, 0, 20, 10]]
        assert files[0]["box_label"].tolist() == [0]

    def test_boxes_are_resized_with_their_image(self, tmp_path):
        files = self.files(tmp_path, rows([[10, 15, 20, 30]]), transform=StorageResize(60))
        sample = files[0]
        assert sample["image"].shape == (3, 60, 80)
        assert sample["boxes"].tolist() == [[20, 30, 40, 60]]
        assert sample["original_size"].tolist() == [30, 40]
        assert sample["meta"]["box_area"] == [150.0], "in pixels of the file"

    def test_pickle(self, tmp_path):
        files = pickle.loads(pickle.dumps(self.files(tmp_path, rows([[0, 0, 20, 10]]))))
        assert files[0]["boxes"].tolist() == [[0, 0, 20, 10]]

    def test_exception(self, tmp_path):
        files = self.files(tmp_path, rows([[0, 0, 20, 10]]), sizes=torch.tensor([[40, 30]]))
        with pytest.raises(DataError, match=r"a\.png.*30x40.*EXIF.*40x30"):
            files[0]
        with pytest.raises(ValueError, match=r"2 files.*1 images"):
            BoxFiles(files.files * 2, files.table)
