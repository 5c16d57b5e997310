"""What needs an extra says so where it is missing: each way in, and no import of an extra's package left out."""

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.test_imports import BLOCKER, PACKAGE, ROOT, run_python, runtime_packages

# Run as a program, after the blocker: argv[1] holds names and codes as JSON, argv[2] a folder. Prints what each code
# raised, and which functions of the package asked for something that is not there.
PROBE = """
import importlib.util, os
from pathlib import Path

asked = set()
refuse = Blocker.find_spec

def find_spec(self, name, path=None, target=None):
    frame = sys._getframe(1)
    if frame.f_back.f_code is importlib.util.find_spec.__code__:
        return None  # torch looks whether this and that is there, and imports it not
    try:
        return refuse(self, name, path, target)
    except ModuleNotFoundError:
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        if module.startswith("kornia_mvit"):
            asked.add(f"{module}: {frame.f_code.co_qualname}")
        raise

Blocker.find_spec = find_spec

import torch
import kornia_mvit
from kornia_mvit import *
from kornia_mvit.cli import main

def command(*argv):
    os.environ["KORNIA_MVIT_DEBUG"] = "1"  # raises the error instead of telling it
    main(argv)

folder = Path(sys.argv[2])
images = torch.rand(2, 3, 64, 64)
model = MobileViTClassifier("xxs", num_classes=3).eval()
model.preprocess = Preprocess(64)
detector = SSDLite("xxs", num_classes=3).eval()
raised = {}
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(code, dict(globals()))
        raised[name] = "nothing"
    except BaseException as error:
        raised[name] = f"{type(error).__name__}: {error}"
print(json.dumps([raised, sorted(asked)]))
"""

