"""The wheel in environments of its own, with and without each of its extras: ``make test-install``.

One environment holds torch, kornia and what these need. That of an extra lies on top of it, sees what is there, and has
no more than what the extra adds, so that torch is not installed again and each extra is seen alone.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import kornia_mvit

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

# A package that is there with an extra, and with no other but those that contain it.
SIGN = {
    "cli": "jsonargparse",
    "train": "pytorch_lightning",
    "hub": "safetensors",
    "export": "onnxruntime",
    "testing": "hypothesis",
    "examples": "jupytext",
    "docs": "furo",
    "video": "av",
    "stream": "s3fs",
}
WITHIN = {
    "train": {"cli", "train"},
    "examples": {"cli", "train", "testing", "examples"},
    "export": {"cli", "hub", "testing", "export"},  # executorch needs Hypothesis, nncf safetensors
}

# What needs an extra, and which.
WAYS_IN = {
    "from kornia_mvit.training import ClassificationTask": "train",
    "from kornia_mvit.training.datamodules import FolderData": "train",
    "M.draw_batch(M.Batch(torch.rand(1, 3, 32, 32)))": "train",
    "M.from_pretrained('mobilevit_xxs.timm_in1k')": "hub",
    "M.MobileViTClassifier('xxs').to_onnx('model.onnx')": "export",
    "from kornia_mvit.testing import strategies": "testing",
}


def pinned_torch() -> str:
    return re.search(r"^torch==(\S+)", CONSTRAINTS, re.MULTILINE)[1]


def oldest_torch() -> str:
    (requirement,) = (text for text in PROJECT["dependencies"] if text.startswith("torch>="))
    return re.match(r"torch>=([\d.]+)", requirement)[1]


@dataclass(frozen=True)
class Environment:
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Environment":
        """Make an empty environment; pip stays outside, which is faster."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
        return cls(folder)

    def pip(self, *arguments: str | Path) -> None:
        command = ["--python", self.folder / "bin" / "python", *arguments]
        result = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *command],
            env=OUTSIDE,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs, away from the sources."""
        result = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env=OUTSIDE | {"HF_HUB_OFFLINE": "1", "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def python(self, code: str, *, strict: bool = True, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run code, with warnings as errors where it is strict."""
        return self.run("python", "-I", *(("-W", "error") if strict else ()), "-c", code, check=check)

    def packages(self) -> Path:
        (folder,) = (self.folder / "lib").glob("python*/site-packages")
        return folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without --wheel the wheel is built from the source distribution, so that this one is seen to be whole as well.
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=[pinned_torch, oldest_torch], ids=["pinned", "oldest"])
def environment(request, wheel) -> Iterator[Environment]:
    # Some GB each: not in pytest's own temporary folder, which outlives the run.
    with tempfile.TemporaryDirectory() as name:
        environment = Environment.make(Path(name))
        constraints = environment.folder / "constraints.txt"
        constraints.write_text(CONSTRAINTS.replace(f"torch=={pinned_torch()}\n", f"torch=={request.param()}\n"))
        # Compiling all of torch would take longer than compiling what is imported.
        environment.pip("install", "--no-compile", "--constraint", constraints, wheel)
        yield environment


@pytest.fixture(scope="module")
def add(environment, wheel) -> Callable[[str], Environment]:
    """Return the environment of an extra, made at the first call and seen to be of that extra alone."""
    made: dict[str, Environment] = {}

    def make(extra: str) -> Environment:
        if extra not in made:
            below = [environment, *([make("train")] if extra == "examples" else [])]  # which contains train
            layer = Environment.make(environment.folder / "extras" / extra)
            paths = "\n".join(str(lower.packages()) for lower in reversed(below))
            (layer.packages() / "below.pth").write_text(paths + "\n")
            constraints = environment.folder / "constraints.txt"
            layer.pip("install", "--no-compile", "--constraint", constraints, f"{wheel}[{extra}]")
            layer.pip("check")
            code = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
            present = layer.run("python", "-I", "-c", code, *SIGN.values()).stdout.split()
            assert set(present) == {SIGN[name] for name in WITHIN.get(extra, {extra})}
            made[extra] = layer
        return made[extra]

    return make


def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(archive.read(name))


