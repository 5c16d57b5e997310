"""Writing datasets into shards, and training each task from these."""

import json
import re
import tarfile

import pytest
import torch
from PIL import Image

import kornia_mvit
from kornia_mvit.cli import main
from kornia_mvit.data.loading import packing
from kornia_mvit.data.loading.index import ShardIndex
from kornia_mvit.data.reading import DataError, ImageFiles, read_image
from kornia_mvit.training import ClassificationTask, DetectionTask, SegmentationTask
from kornia_mvit.training.datamodules import COCOData, FolderData, ShardData, TableData, YOLOData
from kornia_mvit.training.packing import ShardSet, shards
from tests.training.shapes import make_coco, make_pairs, make_yolo
from tests.training.test_segmentation import Pixels
from tests.training.test_tasks import Tiny, trainer


def make_photos(folder, counts=(11, 9), splits=("train", "val")):
    """Grey images of a shade each, in folders of classes."""
    for split in splits:
        for label, count in enumerate(counts):
            for number in range(count):
                file = folder / split / "ab"[label] / f"{number}.{'png' if number % 2 else 'bmp'}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (12 + number, 9), (10 * number, 100 * label, 0)).save(file)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_all(data, split="val"):
    data.setup()
    return [data.splits[split][number] for number in range(len(data.splits[split]))]


