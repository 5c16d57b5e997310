"""An accelerator that is not there: tensors that say they are on ``cuda``, with their values in the CPU's memory.

The code for an accelerator runs on a machine without one, and gives the values that the CPU gives. What CUDA would
refuse is refused; what would cost time is counted, with its place:

- an operation on tensors of two devices raises RuntimeError;
- ``waits``: what the host has to wait for, such as ``.item()``, ``if tensor``, ``nonzero``, boolean indexing and copies
  to the CPU;
- ``uploads``: copies to the device. ``blocking`` are those of them that the host waits for: without
  ``non_blocking=True``, or of a list or a number that becomes a tensor on the device. ``pageable`` are those that do
  not come from pinned memory, which CUDA copies on the way.

Times mean nothing here. Streams do nothing, and ``backward`` is not pretended, for its threads ask CUDA themselves.

Example:
    >>> with Pretended() as device:
    ...     image = device.put(torch.rand(2, 3))
    ...     total = image.sum().item()
    >>> device.waits.total(), len(device.uploads)
    (1, 0)
"""

import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kornia_mvit.augmentation.randomness import OwnGenerators

CUDA = torch.device("cuda:0")
# Operators whose result, or its shape, the host asks for. Of a linear system it asks whether it has a solution.
WAITING = {
    "aten::_linalg_check_errors", "aten::_local_scalar_dense", "aten::_unique2", "aten::bincount", "aten::equal",
    "aten::is_nonzero", "aten::masked_select", "aten::nonzero", "aten::unique_consecutive", "aten::unique_dim",
    "torchvision::nms",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
MAKING = (torch.tensor, torch.as_tensor)  # of lists and numbers
Place = tuple[str, str]  # what happened, and where


class FarTensor(Tensor):
    """A tensor on the pretended device; ``near`` holds its values."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        out = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            layout=near.layout,
            device=CUDA,
        )
        out.near = near
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor on the pretended device, outside of Pretended")

    def untyped_storage(self) -> Any:
        return self.near.untyped_storage()

    def __repr__(self) -> str:
        return f"FarTensor({self.near!r})"


class Pretended:
    """The device, while its context is open.

    Args:
        float64: False refuses this dtype, as Apple's MPS does.

    Raises:
        RuntimeError: where this release of PyTorch cannot pretend.
    """

    def __init__(self, *, float64: bool = True) -> None:
        if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
            raise RuntimeError(
                f"PyTorch {torch.__version__} cannot pretend a device; use the release in constraints.txt"
            )
        self.float64 = float64
        self.waits: Counter[Place] = Counter()
        self.uploads: Counter[Place] = Counter()
        self.blocking: Counter[Place] = Counter()
        self.pageable: Counter[Place] = Counter()
        self.pinned: list[Tensor] = []  # kept, so that no other tensor gets their memory
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        torch._C._ensureCUDADeviceGuardSet()
        for name, value in (
            ("_lazy_init", lambda: None),
            ("is_available", lambda: True),
            ("current_device", lambda: 0),
            ("default_generators", (torch.Generator(),)),
            ("current_stream", mock.Mock()),
        ):
            self._stack.enter_context(mock.patch.object(torch.cuda, name, value))
        generator = OwnGenerators.generator  # that of CUDA needs a GPU
        mocked = mock.patch.object(OwnGenerators, "generator", lambda own, _: generator(own, torch.device("cpu")))
        self._stack.enter_context(mocked)
        # cuDNN's operators and CUDA's kernels of attention have no form for the CPU.
        self._stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._stack.enter_context(_Operators(self))
        self._stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def reset(self) -> None:
        """Forget what was counted."""
        for counter in (self.waits, self.uploads, self.blocking, self.pageable):
            counter.clear()

    def put(self, value: Any) -> Any:
        """Return tensors, structures of them, a batch, or a module on the device, uncounted.

        A module's weights and buffers are moved in place.
        """
        if isinstance(value, nn.Module):
            for module in value.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        far = nn.Parameter(FarTensor(parameter.detach()), parameter.requires_grad)
                        module._parameters[name] = far
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else FarTensor(buffer)
            return value
        if hasattr(value, "_map"):
            return value._map(FarTensor)
        return tree_map(lambda v: FarTensor(v) if isinstance(v, Tensor) else v, value)

    @staticmethod
    def get(value: Any) -> Any:
        """Return tensors, structures of them, or a batch on the CPU, uncounted."""
        return value._map(near_of) if hasattr(value, "_map") else tree_map(near_of, value)

    def count_upload(self, what: str, source: Tensor | None, non_blocking: bool) -> None:
        place = (what, place_of())
        self.uploads[place] += 1
        if not non_blocking:
            self.blocking[place] += 1
        storage = None if source is None else source.untyped_storage().data_ptr()
        if all(storage != tensor.untyped_storage().data_ptr() for tensor in self.pinned):
            self.pageable[place] += 1

    def count_wait(self, what: str) -> None:
        self.waits[what, place_of()] += 1


def near_of(value: Any) -> Any:
    return value.near if isinstance(value, FarTensor) else value


def place_of() -> str:
    """Return the innermost function of this package or of Kornia that is running; of Kornia's with the line."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        for package in ("/kornia_mvit/", "/kornia/"):
            if package in file:
                name = f"{package.strip('/')}/{file.rsplit(package, 1)[1]}"
                function = frame.f_code.co_qualname.replace(".<locals>", "")
                return f"{name}:{frame.f_lineno} {function}" if package == "/kornia/" else f"{name} {function}"
        frame = frame.f_back
    return "elsewhere"


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Functions(TorchFunctionMode):
    """What reaches the device below the operators: lists that become tensors, lists as indices, and pinned memory."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        far = isinstance(first, FarTensor)
        if func in MAKING and _is_cuda(kwargs.get("device")) and not isinstance(first, Tensor):
            return self._upload(func(first, **{**kwargs, "device": "cpu"}))
        if far and name == "new_tensor":
            like = {"dtype": kwargs.get("dtype", first.dtype)}
            return self._upload(torch.tensor(args[1] if len(args) > 1 else kwargs["data"], **like))
        if far and name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, list | range) for i in index):
                index = tuple(self._upload(torch.tensor(list(i))) if isinstance(i, list | range) else i for i in index)
                args = (first, index, *args[2:])
        if far and name in ("tolist", "numpy"):
            self.device.count_wait(name)
            return func(first.near, *args[1:], **kwargs)
        if name == "pin_memory" and isinstance(first, Tensor):
            assert not far
            out = first.clone()
            self.device.pinned.append(out)
            return out
        if kwargs.get("pin_memory"):
            out = func(*args, **kwargs | {"pin_memory": False})
            self.device.pinned.append(out)
            return out
        return func(*args, **kwargs)

    def _upload(self, near: Tensor) -> Tensor:
        self.device.count_upload("of a list", None, False)
        return FarTensor(near)


class _Operators(TorchDispatchMode):
    """Carry out operators on the values, and count those that wait or upload."""

    def __init__(self, device: Pretended) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        far = [tensor for tensor in tensors if isinstance(tensor, FarTensor)]
        name, to_cuda = func._schema.name, _is_cuda(kwargs.get("device"))
        if not far and not to_cuda:
            return func(*args, **kwargs)
        if name == "aten::copy_":
            return self._copy(*args, **kwargs)
        if name == "aten::_to_copy":
            return self._to_copy(func, args[0], kwargs)
        self._check_devices(name, args, tensors, far)
        near_args, near_kwargs = tree_map(near_of, (args, kwargs))
        if to_cuda:
            near_kwargs["device"] = "cpu"
        out = func(*near_args, **near_kwargs)
        known = {id(tensor.near): tensor for tensor in far}
        return tree_map(lambda v: known[id(v)] if id(v) in known else self._far(v) if isinstance(v, Tensor) else v, out)

    def _far(self, near: Tensor) -> FarTensor:
        if near.dtype == torch.float64 and not self.device.float64:
            raise TypeError(f"the device has no float64, at {place_of()}; convert to float32")
        return FarTensor(near)

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(target, FarTensor) and not isinstance(source, FarTensor) and source.ndim:
            self.device.count_upload("copy", source, non_blocking)
        elif not isinstance(target, FarTensor):
            self.device.count_wait("copy to the CPU")
        near_of(target).copy_(near_of(source))
        return target

    def _to_copy(self, func: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        from_far = isinstance(source, FarTensor)
        to_far = _is_cuda(kwargs["device"]) if kwargs.get("device") is not None else from_far
        out = func(near_of(source), **{**kwargs, "device": "cpu"})
        if to_far and not from_far:
            self.device.count_upload("to", source, bool(kwargs.get("non_blocking")))
        elif from_far and not to_far:
            self.device.count_wait("to the CPU")
        return self._far(out) if to_far else out

    def _check_devices(self, name: str, args: Any, tensors: list[Tensor], far: list[FarTensor]) -> None:
        near = [tensor for tensor in tensors if not isinstance(tensor, FarTensor) and tensor.ndim]
        if name in INDEXING and isinstance(args[0], FarTensor):
            indices = [index for index in args[1] if index is not None]
            if any(isinstance(index, FarTensor) and index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.device.count_wait("boolean index")
            for index in indices:
                if not isinstance(index, FarTensor):
                    self.device.count_upload("index", index, False)
            near = [tensor for tensor in near if not any(tensor is index for index in indices)]
        if far and near:
            raise RuntimeError(f"tensors of two devices in {name} at {place_of()}")
        if far and name in WAITING:
            self.device.count_wait(name.split("::")[1])
