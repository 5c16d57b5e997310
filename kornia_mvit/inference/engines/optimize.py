"""What is fastest on the device at hand, found by trying."""

import functools
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit.inference.engines.fuse import FusedConv2d, fuse, load_module
from kornia_mvit.inference.engines.int8 import Calibration, Int8, prepare_calibration
from kornia_mvit.inference.engines.runtimes import RUNTIMES, OpenVINO
from kornia_mvit.inference.engines.timing import time_in_turn
from kornia_mvit.models.fast import slice_size
from kornia_mvit.models.staged import StagedBackbone
from kornia_mvit.parsing import brief
from kornia_mvit.weights.cards import Model

__all__ = ["Optimized", "optimize"]

ENGINES = ("auto", "eager", "compile", "reduce-overhead", *RUNTIMES)
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": None}
_ROUNDS, _SECONDS = 200, 2.0  # of trying, for all contestants together, once they are warm


class Optimized(nn.Module):
    """What :func:`optimize` gives: the model as it runs fastest, and the story of how it was chosen.

    Attributes:
        model: the fused model, in eager form; its attributes and methods are found on this module too.
        steps: what was done, a line each; ``print(optimized.report)`` shows them.
        milliseconds: the median time of each contestant on the example.
        engine: what runs it: ``'eager'``, ``'compiled'``, ``'openvino'``, ``'onnxruntime'``, ….

    Shape:
        - Input: as the model's, of any floating-point type; it is brought to the model's type and layout
        - Output: as the model's; half precision comes back as float32
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Tensor], Any],
        steps: Sequence[str],
        milliseconds: dict[str, float],
        engine: str = "eager",
    ) -> None:
        super().__init__()
        self.model = model
        self.steps: tuple[str, ...] = tuple(steps)
        self.milliseconds = milliseconds
        self.engine = engine
        self._run = run
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def report(self) -> str:
        """What was done, a line each."""
        return "\n".join(self.steps)

    def forward(self, x: Tensor) -> Any:
        """Run the model without gradients."""
        with torch.inference_mode():
            return _to_float(self._run(_prepare(x, self._dtype)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def extra_repr(self) -> str:
        """Show what was done."""
        return self.report


def optimize(
    model: nn.Module | str | Path,
    example: Tensor,
    *,
    engine: str = "auto",
    precision: str | None = None,
    calibration: Calibration | None = None,
    dtype: torch.dtype | None = None,
    dynamic: bool = False,
    mode: str | None = None,
) -> Optimized:
    """Make a trained model as fast as the device allows, and say what was done.

    The model is copied and fused (:func:`~kornia_mvit.fuse`). ``'auto'`` then times it in eager form, compiled, and, on
    a CPU, by OpenVINO and ONNX Runtime where they are installed, on the example, in turn, and keeps the fastest; large
    batches also by slices that fit the CPU's cache. What cannot run here, for want of a package or a C++ compiler, or
    whose answers are not within 1e-4 of the model's, is left out, and the report says why.

    Args:
        model: any of this package's, with its weights, on the device it will run on; or what
            :func:`~kornia_mvit.from_pretrained` takes, for the example's device.
        example: images as they will come, (B, C, H, W): their size, batch and device are what it is tuned for. Others
            work too; with a compiled model each costs a compilation, unless ``dynamic``.
        engine: ``'auto'``; ``'eager'``: fuse alone, which takes no time; ``'compile'``: always compile;
            ``'reduce-overhead'``: compile with CUDA graphs, for small batches of one size on a GPU; ``'openvino'`` or
            ``'onnxruntime'``: that one, on a CPU, see :class:`~kornia_mvit.inference.engines.runtimes.Runtime`.
        precision: None or ``'fp32'`` for the model's own; ``'bf16'`` pays on GPUs and on CPUs with AMX or AVX512-BF16,
            ``'fp16'`` on GPUs: images are brought to it, the result to float32. ``'int8'`` runs on a CPU by OpenVINO,
            see :class:`~kornia_mvit.inference.engines.int8.Int8`; the report says what it does to the outputs.
        calibration: for int8, images like those to come, a hundred or so: a folder of them, a list of paths, or uint8
            RGB (3, H, W), which the model's ``preprocess`` prepares; or ``'shapes'`` for drawn ones, where there are
            no others.
        dtype: the precision as PyTorch has it: ``torch.bfloat16`` for ``'bf16'``.
        dynamic: compile for all sizes at once, from batches of 2 up.
        mode: the old name of ``engine``, until 0.3.

    Returns:
        A module that takes the example's like; ``.report`` tells what was done.

    Raises:
        CheckpointError: if the model cannot be read.
        TypeError: for what is no module, and an example that is no tensor.
        ValueError: for an unknown engine or precision, int8 without calibration images or by another engine,
            ``'reduce-overhead'`` without a GPU, an example that is not (B, C, H, W), not what the model takes, or on
            another device, a dtype that the device has no instructions for, and a runtime that is asked for where it
            cannot run: not on a CPU, not in float32, or for all sizes at once.
        ImportError: where the runtime that is asked for is not installed, naming what to install.

    Example:
        >>> from kornia_mvit import MobileViTClassifier
        >>> fast = optimize(MobileViTClassifier('xxs', 5), torch.rand(1, 3, 64, 64), engine='eager')
        >>> fast(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 5])
        >>> fast.steps[0]
        'fused batch normalisation and activations into 35 convolutions'
    """
    if mode is not None:
        warnings.warn("mode is now engine; the old name is removed in 0.3", DeprecationWarning, stacklevel=2)
        engine = mode
    dtype = _find_dtype(precision, dtype)
    model = _load(model, example)
    device = _check(model, example, engine, dtype, precision)
    images = _read_calibration(model, engine, precision, calibration)
    fused = fuse(model) if dtype is None else fuse(model).to(dtype)
    count = sum(isinstance(module, FusedConv2d) for module in fused.modules())
    steps = [f"fused batch normalisation and activations into {count} convolutions"]
    if dtype is not None:
        steps.append(f"brought weights and images to {str(dtype).removeprefix('torch.')}")
    image = _prepare(example, next(fused.parameters()).dtype)
    if engine == "eager":
        return Optimized(fused, fused, [*steps, f"left eager, as asked, on {device}"], {})

    if engine in RUNTIMES or images:
        if reason := _no_runtime(device, image, dynamic):
            raise ValueError(f"{Int8.name if images else engine} {reason}; take another engine")
        return _run_by(engine, fused, image, images, steps)

    settings = _settings(device, engine, dynamic)
    how = ", ".join(("inductor", *settings.get("options", ()), *filter(None, [settings.get("mode")])))
    compiled = torch.compile(fused, dynamic=dynamic, **settings)
    if engine != "auto":
        _warm_up([compiled], image)
        return Optimized(fused, compiled, [*steps, f"compiled for {device} ({how}), as asked"], {}, "compiled")
    contestants: dict[str, Callable[[Tensor], Any]] = {"eager": fused, "compiled": compiled}
    if (size := _slice_size(fused, image)) and not dynamic:
        contestants[f"compiled for slices of {size}"] = _Slices(compiled, fused, size)
    try:
        _warm_up(contestants.values(), image)
    except Exception as error:  # the compilers behind it raise what they like
        contestants = {"eager": fused}
        steps.append(f"left out compiled: it cannot be compiled here ({_first_line(error)})")
    for name, runtime in RUNTIMES.items():
        try:
            if reason := _no_runtime(device, image, dynamic):
                raise ValueError(reason)
            contestants[name] = runtime(fused, image)
        except Exception as error:  # and so do the converters
            steps.append(f"left out {name}: {_first_line(error)}")
    if len(contestants) == 1:
        return Optimized(fused, fused, [*steps, f"left eager on {device}: there is nothing else"], {})
    times = _race(contestants, image)
    best = min(times, key=times.__getitem__)
    settled = {"compiled": f" ({how})"}
    told = ", ".join(f"{taken:.2f} ms {name}{settled.get(name, '')}" for name, taken in times.items())
    steps.append(f"kept it {best} on {device}, by the medians for {tuple(example.shape)}: {told}")
    return Optimized(fused, contestants[best], steps, times, best)


def _load(model: nn.Module | str | Path, example: object) -> nn.Module:
    """Return the model; that of a checkpoint is brought to the example's device."""
    if not isinstance(example, Tensor):
        raise TypeError(f"the example is {brief(example)}; give images as the model takes them, a tensor (B, C, H, W)")
    loaded = load_module(model)
    return loaded if loaded is model else loaded.to(example.device)


