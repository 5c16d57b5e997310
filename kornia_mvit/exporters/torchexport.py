"""A program of torch.export: PyTorch's own format, which runs without the code that built it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kornia_mvit.exporters.card import metadata
from kornia_mvit.exporters.options import Options, takes_options
from kornia_mvit.exporters.tracing import check_size, dynamic_shapes, example_input, quiet
from kornia_mvit.files import write_whole
from kornia_mvit.parsing import reading
from kornia_mvit.weights.cards import Model

__all__ = ["load_torchexport", "to_torchexport"]

_METADATA = "kornia_mvit.json"


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
    if path.suffix != ".pt2":
        raise ValueError(f"{path} does not end in .pt2, as the files of torch.export do")
    graph, size = options.build_graph(model), options.size
    check_size(graph, size)
    with quiet(), torch.no_grad():
        program = torch.export.export(graph, (example_input(graph, size),), dynamic_shapes=dynamic_shapes(graph, size))
        data = io.BytesIO()  # as its own writer ends the process where a disk is full
        torch.export.save(program, data, extra_files={_METADATA: json.dumps(metadata(model, graph))})
    with write_whole(path) as beside:
        beside.write_bytes(data.getbuffer())
    return path


def load_torchexport(path: str | Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return a function that runs a ``.pt2`` file on images and returns its outputs as a tuple.

    Args:
        path: what :func:`to_torchexport` wrote.
    """
    with quiet(), reading(path, "a file of torch.export"):
        run = torch.export.load(path).module()

    def call(image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            out = run(image)
        return tuple(out) if isinstance(out, tuple | list) else (out,)

    return call
