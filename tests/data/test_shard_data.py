"""ShardData: what it refuses, and runs of Lightning over it, of one process and of two."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from kornia_mvit import AugmentationPipeline, Preprocess
from kornia_mvit.data.reading import DataError
from kornia_mvit.training import ClassificationTask, ExactResume
from kornia_mvit.training.datamodules import ShardData
from kornia_mvit.training.preview import draw_preview
from tests.data.test_shards import cut_off, make_shards
from tests.data.test_streams import break_image
from tests.training.test_tasks import Tiny, trainer


def make(folder, sizes=(6, 5, 7), **arguments):
    make_shards(folder, sizes)
    arguments = {"batch_size": 4, "num_workers": 0, "num_classes": 2, "storage_size": 16} | arguments
    shards = str(folder / "*.tar")
    return ShardData(shards, arguments.pop("val", shards), **arguments)


class Seen(pl.Callback):
    """The images' numbers, which are their shades, by epoch and batch."""

    def __init__(self):
        self.train, self.val = {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.train.setdefault(trainer.current_epoch, []).append([meta["path"] for meta in batch.meta])

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.val += [meta["path"] for meta in batch.meta]


class TestShardData:
    def test_feature(self, tmp_path, caplog):
        (tmp_path / "names.txt").write_text("even\nodd\n")
        data = make(tmp_path, num_classes=None, class_names=str(tmp_path / "names.txt"), test=str(tmp_path / "001-*"))
        with caplog.at_level("INFO"):
            data.setup()
        assert "2 classes (even, odd), 18 images in 3 shards in train" in caplog.text
        assert data.class_names == ("even", "odd")
        train, val, test = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
        assert [len(loader) for loader in (train, val, test)] == [4, 5, 2]
        assert [len(batch) for batch in train] == [4] * 4
        assert [batch.label.tolist() for batch in test] == [[0, 1, 0, 1], [0]]
        batch = next(iter(val))
        assert batch.image.shape == (4, 3, 16, 20)
        assert batch.original_size.tolist() == [[8, 10]] * 4

    def test_a_run(self, tmp_path, caplog):
        """Every epoch in an order of its own, and told of what is left out."""
        seen = Seen()
        run = trainer(tmp_path, max_epochs=3, callbacks=[seen], num_sanity_val_steps=0)
        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=16)
        with caplog.at_level("INFO"):
            run.fit(task, make(tmp_path))
        assert {epoch: len(batches) for epoch, batches in seen.train.items()} == {0: 4, 1: 4, 2: 4}
        assert len({str(batches) for batches in seen.train.values()}) == 3
        assert all(len({path for batch in batches for path in batch}) == 16 for batches in seen.train.values())
        assert len(seen.val) == 3 * 18 == 3 * len(set(seen.val))
        for epoch in range(3):
            assert caplog.text.count(f"epoch {epoch}: 2 of 18 samples left out") == 1

    def test_goes_on_in_an_epoch_and_at_its_start(self, tmp_path):
        def fit(folder, path=None, **arguments):
            keep = ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{step}", every_n_train_steps=1)
            seen = Seen()
            run = trainer(tmp_path, max_epochs=2, callbacks=[seen, ExactResume(), keep], enable_checkpointing=True)
            task = ClassificationTask(num_classes=2, network=Tiny(), image_size=16)
            run.fit(task, make(tmp_path, **arguments), ckpt_path=path, weights_only=True)
            assert run.global_step == sum(map(len, seen.train.values())) + (0 if path is None else int(path.stem[5:]))
            return seen.train

        def names(epoch):
            return [path for batch in epoch for path in batch]

        whole = fit("a")
        with warnings.catch_warnings(record=True) as caught:  # Lightning has more to say, of where checkpoints are kept
            warnings.simplefilter("always")
            assert fit("b", tmp_path / "a" / "step=4.ckpt")[1] == whole[1]
            assert fit("c", tmp_path / "a" / "step=2.ckpt") == {0: whole[0][2:], 1: whole[1]}
            assert "not resumable" not in str([warning.message for warning in caught])
            other = fit("d", tmp_path / "a" / "step=2.ckpt", batch_size=3, drop_last=False)
            assert [len(batch) for batch in other[0]] == [3, 3, 3, 1], "18 less two batches of 4"
            assert len({*names(whole[0][:2]), *names(other[0])}) == 18
            assert len(set(names(other[1]))) == 18, "and the next epoch is whole"
            more = fit("f", tmp_path / "a" / "step=2.ckpt", batch_size=5)
            assert [[len(batch) for batch in epoch] for epoch in more.values()] == [[5, 5], [5, 5, 5]], "one step more"
            none = fit("e", tmp_path / "a" / "step=3.ckpt", batch_size=7)
            assert (0 in none, [len(batch) for batch in none[1]]) == (False, [7, 7])

    def test_batches_of_many_sizes(self, tmp_path):
        pipeline = AugmentationPipeline(
            preprocess=Preprocess((32, 32)), multi_scale=((16, 16), (32, 32), (48, 48)), seed=2
        )

        class Areas(Seen):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                self.train.setdefault(0, []).append((batch.image.shape[-1], len(batch)))

        seen = Areas()
        task = ClassificationTask(num_classes=2, network=Tiny(), pipeline=pipeline)
        trainer(tmp_path, callbacks=[seen], limit_val_batches=0).fit(task, make(tmp_path, [30, 30]))
        assert all(count == {16: 16, 32: 4, 48: 2}[size] for size, count in seen.train[0])
        assert len(seen.train[0]) > 2

    def test_preview(self, tmp_path):
        data = make(tmp_path)
        data.setup()
        sheet = draw_preview(data.splits["train"], AugmentationPipeline(), data.class_names, count=2, copies=1)
        assert sheet.width > sheet.height / 2

    def test_what_was_skipped(self, tmp_path):
        shards = make_shards(tmp_path, [6, 5, 7])
        break_image(shards[1], 2)
        cut_off(shards[2])
        (tmp_path / "sizes.json").unlink()
        with pytest.raises(DataError, match=f"{shards[2]}: unexpected end of data"):
            ShardData(shards, shards, num_classes=2)
        data = ShardData(shards, shards[:1], 2, 0, 16, num_classes=2, on_error="skip")
        with pytest.warns(UserWarning, match=rf"1 shards:\n.*{shards[2]}"):
            data.setup()
        with pytest.warns(UserWarning, match=rf"number 1: .*{shards[1]}/000000002\.png"):
            assert [len(batch) for batch in data.train_dataloader()] == [2] * 5
        assert len(data.skipped) == 2
        assert [name in reason for name, reason in zip((shards[2], shards[1]), data.skipped, strict=True)] == [True] * 2

    def test_exception(self, tmp_path):
        (tmp_path / "sizes.json").write_text(json.dumps({"none.tar": 0}))
        for arguments, message in [
            ({"num_classes": None}, "the number of classes is missing; give num_classes, or class_names"),
            ({"class_names": ["a", "b", "c"]}, "3 class_names, but num_classes is 2"),
            ({"class_names": ["a", "a"]}, r"2 classes \(a, a\): give two or more, each once"),
            ({"class_names": "no.txt"}, r"no such class names: no\.txt"),
            ({"on_error": "ignore"}, "available: 'raise', 'skip'"),
            ({"shuffle_buffer": 0}, "shuffle_buffer 0 is not at least one"),
            ({"batch_size": 0}, "batch_size 0"),
            ({"val": "no.tar"}, r"no such shard: no\.tar"),
            ({"val": f"pipe:cat {tmp_path}/a.tar"}, "1 shards are not local"),
        ]:
            with pytest.raises(ValueError, match=message):
                make(tmp_path, **arguments)
        data = make(tmp_path)
        data.setup()
        with pytest.raises(DataError, match=r"test split; name shards.*as test, or run validate"):
            data.test_dataloader()


