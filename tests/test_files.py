"""Writing whole or not at all, text for a terminal, cells of tables; and that nothing is written otherwise."""

import ast
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kornia_mvit.files import cell, printable, sweep, write_whole

PACKAGE = Path(__file__).parents[1] / "kornia_mvit"


class TestPrintable:
    @pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\r", "\n", "\t", "\x00", "\x7f", "\u202e", "\u2028", "\udcff"])
    def test_signs_that_steer_a_terminal_are_escaped(self, sign):
        text = printable(f"a{sign}b")
        assert sign not in text
        assert text.startswith("a\\")
        assert text.isprintable()

    def test_other_text_stays(self):
        assert printable("naïve 花 🌷 a-b\\c") == "naïve 花 🌷 a-b\\c"


class TestCell:
    @pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
    def test_formulas_are_text(self, text):
        assert cell(text) == "'" + text

    @pytest.mark.parametrize("value", ["forget-me-not", "a=b", "", "'", 0, -1.5, None, True])
    def test_others_stay(self, value):
        assert cell(value) is value


class TestWriteWhole:
    @pytest.mark.parametrize("old", [None, b"old"])
    def test_a_file(self, tmp_path, old):
        path = tmp_path / "new" / "a.bin"
        if old is not None:
            path.parent.mkdir()
            path.write_bytes(old)
        with write_whole(path) as beside:
            beside.write_bytes(b"new")
            assert not path.exists() if old is None else path.read_bytes() == old
        assert path.read_bytes() == b"new"
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("disk\n\x1b trace")])
    def test_a_failure_leaves_the_older_file_and_nothing_else(self, tmp_path, error):
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        reason = "No space left on device" if isinstance(error, OSError) else "disk"
        with (
            pytest.raises(OSError, match=rf"a\.bin \({reason}\); the one from before stays"),
            write_whole(path) as beside,
        ):
            beside.write_bytes(b"half")
            raise error
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_failure_leaves_no_folder(self, tmp_path):
        with pytest.raises(OSError, match="none from before"), write_whole(tmp_path / "x" / "y" / "a.bin"):
            raise OSError("full")
        assert list(tmp_path.iterdir()) == []

    def test_mistakes_stay_what_they_are(self, tmp_path):
        with pytest.raises(KeyError, match="b"), write_whole(tmp_path / "a.bin"):
            {}["b"]
        assert list(tmp_path.iterdir()) == []

    def test_nothing_written(self, tmp_path):
        with pytest.raises(OSError, match=r"a\.bin \(nothing was written\)"), write_whole(tmp_path / "a.bin"):
            pass

    def test_several_files_are_all_new_or_all_old(self, tmp_path, monkeypatch):
        one, two = tmp_path / "a.xml", tmp_path / "a.bin"

        def write(text):
            with write_whole(one) as beside:
                beside.write_text(text)
                beside.with_name("a.bin").write_text(text)

        write("1")
        write("2")
        replace = Path.replace

        def fail(self, target):
            if Path(target) == one and self.parent.name.endswith(".part"):
                raise OSError(5, "Input/output error")
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with pytest.raises(OSError, match="Input/output"):
                write("3")
        assert (one.read_text(), two.read_text()) == ("2", "2")
        assert sorted(tmp_path.iterdir()) == [two, one]

    def test_folders(self, tmp_path):
        path = tmp_path / "a.mlpackage"
        for text in ("1", "2"):
            with write_whole(path) as beside:
                beside.mkdir()
                (beside / text).write_text(text)
            assert [file.name for file in path.iterdir()] == [text]
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_does_not_take_the_place_of_a_file(self, tmp_path):
        path = tmp_path / "a"
        path.mkdir()
        with pytest.raises(OSError, match="a folder has that name"), write_whole(path) as beside:
            beside.write_text("")
        assert list(tmp_path.iterdir()) == [path]

    def test_permissions(self, tmp_path):
        new, old = tmp_path / "new", tmp_path / "old"
        old.touch(mode=0o600)
        old.chmod(0o640)
        mask = os.umask(0o027)
        try:
            for path in (new, old):
                with write_whole(path) as beside:
                    beside.write_text("a")
        finally:
            os.umask(mask)
        assert [stat.S_IMODE(path.stat().st_mode) for path in (new, old)] == [0o640, 0o640]

    @pytest.mark.parametrize("exists", [True, False])
    def test_links_stay(self, tmp_path, exists):
        (tmp_path / "far").mkdir()
        target, link = tmp_path / "far" / "b.bin", tmp_path / "a.bin"
        if exists:
            target.write_text("old")
        link.symlink_to(target)
        with write_whole(link) as beside:
            beside.write_text("new")
        assert link.is_symlink()
        assert target.read_text() == "new"
        assert list(target.parent.iterdir()) == [target]

    def test_long_names(self, tmp_path):
        path = tmp_path / ("n" * 251 + ".png")
        with write_whole(path) as beside:
            beside.write_text("a")
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("content", ["a", "b" * 100_000])
    def test_devices_and_pipes(self, tmp_path, content):
        with write_whole("/dev/null") as beside:
            beside.write_text(content)
        with (
            pytest.raises(OSError, match=r"/dev/full \(No space left on device\)$"),
            write_whole("/dev/full") as beside,
        ):
            beside.write_text(content)
        pipe, read = tmp_path / "pipe", []
        os.mkfifo(pipe)
        reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
        reader.start()
        with write_whole(pipe) as beside:
            beside.write_text(content)
        reader.join()
        assert read == [content]
        assert list(tmp_path.iterdir()) == [pipe]

    def test_threads_that_write_one_file(self, tmp_path):
        path = tmp_path / "a.bin"

        def write(k):
            for _ in range(20):
                with write_whole(path) as beside:
                    beside.write_bytes(bytes([k]) * 10_000)

        threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        content = path.read_bytes()
        assert content == content[:1] * 10_000
        assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from files import write_whole
