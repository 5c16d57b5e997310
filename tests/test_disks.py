"""Disks that fill up while a command writes: the older file stays whole, the message names it, nothing else is left.

The system lets this process write so many bytes to a file and no more, which fails as a full disk does.
"""

import contextlib
import resource
import shutil
import signal

import pytest
import torch

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite, save_checkpoint
from kornia_mvit.data.loading.shards import write_shards
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.evaluation.report import write_files
from kornia_mvit.weights.registry import save_pretrained
from tests.cli.test_cli import FAST, run
from tests.damage.kinds import TINY
from tests.data.test_datamodules import make_folder
from tests.training.shapes import write


@contextlib.contextmanager
def small_disk(size):
    """Let no file grow beyond a number of bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An image, and a checkpoint for each task."""
    root = tmp_path_factory.mktemp("disks")
    write(Shapes(1, (40, 52))[0], root / "a.png", root / "truth.png")
    torch.manual_seed(0)
    for name, model in (
        ("classifier", MobileViTClassifier("xxs", 3)),
        ("tiny", MobileViTClassifier(TINY, 50_000)),  # quick to export, and more to write than what else is open
        ("segmenter", DeepLabV3("xxs", 4, aspp_channels=8)),
        ("detector", SSDLite("xxs", 4)),
    ):
        model.preprocess = Preprocess((64, 64))
        save_checkpoint(model, root / f"{name}.ckpt")
    return root


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(capsys, folder, file, *arguments, shares=(0, 0.5, 0.999)):
    """Write a file, and then again with less and less room for it."""
    status, _, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    path = folder / file
    inside = [path, *path.rglob("*")] if path.is_dir() else [path, *path.parent.glob(path.stem + ".*")]
    sizes = [one.stat().st_size for one in inside if one.is_file()]
    for old in (True, False):
        if not old:
            shutil.rmtree(folder)
            folder.mkdir()
        before = contents(folder)
        for share in shares:
            with small_disk(int(max(sizes) * share)):
                status, _, err = run(capsys, *arguments)
            assert status == 2
            assert err.count("\n") == 1
            assert f"could not write {path} (" in err
            assert ("the one from before stays" if old else "there is none from before") in err
            assert contents(folder) == before
            assert not list(folder.rglob("*.part"))


class TestCommands:
    @pytest.mark.long
    @pytest.mark.parametrize(
        ("model", "option", "file"),
        [
            ("classifier", "--draw", "0000_a.png"),
            ("segmenter", "--draw", "0000_a.png"),
            ("detector", "--draw", "0000_a.png"),
            ("segmenter", "--labels", "a.png"),
            ("detector", "--coco", None),
        ],
    )
    def test_predict(self, given, tmp_path, capsys, model, option, file):
        out = tmp_path / "out"
        target = out if file else out / "found.json"
        arguments = ["predict", given / "a.png", "--checkpoint", given / f"{model}.ckpt", option, target]
        check(capsys, out, file or "found.json", *arguments)

    @pytest.mark.parametrize("file", ["a.pt", "a.safetensors"])
    def test_convert(self, given, tmp_path, capsys, file):
        out = tmp_path / "out"
        check(capsys, out, file, "convert", given / "classifier.ckpt", out / file, "--to", "native")

    def test_preview(self, tmp_path, capsys):
        data, out = make_folder(tmp_path / "data", count=2), tmp_path / "out"
        options = ["--data", "FolderData", "--policy", "classification_train", "--size", 32, "--count", 1]
        arguments = ["preview", *options, "--copies", 1, f"--data.root={data}", "--out", out / "a.png"]
        check(capsys, out, "a.png", *arguments)

    @pytest.mark.long
    @pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # coremltools', where it cannot write
    @pytest.mark.parametrize(
        ("file", "options"),
        [
            ("a.onnx", []),
            ("a.onnx", ["--int8", "--calibration", "shapes"]),
            ("a.xml", []),
            ("a.pt2", []),
            ("a.pte", []),
            ("a.mlpackage", []),
        ],
    )
    def test_export(self, given, tmp_path, capsys, file, options, monkeypatch):
        out = tmp_path / "out"
        monkeypatch.chdir(tmp_path)
        arguments = ["export", given / "tiny.ckpt", out / file, "--size", 64, "--no-report", *options]
        check(capsys, out, file, *arguments, shares=(0.999,))


class TestFunctions:
    """What several files are written by: all stay as they were, at whichever of them the disk is full."""

    def check(self, folder, write, sizes):
        write(1)
        before = contents(folder)
        for size in sizes:
            with small_disk(size), pytest.raises(OSError, match=r"could not write .*File too large.*before stays"):
                write(2)
            assert contents(folder) == before
        write(2)
        assert contents(folder) != before
        assert not list(folder.rglob("*.part"))

    def test_reports(self, tmp_path):
        def write(k):
            row = {"class": f"=cmd|{k}", "recall": -0.5, "other": "a-b"}
            write_files(tmp_path, "page" * 1000 * k, {"k": k}, {"a": b"a" * 2000}, {"per_class": [row]})

        self.check(tmp_path, write, (0, 10, 100, 2500, 7999))
        assert (tmp_path / "per_class.csv").read_text() == "class,recall,other\n'=cmd|2,-0.5,a-b\n"

    def test_models_for_hubs(self, tmp_path):
        def write(k):
            save_pretrained(MobileViTClassifier("xxs", k), tmp_path / "model")

        self.check(tmp_path, write, (0, 1000, 5_000_000 // 2))

    def test_shards(self, tmp_path):
        data = make_folder(tmp_path / "data", count=6, size=(30, 30))
        files = sorted(data.rglob("*.*"))

        def write(k):
            write_shards([(file, 0) for file in files if file.is_file()], tmp_path / "out" / "a-%d.tar", 2 + k)

        self.check(tmp_path, write, (0, 100, 9000))


@pytest.mark.long
class TestTraining:
    def test_fit(self, tmp_path, capsys):
        """Whatever is written first; the checkpoint is the largest."""
        data = make_folder(tmp_path / "data", count=6, size=(60, 50))
        for size in (0, 1000, 1_000_000):
            out = tmp_path / f"run-{size}"
            options = [f"--data.root={data}", f"--trainer.default_root_dir={out}", *FAST]
            with small_disk(size):
                status, _, err = run(capsys, "fit", "--config", "folder", *options)
            assert status == 2
            (line,) = [line for line in err.splitlines() if line.startswith("kornia-mvit: error: ")]
            assert str(out) in line
            assert not list(out.rglob("*.part"))
            assert not list(out.rglob("*.ckpt"))
