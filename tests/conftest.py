"""What all tests share: devices, dtypes, random numbers and the profiles of Hypothesis."""

import gc
import os
import zlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, register_random, settings

ASKED = os.environ.get("KORNIA_MVIT_DEVICE")  # the device that `make gpu` tests
DEVICES = [ASKED] if ASKED else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

# The same examples each time: what `make test` gives once it gives again, on a busy machine too. `make fuzz` looks for
# what these miss.
STEADY = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=8, derandomize=True, **STEADY)
settings.register_profile("long", max_examples=8, derandomize=True, **STEADY)  # and all that ``cases`` asks for
settings.register_profile("fuzz", max_examples=60, derandomize=False, print_blob=True, **STEADY)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "dev"
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a share of the long tests, such as the second of three where LONG_SHARE is 2/3; without it all of them.

    ``long(every_share=True)`` marks one that no share leaves out: nothing quicker guards what it does.

    Where KORNIA_MVIT_DEVICE names a device, tests that take one are marked for ``-m gpu``.
    """
    for item in items:
        if ASKED and "device" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("long"):
            item.add_marker(pytest.mark.gpu)
    number, _, count = os.environ.get("LONG_SHARE", "1/1").partition("/")
    left_out = [
        item
        for item in items
        if any(map(item.get_closest_marker, ["long", "cases"] if PROFILE == "long" else ["long"]))
        and not any(mark.kwargs.get("every_share") for mark in item.iter_markers("long"))
        and zlib.crc32(item.nodeid.partition("[")[0].encode()) % int(count) != int(number) - 1
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, a million objects that stay, and let it look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Forget the seed of Lightning's ``seed_everything``, which would choose the order of other tests' data."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


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
