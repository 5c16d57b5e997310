"""The settings that data modules share."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

__all__ = ["DataSettings", "LabelledSettings", "RootSettings", "SplitSettings", "check_choice", "check_on_error"]


@dataclass
class DataSettings:
    """The settings that all data modules have. :class:`kornia_mvit.training.datamodules.base.ImageData` documents them.

    The record of a data module adds settings of its own, and may have other defaults.

    Raises:
        ValueError: for a batch size below 1, or a negative number of processes.
    """

    batch_size: int = 16
    num_workers: int = 2
    storage_size: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.batch_size < 1 or self.num_workers < 0:
            given = f"batch_size {self.batch_size} and num_workers {self.num_workers}"
            raise ValueError(f"{given} are not at least 1 and 0")


@dataclass
class SplitSettings(DataSettings):
    """The settings of data whose val split is split off train where there is none.

    Raises:
        ValueError: for a share that is none.
    """

    _: KW_ONLY
    val_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction {self.val_fraction} is not between 0 and 1")


@dataclass
class LabelledSettings(SplitSettings):
    """The settings of image files with a label each.

    Raises:
        ValueError: for an unknown ``on_error``.
    """

    batch_size: int = 64
    _: KW_ONLY
    on_error: str = "raise"

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_on_error(self.on_error)


@dataclass
class _Root:
    root: str


@dataclass
class RootSettings(SplitSettings, _Root):  # bases from the last: the root is the first argument
    """The settings of data below a folder."""


def check_on_error(on_error: str) -> None:
    """Raise a ValueError unless it says what to do about images that cannot be read."""
    check_choice("on_error", on_error, ("raise", "skip"))


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that names the choices, unless a value is among them."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; available: {', '.join(map(repr, choices))}")
