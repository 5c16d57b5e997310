"""Files that take long to make, made once a session."""

from pathlib import Path

import pytest

from kornia_mvit.exporters import to_executorch
from kornia_mvit.weights.cards import Model
from tests.exporters.scenes import build


@pytest.fixture(scope="session")
def xxs() -> Model:
    """A classifier as large as the smallest published one."""
    return build("classification", "xxs")


@pytest.fixture(scope="session")
def xxs_program(xxs, tmp_path_factory) -> Path:
    """It as an ExecuTorch program for images of 64 px."""
    return to_executorch(xxs, tmp_path_factory.mktemp("pte") / "new" / "xxs.pte", size=64)
