"""Exported files, ready to run: ONNX, OpenVINO, torch.export and ExecuTorch. Needs ``kornia-mvit[export]``."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kornia_mvit.extras import needing
from kornia_mvit.files import FileError
from kornia_mvit.parsing import is_folder, reading, reason_of
from kornia_mvit.preprocess import Preprocess

__all__ = [
    "EXECUTORCH_METADATA",
    "TORCHEXPORT_METADATA",
    "Exported",
    "compile_openvino",
    "find_exported",
    "lay_on_canvas",
    "load_executorch",
    "load_exported",
    "load_onnx",
    "load_openvino",
    "load_torchexport",
    "quiet",
    "read_metadata",
    "silence",
]

EXECUTORCH_METADATA = "kornia_mvit_metadata"  # the method of a program that returns what it says of itself
TORCHEXPORT_METADATA = "kornia_mvit.json"  # the extra file of a .pt2 file that holds the same

_ABOUT = ("task", "version", "num_classes", "class_names", "class_colours", "preprocess", "anchors", "graph")

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Exported:
    """An exported file: a function that runs it, and what the file says of itself.

    Args:
        path: the file.
        run: takes images (B, C, H, W), or (B, H, W, C) where ``layout`` is ``'nhwc'``, and returns the outputs.
        about: texts by name, see :func:`~kornia_mvit.exporters.metadata`.
        size: height and width of the images that go in, or None where the file takes any.
        single: whether it takes one image at a time.

    Raises:
        ValueError: for a file that does not say what it holds.
    """

    path: Path
    run: Run
    about: Mapping[str, str]
    size: tuple[int, int] | None = None
    single: bool = False

    def __post_init__(self) -> None:
        if "task" not in self.about or "graph" not in self.about:
            raise FileError(f"{self.path} does not say what it holds; write it with kornia-mvit export")

    @property
    def task(self) -> str:
        """``'classification'``, ``'segmentation'`` or ``'detection'``."""
        return self.about["task"]

    @property
    def num_classes(self) -> int:
        """Number of classes; that of a detector counts the background."""
        return int(self.about["num_classes"])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where they are known."""
        names = self._read("class_names")
        return None if names is None else tuple(names)

    @property
    def class_colours(self) -> tuple[tuple[int, int, int], ...] | None:
        """Red, green and blue of each class, where they are known."""
        colours = self._read("class_colours")
        return None if colours is None else tuple((red, green, blue) for red, green, blue in colours)

    @property
    def preprocess(self) -> Preprocess | None:
        """What images go through before the network, where it is known."""
        record = self._read("preprocess")
        return None if record is None else Preprocess.from_dict(record)

    @property
    def anchors(self) -> dict[str, Any]:
        """Arguments of :class:`~kornia_mvit.SSDLite` that its anchors depend on, where they are known."""
        return dict(self._read("anchors") or {})

    @property
    def with_preprocess(self) -> bool:
        """Whether uint8 images go in."""
        return bool(self._read("graph")["with_preprocess"])

    @property
    def with_decode(self) -> bool:
        """Whether probabilities, label maps or boxes come out instead of logits."""
        return bool(self._read("graph")["with_decode"])

    @property
    def nms(self) -> bool:
        """Whether overlapping boxes are suppressed."""
        return bool(self._read("graph")["nms"])

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run the file on images (B, C, H, W), whatever layout it takes and however many at a time.

        Raises:
            ValueError: for images of a size that the file does not take.
        """
        size = (image.shape[-2], image.shape[-1])
        if self.size is not None and size != self.size:
            raise ValueError(
                f"{self.path} takes images of {self.size[0]}x{self.size[1]} pixels alone, not {size[0]}x{size[1]}; "
                "export it with size='dynamic'"
            )
        if self._read("graph")["layout"] == "nhwc":
            image = image.permute(0, 2, 3, 1)
        parts = [self.run(part.contiguous()) for part in (torch.split(image, 1) if self.single else (image,))]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    def _read(self, name: str) -> Any:
        return json.loads(self.about.get(name, "null"))


# ---------------------------------------------------------------------------------------------------------- loading


def find_exported(path: str | Path) -> Path | None:
    """Return the file to load for a path: itself, the ``.xml`` file of an OpenVINO folder, or None for other paths.

    Raises:
        ValueError: for a folder with several ``.xml`` files, and for Core ML, which runs on Apple's systems alone.
    """
    path = Path(path)
    if path.suffix == ".mlpackage":
        raise FileError(f"{path} is a Core ML package, which runs on Apple's systems alone; use the checkpoint or ONNX")
    if path.suffix in _OPENERS:
        return path
    if not is_folder(path):
        return None
    found = [file for file in sorted(path.glob("*.xml")) if file.with_suffix(".bin").is_file()]
    if len(found) > 1:
        raise FileError(f"{path} has {len(found)} OpenVINO files; pass one of them, such as {found[0]}")
    return found[0] if found else None


class _Opened(NamedTuple):
    """A file that is ready to run."""

    run: Run
    about: Mapping[str, str]
    shape: Sequence[Any] | None  # of the input; None where images of any size are laid on a canvas
    single: bool = False


def load_exported(path: str | Path, threads: int | None = None) -> Exported:
    """Load an exported file for running on the CPU, by its suffix.

    Args:
        path: an ``.onnx``, ``.xml``, ``.pt2`` or ``.pte`` file of this package, or the folder of an ``.xml`` file.
        threads: number of threads of ONNX Runtime and OpenVINO; as many as PyTorch has when None.

    Raises:
        ValueError: if the file is damaged, or does not say what it holds.
        FileNotFoundError: if there is no such file.
        ImportError: where the package that runs it is missing.
    """
    file = find_exported(path)
    if file is None:
        raise FileError(f"{path} is no exported file; expected {', '.join(_OPENERS)}")
    opened = _OPENERS[file.suffix](file, threads)
    size = None if opened.shape is None else _fixed_size(opened.shape, opened.about)
    return Exported(file, opened.run, opened.about, size, opened.single)


def load_onnx(path: str | Path, threads: int | None = None) -> Run:
    """Return a function that runs an ONNX file in ONNX Runtime, on the CPU.

    Args:
        path: the file.
        threads: number of threads; as many as PyTorch has when None.

    Raises:
        ImportError: where onnxruntime is missing.
    """
    return _open_onnx(path, threads).run


def _open_onnx(path: str | Path, threads: int | None) -> _Opened:
    with needing("running ONNX needs onnxruntime", "export"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    with reading(path, "an ONNX file"):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image_input = session.get_inputs()[0]

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(out) for out in session.run(None, {image_input.name: image.contiguous().numpy()}))

    return _Opened(run, session.get_modelmeta().custom_metadata_map, image_input.shape)


def load_openvino(path: str | Path, threads: int | None = None) -> Run:
    """Return a function that runs an OpenVINO file on the CPU, in float32.

    Args:
        path: the ``.xml`` file.
        threads: number of threads; as many as PyTorch has when None.

    Raises:
        ImportError: where openvino is missing.
    """
    return _open_openvino(path, threads).run


def _open_openvino(path: str | Path, threads: int | None) -> _Opened:
    with needing("OpenVINO's files need openvino", "export"):
        core = openvino_core()
    with reading(path, "an OpenVINO file"):
        model = core.read_model(path)
        is_int8 = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
        compiled = compile_openvino(model, threads or torch.get_num_threads(), snippets=is_int8)

    def run(image: Tensor) -> tuple[Tensor, ...]:
        outputs = compiled([image.contiguous().numpy()])
        return tuple(torch.from_numpy(outputs[port].copy()) for port in compiled.outputs)

    places = {name: ["kornia_mvit", name] for name in _ABOUT}
    about = {name: str(model.get_rt_info(place).value) for name, place in places.items() if model.has_rt_info(place)}
    shape = [dim.get_length() if dim.is_static else None for dim in model.input(0).partial_shape]
    return _Opened(run, about, shape)


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """Return OpenVINO's core, the same one for the whole process.

    Each core brings a stack for signal handlers along, and as it goes restores that of the core before, which may be
    gone: of two that are closed in the order in which they were made, OpenVINO 2026.4 leaves freed memory as the stack.
    The next signal that Python handles, such as that of a child process that ends, then kills the process.

    Raises:
        ImportError: where openvino is missing.
    """
    import openvino

    return openvino.Core()


def compile_openvino(model: Any, threads: int, *, snippets: bool) -> Any:
    """Compile a model of OpenVINO for the CPU, with float32 throughout where it is not int8.

    The kernels that OpenVINO 2026.4 makes itself ("snippets") take a tenth off the time of xxs, and less off larger
    ones. Those of attention are 1e-3 of the largest answer away from float32 at some sizes of images, such as 128×128
    for xxs; the answers of its other kernels are 1e-6 away.

    Args:
        model: as OpenVINO has it in memory.
        threads: that it computes with.
        snippets: whether it may make kernels.
    """
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # which it would lower by itself where the CPU has bfloat16
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not snippets:
        with contextlib.suppress(RuntimeError):  # of a release that does not know the property
            return openvino_core().compile_model(model, "CPU", settings | {"SNIPPETS_MODE": "DISABLE"})
    return openvino_core().compile_model(model, "CPU", settings)


def load_torchexport(path: str | Path) -> Run:
    """Return a function that runs a ``.pt2`` file on images and returns its outputs as a tuple.

    Args:
        path: the file that :func:`~kornia_mvit.exporters.to_torchexport` wrote.
    """
    return _open_torchexport(path).run


def _open_torchexport(path: str | Path, _: int | None = None) -> _Opened:
    extra = {TORCHEXPORT_METADATA: ""}
    with quiet(), reading(path, "a file of torch.export"):
        program = torch.export.load(path, extra_files=extra)
        module = program.module()
        about: dict[str, str] = json.loads(extra[TORCHEXPORT_METADATA] or "{}")

    def run(image: Tensor) -> tuple[Tensor, ...]:
        try:
            with torch.no_grad():
                out = module(image)
        except AssertionError as error:  # a size that the program was not traced for
            raise ValueError(f"{path} does not take images {tuple(image.shape)}: {reason_of(error)}") from None
        return tuple(out) if isinstance(out, tuple | list) else (out,)

    first = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == first)
    return _Opened(run, about, shape)


def load_executorch(path: str | Path) -> Run:
    """Return a function that runs a program on one image, (1, C, H, W) or (1, H, W, C), by ExecuTorch's runtime.

    Where the program prepares images, they are of any size up to its canvas's: they are laid on it here, and label
    maps are cut to the image's size.

    Args:
        path: the ``.pte`` file.

    Raises:
        ImportError: where executorch is missing.
        FileNotFoundError: if there is no such file.
    """
    return _open_executorch(path).run


def _open_executorch(path: str | Path, _: int | None = None) -> _Opened:
    program = _read_program(path)
    about = _program_metadata(program, path)
    with reading(path, "an ExecuTorch program of this package"):
        method = program.load_method("forward")
        canvas, graph = json.loads(about.get("canvas", "null")), json.loads(about["graph"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        assert program is not None  # kept, as its methods live in its memory
        if canvas is None:
            inputs: tuple[Tensor, ...] = (image.contiguous(),)
        else:
            image = image.permute(0, 3, 1, 2) if graph["layout"] == "nhwc" else image
            inputs = lay_on_canvas(image[0], (canvas[0], canvas[1]), graph["layout"])
        out = [torch.as_tensor(y).clone() for y in method.execute(inputs)]  # the next call writes into the same memory
        if canvas is not None and graph["with_decode"] and about["task"] == "segmentation":
            out = [y[:, : image.shape[2], : image.shape[3]] for y in out]
        return tuple(out)

    shape = None if canvas is not None else method.metadata.input_tensor_meta(0).sizes()
    return _Opened(run, about, shape, single=True)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what an ExecuTorch program says of itself: see :func:`~kornia_mvit.exporters.metadata`.

    Args:
        path: the ``.pte`` file.

    Raises:
        ImportError: where executorch is missing.
        FileNotFoundError: if there is no such file.
    """
    return _program_metadata(_read_program(path), path)


