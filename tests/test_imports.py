"""Who imports whom inside the package, and what importing the package brings in from outside."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = "kornia_mvit"

# A part of the package, and the parts that it may import.
_BELOW_DATAMODULES = {
    "files",
    "ops",
    "models",
    "weights",
    "augmentation",
    "augmentation.preprocess",
    "data.annotations",
    "data.batch",
    "data.boxes",
    "data.classes",
    "data.datasets",
    "data.loaders",
    "data.samplers",
    "data.shards",
    "data.storage",
    "data.streams",
    "data.synthetic",
    "data.tables",
}
_BELOW_TRAINING = _BELOW_DATAMODULES | {"data.datamodules", "visualize"}
MAY_IMPORT: dict[str, set[str]] = {
    "files": set(),
    "ops": {"files"},
    "data.batch": {"files"},
    "models": {"files", "ops"},
    "augmentation.preprocess": {"files", "ops", "data.batch"},
    "augmentation": {"files", "augmentation.preprocess", "ops", "data.batch"},
    "weights": {"files", "ops", "models", "augmentation.preprocess"},
    "data.datasets": {"files", "ops", "data.batch"},
    "data.classes": {"files", "data.datasets"},
    "data.boxes": {"files", "data.datasets"},
    "data.annotations": {"files", "data.boxes", "data.datasets"},
    "data.samplers": {"files", "ops", "data.batch"},
    "data.loaders": {"files", "ops", "data.batch", "data.samplers"},
    "data.storage": {"files", "ops", "data.batch", "augmentation.preprocess"},
    "data.shards": {"files", "data.batch", "data.datasets"},
    "data.streams": {"files", "ops", "data.batch", "data.datasets", "data.samplers", "data.shards"},
    "data.synthetic": {"files", "data.batch"},
    "data.tables": {"files", "data.datasets"},
    "data.datamodules": _BELOW_DATAMODULES,
    "visualize": _BELOW_DATAMODULES,
    "training": _BELOW_TRAINING,
    "export": {"files", "models", "weights", "ops", "augmentation.preprocess"},
    "testing": {"files", "models", "data.batch", "augmentation", "augmentation.preprocess"},
    "preview": _BELOW_TRAINING | {"training"},
    "predict": _BELOW_TRAINING,
    "export_cli": _BELOW_TRAINING | {"export"},
    "fit_cli": _BELOW_TRAINING | {"training"},
    "cli": _BELOW_TRAINING | {"training", "export", "export_cli", "predict", "preview", "fit_cli"},
    "__main__": {"cli"},
}

# Where a function may import what its module may not: Kornia's models have a method that exports them.
MAY_IMPORT_WHEN_CALLED: dict[str, set[str]] = {"models.exporting": {"export"}}

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


@dataclass(frozen=True)
class Import:
    """``import module``, or ``from module import name``; the module's name is absolute."""

    module: str
    name: str | None
    line: int
    runs_on_import: bool


def read_imports(node: ast.AST, package: str, runs_on_import: bool = True) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, None, child.lineno, runs_on_import)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: -(level - 1) or None] if level else []
                source = ".".join([*base, *([module] if module else [])])
                for alias in names:
                    yield Import(source, alias.name, child.lineno, runs_on_import)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from read_imports(child, package, runs_on_import=False)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                yield from read_imports(child, package, runs_on_import=False)
            case _:
                yield from read_imports(child, package, runs_on_import)


