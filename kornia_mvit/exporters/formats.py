"""The formats of exported files, told from each other by their names' endings."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FORMATS", "Format", "find_format"]


@dataclass(frozen=True)
class Format:
    """What is known of a format.

    Args:
        writer: the function of ``kornia_mvit.exporters`` that writes it.
        loader: the one that returns what runs it here; None for formats that run elsewhere.
        suffix: the ending of its files.
        text: what it is for.
        canvas: whether it has one size, with preprocessing that of the largest image, and no dynamic one.
        nhwc: whether it has that layout.
        nms: whether it can suppress boxes.
        quantizer: the function that writes it in int8; None where there is none.
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
    "openvino": Format(
        "to_openvino", "load_openvino", ".xml", "Intel's processors", nms=True, quantizer="quantize_openvino"
    ),
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


def find_format(path: str | Path, name: str | None = None) -> str:
    """Return the name of a file's format.

    Args:
        path: the file.
        name: the format; told from the file's ending when None.

    Raises:
        ValueError: for an unknown format, or an ending that is not the format's.

    Example:
        >>> find_format("model.pte")
        'executorch'
    """
    suffix, known = Path(path).suffix, ", ".join(FORMATS)
    if name is None:
        found = next((one for one, form in FORMATS.items() if form.suffix == suffix), None)
        if found is None:
            raise ValueError(f"the ending of {path} is no format's; give the format, one of {known}")
        return found
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; available: {known}")
    if suffix != FORMATS[name].suffix:
        raise ValueError(f"{path} does not end in {FORMATS[name].suffix}, as files of {name} do")
    return name
