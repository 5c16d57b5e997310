"""``kornia-mvit fit``, ``validate`` and ``test``: Lightning's command line over recipes."""

import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO

from kornia_mvit.cli import COMMANDS
from kornia_mvit.files import printable
from kornia_mvit.training import describe_recipe, find_recipe, list_recipes

__all__ = ["main"]

_SHOWN = {  # where no class is named
    "--model.help": "kornia_mvit.training.ClassificationTask",
    "--data.help": "kornia_mvit.training.datamodules.FolderData",
}


def main(argv: list[str]) -> int:
    """Train or evaluate.

    Args:
        argv: ``fit``, ``validate`` or ``test``, and its options.

    Returns:
        The exit status.
    """
    try:
        return _run(argv)
    except SystemExit as stop:  # Lightning's own after Ctrl+C, ours after a checkpoint, or argparse's
        if hasattr(stop, "checkpoint"):
            print(printable(f"kornia-mvit: {stop}"), file=sys.stderr)
        elif isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


def _run(argv: list[str]) -> int:
    command = argv[0]
    if len(argv) > 1 and argv[1] in ("-h", "--help") and argv[2:] != ["all"]:
        print(_help(command))
        return 0
    from kornia_mvit.training.options import expand

    names = {name for name, _ in _options(argv)}
    asks = names & {"--help", "-h", "--model.help", "--data.help", "--print_config"}
    if argv[1:] and command != "fit" and not asks and not names & {"--ckpt_path", "--checkpoint"}:
        raise ValueError(f"{command} needs a checkpoint: --checkpoint FILE, one that fit wrote")
    argv = expand(argv)
    if not {"--help", "-h", *_SHOWN, "--config", "-c", "--model", "--data"} & {name for name, _ in _options(argv)}:
        told = "" if command == "fit" else ", the one that was trained with"
        raise ValueError(
            f"{command} needs a folder of images or a recipe{told}: kornia-mvit {command} {_CALLS[command][0]}, or "
            f"--config RECIPE, a file or one of {', '.join(list_recipes())}; --help lists the options"
        )
    if names & set(_SHOWN) or argv[1:] == ["--help", "all"]:
        return _show_help(argv)
    from kornia_mvit.training.recipe_cli import build_cli, name_best

    try:
        cli = build_cli(argv, run=True)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        if not _arose_in_restoring(error):
            raise
        file = next(value for name, value in _options(argv) if name in ("--ckpt_path", "--checkpoint"))
        raise ValueError(
            f"the state in checkpoint {file} is damaged, or of another run ({type(error).__name__}: {error})"
        ) from error
    if command == "fit":
        name_best(cli.trainer)
    return 0


def _options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a command line and their values, which stand behind them or behind an equals sign."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return [(a.partition("=")[0], a.partition("=")[2] if "=" in a else after) for a, after in pairs]