class TestShards:
    def test_a_folder_of_classes(self, tmp_path, caplog):
        photos = make_photos(tmp_path / "photos")
        with caplog.at_level("INFO"):
            written = kornia_mvit.shards(photos, tmp_path / "a", max_count=6, processes=1)
        assert isinstance(written, ShardSet)
        assert [entry.samples for entry in written.index.splits["train"]] == [6, 6, 6, 2]
        assert str(written).startswith(
            f"{tmp_path}/a: 20 samples in 4 shards in train, 20 samples in 4 shards in val; "
        )
        told = re.search(r"40 samples will take about ([\d.]+) kB", caplog.text)
        assert abs(1000 * float(told[1]) - written.bytes) <= 8 * 10_240, "as a tar has whole records"
        assert sorted(contents(tmp_path / "a")) == [
            "index.json", "sizes.json", *(f"{split}-0000{k}.tar" for split in ("train", "val") for k in range(4))
        ]  # fmt: skip
        data = ShardData(str(tmp_path / "a"), batch_size=4, num_workers=0, storage_size=9)
        assert data.class_names == ("a", "b")
        names = [name for batch in (data.setup(), *data.train_dataloader())[1:] for name in batch.label.tolist()]
        assert (len(names), sum(names)) == (20, 9)
        folder = FolderData(str(photos), storage_size=9, num_workers=0)
        folder.setup()
        file = folder.splits["val"].files[6]
        with tarfile.open(tmp_path / "a" / "val-00001.tar") as archive:
            assert archive.getnames()[:2] == [f"000000006{file.suffix}", "000000006.cls"]
            assert archive.extractfile(archive.getnames()[0]).read() == file.read_bytes()

    def test_a_folder_of_classes_that_is_encoded(self, tmp_path):
        shards(make_photos(tmp_path / "photos"), tmp_path / "a", size=6, quality=80, processes=1)
        with tarfile.open(tmp_path / "a" / "val-00000.tar") as archive:
            assert archive.getnames()[:2] == ["000000000.jpg", "000000000.cls"]
            assert archive.extractfile("000000019.cls").read() == b"1"
            assert Image.open(archive.extractfile("000000019.jpg")).size == (12, 5)
        read = read_all(ShardData(str(tmp_path / "a"), batch_size=4, num_workers=0))
        assert [int(sample["label"]) for sample in read] == [0] * 11 + [1] * 9

    def test_the_same_bytes_each_time(self, tmp_path):
        photos = make_photos(tmp_path / "photos")
        for name, processes in (("a", 1), ("b", 2)):
            shards(photos, tmp_path / name, max_count=5, quality=80, processes=processes)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        shards(photos, tmp_path / "c", max_count=5, quality=80, processes=1, seed=1)
        assert contents(tmp_path / "c")["train-00000.tar"] != contents(tmp_path / "a")["train-00000.tar"]
        assert contents(tmp_path / "c")["val-00000.tar"] == contents(tmp_path / "a")["val-00000.tar"]

    @pytest.mark.parametrize("torn", [False, True])
    def test_goes_on_where_it_was_interrupted(self, tmp_path, torn, monkeypatch):
        photos = make_photos(tmp_path / "photos")
        shards(photos, tmp_path / "a", max_count=5, processes=1)
        written, write = [], packing._write_shard

        def counted(job):
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(job[2])
            return write(job)

        monkeypatch.setattr(packing, "_write_shard", counted)
        with pytest.raises(KeyboardInterrupt):
            shards(photos, tmp_path / "b", max_count=5, processes=1)
        assert not (tmp_path / "b" / "index.json").exists()
        if torn:  # the third line was not written to its end, and a file was cut
            progress = tmp_path / "b" / "progress.jsonl"
            progress.write_text(progress.read_text()[:-9])
            (tmp_path / "b" / written[1]).write_bytes(b"")
        done, before = set(written) if not torn else {written[0]}, len(written)
        written.clear()
        monkeypatch.setattr(packing, "_write_shard", lambda job: written.append(job[2]) or write(job))
        shards(photos, tmp_path / "b", max_count=5, processes=1)
        assert (before, len(written)) == (3, 8 - len(done))
        assert not done & set(written)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        with pytest.raises(DataError, match=r"b has an index\.json; the set is whole"):
            shards(photos, tmp_path / "b", max_count=5, processes=1)

    def test_the_beginning_of_another_set(self, tmp_path):
        photos = make_photos(tmp_path / "photos")
        encoder = packing.SampleEncoder(ImageFiles([*(photos / "train" / "a").iterdir()], [0] * 11))
        packing.write_planned([packing.ShardPlan("train", encoder, range(11), 4)], tmp_path / "a")
        with pytest.raises(DataError, match=r"a has the beginning of another set of shards.*give another folder"):
            shards(photos, tmp_path / "a", processes=1)

    def test_a_table_and_a_data_module(self, tmp_path):
        photos = make_photos(tmp_path / "photos")
        lines = [f"{path},{path.parent.name}" for path in sorted((photos / "train").rglob("*.*"))]
        (tmp_path / "a.csv").write_text("\n".join(["path,label", *lines]))
        first = shards(tmp_path / "a.csv", tmp_path / "a", processes=1)
        second = shards(TableData(str(tmp_path / "a.csv")), tmp_path / "b", processes=1)
        assert first.index == second.index
        assert sum(entry.samples for entries in first.index.splits.values() for entry in entries) == 20

    def test_label_images(self, tmp_path):
        shards(make_pairs(tmp_path / "photos", 3, (40, 56)), tmp_path / "a", processes=1)
        data = ShardData(str(tmp_path / "a"), batch_size=2, num_workers=0)
        assert (data.targets, data.class_names) == ("mask", ("0", "1", "2", "3"))
        samples = read_all(data)
        for number, sample in enumerate(samples):
            assert torch.equal(sample["image"], read_image(tmp_path / "photos" / "val" / f"{number}.png"))
        smaller = shards(tmp_path / "photos", tmp_path / "b", size=20, processes=1)
        assert smaller.bytes < 100_000
        stored = read_all(ShardData(str(tmp_path / "b"), batch_size=2, num_workers=0))
        for sample, other in zip(samples, stored, strict=True):
            assert (sample["mask"].shape, other["mask"].shape) == ((40, 56), (20, 28))
            same = sample["mask"][10::20, 10::20] == other["mask"][5::10, 5::10]
            assert same.float().mean() > 0.6
        task = SegmentationTask(
            num_classes=4, image_size=32, network=Pixels(), policy_args={"short_side": (32, 48)}, aspp_channels=8
        )
        run = trainer(tmp_path, num_sanity_val_steps=0)
        run.fit(task, ShardData(str(tmp_path / "a"), batch_size=2, num_workers=0))
        assert "val/miou" in run.callback_metrics

    @pytest.mark.parametrize("kind", ["coco", "yolo"])
    def test_boxes(self, kind, tmp_path):
        make = {"coco": make_coco, "yolo": make_yolo}[kind]
        data = {"coco": COCOData, "yolo": YOLOData}[kind](str(make(tmp_path / "photos")), num_workers=0)
        shards(data, tmp_path / "a", processes=1)
        samples = [data.splits["val"][k] for k in range(len(data.splits["val"]))]
        packed = ShardData(str(tmp_path / "a"), batch_size=2, num_workers=0)
        assert (packed.targets, packed.class_names) == ("boxes", data.class_names)
        found = read_all(packed)
        for sample, other in zip(samples, found, strict=True):
            assert torch.equal(sample["image"], other["image"])
            torch.testing.assert_close(sample["boxes"], other["boxes"], atol=1e-3, rtol=0)
            for name in ("box_label", "box_ignore", "original_size"):
                assert torch.equal(sample[name], other[name])
            assert other["meta"]["box_area"] == pytest.approx(sample["meta"]["box_area"], abs=1e-3)
            for name in ("image_id", "box_crowd"):
                assert sample["meta"][name] == other["meta"][name]
        shards(data, tmp_path / "b", size=30, quality=70, processes=1)
        half = ShardData(str(tmp_path / "b"), num_workers=0)
        half.setup()
        for sample, other in zip(samples, half.splits["val"], strict=False):
            scale = 30 / min(sample["image"].shape[1:])
            torch.testing.assert_close(sample["boxes"] * scale, other["boxes"], atol=0.6, rtol=0.02)
            assert other["meta"]["box_area"] == pytest.approx(
                [area * scale**2 for area in sample["meta"]["box_area"]], rel=0.03
            )

    @pytest.mark.parametrize("name", ["keypoints", "outlines"])
    def test_what_shards_do_not_hold_is_refused(self, name, tmp_path):
        data = COCOData(str(make_coco(tmp_path / "photos")), num_workers=0)
        data.setup()
        setattr(data.splits["train"].table, name, [])
        with pytest.raises(ValueError, match=f"shards hold boxes without {name}"):
            packing.SampleEncoder(data.splits["train"])

    def test_detection_is_trained(self, tmp_path):
        shards(make_coco(tmp_path / "photos"), tmp_path / "a", processes=1)
        run = trainer(tmp_path, num_sanity_val_steps=0)
        task = DetectionTask(num_classes=3, image_size=64)
        run.fit(task, ShardData(str(tmp_path / "a"), batch_size=2, num_workers=0))
        assert {"train/loss", "val/map"} <= run.callback_metrics.keys()

    def test_classification_is_trained(self, tmp_path):
        shards(make_photos(tmp_path / "photos"), tmp_path / "a", processes=1)
        run = trainer(tmp_path, num_sanity_val_steps=0)
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=16)
        run.fit(task, ShardData(str(tmp_path / "a" / "index.json"), batch_size=4, num_workers=0))
        assert "val/accuracy" in run.callback_metrics

    def test_check(self, tmp_path):
        shards(make_photos(tmp_path / "photos"), tmp_path / "a", max_count=8, processes=1)
        assert "all are as their checksums say" in str(shards(tmp_path / "a", check=True))
        first, second, third = (tmp_path / "a" / f"train-0000{k}.tar" for k in range(3))
        content = bytearray(first.read_bytes())
        content[-2000] ^= 1
        first.write_bytes(content)
        second.write_bytes(second.read_bytes()[:-512])
        third.unlink()
        with pytest.raises(DataError, match="3 of 6 shards are not as") as error:
            shards(tmp_path / "a", check=True)
        told = str(error.value)
        assert "train-00000.tar has another checksum" in told
        assert "train-00001.tar has" in told
        assert "train-00002.tar: No such file" in told
        with pytest.raises(DataError, match=r"shard .*train-00001\.tar has \d+ bytes, but \d+ by its index\.json"):
            ShardData(str(tmp_path / "a"))
        assert len(ShardData(str(tmp_path / "a"), on_error="skip").skipped) == 2

    def test_command(self, tmp_path, capsys):
        photos = make_photos(tmp_path / "photos")
        assert main(["shards", str(photos), str(tmp_path / "a"), "--size", "8", "--processes", "1"]) == 0
        assert "20 samples in 1 shard in train" in capsys.readouterr().out
        assert main(["shards", str(tmp_path / "a"), "--check"]) == 0
        assert "all are as their checksums say" in capsys.readouterr().out
        (tmp_path / "a" / "val-00000.tar").unlink()
        assert main(["shards", str(tmp_path / "a"), "--check"]) == 2
        assert "1 of 2 shards are not as" in capsys.readouterr().err

    def test_exception(self, tmp_path):
        photos = make_photos(tmp_path / "photos", (2, 2))
        for arguments, message in [
            ({}, r"give the folder that the shards go to \(out\), or check=True"),
            ({"out": tmp_path / "b", "check": True}, "check takes the folder of the shards alone"),
            ({"out": tmp_path / "b", "quality": 0}, "quality 0 is not between 1 and 100"),
            ({"out": tmp_path / "b", "max_count": 0}, "max_count 0 and processes"),
            ({"out": tmp_path / "b", "size": 0}, "size 0"),
        ]:
            with pytest.raises(ValueError, match=message):
                shards(photos, **arguments)
        with pytest.raises(ValueError, match="train of DigitsData are no files of images"):
            shards(kornia_mvit.DigitsData(), tmp_path / "b")
        (photos / "val" / "a" / "0.bmp").write_bytes(b"broken")
        with pytest.raises(DataError, match=r"not an image, .*0\.bmp"):
            shards(photos, tmp_path / "c", quality=50, processes=1)
        with pytest.raises(DataError, match="cannot read the index of shards"):
            shards(tmp_path, check=True)
        with pytest.raises(ValueError, match=r"no shards to validate on; give val"):
            ShardData(str(tmp_path / "*.tar"), num_classes=2)

    def test_too_small_a_disk(self, tmp_path, monkeypatch):
        photos = make_photos(tmp_path / "photos", (2, 2))
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
        with pytest.raises(OSError, match=r"needs about .* kB, and its disk has 100 bytes left"):
            shards(photos, tmp_path / "b", processes=1)


class TestShardIndex:
    @pytest.mark.parametrize(
        "change",
        [
            {"format": "another"}, {"targets": "sound"}, {"splits": 3}, {"splits": {"train": [{"name": "a"}]}},
            {"splits": {"train": [{"name": "../a.tar", "samples": 1, "bytes": 1, "sha256": ""}]}},
            {"splits": {"train": [{"name": "a.tar", "samples": -1, "bytes": 1, "sha256": ""}]}}, {"class_names": 7},
        ],
    )  # fmt: skip
    def test_exception(self, change):
        good = json.loads(ShardIndex("label", ("a", "b"), {}).text())
        with pytest.raises(DataError, match=r"x\.json is not the index of shards"):
            ShardIndex.parse(json.dumps(good | change), "x.json")
