"""What the augmentation pipeline costs beside the same operations in bare Kornia and in torchvision v2.

    python benchmarks/pipeline.py [--threads 1] [--batch 32] [--repeats 15] [--json FILE]

Every contestant starts from the same uint8 batch and ends with normalised floats. They run in one process, in turn;
ratios are taken within each turn, so that what else the machine does falls on all alike. Bare Kornia applies each
operation by itself and neither clips nor drops boxes; torchvision takes images one by one, since it would give all
images of a batch the same crop.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import kornia.augmentation as K
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kornia_mvit import AugmentationPipeline, Batch, Preprocess, policies
from kornia_mvit.augmentation.color import RandomColorTwist
from kornia_mvit.augmentation.crops import RandomIoUCrop, RandomZoomOut

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classification(batch: int, source: int, size: int) -> common.Contestants:
    """Random resized crop, flip, normalisation."""
    images = torch.randint(0, 256, (batch, 3, source, source), dtype=torch.uint8)
    label = torch.arange(batch) % 10
    bare = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), align_corners=False),
        K.RandomHorizontalFlip(),
        K.Normalize(MEAN, STD),
        data_keys=["input"],
    )
    each = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=False),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    preprocess = Preprocess((size, size), mean=MEAN, std=STD)
    ours = AugmentationPipeline(policies.classification_train(size), preprocess=preprocess).train()
    steps = AugmentationPipeline(policies.classification_train(size), preprocess=preprocess, fuse=False).train()
    return {
        "kornia": lambda: bare(images / 255),
        "ours": lambda: ours(Batch(images, label)),
        "ours, step by step": lambda: steps(Batch(images, label)),
        "torchvision v2": lambda: torch.stack([each(image) for image in images]),
    }


def detection(batch: int, size: int) -> common.Contestants:
    """Random resized crop, flip, colour jitter, normalisation, with 20 boxes an image."""
    images, boxes, label = boxed(batch)

    def steps() -> list[Any]:
        crop = K.RandomResizedCrop((size, size), scale=(0.3, 1.0), align_corners=False)
        return [crop, K.RandomHorizontalFlip(), K.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8)]

    bare = K.AugmentationSequential(*steps(), K.Normalize(MEAN, STD), data_keys=["input", "bbox_xyxy"])
    ours = AugmentationPipeline(steps(), preprocess=Preprocess((size, size), mean=MEAN, std=STD)).train()
    each = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3, 0.05)], p=0.8),
            v2.SanitizeBoundingBoxes(labels_getter=None),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    canvas = images.shape[-2:]
    wrapped = [
        (tv_tensors.Image(image), tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=canvas))  # type: ignore[call-overload]  # untyped
        for image, rows in zip(images, boxes, strict=True)
    ]
    return {
        "kornia": lambda: bare(images / 255, boxes),
        "ours": lambda: ours(Batch(images, boxes=boxes, box_label=label)),
        "torchvision v2": lambda: stacked([each(*sample)[0] for sample in wrapped]),
    }


def detection_policy(batch: int, size: int) -> common.Contestants:
    """The detection policy; in bare Kornia its steps run too, but the crop does not see the boxes."""
    images, boxes, label = boxed(batch)

    def bare(colour: Any) -> Any:
        crop = [RandomZoomOut(), RandomIoUCrop((size, size)), K.RandomHorizontalFlip()]
        return K.AugmentationSequential(*crop, colour, K.Normalize(MEAN, STD), data_keys=["input", "bbox_xyxy"])

    same = bare(RandomColorTwist(0.3, 0.3, 0.3, 0.05, p=0.8))
    jitter = bare(K.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8))
    preprocess = Preprocess((size, size), mean=MEAN, std=STD)
    ours = AugmentationPipeline(policies.detection_train(size), preprocess=preprocess, min_box_visibility=0.3).train()
    each = v2.Compose(
        [
            v2.RandomZoomOut(),
            v2.RandomIoUCrop(),
            v2.Resize((size, size), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3, 0.05)], p=0.8),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    canvas = images.shape[-2:]
    samples = [
        {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=canvas),  # type: ignore[call-overload]  # torchvision has no types
            "labels": classes,
        }
        for image, rows, classes in zip(images, boxes, label, strict=True)
    ]
    return {
        "kornia": lambda: same(images / 255, boxes),
        "ours": lambda: ours(Batch(images, boxes=boxes, box_label=label)),
        "kornia, ColorJitter": lambda: jitter(images / 255, boxes),
        "torchvision v2": lambda: stacked([each(sample)["image"] for sample in samples]),
    }


def segmentation(batch: int, size: int) -> common.Contestants:
    """Random scale, crop and flip with masks; once more with the policy's crop, which looks at classes."""
    images = torch.randint(0, 256, (batch, 3, 480, 640), dtype=torch.uint8)
    masks = torch.randint(0, 21, (batch, 6, 8)).repeat_interleave(80, 1).repeat_interleave(80, 2)
    preprocess, sides = Preprocess((size, size), mean=MEAN, std=STD), (size // 2, 2 * size)

    def ours(**how: Any) -> AugmentationPipeline:
        policy = policies.segmentation_train(size, short_side=sides, **how)
        return AugmentationPipeline(policy, preprocess=preprocess).train()

    plain, looking = ours(max_class_share=1.0), ours()
    each = v2.Compose(
        [
            v2.RandomResize(*sides, antialias=False),
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    bare = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), align_corners=False),
        K.RandomHorizontalFlip(),
        K.Normalize(MEAN, STD),
        data_keys=["input", "mask"],
    )
    samples = [(tv_tensors.Image(image), tv_tensors.Mask(mask)) for image, mask in zip(images, masks, strict=True)]
    return {
        "kornia": lambda: bare(images / 255, masks[:, None].float()),
        "ours": lambda: plain(Batch(images, mask=masks)),
        "ours, no class above its share": lambda: looking(Batch(images, mask=masks)),
        "torchvision v2": lambda: [stacked(part) for part in zip(*(each(*sample) for sample in samples), strict=True)],
    }


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Make one batch of single images, as a loader would."""
    return torch.stack([image.as_subclass(Tensor) for image in images])


def boxed(batch: int, count: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Images of 640 x 480 with boxes."""
    corner = torch.rand(batch, count, 2) * torch.tensor([500.0, 380.0])
    boxes = torch.cat([corner, corner + 20 + torch.rand(batch, count, 2) * torch.tensor([100.0, 60.0])], -1)
    return torch.randint(0, 256, (batch, 3, 480, 640), dtype=torch.uint8), boxes, torch.randint(0, 3, (batch, count))


def main() -> None:
    """Run all races, print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    races = {
        "classification, 288 to 256 px": classification(args.batch, 288, 256),
        "classification, 144 to 128 px": classification(args.batch, 144, 128),
        "detection, 640x480 to 320 px, 20 boxes": detection(args.batch, 320),
        "detection policy, 640x480 to 320 px, 20 boxes": detection_policy(args.batch, 320),
        "segmentation, 640x480 to 320 px, masks": segmentation(args.batch, 320),
    }
    results = {}
    for title, contestants in races.items():
        results[title] = common.compare(common.race(contestants, args.repeats), ["kornia"])
        common.show(f"{title}: batch {args.batch}, {args.threads} threads", results[title], "kornia")
    common.write(args.json, common.stamp(batch=args.batch, repeats=args.repeats, results=results))


if __name__ == "__main__":
    main()
