"""What is run on the pretended device and on the CPU: augmentations, training steps, losses, predictions, scores.

``python -m tests.device.cases > tests/device/waits.json`` writes the table of what waits for the device or is uploaded.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from kornia_mvit import (
    AugmentationPipeline,
    Batch,
    CopyPaste,
    CutMix,
    DeepLabV3,
    Mix,
    MixUp,
    MobileViTClassifier,
    Mosaic,
    Preprocess,
    SSDLite,
    TestTimeAugmentation,
    policies,
)
from kornia_mvit.batch import replace_checked
from kornia_mvit.evaluation.coco import CocoMetrics
from kornia_mvit.inference.detection import predict_boxes
from kornia_mvit.ops.boxes import assign_targets
from kornia_mvit.ops.losses import multibox_loss, pixel_cross_entropy, pixel_dice, pixel_lovasz
from tests.augmentation.scenes import STACKS, figures, scene, stack
from tests.device.pretended import Pretended

Put = Callable[[Any], Any]
Case = Callable[[Put], Callable[[], Any]]  # what is set up is not counted, what is called then is

RECORD = Preprocess((40, 40), mean=(0.5,) * 3, std=(0.2,) * 3)
STRONG = {"num_classes": 3, "operations": 4, "erasing": 0.5}
POLICIES = {
    "classification_train": lambda: policies.classification_train(40, jitter=0.2),
    "classification_strong": lambda: policies.classification_strong(40, **STRONG),
    "classification_strong, cutmix": lambda: policies.classification_strong(40, mixup=0.0, **STRONG),
    "classification_strong, trivialaugment": lambda: policies.classification_strong(40, auto="trivialaugment"),
    "segmentation_train": lambda: policies.segmentation_train(40, rotate=25.0, jitter=0.2, hue=0.1),
    "detection_train": lambda: policies.detection_train(40),
}
VALUES = {
    "RandomAutoContrast": lambda: K.RandomAutoContrast(p=0.6),
    "RandomBoxBlur": lambda: K.RandomBoxBlur(p=0.6),
    "RandomBrightness": lambda: K.RandomBrightness((0.5, 1.5), p=0.6),
    "RandomChannelDropout": lambda: K.RandomChannelDropout(p=0.6),
    "RandomChannelShuffle": lambda: K.RandomChannelShuffle(p=0.6),
    "RandomClahe": lambda: K.RandomClahe(p=0.6),
    "RandomContrast": lambda: K.RandomContrast((0.5, 1.5), p=0.6),
    "RandomEqualize": lambda: K.RandomEqualize(p=0.6),
    "RandomErasing": lambda: K.RandomErasing(p=0.6),
    "RandomErasing, the same for all": lambda: K.RandomErasing(p=0.6, same_on_batch=True),
    "RandomGamma": lambda: K.RandomGamma((0.5, 1.5), p=0.6),
    "RandomGaussianBlur": lambda: K.RandomGaussianBlur((3, 3), (0.1, 2.0), p=0.6),
    "RandomGaussianIllumination": lambda: K.RandomGaussianIllumination(p=0.6),
    "RandomGaussianNoise": lambda: K.RandomGaussianNoise(p=0.6),
    "RandomGrayscale": lambda: K.RandomGrayscale(p=0.6),
    "RandomHue": lambda: K.RandomHue((-0.3, 0.3), p=0.6),
    "RandomInvert": lambda: K.RandomInvert(p=0.6),
    "RandomJPEG": lambda: K.RandomJPEG(p=0.6),
    "RandomLinearCornerIllumination": lambda: K.RandomLinearCornerIllumination(p=0.6),
    "RandomLinearIllumination": lambda: K.RandomLinearIllumination(p=0.6),
    "RandomMedianBlur": lambda: K.RandomMedianBlur((3, 3), p=0.6),
    "RandomMotionBlur": lambda: K.RandomMotionBlur(3, 35.0, 0.5, p=0.6),
    "RandomPlanckianJitter": lambda: K.RandomPlanckianJitter(p=0.6),
    "RandomPlasmaBrightness": lambda: K.RandomPlasmaBrightness(p=0.6),
    "RandomPlasmaContrast": lambda: K.RandomPlasmaContrast(p=0.6),
    "RandomPlasmaShadow": lambda: K.RandomPlasmaShadow(p=0.6),
    "RandomPosterize": lambda: K.RandomPosterize(3, p=0.6),
    "RandomRGBShift": lambda: K.RandomRGBShift(p=0.6),
    "RandomRain": lambda: K.RandomRain((3, 5), (3, 5), (1, 3), p=0.6),
    "RandomSaltAndPepperNoise": lambda: K.RandomSaltAndPepperNoise(p=0.6),
    "RandomSaturation": lambda: K.RandomSaturation((0.5, 1.5), p=0.6),
    "RandomSharpness": lambda: K.RandomSharpness(0.5, p=0.6),
    "RandomSnow": lambda: K.RandomSnow(p=0.6),
    "RandomSolarize": lambda: K.RandomSolarize(p=0.6),
    "ColorJiggle": lambda: K.ColorJiggle(0.3, 0.3, 0.3, 0.1, p=0.6),
    "ColorJitter": lambda: K.ColorJitter(0.3, 0.3, 0.3, 0.1, p=0.6),
}
DENSE = {
    "RandomElasticTransform": lambda: K.RandomElasticTransform(p=0.6),
    "RandomFisheye": lambda: K.RandomFisheye(*[torch.tensor([-0.3, 0.3])] * 2, torch.tensor([0.9, 1.0]), p=0.6),
    "RandomThinPlateSpline": lambda: K.RandomThinPlateSpline(p=0.6),
}


def photos(targets: str, *, padded: bool = False) -> Batch:
    """Return images with the targets of a policy, or with all."""
    batch = scene(0, count=4, padded=padded)
    fields = {
        "all": ("boxes", "box_label", "box_ignore", "mask", "keypoints", "keypoint_visible"),
        "classification": ("label",),
        "segmentation": ("mask",),
        "detection": ("boxes", "box_label", "box_ignore"),
    }[next((task for task in ("classification", "segmentation", "detection") if task in targets), "all")]
    return Batch(batch.image, size=batch.size, **{name: getattr(batch, name) for name in fields})


def objects(*, padded: bool = False) -> Batch:
    """Return images with boxes, and with instance masks and fields of the boxes."""
    batch = photos("all", padded=padded)
    rows = torch.arange(batch.boxes.shape[1])
    masks = batch.mask[:, None] == rows[:, None, None] + 1
    return batch.replace(instance_masks=masks, fields={"row": rows.expand(masks.shape[:2]).clone()})


def following(method: str, *, padded: bool = False) -> Case:
    def case(put: Put) -> Callable[[], Any]:
        pipeline = put(AugmentationPipeline(POLICIES["detection_train"](), preprocess=RECORD, box_method=method))
        batch = send(put, objects(padded=padded))

        def step() -> Any:
            out = pipeline.augment(batch, seed=3)[0]
            return fields(out), out.fields

        return step

    return case


def send(put: Put, batch: Batch) -> Batch:
    """Return a batch on the device as ``Batch.to`` does, with its sizes on the CPU as well."""
    out: Batch = put(batch)
    if batch.size is not None:
        out.remember_size(batch.size)
    return out


def fields(batch: Batch) -> dict[str, Any]:
    """Return a batch's tensors by name."""
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def augmenting(
    make: Callable[[], Any], targets: str, *, padded: bool = False, put_alone: bool = False, **options: Any
) -> Case:
    def case(put: Put) -> Callable[[], Any]:
        pipeline, given = (
            put(AugmentationPipeline(make(), preprocess=RECORD, **options)),
            photos(targets, padded=padded),
        )
        batch = put(given) if put_alone else send(put, given)
        return lambda: fields(pipeline.augment(batch, seed=3)[0])

    return case


