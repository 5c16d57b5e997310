"""``kornia-mvit predict``: classes of images or of their pixels, or objects in them, as JSON lines and pictures."""

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.files import check_local, printable, write_whole
from kornia_mvit.inference.detection import predict_boxes
from kornia_mvit.inference.sliding_window import SlidingWindow, predict_labels
from kornia_mvit.inference.tta import TestTimeAugmentation
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.models.mobilevit import MobileViTClassifier
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

    from kornia_mvit.weights.cards import Model

__all__ = ["add_arguments", "run"]

IGNORED = 255  # what label images hold where nothing is known
_CHUNK = 2**22  # pixels whose classes are counted at a time
_SURE = 0.3  # least score of boxes, unless another is asked for
_OPTIONS = {  # that one task alone has
    "classification": ("top", "batch_size"),
    "segmentation": ("labels", "classes", "window", "stride"),
    "detection": ("score", "coco", "annotations"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--checkpoint",
        "--weights",
        required=True,
        metavar="WEIGHTS",
        help="a checkpoint that fit wrote, one of Apple, timm or transformers, or the name of published weights",
    )
    parser.add_argument("--draw", metavar="DIR", help="also write each picture, with what is in it, into this folder")
    parser.add_argument("--tta", metavar="NAME", help="test-time augmentation, such as flip or flip+scale")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do about a file that cannot be read"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="most pixels that an image may have when it is resized for the network; larger ones count as files that "
        "cannot be read (default: as the checkpoint says, or 16,777,216)",
    )
    parser.add_argument("--device", default="cpu", help="where to compute, such as cpu or cuda (default cpu)")
    labels = parser.add_argument_group("of classifiers")
    labels.add_argument("--top", type=int, metavar="N", help="classes to list for each image (default 3)")
    labels.add_argument("--batch-size", type=int, metavar="N", help="images at a time (default 32)")
    pixels = parser.add_argument_group("of models for segmentation")
    pixels.add_argument("--labels", metavar="DIR", help="write a label image of each image into this folder")
    pixels.add_argument("--classes", metavar="FILE", help="names and colours of the classes, as YAML or JSON")
    pixels.add_argument("--window", type=int, metavar="PIXELS", help="side of the windows to see large images in")
    pixels.add_argument("--stride", type=int, metavar="PIXELS", help="from window to window (default 2/3 of one)")
    boxes = parser.add_argument_group("of detectors")
    boxes.add_argument("--score", type=float, metavar="SHARE", help=f"least score of a box (default {_SURE})")
    boxes.add_argument("--coco", metavar="FILE", help="also write all boxes into this file, as COCO has results")
    boxes.add_argument(
        "--annotations", metavar="FILE", help="COCO annotations whose numbers of images and classes --coco is to use"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Of a classifier the line of an image tells its likeliest classes, of a model for segmentation its height and width,
    and the share of the pixels that each class has, of a detector its boxes: left, top, right and bottom edges in
    pixels of the image.

    Args:
        args: what :func:`add_arguments` added.

    Returns:
        The exit status.

    Raises:
        DataError: for an image that cannot be read, or, where these are skipped, if none can.
        CheckpointError: if the model gives numbers that are not finite.
    """
    from kornia_mvit.weights.cards import task_of
    from kornia_mvit.weights.registry import from_pretrained

    for name in ("top", "batch_size", "window", "stride", "max_pixels"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not at least 1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = from_pretrained(args.checkpoint)
    task = task_of(model)
    foreign = [name for other, names in _OPTIONS.items() if other != task for name in names]
    if given := [f"--{name.replace('_', '-')}" for name in foreign if getattr(args, name) is not None]:
        raise ValueError(f"{args.checkpoint} is for {task}; leave out {', '.join(given)}")
    if not model.num_classes:
        raise ValueError(f"{args.checkpoint} has no classes: it is a backbone, or one whose classifier was taken off")
    try:
        model.to(args.device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not compiled in, or no driver
        raise ValueError(f"device {args.device!r} cannot be used here: {error}") from None
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(printable(f"kornia-mvit: warning: {message}"), file=sys.stderr)
    model.register_forward_hook(lambda _module, _given, out: _check_finite(out, args.checkpoint))
    with torch.inference_mode():
        if isinstance(model, DeepLabV3):
            _segment(model, args)
        elif isinstance(model, SSDLite):
            _detect(model, args)
        else:
            _classify(model, args)
    return 0


def _files(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """List the images, each with its place below what was given."""
    from kornia_mvit.data.reading import find_images

    out = []
    for given in args.images:
        if not given:
            raise ValueError("the path of an image is empty; give a file or a folder")
        check_local(given)
        path = Path(given)
        found = find_images(path) if path.is_dir() else [path]
        out += [(file, file.relative_to(path) if path.is_dir() else Path(file.name)) for file in found]
    return out


def _check_finite(out: Tensor | tuple[Tensor, ...], checkpoint: str) -> None:
    from kornia_mvit.weights.files import CheckpointError

    if not all(bool(torch.isfinite(one).all()) for one in ((out,) if isinstance(out, Tensor) else out)):
        raise CheckpointError(f"{checkpoint} gives numbers that are not finite; its weights are damaged")


class _Images:
    """The images, read one after another; tells of those that are skipped.

    Args:
        files: their paths.
        args: the command's arguments.
        preprocess: what they go through, whose bound on their size counts.

    Raises:
        DataError: at the end, if all were skipped.
    """

    def __init__(self, files: list[tuple[Path, Path]], args: argparse.Namespace, preprocess: Preprocess) -> None:
        self.files = files
        self.skip = args.on_error == "skip"
        self.preprocess = preprocess
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[int, Path, Tensor]]:
        """Give images with their numbers and paths."""
        from kornia_mvit.data.reading import DataError, read_image

        for number, (file, _) in enumerate(self.files):
            image = None
            with self.refused(file):
                read = read_image(file)
                self.preprocess.crop_box(*self.preprocess.resized_size(*read.shape[1:]))
                image = read
            if image is not None:
                yield number, file, image
        if self.skipped == len(self.files):
            raise DataError(f"none of the {len(self.files)} images could be read")

    @contextmanager
    def refused(self, file: Path) -> Iterator[None]:
        """Name the image in errors about it, and skip it if asked to."""
        from kornia_mvit.data.reading import DataError
        from kornia_mvit.weights.files import CheckpointError

        try:
            yield
        except CheckpointError:
            raise
        except ValueError as error:
            if not isinstance(error, DataError):
                error = DataError(f"cannot take image {file}: {error}")
            if not self.skip:
                raise error from None
            self.skipped += 1
            print(printable(f"kornia-mvit: skipped: {' '.join(str(error).split())}"), file=sys.stderr)


def _preprocess(model: "Model", args: argparse.Namespace, default: Preprocess) -> Preprocess:
    record = model.preprocess or default
    return record if args.max_pixels is None else replace(record, max_pixels=args.max_pixels)


def _look(model: nn.Module, tta: str | None) -> nn.Module:
    return model if tta is None else TestTimeAugmentation(model, tta)


def _print(line: dict[str, Any]) -> None:
    """Print a line of JSON, in which what a terminal would not show is escaped."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text), flush=True)


def _make_folder(path: str) -> None:
    check_local(path)
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"--draw {path} is a file; give a folder")
    Path(path).mkdir(parents=True, exist_ok=True)


