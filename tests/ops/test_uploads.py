"""Many small tensors in one copy."""

import torch

from kornia_mvit.ops.geometry import constant
from kornia_mvit.ops.uploads import upload
from tests.device.pretended import CUDA, Pretended

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(5, dtype=torch.uint8)[1:],
    torch.tensor(0.25, dtype=torch.float64),
    torch.rand(2, 3).T,
    torch.arange(3).expand(2, 3),
    torch.zeros(0, 4),
    torch.rand(3).half(),
]


class TestUpload:
    def test_one_copy_from_pinned_memory(self):
        with Pretended() as device:
            there = upload(TENSORS, CUDA)
            assert {tensor.device for tensor in there} == {CUDA}
            assert device.uploads.total() == 1
            assert not device.blocking
            assert not device.pageable
            for far, near in zip(device.get(there), TENSORS, strict=True):
                assert far.dtype == near.dtype
                assert torch.equal(far, near)
            assert not device.waits

    def test_what_is_there_stays(self):
        assert all(one is other for one, other in zip(upload(TENSORS, torch.device("cpu")), TENSORS, strict=True))
        with Pretended() as device:
            far = device.put(torch.rand(2))
            assert upload([far], CUDA)[0] is far
            assert not device.uploads

    def test_other_devices(self):
        """Memory is pinned for GPUs alone."""
        out = upload(TENSORS, torch.device("meta"))
        assert [(t.shape, t.dtype) for t in out] == [(t.shape, t.dtype) for t in TENSORS]


class TestConstant:
    def test_it_is_sent_once(self):
        with Pretended() as device:
            first = constant((1.5, 2.25, 77.0), CUDA)
            assert device.uploads.total() == 1
            assert constant((1.5, 2.25, 77.0), CUDA) is first
            assert device.uploads.total() == 1
            assert device.get(first).tolist() == [1.5, 2.25, 77.0]

    def test_it_serves_outside_of_inference_mode(self):
        with torch.inference_mode():
            value = constant((1.5, 3.5, 78.0), torch.device("cpu"))
        assert not value.is_inference()
