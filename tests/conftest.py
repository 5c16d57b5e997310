"""What all tests share: devices, dtypes, random numbers and the profiles of Hypothesis."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import register_random, settings

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

settings.register_profile("dev", deadline=None, max_examples=8)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


class TorchRandom:
    """PyTorch's generator, as Hypothesis wants it."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


# Each example then starts from the same random numbers, so that one that fails can be run again.
TORCH_RANDOM = TorchRandom()  # Hypothesis keeps a weak reference
register_random(TORCH_RANDOM)


# Session-scoped: Hypothesis refuses function-scoped ones around its examples.
@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Give each test the same random numbers, whichever ran before it, and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
