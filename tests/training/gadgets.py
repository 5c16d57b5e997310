"""What would act if something in a checkpoint were built, imported or opened, and a watch that sees it."""

import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from kornia_mvit.batch import Batch
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.training import ClassificationTask, DetectionTask, ExactResume, SegmentationTask
from kornia_mvit.training.datamodules import DigitsData

TOKEN = "pwned"  # in the name of every file that a gadget makes, reads or removes
TASKS = {"classification": ClassificationTask, "segmentation": SegmentationTask, "detection": DetectionTask}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


# --------------------------------------------------------------------------------------------------------- watching


class Watch:
    """What the process does to names that have the token: programs, files that are opened or removed, imports."""

    events: list[str] | None = None
    lists = ("subprocess.Popen", "os.", "shutil.", "open", "import", "socket.connect", "exec", "tempfile.")

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.events is None or not event.startswith(self.lists):
            return
        if event in ("import", "open"):
            arguments = arguments[:1]
        told = repr(arguments)
        if TOKEN in told:
            self.events.append(f"{event} {told[:300]}")


WATCH = Watch()
sys.addaudithook(WATCH)


@contextmanager
def nothing_runs(folder: Path) -> Iterator[list[str]]:
    """Fail if something of the gadgets is run, opened, imported or removed."""
    victim = folder / f"{TOKEN}-victim.ckpt"
    victim.write_bytes(b"mine")
    WATCH.events = events = []
    try:
        yield events
    finally:
        WATCH.events = None
    assert events == [], events
    assert victim.read_bytes() == b"mine"
    assert {path.name for path in folder.iterdir()} == {victim.name, f"planted_{TOKEN}.py", f"{TOKEN}.yaml"}
    assert f"planted_{TOKEN}" not in sys.modules


def gadgets(folder: Path) -> dict[str, Any]:
    """Values that would act if something built, imported or opened what they name."""
    made, victim = str(folder / f"{TOKEN}-made"), str(folder / f"{TOKEN}-victim.ckpt")

    def build(path: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": path, "init_args": arguments}

    popen = build("subprocess.Popen", args=f"touch {made}", shell=True)
    planted = f"planted_{TOKEN}.Planted"
    return {
        "popen": popen,
        "popen in a dictionary": {"jitter": popen},
        "popen in a list": [[popen], popen],
        "popen deep down": {"a": [{"b": ({"c": popen},)}]},
        "popen as YAML": yaml.safe_dump(popen, default_flow_style=True).strip(),
        "popen as JSON": json.dumps(popen),
        "popen as YAML in a dictionary": {"jitter": yaml.safe_dump(popen)},
        "popen by keywords": {"class_path": "subprocess.Popen", "dict_kwargs": {"args": ["touch", made]}},
        "system": build("os.system", command=f"touch {made}"),
        "zip": {"scale": build("zipfile.ZipFile", file=made, mode="w")},
        "emptied": {"scale": build("zipfile.ZipFile", file=victim, mode="w")},
        "file": build("io.FileIO", file=made, mode="w"),
        "log": {"flip": build("logging.FileHandler", filename=made)},
        "array": build("numpy.memmap", filename=made, mode="w+", shape=4),
        "temporary": build("tempfile.NamedTemporaryFile", prefix=made, delete=False),
        "planted": build(planted),
        "planted without arguments": {"class_path": planted},
        "planted by its private name": {"_class_path": planted, "_instantiator": f"planted_{TOKEN}.build"},
        "planted by name": planted,
        "planted as timm's": f"timm:{planted}",
        "a file of settings": str(folder / f"{TOKEN}.yaml"),
        "a file at a sign": f"@{folder / f'{TOKEN}.yaml'}",
        "another file": victim,
        "timm's file": {"checkpoint_path": victim, "pretrained": True, "pretrained_cfg": {"file": victim}},
        "timm's folder": f"timm:local-dir:{folder / TOKEN}",
        "timm's hub": f"timm:hf-hub:{TOKEN}/{TOKEN}",
        "number": 7,
        "huge": 10**12,
        "nothing": None,
    }


def pairs(places: list[tuple[Any, ...]], values: dict[str, Any], first: int, step: int) -> list[tuple[Any, str]]:
    """Choose places and the names of gadgets in them: in turn, every so many; all of all with GADGETS=all."""
    if os.environ.get("GADGETS") == "all":
        return list(itertools.product(places, values))
    return list(zip(places, itertools.cycle(values), strict=False))[first::step]


def make_elsewhere(tmp_path_factory):
    """Where gadgets would leave something: a module that can be imported, a file of settings, and a victim."""
    folder = tmp_path_factory.mktemp("elsewhere")
    made = folder / f"{TOKEN}-imported"
    text = f"import torch\nopen({str(made)!r}, 'w').close()\nclass Planted(torch.nn.Module): pass\nbuild = Planted\n"
    (folder / f"planted_{TOKEN}.py").write_text(text)
    (folder / f"{TOKEN}.yaml").write_text(yaml.safe_dump({"class_path": f"planted_{TOKEN}.Planted"}))
    sys.path.insert(0, str(folder))
    with nothing_runs(folder):
        pass
    yield folder
    sys.path.remove(str(folder))


def build(task: str) -> pl.LightningModule:
    count = len(Shapes.mask_names if task == "segmentation" else Shapes.class_names)
    task = TASKS[task]("xxs", 10 if task == "classification" else count, image_size=32, policy_args={"flip": 0.5})
    return task


class ShapeLoader(torch.utils.data.DataLoader):
    def __init__(self) -> None:
        super().__init__(Shapes(2, (32, 32)), batch_size=2, collate_fn=collate)


def collate(samples: list[dict[str, Any]]) -> Batch:
    return Shapes(len(samples), (32, 32)).batch()


def train_tasks(tmp_path_factory):
    """The checkpoint of a run of each task, as the command line writes it."""
    files = {}
    for name, owner in TASKS.items():
        root = tmp_path_factory.mktemp(name)
        task = build(name)
        keep = ModelCheckpoint(dirpath=root, filename="run", save_last=True)
        callbacks = [keep, ExactResume()]
        trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=root, limit_train_batches=1, **QUIET)
        with warnings.catch_warnings(action="ignore"):
            if name == "classification":
                trainer.fit(task, datamodule=DigitsData(4))
            else:
                trainer.fit(task, ShapeLoader())
        checkpoint = torch.load(root / "last.ckpt", weights_only=True)
        settings = checkpoint["hyper_parameters"]
        settings["_class_path"] = f"kornia_mvit.training.{owner.__name__}"
        settings["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
        torch.save(checkpoint, root / "plain.ckpt")
        files[name] = root / "plain.ckpt"
    return files


def changed(path: Path, to: Path, *places: tuple[tuple[Any, ...], Any]) -> Path:
    """Write a checkpoint with other values in some places."""
    checkpoint = torch.load(path, weights_only=True)
    for keys, value in places:
        here = checkpoint
        for key in keys[:-1]:
            here = here[key] if isinstance(here, list) else here.setdefault(key, {})
        here[keys[-1]] = value
    torch.save(checkpoint, to)
    return to


def model_checkpoint(path: Path) -> str:
    """The key of the state that Lightning's ModelCheckpoint keeps."""
    states = torch.load(path, weights_only=True)["callbacks"]
    return next(key for key in states if key.startswith("ModelCheckpoint"))
