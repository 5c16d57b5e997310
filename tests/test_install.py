"""The wheel in environments of its own, which hold torch, kornia and what these need: ``make test-install``."""

import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def pinned_torch() -> str:
    return re.search(r"^torch==(\S+)", CONSTRAINTS, re.MULTILINE)[1]


def oldest_torch() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = (text for text in project["dependencies"] if text.startswith("torch>="))
    return re.match(r"torch>=([\d.]+)", requirement)[1]


@dataclass(frozen=True)
class Environment:
    folder: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs, away from the sources."""
        result = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def python(self, code: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("python", "-I", "-W", "error", "-c", code, check=check)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without --wheel the wheel is built from the source distribution, so that this one is seen to be whole as well.
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, timeout=600)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=[pinned_torch, oldest_torch], ids=["pinned", "oldest"])
def environment(request, wheel) -> Iterator[Environment]:
    # Some GB each: not in pytest's own temporary folder, which outlives the run.
    with tempfile.TemporaryDirectory() as name:
        environment = Environment(Path(name))
        constraints = environment.folder / "constraints.txt"
        constraints.write_text(CONSTRAINTS.replace(f"torch=={pinned_torch()}\n", f"torch=={request.param()}\n"))
        subprocess.run([sys.executable, "-m", "venv", environment.folder], check=True, timeout=300)
        environment.run("python", "-m", "pip", "install", "--quiet", "--constraint", str(constraints), str(wheel))
        yield environment


def test_wheel_holds_every_module_and_data_file(wheel):
    sources = {path for path in (ROOT / "kornia_mvit").rglob("*") if path.suffix in (".py", ".txt", ".typed", ".yaml")}
    expected = {str(path.relative_to(ROOT)) for path in sources}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert "kornia_mvit/py.typed" in held
    assert {f"kornia_mvit/training/recipes/{name}.yaml" for name in ("digits", "folder")} <= held
    assert {f"kornia_mvit/weights/classes/{name}.txt" for name in ("imagenet-1k", "voc", "coco")} <= held
    assert {name for name in held if name.startswith("kornia_mvit/")} == expected


class TestTorchAndKorniaAlone:
    def test_nothing_else_is_there(self, environment):
        environment.run("python", "-m", "pip", "check")
        code = (
            "import importlib.util\n"
            "names = ('PIL', 'jsonargparse', 'matplotlib', 'onnx', 'pytorch_lightning', 'sklearn', 'torchvision')\n"
            "print([name for name in names if importlib.util.find_spec(name)])"
        )
        assert environment.python(code).stdout == "[]\n"

    def test_import_is_silent(self, environment):
        result = environment.python("import kornia_mvit")
        assert result.stdout + result.stderr == ""

    def test_backbone_and_classifier_run(self, environment):
        code = (
            "import torch, kornia_mvit as M\n"
            "x = torch.rand(2, 3, 64, 96)\n"
            "print(*M.MobileViT('xxs').eval()(x).shape, *M.MobileViTClassifier('xxs', num_classes=5).eval()(x).shape)"
        )
        assert environment.python(code).stdout == "2 320 2 3 2 5\n"

    def test_pipeline_runs(self, environment):
        code = (
            "import torch, kornia_mvit as M\n"
            "images = torch.randint(256, (2, 3, 80, 100), dtype=torch.uint8)\n"
            "pipeline = M.AugmentationPipeline(M.policies.classification_train(64), preprocess=M.Preprocess(64))\n"
            "batch = pipeline(M.Batch(images, torch.tensor([0, 1])))\n"
            "print(*batch.image.shape, batch.image.dtype)"
        )
        assert environment.python(code).stdout == "2 3 64 64 torch.float32\n"

    def test_training_names_its_extra(self, environment):
        result = environment.python("from kornia_mvit.training import ClassificationTask", check=False)
        assert result.returncode == 1
        assert "ImportError" in result.stderr.splitlines()[-1]
        assert "kornia-mvit[train]" in result.stderr.splitlines()[-1]

    @pytest.mark.parametrize("command", ["fit", "validate", "test", "demo"])
    def test_command_line_names_its_extra_in_one_line(self, environment, command):
        result = environment.run("kornia-mvit", command, check=False)
        assert result.returncode != 0
        (line,) = result.stderr.splitlines()
        assert "kornia-mvit[train]" in line
