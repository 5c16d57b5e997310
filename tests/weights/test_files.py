"""Reading and writing checkpoint files: what is refused, that nothing runs, and that nothing is half written."""

import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kornia_mvit import from_pretrained, info
from kornia_mvit.inference.engines.exported import _OPENERS
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint, write_checkpoint


class Trace:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestReadCheckpoint:
    @pytest.mark.parametrize("keep", [1.0, 0.9, 0.5, 0.01])
    def test_truncated(self, keep, tmp_path):
        path = tmp_path / "a.ckpt"
        write_checkpoint({"a": torch.rand(3000)}, path, {"format": 1})
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        if keep == 1.0:
            assert CARD_KEY in read_checkpoint(path)
            return
        with pytest.raises(CheckpointError, match=r"a.ckpt is truncated"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such checkpoint: {}"),
            (b"", "{} is not a PyTorch checkpoint"),
            (b"hello, world", "{} is not a PyTorch checkpoint"),
            (b"\x89PNG\r\n\x1a\n" + bytes(100), "{} is not a PyTorch checkpoint"),
            (bytes(1000), "not a PyTorch checkpoint"),
            (b"{'a': 1}", "{} is not a PyTorch checkpoint"),
            (b"\x80\x02}q\x00.", "{} is damaged or not a PyTorch checkpoint"),
            (b"\x80\x02garbage", "{} is damaged or not a PyTorch checkpoint"),
        ],
    )
    def test_not_a_checkpoint(self, content, message, tmp_path):
        path = tmp_path / "a.ckpt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        assert message.format(path) in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("suffix", [*_OPENERS, ".mlpackage"])
    def test_an_exported_file(self, suffix, tmp_path):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(CheckpointError, match="no such checkpoint: "):
            read_checkpoint(path)
        path.write_bytes(b"PK")
        for read in (read_checkpoint, info, from_pretrained):
            with pytest.raises(CheckpointError, match=f"a{suffix} is an exported file, .*; predict takes it"):
                read(path)

    def test_a_zip_of_something_else(self, tmp_path):
        path = tmp_path / "a.ckpt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "hello")
        with pytest.raises(CheckpointError, match="PyTorch checkpoint"):
            read_checkpoint(path)

    def test_a_tensor_alone(self, tmp_path):
        torch.save(torch.zeros(2), tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="holds a Tensor"):
            read_checkpoint(tmp_path / "a.pt")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_settings_beside_the_weights(self, zipped, tmp_path):
        """Those of timm's training program, and numbers of NumPy: nothing of them is built, and the weights load."""
        path, trace = tmp_path / "a.ckpt", tmp_path / "ran"
        beside = {
            "args": Namespace(lr=0.1, output=Path("a"), sizes=[1, 2]),
            "metric": np.float64(76.5),
            "random": np.random.get_state(),
            "more": SimpleNamespace(a=np.int32(3)),
        }
        torch.save({"a": torch.ones(2), **beside}, path, _use_new_zipfile_serialization=zipped)
        data = read_checkpoint(path)
        assert torch.equal(data["a"], torch.ones(2))
        assert not vars(data["args"])
        assert not isinstance(data["metric"], np.generic)
        with pytest.raises(CheckpointError, match=r"\(argparse\.Namespace\), and is refused"):
            read_checkpoint(path, whole=True)
        torch.save({"args": Namespace(a=Trace(trace))}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"\(posix\.mkdir\), and is refused"):
            read_checkpoint(path)
        assert not trace.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused_and_does_not_run(self, zipped, tmp_path):
        path, trace = tmp_path / "a.ckpt", tmp_path / "ran"
        if zipped:
            torch.save({"state_dict": {}, "x": Trace(trace)}, path)
        else:
            path.write_bytes(pickle.dumps({"x": Trace(trace)}, protocol=2))
        message = r"would run code when unpickled \(posix\.mkdir\), and is refused"
        with pytest.raises(CheckpointError, match=message) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
        assert not trace.exists()
        torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
        assert trace.exists()  # the file would have

    def test_safetensors(self, tmp_path):
        path = tmp_path / "a.safetensors"
        state = {"a": torch.rand(2, 3), "b": torch.tensor(7)}
        write_checkpoint(state, path)
        assert read_checkpoint(path).keys() == state.keys()
        write_checkpoint(state, path, {"format": 1})
        data = read_checkpoint(path)
        assert data[CARD_KEY] == {"format": 1}
        assert all(torch.equal(data["state_dict"][name], value) for name, value in state.items())

    @pytest.mark.parametrize("keep", [0.9, 0.5, 0.01, 0.0])
    def test_truncated_safetensors(self, keep, tmp_path):
        path = tmp_path / "a.safetensors"
        write_checkpoint({"a": torch.rand(1000)}, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(CheckpointError, match=r"a\.safetensors is truncated"):
            read_checkpoint(path)


class TestWriteCheckpoint:
    @pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
    def test_a_failed_write_leaves_the_older_file(self, name, tmp_path, monkeypatch):
        path = tmp_path / name
        write_checkpoint({"a": torch.ones(2)}, path)

        def fail(path, content):
            with path.open("wb") as file:
                file.write(content[:9])
            raise OSError("no space left on device")

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="no space left"):
            write_checkpoint({"a": torch.zeros(2)}, path)
        assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))
        assert list(tmp_path.iterdir()) == [path]