def _draw(picture: "Image.Image", folder: str, number: int, file: Path) -> None:
    with write_whole(Path(folder) / f"{number:04d}_{file.stem}.png") as beside:
        picture.save(beside)


# ---------------------------------------------------------------------------------------------------- classification

_CELL = 320  # side of the pictures of classifiers


def _classify(model: MobileViTClassifier, args: argparse.Namespace) -> None:
    from kornia_mvit.draw.images import fit_image

    record = _preprocess(model, args, Preprocess())
    look, prepare = _look(model, args.tta), record.module()
    images = _Images(_files(args), args, record)
    if args.draw:
        _make_folder(args.draw)
    step = (args.batch_size or 32) if record.output_size is not None else 1
    batch: list[tuple[int, Path, Tensor, Tensor | None]] = []
    for number, file, image in images:
        if len(batch) == step:
            _rank(model, look, batch, args)
            batch = []
        with images.refused(file):  # small, as photographs may be large
            batch.append((number, file, prepare(image), fit_image(image, _CELL) if args.draw else None))
            if step == 1:  # of a size of its own, which the network may refuse
                _rank(model, look, batch, args)
                batch = []
    if batch:
        _rank(model, look, batch, args)


def _rank(
    model: MobileViTClassifier,
    look: nn.Module,
    batch: list[tuple[int, Path, Tensor, Tensor | None]],
    args: argparse.Namespace,
) -> None:
    """Print the likeliest classes of images, and draw them if asked to."""
    from kornia_mvit.draw.images import draw_predictions

    names = model.class_names or tuple(map(str, range(model.num_classes)))
    probabilities = look(torch.stack([image for _, _, image, _ in batch]).to(args.device)).float().softmax(-1).cpu()
    for (number, file, _, small), row in zip(batch, probabilities, strict=True):
        best = row.topk(min(args.top or 3, len(names)))
        ranked = [
            {"class": names[k], "probability": round(p, 6)}
            for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        _print({"path": str(file), **ranked[0], "top": ranked})
        if small is not None:
            _draw(draw_predictions(small[None], row[None], class_names=names, cell=_CELL), args.draw, number, file)


# ------------------------------------------------------------------------------------------------------ segmentation


def _segment(model: DeepLabV3, args: argparse.Namespace) -> None:
    from kornia_mvit.draw.images import draw_overlay, label_image

    names, colours = _classes(model, args.classes)
    files = _files(args)
    targets = _targets(files, args.labels)
    # The whole image, which a crop would cut off.
    preprocess = replace(_preprocess(model, args, Preprocess(size=None)), crop=None)
    pipeline = AugmentationPipeline(preprocess=preprocess, ignore_index=IGNORED)
    if args.stride is not None and args.window is None:
        raise ValueError(f"--stride {args.stride} is that of windows; give --window too")
    look = _look(model if args.window is None else SlidingWindow(model, args.window, args.stride), args.tta)
    if args.draw:
        _make_folder(args.draw)
    images = _Images(files, args, preprocess)
    for number, file, image in images:
        mask = torch.empty(0)
        with images.refused(file):
            mask = predict_labels(look, image.to(args.device), pipeline).cpu()
        if not mask.numel():
            continue
        strips = torch.split(mask.flatten(), _CHUNK)
        counts = torch.stack([torch.bincount(strip, minlength=len(names)) for strip in strips]).sum(0).tolist()
        line: dict[str, Any] = {
            "path": str(file),
            "height": image.shape[1],
            "width": image.shape[2],
            "share": {name: round(n / mask.numel(), 6) for name, n in zip(names, counts, strict=True)},
        }
        if args.labels:
            with write_whole(targets[number]) as beside:
                label_image(mask, colours).save(beside)
            line["labels"] = str(targets[number])
        if args.draw:
            _draw(draw_overlay(image, mask, names, colours), args.draw, number, file)
        _print(line)


def _classes(model: DeepLabV3, path: str | None) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...] | None]:
    """Give the names of the classes, and their colours where a file or the checkpoint tells them."""
    names = model.class_names or tuple(map(str, range(model.num_classes)))
    if path is None:
        return names, model.class_colours
    from kornia_mvit.data.classes import read_classes

    found = read_classes(path)
    if len(found.names) != model.num_classes:
        raise ValueError(f"{path} has {len(found.names)} classes, the model {model.num_classes}")
    return found.names, found.colours