with write_whole(sys.argv[1]) as beside:
    beside.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


class TestKilled:
    def start(self, path):
        arguments = [sys.executable, "-c", KILLED, str(path), str(PACKAGE)]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "writing\n"
        return process

    def kill(self, process):
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def test_the_next_write_cleans(self, tmp_path):
        path = tmp_path / "last.ckpt"
        two = [self.start(path), self.start(path)]
        assert sorted(file.name for file in tmp_path.iterdir()) == [".last.ckpt.1.part", ".last.ckpt.part"]
        for process in two:
            self.kill(process)
        assert len(list(tmp_path.iterdir())) == 2
        with write_whole(path) as beside:
            beside.write_text("whole")
        assert list(tmp_path.iterdir()) == [path]

    def test_sweep_leaves_what_is_being_written(self, tmp_path):
        (tmp_path / "run").mkdir()
        dead, alive = self.start(tmp_path / "run" / "a.ckpt"), self.start(tmp_path / "run" / "b.ckpt")
        self.kill(dead)
        (tmp_path / ".last.ckpt.part").write_text("as 0.1.0 left it")
        (tmp_path / "mine.part").write_text("")
        removed = sweep(tmp_path)
        assert sorted(path.name for path in removed) == [".a.ckpt.part", ".last.ckpt.part"]
        alive.communicate("go on")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.ckpt", "mine.part", "run"]

    def test_what_was_begun_is_finished(self, tmp_path):
        """Killed between the files of a pair: the rest follows."""
        part = tmp_path / ".a.xml.part"
        (part / ".older").mkdir(parents=True)
        (part / "a.xml").write_text("new")
        (tmp_path / "a.bin").write_text("new")
        (tmp_path / "a.xml").write_text("old")
        assert sweep(tmp_path) == [part]
        assert (tmp_path / "a.xml").read_text() == "new"
        assert len(list(tmp_path.iterdir())) == 2


