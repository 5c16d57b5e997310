"""What is known of the weights that others have published, of which none comes with the package."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kornia_mvit.models.mobilevitv2 import WIDTHS, mode_name
from kornia_mvit.preprocess import Preprocess

__all__ = ["PREPROCESSING", "WeightsRecord", "published_weights"]

# Apple's evaluation, by task.
PREPROCESSING = {
    "classification": Preprocess(size=288, crop=256),
    "segmentation": Preprocess(size=(512, 512)),
    "detection": Preprocess(size=(320, 320)),
}


@dataclass(frozen=True)
class WeightsRecord:
    """What is known of published weights.

    Args:
        name: what :func:`from_pretrained` takes.
        source: address of the file, or id of a repository on the Hugging Face hub.
        mode: size of the network.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``.
        layout: whose names the file has.
        channel_order: what the network of the file takes. Models that :func:`from_pretrained` gives take RGB.
        preprocess: what images go through.
        score: in percent: top-1 and, where known, top-5 accuracy on ImageNet-1k, mIoU on VOC 2012 or ADE20K, or mAP on
            COCO.
        score_source: who measured it.
        licence: what the publisher says; read it before you use the weights.
        num_classes: number of classes.
        classes: name of the set of classes, see :func:`class_names`.
        sha256: of the file, where the publisher tells it.
        arguments: of the model's class, such as the output stride, that weights do not show.
    """

    name: str
    source: str
    mode: str
    task: str
    layout: str
    channel_order: str
    preprocess: Preprocess
    score: Mapping[str, float] = field(hash=False)
    score_source: str
    licence: str
    num_classes: int = 1000
    classes: str = "imagenet-1k"
    sha256: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


def published_weights() -> dict[str, WeightsRecord]:
    """Return the records of both versions by their names, the first version's first."""
    records = [*_first(), *_first_of_timm(), *_second_classification(), *_second_dense(), *_second_of_transformers()]
    return {record.name: record for record in records}


_LICENCES = {
    "apple": "Apple's own, the file LICENSE of cvnets",
    "transformers": "Apple's sample code licence or apple-amlr, as the model's card says",
    "timm": "cvnets-license, which is Apple's own; see the model's card",
}

# ----------------------------------------------------------------------------------------------------- first version

_APPLE = "https://docs-assets.developer.apple.com/ml-research/models/cvnets/{}.pt"
_LONG = {"xxs": "xx-small", "xs": "x-small", "s": "small"}
# Of Apple's weights: task, set of classes, their number with the background that segmentation and detection count, and
# the name of the score with its value for each mode.
_TASKS = (
    ("classification", "imagenet-1k", 1000, "top-1", (69.0, 74.7, 78.3)),
    ("segmentation", "voc", 21, "mIoU", (72.8, 77.1, 79.3)),
    ("detection", "coco", 81, "mAP", (19.9, 24.8, 27.9)),
)
# What the weights are called: by us, as Apple's file, and as transformers' repository.
_NAMES = {
    "classification": ("mobilevit_{}.{}_in1k", "classification/mobilevit_{}", "apple/{}"),
    "segmentation": ("deeplabv3_mobilevit_{}.{}_voc", "segmentation/deeplabv3_mobilevit_{}", "apple/deeplabv3-{}"),
    "detection": ("ssdlite_mobilevit_{}.{}_coco", "detection/ssd_mobilevit_{}_320", None),
}


def _first() -> Iterator[WeightsRecord]:
    for task, classes, count, metric, scores in _TASKS:
        name, file, repository = _NAMES[task]
        for mode, score in zip(_LONG, scores, strict=True):
            places = {"apple": _APPLE.format(file.format(mode))}
            if repository:
                places["transformers"] = repository.format(f"mobilevit-{_LONG[mode]}")
            for layout, source in places.items():
                yield WeightsRecord(
                    name=name.format(mode, layout),
                    source=source,
                    mode=mode,
                    task=task,
                    layout=layout,
                    channel_order="bgr",
                    preprocess=PREPROCESSING[task],
                    score={metric: score},
                    score_source="Apple's paper and cvnets",
                    licence=_LICENCES[layout],
                    num_classes=count,
                    classes=classes,
                )


