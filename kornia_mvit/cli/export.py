"""``kornia-mvit export``: a checkpoint as a file for a phone, a browser or a server, compared with it."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.files import check_local, printable
from kornia_mvit.weights.cards import Model, task_of

__all__ = ["FORMATS", "add_arguments", "main", "run"]

_PICTURES = 8  # images that files are compared on, unless told otherwise
DRAWN = "shapes"  # in place of a folder of calibration images
_ROUNDS = 10  # runs of each that are timed


@dataclass(frozen=True)
class Format:
    """What the command knows of a format.

    Args:
        writer: the function of ``kornia_mvit.exporters`` that writes it.
        loader: the one that gives what runs it here; None for formats that run elsewhere.
        suffix: how its files end.
        text: what it is for.
        canvas: whether it has one size, with preprocessing that of the largest image, and no dynamic one.
        nhwc: whether it takes that layout.
        nms: whether it can suppress boxes.
        quantizer: the function that writes it in int8; None where it does not come so.
    """

    writer: str
    loader: str | None
    suffix: str
    text: str
    canvas: bool = False
    nhwc: bool = True
    nms: bool = False
    quantizer: str | None = None


FORMATS = {
    "onnx": Format("to_onnx", "load_onnx", ".onnx", "ONNX Runtime, browsers", nms=True, quantizer="quantize_onnx"),
    "openvino": Format("to_openvino", "load_openvino", ".xml", "Intel's processors", nms=True),
    "torchexport": Format("to_torchexport", "load_torchexport", ".pt2", "PyTorch without this package"),
    "executorch": Format(
        "to_executorch",
        "load_executorch",
        ".pte",
        "Android and other devices, by XNNPACK",
        canvas=True,
        quantizer="quantize_executorch",
    ),
    "coreml": Format("to_coreml", None, ".mlpackage", "iOS and macOS", canvas=True, nhwc=False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, whoever wrote it, or the name of published weights"
    )
    parser.add_argument("output", metavar="OUT", help="the file to write")
    names = "; ".join(f"{name} ({form.suffix}): {form.text}" for name, form in FORMATS.items())
    parser.add_argument("--format", metavar="NAME", help=f"by OUT's ending unless given. {names}")
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        help="of the images that go in: 256, 320x192 (height x width) or dynamic, which formats take that can "
        "(default). Of executorch and coreml it is the one size, or with preprocessing that of the largest image "
        "(default 640)",
    )
    graph = parser.add_argument_group("in the graph")
    graph.add_argument(
        "--with-preprocess", action="store_true", help="take uint8 RGB images; resize, crop and normalise inside"
    )
    graph.add_argument(
        "--with-decode",
        action="store_true",
        help="give probabilities, the class of each pixel of the image, or boxes in its pixels; not logits",
    )
    graph.add_argument(
        "--layout", default="nchw", metavar="NAME", help="of uint8 images: nchw (default), or nhwc as cameras have it"
    )
    graph.add_argument("--nms", action="store_true", help="suppress overlapping boxes (onnx, openvino)")
    small = parser.add_argument_group("size and speed")
    small.add_argument("--fp16", action="store_true", help="weights in half precision")
    small.add_argument("--int8", action="store_true", help="quantise (onnx, executorch); needs --calibration")
    small.add_argument(
        "--calibration",
        metavar="DIR",
        help="images like those to come, a hundred or so; or 'shapes': drawn ones, where there are no others",
    )
    report = parser.add_argument_group("report")
    report.add_argument("--images", metavar="DIR", help=f"images to compare on, the first {_PICTURES} (default: noise)")
    report.add_argument(
        "--labelled",
        metavar="DIR",
        help="a folder with a subfolder of images for each class: accuracy before and after",
    )
    report.add_argument("--no-report", action="store_true", help="write the file and no more")


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: ``export`` and its options.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="kornia-mvit export",
        description="Write a checkpoint's model as a file for a phone, a browser or a server, and compare the two: "
        "what they give, how large and how fast they are. Needs kornia-mvit[export].",
    )
    add_arguments(parser)
    return run(parser.parse_args(argv[1:]))


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: what :func:`add_arguments` added.

    Returns:
        The exit status.
    """
    for given in (args.output, args.images, args.labelled, args.calibration):
        if given is not None:
            check_local(given)
    name = _find_format(args)
    form = FORMATS[name]
    _check_options(args, name)
    model = _load(args.checkpoint)
    task = str(task_of(model))
    if args.nms and task != "detection":
        raise ValueError(f"{args.checkpoint} is for {task}; leave out --nms, which is of boxes")
    if args.labelled and task != "classification":
        raise ValueError(f"{args.checkpoint} is for {task}; leave out --labelled, which is a folder of classes")
    options = _options(args, form, model)
    pictures = _pictures(args, model)
    path = _write(args, form, model, options)
    print(printable(f"{path}: {task} for {name}, input {_describe(options)}"))
    if not args.no_report:
        print(_report(args, name, model, path, options, pictures))
    return 0