# What writes, but not into a file of the user's, by file and what is called.
NOT_FILES = {
    ("weights/files.py", "torch.save"): "into memory",
    ("training/resuming.py", "torch.save"): "into memory",
    ("exporters/torchexport.py", "torch.export.save"): "into memory",
    ("draw/charts.py", "figure.savefig"): "into memory",
    ("draw/sheets.py", "picture.save"): "into memory",
    ("weights/files.py", "save"): "gives bytes",
    ("weights/registry.py", "torch.hub.download_url_to_file"): "called inside of write_whole",
    ("models/base.py", "kornia_mvit.save_pretrained"): "writes whole itself",
    ("cli/predict.py", "shown.save"): "writes whole itself",
    ("inference/results.py", "result.save"): "writes whole itself",
    ("training/demo.py", "trainer.save_checkpoint"): "AtomicCheckpointIO",
    ("training/preview.py", "self.picture.save"): "into memory",
    ("training/options.py", "path.write_text"): "into a temporary folder",
    ("training/resuming.py", "logger.save"): "the loggers' own",
    ("training/resuming.py", "trainer.save_checkpoint"): "AtomicCheckpointIO",
    ("training/runs.py", "(folder / RunTable.NAME).open"): "an empty file, which is there or not",
    ("training/runs.py", "self._path.open"): "adds rows; one that is cut is left out when it is read",
    ("training/runs.py", "self.save"): "as above",
    ("training/resuming.py", "super().save_checkpoint"): "to an address, by Lightning",
    ("inference/engines/runtimes.py", "written.save"): "into a temporary folder",
    ("weights/conversion.py", "save_checkpoint"): "writes whole itself",
    ("data/loading/packing.py", "Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save"): "into memory",
    ("data/loading/packing.py", "Image.fromarray(numbers.contiguous().numpy()).save"): "into memory",
    ("data/loading/packing.py", "(folder / PROGRESS).open"): "adds rows; one that is cut is left out when it is read",
    ("data/loading/sources.py", "open"): "a cache, in which files are renamed when they are whole",
}
WRITERS = (
    "write_text write_bytes save savefig dump to_csv save_file save_model save_pretrained save_checkpoint "
    "download_url_to_file copyfile copy2 copyfileobj write_to_file touch ShardWriter shard_writer"
).split()


def writes(call):
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last in ("open", "fdopen"):
        given = [ast.unparse(one.value) for one in call.keywords if one.arg == "mode"]
        given += [ast.unparse(one) for one in call.args[:2]]
        return any(re.fullmatch(r"'[rbt]*[wax+][bt+]*'", mode) for mode in given)
    return last in WRITERS


def calls_outside(tree):
    """Find calls that write and stand in no block of write_whole."""

    def walk(node, inside):
        if isinstance(node, ast.With) and any("write_whole(" in ast.unparse(i.context_expr) for i in node.items):
            inside = True
        if isinstance(node, ast.Call) and not inside and writes(node):
            yield ast.unparse(node.func)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return list(walk(tree, False))


class TestWholePackage:
    def test_nothing_is_written_otherwise(self):
        found = set()
        for file in PACKAGE.rglob("*.py"):
            if file.name != "files.py" or file.parent != PACKAGE:
                found |= {
                    (file.relative_to(PACKAGE).as_posix(), name) for name in calls_outside(ast.parse(file.read_text()))
                }
        assert found - set(NOT_FILES) == set()
        assert set(NOT_FILES) - found == set()  # none is listed in vain

    @pytest.mark.parametrize(
        "code",
        ["a.write_text('')", "open(a, 'w')", "a.open(mode='ab')", "torch.save(a, b)", "with open(a, 'wb'): pass"],
    )
    def test_the_check_finds(self, code):
        assert len(calls_outside(ast.parse(code))) == 1
        assert not calls_outside(ast.parse(f"with write_whole(a) as b:\n    {code}"))
