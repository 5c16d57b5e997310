"""``kornia-mvit predict``: :func:`~kornia_mvit.predict`, as JSON lines and pictures."""

import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kornia_mvit.cli.frame import Command
from kornia_mvit.data.reading import DataError, find_images
from kornia_mvit.files import check_local, printable, write_whole
from kornia_mvit.inference.network import Network, load_network
from kornia_mvit.inference.predictor import Predictor
from kornia_mvit.inference.results import ClassificationResult, DetectionResult, Result, SegmentationResult
from kornia_mvit.inference.sources import file_name, is_address

__all__ = ["COMMAND", "main", "run"]

_SCORE = 0.3  # least score of boxes, unless another is asked for
_OPTIONS = {  # that one task alone has
    "classification": ("top",),
    "segmentation": ("labels", "classes", "window", "stride"),
    "detection": ("score", "coco", "annotations"),
}

Files = list[tuple[str, Path]]  # the path or address of each image, and its place below what was given


def run(
    images: Sequence[str],
    *,
    checkpoint: str,
    draw: str | None = None,
    tta: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    max_pixels: int | None = None,
    device: str = "cpu",
    top: int | None = None,
    batch_size: int | None = None,
    labels: str | None = None,
    classes: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    score: float | None = None,
    coco: str | None = None,
    annotations: str | None = None,
) -> None:
    """Classify images or their pixels, or find objects, as the checkpoint is for: a JSON line each.

    Args:
        images: image files, folders of them, or http(s) addresses.
        checkpoint: a checkpoint of fit, Apple, timm or transformers, the name of published weights, or a file that
            export wrote.
        draw: write a picture of each image, with what is predicted, into this folder too.
        tta: test-time augmentation, such as flip or flip+scale.
        on_error: what happens with a file that cannot be read.
        max_pixels: most pixels that an image may have when it is resized for the network; larger ones count as files
            that cannot be read (default: as the checkpoint says, or 16,777,216).
        device: where to compute, such as cpu or cuda.
        top: number of classes to list for each image (default: 3).
        batch_size: most images at a time (default: 32).
        labels: write a label image of each image into this folder.
        classes: names and colours of the classes, as YAML or JSON.
        window: side of the windows in which large images are segmented.
        stride: pixels from window to window (default: two thirds of one).
        score: least score of a box (default: 0.3).
        coco: write all boxes, whatever the least score, into this file too, as COCO has results.
        annotations: COCO annotations whose numbers of images and classes --coco uses.

    Raises:
        DataError: for an image that cannot be read, or, where these are skipped, if none can.
        CheckpointError: if the model gives numbers that are not finite.
        ValueError: for options that do not fit the model.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("top", "batch_size", "window", "stride", "max_pixels"):
        if given.get(name, 1) < 1:
            raise ValueError(f"{_dashed(name)} {given[name]} is not at least 1")
    network = _load(checkpoint, device)
    foreign = [name for task, names in _OPTIONS.items() if task != network.task for name in names]
    if wrong := [_dashed(name) for name in foreign if name in given]:
        raise ValueError(f"{checkpoint} is for {network.task}; leave out {', '.join(wrong)}")
    files = _files(images)
    options = {name: given[name] for name in ("tta", "batch_size", "max_pixels", "window", "stride") if name in given}
    output: _Output
    if network.task == "segmentation":
        output = _LabelOutput(network, files, labels, classes)
        if stride is not None and window is None:
            raise ValueError(f"--stride {stride} is that of windows; give --window too")
    elif network.task == "detection":
        output = _BoxOutput(network, files, _SCORE if score is None else score, coco, annotations)
    else:
        output = _Output(top or 3)
    predictor = Predictor(network, score=0.0, **options)
    if draw is not None:
        _make_folder(draw)
    for result in predictor.stream(
        [file for file, _ in files], on_error=_say_skipped if on_error == "skip" else "raise"
    ):
        shown, line = output.take(result)
        if draw is not None:
            shown.save(draw)
        _print(line)
    output.close()


def _number(text: str) -> float:
    """Read a number, nan among them, so that the error is the command's own."""
    return float(text)


COMMAND = Command(
    name="predict",
    function=run,
    positional=("images...",),
    names={"checkpoint": "--checkpoint --weights"},
    metavars={
        "images": "IMAGE",
        "checkpoint": "WEIGHTS",
        "draw": "DIR",
        "tta": "NAME",
        "labels": "DIR",
        "classes": "FILE",
        "coco": "FILE",
        "annotations": "FILE",
        "window": "PIXELS",
        "stride": "PIXELS",
        **dict.fromkeys(("max_pixels", "top", "batch_size"), "N"),
    },
    groups={
        "of classifiers": ("top",),
        "of models for segmentation": ("labels", "classes", "window", "stride"),
        "of detectors": ("score", "coco", "annotations"),
    },
    types={"score": _number},
    example="  kornia-mvit predict photo.jpg more/photos --checkpoint best.ckpt --draw pictures\n"
    '  {"path": "photo.jpg", "class": "tulip", "probability": 0.93, "top": [...]}, and pictures/0000_photo.png',
)