def _find_dtype(precision: str | None, dtype: torch.dtype | None) -> torch.dtype | None:
    """Return the floating-point type that is asked for, in one way or the other; None for the model's own."""
    if precision is None:
        return dtype
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; available: {', '.join(map(repr, PRECISIONS))}")
    if dtype is not None and dtype != PRECISIONS[precision]:
        raise ValueError(f"precision is {precision!r} and dtype is {dtype}; give one of them")
    return PRECISIONS[precision]


def _read_calibration(
    model: nn.Module, engine: str, precision: str | None, calibration: Calibration | None
) -> list[Tensor]:
    """Return the calibration images, prepared; none where nothing is quantised."""
    if precision != "int8":
        if calibration is not None:
            raise ValueError("calibration is for int8; give precision='int8' too")
        return []
    if calibration is None:
        raise ValueError("int8 needs calibration, a folder with a hundred or so images like those to come")
    if engine not in ("auto", OpenVINO.name):
        raise ValueError(f"engine {engine!r} has no int8; take 'openvino', or export a file with int8=True")
    return list(prepare_calibration(model, calibration))


def _run_by(
    engine: str, fused: nn.Module, image: Tensor, calibration: Sequence[Tensor], steps: Sequence[str]
) -> Optimized:
    """Return the model as a runtime runs it; with calibration images in int8, timed beside itself in float32."""
    if not calibration:
        return Optimized(fused, RUNTIMES[engine](fused, image), [*steps, f"runs by {engine}, as asked"], {}, engine)
    int8, whole = Int8(fused, image, calibration), OpenVINO(fused, image)
    told = (
        f"quantised to int8 with {len(calibration)} images, of which outputs change by {int8.change.error:.2%} (root "
        f"mean square), and {int8.change.changed:.2%} of the answers are others"
    )
    times = _race({OpenVINO.name: whole, Int8.name: int8}, image)
    timed = ", ".join(f"{taken:.2f} ms {name}" for name, taken in times.items())
    last = f"runs by {Int8.name}, as asked; by the medians for {tuple(image.shape)}: {timed}"
    return Optimized(fused, int8, [*steps, told, last], times, Int8.name)


