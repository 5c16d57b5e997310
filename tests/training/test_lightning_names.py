"""Which Lightning the package takes: one of the two, by one file."""

import ast
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import lightning_fabric
import pytest
import pytorch_lightning

from kornia_mvit.training import ClassificationTask, lightning_names
from tests.training.test_tasks import Tiny

ROOT = Path(__file__).parents[2]

# argv[1] is a folder with lightning, argv[2] one for the run. Trains, saves, resumes and reads recipes without
# pytorch_lightning.
PROGRAM = """
import sys
from pathlib import Path

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytorch_lightning", "lightning_fabric"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pytorch_lightning" else found(name, *rest)
sys.meta_path.insert(0, Hide())
sys.path.insert(0, sys.argv[1])
if True:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from lightning.pytorch import LightningModule, Trainer
    from kornia_mvit.training import EMA, ClassificationTask, ExactResume, LastCheckpoint, list_recipes
    from kornia_mvit.training.recipe_cli import build_cli
    folder = Path(sys.argv[2])
    data = [(torch.rand(3, 32, 32), i % 2) for i in range(8)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    task = ClassificationTask(num_classes=2, network=network, image_size=32)
    assert isinstance(task, LightningModule)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_model_summary": False}
    callbacks = lambda: [EMA(0.9), LastCheckpoint(1), ExactResume()]
    run = Trainer(max_epochs=1, default_root_dir=folder, callbacks=callbacks(), **options)
    run.fit(task, DataLoader(data, 4), DataLoader(data, 4))
    last = str(folder / "checkpoints" / "last.ckpt")
    run = Trainer(max_epochs=2, default_root_dir=folder, callbacks=callbacks(), **options)
    run.fit(task, DataLoader(data, 4), DataLoader(data, 4), ckpt_path=last, weights_only=True)
    assert run.current_epoch == 2
    for recipe in ("digits", "finetune"):
        cli = build_cli(["--config", recipe, "--data", "DigitsData", "--model.weights", "null"], run=False)
        assert [type(one).__name__ for one in cli.trainer.callbacks].count("ModelCheckpoint") == 1
    assert not any(name.startswith(("pytorch_lightning", "lightning_fabric")) for name in sys.modules)
    print("done")
"""


def make_lightning(folder):
    """Write the package lightning as it is released: the same code under the other names."""
    for package, part in ((pytorch_lightning, "pytorch"), (lightning_fabric, "fabric")):
        shutil.copytree(Path(package.__file__).parent, folder / "lightning" / part)
    (folder / "lightning" / "__init__.py").write_text("")
    for file in (folder / "lightning").rglob("*.py"):
        text = file.read_text().replace("pytorch_lightning", "lightning.pytorch")
        file.write_text(text.replace("lightning_fabric", "lightning.fabric"))


def test_one_file_imports_lightning():
    """All others take its names from there, or nothing would be chosen for the whole package."""
    found = set()
    for path in (ROOT / "kornia_mvit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {name.partition(".")[0] for name in names} & {"pytorch_lightning", "lightning_fabric", "lightning"}:
                found.add(path.name)
    assert found == {"lightning_names.py"}


def test_recipes_name_neither():
    for path in (ROOT / "kornia_mvit" / "training" / "recipes").glob("*.yaml"):
        assert "lightning." not in path.read_text(), path.name


def test_the_other_lightning_is_told_of(monkeypatch):
    def build():
        return ClassificationTask(num_classes=2, network=Tiny(), image_size=32)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()
    monkeypatch.setitem(sys.modules, "lightning.pytorch", types.ModuleType("lightning.pytorch"))
    with pytest.warns(UserWarning, match="from pytorch_lightning import Trainer"):
        build()


def test_names():
    for name in lightning_names.__all__:
        assert getattr(lightning_names, name) is not None
    with pytest.raises(AttributeError, match="Callbacks"):
        lightning_names.Callbacks  # noqa: B018


@pytest.mark.long
def test_without_pytorch_lightning(tmp_path):
    make_lightning(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, tmp_path / "run"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "done"
