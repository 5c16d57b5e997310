"""A program of torch.export: PyTorch's own format, which runs without the code that built it."""

import io
import json
from pathlib import Path

import torch

from kornia_mvit.exporters.card import metadata
from kornia_mvit.exporters.formats import find_format
from kornia_mvit.exporters.options import Options, takes_options
from kornia_mvit.exporters.tracing import check_size, dynamic_shapes, example_input
from kornia_mvit.files import write_whole
from kornia_mvit.inference.engines.exported import TORCHEXPORT_METADATA, load_torchexport, quiet
from kornia_mvit.weights.cards import Model

__all__ = ["load_torchexport", "to_torchexport"]


@takes_options("size", "with_preprocess", "with_decode", "layout", "fp16")
def to_torchexport(model: Model, path: str | Path, *, options: Options) -> Path:
    """Write a model as a ``.pt2`` file, for :func:`torch.export.load`.

    Args:
        model: what is written; left as it is.
        path: the file.
        options: fields of :class:`~kornia_mvit.exporters.options.Options`, by name.

    Returns:
        The path. What :func:`~kornia_mvit.exporters.metadata` tells is in the file's extra file ``kornia_mvit.json``.

    Raises:
        ValueError: for a path of another ending, for sizes that the network does not take, and as
            :func:`~kornia_mvit.exporters.deployable` says.
    """
    path = Path(path)
    find_format(path, "torchexport")  # refuses another ending
    graph, size = options.build_graph(model), options.size
    check_size(graph, size)
    with quiet(), torch.no_grad():
        program = torch.export.export(graph, (example_input(graph, size),), dynamic_shapes=dynamic_shapes(graph, size))
        data = io.BytesIO()  # as its own writer ends the process where a disk is full
        torch.export.save(program, data, extra_files={TORCHEXPORT_METADATA: json.dumps(metadata(model, graph))})
    with write_whole(path) as beside:
        beside.write_bytes(data.getbuffer())
    return path
