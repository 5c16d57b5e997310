"""Reading checkpoints: what is refused, and that nothing runs."""

import os
import pickle

import pytest
import torch

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.models.mobilevit import MobileViTClassifier
from kornia_mvit.weights.checkpoints import CARD_KEY, CheckpointError, classifier_card, from_pretrained, read_checkpoint


class Trace:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write(path, **changes):
    arguments = {"mode": "xxs", "num_classes": 3}
    torch.manual_seed(0)
    model = MobileViTClassifier(**arguments)
    checkpoint = {
        "state_dict": {f"network.{name}": value for name, value in model.state_dict().items()},
        CARD_KEY: classifier_card(arguments, ["a", "b", "c"], Preprocess(40, crop=32)),
    }
    torch.save(checkpoint | changes, path)
    return model


class TestReadCheckpoint:
    @pytest.mark.parametrize("keep", [1.0, 0.9, 0.5, 0.01])
    def test_truncated(self, keep, tmp_path):
        path = tmp_path / "a.ckpt"
        write(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        if keep == 1.0:
            assert CARD_KEY in read_checkpoint(path)
            return
        with pytest.raises(CheckpointError, match=r"a.ckpt is truncated: its end is missing"):
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

    def test_a_zip_of_something_else(self, tmp_path):
        import zipfile

        path = tmp_path / "a.ckpt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "hello")
        with pytest.raises(CheckpointError, match="damaged or not a PyTorch checkpoint"):
            read_checkpoint(path)

    def test_a_tensor_alone(self, tmp_path):
        torch.save(torch.zeros(2), tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="holds a Tensor, not a checkpoint"):
            read_checkpoint(tmp_path / "a.pt")

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


class TestFromPretrained:
    def test_smoke(self, tmp_path):
        expected = write(tmp_path / "a.ckpt").eval()
        model = from_pretrained(tmp_path / "a.ckpt")
        image = torch.rand(1, 3, 32, 32)
        assert torch.equal(model(image), expected(image))
        assert model.class_names == ("a", "b", "c")
        assert model.preprocess == Preprocess(40, crop=32)
        assert not model.training

    def test_exception(self, tmp_path):
        path = tmp_path / "a.ckpt"
        torch.save({"state_dict": {}}, path)
        with pytest.raises(CheckpointError, match="does not say what model it holds"):
            from_pretrained(path)
        write(path, **{CARD_KEY: {"format": 2, "version": "9.0"}})
        with pytest.raises(CheckpointError, match=r"has format 2, written by 9.0; update"):
            from_pretrained(path)
        write(path, **{CARD_KEY: classifier_card({"mode": "xs", "num_classes": 3}, None, Preprocess())})
        with pytest.raises(CheckpointError, match=r"are not those of .*'mode': 'xs'"):
            from_pretrained(path)
