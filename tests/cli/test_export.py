"""``kornia-mvit export``: files, the table, and errors in one line."""

import sys

import pytest
from PIL import Image

from kornia_mvit import Preprocess, save_checkpoint
from kornia_mvit.exporters import load_torchexport
from kornia_mvit.exporters.formats import FORMATS
from tests.cli.test_cli import run
from tests.exporters.scenes import TASKS, build


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A checkpoint of each task, and a folder of images by class."""
    root = tmp_path_factory.mktemp("export")
    for task in TASKS:
        save_checkpoint(build(task, preprocess=Preprocess(72, crop=64)), root / f"{task}.ckpt")
    for number, name in enumerate(("ant", "bee")):
        (root / "images" / name).mkdir(parents=True)
        Image.new("RGB", (90, 75 + number), (200, 90 * number, 30)).save(root / "images" / name / "a.png")
    return root


class TestExport:
    def test_file_and_table(self, given, tmp_path, capsys):
        out = tmp_path / "m.pt2"
        options = ["--with-decode", "--size", "64", "--labelled", given / "images"]
        status, text, err = run(capsys, "export", given / "classification.ckpt", out, *options)
        assert (status, err) == (0, "")
        first, head, eager, exported, note = text.splitlines()
        assert first == f"{out}: classification for torchexport, input float32 Bx3x64x64"
        assert head.split()[:5] == ["max", "difference", "top-1", "agreement", "accuracy"]
        assert eager.startswith("eager ")
        name, difference, agreement, accuracy = exported.split()[:4]
        assert (name, agreement) == ("torchexport", "100.00%")
        assert float(difference) < 1e-4
        assert accuracy == eager.split()[3]
        assert note == "batch 1, 1 thread, 2 images, timed at 64x64"
        assert callable(load_torchexport(out))

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as end:
            run(capsys, "export", "--help")
        assert end.value.code == 0
        text = capsys.readouterr().out
        for name, form in FORMATS.items():
            assert f"{name} ({form.suffix}): {form.text}" in " ".join(text.split())

    @pytest.mark.parametrize(
        ("task", "out", "options", "message"),
        [
            ("classification", "m.onnx", ["--format", "tflite"], "unknown format 'tflite'; available: onnx, openvino,"),
            ("classification", "m.tflite", [], "the ending of {out} is no format's; give the format, one of onnx,"),
            ("classification", "m.pt", ["--format", "onnx"], "{out} does not end in .onnx, as files of onnx do"),
            ("classification", "m.onnx", ["--nms", "--with-decode"], "is for classification; leave out nms, which"),
            ("segmentation", "m.onnx", ["--labelled", "x"], "is for segmentation; leave out labelled, which is"),
            ("detection", "m.onnx", ["--nms"], "nms needs decoded boxes; give with_decode too"),
            ("detection", "m.pte", ["--nms", "--with-decode"], "executorch has no nms; onnx, openvino have"),
            ("classification", "m.onnx", ["--size", "16"], "size 16x16 is below the 32 px that the network takes"),
            ("classification", "m.onnx", ["--size", "big"], "size big is none of dynamic, a number of pixels such"),
            (
                "classification",
                "m.pte",
                ["--size", "dynamic"],
                "size dynamic is for onnx, openvino, torchexport; give",
            ),
            ("classification", "m.onnx", ["--int8"], "int8 needs calibration, a folder with"),
            (
                "classification",
                "m.onnx",
                ["--int8", "--calibration", "{empty}"],
                "no image in {empty}; looked for .bmp",
            ),
            (
                "classification",
                "m.pt2",
                ["--int8", "--calibration", "x"],
                "torchexport has no int8; onnx, openvino, executorch have",
            ),
            ("classification", "m.onnx", ["--calibration", "x"], "calibration is for int8; give that too"),
            ("classification", "m.onnx", ["--layout", "nhwc"], "layout nhwc is that of uint8 images; give"),
            ("classification", "m.onnx", ["--layout", "hwc"], "unknown layout 'hwc'; available: nchw, nhwc"),
        ],
    )
    def test_exception(self, given, tmp_path, capsys, task, out, options, message):
        (tmp_path / "empty").mkdir()
        options = [option.format(empty=tmp_path / "empty") for option in options]
        status, text, err = run(capsys, "export", given / f"{task}.ckpt", tmp_path / out, *options)
        assert (status, text) == (2, "")
        assert err.startswith("kornia-mvit: error: ")
        assert err.count("\n") == 1
        assert message.format(out=tmp_path / out, empty=tmp_path / "empty") in err
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]

    def test_missing_extra(self, given, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        status, _, err = run(capsys, "export", given / "classification.ckpt", tmp_path / "m.onnx")
        assert status == 2
        assert err == "kornia-mvit: error: writing ONNX needs onnx; install kornia-mvit[export]\n"

    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    def test_everything_in_the_graph(self, given, tmp_path, capsys, task):
        options = ["--with-preprocess", "--with-decode", "--layout", "nhwc", "--images", given / "images"]
        options += ["--nms"] if task == "detection" else []
        status, text, err = run(capsys, "export", given / f"{task}.ckpt", tmp_path / "m.onnx", *options)
        assert (status, err) == (0, "")
        assert "input uint8 RGB BxHxWx3" in text
        assert float(text.splitlines()[3].split()[1]) < 1e-4