# The way in, and the extra that its error has to name. Nothing but torch and kornia is there.
WITHOUT_ANY = {
    "training": ("import kornia_mvit.training", "train"),
    "data modules": ("from kornia_mvit.training.datamodules import FolderData", "train"),
    "read_image": ("from kornia_mvit.data.reading import read_image; read_image(folder / 'photo.png')", "train"),
    "read_size": ("from kornia_mvit.data.reading import read_size; read_size(folder / 'photo.png')", "train"),
    "read_mask": (
        "from kornia_mvit.data.masks import read_mask; read_mask(folder / 'photo.png')",
        "train",
    ),
    "read_voc": ("from kornia_mvit.data.formats.voc import read_voc; read_voc(folder / 'boxes.xml')", "train"),
    "read_classes": ("from kornia_mvit.data.classes import read_classes; read_classes(folder / 'names.yaml')", "train"),
    "find_shards": ("from kornia_mvit.data.loading.shards import find_shards; find_shards('a.tar')", "train"),
    "shards as a function": ("import kornia_mvit; kornia_mvit.shards", "train"),
    "shards": ("command('shards', 'photos', 'shards')", "train"),
    "shards from an address": (
        "from kornia_mvit.data.loading.sources import ShardCache; ShardCache(folder).open('https://a.b/c.tar')",
        "stream",
    ),
    "write_shards": (
        "from kornia_mvit.data.loading.shards import write_shards; write_shards([('a.png', 0)], f'{folder}/%d.tar')",
        "train",
    ),
    "draw_batch": ("draw_batch(Batch(images))", "train"),
    "draw_preview": (
        "from kornia_mvit.training.preview import draw_preview\n"
        "draw_preview([{'image': images[0]}], AugmentationPipeline(policies.classification_train(32)))",
        "train",
    ),
    "SSDLite.decode": ("detector.decode(*detector(images), (64, 64))", "train"),
    "TestTimeAugmentation of boxes": (
        "boxes = {'boxes': torch.rand(1, 4), 'scores': torch.rand(1), 'labels': torch.zeros(1, dtype=torch.long)}\n"
        "TestTimeAugmentation(lambda x: [boxes for _ in x], 'flip')(images)",
        "train",
    ),
    "suppression in a graph": (
        "from kornia_mvit.exporters.graph import deployable\n"
        "deployable(detector, with_decode=True, nms=True)(images[:1])",
        "train",
    ),
    "fit": ("command('fit', '--config', 'folder', '--data.root', '.')", "train"),
    "fit --help": ("command('fit', '--help')", "train"),
    "validate": ("command('validate', '--config', 'folder', '--data.root', '.', '--checkpoint', 'a.ckpt')", "train"),
    "test": ("command('test', '--config', 'folder', '--data.root', '.', '--checkpoint', 'a.ckpt')", "train"),
    "demo": ("command('demo')", "train"),
    "preview of a recipe": ("command('preview', '--config', 'folder', '--data.root', '.')", "train"),
    "preview of data": (
        "command('preview', '--data', 'FolderData', '--data.root', '.', '--policy', 'classification_train')",
        "train",
    ),
    "predict": (
        "save_checkpoint(model, folder / 'model.ckpt')\n"
        "command('predict', str(folder / 'photo.png'), '--checkpoint', str(folder / 'model.ckpt'))",
        "cli",
    ),
    "boxes of an exported file": (
        "from kornia_mvit.inference.detection import without_overlaps\n"
        "without_overlaps({'boxes': torch.zeros(1, 4), 'scores': torch.ones(1), 'labels': torch.zeros(1)})",
        "train",
    ),
    "read a video": (
        "from kornia_mvit.inference.sources import read_source; next(read_source(folder / 'clip.mp4'))",
        "video",
    ),
    "export to ONNX": ("model.to_onnx(folder / 'model.onnx')", "export"),
    "run ONNX": ("import kornia_mvit.exporters as E; E.load_onnx(folder / 'model.onnx')", "export"),
    "quantise ONNX": ("import kornia_mvit.exporters as E; E.quantize_onnx(model, folder / 'model.onnx', [])", "export"),
    "OpenVINO as an engine": (
        "import kornia_mvit; kornia_mvit.optimize(model, images[:1], engine='openvino')",
        "export",
    ),
    "ONNX Runtime as an engine": (
        "import kornia_mvit; kornia_mvit.optimize(model, images[:1], engine='onnxruntime')",
        "export",
    ),
    "export to OpenVINO": ("import kornia_mvit.exporters as E; E.to_openvino(model, folder / 'model.xml')", "export"),
    "run OpenVINO": ("import kornia_mvit.exporters as E; E.load_openvino(folder / 'model.xml')", "export"),
    "export to ExecuTorch": ("import kornia_mvit.exporters as E; E.to_executorch(model, folder / 'm.pte')", "export"),
    "run ExecuTorch": ("import kornia_mvit.exporters as E; E.load_executorch(folder / 'm.pte')", "export"),
    "quantise ExecuTorch": (
        "import kornia_mvit.exporters as E; E.quantize_executorch(model, folder / 'm.pte', [])",
        "export",
    ),
    "quantise OpenVINO": (
        "import kornia_mvit.exporters as E; E.quantize_openvino(model, folder / 'm.xml', [])",
        "export",
    ),
    "export to Core ML": ("import kornia_mvit.exporters as E; E.to_coreml(model, folder / 'm.mlpackage')", "export"),
    "export command": (
        "save_checkpoint(model, folder / 'model.ckpt')\n"
        "command('export', str(folder / 'model.ckpt'), str(folder / 'model.onnx'))",
        "cli",
    ),
    "read .safetensors": ("from_pretrained(folder / 'model.safetensors')", "hub"),
    "write .safetensors": ("save_checkpoint(model, folder / 'model.safetensors')", "hub"),
    "convert to .safetensors": (
        "save_checkpoint(model, folder / 'model.ckpt')\n"
        "convert(folder / 'model.ckpt', folder / 'a.safetensors', to='timm')",
        "hub",
    ),
    "convert": ("command('convert', 'a.pt', 'b.pt', '--to', 'timm')", "cli"),
    "info": ("command('info')", "cli"),
    "save_pretrained": (
        "from kornia_mvit.weights import save_pretrained; save_pretrained(model, folder / 'model')",
        "hub",
    ),
    "weights of a hub by name": ("from_pretrained('mobilevit_xxs.timm_in1k')", "hub"),
    "weights of a hub by repository": ("from_pretrained('owner/name')", "hub"),
    "push_to_hub": ("from kornia_mvit.weights import push_to_hub; push_to_hub(model, 'owner/name')", "hub"),
    "save_pretrained of a model": ("model.save_pretrained(folder / 'model')", "hub"),
    "a task by its short name": ("from kornia_mvit import ClassificationTask", "train"),
    "a data module by its short name": ("import kornia_mvit; kornia_mvit.FolderData", "train"),
    "strategies": ("from kornia_mvit.testing import strategies", "testing"),
    "check_backbone": ("from kornia_mvit.testing.properties import check_backbone", "testing"),
}