def _program_metadata(program: Any, path: str | Path) -> dict[str, str]:
    with reading(path, "an ExecuTorch program of this package"):
        (text,) = program.load_method(EXECUTORCH_METADATA).execute(())
        out: dict[str, str] = json.loads(text)
        return {str(name): str(value) for name, value in out.items()}


def _read_program(path: str | Path) -> Any:
    with needing("ExecuTorch programs need {}", "export"):
        import executorch  # noqa: F401  # whether it is there
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with silence(), reading(path, "an ExecuTorch program"):
        from executorch.runtime import Runtime

        return Runtime.get().load_program(Path(path).read_bytes())


def _fixed_size(shape: Any, about: Mapping[str, str]) -> tuple[int, int] | None:
    """Return height and width of an input's shape, or None where they are not numbers."""
    layout = json.loads(about.get("graph", "{}")).get("layout", "nchw")
    height, width = tuple(shape)[1:3] if layout == "nhwc" else tuple(shape)[2:4]
    return (height, width) if type(height) is int and type(width) is int else None


_OPENERS: dict[str, Callable[[Path, int | None], _Opened]] = {
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".pt2": _open_torchexport,
    ".pte": _open_executorch,
}


# ------------------------------------------------------------------------------------------------------------ helpers


def lay_on_canvas(image: Tensor, max_size: tuple[int, int], layout: str = "nchw") -> tuple[Tensor, Tensor]:
    """Return the inputs of a :class:`~kornia_mvit.exporters.canvas.Canvas` for an image.

    Args:
        image: (3, H, W), uint8, RGB.
        max_size: height and width of the canvas in pixels.
        layout: of the program's input, ``'nchw'`` or ``'nhwc'``.

    Returns:
        The canvas with the image in its upper left corner, (1, 3, H, W) or (1, H, W, 3), and the image's height and
        width, int64.

    Raises:
        ValueError: if the image is larger than the canvas.

    Example:
        >>> canvas, size = lay_on_canvas(torch.ones(3, 2, 3, dtype=torch.uint8), (4, 4))
        >>> canvas[0, 0], size
        (tensor([[1, 1, 1, 0],
                [1, 1, 1, 0],
                [0, 0, 0, 0],
                [0, 0, 0, 0]], dtype=torch.uint8), tensor([2, 3]))
    """
    _, height, width = image.shape
    if height > max_size[0] or width > max_size[1]:
        raise ValueError(
            f"an image of {height}x{width} pixels is larger than the {max_size[0]}x{max_size[1]} that the graph was "
            "exported for; shrink it, or export with a larger size"
        )
    canvas = image.new_zeros(1, 3, *max_size)
    canvas[0, :, :height, :width] = image
    size = torch.tensor([height, width])
    return (canvas.permute(0, 2, 3, 1).contiguous() if layout == "nhwc" else canvas), size


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' reports of their progress from the terminal."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep all warnings and log messages from the terminal, of converters that report on their own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