PROGRAM = """
import sys, torch
from tests.data.test_shard_data import Seen, ShardData
from tests.training.test_tasks import ClassificationTask, Tiny, trainer

folder = sys.argv[1]
data = ShardData(f"{folder}/*.tar", f"{folder}/*.tar", 4, 2, 16, num_classes=2, on_error="skip")
seen = Seen()
run = trainer(folder, max_epochs=2, callbacks=[seen], num_sanity_val_steps=0, devices=2, strategy="ddp")
run.fit(ClassificationTask(num_classes=2, network=Tiny(), image_size=16), data)
torch.save([seen.train, seen.val], f"{folder}/{run.global_rank}.pt")
"""


@pytest.mark.long
@pytest.mark.processes
def test_a_run_of_two_processes(tmp_path):
    """Unequal shards, a broken image: processes train on shares of their own, stop together and validate together."""
    shards = make_shards(tmp_path, [9, 3, 14, 1, 4])
    break_image(shards[2], 5)
    (tmp_path / "run.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for epoch in range(2):
        ours, theirs = ({path for batch in part[0][epoch] for path in batch} for part in (first, second))
        assert len(first[0][epoch]) == len(second[0][epoch]) == 3
        assert not ours & theirs
        assert run.stderr.count(f"epoch {epoch}: 7 of 31 samples left out") == 1
    assert len(first[1] + second[1]) == 2 * 30 == 2 * len(set(first[1] + second[1]))
    assert f"{shards[2]}/000000005.png" in run.stderr
