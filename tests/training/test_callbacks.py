"""EMA: the average, and its warm-up."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kornia_mvit.training import EMA


def average_of(model, decay):
    """Average a model as Lightning does with the callback: by what it keeps for PyTorch's AveragedModel."""
    return AveragedModel(model, use_buffers=True, **EMA(decay)._kwargs)


class TestEMA:
    @pytest.mark.parametrize("decay", [-0.1, 1.0])
    def test_exception(self, decay):
        with pytest.raises(ValueError, match=f"decay {decay}"):
            EMA(decay)

    def test_feature(self):
        """Against the formula, step by step: weights, buffers and counters."""
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        average = average_of(model, 0.25)
        expected = None
        for n in range(12):
            with torch.no_grad():
                for value in model.state_dict().values():
                    value.copy_(torch.randn(value.shape) * 5)
            average.update_parameters(model)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            keep = min(0.25, (1 + n) / (10 + n))
            expected = (
                state
                if expected is None
                else {k: keep * expected[k] + (1 - keep) * v if v.is_floating_point() else v for k, v in state.items()}
            )
            for name, value in average.module.state_dict().items():
                torch.testing.assert_close(value, expected[name])

    def test_keeps_dtype(self, dtype):
        model = nn.Linear(3, 1, bias=False, dtype=dtype)
        nn.init.zeros_(model.weight)
        average = average_of(model, 0.9)
        average.n_averaged.fill_(10**6)
        nn.init.ones_(model.weight)
        average.update_parameters(model)
        torch.testing.assert_close(average.module.weight, torch.full((1, 3), 0.1, dtype=dtype), rtol=1e-2, atol=0)