def _arose_in_restoring(error: BaseException) -> bool:
    """Tell whether an error arose where Lightning gives a checkpoint's states to what they are of."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name.lstrip("_").startswith("restore") and "connector" in code.co_filename for code in frames)


def _task_of_recipe(argv: Sequence[str]) -> str | None:
    """Return the class of the task that a recipe among the arguments trains."""
    import yaml  # type: ignore[import-untyped]  # it has no stubs

    for name, value in _options(argv):
        if name in ("--config", "-c"):
            recipe = yaml.safe_load(find_recipe(value).read_text(encoding="utf-8"))
            path = (recipe.get("model") or {}).get("class_path") if isinstance(recipe, dict) else None
            return None if path is None else str(path)
    return None


# -------------------------------------------------------------------------------------------------------------- help


_FIT = (
    "DIR",
    "photos --epochs 30",
    "says which recipe suits the folder, trains, and writes checkpoints, curves and a report of the mistakes into\n"
    "  runs/folder. A folder for each class, images and label images, YOLO, COCO or VOC: all will do.",
)
_EVALUATED = ("DIR --checkpoint FILE", "photos --checkpoint best.ckpt")
_CALLS = {  # what a command is given, an example, and what comes out
    "fit": _FIT,
    "validate": (
        "DIR --checkpoint FILE",
        "photos --checkpoint best.ckpt",
        "prints the scores on the validation images",
    ),
    "test": ("DIR --checkpoint FILE", "photos --checkpoint best.ckpt", "prints the scores on the test images"),
}


def _help(command: str) -> str:
    """Say in one page what most runs need, and where the rest is told."""
    needed, example, result = _CALLS[command]
    own = _FIT_OPTIONS if command == "fit" else _EVALUATION_OPTIONS
    recipes = "\n".join(f"  {name:<19} {describe_recipe(name)}" for name in list_recipes())
    lines = [
        f"usage: kornia-mvit {command} {needed} [options]",
        f"       kornia-mvit {command} --config RECIPE {needed.replace('DIR', '--data.root DIR')} [options]",
        f"\n{COMMANDS[command].capitalize()}. A recipe is one of these names, or a YAML file of your own:\n\n{recipes}",
        "\nmost used options (all of a recipe's settings are options; those of one word need no prefix):",
        *(f"  {name:<40} {text}" for name, text in (_OPTIONS | own).items()),
        "\nall options:",
        *(f"  kornia-mvit {f'{command} {name}':<42} {text}" for name, text in _MORE_HELP.items()),
        f"\nexample:\n  kornia-mvit {command} {example}\n  {result}",
    ]
    return "\n".join(lines)


_OPTIONS = {
    "--data.root DIR": "the images, where a recipe is given",
    "--data.batch_size N": "images at a time, on each process",
    "--data.num_workers N": "processes that read images",
    "--data.num_classes N": "of label images; or --data.classes FILE, with their names and colours",
    "--trainer.devices N": "GPUs, or processes on a CPU, to use",
    "--trainer.precision bf16-mixed": "16-mixed, bf16-mixed or 32-true",
}
_FIT_OPTIONS = {
    "--model.mode xxs": "size of MobileViT: xxs, xs, s, or v2-0.5 to v2-2.0",
    "--model.network timm:NAME": "another network in its place",
    "--model.backbone timm:NAME": "another network under the head",
    "--model.weights NAME_OR_FILE": "what training starts from",
    "--model.image_size PIXELS": "side of the images that the network sees",
    "--model.learning_rate RATE": "its peak, for the whole batch",
    "--model.policy classification_strong": "augmentation; --model.policy_args has its arguments",
    "--epochs N": "length of the run: --trainer.max_epochs",
    "--trainer.num_nodes N": "machines",
    "--out DIR": "where checkpoints, logs and the report go: --trainer.default_root_dir",
    "--ckpt_path last": "go on where the last run stopped, or begin",
    "--seed_everything N": "another run of the same recipe",
}
_EVALUATION_OPTIONS = {
    "--model.tta flip": "test-time augmentation",
    "--model.use_ema_weights false": "the trained weights, not their average",
    "--model.per_class true": "the accuracy, or IoU, of each class too",
}
_MORE_HELP = {
    "--config RECIPE --model.help": "those of the recipe's task",
    "--data.help[=TableData]": "those of the data, such as FolderData or SegmentationFolderData",
    "--help all": "those of Lightning's Trainer too",
    "--config RECIPE --print_config": "the recipe whole, as YAML",
}


def _show_help(argv: list[str]) -> int:
    """Let Lightning print its help, less the hundreds of classes that it knows for every module."""
    from kornia_mvit.training.recipe_cli import build_cli

    text = StringIO()
    argv = [_with_class(argument, argv) for argument in argv if argument != "all"]
    try:
        with redirect_stdout(text):
            build_cli(argv, run=True)
    except SystemExit as end:
        print(re.sub(r",\s+known\s+subclasses:[^()]*\)", ")", text.getvalue()), end="")
        return int(end.code or 0)
    return 0


def _with_class(argument: str, argv: Sequence[str]) -> str:
    """Add to ``--model.help`` and ``--data.help`` the class whose help is wanted, by its path."""
    name, _, value = argument.partition("=")
    if name not in _SHOWN:
        return argument
    module, _, shown = _SHOWN[name].rpartition(".")
    if name == "--model.help" and not value:
        value = _task_of_recipe(argv) or ""
    return f"{name}={value if '.' in value else f'{module}.{value or shown}'}"
