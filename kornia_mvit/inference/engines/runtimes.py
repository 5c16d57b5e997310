"""Runtimes beside PyTorch that a network can be handed to: OpenVINO and ONNX Runtime, on a CPU.

Each takes a network and gives a callable from images to what the network returns, as tensors. A network is translated
anew for each size of images, which takes seconds.
"""

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from kornia_mvit.extras import needing
from kornia_mvit.inference.engines.exported import compile_openvino, quiet, silence

__all__ = ["RUNTIMES", "ONNXRuntime", "OpenVINO", "Run", "Runtime", "open_request"]

_SIZES = 8  # that a network is translated for
_TOLERANCE = 1e-4  # of the largest value of an output
_ROUNDING = 1e-5  # likewise, of kernels that are right
Shape = tuple[int, ...]
Run = Callable[[Tensor], Sequence[Any]]  # from images to arrays, for one thread


class Runtime(ABC):
    """A network in a runtime, with float32 throughout and as many threads as PyTorch has.

    It is translated for the first images' size as it is made, and for further sizes as they come, and its answers are
    compared with PyTorch's at each. PyTorch runs the sizes at which they differ, and those after some. Several threads
    may call it at the same time. Pickled or copied, it is translated again.

    Args:
        model: a network in eval mode, float32, on the CPU.
        example: images (B, C, H, W) as they will come.

    Raises:
        ImportError: where the runtime is not installed, naming what to install.
        RuntimeError: where its answers for the example are not the network's.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self.threads: int = torch.get_num_threads()
        self._begin()
        self._makers[tuple(example.shape)] = self._compared(example)

    def _compared(self, x: Tensor) -> Callable[[], Run]:
        """Translate the network for images of a size, as it is fastest of the ways whose answers are PyTorch's."""
        expected, self._spec = self._flatten(x)
        far = float("inf")
        for maker, tolerance in self.translate(x):
            far = _distance(maker()(x.detach().contiguous()), expected)
            if far <= tolerance:
                return maker
        raise RuntimeError(f"its answers are {far:.1e} of the largest away from PyTorch's")

    @torch.inference_mode()
    def _flatten(self, x: Tensor) -> tuple[list[Any], TreeSpec]:
        """Return what PyTorch answers, as a list, and how to put it together again."""
        return tree_flatten(self.model(x))

    def _rebuild(self, arrays: Sequence[Any]) -> Any:
        """Return arrays as the network returns its outputs."""
        return tree_unflatten([torch.from_numpy(array) for array in arrays], self._spec)

    def _begin(self) -> None:
        self._makers: dict[Shape, Callable[[], Run] | None] = {}  # None where PyTorch is to run
        self._lock = threading.Lock()
        self._own = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_makers", "_lock", "_own")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def __call__(self, x: Tensor) -> Any:
        """Run the network on images (B, C, H, W)."""
        if x.dtype != torch.float32:
            return self.model(x)
        shape = tuple(x.shape)
        mine: dict[Shape, Run] = self._own.__dict__.setdefault("runs", {})
        run = mine.get(shape)
        if run is None:
            with self._lock:
                if shape not in self._makers and len(self._makers) < _SIZES:
                    try:
                        self._makers[shape] = self._compared(x)
                    except RuntimeError as error:
                        self._makers[shape] = None
                        warnings.warn(f"{self.name} does not run {shape}, and PyTorch does: {error}", stacklevel=2)
                maker = self._makers.get(shape)
            if maker is None:
                return self.model(x)
            run = mine[shape] = maker()
        return self._rebuild(run(x.detach().contiguous()))

    @abstractmethod
    def translate(self, x: Tensor) -> Iterator[tuple[Callable[[], Run], float]]:
        """Translate the network for images of a size, in one way or several, the fastest first.

        Args:
            x: images of the size.

        Yields:
            What gives each thread what it runs, and how far its answers may be from PyTorch's, of the largest.
        """


class OpenVINO(Runtime):
    """OpenVINO, which PyTorch's trace of the network is given to as it is."""

    name = "openvino"

    def translate(self, x: Tensor) -> Iterator[tuple[Callable[[], Run], float]]:
        """Convert, and compile with kernels that are faster and right at most sizes, then without."""
        converted = self.convert(x)
        for snippets, tolerance in ((True, _ROUNDING), (False, _TOLERANCE)):
            yield partial(open_request, compile_openvino(converted, self.threads, snippets=snippets)), tolerance

    def convert(self, x: Tensor) -> Any:
        """Return the network as OpenVINO has it in memory, for images of a size."""
        with needing("the engine needs openvino", "export"):
            import openvino
        with silence(), torch.no_grad():  # of the tracer's warnings: sizes are to be numbers
            return openvino.convert_model(self.model, example_input=x, input=[list(x.shape)])


def open_request(compiled: Any) -> Run:
    """Return a function from images to arrays, for one thread, of a compiled model of OpenVINO."""
    request = compiled.create_infer_request()
    return lambda x: list(request.infer([x.numpy()], share_inputs=True).values())


class ONNXRuntime(Runtime):
    """ONNX Runtime, by way of an ONNX file."""

    name = "onnxruntime"

    def translate(self, x: Tensor) -> Iterator[tuple[Callable[[], Run], float]]:
        """Export and load."""
        with needing("the engine needs {}", "export"):
            import onnx  # noqa: F401  # torch.onnx needs it
            import onnxruntime
            import onnxscript  # noqa: F401  # as above
        with quiet(), torch.no_grad(), TemporaryDirectory() as folder:
            program = torch.export.export(self.model, (x,))
            written = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
            assert written is not None
            written.save(f"{folder}/model.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
            session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, ["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        yield lambda: lambda x: session.run(None, {name: x.numpy()}), _TOLERANCE  # which any threads may call


def _distance(found: Sequence[Any], expected: Sequence[Tensor]) -> float:
    """Return how far arrays are from tensors at most, as a share of each one's largest value."""
    return max(
        float((torch.from_numpy(array) - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-6)
        for array, wanted in zip(found, expected, strict=True)
    )


RUNTIMES: dict[str, type[Runtime]] = {one.name: one for one in (OpenVINO, ONNXRuntime)}
