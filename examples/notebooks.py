"""Build the notebooks of this folder from their ``.py`` sources, and check that they are built and still run.

``make notebooks`` checks all of them, ``make notebooks ARGS="--write classification"`` builds one again.
"""

import argparse
import asyncio
import base64
import functools
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent
SECONDS = 180  # for a notebook to run in
KILOBYTES = 600  # that a notebook with its outputs may have
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HEADER = re.compile(r"# ---\n(?:#.*\n)*?#\s+jupytext:\n(?:#.*\n)*?# ---\n")
# Of two parts or more, and neither within a word, an address or a tag; or with the letter of a drive.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/[\w.-]+/[\w.-]+|\b[A-Z]:\\\w+")
ESCAPES = re.compile(r"\x1b\[[\d;]*m")


class NotebookError(Exception):
    """What is wrong with a notebook."""


class _Kernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels the user has."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **settings)


def find_notebooks(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """List the names of a folder's notebooks, or those of them that were asked for.

    Args:
        folder: with ``.py`` sources and ``.ipynb`` files.
        names: with or without a folder and an ending; all when empty.

    Raises:
        NotebookError: for a name that is none, and for an ``.ipynb`` without a source.
    """
    sources = {path.stem for path in folder.glob("*.py") if HEADER.match(path.read_text(encoding="utf-8"))}
    if lone := sorted(path.name for path in folder.glob("*.ipynb") if path.stem not in sources):
        raise NotebookError(f"{', '.join(lone)}: no .py source in percent format beside it; write one, or remove it")
    wanted = [Path(name).stem for name in names]
    if unknown := sorted(set(wanted) - sources):
        raise NotebookError(f"no notebook {', '.join(unknown)}; there are {', '.join(sorted(sources)) or 'none'}")
    return wanted or sorted(sources)


def build(source: Path) -> NotebookNode:
    """Make a notebook of a source, without outputs; its cells are named by what they hold."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def execute(notebook: NotebookNode, seconds: float = SECONDS, jobs: int = 1) -> None:
    """Run a notebook in a temporary folder and a new process of this interpreter, and put its outputs in place.

    Args:
        notebook: changed in place.
        seconds: that it may take where it runs alone.
        jobs: how many notebooks run side by side; each has its share of the cores, and as many times the seconds.

    Raises:
        NotebookError: for a cell that fails, takes the time beyond ``seconds``, or writes to standard error.
    """
    seconds *= jobs
    end, begun = time.monotonic() + seconds, 0

    def left(cell: NotebookNode) -> int:
        return max(1, round(end - time.monotonic()))

    def note(cell: NotebookNode, cell_index: int) -> None:
        nonlocal begun
        begun = cell_index + 1

    def look(cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                raise NotebookError(f"cell {begun} wrote to standard error:\n{output.text.strip()}")

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work")
        work.mkdir()
        client = NotebookClient(
            notebook,
            kernel_manager_class=_Kernel,
            extra_arguments=["--log-level=ERROR"],  # it warns of its own connection
            timeout_func=left,
            on_cell_start=note,
            on_cell_executed=look,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(work)}},
        )
        # The user's settings stay out of it. Threads sleep as they wait: where others work too, training with two that
        # spin took five times as long.
        settings = {"IPYTHONDIR": str(Path(folder, "ipython")), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
        if jobs > 1:
            settings["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        try:
            asyncio.run(client.async_execute(env=os.environ | settings))
        except CellExecutionError as error:
            raise NotebookError(f"cell {begun} failed:\n{ESCAPES.sub('', str(error)).strip()}") from error
        except CellTimeoutError as error:
            raise NotebookError(f"cell {begun} was stopped, as the {seconds:.0f} s were over") from error
        except DeadKernelError as error:
            raise NotebookError(f"cell {begun}: its process died") from error
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel added its version
    for _, output in _outputs(notebook):
        if "image/png" in output.get("data", {}):
            output.data.pop("image/jpeg", None)  # Pillow gives both
            output.data["image/png"] = _shrink(output.data["image/png"])


def check_cells(built: NotebookNode, stored: NotebookNode) -> None:
    """Raise a NotebookError unless a stored notebook has the cells that its source gives."""
    for number, (wanted, cell) in enumerate(zip(built.cells, stored.cells, strict=False), start=1):
        for key in ("cell_type", "source", "metadata"):
            if cell[key] != wanted[key]:
                first = next(iter(cell.source.splitlines()), "")
                raise NotebookError(f"cell {number} ({first!r}) is not what its source gives: the {key} differs")
    if len(built.cells) != len(stored.cells):
        raise NotebookError(f"the source gives {len(built.cells)} cells, the .ipynb has {len(stored.cells)}")
    if stored.metadata != built.metadata:
        raise NotebookError(f"its metadata are {dict(stored.metadata)}")


def check_outputs(stored: NotebookNode) -> None:
    """Raise a NotebookError for outputs that are missing, or that a reader should not see."""
    for number, cell in enumerate(stored.cells, start=1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise NotebookError(f"cell {number} is stored without having been run")
    for place, output in _outputs(stored):
        if output.output_type == "error":
            raise NotebookError(f"{place} holds an error: {output.ename}: {output.evalue}")
        if output.output_type == "stream" and output.name == "stderr":
            raise NotebookError(f"{place} holds what went to standard error:\n{output.text.strip()}")
        for text in [output.get("text", "")] + [v for k, v in output.get("data", {}).items() if k.startswith("text/")]:
            if path := ABSOLUTE_PATH.search(text):
                raise NotebookError(f"{place} shows a path of the machine it ran on: {path[0]}")


def check_same_kinds(stored: NotebookNode, fresh: NotebookNode) -> None:
    """Raise a NotebookError where a stored cell lacks a picture or text that it gives when run, or has one too many."""
    for number, (cell, now) in enumerate(zip(stored.cells, fresh.cells, strict=True), start=1):
        if (had := _kinds(cell)) != (has := _kinds(now)):
            told = " and ".join(", ".join(kinds) or "nothing" for kinds in (had, has))
            raise NotebookError(f"cell {number} is stored with other outputs than it has when run: {told}")


def check(source: Path, jobs: int = 1) -> float:
    """Check a notebook, run it beside the stored one, and give the seconds that took."""
    path = source.with_suffix(".ipynb")
    if not path.exists():
        raise NotebookError(f"there is no {path.name}")
    if (size := path.stat().st_size / 1000) > KILOBYTES:
        raise NotebookError(f"{path.name} has {size:.0f} kB; make its pictures smaller, for {KILOBYTES} kB or less")
    stored, built = nbformat.read(path, as_version=4), build(source)
    check_cells(built, stored)
    check_outputs(stored)
    start = time.monotonic()
    execute(built, jobs=jobs)
    check_same_kinds(stored, built)
    return time.monotonic() - start


def write(source: Path, jobs: int = 1) -> float:
    """Build a notebook, run it, store it if its outputs are fit to be seen, and give the seconds that took."""
    start, notebook = time.monotonic(), build(source)
    execute(notebook, jobs=jobs)
    check_outputs(notebook)
    text = nbformat.writes(notebook) + "\n"
    if (size := len(text.encode()) / 1000) > KILOBYTES:
        raise NotebookError(f"it would have {size:.0f} kB; make its pictures smaller, for {KILOBYTES} kB or less")
    source.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    return time.monotonic() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Check or write notebooks, tell of each, and give the exit status: 1 if anything is wrong with one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks; all when none is named")
    parser.add_argument("--write", action="store_true", help="build and run the .ipynb again, and store its outputs")
    parser.add_argument(
        "--jobs", type=int, help="how many to run side by side; 2 unless given, 1 with --write, for figures of time"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    jobs = args.jobs or (1 if args.write else 2)
    try:
        names = find_notebooks(args.folder, args.names)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'notebook':<26} seconds  below {SECONDS * jobs // 60} minutes      kB", flush=True)
    tell = functools.partial(_tell, folder=args.folder, work=write if args.write else check, jobs=jobs)
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(tell, names))
    return 0 if all(done) else 1


def _tell(name: str, folder: Path, work: Callable[[Path, int], float], jobs: int) -> bool:
    """Check or write a notebook, tell of it in a line, and return whether all went well."""
    source = folder / f"{name}.py"
    try:
        seconds = work(source, jobs)
    except NotebookError as error:
        print(f"{name:<26} failed", flush=True)
        mend = "" if work is write else f'\nmake notebooks ARGS="--write {name}" builds it from its source again'
        print(f"{name}: {error}{mend}", file=sys.stderr, flush=True)
        return False
    told = f"{seconds:7.0f}  {'yes' if seconds < SECONDS * jobs else 'no':>15}"
    print(f"{name:<26} {told} {source.with_suffix('.ipynb').stat().st_size / 1000:7.0f}", flush=True)
    return True


def _shrink(png: str) -> str:
    """Give a picture a palette, where that takes less room: for photographs a third."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    file = io.BytesIO()
    paper.convert("RGB").quantize(256).save(file, "png", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


def _outputs(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Give each output and the place where it stands."""
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            yield f"cell {number}", output


def _kinds(cell: NotebookNode) -> list[str]:
    kinds: set[str] = set()
    for output in cell.get("outputs", []):
        kinds.update([output.name] if output.output_type == "stream" else output.get("data", {}))
    return sorted(kinds)


if __name__ == "__main__":
    sys.exit(main())
