"""Patches of a map as tokens, and tokens as a map again.

Shapes are written as in :mod:`kornia_mvit.models.mobilevit`.
"""

from torch import Tensor

__all__ = ["fold", "unfold"]


def unfold(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Group the pixels that hold the same place in every patch: (B, C, H, W) -> (B, P, N, C).

    Args:
        x: map whose height and width are multiples of the patch's.
        patch_size: height and width of a patch, in pixels of the map.

    Returns:
        Tokens; ``[b, p, n]`` is pixel p of patch n, both counted row by row. One copy, from either memory layout.

    Raises:
        ValueError: if the patch does not divide the map.

    Example:
        >>> import torch
        >>> unfold(torch.arange(16.0).view(1, 1, 4, 4), (2, 2))[0, 0, :, 0]  # the upper left pixel of each patch
        tensor([ 0.,  2.,  8., 10.])
    """
    (b, c, h, w), (ph, pw) = x.shape, patch_size
    if h % ph or w % pw:
        raise ValueError(
            f"a {ph}x{pw} patch does not divide a {h}x{w} map; resize it to "
            f"{-(-h // ph) * ph}x{-(-w // pw) * pw} first, as MobileViT does"
        )
    x = x.permute(0, 2, 3, 1).reshape(b, h // ph, ph, w // pw, pw, c)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, ph * pw, (h // ph) * (w // pw), c)


def fold(tokens: Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put the tokens of :func:`unfold` back in their places: (B, P, N, C) -> (B, C, H, W).

    Args:
        tokens: what :func:`unfold` returns.
        patch_size: height and width of a patch, in pixels of the map.
        size: height and width of the map, multiples of the patch's.

    Returns:
        The map, in ``channels_last`` memory layout. One copy.

    Raises:
        ValueError: if the number of tokens is not that of such a map.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3, 4, 6)
        >>> torch.equal(fold(unfold(x, (2, 3)), (2, 3), (4, 6)), x)
        True
    """
    (b, p, n, c), (ph, pw), (h, w) = tokens.shape, patch_size, size
    if p != ph * pw or h % ph or w % pw or n * p != h * w:
        raise ValueError(f"{p} x {n} tokens do not make a {h}x{w} map of {ph}x{pw} patches")
    x = tokens.reshape(b, ph, pw, h // ph, w // pw, c).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, h, w, c).permute(0, 3, 1, 2)
