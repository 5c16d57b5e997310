"""A small network without fault, and others with one each. They stand in a module, so that they can be pickled."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.models.mobilevit import unfold


class Clean(nn.Module):
    """Two convolutions and a norm: (B, 3, H, W) -> (B, 8, H / 4, W / 4), rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def stages(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.silu(self.norm(self.stem(x))))
        return y

    def forward(self, x: Tensor):
        return self.stages(x)


class Maps(Clean):
    def forward(self, x):
        early = F.silu(self.norm(self.stem(x)))
        return {"early": early, "late": [self.head(early)]}


class Classifier(Clean):
    def forward(self, x):
        return self.stages(x).mean((2, 3))


class Refuses(Clean):
    def forward(self, x):
        if x.shape[-1] % 32 or x.shape[-2] % 32:
            raise ValueError(f"height {x.shape[-2]} and width {x.shape[-1]} are not multiples of 32")
        return self.stages(x)


class Crashes(Clean):
    """A map of odd width goes into columns of two."""

    def forward(self, x):
        y = self.stages(x)
        return y.reshape(*y.shape[:3], y.shape[3] // 2, 2).flatten(3)


class Transposes(Clean):
    """Unfolded row by row and folded column by column."""

    def forward(self, x):
        y = self.stages(x)
        tokens = unfold(y, (1, 1))
        return tokens.transpose(-1, -2).reshape(len(y), y.shape[1], y.shape[3], y.shape[2])


class ChangesChannels(Clean):
    def forward(self, x):
        y = self.stages(x)
        return y[:, :7] if x.shape[-1] > 40 else y


class NotANumber(Clean):
    """Infinity comes in at widths above 40."""

    def forward(self, x):
        y = self.stages(x)
        return y * torch.inf * 0.0 if x.shape[-1] > 40 else y


class DividesBySpread(Clean):
    """What a norm without its epsilon does to a constant image."""

    def forward(self, x):
        return self.stages((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


class Squeezes(Clean):
    def forward(self, x):
        return self.stages(x).mean((2, 3)).squeeze()


class SubtractsBatchMean(Clean):
    def forward(self, x):
        y = self.stages(x)
        return y - y.mean(0, keepdim=True)


class BatchStatistics(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)


class CountsCalls(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        y = self.stages(x) + self.calls
        self.calls += 1
        return y


class DropsInEval(Clean):
    def forward(self, x):
        return F.dropout(self.stages(x), 0.1, training=True)


class DrawsFromPython(Clean):
    def forward(self, x):
        return self.stages(x) * (1 + random.random())


class WeightsWithoutSeed(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.head.bias.data.uniform_(generator=_OWN)


_OWN = torch.Generator().manual_seed(0)


class RoundsImage(Clean):
    def forward(self, x):
        return self.stages(torch.round(x * 255) / 255)


class DeadParameter(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(3, 3, 1)


class DeadBuffer(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3))


class Float32(Clean):
    def forward(self, x):
        return self.stages(x + torch.full((1, 3, 1, 1), 0.1, device=x.device, dtype=torch.float32))


class OnCPU(Clean):
    def forward(self, x):
        return self.stages(x + torch.full((1, 3, 1, 1), 0.1, dtype=x.dtype))


class NoAutocast(Clean):
    """A buffer of the weights' dtype is filled with what autocast gives."""

    def forward(self, x):
        y = self.stages(x)
        out = torch.zeros(y.shape, dtype=x.dtype, device=x.device)
        out[torch.arange(len(y), device=x.device)] = y
        return out


class Memory(Clean):
    """The memory's order in place of the map's."""

    def forward(self, x):
        y = self.stages(x)
        if y.is_contiguous():
            return y
        return y.permute(0, 2, 3, 1).reshape(y.shape)


class Views(Clean):
    def forward(self, x):
        return self.stages(x.view(-1).view(x.shape) if x.stride(3) != 3 else x)


class InPlace(Clean):
    def forward(self, x):
        return self.stages(x.mul_(0.5))


class OtherInTraining(Clean):
    def forward(self, x):
        y = self.stages(x)
        return y.mean((2, 3)) if self.training else y


class HidesWeights(Clean):
    """A weight in a plain list, which no state_dict knows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.rand(8, 1, 1)]

    def forward(self, x):
        return self.stages(x) * self.hidden[0].to(x)


class SharesWeights(Clean):
    def __deepcopy__(self, memo):
        other = SharesWeights()
        other.load_state_dict(self.state_dict())
        other.head = self.head
        return other.eval()


class Unpicklable(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x

    def forward(self, x):
        return self.act(self.stages(x))


class AsksValues(Clean):
    """A branch on a value, which a graph cannot have."""

    def forward(self, x):
        return self.stages(x) if bool(x.sum() > 0) else self.stages(-x)
