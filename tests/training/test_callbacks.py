"""EMA: the average, and its warm-up."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kornia_mvit.training import EMA
from kornia_mvit.training.callbacks import _average


class TestEMA:
    @pytest.mark.parametrize("decay", [-0.1, 1.0])
    def test_exception(self, decay):
        with pytest.raises(ValueError, match=f"EMA decay {decay} is not in"):
            EMA(decay)

    def test_feature(self):
        """Against the formula, step by step: weights, buffers and counters."""
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        average = AveragedModel(model, use_buffers=True, **EMA(0.25)._kwargs)
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
        average, current = [torch.zeros(3, dtype=dtype)], [torch.ones(3, dtype=dtype)]
        _average(0.9, average, current, torch.tensor(10**6))
        torch.testing.assert_close(average[0], torch.full((3,), 0.1, dtype=dtype), rtol=1e-2, atol=0)
