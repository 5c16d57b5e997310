"""The options of a run: from a dataset, a recipe and plain names to the command line's."""

import inspect
import json
import multiprocessing
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any

from kornia_mvit.data.reading import DataError
from kornia_mvit.files import FileError, printable
from kornia_mvit.option_errors import unknown_option
from kornia_mvit.parsing import is_file, parse_yaml, read_text
from kornia_mvit.training import classification, datamodules, detection, segmentation
from kornia_mvit.training.layouts import Layout, find_layout
from kornia_mvit.training.lightning_names import LightningModule, Trainer, rank_zero_info
from kornia_mvit.training.loading import class_names_of
from kornia_mvit.training.recipes import find_recipe, list_recipes
from kornia_mvit.weights.files import CARD_KEY, read_checkpoint

__all__ = [
    "ALIASES",
    "TASKS",
    "Recipe",
    "data_options",
    "expand",
    "full_name",
    "may_start_processes",
    "plan_run",
    "read_recipe",
    "without_data",
]

ALIASES = {"epochs": "trainer.max_epochs", "out": "trainer.default_root_dir"}
_ELSEWHERE = {  # what other libraries call an option
    **dict.fromkeys(("lr", "lr0", "base_lr"), "learning_rate"),
    **dict.fromkeys(("img_size", "imgsz", "size", "resolution", "input_size"), "image_size"),
    **dict.fromkeys(("batch", "bs", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("workers", "jobs"), "num_workers"),
    **dict.fromkeys(("device", "gpus"), "accelerator"),
    **dict.fromkeys(("amp", "fp16", "bf16"), "precision"),
    **dict.fromkeys(("resume", "ckpt"), "ckpt_path"),
    **dict.fromkeys(("wd",), "weight_decay"),
    **dict.fromkeys(("pretrained", "model"), "weights"),
}
TASKS: dict[str, Any] = {
    "classification": classification.ClassificationTask,
    "segmentation": segmentation.SegmentationTask,
    "detection": detection.DetectionTask,
}
_DATA: list[Any] = [getattr(datamodules, name) for name in datamodules.__all__]

_WHOLE = ("ckpt_path", "seed_everything")  # options of the run, and of none of its parts
_FLAGS = ("--help", "-h", "--print_config")  # options without a value
_LIGHTNING = {*_FLAGS, "--config", "-c", "--ckpt_path", "--checkpoint", "--seed_everything", "--weights_only"}
_LIGHTNING |= {"--verbose", "--model", "--data", "--trainer", "--optimizer", "--lr_scheduler"}
_WORDS = ("best", "last", "hpc", "registry", "null")  # that stand for checkpoints
_CLASSES = {"classes", "class_names", "num_classes", "values"}  # which tell the classes of label images
_FEW = 100  # images, for which processes that read take longer to start than they save
_STEPS = 4  # least number of batches in an epoch that the default batch size leaves
_SMALLEST = 4


@dataclass(frozen=True)
class Recipe:
    """What a recipe names.

    Args:
        name: its name, or the path of its file.
        task: the class of its task.
        data: the class of its data module, or None for one of another package.
        data_args: the arguments of that.
    """

    name: str
    task: type
    data: type | None
    data_args: Mapping[str, Any]

    @property
    def task_name(self) -> str | None:
        """Return ``'classification'``, ``'segmentation'`` or ``'detection'``; None for a task of another package."""
        return next((name for name, kind in TASKS.items() if issubclass(self.task, kind)), None)


def read_recipe(name: str) -> Recipe:
    """Return what a recipe names.

    Raises:
        ValueError: if there is no such recipe or file, or it is none.
    """
    file = find_recipe(name)
    content = parse_yaml(read_text(file, FileError, "recipe"), str(file), FileError)
    parts = content if isinstance(content, dict) else {}
    model, data = ({} if not isinstance(parts.get(key), dict) else parts[key] for key in ("model", "data"))
    task, module = _called(model.get("class_path"), TASKS.values()), _called(data.get("class_path"), _DATA)
    arguments = data.get("init_args")
    return Recipe(name, task or LightningModule, module, arguments if isinstance(arguments, dict) else {})


def _called(path: object, kinds: Iterable[type]) -> type | None:
    """Return the class that a path names, by its last part."""
    return next((kind for kind in kinds if isinstance(path, str) and path.rpartition(".")[2] == kind.__name__), None)


def full_name(name: str, task: type, data: type | None, prefix: str = "") -> str:
    """Return an option's whole name, such as ``model.image_size`` for ``image_size``.

    Args:
        name: a whole name, with dots or double underscores; or that of an argument of the task, the data or the
            Trainer.
        task: the class of the task.
        data: the class of the data module, if it is known.
        prefix: what names begin with in errors.

    Raises:
        ValueError: for a name that none or several of them have.

    Example:
        >>> from kornia_mvit.training.datamodules import FolderData
        >>> names = ("image_size", "root", "trainer__devices")
        >>> [full_name(name, TASKS["classification"], FolderData) for name in names]
        ['model.image_size', 'data.root', 'trainer.devices']
    """
    name = ALIASES.get(name, name.replace("__", "."))
    if "." in name or name in _WHOLE:
        return name
    known = {
        "model": _arguments(task) - {"num_classes"},  # which is the data's to tell
        "data": set() if data is None else _arguments(data),
        "trainer": _arguments(Trainer),
    }
    places = [section for section, names in known.items() if name in names]
    if len(places) > 1:
        whole = " or ".join(f"{prefix}{place}.{name}" for place in places)
        raise ValueError(f"{prefix}{name} is one of {' and '.join(places)}; give {whole}")
    if not places and name == "num_classes":
        raise ValueError(f"{prefix}num_classes is told by the data; leave it out")
    if not places:
        if _ELSEWHERE.get(name) in [*_WHOLE, *set().union(*known.values())]:
            raise ValueError(f"there is no option {prefix}{name}; did you mean {prefix}{_ELSEWHERE[name]}?")
        raise ValueError(unknown_option(prefix + name, [*ALIASES, *_WHOLE, *set().union(*known.values())], prefix))
    return f"{places[0]}.{name}"


def _check_sections(names: Iterable[str], task: type, data: type | None, prefix: str) -> None:
    """Raise for a name that has the wrong one of model, data and trainer before it."""
    kinds = {"model": task, "data": data, "trainer": Trainer}
    known = {section: _arguments(kind) for section, kind in kinds.items() if kind is not None}
    for name in names:
        section, _, argument = name.partition(".")
        right = [other for other in known if argument in known[other] and argument != "num_classes"]
        if right and section in known and argument not in known[section]:
            raise ValueError(f"there is no option {prefix}{name}; did you mean {prefix}{right[0]}.{argument}?")


def _arguments(kind: type) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    return {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)} - {"self"}


