"""The commands that train and evaluate: Lightning's command line over recipes."""

import errno
import logging
import os
import re
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from kornia_mvit.cli import COMMANDS
from kornia_mvit.files import printable
from kornia_mvit.option_errors import OptionError, describe_option_error

__all__ = ["build_cli", "main"]

_SHOWN = {  # where no class is named
    "--model.help": "kornia_mvit.training.ClassificationTask",
    "--data.help": "kornia_mvit.training.datamodules.FolderData",
}
_OF_EVALUATION = {  # settings that say how to evaluate a checkpoint, and not what it is
    "iou_threshold",
    "max_detections",
    "per_class",
    "raw_weights",
    "score_threshold",
    "stride",
    "tta",
    "window",
}
_OF_NETWORK = {"mode", "variant", "network", "network_args", "output_stride", "aspp_channels", "aux_channels"}
_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry", "null")  # which Lightning looks up
_FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def main(argv: list[str]) -> int:
    """Train or evaluate, and end as shells expect of a program that a signal stopped.

    Args:
        argv: ``fit``, ``validate`` or ``test``, and its options.

    Returns:
        The exit status.
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:
        pass
    except SystemExit as stop:  # Lightning's own after Ctrl+C, ours after a checkpoint, or argparse's
        if hasattr(stop, "checkpoint"):
            print(printable(f"kornia-mvit: {stop}"), file=sys.stderr)
            raise
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
    print("kornia-mvit: stopped by SIGINT", file=sys.stderr)
    return 130


def _run(argv: list[str]) -> int:
    from kornia_mvit.training import list_recipes  # first, since it tells which extra is missing

    if len(argv) > 1 and argv[1] in ("-h", "--help") and argv[2:] != ["all"]:
        print(_help(argv[0]))
        return 0
    if len(argv) == 1:
        raise ValueError(
            f"{argv[0]} needs a recipe: kornia-mvit {argv[0]} --config RECIPE, with a file or one of "
            f"{', '.join(list_recipes())}; --help lists the options"
        )
    options = {argument.partition("=")[0] for argument in argv}
    if argv[0] == "fit" and (photos := next((a for a in argv[1:2] if not a.startswith("-")), None)):
        raise ValueError(f"{photos} is no option; kornia-mvit fit --config RECIPE --data.root {shlex.quote(photos)}")
    if not options & {"--config", "-c", "--model", "--data", "--help", "-h", "--model.help", "--data.help"}:
        told = "" if argv[0] == "fit" else ", the one that was trained with"
        raise ValueError(
            f"{argv[0]} needs a recipe{told}: kornia-mvit {argv[0]} --config RECIPE, with a "
            f"file or one of {', '.join(list_recipes())}"
        )
    if argv[0] != "fit" and not options & {"--ckpt_path", "--checkpoint", "--help", "-h", "--print_config"}:
        raise ValueError(f"{argv[0]} needs a checkpoint: --checkpoint FILE, one that fit wrote")
    if options & set(_SHOWN) or argv[1:] == ["--help", "all"]:
        return _show_help(argv)
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        build_cli(argv, run=True)
    except MisconfigurationException as error:
        raise ValueError(error) from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        if not _arose_in_restoring(error):
            raise
        file = next(value for name, value in _options(argv) if name in ("--ckpt_path", "--checkpoint"))
        raise ValueError(
            f"the state in checkpoint {file} is damaged, or of another run ({type(error).__name__}: {error})"
        ) from error
    return 0


def _options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a command line and their values, which stand behind them or behind an equals sign."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return [(a.partition("=")[0], a.partition("=")[2] if "=" in a else after) for a, after in pairs]


def _arose_in_restoring(error: BaseException) -> bool:
    """Tell whether an error arose where Lightning gives a checkpoint's states to what they are of."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name.lstrip("_").startswith("restore") and "connector" in code.co_filename for code in frames)