def test_wheel_holds_every_module_and_data_file(wheel):
    sources = {path for path in (ROOT / "kornia_mvit").rglob("*") if path.suffix in (".py", ".txt", ".typed", ".yaml")}
    expected = {str(path.relative_to(ROOT)) for path in sources}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert "kornia_mvit/py.typed" in held
    assert {f"kornia_mvit/training/recipes/{name}.yaml" for name in ("digits", "folder")} <= held
    assert {f"kornia_mvit/data/class_names/{name}.txt" for name in ("imagenet-1k", "voc", "coco")} <= held
    assert {name for name in held if name.startswith("kornia_mvit/")} == expected


def test_wheel_says_what_it_is(wheel):
    about = metadata(wheel)
    archive = zipfile.ZipFile(wheel)
    assert about["Version"] == kornia_mvit.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Description-Content-Type"] == "text/x-rst"
    assert about.get_payload(decode=True).decode().strip() == (ROOT / "README.rst").read_text().strip()
    for name in ("LICENSE", "NOTICE"):
        (held,) = (held for held in archive.namelist() if held.endswith(f".dist-info/licenses/{name}"))
        assert archive.read(held).decode() == (ROOT / name).read_text()
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert set(SIGN) | {"dev", "all"} == set(PROJECT["optional-dependencies"])


def test_source_distribution_holds_what_the_wheel_is_built_from(dist, wheel):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("kornia_mvit/")} <= held
    files = {"CHANGELOG.rst", "CITATION.cff", "LICENSE", "NOTICE", "README.rst", "pyproject.toml", "setup.cfg"}
    assert files <= held


