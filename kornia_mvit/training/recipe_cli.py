"""Lightning's command line over recipes: from a recipe and options to a task, its data and a trainer."""

import errno
import logging
import os
import shlex
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from kornia_mvit.files import printable, write_whole
from kornia_mvit.option_errors import OptionError, describe_option_error, innermost
from kornia_mvit.training import (
    AtomicCheckpointIO,
    ExactResume,
    RunFolder,
    SaveOnSignal,
    find_recipe,
    last_checkpoint,
)
from kornia_mvit.training.launchers import meet_anew
from kornia_mvit.training.runs import family_of
from kornia_mvit.training.settings import present_settings
from kornia_mvit.weights.files import checkpoint_in, read_checkpoint
from kornia_mvit.weights.settings import check_counts, plain_settings

try:
    import jsonargparse  # noqa: F401  # Lightning's command line is built on it

    from kornia_mvit.training.lightning_names import (
        Callback,
        LightningArgumentParser,
        LightningCLI,
        LightningDataModule,
        LightningModule,
        MisconfigurationException,
        ModelCheckpoint,
        SaveConfigCallback,
        TorchCheckpointIO,
        Trainer,
        pl,
    )
except ImportError as _error:
    raise ImportError(f"the command line needs {_error.name}; install kornia-mvit[train]") from _error

__all__ = ["RecipeCLI", "build_cli", "name_best", "quiet_lightning"]

_OF_EVALUATION = {  # settings that say how to evaluate a checkpoint, and not what it is
    "iou_threshold",
    "max_detections",
    "per_class",
    "score_threshold",
    "stride",
    "tta",
    "use_ema_weights",
    "window",
}
_OF_NETWORK = {
    "mode",
    "variant",
    "backbone",
    "network",
    "network_args",
    "output_stride",
    "aspp_channels",
    "aux_channels",
    "pad",
    "anchors",
}
_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry", "null")  # which Lightning looks up
_FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NOISE = {  # parts of messages of Lightning that do not matter here, by the logger that writes them
    f"{pl.__name__}.utilities.rank_zero": "Tip:",
    # It says so with every checkpoint that it writes.
    f"{pl.__name__}.trainer.connectors.checkpoint_connector": "weights_only",
}
_MEANT = (  # warnings of Lightning and jsonargparse about each other, and about what is meant so here
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*does not have many workers.*",
    r"Checkpoint directory .* exists and is not empty.*",
    r".*is smaller than the logging interval.*",
    r"LightningCLI's args parameter is intended to run from within Python.*",
)


class _SaveConfig(SaveConfigCallback):
    """Write ``config.yaml`` into the run's folder, whatever the loggers; an evaluation does not replace it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"save_to_log_dir": False}))

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the settings; that a run was resumed is none."""
        config = self.config.clone()
        if stage == "fit" and config.get("ckpt_path"):
            config.ckpt_path = None
        path = Path(trainer.default_root_dir, "config.yaml" if stage == "fit" else f"config-{stage}.yaml")
        with write_whole(path) as beside:
            self.parser.save(config, str(beside), skip_unset=False, overwrite=True, multifile=False)


class RecipeCLI(LightningCLI):
    """Lightning's command line, with recipes by their names and checkpoints that are data.

    Args:
        argv: options, after a command where it is to run.
        run: whether to run the command.
        callbacks: further ones of the trainer.
        data: a data module, in place of that of a recipe.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        run: bool,
        callbacks: Sequence[Callback] = (),
        data: LightningDataModule | None = None,
    ) -> None:
        meet_anew()
        self.given_data: LightningDataModule | None = data
        self.folders: set[str] = set()  # that the run writes to
        arguments = _with_files(argv)
        self.places_asked: bool = any(argument.startswith("--trainer.default_root_dir") for argument in arguments)
        options = (option.partition("=")[0].removeprefix("--model.") for option in arguments if "--model." in option)
        self.asked: set[str] = {option.removeprefix("init_args.").partition(".")[0] for option in options}
        with _naming_full_disks(self.folders), _plain_errors():
            super().__init__(
                LightningModule,
                LightningDataModule if data is None else None,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                trainer_defaults={"callbacks": [ExactResume(), SaveOnSignal(), *callbacks]},
                save_config_kwargs={"overwrite": True},
                args=arguments,
                save_config_callback=_SaveConfig,
                run=run,
            )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return the parser, whose errors take a line."""
        parser = super().init_parser(**kwargs)
        # In place of all options, and of what each type made of the value.
        parser.error = _refuse  # type: ignore[method-assign]  # jsonargparse offers no other way
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data tell the task the number of classes."""
        if self.given_data is not None:
            return
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
            _build_as_saved(config.model, config.ckpt_path, self.asked)
        if "weights" in config.model.init_args:
            config.model.init_args.weights = None  # the checkpoint has them

    def before_instantiate_classes(self) -> None:
        """Read checkpoints as data, and leave out of an evaluation what only training needs."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        config.weights_only = True  # checkpoints are data
        if self.subcommand != "fit":
            if "teacher" in config.model.init_args:
                config.model.init_args.teacher = None
            # Of where the best checkpoint was: no matter in evaluation.
            warnings.filterwarnings("ignore", "The dirpath has changed")

    def instantiate_classes(self) -> None:
        """Build task, data and trainer."""
        super().instantiate_classes()
        self.datamodule: Any = self.given_data or self.datamodule

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer, whose checkpoints replace the last one only when they are whole."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        own = config.trainer.logger in (None, True) and "://" not in str(config.trainer.default_root_dir)
        trainer = super().instantiate_trainer(**({"logger": False} if own else {}), **kwargs)
        checkpoint = config.get("ckpt_path")
        if checkpoint in _CHECKPOINT_WORDS or (self.subcommand != "fit" and self.places_asked):
            checkpoint = None
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        callbacks.insert(0, RunFolder(checkpoint, log=own))
        self.folders.update(str(place) for logger in trainer.loggers if (place := logger.save_dir) is not None)
        self.folders.add(trainer.default_root_dir)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none was asked for
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