def _targets(files: list[tuple[Path, Path]], folder: str | None) -> list[Path]:
    """Give where the label image of each image goes: as SegmentationFolderData looks for it."""
    if folder is None:
        return []
    seen: dict[Path, Path] = {}
    for file, inner in files:
        target = (Path(folder) / inner).with_suffix(".png")
        if target in seen:
            raise ValueError(f"the label images of {seen[target]} and {file} would both be {target}")
        if target.resolve() == file.resolve():
            raise ValueError(f"the label image of {file} would overwrite it; give --labels another folder")
        seen[target] = file
    return list(seen)


# --------------------------------------------------------------------------------------------------------- detection


def _detect(model: SSDLite, args: argparse.Namespace) -> None:
    from kornia_mvit.draw.images import draw_detections

    sure = _SURE if args.score is None else args.score
    if not 0 <= sure <= 1:
        raise ValueError(f"--score {sure} is not in [0, 1]")
    if args.annotations is not None and args.coco is None:
        raise ValueError(f"--annotations {args.annotations} is for --coco; give that too")
    if args.coco is not None and Path(args.coco).is_dir():
        raise ValueError(f"--coco {args.coco} is a folder; give a file")
    names = model.class_names or tuple(map(str, range(model.num_classes - 1)))
    files = _files(args)
    numbers = None if args.coco is None else _coco_numbers(args.annotations, files, names)
    preprocess = _preprocess(model, args, Preprocess((320, 320)))
    pipeline = AugmentationPipeline(preprocess=preprocess)

    def find(image: Tensor) -> list[dict[str, Tensor]]:
        logits, deltas = model(image)
        found = model.decode(logits, deltas, (image.shape[-2], image.shape[-1]), max_detections=100)
        return [one._asdict() for one in found]

    look = find if args.tta is None else TestTimeAugmentation(find, args.tta)
    if args.draw:
        _make_folder(args.draw)
    results: list[dict[str, Any]] = []
    images = _Images(files, args, preprocess)
    for number, file, image in images:
        found: dict[str, Tensor] = {}
        with images.refused(file):
            (found,) = predict_boxes(look, Batch(image[None].to(args.device)), pipeline)
        if not found:
            continue
        found = {name: value.cpu() for name, value in found.items()}
        if numbers is not None:
            results += _coco_rows(found, *numbers, number)
        found = {name: value[found["scores"] >= sure] for name, value in found.items()}
        boxes = [
            {"class": names[label], "score": round(score, 6), "box": [round(v, 2) for v in box]}
            for label, score, box in zip(*(found[k].tolist() for k in ("labels", "scores", "boxes")), strict=True)
        ]
        if args.draw:
            picture = draw_detections(image, found["boxes"], found["labels"], found["scores"], names)
            _draw(picture, args.draw, number, file)
        _print({"path": str(file), "height": image.shape[1], "width": image.shape[2], "boxes": boxes})
    if args.coco is not None:
        with write_whole(args.coco) as beside:
            beside.write_text(json.dumps(results), encoding="utf-8")


