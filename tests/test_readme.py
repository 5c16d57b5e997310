"""README.rst as people meet it: it renders, its code runs, its commands and links lead somewhere. And the version."""

import ast
import functools
import io
import json
import re
import shlex
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import readme_renderer.rst
import torch
from PIL import Image

import kornia_mvit
from kornia_mvit import DeepLabV3, MobileViTClassifier, SSDLite, cli, fit, testing
from kornia_mvit.cli.frame import split_options
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.inference.engines import optimize as optimization
from kornia_mvit.ops.boxes import corner_boxes, encode_boxes, pairwise_iou
from kornia_mvit.training import reporting
from kornia_mvit.weights import registry, save_pretrained

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.rst").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Programs of the console that are not ours, and whose arguments are no business of this test.
OTHERS = ("cd", "git", "source")


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of the first line of code, from 1
    code: str


def blocks(text: str) -> list[Block]:
    """Return the code blocks of a document."""
    out, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        found = re.fullmatch(r"( *)\.\. code-block:: (\w+)", line)
        if not found:
            continue
        indent, body = len(found[1]) + 3, []
        for inside in lines[number + 1 :]:
            if inside.strip() and len(inside) - len(inside.lstrip()) < indent:
                break
            body.append(inside[indent:])
        first = next(place for place, inside in enumerate(body) if inside.strip())
        out.append(Block(found[2], number + 2 + first, "\n".join(body[first:]).rstrip() + "\n"))
    return out


def commands(text: str) -> list[str]:
    """Return the command lines of the console blocks, and those that the text names."""
    out = []
    for block in blocks(text):
        if block.language == "console":
            joined = block.code.replace("\\\n", " ")
            out += [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]
    out += [
        name for name in re.findall(r"``([^`]+)``", text) if re.match(r"(make|kornia-mvit|pip install) [a-z'.-]", name)
    ]
    return [re.sub(r"\s+#.*", "", line) for line in out]


# ------------------------------------------------------------------------------------------------------- running code


def stated_shape(line: str) -> list[str] | None:
    """Return the shape that a comment states, as in ``y = f(x)  # (2, K, 7), of the first``."""
    found = re.search(r"#\s*\(((?:\w+,\s*)*\w*,?)\)", line)
    return None if found is None else re.findall(r"\w+", found[1])


def same_shape(found: tuple[int, ...], stated: list[str]) -> bool:
    """Whether a shape is the stated one; letters stand for any number."""
    return len(found) == len(stated) and all(
        number == int(told) for number, told in zip(found, stated, strict=True) if told.isdigit()
    )


def run(block: Block, names: dict[str, Any], file: str = "README.rst") -> int:
    """Run a block and compare what it says of shapes; give how many of them it states."""
    tree = ast.parse("\n" * (block.line - 1) + block.code, file)
    lines = ("\n" * (block.line - 1) + block.code).splitlines()
    compared = 0
    for statement in tree.body:
        line = lines[statement.end_lineno - 1]
        stated = stated_shape(line) if isinstance(statement, ast.Expr | ast.Assign) else None
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), file, "eval"), names)
        else:
            exec(compile(ast.Module([statement], []), file, "exec"), names)
            value = None
        if stated is not None:
            if isinstance(statement, ast.Assign):
                target = statement.targets[0]
                value = names[(target.elts[0] if isinstance(target, ast.Tuple) else target).id]
            found = tuple(getattr(value, "shape", value))
            assert same_shape(found, stated), f"{file}:{statement.lineno}: {line.strip()} is {found}"
            compared += 1
    return compared


