"""Keypoints that come in pairs of left and right, which mirroring swaps.

A mirrored person raises the other hand: what was the left wrist stands where the right wrist of a person stands. So
where a step mirrors, each keypoint of a pair takes the place of the other.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from kornia_mvit.ops.geometry import constant
from kornia_mvit.parsing import brief

__all__ = [
    "check_flip_pairs",
    "check_lines",
    "is_mirrored",
    "pairs_of_names",
    "pairs_of_order",
    "swap_order",
    "swap_pairs",
]

Pairs = tuple[tuple[int, int], ...]

_SIDES = {"left": "right", "l": "r"}
_WORDS = re.compile(r"[^0-9A-Za-z]+|(?<=[a-z])(?=[A-Z])")


# B batch, K keypoints
def check_flip_pairs(pairs: Sequence[Sequence[int]], name: str = "keypoint_flip_pairs") -> Pairs:
    """Return pairs of keypoints in one form, after a look at each.

    Args:
        pairs: numbers of two keypoints each, from 0.
        name: what errors call them.

    Raises:
        TypeError: for what is no list of pairs of whole numbers.
        ValueError: for a negative number, and a keypoint that is named twice.

    Example:
        >>> check_flip_pairs([[1, 2], [3, 4]])
        ((1, 2), (3, 4))
    """
    if not isinstance(pairs, list | tuple):
        raise TypeError(f"{name} is {brief(pairs)}; expected pairs of keypoints, such as [(1, 2), (3, 4)]")
    found: list[tuple[int, int]] = []
    partners: dict[int, Sequence[int]] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(number) is int for number in pair):
            raise TypeError(f"{name} has {brief(pair)}; each pair is two numbers of keypoints, such as (1, 2)")
        left, right = pair
        if min(pair) < 0:
            raise ValueError(f"{name} has ({left}, {right}); keypoints count from 0")
        for number in {left, right}:
            if number in partners or left == right:
                raise ValueError(
                    f"{name} has keypoint {number} twice, in ({left}, {right})"
                    + (f" and {tuple(partners[number])}" if number in partners else "")
                    + "; each keypoint has one partner, and one without a partner is left out"
                )
            partners[number] = pair
        found.append((left, right))
    return tuple(found)


def check_lines(lines: Sequence[Sequence[int]], count: int, name: str = "skeleton") -> Pairs:
    """Return the lines of a skeleton in one form, after a look at each.

    Args:
        lines: numbers of the two keypoints of each, from 0.
        count: K.
        name: what errors call them.

    Raises:
        ValueError: for a line that is not between two of the K keypoints.

    Example:
        >>> check_lines([[0, 1], [0, 2]], 3)
        ((0, 1), (0, 2))
    """
    for line in lines:
        if not isinstance(line, list | tuple) or len(line) != 2 or not all(type(v) is int for v in line):
            raise ValueError(f"{name} has {brief(line)}; each line is two numbers of keypoints, such as (0, 1)")
        if min(line) < 0 or max(line) >= count:
            raise ValueError(f"{name} has the line {tuple(line)}, but there are {count} keypoints, numbered from 0")
    return tuple((line[0], line[1]) for line in lines)


def swap_order(pairs: Pairs, count: int, name: str = "keypoint_flip_pairs") -> tuple[int, ...]:
    """Return which keypoint takes the place of each where a step mirrors.

    Args:
        pairs: as :func:`check_flip_pairs` returns them.
        count: K.
        name: what errors call the pairs.

    Raises:
        ValueError: for a pair beyond the K keypoints.

    Example:
        >>> swap_order(((1, 2),), 4)
        (0, 2, 1, 3)
    """
    order = list(range(count))
    for left, right in pairs:
        if max(left, right) >= count:
            raise ValueError(
                f"{name} has ({left}, {right}), but there are {count} keypoints, numbered from 0; give pairs of these"
            )
        order[left], order[right] = right, left
    return tuple(order)


def pairs_of_order(order: Sequence[int], count: int, name: str = "flip_idx") -> Pairs:
    """Return the pairs of which a list tells the partner of each keypoint, as YOLO's ``flip_idx`` does.

    Args:
        order: (K,) the partner of each keypoint; the keypoint itself where it has none.
        count: K.
        name: what errors call the list.

    Raises:
        ValueError: for a list of another length, and for keypoints that are not each other's partners.

    Example:
        >>> pairs_of_order([0, 2, 1], 3)
        ((1, 2),)
    """
    if not isinstance(order, list | tuple) or not all(type(v) is int and 0 <= v < count for v in order):
        raise ValueError(f"{name} is {brief(order)}; expected the partner of each keypoint, from 0 to {count - 1}")
    if len(order) != count:
        raise ValueError(f"{name} has {len(order)} numbers, but there are {count} keypoints; give one for each")
    for place, partner in enumerate(order):
        if order[partner] != place:
            raise ValueError(
                f"{name} has {partner} as the partner of keypoint {place}, but {order[partner]} as that of {partner}; "
                "two keypoints are each other's partners"
            )
    return tuple((place, partner) for place, partner in enumerate(order) if place < partner)


def pairs_of_names(names: Sequence[str]) -> Pairs:
    """Return the pairs of keypoints whose names differ in left and right alone, such as left_eye and right_eye.

    Args:
        names: of the keypoints, in order.

    Example:
        >>> pairs_of_names(["nose", "left_eye", "right_eye", "REar", "LEar"])
        ((1, 2), (4, 3))
    """
    places: dict[tuple[str, ...], int] = {}
    for place, name in enumerate(names):
        places.setdefault(_words(name), place)
    pairs = []
    for words, left in places.items():
        sides = [word for word in words if word in _SIDES]
        other = tuple(_SIDES.get(word, word) for word in words)
        if len(sides) == 1 and other in places:
            pairs.append((left, places[other]))
    return tuple(pairs)


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name, such as left and eye of leftEye, left-eye and LEFT_EYE."""
    apart = re.sub(r"\b([LR])(?=[A-Z][a-z])", r"\1_", name)
    return tuple(word.lower() for word in _WORDS.split(apart) if word)


def is_mirrored(matrix: Tensor) -> Tensor:
    """Tell which matrices mirror: those with a negative determinant, twice mirrored ones not among them.

    Args:
        matrix: (B, 3, 3); a projective one mirrors what lies before its horizon.

    Returns:
        (B,), bool.

    Example:
        >>> is_mirrored(torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None])
        tensor([True])
    """
    first, second, third = matrix.unbind(1)
    determinant: Tensor = (torch.linalg.cross(first, second) * third).sum(1)
    return determinant < 0


def swap_pairs(values: Tensor, mirrored: Tensor, order: tuple[int, ...], dim: int) -> Tensor:
    """Return what belongs to keypoints, in pairs swapped in the images that are mirrored.

    Args:
        values: (B, ...), with K keypoints along one dimension.
        mirrored: (B,), bool.
        order: as :func:`swap_order` returns it.
        dim: the dimension of the keypoints, negative.

    Returns:
        What was given, in another order where an image is mirrored.

    Example:
        >>> swap_pairs(torch.tensor([[5, 6], [7, 8]]), torch.tensor([True, False]), (1, 0), -1)
        tensor([[6, 5],
                [7, 8]])
    """
    swapped = values.index_select(dim, constant(order, values.device, torch.int64))
    return torch.where(mirrored.view(-1, *[1] * (values.ndim - 1)), swapped, values)