def _no_runtime(device: torch.device, image: Tensor, dynamic: bool) -> str:
    """Say why runtimes beside PyTorch cannot run here; nothing where they can."""
    if device.type != "cpu":
        return f"runs on a CPU here, and the model is on {device}"
    if image.dtype != torch.float32:
        return f"runs in float32 here, and the model is in {str(image.dtype).removeprefix('torch.')}"
    return "is made for each size, and all at once are asked for" if dynamic else ""


def _warm_up(runs: Iterable[Callable[[Tensor], Any]], image: Tensor) -> None:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, of what it would rather have
        for run in runs:
            run(image)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Slices:
    """Run a batch by slices of one size, through a model compiled for it, and the rest through another."""

    def __init__(self, model: Callable[[Tensor], Any], rest: Callable[[Tensor], Any], size: int) -> None:
        self.model, self.rest, self.size = model, rest, size

    def __call__(self, x: Tensor) -> Any:
        parts = [self.model(s) if len(s) == self.size else self.rest(s) for s in torch.split(x, self.size)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return type(parts[0])(torch.cat(values) for values in zip(*parts, strict=True))


def _slice_size(model: nn.Module, image: Tensor) -> int | None:
    """How many images fit the CPU's cache, if that is fewer than there are."""
    backbone = next((module for module in model.modules() if isinstance(module, StagedBackbone)), None)
    with torch.inference_mode():
        return None if backbone is None else slice_size(backbone, image)


def _check(
    model: nn.Module, example: Tensor, engine: str, dtype: torch.dtype | None, precision: str | None
) -> torch.device:
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; available: {', '.join(map(repr, ENGINES))}")
    if example.ndim != 4:
        raise ValueError(f"the example has shape {tuple(example.shape)}; give images of shape (B, C, H, W)")
    if isinstance(model, Model | StagedBackbone) and not example.is_floating_point():
        raise ValueError(
            f"the example is {example.dtype}; give images as the model takes them, model.preprocess(image)"
        )
    device = next((p.device for p in model.parameters()), example.device)
    if example.device != device:
        raise ValueError(f"the example is on {example.device} and the model on {device}; bring both to one device")
    if engine == "reduce-overhead" and device.type != "cuda":
        raise ValueError(f"'reduce-overhead' records CUDA graphs, and the model is on {device}; take 'compile'")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype {dtype} is not floating point; give precision='int8' for that")
    if device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        _check_half(dtype, precision)
    return device


def _check_half(dtype: torch.dtype, precision: str | None) -> None:
    """Raise for a type of 16 bits that the CPU has no instructions for, in the words that it was asked for in."""
    given, name, half = "dtype", f"{dtype}", "torch.bfloat16"
    if precision is not None:
        given, name, half = "precision", f"{precision!r}", "'bf16'"
    if dtype == torch.float16:
        remedy = f"take {half} or leave {given} out" if has_bfloat16() else f"leave {given} out"
        raise ValueError(f"{given} {name} is slower than float32 on this CPU; {remedy}")
    if not has_bfloat16():
        raise ValueError(
            f"{given} {name} would be slower: this CPU has no bfloat16 instructions (AMX, AVX512-BF16); leave {given} "
            "out"
        )


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _settings(device: torch.device, engine: str, dynamic: bool) -> dict[str, Any]:
    """What torch.compile is told beside the model."""
    if engine == "reduce-overhead":
        return {"mode": "reduce-overhead"}
    if device.type != "cpu":
        return {}
    # Weights are constants, which lets inductor lay them out for the CPU's kernels beforehand. For fixed sizes, the
    # calls between kernels are compiled too: they weigh a few per cent where images are small.
    return {"options": {"freezing": True} if dynamic else {"freezing": True, "cpp_wrapper": True}}


def _prepare(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, memory_format=torch.channels_last) if x.is_floating_point() and x.ndim == 4 else x


def _to_float(y: Any) -> Any:
    if isinstance(y, Tensor):
        return y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
    if isinstance(y, tuple | list):
        values = [_to_float(value) for value in y]
        return type(y)(*values) if hasattr(y, "_fields") else type(y)(values)
    return y


@torch.inference_mode()
def _race(contestants: dict[str, Callable[[Tensor], Any]], image: Tensor) -> dict[str, float]:
    """Median milliseconds of each."""
    runs = {name: functools.partial(run, image) for name, run in contestants.items()}
    times = time_in_turn(runs, _ROUNDS, seconds=_SECONDS)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