class ShortTrainer(pytorch_lightning.Trainer):
    """Two batches, whatever number of epochs is asked for."""

    def __init__(self, **arguments: Any) -> None:
        arguments |= {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
        arguments |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        super().__init__(**arguments)


def short_fit(data: Any, **options: Any) -> Any:
    """Train on one batch, whatever number of epochs is asked for."""
    return fit(data, **options | {"epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1})


# ------------------------------------------------------------------------------------ a photo, and networks that see it

PHOTO = (149, 150)
BOX = (40, 30, 110, 95)  # of what is drawn there, in its pixels
SQUARE = Shapes.class_names.index("square")


def draw_photo() -> Image.Image:
    """Draw a red square, so to speak, on teal."""
    photo = Image.new("RGB", PHOTO[::-1], "teal")
    photo.paste("red", BOX)
    return photo


def redness(x: torch.Tensor) -> torch.Tensor:
    """Return where preprocessed images are red, from -1 to 1."""
    return (x[:, 0] - x[:, 2]).clamp(-1, 1)


def see_class(network: Any, x: torch.Tensor) -> torch.Tensor:
    """Give the second class to what has red in it."""
    red = (redness(x) > 0.5).float().mean((-2, -1), keepdim=False)
    return torch.stack([0.05 - red, red - 0.05], -1) * 100


def see_pixels(network: Any, x: torch.Tensor) -> torch.Tensor:
    """Give the square's class to red pixels."""
    out = torch.zeros(len(x), network.num_classes, *x.shape[-2:])
    out[:, SQUARE + 1] = 20 * redness(x)
    return out


def see_boxes(network: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the box of what is red to the anchors that it overlaps."""
    anchors = network.anchors(x.shape[-2:])
    logits = torch.zeros(len(x), len(anchors), network.num_classes)
    logits[..., 0] = 10
    deltas = torch.zeros(len(x), len(anchors), 4)
    for row, red in enumerate(redness(x) > 0):
        if red.any():
            edges = [places.any(dim).nonzero() for dim in (0, 1) for places in (red,)]
            (left, right), (top, bottom) = ((int(edge[0]), int(edge[-1]) + 1) for edge in edges)
            box = torch.tensor([[left, top, right, bottom]]) / torch.tensor([*x.shape[:1:-1]] * 2)
            deltas[row] = encode_boxes(box.expand(len(anchors), 4), anchors)
            logits[row, pairwise_iou(box[None], corner_boxes(anchors))[0, 0] > 0.3, SQUARE + 1] = 20
    return logits, deltas


ORACLES = {MobileViTClassifier: see_class, DeepLabV3: see_pixels, SSDLite: see_boxes}


def in_evaluation(sees: Callable[[Any, torch.Tensor], Any], learns: Callable[[Any, torch.Tensor], Any]) -> Any:
    """Return a forward pass that sees what is there, but in training, where it learns."""

    def forward(network: Any, x: torch.Tensor) -> Any:
        return learns(network, x) if network.training or network.num_classes > 5 else sees(network, x)

    return forward


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with the data that README.rst names, and what takes long or needs a network made short and local."""
    for place, task in (("photos", "classes"), ("streets", "masks"), ("cells", "boxes")):
        write_data(tmp_path / place, task)
    draw_photo().save(tmp_path / "photo.jpg", quality=95)
    model = kornia_mvit.MobileViTClassifier("xxs")
    save_pretrained(model, tmp_path / "hub")
    kornia_mvit.save_checkpoint(model, tmp_path / "hub" / "model.safetensors", layout="timm")
    monkeypatch.setattr(registry, "_fetch_repository", lambda name: tmp_path / "hub")
    monkeypatch.setattr(pytorch_lightning, "Trainer", ShortTrainer)
    monkeypatch.setattr(kornia_mvit, "fit", short_fit)
    monkeypatch.setattr(reporting, "write_report", lambda *_, **__: None)  # which takes longer than a batch
    for kind, sees in ORACLES.items():
        monkeypatch.setattr(kind, "forward", in_evaluation(sees, kind.forward))
    monkeypatch.setattr(kornia_mvit, "optimize", functools.partial(optimization.optimize, mode="eager"))
    monkeypatch.setattr(
        testing,
        "check_backbone",
        functools.partial(testing.check_backbone, max_examples=1, properties=("sizes", "modes")),
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def write_data(folder: Path, task: str) -> None:
    """Write the synthetic shapes as a folder for each class, as label images or as YOLO has boxes."""
    shapes = Shapes(8, (96, 128))
    names = Shapes.class_names
    for number, sample in enumerate(shapes[index] for index in range(len(shapes))):
        split = "val" if number >= 4 else "train"
        image = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        if task == "classes":
            place = folder / names[number % 2] / f"{number}.jpg"
        elif task == "masks":
            place = folder / split / f"{number}.jpg"
            labels = folder / f"{split}_labels" / f"{number}.png"
            labels.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample["mask"].to(torch.uint8).numpy()).save(labels)
        else:
            place = folder / "images" / split / f"{number}.jpg"
            labels = folder / "labels" / split / f"{number}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            size = torch.tensor([128, 96, 128, 96])
            corners = sample["boxes"] / size
            centres = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
            rows = zip(sample["box_label"].tolist(), centres.clamp(0, 1).tolist(), strict=True)
            labels.write_text("".join(f"{label} {' '.join(map(str, row))}\n" for label, row in rows))
            (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(names)}\n")
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)


@pytest.mark.long(every_share=True)
@pytest.mark.filterwarnings("ignore")  # two batches are few, as Lightning says in several ways
def test_python_runs_and_gives_the_shapes_that_it_states(prepared, capsys):
    names: dict[str, Any] = {"__name__": "__main__"}
    compared = sum(run(block, names) for block in blocks(README) if block.language == "python")
    assert compared >= 3
    assert "MobileViT" in names
    # what was drawn, in the photo's own pixels
    assert [name for name, _ in names["results"][0].top] == ["square", "circle"]
    assert 0 <= names["scores"]["accuracy"] <= 1
    drawn = torch.zeros(PHOTO, dtype=torch.bool)
    drawn[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    seen = names["labels"] == SQUARE + 1
    assert (seen & drawn).sum() / (seen | drawn).sum() > 0.97
    assert names["found"].names == ["square"]
    assert names["found"].boxes[0].tolist() == pytest.approx(BOX, abs=1.5)
    assert (prepared / "pictures" / "0000_photo.png").is_file()
    assert (prepared / "model.onnx").is_file()
    # and the command line says the same
    assert cli.main(["predict", "photo.jpg", "--checkpoint", "runs/folder-detection"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == names["found"].to_dict()
    assert cli.main(["predict", "photo.jpg", "--checkpoint", "runs/folder-segmentation", "--tta", "flip"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["height"], told["width"]) == PHOTO


class TestRun:
    """The test above would see a fault."""

    @pytest.mark.parametrize(
        "code",
        [
            "x = torch.zeros(2, 3)  # (2, 4)",
            "x, y = torch.zeros(2, 3), 1  # (2, 3, 1), and more",
            "torch.zeros(2, 3).shape  # (3, 2)",
            "torch.zeros(2, 3)  # (2, K, 3)",
        ],
    )
    def test_wrong_shape_is_told(self, code):
        with pytest.raises(AssertionError, match=r"README\.rst:7"):
            run(Block("python", 7, code), {"torch": torch})

    def test_right_shape_passes(self):
        block = Block("python", 1, "x = torch.zeros(\n    2, 3\n)  # (2, K), rows\nx.shape  # (2, 3)\n")
        assert run(block, {"torch": torch}) == 2

    def test_line_of_an_error_is_the_document_s(self):
        text = "Title\n\n.. code-block:: python\n\n   x = 1\n   y = nothing\n\nMore\n"
        (block,) = blocks(text)
        with pytest.raises(NameError) as caught:
            run(block, {})
        assert caught.traceback[-1].lineno + 1 == 6


# ------------------------------------------------------------------------------------------------ commands, links, HTML


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with the data and the run that command lines of README.rst name."""
    root = tmp_path_factory.mktemp("project")
    write_data(root / "photos", "classes")
    model = MobileViTClassifier("xxs", num_classes=2)
    model.class_names, model.preprocess = ("circle", "square"), kornia_mvit.Preprocess((64, 64))
    (root / "runs" / "folder").mkdir(parents=True)
    kornia_mvit.save_checkpoint(model, root / "runs" / "folder" / "best.ckpt")
    return root


@pytest.mark.parametrize("line", dict.fromkeys(commands(README)))
def test_command_exists(line, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    check_command(line, capsys)


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "pip install '.[nothing]'",
        "kornia-mvit nothing",
        "kornia-mvit predict photo.jpg --nothing",
        "kornia-mvit fit --config nothing",
        "kornia-mvit fit --config folder --data.root photos --data.nothing 3",
        "kornia-mvit fit photos --epoch 3",
        "kornia-mvit fit nothing --epochs 3",
        "nothing",
    ],
)
def test_command_that_does_not_exist_is_told(line, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    with pytest.raises((AssertionError, SystemExit, ValueError)):
        check_command(line, capsys)


def check_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a command line has a program, a target or an extra that is there, and options that are known."""
    program, *arguments = shlex.split(line)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in (argument for argument in arguments if "=" not in argument):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"])
    elif program == "kornia-mvit":
        check_own(arguments, capsys)
    else:
        assert program in OTHERS


def check_own(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if arguments and arguments[0] in ("fit", "validate", "test"):
        with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = cli.main([*(argument for argument in arguments if argument != "--help"), "--print_config"])
            raise AssertionError(f"status {status}: {capsys.readouterr().err}")
        assert stop.value.code == 0
        return
    if "--help" in arguments:
        arguments = [argument for argument in arguments if argument != "--help"]
    own, rest = split_options(arguments[1:])
    assert all(option.startswith(("--data.", "--model.")) for option in rest[::2]), rest
    assert not rest or arguments[0] == "preview"
    assert not arguments or arguments[0] in cli.COMMANDS
    if own:
        command = import_module(f"kornia_mvit.cli.{arguments[0]}")
        command.COMMAND.parse(own) if hasattr(command, "COMMAND") else command.build_parser().parse_args(own)


def targets(text: str) -> set[str]:
    """Return the files of the repository that a document links to or shows."""
    links = re.findall(r"`[^`]*<([^`>]+)>`__?", text) + re.findall(r"\.\. (?:image|figure):: (\S+)", text)
    return {link.partition("#")[0] for link in links if "://" not in link}


@pytest.mark.parametrize("name", ["README.rst", "CONTRIBUTING.rst", "CHANGELOG.rst"])
def test_links_lead_to_files(name):
    assert {link for link in targets((ROOT / name).read_text()) if not (ROOT / link).exists()} == set()


def test_readme_has_links():
    assert {"CHANGELOG.rst", "CONTRIBUTING.rst"} <= targets(README)


def render(text: str) -> tuple[str | None, str]:
    """Return the page that PyPI would show, and what it complains of."""
    warned = io.StringIO()
    return readme_renderer.rst.render(text, stream=warned), warned.getvalue()


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst"])
def test_renders_on_pypi(name):
    page, warned = render((ROOT / name).read_text())
    assert warned == ""
    assert "<h1>" in page
    assert page.count("<section") > 2


def test_what_does_not_render_is_told():
    assert "Title underline too short" in render("A long title\n=======\n\nText\n")[1]
    assert render(":ref:`nothing`\n")[1] != ""


class TestVersion:
    """The version stands in ``kornia_mvit/__init__.py``; whatever else has to say it says the same."""

    def test_stated_once(self):
        assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", kornia_mvit.__version__)
        assert "version" in PROJECT["dynamic"]
        (cited,) = re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
        changelog = (ROOT / "CHANGELOG.rst").read_text()
        newest = re.search(r"^(\d\S*) \((\d{4}-\d\d-\d\d)\)\n-+\n", changelog, re.MULTILINE)
        assert newest[1] == cited
        assert f"date-released: {newest[2]}\n" in (ROOT / "CITATION.cff").read_text()
        released, _, development = kornia_mvit.__version__.partition(".dev")
        first = re.search(r"^(\d\S*) \((\S+)\)\n-+\n", changelog, re.MULTILINE)
        assert first.groups() == ((released, "unreleased") if development else (cited, newest[2]))
        assert development or released == cited

    def test_stated_nowhere_else(self):
        places = [*(ROOT / "kornia_mvit").rglob("*.py"), *(ROOT / name for name in ("pyproject.toml", "setup.cfg"))]
        places += (ROOT / "docs").glob("*.py")
        stated = re.compile(rf"(?<![\w.]){re.escape(kornia_mvit.__version__)}(?![\w.])")
        found = [str(path.relative_to(ROOT)) for path in places if stated.search(path.read_text())]
        assert found == ["kornia_mvit/__init__.py"]
