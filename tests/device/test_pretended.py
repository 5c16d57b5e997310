"""The pretended device itself: it finds what is planted."""

import pytest
import torch
from kornia.augmentation import Normalize
from torch import nn

from kornia_mvit.ops.losses import pixel_lovasz
from tests.device.pretended import CUDA, Pretended


class TestPretended:
    def test_values_are_those_of_the_cpu(self):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        image = torch.rand(2, 3, 8, 8)
        expected = network(image).square().mean()
        with Pretended() as device:
            loss = device.put(network)(device.put(image)).square().mean()
            assert loss.device == CUDA
            assert loss.requires_grad
        assert torch.equal(device.get(loss), expected)
        assert not device.waits
        assert not device.uploads

    def test_two_devices_in_one_operation(self):
        with Pretended() as device, pytest.raises(RuntimeError, match=r"two devices.*add"):
            device.put(torch.rand(2)) + torch.rand(2)

    def test_a_number_goes_along(self):
        with Pretended() as device:
            out = device.put(torch.ones(2)) + torch.tensor(1.0)
        assert device.get(out).tolist() == [2.0, 2.0]
        assert not device.uploads

    @pytest.mark.parametrize(
        "wait",
        [
            lambda far: far.sum().item(),
            lambda far: far.tolist(),
            lambda far: bool(far.any()),
            lambda far: int(far.sum()),
            lambda far: far.cpu(),
            lambda far: far.nonzero(),
            lambda far: far[far > 0],
            lambda far: far.unique(),
            lambda far: torch.empty(3).copy_(far),
            lambda far: torch.linalg.inv(far * torch.eye(3, device=far.device)),
        ],
    )
    def test_a_wait(self, wait):
        with Pretended() as device:
            far = device.put(torch.arange(1.0, 4.0))
            assert not device.waits
            wait(far)
            assert device.waits.total() == 1

    @pytest.mark.parametrize(
        "upload",
        [
            lambda far: torch.arange(3.0).to(far.device),
            lambda far: torch.tensor([1.0, 2.0], device=far.device),
            lambda far: far.new_tensor([1.0]),
            lambda far: far[[0, 1]],
            lambda far: far[torch.tensor([0, 1])],
            lambda far: far.copy_(torch.zeros(3)),
            lambda far: far.__setitem__([0, 1], 0.0),
        ],
    )
    def test_a_blocking_upload(self, upload):
        with Pretended() as device:
            upload(device.put(torch.arange(3.0)))
            assert device.uploads.total() == device.blocking.total() == 1
            assert not device.waits

    def test_an_upload_that_does_not_block(self):
        with Pretended() as device:
            torch.arange(3.0).to(CUDA, non_blocking=True)
            assert device.uploads.total() == device.pageable.total() == 1
            assert not device.blocking
            device.reset()
            torch.arange(3.0).pin_memory()[1:].to(CUDA, non_blocking=True)
            assert device.uploads.total() == 1
            assert not device.pageable

    def test_it_tells_where(self):
        """Of this package the function, of Kornia the line as well, of which its release is known."""
        with Pretended() as device:
            pixel_lovasz(*device.put((torch.rand(1, 2, 4, 4), torch.zeros(1, 4, 4).long())))
            Normalize([0.5], [0.5])(device.put(torch.rand(1, 1, 4, 4)))
        assert set(device.waits) == {("boolean index", "kornia_mvit/ops/losses.py _pick")}
        assert all(place.startswith("kornia/") and ":" in place for _, place in device.uploads)

    def test_refuses_float64(self):
        with Pretended(float64=False) as device:
            far = device.put(torch.rand(2))
            with pytest.raises(TypeError, match=r"float64.*float32"):
                far.double()

    def test_what_is_not_inside_fails(self):
        with Pretended() as device:
            far = device.put(torch.rand(2))
        with pytest.raises(RuntimeError, match="outside"):
            far + 1

    def test_it_leaves_nothing_behind(self):
        before = torch.cuda.is_available(), torch.cuda._lazy_init
        with Pretended():
            pass
        assert (torch.cuda.is_available(), torch.cuda._lazy_init) == before