def _find_format(args: argparse.Namespace) -> str:
    known = ", ".join(FORMATS)
    if args.format is not None:
        if args.format not in FORMATS:
            raise ValueError(f"unknown format {args.format!r}; available: {known}")
        wanted = FORMATS[args.format].suffix
        if Path(args.output).suffix != wanted:
            raise ValueError(f"{args.output} does not end in {wanted}, as files of {args.format} do")
        return str(args.format)
    for name, form in FORMATS.items():
        if Path(args.output).suffix == form.suffix:
            return name
    raise ValueError(f"the ending of {args.output} is no format's; give --format, one of {known}")


def _check_options(args: argparse.Namespace, name: str) -> None:
    """Raise for options that the format does not have, before the checkpoint is read."""
    form = FORMATS[name]
    if args.int8 and form.quantizer is None:
        raise ValueError(f"{name} has no --int8; {', '.join(n for n, f in FORMATS.items() if f.quantizer)} have")
    if args.nms and not form.nms:
        raise ValueError(f"{name} has no --nms; {', '.join(n for n, f in FORMATS.items() if f.nms)} have")
    if args.layout == "nhwc" and not form.nhwc:
        raise ValueError(f"{name} takes images as it likes; leave out --layout nhwc")
    if args.int8 and args.fp16:
        raise ValueError("--int8 and --fp16 exclude each other; leave one out")
    if args.int8 and args.calibration is None:
        raise ValueError(
            "--int8 needs images to calibrate on: --calibration DIR, with a hundred or so like those to come"
        )
    if args.calibration is not None and not args.int8:
        raise ValueError("--calibration is for --int8; give that too")
    if args.nms and not args.with_decode:
        raise ValueError("--nms is of decoded boxes; give --with-decode too")
    if args.layout not in ("nchw", "nhwc"):
        raise ValueError(f"unknown layout {args.layout!r}; available: nchw, nhwc")
    if args.layout == "nhwc" and not args.with_preprocess:
        raise ValueError("--layout nhwc is that of uint8 images; give --with-preprocess too")


def _load(checkpoint: str) -> Model:
    from kornia_mvit.weights.registry import from_pretrained

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = from_pretrained(checkpoint)
    for warning in caught:
        print(printable(f"kornia-mvit: warning: {warning.message}"), file=sys.stderr)
    return model


def _options(args: argparse.Namespace, form: Format, model: Model) -> dict[str, Any]:
    """Give the arguments of the function that writes."""
    options: dict[str, Any] = {
        "size": _size(args, form, model),
        "with_preprocess": args.with_preprocess,
        "with_decode": args.with_decode,
    }
    if form.nhwc:
        options["layout"] = args.layout
    if args.nms:
        options["nms"] = True
    if args.fp16:
        options["fp16"] = True
    return options


def _size(args: argparse.Namespace, form: Format, model: Model) -> str | tuple[int, int]:
    if args.size is None:
        if not form.canvas:
            return "dynamic"
        if args.with_preprocess:
            return 640, 640
        known = model.preprocess.output_size if model.preprocess is not None else None
        return known or (256, 256)
    if args.size == "dynamic":
        if form.canvas:
            others = ", ".join(name for name, other in FORMATS.items() if not other.canvas)
            raise ValueError(f"--size dynamic is for {others}; give {form.suffix} files one, such as --size 256")
        return "dynamic"
    try:
        numbers = [int(part) for part in args.size.split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers, default=0) < 1:
        raise ValueError(
            f"--size {args.size} is none of dynamic, a number of pixels such as 256, and two such as 320x192"
        )
    return numbers[0], numbers[-1]


def _write(args: argparse.Namespace, form: Format, model: Model, options: dict[str, Any]) -> Path:
    if args.int8:
        images = list(_read(args.calibration))
        write: Callable[..., Path] = _function(form.quantizer)
        return Path(write(model, args.output, images, **options))
    write = _function(form.writer)
    return Path(write(model, args.output, **options))


def _function(name: str | None) -> Any:
    from kornia_mvit import export

    return getattr(export, str(name))


def _describe(options: dict[str, Any]) -> str:
    size = options["size"]
    sides = "HxW" if isinstance(size, str) else f"{size[0]}x{size[1]}"
    shape = f"B{sides}x3" if options.get("layout") == "nhwc" else f"Bx3x{sides}"
    return f"{'uint8 RGB' if options['with_preprocess'] else 'float32'} {shape.replace('BH', 'BxH')}"


# ------------------------------------------------------------------------------------------------------------- report


