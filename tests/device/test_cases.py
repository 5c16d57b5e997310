"""On the pretended device all results are those of the CPU, and waits and uploads those of the table."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.augmentation.scenes import scene
from tests.device.cases import OTHERS, SINGLE, STEPS, row, run
from tests.device.pretended import CUDA, Pretended

TABLE = json.loads(Path(__file__).with_name("waits.json").read_text(encoding="utf-8"))
CASES = {**STEPS, **OTHERS, **SINGLE}


def check(name):
    expected, result, device = run(CASES[name])
    expected, result = ([v for v in tree_leaves(values) if isinstance(v, Tensor)] for values in (expected, result))
    assert expected
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=5e-5)
    assert row(device) == TABLE[name]


# Two policies and one network tell within seconds; the rest takes longer.
LONG = {
    *(name for name in STEPS if "several sizes: classification" in name or name.endswith("trivialaugment")),
    "step: classification_strong",
    "step: segmentation_train",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in LONG)) for n in [*STEPS, *OTHERS]])
def test_as_on_the_cpu(name):
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", SINGLE)
def test_single_operations_as_on_the_cpu(name):
    check(name)


@pytest.mark.parametrize("name", STEPS)
def test_no_wait_and_at_most_two_uploads(name):
    assert set(TABLE[name]) == {"uploads"}
    assert TABLE[name]["uploads"] <= (7 if name.startswith("test-time") else 2)  # one for each transform


@pytest.mark.parametrize("name", [name for name in STEPS if "from what was drawn" in name])
def test_nothing_passes_between_host_and_device_after_the_drawing(name):
    """As a CUDA graph, which runs it again without the host, has to have it."""
    assert TABLE[name] == {"uploads": 0}


def test_the_table_has_a_row_for_each_case():
    assert list(TABLE) == list(CASES)


class TestHostSize:
    def test_it_is_known_without_waiting(self):
        batch = scene(0, padded=True)
        with Pretended() as device:
            far = batch.to(CUDA)
            assert torch.equal(far.host_size(), batch.size)
            assert far.replace(size=far.size + 0).host_size() is None
            assert not device.waits

    def test_on_the_cpu_it_is_the_size(self):
        batch = scene(0, padded=True)
        assert batch.host_size() is batch.size
        assert batch.to("cpu").host_size() is batch.size
        assert scene(0).host_size() is None