def build_cli(argv: list[str], *, run: bool) -> Any:
    """Build Lightning's command line over our recipes, and run it if asked to.

    Args:
        argv: options, after a command where it is to run.
        run: whether to run the command.
    """
    from kornia_mvit.training import AtomicCheckpointIO, ExactResume, SaveOnSignal  # says which extra is missing

    try:
        import jsonargparse  # noqa: F401  # Lightning's command line is built on it
        from lightning_fabric.plugins import TorchCheckpointIO
        from pytorch_lightning import LightningDataModule, LightningModule, Trainer
        from pytorch_lightning.callbacks import ModelCheckpoint
        from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
    except ImportError as error:
        raise ImportError(f"the command line needs {error.name}; install kornia-mvit[train]") from error

    class Cli(LightningCLI):
        def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
            parser = super().init_parser(**kwargs)
            # A line, in place of all options and of what each type made of the value.
            parser.error = _refuse  # type: ignore[method-assign]  # jsonargparse offers no other way
            return parser

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

        def _parse_ckpt_path(self) -> None:
            """Take the settings that a checkpoint was trained with, but for those that were asked for now.

            Lightning would parse them as it parses a recipe, and build whatever class they name, and would let them win
            over recipe and command line, and so over ``--model.tta``.
            """
            command = self.config.get("subcommand")
            if command is None:
                return
            config = self.config[command]
            if config.ckpt_path == "last":
                config.ckpt_path = _last(Path(config.trainer.default_root_dir or "."), command)
            if config.ckpt_path is None or config.model is None or "init_args" not in config.model:
                return
            if config.ckpt_path not in _CHECKPOINT_WORDS:
                _build_as_saved(config.model, config.ckpt_path, asked)
            if "weights" in config.model.init_args:
                config.model.init_args.weights = None  # the checkpoint has them

        def before_instantiate_classes(self) -> None:
            if self.subcommand is None:
                return
            config = self.config[self.subcommand]
            config.weights_only = True  # checkpoints are data
            if self.subcommand != "fit" and "teacher" in config.model.init_args:
                config.model.init_args.teacher = None
            if self.subcommand != "fit":  # of where the best checkpoint was: no matter in evaluation
                warnings.filterwarnings("ignore", "The dirpath has changed")

        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            folders.update(str(place) for logger in trainer.loggers if (place := logger.save_dir) is not None)
            folders.add(trainer.default_root_dir)
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none was asked for
                trainer.strategy.checkpoint_io = AtomicCheckpointIO()
            return trainer

        def after_fit(self) -> None:
            kept = self.trainer.checkpoint_callback
            if isinstance(kept, ModelCheckpoint) and kept.best_model_path and self.trainer.is_global_zero:
                what = "last" if kept.monitor is None else f"best {kept.monitor}"
                if kept.best_model_score is not None:  # as it is where a finished run is resumed
                    what += f": {kept.best_model_score:.4f}"
                print(f"\n{what}, in {printable(kept.best_model_path)}")
                print(f"next: kornia-mvit predict IMAGES --checkpoint {printable(shlex.quote(kept.best_model_path))}")

    _quiet_lightning()
    args = _prepare(argv)
    options = (argument.partition("=")[0].removeprefix("--model.") for argument in args if "--model." in argument)
    asked = {option.removeprefix("init_args.").partition(".")[0] for option in options}
    folders: set[str] = set()  # that the run writes to
    with _naming_full_disks(folders), _plain_errors():
        return Cli(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [ExactResume(), SaveOnSignal()]},
            save_config_kwargs={"overwrite": True},
            args=args,
            run=run,
        )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn errors about options into those that the commands tell in a line."""
    try:
        yield
    except OptionError as error:
        raise ValueError(error) from error
    except (FileExistsError, NotADirectoryError) as error:
        place = Path(error.filename)
        file = next((above for above in (place, *place.parents) if above.exists()), place)
        raise ValueError(f"{file} is a file, and a folder is needed there") from error


@contextmanager
def _naming_full_disks(folders: set[str]) -> Iterator[None]:
    """Name the folders of a run in errors of a full disk that name no file, as those of loggers.

    TensorBoard writes in a thread; an error there is told in a line as well, and once.
    """
    in_threads: list[BaseException] = []
    before = threading.excepthook

    def keep(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, OSError) and args.exc_value.errno in _FULL_DISK:
            in_threads.append(args.exc_value)
        else:
            before(args)

    threading.excepthook = keep
    try:
        yield
        if in_threads:
            raise in_threads[0]
    except OSError as error:
        if error.errno not in _FULL_DISK or error.filename is not None:
            raise
        places = ", ".join(sorted(folders))
        raise OSError(f"could not write a file of the run under {places} ({error.strerror})") from error
    finally:
        threading.excepthook = before


def _refuse(message: str, ex: Exception | None = None) -> NoReturn:
    """Say in a line which option is wrong, and what would do."""
    raise OptionError(describe_option_error(message))


def _build_as_saved(model: Any, path: str, asked: set[str]) -> None:
    """Put a checkpoint's settings into a configuration, those that were asked for now excepted.

    The network is always that of the checkpoint, whatever recipe and options say.

    Args:
        model: the configuration of the task, with the path of its class and its arguments.
        path: the checkpoint.
        asked: names of settings that the command line has.

    Raises:
        CheckpointError: if the settings are no plain values of the class's arguments.
    """
    from kornia_mvit.weights.files import read_checkpoint
    from kornia_mvit.weights.settings import check_counts, plain_settings

    module, _, name = model.class_path.rpartition(".")
    checkpoint = read_checkpoint(path, whole=True)
    settings = plain_settings(getattr(import_module(module), name), checkpoint.get("hyper_parameters"), path)
    if settings:
        check_counts(settings, checkpoint.get("state_dict"), path)
    for name, value in settings.items():
        if name not in model.init_args:
            continue  # what is linked to the data
        if name in _OF_NETWORK:  # None is for a network that only the recipe can name
            taken = value is not None or not hasattr(model.init_args[name], "class_path")
        else:
            taken = name not in asked | _OF_EVALUATION
        if taken:
            model.init_args[name] = value


def _last(folder: Path, command: str) -> str | None:
    from kornia_mvit.training import last_checkpoint

    path = last_checkpoint(folder)
    if path is not None:
        print(f"going on from {printable(path)}")
        return str(path)
    if command != "fit":
        raise ValueError(f"no last*.ckpt under {folder}; give the file, or --trainer.default_root_dir")
    print(f"no last*.ckpt under {printable(folder)} to go on from: beginning anew")
    return None


def _prepare(argv: Sequence[str]) -> list[str]:
    """Put files in the place of the recipes' names, and look at a checkpoint before Lightning does."""
    from kornia_mvit.training import find_recipe
    from kornia_mvit.weights.files import read_checkpoint

    args, rest = [], iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in _SHOWN:
            module, _, shown = _SHOWN[name].rpartition(".")
            if name == "--model.help" and not value:
                value = _task_of_recipe(argv) or shown
            args.append(f"{name}={value if '.' in value else f'{module}.{value or shown}'}")
            continue
        if name not in ("--config", "-c", "--ckpt_path", "--checkpoint"):
            args.append(argument)
            continue
        value = value if equals else next(rest, "")
        if name in ("--ckpt_path", "--checkpoint"):
            if value not in _CHECKPOINT_WORDS:
                read_checkpoint(value, whole=True)  # for its errors
            args.append(f"--ckpt_path={value}")
        else:
            args.append(f"--config={find_recipe(value)}")
    return args