def replaying(name: str) -> Case:
    def case(put: Put) -> Callable[[], Any]:
        pipeline, batch = put(AugmentationPipeline(POLICIES[name](), preprocess=RECORD)), put(photos(name))
        params = pipeline.augment(batch, seed=1)[1]
        return lambda: fields(pipeline.replay(batch, params))

    return case


def inverting(put: Put) -> Callable[[], Any]:
    pipeline, batch = AugmentationPipeline(STACKS["chain"](), preprocess=RECORD), put(photos("all", padded=True))
    out, params = pipeline.augment(batch, seed=1)
    return lambda: (
        *pipeline.inverse(out.image, params),
        pipeline.inverse_boxes(out.boxes, params),
        pipeline.inverse_keypoints(out.keypoints, params),
    )


def paired(put: Put) -> Callable[[], Any]:
    """Keypoints of instances, in pairs that mirroring swaps: augmented, and brought back."""
    pipeline = put(AugmentationPipeline(policies.detection_train(40), preprocess=RECORD, keypoint_flip_pairs=[(2, 3)]))
    batch = put(figures(1))

    def step() -> Any:
        out, params = pipeline.augment(batch, seed=2)
        back = pipeline.inverse_keypoints(out.keypoints, params)
        return fields(out), back, pipeline.inverse_keypoint_order(out.keypoint_visible, params)

    return step


