"""Comparisons, timing and the table."""

import time

import pytest
import torch

from kornia_mvit.exporters import Comparison, Row, Table, compare, file_size, time_in_turn
from kornia_mvit.exporters.report import answers, model_size
from tests.exporters.scenes import build


class TestCompare:
    def test_smoke(self):
        found = compare(lambda x: x + 0.01, lambda x: x, [torch.eye(4), torch.eye(4)[:2]])
        assert found.images == 6
        assert found.difference == pytest.approx(0.01)
        assert found.agreement == 1.0

    def test_counts_answers_that_differ(self):
        found = compare(lambda x: x.roll(1, 1), lambda x: x, [torch.eye(4)])
        assert found.agreement == 0.0
        labels = torch.tensor([[0, 1, 2, 3]])
        found = compare(lambda x: labels, lambda x: torch.tensor([[0, 1, 2, 0]]), [labels])
        assert (found.agreement, found.difference) == (0.75, 0.0)

    def test_nothing_hides_a_nan(self):
        for bad in (torch.tensor([[torch.nan, 1.0]]), torch.tensor([[1.0, torch.nan]])):
            found = compare(lambda x: x, lambda x, bad=bad: bad, [torch.ones(1, 2), torch.ones(1, 2)])
            assert found.difference != found.difference

    def test_exception(self):
        with pytest.raises(ValueError, match="give one batch or more"):
            compare(lambda x: x, lambda x: x, [])
        with pytest.raises(ValueError, match=r"\[\(1, 1\)\].*\[\(1, 2\)\]"):
            compare(lambda x: x[:, :1], lambda x: x, [torch.ones(1, 2)])

    def test_answers_of_tasks(self):
        x = torch.rand(2, 5, 3)
        assert torch.equal(answers([x]), x.argmax(1))
        assert torch.equal(answers([x, x], "detection"), x.argmax(2))
        assert torch.equal(answers([x, torch.ones(2, dtype=torch.int64)]), torch.ones(2, dtype=torch.int64))


class TestTimeInTurn:
    def test_turns_and_medians(self):
        calls = []
        runs = {"fast": lambda: calls.append("f"), "slow": lambda: (calls.append("s"), time.sleep(0.1))}
        times = time_in_turn(runs, rounds=3, warmup=1)
        assert calls == ["f", "s"] * 4
        assert times["slow"] >= 0.1 > times["fast"]


class TestFileSize:
    def test_files_folders_and_openvino(self, tmp_path):
        (tmp_path / "a.xml").write_bytes(b"12")
        (tmp_path / "a.bin").write_bytes(b"345")
        (tmp_path / "a.onnx").write_bytes(b"6")
        assert file_size(tmp_path / "a.onnx") == 1
        assert file_size(tmp_path / "a.xml") == 5
        assert file_size(tmp_path) == 6

    def test_model(self):
        model = torch.nn.Linear(3, 5)
        assert model_size(model) == 80
        assert model_size(build("classification")) > 0


class TestTable:
    def test_columns(self):
        rows = [Row("eager", 2_000_000, 0.02), Row("onnx", 1_000_000, 0.005, Comparison(3, 0.001, 0.5), accuracy=0.9)]
        head, eager, exported, note = str(Table(rows, "batch 1")).splitlines()
        assert head.split() == [
            "max",
            "difference",
            "top-1",
            "agreement",
            "accuracy",
            *("size ratio latency ratio".split()),
        ]
        assert eager.split() == ["eager", "-", "-", "-", "2.0", "MB", "1.00", "20.0", "ms", "1.00"]
        assert exported.split() == ["onnx", "1.0e-03", "50.00%", "90.00%", "1.0", "MB", "0.50", "5.0", "ms", "0.25"]
        assert note == "batch 1"

    def test_what_was_not_measured(self):
        assert str(Table([Row("eager", 10), Row("coreml")])).splitlines()[2].split() == ["coreml", *"------"]