class Sources:
    """The modules of a package and their imports, read without running any of them."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.packages: set[str] = set()
        self.imports: dict[str, list[Import]] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            package = ".".join(parts[:-1])
            if parts[-1] == "__init__":
                self.packages.add(package)
            module = package if parts[-1] == "__init__" else ".".join(parts)
            self.imports[module] = list(read_imports(ast.parse(path.read_text(), str(path)), package))

    def target(self, module: str, name: str | None) -> str:
        """The module where ``from module import name`` finds the name in the end."""
        if f"{module}.{name}" in self.imports:
            return f"{module}.{name}"
        if module in self.packages:
            for found in self.imports[module]:
                if found.name == name and found.name is not None and found.module in self.imports:
                    return self.target(found.module, name)
        return module

    def part(self, module: str) -> str:
        """The key of the table that a module belongs to; '' for none."""
        inside = module.removeprefix(self.name).removeprefix(".")
        while inside and inside not in MAY_IMPORT:
            inside = inside.rpartition(".")[0]
        return inside

    def wrong_edges(self) -> Iterator[str]:
        for module, imports in self.imports.items():
            part = self.part(module)
            gathers = not part and module in self.packages  # the root, or data: a package that several parts share
            if not part and not gathers:
                yield f"{module} has no place in the table of who may import whom"
                continue
            for found in imports:
                if found.module.split(".")[0] != self.name or (found.module, found.name) == (self.name, "__version__"):
                    continue
                target = self.target(found.module, found.name)
                to = self.part(target)
                may = {part} | MAY_IMPORT.get(part, set())
                if not found.runs_on_import:
                    may |= MAY_IMPORT_WHEN_CALLED.get(module.removeprefix(f"{self.name}."), set())
                allowed = to and (target.startswith(f"{module}.") if gathers else to in may)
                if not allowed:
                    yield f"{module}, line {found.line}: {part or module} may not import {target}"

    def reached(self) -> set[str]:
        """The modules that importing the package runs."""
        reached: set[str] = set()
        waiting = [self.name]
        while waiting:
            module = waiting.pop()
            if module in reached:
                continue
            reached.add(module)
            for found in self.imports[module]:
                parts = [*found.module.split("."), *([found.name] if found.name else [])]
                prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
                waiting += [prefix for prefix in prefixes if found.runs_on_import and prefix in self.imports]
        return reached

    def outside_imports(self) -> Iterator[str]:
        """What importing the package needs besides the standard library, torch and kornia."""
        known = {self.name, *RUNTIME, *sys.stdlib_module_names}
        for module in sorted(self.reached()):
            for found in self.imports[module]:
                if found.runs_on_import and found.module.split(".")[0] not in known:
                    yield f"{module}, line {found.line}: importing {self.name} imports {found.module}"


CLEAN = {
    "__init__.py": "from kornia_mvit.models.net import Net\n__version__ = '0'\n",
    "models/__init__.py": "",
    "models/net.py": "import torch.nn\nfrom ..ops import boxes\nclass Net: ...\n",
    "ops/__init__.py": "",
    "ops/boxes.py": "import math\n",
    "augmentation/__init__.py": "from .preprocess import Preprocess\nfrom .pipeline import Pipeline\n",
    "augmentation/preprocess.py": "class Preprocess: ...\n",
    "augmentation/pipeline.py": "from kornia_mvit.data import Batch\nfrom . import preprocess\nclass Pipeline: ...\n",
    "weights/__init__.py": "",
    "weights/registry.py": "from kornia_mvit import __version__\nfrom kornia_mvit.augmentation import Preprocess\n",
    "data/__init__.py": "from kornia_mvit.data.batch import Batch\n",
    "data/batch.py": "class Batch: ...\n",
    "data/datamodules.py": "import pytorch_lightning\nimport kornia_mvit.augmentation.pipeline\n",
    "training/__init__.py": "from kornia_mvit.training.tasks import Task\n",
    "training/tasks.py": "from kornia_mvit import Net\nfrom kornia_mvit.data import datamodules\nclass Task: ...\n",
    "export/__init__.py": "from kornia_mvit.weights import registry\n",
    "cli.py": "import kornia_mvit.training.tasks\n",
    "__main__.py": "from kornia_mvit.cli import main\n",
}


def plant(folder: Path, changed: dict[str, str]) -> Sources:
    """Write a package that keeps to the rules, but for the files that are changed."""
    for name, source in (CLEAN | changed).items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return Sources(folder / PACKAGE)


class TestImportDirections:
    def test_package(self):
        assert list(Sources(ROOT / PACKAGE).wrong_edges()) == []

    def test_clean_package_passes(self, tmp_path):
        assert list(plant(tmp_path, {}).wrong_edges()) == []

    @pytest.mark.parametrize(
        ("file", "source", "target"),
        [
            ("models/net.py", "import kornia_mvit.data.batch", "data.batch"),
            ("models/net.py", "from kornia_mvit.data.batch import Batch", "data.batch"),
            ("models/net.py", "from kornia_mvit.data import batch", "data.batch"),
            ("models/net.py", "from kornia_mvit.data import Batch as B", "data.batch"),
            ("models/net.py", "from ..data import Batch", "data.batch"),
            ("models/net.py", "from .. import training", "training"),
            ("models/net.py", "def f():\n    from ..training.tasks import Task", "training.tasks"),
            ("models/net.py", "if TYPE_CHECKING:\n    from kornia_mvit.training import Task", "training.tasks"),
            ("models/net.py", "try:\n    pass\nexcept ImportError:\n    from kornia_mvit import cli", "cli"),
            ("ops/boxes.py", "from kornia_mvit import Net", "models.net"),
            ("augmentation/pipeline.py", "from kornia_mvit.models import net", "models.net"),
            ("augmentation/preprocess.py", "from .pipeline import Pipeline", "augmentation.pipeline"),
            ("weights/registry.py", "from kornia_mvit.augmentation import Pipeline", "augmentation.pipeline"),
            ("data/__init__.py", "from .batch import Batch\nfrom kornia_mvit.models.net import Net", "models.net"),
            ("data/datamodules.py", "from kornia_mvit.training.tasks import Task", "training.tasks"),
            ("models/exporting.py", "from kornia_mvit.export import to_onnx", "export"),
            ("models/net.py", "def f():\n    from kornia_mvit.export import to_onnx", "export"),
            ("training/tasks.py", "import kornia_mvit", ""),
        ],
    )
    def test_wrong_edge_is_flagged(self, tmp_path, file, source, target):
        (complaint,) = plant(tmp_path, {file: source}).wrong_edges()
        assert complaint.endswith(f" may not import {PACKAGE}.{target}".rstrip("."))

    def test_edge_of_a_call_passes(self, tmp_path):
        source = "def f():\n    from kornia_mvit.export import to_onnx"
        assert list(plant(tmp_path, {"models/exporting.py": source}).wrong_edges()) == []

    def test_module_outside_the_table_is_flagged(self, tmp_path):
        (complaint,) = plant(tmp_path, {"helpers.py": ""}).wrong_edges()
        assert complaint.startswith("kornia_mvit.helpers has no place")


class TestOutsideImports:
    def test_package(self):
        assert list(Sources(ROOT / PACKAGE).outside_imports()) == []

    @pytest.mark.parametrize(
        ("file", "source"),
        [
            ("models/net.py", "import pytorch_lightning.callbacks"),
            ("models/__init__.py", "from PIL import Image"),
            ("ops/boxes.py", "try:\n    import torchvision\nexcept ImportError:\n    pass"),
            ("__init__.py", "from kornia_mvit.data import datamodules"),
        ],
    )
    def test_import_on_the_way_is_flagged(self, tmp_path, file, source):
        assert len(list(plant(tmp_path, {file: source}).outside_imports())) == 1

    @pytest.mark.parametrize(
        ("file", "source"),
        [
            ("models/net.py", "def f():\n    import onnx"),
            ("models/net.py", "if typing.TYPE_CHECKING:\n    import PIL"),
            ("training/tasks.py", "import pytorch_lightning"),
        ],
    )
    def test_import_aside_is_not(self, tmp_path, file, source):
        assert list(plant(tmp_path, {file: source}).outside_imports()) == []


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

    def test_training_names_its_extra(self):
        result = run_without_extras("from kornia_mvit.training import ClassificationTask")
        assert "ImportError" in result.stderr.splitlines()[-1]
        assert "kornia-mvit[train]" in result.stderr.splitlines()[-1]

    @pytest.mark.parametrize("command", ["fit", "validate", "test", "demo"])
    def test_command_line_names_its_extra_in_one_line(self, command):
        result = run_without_extras("import runpy; runpy.run_module('kornia_mvit', run_name='__main__')", command)
        assert result.returncode not in (0, None)
        (line,) = result.stderr.splitlines()
        assert "kornia-mvit[train]" in line


class TestImportTime:
    def test_adds_little_to_kornia(self):
        """Other work on the machine can only add to a time: one run within the limit settles it."""
        limit_s, times = 0.5, []
        while len(times) < 5 and min(times, default=limit_s + 1) > limit_s:
            result = run_python(
                "import time, kornia; start = time.perf_counter(); import kornia_mvit; "
                "print(time.perf_counter() - start)"
            )
            assert result.returncode == 0, result.stderr
            times.append(float(result.stdout))
        assert min(times) <= limit_s, f"import kornia_mvit took {times} s after import kornia"