# The same where Lightning and TorchMetrics are there, as others install them, without the rest of the extra. They look
# for what they can use as they are imported, so that is done before anything is put out of sight.
LIGHTNING = ("lightning_fabric", "pytorch_lightning", "torchmetrics")
REST = ("faster_coco_eval", "jsonargparse", "matplotlib", "sklearn", "timm")
LIGHTNING_ALONE = f"""
import sys
import pytorch_lightning.cli, pytorch_lightning.loggers, torchmetrics.classification
for name in [name for name in sys.modules if name.partition(".")[0] in {REST}]:
    del sys.modules[name]
"""
WITHOUT_THE_REST = {
    "data modules": ("from kornia_mvit.training.datamodules import FolderData", "train"),
    "scores of boxes": (
        "from kornia_mvit.training import CocoMetrics\n"
        "metrics = CocoMetrics(['cat'])\n"
        "boxes, labels = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0])\n"
        "metrics.update([{'boxes': boxes, 'scores': torch.ones(1), 'labels': labels}],\n"
        "               [{'boxes': boxes, 'labels': labels}])\n"
        "metrics.compute()",
        "train",
    ),
    "charts": (
        "from kornia_mvit.draw.charts import draw_confusion\n"
        "draw_confusion(torch.eye(2), torch.ones(2), ['cat', 'dog'])",
        "train",
    ),
    "fit": ("command('fit', '--config', 'folder', '--data.root', '.')", "train"),
    "recipes": ("import kornia_mvit.training.recipe_cli", "train"),
}
TIMM = {
    "a network of timm": "from kornia_mvit.training.networks import timm_network; timm_network('timm:resnet18', 2)",
    "register_in_timm": "register_in_timm()",
}

_IN_TIMM = "kornia_mvit.models.registration: register_in_timm"

# Functions that import from an extra and cannot be reached without it, and what says so before them.
BEHIND = {
    "kornia_mvit.exporters.openvino: translate": "kornia_mvit.exporters.openvino: to_openvino",
    "kornia_mvit.inference.engines.int8: quantize_graph": "kornia_mvit.exporters.quantize: quantize_openvino",
    "kornia_mvit.data.loading.packing: _jpeg": "kornia_mvit.data.reading: opened",
    "kornia_mvit.data.loading.packing: _png": "kornia_mvit.data.reading: opened",
    "kornia_mvit.data.loading.sources: _Fetch._options": "kornia_mvit.data.loading.sources: _Fetch.system",
    "kornia_mvit.data.instances: _mask_api": "kornia_mvit.training.datamodules: <module>",
    "kornia_mvit.pictures: to_rgb": "kornia_mvit.data.reading: opened",
    "kornia_mvit.pictures: picture_to_tensor": "kornia_mvit.data.reading: opened",
    "kornia_mvit.data.reading: load": "kornia_mvit.data.reading: opened",
    "kornia_mvit.data.reading: _decode_plain": "kornia_mvit.data.reading: opened",
    "kornia_mvit.pictures: array_to_tensor": "kornia_mvit.data.reading: opened",
    "kornia_mvit.models.timm_entry: TimmMobileViT.reset_classifier": _IN_TIMM,
    "kornia_mvit.models.timm_entry: _create": _IN_TIMM,
    "kornia_mvit.exporters.executorch: lower": "kornia_mvit.exporters.executorch: _need_executorch",
    "kornia_mvit.exporters.onnx: _translations": "kornia_mvit.exporters.onnx: to_onnx",
    "kornia_mvit.cli.fit: _task_of_recipe": "kornia_mvit.training: <module>",
    "kornia_mvit.training.preview: _check_picture": "kornia_mvit.training: <module>",
    "kornia_mvit.training.preview: _data": "kornia_mvit.training.datamodules: <module>",
    "kornia_mvit.training.preview: draw_preview": "kornia_mvit.draw.sheets: pillow",
    "kornia_mvit.draw.charts: _percent": "kornia_mvit.draw.charts: _figure",
    "kornia_mvit.draw.charts: draw_confusion": "kornia_mvit.draw.charts: _figure",
}
# Whatever these packages' modules import as they are loaded, the package has asked for before.
ASKS_FIRST = {
    "kornia_mvit.training.datamodules": (*LIGHTNING, "sklearn"),
    "kornia_mvit.training": (*LIGHTNING, "lightning", "numpy"),
    "kornia_mvit.evaluation": ("torchmetrics",),
    "kornia_mvit.testing": ("hypothesis",),
}


