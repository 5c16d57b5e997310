"""What tests of strategies share: how they draw, compare and shrink."""

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from kornia_mvit import Batch
from kornia_mvit.testing.stacks import find_operations
from kornia_mvit.testing.targets import targets_of

FIELDS = ("image", "label", "boxes", "box_label", "box_ignore", "mask", "keypoints", "keypoint_visible", "size")
QUIET = settings(max_examples=30, deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink])
SEEDS = st.integers(0, 2**16)


def assert_same(a: Batch, b: Batch) -> None:
    for name in FIELDS:
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


def least(strategy, condition=lambda value: True):
    """What a strategy shrinks to."""
    return find(strategy, condition, settings=settings(QUIET, max_examples=300))


def drawable(task):
    """Names of the operations that are drawn for a task."""
    return set(find_operations(targets_of(task), channels=3, size=(32, 40), names=None))


def printed(strategy, condition):
    """What Hypothesis prints of the simplest example that meets a condition."""

    @settings(QUIET, max_examples=200)
    @given(value=strategy)
    def test(value):
        assert not condition(value)

    with pytest.raises(AssertionError) as raised:
        test()
    return "\n".join(raised.value.__notes__)