def preparing(record: Preprocess, *, padded: bool = True) -> Case:
    def case(put: Put) -> Callable[[], Any]:
        pipeline = put(AugmentationPipeline(preprocess=record).eval())
        batch = send(put, photos("all", padded=padded))

        def step() -> Any:
            out, params = pipeline.prepare(batch)
            return fields(out), pipeline.inverse(out.image, params)

        return step

    return case


def mixing(make: Callable[[], nn.Module], targets: tuple[str, ...]) -> Case:
    def case(put: Put) -> Callable[[], Any]:
        given = photos("all", padded=True).replace(keypoints=None, keypoint_visible=None, label=torch.arange(4) % 3)
        objects = given.mask[:, None] == 1 + given.box_label[..., None, None]  # padding of -1 would be the background
        given = given.replace(instance_masks=objects & (given.box_label >= 0)[..., None, None])
        dropped = {"label", "boxes", "box_label", "box_ignore", "mask", "instance_masks"} - set(targets)
        mix, batch = make(), put(given.replace(**dict.fromkeys(dropped)))

        def step() -> Any:
            torch.manual_seed(0)
            return fields(mix(batch))

        return step

    return case


def step_of(policy: str, *, drawn: bool = False) -> Case:
    """From a batch on the device to its loss, with a network; where all is drawn, the part that a graph can capture."""

    def case(put: Put) -> Callable[[], Any]:
        torch.manual_seed(0)
        network: nn.Module
        if "classification" in policy:
            network = MobileViTClassifier("xxs", num_classes=3)
        elif "segmentation" in policy:
            network = DeepLabV3("xxs", num_classes=4, head_dropout=0.0)
        else:
            network = SSDLite("xxs", num_classes=5)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        pipeline, batch = put(AugmentationPipeline(POLICIES[policy](), preprocess=RECORD)), put(photos(policy))
        put(network.train())

        runs = iter([pipeline._plan(batch, 3, None) for _ in range(2 * drawn)])

        def step() -> Any:
            if drawn:
                image, targets = pipeline._carry_out(pipeline, next(runs), batch, RECORD.output_size, True)
                seen = replace_checked(batch, image=image, **targets)
            else:
                seen = pipeline.augment(batch, seed=3)[0]
            if isinstance(network, SSDLite):
                logits, deltas = network(seen.image)
                anchors = network.anchors(seen.image.shape[-2:], device=deltas.device)
                targets = assign_targets(anchors, seen.boxes / 40, seen.box_label + 1, seen.box_ignore)
                loss = multibox_loss(logits, deltas, *targets).total
            elif isinstance(network, DeepLabV3):
                loss = pixel_cross_entropy(network(seen.image), seen.mask)
            else:
                loss = nn.functional.cross_entropy(network(seen.image), seen.label)
            return loss.detach()

        return step

    return case