def plan_run(
    source: str | Path | None,
    options: Mapping[str, Any],
    *,
    task: str | None = None,
    recipe: str | None = None,
    data: type | None = None,
    class_names: Sequence[str] | None = None,
    given: Iterable[str] = (),
    workers: bool = True,
    prefix: str = "",
) -> list[str]:
    """Return the command line of a run, and say which recipe it takes and why.

    Args:
        source: the dataset, whose layout tells what the recipe and the options do not; None where they tell all.
        options: options by their plain or whole names, and their values.
        task: the task; told from recipe or layout when None.
        recipe: the recipe; told from the layout when None.
        data: the class of the data module, where it is chosen elsewhere.
        class_names: names of the classes, where they are known.
        given: whole names of further options, which are left to them.
        workers: whether processes may read the images.
        prefix: what names of options begin with in errors.

    Raises:
        DataError: for a folder of no known layout.
        ValueError: for options and recipes that there are not.
    """
    layout = None
    if recipe is None:
        if source is None:
            raise ValueError(f"give a folder, or a recipe: {', '.join(list_recipes())}")
        layout = find_layout(source, task)
        starts = {"weights", "model.weights", "model__weights"} & {name for name, v in options.items() if v is not None}
        finetunes = layout.task == "classification" and (starts or "model.weights" in given)
        recipe = "finetune" if finetunes else layout.recipe
    known = read_recipe(recipe)
    if task not in (None, known.task_name):
        raise ValueError(f"recipe {recipe} is for {known.task_name}, not {task}")
    if layout is None and source is not None and data is None and recipe in list_recipes():
        try:
            layout = find_layout(source, known.task_name)
        except DataError:
            layout = None  # the recipe's own data module says what is wrong
    if layout is not None and data is None:
        data = getattr(datamodules, layout.data)
    wanted = {full_name(name, known.task, data or known.data, prefix): value for name, value in options.items()}
    _check_sections([*wanted, *given], known.task, data or known.data, prefix)
    argv = [f"--config={recipe}"]
    if layout is not None:
        argv += _options_of_layout(layout, known, {*wanted, *given}, class_names, workers)
    elif source is not None:
        argv.append(f"--data.root={source}")
    return argv + [f"--{name}={_text(name, value)}" for name, value in wanted.items()]