def name_best(trainer: Trainer) -> None:
    """Print the checkpoint of a finished run to go on with."""
    kept = trainer.checkpoint_callback
    if isinstance(kept, ModelCheckpoint) and kept.best_model_path and trainer.is_global_zero:
        what = "last" if kept.monitor is None else f"best {kept.monitor}"
        if kept.best_model_score is not None:  # as it is where a finished run is resumed
            what += f": {kept.best_model_score:.4f}"
        print(f"\n{what}, in {printable(kept.best_model_path)}")
        print(f"next: kornia-mvit predict IMAGES --checkpoint {printable(shlex.quote(kept.best_model_path))}")


def build_cli(
    argv: Sequence[str],
    *,
    run: bool,
    callbacks: Sequence[Callback] = (),
    data: LightningDataModule | None = None,
) -> RecipeCLI:
    """Build Lightning's command line over our recipes, and run it if asked to.

    Args:
        argv: options, after a command where it is to run.
        run: whether to run the command.
        callbacks: further ones of the trainer.
        data: a data module, in place of that of a recipe.

    Returns:
        The command line, with the task as ``model``, its data as ``datamodule``, and the ``trainer``.

    Raises:
        ValueError: for a wrong option, naming what would do.
    """
    with quiet_lightning():
        return RecipeCLI(argv, run=run, callbacks=callbacks, data=data)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Leave out messages of Lightning and jsonargparse about each other, and about what is meant so here."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for message in _MEANT:
            warnings.filterwarnings("ignore", message=message)
        for name, noise in _NOISE.items():
            logger = logging.getLogger(name)

            def wanted(record: logging.LogRecord, noise: str = noise) -> bool:
                return noise not in record.getMessage()

            logger.addFilter(wanted)
            stack.callback(logger.removeFilter, wanted)
        if "JSONARGPARSE_DEPRECATION_WARNINGS" not in os.environ:
            os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
            stack.callback(os.environ.pop, "JSONARGPARSE_DEPRECATION_WARNINGS", None)
        yield


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn errors about options into those that the commands tell in a line."""
    try:
        yield
    except (OptionError, MisconfigurationException) as error:
        raise ValueError(error) from error
    except (FileExistsError, NotADirectoryError) as error:
        place = Path(error.filename)
        file = next((above for above in (place, *place.parents) if above.exists()), place)
        raise ValueError(f"{file} is a file, and a folder is needed there") from error
    except (TypeError, ValueError) as error:
        own = innermost(error)
        if own is error:
            raise
        raise own from own.__cause__


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
    module, _, name = model.class_path.rpartition(".")
    checkpoint = read_checkpoint(path, whole=True)
    owner = getattr(import_module(module), name)
    asked = asked | {getattr(owner, "renamed", {}).get(one, one) for one in asked}
    settings = plain_settings(owner, present_settings(owner, checkpoint.get("hyper_parameters")), path)
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
    """Return the path of the newest last checkpoint of a folder's runs; None if training is to start from scratch."""
    found = [path for one in family_of(folder) if (path := last_checkpoint(one)) is not None]
    path = max(found, key=lambda one: one.stat().st_mtime, default=None)
    if path is not None:
        print(f"resuming from {printable(path)}" if command == "fit" else f"checkpoint: {printable(path)}")
        return str(path)
    if command != "fit":
        raise ValueError(f"no last*.ckpt under {folder}; give the file, or --trainer.default_root_dir")
    print(f"no last*.ckpt under {printable(folder)} to resume from: starting from scratch")
    return None


def _with_files(argv: Sequence[str]) -> list[str]:
    """Put files in the place of the recipes' names, and look at a checkpoint before Lightning does."""
    args, rest = [], iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c", "--ckpt_path", "--checkpoint"):
            args.append(argument)
            continue
        value = value if equals else next(rest, "")
        if name in ("--ckpt_path", "--checkpoint"):
            if value not in _CHECKPOINT_WORDS:
                run = last_checkpoint(value) if argv[0] == "fit" and value and Path(value).is_dir() else None
                value = str(run or checkpoint_in(value))
                read_checkpoint(value, whole=True)  # for its errors
            args.append(f"--ckpt_path={value}")
        else:
            args.append(f"--config={find_recipe(value)}")
    return args
