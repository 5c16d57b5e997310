"""Kornia's way to export: a method of the model."""

from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["ExportableModule"]


class ExportableModule(nn.Module):
    """A model that can be written as an ONNX file."""

    def to_onnx(self, path: str | Path, **options: Any) -> Path:
        """Write the model as an ONNX file. Needs ``kornia-mvit[export]``.

        Args:
            path: the file.
            options: those of :func:`kornia_mvit.exporters.to_onnx`, such as ``with_preprocess=True``.

        Returns:
            The path.
        """
        from kornia_mvit.exporters import to_onnx  # a model's file imports no exporter

        return to_onnx(self, path, **options)  # type: ignore[arg-type]  # one of the three models
