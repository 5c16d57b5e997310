"""A checkpoint as a file for a phone, a browser or a server, compared with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kornia_mvit.exporters.formats import FORMATS, Format, find_format
from kornia_mvit.exporters.options import Options, sides
from kornia_mvit.exporters.report import Comparison, Row, Table, compare, file_size, model_size, time_in_turn
from kornia_mvit.files import check_local, printable
from kornia_mvit.inference.engines.int8 import Calibration, prepare_calibration, read_calibration
from kornia_mvit.inference.engines.optimize import Optimized
from kornia_mvit.parsing import brief
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.weights.cards import Model, task_of
from kornia_mvit.weights.registry import from_pretrained

if TYPE_CHECKING:
    from kornia_mvit.exporters.quantize import LayerError

__all__ = ["Export", "export"]

_IMAGES = 8  # images that files are compared on, unless told otherwise
_JUDGED = 64  # calibration images whose answers are compared
_ROUNDS = 10  # runs of each that are timed


@dataclass(frozen=True)
class Export:
    """An exported file, and how it compares with the model; printed, it reads as a table.

    Args:
        path: the file.
        format: name of its format.
        task: what the model is for.
        options: what stands around the network in the file.
        table: sizes, times, and the comparison with the model; None without a report.
        layers: for int8, what each layer costs, the worst first.
        kept: the layers that stay in float32 for the sake of ``max_drop``.
    """

    path: Path
    format: str
    task: str
    options: Options
    table: Table | None = None
    layers: "Sequence[LayerError]" = ()
    kept: tuple[str, ...] = ()

    @property
    def comparison(self) -> Comparison | None:
        """How far the file's outputs are from the model's; None without a report, or where the file does not run."""
        return None if self.table is None else self.table.rows[1].comparison

    def __str__(self) -> str:
        lines = [printable(f"{self.path}: {self.task} for {self.format}, input {self._describe_input()}")]
        if self.table is not None:
            lines.append(str(self.table))
        if self.layers:
            from kornia_mvit.exporters.quantize import describe_layers

            lines.append(describe_layers(self.layers))
        if self.kept:
            lines.append(f"in float32, to keep the accuracy: {', '.join(self.kept)}")
        return "\n".join(lines)

    def _describe_input(self) -> str:
        size = self.options.size
        shape = "HxW" if isinstance(size, str) else "x".join(map(str, sides(size)))
        shape = f"Bx{shape}x3" if self.options.layout == "nhwc" else f"Bx3x{shape}"
        return f"{'uint8 RGB' if self.options.with_preprocess else 'float32'} {shape}"


def export(
    model: str | Path | Model,
    path: str | Path,
    *,
    format: str | None = None,
    size: str | int | tuple[int, int] | None = None,
    with_preprocess: bool = False,
    with_decode: bool = False,
    layout: str = "nchw",
    nms: bool = False,
    fp16: bool = False,
    int8: bool = False,
    calibration: Calibration | None = None,
    max_drop: float | None = None,
    images: str | Path | None = None,
    labelled: str | Path | None = None,
    report: bool = True,
) -> Export:
    """Write a model as a file for a phone, a browser or a server, and compare the two. Needs ``kornia-mvit[export]``.

    Args:
        model: a checkpoint, whoever wrote it, or the name of published weights; or a model.
        path: the file to write.
        format: by the file's ending unless given. {formats}.
        size: of the images that go in, in pixels: ``256``, ``'320x192'`` (height x width) or ``'dynamic'``, the
            default of the formats that have it. Of executorch and coreml it is the one size, or with preprocessing
            that of the largest image, 640 unless given.
        with_preprocess: take uint8 RGB images; resize, crop and normalise inside.
        with_decode: return probabilities, the class of each pixel of the image, or boxes in its pixels; not logits.
        layout: of uint8 images: ``nchw``, or ``nhwc`` as cameras have it.
        nms: suppress overlapping boxes (onnx, openvino).
        fp16: weights in half precision.
        int8: quantise (onnx, openvino, executorch); needs calibration images.
        calibration: folder of images like those that the model will see, a hundred or so; or ``shapes`` for drawn
            ones, where there are no others. In Python also a list of paths, or of uint8 RGB (3, H, W).
        max_drop: for int8: the largest drop, such as 0.01, of the accuracy on ``labelled``, or without that folder of
            the share of answers for the calibration images that are the model's. The file is written anew with more
            layers in float32, the worst first, until it holds.
        images: folder of images to compare on, the first 8 (default: noise).
        labelled: folder with a subfolder of images for each class: accuracy before and after.
        report: compare outputs, sizes and times.

    Returns:
        The path, and the comparison.

    Raises:
        TypeError: for what is no model for a task, and no images for calibration.
        ValueError: for options that the format or the task does not have.
        ImportError: where a package that the format needs is missing.

    Example:
        >>> from tempfile import mkdtemp
        >>> from kornia_mvit import MobileViTClassifier
        >>> export(MobileViTClassifier("xxs", 5), f"{mkdtemp()}/model.pt2", size=64, report=False).format
        'torchexport'
    """
    for given in (path, images, labelled, calibration):
        if isinstance(given, str | Path):
            check_local(given)
    calibration = _listed(calibration)
    name = find_format(path, format)
    form = FORMATS[name]
    options = Options(
        size="dynamic", with_preprocess=with_preprocess, with_decode=with_decode, layout=layout, nms=nms, fp16=fp16
    )
    _check_options(name, options, int8, calibration)
    if max_drop is not None and not int8:
        raise ValueError("max_drop is for int8; give that too")
    source = model if isinstance(model, str | Path) else "the model"
    network = _load(model)
    task = str(task_of(network))
    if nms and task != "detection":
        raise ValueError(f"{source} is for {task}; leave out nms, which is of boxes")
    if labelled is not None and task != "classification":
        raise ValueError(f"{source} is for {task}; leave out labelled, which is a folder of classes")
    options = replace(options, size=_find_size(size, options, form, network))
    folder = images or labelled or calibration
    inputs = _Inputs(network, options, form)
    shown = list(read_calibration(folder, _IMAGES)) if folder else _noise(network)
    if max_drop is None:
        written, kept = _write(network, path, form, options, calibration), tuple[str, ...]()
    else:
        assert calibration is not None
        written, kept = Path(path), _write_within(max_drop, inputs, path, calibration, labelled)
    if not report:
        return Export(written, name, task, options, kept=kept)
    kind = f"{name} int8" if int8 else f"{name} fp16" if fp16 else name
    table = _compare(network, written, kind, form, inputs, shown, "images" if folder else "noise")
    if form.loader is None:
        table.note += f"\n{name} does not run here: neither compared nor timed"
    elif labelled is not None:
        runs = (inputs.build_reference(), _function(form.loader)(written))
        for row, run in zip(table.rows, runs, strict=True):
            row.accuracy = _accuracy(labelled, run, inputs, network)
    if not int8 or form.loader is None:
        return Export(written, name, task, options, table)
    from kornia_mvit.exporters.quantize import layer_errors

    return Export(written, name, task, options, table, layer_errors(network, shown), kept)


export.__doc__ = (export.__doc__ or "").replace(
    "{formats}", "; ".join(f"{name} ({form.suffix}): {form.text}" for name, form in FORMATS.items())
)


# ------------------------------------------------------------------------------------------------------------- options


def _check_options(name: str, options: Options, int8: bool, calibration: Calibration | None) -> None:
    """Raise for options that the format does not have, before the checkpoint is read."""
    form = FORMATS[name]
    if int8 and form.quantizer is None:
        raise ValueError(f"{name} has no int8; {', '.join(n for n, f in FORMATS.items() if f.quantizer)} have")
    if options.nms and not form.nms:
        raise ValueError(f"{name} has no nms; {', '.join(n for n, f in FORMATS.items() if f.nms)} have")
    if options.layout == "nhwc" and not form.nhwc:
        raise ValueError(f"{name} does not support layout nhwc; leave it out")
    if int8 and options.fp16:
        raise ValueError("int8 and fp16 exclude each other; leave one out")
    if int8 and calibration is None:
        raise ValueError("int8 needs calibration, a folder with a hundred or so images like those to come")
    if calibration is not None and not int8:
        raise ValueError("calibration is for int8; give that too")
    if options.nms and not options.with_decode:
        raise ValueError("nms needs decoded boxes; give with_decode too")
    if options.layout not in ("nchw", "nhwc"):
        raise ValueError(f"unknown layout {options.layout!r}; available: nchw, nhwc")
    if options.layout == "nhwc" and not options.with_preprocess:
        raise ValueError("layout nhwc is that of uint8 images; give with_preprocess too")


def _find_size(
    size: str | int | tuple[int, int] | None, options: Options, form: Format, model: Model
) -> str | tuple[int, int]:
    if size is None and not form.canvas:
        return "dynamic"
    if size is None:
        if options.with_preprocess:
            return 640, 640
        known = model.preprocess.output_size if model.preprocess is not None else None
        return known or (256, 256)
    if size == "dynamic":
        if form.canvas:
            others = ", ".join(name for name, other in FORMATS.items() if not other.canvas)
            raise ValueError(f"size dynamic is for {others}; give {form.suffix} files one, such as 256")
        return "dynamic"
    try:
        numbers = [int(part) for part in size.split("x")] if isinstance(size, str) else list(sides(size))
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers, default=0) < 1:
        raise ValueError(f"size {size} is none of dynamic, a number of pixels such as 256, and two such as 320x192")
    return numbers[0], numbers[-1]


def _write(
    model: Model, path: str | Path, form: Format, options: Options, calibration: Calibration | None, **quantizer: Any
) -> Path:
    known = {"size": options.size, "with_preprocess": options.with_preprocess, "with_decode": options.with_decode}
    for name, default in (("layout", "nchw"), ("nms", False), ("fp16", False)):
        if getattr(options, name) != default:
            known[name] = getattr(options, name)
    if calibration is None:
        return Path(_function(form.writer)(model, path, **known))
    return Path(_function(form.quantizer)(model, path, list(read_calibration(calibration)), **known, **quantizer))


def _write_within(
    max_drop: float, inputs: "_Inputs", path: str | Path, calibration: Calibration, labelled: str | Path | None
) -> tuple[str, ...]:
    """Write an int8 file whose accuracy drops by no more, and return the layers that stay in float32."""
    from kornia_mvit.exporters.accuracy import limit_drop, score_agreement, worst_first

    form, model = inputs.form, inputs.model
    images = list(read_calibration(calibration, _JUDGED))
    list(prepare_calibration(model, images))  # which refuses what is no image
    batches, reference = [inputs.prepare(image) for image in images], inputs.build_reference()

    def score(file: Path | None) -> float:
        run = reference if file is None else _function(form.loader)(file)
        if labelled is not None:
            return _accuracy(labelled, run, inputs, model)
        return score_agreement(run, reference, batches)

    return limit_drop(
        lambda kept: _write(model, path, form, inputs.options, calibration, keep=kept),
        score,
        worst_first(model, images[:_IMAGES]),
        max_drop,
    )


def _function(name: str | None) -> Any:
    return getattr(import_module("kornia_mvit.exporters"), str(name))


def _load(model: str | Path | Model) -> Model:
    """Return a model, or that of a checkpoint.

    Raises:
        TypeError: for what is no model for a task.
    """
    network: Any = from_pretrained(model) if isinstance(model, str | Path) else model
    if not isinstance(network, Model):
        given = type(network).__name__ if isinstance(network, nn.Module) else brief(network)
        remedy = "pass a MobileViTClassifier, MobileViTV2Classifier, DeepLabV3 or SSDLite, or the path of a checkpoint"
        if isinstance(network, Optimized):
            remedy = "pass the one that was given to optimize"
        raise TypeError(f"{given} is none of this package's models for a task; {remedy}")
    return network


def _listed(calibration: Calibration | None) -> Calibration | None:
    """Return calibration images that can be gone through several times."""
    if calibration is None or isinstance(calibration, str | Path):
        return calibration
    return list(read_calibration(calibration))


# -------------------------------------------------------------------------------------------------------------- report


def _noise(model: Model) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (model.backbone.in_channels, 256, 320)
    return [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(_IMAGES)]


@dataclass(frozen=True)
class _Inputs:
    """What goes into a file, and into the model that it is compared with."""

    model: Model
    options: Options
    form: Format

    def build_reference(self) -> Callable[[Tensor], Any]:
        """Return the model with the same things around it, as PyTorch runs it."""
        graph = replace(self.options, fp16=False).build_graph(self.model, fused=False)

        def run(image: Tensor) -> Any:
            with torch.no_grad():
                return graph(image)

        run.task = graph.task  # type: ignore[attr-defined]  # read by compare
        return run

    def prepare(self, image: Tensor) -> Tensor:
        """Return a batch of one, of a size that the file takes."""
        size = self.options.size
        if not self.options.with_preprocess:
            record = self.model.preprocess or Preprocess(256, crop=256)
            x: Tensor = record.module()(image)
            if not isinstance(size, str) and tuple(x.shape[-2:]) != sides(size):
                x = Preprocess(size).module()(x)
            return x[None]
        if not isinstance(size, str):
            height, width = sides(size)
            if not self.form.canvas:
                image = Preprocess((height, width)).module().geometry(image)
            elif image.shape[-2] > height or image.shape[-1] > width:
                fitted = Preprocess((height, width), letterbox=True).resized_size(image.shape[-2], image.shape[-1])
                image = Preprocess(fitted).module().geometry(image)
        return image.permute(1, 2, 0)[None].contiguous() if self.options.layout == "nhwc" else image[None]

    def describe(self, image: Tensor) -> str:
        height, width = image.shape[1:3] if self.options.layout == "nhwc" else image.shape[2:]
        return f"{height}x{width}"


def _compare(
    model: Model, path: Path, kind: str, form: Format, inputs: _Inputs, images: Sequence[Tensor], what: str
) -> Table:
    """Compare outputs, sizes and times on images, or on ``what`` they are."""
    batches = [inputs.prepare(image) for image in images]
    threads = torch.get_num_threads()
    note = f"batch 1, {threads} thread{'s' if threads > 1 else ''}, {len(batches)} {what}"
    note += f", timed at {inputs.describe(batches[0])}"
    eager, rows = inputs.build_reference(), [Row("eager", model_size(model)), Row(kind, file_size(path))]
    runs: dict[str, Callable[[Tensor], Any]] = {"eager": eager}
    if form.loader is not None:
        runs[kind] = _function(form.loader)(path)
        rows[1].comparison = compare(runs[kind], eager, batches)
    times = time_in_turn({name: partial(run, batches[0]) for name, run in runs.items()}, _ROUNDS)
    for row in rows:
        row.latency = times.get(row.name)
    return Table(rows, note)


def _accuracy(folder: str | Path, run: Callable[[Tensor], Any], inputs: _Inputs, model: Model) -> float:
    """Return the share of a labelled folder's images whose class is right."""
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
                out = run(inputs.prepare(read_image(file)))
            scores = torch.as_tensor(out[0] if isinstance(out, tuple) else out)
            right, total = right + int(scores.argmax() == known.index(label)), total + 1
    return right / total
