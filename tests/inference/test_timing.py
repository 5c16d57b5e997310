"""Times in turn."""

import pytest
import torch

from kornia_mvit.inference.engines.timing import time_in_turn


class TestTimeInTurn:
    def test_order(self):
        calls = []
        times = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
        assert "".join(calls) == "ab" * 4
        assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}
        assert all(seconds > 0 for taken in times.values() for seconds in taken)

    def test_seconds(self):
        """Three rounds at least, and no more once the time is over."""
        assert len(time_in_turn({"a": lambda: None}, rounds=50, seconds=0.0)["a"]) == 3
        assert len(time_in_turn({"a": lambda: None}, rounds=2, seconds=0.0)["a"]) == 2

    def test_slower_takes_longer(self):
        x = torch.rand(60, 60)
        times = time_in_turn({"sum": x.sum, "svd": lambda: torch.linalg.svd(x)}, rounds=5)
        assert min(times["sum"]) < min(times["svd"])

    def test_exception(self):
        def fail():
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            time_in_turn({"a": fail})
