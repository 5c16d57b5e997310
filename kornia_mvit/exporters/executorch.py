"""ExecuTorch: for phones and other devices, on XNNPACK's kernels. Needs ``kornia-mvit[export]``."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.exporters.canvas import lay_on_canvas, static_graph
from kornia_mvit.exporters.options import Options, takes_options
from kornia_mvit.exporters.tracing import silence
from kornia_mvit.files import write_whole
from kornia_mvit.parsing import reading
from kornia_mvit.weights.cards import Model

__all__ = ["load_executorch", "lower", "read_metadata", "shared_provenance", "to_executorch"]

METADATA = "kornia_mvit_metadata"


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
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(about)}
        )
        written = edge.to_executorch()
    with write_whole(path) as beside, beside.open("wb") as file:
        written.write_to_file(file)
    return Path(path)


def load_executorch(path: str | Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return a function that runs a program on one image, (1, C, H, W) or (1, H, W, C), by ExecuTorch's runtime.

    Where the program prepares images, they are of any size up to its canvas's: they are laid on it here, and label
    maps are cut to the image's size.

    Args:
        path: the ``.pte`` file.

    Raises:
        ImportError: where executorch is missing.
        FileNotFoundError: if there is no such file.
    """
    program = _load(path)  # kept, as its methods live in its memory
    about = _about(program, path)
    with reading(path, "an ExecuTorch program of this package"):
        method = program.load_method("forward")
        canvas, graph = json.loads(about.get("canvas", "null")), json.loads(about["graph"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        assert program is not None
        if canvas is None:
            inputs: tuple[Tensor, ...] = (image.contiguous(),)
        else:
            image = image.permute(0, 3, 1, 2) if graph["layout"] == "nhwc" else image
            inputs = lay_on_canvas(image[0], (canvas[0], canvas[1]), graph["layout"])
        out = [torch.as_tensor(y).clone() for y in method.execute(inputs)]  # the next call writes into the same memory
        if canvas is not None and graph["with_decode"] and about["task"] == "segmentation":
            out = [y[:, : image.shape[2], : image.shape[3]] for y in out]
        return tuple(out)

    return run


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what a program says of itself: see :func:`~kornia_mvit.exporters.metadata`.

    Args:
        path: the ``.pte`` file.

    Raises:
        ImportError: where executorch is missing.
        FileNotFoundError: if there is no such file.
    """
    return _about(_load(path), path)


def _about(program: Any, path: str | Path) -> dict[str, str]:
    with reading(path, "an ExecuTorch program of this package"):
        (text,) = program.load_method(METADATA).execute(())
        out: dict[str, str] = json.loads(text)
        return {str(name): str(value) for name, value in out.items()}


def _load(path: str | Path) -> Any:
    _need_executorch()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with silence(), reading(path, "an ExecuTorch program"):
        from executorch.runtime import Runtime

        return Runtime.get().load_program(Path(path).read_bytes())


def _need_executorch() -> None:
    try:
        import executorch  # noqa: F401  # whether it is there
    except ImportError as error:
        raise ImportError(f"ExecuTorch programs need {error.name}; install kornia-mvit[export]") from error


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
