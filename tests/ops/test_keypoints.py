"""Pairs of keypoints: read, checked, swapped; and which matrices mirror."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit.ops.keypoints import (
    check_flip_pairs,
    is_mirrored,
    pairs_of_names,
    pairs_of_order,
    swap_order,
    swap_pairs,
)
from tests.device.pretended import Pretended

PERSON = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()


@st.composite
def pairings(draw):
    """The number of keypoints, and pairs of some of them."""
    count = draw(st.integers(1, 20))
    order = draw(st.permutations(range(count)))
    number = draw(st.integers(0, count // 2))
    return count, tuple((order[2 * k], order[2 * k + 1]) for k in range(number))


class TestCheckFlipPairs:
    @given(pairings())
    def test_smoke(self, given):
        assert check_flip_pairs([list(pair) for pair in given[1]]) == given[1]

    @pytest.mark.parametrize(
        ("pairs", "error", "message"),
        [
            ([(0, 1), (1, 2)], ValueError, r"keypoint 1 twice, in \(1, 2\) and \(0, 1\).*one partner"),
            ([(3, 3)], ValueError, r"keypoint 3 twice, in \(3, 3\).*left out"),
            ([(0, 1), (1, 0)], ValueError, "keypoint [01] twice"),
            ([(-1, 2)], ValueError, r"\(-1, 2\).*from 0"),
            ([(0, 1, 2)], TypeError, r"\(0, 1, 2\); each pair is two"),
            ([(0, 1.0)], TypeError, r"\(0, 1\.0\)"),
            ([0, 2, 1], TypeError, r"has 0; each pair"),
            ("01", TypeError, "'01'; expected pairs"),
            ({0: 1}, TypeError, "expected pairs"),
        ],
    )
    def test_exception(self, pairs, error, message):
        with pytest.raises(error, match=f"keypoint_flip_pairs.*{message}"):
            check_flip_pairs(pairs)


class TestSwapOrder:
    @given(pairings())
    def test_twice_is_nothing(self, given):
        count, pairs = given
        order = swap_order(pairs, count)
        assert [order[place] for place in order] == list(range(count))
        assert sum(place != partner for place, partner in enumerate(order)) == 2 * len(pairs)

    def test_exception(self):
        with pytest.raises(ValueError, match=r"\(1, 4\), but there are 4 keypoints"):
            swap_order(((1, 4),), 4)


class TestPairsOfOrder:
    @given(pairings())
    def test_inverse_of_swap_order(self, given):
        count, pairs = given
        found = pairs_of_order(swap_order(pairs, count), count)
        assert {frozenset(pair) for pair in found} == {frozenset(pair) for pair in pairs}

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            ([1, 2, 0], "has 1 as the partner of keypoint 0, but 2 as that of 1"),
            ([0, 0, 2], "has 0 as the partner of keypoint 1, but 0 as that of 0"),
            ([0, 1], "2 numbers, but there are 3"),
            ([0, 1, 2, 2], "4 numbers, but there are 3"),
            ([0, 1, 3], r"\[0, 1, 3\]; expected .* from 0 to 2"),
            ([0, 1, -1], "from 0 to 2"),
            ([0, 1, "2"], "from 0 to 2"),
            ({0: 1}, "from 0 to 2"),
            ("012", "from 0 to 2"),
        ],
    )
    def test_exception(self, order, message):
        with pytest.raises(ValueError, match=f"flip_idx.*{message}"):
            pairs_of_order(order, 3)


class TestPairsOfNames:
    def test_of_coco(self):
        assert pairs_of_names(PERSON) == tuple((k, k + 1) for k in range(1, 17, 2))

    @pytest.mark.parametrize(
        ("names", "pairs"),
        [
            (["leftEye", "rightEye"], ((0, 1),)),
            (["LEye", "REye", "Ring"], ((0, 1),)),
            (["eye.R", "eye.L"], ((1, 0),)),
            (["Left Front Paw", "Right Front Paw", "Left Rear Paw"], ((0, 1),)),
            (["cleft", "bright", "left", "upright"], ()),
            (["left_left_eye", "right_right_eye"], ()),
            (["1", "2"], ()),
            ([], ()),
        ],
    )
    def test_of_other_tools(self, names, pairs):
        assert pairs_of_names(names) == pairs


class TestIsMirrored:
    @given(st.integers(0, 2**20))
    def test_is_the_sign_of_the_determinant(self, seed):
        matrix = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(is_mirrored(matrix), torch.linalg.det(matrix) < 0)
        assert is_mirrored(matrix @ matrix).sum() == 0


class TestSwapPairs:
    def test_each_image_by_itself(self):
        values = torch.arange(12).view(2, 3, 2)
        out = swap_pairs(values, torch.tensor([False, True]), (2, 1, 0), -2)
        assert out.tolist() == [[[0, 1], [2, 3], [4, 5]], [[10, 11], [8, 9], [6, 7]]]

    def test_does_not_wait(self):
        values, mirrored = torch.rand(2, 4), torch.tensor([True, False])
        with Pretended() as device:
            given = device.put((values, mirrored))
            swap_pairs(*given, (1, 0, 2, 3), -1)
            device.reset()
            out = swap_pairs(*given, (1, 0, 2, 3), -1)
            assert not device.waits
            assert not device.uploads
        assert torch.equal(device.get(out), swap_pairs(values, mirrored, (1, 0, 2, 3), -1))
