"""Mixes of images to draw from, and which of them can carry which targets."""

from collections.abc import Collection

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from kornia_mvit.augmentation.copy_paste import CopyPaste
from kornia_mvit.augmentation.mixes import CutMix, MixUp, Mosaic
from kornia_mvit.augmentation.target_mix import TargetMix
from kornia_mvit.testing.arguments import check_count
from kornia_mvit.testing.targets import targets_of

__all__ = ["mixes"]

_KINDS: tuple[type[TargetMix], ...] = (CutMix, MixUp, Mosaic)


def mixes(
    targets: str | Collection[str] = (), *, classes: int = 4, max_steps: int = 2
) -> SearchStrategy[list[TargetMix]]:
    """Lists of mixes that can carry the given targets, for ``AugmentationPipeline(mix=...)``; they shrink to none.

    Args:
        targets: those of a task, by its name in :data:`TASKS`, or any of ``'label'``, ``'mask'``, ``'boxes'``,
            ``'keypoints'`` and ``'extra'``.
        classes: number of classes of labels.
        max_steps: greatest number of mixes.

    Raises:
        ValueError: for an unknown task or target, and numbers that cannot be.

    Example:
        >>> from hypothesis import find
        >>> find(mixes("segmentation"), lambda steps: len(steps) == 1)
        [CutMix(p=1.0, alpha=1.0, num_classes=4)]
    """
    check_count("max_steps", max_steps, least=0)
    check_count("classes", classes, least=2)
    asked = targets_of(targets)
    kinds = [kind for kind in _KINDS if not kind.refuses.keys() & set(asked)]
    if "extra" in asked:
        kinds = [kind for kind in kinds if "vectors" in kind.carries]
    if "instance_masks" in asked and "keypoints" not in asked:
        kinds.append(CopyPaste)
    if not kinds:
        return st.just([])
    share, bound = st.sampled_from([1.0, 0.5, 0.0]), st.sampled_from([None, 3])
    one = [st.builds(kind, share, num_classes=st.just(classes), max_boxes=bound) for kind in kinds]
    return st.lists(st.one_of(one), max_size=max_steps)