def _first_of_timm() -> Iterator[WeightsRecord]:
    for mode, top1, top5 in (("xxs", 68.94, 88.94), ("xs", 74.62, 92.35), ("s", 78.30, 94.17)):
        yield WeightsRecord(
            name=f"mobilevit_{mode}.timm_in1k",
            source=f"timm/mobilevit_{mode}.cvnets_in1k",
            mode=mode,
            task="classification",
            layout="timm",
            channel_order="rgb",
            preprocess=Preprocess(size=284, crop=256, interpolation="bicubic"),  # 256 / 0.9
            score={"top-1": top1, "top-5": top5},
            score_source="timm, 256 px, crop 0.9, bicubic",
            licence=_LICENCES["timm"],
        )


# ---------------------------------------------------------------------------------------------------- second version

# Apple's code read images as RGB when it made these; of timm's files RGB gives Apple's scores.
_APPLE_V2 = "https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/{}.pt"
_SIZES = {256: Preprocess(size=288, crop=256, interpolation="bicubic"), 384: Preprocess(384, 384, "bicubic")}
# Of the classifiers: pixels, what was learned before ImageNet-1k, as Apple's folder and as our names have it, and
# Apple's top-1 for each width, the widest last.
_CLASSIFIERS = (
    (256, "imagenet1k", "in1k", (70.18, 75.56, 78.09, 79.65, 80.38, 80.84, 81.17)),
    (384, "imagenet1k", "in1k_384", (72.14, 76.98, 79.68, 80.94, 81.50, 82.04, 82.17)),
    (256, "imagenet21k_to_1k", "in21k_ft_in1k", (81.46, 81.94, 82.36)),
    (384, "imagenet21k_to_1k", "in21k_ft_in1k_384", (82.60, 82.93, 83.41)),
)
# Of timm's: pixels, its tag, which is the end of our names too, and its own top-1 and top-5 for each width.
_OF_TIMM = (
    (
        256,
        "in1k",
        (
            (70.138, 89.920),
            (75.608, 92.744),
            (78.076, 94.170),
            (79.680, 94.858),
            (80.370, 95.074),
            (80.860, 95.256),
            (81.134, 95.362),
        ),
    ),
    (256, "in22k_ft_in1k", ((81.488, 95.668), (81.938, 95.790), (82.332, 95.942))),
    (384, "in22k_ft_in1k_384", ((82.586, 96.314), (82.938, 96.426), (83.400, 96.582))),
)
# Of the others: name, Apple's file, task, set of classes, their number, arguments, and the score for each width that
# there are weights of.
_DENSE: tuple[tuple[str, str, str, str, int, dict[str, Any], dict[float, float]], ...] = (
    (
        "ssdlite_mobilevitv2_{}.apple_coco",
        "detection/mobilevitv2/coco-ssd-mobilevitv2-{}",
        "detection",
        "coco",
        81,
        {},
        dict(zip(WIDTHS, (21.24, 24.57, 26.47, 27.85, 28.83, 29.52, 30.21), strict=True)),
    ),
    (
        "deeplabv3_mobilevitv2_{}.apple_voc",
        "segmentation/pascalvoc/mobilevitv2/deeplabv3-mobilevitv2-{}",
        "segmentation",
        "voc",
        21,
        {"output_stride": 16, "rates": (6, 12, 18), "align_corners": True},
        {0.5: 75.07, 1.0: 78.94, 1.25: 79.68, 1.5: 80.30},
    ),
    (
        "deeplabv3_mobilevitv2_{}.apple_ade20k",
        "segmentation/ade20k/mobilevitv2/deeplabv3-mobilevitv2-{}",
        "segmentation",
        "ade20k",
        150,
        {"output_stride": 8, "rates": (12, 24, 36), "align_corners": True},
        dict(zip(WIDTHS, (31.93, 34.70, 37.06, 38.42, 38.91, 39.53, 40.94), strict=True)),
    ),
)


