"""Confidence intervals."""

import math

__all__ = ["wilson_interval"]


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of which ``right`` out of ``count`` were seen, after Wilson.

    It stays within [0, 1], and says something even where all or none were right.

    Raises:
        ValueError: unless 0 <= right <= count and count > 0.

    Example:
        >>> [round(end, 3) for end in wilson_interval(350, 360)]
        [0.95, 0.985]

    References:
        E. B. Wilson: Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927.
    """
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count} is no share")
    z = 1.959963984540054
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # The ends that are 0 and 1 would be so only nearly.
    return 0.0 if right == 0 else middle - half, 1.0 if right == count else middle + half
