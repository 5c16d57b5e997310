"""Files that a checkpoint names, and which of them count."""

import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from kornia_mvit.training.loading import confine_paths


class TestConfinePaths:
    def test_paths(self, tmp_path):
        own, other = tmp_path / "run", tmp_path / "other"
        own.mkdir()
        other.mkdir()
        (own / "link.ckpt").symlink_to(other / "a.ckpt")
        (own / "up").symlink_to(other)
        callback = ModelCheckpoint(dirpath=own)
        outside = [
            other / "a.ckpt",
            own,
            own / ".." / "other" / "a.ckpt",
            own / "link.ckpt",
            own / "up" / "a.ckpt",
            own / "notes.txt",
            f"local://{own}/a.ckpt",
            f"file://{own}/a.ckpt",
            f"simplecache::file://{own}/a.ckpt",
            f"http://localhost{own}/a.ckpt",
            f"{own}/a\n.ckpt",
            f"{own}x/a.ckpt",
        ]
        for path in (*map(str, outside), 5, None, ["a"]):
            for key in ("ModelCheckpoint", ModelCheckpoint):
                state = {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path}
                if isinstance(path, str):
                    state["best_k_models"] = {str(own / "a.ckpt"): 1.0, path: 1.0}
                confine_paths({"callbacks": {key: state, "EMA": {"decay": 0.9}}}, [callback])
                assert {*state.values()} == {""} if "best_k_models" not in state else state.pop("best_k_models") == {}
                assert {*state.values()} == {""}
        path = str(own / "sub" / "a.ckpt")
        state = {"best_model_path": path, "best_k_models": {path: torch.ones(())}, "kth_best_model_path": path}
        before = dict(state)
        confine_paths({"callbacks": {"ModelCheckpoint": state}}, [callback])
        assert state == before
        for damaged in ({path: "high"}, 5, {path: torch.ones(2)}, {}):
            state = {"best_k_models": damaged, "kth_best_model_path": path}
            confine_paths({"callbacks": {"ModelCheckpoint": state}}, [callback])
            assert state == {"best_k_models": {}, "kth_best_model_path": ""}

    def test_remote_folders(self):
        callback = ModelCheckpoint()
        callback.dirpath = "s3://mine/run"
        for path, kept in {
            "s3://mine/run/a.ckpt": True,
            "s3://mine/run/../b.ckpt": False,
            "s3://b/a.ckpt": False,
        }.items():
            state = {"best_model_path": path}
            confine_paths({"callbacks": {"a": state}}, [callback])
            assert (state["best_model_path"] == path) is kept
