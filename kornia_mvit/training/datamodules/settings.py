"""The settings that data modules share. :class:`~kornia_mvit.training.datamodules.base.ImageData` documents them.

The record of a data module adds settings of its own, and may have other defaults.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

__all__ = ["DataSettings", "LabelledSettings", "RootSettings", "SplitSettings", "check_choice", "check_on_error"]


@dataclass
class DataSettings:
    """The settings that all data modules have."""

    batch_size: int = 16
    num_workers: int = 2
    storage_size: int | None = None


@dataclass
class SplitSettings(DataSettings):
    """The settings of data whose val split is split off train where there is none."""

    _: KW_ONLY
    val_fraction: float = 0.2
    seed: int = 0


@dataclass
class LabelledSettings(SplitSettings):
    """The settings of image files with a label each."""

    batch_size: int = 64
    _: KW_ONLY
    on_error: str = "raise"


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