class TestTorchAndKorniaAlone:
    def test_nothing_else_is_there(self, environment):
        environment.pip("check")
        code = (
            "import importlib.util\n"
            "names = ('PIL', 'jsonargparse', 'matplotlib', 'onnx', 'pytorch_lightning', 'sklearn', 'torchvision')\n"
            f"print([name for name in [*names, *{list(SIGN.values())}] if importlib.util.find_spec(name)])"
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

    def test_missing_extra_is_named(self, environment):
        """A few of the ways in; ``tests/test_extras.py`` has all."""
        code = f"""
import torch, kornia_mvit as M
for code, extra in {WAYS_IN}.items():
    try:
        exec(code)
    except ImportError as error:
        assert f"install kornia-mvit[{{extra}}]" in str(error), error
        continue
    raise AssertionError(code)
"""
        assert environment.python(code).stdout == ""

    @pytest.mark.parametrize("command", ["fit", "demo"])
    def test_command_line_names_its_extra_in_one_line(self, environment, command):
        result = environment.run("kornia-mvit", command, check=False)
        assert result.returncode != 0
        (line,) = result.stderr.splitlines()
        assert "kornia-mvit[train]" in line


@pytest.mark.parametrize("environment", [pinned_torch], ids=["pinned"], indirect=True)
class TestExtras:
    """Each extra alone on torch and kornia, with a short use of its part."""

    def test_train(self, add):
        layer = add("train")
        short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]
        out = layer.run(
            "python", "-m", "kornia_mvit", "fit", "--config", "digits", *short, "--trainer.default_root_dir", "runs"
        ).stdout
        checkpoint = next((layer.folder / "runs").rglob("best.ckpt"))
        assert checkpoint.name in out
        assert next((layer.folder / "runs").rglob("report/index.html")).stat().st_size > 10_000
        code = (
            "import torch, kornia_mvit as M\n"
            "from kornia_mvit.data.loading.shards import find_shards, write_shards\n"
            "M.draw_batch(M.Batch(torch.rand(1, 3, 64, 64))).save('photo.png')\n"
            "write_shards([('photo.png', 0)], 'train-%d.tar')\n"
            "model = M.SSDLite('xxs', num_classes=3).eval()\n"
            "found = model.decode(*model(torch.rand(2, 3, 64, 64)), (64, 64), score_threshold=0.0)\n"
            "print(len(found), find_shards('train-{0..0}.tar'))"
        )
        assert layer.python(code, strict=False).stdout.endswith("2 ['train-0.tar']\n")
        out = layer.run(
            "python", "-m", "kornia_mvit", "predict", "photo.png", "--checkpoint", checkpoint, "--draw", "drawn"
        ).stdout
        assert json.loads(out)["class"] in "0123456789"
        assert len(list((layer.folder / "drawn").iterdir())) == 1

    def test_hub(self, add):
        code = (
            "import torch, kornia_mvit as M\n"
            "from kornia_mvit.weights import CheckpointError, save_pretrained\n"
            "model = M.MobileViTClassifier('xxs', num_classes=5).eval()\n"
            "model.preprocess = M.Preprocess(64)\n"
            "save_pretrained(model, 'model')\n"
            "again = M.from_pretrained('model')\n"
            "x = torch.rand(1, 3, 64, 64)\n"
            "print(torch.equal(model(x), again(x)), again.preprocess == model.preprocess)\n"
            "try:\n"
            "    M.from_pretrained('owner/name')\n"
            "except CheckpointError as error:\n"
            "    print(error)"
        )
        first, second = add("hub").python(code).stdout.splitlines()
        assert first == "True True"
        assert second.startswith("cannot fetch owner/name from the Hugging Face hub")

    @pytest.mark.parametrize(
        ("writer", "loader", "file"),
        [
            ("to_onnx", "load_onnx", "model.onnx"),
            ("to_openvino", "load_openvino", "model.xml"),
            ("to_executorch", "load_executorch", "model.pte"),
        ],
    )
    def test_export(self, add, writer, loader, file):
        code = (
            "import torch, kornia_mvit as M, kornia_mvit.exporters as E\n"
            "torch.manual_seed(0)\n"
            "model = M.MobileViTClassifier('xxs', num_classes=5).eval()\n"
            f"E.{writer}(model, '{file}', size=64)\n"
            "x = torch.rand(1, 3, 64, 64)\n"
            f"print('difference', (E.{loader}('{file}')(x)[0] - model(x)).abs().max().item())"
        )
        word, difference = add("export").python(code, strict=False).stdout.splitlines()[-1].split()
        assert word == "difference"
        assert float(difference) < 1e-4

    def test_testing(self, add):
        code = (
            "from hypothesis import given, settings\n"
            "from kornia_mvit import Batch, MobileViT\n"
            "from kornia_mvit.testing import strategies\n"
            "from kornia_mvit.testing.properties import check_backbone\n"
            "seen = []\n"
            "@settings(max_examples=5, deadline=None, database=None)\n"
            "@given(strategies.batches(task='detection'))\n"
            "def check(batch):\n"
            "    assert isinstance(batch, Batch)\n"
            "    seen.append(batch)\n"
            "check()\n"
            "report = check_backbone(lambda: MobileViT('xxs'), max_examples=1, properties=['sizes', 'shapes'])\n"
            "print(len(seen) > 0, type(report).__name__)"
        )
        assert add("testing").python(code, strict=False).stdout.endswith("True BackboneReport\n")

    def test_examples(self, add):
        """A notebook as those of ``examples/``: percent format in, pictures and outputs out."""
        layer = add("examples")
        source = (
            "# %%\n"
            "import torch, kornia_mvit as M\n"
            "picture = M.draw_batch(M.Batch(torch.rand(2, 3, 64, 64)))\n"
            "# %%\n"
            "print(*picture.size)\n"
        )
        (layer.folder / "short.py").write_text(source)
        layer.run("jupytext", "--to", "ipynb", "short.py")
        code = (
            "import nbformat, nbclient\n"
            "book = nbformat.read('short.ipynb', 4)\n"
            "nbclient.NotebookClient(book, kernel_name='python3', timeout=300).execute()\n"
            "print(book.cells[-1].outputs[0].text)"
        )
        width, height = map(int, layer.python(code, strict=False).stdout.split())
        assert width > 64
        assert height > 64

    def test_docs(self, add):
        layer = add("docs")
        source = layer.folder / "source"
        source.mkdir()
        extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton"]
        settings = f"project = 'kornia_mvit'\nhtml_theme = 'furo'\nextensions = {extensions}\n"
        (source / "conf.py").write_text(settings)
        (source / "index.rst").write_text("Package\n=======\n\n.. autoclass:: kornia_mvit.Preprocess\n   :members:\n")
        layer.run("sphinx-build", "-q", "-W", "source", "built")
        assert "kornia_mvit.Preprocess.module" in (layer.folder / "built" / "index.html").read_text()
