"""ExecuTorch: for phones and other devices, on XNNPACK's kernels. Needs ``kornia-mvit[export]``."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from kornia_mvit.exporters.canvas import static_graph
from kornia_mvit.exporters.options import Options, takes_options
from kornia_mvit.extras import needing
from kornia_mvit.files import write_whole
from kornia_mvit.inference.engines.exported import EXECUTORCH_METADATA, load_executorch, read_metadata, silence
from kornia_mvit.weights.cards import Model

__all__ = ["load_executorch", "lower", "read_metadata", "shared_provenance", "to_executorch"]


@takes_options("size", "with_preprocess", "with_decode", "layout", "fp16", size=256)
def to_executorch(model: Model, path: str | Path, *, options: Options) -> Path:
    """Write a model as an ExecuTorch program for one image at a time, of one size.

    What XNNPACK computes is delegated to it; the rest (layer normalisation, padding) runs on ExecuTorch's own kernels.
    A program of any size does not exist: ExecuTorch's dialect lacks operations that a traced size needs, and plans its
    memory ahead.

    Args:
        model: what is written; left as it is.
        path: the file, ``.pte`` by custom.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name. The size is
            256 unless given, and never ``'dynamic'``; with preprocessing it is that of the largest image: images lie
            on a canvas of that size, see :class:`~kornia_mvit.exporters.canvas.Canvas`, and their height and width
            are a second input.

    Returns:
        The path. :func:`read_metadata` gives what the program says of itself.

    Raises:
        ImportError: where executorch is missing.
        ValueError: for ``'dynamic'`` and other sizes that the program cannot take, for preprocessing to various sizes,
            and as :func:`~kornia_mvit.exporters.deployable` says.
    """
    _need_executorch()
    graph, example, about = static_graph(model, options, "ExecuTorch")
    with torch.no_grad():
        program = torch.export.export(graph, example)
    return lower(program, path, about)


def lower(program: torch.export.ExportedProgram, path: str | Path, about: dict[str, str]) -> Path:
    """Write an exported program for ExecuTorch, on XNNPACK as far as it goes.

    Args:
        program: what :func:`torch.export.export` gives.
        path: the file.
        about: what the program says of itself.

    Returns:
        The path.

    Raises:
        ImportError: where executorch is missing.
    """
    _need_executorch()
    with silence(), shared_provenance():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={EXECUTORCH_METADATA: json.dumps(about)}
        )
        written = edge.to_executorch()
    with write_whole(path) as beside, beside.open("wb") as file:
        written.write_to_file(file)
    return Path(path)


def _need_executorch() -> None:
    with needing("ExecuTorch programs need {}", "export"):
        import executorch  # noqa: F401  # whether it is there


@contextlib.contextmanager
def shared_provenance() -> Iterator[None]:
    """Let the nodes of traced graphs share what is noted of their origin.

    Torch copies these notes, each with all those before it, for each node at each of some 200 passes, which took most
    of the time that it takes to lower a model.
    """
    from torch.fx.traceback import NodeSource

    NodeSource.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]  # it has none of its own
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]  # as above