def loss_of(function: Callable[..., Any]) -> Case:
    def case(put: Put) -> Callable[[], Any]:
        logits, target = put((torch.randn(2, 4, 8, 8), torch.randint(0, 5, (2, 8, 8))))
        return lambda: function(logits, target, ignore_index=4)

    return case


def matching(put: Put) -> Callable[[], Any]:
    boxes = torch.rand(2, 9, 2).mul(0.6)
    boxes = torch.cat([boxes, boxes + 0.1 + 0.3 * torch.rand(2, 9, 2)], -1)
    anchors = torch.rand(40, 4).mul(0.5).add(0.1)
    labels = torch.randint(-1, 4, (2, 9))
    given = put((anchors, boxes, labels, torch.rand(2, 9) < 0.2))
    return lambda: assign_targets(*given)


def decoding(put: Put) -> Callable[[], Any]:
    torch.manual_seed(0)
    network = put(SSDLite("xxs", num_classes=4).eval())
    image = torch.empty(2, 3, 64, 64)
    count = network.anchors((64, 64), device=torch.device("cpu")).shape[0]
    logits, deltas = put((torch.randn(2, count, 4), 0.1 * torch.randn(2, count, 4)))
    size = (image.shape[-2], image.shape[-1])
    return lambda: [one._asdict() for one in network.decode(logits, deltas, size, max_detections=5)]


def found(count: int = 2) -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[2.0, 3.0, 20.0, 30.0], [10.0, 12.0, 34.0, 36.0], [11.0, 12.0, 34.0, 38.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 1])
    return [{"boxes": boxes, "scores": scores, "labels": labels} for _ in range(count)]


def merging(kind: str, merge: str = "mean") -> Case:
    def case(put: Put) -> Callable[[], Any]:
        image, boxes = put((torch.rand(2, 3, 40, 40), found()))
        predict = {
            "logits": lambda seen: seen.mean((2, 3)),
            "maps": lambda seen: seen[..., ::2, ::2],
            "boxes": lambda seen: boxes,
        }[kind]
        tta = TestTimeAugmentation(predict, "flip+rotation", merge)
        return lambda: tta(image)

    return case


def predicting(put: Put) -> Callable[[], Any]:
    batch, boxes = send(put, photos("detection", padded=True)), put(found(4))
    pipeline = put(AugmentationPipeline(preprocess=RECORD))
    return lambda: predict_boxes(lambda image: boxes, batch, pipeline)


def scoring(make: Callable[[], Any]) -> Case:
    """The updates of metrics; their checks are torchmetrics' and off, as Lightning's steps have them."""

    def case(put: Put) -> Callable[[], Any]:
        logits, label, boxes = put((torch.randn(8, 3), torch.arange(8) % 3, found()))
        metric = make().to(logits.device)

        def step() -> Any:
            metric.reset()
            metric.update(*((boxes, boxes) if isinstance(metric, CocoMetrics) else (logits, label)))
            return dict(metric.metric_state)

        return step

    return case