def main(argv: Sequence[str]) -> int:
    """See :meth:`Command.run`."""
    run(**COMMAND.parse(argv[1:]))
    return 0


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _load(checkpoint: str, device: str) -> Network:
    """Return the network of a checkpoint or an exported file; warnings about it take a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = load_network(checkpoint, device)
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(printable(f"kornia-mvit: warning: {message}"), file=sys.stderr)
    return network


def _files(images: Sequence[str]) -> Files:
    """List the images, each with its place below what was given."""
    out: Files = []
    for given in images:
        if not given:
            raise ValueError("the path of an image is empty; give a file or a folder")
        if is_address(given):
            out.append((given, Path(file_name(given) or "image")))
            continue
        check_local(given)
        path = Path(given)
        found = find_images(path) if path.is_dir() else [path]
        out += [(str(file), file.relative_to(path) if path.is_dir() else Path(file.name)) for file in found]
    return out


def _say_skipped(error: DataError) -> None:
    print(printable(f"kornia-mvit: skipped: {' '.join(str(error).split())}"), file=sys.stderr)


def _print(line: dict[str, Any]) -> None:
    """Print a line of JSON, in which what a terminal would not show is escaped."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text), flush=True)


def _make_folder(path: str) -> None:
    check_local(path)
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"--draw {path} is a file; give a folder")
    Path(path).mkdir(parents=True, exist_ok=True)


# ------------------------------------------------------------------------------------------------------ the three tasks


class _Output:
    """What is printed and written of the results of classifiers.

    Args:
        top: number of classes to list.
    """

    def __init__(self, top: int = 3) -> None:
        self.top = top

    def take(self, result: Any) -> tuple[Result, dict[str, Any]]:
        """Write what is asked for of a result, and return what is drawn and what is printed of it."""
        assert isinstance(result, ClassificationResult)
        return result, {"path": result.path, **result.ranking(self.top)}

    def close(self) -> None:
        """Write what belongs to all results."""


class _LabelOutput(_Output):
    """Of models for segmentation: label images.

    Args:
        network: what predicts; takes on the names and colours of ``classes``.
        files: the images.
        labels: folder for label images, or None.
        classes: file of names and colours, or None.
    """

    def __init__(self, network: Network, files: Files, labels: str | None, classes: str | None) -> None:
        super().__init__()
        if classes is not None:
            from kornia_mvit.data.classes import read_classes

            found = read_classes(classes)
            if len(found.names) != len(network.class_names):
                raise ValueError(f"{classes} has {len(found.names)} classes, the model {len(network.class_names)}")
            network.class_names, network.class_colours = tuple(found.names), found.colours
        self.targets = [] if labels is None else _targets(files, Path(labels))

    def take(self, result: Any) -> tuple[Result, dict[str, Any]]:
        assert isinstance(result, SegmentationResult)
        line = result.to_dict()
        if self.targets:
            target = self.targets[result.index]
            with write_whole(target) as beside:
                result.label_image().save(beside)
            line["labels"] = str(target)
        return result, line


def _targets(files: Files, folder: Path) -> list[Path]:
    """Return where the label image of each image goes: as SegmentationFolderData looks for it."""
    seen: dict[Path, str] = {}
    for file, inner in files:
        target = (folder / inner).with_suffix(".png")
        if target in seen:
            raise ValueError(f"the label images of {seen[target]} and {file} would both be {target}")
        if target.resolve() == Path(file).resolve():
            raise ValueError(f"the label image of {file} would overwrite it; give --labels another folder")
        seen[target] = file
    return list(seen)


class _BoxOutput(_Output):
    """Of detectors: boxes as COCO has results, all of them, whatever the least score is.

    Args:
        network: what predicts.
        files: the images.
        score: least score of the boxes that are printed and drawn.
        coco: file for the results, or None.
        annotations: file of the numbers that they use, or None.
    """

    def __init__(self, network: Network, files: Files, score: float, coco: str | None, annotations: str | None) -> None:
        super().__init__()
        if not 0 <= score <= 1:
            raise ValueError(f"--score {score} is not in [0, 1]")
        if annotations is not None and coco is None:
            raise ValueError(f"--annotations {annotations} is for --coco; give that too")
        if coco is not None and Path(coco).is_dir():
            raise ValueError(f"--coco {coco} is a folder; give a file")
        self.score = score
        self.coco = coco
        self.images: list[int] | None = None
        self.classes: list[int] | None = None
        if annotations is not None:
            self.images, self.classes = _coco_numbers(annotations, files, network.class_names)
        self.rows: list[dict[str, Any]] = []

    def take(self, result: Any) -> tuple[Result, dict[str, Any]]:
        assert isinstance(result, DetectionResult)
        if self.coco is not None:
            image = None if self.images is None else self.images[result.index]
            self.rows += result.to_coco(image, self.classes)
        shown = result.above(self.score)
        return shown, shown.to_dict()

    def close(self) -> None:
        if self.coco is not None:
            with write_whole(self.coco) as beside:
                beside.write_text(json.dumps(self.rows), encoding="utf-8")


def _coco_numbers(annotations: str, files: Files, names: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Return the number of each image and of each class in a COCO file, found by file names and names of classes."""
    from kornia_mvit.data.formats.coco import read_coco

    known = read_coco(annotations)
    known_files = [Path(name).name for name in known.files]
    for kind, wanted, given in (
        ("image", [inner.name for _, inner in files], known_files),
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
    seen: dict[str, str] = {}
    for file, inner in files:
        if inner.name in seen:
            raise ValueError(f"{seen[inner.name]} and {file} would both be image {inner.name!r} of {annotations}")
        seen[inner.name] = file
    images = dict(zip(known_files, known.image_ids, strict=True))
    classes = dict(zip(known.class_names, known.category_ids, strict=True))
    return [images[inner.name] for _, inner in files], [classes[name] for name in names]