def _read(folder: str, most: int | None = None) -> Iterator[Tensor]:
    """Read the images of a folder, evenly spread where there are more than are wanted; or draw some."""
    from kornia_mvit.data.reading import find_images, read_image
    from kornia_mvit.data.synthetic import Shapes

    if folder == DRAWN and not Path(folder).exists():
        for number in range(min(64, most or 64)):
            yield Shapes(64, (256, 320))[number]["image"]
        return
    files = find_images(Path(folder))
    step = 1 if most is None else max(1, len(files) // most)
    for file in files[::step][:most]:
        yield read_image(file)


def _pictures(args: argparse.Namespace, model: Model) -> list[Tensor]:
    """Give images to compare on, uint8 (3, H, W)."""
    if folder := args.images or args.labelled or args.calibration:
        return list(_read(folder, _PICTURES))
    generator = torch.Generator().manual_seed(0)
    channels = model.backbone.in_channels
    return [
        torch.randint(0, 256, (channels, 256, 320), generator=generator, dtype=torch.uint8) for _ in range(_PICTURES)
    ]


def _report(
    args: argparse.Namespace, name: str, model: Model, path: Path, options: dict[str, Any], pictures: Sequence[Tensor]
) -> str:
    from kornia_mvit.exporters.graph import deployable
    from kornia_mvit.exporters.report import Row, Table, compare, file_size, model_size, time_in_turn

    form = FORMATS[name]
    known = {key: options[key] for key in ("with_preprocess", "with_decode", "layout", "nms") if key in options}
    eager = deployable(model, fused=False, **known)
    inputs = [_input(picture, model, options, form) for picture in pictures]
    what = "noise" if not (args.images or args.labelled or args.calibration) else "images"
    threads = torch.get_num_threads()
    note = f"batch 1, {threads} thread{'s' if threads > 1 else ''}, {len(inputs)} {what}"
    note += f", timed at {_shape(inputs[0], options)}"
    kind = f"{name} int8" if args.int8 else f"{name} fp16" if args.fp16 else name
    rows = [Row("eager", model_size(model)), Row(kind, file_size(path))]
    if form.loader is None:
        rows[0].latency = time_in_turn({"eager": _no_grad(eager, inputs[0])}, _ROUNDS)["eager"]
        return f"{Table(rows, note)}\n{name} does not run here: neither compared nor timed"
    run = _function(form.loader)(path)
    rows[1].comparison = compare(run, eager, inputs)
    times = time_in_turn({"eager": _no_grad(eager, inputs[0]), name: lambda: run(inputs[0])}, _ROUNDS)
    rows[0].latency, rows[1].latency = times["eager"], times[name]
    if args.labelled:
        for row, predict in zip(rows, (eager, run), strict=True):
            row.accuracy = _accuracy(args.labelled, predict, lambda image: _input(image, model, options, form), model)
    text = str(Table(rows, note))
    return f"{text}\n{_worst_layers(model, pictures)}" if args.int8 else text


def _worst_layers(model: Model, pictures: Sequence[Tensor]) -> str:
    from kornia_mvit.exporters.quantize import describe_layers, layer_errors

    return describe_layers(layer_errors(model, pictures))


def _no_grad(module: Callable[[Tensor], Any], image: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(image)

    return call


def _input(picture: Tensor, model: Model, options: dict[str, Any], form: Format) -> Tensor:
    """Give what goes into the file for an image: a batch of one, of a size that the file takes."""
    from kornia_mvit.preprocess import Preprocess

    size = options["size"]
    if not options["with_preprocess"]:
        record = model.preprocess or Preprocess(256, crop=256)
        image: Tensor = record.module()(picture)
        if not isinstance(size, str) and tuple(image.shape[-2:]) != tuple(size):
            image = Preprocess(size).module()(image)
        return image[None]
    if not isinstance(size, str) and form.canvas:
        if picture.shape[-2] > size[0] or picture.shape[-1] > size[1]:
            fitted = Preprocess(size, letterbox=True).resized_size(picture.shape[-2], picture.shape[-1])
            picture = Preprocess(fitted).module().geometry(picture)
    elif not isinstance(size, str):
        picture = Preprocess(size).module().geometry(picture)
    return picture.permute(1, 2, 0)[None].contiguous() if options.get("layout") == "nhwc" else picture[None]


def _shape(image: Tensor, options: dict[str, Any]) -> str:
    height, width = image.shape[1:3] if options.get("layout") == "nhwc" else image.shape[2:]
    return f"{height}x{width}"


def _accuracy(
    folder: str, predict: Callable[[Tensor], Any], prepare: Callable[[Tensor], Tensor], model: Model
) -> float:
    """Give the share of a labelled folder's images that are classified rightly."""
    from kornia_mvit.data.reading import find_classes, read_image

    names, classes = model.class_names, find_classes(folder)
    if names is None and len(classes) != model.num_classes:
        raise ValueError(f"{folder} has {len(classes)} subfolders, the model {model.num_classes} classes without names")
    known = list(names or classes)
    if unknown := [label for label in classes if label not in known]:
        raise ValueError(f"{folder} has the class {unknown[0]!r}, which the model does not know: {', '.join(known)}")
    right = total = 0
    for label, files in classes.items():
        for file in files:
            with torch.no_grad():
                out = predict(prepare(read_image(file)))
            scores = torch.as_tensor(out[0] if isinstance(out, tuple) else out)
            right, total = right + int(scores.argmax() == known.index(label)), total + 1
    return right / total
