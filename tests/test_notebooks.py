"""What examples/notebooks.py finds in notebooks that are planted for it: ``make notebooks``."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.notebooks

HEADER = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

"""
GOOD = """# %% [markdown]
# # A title

# %%
import sys

# %%
print("seven", 3 + 4)
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "notebooks.py"
    spec = importlib.util.spec_from_file_location("notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def good(tool: ModuleType, tmp_path: Path) -> Path:
    """Return the source of a notebook, stored as it is when run."""
    source = tmp_path / "good.py"
    source.write_text(HEADER + GOOD)
    notebook = tool.build(source)
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = number
    notebook.cells[2].outputs = [tool.nbformat.v4.new_output("stream", name="stdout", text="seven 7\n")]
    tool.nbformat.write(notebook, source.with_suffix(".ipynb"))
    return source


def store(tool: ModuleType, source: Path, change) -> None:
    path = source.with_suffix(".ipynb")
    notebook = tool.nbformat.read(path, as_version=4)
    change(notebook)
    tool.nbformat.write(notebook, path)


def output(tool: ModuleType, kind: str, **fields):
    def change(notebook) -> None:
        notebook.cells[2].outputs.append(tool.nbformat.v4.new_output(kind, **fields))

    return change


class TestCheck:
    def test_good(self, tool, good, capsys):
        before = {path.name: path.read_bytes() for path in good.parent.iterdir()}
        assert tool.main(["--folder", str(good.parent)]) == 0
        assert "yes" in capsys.readouterr().out.splitlines()[1]
        assert {path.name: path.read_bytes() for path in good.parent.iterdir()} == before

    def test_other_cells(self, tool, good, capsys):
        good.write_text(good.read_text().replace("3 + 4", "3 + 5"))
        assert tool.main(["--folder", str(good.parent), "good"]) == 1
        told = capsys.readouterr().err
        assert "cell 3 ('print(\"seven\", 3 + 4)') is not what its source gives" in told
        assert '--write good"' in told

    def test_other_number_of_cells(self, tool, good):
        good.write_text(good.read_text() + "\n# %%\nprint()\n")
        with pytest.raises(tool.NotebookError, match=r"4 cells.*\.ipynb.*3"):
            tool.check(good)

    def test_other_metadata(self, tool, good):
        store(tool, good, lambda notebook: notebook.metadata.language_info.update(version="3.11.7"))
        with pytest.raises(tool.NotebookError, match=r"metadata .*3\.11\.7"):
            tool.check(good)

    def test_not_stored(self, tool, good):
        good.with_suffix(".ipynb").unlink()
        with pytest.raises(tool.NotebookError, match=r"no good\.ipynb"):
            tool.check(good)

    def test_not_run(self, tool, good):
        store(tool, good, lambda notebook: notebook.cells[1].update(execution_count=None))
        with pytest.raises(tool.NotebookError, match=r"cell 2.*run"):
            tool.check(good)

    def test_without_its_output(self, tool, good):
        store(tool, good, lambda notebook: notebook.cells[2].outputs.clear())
        with pytest.raises(tool.NotebookError, match=r"cell 3 .*nothing and stdout"):
            tool.check(good)

    def test_error(self, tool, good):
        store(tool, good, output(tool, "error", ename="ValueError", evalue="planted", traceback=[]))
        with pytest.raises(tool.NotebookError, match=r"cell 3.*ValueError: planted"):
            tool.check(good)

    def test_standard_error(self, tool, good):
        store(tool, good, output(tool, "stream", name="stderr", text="UserWarning: planted"))
        with pytest.raises(tool.NotebookError, match=r"cell 3 .*standard error:\nUserWarning: planted"):
            tool.check(good)

    @pytest.mark.parametrize(
        "text", ["saved in /home/someone/best.ckpt", "PosixPath('/tmp/abc/x.png')", "C:\\Users\\x", "(/a/b.c)"]
    )
    def test_path_of_the_machine(self, tool, good, text):
        store(tool, good, output(tool, "stream", name="stdout", text=text))
        with pytest.raises(tool.NotebookError, match=r"cell 3.*path"):
            tool.check(good)

    @pytest.mark.parametrize("text", ["runs/digits/best.ckpt", "https://arxiv.org/abs/2110.02178", "</td></tr>", "1/2"])
    def test_no_path(self, tool, good, text):
        store(tool, good, output(tool, "stream", name="stdout", text=text))
        tool.check_outputs(tool.nbformat.read(good.with_suffix(".ipynb"), as_version=4))

    def test_too_large(self, tool, good):
        store(tool, good, output(tool, "display_data", data={"image/png": "A" * 1000 * tool.KILOBYTES}))
        with pytest.raises(tool.NotebookError, match=r"60[01] kB.*pictures smaller"):
            tool.check(good)


class TestExecute:
    def run(self, tool: ModuleType, tmp_path: Path, cells: str, **limits: float) -> None:
        source = tmp_path / "planted.py"
        source.write_text(HEADER + cells)
        tool.execute(tool.build(source), **limits)

    def test_failing_cell(self, tool, tmp_path):
        with pytest.raises(tool.NotebookError, match=r"(?s)cell 2 failed:.*1 / 0.*ZeroDivisionError"):
            self.run(tool, tmp_path, "# %%\nx = 1\n\n# %%\n1 / 0\n")

    def test_warning(self, tool, tmp_path):
        with pytest.raises(tool.NotebookError, match=r"(?s)cell 1.*standard error:.*UserWarning: planted"):
            self.run(tool, tmp_path, "# %%\nimport warnings\n\nwarnings.warn('planted', stacklevel=1)\n")

    def test_too_slow(self, tool, tmp_path):
        with pytest.raises(tool.NotebookError, match=r"cell 2.*1 s"):
            self.run(tool, tmp_path, "# %%\nimport time\n\n# %%\ntime.sleep(30)\n", seconds=1)


class TestWrite:
    def test_twice_the_same(self, tool, tmp_path, capsys):
        source = tmp_path / "drawn.py"
        source.write_text(HEADER + GOOD + "\n# %%\nfrom PIL import Image\n\nImage.new('RGB', (9, 9))\n")
        written = []
        for _ in range(2):
            assert tool.main(["--folder", str(tmp_path), "--write"]) == 0
            written.append((tmp_path / "drawn.ipynb").read_text())
        assert written[0] == written[1]
        assert "image/png" in written[0]
        assert "image/jpeg" not in written[0]
        tool.check(source)

    def test_failing(self, tool, good, capsys):
        before = good.with_suffix(".ipynb").read_text()
        good.write_text(good.read_text().replace("3 + 4", "3 / 0"))
        assert tool.main(["--folder", str(good.parent), "--write"]) == 1
        assert "ZeroDivisionError" in capsys.readouterr().err
        assert good.with_suffix(".ipynb").read_text() == before


class TestFindNotebooks:
    def test_names(self, tool, good):
        (good.parent / "no_notebook.py").write_text('"""A module."""\n')
        assert tool.find_notebooks(good.parent) == ["good"]
        assert tool.find_notebooks(good.parent, ["examples/good.ipynb"]) == ["good"]

    def test_unknown(self, tool, good):
        with pytest.raises(tool.NotebookError, match="bad; there are good"):
            tool.find_notebooks(good.parent, ["bad"])

    def test_without_a_source(self, tool, good):
        good.unlink()
        with pytest.raises(tool.NotebookError, match=r"good\.ipynb.*\.py source"):
            tool.find_notebooks(good.parent)
