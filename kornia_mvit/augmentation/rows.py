"""Rows of a batch, one for each box, brought into another order or into another batch."""

import torch
from torch import Tensor

__all__ = ["pick_rows", "put_rows"]

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}  # in which more is computed


def pick_rows(rows: Tensor, order: Tensor, kept: Tensor, padding: int = 0) -> Tensor:
    """Bring rows into another order, and write padding into those that are not kept.

    Args:
        rows: (B, N, ...), of any dtype.
        order: (B, M) numbers of the rows, from 0.
        kept: (B, M) bool.
        padding: what the others hold.

    Returns:
        (B, M, ...).
    """
    if rows.dtype in _SIGNED:  # PyTorch computes little with the others
        return pick_rows(rows.view(_SIGNED[rows.dtype]), order, kept, padding).view(rows.dtype)
    places = (..., *[None] * (rows.ndim - 2))
    if rows.ndim < 4:  # with few numbers a row; of many, the longer way takes a small share of the time
        return rows.gather(1, order[places].expand(*order.shape, *rows.shape[2:])).masked_fill(~kept[places], padding)
    batch, count = rows.shape[:2]
    numbers = order + count * torch.arange(batch, device=order.device)[:, None]
    out = rows.flatten(0, 1).index_select(0, numbers.flatten()).view(*order.shape, *rows.shape[2:])
    if padding == 0 and rows.dtype in (torch.bool, torch.uint8):
        out.view(torch.uint8).mul_(kept[places].view(torch.uint8))
        return out
    return out.masked_fill(~kept[places], padding)


def put_rows(values: Tensor, images: Tensor, rows: Tensor) -> Tensor:
    """Return values with the rows of some images replaced.

    Args:
        values: (B, N, ...), of any dtype.
        images: (M,) numbers of the images.
        rows: (M, N, ...).

    Example:
        >>> put_rows(torch.zeros(2, 3), torch.tensor([1]), torch.ones(1, 3))
        tensor([[0., 0., 0.],
                [1., 1., 1.]])
    """
    if values.dtype in _SIGNED:
        signed = _SIGNED[values.dtype]
        return put_rows(values.view(signed), images, rows.view(signed)).view(values.dtype)
    return values.index_copy(0, images, rows)