def probe(
    entries: dict[str, str], folder: Path, visible: Sequence[str], before: str = ""
) -> tuple[dict[str, str], set[str]]:
    """Run entries where only the visible packages can be imported."""
    arguments = [json.dumps([PACKAGE, *visible]), json.dumps(entries), str(folder)]
    result = run_python(before + BLOCKER + PROBE, arguments)
    assert result.returncode == 0, result.stderr
    raised, asked = json.loads(result.stdout.splitlines()[-1])
    return raised, set(asked)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extras")
    for name in ("photo.png", "boxes.xml", "names.yaml", "model.safetensors"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def without_any(folder) -> tuple[dict[str, str], set[str]]:
    return probe({name: code for name, (code, _) in WITHOUT_ANY.items()}, folder, runtime_packages())


@pytest.fixture(scope="module")
def without_the_rest(folder) -> tuple[dict[str, str], set[str]]:
    entries = {name: code for name, (code, _) in WITHOUT_THE_REST.items()} | TIMM
    return probe(entries, folder, [name for name in packages_distributions() if name not in REST], LIGHTNING_ALONE)


def check(error: str, extra: str) -> None:
    assert error.startswith("ImportError: "), error
    assert f"install kornia-mvit[{extra}]" in error


@pytest.mark.parametrize("name", WITHOUT_ANY)
def test_missing_extra_is_named(without_any, name):
    check(without_any[0][name], WITHOUT_ANY[name][1])


@pytest.mark.long(every_share=True)
@pytest.mark.parametrize("name", WITHOUT_THE_REST)
def test_rest_of_an_extra_is_named(without_the_rest, name):
    check(without_the_rest[0][name], WITHOUT_THE_REST[name][1])


@pytest.mark.long(every_share=True)
@pytest.mark.parametrize("name", TIMM)
def test_missing_timm_is_named(without_the_rest, name):
    assert "pip install timm" in without_the_rest[0][name]


def outside_imports(node: ast.AST, within: str = "<module>", prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the functions below a node that import, by their qualified names, and from which package."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield from outside_imports(child, prefix + name, f"{prefix}{name}.<locals>.")
            case ast.ClassDef(name=name):
                yield from outside_imports(child, within, f"{prefix}{name}.")
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from ((within, alias.name.partition(".")[0]) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield within, module.partition(".")[0]
            case _:
                yield from outside_imports(child, within, prefix)


@pytest.mark.long(every_share=True)
def test_no_import_of_an_extra_is_left_out(without_any, without_the_rest):
    """Each function that imports from an extra was reached above, or lies behind one that was."""
    asked = without_any[1] | without_the_rest[1]
    inside = {PACKAGE, *runtime_packages(), *sys.stdlib_module_names}
    left_out, seen = set(), set()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        module = re.sub(r"(/__init__)?\.py$", "", str(path.relative_to(ROOT))).replace("/", ".")
        for function, package in outside_imports(ast.parse(path.read_text())):
            site = f"{module}: {function}"
            first = next((names for part, names in ASKS_FIRST.items() if module.startswith(part)), ())
            if package in inside or (function == "<module>" and package in first):
                continue
            seen.add(site)
            if site not in asked and BEHIND.get(site) not in asked:
                left_out.add(f"{site} imports {package}")
    assert sorted(left_out) == []
    assert BEHIND.keys() <= seen, "a function that no longer imports stands in the table"
    for part in ASKS_FIRST.keys() - {"kornia_mvit.evaluation"}:  # which training imports, after it has asked
        assert f"{part}: <module>" in asked
