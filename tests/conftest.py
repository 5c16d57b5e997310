"""What all tests share: devices, dtypes and the profiles of Hypothesis."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

# Session-scoped fixtures throughout, since Hypothesis refuses function-scoped ones around its examples.
settings.register_profile("dev", deadline=None, max_examples=8)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Give each test the same random numbers, whichever ran before it, and leave the generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
