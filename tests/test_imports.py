"""Who imports whom inside the package, and what importing the package brings in from outside."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = "kornia_mvit"

RUNTIME = ("torch", "kornia")
PUBLIC_NAMES = (
    "AugmentationPipeline",
    "Batch",
    "DeepLabV3",
    "MobileViT",
    "MobileViTClassifier",
    "Preprocess",
    "SSDLite",
    "policies",
    "register_in_kornia",
)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Hold the package in a folder against the contracts of ``.importlinter``."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", ROOT / ".importlinter"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class TestContracts:
    """Who may import whom: that the contracts are kept, and that each would be seen broken."""

    def test_package(self):
        result = lint_imports(ROOT)
        assert result.returncode == 0, result.stdout

    @pytest.mark.parametrize(
        ("file", "source", "told"),
        [
            ("batch.py", "from kornia_mvit.data import reading", "kornia_mvit.batch -> kornia_mvit.data.reading"),
            ("models/layers.py", "def f():\n    from ..training.base import Task", "-> kornia_mvit.training.base"),
            ("augmentation/mix.py", "from kornia_mvit.data import reading", "mix -> kornia_mvit.data.reading"),
            ("augmentation/mix.py", "from kornia_mvit import models", "mix -> kornia_mvit.models"),
            ("data/reading.py", "import kornia_mvit.weights.files", "reading -> kornia_mvit.weights.files"),
            ("weights/cards.py", "from ..inference import tta", "cards -> kornia_mvit.inference.tta"),
            ("draw/images.py", "import kornia_mvit.models.mobilevit", "images -> kornia_mvit.models.mobilevit"),
            ("testing/builders.py", "import kornia_mvit.training.base", "builders -> kornia_mvit.training.base"),
            ("evaluation/page.py", "from . import classification", ".page -> .classification"),
            ("helpers.py", "", "helpers"),
        ],
    )
    def test_wrong_import_is_told(self, tmp_path, file, source, told):
        shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        with (tmp_path / PACKAGE / file).open("a") as module:
            module.write(f"\n{source}\n")
        result = lint_imports(tmp_path)
        assert result.returncode == 1, result.stdout
        assert told in result.stdout


# Run as a program: argv[1] lists the packages that may be imported, and the rest of argv is for the code below.
BLOCKER = """
import json, sys

class Blocker:
    allowed = {*json.loads(sys.argv.pop(1)), *sys.stdlib_module_names}

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in self.allowed and not root.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def runtime_packages() -> list[str]:
    """What torch and kornia install, with all that they depend on."""
    waiting, seen = [*RUNTIME], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in seen:
            seen.add(name)
            requirements = [Requirement(text) for text in importlib.metadata.requires(name) or []]
            waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    provided = importlib.metadata.packages_distributions()
    return [package for package, owners in provided.items() if seen & {canonicalize_name(owner) for owner in owners}]


def run_python(code: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(BLOCKER + code, [json.dumps([PACKAGE, *runtime_packages()]), *arguments])


class TestWithoutExtras:
    """What ``make test-install`` shows in a real environment, here with the other packages out of sight."""

    def test_blocker_blocks(self):
        result = run_without_extras(
            "import importlib\n"
            "for name in sys.argv[1:]:\n"
            "    try:\n"
            "        importlib.import_module(name)\n"
            "    except ImportError:\n"
            "        continue\n"
            "    sys.exit(f'{name} was imported')",
            *("PIL", "hypothesis", "jsonargparse", "matplotlib", "pytorch_lightning", "sklearn", "torchmetrics"),
            *("torchvision", "yaml"),
        )
        assert result.returncode == 0, result.stderr

    @pytest.mark.long
    def test_public_names(self):
        result = run_without_extras(
            "import kornia_mvit\n"
            "for name in {*sys.argv[1:], *kornia_mvit.__all__}:\n"
            "    getattr(kornia_mvit, name)\n"
            "print(kornia_mvit.__version__)",
            *PUBLIC_NAMES,
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert result.stdout.startswith("0.")

    def test_commands_name_their_extra_in_one_line(self):
        commands = ("fit", "validate", "test", "demo")
        result = run_without_extras(
            "import runpy\n"
            "for command in sys.argv[1:]:\n"
            "    sys.argv[1:] = [command]\n"
            "    try:\n"
            "        runpy.run_module('kornia_mvit', run_name='__main__')\n"
            "    except SystemExit as end:\n"
            "        print(command, end.code)",
            *commands,
        )
        assert {f"{command} 2" for command in commands} <= {*result.stdout.splitlines()}
        lines = result.stderr.splitlines()
        assert len(lines) == len(commands)
        assert all("kornia-mvit[train]" in line for line in lines)


class TestImportTime:
    def test_adds_little_to_kornia(self):
        """Seconds of a core; other work on the machine can only add to them: one run within the limit settles it."""
        limit_s, times = 0.5, []
        while len(times) < 5 and min(times, default=limit_s + 1) > limit_s:
            result = run_python(
                "import time, kornia; start = time.process_time(); import kornia_mvit; "
                "print(time.process_time() - start)"
            )
            assert result.returncode == 0, result.stderr
            times.append(float(result.stdout))
        assert min(times) <= limit_s, f"import kornia_mvit took {times} s after import kornia"
