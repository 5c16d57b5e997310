"""OpenVINO, from ONNX. Needs ``kornia-mvit[export]``."""

from pathlib import Path
from typing import Any

from kornia_mvit.exporters.card import metadata
from kornia_mvit.exporters.graph import Suppression, deployable
from kornia_mvit.exporters.onnx import to_onnx
from kornia_mvit.exporters.tracing import Size
from kornia_mvit.files import scratch, write_whole
from kornia_mvit.inference.engines.exported import load_openvino
from kornia_mvit.weights.cards import Model

__all__ = ["load_openvino", "to_openvino"]


def to_openvino(
    model: Model,
    path: str | Path,
    *,
    size: Size = "dynamic",
    with_preprocess: bool = False,
    with_decode: bool = False,
    layout: str = "nchw",
    nms: bool | Suppression = False,
    fp16: bool = False,
) -> Path:
    """Write a model as OpenVINO's intermediate representation: an ``.xml`` file, and its weights in a ``.bin``.

    Args:
        model: what is written; left as it is.
        path: the ``.xml`` file.
        size: see :func:`~kornia_mvit.exporters.to_onnx`.
        with_preprocess: see :func:`~kornia_mvit.exporters.deployable`.
        with_decode: see :func:`~kornia_mvit.exporters.deployable`.
        layout: see :func:`~kornia_mvit.exporters.deployable`.
        nms: see :func:`~kornia_mvit.exporters.deployable`.
        fp16: keep the weights in half precision, half the file; the device computes as it likes best.

    Returns:
        The path. What :func:`~kornia_mvit.exporters.metadata` tells is in the file's ``rt_info``, as ``kornia_mvit``.

    Raises:
        ImportError: where openvino, onnx or onnxscript is missing.
        ValueError: for a path of another ending, and as :func:`~kornia_mvit.exporters.to_onnx` says.
    """
    openvino = _import()
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(f"{path} does not end in .xml, as the files of OpenVINO do")
    arguments: dict[str, Any] = {"with_preprocess": with_preprocess, "with_decode": with_decode, "layout": layout}
    arguments["nms"] = nms
    with scratch(path) as folder:
        # OpenVINO 2026.4 reads ONNX's antialiased resize as another one
        file = to_onnx(model, folder / "model.onnx", size=size, resample="matmul", **arguments)
        written = openvino.convert_model(file)
    for name, text in metadata(model, deployable(model, **arguments)).items():
        written.set_rt_info(text, ["kornia_mvit", name])
    with write_whole(path) as beside:
        openvino.save_model(written, beside, compress_to_fp16=fp16)
    return path


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO's files need openvino; install kornia-mvit[export]") from error
    return openvino