def _task_of_recipe(argv: Sequence[str]) -> str | None:
    """Give the class of the task that a recipe among the arguments trains."""
    import yaml  # type: ignore[import-untyped]  # it has no stubs

    from kornia_mvit.training import find_recipe

    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c") and (equals or place + 1 < len(argv)):
            recipe = yaml.safe_load(find_recipe(value if equals else argv[place + 1]).read_text(encoding="utf-8"))
            path = (recipe.get("model") or {}).get("class_path") if isinstance(recipe, dict) else None
            return None if path is None else str(path)
    return None


def _quiet_lightning() -> None:
    """Leave out warnings of Lightning and jsonargparse about each other and about what is meant so here."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: "weights_only" not in record.getMessage()  # it says so with every checkpoint that it writes
    )
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*does not have many workers.*",
        r".*is smaller than the logging interval.*",
        r"LightningCLI's args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", message=message)


# -------------------------------------------------------------------------------------------------------------- help


def _help(command: str) -> str:
    """Say in one page what most runs need, and where the rest is told."""
    from kornia_mvit.training import describe_recipe, list_recipes

    needed = "--config RECIPE" if command == "fit" else "--config RECIPE --checkpoint FILE"
    own = _FIT_OPTIONS if command == "fit" else _EVALUATION_OPTIONS
    recipes = "\n".join(f"  {name:<19} {describe_recipe(name)}" for name in list_recipes())
    lines = [
        f"usage: kornia-mvit {command} {needed} [options]",
        f"\n{COMMANDS[command].capitalize()}. A recipe is one of these names, or a YAML file of your own:\n\n{recipes}",
        "\nmost used options (all of a recipe's settings are options):",
        *(f"  {name:<40} {text}" for name, text in (_OPTIONS | own).items()),
        "\nall options:",
        *(f"  kornia-mvit {f'{command} {name}':<42} {text}" for name, text in _MORE_HELP.items()),
    ]
    return "\n".join(lines)


_OPTIONS = {
    "--data.root DIR": "the images",
    "--data.batch_size N": "images at a time, on each process",
    "--data.num_workers N": "processes that read images",
    "--data.num_classes N": "of label images; or --data.classes FILE, with their names and colours",
    "--trainer.devices N": "GPUs, or processes on a CPU, to use",
    "--trainer.precision bf16-mixed": "16-mixed, bf16-mixed or 32-true",
}
_FIT_OPTIONS = {
    "--model.mode xxs": "size of MobileViT: xxs, xs or s",
    "--model.network timm:NAME": "another network in its place",
    "--model.weights NAME_OR_FILE": "what training starts from",
    "--model.image_size PIXELS": "side of the images that the network sees",
    "--model.learning_rate RATE": "its peak, for the whole batch",
    "--model.policy classification_strong": "augmentation; --model.policy_args has its arguments",
    "--trainer.max_epochs N": "length of the run",
    "--trainer.num_nodes N": "machines",
    "--trainer.default_root_dir DIR": "where checkpoints, logs and the report go",
    "--ckpt_path last": "go on where the last run stopped, or begin",
    "--seed_everything N": "another run of the same recipe",
}
_EVALUATION_OPTIONS = {
    "--model.tta flip": "test-time augmentation",
    "--model.raw_weights true": "the raw weights, not their average",
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
    text = StringIO()
    argv = [argument for argument in argv if argument != "all"]
    try:
        with redirect_stdout(text):
            build_cli(argv, run=True)
    except SystemExit as end:
        print(re.sub(r",\s+known\s+subclasses:[^()]*\)", ")", text.getvalue()), end="")
        return int(end.code or 0)
    return 0