def _options_of_layout(
    layout: Layout, recipe: Recipe, given: set[str], class_names: Sequence[str] | None, workers: bool
) -> list[str]:
    """Return the options that a layout tells, those that are given excepted; say what was told from what."""
    known = {name.removeprefix("data.") for name in given if name.startswith("data.")}
    own = data_options(layout, recipe.data_args, known, class_names, workers)
    told = [f"{own.get('root') or own.get('train')} has {layout.found}: recipe {recipe.name}"]
    told += [f"{name} {own[name]}" for name in own if name not in layout.options]
    rank_zero_info(printable(", ".join(told)))
    named = recipe.data is not None and recipe.data.__name__ == layout.data
    argv = [] if named else [f"--data={datamodules.__name__}.{layout.data}"]
    return argv + [f"--data.{name}={_text(name, value)}" for name, value in own.items()]


def data_options(
    layout: Layout,
    usual: Mapping[str, Any],
    given: Container[str],
    class_names: Sequence[str] | None = None,
    workers: bool = True,
) -> dict[str, Any]:
    """Return the arguments of a data module that its layout tells.

    Args:
        layout: of the dataset.
        usual: the arguments of a recipe.
        given: names of arguments that are given, and left out here.
        class_names: names of the classes of label images, where they are known.
        workers: whether processes may read the images.
    """
    own: dict[str, Any] = dict(layout.options)
    if any(name in given for name in _CLASSES):
        own = {name: value for name, value in own.items() if name not in _CLASSES}
    elif class_names is not None and layout.data == "SegmentationFolderData":
        own = {name: value for name, value in own.items() if name != "classes"} | {"class_names": list(class_names)}
    own |= _sizes(layout, usual, workers)
    return {name: value for name, value in own.items() if name not in given}


