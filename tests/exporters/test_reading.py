import pytest

from kornia_mvit.exporters.executorch import load_executorch, read_metadata
from kornia_mvit.exporters.onnx import load_onnx
from kornia_mvit.exporters.openvino import load_openvino
from kornia_mvit.exporters.torchexport import load_torchexport
from kornia_mvit.files import FileError


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_executorch, "a.pte"),
        (read_metadata, "a.pte"),
        (load_onnx, "a.onnx"),
        (load_openvino, "a.xml"),
        (load_torchexport, "a.pt2"),
    ],
)
class TestReading:
    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 200])
    def test_damaged(self, tmp_path, load, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError) as error:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)

    def test_missing(self, tmp_path, load, name):
        with pytest.raises(FileNotFoundError, match=name):
            load(tmp_path / name)
