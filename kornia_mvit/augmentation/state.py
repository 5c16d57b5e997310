"""What a pipeline keeps between two calls, and tells of itself."""

from torch import Tensor, nn

from kornia_mvit.augmentation.execution import Settings
from kornia_mvit.augmentation.randomness import SeedCounter

__all__ = ["Counted"]


class Counted:
    """What draws without a seed by a counter of its own, and augments by a stack and mixes."""

    counter: SeedCounter
    stack: nn.Module | None
    mixes: tuple[nn.Module, ...]
    ignore_index: int
    min_box_area: float
    min_box_visibility: float
    _settings: Settings

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: what is drawn without a seed depends on its number and on the steps since."""
        self.counter.set_epoch(epoch)

    def get_extra_state(self) -> Tensor:
        """Return the counter's seed, epoch and step, for ``state_dict``."""
        return self.counter.state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on where a saved pipeline stopped."""
        self.counter.load_state(state)

    def extra_repr(self) -> str:
        """Show the augmentations, which `named_children` leaves out, why it does, and the settings."""
        why = "augment and mix are not registered as children: they sample on the CPU and have nothing to train\n"
        steps = "".join(f"{part!r}\n" for part in (self.stack, *self.mixes) if part is not None)
        steps = steps and why + steps
        return f"{steps}ignore_index={self.ignore_index}, min_box_area={self.min_box_area}, " + (
            f"min_box_visibility={self.min_box_visibility}, fuse={self._settings.fuse}, seed={self.counter.seed}"
        )
