"""A rotation whose canvas grows, so that nothing is cut."""

from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from kornia_mvit.ops.geometry import EDGE_TOLERANCE, center_matrix, invert, is_inside, sample_bilinear, source_points

__all__ = ["RandomExpandedRotation"]

Size = tuple[int, int]


class RandomExpandedRotation(GeometricAugmentationBase2D):
    r"""Rotate images by random angles on a canvas that grows to hold them whole.

    Kornia's ``RandomRotation`` keeps the canvas and cuts the corners; it has no ``expand``. Here the canvas is that of
    the largest result of the batch, each of which lies in its upper left corner. In an
    :class:`~kornia_mvit.AugmentationPipeline` images with a ``Batch.size`` are rotated without the canvas beside them,
    ``size`` says which part of the result each of them fills, and a resize that follows takes each part alone.

    Args:
        degrees: range of the angles, or one number for both signs; a positive angle turns counter-clockwise, as in
            Kornia's ``RandomRotation``.
        p: share of the images that are rotated.

    Shape:
        - Input: :math:`(B, C, H, W)`
        - Output: :math:`(B, C, h, w)`, with :math:`h \le H + W` and :math:`w \le H + W`

    Raises:
        ValueError: for a range that is not ascending or beyond a full turn, or a probability outside [0, 1].

    Example:
        >>> RandomExpandedRotation((90.0, 90.0), p=1.0)(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 3, 48, 32])
    """

    fusable = True
    aligned = False
    covers = False

    def __init__(self, degrees: float | tuple[float, float], p: float = 0.5) -> None:
        super().__init__(p=1.0)
        low, high = (-degrees, degrees) if isinstance(degrees, int | float) else degrees
        if not -360 <= low <= high <= 360:
            raise ValueError(f"degrees {degrees} is not an ascending range of angles in [-360, 360]")
        if not 0 <= p <= 1:
            raise ValueError(f"p {p} is not a probability in [0, 1]")
        self.degrees: tuple[float, float] = (float(low), float(high))
        self.share = p

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw an angle for each image of a shape (B, C, H, W), or the same for all; 0 for those that stay."""
        count = batch_shape[0]
        rows = 1 if self.same_on_batch else count
        chosen, u = torch.rand(2, rows, dtype=torch.float64)
        low, high = self.degrees
        angle = torch.where(chosen < self.share, low + u * (high - low), 0.0).expand(count)
        params = {"degrees": angle, "batch_prob": torch.ones(count), "forward_input_shape": torch.tensor(batch_shape)}
        return self.fit(params, torch.tensor(batch_shape[-2:]).expand(count, 2))

    def fit(self, params: dict[str, Any], view: Tensor) -> dict[str, Any]:
        """Return parameters for images of which parts of these heights and widths (B, 2) are to be rotated."""
        view = view.cpu().double()
        needed = (_extent(params["degrees"], view) - EDGE_TOLERANCE).ceil().amax(0)
        return params | {"view": view, "output_size": needed.long().expand(len(view), 2)}

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        """Return the matrices between pixel centres, as Kornia counts."""
        return center_matrix(self._matrix(params).to(input.device)).to(input.dtype)

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Resample the images bilinearly."""
        height, width = (int(side) for side in params["output_size"][0].tolist())
        inverse = invert(self._matrix(params).to(input.device))
        x, y, _ = source_points(inverse, (height, width), input.dtype)
        return sample_bilinear(input, x, y) * is_inside(x, y, input.shape[-1], input.shape[-2])[:, None]

    def _matrix(self, params: dict[str, Tensor]) -> Tensor:
        """Return the matrices between edges (B, 3, 3), after which turned images lie in the upper left corner."""
        angle, view = params["degrees"].double().deg2rad(), params["view"]
        cosine, sine = _exact(angle.cos()), _exact(angle.sin())
        matrix = torch.eye(3, dtype=torch.float64).repeat(len(view), 1, 1)
        matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cosine, sine, -sine, cosine
        centre, result = view.flip(-1) / 2, _extent(params["degrees"], view).flip(-1) / 2
        matrix[:, :2, 2] = result - (matrix[:, :2, :2] @ centre[..., None])[..., 0]
        return matrix

    def __repr__(self) -> str:
        return f"RandomExpandedRotation(degrees={self.degrees}, p={self.share})"


def _exact(values: Tensor) -> Tensor:
    """Round what is zero or one but for rounding, so that quarter turns move whole pixels."""
    return torch.where((values - values.round()).abs() < 1e-12, values.round(), values)


def _extent(degrees: Tensor, view: Tensor) -> Tensor:
    """Return height and width (B, 2) of the upright boxes around turned images of heights and widths (B, 2)."""
    angle = degrees.double().deg2rad()
    cosine, sine = _exact(angle.cos()).abs()[:, None], _exact(angle.sin()).abs()[:, None]
    return view * cosine + view.flip(-1) * sine
