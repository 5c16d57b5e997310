"""Batches with painted boxes, masks and keypoints, for the tests of augmentation."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from kornia_mvit import Batch, policies
from kornia_mvit.augmentation.choices import OneOf, SomeOf
from kornia_mvit.augmentation.crops import RandomCropKeepingBoxes, RandomIoUCrop, RandomScaledCrop, RandomZoomOut

IGNORE = 255

# One of each geometric operation of Kornia that a matrix describes, and the package's own crops.
GEOMETRIC = {
    "horizontal flip": lambda: K.RandomHorizontalFlip(p=0.5),
    "vertical flip": lambda: K.RandomVerticalFlip(p=0.5),
    "affine": lambda: K.RandomAffine(30.0, (0.1, 0.2), (0.7, 1.3), (10.0, 10.0), p=0.7),
    "affine, corners aligned": lambda: K.RandomAffine(20.0, p=1.0, align_corners=True),
    "affine, border": lambda: K.RandomAffine(20.0, p=1.0, padding_mode="border"),
    "affine, filled": lambda: K.RandomAffine(20.0, p=1.0, fill_value=0.5),
    "affine, nearest": lambda: K.RandomAffine(20.0, p=1.0, resample="nearest"),
    "rotation": lambda: K.RandomRotation(40.0, p=1.0),
    "quarter turns": lambda: K.RandomRotation90((-1, 2), p=1.0),
    "perspective": lambda: K.RandomPerspective(0.5, p=1.0),
    "shear": lambda: K.RandomShear((15.0, 15.0), p=1.0),
    "translation": lambda: K.RandomTranslate((0.1, 0.3), (0.1, 0.3), p=1.0),
    "resized crop": lambda: K.RandomResizedCrop((48, 56)),
    "resized crop, half pixels": lambda: K.RandomResizedCrop((48, 56), align_corners=False),
    "resized crop by warping": lambda: K.RandomResizedCrop((48, 56), cropping_mode="resample"),
    "crop": lambda: K.RandomCrop((32, 40)),
    "crop of a padded image": lambda: K.RandomCrop((70, 80), padding=10),
    "crop larger than the image": lambda: K.RandomCrop((120, 130), pad_if_needed=True),
    "crop, reflected": lambda: K.RandomCrop((70, 80), padding=10, padding_mode="reflect"),
    "centre crop": lambda: K.CenterCrop((40, 48)),
    "pad": lambda: K.PadTo((120, 140)),
    "pad with a value": lambda: K.PadTo((120, 140), pad_value=0.7),
    "resize": lambda: K.Resize((50, 41)),
    "resize, antialiased": lambda: K.Resize((33, 29), align_corners=False, antialias=True),
    "longest side": lambda: K.LongestMaxSize(50),
    "shortest side": lambda: K.SmallestMaxSize(100),
    "zoom out": lambda: RandomZoomOut(3.0, p=0.7),
    "crop by overlap": lambda: RandomIoUCrop((48, 48)),
    "crop keeping boxes": lambda: RandomCropKeepingBoxes((48, 40), keep=0.5),
    "scaled crop": lambda: RandomScaledCrop((48, 48), short_side=(40, 140)),
}

POLICIES = {
    "classification_train": lambda: policies.classification_train(48, jitter=0.2),
    "classification_strong": lambda: policies.classification_strong(48, erasing=0.5),
    "classification_strong, trivial": lambda: policies.classification_strong(48, auto="trivialaugment"),
    "segmentation_train": lambda: policies.segmentation_train(48, short_side=(40, 140), rotate=25.0, jitter=0.2),
    "detection_train": lambda: policies.detection_train(48),
    "chain": lambda: stack(
        K.RandomRotation(25.0, p=1.0),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.1, 0.1, 0.1, 0.1),
        K.RandomAffine(15.0, (0.1, 0.1), p=0.8),
        K.CenterCrop(40),
        K.PadTo((56, 56)),
    ),
    "some of three": lambda: stack(
        K.RandomRotation(25.0, p=1.0), K.RandomVerticalFlip(p=1.0), K.RandomPerspective(0.3, p=1.0), random_apply=2
    ),
    "one of four": lambda: stack(
        OneOf(K.RandomRotation(25.0, p=1.0), K.RandomVerticalFlip(p=1.0), K.RandomShear(15.0, p=1.0), nn.Identity()),
        SomeOf((0, 2), K.RandomHorizontalFlip(p=1.0), K.RandomPerspective(0.3, p=1.0), K.RandomGamma(p=1.0)),
    ),
    "nested": lambda: stack(
        K.ImageSequential(K.RandomShear(10.0, p=1.0), K.RandomHorizontalFlip()), K.Resize((50, 60))
    ),
}
STACKS = {**{name: lambda make=make: stack(make()) for name, make in GEOMETRIC.items()}, **POLICIES}


def stack(*steps: nn.Module, **arguments: object) -> K.AugmentationSequential:
    return K.AugmentationSequential(*steps, data_keys=["input"], **arguments)


def scene(seed: int, *, count: int = 2, height: int = 64, width: int = 72, padded: bool = False) -> Batch:
    """A batch whose mask has box i painted with class i + 1, and a keypoint in the middle of each box."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    image = torch.rand(count, 3, height, width, generator=generator)
    mask = torch.zeros(count, height, width, dtype=torch.long)
    boxes, labels = torch.zeros(count, 4, 4), torch.full((count, 4), -1)
    size = torch.tensor([[height, width]]).repeat(count, 1)
    for b in range(count):
        h, w = (draw(height // 2, height), draw(width // 2, width)) if padded else (height, width)
        size[b] = torch.tensor([h, w])
        image[b, :, h:], image[b, :, :, w:] = 0.0, 0.0
        mask[b, h:], mask[b, :, w:] = IGNORE, IGNORE
        for i in range(draw(0, 3)):
            x, y = draw(0, w - 8), draw(0, h - 8)
            right, below = min(w, x + draw(4, 30)), min(h, y + draw(4, 30))
            boxes[b, i], labels[b, i] = torch.tensor([x, y, right, below]), i
            mask[b, y:below, x:right] = i + 1
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    return Batch(
        image,
        torch.arange(count) % 3,
        boxes=boxes,
        box_label=labels,
        box_ignore=labels == 1,
        mask=mask,
        keypoints=centres,
        keypoint_visible=labels >= 0,
        size=size if padded else None,
    )


def figures(seed: int, *, instances: bool = True, boxed: bool = True, states: bool = True) -> Batch:
    """Two images of odd sizes with figures, of which the mask has dot k of figure n painted with class 4 n + k + 1."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    count = 2 if instances else 1
    height, width = 2 * pick(32, 45) + 1, 2 * pick(32, 45) + 1
    points = torch.zeros(2, count, 4, 2)
    mask = torch.zeros(2, height, width, dtype=torch.long)
    for b in range(2):
        for n in range(count):
            x, y = pick(14, width - 15), (pick(14, height - 15) if count == 1 else 14 + n * (height - 29))
            turn = torch.tensor(pick(0, 359) * torch.pi / 180)
            up = torch.stack([turn.cos(), turn.sin()])
            right = torch.stack([-up[1], up[0]])
            offsets = torch.stack([-10 * up, 10 * up, pick(6, 10) * right, -pick(6, 10) * right])
            points[b, n] = (torch.tensor([float(x), y]) + offsets).floor() + 0.5
            for k, (column, row) in enumerate(points[b, n].long().tolist()):
                mask[b, row - 1 : row + 2, column - 1 : column + 2] = 4 * n + k + 1
    visible = torch.tensor([[2, 2, 1, 2], [1, 2, 2, 1]], dtype=torch.uint8)[:count].expand(2, -1, -1)
    visible = visible.clone() if states else visible > 0
    boxes = torch.cat([points.amin(2) - 2, points.amax(2) + 2], -1)
    return Batch(
        torch.rand(2, 3, height, width, generator=generator),
        boxes=boxes if boxed else None,
        box_label=torch.arange(count).expand(2, -1).clone() if boxed else None,
        mask=mask,
        keypoints=points if instances else points[:, 0],
        keypoint_visible=visible if instances else visible[:, 0],
    )


def smooth_maps(count: int, height: int, width: int) -> Tensor:
    """Smooth maps (count, 3, height, width) in [0, 1]."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    maps = torch.stack([torch.sin(4 * x + 2 * y) / 2 + 0.5, torch.cos(3 * y - x) / 2 + 0.5, x])
    return maps.repeat(count, 1, 1, 1)