MIXED = ("label", "boxes", "box_label", "box_ignore", "mask")
LETTERBOX = Preprocess((40, 48), letterbox=True)
# What runs in seconds. Steps and inverse must not wait; what the others wait for is in the table.
STEPS: dict[str, Case] = {
    **{f"augment: {name}": augmenting(make, name) for name, make in POLICIES.items()},
    **{f"augment, several sizes: {name}": augmenting(make, name, padded=True) for name, make in POLICIES.items()},
    **{f"step: {name}": step_of(name) for name in ("classification_strong", "segmentation_train", "detection_train")},
    **{
        f"step, from what was drawn: {name}": step_of(name, drawn=True)
        for name in ("classification_train", "segmentation_train", "detection_train")
    },
    **{f"augment, instance masks: {method}": following(method) for method in ("corners", "ellipse", "mask")},
    "augment, instance masks, several sizes": following("corners", padded=True),
    "augment: antialiased": augmenting(POLICIES["segmentation_train"], "segmentation_train", antialias=True),
    "augment: letterbox": augmenting(lambda: policies.detection_train(40), "detection"),
    "augment and inverse: keypoints in pairs": paired,
    "mix: mixup": mixing(lambda: Mix(3, cutmix=0.0), ("label",)),
    "mix: cutmix": mixing(lambda: Mix(3, mixup=0.0), ("label",)),
    "mix: mosaic of targets": mixing(lambda: Mosaic(0.7, num_classes=3), MIXED),
    "mix: mixup of targets": mixing(lambda: MixUp(0.7, num_classes=3), tuple(n for n in MIXED if n != "mask")),
    "mix: cutmix of targets": mixing(lambda: CutMix(0.7, num_classes=3, max_boxes=5), MIXED),
    "mix: copy-paste of targets": mixing(lambda: CopyPaste(0.7, num_classes=3), (*MIXED, "instance_masks")),
    "mix: mosaic of instance masks": mixing(lambda: Mosaic(0.7, num_classes=3), (*MIXED, "instance_masks")),
    "augment: mosaic": augmenting(lambda: policies.detection_train(40, mosaic=0.7), "detection"),
    "augment: cutmix": augmenting(lambda: policies.segmentation_train(40, cutmix=0.7), "segmentation", padded=True),
    **{f"replay: {name}": replaying(name) for name in ("segmentation_train", "detection_train")},
    "inverse": inverting,
    "prepare": preparing(RECORD, padded=False),
    "prepare, several sizes": preparing(RECORD),
    "prepare, several sizes of result": preparing(Preprocess(40)),
    "prepare, letterbox": preparing(LETTERBOX),
    "match and assign": matching,
    "loss: cross-entropy": loss_of(pixel_cross_entropy),
    "test-time augmentation: logits": merging("logits"),
    "test-time augmentation: maps": merging("maps"),
}
OTHERS: dict[str, Case] = {
    "loss: Dice": loss_of(pixel_dice),
    "loss: Lovász": loss_of(pixel_lovasz),
    "test-time augmentation: boxes, mean": merging("boxes"),
    "test-time augmentation: boxes, vote": merging("boxes", "vote"),
    "SSDLite.decode": decoding,
    "predict_boxes": predicting,
    "metrics: accuracy": scoring(lambda: MulticlassAccuracy(3, validate_args=False)),
    "metrics: confusion matrix": scoring(lambda: MulticlassConfusionMatrix(3, validate_args=False)),
    "metrics: COCO": scoring(lambda: CocoMetrics(["a", "b", "c"])),
}
SINGLE: dict[str, Case] = {
    **{f"single: {name}": augmenting(make, "all") for name, make in STACKS.items()},
    **{
        f"single, sizes on the device alone: {name}": augmenting(make, "all", padded=True, put_alone=True)
        for name, make in STACKS.items()
    },
    **{f"single: {name}": augmenting(lambda make=make: stack(make()), "all") for name, make in VALUES.items()},
    **{f"single: {name}": augmenting(lambda make=make: stack(make()), "segmentation") for name, make in DENSE.items()},
}


def run(case: Case) -> tuple[Any, Any, Pretended]:
    """Return what a case gives on the CPU and on the pretended device, and this with the counts of its second run."""
    torch.manual_seed(0)
    expected = case(lambda value: value)()
    with Pretended() as device:
        torch.manual_seed(0)
        step = case(device.put)
        result = step()  # sends the constants, which stay
        device.reset()
        step()
    return expected, device.get(result), device


def row(device: Pretended) -> dict[str, Any]:
    """Return a row of the table: the number of uploads, and what blocks or waits, by its place."""
    out: dict[str, Any] = {"uploads": device.uploads.total()}
    for name in ("blocking", "waits"):
        counter = getattr(device, name)
        if counter:
            out[name] = {f"{what}, {place}": count for (what, place), count in sorted(counter.items())}
    return out


def main() -> None:
    """Write the table."""
    table = {name: row(run(case)[2]) for name, case in {**STEPS, **OTHERS, **SINGLE}.items()}
    json.dump(table, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