def _sizes(layout: Layout, usual: Mapping[str, Any], workers: bool) -> dict[str, int]:
    """Return batch size and number of processes where those of the recipe do not suit so few images."""
    out = {}
    batch = usual.get("batch_size", 16)
    count = layout.count_images(max(_FEW, _STEPS * batch))
    if 0 < count < _STEPS * batch:
        out["batch_size"] = 1 << (max(count // _STEPS, _SMALLEST).bit_length() - 1)  # a power of two
    if 0 < count < _FEW or not workers:
        out["num_workers"] = 0
    return out


def may_start_processes() -> bool:
    """Return whether data can be read by processes in a script that says nothing of them: they are forked."""
    return multiprocessing.get_start_method(allow_none=False) == "fork"


def expand(argv: Sequence[str]) -> list[str]:
    """Return a command line with whole options in the place of a folder, and of plain names such as ``--epochs``.

    One that has neither stays as it is.

    Args:
        argv: ``fit``, ``validate`` or ``test``, and its options.

    Raises:
        DataError: for a folder of no known layout.
        ValueError: for options that there are not, and for those that exclude each other.
    """
    command, *words = argv
    rest, plain, places = _sort(words)
    if (not places and not plain) or {"--help", "-h"} & {*words}:
        return list(argv)
    named = {name: value for name, value in rest if value is not None}
    if len(places) > 1:
        raise ValueError(f"{places[1]} is no option, and {places[0]} is the folder already; give one")
    if places and "--data.root" in named:
        raise ValueError(f"the images are {places[0]} and --data.root {named['--data.root']}; give one of them")
    recipe, task = plain.pop("recipe", None), plain.pop("task", None)
    for option in ("--config", "-c"):
        if recipe is None and option in named:
            recipe = named[option]
            rest.remove((option, recipe))
    model, data = _called(named.get("--model"), TASKS.values()), _called(named.get("--data"), _DATA)
    joined = [name if value is None else f"{name}={value}" for name, value in rest]
    if recipe is None and not places:
        if "--model" not in named:
            return [command, *joined]  # without a recipe
        wanted = {full_name(name, model or LightningModule, data, "--"): plain[name] for name in plain}
        return [command, *joined, *(f"--{name}={value}" for name, value in wanted.items())]
    card = _card(named.get("--checkpoint", named.get("--ckpt_path"))) if command != "fit" and recipe is None else {}
    planned = plan_run(
        places[0] if places else None,
        plain,
        task=task or card.get("task"),
        recipe=recipe,
        data=data,
        class_names=card.get("class_names"),
        given=[name.removeprefix("--").replace(".init_args.", ".") for name, _ in rest],
        prefix="--",
    )
    return [command, *planned, *joined]


def _sort(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], dict[str, str], list[str]]:
    """Return whole options, plain ones and what is none of a command line; None stands for a value that is missing."""
    rest: list[tuple[str, str | None]] = []
    plain: dict[str, str] = {}
    places: list[str] = []
    ahead = list(reversed(words))
    while ahead:
        name, equals, value = ahead.pop().partition("=")
        given: str | None = value if equals else None
        if not name.startswith("-"):
            places.append(name + equals + value)
            continue
        if given is None and name not in _FLAGS and ahead and not ahead[-1].startswith("--"):
            given = ahead.pop()
        if "." in name or name.rstrip("+") in _LIGHTNING:
            rest.append((name, given))
        elif given is None:
            raise ValueError(f"{name} needs a value")
        else:
            plain[name.lstrip("-").replace("-", "_")] = given
    return rest, plain, places


def _card(checkpoint: str | None) -> dict[str, Any]:
    """Return the task and the class names in a checkpoint."""
    if checkpoint is None or checkpoint in _WORDS:
        return {}
    best = Path(checkpoint) / "best.ckpt"
    data = read_checkpoint(best if is_file(best) else checkpoint, whole=True)
    card = data.get(CARD_KEY)
    task = card.get("task") if isinstance(card, dict) else None
    return {"task": task if task in TASKS else None, "class_names": class_names_of(data, checkpoint)}


def without_data(argv: Sequence[str], folder: Path) -> list[str]:
    """Return a run's options with a recipe that names no data, which is written into a folder."""
    recipe, *rest = argv
    lines = find_recipe(recipe.removeprefix("--config=")).read_text(encoding="utf-8").splitlines(keepends=True)
    kept, inside = [], False
    for line in lines:
        if line[:1].strip() and not line.startswith("#"):
            inside = line.startswith("data:")
        kept += [] if inside else [line]
    path = folder / "recipe.yaml"
    path.write_text("".join(kept), encoding="utf-8")
    return [f"--config={path}", *rest]


def _text(name: str, value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, str | Path):
        return str(value)
    try:
        return json.dumps(value) if isinstance(value, bool) or not isinstance(value, Number) else str(value)
    except TypeError:
        raise ValueError(
            f"{name} is a {type(value).__name__}; options are text, numbers, and lists and dictionaries of these. A "
            "class is given by its path, as {'class_path': ..., 'init_args': ...}"
        ) from None
