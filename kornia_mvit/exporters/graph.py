"""The module that is exported: a model with its preprocessing before it and its decoding behind it.

Plain tensor operations throughout, so that one module serves every format, and nothing that looks at a size, so that
one graph serves all sizes.

Shapes are written with B batch, H W height and width of the image that goes in, h w those of what the network sees,
K classes and A anchors.
"""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.extras import needing
from kornia_mvit.inference.engines.fuse import fuse
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.preprocess import Preprocess, PreprocessModule, round_ratio
from kornia_mvit.weights.cards import Model, task_of

__all__ = [
    "DeployPreprocess",
    "Deployed",
    "Suppression",
    "deployable",
    "filter_weights",
    "resize_weights",
    "shares",
    "suppress_boxes",
]

LAYOUTS = ("nchw", "nhwc")
RESAMPLES = ("native", "matmul")
_RAW = {"classification": ("logits",), "segmentation": ("logits",), "detection": ("logits", "deltas")}
_DECODED = {
    "classification": ("probabilities",),
    "segmentation": ("labels",),
    "detection": ("boxes", "scores", "labels"),
}


# --------------------------------------------------------------------------------------------------- preprocessing


class DeployPreprocess(PreprocessModule):
    r"""Apply a :class:`~kornia_mvit.Preprocess` in a graph that takes images of any size.

    Args:
        preprocess: the record.
        layout: ``'nchw'`` or ``'nhwc'``, as cameras and image files have it.
        resample: ``'native'`` for the format's own antialiased resize; ``'matmul'`` for one of two matrix products,
            for formats that have none. Both give the same to rounding.

    Shape:
        - Input: :math:`(B, 3, H, W)` or :math:`(B, H, W, 3)`, uint8, RGB
        - Output: :math:`(B, 3, h, w)`, float32

    Example:
        >>> prepare = DeployPreprocess(Preprocess(288, crop=256), layout="nhwc")
        >>> prepare(torch.zeros(1, 480, 640, 3, dtype=torch.uint8)).shape
        torch.Size([1, 3, 256, 256])
    """

    def __init__(self, preprocess: Preprocess, layout: str = "nchw", resample: str = "native") -> None:
        super().__init__(preprocess)
        self.layout: str = layout
        self.resample: str = resample

    def forward(self, image: Tensor) -> Tensor:
        """Resize, crop, and bring the values to what the network takes."""
        if self.layout == "nhwc":
            image = image.permute(0, 3, 1, 2)
        return self.values(self.geometry(image.to(torch.float32), levels=True) / 255.0)

    def geometry(self, image: Tensor, *, levels: bool = False) -> Tensor:
        """Resize and crop floating-point images, or lay them in their letterbox, as Preprocess does."""
        record = self.preprocess
        (height, width), size = image.shape[-2:], self.resized(image)
        top, left, h, w = self.window(*size)
        if record.size is not None and self.resample == "matmul":
            rows = resize_weights(height, size[0], h, top, record.interpolation, image.device)
            columns = resize_weights(width, size[1], w, left, record.interpolation, image.device)
            return self.clip(rows @ self.clip(image @ columns.mT, levels=levels), levels=levels)
        if record.size is not None:
            image = self.interpolate(image, size, levels=levels)
        if record.letterbox:
            return F.pad(image, (0, w - size[1], 0, h - size[0]))
        if record.crop is not None:  # taken by index: where a slice begins may not depend on a traced size
            rows, columns = torch.arange(h, device=image.device) + top, torch.arange(w, device=image.device) + left
            image = image.index_select(2, rows).index_select(3, columns)
        return image

    def resized(self, image: Tensor) -> tuple[int, int]:
        """Return height and width of (B, 3, H, W) images after the resize, before the crop or the letterbox."""
        return self.preprocess.resized_size(image.shape[-2], image.shape[-1])

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return where the network's input lies in the resized image: top, left, height and width."""
        record = self.preprocess
        if record.letterbox:
            assert isinstance(record.size, tuple)
            return 0, 0, *record.size
        if record.crop is None:
            return 0, 0, height, width
        h, w = (record.crop, record.crop) if isinstance(record.crop, int) else record.crop
        return round_ratio(height - h, 2), round_ratio(width - w, 2), h, w


