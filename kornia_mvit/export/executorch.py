"""ExecuTorch: for phones and other devices, on XNNPACK's kernels. Needs ``kornia-mvit[export]``."""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit.export.canvas import Canvas
from kornia_mvit.export.graph import Deployed, deployable
from kornia_mvit.export.metadata import metadata
from kornia_mvit.export.sizes import Size, check_size, example_input, sides
from kornia_mvit.models.fuse import fuse
from kornia_mvit.weights.cards import Model

__all__ = ["lower", "read_metadata", "run_executorch", "static_graph", "to_executorch"]

METADATA = "kornia_mvit_metadata"


def to_executorch(
    model: Model,
    path: str | Path,
    *,
    size: Size = 256,
    with_preprocess: bool = False,
    with_decode: bool = False,
    layout: str = "nchw",
    fp16: bool = False,
) -> Path:
    """Write a model as an ExecuTorch program for one image at a time, of one size.

    What XNNPACK computes is delegated to it; the rest (layer normalisation, padding) runs on ExecuTorch's own kernels.
    A program of any size does not exist: ExecuTorch's dialect lacks operations that a traced size needs, and plans its
    memory ahead.

    Args:
        model: what is written; left as it is.
        path: the file, ``.pte`` by custom.
        size: height and width in pixels, or one number for both, of the images that go in; with preprocessing those
            of the largest: images lie on a canvas of that size, see :class:`~kornia_mvit.export.canvas.Canvas`.
        with_preprocess: take uint8 images, and their height and width as a second input; resize, crop and normalise
            them inside.
        with_decode: see :func:`~kornia_mvit.export.deployable`.
        layout: see :func:`~kornia_mvit.export.deployable`.
        fp16: keep weights and compute in half precision, half the file; what goes in and out stays as it is.

    Returns:
        The path. :func:`read_metadata` gives what the program says of itself.

    Raises:
        ImportError: where executorch is missing.
        ValueError: for ``'dynamic'`` and other sizes that the program cannot take, for preprocessing to various sizes,
            and as :func:`~kornia_mvit.export.deployable` says.
    """
    _need_executorch()
    graph, example = static_graph(model, size, with_preprocess, with_decode, layout, "ExecuTorch")
    if fp16:
        _halve(graph.graph.model if isinstance(graph, Canvas) else graph.model)
    with torch.no_grad():
        program = torch.export.export(graph, example)
    return lower(program, path, metadata(model, graph.graph if isinstance(graph, Canvas) else graph))


def static_graph(
    model: Model, size: Size, with_preprocess: bool, with_decode: bool, layout: str, format_name: str
) -> tuple[Deployed | Canvas, tuple[Tensor, ...]]:
    """Give the module that a format of one size is made from, and an example of its inputs.

    Raises:
        ValueError: as :func:`to_executorch` says.
    """
    graph = deployable(
        model, with_preprocess=with_preprocess, with_decode=with_decode, layout=layout, resample="matmul"
    )
    check_size(graph, size, dynamic=False, format_name=format_name)
    assert not isinstance(size, str)
    image = example_input(graph, size, batch=1)
    graph.model = fuse(graph.model).to(memory_format=torch.contiguous_format)  # as the exporters want weights
    if not with_preprocess:
        return graph, (image,)
    height, width = sides(size)
    return Canvas(graph, (height, width)).eval(), (image, torch.tensor([height, width]))


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
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(about)}
        )
        written = edge.to_executorch()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        written.write_to_file(file)
    return path


def run_executorch(path: str | Path) -> Callable[..., list[Tensor]]:
    """Load a program into ExecuTorch's runtime: a function of its inputs that gives its outputs.

    Raises:
        ImportError: where executorch is missing.
        FileNotFoundError: if there is no such file.
    """
    _need_executorch()
    method = _load(path).load_method("forward")

    def run(*inputs: Tensor) -> list[Tensor]:
        out: Sequence[Tensor] = method.execute(tuple(x.contiguous() for x in inputs))
        return [y.clone() for y in out]  # the next call writes into the same memory

    return run


def read_metadata(path: str | Path) -> dict[str, str]:
    """Give what a program says of itself: see :func:`~kornia_mvit.export.metadata`."""
    _need_executorch()
    (text,) = _load(path).load_method(METADATA).execute(())
    out: dict[str, str] = json.loads(text)
    return out


def _load(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with _quiet():
        from executorch.runtime import Runtime

        return Runtime.get().load_program(Path(path).read_bytes())


def _halve(model: nn.Module) -> None:
    """Let a model compute in half precision, between inputs and outputs in single."""
    model.half()
    model.register_forward_pre_hook(lambda _, inputs: tuple(x.half() for x in inputs))
    model.register_forward_hook(
        lambda _, __, out: tuple(x.float() for x in out) if isinstance(out, tuple) else out.float()
    )


def _need_executorch() -> None:
    try:
        import executorch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ExecuTorch programs need {error.name}; install kornia-mvit[export]") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own parts from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
