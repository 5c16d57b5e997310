"""Which Lightning the package uses, ``pytorch_lightning`` or ``lightning``, and all names that it takes from there.

Both hold the same code, but the Trainer of one does not take the modules, data modules and callbacks of the other. Here
``pytorch_lightning`` is taken, and ``lightning`` where it alone is installed. No other file imports either.
"""

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("pytorch_lightning") is not None or find_spec("lightning") is None:
    import pytorch_lightning as pl
    from lightning_fabric.loggers.logger import rank_zero_experiment
    from lightning_fabric.plugins import TorchCheckpointIO
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.utilities.cloud_io import _load as load_address
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning import LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
    from pytorch_lightning.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml, save_hparams_to_yaml
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
    from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
    from pytorch_lightning.trainer.states import TrainerFn
    from pytorch_lightning.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
    from pytorch_lightning.utilities.seed import isolate_rng
    from pytorch_lightning.utilities.types import OptimizerLRScheduler
else:
    import lightning.pytorch as pl
    from lightning.fabric.loggers.logger import rank_zero_experiment
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.utilities.cloud_io import _load as load_address
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
    from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml, save_hparams_to_yaml
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.seed import isolate_rng
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = [
    "CSVLogger",
    "Callback",
    "CombinedLoader",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "ModelCheckpoint",
    "OptimizerLRScheduler",
    "SLURMEnvironment",
    "SaveConfigCallback",
    "StochasticWeightAveraging",
    "TensorBoardLogger",
    "TorchCheckpointIO",
    "Trainer",
    "TrainerFn",
    "WeightAveraging",
    "_Metadata",
    "_ResultMetric",
    "_Sync",
    "isolate_rng",
    "load_address",
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "pl",
    "rank_zero_experiment",
    "rank_zero_info",
    "rank_zero_warn",
    "save_hparams_to_yaml",
    "warn_of_other_lightning",
]


if TYPE_CHECKING:
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
else:

    def __getattr__(name: str) -> Any:
        """Import the command line when it is first used, since jsonargparse takes long."""
        if name in ("LightningArgumentParser", "LightningCLI", "SaveConfigCallback"):
            return getattr(import_module(f"{pl.__name__}.cli"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def warn_of_other_lightning() -> None:
    """Warn where a program has imported the other Lightning, whose Trainer takes nothing of this package.

    Its own error says only that the model is not a ``LightningModule``.
    """
    if pl.__name__ == "pytorch_lightning" and "lightning.pytorch" in sys.modules:
        warnings.warn(
            "the tasks are pytorch_lightning's, and lightning.pytorch is imported too, whose Trainer does not take "
            "them: use `from pytorch_lightning import Trainer`",
            stacklevel=3,
        )
