"""What the data modules share."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.data.loading.loaders import ResumableLoader
from kornia_mvit.data.loading.samplers import EpochBatchSampler, MultiScaleBatchSampler
from kornia_mvit.data.reading import DataError
from kornia_mvit.data.splits import split_off
from kornia_mvit.data.storage import StorageResize
from kornia_mvit.files import printable
from kornia_mvit.parsing import count_of
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.datamodules.settings import DataSettings, SplitSettings, check_choice, check_on_error
from kornia_mvit.training.lightning_names import TrainerFn, pl, rank_zero_info
from kornia_mvit.training.settings import accepts
from kornia_mvit.weights.files import read_checkpoint
from kornia_mvit.weights.settings import plain_settings

__all__ = ["STAGES", "ImageData", "Samples", "check_choice", "check_on_error", "list_classes"]


# Splits that a stage of Lightning uses; all others use train and val.
STAGES = {"validate": ("val",), "test": ("test",)}
Attribute = TypeVar("Attribute")
Item = TypeVar("Item")


class Samples(Protocol):
    """A dataset with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class ImageData(pl.LightningDataModule):
    """What the data modules share: loaders over ``self.splits``, and the storage size that the task asks for.

    Images of detection and segmentation are brought to the storage size in training alone. Those of other splits keep
    their size, at which they are scored; in detection not where ``storage_size`` is given.

    Args:
        root: the folder.
        batch_size: images in a batch, on each process.
        num_workers: processes that read and decode.
        storage_size: length in pixels that the shorter side of images is brought to; what the task's Preprocess says
            when None. See :class:`~kornia_mvit.data.storage.StorageResize`.
        val_fraction: share of the training images that is used for validation where none are given for it; of each
            class, or of the images with boxes and of those without. 1 leaves none to train on, to evaluate on all.
        seed: seed of the split.
        on_error: ``'raise'`` stops at an image that cannot be read and names it; ``'skip'`` tries every image before
            the start, which takes about as long as an epoch of reading, and counts and lists those that it leaves out.
        on_bad_box: boxes without an area, outside their image, incomplete, or of an unknown class or image: ``'drop'``
            counts and lists them with their place in the files, ``'raise'`` refuses the dataset.

    Raises:
        ValueError: for a batch size below 1, a negative number of processes, or a value that is none of the choices.
    """

    _TEST = "add a folder named test"  # what makes a test split
    _class_names: tuple[str, ...] = ()
    ignore_index = 255  # what masks are padded with

    @accepts(DataSettings)
    def __init__(self, settings: DataSettings) -> None:
        self._begin(settings)

    def _begin(self, settings: DataSettings) -> None:
        """Start the module with the settings that are shared."""
        super().__init__()
        self.batch_size: int = settings.batch_size
        self.num_workers: int = settings.num_workers
        if self.batch_size < 1 or self.num_workers < 0:
            given = f"batch_size {self.batch_size} and num_workers {self.num_workers}"
            raise ValueError(f"{given} are not at least 1 and 0")
        self.storage_size: int | None = settings.storage_size
        if isinstance(settings, SplitSettings):
            self.val_fraction: float = settings.val_fraction
            self.seed: int = settings.seed
            if not 0 < self.val_fraction <= 1:
                raise ValueError(f"val_fraction {self.val_fraction} is not between 0 and 1; 1 evaluates on all images")
        self.splits: dict[str, Dataset[dict[str, Any]]] = {}
        self._split_note = ""  # where val is split off
        self._notes: list[str] = []  # what was found and what was left out, for the log

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's is a method of its own kind
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the data module from arguments, and from what a checkpoint has as its settings.

        The data modules of this package keep none there; a subclass may, with Lightning's ``save_hyperparameters``.

        Args:
            checkpoint_path: the checkpoint.
            map_location: not used.
            hparams_file: not used.
            weights_only: not used: a checkpoint is data.
            kwargs: arguments, in place of the settings.

        Raises:
            CheckpointError: if the file cannot be read, or has settings that are not plain values of the arguments.
        """
        saved = read_checkpoint(checkpoint_path).get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        return cls(**{**plain_settings(cls, saved, checkpoint_path), **kwargs})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        if not self._class_names:
            raise NotImplementedError(f"{type(self).__name__} has no class names")
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def storage(self, split: str = "train") -> StorageResize:
        """Return the resize transform to the storage size.

        The shorter side of an image gets the length that was given, or else the one that the task's Preprocess
        resizes to (of a height and a width, the larger), and the aspect is kept. So training crops from whole images.
        Evaluation goes by the Preprocess of the task, if there is one, and resizes no further.

        Args:
            split: whose samples they are.

        Raises:
            DataError: if neither says a size.
        """
        preprocess = self._of_task("preprocess", Preprocess)
        known = (preprocess or Preprocess()).size
        known = max(known) if isinstance(known, tuple) else known
        size = self.storage_size or known
        if preprocess is not None and known is not None and split != "train":
            size = known
        if size is None:
            raise DataError("images need a storage size; give storage_size, or a Preprocess with a size")
        return StorageResize(size, reduced=split == "train")

    def storage_if_told(self) -> StorageResize | None:
        """Return the resize transform of training images; None where neither the user nor the task gives a size."""
        preprocess = self._of_task("preprocess", Preprocess)
        known = None if preprocess is None else preprocess.size
        return None if self.storage_size is None and known is None else self.storage()

    def _of_task(self, name: str, kind: type[Attribute]) -> Attribute | None:
        """Return an attribute of the task that is trained, if there is one of that kind."""
        value = getattr(None if self.trainer is None else self.trainer.lightning_module, name, None)
        return value if isinstance(value, kind) else None

    def _leave_out_test(self, why: object) -> None:
        """Do without a test split; the reason is an error only where that split is asked for."""
        self._TEST = f"{why}"
        self._notes.append(f"test is left out: {why}")

    def _split_off(self, place: object, *groups: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Share the training images among train and val, each group by itself, and note it.

        Raises:
            DataError: if no group has two images.
        """
        kept: list[Item] = []
        taken: list[Item] = []
        for group in groups:
            for part, chosen in zip((kept, taken), split_off(len(group), self.val_fraction, self.seed), strict=True):
                part += [group[n] for n in chosen]
        if not taken:
            raise DataError(f"{place} has {len(kept)} image for train and val; give one more")
        self._note_split(len(taken))
        return kept, taken

    def _note_split(self, count: int) -> None:
        told = f"val_fraction {self.val_fraction}, seed {self.seed}"
        self._split_note = f"there is no val split: {count} of the train images are split off for it ({told})"

    def _tell(self, place: str | Path, counts: Iterable[str]) -> None:
        """Log the classes, the numbers of images in the splits, and the notes."""
        rank_zero_info(f"{printable(place)}: {list_classes(self.class_names)}, {', '.join(counts)}")
        does = None if self.trainer is None else self.trainer.state.fn
        for note in [self._split_note] * (does != TrainerFn.TESTING) + self._notes:
            if note:
                rank_zero_info(printable(note))
        if does == TrainerFn.VALIDATING and self._split_note and self.val_fraction < 1:
            rank_zero_info("val_fraction 1 evaluates on all images of a folder, where none of them were trained on")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; an incomplete last one is left out, since batch normalisation needs more than one sample.

        The order depends on Lightning's ``seed_everything`` and the epoch. Where the task's pipeline is multi-scale,
        batches are as large as the size drawn for each allows.
        """
        data = self._samples("train")
        if not len(data):
            raise DataError(f"val_fraction {self.val_fraction} leaves no image to train on; give less than 1")
        scales = self._scales()
        if scales is not None:
            sizes, base, seed = scales
            return self._loader(
                data, MultiScaleBatchSampler(data, self.batch_size, sizes, base=base, seed=seed, drop_last=True)
            )
        return self._loader(data, EpochBatchSampler(data, self.batch_size, seed=self._seed(), drop_last=True))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every image of the validation split, once."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every image of the test split, once."""
        if "test" not in self.splits:
            raise DataError(f"there is no test split; {self._TEST}, or run validate")
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Every image of the test split, or of the validation split where there is none, once."""
        return self._evaluation("test" if "test" in self.splits else "val")

    def _evaluation(self, split: str) -> DataLoader[Batch]:
        data = self._samples(split)
        return self._loader(data, EpochBatchSampler(data, self.batch_size, shuffle=False, repeat=False))

    def _seed(self) -> int:
        """Return the seed of Lightning's ``seed_everything``."""
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def _samples(self, name: str) -> Samples:
        return cast(Samples, self.splits[name])

    def _scales(self) -> tuple[tuple[tuple[int, int], ...], tuple[int, int], int] | None:
        """Return the sizes that the task's pipeline samples, the one that ``batch_size`` is for, and its seed."""
        pipeline = self._of_task("pipeline", AugmentationPipeline)
        if pipeline is None or pipeline.multi_scale is None:
            return None
        base = pipeline.preprocess.output_size
        if base is None:
            raise DataError("batches of many sizes need a Preprocess with a size, for which batch_size holds")
        return pipeline.multi_scale, base, pipeline.counter.seed

    def _loader(self, data: Samples, sampler: EpochBatchSampler) -> DataLoader[Batch]:
        return ResumableLoader(
            data,
            sampler=sampler,  # by its name, so that Lightning can put another in its place
            num_workers=self.num_workers,
            collate_fn=partial(Batch.collate, ignore_index=self.ignore_index),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def list_classes(names: Sequence[str], limit: int = 20) -> str:
    """Return the number of classes, and the names of the first, as messages show them.

    Example:
        >>> list_classes(['cat', 'dog'])
        '2 classes (cat, dog)'
    """
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return printable(f"{count_of(len(names), 'class', 'classes')} ({', '.join(names[:limit])}{more})")
