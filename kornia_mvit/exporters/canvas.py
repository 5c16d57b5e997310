"""Preprocessing and decoding for formats whose graphs have one size: the image lies on a canvas, its size beside it.

ExecuTorch and Core ML reserve memory when the file is written. So the graph takes a canvas of the largest size, the
image in its upper left corner, and a second input that says how much of it is image. All that depends on that size is
tensor arithmetic: resizes are two matrix products.

Shapes are written with B batch, H W the canvas's height and width, h w those of what the network sees, K classes and
A anchors.
"""

import json

import torch
from torch import Tensor, nn

from kornia_mvit.exporters.card import metadata
from kornia_mvit.exporters.graph import Deployed, filter_weights, shares
from kornia_mvit.exporters.options import Options, sides
from kornia_mvit.exporters.tracing import check_size, example_input
from kornia_mvit.inference.engines.exported import lay_on_canvas
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.preprocess import Preprocess, round_ratio
from kornia_mvit.weights.cards import Model

__all__ = ["Canvas", "lay_on_canvas", "static_graph"]


class Canvas(nn.Module):
    r"""A deployed model for images of any size up to that of the canvas.

    Args:
        graph: what :func:`~kornia_mvit.exporters.deployable` gives, with preprocessing.
        max_size: height and width of the canvas in pixels.

    Shape:
        - Input: :math:`(1, 3, H, W)` or :math:`(1, H, W, 3)`, RGB in 0…255; and :math:`(2,)`, whole numbers, height
          and width of the image in its upper left corner. What lies beside the image is not looked at
        - Output: as of the graph; label maps are :math:`(1, H, W)` and -1 beside the image

    Raises:
        ValueError: for a graph without preprocessing, or one that brings images to various sizes.

    Example:
        >>> from kornia_mvit import MobileViTClassifier, Preprocess
        >>> from kornia_mvit.exporters import deployable
        >>> model = MobileViTClassifier('xxs', num_classes=5)
        >>> model.preprocess = Preprocess(72, crop=64)
        >>> graph = Canvas(deployable(model, with_preprocess=True), (160, 200))
        >>> graph(*lay_on_canvas(torch.zeros(3, 100, 130, dtype=torch.uint8), (160, 200))).shape
        torch.Size([1, 5])
    """

    def __init__(self, graph: Deployed, max_size: tuple[int, int]) -> None:
        super().__init__()
        if graph.prepare is None:
            raise ValueError("a canvas is for graphs with preprocessing; add with_preprocess=True")
        record = graph.prepare.preprocess
        if record.output_size is None:
            raise ValueError(
                f"{record} brings images to various sizes, and this format's graphs have one; set model.preprocess "
                "to one with a height and a width, such as Preprocess(size=(256, 256)), or with a crop"
                + (" (a crop does not count for segmentation)" if graph.task == "segmentation" else "")
            )
        self.deployed: Deployed = graph
        self.max_size: tuple[int, int] = max_size
        self.record: Preprocess = record
        self.network_size: tuple[int, int] = record.output_size
        self.input_names: list[str] = [*graph.input_names, "size"]
        self.output_names: list[str] = graph.output_names

    def forward(self, image: Tensor, size: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Prepare, predict and decode."""
        if self.deployed.layout == "nhwc":
            image = image.permute(0, 3, 1, 2)
        height, width = size[0:1], size[1:2]
        resized = self._resized(height, width)
        x = self._prepare(image.to(torch.float32), (height, width), resized)
        out = self.deployed.predict(x)
        if not self.deployed.with_decode:
            return out
        answer = (out,) if isinstance(out, Tensor) else out
        if self.deployed.task == "classification":
            return answer[0].softmax(-1)
        if self.deployed.task == "segmentation":
            return self._label(answer[0], (height, width), resized)
        return self._locate(answer[0], answer[1], (height, width), resized)

    def _resized(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`Preprocess.resized_size` does, of tensors."""
        size = self.record.size
        if size is None:
            return height, width
        if isinstance(size, int):
            short = torch.minimum(height, width)
            return size * height // short, size * width // short
        if not self.record.letterbox:
            return torch.ones_like(height) * size[0], torch.ones_like(width) * size[1]
        return (
            round_ratio(height * size[1], width).clamp(1, size[0]),
            round_ratio(width * size[0], height).clamp(1, size[1]),
        )

    def _window(self, resized: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return top and left of the network's input in the resized image."""
        if self.record.letterbox or self.record.crop is None:
            return torch.zeros_like(resized[0]), torch.zeros_like(resized[1])
        top, left = (round_ratio(r - n, 2) for r, n in zip(resized, self.network_size, strict=True))
        return top, left

    def _prepare(self, image: Tensor, size: tuple[Tensor, Tensor], resized: tuple[Tensor, Tensor]) -> Tensor:
        assert self.deployed.prepare is not None
        rows, columns = (self._weights(n, size, resized) for n in (0, 1))
        prepare = self.deployed.prepare
        levels = prepare.clip(rows @ prepare.clip(image @ columns.mT, levels=True), levels=True)
        return prepare.values(levels / 255.0)

    def _weights(self, n: int, size: tuple[Tensor, Tensor], resized: tuple[Tensor, Tensor]) -> Tensor:
        """Return what ``resize_weights`` of a graph does, for the image's height or width on the canvas."""
        pixels, place = torch.arange(self.max_size[n]), torch.arange(self.network_size[n]) + self._window(resized)[n]
        step = size[n].float() / resized[n].float()
        weights = filter_weights(pixels, place, step, self.record.interpolation) * (pixels < size[n])
        return shares(weights, place < resized[n])

    def _label(self, logits: Tensor, size: tuple[Tensor, Tensor], resized: tuple[Tensor, Tensor]) -> Tensor:
        """Return the most probable class of each pixel of the image: (1, K, h, w) -> (1, H, W)."""
        rows, columns = (_stretch_weights(resized[n], size[n], self.network_size[n], self.max_size[n]) for n in (0, 1))
        labels = (rows @ (logits @ columns.mT)).argmax(1)
        for inside in ((torch.arange(self.max_size[0]) < size[0])[:, None], torch.arange(self.max_size[1]) < size[1]):
            labels = torch.where(inside, labels, torch.full_like(labels, -1))  # coremltools takes no number here
        return labels

    def _locate(
        self, logits: Tensor, deltas: Tensor, size: tuple[Tensor, Tensor], resized: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return boxes in pixels of the image, the scores of their most probable classes, and the classes."""
        assert isinstance(self.deployed.model, SSDLite)
        boxes, scores = self.deployed.model.locate(logits, deltas, self.network_size)
        top, left = self._window(resized)
        first = torch.cat((left, top, left, top))
        whole = torch.cat((size[1], size[0], size[1], size[0])).to(boxes.dtype)
        scale = whole / torch.cat((resized[1], resized[0], resized[1], resized[0]))
        best, labels = scores.max(-1)
        return torch.minimum(((boxes + first) * scale).clamp_min(0.0), whole), best, labels


def _stretch_weights(source: Tensor, target: Tensor, count: int, longest: int) -> Tensor:
    """Return what pixels of a resized side take from the (1,) ``source`` first ones of ``count``: (longest, count).

    Bilinear, without antialiasing, as :func:`torch.nn.functional.interpolate` resizes.
    """
    place = (torch.arange(longest) + 0.5) * (source.float() / target.float()) - 0.5
    place = torch.minimum(place.clamp_min(0.0), source.float() - 1.0)
    return (1.0 - (torch.arange(count) - place[:, None]).abs()).clamp_min(0.0)


def static_graph(
    model: Model, options: Options, format_name: str
) -> tuple[Deployed | Canvas, tuple[Tensor, ...], dict[str, str]]:
    """Return the module that a format of one size is made from, an example of its inputs, and what it says of itself.

    Raises:
        ValueError: as :func:`~kornia_mvit.exporters.to_executorch` says.
    """
    graph, size = options.build_graph(model), options.size
    check_size(graph, size, dynamic=False, format_name=format_name)
    assert not isinstance(size, str)
    image = example_input(graph, size, batch=1)
    if not options.with_preprocess:
        return graph, (image,), metadata(model, graph)
    height, width = sides(size)
    about = metadata(model, graph) | {"canvas": json.dumps([height, width])}
    return Canvas(graph, (height, width)).eval(), (image, torch.tensor([height, width])), about