def _second_classification() -> Iterator[WeightsRecord]:
    for size, folder, end, scores in _CLASSIFIERS:
        for width, score in zip(WIDTHS[-len(scores) :], scores, strict=True):
            yield WeightsRecord(
                name=f"mobilevitv2_{_short(width)}.apple_{end}",
                source=_APPLE_V2.format(f"classification/mobilevitv2/{folder}/{size}x{size}/mobilevitv2-{width}"),
                mode=mode_name(width),
                task="classification",
                layout="apple",
                channel_order="rgb",
                preprocess=_SIZES[size],
                score={"top-1": score},
                score_source="Apple's model zoo",
                licence=_LICENCES["apple"],
            )
    for size, end, pairs in _OF_TIMM:
        for width, (top1, top5) in zip(WIDTHS[-len(pairs) :], pairs, strict=True):
            crop = {256: "0.888", 384: "1.0"}[size]
            yield WeightsRecord(
                name=f"mobilevitv2_{_short(width)}.timm_{end}",
                source=f"timm/mobilevitv2_{_short(width)}.cvnets_{end}",
                mode=mode_name(width),
                task="classification",
                layout="timm",
                channel_order="rgb",
                preprocess=_SIZES[size],
                score={"top-1": top1, "top-5": top5},
                score_source=f"timm, {size} px, crop {crop}, bicubic",
                licence=_LICENCES["timm"],
            )


def _second_dense() -> Iterator[WeightsRecord]:
    for name, file, task, classes, count, arguments, scores in _DENSE:
        for width, score in scores.items():
            yield WeightsRecord(
                name=name.format(_short(width)),
                source=_APPLE_V2.format(file.format(width)),
                mode=mode_name(width),
                task=task,
                layout="apple",
                channel_order="rgb",
                preprocess=PREPROCESSING[task],
                score={"mAP" if task == "detection" else "mIoU": score},
                score_source="Apple's model zoo",
                licence=_LICENCES["apple"],
                num_classes=count,
                classes=classes,
                arguments=arguments,
            )


def _second_of_transformers() -> Iterator[WeightsRecord]:
    """Those of the hub that transformers' own code and tests name; they hold the same numbers as Apple's files."""
    for width, name, source in (
        (1.0, "mobilevitv2_100.transformers_in1k", "apple/mobilevitv2-1.0-imagenet1k-256"),
        (2.0, "mobilevitv2_200.transformers_in1k", "apple/mobilevitv2-2.0-imagenet1k-256"),
        (1.0, "deeplabv3_mobilevitv2_100.transformers_voc", "shehan97/mobilevitv2-1.0-voc-deeplabv3"),
    ):
        voc = name.endswith("voc")
        yield WeightsRecord(
            name=name,
            source=source,
            mode=mode_name(width),
            task="segmentation" if voc else "classification",
            layout="transformers",
            channel_order="rgb",
            preprocess=PREPROCESSING["segmentation"] if voc else _SIZES[256],
            score={"mIoU": 78.94} if voc else {"top-1": {1.0: 78.09, 2.0: 81.17}[width]},
            score_source="Apple's model zoo",
            licence=_LICENCES["transformers"],
            num_classes=21 if voc else 1000,
            classes="voc" if voc else "imagenet-1k",
            arguments={"output_stride": 16, "rates": (6, 12, 18), "align_corners": True} if voc else {},
        )


def _short(width: float) -> str:
    """Return a width as timm's names have it, in hundredths."""
    return f"{round(100 * width):03d}"