def resize_weights(
    source: int, target: int, count: int, first: int, interpolation: str, device: torch.device | None = None
) -> Tensor:
    """Return what each pixel of a resized side takes from those of the side before, as torch's antialiased resize does.

    Args:
        source: length of the side in pixels.
        target: its length after the resize.
        count: pixels that are wanted.
        first: the resized side's pixel that they begin with.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        device: where to.

    Returns:
        (count, source); rows sum to 1, those beyond the resized side to 0.

    Example:
        >>> resize_weights(4, 2, 3, 0, "bilinear")
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    place = torch.arange(count, device=device) + first
    length = torch.ones_like(place) * source  # a tensor, as a traced length cannot be divided without being looked at
    step = length.float() / target
    weights = filter_weights(torch.arange(source, device=device), place, step[:, None], interpolation)
    return shares(weights, place < target)


def filter_weights(pixels: Tensor, place: Tensor, step: Tensor, interpolation: str) -> Tensor:
    """Return what (n,) places of a resized side take from (m,) pixels, ``step`` of them for one: (n, m), of any sum."""
    distance = (pixels + 0.5 - (place + 0.5)[:, None] * step) / step.clamp_min(1.0)
    return _FILTERS[interpolation](distance.abs())


def shares(weights: Tensor, inside: Tensor) -> Tensor:
    """Return (n, m) weights whose rows sum to 1, or to 0 where they are not (n,) ``inside`` the resized side."""
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-6) * inside[:, None]


def _triangle(x: Tensor) -> Tensor:
    return (1.0 - x).clamp_min(0.0)


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' filter of a = -1/2, which antialiased resizes use."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}


# -------------------------------------------------------------------------------------------------------------- module


class Deployed(nn.Module):
    """A model with what :func:`deployable` put around it.

    Args:
        model: the network.
        prepare: what images go through first, or None.
        with_decode: whether logits become answers.
        layout: of the input, ``'nchw'`` or ``'nhwc'``.
        suppress: what drops overlapping boxes, or None.

    Attributes:
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``.
        dtype: of the network's weights.
        input_names: what the input is called.
        output_names: what the outputs are called.
        layout: of the input, ``'nchw'`` or ``'nhwc'``.
        with_preprocess: whether uint8 images of any size go in.
        with_decode: whether answers come out, and not logits.
        nms: whether overlapping boxes are suppressed.
    """

    def __init__(
        self,
        model: Model,
        prepare: DeployPreprocess | None,
        with_decode: bool,
        layout: str,
        suppress: "Suppression | None",
    ) -> None:
        super().__init__()
        self.model = model
        self.prepare = prepare
        self.suppress = suppress
        self.task: str = str(task_of(model))
        self.dtype: torch.dtype = next(model.backbone.parameters()).dtype
        self.layout = layout
        self.with_decode = with_decode
        self.input_names: list[str] = ["image"]
        self.output_names: list[str] = list((_DECODED if with_decode else _RAW)[self.task])

    @property
    def with_preprocess(self) -> bool:
        """Whether uint8 images go in."""
        return self.prepare is not None

    @property
    def nms(self) -> bool:
        """Whether overlapping boxes are suppressed."""
        return self.suppress is not None

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Prepare, predict and decode."""
        x = image if self.prepare is None else self.prepare(image)
        out = self.predict(x)
        if not self.with_decode:
            return out
        if self.task == "classification":
            assert isinstance(out, Tensor)
            return out.softmax(-1)
        if self.layout == "nhwc":
            image = image.permute(0, 3, 1, 2)
        if self.task == "segmentation":
            assert isinstance(out, Tensor)
            return self._label(out, image)
        return self._locate(out[0], out[1], x, image)

    def predict(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the model's outputs in single precision, whatever it computes in."""
        out = self.model(x.to(self.dtype))
        return tuple(one.float() for one in out) if isinstance(out, tuple) else out.float()

    def _label(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the most probable class of each pixel of the image: (B, K, h, w) -> (B, H, W)."""
        if self.prepare is not None and self.prepare.preprocess.size is not None:
            if self.prepare.preprocess.letterbox:
                rows, columns = (torch.arange(n, device=logits.device) for n in self.prepare.resized(image))
                logits = logits.index_select(2, rows).index_select(3, columns)
            size = (image.shape[-2], image.shape[-1])
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits.argmax(1)

    def _locate(self, logits: Tensor, deltas: Tensor, x: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes in pixels of the image, the scores of their most probable classes, and the classes."""
        assert isinstance(self.model, SSDLite)
        boxes, scores = self.model.locate(logits, deltas, (x.shape[-2], x.shape[-1]))
        if self.prepare is not None:
            boxes = self._back(boxes, self.prepare, image)
        if self.suppress is not None:
            found: tuple[Tensor, ...] = self.suppress(boxes, scores)
            return found
        best, labels = scores.max(-1)
        return boxes, best, labels

    def _back(self, boxes: Tensor, prepare: DeployPreprocess, image: Tensor) -> Tensor:
        (height, width), (h, w) = image.shape[-2:], prepare.resized(image)
        top, left, _, _ = prepare.window(h, w)
        sides = []
        for values, first, resized, whole in zip(
            boxes.unbind(-1), (left, top, left, top), (w, h, w, h), (width, height, width, height), strict=True
        ):
            # tensors of a length, as the ratio of traced numbers is not one that every format has
            ones = torch.ones_like(values[:, :1])
            sides.append(torch.minimum(((values + first) * (ones * whole / resized)).clamp_min(0.0), ones * whole))
        return torch.stack(sides, -1)


@torch.library.custom_op("kornia_mvit::suppress_boxes", mutates_args=())
def suppress_boxes(
    boxes: Tensor, scores: Tensor, max_detections: int, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Return which of (B, A, 4) boxes are kept for which class: (B, K, A) scores -> (B, K, A), bool.

    An operator of its own, which the export to ONNX knows how to write.
    """
    with needing("to suppress overlapping boxes needs torchvision", "train"):
        from torchvision.ops import nms  # type: ignore[import-untyped]  # it comes without stubs
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            rows = (scores[image, label] > score_threshold).nonzero()[:, 0]
            best = nms(boxes[image, rows], scores[image, label, rows], iou_threshold)[:max_detections]
            kept[image, label, rows[best]] = True
    return kept


@suppress_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, *_: object) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


class Suppression(nn.Module):
    """Keep the boxes of highest score of each class that do not overlap, as :meth:`SSDLite.decode`, by ONNX's operator.

    Args:
        score_threshold: least probability, exclusive.
        iou_threshold: overlap above which the box of lower score of two of a class is dropped.
        top_k: boxes of a class that are looked at, those of highest score.
        max_detections: objects of an image; where there are fewer, rows of score 0 and label -1 follow them.
    """

    def __init__(
        self,
        score_threshold: float = 0.01,
        iou_threshold: float = 0.5,
        top_k: int = 400,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.score_threshold: float = score_threshold
        self.iou_threshold: float = iou_threshold
        self.top_k: int = top_k
        self.max_detections: int = max_detections

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sift (B, A, 4) boxes of (B, A, K) scores: (B, n, 4), (B, n) and (B, n), n being ``max_detections``."""
        b, a, _ = boxes.shape
        scores = scores.mT.contiguous()
        # of images of few pixels there are fewer anchors than are looked at: zeros make them up
        least = F.pad(scores, (0, self.top_k)).topk(self.top_k, dim=2).values[..., -1:]
        scores = torch.where(scores >= least, scores, 0.0)
        kept = suppress_boxes(boxes, scores, self.top_k, self.iou_threshold, self.score_threshold)
        scores = torch.where(kept, scores, 0.0).flatten(1)
        best, place = F.pad(scores, (0, self.max_detections)).topk(self.max_detections, dim=1)
        found = best > 0
        anchor = torch.where(found, place % a, 0)
        out = boxes.gather(1, anchor[..., None].expand(b, self.max_detections, 4))
        return torch.where(found[..., None], out, 0.0), best, torch.where(found, place // a, -1)


def deployable(
    model: Model,
    *,
    with_preprocess: bool = False,
    with_decode: bool = False,
    layout: str = "nchw",
    nms: bool | Suppression = False,
    resample: str = "native",
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
) -> Deployed:
    """Put around a copy of a model, in eval mode, what is to be in the graph with it.

    Args:
        model: what is deployed; left as it is.
        with_preprocess: take uint8 RGB images of any size; else (B, 3, H, W) as the network takes them.
        with_decode: give probabilities (B, K), or for segmentation the classes of the image's pixels (B, H, W), or
            for detection boxes (B, A, 4) in pixels of the image, their scores (B, A) and classes (B, A), in place of
            logits. Of each anchor's box that is its most probable class, however improbable.
        layout: of the images, ``'nchw'`` or, with preprocessing, ``'nhwc'``.
        nms: suppress overlapping boxes as :meth:`SSDLite.decode` does, by an operator of ONNX; or how.
        resample: see :class:`DeployPreprocess`.
        dtype: of the network's weights and computation; what goes in and comes out stays float32.
        fused: whether batch normalisation is folded, see :func:`~kornia_mvit.inference.engines.fuse.fuse`.

    Returns:
        The module, in eval mode.

    Raises:
        ValueError: for an unknown layout or resample, ``nhwc`` without preprocessing, preprocessing of a model that
            does not say its own, ``nms`` without decoding or of a model that finds no boxes.
        TypeError: for a model of another kind.

    Example:
        >>> from kornia_mvit import MobileViTClassifier
        >>> model = MobileViTClassifier('xxs', num_classes=5)
        >>> model.preprocess = Preprocess(144, crop=128)
        >>> graph = deployable(model, with_preprocess=True, with_decode=True, layout='nhwc')
        >>> graph(torch.zeros(1, 200, 300, 3, dtype=torch.uint8)).shape, graph.output_names
        (torch.Size([1, 5]), ['probabilities'])
    """
    task = task_of(model)
    if task is None:
        raise TypeError(f"{type(model).__name__} is none of this package's models for a task; export one of those")
    _check_choice("layout", layout, LAYOUTS)
    _check_choice("resample", resample, RESAMPLES)
    if layout == "nhwc" and not with_preprocess:
        raise ValueError("layout 'nhwc' is that of images; the network takes 'nchw': add with_preprocess=True")
    if nms and task != "detection":
        raise ValueError(f"nms is of boxes, and a model for {task} gives none; leave it out")
    if nms and not with_decode:
        raise ValueError("nms needs decoded boxes; add with_decode=True")
    prepare = None
    if with_preprocess:
        if model.preprocess is None:
            raise ValueError("the model does not say its preprocessing; set model.preprocess to a Preprocess")
        record = replace(model.preprocess, crop=None) if task == "segmentation" else model.preprocess
        prepare = DeployPreprocess(record, layout, resample)
    suppress = nms if isinstance(nms, Suppression) else Suppression() if nms else None
    return Deployed(_for_inference(model, dtype, fused), prepare, with_decode, layout, suppress).eval()


def _for_inference(model: Model, dtype: torch.dtype, fused: bool) -> Model:
    model = fuse(model) if fused else copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(model, DeepLabV3):
        model.aux_head = None
    model.set_gradient_checkpointing(False)
    # what writes files takes weights in their plain order alone
    return model.to("cpu", dtype).to(memory_format=torch.contiguous_format)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; available: {', '.join(map(repr, choices))}")