def _coco_numbers(
    annotations: str | None, files: list[tuple[Path, Path]], names: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    """Give the number of each image and of each class, in COCO's results.

    Those of an annotation file, found by the images' file names and the classes' names; else the images' own order
    and the classes from 1.
    """
    if annotations is None:
        return list(range(len(files))), list(range(1, len(names) + 1))
    from kornia_mvit.data.formats.coco import read_coco

    known = read_coco(annotations)
    known_files = [Path(name).name for name in known.files]
    for kind, wanted, given in (
        ("image", [f.name for f, _ in files], known_files),
        ("class", names, known.class_names),
    ):
        counts = Counter(given)
        if wrong := [name for name in wanted if counts[name] != 1]:
            number = counts[wrong[0]]
            raise ValueError(
                f"{annotations} has the {kind} {wrong[0]!r} {number} times"
                if number
                else f"{annotations} has no {kind} {wrong[0]!r}"
            )
    seen: dict[str, Path] = {}
    for file, _ in files:
        if file.name in seen:
            raise ValueError(f"{seen[file.name]} and {file} would both be image {file.name!r} of {annotations}")
        seen[file.name] = file
    images = dict(zip(known_files, known.image_ids, strict=True))
    classes = dict(zip(known.class_names, known.category_ids, strict=True))
    return [images[file.name] for file, _ in files], [classes[name] for name in names]


def _coco_rows(
    found: dict[str, Tensor], images: list[int], classes: list[int], number: int
) -> Iterator[dict[str, Any]]:
    for box, label, score in zip(*(found[k].tolist() for k in ("boxes", "labels", "scores")), strict=True):
        left, top, right, bottom = box
        sides = [round(v, 3) for v in (left, top, right - left, bottom - top)]
        yield {
            "image_id": images[number],
            "category_id": classes[int(label)],
            "bbox": sides,
            "score": round(score, 6),
        }
