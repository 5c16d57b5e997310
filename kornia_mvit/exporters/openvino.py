"""OpenVINO, from ONNX. Needs ``kornia-mvit[export]``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kornia_mvit.exporters.card import metadata
from kornia_mvit.exporters.formats import find_format
from kornia_mvit.exporters.onnx import to_onnx
from kornia_mvit.exporters.options import Options, takes_options
from kornia_mvit.extras import needing
from kornia_mvit.files import scratch, write_whole
from kornia_mvit.inference.engines.exported import load_openvino
from kornia_mvit.weights.cards import Model

__all__ = ["load_openvino", "to_openvino", "translate"]


@takes_options("size", "with_preprocess", "with_decode", "layout", "nms", "fp16")
def to_openvino(model: Model, path: str | Path, *, options: Options) -> Path:
    """Write a model as OpenVINO's intermediate representation: an ``.xml`` file, and its weights in a ``.bin``.

    Args:
        model: what is written; left as it is.
        path: the ``.xml`` file.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name; with ``fp16``
            the weights alone are in half precision, and the device computes as it likes best.

    Returns:
        The path. What :func:`~kornia_mvit.exporters.metadata` tells is in the file's ``rt_info``, as ``kornia_mvit``.

    Raises:
        ImportError: where openvino, onnx or onnxscript is missing.
        ValueError: for a path of another ending, and as :func:`~kornia_mvit.exporters.to_onnx` says.
    """
    with needing("OpenVINO's files need openvino", "export"):
        import openvino
    path = Path(path)
    find_format(path, "openvino")  # refuses another ending
    with scratch(path) as folder:
        written = translate(model, folder / "model.onnx", replace(options, fp16=False))
    with write_whole(path) as beside:
        openvino.save_model(written, beside, compress_to_fp16=options.fp16)
    return path


def translate(model: Model, file: Path, options: Options) -> Any:
    """Return a model as OpenVINO has it in memory, with what is told of it; the ONNX file on the way stays.

    Raises:
        ImportError: where onnx or onnxscript is missing.
    """
    import openvino

    # OpenVINO 2026.4 reads ONNX's antialiased resize as another one
    to_onnx(model, file, **vars(replace(options, resample="matmul")))
    written = openvino.convert_model(file)
    for name, text in metadata(model, options.build_graph(model)).items():
        written.set_rt_info(text, ["kornia_mvit", name])
    return written
